"""What other clients have written over what devwatch wrote: repaired at once, and then at growing intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devwatch.core.backoff import Truce
from devwatch.core.node import FIELD_MANAGER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from devwatch.core.node import NodePatch, NodeState, Part

CONTESTED = 5
"""Repairs without peace between them after which the other writer is named."""


class Drift:
    """The foreign writes that are still to be repaired, by part."""

    def __init__(self) -> None:
        """Start in peace."""
        self.parts: set[Part] = set()
        self._disputed: dict[Part, object] = {}
        self._rivals: set[str] = set()
        self._truce = Truce()
        # Parts that are sent alone are one repair all the same: the rest of it does not wait for the truce.
        self._rest: set[Part] = set()
        self._first = False

    def note(self, parts: Iterable[Part], state: NodeState) -> None:
        """Note that another client has written these parts, and its field manager where the server records it."""
        noted = set(parts)
        self.parts |= noted
        self._rest -= noted
        self._rivals |= {writer.manager for part in noted for writer in state.writers.get(part, ())} - {FIELD_MANAGER}

    def waiting(self, wanted: NodePatch, now: float) -> set[Part]:
        """Return the parts that are not to be repaired yet. One that is no longer wanted has not drifted; another value is not a repair."""
        self.parts &= wanted.parts
        self._rest &= self.parts
        self._disputed = {part: self._disputed.get(part, wanted.value(part)) for part in self.parts - self._rest}
        if now >= self._truce.until:
            return set()
        return {part for part, value in self._disputed.items() if wanted.value(part) == value}

    def due(self, part: Part) -> float:
        """Return the moment before which a part is not to be written again; long past where no other client contests it."""
        return self._truce.until if part in self._disputed else float("-inf")

    def repair(self, sent: NodePatch, now: float) -> set[Part]:
        """Return which parts of an accepted patch were repairs. They lengthen the truce, once for all that was to be repaired then.

        A value that has changed since overwrites the foreign one without lengthening the truce: it did not wait for it either.
        """
        repaired = self.parts & sent.parts
        self.parts -= repaired
        disputed = {
            part for part in repaired - self._rest if self._disputed.get(part, sent.value(part)) == sent.value(part)
        }
        self._first = bool(disputed)
        if self._first:
            self._rest = self._rest if now < self._truce.until else set(self.parts)
            self._truce.repaired(now)
        return repaired

    def rivals(self) -> tuple[str, ...] | None:
        """Return the other writers when it is time to name them, which is once until there is peace."""
        return tuple(sorted(self._rivals)) if self._first and self._truce.repairs == CONTESTED else None
