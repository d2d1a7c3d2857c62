"""A host, an API server, a configuration and a log that tests control: real enough to keep state, obliging enough to fail on request."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from devwatch.device import Device
from devwatch.errors import ConfigError, Fault, NodeMissing, Refused, Retry
from devwatch.inventory import Look
from devwatch.node import ANNOTATION, Changes, NodeState, patch_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from devwatch.config import Config

MAPS = ("capacity", "allocatable")


@dataclass(slots=True, kw_only=True)
class FakeHost:
    """A `DeviceSource` with sticks to plug and pull. Every change is announced by a uevent, through `wake`, unless it is `unheard`."""

    wake: Callable[[str], None] = lambda _: None
    unheard: bool = False
    doubts: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()
    again_at: float | None = None
    looks: list[float] = field(default_factory=list)
    expected: list[frozenset[str]] = field(default_factory=list)
    at_look: Callable[[], None] = lambda: None
    _devices: dict[str, Device] = field(default_factory=dict)
    _incarnations: int = 0

    def look(self, now: float) -> Look:
        """Return what is plugged; while there are doubts nothing of it can be seen, as in a failed enumeration."""
        self.looks.append(now)
        self.at_look()
        devices = () if self.doubts else tuple(self._devices.values())
        again_at = self.again_at if self.again_at is not None and self.again_at > now else None
        return Look(at=now, devices=devices, doubts=self.doubts, troubles=self.troubles, again_at=again_at)

    def expect(self, paths: frozenset[str]) -> None:
        """Note the paths."""
        self.expected.append(paths)

    def plug(
        self, vendor: str, devnode: str = "/dev/ttyUSB0", *, serial: str | None = None, record: bool = True
    ) -> None:
        """Let the kernel register a stick; without `record` udev has not finished it yet."""
        self._incarnations += 1
        self._devices[devnode] = Device(
            devnode=devnode,
            devpath=f"/devices/usb{devnode}",
            number=self._incarnations,
            incarnation=self._incarnations,
            physical=f"/devices/usb{devnode}",
            vendor=vendor,
            product="0001",
            serial=serial,
            properties={} if record else None,
        )
        self._announce()

    def finish(self, devnode: str = "/dev/ttyUSB0") -> None:
        """Complete the udev record."""
        self._devices[devnode] = replace(self._devices[devnode], properties={})
        self._announce()

    def unplug(self, devnode: str = "/dev/ttyUSB0") -> None:
        """Pull a stick."""
        del self._devices[devnode]
        self._announce()

    def _announce(self) -> None:
        if not self.unheard:
            self.wake("uevent")


@dataclass(slots=True, kw_only=True)
class Request:
    """A PATCH as the server saw it."""

    at: float
    changes: Changes
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
        """By resource (`WHOLE`: the annotation): why a request that names it is refused as a whole."""
        self.undone: set[str] = set()
        """What a mutating webhook puts back to what it was."""
        self.states: list[NodeState] = []
        """Every state that a request of ours left behind."""
        self._births = 0
        self._version = 0
        self._node: dict[str, Any] | None = None
        self.create()

    # -- what others do

    def create(self) -> None:
        """Register the Node as the kubelet does: another uid, and nothing of ours in it."""
        self._births += 1
        status = {name: {"cpu": "4"} for name in MAPS}
        self._node = {
            "metadata": {"uid": f"uid-{self._births}", "annotations": {"foreign": "text"}},
            "status": {**status, "phase": "x"},
        }
        self._stamp()

    def delete(self) -> None:
        """Delete the Node: requests answer 404 until it is created again."""
        self._node = None

    def write(self, name: str, value: str | None, *, maps: tuple[str, ...] = MAPS) -> None:
        """Let a stranger write a resource, or with None remove it."""
        for part in maps:
            _merge(self._there()["status"][part], {name: value})
        self._stamp()

    def annotate(self, text: str | None) -> None:
        """Let a stranger write our annotation."""
        _merge(self._there()["metadata"]["annotations"], {ANNOTATION: text})
        self._stamp()

    def zero(self) -> None:
        """Restart the kubelet: it sets every extended resource to 0."""
        for name in [name for name in self.state.capacity if "/" in name]:
            self.write(name, "0")

    def backup(self) -> Callable[[], None]:
        """Return a function that puts everything back to what it is now, its resourceVersion included."""
        node, version = copy.deepcopy(self._node), self._version

        def restore() -> None:
            self._node, self._version = copy.deepcopy(node), version

        return restore

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

    async def patch(self, changes: Changes) -> NodeState:
        """Merge the changes, answer with the Node; or do whatever was asked for instead."""
        request = Request(at=self._clock(), changes=dict(changes), body=patch_body(changes))
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
            raise self.error
        if self._node is None:
            raise NodeMissing('nodes "n" not found (404)')
        for name in self.refused.keys() & request.changes.keys():
            raise self.refused[name]
        self._store(request)
        self.states.append(self.state)
        if self.losing:
            self.losing -= 1
            raise Retry("connection reset by peer")
        return self.state

    def _store(self, request: Request) -> None:
        before = self.raw
        passed = {name: value for name, value in request.changes.items() if name not in self.undone}
        _merge(self._there(), patch_body(passed))
        if self._there() != before:
            self._stamp()

    def _there(self) -> dict[str, Any]:
        if self._node is None:
            raise LookupError("the Node is deleted")
        return self._node

    def _stamp(self) -> None:
        self._version += 1
        self._there()["metadata"]["resourceVersion"] = str(self._version)


def _merge(target: dict[str, Any], patch: dict[str, Any]) -> None:
    """Merge as a strategic-merge patch does where there are only maps: null removes, a map is merged, else replaced."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            _merge(target.setdefault(key, {}), value)
        else:
            target[key] = value


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
            raise self._error
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
