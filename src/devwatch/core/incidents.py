"""Incidents that may require evictions: lost devices, and devices that have returned under another number."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from devwatch.core.device import Key
    from devwatch.core.listing import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Lost devices of one resource that the Node stopped counting at the same time, with the pods that were present before.

    One device alone where the kubelet hands it over.
    """

    resource: str
    entries: tuple[Entry, ...]
    left: int
    """Devices of the resource that remain: the present ones, and the departed ones whose own eviction is not due yet."""
    since: float
    """When the Node first showed the count without them; monotonic seconds."""
    due: float
    """When their pods are to be evicted; monotonic seconds."""
    there: frozenset[str]
    """The UIDs of the pods in the lists that were answered before the PATCH that stopped counting the devices was sent."""
    lost: str
    """The API server's time before that PATCH (RFC 3339, seconds), empty where it is unknown."""
    accepted: str
    """The API server's time when the Node first showed the count without them; pods bound later are successors. Empty where unknown."""
    others: frozenset[str]
    """The paths that name exactly one present device of the resource."""
    victims: frozenset[str] | None = None
    """The UIDs of the pods to evict, None before they are chosen."""

    @property
    def ids(self) -> frozenset[str]:
        """The IDs of the devices for the kubelet, which knows their holders; empty where it does not hand them over."""
        return _ids_of(self.entries)

    @property
    def key(self) -> tuple[object, ...]:
        """The identity of the loss across scans: once a device has returned, what was read for it tells nothing of the others."""
        return ("loss", self.resource, self.since, self.lost, self.there, *self.entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """The device number and the paths by which a container could open a device, from one plugging to the next."""

    second: int
    """When it began, in Unix seconds by the clock of this host; 0 for a first one that is unknown or older than the daemon."""
    number: int
    """The device number."""
    paths: frozenset[str]
    """The paths that named only this device."""
    left: int = 0
    """The earliest second at which it can have ended: the last certain scan that found it. 0 where not observed."""
    taken: frozenset[str] = frozenset()
    """The paths that led to another device between it and the next one: a container that started then has mounted that device."""
    key: Key | None = None
    """What identifies it until the kernel removes the device; None where a former daemon listed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """A listed device that departed and has returned."""

    resource: str
    entries: tuple[Entry, ...]
    """The device as it was listed before it departed."""
    at: float
    """When it returned; monotonic seconds."""
    second: int
    """The same in Unix seconds by the clock of this host, which is also the kubelet's."""
    due: float
    """When its pods are to be examined; monotonic seconds."""
    registrations: tuple[Registration, ...]
    """All registrations of the device, the current one last. Earlier ones stay after a return at which a pod was spared: when the number
    of one comes back, a file opened by it works again."""
    recent: bool = False
    """Whether a pod was evicted for a return of the device within `REPLUG_PEACE` seconds before."""
    shared: frozenset[str] = frozenset()
    """The paths that also name another device, or lead to another one of the resource by now: a pod may use that device instead."""
    taken: frozenset[str] = frozenset()
    """The paths that lead to another device by now."""
    boot: int = 0
    """When this host started, in Unix seconds: a container of before has ended with it, whatever the status of its pod says until the
    kubelet has started it again. 0 where this daemon observed the departure, or this host has run for long."""

    @property
    def ids(self) -> frozenset[str]:
        """As in `Loss`."""
        return _ids_of(self.entries)

    @property
    def key(self) -> tuple[object, ...]:
        """The identity of the return across scans."""
        return ("return", self.resource, self.at, *self.entries)

    @property
    def former(self) -> tuple[Registration, ...]:
        """All registrations before the current one."""
        return self.registrations[:-1]

    def opened(self, started: int | None) -> tuple[Registration, ...]:
        """Return the former registrations that a container may have opened that started at this Unix second.

        All of them where the start is unknown (None); else the last one that began by then; an empty tuple where the container started
        before the device was present.
        """
        if started is None:
            return self.former
        return tuple(each for each in self.former if each.second <= started)[-1:]

    def is_dead(self, opened: tuple[Registration, ...]) -> bool:
        """Return whether a file opened by one of these registrations may be dead: the device has another number now."""
        return any(each.number != self.registrations[-1].number for each in opened)


def _ids_of(entries: Iterable[Entry]) -> frozenset[str]:
    return frozenset(entry.id for entry in entries if entry.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incidents:
    """All incidents of one scan."""

    losses: tuple[Loss, ...] = ()
    returns: tuple[Return, ...] = ()

    def __iter__(self) -> Iterator[Loss | Return]:
        """Yield all of them, losses first."""
        return chain(self.losses, self.returns)
