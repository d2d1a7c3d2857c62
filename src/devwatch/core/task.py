"""A request of the loop to the API server. At most one is in flight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PATIENCE = 1.0
"""Seconds for which a patch waits for an eviction or an Event in flight; after that the other request is cancelled and repeated later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One request; it handles its own `ApiError`s."""

    run: Callable[[], Awaitable[None]]
    patience: float = PATIENCE
    """Seconds after which a due patch cancels it: 0 for an optional read, infinite for a patch."""
