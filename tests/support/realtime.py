"""An event loop on real time, of which nothing may be left behind."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run it; nothing may be left open, and no callback may have failed."""
    reported: list[object] = []

    async def guarded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        async with asyncio.timeout(60):
            await scenario
        gc.collect()  # what was not closed complains when it is collected

    asyncio.run(guarded())
    assert reported == []
