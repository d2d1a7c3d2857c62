"""What is done for devices that are lost or have returned: their pods are evicted, one a second. One request at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from devwatch.core.backoff import Backoff
from devwatch.core.errors import ApiError, Conflict, Forbidden, Missing, Retry
from devwatch.core.incidents import Incidents, Loss, Return
from devwatch.core.pods import Disposition, Pod, on_loss, on_return
from devwatch.core.repeat import RepeatFilter
from devwatch.core.task import Task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from devwatch.agent.events import EventRecorder
    from devwatch.core.loss import Losses
    from devwatch.observe.metrics import Metrics

INTERVAL = 1.0
"""Seconds between two evictions of this node, at least."""
KEPT_INTERVAL = 300.0
"""Seconds between two looks whether a pod that is never evicted still keeps a lost device."""

Incident = Loss | Return
Key = tuple[object, ...]


class WorkloadApi(Protocol):
    """The pods of the node."""

    async def pods(self) -> tuple[Pod, ...]:
        """Return the pods of the node. Raises an `ApiError`."""

    async def evict(self, pod: Pod) -> None:
        """Evict a pod. Raises an `ApiError`."""


@dataclass(slots=True, kw_only=True)
class Evictor:
    """Evicts the pods of lost devices, and those that a returned device has left with a dead file.

    It promises: only pods of this node that an incident concerns beyond doubt are evicted, at most one a second, never before the `after`
    of the resource has passed, never one that got its device back meanwhile, and never a successor. The victims of an incident are chosen
    once, as UIDs; only they are tried again, until they are gone.
    """

    api: WorkloadApi
    recorder: EventRecorder
    losses: Losses
    metrics: Metrics
    jitter: Callable[[], float]
    _incidents: dict[Key, Incident] = field(default_factory=dict)
    _next: tuple[Key, Pod] | None = None
    """The pod whose turn it is: its status was read in the request before."""
    _pace: float = float("-inf")
    _backoff: Backoff = field(default_factory=lambda: Backoff(first=1.0))
    _filter: RepeatFilter = field(default_factory=RepeatFilter)
    _refusals: Counter[object] = field(default_factory=Counter)
    """By incident and by UID, so that one that is refused again and again holds up no other."""
    _reported: set[tuple[Key, str]] = field(default_factory=set)
    """Which pods were reported as spared, by incident."""
    _kept: dict[Key, float] = field(default_factory=dict)
    """By incident: when to look next whether the pods that keep its device are still there."""

    def attend(self, incidents: Incidents) -> None:
        """Take what calls for a look at the pods now; nothing while that is uncertain."""
        self._incidents = {incident.key: incident for incident in incidents}
        if self._next is not None and self._next[0] not in self._incidents:
            self._next = None  # who has waited meanwhile is read again: a container may have restarted
        if self._kept:
            self._kept = {key: at for key, at in self._kept.items() if key in self._incidents}
        if not self._incidents:
            self._refusals.clear()

    def action(self, now: float) -> Task | None:
        """Return the request that is due: one at a time, so that a patch waits for no more than that."""
        pod_list_due = self.losses.pod_list_due
        if pod_list_due is not None and pod_list_due <= now:
            self.losses.note_pod_list(now)
            return Task(run=self._list_pods_at_departure, patience=0.0)
        due = self._due()
        if due is None or due > now:
            return None
        (key, pod), self._next = self._next or ((), None), None
        incident = self._incidents.get(key)
        if pod is not None and incident is not None and self._judge(pod, incident) is Disposition.EVICT:
            return Task(run=partial(self._attempt, incident, partial(self._evict, pod, incident), pod))
        ready = [incident for incident in self._incidents.values() if self._due_at(incident) <= now]
        first = min(ready, key=lambda incident: (self._refusals[incident.key], incident.due))
        return Task(run=partial(self._attempt, first, partial(self._choose, first)))

    def due(self, _now: float) -> float | None:
        """Return when there is something to be done."""
        return min((due for due in (self.losses.pod_list_due, self._due()) if due is not None), default=None)

    def _due(self) -> float | None:
        first = min(map(self._due_at, self._incidents.values()), default=None)
        return None if first is None else max(first, self._pace, self._backoff.until)

    def _due_at(self, incident: Incident) -> float:
        return self._kept.get(incident.key, incident.due)

    # -- who was there

    async def _list_pods_at_departure(self) -> None:
        try:
            self.losses.record_pods(pod.uid for pod in await self._pods())
        except ApiError as error:
            self.recorder.log.debug("pods.unlisted", error=str(error))

    async def _pods(self) -> list[Pod]:
        """Return the pods of this node: a proxy may ignore the selector of the list."""
        return [pod for pod in await self.api.pods() if pod.node == self.recorder.node]

    # -- who goes

    def _judge(self, pod: Pod, incident: Incident) -> Disposition | None:
        return on_loss(pod, incident) if isinstance(incident, Loss) else on_return(pod, incident)

    async def _attempt(
        self, incident: Incident, request: Callable[[], Awaitable[None]], pod: Pod | None = None
    ) -> None:
        try:
            await request()
        except Forbidden as error:
            self._refused(error, incident, pod, at_least=INTERVAL)
        except ApiError as error:
            self._refused(error, incident, pod, at_least=error.pause)

    async def _choose(self, asked: Incident) -> None:
        """Choose the pod to evict next; where none is left, the incident is settled."""
        pods = await self._pods()
        incident = self._incidents.get(asked.key)
        if incident is None:
            return  # the device is back, or a scan is uncertain
        judged = [(pod, self._judge(pod, incident)) for pod in pods]
        concerned = {pod.uid for pod, what in judged if what is Disposition.EVICT}
        # A container that started since a return has the device as it is now; a pod that came since a loss is not a victim.
        chosen = self.losses.choose(incident, concerned) if isinstance(incident, Loss) else concerned
        for pod, what in judged:
            # Where the holder of the lost device is known, the others use those that are left.
            if what in _REASONS and not (what is Disposition.AMBIGUOUS and chosen):
                self._spare(pod, _REASONS[what], incident, what)
        victims = [pod for pod in pods if pod.uid in concerned & chosen]
        if victims:
            self._next = (incident.key, min(victims, key=lambda pod: self._refusals[pod.uid]))
        elif isinstance(incident, Loss) and any(what in _KEEPING for _, what in judged):
            self._kept[incident.key] = self.recorder.clock() + KEPT_INTERVAL
            self._backoff.succeed()
        else:
            self._settle(incident)

    def _settle(self, incident: Incident) -> None:
        self.losses.settle(incident)
        self._reported = {(key, uid) for key, uid in self._reported if key != incident.key}
        self._refusals.clear()
        self._backoff.succeed()

    def _spare(self, pod: Pod, reason: str, incident: Incident, what: Disposition) -> None:
        if (incident.key, pod.uid) in self._reported:
            return
        self._reported.add((incident.key, pod.uid))
        self.metrics.evictions.labels(what.value if what.value in _OUTCOMES else "spared").inc()
        self.recorder.log.warning("pod.eviction_refused", pod=pod.title, resource=incident.resource, reason=reason)
        self.recorder.pod(pod, incident, f"the pod stays, {reason}")

    async def _evict(self, pod: Pod, incident: Incident) -> None:
        self._pace = self.recorder.clock() + INTERVAL
        try:
            await self.api.evict(pod)
        except (Missing, Conflict):
            self._backoff.succeed()
            return  # it is gone already; what has its name now is another pod
        self._backoff.succeed()
        self._filter = RepeatFilter()
        if isinstance(incident, Return):
            self.losses.note_eviction(incident, self.recorder.clock())
        self.recorder.pod(pod, incident, "the pod is evicted")
        self.metrics.evictions.labels("evicted").inc()
        self.recorder.log.warning("pod.evicted", pod=pod.title, resource=incident.resource, **_fields(incident))

    def _refused(self, error: ApiError, incident: Incident, pod: Pod | None, *, at_least: float) -> None:
        self._refusals.update([incident.key, *([pod.uid] if pod else [])])
        self.metrics.evictions.labels("refused" if isinstance(error, Retry) else "failed").inc()
        delay = self._backoff.fail(self.recorder.clock(), self.jitter(), at_least=at_least)
        hint = getattr(error, "hint", "") or _cure(str(error), pod)
        if pod:
            self.recorder.pod(pod, incident, f"it cannot be evicted: {error}" + (f" ({hint})" if hint else ""))
        if self._filter.should_log(str(error)):
            more = ({"pod": pod.title} if pod else {}) | ({"hint": hint} if hint else {})
            self.recorder.log.warning(
                "pod.eviction_refused", resource=incident.resource, error=str(error), retry_in=round(delay, 1), **more
            )


_KEEPING = (Disposition.BARE, Disposition.PINNED)
"""Pods that keep a lost device for as long as they live: it stays listed, and `status` shows it."""
_REASONS = {
    Disposition.AMBIGUOUS: "ambiguous: no hostPath volume of the pod names the device by a path that it alone had: "
    "mount its link in /dev/serial/by-path, or delete the pod",
    Disposition.BARE: "bare: it has no controlling owner, so nothing would make another in its place: delete the pod",
    Disposition.PINNED: "pinned: another would be on this node at once: delete the pod when the device is back",
    Disposition.LATE: "late: it was bound at about the time of the loss, and may have come after it: delete the pod if it does not work",
    Disposition.DIRECTORY: "directory: it mounts a directory in which the device is there again: its program has to open it again, "
    "or delete the pod",
    Disposition.SAME_NUMBER: "same number: the file that it mounted opens the device again: its program has to open it again, "
    "or delete the pod",
    Disposition.WAITING: "waiting: its container is about to start, and mounts the device as it is now",
    Disposition.UNKNOWN_START: "unknown start: its status does not say whether it started before the return: delete the pod",
    Disposition.RECENT: "recent: a pod was evicted for such a return within ten minutes, so the device seems to return whenever it is "
    "used: delete the pod if it does not work",
}
"""Why a pod is spared, with the cure."""
_OUTCOMES = ("ambiguous", "bare")


def _fields(incident: Incident) -> dict[str, object]:
    devnodes = [entry.devnode for entry in incident.entries]
    if isinstance(incident, Loss):
        return {"reason": "lost", "lost": devnodes, "left": incident.left}
    return {"reason": "replugged", "returned": devnodes}


def _cure(error: str, pod: Pod | None) -> str:
    """Return what helps against a refusal of the API server, or of the admission policy."""
    if pod and "devwatch.io/evict=allowed" in error:
        return f"kubectl label namespace {pod.namespace} devwatch.io/evict=allowed"
    return "let the PodDisruptionBudget allow one disruption, or delete the pod" if "disruption budget" in error else ""
