"""What the cluster shows of the resources that devwatch advertises, and how to take them away again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from devwatch.core.errors import Forbidden, Retry
from devwatch.core.node import FIELD_MANAGER, NodePatch, NodeState, quantity
from devwatch.kube.nodes import node_state
from devwatch.kube.pods import list_all, pod_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.core.listing import Entry
    from devwatch.core.pods import Pod
    from devwatch.kube.client import Connection

    PodsByNode = Mapping[str | None, Sequence[Pod]]

NODE_STATUS = "nodeStatus"
"""How a resource is published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSummary:
    """A Node of the cluster."""

    name: str
    state: NodeState
    ready: bool = True

    @property
    def owned(self) -> tuple[str, ...]:
        """The resources that devwatch advertises there, by the Node's own annotation."""
        return tuple(sorted(self.state.listing()))

    @property
    def shown(self) -> AbstractSet[str]:
        """The resources that are in one of its maps, whichever client wrote them."""
        return {*self.state.capacity, *self.state.allocatable}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceStatus:
    """One resource of one Node; without a Node, what is requested by pods that are bound to none."""

    member: NodeSummary | None
    resource: str
    pods: tuple[Pod, ...] | None
    """The pods that request it and have not finished, None where they may not be listed."""
    unadvertised: bool = False
    """Whether no Node has it in a map."""
    nearest: str | None = None
    """The name that was probably meant by one that no Node has, None where no name is near."""

    @property
    def node(self) -> str | None:
        """The name of the Node."""
        return self.member.name if self.member else None

    @property
    def capacity(self) -> str | None:
        """The capacity that the Node shows."""
        return self.member.state.capacity.get(self.resource) if self.member else None

    @property
    def allocatable(self) -> str | None:
        """The allocatable that the Node shows."""
        return self.member.state.allocatable.get(self.resource) if self.member else None

    @property
    def requested(self) -> int | None:
        """How many of the resource the pods request, None where they may not be listed."""
        return None if self.pods is None else sum(pod.requests[self.resource] for pod in self.pods)

    @property
    def owned(self) -> bool:
        """Whether devwatch advertises it on this Node."""
        return self.member is not None and self.resource in self.member.state.listing()

    @property
    def devices(self) -> tuple[Entry, ...]:
        """The devices behind it, as the Node's annotation lists them."""
        return self.member.state.listing().get(self.resource, ()) if self.member else ()

    @property
    def publish(self) -> str | None:
        """How it is published, None where devwatch does not advertise it."""
        return NODE_STATUS if self.owned else None

    @property
    def changed(self) -> str | None:
        """When devwatch last wrote to it (RFC 3339), None where the server keeps no record of it."""
        writers = self.member.state.writers.get(self.resource, ()) if self.member else ()
        return max((writer.time for writer in writers if writer.manager == FIELD_MANAGER), default=None)

    def warnings(self) -> tuple[str, ...]:
        """Return what is not as it should be, one line each."""
        if self.unadvertised:
            nearest = f"; the nearest name that one has: {self.nearest}" if self.nearest else ""
            return (f"{self.resource} is requested, and no node has it in its capacity{nearest}",)
        return self._warnings_of(self.member) if self.member else ()

    def _warnings_of(self, member: NodeSummary) -> tuple[str, ...]:
        capacity, allocatable, where = self.capacity, self.allocatable, f"{self.resource} on {member.name}"
        found = [] if member.ready else [f"node {member.name} is not Ready: its figures may be old"]
        if capacity != allocatable:
            found.append(
                f"{where}: allocatable {allocatable} differs from capacity {capacity}; the kubelet will settle it"
            )
        if (self.requested or 0) > (quantity(allocatable) or 0):
            found.append(
                f"{where}: {self.requested} requested, {allocatable or 'none'} allocatable; a pod runs without its device"
            )
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What the cluster shows."""

    standings: tuple[ResourceStatus, ...]
    """By node and name; what has no node comes last."""
    hidden: str = ""
    """Why the pods are not shown, empty where they are."""


async def members(connection: Connection) -> tuple[NodeSummary, ...]:
    """Return the Nodes of the cluster. Raises an `ApiError`."""
    return tuple([_member(item, connection.origin) async for item in list_all(connection, "/api/v1/nodes")])


def _member(item: Mapping[str, Any], origin: str) -> NodeSummary:
    state = node_state({"kind": "Node", **item}, origin=origin)
    conditions = (item.get("status") or {}).get("conditions") or ()
    try:
        ready = any(condition.get("type") == "Ready" and condition.get("status") == "True" for condition in conditions)
    except (AttributeError, TypeError) as error:
        raise Retry(f"the answer of {origin} is no Node: its conditions are of another form") from error
    return NodeSummary(name=str(item["metadata"].get("name")), state=state, ready=ready)


async def overview(connection: Connection) -> Overview:
    """Return every resource that devwatch advertises in the cluster, and what pods request of it. Raises an `ApiError`.

    Without the right to list pods all else is shown.
    """
    nodes = await members(connection)
    pods: PodsByNode | None = None
    hidden = ""
    try:
        pods = await _pods_by_node(connection)
    except Forbidden as error:
        hidden = f"{error}; {error.hint}" if error.hint else str(error)
    return Overview(standings=_standings({member.name: member for member in nodes}, pods), hidden=hidden)


async def _pods_by_node(connection: Connection) -> PodsByNode:
    """Return the pods that have not finished and request an extended resource, under None those that are bound to no Node."""
    pods: dict[str | None, list[Pod]] = {}
    async for item in list_all(connection, "/api/v1/pods"):
        pod, node = pod_of(item), item["spec"].get("nodeName")
        if pod.requests and not pod.finished:
            pods.setdefault(node if node and isinstance(node, str) else None, []).append(pod)
    return pods


def _standings(nodes: Mapping[str, NodeSummary], pods: PodsByNode | None) -> tuple[ResourceStatus, ...]:
    owned = {name for member in nodes.values() for name in member.owned}
    shown = owned.union(*(member.shown for member in nodes.values()))
    rows: dict[tuple[str, str], list[Pod]] = {(node, name): [] for node in nodes for name in nodes[node].owned}
    for node in (None, *nodes):
        for pod in (pods or {}).get(node, ()):
            for name in _concerning(pod, nodes[node] if node else None, owned, shown):
                rows.setdefault((node or "", name), []).append(pod)
    return tuple(
        ResourceStatus(
            member=nodes.get(node),
            resource=name,
            pods=None if pods is None else tuple(requesting),
            unadvertised=name not in shown,
            nearest=None if name in shown else next(iter(get_close_matches(name, sorted(owned), n=1)), None),
        )
        for (node, name), requesting in sorted(rows.items(), key=lambda row: (not row[0][0], row[0]))
    )


def _concerning(
    pod: Pod, member: NodeSummary | None, owned: AbstractSet[str], shown: AbstractSet[str]
) -> Iterator[str]:
    """Yield the resources by which a pod on this Node, or bound to none, is a matter of devwatch.

    What devwatch owns anywhere, but not where another plugin has it; and what no Node has, while the pod is Pending: one that runs
    without it may have it from elsewhere (dynamic resource allocation needs no count on a Node).
    """
    for name in (name for name, count in pod.requests.items() if count):
        foreign = member is not None and name in member.shown and name not in member.owned
        if (name in owned and not foreign) or (name not in shown and pod.phase == "Pending"):
            yield name


def removal(state: NodeState) -> NodePatch:
    """Return the patch that takes everything away that devwatch advertised, and the annotation itself.

    That is what a believed annotation owns, as far as devwatch wrote the counts: a key of another client is left alone.
    """
    if state.annotation is None:
        return NodePatch()
    ours = (name for name in state.memory() if state.removable(name) and not state.shows(name, None))
    return NodePatch(counts=dict.fromkeys(ours), annotation=None)


def strange(state: NodeState) -> Sequence[str]:
    """Return the resources that the annotation lists and that are not devwatch's to remove."""
    shown = (name for name in state.listing() if not state.shows(name, None))
    return sorted(name for name in shown if not (state.believed and state.removable(name)))


def left(state: NodeState, removed: NodePatch) -> NodePatch:
    """Return the patch that would take away what is on a Node again after it was removed."""
    back = (name for name in removed.counts if not state.shows(name, None))
    again = removal(state)
    return replace(again, counts={**dict.fromkeys(back), **again.counts})
