"""Writing for readers who may have stopped reading: what there is room for is written, and nobody is waited for."""

from __future__ import annotations

import contextlib
import io
import os
import select
import stat
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import TextIO

_PIECE: Final = select.PIPE_BUF
"""Bytes that a pipe takes without blocking whenever poll(2) calls it writable (pipe(7)); a socket has room for more then."""
_TERMINAL_PIECE: Final = 128
"""Bytes that a terminal takes at once whenever poll(2) calls it writable: it has a buffer of 256 left (Linux, `tty_buffer_alloc`)."""


PATIENCE: Final = 1.0
"""Seconds for which the last words of a program wait for their reader."""


class NonBlockingStream:
    """A stream that is written to without waiting: pipes, sockets and terminals take what they have room for, all others everything.

    Every method raises `OSError` or `ValueError` where the stream cannot be written to, as the stream itself does.
    """

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream
        self._rest = b""

    def write(self, line: str) -> bool:
        """Write a line, which is not empty, and return True; where there is no room, write nothing of it and return False.

        Where there is room for its beginning alone, the rest goes out before anything else, by `push()` or by the next `write()`.
        """
        if not self.push():
            return False
        descriptor = _limited(self._stream)
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
        """Write a text as fast as its reader takes it; one who takes nothing for `PATIENCE` seconds does without the rest."""
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
        """Go on with the line that was begun, and return whether nothing of it is left."""
        if self._rest:
            self._rest = _send(self._stream.fileno(), self._rest)
        return not self._rest


def _limited(stream: TextIO) -> int | None:
    """Return the descriptor of what has room for so much alone, None for a file and for what has no descriptor."""
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:
        return None
    mode = os.fstat(descriptor).st_mode
    return descriptor if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor) else None


def _send(descriptor: int, data: bytes) -> bytes:
    """Write what there is room for and return the rest. One that has failed counts as writable: writing tells why."""
    piece = _terminal_piece if os.isatty(descriptor) else _piece
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    with contextlib.suppress(BlockingIOError):  # somebody who shares it has made it non-blocking
        while data and room.poll(0):
            data = data[os.write(descriptor, piece(data)) :]
    return data


def _piece(data: bytes) -> bytes:
    return data[:_PIECE]


def _terminal_piece(data: bytes) -> bytes:
    """Return a piece with its line end apart: that becomes two bytes, for which the text may have left no room."""
    piece = data[:_TERMINAL_PIECE]
    end = piece.find(b"\n")
    return piece if end < 0 else piece[: max(end, 1)]
