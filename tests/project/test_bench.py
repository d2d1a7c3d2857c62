"""The bench counts rightly and shows what it counted; its figures themselves are no test."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.machine import version_in
from bench.stats import Sample, percentile
from bench.table import HEAD, Goal, Row, all_of, at_least, at_most, render
from support.checkout import CHECKOUT

NUMBERS = st.lists(st.integers(min_value=0, max_value=10**6).map(float), min_size=1, max_size=300)


def test_a_sample_says_what_was_measured() -> None:
    """Of 1 to 100 the 99th percentile is 99: the smallest value that 99 per cent do not exceed."""
    sample = Sample.of([float(number) for number in range(100, 0, -1)])
    assert (sample.count, sample.minimum, sample.maximum) == (100, 1, 100)
    assert (sample.median, sample.mean, sample.p99) == (50.5, 50.5, 99)


@given(NUMBERS, st.floats(min_value=0, max_value=100))
def test_a_percentile_is_a_value_that_was_measured(values: list[float], percent: float) -> None:
    """At least that share is no greater, and with the next smaller value it would not be."""
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert found == min(values) or sum(value < found for value in values) * 100 < percent * len(values)


@given(NUMBERS)
def test_another_unit_changes_no_order(values: list[float]) -> None:
    """A scaled sample is the sample of scaled values."""
    assert Sample.of(values).scaled(2.0) == Sample.of([value * 2 for value in values])


def test_nothing_measured_is_no_figure() -> None:
    """An empty sample is an error, not a row of zeros."""
    with pytest.raises(ValueError, match="nothing was measured"):
        Sample.of([])


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (at_most(10, 10), True),
        (at_most(10, 10.1), False),
        (at_least(200, 200), True),
        (at_least(200, 199.9), False),
        (all_of(at_most(1, 0), at_most(1, 2)), False),
    ],
)
def test_a_goal_is_met_or_not(goal: Goal, met: bool) -> None:  # noqa: FBT001  a column of the table above
    """The limit itself is good enough."""
    assert goal.met is met


ROWS = [
    Row(
        bench="b",
        figure="times",
        unit="ms",
        value=Sample.of([1.0, 2.0, 4000.25]),
        goal=at_most(1, 2, "p50"),
        note="how",
    ),
    Row(bench="b", figure="one", value=0.04321, goal=at_most(1, 0.04)),
    Row(bench="b", figure="text", value="never"),
]


def test_the_table_is_aligned_under_its_head() -> None:
    """Every figure stands in its column, goals say yes or NO, notes follow."""
    lines = render({"machine": "m"}, ROWS).splitlines()
    assert lines[0] == "machine: m"
    head, times, one, text = lines[2:6]
    assert head.split() == list(HEAD)
    assert times.split() == ["b", "times", "ms", "3", "1", "2", "4000", "4000", "p50", "<=", "1", "NO"]
    assert one.split() == ["b", "one", "0.0432", "<=", "1", "yes"]
    end = head.index("median") + len("median")
    shown = zip((times, one, text), (" 2", " 0.0432", " never"), strict=True)
    assert all(line[:end].endswith(value) for line, value in shown)
    assert lines[-1] == "- b, times: how"


def test_the_document_holds_every_number() -> None:
    """JSON has more than the table shows, unrounded."""
    document = json.loads(json.dumps(ROWS[0].document()))
    assert document["value"]["maximum"] == 4000.25
    assert document["goal"] == {"text": "p50 <= 1", "met": False}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n", "1.6.20~ds1"),
        ("containerd github.com/containerd/containerd/v2 v2.1.9 0123abc\n", "2.1.9"),
        ("252\n", "252"),
        ("none\n", "unknown"),
    ],
)
def test_a_program_tells_its_version(text: str, version: str) -> None:
    """Among other words."""
    assert version_in(text) == version


def test_what_is_missing_is_said_in_one_line() -> None:
    """Without an API server there are no figures: status 2, and the reason."""
    done = subprocess.run(
        [sys.executable, "-m", "bench"],
        cwd=CHECKOUT,
        env={"PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("bench: needs KUBEBUILDER_ASSETS")
    assert done.stderr.count("\n") == 1
