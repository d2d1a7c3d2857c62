"""Who listens to uevents, and what a listener has been told."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

TABLE = Path("/proc/self/net/netlink")


@dataclass(slots=True, kw_only=True)
class Heard:
    """A listener that keeps everything."""

    batches: list[Sequence[str]] = field(default_factory=list)
    overflows: int = 0
    told: list[str] = field(default_factory=list)
    """What was said of the monitor itself, and nothing else, in its order."""
    on_restored: Callable[[], object] = lambda: None

    @property
    def actions(self) -> list[str]:
        """All actions so far."""
        return [action for batch in self.batches for action in batch]

    def uevents(self, actions: Sequence[str]) -> None:
        """Keep them."""
        self.batches.append(actions)

    def overflowed(self) -> None:
        """Count it."""
        self.overflows += 1

    def lost(self, reason: str) -> None:
        """Keep it."""
        self.told.append(f"lost: {reason}")

    def restored(self, source: str) -> None:
        """Keep it."""
        self.told.append(f"restored: {source}")
        self.on_restored()


def uevent_descriptors() -> list[int]:
    """Return the descriptors of this process that are netlink sockets for uevents."""
    rows = [row.split() for row in TABLE.read_text("ascii").splitlines()[1:]]
    inodes = {int(row[9]) for row in rows if row[1] == "15"}
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the descriptor of this very listing
            if os.fstat(int(path.name)).st_ino in inodes:
                found.append(int(path.name))
    return found


def turn(loop: asyncio.AbstractEventLoop) -> None:
    """Let the loop do what is ready now, without waiting."""
    loop.call_soon(loop.stop)
    loop.run_forever()
