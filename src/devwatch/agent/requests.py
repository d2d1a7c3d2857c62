"""Requests to the API server: at most one is in flight, and a patch of the publisher comes first, though not without end."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from devwatch.core.backoff import Backoff
    from devwatch.core.listing import Listing
    from devwatch.core.node import NodeState
    from devwatch.core.plan import Figures
    from devwatch.core.task import Task

T = TypeVar("T")

PATCHES_LIMIT = 2.0
"""Seconds for which patches may follow one another before another request has a turn: sticks that flap make one after the other due."""


class Publisher(Protocol):
    """A way of publishing: compares the desired state with the observed one, and decides on the next request."""

    @property
    def observed(self) -> NodeState | None:
        """The last observed Node, None before the first observation."""

    @property
    def date(self) -> str:
        """The API server's time in its last response (RFC 3339, seconds), empty before the first."""

    @property
    def failure(self) -> str:
        """Why the Node may not show the present devices, empty where nothing failed."""

    @property
    def outage(self) -> str:
        """Why nothing can be written and since when, for messages; empty after an accepted request."""

    @property
    def wants(self) -> bool:
        """Whether the observed state differs from the desired one."""

    def configure(self, resync: float | None) -> None:
        """Set the seconds between two reads, None for the default."""

    def follow(self, group: asyncio.TaskGroup, wake: Callable[[str], None]) -> None:
        """Observe in the background, and wake the loop on each change."""

    def detect(self, now: float) -> None:
        """Record that a uevent was read."""

    def receive(self, now: float, *, busy: bool) -> None:
        """Process the responses and observations since the last cycle; `busy` while a request is in flight."""

    def update(self, figures: Figures, remembered: Listing, now: float) -> None:
        """Set the desired figures, and the devices to list besides the present ones (`remembered`)."""

    def action(self, now: float) -> Task | None:
        """Return the request that is due, None for none."""

    def urgent(self, now: float) -> bool:
        """Return whether a request is due that must not wait for another one in flight."""

    def due(self) -> tuple[float, str]:
        """Return when to call `action` again, and the trigger to record for that cycle."""

    def agrees(self, now: float) -> bool:
        """Return whether the desired state has certainly been observed."""


class Tasks(Protocol):
    """Requests that are made between patches, one at a time."""

    def action(self, now: float) -> Task | None:
        """Return the request that is due, None for none."""

    def due(self, now: float) -> float | None:
        """Return when the next request is due, None for never."""


class Requests:
    """The one request in flight, and the choice of the next one."""

    def __init__(
        self, publisher: Publisher, tasks: Sequence[Tasks], outage: Backoff, *, done: Callable[[], None]
    ) -> None:
        """Start without a request. `tasks` make requests between patches; `done` is called when one has ended."""
        self._publisher, self._tasks, self._outage, self._done = publisher, tasks, outage, done
        self._request: asyncio.Task[None] | None = None
        self._yields_at = math.inf
        """The time from which a due patch cancels the request in flight."""
        self._turn_at = math.inf
        """The time from which another request comes first."""

    @property
    def busy(self) -> bool:
        """Whether a request is in flight."""
        return self._request is not None

    def dues(self, now: float) -> Iterator[tuple[float, str]]:
        """Yield when to call `start` again, each with the trigger to record for that cycle."""
        if self._request is None:
            tasks = [due for tasks in self._tasks if (due := tasks.due(now)) is not None]
            yield self._publisher.due()
            yield from ((max(due, self._outage.until), "retry") for due in tasks)
        elif self._publisher.wants and now < self._yields_at < math.inf:
            yield self._yields_at, "retry"

    def start(self, now: float, group: asyncio.TaskGroup) -> None:
        """Start the request that is due. The publisher comes first: for a patch of it, another request in flight is cancelled."""
        if now < self._outage.until:
            return
        if self._request is not None:
            if now >= self._yields_at and self._publisher.urgent(now):
                self._yields_at = math.inf
                self._request.cancel()
            return
        if (task := self._choose(now)) is not None:
            self._yields_at = now + task.patience
            self._request = group.create_task(self._perform(task))

    def _choose(self, now: float) -> Task | None:
        """Return the request that is due: a patch, unless patches have followed one another for `PATCHES_LIMIT`."""
        between = (task for tasks in self._tasks if (task := tasks.action(now)))
        task = next(between, None) if now >= self._turn_at else None
        if task is None and (task := self._publisher.action(now)) is not None:
            self._turn_at = min(self._turn_at, now + PATCHES_LIMIT)
            return task
        self._turn_at = math.inf
        return task or next(between, None)

    async def _perform(self, task: Task) -> None:
        """Make a request. The task handles its own errors, so any exception ends the program."""
        try:
            await _await_request(task.run())
        finally:
            self._request, self._yields_at = None, math.inf
            self._done()


async def _await_request(request: Awaitable[T]) -> T:
    """Await a request. Raises `RuntimeError` where the cancellation came from within the request and not from the task."""
    try:
        return await request
    except asyncio.CancelledError as error:
        if (task := asyncio.current_task()) is None or task.cancelling():
            raise
        # A task group ignores a cancelled child: the loop would wait for its response forever.
        raise RuntimeError("the request was cancelled from within") from error
