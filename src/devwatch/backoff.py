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

    def fail(self, now: float, chance: float, *, at_least: float = 0.0) -> float:
        """Count a failure at `now` and return the seconds to wait; `chance` is a random number in [0, 1)."""
        bound = min(self.limit, self.first * 2.0 ** min(self.failures, 32))
        self.failures += 1
        delay = max(at_least, chance * bound)
        self.until = now + delay
        return delay

    def succeed(self) -> None:
        """Forget the failures."""
        self.failures, self.until = 0, float("-inf")
