"""A listed device that a certain scan did not find, from its departure to the end of its pods."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devwatch.core.paths import paths_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from devwatch.core.device import Device, Key
    from devwatch.core.incidents import Loss, Registration
    from devwatch.core.scene import Scene

_MICROSECOND = 1e-6
"""Seconds: udev cuts its times to this."""


_LONG = 20
"""Digits of a number of microseconds that no clock shows."""


@dataclass(slots=True, kw_only=True)
class Departure:
    """A listed device that a certain scan did not find.

    | state | `lost` | `there` | `since` |
    |---|---|---|---|
    | within its grace: still counted | None | None | None |
    | over: the next PATCH no longer counts it | the server's time now | None | None |
    | sent: that PATCH is on its way | fixed | fixed | None |
    | lost: the Node shows the count without it | fixed | fixed | the moment |

    It ends when the device is found again, or its pods are gone (`settle`).
    """

    at: float
    grace: float
    seen: float = float("-inf")
    """When it was last there for certain."""
    device: Device | None = None
    """As the last scan found it, None where only the annotation of a former daemon tells of it."""
    registrations: tuple[Registration, ...] = ()
    """As in `Return`, up to this departure; none where the number of the device is unknown."""
    links: AbstractSet[str] = frozenset()
    """All links that udev made for it, where this daemon has seen it."""
    others: AbstractSet[Key] = frozenset()
    """The registrations with the same ids that were there beside it: they are other devices."""
    recalled: bool = False
    """Whether a former daemon sent that PATCH."""
    over: bool = False
    lost: str | None = None
    there: frozenset[str] | None = None
    since: float | None = None
    accepted: str = ""
    """The API server's time then, empty where a former daemon saw that moment."""
    choice: Loss | None = None
    """The loss as it was when its victims were chosen."""
    maybe: Key | None = None
    """The present device that it may be."""

    def excluded(self, devices: Iterable[Device]) -> set[Key]:
        """Return those that are other devices: that udev handled before this one was last there, or that are another part of a stick."""
        return {
            device.key
            for device in devices
            if (initialized_at(device) or math.inf) + _MICROSECOND < self.seen
            or (self.device is not None and is_other_part(device, self.device))
        }

    def unlinked(self, devices: Iterable[Device]) -> set[Key]:
        """Return those that have no link of it, not even one that twins share, as far as the links of both are known."""
        known = (device for device in devices if self.links and device.complete)
        return {device.key for device in known if paths_of(device).isdisjoint(self.links)}

    def decide(self, present: AbstractSet[Key], now: float, grace: float) -> None:
        """Begin the departure again where the device that it may be has gone before that was known; else that one is another."""
        if self.maybe is not None and self.maybe not in present:
            self.at, self.grace, self.since, self.choice = now, grace, None, None
        self.maybe = None


def initialized_at(device: Device) -> float | None:
    """Return when udev first handled a registration, in seconds of the monotonic clock (USEC_INITIALIZED), None where it does not say."""
    text = (device.properties or {}).get("USEC_INITIALIZED", "")
    return int(text) / 1e6 if text.isascii() and text.isdecimal() and len(text) < _LONG else None


def is_other_part(one: Device, other: Device) -> bool:
    """Return whether two devices are surely different parts of a composite stick."""
    return None not in {one.interface, other.interface} and one.interface != other.interface


def returned_at(device: Device, departure: Departure, scene: Scene) -> float | None:
    """Return when a device returned, None where a daemon that did not see it cannot tell.

    A scan may be late; udev writes down when it first handled the device.
    """
    initialized, seen = initialized_at(device), scene.inventory.seen_since(device.key)
    if departure.device is None:
        return initialized if initialized is not None and initialized <= scene.now else None
    # The departure may have been noticed after the return, where scans were uncertain or uevents were lost. What udev wrote down before
    # the device was last there is of another registration.
    return initialized if initialized is not None and departure.seen <= initialized <= seen else seen
