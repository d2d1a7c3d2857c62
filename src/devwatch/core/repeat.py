"""Filter repeated log lines about a lasting condition."""

from __future__ import annotations

from dataclasses import dataclass, field

_TEXTS = 8
"""Different texts about one condition that are logged at once; a server may write an id into each message, without end."""


@dataclass(slots=True, kw_only=True)
class RepeatFilter:
    """Passes the first line about a condition, new texts, and repetitions at doubling intervals."""

    repeats: int = 0
    texts: set[str] = field(default_factory=set)

    def should_log(self, text: str) -> bool:
        """Return whether to log this line: the first use of one of the first `_TEXTS` texts, or the 2nd, 4th, 8th ... line."""
        self.repeats += 1
        new = text not in self.texts and len(self.texts) < _TEXTS
        self.texts |= {text} if new else set()
        return new or self.repeats & (self.repeats - 1) == 0
