"""An HTTP server on loopback that answers by a script, and the kubeconfig that leads to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

TOKEN = "SECRET-token"  # noqa: S105 - of no server


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the server was sent."""

    line: str
    headers: Mapping[str, str]
    body: bytes
    user: str | None
    """The name in the client's certificate."""


def answer(status: int, body: object, **headers: str) -> bytes:
    """Return a whole response with this JSON (or these bytes) in it."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Status\r\nContent-Length: {len(content)}\r\n{fields}\r\n".encode() + content


def refusal(status: int, message: str, **more: object) -> bytes:
    """Return a response as the API server refuses."""
    return answer(status, {"kind": "Status", "status": "Failure", "message": message, "code": status, **more})


@dataclass(slots=True, kw_only=True)
class Site:
    """A server that gives its answers in order, the last one for ever."""

    answers: list[Any]
    requests: list[Request] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    eager: bool = False
    """Answer before there is a request, as one that understands none."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until it ends or breaks."""
        try:
            if self.eager:
                writer.write(self.answers[0])
            while await self._answer(reader, writer):
                pass
        except (OSError, EOFError):
            pass  # the client has gone

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether another may follow on this connection."""
        self.requests.append(await _request(reader, writer))
        self.asked.set()
        given = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(given):
            await given(writer)
            return False
        writer.write(given)
        return b"Content-Length" in given


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    line, *fields = head.strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in fields)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    certificate = writer.get_extra_info("peercert") or {}
    names = {name: value for part in certificate.get("subject", ()) for name, value in part}
    return Request(line=line, headers=headers, body=body, user=names.get("commonName"))


@contextlib.asynccontextmanager
async def site(*answers: Any, tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:  # noqa: ANN401 - bytes, or what writes them
    """Run a server on a free port."""
    running, tasks = Site(answers=list(answers)), set[asyncio.Task[None]]()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(running.serve(reader, writer))
        # Not by the task itself: one that is cancelled before its first step never comes to it.
        task.add_done_callback(lambda _: writer.close())
        tasks.add(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls, limit=1 << 20)
    running.port = server.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        for _ in range(
            3
        ):  # from accept(2) to the writer: asyncio loses a connection that comes to it after the server has closed
            await asyncio.sleep(0)
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def kubeconfig(
    folder: Path,
    server: str,
    *,
    user: Mapping[str, object] | None = None,
    cluster: Mapping[str, object] | None = None,
    name: str = "kubeconfig",
) -> Path:
    """Write a kubeconfig, by default with a token, and return its path."""
    path = folder / name
    content = {
        "clusters": [{"name": "c", "cluster": {"server": server, **(cluster or {})}}],
        "users": [{"name": "u", "user": {"token": TOKEN} if user is None else user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(content))
    return path
