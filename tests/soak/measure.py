"""What a process holds, from outside: memory, descriptors, threads, files; and, through its peephole, tasks and timers."""

from __future__ import annotations

import json
import signal
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from soak.pods import Files
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from system.daemon import Daemon


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measurement; memory in KiB."""

    rss: int
    descriptors: int
    threads: int
    tasks: int
    timers: int
    plugins: int
    links: int
    specs: int

    @classmethod
    def of(cls, daemon: Daemon, peephole: Path) -> Sample:
        """Measure. Raises `AssertionError` where the daemon does not answer."""
        peephole.unlink(missing_ok=True)
        daemon.signal(signal.SIGUSR1)
        eventually(peephole.exists, timeout=60)
        inner = json.loads(peephole.read_text())
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        rows = dict(line.split(":", 1) for line in status.splitlines())
        files = Files.count()
        return cls(
            rss=int(rows["VmRSS"].split()[0]),
            descriptors=len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir())),
            threads=int(rows["Threads"]),
            tasks=inner["tasks"],
            timers=inner["timers"],
            plugins=files.plugins,
            links=files.links,
            specs=files.specs,
        )


def least(samples: Iterable[Sample]) -> Sample:
    """Return the least of each figure: what is left where nothing happens."""
    rows = [astuple(sample) for sample in samples]
    return Sample(**dict(zip(Sample.__slots__, map(min, zip(*rows, strict=True)), strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """How much more of something the end may hold than the beginning."""

    name: str
    allowed: int = 0
    title: str = ""


BOUNDS = (
    Bound(name="rss", allowed=1024, title="rss KiB"),
    # What one request has that is repeated at rest, and a repair that waits for its time. A leak has some for each period.
    Bound(name="descriptors", allowed=2),
    Bound(name="threads"),
    Bound(name="tasks", allowed=2),
    Bound(name="timers", allowed=3),
    Bound(name="plugins", title="plugin files"),
    Bound(name="links"),
    Bound(name="specs", title="CDI files"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    bound: Bound
    first: int
    peak: int
    last: int

    @property
    def kept(self) -> bool:
        """Whether the end holds no more than is allowed."""
        return self.last <= self.first + self.bound.allowed

    def __str__(self) -> str:
        """Return the line."""
        verdict = "kept" if self.kept else "BROKEN"
        figures = "".join(f"{number:>10}" for number in (self.first, self.peak, self.last, self.last - self.first))
        return f"{self.bound.title or self.bound.name:<14}{figures}{self.bound.allowed:>10}  {verdict}"


HEAD = f"{'':<14}{'first':>10}{'peak':>10}{'last':>10}{'growth':>10}{'allowed':>10}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """A part of the run: what was measured under load, at rest after it, and how often each event was counted."""

    busy: Sequence[Sample]
    rest: Sample
    counts: Mapping[str, int]

    def holds(self, name: str) -> int:
        """Return the memory under load, which never goes back by itself; of all else what is left at rest."""
        return max(sample.rss for sample in self.busy) if name == "rss" else int(getattr(self.rest, name))


def table(periods: Sequence[Period]) -> tuple[Row, ...]:
    """Compare the last minute with the first."""
    first, last = periods[0], periods[-1]
    everything = [sample for period in periods for sample in (*period.busy, period.rest)]
    return tuple(
        Row(
            bound=bound,
            first=first.holds(bound.name),
            peak=max(getattr(sample, bound.name) for sample in everything),
            last=last.holds(bound.name),
        )
        for bound in BOUNDS
    )


WINDOW = 5
"""Periods in which all must happen that the run is about; on a busy machine an eviction may come too late for its stick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How often something happened in the periods.

    What is `required` must have happened within every `WINDOW` of them, or the run shows nothing.
    """

    name: str
    counts: Sequence[int]
    required: bool = False

    @property
    def kept(self) -> bool:
        """Whether it happened as often as is required."""
        return not self.required or self._least > 0

    @property
    def _least(self) -> int:
        """How often it happened in the window in which it happened least."""
        begins = range(max(1, len(self.counts) - WINDOW + 1))
        return min(sum(self.counts[begin : begin + WINDOW]) for begin in begins)

    def __str__(self) -> str:
        """Return the line."""
        verdict = ("kept" if self.kept else "BROKEN") if self.required else ""
        numbers = (self.counts[0], self.counts[-1], min(self.counts), self._least, sum(self.counts))
        figures = "".join(f"{number:>10}" for number in numbers)
        return f"{self.name:<34}{figures}  {verdict}".rstrip()


TALLY_HEAD = f"{'':<34}{'first':>10}{'last':>10}{'least':>10}{f'least of {WINDOW}':>10}{'total':>10}"


def tallies(periods: Sequence[Period], required: Sequence[str]) -> tuple[Tally, ...]:
    """Return what was counted, by name; what is required is there, even if it was never counted."""
    names = sorted({*required, *(name for period in periods for name, count in period.counts.items() if count)})
    return tuple(
        Tally(name=name, counts=[period.counts.get(name, 0) for period in periods], required=name in required)
        for name in names
    )
