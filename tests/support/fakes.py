"""A host, an API server, a configuration and a log that tests control: real enough to keep state, obliging enough to fail on request."""

from __future__ import annotations

import asyncio
import copy
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from devwatch.core.device import Device
from devwatch.core.errors import (
    ApiError,
    Busy,
    ConfigError,
    Conflict,
    Fault,
    Forbidden,
    Missing,
    NodeMissing,
    Refused,
    Retry,
)
from devwatch.core.inventory import Scan
from devwatch.core.node import ANNOTATION, ANNOTATION_PART, FIELD_MANAGER, MAPS, NodePatch, NodeState, Writer
from support.build import Parts, parts_of, patch_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from devwatch.config.schema import Config
    from devwatch.core.pods import Pod
    from devwatch.kube.pods import Event

EPOCH = 1_800_000_000
"""Unix time at the start of every virtual clock."""
Told = NodeState | ApiError | Literal["deleted"] | None
"""What becomes of a watch: it delivers a state or that there is none, fails, or with None ends."""


def date(now: float) -> str:
    """Return the API server's time at a moment of the virtual clock."""
    return datetime.fromtimestamp(int(EPOCH + now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(slots=True, kw_only=True)
class FakeHost:
    """A `DeviceSource` with sticks to plug and pull. Every change is announced by a uevent, through `wake`, unless it is `unheard`."""

    wake: Callable[[str], None] = lambda _: None
    unheard: bool = False
    doubts: tuple[str, ...] = ()
    partly: bool = False
    """Whether doubts concern other devices, and what is plugged can be seen all the same."""
    troubles: tuple[str, ...] = ()
    again_at: float | None = None
    scans: list[float] = field(default_factory=list)
    subsystems: frozenset[str] = frozenset({"tty"})
    expected: list[frozenset[str]] = field(default_factory=list)
    at_look: Callable[[], None] = lambda: None
    _devices: dict[str, Device] = field(default_factory=dict)
    _incarnations: int = 0

    def scan(self, now: float) -> Scan:
        """Return what is plugged; while there are doubts nothing of it can be seen, as in a failed enumeration, unless `partly`."""
        self.scans.append(now)
        self.at_look()
        listed = (each for each in self._devices.values() if each.subsystem in self.subsystems)
        devices = () if self.doubts and not self.partly else tuple(listed)
        again_at = self.again_at if self.again_at is not None and self.again_at > now else None
        return Scan(
            at=now,
            devices=devices,
            doubts=self.doubts,
            troubles=self.troubles,
            again_at=again_at,
            subsystems=self.subsystems,
        )

    def expect(self, paths: frozenset[str], subsystems: frozenset[str]) -> None:
        """Note the paths, and scan no other subsystems from now on."""
        self.expected.append(paths)
        self.subsystems = subsystems

    def plug(  # noqa: PLR0913 - what a stick may be like, by keyword
        self,
        vendor: str,
        devnode: str = "/dev/ttyUSB0",
        *,
        serial: str | None = None,
        record: bool = True,
        link: str | None = None,
        links: tuple[str, ...] = (),
        number: int | None = None,
        properties: dict[str, str] | None = None,
        **fields: object,
    ) -> None:
        """Let the kernel register a device, under another number each time; without `record` udev has not finished it yet.

        By default it is a tty; `fields` are further ones of the `Device`.
        """
        self._incarnations += 1
        device = Device(
            devnode=devnode,
            devpath=f"/devices/usb{devnode}",
            number=os.makedev(188, self._incarnations if number is None else number),
            incarnation=self._incarnations,
            physical=f"/devices/usb{devnode}",
            vendor=vendor,
            product="0001",
            serial=serial,
            links=(link, *links) if link else links,
            properties=(properties or {}) if record else None,
        )
        self._devices[devnode] = replace(device, **fields)  # type: ignore[arg-type]  # the fields of a Device
        self._announce()

    def change(self, devnode: str = "/dev/ttyUSB0", **fields: object) -> None:
        """Let udev tell something else of a device whose registration stays."""
        self._devices[devnode] = replace(self._devices[devnode], **fields)  # type: ignore[arg-type]  # the fields of a Device
        self._announce()

    def finish(self, devnode: str = "/dev/ttyUSB0") -> None:
        """Complete the udev record."""
        self._devices[devnode] = replace(self._devices[devnode], properties={})
        self._announce()

    def unplug(self, devnode: str = "/dev/ttyUSB0") -> None:
        """Pull a stick."""
        self.take(devnode)

    def take(self, devnode: str) -> Device:
        """Let a device vanish and return it; `put` brings back the same registration."""
        device = self._devices.pop(devnode)
        self._announce()
        return device

    def put(self, device: Device) -> None:
        """Let a device that vanished be there again."""
        self._devices[device.devnode] = device
        self._announce()

    def _announce(self) -> None:
        if not self.unheard:
            self.wake("uevent")


@dataclass(slots=True, kw_only=True)
class Request:
    """A PATCH as the server saw it."""

    at: float
    changes: Parts
    body: dict[str, object]
    ended: float | None = None


class FakeServer:
    """A `NodeApi` with one Node, which is kept and merged as an API server does, and with everything that can go wrong.

    A Node is merged by its JSON body and read back from it. `clock` is the loop's time.
    """

    def __init__(self, clock: Callable[[], float], *, latency: float = 0.01) -> None:
        """Have a Node that nobody has written to; each answer takes `latency` seconds."""
        self._clock = clock
        self.latency = latency
        self.requests: list[Request] = []
        self.in_flight = self.most_in_flight = 0
        self.error: BaseException | None = None
        """Raised for every request, which then changes nothing."""
        self.silent = False
        """Whether requests are taken and never answered."""
        self.losing = 0
        """How many of the next requests are stored without their answer coming through."""
        self.refused: dict[str, Refused] = {}
        """By resource (`ANNOTATION_PART`: the annotation): why a request that names it is refused as a whole."""
        self.undone: set[str] = set()
        """What a mutating webhook puts back to what it was."""
        self.states: list[NodeState] = []
        """Every state that a request of ours left behind."""
        self.answer_latency = 0.0
        """Seconds between the moment that a request is stored and its answer."""
        self.watches: list[float] = []
        """When a watch was asked for."""
        self.watch_error: ApiError | None = None
        """Raised for every watch that begins."""
        self.stream_error: ApiError | None = None
        """Raised for every watch after the list that it begins with."""
        self.watch_latency = 0.0
        """Seconds by which the watch is late."""
        self.date = ""
        self.stored: Callable[[], None] = lambda: None
        """Called after each change of the Node."""
        self._viewers: list[asyncio.Queue[Told]] = []
        self._writers: dict[str, dict[str, Writer]] = {}
        """By resource, and `ANNOTATION_PART` for the annotation: who wrote it in which map."""
        self._births = 0
        self._version = 0
        self._node: dict[str, Any] | None = None
        self.create()

    # -- what others do

    def create(self) -> None:
        """Register the Node as the kubelet does: another uid, and nothing of ours in it."""
        self._births += 1
        self._writers = {}
        status = {name: {"cpu": "4"} for name in MAPS}
        self._node = {
            "metadata": {"uid": f"uid-{self._births}", "annotations": {"foreign": "text"}},
            "status": {**status, "phase": "x"},
        }
        self._stamp()

    def delete(self) -> None:
        """Delete the Node: requests answer 404 until it is created again."""
        self._node = None
        self.show("deleted")

    def write(self, name: str, value: str | None, *, maps: tuple[str, ...] = MAPS, manager: str = "stranger") -> None:
        """Let a stranger write a resource, or with None remove it."""
        for part in maps:
            self._note(name, part, self._there()["status"][part].get(name), value, Writer(manager=manager, time=""))
            _merge(self._there()["status"][part], {name: value})
        self._stamp()

    def annotate(self, text: str | None, *, writer: Writer | None = None) -> None:
        """Let a stranger write our annotation."""
        notes = self._there()["metadata"]["annotations"]
        self._note(
            ANNOTATION_PART, "", notes.get(ANNOTATION), text, writer or Writer(manager="kubectl-annotate", time="")
        )
        _merge(notes, {ANNOTATION: text})
        self._stamp()

    def _note(self, name: str, part: str, before: str | None, after: str | None, writer: Writer) -> None:
        """Record who wrote a key, as the server does: one who writes what is there already is not recorded."""
        writers = self._writers.setdefault(name, {})
        if after is None:
            writers.pop(part, None)
        elif after != before:
            writers[part] = writer

    def zero(self) -> None:
        """Restart the kubelet: it sets every extended resource to 0."""
        for name in [name for name in self.state.capacity if "/" in name]:
            self.write(name, "0")

    def backup(self) -> Callable[[], None]:
        """Return a function that puts everything back to what it is now, its resourceVersion included."""
        node, version, writers = copy.deepcopy(self._node), self._version, copy.deepcopy(self._writers)

        def restore() -> None:
            self._node, self._version, self._writers = copy.deepcopy(node), version, copy.deepcopy(writers)

        return restore

    # -- what a watch tells

    def show(self, event: Told) -> None:
        """Let every watch deliver this, however old it is, fail with it, or with None end."""
        for viewer in self._viewers:
            viewer.put_nowait(event)

    async def watch(self) -> AsyncIterator[NodeState | None]:
        """Yield the Node, and again after every write; None while there is none."""
        self.watches.append(self._clock())
        await asyncio.sleep(self.latency)
        if self.watch_error is not None:
            raise self.watch_error.with_traceback(None)
        viewer: asyncio.Queue[Told] = asyncio.Queue()
        self._viewers.append(viewer)
        try:
            yield None if self._node is None else self.state
            if self.stream_error is not None:
                raise self.stream_error.with_traceback(None)
            while (event := await viewer.get()) is not None:
                await asyncio.sleep(self.watch_latency)
                if isinstance(event, ApiError):
                    raise event.with_traceback(None)
                yield None if event == "deleted" else event
        finally:
            self._viewers.remove(viewer)

    # -- what is there

    @property
    def exists(self) -> bool:
        """Whether there is a Node."""
        return self._node is not None

    @property
    def state(self) -> NodeState:
        """The Node. Raises `LookupError` while there is none."""
        node = self._there()
        return NodeState(
            uid=node["metadata"]["uid"],
            version=int(node["metadata"]["resourceVersion"]),
            capacity=dict(node["status"]["capacity"]),
            allocatable=dict(node["status"]["allocatable"]),
            annotation=node["metadata"]["annotations"].get(ANNOTATION),
            writers={name: _merged_writers(parts) for name, parts in self._writers.items() if parts},
        )

    @property
    def raw(self) -> dict[str, Any]:
        """A copy of the whole Node."""
        return copy.deepcopy(self._there())

    @property
    def writes(self) -> list[Request]:
        """The requests that were to change something."""
        return [request for request in self.requests if request.changes]

    def shows(self, name: str) -> tuple[str | None, str | None]:
        """Return capacity and allocatable of a resource."""
        state = self.state
        return state.capacity.get(name), state.allocatable.get(name)

    # -- what devwatch does

    async def patch(self, patch: NodePatch) -> NodeState:
        """Merge the patch, answer with the Node; or do whatever was asked for instead."""
        request = Request(at=self._clock(), changes=parts_of(patch), body=patch.body())
        self.requests.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(request)
        finally:
            self.in_flight -= 1
            request.ended = self._clock()

    async def _answer(self, request: Request) -> NodeState:
        if self.silent:
            await asyncio.Event().wait()
        await asyncio.sleep(self.latency)
        if self.error is not None:
            raise self.error.with_traceback(None)
        if self._node is None:
            raise NodeMissing('nodes "n" not found (404)')
        for name in self.refused.keys() & request.changes.keys():
            raise self.refused[name].with_traceback(None)
        self._store(request)
        self.states.append(self.state)
        answer = self.state
        await asyncio.sleep(self.answer_latency)
        if self.losing:
            self.losing -= 1
            raise Retry("connection reset by peer")
        self.date = date(self._clock())
        return answer

    def _store(self, request: Request) -> None:
        before = self.raw
        passed = {name: value for name, value in request.changes.items() if name not in self.undone}
        us = Writer(manager=FIELD_MANAGER, time="")
        for name, value in passed.items():
            if name == ANNOTATION_PART:
                self._note(name, "", before["metadata"]["annotations"].get(ANNOTATION), value, us)
        patch = patch_of(passed)
        for part in MAPS:
            for name, count in patch.counts.items():
                written = None if count is None else str(getattr(count, part))
                self._note(name, part, before["status"][part].get(name), written, us)
        _merge(self._there(), patch.body())
        if self._there() != before:
            self._stamp()

    def _there(self) -> dict[str, Any]:
        if self._node is None:
            raise LookupError("the Node is deleted")
        return self._node

    def _stamp(self) -> None:
        self._version += 1
        self._there()["metadata"]["resourceVersion"] = str(self._version)
        self.show(self.state)
        self.stored()


def _merged_writers(parts: dict[str, Writer]) -> tuple[Writer, ...]:
    """Return each writer of a key once, with the maps that it wrote it in."""
    return tuple(
        replace(writer, maps=frozenset(part for part, other in parts.items() if part and other == writer))
        for writer in dict.fromkeys(parts.values())
    )


def _merge(target: dict[str, Any], patch: dict[str, Any]) -> None:
    """Merge as a strategic-merge patch does where there are only maps: null removes, a map is merged, else replaced."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            _merge(target.setdefault(key, {}), value)
        else:
            target[key] = value


RIGHTS = ("list pods", "create pods/eviction", "create events")


class FakeWorkload:
    """The pods of one node, and Events: a `WorkloadApi` with budgets, missing rights, outages and slow answers."""

    def __init__(self, clock: Callable[[], float], *, latency: float = 0.01, server: FakeServer | None = None) -> None:
        """Have no pods and every right; the API server is that of the Node."""
        self._clock, self._server = clock, server
        self.latency = latency
        self.rights = set(RIGHTS)
        self.error: ApiError | None = None
        """Raised for every request."""
        self.budgets: dict[str, int] = {}
        """By the name of a pod: how many budgets forbid its eviction."""
        self.hanging: set[str] = set()
        """What is asked and not answered: `lists`, `evictions`, `Events`."""
        self.denied: dict[str, ApiError] = {}
        """By the name of a pod: how its eviction is refused."""
        self.ineffective: set[str] = set()
        """The names of pods whose eviction is answered as a success, by a webhook, and does nothing."""
        self.unanswered: set[str] = set()
        """The names of pods that are evicted without an answer."""
        self.lists: list[float] = []
        self.tried: list[tuple[float, str]] = []
        self.evicted: list[tuple[float, str]] = []
        self.events: list[tuple[float, Event]] = []
        self.spans: list[tuple[float, float]] = []
        """From when to when each request was out."""
        self.at_answer: Callable[[], None] = lambda: None
        """What happens while an answer is on its way."""
        self._pods: dict[str, Pod] = {}

    def run(self, *pods: Pod) -> None:
        """Start pods; one of the same name takes the place of the other."""
        self._pods |= {pod.title: pod for pod in pods}

    @property
    def running(self) -> tuple[Pod, ...]:
        """The pods that run."""
        return tuple(self._pods.values())

    def end(self, title: str) -> None:
        """Let a pod end by itself, if it runs."""
        self._pods.pop(title, None)

    async def pods(self) -> tuple[Pod, ...]:
        """Return the pods."""
        self.lists.append(self._clock())
        found = tuple(self._pods.values())
        await self._answer("list pods")
        return found

    async def evict(self, pod: Pod) -> None:
        """Delete the pod unless a budget forbids it, or there is none of this name, or it is another one."""
        self.tried.append((self._clock(), pod.name))
        await self._answer("create pods/eviction")
        if pod.title not in self._pods:
            raise Missing(f'pods "{pod.name}" not found (404)')
        if self._pods[pod.title].uid != pod.uid:
            raise Conflict("the UID in the precondition does not match (409)")
        if pod.name in self.denied:
            raise self.denied[pod.name].with_traceback(None)
        if budgets := self.budgets.get(pod.name, 0):
            message = "it would violate the pod's disruption budget (429)"
            raise Busy(message) if budgets == 1 else Retry("it has more than one PodDisruptionBudget (500)")
        if pod.name in self.ineffective:
            return
        del self._pods[pod.title]
        self.evicted.append((self._clock(), pod.name))
        if pod.name in self.unanswered:
            await asyncio.sleep(10)
            raise Retry("the API server did not answer within 10 s")

    async def record(self, event: Event) -> None:
        """Keep an Event."""
        await self._answer("create events")
        self.events.append((self._clock(), event))

    async def _answer(self, right: str) -> None:
        start = self._clock()
        kind = {"list pods": "lists", "create pods/eviction": "evictions"}.get(right, "Events")
        try:
            await asyncio.sleep(10 if kind in self.hanging else self.latency)
            self.at_answer()
        finally:
            self.spans.append((start, self._clock()))
        if kind in self.hanging:
            raise Retry("the API server did not answer within 10 s")
        if self.error is not None:
            raise self.error.with_traceback(None)
        if right not in self.rights:
            raise Forbidden(f"cannot {right} (403)", hint=f"grant {right}")
        if self._server is not None:
            self._server.date = date(self._clock())


class FakeSettings:
    """A configuration file: `write` changes it, `spoil` makes it faulty."""

    def __init__(self, config: Config) -> None:
        """Hold a file that nobody has changed since it was read."""
        self._config = config
        self._error: ConfigError | None = None
        self._new = False
        self.polls = 0

    def write(self, config: Config) -> None:
        """Put a good file in place."""
        self._config, self._error, self._new = config, None, True

    def spoil(self, message: str = "unknown key") -> None:
        """Put a faulty file in place."""
        fault = Fault(line=1, column=1, path="sweeep", message=message)
        self._error, self._new = ConfigError("config.yaml", (fault,)), True

    def poll(self, *, force: bool) -> Config | None:
        """Answer as `ConfigFile` does: what was read before, good or bad, is no news without `force`."""
        self.polls += 1
        new, self._new = self._new or force, False
        if new and self._error is not None:
            raise self._error.with_traceback(None)
        return self._config if new else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A log line."""

    level: str
    event: str
    fields: dict[str, object]


class RecordingLog:
    """A log that remembers."""

    def __init__(self) -> None:
        """Have no line yet."""
        self.lines: list[Line] = []

    def debug(self, event: str, **fields: object) -> None:
        """Remember a detail."""
        self.lines.append(Line(level="debug", event=event, fields=fields))

    def info(self, event: str, **fields: object) -> None:
        """Remember what happened."""
        self.lines.append(Line(level="info", event=event, fields=fields))

    def warning(self, event: str, **fields: object) -> None:
        """Remember what the user may want to change."""
        self.lines.append(Line(level="warning", event=event, fields=fields))

    def error(self, event: str, **fields: object) -> None:
        """Remember what the user has to change."""
        self.lines.append(Line(level="error", event=event, fields=fields))

    def of(self, event: str) -> list[Line]:
        """Return the lines of one event."""
        return [line for line in self.lines if line.event == event]

    @property
    def counts(self) -> Counter[str]:
        """How often each event was written."""
        return Counter(line.event for line in self.lines)
