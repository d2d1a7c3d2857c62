"""The publisher of `devicePlugin`: hands devices over to the kubelet, which gives them to pods."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from devwatch.agent.pluginreport import PluginReport
from devwatch.agent.registration import Registration
from devwatch.core.errors import KubeletError
from devwatch.core.handover import Handover, Offer, link_names, links_of
from devwatch.core.listing import parse_omitted
from devwatch.core.node import Amounts, NodeState
from devwatch.core.rules import Publish
from devwatch.core.slots import SlotState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from devwatch.agent.clock import Clock
    from devwatch.agent.registration import KubeletApi
    from devwatch.agent.report import Telemetry
    from devwatch.core.holders import Holding
    from devwatch.core.inventory import Inventory
    from devwatch.core.plan import Figure
    from devwatch.core.rules import ResourceRule
    from devwatch.core.slots import Slot

LEAVE_TIMEOUT = 3.0
"""Seconds that a kubelet may take over an empty list before its stream ends all the same."""


class DevicePlugins:
    """Registers every resource with `publish: devicePlugin`, and keeps it registered.

    It promises:

    - *never fails a pod that could run*: the Node shows no figure that the kubelet does not compute from the list that it has taken over;
      a rise is list, acknowledgement, PATCH, a fall is PATCH, list;
    - *never another's device*: a container that starts again opens the device that it was given, under whatever name it has, or nothing;
    - *level, not edge*: whatever ended the stream, and whichever side started again, the same steps lead to the same state;
    - a kubelet that hangs, refuses or is away stops nothing else.
    """

    def __init__(self, connect: Callable[[], KubeletApi], *, telemetry: Telemetry, clock: Clock) -> None:
        """Start without resources. `connect` is called for the first of them, and raises a `KubeletError`."""
        self._connect, self._clock = connect, clock
        self._kubelet: KubeletApi | None = None
        self.names = frozenset[str]()
        """The resources that are registered, or are to be."""
        self.foreign = frozenset[str]()
        """The resources that are no longer handed over, and that another plugin had when they left."""
        self._registrations: dict[str, Registration] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._ready = asyncio.Event()
        """Set once the links are right and the IDs of a former daemon are known: no resource registers before."""
        self._linked: dict[str, str] = {}
        """The links that are right, by name with the devnode."""
        self._leaving: dict[str, float] = {}
        """By resource that is no longer handed over: when its stream ends even if the kubelet has not taken over that it has no device."""
        self.report = PluginReport(telemetry=telemetry)

    # -- the interface to the loop

    def follow(self, group: asyncio.TaskGroup) -> None:
        """Register in the background."""
        self._group = group
        for name in self._registrations:
            self._start(name)

    @property
    def active(self) -> bool:
        """Whether there is a resource to hand over, or one may have been: its links are still kept right, and its stream ends."""
        return bool(self.names) or self._kubelet is not None

    def register(self, rules: Iterable[ResourceRule], observed: NodeState) -> None:
        """Register exactly those of these resources that device plugins hand over."""
        mine = {rule.name: rule for rule in rules if rule.publish is Publish.DEVICE_PLUGIN}
        self.names = frozenset(mine)
        left = self._registrations.keys() - mine.keys()
        self.foreign |= {name for name in left if self._registrations[name].handover.contested}
        self.foreign -= mine.keys()
        for name in left:
            self._leaving.setdefault(name, self._clock.now() + LEAVE_TIMEOUT)
        self._leaving = {name: at for name, at in self._leaving.items() if name not in mine}
        self._leave(observed, self._clock.now())
        if not mine:
            self.report.fault = ""
        if not mine or (kubelet := self._reach()) is None:
            return
        for name, rule in mine.items():
            if name in self._registrations:
                self._registrations[name].rule = rule
            else:
                self._add(rule, kubelet)

    def socket(self) -> object:
        """Return what tells a start of the kubelet from the next, None where it is not to be reached."""
        kubelet = self._reach()
        return kubelet.socket() if kubelet else None

    def _reach(self) -> KubeletApi | None:
        try:
            self._kubelet = self._kubelet or self._connect()
        except KubeletError as error:
            self.report.unreachable(error)
        return self._kubelet

    def _add(self, rule: ResourceRule, kubelet: KubeletApi) -> None:
        handover = Handover(lost_at=self._clock.now())
        self._registrations[rule.name] = Registration(
            rule=rule, handover=handover, kubelet=kubelet, clock=self._clock, report=self.report
        )
        self._start(rule.name)

    def _start(self, name: str) -> None:
        if self._group is not None:
            former = self._tasks.get(name)
            self._tasks[name] = self._group.create_task(self._run(self._registrations[name], former))

    async def _run(self, registration: Registration, former: asyncio.Task[None] | None) -> None:
        """Register, after the stream of a former registration of the resource has ended: the two have one socket."""
        if former is not None:
            await asyncio.wait({former})
            del former  # it keeps what it ended with, and the one before it
        await registration.run(self._ready)

    def update(
        self,
        figures: Mapping[str, Figure],
        inventory: Inventory,
        observed: NodeState | None,
        held: dict[str, dict[str, tuple[str, str]]],
        *,
        former: Mapping[str, Sequence[Slot]],
    ) -> dict[str, Figure]:
        """Set the links and the lists, and return the figures with those that the Node should show.

        `held` are by resource the devices that a pod may have under another name; those that are offered all the same are removed from it.
        `former` are the slots of resources that are not handed over any more: containers that start again still need their links.
        """
        slots = {name: figures[name].slots for name in self.names & self._registrations.keys()}
        linked = self._update_links({**former, **slots}, inventory, known=observed is not None)
        if linked and observed is not None and not inventory.doubts:
            self._ready.set()
        waiting = {device.body for device in inventory.pending} | self._unstored(slots, observed)
        # Without a registration, as where the libraries are missing, nothing is offered.
        shown = {name: replace(figure, amounts=Amounts.of(0)) for name, figure in figures.items()}
        # Before the annotation is read it is unknown which devices pods have under another name.
        for name, own in slots.items() if observed is not None else ():
            registration = self._registrations[name]
            offer = registration.offer(own, waiting, held[name], self._linked)
            amounts = registration.update(offer, observed or NodeState(), self._clock.now())
            shown[name] = replace(shown[name], amounts=amounts)
            held[name] = {key: before for key, before in held[name].items() if key not in offer.ids}
        self.report.state({name: self._registrations[name] for name in slots})
        return shown

    def _unstored(self, slots: Mapping[str, Sequence[Slot]], observed: NodeState | None) -> set[str]:
        """Return the twins, by physical device, that wait for the annotation: after a restart it alone tells which of them has which ID."""
        new = [
            (name, slot)
            for name, own in slots.items()
            for slot in own
            if slot.is_twin and slot.id not in self._registrations[name].handover.desired.ids
        ]
        if not new or observed is None:
            return set()
        memory = observed.memory()
        stored = {entry.id for entries in memory.values() for entry in entries}
        # A list that is cut may never have it, nor may a Node whose annotation is refused.
        cut = parse_omitted(observed.annotation or "").keys() if memory else slots.keys()
        return {each.body for name, slot in new if name not in cut and slot.id not in stored for each in slot.devices}

    def _leave(self, observed: NodeState, now: float) -> None:
        """End the streams of resources that are no longer handed over, once the kubelet has taken over that they have no device.

        For 5 minutes it goes on with the figures of the last list: of a stream that ends with devices it would write these, as unhealthy.
        """
        for name, limit in list(self._leaving.items()):
            registration = self._registrations[name]
            registration.update(Offer(), observed, now)
            handover = registration.handover
            gone = handover.confirmed and handover.provable and handover.sent == Offer()
            if gone or not handover.registered or now >= limit:
                del self._registrations[name], self._leaving[name]
                if name in self._tasks:
                    self._tasks[name].cancel()
                self.report.state(self._registrations)

    def changes_at(self, now: float) -> float | None:
        """Return when a list or a figure changes without a further event, None for never."""
        changes = (registration.handover.changes_at(now) for registration in self._registrations.values())
        return min((at for at in (*changes, *self._leaving.values()) if at is not None), default=None)

    def end(self) -> bool:
        """Let the Node show that nothing can be allocated, since the streams are about to end; return whether there are any."""
        for registration in self._registrations.values():
            registration.handover.ending = True
        return bool(self._registrations)

    # -- the links

    def _update_links(self, slots: Mapping[str, Sequence[Slot]], inventory: Inventory, *, known: bool) -> bool:
        """Make the links of the present devices, and return whether they are right.

        Until the IDs of a former daemon are `known`, none is made, and what is wrong is removed.

        After an uncertain scan a link that was right before stays for a device that it did not find, unless another has its devnode by now.
        """
        if self._kubelet is None:
            return False
        taken = {device.devnode for device in (*inventory.present, *inventory.pending)}
        wanted: dict[str, str] = {}
        for slot in chain.from_iterable(slots.values()):
            if slot.state is SlotState.PRESENT:
                wanted |= link_names(slot)
            elif inventory.doubts:
                kept = self._linked.keys() & links_of((slot,), {})[slot.id]
                wanted |= {name: self._linked[name] for name in kept if self._linked[name] not in taken}
        try:
            self._kubelet.links.update(wanted, make=known)
        except KubeletError as error:
            self._linked = {name: devnode for name, devnode in self._linked.items() if wanted.get(name) == devnode}
            if slots:  # else nothing needs the folder
                self.report.limited(error)
            return False
        self._linked = wanted if known else {}
        self.report.linked()
        return True

    def can_allocate(self, resource: str, ids: frozenset[str]) -> bool:
        """Return whether the kubelet may still give one of these devices to a pod: its list has them as healthy."""
        registration = self._registrations.get(resource)
        return registration is not None and registration.handover.can_allocate(ids)

    async def holdings(self) -> tuple[Holding, ...]:
        """Return which pods hold devices. Raises `KubeletError`."""
        if (kubelet := self._reach()) is None:
            raise KubeletError(self.report.fault)
        return await kubelet.holdings()
