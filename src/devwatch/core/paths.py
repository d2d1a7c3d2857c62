"""The paths by which a device can be found, and which of them another device had at the same time."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from devwatch.core.listing import listed_path

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from devwatch.core.device import Device, Key


def is_socket(path: str) -> bool:
    """Return whether a link follows the socket (60-serial.rules and its like: `/dev/*/by-path/`), which has one device at a time."""
    return "/by-path/" in path


def paths_of(device: Device) -> frozenset[str]:
    """Return every path of a device: what leads to it now, and what its udev record claims, wherever that leads."""
    claims = (device.properties or {}).get("DEVLINKS", "").split()
    return frozenset(listed_path(path) for path in (device.devnode, *device.links, *claims))


class Paths:
    """Which paths the listed devices have had since they were plugged, and which of these two had at the same time.

    A link that twins claim leads to the one that udev saw last, and moves when that one is pulled: who mounts it may use either.
    """

    def __init__(self) -> None:
        """Start with no device."""
        self._had: dict[Key, frozenset[str]] = {}
        self._shared: dict[Key, frozenset[str]] = {}
        self._before: dict[Key, frozenset[str]] = {}
        """What was shared at the scan before, of devices that have departed since."""
        self._seen: tuple[Device, ...] | None = ()
        """What the scan before has found, None if it was uncertain."""

    def observe(self, listed: tuple[Device, ...], *, certain: bool = True) -> None:
        """Take in the listed devices of one scan; what an uncertain one did not find may be there all the same."""
        if certain and listed == self._seen:
            return
        found = {device.key: self._had.get(device.key, frozenset()) | paths_of(device) for device in listed}
        # What was found before an uncertain scan may have been there as long as that was so.
        maybe = found if certain and self._seen is not None else self._had | found
        self._seen = listed if certain else None
        # Where one has a socket now, the one that had it before is gone, even if this scan cannot say so.
        sockets = set(filter(is_socket, chain.from_iterable(found.values())))
        owners: dict[str, list[Key]] = {}
        for key, paths in maybe.items():
            for path in paths if key in found or not paths & sockets else ():
                owners.setdefault(path, []).append(key)
        shared = {path for path, keys in owners.items() if len(keys) > 1}
        self._before = self._shared
        self._shared = {key: self._shared.get(key, frozenset()) | (had & shared) for key, had in maybe.items()}
        self._had = found if certain else maybe

    def recall(self, key: Key, shared: Iterable[str]) -> None:
        """Take what a former daemon has seen: paths of a present device that another had as well."""
        self._shared[key] = self._shared.get(key, frozenset()).union(shared)

    def own(self, key: Key) -> frozenset[str]:
        """Return the paths that no other device had while this one was there."""
        return self._had.get(key, frozenset()) - self.shared(key)

    def shared(self, key: Key) -> frozenset[str]:
        """Return the paths that another device had as well."""
        return self._shared.get(key, self._before.get(key, frozenset()))

    def keys(self) -> AbstractSet[Key]:
        """Return the present devices."""
        return self._had.keys()

    def of(self, key: Key) -> frozenset[str]:
        """Return all paths of a present device."""
        return self._had[key]
