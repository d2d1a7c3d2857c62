"""Read files that may never answer: a pipe without a writer, a mount whose server is away."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import time
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from devwatch.config.resolver import Resolver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO
    from pathlib import Path

T = TypeVar("T")

PATIENCE: Final = 5.0
"""Seconds for a file to give all of its content."""
MARGIN: Final = 1.0
"""Seconds more for the thread that reads it: what the thread knows is more precise than its silence."""
_PIECE: Final = 65536
_OWN: Final = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
"""What the caller itself has opened: `devwatch check <(helm template ...)` takes as long as helm does."""


def patience_for(path: str | Path) -> float | None:
    """Return for how many seconds to wait for a file, None for a descriptor of the caller's own, which takes as long as it takes."""
    return None if str(path).startswith(_OWN) else PATIENCE


def read(path: str | Path, limit: int, *, patience: float | None = PATIENCE) -> bytes:
    """Return the first `limit` bytes of a file; a pipe is read until its writers have closed it.

    Raises `OSError`, also where a pipe has not ended after `patience` seconds. A file system that does not answer blocks the
    thread for good, so call it in one, by `within` or a `Reader`.
    """
    with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
        return b"".join(_pieces(file, limit, patience))


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _pieces(file: FileIO, limit: int, patience: float | None) -> Iterator[bytes]:
    """Yield the content in pieces. Raises `TimeoutError` after `patience` seconds."""
    ready, end = select.poll(), None if patience is None else time.monotonic() + patience
    ready.register(file, select.POLLIN)
    # A pipe that no writer has opened yet reads as if it had ended; poll(2) tells the two apart.
    waiting = True
    while limit > 0:
        if waiting and not ready.poll(_milliseconds_until(end)):
            hint = "let the writer of a pipe write and close it, or name a regular file"
            reason = f"it is not a regular file, and it did not end within {patience:g} s ({hint})"
            raise TimeoutError(errno.ETIMEDOUT, reason, str(file.name))
        piece = file.read(min(limit, _PIECE))
        if piece == b"":
            return
        waiting = piece is None
        yield piece or b""
        limit -= len(piece or b"")


def _milliseconds_until(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic()) * 1000


def within(seconds: float | None, function: Callable[[], T]) -> T:
    """Return what a function returns that may block for good, for which it gets a thread; None waits as long as it takes.

    A signal handler runs meanwhile. Raises `TimeoutError` where the function has not returned in time, and what it raises itself.
    """
    future = Resolver().submit(function)
    wait({future}, seconds)
    return _answer(future, seconds)


class Reader(Generic[T]):
    """Runs functions that may block for good in threads, for a loop that must not.

    A thread that does not answer is waited for again by the next call, in place of a second one: a mount that hangs for days must
    not gather threads.
    """

    def __init__(self, patience: float = PATIENCE + MARGIN) -> None:
        """Wait for `patience` seconds in each call."""
        self._patience = patience
        self._running: Future[T] | None = None

    async def run(self, function: Callable[[], T], *, afresh: bool = False) -> T:
        """Return what `function` returns, or what the function of an earlier call returns at last; with `afresh` never the latter.

        Raises `TimeoutError` where there is no answer in time, and what the function itself raises.
        """
        if afresh or self._running is None or self._running.done():
            self._running = Resolver().submit(function)
        running, answered, loop = self._running, asyncio.Event(), asyncio.get_running_loop()
        running.add_done_callback(lambda _: _wake(loop, answered))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                await answered.wait()
        return _answer(running, self._patience)


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
        loop.call_soon_threadsafe(event.set)


def _answer(future: Future[T], seconds: float | None) -> T:
    if not future.done():
        reason = f"its file system did not answer within {seconds:g} s (check the server of its mount)"
        raise TimeoutError(errno.ETIMEDOUT, reason)
    return future.result()
