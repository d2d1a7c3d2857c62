"""The soak: what it calls broken."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from soak.logtail import LogTail
from soak.measure import BOUNDS, Period, Sample, least, table, tallies

if TYPE_CHECKING:
    from pathlib import Path

    from soak.measure import Bound

SAMPLE = Sample(rss=50_000, descriptors=20, threads=3, tasks=9, timers=9, plugins=9, links=7, specs=3)


def period(sample: Sample, **counts: int) -> Period:
    """Return a period in which each measurement gave the same."""
    return Period(busy=[sample], rest=sample, counts=counts)


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.name)
def test_growth_beyond_the_bound_is_broken(bound: Bound) -> None:
    """Each figure has a bound of its own, and just as much as is allowed is kept."""
    for more, kept in ((bound.allowed, True), (bound.allowed + 1, False)):
        grown = replace(SAMPLE, **{bound.name: getattr(SAMPLE, bound.name) + more})
        rows = table([period(SAMPLE), period(grown)])
        assert {row.bound.name: row.kept for row in rows} == {each.name: kept or each != bound for each in BOUNDS}


def test_of_the_rest_the_least_counts() -> None:
    """What is still on its way for a moment is not growth."""
    busy = replace(SAMPLE, tasks=14, timers=8)
    assert least([busy, SAMPLE]) == replace(SAMPLE, timers=8)


def test_minutes_without_what_it_is_about_are_broken() -> None:
    """A soak in which no pod is evicted for five minutes shows nothing of evictions; each may be missing for four."""
    periods = [period(SAMPLE, evicted=3), *[period(SAMPLE)] * 4, period(SAMPLE, allocated=2)]
    found = {tally.name: tally.kept for tally in tallies(periods, ["evicted", "allocated", "prepared"])}
    assert found == {"evicted": False, "allocated": False, "prepared": False}
    found = {tally.name: tally.kept for tally in tallies(periods[:5], ["evicted", "prepared"])}
    assert found == {"evicted": True, "prepared": False}


def test_the_log_is_counted_as_it_grows(tmp_path: Path) -> None:
    """A line that is still being written is counted once, when it is complete; trouble is kept."""
    file = tmp_path / "log"
    evicted = {"event": "pod.evicted", "resource": "a.example/b", "reason": "lost"}
    file.write_text(json.dumps(evicted) + '\n{"event": "daemon.fa')
    log = LogTail(file=file)
    log.read()
    assert log.events == {"pod.evicted": 1, "pod.evicted a.example/b lost": 1}
    with file.open("a") as more:
        more.write('iled"}\nTraceback (most recent call last):\n')
    log.read()
    assert log.events["daemon.failed"] == 1
    assert log.trouble == ['{"event": "daemon.failed"}', "Traceback (most recent call last):"]
