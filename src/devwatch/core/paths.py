"""Track the paths of each device, and which of them another device had at the same time."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING

from devwatch.core.listing import Entry, is_socket, listed_path, paths_of
from devwatch.core.matching import ids_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from devwatch.core.device import Device, Key
    from devwatch.core.matching import Ids


class Paths:
    """The paths that each listed device has had since it was plugged in, and those that it shared with another device.

    Two devices with the same serial, or none, claim the same by-id link. udev lets it lead to one of them, and moves it when that one is
    pulled, so a container that mounts the link may use either. Such a path is shared, and never proves which device a pod uses. It stays
    shared for as long as the device is present, also after its twin has gone: a container may have opened it before.
    """

    def __init__(self) -> None:
        """Start without devices."""
        self.by_device: dict[Key, frozenset[str]] = {}
        """All paths of each present device, own and shared."""
        self._shared_by_device: dict[Key, frozenset[str]] = {}
        self._previous_shared: dict[Key, frozenset[str]] = {}
        """`_shared_by_device` before the last scan, for devices that this scan no longer found."""
        self._doubtful: dict[Key, frozenset[str]] = {}
        """The links of each device that a twin may have as well, as long as the record of that one is not complete."""
        self._previous: tuple[tuple[Device, ...], ...] | None = ((), ())
        """The listed and the unread devices of the last scan, None if it was uncertain."""

    def observe(self, listed: tuple[Device, ...], *, unread: tuple[Device, ...] = (), certain: bool = True) -> None:
        """Process the listed devices of one scan. `unread` are others without a complete record, any of which may be a twin.

        An uncertain scan may miss a device that is present. To miss no sharing, earlier devices are kept, and each path counts as owned by
        all devices that may have it. This holds for the certain scan that follows as well, since a missed device may have been present in
        between. The exception is a socket: it holds one device, so the present device in it proves that the former one is gone.
        """
        if certain and self._previous == (listed, unread):
            return
        found = {device.key: self.by_device.get(device.key, frozenset()) | paths_of(device) for device in listed}
        known = found if certain and self._previous is not None else self.by_device | found
        self._previous = (listed, unread) if certain else None
        self._doubtful = dict(_doubtful_links(listed, unread))
        sockets = set(filter(is_socket, chain.from_iterable(found.values())))
        maybe = {key: had if key in found or not had & sockets else frozenset() for key, had in known.items()}
        shared = {path for path, owners in Counter(chain.from_iterable(maybe.values())).items() if owners > 1}
        self._previous_shared = self._shared_by_device
        self._shared_by_device = {
            key: self._shared_by_device.get(key, frozenset()) | (had & shared) for key, had in maybe.items()
        }
        self.by_device = found if certain else maybe

    def recall(self, key: Key, shared: Iterable[str]) -> None:
        """Add paths that a present device shares, such as those of the annotation of a former daemon."""
        self._shared_by_device[key] = self._shared_by_device.get(key, frozenset()).union(shared)

    def keep(self, key: Key, paths: Iterable[str]) -> None:
        """Add links that a device had before it was plugged in again: until its record is complete, it may have them as well.

        It does not have those that name its former socket.
        """
        kept = frozenset(path for path in paths if not is_socket(path))
        self.by_device[key] = self.by_device.get(key, frozenset()) | kept
        for other, had in self.by_device.items():
            if other != key and (both := had & kept):
                self.recall(other, both)
                self.recall(key, both)

    def own(self, key: Key) -> frozenset[str]:
        """Return the paths that certainly only this device had while it was present."""
        return self.by_device.get(key, frozenset()) - self.shared(key) - self._doubtful.get(key, frozenset())

    def shared(self, key: Key) -> frozenset[str]:
        """Return the paths that another device had at the same time."""
        return self._shared_by_device.get(key, self._previous_shared.get(key, frozenset()))

    @property
    def all(self) -> frozenset[str]:
        """All paths of the present devices."""
        return frozenset(chain.from_iterable(self.by_device.values()))


def _doubtful_links(listed: tuple[Device, ...], others: tuple[Device, ...]) -> Iterator[tuple[Key, frozenset[str]]]:
    """Yield the links of each listed device that has a twin without a complete record. Its devnode and its socket are its own."""
    unread = Counter(map(_looks, (device for device in (*listed, *others) if not device.complete)))
    for device in listed if unread else ():
        if unread[_looks(device)] > (not device.complete):
            links = paths_of(device) - {listed_path(device.devnode)}
            yield device.key, frozenset(path for path in links if not is_socket(path))


def _looks(device: Device) -> tuple[Ids, str | None]:
    """Return what twins have in common, and the other parts of a stick have not."""
    return ids_of(Entry.of(device)), device.interface
