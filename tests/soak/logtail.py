"""The log of the daemon, read as it grows: in an hour it has hundreds of thousands of lines."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TROUBLE = ("Traceback", "library.logged", "daemon.failed", "look.uncertain", "monitor.lost")
"""What the daemon should not say."""
_KEPT = 5
_CUT = 500


@dataclass(slots=True, kw_only=True)
class LogTail:
    """Counts the events, and keeps the first lines that are trouble."""

    file: Path
    events: Counter[str] = field(default_factory=Counter)
    trouble: list[str] = field(default_factory=list)
    _offset: int = 0

    def read(self) -> None:
        """Read the complete lines that are new."""
        with self.file.open("rb") as log:
            log.seek(self._offset)
            text = log.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.decode("utf-8", "replace").splitlines():
            self._take(line)

    def _take(self, line: str) -> None:
        if len(self.trouble) < _KEPT and any(sign in line for sign in TROUBLE):
            self.trouble.append(line[:_CUT])
        try:
            record = json.loads(line)
        except ValueError:
            return
        event = str(record.get("event"))
        self.events[event] += 1
        if event == "pod.evicted":
            self.events[f"{event} {record.get('resource')} {record.get('reason')}"] += 1
