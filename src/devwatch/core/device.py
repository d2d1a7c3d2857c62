"""A device of this host as a value: everything that can be matched on it. Nothing here opens the device."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

Key = tuple[str, int, int]
"""Devpath, device number and sysfs inode: unique for each registration of a device with the kernel."""

TTY, USB = "tty", "usb"
"""The subsystem of a resource that names none, and the one of whole USB devices."""
_DIGITS = re.compile(r"([0-9]+)")


def natural(text: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key by which `ttyUSB2` comes before `ttyUSB10`."""
    return tuple(_rank(part) for part in _DIGITS.split(text))


def _rank(part: str) -> tuple[int, str]:
    """Order digits by value, and other text before digits. The value is not computed: int() refuses more than 4300 digits."""
    digits = part.lstrip("0")
    return (len(digits), digits) if part.isdecimal() else (-1, part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One devnode of a udev subsystem, as one scan found it.

    All strings except `devnode` and `devpath` come from the device or its driver and are untrusted. An absent value is None.
    """

    devnode: str
    """The node in /dev, such as `/dev/ttyUSB0`."""
    devpath: str
    """The device in sysfs without the mount point, such as `/devices/pci0000:00/.../ttyUSB0/tty/ttyUSB0`."""
    number: int
    """The device number (`st_rdev`)."""
    incarnation: int
    """The inode of the sysfs directory, which differs for every registration of the device with the kernel."""
    subsystem: str = TTY
    """The udev subsystem; `usb` stands for a whole USB device (`DEVTYPE=usb_device`), the others for a part of a device."""
    hub: bool = False
    """Whether it is a whole USB device that is a hub."""
    index: int = 0
    """The `index` attribute in sysfs, which numbers the devnodes of one video4linux device; 0 where there is none."""
    physical: str | None = None
    """The nearest sysfs ancestor with an `idVendor` attribute, None where there is none."""
    vendor: str | None = None
    product: str | None = None
    serial: str | None = None
    interface: str | None = None
    port: str | None = None
    links: tuple[str, ...] = ()
    """The links that lead to the devnode now, the most stable one first (`by_stability`)."""
    links_known: bool = True
    """False where this host cannot determine the links. Even where True, links that only a glob matches need the udev record."""
    properties: Mapping[str, str] | None = None
    """The udev record, None until it is complete."""

    def __hash__(self) -> int:
        """Return the hash of what differs for nearly all devices; it is asked for hundreds of times in a cycle of the loop."""
        return hash(self.devpath)

    @property
    def complete(self) -> bool:
        """Whether udev's rules have run for this device (`is_initialized` of libudev)."""
        return self.properties is not None

    @property
    def key(self) -> Key:
        """The identity of this registration, from the moment the kernel registers the device until it removes it."""
        return (self.devpath, self.number, self.incarnation)

    @property
    def body(self) -> str:
        """The physical device: two devnodes with the same value belong to one device."""
        return self.physical or self.devnode

    @property
    def virtual(self) -> bool:
        """Whether there is no hardware behind it, as with virtual consoles."""
        return self.devpath.startswith("/devices/virtual/")

    @property
    def link(self) -> str | None:
        """The most stable link, to be published. None without a link, and until the record is complete: udev may still change the links."""
        return self.links[0] if self.links and self.complete else None


def by_stability(link: str) -> tuple[int, str]:
    """Return a sort key: by-id links (which follow the device), then by-path links (the socket), then all others by name."""
    order = ("/by-id/", "/by-path/")
    return next((rank for rank, folder in enumerate(order) if folder in link), len(order)), link
