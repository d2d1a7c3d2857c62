"""Devices that are lost, and devices that have returned under another number: the two things for which pods are evicted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from devwatch.core.listing import MAX_LINKS, MAX_NUMBERS, Entry, listed_path
from devwatch.core.node import Amounts
from devwatch.core.plan import START_GRACE
from devwatch.core.rules import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.core.device import Device, Key
    from devwatch.core.inventory import Inventory
    from devwatch.core.listing import Listing
    from devwatch.core.node import NodeState
    from devwatch.core.plan import Figures
    from devwatch.core.rules import ResourceRule

ROLL_CALL_LEAD = 0.5
"""Seconds before the end of a grace at which the pods are listed once more; the PATCH at its end waits for no list."""
REPLUG_PEACE = 600
"""Seconds after an eviction for a return in which further returns of the device evict no pod: it returns whenever it is used."""
ROLL_CALL_PACE = 1.0
"""Seconds between two lists of pods because of departures, at least: a contact may bounce ten times a second."""

_MICROSECOND = 1e-6
"""Seconds: udev cuts its times to this."""
_LONG = 20
"""Digits of a number of microseconds that no clock shows."""

_Ids = tuple[str | None, str | None, str | None]
_Places = tuple[tuple["Device", ...], ...]
"""Which devices may be a listed one, the likelier ones first; within one tuple a free one comes before a taken one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Devices of one resource that the Node no longer counts since one moment, and which pods were there before."""

    resource: str
    entries: tuple[Entry, ...]
    left: int
    """How many of the resource are present, or are lost for so short a time that they may come back."""
    since: float
    """When the Node first showed the count without them."""
    due: float
    """When their pods are to be evicted."""
    there: frozenset[str]
    """The UIDs of the pods in a list that was answered before the PATCH that stopped counting the devices."""
    lost: str
    """The API server's time before that PATCH (RFC 3339, seconds), empty where it is unknown."""
    accepted: str
    """The API server's time when the Node showed the count without them; a later pod has come since. Empty where it is unknown."""
    others: frozenset[str]
    """The paths that name a present device of the resource, and no other."""
    victims: frozenset[str] | None = None
    """The UIDs of the pods to evict, None before they were chosen."""

    @property
    def key(self) -> tuple[object, ...]:
        """What stays the same from one scan to the next."""
        return ("loss", self.resource, self.since, self.lost, self.there)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What a container could open a device by, from one plugging to the next."""

    second: int
    """When it began, in Unix seconds by the clock of this host; 0 for the first, where that is unknown or was before the daemon began."""
    number: int
    """The device number."""
    paths: frozenset[str]
    """The paths that named the device, and no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """A listed device that was away and is back."""

    resource: str
    entries: tuple[Entry, ...]
    """The device as it was listed before it departed."""
    at: float
    second: int
    """When it returned, in Unix seconds by the clock of this host, which is also the kubelet's."""
    due: float
    """When its pods are to be looked at."""
    registrations: tuple[Registration, ...]
    """How the device could be opened, also before returns at which a pod was spared: its file may be good again. The last one is now."""
    recent: bool = False
    """Whether a pod was evicted for such a return of the device within `REPLUG_PEACE` before."""
    left: int = 0
    """Since when it was away at most, in Unix seconds; 0 where that was not seen."""
    shared: frozenset[str] = frozenset()
    """The paths that name it as well as another, or lead to another of the resource by now: a pod may work with that one."""
    taken: frozenset[str] = frozenset()
    """The paths that lead to any other by now: a container that started while the device was away has mounted that one."""

    @property
    def key(self) -> tuple[object, ...]:
        """What stays the same from one scan to the next."""
        return ("return", self.resource, self.at, *self.entries)

    @property
    def former(self) -> tuple[Registration, ...]:
        """All but what it is now."""
        return self.registrations[:-1]

    def opened(self, started: int | None) -> tuple[Registration, ...]:
        """Return the registrations of which a container may have a file that started at this Unix second, None for unknown.

        None where it started before the device was there.
        """
        if started is None:
            return self.former
        return tuple(each for each in self.former if each.second <= started)[-1:]

    def is_dead(self, opened: tuple[Registration, ...]) -> bool:
        """Return whether a file of these may open the device no more: it has another number now."""
        return any(each.number != self.registrations[-1].number for each in opened)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incidents:
    """What calls for a look at the pods."""

    losses: tuple[Loss, ...] = ()
    returns: tuple[Return, ...] = ()

    def __iter__(self) -> Iterator[Loss | Return]:
        """Yield all of them."""
        return chain(self.losses, self.returns)


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
            path: device for device in self._by_name.values() for path in _paths(device) if _is_socket(path)
        }
        self._unread = [device for device in self._by_name.values() if not device.complete]
        self._by_ids: dict[_Ids, list[Device]] = {}
        # Of those that are alike, the one that the resource has now is the likeliest.
        for device in sorted(self._by_name.values(), key=lambda device: device.key not in claimed):
            self._by_ids.setdefault(_ids(Entry.of(device)), []).append(device)

    def options(self, entry: Entry, others: AbstractSet[Key]) -> _Options:
        """Return the devices that a listed one may be, but for `others`."""
        here = self._by_name.get(entry.devnode)
        named = (here,) if here and here.key not in others else ()
        own = self._own(entry, *named)
        alike = [device for device in self._by_ids.get(_ids(entry), ()) if device.key not in others]
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
        if _ids(entry) == _ids(found) and known:
            return Verdict.MATCHED
        # A serial as udev writes it may differ from that of the stick itself.
        maybe = _alike(entry, found) or (not known and _alike(replace(entry, serial=None), found))
        return Verdict.UNKNOWN if maybe else Verdict.NOT

    def _unclear(self, entry: Entry, others: AbstractSet[Key]) -> tuple[Device, ...]:
        """Return the devices under another name of which udev may yet say that they have the ids of a listed one."""
        unread = self._unread if entry.vendor else ()
        elsewhere = (device for device in unread if device.vendor and device.devnode != entry.devnode)
        return tuple(each for each in elsewhere if each.key not in others and _alike(entry, Entry.of(each)))


def _is_socket(path: str) -> bool:
    """Return whether a link follows the socket (60-serial.rules and its like: `/dev/*/by-path/`), which has one device at a time."""
    return "/by-path/" in path


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


def match_remembered(entries: Iterable[Entry], devices: Sequence[Device]) -> dict[Entry, Device]:
    """Match what a former daemon listed to present devices: its devnode or a link of it leads to one with the same vendor and product.

    A serial may read differently after an update of udev's rules, so it does not count; a device may stand for several.
    """
    leading = ((entry, [device for device in devices if _leads(entry, device)]) for entry in entries)
    # A link may lead to another by now, while the one that had it is where it was.
    return {entry: min(found, key=lambda device: device.devnode != entry.devnode) for entry, found in leading if found}


def _leads(entry: Entry, device: Device) -> bool:
    here = Entry.of(device)
    if (entry.vendor, entry.product) != (here.vendor, here.product):
        return False
    links = {entry.link, *entry.links} - {None}
    return (
        entry.devnode == here.devnode or here.link in links or any(listed_path(path) in links for path in device.links)
    )


class Paths:
    """Which paths the listed devices have had since they were plugged, and which of these two had at the same time.

    A link that twins claim leads to the one that udev saw last, and moves when that one is pulled: who mounts it may use either.
    """

    def __init__(self) -> None:
        """Start with no device."""
        self._had: dict[Key, frozenset[str]] = {}
        self._shared: dict[Key, frozenset[str]] = {}
        self._before: dict[Key, frozenset[str]] = {}
        """What was shared at the scan before, of devices that have departed since."""
        self._seen: tuple[Device, ...] | None = ()
        """What the scan before has found, None if it was uncertain."""

    def observe(self, listed: tuple[Device, ...], *, certain: bool = True) -> None:
        """Take in the listed devices of one scan; what an uncertain one did not find may be there all the same."""
        if certain and listed == self._seen:
            return
        found = {device.key: self._had.get(device.key, frozenset()) | _paths(device) for device in listed}
        # What was found before an uncertain scan may have been there as long as that was so.
        maybe = found if certain and self._seen is not None else self._had | found
        self._seen = listed if certain else None
        # Where one has a socket now, the one that had it before is gone, even if this scan cannot say so.
        sockets = set(filter(_is_socket, chain.from_iterable(found.values())))
        owners: dict[str, list[Key]] = {}
        for key, paths in maybe.items():
            for path in paths if key in found or not paths & sockets else ():
                owners.setdefault(path, []).append(key)
        shared = {path for path, keys in owners.items() if len(keys) > 1}
        self._before = self._shared
        self._shared = {key: self._shared.get(key, frozenset()) | (had & shared) for key, had in maybe.items()}
        self._had = found if certain else maybe

    def recall(self, key: Key, shared: Iterable[str]) -> None:
        """Take what a former daemon has seen: paths of a present device that another had as well."""
        self._shared[key] = self._shared.get(key, frozenset()).union(shared)

    def own(self, key: Key) -> frozenset[str]:
        """Return the paths that no other device had while this one was there."""
        return self._had.get(key, frozenset()) - self.shared(key)

    def shared(self, key: Key) -> frozenset[str]:
        """Return the paths that another device had as well."""
        return self._shared.get(key, self._before.get(key, frozenset()))

    def keys(self) -> AbstractSet[Key]:
        """Return the present devices."""
        return self._had.keys()

    def of(self, key: Key) -> frozenset[str]:
        """Return all paths of a present device."""
        return self._had[key]


def _paths(device: Device) -> frozenset[str]:
    """Return every path of a device: what leads to it now, and what its udev record claims, wherever that leads."""
    claims = (device.properties or {}).get("DEVLINKS", "").split()
    return frozenset(listed_path(path) for path in (device.devnode, *device.links, *claims))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What one cycle of the loop knows."""

    figures: Figures
    inventory: Inventory
    observed: NodeState | None
    now: float
    wall: float = 0.0
    """The time of this host in Unix seconds."""
    date: str = ""
    """The API server's time in its last answer (RFC 3339, seconds), empty before one."""

    def second(self, moment: float) -> int:
        """Return the Unix second of a moment of the monotonic clock."""
        return int(self.wall - (self.now - moment))

    @property
    def devices(self) -> tuple[Device, ...]:
        """All that is on the host."""
        return (*self.inventory.present, *self.inventory.pending)

    def shows(self, name: str) -> bool:
        """Return whether the Node shows the figure of a resource."""
        return self.observed is not None and self.observed.shows(
            name, Amounts.of(self.figures.by_name[name].advertised)
        )

    def by_ownership(self, name: str) -> tuple[list[Device], list[Device]]:
        """Return the devices that a resource may have or may have had, and apart from them those that another one surely has."""
        foreign = {device for device, claim in self.figures.claims.items() if claim.owner not in {None, name}}
        return [each for each in self.devices if each not in foreign], [
            each for each in self.devices if each in foreign
        ]

    def open(self, name: str) -> set[Key]:
        """Return the devices of which it is unknown whether the resource has them."""
        claims, claimed = self.figures.claims, {device.key for device in self.figures.by_name[name].devices}
        # Without a record, too, a device that another resource surely has is not this one's any more.
        unknown = (device for device in self.devices if not device.complete and claims[device].owner is None)
        doubtful = (device for device in self.devices if name in claims[device].doubtful)
        return {device.key for device in chain(unknown, doubtful)} - claimed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Before:
    """The last certain scan."""

    at: float = float("-inf")
    devices: tuple[Device, ...] = ()
    began: float = float("inf")
    """When the first certain scan was."""


@dataclass(slots=True, kw_only=True)
class _Departure:
    """A listed device that a certain scan did not find.

    | state | `lost` | `there` | `since` |
    |---|---|---|---|
    | within its grace: still counted | None | None | None |
    | over: the next PATCH no longer counts it | the server's time now | None | None |
    | sent: that PATCH is on its way | fixed | fixed | None |
    | lost: the Node shows the count without it | fixed | fixed | the moment |

    It ends when the device is found again, or its pods are gone (`settle`).
    """

    at: float
    grace: float
    seen: float = float("-inf")
    """When it was last there for certain."""
    device: Device | None = None
    """As the last scan found it, None where only the annotation of a former daemon tells of it."""
    registrations: tuple[Registration, ...] = ()
    """As in `Return`, up to this departure; none where the number of the device is unknown."""
    links: AbstractSet[str] = frozenset()
    """All links that udev made for it, where this daemon has seen it."""
    others: AbstractSet[Key] = frozenset()
    """The registrations with the same ids that were there beside it: they are other devices."""
    recalled: bool = False
    """Whether a former daemon sent that PATCH."""
    over: bool = False
    lost: str | None = None
    there: frozenset[str] | None = None
    since: float | None = None
    accepted: str = ""
    """The API server's time then, empty where a former daemon saw that moment."""
    choice: Loss | None = None
    """The loss as it was when its victims were chosen."""
    maybe: Key | None = None
    """The present device that it may be."""

    def excluded(self, devices: Iterable[Device]) -> set[Key]:
        """Return those that are other devices: that udev handled before this one was last there, or that are another part of a stick."""
        return {
            device.key
            for device in devices
            if (_initialized(device) or math.inf) + _MICROSECOND < self.seen
            or (self.device is not None and _is_other_part(device, self.device))
        }

    def unlinked(self, devices: Iterable[Device]) -> set[Key]:
        """Return those that have no link of it, not even one that twins share, as far as the links of both are known."""
        known = (device for device in devices if self.links and device.complete)
        return {device.key for device in known if _paths(device).isdisjoint(self.links)}

    def decide(self, present: AbstractSet[Key], now: float, grace: float) -> None:
        """Begin the departure again where the device that it may be has gone before that was known; else that one is another."""
        if self.maybe is not None and self.maybe not in present:
            self.at, self.grace, self.since, self.choice = now, grace, None, None
        self.maybe = None


class KnownDevices:
    """The devices of one evicting resource: here, gone, and returned."""

    def __init__(self, evicted: Mapping[_Ids, int], remembered: Iterable[Entry] = ()) -> None:
        """Start with what the annotation of a former daemon lists; `evicted` is kept by `Losses`."""
        self._remembered, self._begun = tuple(remembered), False
        self._evicted = evicted
        self.here: dict[Key, Entry] = {}
        """By registration: those on the host that it has, or had, and may have again."""
        self.gone: dict[Entry, _Departure] = {}
        self.returns: dict[Key, Return] = {}
        self._registrations: dict[Key, tuple[Registration, ...]] = {}
        """Of each present device that has returned."""
        self.replugged: dict[Key, int] = {}
        """When a pod was last evicted for a return of a present device, in Unix seconds."""
        self.sure: tuple[Entry, ...] = ()
        """The gone devices that no present device may be."""

    def observe(self, rule: ResourceRule, scene: Scene, before: _Before, paths: Paths) -> None:
        """Take in a certain scan; `before` is the last one."""
        figure = scene.figures.by_name[rule.name]
        claimed = {device.key: device for device in figure.devices}
        keys = {device.key for device in scene.devices}
        for device in before.devices:
            if device.key in self.here and device.key not in keys:
                self._depart(device, rule, scene, before, paths.shared(device.key))
        remembered = self._recall(rule, scene)
        open_ = scene.open(rule.name)
        found = self._find(rule.name, scene, claimed.keys(), open_)
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
        self, device: Device, rule: ResourceRule, scene: Scene, before: _Before, shared: AbstractSet[str]
    ) -> None:
        held, former = self.here.pop(device.key), self._registrations.pop(device.key, ())
        shared -= {listed_path(device.devnode)}
        own = (link for link in held.links if link not in shared)
        entry = replace(held, links=tuple(own), shared=tuple(sorted(shared))[:MAX_LINKS])
        first = _initialized(device)
        # The clock may have been set since the host has started; of what came later it is right enough.
        came = scene.second(first) if first is not None and first > before.began else 0
        since = former[-1].second if former else came
        last = Registration(second=since, number=device.number, paths=entry.paths)
        self.gone[entry] = _Departure(
            at=scene.now,
            grace=rule.removal_grace,
            seen=before.at,
            device=device,
            registrations=(*former[:-1], last),
            links={*held.links, *shared},
            others=frozenset(other.key for other in before.devices if _ids(Entry.of(other)) == _ids(entry)),
        )

    def _recall(self, rule: ResourceRule, scene: Scene) -> tuple[Entry, ...]:
        """Take what a former daemon listed for departures, of which those end at once that are here. The first scan needs it once."""
        remembered, self._remembered, self._begun = self._remembered, (), True
        for entry in remembered:
            grace = 0.0 if entry.lost else max(rule.removal_grace, START_GRACE)
            numbers = entry.numbers or (((0, entry.rdev),) if entry.rdev is not None else ())
            former = (Registration(second=second, number=number, paths=entry.paths) for second, number in numbers)
            departure = _Departure(at=scene.now, grace=grace, registrations=tuple(former))
            if entry.lost:
                departure.recalled = departure.over = True
                departure.lost, departure.there = entry.lost, frozenset()
            self.gone[replace(entry, lost=None)] = departure
        return remembered

    def _forget_uncounted(self, entry: Entry, found: Mapping[Entry, Device]) -> None:
        """Forget what a former daemon, or a kubelet, stopped counting without a date: who came afterwards cannot be told."""
        if entry.lost is None and entry not in found:
            self.gone.pop(entry, None)

    def _find(self, name: str, scene: Scene, claimed: AbstractSet[Key], open_: AbstractSet[Key]) -> dict[Entry, Device]:
        """Return the present devices that are, or may be, gone ones; those that another resource surely has come last.

        The parts of a stick have the same ids, come one after the other, and take over each other's names: what another resource has is a
        device that this daemon has seen here only if it has a link of it.
        """
        if not self.gone:
            return {}
        found = self._unchanged(scene)
        own, foreign = scene.by_ownership(name)
        for devices in (own, foreign):
            rest = [device for device in devices if device not in found.values()]
            left = {entry: each for entry, each in self.gone.items() if entry not in found}
            others = {entry: each.others | each.excluded(rest) for entry, each in left.items()}
            if devices is foreign:
                others = {entry: others[entry] | each.unlinked(rest) for entry, each in left.items()}
            found |= self._match(others, rest, claimed, open_)
        return found

    def _match(
        self,
        others: Mapping[Entry, AbstractSet[Key]],
        devices: Sequence[Device],
        claimed: AbstractSet[Key],
        open_: AbstractSet[Key],
    ) -> dict[Entry, Device]:
        strangers = [device for device in devices if device.key not in self.here]
        # Of those that are alike, the one that went last is the likeliest to be back.
        others = {entry: others[entry] for entry in sorted(others, key=lambda entry: -self.gone[entry].at)}
        found = {
            entry: device
            for entry, device in match_replugged(others, strangers, claimed).items()
            if device.complete or device.key in {*open_, *claimed} or _ids(entry) == _ids(Entry.of(device))
        }
        rest = (entry for entry in others if self.gone[entry].device is None and entry not in found)
        return found | match_remembered(rest, devices)

    def _unchanged(self, scene: Scene) -> dict[Entry, Device]:
        """Return the devices of which a scan missed only the devnode: as far as is known udev has not handled the registration again."""
        here = {device.key: device for device in scene.devices}
        pairs = ((entry, departure.device) for entry, departure in self.gone.items())
        kept = {
            entry: (here[device.key], device) for entry, device in pairs if device is not None and device.key in here
        }
        return {
            entry: now
            for entry, (now, before) in kept.items()
            if None in {_initialized(now), _initialized(before)} or _initialized(now) == _initialized(before)
        }

    def _find_again(self, entry: Entry, device: Device, rule: ResourceRule, scene: Scene) -> None:
        """Note that a device is back: a container that opened it before may hold a dead file."""
        departure, number = self.gone.pop(entry), device.number
        at = _returned_at(device, departure, scene)
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
        second, known = self._evicted.get(_ids(entry)), (*self.here.values(), *self.gone)
        told = any(each.replugged == second and _ids(each) == _ids(entry) for each in known)
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
        """Move every departure on, as the table of `_Departure` says."""
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
    def waiting(self) -> list[_Departure]:
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
    maybe = [each for each in scene.by_ownership(name)[0] if _leads(entry, each) or _ids(entry) == _ids(Entry.of(each))]
    return maybe == [device] and _ids(entry) == _ids(Entry.of(device))


def _initialized(device: Device) -> float | None:
    """Return when udev first handled a registration, in seconds of the monotonic clock (USEC_INITIALIZED), None where it does not say."""
    text = (device.properties or {}).get("USEC_INITIALIZED", "")
    return int(text) / 1e6 if text.isascii() and text.isdecimal() and len(text) < _LONG else None


def _is_other_part(one: Device, other: Device) -> bool:
    return None not in {one.interface, other.interface} and one.interface != other.interface


def _returned_at(device: Device, departure: _Departure, scene: Scene) -> float | None:
    """Return when a device returned, None where a daemon that did not see it cannot tell.

    A scan may be late; udev writes down when it first handled the device.
    """
    initialized, seen = _initialized(device), scene.inventory.seen_since(device.key)
    if departure.device is None:
        return initialized if initialized is not None and initialized <= scene.now else None
    # The departure may have been noticed after the return, where scans were uncertain or uevents were lost. What udev wrote down before
    # the device was last there is of another registration.
    return initialized if initialized is not None and departure.seen <= initialized <= seen else seen


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
        self._evicted: dict[_Ids, int] = {}
        """When a pod was last evicted for a return of such a device, in Unix seconds."""
        self._listed: tuple[Device, ...] = ()
        self._paths = Paths()
        self._before = _Before()
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
        self._before = _Before(at=scene.now, devices=scene.devices, began=began)
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
        self._evicted[_ids(back.entries[0])] = second
        for known in self._known.values():
            known.replugged |= dict.fromkeys(keys & known.here.keys(), second)

    # -- who was there

    @property
    def _waiting(self) -> list[_Departure]:
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
