"""Say it once: which of the lines about a lasting condition are worth logging."""

from __future__ import annotations

from dataclasses import dataclass, field

_TEXTS = 8
"""Different texts about one condition that are told at once; a server that writes an id into each message has no end of them."""


@dataclass(slots=True, kw_only=True)
class RepeatFilter:
    """Tells a condition when it begins, what is new about it, and ever more rarely that it lasts."""

    repeats: int = 0
    texts: set[str] = field(default_factory=set)

    def should_log(self, text: str) -> bool:
        """Return whether this line should be written: one of the first few texts for the first time, or the 2nd, 4th, 8th ... line."""
        self.repeats += 1
        new = text not in self.texts and len(self.texts) < _TEXTS
        self.texts |= {text} if new else set()
        return new or self.repeats & (self.repeats - 1) == 0
