"""Follow the Node by a watch, so that writes of other clients are observed at once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, NoReturn

from devwatch.core.backoff import Backoff
from devwatch.core.errors import ApiError, Forbidden, Gone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from devwatch.agent.clock import Clock
    from devwatch.agent.nodereport import NodeReporter
    from devwatch.core.node import NodeState

    Watch = Callable[[], AsyncIterator[NodeState | None]]

PAUSE = 1.0
"""Seconds between two watches, at least, also where a server ends each at once."""
RETRY_LIMIT = 60.0
"""Seconds until a watch that is forbidden, or keeps failing, is tried again."""
LASTS = 10.0
"""Seconds after which the end of a watch does not count as a failure: servers end watches regularly."""


async def watch_forever(
    receive: Callable[[], Awaitable[None]], end: Callable[[ApiError], None], clock: Clock
) -> NoReturn:
    """Call `receive` for one watch after the other, and `end` where one fails. Back off while it is forbidden or keeps ending early."""
    backoff = Backoff(first=PAUSE, limit=RETRY_LIMIT)
    while True:
        began, least = clock.now(), PAUSE
        try:
            with contextlib.suppress(Gone):
                await receive()
        except ApiError as error:
            end(error)
            least = RETRY_LIMIT if isinstance(error, Forbidden) else max(PAUSE, error.pause)
        if clock.now() >= began + LASTS:
            backoff.succeed()
        await asyncio.sleep(backoff.fail(clock.now(), clock.jitter(), at_least=least))


class NodeWatch:
    """Holds the newest state that a watch reported until the publisher takes it."""

    def __init__(
        self,
        watch: Watch,
        *,
        reporter: NodeReporter,
        clock: Clock,
        lost: Callable[[float], None],
    ) -> None:
        """Start without a watch; `lost` is called with the time of the last report when one ends."""
        self._watch, self._reporter, self._clock, self._lost = watch, reporter, clock, lost
        self.wake: Callable[[str], None] = lambda _: None
        self.state: NodeState | None = None
        self.deleted = False
        self.watching = False
        """Whether a watch is permitted and runs."""
        self._denied = False
        self._reported_at = float("-inf")

    def take_deleted(self) -> bool:
        """Return whether the Node was deleted since the last call."""
        deleted, self.deleted = self.deleted, False
        return deleted

    async def run(self) -> None:
        """Watch forever."""
        await watch_forever(self._receive, self._end, self._clock)

    async def _receive(self) -> None:
        """Record the events of one watch. The first comes from the initial LIST, so it does not prove that WATCH is permitted."""
        listed = False
        try:
            async for state in self._watch():
                self._record(state, listed=listed)
                listed = True
        finally:
            self._reported_at = self._clock.now() if listed else self._reported_at

    def _record(self, state: NodeState | None, *, listed: bool) -> None:
        """Record one event, None for a Node that does not exist; a state older than the held one is ignored."""
        if not self.watching and (listed or not self._denied):
            self._reporter.watching()
            self.watching = True
        self._denied = self._denied and not listed
        if state is None:
            self.deleted = True
        elif state.supersedes(self.state):
            self.state = state
        self.wake("node")

    def _end(self, error: ApiError) -> None:
        """Report why there is no watch. A missing permission is reported once, until a watch has run again."""
        denied = isinstance(error, Forbidden)
        if not (denied and self._denied):
            self._reporter.unwatched(error)
        self._denied = self._denied or denied
        if self.watching:
            self.watching = False
            self._lost(self._reported_at)
            self.wake("node")
