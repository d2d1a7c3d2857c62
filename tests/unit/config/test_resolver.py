"""Asking for addresses: who asked and gave up, or has ended, is not held by a name server that does not answer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import Future
from threading import Event, current_thread
from threading import enumerate as enumerate_threads
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from devwatch.cli import admin
from devwatch.config.resolver import Resolver, Worker
from devwatch.kube.client import Connection
from devwatch.kube.credentials import Credentials

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def test_no_exit_waits_for_a_name_server() -> None:
    """A thread that hangs is left to itself; results and errors of others arrive."""
    resolver = Resolver()
    stuck: Future[str] = Future()
    resolver.submit(stuck.result)
    assert resolver.submit(lambda: "address").result(timeout=30) == "address"
    with pytest.raises(KeyError):
        resolver.submit(dict[str, str]().__getitem__, "nowhere").result(timeout=30)
    resolver.shutdown()
    stuck.set_result("")


def test_an_answer_that_nobody_waits_for_any_more_is_dropped() -> None:
    """A daemon that ended while a name server was asked prints no traceback when the answer comes at last."""
    resolver, release, over, before = Resolver(), Event(), Event(), enumerate_threads()

    def late() -> None:
        release.wait(30)

    asked = resolver.submit(late)
    asked.add_done_callback(lambda _: over.set())
    asked.cancel()
    release.set()
    assert over.wait(30)
    for thread in set(enumerate_threads()) - set(before):
        thread.join(30)


def test_no_thread_that_can_be_started_is_an_error_of_the_system() -> None:
    """A limit of memory is reached: whoever asked is told which to raise, and the end of a loop needs no thread itself."""
    assert subprocess.run([sys.executable, "-c", TIGHT], capture_output=True, text=True, check=True).stdout == (
        "no thread can be started: raise the limit of memory (ulimit -v) or of processes (ulimit -u, TasksMax)\n"
    )


TIGHT = """
import asyncio, resource
from devwatch.config.resolver import new_loop

async def main():
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, size + 2**20))
    try:
        await asyncio.get_running_loop().run_in_executor(None, print)
    except OSError as error:
        print(error.strerror)

with asyncio.Runner(loop_factory=new_loop) as runner:
    runner.run(main())
"""


class Exhausted(Resolver):
    """Cannot start a thread, once."""

    failures = 1

    def submit(self, function: Callable[..., T], /, *args: Any, **more: Any) -> Future[T]:  # noqa: ANN401 - as the base class
        """Fail, and not the next time."""
        if not self.failures:
            return super().submit(function, *args, **more)
        self.failures -= 1
        failed: Future[T] = Future()
        failed.set_exception(OSError("no thread can be started"))
        return failed


def test_a_worker_has_one_thread_which_ends_with_it() -> None:
    """Also after a call that fails; without a thread the call fails, and the next one may find one."""
    worker = Worker(Exhausted())
    with pytest.raises(OSError, match="no thread can be started"):
        worker.submit(current_thread).result(timeout=30)
    thread = worker.submit(current_thread).result(timeout=30)
    with pytest.raises(ZeroDivisionError):
        worker.submit(lambda: 1 / 0).result(timeout=30)
    assert worker.submit(current_thread).result(timeout=30) is thread
    assert thread.daemon
    del worker
    thread.join(30)
    assert not thread.is_alive()


def test_too_few_descriptors_for_a_loop_leave_none_half_made() -> None:
    """It is an error of the system, and what is collected afterwards prints nothing."""
    code = "import resource, devwatch.config.resolver as r; resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5)); r.new_loop()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "OSError: [Errno 24] Too many open files"
    assert "Exception ignored" not in done.stderr


def test_a_command_does_not_wait_for_a_name_server() -> None:
    """Its request gave up, and it ends while the thread still asks; nobody looks at a prompt that does not come."""
    answer, over = Event(), Event()

    async def work() -> int:
        begun, loop = asyncio.Event(), asyncio.get_running_loop()

        def ask() -> None:
            loop.call_soon_threadsafe(begun.set)
            answer.wait(30)
            over.set()

        asked = loop.run_in_executor(None, ask)
        await begun.wait()
        asked.cancel()
        return 0

    assert admin.run(Connection(Credentials(environ={}), version="0"), work()) == 0
    assert not over.is_set()
    answer.set()
    assert over.wait(30)
