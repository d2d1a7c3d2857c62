"""Track parts of the Node that other clients overwrote: the first repair is immediate, further ones are delayed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devwatch.core.backoff import RepairBackoff
from devwatch.core.node import FIELD_MANAGER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from devwatch.core.node import NodePatch, NodeState, Part

CONTESTED = 5
"""Repairs without a quiet period between them after which the other writer is reported."""


class Drift:
    """The parts that another client has overwritten and that are not yet repaired."""

    def __init__(self) -> None:
        """Start without drift."""
        self.parts: set[Part] = set()
        self._disputed_values: dict[Part, object] = {}
        self._rivals: set[str] = set()
        self._backoff = RepairBackoff()
        # One repair may need several requests, where parts are sent isolated. Its remaining parts do not wait for the backoff.
        self._rest_of_repair: set[Part] = set()
        self._repair_counted = False

    def note(self, parts: Iterable[Part], state: NodeState) -> None:
        """Record that another client has written these parts, and its field manager where the server records it."""
        noted = set(parts)
        self.parts |= noted
        self._rest_of_repair -= noted
        self._rivals |= {writer.manager for part in noted for writer in state.writers.get(part, ())} - {FIELD_MANAGER}

    def waiting(self, wanted: NodePatch, now: float) -> set[Part]:
        """Return the parts whose repair must wait for the backoff.

        A part that no patch wants any more is dropped: it has not drifted. A part whose wanted value has changed since does not wait:
        writing a new value is not a repair.
        """
        self.parts &= wanted.parts
        self._rest_of_repair &= self.parts
        self._disputed_values = {
            part: self._disputed_values.get(part, wanted.value(part)) for part in self.parts - self._rest_of_repair
        }
        if now >= self._backoff.until:
            return set()
        return {part for part, value in self._disputed_values.items() if wanted.value(part) == value}

    def due(self, part: Part) -> float:
        """Return the time before which a part must not be written again; minus infinity where no other client contests it."""
        return self._backoff.until if part in self._disputed_values else float("-inf")

    def repair(self, sent: NodePatch, now: float) -> set[Part]:
        """Return the parts of an accepted patch that were repairs, and count them as one repair in the backoff.

        The first patch of a repair counts; the parts that remain to be sent (`_rest_of_repair`) do not count again. A part whose value has
        changed since overwrites the foreign value but does not count: it did not wait for the backoff either.
        """
        repaired = self.parts & sent.parts
        self.parts -= repaired
        disputed = {
            part
            for part in repaired - self._rest_of_repair
            if self._disputed_values.get(part, sent.value(part)) == sent.value(part)
        }
        self._repair_counted = bool(disputed)
        if self._repair_counted:
            self._rest_of_repair = self._rest_of_repair if now < self._backoff.until else set(self.parts)
            self._backoff.repaired(now)
        return repaired

    def rivals(self) -> tuple[str, ...] | None:
        """Return the other writers when they are to be reported, which is once per contest: at repair number `CONTESTED`."""
        return tuple(sorted(self._rivals)) if self._repair_counted and self._backoff.repairs == CONTESTED else None
