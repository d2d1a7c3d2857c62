"""Remember the devices that only uncertain scans have found: the kubelet may have given them to pods all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devwatch.core.departure import Departure
from devwatch.core.incidents import Registration
from devwatch.core.matching import may_be_twins

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from devwatch.core.device import Device, Key
    from devwatch.core.listing import Entry
    from devwatch.core.scene import Scene


class Glimpses:
    """The devices of one resource that have an ID, and that no certain scan has found yet."""

    def __init__(self) -> None:
        """Start with none."""
        self._seen: dict[Entry, Departure] = {}

    def note(self, found: Mapping[Entry, Device], scene: Scene) -> None:
        """Remember devices that the uncertain scan has found, each with the entry that would list it."""
        for entry, device in found.items():
            self._seen[entry] = Departure(
                at=scene.now,
                until=scene.now,
                seen=scene.now,
                device=device,
                registrations=(
                    Registration(
                        second=0,
                        number=device.number,
                        paths=entry.paths,
                        key=device.key,
                        left=scene.second(scene.now),
                    ),
                ),
                links={*entry.links, *entry.shared},
                twins=tuple(
                    other for other in scene.devices if other.key != device.key and may_be_twins(device, other)
                ),
            )

    def departed(
        self, present: AbstractSet[tuple[Key, str | None]], now: float, grace: float
    ) -> dict[Entry, Departure]:
        """Return those that a certain scan does not find, and forget all; `present` are the registrations that it finds, with their IDs."""
        seen, self._seen = self._seen, {}
        gone = {
            entry: each for entry, each in seen.items() if each.device and (each.device.key, entry.id) not in present
        }
        for departure in gone.values():
            departure.at, departure.until = now, now + grace
        return gone
