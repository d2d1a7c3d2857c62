"""Presence over time: what was seen, when, and how surely. Time is an argument, in seconds of a monotonic clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devwatch.core.device import Device, Key

ARRIVAL_TIMEOUT = 10.0
"""Seconds for which a new device waits for its udev record; after that it counts with what is known of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The answer of one look at the devices of this host."""

    at: float
    devices: tuple[Device, ...] = ()
    doubts: tuple[str, ...] = ()
    """Why devices may be missing from this look, one line each; empty where it is certain."""
    udevd: bool = True
    """Whether udevd runs, so that a device without a complete record is one that udevd has not finished yet."""
    again_at: float | None = None
    """When to look again though nothing may happen until then."""
    troubles: tuple[str, ...] = ()
    """What this host lacks, one line each with what to do; such a look may still be certain."""
    blocked: tuple[str, ...] = ()
    """Those of the troubles that tell of a directory in the place of a devnode or link."""

    @property
    def certain(self) -> bool:
        """Whether a device that is not in it is surely not there."""
        return not self.doubts


class Inventory:
    """The devices of this host as far as the looks tell.

    A device *arrives* when it is first seen with a complete udev record, where no udevd runs, or `ARRIVAL_TIMEOUT` after it was first seen.
    It stays arrived, whatever becomes of its record, until a certain look does not find it.
    """

    def __init__(self) -> None:
        """Start with nothing seen and nothing certain."""
        self._first_seen: dict[Key, float] = {}
        self._arrived: set[Key] = set()
        self.present: tuple[Device, ...] = ()
        self.pending: tuple[Device, ...] = ()
        self.doubts: tuple[str, ...] = ("no look yet",)

    def observe(self, scan: Scan) -> None:
        """Take in a look; looks come in the order of their time."""
        for device in scan.devices:
            self._sight(device, scan)
        self.present = tuple(device for device in scan.devices if device.key in self._arrived)
        # udev makes the links of a device when it writes the record: until then nobody can tell which will lead to it.
        waiting = (device for device in scan.devices if device.key not in self._arrived)
        self.pending = tuple(replace(device, links_known=False) for device in waiting)
        self.doubts = scan.doubts
        seen = {device.key for device in scan.devices}
        self._forget(self._first_seen.keys() - seen if scan.certain else self._replaced(seen))

    def _sight(self, device: Device, scan: Scan) -> None:
        since = self._first_seen.setdefault(device.key, scan.at)
        if device.complete or not scan.udevd or scan.at >= since + ARRIVAL_TIMEOUT:
            self._arrived.add(device.key)

    def _replaced(self, seen: set[Key]) -> set[Key]:
        """Return the registrations whose name another one has now: they are surely gone, however little else is certain."""
        names = {_name(key) for key in seen}
        return {key for key in self._first_seen if _name(key) in names and key not in seen}

    def _forget(self, gone: set[Key]) -> None:
        self._arrived -= gone
        self._first_seen = {key: since for key, since in self._first_seen.items() if key not in gone}

    def seen_since(self, key: Key) -> float:
        """Return when a device that is here was first seen."""
        return self._first_seen[key]

    @property
    def due(self) -> float | None:
        """When the next pending device arrives as it is, None where none is pending."""
        return min((self._first_seen[device.key] + ARRIVAL_TIMEOUT for device in self.pending), default=None)


def _name(key: Key) -> str:
    """Return the name that the kernel gave, which no two registrations have at a time: the end of the devpath."""
    return key[0].rpartition("/")[2]


class Window:
    """The largest number at any look within the last seconds (a sliding maximum; as many entries as there are falling numbers).

    A number holds from its look until the next one: what was there all along until a moment ago was seen a moment ago.
    """

    def __init__(self) -> None:
        """Start without a number."""
        self._falling: deque[tuple[int, float]] = deque()

    def push(self, number: int, now: float) -> None:
        """Take in the number that a look at `now` found."""
        if self._falling:
            self._falling[-1] = (self._falling[-1][0], now)
        while self._falling and self._falling[-1][0] <= number:
            self._falling.pop()
        self._falling.append((number, now))

    def largest(self, now: float, seconds: float) -> int:
        """Return the largest number within the last `seconds`, 0 before the first look."""
        while len(self._falling) > 1 and self._falling[0][1] + seconds <= now:
            self._falling.popleft()
        return self._falling[0][0] if self._falling else 0

    def due(self, seconds: float) -> float | None:
        """Return when the `largest` that was asked for last falls if nothing more is pushed, None where it stays."""
        return self._falling[0][1] + seconds if len(self._falling) > 1 else None
