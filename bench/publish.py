"""Show the figures of a complete run in the documentation: `python -m bench.publish [FILE]` writes them there again."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import ROOT
from bench.handover import UNPATCHED
from bench.journey import MS, POLLED, VISIBLE
from bench.plot import Lane, duration, plot
from bench.scene import FIGURE
from bench.stats import Sample
from bench.table import Row, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

LAST = ROOT / "bench" / "last.json"
"""The run that the documentation shows."""
_BLOCK = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- bench: end -->\n)", re.DOTALL)
_NUMBERS = re.compile(r"\[\s*(-?[\d.e+-]+(?:,\s+-?[\d.e+-]+)*)\s*\]")
_COSTS = ("RSS", "PSS", "CPU", "wakeups")
_PREFIXES = {"seed": "polling script: ", "handover": "`devicePlugin`: ", "dra": "`dra`: ", "idle": "idle: "}
"""What stands before the figures of a bench."""
_SIZE = re.compile(r"(.+), +(\d+) devices, +(\d+) rules")
Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A complete run."""

    about: Mapping[str, str]
    rows: Sequence[Row]

    @classmethod
    def read(cls, file: Path = LAST) -> Run:
        """Read a file that `write` has written. Raises `OSError`."""
        document: Document = json.loads(file.read_text("utf-8"))
        rows = tuple(map(Row.read, document.pop("rows")))
        return cls(about=document, rows=rows)

    def write(self, file: Path) -> None:
        """Write it as JSON, with the measurements of a row in one line. Raises `OSError`."""
        document = {**self.about, "rows": [row.document() for row in self.rows]}
        text = _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", json.dumps(document, indent=2))
        file.write_text(f"{text}\n", "utf-8")

    def rounded(self) -> Run:
        """Return the run with the figures as a file has them."""
        return Run(about=self.about, rows=tuple(Row.read(row.document()) for row in self.rows))

    def row(self, bench: str, figure: str) -> Row:
        """Return a row. Raises `KeyError`."""
        for row in self.rows:
            if (row.bench, row.figure) == (bench, figure):
                return row
        raise KeyError(f"{bench}, {figure}")

    def seconds(self, bench: str, figure: str) -> Sample:
        """Return the measurements of a row in seconds. Raises `KeyError`, also where there are none."""
        row = self.row(bench, figure)
        if not isinstance(row.value, Sample):
            raise KeyError(f"{bench}, {figure}: {row.value}")
        return row.value.scaled(1 / MS) if row.unit == "ms" else row.value


# -- the blocks


def _about(run: Run) -> str:
    lines = (f"Measured on {run.about['date']}: {run.about['machine']}", run.about["versions"], run.about["run"])
    return "".join(f"{line}.\n" for line in lines if line)


def _table(rows: Iterable[Row]) -> str:
    """Return a table with a list of its notes."""
    rows = tuple(rows)
    heads = ("figure", "unit", "n", "min", "median", "p99", "max", "goal")
    lines = [heads, ("---",) * len(heads), *map(_cells, rows)]
    notes = dict.fromkeys(f"- {_title(row)}: {row.note}\n" for row in rows if row.note)
    return _lines(lines) + ("\n" if notes else "") + "".join(notes)


def _lines(lines: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cells(row: Row) -> tuple[str, ...]:
    _, _, *cells, goal, met = row.cells()
    return (_title(row), *cells, f"{goal} (**not met**)" if met == "NO" else goal)


def _title(row: Row) -> str:
    return f"{_PREFIXES.get(row.bench, '')}{' '.join(row.figure.split())}"


def _of(*benches: str) -> Callable[[Run], str]:
    return lambda run: _table(row for row in run.rows if row.bench in benches)


def _pods(run: Run) -> str:
    return _table(row for row in run.rows if row.bench in {"handover", "dra"} and not row.figure.startswith(_COSTS))


def _costs(run: Run) -> str:
    """Return what a daemon costs: alone, and registered with the kubelet."""
    registered = {"handover", "dra"}
    return _table(
        row
        for row in run.rows
        if row.bench in {"memory", "idle", "storm"} or (row.bench in registered and row.figure.startswith(_COSTS))
    )


def _growth(run: Run) -> str:
    """Return what sizes come to: the medians of the warm reconcile by size, and the rest in a table like all others."""
    rows = [row for row in run.rows if row.bench == "growth"]
    sizes = {(found[1], int(found[2]), int(found[3])): row for row in rows if (found := _SIZE.fullmatch(row.figure))}
    kinds = tuple(dict.fromkeys(kind for kind, _, _ in sizes))
    rest = [row for row in rows if row not in sizes.values() or row.goal]
    return "".join(f"{_matrix(kind, sizes)}\n" for kind in kinds) + _table(rest)


def _matrix(kind: str, sizes: Mapping[tuple[str, int, int], Row]) -> str:
    devices, rules = sorted({size for _, size, _ in sizes}), sorted({size for _, _, size in sizes})
    unit = next(row.unit for key, row in sizes.items() if key[0] == kind)
    lines = [
        (f"{kind}, {unit}", *(f"{count} rules" if count > 1 else "1 rule" for count in rules)),
        ("---",) * (len(rules) + 1),
        *(
            (f"{some} devices" if some > 1 else "1 device", *(_median(sizes.get((kind, some, each))) for each in rules))
            for some in devices
        ),
    ]
    return _lines(lines)


def _median(row: Row | None) -> str:
    return shown(row.value.median if isinstance(row.value, Sample) else row.value) if row else ""


def _short(run: Run) -> str:
    """Return the table of the README."""
    figures = (
        ("stick plugged or pulled -> shown to every client of the API server", "latency", VISIBLE),
        ("stick plugged -> opened by its container, with `devicePlugin`", "handover", FIGURE),
        ("the same at the pace of the kubelet, without devwatch's PATCH", "handover", UNPATCHED),
        ("the same change by a script that polls every 10 s -> shown", "seed", POLLED),
    )
    samples = [(title, run.seconds(bench, figure)) for title, bench, figure in figures]
    lines = [("[measured](docs/performance.md) by `make bench`", "median", "worst"), ("---",) * 3]
    lines += [(title, duration(sample.median), duration(sample.maximum)) for title, sample in samples]
    lines += [_cost(run, "memory (RSS), with metrics scraped", "memory", "RSS, daemon with metrics scraped ten times")]
    lines += [_cost(run, "CPU at rest", "idle", "CPU")]
    return _lines(lines)


def _cost(run: Run, title: str, bench: str, figure: str) -> tuple[str, str, str]:
    row = run.row(bench, figure)
    worst = f"{shown(row.value.maximum)} {row.unit}" if isinstance(row.value, Sample) else ""
    return title, f"{_median(row)} {row.unit}", worst


_BLOCKS: Mapping[str, Callable[[Run], str]] = {
    "about": _about,
    "short": _short,
    "latency": _of("latency", "seed", "bound", "start"),
    "pods": _pods,
    "costs": _costs,
    "growth": _growth,
    "fleet": _of("fleet"),
}


# -- the files


def page(text: str, run: Run) -> str:
    """Return a page with its blocks as the run has them. Raises `KeyError` for a block that there is not."""
    return _BLOCK.sub(lambda found: f"{found[1]}{_BLOCKS[found[2]](run)}{found[3]}", text)


def picture(_text: str, run: Run) -> str:
    """Return the plot."""
    lanes = (
        ("devwatch: uevent -> shown", "latency", VISIBLE, True),
        ("devwatch: plugged -> opened by a Pod", "handover", FIGURE, True),
        ("kubelet's own sync: plugged -> opened", "handover", UNPATCHED, False),
        ("polling script: plugged or pulled -> shown", "seed", POLLED, False),
    )
    drawn = [Lane(name=name, sample=run.seconds(bench, figure), ours=ours) for name, bench, figure, ours in lanes]
    dots = "one dot for each change; " if all(lane.sample.values for lane in drawn) else ""
    return plot("How long it takes", drawn, f"{dots}the line is the median")


FILES: Mapping[str, Callable[[str, Run], str]] = {
    "README.md": page,
    "docs/performance.md": page,
    "docs/assets/latency.svg": picture,
}
"""By the path of a file below the root of the checkout: what its content has to be, given its present one."""


def publish(run: Run, root: Path = ROOT) -> None:
    """Write all files of a checkout. Raises `KeyError` before, where the run lacks a figure of theirs."""
    paths = {root / name: current for name, current in FILES.items()}
    texts = {path: current(path.read_text("utf-8") if path.exists() else "", run) for path, current in paths.items()}
    for path, text in texts.items():
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    publish(Run.read(*map(Path, sys.argv[1:2])))
