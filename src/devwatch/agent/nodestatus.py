"""The publisher of `nodeStatus`: it patches the Node until it shows what is desired, and keeps it so."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from devwatch.agent.nodereport import Answer
from devwatch.agent.nodewatch import NodeWatch
from devwatch.core.drift import Drift
from devwatch.core.errors import ApiError, NodeMissing, Refused
from devwatch.core.node import ANNOTATION_PART, NodePatch, NodeState
from devwatch.core.parts import PartRecords
from devwatch.core.plan import Draft, Figures, plan_patch, portion
from devwatch.core.task import Task

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from devwatch.agent.clock import Clock
    from devwatch.agent.nodereport import NodeReporter
    from devwatch.agent.nodewatch import Watch
    from devwatch.core.backoff import Backoff
    from devwatch.core.listing import Listing

UNWATCHED_RESYNC = 60.0
"""Seconds between two reads of the Node where no watch reports what others write to it."""
WATCHED_RESYNC = 300.0
"""Seconds between two reads of the Node where a watch reports what others write to it, unless the configuration says otherwise."""
RESYNC_SPREAD = 0.1
"""The share of the resync interval by which it is shortened at random, so that a fleet does not ask in step."""


class NodeApi(Protocol):
    """Where the Node is kept."""

    @property
    def date(self) -> str:
        """The server's time in its last answer (RFC 3339, seconds), empty before one."""

    async def patch(self, patch: NodePatch) -> NodeState:
        """Write the patch, an empty one to read, and return the Node as it is then. Raises `ApiError`."""


class NodeStatus:
    """Makes the Node show the desired counts and the annotation.

    It compares with what the API server answered or the watch reported, never with what was sent. A part that is refused holds up no other,
    and what other clients keep undoing is repaired at growing intervals.
    """

    def __init__(
        self,
        *,
        api: NodeApi,
        watch: Watch | None,
        reporter: NodeReporter,
        outage: Backoff,
        clock: Clock,
    ) -> None:
        """Start with nothing observed. `outage` holds up every request to the API server."""
        self._api, self._reporter, self._outage, self._clock = api, reporter, outage, clock
        self._watch = watch and NodeWatch(watch, reporter=reporter, clock=clock, lost=self._unwatched)
        self.sending: Callable[[], None] = lambda: None
        """Called before a patch is sent."""
        self.observed: NodeState | None = None
        self._former = deque[str](maxlen=16)
        """The uids of Nodes that were replaced, of which a watch that lags may still report."""
        self._missing = self._awaited = False
        self._figures, self._wanted, self._draft = Figures(), NodePatch(), Draft()
        self._parts, self._drift = PartRecords(), Drift()
        self._answer: Answer | None = None
        self._failure = "no answer yet"
        self._resync_at, self._resync = -math.inf, 0.0
        self._detected: float | None = None
        """The detection time of the oldest change that is not sent."""
        self._lingering: float | None = None

    @property
    def date(self) -> str:
        """The server's time in its last answer (RFC 3339, seconds), empty before one."""
        return self._api.date

    @property
    def failure(self) -> str:
        """Why the Node may not show what is present: the last request failed, or a part is refused; empty where neither is so."""
        return self._failure or next(iter(self._parts.reasons.values()), "")

    @property
    def outage(self) -> str:
        """Why nothing can be written and since when, for people; empty after an accepted request."""
        return self._reporter.outage

    # -- what the loop asks

    def configure(self, resync: float | None) -> None:
        """Take the seconds between two reads of the Node, None for the default."""
        self._resync = resync or 0.0

    def follow(self, group: asyncio.TaskGroup, wake: Callable[[str], None]) -> None:
        """Watch the Node in the background, and wake the loop when another client has written to it."""
        if self._watch is not None:
            self._watch.wake = wake
            group.create_task(self._watch.run())

    def detect(self, now: float) -> None:
        """Note that a uevent was read."""
        self._detected = now if self._detected is None else self._detected

    def receive(self, now: float, *, busy: bool) -> None:
        """Take in the answer of the last request and, unless one is in flight (`busy`), what the watch has reported."""
        self._take_answer(now)
        if not busy:
            self._take_report(now)

    def update(self, figures: Figures, remembered: Listing, now: float) -> None:
        """Take what the Node should show, and what its annotation should list beside."""
        self._figures, self._wanted = figures, self._plan(figures, remembered, now)
        self._parts.forgive(figures.by_name, self._wanted.parts)
        whole = plan_patch(figures, NodeState()) if self._missing else self._wanted
        observed = None if self._missing else self.observed
        self._reporter.difference(figures, observed, whole.parts, self._parts.reasons, now)
        self._time_detection(figures, now)

    def action(self, now: float) -> Task | None:
        """Return the request that is due: a patch, or a read where the Node is unknown or it is time for a resync."""
        blocked = self._parts.blocked(now) | self._drift.waiting(self._wanted, now)
        patch = self._with_annotation(portion(self._wanted, isolated=self._parts.isolated, blocked=blocked))
        if not patch and now < self._resync_at:
            return None
        return Task(run=partial(self._send, patch), patience=math.inf)

    def urgent(self, now: float) -> bool:
        """Return whether a patch is due, for which another request is ended."""
        blocked = self._parts.blocked(now) | self._drift.waiting(self._wanted, now)
        return bool(self._wanted.parts - blocked)

    def due(self) -> tuple[float, str]:
        """Return when to ask for an action again, and why then."""
        outage = self._outage.until
        resync = (self._resync_at, "resync") if self._resync_at > outage else (outage, "retry")
        if not self._wanted:
            return resync
        first = min(max(self._parts.due(part), self._drift.due(part)) for part in self._wanted.parts)
        return min(resync, (max(first, outage), "retry"))

    @property
    def wants(self) -> bool:
        """Whether the Node does not show what is desired."""
        return bool(self._wanted)

    def agrees(self, now: float) -> bool:
        """Return whether the Node surely shows what is desired."""
        return not self._wanted and now < self._resync_at

    # -- what is desired

    def _plan(self, figures: Figures, remembered: Listing, now: float) -> NodePatch:
        if self.observed is None:
            return NodePatch()
        written = self._parts.perhaps_ours(self.observed, now)
        isolated = self._parts.isolated
        return self._draft.patch(figures, self.observed, isolated=isolated, remembered=remembered, written=written)

    def _with_annotation(self, patch: NodePatch) -> NodePatch:
        """Return the patch with the annotation as it is: stored late, when all has changed, its counts are still ours to remove."""
        if not patch or self.observed is None or self._wanted.annotates:
            return patch
        return replace(patch, annotation=self.observed.annotation)

    def _time_detection(self, figures: Figures, now: float) -> None:
        """Keep the detection time of the change that is about to be sent: of its uevent, or of the end of its grace."""
        ready = self._wanted.parts - self._parts.waiting
        if ready and self._detected is None and self._lingering is not None and self._lingering <= now:
            self._detected = self._lingering
        if not ready:
            self._detected = None
        self._lingering = figures.due

    # -- the request

    async def _send(self, patch: NodePatch) -> None:
        """Send a patch and leave the answer for the next cycle; an exception that is not an `ApiError` ends the program."""
        detected, self._detected = self._detected, None
        self._parts.sent(patch)
        if self._watch is not None:
            self._watch.state = None  # the answer will be newer, also where the Node is another by then
        if patch:
            self.sending()
        start = self._clock.now()
        try:
            outcome: NodeState | ApiError = await self._api.patch(patch)
        except ApiError as error:
            outcome = error
        end = self._clock.now()
        self._answer = Answer(sent=patch, outcome=outcome, at=end, seconds=end - start, detected=detected)

    def _take_answer(self, now: float) -> None:
        """Act on the answer of the last request.

        A Node, whatever it shows, is the newest observation. A refusal concerns what was sent, so other parts go on; a refused read, and
        any other error, concern every request.
        """
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if isinstance(answer.outcome, NodeState):
            self._observe(answer.outcome, answer.sent, now)
            # It is here (again): what a watch reports of it counts, whatever it reported before.
            self._former = deque((uid for uid in self._former if uid != answer.outcome.uid), self._former.maxlen)
            self._accept(answer, answer.outcome, now)
        elif isinstance(answer.outcome, Refused) and answer.sent:
            self._refuse(answer, answer.outcome, now)
        else:
            self._fail(answer, answer.outcome, now)

    def _accept(self, answer: Answer, state: NodeState, now: float) -> None:
        if not state.reflects(answer.sent):
            error = "the API server accepted the patch and did not store it: an admission webhook may undo it"
            self._refuse(answer, Refused(error), now)
            return
        self._reporter.accepted(answer, failures=self._outage.failures)
        if repaired := self._drift.repair(answer.sent, now):
            self._reporter.repaired(repaired)
            if (rivals := self._drift.rivals()) is not None:
                self._reporter.contested(repaired, rivals)
        self._outage.succeed()
        self._parts.accepted(answer.sent)
        self._failure = ""
        self._resync_at = now + self._resync_interval() * (1 - RESYNC_SPREAD * self._clock.jitter())

    def _refuse(self, answer: Answer, error: Refused, now: float) -> None:
        """Send what was refused in a batch part by part, so that one bad part holds up no other; wait before what was refused alone."""
        self._failure = str(error)
        self._outage.succeed()
        parts = self._refusable(answer.sent)
        self._parts.refused(parts.parts, str(error))
        if len(parts.parts) > 1:
            self._detected = self._earliest(answer)
            self._reporter.refused(answer, error, retry_in=None)
            return
        (part,) = parts.parts
        retry_in = self._parts.refused_alone(part, now, self._clock.jitter())
        self._reporter.refused(replace(answer, sent=parts), error, retry_in=retry_in)

    def _refusable(self, sent: NodePatch) -> NodePatch:
        """Return what of a request may be refused: not the annotation that went along as the Node has it."""
        unchanged = self.observed is not None and sent.annotation == self.observed.annotation
        return sent.only(sent.counts) if unchanged else sent

    def _fail(self, answer: Answer, error: ApiError, now: float) -> None:
        """Wait before the next request, however much changes meanwhile; the server's Retry-After is honoured within reason."""
        self._failure = str(error)
        self._detected = self._earliest(answer)
        self._awaited = isinstance(error, NodeMissing)
        self._missing = self._missing or self._awaited
        self._parts.failed(answer.sent, now)
        self._resync_at = now  # the observed state may be outdated: ask, though nothing may be wanted
        delay = self._outage.fail(now, self._clock.jitter(), at_least=error.pause)
        self._reporter.failed(answer, error, failures=self._outage.failures, retry_in=delay)

    def _earliest(self, answer: Answer) -> float | None:
        """Return the detection time of the oldest change not yet sent: what did not go through is older than any uevent since."""
        return self._detected if answer.detected is None else answer.detected

    # -- what was observed

    def _resync_interval(self) -> float:
        if self._watch is not None and self._watch.watching:
            return self._resync or WATCHED_RESYNC
        return min(self._resync or math.inf, UNWATCHED_RESYNC)

    def _unwatched(self, reported_at: float) -> None:
        """Read the Node as often as without a watch, since the last one ended."""
        self._resync_at = min(self._resync_at, reported_at + self._resync_interval())

    def _take_report(self, now: float) -> None:
        """Hold what the watch has reported, unless an answer was newer, or an unanswered request may have changed it.

        Whether the Node is gone, or replaced, only an answer decides: a watch may lag.
        """
        if self._watch is None:
            return
        if self._watch.take_deleted():
            self._resync_at = now
        state, held = self._watch.state, self.observed
        another = self._missing or (state is not None and held is not None and state.uid != held.uid)
        if state is None or (self._parts.unanswered and not another):
            return
        self._watch.state = None
        if another and state.uid not in self._former:
            self._former.append(state.uid)
            self._resync_at = now
            if self._awaited:
                self._outage.until = now
        elif not another and state.uid not in self._former and state.supersedes(held):
            self._observe(state, NodePatch(), now)

    def _observe(self, state: NodeState, sent: NodePatch, now: float) -> None:
        """Hold what the server answered, also when its version is lower: requests do not overlap, so a backup was restored.

        What differs from the Node held before was written by another client, unless it was sent, or may have been stored unanswered.
        """
        held = self.observed
        if held is not None:
            others = {ANNOTATION_PART, *held.memory(), *self._figures.by_name} - sent.parts - self._parts.unanswered
            self._drift.note((part for part in others if held.value(part) != state.value(part)), state)
            if held.uid != state.uid:
                self._former.append(held.uid)
        self.observed, self._missing = state, False
        self._parts.observed(state, now)
