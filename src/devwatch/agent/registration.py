"""The registration of one resource with the kubelet: from a socket that accepts to the end of the stream, again and again."""

from __future__ import annotations

import asyncio
import contextlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from devwatch.core.backoff import Backoff
from devwatch.core.errors import KubeletError, NotAnswered
from devwatch.core.handover import Allocation, Handover, Offer, allocate, links_of, offer_of, ready_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from devwatch.agent.clock import Clock
    from devwatch.core.holders import Holding
    from devwatch.core.node import Amounts, NodeState
    from devwatch.core.rules import ResourceRule
    from devwatch.core.slots import Slot

POLL = 0.0625
"""Seconds between two checks whether the kubelet accepts registrations."""
SETTLED = 10.0
"""Seconds after which a stream that ends is no reason to pause: the kubelet has started again, rather than refused."""
STREAM_TIMEOUT = 10.0
"""Seconds that the kubelet may take from the registration to the stream."""
ACK_TIMEOUT = 1.0
"""Seconds after which a list counts as acknowledged where the kubelet cannot say so."""
ACK_POLL = (0.005, 0.1)
"""Seconds between two questions for the acknowledgement, the first and the longest."""
CHECK = 60.0
"""Seconds between two questions whether the kubelet still lists our devices; seldom, since a daemon at rest does little else."""
CONTESTED = 2
"""Questions in a row whose answer must differ before another plugin is reported."""
UNACKNOWLEDGED = 2.0
"""Seconds after which it is reported that the kubelet lists other devices than it was sent."""
ABSENT = 10.0
"""Seconds after which it is reported that no kubelet accepts registrations: one that starts again needs some."""


class Server(Protocol):
    """The server of one resource."""

    async def start(self) -> None:
        """Listen. Raises `KubeletError`."""

    async def close(self) -> None:
        """End the stream and stop listening."""

    def offer(self, offer: Offer) -> None:
        """Set the list to send."""


class Links(Protocol):
    """The links that containers open."""

    def update(self, wanted: Mapping[str, str], *, make: bool = True) -> None:
        """Make exactly these links; without `make` only remove all others. Raises `KubeletError`."""


class KubeletApi(Protocol):
    """The kubelet of this node."""

    @property
    def links(self) -> Links:
        """The links that containers open."""

    def socket(self) -> object:
        """Return what tells the kubelet's socket from the one of its next start, None where there is none."""

    async def is_accepting(self) -> bool:
        """Return whether the kubelet accepts registrations."""

    def server(self, name: str, resource: Registration) -> Server:
        """Return a server for a resource, which does not listen yet."""

    async def register(self, name: str) -> None:
        """Register a resource, whose server listens. Raises `KubeletError`."""

    async def allocatable(self) -> Mapping[str, frozenset[str]]:
        """Return by resource the IDs that the kubelet has taken over. Raises `KubeletError`."""

    async def holdings(self) -> tuple[Holding, ...]:
        """Return which pods hold devices. Raises `KubeletError`."""


class RegistrationReport(Protocol):
    """What a registration reports to."""

    def wake(self) -> None:
        """Start the next cycle of the loop now."""

    def registered(self, resource: str, devices: Collection[str]) -> None:
        """Report that the kubelet has taken over the first list."""

    def lost(self, subject: str, error: KubeletError) -> None:
        """Report why a resource cannot be handed over."""

    def allocated(self, resource: str, ids: Collection[str], *, refused: bool) -> None:
        """Report that the kubelet has asked for devices for a container."""


@dataclass(slots=True, kw_only=True)
class Registration:
    """One resource: what it offers, how far the kubelet has taken it over, and the steps that bring it there."""

    rule: ResourceRule
    handover: Handover
    kubelet: KubeletApi
    clock: Clock
    report: RegistrationReport
    server: Server | None = None
    failure: str = ""
    """Why the last attempt failed; empty once registered."""
    _ended: bool = False
    """Whether a stream of this server has ended; the kubelet never opens another one by itself."""
    _links: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By ID that was ever listed: the names of its links."""
    _progress: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at each change of the stream."""

    # -- the desired list

    def offer(
        self, slots: Sequence[Slot], waiting: Collection[str], held: Collection[str], linked: Mapping[str, str]
    ) -> Offer:
        """Return the list for these slots: of the present devices those whose links are right, as `linked` says.

        A new device of several devnodes waits until all of them have arrived, and one that a pod may have under another name (`held`) for
        the end of that pod.
        """
        self._links |= links_of(slots, self._links)
        ready = ready_ids(slots, listed=self.handover.desired.ids, waiting=waiting, held=held, linked=linked)
        return offer_of(slots, ready)

    def update(self, offer: Offer, observed: NodeState, now: float) -> Amounts:
        """Set the desired list, and return the figures that the Node should show meanwhile."""
        self.handover.desired = offer
        if self.server is not None:
            self.server.offer(self.handover.next_list(observed, self.rule.name, now))
        return self.handover.amounts(observed, self.rule.name, now)

    # -- what the server reports

    def allocate(self, ids: Sequence[str]) -> Allocation:
        """Return what a container gets for these devices. Raises `KeyError` for an ID that was never listed."""
        try:
            allocation = allocate(self.rule, ids, self._links)
        except KeyError:
            self.report.allocated(self.rule.name, ids, refused=True)
            raise
        self.report.allocated(self.rule.name, ids, refused=False)
        return allocation

    def opened(self) -> None:
        """Record that the kubelet has opened the stream."""
        self._changed()

    def sent(self, offer: Offer) -> None:
        """Record that a list was sent on the stream."""
        self.handover.record_sent(offer)
        self._changed()

    def closed(self) -> None:
        """Record that the stream has ended."""
        self._ended = True
        self.handover.closed(self.clock.now())
        self._changed()

    def _changed(self) -> None:
        self._progress.set()
        self.report.wake()

    # -- the steps

    async def run(self, ready: asyncio.Event) -> None:
        """Register once `ready` is set, and again whenever the stream has ended."""
        await ready.wait()
        backoff, known = Backoff(first=0.2, limit=10.0), object()
        while True:
            known = await _await_kubelet(self.kubelet, self.clock, backoff, known, self._report_absent)
            began = self.clock.now()
            try:
                await self._serve(known)
            except KubeletError as error:
                self.failure = error.advice
                self.report.lost(self.rule.name, error)
            if self.clock.now() >= began + SETTLED:
                backoff.succeed()
            else:
                backoff.fail(self.clock.now(), self.clock.jitter())

    def _report_absent(self) -> None:
        self.failure = "no kubelet accepts registrations"
        hint = "does it run, is its folder of plugins this one (--device-plugin-dir), and is devwatch uid 0?"
        self.report.lost(self.rule.name, KubeletError(self.failure, hint=hint))

    async def _serve(self, socket: object) -> None:
        """Register with the kubelet of a socket, and serve until the stream ends. Raises `KubeletError`, at the latest then."""
        self.server, self._ended = self.kubelet.server(self.rule.name, self), False
        server = self.server
        try:
            await server.start()
            server.offer(self.handover.desired)
            await self.kubelet.register(self.rule.name)
            await self._await_list(socket)
            while not self._ended:
                await self._acknowledge()
                await self._check()
            raise KubeletError("the kubelet has ended the stream")
        finally:
            self.server = None
            await server.close()

    async def _await_list(self, socket: object) -> None:
        """Wait until the first list is sent. Raises `KubeletError`."""
        until = self.clock.now() + STREAM_TIMEOUT
        while self.handover.sent is None and not self._ended:
            if self.clock.now() >= until:
                raise KubeletError("the kubelet has accepted the registration, and does not ask for the devices")
            if self.kubelet.socket() != socket:
                raise KubeletError("the kubelet has started again before it asked for the devices")
            await self._await_change(POLL)

    async def _await_change(self, seconds: float) -> bool:
        """Wait for the next change of the stream, and return whether there was one within these seconds."""
        self._progress.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._progress.wait()
        return False

    async def _acknowledge(self) -> None:
        """Wait until the kubelet has taken over the last list, or the stream has ended."""
        while (offer := self.handover.sent) is not None and not self.handover.confirmed:
            if await self._is_taken_over(offer) and self.handover.sent is offer:
                self._acknowledged(offer)

    async def _is_taken_over(self, offer: Offer) -> bool:
        """Ask until the kubelet lists exactly these devices, and return whether it does; it need not once the stream has changed."""
        began, pause = self.clock.now(), ACK_POLL[0]
        while self.handover.sent is offer:
            taken = await self._taken_over()
            passed = self.clock.now() - began
            if taken is None:
                # A kubelet that is killed meanwhile ends the stream before its answer fails.
                return self.handover.sent is offer and not await self._await_change(max(ACK_TIMEOUT - passed, 0))
            # A kubelet that lists lost devices as well may still have the list before, in which they were healthy: it gets its second.
            if taken == offer.healthy or (taken == offer.ids and passed >= ACK_TIMEOUT):
                return True
            if passed >= UNACKNOWLEDGED:
                self._report_unlisted(taken)
                pause = ACK_TIMEOUT
            await self._await_change(pause)
            pause = min(pause * 2, ACK_POLL[1])
        return False

    async def _taken_over(self) -> frozenset[str] | None:
        """Return the IDs that the kubelet lists for the resource, None where it cannot say so; one that hangs is waited for."""
        while not self._ended:
            try:
                return (await self.kubelet.allocatable()).get(self.rule.name, frozenset())
            except NotAnswered:  # it has taken over no list either
                continue
            except KubeletError:
                break
        return None

    def _acknowledged(self, offer: Offer) -> None:
        first, self.failure = not self.handover.registered, ""
        self.handover.record_taken(offer)
        if first:
            self.report.registered(self.rule.name, offer.ids)
        self.report.wake()

    async def _check(self) -> None:
        """Wait for the next list or the end of the stream, and ask now and then whether the kubelet still lists our devices."""
        differing = 0
        while self.handover.confirmed and (offer := self.handover.sent) is not None:
            if await self._await_change(ACK_TIMEOUT if 0 < differing < CONTESTED else CHECK):
                continue
            taken = await self._taken_over()
            differing = 0 if taken in {None, offer.healthy, offer.ids} else differing + 1
            self._contest(contested=differing >= CONTESTED)

    def _report_unlisted(self, taken: frozenset[str]) -> None:
        """Report that a list is not acknowledged: another plugin is the reason if the kubelet lists devices that were never ours."""
        self._contest(contested=not taken <= self._links.keys())
        if not self.handover.contested:
            self.report.lost(self.rule.name, KubeletError("the kubelet does not list the devices that it was sent"))

    def _contest(self, *, contested: bool) -> None:
        if contested == self.handover.contested:
            return
        if contested:
            hint = "end the other plugin, or take the resource out of its configuration or out of this one"
            error = "another plugin has registered the resource too, so nothing of it is allocatable"
            self.report.lost(self.rule.name, KubeletError(error, hint=hint))
        self.handover.contested = contested
        self.report.wake()


async def _await_kubelet(
    kubelet: KubeletApi, clock: Clock, backoff: Backoff, known: object, report_absent: Callable[[], None]
) -> object:
    """Wait until the kubelet accepts connections, and return what tells its socket from the next one.

    A kubelet that has started since is asked at once, whatever the one before has refused. One that is away for `ABSENT` is reported.
    """
    report_at = clock.now() + ABSENT
    while True:
        socket = kubelet.socket()
        if socket is None or socket != known:
            backoff.succeed()
        known = socket
        if socket is not None and clock.now() >= backoff.until and await kubelet.is_accepting():
            return kubelet.socket()  # it may have started since the last check
        if clock.now() >= max(report_at, backoff.until + ABSENT):
            report_at = math.inf
            report_absent()
        await asyncio.sleep(POLL)
