"""What somebody else has written, and when it is repaired."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devwatch.core.node import ANNOTATION_PART, Amounts, NodeState, Writer
from devwatch.core.parts import CONTESTED, PartRecords
from support.build import ZIGBEE, ZWAVE, patch_of

if TYPE_CHECKING:
    from support.build import Parts


def state(*managers: str) -> NodeState:
    """Return a Node whose Zigbee count these managers have written."""
    return NodeState(writers={ZIGBEE: tuple(Writer(manager=manager, time="") for manager in managers)})


class Contest(PartRecords):
    """The records as a publisher uses them: it wants a patch, and writes what does not wait."""

    def delayed(self, wanted: Parts, now: float) -> set[str]:
        """Return what must wait where this patch is wanted."""
        self.want([], patch_of(wanted))
        return self.blocked(patch_of(wanted), now)

    def repair(self, sent: Parts, now: float) -> tuple[set[str], tuple[str, ...] | None]:
        """Return what an accepted patch repairs, and the other writers where they are to be named."""
        done = self.accepted(patch_of(sent), now)
        return (set(done.parts), done.rivals) if done else (set(), None)

    def contend(self, now: float, *managers: str) -> tuple[str, ...] | None:
        """Let somebody write and us repair; return the other writers where they are to be named."""
        self.overwritten([ZIGBEE], state(*managers))
        self.delayed({ZIGBEE: "1"}, now)
        return self.repair({ZIGBEE: "1"}, now)[1]


def test_the_first_repair_is_due_at_once() -> None:
    """Nothing waits in peace."""
    records = Contest()
    records.overwritten([ZIGBEE, ANNOTATION_PART], state("kubelet"))
    assert records.delayed({ZIGBEE: "1", ANNOTATION_PART: "{}"}, 0) == set()
    assert records.repair({ZIGBEE: "1"}, 0)[0] == {ZIGBEE}
    assert records.repair({ANNOTATION_PART: "{}"}, 0)[0] == {ANNOTATION_PART}


def test_the_next_repair_waits_for_the_backoff_and_nothing_else_does() -> None:
    """A part that no other client contests is not delayed, and the delay is reported for the planning of the next cycle."""
    records = Contest()
    records.contend(0, "kubelet")
    records.overwritten([ZIGBEE], state("kubelet"))
    assert records.delayed({ZIGBEE: "1", ZWAVE: "1"}, 0.5) == {ZIGBEE}
    assert (records.due(ZIGBEE, Amounts.of(1)), records.due(ZWAVE, Amounts.of(1))) == (1, float("-inf"))
    assert records.delayed({ZIGBEE: "1"}, 1) == set()


def test_what_is_wanted_anew_does_not_wait() -> None:
    """A device that comes is no repair."""
    records = Contest()
    records.contend(0, "kubelet")
    records.overwritten([ZIGBEE], state("kubelet"))
    assert records.delayed({ZIGBEE: "1"}, 0.5) == {ZIGBEE}
    assert records.delayed({ZIGBEE: "2"}, 0.6) == set()


def test_what_is_no_longer_wanted_is_no_drift() -> None:
    """Another client has repaired it, so the backoff does not grow."""
    records = Contest()
    records.overwritten([ZIGBEE], state("kubelet"))
    assert records.delayed({}, 0) == set()
    assert records.repair({ZIGBEE: "1"}, 0)[0] == set()
    assert records.delayed({ZIGBEE: "1"}, 0.1) == set()


def test_the_other_writers_are_named_at_the_fifth_repair_only() -> None:
    """All of them, and never ourselves."""
    records = Contest()
    told = [records.contend(number, "devwatch", "b" if number % 2 else "a") for number in range(2 * CONTESTED)]
    assert told == [None] * 4 + [("a", "b")] + [None] * 5


def test_parts_repaired_in_isolation_are_one_repair() -> None:
    """Where a policy refuses one resource the others are written one by one, and none waits for the backoff of the one before."""
    records = Contest()
    wanted = {ZIGBEE: "1", ZWAVE: "1", ANNOTATION_PART: "{}"}
    records.overwritten(wanted, state("kubelet"))
    for name, value in wanted.items():
        assert records.delayed(wanted, 0) == set()
        assert records.due(name, patch_of(wanted).value(name)) <= 0
        assert records.repair({name: value}, 0)[0] == {name}
    records.overwritten([ZIGBEE], state("kubelet"))
    assert records.delayed(wanted, 0) == {ZIGBEE}
    assert records.due(ZIGBEE, Amounts.of(1)) == 1


def test_what_is_written_over_again_before_its_repair_waits() -> None:
    """The exemption is for what was to be repaired then, not for what somebody has written since."""
    records = Contest()
    wanted = {ZIGBEE: "1", ZWAVE: "1"}
    records.overwritten(wanted, state("kubelet"))
    records.delayed(wanted, 0)
    records.repair({ZIGBEE: "1"}, 0)
    records.overwritten([ZWAVE], state("kubelet"))
    assert records.delayed(wanted, 0.5) == {ZWAVE}
    assert records.delayed(wanted, 1) == set()


def test_a_repair_within_the_backoff_ends_it_for_nothing_else() -> None:
    """A changed count is written at once, and the other parts keep waiting."""
    records = Contest()
    records.contend(0, "kubelet")
    records.overwritten([ZIGBEE, ZWAVE], state("kubelet"))
    records.delayed({ZIGBEE: "1", ZWAVE: "1"}, 0.5)
    assert records.delayed({ZIGBEE: "2", ZWAVE: "1"}, 0.6) == {ZWAVE}
    assert records.repair({ZIGBEE: "2"}, 0.6)[0] == {ZIGBEE}
    assert records.delayed({ZWAVE: "1"}, 0.7) == {ZWAVE}


def test_a_changed_count_does_not_lengthen_the_backoff() -> None:
    """Sticks that come and go do not delay the repair of a foreign write."""
    records = Contest()
    records.contend(0, "kubelet")
    records.overwritten([ZIGBEE, ZWAVE], state("kubelet"))
    assert records.delayed({ZIGBEE: "1", ZWAVE: "1"}, 0.5) == {ZIGBEE, ZWAVE}
    assert records.delayed({ZIGBEE: "2", ZWAVE: "1"}, 0.6) == {ZWAVE}
    assert records.repair({ZIGBEE: "2"}, 0.6)[0] == {ZIGBEE}
    assert records.delayed({ZWAVE: "1"}, 1) == set()


def test_the_other_writers_are_named_once_where_a_repair_is_made_apart() -> None:
    """One line for a contest, however many requests a repair takes."""
    records = Contest()
    told = []
    for number in range(CONTESTED):
        records.overwritten([ZIGBEE, ZWAVE], state("a"))
        for name in (ZIGBEE, ZWAVE):
            records.delayed({ZIGBEE: "1", ZWAVE: "1"}, 400 * number)
            told.append(records.repair({name: "1"}, 400 * number)[1])
    assert [rivals for rivals in told if rivals] == [("a",)]


def test_a_refused_batch_is_isolated_and_a_part_refused_alone_waits() -> None:
    """The refusal of a batch says nothing about one part; that of a single part is repeated with a backoff."""
    records = PartRecords()
    assert records.refused(patch_of({ZIGBEE: "1", ZWAVE: "1"}), "no", 0, 0.5) is None
    assert records.blocked(patch_of({ZIGBEE: "1", ZWAVE: "1"}), 0) == set()
    assert records.refused(patch_of({ZIGBEE: "1"}), "no", 0, 0.5) == 0.25
    assert records.blocked(patch_of({ZIGBEE: "1", ZWAVE: "1"}), 0) == {ZIGBEE}
    assert (records.isolated, records.refused_in_isolation) == ({ZIGBEE, ZWAVE}, {ZIGBEE})


def test_a_difference_is_drift_unless_it_may_be_our_own() -> None:
    """What the response belongs to, and what a failed request may have stored, is not taken for a foreign write."""
    held = NodeState(capacity={ZIGBEE: "1", ZWAVE: "1"})
    seen = NodeState(capacity={ZIGBEE: "2", ZWAVE: "2"})
    wanted = {ZIGBEE: "1", ZWAVE: "1"}
    for failed, sent, drifted in (({}, {}, {ZIGBEE, ZWAVE}), ({ZIGBEE: "2"}, {ZWAVE: "2"}, set()), ({}, wanted, set())):
        records = Contest()
        records.want([ZIGBEE, ZWAVE], patch_of(wanted))
        records.failed(patch_of(failed), 0)
        records.observed(seen, held, 0, sent=patch_of(sent))
        records.want([ZIGBEE, ZWAVE], patch_of(wanted))
        assert records.repair(wanted, 0)[0] == drifted
