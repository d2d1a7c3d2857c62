"""A TCP proxy in front of an API server that passes everything on, or fails in the ways in which networks and middleboxes do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from system.apiserver import LOOPBACK

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

CHUNK = 65536
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with a timeout of 0: close() sends RST and drops what is not sent yet (socket(7))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What becomes of a connection; the request reaches the server in any case unless the fault `speaks` for it or is `deaf`."""

    name: str
    deaf: bool = False
    """Takes the connection and what is sent, and says nothing."""
    speaks: bytes | None = None
    """Answers this in place of the server, and ends the connection."""
    delay: float = 0.0
    """Seconds before each part of an answer."""
    part: int = CHUNK
    """Bytes of a part."""
    keeps: int | None = None
    """Bytes of the answers that get through before the connection ends."""
    reset: bool = False
    """Ends it with RST instead of FIN."""


def _html(text: str) -> bytes:
    body = f"<html><body>{text}</body></html>".encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def answered(status: int, content: object) -> bytes:
    """Return a whole answer of an API server."""
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


NONE = Fault(name="none")
SLOW = Fault(name="slow", delay=0.2)
HOLE = Fault(name="hole", deaf=True)
DRIP = Fault(name="drip", delay=1.0, part=64)
LOST = Fault(name="lost", keeps=0)
"""The server does what is asked, and its answer is lost."""
TRUNCATED = Fault(name="truncated", keeps=600)
"""The answer ends in the middle of its body: the head of an answer is some 400 bytes, a Node some thousand."""
RESET = Fault(name="reset", keeps=600, reset=True)
GARBAGE = Fault(name="garbage", speaks=random.Random(7).randbytes(2000))  # noqa: S311 - any bytes will do, the same each time
PAGE = Fault(name="page", speaks=_html("Please log in"))
"""What a captive portal or a load balancer answers."""


class Proxy:
    """Listens on loopback within its context and passes connections on to `target`; `fail` says what goes wrong from then on.

    With `tls`, which is asked anew for each connection, it takes plain HTTP and speaks TLS to the target, so that faults hit
    the answers themselves and not their encryption.
    """

    def __init__(self, target: str, *, tls: Callable[[], ssl.SSLContext] | None = None) -> None:
        """Listen on a free port."""
        address = urlsplit(target)
        self._target = (str(address.hostname), int(address.port or 443))
        self._tls = tls
        self._fault = NONE
        self._socket = socket.create_server((LOOPBACK, 0))
        self.url = f"{'http' if tls else 'https'}://{LOOPBACK}:{self._socket.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self) -> Self:
        """Take connections from now on."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every connection."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()

    def fail(self, fault: Fault) -> None:
        """Have this happen to every connection from now on; those that are open end."""
        asyncio.run_coroutine_threadsafe(self._change(fault), self._loop).result()

    async def _change(self, fault: Fault) -> None:
        self._fault = fault
        await self._hang_up()

    async def _hang_up(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, sock=self._socket)
        await self._over.wait()
        server.close()
        await self._hang_up()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self._fault
        task = asyncio.get_running_loop().create_task(self._carry(fault, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Not within the task: one that is cancelled before its first step never gets there.
        task.add_done_callback(lambda _: _end(writer, reset=fault.reset))

    async def _carry(self, fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await self._handle(fault, reader, writer)

    async def _handle(self, fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if fault.deaf:
            while await reader.read(CHUNK):
                pass
        elif fault.speaks is not None:
            await reader.read(CHUNK)
            writer.write(fault.speaks)
            await writer.drain()
        else:
            await self._between(fault, reader, writer)

    async def _between(self, fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target, ssl=self._tls() if self._tls else None)
        there = asyncio.ensure_future(_pump(reader, far_writer, NONE))
        back = asyncio.ensure_future(_pump(far_reader, writer, fault))
        try:
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        finally:
            far_writer.transport.abort()  # before the wait, which may be cancelled
            for pump in (there, back):
                pump.cancel()
            await asyncio.gather(there, back, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault) -> None:
    """Carry one direction until its end, or as far as the fault lets it."""
    left = fault.keeps
    while data := await reader.read(fault.part):
        if fault.delay:
            await asyncio.sleep(fault.delay)
        writer.write(data[:left])
        await writer.drain()
        left = None if left is None else left - len(data)
        if left is not None and left <= 0:
            return


def _end(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if reset:
        with contextlib.suppress(OSError):  # it has ended by itself
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()
    else:
        writer.close()
