"""Devices that are lost: listed for a resource once, and surely no longer on this host. Only they evict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from devwatch.node import Entry
from devwatch.rules import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.device import Device
    from devwatch.inventory import Inventory
    from devwatch.node import Listing, NodeState
    from devwatch.plan import Figures
    from devwatch.rules import ResourceRule


_Ids = tuple[str | None, str | None, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Devices of one resource that are lost, and since when the Node no longer counts them."""

    resource: str
    entries: tuple[Entry, ...]
    left: int
    """How many of the resource are present, or are lost for so short a time that they may come back."""
    since: float
    due: float
    """When its pods are to be evicted."""


def found_among(
    listed: Iterable[Entry], devices: Iterable[Device], claimed: AbstractSet[str] = frozenset()
) -> dict[Entry, str]:
    """Return the listed devices that are on the host, each with the devnode that it has now.

    A device is still here when its devnode is there with the same ids or with unknown ones, or when a device with its
    ids, which is not one of the other listed ones, is found under another name: then it was only plugged in elsewhere.
    No device stands for two, and they are given to the listed ones so that as few as can be are lost. `claimed` are the
    devnodes that the resource has now.
    """
    here = {device.devnode: device for device in devices}
    by_ids: dict[_Ids, list[str]] = {}
    for devnode, device in here.items():
        by_ids.setdefault(_ids(Entry.of(device)), []).append(devnode)
    own = {entry: _own(entry, here.get(entry.devnode), claimed) for entry in listed}
    places = {entry: _places(entry, by_ids.get(_ids(entry), []), verdict) for entry, verdict in own.items()}
    taken: dict[str, Entry] = {}
    # Those that are where they were come first, so that of two that are alike the one that was pulled is lost.
    for entry in sorted(places, key=lambda entry: own[entry] is not Verdict.MATCHED):
        _place(entry, places, taken, set())
    return {entry: devnode for devnode, entry in taken.items()}


def _own(entry: Entry, device: Device | None, claimed: AbstractSet[str]) -> Verdict:
    """Return whether a listed device is where it was; unknown while nobody knows who has that name now."""
    if device is None:
        return Verdict.NOT
    if _alike(entry, Entry.of(device)) and (device.complete or device.devnode in claimed):
        return Verdict.MATCHED
    return Verdict.NOT if device.complete else Verdict.UNKNOWN


def _places(entry: Entry, same: Iterable[str], own: Verdict) -> tuple[str, ...]:
    """Return the devnodes at which a listed device may be: its own first, but last while that is unknown."""
    first = (entry.devnode,) if own is Verdict.MATCHED else ()
    last = (entry.devnode,) if own is Verdict.UNKNOWN else ()
    return (*first, *(devnode for devnode in same if devnode != entry.devnode), *last)


def _place(entry: Entry, places: Mapping[Entry, Iterable[str]], taken: dict[str, Entry], tried: set[str]) -> bool:
    """Find a device for an entry, if need be by giving another entry one of its others (Kuhn's matching); False where there is none."""
    for devnode in places[entry]:
        if devnode in tried:
            continue
        tried.add(devnode)
        if devnode not in taken or _place(taken[devnode], places, taken, tried):
            taken[devnode] = entry
            return True
    return False


def _alike(one: Entry, other: Entry) -> bool:
    pairs = zip(_ids(one), _ids(other), strict=True)
    return all(known == found or known is None or found is None for known, found in pairs)


def _ids(entry: Entry) -> _Ids:
    return (entry.vendor, entry.product, entry.serial)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What one turn of the loop knows."""

    figures: Figures
    inventory: Inventory
    observed: NodeState | None
    now: float


class Losses:
    """Which resources have lost devices, and since when.

    What the annotation lists is remembered: from the first observation, which a daemon before this one wrote, and from what is claimed now.
    The annotation keeps a lost device until its pods are evicted, so that a daemon that is killed meanwhile leaves the
    task to the next one. What somebody else writes into the annotation later is never believed.
    """

    def __init__(self) -> None:
        """Start with nothing listed."""
        self._listed: dict[str, tuple[Entry, ...]] = {}
        self._lost: dict[str, tuple[Entry, ...]] = {}
        self._since: dict[tuple[str, Entry], float] = {}

    def start(self, listing: Listing) -> None:
        """Believe what the Node lists at the start."""
        self._listed = dict(listing)

    def update(self, rules: Sequence[ResourceRule], scene: Scene) -> Mapping[str, Loss]:
        """Take in what the last look found and return the losses that the Node shows, by resource.

        An uncertain look changes nothing, and nothing is lost by it; nor before the first observation of the Node.
        """
        if scene.inventory.doubts or scene.observed is None:
            return {}
        evicting = {rule.name: rule.evict_after for rule in rules if rule.evict_after is not None}
        self._listed = {name: self._listed.get(name, ()) for name in evicting}
        self._lost = {name: entries for name, entries in self._lost.items() if name in evicting}
        sure = {name: self._look(name, scene) for name in evicting}
        lost = {(name, entry) for name in evicting for entry in self._lost[name]}
        self._since = {key: since for key, since in self._since.items() if key in lost}
        found = {name: self._loss(name, after, sure[name], scene) for name, after in evicting.items()}
        return {name: loss for name, loss in found.items() if loss is not None}

    def _look(self, name: str, scene: Scene) -> tuple[Entry, ...]:
        """Return which of the listed devices are lost, and list what is here now."""
        devices = (*scene.inventory.present, *scene.inventory.pending)
        claimed = tuple(Entry.of(device) for device in scene.figures.by_name[name].devices)
        own = {entry.devnode for entry in claimed}
        found = found_among(self._listed[name], devices, own)
        sure = tuple(entry for entry in self._listed[name] if entry not in found)
        # udev has not told yet who that is: perhaps another one in the place of the listed one.
        unknown = {device.devnode for device in devices if not device.complete} - own
        unclear = tuple(entry for entry, devnode in found.items() if devnode == entry.devnode and devnode in unknown)
        self._lost[name] = (*sure, *(entry for entry in unclear if entry in self._lost.get(name, ())))
        self._listed[name] = tuple(dict.fromkeys((*sure, *unclear, *claimed)))
        return sure

    def _loss(self, name: str, after: float, lost: tuple[Entry, ...], scene: Scene) -> Loss | None:
        """Return what is due first, or is due already; what is lost since then may still come back, and counts as left."""
        figure, observed = scene.figures.by_name[name], scene.observed
        told = observed is not None and observed.shows(name, str(figure.present))
        if not lost or not told or figure.held or figure.advertised != figure.present:
            return None
        sinces = {entry: self._since.setdefault((name, entry), scene.now) for entry in lost}
        since = min(sinces.values())
        ripe = max(since + after, scene.now)
        entries = tuple(entry for entry in lost if sinces[entry] + after <= ripe)
        left = figure.present + len(lost) - len(entries)
        return Loss(resource=name, entries=entries, left=left, since=since, due=since + after)

    def kept(self) -> Listing:
        """Return the lost devices that the annotation goes on listing."""
        return self._lost

    def settle(self, loss: Loss) -> None:
        """Forget the devices of a loss: nobody uses them any more, or nobody can be told to stop."""
        for memory in (self._listed, self._lost):
            memory[loss.resource] = tuple(entry for entry in memory.get(loss.resource, ()) if entry not in loss.entries)
