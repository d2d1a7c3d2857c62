"""How the work grows with devices and rules: the real core and the real scan, on a copy of sysfs with any number of sticks."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.stats import Sample
from bench.table import Goal, Row, at_most
from devwatch import __version__
from devwatch.agent.clock import Clock
from devwatch.agent.report import Telemetry
from devwatch.agent.wiring import build_agent
from devwatch.config.schema import Config
from devwatch.core.node import NodePatch, NodeState
from devwatch.core.rules import KeyTest, Matcher, Pattern, ResourceRule, subsystems_of
from devwatch.host.lister import Lister
from devwatch.host.mounts import Roots
from devwatch.observe.health import Health
from devwatch.observe.metrics import Metrics

if TYPE_CHECKING:
    from bench.ground import Ground
    from devwatch.agent.reconciler import Reconciler
    from devwatch.core.inventory import Scan

DEVICES, RULES = (1, 8, 64, 512), (1, 16, 256)
SUBSYSTEMS = {
    "tty": (188, "ttyUSB{}"),
    "usb": (189, "bus/usb/001/{:03}"),
    "hidraw": (240, "hidraw{}"),
    "video4linux": (81, "video{}"),
}
"""The major number and the devnodes of each subsystem (Linux, Documentation/admin-guide/devices.txt); that of hidraw is dynamic."""
MIXED = (64, 16)
"""The devices and rules of the row with all subsystems."""
LIMITS = {(DEVICES[-1], RULES[-1], 1): 20, (*MIXED, len(SUBSYSTEMS)): 2}
"""Milliseconds that a warm reconcile may take, by devices, rules and subsystems."""
_SLACK = 1.5
"""How much worse than in proportion a time may be before it counts as worse than linear: small ones hold fixed costs and noise."""
_MS = 1000.0
_FIRST_CYCLES = 3
_STARTS = 5
"""How often the first scan is measured, since one measurement may be an outlier."""
_TIMEOUT = 60.0
PRODUCT = "0200"


class Silence:
    """A log that drops every event."""

    def debug(self, event: str, **fields: object) -> None:
        """Drop it."""

    def info(self, event: str, **fields: object) -> None:
        """Drop it."""

    def warning(self, event: str, **fields: object) -> None:
        """Drop it."""

    def error(self, event: str, **fields: object) -> None:
        """Drop it."""


class Settled:
    """A configuration that does not change."""

    def poll(self, *, force: bool) -> Config | None:  # noqa: ARG002 - the daemon's interface
        """Return None: nothing has changed."""
        return None


class Copy:
    """A copy of sysfs, /dev and the udev database with `count` devices. It needs root, to make the device nodes."""

    def __init__(self, folder: Path, count: int, vendors: int, subsystems: tuple[str, ...]) -> None:
        """Make the copy; the devices alternate between the subsystems, and those of each between the vendors of its rules."""
        self.roots = Roots(
            sys=f"{folder}/sys", dev=f"{folder}/dev", run=f"{folder}/run", mountinfo=f"{folder}/mountinfo"
        )
        for name in ("sys/class/tty", "sys/bus/platform", "sys/bus/usb/devices", "dev/bus/usb/001", "run/data"):
            (folder / name).mkdir(parents=True)
        (folder / "run/control").touch()
        (folder / "mountinfo").write_text(f"1 1 0:1 / {folder}/dev rw - devtmpfs devtmpfs rw\n")
        self._records: dict[str, dict[str, str]] = {}
        for name, number in (("tty", os.makedev(5, 0)), ("console", os.makedev(5, 1))):
            self._register(f"devices/virtual/tty/{name}", number, f"class/tty/{name}", name)
        kinds = len(subsystems)
        for index in range(count):
            self._device(index, f"{index // kinds % (vendors // kinds):04x}", subsystems[index % kinds])

    def record(self, path: str) -> dict[str, str] | None:
        """Return the udev record of a sysfs path, as libudev would."""
        return self._records.get(path)

    def _device(self, index: int, vendor: str, subsystem: str) -> None:
        body = f"devices/usb1/1-{index}"
        ids = {"idVendor": vendor, "idProduct": PRODUCT, "serial": f"S{index}", "1.0/bInterfaceNumber": "00"}
        for name, text in ids.items():
            file = Path(self.roots.sys, body, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
        known = {
            "ID_VENDOR_ID": vendor,
            "ID_MODEL_ID": PRODUCT,
            "ID_SERIAL_SHORT": f"S{index}",
            "ID_PATH": f"usb-{index}",
        }
        major, devnode = SUBSYSTEMS[subsystem]
        node = devnode.format(index)
        name = f"1-{index}" if subsystem == "usb" else node
        place = body if subsystem == "usb" else f"{body}/1.0/{name}/{subsystem}/{name}"
        entry = f"bus/usb/devices/{name}" if subsystem == "usb" else f"class/{subsystem}/{name}"
        self._register(place, os.makedev(major, index), entry, node)
        # A record of udev holds some forty properties.
        self._records[str(Path(self.roots.sys, place))] = {
            **known,
            **{f"ID_OTHER_{number}": "text" for number in range(36)},
        }

    def _register(self, place: str, number: int, entry: str, node: str) -> None:
        device, link = Path(self.roots.sys, place), Path(self.roots.sys, entry)
        device.mkdir(parents=True, exist_ok=True)
        (device / "dev").write_text(f"{os.major(number)}:{os.minor(number)}\n")
        (device / "uevent").write_text(f"DEVNAME={node}\nDEVTYPE=usb_device\n")
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(device)
        Path(self.roots.run, f"data/c{os.major(number)}:{os.minor(number)}").touch()
        os.mknod(Path(self.roots.dev, node), stat.S_IFCHR | 0o600, number)


@dataclass(slots=True, kw_only=True)
class _Source:
    """The real scan, with the duration of each cycle of the loop, from its reading of the clock to its end."""

    lister: Lister
    began: float = 0.0
    cycles: list[float] = field(default_factory=list)
    cycle_ended: asyncio.Event = field(default_factory=asyncio.Event)

    def scan(self, now: float) -> Scan:
        return self.lister.scan(now)

    def expect(self, paths: frozenset[str], subsystems: frozenset[str]) -> None:
        self.lister.paths, self.lister.subsystems = paths, subsystems

    def cycled(self) -> None:
        self.cycles.append(time.perf_counter() - self.began)
        self.cycle_ended.set()


@dataclass(slots=True, kw_only=True)
class _Node:
    """A Node that accepts every patch at once."""

    state: NodeState = field(default_factory=NodeState)
    sizes: list[int] = field(default_factory=list)
    date: str = ""

    async def patch(self, patch: NodePatch) -> NodeState:
        if patch:
            self.sizes.append(len(json.dumps(patch.body())))
        self.state = patch.applied(self.state)
        return self.state


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What one size comes to; seconds, bytes."""

    devices: int
    rules: int
    subsystems: int
    first: float
    warm: Sample
    size: int


def rules_for(count: int, subsystems: tuple[str, ...] = ("tty",)) -> tuple[ResourceRule, ...]:
    """Return rules that alternate between the subsystems; those of each name another vendor."""
    kinds = len(subsystems)
    return tuple(
        ResourceRule(
            name=f"example.com/stick-{number}",
            match=(_matcher(f"{number // kinds:04x}"),),
            subsystem=subsystems[number % kinds],
        )
        for number in range(count)
    )


def _matcher(vendor: str) -> Matcher:
    texts = {"vendor": vendor, "product": PRODUCT, "serial": "S*"}
    return Matcher(tests=tuple(KeyTest(key=key, patterns=(Pattern(text=text),)) for key, text in texts.items()))


def measure(devices: int, rules: int, cycles: int, subsystems: tuple[str, ...] = ("tty",)) -> Point:
    """Measure the first cycle, as the median of `_STARTS` starts, and after the last of them `cycles` in which nothing has changed."""
    folder = Path(tempfile.mkdtemp(prefix="devwatch-growth-", dir="/dev/shm"))
    try:
        copy = Copy(folder, devices, rules, subsystems)
        starts = [asyncio.run(_measure(copy, rules_for(rules, subsystems), devices, cycles)) for _ in range(_STARTS)]
        return replace(starts[-1], first=Sample.of([start.first for start in starts]).median)
    finally:
        shutil.rmtree(folder)


async def _measure(copy: Copy, rules: tuple[ResourceRule, ...], devices: int, cycles: int) -> Point:
    source, node = _Source(lister=Lister(record=copy.record, roots=copy.roots)), _Node()
    reconciler = _reconciler(source, node, Config(resources=rules))
    running = asyncio.create_task(reconciler.run())
    # The loop cycles by itself until the first read and the first patch are answered; from then on only when it is woken.
    await _cycled(source, _FIRST_CYCLES)
    for cycle in range(cycles):
        reconciler.wake("uevent")
        await _cycled(source, _FIRST_CYCLES + cycle + 1)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    first, *_ = source.cycles
    return Point(
        devices=devices,
        rules=len(rules),
        subsystems=len(subsystems_of(rules)),
        first=first,
        warm=Sample.of(source.cycles[_FIRST_CYCLES:]),
        size=max(node.sizes),
    )


async def _cycled(source: _Source, count: int) -> None:
    async with asyncio.timeout(_TIMEOUT):
        while len(source.cycles) < count:
            source.cycle_ended.clear()
            await source.cycle_ended.wait()


def _reconciler(source: _Source, node: _Node, config: Config) -> Reconciler:
    loop = asyncio.get_running_loop()

    def clock() -> float:
        # Every cycle begins by reading the clock.
        source.began = time.perf_counter()
        return loop.time()

    metrics, health = Metrics(__version__), Health(sweep=config.sweep, last_cycle=0)
    return build_agent(
        source=source,
        api=node,
        settings=Settled(),
        config=config,
        node="n",
        telemetry=Telemetry(log=Silence(), metrics=metrics, health=health),
        clock=Clock(now=clock, unix=lambda: 0.0, jitter=random.random),
        cycled=source.cycled,
    )


def growth(ground: Ground) -> list[Row]:
    """Measure every size."""
    sizes = [(devices, rules) for rules in RULES for devices in DEVICES]
    points = [measure(devices, rules, ground.size(20, 3)) for devices, rules in sizes]
    mixed = measure(*MIXED, ground.size(20, 3), tuple(SUBSYSTEMS))
    made = (_first, _warm, _size)
    rows = [make(point) for make in made for point in points]
    return [*rows, _linear(points), *(make(mixed) for make in made)]


def _titled(point: Point, what: str) -> str:
    kinds = f", {point.subsystems} subsystems" if point.subsystems > 1 else ""
    return f"{what}, {point.devices:3} devices, {point.rules:3} rules{kinds}"


def _first(point: Point) -> Row:
    note = f"the median of {_STARTS}; in this process: the real core and scan on a copy of sysfs in memory; without libudev and netlink"
    return Row(
        bench="growth",
        figure=_titled(point, "first scan"),
        unit="ms",
        value=point.first * _MS,
        note=note if point.devices == 1 else "",
    )


def _warm(point: Point) -> Row:
    values = point.warm.scaled(_MS)
    limit = LIMITS.get((point.devices, point.rules, point.subsystems))
    goal = at_most(limit, values.median, "p50") if limit else None
    return Row(bench="growth", figure=_titled(point, "warm reconcile"), unit="ms", value=values, goal=goal)


def _size(point: Point) -> Row:
    return Row(bench="growth", figure=_titled(point, "first patch"), unit="bytes", value=float(point.size))


def _linear(points: list[Point]) -> Row:
    """Compare every size with the next one below it, by devices and by rules: how much more than in proportion it takes."""
    pairs = [(one, other) for one in points for other in points if _follows(one, other)]
    worst = max(
        max(other.warm.median / one.warm.median, other.first / one.first) / _grown(one, other) for one, other in pairs
    )
    goal = Goal(text=f"<= {_SLACK:g}", met=worst <= _SLACK)
    return Row(bench="growth", figure="time against size, worst step", unit="times linear", value=worst, goal=goal)


def _follows(one: Point, other: Point) -> bool:
    devices, rules = _step(DEVICES, one.devices, other.devices), _step(RULES, one.rules, other.rules)
    return (devices, rules) in {(1, 0), (0, 1)}


def _step(order: tuple[int, ...], one: int, other: int) -> int:
    return order.index(other) - order.index(one)


def _grown(one: Point, other: Point) -> float:
    return other.devices * other.rules / (one.devices * one.rules)
