"""Whether the daemon is alive, and whether it is ready."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIFFERENCE_LIMIT: Final = 60


@dataclass(slots=True, kw_only=True)
class Health:
    """What `/healthz` and `/readyz` answer. All times are seconds of one monotonic clock.

    Each field is a fact that its owner keeps true; a text is one line with the words of whom it comes from.
    The answers come from the loop they speak of: a blocked one answers nothing at all.
    """

    sweep: float
    last_cycle: float
    """When the loop last turned, or started."""
    waiting: str | None = None
    """Who else holds the node."""
    missing: str | None = None
    """What the API server says of a Node that is not there."""
    refused: str = ""
    """What of the Node is refused, and why; empty where nothing is."""
    uncertain: str | None = None
    """Why the last look could not see everything."""
    blocked: str = ""
    """Where a directory is in the place of a device, with the cure; empty where none is."""
    shown: bool = False
    """Whether the Node has been seen to show what is present."""
    differs: str = ""
    """In what the Node differs from what is present; empty where it does not."""
    differs_since: float | None = None
    """Since when it differs, and should not."""
    error: str = ""
    """Why the last request failed; empty after one that did not."""

    def healthz(self, now: float) -> tuple[bool, str]:
        """Return whether the loop turns, and one line that says why not."""
        if self.waiting is not None:  # it has nothing to turn for, and is as healthy as can be
            return True, "ok"
        age, limit = now - self.last_cycle, max(3 * self.sweep, 30)
        return age <= limit, "ok" if age <= limit else f"the loop has not turned for {age:.0f} s (limit {limit:.0f} s)"

    def readyz(self, now: float) -> tuple[bool, str]:
        """Return whether what the Node shows can be relied on, and one line that says why not."""
        reason = next(self._faults(now), None)
        line = "".join(char if char.isprintable() else " " for char in reason or "ok")
        return reason is None, line

    def _faults(self, now: float) -> Iterator[str]:
        """Yield why the Node cannot be relied on; what explains the others comes first."""
        if self.waiting is not None:
            yield f"another daemon holds the node: {self.waiting}"
        if self.missing is not None:
            yield f"the Node is missing: {self.missing}"
        if self.refused:
            yield self.refused
        if self.uncertain is not None:
            yield f"the devices cannot be seen for certain: {self.uncertain}"
        if self.blocked:
            yield self.blocked
        why = "".join(f": {text}" for text in (self.differs, self.error) if text)
        if not self.shown:
            yield f"the Node has not been seen to show what is present{why}"
        late = 0 if self.differs_since is None else now - self.differs_since
        if late >= _DIFFERENCE_LIMIT:
            yield f"the Node has not shown what is present for {late:.0f} s{why}"
