"""What the connections of the kubelet leave behind."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import pytest
from grpclib.client import UnaryUnaryMethod
from grpclib.exceptions import GRPCError
from grpclib.protocol import Connection

from devwatch.kubelet import kubelet_pb2
from devwatch.kubelet.protocol import KubeletChannel, KubeletServer
from support.quiet import quiet

if TYPE_CHECKING:
    from pathlib import Path


async def call_once(path: Path) -> None:
    """Connect, call a method that is not there, and close the connection."""
    channel = KubeletChannel(path=str(path))
    try:
        with pytest.raises(GRPCError, match="UNKNOWN"):
            await UnaryUnaryMethod(channel, "/no/Method", kubelet_pb2.Empty, kubelet_pb2.Empty)(kubelet_pb2.Empty())
    finally:
        channel.close()
    await asyncio.sleep(0.1)


@quiet
async def test_a_connection_that_has_ended_is_forgotten_with_the_next_one(tmp_path: Path) -> None:
    """A kubelet that starts again a thousand times leaves no more behind than one that starts once."""
    server = KubeletServer([])
    await server.start(path=str(tmp_path / "socket"))
    for _ in range(5):
        await call_once(tmp_path / "socket")
    gc.collect()
    kept = [each for each in gc.get_objects() if isinstance(each, Connection)]
    server.close()
    await server.wait_closed()
    assert len(kept) <= 1
