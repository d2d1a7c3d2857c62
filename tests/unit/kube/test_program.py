"""Another program, run for what it prints: real ones, which may ask, flood, hang, or start more of themselves."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devwatch.kube import program
from support import realtime

if TYPE_CHECKING:
    from collections.abc import Coroutine

FAMILY = ("sh", "-c", 'exec 3>"$0"; sleep 60 & echo ready >&3; wait')
"""A shell and its child, which both hold the FIFO of the last argument open for as long as they live."""


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run it; as many files are open after it as before, and no callback may have failed."""

    async def counted() -> None:
        before = descriptors()
        await scenario
        assert descriptors() == before

    realtime.run(counted())


def descriptors() -> int:
    """Return the number of open files of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def printed(*command: str, **environ: str) -> tuple[int, bytes, bytes]:
    """Return what a program gives that runs to its end."""
    results: list[tuple[int, bytes, bytes]] = []

    async def scenario() -> None:
        results.append(await program.run(command, {**os.environ, **environ}))

    run(scenario())
    return results[0]


class Witness:
    """A FIFO that programs hold open: it ends when none of them lives any more, whoever has reaped them."""

    def __init__(self, folder: Path) -> None:
        """Make it."""
        self.path = folder / "witness"
        os.mkfifo(self.path)
        self._reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self._writer = os.open(self.path, os.O_WRONLY)  # without one it would end before a program has come

    def read(self) -> bytes:
        """Wait, this thread and so the loop, until a program has written or none lives."""
        assert select.select([self._reader], [], [], 20)[0], "still nothing"
        return os.read(self._reader, 4096)

    def left_alone(self) -> bool:
        """Wait until no program lives that has opened it; it is of no use after that."""
        os.close(self._writer)
        while self.read():
            pass
        os.close(self._reader)
        return True


async def cancelled(running: asyncio.Task[Any]) -> None:
    """Cancel it, and wait until it has ended of that."""
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_status_output_and_complaint_of_a_program_are_told_apart() -> None:
    """And the program has the environment that it is given."""
    script = "echo out; echo $WORD >&2; exit 3"
    assert printed("sh", "-c", script, WORD="complaint") == (3, b"out\n", b"complaint\n")


def test_a_program_that_a_signal_ends_has_failed() -> None:
    """With the number of the signal, as the standard library has it."""
    assert printed("sh", "-c", "kill -TERM $$") == (-signal.SIGTERM, b"", b"")


def test_a_program_may_say_much_on_either_side() -> None:
    """More than a pipe holds, and in any order."""
    much = "head -c 300000 /dev/zero"
    assert printed("sh", "-c", f"{much} >&2; {much}; {much} >&2") == (0, bytes(300_000), bytes(600_000))


def test_a_program_that_asks_gets_no_answer() -> None:
    """Its standard input is empty: nobody may be there to type."""
    assert printed("cat") == (0, b"", b"")


def test_a_program_has_no_terminal() -> None:
    """It runs in a session of its own (setsid(2)), so it cannot ask on that of the caller either."""
    _, session, _ = printed("cut", "-d ", "-f6", "/proc/self/stat")
    assert int(session) != os.getsid(0)


def test_a_program_that_is_not_there_cannot_be_started(tmp_path: Path) -> None:
    """The error is the system's own, with its name."""
    with pytest.raises(FileNotFoundError, match="/none"):
        printed(f"{tmp_path}/none")


def test_whoever_gives_up_leaves_nothing_running(tmp_path: Path) -> None:
    """Neither the program nor what it has started, nor a pipe to them."""

    async def scenario() -> None:
        witness = Witness(tmp_path)
        running = asyncio.create_task(program.run([*FAMILY, str(witness.path)], os.environ))
        assert await asyncio.to_thread(witness.read) == b"ready\n"
        await cancelled(running)
        assert witness.left_alone()

    run(scenario())


def test_a_program_that_has_ended_before_its_children_is_not_waited_for(tmp_path: Path) -> None:
    """They hold its pipes, so more may come; whoever gives up ends them too."""

    async def scenario() -> None:
        witness = Witness(tmp_path)
        script = 'exec 3>"$0"; sleep 60 & echo ready >&3'
        running = asyncio.create_task(program.run(["sh", "-c", script, str(witness.path)], os.environ))
        assert await asyncio.to_thread(witness.read) == b"ready\n"
        await cancelled(running)
        assert witness.left_alone()

    run(scenario())


@pytest.mark.parametrize("turns", range(12))
def test_giving_up_at_any_moment_of_the_start_leaves_nothing_running(turns: int, tmp_path: Path) -> None:
    """The program may have started others before the loop knows that it runs."""

    async def scenario() -> None:
        witness, others = Witness(tmp_path), children()
        running = asyncio.create_task(program.run([*FAMILY, str(witness.path)], os.environ))
        for _ in range(turns):
            await asyncio.sleep(0)
        if children() - others:
            assert witness.read() == b"ready\n"
        await cancelled(running)
        assert witness.left_alone()

    run(scenario())


def children() -> set[str]:
    """Return the processes that this thread has started, and that have not been reaped: those of other tests among them."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text("ascii").split())


def test_whoever_gives_up_waits_for_no_program_that_went_its_own_way(tmp_path: Path) -> None:
    """One that has left the session lives on with its end of the pipes; ours are closed."""

    async def scenario() -> None:
        witness, leash = Witness(tmp_path), Leash(tmp_path)
        script = 'setsid sh -c \'echo ready >"$0"; exec cat <"$1"\' "$0" "$1" & wait'
        command = ["sh", "-c", script, str(witness.path), str(leash.path)]
        running = asyncio.create_task(program.run(command, os.environ))
        assert await asyncio.to_thread(witness.read) == b"ready\n"
        await cancelled(running)
        leash.end()
        assert witness.left_alone()

    run(scenario())


def test_a_helper_that_a_program_leaves_behind_on_purpose_lives(tmp_path: Path) -> None:
    """A cache of credentials, say: only who gives up kills."""

    async def scenario() -> None:
        witness, leash = Witness(tmp_path), Leash(tmp_path)
        script = 'cat <"$1" >"$0" 2>/dev/null &'
        await program.run(["sh", "-c", script, str(witness.path), str(leash.path)], os.environ)
        leash.write(b"still here?")
        assert witness.read() == b"still here?"
        leash.end()
        assert witness.left_alone()

    run(scenario())


class Leash:
    """A FIFO that a program reads from until it is to end."""

    def __init__(self, folder: Path) -> None:
        """Make it."""
        self.path = folder / "leash"
        os.mkfifo(self.path)
        self._ends = os.open(self.path, os.O_RDWR)  # both, which waits for nobody (fifo(7))

    def write(self, text: bytes) -> None:
        """Let the program read this."""
        os.write(self._ends, text)

    def end(self) -> None:
        """Let the program read that there is no more."""
        os.close(self._ends)
