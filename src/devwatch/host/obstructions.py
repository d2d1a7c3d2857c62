"""Directories in the place of a devnode or of a link to one: a container runtime makes them where it mounts a missing path."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MAX_PATHS = 64
"""Paths that are checked for a directory in their place; the oldest are dropped."""


@dataclass(slots=True, kw_only=True)
class Obstructions:
    """The paths of present and of departed devices where a directory may be."""

    _paths: dict[str, None] = field(default_factory=dict)
    """Devnodes and links, oldest first."""

    def examine(self, path: str, status: os.stat_result) -> None:
        """Suspect the path of a device if a directory has been found there, or where it leads."""
        if stat.S_ISDIR(status.st_mode):
            self._paths[path] = None

    def suspect(self, paths: Iterable[str]) -> None:
        """Check these paths from now on, until there is something else than a directory."""
        self._paths |= dict.fromkeys(paths)
        for path in list(self._paths)[:-_MAX_PATHS]:
            del self._paths[path]

    def report(self) -> tuple[str, ...]:
        """Return what to do about each directory. A link that leads to a directory blocks nothing."""
        blocked = []
        for path in list(self._paths):
            # Nothing is there, or it cannot be checked: check again at the next scan.
            with contextlib.suppress(OSError):
                if stat.S_ISDIR(os.lstat(path).st_mode):
                    blocked.append(path)
                else:
                    del self._paths[path]
        return tuple(obstruction(path) for path in sorted(blocked))


def obstruction(path: str) -> str:
    """Return the message for a directory in the place of a devnode or link: its cause and its cure."""
    return (
        f"{path}: a directory is in the place of a device or of a link to one: run `rmdir {shlex.quote(path)}` on this host, then plug"
        " the device again. A container that mounts this path was restarted without the device; let it mount /dev instead"
    )


def tty_directories(dev: str) -> Iterator[str]:
    """Yield the directories in /dev that are named like a tty; no driver makes such a directory."""
    with contextlib.suppress(OSError), os.scandir(dev) as entries:
        yield from (
            entry.path for entry in entries if entry.name.startswith("tty") and entry.is_dir(follow_symlinks=False)
        )
