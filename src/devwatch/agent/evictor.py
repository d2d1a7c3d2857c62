"""Evict the pods of lost devices and of devices that have returned: at most one eviction a second, one request at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from devwatch.agent.holders import HolderReader
from devwatch.core.backoff import Backoff
from devwatch.core.errors import (
    ApiError,
    Busy,
    Conflict,
    CredentialsError,
    Forbidden,
    Missing,
    Refused,
    Retry,
    Unserved,
)
from devwatch.core.incidents import Incidents, Loss, Return
from devwatch.core.pods import Disposition, Pod, names_shared_path, on_loss, on_return
from devwatch.core.repeat import RepeatFilter
from devwatch.core.task import Task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from devwatch.agent.events import EventRecorder
    from devwatch.core.loss import Losses
    from devwatch.observe.health import Health
    from devwatch.observe.metrics import Metrics

INTERVAL = 1.0
"""Seconds between two evictions of this node, at least."""
STATUS_LIMIT = 1.0
"""Seconds for which the status of a victim holds: after that its container may have restarted, with the device that has returned."""
KEPT_INTERVAL = 300.0
"""Seconds between two checks whether a pod that is never evicted still keeps a lost device."""

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

    It promises:

    - *never the wrong pod*: only pods of this node that an incident certainly concerns are evicted, never one whose device is back, and
      never a successor. The victims of a loss are chosen once, as UIDs; only these are tried again, until they are gone;
    - *never too early*: at most one a second, and none before the `after` of the resource has passed.
    """

    api: WorkloadApi
    recorder: EventRecorder
    losses: Losses
    metrics: Metrics
    health: Health
    jitter: Callable[[], float]
    holders: HolderReader = field(default_factory=HolderReader)
    _incidents: dict[Key, Incident] = field(default_factory=dict)
    _next_victim: tuple[Key, Pod, float] | None = None
    """The pod to evict next, and when its status was read."""
    _next_eviction_at: float = float("-inf")
    _backoff: Backoff = field(default_factory=lambda: Backoff(first=1.0))
    _filter: RepeatFilter = field(default_factory=RepeatFilter)
    _refusals: Counter[object] = field(default_factory=Counter)
    """By incident and by UID: refused evictions. Those with the fewest come first, so that a pod that is always refused blocks no other."""
    _reasons: dict[tuple[Key, str], str] = field(default_factory=dict)
    """By incident and UID, an empty one for the list of pods: why the server refuses it, until a later list shows no such victim."""
    _accepted: set[str] = field(default_factory=set)
    """The UIDs of the pods of which the server accepted the eviction, while they are listed; none of them should be a victim again."""
    _unanswered: dict[str, tuple[Pod, Incident]] = field(default_factory=dict)
    """By UID: the evictions of which no answer came, while the pod is there and its incident lasts."""
    _reported: set[tuple[Key, str]] = field(default_factory=set)
    """The pods that were reported as spared, with their incident, while they are listed."""
    _recheck_at: dict[Key, float] = field(default_factory=dict)
    """By incident: when to check next whether the pods that keep its device still exist."""

    def set_incidents(self, incidents: Incidents) -> None:
        """Replace the incidents by those of the last scan; there are none while it is uncertain."""
        self._incidents = {incident.key: incident for incident in incidents}
        if self._next_victim is not None and self._next_victim[0] not in self._incidents:
            self._next_victim = None  # its status must be read again: a container may have restarted meanwhile
        self.holders.keep(self._incidents)
        self._recheck_at = {key: at for key, at in self._recheck_at.items() if key in self._incidents}
        self._reasons = {each: why for each, why in self._reasons.items() if each[0] in self._incidents}
        self._unanswered = {
            uid: (pod, incident) for uid, (pod, incident) in self._unanswered.items() if incident.key in self._incidents
        }
        self.health.eviction = next(iter(self._reasons.values()), "")
        if not self._incidents:
            self._refusals.clear()

    def action(self, now: float) -> Task | None:
        """Return the request that is due, None for none: a list of pods, or one eviction.

        The cases, in this order:

        1. The list of pods at a departure. It is due before any eviction, since pods listed too late count as successors.
        2. The eviction of the victim that a request before chose, if its incident still holds and still concerns it.
        3. The choice of a victim for the incident with the fewest refusals.

        A list and the eviction that follows are separate requests, so that a patch waits for one of them only.
        """
        pod_list_due = self.losses.pod_list_due
        if pod_list_due is not None and pod_list_due <= now:
            self.losses.note_pod_list(now)
            return Task(run=self._list_pods_at_departure, patience=0.0)
        due = self._due()
        if due is None or due > now:
            return None
        (key, pod, read_at), self._next_victim = self._next_victim or ((), None, now), None
        incident = self._incidents.get(key)
        if pod is not None and incident is not None and self._disposition_of(pod, incident) is Disposition.EVICT:
            return Task(run=partial(self._attempt, incident, partial(self._evict, pod, incident, read_at), pod))
        ready = [incident for incident in self._judged() if self._due_at(incident) <= now]
        first = min(ready, key=lambda incident: (self._refusals[incident.key], incident.due))
        return Task(run=partial(self._attempt, first, partial(self._choose_victim, first)))

    def due(self, _now: float) -> float | None:
        """Return when the next request is due, None for never."""
        return min((due for due in (self.losses.pod_list_due, self._due()) if due is not None), default=None)

    def _due(self) -> float | None:
        first = min(map(self._due_at, self._judged()), default=None)
        return None if first is None else max(first, self._next_eviction_at, self._backoff.until)

    def _judged(self) -> list[Incident]:
        """Return the incidents whose pods can be judged now; each acknowledgement of the kubelet wakes the loop."""
        return [incident for incident in self._incidents.values() if self.holders.can_read(incident)]

    def _due_at(self, incident: Incident) -> float:
        return self._recheck_at.get(incident.key, incident.due)

    # -- lists of pods

    async def _list_pods_at_departure(self) -> None:
        try:
            self.losses.record_pods(pod.uid for pod in await self._pods())
        except ApiError as error:
            self.recorder.log.debug("pods.unlisted", error=str(error))

    async def _pods(self) -> list[Pod]:
        """List the pods of this node, filtered again here: a proxy may ignore the field selector."""
        return [pod for pod in await self.api.pods() if pod.node == self.recorder.node]

    # -- victims

    def _disposition_of(self, pod: Pod, incident: Incident) -> Disposition | None:
        holders = self.holders.of(incident)
        return on_loss(pod, incident, holders) if isinstance(incident, Loss) else on_return(pod, incident, holders)

    async def _attempt(
        self, incident: Incident, request: Callable[[], Awaitable[None]], pod: Pod | None = None
    ) -> None:
        try:
            await request()
        except ApiError as error:
            self._refused(error, incident, pod, at_least=INTERVAL if isinstance(error, Forbidden) else error.pause)

    async def _choose_victim(self, asked: Incident) -> None:
        """List the pods and choose the one to evict next; settle the incident where none is left.

        The incident is read again after the list, since the device may have returned, or a scan may have become uncertain, meanwhile.

        - A loss: the pods concerned at the first list are its victims. Later lists never add any, since a pod that was created since is a
          successor. A return needs no such memory: a container that started since has mounted the returned device.
        - Pods that are spared are reported. An ambiguous one is reported only where no pod is chosen, or where it names a path that the
          device shared: if the holder of the lost device is known, the others use the devices that are left.
        - Of the victims, the one with the fewest refusals comes next.
        - Without a victim, a loss stays open while a pod that is never evicted keeps the device, and is checked every `KEPT_INTERVAL`.
        - Else the incident is settled, so that its device leaves the annotation.
        """
        pods = await self.holders.read(asked, self._pods)
        uids = {pod.uid for pod in pods}
        self._accepted &= uids
        for uid in self._unanswered.keys() - {pod.uid for pod in pods if not pod.terminating}:
            self._report_eviction(*self._unanswered.pop(uid))
        self._reported = {(key, uid) for key, uid in self._reported if uid in uids}
        incident = self._incidents.get(asked.key)
        if incident is None:
            return  # settled or in doubt meanwhile
        judged = [(pod, self._disposition_of(pod, incident)) for pod in pods]
        concerned = {pod.uid for pod, what in judged if what is Disposition.EVICT}
        chosen = self.losses.choose(incident, concerned) if isinstance(incident, Loss) else concerned
        for pod, what in judged:
            elsewhere = what is Disposition.AMBIGUOUS and chosen and not names_shared_path(pod, incident)
            if what in _SPARE_REASONS and not elsewhere:
                self._spare(pod, _SPARE_REASONS[what], incident, what)
        victims = [pod for pod in pods if pod.uid in concerned & chosen]
        left = {(incident.key, pod.uid) for pod in victims}
        self._reasons = {each: why for each, why in self._reasons.items() if each in left or each[0] != incident.key}
        if victims:
            first = min(victims, key=lambda pod: self._refusals[pod.uid])
            self._next_victim = (incident.key, first, self.recorder.clock())
        elif isinstance(incident, Loss) and any(what in _NEVER_EVICTED for _, what in judged):
            self._recheck_at[incident.key] = self.recorder.clock() + KEPT_INTERVAL
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
        self.metrics.evictions.labels(what.value if what.value in _OUTCOME_LABELS else "spared").inc()
        self.recorder.log.warning("pod.eviction_refused", pod=pod.title, resource=incident.resource, reason=reason)
        self.recorder.pod(pod, incident, f"the pod stays, {reason}")

    async def _is_concerned(self, pod: Pod, asked: Incident) -> bool:
        """Read the status of a pod again, and return whether the incident still concerns it."""
        pods = await self.holders.read(asked, self._pods)
        incident = self._incidents.get(asked.key)
        found = next((each for each in pods if each.uid == pod.uid), None)
        return found is not None and incident is not None and self._disposition_of(found, incident) is Disposition.EVICT

    async def _evict(self, pod: Pod, incident: Incident, read_at: float) -> None:
        if self.recorder.clock() > read_at + STATUS_LIMIT and not await self._is_concerned(pod, incident):
            return
        self._next_eviction_at = self.recorder.clock() + INTERVAL
        try:
            await self._request_eviction(pod, incident)
        except (Missing, Conflict):
            self._backoff.succeed()
            return  # already gone; a pod of this name is another one by now
        if pod.uid in self._accepted:
            raise Refused(_WITHOUT_EFFECT, hint="find the webhook that answers evictions, or delete the pod")
        self._accepted.add(pod.uid)
        self._backoff.succeed()
        self._filter = RepeatFilter()
        self._report_eviction(pod, incident)

    def _report_eviction(self, pod: Pod, incident: Incident) -> None:
        self.recorder.pod(pod, incident, "the pod is evicted")
        self.metrics.evictions.labels("evicted").inc()
        self.recorder.log.warning(
            "pod.evicted", pod=pod.title, resource=incident.resource, **_incident_fields(incident)
        )

    async def _request_eviction(self, pod: Pod, incident: Incident) -> None:
        """Request an eviction, and note it unless it was certainly refused.

        A request whose answer is lost, or which a patch cancels, may have evicted the pod: it is reported once the pod is gone, and for a
        return the next one may make the device return again.
        """
        certain = refused = False
        try:
            await self.api.evict(pod)
            certain = True
        except ApiError as error:
            refused = isinstance(error, _REFUSALS) or any(text in str(error) for text in _REFUSAL_TEXTS)
            raise
        finally:
            if certain or refused:
                self._unanswered.pop(pod.uid, None)
            else:
                self._unanswered[pod.uid] = pod, incident
            if isinstance(incident, Return) and not refused:
                self.losses.note_eviction(incident, self.recorder.clock(), certain=certain)

    def _refused(self, error: ApiError, incident: Incident, pod: Pod | None, *, at_least: float) -> None:
        self._refusals.update([incident.key, *([pod.uid] if pod else [])])
        self.metrics.evictions.labels("refused" if isinstance(error, Retry) else "failed").inc()
        delay = self._backoff.fail(self.recorder.clock(), self.jitter(), at_least=at_least)
        hint = error.hint or _eviction_hint(str(error), pod)
        if hint or isinstance(error, Forbidden | Refused):
            who = f"{pod.title} is not evicted" if pod else "no pod is evicted"
            self._reasons[incident.key, pod.uid if pod else ""] = f"{incident.resource}: {who}: {error}"
        if pod:
            self.recorder.pod(pod, incident, f"it cannot be evicted: {error}" + (f" ({hint})" if hint else ""))
        if self._filter.should_log(str(error)):
            more = ({"pod": pod.title} if pod else {}) | ({"hint": hint} if hint else {})
            self.recorder.log.warning(
                "pod.eviction_refused", resource=incident.resource, error=str(error), retry_in=round(delay, 1), **more
            )


_WITHOUT_EFFECT = "the API server has accepted the eviction before, and the pod is neither gone nor terminating"
_REFUSALS = (Busy, Conflict, CredentialsError, Forbidden, Missing, Refused, Unserved)
"""Errors with which the server certainly evicts no pod."""
_REFUSAL_TEXTS = ("more than one PodDisruptionBudget", "failed calling webhook")
"""What a status of 500 says then (registry/core/pod/storage/eviction.go; apiserver/pkg/admission/plugin/webhook, `toStatusErr`)."""
_NEVER_EVICTED = (Disposition.BARE, Disposition.PINNED)
"""Dispositions of pods that keep a lost device for as long as they live: it stays listed, and `status` shows it."""
_SPARE_REASONS = {
    Disposition.AMBIGUOUS: "ambiguous: no hostPath volume of the pod names the device by a path that it alone had: "
    "mount its link in /dev/serial/by-path, or delete the pod",
    Disposition.BARE: "bare: it has no controlling owner, so it would not be replaced: delete the pod",
    Disposition.PINNED: "pinned: it would be replaced on this node at once: delete the pod when the device is back",
    Disposition.LATE: "late: it was bound at about the time of the loss, and may have come after it: delete the pod if it does not work",
    Disposition.DIRECTORY: "directory: it mounts a directory in which the device appears again: its program has to open it again, "
    "or delete the pod",
    Disposition.SAME_NUMBER: "same number: the file that it mounted opens the device again: its program has to open it again, "
    "or delete the pod",
    Disposition.WAITING: "waiting: its container is about to start, and mounts the device as it is now",
    Disposition.UNKNOWN_START: "unknown start: its status does not say whether it started before the return: delete the pod",
    Disposition.RECENT: "recent: a pod was evicted for such a return within ten minutes, so the device seems to return whenever it is "
    "used: delete the pod if it does not work",
}
"""By disposition: why the pod is spared, and the remedy."""
_OUTCOME_LABELS = ("ambiguous", "bare")
"""Dispositions with an outcome of their own in `devwatch_evictions_total`; the others are `spared`."""


def _incident_fields(incident: Incident) -> dict[str, object]:
    devnodes = [entry.devnode for entry in incident.entries]
    if isinstance(incident, Loss):
        return {"reason": "lost", "lost": devnodes, "left": incident.left}
    return {"reason": "replugged", "returned": devnodes}


def _eviction_hint(error: str, pod: Pod | None) -> str:
    """Return the remedy for a refusal by the admission policy or by PodDisruptionBudgets, empty for any other."""
    if pod and "devwatch.io/evict=allowed" in error:
        return f"kubectl label namespace {pod.namespace} devwatch.io/evict=allowed"
    if "more than one PodDisruptionBudget" in error:
        return "let one PodDisruptionBudget alone select the pod, or delete the pod"
    return "let the PodDisruptionBudget allow one disruption, or delete the pod" if "disruption budget" in error else ""
