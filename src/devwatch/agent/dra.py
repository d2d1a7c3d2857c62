"""The publisher of `dra`: a slice offers the devices, and a driver prepares the claims that were allocated from it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from devwatch.agent.pluginreport import DriverCondition
from devwatch.core.slices import is_allocatable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from devwatch.agent.claims import ClaimDriver
    from devwatch.agent.requests import Tasks
    from devwatch.agent.resourceslices import ResourceSlices
    from devwatch.core.inventory import Inventory
    from devwatch.core.node import NodeState
    from devwatch.core.rules import ResourceRule
    from devwatch.core.slots import Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class DraParts:
    """The two halves of the driver."""

    claims: ClaimDriver
    slices: ResourceSlices


class Dra:
    """Publishes the devices of all resources with `publish: dra`, and prepares their claims.

    Without such a resource, and without a claim of a former daemon, nothing is loaded, served or requested.
    """

    def __init__(
        self, build: Callable[[], DraParts] | None = None, *, recorded: Callable[[], bool] = lambda: False
    ) -> None:
        """Start without resources.

        `build` is called for the first of them, or where a former daemon has `recorded` claims; without it nothing is ever published.
        """
        self._build, self._recorded = build, recorded
        self._parts: DraParts | None = None
        self._follow: tuple[asyncio.TaskGroup, Callable[[str], None]] | None = None
        self._rules: tuple[ResourceRule, ...] | None = None
        self._former = False
        self.paths: Mapping[str, str] = {}
        """By resource of this node, however it is published: the path of its first devnode in a container."""
        self._known = set[str]()
        """Every ID that was published, by a former daemon too."""
        self._starts = 0
        """How often the kubelet had registered the driver when the slice was decided last."""

    @property
    def names(self) -> frozenset[str]:
        """The resources that are published so."""
        return frozenset(rule.name for rule in self._rules or ())

    @property
    def active(self) -> bool:
        """Whether there are, or were, such resources or claims."""
        return self._parts is not None

    def follow(self, group: asyncio.TaskGroup, wake: Callable[[str], None]) -> None:
        """Register and watch in the background, and wake the loop at each change."""
        self._follow = group, wake
        if self._parts is not None:
            self._parts.claims.follow(group, wake)
            self._parts.slices.follow(group, wake)

    def configure(self, rules: Iterable[ResourceRule], *, former: bool = False) -> None:
        """Set the resources that are published so; `former` is whether pods may have claims of others that were."""
        rules, before = tuple(rules), (self._rules, self._former)
        self._rules, self._former = rules, former
        if self._build and not self._parts and (rules or former or (before[0] is None and self._recorded())):
            self._parts = self._build()
            if self._follow is not None:
                self.follow(*self._follow)
        if self._parts is not None and (rules, former) != before:
            self._parts.claims.configure(rules, former=former)

    def recall(self) -> Mapping[str, tuple[Slot, ...]]:
        """Return the slots that the claims tell of, by resource."""
        return self._parts.claims.claims.recall() if self._parts else {}

    def claimed(self, ids: frozenset[str]) -> frozenset[str]:
        """Return those of these devices that a claim has, all that were published where the record is unknown."""
        if self._parts is None:
            return frozenset()
        held = self._parts.claims.held
        return ids & (frozenset(self._known) if held is None else frozenset().union(*held.values()))

    def withheld(self, held: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
        """Return those of these devices that are not to be offered: a pod may have them under another name.

        What a claim has, or the slice offers already, maybe of a former daemon, was found to be free before.
        """
        observed = self._parts.slices.observed.by_name if self._parts else None
        slices, kept = (observed or {}).values(), self.claimed(frozenset(held))
        return {name: other for name, other in held.items() if name not in kept and not is_allocatable(name, slices)}

    def update(  # noqa: PLR0913 - what is known besides the slots, by keyword
        self,
        offered: Mapping[str, Sequence[Slot]],
        former: Mapping[str, Sequence[Slot]],
        inventory: Inventory,
        observed: NodeState | None,
        now: float,
        *,
        hold: bool,
    ) -> None:
        """Process a scan: the slots that are offered, and `former` ones, which claims may still have.

        With `hold` the slice stays as it is: it is not known yet what else may be offered.
        Before the Node was observed nothing is published: its annotation has the IDs of a former daemon.
        """
        if self._parts is None:
            return
        claims, slices = self._parts.claims, self._parts.slices
        slots = {**former, **offered}
        if observed is None:
            claims.begin(slots, inventory)
            return
        if claims.registration.starts != self._starts:
            self._starts = claims.registration.starts
            slices.begin_again()
        self._known.update(slot.id for slot in chain.from_iterable(slots.values()))
        claims.update(slots, inventory, self.paths)
        if hold:
            slices.hold()
        else:
            held = claims.held or {}
            slices.update(offered, observed.uid, now, held=frozenset().union(*held.values()))

    @property
    def tasks(self) -> tuple[Tasks, ...]:
        """The writes of the slice, and the reading of claims."""
        return (self._parts.slices, *self._parts.claims.tasks) if self._parts else ()

    @property
    def condition(self) -> DriverCondition | None:
        """How far kubelet and API server have what is published, None where nothing ever was."""
        if self._parts is None:
            return None
        claims, slices = self._parts.claims, self._parts.slices
        refusal = f"the ResourceSlice is refused: {slices.failure}" if slices.refused else ""
        return DriverCondition(
            resources=self.names,
            unregistered=claims.registration.unregistered,
            unpublished=None if slices.differs_since is None else (slices.differs_since, slices.failure),
            fault=(claims.claims.fault if self._rules or self._former or claims.held != {} else "") or refusal,
        )

    def is_offered(self, resource: str) -> bool:
        """Return whether the scheduler may still allocate some device of a resource."""
        return self._parts is not None and not self._parts.slices.observed.is_without(resource)

    def can_allocate(self, ids: frozenset[str]) -> bool:
        """Return whether the scheduler may still allocate one of these devices."""
        return self._parts is not None and not all(map(self._parts.slices.observed.cut, ids & self._known))

    def spared(self, ids: frozenset[str]) -> frozenset[tuple[str, str]]:
        """Return the claims, by namespace and name, that tolerate the loss of each of these devices that they have."""
        claims = self._parts.claims.holders if self._parts else ()
        found = {each.reference: [device.spared for device in each.held if device.id in ids] for each in claims}
        return frozenset((claim.namespace, claim.name) for claim, spared in found.items() if spared and all(spared))

    def administered(self, namespace: str, name: str) -> frozenset[str] | None:
        """Return the IDs of the devices that a claim has without a hold (`core.claims.administered`), None where that is not known."""
        if self._parts and self._parts.claims.held is None:
            return None
        return self._parts.claims.claims.administered(namespace, name) if self._parts else frozenset()
