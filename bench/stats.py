"""Summaries of several measurements."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Several measurements of one thing, in its unit."""

    count: int
    minimum: float
    median: float
    mean: float
    p99: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        """Sum measurements up. Raises `ValueError` where there are none."""
        if not values:
            raise ValueError("nothing was measured")
        return cls(
            count=len(values),
            minimum=min(values),
            median=statistics.median(values),
            mean=statistics.fmean(values),
            p99=percentile(values, 99),
            maximum=max(values),
        )

    def scaled(self, factor: float) -> Sample:
        """Return the same in another unit."""
        numbers = (self.minimum, self.median, self.mean, self.p99, self.maximum)
        minimum, median, mean, p99, maximum = (number * factor for number in numbers)
        return Sample(count=self.count, minimum=minimum, median=median, mean=mean, p99=p99, maximum=maximum)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` per cent of all do not exceed (nearest rank): one that was measured."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]
