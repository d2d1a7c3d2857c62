"""When a failed request is repeated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.core.backoff import Backoff, RepairBackoff

chances = st.floats(min_value=0, max_value=1, exclude_max=True)


def test_the_bound_doubles_from_half_a_second_to_thirty() -> None:
    """An outage of an hour costs few requests, one of a second is over at once."""
    backoff = Backoff()
    assert [backoff.fail(0, 0.5) for _ in range(8)] == [0.25, 0.5, 1, 2, 4, 8, 15, 15]


@given(st.lists(chances, min_size=1, max_size=50), st.floats(min_value=0, max_value=1e6))
def test_the_wait_is_anything_below_the_bound(draws: list[float], now: float) -> None:
    """Full jitter: the daemons of a fleet that lost its server together do not come back together."""
    backoff = Backoff()
    for failures, jitter in enumerate(draws):
        bound = min(30, 0.5 * 2**failures)
        assert backoff.fail(now, jitter) == pytest.approx(jitter * bound)
        assert backoff.until == pytest.approx(now + jitter * bound)


@given(chances, st.floats(min_value=0, max_value=60))
def test_the_wait_is_never_shorter_than_the_server_asked_for(jitter: float, asked: float) -> None:
    """A server that says Retry-After is left alone until then."""
    backoff = Backoff()
    assert backoff.fail(100, jitter, at_least=asked) == max(asked, jitter * 0.5)
    assert backoff.until >= 100 + asked


def test_another_limit_is_kept() -> None:
    """What the server refuses for good is tried once a minute, not every half."""
    backoff = Backoff(limit=60)
    assert max(backoff.fail(0, 0.999) for _ in range(20)) == pytest.approx(59.94)


def test_a_success_forgets_the_failures() -> None:
    """The next outage begins with a short wait, and nothing is waited for until it comes."""
    backoff = Backoff()
    for _ in range(5):
        backoff.fail(0, 0.9)
    backoff.succeed()
    assert (backoff.failures, backoff.until) == (0, float("-inf"))
    assert backoff.fail(0, 0.5) == 0.25


def test_failures_without_end_are_no_failure_of_arithmetic() -> None:
    """A server that is away for a year does not end the daemon with an OverflowError."""
    assert Backoff(failures=1_000_000).fail(0, 0.5) == 15


def test_a_repair_that_is_always_undone_comes_at_growing_intervals() -> None:
    """Two writers that contest a Node must not keep the API server busy; the first repair is immediate."""
    backoff = RepairBackoff()
    assert backoff.until == float("-inf")
    waits: list[float] = []
    for at in range(0, 10 * 300, 300):
        assert backoff.repaired(at) == len(waits) + 1
        waits.append(backoff.until - at)
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]


def test_a_quiet_period_resets_the_count_of_repairs() -> None:
    """A kubelet that restarts every day is repaired at once every day."""
    backoff = RepairBackoff()
    assert [backoff.repaired(at) for at in (0, 599, 1199, 1300)] == [1, 2, 1, 2]


def test_a_contest_without_end_is_no_failure_of_arithmetic() -> None:
    """The wait stays at its limit."""
    backoff = RepairBackoff()
    for at in range(3000):
        backoff.repaired(at)
    assert backoff.until == 2999 + 300
