"""What ended connections and calls of the kubelet leave behind."""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from grpclib.client import UnaryUnaryMethod
from grpclib.exceptions import GRPCError
from grpclib.protocol import Connection, Stream

from devwatch.kubelet import kubelet_pb2
from devwatch.kubelet.protocol import KubeletChannel, KubeletServer
from support.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def server(path: Path) -> AsyncIterator[None]:
    """Serve no method at this socket."""
    running = KubeletServer([])
    await running.start(path=str(path))
    try:
        yield
    finally:
        running.close()
        await running.wait_closed()


async def call(path: Path, *, times: int = 1) -> None:
    """Connect, call a method that is not there so many times, and close the connection."""
    channel = KubeletChannel(path=str(path))
    for _ in range(times):
        with pytest.raises(GRPCError, match="UNKNOWN"):
            await UnaryUnaryMethod(channel, "/no/Method", kubelet_pb2.Empty, kubelet_pb2.Empty)(kubelet_pb2.Empty())
        await asyncio.sleep(0.1)
    channel.close()
    await asyncio.sleep(0.1)


def left(kind: type) -> int:
    """Return how many objects of a kind there are."""
    gc.collect()
    return sum(isinstance(each, kind) for each in gc.get_objects())


@quiet
async def test_a_connection_that_has_ended_is_forgotten_with_the_next_one(tmp_path: Path) -> None:
    """A kubelet that starts again a thousand times leaves no more behind than one that starts once."""
    before = left(Connection)
    async with server(tmp_path / "socket"):
        for _ in range(5):
            await call(tmp_path / "socket")
        assert left(Connection) <= before + 1


@quiet
async def test_a_call_that_has_ended_is_forgotten_with_the_next_one(tmp_path: Path) -> None:
    """Nor do a thousand allocations leave more than one."""
    before = left(Stream)
    async with server(tmp_path / "socket"):
        await call(tmp_path / "socket", times=5)
        assert left(Stream) <= before + 1
