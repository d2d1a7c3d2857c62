"""An asyncio event loop whose clock is virtual: an hour of timers passes in milliseconds, and always the same way.

``run(main)`` takes the place of ``asyncio.run``. Where a real loop would block until its next timer, this one moves its
clock to that timer. ``loop.time()``, ``asyncio.sleep``, ``asyncio.timeout`` and ``loop.call_later`` all follow it.

File descriptors are real, and polled without waiting. A socketpair or a pipe of the same process is seen at once; the
answer of another process or thread is not waited for, so those belong into tests on real time.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")
T = TypeVar("T")

HOUR = 3_600.0
DAY = 24 * HOUR

# asyncio runs a timer that is at most its clock resolution (1 ns) away. From 2**22 s on, two neighbouring floats are
# farther apart than that, and a timer that is due exactly now would never run.
LAST_MOMENT = 2.0**22
RESOLUTION = 1e-9
"""Seconds: the clock resolution of asyncio on Linux."""
STANDING = 1_000
"""Rounds of the event loop in a row for which the clock may stand still."""


class VirtualTimeError(Exception):
    """The code under test would never come to an end."""


class _VirtualSelector(selectors.DefaultSelector):
    """The selector and the clock in one, because time passes only where a selector would wait."""

    def __init__(self, now: float, end: float) -> None:
        super().__init__()
        self.now = now
        self._end = end
        self._standing = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            self._pass(timeout)
        return ready

    def _pass(self, timeout: float | None) -> None:
        if timeout is None:
            message = "deadlock in virtual time: no timer is scheduled and no file descriptor is ready"
            raise VirtualTimeError(message)
        if timeout > 0 and self.now >= self._end:
            message = f"no end in virtual time: the clock has reached {self.now:g} s"
            raise VirtualTimeError(message)
        # asyncio runs a timer up to its clock resolution early. Who then compares with the time it asked for waits again, for nothing,
        # as long as the clock stands still: a real one does not.
        self._standing = self._standing + 1 if timeout <= 0 else 0
        self.now += RESOLUTION if self._standing > STANDING else max(timeout, 0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector event loop on a virtual clock, which starts at `start` and must not pass `end` (both in seconds)."""

    def __init__(self, *, start: float = 0.0, end: float = DAY) -> None:
        """Begin at `start`, with no real time involved."""
        self._virtual = _VirtualSelector(start, end)
        super().__init__(self._virtual)

    def time(self) -> float:
        """Seconds on the virtual clock."""
        return self._virtual.now


def run(
    main: Callable[[], Coroutine[Any, Any, T]] | Coroutine[Any, Any, T],
    *,
    start: float = 0.0,
    limit: float = DAY,
) -> T:
    """Run a coroutine, or a coroutine function without arguments, to its end and return its result.

    The virtual clock begins at `start` seconds. Tasks left over at the end are cancelled, as `asyncio.run` does.

    Raises `VirtualTimeError` when nothing can ever wake the loop again, or when timers alone have kept it going for
    `limit` virtual seconds: a test that would hang fails instead. Raises `ValueError` for an end past `LAST_MOMENT`.
    """
    if start + limit > LAST_MOMENT:
        message = f"virtual time ends at {LAST_MOMENT:g} s, and {start + limit:g} s were asked for"
        raise ValueError(message)
    coroutine = main() if callable(main) else main
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(start=start, end=start + limit)) as runner:
        return runner.run(coroutine)


def virtual(test: Callable[P, Coroutine[object, object, None]]) -> Callable[P, None]:
    """Run an async test on the virtual clock, for two days at most."""

    @functools.wraps(test)
    def on_virtual_time(*args: P.args, **kwargs: P.kwargs) -> None:
        run(lambda: test(*args, **kwargs), limit=2 * DAY)

    return on_virtual_time
