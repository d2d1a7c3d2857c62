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
    values: tuple[float, ...] = ()
    """The measurements themselves, in their order."""

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
            values=tuple(values),
        )

    def scaled(self, factor: float) -> Sample:
        """Return the same in another unit."""
        return Sample(
            count=self.count,
            minimum=self.minimum * factor,
            median=self.median * factor,
            mean=self.mean * factor,
            p99=self.p99 * factor,
            maximum=self.maximum * factor,
            values=tuple(value * factor for value in self.values),
        )


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` per cent of all do not exceed (nearest rank): one that was measured."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


def significant(value: float) -> float:
    """Return a value to four digits."""
    return float(f"{value:.4g}")
