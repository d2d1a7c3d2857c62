"""Presence of devices over time: which were observed, when, and how certainly. Time is an argument, in monotonic seconds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from devwatch.core.device import TTY

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from devwatch.core.device import Device, Key

ARRIVAL_TIMEOUT = 10.0
"""Seconds for which a new device waits for its udev record; after that it counts with the values that are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The result of one scan of the devices of this host."""

    at: float
    devices: tuple[Device, ...] = ()
    doubts: tuple[str, ...] = ()
    """Why devices may be missing from this scan, one line each; empty where it is certain."""
    udevd: bool = True
    """Whether udevd runs, so that an incomplete record means that udevd has not finished yet."""
    again_at: float | None = None
    """When to scan again even without a uevent."""
    troubles: tuple[str, ...] = ()
    """What this host lacks, one line each with the remedy; such a scan may still be certain."""
    subsystems: frozenset[str] = frozenset({TTY})
    """The subsystems that were scanned; a device of any other one may be present."""
    blocked: tuple[str, ...] = ()
    """The troubles about a directory in the place of a devnode or link."""

    @property
    def certain(self) -> bool:
        """Whether a device that is not in it is certainly not present."""
        return not self.doubts


class Inventory:
    """The devices of this host as the scans report them.

    A device *arrives* when a scan first finds it with a complete udev record, or without one where udevd does not run, or
    `ARRIVAL_TIMEOUT` after the first scan that found it. It stays arrived, even without its record, until a certain scan does not find it.
    """

    def __init__(self) -> None:
        """Start with nothing observed and nothing certain."""
        self._first_seen: dict[Key, float] = {}
        self._arrived: set[Key] = set()
        self.present: tuple[Device, ...] = ()
        self.pending: tuple[Device, ...] = ()
        self.doubts: tuple[str, ...] = ("no scan yet",)

    def observe(self, scan: Scan) -> None:
        """Process a scan; scans must come in the order of their time."""
        found = {device.key: device for device in scan.devices}
        for key in found.keys() - self._arrived:
            self._update_arrival(key, found[key], scan)
        self.present = tuple(device for key, device in found.items() if key in self._arrived)
        # udev creates the links of a device when it writes the record: until then it is unknown which links will lead to it.
        waiting = (device for key, device in found.items() if key not in self._arrived)
        self.pending = tuple(replace(device, links_known=False) for device in waiting)
        self.doubts = scan.doubts
        seen = found.keys()
        self._forget_registrations(
            self._first_seen.keys() - seen if scan.certain else self._replaced_registrations(seen)
        )

    def _update_arrival(self, key: Key, device: Device, scan: Scan) -> None:
        since = self._first_seen.setdefault(key, scan.at)
        if device.complete or not scan.udevd or scan.at >= since + ARRIVAL_TIMEOUT:
            self._arrived.add(key)

    def _replaced_registrations(self, seen: AbstractSet[Key]) -> set[Key]:
        """Return the registrations whose kernel name another one has now: these are gone even if the scan is uncertain."""
        names = {_name(key) for key in seen}
        return {key for key in self._first_seen if _name(key) in names and key not in seen}

    def _forget_registrations(self, gone: set[Key]) -> None:
        self._arrived -= gone
        for key in gone:
            del self._first_seen[key]

    def seen_since(self, key: Key) -> float:
        """Return when a scan first found a present device."""
        return self._first_seen[key]

    @property
    def due(self) -> float | None:
        """When the next pending device arrives without a record, None where none is pending."""
        return min((self._first_seen[device.key] + ARRIVAL_TIMEOUT for device in self.pending), default=None)


def _name(key: Key) -> str:
    """Return the kernel's name of the device (the end of the devpath), which only one registration has at a time."""
    return key[0].rpartition("/")[2]


class Window:
    """The largest number of any scan within the last seconds: a sliding maximum, as a queue of decreasing numbers.

    A number holds from its scan until the next one, so a device that was present until the scan before counts as observed up to that scan.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._falling: deque[tuple[int, float]] = deque()

    def push(self, number: int, now: float) -> None:
        """Add the number that a scan at `now` found."""
        if self._falling:
            self._falling[-1] = (self._falling[-1][0], now)
        while self._falling and self._falling[-1][0] <= number:
            self._falling.pop()
        self._falling.append((number, now))

    def largest(self, now: float, seconds: float) -> int:
        """Return the largest number within the last `seconds`, 0 before the first scan."""
        while len(self._falling) > 1 and self._falling[0][1] + seconds <= now:
            self._falling.popleft()
        return self._falling[0][0] if self._falling else 0

    def due(self, seconds: float) -> float | None:
        """Return when the last result of `largest` will fall if nothing is pushed, None where it stays."""
        return self._falling[0][1] + seconds if len(self._falling) > 1 else None
