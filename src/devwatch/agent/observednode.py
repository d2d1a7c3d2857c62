"""What is known of the Node: its last observed state, whether it is missing, and when to read it again."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from devwatch.agent.nodewatch import NodeWatch
from devwatch.core.errors import NodeMissing
from devwatch.core.node import NodePatch

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from devwatch.agent.clock import Clock
    from devwatch.agent.nodereport import NodeReporter
    from devwatch.agent.nodewatch import Watch
    from devwatch.core.backoff import Backoff
    from devwatch.core.errors import ApiError
    from devwatch.core.node import NodeState
    from devwatch.core.parts import PartRecords

UNWATCHED_RESYNC = 60.0
"""Seconds between two reads of the Node where no watch reports foreign writes."""
WATCHED_RESYNC = 300.0
"""Seconds between two reads of the Node where a watch reports foreign writes; the default of `resync` in the configuration."""
RESYNC_SPREAD = 0.1
"""The fraction of the resync interval by which it is shortened at random, at most, so that a fleet does not ask at the same time."""
FORMER_UIDS = 16
"""Replaced Nodes whose late reports are recognised."""


class ObservedNode:
    """The Node as the responses to requests and the reports of a watch show it.

    A response is certain. A report may lag behind the responses, so it never decides alone whether the Node was deleted or replaced: such a
    report only makes a read due.

    | state | begins | ends |
    |---|---|---|
    | unknown: `state` is None | the start | an observation |
    | missing | a request failed because there is no Node | an observation |
    | awaited: a report ends the backoff | the last request failed because there is no Node | an observation, or another failure |
    | outdated: `read_at` has come | a failure, a doubtful report, the end of the resync interval | a success |
    """

    def __init__(
        self, watch: Watch | None, *, parts: PartRecords, reporter: NodeReporter, outage: Backoff, clock: Clock
    ) -> None:
        """Start without an observation; `outage` is the backoff of all requests."""
        self._watch = watch and NodeWatch(watch, reporter=reporter, clock=clock, lost=self._unwatched)
        self._parts, self._outage, self._jitter = parts, outage, clock.jitter
        self.state: NodeState | None = None
        self.missing = self._awaited = False
        self._former_uids = deque[str](maxlen=FORMER_UIDS)
        """The uids of Nodes that were replaced, or that a report has already made due for a read."""
        self.read_at = -math.inf
        """When to read the Node again, until which the state counts as certain."""
        self._resync = 0.0

    def configure(self, resync: float | None) -> None:
        """Set the seconds between two reads, None for the default."""
        self._resync = resync or 0.0

    def follow(self, group: asyncio.TaskGroup, wake: Callable[[str], None]) -> None:
        """Watch the Node in the background, and wake the loop when another client has written to it."""
        if self._watch is not None:
            self._watch.wake = wake
            group.create_task(self._watch.run())

    def due(self) -> tuple[float, str]:
        """Return when to read the Node, and the trigger to record for that cycle."""
        outage = self._outage.until
        return (self.read_at, "resync") if self.read_at > outage else (outage, "retry")

    # -- responses

    def expect_response(self) -> None:
        """Drop the report of the watch: the response to the request that starts is newer, even if the Node is replaced meanwhile."""
        if self._watch is not None:
            self._watch.state = None

    def observe(self, state: NodeState, now: float, *, sent: NodePatch) -> None:
        """Store an observation; `sent` is the patch that it is the response to, empty for a report.

        A response is stored even if its version is lower than that of the held state: requests do not overlap, so the cluster was restored
        from a backup. The uid of a replaced Node is kept, so that late reports about it are ignored, until it is observed again.
        """
        self._parts.observed(state, self.state, now, sent=sent)
        if self.state is not None and self.state.uid != state.uid:
            self._former_uids.append(self.state.uid)
        self._former_uids = deque((uid for uid in self._former_uids if uid != state.uid), FORMER_UIDS)
        self.state, self.missing, self._awaited = state, False, False

    def succeed(self, now: float) -> None:
        """Schedule the next read after an accepted request."""
        self.read_at = now + self._resync_interval() * (1 - RESYNC_SPREAD * self._jitter())

    def fail(self, error: ApiError, now: float) -> None:
        """Schedule a read, even if no patch is wanted: after a failed request the observed state may be outdated."""
        self._awaited = isinstance(error, NodeMissing)
        self.missing = self.missing or self._awaited
        self.read_at = now

    def _resync_interval(self) -> float:
        if self._watch is not None and self._watch.watching:
            return self._resync or WATCHED_RESYNC
        return min(self._resync or math.inf, UNWATCHED_RESYNC)

    # -- reports of the watch

    def _unwatched(self, reported_at: float) -> None:
        """Handle the end of the watch: schedule the next read as without a watch, counted from its last report."""
        self.read_at = min(self.read_at, reported_at + self._resync_interval())

    def take_report(self, now: float) -> None:
        """Process the last report of the watch, if there is a new one.

        The cases, in this order:

        1. A deletion: read the Node.
        2. No state: nothing to do. A state while a write is unanswered is left for later: the write may be the difference in it, which
           would be mistaken for a foreign write. Except for another Node, which case 4 handles at once.
        3. A state of a former Node: ignore it, since the watch lags behind, or the read of case 4 was already made.
        4. A state while the Node is missing, or with another uid: read the Node. If it is awaited, the read does not wait for the backoff.
        5. A first state, or one of the same Node that is not older than the held one: observe it.
        """
        if self._watch is None:
            return
        if self._watch.take_deleted():
            self.read_at = now
        state, held = self._watch.state, self.state
        another = self.missing or (state is not None and held is not None and state.uid != held.uid)
        if state is None or (self._parts.unanswered and not another):
            return
        self._watch.state = None
        if state.uid in self._former_uids:
            return
        if another:
            self._former_uids.append(state.uid)
            self.read_at = now
            self._outage.until = now if self._awaited else self._outage.until
        elif state.supersedes(held):
            self.observe(state, now, sent=NodePatch())
