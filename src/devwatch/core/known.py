"""Track the devices of one evicting resource: present, departed and returned."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from devwatch.core.departure import Departure, initialized_at, returned_at
from devwatch.core.finding import Finder
from devwatch.core.incidents import Loss, Registration, Return
from devwatch.core.listing import MAX_LINKS, MAX_NUMBERS, Entry, listed_path
from devwatch.core.matching import Ids, ids_of, leads_to, may_be_twins
from devwatch.core.plan import START_GRACE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from devwatch.core.device import Device, Key
    from devwatch.core.paths import Paths
    from devwatch.core.rules import ResourceRule
    from devwatch.core.scene import PreviousScan, Scene

REPLUG_PEACE = 600
"""Seconds after an eviction for a return in which a further return of the device evicts no pod: such a device may re-enumerate on use."""


class KnownDevices:
    """The devices of one evicting resource: present (`here`), departed (`gone`) and returned (`returns`).

    A device moves from `here` to `gone` when a certain scan does not find it, and back when `Finder` matches it to a present device.
    `observe` takes these steps, of which each uses the results of those before:

    1. Known devices that the scan lacks depart. On the first scan, the entries of a former daemon become departures as well.
    2. `Finder` matches departures to present devices. This comes after the departures, so that a device that was replugged between
       two scans both departs and returns.
    3. Where the count is not above the present devices, entries of the former daemon that have no `lost` and no match are forgotten.
    4. Each match is a return, unless the device is in `open_`: while it is unknown whether the resource claims the device, it is also
       unknown whether it is the departed one (`maybe`), and neither a return nor a loss follows. For departures without a match such a
       doubt is settled (`decide`).
    5. The state of devices that the resource no longer claims is dropped, and a device that arrived unmatched inherits the time of an
       eviction by its ids. An open device keeps its old entry, since its new values are incomplete.
    6. The remaining departures advance. This comes last, since `sure` excludes all departures that have a match.
    """

    def __init__(self, evicted: Mapping[Ids, int], remembered: Iterable[Entry] = ()) -> None:
        """Start with the entries in the annotation of a former daemon. `evicted` is shared with `Losses`, which updates it."""
        self._remembered, self._restored = tuple(remembered), False
        self._evicted = evicted
        self.here: dict[Key, Entry] = {}
        """By registration: the present devices that the resource claims, or claimed and may claim again."""
        self.gone: dict[Entry, Departure] = {}
        self.returns: dict[Key, Return] = {}
        self._registrations: dict[Key, tuple[Registration, ...]] = {}
        """By registration: the history of each present device that has returned."""
        self.replugged: dict[Key, int] = {}
        """When a pod was last evicted for a return of a present device, in Unix seconds."""
        self.sure: tuple[Entry, ...] = ()
        """The departed devices that cannot be any present device. Only these can become losses."""

    def observe(self, rule: ResourceRule, scene: Scene, before: PreviousScan, paths: Paths) -> None:
        """Process a certain scan by the steps of the class docstring; `before` is the previous one."""
        figure = scene.figures.by_name[rule.name]
        claimed = {device.key: device for device in figure.devices}
        keys = {device.key for device in scene.devices}
        for device in before.devices:
            if device.key in self.here and device.key not in keys:
                self._record_departure(device, rule, scene, before, paths.shared(device.key))
        remembered = self._restore_departures(rule, scene)
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
                self._record_return(entry, device, rule, scene)
        for entry in self.gone.keys() - found.keys():
            self.gone[entry].decide(keys, scene.now, rule.removal_grace)
        self.returns = {key: back for key, back in self.returns.items() if key in claimed}
        for device in figure.devices:
            new = device.key not in self.here and device not in found.values()
            if new and (second := self._inherited_eviction(Entry.of(device))) is not None:
                self.replugged[device.key] = second
        self._registrations = {key: each for key, each in self._registrations.items() if key in claimed}
        self.replugged = {key: at for key, at in self.replugged.items() if key in claimed}
        kept = {key: entry for key, entry in self.here.items() if key in open_}
        self.here = kept | {key: self._entry_to_list(device, paths) for key, device in claimed.items()}
        self.sure = tuple(entry for entry in self.gone if entry not in found)
        self._advance_departures(rule.name, scene, paths.all)

    def refresh(self, name: str, scene: Scene, paths: Paths) -> None:
        """Update known devices from an uncertain scan: changed values, and devices that the resource no longer claims. Nothing departs."""
        claimed = {device.key: device for device in scene.figures.by_name[name].devices}
        others = {device.key for device in scene.devices} - claimed.keys() - scene.open(name)
        self.here = {
            key: self._entry_to_list(claimed[key], paths) if key in claimed else entry
            for key, entry in self.here.items()
            if key not in others
        }

    def _record_departure(
        self, device: Device, rule: ResourceRule, scene: Scene, before: PreviousScan, shared: AbstractSet[str]
    ) -> None:
        """Move a device from `here` to `gone`; its paths are split into those that only it had and those that another one shared."""
        held, former = self.here.pop(device.key), self._registrations.pop(device.key, ())
        shared -= {listed_path(device.devnode)}
        own = (link for link in held.links if link not in shared)
        entry = replace(held, links=tuple(own), shared=tuple(sorted(shared))[:MAX_LINKS])
        first = initialized_at(device)
        # For a device that was plugged before the daemon began, a Unix time is not computed: the clock may have been set since.
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
            others={
                other.key: initialized_at(other)
                for other in before.devices
                if other.key != device.key and may_be_twins(device, other)
            },
        )

    def _restore_departures(self, rule: ResourceRule, scene: Scene) -> tuple[Entry, ...]:
        """Turn the entries of a former daemon into departures, once, at the first certain scan.

        The entries of present devices are matched in the same scan, which ends their departures. An entry with `lost` has already been
        removed from the count: it starts in the state "sent", without grace.
        """
        remembered, self._remembered, self._restored = self._remembered, (), True
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
        """Forget an entry that stopped counting without a date: pods bound before and after cannot be distinguished, so none is evicted."""
        if entry.lost is None and entry not in found:
            self.gone.pop(entry, None)

    def _record_return(self, entry: Entry, device: Device, rule: ResourceRule, scene: Scene) -> None:
        """End a departure, and record a return where a container may hold a dead file of the device.

        The time of the last eviction for a return is carried over in every case. No return is recorded where:

        - the time is unknown (`returned_at`), or the former device numbers are: no container could be judged;
        - this daemon did not observe the departure, and the device has the number it was listed with: it may never have been away;
        - this daemon did not observe the departure, and more than one present device may be the listed one: its twin may hold the file.
        """
        departure, number = self.gone.pop(entry), device.number
        at = returned_at(device, departure, scene)
        evicted = entry.replugged if entry.replugged is not None else self._inherited_eviction(entry)
        if evicted is not None:
            self.replugged[device.key] = evicted
        if at is None or not departure.registrations:
            return
        same = number == entry.rdev and not entry.numbers
        if departure.device is None and (same or not _is_unambiguous(entry, device, scene, rule.name)):
            return
        second, former = scene.second(at), departure.registrations
        last = former[-1]
        if departure.device is None and last.number == number and abs(last.second - second) <= 1:
            former = former[:-1]  # the former daemon has already listed the present registration
        now = Registration(second=second, number=number, paths=frozenset())
        self._registrations[device.key] = (*former, now)[-MAX_NUMBERS:]
        self.returns[device.key] = Return(
            resource=rule.name,
            entries=(entry,),
            at=at,
            second=second,
            due=at + (rule.evict_after or 0.0),
            registrations=self._registrations[device.key],
            left=scene.second(departure.seen) if departure.device is not None else 0,
            recent=evicted is not None and evicted <= second < evicted + REPLUG_PEACE,
            taken=departure.taken,
        )

    def _inherited_eviction(self, entry: Entry) -> int | None:
        """Return when a pod was evicted for a return of a device with these ids, None where another known entry carries that time.

        The loss of the device may have been settled, and its entry forgotten, before it returned.
        """
        second, known = self._evicted.get(ids_of(entry)), (*self.here.values(), *self.gone)
        recorded = any(each.replugged == second and ids_of(each) == ids_of(entry) for each in known)
        return None if recorded else second

    def _entry_to_list(self, device: Device, paths: Paths) -> Entry:
        """Return the entry of a present device, with its former numbers until the pods that may have opened them have been examined."""
        back = self.returns.get(device.key)
        # The links may still change until udev's record is complete.
        own = paths.own(device.key) - {listed_path(device.devnode)} if device.complete else ()
        shared = paths.shared(device.key) - {listed_path(device.devnode)}
        former = back.registrations if back and back.is_dead(back.registrations) else ()
        numbers = tuple((each.second, each.number) for each in former)
        replugged = self.replugged.get(device.key)
        return Entry.of(device).remembering(
            links=own, shared=shared, rdev=device.number, numbers=numbers, replugged=replugged
        )

    def _advance_departures(self, name: str, scene: Scene, taken: AbstractSet[str]) -> None:
        """Advance every departure in `sure` by the state table of `Departure`; `taken` are the paths of the present devices.

        Nothing advances while something else holds the count above the present and lingering devices: the start grace, or a key that is
        unknown. The count then still includes the departed device, so a PATCH would not be the one that removes it.
        """
        figure, is_shown = scene.figures.by_name[name], scene.shows(name)
        lingering = sum(scene.now < self.gone[entry].at + self.gone[entry].grace for entry in self.sure)
        counted_out = not figure.held and figure.advertised <= figure.present + lingering
        for departure in (self.gone[entry] for entry in self.sure):
            departure.note_taken(taken)
            if departure.there is None:
                departure.over = counted_out and scene.now >= departure.at + departure.grace
                departure.lost = scene.date or None if departure.over else None
            elif departure.since is None and counted_out and is_shown:
                departure.since, departure.accepted = scene.now, "" if departure.recalled else scene.date

    def listing(self, devices: Iterable[Device]) -> tuple[Entry, ...] | None:
        """Return the entries to list in the annotation, given these present devices; None before the first certain scan."""
        if not self._restored:
            return None
        new = (Entry.of(device) for device in devices if device.key not in self.here)
        gone = (replace(entry, lost=departure.lost) for entry, departure in self.gone.items())
        return (*self.here.values(), *new, *gone)

    @property
    def waiting(self) -> list[Departure]:
        """The departures for which no PATCH has been sent."""
        return [departure for departure in self.gone.values() if departure.there is None]

    def losses(self, rule: ResourceRule, scene: Scene, others: frozenset[str]) -> Iterator[Loss]:
        """Yield the losses that the Node shows, grouped by the PATCH that stopped counting them; none while the count may still fall."""
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
            yield self._with_chosen_victims(loss)

    def _with_chosen_victims(self, loss: Loss) -> Loss:
        """Return a loss as it was when its victims were chosen, whatever was plugged in later, unless one of its devices has returned."""
        choice = self.gone[loss.entries[0]].choice
        if choice is None or choice.entries == loss.entries:
            return choice or loss
        return replace(loss, victims=choice.victims)

    def choose(self, loss: Loss) -> None:
        """Store a loss with its victims."""
        for entry in loss.entries:
            self.gone[entry].choice = loss

    def settle(self, incident: Loss | Return) -> None:
        """Forget an incident whose pods are gone or spared."""
        if isinstance(incident, Loss):
            self.gone = {entry: departure for entry, departure in self.gone.items() if entry not in incident.entries}
        else:
            self.returns = {key: back for key, back in self.returns.items() if back.key != incident.key}


def _is_unambiguous(entry: Entry, device: Device, scene: Scene, name: str) -> bool:
    """Return whether exactly this device matches the entry of a former daemon: if its number changed, its pods are evicted."""
    candidates = [
        each for each in scene.by_ownership(name)[0] if leads_to(entry, each) or ids_of(entry) == ids_of(Entry.of(each))
    ]
    return candidates == [device] and ids_of(entry) == ids_of(Entry.of(device))
