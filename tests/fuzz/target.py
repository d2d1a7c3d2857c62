"""What a fuzz target is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from hypothesis.strategies import SearchStrategy

Feed = Callable[[bytes], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A place where foreign bytes come in."""

    open: Callable[[], AbstractContextManager[Feed]]
    """Gives what takes one input and raises where a promise is broken; it may be called for as long as the context lasts."""
    grammar: SearchStrategy[bytes]
    """Inputs that come far: of the right form, and wrong in one place or another."""
    seeds: tuple[bytes, ...]
    """Inputs that a coverage-guided fuzzer begins with."""
