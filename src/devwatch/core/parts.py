"""What is known of each part of the Node at the API server beyond what was observed: unanswered, isolated, refused."""

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
"""Seconds: the longest wait before a part that the API server refused alone is tried again."""
STORED_LATE = 60.0
"""Seconds for which an API server may go on with a request after the client has given it up (kube-apiserver, `--request-timeout`)."""


@dataclass(slots=True, kw_only=True)
class PartRecord:
    """One part of the Node, a resource's counts or the annotation.

    The states are independent of one another:

    | state | begins | ends |
    |---|---|---|
    | written: the Node may have it from devwatch | it is sent | an observation lacks it, and it cannot be stored late |
    | unanswered: the observed state may be older than it | a request that had it failed | an observation |
    | late: the API server may store it yet | a request that had it failed | `STORED_LATE` after that |
    | isolated: it is sent alone | a request that had it was refused | it is accepted, or no longer configured nor wanted |
    | refused: it has a reason; it waits if it was sent alone | the same | it is accepted, or no longer wanted |
    """

    written: bool = False
    unanswered: bool = False
    late_until: float = float("-inf")
    isolated: bool = False
    reason: str = ""
    """Why it is refused, empty where it is not."""
    backoff: Backoff = field(default_factory=lambda: Backoff(limit=REFUSAL_LIMIT))
    """When to try it again, where it was refused alone."""

    def may_be_stored(self, now: float) -> bool:
        """Return whether a write of it may be on the Node though the observed state does not show it, or may come yet."""
        return self.unanswered or now < self.late_until

    def forgive(self) -> None:
        """Forget that it was refused."""
        self.reason = ""
        self.backoff.succeed()


class PartRecords:
    """The records of all parts, by part; one that is not recorded has nothing to it."""

    def __init__(self) -> None:
        """Start with nothing known."""
        self._records: dict[Part, PartRecord] = {}

    def _of(self, part: Part) -> PartRecord:
        return self._records.setdefault(part, PartRecord())

    # -- what becomes of a request

    def sent(self, patch: NodePatch) -> None:
        """Note that a patch is on its way."""
        for name in patch.counts:
            self._of(name).written = True

    def failed(self, patch: NodePatch, now: float) -> None:
        """Note that no answer came, so that the patch may be stored, or may be later."""
        for part in patch.parts:
            record = self._of(part)
            record.unanswered = True
            record.late_until = now + STORED_LATE if part != ANNOTATION_PART else record.late_until

    def accepted(self, patch: NodePatch) -> None:
        """Note that the API server has stored a patch: its parts may be sent in a batch again."""
        for part in patch.parts:
            record = self._of(part)
            record.isolated = False
            record.forgive()

    def refused(self, parts: Collection[Part], reason: str) -> None:
        """Note that a request was refused: one bad part must hold up no other, so each is sent alone from now on."""
        for part in parts:
            record = self._of(part)
            record.isolated, record.reason = True, reason

    def refused_alone(self, part: Part, now: float, jitter: float) -> float:
        """Note that the refusal was about this part, and return for how many seconds it waits."""
        return self._of(part).backoff.fail(now, jitter)

    def observed(self, state: NodeState, now: float) -> None:
        """Take in the Node: what it does not show, and cannot be stored late, is not devwatch's any more."""
        for part, record in self._records.items():
            record.unanswered = False
            late = now < record.late_until
            record.written = (record.written or late) and part != ANNOTATION_PART and not state.shows(part, None)

    def forgive(self, configured: Collection[str], wanted: AbstractSet[Part]) -> None:
        """Forget the refusals of parts that are no longer wanted, and of a name that has left the configuration all of its past."""
        for part, record in self._records.items():
            record.isolated &= part == ANNOTATION_PART or part in configured or part in wanted
            if part not in wanted:
                record.forgive()

    # -- what follows from it

    @property
    def isolated(self) -> set[Part]:
        """The parts that are sent alone."""
        return {part for part, record in self._records.items() if record.isolated}

    @property
    def unanswered(self) -> set[Part]:
        """The parts that may have been stored since the Node was observed."""
        return {part for part, record in self._records.items() if record.unanswered}

    @property
    def reasons(self) -> dict[Part, str]:
        """Why each refused part is refused."""
        return {part: record.reason for part, record in self._records.items() if record.reason}

    @property
    def waiting(self) -> set[Part]:
        """The parts that were refused alone."""
        return {part for part, record in self._records.items() if record.backoff.failures}

    def blocked(self, now: float) -> set[Part]:
        """Return the parts that wait before they are tried again."""
        return {part for part, record in self._records.items() if now < record.backoff.until}

    def due(self, part: Part) -> float:
        """Return the moment before which a part is not to be tried; long past where it was not refused alone."""
        record = self._records.get(part)
        return record.backoff.until if record else float("-inf")

    def perhaps_ours(self, state: NodeState, now: float) -> set[str]:
        """Return the resources that devwatch has written, but for those that another client has written since."""
        written = ((name, record) for name, record in self._records.items() if record.written)
        return {name for name, record in written if record.may_be_stored(now) or state.removable(name)}
