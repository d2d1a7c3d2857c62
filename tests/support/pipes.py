"""A pipe that nobody reads, and work that must not wait for a reader."""

from __future__ import annotations

import contextlib
import fcntl
import os
from concurrent.futures import Future
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def in_time(work: Callable[[], T]) -> T:
    """Return what `work` returns, which must not wait for a reader: nobody else would ever end it."""
    future: Future[T] = Future()

    def settle() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)

    Thread(target=settle, daemon=True).start()
    return future.result(timeout=30)


class Pipe:
    """A small pipe, which nobody reads but by `read()`."""

    def __init__(self) -> None:
        """Open it, with room."""
        self.reader, self.writer = os.pipe()
        self.size = fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4 * 4096)
        self.stream = os.fdopen(self.writer, "w", encoding="utf-8")
        os.set_blocking(self.reader, False)

    def fill(self) -> None:
        """Leave no room."""
        os.set_blocking(self.writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self.writer, b"." * 4096)
        os.set_blocking(self.writer, True)

    def read(self) -> str:
        """Return what is in it."""
        found = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.reader, 65536):
                found += piece
        return found.decode()

    def leave(self) -> None:
        """Have no reader any more."""
        os.close(self.reader)
        self.reader = -1

    def close(self) -> None:
        """Close both ends; the reader first, so that no writer is stuck."""
        with contextlib.suppress(OSError):
            self.leave()
        with contextlib.suppress(OSError):
            self.stream.close()
