"""Which tests may run at the same time as which."""

from __future__ import annotations

import re

import pytest

from support.checkout import CHECKOUT
from support.machine import ALONE, SERVERS, scope_of


@pytest.mark.parametrize("start", ALONE)
def test_what_runs_alone_is_there(start: str) -> None:
    """A test that was renamed would no longer be kept apart."""
    path, _, name = start.partition("::")
    assert (CHECKOUT / path).exists()
    assert not name or f"\ndef {name}(" in (CHECKOUT / path).read_text(encoding="utf-8")


def test_one_worker_has_all_that_needs_the_machine_to_itself() -> None:
    """And the largest piece of work, which that is, is given out first."""
    alone = {scope_of(f"{start}{rest}") for start in ALONE for rest in ("", "test_x.py::test_it", "[a]@b")}
    other = "tests/unit/core/test_rules.py::test_a_device_is_never_counted_twice"
    assert (alone, scope_of(other)) == ({"machine"}, other)


@pytest.mark.parametrize("path", SERVERS)
def test_what_needs_a_server_alone_runs_beside_the_machine(path: str) -> None:
    """Its tests have neither udevd nor sticks, and start no daemon, which would take every stick for its own."""
    assert scope_of(f"{path}::test_it") == "API server"
    text = (CHECKOUT / path).read_text(encoding="utf-8")
    assert not re.search(r"system\.(daemon|udevd|kubelet) import|[(\s](udevd|sticks|start_daemon|kubelet): [A-Z]", text)
