"""The loop: scan the devices, observe what the cluster shows, make the second agree with the first."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Protocol, TypeVar

from devwatch.agent.report import held_up
from devwatch.core.errors import ConfigError
from devwatch.core.inventory import Inventory, Scan
from devwatch.core.plan import Figures, Tally
from devwatch.core.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from devwatch.agent.clock import Clock
    from devwatch.agent.evictor import Evictor
    from devwatch.agent.report import Reporter
    from devwatch.config.schema import Config
    from devwatch.core.backoff import Backoff
    from devwatch.core.listing import Listing
    from devwatch.core.node import NodeState
    from devwatch.core.task import Task

T = TypeVar("T")


class DeviceSource(Protocol):
    """Where the devices come from."""

    def scan(self, now: float) -> Scan:
        """Return what is there now; never raises for what cannot be read."""

    def expect(self, paths: frozenset[str]) -> None:
        """Take the paths that the configuration names, which may be links to devices."""


class Settings(Protocol):
    """Where the configuration comes from."""

    def poll(self, *, force: bool) -> Config | None:
        """Return the configuration if it is new, with `force` the one that was asked for. Never blocks. Raises `ConfigError`."""


class Publisher(Protocol):
    """A way of publishing: it compares what is desired with what was observed, and says which request is to be made next."""

    @property
    def observed(self) -> NodeState | None:
        """The Node as it was last observed, None before that."""

    @property
    def date(self) -> str:
        """The API server's time in its last answer (RFC 3339, seconds), empty before one."""

    @property
    def failure(self) -> str:
        """Why the Node may not show what is present, empty where nothing failed."""

    @property
    def outage(self) -> str:
        """Why nothing can be written and since when, for people; empty after an accepted request."""

    @property
    def wants(self) -> bool:
        """Whether the observed state is not the desired one."""

    def configure(self, resync: float | None) -> None:
        """Take the seconds between two reads, None for the default."""

    def follow(self, group: asyncio.TaskGroup, wake: Callable[[str], None]) -> None:
        """Observe in the background, and wake the loop when something has changed."""

    def detect(self, now: float) -> None:
        """Note that a uevent was read."""

    def receive(self, now: float, *, busy: bool) -> None:
        """Take in what was answered and observed since the last cycle; `busy` while a request is in flight."""

    def update(self, figures: Figures, remembered: Listing, now: float) -> None:
        """Take what is desired, and what is to be listed beside it so that it is remembered."""

    def action(self, now: float) -> Task | None:
        """Return the request that is due, None for none."""

    def urgent(self, now: float) -> bool:
        """Return whether its request is due and must not wait for another one."""

    def due(self) -> tuple[float, str]:
        """Return when to ask for an action again, and why then."""

    def agrees(self, now: float) -> bool:
        """Return whether what is desired has surely been observed."""


class Tasks(Protocol):
    """Requests that are made between two patches, one at a time."""

    def action(self, now: float) -> Task | None:
        """Return the request that is due, None for none."""

    def due(self, now: float) -> float | None:
        """Return when there is something to do."""


class Reconciler:
    """Makes the Node show the devices of this host, and keeps it so.

    It promises, whatever fails around it:

    - *converges*: 60 s, one request timeout and the grace after the last fault the Node shows the present devices. A lost uevent is a fault
      until the sweep, a watch that died without a sign until it is given up, a foreign write until the end of the truce before it;
    - *never lowers on ignorance*: while a scan is uncertain or a key of a present device is unknown, no count falls below the observed one;
      a dead monitor lowers none either;
    - *never oversells*: no devnode counts for two resources, no physical device twice within one (`count: device`), and lingering devices
      are never added to present ones;
    - *touches only its own*: no patch names anything but configured resources, those that the annotation owns, and the annotation;
    - *quiet*: nothing is written that the Node is known to show, no two requests are made at a time, in peace none but the resync, and
      what is undone again and again is repaired ever more rarely;
    - *grace holds*: what is away for less than its grace lowers no count, nor does a restart within it;
    - *evicts only on certainty*: a pod is evicted only for a device that was listed, that a certain scan does not find on the host, and
      that the Node has not counted for the `after` of its resource; and only if it was there before, or goes on with the file of a device
      that has another number by now.

    `tests/loop/test_promises.py` holds each of them against histories in which everything fails.
    """

    def __init__(  # noqa: PLR0913 - what the loop is wired to, by keyword
        self,
        *,
        node: str,
        source: DeviceSource,
        publisher: Publisher,
        evictor: Evictor | None,
        outage: Backoff,
        settings: Settings,
        config: Config,
        reporter: Reporter,
        clock: Clock,
        once: bool = False,
        cycled: Callable[[], None] = lambda: None,
        heartbeat: float | None = None,
    ) -> None:
        """Start with nothing seen.

        Without an `evictor` nothing is ever lost. `outage` holds up every request. `once` ends when the Node agrees. `cycled` is called on
        every cycle of the loop, which comes at least every `heartbeat` seconds.
        """
        self._source, self.publisher, self._outage, self._settings = source, publisher, outage, settings
        self._node, self._reporter, self._clock, self._evictor = node, reporter, clock, evictor
        self._tasks: tuple[Tasks, ...] = (evictor, evictor.recorder) if evictor else ()
        self._once, self._cycled, self._heartbeat = once, cycled, heartbeat or math.inf
        self._wakes, self._woken = set[str](), asyncio.Event()
        self._inventory, self._tally, self.figures = Inventory(), Tally(()), Figures()
        self._request: asyncio.Task[None] | None = None
        self._yields_at = math.inf
        """From when on a patch ends the request that is in flight."""
        self._sweep_at = -math.inf
        self._began = self._agreed = False
        self._use(config)

    def wake(self, trigger: str) -> None:
        """Scan again on the next cycle of the loop; `trigger` says why (see `devwatch_reconciles_total`)."""
        if trigger == "uevent":
            self.publisher.detect(self._clock.now())
        self._wakes.add(trigger)
        self._woken.set()

    async def run(self) -> None:
        """Reconcile for ever; with `once` until the Node surely shows what is present."""
        self.wake("start")
        async with asyncio.TaskGroup() as group:
            if not self._once:
                self.publisher.follow(group, self.wake)
            while True:
                due, trigger = self._cycle(group)
                if self._once and self._agreed:
                    return
                await self._sleep(due, trigger)

    async def _sleep(self, due: float, trigger: str) -> None:
        try:
            async with asyncio.timeout_at(due):
                await self._woken.wait()
        except TimeoutError:
            self._wakes.add(trigger)
        self._woken.clear()

    def _cycle(self, group: asyncio.TaskGroup) -> tuple[float, str]:
        """Do everything once and return when to do it again, and why then."""
        now = self._clock.now()
        wakes, self._wakes = self._wakes, set()
        self._reporter.woken(wakes, now)
        self.publisher.receive(now, busy=self._request is not None)
        self._begin(now)
        self._reload(now, force="config" in wakes)
        scan = self._source.scan(now)
        self._inventory.observe(scan)
        figures = self.figures = self._tally.count(self._inventory, self.publisher.observed, now)
        remembered = self._look_for_losses(figures, now)
        self._report(scan, figures)
        self.publisher.update(figures, remembered, now)
        self._start_request(now, group)
        held = any(map(held_up, figures.by_name.values()))
        settled = scan.certain and not self._inventory.pending and figures.due is None and not held
        self._agreed = settled and self._request is None and self.publisher.agrees(now)
        self._cycled()
        return self._next(scan, figures)

    def _begin(self, now: float) -> None:
        """Take the Node's own figures and the annotation of a former daemon from the first observation."""
        observed = self.publisher.observed
        if self._began or observed is None or self._once:
            return
        self._began = True
        self._tally.start(observed, now)
        if self._evictor is not None:
            self._evictor.losses.start(observed.memory())

    def _look_for_losses(self, figures: Figures, now: float) -> Listing:
        """Attend to what is lost and what has returned, and return what the annotation has to list so that it is remembered."""
        if self._evictor is None:
            return {}
        scene = Scene(
            figures=figures,
            inventory=self._inventory,
            observed=self.publisher.observed,
            now=now,
            wall=self._clock.unix(),
            date=self.publisher.date,
        )
        losses = self._evictor.losses
        self._evictor.attend(losses.update(self._config.for_node(self._node), scene))
        return losses.listing(figures)

    def _report(self, scan: Scan, figures: Figures) -> None:
        graces = {rule.name: rule.removal_grace for rule in self._config.resources}
        self._reporter.scan(scan)
        self._reporter.devices(figures, self._inventory.present, graces, scan)

    def _next(self, scan: Scan, figures: Figures) -> tuple[float, str]:
        """Return the nearest of sweep, grace, arrival, resync and retry."""
        moments = (
            (self._sweep_at, "sweep"),
            (self._inventory.due, "sweep"),
            (scan.again_at, "sweep"),
            (figures.due, "grace"),
        )
        dues = [(due, trigger) for due, trigger in moments if due is not None]
        if self._request is None:
            tasks = [due for tasks in self._tasks if (due := tasks.due(scan.at)) is not None]
            dues += [self.publisher.due(), *((max(due, self._outage.until), "retry") for due in tasks)]
        elif self.publisher.wants and scan.at < self._yields_at < math.inf:
            dues.append((self._yields_at, "retry"))
        return min(*dues, (scan.at + self._heartbeat, "sweep"))

    # -- the configuration

    def _use(self, config: Config) -> None:
        self._config = config
        self._tally.configure(config.for_node(self._node))
        self._source.expect(config.literal_paths)
        self.publisher.configure(config.resync)
        self._reporter.configured(config)

    def _reload(self, now: float, *, force: bool) -> None:
        """Read the configuration again when that is asked for, or when it has changed at a sweep; a bad one changes nothing."""
        sweep = now >= self._sweep_at
        if not (force or sweep):
            return
        try:
            config = self._settings.poll(force=force)
        except ConfigError as error:
            config = None
            self._reporter.rejected(error)
        if config is not None:
            self._use(config)
            self._reporter.reloaded([rule.name for rule in config.for_node(self._node)])
        if sweep or config is not None:
            self._sweep_at = now + self._config.sweep

    # -- the requests

    def _start_request(self, now: float, group: asyncio.TaskGroup) -> None:
        """Start the request that is due: the publisher comes first, for which another request that is in flight ends."""
        if now < self._outage.until:
            return
        if self._request is not None:
            if now >= self._yields_at and self.publisher.urgent(now):
                self._yields_at = math.inf
                self._request.cancel()
            return
        between = (task for tasks in self._tasks if (task := tasks.action(now)))
        task = self.publisher.action(now) or next(between, None)
        if task is not None:
            self._yields_at = now + task.patience
            self._request = group.create_task(self._perform(task))

    async def _perform(self, task: Task) -> None:
        """Make a request; its end wakes the loop. It handles its own errors, so any exception ends the program."""
        try:
            await _to_its_end(task.run())
        finally:
            self._request, self._yields_at = None, math.inf
            self.wake("node")


async def _to_its_end(request: Awaitable[T]) -> T:
    """Await a request. Raises `RuntimeError` where something within it was cancelled, and not the task itself."""
    try:
        return await request
    except asyncio.CancelledError as error:
        if (task := asyncio.current_task()) is None or task.cancelling():
            raise
        # A task group ignores a cancelled child: the loop would wait for its answer for ever.
        raise RuntimeError("the request was cancelled from within") from error
