"""Write to standard output and standard error, whose reader may have left, or may have stopped reading.

Results must be written (`ResultStream`), remarks need not be (`BestEffortStream`), and a daemon waits for no reader (`NonBlockingStream`).
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import stat
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

_PIECE: Final = select.PIPE_BUF
"""Bytes that a pipe takes without blocking whenever poll(2) reports it writable (pipe(7)); a socket then has room for more."""
_TERMINAL_PIECE: Final = 128
"""Bytes that a terminal takes without blocking when poll(2) reports it writable: then it has room for 256 (Linux, `tty_buffer_alloc`)."""
PATIENCE: Final = 1.0
"""Seconds for which the last output of a program waits while its reader takes nothing."""
UNWRITABLE: Final = (OSError, ValueError)
"""The errors of a stream that cannot be written to: a full disk or a broken pipe; a closed or an ASCII-only stream."""


class NonBlockingStream:
    """A stream that never blocks: pipes, sockets and terminals take what they have room for, all other files everything.

    Every method raises an error of `UNWRITABLE` where the stream cannot be written to, as the stream itself does.
    """

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream
        self._rest = b""

    def write(self, line: str) -> bool:
        """Write a line, which must not be empty, and return True; where there is no room for its beginning, return False.

        Where there is room for its beginning alone, `push()` or the next `write()` sends the rest before anything else.
        """
        if not self.push():
            return False
        descriptor = _blocking_descriptor(self._stream)
        if descriptor is None:
            self._stream.write(line)
            self._stream.flush()
            return True
        data = line.encode(self._stream.encoding, self._stream.errors or "strict")
        rest = _send(descriptor, data)
        begun = len(rest) < len(data)
        self._rest = rest if begun else b""
        return begun

    def deliver(self, text: str) -> None:
        """Write a text as fast as its reader takes it, and drop the rest if the reader takes nothing for `PATIENCE` seconds."""
        begun, end = self.write(text), time.monotonic() + PATIENCE
        while (self._rest or not begun) and time.monotonic() < end:
            select.select((), (self._stream.fileno(),), (), PATIENCE / 10)
            before = self._rest
            if begun:
                self.push()
            else:
                begun = self.write(text)
            if self._rest != before:
                end = time.monotonic() + PATIENCE

    def push(self) -> bool:
        """Send the rest of a line that was begun, as far as there is room, and return whether nothing is left of it."""
        if self._rest:
            self._rest = _send(self._stream.fileno(), self._rest)
        return not self._rest


def _blocking_descriptor(stream: TextIO) -> int | None:
    """Return the descriptor of a stream that can block (pipe, socket, terminal), None for a file or a stream without a descriptor."""
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:
        return None
    mode = os.fstat(descriptor).st_mode
    return descriptor if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor) else None


def _send(descriptor: int, data: bytes) -> bytes:
    """Write as much as there is room for and return the rest. A failed descriptor is writable to poll(2), and write(2) raises its error."""
    piece = _terminal_piece if os.isatty(descriptor) else _piece
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    with contextlib.suppress(BlockingIOError):  # a process that shares it has made it non-blocking
        while data and room.poll(0):
            data = data[os.write(descriptor, piece(data)) :]
    return data


def _piece(data: bytes) -> bytes:
    return data[:_PIECE]


def _terminal_piece(data: bytes) -> bytes:
    """Return a piece that ends before a line end, or is one: the terminal turns it into two bytes, for which there may be no room."""
    piece = data[:_TERMINAL_PIECE]
    end = piece.find(b"\n")
    return piece if end < 0 else piece[: max(end, 1)]


class BestEffortStream:
    """A stream for remarks, whose errors are ignored: a remark that cannot be written does not change the result."""

    def __init__(self, stream: TextIO | None) -> None:
        """Write to `stream`, which is None where the process was started with its descriptor closed."""
        self._stream = stream

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        """Write and flush text, if possible."""
        with contextlib.suppress(*UNWRITABLE):
            if self._stream is not None:
                self._stream.write(text)
                self._stream.flush()
        return len(text)

    def deliver(self, text: str) -> None:
        """Write text as `NonBlockingStream.deliver` does, if possible."""
        with contextlib.suppress(*UNWRITABLE):
            if self._stream is not None:
                NonBlockingStream(self._stream).deliver(text)


class OutputError(Exception):
    """Standard output cannot be written to."""

    def __init__(self, reason: OSError) -> None:
        """Store the reason."""
        super().__init__(reason)
        self.reason = reason


class ResultStream:
    """Standard output, whose errors become `OutputError`, so that no other `OSError` is mistaken for one."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream.isatty()

    def write(self, text: str) -> int:
        """Write text. Raises `OutputError`."""
        with _writing():
            return self._stream.write(text)

    def flush(self) -> None:
        """Flush the buffer. Raises `OutputError`."""
        with _writing():
            self._stream.flush()


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(error) from error


def mute(descriptor: int) -> None:
    """Redirect a failed stream to /dev/null: the interpreter would flush it at exit, and fail with status 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
