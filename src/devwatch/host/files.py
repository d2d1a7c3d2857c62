"""Examine files of this host: never take an error for an absence, and notice whether a folder has changed."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import dataclass

Stamp = tuple[int, int]
"""Inode and last write (in nanoseconds) of a file; another pair whenever a new file is renamed into its place."""

GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})
"""The errors of the kernel for a device that is not there; any other error proves neither presence nor absence."""
NOWHERE = GONE | {errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
"""The errors of the kernel for a path that leads nowhere."""
_ATTRIBUTE_SIZE = 4096
"""Bytes of a sysfs attribute at most, one page (sysfs(5))."""
_CLOCK_STEP = 5.0
"""Seconds after which a further change of a folder has a later time, however a scan is delayed: the kernel's clock steps every 10 ms."""


def status(path: str) -> os.stat_result | None:
    """Return the status of a file, None where there is none. Raises `OSError` for any other error."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


def stamp(path: str) -> Stamp | None:
    """Return the stamp of a file, None where there is none. Raises `OSError` for any other error."""
    found = status(path)
    return found and (found.st_ino, found.st_mtime_ns)


def read_attribute(path: str) -> bytes | None:
    """Return a sysfs attribute, None where it or its device is not there. Raises `OSError` for any other error."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(_ATTRIBUTE_SIZE)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


def describe(error: OSError) -> str:
    """Return an error in one line, with the path that it is about."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


@dataclass(slots=True, kw_only=True)
class Folder:
    """A folder whose entries need not be examined again as long as none was added, removed or replaced.

    Two changes within one step of the kernel's clock leave the same time. Entries that were examined a step after the time was first
    observed are therefore unchanged as long as it stays, and entries that were examined earlier may not be.
    """

    path: str
    _stamp: tuple[int, ...] | None = None
    """File system, inode and last write, None where the folder could not be examined."""
    _since: float = 0.0

    def unchanged_after(self, now: float) -> float:
        """Return the time such that what was examined then or later is unchanged."""
        try:
            found = os.stat(self.path)
        except OSError:
            self._stamp = None
            return math.inf
        current = (found.st_dev, found.st_ino, found.st_mtime_ns)
        if current != self._stamp:
            self._stamp, self._since = current, now
        return self._since + _CLOCK_STEP
