"""The edge to udev on real parts: netlink, udevd, sysfs; where a part must fail, in namespaces of their own."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pyudev

from devwatch.core.errors import Unavailable
from devwatch.core.inventory import Inventory
from devwatch.core.listing import Entry
from devwatch.host.lister import Lister
from devwatch.host.mounts import Roots
from devwatch.host.udev import BATCH, TEND_INTERVAL, UdevSource, read_record
from support.uevents import Heard, turn, uevent_descriptors
from system.process import Process
from system.udevd import DEV, RULES, SYS, ownership_kept, settle
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from devwatch.core.device import Device
    from system.udevd import Sticks

pytestmark = pytest.mark.system

NOBODY = 65534
UDEVD = "/lib/systemd/systemd-udevd"
CHANGES = 300
FLAPS = 100
VT_DISALLOCATE = 0x5608
"""Frees the memory of a virtual console (ioctl_console(2))."""


@dataclass(slots=True, kw_only=True)
class MonitorListener:
    """A source of devices on this machine, and what it hears."""

    roots: Roots = field(default_factory=Roots)
    heard: Heard = field(default_factory=Heard)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    now: float = 0.0
    source: UdevSource = field(init=False)

    def __post_init__(self) -> None:
        """Open the source, and with its first look the monitor."""
        self.source = UdevSource.open(listener=self.heard, loop=self.loop, roots=self.roots)
        self.tend()

    def tend(self) -> None:
        """Tend the monitor when that is due again."""
        self.now += TEND_INTERVAL
        self.source.monitor.tend(self.now)

    def said(self) -> list[str]:
        """Return what was said of the monitor since the last time."""
        said, self.heard.told = self.heard.told, []
        return said

    def until(self, check: Callable[[], object]) -> None:
        """Let the loop turn until something is so."""

        def cycled() -> bool:
            turn(self.loop)
            return bool(check())

        eventually(cycled)

    def hears(self, cause: Callable[[], object], action: str) -> None:
        """Wait for an uevent that comes after its cause; those that came before have been read then."""
        turn(self.loop)
        before = len(self.heard.actions)
        cause()
        self.until(lambda: action in self.heard.actions[before:])

    def turns_to(self, source: str) -> None:
        """Wait until the monitor takes this stream."""

        def tended() -> bool:
            self.tend()
            return f"restored: {source}" in self.said()

        eventually(tended)

    def device(self, tty: str) -> Device | None:
        """Return a tty as a look finds it that must be certain."""
        scan = self.source.scan(self.now)
        assert scan.doubts == ()
        return next((device for device in scan.devices if device.devnode == str(DEV / tty)), None)

    def close(self) -> None:
        """Close everything."""
        self.source.close()
        self.loop.close()


@contextlib.contextmanager
def listening(roots: Roots | None = None) -> Iterator[MonitorListener]:
    """Have ears for a while."""
    listener = MonitorListener(roots=roots or Roots())
    try:
        yield listener
    finally:
        listener.close()


@pytest.fixture
def listener(sticks: Sticks) -> Iterator[MonitorListener]:  # noqa: ARG001 - udevd has to run first
    """Hear what udevd says."""
    with listening() as open_ears:
        assert open_ears.said() == ["restored: udev"]
        yield open_ears


@pytest.fixture
def no_udevd(tmp_path: Path) -> Roots:
    """Return a host that shows no udevd, though the kernel speaks."""
    return Roots(run=str(tmp_path / "run"))


def uevent(tty: str = "tty63", action: str = "change") -> None:
    """Have the kernel send an uevent."""
    (SYS / tty / "uevent").write_text(action, "ascii")


def plug(
    sticks: Sticks,
    tty: str = "tty40",
    *,
    serial: str | None = None,
    port: str | None = None,
    links: Sequence[str] = (),
) -> Path:
    """Plug a stick and return its devnode."""
    return sticks.plug(tty, vendor="0403", product="6001", serial=serial, interface="00", port=port, links=links)


# Devices


def test_a_stick_comes_and_goes(listener: MonitorListener, sticks: Sticks) -> None:
    """Heard from udev when its rules have run, so that the look after the event has everything."""
    links = ["serial/by-id/usb-a1"]
    listener.hears(lambda: plug(sticks, serial="A1", port="usb-0:1.4:1.0", links=links), "add")
    stick = listener.device("tty40")
    assert stick is not None
    assert (stick.vendor, stick.product, stick.serial) == ("0403", "6001", "A1")
    assert (stick.interface, stick.port, stick.links) == ("00", "usb-0:1.4:1.0", ("/dev/serial/by-id/usb-a1",))
    assert dict(stick.properties or {}).items() >= sticks.properties("tty40").items()
    listener.hears(lambda: sticks.unplug("tty40"), "remove")
    assert listener.device("tty40") is None


def test_a_record_that_the_rules_change_is_seen(listener: MonitorListener, sticks: Sticks) -> None:
    """As `udevadm trigger` does after an administrator has written a rule."""
    plug(sticks, port="before")
    sticks.settle()
    assert getattr(listener.device("tty40"), "port", None) == "before"
    listener.hears(lambda: plug(sticks, port="after"), "add")
    assert getattr(listener.device("tty40"), "port", None) == "after"


def test_the_shared_link_of_twins_moves_without_an_event_for_the_survivor(
    listener: MonitorListener, sticks: Sticks
) -> None:
    """Each look follows it."""
    links = ["serial/by-id/usb-twin"]
    plug(sticks, serial="same", links=links)
    plug(sticks, "tty41", serial="same", links=links)
    sticks.settle()
    leads_to = Path("/dev", *links).resolve().name
    other = {"tty40": "tty41", "tty41": "tty40"}[leads_to]
    assert getattr(listener.device(leads_to), "links", None) == ("/dev/serial/by-id/usb-twin",)
    assert getattr(listener.device(other), "links", None) == ()
    listener.hears(lambda: sticks.unplug(leads_to), "remove")
    assert getattr(listener.device(other), "links", None) == ("/dev/serial/by-id/usb-twin",)


@pytest.mark.parametrize("serial", ["esc\x1b[31m", "$(reboot)`x`", "a,b c\\x2f", "中é", "A" * 500])
def test_what_a_rule_makes_of_a_serial_is_taken_as_it_is(
    listener: MonitorListener, sticks: Sticks, serial: str
) -> None:
    """The record decides, not what a stick may have been meant to say."""
    plug(sticks, serial=serial)
    sticks.settle()
    assert getattr(listener.device("tty40"), "serial", None) == serial


def test_what_udevd_marks_a_record_with_while_it_handles_an_event_is_no_property(
    listener: MonitorListener, sticks: Sticks
) -> None:
    """Newer ones write ID_PROCESSING and take it out again at every event: the device would change twice."""
    sticks.plug("tty40", vendor="0403", product="6001", properties={"ID_PROCESSING": "1", "ID_MODEL": "M"})
    sticks.settle()
    record = getattr(listener.device("tty40"), "properties", {})
    assert (record.get("ID_MODEL"), record.get("ID_PROCESSING")) == ("M", None)


def test_a_change_that_changes_nothing_leaves_the_device_the_very_same(
    listener: MonitorListener, sticks: Sticks
) -> None:
    """Udevd writes the record again, and makes each link under another name to rename it: none of it is seen."""
    plug(sticks, serial="A1", links=["serial/by-id/usb-a1", "serial/by-path/usb-0", "zigbee"])
    sticks.settle()
    first = listener.device("tty40")
    assert first is not None
    assert first.links == ("/dev/serial/by-id/usb-a1", "/dev/serial/by-path/usb-0", "/dev/zigbee")
    for _ in range(CHANGES):
        heard = len(listener.heard.actions)
        uevent("tty40")
        while len(listener.heard.actions) == heard:
            # A look takes longer than most of these names last: look as soon as there is one.
            if any(path.name != "usb-a1" for path in Path("/dev/serial/by-id").iterdir()):
                assert listener.device("tty40") is first
            turn(listener.loop)
        assert listener.device("tty40") is first


@dataclass(frozen=True, slots=True)
class Terminal:
    """The memory of a virtual console (vcs(4)): a device that the kernel registers anew whenever the console is."""

    number: int = 30

    @property
    def name(self) -> str:
        """What the kernel calls it."""
        return f"vcs{self.number}"

    def register(self) -> None:
        """Have the kernel make it."""
        os.close(os.open(f"/dev/tty{self.number}", os.O_RDWR | os.O_NOCTTY))

    def remove(self) -> None:
        """Have the kernel remove it; a console that was just closed may be busy for a moment."""
        with Path("/dev/tty0").open("rb", buffering=0) as console:
            eventually(lambda: self._disallocated(console.fileno()))

    def _disallocated(self, console: int) -> bool:
        try:
            fcntl.ioctl(console, VT_DISALLOCATE, self.number)
        except OSError:
            return False
        return True


@pytest.fixture
def terminal(udevd: None) -> Iterator[Terminal]:  # noqa: ARG001 - its rules name the links
    """Have a device with links that is registered and removed for real."""
    made, rules = Terminal(), RULES.with_name("99-devwatch-test-vc.rules")
    names = 'SYMLINK+="serial/by-id/usb-vcs", SYMLINK+="vcs-own"'
    rules.parent.mkdir(parents=True, exist_ok=True)
    rules.write_text(
        f'ACTION!="remove", SUBSYSTEM=="vc", KERNEL=="{made.name}", ENV{{ID_SERIAL_SHORT}}="V1", {names}\n'
    )
    subprocess.run(["udevadm", "control", "--reload"], check=True)
    try:
        made.register()
        settle()
        yield made
    finally:
        made.remove()
        rules.unlink()
        subprocess.run(["udevadm", "control", "--reload"], check=True)
        settle()


def lister_of(terminal: Terminal, folder: Path) -> Lister:
    """Return a lister that takes the class of these devices for that of ttys."""
    (folder / "class").mkdir()
    (folder / "class/tty").symlink_to("/sys/class/vc")
    context = pyudev.Context()
    return Lister(record=lambda _: read_record(context, f"/sys/class/vc/{terminal.name}"), roots=Roots(sys=str(folder)))


def test_a_device_of_another_subsystem_comes_and_goes(listener: MonitorListener, terminal: Terminal) -> None:
    """Its record and its links are udev's; ttys are neither scanned nor heard any more."""
    listener.source.expect(frozenset(), frozenset({"vc"}))
    listener.tend()
    found = listener.device(terminal.name)
    assert found is not None
    assert (found.subsystem, found.serial, found.complete) == ("vc", "V1", True)
    assert f"{DEV}/serial/by-id/usb-vcs" in found.links
    assert listener.device("tty63") is None
    listener.heard.batches.clear()
    uevent("tty63")
    settle()
    turn(listener.loop)
    assert listener.heard.actions == []
    listener.hears(terminal.remove, "remove")
    assert listener.device(terminal.name) is None
    listener.hears(terminal.register, "add")
    assert getattr(listener.device(terminal.name), "serial", None) == "V1"
    assert listener.said() == []


@pytest.mark.parametrize("pause", [0.0, 0.002, 0.005])
def test_a_device_that_flaps_is_published_as_it_is_or_not_at_all(
    terminal: Terminal, tmp_path: Path, pause: float
) -> None:
    """Each time another registration, removed and made again before udevd has come to it, and looked at all the while."""
    lister, inventory, published, seen = lister_of(terminal, tmp_path), Inventory(), set[Entry](), set[int]()

    def scan() -> None:
        found = lister.scan(time.monotonic())
        missing, *doubts = found.doubts
        assert "lacks the kernel's own tty and console" in missing  # which are in another class
        inventory.observe(replace(found, doubts=tuple(doubts)))
        present = [device for device in inventory.present if device.devnode == f"/dev/{terminal.name}"]
        published.update(map(Entry.of, present))
        seen.update(device.incarnation for device in present)

    scan()
    with ThreadPoolExecutor(1) as beside:
        flapping = beside.submit(flap, terminal, pause)
        while not flapping.done():
            scan()
        flapping.result()
    settle()
    scan()
    assert [(entry.link, entry.serial) for entry in published] == [("/dev/serial/by-id/usb-vcs", "V1")]
    assert len(seen) > FLAPS // 10


def flap(terminal: Terminal, pause: float) -> None:
    """Remove a device and register it again, many times."""
    for number in range(FLAPS):
        terminal.remove()
        time.sleep(pause)
        terminal.register()
        time.sleep(pause + number % 5 * 0.01)


def test_a_directory_in_the_place_of_a_stick_is_told_until_it_is_removed(
    listener: MonitorListener, sticks: Sticks
) -> None:
    """As containerd leaves one at each path of a pod that is restarted without its stick: udevd and kernel cannot make theirs."""
    link = Path("/dev/serial/by-id/usb-a1")
    places = {link, plug(sticks, links=["serial/by-id/usb-a1"])}
    sticks.settle()
    assert listener.device("tty40") is not None
    sticks.unplug("tty40")
    sticks.settle()
    assert blocked(listener) == set()
    for place in places:
        place.mkdir(parents=True)
    try:
        assert blocked(listener) == places
        plug(sticks, links=["serial/by-id/usb-a1"])
        sticks.settle()
        assert listener.device("tty40") is None
        assert blocked(listener) == places
    finally:
        for place in places:
            place.rmdir()
    plug(sticks, links=["serial/by-id/usb-a1"])
    sticks.settle()
    assert getattr(listener.device("tty40"), "link", None) == str(link)
    assert blocked(listener) == set()


def blocked(listener: MonitorListener) -> set[Path]:
    """Return the paths of which a look tells that a directory is in the way."""
    return {Path(line.partition(": ")[0]) for line in listener.source.scan(listener.now).blocked}


def test_a_link_that_the_configuration_names_is_followed(
    listener: MonitorListener, sticks: Sticks, tmp_path: Path
) -> None:
    """Also outside /dev."""
    (tmp_path / "zigbee").symlink_to(plug(sticks))
    sticks.settle()
    listener.source.expect(frozenset({str(tmp_path / "zigbee")}), frozenset({"tty"}))
    assert getattr(listener.device("tty40"), "link", None) == str(tmp_path / "zigbee")


# The monitor


def test_without_udevd_the_kernel_wakes_and_later_looks_are_due(sticks: Sticks, no_udevd: Roots) -> None:
    """The node is there at once; links and permissions follow without a word."""
    with listening(no_udevd) as listener:
        assert listener.said() == ["restored: kernel"]
        listener.hears(lambda: plug(sticks), "add")
        assert listener.device("tty40") is not None
        assert listener.source.scan(listener.loop.time()).again_at is not None


def test_the_stream_follows_udevd(sticks: Sticks, tmp_path: Path) -> None:
    """That of udev while there is a udevd, the kernel's before and after; each is heard."""
    control = tmp_path / "control"
    with listening(Roots(run=str(tmp_path))) as listener:
        assert listener.said() == ["restored: kernel"]
        for change, source in ((control.touch, "udev"), (control.unlink, "kernel")):
            listener.hears(lambda: plug(sticks), "add")
            change()
            listener.tend()
            assert listener.said() == [f"restored: {source}"]
            assert len(uevent_descriptors()) == 1
        listener.hears(lambda: plug(sticks), "add")


def test_the_buffer_holds_a_storm(listener: MonitorListener) -> None:
    """The kernel doubles what was asked for, and root may ask for more than the administrator's limit (socket(7))."""
    assert listener.heard.overflows == 0
    with own_socket() as heard:
        assert heard.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 256 * 1024 * 1024


@contextlib.contextmanager
def own_socket() -> Iterator[socket.socket]:
    """Borrow the one socket for uevents of this process."""
    (descriptor,) = uevent_descriptors()
    with socket.socket(fileno=os.dup(descriptor)) as duplicate:
        yield duplicate


@pytest.mark.parametrize("stream", ["udev", "kernel"])
def test_an_overflow_is_told_and_heard_through(sticks: Sticks, no_udevd: Roots, stream: str) -> None:
    """Uevents are lost, the monitor is not: the next stick is heard."""
    with listening(no_udevd if stream == "kernel" else None) as listener:
        with own_socket() as heard:
            heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(100):
            uevent()
        sticks.settle()
        listener.until(lambda: listener.heard.overflows)
        listener.hears(lambda: plug(sticks), "add")
        assert listener.said() == [f"restored: {stream}"]


def test_a_socket_that_was_closed_under_the_monitor_is_replaced_by_one_that_hears(
    listener: MonitorListener, sticks: Sticks
) -> None:
    """The new one has the number of the old: the loop must not take it for that."""
    (before,) = uevent_descriptors()
    os.close(before)
    listener.tend()
    assert listener.said() == ["lost: the netlink socket was closed", "restored: udev"]
    assert uevent_descriptors() == [before]
    listener.hears(lambda: plug(sticks), "add")


# What must happen in a process of its own


@contextlib.contextmanager
def apart(
    scenario: Callable[..., None], *arguments: str, namespaces: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Start a scenario in a process of its own, in new namespaces if any are named; it asserts what must be so."""
    code = f"import sys; from system import test_udev; test_udev.{scenario.__name__}(*sys.argv[1:])"
    command = [sys.executable, "-W", "error", "-X", "faulthandler", "-c", code, *arguments]
    process = subprocess.Popen(
        ["unshare", *namespaces, "--", *command] if namespaces else command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def ends_well(process: subprocess.Popen[str]) -> None:
    """Wait for the end of a scenario, and fail with what it said on standard error."""
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def passes(scenario: Callable[..., None], *arguments: str, namespaces: tuple[str, ...] = ()) -> None:
    """Run a scenario from its beginning to its end."""
    with apart(scenario, *arguments, namespaces=namespaces) as process:
        ends_well(process)


def answer(value: object) -> None:
    """Tell the test what it waits for."""
    print(json.dumps(value), flush=True)  # noqa: T201 - the way from a scenario to its test


def line(process: subprocess.Popen[str]) -> object:
    """Wait for the next answer of a scenario; None at its end."""
    assert process.stdout is not None
    text = process.stdout.readline()
    return json.loads(text) if text else None


def send(action: str, tty: str = "tty63") -> None:
    """Have the kernel spread an uevent in this network namespace alone (lib/kobject_uevent.c, `uevent_net_rcv_skb`)."""
    path = f"/devices/virtual/tty/{tty}"
    major, minor = (SYS / tty / "dev").read_text("ascii").strip().split(":")
    fields = [f"{action}@{path}", f"ACTION={action}", f"DEVPATH={path}", "SUBSYSTEM=tty"]
    fields += [f"MAJOR={major}", f"MINOR={minor}", f"DEVNAME={tty}"]
    body = b"".join(f"{text}\0".encode() for text in fields)
    request, smallest_type = 1, 0x10  # NLM_F_REQUEST and NLMSG_MIN_TYPE: what the kernel takes for a message
    header = struct.pack("=IHHII", 16 + len(body), smallest_type, request, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15) as kernel:
        kernel.sendto(header + body, (0, 0))


def mount(where: str) -> None:
    """Cover a folder with an empty one, in this mount namespace."""
    subprocess.run(["mount", "-t", "tmpfs", "none", where], check=True)


def uncover(where: str) -> None:
    """Take the cover away."""
    subprocess.run(["umount", where], check=True)


@contextlib.contextmanager
def no_descriptors() -> Iterator[list[int]]:
    """Take every file descriptor there is; those in the list may be closed to have some again."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    taken: list[int] = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.dup(1))
    try:
        yield taken
    finally:
        while taken:
            os.close(taken.pop())


def hears_as_nobody(run: str, tty: str) -> None:
    """Hear a stick come and go, without a right."""
    with listening():
        pass  # what Python imports late may lie where nobody may read
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    assert "CapEff:\t0000000000000000" in Path("/proc/self/status").read_text("utf-8")
    with listening(Roots(run=run)) as listener:
        answer(listener.said())
        listener.until(lambda: "add" in listener.heard.actions)
        answer(getattr(listener.device(tty), "vendor", None))
        listener.until(lambda: "remove" in listener.heard.actions)
        assert listener.device(tty) is None


@pytest.mark.parametrize(("stream", "vendor"), [("udev", "0403"), ("kernel", None)])
def test_neither_stream_needs_a_right(sticks: Sticks, stream: str, vendor: str | None) -> None:
    """Nobody without capabilities hears a stick come and go, and reads its record."""
    run = "/nonexistent" if stream == "kernel" else Roots().run
    with apart(hears_as_nobody, run, "tty40") as process:
        assert line(process) == [f"restored: {stream}"]
        plug(sticks)
        assert line(process) == vendor
        sticks.unplug("tty40")
        ends_well(process)


def hears_a_storm() -> None:
    """Hear ten thousand uevents while the loop does something else too."""
    storm, turns = 10_000, 0
    with listening() as listener:

        def tick() -> None:
            nonlocal turns
            turns += 1
            listener.loop.call_soon(tick)

        assert listener.said() == ["restored: kernel"]
        for _ in range(storm):
            send("change")
        listener.loop.call_soon(tick)
        listener.until(lambda: len(listener.heard.actions) >= storm)
        assert listener.heard.actions == ["change"] * storm
        assert max(map(len, listener.heard.batches)) <= BATCH
        assert turns >= len(listener.heard.batches)
        assert listener.heard.overflows == 0


def test_a_storm_of_uevents_holds_up_nothing_else(udevd: None) -> None:  # noqa: ARG001 - holds the lock
    """They are read in portions, with a turn of the loop after each, and none is lost."""
    passes(hears_a_storm, namespaces=("--net",))


def overflows_without_descriptors() -> None:
    """Hear through an overflow when there is no descriptor left, and find nothing absent meanwhile."""
    with listening() as listener:
        with own_socket() as heard:
            heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(100):
            send("change")
        with no_descriptors():
            listener.until(lambda: listener.heard.overflows)
            listener.tend()
            assert not listener.source.scan(listener.now).certain
        listener.hears(lambda: send("add"), "add")
        assert listener.said() == ["restored: kernel"]
        assert listener.source.scan(listener.now).certain


def test_an_overflow_without_file_descriptors_is_heard_through(udevd: None) -> None:  # noqa: ARG001 - holds the lock
    """The open monitor needs none to go on."""
    passes(overflows_without_descriptors, namespaces=("--net",))


def opens_without_descriptors() -> None:
    """Open a monitor, and read records, with few descriptors or none."""
    context = pyudev.Context()
    with listening() as listener, no_descriptors() as taken:
        listener.source.close()
        os.close(taken.pop())
        while uevent_free(taken):
            pass
        listener.tend()
        assert any("Too many open files" in said for said in listener.said())
        for _ in range(12):
            scan = Lister(record=lambda path: read_record(context, path)).scan(0)
            assert not scan.certain or {"tty", "console"} <= {Path(device.devnode).name for device in scan.devices}
            assert all(device.properties is None or "DEVNAME" in device.properties for device in scan.devices)
            os.close(taken.pop())
        listener.tend()
        assert listener.said() == ["restored: udev"]
        assert getattr(listener.device("tty40"), "vendor", None) == "0403"


def uevent_free(taken: list[int]) -> bool:
    """Take a descriptor that has become free; return whether there was one."""
    try:
        taken.append(os.dup(1))
    except OSError:
        return False
    return True


def test_without_file_descriptors_no_record_is_taken_for_an_empty_one(sticks: Sticks) -> None:
    """No error is reported (libudev): a device has its whole record or none, and is heard and read when there are some again."""
    plug(sticks)
    sticks.settle()
    passes(opens_without_descriptors)


def is_deaf() -> None:
    """Meet a libudev that believes that no udevd runs, and opens a deaf monitor."""
    with tempfile.TemporaryDirectory() as run:
        Path(run, "control").touch()
        mount("/run/udev")
        mount("/dev")
        os.mknod("/dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        with listening(Roots(run=run)) as listener:
            (said,) = listener.said()
            assert "libudev opened a udev monitor in no multicast group" in said
            listener.tend()
            assert listener.said() == []
            uncover("/run/udev")
            listener.tend()
            assert listener.said() == ["restored: udev"]
            listener.hears(uevent, "change")
        uncover("/dev")


def test_a_deaf_monitor_is_opened_again_until_it_hears(udevd: None) -> None:  # noqa: ARG001 - somebody has to be heard
    """A container in which /run/udev appears later."""
    passes(is_deaf, namespaces=("--mount",))


def outlives_udevd(logs: str) -> None:
    """Have a udevd of our own end and start again."""
    mount("/run/udev")
    with listening() as listener:
        assert listener.said() == ["restored: kernel"]
        for life in range(2):
            process = Process([UDEVD], Path(logs, f"udevd{life}"))
            listener.turns_to("udev")
            listener.hears(lambda: send("add"), "add")
            process.kill()
            listener.turns_to("kernel")
            listener.hears(lambda: send("change"), "change")


def test_a_udevd_that_ends_and_starts_again_is_followed(udevd: None, tmp_path: Path) -> None:  # noqa: ARG001 - holds the lock
    """Killed, so that its socket stays in /run/udev: while it is away the kernel is heard, then udev again."""
    with ownership_kept():
        passes(outlives_udevd, str(tmp_path), namespaces=("--mount", "--net"))


def looks_at_masked_folders() -> None:
    """Look at a host whose sysfs is covered, in part or all."""
    with listening() as listener:
        assert listener.source.scan(listener.now).certain
        for folder in ("/sys/devices", "/sys/class", "/sys"):
            mount(folder)
            scan = listener.source.scan(listener.now)
            assert not scan.certain, folder
            # Where the entries can still be listed, a virtual console whose node is there is still known.
            assert all(device.virtual and folder == "/sys/devices" for device in scan.devices)
            uncover(folder)
            assert listener.source.scan(listener.now).certain
        mount("/dev")
        scan = listener.source.scan(listener.now)
        assert "/dev/tty40" in {device.devnode for device in scan.devices}
        assert [trouble for trouble in scan.troubles if "/dev is not a devtmpfs" in trouble]


def test_a_covered_folder_hides_no_device(udevd: None) -> None:  # noqa: ARG001 - holds the lock
    """An empty /sys is no host without devices, and an empty /dev none without nodes."""
    passes(looks_at_masked_folders, namespaces=("--mount",))


def misses_libudev() -> None:
    """Open a source where no library can be looked for (ctypes.util.find_library asks ldconfig and the compilers)."""
    subprocess.run(["mount", "--bind", "/dev/null", "/sbin/ldconfig"], check=True)
    os.environ["PATH"] = ""
    with pytest.raises(Unavailable, match="neither ldconfig nor gcc could be run"), listening():
        pytest.fail("it opened")


def test_where_libudev_cannot_be_looked_for_that_is_told(udevd: None) -> None:  # noqa: ARG001 - skips where namespaces are not allowed
    """One line that says what is missing, though the library is here."""
    passes(misses_libudev, namespaces=("--mount",))
