"""Writing to real pipes, sockets and terminals that somebody reads, has stopped reading, or has left."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pty
import socket
import termios
from threading import Thread
from typing import TYPE_CHECKING, TextIO

import pytest

from devwatch.observe.output import BestEffortStream, NonBlockingStream, OutputError, ResultStream
from support.pipes import Pipe, in_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def test_what_is_written_arrives_at_once(pipe: Pipe) -> None:
    """Nothing stays in a buffer while there is room."""
    outlet = NonBlockingStream(pipe.stream)
    assert outlet.write("a stick\n")
    assert outlet.write("Žigbee\n")
    assert pipe.read() == "a stick\nŽigbee\n"
    assert outlet.push()


def test_a_reader_that_has_stopped_is_not_waited_for(pipe: Pipe) -> None:
    """What finds no room is not written at all; when the reader goes on, so does the writer."""
    outlet = NonBlockingStream(pipe.stream)
    pipe.fill()
    assert not in_time(lambda: outlet.write("left out\n"))
    pipe.read()
    assert outlet.write("there again\n")
    assert pipe.read() == "there again\n"


def test_what_was_begun_is_written_to_its_end_before_anything_else(pipe: Pipe) -> None:
    """A line that is longer than the room there was is not torn by the next one."""
    outlet, line = NonBlockingStream(pipe.stream), "x" * 3 * pipe.size + "\n"
    assert in_time(lambda: outlet.write(line))
    assert not in_time(lambda: outlet.write("left out\n"))
    text = pipe.read()
    while not in_time(outlet.push):
        text += pipe.read()
    assert outlet.write("next\n")
    assert text + pipe.read() == line + "next\n"


def test_the_next_line_brings_the_end_of_the_one_before(pipe: Pipe) -> None:
    """Nobody has to ask for it."""
    outlet, line = NonBlockingStream(pipe.stream), "x" * (pipe.size + 100) + "\n"
    assert in_time(lambda: outlet.write(line))
    begun = pipe.read()
    assert outlet.write("next\n")
    assert begun + pipe.read() == line + "next\n"


def test_last_words_wait_for_a_reader_who_is_slow(pipe: Pipe) -> None:
    """However much it is, all of it arrives."""
    text = "".join(f"{number:09}\n" for number in range(20_000))
    saying = Thread(target=NonBlockingStream(pipe.stream).deliver, args=(text,))
    pipe.fill()
    saying.start()
    heard = ""
    while saying.is_alive():
        heard += pipe.read()
    assert (heard + pipe.read()).lstrip(".") == text


def test_last_words_that_nobody_reads_hold_no_program_up(pipe: Pipe) -> None:
    """After a moment it ends without them."""
    pipe.fill()
    in_time(lambda: NonBlockingStream(pipe.stream).deliver("the end\n"))
    assert pipe.read().strip(".") == ""


def test_a_reader_that_has_left_is_told(pipe: Pipe) -> None:
    """Also where it left the pipe full: that is no lack of room."""
    outlet = NonBlockingStream(pipe.stream)
    pipe.fill()
    pipe.leave()
    with pytest.raises(BrokenPipeError):
        in_time(lambda: outlet.write("x\n"))


def test_a_closed_stream_is_told(pipe: Pipe) -> None:
    """As it does by itself."""
    outlet = NonBlockingStream(pipe.stream)
    pipe.stream.close()
    with pytest.raises(ValueError, match="closed"):
        outlet.write("x\n")


def test_a_socket_that_nobody_reads_is_not_waited_for() -> None:
    """Under systemd the log is a socket of its journal."""
    ours, theirs = socket.socketpair()
    with ours, theirs, os.fdopen(os.dup(ours.fileno()), "w", encoding="utf-8") as stream:
        outlet = NonBlockingStream(stream)
        written = 0
        while in_time(lambda: outlet.write("x" * 999 + "\n")):
            written += 1000
        while not outlet.push():
            written -= len(theirs.recv(65536))
        while written:
            written -= len(theirs.recv(65536))
        assert outlet.write("there again\n")
        assert theirs.recv(65536) == b"there again\n"


class Terminal:
    """A terminal without a reader."""

    def __init__(self) -> None:
        """Open it, as it is after a login: a line end is written as two characters."""
        self.screen, self.descriptor = pty.openpty()
        self.stream: TextIO = os.fdopen(self.descriptor, "w", encoding="utf-8")

    def read(self) -> bytes:
        """Return what is on the screen."""
        os.set_blocking(self.screen, False)
        found = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.screen, 65536):
                found += piece
        return found


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """Make a terminal, and leave nobody stuck in it."""
    made = Terminal()
    yield made
    os.close(made.screen)
    with contextlib.suppress(OSError):
        made.stream.close()


def test_a_terminal_stopped_with_ctrl_s_is_not_waited_for(terminal: Terminal) -> None:
    """Ctrl-Q lets it go on."""
    outlet = NonBlockingStream(terminal.stream)
    termios.tcflow(terminal.descriptor, termios.TCOOFF)
    assert not in_time(lambda: outlet.write("left out\n"))
    termios.tcflow(terminal.descriptor, termios.TCOON)
    assert outlet.write("there again\n")
    assert terminal.read() == b"there again\r\n"


@pytest.mark.parametrize("length", [9, 30, 127, 128, 500, 5000])
def test_a_terminal_that_nobody_reads_is_not_waited_for(terminal: Terminal, length: int) -> None:
    """However the lines meet its buffers: each is whole or left out."""
    outlet, line, lines = NonBlockingStream(terminal.stream), "x" * (length - 1) + "\n", 0

    def crowd() -> int:
        count = 0
        while outlet.write(line):
            count += 1
        return count

    text = b""
    for _ in range(5):
        lines += in_time(crowd)
        text += terminal.read()
    while not outlet.push():
        text += terminal.read()
    text += terminal.read()
    assert text == line.replace("\n", "\r\n").encode() * lines


def test_a_file_and_a_stream_without_descriptor_take_everything(tmp_path: Path) -> None:
    """As they always do, of any length."""
    line = "x" * 100_000 + "\n"
    memory = io.StringIO()
    assert NonBlockingStream(memory).write(line)
    assert memory.getvalue() == line
    with (tmp_path / "log").open("w") as file:
        assert NonBlockingStream(file).write(line)
        assert (tmp_path / "log").read_text() == line


class FullDisk(io.StringIO):
    """A stream to a file that the disk has no room for."""

    def write(self, text: str, /) -> int:
        """Refuse every text."""
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), text)


@pytest.mark.parametrize("write", [BestEffortStream.write, BestEffortStream.deliver])
def test_a_remark_that_cannot_be_written_is_dropped(write: Callable[[BestEffortStream, str], object]) -> None:
    """Without a stream, on a closed one and on a full disk; otherwise it is written."""
    memory, closed = io.StringIO(), io.StringIO()
    closed.close()
    for stream in (None, closed, FullDisk(), memory):
        write(BestEffortStream(stream), "a remark\n")
    assert memory.getvalue() == "a remark\n"
    assert not BestEffortStream(None).isatty()


def test_a_result_that_cannot_be_written_is_told_apart() -> None:
    """From every other error of the system, which is not about standard output."""
    with pytest.raises(OutputError, match="No space left"):
        ResultStream(FullDisk()).write("a result\n")
