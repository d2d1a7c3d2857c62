"""Files that may never answer: their readers give up, and whoever waits for them is free to do something else."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devwatch.config import files
from support.pipes import in_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT = 1 << 20


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """Return a named pipe that no process has open."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def writing(path: Path, *texts: str) -> None:
    """Let another thread write each text as a writer of its own."""

    def write() -> None:
        for text in texts:
            path.write_text(text)

    threading.Thread(target=write, daemon=True).start()


def test_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    """All of it, or its beginning; one without an end as well."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 200_000)
    assert files.read(path, LIMIT) == b"x" * 200_000
    assert files.read(path, 70_000) == b"x" * 70_000
    assert files.read("/dev/zero", 5) == bytes(5)
    assert files.read(os.devnull, LIMIT) == b""


def test_a_file_that_cannot_be_read_is_named_with_the_systems_reason(tmp_path: Path) -> None:
    """As `open` does."""
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        files.read(tmp_path, LIMIT)
    with pytest.raises(FileNotFoundError, match="nothing"):
        files.read(tmp_path / "nothing", LIMIT)


@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_a_pipe_is_read_to_its_end(size: int, pipe: Path) -> None:
    """It has ended when its writer has closed it, however much that wrote; a pipe holds 64 KiB at a time."""
    writing(pipe, "x" * size)
    assert in_time(lambda: files.read(pipe, LIMIT)) == b"x" * size


def test_what_was_written_to_a_pipe_before_is_read_although_the_writer_has_gone(pipe: Path) -> None:
    """Another process keeps the pipe open for reading: what it holds has an end all the same."""
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    pipe.write_text("text")
    assert in_time(lambda: files.read(pipe, LIMIT)) == b"text"
    os.close(reader)


def test_a_writer_that_comes_later_is_waited_for(pipe: Path) -> None:
    """A pipe that no process has opened for writing has not ended: it has not begun."""

    def write() -> None:
        while True:
            with suppress(OSError):  # until a reader has opened it (fifo(7), ENXIO)
                return os.close(_written(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)))

    threading.Thread(target=write, daemon=True).start()
    assert in_time(lambda: files.read(pipe, LIMIT)) == b"late"


def _written(descriptor: int) -> int:
    os.write(descriptor, b"late")
    return descriptor


@pytest.mark.parametrize("written", ["", "half"])
def test_a_pipe_without_an_end_is_given_up_and_named(written: str, pipe: Path) -> None:
    """No process writes to it, or the one that does never closes it. The error says what to do."""
    writer = os.open(pipe, os.O_RDWR)
    os.write(writer, written.encode())
    with pytest.raises(TimeoutError) as caught:
        in_time(lambda: files.read(pipe, LIMIT, patience=0.05))
    assert (caught.value.errno, caught.value.filename) == (errno.ETIMEDOUT, str(pipe))
    assert "did not end within 0.05 s (let the writer of a pipe write and close it, or name a regular file)" in str(
        caught.value
    )
    os.close(writer)


def test_what_the_caller_has_opened_is_waited_for() -> None:
    """`devwatch check <(helm template ...)` takes as long as helm does, and a person types a while."""
    assert [files.patience_for(path) for path in ("/dev/fd/63", "/dev/stdin", "/proc/self/fd/3")] == [None] * 3
    assert files.patience_for(Path("/etc/devwatch/config.yaml")) == files.PATIENCE
    reader, writer = os.pipe()

    def write() -> None:
        os.write(writer, b"late")
        os.close(writer)

    threading.Timer(0.1, write).start()
    assert in_time(lambda: files.read(f"/dev/fd/{reader}", LIMIT, patience=None)) == b"late"
    os.close(reader)


@pytest.fixture
def mount() -> Iterator[Callable[[], str]]:
    """Return what reads a file of a mount that hangs, until the test has ended."""
    answer = threading.Event()

    def read() -> str:
        answer.wait(30)
        return "at last"

    yield read
    answer.set()


def test_a_file_system_that_does_not_answer_is_given_up(mount: Callable[[], str]) -> None:
    """By a command, which has nothing else to do; the error says where to look."""
    with pytest.raises(TimeoutError, match="its file system did not answer"):
        files.within(0.05, mount)


def test_what_a_function_returns_or_raises_arrives() -> None:
    """Whichever way it is run."""

    async def scenario() -> None:
        assert await files.Reader[int]().run(lambda: 1) == 1
        with pytest.raises(ZeroDivisionError):
            await files.Reader[float]().run(lambda: 1 / 0)

    assert files.within(None, lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        files.within(30, lambda: 1 / 0)
    asyncio.run(scenario())


def test_a_file_system_that_hangs_for_days_gathers_no_threads(mount: Callable[[], str]) -> None:
    """Each call waits for the thread of the first, and the loop turns meanwhile."""
    before = set(threading.enumerate())

    async def scenario() -> None:
        reader = files.Reader[str](0.02)
        for _ in range(5):
            with pytest.raises(TimeoutError, match="its file system did not answer"):
                await reader.run(mount)
        # Of those that other tests have left some may end meanwhile.
        assert len(set(threading.enumerate()) - before) == 1

    asyncio.run(scenario())


def test_the_answer_that_comes_at_last_is_taken() -> None:
    """By the next call, which needs no other; only who asks afresh does not wait for it."""
    answer = threading.Event()

    def late() -> str:
        answer.wait(30)
        return "late"

    async def scenario() -> None:
        reader = files.Reader[str](0.02)
        with pytest.raises(TimeoutError):
            await reader.run(late)
        patient = files.Reader[str](30)
        first = asyncio.create_task(patient.run(late))
        await asyncio.sleep(0)
        assert await patient.run(lambda: "fresh", afresh=True) == "fresh"
        answer.set()
        assert await first == "late"
        assert await patient.run(lambda: "next") == "next"

    asyncio.run(scenario())


def test_an_answer_that_comes_after_the_end_of_the_loop_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """Without a word: the daemon has ended by then."""
    answer, before = threading.Event(), threading.active_count()

    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            await files.Reader[bool](0.02).run(lambda: answer.wait(30))

    asyncio.run(scenario())
    answer.set()
    for thread in threading.enumerate()[before:]:
        thread.join(30)
    assert caplog.records == []
