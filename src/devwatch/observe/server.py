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
from typing import TYPE_CHECKING, Final, cast

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
    rb"(?P<method>[!#$%&'*+.^_`|~0-9A-Za-z-]+) (?:http://[^/? ]*)?(?P<path>[!->@-~]+)(?:\?[!-~]*)? HTTP/1\.[0-9]\r?"
)
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
        self.patience = patience
        self._server: asyncio.Server | None = None
        self._clients: dict[_Client, float] = {}
        """When each client was accepted, the oldest first."""

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
        loop = asyncio.get_running_loop()
        start = functools.partial(loop.create_server, lambda: _Client(self), host, port, backlog=_ACCEPT_BATCH)
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
        server, self._server = self._server, None
        if server is not None:
            server.close()  # no wait_closed(), which waits for clients only since Python 3.12
        for client in list(self._clients):
            self._drop(client)
        await asyncio.sleep(0)  # the transports close their sockets in the next cycle of the loop

    def admit(self, client: _Client) -> bool:
        """Return whether one more client can be served, after dropping the oldest where there are too many.

        A young connection is not dropped: a burst must not cut off the kubelet's probe before its request was read. An old one is: a
        client that keeps all connections open must not make the probe fail, and the kubelet restart the daemon.
        """
        if self._server is None:
            return False  # accepted before close(), and passed on after it
        if len(self._clients) >= _CONNECTIONS:
            oldest, since = next(iter(self._clients.items()))
            if client.since - since <= _MIN_LIFETIME:
                return False
            self._drop(oldest)
        self._clients[client] = client.since
        return True

    def forget(self, client: _Client) -> None:
        """Give the place of a client to the next one."""
        self._clients.pop(client, None)

    def _drop(self, client: _Client) -> None:
        self.forget(client)
        client.transport.abort()

    def answer(self, method: str, path: str) -> bytes:
        """Return the message that answers a request."""
        if method not in ("GET", "HEAD"):
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED).encode(method)
        return self._routes.get(path, lambda: _plain(HTTPStatus.NOT_FOUND))().encode(method)


class _Client(asyncio.Protocol):
    """A client from its connection to the end of its response.

    Callbacks take fewer cycles of the loop than a task with streams, and the kubelet's probes are much of what an idle daemon does. The
    head is read line by line, so that anything else than a request is refused at its first bad line.
    """

    def __init__(self, server: Server) -> None:
        self._server, self._loop = server, asyncio.get_running_loop()
        self.since = self._loop.time()
        """When it was accepted, by the clock of the event loop."""
        self._line, self._size = b"", 0
        """The beginning of a line, and the bytes of the lines before."""
        self._request: re.Match[bytes] | None = None
        self._answered, self._unread = False, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._timer = self._loop.call_later(self._server.patience, self._refuse, HTTPStatus.REQUEST_TIMEOUT)
        if not self._server.admit(self):
            self.transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        self._timer.cancel()
        self._server.forget(self)

    def data_received(self, data: bytes) -> None:
        """Answer at the end of the head, or at its first fault. An exception of a route closes the connection, and asyncio reports it."""
        if self._answered:
            self._discard(len(data))
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._read_line(line)
            if self._answered:
                return
        if self._size + len(self._line) > _HEAD_LIMIT + len(b"\r"):
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def eof_received(self) -> None:
        """Refuse an unfinished request. asyncio closes the connection once the response is written."""
        if not self._answered:
            self._refuse(HTTPStatus.BAD_REQUEST)

    def _discard(self, size: int) -> None:
        """Ignore up to 64 KiB after the head. Closing with unread input resets the connection, and the client could lose the response."""
        self._unread += size
        if self._unread > 8 * _HEAD_LIMIT:
            self.transport.close()

    def _read_line(self, line: bytes) -> None:
        """Read one line of the head, and answer if it is the last one or at fault. The empty line at the end does not count as content."""
        before, self._request = self._request, self._request or _REQUEST_LINE.fullmatch(line)
        if before is not None and not line.strip():
            self._deliver(self._server.answer(before["method"].decode("ascii"), before["path"].decode("ascii")))
            return
        self._size += len(line) + len(b"\n")
        if self._size > _HEAD_LIMIT:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._request is None or (before is not None and b":" not in line):
            self._refuse(HTTPStatus.BAD_REQUEST)

    def _refuse(self, status: HTTPStatus) -> None:
        self._deliver(_plain(status).encode("GET"))

    def _deliver(self, answer: bytes) -> None:
        self._answered = True
        self._timer.cancel()
        self._timer = self._loop.call_later(self._server.patience, self.transport.abort)
        self.transport.write(answer)
        with contextlib.suppress(OSError):  # the client is gone, as the transport is about to notice
            self.transport.write_eof()
