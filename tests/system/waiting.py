"""Wait for a state of a real server, with a deadline, and say what was wrong when it does not come."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

PAUSE = 0.02


def eventually(check: Callable[[], T | None], *, timeout: float = 30.0) -> T:
    """Return the first true value of `check`, which is asked again and again for `timeout` seconds.

    An `AssertionError` of the check counts as "not yet". Raises `AssertionError` at the deadline, the check's own where
    it gave one. Any other exception of the check goes through at once.
    """
    deadline = time.monotonic() + timeout
    while True:
        reason: AssertionError | None = None
        try:
            if value := check():
                return value
        except AssertionError as error:
            reason = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not so within {timeout:g} s: {reason or check}") from reason
        time.sleep(PAUSE)
