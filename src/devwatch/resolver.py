"""Threads for what has no asynchronous form, which is asking for addresses."""

from __future__ import annotations

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
        """Run the function in a thread of its own."""
        future: Future[T] = Future()
        Thread(target=_settle, args=(future, partial(function, *args, **more)), daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as it is there
        """Leave the threads to themselves."""


def _settle(future: Future[T], function: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():  # else nobody may cancel it any more, and a late result harms nobody
        return
    try:
        result = function()
    except Exception as error:  # noqa: BLE001 - it is raised where the result is awaited
        future.set_exception(error)
    else:
        future.set_result(result)
