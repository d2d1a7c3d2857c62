"""The contract restated in its plainest form, apart from src: what a configuration wants of the sticks, and what the Node may show then."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING

from devwatch.config.schema import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from devwatch.config.schema import Config

ARRIVAL = 10.0
"""Seconds for which a device without a record waits for it, where udevd runs."""
MOST_GRACE = 10.0
"""Seconds: no grace here is longer."""
START = 10.0
"""Seconds for which the Node's own figure counts after a start, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tty:
    """One devnode of a stick, from the moment it is plugged until it is pulled."""

    birth: int
    """Another number for every registration with the kernel."""
    devnode: str
    stick: int
    vendor: str
    interface: str
    socket: str
    serial: str | None = None
    """What udev says that it is."""
    plain: str | None = None
    """What the stick itself says that it is."""
    slot: int = 0
    """Its place behind the socket, which no other has."""
    record: bool = True
    """Whether the udev record is complete."""
    plugged: float = 0.0
    handled: float | None = None
    """When udev handled it, None before."""
    console: bool = False
    """Whether it is played by a virtual console, which keeps its registration with the kernel whatever becomes of the stick."""

    @property
    def number(self) -> int:
        """The minor device number, which follows the name."""
        return int(self.devnode.removeprefix("/dev/ttyUSB"))

    @property
    def told(self) -> str | None:
        """The serial as a look tells it: what udev says, or without its record the stick itself."""
        return self.serial if self.record else self.plain

    @property
    def face(self) -> tuple[int, str]:
        """What it truly is, whatever it is called."""
        return (self.stick, self.interface)

    @property
    def place(self) -> tuple[str, int, str]:
        """Where it is plugged: the link in by-path follows that."""
        return (self.socket, self.slot, self.interface)

    @property
    def looks(self) -> tuple[str, str, str | None]:
        """What it is as far as anybody can tell: twins look alike."""
        return (self.vendor, self.interface, self.plain)

    @property
    def claims(self) -> frozenset[str]:
        """The paths by which it may be found: its name, and once udev has handled it the links that udev makes for it."""
        if self.handled is None:
            return frozenset((self.devnode,))
        return _claims(self.devnode, self.vendor, self.serial, self.interface, f"{self.socket}.{self.slot}")


@cache
def _claims(devnode: str, vendor: str, serial: str | None, interface: str, place: str) -> frozenset[str]:
    by_id = f"/dev/serial/by-id/usb-{vendor}_{serial or 'none'}-if{interface}"
    return frozenset((devnode, by_id, f"/dev/serial/by-path/{place}:{interface}", f"/dev/custom-{vendor}-{interface}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """A resource of a configuration: the ttys of some vendors, but not those of one socket; or the one of a path."""

    name: str
    ids: tuple[tuple[str, str], ...] = ()
    """Vendors, each with an interface, or with `*` for all."""
    not_in: str = ""
    path: str = ""
    per_devnode: bool = False
    grace: float = 2.0
    evict: float | None = None
    publish: str = ""
    """How it is published, empty for the default."""

    def verdict(self, tty: Tty) -> bool | None:
        """Whether the resource wants the tty, None while that is unknown."""
        if self.path:
            return tty.devnode == self.path
        if not any(vendor == tty.vendor and face in {"*", tty.interface} for vendor, face in self.ids):
            return False
        if not self.not_in:
            return True
        return tty.socket != self.not_in if tty.record else None

    def text(self) -> str:
        """Return it as an item of `resources`."""
        match = [f"{{vendor: '{vendor}', interface: '{face}'}}" for vendor, face in self.ids if face != "*"]
        match += [f"{{vendor: '{vendor}'}}" for vendor, face in self.ids if face == "*"]
        match += [f"{{path: {self.path}}}"] if self.path else []
        more = f", exclude: [{{port: '{self.not_in}'}}]" if self.not_in else ""
        more += f", evict: {{after: {self.evict:g}s}}" if self.evict is not None else ""
        more += ", count: devnode" if self.per_devnode else ""
        more += f", publish: {self.publish}" if self.publish else ""
        return f"- {{name: {self.name}, match: [{', '.join(match)}], removalGrace: {self.grace:g}s{more}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A configuration in both forms: as its text is parsed, and as it is meant."""

    wants: tuple[Want, ...]
    more: str = ""

    @property
    def config(self) -> Config:
        """The configuration, as the daemon reads it."""
        return _parsed(self)

    def want(self, name: str) -> Want | None:
        """Return the resource of a name."""
        return next((want for want in self.wants if want.name == name), None)

    def owner(self, tty: Tty) -> tuple[Want | None, set[str]]:
        """Return who has the tty; or nobody, and who may want it while that is unknown."""
        open_: set[str] = set()
        for want in self.wants:
            verdict = want.verdict(tty)
            if verdict and not open_:
                return want, set()
            open_ |= {want.name} if verdict is not False else set()
            if verdict:
                break
        return None, open_

    def counts(self, ttys: Iterable[Tty]) -> dict[str, int]:
        """Return how many of each resource these ttys are."""
        units: dict[str, set[object]] = {want.name: set() for want in self.wants}
        for tty in ttys:
            want, _ = self.owner(tty)
            if want is not None:
                units[want.name].add(tty.devnode if want.per_devnode else tty.stick)
        return {name: len(found) for name, found in units.items()}


@cache
def _parsed(plan: Plan) -> Config:
    text = "\n".join(("resources:", *(want.text() for want in plan.wants), plan.more, ""))
    return parse(text.encode(), file="config.yaml")


@dataclass(slots=True, kw_only=True)
class Sample:
    """A count that a look found, and until when it is known to have been so."""

    count: int
    until: float


@dataclass(slots=True, kw_only=True)
class Past:
    """The counts of one resource, each from its look until the next."""

    samples: list[Sample] = field(default_factory=list)
    last: int = 0
    """What the last look came to: never less while nobody knows better."""

    def add(self, count: int, now: float) -> None:
        """Take in what a look found."""
        if self.samples:
            self.samples[-1].until = now
        self.samples = [sample for sample in self.samples if sample.until + MOST_GRACE > now]
        self.samples.append(Sample(count=count, until=math.inf))

    def largest(self, now: float, grace: float) -> int:
        """Return the largest count of the last `grace` seconds."""
        return max(sample.count for sample in self.samples if sample.until + grace > now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a resource may be advertised as."""

    low: int
    high: int
    held: bool
    """Whether nobody knows for certain, so that nothing may fall below what the Node shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What the Node showed of a resource at the start, as far as that can be told from outside, and for how long it counts."""

    low: int
    low_until: float
    high: int
    high_until: float


@dataclass(slots=True, kw_only=True)
class Contract:
    """What one daemon may advertise after each of its looks.

    Two pasts: `low` forgets what another configuration counted, `high` still counts it for the grace; both are right for a moment.
    """

    plan: Plan
    held: set[str] = field(default_factory=set)
    _low: dict[str, Past] = field(default_factory=dict)
    _high: dict[str, Past] = field(default_factory=dict)
    _start: dict[str, Start] = field(default_factory=dict)
    _seen: dict[int, float] = field(default_factory=dict)
    _arrived: set[int] = field(default_factory=set)
    _owners: dict[int, str] = field(default_factory=dict)
    _reconfigured: bool = False
    _certain: bool = True
    _begun: bool = False
    present: dict[str, int] = field(default_factory=dict)
    """What the last look counted."""

    def configure(self, plan: Plan) -> None:
        """Count for another configuration. What the Node showed at the start counts for those of the same unit."""
        before = {(want.name, want.per_devnode) for want in self.plan.wants}
        same = {want.name for want in plan.wants if (want.name, want.per_devnode) in before}
        self._start = {name: held if name in same else replace(held, low=0) for name, held in self._start.items()}
        self.plan, self._reconfigured = plan, True
        names = {want.name for want in plan.wants}
        self._low = {}
        self._high = {name: past for name, past in self._high.items() if name in names}

    def start(self, shown: Callable[[str], int], now: float) -> None:
        """Take what the Node showed at the start; where this is called again, it may have been the one or the other."""
        first = not self._start
        for want in self.plan.wants:
            count, until = shown(want.name), now + max(START, want.grace)
            held = self._start.get(want.name)
            low, low_until = (held.low, held.low_until) if held else (count if first else 0, until)
            high = max(count, held.high if held else 0)
            self._start[want.name] = Start(low=min(low, count), low_until=low_until, high=high, high_until=until)

    def begun(self, now: float) -> None:
        """Take note that the start is over: it was taken in a moment ago at the latest."""
        self._begun = True
        for want in self.plan.wants:
            if held := self._start.get(want.name):
                self._start[want.name] = replace(held, high_until=now + max(START, want.grace))

    def scan(self, ttys: Sequence[Tty], now: float, *, certain: bool, udevd: bool) -> None:
        """Take in a look; `now` never falls."""
        here = [tty for tty in ttys if self._arrives(tty, now, udevd=udevd)]
        if certain:
            births = {tty.birth for tty in ttys}
            self._arrived &= births
            self._seen = {birth: since for birth, since in self._seen.items() if birth in births}
        waiting = [tty for tty in ttys if tty.birth not in self._arrived]
        self.held = self._unknown(here, waiting) if certain else {want.name for want in self.plan.wants}
        self._certain = certain
        self.present = self.plan.counts(here)
        self._hand_over(here)
        for want in self.plan.wants:
            low, high = self._started(want.name, now)
            self._note(self._low, want, now, low if self._begun else 0)
            self._note(self._high, want, now, high)

    def counts(self, tty: Tty) -> bool:
        """Return whether the last look counted it, for whoever has it."""
        return tty.birth in self._arrived

    def _hand_over(self, here: Iterable[Tty]) -> None:
        """Count what another configuration has given to another resource no longer for the one that had it."""
        owners = {tty.birth: want.name for tty in here if (want := self.plan.owner(tty)[0])}
        for birth, name in owners.items() if self._reconfigured else ():
            if self._owners.get(birth, name) != name:
                self._high.pop(self._owners[birth], None)
        self._owners, self._reconfigured = owners, False

    def _arrives(self, tty: Tty, now: float, *, udevd: bool) -> bool:
        since = self._seen.setdefault(tty.birth, now)
        if tty.record or not udevd or now >= since + ARRIVAL:
            self._arrived.add(tty.birth)
        return tty.birth in self._arrived

    def _unknown(self, here: Iterable[Tty], waiting: Iterable[Tty]) -> set[str]:
        names: set[str] = set()
        for tty in here:
            names |= self.plan.owner(tty)[1]
        for tty in waiting:
            want, open_ = self.plan.owner(replace(tty, record=False))
            names |= open_ | ({want.name} if want else set())
        return names

    def _started(self, name: str, now: float) -> tuple[int, int]:
        start = self._start.get(name)
        if start is None:
            return 0, 0
        maybe = now < start.high_until or not self._begun
        return start.low if now < start.low_until else 0, start.high if maybe else 0

    def _note(self, pasts: dict[str, Past], want: Want, now: float, start: int) -> None:
        past = pasts.setdefault(want.name, Past())
        found = self.present[want.name]
        past.add(found if self._certain else max(found, past.last), now)
        past.last = max(past.largest(now, want.grace), start, past.last if want.name in self.held else 0)

    def bounds(self, name: str, shown: Collection[int], now: float) -> Bounds:
        """Return what a resource of the configuration may be advertised as, where the Node is known to show one of these."""
        low, high = max(self._low[name].last, self._started(name, now)[0]), self._high[name].last
        if name not in self.held:
            return Bounds(low=low, high=high, held=False)
        return Bounds(low=max(low, min(shown)), high=max(high, *shown), held=True)
