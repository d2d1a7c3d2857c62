"""Pods as values: what they request, and which of them a lost device concerns."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from devwatch.node import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod of this node, as far as an eviction depends on it."""

    namespace: str
    name: str
    uid: str
    phase: str = "Running"
    requests: Mapping[str, int] = field(default_factory=dict)
    """By extended resource, as the scheduler counts them."""
    host_paths: tuple[str, ...] = ()
    """The paths of its hostPath volumes."""
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


class Fate(Enum):
    """What becomes of a pod whose device is lost."""

    EVICT = "evict"
    AMBIGUOUS = "ambiguous"
    """Other devices of the resource are left, and the pod does not say which one it uses."""
    BARE = "bare"
    """Nothing would make it anew."""
    EXEMPT = "exempt"
    """It ends anyway, or would be back at once on this node."""


def fate(pod: Pod, resource: str, lost: Iterable[Entry], *, left: int) -> Fate | None:
    """Return what becomes of a pod when devices of a resource are lost and `left` of them remain; None where it is not concerned."""
    if pod.requests.get(resource, 0) <= 0 or pod.finished:
        return None
    if pod.terminating or pod.mirror or pod.owner == "DaemonSet":
        return Fate.EXEMPT
    if left and not _names(pod, lost):
        return Fate.AMBIGUOUS
    return Fate.EVICT if pod.owner else Fate.BARE


def _names(pod: Pod, lost: Iterable[Entry]) -> bool:
    paths = {path for entry in lost for path in (entry.devnode, entry.link) if path}
    return any(path.rstrip("/") in paths for path in pod.host_paths)
