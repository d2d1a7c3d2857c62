"""Run another program and capture its output, without leaving any of its processes behind."""

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
    """A running program: its output so far, whether it has exited, and whether all of its pipes are closed."""

    def __init__(self) -> None:
        self.printed = {1: bytearray(), 2: bytearray()}
        self.exited = asyncio.Event()
        self.closed = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.printed[fd] += data

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.closed.set()


async def run(command: Sequence[str], environ: Mapping[str, str]) -> tuple[int, bytes, bytes]:
    """Run a program to its end and return its exit status, standard output and standard error.

    Its standard input is empty and it has no terminal. If the caller is cancelled, the program and all processes that it has started
    are killed first, except those that have left its session (setsid(2)). Raises `OSError` where it cannot be started.
    """
    starting = asyncio.ensure_future(_start(command, environ))
    try:
        # Shielded: cancelled half-way, asyncio itself would kill the program but not its child processes.
        transport, running = await asyncio.shield(starting)
        await running.closed.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):  # it was never started, or runs as another user
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
        with contextlib.suppress(ProcessLookupError):  # the whole group has ended, and another process has the pipes
            os.killpg(transport.get_pid(), signal.SIGKILL)
        await running.exited.wait()
    finally:
        transport.close()  # not earlier: it would reap the process, and the loop would miss the exit status
    await running.closed.wait()
