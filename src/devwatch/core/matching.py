"""Which present device a listed one is: devices are registered anew at each plug, and twins look alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from devwatch.core.listing import Entry, listed_path
from devwatch.core.paths import is_socket, paths_of
from devwatch.core.rules import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.core.device import Device, Key

Ids = tuple[str | None, str | None, str | None]


_Places = tuple[tuple["Device", ...], ...]
"""Which devices may be a listed one, the likelier ones first; within one tuple a free one comes before a taken one."""


def match_replugged(
    gone: Mapping[Entry, AbstractSet[Key]], devices: Iterable[Device], claimed: AbstractSet[Key] = frozenset()
) -> dict[Entry, Device]:
    """Match each present device to at most one listed device whose registration is gone, minimising losses.

    A device may be the listed one that had its devnode, with the same ids or with unknown ones, or one that has its ids, or may have them,
    under another name: then it was plugged in elsewhere. None of those that were there beside it, as `gone` says of each, is it. `claimed`
    are those that the resource has now.
    """
    candidates = _Candidates(devices, claimed)
    options = {entry: candidates.options(entry, others) for entry, others in gone.items()}
    places = {entry: each.places for entry, each in options.items()}
    taken: dict[Device, Entry] = {}
    futile: set[Device] = set()
    for entry in sorted(options, key=lambda entry: options[entry].rank):
        tried = set(futile)
        if not _place(entry, places, taken, tried):
            futile = tried
    return {entry: device for device, entry in taken.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """The devices that a listed one may be, and whose turn it is to choose."""

    places: _Places
    rank: tuple[bool, ...]
    """Those that are where they were come first, so that of two that are alike the one that was pulled is lost: in their socket, then by
    their name, which another may take. Those whose ids no device has come last."""


class _Candidates:
    """The present devices among which gone ones are looked for."""

    def __init__(self, devices: Iterable[Device], claimed: AbstractSet[Key]) -> None:
        self._claimed = claimed
        self._by_name = {device.devnode: device for device in devices}
        self._by_socket = {
            path: device for device in self._by_name.values() for path in paths_of(device) if is_socket(path)
        }
        self._unread = [device for device in self._by_name.values() if not device.complete]
        self._by_ids: dict[Ids, list[Device]] = {}
        # Of those that are alike, the one that the resource has now is the likeliest.
        for device in sorted(self._by_name.values(), key=lambda device: device.key not in claimed):
            self._by_ids.setdefault(ids_of(Entry.of(device)), []).append(device)

    def options(self, entry: Entry, others: AbstractSet[Key]) -> _Options:
        """Return the devices that a listed one may be, but for `others`."""
        here = self._by_name.get(entry.devnode)
        named = (here,) if here and here.key not in others else ()
        own = self._own(entry, *named)
        alike = [device for device in self._by_ids.get(ids_of(entry), ()) if device.key not in others]
        found = (self._by_socket[path] for path in entry.links if path in self._by_socket)
        in_socket = tuple(device for device in found if device in alike)
        # Without any ids none can be told from another.
        elsewhere = tuple(device for device in alike if device is not here) if entry.vendor else ()
        by_name = (named, elsewhere) if own is Verdict.MATCHED else (elsewhere, named if own is Verdict.UNKNOWN else ())
        return _Options(
            places=(in_socket, *by_name, self._unclear(entry, others)),
            rank=(not in_socket, own is not Verdict.MATCHED, not elsewhere),
        )

    def _own(self, entry: Entry, device: Device | None = None) -> Verdict:
        """Return whether a listed device is where it was; unknown while the device with that name is, or where a serial is missing."""
        if device is None:
            return Verdict.NOT
        # What is claimed without udev's record is known well enough.
        found, known = Entry.of(device), device.complete or device.key in self._claimed
        if ids_of(entry) == ids_of(found) and known:
            return Verdict.MATCHED
        # A serial as udev writes it may differ from that of the stick itself.
        maybe = _alike(entry, found) or (not known and _alike(replace(entry, serial=None), found))
        return Verdict.UNKNOWN if maybe else Verdict.NOT

    def _unclear(self, entry: Entry, others: AbstractSet[Key]) -> tuple[Device, ...]:
        """Return the devices under another name of which udev may yet say that they have the ids of a listed one."""
        unread = self._unread if entry.vendor else ()
        elsewhere = (device for device in unread if device.vendor and device.devnode != entry.devnode)
        return tuple(each for each in elsewhere if each.key not in others and _alike(entry, Entry.of(each)))


def _place(entry: Entry, places: Mapping[Entry, _Places], taken: dict[Device, Entry], tried: set[Device]) -> bool:
    """Find a device for an entry, if need be by giving another entry one of its others (Kuhn's matching); False where there is none.

    What was `tried` then leads nowhere, for no other entry either.
    """
    for equals in places[entry]:
        free = next((device for device in equals if device not in taken), None)
        if free is not None:
            taken[free] = entry
            return True
        for device in equals:
            if device not in tried:
                tried.add(device)
                if _place(taken[device], places, taken, tried):
                    taken[device] = entry
                    return True
    return False


def _alike(one: Entry, other: Entry) -> bool:
    pairs = zip(ids_of(one), ids_of(other), strict=True)
    return all(known == found or known is None or found is None for known, found in pairs)


def ids_of(entry: Entry) -> Ids:
    """Return vendor, product and serial, each None where it is absent or unknown."""
    return (entry.vendor, entry.product, entry.serial)


def match_remembered(entries: Iterable[Entry], devices: Sequence[Device]) -> dict[Entry, Device]:
    """Match what a former daemon listed to present devices: its devnode or a link of it leads to one with the same vendor and product.

    A serial may read differently after an update of udev's rules, so it does not count; a device may stand for several.
    """
    leading = ((entry, [device for device in devices if leads_to(entry, device)]) for entry in entries)
    # A link may lead to another by now, while the one that had it is where it was.
    return {entry: min(found, key=lambda device: device.devnode != entry.devnode) for entry, found in leading if found}


def leads_to(entry: Entry, device: Device) -> bool:
    """Return whether the devnode or a link of a listed device leads to a present one with the same vendor and product."""
    here = Entry.of(device)
    if (entry.vendor, entry.product) != (here.vendor, here.product):
        return False
    links = {entry.link, *entry.links} - {None}
    return (
        entry.devnode == here.devnode or here.link in links or any(listed_path(path) in links for path in device.links)
    )
