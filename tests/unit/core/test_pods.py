"""Pods as values: what they request, and which a lost device concerns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.core.incidents import Loss
from devwatch.core.listing import Entry
from devwatch.core.pods import Disposition, effective_request, on_loss
from support.build import ZIGBEE, ZWAVE, pod

LOSS = Loss(
    resource=ZIGBEE,
    entries=(Entry(devnode="/dev/ttyUSB0", links=("/dev/serial/by-id/a",)), Entry(devnode="/dev/ttyUSB1")),
    left=0,
    since=0,
    due=0,
    there=frozenset({"uid-p"}),
    lost="2026-01-01T00:00:05Z",
    accepted="2026-01-01T00:00:07Z",
    others=frozenset({"/dev/ttyUSB7"}),
)


@pytest.mark.parametrize(
    ("containers", "init", "counted"),
    [
        ([], [], 0),
        ([1, 2], [], 3),
        ([1], [(3, False), (2, False)], 3),
        ([1], [(1, True)], 2),
        ([1], [(1, True), (1, False)], 2),
        ([1], [(1, False), (1, True), (2, False), (1, True)], 3),
        ([0], [(1, True), (4, False)], 5),
        ([0], [(4, False), (1, True)], 4),
        ([0], [(1, True), (2, True)], 3),
    ],
)
def test_requests_are_counted_as_the_scheduler_does(
    containers: list[int], init: list[tuple[int, bool]], counted: int
) -> None:
    """Containers add up, an init container runs beside the sidecars before it, a sidecar beside all that follow."""
    assert effective_request(containers, init) == counted


@given(containers=st.lists(st.integers(0, 5)), init=st.lists(st.tuples(st.integers(0, 5), st.booleans())))
def test_a_pod_requests_the_most_that_it_ever_runs_at_once(containers: list[int], init: list[tuple[int, bool]]) -> None:
    """Told by playing its start moment by moment."""
    sidecars, moments = 0, []
    for request, sidecar in init:
        moments.append(sidecars + request)
        sidecars += request if sidecar else 0
    assert effective_request(containers, init) == max([*moments, sidecars + sum(containers)])


@pytest.mark.parametrize(
    ("fields", "left", "what"),
    [
        ({}, 0, Disposition.EVICT),
        ({"owner": ""}, 0, Disposition.BARE),
        ({"requests": {ZWAVE: 1}}, 0, None),
        ({"requests": {ZIGBEE: 0}}, 0, None),
        ({"requests": {}}, 0, None),
        ({"phase": "Succeeded"}, 0, None),
        ({"phase": "Failed"}, 0, None),
        ({"phase": "Pending"}, 0, Disposition.EVICT),
        ({"terminating": True}, 0, None),
        ({"mirror": True, "owner": "Node"}, 0, Disposition.PINNED),
        ({"owner": "DaemonSet"}, 0, Disposition.PINNED),
        ({}, 1, Disposition.AMBIGUOUS),
        ({"owner": ""}, 1, Disposition.AMBIGUOUS),
        ({"host_paths": ("/dev/ttyUSB0",)}, 1, Disposition.EVICT),
        ({"host_paths": ("/etc", "/dev/ttyUSB1/")}, 1, Disposition.EVICT),
        ({"host_paths": ("/dev/serial/by-id/a",)}, 1, Disposition.EVICT),
        ({"host_paths": ("/dev/serial/by-id/a",), "owner": ""}, 1, Disposition.BARE),
        ({"host_paths": ("/dev", "/dev/ttyUSB10", "")}, 1, Disposition.AMBIGUOUS),
        ({"host_paths": ("/dev/ttyUSB7",)}, 1, None),
        ({"host_paths": ("/dev/ttyUSB7", "/dev/ttyUSB0")}, 1, Disposition.EVICT),
        ({"host_paths": ("/dev/ttyUSB7",)}, 0, Disposition.EVICT),
        ({"host_paths": ("/dev/ttyUSB0",), "owner": "DaemonSet"}, 1, Disposition.PINNED),
        ({"uid": "another"}, 0, None),
        ({"uid": "another", "scheduled": "2026-01-01T00:00:04Z"}, 0, Disposition.EVICT),
        ({"uid": "another", "scheduled": "2026-01-01T00:00:05Z"}, 0, Disposition.LATE),
        ({"uid": "another", "scheduled": "2026-01-01T00:00:06Z"}, 0, Disposition.LATE),
        ({"uid": "another", "scheduled": "2026-01-01T00:00:06Z", "host_paths": ("/dev/ttyUSB7",)}, 1, None),
        ({"uid": "another", "scheduled": "2026-01-01T00:00:07Z"}, 0, None),
    ],
)
def test_whom_a_lost_device_concerns(fields: dict[str, Any], left: int, what: Disposition | None) -> None:
    """With no device left everybody who requests one; else only who names the lost one; never who is exempt, or was not there."""
    assert on_loss(pod(**fields), replace(LOSS, left=left)) is what


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({}, Disposition.EVICT),
        ({"requests": {}, "claims": frozenset({"c"})}, Disposition.EVICT),
        ({"requests": {}, "owner": ""}, Disposition.BARE),
        ({"requests": {}, "phase": "Failed"}, None),
        ({"requests": {}, "terminating": True}, None),
    ],
)
def test_a_holder_is_concerned_although_it_requests_nothing(fields: dict[str, Any], what: Disposition | None) -> None:
    """A pod with a ResourceClaim has no request for the resource; another pod stays, whatever it requests."""
    mine = pod(**fields)
    assert on_loss(mine, LOSS, frozenset({(mine.namespace, mine.name, "c")})) is what
    assert on_loss(mine, LOSS, frozenset({(mine.namespace, "q", "c")})) is None


def test_a_pod_is_known_by_namespace_and_name() -> None:
    """As kubectl shows it."""
    assert pod().title == "home/p"
