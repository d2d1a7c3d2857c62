"""Decide what the Node should show and what to write for it. Nothing here does I/O, and time is an argument."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from devwatch.core.inventory import Inventory, Window
from devwatch.core.listing import Entry, Listing, render_listing
from devwatch.core.node import ANNOTATION_PART, Amounts, NodePatch, NodeState, Part
from devwatch.core.rules import Claim, ResourceRule, claim, quantity_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.core.device import Device, Key

START_GRACE = 10.0
"""Seconds for which the Node's own figure counts after a start, at least: a stick may still be settling."""


class Claims:
    """Whose each device is under one set of rules; every device value is judged once."""

    def __init__(self, rules: Sequence[ResourceRule]) -> None:
        """Hold the rules of this node, in the order of their priority."""
        self.rules = tuple(rules)
        self._known: dict[Device, Claim] = {}
        self._asked: tuple[Device, ...] = ()

    def judge(self, devices: Iterable[Device]) -> dict[Device, Claim]:
        """Return the claim of each device; what is not among them is forgotten."""
        asked = tuple(devices)
        # A look that finds what the one before found yields the very same values, which compare at once.
        if asked != self._asked:
            known = self._known
            self._known = {device: known.get(device) or claim(device, self.rules) for device in asked}
            self._asked = asked
        return self._known


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What one resource comes to now."""

    present: int
    advertised: int
    devices: tuple[Device, ...]
    """The present devices that it claims."""
    held: bool = False
    """Whether it may be wrong, so that it must not fall."""
    away: bool = False
    """Whether a devnode of it has been away for less than the grace, so that what is listed may be as it was in a moment."""
    due: float | None = None
    """When `advertised` falls or `away` ends if nothing changes."""
    start_until: float | None = None
    """Until when the Node's own figure at the start counts, None where more is present, or that is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What all resources of this node come to now, in the order of the configuration."""

    by_name: Mapping[str, Figure] = field(default_factory=dict)
    claims: Mapping[Device, Claim] = field(default_factory=dict)

    @property
    def due(self) -> float | None:
        """When the first figure changes if nothing else does."""
        return min((figure.due for figure in self.by_name.values() if figure.due is not None), default=None)

    @property
    def away(self) -> bool:
        """Whether a claimed devnode has been away for less than its grace."""
        return any(figure.away for figure in self.by_name.values())


class Tally:
    """The counts over time: rise at once, fall after the grace, never fall on ignorance."""

    def __init__(self, rules: Sequence[ResourceRule], *, start_grace: float = START_GRACE) -> None:
        """Count for these rules. `start_grace` is the least number of seconds for which the figures of `start` count."""
        self._claims = Claims(rules)
        self._counts: dict[str, Window] = {}
        self._devnodes: dict[str, Window] = {}
        self._last: dict[str, int] = {}
        self._owners: dict[Key, str] = {}
        self._reconfigured = False
        self._start_grace = start_grace
        self._start: dict[str, tuple[int, float]] = {}

    def configure(self, rules: Sequence[ResourceRule]) -> None:
        """Count for other rules; what was counted for a resource of the same name still counts, but what goes to another does not."""
        self._claims, self._reconfigured = Claims(rules), True
        names = {rule.name for rule in rules}
        self._counts = {name: window for name, window in self._counts.items() if name in names}
        self._devnodes = {name: window for name, window in self._devnodes.items() if name in names}
        self._last = {name: count for name, count in self._last.items() if name in names}

    def start(self, observed: NodeState, now: float) -> None:
        """Take the Node's own figures as seen now: nobody else knows what was there before the start."""
        self._start = {
            rule.name: (observed.count(rule.name), now + max(self._start_grace, rule.removal_grace))
            for rule in self._claims.rules
        }

    def count(self, inventory: Inventory, observed: NodeState | None, now: float) -> Figures:
        """Take in what the last look found and return what it comes to."""
        claims = self._claims.judge((*inventory.present, *inventory.pending))
        owned: dict[str, list[Device]] = {rule.name: [] for rule in self._claims.rules}
        for device in inventory.present:
            if (owner := claims[device].owner) is not None:
                owned[owner].append(device)
        self._hand_over({device.key: name for name, devices in owned.items() for device in devices})
        certain = not inventory.doubts
        held = _undecided(inventory, claims) if certain else set(owned)
        figures: dict[str, Figure] = {}
        for rule in self._claims.rules:
            devices = tuple(owned[rule.name])
            self._note(rule, devices, now, certain=certain)
            figures[rule.name] = self._figure(rule, devices, observed, now, held=rule.name in held)
        return Figures(by_name=figures, claims=claims)

    def _hand_over(self, owners: dict[Key, str]) -> None:
        """Count what another configuration gives to another resource no longer for the one that it belonged to."""
        for key, before in self._owners.items() if self._reconfigured else ():
            if owners.get(key, before) != before:
                for memory in (self._counts, self._devnodes, self._last):
                    memory.pop(before, None)
        self._owners, self._reconfigured = owners, False

    def _note(self, rule: ResourceRule, devices: tuple[Device, ...], now: float, *, certain: bool) -> None:
        """Take in what was found. What an uncertain look did not find may have been there: its grace begins when it surely is not."""
        counts, devnodes = (memory.setdefault(rule.name, Window()) for memory in (self._counts, self._devnodes))
        present, number = quantity_of(rule, devices), len(devices)
        counts.push(present if certain else max(present, self._last.get(rule.name, 0)), now)
        devnodes.push(number if certain else max(number, devnodes.largest(now, rule.removal_grace)), now)

    def _figure(
        self, rule: ResourceRule, devices: tuple[Device, ...], observed: NodeState | None, now: float, *, held: bool
    ) -> Figure:
        grace, counts, devnodes = rule.removal_grace, self._counts[rule.name], self._devnodes[rule.name]
        start, until = self._started(rule, now)
        # Not into the window: a device that is unknown for a moment gives those that are away no further grace.
        before = self._last.get(rule.name, 0) if held else 0
        self._last[rule.name] = max(counts.largest(now, grace), start, before)
        away = devnodes.largest(now, grace) > len(devices)
        # Apart from what was counted here: a stranger's figure is held no longer than the Node shows it.
        shown = observed.count(rule.name) if held and observed else 0
        dues = (counts.due(grace), devnodes.due(grace), until)
        present = quantity_of(rule, devices)
        return Figure(
            present=present,
            advertised=max(self._last[rule.name], shown),
            devices=devices,
            held=held,
            away=away,
            due=min((due for due in dues if due is not None), default=None),
            start_until=until if start > present else None,
        )

    def _started(self, rule: ResourceRule, now: float) -> tuple[int, float | None]:
        """Return the Node's own figure at the start and until when it counts; (0, None) when that is over."""
        count, until = self._start.get(rule.name, (0, now))
        return (count, until) if now < until else (0, None)


def _undecided(inventory: Inventory, claims: Mapping[Device, Claim]) -> set[str]:
    """Return the resources that may have more devices than are counted: of open claims, and of devices that have not arrived."""
    names = {name for device in (*inventory.present, *inventory.pending) for name in claims[device].doubtful}
    return names | {owner for device in inventory.pending if (owner := claims[device].owner) is not None}


def list_devices(figures: Figures, observed: Listing, remembered: Listing = MappingProxyType({})) -> Listing:
    """Return what the annotation should list: what is `remembered` of a resource, else its present devices.

    While more than those is advertised, it goes on listing what it lists already.
    """
    return {
        name: remembered[name] if name in remembered else _listed(figure, observed.get(name, ()))
        for name, figure in figures.by_name.items()
    }


def _listed(figure: Figure, observed: tuple[Entry, ...]) -> tuple[Entry, ...]:
    present = tuple(Entry.of(device) for device in figure.devices)
    if figure.advertised <= figure.present:
        return present
    here = {entry.devnode for entry in present}
    return (*present, *(entry for entry in observed if entry.devnode not in here))


def plan_patch(
    figures: Figures,
    observed: NodeState,
    *,
    isolated: AbstractSet[Part] = frozenset(),
    remembered: Listing = MappingProxyType({}),
    written: AbstractSet[str] = frozenset(),
) -> NodePatch:
    """Return what must be written so that the Node shows the figures; empty where it does.

    A resource that the configuration no longer has is removed where the annotation is believed to own it, or it was `written` since it was
    last observed to be gone, and no other client has written its count; what another one put there is left alone. While a part is
    `isolated` (sent in a request of its own), the annotation keeps the name until the removal was observed, so that it is never forgotten.
    While a devnode is away for less than its grace, the list of its resource and the links of others are no reason to write the annotation:
    back again, they are as before. A `written` count may be on the Node though neither its state nor its annotation says so: it stays
    listed until that is known.
    """
    memory = observed.memory()
    wanted: dict[str, Amounts | None] = {
        name: Amounts.of(figure.advertised) for name, figure in figures.by_name.items()
    }
    unseen = {name for name in written if name not in wanted and observed.removable(name)}
    wanted |= {name: None for name in memory if name not in wanted and observed.removable(name)}
    wanted |= dict.fromkeys(unseen)
    needed = {name: count for name, count in wanted.items() if name in unseen or not observed.shows(name, count)}
    leaving = {name for name, count in needed.items() if count is None and isolated} | (written - wanted.keys())
    listed = list_devices(figures, memory, remembered)
    annotation = render_listing({**listed, **{name: memory.get(name, ()) for name in leaving}})
    if annotation == observed.annotation:
        return NodePatch(counts=needed)
    ours = not leaving and memory.keys() == figures.by_name.keys()
    if ours and not needed and _can_wait(figures, annotation or "", observed.annotation or ""):
        return NodePatch()
    return NodePatch(counts=needed, annotation=annotation)


def _can_wait(figures: Figures, wanted: str, shown: str) -> bool:
    """Return whether two annotations of these resources differ only where a devnode is away, or in a link that may come back with it."""
    if not figures.away:
        return False
    after, before = json.loads(wanted), json.loads(shown)
    return all(figures.by_name[name].away or _unlinked(after[name]) == _unlinked(before[name]) for name in after)


def _unlinked(entries: Iterable[dict[str, object]]) -> list[dict[str, object]]:
    return [{**entry, "link": None, "links": None, "shared": None} for entry in entries]


class Draft:
    """Remembers the last answer of `plan_patch`: most scans find what the one before found, and rendering the annotation takes longest."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._asked: tuple[object, ...] = ()
        self._answer = NodePatch()

    def patch(
        self,
        figures: Figures,
        observed: NodeState,
        *,
        isolated: AbstractSet[Part],
        remembered: Listing,
        written: AbstractSet[str],
    ) -> NodePatch:
        """Return what `plan_patch` does."""
        asked = (figures.by_name, observed, frozenset(isolated), dict(remembered), frozenset(written))
        if asked != self._asked:
            self._answer = plan_patch(figures, observed, isolated=isolated, remembered=remembered, written=written)
            self._asked = asked
        return self._answer


def portion(wanted: NodePatch, *, isolated: AbstractSet[Part], blocked: AbstractSet[Part]) -> NodePatch:
    """Return what to send in the next request.

    A part that was refused in a batch is sent alone until it is accepted; one that was refused alone is `blocked` until its time comes. The
    rest goes in one request, but after the annotation: devwatch lists what it owns before it advertises it.
    """
    free = wanted.parts - blocked
    if ANNOTATION_PART in free and ANNOTATION_PART in isolated:
        return wanted.only({ANNOTATION_PART})
    batch = free - isolated
    return wanted.only(batch or sorted(free)[:1])
