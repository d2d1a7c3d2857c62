"""The virtual clock of the tests keeps its promises: timers in order, no waiting, no hanging."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import pytest

from support import virtualtime


def now() -> float:
    """Return the time of the running loop, in seconds."""
    return asyncio.get_running_loop().time()


def test_the_clock_moves_to_exactly_the_end_of_a_sleep() -> None:
    """A sleep takes its length on the virtual clock, to the float."""

    async def main() -> list[float]:
        times = [now()]
        for pause in (0.2, 1.0, 3600.0):
            await asyncio.sleep(pause)
            times.append(now())
        return times

    assert virtualtime.run(main) == pytest.approx([0.0, 0.2, 1.2, 3601.2], abs=1e-6)


def test_a_month_is_over_before_a_real_hour_is() -> None:
    """Nothing waits: the limit is the clock's, not the patience of whoever runs the tests."""

    async def main() -> float:
        await asyncio.sleep(30 * virtualtime.DAY)
        return now()

    assert virtualtime.run(main, limit=40 * virtualtime.DAY) == 30 * virtualtime.DAY


def test_a_clock_too_far_for_its_own_resolution_is_refused() -> None:
    """Past 2**22 s a due timer would never run, so no run may go there."""

    async def main() -> None:
        """End at once."""

    with pytest.raises(ValueError, match="virtual time ends at"):
        virtualtime.run(main, start=1e8)


def test_timers_of_several_tasks_fire_in_the_order_of_their_times() -> None:
    """Tasks interleave as they would on a real clock."""

    async def main() -> list[tuple[str, float]]:
        seen: list[tuple[str, float]] = []

        async def tick(name: str, period: float, times: int) -> None:
            for _ in range(times):
                await asyncio.sleep(period)
                seen.append((name, now()))

        async with asyncio.TaskGroup() as group:
            group.create_task(tick("slow", 5, 2))
            group.create_task(tick("quick", 2, 3))
        return seen

    assert virtualtime.run(main) == [("quick", 2), ("quick", 4), ("slow", 5), ("quick", 6), ("slow", 10)]


def test_a_timeout_fires_on_the_virtual_clock() -> None:
    """`asyncio.timeout` ends a wait that nothing else ends."""

    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.Event().wait()
        return now()

    assert virtualtime.run(main) == 10


def test_the_clock_stands_still_while_callbacks_are_ready() -> None:
    """Work that needs no timer takes no time, even with a timer pending."""

    async def main() -> float:
        asyncio.get_running_loop().call_later(1, lambda: None)
        for _ in range(100):
            await asyncio.sleep(0)
        return now()

    assert virtualtime.run(main) == 0


def test_a_file_descriptor_that_is_ready_is_served_before_time_passes() -> None:
    """Real descriptors work: data that is there wakes its reader at the same virtual moment."""

    async def main() -> tuple[bytes, float]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)  # noqa: FBT003  the standard library takes it by position only
            asyncio.get_running_loop().call_later(3, theirs.send, b"x")
            async with asyncio.timeout(5):
                return await asyncio.get_running_loop().sock_recv(ours, 1), now()

    assert virtualtime.run(main) == (b"x", 3)


def test_a_signal_wakes_the_loop() -> None:
    """Signal handlers of the loop run, so a daemon's shutdown can be tested on virtual time."""

    async def main() -> float:
        came = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, came.set)
        loop.call_later(7, os.kill, os.getpid(), signal.SIGUSR1)
        async with asyncio.timeout(60):
            await came.wait()
        return now()

    assert virtualtime.run(main) == 7


def test_waiting_for_nothing_is_a_deadlock_and_not_a_hang() -> None:
    """Nothing scheduled and nothing ready raises at once."""

    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(virtualtime.VirtualTimeError, match="deadlock in virtual time"):
        virtualtime.run(main)


def test_an_endless_timer_is_stopped_at_the_limit() -> None:
    """A loop that only sweeps, while the test waits for what never comes, fails instead of running for ever."""
    turns: list[float] = []

    async def main() -> None:
        while True:
            await asyncio.sleep(10)
            turns.append(now())

    with pytest.raises(virtualtime.VirtualTimeError, match="reached 60 s"):
        virtualtime.run(main, limit=60)
    assert turns == [10, 20, 30, 40, 50, 60]


def test_tasks_left_over_are_cancelled_also_after_a_deadlock() -> None:
    """Clean-up code of the code under test runs."""
    cleaned: list[str] = []

    async def main() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("main")

    with pytest.raises(virtualtime.VirtualTimeError):
        virtualtime.run(main)
    assert cleaned == ["main"]


def test_exceptions_and_results_come_through_unchanged() -> None:
    """A coroutine object is taken like a coroutine function, and its exception is the caller's."""

    async def fail(message: str) -> None:
        await asyncio.sleep(1)
        raise LookupError(message)

    with pytest.raises(LookupError, match="gone"):
        virtualtime.run(fail("gone"))


def test_the_clock_can_start_anywhere() -> None:
    """`start` sets the first reading."""

    async def main() -> float:
        await asyncio.sleep(2)
        return now()

    assert virtualtime.run(main(), start=1e6) == 1e6 + 2
