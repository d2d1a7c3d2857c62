"""What devwatch tells about itself: metrics, health, and the small HTTP server that answers both."""

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
_CONNECTIONS: Final = 64
_BATCH: Final = 8
_HOLD: Final = 0.1
_REQUEST_LINE: Final = re.compile(
    rb"(?P<method>[!#$%&'*+.^_`|~0-9A-Za-z-]+) (?:http://[^/? ]*)?(?P<path>[!->@-~]+)(?:\?[!-~]*)? HTTP/1\.[0-9]\r?\n"
)
_FAULTS: Final = {TimeoutError: 408, ValueError: 400, asyncio.IncompleteReadError: 400, asyncio.LimitOverrunError: 431}
Routes = Mapping[str, Callable[[], "Response"]]


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
