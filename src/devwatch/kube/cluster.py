"""Read the resources that devwatch advertises in the cluster, and compute how to remove them."""

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
"""The one way of publishing that there is: by PATCH of nodes/status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSummary:
    """A Node of the cluster with its state."""

    name: str
    state: NodeState
    ready: bool = True

    @property
    def owned(self) -> tuple[str, ...]:
        """The resources that devwatch advertises on this Node, according to the Node's annotation."""
        return tuple(sorted(self.state.listing()))

    @property
    def shown(self) -> AbstractSet[str]:
        """The resources in its capacity or allocatable, whichever client wrote them."""
        return {*self.state.capacity, *self.state.allocatable}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceStatus:
    """One resource of one Node; without a Node, the requests of pods that are not bound to any."""

    summary: NodeSummary | None
    resource: str
    pods: tuple[Pod, ...] | None
    """The unfinished pods that request it, None without the permission to list pods."""
    unadvertised: bool = False
    """Whether no Node has it in capacity or allocatable."""
    nearest: str | None = None
    """For a name that no Node has: the advertised name that was probably meant, None where none is similar."""

    @property
    def node(self) -> str | None:
        """The name of the Node."""
        return self.summary.name if self.summary else None

    @property
    def capacity(self) -> str | None:
        """Its capacity on the Node."""
        return self.summary.state.capacity.get(self.resource) if self.summary else None

    @property
    def allocatable(self) -> str | None:
        """Its allocatable on the Node."""
        return self.summary.state.allocatable.get(self.resource) if self.summary else None

    @property
    def requested(self) -> int | None:
        """The sum of the pods' requests, None without the permission to list pods."""
        return None if self.pods is None else sum(pod.requests[self.resource] for pod in self.pods)

    @property
    def owned(self) -> bool:
        """Whether devwatch advertises it on this Node."""
        return self.summary is not None and self.resource in self.summary.state.listing()

    @property
    def devices(self) -> tuple[Entry, ...]:
        """The devices behind it, as the Node's annotation lists them."""
        return self.summary.state.listing().get(self.resource, ()) if self.summary else ()

    @property
    def publish(self) -> str | None:
        """How it is published, None where devwatch does not advertise it."""
        return NODE_STATUS if self.owned else None

    @property
    def changed(self) -> str | None:
        """When devwatch last changed it (RFC 3339), None where the server has no record of that in managedFields."""
        writers = self.summary.state.writers.get(self.resource, ()) if self.summary else ()
        return max((writer.time for writer in writers if writer.manager == FIELD_MANAGER), default=None)

    def warnings(self) -> tuple[str, ...]:
        """Return the problems of this resource, one line each."""
        if self.unadvertised:
            nearest = f"; the nearest name that one has: {self.nearest}" if self.nearest else ""
            return (f"{self.resource} is requested, and no node has it in its capacity{nearest}",)
        return self._warnings_on(self.summary) if self.summary else ()

    def _warnings_on(self, node: NodeSummary) -> tuple[str, ...]:
        capacity, allocatable, where = self.capacity, self.allocatable, f"{self.resource} on {node.name}"
        found = [] if node.ready else [f"node {node.name} is not Ready: its figures may be old"]
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
    """The resources of the whole cluster."""

    resources: tuple[ResourceStatus, ...]
    """By node and name; those without a node come last."""
    hidden: str = ""
    """Why the pods are not shown, empty where they are."""


async def summarize_nodes(connection: Connection) -> tuple[NodeSummary, ...]:
    """Return the Nodes of the cluster. Raises an `ApiError`."""
    return tuple([_summarize(item, connection.origin) async for item in list_all(connection, "/api/v1/nodes")])


def _summarize(item: Mapping[str, Any], origin: str) -> NodeSummary:
    state = node_state({"kind": "Node", **item}, origin=origin)
    conditions = (item.get("status") or {}).get("conditions") or ()
    try:
        ready = any(condition.get("type") == "Ready" and condition.get("status") == "True" for condition in conditions)
    except (AttributeError, TypeError) as error:
        raise Retry(f"unexpected response from {origin}: not a Node (its conditions are malformed)") from error
    return NodeSummary(name=str(item["metadata"].get("name")), state=state, ready=ready)


async def overview(connection: Connection) -> Overview:
    """Return every resource that devwatch advertises in the cluster, and the pods that request it. Raises an `ApiError`.

    Without the permission to list pods, everything but the pods is returned.
    """
    nodes = await summarize_nodes(connection)
    pods: PodsByNode | None = None
    hidden = ""
    try:
        pods = await _pods_by_node(connection)
    except Forbidden as error:
        hidden = f"{error}; {error.hint}" if error.hint else str(error)
    return Overview(resources=_resource_statuses({node.name: node for node in nodes}, pods), hidden=hidden)


async def _pods_by_node(connection: Connection) -> PodsByNode:
    """Return the unfinished pods that request an extended resource, under None those that are not bound to a Node."""
    pods: dict[str | None, list[Pod]] = {}
    async for item in list_all(connection, "/api/v1/pods"):
        pod, node = pod_of(item), item["spec"].get("nodeName")
        if pod.requests and not pod.finished:
            pods.setdefault(node if node and isinstance(node, str) else None, []).append(pod)
    return pods


def _resource_statuses(nodes: Mapping[str, NodeSummary], pods: PodsByNode | None) -> tuple[ResourceStatus, ...]:
    owned = {name for node in nodes.values() for name in node.owned}
    shown = owned.union(*(node.shown for node in nodes.values()))
    rows: dict[tuple[str, str], list[Pod]] = {(node, name): [] for node in nodes for name in nodes[node].owned}
    for node in (None, *nodes):
        for pod in (pods or {}).get(node, ()):
            for name in _relevant_requests(pod, nodes[node] if node else None, owned, shown):
                rows.setdefault((node or "", name), []).append(pod)
    return tuple(
        ResourceStatus(
            summary=nodes.get(node),
            resource=name,
            pods=None if pods is None else tuple(requesting),
            unadvertised=name not in shown,
            nearest=None if name in shown else next(iter(get_close_matches(name, sorted(owned), n=1)), None),
        )
        for (node, name), requesting in sorted(rows.items(), key=lambda row: (not row[0][0], row[0]))
    )


def _relevant_requests(
    pod: Pod, node: NodeSummary | None, owned: AbstractSet[str], shown: AbstractSet[str]
) -> Iterator[str]:
    """Yield the resources for which a pod on this Node, or on none, is to be shown.

    - A resource that devwatch owns on any Node, unless another client advertises it on this one.
    - A resource that no Node has, while the pod is Pending. A pod that runs without a count on its Node has the resource from
      elsewhere (dynamic resource allocation needs no count).
    """
    for name in (name for name, count in pod.requests.items() if count):
        foreign = node is not None and name in node.shown and name not in node.owned
        if (name in owned and not foreign) or (name not in shown and pod.phase == "Pending"):
            yield name


def removal(state: NodeState) -> NodePatch:
    """Return the patch that removes everything that devwatch advertised, and the annotation itself.

    Only resources that a believed annotation lists are removed, and of those only counts that devwatch wrote.
    """
    if state.annotation is None:
        return NodePatch()
    ours = (name for name in state.memory() if state.removable(name) and not state.shows(name, None))
    return NodePatch(counts=dict.fromkeys(ours), annotation=None)


def not_removable(state: NodeState) -> Sequence[str]:
    """Return the resources that the annotation lists and that `removal` leaves alone, since devwatch did not write their counts."""
    shown = (name for name in state.listing() if not state.shows(name, None))
    return sorted(name for name in shown if not (state.believed and state.removable(name)))


def reappeared(state: NodeState, removed: NodePatch) -> NodePatch:
    """Return the patch that would remove the counts that are on a Node again after `removed` was applied."""
    back = (name for name in removed.counts if not state.shows(name, None))
    again = removal(state)
    return replace(again, counts={**dict.fromkeys(back), **again.counts})
