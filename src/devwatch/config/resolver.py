"""Threads for what has no asynchronous form: asking for addresses, and reading files that may not answer."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Resolver(ThreadPoolExecutor):
    """Runs what has no asynchronous form in threads that no exit waits for; a loop has it as its default executor.

    A name server that does not answer holds a thread for minutes; TERM has to end the daemon within two seconds, and a
    command has to end with its last word.
    """

    def submit(self, function: Callable[..., T], /, *args: Any, **more: Any) -> Future[T]:  # noqa: ANN401 - as it is there
        """Run the function in a thread of its own. Where none can be started, its result is an `OSError`."""
        future: Future[T] = Future()
        try:
            Thread(target=_settle, args=(future, partial(function, *args, **more)), daemon=True).start()
        except (RuntimeError, MemoryError):
            hint = "raise the limit of memory (ulimit -v) or of processes (ulimit -u, TasksMax)"
            future.set_exception(OSError(errno.EAGAIN, f"no thread can be started: {hint}"))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as it is there
        """Leave the threads to themselves."""


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose end starts no thread to wait for other threads: there may be no memory for one."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as it is there
        """Leave the threads to themselves."""


def new_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop that has a `Resolver` as its default executor. Raises `OSError` where there are too few descriptors."""
    # What a loop opens: one that is left half-made by a shortage would print a traceback when it is collected.
    with select.epoll():
        for end in socket.socketpair():
            end.close()
    loop = _Loop()
    loop.set_default_executor(Resolver())
    return loop


def _settle(future: Future[T], function: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():  # else nobody may cancel it any more, and a late result harms nobody
        return
    try:
        result = function()
    except Exception as error:  # noqa: BLE001 - it is raised where the result is awaited
        future.set_exception(error)
    else:
        future.set_result(result)
