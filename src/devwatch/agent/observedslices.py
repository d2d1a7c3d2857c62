"""The ResourceSlices of this driver and node, as the watch and the responses have last shown them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from devwatch.core.slices import Slice, is_allocatable

if TYPE_CHECKING:
    from collections.abc import Collection


UNSERVED_LIMIT = 3
"""Answers in a row by which a server is known not to have the API; a single one may be that of a proxy."""


class Report(Protocol):
    """What a watch reports: all slices, or the change of one."""

    @property
    def slices(self) -> tuple[Slice, ...]:
        """All slices, or the one that was changed or deleted."""

    @property
    def listed(self) -> bool:
        """Whether these are all slices there are."""

    @property
    def deleted(self) -> bool:
        """Whether the slice was deleted."""


@dataclass(slots=True, kw_only=True)
class ObservedSlices:
    """What is known of the slices, and what may be otherwise by now."""

    by_name: dict[str, Slice] | None = None
    """None before the first list."""
    taints: bool | None = None
    """Whether the server stores taints; None where that is unknown, as for another server after the end of a watch."""
    in_flight: bool = False
    """Whether a write is unanswered."""
    uncertain: bool = False
    """Whether the last write has failed, and may be stored yet."""
    unserved: int = 0
    """How often in a row the server had no such API when the slices were to be listed."""
    deleted: dict[str, Slice] = field(default_factory=dict)
    """By name: what was deleted last since the last list; the answer to a write may be older."""
    relisted: bool = False
    """Whether a list has come since the last write was sent: it, and the watch that follows it, are newer than the answer may be."""

    def observe(self, report: Report) -> None:
        """Store a report. A list replaces everything; what a list does not begin is the sequel of a former watch."""
        self.uncertain = False
        self.relisted |= report.listed
        if report.listed:
            self.by_name, self.deleted, self.taints = {}, {}, None
        for each in report.slices:
            self.store(each, deleted=report.deleted)

    def store(self, observed: Slice, *, deleted: bool = False, answer: bool = False) -> None:
        """Store the state of one slice, unless it is older than the stored one, or the `answer` to a write that a later list lacks."""
        slices = self.by_name = self.by_name or {}
        held = slices.get(observed.name) or (self.deleted.get(observed.name) if answer else None)
        if observed.is_older_than(held) if held is not None else answer and self.relisted:
            return
        slices.pop(observed.name, None)
        if deleted:
            self.deleted[observed.name] = observed
        else:
            slices[observed.name] = observed
            self.taints = True if observed.lost else self.taints

    def cut(self, device_id: str) -> bool:
        """Return whether it is certain that a lost device cannot be allocated any more."""
        slices = self._certain
        return slices is not None and not is_allocatable(device_id, slices)

    def is_without(self, resource: str) -> bool:
        """Return whether it is certain that no device of a resource can be allocated any more."""
        return self._certain is not None and not any(each.offers(resource) for each in self._certain)

    @property
    def is_unserved(self) -> bool:
        """Whether the slices were never listed, since the server has no such API."""
        return self.by_name is None and self.unserved >= UNSERVED_LIMIT

    @property
    def _certain(self) -> Collection[Slice] | None:
        """The slices, None while they are unknown or a write may change them; a server without the API has none."""
        if self.is_unserved:
            return ()
        return None if self.by_name is None or self.in_flight or self.uncertain else self.by_name.values()
