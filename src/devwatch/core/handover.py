"""Decide what the kubelet is offered for a resource, when, and which figures the Node shows for it meanwhile. Time is an argument."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from devwatch.core.node import Amounts, NodeState
from devwatch.core.slots import SlotState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.core.rules import ResourceRule
    from devwatch.core.slots import Slot

FALL_LIMIT = 1.0
"""Seconds after which a device leaves the list of the kubelet although the Node does not show the lower figure yet."""
UNREGISTERED_LIMIT = 2.0
"""Seconds for which a registration may fail before the Node shows that nothing can be allocated: a pod that is bound meanwhile fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The list of devices of one resource for the kubelet: IDs by health."""

    healthy: frozenset[str] = frozenset()
    unhealthy: frozenset[str] = frozenset()
    """Lost devices that a pod holds. Without them the kubelet would report the pod's device as healthy."""

    @property
    def ids(self) -> frozenset[str]:
        """All IDs."""
        return self.healthy | self.unhealthy

    def common(self, other: Offer) -> Amounts:
        """Return the figures that both lists allow; of a list with itself, those that the kubelet computes from it."""
        both = self & other
        return Amounts(capacity=len(both.ids), allocatable=len(both.healthy))

    def __and__(self, other: Offer) -> Offer:
        """Return what both lists have; a device is healthy where it is so in both."""
        healthy = self.healthy & other.healthy
        return Offer(healthy=healthy, unhealthy=(self.ids & other.ids) - healthy)


def offer_of(slots: Iterable[Slot], ready: AbstractSet[str]) -> Offer:
    """Return the list for these slots; of the devices that can be used, only those in `ready`."""
    lost = {slot.id for slot in slots if slot.state is SlotState.HELD}
    return Offer(
        healthy=frozenset(slot.id for slot in slots if slot.id not in lost and slot.id in ready),
        unhealthy=frozenset(lost),
    )


@dataclass(slots=True, kw_only=True)
class Handover:
    """What one resource offers to the kubelet, and how far the kubelet has taken it over.

    | state | `sent` | `acked` | the figures of the Node |
    |---|---|---|---|
    | unregistered: no stream | None | None | not raised; after `UNREGISTERED_LIMIT` nothing is allocatable |
    | streaming: a list is not acknowledged | a list | None | as while unregistered |
    | registered | a list | a list | what the acknowledged and the desired list have in common |

    A *rise* therefore is list, acknowledgement, PATCH. A *fall* is PATCH, list: the former list stays until the Node shows the lower
    figure, for `FALL_LIMIT` at most. Otherwise the scheduler binds a pod that the kubelet refuses for good.
    """

    desired: Offer = field(default_factory=Offer)
    sent: Offer | None = None
    acked: Offer | None = None
    """What the kubelet has of all lists since the last one that it acknowledged, whichever of them it has taken over."""
    confirmed: bool = False
    """Whether the kubelet has taken over the last list."""
    provable: bool = True
    """Whether the healthy devices, which are all that the kubelet lists, tell the last list from the one before."""
    lost_at: float = float("-inf")
    """When the resource was registered last, or the attempts began; monotonic seconds."""
    contested: bool = False
    """Whether the kubelet lists other devices for the resource than this daemon: another plugin has registered it."""
    ending: bool = False
    """Whether the daemon is about to end its streams."""
    _fall_at: float | None = None
    _yielded: bool = False
    """Whether the Node has shown that nothing can be allocated since the resource is contested."""

    @property
    def registered(self) -> bool:
        """Whether a stream is open, and the first list of it was acknowledged."""
        return self.acked is not None

    def record_sent(self, offer: Offer) -> None:
        """Record that a list was sent on the stream."""
        before = self.sent or Offer()
        self.provable = offer.healthy != before.healthy or offer.ids == before.ids
        self.sent, self.confirmed, self._fall_at = offer, False, None
        self.acked = None if self.acked is None else self.acked & offer

    def record_taken(self, offer: Offer) -> None:
        """Record that the kubelet has taken over the last list."""
        self.acked, self.confirmed, self.contested = offer, True, False

    def can_allocate(self, ids: frozenset[str]) -> bool:
        """Return whether the kubelet may still give one of these devices to a pod."""
        return self.sent is not None and (not self.confirmed or bool(self.sent.healthy & ids))

    def closed(self, now: float) -> None:
        """Record that the stream has ended. One that was never acknowledged is no more than a failed attempt."""
        self.lost_at = now if self.registered else self.lost_at
        self.sent = self.acked = self._fall_at = None
        self.confirmed = False

    def next_list(self, observed: NodeState, resource: str, now: float) -> Offer:
        """Return the list that the stream should carry now."""
        if self.sent is None or self.sent.healthy <= self.desired.healthy:
            self._fall_at = None
            return self.desired
        self._fall_at = now if self._fall_at is None else self._fall_at
        shown = observed.shows(resource, self.amounts(observed, resource, now))
        return self.desired if shown or now >= self._fall_at + FALL_LIMIT else self.sent

    def amounts(self, observed: NodeState, resource: str, now: float) -> Amounts:
        """Return the figures that the Node should show."""
        shown = observed.amounts(resource)
        if self.contested:
            # The kubelet writes the figures of the other plugin at each of its updates: it is told once, and not fought.
            self._yielded = self._yielded or not shown.allocatable
            return shown if self._yielded else Amounts(capacity=shown.capacity, allocatable=0)
        self._yielded = False
        if self.acked is not None:
            figures = self.desired.common(self.acked)
        else:
            wanted = self.desired.common(self.desired)
            # Without a stream the kubelet writes the capacity of the last list that it had: lowering it would be a fight.
            capacity = shown.capacity if self.sent is None else min(shown.capacity, wanted.capacity)
            figures = Amounts(capacity=capacity, allocatable=min(shown.allocatable, wanted.allocatable))
        late = self.acked is None and now >= self.lost_at + UNREGISTERED_LIMIT
        return Amounts(capacity=figures.capacity, allocatable=0) if late or self.ending else figures

    def changes_at(self, now: float) -> float | None:
        """Return when the figures or the list change without a further event, None for never."""
        moments = (
            None if self.registered else self.lost_at + UNREGISTERED_LIMIT,
            None if self._fall_at is None else self._fall_at + FALL_LIMIT,
        )
        return min((moment for moment in moments if moment is not None and moment > now), default=None)


def link_names(slot: Slot) -> Iterator[tuple[str, str]]:
    """Yield the name of each link that is handed out for a device, and the devnode that it leads to; several devnodes are numbered."""
    devnodes = (device.devnode for device in slot.devices)
    yield from zip(_numbered(slot.id, len(slot.devices)), devnodes, strict=True)


def _numbered(name: str, devnodes: int) -> tuple[str, ...]:
    return tuple(f"{name}-{number}" if number else name for number in range(devnodes))


def links_of(slots: Iterable[Slot], known: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return by ID the names of the links of all devices; of an absent one those that are known, else as many as a former daemon listed."""
    return {
        slot.id: _numbered(slot.id, len(slot.devices))
        or known.get(slot.id)
        or _numbered(slot.id, len(slot.entries) or 1)
        for slot in slots
    }


def ready_ids(
    slots: Iterable[Slot],
    *,
    listed: AbstractSet[str],
    waiting: Collection[str],
    held: Collection[str],
    linked: Mapping[str, str],
) -> set[str]:
    """Return the devices that can be handed out: of the present ones those whose links are right (`linked`).

    Of the others those that were `listed` before, maybe by a former daemon. A new device waits while another devnode of it has not arrived
    (`waiting`, by physical device), and while a pod may have it under another name (`held`, by ID; see `held_elsewhere`).
    """
    return {
        slot.id
        for slot in slots
        if _is_usable(slot, listed, linked)
        and (slot.id in listed or not (slot.id in held or any(each.body in waiting for each in slot.devices)))
    }


def held_elsewhere(slots: Iterable[Slot], others: Iterable[tuple[str, Slot]]) -> dict[str, tuple[str, str]]:
    """Return the devices of a resource that a pod may have under another name, each with that resource and its ID there.

    `others` are the absent devices of other resources that a pod may have. One of them is not absent but this one where the configuration
    has given it to this resource: then it has a registration of it, or, after a start, its entry in the annotation names it; where no scan
    has found that one yet, both entries tell. That is so within the grace as well: a lingering device counts, so it could be given to a
    second pod. Of a USB device that a pod may have as a whole no part is free, nor the whole of one of which it may have a part.
    """
    counted = [slot for slot in slots if slot.state is not SlotState.HELD]
    return {
        slot.id: (name, other.id)
        for name, other in others
        for slot in counted
        if other.is_among(slot.devices) or other.is_other_kind_of(slot.devices) or other.may_be_listed_as(slot)
    }


def _is_usable(slot: Slot, listed: AbstractSet[str], linked: Mapping[str, str]) -> bool:
    if slot.state is SlotState.PRESENT:
        return dict(link_names(slot)).items() <= linked.items()
    return slot.id in listed or not slot.devices


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """What a container gets for the devices of one resource."""

    paths: Mapping[str, str]
    """By path in the container: the name of devwatch's link, or the devnode where that is handed out."""
    variables: Mapping[str, str]
    """Environment variables."""


def allocate(rule: ResourceRule, ids: Iterable[str], links: Mapping[str, Sequence[str]]) -> Allocation:
    """Return what a container gets for these devices, with the names of the `links` of each.

    The first devnode is at `container.path`, further ones at the path with a number appended.
    """
    return lay_out(rule.name, rule.container_path, chain.from_iterable(links[name] for name in sorted(ids)))


def lay_out(resource: str, path: str, names: Iterable[str]) -> Allocation:
    """Return what a container gets: the first of these names at the path, further ones at the path with a number appended."""
    placed = {f"{path}{number or ''}": name for number, name in enumerate(names)}
    return Allocation(paths=placed, variables={variable_of(resource): ",".join(placed)})


def variable_of(resource: str) -> str:
    """Return the environment variable that holds the paths of the devices of a resource."""
    return "DEVICE_" + re.sub(r"[^A-Z0-9]", "_", resource.upper())
