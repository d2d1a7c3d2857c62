"""A request to the API server that the loop makes. At most one is in flight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PATIENCE = 1.0
"""Seconds for which a patch waits for an eviction or an Event that is in flight; it is repeated afterwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One request; it handles its own `ApiError`s."""

    run: Callable[[], Awaitable[None]]
    patience: float = PATIENCE
    """Seconds after which a patch ends it: 0 for a read that can be done without, infinite for a patch."""
