"""Memory and work of a process, from proc(5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NANOSECONDS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The resident memory of a process in MiB: all of it, and proportionally, with shared pages divided by their users."""

    rss: float
    pss: float

    @classmethod
    def of(cls, pid: int) -> Memory:
        """Read it (/proc/PID/smaps_rollup); raises `OSError`."""
        fields = _fields(Path(f"/proc/{pid}/smaps_rollup"))
        return cls(rss=fields["Rss"] / 1024, pss=fields["Pss"] / 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work of a process since its start, all threads together."""

    cpu: float
    """Seconds on a processor, by the scheduler's own account (/proc/PID/task/TID/schedstat)."""
    wakeups: float
    """How often it has waited for something and gone on (voluntary_ctxt_switches)."""

    @classmethod
    def of(cls, pid: int) -> Work:
        """Read it; raises `OSError`."""
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        cpu = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / NANOSECONDS
        return cls(cpu=cpu, wakeups=sum(_fields(task / "status")["voluntary_ctxt_switches"] for task in tasks))

    def since(self, before: Work) -> Work:
        """Return the work since `before`."""
        return Work(cpu=self.cpu - before.cpu, wakeups=self.wakeups - before.wakeups)


def _fields(file: Path) -> dict[str, float]:
    pairs = (line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    numbers = ((name, text.split()) for name, text in pairs)
    return {name: float(words[0]) for name, words in numbers if words and words[0].isdecimal()}
