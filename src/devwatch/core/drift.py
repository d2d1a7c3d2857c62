"""What somebody else has written over what devwatch wrote; it is repaired at once, and then ever more rarely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devwatch.core.backoff import Truce
from devwatch.core.node import FIELD_MANAGER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from devwatch.core.node import Changes, NodeState

CONTESTED = 5
"""Repairs without peace between them after which the other writer is named."""


class Drift:
    """The foreign writes that are still to be repaired, by the names of changes."""

    def __init__(self) -> None:
        """Start in peace."""
        self.names: set[str] = set()
        self._disputed: dict[str, str | None] = {}
        self._rivals: set[str] = set()
        self._truce = Truce()
        # What is sent apart is one repair all the same: the rest of it waits for no truce.
        self._rest: set[str] = set()
        self._first = False

    def note(self, names: Iterable[str], state: NodeState) -> None:
        """Take note that somebody else has written these, and who, where the server says so."""
        noted = set(names)
        self.names |= noted
        self._rest -= noted
        self._rivals |= {writer.manager for name in noted for writer in state.writers.get(name, ())} - {FIELD_MANAGER}

    def waiting(self, wanted: Changes, now: float) -> set[str]:
        """Return what is not yet to be repaired again. What is no longer wanted is no drift, and what is wanted anew is no repair."""
        self.names &= wanted.keys()
        self._rest &= self.names
        self._disputed = {name: self._disputed.get(name, wanted[name]) for name in self.names - self._rest}
        if now >= self._truce.until:
            return set()
        return {name for name, value in self._disputed.items() if wanted[name] == value}

    def due(self, name: str) -> float:
        """Return the moment before which a change is not to be written again; long past where nobody contests it."""
        return self._truce.until if name in self._disputed else float("-inf")

    def repair(self, sent: Changes, now: float) -> set[str]:
        """Return what of the accepted changes was a repair; the truce is the longer for it, once for all that was to be repaired then.

        What is wanted anew overwrites what somebody else wrote, and lengthens nothing: it waited for no truce either.
        """
        repaired = self.names & sent.keys()
        self.names -= repaired
        disputed = {name for name in repaired - self._rest if self._disputed.get(name, sent[name]) == sent[name]}
        self._first = bool(disputed)
        if self._first:
            self._rest = self._rest if now < self._truce.until else set(self.names)
            self._truce.repaired(now)
        return repaired

    def rivals(self) -> tuple[str, ...] | None:
        """Return the other writers when it is time to name them, which is once until there is peace."""
        return tuple(sorted(self._rivals)) if self._first and self._truce.repairs == CONTESTED else None
