"""Find departed devices in a certain scan: which of them are back, or may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from devwatch.core.departure import Departure, is_untouched
from devwatch.core.listing import Entry
from devwatch.core.matching import ids_of, match_remembered, match_replugged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.core.device import Device, Key
    from devwatch.core.scene import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Finder:
    """Finds the departed devices of one resource in a certain scan."""

    gone: Mapping[Entry, Departure]
    """The departed devices, by the entry that listed each."""
    here: AbstractSet[Key]
    """The registrations that are known devices of the resource, and so are not departed ones."""
    scene: Scene
    name: str
    """The resource."""

    def find(self) -> dict[Entry, Device]:
        """Return the present device for each departed one that is back, or may be.

        The cases, in this order; a device and an entry that one case has matched are not considered by the next:

        1. The registration never ended (`_still_registered`): a scan missed only the devnode.
        2. Devices that this resource claims or may claim.
        3. Devices that another resource certainly claims, for instance after a change of the configuration. The parts of a composite stick
           have the same ids, register one after another, and take over each other's names, so ids and name prove nothing here: a device
           of another resource is a departed one only if it has one of its links, as far as the links of both are known.

        A device is never a departed one that it was present beside, nor one that udev had handled before that one departed (`excluded`),
        unless the kubelet has it under the ID of that one; nor is it one that the kubelet has under another ID.
        """
        if not self.gone:
            return {}
        found = self._still_registered()
        own, foreign = self.scene.by_ownership(self.name)
        for devices in (own, foreign):
            rest = [device for device in devices if device not in found.values()]
            left = {entry: each for entry, each in self.gone.items() if entry not in found}
            excluded = {
                entry: each.excluded(rest, self._with_id(entry)) | self._with_other_id(entry)
                for entry, each in left.items()
            }
            if devices is foreign:
                excluded = {entry: excluded[entry] | each.unlinked(rest) for entry, each in left.items()}
            found |= self._match_departed(excluded, rest)
        return {**self._unidentified(), **found}

    def _unidentified(self) -> dict[Entry, Device]:
        """Return a device for each departed one that it may be: it has the same ids, and no ID yet."""
        unidentified = self.scene.unidentified(self.name)
        devices = {ids_of(Entry.of(each)): each for each in self.scene.devices if each.key in unidentified}
        return {entry: devices[ids_of(entry)] for entry in self.gone if ids_of(entry) in devices}

    def _with_id(self, entry: Entry) -> set[Key]:
        """Return the devices that the kubelet has under the ID of a departed one."""
        slots = self.scene.slots(self.name) if entry.id else {}
        return {key for key, slot in slots.items() if slot.id == entry.id}

    def _with_other_id(self, entry: Entry) -> set[Key]:
        """Return the devices that the kubelet has under another ID than a departed one: certainly others, where their IDs are known.

        An entry of a former daemon may be a device that got a new ID because udev reports another serial now; one with the same serial got
        it because it is another, or because it cannot be known which.
        """
        slots, listed = self.scene.slots(self.name) if entry.id else {}, {each.id for each in self.gone}
        observed = self.gone[entry].device is not None
        others = {key: slot for key, slot in slots.items() if slot.id != entry.id}
        return {
            key
            for key, slot in others.items()
            if observed or slot.id in listed or key in self.here or slot.identity.ids == ids_of(entry)
        }

    def _match_departed(
        self, excluded: Mapping[Entry, AbstractSet[Key]], devices: Sequence[Device]
    ) -> dict[Entry, Device]:
        """Match departed devices to `devices`, first by the rules for a replugged device, then by those for a former daemon's entry.

        A device without a complete record is accepted only if this resource claims it or may claim it, or if its ids are exactly those of
        the entry: otherwise a device of another resource could end the departure before its record is complete.
        """
        claimed, open_ = self.scene.claimed(self.name).keys(), self.scene.open(self.name)
        strangers = [device for device in devices if device.key not in self.here]
        # Among equal ones, the device that departed last is the most likely to be back.
        excluded = {entry: excluded[entry] for entry in sorted(excluded, key=lambda entry: -self.gone[entry].at)}
        found = {
            entry: device
            for entry, device in match_replugged(excluded, strangers, claimed).items()
            if device.complete or device.key in claimed | open_ or ids_of(entry) == ids_of(Entry.of(device))
        }
        rest = (entry for entry in excluded if self.gone[entry].device is None and entry not in found)
        return found | match_remembered({entry: excluded[entry] for entry in rest}, devices)

    def _still_registered(self) -> dict[Entry, Device]:
        """Return the departed devices whose registration is still present: udev, as far as known, has not handled it a second time."""
        here = {device.key: device for device in self.scene.devices}
        pairs = ((entry, each.device, here.get(each.device.key)) for entry, each in self.gone.items() if each.device)
        return {
            entry: now
            for entry, before, now in pairs
            if now is not None and is_untouched(before, now) and now.key not in self._with_other_id(entry)
        }
