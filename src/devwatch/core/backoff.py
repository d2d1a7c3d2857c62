"""Compute when to try again: exponential backoff with full jitter, from a given time and a given random number."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Backoff:
    """The delay after consecutive failures: uniformly distributed between 0 and a bound that doubles with each failure.

    This is the "full jitter" of the AWS Architecture Blog, "Exponential Backoff And Jitter".
    """

    first: float = 0.5
    """Seconds: the bound of the delay after the first failure."""
    limit: float = 30.0
    """Seconds: the largest bound."""
    failures: int = 0
    until: float = float("-inf")
    """No attempt before this moment."""

    def fail(self, now: float, jitter: float, *, at_least: float = 0.0) -> float:
        """Count a failure at `now` and return the seconds to wait, at least `at_least`; `jitter` is a random number in [0, 1)."""
        bound = min(self.limit, self.first * 2.0 ** min(self.failures, 32))
        self.failures += 1
        delay = max(at_least, jitter * bound)
        self.until = now + delay
        return delay

    def succeed(self) -> None:
        """Reset the count of failures."""
        self.failures, self.until = 0, float("-inf")


@dataclass(slots=True, kw_only=True)
class RepairBackoff:
    """The delay between repairs of a value that another client keeps overwriting: none before the first, then a doubling one."""

    first: float = 1.0
    """Seconds between the first and the second repair, at least; doubles with each further repair."""
    limit: float = 300.0
    """Seconds: the largest such delay."""
    quiet: float = 600.0
    """Seconds without a repair after which the count starts again."""
    repairs: int = 0
    until: float = float("-inf")
    """No repair before this moment."""
    _last: float = float("-inf")

    def repaired(self, now: float) -> int:
        """Count a repair and return the number of repairs since the last quiet period."""
        if now - self._last >= self.quiet:
            self.repairs = 0
        self.until = now + min(self.limit, self.first * 2.0 ** min(self.repairs, 32))
        self.repairs += 1
        self._last = now
        return self.repairs
