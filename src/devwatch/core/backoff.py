"""When to try again: exponential backoff with full jitter, as arithmetic on given times and given randomness."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Backoff:
    """The waiting time after failures in a row: evenly spread between 0 and a bound that doubles.

    That is the "full jitter" of the AWS Architecture Blog, "Exponential Backoff And Jitter".
    """

    first: float = 0.5
    """Seconds: the bound after the first failure."""
    limit: float = 30.0
    """Seconds: the largest bound."""
    failures: int = 0
    until: float = float("-inf")
    """No attempt before this moment."""

    def fail(self, now: float, jitter: float, *, at_least: float = 0.0) -> float:
        """Count a failure at `now` and return the seconds to wait; `chance` is a random number in [0, 1)."""
        bound = min(self.limit, self.first * 2.0 ** min(self.failures, 32))
        self.failures += 1
        delay = max(at_least, jitter * bound)
        self.until = now + delay
        return delay

    def succeed(self) -> None:
        """Forget the failures."""
        self.failures, self.until = 0, float("-inf")


@dataclass(slots=True, kw_only=True)
class Truce:
    """How often to repair what somebody else keeps writing: the first time at once, then ever more rarely, until there was peace."""

    first: float = 1.0
    """Seconds: the least time between the first two repairs; it doubles."""
    limit: float = 300.0
    """Seconds: the longest time between two repairs."""
    peace: float = 600.0
    """Seconds without a repair after which everything is forgiven."""
    repairs: int = 0
    until: float = float("-inf")
    """No repair before this moment."""
    _last: float = float("-inf")

    def repaired(self, now: float) -> int:
        """Count a repair and return how many there have been since the last peace."""
        if now - self._last >= self.peace:
            self.repairs = 0
        self.until = now + min(self.limit, self.first * 2.0 ** min(self.repairs, 32))
        self.repairs += 1
        self._last = now
        return self.repairs
