"""The publisher of `nodeStatus`: patches the Node until it shows the desired state, and repairs it afterwards."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from devwatch.agent.nodereport import Answer
from devwatch.agent.nodewatch import NodeWatch
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
"""Seconds between two reads of the Node where no watch reports foreign writes."""
WATCHED_RESYNC = 300.0
"""Seconds between two reads of the Node where a watch reports foreign writes; the default of `resync` in the configuration."""
RESYNC_SPREAD = 0.1
"""The fraction of the resync interval by which it is shortened at random, at most, so that a fleet does not ask at the same time."""


class NodeApi(Protocol):
    """The API for one Node."""

    @property
    def date(self) -> str:
        """The server's time in its last response (RFC 3339, seconds), empty before the first."""

    async def patch(self, patch: NodePatch) -> NodeState:
        """Write the patch, an empty one to read, and return the resulting Node. Raises `ApiError`."""


class NodeStatus:
    """Makes the Node show the desired counts and the annotation.

    It compares the desired state with the Node that the API server returned or the watch reported, never with the patches that were sent. A
    refused part does not block the others, and parts that other clients keep overwriting are repaired at growing intervals.
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
        """Start without an observation. `outage` is the backoff of all requests to the API server, shared with the loop."""
        self._api, self._reporter, self._outage, self._clock = api, reporter, outage, clock
        self._watch = watch and NodeWatch(watch, reporter=reporter, clock=clock, lost=self._unwatched)
        self.sending: Callable[[], None] = lambda: None
        """Called before a patch is sent."""
        self.observed: NodeState | None = None
        self._former_uids = deque[str](maxlen=16)
        """The uids of Nodes that were replaced; a lagging watch may still report them."""
        self._missing = self._awaited = False
        self._figures, self._wanted, self._draft = Figures(), NodePatch(), Draft()
        self._parts = PartRecords()
        self._answer: Answer | None = None
        self._failure = "no answer yet"
        self._resync_at, self._resync = -math.inf, 0.0
        self._detected: float | None = None
        """The detection time of the oldest change that is not sent."""
        self._lingering: float | None = None
        """When the next grace ends, as of the last cycle."""

    @property
    def date(self) -> str:
        """The server's time in its last response (RFC 3339, seconds), empty before the first."""
        return self._api.date

    @property
    def failure(self) -> str:
        """Why the Node may not show the present devices: the last request failed, or a part is refused; empty where neither holds."""
        return self._failure or next(iter(self._parts.reasons.values()), "")

    @property
    def outage(self) -> str:
        """Why nothing can be written and since when, for messages; empty after an accepted request."""
        return self._reporter.outage

    # -- the interface to the loop

    def configure(self, resync: float | None) -> None:
        """Set the seconds between two reads of the Node, None for the default."""
        self._resync = resync or 0.0

    def follow(self, group: asyncio.TaskGroup, wake: Callable[[str], None]) -> None:
        """Watch the Node in the background, and wake the loop when another client has written to it."""
        if self._watch is not None:
            self._watch.wake = wake
            group.create_task(self._watch.run())

    def detect(self, now: float) -> None:
        """Record that a uevent was read."""
        self._detected = now if self._detected is None else self._detected

    def receive(self, now: float, *, busy: bool) -> None:
        """Process the response to the last request and, unless a request is in flight (`busy`), the last report of the watch."""
        self._take_answer(now)
        if not busy:
            self._take_report(now)

    def update(self, figures: Figures, remembered: Listing, now: float) -> None:
        """Set the figures that the Node should show, and the devices to list besides the present ones (`remembered`)."""
        self._figures, self._wanted = figures, self._plan(figures, remembered, now)
        self._parts.want(figures.by_name, self._wanted)
        whole = plan_patch(figures, NodeState()) if self._missing else self._wanted
        observed = None if self._missing else self.observed
        self._reporter.difference(figures, observed, whole.parts, self._parts.reasons, now)
        self._time_detection(figures, now)

    def action(self, now: float) -> Task | None:
        """Return the request that is due, None for none: a patch, or a read where the Node is unknown or a resync is due."""
        patch = self._with_annotation(self._writable(now))
        if not patch and now < self._resync_at:
            return None
        return Task(run=partial(self._send, patch), patience=math.inf)

    def urgent(self, now: float) -> bool:
        """Return whether a patch is due, for which another request in flight may be cancelled."""
        return bool(self._writable(now))

    def due(self) -> tuple[float, str]:
        """Return when to call `action` again, and the trigger to record for that cycle."""
        outage = self._outage.until
        resync = (self._resync_at, "resync") if self._resync_at > outage else (outage, "retry")
        if not self._wanted:
            return resync
        first = min(self._parts.due(part, self._wanted.value(part)) for part in self._wanted.parts)
        return min(resync, (max(first, outage), "retry"))

    @property
    def wants(self) -> bool:
        """Whether the observed Node differs from the desired state."""
        return bool(self._wanted)

    def agrees(self, now: float) -> bool:
        """Return whether the Node certainly shows the desired state."""
        return not self._wanted and now < self._resync_at

    # -- the desired state

    def _plan(self, figures: Figures, remembered: Listing, now: float) -> NodePatch:
        if self.observed is None:
            return NodePatch()
        written = self._parts.perhaps_ours(self.observed, now)
        isolated = self._parts.isolated
        return self._draft.patch(figures, self.observed, isolated=isolated, remembered=remembered, written=written)

    def _writable(self, now: float) -> NodePatch:
        """Return the parts of the wanted patch to write now."""
        return portion(self._wanted, isolated=self._parts.isolated, blocked=self._parts.blocked(self._wanted, now))

    def _with_annotation(self, patch: NodePatch) -> NodePatch:
        """Return the patch with the observed annotation added, unless the wanted patch writes the annotation.

        The API server may store a failed request late, after other writes. Its counts are then still listed as devwatch's.
        """
        if not patch or self.observed is None or self._wanted.annotates:
            return patch
        return replace(patch, annotation=self.observed.annotation)

    def _time_detection(self, figures: Figures, now: float) -> None:
        """Keep the detection time of the change to be sent: of its uevent, or the end of its grace. Without such a change, clear it."""
        ready = self._wanted.parts - self._parts.refused_in_isolation
        if ready and self._detected is None and self._lingering is not None and self._lingering <= now:
            self._detected = self._lingering
        if not ready:
            self._detected = None
        self._lingering = figures.due

    # -- requests and responses

    async def _send(self, patch: NodePatch) -> None:
        """Send a patch and store the response for the next cycle; an exception that is not an `ApiError` ends the program."""
        detected, self._detected = self._detected, None
        self._parts.sent(patch)
        if self._watch is not None:
            self._watch.state = None  # the response will be newer, even if the Node is replaced meanwhile
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
        """Process the response to the last request, if there is one.

        The cases, in this order:

        1. A Node. It is the newest observation, whatever it shows; then the patch is checked against it (`_accept`).
        2. A refusal of a patch. It concerns only the parts of the patch, so the others continue (`_refuse`).
        3. A refused read, or any other error. It concerns every request, so all of them back off (`_fail`).
        """
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if isinstance(answer.outcome, NodeState):
            self._observe(answer.outcome, answer.sent, now)
            # A response proves that this Node exists, so reports of the watch about it are valid, even if it counted as replaced.
            self._former_uids = deque(
                (uid for uid in self._former_uids if uid != answer.outcome.uid), self._former_uids.maxlen
            )
            self._accept(answer, answer.outcome, now)
        elif isinstance(answer.outcome, Refused) and answer.sent:
            self._refuse(answer, answer.outcome, now)
        else:
            self._fail(answer, answer.outcome, now)

    def _accept(self, answer: Answer, state: NodeState, now: float) -> None:
        """Record a success, unless the returned Node lacks part of the patch: that counts as refused, or it would be sent forever."""
        if not state.reflects(answer.sent):
            error = "the API server accepted the patch and did not store it: an admission webhook may undo it"
            self._refuse(answer, Refused(error), now)
            return
        self._reporter.accepted(answer, failures=self._outage.failures)
        if (repair := self._parts.accepted(answer.sent, now)) is not None:
            self._reporter.repaired(repair)
        self._outage.succeed()
        self._failure = ""
        self._resync_at = now + self._resync_interval() * (1 - RESYNC_SPREAD * self._clock.jitter())

    def _refuse(self, answer: Answer, error: Refused, now: float) -> None:
        """Isolate the parts of a refused batch, or back off before the one part that was refused in isolation.

        The API server refuses a patch as a whole, for instance where an admission policy forbids one resource. The first refusal therefore
        isolates every part, and they are sent one by one without delay; the detection time stays, since the change is still unsent.
        Only the refusal of a single part is about that part: it waits with a backoff, and is reported. The outage ends in both cases, since
        the server has responded.
        """
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
        """Return the part of a request that a refusal can concern: without an annotation equal to the observed one (`_with_annotation`)."""
        unchanged = self.observed is not None and sent.annotation == self.observed.annotation
        return sent.only(sent.counts) if unchanged else sent

    def _fail(self, answer: Answer, error: ApiError, now: float) -> None:
        """Back off before the next request, whatever changes meanwhile, for at least the server's Retry-After (`RETRY_AFTER_LIMIT`)."""
        self._failure = str(error)
        self._detected = self._earliest(answer)
        self._awaited = isinstance(error, NodeMissing)
        self._missing = self._missing or self._awaited
        self._parts.failed(answer.sent, now)
        self._resync_at = now  # the observed state may be outdated: read it, even if no patch is wanted
        delay = self._outage.fail(now, self._clock.jitter(), at_least=error.pause)
        self._reporter.failed(answer, error, failures=self._outage.failures, retry_in=delay)

    def _earliest(self, answer: Answer) -> float | None:
        """Return the detection time of the oldest change not yet sent: that of a failed request is older than any uevent since."""
        return self._detected if answer.detected is None else answer.detected

    # -- observations

    def _resync_interval(self) -> float:
        if self._watch is not None and self._watch.watching:
            return self._resync or WATCHED_RESYNC
        return min(self._resync or math.inf, UNWATCHED_RESYNC)

    def _unwatched(self, reported_at: float) -> None:
        """Handle the end of the watch: schedule the next read as without a watch, counted from its last report."""
        self._resync_at = min(self._resync_at, reported_at + self._resync_interval())

    def _take_report(self, now: float) -> None:
        """Process the last report of the watch, None without a new one.

        A watch may lag behind the responses to requests, so it never decides alone whether the Node was deleted or replaced: such a report
        only makes a read due. The cases, in this order:

        1. A deletion: read the Node.
        2. No state: nothing to do. A state while a request is unanswered is left for later: the write may be the difference in it, which
           would be mistaken for a foreign write. Except for another Node, which case 3 handles at once.
        3. A state while the Node counts as missing, or with another uid: read the Node, once for each uid, since the watch may repeat a
           former Node. Where the last request failed because the Node was missing (`_awaited`), the read does not wait for the backoff.
        4. A first state, or one of the same Node that is not older than the held one: observe it.
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
        if another and state.uid not in self._former_uids:
            self._former_uids.append(state.uid)
            self._resync_at = now
            if self._awaited:
                self._outage.until = now
        elif not another and state.uid not in self._former_uids and state.supersedes(held):
            self._observe(state, NodePatch(), now)

    def _observe(self, state: NodeState, sent: NodePatch, now: float) -> None:
        """Store an observation, and record as drift each part that another client has changed.

        A response is stored even if its version is lower than that of the held state: requests do not overlap, so the cluster was restored
        from a backup. A part that differs from the held state was changed by another client, except:

        - parts of the patch that the response belongs to (`sent`);
        - parts of a failed request that may have been stored (`unanswered`).

        The uid of a replaced Node is kept, so that late reports of the watch about it are ignored.
        """
        held = self.observed
        if held is not None:
            others = {ANNOTATION_PART, *held.memory(), *self._figures.by_name} - sent.parts - self._parts.unanswered
            self._parts.overwritten((part for part in others if held.value(part) != state.value(part)), state)
            if held.uid != state.uid:
                self._former_uids.append(held.uid)
        self.observed, self._missing = state, False
        self._parts.observed(state, now)
