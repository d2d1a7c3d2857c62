"""One daemon a node, with real sockets and real processes of other users."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from devwatch.agent.daemon import Daemon, Options
from devwatch.core.errors import Unavailable
from devwatch.core.node import ANNOTATION
from devwatch.host.lock import Holder, NodeLock
from support.fakes import RecordingLog
from support.scripted import answer, kubeconfig, site

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")

BIND = """
import os, socket, sys
uid, name, listen = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "listen"
if uid != os.geteuid():
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
held.bind(b"\\0" + name.encode())
if listen:
    held.listen()
print("ready", flush=True)
sys.stdin.read()
"""

LOOK = """
import os, sys
from devwatch.host.lock import NodeLock
os.setgroups([]); os.setgid(65534); os.setuid(65534)
lock = NodeLock(sys.argv[1])
print([getattr(lock.acquire_once(), "counts", None) for _ in range(2)])
"""

REGAIN = """
import asyncio, resource, sys
from devwatch.host.lock import NodeLock

async def main():
    regained = asyncio.create_task(NodeLock(sys.argv[1], poll=0).regain())
    few, many = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, many))
    for _ in range(5):
        await asyncio.sleep(0)
    print(regained.done())
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, many))
    await regained

asyncio.run(main())
"""

Hold = Callable[..., int]


@pytest.fixture
def node() -> str:
    """Return a node name that no other test has."""
    return f"test-{uuid.uuid4()}"


@pytest.fixture
def hold(node: str) -> Iterator[Hold]:
    """Start a process of `uid` that has the lock's name, and return its pid."""
    with contextlib.ExitStack() as stack:

        def start(uid: int, how: str = "listen", name: str = f"devwatch/{node}") -> int:
            command = [sys.executable, "-c", BIND, str(uid), name, how]
            process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            return process.pid

        yield start


def end(pid: int) -> None:
    """Kill a holder and wait until its name is free; its exit status is left to who started it."""
    os.kill(pid, 9)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def never(holder: Holder) -> None:
    """Fail: nobody was to be reported."""
    pytest.fail(f"reported {holder}")


def test_a_second_daemon_waits_and_takes_over(node: str) -> None:
    """It says once whom it waits for, and gets the lock when the first gives it back."""

    async def scenario() -> list[Holder]:
        first, second, waited = NodeLock(node), NodeLock(node, poll=0), list[Holder]()
        assert await first.acquire(never, never)
        told = asyncio.Event()

        def waiting(holder: Holder) -> None:
            waited.append(holder)
            told.set()

        async with asyncio.TaskGroup() as tasks:
            taken = tasks.create_task(second.acquire(waiting, never))
            await told.wait()
            for _ in range(20):  # each turn of the loop is a further try
                await asyncio.sleep(0)
            assert not taken.done()
            first.release()
        assert taken.result()
        second.release()
        return waited

    assert asyncio.run(scenario()) == [Holder(pid=os.getpid(), uid=os.geteuid(), counts=True)]


def test_the_lock_of_a_killed_daemon_is_free(node: str, hold: Hold) -> None:
    """No file stays behind that somebody would have to remove."""
    pid = hold(os.geteuid())
    lock = NodeLock(node)
    assert lock.acquire_once() == Holder(pid=pid, uid=os.geteuid(), counts=True)
    end(pid)
    assert lock.acquire_once() is None
    lock.release()


def test_nodes_do_not_hold_each_other(node: str) -> None:
    """Two daemons for two nodes may run on one host, also where the names differ only beyond an address's length."""
    locks = [NodeLock(node), NodeLock(f"{node}2"), NodeLock("n" * 200 + "1"), NodeLock("n" * 200 + "2")]
    assert [lock.acquire_once() for lock in locks] == [None] * 4
    assert NodeLock("n" * 200 + "1").acquire_once() is not None
    for lock in locks:
        lock.release()


def test_a_holder_dismisses_whoever_asks(node: str) -> None:
    """Its backlog never fills, however many daemons wait and for however long."""

    async def scenario() -> None:
        lock = NodeLock(node)
        assert await lock.acquire(never, never)
        for _ in range(300):
            reader, writer = await asyncio.open_unix_connection(f"\0devwatch/{node}")
            assert await reader.read() == b""
            writer.close()
        lock.release()

    asyncio.run(scenario())


def test_a_holder_that_has_stopped_still_holds(node: str, hold: Hold) -> None:
    """Waiting fills no backlog: a holder that answers nothing for hours is known all the time."""
    pid, lock = hold(os.geteuid()), NodeLock(node)
    assert {lock.acquire_once() for _ in range(300)} == {Holder(pid=pid, uid=os.geteuid(), counts=True)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as another:
        another.connect(f"\0devwatch/{node}")


def test_a_holder_with_a_full_backlog_still_holds(node: str) -> None:
    """It cannot be asked, so its owner is found in /proc."""
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(socket.socket(socket.AF_UNIX))
        held.bind(f"\0devwatch/{node}")
        held.listen(0)
        with contextlib.suppress(BlockingIOError):
            for _ in range(10):
                client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
                client.connect(f"\0devwatch/{node}")
        assert NodeLock(node).acquire_once() == Holder(pid=os.getpid(), uid=os.geteuid(), counts=True)


def test_a_daemon_between_bind_and_listen_holds(node: str, hold: Hold) -> None:
    """It is found in /proc, at any number of looks."""
    pid, lock = hold(os.geteuid(), "bind"), NodeLock(node)
    assert {lock.acquire_once() for _ in range(3)} == {Holder(pid=pid, uid=os.geteuid(), counts=True)}


@as_root
@pytest.mark.parametrize("how", ["listen", "bind"])
def test_a_squatter_keeps_no_daemon_from_its_work(node: str, hold: Hold, how: str) -> None:
    """Anybody on the host can take the name; another unprivileged user is reported and ignored at once."""
    pid = hold(NOBODY, how)
    squatters: list[Holder] = []
    assert not asyncio.run(NodeLock(node).acquire(never, squatters.append))
    assert squatters == [Holder(pid=pid, uid=NOBODY, counts=False)]


@as_root
def test_root_holds_against_an_unprivileged_daemon(node: str, hold: Hold) -> None:
    """A daemon that runs as another user waits for the one of root."""
    hold(0)
    assert look_as_nobody(node) == "[True, True]"


@as_root
def test_two_daemons_of_one_user_wait_for_each_other(node: str, hold: Hold) -> None:
    """They need not be root."""
    hold(NOBODY)
    assert look_as_nobody(node) == "[True, True]"


@as_root
def test_a_holder_that_cannot_be_identified_is_ignored_at_the_second_look(node: str, hold: Hold) -> None:
    """It may be about to listen; one that stays mute and out of sight is no daemon."""
    hold(0, "bind")
    assert look_as_nobody(node) == "[True, False]"


@as_root
def test_a_forged_row_in_proc_does_not_speak_for_root(node: str, hold: Hold) -> None:
    """A socket's name may hold a line end: what looks like root's row proves nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as ours:
        hold(NOBODY, "listen", f"x\n0: 2 0 10000 0001 01 {os.fstat(ours.fileno()).st_ino} @devwatch/{node}")
        hold(NOBODY, "bind")
        lock = NodeLock(node)
        scans = [lock.acquire_once(), lock.acquire_once()]
    assert [holder is not None and holder.counts for holder in scans] == [True, False]


@as_root
def test_a_squatter_whose_traces_change_at_every_look_is_ignored_all_the_same(node: str, hold: Hold) -> None:
    """One that is mute, and forges another row for each look, would else be waited for without an end."""
    hold(NOBODY, "bind")
    lock, scans = NodeLock(node), []
    for number in range(2):
        hold(NOBODY, "listen", f"x{number}\n0: 2 0 10000 0001 01 {number + 1} @devwatch/{node}")
        scans.append(lock.acquire_once())
    assert [holder is not None and holder.counts for holder in scans] == [True, False]


@as_root
def test_the_lock_is_ours_as_soon_as_the_squatter_has_gone(node: str, hold: Hold) -> None:
    """As if he had never been there: the next daemon waits for us, and its question is answered."""

    async def scenario() -> None:
        pid, lock = hold(NOBODY), NodeLock(node, poll=0)
        assert not await lock.acquire(never, lambda _: None)
        regained = asyncio.create_task(lock.regain())
        for _ in range(20):  # each turn of the loop is a further try
            await asyncio.sleep(0)
        assert not regained.done()
        end(pid)
        await regained
        assert NodeLock(node).acquire_once() == Holder(pid=os.getpid(), uid=os.geteuid(), counts=True)
        reader, writer = await asyncio.open_unix_connection(f"\0devwatch/{node}")
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()
        lock.release()

    asyncio.run(scenario())


def test_a_daemon_that_was_faster_is_named(node: str, hold: Hold) -> None:
    """Whoever reads the line knows which process to look at; that it still holds the node is not taken from a single look."""
    pid = hold(os.geteuid())

    async def scenario() -> None:
        regaining = asyncio.create_task(NodeLock(node, poll=0).regain())
        await asyncio.sleep(0)
        assert not regaining.done(), "one look is not enough"
        await regaining

    with pytest.raises(Unavailable, match=f"^another daemon holds the node: pid {pid}, uid {os.geteuid()}$"):
        asyncio.run(scenario())


@as_root
def test_a_squatter_who_answers_nobody_is_not_searched_for_again_and_again(node: str, hold: Hold) -> None:
    """All open files of a host take long to look through, and the loop stands still meanwhile."""
    hold(NOBODY, "bind")
    assert python(SEARCHES, node).split() == ["0", "1"]


SEARCHES = """
import asyncio, sys
from devwatch.host.lock import NodeLock

searches, lock = [], NodeLock(sys.argv[1], poll=0)
sys.addaudithook(lambda event, _: searches.append(event) if event == "glob.glob" else None)

async def main():
    regaining = asyncio.ensure_future(lock.regain())
    for _ in range(5):
        await asyncio.sleep(0)
    regaining.cancel()
    print(len(searches))
    lock.acquire_once()
    print(len(searches))

asyncio.run(main())
"""


def test_no_descriptor_left_is_an_error_and_not_a_free_node(node: str) -> None:
    """The answer is one line for the user, not a lock that was never taken."""
    script = (
        "import resource, sys\n"
        "from devwatch.host.lock import NodeLock\n"
        "from devwatch.core.errors import Unavailable\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "try:\n    NodeLock(sys.argv[1]).acquire_once()\n"
        "except Unavailable as error:\n    print(error)\n"
    )
    assert "Too many open files" in python(script, node)


def test_no_descriptor_left_ends_no_daemon_that_is_at_work(node: str) -> None:
    """While it waits for a squatter to go, it asks again when there is one."""
    assert python(REGAIN, node) == "False"


def test_a_released_lock_is_free_and_can_be_released_again(node: str) -> None:
    """Shutdown may release twice, or what was never taken."""
    lock = NodeLock(node)
    lock.release()
    assert lock.acquire_once() is None
    lock.release()
    lock.release()
    assert lock.acquire_once() is None
    lock.release()


def look_as_nobody(node: str) -> str:
    """Return what two looks of an unprivileged daemon say."""
    return python(LOOK, node)


def python(script: str, *args: str) -> str:
    """Run `script` and return what it prints."""
    run = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


# -- the daemon beside a squatter


class Run:
    """A daemon in this process, on a node whose server has stored what it would send."""

    def __init__(self, node: str, folder: Path) -> None:
        """Prepare it."""
        self.node, self.folder, self.log = node, folder, RecordingLog()

    def daemon(self, port: int, *, once: bool = False, listen: tuple[str, int] | None = None) -> Daemon:
        """Return it."""
        config = self.folder / "config.yaml"
        config.write_text("resources:\n- {name: a.io/b, match: [{path: /dev/ttyNONE0}]}\n")
        credentials = kubeconfig(self.folder, f"http://127.0.0.1:{port}")
        options = Options(config=config, node=self.node, kubeconfig=str(credentials), once=once, listen=listen)
        return Daemon(options, self.log, environ={}, out=io.StringIO())

    async def until(self, event: str) -> None:
        """Wait for a line of the log."""
        while not self.log.of(event):  # noqa: ASYNC110 - a log wakes nobody
            await asyncio.sleep(0)

    def play(self, scenario: Callable[[asyncio.Task[int]], Coroutine[Any, Any, None]], *, once: bool = False) -> None:
        """Let the scenario see the daemon to its end."""
        counts = {"a.io/b": "0"}
        stored = {
            "kind": "Node",
            "metadata": {"uid": "u", "annotations": {ANNOTATION: '{"a.io/b":[]}'}},
            "status": {"capacity": counts, "allocatable": counts},
        }

        async def run() -> None:
            async with asyncio.timeout(30), site(answer(200, stored)) as server:
                running = asyncio.create_task(self.daemon(server.port, once=once).run())
                await self.until("daemon.started")
                await scenario(running)

        asyncio.run(run())


@pytest.fixture
def run(node: str, tmp_path: Path) -> Run:
    """Prepare a daemon."""
    return Run(node, tmp_path)


@as_root
def test_a_daemon_beside_a_squatter_holds_the_node_once_he_has_gone(run: Run, hold: Hold) -> None:
    """It works from the beginning, and says when nobody can work beside it any more."""
    pid = hold(NOBODY)

    async def scenario(running: asyncio.Task[int]) -> None:
        assert [line.fields["holder_pid"] for line in run.log.of("lock.ignored")] == [pid]
        end(pid)
        await run.until("lock.regained")
        assert NodeLock(run.node).acquire_once() == Holder(pid=os.getpid(), uid=os.geteuid(), counts=True)
        signal.raise_signal(signal.SIGTERM)
        assert await running == 0

    run.play(scenario)
    lock = NodeLock(run.node)
    assert lock.acquire_once() is None
    lock.release()


@as_root
def test_a_daemon_that_comes_after_the_squatter_is_not_worked_beside(run: Run, hold: Hold) -> None:
    """Ours ends with the line that names it; started again, it waits as any second one does."""
    pid = hold(NOBODY)

    async def scenario(running: asyncio.Task[int]) -> None:
        with socket.socket(socket.AF_UNIX) as another:
            end(pid)
            another.bind(f"\0devwatch/{run.node}")
            another.listen()
            with pytest.raises(Unavailable, match=f"another daemon holds the node: pid {os.getpid()}, uid"):
                await running

    run.play(scenario)
    assert run.log.of("daemon.failed") == []


@as_root
@pytest.mark.parametrize("once", [False, True], ids=["TERM", "once"])
def test_a_squatter_keeps_no_daemon_from_ending(run: Run, hold: Hold, once: bool) -> None:  # noqa: FBT001 - a parameter
    """Whatever ends one elsewhere ends it here, with the same status."""
    hold(NOBODY)

    async def scenario(running: asyncio.Task[int]) -> None:
        if not once:
            signal.raise_signal(signal.SIGTERM)
        assert await running == 0

    run.play(scenario, once=once)
    assert run.log.of("daemon.stopped")[0].fields["status"] == 0


@as_root
def test_beside_a_squatter_a_port_that_is_taken_is_still_one_line(run: Run, hold: Hold) -> None:
    """What cannot be had is told as it is elsewhere."""
    hold(NOBODY)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"cannot listen on port {port}"):
            asyncio.run(run.daemon(1, listen=("127.0.0.1", port)).run())
    assert run.log.of("daemon.failed") == []
