"""The way of publishing that the annotation tells, and what a changed one waits for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from devwatch.core.listing import Entry
from devwatch.core.pods import Pod
from devwatch.core.rules import Publish, ResourceRule
from devwatch.core.way import Change, changes, holdouts, way_of

HANDED_OVER = Entry(devnode="", publish="devicePlugin")
CHANGE = Change(resource="a.io/x", former=Publish.NODE_STATUS, way=Publish.DEVICE_PLUGIN)


@pytest.mark.parametrize(
    ("entries", "way"),
    [
        ((), Publish.NODE_STATUS),
        ((Entry(devnode="/dev/ttyUSB0"),), Publish.NODE_STATUS),
        ((Entry(devnode="/dev/ttyUSB0", publish="of tomorrow"),), Publish.NODE_STATUS),
        ((HANDED_OVER,), Publish.DEVICE_PLUGIN),
        ((Entry(devnode="/dev/ttyUSB0"), HANDED_OVER), Publish.DEVICE_PLUGIN),
    ],
)
def test_the_entries_tell_the_way(entries: tuple[Entry, ...], way: Publish) -> None:
    """Without a word of it, it is the Node's status, as it was before there was another."""
    assert way_of(entries) is way


def test_a_resource_that_is_not_listed_may_have_pods_of_a_former_way() -> None:
    """It may have left the configuration and come back; one that is listed in its way has none."""
    rules = [ResourceRule(name=f"a.io/{part}", match=(), publish=Publish.DEVICE_PLUGIN) for part in "xyz"]
    assert changes(rules, {"a.io/x": (), "a.io/y": (HANDED_OVER,)}, {}) == {
        CHANGE,
        replace(CHANGE, resource="a.io/z", listed=False),
    }


def test_a_changed_way_waits_for_unfinished_pods_that_request_the_resource() -> None:
    """They are named in their order, at most five; pods of other resources and finished ones hold nothing."""

    def pod(name: str, count: int = 1, phase: str = "Running") -> Pod:
        return Pod(namespace="d", name=name, uid=name, phase=phase, requests={"a.io/x": count})

    idle = [pod("y", count=0), pod("z", phase="Succeeded")]
    assert holdouts(CHANGE, idle) == ""
    assert holdouts(CHANGE, [*idle, pod("b"), pod("a", phase="Pending")]) == "waits for the end of d/a, d/b"
    assert holdouts(CHANGE, map(pod, "abcdefg")) == "waits for the end of d/a, d/b, d/c, d/d, d/e and 2 more"
