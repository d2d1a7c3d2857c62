"""What devwatch promises where pods get devices by claims, through any history of its world: see `test_promises.py`.

`DEVWATCH_CLAIMS=100000` plays so many, `DEVWATCH_SEED=7` others. A history that fails is printed as Python; put into `KNOWN` it is
played for ever.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from devwatch.core.node import Amounts, NodePatch
from support.model import Uncounted
from support.model_claims_moves import FUNCTIONS, edited, full, lost, slow, strange, watch, wiped
from support.model_claims_world import ClaimWorld
from support.model_handover import Promise
from support.model_handover_moves import (
    away,
    begin,
    bounce,
    configure,
    delete,
    furnish,
    kill,
    kubelet_restarts,
    linger,
    plug,
    pod,
    pods,
    pull,
    restart,
    stop,
    swap,
)
from support.model_moves import Move, blind, devnode, finish, hearing, nothing, play, random_histories, records
from support.model_pods import ZIGBEE
from support.objectserver import SLICES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from enum import Enum

pytestmark = pytest.mark.no_cover
"""As in `test_promises.py`."""
HISTORIES = int(os.environ.get("DEVWATCH_CLAIMS", "30"))
METRICS = Uncounted("0")


@random_histories(HISTORIES, furnish, pull, bounce, kubelet_restarts, kill, functions=FUNCTIONS)
def test_whatever_happens_every_promise_is_kept(history: Sequence[Move]) -> None:
    """Those of `Promise`."""
    assert play(ClaimWorld(METRICS), history) == []


KNOWN = {
    "TERM does not wait for an API server that takes longer for the request before": (
        Move(configure, (2, False)),
        Move(slow, (4.0,)),
        Move(furnish, ()),
        Move(records, (True,)),
        Move(bounce, (0, 0, 0.0, ""), 0.05),
        Move(stop, ()),
    ),
    "what was handed out without its record, and could not be stored, returns for the next daemon when udev handles it": (
        Move(furnish, ()),
        Move(plug, ("zigbee", "socket-1", 1, False)),
        Move(away, (True,)),
        Move(restart, (1, 1.0)),
        Move(bounce, (0, 0, 12.0, "")),
        Move(kill, (0,), 0.5),
    ),
    "a device that the annotation did not list yet when its daemon was killed has no grace": (
        Move(nothing, (), 0.001),
        Move(furnish, ()),
        Move(pull, (0,)),
        Move(pull, (0,)),
        Move(bounce, (3, 0, 0.0, "socket-1"), 0.05),
        Move(kill, (0,)),
        Move(pull, (0,)),
    ),
    "a claim that was allocated while another client had removed the taint has what is lost": (
        Move(pod, (1,)),
        Move(furnish, ()),
        Move(pull, (0,), 6.0),
        Move(blind, (True,), 2.5),
        Move(edited, ("cleared",)),
    ),
    "what a pod has under the former name of a resource is not offered by a daemon that cannot look at it yet": (
        Move(furnish, ()),
        Move(bounce, (0, 0, 0.5, ""), 2.5),
        Move(configure, (2, False)),
        Move(nothing, (), 2.5),
        Move(blind, (True,)),
        Move(kill, (0,)),
        Move(pod, (9,)),
        Move(begin, ()),
        Move(linger, ()),
    ),
    "a daemon whose first scan cannot see the first part of a stick offers the stick by another": (
        Move(furnish, ()),
        Move(pull, (0,)),
        Move(bounce, (0, 0, 0.0, "socket-1")),
        Move(devnode, (0, 13)),
        Move(furnish, ()),
        Move(kill, (0,)),
        Move(begin, (), 0.05),
    ),
    "a resource that comes into force knows no device that no scan finds from then on": (
        *[Move(nothing, ())] * 3,
        Move(furnish, ()),
        Move(pull, (0,)),
        Move(devnode, (2, 13)),
        Move(configure, (2, True)),
        Move(configure, (0, False)),
        Move(pull, (0,), 11.0),
        Move(pull, (0,)),
    ),
    "a slice of before does not tell which of two twins is in a socket": (
        *[Move(nothing, ())] * 6,
        Move(nothing, (), 0.05),
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(bounce, (3, 1, 0.5, "socket-2")),
        Move(furnish, ()),
    ),
    "where neither the annotation nor the record tells, either of two twins may be the one of a claim": (
        *[Move(nothing, ())] * 3,
        Move(furnish, ()),
        Move(plug, ("composite", "socket-1", 1, False)),
        Move(pull, (0,)),
        Move(away, (True,)),
        Move(bounce, (0, 0, 12.0, "")),
        Move(kill, (0,)),
        Move(full, ("reading",)),
    ),
    "the file of a claim that is allocated again is that of its former device until it is prepared again": (
        *[Move(nothing, ())] * 5,
        Move(plug, ("zigbee", "socket-1", 0, True), 0.05),
        Move(pod, (1,)),
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(pull, (1,), 1.5),
        Move(delete, (0, True)),
    ),
    "the record of claims tells where a stick was last, before the annotation does": (
        Move(furnish, ()),
        Move(bounce, (3, 0, 1.9, "socket-4")),
        Move(pull, (0,)),
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(stop, ()),
        Move(pods, ()),
        Move(swap, (0, "zigbee", 0.0)),
    ),
    "a slice that is stored, and not seen for a while, is not made twice": (
        Move(watch, ("late",), 6.0),
        Move(lost, ("500", 1, True)),
        Move(kubelet_restarts, (0.0,), 6.0),
    ),
    "a slice that was deleted while it was written is written again": (
        Move(slow, (4.0,)),
        Move(strange, ("another node",)),
        Move(plug, ("zigbee", "socket-1", 0, True), 2.5),
        Move(wiped, ()),
    ),
    "of two sticks that may be the one of a former daemon neither is, and nobody is evicted": (
        Move(full, ("writing",)),
        Move(furnish, ()),
        Move(bounce, (1, 0, 0.0, "socket-4"), 0.05),
        Move(stop, ()),
        Move(pull, (0,)),
        Move(pull, (1,)),
        Move(bounce, (0, 0, 0.0, "socket-1")),
        Move(furnish, ()),
    ),
    "a stick whose record comes after a restart keeps its ID": (
        Move(records, (True,)),
        Move(furnish, ()),
        Move(kill, (1,)),
        Move(records, (False,)),
        Move(pod, (4,), 11.0),
    ),
    "a stick that a pod has under a former name is not offered within its grace": (
        Move(furnish, ()),
        Move(configure, (2, True), 11.0),
        Move(pod, (9,)),
        Move(bounce, (0, 0, 1.9, "")),
    ),
    "a container does not get another part of its stick after an uncertain scan": (
        Move(furnish, ()),
        Move(devnode, (1, 13), 11.0),
        Move(restart, (3, 1.0), 11.0),
    ),
    "a device that a claim got within the grace stays in the slice": (
        Move(plug, ("zigbee", "socket-1", 0, True), 11.0),
        Move(pull, (0,), 1.5),
        Move(pod, (7,), 11.0),
    ),
    "a claim that tolerates the loss is spared": (
        Move(plug, ("zigbee", "socket-1", 0, True), 1.5),
        Move(pod, (5,), 11.0),
        Move(pull, (0,), 35.0),
    ),
    "what is not a device of this node is not prepared": (
        Move(furnish, ()),
        Move(strange, ("another node",)),
    ),
    "a share of a device is not prepared": (
        Move(furnish, ()),
        Move(strange, ("a share",)),
    ),
    "another claim of the same name is not prepared": (
        Move(furnish, ()),
        Move(strange, ("another uid",)),
    ),
    "no pod gets by its name what its predecessor has lost": (
        Move(furnish, ()),
        Move(plug, ("composite", "socket-4", 0, True), 11.0),
        Move(pull, (1,), 5.9),
        Move(delete, (3, True), 11.0),
    ),
    "a kubelet that starts deletes the slices, and gets them again": (
        Move(furnish, ()),
        Move(pull, (0,), 11.0),
        Move(kubelet_restarts, (1.0,), 11.0),
    ),
    "a slice that is not the one of the node is deleted": (
        Move(furnish, ()),
        Move(edited, ("beside",), 11.0),
    ),
    "a claim keeps its stick over restarts of all": (
        Move(furnish, ()),
        Move(stop, (), 35.0),
        Move(bounce, (0, 3, 1.9, "socket-4")),
        Move(kubelet_restarts, (0.0,)),
        Move(begin, (), 11.0),
    ),
    "the new way waits for the claims of the former one": (
        Move(furnish, ()),
        Move(configure, (3, True), 11.0),
        Move(pods, (), 35.0),
    ),
    "what was to be offered before a change is not offered after it": (
        Move(pod, (1,)),
        Move(pod, (9,), 1.5),
        Move(away, (True,)),
        Move(plug, ("nameless", "socket-3", 0, True)),
        Move(configure, (2, False), 11.0),
    ),
    "a device that was found to be free and then offered within its grace stays in the slice": (
        Move(furnish, ()),
        Move(kubelet_restarts, (1.0,)),
        Move(pods, (), 7.5),
        Move(configure, (2, False), 2.5),
        Move(bounce, (0, 1, 0.5, ""), 11.0),
        Move(delete, (4, True)),
        Move(pull, (3,)),
    ),
    "nor does the next daemon give it that": (
        Move(furnish, ()),
        Move(kill, (1,)),
        Move(devnode, (1, 13)),
        Move(begin, (), 6.0),
        Move(restart, (3, 1.0), 11.0),
    ),
    "a restart does not take back what a claim has under the new name": (
        Move(furnish, ()),
        Move(configure, (2, False)),
        Move(plug, ("nameless", "socket-4", 0, False)),
        Move(finish, (), 11.0),
        Move(pod, (9,), 6.0),
        Move(kill, (2,)),
    ),
    "a device is replaced also by one that came before it was pulled, where no scan has found both": (
        Move(hearing, ("never",), 0.001),
        Move(furnish, ()),
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(pull, (0,)),
        Move(pull, (0,)),
        Move(plug, ("zigbee", "socket-1", 0, True), 0.001),
        Move(pull, (0,)),
    ),
    "a claim of the former unit keeps nothing in the slice while the count changes": (
        *[Move(nothing, (), 0.0)] * 7,
        Move(pods, ()),
        Move(plug, ("modem", "socket-1", 0, True)),
        Move(configure, (1, False)),
    ),
    "a pod keeps its stick under the name of a resource that is not configured any more": (
        *[Move(nothing, ())] * 7,
        Move(configure, (3, True)),
        Move(furnish, ()),
        Move(configure, (2, False)),
    ),
}


@pytest.mark.parametrize("history", [pytest.param(history, id=name) for name, history in KNOWN.items()])
def test_what_was_broken_once_holds(history: Sequence[Move]) -> None:
    """Each failed once, or fails as soon as one of the promises is broken."""
    assert play(ClaimWorld(METRICS), history) == []


# -- the judge itself


@pytest.fixture
def world() -> Iterator[ClaimWorld]:
    """Have a node on which pods have their sticks."""
    one = ClaimWorld(METRICS)
    furnish(one)
    yield one
    one.close()


def verdicts(world: ClaimWorld) -> set[Enum]:
    """Return the promises that were found broken."""
    return {promise for promise, _ in world.broken}


def test_the_judge_sees_a_figure_beside_the_slice(world: ClaimWorld) -> None:
    """The scheduler would take the figure."""
    world.judge.sent(NodePatch(counts={ZIGBEE: Amounts.of(1)}))
    assert Promise.CHANGE in verdicts(world)


def _renamed(spec: dict[str, Any]) -> None:
    spec["devices"].append({**spec["devices"][0], "name": "other"})


def _withdrawn(spec: dict[str, Any]) -> None:
    spec["devices"][0]["taints"] = [{"key": "devwatch.io/unplugged", "effect": "NoSchedule"}]


def _removed(spec: dict[str, Any]) -> None:
    spec["pool"]["generation"] += 1
    del spec["devices"][0]


def _bare(spec: dict[str, Any]) -> None:
    del spec["devices"][0]["attributes"]["model"]


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        (_renamed, Promise.FIGURES),
        (_withdrawn, Promise.FALL),
        (_removed, Promise.FIGURES),
        (_bare, Promise.FIGURES),
    ],
)
def test_the_judge_sees_a_slice_that_is_wrong(
    world: ClaimWorld, change: Callable[[dict[str, Any]], None], promise: Promise
) -> None:
    """Other names without another generation, a present or a held device less, an attribute that is missing."""
    (stored,) = world.objects.all(SLICES)
    (item,) = world.objects.all(SLICES)
    change(item["spec"])
    world.judge.written(item, stored)
    assert promise in verdicts(world)


def test_the_judge_sees_a_file_that_names_another_stick(world: ClaimWorld) -> None:
    """Two claims have exchanged their devices."""
    first, second, *_ = world.cluster.claims.values()
    first.tty, second.tty = second.tty, first.tty
    world.judge.cycled()
    assert verdicts(world) == {Promise.OWN}


def test_the_judge_sees_an_eviction_without_a_loss(world: ClaimWorld) -> None:
    """All sticks are there."""
    world.judge.evicts(world.cluster.here[0].pod)
    assert verdicts(world) == {Promise.HOLDERS}


def test_the_judge_sees_two_pods_with_one_stick_unless_they_share_a_claim(world: ClaimWorld) -> None:
    """The first has a claim of its own."""
    alone, left, right, _ = world.cluster.here
    world.judge.opened(right)
    assert verdicts(world) == set()
    left.opened = dict(zip(left.opened, alone.opened.values(), strict=True))
    world.judge.opened(left)
    assert Promise.ALONE in verdicts(world)


def test_the_judge_sees_a_claim_that_is_not_prepared(world: ClaimWorld) -> None:
    """Everything has worked for long, and the device was offered."""
    world.wait(100)
    world.judge.refused(next(iter(world.cluster.claims.values())), "not now")
    assert verdicts(world) == {Promise.ADMITTED}


def test_the_judge_sees_what_is_wrong_in_the_end(world: ClaimWorld) -> None:
    """No daemon takes note that a stick is gone, and the record is lost."""
    world.kill()
    world.host.pull(world.host.sticks[0])
    world.record.unlink()
    world.judge.ended()
    assert verdicts(world) >= {Promise.EVICTS, Promise.FIGURES}
