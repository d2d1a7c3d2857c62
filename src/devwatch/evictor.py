"""What is done for lost devices: their pods are evicted, one a second, and people are told. One request at a time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from devwatch.backoff import Backoff
from devwatch.errors import ApiError, Conflict, Forbidden, Missing, Retry
from devwatch.pods import Fate, Pod, fate
from devwatch.report import Story
from devwatch.workload import Note

if TYPE_CHECKING:
    from collections.abc import Mapping

    from devwatch.device import Device
    from devwatch.loss import Loss, Losses
    from devwatch.report import Log
    from devwatch.telemetry import Metrics

INTERVAL = 1.0
"""Seconds between two evictions of this node, at least."""
RIGHT_INTERVAL = 60.0
"""Seconds for which no Event is tried without the right to write them."""
NOTE_INTERVAL = 60.0
"""Seconds between two Events about one device, at least."""
MOST_NOTES = 32
"""Events that wait to be sent; of more the oldest are dropped."""

Chore = Callable[[], Awaitable[None]]


class WorkloadApi(Protocol):
    """The pods of the node, and Events about it."""

    async def pods(self) -> tuple[Pod, ...]:
        """Return the pods of the node. Raises an `ApiError`."""

    async def evict(self, pod: Pod) -> None:
        """Evict a pod. Raises an `ApiError`."""

    async def record(self, note: Note) -> None:
        """Write an Event. Raises an `ApiError`."""


@dataclass(slots=True, kw_only=True)
class Herald:
    """Events about devices: best effort, bounded, at most one a minute for each device."""

    api: WorkloadApi
    log: Log
    node: str
    clock: Callable[[], float]
    _waiting: deque[Note] = field(default_factory=lambda: deque(maxlen=MOST_NOTES))
    _told: dict[str, float] = field(default_factory=dict)
    _closed_until: float = float("-inf")
    _complained: bool = False

    def device(self, reason: str, device: Device, resource: str) -> None:
        """Tell that a device of a resource came (`DeviceAdded`) or went (`DeviceRemoved`)."""
        serial = f" serial {_shown(device.serial)}" if device.serial else ""
        ids = f"{_shown(device.vendor or 'no id')}:{_shown(device.product or '')}"
        message = f"{_shown(device.devnode)} ({ids}{serial}) of {resource}"
        note = Note(reason=reason, message=message, warning=reason == "DeviceRemoved")
        self._add(f"{resource} {device.body}", note)

    def pod(self, pod: Pod, loss: Loss) -> None:
        """Tell a pod that its device is lost."""
        names = ", ".join(entry.devnode for entry in loss.entries)
        message = f"{_shown(names)} of {loss.resource} is no longer on node {self.node}"
        self._add(pod.uid, Note(reason="DeviceLost", message=message, warning=True, pod=pod))

    def _add(self, subject: str, note: Note) -> None:
        now = self.clock()
        self._told = {told: at for told, at in self._told.items() if now - at < NOTE_INTERVAL}
        if subject not in self._told and now >= self._closed_until:
            self._told[subject] = now
            self._waiting.append(note)

    def attend(self, losses: Mapping[str, Loss]) -> None:
        """Nothing is to be told of a loss before its pods are known."""

    def chore(self, _now: float) -> Chore | None:
        """Return what is to be done now."""
        return self._send if self._waiting else None

    def due(self, now: float) -> float | None:
        """Return when there is something to be done."""
        return now if self._waiting else None

    async def _send(self) -> None:
        try:
            await self.api.record(self._waiting.popleft())
        except Forbidden as error:
            self._waiting.clear()
            self._closed_until = self.clock() + RIGHT_INTERVAL
            if not self._complained:
                self._complained = True
                self.log.info(
                    "event.refused",
                    error=str(error),
                    hint=error.hint,
                    lost="Events only; everything else works without them",
                )
        except ApiError as error:
            self._waiting.clear()
            self.log.debug("event.failed", error=str(error))


@dataclass(slots=True, kw_only=True)
class Evictor:
    """Evicts the pods of lost devices.

    It promises: only pods that a loss concerns beyond doubt are evicted, at most one a second, never before their device was lost for
    the `after` of its resource, and never one that got its device back meanwhile.
    """

    herald: Herald
    losses: Losses
    metrics: Metrics
    chance: Callable[[], float]
    _current: Mapping[str, Loss] = field(default_factory=dict)
    _victim: tuple[Loss, Pod] | None = None
    _pace: float = float("-inf")
    _backoff: Backoff = field(default_factory=lambda: Backoff(first=1.0))
    _story: Story = field(default_factory=Story)
    _refusals: Counter[str] = field(default_factory=Counter)
    """By the uid of a pod and the name of a resource, so that one that is refused again and again holds up no other."""
    _told: set[tuple[str, float, str]] = field(default_factory=set)

    def attend(self, losses: Mapping[str, Loss]) -> None:
        """Take what is lost now, nothing while that is uncertain."""
        self._current = losses
        if losses:
            known = {(loss.resource, loss.since) for loss in losses.values()}
            self._told = {told for told in self._told if told[:2] in known}
        else:
            self._refusals.clear()

    def chore(self, now: float) -> Chore | None:
        """Return what is to be done now: one request, so that a patch waits for no more than that."""
        due = self.due(now)
        if due is None or due > now:
            return None
        (loss, pod), self._victim = self._victim or (None, None), None
        if loss is not None and pod is not None and self._current.get(loss.resource) == loss:
            return partial(self._attempt, loss, partial(self._evict, pod, loss), pod)
        ready = [loss for loss in self._current.values() if loss.due <= now]
        first = min(ready, key=lambda loss: (self._refusals[loss.resource], loss.due))
        return partial(self._attempt, first, partial(self._choose, first))

    def due(self, _now: float) -> float | None:
        """Return when there is something to be done."""
        first = min((loss.due for loss in self._current.values()), default=None)
        return None if first is None else max(first, self._pace, self._backoff.until)

    async def _attempt(self, loss: Loss, request: Chore, pod: Pod | None = None) -> None:
        try:
            await request()
        except Forbidden as error:
            self._refused(error, loss, pod, at_least=INTERVAL)
        except ApiError as error:
            self._refused(error, loss, pod, at_least=min(getattr(error, "after", None) or 0.0, RIGHT_INTERVAL))

    async def _choose(self, loss: Loss) -> None:
        """Look for a pod that the loss concerns; where there is none left, the loss is settled."""
        pods = await self.herald.api.pods()
        if self._current.get(loss.resource) != loss:
            return  # the device is back, or nobody knows for certain
        fates = [(pod, fate(pod, loss.resource, loss.entries, left=loss.left)) for pod in pods]
        victims = [pod for pod, what in fates if what is Fate.EVICT]
        named = bool(victims) or (loss.resource, loss.since, "") in self._told
        for pod, what in fates:
            if what is Fate.BARE or (what is Fate.AMBIGUOUS and not named):
                self._spare(pod, what, loss)
        if victims:
            self._victim = (loss, min(victims, key=lambda pod: self._refusals[pod.uid]))
        else:
            self.losses.settle(loss)
            self._refusals.clear()
            self._backoff.succeed()

    def _spare(self, pod: Pod, what: Fate, loss: Loss) -> None:
        if (told := (loss.resource, loss.since, pod.uid)) in self._told:
            return
        self._told.add(told)
        self.metrics.evictions.labels(what.value).inc()
        self.herald.log.warning("pod.eviction_refused", pod=pod.title, resource=loss.resource, reason=_REASONS[what])
        if what is Fate.BARE:
            self.herald.pod(pod, loss)

    async def _evict(self, pod: Pod, loss: Loss) -> None:
        self._pace = self.herald.clock() + INTERVAL
        # Who has named the lost device is found: the others use those that are left.
        self._told.add((loss.resource, loss.since, ""))
        try:
            await self.herald.api.evict(pod)
        except (Missing, Conflict):
            self._backoff.succeed()
            return  # another one has been there first; what has its name now is another pod
        self._backoff.succeed()
        self.herald.pod(pod, loss)
        self.metrics.evictions.labels("evicted").inc()
        self._story = Story()
        lost = [entry.devnode for entry in loss.entries]
        self.herald.log.warning("pod.evicted", pod=pod.title, resource=loss.resource, lost=lost, left=loss.left)

    def _refused(self, error: ApiError, loss: Loss, pod: Pod | None, *, at_least: float) -> None:
        self._refusals.update([loss.resource, *([pod.uid] if pod else [])])
        self.metrics.evictions.labels("refused" if isinstance(error, Retry) else "failed").inc()
        delay = self._backoff.fail(self.herald.clock(), self.chance(), at_least=at_least)
        if self._story.worth_telling(str(error)):
            more = {"pod": pod.title} if pod else {}
            more |= {"hint": error.hint} if isinstance(error, Forbidden) and error.hint else {}
            self.herald.log.warning(
                "pod.eviction_refused", resource=loss.resource, error=str(error), retry_in=round(delay, 1), **more
            )


_REASONS = {
    Fate.AMBIGUOUS: "ambiguous: other devices of the resource are left, and no hostPath of the pod names the lost one",
    Fate.BARE: "bare: it has no controlling owner, so nothing would make it anew",
}


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)[:128]
