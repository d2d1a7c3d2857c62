"""A request to the API server that the loop makes between two patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One request; it handles its own `ApiError`s."""

    run: Callable[[], Awaitable[None]]
    reads: bool = False
    """Whether it changes nothing and can be done without: a patch does not wait for it, but ends it."""
