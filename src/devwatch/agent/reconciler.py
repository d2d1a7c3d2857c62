"""The loop: look at the devices, look at the Node, make the second agree with the first."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from devwatch.agent.report import Answer, Reporter, held_up
from devwatch.core.backoff import Backoff
from devwatch.core.drift import Drift
from devwatch.core.errors import ApiError, ConfigError, Forbidden, Gone, NodeMissing, Refused
from devwatch.core.inventory import Inventory, Scan
from devwatch.core.loss import Scene
from devwatch.core.node import WHOLE, Changes, Listing, NodeState
from devwatch.core.plan import Draft, Figures, Tally, changes, portion

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from devwatch.config.schema import Config
    from devwatch.core.loss import Incidents, Losses
    from devwatch.core.task import Task

    Watch = Callable[[], AsyncIterator[NodeState | None]]

T = TypeVar("T")

REFUSAL_LIMIT = 60.0
"""Seconds: the longest wait before what the server refused alone is tried again."""
RETRY_AFTER_LIMIT = 60.0
"""Seconds: no server keeps us away for longer, whatever its Retry-After says."""
UNWATCHED_RESYNC = 60.0
"""Seconds between two reads of the Node where no watch reports what others write to it."""
WATCHED_RESYNC = 300.0
"""Seconds between two reads of the Node where a watch reports what others write to it, unless the configuration says otherwise."""
WATCH_PAUSE = 1.0
"""Seconds between two watches, so that a server that ends them at once is not asked without a pause."""
WATCH_RETRY_LIMIT = 60.0
"""Seconds until a watch that may not be, or fails again and again, is tried again."""
WATCH_LASTS = 10.0
"""Seconds after which the end of a watch is no failure of it: servers end them now and then."""
TASK_PATIENCE = 1.0
"""Seconds for which a patch waits for an eviction or an Event that is out; it is asked for again afterwards."""
STORED_LATE = 60.0
"""Seconds for which an API server may go on with a request that nobody waits for any more (kube-apiserver, `--request-timeout`)."""
RESYNC_SPREAD = 0.1
"""The share of the resync interval by which it is shortened at random, so that a fleet does not ask in step."""


class DeviceSource(Protocol):
    """Where the devices come from."""

    def scan(self, now: float) -> Scan:
        """Return what is there now; never raises for what cannot be read."""

    def expect(self, paths: frozenset[str]) -> None:
        """Take the paths that the configuration names, which may be links to devices."""


class NodeApi(Protocol):
    """Where the Node is kept."""

    @property
    def date(self) -> str:
        """The server's time in its last answer (RFC 3339, seconds), empty before one."""

    async def patch(self, changes: Changes) -> NodeState:
        """Write the changes, none to read, and return the Node as it is then. Raises `ApiError`."""


class Settings(Protocol):
    """Where the configuration comes from."""

    def poll(self, *, force: bool) -> Config | None:
        """Return the configuration if it is new, with `force` the one that was asked for. Never blocks. Raises `ConfigError`."""


@dataclass(slots=True, kw_only=True)
class _Refusal(Backoff):
    """What the server refuses, together with others until it has `failures`: when to try it again, and why it is refused."""

    limit: float = REFUSAL_LIMIT
    reason: str = ""


class Tasks(Protocol):
    """What is requested between two patches, one request at a time."""

    def task(self, now: float) -> Task | None:
        """Return the request that is due, None for none."""

    def due(self, now: float) -> float | None:
        """Return when there is something to be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What the loop knows of the cluster."""

    api: NodeApi
    watch: Watch | None = None
    """Yields the Node after every write to it, None when it is not there; without it that is found by the resync alone."""
    losses: Losses | None = None
    """Remembers what was listed; without it nothing is ever lost."""
    attend: Callable[[Incidents], None] = lambda _: None
    """Takes what is lost and what has returned."""
    tasks: tuple[Tasks, ...] = ()


class Reconciler:
    """Makes the Node show the devices of this host, and keeps it so.

    It promises, whatever fails around it:

    - *converges*: 60 s, one request timeout and the grace after the last fault the Node shows the present devices. A lost uevent is a fault
      until the sweep, a watch that died without a sign until it is given up, a foreign write until the end of the truce before it;
    - *never lowers on ignorance*: while a look is uncertain or a key of a present device is unknown, no count falls below the observed one;
      a dead monitor lowers none either;
    - *never oversells*: no devnode counts for two resources, no physical device twice within one (`count: device`), and lingering devices
      are never added to present ones;
    - *touches only its own*: no patch names anything but configured resources, those that the annotation owns, and the annotation;
    - *quiet*: nothing is written that the Node is known to show, no two requests are made at a time, in peace none but the resync, and
      what is undone again and again is repaired ever more rarely;
    - *grace holds*: what is away for less than its grace lowers no count, nor does a restart within it;
    - *evicts only on certainty*: a pod is evicted only for a device that was listed, that a certain look does not find on the host, and
      that the Node has not counted for the `after` of its resource; and only if it was there before, or goes on with the file of a device
      that has another number by now.

    `tests/test_promises.py` holds each of them against histories in which everything fails.
    """

    def __init__(  # noqa: PLR0913 - what the loop is wired to, by keyword
        self,
        *,
        source: DeviceSource,
        cluster: Cluster,
        settings: Settings,
        config: Config,
        node: str,
        reporter: Reporter,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        wall: Callable[[], float],
        once: bool = False,
        cycled: Callable[[], None] = lambda: None,
        heartbeat: float | None = None,
    ) -> None:
        """Start with nothing seen.

        `clock` is the loop's time, `wall` Unix time, `chance` a random number in [0, 1). `once` ends when the Node agrees. `turned` is
        called on every turn of the loop, which comes at least every `heartbeat` seconds.
        """
        self._source, self._cluster, self._settings, self._reporter = source, cluster, settings, reporter
        self._node, self._clock, self._wall, self._jitter, self._once = node, clock, wall, jitter, once
        self._cycled, self._heartbeat = cycled, heartbeat or math.inf
        self._wakes, self._woken = set[str](), asyncio.Event()
        self._inventory, self._tally, self._former = Inventory(), Tally(()), deque[str](maxlen=16)
        self._observed: NodeState | None = None
        self._request: asyncio.Task[None] | None = None
        self._answer: Answer | None = None
        self._draft, self._backoff, self._drift, self._refusals = Draft(), Backoff(), Drift(), dict[str, _Refusal]()
        self._seen: NodeState | None = None
        self._apart, self._unsure, self._written = set[str](), set[str](), set[str]()
        self._late: dict[str, float] = {}  # by name, until when a count may still be stored whose answer never came
        self._detected: float | None = None
        self._lingering: float | None = None
        self._sweep_at = self._resync_at = self._heard_at = float("-inf")
        self._agreed = self._missing = self._deleted = self._awaited = self._watching = self._denied = False
        self._yields_at = math.inf  # from when on a patch waits no longer for the request that is out
        self._failure, self.figures = "no answer yet", Figures()
        self._use(config)

    @property
    def failure(self) -> str:
        """Why the Node may not show what is present: the last request failed, or a part is refused; empty where neither is so."""
        return self._failure or next((refusal.reason for refusal in self._refusals.values()), "")

    def wake(self, trigger: str) -> None:
        """Look again on the next turn of the loop; `trigger` says why (see `devwatch_reconciles_total`)."""
        if trigger == "uevent" and self._detected is None:
            self._detected = self._clock()
        self._wakes.add(trigger)
        self._woken.set()

    async def run(self) -> None:
        """Reconcile for ever; with `once` until the Node surely shows what is present."""
        self.wake("start")
        async with asyncio.TaskGroup() as tasks:
            if self._cluster.watch is not None and not self._once:
                tasks.create_task(self._follow(self._cluster.watch))
            while True:
                due, trigger = self._cycle(tasks)
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

    def _cycle(self, tasks: asyncio.TaskGroup) -> tuple[float, str]:
        """Do everything once and return when to do it again, and why then."""
        now = self._clock()
        wakes, self._wakes = self._wakes, set()
        self._reporter.woken(wakes, now)
        self._take_answer(now)
        self._take_sight(now)
        self._reload(now, force="config" in wakes)
        scan = self._source.scan(now)
        self._inventory.observe(scan)
        figures = self.figures = self._tally.count(self._inventory, self._observed, now)
        remembered = self._attend(figures, now)
        wanted = self._wanted(figures, remembered, now)
        self._forgive(figures, wanted)
        self._report(scan, figures, changes(figures, NodeState()) if self._missing else wanted)
        self._time_detection(figures, wanted, now)
        self._send(wanted, now, tasks)
        held = any(map(held_up, figures.by_name.values()))
        settled = scan.certain and not self._inventory.pending and figures.due is None and not held
        self._agreed = settled and not wanted and self._request is None and now < self._resync_at
        self._cycled()
        return self._next(scan, figures, wanted)

    def _wanted(self, figures: Figures, remembered: Listing, now: float) -> Changes:
        if self._observed is None:
            return {}
        return self._draft.changes(
            figures,
            self._observed,
            apart=self._apart,
            remembered=remembered,
            written=self._perhaps_ours(self._observed, now),
        )

    def _perhaps_ours(self, observed: NodeState, now: float) -> set[str]:
        """Return the names that devwatch has written, but for those that another client has written since.

        A PATCH without an answer may have been stored after the state that is held, or be stored yet.
        """
        open_ = self._unsure | {name for name, until in self._late.items() if now < until}
        return {name for name in self._written if name in open_ or observed.removable(name)}

    def _attend(self, figures: Figures, now: float) -> Listing:
        """Report what is lost and what has returned, and return what the annotation has to list so that it is remembered."""
        if self._cluster.losses is None:
            return {}
        scene = Scene(
            figures=figures,
            inventory=self._inventory,
            observed=self._observed,
            now=now,
            wall=self._wall(),
            date=self._cluster.api.date,
        )
        self._cluster.attend(self._cluster.losses.update(self._config.for_node(self._node), scene))
        return self._cluster.losses.listing(figures)

    def _report(self, scan: Scan, figures: Figures, wanted: Changes) -> None:
        graces = {rule.name: rule.removal_grace for rule in self._config.resources}
        self._reporter.scan(scan)
        self._reporter.devices(figures, self._inventory.present, graces, scan)
        observed = None if self._missing else self._observed
        refused = {name: refusal.reason for name, refusal in self._refusals.items()}
        self._reporter.difference(figures, observed, wanted, refused, scan.at)

    def _next(self, scan: Scan, figures: Figures, wanted: Changes) -> tuple[float, str]:
        """Return the nearest of sweep, grace, arrival, resync and retry."""
        moments = (
            (self._sweep_at, "sweep"),
            (self._inventory.due, "sweep"),
            (scan.again_at, "sweep"),
            (figures.due, "grace"),
        )
        dues = [(due, trigger) for due, trigger in moments if due is not None]
        if self._request is None:
            resync = self._resync_at > self._backoff.until
            dues.append((self._resync_at, "resync") if resync else (self._backoff.until, "retry"))
            if wanted:
                first = min(
                    max(self._refusals.get(name, self._backoff).until, self._drift.due(name)) for name in wanted
                )
                dues.append((max(first, self._backoff.until), "retry"))
            tasks = [due for tasks in self._cluster.tasks if (due := tasks.due(scan.at)) is not None]
            dues += [(max(due, self._backoff.until), "retry") for due in tasks]
        elif wanted and scan.at < self._yields_at < math.inf:
            dues.append((self._yields_at, "retry"))
        return min(*dues, (scan.at + self._heartbeat, "sweep"))

    # -- the configuration

    def _use(self, config: Config) -> None:
        self._config = config
        self._tally.configure(config.for_node(self._node))
        self._source.expect(config.literal_paths)
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

    # -- the Node

    def _send(self, wanted: Changes, now: float, tasks: asyncio.TaskGroup) -> None:
        """Start a request if one is due: for the newest state, or to read the Node where it is unknown or it is time for a resync."""
        if now < self._backoff.until:
            return
        blocked = {name for name, refusal in self._refusals.items() if now < refusal.until}
        blocked |= self._drift.waiting(wanted, now)
        body = self._owned(portion(wanted, apart=self._apart, blocked=blocked), wanted)
        if self._request is not None:
            self._interrupt(body, now)
        elif body or now >= self._resync_at:
            self._patch(body, tasks)
        else:
            task = next((task for each in self._cluster.tasks if (task := each.task(now)) is not None), None)
            if task is not None:
                self._yields_at = now + (0.0 if task.reads else TASK_PATIENCE)
                self._request = tasks.create_task(self._do(task))

    def _interrupt(self, body: Changes, now: float) -> None:
        """End a request that is no patch where there is something to write: its end wakes the loop. It is repeated later."""
        if body and now >= self._yields_at and self._request is not None:
            self._yields_at = math.inf
            self._request.cancel()

    def _patch(self, body: Changes, tasks: asyncio.TaskGroup) -> None:
        detected, self._detected = self._detected, None
        self._written |= body.keys() - {WHOLE}
        self._seen = None  # the answer will be newer, also where the Node is another by then
        if body and self._cluster.losses is not None:
            self._cluster.losses.send()
        self._request = tasks.create_task(self._perform(body, detected))

    def _owned(self, body: Changes, wanted: Changes) -> Changes:
        """Return the body with the annotation: stored late, when all has changed, its counts are still ours to remove."""
        if not body or self._observed is None or WHOLE in wanted:
            return body
        return {**body, WHOLE: self._observed.annotation}

    async def _do(self, task: Task) -> None:
        try:
            await _to_its_end(task.run())
        finally:
            self._request, self._yields_at = None, math.inf
            self.wake("node")

    async def _perform(self, body: Changes, detected: float | None) -> None:
        """Await the answer and leave it for the next turn; an exception that is no `ApiError` ends the program."""
        start = self._clock()
        try:
            outcome: NodeState | ApiError = await _to_its_end(self._cluster.api.patch(body))
        except ApiError as error:
            outcome = error
        end = self._clock()
        self._answer = Answer(sent=body, outcome=outcome, at=end, seconds=end - start, detected=detected)
        self._request = None
        self.wake("node")

    def _take_answer(self, now: float) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if isinstance(answer.outcome, NodeState):
            self._observe(answer.outcome, answer.sent, now)
            # It is here (again): the watch is heard about it, whatever it told of it before.
            self._former = deque((uid for uid in self._former if uid != answer.outcome.uid), self._former.maxlen)
            self._accept(answer, answer.outcome, now)
        elif isinstance(answer.outcome, Refused) and answer.sent:
            self._refuse(answer, answer.outcome, now)
        else:
            self._fail(answer, answer.outcome, now)

    def _accept(self, answer: Answer, state: NodeState, now: float) -> None:
        if not state.reflects(answer.sent):
            error = "the API server accepted the patch and did not store it: an admission webhook may undo it"
            self._refuse(answer, Refused(error), now)
            return
        self._reporter.accepted(answer, failures=self._backoff.failures)
        if repaired := self._drift.repair(answer.sent, now):
            self._reporter.repaired(repaired)
            if (rivals := self._drift.rivals()) is not None:
                self._reporter.contested(repaired, rivals)
        self._backoff.succeed()
        self._apart -= answer.sent.keys()
        self._refusals = {name: refusal for name, refusal in self._refusals.items() if name not in answer.sent}
        self._failure = ""
        self._resync_at = now + self._resync() * (1 - RESYNC_SPREAD * self._jitter())

    def _resync(self) -> float:
        if self._watching:
            return self._config.resync or WATCHED_RESYNC
        return min(self._config.resync or math.inf, UNWATCHED_RESYNC)

    async def _follow(self, watch: Watch) -> None:
        """Wake the loop whenever somebody has written to the Node; a watch that may not be, or does not last, comes ever more rarely."""
        backoff = Backoff(first=WATCH_PAUSE, limit=WATCH_RETRY_LIMIT)
        while True:
            began, least = self._clock(), WATCH_PAUSE
            try:
                with contextlib.suppress(Gone):
                    await self._hear(watch)
            except ApiError as error:
                self._unwatch(error)
                least = WATCH_RETRY_LIMIT if isinstance(error, Forbidden) else max(WATCH_PAUSE, _asked(error))
            if self._clock() >= began + WATCH_LASTS:
                backoff.succeed()
            await asyncio.sleep(backoff.fail(self._clock(), self._jitter(), at_least=least))

    async def _hear(self, watch: Watch) -> None:
        """Hold what a watch tells. The first it tells comes of a list, which says nothing of the right to watch."""
        listed = False
        try:
            async for state in watch():
                self._told(state, listed=listed)
                listed = True
        finally:
            self._heard_at = self._clock() if listed else self._heard_at

    def _told(self, state: NodeState | None, *, listed: bool) -> None:
        if not self._watching and (listed or not self._denied):
            self._reporter.watching()
            self._watching = True
        self._denied = self._denied and not listed
        if state is None:
            self._deleted = True
        elif state.supersedes(self._seen):
            self._seen = state
        self.wake("node")

    def _unwatch(self, error: ApiError) -> None:
        """Read the Node as often as without a watch, since the last one ended. A missing right is told once, until there was a watch."""
        denied = isinstance(error, Forbidden)
        if not (denied and self._denied):
            self._reporter.unwatched(error)
        self._denied = self._denied or denied
        if self._watching:
            self._watching = False
            self._resync_at = min(self._resync_at, self._heard_at + self._resync())
            self.wake("node")

    def _take_sight(self, now: float) -> None:
        """Hold what the watch has seen, unless an answer was newer, or a request is out or was lost that may have changed it.

        That the Node is gone, or that there is another one, only an answer decides: a watch may lag.
        """
        if self._request is not None:
            return
        if self._deleted:
            self._deleted, self._resync_at = False, now
        state, held = self._seen, self._observed
        another = self._missing or (state is not None and held is not None and state.uid != held.uid)
        if state is None or (self._unsure and not another):
            return
        self._seen = None
        if another and state.uid not in self._former:
            self._former.append(state.uid)
            self._resync_at = now
            if self._awaited:
                self._backoff.until = now
        elif not another and state.uid not in self._former and state.supersedes(held):
            self._observe(state, {}, now)

    def _observe(self, state: NodeState, sent: Changes, now: float) -> None:
        """Hold what the server answered, also when its version is lower: requests do not overlap, so a backup was restored.

        What differs from the Node held before was written by somebody else, unless it was sent, or may have been stored unanswered.
        """
        held = self._observed
        if held is not None:
            ours = {WHOLE, *held.memory(), *(rule.name for rule in self._config.for_node(self._node))}
            others = ours - sent.keys() - self._unsure
            self._drift.note((name for name in others if _value(held, name) != _value(state, name)), state)
            self._replace(held.uid, state.uid)
        elif not self._once:
            self._tally.start(state, now)
            if self._cluster.losses is not None:
                self._cluster.losses.start(state.memory())
        self._observed, self._missing, self._unsure = state, False, set()
        self._late = {name: until for name, until in self._late.items() if now < until}
        self._written = {name for name in self._written | self._late.keys() if not state.shows(name, None)}

    def _replace(self, old: str, new: str) -> None:
        """Pass over what a watch that lags goes on telling of a Node that was replaced."""
        if old != new:
            self._former.append(old)

    def _refuse(self, answer: Answer, error: Refused, now: float) -> None:
        """Send what was refused together apart, so that one bad part holds up no other; wait before what was refused alone."""
        self._failure = str(error)
        self._backoff.succeed()
        parts = self._parts(answer.sent)
        self._apart |= parts.keys()
        for name in parts:
            self._refusals.setdefault(name, _Refusal()).reason = str(error)
        if len(parts) > 1:
            self._detected = self._earliest(answer)
            self._reporter.refused(answer, error, retry_in=None)
            return
        (name,) = parts
        retry_in = self._refusals[name].fail(now, self._jitter())
        self._reporter.refused(replace(answer, sent=parts), error, retry_in=retry_in)

    def _parts(self, sent: Changes) -> Changes:
        """Return what of a request may be refused: not the annotation that went along as the Node has it."""
        unchanged = self._observed is not None and sent.get(WHOLE) == self._observed.annotation
        return {name: value for name, value in sent.items() if name != WHOLE or not unchanged}

    def _fail(self, answer: Answer, error: ApiError, now: float) -> None:
        """Wait before the next request, however much changes meanwhile; the server's Retry-After is honoured within reason."""
        self._failure = str(error)
        self._detected = self._earliest(answer)
        self._awaited = isinstance(error, NodeMissing)
        self._missing = self._missing or self._awaited
        self._unsure |= answer.sent.keys()
        self._late |= dict.fromkeys(answer.sent.keys() - {WHOLE}, now + STORED_LATE)
        self._resync_at = now  # what is held may no longer be so: ask, though nothing may be wanted
        delay = self._backoff.fail(now, self._jitter(), at_least=_asked(error))
        self._reporter.failed(answer, error, failures=self._backoff.failures, retry_in=delay)

    def _earliest(self, answer: Answer) -> float | None:
        """Return since when the change that is still to be sent is known: what did not go through is older than any uevent since."""
        return self._detected if answer.detected is None else answer.detected

    def _forgive(self, figures: Figures, wanted: Changes) -> None:
        """Forget the refusal of what is no longer wanted, and of a name that has left the configuration all of its past."""
        self._apart &= {WHOLE, *figures.by_name, *wanted}
        self._refusals = {name: refusal for name, refusal in self._refusals.items() if name in wanted}

    def _time_detection(self, figures: Figures, wanted: Changes, now: float) -> None:
        """Keep since when the change that is about to be sent is known: from its uevent, or from the end of its grace."""
        ready = wanted.keys() - {name for name, refusal in self._refusals.items() if refusal.failures}
        if ready and self._detected is None and self._lingering is not None and self._lingering <= now:
            self._detected = self._lingering
        if not ready:
            self._detected = None
        self._lingering = figures.due


async def _to_its_end(request: Awaitable[T]) -> T:
    """Await a request. Raises `RuntimeError` where something within it was cancelled, and not the task itself."""
    try:
        return await request
    except asyncio.CancelledError as error:
        if (task := asyncio.current_task()) is None or task.cancelling():
            raise
        # A task group passes over a cancelled child: the loop would wait for its answer for ever.
        raise RuntimeError("the request was cancelled from within") from error


def _asked(error: ApiError) -> float:
    """Return for how many seconds the server wants to be left alone, within reason."""
    return min(getattr(error, "after", None) or 0.0, RETRY_AFTER_LIMIT)


def _value(state: NodeState, name: str) -> object:
    """Return what the Node holds under the key of a change."""
    return state.annotation if name == WHOLE else (state.capacity.get(name), state.allocatable.get(name))
