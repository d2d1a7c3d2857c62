"""The resources of the cluster as `status` shows them: how each is published, which pods request it, who keeps what, and its problems."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

from devwatch.core.classes import class_names
from devwatch.core.node import FIELD_MANAGER
from devwatch.core.rules import Publish
from devwatch.core.slices import slice_name
from devwatch.core.way import joined, way_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.core.claims import ClaimSummary
    from devwatch.core.listing import Entry
    from devwatch.core.node import Amounts, NodeState
    from devwatch.core.pods import Pod

    PodsByNode = Mapping[str | None, Sequence[Pod]]
    ClaimKey = tuple[str, str]
    """The namespace and name of a ResourceClaim."""
    Reservations = Mapping[tuple[str, str], AbstractSet[str]]
    """By pool and ID of a device that a ResourceClaim has: the pods that the claim is reserved for, as `NAMESPACE/NAME`."""
    Offers = Mapping[str, AbstractSet[str]]
    """By node: the IDs of the devices that its ResourceSlices offer."""

_SOURCE = " (the log of its daemon says which)"
"""Where to look for which of several causes it is."""


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
    """The unfinished pods that request it, or request or have it through a claim, None without the permission to list pods."""
    reserved: Mapping[str, AbstractSet[str]] | None = None
    """With `dra`, by ID: the pods that a claim reserves the device for, None where the claims are unknown."""
    offered: AbstractSet[str] | None = None
    """With `dra`: the IDs of the devices that the Node's slices offer, None where the slices are unknown."""
    unreserved: Mapping[ClaimKey, int] = field(default_factory=dict)
    """By claim of a pod that it is not reserved for yet: how many devices it requests."""
    waiting: tuple[Pod, ...] = ()
    """The pods that request it and are not bound to any Node."""
    mixed: str = ""
    """Where it is published in which way, empty where it is published in one way on all Nodes."""
    unadvertised: bool = False
    """Whether no Node has it in capacity or allocatable."""
    nearest: str | None = None
    """For a name that no Node has: the advertised name that was probably meant, None where none is similar."""
    most: int = 0
    """The largest allocatable of one Node."""

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
        """The requests, and what pods have or request only through a claim; None without the permission to list pods."""
        if self.pods is None:
            return None
        claiming = [self.ids(pod) for pod in self.pods if self.resource not in pod.requests]
        requests = sum(pod.requests.get(self.resource, 0) for pod in self.pods)
        return requests + len(frozenset().union(*claiming)) + sum(self.unreserved.values())

    @property
    def owned(self) -> bool:
        """Whether devwatch advertises it on this Node."""
        return self.summary is not None and self.resource in self.summary.state.listing()

    @property
    def devices(self) -> tuple[Entry, ...]:
        """The devnodes behind it, as the Node's annotation lists them; an entry that only tells the way of publishing is not one."""
        return tuple(entry for entry in self._entries if entry.devnode)

    @property
    def distinct(self) -> tuple[Entry, ...]:
        """The first devnode of each device: the kubelet hands several over under one ID."""
        return tuple({_key(entry): entry for entry in reversed(self.devices)}.values())[::-1]

    @property
    def publish(self) -> str | None:
        """How it is published, None where devwatch does not advertise it."""
        return way_of(self._entries).value if self.owned else None

    @property
    def changed(self) -> str | None:
        """When devwatch last changed it (RFC 3339), None where the server has no record of that in managedFields."""
        writers = self.summary.state.writers.get(self.resource, ()) if self.summary else ()
        return max((writer.time for writer in writers if writer.manager == FIELD_MANAGER), default=None)

    def holders(self, entry: Entry) -> tuple[str, ...] | None:
        """Return the pods that hold the device, None where that is unknown.

        With `dra` the claims say it, else the status of each pod, in which kubelets before 1.36 do not name its devices.
        """
        if self._is_dra:
            return None if self.reserved is None else tuple(sorted(self.reserved.get(entry.id or "", ())))
        if entry.id is None or self.pods is None:
            return None
        named = tuple(pod.title for pod in self.pods if entry.id in self.ids(pod))
        return named if named or all(map(self.ids, self.pods)) else None

    def ids(self, pod: Pod) -> frozenset[str]:
        """Return the IDs of devices of this resource that the status of a pod names, or with `dra` its claims."""
        if self._is_dra:
            return frozenset(name for name, titles in (self.reserved or {}).items() if pod.title in titles)
        return pod.devices.get(self.resource, frozenset())

    def warnings(self) -> tuple[str, ...]:
        """Return the problems of this resource, one line each."""
        if self.unadvertised:
            nearest = f"; the nearest name that one has: {self.nearest}" if self.nearest else ""
            return (f"{self.resource} is requested, and no node has it in its capacity{nearest}",)
        return tuple(self._warnings_on(self.summary) if self.summary else self._excessive())

    def _excessive(self) -> Iterator[str]:
        """Yield which pods wait for more devices than any Node has. A Node with none says so itself: that of `dra` always has 0."""
        for pod in self.waiting if self.most else ():
            if (count := pod.requests.get(self.resource, 0)) > self.most:
                yield f"{pod.title} requests {count} of {self.resource}, all from one node, and no node has more than {self.most}"

    def _warnings_on(self, node: NodeSummary) -> Iterator[str]:
        amounts, where = node.state.amounts(self.resource), f"{self.resource} on {node.name}"
        handed_over = self.publish == Publish.DEVICE_PLUGIN.value
        if not node.ready:
            yield f"node {node.name} is not Ready: its figures may be old"
        if self.mixed:
            yield self.mixed
        if self._is_dra:  # its devices are in a ResourceSlice, and both figures are 0
            yield from (f"{where}: {text}" for text in (*self._unoffered(), *self._kept_by_claims()))
            return
        if self.capacity != self.allocatable and not (handed_over and amounts.capacity >= amounts.allocatable):
            text = f"allocatable {self.allocatable} differs from capacity {self.capacity}; the kubelet will settle it"
            yield f"{where}: {text}"
        withheld = self._withheld(amounts, handed_over=handed_over)
        if withheld:
            yield f"{where}: {withheld}"
        elif (self.requested or 0) > (amounts.capacity if handed_over else amounts.allocatable):
            yield f"{where}: {self.requested} requested, {self.allocatable or 'none'} allocatable; a pod runs without its device"
        if handed_over and (kept := self._kept(amounts)):
            yield f"{where}: {kept}"

    def _withheld(self, amounts: Amounts, *, handed_over: bool) -> str:
        """Return why none of the devices that are listed as present can be allocated; empty where one can, or none is listed."""
        present = len(self._present)
        if amounts.allocatable or not present:
            return ""
        if amounts.capacity:
            lost = f"nothing can be allocated: it is not registered with the kubelet, or its devices are lost{_SOURCE}"
            return lost if handed_over else ""
        cause = "it has left the configuration, its publish or count changes, or a pod has it under a former name"
        cause = f"it is not registered with the kubelet, {cause}" if handed_over else cause
        return f"{_number(present)} listed, and none is advertised: {cause}{_SOURCE}{self._ends}"

    def _unoffered(self) -> Iterator[str]:
        """Yield how many present devices the slice lacks; nothing where it has all of them."""
        if missing := 0 if self.offered is None else len(self._present - self.offered):
            cause = "its publish or count changes, or the API server has refused the slice"
            yield f"{_number(missing)} listed, and not offered by the ResourceSlice: {cause}{self._ends}"

    @property
    def _ends(self) -> str:
        return f" and waits for the end of {_titles(self.pods)}" if self.pods else ""

    def _kept(self, amounts: Amounts) -> str:
        """Return which lost devices pods keep, and how many present ones cannot be allocated because of that; empty without any.

        The kubelet counts a lost device that a pod has in capacity and not in allocatable. The scheduler subtracts the request of that pod
        from allocatable, which is made of the present ones: so it blocks one of them.
        """
        lost = {_key(entry): label(entry) for entry in self.devices if _key(entry) not in self._present}
        missing = max(amounts.capacity - amounts.allocatable, 0)
        # Without a registration nothing is allocatable, whether or not it is lost.
        kept = missing if amounts.allocatable or not self._present else min(missing, len(lost))
        if not kept:
            return ""
        requested = self.requested or 0
        free = max(amounts.allocatable + kept - requested, 0) if self.pods else 0
        blocked = min(free - max(amounts.allocatable - requested, 0), kept)
        waiting = f" (waiting: {_titles(self.waiting)})" if self.waiting else ""
        blocks = f", so {_number(blocked)} present and cannot be allocated{waiting}" if blocked > 0 else ""
        named = {name: text for name, text in lost.items() if any(name in self.ids(pod) for pod in self.pods or ())}
        texts = sorted((named or lost).values())
        what = f"{joined(texts)} {'is' if kept == 1 else 'are'}" if len(texts) == kept else _number(kept)
        if self.pods == ():
            return f"{what} lost, and no pod requests it: the log of its daemon says why it stays"
        keepers = self._keepers(named.keys(), kept)
        return f"{what} lost and kept by {keepers}{blocks}: end that pod, or plug the device in again"

    def _kept_by_claims(self) -> Iterator[str]:
        """Yield which lost devices pods keep. They block no present one: each claim is for certain devices."""
        for entry in self.distinct:
            if entry.lost and (keepers := self.holders(entry)):
                end = "end that pod" if len(keepers) == 1 else "end these pods"
                yield f"{label(entry)} is lost and kept by {joined(keepers)}: {end}, or plug the device in again"

    def _keepers(self, lost: AbstractSet[str], kept: int) -> str:
        """Name the pods that keep lost devices: those whose status names one of `lost`, else those that may."""
        if not self.pods:
            return "a pod that is not shown"
        named = [pod for pod in self.pods if self.ids(pod) & lost]
        silent = [pod for pod in self.pods if not self.ids(pod)]
        pods = named or silent or self.pods
        return f"{'one of ' if len(pods) > kept else ''}{_titles(pods)}"

    @property
    def _is_dra(self) -> bool:
        return self.publish == Publish.DRA.value

    @property
    def _entries(self) -> tuple[Entry, ...]:
        return self.summary.state.listing().get(self.resource, ()) if self.summary else ()

    @property
    def _present(self) -> AbstractSet[str]:
        return {_key(entry) for entry in self.devices if not entry.lost}


def label(entry: Entry) -> str:
    """Return the shortest name by which users know a device."""
    return entry.serial or entry.link or entry.devnode


def _key(entry: Entry) -> str:
    """Return what the devnodes of one device that the kubelet hands over have in common."""
    return entry.id or entry.devnode


def _titles(pods: Sequence[Pod]) -> str:
    return joined(sorted(pod.title for pod in pods))


def _number(count: int) -> str:
    return "1 device is" if count == 1 else f"{count} devices are"


def resource_statuses(
    nodes: Mapping[str, NodeSummary],
    pods: PodsByNode | None,
    claims: Sequence[ClaimSummary] | None = None,
    offers: Offers | None = None,
) -> tuple[ResourceStatus, ...]:
    """Return every resource that devwatch advertises on these Nodes, and the requests of pods for it or for what no Node has.

    They are in the order of node and name; those without a node come last. `pods` are the unfinished ones, None where they are unknown;
    likewise the `claims` and the `offers` of slices.
    """
    owned = {name for node in nodes.values() for name in node.owned}
    shown = owned.union(*(node.shown for node in nodes.values()))
    rows: dict[tuple[str, str], list[Pod]] = {(node, name): [] for node in nodes for name in nodes[node].owned}
    reservations = None if claims is None else _reservations(claims)
    reserved = {(node, name): _reserved(nodes[node], name, reservations) for node, name in rows}
    requested = _by_resource(claims or (), nodes.values())
    for node in (None, *nodes):
        for pod in (pods or {}).get(node, ()):
            requests = _relevant_requests(pod, nodes[node] if node else None, owned, shown)
            claimed = (row[1] for row, found in reserved.items() if row[0] == node and _has_any(pod, found))
            for name in dict.fromkeys((*requests, *claimed, *_unreserved([pod], requested))):
                rows.setdefault((node or "", name), []).append(pod)
    mixed = {name: _mixed(name, nodes.values()) for name in owned}
    return tuple(
        ResourceStatus(
            summary=nodes.get(node),
            resource=name,
            pods=None if pods is None else tuple(requesting),
            reserved=reserved.get((node, name)),
            offered=None if offers is None else offers.get(node, frozenset()),
            unreserved=_unreserved(requesting, requested).get(name, {}),
            waiting=tuple(rows.get(("", name), ())),
            mixed=mixed.get(name, ""),
            unadvertised=name not in shown,
            most=max((each.state.amounts(name).allocatable for each in nodes.values()), default=0),
            nearest=None if name in shown else next(iter(get_close_matches(name, sorted(owned), n=1)), None),
        )
        for (node, name), requesting in sorted(rows.items(), key=lambda row: (not row[0][0], row[0]))
    )


def _reservations(claims: Iterable[ClaimSummary]) -> Reservations:
    found: dict[tuple[str, str], set[str]] = {}
    for claim in claims:
        for device in claim.devices:
            found.setdefault(device, set()).update(claim.pods)
    return found


def _reserved(node: NodeSummary, name: str, reservations: Reservations | None) -> Mapping[str, AbstractSet[str]] | None:
    """Return by ID the pods that the devices of a resource are reserved for, None where that is unknown."""
    if reservations is None:
        return None
    ids = {entry.id for entry in node.state.listing()[name] if entry.id and entry.publish == Publish.DRA.value}
    return {each: reservations.get((slice_name(node.name), each), frozenset()) for each in sorted(ids)}


def _by_resource(claims: Iterable[ClaimSummary], nodes: Iterable[NodeSummary]) -> Mapping[ClaimKey, ClaimSummary]:
    """Return the claims with what they request by resource, of those that a Node publishes by slices, instead of by DeviceClass."""
    listings = [node.state.listing() for node in nodes]
    names = {name for each in listings for name, entries in each.items() if way_of(entries) is Publish.DRA}
    classes = {device_class: name for name, device_class in class_names(sorted(names))}
    return {
        (claim.namespace, claim.name): replace(
            claim, requested={classes[each]: count for each, count in claim.requested.items() if each in classes}
        )
        for claim in claims
    }


def _unreserved(pods: Iterable[Pod], claims: Mapping[ClaimKey, ClaimSummary]) -> dict[str, dict[ClaimKey, int]]:
    """Return by resource how many devices each claim requests that is not reserved for its pod: the pod waits for them.

    What a pod requests by `limits` as well is left out: for that the scheduler makes a claim.
    """
    found: dict[str, dict[ClaimKey, int]] = {}
    for pod in pods:
        keys = ((pod.namespace, name) for name in pod.claims)
        for key in (key for key in keys if key in claims and pod.title not in claims[key].pods):
            for name, count in claims[key].requested.items():
                if name not in pod.requests:
                    found.setdefault(name, {})[key] = count
    return found


def _has_any(pod: Pod, reserved: Mapping[str, AbstractSet[str]] | None) -> bool:
    return any(pod.title in titles for titles in (reserved or {}).values())


def _mixed(name: str, nodes: Iterable[NodeSummary]) -> str:
    """Return that a resource is published in several ways, with the nodes of each; empty where it is not."""
    ways: dict[str, list[str]] = {}
    for node in nodes:
        if name in node.owned:
            ways.setdefault(way_of(node.state.listing()[name]).value, []).append(node.name)
    if len(ways) < 2:  # noqa: PLR2004 - several
        return ""
    where = " and ".join(f"{way} on {joined(sorted(ways[way]))}" for way in sorted(ways))
    return f"{name} is published as {where}: a pod for one way does not find its device on the nodes of the other"


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
