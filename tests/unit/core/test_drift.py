"""What somebody else has written, and when it is repaired."""

from __future__ import annotations

from devwatch.core.drift import CONTESTED, Drift
from devwatch.core.node import ANNOTATION_PART, NodeState, Writer
from support.build import ZIGBEE, ZWAVE, patch_of


def state(*managers: str) -> NodeState:
    """Return a Node whose Zigbee count these managers have written."""
    return NodeState(writers={ZIGBEE: tuple(Writer(manager=manager, time="") for manager in managers)})


def repair(drift: Drift, now: float, *managers: str) -> None:
    """Let somebody write and us repair."""
    drift.note([ZIGBEE], state(*managers))
    drift.waiting(patch_of({ZIGBEE: "1"}), now)
    drift.repair(patch_of({ZIGBEE: "1"}), now)


def test_the_first_repair_is_due_at_once() -> None:
    """Nothing waits in peace."""
    drift = Drift()
    drift.note([ZIGBEE, ANNOTATION_PART], state("kubelet"))
    assert drift.waiting(patch_of({ZIGBEE: "1", ANNOTATION_PART: "{}"}), 0) == set()
    assert drift.repair(patch_of({ZIGBEE: "1"}), 0) == {ZIGBEE}
    assert drift.parts == {ANNOTATION_PART}


def test_the_next_repair_waits_for_the_backoff_and_nothing_else_does() -> None:
    """A part that no other client contests is not delayed, and the delay is reported for the planning of the next cycle."""
    drift = Drift()
    repair(drift, 0, "kubelet")
    drift.note([ZIGBEE], state("kubelet"))
    assert drift.waiting(patch_of({ZIGBEE: "1", ZWAVE: "1"}), 0.5) == {ZIGBEE}
    assert (drift.due(ZIGBEE), drift.due(ZWAVE)) == (1, float("-inf"))
    assert drift.waiting(patch_of({ZIGBEE: "1"}), 1) == set()


def test_what_is_wanted_anew_does_not_wait() -> None:
    """A device that comes is no repair."""
    drift = Drift()
    repair(drift, 0, "kubelet")
    drift.note([ZIGBEE], state("kubelet"))
    assert drift.waiting(patch_of({ZIGBEE: "1"}), 0.5) == {ZIGBEE}
    assert drift.waiting(patch_of({ZIGBEE: "2"}), 0.6) == set()


def test_what_is_no_longer_wanted_is_no_drift() -> None:
    """Another client has repaired it, so the backoff does not grow."""
    drift = Drift()
    drift.note([ZIGBEE], state("kubelet"))
    assert drift.waiting(patch_of({}), 0) == set()
    assert drift.repair(patch_of({ZIGBEE: "1"}), 0) == set()
    assert drift.waiting(patch_of({ZIGBEE: "1"}), 0.1) == set()


def test_the_other_writers_are_named_at_the_fifth_repair_only() -> None:
    """All of them, and never ourselves."""
    drift = Drift()
    told = []
    for number in range(2 * CONTESTED):
        repair(drift, number, "devwatch", "b" if number % 2 else "a")
        told.append(drift.rivals())
    assert told == [None] * 4 + [("a", "b")] + [None] * 5


def test_parts_repaired_in_isolation_are_one_repair() -> None:
    """Where a policy refuses one resource the others are written one by one, and none waits for the backoff of the one before."""
    drift = Drift()
    wanted = {ZIGBEE: "1", ZWAVE: "1", ANNOTATION_PART: "{}"}
    drift.note(wanted, state("kubelet"))
    for name, value in wanted.items():
        assert drift.waiting(patch_of(wanted), 0) == set()
        assert drift.due(name) <= 0
        assert drift.repair(patch_of({name: value}), 0) == {name}
    drift.note([ZIGBEE], state("kubelet"))
    assert drift.waiting(patch_of(wanted), 0) == {ZIGBEE}
    assert drift.due(ZIGBEE) == 1


def test_what_is_written_over_again_before_its_repair_waits() -> None:
    """The exemption is for what was to be repaired then, not for what somebody has written since."""
    drift = Drift()
    wanted = {ZIGBEE: "1", ZWAVE: "1"}
    drift.note(wanted, state("kubelet"))
    drift.waiting(patch_of(wanted), 0)
    drift.repair(patch_of({ZIGBEE: "1"}), 0)
    drift.note([ZWAVE], state("kubelet"))
    assert drift.waiting(patch_of(wanted), 0.5) == {ZWAVE}
    assert drift.waiting(patch_of(wanted), 1) == set()


def test_a_repair_within_the_backoff_ends_it_for_nothing_else() -> None:
    """A changed count is written at once, and the other parts keep waiting."""
    drift = Drift()
    repair(drift, 0, "kubelet")
    drift.note([ZIGBEE, ZWAVE], state("kubelet"))
    drift.waiting(patch_of({ZIGBEE: "1", ZWAVE: "1"}), 0.5)
    assert drift.waiting(patch_of({ZIGBEE: "2", ZWAVE: "1"}), 0.6) == {ZWAVE}
    assert drift.repair(patch_of({ZIGBEE: "2"}), 0.6) == {ZIGBEE}
    assert drift.waiting(patch_of({ZWAVE: "1"}), 0.7) == {ZWAVE}


def test_a_changed_count_does_not_lengthen_the_backoff() -> None:
    """Sticks that come and go do not delay the repair of a foreign write."""
    drift = Drift()
    repair(drift, 0, "kubelet")
    drift.note([ZIGBEE, ZWAVE], state("kubelet"))
    assert drift.waiting(patch_of({ZIGBEE: "1", ZWAVE: "1"}), 0.5) == {ZIGBEE, ZWAVE}
    assert drift.waiting(patch_of({ZIGBEE: "2", ZWAVE: "1"}), 0.6) == {ZWAVE}
    assert drift.repair(patch_of({ZIGBEE: "2"}), 0.6) == {ZIGBEE}
    assert drift.waiting(patch_of({ZWAVE: "1"}), 1) == set()


def test_the_other_writers_are_named_once_where_a_repair_is_made_apart() -> None:
    """One line for a contest, however many requests a repair takes."""
    drift = Drift()
    told = []
    for number in range(CONTESTED):
        drift.note([ZIGBEE, ZWAVE], state("a"))
        for name in (ZIGBEE, ZWAVE):
            drift.waiting(patch_of({ZIGBEE: "1", ZWAVE: "1"}), 400 * number)
            drift.repair(patch_of({name: "1"}), 400 * number)
            told.append(drift.rivals())
    assert [rivals for rivals in told if rivals] == [("a",)]
