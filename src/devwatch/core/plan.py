"""Compute the counts that the Node should show, and the patch for it. Nothing here does I/O, and time is an argument."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from devwatch.core.device import TTY
from devwatch.core.exclusion import exclude_other_kind
from devwatch.core.inventory import Inventory, Window
from devwatch.core.listing import Entry, Listing, render_listing
from devwatch.core.node import ANNOTATION_PART, Amounts, NodePatch, NodeState, Part
from devwatch.core.rules import Claim, Count, Publish, ResourceRule, claim, quantity_of
from devwatch.core.slots import Slot, Slots, SlotState, mark, recall
from devwatch.core.way import way_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.core.device import Device, Key

START_GRACE = 10.0
"""Seconds for which the Node's own figure counts after a start, at least: a stick may still be initialising."""


class Claims:
    """The owner of each device under one set of rules; each device value is judged once."""

    def __init__(self, rules: Sequence[ResourceRule]) -> None:
        """Store the rules of this node, in the order of their priority."""
        self.rules = tuple(rules)
        self._known: dict[Device, Claim] = {}
        self._claims: dict[Device, Claim] = {}
        self._asked: tuple[tuple[Device, ...], bool] = ((), True)
        self._present: tuple[Device, ...] = ()
        """The devices of the last certain scan."""

    def judge(self, devices: Iterable[Device], *, certain: bool = True) -> dict[Device, Claim]:
        """Return the claim of each device of a scan. A device that an uncertain one misses still excludes the other kind."""
        asked = (tuple(devices), certain)
        # A scan without changes yields identical objects, which compare fast.
        if asked != self._asked:
            found, known = asked[0], self._known
            self._present = found if certain else self._present
            missed = self._present if not certain else ()
            self._known = {device: known.get(device) or claim(device, self.rules) for device in (*found, *missed)}
            changed = exclude_other_kind(self._known, self.rules)
            self._claims = {device: changed.get(device) or self._known[device] for device in found}
            self._asked = asked
        return self._claims


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The count of one resource now."""

    present: int
    advertised: int
    devices: tuple[Device, ...]
    """The present devices that the resource claims."""
    publish: Publish = Publish.NODE_STATUS
    """How the resource is published."""
    subsystem: str = TTY
    """The udev subsystem of its devices."""
    slots: tuple[Slot, ...] = ()
    """What the resource offers: one slot for each device that is present, lingers, or is held by a pod."""
    held: bool = False
    """Whether something unknown may change the count, so that it must not fall."""
    away: bool = False
    """Whether a devnode of it has been away for less than the grace, so that the list of devices may soon be as before."""
    amounts: Amounts | None = None
    """The figures that the Node should show where the kubelet hands the devices over; None for `advertised` in both maps.

    With `publish: dra` they are 0: a figure above that would win over the ResourceSlice (scheduler, `DRAExtendedResource`).
    """
    frozen: bool = False
    """Whether the annotation's entries stay as they are: the resource is still in use in another way of publishing."""
    due: float | None = None
    """When `advertised` falls or `away` ends without a further event."""
    node: int = 0
    """What of `advertised` is the Node's own figure, at the start or while something is unknown; 0 where that does not count."""
    start_until: float | None = None
    """Until when the Node's own figure at the start counts, None where at least as many are present, or that time is over."""

    @property
    def shown(self) -> Amounts:
        """The figures that the Node should show."""
        return self.amounts or Amounts.of(self.advertised)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The counts of all resources of this node now, in the order of the configuration."""

    by_name: Mapping[str, Figure] = field(default_factory=dict)
    claims: Mapping[Device, Claim] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    """Resources of the configuration that are neither written nor removed."""
    forgotten: frozenset[str] = frozenset()
    """Resources of ended plugins that the kubelet does not write any more."""
    foreign: frozenset[str] = frozenset()
    """Resources that have left the configuration while another plugin had them: the kubelet writes its figures, which stay."""

    @property
    def written(self) -> Figures:
        """The figures without those that are left out."""
        if not self.left_out:
            return self
        return replace(self, by_name={name: each for name, each in self.by_name.items() if name not in self.left_out})

    @property
    def due(self) -> float | None:
        """When the first figure changes without a further event."""
        return min((figure.due for figure in self.by_name.values() if figure.due is not None), default=None)

    @property
    def away(self) -> bool:
        """Whether a claimed devnode has been away for less than its grace."""
        return any(figure.away for figure in self.by_name.values())


class Tally:
    """Counts over time: they rise at once, fall after the grace, and never fall on incomplete knowledge."""

    def __init__(self, rules: Sequence[ResourceRule], *, start_grace: float = START_GRACE) -> None:
        """Count for these rules. The figures of `start` count for `start_grace` seconds at least."""
        self._claims, self._left_out = Claims(rules), frozenset[str]()
        self._counts: dict[str, Window] = {}
        self._devnodes: dict[str, Window] = {}
        self._slots: dict[str, Slots] = {}
        self._last: dict[str, int] = {}
        self._owners: dict[Key, str] = {}
        self._reconfigured = False
        self._start_grace = start_grace
        self._start: dict[str, tuple[int, float]] = {}

    def configure(self, rules: Sequence[ResourceRule], *, left_out: frozenset[str] = frozenset()) -> None:
        """Count for other rules; those of `left_out` are left as they are.

        Past counts of a resource stay, unless they were of another unit, or a device of it now goes to another (`_forget_reassigned`).
        """
        units = {rule.name: rule.count for rule in rules}
        same = {rule.name for rule in self._claims.rules if rule.count is units.get(rule.name)}
        self._claims, self._reconfigured, self._left_out = Claims(rules), True, left_out
        self._slots = {name: slots for name, slots in self._slots.items() if name in same}
        self._counts = {name: window for name, window in self._counts.items() if name in same}
        self._devnodes = {name: window for name, window in self._devnodes.items() if name in same}
        self._last = {name: count for name, count in self._last.items() if name in same}
        self._start = {name: start for name, start in self._start.items() if name in same}

    def start(self, observed: NodeState, now: float) -> None:
        """Count the Node's own figures as observed now: they are the only record of the devices before the start.

        Which devices they were is recalled with the next scan.
        """
        self._start = {
            rule.name: (_usable(rule, observed), now + max(self._start_grace, rule.removal_grace))
            for rule in self._claims.rules
        }
        self._slots = {}

    def count(  # noqa: PLR0913 - what is known besides the scan, by keyword
        self,
        inventory: Inventory,
        observed: NodeState | None,
        now: float,
        *,
        free: AbstractSet[str] = frozenset(),
        waiting: Collection[str] = (),
        date: str = "",
        claimed: Callable[[], Mapping[str, Iterable[Slot]]] = dict,
    ) -> Figures:
        """Process the last scan and return the counts.

        `free` are the IDs of which certainly no pod has the device from the kubelet; `waiting` are the resources of which pods may have
        devices in a former way. `date` is the API server's time in its last response. `claimed` returns by resource the slots that claims
        tell of.
        """
        certain = not inventory.doubts
        claims = self._claims.judge((*inventory.present, *inventory.pending), certain=certain)
        owned: dict[str, list[Device]] = {rule.name: [] for rule in self._claims.rules}
        for device in inventory.present:
            if (owner := claims[device].owner) is not None:
                owned[owner].append(device)
        self._forget_reassigned({device.key: name for name, devices in owned.items() for device in devices})
        open_ = _undecided_resources(inventory, claims) if certain else set(owned)
        figures: dict[str, Figure] = {}
        for rule in self._claims.rules:
            devices = tuple(owned[rule.name])
            self._push_counts(rule, devices, now, certain=certain)
            figure = self._figure_of(rule, devices, observed, now, held=rule.name in open_)
            slots = self._slots.get(rule.name) or _recall_slots(rule, observed, claimed().get(rule.name, ()))
            self._slots[rule.name] = slots
            unheld = free if rule.publish.hands_over or rule.name in waiting else None
            offered = slots.update(
                devices, figure.advertised, certain=certain, free=unheld, pending=inventory.pending, date=date
            )
            figures[rule.name] = replace(figure, slots=offered)
        return Figures(by_name=figures, claims=claims, left_out=self._left_out)

    def _forget_reassigned(self, owners: dict[Key, str]) -> None:
        """After a reconfiguration, drop the past counts of resources that have lost a present device to another: it would count twice."""
        for key, before in self._owners.items() if self._reconfigured else ():
            if owners.get(key, before) != before:
                for memory in (self._counts, self._devnodes, self._last):
                    memory.pop(before, None)
        self._owners, self._reconfigured = owners, False

    def _push_counts(self, rule: ResourceRule, devices: tuple[Device, ...], now: float, *, certain: bool) -> None:
        """Add the numbers of a scan. A device missing from an uncertain scan counts as present: its grace begins with a certain scan."""
        counts, devnodes = (memory.setdefault(rule.name, Window()) for memory in (self._counts, self._devnodes))
        present, number = quantity_of(rule, devices), len(devices)
        counts.push(present if certain else max(present, self._last.get(rule.name, 0)), now)
        devnodes.push(number if certain else max(number, devnodes.largest(now, rule.removal_grace)), now)

    def _figure_of(
        self, rule: ResourceRule, devices: tuple[Device, ...], observed: NodeState | None, now: float, *, held: bool
    ) -> Figure:
        grace, counts, devnodes = rule.removal_grace, self._counts[rule.name], self._devnodes[rule.name]
        start, until = self._start_figure(rule, now)
        # Not added to the window: otherwise an unknown device would extend the grace of the devices that are away.
        before = self._last.get(rule.name, 0) if held else 0
        self._last[rule.name] = max(counts.largest(now, grace), start, before)
        away = devnodes.largest(now, grace) > len(devices)
        # Not stored in `_last`: a figure that another client wrote is held only while the Node shows it.
        shown = _usable(rule, observed) if held and observed else 0
        dues = (counts.due(grace), devnodes.due(grace), until)
        present = quantity_of(rule, devices)
        return Figure(
            present=present,
            publish=rule.publish,
            subsystem=rule.subsystem,
            amounts=Amounts.of(0) if rule.publish is Publish.DRA else None,
            advertised=max(self._last[rule.name], shown),
            node=max(start, shown),
            devices=devices,
            held=held,
            away=away,
            due=min((due for due in dues if due is not None), default=None),
            start_until=until if start > present else None,
        )

    def _start_figure(self, rule: ResourceRule, now: float) -> tuple[int, float | None]:
        """Return the Node's own figure at the start and until when it counts; (0, None) after that."""
        count, until = self._start.get(rule.name, (0, now))
        return (count, until) if now < until else (0, None)


def _recall_slots(rule: ResourceRule, observed: NodeState | None, claimed: Iterable[Slot]) -> Slots:
    """Return the slots of a resource that has not been counted by this daemon, or not since it left the configuration.

    Pods may hold devices from before. While they may, the annotation lists these with their IDs, and `claimed` are more of them; where
    these were last, the record of claims tells, since it is written before the annotation. Those of another unit (`count`) are no devices
    of the resource any more.
    """
    listed = recall(rule.name, observed.memory().get(rule.name, ()) if observed else ())
    known = {slot.id: slot for slot in claimed}
    for slot in listed:
        last = known.get(slot.id, slot)
        known[slot.id] = replace(slot, identity=last.identity, in_socket=last.in_socket)
    devnodes = rule.count is Count.DEVNODE
    return Slots(rule.name, rule.count, (slot for slot in known.values() if bool(slot.identity.place) == devnodes))


def _usable(rule: ResourceRule, observed: NodeState) -> int:
    """Return the Node's own number of devices that can be used.

    Where the kubelet hands them over, capacity includes lost ones, and with `publish: dra` the annotation alone tells of them.
    """
    if rule.publish is Publish.DRA:
        return len({entry.id for entry in observed.memory().get(rule.name, ()) if entry.id and not entry.lost})
    return observed.amounts(rule.name).allocatable if rule.publish.hands_over else observed.count(rule.name)


def _undecided_resources(inventory: Inventory, claims: Mapping[Device, Claim]) -> set[str]:
    """Return the resources that may have more devices than are counted, by a doubtful claim or a device that has not arrived."""
    names = {name for claim in claims.values() for name in claim.doubtful}
    return names | {owner for device in inventory.pending if (owner := claims[device].owner) is not None}


def list_devices(figures: Figures, observed: Listing, remembered: Listing = MappingProxyType({})) -> Listing:
    """Return the devices that the annotation should list: those `remembered` for a resource, else its present ones.

    While more than the present devices are advertised, the entries already listed stay.
    """
    listed: dict[str, tuple[Entry, ...]] = {}
    for name, figure in figures.by_name.items():
        former, memory = observed.get(name, ()), remembered.get(name)
        if figure.frozen:
            listed[name] = former
        elif figure.amounts is not None:
            listed[name] = _entries_of_slots(figure, memory, figures.claims)
        else:
            listed[name] = _entries_to_list(figure, former) if memory is None else memory
    return listed


def _entries_of_slots(
    figure: Figure, remembered: tuple[Entry, ...] | None, found: Collection[Device]
) -> tuple[Entry, ...]:
    """Return the entries of a resource that the kubelet hands over: every slot is listed, so that its ID outlives the daemon.

    A device that is held is lost, unless it is among those `found` on the host: then another resource has it by now.
    """
    here = (slot for slot in figure.slots if slot.state is SlotState.PRESENT)
    present = tuple(mark(Entry.of(device), slot, figure.publish) for slot in here for device in slot.devices)
    entries = present if remembered is None else tuple(entry for entry in remembered if entry.id is not None)
    listed = {entry.id for entry in entries}
    absent = [slot for slot in figure.slots if slot.id not in listed]
    away = tuple(
        replace(entry, lost=None if slot.lost and slot.is_among(found) else slot.lost, publish=figure.publish.value)
        for slot in absent
        for entry in (*slot.entries, *(mark(Entry.of(device), slot, figure.publish) for device in slot.devices))
    )
    # Even without a device the way of publishing is listed.
    return (*entries, *away) or (Entry(devnode="", publish=figure.publish.value),)


def _entries_to_list(figure: Figure, observed: tuple[Entry, ...]) -> tuple[Entry, ...]:
    present = tuple(Entry.of(device) for device in figure.devices)
    if figure.advertised <= figure.present:
        return present
    here = {entry.devnode for entry in present} | {""}
    return (*present, *(entry for entry in observed if entry.devnode not in here))


def plan_patch(
    figures: Figures,
    observed: NodeState,
    *,
    isolated: AbstractSet[Part] = frozenset(),
    remembered: Listing = MappingProxyType({}),
    written: AbstractSet[str] = frozenset(),
) -> NodePatch:
    """Return the patch after which the Node shows the figures; empty where it already does.

    Counts, in this order:

    1. Every configured resource gets its figure, unless the Node shows it.
    2. A resource that is not configured is removed if a believed annotation lists it and its count is devwatch's (`removable`). A count
       that another client wrote is left alone. One that the kubelet handed over is 0 until the kubelet has forgotten its plugin
       (`Figures.forgotten`), and the kubelet may have written it.
    3. So is one that was `written`: a failed request may have stored its count although neither the counts nor the annotation show it. Its
       removal is sent even if the observed state has no such key, since that state may be older than the write.

    The annotation lists the devices of the configured resources. It keeps the name of a resource that is leaving: while any part is
    `isolated`, since count and name are then removed by separate requests; and while it is `written` but the observed count is another
    client's, since devwatch's own write may still be stored over that. A change only of devnodes that are away is not worth a write.
    """
    memory, figures = observed.memory(), figures.written
    wanted: dict[str, Amounts | None] = {name: figure.shown for name, figure in figures.by_name.items()}
    unseen = {name for name in written - wanted.keys() - figures.left_out if observed.removable(name)}
    wanted |= dict.fromkeys(unseen) | _leaving(figures, memory, observed)
    sent = {name for name in unseen if wanted[name] is None}
    needed = {name: count for name, count in wanted.items() if name in sent or not observed.shows(name, count)}
    leaving = {name for name, count in needed.items() if count is None and isolated} | (written - wanted.keys())
    leaving |= {name for name in memory.keys() - figures.by_name.keys() if wanted.get(name) or name in figures.left_out}
    listed = list_devices(figures, memory, remembered)
    annotation = render_listing({**listed, **{name: memory.get(name, ()) for name in leaving}})
    if annotation == observed.annotation:
        return NodePatch(counts=needed)
    ours = not leaving and memory.keys() == figures.by_name.keys()
    if ours and not needed and _annotation_can_wait(figures, annotation or "", observed.annotation or ""):
        return NodePatch()
    return NodePatch(counts=needed, annotation=annotation)


def _leaving(figures: Figures, memory: Listing, observed: NodeState) -> dict[str, Amounts | None]:
    """Return what becomes of the resources that the annotation lists and the configuration does not."""
    found: dict[str, Amounts | None] = {}
    for name in memory.keys() - figures.by_name.keys() - figures.left_out - figures.foreign:
        handed_over = way_of(memory[name]).hands_over
        if observed.removable(name, kubelet=handed_over):
            found[name] = Amounts.of(0) if handed_over and name not in figures.forgotten else None
    return found


def _annotation_can_wait(figures: Figures, wanted: str, shown: str) -> bool:
    """Return whether two annotations differ only in resources with a devnode that is away, or in links, which may move back with it."""
    if not figures.away:
        return False
    after, before = json.loads(wanted), json.loads(shown)
    return all(
        figures.by_name[name].away or _without_links(after[name]) == _without_links(before[name]) for name in after
    )


def _without_links(entries: Iterable[dict[str, object]]) -> list[dict[str, object]]:
    return [{**entry, "link": None, "links": None, "shared": None} for entry in entries]


class Draft:
    """Caches the last result of `plan_patch`: most scans find no change, and rendering the annotation is the slowest step."""

    def __init__(self) -> None:
        """Start with an empty cache."""
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
        """Return the result of `plan_patch`, cached for equal arguments."""
        asked = (
            figures.by_name,
            figures.left_out,
            figures.forgotten,
            figures.foreign,
            observed,
            frozenset(isolated),
            dict(remembered),
            frozenset(written),
        )
        if asked != self._asked:
            self._answer = plan_patch(figures, observed, isolated=isolated, remembered=remembered, written=written)
            self._asked = asked
        return self._answer


def portion(wanted: NodePatch, *, isolated: AbstractSet[Part], blocked: AbstractSet[Part]) -> NodePatch:
    """Return the parts of a patch to send in the next request.

    The cases, in this order; `blocked` parts are never sent:

    1. The annotation, if it is isolated, by itself: devwatch lists the resources that it owns before it advertises them.
    2. All parts that are not isolated, in one batch.
    3. Else one isolated part. A part is isolated from the refusal of a batch with it until it is accepted.
    """
    free = wanted.parts - blocked
    if ANNOTATION_PART in free and ANNOTATION_PART in isolated:
        return wanted.only({ANNOTATION_PART})
    batch = free - isolated
    return wanted.only(batch or sorted(free)[:1])
