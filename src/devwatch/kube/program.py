"""Run another program for what it prints, and leave nothing of it behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class _Running(asyncio.SubprocessProtocol):
    """A program that runs: what it has printed so far, whether it has exited, and whether nobody holds its pipes any more."""

    def __init__(self) -> None:
        self.printed = {1: bytearray(), 2: bytearray()}
        self.exited = asyncio.Event()
        self.over = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.printed[fd] += data

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.over.set()


async def run(command: Sequence[str], environ: Mapping[str, str]) -> tuple[int, bytes, bytes]:
    """Run a program to its end and return its exit status, standard output and standard error.

    Its standard input is empty and it has no terminal. Where the caller is cancelled, it and all that it has started are killed
    before the cancellation goes on; only what has left its session (setsid(2)) is let go. Raises `OSError` where it cannot be started.
    """
    starting = asyncio.ensure_future(_start(command, environ))
    try:
        # Cancelled half-way, asyncio itself would kill the program alone, and not what that has started.
        transport, running = await asyncio.shield(starting)
        await running.over.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):  # it was never started, or has become another user's
            await _kill(*await starting)
        raise
    transport.close()
    return transport.get_returncode() or 0, bytes(running.printed[1]), bytes(running.printed[2])


async def _start(command: Sequence[str], environ: Mapping[str, str]) -> tuple[asyncio.SubprocessTransport, _Running]:
    return await asyncio.get_running_loop().subprocess_exec(
        _Running, *command, env=dict(environ), stdin=DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True
    )


async def _kill(transport: asyncio.SubprocessTransport, running: _Running) -> None:
    try:
        with contextlib.suppress(ProcessLookupError):  # all have ended, and the pipes are with somebody else
            os.killpg(transport.get_pid(), signal.SIGKILL)
        await running.exited.wait()
    finally:
        transport.close()  # not before: it would take the exit status away from the loop
    await running.over.wait()
