"""A listed device that a certain scan did not find: its states from the departure until its pods are gone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from devwatch.core.paths import paths_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.core.device import Device, Key
    from devwatch.core.incidents import Loss, Registration
    from devwatch.core.scene import Scene

_MICROSECOND = 1e-6
"""Seconds: udev truncates USEC_INITIALIZED to whole microseconds."""


_MAX_DIGITS = 20
"""Digits from which on a number of microseconds is not a plausible time (10**19 us are 300,000 years)."""


@dataclass(slots=True, kw_only=True)
class Departure:
    """A listed device that a certain scan did not find.

    | state | entered when | `over` | `lost` | `there` | `since` |
    |---|---|---|---|---|---|
    | in grace: the count includes it | a certain scan does not find it | False | None | None | None |
    | over: the next PATCH will not count it | grace ended, and nothing holds the count up | True | server's time, updated | None | None |
    | sent: a PATCH without it was sent | `Losses.send` | True | fixed | fixed | None |
    | lost: the Node shows the count without it | the PATCH was observed on the Node | True | fixed | fixed | set |

    Only a lost departure evicts. `lost` and `there` are fixed when the PATCH is sent, before its outcome is known: a pod that was bound
    afterwards may use the successor of the device and must never be evicted. A departure goes back from "over" to "in grace" when
    something holds the count up again. One that a former daemon stored with `lost` starts as "sent", without pods in `there`. A departure
    ends in any state when the device is found again, and in "lost" when its pods are gone (`settle`).
    """

    at: float
    """When the departure was observed; monotonic seconds."""
    grace: float
    """Seconds for which the device still counts."""
    seen: float = float("-inf")
    """When the last certain scan found it; monotonic seconds."""
    device: Device | None = None
    """The device as the last scan found it, None where it is known only from the annotation of a former daemon."""
    registrations: tuple[Registration, ...] = ()
    """The registrations up to this departure, as in `Return`; empty where the device number is unknown."""
    links: AbstractSet[str] = frozenset()
    """All links that udev made for it, where this daemon has observed it."""
    others: Mapping[Key, float | None] = field(default_factory=dict)
    """Its possible twins: registrations that were present at the same time, each with the time at which udev had handled it."""
    taken: frozenset[str] = frozenset()
    """Its paths that have led to another listed device since: a container that started meanwhile has mounted that one."""
    recalled: bool = False
    """Whether a former daemon sent the PATCH that no longer counts it."""
    over: bool = False
    """Whether the next PATCH will not count it."""
    lost: str | None = None
    """The API server's time before that PATCH (RFC 3339, seconds)."""
    there: frozenset[str] | None = None
    """The UIDs of the pods that were listed before that PATCH was sent."""
    since: float | None = None
    """When the Node first showed the count without it; monotonic seconds."""
    accepted: str = ""
    """The API server's time at `since`, empty where a former daemon sent the PATCH."""
    choice: Loss | None = None
    """The loss at the moment its victims were chosen."""
    maybe: Key | None = None
    """The present device that may be this one, while the udev record that decides it is incomplete."""

    def excluded(self, devices: Sequence[Device]) -> set[Key]:
        """Return the devices that cannot be this one.

        - It was present beside them, and udev has not handled them a second time since. A virtual console keeps its registration whatever
          stick it plays, so a console that udev has handled again may be this device.
        - udev had handled them before this one was last observed.
        - They are other parts of a composite stick.
        """
        again = {
            device.key
            for device in devices
            if self.others.get(device.key) is not None and (initialized_at(device) or -math.inf) > self.seen
        }
        earlier = {device.key for device in devices if (initialized_at(device) or math.inf) + _MICROSECOND < self.seen}
        parts = (device.key for device in devices if self.device is not None and is_other_part(device, self.device))
        return (self.others.keys() - again) | earlier | set(parts)

    def unlinked(self, devices: Iterable[Device]) -> set[Key]:
        """Return the devices that have none of its links, not even a shared one, as far as the links of both are known."""
        known = (device for device in devices if self.links and device.complete)
        return {device.key for device in known if paths_of(device).isdisjoint(self.links)}

    def note_taken(self, paths: AbstractSet[str]) -> None:
        """Record which of its paths lead to other listed devices now, given all `paths` of these."""
        own = frozenset(chain.from_iterable(each.paths for each in self.registrations))
        self.taken |= own & paths

    def decide(self, present: AbstractSet[Key], now: float, grace: float) -> None:
        """Settle the doubt about `maybe`: if that device has gone before its identity was known, the departure begins again.

        It may have been this one, so its pods may have used it until now. If it is still present, it has proved to be another device.
        """
        if self.maybe is not None and self.maybe not in present:
            self.at, self.grace, self.since, self.choice = now, grace, None, None
        self.maybe = None


def initialized_at(device: Device) -> float | None:
    """Return when udev first handled a registration, in monotonic seconds (USEC_INITIALIZED), None where the record does not say."""
    text = (device.properties or {}).get("USEC_INITIALIZED", "")
    return int(text) / 1e6 if text.isascii() and text.isdecimal() and len(text) < _MAX_DIGITS else None


def is_other_part(one: Device, other: Device) -> bool:
    """Return whether two devices are certainly different parts (interfaces) of a composite stick."""
    return None not in {one.interface, other.interface} and one.interface != other.interface


def returned_at(device: Device, departure: Departure, scene: Scene) -> float | None:
    """Return when a device returned (monotonic seconds), None where this daemon did not observe it and udev did not record it.

    The time of the scan is an upper bound only, since a scan may be late. USEC_INITIALIZED is exact, and is used where it belongs to this
    registration.
    """
    initialized, seen = initialized_at(device), scene.inventory.seen_since(device.key)
    if departure.device is None:
        return initialized if initialized is not None and initialized <= scene.now else None
    # Where scans were uncertain or uevents were lost, the departure may be observed after the return. A USEC_INITIALIZED from before the
    # device was last observed belongs to another registration.
    return initialized if initialized is not None and departure.seen <= initialized <= seen else seen
