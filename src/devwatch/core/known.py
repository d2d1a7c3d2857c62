"""Track the devices of one evicting resource: present, departed and returned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from devwatch.core.departure import Departure, advance_departures, initialized_at, returned_at
from devwatch.core.device import TTY
from devwatch.core.finding import Finder
from devwatch.core.glimpse import Glimpses
from devwatch.core.incidents import Loss, Registration, Return
from devwatch.core.listing import MAX_LINKS, MAX_NUMBERS, Entry, listed_path, paths_of
from devwatch.core.matching import Ids, ids_of, leads_to, may_be_twins
from devwatch.core.plan import START_GRACE
from devwatch.core.slots import mark

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from devwatch.core.device import Device, Key
    from devwatch.core.paths import Paths
    from devwatch.core.rules import Publish, ResourceRule
    from devwatch.core.scene import PreviousScan, Scene
    from devwatch.core.slots import Slot

REPLUG_PEACE = 600
"""Seconds after an eviction for a return in which a further return of the device evicts no pod: such a device may re-enumerate on use."""

BOOT_PERIOD = 600.0
"""Seconds after the start of this host in which the status of a pod may still be of before. Later the time of that start proves nothing: it
is computed, and the clock may have been set since, as it is on a host that has none of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentDevice:
    """A known device that is present."""

    entry: Entry
    """The device as the annotation lists it."""
    back: Return | None = None
    """Its last return, None without one, and once its pods are gone or spared."""
    registrations: tuple[Registration, ...] = ()
    """All its registrations, the current one last, whose paths are added when it departs; empty for one that a former daemon listed."""

    def refreshed(self, device: Device, paths: Paths, slot: Slot | None, publish: Publish) -> PresentDevice:
        """Return a copy whose entry lists what a scan found, and the former numbers until the pods of `back` are gone or spared."""
        devnode, back = {listed_path(device.devnode)}, self.back
        former = back.registrations if back and back.is_dead(back.registrations) else ()
        entry = Entry.of(device).remembering(
            # The links may still change until udev's record is complete.
            links=paths.own(device.key) - devnode if device.complete else (),
            shared=paths.shared(device.key) - devnode,
            rdev=device.number,
            numbers=tuple((each.second, each.number) for each in former),
            replugged=self.entry.replugged,
        )
        return replace(self, entry=mark(entry, slot, publish) if slot else entry)


class KnownDevices:
    """The devices of one evicting resource: present (`here`), departed (`gone`), and found by uncertain scans alone.

    A device moves from `here` to `gone` when a certain scan does not find it, and back when `Finder` matches it to a present device.
    `observe` takes these steps, of which each uses the results of those before:

    1. Known devices that the scan lacks depart. On the first scan, the entries of a former daemon become departures as well.
    2. `Finder` matches departures to present devices. This comes after the departures, so that a device that was replugged between
       two scans both departs and returns.
    3. Where the count is not above the present devices, entries of the former daemon that have no `lost` and no match are forgotten:
       they stopped counting without a date, so pods bound before and after cannot be distinguished, and none is evicted. Where the kubelet
       hands devices over it knows the holders, and no date is needed.
    4. Each match is a return, unless it is unknown whether the resource claims the device (`Scene.open`), or which ID it gets
       (`Scene.unidentified`): then it is also unknown whether it is the departed one (`maybe`), and neither a return nor a loss follows.
       For departures without a match such a doubt is settled.
    5. `here` becomes the devices that the resource claims. A device that it claimed before, and may claim again, keeps its old entry,
       since its new values are incomplete. One that arrived unmatched inherits the time of an eviction by its ids.
    6. The departures without a match advance, towards a loss.
    """

    def __init__(self, evicted: set[tuple[Ids, int]], remembered: Iterable[Entry] = ()) -> None:
        """Start with the entries in the annotation of a former daemon. `evicted` is shared with `Losses` and the other resources."""
        self._evicted = evicted
        self._remembered: tuple[Entry, ...] | None = tuple(remembered)
        """The entries of the former daemon until the first certain scan, then None."""
        self.here: dict[Key, PresentDevice] = {}
        """By registration: the present devices that the resource claims, or claimed and may claim again."""
        self.gone: dict[Entry, Departure] = {}
        """By the entry that listed it: the departed devices, until they are found or their pods are gone."""
        self._glimpses = Glimpses()

    def observe(self, rule: ResourceRule, scene: Scene, before: PreviousScan, paths: Paths) -> None:
        """Process a certain scan by the steps of the class docstring; `before` is the previous one."""
        self._record_departures(rule, scene, before, paths)
        uncounted = self._restore_departures(rule, scene)
        # A resource that counts another subsystem now has no departed devices: the former one may not be scanned any more.
        self.gone = {entry: each for entry, each in self.gone.items() if (entry.subsystem or TTY) == rule.subsystem}
        found = Finder(gone=self.gone, here=self.here.keys(), scene=scene, name=rule.name).find()
        exact = rule.publish.hands_over
        if not exact and scene.figure(rule.name).advertised <= scene.figure(rule.name).present:
            for entry in uncounted & self.gone.keys() - found.keys():
                del self.gone[entry]
        returned = self._end_departures(found, rule, scene, paths)
        self._add_present(returned, rule.name, scene, before)
        self.refresh(rule.name, scene, paths)
        advance_departures(self.gone, rule.name, scene, paths.all)

    def refresh(self, name: str, scene: Scene, paths: Paths) -> None:
        """Update the known devices from a scan, even an uncertain one: changed values, and devices that the resource no longer claims.

        A departed device whose ID a present one has is back: if it goes again before a certain scan finds it, it has departed again.
        """
        claimed, slots, publish = scene.claimed(name), scene.slots(name), scene.figure(name).publish
        others = {device.key for device in scene.devices} - claimed.keys() - scene.open(name)
        self.here = {
            key: known.refreshed(claimed[key], paths, slots.get(key), publish) if key in claimed else known
            for key, known in self.here.items()
            if key not in others
        }
        self._forget_others(others, name, scene)
        departed = {entry.id for entry in self.gone}
        new = {key: slot for key, slot in slots.items() if key not in self.here and slot.id not in departed}
        self._glimpses.note(_entries_of(claimed, new, paths, publish), scene)
        back = {slot.id: key for key, slot in slots.items()}
        for entry, departure in self.gone.items():
            departure.maybe = back.get(entry.id or "", departure.maybe)

    def _forget_others(self, others: AbstractSet[Key], name: str, scene: Scene) -> None:
        """Forget the entries of a former daemon whose devices the resource certainly does not claim now: they are not its losses.

        The scan may lack the device itself, so one that has none of the paths of an entry may be its twin, or another part of its stick.
        """
        if not self._remembered:
            return
        gone = {entry: _recalled_departure(entry, scene.now, scene.now) for entry in self._remembered}
        found = Finder(gone=gone, here=self.here.keys(), scene=scene, name=name).find()
        forgotten = {
            entry for entry, device in found.items() if device.key in others and entry.paths & paths_of(device)
        }
        self._remembered = tuple(entry for entry in self._remembered if entry not in forgotten)

    def _record_departures(self, rule: ResourceRule, scene: Scene, before: PreviousScan, paths: Paths) -> None:
        """Move the known devices that the scan lacks from `here` to `gone`."""
        present = {(key, slot.id) for key, slot in scene.slots(rule.name).items()}
        self.gone |= self._glimpses.departed(present, scene.now, rule.removal_grace)
        keys = {device.key for device in scene.devices}
        for device in before.devices:
            if device.key not in self.here or device.key in keys:
                continue
            known = self.here.pop(device.key)
            shared = paths.shared(device.key) - {listed_path(device.devnode)}
            own = tuple(link for link in known.entry.links if link not in shared)
            entry = replace(known.entry, links=own, shared=tuple(sorted(shared))[:MAX_LINKS])
            self.gone[entry] = Departure(
                at=scene.now,
                until=scene.now + rule.removal_grace,
                seen=before.at,
                device=device,
                registrations=(*known.registrations[:-1], _last_registration(device, known, entry, scene, before)),
                links={*known.entry.links, *shared},
                twins=tuple(
                    other for other in before.devices if other.key != device.key and may_be_twins(device, other)
                ),
            )

    def _restore_departures(self, rule: ResourceRule, scene: Scene) -> set[Entry]:
        """Turn the entries of a former daemon into departures, once, at the first certain scan; return those without `lost`.

        The entries of present devices are matched in the same scan, which ends their departures. An entry with `lost` has already been
        removed from the count: it starts in the state "sent", without grace. The others count for as long as the Node's own figure does,
        which is over where no scan was certain for long. Where the kubelet hands devices over, that figure may be 0 after a start.
        """
        remembered, self._remembered = self._remembered or (), None
        start = START_GRACE + scene.now if rule.publish.hands_over else scene.figure(rule.name).start_until
        until = max(scene.now + rule.removal_grace, start or scene.now)
        for entry in remembered:
            self.gone[replace(entry, lost=None)] = _recalled_departure(entry, scene.now, until)
        return {entry for entry in remembered if entry.lost is None}

    def _end_departures(
        self, found: Mapping[Entry, Device], rule: ResourceRule, scene: Scene, paths: Paths
    ) -> dict[Key, PresentDevice]:
        """Return the departed devices that are certainly back, and settle or record the doubts about the others."""
        returned: dict[Key, PresentDevice] = {}
        open_ = scene.open(rule.name)
        doubtful = open_ | scene.unidentified(rule.name)
        remembered = {entry: device for entry, device in found.items() if self.gone[entry].device is None}
        seen = {device.key for entry, device in remembered.items() if entry.rdev == device.number}
        for entry, device in found.items():
            if device.key in doubtful:
                self.gone[entry].maybe = device.key
                continue
            if entry in remembered and entry.rdev == device.number:
                # A full list may be cut: then only the paths that are listed as the device's own are certainly its own.
                had = paths.by_device.get(device.key, frozenset())
                cut = len(entry.shared) >= MAX_LINKS
                paths.recall(device.key, had - entry.paths if cut else entry.shared)
            elif entry in remembered and device.key in seen:
                self.gone[entry].registrations = ()  # the former daemon saw the return, so this one cannot date it
            if not device.complete:
                paths.keep(device.key, (*entry.links, *entry.shared))
            known = returned.get(device.key) or self.here.get(device.key) or PresentDevice(entry=entry)
            returned[device.key] = self._end_departure(entry, device, known, rule, scene)
        for key in open_ & self.here.keys():  # a former return is forgotten as well
            self.here[key] = PresentDevice(entry=self.here[key].entry)
        present = {device.key for device in scene.devices}
        listed = {slot.id for slot in scene.figure(rule.name).slots}
        for entry in self.gone.keys() - found.keys():
            departure = self.gone[entry]
            recalled = departure.device is None and (departure.at == scene.now or departure.maybe is not None)
            departure.undecided |= recalled and scene.fits_several(rule.name, entry)
            departure.decide(present, scene.now, rule.removal_grace)
            if departure.undecided and entry.id not in listed:
                del self.gone[entry]  # no pod has it any more
        return returned

    def _end_departure(
        self, entry: Entry, device: Device, known: PresentDevice, rule: ResourceRule, scene: Scene
    ) -> PresentDevice:
        """End a departure; the time of the last eviction for a return is carried over, whether or not a return is recorded."""
        departure, evicted = self.gone.pop(entry), entry.replugged
        if evicted is None:
            evicted = self._inherited_eviction(entry)
        if evicted is not None:
            known = replace(known, entry=replace(known.entry, replugged=evicted))
        back = _return_of(entry, device, departure, rule, scene)
        if back is None:
            return replace(known, registrations=known.registrations or _kept_registrations(device, departure))
        back = self._dated(back, departure, scene)
        recent = evicted is not None and evicted <= back.second < evicted + REPLUG_PEACE
        return replace(known, back=replace(back, recent=recent), registrations=back.registrations)

    def _dated(self, back: Return, departure: Departure, scene: Scene) -> Return:
        """Date the return of a part of a stick by that of its first part: the kubelet has handed the stick over since then.

        A container that has started since has no file of a part that was away, unless another device had a path of it.
        """
        if departure.device is None or departure.taken:
            return back
        gone, parts = scene.second(departure.at), (each for each in self.here.values() if each.entry.id in back.ids)
        seconds = (each.registrations[-1].second for each in parts if each.registrations)
        second = min([back.second, *(each for each in seconds if each >= gone)])
        now = replace(back.registrations[-1], second=second)
        return replace(back, second=second, registrations=(*back.registrations[:-1], now))

    def _inherited_eviction(self, entry: Entry) -> int | None:
        """Return when a pod was last evicted for a return of a device with these ids that no known entry carries; None without one.

        The loss of the device may have been settled, and its entry forgotten, before it returned. Its twins carry times of their own.
        """
        known = (*(each.entry for each in self.here.values()), *self.gone)
        carried = {each.replugged for each in known if ids_of(each) == ids_of(entry)}
        return max((at for ids, at in self._evicted if ids == ids_of(entry) and at not in carried), default=None)

    def _add_present(self, returned: dict[Key, PresentDevice], name: str, scene: Scene, before: PreviousScan) -> None:
        """Add the devices that are back, and those that arrived."""
        known = self.here.keys() | returned.keys()
        arrived = {key: device for key, device in scene.claimed(name).items() if key not in known}
        entries = {key: Entry.of(device) for key, device in arrived.items()}
        self.here |= returned | {
            key: PresentDevice(
                entry=replace(entry, replugged=self._inherited_eviction(entry)),
                registrations=_first_registrations(arrived[key], scene, before),
            )
            for key, entry in entries.items()
        }

    def listing(self, devices: Iterable[Device]) -> tuple[Entry, ...] | None:
        """Return the entries to list in the annotation, given these present devices; None before the first certain scan."""
        if self._remembered is not None:
            return None
        here = (known.entry for known in self.here.values())
        new = (Entry.of(device) for device in devices if device.key not in self.here)
        gone = (replace(entry, lost=departure.lost or None) for entry, departure in self.gone.items())
        return (*here, *new, *gone)

    @property
    def returns(self) -> dict[Key, Return]:
        """The returns whose pods have not been settled, by registration of the device."""
        return {key: known.back for key, known in self.here.items() if known.back is not None}

    def note_eviction(self, keys: AbstractSet[Key], second: int) -> None:
        """Record that a pod was evicted for a return of the devices with these registrations, as far as they are known."""
        for key in keys & self.here.keys():
            known = self.here[key]
            if known.entry.replugged is not None:
                self._evicted.discard((ids_of(known.entry), known.entry.replugged))
            self.here[key] = replace(known, entry=replace(known.entry, replugged=second))

    def settle(self, incident: Loss | Return) -> None:
        """Forget an incident whose pods are gone or spared."""
        if isinstance(incident, Loss):
            self.gone = {entry: departure for entry, departure in self.gone.items() if entry not in incident.entries}
        for key, back in self.returns.items():
            if back.key == incident.key:
                self.here[key] = replace(self.here[key], back=None)


def _entries_of(
    claimed: Mapping[Key, Device], slots: Mapping[Key, Slot], paths: Paths, publish: Publish
) -> dict[Entry, Device]:
    """Return the devices with these slots, each by the entry that would list it."""
    devices = ((claimed[key], slot) for key, slot in slots.items())
    return {
        PresentDevice(entry=Entry.of(each)).refreshed(each, paths, slot, publish).entry: each for each, slot in devices
    }


def _recalled_departure(entry: Entry, now: float, until: float) -> Departure:
    """Return the departure of an entry of a former daemon, which counts until then unless it has `lost`."""
    numbers = entry.numbers or (((0, entry.rdev),) if entry.rdev is not None else ())
    former = (Registration(second=second, number=number, paths=entry.paths) for second, number in numbers)
    return Departure(
        at=now,
        until=now if entry.lost else until,
        registrations=tuple(former),
        recalled=bool(entry.lost),
        lost=entry.lost or None,
        there=frozenset() if entry.lost else None,
        links=_listed_paths(entry),
    )


def _listed_paths(entry: Entry) -> frozenset[str]:
    """Return all paths of the device of an entry, none unless it lists all links, and one of them names the device in every socket.

    That is one in `/dev/*/by-id/` (60-serial.rules and similar): the parts of a stick have different ones. A device that has moved may
    have none of its other links any more.
    """
    complete = len(entry.links) + len(entry.shared) < MAX_LINKS
    named = any("/by-id/" in link for link in entry.links)
    return entry.paths.union(entry.shared) if complete and named else frozenset()


def _kept_registrations(device: Device, departure: Departure) -> tuple[Registration, ...]:
    """Return the registrations that a former daemon listed of a device that has the last number of them, none where it has another."""
    *former, last = departure.registrations or (None,)
    return (*former, replace(last, key=device.key)) if last and last.number == device.number else ()


def _first_registrations(device: Device, scene: Scene, before: PreviousScan) -> tuple[Registration, ...]:
    """Return the registration of a device that arrived, none where udev has not handled it yet.

    It is dated now: where udev's database is rebuilt, its time there is too late for the containers that have opened the device since.
    """
    return () if initialized_at(device) is None else (_registration(device, scene, before),)


def _last_registration(
    device: Device, known: PresentDevice, entry: Entry, scene: Scene, before: PreviousScan
) -> Registration:
    """Return the registration that ends with a departure, with the paths of the departed entry."""
    last, *_ = known.registrations[-1:] or (_registration(device, scene, before),)
    return replace(last, number=device.number, paths=entry.paths, left=scene.second(before.at))


def _registration(device: Device, scene: Scene, before: PreviousScan) -> Registration:
    first = initialized_at(device)
    # For a device that was plugged before the daemon began, a Unix time is not computed: the clock may have been set since.
    came = scene.second(first) if first is not None and first > before.began else 0
    return Registration(second=came, number=device.number, paths=frozenset(), key=device.key)


def _return_of(entry: Entry, device: Device, departure: Departure, rule: ResourceRule, scene: Scene) -> Return | None:
    """Return the return of a departed device, None where no container can be judged, or none can hold a dead file of it.

    That is so where:

    - the time is unknown (`returned_at`), or the former device numbers are;
    - this daemon did not observe the departure, and the device has the number it was listed with: it may never have been away;
    - this daemon did not observe the departure, and more than one present device may be the listed one: its twin may hold the file.
    """
    at, former = returned_at(device, departure, scene), departure.registrations
    if at is None or not former:
        return None
    second, taken = scene.second(at), departure.taken
    if departure.device is None:
        same = device.number == entry.rdev and not entry.numbers
        if same or not _is_unambiguous(entry, device, scene, rule.name):
            return None
        if former[-1].number == device.number and abs(former[-1].second - second) <= 1:
            former = former[:-1]  # the former daemon has already listed the present registration
        others = (each for each in scene.devices if each is not device)
        taken |= entry.paths.intersection(chain.from_iterable(map(paths_of, others)))
    former = (*former[:-1], *(replace(last, taken=taken) for last in former[-1:]))
    now = Registration(second=second, number=device.number, paths=frozenset(), key=device.key)
    return Return(
        resource=rule.name,
        entries=(entry,),
        at=at,
        second=second,
        due=at + (rule.evict_after or 0.0),
        registrations=(*former, now)[-MAX_NUMBERS:],
        boot=scene.second(0.0) if departure.device is None and scene.now < BOOT_PERIOD else 0,
    )


def _is_unambiguous(entry: Entry, device: Device, scene: Scene, name: str) -> bool:
    """Return whether exactly this device matches the entry of a former daemon: if its number changed, its pods are evicted.

    Its ID tells. Without one, what has taken its devnode or its links by now may be the device as well, whatever its serial.
    """
    slot = scene.slots(name).get(device.key)
    if slot is not None and entry.id is not None:
        return slot.id == entry.id
    candidates = [
        each for each in scene.by_ownership(name)[0] if leads_to(entry, each) or ids_of(entry) == ids_of(Entry.of(each))
    ]
    return candidates == [device] and ids_of(entry) == ids_of(Entry.of(device))
