"""A node whose pods have claims: real sockets and files, a kubelet that asks, an API server with faults, and a loop around the driver."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from devwatch.agent.claims import ClaimDriver
from devwatch.agent.clock import Clock
from devwatch.agent.report import Telemetry
from devwatch.core.errors import ApiError, KubeletError, Missing
from devwatch.core.inventory import Inventory
from devwatch.core.rules import Count
from devwatch.core.slots import Slots
from devwatch.kubelet.driver import Driver
from devwatch.observe.health import Health
from devwatch.observe.metrics import Metrics
from support.build import ZIGBEE, rule, scan
from support.claims import POOL, UID, allocated, reference, state
from support.drakubelet import DraKubelet
from support.fakes import RecordingLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from pathlib import Path

    from devwatch.core.claims import ClaimReference, ClaimState, PreparedClaim
    from devwatch.core.device import Device
    from devwatch.core.handover import Allocation
    from devwatch.core.rules import ResourceRule
    from devwatch.kubelet.draplugin import DriverServer

SWEEP = 10.0


@dataclass(slots=True, kw_only=True)
class ClaimServer:
    """The API server: claims by UID, or the error for them."""

    claims: dict[str, ClaimState | ApiError] = field(default_factory=dict)
    hanging: bool = False
    latency: float = 0.01
    asked: list[tuple[float, str]] = field(default_factory=list)
    """Each request: when, and for which claim."""

    async def read(self, claim: ClaimReference) -> ClaimState:
        """Answer after `latency` seconds."""
        self.asked.append((asyncio.get_running_loop().time(), claim.uid))
        await (asyncio.Event().wait() if self.hanging else asyncio.sleep(self.latency))
        found = self.claims.get(claim.uid, Missing("not found"))
        if isinstance(found, ApiError):
            raise found.with_traceback(None)
        return found


@dataclass(slots=True, kw_only=True)
class Faults:
    """Why record and files fail, None while they do not."""

    reading: KubeletError | None = None
    writing: KubeletError | None = None
    files: KubeletError | None = None

    @staticmethod
    def apply(error: KubeletError | None) -> None:
        """Fail."""
        if error is not None:
            raise error.with_traceback(None)


class FaultyDriver:
    """A driver on real folders, which fail on request."""

    def __init__(self, driver: Driver, faults: Faults) -> None:
        """Fail as `faults` says."""
        self._driver, self._faults = driver, faults

    @property
    def record(self) -> FaultyDriver:
        """The record."""
        return self

    @property
    def cdi(self) -> FaultyDriver:
        """The CDI files."""
        return self

    @property
    def is_intact(self) -> bool:
        """Whether the record is as it was written."""
        return self._driver.record.is_intact

    def read(self) -> tuple[tuple[PreparedClaim, ...], str]:
        """Read the record."""
        self._faults.apply(self._faults.reading)
        return self._driver.record.read()

    def write(self, claims: Iterable[PreparedClaim]) -> None:
        """Write the record."""
        self._faults.apply(self._faults.writing)
        self._driver.record.write(claims)

    def update(self, wanted: Mapping[str, Mapping[str, Allocation]]) -> None:
        """Write the CDI files."""
        self._faults.apply(self._faults.files)
        self._driver.cdi.update(wanted)

    def server(self, claims: ClaimDriver) -> DriverServer:
        """Return a server."""
        return self._driver.server(claims)


@dataclass(slots=True, kw_only=True)
class ClaimSite:
    """One node; daemons come and go."""

    folder: Path
    kubelet: DraKubelet
    api: ClaimServer = field(default_factory=ClaimServer)
    faults: Faults = field(default_factory=Faults)
    rules: tuple[ResourceRule, ...] = (rule(),)
    devices: tuple[Device, ...] = ()
    doubts: tuple[str, ...] = ()
    log: RecordingLog = field(default_factory=RecordingLog)
    metrics: Metrics = field(default_factory=lambda: Metrics("0"))
    unconnected: KubeletError | None = None
    """Why there is no driver at all."""
    ids: tuple[str, ...] = ()
    """The IDs of the devices as last scanned, in the order of their devnodes."""
    _running: tuple[ClaimDriver, asyncio.Task[None]] | None = None
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _inventory: Inventory = field(default_factory=Inventory)
    _request: asyncio.Task[None] | None = None

    @property
    def driver(self) -> ClaimDriver:
        """The driver of the daemon that runs."""
        assert self._running is not None
        return self._running[0]

    def start(self) -> None:
        """Start a daemon."""
        driver = ClaimDriver(
            self._connect,
            recorded=(self.folder / "plugins" / "devwatch.io" / "claims.json").exists,
            read=self.api.read,
            pool=POOL,
            telemetry=Telemetry(log=self.log, metrics=self.metrics, health=Health(sweep=SWEEP, last_cycle=0)),
            clock=Clock(now=asyncio.get_running_loop().time, unix=lambda: 0.0, jitter=lambda: 0.5),
        )
        self._inventory = Inventory()
        driver.configure(self.rules)
        self._running = driver, asyncio.create_task(self._loop(driver))

    async def end(self) -> None:
        """End the daemon."""
        if self._running is not None:
            _, task = self._running
            task.cancel()
            await asyncio.wait({task})
            self._running, self._request = None, None

    def _connect(self) -> FaultyDriver:
        if self.unconnected is not None:
            raise self.unconnected.with_traceback(None)
        return FaultyDriver(Driver(folder=self.folder, cdi=self.folder / "cdi"), self.faults)

    async def _loop(self, driver: ClaimDriver) -> None:
        """Scan, write, ask, as the loop of the daemon does."""
        recalled = driver.claims.recall()
        slots = {name: Slots(name, Count.DEVICE, recalled.get(name, ())) for name in {ZIGBEE, *recalled}}
        async with asyncio.TaskGroup() as group:
            driver.follow(group, lambda _: self._woken.set())
            while True:
                self._woken.clear()
                now = asyncio.get_running_loop().time()
                self._inventory.observe(scan(*self.devices, at=now, doubts=self.doubts))
                present, held = self._inventory.present, driver.held
                certain = not self.doubts
                free = frozenset() if held is None else frozenset(self.ids) - held.get(ZIGBEE, frozenset())
                found = slots[ZIGBEE].update(present, len(present), certain=certain, free=free)
                self.ids = tuple(slot.id for slot in found)
                paths = {rule.name: rule.container_path for rule in self.rules}
                driver.update({ZIGBEE: found}, self._inventory, paths)
                self._ask(driver, group, now)
                await self._sleep(driver, now)

    def _ask(self, driver: ClaimDriver, group: asyncio.TaskGroup, now: float) -> None:
        (tasks,) = driver.tasks
        if self._request is None and (task := tasks.action(now)) is not None:

            async def request() -> None:
                await task.run()
                self._request = None
                self._woken.set()

            self._request = group.create_task(request())

    async def _sleep(self, driver: ClaimDriver, now: float) -> None:
        due = driver.tasks[0].due(now) if self._request is None else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(min(now + SWEEP, SWEEP * 1e6 if due is None else due)):
                await self._woken.wait()

    # -- what happens

    async def scan(self, *devices: Device, doubts: tuple[str, ...] = ()) -> None:
        """Have these devices, and scan."""
        self.devices, self.doubts = devices, doubts
        await self.cycle()

    async def cycle(self) -> None:
        """Run a cycle of the loop."""
        self._woken.set()
        await asyncio.sleep(0.05)

    async def configure(self, *rules: ResourceRule) -> None:
        """Change the configuration."""
        self.rules = rules
        self.driver.configure(rules)
        await self.cycle()

    def allocate(self, *ids: str, uid: str = UID, **fields: Any) -> ClaimReference:  # noqa: ANN401 - of an AllocatedDevice
        """Have a claim to which devices are allocated, all present ones without `ids`."""
        devices = (allocated(name, **fields) for name in ids or self.ids)
        self.api.claims[uid] = state(*devices, uid=uid)
        return reference(uid=uid)

    # -- what there is

    def devnodes(self, uid: str = UID) -> list[str]:
        """Return the devnodes that containers of a claim get, none where they wait."""
        path = self.folder / "cdi" / f"devwatch.io-claim_{uid}.json"
        if not path.exists():
            return []
        devices = json.loads(path.read_text())["devices"]
        return [node["hostPath"] for device in devices for node in device["containerEdits"]["deviceNodes"]]

    @property
    def recorded(self) -> set[str]:
        """The UIDs of the claims in the record."""
        claims, _ = Driver(folder=self.folder, cdi=self.folder).record.read()
        return {claim.reference.uid for claim in claims}

    def lines(self, event: str) -> list[tuple[str, object, object]]:
        """Return level, reason or outcome, and cure of the lines of an event."""
        return [
            (line.level, line.fields.get("error", line.fields.get("outcome")), line.fields.get("hint"))
            for line in self.log.of(event)
        ]

    def count(self, operation: str, outcome: str) -> float:
        """Return `devwatch_claims_total`."""
        text = f'devwatch_claims_total{{operation="{operation}",outcome="{outcome}"}} '
        (line,) = (line for line in self.metrics.render().decode().splitlines() if line.startswith(text))
        return float(line.removeprefix(text))


@contextlib.asynccontextmanager
async def claim_site(folder: Path, *devices: Device, **fields: Any) -> AsyncIterator[ClaimSite]:  # noqa: ANN401 - of a ClaimSite
    """Have a node with these devices, whose driver the kubelet has registered."""
    site = ClaimSite(folder=folder, kubelet=DraKubelet(folder=folder), devices=devices, **fields)
    site.kubelet.start()
    site.start()
    try:
        await asyncio.sleep(1)
        yield site
    finally:
        await site.end()
        await site.kubelet.stop()
