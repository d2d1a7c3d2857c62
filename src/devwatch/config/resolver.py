"""Threads for calls without an asynchronous form: name resolution, and reading files that may not answer."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class Resolver(ThreadPoolExecutor):
    """Runs blocking calls in daemon threads, for which no exit waits; the default executor of `new_loop`.

    A name server that does not answer blocks a thread for minutes, but TERM has to end the daemon within two seconds, and a
    command has to end as soon as its output is complete.
    """

    def submit(self, function: Callable[..., T], /, *args: Any, **more: Any) -> Future[T]:  # noqa: ANN401 - the signature of the base class
        """Run the function in a thread of its own. Where none can be started, the future holds an `OSError`."""
        future: Future[T] = Future()
        try:
            Thread(target=_run_into, args=(future, partial(function, *args, **more)), daemon=True).start()
        except (RuntimeError, MemoryError):
            hint = "raise the limit of memory (ulimit -v) or of processes (ulimit -u, TasksMax)"
            future.set_exception(OSError(errno.EAGAIN, f"no thread can be started: {hint}"))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the signature of the base class
        """Do not wait for the threads."""


class Worker:
    """One thread for one call after the other, at half the cost of a thread for each. It ends once nothing refers to its worker."""

    def __init__(self, threads: Resolver | None = None) -> None:
        """Let `threads` start the thread, at the first call."""
        self._threads, self._calls = threads or Resolver(), SimpleQueue[Callable[[], None] | None]()
        self._thread: Future[None] | None = None

    def __del__(self) -> None:
        """End the thread once the calls have returned."""
        self._calls.put(None)

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run the function after the calls before it. Where no thread can be started, the future holds an `OSError`."""
        future: Future[T] = Future()
        if self._thread is None or self._thread.done():
            self._thread = self._threads.submit(_run_calls, self._calls)
        if self._thread.done():
            future.set_exception(self._thread.exception())
        else:
            self._calls.put(partial(_run_into, future, function))
        return future


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that closes without starting a thread to join the others: there may be no memory for one."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the signature of the base class
        """Do not wait for the threads."""


def new_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop with a `Resolver` as its default executor. Raises `OSError` where there are too few descriptors."""
    # Open what a loop opens, to fail before it exists: a half-constructed loop prints a traceback when it is collected.
    with select.epoll():
        for end in socket.socketpair():
            end.close()
    loop = _Loop()
    loop.set_default_executor(Resolver())
    return loop


def _run_calls(calls: SimpleQueue[Callable[[], None] | None]) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # not to keep its result until the next one


def _run_into(future: Future[T], function: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():  # from here on it cannot be cancelled
        return
    try:
        result = function()
    except Exception as error:  # noqa: BLE001 - raised where the result is awaited
        future.set_exception(error)
    else:
        future.set_result(result)
