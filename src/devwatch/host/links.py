"""Links to devnodes: those in /dev/serial, and those that the configuration names."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devwatch.host.files import NOWHERE, describe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from devwatch.host.mounts import Roots
    from devwatch.host.obstructions import Obstructions

_TEMPORARY_LINK = re.compile(r"/\.#[^/]*$|\.tmp-c[0-9]+:[0-9]+$")
"""Links that udevd makes only to rename them over others: since systemd 251 (`tempfn_random`), and before (`node_symlink`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Follows links to devnodes."""

    roots: Roots
    obstructions: Obstructions

    def by_number(self, paths: Iterable[str], doubts: list[str]) -> dict[int, list[str]]:
        """Return the links to devices by device number: those in /dev/serial, and those of `paths`. Raises `OSError`."""
        links: dict[int, list[str]] = {}
        for path in (*paths, *_serial_links(self.roots.dev)):
            try:
                if not _TEMPORARY_LINK.search(path) and (number := self.number(path)) is not None:
                    links.setdefault(number, []).append(path)
            except OSError as error:
                doubts.append(describe(error))
        return links

    def number(self, path: str) -> int | None:
        """Return the device number of the character device that a path leads to, None if it leads to none. Raises `OSError`."""
        try:
            status = os.stat(path)
        except ValueError:
            return None  # a NUL in it: no file can have this name
        except OSError as error:
            if error.errno in NOWHERE:
                return None
            raise
        self.obstructions.examine(path, status)
        return status.st_rdev if stat.S_ISCHR(status.st_mode) else None


def _serial_links(dev: str) -> Iterable[str]:
    for folder in (f"{dev}/serial/by-id", f"{dev}/serial/by-path"):
        try:
            yield from (f"{folder}/{name}" for name in os.listdir(folder))
        except OSError as error:
            if error.errno not in NOWHERE:
                raise
