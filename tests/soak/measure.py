"""What a process holds, from outside: memory, descriptors, threads; and, through its peephole, tasks and timers."""

from __future__ import annotations

import json
import signal
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from system.daemon import Daemon


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measurement; memory in KiB."""

    rss: int
    descriptors: int
    threads: int
    tasks: int
    timers: int

    @classmethod
    def of(cls, daemon: Daemon, peephole: Path) -> Sample:
        """Measure. Raises `AssertionError` where the daemon does not answer."""
        peephole.unlink(missing_ok=True)
        daemon.signal(signal.SIGUSR1)
        eventually(peephole.exists, timeout=10)
        inner = json.loads(peephole.read_text())
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        rows = dict(line.split(":", 1) for line in status.splitlines())
        return cls(
            rss=int(rows["VmRSS"].split()[0]),
            descriptors=len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir())),
            threads=int(rows["Threads"]),
            tasks=inner["tasks"],
            timers=inner["timers"],
        )


def least(samples: Iterable[Sample]) -> Sample:
    """Return the least of each figure: what is left where nothing happens."""
    rows = [astuple(sample) for sample in samples]
    return Sample(**dict(zip(Sample.__slots__, map(min, zip(*rows, strict=True)), strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """How much more of something the end may hold than the beginning."""

    name: str
    allowed: int
    unit: str = ""


BOUNDS = (
    Bound(name="rss", allowed=1024, unit=" KiB"),
    Bound(name="descriptors", allowed=0),
    Bound(name="threads", allowed=0),
    Bound(name="tasks", allowed=0),
    Bound(name="timers", allowed=0),
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
        return f"{self.bound.name + self.bound.unit:<14}{figures}{self.bound.allowed:>10}  {verdict}"


HEAD = f"{'':<14}{'first':>10}{'peak':>10}{'last':>10}{'growth':>10}{'allowed':>10}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """A part of the run: what was measured under load, and at rest after it."""

    busy: Sequence[Sample]
    rest: Sample

    def holds(self, name: str) -> int:
        """Return the memory under load, which never goes back by itself; of all else what is left at rest."""
        return max(sample.rss for sample in self.busy) if name == "rss" else int(getattr(self.rest, name))


def table(first: Period, last: Period, everything: Sequence[Sample]) -> tuple[Row, ...]:
    """Compare the last minute with the first."""
    return tuple(
        Row(
            bound=bound,
            first=first.holds(bound.name),
            peak=max(getattr(sample, bound.name) for sample in everything),
            last=last.holds(bound.name),
        )
        for bound in BOUNDS
    )
