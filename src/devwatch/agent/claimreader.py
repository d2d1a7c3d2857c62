"""Read ResourceClaims from the API server, one request at a time, between the patches."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from devwatch.core.backoff import Backoff
from devwatch.core.errors import ApiError, Missing
from devwatch.core.task import Task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from devwatch.agent.clock import Clock
    from devwatch.core.claims import ClaimReference, ClaimState


class ClaimReceiver(Protocol):
    """What takes the claims that were read."""

    def found(self, claim: ClaimReference, state: ClaimState | None) -> None:
        """Take a claim as the API server has it, None where it has none."""

    def failed(self, claim: ClaimReference, error: ApiError) -> None:
        """Take note of an error; the claim is read again."""


@dataclass(slots=True, kw_only=True)
class _Reading:
    claim: ClaimReference
    urgent: bool
    backoff: Backoff


@dataclass(slots=True, kw_only=True)
class ClaimReader:
    """Reads each claim until it has an answer; first those that a pod waits for."""

    read: Callable[[ClaimReference], Awaitable[ClaimState]]
    """Reads one, and raises an `ApiError`."""
    receiver: ClaimReceiver
    clock: Clock
    _readings: dict[str, _Reading] = field(default_factory=dict)

    def add(self, claim: ClaimReference, *, urgent: bool) -> None:
        """Read a claim; `urgent` where a pod waits for it."""
        backoff = Backoff(first=0.5, limit=5.0 if urgent else 300.0)
        self._readings[claim.uid] = _Reading(claim=claim, urgent=urgent, backoff=backoff)

    def drop(self, uid: str) -> None:
        """Do not read a claim any more."""
        self._readings.pop(uid, None)

    def action(self, now: float) -> Task | None:
        """Return the reading that is due, None for none."""
        ready = (each for each in self._readings.values() if now >= each.backoff.until)
        reading = min(ready, key=lambda each: not each.urgent, default=None)
        return Task(run=partial(self._perform, reading)) if reading else None

    def due(self, now: float) -> float | None:
        """Return when to read next, None for never."""
        return min((max(each.backoff.until, now) for each in self._readings.values()), default=None)

    async def _perform(self, reading: _Reading) -> None:
        """Read a claim. One that was dropped meanwhile takes no answer."""
        state: ClaimState | None = None
        try:
            state = await self.read(reading.claim)
        except Missing:
            pass
        except ApiError as error:
            reading.backoff.fail(self.clock.now(), self.clock.jitter(), at_least=error.pause)
            self.receiver.failed(reading.claim, error)
            return
        if self._readings.get(reading.claim.uid) is reading:
            self.drop(reading.claim.uid)
            self.receiver.found(reading.claim, state)
