"""A world for the daemon on virtual time, in which everything can fail, and a judge of every request that the daemon makes in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
from abc import ABC, abstractmethod
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from devwatch.agent.clock import Clock
from devwatch.agent.listener import MonitorListener
from devwatch.agent.report import Telemetry
from devwatch.agent.wiring import build_agent
from devwatch.core.errors import ApiError, Busy, Conflict, CredentialsError, Forbidden, NodeMissing, Refused, Retry
from devwatch.core.inventory import Scan
from devwatch.core.node import ANNOTATION_PART, MAPS, NodeState, Writer
from devwatch.host.lock import NodeLock
from devwatch.observe.health import Health
from devwatch.observe.metrics import Metrics
from support.build import Parts, parts_of, patch_of
from support.fakes import RIGHTS, FakeServer, FakeSettings, RecordingLog, date
from support.model_contract import Contract, Plan, Tty, Want
from support.model_eviction import Bailiff, Cut, Ledger, believed, listing, removable
from support.model_host import UNSURE, Host, device, leading
from support.model_pods import METER, NODE, SPARE, ZIGBEE, ZWAVE, Town, host_date
from support.virtualtime import VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator, Mapping, Sequence

    from devwatch.agent.reconciler import Reconciler
    from devwatch.config.schema import Config
    from devwatch.core.device import Device
    from devwatch.core.node import NodePatch
    from devwatch.core.pods import Pod
    from devwatch.kube.pods import Event

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


Served = tuple[NodeState, str]
"""An answer with its Date."""


class Hearing(Enum):
    """What becomes of uevents."""

    ONCE = "once"
    NEVER = "never"
    TWICE = "twice"
    LATE = "late"


@dataclass(slots=True, kw_only=True)
class Eye:
    """The `DeviceSource` of one daemon: it tells what a look would find, and the judge what that was."""

    world: World
    judge: Judge
    records: dict[int, Tty] = field(default_factory=dict)
    """By birth: the ttys whose record was read, as it was then, which holds until they go."""
    _made: dict[tuple[Tty, tuple[str, ...]], Device] = field(default_factory=dict)

    def expect(self, paths: frozenset[str], subsystems: frozenset[str]) -> None:
        """Follow no link: the paths of `PLANS` are devnodes."""

    def scan(self, now: float) -> Scan:
        """Look."""
        host = self.world.host
        doubts = tuple(f"{node}: {number}" for node, number in host.nodes.items() if number in UNSURE)
        doubts = ("lacks the kernel's own tty and console",) if host.blind else doubts
        ttys = () if host.blind else tuple(map(self._read, host.present))
        seen = tuple(tty for tty in ttys if host.nodes.get(tty.devnode, 0) == 0)
        if not host.blind:
            self.records = {tty.birth: tty for tty in ttys if tty.record}
        self.judge.scanned(seen, now, certain=not doubts)
        return Scan(at=now, devices=self._devices(seen), doubts=doubts, udevd=not host.hidden)

    def _read(self, tty: Tty) -> Tty:
        """Return a tty as it is read now: a record that is no longer to be had still tells what it told last."""
        if tty.record and not self.world.host.hidden:
            return tty
        return self.records.get(tty.birth) or replace(tty, record=False)

    def _devices(self, seen: tuple[Tty, ...]) -> tuple[Device, ...]:
        links: dict[str, list[str]] = {tty.devnode: [] for tty in seen}
        for path, tty in leading(self.world.host.present).items():
            if tty.devnode in links and path != tty.devnode:
                links[tty.devnode].append(path)
        keys = [(tty, tuple(sorted(links[tty.devnode]))) for tty in seen]
        self._made = {key: self._made.get(key) or device(*key) for key in keys}
        return tuple(self._made.values())


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
    "429": Fault(error=Busy("too many requests (429)"), stored=False),
    "429 after 7": Fault(error=Busy("too many requests (429)", after=7), stored=False),
    "429 after 900": Fault(error=Busy("too many requests (429)", after=900), stored=False),
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
    date: str = ""
    """The API server's time in the last answer."""
    bailiff: Bailiff = field(init=False)
    _written: set[str] = field(default_factory=set)
    _unanswered: set[str] = field(default_factory=set)
    """What may have been stored without an answer."""
    _looks: Counter[float] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Judge evictions by what is true of the world."""
        self.bailiff = Bailiff(ledger=self.world.ledger, contract=self.contract)

    @property
    def now(self) -> float:
        """The time of the loop, in seconds."""
        return self.world.loop.time()

    def broken(self, promise: Promise, text: str) -> None:
        """Take note of a promise that was not kept."""
        self.world.broken.append((promise, f"at {self.now:.3f} s: {text}"))

    # -- what the daemon learns

    def scanned(self, seen: Sequence[Tty], now: float, *, certain: bool) -> None:
        """Take note of a look, and end a daemon that spins."""
        self._looks[now] += 1
        if self._looks[now] > SPINNING:
            raise RuntimeError("the loop spins")
        self.contract.scan(seen, now, certain=certain, udevd=not self.world.host.hidden)
        self.bailiff.scanned(seen, now, certain=certain, date=self.date, answered=self.answered)
        self.bailiff.learned(self.known, now, answered=self.answered)

    def configured(self, plan: Plan) -> None:
        """Take note that another configuration is read."""
        self.contract.configure(plan)
        self.bailiff.configured(self.now)
        # What the watch told before the first answer may be taken in only now: then it is the start of what this one asks for.
        for state in [] if self.answered else self.known:
            self.contract.start(state.count, self.now)

    def saw(self, state: NodeState) -> None:
        """Take note of what the watch tells."""
        if not any(state.uid == known.uid and state.version < known.version for known in self.known[-1:]):
            self.known.append(state)
        if not self.answered:
            self._began(state)
        self.bailiff.learned(self.known, self.now, answered=self.answered)

    def told(self, state: NodeState) -> None:
        """Take note of an answer."""
        if not self.answered:
            self._began(state)
        self._begun()
        self._unanswered.clear()
        newer = [seen for seen in self.known[-1:] if seen.uid != state.uid or seen.version > state.version]
        self.known = [state, *newer]
        self.bailiff.learned(self.known, self.now, answered=self.answered)

    def _begun(self) -> None:
        if not self.answered:
            self.contract.begun(self.now)
        self.answered = True

    def _began(self, state: NodeState) -> None:
        self.contract.start(state.count, self.now)
        self.bailiff.began(state)

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

    def sent(self, changes: Parts) -> list[Cut]:
        """Judge a PATCH, and return what it stops counting, to be marked once it is stored."""
        if self.now < self.not_before - SOON:
            self.broken(Promise.QUIET, f"a request {self.not_before - self.now:.1f} s before the end of Retry-After")
        if not changes:
            return []
        self._begun()
        if self._unanswered.isdisjoint(changes) and all(state.reflects(patch_of(changes)) for state in self.known):
            self.broken(Promise.QUIET, f"writes what the Node is known to show: {changes}")
        self._own(patch_of(changes).body())
        for name, value in changes.items():
            if name == ANNOTATION_PART:
                self._annotated(value)
            elif self.contract.plan.want(name) is None:
                self._removed(name, value)
            else:
                self._counted(name, value)
        self._rest(changes)
        self._written |= changes.keys() - {ANNOTATION_PART}
        self._unanswered |= changes.keys()
        cuts, fault = self.bailiff.sending(changes, self.date, self.now)
        if fault:
            self.broken(Promise.CERTAINTY, fault)
        return cuts

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
        elif name not in self._written and not any(name in believed(state) for state in self.known):
            self.broken(Promise.OWN, f"removes {name}, which no annotation of devwatch owns")
        elif not any(removable(state, name) for state in self.known):
            self.broken(Promise.OWN, f"removes {name}, which somebody else has written")

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

    def _rest(self, changes: Parts) -> None:
        """Judge what a patch leaves as it is, where nobody else can be to blame for that."""
        names = set() if self.world.meddled else {want.name for want in self.contract.plan.wants} - changes.keys()
        for name in names:
            shown = [state.count(name) for state in self.known]
            if min(shown) > self.contract.bounds(name, shown, self.now).high:
                self.broken(Promise.OVERSELLS, f"leaves {name} at {min(shown)}")

    def _annotated(self, text: str | None) -> None:
        names = json.loads(text or "{}").keys()
        wanted = {want.name for want in self.contract.plan.wants}
        owned = self._written.union(*(believed(state) for state in self.known))
        if not wanted <= names <= wanted | owned:
            self.broken(Promise.OWN, f"claims to own {sorted(names)}")

    def evicts(self, pod: Pod) -> None:
        """Judge an eviction."""
        if wrong := self.bailiff.wrongly(pod, self.now):
            self.broken(Promise.CERTAINTY, f"evicts {pod.name}: {wrong}")


_ANNOTATION = "devwatch.io/devices"


@dataclass(slots=True, kw_only=True)
class Line:
    """The connection of one daemon to the API server: it loses what the world wants lost, and shows the judge the rest."""

    world: World
    judge: Judge

    date: str = ""
    """The API server's time in the last answer."""

    async def patch(self, patch: NodePatch) -> NodeState:
        """Send a patch. What is sent is sent: the server goes on with it, whatever becomes of the daemon."""
        with self.judge.request():
            cuts = self.judge.sent(parts_of(patch))
            served = self.world.spawn(self.world.serve(patch, cuts))
            try:
                async with asyncio.timeout(TIMEOUT):
                    state, stamp = await asyncio.shield(served)
            except TimeoutError:
                raise Retry("the API server did not answer in time") from None
            except Retry as error:
                self.judge.not_before = self.judge.now + min(error.after or 0.0, 60.0)
                raise
            self._answered(stamp)
            self.judge.told(state)
            return state

    async def watch(self) -> AsyncIterator[NodeState | None]:
        """Yield the Node, unless the connection is dead without a sign of it."""
        self.world.watched = False
        try:
            async for state in self.world.server.watch():
                if state is not None:
                    self.world.history.append(state)
                if not self.world.deaf:
                    self.world.watched = True
                    if state is not None:
                        self.judge.saw(state)
                    yield state
        finally:
            self.world.watched = False

    async def pods(self) -> tuple[Pod, ...]:
        """List the pods."""
        with self.judge.request():
            pods = await self.world.town.pods()
            self._answered()
            self.judge.bailiff.answered(pods, self.judge.now)
            return pods

    async def evict(self, pod: Pod) -> None:
        """Evict a pod."""
        with self.judge.request():
            self.judge.evicts(pod)
            await self.world.town.evict(pod)
            self._answered()
            self.judge.bailiff.evicted(self.world.town.lives[pod.uid], self.judge.now)

    async def record(self, event: Event) -> None:
        """Write an Event."""
        with self.judge.request():
            await self.world.town.record(event)
            self._answered()

    def _answered(self, stamp: str | None = None) -> None:
        self.date = self.judge.date = stamp or date(self.judge.now)


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
        self.listener = MonitorListener(self.log, world.metrics)
        self.task = world.loop.create_task(self._run())

    async def _run(self) -> None:
        lock = NodeLock(self.world.name, poll=15)
        try:
            await lock.acquire(lambda _: None, lambda _: None)
            self.world.holder = self
            reconciler = self._wire()
            self.listener.wake = reconciler.wake
            await reconciler.run()
        finally:
            self.world.holder = None if self.world.holder is self else self.world.holder
            lock.release()

    def _wire(self) -> Reconciler:
        world, line = self.world, Line(world=self.world, judge=self.judge)
        return build_agent(
            source=Eye(world=world, judge=self.judge),
            api=line,
            watch=line.watch,
            workload=line,
            settings=self.file,
            config=self.judge.contract.plan.config,
            node=NODE,
            telemetry=Telemetry(
                log=self.log, metrics=world.metrics, health=Health(sweep=10, last_cycle=world.loop.time())
            ),
            clock=Clock(now=world.loop.time, unix=lambda: host_date(world.loop.time()), jitter=lambda: world.jitter),
        )


class Uncounted(Metrics):
    """Metrics without the gauges by resource, which cost more than all that is tested here."""

    def set_devices(self, counts: Mapping[str, int]) -> None:
        """Forget them."""

    def set_capacity(self, counts: Mapping[str, int]) -> None:
        """Forget them."""

    def set_held(self, counts: Mapping[str, int]) -> None:
        """Forget them."""


class Loop(VirtualTimeLoop):
    """Virtual time that may also pass while the program does not run."""

    def pass_by(self, seconds: float) -> None:
        """Let time pass: every timer is late."""
        self._virtual.now += seconds


class Process(Protocol):
    """A daemon that runs."""

    task: asyncio.Task[None]
    listener: MonitorListener


Runner = TypeVar("Runner", bound=Process)


class Surroundings(ABC, Generic[Runner]):
    """The time, the sticks and the API server around daemons, whatever these are to do."""

    def __init__(self, metrics: Metrics) -> None:
        """Have no stick, an untouched Node and no daemon."""
        self.metrics = metrics
        self.loop = Loop(end=1e6)
        self.host, self.hearing = Host(clock=self.loop.time), Hearing.ONCE
        self.server = FakeServer(self.loop.time)
        self.jitter = 0.5
        self.apart = 0.0
        """Seconds between the devnodes of a stick that is plugged."""
        self.faults: deque[Fault] = deque()
        self.climate: Fault | None = None
        self.deaf = False
        self.broken: list[tuple[Enum, str]] = []
        self.daemons: list[Runner] = []
        self.served: set[asyncio.Task[Served]] = set()
        self.forbidden: Forbidden | None = None
        """Why nobody may watch the Node, for good: that is no fault."""
        self.meddled = False
        """Whether anybody but the daemon writes, or is in the way when it writes everything at once."""

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

    def spawn(self, served: Coroutine[None, None, Served]) -> asyncio.Task[Served]:
        """Let the server work on a request."""
        task = self.loop.create_task(served)
        self.served.add(task)
        task.add_done_callback(self.served.discard)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return task

    def hear(self) -> None:
        """Let uevents come, or not."""
        for daemon in self.daemons:
            for _ in range({Hearing.NEVER: 0, Hearing.TWICE: 2}.get(self.hearing, 1)):
                self.loop.call_later(3 if self.hearing is Hearing.LATE else 0, daemon.listener.uevents, ["add"])

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

    @abstractmethod
    def end(self) -> None:
        """Judge the end: everything has worked for long enough."""

    def close(self) -> None:
        """End everything."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0.001))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


class World(Surroundings[Daemon]):
    """Everything around the daemons of one node, and the time in it."""

    def __init__(self, metrics: Metrics) -> None:
        """Have no stick, an untouched Node, and one daemon."""
        super().__init__(metrics)
        self.name = f"model-{os.getpid()}-{id(self)}"
        self.town = Town(self.loop, self.server, self.host)
        self.ledger = Ledger(host=self.host, town=self.town)
        self.plan = PLANS[0]
        self.watched = False
        self.history: list[NodeState] = []
        self.holder: Daemon | None = None
        self.tampered = False
        """Whether a stranger wrote what cannot be told from ours."""
        self.begin()

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

    # -- the API server

    async def serve(self, patch: NodePatch, cuts: Sequence[Cut]) -> Served:
        """Answer a request, or do to it what is to be done."""
        fault = self.faults.popleft() if self.faults else self.climate or Fault()
        await (asyncio.sleep(fault.before) if fault.before < math.inf else self.loop.create_future())
        state = await self.server.patch(patch) if fault.stored else None
        stamp = date(self.loop.time())
        if state is not None:
            self.town.schedule()
            for cut in cuts:
                cut.stored = True
        # Stored after its time and unseen, it is overwritten before anybody can know that it was ours.
        unseen = not self.watched or self.deaf or self.server.watch_latency > 0
        self.tampered |= fault.stored and fault.before > TIMEOUT and unseen
        # What goes on the Node while its annotation is refused alone is nobody's once the daemon is killed.
        self.tampered |= isinstance(fault.error, Refused) and patch.parts == {ANNOTATION_PART}
        await asyncio.sleep(fault.after)
        if fault.error is not None or state is None:
            raise (fault.error or Retry("no answer")).with_traceback(None)
        self.history.append(state)
        return state, stamp

    def foreign(self, name: str, value: str | None, maps: tuple[str, ...]) -> None:
        """Let a stranger write a resource of the Node, if there is one."""
        if self.server.exists:
            self.server.write(name, value, maps=maps)
            self.town.schedule()

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

    def annotate(self, text: str | None, writer: Writer | None = None) -> None:
        """Let a stranger write our annotation."""
        if self.server.exists:
            self.tampered = True
            self.server.annotate(text, writer=writer)

    # -- the end

    def heal(self) -> None:
        """Let every fault end, and what is still on its way arrive."""
        for daemon in [daemon for daemon in self.daemons if daemon is not self.holder]:
            self.kill(self.daemons.index(daemon))
        self.host.heal()
        self.hearing = Hearing.ONCE
        self.relieve()
        self.town.rights, self.town.error = set(RIGHTS), None
        self.town.budgets.clear()
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
        if self.holder is not None and (left := self.holder.judge.bailiff.forgotten()):
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
        names = {*state.capacity, *state.allocatable} & set(NAMES)
        left = {name for name in names if plan.want(name) is None and removable(state, name)}
        if left and not self.tampered:
            self.broken.append((Promise.OWN, f"{sorted(left)} are left behind"))

    def _listed(self, plan: Plan, state: NodeState) -> None:
        content = listing(state)
        if content.keys() != {want.name for want in plan.wants}:
            self.broken.append((Promise.OWN, f"the annotation owns {sorted(content)}"))
        for want in plan.wants:
            here = {tty.devnode for tty in self.host.present if plan.owner(tty)[0] is want}
            listed = {str(entry.get("devnode")) for entry in content.get(want.name, ())}
            if here != listed and (want.evict is None or not here <= listed):
                self.broken.append((Promise.CONVERGES, f"{want.name} lists {sorted(listed)}, not {sorted(here)}"))
