"""Pods as values: what they request and mount, and what becomes of them when a device is lost or returns under another number."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from devwatch.core.listing import listed_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from devwatch.core.incidents import Loss, Return


class Phase(Enum):
    """What the status of a pod says of one of its containers (core/v1 ContainerState)."""

    RUNNING = "running"
    WAITING = "waiting"
    """It is about to start, or nothing is known of it yet."""
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
    """A pod of this node, as far as an eviction depends on it."""

    namespace: str
    name: str
    uid: str
    phase: str = "Running"
    requests: Mapping[str, int] = field(default_factory=dict)
    """By extended resource, as the scheduler counts them."""
    node: str = ""
    """The name of the Node that it is bound to."""
    host_paths: tuple[str, ...] = ()
    """The paths of its hostPath volumes."""
    containers: tuple[Container, ...] = ()
    scheduled: str = ""
    """When it was bound, else made, by the API server's clock (RFC 3339, seconds); empty where that is unknown."""
    owner: str = ""
    """The kind of its controlling owner, empty without one."""
    mirror: bool = False
    """Whether the kubelet made it from a file: deleting it changes nothing."""
    terminating: bool = False

    @property
    def title(self) -> str:
        """The name by which people know it."""
        return f"{self.namespace}/{self.name}"

    @property
    def finished(self) -> bool:
        """Whether it runs no more, so that the scheduler does not count its requests."""
        return self.phase in {"Succeeded", "Failed"}


def effective_request(containers: Iterable[int], init: Iterable[tuple[int, bool]]) -> int:
    """Return what the scheduler counts for a pod (component-helpers, `resource.PodRequests`).

    `containers` are the requests of those that run together, `init` those of the init containers in their order, each with whether it is
    a sidecar (`restartPolicy: Always`), which keeps running beside all that follow.
    """
    running, sidecars, peak = sum(containers), 0, 0
    for request, sidecar in init:
        if sidecar:
            sidecars += request
        else:
            peak = max(peak, sidecars + request)
    return max(running + sidecars, peak)


class Disposition(Enum):
    """What becomes of a pod whose device is lost, or has returned under another number."""

    EVICT = "evict"
    AMBIGUOUS = "ambiguous"
    """The pod does not say which device it uses."""
    BARE = "bare"
    """Nothing would make another in its place."""
    PINNED = "pinned"
    """Another would be on this node at once, whether it has the device or not."""
    LATE = "late"
    """It was bound at about the time of the loss: it may be a successor."""
    DIRECTORY = "directory"
    """It mounts a directory above the device, in which the device is there again."""
    SAME_NUMBER = "same number"
    """The file that it mounted opens the returned device."""
    WAITING = "waiting"
    """Its container is about to start, and then mounts the device as it is now."""
    UNKNOWN_START = "unknown start"
    """Its status does not say whether it started before the device returned."""
    RECENT = "recent"
    """A pod was evicted for such a return a moment ago: the device seems to return whenever it is used."""


def was_there(pod: Pod, loss: Loss) -> bool:
    """Return whether a pod was on the node before the device was no longer counted: a later one is a successor.

    Either a list that was answered before that PATCH holds it, or it was bound in an earlier second than the server's last answer before
    that PATCH (all times in pods are whole seconds).
    """
    return pod.uid in loss.there or bool(loss.lost and pod.scheduled and pod.scheduled < loss.lost)


def on_loss(pod: Pod, loss: Loss) -> Disposition | None:
    """Return what becomes of a pod when devices of a resource are lost; None where they do not concern it.

    With no device left all pods that request the resource are concerned; else those that name a lost one by a path that no other device
    had. A pod that names a device which is left uses that one.
    """
    if pod.requests.get(loss.resource, 0) <= 0 or pod.finished or pod.terminating:
        return None
    there = was_there(pod, loss)
    if not there and not (pod.scheduled and pod.scheduled < loss.accepted):
        return None
    paths = {listed_path(path) for path in pod.host_paths}
    if loss.left and not any(paths & entry.paths for entry in loss.entries):
        return None if paths & loss.others else Disposition.AMBIGUOUS
    return _moved(pod) if there else Disposition.LATE


def _moved(pod: Pod) -> Disposition:
    """Return whether evicting a pod moves its work elsewhere."""
    if pod.mirror or pod.owner == "DaemonSet":
        return Disposition.PINNED
    return Disposition.EVICT if pod.owner else Disposition.BARE


def on_return(pod: Pod, back: Return) -> Disposition | None:
    """Return what becomes of a pod when a device has returned; None where it does not use the device, or has healed.

    A container that has mounted the device's file goes on with a dead one, unless it started in the second of the return or later: then it
    mounted the returned device. One that started between departure and return mounted nothing that works.
    """
    if pod.requests.get(back.resource, 0) <= 0 or pod.finished or pod.terminating:
        return None
    found = [_after_return(container, back) for container in pod.containers]
    worst = min((each for each in found if each), key=_SEVERITY.index, default=None)
    if worst is not Disposition.EVICT:
        return worst
    moved = _moved(pod)
    return Disposition.RECENT if moved is Disposition.EVICT and back.recent else moved


_SEVERITY = (
    Disposition.EVICT,
    Disposition.AMBIGUOUS,
    Disposition.UNKNOWN_START,
    Disposition.WAITING,
    Disposition.SAME_NUMBER,
    Disposition.DIRECTORY,
)
"""One container with a dead file decides, whatever the others have."""


def _after_return(container: Container, back: Return) -> Disposition | None:
    """Return what the container asks for; None where it has nothing to do with the device, has finished or has healed."""
    paths, opened = {listed_path(path) for path in container.mounts}, back.opened(container.started)
    stayed = container.started is not None and container.started < back.left
    shared = back.shared if stayed else back.shared | back.taken
    own = frozenset(path for each in opened or back.former for path in each.paths) - shared
    above = any(_is_above(folder, path) for folder in paths for path in own)
    healed = container.started is not None and container.started >= back.second
    over = container.phase is Phase.FINISHED or (container.phase is Phase.RUNNING and healed)
    if over or not (above or paths & (own | shared)):
        return None
    if not paths & (own | shared):
        return Disposition.DIRECTORY
    if opened and not back.is_dead(opened):
        return Disposition.SAME_NUMBER
    # Before the device was there, its path led to another one, or nowhere.
    return _with_dead_file(container) if opened and paths & own else Disposition.AMBIGUOUS


def _with_dead_file(container: Container) -> Disposition:
    if container.phase is Phase.WAITING:
        return Disposition.WAITING
    return Disposition.UNKNOWN_START if container.started is None else Disposition.EVICT


def _is_above(folder: str, path: str) -> bool:
    return path.startswith(f"{folder.rstrip('/')}/")
