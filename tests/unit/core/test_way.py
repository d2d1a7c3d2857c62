"""The way of publishing that the annotation tells, and what a changed one waits for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from devwatch.core.holders import Holding
from devwatch.core.listing import Entry
from devwatch.core.pods import Pod
from devwatch.core.rules import Count, Publish, ResourceRule
from devwatch.core.way import Change, changes, handed_over_before, holdouts, joined, way_of

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
        ((Entry(devnode="/dev/ttyUSB0", publish="dra"),), Publish.DRA),
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


BY_DEVICE = ResourceRule(name="a.io/x", match=(), publish=Publish.DEVICE_PLUGIN)
RECOUNTED = replace(CHANGE, former=Publish.DEVICE_PLUGIN)


def test_what_this_daemon_has_begun_counts_before_the_annotation() -> None:
    """Anyone may write that."""
    memory = {"a.io/x": (HANDED_OVER,)}
    assert changes([BY_DEVICE], memory, {"a.io/x": replace(BY_DEVICE, publish=Publish.NODE_STATUS)}) == {CHANGE}
    assert changes([BY_DEVICE], {"a.io/x": ()}, {"a.io/x": BY_DEVICE}) == frozenset()
    assert changes([BY_DEVICE], {}, {"a.io/x": replace(BY_DEVICE, count=Count.DEVNODE)}) == {RECOUNTED}


def test_a_resource_that_counts_something_else_has_changed() -> None:
    """Its devices have other IDs. Where the entries do not tell what they counted, or disagree, it has not."""
    whole, part = (
        replace(HANDED_OVER, devnode="/dev/x", id=name, place=place) for name, place in (("w", None), ("p", "00:0"))
    )
    by_devnode = replace(BY_DEVICE, count=Count.DEVNODE)
    assert changes([by_devnode], {"a.io/x": (HANDED_OVER, whole)}, {}) == {RECOUNTED}
    assert changes([BY_DEVICE], {"a.io/x": (HANDED_OVER, part)}, {}) == {RECOUNTED}
    for entries in ((part,), (HANDED_OVER,), (whole, part)):
        assert changes([by_devnode], {"a.io/x": entries}, {}) == frozenset()
    listed = (replace(whole, publish=None),)
    status = replace(by_devnode, publish=Publish.NODE_STATUS)
    assert changes([status], {"a.io/x": listed}, {}) == frozenset(), "a figure of the Node has no IDs"


def test_a_change_says_what_changes() -> None:
    """In the log and at `/readyz`."""
    assert (str(CHANGE), str(RECOUNTED)) == ("from nodeStatus to devicePlugin", "its count")


def test_what_the_kubelet_has_handed_over_is_known_by_the_entries() -> None:
    """A figure of the Node is not."""
    assert handed_over_before({"a.io/x": (HANDED_OVER,), "a.io/y": (Entry(devnode="/dev/x"),)}) == {
        "a.io/x": (HANDED_OVER,)
    }


def test_a_line_names_five_and_counts_the_rest() -> None:
    """Where there is a rest."""
    assert (joined("abcde"), joined("abcdef")) == ("a, b, c, d, e", "a, b, c, d, e and 1 more")


def test_a_changed_way_waits_for_unfinished_pods_that_request_the_resource() -> None:
    """They are named in their order, at most five; pods of other resources and finished ones hold nothing."""

    def pod(name: str, count: int = 1, phase: str = "Running") -> Pod:
        return Pod(namespace="d", name=name, uid=name, phase=phase, requests={"a.io/x": count})

    idle = [pod("y", count=0), pod("z", phase="Succeeded")]
    assert holdouts(CHANGE, idle) == ""
    assert holdouts(CHANGE, [*idle, pod("b"), pod("a", phase="Pending")]) == "waits for the end of d/a, d/b"
    assert holdouts(CHANGE, map(pod, "abcdefg")) == "waits for the end of d/a, d/b, d/c, d/d, d/e and 2 more"


FROM_DRA = replace(CHANGE, former=Publish.DRA, way=Publish.DEVICE_PLUGIN)


def a_pod(name: str, **fields: Any) -> Pod:  # noqa: ANN401  any field of a Pod
    """Return a running pod."""
    return Pod(namespace="d", name=name, uid=name, phase="Running", **fields)


def has(name: str, claim: str = "", resource: str = "a.io/x") -> Holding:
    """Return that a pod has a device, through a claim or from the device plugin."""
    return Holding(namespace="d", pod=name, container="c", resource=resource, ids=frozenset({"i"}), claim=claim)


def test_a_pod_that_has_its_device_in_the_new_way_is_not_waited_for() -> None:
    """A daemon that starts again in the middle of a change sees both."""
    both = [a_pod("old", requests={"a.io/x": 1}), a_pod("new", requests={"a.io/x": 1})]
    assert holdouts(CHANGE, both, [has("new")]) == "waits for the end of d/old"
    assert holdouts(replace(CHANGE, way=Publish.DRA), both, [has("new", "c")]) == "waits for the end of d/old"
    assert holdouts(FROM_DRA, both, [has("old", "c"), has("new")]) == "waits for the end of d/old"


def test_a_claim_holds_a_device_without_a_request() -> None:
    """Its pod has it in the former way; a claim of another driver has not."""
    pods = [a_pod("p", claims=frozenset({"mine"})), a_pod("q", claims=frozenset({"gpu"}))]
    assert holdouts(FROM_DRA, pods, [has("p", "mine"), has("q", "gpu", resource="")]) == "waits for the end of d/p"


def test_a_claim_that_the_kubelet_does_not_tell_of_may_be_one_of_the_former_way() -> None:
    """Its pod may just have been bound."""
    assert holdouts(FROM_DRA, [a_pod("p", claims=frozenset({"new"}))]) == "waits for the end of d/p"
    assert holdouts(CHANGE, [a_pod("p", claims=frozenset({"new"}))]) == ""
    both = [a_pod("p", claims=frozenset({"new", "gpu"})), a_pod("q", requests={"a.io/x": 1})]
    told = [has("p", "gpu", resource="")]
    assert holdouts(FROM_DRA, both, told) == "waits for the end of d/p, d/q"
