"""The one table, for people and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bench.stats import Sample, significant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HEAD = ("bench", "figure", "unit", "n", "min", "median", "p99", "max", "goal", "met")
_TEXTS = 3
"""The first columns and the last two are text; those between them are numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """The goal of a figure, and whether it is met."""

    text: str
    met: bool


def at_most(limit: float, value: float, what: str = "") -> Goal:
    """Return the goal that `value` is no greater than `limit`; `what` names the value where it is not the median."""
    return Goal(text=f"{what} <= {limit:g}".strip(), met=value <= limit)


def at_least(limit: float, value: float) -> Goal:
    """Return the goal that `value` is no smaller than `limit`."""
    return Goal(text=f">= {limit:g}", met=value >= limit)


def all_of(*goals: Goal) -> Goal:
    """Return the goal that is met when all of these are."""
    return Goal(text=", ".join(goal.text for goal in goals), met=all(goal.met for goal in goals))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure: a sample, one number, or a text."""

    bench: str
    figure: str
    unit: str = ""
    value: Sample | float | str
    goal: Goal | None = None
    note: str = ""
    """An explanation of the figure, printed below the table."""
    plotted: bool = False
    """Whether a plot shows each of the measurements."""

    def cells(self) -> tuple[str, ...]:
        """Return the cells under `HEAD`; a single value stands under `median`."""
        if isinstance(self.value, Sample):
            several = (self.value.minimum, self.value.median, self.value.p99, self.value.maximum)
            numbers = (str(self.value.count), *map(shown, several))
        else:
            numbers = ("", "", shown(self.value), "", "")
        goal = (self.goal.text, "yes" if self.goal.met else "NO") if self.goal else ("", "")
        return (self.bench, self.figure, self.unit, *numbers, *goal)

    def document(self) -> dict[str, Any]:
        """Return the row for JSON."""
        value = self._summary(self.value) if isinstance(self.value, Sample) else self.value
        goal = asdict(self.goal) if self.goal else None
        return {
            "bench": self.bench,
            "figure": self.figure,
            "unit": self.unit,
            "value": value,
            "goal": goal,
            "note": self.note,
        }

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Row:
        """Return the row of a `document`. Raises `TypeError` where its keys are others."""
        value, goal = document["value"], document["goal"]
        summary = {**value, "values": tuple(value.get("values", ()))} if isinstance(value, dict) else None
        return cls(
            **{
                **document,
                "value": Sample(**summary) if summary else value,
                "goal": Goal(**goal) if goal else None,
                "plotted": bool(summary and summary["values"]),
            }
        )

    def _summary(self, sample: Sample) -> dict[str, Any]:
        """Return a sample for JSON: its measurements only where they are plotted, and no finer than a plot can show."""
        summary = asdict(sample)
        values = summary.pop("values")
        return summary | ({"values": [significant(value) for value in values]} if self.plotted else {})


def shown(value: float | str) -> str:
    """Return a figure with as many digits as say something."""
    if isinstance(value, str):
        return value
    if value == int(value) or abs(value) >= 1000:  # noqa: PLR2004 - four digits are enough for a figure
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"  # noqa: PLR2004 - as above


def render(head: Mapping[str, str], rows: Sequence[Row]) -> str:
    """Return the whole text: machine and versions, the table, the notes."""
    about = [f"{name}: {text}" for name, text in head.items()]
    notes = dict.fromkeys(f"- {row.bench}, {row.figure}: {row.note}" for row in rows if row.note)
    return "\n".join([*about, "", *_aligned([HEAD, *(row.cells() for row in rows)]), "", *notes]).rstrip() + "\n"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(_padded(line, widths)).rstrip() for line in lines]


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.rjust(width) if _TEXTS <= index < len(HEAD) - 2 else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
