"""The request state of each part of the Node: whether a write is unanswered, isolated or refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from devwatch.core.backoff import Backoff
from devwatch.core.node import ANNOTATION_PART

if TYPE_CHECKING:
    from collections.abc import Collection
    from collections.abc import Set as AbstractSet

    from devwatch.core.node import NodePatch, NodeState, Part

REFUSAL_LIMIT = 60.0
"""Seconds: the longest delay before a part that was refused in a request of its own is tried again."""
STORED_LATE = 60.0
"""Seconds for which an API server may continue a request after the client has given up (kube-apiserver, `--request-timeout`)."""


@dataclass(slots=True, kw_only=True)
class PartRecord:
    """The request state of one part of the Node: the counts of a resource, or the annotation.

    The states are independent of one another:

    | state | begins | ends |
    |---|---|---|
    | written: the Node may have it from devwatch | it is sent | an observation lacks it, and it cannot be stored late |
    | unanswered: the observed state may be older than the write | a request with it failed | an observation |
    | late: the API server may still store the write | a request with it failed | `STORED_LATE` after that |
    | isolated: it is sent in a request of its own | a request with it was refused | it is accepted, or neither configured nor wanted |
    | refused: it has a reason, and a backoff if it was isolated | a request with it was refused | it is accepted, or not wanted |
    """

    written: bool = False
    unanswered: bool = False
    late_until: float = float("-inf")
    isolated: bool = False
    reason: str = ""
    """Why it is refused, empty where it is not refused."""
    backoff: Backoff = field(default_factory=lambda: Backoff(limit=REFUSAL_LIMIT))
    """When to try it again, where it was refused in isolation."""

    def may_be_stored(self, now: float) -> bool:
        """Return whether the Node may have, or may still get, a write that the observed state does not show."""
        return self.unanswered or now < self.late_until

    def forgive(self) -> None:
        """Clear the refusal."""
        self.reason = ""
        self.backoff.succeed()


class PartRecords:
    """The records of all parts; a part without a record is in none of the states."""

    def __init__(self) -> None:
        """Start without records."""
        self._records: dict[Part, PartRecord] = {}

    def _record_of(self, part: Part) -> PartRecord:
        return self._records.setdefault(part, PartRecord())

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

    def accepted(self, patch: NodePatch) -> None:
        """Record that the API server has stored a patch: its parts may be batched again."""
        for part in patch.parts:
            record = self._record_of(part)
            record.isolated = False
            record.forgive()

    def refused(self, parts: Collection[Part], reason: str) -> None:
        """Record that a request was refused: each of its parts is isolated, so that one bad part does not hold up the others."""
        for part in parts:
            record = self._record_of(part)
            record.isolated, record.reason = True, reason

    def refused_alone(self, part: Part, now: float, jitter: float) -> float:
        """Record that an isolated part was refused, and return the seconds until it is tried again."""
        return self._record_of(part).backoff.fail(now, jitter)

    def observed(self, state: NodeState, now: float) -> None:
        """Process an observation: a part that it lacks, and that cannot be stored late, is no longer devwatch's."""
        for part, record in self._records.items():
            record.unanswered = False
            late = now < record.late_until
            record.written = (record.written or late) and part != ANNOTATION_PART and not state.shows(part, None)

    def forgive(self, configured: Collection[str], wanted: AbstractSet[Part]) -> None:
        """Clear the refusals of parts that are not wanted, and the isolation of resources that are neither configured nor wanted."""
        for part, record in self._records.items():
            record.isolated &= part == ANNOTATION_PART or part in configured or part in wanted
            if part not in wanted:
                record.forgive()

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
    def waiting(self) -> set[Part]:
        """The parts that were refused in isolation."""
        return {part for part, record in self._records.items() if record.backoff.failures}

    def blocked(self, now: float) -> set[Part]:
        """Return the parts that must not be tried yet."""
        return {part for part, record in self._records.items() if now < record.backoff.until}

    def due(self, part: Part) -> float:
        """Return the time before which a part must not be tried; minus infinity where it was not refused in isolation."""
        record = self._records.get(part)
        return record.backoff.until if record else float("-inf")

    def perhaps_ours(self, state: NodeState, now: float) -> set[str]:
        """Return the resources whose counts on the Node may be devwatch's: written, and not overwritten by another client since."""
        written = ((name, record) for name, record in self._records.items() if record.written)
        return {name for name, record in written if record.may_be_stored(now) or state.removable(name)}
