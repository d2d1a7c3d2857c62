"""Which of the departed devices are back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from devwatch.core.departure import Departure, initialized_at
from devwatch.core.listing import Entry
from devwatch.core.matching import ids_of, match_remembered, match_replugged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.core.device import Device, Key
    from devwatch.core.scene import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Finder:
    """Looks for the departed devices of one resource in a certain scan."""

    gone: Mapping[Entry, Departure]
    here: AbstractSet[Key]
    """The registrations that are known to be other devices."""
    scene: Scene
    name: str
    open: AbstractSet[Key]
    """The registrations of which it is unknown whether the resource has them."""

    def find(self, claimed: AbstractSet[Key]) -> dict[Entry, Device]:
        """Return the present devices that are, or may be, gone ones; those that another resource surely has come last.

        The parts of a stick have the same ids, come one after the other, and take over each other's names: what another resource has is a
        device that this daemon has seen here only if it has a link of it.
        """
        if not self.gone:
            return {}
        found = self._unchanged()
        own, foreign = self.scene.by_ownership(self.name)
        for devices in (own, foreign):
            rest = [device for device in devices if device not in found.values()]
            left = {entry: each for entry, each in self.gone.items() if entry not in found}
            others = {entry: each.others | each.excluded(rest) for entry, each in left.items()}
            if devices is foreign:
                others = {entry: others[entry] | each.unlinked(rest) for entry, each in left.items()}
            found |= self._match(others, rest, claimed)
        return found

    def _match(
        self,
        others: Mapping[Entry, AbstractSet[Key]],
        devices: Sequence[Device],
        claimed: AbstractSet[Key],
    ) -> dict[Entry, Device]:
        strangers = [device for device in devices if device.key not in self.here]
        # Of those that are alike, the one that went last is the likeliest to be back.
        others = {entry: others[entry] for entry in sorted(others, key=lambda entry: -self.gone[entry].at)}
        found = {
            entry: device
            for entry, device in match_replugged(others, strangers, claimed).items()
            if device.complete or device.key in {*self.open, *claimed} or ids_of(entry) == ids_of(Entry.of(device))
        }
        rest = (entry for entry in others if self.gone[entry].device is None and entry not in found)
        return found | match_remembered(rest, devices)

    def _unchanged(self) -> dict[Entry, Device]:
        """Return the devices of which a scan missed only the devnode: as far as is known udev has not handled the registration again."""
        here = {device.key: device for device in self.scene.devices}
        pairs = ((entry, departure.device) for entry, departure in self.gone.items())
        kept = {
            entry: (here[device.key], device) for entry, device in pairs if device is not None and device.key in here
        }
        return {
            entry: now
            for entry, (now, before) in kept.items()
            if None in {initialized_at(now), initialized_at(before)} or initialized_at(now) == initialized_at(before)
        }
