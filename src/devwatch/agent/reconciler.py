"""The loop: scan the devices, observe what the cluster shows, make the second agree with the first."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Protocol, TypedDict, Unpack

from devwatch.agent.report import held_up
from devwatch.agent.requests import Publisher, Requests
from devwatch.core.errors import ConfigError
from devwatch.core.inventory import Inventory, Scan
from devwatch.core.plan import Figures, Tally
from devwatch.core.rules import Publish, subsystems_of
from devwatch.core.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Callable

    from devwatch.agent.clock import Clock
    from devwatch.agent.evictor import Evictor
    from devwatch.agent.handovers import Handovers
    from devwatch.agent.report import Reporter
    from devwatch.config.schema import Config
    from devwatch.core.backoff import Backoff
    from devwatch.core.listing import Listing


END_TIMEOUT = 1.0
"""Seconds that the end waits for the Node to show it; TERM must end the daemon within two."""


class DeviceSource(Protocol):
    """The source of the devices."""

    def scan(self, now: float) -> Scan:
        """Return the devices present now; never raises where something cannot be read."""

    def expect(self, paths: frozenset[str], subsystems: frozenset[str]) -> None:
        """Set the literal paths of the configuration, which may be links to devices, and the subsystems to scan."""


class Settings(Protocol):
    """The source of the configuration."""

    def poll(self, *, force: bool) -> Config | None:
        """Return the configuration if it is new, with `force` also one that was requested. Never blocks. Raises `ConfigError`."""


class Pace(TypedDict, total=False):
    """How long the loop runs, and who hears of its cycles."""

    once: bool
    """Whether it ends when the Node certainly shows the present devices."""
    cycled: Callable[[], None]
    """Called in every cycle."""
    heartbeat: float | None
    """Seconds between two cycles, at most."""


class Reconciler:
    """Makes the Node show the devices of this host, and keeps it so.

    It promises, whatever fails around it:

    - *converges*: 60 s, one request timeout and the grace after the last fault the Node shows the present devices. A lost uevent is a fault
      until the sweep, a watch that silently died until it is given up, a foreign write until the end of the backoff of its repair;
    - *never lowers on ignorance*: while a scan is uncertain or a key of a present device is unknown, no count falls below the observed one;
      neither does a lost monitor lower a count;
    - *never oversells*: no devnode counts for two resources, no physical device twice within one (`count: device`), and lingering devices
      are never added to present ones;
    - *touches only its own*: a patch names only configured resources, those that the annotation owns, and the annotation;
    - *quiet*: a part that the Node is known to show is not written, at most one request is in flight, without changes the resync is the
      only one, and a part that another client keeps overwriting is repaired at growing intervals;
    - *grace holds*: a device that is away for less than its grace lowers no count, nor does a restart within it;
    - *evicts only on certainty*: a pod is evicted only for a device that was listed, that a certain scan does not find on the host, and
      that the Node has not counted for the `after` of its resource; and only if the pod was there before, or keeps the file of a device
      that has another number by now.

    `tests/loop/test_promises.py` holds each of them against histories in which everything fails.
    """

    def __init__(  # noqa: PLR0913 - the parts of the loop, by keyword
        self,
        *,
        node: str,
        source: DeviceSource,
        publisher: Publisher,
        evictor: Evictor | None,
        handovers: Handovers | None = None,
        outage: Backoff,
        settings: Settings,
        config: Config,
        reporter: Reporter,
        clock: Clock,
        **pace: Unpack[Pace],
    ) -> None:
        """Start without an observation.

        Without an `evictor` no device is ever lost, and without `handovers` none is handed over. `outage` is the backoff of all requests.
        """
        self._source, self.publisher, self._settings = source, publisher, settings
        self._node, self._reporter, self._clock = node, reporter, clock
        self._evictor, self._handovers = evictor, handovers
        self._once, self._cycled = pace.get("once", False), pace.get("cycled", lambda: None)
        self._heartbeat = pace.get("heartbeat") or math.inf
        tasks = (*((handovers,) if handovers else ()), *((evictor, evictor.recorder) if evictor else ()))
        self._requests = Requests(publisher, tasks, outage, done=lambda: self.wake("node"))
        self._wakes, self._woken = set[str](), asyncio.Event()
        self._inventory, self._tally, self.figures = Inventory(), Tally(()), Figures()
        self._ended: Callable[[], object] | None = None
        self._sweep_at, self._end_at, self._began, self._agreed = -math.inf, math.inf, False, False
        self._use(config)

    def wake(self, trigger: str) -> None:
        """Start the next cycle of the loop now; `trigger` is the reason (see `devwatch_reconciles_total`)."""
        if trigger == "uevent":
            self.publisher.detect(self._clock.now())
        self._wakes.add(trigger)
        self._woken.set()

    def end(self, ended: Callable[[], object]) -> None:
        """Call `ended` once the Node shows that nothing can be allocated from the kubelet, at the latest in `END_TIMEOUT` seconds.

        Otherwise a pod that is bound after the end of the streams fails for good. A second call does not wait.
        """
        if self._ended is not None or self._handovers is None or not self._handovers.end():
            ended()
            return
        self._ended, self._end_at = ended, self._clock.now() + END_TIMEOUT
        self.wake("kubelet")

    async def run(self) -> None:
        """Reconcile forever; with `once` until the Node certainly shows the present devices."""
        self.wake("start")
        async with asyncio.TaskGroup() as group:
            if not self._once:
                self.publisher.follow(group, self.wake)
            if self._handovers is not None:
                self._handovers.follow(group, self.wake)
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
        """Run one cycle: responses, configuration, scan, counts, losses, request. Return when to run the next, and its trigger.

        Responses come first: the scan is compared with the newest observation. Losses come before the publisher, since it lists them.
        """
        now = self._clock.now()
        wakes, self._wakes = self._wakes, set()
        self._reporter.woken(wakes, now)
        self.publisher.receive(now, busy=self._requests.busy)
        self._begin(now)
        self._reload(now, force="config" in wakes)
        scan = self._source.scan(now)
        self._inventory.observe(scan)
        figures = self.figures = self._count(now)
        remembered = self._update_losses(figures, now)
        self._report(scan, figures)
        self.publisher.update(figures, remembered, now)
        self._requests.start(now, group)
        held = any(map(held_up, figures.by_name.values()))
        settled = scan.certain and not self._inventory.pending and figures.due is None and not held
        self._agreed = settled and not self._requests.busy and self.publisher.agrees(now)
        self._cycled()
        if self._ended is not None and (now >= self._end_at or not (self._requests.busy or self.publisher.wants)):
            self._end_at = math.inf
            self._ended()
        return self._next(scan, figures)

    def _count(self, now: float) -> Figures:
        """Count the devices. Links of those that are away are removed here, before anything is written to the API server."""
        observed, date, handovers = self.publisher.observed, self.publisher.date, self._handovers
        free, waiting = (handovers.free, handovers.waiting) if handovers else (frozenset[str](), ())
        claimed = handovers.recall if handovers else dict
        figures = self._tally.count(
            self._inventory, observed, now, free=free, waiting=waiting, date=date, claimed=claimed
        )
        return handovers.update(figures, self._inventory, observed, now) if handovers else figures

    def _begin(self, now: float) -> None:
        """At the first observation, take over the Node's own figures and the annotation of a former daemon."""
        observed = self.publisher.observed
        if self._began or observed is None or self._once:
            return
        self._began = True
        self._tally.start(observed, now)
        if self._evictor is not None:
            self._evictor.losses.start(observed.memory())
            self._reporter.recalled(observed, {rule.name for rule in self._rules if rule.evict_after is not None})

    def _update_losses(self, figures: Figures, now: float) -> Listing:
        """Update the incidents of the evictor, and return the devices that the annotation must list for the next daemon."""
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
        self._evictor.set_incidents(losses.update(self._rules, scene))
        return losses.listing(figures)

    def _report(self, scan: Scan, figures: Figures) -> None:
        graces = {rule.name: rule.removal_grace for rule in self._config.resources}
        self._reporter.scan(scan)
        self._reporter.devices(figures, self._inventory.present, graces, scan)

    def _next(self, scan: Scan, figures: Figures) -> tuple[float, str]:
        """Return the time and the trigger of the next cycle: the first of sweep, arrival, grace, resync, retry and heartbeat."""
        moments = (
            (self._sweep_at, "sweep"),
            (self._inventory.due, "sweep"),
            (scan.again_at, "sweep"),
            (figures.due, "grace"),
            (self._handovers.changes_at(scan.at) if self._handovers else None, "kubelet"),
        )
        dues = [(due, trigger) for due, trigger in moments if due is not None]
        dues += self._requests.dues(scan.at)
        return min(*dues, (self._end_at, "kubelet"), (scan.at + self._heartbeat, "sweep"))

    def _use(self, config: Config) -> None:
        self._config, rules = config, config.for_node(self._node)
        # One run registers no plugin: what the kubelet hands over stays as it is.
        self._rules = tuple(each for each in rules if not self._once or each.publish is Publish.NODE_STATUS)
        self._tally.configure(self._rules, left_out=frozenset(each.name for each in rules if each not in self._rules))
        if self._handovers is not None:
            self._handovers.configure(self._rules)
        self._source.expect(config.literal_paths, subsystems_of(self._rules))
        self.publisher.configure(config.resync)
        self._reporter.configured(config)

    def _reload(self, now: float, *, force: bool) -> None:
        """Reload the configuration on request, and at a sweep if it has changed; an invalid one changes nothing."""
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
