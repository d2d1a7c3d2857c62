"""The kubelet's side of `dra`: prepares claims, keeps the record of them, and gives their devices to containers by CDI files."""

from __future__ import annotations

import asyncio
import contextlib
import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from devwatch.agent.claimreader import ClaimReader
from devwatch.agent.claimreport import ClaimReport
from devwatch.agent.driverregistration import DriverRegistration
from devwatch.agent.preparedclaims import ClaimFiles, PreparedClaims
from devwatch.core.claims import PreparedClaim, prepare
from devwatch.core.errors import ClaimRefused, Forbidden, Refused
from devwatch.core.names import DRIVER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from devwatch.agent.clock import Clock
    from devwatch.agent.driverregistration import Server
    from devwatch.agent.report import Telemetry
    from devwatch.core.claims import ClaimReference, ClaimState
    from devwatch.core.errors import ApiError
    from devwatch.core.inventory import Inventory
    from devwatch.core.rules import ResourceRule
    from devwatch.core.slots import Slot

PREPARE_TIMEOUT = 40.0
"""Seconds in which a claim is prepared or refused: the kubelet waits for 45 s (`defaultClientCallTimeout`), and shows our reason."""
READ_LATELY = 10.0
"""Seconds for which the allocation of a claim counts as read: the kubelet repeats a call that broke, and may have lost what it knew."""
LOAD_INTERVAL = 10.0
"""Seconds between two attempts to read the record."""


class DriverApi(ClaimFiles, Protocol):
    """What the driver has of the kubelet and of the container runtime."""

    def server(self, claims: ClaimDriver) -> Server:
        """Return a server for the driver, which does not listen yet."""


@dataclass(slots=True, kw_only=True)
class _Call:
    """A claim that the kubelet waits for: each of its calls for one claim gets the same answer."""

    claim: ClaimReference
    done: asyncio.Event = field(default_factory=asyncio.Event)
    is_read: bool = False
    """Whether the claim was read, and is answered once it is written."""
    outcome: PreparedClaim | ClaimRefused | None = None
    trouble: str = "the API server was not asked yet"
    waiting: int = 0
    """The calls that wait for it."""

    @property
    def answer(self) -> PreparedClaim | ClaimRefused:
        """The answer to the kubelet, whose time is over."""
        return self.outcome or ClaimRefused(f"not prepared within {PREPARE_TIMEOUT:.0f} s: {self.trouble}")

    def finish(self, outcome: PreparedClaim | ClaimRefused) -> None:
        """Answer all calls."""
        self.outcome = outcome
        self.done.set()


class ClaimDriver:
    """Prepares the claims of this node's pods.

    A claim is *prepared* in this order: the kubelet asks, the claim is read from the API server, the next cycle of the loop writes the
    record and the CDI file by a scan of that moment, the kubelet gets its answer. It promises:

    - *never another's device*: a CDI file names a devnode only while a scan finds that device there; a container that starts meanwhile
      waits;
    - *level, not edge*: record and files follow the claims and the scan in each cycle, whatever was lost, removed or full before;
    - *the same answer*: a claim gets the same devices and names again, after a restart too, while it is allocated to these;
    - *always releases*: a claim is unprepared whatever fails, and whatever became of its stick, so that its pod can end;
    - a kubelet that hangs, refuses or is away stops nothing else.
    """

    def __init__(  # noqa: PLR0913 - the parts of the loop, by keyword
        self,
        connect: Callable[[], DriverApi],
        *,
        recorded: Callable[[], bool],
        read: Callable[[ClaimReference], Awaitable[ClaimState]],
        pool: str,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        """Start without resources.

        `connect` is called where there are some, or a former daemon has `recorded` claims, and raises a `KubeletError`. `read`
        reads a claim, and raises an `ApiError`. `pool` is the name of this node's pool.
        """
        self._connect, self._recorded, self._pool, self._clock = connect, recorded, pool, clock
        self._rules, self._former, self._load_at = dict[str, "ResourceRule"](), False, -math.inf
        self._calls: dict[str, _Call] = {}
        """By UID: what the kubelet waits for."""
        self._read_at = dict[str, float]()
        """By UID: when the allocation of a prepared claim was read."""
        self._released = set[str]()
        """The UIDs of claims that were unprepared before the record could be read."""
        self._ready, self._observed = asyncio.Event(), False
        self._report = ClaimReport(telemetry=telemetry)
        self.claims = PreparedClaims(report=self._report)
        self._reader = ClaimReader(read=read, receiver=self, clock=clock)
        self.registration = DriverRegistration(
            driver=DRIVER, connect=lambda: self._connect().server(self), clock=clock, report=self._report
        )

    # -- the interface to the loop

    def follow(self, group: asyncio.TaskGroup, wake: Callable[[str], None]) -> None:
        """Register in the background, and wake the loop at each change."""
        self._report.wake = partial(wake, "kubelet")
        group.create_task(self.registration.run(self._ready))

    def configure(self, rules: Iterable[ResourceRule], *, former: bool = False) -> None:
        """Set the resources of this node that are published so; `former` is whether others were. Reads the record of a former daemon."""
        self._rules, self._former = {rule.name: rule for rule in rules}, former
        self._load()

    @property
    def tasks(self) -> tuple[ClaimReader]:
        """What reads claims between the patches."""
        return (self._reader,)

    @property
    def holders(self) -> tuple[PreparedClaim, ...]:
        """The claims that are prepared here."""
        return tuple(self.claims.by_uid.values())

    @property
    def held(self) -> Mapping[str, frozenset[str]] | None:
        """The IDs of the devices that claims hold, by resource; None where that is unknown: the record was not read yet."""
        return None if self._unread else self.claims.held

    @property
    def _unread(self) -> bool:
        """Whether there may be a record of a former daemon that was not read yet."""
        return self.claims.files is None and bool(self._rules or self._recorded())

    def begin(self, slots: Mapping[str, Sequence[Slot]], inventory: Inventory) -> None:
        """Process a scan before the Node was observed, which may take for ever: containers start by the files, and pods have to end."""
        if self._is_loaded():
            self.claims.recognize(slots, inventory)
            self._synchronize()

    def update(self, slots: Mapping[str, Sequence[Slot]], inventory: Inventory, paths: Mapping[str, str]) -> None:
        """Process a scan: lost devices are taken out of the CDI files, and returned ones put in.

        `slots` are those of all resources that claims may hold, by resource. They have to know the IDs of a former daemon already, also
        those of `PreparedClaims.recall`: otherwise a twin could get the ID of the device that a claim has. `paths` has all resources.
        """
        if not self._is_loaded():
            return
        self._observed = True
        self.claims.observe(slots, inventory, paths)
        self._synchronize()
        if not inventory.doubts:
            self._ready.set()

    def _is_loaded(self) -> bool:
        """Look after the driver, and return whether the record is read: without it nothing is prepared, but pods have to end."""
        self._load()
        self.registration.look()
        return self.claims.files is not None

    def _load(self) -> None:
        """Read the record of a former daemon, once. Its claims are compared with those of the API server: they may have ended."""
        now = self._clock.now()
        if (self._unread or (self._former and self.claims.files is None)) and now >= self._load_at:
            self._load_at = now + LOAD_INTERVAL
            for claim in self.claims.load(self._connect):
                if claim.reference.uid in self._released:
                    self.claims.by_uid.pop(claim.reference.uid, None)
                else:
                    self._reader.add(claim.reference, urgent=False)

    def _synchronize(self) -> None:
        """Write what is to be written, and answer the calls that wait for that."""
        self.claims.synchronize()
        claims = self.claims.by_uid
        self._read_at = {uid: at for uid, at in self._read_at.items() if uid in claims}
        for uid in [uid for uid, call in self._calls.items() if call.is_read]:
            call = self._calls.pop(uid)
            if self.claims.fault:
                del claims[uid]
                call.finish(ClaimRefused(self.claims.fault))
            else:
                self._report.prepared(claims[uid], new=True)
                call.finish(claims[uid])

    # -- the claims that are read

    def found(self, claim: ClaimReference, state: ClaimState | None) -> None:
        """Take a claim as the API server has it: forget it if it has ended or has other devices now, and answer the kubelet if it waits."""
        call, before = self._calls.get(claim.uid), self.claims.by_uid.get(claim.uid)
        now = self._decide(claim, state, before)
        self._read_at[claim.uid] = self._clock.now()
        if before is not None and now is not before:
            del self.claims.by_uid[claim.uid]
            self._report.ended(claim)
        if call is None:
            return
        if isinstance(now, ClaimRefused):
            self._refuse(call, now)
        elif now is before:
            del self._calls[claim.uid]
            self._report.prepared(now, new=False)
            call.finish(now)
        else:
            self.claims.by_uid[claim.uid], call.is_read = now, True

    def _decide(
        self, claim: ClaimReference, state: ClaimState | None, before: PreparedClaim | None
    ) -> PreparedClaim | ClaimRefused:
        """Return what is prepared for a claim, `before` itself while that is allocated, or why nothing is."""
        if state is None:
            return ClaimRefused(f"the API server has no ResourceClaim {claim.title}")
        if before is None and not self._observed:
            return ClaimRefused(
                self.claims.fault or "devwatch has not read the Node yet, which tells its devices apart"
            )
        try:
            now = prepare(claim, state, self._pool, self.claims.known)
        except ClaimRefused as error:
            return error
        return before if before is not None and before.allocation == now.allocation else now

    def failed(self, claim: ClaimReference, error: ApiError) -> None:
        """Take note of an error. What only the user can change is told to the kubelet at once."""
        if (call := self._calls.get(claim.uid)) is not None:
            call.trouble = f"{error}; {error.hint}" if error.hint else str(error)
            if isinstance(error, Forbidden | Refused):
                self._refuse(call, ClaimRefused(call.trouble))

    def _refuse(self, call: _Call, error: ClaimRefused) -> None:
        self._forget(call)
        call.finish(error)

    def _forget(self, call: _Call) -> None:
        """End a call that is not answered yet. Whether a prepared claim has ended is still to be known."""
        self._calls.pop(call.claim.uid, None)
        self._reader.drop(call.claim.uid)
        if call.claim.uid in self.claims.by_uid:
            self._reader.add(call.claim, urgent=False)

    # -- the interface to the server

    def notified(self, error: str | None) -> None:
        """Record that the kubelet has registered the driver, or why not."""
        self.registration.notified(error)

    def changed(self) -> None:
        """Record that the kubelet has connected or disconnected."""
        self.registration.changed()

    async def prepare(self, claims: Sequence[ClaimReference]) -> Mapping[str, PreparedClaim | ClaimRefused]:
        """Prepare claims, and return by UID what each has or why not."""
        calls = {uid: self._join(claim) for uid, claim in {each.uid: each for each in claims}.items()}
        self._report.wake()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PREPARE_TIMEOUT):
                    for call in calls.values():
                        await call.done.wait()
        finally:
            for call in calls.values():
                self._leave(call)
        return {uid: self._outcome_of(call) for uid, call in calls.items()}

    def _join(self, claim: ClaimReference) -> _Call:
        """Return the call for a claim: an answered one if it is prepared and was read lately, else one that the next reading answers."""
        call, prepared = self._calls.get(claim.uid), self.claims.by_uid.get(claim.uid)
        if call is None:
            call = _Call(claim=claim)
            if prepared is not None and self._clock.now() < self._read_at.get(claim.uid, -math.inf) + READ_LATELY:
                self._report.prepared(prepared, new=False)
                call.finish(prepared)
            else:
                self._calls[claim.uid] = call
                self._reader.add(claim, urgent=True)
        call.waiting += 1
        return call

    def _leave(self, call: _Call) -> None:
        """Stop waiting for a call; one for which no other waits is given up."""
        call.waiting -= 1
        if not call.waiting and not call.done.is_set():
            self._forget(call)

    def _outcome_of(self, call: _Call) -> PreparedClaim | ClaimRefused:
        if isinstance(answer := call.answer, ClaimRefused):
            self._report.refused(call.claim, answer)
        return answer

    async def unprepare(self, claims: Sequence[ClaimReference]) -> None:
        """Forget claims, prepared or not. What fails with their files is reported and done in a later cycle."""
        for claim in claims:
            if (call := self._calls.get(claim.uid)) is not None:
                self._refuse(call, ClaimRefused(f"{claim.title} was unprepared meanwhile"))
            self._reader.drop(claim.uid)
            self._report.unprepared(claim, known=self.claims.by_uid.pop(claim.uid, None) is not None)
        if self._unread:
            self._released.update(claim.uid for claim in claims)
        self._synchronize()
        self._report.wake()
