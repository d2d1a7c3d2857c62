"""The contract's rules of eviction, restated apart from src over what is true: which stick is gone, who was there, whose file is dead."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from devwatch.core.node import ANNOTATION_PART
from devwatch.core.pods import Phase
from support.fakes import EPOCH
from support.model_pods import NODE, host_date

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from devwatch.core.node import NodeState
    from devwatch.core.pods import Container, Pod
    from support.build import Parts
    from support.model_contract import Contract, Tty, Want
    from support.model_host import Host
    from support.model_pods import Life, Town

SOON = 1e-6
"""Seconds: two moments so near are the same."""
PEACE = 600.0
"""Seconds after an eviction for a return in which further returns of that device evict nobody."""
STALE = 2.0
"""Seconds: a status that was read longer ago is not read anew right before."""

Returned = tuple["Tty", "Tty", float]
"""A device before and now, and when it returned."""
Content = dict[str, list[dict[str, str | None]]]


@cache
def _content(text: str | None) -> Content:
    try:
        content = json.loads(text or "{}")
    except ValueError:
        return {}
    fine = isinstance(content, dict) and all(
        isinstance(item, list) and all(isinstance(entry, dict) for entry in item) for item in content.values()
    )
    return content if fine else {}


def listing(state: NodeState) -> Content:
    """Return what the annotation lists, nothing where it is no such thing, whoever wrote it."""
    return _content(state.annotation)


def believed(state: NodeState) -> Content:
    """Return what the annotation lists if it is the memory of a devwatch."""
    writers = [(each.manager, each.operation, each.subresource) for each in state.writers.get(ANNOTATION_PART, ())]
    return listing(state) if writers == [("devwatch", "Update", "status")] else {}


def removable(state: NodeState, name: str) -> bool:
    """Return whether devwatch was the last to write each key of a resource that there is."""
    mine = [each.maps for each in state.writers.get(name, ()) if each.manager == "devwatch"]
    held = [part for part in ("capacity", "allocatable") if name in getattr(state, part)]
    return all(any(part in maps for maps in mine) for part in held)


def _is_same_loss(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    return all(one.get(name) == other.get(name) for name in ("devnode", "serial", "lost"))


def _moment(text: str) -> float:
    """Return when the API server's clock showed this."""
    return datetime.fromisoformat(text).timestamp() - EPOCH


@dataclass(slots=True, kw_only=True)
class Places:
    """The paths of one registration over its life, and those of them that another listed one had at the same time."""

    had: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)
    beside: set[int] = field(default_factory=set)
    """The births of those that were listed together with it."""

    @property
    def own(self) -> set[str]:
        """The paths that name it alone."""
        return self.had - self.shared


@dataclass(slots=True, kw_only=True)
class Paths:
    """The paths of all registrations that were listed."""

    places: dict[int, Places] = field(default_factory=dict)
    _noted: dict[int, frozenset[str]] = field(default_factory=dict)

    def note(self, there: dict[int, frozenset[str]], gone: frozenset[int] = frozenset()) -> None:
        """Take in the paths of the listed devices of one look, by birth; those that are `gone` may be there as far as a daemon knows."""
        if there == self._noted:
            return
        self._noted = there
        now: dict[str, int] = {}
        for birth, paths in there.items():
            mine = self.places.setdefault(birth, Places())
            mine.had |= paths
            mine.beside |= there.keys() - {birth}
            for path in frozenset() if birth in gone else paths:
                if (other := now.setdefault(path, birth)) != birth:
                    self.places[birth].shared.add(path)
                    self.places[other].shared.add(path)

    def doubtful(self, birth: int) -> set[str]:
        """Return those of its paths that another one of its time had at any time: there the contract leaves a doubt.

        That one may have had them already when its record was still to be read.
        """
        places = self.places.get(birth, Places())
        return places.had & set().union(*map(self.had, places.beside))

    def had(self, birth: int) -> set[str]:
        """Return the paths that a registration ever had."""
        return self.places[birth].had if birth in self.places else set()


@dataclass(slots=True, kw_only=True)
class Cut:
    """A PATCH that stopped counting a device, and what was known when it was sent."""

    date: str
    listed: frozenset[str]
    """The uids in all lists that were answered before."""
    stored: bool = False


@dataclass(slots=True, kw_only=True)
class Known:
    """A registration that was listed for a resource, as far as one daemon can know."""

    want: str
    tty: Tty
    remembered: bool = False
    """Whether only the annotation tells of it."""
    lost: str | None = None
    """What the annotation of the former daemon says."""
    judged: bool = False
    """Whether it is known what the Node showed when it was first missed."""
    missing: float | None = None
    """Since when no look has found it."""
    grace: float = 0.0
    accepted: float | None = None
    """When it was known first that the Node counts it no longer."""
    over: bool = False
    """Whether the stick has come back since, so that it is not lost."""
    cuts: list[Cut] = field(default_factory=list)
    dates: set[str] = field(default_factory=set)
    """The API server's time before each PATCH since it is missing."""
    victims: set[str] = field(default_factory=set)
    back: float = -math.inf
    """When it was last found again after it was missing."""
    serial: str | None = None
    """As it was read last."""
    told: bool = True
    """Whether its record was known whenever it was seen."""
    counted: float = -math.inf
    """When it was last seen and counted."""
    listed: bool = False
    """Whether the Node has surely listed it."""
    dated: str = ""
    """The API server's time in the last answer before it was last seen."""

    def alike(self, other: Known) -> bool:
        """Return whether the two cannot be told apart, by the serial that they have or by what udev said of it last."""
        one, two = self.tty, other.tty
        serials = one.plain == two.plain or self.serial == other.serial
        return (one.vendor, one.interface) == (two.vendor, two.interface) and serials

    def is_told_of(self, entry: Mapping[str, object]) -> bool:
        """Return whether an entry may tell of it: another stick may have had its devnode before."""
        serials = {self.serial, entry.get("serial")} - {None}
        return (entry.get("devnode"), entry.get("vendor")) == (self.tty.devnode, self.tty.vendor) and len(serials) <= 1

    @property
    def valid(self) -> Iterator[Cut]:
        """Yield the attempts to stop counting it, up to the one that was stored."""
        for cut in self.cuts:
            yield cut
            if cut.stored:
                return

    def seen(self) -> None:
        """Take note that it is there."""
        self.missing = self.accepted = self.lost = None
        self.remembered = self.over = False
        self.cuts, self.dates, self.victims = [], set(), set()


@dataclass(slots=True, kw_only=True)
class Ledger:
    """What outlives a daemon: the paths of every registration, and who was evicted for a return."""

    host: Host
    town: Town
    paths: Paths = field(default_factory=Paths)
    read: Paths = field(default_factory=Paths)
    """As far as any daemon could know."""
    replugged: set[int] = field(default_factory=set)
    """The sticks for whose return any daemon evicted a pod."""
    seen: set[int] = field(default_factory=set)
    """The registrations that any daemon has seen: no annotation tells of others."""
    dates: set[str] = field(default_factory=set)
    """The API server's times before all PATCHes of former daemons: the last of them may be stored after its daemon has ended."""


@dataclass(slots=True, kw_only=True)
class Bailiff:
    """Judges the evictions of one daemon."""

    ledger: Ledger
    contract: Contract
    paths: Paths = field(default_factory=Paths)
    """As far as this daemon was there."""
    replugged: dict[tuple[int, str | None], list[float]] = field(default_factory=dict)
    """By stick and its serial at that time: when this daemon evicted a pod because it had returned."""
    known: dict[tuple[str, int], Known] = field(default_factory=dict)
    certain: bool = False
    here: dict[int, Tty] = field(default_factory=dict)
    """By birth: what the last look that found anything out has found."""
    first_seen: dict[int, float] = field(default_factory=dict)
    returns: dict[tuple[str, int, int], float] = field(default_factory=dict)
    """By resource, birth before and birth now: when a device returned, as far as that can be known."""
    roster: dict[str, Pod] = field(default_factory=dict)
    listed_at: float = -math.inf
    met: set[str] = field(default_factory=set)
    """The uids in every list so far."""
    configured_at: float = -math.inf
    recalled: dict[int, set[str]] = field(default_factory=dict)
    """By birth: what twins shared, as the annotation of the former daemon says."""
    former: frozenset[str] = frozenset()
    """The API server's times before the PATCHes of former daemons."""
    begun: Content = field(default_factory=dict)
    """What the annotation listed when this daemon began."""

    def began(self, state: NodeState) -> None:
        """Take the memory of a former daemon."""
        self.former = frozenset(self.ledger.dates)
        self.begun = believed(state)
        for name, entries in self.begun.items():
            told = [(entry, tty) for entry in entries for tty in self._meant(entry)]
            # Of two sticks that had a devnode one after the other each has its own entry.
            for entry, tty in sorted(told, key=lambda each: each[0].get("serial") not in {each[1].plain, each[1].told}):
                shared, rdev = cast("tuple[Any, Any]", (entry.get("shared") or (), entry.get("rdev")))
                if rdev == os.makedev(188, tty.number):
                    self.recalled.setdefault(tty.birth, set()).update(shared)
                lost = entry.get("lost")
                known = Known(
                    want=name,
                    tty=tty,
                    remembered=True,
                    lost=lost,
                    listed=bool(lost),
                    dated=lost or "",
                    serial=entry.get("serial"),
                    told=bool(entry.get("links") or shared),  # none are listed before the record was read
                )
                known.counted = _moment(lost) if lost else -math.inf
                self.known.setdefault((name, tty.birth), known)

    def _meant(self, entry: Mapping[str, object]) -> Iterator[Tty]:
        """Yield the registrations that an entry may tell of, also by the number that their pods know; one that never was evicts nobody."""
        for tty in self.ledger.host.past.values():
            history: Any = entry.get("numbers") or ()
            numbers = [entry.get("rdev"), *(number for _, number in history)]
            named = tty.devnode == entry.get("devnode") or os.makedev(188, tty.number) in numbers
            if named and tty.vendor == entry.get("vendor") and tty.birth in self.ledger.seen:
                yield tty

    def configured(self, now: float) -> None:
        """Take note that another configuration is in force: what it does not list is no loss."""
        names = {want.name for want in self.contract.plan.wants if want.evict is not None}
        self.known = {key: known for key, known in self.known.items() if key[0] in names}
        self.configured_at = now

    # -- what is there

    def scanned(self, seen: Sequence[Tty], now: float, *, certain: bool, date: str, answered: bool) -> None:
        """Take in a look, after the contract has done so."""
        plan = self.contract.plan
        births = {tty.birth: tty for tty in seen}
        doubted = {} if self.certain else self.here
        self.certain = certain
        self.here = births if certain else self.here | births
        self.ledger.seen |= births.keys()
        for birth in births:
            self.first_seen.setdefault(birth, now)
        owners = {tty.birth: plan.owner(tty) for tty in seen}
        listed = [tty for tty in seen if owners[tty.birth][0] is not None]
        around = doubted | self.here
        gone = around.keys() - {tty.birth for tty in self.ledger.host.present}
        # One that has the place of another, and says so, has come after it.
        taken = {tty.place for birth, tty in around.items() if birth not in gone and tty.record}
        maybe = [
            birth
            for birth, tty in around.items()
            if plan.owner(tty)[0] is not None and not (birth in gone and tty.place in taken)
        ]
        self.ledger.paths.note({birth: self.ledger.host.past[birth].claims for birth in maybe}, frozenset(gone))
        if certain:
            read = {tty.birth: tty.claims if tty.record else self._bare(tty) for tty in listed}
            self.paths.note(read)
            if answered:
                self.ledger.read.note(read)
        for tty in listed:
            want, _ = owners[tty.birth]
            if want is None or want.evict is None:
                continue
            known = self.known.setdefault((want.name, tty.birth), Known(want=want.name, tty=tty))
            known.tty = self.ledger.host.past[tty.birth]
            known.back = now if known.missing is not None else known.back
            # Neither an uncertain scan nor what has not arrived yet ends a loss: until then it stays listed.
            dates = set() if certain and self.contract.counts(tty) else known.dates
            known.seen()
            known.dates = dates
            known.told, known.serial = known.told and tty.record, tty.told
            if certain and answered and self.contract.counts(tty):
                known.counted, known.dated = now, date
        for key in [key for key in self.known if key[1] in births]:
            owner, open_ = owners[key[1]]
            if (owner is None or owner.name != key[0]) and key[0] not in open_:
                del self.known[key]  # it is present and unmatched: whatever becomes of it, it is no loss
        if certain:
            self._miss(now)
            self._find_returned(now)

    def _bare(self, tty: Tty) -> frozenset[str]:
        """Return the paths of a device that can be known without its record: what leads to it."""
        leading = self.ledger.host.leading
        paths = {
            path for path, found in leading.items() if found.birth == tty.birth and path.startswith("/dev/serial/")
        }
        return frozenset({tty.devnode} | paths)

    def _miss(self, now: float) -> None:
        faces = {(tty.face, tty.told) for tty in self.here.values()}
        for known in self.known.values():
            if known.tty.birth in self.here:
                continue
            if known.missing is None:
                want = self.contract.plan.want(known.want)
                known.missing, known.grace = now, want.grace if want else 0.0
                if known.lost:
                    known.accepted = min(now, _moment(known.lost))
            if (known.tty.face, known.serial) in faces:
                known.over = True
                known.victims.clear()
            elif known.over and not any(self._is_later(other, known) for other in self._others(known)):
                # It was back and not listed: now it is lost anew, and nothing that counts it has a grace.
                known.over, known.missing, known.accepted, known.grace = False, now, None, 0.0

    def _is_later(self, one: Known, other: Known) -> bool:
        return one.tty.face == other.tty.face and one.tty.birth > other.tty.birth

    def _others(self, known: Known) -> Iterator[Known]:
        return (other for other in self.known.values() if other is not known and other.want == known.want)

    def _find_returned(self, now: float) -> None:
        for known in self.known.values():
            for tty in self.here.values():
                key = (known.want, known.tty.birth, tty.birth)
                if known.missing is not None and key not in self.returns and self._same(known, tty):
                    handled = tty.handled if tty.record else None
                    seen = self.first_seen[tty.birth]
                    # One that was there beside it takes its place with this look.
                    self.returns[key] = now if seen <= known.counted else min(seen, handled or now)
                    if known.remembered and known.tty.number == tty.number:  # it may never have been away
                        self.recalled.setdefault(tty.birth, set()).update(self.recalled.get(known.tty.birth, ()))

    def _same(self, known: Known, tty: Tty) -> bool:
        """Return whether a device is, or cannot be told from, one that was there before."""
        before = known.tty
        if tty.birth == before.birth or (tty.vendor, tty.interface) != (before.vendor, before.interface):
            return False
        alike = None in {tty.plain, before.plain} or tty.plain == before.plain
        had = self.ledger.paths.had(before.birth) | before.claims
        return tty.face == before.face or alike or (known.remembered and bool(had & tty.claims))

    def learned(self, states: Sequence[NodeState], now: float, *, answered: bool) -> None:
        """Take note of what the Node is known to show; before the first answer nobody knows whether that is so still."""
        for known in self.known.values():
            self._dated_late(known, states)
            if known.missing is None:
                listed = [entry for state in states[:1] for entry in believed(state).get(known.want, ())]
                known.listed = known.listed or any(known.is_told_of(entry) for entry in listed)
            elif known.remembered and not known.lost and not known.cuts and not known.judged:
                if not answered:
                    continue
                known.judged = True
                # A former daemon, or a kubelet, has stopped counting it without a date: who came afterwards cannot be told. A kubelet
                # that has done so since the daemon first read the Node is drift, which is repaired.
                present = self.contract.present.get(known.want, 0)
                known.over = known.over or all(state.count(known.want) <= present for state in states)
            elif known.accepted is None and now >= known.missing + known.grace - SOON:
                most = self._without(known, now)
                if any(state.count(known.want) <= most for state in states):
                    known.accepted = now

    def _dated_late(self, known: Known, states: Sequence[NodeState]) -> None:
        """Take the date of a loss from a PATCH of a former daemon that was stored after this one began."""
        if not known.remembered or known.judged or known.lost or known.missing is None:
            return
        for entry in (entry for state in states for entry in believed(state).get(known.want, ())):
            lost = entry.get("lost")
            early = any(_is_same_loss(entry, each) for each in self.begun.get(known.want, ()))
            if lost and known.is_told_of(entry) and not early:
                known.lost, known.dated, known.listed = lost, lost, True
                known.accepted = min(known.missing, _moment(lost))

    def _without(self, lost: Known, now: float) -> int:
        """Return what a resource may be counted as without a lost device: with the others that are away for less than their grace."""
        lingering = (
            known
            for known in self.known.values()
            if known.want == lost.want and known.missing is not None and now < known.missing + known.grace
        )
        return self.contract.present.get(lost.want, 0) + sum(1 for _ in lingering)

    # -- what is sent

    def sending(self, changes: Parts, date: str, now: float) -> tuple[list[Cut], str]:
        """Return what a PATCH stops counting, to be marked once it is stored; and what is wrong with its memory."""
        cut = Cut(date=date, listed=frozenset(self.met))
        self.ledger.dates.add(date)
        entries = _content(changes.get(ANNOTATION_PART))
        for known in self.known.values():
            if known.missing is None:
                continue
            known.dates.add(date)
            # What a former daemon stopped counting is only listed on: who was there is told by its date.
            if known.lost or now < known.missing + known.grace - SOON:
                continue
            lower = changes.get(known.want)
            marked = [
                entry.get("lost")
                for entry in entries.get(known.want, ())
                if entry.get("lost") and known.is_told_of(entry)
            ]
            lowers = lower is not None and int(lower) <= self._without(known, now)
            if marked or lowers:
                known.cuts.append(cut)
            elif known.accepted is not None:
                # Where a stranger has lowered it before, any later PATCH is as good.
                known.cuts.append(replace(cut))
        return [cut], self._misdated(entries)

    def _misdated(self, entries: Content) -> str:
        """Return what is wrong with the times of losses: each is that of the last answer before a PATCH that told of it."""
        for name, items in entries.items():
            for entry in items:
                same = [known for known in self.known.values() if known.want == name and known.is_told_of(entry)]
                # Which of two twins is back cannot always be told: then the other one is lost, with the date of the one.
                same += [other for known in same for other in self._others(known) if self._same(known, other.tty)]
                dates = self.former | {date for known in same for date in (*known.dates, known.lost)}
                if same and entry.get("lost") and entry["lost"] not in dates:
                    return f"{name} at {entry['devnode']} was not lost at {entry['lost']}, but at one of {sorted(map(str, dates))}"
        return ""

    # -- who goes

    def answered(self, pods: Sequence[Pod], now: float) -> None:
        """Take in a list of pods, of which the victims of each loss may be chosen now."""
        self.roster = {pod.uid: pod for pod in pods}
        self.listed_at = now
        self.met |= self.roster.keys()
        for want in self.contract.plan.wants:
            ripe = self._ripe(want, now) if want.evict is not None else []
            for pod in pods if ripe else ():
                life = self.ledger.town.lives[pod.uid]
                for known in ripe:
                    if self._bereaved(life, known, ripe, want):
                        known.victims.add(pod.uid)

    def wrongly(self, pod: Pod, now: float) -> str:
        """Return why an eviction is wrong, empty where the contract asks for it or may do so."""
        life = self.ledger.town.lives[pod.uid]
        if fault := self._never(life):
            return fault
        faults = []
        for name in life.template.requests:
            want = self.contract.plan.want(name)
            if want is None or want.evict is None:
                faults.append("its resource never evicts")
                continue
            if self._is_lost(life, want, now):
                return ""
            fault = self._replugged(life, want, now)
            if not fault:
                return ""
            faults.append(f"nothing that it had is lost, and {fault}")
        return "; ".join(faults) or "it requests nothing"

    def _own(self, tty: Tty) -> set[str]:
        """Return the paths that named a registration alone, as far as this daemon, or the one before it, could know."""
        known = (paths.places.get(tty.birth) for paths in (self.paths, self.ledger.read, self.ledger.paths))
        places = next(filter(None, known), Places())
        return places.own - self.recalled.get(tty.birth, set())

    def _never(self, life: Life) -> str:
        told = self.roster.get(life.uid)
        if told is None:
            return "the last list does not hold it"
        faults = {
            "it is on another node": life.template.node != NODE,
            f"such a pod never is ({life.template.owner or 'bare'})": life.template.owner in {"", "DaemonSet", "Node"},
            "it is finished": told.phase in {"Succeeded", "Failed"},
            "it is terminating": told.terminating,
            "the last look was not certain": not self.certain,
        }
        return next((fault for fault, found in faults.items() if found), "")

    # lost

    def _ripe(self, want: Want, now: float) -> list[Known]:
        """Return the lost devices of a resource whose time has come."""
        return [
            known
            for known in self._gone(want)
            if known.accepted is not None and now >= known.accepted + (want.evict or 0.0) - SOON
        ]

    def _gone(self, want: Want) -> list[Known]:
        return [
            known
            for known in self.known.values()
            if known.want == want.name and known.missing is not None and (not known.over or self._has_lost_twin(known))
        ]

    def _has_lost_twin(self, one: Known) -> bool:
        """Return whether a twin is lost of a device that is back: which of them is back, nothing tells."""
        lost = (other for other in self._others(one) if other.missing is not None and not other.over)
        return any(other.alike(one) and other.tty.face != one.tty.face for other in lost)

    def _bereaved(self, life: Life, lost: Known, ripe: Sequence[Known], want: Want) -> bool:
        """Return whether a pod is to be evicted for a loss, of all that are ripe."""
        if want.name not in life.template.requests or not self._was_there(life, lost):
            return False
        paths = set(life.pod.host_paths)
        named = any(paths & self._names(each) for each in ripe if each is lost or each.alike(lost))
        if self.contract.present.get(want.name, 0) == 0:
            counted = (known for known in self._gone(want) if known.counted > -math.inf)
            young = [known for known in counted if known not in ripe and not known.remembered]
            return named or not any(paths & self._own(known.tty) for known in young)
        return named and not self._is_well(life, want, lost)

    def _names(self, lost: Known) -> set[str]:
        """Return the paths that name a lost device, or any that cannot be told from it."""
        alike = (
            known
            for known in self.known.values()
            if known.want == lost.want and known.missing is not None and known.alike(lost)
        )
        # What is true is right to know, also where this daemon was not yet answered when it was so.
        truly = (self.ledger.paths.places.get(known.tty.birth, Places()).own for known in (lost, *alike))
        return set().union(*truly, *(self._own(known.tty) for known in (lost, *alike)))

    def _was_there(self, life: Life, lost: Known) -> bool:
        if lost.remembered and lost.lost:
            return life.pod.scheduled < lost.lost
        return any(life.uid in cut.listed or life.pod.scheduled < cut.date for cut in lost.valid)

    def _is_well(self, life: Life, want: Want, lost: Known) -> bool:
        """Return whether all that a pod has opened is where it was when its container started, which was before the loss."""
        exact = list(life.exact())
        return bool(exact) and all(
            tty is not None
            and tty.birth in self.here
            and path in self.paths.had(tty.birth)
            and self.contract.plan.owner(self.here[tty.birth])[0] is want
            and container.started is not None
            and container.started < int(host_date(self.ledger.host.pulled.get(lost.tty.birth, lost.missing or 0.0)))
            for container, path, tty in exact
        )

    def _is_lost(self, life: Life, want: Want, now: float) -> bool:
        # Who was chosen stays chosen, also under a configuration that waits for longer.
        ripe = self._ripe(want, now)
        chosen = any(life.uid in known.victims for known in self._gone(want))
        return chosen or any(self._bereaved(life, known, ripe, want) for known in ripe)

    # replugged

    def _replugged(self, life: Life, want: Want, now: float) -> str:
        """Return why a pod is not to be evicted for a return."""
        fault = "nothing has returned"
        for (name, before, after), at in self.returns.items():
            if name != want.name or after not in self.here:
                continue
            was, now_is = self.ledger.host.past[before], self.here[after]
            fault = self._after_return(life, (was, now_is, at), want.evict or 0.0, now)
            if not fault:
                return ""
        return fault

    def _after_return(self, life: Life, back: Returned, after: float, now: float) -> str:
        was, now_is, at = back
        if was.number == now_is.number:
            return "it has the same number"
        if now < at + after - SOON:
            return f"it has returned {now - at:.1f} s ago"
        if self._in_peace(now_is, at):
            return "a pod was evicted for a return of it within the 10 minutes before"
        chain = (tty for tty in self.ledger.host.past.values() if tty.face in {was.face, now_is.face})
        own = set().union(*map(self._own, chain))
        faults = [self._has_dead_file(*mount, own, at) for mount in self._mounts(life, now)]
        return "" if "" in faults else "; ".join(faults) or "it has no file"

    def _mounts(self, life: Life, now: float) -> Iterator[tuple[Container, str, Tty | None]]:
        """Yield each file of a pod with its container, as the last list tells of it if that was right before."""
        told = self.roster.get(life.uid, life.pod) if now <= self.listed_at + STALE else life.pod
        for container, opened in zip(told.containers, life.opened, strict=True):
            for path, tty in opened.items():
                yield container, path, tty if told is life.pod else None

    def _in_peace(self, tty: Tty, at: float) -> bool:
        return any(then < at < then + PEACE - 1 for then in self.replugged.get((tty.stick, tty.told), ()))

    def _has_dead_file(self, container: Container, path: str, opened: Tty | None, own: set[str], at: float) -> str:
        """Return why a container does not have the dead file of a returned device."""
        if path not in own:
            return f"{path} does not name it alone"
        if container.phase is not Phase.RUNNING:
            return "the container does not run"
        if container.started is None:
            return "nobody knows when the container started"
        if container.started >= int(host_date(at)):
            return "the container has started since"
        good = opened is not None and any(
            (tty.face, tty.number) == (opened.face, opened.number) for tty in self.here.values()
        )
        if opened is not None and good and self._can_know(opened, path) and not self._is_confused(opened):
            return "its file is good"
        return ""

    def _can_know(self, tty: Tty, path: str) -> bool:
        """Return whether this daemon can know that a path led to a device: before the Node is read, it compares no scans."""
        owner, _ = self.contract.plan.owner(tty)
        known = [each for key, each in self.known.items() if owner and key == (owner.name, tty.birth)]
        had = self.paths.had(tty.birth) & self.ledger.read.had(tty.birth)
        return any(path in (tty.claims if each.remembered else had) for each in known)

    def _is_confused(self, tty: Tty) -> bool:
        """Return whether a twin was away as well when a device returned, or came meanwhile: which of them it is, nothing tells."""
        away = [known for known in self.known.values() if known.missing is not None]
        mine = [known for known in away if known.tty.birth == tty.birth]
        came = [known for known in self.known.values() if known.missing is None]
        for one in mine:
            missed = (one.missing or 0.0) - 2 * SOON
            last = min(missed, one.counted) if one.counted > -math.inf else missed
            twins = (*away, *(known for known in came if self.first_seen[known.tty.birth] > last + SOON))
            if any(one.alike(two) and one.tty.face != two.tty.face for two in twins):
                return True
        return False

    def evicted(self, life: Life, now: float) -> None:
        """Take note of a pod that was evicted, where nothing but a return can be the cause; which one of several, nobody knows."""
        causes = set(self._causes(life, now))
        self.ledger.replugged |= {stick for stick, _ in causes}
        if len(causes) == 1:
            self.replugged.setdefault(causes.pop(), []).append(now)

    def _causes(self, life: Life, now: float) -> Iterator[tuple[int, str | None]]:
        """Yield the sticks, with their serials, for whose return a pod may be evicted."""
        for name in life.template.requests:
            want = self.contract.plan.want(name)
            if want is None or want.evict is None or self._is_lost(life, want, now):
                continue
            for (resource, before, after), at in self.returns.items():
                was, tty = self.ledger.host.past[before], self.here.get(after)
                if resource != name or tty is None or was.looks != tty.looks:
                    continue
                if not self._after_return(life, (was, tty, at), want.evict, now):
                    yield tty.stick, tty.told

    # -- who should have gone

    def forgotten(self) -> list[str]:
        """Return the pods that should have been evicted in the end, beyond doubt."""
        left: set[str] = set()
        for known in self.known.values():
            want = self.contract.plan.want(known.want)
            if want is not None and want.evict is not None:
                found = self._orphans(known, want) if self._surely_lost(known) else self._with_dead_files(known)
                left |= {life.pod.name for life in found if not self._stays(life)}
        return sorted(left)

    def _stays(self, life: Life) -> bool:
        return life.pod.finished or life.pod.terminating or life.template.owner in {"", "DaemonSet", "Node"}

    def _with_dead_files(self, known: Known) -> Iterator[Life]:
        """Yield the pods that go on with a file of a stick that has surely come back under another number."""
        alike = [
            tty
            for tty in self.ledger.host.past.values()
            if tty.vendor == known.tty.vendor and tty.interface == known.tty.interface
        ]
        back = next((tty for tty in self.here.values() if tty.face == known.tty.face), None)
        since = self.returns.get((known.want, known.tty.birth, back.birth)) if back else None
        if (
            back is None
            or since is None
            or known.tty.number == back.number
            or len({(tty.face, tty.serial) for tty in alike}) > 1
        ):
            return
        now_known = self.known.get((known.want, back.birth))
        if not (known.listed and known.told and now_known and now_known.told and known.counted > self.configured_at):
            return
        if known.tty.stick in self.ledger.replugged:
            return
        # Where another has its path by now, a container that started shortly before may have mounted that one.
        taken = set().union(*(tty.claims for tty in self.here.values() if tty is not back))
        own = self._own(known.tty) - self._doubtful(known.tty) - taken
        for life in self.ledger.town.here:
            for container, path, opened in life.exact() if known.want in life.template.requests else ():
                dead = opened is not None and opened.birth == known.tty.birth and path in own
                running = container.phase is Phase.RUNNING and container.started is not None
                if dead and running and (container.started or 0) < int(host_date(since)):
                    yield life

    def _doubtful(self, tty: Tty) -> set[str]:
        """Return the paths that another one may have had beside this one, at any of its registrations."""
        births = (each.birth for each in self.ledger.host.past.values() if each.face == tty.face)
        return set().union(*map(self.ledger.paths.doubtful, births))

    def _surely_lost(self, known: Known) -> bool:
        """Return whether a device is lost, with nothing that came later to be taken for it."""
        if not known.listed or known.missing is None or known.counted < self.configured_at or not known.dated:
            return False
        later = (
            True
            for tty in self.ledger.host.past.values()
            if tty.vendor == known.tty.vendor and tty.plugged >= known.counted - SOON
        )
        again = (
            True
            for other in self.known.values()
            if other.tty.vendor == known.tty.vendor and other.back >= known.counted - SOON
        )
        return not (any(later) or any(again) or self._leads_somewhere(known))

    def _leads_somewhere(self, known: Known) -> bool:
        """Return whether a path of what a former daemon listed leads to a like one now: then it is not lost."""
        had = self.ledger.paths.had(known.tty.birth)
        alike = (tty for tty in self.here.values() if tty.vendor == known.tty.vendor)
        return known.remembered and any(had & tty.claims for tty in alike)

    def _orphans(self, known: Known, want: Want) -> Iterator[Life]:
        none_left = self.contract.present.get(want.name, 0) == 0
        seen = known.tty.birth in self.ledger.paths.places and known.told and not known.lost
        own = self._own(known.tty) - self.ledger.paths.doubtful(known.tty.birth) if seen else set()
        for life in self.ledger.town.here:
            listed = bool(known.cuts) and all(life.uid in cut.listed for cut in known.cuts)
            concerned = want.name in life.template.requests and (listed or life.pod.scheduled < known.dated)
            if concerned and (none_left or own & set(life.pod.host_paths)):
                yield life
