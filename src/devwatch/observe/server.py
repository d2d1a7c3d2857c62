"""A small HTTP server for metrics and health."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from devwatch.core.errors import Unavailable

if TYPE_CHECKING:
    from devwatch.observe.health import Health
    from devwatch.observe.metrics import Metrics

_HEAD_LIMIT: Final = 8192
"""Bytes of a request's head at most."""
_CONNECTIONS: Final = 64
_ACCEPT_BATCH: Final = 8
"""Connections that asyncio accepts in one cycle of the loop, since it accepts as many as its `backlog`."""
_MIN_LIFETIME: Final = 0.1
"""Seconds before a connection may be dropped in favour of a newer one."""
_REQUEST_LINE: Final = re.compile(
    rb"(?P<method>[!#$%&'*+.^_`|~0-9A-Za-z-]+) (?:http://[^/? ]*)?(?P<path>[!->@-~]+)(?:\?[!-~]*)? HTTP/1\.[0-9]\r?\n"
)
_FAULTS: Final = {TimeoutError: 408, ValueError: 400, asyncio.IncompleteReadError: 400, asyncio.LimitOverrunError: 431}
Routes = Mapping[str, Callable[[], "Response"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """The response of a route."""

    status: HTTPStatus = HTTPStatus.OK
    body: bytes
    content_type: str = "text/plain; charset=utf-8"

    def encode(self, method: str) -> bytes:
        """Return the HTTP/1.1 message (RFC 9112); the response to HEAD has no body."""
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
    """Return the three routes of the daemon; `clock` is the clock of the times in `health`."""
    return {
        "/metrics": lambda: Response(body=metrics.render(), content_type="text/plain; version=0.0.4; charset=utf-8"),
        "/healthz": lambda: _verdict(health.healthz(clock())),
        "/readyz": lambda: _verdict(health.readyz(clock())),
    }


def parse_listen(text: str) -> tuple[str, int] | None:
    """Parse `HOST:PORT` (an IPv6 address in brackets) into host and port, `off` into None. Raises `ValueError` for anything else."""
    if text == "off":
        return None
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([^\s:\[\]]+)):([0-9]{1,5})", text)
    if match is None or int(match[3]) >= 1 << 16:
        raise ValueError(f"{text!r} is not an address to listen on (HOST:PORT, [IPV6]:PORT, port 0 to 65535; or off)")
    return match[1] or match[2], int(match[3])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Client:
    writer: asyncio.StreamWriter
    since: float
    """When it was accepted, by the clock of the event loop."""


def _reason(error: OSError | UnicodeError) -> str:
    """Return why an address cannot be listened on, in one line."""
    if isinstance(error, UnicodeError):  # its own text is about codecs and labels
        return "not the name of a host"
    # The system's text alone: asyncio puts the address in front of it, as a Python tuple, and from 3.13 on the errno too.
    known = error.errno is not None and error.errno > 0
    return os.strerror(error.errno or 0).lower() if known else error.strerror or str(error)


class Server:
    """An HTTP server for a few GET routes, with at most 64 connections and one response each; a malformed request gets an error status.

    A further connection replaces the oldest, unless that is less than 0.1 s old: then the new one is closed. A client has `patience`
    seconds to send its request, and as many to read the response.
    """

    def __init__(self, routes: Routes, *, patience: float = 5.0) -> None:
        """Prepare to serve `routes`, which are by path."""
        self._routes = routes
        self._patience = patience
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.Task[None], _Client] = {}

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen and return the address (port 0 takes a free port). Raises `Unavailable` where the address cannot be used."""
        try:
            self._server = await self._listen(host, port)
            for each in self._server.sockets:
                # asyncio accepts a whole backlog in one cycle of the loop. In small batches, short-lived connections have ended before
                # their places are needed, while the others wait in the kernel's queue, which is made longer here than the batch.
                with each.dup() as twin:
                    twin.listen(_CONNECTIONS)
        except (OSError, UnicodeError) as error:
            raise Unavailable(f"cannot listen on port {port} of {host}: {_reason(error)} (see --listen)") from error
        address: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        return address

    async def _listen(self, host: str, port: int) -> asyncio.Server:
        """Listen on all addresses of a host, or on its IPv4 addresses alone where /etc/hosts has an IPv6 address and IPv6 is disabled."""
        start = functools.partial(
            asyncio.start_server, self._accept, host, port, limit=_HEAD_LIMIT, backlog=_ACCEPT_BATCH
        )
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
            server.close()  # no wait_closed(), which waits for clients only since Python 3.12; the tasks are enough
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        # Without a server: accepted before close(), and passed on after it.
        if self._server is None or not self._make_room(loop.time()):
            writer.transport.abort()
            return
        task = loop.create_task(self._serve(reader, writer))
        self._clients[task] = _Client(writer=writer, since=loop.time())
        # Not in a finally of the task: a task that is cancelled before its first step runs none of its code.
        task.add_done_callback(self._drop_client)

    def _make_room(self, now: float) -> bool:
        """Return whether one more connection can be served, after dropping the oldest where there are too many.

        A young connection is not dropped: a burst must not cut off the kubelet's probe before its request was read. An old one is: a
        client that keeps all connections open must not make the probe fail, and the kubelet restart the daemon.
        """
        if len(self._clients) < _CONNECTIONS:
            return True
        oldest, client = next(iter(self._clients.items()))
        if now - client.since <= _MIN_LIFETIME:
            return False
        self._drop_client(oldest)
        oldest.cancel()
        return True

    def _drop_client(self, task: asyncio.Task[None]) -> None:
        # In a variable: a writer that is collected during the call warns that it was not closed.
        client = self._clients.pop(task, None)
        if client is not None:
            client.writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # the client is gone, or too slow to read the response (TimeoutError)
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
    """Return method and path. The head is read line by line, so that anything else than a request is refused at its first bad line."""
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
    # Closing with unread input resets the connection, and the client could lose the response (RFC 9112, 9.6).
    with contextlib.suppress(asyncio.IncompleteReadError):
        await reader.readexactly(8 * _HEAD_LIMIT)
    writer.close()
    await writer.wait_closed()
