"""Asking for addresses: who asked and gave up, or has ended, is not held by a name server that does not answer."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from threading import Event, current_thread
from threading import enumerate as enumerate_threads

import pytest

from devwatch import admin
from devwatch.kube import Connection, Credentials
from devwatch.resolver import Resolver


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
    resolver, release, over = Resolver(), Event(), Event()

    def late() -> None:
        release.wait(30)

    asked = resolver.submit(late)
    asked.add_done_callback(lambda _: over.set())
    asked.cancel()
    release.set()
    assert over.wait(30)
    for thread in enumerate_threads():
        if thread is not current_thread():
            thread.join(30)


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
