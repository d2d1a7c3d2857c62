"""What is known of each part of the Node at the API server: writes without an answer, refusals, and foreign writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from devwatch.core.backoff import Backoff, RepairBackoff
from devwatch.core.node import ANNOTATION_PART, FIELD_MANAGER, UNTOUCHED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from devwatch.core.node import NodePatch, NodeState, Part

REFUSAL_LIMIT = 60.0
"""Seconds: the longest delay before a part that was refused in a request of its own is tried again."""
STORED_LATE = 60.0
"""Seconds for which an API server may continue a request after the client has given up (kube-apiserver, `--request-timeout`)."""
CONTESTED = 5
"""Repairs without a quiet period between them after which the other writers are reported."""


@dataclass(slots=True, kw_only=True)
class PartRecord:
    """What is known of one part of the Node: the counts of a resource, or the annotation.

    The states are independent of one another, except that only a drifted part is disputed or exempt, and never both:

    | state | begins | ends |
    |---|---|---|
    | written: the Node may have it from devwatch | it is sent | an observation lacks it, and it cannot be stored late |
    | unanswered: the observed state may be older than the write | a request with it failed | an observation |
    | late: the API server may still store the write | a request with it failed | `STORED_LATE` after that |
    | isolated: it is sent in a request of its own | a request with it was refused | it is accepted, or neither configured nor wanted |
    | refused: it has a reason, and a backoff if it was isolated | a request with it was refused | it is accepted, or not wanted |
    | drifted: another client has overwritten it | an observation shows that | it is accepted, or not wanted |
    | disputed: the repair with this value waits for the backoff | it is drifted and wanted | with `drifted`, or it becomes exempt |
    | exempt: it is the rest of a repair that has begun | another part was repaired | with `drifted`, or it is overwritten again |
    """

    written: bool = False
    unanswered: bool = False
    late_until: float = float("-inf")
    isolated: bool = False
    reason: str = ""
    """Why it is refused, empty where it is not refused."""
    backoff: Backoff = field(default_factory=lambda: Backoff(limit=REFUSAL_LIMIT))
    """When to try it again, where it was refused in isolation."""
    drifted: bool = False
    exempt: bool = False
    disputed: object = UNTOUCHED
    """The first value that was wanted after the foreign write, `UNTOUCHED` for none. To write another value is not a repair."""

    def may_be_stored(self, now: float) -> bool:
        """Return whether the Node may have, or may still get, a write that the observed state does not show."""
        return self.unanswered or now < self.late_until

    def settle(self) -> None:
        """End the refusal and the drift: it is stored, or not wanted."""
        self.reason = ""
        self.backoff.succeed()
        self.drifted = self.exempt = False
        self.disputed = UNTOUCHED


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """The foreign writes that an accepted patch has repaired."""

    parts: frozenset[Part]
    rivals: tuple[str, ...] | None
    """The other writers, where they are to be reported: once per contest, at repair number `CONTESTED`."""


class PartRecords:
    """The records of all parts; a part without a record is in none of the states.

    The first repair of a foreign write is immediate. Further ones wait for a backoff that all parts share, since the other client may
    overwrite any of them.
    """

    def __init__(self) -> None:
        """Start without records."""
        self._records: dict[Part, PartRecord] = {}
        self._configured: Collection[str] = ()
        self._repairs = RepairBackoff()
        self._rivals: set[str] = set()

    def _record_of(self, part: Part) -> PartRecord:
        return self._records.setdefault(part, PartRecord())

    # -- the desired state

    def want(self, configured: Collection[str], wanted: NodePatch) -> None:
        """Settle the parts that are not wanted, dispute the drifted ones, and end the isolation of resources without configuration.

        A resource that is not configured stays isolated while its removal is wanted.
        """
        self._configured, parts = configured, wanted.parts
        for part, record in self._records.items():
            if part not in parts:
                record.isolated &= part == ANNOTATION_PART or part in configured
                record.settle()
            elif record.drifted and not record.exempt and record.disputed is UNTOUCHED:
                record.disputed = wanted.value(part)

    # -- outcomes of requests

    def sent(self, patch: NodePatch) -> None:
        """Record that a patch is being sent."""
        for name in patch.counts:
            self._record_of(name).written = True

    def failed(self, patch: NodePatch, now: float) -> None:
        """Record that a request failed, so that the patch may be stored now or later."""
        for part in patch.parts:
            record = self._record_of(part)
            record.unanswered = True
            record.late_until = now + STORED_LATE if part != ANNOTATION_PART else record.late_until

    def accepted(self, patch: NodePatch, now: float) -> Repair | None:
        """Record that the API server has stored a patch: its parts may be batched again. Return what it repaired, None for nothing.

        Only disputed values count as a repair in the backoff, because only these wait for it.
        """
        records = {part: self._record_of(part) for part in patch.parts}
        repaired = frozenset(part for part, record in records.items() if record.drifted)
        counts = any(records[part].disputed == patch.value(part) for part in repaired)
        for record in records.values():
            record.isolated = False
            record.settle()
        rivals = self._count_repair(now) if counts else None
        return Repair(parts=repaired, rivals=rivals) if repaired else None

    def _count_repair(self, now: float) -> tuple[str, ...] | None:
        """Count a repair, and return the other writers if they are to be reported.

        One repair may need several requests, where parts are sent isolated: once the first of them is accepted after the backoff, the
        remaining drifted parts neither wait nor count.
        """
        if now >= self._repairs.until:
            for record in self._records.values():
                if record.drifted:
                    record.exempt, record.disputed = True, UNTOUCHED
        return tuple(sorted(self._rivals)) if self._repairs.repaired(now) == CONTESTED else None

    def refused(self, patch: NodePatch, reason: str, now: float, jitter: float) -> float | None:
        """Record that a request was refused: its parts are isolated, so that one bad part does not hold up the others.

        Return the seconds until it is tried again if it had one part, None for a batch: its parts are sent one by one without delay.
        """
        records = [self._record_of(part) for part in patch.parts]
        for record in records:
            record.isolated, record.reason = True, reason
        return records[0].backoff.fail(now, jitter) if len(records) == 1 else None

    # -- observations

    def observed(self, state: NodeState, held: NodeState | None, now: float, *, sent: NodePatch) -> None:
        """Process an observation, and record as drift each part that another client has changed since the `held` state.

        A part that differs was changed by another client, unless it belongs to the patch that this is the response to (`sent`), or to a
        failed request that may have been stored (`unanswered`). A part that the Node lacks, and that cannot be stored late, is no longer
        devwatch's.
        """
        if held is not None:
            others = {ANNOTATION_PART, *held.memory(), *self._configured} - sent.parts - self.unanswered
            self.overwritten([part for part in others if held.value(part) != state.value(part)], state)
        for part, record in self._records.items():
            record.unanswered = False
            late = now < record.late_until
            record.written = (record.written or late) and part != ANNOTATION_PART and not state.shows(part, None)

    def overwritten(self, parts: Iterable[Part], state: NodeState) -> None:
        """Record that another client has written these parts, and its field manager where the server records it."""
        for part in parts:
            record = self._record_of(part)
            record.drifted, record.exempt = True, False
            self._rivals |= {writer.manager for writer in state.writers.get(part, ())} - {FIELD_MANAGER}

    # -- queries

    @property
    def isolated(self) -> set[Part]:
        """The parts that are sent in a request of their own."""
        return {part for part, record in self._records.items() if record.isolated}

    @property
    def unanswered(self) -> set[Part]:
        """The parts whose write may have been stored since the last observation."""
        return {part for part, record in self._records.items() if record.unanswered}

    @property
    def reasons(self) -> dict[Part, str]:
        """By refused part: the reason."""
        return {part: record.reason for part, record in self._records.items() if record.reason}

    @property
    def refused_in_isolation(self) -> set[Part]:
        """The parts that wait because a request of their own was refused."""
        return {part for part, record in self._records.items() if record.backoff.failures}

    def due(self, part: Part, value: object) -> float:
        """Return the time before which this value of a part must not be written; minus infinity where nothing delays it."""
        record = self._records.get(part)
        if record is None:
            return float("-inf")
        return max(record.backoff.until, self._repairs.until if record.disputed == value else float("-inf"))

    def blocked(self, wanted: NodePatch, now: float) -> set[Part]:
        """Return the parts of a patch that must not be written yet."""
        return {part for part in wanted.parts if now < self.due(part, wanted.value(part))}

    def perhaps_ours(self, state: NodeState, now: float) -> set[str]:
        """Return the resources whose counts on the Node may be devwatch's: written, and not overwritten by another client since."""
        written = ((name, record) for name, record in self._records.items() if record.written)
        return {name for name, record in written if record.may_be_stored(now) or state.removable(name)}
