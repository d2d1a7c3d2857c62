"""Time and randomness as values, so that tests run on a virtual clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The clocks and the random numbers that the loop uses."""

    now: Callable[[], float]
    """The time of the event loop, in seconds of a monotonic clock."""
    unix: Callable[[], float]
    """Unix time of this host, in seconds."""
    jitter: Callable[[], float]
    """A random number in [0, 1)."""
