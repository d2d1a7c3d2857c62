"""The registration of the DRA driver with the kubelet: its sockets are there, and the kubelet is connected."""

from __future__ import annotations

import asyncio
import contextlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from devwatch.core.backoff import Backoff
from devwatch.core.errors import KubeletError

if TYPE_CHECKING:
    from collections.abc import Callable

    from devwatch.agent.clock import Clock

RECONNECT = 2.0
"""Seconds for which the kubelet may be disconnected before it counts as gone; its client connects again at once."""
ABSENT = 10.0
"""Seconds after which it is reported that no kubelet has registered the driver: one that starts needs some."""
READY_LIMIT = 30.0
"""Seconds for which a driver that is not ready, since scans are uncertain, is not served."""


class Server(Protocol):
    """The two sockets of the driver."""

    @property
    def connected(self) -> bool:
        """Whether the kubelet is connected for claims."""

    @property
    def missing(self) -> str:
        """The path of a socket that was removed or replaced since, empty where both are ours."""

    async def start(self) -> None:
        """Listen. Raises `KubeletError`."""

    async def close(self) -> None:
        """Stop listening."""


class RegistrationReport(Protocol):
    """What a registration reports to."""

    def wake(self) -> None:
        """Start the next cycle of the loop now."""

    def registered(self) -> None:
        """Report that the kubelet has registered the driver."""

    def lost(self, subject: str, error: KubeletError) -> None:
        """Report why claims cannot be prepared."""


@dataclass(slots=True, kw_only=True)
class DriverRegistration:
    """Serves the driver, and follows whether the kubelet has it.

    The kubelet finds the socket by itself, at its start too, and tries again by itself what has failed. So there is nothing to repeat here,
    but for sockets that were removed, which each cycle of the loop looks for.
    """

    driver: str
    connect: Callable[[], Server]
    """Returns a server that does not listen yet."""
    clock: Clock
    report: RegistrationReport
    registered: bool = False
    lost_at: float = math.inf
    """Since when the driver is to be registered, and is not; not yet where it is infinite."""
    failure: str = ""
    """Why it is not registered, empty where that is not known or it is."""
    starts: int = 0
    """How often the kubelet has registered the driver: once at each of its starts, and once for each socket."""
    _accepted: bool = False
    """Whether the kubelet has last said that it has registered the driver."""
    _served_at: float = math.inf
    """When it began to be served last."""
    _connected: bool = False
    _connected_at: float = -math.inf
    """When the kubelet was connected last, as far as observed."""
    _progress: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at each change, and by each cycle of the loop."""

    @property
    def unregistered(self) -> tuple[float, str] | None:
        """Since when the kubelet has not registered the driver, and why; None where it has."""
        return None if self.registered else (self.lost_at, self.failure)

    def look(self) -> None:
        """Have the sockets looked at: a wakeup of its own would cost more than the look."""
        self._progress.set()

    def notified(self, error: str | None) -> None:
        """Record that the kubelet has registered the driver, or why not."""
        self._accepted = error is None
        self.starts += self._accepted
        if error is not None:
            hint = "Kubernetes 1.34 or newer is needed"
            self._fail(KubeletError(f"the kubelet has not registered the driver: {error}", hint=hint))
        self.changed()

    def changed(self) -> None:
        """Record that the kubelet has connected or disconnected."""
        self._progress.set()
        self.report.wake()

    async def run(self, ready: asyncio.Event) -> None:
        """Serve once `ready` is set, or was long awaited: pods have to end whatever fails.

        It never ends: the kubelet has claims that it could not have prepared, and their pods end only once it has told the driver.
        """
        self.lost_at = self.clock.now()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_LIMIT):
                await ready.wait()
        backoff = Backoff(first=1.0, limit=10.0)
        while True:
            try:
                await self._serve(backoff)
            except KubeletError as error:
                self._fail(error)
                backoff.fail(self.clock.now(), self.clock.jitter())
            await asyncio.sleep(max(backoff.until - self.clock.now(), 0))

    async def _serve(self, backoff: Backoff) -> None:
        """Serve. Raises `KubeletError`."""
        server = self.connect()
        self._accepted, self._served_at = False, self.clock.now()
        try:
            await server.start()
            while True:
                _check_sockets(server)
                self._observe(connected=server.connected)
                await self._await_change(None if server.connected else RECONNECT)
                backoff.succeed()
        finally:
            await server.close()
            self._observe(connected=False, ended=True)

    def _observe(self, *, connected: bool, ended: bool = False) -> None:
        """Update whether the driver is registered, and report changes."""
        now = self.clock.now()
        self._connected_at = now if connected or self._connected else self._connected_at
        self._connected = connected
        registered = self._accepted and not ended and now < self._connected_at + RECONNECT
        if registered and not self.registered:
            self.failure = ""
            self.report.registered()
        elif self.registered and not registered:
            self.lost_at = now
            if not (ended or self.failure):
                self._fail(KubeletError("the kubelet has closed its connection"))
        elif not (registered or ended or self.failure) and now >= self._served_at + ABSENT:
            hint = "does it run, and is its folder this one (--kubelet-dir)?"
            self._fail(KubeletError("no kubelet registers the driver", hint=hint))
        if registered != self.registered:
            self.registered = registered
            self.report.wake()

    def _fail(self, error: KubeletError) -> None:
        self.failure = error.advice
        self.report.lost(self.driver, error)

    async def _await_change(self, seconds: float | None) -> None:
        """Wait for the next change or cycle, for these seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._progress.wait()
        self._progress.clear()


def _check_sockets(server: Server) -> None:
    """Raise `KubeletError` where a socket was removed or replaced: then both are made again."""
    if path := server.missing:
        raise KubeletError(f"{path}: another program has removed it", hint="it is made again")
