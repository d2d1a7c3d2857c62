"""The devices of one evicting resource: here, gone, and returned."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from devwatch.core.departure import Departure, initialized_at, returned_at
from devwatch.core.finding import Finder
from devwatch.core.incidents import Loss, Registration, Return
from devwatch.core.listing import MAX_LINKS, MAX_NUMBERS, Entry, listed_path
from devwatch.core.matching import Ids, ids_of, leads_to
from devwatch.core.plan import START_GRACE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from devwatch.core.device import Device, Key
    from devwatch.core.paths import Paths
    from devwatch.core.rules import ResourceRule
    from devwatch.core.scene import PreviousScan, Scene

REPLUG_PEACE = 600
"""Seconds after an eviction for a return in which further returns of the device evict no pod: it returns whenever it is used."""


class KnownDevices:
    """The devices of one evicting resource: here, gone, and returned."""

    def __init__(self, evicted: Mapping[Ids, int], remembered: Iterable[Entry] = ()) -> None:
        """Start with what the annotation of a former daemon lists; `evicted` is kept by `Losses`."""
        self._remembered, self._begun = tuple(remembered), False
        self._evicted = evicted
        self.here: dict[Key, Entry] = {}
        """By registration: those on the host that it has, or had, and may have again."""
        self.gone: dict[Entry, Departure] = {}
        self.returns: dict[Key, Return] = {}
        self._registrations: dict[Key, tuple[Registration, ...]] = {}
        """Of each present device that has returned."""
        self.replugged: dict[Key, int] = {}
        """When a pod was last evicted for a return of a present device, in Unix seconds."""
        self.sure: tuple[Entry, ...] = ()
        """The gone devices that no present device may be."""

    def observe(self, rule: ResourceRule, scene: Scene, before: PreviousScan, paths: Paths) -> None:
        """Take in a certain scan; `before` is the last one."""
        figure = scene.figures.by_name[rule.name]
        claimed = {device.key: device for device in figure.devices}
        keys = {device.key for device in scene.devices}
        for device in before.devices:
            if device.key in self.here and device.key not in keys:
                self._depart(device, rule, scene, before, paths.shared(device.key))
        remembered = self._recall(rule, scene)
        open_ = scene.open(rule.name)
        finder = Finder(gone=self.gone, here=self.here.keys(), scene=scene, name=rule.name, open=open_)
        found = finder.find(claimed.keys())
        for entry in remembered if figure.advertised <= figure.present else ():
            self._forget_uncounted(entry, found)
        for entry, device in found.items():
            if device.key in open_:
                self.gone[entry].maybe = device.key
            else:
                if self.gone[entry].device is None and entry.rdev == device.number:
                    paths.recall(device.key, entry.shared)
                self._find_again(entry, device, rule, scene)
        for entry in self.gone.keys() - found.keys():
            self.gone[entry].decide(keys, scene.now, rule.removal_grace)
        self.returns = {key: back for key, back in self.returns.items() if key in claimed}
        for device in figure.devices:
            new = device.key not in self.here and device not in found.values()
            if new and (second := self._inherited(Entry.of(device))) is not None:
                self.replugged[device.key] = second
        self._registrations = {key: each for key, each in self._registrations.items() if key in claimed}
        self.replugged = {key: at for key, at in self.replugged.items() if key in claimed}
        kept = {key: entry for key, entry in self.here.items() if key in open_}
        self.here = kept | {key: self._entry(device, paths) for key, device in claimed.items()}
        self.sure = tuple(entry for entry in self.gone if entry not in found)
        self._advance(rule.name, scene)

    def refresh(self, name: str, scene: Scene, paths: Paths) -> None:
        """Take what an uncertain scan has found of the known devices: other texts, or that the resource has them no more."""
        claimed = {device.key: device for device in scene.figures.by_name[name].devices}
        others = {device.key for device in scene.devices} - claimed.keys() - scene.open(name)
        self.here = {
            key: self._entry(claimed[key], paths) if key in claimed else entry
            for key, entry in self.here.items()
            if key not in others
        }

    def _depart(
        self, device: Device, rule: ResourceRule, scene: Scene, before: PreviousScan, shared: AbstractSet[str]
    ) -> None:
        held, former = self.here.pop(device.key), self._registrations.pop(device.key, ())
        shared -= {listed_path(device.devnode)}
        own = (link for link in held.links if link not in shared)
        entry = replace(held, links=tuple(own), shared=tuple(sorted(shared))[:MAX_LINKS])
        first = initialized_at(device)
        # The clock may have been set since the host has started; of what came later it is right enough.
        came = scene.second(first) if first is not None and first > before.began else 0
        since = former[-1].second if former else came
        last = Registration(second=since, number=device.number, paths=entry.paths)
        self.gone[entry] = Departure(
            at=scene.now,
            grace=rule.removal_grace,
            seen=before.at,
            device=device,
            registrations=(*former[:-1], last),
            links={*held.links, *shared},
            others=frozenset(other.key for other in before.devices if ids_of(Entry.of(other)) == ids_of(entry)),
        )

    def _recall(self, rule: ResourceRule, scene: Scene) -> tuple[Entry, ...]:
        """Take what a former daemon listed for departures, of which those end at once that are here. The first scan needs it once."""
        remembered, self._remembered, self._begun = self._remembered, (), True
        for entry in remembered:
            grace = 0.0 if entry.lost else max(rule.removal_grace, START_GRACE)
            numbers = entry.numbers or (((0, entry.rdev),) if entry.rdev is not None else ())
            former = (Registration(second=second, number=number, paths=entry.paths) for second, number in numbers)
            departure = Departure(at=scene.now, grace=grace, registrations=tuple(former))
            if entry.lost:
                departure.recalled = departure.over = True
                departure.lost, departure.there = entry.lost, frozenset()
            self.gone[replace(entry, lost=None)] = departure
        return remembered

    def _forget_uncounted(self, entry: Entry, found: Mapping[Entry, Device]) -> None:
        """Forget what a former daemon, or a kubelet, stopped counting without a date: who came afterwards cannot be told."""
        if entry.lost is None and entry not in found:
            self.gone.pop(entry, None)

    def _find_again(self, entry: Entry, device: Device, rule: ResourceRule, scene: Scene) -> None:
        """Note that a device is back: a container that opened it before may hold a dead file."""
        departure, number = self.gone.pop(entry), device.number
        at = returned_at(device, departure, scene)
        evicted = entry.replugged if entry.replugged is not None else self._inherited(entry)
        if evicted is not None:
            self.replugged[device.key] = evicted
        if at is None or not departure.registrations:
            return
        same = number == entry.rdev and not entry.numbers
        if departure.device is None and (same or not _is_surely(entry, device, scene, rule.name)):
            return
        second = scene.second(at)
        now = Registration(second=second, number=number, paths=frozenset())
        self._registrations[device.key] = (*departure.registrations, now)[-MAX_NUMBERS:]
        self.returns[device.key] = Return(
            resource=rule.name,
            entries=(entry,),
            at=at,
            second=second,
            due=at + (rule.evict_after or 0.0),
            registrations=self._registrations[device.key],
            left=scene.second(departure.seen) if departure.device is not None else 0,
            recent=evicted is not None and evicted <= second < evicted + REPLUG_PEACE,
        )

    def _inherited(self, entry: Entry) -> int | None:
        """Return when a pod was evicted for a return of such a device of which no other entry tells: its loss may be settled."""
        second, known = self._evicted.get(ids_of(entry)), (*self.here.values(), *self.gone)
        told = any(each.replugged == second and ids_of(each) == ids_of(entry) for each in known)
        return None if told else second

    def _entry(self, device: Device, paths: Paths) -> Entry:
        """Return the entry of a present device, with the numbers that its pods may know as long as they have not been looked at."""
        back = self.returns.get(device.key)
        # Until udev's record is complete the links may still change.
        own = paths.own(device.key) - {listed_path(device.devnode)} if device.complete else ()
        shared = paths.shared(device.key) - {listed_path(device.devnode)}
        former = back.registrations if back and back.is_dead(back.registrations) else ()
        numbers = tuple((each.second, each.number) for each in former)
        replugged = self.replugged.get(device.key)
        return Entry.of(device).remembering(
            links=own, shared=shared, rdev=device.number, numbers=numbers, replugged=replugged
        )

    def _advance(self, name: str, scene: Scene) -> None:
        """Move every departure on, as the table of `Departure` says."""
        figure, shown = scene.figures.by_name[name], scene.shows(name)
        lingering = sum(scene.now < self.gone[entry].at + self.gone[entry].grace for entry in self.sure)
        # A count that the start, or what is unknown, holds up still counts what has departed.
        counted_out = not figure.held and figure.advertised <= figure.present + lingering
        for departure in (self.gone[entry] for entry in self.sure):
            if departure.there is None:
                departure.over = counted_out and scene.now >= departure.at + departure.grace
                departure.lost = scene.date or None if departure.over else None
            elif departure.since is None and counted_out and shown:
                departure.since, departure.accepted = scene.now, "" if departure.recalled else scene.date

    def listing(self, devices: Iterable[Device]) -> tuple[Entry, ...] | None:
        """Return what the annotation should list beside these present devices; None before the first certain scan."""
        if not self._begun:
            return None
        new = (Entry.of(device) for device in devices if device.key not in self.here)
        gone = (replace(entry, lost=departure.lost) for entry, departure in self.gone.items())
        return (*self.here.values(), *new, *gone)

    @property
    def waiting(self) -> list[Departure]:
        """The departures that no PATCH has told the Node of."""
        return [departure for departure in self.gone.values() if departure.there is None]

    def losses(self, rule: ResourceRule, scene: Scene, others: frozenset[str]) -> Iterator[Loss]:
        """Yield the losses that the Node shows; none while a count may still change by itself."""
        figure, after = scene.figures.by_name[rule.name], rule.evict_after or 0.0
        if figure.held or figure.advertised != figure.present or not scene.shows(rule.name):
            return
        groups: dict[tuple[float, str, frozenset[str]], list[Entry]] = {}
        for entry in self.sure:
            departure = self.gone[entry]
            if departure.since is not None:
                group = (departure.since, departure.lost or "", departure.there or frozenset())
                groups.setdefault(group, []).append(entry)
        for (since, lost, there), entries in groups.items():
            ripe = sum(len(each) for group, each in groups.items() if group[0] + after <= max(since + after, scene.now))
            loss = Loss(
                resource=rule.name,
                entries=tuple(entries),
                left=figure.present + len(self.gone) - ripe,
                since=since,
                due=since + after,
                there=there,
                lost=lost,
                accepted=self.gone[entries[0]].accepted,
                others=others,
            )
            yield self._as_chosen(loss)

    def _as_chosen(self, loss: Loss) -> Loss:
        """Return a loss as it was when its victims were chosen, whatever was plugged since, unless one of its devices has returned."""
        choice = self.gone[loss.entries[0]].choice
        if choice is None or choice.entries == loss.entries:
            return choice or loss
        return replace(loss, victims=choice.victims)

    def choose(self, loss: Loss) -> None:
        """Remember a loss with its victims."""
        for entry in loss.entries:
            self.gone[entry].choice = loss

    def settle(self, incident: Loss | Return) -> None:
        """Forget an incident: its pods are gone or are spared."""
        if isinstance(incident, Loss):
            self.gone = {entry: departure for entry, departure in self.gone.items() if entry not in incident.entries}
        else:
            self.returns = {key: back for key, back in self.returns.items() if back.key != incident.key}


def _is_surely(entry: Entry, device: Device, scene: Scene, name: str) -> bool:
    """Return whether a device is the one that a former daemon listed, and no other may be: its pods are evicted if it was renumbered."""
    maybe = [
        each for each in scene.by_ownership(name)[0] if leads_to(entry, each) or ids_of(entry) == ids_of(Entry.of(each))
    ]
    return maybe == [device] and ids_of(entry) == ids_of(Entry.of(device))
