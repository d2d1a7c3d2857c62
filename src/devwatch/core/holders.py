"""Which pods hold which devices, as the kubelet says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from devwatch.core.pods import Pod


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """The devices of one resource that a container has (podresources/v1, `List`)."""

    namespace: str
    pod: str
    """The name of the pod: the kubelet tells no UID, and another pod may have the name by now."""
    container: str
    resource: str
    ids: frozenset[str]


def held_ids(resource: str, holdings: Iterable[Holding], pods: Iterable[Pod]) -> frozenset[str] | None:
    """Return the IDs that pods of this node hold, None where that is unknown.

    A reading proves that a device is not held only if it accounts for every unfinished pod of this node that requests the resource: the
    kubelet answers with nothing for a while after its start.
    """
    mine = [each for each in holdings if each.resource == resource]
    told = {(each.namespace, each.pod) for each in mine}
    wanting = {(pod.namespace, pod.name) for pod in pods if pod.requests.get(resource, 0) > 0 and not pod.finished}
    return frozenset().union(*(each.ids for each in mine)) if wanting <= told else None
