"""What devwatch tells about itself: metrics, health, and the small HTTP server that answers both."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

from devwatch.errors import Unavailable

_ACTIONS: Final = ("add", "remove", "change", "move", "online", "offline", "bind", "unbind")  # kobject_actions, Linux
_TRIGGERS: Final = ("uevent", "sweep", "resync", "node", "retry", "config", "start")
_PATCHES: Final = ("changed", "unchanged", "refused", "failed")
_EVICTIONS: Final = ("evicted", "refused", "failed", "ambiguous", "bare", "spared")
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_DIFFERENCE_LIMIT: Final = 60
_HEAD_LIMIT: Final = 8192
_CONNECTIONS: Final = 64
_BATCH: Final = 8
_HOLD: Final = 0.1
_REQUEST_LINE: Final = re.compile(
    rb"(?P<method>[!#$%&'*+.^_`|~0-9A-Za-z-]+) (?:http://[^/? ]*)?(?P<path>[!->@-~]+)(?:\?[!-~]*)? HTTP/1\.[0-9]\r?\n"
)
_FAULTS: Final = {TimeoutError: 408, ValueError: 400, asyncio.IncompleteReadError: 400, asyncio.LimitOverrunError: 431}
Routes = Mapping[str, Callable[[], "Response"]]


class _Registry(CollectorRegistry):
    """A registry without the `_created` series, which prometheus_client can only switch off for a whole process."""

    def collect(self) -> Iterable[Metric]:
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class Metrics:
    """Every metric of devwatch, from 0 on where its label values are known. No device string is ever a label."""

    def __init__(self, version: str) -> None:
        """Register all of them in a registry of their own."""
        self._registry = _Registry()
        self._present: Mapping[str, int] = {}
        self._shown: Mapping[str, int] = {}
        self._held_up: Mapping[str, int] = {}
        self._devices = self._gauge("devices", "Devices present.", "resource")
        self._capacity = self._gauge("capacity", "Capacity as last observed on the Node.", "resource")
        self._held = self._gauge(
            "held",
            "1 while a count is held up by what is unknown: a key of a device, or what an uncertain look did not find.",
            "resource",
        )
        self._uevents = self._counter("uevents", "Uevents read.", "action", (*_ACTIONS, "other"))
        self.reconciles = self._counter("reconciles", "Reconciles, by what woke them.", "trigger", _TRIGGERS)
        self.patches = self._counter("patches", "PATCH requests.", "outcome", _PATCHES)
        self.patch_duration = self._histogram("patch_duration_seconds", "PATCH sent to answered.")
        self.detection_to_patch = self._histogram("detection_to_patch_seconds", "Uevent read to PATCH answered.")
        self.drift_repairs = self._counter("drift_repairs", "Foreign writes undone.")
        self.uncertain_looks = self._counter("uncertain_looks", "Looks that could not see everything.")
        self.monitor_up = self._gauge("monitor_up", "1 while uevents can be heard.")
        self.monitor_overflows = self._counter("monitor_overflows", "Times the kernel dropped uevents.")
        self.evictions = self._counter("evictions", "Evictions, and pods spared.", "outcome", _EVICTIONS)
        self.config_reloads = self._counter("config_reloads", "Config reads.", "outcome", ("reloaded", "rejected"))
        self.last_success = self._gauge("last_success_timestamp_seconds", "Unix time of the last accepted PATCH.")
        self._gauge("build_info", "Always 1.", "version").labels(version).set(1)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"devwatch_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"devwatch_{name}", text, buckets=_BUCKETS, registry=self._registry)

    def _counter(self, name: str, text: str, label: str = "", values: Iterable[str] = ()) -> Counter:
        counter = Counter(f"devwatch_{name}_total", text, [label] if label else [], registry=self._registry)
        for value in values:
            counter.labels(value)
        return counter

    def uevent(self, action: str) -> None:
        """Count one uevent. What is no action of the kernel counts as `other`: the text comes from outside."""
        self._uevents.labels(action if action in _ACTIONS else "other").inc()

    def set_devices(self, devices: Mapping[str, int]) -> None:
        """Replace the devices of all resources: one that is not in `devices` disappears."""
        self._present = _replace(self._devices, devices, self._present)

    def set_capacity(self, capacity: Mapping[str, int]) -> None:
        """Replace the capacity of all resources: one that is not in `capacity` disappears."""
        self._shown = _replace(self._capacity, capacity, self._shown)

    def set_held(self, held: Mapping[str, int]) -> None:
        """Replace whether the count is held up of all resources: one that is not in `held` disappears."""
        self._held_up = _replace(self._held, held, self._held_up)

    def render(self) -> bytes:
        """Return everything in the Prometheus text format 0.0.4."""
        return generate_latest(self._registry)


def _replace(gauge: Gauge, values: Mapping[str, int], held: Mapping[str, int]) -> Mapping[str, int]:
    """Show these values and return them; most looks find what the one before found."""
    if values != held:
        gauge.clear()
        for resource, value in values.items():
            gauge.labels(resource).set(value)
    return dict(values)


@dataclass(slots=True, kw_only=True)
class Health:
    """What `/healthz` and `/readyz` answer. All times are seconds of one monotonic clock.

    Each field is a fact that its owner keeps true; a text is one line with the words of whom it comes from.
    The answers come from the loop they speak of: a blocked one answers nothing at all.
    """

    sweep: float
    last_turn: float
    """When the loop last turned, or started."""
    waiting: str | None = None
    """Who else holds the node."""
    missing: str | None = None
    """What the API server says of a Node that is not there."""
    refused: str = ""
    """What of the Node is refused, and why; empty where nothing is."""
    uncertain: str | None = None
    """Why the last look could not see everything."""
    blocked: str = ""
    """Where a directory is in the place of a device, with the cure; empty where none is."""
    shown: bool = False
    """Whether the Node has been seen to show what is present."""
    differs: str = ""
    """In what the Node differs from what is present; empty where it does not."""
    differs_since: float | None = None
    """Since when it differs, and should not."""
    error: str = ""
    """Why the last request failed; empty after one that did not."""

    def healthz(self, now: float) -> tuple[bool, str]:
        """Return whether the loop turns, and one line that says why not."""
        if self.waiting is not None:  # it has nothing to turn for, and is as healthy as can be
            return True, "ok"
        age, limit = now - self.last_turn, max(3 * self.sweep, 30)
        return age <= limit, "ok" if age <= limit else f"the loop has not turned for {age:.0f} s (limit {limit:.0f} s)"

    def readyz(self, now: float) -> tuple[bool, str]:
        """Return whether what the Node shows can be relied on, and one line that says why not."""
        reason = next(self._faults(now), None)
        line = "".join(char if char.isprintable() else " " for char in reason or "ok")
        return reason is None, line

    def _faults(self, now: float) -> Iterator[str]:
        """Yield why the Node cannot be relied on; what explains the others comes first."""
        if self.waiting is not None:
            yield f"another daemon holds the node: {self.waiting}"
        if self.missing is not None:
            yield f"the Node is missing: {self.missing}"
        if self.refused:
            yield self.refused
        if self.uncertain is not None:
            yield f"the devices cannot be seen for certain: {self.uncertain}"
        if self.blocked:
            yield self.blocked
        why = "".join(f": {text}" for text in (self.differs, self.error) if text)
        if not self.shown:
            yield f"the Node has not been seen to show what is present{why}"
        late = 0 if self.differs_since is None else now - self.differs_since
        if late >= _DIFFERENCE_LIMIT:
            yield f"the Node has not shown what is present for {late:.0f} s{why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What a route answers."""

    status: HTTPStatus = HTTPStatus.OK
    body: bytes
    content_type: str = "text/plain; charset=utf-8"

    def encode(self, method: str) -> bytes:
        """Return the message of RFC 9112; the answer to HEAD has no body."""
        allow = "Allow: GET, HEAD\r\n" if self.status == HTTPStatus.METHOD_NOT_ALLOWED else ""
        head = (
            f"HTTP/1.1 {self.status:d} {self.status.phrase}\r\nConnection: close\r\n{allow}"
            f"Content-Type: {self.content_type}\r\nContent-Length: {len(self.body)}\r\n\r\n"
        )
        return head.encode("ascii") + (b"" if method == "HEAD" else self.body)


def _plain(status: HTTPStatus, text: str = "") -> Response:
    return Response(status=status, body=f"{text or status.phrase}\n".encode())


def _verdict(verdict: tuple[bool, str]) -> Response:
    return _plain(HTTPStatus.OK if verdict[0] else HTTPStatus.SERVICE_UNAVAILABLE, verdict[1])


def routes(metrics: Metrics, health: Health, clock: Callable[[], float]) -> Routes:
    """Return the three routes of the daemon; `clock` is the one that `health` is told the time of."""
    return {
        "/metrics": lambda: Response(body=metrics.render(), content_type="text/plain; version=0.0.4; charset=utf-8"),
        "/healthz": lambda: _verdict(health.healthz(clock())),
        "/readyz": lambda: _verdict(health.readyz(clock())),
    }


def parse_listen(text: str) -> tuple[str, int] | None:
    """Return host and port of `HOST:PORT` (an IPv6 address in brackets), None for `off`; else `ValueError`."""
    if text == "off":
        return None
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([^\s:\[\]]+)):([0-9]{1,5})", text)
    if match is None or int(match[3]) >= 1 << 16:
        raise ValueError(f"{text!r} is no address to listen on (HOST:PORT, [IPV6]:PORT, port 0 to 65535; or off)")
    return match[1] or match[2], int(match[3])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Client:
    writer: asyncio.StreamWriter
    since: float
    """When it was accepted, by the clock of the event loop."""


def _reason(error: OSError | UnicodeError) -> str:
    """Return why an address cannot be had, as one line of the system's."""
    if isinstance(error, UnicodeError):  # what encodes a name for the resolver speaks of labels and codecs
        return "not the name of a host"
    # asyncio puts the address in front of the text, as a Python tuple, and from 3.13 on the number too.
    known = error.errno is not None and error.errno > 0
    return os.strerror(error.errno or 0).lower() if known else error.strerror or str(error)


class Server:
    """An HTTP server for a few GET routes: 64 connections at once, one answer each, garbage is answered or closed.

    A further connection takes the place of the oldest, unless that one came within the last 0.1 s: then it is closed itself. A client has
    `patience` seconds to send its request and as many to take the answer.
    """

    def __init__(self, routes: Routes, *, patience: float = 5.0) -> None:
        """Serve `routes`, by path, once started."""
        self._routes = routes
        self._patience = patience
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.Task[None], _Client] = {}

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen and return the address taken (port 0 takes a free one); `Unavailable` where it cannot be had."""
        try:
            self._server = await self._listen(host, port)
            for each in self._server.sockets:
                # asyncio accepts a whole backlog in one turn of the loop. In small batches those who do not stay are gone
                # before their places are needed; the others wait in the kernel's queue, which is to be longer than that.
                with each.dup() as twin:
                    twin.listen(_CONNECTIONS)
        except (OSError, UnicodeError) as error:
            raise Unavailable(f"cannot listen on port {port} of {host}: {_reason(error)} (see --listen)") from error
        address: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        return address

    async def _listen(self, host: str, port: int) -> asyncio.Server:
        """Take all addresses of a host; where IPv6 is switched off, and /etc/hosts has an address of it all the same, those of IPv4."""
        start = functools.partial(asyncio.start_server, self._accept, host, port, limit=_HEAD_LIMIT, backlog=_BATCH)
        try:
            return await start()
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            with contextlib.suppress(OSError):
                return await start(family=socket.AF_INET)
            raise

    async def close(self) -> None:
        """Stop listening and drop every client, however slow it is."""
        server, self._server, clients = self._server, None, list(self._clients)
        if server is not None:
            server.close()  # its wait_closed() waits for clients from Python 3.12 on only; the tasks are enough
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        # Without a server it was accepted before close(), and handed over after it.
        if self._server is None or not self._find_place(loop.time()):
            writer.transport.abort()
            return
        task = loop.create_task(self._serve(reader, writer))
        self._clients[task] = _Client(writer=writer, since=loop.time())
        # Not a finally of the task: one cancelled before its first step runs none of its code.
        task.add_done_callback(self._dismiss)

    def _find_place(self, now: float) -> bool:
        """Return whether one more is served; where there is no place, the oldest gives up its own, but for one that only just came."""
        if len(self._clients) < _CONNECTIONS:
            return True
        oldest, client = next(iter(self._clients.items()))
        # A burst must not cut off the kubelet's probe before its request was read.
        if now - client.since <= _HOLD:
            return False
        # Nor may whoever keeps all connections open make it fail, and have the daemon restarted.
        self._dismiss(oldest)
        oldest.cancel()
        return True

    def _dismiss(self, task: asyncio.Task[None]) -> None:
        # A name of its own: a writer that does not outlive the call complains of being unclosed.
        client = self._clients.pop(task, None)
        if client is not None:
            client.writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # the client is gone, or too slow to take the answer (TimeoutError)
            answer = await self._answer(reader)
            async with asyncio.timeout(self._patience):
                await _deliver(answer, reader, writer)

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(self._patience):
                method, path = await _read_request(reader)
        except (TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            return _plain(HTTPStatus(_FAULTS[type(error)])).encode("GET")
        if method not in ("GET", "HEAD"):
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED).encode(method)
        return self._routes.get(path, lambda: _plain(HTTPStatus.NOT_FOUND))().encode(method)


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, str]:
    """Return method and path. Line by line, so that what is no request is refused at its first bad line."""
    line = await reader.readuntil(b"\n")
    size, request = len(line), _REQUEST_LINE.fullmatch(line)
    while request is not None and (line := await reader.readuntil(b"\n")).strip():
        size += len(line)
        if size > _HEAD_LIMIT:
            raise asyncio.LimitOverrunError("the head is too long", size)
        request = request if b":" in line else None
    if request is None:
        raise ValueError("not a request of HTTP/1")
    return request["method"].decode("ascii"), request["path"].decode("ascii")


async def _deliver(answer: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(answer)
    writer.write_eof()
    # A close with unread input would reset the connection, and the client could lose the answer (RFC 9112, 9.6).
    with contextlib.suppress(asyncio.IncompleteReadError):
        await reader.readexactly(8 * _HEAD_LIMIT)
    writer.close()
    await writer.wait_closed()
