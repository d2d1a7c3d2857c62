"""Devices that are lost: listed for a resource once, and surely no longer on this host. Only they evict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from devwatch.node import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from devwatch.device import Device
    from devwatch.inventory import Inventory
    from devwatch.node import Listing, NodeState
    from devwatch.plan import Figures
    from devwatch.rules import ResourceRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Devices of one resource that are lost, and since when the Node says so."""

    resource: str
    entries: tuple[Entry, ...]
    left: int
    """How many of the resource are present."""
    since: float
    due: float
    """When its pods are to be evicted."""


def lost_among(listed: Sequence[Entry], devices: Iterable[Device]) -> tuple[Entry, ...]:
    """Return the listed devices that are not on the host.

    A device is still here when its devnode is there with the same ids or with unknown ones, or when a device with its
    ids, which is not one of the other listed ones, is found under another name: then it was only plugged in elsewhere.
    """
    here = {device.devnode: device for device in devices}
    gone = [entry for entry in listed if not _stayed(entry, here.get(entry.devnode))]
    kept = {entry.devnode for entry in listed} - {entry.devnode for entry in gone}
    others = [_ids(Entry.of(device)) for devnode, device in here.items() if devnode not in kept]
    lost = []
    for entry in gone:
        if _ids(entry) in others:
            others.remove(_ids(entry))
        else:
            lost.append(entry)
    return tuple(lost)


def _stayed(entry: Entry, device: Device | None) -> bool:
    return device is not None and (_ids(Entry.of(device)) == _ids(entry) or not device.complete)


def _ids(entry: Entry) -> tuple[str | None, str | None, str | None]:
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
        self._since: dict[str, float] = {}
        self._losses: dict[str, Loss] = {}

    def start(self, listing: Listing) -> None:
        """Believe what the Node lists at the start."""
        for name, entries in listing.items():
            self._listed[name] = (*self._listed.get(name, ()), *entries)

    def update(self, rules: Sequence[ResourceRule], scene: Scene) -> Mapping[str, Loss]:
        """Take in what the last look found and return the losses that the Node shows, by resource.

        An uncertain look changes nothing, and nothing is lost by it.
        """
        if scene.inventory.doubts:
            return {}
        evicting = {rule.name: rule.evict_after for rule in rules if rule.evict_after is not None}
        self._listed = {name: self._listed.get(name, ()) for name in evicting}
        found = {name: self._loss(name, after, scene) for name, after in evicting.items()}
        self._losses = {name: loss for name, loss in found.items() if loss is not None}
        return self._losses

    def _loss(self, name: str, after: float, scene: Scene) -> Loss | None:
        figure, observed = scene.figures.by_name[name], scene.observed
        lost = lost_among(self._listed[name], (*scene.inventory.present, *scene.inventory.pending))
        self._listed[name] = (*lost, *(Entry.of(device) for device in figure.devices))
        told = observed is not None and observed.shows(name, str(figure.present))
        if not lost or not told or figure.held or figure.advertised != figure.present:
            self._since.pop(name, None)
            return None
        since = self._since.setdefault(name, scene.now)
        return Loss(resource=name, entries=lost, left=figure.present, since=since, due=since + after)

    def kept(self) -> Listing:
        """Return the lost devices that the annotation goes on listing."""
        return {name: loss.entries for name, loss in self._losses.items()}

    def settle(self, loss: Loss) -> None:
        """Forget the devices of a loss: nobody uses them any more, or nobody can be told to stop."""
        listed = self._listed.get(loss.resource, ())
        self._listed[loss.resource] = tuple(entry for entry in listed if entry not in loss.entries)
        self._since.pop(loss.resource, None)
        self._losses.pop(loss.resource, None)
