"""What devwatch promises where pods get devices by claims, through any history of its world: see `test_promises.py`.

`DEVWATCH_CLAIMS=100000` plays so many, `DEVWATCH_SEED=7` others. A history that fails is printed as Python; put into `KNOWN` it is
played for ever.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from support.model import Uncounted
from support.model_claims_moves import FUNCTIONS, play
from support.model_handover_moves import (
    begin,
    bounce,
    configure,
    furnish,
    kill,
    kubelet_restarts,
    plug,
    pod,
    pull,
    restart,
)
from support.model_moves import Move, devnode, finish, moves, records

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.no_cover
"""As in `test_promises.py`."""
HISTORIES = int(os.environ.get("DEVWATCH_CLAIMS", "30"))
SEED = int(os.environ.get("DEVWATCH_SEED", "0"))
METRICS = Uncounted("0")


@seed(SEED)
@settings(
    max_examples=HISTORIES,
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),  # they are about the time that a history takes
)
@given(st.lists(moves(furnish, pull, bounce, kubelet_restarts, kill, functions=FUNCTIONS), min_size=10, max_size=30))
def test_whatever_happens_every_promise_is_kept(history: Sequence[Move]) -> None:
    """Those of `Promise`."""
    assert play(history, METRICS) == []


KNOWN = {
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
}


@pytest.mark.parametrize("history", [pytest.param(history, id=name) for name, history in KNOWN.items()])
def test_a_history_that_has_failed_before(history: Sequence[Move]) -> None:
    """Each failed once, or fails as soon as one of the promises is broken."""
    assert play(history, METRICS) == []
