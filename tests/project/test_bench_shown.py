"""README, docs/ and the plot show the figures of the run that is in bench/last.json, and no other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.journey import VISIBLE
from bench.plot import WIDTH, Lane, duration, plot
from bench.publish import FILES, LAST, Run, page, publish
from bench.stats import Sample
from bench.table import Goal, Row
from support.checkout import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

MEASURED = st.lists(st.floats(min_value=1e-4, max_value=100), min_size=1, max_size=200)
BIGGEST_PLOT = 30_000
"""Bytes: what a page may load for one picture."""


def text_of(name: str) -> str:
    """Return a file of the checkout."""
    return (CHECKOUT / name).read_text("utf-8")


def without(run: Run, figure: str) -> Run:
    """Return a run that has not measured a figure."""
    return replace(run, rows=[row for row in run.rows if row.figure != figure])


def slower(run: Run, figure: str) -> Run:
    """Return a run that has measured a hundred times as much for a figure."""
    return replace(
        run,
        rows=[
            replace(row, value=row.value.scaled(100)) if row.figure == figure and isinstance(row.value, Sample) else row
            for row in run.rows
        ],
    )


@pytest.mark.parametrize("name", FILES)
def test_a_file_shows_the_last_run(name: str) -> None:
    """`python -m bench.publish` would change nothing."""
    assert FILES[name](text_of(name), Run.read()) == text_of(name), "run python -m bench.publish"


@pytest.mark.parametrize("name", FILES)
def test_another_figure_changes_a_file(name: str) -> None:
    """So the test above fails where a figure was changed by hand, in the file or in the run."""
    assert FILES[name](text_of(name), slower(Run.read(), VISIBLE)) != text_of(name)


def test_the_pages_show_every_figure_of_the_last_run() -> None:
    """Each bench has its block, and each row stands in one."""
    tables = text_of("docs/performance.md")
    sizes = r"(first scan|warm reconcile|first patch), +\d+ devices, +\d+ rules"  # a table of its own has them
    rows = [" ".join(row.figure.split()) for row in Run.read().rows if not re.fullmatch(sizes, row.figure)]
    assert len(rows) > 30
    assert [figure for figure in rows if f"{figure} |" not in tables] == []


def test_an_incomplete_run_changes_nothing(tmp_path: Path) -> None:
    """Not even the page whose own figures are all there."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, tmp_path / name)
    with pytest.raises(KeyError, match=f"latency, {VISIBLE}"):
        publish(without(slower(Run.read(), "uevent read -> PATCH answered"), VISIBLE), tmp_path)
    assert [name for name in FILES if (tmp_path / name).read_text("utf-8") != text_of(name)] == []


def test_a_complete_run_is_shown_everywhere(tmp_path: Path) -> None:
    """What stands outside of the blocks stays, and nothing of the run before does."""
    (tmp_path / "docs" / "assets").mkdir(parents=True)
    for name in ("README.md", "docs/performance.md"):
        shutil.copy(CHECKOUT / name, tmp_path / name)
    run = slower(Run.read(), VISIBLE)
    publish(run, tmp_path)
    assert all((tmp_path / name).read_text("utf-8") == FILES[name](text_of(name), run) for name in FILES)
    publish(Run.read(), tmp_path)
    assert all((tmp_path / name).read_text("utf-8") == text_of(name) for name in FILES)


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The measurements of a plotted row to four digits, those of others not at all; in few lines."""
    sample = Sample.of([1.23456, 2.0, 30000.0])
    rows = (
        Row(bench="b", figure="f", unit="ms", value=sample, goal=Goal(text="<= 1", met=False), note="n", plotted=True),
        Row(bench="b", figure="g", value=replace(sample, values=())),
        Row(bench="b", figure="h", value="never"),
        Row(bench="b", figure="i", value=0.5),
    )
    Run(about={"machine": "m"}, rows=rows).write(tmp_path / "run.json")
    read = Run.read(tmp_path / "run.json")
    first, *others = read.rows
    assert first == replace(rows[0], value=replace(sample, values=(1.235, 2.0, 30000.0)))
    assert (read.about, others) == ({"machine": "m"}, [*rows[1:]])
    assert "[1.235, 2.0, 30000.0]" in (tmp_path / "run.json").read_text("utf-8")


def test_a_goal_that_is_not_met_is_shown_as_such() -> None:
    """Beside its text."""
    row = Row(bench="start", figure="f", unit="ms", value=2.0, goal=Goal(text="p50 <= 1", met=False))
    shown = page("<!-- bench: latency -->\nold\n<!-- bench: end -->\n", Run(about={}, rows=[row]))
    assert shown.splitlines()[3] == "| f | ms |  |  | 2 |  |  | p50 <= 1 (**not met**) |"


def test_a_run_is_shown_with_the_figures_of_its_file(tmp_path: Path) -> None:
    """The picture has a dot for each measurement, and the file has these rounded."""
    run = slower(Run.read(), VISIBLE)
    sample = run.row("latency", VISIBLE).value
    assert isinstance(sample, Sample)
    finer = replace(run, rows=[replace(run.row("latency", VISIBLE), value=sample.scaled(1 / 3))])
    finer.rounded().write(tmp_path / "run.json")
    assert Run.read(tmp_path / "run.json") == finer.rounded() != finer


def test_only_a_complete_run_is_written() -> None:
    """`--write` with a name or `--quick` is refused before anything runs."""
    for words in (["--write", "idle"], ["--write", "--quick"]):
        command = [sys.executable, "-m", "bench", *words]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        assert (done.returncode, "--write is for a complete run" in done.stderr) == (2, True)


# -- the plot


def drawn(*lanes: Lane) -> tuple[str, list[tuple[float, float]]]:
    """Return a plot, and where its dots are."""
    text = plot("t & <u>", lanes, "n")
    ET.fromstring(text)  # noqa: S314 - our own
    return text, [(float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)h0", text)]


@given(MEASURED)
def test_each_measurement_is_a_dot_in_the_picture(values: list[float]) -> None:
    """Inside of its lane, and none is left out; the greater ones are further right."""
    text, dots = drawn(Lane(name="a", sample=Sample.of(values), ours=True))
    assert len(dots) == len(values)
    assert all(0 < x < WIDTH for x, _ in dots)
    assert all(56 < y < 56 + 78 for _, y in dots)
    assert f"worst {duration(max(values))}" in text


def test_the_scale_is_logarithmic_and_one_for_all_lanes() -> None:
    """Ten times as much is as far away at each place."""
    samples = [Sample.of([10.0**power]) for power in (-3, -2, -1, 0)]
    _, dots = drawn(*(Lane(name="a", sample=sample, ours=True) for sample in samples))
    steps = {round(right - left) for (left, _), (right, _) in pairwise(dots)}
    assert len(dots) == 4
    assert max(steps) - min(steps) <= 4  # a dot's diameter


def test_a_sample_without_its_measurements_is_a_range() -> None:
    """With the median."""
    text, dots = drawn(Lane(name="a", sample=replace(Sample.of([0.01, 0.1, 1.0]), values=()), ours=False))
    assert dots == []
    assert "median 0.1 s, worst 1 s" in text
    assert text.count('class="median"') == text.count('class="range"') == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00788, "7.9 ms"), (0.0353, "35 ms"), (0.0999, "0.1 s"), (0.114, "0.11 s"), (8.42, "8.4 s"), (10.03, "10 s")],
)
def test_a_duration_has_two_digits(seconds: float, text: str) -> None:
    """In the unit that people would say."""
    assert duration(seconds) == text


def test_the_plot_is_a_small_file() -> None:
    """As is what it is made from."""
    assert len(text_of("docs/assets/latency.svg")) < BIGGEST_PLOT
    assert LAST.stat().st_size < 2 * BIGGEST_PLOT
