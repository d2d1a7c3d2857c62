"""The publisher of `dra`: keeps a ResourceSlice with the devices of this node."""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Protocol

from devwatch.agent.nodewatch import watch_forever
from devwatch.agent.observedslices import ObservedSlices, Report
from devwatch.agent.slicereport import SliceReporter
from devwatch.core.backoff import Backoff, RepairBackoff
from devwatch.core.errors import ApiError, Conflict, CredentialsError, Forbidden, Missing, Refused, Retry, Unserved
from devwatch.core.slices import (
    MAX_DEVICES,
    Offer,
    Operation,
    Slice,
    Write,
    devices_of,
    removal,
    select_slots,
    slice_name,
)
from devwatch.core.task import Task

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence

    from devwatch.agent.clock import Clock
    from devwatch.agent.report import Telemetry
    from devwatch.core.slots import Slot


FIRST_REPAIR = 0.1
"""Seconds between the first and the second repair of the slice, at least. Several in a row are no contest yet: a kubelet deletes the slices
of its node at each start, and until the slice is right again pods stay Pending."""


class SliceApi(Protocol):
    """The API for the slices of this driver on this node. All methods raise `ApiError`."""

    def watch(self) -> AsyncGenerator[Report]:
        """Yield all slices, then each change, until the server ends the watch."""

    async def create(self, wanted: Slice) -> Slice:
        """Create a slice and return what the server has stored."""

    async def update(self, wanted: Slice) -> Slice:
        """Replace a slice and return what the server has stored. Raises `Conflict` where it was changed since it was observed."""

    async def delete(self, unwanted: Slice) -> None:
        """Delete a slice, and never another of the same name. Raises `Missing` where there is none."""


class ResourceSlices:
    """Keeps one slice with the desired devices, and no other slice of this driver and node.

    It promises:

    - *level, not edge*: the next write is decided by what was observed, by the watch or in a response, whatever deleted or changed it;
    - *never more than can be used*: a lost device is tainted, or leaves where the server drops taints, before its loss counts as
      acknowledged (`cut`);
    - *quiet*: a slice that is known to be right is not written, and one that another client keeps changing is repaired at growing
      intervals;
    - a server that refuses, or does not serve the API, is reported once, and delays nothing else.
    """

    def __init__(self, api: SliceApi, *, node: str, telemetry: Telemetry, clock: Clock) -> None:
        """Start without an observation. Nothing is requested before the first `update`."""
        self._api, self._node, self._clock = api, node, clock
        self._report = SliceReporter(telemetry=telemetry)
        self._active = asyncio.Event()
        self._wake: Callable[[str], None] = lambda _: None
        self.observed = ObservedSlices()
        self._asked: tuple[object, ...] = ()
        """The slots and observations that `_planned` is for."""
        self._planned: Write | None = None
        """The write that they lead to, None where the slices are right."""
        self._write: Write | None = None
        self._published: tuple[object, ...] = ()
        """The content of the slice that the server has accepted last."""
        self._backoff, self._repairs = Backoff(), RepairBackoff(first=FIRST_REPAIR)
        self._refused: tuple[object, ...] = ()
        """The content that the server has refused last; another one does not wait for the backoff."""
        self.refused = False
        """Whether the API server refuses what was requested last."""
        self.differs_since: float | None = None
        """Since when the slices are not known to be the desired ones, None while they are."""
        self._failure, self._unlisted = "", "the ResourceSlices have not been listed"

    # -- the interface to the loop

    @property
    def wants(self) -> bool:
        """Whether the observed slices differ from the desired one."""
        return self._write is not None

    @property
    def failure(self) -> str:
        """Why the slice may not show the present devices, empty where nothing failed."""
        if not self._active.is_set():
            return ""
        return self._unlisted if self.observed.by_name is None else self._failure

    def follow(self, group: asyncio.TaskGroup, wake: Callable[[str], None]) -> None:
        """Watch the slices in the background from the first `update` on, and wake the loop on each change."""
        self._wake = wake
        group.create_task(self._watch())

    def update(
        self, slots: Mapping[str, Sequence[Slot]], node_uid: str, now: float, *, held: Collection[str] = ()
    ) -> None:
        """Set the slots to publish, by resource; without a resource no slice is left.

        `node_uid` is that of the observed Node, empty before the first observation: then nothing is written. `held` are the IDs of which a
        pod has the device: they come first where a slice cannot have all.
        """
        self._active.set()
        self._write = None
        self.differs_since = now if self.differs_since is None else self.differs_since
        observed = self.observed.by_name
        if not slots and self.observed.is_unserved:
            self.differs_since = None
        if observed is None or (slots and not node_uid):
            return
        asked = (slots, node_uid, held, observed.copy(), self.observed.taints)
        if asked != self._asked:  # most scans change nothing
            self._asked = asked
            self._planned = self._plan(slots, node_uid, held, observed) if slots else removal(observed)
        self._write = self._planned
        if self._write is None:
            self._failure, self.refused, self.differs_since = "", False, None
            self._published = next((each.content for each in observed.values()), ())
        elif self._refused and self._write.slice.content != self._refused:
            self._refused = ()
            self._backoff.until = min(self._backoff.until, now)

    def begin_again(self) -> None:
        """Repair the slice at once: a kubelet that starts deletes it, however often it does, and contests nothing."""
        self._repairs = RepairBackoff(first=FIRST_REPAIR)

    def hold(self) -> None:
        """Write nothing until the next `update`: a write that was decided before may offer what must not be offered any more."""
        self._write = None

    def action(self, now: float) -> Task | None:
        """Return the write that is due, None for none."""
        write, due = self._write, self.due(now)
        if write is None or due is None or now < due:
            return None
        return Task(run=partial(self._send, write), patience=math.inf)

    def due(self, _now: float) -> float | None:
        """Return when the next write is due, None for never."""
        if self._write is None:
            return None
        return max(self._backoff.until, self._repairs.until if self._repairing(self._write) else -math.inf)

    # -- the desired state

    def _plan(
        self, slots: Mapping[str, Sequence[Slot]], node_uid: str, held: Collection[str], observed: Mapping[str, Slice]
    ) -> Write | None:
        own = observed.get(slice_name(self._node))
        pairs = select_slots(slots, own.names if own else frozenset(), held=held, taints=self.observed.taints)
        self._report.omitted([slot.id for _, slot in pairs[MAX_DEVICES:]])
        devices = devices_of(pairs[:MAX_DEVICES], own)
        return Offer(node=self._node, node_uid=node_uid, devices=devices).next_write(observed)

    def _repairing(self, write: Write) -> bool:
        """Return whether a write brings back what the server had accepted: another client has changed it."""
        return write.operation is not Operation.DELETE and write.slice.content == self._published

    # -- observations

    async def _watch(self) -> None:
        await self._active.wait()
        await watch_forever(self._receive, self._end, self._clock)

    async def _receive(self) -> None:
        async with aclosing(self._api.watch()) as reports:
            async for report in reports:
                if not report.listed:
                    self._report.watched()
                self.observed.observe(report)
                self._wake("node")

    def _end(self, error: ApiError) -> None:
        self._unlisted = str(error)
        self.observed.unserved = self.observed.unserved + 1 if isinstance(error, Unserved) else 0
        if self.observed.by_name is None:
            self.refused = isinstance(error, Forbidden | Refused)
        self._report.unwatched(error, listed=self.observed.by_name is not None)

    # -- requests and responses

    async def _send(self, write: Write) -> None:
        """Make a write, and store the response as an observation."""
        self.observed.in_flight, self.observed.relisted, repairing = True, False, self._repairing(write)
        try:
            stored = await self._request(write)
        except ApiError as error:
            self._fail(write, error)
        else:
            self._accept(write, stored, repairing=repairing)
        finally:
            self.observed.in_flight, self._write = False, None

    async def _request(self, write: Write) -> Slice | None:
        """Return what the server has stored, None where there is no such slice any more."""
        try:
            if write.operation is Operation.CREATE:
                return await self._api.create(write.slice)
            if write.operation is Operation.UPDATE:
                return await self._api.update(write.slice)
            await self._api.delete(write.slice)
        except Missing:
            pass  # another client was faster: where a slice is wanted, the next write creates it
        return None

    def _accept(self, write: Write, stored: Slice | None, *, repairing: bool) -> None:
        """Process a response. A slice that lacks what was sent counts as refused, or it would be sent forever; taints may be dropped."""
        self.observed.uncertain = False
        self.observed.store(stored or write.slice, deleted=stored is None, answer=True)
        if stored is None and write.operation is Operation.UPDATE:
            return
        if stored is not None:
            if stored.untainted != write.slice.untainted:
                unstored = "the API server accepted the slice and stored another: an admission webhook may change it"
                self._fail(write, Refused(unstored))
                return
            if stored.lost != write.slice.lost:
                self.observed.taints = False
                self._report.untainted(stored.name)
            self._published = write.slice.content
        if repairing:
            self._repairs.repaired(self._clock.now())
        self._report.written(write, stored or write.slice, repaired=repairing)
        self._backoff.succeed()
        self._failure, self.refused = "", False

    def _fail(self, write: Write, error: ApiError) -> None:
        """Back off before the next write; another content does not wait where this one was refused."""
        self._failure = str(error)
        self.refused = isinstance(error, Forbidden | Refused)
        self._refused = write.slice.content if isinstance(error, Refused) else ()
        self.observed.uncertain = isinstance(error, Retry) and not isinstance(
            error, Conflict | CredentialsError | Unserved
        )
        delay = self._backoff.fail(self._clock.now(), self._clock.jitter(), at_least=error.pause)
        self._report.refused(write, error, retry_in=delay)
