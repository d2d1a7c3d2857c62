"""A tty of this host as a value: what can be matched on it, and no way to touch it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

Key = tuple[str, int, int]
"""What tells one registration of a tty with the kernel from every other."""

_DIGITS = re.compile(r"([0-9]+)")


def natural(text: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key by which `ttyUSB2` comes before `ttyUSB10`."""
    return tuple(_rank(part) for part in _DIGITS.split(text))


def _rank(part: str) -> tuple[int, str]:
    """Order digits by their value, however many there are (int() refuses more than 4300), and before them what is no digit."""
    digits = part.lstrip("0")
    return (len(digits), digits) if part.isdecimal() else (-1, part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One devnode of the tty subsystem, as one look found it.

    All strings but `devnode` and `devpath` come from the device or its driver: they are untrusted text. An absent value is None.
    """

    devnode: str
    """The node in /dev, such as `/dev/ttyUSB0`."""
    devpath: str
    """The device in sysfs without the mount point, such as `/devices/pci0000:00/.../ttyUSB0/tty/ttyUSB0`."""
    number: int
    """The device number (`st_rdev`)."""
    incarnation: int
    """The inode of the sysfs directory: another one for every registration of the device with the kernel."""
    physical: str | None = None
    """The nearest sysfs ancestor that holds `idVendor`, None where there is none."""
    vendor: str | None = None
    product: str | None = None
    serial: str | None = None
    interface: str | None = None
    port: str | None = None
    links: tuple[str, ...] = ()
    """The links that lead to the devnode now, the most stable first."""
    links_known: bool = True
    """False where this host cannot tell which links lead here. Even where it is True, those that only a glob names need the record."""
    properties: Mapping[str, str] | None = field(default=None, hash=False)
    """The udev record, None while there is no complete one."""

    @property
    def complete(self) -> bool:
        """Whether udev's rules have run for this device (`is_initialized` of libudev)."""
        return self.properties is not None

    @property
    def key(self) -> Key:
        """What stays the same from the moment the kernel registers the device until it is gone."""
        return (self.devpath, self.number, self.incarnation)

    @property
    def body(self) -> str:
        """What makes two devnodes one physical device."""
        return self.physical or self.devnode

    @property
    def virtual(self) -> bool:
        """Whether no hardware is behind it: virtual consoles and the like."""
        return self.devpath.startswith("/devices/virtual/")

    @property
    def link(self) -> str | None:
        """The most stable link, for others to rely on. None without any, and without a complete record: udev may still change them."""
        return self.links[0] if self.links and self.complete else None


def by_stability(link: str) -> tuple[int, str]:
    """Return a sort key: by-id follows the stick, by-path the socket, other links only their makers."""
    order = ("/dev/serial/by-id/", "/dev/serial/by-path/")
    return next((rank for rank, prefix in enumerate(order) if link.startswith(prefix)), len(order)), link
