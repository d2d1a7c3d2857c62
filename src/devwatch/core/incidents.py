"""What calls for a look at the pods: devices that are lost, and devices that have returned under another number."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devwatch.core.listing import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Devices of one resource that the Node no longer counts since one moment, and which pods were there before."""

    resource: str
    entries: tuple[Entry, ...]
    left: int
    """How many of the resource are present, or are lost for so short a time that they may come back."""
    since: float
    """When the Node first showed the count without them."""
    due: float
    """When their pods are to be evicted."""
    there: frozenset[str]
    """The UIDs of the pods in a list that was answered before the PATCH that stopped counting the devices."""
    lost: str
    """The API server's time before that PATCH (RFC 3339, seconds), empty where it is unknown."""
    accepted: str
    """The API server's time when the Node showed the count without them; a later pod has come since. Empty where it is unknown."""
    others: frozenset[str]
    """The paths that name a present device of the resource, and no other."""
    victims: frozenset[str] | None = None
    """The UIDs of the pods to evict, None before they were chosen."""

    @property
    def key(self) -> tuple[object, ...]:
        """What stays the same from one scan to the next."""
        return ("loss", self.resource, self.since, self.lost, self.there)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What a container could open a device by, from one plugging to the next."""

    second: int
    """When it began, in Unix seconds by the clock of this host; 0 for the first, where that is unknown or was before the daemon began."""
    number: int
    """The device number."""
    paths: frozenset[str]
    """The paths that named the device, and no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """A listed device that was away and is back."""

    resource: str
    entries: tuple[Entry, ...]
    """The device as it was listed before it departed."""
    at: float
    second: int
    """When it returned, in Unix seconds by the clock of this host, which is also the kubelet's."""
    due: float
    """When its pods are to be looked at."""
    registrations: tuple[Registration, ...]
    """How the device could be opened, also before returns at which a pod was spared: its file may be good again. The last one is now."""
    recent: bool = False
    """Whether a pod was evicted for such a return of the device within `REPLUG_PEACE` before."""
    left: int = 0
    """Since when it was away at most, in Unix seconds; 0 where that was not seen."""
    shared: frozenset[str] = frozenset()
    """The paths that name it as well as another, or lead to another of the resource by now: a pod may work with that one."""
    taken: frozenset[str] = frozenset()
    """The paths that lead to any other by now: a container that started while the device was away has mounted that one."""

    @property
    def key(self) -> tuple[object, ...]:
        """What stays the same from one scan to the next."""
        return ("return", self.resource, self.at, *self.entries)

    @property
    def former(self) -> tuple[Registration, ...]:
        """All but what it is now."""
        return self.registrations[:-1]

    def opened(self, started: int | None) -> tuple[Registration, ...]:
        """Return the registrations of which a container may have a file that started at this Unix second, None for unknown.

        None where it started before the device was there.
        """
        if started is None:
            return self.former
        return tuple(each for each in self.former if each.second <= started)[-1:]

    def is_dead(self, opened: tuple[Registration, ...]) -> bool:
        """Return whether a file of these may open the device no more: it has another number now."""
        return any(each.number != self.registrations[-1].number for each in opened)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incidents:
    """What calls for a look at the pods."""

    losses: tuple[Loss, ...] = ()
    returns: tuple[Return, ...] = ()

    def __iter__(self) -> Iterator[Loss | Return]:
        """Yield all of them."""
        return chain(self.losses, self.returns)
