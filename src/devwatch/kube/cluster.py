"""Read the resources that devwatch advertises in the cluster, and compute how to remove them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from devwatch.core.errors import Forbidden, Retry, Unserved
from devwatch.core.listing import render_listing
from devwatch.core.node import NodePatch, NodeState
from devwatch.core.rules import Publish
from devwatch.core.status import NodeSummary, ResourceStatus, resource_statuses
from devwatch.core.way import way_of
from devwatch.kube.claims import list_claims
from devwatch.kube.nodes import node_state
from devwatch.kube.pods import list_all, pod_of
from devwatch.kube.slices import list_slices

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from devwatch.core.claims import ClaimSummary
    from devwatch.core.errors import ApiError
    from devwatch.core.listing import Entry
    from devwatch.core.pods import Pod
    from devwatch.core.slices import Slice
    from devwatch.core.status import Offers, PodsByNode
    from devwatch.kube.client import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The resources of the whole cluster."""

    resources: tuple[ResourceStatus, ...]
    """By node and name; those without a node come last."""
    hidden: str = ""
    """Why the pods are not shown, empty where they are."""
    unclaimed: str = ""
    """Why it is unknown which devices slices offer and claims have or request, empty where it is known, or nothing has `publish: dra`."""


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

    Without the permission to list pods, or claims, everything else is returned.
    """
    nodes = await summarize_nodes(connection)
    pods: PodsByNode | None = None
    claims: tuple[ClaimSummary, ...] | None = None
    offers: Offers | None = None
    hidden = unclaimed = ""
    try:
        pods = await _pods_by_node(connection)
    except Forbidden as error:
        hidden = _reason(error)
    if any(way_of(entries) is Publish.DRA for node in nodes for entries in node.state.listing().values()):
        try:
            offers = _offers(await list_slices(connection, None))
            claims = await list_claims(connection)
        except (Forbidden, Unserved) as error:
            unclaimed = _reason(error)
    resources = resource_statuses({node.name: node for node in nodes}, pods, claims, offers)
    return Overview(resources=resources, hidden=hidden, unclaimed=unclaimed)


def _offers(slices: Iterable[Slice]) -> Offers:
    """Return by node the devices that can be allocated."""
    found: dict[str, set[str]] = {}
    for each in slices:
        found.setdefault(each.node, set()).update(device.name for device in each.devices if not device.taints)
    return found


def _reason(error: ApiError) -> str:
    return f"{error}; {error.hint}" if error.hint else str(error)


async def _pods_by_node(connection: Connection) -> PodsByNode:
    """Return the unfinished pods that request an extended resource or have a claim, under None those that are not bound to a Node."""
    pods: dict[str | None, list[Pod]] = {}
    async for item in list_all(connection, "/api/v1/pods"):
        pod, node = pod_of(item), item["spec"].get("nodeName")
        if (pod.requests or pod.claims) and not pod.finished:
            pods.setdefault(node if node and isinstance(node, str) else None, []).append(pod)
    return pods


def removal(state: NodeState) -> NodePatch:
    """Return the patch that removes everything that devwatch advertised, and the annotation.

    Only resources that a believed annotation lists are removed, and of those only counts that devwatch wrote. The kubelet may have written
    those of a resource that it handed over, and may do so again: the annotation lists these until they stay away.
    """
    if state.annotation is None:
        return NodePatch()
    memory = state.memory()
    kept = {name: entries for name, entries in memory.items() if _is_registered(entries) and _is_removable(state, name)}
    shown = {name for name in memory if not state.shows(name, None) and _is_removable(state, name)}
    return NodePatch(counts=dict.fromkeys(sorted(shown | kept.keys())), annotation=render_listing(kept))


def _is_removable(state: NodeState, name: str) -> bool:
    return state.removable(name, kubelet=way_of(state.memory().get(name, ())).hands_over)


def _is_registered(entries: Iterable[Entry]) -> bool:
    """Return whether the kubelet may have written the counts of a resource: that of a device plugin."""
    return way_of(entries) is Publish.DEVICE_PLUGIN


def not_removable(state: NodeState) -> Sequence[str]:
    """Return the resources that the annotation lists and that `removal` leaves alone, since devwatch did not write their counts."""
    shown = (name for name in state.listing() if not state.shows(name, None))
    return sorted(name for name in shown if not (state.believed and _is_removable(state, name)))


def reappeared(state: NodeState, removed: NodePatch) -> NodePatch:
    """Return the patch that would remove what is on a Node again after `removed` was applied."""
    back = (name for name in removed.counts if not state.shows(name, None))
    again = removal(state) if state.annotation != removed.annotation else NodePatch()
    return replace(again, counts={**dict.fromkeys(back), **again.counts})
