"""A world for the daemon on virtual time, in which everything can fail, and a judge of every request that the daemon makes in it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import math
import os
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from devwatch.daemon import Ears
from devwatch.device import Device
from devwatch.errors import ApiError, Conflict, CredentialsError, Forbidden, NodeMissing, Refused, Retry
from devwatch.events import EventRecorder
from devwatch.evictor import Evictor
from devwatch.inventory import Look
from devwatch.lock import NodeLock
from devwatch.loss import Losses
from devwatch.node import WHOLE, Changes, NodeState, patch_body
from devwatch.pods import Pod
from devwatch.reconciler import Cluster, Reconciler
from devwatch.report import Reporter
from devwatch.telemetry import Health, Metrics
from fakes import EPOCH, MAPS, RIGHTS, FakeServer, FakeSettings, FakeWorkload, RecordingLog, date
from model_contract import Contract, Plan, Tty, Want
from virtualtime import VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable, Iterator, Mapping, Sequence

    from devwatch.config import Config
    from devwatch.workload import Event

Ids = tuple[str, str | None]
"""Vendor and serial."""
METER, ZWAVE, ZIGBEE, SPARE = (f"example.com/{name}" for name in ("meter", "zwave", "zigbee", "spare"))
NAMES = (METER, ZWAVE, ZIGBEE, SPARE)
CONTESTED = (METER, ZWAVE, ZIGBEE)
STRANGER = "stranger.io/thing"
"""A resource that is nobody's business."""
TIMEOUT = 10.0
"""Seconds after which a client gives a request up."""
CONVERGENCE = 60.0 + TIMEOUT
"""Seconds after the last fault in which the Node has to show what is present; the grace is added."""
EVICTION = 45.0
"""Seconds after that in which the last pods are evicted."""
SPINNING = 100
"""Looks at one moment that are too many."""
QUIET = 70.0
"""Seconds for which nothing may be written afterwards."""
SOON = 1e-6
"""Seconds: two moments so near are the same."""
GONE = (errno.ENOENT, errno.ENODEV, errno.ENXIO)
"""What the kernel says of a devnode that is not there."""
UNSURE = (errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOMEM, errno.ELOOP)
"""What it says where nobody knows."""
FILE = -1
"""A devnode whose place a file has taken."""

PLANS = (
    Plan(
        wants=(
            Want(name=METER, ids=(("0003", "*"),), grace=5),
            Want(name=ZWAVE, ids=(("0002", "00"),), evict=3),
            Want(name=ZIGBEE, ids=(("0001", "*"), ("0002", "01")), evict=6),
        )
    ),
    Plan(
        wants=(
            Want(name=ZIGBEE, ids=(("0001", "*"),), not_in="socket-2", evict=1, grace=4),
            Want(name=SPARE, ids=(("0001", "*"), ("0002", "*")), grace=0),
            Want(name=METER, ids=(("0003", "*"),), per_devnode=True),
        ),
        more="sweep: 30s\nresync: 1h",
    ),
    Plan(wants=(Want(name=ZWAVE, path="/dev/ttyUSB0"), Want(name=ZIGBEE, ids=(("0001", "*"), ("0003", "*"))))),
    Plan(wants=(Want(name=SPARE, ids=(("0009", "*"),)), Want(name=METER, ids=(("0001", "*"),), evict=0))),
)
"""Configurations: one by ids, one that needs the record, one by path, and one in which little is left."""


class Promise(Enum):
    """What `Reconciler` promises."""

    CONVERGES = "converges"
    IGNORANCE = "never lowers on ignorance"
    OVERSELLS = "never oversells"
    OWN = "touches only its own"
    QUIET = "quiet"
    GRACE = "grace holds"
    CERTAINTY = "evicts only on certainty"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A sort of stick: one interface for each tty."""

    vendor: str
    interfaces: tuple[str, ...] = ("00",)
    serial: str | None = None


KINDS = {
    "zigbee": Kind(vendor="0001", serial="Z1"),
    "twin": Kind(vendor="0001", serial="Z1"),
    "nameless": Kind(vendor="0001"),
    "composite": Kind(vendor="0002", interfaces=("00", "01"), serial="C1"),
    "modem": Kind(vendor="0003", interfaces=("00", "01", "02"), serial="M1"),
    "mouse": Kind(vendor="0009"),
}


class Hearing(Enum):
    """What becomes of uevents."""

    ONCE = "once"
    NEVER = "never"
    TWICE = "twice"
    LATE = "late"


@dataclass(slots=True, kw_only=True)
class Host:
    """The sticks as they truly are, and what is wrong with looking at them."""

    ttys: dict[str, Tty] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    """By devnode: the errno that `stat` answers, or `FILE`."""
    blind: bool = False
    """Whether a listing comes out empty without an error, as with no file descriptor left."""
    hidden: bool = False
    """Whether `/run/udev` is not there."""
    births: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def plug(self, kind: Kind, socket: str, number: int, *, record: bool) -> None:
        """Plug a stick; the first free names from `number` on are its own."""
        stick = next(self.births)
        free = (name for index in itertools.count(number) if (name := f"/dev/ttyUSB{index}") not in self.ttys)
        for face, devnode in zip(kind.interfaces, free, strict=False):
            self.nodes.pop(devnode, None)
            self.ttys[devnode] = Tty(
                birth=next(self.births),
                devnode=devnode,
                stick=stick,
                vendor=kind.vendor,
                interface=face,
                socket=socket,
                serial=kind.serial,
                record=record,
            )

    def pull(self, stick: int) -> None:
        """Pull a stick with all its ttys."""
        for tty in [tty for tty in self.ttys.values() if tty.stick == stick]:
            del self.ttys[tty.devnode]
            self.nodes.pop(tty.devnode, None)

    def finish(self) -> None:
        """Let udev complete its records."""
        self.ttys = {name: replace(tty, record=True) for name, tty in self.ttys.items()}

    def heal(self) -> None:
        """Let everything be seen."""
        self.nodes.clear()
        self.blind = self.hidden = False
        self.finish()

    @property
    def sticks(self) -> list[int]:
        """The plugged sticks."""
        return sorted({tty.stick for tty in self.ttys.values()})

    @property
    def present(self) -> tuple[Tty, ...]:
        """The ttys that a program could open."""
        return tuple(tty for tty in self.ttys.values() if self.nodes.get(tty.devnode, 0) not in {FILE, *GONE})


@dataclass(slots=True, kw_only=True)
class Eye:
    """The `DeviceSource` of one daemon: it tells what a look would find, and the judge what that was."""

    world: World
    judge: Judge
    records: set[int] = field(default_factory=set)
    """The ttys whose record was read, which holds until they go."""

    def expect(self, paths: frozenset[str]) -> None:
        """Follow no link: the paths of `PLANS` are devnodes."""

    def look(self, now: float) -> Look:
        """Look."""
        host = self.world.host
        doubts = tuple(f"{node}: {number}" for node, number in host.nodes.items() if number in UNSURE)
        doubts = ("lacks the kernel's own tty and console",) if host.blind else doubts
        ttys = () if host.blind else tuple(map(self._read, host.present))
        seen = tuple(tty for tty in ttys if host.nodes.get(tty.devnode, 0) == 0)
        if not host.blind:
            self.records = {tty.birth for tty in ttys if tty.record}
        self.judge.looked(seen, now, certain=not doubts)
        return Look(at=now, devices=tuple(map(_device, seen)), doubts=doubts, udevd=not host.hidden)

    def _read(self, tty: Tty) -> Tty:
        known = tty.birth in self.records
        return replace(tty, record=known or (tty.record and not self.world.host.hidden))


def _births(ttys: Iterable[Tty]) -> dict[Ids, set[int]]:
    """Return the registrations by ids."""
    births: dict[Ids, set[int]] = {}
    for tty in ttys:
        births.setdefault(tty.ids, set()).add(tty.birth)
    return births


def _device(tty: Tty) -> Device:
    return Device(
        devnode=tty.devnode,
        devpath=f"/devices/{tty.socket}/{tty.stick}/{tty.devnode}",
        number=tty.birth,
        incarnation=tty.birth,
        physical=f"/devices/{tty.socket}/{tty.stick}",
        vendor=tty.vendor,
        product="0001",
        serial=tty.serial,
        interface=tty.interface,
        port=tty.socket if tty.record else None,
        properties={"ID_PATH": tty.socket} if tty.record else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What becomes of a request: how long it takes until it is stored, if it is; how it is answered, and when."""

    error: ApiError | None = None
    stored: bool = True
    """Whether the request is stored, late or without an answer."""
    before: float = 0.0
    after: float = 0.0


FAULTS = {
    "slow": Fault(before=4, after=4),
    "never": Fault(stored=False, before=math.inf),
    "late": Fault(before=15),
    "401": Fault(error=CredentialsError("unauthorized (401)"), stored=False),
    "403": Fault(error=Forbidden("forbidden (403)", hint="grant it"), stored=False),
    "404": Fault(error=NodeMissing("not found (404)"), stored=False),
    "409": Fault(error=Conflict("conflict (409)"), stored=False),
    "422": Fault(error=Refused("invalid (422)"), stored=False),
    "429": Fault(error=Retry("too many requests (429)"), stored=False),
    "429 after 7": Fault(error=Retry("too many requests (429)", after=7), stored=False),
    "429 after 900": Fault(error=Retry("too many requests (429)", after=900), stored=False),
    "500": Fault(error=Retry("internal error (500)"), stored=False),
    "500 late": Fault(error=Retry("internal error (500)"), stored=False, before=9),
    "half an answer": Fault(error=Retry("the answer ended in its middle")),
    "answer lost": Fault(error=Retry("connection reset by peer"), after=3),
}
"""By name, what an API server and the way to it can do."""


@dataclass(slots=True, kw_only=True)
class Judge:
    """Holds the requests of one daemon against what the world was when they were made."""

    world: World
    contract: Contract
    known: list[NodeState] = field(default_factory=list)
    """The states of the Node of which the daemon may hold one: the last answer, and what the watch told since."""
    answered: bool = False
    out: int = 0
    not_before: float = -math.inf
    certain: bool = False
    _most: dict[str, Counter[Ids]] = field(default_factory=dict)
    """By resource: how many sticks of some ids it ever had, as far as they were seen beside each other."""
    _had: dict[str, set[int]] = field(default_factory=dict)
    """By resource: the ttys that it ever had."""
    _others: dict[str, set[int]] = field(default_factory=dict)
    """By resource: the ttys that were there beside all that it had: they are none of those."""
    _limits: dict[tuple[str, Ids], dict[frozenset[int], int]] = field(default_factory=dict)
    """By resource and ids: which ttys were there beside some that it had, and how many of them may be what was missing then."""
    _places: dict[str, set[str]] = field(default_factory=dict)
    """By resource: the devnodes that it ever had."""
    _complete: dict[str, float] = field(default_factory=dict)
    """By resource: when the last look found no less than that on the host."""
    _here: tuple[Tty, ...] = ()
    _due: dict[str, float] = field(default_factory=dict)
    """By resource: when the last of its ttys was seen, whose pods have to be evicted in the end if nothing excuses that."""
    _written: set[str] = field(default_factory=set)
    _unanswered: set[str] = field(default_factory=set)
    """What may have been stored without an answer."""
    _looks: Counter[float] = field(default_factory=Counter)

    @property
    def now(self) -> float:
        """The time of the loop, in seconds."""
        return self.world.loop.time()

    def broken(self, promise: Promise, text: str) -> None:
        """Take note of a promise that was not kept."""
        self.world.broken.append((promise, f"at {self.now:.3f} s: {text}"))

    # -- what the daemon learns

    def looked(self, seen: Sequence[Tty], now: float, *, certain: bool) -> None:
        """Take note of a look, and end a daemon that spins."""
        self._looks[now] += 1
        if self._looks[now] > SPINNING:
            raise RuntimeError("the loop spins")
        self.contract.look(seen, now, certain=certain, udevd=not self.world.host.hidden)
        self.certain = certain
        if certain:
            self._here = tuple(seen)
        for want in self.contract.plan.wants:
            self._account(want, seen, now, certain=certain)

    def _account(self, want: Want, seen: Sequence[Tty], now: float, *, certain: bool) -> None:
        """Take note of what a resource has, and whether that is all that it ever had."""
        most, had = self._most.setdefault(want.name, Counter()), self._had.setdefault(want.name, set())
        others = self._others.setdefault(want.name, set())
        owned = {tty.birth for tty in seen if self.contract.plan.owner(tty)[0] is want}
        # Who was there beside all that it had is one more, even if those are gone by the time that it is claimed.
        most.update(tty.ids for tty in seen if tty.birth in owned & others - had)
        had |= owned
        self._places.setdefault(want.name, set()).update(tty.devnode for tty in seen if tty.birth in owned)
        mine = Counter(tty.ids for tty in seen if tty.birth in had)
        most |= mine
        if certain:
            others |= {tty.birth for tty in seen if most[tty.ids] == mine[tty.ids] and tty.birth not in had}
            self._limit(want.name, seen, most - mine)
            self._excuse(want, seen, owned, now)
        # Without a record nobody can tell whether it is the same one: that stops no clock, but no pod is evicted meanwhile.
        if certain and most <= self._found(want.name, (tty for tty in seen if tty.record)):
            self._complete[want.name] = now

    def _found(self, name: str, seen: Iterable[Tty]) -> Counter[Ids]:
        """Return how many of these may be what the resource had."""
        had, others = self._had.get(name, set()), self._others.get(name, set())
        found = Counter[Ids]()
        for ids, births in _births(seen).items():
            rest = births - had - others
            limits = self._limits.get((name, ids), {}).items()
            found[ids] = len(births & had) + min([len(rest), *(len(rest - beside) + limit for beside, limit in limits)])
        return found

    def _limit(self, name: str, seen: Iterable[Tty], missing: Counter[Ids]) -> None:
        """Take note of strangers beside some of what a resource had: no more of them than were missing then may be what it had."""
        for ids, births in _births(tty for tty in seen if tty.birth not in self._had[name]).items():
            limits, beside = self._limits.setdefault((name, ids), {}), frozenset(births)
            limits[beside] = min(missing[ids], limits.get(beside, len(beside)))

    def _excuse(self, want: Want, seen: Sequence[Tty], owned: set[int], now: float) -> None:
        """Take note of what will have to be evicted, unless something is there that may be the lost one."""
        maybe = {tty.birth for tty in seen if tty.ids in self._most[want.name]} - self._others[want.name]
        maybe |= {tty.birth for tty in seen if self._untold(want.name, tty)}
        counted = {tty.birth for tty in seen if tty.birth in owned and self.contract.counts(tty)}
        if self.answered and counted and maybe == counted:
            self._due[want.name] = now
        elif maybe:
            self._due.pop(want.name, None)

    def _untold(self, name: str, tty: Tty) -> bool:
        """Return whether a tty is at the place of one that a resource had, and differs in no more than a serial that one of them lacks."""
        alike = any(vendor == tty.vendor and None in {serial, tty.serial} for vendor, serial in self._most[name])
        return alike and tty.devnode in self._places[name]

    def forgotten(self, pods: Sequence[Pod], since: Mapping[str, float]) -> list[str]:
        """Return the pods that should have been evicted in the end; `since` tells when each was started last."""
        wants = [want for want in self.contract.plan.wants if want.evict is not None and want.name in self._due]
        gone = [want.name for want in wants if not self.contract.present.get(want.name)]
        bound = {
            pod.name for name in gone for pod in pods if name in pod.requests and since[pod.name] < self._due[name]
        }
        return sorted(pod.name for pod in pods if pod.name in bound and pod.owner not in {"", "DaemonSet"})

    def configured(self, plan: Plan) -> None:
        """Take note that another configuration is read."""
        self.contract.configure(plan)
        self._due.clear()
        # What the watch told before the first answer may be taken in only now: then it is the start of what this one asks for.
        for state in [] if self.answered else self.known:
            self.contract.start(state.count, self.now)

    def saw(self, state: NodeState) -> None:
        """Take note of what the watch tells."""
        if not any(state.uid == known.uid and state.version < known.version for known in self.known[-1:]):
            self.known.append(state)
        if not self.answered:
            self._began(state)

    def told(self, state: NodeState) -> None:
        """Take note of an answer."""
        if not self.answered:
            self._began(state)
        self._begun()
        self._unanswered.clear()
        newer = [seen for seen in self.known[-1:] if seen.uid != state.uid or seen.version > state.version]
        self.known = [state, *newer]

    def _begun(self) -> None:
        if not self.answered:
            self.contract.begun(self.now)
        self.answered = True

    def _began(self, state: NodeState) -> None:
        self.contract.start(state.count, self.now)
        for name, entries in _listing(state).items():
            ids = Counter((str(entry.get("vendor")), entry.get("serial")) for entry in entries)
            self._most[name] = self._most.get(name, Counter()) | ids
            self._places.setdefault(name, set()).update(str(entry["devnode"]) for entry in entries)

    # -- what the daemon does

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Judge that one request at a time is made, by the holder of the lock alone."""
        self.out += 1
        if self.out > 1:
            self.broken(Promise.QUIET, "two requests at a time")
        if self.world.holder is None or self.world.holder.judge is not self:
            self.broken(Promise.OWN, "a daemon without the lock makes a request")
        try:
            yield
        finally:
            self.out -= 1

    def sent(self, changes: Changes) -> None:
        """Judge a PATCH."""
        if self.now < self.not_before - SOON:
            self.broken(Promise.QUIET, f"a request {self.not_before - self.now:.1f} s before the end of Retry-After")
        if not changes:
            return
        self._begun()
        if self._unanswered.isdisjoint(changes) and all(state.reflects(changes) for state in self.known):
            self.broken(Promise.QUIET, f"writes what the Node is known to show: {changes}")
        self._own(patch_body(changes))
        for name, value in changes.items():
            if name == WHOLE:
                self._annotated(value)
            elif self.contract.plan.want(name) is None:
                self._removed(name, value)
            else:
                self._counted(name, value)
        self._rest(changes)
        self._written |= changes.keys() - {WHOLE}
        self._unanswered |= changes.keys()

    def _own(self, body: dict[str, object]) -> None:
        status = body.get("status", {"capacity": 0, "allocatable": 0})
        notes = body.get("metadata", {"annotations": {"devwatch.io/devices": ""}})
        assert isinstance(status, dict)
        assert isinstance(notes, dict)
        shape = (body.keys() - {"status", "metadata"}, list(status), list(notes))
        fits = shape == (set(), ["capacity", "allocatable"], ["annotations"])
        if not fits or status["capacity"] != status["allocatable"] or list(notes["annotations"]) != [_ANNOTATION]:
            self.broken(Promise.OWN, f"a patch of another form: {body}")

    def _removed(self, name: str, value: str | None) -> None:
        if value is not None:
            self.broken(Promise.OWN, f"writes {name}, which is not configured")
        elif name not in self._written and not any(name in _listing(state) for state in self.known):
            self.broken(Promise.OWN, f"removes {name}, which the annotation does not own")

    def _counted(self, name: str, value: str | None) -> None:
        if value is None:
            self.broken(Promise.GRACE, f"removes {name}, which is configured")
            return
        bounds = self.contract.bounds(name, [state.count(name) for state in self.known], self.now)
        if int(value) < bounds.low:
            promise = Promise.IGNORANCE if bounds.held else Promise.GRACE
            self.broken(promise, f"lowers {name} to {value}, not {bounds.low}")
        if int(value) > bounds.high:
            self.broken(Promise.OVERSELLS, f"raises {name} to {value}, not {bounds.high}")

    def _rest(self, changes: Changes) -> None:
        """Judge what a patch leaves as it is, where nobody else can be to blame for that."""
        names = set() if self.world.meddled else {want.name for want in self.contract.plan.wants} - changes.keys()
        for name in names:
            shown = [state.count(name) for state in self.known]
            if min(shown) > self.contract.bounds(name, shown, self.now).high:
                self.broken(Promise.OVERSELLS, f"leaves {name} at {min(shown)}")

    def _annotated(self, text: str | None) -> None:
        names = json.loads(text or "{}").keys()
        wanted = {want.name for want in self.contract.plan.wants}
        owned = self._written.union(*(_listing(state) for state in self.known))
        if not wanted <= names <= wanted | owned:
            self.broken(Promise.OWN, f"claims to own {sorted(names)}")

    def evicts(self, pod: Pod) -> None:
        """Judge an eviction."""
        name = next(iter(pod.requests), "")
        want = self.contract.plan.want(name)
        wrong = self._wrongly(pod, want) if want is not None and want.evict is not None else "its resource never evicts"
        if wrong:
            self.broken(Promise.CERTAINTY, f"evicts {pod.name}: {wrong}")

    def _wrongly(self, pod: Pod, want: Want) -> str:
        left = self.contract.present.get(want.name, 0)
        since = self._complete.get(want.name, -math.inf)
        faults = {
            "the last look was not certain": not self.certain,
            "all of its devices are here": self._most.get(want.name, Counter()) <= self._found(want.name, self._here),
            f"all of its devices were here {self.now - since:.1f} s ago": self.now < since + (want.evict or 0) - SOON,
            "such a pod never is": pod.owner in {"", "DaemonSet"} or pod.mirror or pod.terminating,
            f"{left} devices are left and it names none": left > 0 and not pod.host_paths,
            "the Node does not show the loss": not any(state.shows(want.name, str(left)) for state in self.known),
        }
        return next((fault for fault, found in faults.items() if found), "")


_ANNOTATION = "devwatch.io/devices"


def _listing(state: NodeState) -> dict[str, list[dict[str, str | None]]]:
    """Return what the annotation owns, nothing where it is no such thing."""
    try:
        content = json.loads(state.annotation or "{}")
    except ValueError:
        return {}
    fine = isinstance(content, dict) and all(
        isinstance(item, list) and all(isinstance(entry, dict) for entry in item) for item in content.values()
    )
    return content if fine else {}


@dataclass(slots=True, kw_only=True)
class Line:
    """The connection of one daemon to the API server: it loses what the world wants lost, and shows the judge the rest."""

    world: World
    judge: Judge

    @property
    def date(self) -> str:
        return self.world.server.date

    async def patch(self, changes: Changes) -> NodeState:
        """Send a patch. What is sent is sent: the server goes on with it, whatever becomes of the daemon."""
        with self.judge.request():
            self.judge.sent(changes)
            served = self.world.spawn(self.world.serve(changes))
            try:
                async with asyncio.timeout(TIMEOUT):
                    state = await asyncio.shield(served)
            except TimeoutError:
                raise Retry("the API server did not answer in time") from None
            except Retry as error:
                self.judge.not_before = self.judge.now + min(error.after or 0.0, 60.0)
                raise
            self.judge.told(state)
            return state

    async def watch(self) -> AsyncIterator[NodeState]:
        """Yield the Node, unless the connection is dead and nobody knows."""
        self.world.watched = False
        try:
            async for state in self.world.server.watch():
                self.world.history.append(state)
                if not self.world.deaf:
                    self.world.watched = True
                    self.judge.saw(state)
                    yield state
        finally:
            self.world.watched = False

    async def pods(self) -> tuple[Pod, ...]:
        """List the pods."""
        with self.judge.request():
            return await self.world.workload.pods()

    async def evict(self, pod: Pod) -> None:
        """Evict a pod."""
        with self.judge.request():
            self.judge.evicts(pod)
            await self.world.workload.evict(pod)

    async def record(self, note: Event) -> None:
        """Write an Event."""
        with self.judge.request():
            await self.world.workload.record(note)


@dataclass(slots=True, kw_only=True)
class File:
    """The configuration file as one daemon reads it."""

    world: World
    judge: Judge
    settings: FakeSettings

    def poll(self, *, force: bool) -> Config | None:
        """Read it again."""
        config = self.settings.poll(force=force)
        if config is not None:
            self.judge.configured(next(plan for plan in PLANS if plan.config is config))
        return config


class Daemon:
    """One daemon, wired as `devwatch run` does it, with the real lock."""

    def __init__(self, world: World) -> None:
        """Begin to wait for the lock."""
        self.world = world
        self.judge = Judge(world=world, contract=Contract(plan=world.plan))
        self.file = File(world=world, judge=self.judge, settings=FakeSettings(world.plan.config))
        self.log = RecordingLog()
        self.ears = Ears(self.log, world.metrics)
        self.task = world.loop.create_task(self._run())

    async def _run(self) -> None:
        lock = NodeLock(self.world.name, poll=15)
        try:
            await lock.acquire(lambda _: None, lambda _: None)
            self.world.holder = self
            reconciler = self._wire()
            self.ears.wake = reconciler.wake
            await reconciler.run()
        finally:
            self.world.holder = None if self.world.holder is self else self.world.holder
            lock.release()

    def _wire(self) -> Reconciler:
        world, line = self.world, Line(world=self.world, judge=self.judge)
        health = Health(sweep=10, last_turn=world.loop.time())
        recorder, losses = EventRecorder(api=line, log=self.log, node="n", clock=world.loop.time), Losses()
        evictor = Evictor(
            api=line, recorder=recorder, losses=losses, metrics=world.metrics, chance=lambda: world.chance
        )
        return Reconciler(
            source=Eye(world=world, judge=self.judge),
            cluster=Cluster(
                api=line, watch=line.watch, losses=losses, attend=evictor.attend, tasks=(evictor, recorder)
            ),
            settings=self.file,
            config=self.judge.contract.plan.config,
            node="n",
            reporter=Reporter(log=self.log, metrics=world.metrics, health=health, node="n", record=recorder.device),
            clock=world.loop.time,
            wall=lambda: EPOCH + world.loop.time(),
            chance=lambda: world.chance,
        )


class Uncounted(Metrics):
    """Metrics without the gauges by resource, which cost more than all that is tested here."""

    def set_devices(self, counts: Mapping[str, int]) -> None:
        """Forget them."""

    def set_capacity(self, counts: Mapping[str, int]) -> None:
        """Forget them."""


class Loop(VirtualTimeLoop):
    """Virtual time that may also pass while the program does not run."""

    def pass_by(self, seconds: float) -> None:
        """Let time pass: every timer is late."""
        self._virtual.now += seconds


PODS = (
    Pod(namespace="home", name="hub", uid="u1", node="n", scheduled=date(-60), owner="ReplicaSet", requests={ZIGBEE: 1}),
    Pod(
        namespace="home", name="path", uid="u2", node="n", scheduled=date(-60), owner="ReplicaSet", requests={ZIGBEE: 1}, host_paths=("/dev/ttyUSB1",)
    ),
    Pod(namespace="home", name="bare", uid="u3", node="n", scheduled=date(-60), requests={ZIGBEE: 1}),
    Pod(namespace="home", name="everywhere", uid="u4", node="n", scheduled=date(-60), owner="DaemonSet", requests={ZIGBEE: 1}),
    Pod(namespace="home", name="wave", uid="u5", node="n", scheduled=date(-60), owner="StatefulSet", requests={ZWAVE: 1}),
    Pod(namespace="home", name="metering", uid="u6", node="n", scheduled=date(-60), owner="ReplicaSet", requests={METER: 1}),
)
"""Pods of every fate; those that are evicted come back, as a controller would have it."""


class World:
    """Everything around the daemons of one node, and the time in it."""

    def __init__(self, metrics: Metrics) -> None:
        """Have no stick, an untouched Node, and one daemon."""
        self.metrics = metrics
        self.loop = Loop(end=1e6)
        self.name = f"model-{os.getpid()}-{id(self)}"
        self.host, self.hearing = Host(), Hearing.ONCE
        self.server = FakeServer(self.loop.time)
        self.workload = FakeWorkload(self.loop.time)
        self.plan = PLANS[0]
        self.chance = 0.5
        self.faults: deque[Fault] = deque()
        self.climate: Fault | None = None
        self.deaf = self.watched = False
        self.history: list[NodeState] = []
        self.broken: list[tuple[Promise, str]] = []
        self.daemons: list[Daemon] = []
        self.holder: Daemon | None = None
        self.served: set[asyncio.Task[NodeState]] = set()
        self.started: dict[str, float] = {}
        """When each pod was started last."""
        self.start_pods()
        self.forbidden: Forbidden | None = None
        """Why nobody may watch the Node, for good: that is no fault."""
        self.meddled = False
        """Whether anybody but the daemon writes, or is in the way when it writes everything at once."""
        self.tampered = False
        """Whether a stranger wrote what cannot be told from ours."""
        self.strange: set[str] = set()
        """The resources of ours that a stranger was the last to write."""
        self.begin()

    # -- time

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self._until(asyncio.sleep(seconds))

    def step(self, times: int) -> None:
        """Let the loop turn a few times, with no time passing unless nothing else is left to do."""

        async def steps() -> None:
            for _ in range(times):
                await asyncio.sleep(0)

        self._until(steps())

    def freeze(self, seconds: float) -> None:
        """Let time pass without the daemon, as SIGSTOP or a suspended virtual machine do."""
        self.loop.pass_by(seconds)

    def _until(self, what: Awaitable[None]) -> None:
        self.loop.run_until_complete(what)
        for daemon in self.daemons:
            if daemon.task.done():
                self.broken.append((Promise.CONVERGES, f"the daemon ended: {daemon.task}"))
                self.daemons = [other for other in self.daemons if other is not daemon]

    def spawn(self, served: Coroutine[None, None, NodeState]) -> asyncio.Task[NodeState]:
        """Let the server work on a request."""
        task = self.loop.create_task(served)
        self.served.add(task)
        task.add_done_callback(self.served.discard)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return task

    # -- the daemons

    def begin(self) -> None:
        """Start another daemon."""
        self.daemons.append(Daemon(self))

    def kill(self, index: int) -> None:
        """End a daemon wherever it is."""
        daemon = self.daemons.pop(index % len(self.daemons))
        daemon.task.cancel()
        self._until(asyncio.wait([daemon.task]))  # type: ignore[arg-type]  # its result is not asked for
        if not daemon.task.cancelled():
            self.broken.append((Promise.CONVERGES, f"the daemon ended: {daemon.task}"))

    def configure(self, plan: Plan) -> None:
        """Put another file in place."""
        self.plan = plan
        for daemon in self.daemons:
            daemon.file.settings.write(plan.config)

    def hear(self) -> None:
        """Let uevents come, or not."""
        for daemon in self.daemons:
            for _ in range({Hearing.NEVER: 0, Hearing.TWICE: 2}.get(self.hearing, 1)):
                self.loop.call_later(3 if self.hearing is Hearing.LATE else 0, daemon.ears.uevents, ["add"])

    # -- the API server

    async def serve(self, changes: Changes) -> NodeState:
        """Answer a request, or do to it what is to be done."""
        fault = self.faults.popleft() if self.faults else self.climate or Fault()
        await (asyncio.sleep(fault.before) if fault.before < math.inf else self.loop.create_future())
        state = await self.server.patch(changes) if fault.stored else None
        if state is not None:
            self._disown(changes, state)
        # Stored after its time and unseen, it is overwritten before anybody can know that it was ours.
        unseen = not self.watched or self.deaf or self.server.watch_latency > 0
        self.tampered |= fault.stored and fault.before > TIMEOUT and unseen
        # What goes on the Node while its annotation is refused alone is nobody's once the daemon is killed.
        self.tampered |= isinstance(fault.error, Refused) and changes.keys() == {WHOLE}
        await asyncio.sleep(fault.after)
        if fault.error is not None or state is None:
            raise (fault.error or Retry("no answer")).with_traceback(None)
        self.history.append(state)
        return state

    def _disown(self, changes: Changes, state: NodeState) -> None:
        """Take note of what strangers wrote, unseen, before the annotation let go of its name: it is theirs."""
        self.strange -= changes.keys()
        shown = {*state.capacity, *state.allocatable}
        self.tampered |= WHOLE in changes and bool(self.strange & shown - {STRANGER, *_listing(state)})

    def foreign(self, name: str, value: str | None, maps: tuple[str, ...]) -> None:
        """Let a stranger write a resource of the Node, if there is one."""
        if self.server.exists:
            self.tampered |= name not in {STRANGER, *_listing(self.server.state)}
            self.strange.add(name)
            self.server.write(name, value, maps=maps)

    def war(self, seconds: float) -> None:
        """Let a stranger write the same again whenever it is put right; and judge that it is put right ever more rarely."""
        before, at = self._repairs, self.loop.time()
        while self.loop.time() < at + seconds:
            for name in CONTESTED:
                if self.server.exists and self.server.state.capacity.get(name) != "7":
                    self.foreign(name, "7", MAPS)
            self.wait(0.4)
        if self._repairs - before > len(CONTESTED) * (3 + math.log2(seconds)):
            self.broken.append((Promise.QUIET, f"{self._repairs - before} repairs in {seconds} s"))

    @property
    def _repairs(self) -> int:
        """How often the daemon has put right what strangers wrote; where a part is refused each counts."""
        return len(self.holder.log.of("drift.repaired")) if self.holder else 0

    def start_pods(self) -> None:
        """Start all pods, as their controllers would."""
        running = {pod.name for pod in self.workload.running}
        self.started |= {pod.name: self.loop.time() for pod in PODS if pod.name not in running}
        self.workload.run(*PODS)

    def annotate(self, text: str | None) -> None:
        """Let a stranger write our annotation."""
        if self.server.exists:
            self.tampered = True
            self.server.annotate(text)

    def relieve(self) -> None:
        """Let the API server be well again; a connection that was dead is found to be so."""
        self.faults.clear()
        self.climate = None
        self.server.refused.clear()
        self.server.undone.clear()
        self.server.watch_error, self.server.watch_latency, self.server.stream_error = self.forbidden, 0.0, None
        if self.deaf:
            self.deaf = False
            self.server.show(Retry("the connection was dead"))

    # -- the end

    def heal(self) -> None:
        """Let every fault end, and what is still on its way arrive."""
        for daemon in [daemon for daemon in self.daemons if daemon is not self.holder]:
            self.kill(self.daemons.index(daemon))
        self.host.heal()
        self.hearing = Hearing.ONCE
        self.relieve()
        self.workload.rights, self.workload.error = set(RIGHTS), None
        self.workload.budgets.clear()
        if not self.server.exists:
            self.server.create()
        if not self.daemons:
            self.begin()
        self.wait(0.1)
        if self.served:
            self.wait(16)

    def end(self) -> None:
        """Judge the end: the Node shows what is present, and then nothing more is written."""
        self.heal()
        self.wait(max(CONVERGENCE + 5, self._truce()))
        self.converged()
        self.wait(EVICTION)
        self._evicted()
        writes, requests = len(self.server.writes), len(self.server.requests)
        self.wait(QUIET)
        self.converged()
        more = [request.changes for request in self.server.requests[requests:]]
        if len(self.server.writes) > writes:
            self.broken.append((Promise.QUIET, f"writes in peace: {[changes for changes in more if changes]}"))
        if len(more) > 1 + QUIET / 54:
            self.broken.append((Promise.QUIET, f"{len(more)} requests in peace"))

    def _evicted(self) -> None:
        """Judge that no pod goes on without its device."""
        if self.holder is not None and (left := self.holder.judge.forgotten(self.workload.running, self.started)):
            self.broken.append((Promise.CONVERGES, f"{left} were never evicted"))

    def _truce(self) -> float:
        """Return the longest time for which a repair may wait, after all that strangers have contested."""
        return min(300.0, 2.0**self._repairs) + TIMEOUT

    def converged(self) -> None:
        """Judge what the Node shows."""
        if self.holder is None:
            self.broken.append((Promise.CONVERGES, "nobody holds the lock"))
            return
        plan, state = self.holder.judge.contract.plan, self.server.state
        for name, count in plan.counts(self.host.present).items():
            shown = (state.capacity.get(name), state.allocatable.get(name))
            if shown != (str(count), str(count)):
                self.broken.append((Promise.CONVERGES, f"{name} is {shown}, not {count}"))
        self._listed(plan, state)
        left = {name for name in (*state.capacity, *state.allocatable) if name in NAMES and plan.want(name) is None}
        if left and not self.tampered:
            self.broken.append((Promise.OWN, f"{sorted(left)} are left behind"))

    def _listed(self, plan: Plan, state: NodeState) -> None:
        listing = _listing(state)
        if listing.keys() != {want.name for want in plan.wants}:
            self.broken.append((Promise.OWN, f"the annotation owns {sorted(listing)}"))
        for want in plan.wants:
            here = {tty.devnode for tty in self.host.present if plan.owner(tty)[0] is want}
            listed = {str(entry["devnode"]) for entry in listing.get(want.name, ())}
            if here != listed and (want.evict is None or not here <= listed):
                self.broken.append((Promise.CONVERGES, f"{want.name} lists {sorted(listed)}, not {sorted(here)}"))

    def close(self) -> None:
        """End everything."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0.001))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
