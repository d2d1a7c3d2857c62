"""The subsystems of the kernel: where sysfs lists the devices of each, and whether a listing is complete."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devwatch.core.device import TTY, USB
from devwatch.host.files import describe, status
from devwatch.host.sysfs import KERNEL_TTYS, Registrations

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from devwatch.host.mounts import Roots
    from devwatch.host.obstructions import Obstructions

_KERNEL_BUS = "platform"
"""The bus that every kernel registers at boot (`drivers/base/platform.c`, `platform_bus_init`)."""


@dataclass(slots=True, kw_only=True)
class Subsystem:
    """The devices of one subsystem, as sysfs lists them."""

    name: str
    roots: Roots
    registrations: Registrations
    """What is known of each registration of a device."""

    @classmethod
    def of(cls, name: str, roots: Roots, obstructions: Obstructions) -> Subsystem:
        """Return a subsystem of which no device is known yet."""
        return cls(name=name, roots=roots, registrations=Registrations(name, roots=roots, obstructions=obstructions))

    def entries(self, doubts: list[str]) -> dict[str, int] | None:
        """Return the names of its devices with the inodes of their entries, None where the listing fails, which is a doubt.

        A subsystem is a class or a bus. Without either its driver is not loaded, and it has no device. The entries of the bus usb with a
        colon are interfaces (`drivers/usb/core/message.c`, `usb_set_configuration`), which have no devnode.
        """
        for folder in (f"{self.roots.sys}/class/{self.name}", f"{self.roots.sys}/bus/{self.name}/devices"):
            try:
                found = _entries(folder)
            except OSError as error:
                if error.errno == errno.ENOENT and self.name != TTY:
                    continue
                doubts.append(describe(error))
                return None
            self.registrations.folder = folder
            return {name: entry for name, entry in found.items() if ":" not in name} if self.name == USB else found
        return {}


def incomplete_sysfs(roots: Roots, *, tty: Collection[str] | None, bus: bool) -> Iterator[str]:
    """Yield what this sysfs lacks of a complete one, which is masked or foreign then: an absent device proves nothing.

    `tty` are the entries of the class tty, None where that is not scanned: then the kernel's own are followed. `bus` says whether a
    subsystem may be a bus. Raises `OSError`.
    """
    if tty is None:
        tty = [name for name in KERNEL_TTYS if status(f"{roots.sys}/class/tty/{name}") is not None]
    if not set(tty) >= KERNEL_TTYS:
        yield f"{roots.sys}/class/tty lacks the kernel's own tty and console"
    if bus and status(f"{roots.sys}/bus/{_KERNEL_BUS}") is None:
        yield f"{roots.sys}/bus lacks the kernel's own {_KERNEL_BUS}"


def _entries(folder: str) -> dict[str, int]:
    """Return the names in a folder with their inodes. Raises `OSError`."""
    with os.scandir(folder) as entries:
        return {entry.name: entry.inode() for entry in entries}
