"""Match listed devices to present ones. Each plugging is a new registration with the kernel, and twins have the same ids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from devwatch.core.listing import Entry, is_socket, listed_path, paths_of
from devwatch.core.rules import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.core.device import Device, Key

Ids = tuple[str | None, str | None, str | None]
"""Vendor, product and serial, each None where absent or unknown."""


def match_replugged(
    gone: Mapping[Entry, AbstractSet[Key]], devices: Iterable[Device], claimed: AbstractSet[Key] = frozenset()
) -> dict[Entry, Device]:
    """Match each present device to at most one listed device whose registration is gone, minimising losses.

    `gone` gives for each listed device the registrations that cannot be it, such as those that were present beside it. `claimed` are the
    registrations that the resource claims now.

    A listed device may be, likeliest first:

    1. the device with the same ids in the same socket, that is, behind one of its by-path links;
    2. the device with the same devnode and the same ids;
    3. a device with the same ids under another devnode: it was plugged in elsewhere, or renamed;
    4. the device with the same devnode whose ids are unknown, but compatible;
    5. a device under another devnode with an incomplete record and compatible ids.

    Listed devices choose in the order of `_MatchOptions.rank`, and a later one may move an earlier one to another device (Kuhn's algorithm
    for bipartite matching), so that the number of matches is maximal. A greedy choice could take the only candidate of another entry, and
    so evict the pods of a device that is present. `futile` are the devices that a failed search has tried: no later search can use them.
    """
    candidates = _MatchCandidates(devices, claimed)
    options = {entry: candidates.options(entry, excluded) for entry, excluded in gone.items()}
    taken: dict[Device, Entry] = {}
    futile: set[Device] = set()
    for entry in sorted(options, key=lambda entry: options[entry].rank):
        tried = set(futile)
        if not _assign_device(entry, options, taken, tried):
            futile = tried
    return {entry: device for device, entry in taken.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _MatchOptions:
    """The devices that a listed one may be, and its rank among the listed ones in choosing."""

    devices: tuple[Device, ...]
    """The likeliest first; of them it gets the first that no other has."""
    rank: tuple[bool, ...]
    """Smaller ranks choose first: devices found in their socket, then those found at their devnode, then those whose ids some other device
    has. So of two equal devices the one that was pulled is lost, not the one that is still in its place."""


class _MatchCandidates:
    """The present devices that may be listed ones, indexed by devnode, socket and ids."""

    def __init__(self, devices: Iterable[Device], claimed: AbstractSet[Key]) -> None:
        self._claimed = claimed
        self._by_name = {device.devnode: device for device in devices}
        self._by_socket = {
            path: device for device in self._by_name.values() for path in paths_of(device) if is_socket(path)
        }
        self._unread = [device for device in self._by_name.values() if not device.complete]
        self._by_ids: dict[Ids, list[Device]] = {}
        # Among devices with the same ids, those that the resource claims now come first.
        for device in sorted(self._by_name.values(), key=lambda device: device.key not in claimed):
            self._by_ids.setdefault(ids_of(Entry.of(device)), []).append(device)

    def options(self, entry: Entry, excluded: AbstractSet[Key]) -> _MatchOptions:
        """Return the devices that a listed one may be, without the `excluded` ones, in the order given at `match_replugged`."""
        here = self._by_name.get(entry.devnode)
        named = (here,) if here and here.key not in excluded else ()
        own = self._verdict_at_devnode(entry, *named)
        alike = [device for device in self._by_ids.get(ids_of(entry), ()) if device.key not in excluded]
        in_socket = [device for path in entry.links if (device := self._by_socket.get(path)) in alike]
        # Without ids, devices under another devnode cannot be distinguished.
        elsewhere = [device for device in alike if device is not here] if entry.vendor else []
        unread = (device for device in self._unread if device is not here and device.key not in excluded)
        same, doubtful = named if own is Verdict.MATCHED else (), named if own is Verdict.UNKNOWN else ()
        maybe = (
            each for each in unread if entry.vendor and each.vendor and _have_compatible_ids(entry, Entry.of(each))
        )
        return _MatchOptions(
            devices=(*in_socket, *same, *elsewhere, *doubtful, *maybe),
            rank=(not in_socket, own is not Verdict.MATCHED, not elsewhere),
        )

    def _verdict_at_devnode(self, entry: Entry, device: Device | None = None) -> Verdict:
        """Return whether the device at the devnode of a listed one is the listed one; unknown while its record or a serial is missing."""
        if device is None:
            return Verdict.NOT
        # A rule has claimed the device, so its ids are reliable even without udev's record.
        found, known = Entry.of(device), device.complete or device.key in self._claimed
        if ids_of(entry) == ids_of(found) and known:
            return Verdict.MATCHED
        # The serial in udev's record may differ from the one in sysfs.
        maybe = _have_compatible_ids(entry, found) or (
            not known and _have_compatible_ids(replace(entry, serial=None), found)
        )
        return Verdict.UNKNOWN if maybe else Verdict.NOT


def _assign_device(
    entry: Entry, options: Mapping[Entry, _MatchOptions], taken: dict[Device, Entry], tried: set[Device]
) -> bool:
    """Assign a device to an entry, moving other entries to another of their devices only where none is free (an augmenting path).

    Returns False where no assignment exists; then none of the devices in `tried` can be freed for any other entry either.
    """
    free = next((device for device in options[entry].devices if device not in taken), None)
    if free is not None:
        taken[free] = entry
        return True
    for device in options[entry].devices:
        if device not in tried:
            tried.add(device)
            if _assign_device(taken[device], options, taken, tried):
                taken[device] = entry
                return True
    return False


def _have_compatible_ids(one: Entry, other: Entry) -> bool:
    pairs = zip(ids_of(one), ids_of(other), strict=True)
    return all(known == found or known is None or found is None for known, found in pairs)


def may_be_twins(one: Device, other: Device) -> bool:
    """Return whether two devices have the same ids, or may turn out to have once the record of both is complete."""
    ids, found = Entry.of(one), Entry.of(other)
    unread = not (one.complete and other.complete)
    return ids_of(ids) == ids_of(found) or (unread and _have_compatible_ids(ids, found))


def ids_of(entry: Entry) -> Ids:
    """Return vendor, product and serial, each None where it is absent or unknown."""
    return (entry.vendor, entry.product, entry.serial)


def match_remembered(gone: Mapping[Entry, AbstractSet[Key]], devices: Sequence[Device]) -> dict[Entry, Device]:
    """Match entries of a former daemon to the devices that their devnode or a link leads to, with the same vendor and product.

    `gone` is as at `match_replugged`. The serial is not compared: it may read differently after an update of udev's rules. Several entries
    may match one device; an entry with a match is never lost.
    """
    matches = (
        (entry, [device for device in devices if device.key not in excluded and leads_to(entry, device)])
        for entry, excluded in gone.items()
    )
    # The device at the same devnode is preferred: the link may have moved to its twin.
    return {entry: min(found, key=lambda device: device.devnode != entry.devnode) for entry, found in matches if found}


def leads_to(entry: Entry, device: Device) -> bool:
    """Return whether the devnode or a link of a listed device leads to this present one, with the same vendor and product."""
    here = Entry.of(device)
    if (entry.vendor, entry.product) != (here.vendor, here.product):
        return False
    links = {entry.link, *entry.links} - {None}
    return (
        entry.devnode == here.devnode or here.link in links or any(listed_path(path) in links for path in device.links)
    )
