"""`devwatch` as it is, with a peephole: on SIGUSR1 it writes how many tasks and timers its event loop has.

`python -m soak.inside FILE run ...`. The handler runs between two steps of the loop and wakes nobody.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


def figures() -> dict[str, int]:
    """Return what the running loop holds; nothing where none runs."""
    loop = asyncio._get_running_loop()  # noqa: SLF001 - the public one raises where no loop runs
    if loop is None:
        return {}
    scheduled = loop._scheduled  # type: ignore[attr-defined]  # noqa: SLF001 - no public way leads to the timers
    return {
        "tasks": len(asyncio.all_tasks(loop)),
        "timers": sum(not timer.cancelled() for timer in scheduled),
    }


def main(file: Path, arguments: list[str]) -> int:
    """Run devwatch with these arguments; every SIGUSR1 replaces the content of `file`."""

    def tell(_number: int, _frame: FrameType | None) -> None:
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(figures()))
        fresh.replace(file)

    signal.signal(signal.SIGUSR1, tell)
    from devwatch.cli.entry import main as devwatch  # noqa: PLC0415 - a signal during the imports must find its handler

    return devwatch(arguments)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
