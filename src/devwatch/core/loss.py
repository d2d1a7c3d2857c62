"""Devices that are lost, and devices that have returned under another number: the two things for which pods are evicted."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

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

ROLL_CALL_LEAD = 0.5
"""Seconds before the end of a grace at which the pods are listed once more; the PATCH at its end waits for no list."""


ROLL_CALL_PACE = 1.0
"""Seconds between two lists of pods because of departures, at least: a contact may bounce ten times a second."""


class Losses:
    """What is lost, and what has returned, of the resources that evict.

    What the annotation lists is remembered: from the first observation, if a former daemon wrote it, and from what is claimed now. A device
    that this daemon has seen is known by its registration with the kernel, whatever udev says of it later; one of which only the annotation
    tells, by its devnode, links and ids. The annotation keeps a lost device until its pods are gone, so that a daemon that is killed
    meanwhile leaves the task to the next one. what another client writes into the annotation is never believed.
    """

    def __init__(self) -> None:
        """Start with nothing listed."""
        self._known: dict[str, KnownDevices] = {}
        self._evicted: dict[Ids, int] = {}
        """When a pod was last evicted for a return of such a device, in Unix seconds."""
        self._listed: tuple[Device, ...] = ()
        self._paths = Paths()
        self._before = PreviousScan()
        self._there: set[str] = set()
        self._called_at = float("-inf")

    def start(self, memory: Listing) -> None:
        """Believe what the Node lists at the start."""
        self._known = {name: KnownDevices(self._evicted, entries) for name, entries in memory.items()}

    def update(self, rules: Sequence[ResourceRule], scene: Scene) -> Incidents:
        """Take in what the last scan found and return what calls for a look at the pods.

        By an uncertain scan nothing is lost, and nothing returns; nor before the first observation of the Node.
        """
        evicting = [rule for rule in rules if rule.evict_after is not None]
        # A resource that leaves the configuration and returns to it starts from nothing, also where every scan meanwhile was uncertain.
        self._known = {rule.name: self._known.get(rule.name) or KnownDevices(self._evicted) for rule in evicting}
        certain = not scene.inventory.doubts
        # Also before any resource evicts: what twins shared then counts once one does.
        figures = scene.figures.by_name.values()
        self._listed = tuple(device for figure in figures for device in figure.devices)
        self._paths.observe(self._listed, certain=certain)
        if not certain:
            for rule in evicting:
                self._known[rule.name].refresh(rule.name, scene, self._paths)
        if not certain or scene.observed is None:
            return Incidents()
        for rule in evicting:
            self._known[rule.name].observe(rule, scene, self._before, self._paths)
        began = min(self._before.began, scene.now)
        self._before = PreviousScan(at=scene.now, devices=scene.devices, began=began)
        if not self._waiting:
            self._there.clear()
        return Incidents(
            losses=tuple(loss for rule in evicting for loss in self._losses(rule, scene)),
            returns=tuple(
                self._return(key, back) for known in self._known.values() for key, back in known.returns.items()
            ),
        )

    def _losses(self, rule: ResourceRule, scene: Scene) -> Iterator[Loss]:
        devices = scene.figures.by_name[rule.name].devices
        others = frozenset(chain.from_iterable(self._paths.own(device.key) for device in devices))
        return self._known[rule.name].losses(rule, scene, others)

    def _return(self, key: Key, back: Return) -> Return:
        """Return it with the paths that it had before: through no other can a container have a file of it that is dead now.

        Those that name another device as well decide nothing.
        """
        paths = frozenset(chain.from_iterable(each.paths for each in back.registrations))
        taken = {each: paths & self._paths.of(each) for each in self._paths.keys() - {key}}
        equals = chain.from_iterable(taken[each] for each in taken.keys() & self._known[back.resource].here.keys())
        return replace(
            back,
            shared=self._paths.shared(key).union(equals),
            taken=frozenset(chain.from_iterable(taken.values())),
        )

    def listing(self, figures: Figures) -> Listing:
        """Return what the annotation should list of the resources that evict."""
        found = {
            name: known.listing(figures.by_name[name].devices)
            for name, known in self._known.items()
            if name in figures.by_name
        }
        return {name: entries for name, entries in found.items() if entries is not None}

    def settle(self, incident: Loss | Return) -> None:
        """Forget an incident: its pods are gone or are spared."""
        if (known := self._known.get(incident.resource)) is not None:
            known.settle(incident)

    def choose(self, loss: Loss, concerned: AbstractSet[str]) -> frozenset[str]:
        """Return the UIDs of the victims of a loss: those that are concerned when this is asked first, and no others later."""
        if loss.victims is not None:
            return loss.victims
        victims = frozenset(concerned)
        self._known[loss.resource].choose(replace(loss, victims=victims))
        return victims

    def note_eviction(self, back: Return, now: float) -> None:
        """Remember that a pod was evicted for a return, so that the device does not evict whenever it is used, nor another part of it."""
        second = back.second + int(now - back.at)
        returned = {
            key for known in self._known.values() for key, held in known.returns.items() if held.key == back.key
        }
        bodies = {device.body for device in self._listed if device.key in returned}
        keys = {device.key for device in self._listed if device.body in bodies}
        for ids in [ids for ids, at in self._evicted.items() if second >= at + REPLUG_PEACE]:
            del self._evicted[ids]
        self._evicted[ids_of(back.entries[0])] = second
        for known in self._known.values():
            known.replugged |= dict.fromkeys(keys & known.here.keys(), second)

    # -- who was there

    @property
    def _waiting(self) -> list[Departure]:
        return [departure for known in self._known.values() for departure in known.waiting]

    @property
    def roll_call(self) -> float | None:
        """When the pods are to be listed next, so that it is known who was there: at a departure and shortly before its grace ends."""
        moments = chain.from_iterable((each.at, each.at + each.grace - ROLL_CALL_LEAD) for each in self._waiting)
        due = min((moment for moment in moments if moment > self._called_at), default=None)
        return None if due is None else max(due, self._called_at + ROLL_CALL_PACE)

    def call_roll(self, now: float) -> None:
        """Note that the pods are being listed."""
        self._called_at = now

    def witness(self, uids: Iterable[str]) -> None:
        """Take the UIDs of the pods that are there."""
        self._there.update(uids)

    def send(self) -> None:
        """Note that a PATCH is sent: for what it no longer counts, it is decided now who was there, also if it has to be repeated."""
        for departure in self._waiting:
            if departure.over:
                departure.there = frozenset(self._there)
