"""What devwatch promises where the kubelet hands devices over, through any history of its world: see `test_promises.py`.

`DEVWATCH_HANDOVERS=100000` plays so many, `DEVWATCH_SEED=7` others. A history that fails is printed as Python; put into `KNOWN` it is
played for ever.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from devwatch.core.handover import Offer
from devwatch.core.node import Amounts, NodePatch
from support.model import Uncounted
from support.model_handover import HandoverWorld, Promise
from support.model_handover_moves import (
    FUNCTIONS,
    away,
    begin,
    bounce,
    configure,
    cross,
    delete,
    disk_full,
    fail,
    found,
    furnish,
    kill,
    kubelet_dies,
    kubelet_hangs,
    kubelet_restarts,
    kubelet_slow,
    linger,
    plug,
    pod,
    pods,
    pull,
    refuse,
    relief,
    restart,
    roll_out,
    stop,
    swap,
)
from support.model_moves import Move, apart, blind, devnode, freeze, nothing, play, random_histories, records
from support.model_pods import ZIGBEE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from enum import Enum

pytestmark = pytest.mark.no_cover
"""As in `test_promises.py`."""
HISTORIES = int(os.environ.get("DEVWATCH_HANDOVERS", "30"))
METRICS = Uncounted("0")


@random_histories(HISTORIES, furnish, pull, bounce, kubelet_restarts, kill, functions=FUNCTIONS)
def test_whatever_happens_every_promise_is_kept(history: Sequence[Move]) -> None:
    """Those of `Promise`."""
    assert play(HandoverWorld(METRICS), history) == []


KNOWN = {
    "the ID of a stick without serial that could never be stored is not that of the next daemon, which reads the records": (
        Move(nothing, (), 0.05),
        Move(records, (True,)),
        Move(fail, ("429 after 900", 1)),
        Move(furnish, ()),
        Move(stop, ()),
    ),
    "a daemon that was stopped when the kubelet ended does what is due when it goes on": (
        Move(furnish, ()),
        Move(kubelet_dies, ()),
        Move(freeze, (3.0,), 0.001),
    ),
    "the ID of a stick without serial and socket that could never be stored is not that of the next daemon, which reads the socket": (
        Move(fail, ("429 after 900", 2), 6.0),
        Move(plug, ("nameless", "socket-3", 1, False), 65.0),
        Move(pods, ()),
        Move(stop, ()),
    ),
    "a kubelet does not admit a pod that it has refused": (
        Move(furnish, ()),
        Move(pull, (0,)),
        Move(fail, ("slow", 1)),
        Move(delete, (1, True), 0.5),
        Move(bounce, (0, 1, 0.5, "")),
        Move(kubelet_restarts, (0.0,)),
    ),
    "which of two twins has an ID that could never be stored is not known to a daemon that finds both": (
        Move(fail, ("429 after 7", 2)),
        Move(pod, (0,)),
        Move(plug, ("zigbee", "socket-2", 1, True), 11.0),
        Move(kill, (0,)),
        Move(furnish, ()),
    ),
    "the ID of a twin without a socket that could never be stored is not that of the next daemon, which reads the socket": (
        Move(fail, ("429 after 900", 2)),
        Move(furnish, ()),
        Move(pods, ()),
        Move(plug, ("composite", "socket-1", 1, False), 65.0),
        Move(kill, (0,)),
    ),
    "a daemon whose Node is answered at last says in its next cycle which ways change": (
        Move(nothing, (), 0.05),
        Move(away, (True,)),
        Move(configure, (1, False)),
        Move(furnish, ()),
        Move(linger, ()),
        Move(kill, (0,)),
        Move(fail, ("429 after 900", 1)),
        Move(begin, (), 0.05),
        Move(kubelet_restarts, (5.0,), 35.0),
    ),
    "a daemon that could never store that it has a plugin leaves it to the kubelet to forget": (
        *[Move(nothing, ())] * 5,
        Move(fail, ("never", 2)),
        Move(nothing, (), 11.0),
        Move(kill, (0,)),
        Move(configure, (1, False)),
        Move(furnish, ()),
    ),
    "a device that has been forgotten, and that nothing lists again before its daemon is killed, is not known to the next one": (
        *[Move(nothing, ())] * 4,
        Move(plug, ("composite", "socket-1", 0, True), 0.05),
        Move(pull, (0,), 11.0),
        Move(fail, ("429 after 900", 1)),
        Move(furnish, ()),
        Move(swap, (1, "zigbee", 0.0)),
        Move(kill, (0,)),
    ),
    "of two sticks that no scan has found together one has taken the place of the other": (
        *[Move(nothing, ())] * 3,
        Move(furnish, ()),
        Move(pull, (0,)),
        Move(pull, (0,)),
        Move(bounce, (0, 0, 2.1, "")),
        Move(blind, (True,)),
        Move(plug, ("zigbee", "socket-1", 0, True), 11.0),
        Move(pull, (0,)),
    ),
    "a container that has started between the returns of two parts of its stick has no file of before": (
        *[Move(nothing, ())] * 3,
        Move(furnish, ()),
        Move(pull, (0,)),
        Move(bounce, (1, 0, 12.0, "")),
        Move(apart, (2.5,)),
        Move(delete, (0, False)),
        Move(pull, (0,), 1.5),
        Move(plug, ("composite", "socket-1", 0, True)),
    ),
    "a stick whose parts are listed without links, when its daemon is killed, has returned before its containers started": (
        *[Move(nothing, ())] * 3,
        Move(furnish, ()),
        Move(swap, (1, "twin", 0.0)),
        Move(apart, (0.05,)),
        Move(plug, ("composite", "socket-1", 2, False)),
        Move(restart, (2, 0.0)),
        Move(furnish, ()),
        Move(kill, (0,)),
    ),
    "after a restart without the records of udev either of two twins may be the one that is pulled": (
        Move(furnish, ()),
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(records, (True,)),
        Move(kill, (0,)),
        Move(begin, (), 0.05),
        Move(swap, (3, "other", 0.0)),
    ),
    "a daemon that is killed before it can begin a change of way leaves what the Node shows to the kubelet": (
        Move(furnish, ()),
        Move(configure, (1, True)),
        Move(kill, (0,)),
        Move(delete, (0, False)),
        Move(nothing, (), 2.5),
    ),
    "a device that nothing lists, and that goes before the next daemon has read the Node, is not known to it": (
        Move(nothing, (), 0.05),
        Move(away, (True,)),
        Move(furnish, ()),
        Move(furnish, ()),
        Move(nothing, (), 11.0),
        Move(relief, (), 11.0),
        Move(kill, (0,)),
        Move(begin, (), 0.001),
        Move(pull, (0,)),
    ),
    "a change of way that waits while a daemon starts, and is taken back, forgets no lost device": (
        Move(furnish, ()),
        Move(pull, (0,)),
        Move(blind, (True,)),
        Move(bounce, (1, 0, 12.0, "socket-1")),
        Move(kill, (0,)),
        Move(configure, (1, False)),
        Move(begin, ()),
        Move(configure, (0, False)),
    ),
    "a stick that moves takes its holder along": (
        Move(furnish, ()),
        Move(bounce, (0, 1, 1.9, "socket-4"), 11.0),
        Move(restart, (1, 1.0), 11.0),
    ),
    "a stick without a serial that moves is another one": (
        Move(furnish, ()),
        Move(bounce, (2, 1, 0.5, "socket-4"), 11.0),
        Move(restart, (0, 1.0), 11.0),
    ),
    "the new way waits for the pods of the former one": (
        Move(found, (1,)),
        Move(furnish, ()),
        Move(configure, (0, True), 1.5),
        Move(plug, ("other", "socket-4", 0, True), 35.0),
        Move(pods, (), 11.0),
    ),
    "the way back waits for the kubelet to forget the plugin": (
        Move(furnish, ()),
        Move(configure, (1, True), 1.5),
        Move(roll_out, (), 65.0),
    ),
    "a successor of the same name is spared": (
        Move(furnish, ()),
        Move(plug, ("composite", "socket-4", 0, True), 11.0),
        Move(pull, (1,), 5.9),
        Move(delete, (2, True), 11.0),
    ),
    "a kubelet that has just started does not tell who holds a lost device": (
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(pod, (5,), 11.0),
        Move(pull, (0,), 11.0),
        Move(kubelet_restarts, (0.0,), 35.0),
    ),
    "a kubelet that has just started names no holder of a device whose eviction is due": (
        Move(plug, ("zigbee", "socket-1", 0, True), 11.0),
        Move(pod, (0,), 11.0),
        Move(pull, (0,), 4.5),
        Move(kubelet_restarts, (0.0,), 35.0),
    ),
    "nothing is allocatable while no kubelet runs": (
        Move(furnish, ()),
        Move(kubelet_dies, (), 6.0),
    ),
    "the figures are 0 before the streams end": (
        Move(furnish, ()),
        Move(stop, (), 11.0),
        Move(pods, (), 11.0),
    ),
    "another stick in the socket of the lost one is not that one": (
        Move(furnish, ()),
        Move(swap, (0, "modem", 0.0)),
        Move(swap, (3, "twin", 0.5)),
        Move(swap, (3, "zigbee", 2.5)),
    ),
    "a kubelet that hangs has taken over no list": (
        Move(kubelet_hangs, (True,)),
        Move(furnish, ()),
        Move(swap, (1, "twin", 2.5)),
    ),
    "a lost device is not offered while scans are uncertain": (
        Move(pods, (), 65.0),
        Move(plug, ("twin", "socket-2", 1, True), 1.5),
        Move(plug, ("other", "socket-2", 2, True), 0.5),
        Move(pull, (3,)),
        Move(kubelet_slow, (0.3,), 0.5),
        Move(restart, (0, 5.0), 6.0),
        Move(blind, (True,)),
        Move(kubelet_restarts, (0.0,), 2.5),
    ),
    "twins keep their IDs over a restart": (
        Move(furnish, ()),
        Move(swap, (2, "twin", 0.0)),
        Move(stop, ()),
        Move(bounce, (3, 1, 1.9, "")),
    ),
    "a change that is taken back forgets no lost device": (
        Move(furnish, ()),
        Move(configure, (2, False), 11.0),
        Move(pull, (1,), 6.0),
        Move(configure, (0, False), 2.5),
    ),
    "a stick without a serial is known again in its socket once udev has its record": (
        Move(records, (True,)),
        Move(furnish, ()),
        Move(bounce, (0, 0, 8.0, "")),
        Move(kill, (0,)),
    ),
    "a stick without a serial is not the lost one in another socket, also while its record is not complete": (
        Move(furnish, ()),
        Move(pull, (3,)),
        Move(swap, (1, "other", 0.5)),
        Move(plug, ("nameless", "socket-1", 1, False)),
    ),
    "a device that a pod got within the grace stays listed": (
        Move(plug, ("zigbee", "socket-1", 0, True), 11.0),
        Move(pull, (0,), 1.5),
        Move(pod, (5,), 11.0),
    ),
    "the twin in another socket is not the lost one that returned under another number": (
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(furnish, ()),
        Move(pull, (0,), 11.0),
        Move(kill, (0,)),
        Move(furnish, ()),
        Move(pull, (0,)),
    ),
    "a stick without a serial whose record does not come may be the lost one": (
        Move(furnish, ()),
        Move(records, (True,)),
        Move(bounce, (2, 1, 2.1, ""), 6.0),
    ),
    "what the kubelet wrote before it forgot the plugin is put right once the new way begins": (
        Move(furnish, ()),
        Move(pull, (1,)),
        Move(kill, (0,)),
        Move(configure, (2, False)),
    ),
    "a kubelet that hangs does not keep the former way allocatable": (
        Move(furnish, ()),
        Move(kubelet_hangs, (True,)),
        Move(configure, (1, False), 11.0),
        Move(roll_out, ()),
    ),
    "a stick that returns and goes again while scans are uncertain is lost again": (
        Move(furnish, ()),
        Move(pull, (0,), 6.0),
        Move(devnode, (0, 13)),
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(pull, (2,)),
    ),
    "a change that is taken back forgets no device that was lost before it": (
        Move(furnish, ()),
        Move(pull, (0,)),
        Move(configure, (1, False), 6.0),
        Move(configure, (0, False)),
    ),
    "without udev's records it is unknown which of two twins is there": (
        Move(plug, ("zigbee", "socket-2", 0, True)),
        Move(furnish, ()),
        Move(pull, (0,)),
        Move(records, (True,)),
        Move(kill, (0,)),
        Move(begin, (), 0.05),
    ),
    "a stick without a record that leaves before it has arrived was not seen": (
        Move(plug, ("composite", "socket-1", 1, False), 11.0),
        Move(kill, (0,)),
        Move(configure, (1, False)),
        Move(begin, ()),
        Move(kubelet_restarts, (5.0,), 0.05),
        Move(pull, (0,)),
    ),
    "a link is removed while its resource waits for the list of pods": (
        Move(nothing, (), 0.05),
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(fail, ("401", 2)),
        Move(found, (0,), 0.05),
        Move(pull, (0,)),
    ),
    "each devnode a device of its own, once nobody has the whole": (
        Move(found, (2,), 1.5),
        Move(plug, ("modem", "socket-1", 0, True), 3.0),
        Move(pod, (4,), 11.0),
        Move(configure, (1, True), 35.0),
        Move(pods, (), 35.0),
    ),
    "what a resource counts changes while no daemon runs": (
        Move(found, (2,), 1.5),
        Move(plug, ("modem", "socket-1", 0, True), 3.0),
        Move(pod, (4,), 11.0),
        Move(kill, (0,)),
        Move(configure, (1, True)),
        Move(begin, (), 35.0),
        Move(pods, (), 35.0),
    ),
    "a part of a stick that only uncertain scans have found is lost as well": (
        Move(pods, ()),
        Move(plug, ("composite", "socket-2", 2, False)),
        Move(kubelet_restarts, (0.05,)),
        Move(devnode, (0, 13), 11.0),
        Move(pull, (0,)),
        Move(kill, (0,)),
    ),
    "a stick that uncertain scans alone have found is lost as any other": (
        Move(furnish, ()),
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(pull, (1,), 11.0),
        Move(devnode, (0, 13)),
        Move(furnish, ()),
        Move(swap, (3, "zigbee", 0.0)),
    ),
    "a twin is not handed out before its ID is stored": (
        Move(furnish, ()),
        Move(fail, ("429 after 7", 1)),
        Move(plug, ("zigbee", "socket-1", 0, True), 6.0),
        Move(pull, (0,)),
        Move(kill, (0,)),
    ),
    "a stick without a record arrives anew for each daemon": (
        Move(furnish, ()),
        Move(kill, (0,)),
        Move(plug, ("other", "socket-1", 1, False), 11.0),
        Move(begin, (), 0.05),
        Move(pull, (0,)),
    ),
    "a twin that arrives first does not take the ID of one that is waited for": (
        Move(pods, ()),
        Move(plug, ("zigbee", "socket-1", 0, False), 11.0),
        Move(kill, (0,)),
        Move(begin, ()),
        Move(plug, ("zigbee", "socket-1", 0, True), 0.05),
    ),
    "a daemon that waits for its first answer says late that a way changes": (
        Move(furnish, ()),
        Move(configure, (1, False)),
        Move(linger, ()),
        Move(kill, (0,)),
        Move(fail, ("429 after 900", 1)),
        Move(begin, ()),
    ),
    "a stick that uncertain scans alone have found is given to a pod within its grace": (
        Move(kill, (0,)),
        Move(furnish, ()),
        Move(devnode, (1, 13)),
        Move(begin, ()),
        Move(nothing, (), 0.05),
        Move(pull, (0,)),
    ),
    "no link is made before the IDs of a former daemon are known": (
        Move(plug, ("zigbee", "socket-1", 2, True), 11.0),
        Move(plug, ("twin", "socket-2", 0, True), 11.0),
        Move(pods, (), 11.0),
        Move(kill, (0,)),
        Move(fail, ("429 after 900", 1)),
        Move(begin, (), 1.5),
    ),
    "a twin does not take the place of one that is lost in another socket": (
        Move(plug, ("zigbee", "socket-1", 0, True), 11.0),
        Move(pod, (0,), 11.0),
        Move(plug, ("twin", "socket-2", 1, True), 11.0),
        Move(pod, (5,), 11.0),
        Move(pull, (0,), 35.0),
        Move(pull, (0,), 11.0),
        Move(plug, ("twin", "socket-3", 1, True), 11.0),
    ),
    "what the kubelet writes at the end of a freeze is not known in that moment": (
        Move(plug, ("zigbee", "socket-1", 0, True), 0.05),
        Move(configure, (1, False)),
        Move(freeze, (40.0,)),
    ),
    "two sticks that change their places": (
        Move(furnish, ()),
        Move(cross, (), 1.5),
        Move(restart, (0, 0.0)),
        Move(restart, (1, 0.0), 11.0),
    ),
    "what is plugged while its twin has no record yet is not the stick that is pulled at the same moment": (
        Move(furnish, ()),
        Move(plug, ("zigbee", "socket-1", 0, False)),
        Move(pull, (0,)),
        Move(bounce, (0, 0, 0.0, "socket-1")),
        Move(plug, ("zigbee", "socket-1", 0, True)),
    ),
    "after a restart a lost stick without a record may be any of two with its serial": (
        Move(furnish, ()),
        Move(plug, ("zigbee", "socket-1", 0, False)),
        Move(pull, (1,), 11.0),
        Move(pull, (1,)),
        Move(bounce, (3, 1, 2.1, "socket-1")),
        Move(kill, (0,)),
    ),
    "a twin waits for its ID to be stored also where the list of its resource is not": (
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(plug, ("zigbee", "socket-1", 0, False)),
        Move(fail, ("slow", 2)),
        Move(pod, (0,)),
        Move(kubelet_restarts, (0.05,), 11.0),
        Move(kill, (0,)),
    ),
    "a container that restarts while a PATCH hangs has the returned stick: its status is read again": (
        Move(furnish, ()),
        Move(fail, ("never", 2)),
        Move(bounce, (2, 1, 0.0, ""), 11.0),
        Move(restart, (0, 1.0)),
    ),
    "a pod that is gone when its eviction is asked for": (
        Move(furnish, ()),
        Move(fail, ("never", 2)),
        Move(bounce, (2, 1, 0.0, ""), 11.0),
        Move(delete, (0, False)),
    ),
    "a pod that came before the daemon had read that the kubelet gives its device to it": (
        Move(configure, (2, True)),
        Move(configure, (0, False)),
        Move(furnish, ()),
        Move(pull, (0,)),
        Move(pull, (0,)),
    ),
    "a stick that moved while no link could be made, and again beside its twin, is another one": (
        Move(furnish, ()),
        Move(disk_full, (True,)),
        Move(refuse, ("list pods",)),
        Move(bounce, (3, 0, 8.0, "socket-4")),
        Move(furnish, ()),
        Move(pull, (1,)),
        Move(bounce, (0, 1, 0.5, "socket-1")),
        Move(restart, (1, 0.0)),
    ),
    "a stick that moved while no link could be made is lost, although its twin is in its former socket": (
        Move(furnish, ()),
        Move(disk_full, (True,)),
        Move(refuse, ("list pods",)),
        Move(bounce, (3, 0, 8.0, "socket-4")),
        Move(furnish, ()),
        Move(pull, (0,)),
        Move(restart, (1, 0.0)),
    ),
    "which of two twins a link leads to is not known before the annotation was compared with a scan": (
        Move(furnish, ()),
        Move(swap, (0, "zigbee", 0.0)),
        Move(kill, (0,)),
        Move(pod, (6,)),
        Move(bounce, (3, 0, 8.0, "socket-4")),
        Move(furnish, ()),
        Move(begin, ()),
        Move(restart, (2, 0.0)),
    ),
    "a stick that was never offered is not offered by the next daemon, in whose start grace it is away": (
        *[Move(nothing, (), 0.0)] * 6,
        Move(disk_full, (True,)),
        Move(furnish, ()),
        Move(pull, (0,)),
        Move(kill, (0,)),
    ),
    "the annotation cannot be stored when a twin takes the ID of another in its socket; the next daemon gives it to a third": (
        *[Move(nothing, ())] * 2,
        Move(furnish, ()),
        Move(bounce, (2, 0, 4.5, "socket-4"), 6.0),
        Move(away, (True,)),
        Move(plug, ("zigbee", "socket-1", 0, False)),
        Move(pull, (0,)),
        Move(restart, (0, 0.0), 11.0),
        Move(furnish, ()),
        Move(kill, (0,)),
    ),
}


@pytest.mark.parametrize("history", [pytest.param(history, id=name) for name, history in KNOWN.items()])
def test_what_was_broken_once_holds(history: Sequence[Move]) -> None:
    """Each failed once, or fails as soon as one of the promises is broken."""
    assert play(HandoverWorld(METRICS), history) == []


# -- the judge itself


@pytest.fixture
def world() -> Iterator[HandoverWorld]:
    """Have a node on which pods have their sticks."""
    one = HandoverWorld(METRICS)
    furnish(one)
    yield one
    one.close()


def verdicts(world: HandoverWorld) -> set[Enum]:
    """Return the promises that were found broken."""
    return {promise for promise, _ in world.broken}


def test_the_judge_sees_a_figure_that_rises_too_early(world: HandoverWorld) -> None:
    """The kubelet has two."""
    world.judge.sent(NodePatch(counts={ZIGBEE: Amounts.of(3)}))
    assert verdicts(world) == {Promise.RISE}


def test_the_judge_sees_a_list_that_falls_too_early(world: HandoverWorld) -> None:
    """The Node shows two."""
    world.host.pull(world.host.sticks[0])
    world.judge.listed(ZIGBEE, world.kubelet.taken[ZIGBEE], Offer())
    assert verdicts(world) == {Promise.FALL}


def test_the_judge_sees_a_link_that_leads_to_another_stick(world: HandoverWorld) -> None:
    """Two links are exchanged."""
    first, second, *_ = (link for link in world.kubelet.links.made if link.startswith("0001"))
    made = world.kubelet.links.made
    made[first], made[second] = made[second], made[first]
    world.judge.cycled()
    assert verdicts(world) == {Promise.OWN}


def test_the_judge_sees_a_link_that_leads_to_the_twin_in_another_socket(world: HandoverWorld) -> None:
    """Its ID belongs to the socket, since the twin was there before it."""
    plug(world, "twin", "socket-4", 9, record=True)
    world.wait(11)
    made = world.kubelet.links.made
    (link,) = (link for link, devnode in made.items() if devnode == "/dev/ttyUSB9")
    made[link] = "/dev/ttyUSB0"
    world.judge.cycled()
    assert verdicts(world) == {Promise.OWN}


def test_the_judge_sees_an_eviction_without_a_loss(world: HandoverWorld) -> None:
    """All sticks are there."""
    world.judge.evicts(world.cluster.here[0].pod)
    assert verdicts(world) == {Promise.HOLDERS}


def test_the_judge_sees_two_pods_with_one_stick(world: HandoverWorld) -> None:
    """The second has opened the device of the first."""
    first, second = world.cluster.here[:2]
    second.opened = first.opened
    world.judge.opened(second)
    assert verdicts(world) == {Promise.ALONE}


def test_the_judge_sees_a_pod_that_is_not_admitted(world: HandoverWorld) -> None:
    """Everything has worked since long before it was bound."""
    life = world.cluster.here[0]
    world.wait(100)
    life.bound = world.loop.time()
    world.judge.failed(life, ZIGBEE, "none is free")
    assert verdicts(world) == {Promise.ADMITTED}


def test_the_judge_sees_a_device_beside_the_former_way(world: HandoverWorld) -> None:
    """One of the pods has its stick by `hostPath`."""
    first, second = world.cluster.here[:2]
    first.ways[ZIGBEE] = "nodeStatus"
    first.ids.clear()
    world.judge.allocated(second, ZIGBEE)
    assert verdicts(world) == {Promise.CHANGE}


def test_the_judge_sees_a_holder_that_stays_and_figures_that_are_wrong(world: HandoverWorld) -> None:
    """No daemon takes note that its stick is gone."""
    world.kill()
    world.host.pull(world.host.sticks[0])
    world.judge.ended()
    assert verdicts(world) >= {Promise.EVICTS, Promise.FIGURES}
