"""Find the incidents of a scan: lost devices, and devices that have returned under another number. Only these evict pods."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from devwatch.core.departure import find_losses
from devwatch.core.incidents import Incidents, Loss, Return
from devwatch.core.known import REPLUG_PEACE, KnownDevices
from devwatch.core.matching import Ids, ids_of
from devwatch.core.paths import Paths
from devwatch.core.scene import PreviousScan, Scene

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.core.departure import Departure
    from devwatch.core.device import Device, Key
    from devwatch.core.listing import Listing
    from devwatch.core.plan import Figures
    from devwatch.core.rules import ResourceRule

POD_LIST_LEAD = 0.5
"""Seconds before the end of a grace at which the pods are listed once more; the PATCH at its end does not wait for a list."""
POD_LIST_INTERVAL = 1.0
"""Seconds between two lists of pods because of departures, at least: a loose contact may bounce ten times a second."""


class Losses:
    """The lost and returned devices of all resources that evict.

    Devices are known from two sources: the annotation of a former daemon, read at the first observation of the Node, and the scans since.
    A device that this daemon has observed is identified by its registration with the kernel, whatever udev reports later; one that is
    known only from the annotation, by its devnode, links and ids. The annotation keeps a lost device until its pods are gone, so that a
    daemon that is killed meanwhile leaves the eviction to the next one. Changes that another client makes to the annotation are ignored.
    """

    def __init__(self) -> None:
        """Start without devices."""
        self._known: dict[str, KnownDevices] = {}
        self._evicted: set[tuple[Ids, int]] = set()
        """The ids of each device for whose return a pod was evicted, with the Unix second of the last time: twins have one each."""
        self._listed: tuple[Device, ...] = ()
        self._paths = Paths()
        self._previous_scan = PreviousScan()
        self._pods_observed: set[str] = set()
        self._pods_listed_at = float("-inf")

    def start(self, memory: Listing) -> None:
        """Take the devices that the annotation of a former daemon lists, also of a resource that is not configured at the moment."""
        entries = chain.from_iterable(memory.values())
        self._evicted |= {(ids_of(entry), entry.replugged) for entry in entries if entry.replugged is not None}
        self._known = {
            name: KnownDevices(self._evicted, (entry for entry in entries if entry.devnode))
            for name, entries in memory.items()
        }

    def update(self, rules: Sequence[ResourceRule], scene: Scene) -> Incidents:
        """Process the last scan and return all incidents.

        There are none after an uncertain scan, nor before the first observation of the Node.
        """
        evicting = [rule for rule in rules if rule.evict_after is not None]
        # A resource that leaves the configuration and returns to it starts without devices, even if every scan meanwhile was uncertain.
        self._known = {rule.name: self._known.get(rule.name) or KnownDevices(self._evicted) for rule in evicting}
        certain = not scene.inventory.doubts
        self._observe_paths(scene, certain=certain)
        if not certain:
            for rule in evicting:
                self._known[rule.name].refresh(rule.name, scene, self._paths)
            for departure in self._unsent_departures:
                departure.lost = None  # a PATCH that is sent in doubt lowers no count
        if not certain or scene.observed is None:
            return Incidents()
        for rule in evicting:
            self._known[rule.name].observe(rule, scene, self._previous_scan, self._paths)
        began = min(self._previous_scan.began, scene.now)
        self._previous_scan = PreviousScan(at=scene.now, devices=scene.devices, began=began)
        if not self._unsent_departures:
            self._pods_observed.clear()
        return Incidents(
            losses=tuple(loss for rule in evicting for loss in self._losses_of(rule, scene)),
            returns=tuple(
                replace(self._return_with_paths(key, back), due=back.at + (rule.evict_after or 0.0))
                for rule in evicting
                for key, back in self._known[rule.name].returns.items()
            ),
        )

    def _observe_paths(self, scene: Scene, *, certain: bool) -> None:
        """Note the paths, also while no resource evicts: once one does, it must be known which paths its devices have shared."""
        self._listed = tuple(device for figure in scene.figures.by_name.values() for device in figure.devices)
        listed = {device.key for device in self._listed}
        unread = tuple(device for device in scene.devices if not device.complete and device.key not in listed)
        self._paths.observe(self._listed, unread=unread, certain=certain)

    def _losses_of(self, rule: ResourceRule, scene: Scene) -> Iterator[Loss]:
        others = frozenset(chain.from_iterable(map(self._paths.own, scene.claimed(rule.name))))
        return find_losses(self._known[rule.name].gone, rule, scene, others)

    def _return_with_paths(self, key: Key, back: Return) -> Return:
        """Return it with those paths of its registrations that also name, or by now lead to, another device.

        A container can have a dead file only through a path of a former registration; a shared one does not prove which device it opened.
        """
        paths = frozenset(chain.from_iterable(each.paths for each in back.registrations))
        taken = {each: paths & others for each, others in self._paths.by_device.items() if each != key}
        equals = chain.from_iterable(taken[each] for each in taken.keys() & self._known[back.resource].here.keys())
        return replace(
            back,
            shared=self._paths.shared(key).union(equals),
            taken=frozenset().union(*taken.values()),
        )

    def listing(self, figures: Figures) -> Listing:
        """Return the entries that the annotation should list for the resources that evict."""
        found = {
            name: known.listing(figures.by_name[name].devices)
            for name, known in self._known.items()
            if name in figures.by_name
        }
        return {name: entries for name, entries in found.items() if entries is not None}

    def settle(self, incident: Loss | Return) -> None:
        """Forget an incident whose pods are gone or spared."""
        if (known := self._known.get(incident.resource)) is not None:
            known.settle(incident)

    def choose(self, loss: Loss, concerned: AbstractSet[str]) -> frozenset[str]:
        """Return the UIDs of the victims of a loss: the pods concerned at the first call. Later calls never add any."""
        if loss.victims is not None:
            return loss.victims
        victims = frozenset(concerned)
        for entry in loss.entries:
            self._known[loss.resource].gone[entry].choice = replace(loss, victims=victims)
        return victims

    def note_eviction(self, back: Return, now: float, *, certain: bool = True) -> None:
        """Record an eviction for a return, so that further returns of any part of this stick evict no pod for `REPLUG_PEACE` seconds.

        One that is not `certain` is recorded once for each return: each record is a write of the annotation.
        """
        ids, second = ids_of(back.entries[0]), back.second + int(now - back.at)
        if not certain and any(each == ids and at >= back.second for each, at in self._evicted):
            return
        returned = {
            key for known in self._known.values() for key, held in known.returns.items() if held.key == back.key
        }
        bodies = {device.body for device in self._listed if device.key in returned}
        keys = {device.key for device in self._listed if device.body in bodies}
        self._evicted -= {(each, at) for each, at in self._evicted if second >= at + REPLUG_PEACE}
        for known in self._known.values():
            known.note_eviction(keys, second)
        self._evicted.add((ids, second))

    # -- the pods that were present before a count fell

    @property
    def _unsent_departures(self) -> list[Departure]:
        gone = chain.from_iterable(known.gone.values() for known in self._known.values())
        return [departure for departure in gone if departure.there is None]

    @property
    def pod_list_due(self) -> float | None:
        """When to list the pods next, None for never: at each departure, and `POD_LIST_LEAD` seconds before its grace ends."""
        moments = chain.from_iterable((each.at, each.until - POD_LIST_LEAD) for each in self._unsent_departures)
        due = min((moment for moment in moments if moment > self._pods_listed_at), default=None)
        return None if due is None else max(due, self._pods_listed_at + POD_LIST_INTERVAL)

    def note_pod_list(self, now: float) -> None:
        """Record that the pods are being listed."""
        self._pods_listed_at = now

    def record_pods(self, uids: Iterable[str]) -> None:
        """Record the UIDs of the pods of the list."""
        self._pods_observed.update(uids)

    def send(self) -> None:
        """Record that a PATCH is sent: for the devices that it no longer counts, fix the pods listed so far, even if it is repeated."""
        for departure in self._unsent_departures:
            if departure.lost is not None:
                departure.there = frozenset(self._pods_observed)
