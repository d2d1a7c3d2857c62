"""Read files that may never answer: a pipe without a writer, a mount whose server is unreachable."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import time
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from devwatch.config.resolver import Resolver, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO
    from pathlib import Path

T = TypeVar("T")

PATIENCE: Final = 5.0
"""Seconds in which a file has to deliver all of its content."""
MARGIN: Final = 1.0
"""Seconds by which the caller waits longer than the reading thread, whose own timeout names the cause more precisely."""
_READ_SIZE: Final = 65536
_INHERITED: Final = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
"""Descriptors that the caller has opened: `devwatch check <(helm template ...)` takes as long as helm does."""


def patience_for(path: str | Path) -> float | None:
    """Return how many seconds to wait for a file, None (no limit) for a descriptor that the caller has opened."""
    return None if str(path).startswith(_INHERITED) else PATIENCE


def read(path: str | Path, limit: int, *, patience: float | None = PATIENCE) -> bytes:
    """Return the first `limit` bytes of a file; a pipe is read until its writers have closed it.

    Raises `OSError`, also where a pipe has not ended after `patience` seconds. A file system that does not answer blocks the
    thread forever, so call this in a thread, by `within` or a `Reader`.
    """
    with open(path, "rb", buffering=0, opener=_open_nonblocking) as file:
        return b"".join(_read_pieces(file, limit, patience))


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _read_pieces(file: FileIO, limit: int, patience: float | None) -> Iterator[bytes]:
    """Yield the content in pieces. Raises `TimeoutError` after `patience` seconds."""
    ready, end = select.poll(), None if patience is None else time.monotonic() + patience
    ready.register(file, select.POLLIN)
    # A pipe that no writer has opened yet reads as if it had ended; poll(2) distinguishes the two.
    waiting = True
    while limit > 0:
        if waiting and not ready.poll(_milliseconds_until(end)):
            hint = "let the writer of a pipe write and close it, or name a regular file"
            reason = f"it is not a regular file, and it did not end within {patience:g} s ({hint})"
            raise TimeoutError(errno.ETIMEDOUT, reason, str(file.name))
        piece = file.read(min(limit, _READ_SIZE))
        if piece == b"":
            return
        waiting = piece is None
        yield piece or b""
        limit -= len(piece or b"")


def _milliseconds_until(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic()) * 1000


def within(seconds: float | None, function: Callable[[], T]) -> T:
    """Run a function that may block forever in a thread and return its result; None waits without a limit.

    Signal handlers run meanwhile. Raises `TimeoutError` where the function has not returned in time, and what it raises itself.
    """
    future = Resolver().submit(function)
    wait({future}, seconds)
    return _result_of(future, seconds)


class Reader(Generic[T]):
    """Runs functions that may block forever in a thread, for a loop that must not block.

    While the thread does not return, the next call waits for it instead of starting another: a mount that hangs for days must not
    accumulate threads.
    """

    def __init__(self, patience: float = PATIENCE + MARGIN) -> None:
        """Wait for `patience` seconds in each call."""
        self._patience = patience
        self._worker = Worker()
        self._running: Future[T] | None = None

    async def run(self, function: Callable[[], T], *, afresh: bool = False) -> T:
        """Return the result of `function`, or that of an earlier call that is still running; with `afresh` never the latter.

        Raises `TimeoutError` where there is no result in time, and what the function itself raises.
        """
        running = None if self._running is None or self._running.done() else self._running
        if running is not None and afresh:
            self._worker, running = Worker(), None
        if running is None:
            running = self._running = self._worker.submit(function)
        returned, loop = asyncio.Event(), asyncio.get_running_loop()
        running.add_done_callback(lambda _: _set_from_thread(loop, returned))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                await returned.wait()
        return _result_of(running, self._patience)


def _set_from_thread(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has closed, so no task waits any more
        loop.call_soon_threadsafe(event.set)


def _result_of(future: Future[T], seconds: float | None) -> T:
    if not future.done():
        reason = f"its file system did not answer within {seconds:g} s (check the server of its mount)"
        raise TimeoutError(errno.ETIMEDOUT, reason)
    return future.result()
