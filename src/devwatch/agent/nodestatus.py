"""The publisher of `nodeStatus`: patches the Node until it shows the desired state, and repairs it afterwards."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from devwatch.agent.nodereport import Answer
from devwatch.agent.observednode import ObservedNode
from devwatch.core.detection import Detection
from devwatch.core.errors import ApiError, Refused
from devwatch.core.node import NodePatch, NodeState
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
        self, *, api: NodeApi, watch: Watch | None, reporter: NodeReporter, outage: Backoff, clock: Clock
    ) -> None:
        """Start without an observation. `outage` is the backoff of all requests to the API server, shared with the loop."""
        self._api, self._reporter, self._outage, self._clock = api, reporter, outage, clock
        self._parts, self._detection = PartRecords(), Detection()
        self._node = ObservedNode(watch, parts=self._parts, reporter=reporter, outage=outage, clock=clock)
        self.sending: Callable[[], None] = lambda: None
        """Called before a patch is sent."""
        self._draft, self._wanted = Draft(), NodePatch()
        self._answer: Answer | None = None
        self._failure = "no answer yet"

    @property
    def observed(self) -> NodeState | None:
        """The last observed Node, None before the first observation."""
        return self._node.state

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
        self._node.configure(resync)

    def follow(self, group: asyncio.TaskGroup, wake: Callable[[str], None]) -> None:
        """Watch the Node in the background, and wake the loop when another client has written to it."""
        self._node.follow(group, wake)

    def detect(self, now: float) -> None:
        """Record that a uevent was read."""
        self._detection.detect(now)

    def receive(self, now: float, *, busy: bool) -> None:
        """Process the response to the last request and, unless a request is in flight (`busy`), the last report of the watch."""
        self._take_answer(now)
        if not busy:
            self._node.take_report(now)

    def update(self, figures: Figures, remembered: Listing, now: float) -> None:
        """Set the figures that the Node should show, and the devices to list besides the present ones (`remembered`)."""
        self._wanted = self._plan(figures, remembered, now)
        self._parts.want(figures.by_name, self._wanted)
        missing = self._node.missing
        whole = plan_patch(figures, NodeState()) if missing else self._wanted
        observed = None if missing else self.observed
        self._reporter.difference(figures, observed, whole.parts, self._parts.reasons, now)
        ready = bool(self._wanted.parts - self._parts.refused_in_isolation)
        self._detection.update(figures.due, now, ready=ready)

    def action(self, now: float) -> Task | None:
        """Return the request that is due, None for none: a patch, or a read where the Node is unknown or a resync is due."""
        patch = self._with_annotation(self._writable(now))
        if not patch and now < self._node.read_at:
            return None
        return Task(run=partial(self._send, patch), patience=math.inf)

    def urgent(self, now: float) -> bool:
        """Return whether a patch is due, for which another request in flight may be cancelled."""
        return bool(self._writable(now))

    def due(self) -> tuple[float, str]:
        """Return when to call `action` again, and the trigger to record for that cycle."""
        read = self._node.due()
        if not self._wanted:
            return read
        first = min(self._parts.due(part, self._wanted.value(part)) for part in self._wanted.parts)
        return min(read, (max(first, self._outage.until), "retry"))

    @property
    def wants(self) -> bool:
        """Whether the observed Node differs from the desired state."""
        return bool(self._wanted)

    def agrees(self, now: float) -> bool:
        """Return whether the Node certainly shows the desired state."""
        return not self._wanted and now < self._node.read_at

    # -- the desired state

    def _plan(self, figures: Figures, remembered: Listing, now: float) -> NodePatch:
        """Return the patch after which the Node shows the figures; empty before the first observation."""
        if (observed := self.observed) is None:
            return NodePatch()
        isolated, written = self._parts.isolated, self._parts.perhaps_ours(observed, now)
        return self._draft.patch(figures, observed, isolated=isolated, remembered=remembered, written=written)

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

    # -- requests and responses

    async def _send(self, patch: NodePatch) -> None:
        """Send a patch and store the response for the next cycle; an exception that is not an `ApiError` ends the program."""
        detected = self._detection.take()
        self._parts.sent(patch)
        self._node.expect_response()
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
            self._node.observe(answer.outcome, now, sent=answer.sent)
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
        self._node.succeed(now)

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
        retry_in = self._parts.refused(parts, str(error), now, self._clock.jitter())
        if retry_in is None:
            self._detection.restore(answer.detected)
        self._reporter.refused(replace(answer, sent=parts), error, retry_in=retry_in)

    def _refusable(self, sent: NodePatch) -> NodePatch:
        """Return the part of a request that a refusal can concern: without an annotation equal to the observed one (`_with_annotation`)."""
        unchanged = self.observed is not None and sent.annotation == self.observed.annotation
        return sent.only(sent.counts) if unchanged else sent

    def _fail(self, answer: Answer, error: ApiError, now: float) -> None:
        """Back off before the next request, whatever changes meanwhile, for at least the server's Retry-After (`RETRY_AFTER_LIMIT`)."""
        self._failure = str(error)
        self._detection.restore(answer.detected)
        self._node.fail(error, now)
        self._parts.failed(answer.sent, now)
        delay = self._outage.fail(now, self._clock.jitter(), at_least=error.pause)
        self._reporter.failed(answer, error, failures=self._outage.failures, retry_in=delay)
