"""Pods as values, and the disposition of a pod when a device is lost or returns under another number."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from devwatch.core.listing import listed_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from devwatch.core.incidents import Loss, Return

Holders = frozenset[tuple[str, str, str]]
"""The containers that have a device, by namespace, pod and name."""


class Phase(Enum):
    """The state of a container in the status of its pod (core/v1 ContainerState)."""

    RUNNING = "running"
    WAITING = "waiting"
    """About to start, or without a state yet."""
    FINISHED = "terminated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container of a pod, init containers and sidecars included."""

    name: str
    mounts: tuple[str, ...] = ()
    """The host paths that it mounts."""
    phase: Phase = Phase.RUNNING
    started: int | None = None
    """When it started, in Unix seconds by the kubelet's clock, None where that is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod of this node, with the fields that an eviction depends on."""

    namespace: str
    name: str
    uid: str
    phase: str = "Running"
    requests: Mapping[str, int] = field(default_factory=dict)
    """By extended resource: the request as the scheduler counts it (`effective_request`)."""
    node: str = ""
    """The name of the Node that it is bound to."""
    host_paths: tuple[str, ...] = ()
    """The paths of its hostPath volumes."""
    containers: tuple[Container, ...] = ()
    scheduled: str = ""
    """When it was bound, or else created, by the API server's clock (RFC 3339, seconds); empty where unknown."""
    owner: str = ""
    """The kind of its controlling owner, empty without one."""
    mirror: bool = False
    """Whether it mirrors a static pod of the kubelet: deleting it changes nothing."""
    terminating: bool = False
    started: bool = True
    """Whether the kubelet has taken it over (`status.startTime`)."""
    devices: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By resource: the IDs that its status names (`allocatedResourcesStatus`, from 1.36), none where it names none."""
    claims: frozenset[str] = frozenset()
    """The names of its ResourceClaims, one that the scheduler has made for its extended resources included."""

    @property
    def title(self) -> str:
        """`NAMESPACE/NAME`, for messages."""
        return f"{self.namespace}/{self.name}"

    @property
    def has_run(self) -> bool:
        """Whether a container of it runs or has run."""
        return any(container.phase is not Phase.WAITING for container in self.containers)

    @property
    def finished(self) -> bool:
        """Whether it has ended, so that the scheduler does not count its requests."""
        return self.phase in {"Succeeded", "Failed"}


def effective_request(containers: Iterable[int], init: Iterable[tuple[int, bool]]) -> int:
    """Return the request that the scheduler counts for a pod (component-helpers, `resource.PodRequests`).

    `containers` are the requests of the containers that run together; `init` are those of the init containers in their order, each with
    whether it is a sidecar (`restartPolicy: Always`), which runs beside all containers after it.
    """
    running, sidecars, peak = sum(containers), 0, 0
    for request, sidecar in init:
        if sidecar:
            sidecars += request
        else:
            peak = max(peak, sidecars + request)
    return max(running + sidecars, peak)


class Disposition(Enum):
    """The decision about a pod whose device is lost, or has returned under another number."""

    EVICT = "evict"
    AMBIGUOUS = "ambiguous"
    """The pod does not name its device by a path that is unique to it."""
    BARE = "bare"
    """It has no controlling owner, so it would not be replaced."""
    PINNED = "pinned"
    """It would be replaced on this node at once, with or without the device."""
    LATE = "late"
    """It was bound at about the time of the loss: it may be a successor."""
    DIRECTORY = "directory"
    """It mounts a directory above the device, in which the returned device appears."""
    SAME_NUMBER = "same number"
    """The file that it mounted opens the returned device."""
    WAITING = "waiting"
    """Its container is about to start, and will then mount the returned device."""
    UNKNOWN_START = "unknown start"
    """Its status does not say whether it started before the device returned."""
    RECENT = "recent"
    """A pod was evicted for a return of this device shortly before: it may re-enumerate whenever it is used."""


def was_there(pod: Pod, loss: Loss) -> bool:
    """Return whether a pod was certainly on the node before the PATCH that stopped counting the device; a later pod is a successor.

    Either a list that was answered before that PATCH contains it, or it was bound in an earlier second than the server's last response
    before that PATCH. An equal second proves nothing, since times in pods are whole seconds.
    """
    return pod.uid in loss.there or bool(loss.lost and pod.scheduled and pod.scheduled < loss.lost)


def on_loss(pod: Pod, loss: Loss, holders: Holders | None = None) -> Disposition | None:
    """Return the disposition of a pod when devices of a resource are lost; None where the loss does not concern it.

    Where the kubelet hands the devices over, it says who the `holders` are, and the owner decides about each (`_disposition_by_owner`),
    whether it requests the resource or has a ResourceClaim. Nothing new is allocated to a lost device, so none of them is a successor.

    The cases, in this order:

    1. A pod that does not request the resource, or is not one of the `holders`, has ended or is terminating: None.
    2. A pod that is not known to be older than the accepted count: None. It is a successor.
    3. Some devices are left, and the pod has no hostPath that names a lost one alone: None if it names a device that is left, since it
       uses that one, else `AMBIGUOUS`.
    4. The pod was bound between the last response before the PATCH and the accepted count: `LATE`. It may be a successor.
    5. Else its owner decides (`_disposition_by_owner`).
    """
    if not _is_concerned(pod, loss.resource, holders):
        return None
    if holders is not None:
        return _disposition_by_owner(pod)
    was_before = was_there(pod, loss)
    if not was_before and not (pod.scheduled and pod.scheduled < loss.accepted):
        return None
    paths = {listed_path(path) for path in pod.host_paths}
    if loss.left and not any(paths & entry.paths for entry in loss.entries):
        return None if paths & loss.others else Disposition.AMBIGUOUS
    return _disposition_by_owner(pod) if was_before else Disposition.LATE


def _is_concerned(pod: Pod, resource: str, holders: Holders | None) -> bool:
    """Return whether an incident can concern a pod that runs: it has the device, as far as that is known.

    A pod that has it by a ResourceClaim requests no resource, so `holders` alone decide where they are known.
    """
    if pod.finished or pod.terminating:
        return False
    if holders is None:
        return pod.requests.get(resource, 0) > 0
    return any(holder[:2] == (pod.namespace, pod.name) for holder in holders)


def names_shared_path(pod: Pod, incident: Loss | Return) -> bool:
    """Return whether a pod names a path that a device of the incident shared with another device."""
    shared = {path for entry in incident.entries for path in entry.shared}
    return not shared.isdisjoint(map(listed_path, pod.host_paths))


def _disposition_by_owner(pod: Pod) -> Disposition:
    """Return `EVICT` where a controller replaces the pod, possibly on another node; else why an eviction would not help."""
    if pod.mirror or pod.owner == "DaemonSet":
        return Disposition.PINNED
    return Disposition.EVICT if pod.owner else Disposition.BARE


def on_return(pod: Pod, back: Return, holders: Holders | None = None) -> Disposition | None:
    """Return the disposition of a pod when a device has returned; None where it does not use the device, or has healed.

    A container that mounted the device's file keeps a dead one, unless it started in the second of the return or later: then it mounted the
    returned device. One that started between departure and return mounted nothing that works. One container with a dead file decides for
    the pod; then its owner decides, and whether a pod was recently evicted for this device (`RECENT`). Where the kubelet hands the device
    over, it says which containers are its `holders`; otherwise it is one that mounts the file.
    """
    if not _is_concerned(pod, back.resource, holders):
        return None
    if holders is None:
        found = [_disposition_after_return(container, back) for container in pod.containers]
    else:
        held = [each for each in pod.containers if (pod.namespace, pod.name, each.name) in holders]
        found = [_disposition_of_holder(container, back) for container in held]
    worst = min((each for each in found if each), key=_SEVERITY.index, default=None)
    if worst is not Disposition.EVICT:
        return worst
    by_owner = _disposition_by_owner(pod)
    return Disposition.RECENT if by_owner is Disposition.EVICT and back.recent else by_owner


_SEVERITY = (
    Disposition.EVICT,
    Disposition.AMBIGUOUS,
    Disposition.UNKNOWN_START,
    Disposition.WAITING,
    Disposition.SAME_NUMBER,
    Disposition.DIRECTORY,
)
"""Dispositions of containers, the deciding one first: one container with a dead file is enough for an eviction."""


def _disposition_after_return(container: Container, back: Return) -> Disposition | None:
    """Return the disposition that one container demands; None where it does not use the device, has finished or has healed.

    `opened` are the former registrations that the container can have opened, by its start. `own` are the paths that named only this device
    then; a path in `shared` also named, or by now leads to, another device. Unless the container certainly started
    before the registration that it can have opened ended, the paths that have led to another device since (`taken`) count as shared: it
    may have mounted that device.

    The cases, in this order:

    1. The container has finished, or runs and started since the return: None.
    2. It mounts neither a path of the device nor a directory above one: None.
    3. It mounts only a directory above: `DIRECTORY`. The returned device appears in it, so the program can open it again.
    4. Every registration that it can have opened has the current number: `SAME_NUMBER`. Its file works again.
    5. It mounts a path that was unique to the device, of a registration that it can have opened: its file is dead. This evicts, unless the
       container waits to start or its start is unknown.
    6. Else `AMBIGUOUS`: the path may have led to another device, or the container started before the device was present.
    """
    paths, opened = {listed_path(path) for path in container.mounts}, back.opened(container.started)
    stayed = container.started is not None and any(container.started < each.left for each in opened)
    shared = back.shared if stayed else back.shared.union(back.taken, *(each.taken for each in back.former))
    own = frozenset(path for each in opened or back.former for path in each.paths) - shared
    above = any(_is_directory_above(folder, path) for folder in paths for path in own)
    over = container.phase is Phase.FINISHED or _has_healed(container, back)
    if over or not (above or paths & (own | shared)):
        return None
    if not paths & (own | shared):
        return Disposition.DIRECTORY
    if opened and not back.is_dead(opened):
        return Disposition.SAME_NUMBER
    return _disposition_with_dead_file(container, back) if opened and paths & own else Disposition.AMBIGUOUS


def _disposition_of_holder(container: Container, back: Return) -> Disposition | None:
    """Return the disposition that a container demands which has the device from the kubelet: cases 1, 4 and 5 above."""
    if container.phase is Phase.FINISHED or _has_healed(container, back):
        return None
    opened = back.opened(container.started) or back.former
    return _disposition_with_dead_file(container, back) if back.is_dead(opened) else Disposition.SAME_NUMBER


def _has_healed(container: Container, back: Return) -> bool:
    """Return whether a container runs that started since the return."""
    started = container.started
    return container.phase is Phase.RUNNING and started is not None and started >= back.second


def _disposition_with_dead_file(container: Container, back: Return) -> Disposition:
    if container.started is None:
        return Disposition.WAITING if container.phase is Phase.WAITING else Disposition.UNKNOWN_START
    is_gone = container.started < back.boot
    return Disposition.WAITING if is_gone or container.phase is Phase.WAITING else Disposition.EVICT


def _is_directory_above(folder: str, path: str) -> bool:
    return path.startswith(f"{folder.rstrip('/')}/")
