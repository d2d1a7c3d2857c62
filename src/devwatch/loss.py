"""Devices that are lost: listed for a resource once, and surely no longer on this host. Only they evict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from devwatch.node import Entry
from devwatch.rules import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.device import Device, Key
    from devwatch.inventory import Inventory
    from devwatch.node import Listing, NodeState
    from devwatch.plan import Figures
    from devwatch.rules import ResourceRule


_Ids = tuple[str | None, str | None, str | None]
_Places = tuple[tuple["Device", ...], ...]
"""Who may be a listed device, the likelier ones first; within one tuple a free one comes before one that another would have to leave."""


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


def stand_ins(
    gone: Mapping[Entry, AbstractSet[Key]], devices: Iterable[Device], claimed: AbstractSet[Key] = frozenset()
) -> dict[Entry, Device]:
    """Return who may be a listed device whose registration is gone, by entry.

    That is who has its devnode now, with the same ids or with unknown ones, or who has its ids under another name: then it was only
    plugged in elsewhere. None of those that were there beside it, as `gone` tells of each, is it. Nobody stands for two, and they are
    given to the listed ones so that as few as can be are lost. `claimed` are those that the resource has now.
    """
    here = {device.devnode: device for device in devices}
    by_ids: dict[_Ids, list[Device]] = {}
    # Of those that are alike, the one that the resource has now is the likeliest.
    for device in sorted(here.values(), key=lambda device: device.key not in claimed):
        by_ids.setdefault(_ids(Entry.of(device)), []).append(device)
    own = {entry: _own(entry, here.get(entry.devnode), claimed) for entry in gone}
    elsewhere = {entry: _elsewhere(entry, by_ids, others) for entry, others in gone.items()}
    places = {entry: _places(here.get(entry.devnode), own[entry], elsewhere[entry]) for entry in gone}
    taken: dict[Device, Entry] = {}
    futile: set[Device] = set()
    # Those that are where they were come first, so that of two that are alike the one that was pulled is lost; those whose ids nobody
    # has come last.
    for entry in sorted(places, key=lambda entry: (own[entry] is not Verdict.MATCHED, not elsewhere[entry])):
        tried = set(futile)
        if not _place(entry, places, taken, tried):
            futile = tried
    return {entry: device for device, entry in taken.items()}


def _own(entry: Entry, device: Device | None, claimed: AbstractSet[Key]) -> Verdict:
    """Return whether a listed device is where it was; unknown while nobody knows who has that name now, or where a serial is untold."""
    if device is None:
        return Verdict.NOT
    found = Entry.of(device)
    if _ids(entry) == _ids(found) and (device.complete or device.key in claimed):
        return Verdict.MATCHED
    return Verdict.UNKNOWN if _alike(entry, found) or not device.complete else Verdict.NOT


def _elsewhere(entry: Entry, by_ids: Mapping[_Ids, Sequence[Device]], others: AbstractSet[Key]) -> tuple[Device, ...]:
    """Return who has the ids of a listed device under another name; without any ids nobody can be told from anybody."""
    found = by_ids.get(_ids(entry), ()) if entry.vendor else ()
    return tuple(device for device in found if device.devnode != entry.devnode and device.key not in others)


def _places(own: Device | None, verdict: Verdict, elsewhere: tuple[Device, ...]) -> _Places:
    """Return who may be a listed device: first who has its own name, but last while that one is unknown."""
    if own is None or verdict is Verdict.NOT:
        return (elsewhere,)
    return ((own,), elsewhere) if verdict is Verdict.MATCHED else (elsewhere, (own,))


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

    @property
    def devices(self) -> tuple[Device, ...]:
        """All that is on the host."""
        return (*self.inventory.present, *self.inventory.pending)

    def open(self, name: str) -> set[Key]:
        """Return those of which nobody can tell yet whether the resource has them."""
        claims, claimed = self.figures.claims, {device.key for device in self.figures.by_name[name].devices}
        unclear = (device for device in self.devices if not device.complete or name in claims[device].doubtful)
        return {device.key for device in unclear} - claimed


@dataclass(slots=True, kw_only=True)
class _Roll:
    """What is listed for one resource."""

    here: dict[Key, Entry] = field(default_factory=dict)
    """By registration: those on the host that it has, or had, and may have again."""
    gone: dict[Entry, AbstractSet[Key]] = field(default_factory=dict)
    """Those whose registration is gone, or was never seen, and the registrations that were there beside it: they are others."""
    lost: tuple[Entry, ...] = ()
    """Those that the annotation goes on listing."""

    def look(self, name: str, scene: Scene, before: AbstractSet[Key]) -> tuple[Entry, ...]:
        """Return which of the listed devices are lost, and list what is here now. `before` was on the host at the last look."""
        keys = {device.key for device in scene.devices}
        claimed = {device.key: Entry.of(device) for device in scene.figures.by_name[name].devices}
        self.gone |= {entry: before for key, entry in self.here.items() if key not in keys}
        strangers = [device for device in scene.devices if device.key not in self.here]
        found = stand_ins(self.gone, strangers, claimed.keys())
        sure = tuple(entry for entry in self.gone if entry not in found)
        # udev has not told yet who that is: perhaps another one, perhaps one that is gone again in a moment.
        open_ = scene.open(name)
        unclear = tuple(entry for entry, device in found.items() if device.key in open_)
        self.gone = {entry: self.gone[entry] for entry in (*sure, *unclear)}
        self.here = {key: entry for key, entry in self.here.items() if key in open_} | claimed
        self.lost = (*sure, *(entry for entry in unclear if entry in self.lost))
        return sure

    def settle(self, entries: Iterable[Entry]) -> None:
        """Forget these."""
        self.lost = tuple(entry for entry in self.lost if entry not in set(entries))
        self.gone = {entry: others for entry, others in self.gone.items() if entry not in set(entries)}


class Losses:
    """Which resources have lost devices, and since when.

    What the annotation lists is remembered: from the first observation, which a daemon before this one wrote, and from what is claimed now.
    A device that this daemon has seen is known by its registration with the kernel, whatever udev tells of it later; one of which only the
    annotation tells, by its devnode and ids. The annotation keeps a lost device until its pods are evicted, so that a daemon that is
    killed meanwhile leaves the task to the next one. What somebody else writes into the annotation later is never believed.
    """

    def __init__(self) -> None:
        """Start with nothing listed."""
        self._rolls: dict[str, _Roll] = {}
        self._before: AbstractSet[Key] = frozenset()
        self._since: dict[tuple[str, Entry], float] = {}

    def start(self, listing: Listing) -> None:
        """Believe what the Node lists at the start."""
        nobody: AbstractSet[Key] = frozenset()
        self._rolls = {name: _Roll(gone=dict.fromkeys(entries, nobody)) for name, entries in listing.items()}

    def update(self, rules: Sequence[ResourceRule], scene: Scene) -> Mapping[str, Loss]:
        """Take in what the last look found and return the losses that the Node shows, by resource.

        An uncertain look changes nothing, and nothing is lost by it; nor before the first observation of the Node.
        """
        if scene.inventory.doubts or scene.observed is None:
            return {}
        evicting = {rule.name: rule.evict_after for rule in rules if rule.evict_after is not None}
        self._rolls = {name: self._rolls.get(name) or _Roll() for name in evicting}
        sure = {name: roll.look(name, scene, self._before) for name, roll in self._rolls.items()}
        self._before = frozenset(device.key for device in scene.devices)
        lost = {(name, entry) for name, roll in self._rolls.items() for entry in roll.lost}
        self._since = {key: since for key, since in self._since.items() if key in lost}
        found = {name: self._loss(name, after, sure[name], scene) for name, after in evicting.items()}
        return {name: loss for name, loss in found.items() if loss is not None}

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
        return {name: roll.lost for name, roll in self._rolls.items()}

    def settle(self, loss: Loss) -> None:
        """Forget the devices of a loss: nobody uses them any more, or nobody can be told to stop."""
        if (roll := self._rolls.get(loss.resource)) is not None:
            roll.settle(loss.entries)
