"""What the cluster shows of the resources that devwatch advertises, and how to take them away again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devwatch.errors import Retry
from devwatch.kube import node_state
from devwatch.node import FIELD_MANAGER, WHOLE, Changes, Entry, NodeState, quantity
from devwatch.workload import list_all, pod_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from devwatch.kube import Connection
    from devwatch.pods import Pod


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A Node of the cluster."""

    name: str
    state: NodeState
    ready: bool = True

    @property
    def owned(self) -> tuple[str, ...]:
        """The resources that devwatch advertises there, by the Node's own annotation."""
        return tuple(sorted(self.state.listing()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One resource of one Node."""

    member: Member
    resource: str
    pods: tuple[Pod, ...]
    """The pods of the Node that request it and have not finished."""

    @property
    def requested(self) -> int:
        """How many of the resource they request."""
        return sum(pod.requests[self.resource] for pod in self.pods)

    @property
    def devices(self) -> tuple[Entry, ...]:
        """The devices behind it, as the Node's annotation lists them."""
        return self.member.state.listing()[self.resource]

    @property
    def changed(self) -> str | None:
        """When devwatch last wrote to it (RFC 3339), None where the server keeps no record of it."""
        writers = self.member.state.writers.get(self.resource, ())
        return max((writer.time for writer in writers if writer.manager == FIELD_MANAGER), default=None)

    def warnings(self) -> tuple[str, ...]:
        """Return what is not as it should be, one line each."""
        state, where = self.member.state, f"{self.resource} on {self.member.name}"
        capacity, allocatable = state.capacity.get(self.resource), state.allocatable.get(self.resource)
        found = [] if self.member.ready else [f"node {self.member.name} is not Ready: its figures may be old"]
        if capacity != allocatable:
            found.append(
                f"{where}: allocatable {allocatable} differs from capacity {capacity}; the kubelet will settle it"
            )
        if self.requested > (quantity(allocatable) or 0):
            found.append(
                f"{where}: {self.requested} requested, {allocatable or 'none'} allocatable; a pod runs without its device"
            )
        return tuple(found)


async def members(connection: Connection) -> tuple[Member, ...]:
    """Return the Nodes of the cluster. Raises an `ApiError`."""
    return tuple([_member(item, connection.origin) async for item in list_all(connection, "/api/v1/nodes")])


def _member(item: Mapping[str, Any], origin: str) -> Member:
    state = node_state({"kind": "Node", **item}, origin=origin)
    conditions = (item.get("status") or {}).get("conditions") or ()
    try:
        ready = any(condition.get("type") == "Ready" and condition.get("status") == "True" for condition in conditions)
    except (AttributeError, TypeError) as error:
        raise Retry(f"the answer of {origin} is no Node: its conditions are of another form") from error
    return Member(name=str(item["metadata"].get("name")), state=state, ready=ready)


async def standings(connection: Connection) -> tuple[Standing, ...]:
    """Return every resource that devwatch advertises in the cluster, by node and name. Raises an `ApiError`."""
    nodes = [member for member in await members(connection) if member.owned]
    pods = await _pods_by_node(connection, {member.name for member in nodes}) if nodes else {}
    return tuple(
        Standing(member=member, resource=name, pods=_requesting(pods.get(member.name, ()), name))
        for member in sorted(nodes, key=lambda member: member.name)
        for name in member.owned
    )


async def _pods_by_node(connection: Connection, names: set[str]) -> dict[str, list[Pod]]:
    pods: dict[str, list[Pod]] = {}
    async for item in list_all(connection, "/api/v1/pods"):
        spec = item.get("spec")
        node = spec.get("nodeName") if isinstance(spec, dict) else None
        if isinstance(node, str) and node in names:
            pods.setdefault(node, []).append(pod_of(item))
    return pods


def _requesting(pods: Iterable[Pod], resource: str) -> tuple[Pod, ...]:
    return tuple(pod for pod in pods if pod.requests.get(resource) and not pod.finished)


def removal(state: NodeState) -> Changes:
    """Return the changes that take everything away that devwatch advertised, and the annotation itself.

    That is what a believed annotation owns, as far as devwatch wrote the counts: a key that anyone else put there is left alone.
    """
    if state.annotation is None:
        return {}
    ours = (name for name in state.memory() if state.removable(name) and not state.shows(name, None))
    return {**dict.fromkeys(ours), WHOLE: None}


def strange(state: NodeState) -> Sequence[str]:
    """Return the resources that the annotation lists and that are not devwatch's to remove."""
    shown = (name for name in state.listing() if not state.shows(name, None))
    return sorted(name for name in shown if not (state.believed and state.removable(name)))


def left(states: Mapping[str, NodeState], removed: Mapping[str, Changes]) -> Sequence[str]:
    """Return the Nodes on which something that was removed is back."""
    return [name for name, state in states.items() if state.annotation is not None or not state.reflects(removed[name])]
