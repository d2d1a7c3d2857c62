"""What one cycle of the loop knows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from devwatch.core.node import Amounts, NodeState

if TYPE_CHECKING:
    from devwatch.core.device import Device, Key
    from devwatch.core.inventory import Inventory
    from devwatch.core.plan import Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What one cycle of the loop knows."""

    figures: Figures
    inventory: Inventory
    observed: NodeState | None
    now: float
    wall: float = 0.0
    """The time of this host in Unix seconds."""
    date: str = ""
    """The API server's time in its last answer (RFC 3339, seconds), empty before one."""

    def second(self, moment: float) -> int:
        """Return the Unix second of a moment of the monotonic clock."""
        return int(self.wall - (self.now - moment))

    @property
    def devices(self) -> tuple[Device, ...]:
        """All that is on the host."""
        return (*self.inventory.present, *self.inventory.pending)

    def shows(self, name: str) -> bool:
        """Return whether the Node shows the figure of a resource."""
        return self.observed is not None and self.observed.shows(
            name, Amounts.of(self.figures.by_name[name].advertised)
        )

    def by_ownership(self, name: str) -> tuple[list[Device], list[Device]]:
        """Return the devices that a resource may have or may have had, and apart from them those that another one surely has."""
        foreign = {device for device, claim in self.figures.claims.items() if claim.owner not in {None, name}}
        return [each for each in self.devices if each not in foreign], [
            each for each in self.devices if each in foreign
        ]

    def open(self, name: str) -> set[Key]:
        """Return the devices of which it is unknown whether the resource has them."""
        claims, claimed = self.figures.claims, {device.key for device in self.figures.by_name[name].devices}
        # Without a record, too, a device that another resource surely has is not this one's any more.
        unknown = (device for device in self.devices if not device.complete and claims[device].owner is None)
        doubtful = (device for device in self.devices if name in claims[device].doubtful)
        return {device.key for device in chain(unknown, doubtful)} - claimed


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousScan:
    """The last certain scan."""

    at: float = float("-inf")
    devices: tuple[Device, ...] = ()
    began: float = float("inf")
    """When the first certain scan was."""
