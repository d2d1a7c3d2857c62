"""The input of one cycle of the loop."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from devwatch.core.matching import ids_of
from devwatch.core.slots import SlotState

if TYPE_CHECKING:
    from devwatch.core.device import Device, Key
    from devwatch.core.inventory import Inventory
    from devwatch.core.listing import Entry
    from devwatch.core.node import NodeState
    from devwatch.core.plan import Figure, Figures
    from devwatch.core.slots import Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The input of one cycle of the loop: counts, devices, the observed Node and the times."""

    figures: Figures
    inventory: Inventory
    observed: NodeState | None
    now: float
    wall: float = 0.0
    """The time of this host in Unix seconds."""
    date: str = ""
    """The API server's time in its last answer (RFC 3339, seconds), empty before one."""

    def second(self, moment: float) -> int:
        """Return the Unix second of a monotonic time."""
        return int(self.wall - (self.now - moment))

    @property
    def devices(self) -> tuple[Device, ...]:
        """All devices on the host, arrived and pending."""
        return (*self.inventory.present, *self.inventory.pending)

    def figure(self, name: str) -> Figure:
        """Return the count of a resource."""
        return self.figures.by_name[name]

    def claimed(self, name: str) -> dict[Key, Device]:
        """Return the present devices that a resource claims, by registration."""
        return {device.key: device for device in self.figure(name).devices}

    def slots(self, name: str) -> dict[Key, Slot]:
        """Return the slots of the present devices that the kubelet hands over, by registration; none for another way of publishing."""
        figure = self.figure(name)
        handed_over = figure.slots if figure.amounts is not None and not figure.frozen else ()
        return {device.key: slot for slot in handed_over if slot.state is SlotState.PRESENT for device in slot.devices}

    def unidentified(self, name: str) -> set[Key]:
        """Return the registrations of devices that have no ID yet, where the kubelet hands devices over.

        Either its own record is not complete, or that of another device that may be its twin.
        """
        figure = self.figure(name)
        if figure.amounts is None:
            return set()
        incomplete = {device.key for device in self.devices if not device.complete}
        waiting = () if figure.frozen else self.claimed(name)
        return incomplete.union(waiting) - self.slots(name).keys()

    def fits_several(self, name: str, entry: Entry) -> bool:
        """Return whether several present devices, to which the kubelet gives IDs of their own, have the ids of an entry with an ID."""
        slots = {slot.id: slot.identity for slot in self.slots(name).values() if entry.id}
        fits = [
            each
            for each in slots.values()
            if (each.ids, each.place) == (ids_of(entry), entry.place or "") and each.is_portable
        ]
        return entry.id not in slots and len(fits) > 1

    def shows(self, name: str) -> bool:
        """Return whether both maps of the Node show the advertised count of a resource."""
        return self.observed is not None and self.observed.shows(name, self.figure(name).shown)

    def by_ownership(self, name: str) -> tuple[list[Device], list[Device]]:
        """Return the devices of its subsystem that a resource has or may have, and separately those that another one certainly has."""
        foreign = {device for device, claim in self.figures.claims.items() if claim.owner not in {None, name}}
        devices = self._devices_like(name)
        return [each for each in devices if each not in foreign], [each for each in devices if each in foreign]

    def open(self, name: str) -> set[Key]:
        """Return the registrations of which it is unknown whether the resource claims them, and those that have not arrived yet."""
        claims = self.figures.claims
        # A device that another resource certainly has is not open, even without a record.
        devices = self._devices_like(name)
        unknown = (device for device in devices if not device.complete and claims[device].owner is None)
        doubtful = (device for device in devices if name in claims[device].doubtful)
        pending = (device for device in self.inventory.pending if claims[device].owner == name)
        return {device.key for device in chain(unknown, doubtful, pending)} - self.claimed(name).keys()

    def _devices_like(self, name: str) -> list[Device]:
        """Return the devices of the subsystem of a resource: a whole USB device has the ids of its parts."""
        subsystem = self.figure(name).subsystem
        return [device for device in self.devices if device.subsystem == subsystem]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousScan:
    """The last certain scan."""

    at: float = float("-inf")
    devices: tuple[Device, ...] = ()
    began: float = float("inf")
    """The time of the first certain scan."""
