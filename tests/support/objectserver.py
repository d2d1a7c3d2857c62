"""An API server for slices, claims and classes: it keeps objects as the real one does, and fails on demand.

It stands where a `Connection` does, below everything that knows paths and bodies. What it does to the objects of resource.k8s.io was read
in pkg/registry/resource and pkg/apis/resource of Kubernetes 1.36.2.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from devwatch.core.errors import ApiError, Conflict, Missing, Refused, Retry, Unserved

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence


Object = dict[str, Any]
GROUP = "/apis/resource.k8s.io/v1"
SLICES, CLASSES, CLAIMS = f"{GROUP}/resourceslices", f"{GROUP}/deviceclasses", f"{GROUP}/resourceclaims"
_PATH = re.compile(rf"{GROUP}(?:/namespaces/(?P<namespace>[^/]+))?/(?P<kind>[a-z]+)(?:/(?P<name>[^/]+))?")
_BOOKMARKS = 60.0
"""Seconds of silence after which a watch gets a bookmark."""
_MAX_DEVICES, _MAX_TAINTED, _MAX_TEXT = 128, 64, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request that was made."""

    method: str
    path: str
    body: Any
    query: tuple[tuple[str, str], ...]
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    kind: str
    namespace: str
    name: str


@dataclass(slots=True, kw_only=True)
class ObjectServer:
    """Keeps objects by kind, namespace and name; every change raises the resourceVersion and goes to the watches."""

    clock: Callable[[], float]
    origin: str = "https://server"
    taints: bool = True
    """The feature gate DRADeviceTaints: without it new taints are dropped."""
    extended: bool = True
    """The feature gate DRAExtendedResource: without it the extended resource of a class is dropped."""
    served: bool = True
    """Whether the API is served."""
    latency: float = 0.01
    fail: Callable[[str, str], ApiError | None] = lambda _method, _path: None
    """Returns the error for a method (WATCH for a stream) and a path."""
    lose: bool = False
    """Whether a write is stored and its response is lost (an error of `fail`)."""
    change: Callable[[Object], None] = lambda _: None
    """What an admission webhook does to an object that is written."""
    lag: float = 0.0
    """Seconds by which each event of a watch is late."""
    mute: bool = False
    """Whether watches are silent for ever; else a bookmark is sent once a minute."""
    stored: Callable[[], None] = lambda: None
    """Called after each change."""
    calls: list[Call] = field(default_factory=list)
    _objects: dict[_Key, Object] = field(default_factory=dict)
    _version: int = 100
    _history: deque[tuple[int, str, str, Object]] = field(default_factory=deque)
    _compacted: int = 0
    _queues: dict[asyncio.Queue[Object | ApiError | None], tuple[str, str]] = field(default_factory=dict)

    # -- what a client does

    async def request(
        self, method: str, path: str, *, query: Sequence[tuple[str, str]] = (), body: object = None
    ) -> Object:
        """Answer a request as the API server would, or raise what a `Connection` would."""
        self.calls.append(Call(method=method, path=path, body=copy.deepcopy(body), query=tuple(query), at=self.clock()))
        await asyncio.sleep(self.latency / 2)
        error = self.fail(method, path)
        if error and not self.lose:
            raise error
        answer = self._answer(method, path, dict(query), json.loads(json.dumps(body)))
        await asyncio.sleep(self.latency / 2)
        if error:
            raise error
        return answer

    async def stream(self, path: str, *, query: Sequence[tuple[str, str]], idle: float) -> AsyncGenerator[Object]:
        """Yield the events since the resourceVersion of the query until the watch is ended, or for `idle` seconds of silence."""
        options = dict(query)
        if error := self.fail("WATCH", path):
            raise error
        if int(options["resourceVersion"]) < self._compacted:
            yield {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}
            return
        kind, selector = self._key(path).kind, options.get("fieldSelector", "")
        queue = asyncio.Queue[Object | ApiError | None]()
        for version, type_, of_kind, item in self._history:
            if version > int(options["resourceVersion"]) and of_kind == kind and _selected(item, selector):
                queue.put_nowait({"type": type_, "object": item})
        self._queues[queue] = (kind, selector)
        try:
            while True:
                event = await self._next_event(queue, idle)
                if event is None:
                    return
                if not isinstance(event, dict):
                    raise event
                await asyncio.sleep(self.lag)
                yield copy.deepcopy(event)
        finally:
            del self._queues[queue]

    async def _next_event(
        self, queue: asyncio.Queue[Object | ApiError | None], idle: float
    ) -> Object | ApiError | None:
        try:
            async with asyncio.timeout(idle if self.mute else _BOOKMARKS):
                return await queue.get()
        except TimeoutError:
            return Retry(f"the watch of {self.origin} went silent") if self.mute else self._bookmark()

    # -- what others do

    def all(self, path: str) -> list[Object]:
        """Return the objects of a collection, in all namespaces."""
        kind = self._key(path).kind
        return [copy.deepcopy(item) for key, item in self._objects.items() if key.kind == kind]

    def put(self, path: str, item: Object) -> Object:
        """Create or replace an object as another client would, whatever its version is."""
        key = self._key(f"{path}/{item['metadata']['name']}")
        fresh = {**item, "metadata": {each: value for each, value in item["metadata"].items() if each != "uid"}}
        return self._write(key, copy.deepcopy(fresh), self._objects.get(key))

    def delete_all(self, path: str, selector: str = "") -> None:
        """Delete a collection, as a kubelet that starts deletes the slices of its node."""
        kind = self._key(path).kind
        for key in [key for key, item in self._objects.items() if key.kind == kind and _selected(item, selector)]:
            self._delete(key)

    def end_watches(self, error: ApiError | None = None) -> None:
        """End all watches, as a server that restarts."""
        for queue in self._queues:
            queue.put_nowait(error)

    def compact(self) -> None:
        """Forget the history: a watch that continues from an older version gets 410."""
        self._compacted = self._version
        self._history.clear()

    @property
    def watches(self) -> int:
        """The number of open watches."""
        return len(self._queues)

    # -- the server

    def _bookmark(self) -> Object:
        return {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self._version)}}}

    def _key(self, path: str) -> _Key:
        parts = _PATH.fullmatch(path)
        if parts is None or not self.served:
            raise Unserved(f"404 page not found (404 from {self.origin})")
        return _Key(kind=parts["kind"], namespace=parts["namespace"] or "", name=parts["name"] or "")

    def _answer(self, method: str, path: str, query: dict[str, str], body: Object) -> Object:
        key = self._key(path)
        if method == "POST":
            key = _Key(kind=key.kind, namespace=key.namespace, name=body["metadata"]["name"])
            if key in self._objects:
                raise Conflict(f'{key.kind} "{key.name}" already exists (409)')
            return self._write(key, body, None)
        if not key.name:
            items = [item for each, item in self._objects.items() if each.kind == key.kind]
            chosen = [item for item in items if _selected(item, query.get("fieldSelector", ""))]
            return copy.deepcopy({"items": chosen, "metadata": {"resourceVersion": str(self._version)}})
        old = self._objects.get(key)
        if old is None:
            raise Missing(f'{key.kind} "{key.name}" not found (404)')
        if method == "PUT":
            _check(body["metadata"], old["metadata"])
            return self._write(key, body, old)
        if method == "DELETE":
            _check((body or {}).get("preconditions") or {}, old["metadata"])
            self._delete(key)
            return {"kind": "Status", "status": "Success"}
        return copy.deepcopy(old)

    def _write(self, key: _Key, item: Object, old: Object | None) -> Object:
        self.change(item)
        if key.kind == "resourceslices":
            self._prepare_slice(item, old)
        if key.kind == "deviceclasses" and not self.extended:
            item["spec"].pop("extendedResourceName", None)
        metadata = item["metadata"]
        metadata["uid"] = old["metadata"]["uid"] if old else f"uid-{self._version + 1}"
        metadata["resourceVersion"] = old["metadata"]["resourceVersion"] if old else ""
        if item != old:
            self._version += 1
            metadata["resourceVersion"] = str(self._version)
            self._objects[key] = item
            self._tell("MODIFIED" if old else "ADDED", key.kind, item)
        return copy.deepcopy(item)

    def _prepare_slice(self, item: Object, old: Object | None) -> None:
        spec, before = item["spec"], old["spec"] if old else {}
        devices = spec.get("devices") or []
        tainted = any(device.get("taints") for device in before.get("devices") or ())
        for device in devices:
            if not (self.taints or tainted):
                device.pop("taints", None)
            for taint in device.get("taints") or ():
                taint.setdefault("timeAdded", f"time-{self._version + 1}")
        if not devices:
            spec.pop("devices", None)
        names = [device["name"] for device in devices]
        texts = [value.get("string", "") for device in devices for value in (device.get("attributes") or {}).values()]
        limit = _MAX_TAINTED if any(device.get("taints") for device in devices) else _MAX_DEVICES
        if len(set(names)) < len(names) or len(names) > limit or any(len(text.encode()) > _MAX_TEXT for text in texts):
            raise Refused("ResourceSlice is invalid: spec.devices (422)")
        fixed = ("driver", "nodeName")
        moved = [name for name in fixed if before.get(name, spec.get(name)) != spec.get(name)]
        if moved or before.get("pool", spec["pool"])["name"] != spec["pool"]["name"]:
            raise Refused("ResourceSlice is invalid: spec: field is immutable (422)")

    def _delete(self, key: _Key) -> None:
        self._version += 1
        item = self._objects.pop(key)
        self._tell(
            "DELETED", key.kind, {**item, "metadata": {**item["metadata"], "resourceVersion": str(self._version)}}
        )

    def _tell(self, type_: str, kind: str, item: Object) -> None:
        stored = copy.deepcopy(item)
        self._history.append((self._version, type_, kind, stored))
        for queue, (of_kind, selector) in self._queues.items():
            if of_kind == kind and _selected(stored, selector):
                queue.put_nowait({"type": type_, "object": stored})
        self.stored()


def _selected(item: Object, selector: str) -> bool:
    """Return whether a field selector selects an object; of the fields of the spec those that a slice has."""
    wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
    found = {"metadata.name": item["metadata"]["name"]}
    found |= {f"spec.{name}": item["spec"].get(name, "") for name in ("driver", "nodeName")}
    return wanted.items() <= found.items()


def _check(wanted: Object, stored: Object) -> None:
    """Raise `Conflict` where a precondition, or the version of a whole object, is not that of the stored one."""
    for name in ("uid", "resourceVersion"):
        if wanted.get(name, stored[name]) != stored[name]:
            raise Conflict(f"Operation cannot be fulfilled: the {name} differs (409)")
