"""What `Reconciler` promises, through any history of its world: hypothesis looks for one in which it does not hold, and shrinks it.

`DEVWATCH_HISTORIES=100000` plays so many in all, `DEVWATCH_SEED=7` others; without them always the same few are played. A history that
fails is printed as Python; put into `KNOWN` it is played for ever.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import devwatch
from devwatch.core.node import ANNOTATION_PART, MAPS
from support.model import STRANGER, Hearing, Promise, Uncounted, World
from support.model_host import KINDS
from support.model_moves import (
    Move,
    annotate,
    apart,
    begin,
    blind,
    bounce,
    climate,
    complete,
    configure,
    consoles,
    create,
    delete,
    devnode,
    fail,
    finish,
    forbid,
    foreign,
    forge,
    forget_start,
    freeze,
    furnish,
    grant,
    hearing,
    hup,
    kill,
    leak,
    nothing,
    old_event,
    overflow,
    play,
    plug,
    pods,
    pull,
    random_histories,
    records,
    refuse,
    relief,
    remove,
    replug,
    respell,
    restart,
    step,
    streams,
    swap,
    take,
    terminate,
    undo,
    war,
    watch,
    watch_late,
    watches,
    zero,
)
from support.model_pods import METER, ZIGBEE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from enum import Enum

pytestmark = pytest.mark.no_cover
"""Tracing doubles what a history costs, and what is played at random should not be the only test of a line."""
HISTORIES = int(os.environ.get("DEVWATCH_HISTORIES", "420"))
METRICS = Uncounted("0")
"""Costly to make, and nothing here depends on its numbers."""


def hold(*favoured: Callable[..., None]) -> None:
    """Play histories in which these moves come more often; every promise has to hold in each."""

    @random_histories(HISTORIES // len(Promise), *favoured, least=20)
    def promised(history: Sequence[Move]) -> None:
        assert play(World(METRICS), history) == []

    promised()


def test_converges() -> None:
    """Whatever failed, a minute and one request after the last fault the Node shows the present devices."""
    hold(fail, climate, kill, create)


def test_never_lowers_on_ignorance() -> None:
    """Failing looks, missing records and lost uevents lower no count."""
    hold(blind, devnode, records, kill)


def test_never_oversells() -> None:
    """What lingers, moves to another resource, or has many devnodes is counted once."""
    hold(configure, replug, devnode)


def test_touches_only_its_own() -> None:
    """Strangers write what they like, configurations come and go, and a second daemon waits."""
    hold(configure, annotate, forge, foreign, begin, kill)


def test_quiet() -> None:
    """One request at a time, none without need, and ever fewer against a hostile writer."""
    hold(zero, war, foreign, refuse)


def test_grace_holds() -> None:
    """What is back in time has never been away."""
    hold(replug, step, kill)


def test_evicts_only_on_certainty() -> None:
    """No pod is evicted for a device that is there, that may be there, or that was not away for long enough."""
    hold(replug, bounce, swap, furnish, restart, kill)


KNOWN = {
    "a twin that comes while it is uncertain whether a stick is there may be that one": (
        Move(furnish, ("zigbee", "nameless")),
        Move(devnode, (0, 13)),
        Move(plug, ("zigbee", "socket-1", 0, True), 0.001),
        Move(replug, (3, "socket-3", 0, 0.0)),
    ),
    "a stick without a serial, whose record is to be read, does not have the link of one with a serial": (
        Move(furnish, ("zigbee",)),
        Move(plug, ("nameless", "socket-1", 0, True)),
        Move(furnish, ("zigbee",)),
        Move(plug, ("nameless", "socket-2", 1, False)),
        Move(pull, (0,)),
        Move(replug, (1, "socket-1", 1, 4.5)),
        Move(nothing, (), 6.0),
        Move(pull, (1,)),
    ),
    "the annotation lists no links of a stick whose record was never read": (
        Move(records, (True,)),
        Move(furnish, ("zigbee",)),
        Move(devnode, (0, -1)),
        Move(watch, ("breaks",), 11.0),
        Move(kill, (0, 0)),
        Move(bounce, (0, 1, 0.0)),
    ),
    "a stick whose devnode is there again stays lost until it has arrived": (
        Move(nothing, (), 35.0),
        Move(plug, ("zigbee", "socket-1", 0, False)),
        Move(nothing, (), 11.0),
        Move(devnode, (2, -1), 6.0),
        Move(climate, ("401",)),
        Move(devnode, (0, 0), 0.5),
    ),
    "a stick that udev has handled before its twin is not that one": (
        *[Move(nothing, ())] * 16,
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(devnode, (0, -1)),
        Move(furnish, ("zigbee",)),
        Move(pull, (1,)),
    ),
    "a twin had its links already when its record was still to be read, for all that is known": (
        Move(furnish, ("zigbee",)),
        Move(plug, ("zigbee", "socket-1", 0, False), 11.0),
        Move(pull, (0,)),
    ),
    "a twin whose record cannot be read may have a link that both would have": (
        *[Move(nothing, ())] * 16,
        Move(furnish, ("zigbee",)),
        Move(records, (True,)),
        Move(furnish, ("zigbee",)),
        Move(pull, (0,)),
    ),
    "a container that started while no daemon ran has what had the path of a stick by then": (
        *[Move(nothing, ())] * 12,
        Move(furnish, ("zigbee", "composite")),
        Move(kill, (0, 0)),
        Move(replug, (2, "socket-3", 0, 0.0)),
        Move(furnish, ("composite", "twin", "modem")),
        Move(bounce, (0, 1, 0.0)),
        Move(begin, ()),
        Move(nothing, (), 0.05),
        Move(replug, (2, "socket-2", 1, 0.0)),
    ),
    "of two sticks that had a devnode one after the other the annotation tells which is lost": (
        *[Move(nothing, ())] * 15,
        Move(furnish, ("zigbee", "nameless")),
        Move(pull, (0,)),
        Move(replug, (1, "socket-3", 0, 2.1)),
        Move(kill, (0, 0)),
        Move(pull, (0,)),
    ),
    "what a stick was before the first answer of the Node is not known": (
        *[Move(nothing, ())] * 15,
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(replug, (0, "socket-1", 1, 0.0)),
        Move(restart, (5, 0.0)),
        Move(replug, (0, "socket-1", 0, 0.0), 0.05),
        Move(replug, (2, "socket-1", 1, 0.5)),
    ),
    "a stick that has returned, and whose record cannot be read, may have the links that it had": (
        *[Move(nothing, ())] * 14,
        Move(furnish, ("zigbee", "nameless")),
        Move(pull, (0,)),
        Move(bounce, (0, 0, 0.0)),
        Move(records, (True,)),
        Move(furnish, ("zigbee",)),
        Move(pull, (0,)),
    ),
    "what the Node showed at the start says nothing of another unit": (
        Move(foreign, (METER, "1", MAPS)),
        Move(configure, (1,)),
    ),
    "what changes by itself puts off no repair": (
        Move(war, (30.0,)),
        Move(plug, ("zigbee", "socket-2", 2, True)),
        Move(zero, (), 0.05),
        Move(devnode, (2, 13)),
        Move(configure, (1,)),
        Move(create, ()),
    ),
    "what changes by itself puts off no repair where watches only list": (
        Move(streams, ("is too old",), 0.05),
        Move(war, (3.0,)),
        Move(configure, (1,)),
        Move(war, (30.0,), 35.0),
        Move(create, (), 1.5),
        Move(configure, (3,)),
    ),
    "an old event takes no newer one's place": (
        Move(climate, ("answer lost",), 6.0),
        Move(kill, (1, 2)),
        Move(begin, (), 0.05),
        Move(old_event, (11,)),
    ),
    "what the watch told before a request is older than its answer": (
        *(Move(step, (1,)) for _ in range(12)),
        Move(climate, ("answer lost",), 2.5),
        Move(old_event, (1,)),
        Move(delete, ()),
        Move(watch, ("ends",)),
    ),
    "what a late watch told of a Node that is gone does not stand against the first answer": (
        Move(watch_late, (8.0,)),
        Move(hearing, ("never",), 0.05),
        Move(fail, ("slow", 3)),
        Move(kill, (0, 5)),
        Move(begin, (), 0.05),
        Move(create, ()),
    ),
    "where no watch lasts, one that may not be comes no later than the resync": (
        Move(streams, ("is too old",), 35.0),
        Move(foreign, ("example.com/zigbee", "1k", ("allocatable",))),
        Move(forbid, ()),
    ),
    "who has all the ids of one listed stick is no other of which less is told": (
        Move(plug, ("nameless", "socket-1", 2, True)),
        Move(plug, ("zigbee", "socket-2", 0, True), 0.05),
        Move(kill, (0, 0)),
        Move(replug, (1, "socket-2", 2, 0.5)),
        Move(replug, (2, "socket-2", 0, 4.5)),
        Move(begin, ()),
        Move(replug, (4, "socket-3", 1, 1.9)),
        Move(replug, (0, "socket-1", 2, 0.5)),
        Move(replug, (2, "socket-3", 0, 4.5)),
    ),
    "two interfaces of one stick are no two sticks that came back": (
        Move(records, (True,)),
        Move(plug, ("composite", "socket-2", 1, False)),
        Move(plug, ("composite", "socket-2", 2, True)),
        Move(configure, (1,)),
        Move(begin, (), 11.0),
        Move(replug, (1, "socket-1", 0, 0.0)),
        Move(replug, (0, "socket-3", 1, 0.5), 0.05),
        Move(replug, (3, "socket-2", 2, 0.5)),
    ),
    "what the watch told before a reload may be the start of what the reload asks for": (
        Move(foreign, ("example.com/spare", "1", ("capacity",))),
        Move(kill, (1, 5)),
        Move(fail, ("late", 2)),
        Move(begin, (), 0.001),
        Move(configure, (1,)),
    ),
    "twins that were claimed one after the other are two": (
        Move(configure, (1,)),
        Move(plug, ("twin", "socket-3", 1, False)),
        Move(plug, ("twin", "socket-3", 2, True), 0.05),
        Move(devnode, (3, -1)),
        Move(finish, ()),
        Move(pull, (0,)),
    ),
    "a stick at the place of the lost one, its serial untold, may be the same": (
        Move(configure, (1,)),
        Move(plug, ("twin", "socket-3", 1, True), 0.05),
        Move(pull, (3,)),
        Move(plug, ("nameless", "socket-2", 1, True)),
    ),
    "what another configuration gives away is sold once": (
        Move(plug, ("composite", "socket-1", 0, True), 35.0),
        Move(configure, (1,)),
        Move(hup, (), 11.0),
    ),
    "parts of one repair wait for no truce": (
        Move(war, (30.0,), 65.0),
        Move(create, (), 35.0),
        Move(create, (), 22.0),
        Move(create, (), 6.0),
        Move(refuse, ("annotation",), 1.5),
    ),
    "what is stored late, when its resource has left the configuration, is removed": (
        Move(plug, ("zigbee", "socket-1", 0, True), 35.0),
        Move(fail, ("late", 1)),
        Move(zero, (), 6.0),
        Move(configure, (3,)),
        Move(hup, (), 11.0),
    ),
    "what may have been stored without an answer is removed with its resource": (
        Move(climate, ("answer lost",), 11.0),
        Move(plug, ("zigbee", "socket-2", 2, True)),
        Move(configure, (3,)),
    ),
    "what the Node was seen without, and may hold since, is removed": (
        Move(step, (1,), 0.05),
        Move(climate, ("answer lost",)),
        Move(foreign, ("example.com/zigbee", None, ("capacity", "allocatable"))),
        Move(configure, (3,), 65.0),
    ),
    "what a webhook put back is removed in the end": (
        Move(step, (1,), 0.05),
        Move(configure, (3,)),
        Move(undo, ("example.com/zigbee",), 35.0),
    ),
    "what was stored without an answer, and is no longer wanted, is found": (
        Move(step, (1,), 35.0),
        Move(climate, ("answer lost",)),
        Move(plug, ("modem", "socket-1", 0, True), 6.0),
        Move(pull, (0,), 11.0),
    ),
    "a stick without a serial takes no other's place": (
        Move(plug, ("nameless", "socket-3", 0, True)),
        Move(plug, ("zigbee", "socket-3", 1, True), 0.05),
        Move(blind, (True,)),
        Move(replug, (2, "socket-1", 0, 0.5)),
        Move(replug, (1, "socket-2", 2, 0.0)),
        Move(pull, (2,)),
        Move(plug, ("zigbee", "socket-2", 0, True)),
    ),
    "a stick that moved while another took its name is no lost one": (
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(pull, (0,)),
        Move(plug, ("zigbee", "socket-1", 0, True), 0.05),
        Move(pull, (0,)),
        Move(plug, ("modem", "socket-3", 0, False)),
        Move(plug, ("zigbee", "socket-1", 0, True)),
    ),
    "without records an interface that changed its name is no lost one": (
        Move(records, (True,), 0.05),
        Move(plug, ("composite", "socket-2", 0, False)),
        Move(replug, (0, "socket-2", 1, 0.0)),
        Move(plug, ("composite", "socket-2", 0, False)),
        Move(devnode, (0, 13)),
        Move(configure, (1,)),
        Move(replug, (4, "socket-1", 0, 2.1), 11.0),
        Move(replug, (4, "socket-3", 0, 2.1)),
    ),
    "an entry that leads to two present sticks is the one that is where it was": (
        Move(plug, ("zigbee", "socket-1", 1, True), 0.05),
        Move(kill, (1, 1)),
        Move(respell, (4, None)),
        Move(furnish, ("zigbee",)),
        Move(bounce, (3, 0, 12.0)),
        Move(replug, (4, "socket-2", 0, 0.0)),
    ),
    "a return that was noticed late happened when it happened": (
        Move(furnish, ("composite", "twin", "modem")),
        Move(blind, (True,)),
        Move(bounce, (4, 1, 0.5)),
        Move(furnish, ("zigbee", "twin")),
    ),
    "who mounts what a returned stick has only now has another stick": (
        Move(furnish, ("zigbee", "nameless")),
        Move(furnish, ("zigbee", "nameless")),
        Move(replug, (0, "socket-3", 0, 4.5)),
        Move(replug, (3, "socket-1", 4, 0.5)),
    ),
    "a resource that left the configuration has lost nothing when it is back": (
        Move(furnish, ("composite", "twin", "modem")),
        Move(blind, (True,)),
        Move(configure, (3,), 35.0),
        Move(configure, (1,)),
        Move(bounce, (1, 1, 4.5)),
        Move(respell, (4, None)),
    ),
    "who started after a stick's first return heals at its second under the same number": (
        Move(furnish, ("zigbee",)),
        Move(bounce, (0, 1, 0.5)),
        Move(restart, (1, 0.0), 2.0),
        Move(bounce, (0, 0, 0.5)),
    ),
    "a registration that is found again is the same, whatever udev calls it by then": (
        Move(furnish, ("zigbee",)),
        Move(furnish, ("zigbee",)),
        Move(devnode, (3, 19)),
        Move(respell, (3, "Z2")),
    ),
    "without a record, too, what another resource surely has is not lost": (
        Move(records, (True,)),
        Move(configure, (1,)),
        Move(furnish, ("composite", "twin", "modem")),
        Move(pull, (0,)),
    ),
    "what another resource surely has without a record hides no loss": (
        Move(records, (True,)),
        Move(furnish, ("zigbee", "composite")),
        Move(pull, (1,)),
        Move(plug, ("modem", "socket-1", 0, True)),
    ),
    "who was there beside another while scans were uncertain shares its paths": (
        Move(furnish, ("zigbee", "composite")),
        Move(pull, (0,), 35.0),
        Move(plug, ("composite", "socket-1", 0, True)),
        Move(swap, (3, "nameless", 2.5)),
        Move(devnode, (3, 24)),
        Move(furnish, ("zigbee", "composite")),
        Move(pull, (1,)),
    ),
    "a successor that was bound in the second of the loss is spared": (
        Move(take, ("list pods",)),
        Move(plug, ("zigbee", "socket-1", 0, True), 0.05),
        Move(remove, (1,), 2.5),
        Move(pull, (0,), 2.5),
        Move(grant, ()),
    ),
    "a successor that a list for another loss holds is none of the first": (
        Move(furnish, ("zigbee", "nameless")),
        Move(pull, (0,), 2.5),
        Move(remove, (2,), 0.5),
        Move(bounce, (0, 0, 0.5)),
    ),
    "who was bound within the grace was there": (
        Move(furnish, ("zigbee",)),
        Move(pull, (0,), 1.2),
        Move(remove, (2,)),
    ),
    "who was there before a restart is evicted after it": (
        Move(furnish, ("zigbee",)),
        Move(pull, (0,), 2.5),
        Move(kill, (0, 0)),
    ),
    "a successor that finds another stick in the place of the lost one stays": (
        Move(furnish, ("zigbee",)),
        Move(swap, (0, "composite", 0.5), 35.0),
        Move(swap, (0, "zigbee", 0.5), 35.0),
        Move(kill, (0, 0)),
        Move(begin, (), 35.0),
    ),
    "who starts in the second of the return has healed": (
        Move(furnish, ("zigbee",)),
        Move(bounce, (0, 1, 0.5)),
        Move(restart, (4, 0.0)),
    ),
    "a stick that returns whenever it is used costs one round of pods": (
        Move(furnish, ("zigbee",)),
        Move(bounce, (0, 1, 0.5), 35.0),
        Move(bounce, (0, 1, 0.5), 35.0),
    ),
    "a container that waits has nothing to lose": (
        Move(furnish, ("zigbee",)),
        Move(restart, (4, 35.0)),
        Move(bounce, (0, 1, 0.5)),
    ),
    "who started nobody knows when is spared": (
        Move(furnish, ("zigbee",)),
        Move(forget_start, (4,)),
        Move(bounce, (0, 1, 0.5)),
    ),
    "without the acceptance of the lower count nobody is evicted": (
        Move(furnish, ("zigbee",)),
        Move(refuse, (ZIGBEE,)),
        Move(pull, (0,), 35.0),
    ),
    "who ends anyway is not evicted": (
        Move(furnish, ("zigbee",)),
        Move(pull, (0,), 6.0),
        Move(terminate, (4,)),
    ),
    "another serial text is no other stick": (
        Move(furnish, ("zigbee",)),
        Move(respell, (0, "Z2"), 35.0),
        Move(kill, (0, 0)),
        Move(respell, (0, "Z1")),
        Move(begin, (), 35.0),
    ),
    "what nobody counted any more before a daemon began evicts nobody": (
        Move(furnish, ("zigbee",)),
        Move(kill, (0, 0)),
        Move(zero, ()),
        Move(pull, (0,)),
        Move(begin, (), 35.0),
    ),
    "twins that share a link: who mounts it stays": (
        Move(furnish, ("zigbee", "twin")),
        Move(pull, (1,), 35.0),
    ),
    "the pods of another node are nobody's": (
        Move(furnish, ("zigbee",)),
        Move(leak, (True,)),
        Move(pull, (0,), 35.0),
    ),
    "a resource that a user has added to the annotation is not removed": (
        Move(furnish, ("zigbee",)),
        Move(foreign, (STRANGER, "2", MAPS)),
        Move(forge, ("a resource", "kubectl")),
    ),
    "a resource that comes back into the configuration does not forget whom it evicted a moment ago": (
        Move(plug, ("modem", "socket-1", 2, True)),
        Move(plug, ("twin", "socket-3", 1, True)),
        Move(plug, ("composite", "socket-2", 2, True), 0.5),
        Move(bounce, (1, 1, 1.9), 6.0),
        Move(configure, (3,)),
        Move(step, (3,), 6.0),
        Move(configure, (1,)),
        Move(relief, (), 11.0),
        Move(bounce, (4, 1, 0.0)),
    ),
    "who came after a loss that stays listed is a successor": (
        Move(configure, (1,)),
        Move(plug, ("composite", "socket-3", 2, True)),
        Move(plug, ("twin", "socket-1", 2, True), 11.0),
        Move(swap, (1, "composite", 0.0), 11.0),
        Move(kill, (0, 5)),
        Move(pods, ()),
        Move(begin, (), 6.0),
        Move(furnish, ("composite", "twin", "modem")),
    ),
    "of twins that return only one has evicted": (
        Move(furnish, ("zigbee",)),
        Move(plug, ("twin", "socket-3", 0, True)),
        Move(bounce, (4, 1, 0.0), 65.0),
        Move(replug, (4, "socket-2", 0, 1.9)),
        Move(bounce, (1, 1, 8.0)),
    ),
    "parts of a stick that take over each other's names are still themselves": (
        Move(furnish, ("composite", "twin", "modem")),
        Move(plug, ("nameless", "socket-3", 1, True)),
        Move(kill, (1, 1)),
        Move(replug, (4, "socket-3", 2, 2.1)),
        Move(furnish, ("composite", "twin", "modem")),
        Move(begin, (), 0.5),
        Move(replug, (0, "socket-2", 1, 1.9)),
    ),
    "what returns into its socket while scans are uncertain shares no path with itself": (
        Move(plug, ("modem", "socket-1", 2, False)),
        Move(furnish, ("zigbee", "composite")),
        Move(devnode, (4, 5)),
        Move(bounce, (2, 1, 8.0)),
    ),
    "who mounted the name before the last is found as well": (
        Move(furnish, ("zigbee", "composite")),
        Move(devnode, (4, 5)),
        Move(bounce, (2, 1, 8.0)),
        Move(pull, (3,)),
        Move(replug, (4, "socket-3", 1, 2.1)),
    ),
    "a name that the device had later is nobody's before": (
        Move(pull, (2,), 0.5),
        Move(plug, ("composite", "socket-3", 2, True)),
        Move(replug, (3, "socket-3", 0, 0.5)),
        Move(restart, (3, 1.0), 6.0),
        Move(bounce, (3, 0, 4.5)),
    ),
    "a loss that is settled does not forget whom a return evicted a moment ago": (
        Move(refuse, ("example.com/zigbee",)),
        Move(furnish, ("zigbee", "twin")),
        Move(bounce, (0, 1, 12.0), 65.0),
        Move(relief, ()),
        Move(bounce, (0, 1, 12.0)),
        Move(replug, (0, "socket-3", 2, 0.5)),
    ),
    "a device that was there beside the lost one does not return as it": (
        Move(furnish, ("zigbee", "composite")),
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(plug, ("nameless", "socket-1", 1, False)),
        Move(devnode, (3, 2), 11.0),
        Move(pull, (4,), 11.0),
    ),
    "a daemon that is killed between two returns leaves all numbers to the next": (
        Move(furnish, ("zigbee",)),
        Move(pull, (3,)),
        Move(plug, ("zigbee", "socket-3", 1, True)),
        Move(kill, (0, 1)),
        Move(furnish, ("zigbee",)),
        Move(pull, (1,)),
        Move(replug, (4, "socket-2", 1, 0.5)),
    ),
    "a serial that udev has not told yet may be that of the lost one": (
        Move(plug, ("composite", "socket-2", 1, True)),
        Move(replug, (0, "socket-3", 0, 2.1)),
        Move(respell, (2, None)),
        Move(records, (True,)),
        Move(replug, (0, "socket-3", 1, 2.1), 6.0),
    ),
    "of lost twins the one returns that had the socket": (
        Move(configure, (1,)),
        Move(begin, ()),
        Move(kill, (0, 2), 6.0),
        Move(relief, (), 6.0),
        Move(plug, ("composite", "socket-1", 2, True), 35.0),
        Move(furnish, ("zigbee", "twin"), 65.0),
        Move(pull, (0,), 6.0),
        Move(freeze, (3.0,)),
        Move(watch_late, (1.0,), 6.0),
        Move(complete, (10,), 11.0),
        Move(configure, (0,), 6.0),
        Move(pull, (4,), 6.0),
        Move(relief, (), 1.5),
        Move(bounce, (4, 1, 8.0)),
        Move(pull, (2,)),
    ),
    "what took the name of a lost device without a record is another": (
        Move(plug, ("nameless", "socket-1", 2, True), 11.0),
        Move(records, (True,)),
        Move(pull, (0,)),
        Move(plug, ("composite", "socket-3", 1, False)),
    ),
    "an uncertain scan tells what the resource has no more": (
        Move(furnish, ("composite", "twin", "modem")),
        Move(furnish, ("zigbee", "twin")),
        Move(devnode, (3, 5)),
        Move(configure, (1,), 2.5),
        Move(pull, (4,)),
    ),
    "an uncertain scan tells what a serial reads": (
        Move(furnish, ("composite", "twin", "modem")),
        Move(devnode, (3, 13)),
        Move(respell, (4, "Z2")),
        Move(replug, (1, "socket-1", 0, 4.5)),
        Move(replug, (2, "socket-1", 1, 4.5)),
        Move(replug, (3, "socket-2", 1, 1.9)),
    ),
    "what may have been there for a moment is lost from then on": (
        Move(furnish, ("zigbee",)),
        Move(records, (True,)),
        Move(configure, (1,), 65.0),
        Move(replug, (4, "socket-2", 0, 4.5)),
        Move(pull, (0,)),
    ),
    "the socket tells more than the name": (
        Move(furnish, ("zigbee",)),
        Move(bounce, (1, 1, 4.5)),
        Move(furnish, ("zigbee",)),
        Move(pull, (4,)),
        Move(bounce, (2, 1, 0.0)),
        Move(restart, (5, 0.0), 65.0),
        Move(bounce, (3, 1, 12.0)),
        Move(pull, (1,)),
    ),
    "a registration that was missed for a moment is the same device, whatever is read of it now": (
        Move(records, (True,)),
        Move(plug, ("twin", "socket-1", 1, False)),
        Move(plug, ("nameless", "socket-3", 2, True)),
        Move(replug, (4, "socket-3", 1, 0.0)),
        Move(respell, (0, None)),
        Move(bounce, (0, 1, 0.5)),
        Move(devnode, (1, -1)),
        Move(pull, (1,)),
    ),
    "of lost twins the last that went is the likeliest to be back": (
        Move(furnish, ("zigbee", "twin")),
        Move(replug, (1, "socket-1", 2, 0.0)),
        Move(pull, (0,)),
        Move(begin, ()),
        Move(create, (), 6.0),
        Move(kill, (1, 5), 6.0),
        Move(replug, (4, "socket-3", 1, 1.9)),
    ),
    "what came while scans were uncertain may have shared a path with what went": (
        Move(pull, (1,), 11.0),
        Move(plug, ("nameless", "socket-3", 1, True)),
        Move(blind, (True,)),
        Move(furnish, ("zigbee", "twin")),
        Move(bounce, (1, 0, 2.1)),
        Move(pull, (3,)),
    ),
    "what a former daemon listed has its grace when it goes, though its record was never read": (
        Move(begin, ()),
        Move(configure, (1,)),
        Move(furnish, ("zigbee", "composite")),
        Move(records, (True,)),
        Move(kill, (0, 2)),
        Move(hearing, ("twice",), 35.0),
        Move(replug, (0, "socket-1", 2, 4.5)),
    ),
    "who started before the device came has no file of it": (
        Move(furnish, ("zigbee", "composite")),
        Move(swap, (0, "composite", 2.5)),
        Move(respell, (2, "Z1")),
        Move(configure, (3,), 35.0),
        Move(configure, (0,), 35.0),
        Move(replug, (1, "socket-3", 1, 0.5)),
    ),
    "the parts of a stick come one after the other": (
        Move(furnish, ("composite",)),
        Move(apart, (0.5,)),
        Move(bounce, (0, 1, 0.5)),
    ),
    "one part of a stick stays away": (
        Move(furnish, ("composite",)),
        Move(apart, (2.5,)),
        Move(bounce, (0, 1, 4.5)),
        Move(kill, (0, 1)),
    ),
    "a twin in a socket of another resource may be the one that went": (
        Move(furnish, ("zigbee", "composite")),
        Move(configure, (1,)),
        Move(pull, (3,)),
        Move(furnish, ("zigbee",)),
        Move(replug, (4, "socket-2", 0, 2.1)),
    ),
    "a pod whose turn was put off by uncertain scans is read again": (
        Move(furnish, ("composite", "twin", "modem")),
        Move(replug, (0, "socket-1", 2, 0.5), 6.0),
        Move(devnode, (4, 40), 0.5),
        Move(furnish, ("composite", "twin", "modem")),
    ),
    "a loss that a user has invented evicts nobody": (
        Move(furnish, ("zigbee", "nameless")),
        Move(kill, (0, 0)),
        Move(forge, ("a loss", "by our name")),
        Move(begin, (), 35.0),
    ),
    "a count whose answer was lost stays on record": (
        Move(climate, ("answer lost",)),
        Move(foreign, ("example.com/zwave", "1k", ("allocatable",))),
        Move(configure, (1,)),
        Move(furnish, ("composite", "twin", "modem")),
        Move(kill, (1, 8)),
    ),
    "a count that another client has is not listed for longer than it may be ours": (
        Move(configure, (1,)),
        Move(climate, ("half an answer",)),
        Move(foreign, ("example.com/spare", "0", ("allocatable",))),
        Move(configure, (2,), 2.5),
    ),
    "a device that was never counted keeps no other's pods": (
        Move(plug, ("zigbee", "socket-1", 2, False)),
        Move(freeze, (40.0,)),
        Move(pull, (3,), 0.05),
        Move(plug, ("composite", "socket-3", 0, False)),
        Move(pull, (0,)),
    ),
    "what twins shared before their resource evicts is shared": (
        Move(configure, (2,)),
        Move(plug, ("nameless", "socket-1", 0, True)),
        Move(plug, ("nameless", "socket-2", 1, False)),
        Move(replug, (3, "socket-3", 0, 0.0), 11.0),
        Move(swap, (4, "composite", 2.5)),
        Move(replug, (3, "socket-2", 2, 1.9)),
        Move(configure, (0,), 11.0),
        Move(devnode, (3, -1)),
        Move(plug, ("modem", "socket-3", 2, False), 11.0),
    ),
    "what an uncertain scan finds again stays listed as lost": (
        Move(furnish, ("composite", "twin", "modem")),
        Move(climate, ("answer lost",)),
        Move(devnode, (1, 19), 35.0),
        Move(devnode, (0, 40)),
        Move(devnode, (1, 0)),
        Move(bounce, (1, 1, 0.0), 11.0),
    ),
    "a link that a device had before the first answer names it": (
        Move(plug, ("zigbee", "socket-2", 1, False)),
        Move(swap, (2, "composite", 0.0), 1.5),
        Move(fail, ("never", 2)),
        Move(pull, (3,)),
        Move(kill, (1, 0)),
        Move(furnish, ("zigbee", "composite")),
        Move(begin, (), 2.5),
        Move(complete, (6,), 1.5),
        Move(respell, (2, None)),
        Move(restart, (3, 1.0), 6.0),
        Move(relief, (), 0.5),
        Move(devnode, (3, 2), 65.0),
    ),
    "a stick that a virtual console plays is back under its registration": (
        Move(consoles, (True,)),
        Move(furnish, ("zigbee", "composite")),
        Move(bounce, (0, 0, 0.5), 11.0),
        Move(bounce, (0, 0, 4.5), 35.0),
    ),
    "a part of a stick that takes the console of another part is back": (
        Move(consoles, (True,)),
        Move(plug, ("composite", "socket-1", 0, True), 11.0),
        Move(replug, (3, "socket-1", 1, 2.1)),
    ),
    "another vendor in the place of a lost device is not the device": (
        Move(furnish, ("composite", "twin", "modem")),
        Move(pull, (1,), 2.5),
        Move(step, (3,), 6.0),
        Move(plug, ("mouse", "socket-3", 1, False)),
        Move(pull, (4,)),
        Move(pull, (2,)),
        Move(relief, (), 35.0),
    ),
    "a link that twins shared is no longer one's own after a restart": (
        Move(create, (), 6.0),
        Move(furnish, ("composite", "twin", "modem")),
        Move(begin, ()),
        Move(pull, (0,)),
        Move(swap, (1, "nameless", 8.0)),
        Move(devnode, (0, 2)),
        Move(kill, (0, 3), 35.0),
        Move(pull, (3,)),
    ),
    "a stick that was present beside another is not that one once udev has read it": (
        Move(furnish, ("zigbee", "nameless")),
        Move(configure, (1,)),
        Move(plug, ("zigbee", "socket-3", 0, False)),
        Move(pull, (1,)),
        Move(replug, (4, "socket-1", 1, 0.5), 6.0),
        Move(pull, (0,), 65.0),
    ),
    "what started while another stick was in the socket has that one": (
        Move(furnish, ("zigbee",)),
        Move(swap, (0, "composite", 8.0)),
        Move(nothing, (), 2.5),
        Move(replug, (2, "socket-2", 0, 0.0)),
        Move(furnish, ("zigbee",)),
    ),
    "who waits longer by the configuration in force evicts later": (
        Move(devnode, (2, 0), 11.0),
        Move(replug, (0, "socket-3", 1, 1.9), 11.0),
        Move(watches, ("breaks",), 2.5),
        Move(forge, ("a resource", "by our name"), 6.0),
        Move(foreign, ("example.com/meter", "1", ("allocatable",)), 1.5),
        Move(configure, (1,), 11.0),
        Move(furnish, ("zigbee",), 6.0),
        Move(configure, (0,), 1.5),
        Move(pods, (), 1.5),
        Move(bounce, (1, 1, 0.0)),
    ),
    "what moved while scans were uncertain may have had a twin beside it": (
        Move(plug, ("composite", "socket-2", 1, True)),
        Move(furnish, ("composite", "twin", "modem"), 6.0),
        Move(replug, (2, "socket-1", 2, 2.1)),
        Move(blind, (True,), 65.0),
        Move(pull, (4,), 1.5),
        Move(replug, (1, "socket-2", 1, 1.9), 65.0),
    ),
    "what is sent in doubt tells of no loss, of which another device has taken the place in the count": (
        Move(configure, (3,), 0.5),
        Move(plug, ("zigbee", "socket-1", 0, True), 0.05),
        Move(plug, ("nameless", "socket-2", 1, True), 12.0),
        Move(plug, ("mouse", "socket-2", 5, True), 6.0),
        Move(pull, (0,)),
        Move(plug, ("nameless", "socket-3", 2, True), 1.85),
        Move(pull, (0,), 0.6),
        Move(hup, (), 0.2),
        Move(devnode, (1, 5), 0.9),
        Move(plug, ("nameless", "socket-1", 6, True), 20.0),
    ),
    "what started between two plugs of a stick has what was in its place then, also after further ones": (
        Move(records, (True,)),
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(swap, (4, "composite", 2.5)),
        Move(replug, (2, "socket-2", 1, 4.5)),
        Move(furnish, ("zigbee",)),
        Move(pull, (3,), 1.5),
        Move(replug, (2, "socket-3", 0, 4.5)),
        Move(replug, (2, "socket-3", 2, 2.1)),
        Move(climate, ("409",)),
        Move(pods, ()),
        Move(replug, (1, "socket-2", 0, 4.5), 6.0),
        Move(plug, ("zigbee", "socket-3", 1, False)),
        Move(replug, (3, "socket-1", 1, 4.5)),
    ),
    "each of several twins has its own ten minutes after an eviction": (
        Move(furnish, ("zigbee", "twin")),
        Move(plug, ("composite", "socket-2", 1, True)),
        Move(replug, (3, "socket-1", 2, 2.1)),
        Move(furnish, ("zigbee", "nameless")),
        Move(replug, (3, "socket-3", 1, 1.9)),
        Move(bounce, (0, 1, 12.0)),
        Move(furnish, ("zigbee", "twin")),
        Move(replug, (0, "socket-3", 0, 0.0)),
    ),
    "the time of a loss is that of its stick, although another had the same devnode when it was lost": (
        Move(plug, ("twin", "socket-2", 2, True), 0.05),
        Move(pull, (0,), 11.0),
        Move(plug, ("composite", "socket-3", 1, True)),
        Move(pull, (0,)),
        Move(kill, (0, 0)),
    ),
    "what a changed configuration gives to another resource is not lost, also where no certain scan has found it": (
        Move(begin, ()),
        Move(plug, ("zigbee", "socket-1", 0, True)),
        Move(devnode, (0, 13)),
        Move(furnish, ("composite", "twin", "modem")),
        Move(hearing, ("never",)),
        Move(kill, (0, 0)),
        Move(configure, (1,)),
        Move(furnish, ("zigbee",)),
        Move(pull, (0,)),
        Move(pull, (0,)),
    ),
    "a part that was lost before a restart is not the other part, which another resource has": (
        Move(furnish, ("composite", "twin", "modem")),
        Move(devnode, (0, -1), 11.0),
        Move(kill, (0, 0)),
        Move(begin, ()),
        Move(replug, (1, "socket-1", 0, 0.5)),
        Move(pull, (0,)),
    ),
    "the time of an older loss is not that of the stick which had its devnode next": (
        Move(furnish, ("zigbee", "nameless")),
        Move(pull, (0,)),
        Move(replug, (0, "socket-1", 0, 0.0)),
        Move(nothing, (), 11.0),
        Move(pull, (0,)),
        Move(kill, (0, 0)),
    ),
    "a link that a stick had before the daemon had read the Node names it": (
        Move(nothing, (), 14.0),
        Move(kill, (0, 0)),
        Move(furnish, ("zigbee", "twin")),
        Move(pull, (0,)),
        Move(begin, ()),
        Move(respell, (0, None), 0.05),
        Move(replug, (0, "socket-1", 0, 0.0)),
    ),
    "what a kubelet takes away after the daemon has read the Node is counted still": (
        Move(begin, (), 20.0),
        Move(furnish, ("zigbee", "composite")),
        Move(pull, (0,)),
        Move(kill, (0, 0), 0.5),
        Move(fail, ("500", 2), 2.5),
        Move(bounce, (2, 0, 2.1), 6.0),
        Move(zero, ()),
        Move(nothing, (), 0.5),
    ),
    "a stick whose devnode was away for a moment is itself, although a twin came and went meanwhile": (
        Move(nothing, (), 0.001),
        Move(furnish, ("zigbee", "nameless")),
        Move(devnode, (0, -1)),
        Move(swap, (1, "zigbee", 0.0)),
        Move(swap, (1, "nameless", 0.0)),
    ),
    "which of two twins is back cannot be told without a record, so either may be the lost one": (
        *[Move(nothing, ())] * 13,
        Move(furnish, ("zigbee",)),
        Move(plug, ("zigbee", "socket-1", 0, False), 11.0),
        Move(pull, (0,)),
        Move(devnode, (0, -1)),
        Move(nothing, (), 2.5),
        Move(create, ()),
        Move(devnode, (0, 0), 0.05),
    ),
    "which of two twins a restart finds cannot be told; who has the first of the listed numbers has a good file when it is back": (
        Move(furnish, ("zigbee", "twin")),
        Move(begin, ()),
        Move(replug, (0, "socket-1", 1, 0.0)),
        Move(kill, (0, 0)),
        Move(nothing, (), 35.0),
        Move(replug, (0, "socket-1", 0, 0.0)),
    ),
    "the start grace is over when a scan is certain at last: who came after the count fell is not there when it does": (
        *[Move(nothing, ())] * 13,
        Move(furnish, ("zigbee",)),
        Move(pull, (0,)),
        Move(blind, (True,)),
        Move(kill, (0, 0)),
        Move(begin, (), 0.05),
        Move(delete, ()),
        Move(terminate, (0,), 35.0),
    ),
    "a daemon that cannot read its Node for long has seen the stick before a slow udev has handled it": (
        *[Move(nothing, ())] * 12,
        Move(furnish, ("composite", "twin", "modem")),
        Move(forbid, ()),
        Move(plug, ("zigbee", "socket-1", 0, False)),
        Move(kill, (0, 0)),
        Move(fail, ("429 after 7", 2)),
        Move(begin, ()),
        Move(pull, (1,)),
        Move(furnish, ("zigbee",)),
    ),
    "a stick that came back under its number while no daemon looked shares what the annotation says": (
        *[Move(nothing, ())] * 13,
        Move(furnish, ("zigbee", "nameless")),
        Move(pull, (0,)),
        Move(pull, (0,)),
        Move(kill, (0, 0)),
        Move(begin, (), 0.05),
        Move(furnish, ("zigbee", "composite")),
        Move(pull, (0,)),
    ),
    "a twin that was seen before takes the place of the one that is pulled when that is seen": (
        *[Move(nothing, ())] * 15,
        Move(nothing, (), 0.05),
        Move(plug, ("composite", "socket-1", 0, True)),
        Move(devnode, (2, -1)),
        Move(furnish, ("composite", "twin", "modem")),
        Move(swap, (1, "zigbee", 0.0)),
    ),
    "a twin that is claimed by its record alone may have the same link before that is read": (
        *[Move(nothing, ())] * 15,
        Move(furnish, ("zigbee",)),
        Move(records, (True,)),
        Move(furnish, ("zigbee",)),
        Move(configure, (1,), 2.5),
        Move(pull, (0,)),
    ),
    "a stick that was found in the socket of another stays in its place in scans that miss both": (
        *[Move(nothing, ())] * 14,
        Move(furnish, ("zigbee",)),
        Move(furnish, ("zigbee", "composite")),
        Move(devnode, (0, 13)),
        Move(bounce, (2, 1, 0.0)),
        Move(devnode, (2, 13)),
        Move(overflow, ()),
    ),
}
"""Histories in which a promise was broken once, by a mistake in devwatch or by one that was made on purpose, or its judge erred."""


@pytest.mark.parametrize("history", KNOWN.values(), ids=KNOWN)
def test_what_was_broken_once_holds(history: Sequence[Move]) -> None:
    """A mistake is made once."""
    assert play(World(METRICS), history) == []


# -- the judge can say no


@pytest.fixture
def world() -> Iterator[World]:
    """Have a world in which one stick is advertised and nothing is on its way."""
    world = World(METRICS)
    world.host.plug(KINDS["zigbee"], "socket-1", 0, record=True)
    world.wait(21)
    yield world
    world.close()


def verdicts(world: World) -> set[Enum]:
    """Return the promises that were found broken."""
    return {promise for promise, _ in world.broken}


@pytest.mark.parametrize(
    ("changes", "promise"),
    [
        ({ZIGBEE: "2"}, Promise.OVERSELLS),
        ({ZIGBEE: "0"}, Promise.GRACE),
        ({ZIGBEE: "1"}, Promise.QUIET),
        ({ZIGBEE: None}, Promise.GRACE),
        ({"example.com/other": "1"}, Promise.OWN),
        ({"example.com/other": None}, Promise.OWN),
        ({ANNOTATION_PART: "{}"}, Promise.OWN),
    ],
)
def test_a_wrong_patch_is_seen(world: World, changes: dict[str, str | None], promise: Promise) -> None:
    """Each PATCH is held against the world as it is sent."""
    assert world.holder is not None
    world.holder.judge.sent(changes)
    assert promise in verdicts(world)


def test_a_patch_that_lowers_on_ignorance_is_seen(world: World) -> None:
    """After a look that was not certain even the truth is not known well enough."""
    assert world.holder is not None
    world.host.blind = True
    world.host.pull(world.host.sticks[0])
    world.wait(15)
    world.holder.judge.sent({ZIGBEE: "0"})
    assert verdicts(world) == {Promise.IGNORANCE}


def test_a_wrong_eviction_is_seen(world: World) -> None:
    """The stick is there."""
    assert world.holder is not None
    world.holder.judge.evicts(world.town.here[0].pod)
    assert verdicts(world) == {Promise.CERTAINTY}


def test_a_node_that_shows_something_else_is_seen(world: World) -> None:
    """Nobody has told the daemon yet."""
    world.hearing = Hearing.NEVER
    world.host.plug(KINDS["nameless"], "socket-2", 0, record=True)
    world.converged()
    assert verdicts(world) == {Promise.CONVERGES}


def test_a_daemon_without_the_lock_that_writes_is_seen(world: World) -> None:
    """And so are two requests at a time."""
    assert world.holder is not None
    judge = world.holder.judge
    with judge.request(), judge.request():
        pass
    world.holder = None
    with judge.request():
        pass
    assert verdicts(world) == {Promise.QUIET, Promise.OWN}


# -- time


SOURCES = Path(devwatch.__file__).parent
DECIDING = sorted(
    path.relative_to(SOURCES).as_posix()
    for pattern in ("core/*.py", "config/schema.py", "agent/evictor.py", "agent/re[cq]*.py")
    for path in SOURCES.glob(pattern)
)


@pytest.mark.parametrize("module", DECIDING)
def test_no_step_of_the_wall_clock_decides_anything(module: str) -> None:
    """What decides takes the time as an argument, which is that of the loop; only what tells people asks for the date."""
    tree = ast.parse((SOURCES / module).read_text(encoding="utf-8"))
    names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not names & {"time", "datetime"}
