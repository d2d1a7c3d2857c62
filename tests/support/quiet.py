"""Run a test on virtual time, and fail it for every complaint of the event loop or of a library."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
from typing import TYPE_CHECKING, ParamSpec

from support import virtualtime

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")


class _Complaints(logging.Handler):
    """What the daemon would log: an exception that no task retrieved, a traceback of a library."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{record.name}: {record.getMessage()} {record.exc_info}")

    def of_loop(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        self.texts.append(f"event loop: {context}")


def quiet(test: Callable[P, Coroutine[object, object, None]]) -> Callable[P, None]:
    """Run an async test so."""

    @functools.wraps(test)
    def on_virtual_time(*args: P.args, **kwargs: P.kwargs) -> None:
        complaints = _Complaints()

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(complaints.of_loop)
            await test(*args, **kwargs)
            await asyncio.sleep(1)  # what has ended is closed
            gc.collect()  # a task whose exception nobody retrieved complains when it is freed

        logging.getLogger().addHandler(complaints)
        try:
            virtualtime.run(main)
        finally:
            logging.getLogger().removeHandler(complaints)
        assert complaints.texts == []

    return on_virtual_time
