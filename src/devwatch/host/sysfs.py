"""The registrations of devices with the kernel: their attributes in sysfs are read once for each."""

from __future__ import annotations

import errno
import math
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from devwatch.core.device import TTY, USB, Device
from devwatch.host.files import GONE, read_attribute, status
from devwatch.host.records import RecordFile

if TYPE_CHECKING:
    from collections.abc import Collection

    from devwatch.host.files import Stamp
    from devwatch.host.mounts import Roots
    from devwatch.host.obstructions import Obstructions

KERNEL_TTYS = frozenset({"tty", "console"})
"""The ttys that every kernel with virtual terminals registers at boot (`drivers/tty/tty_io.c`, `tty_init`)."""
USB_DEVICE = "usb_device"
"""The DEVTYPE of a whole USB device (`drivers/usb/core/usb.c`); its interfaces have another one and no devnode."""
_HUB = "09"
"""The `bDeviceClass` of a hub (USB 2.0 specification, 11.23.1)."""
_CONTROLLERS = frozenset({"pci", "platform"})
"""The subsystems of the ancestors that name the controller of a socket."""
_MAX_DIGITS = 10
"""Digits from which on an index is not plausible: it is a C int."""
_SERIAL_SIZE = 511
"""Bytes of a serial that systemd's usb_id keeps (`UDEV_NAME_SIZE` less the final NUL)."""
_REPLACED_CHARS = re.compile(r"(\\x)|[^0-9A-Za-z#+.:=@_-]")
"""The characters that udev replaces in a device name; it keeps `\\x`, which begins a hexadecimal escape."""


@dataclass(slots=True, kw_only=True)
class Registration:
    """One registration of a device with the kernel. Its attributes in sysfs are read once, its udev record whenever that changes."""

    entry: int
    """The inode of its entry in the folder of the subsystem; the kernel makes a new entry for every registration."""
    bare: Device
    """The device as sysfs alone shows it, without record and links."""
    typed: bool
    """Whether it is a port of the kernel's serial core, whose attribute `type` says whether there is hardware."""
    plain: bool
    """Whether it is virtual, of no hardware and with a devnode in /dev itself, as all virtual consoles are."""
    record: RecordFile
    device: Device | None = None
    """The device as the last scan returned it, None where it was not present."""
    direct: bool = False
    """Whether its devnode is there and not a link, as of the last check of its presence."""
    examined: float = -math.inf
    """When it was last examined and `settled`, in seconds."""

    @property
    def settled(self) -> bool:
        """Whether a present device depends on its entries in sysfs, /dev and udev's database alone, as nearly all virtual consoles do."""
        settled = self.plain and self.record.current and self.direct
        return settled and not (self.record.links or (self.device and self.device.links))


@dataclass(slots=True)
class Registrations:
    """The registrations of the devices of one subsystem by name."""

    subsystem: str
    roots: Roots = field(kw_only=True)
    obstructions: Obstructions = field(kw_only=True)
    folder: str = ""
    """The folder in sysfs that lists them."""
    _known: dict[str, Registration] = field(default_factory=dict)
    _former: dict[int, tuple[int, Stamp]] = field(default_factory=dict)
    """By device number: the last departed registration and the stamp of its record, which udevd may not have removed yet."""

    def find(self, name: str, entry: int) -> Registration | None:
        """Return the registration of the device of this name, read now if it is a new one; None without a devnode. Raises `OSError`.

        A name may be used again between two scans. The inode of the sysfs directory tells whether it is the same registration, but
        following the entry to it is the most expensive step of a scan, and most ttys are virtual consoles: for those, and for other
        virtual devices, the inode of the entry itself is enough. The kernel's own ttys are always followed: where that fails, nothing in
        sysfs can be followed.

        An entry that cannot be followed is gone if the entry itself has vanished as well; one that is still there is an error.
        """
        known = self._known.get(name)
        if known is not None and known.plain and known.entry == entry and name not in KERNEL_TTYS:
            return known
        path = f"{self.folder}/{name}"
        try:
            incarnation = os.stat(path).st_ino
        except OSError as error:
            if error.errno in GONE and not os.path.lexists(path):
                return None
            raise
        if known is None or known.bare.incarnation != incarnation:
            if known is not None:
                self._depart(name)
            known = self._register(name, path, incarnation, entry)
        return known

    def keep(self, names: Collection[str]) -> None:
        """Drop the registrations of all other names."""
        for name in self._known.keys() - names:
            self._depart(name)

    def _depart(self, name: str) -> None:
        """Drop a registration, and remember what it may leave behind: its udev record and its paths."""
        known = self._known.pop(name)
        if known.record.stamp is not None:
            self._former[known.bare.number] = (known.bare.incarnation, known.record.stamp)
        if known.device is not None:
            self.obstructions.suspect((known.device.devnode, *known.device.links))

    def _register(self, name: str, path: str, incarnation: int, entry: int) -> Registration | None:
        if self.subsystem != TTY and status(f"{path}/dev") is None:
            return None  # as most entries of some classes, such as the outputs of a graphics card
        real = os.path.realpath(path)
        number = _read_device_number(f"{real}/dev")
        if number is None:
            # Being added or removed: the kernel adds `dev` last and removes it first (device_add, device_del).
            return None
        bare = self._read_device(name, real, number, incarnation)
        if bare is None:
            return None
        former, left = self._former.get(number, (incarnation, None))
        typed = self.subsystem == TTY and status(f"{real}/type") is not None
        known = self._known[name] = Registration(
            entry=entry,
            bare=bare,
            typed=typed,
            plain=bare.virtual and not typed and os.path.dirname(bare.devnode) == self.roots.dev,
            record=RecordFile(
                path=f"{self.roots.run}/data/c{os.major(number)}:{os.minor(number)}",
                inherited=None if former == incarnation else left,
            ),
        )
        return known

    def _read_device(self, name: str, real: str, number: int, incarnation: int) -> Device | None:
        """Return the device at a real path in sysfs, None for a part of a USB device, which the bus usb lists beside the whole ones."""
        top = os.path.realpath(self.roots.sys)
        uevent = {} if self.subsystem == TTY else _read_uevent(real)
        if self.subsystem == USB and uevent.get("DEVTYPE") != USB_DEVICE:
            return None
        body, interface = _ancestor_with(real, top, "idVendor"), _ancestor_with(real, top, "bInterfaceNumber")
        return Device(
            devnode=f"{self.roots.dev}/{uevent.get('DEVNAME') or name.replace('!', '/')}",
            devpath=real.removeprefix(top),
            number=number,
            incarnation=incarnation,
            subsystem=self.subsystem,
            hub=self.subsystem == USB and _attribute_text(real, "bDeviceClass") == _HUB,
            index=0 if self.subsystem == TTY else _read_index(real),
            physical=body and body.removeprefix(top),
            vendor=_attribute_text(body, "idVendor"),
            product=_attribute_text(body, "idProduct"),
            serial=normal_serial(read_attribute(f"{body}/serial") or b"") if body else None,
            interface=_attribute_text(interface, "bInterfaceNumber"),
            port=None if self.subsystem == TTY or body is None else _socket_of(real, top),
        )


def normal_serial(raw: bytes) -> str | None:
    """Normalise a serial as udev stores it in ID_SERIAL_SHORT; return None where udev drops it.

    In udev's order: line ends at the end are cut off, as of every attribute (`sd_device_get_sysattr_value`); control characters,
    non-ASCII characters and commas make udev drop the serial; white space is trimmed and becomes `_`; so does each character that a
    device name may not hold (systemd, `udev-builtin-usb_id.c`; `udev-util.c`, `udev_replace_whitespace`, `udev_replace_chars`).
    """
    raw = raw.rstrip(b"\r\n")
    if any(byte < 0x20 or byte > 0x7F or byte == ord(",") for byte in raw):  # noqa: PLR2004 - the bounds of usb_id
        return None
    joined = "_".join(raw[:_SERIAL_SIZE].decode("ascii").split())
    return _REPLACED_CHARS.sub(lambda found: found[1] or "_", joined) or None


def _ancestor_with(path: str, top: str, attribute: str) -> str | None:
    """Return the nearest ancestor below `top`, or the path itself, that has this attribute."""
    while len(path) > len(top):
        if status(f"{path}/{attribute}") is not None:
            return path
        path = os.path.dirname(path)
    return None


def _read_device_number(path: str) -> int | None:
    """Return the device number in a `dev` attribute, None where there is none. Raises `OSError`, also for malformed content."""
    text = read_attribute(path)
    if not text:
        return None
    try:
        return os.makedev(*map(int, text.split(b":")))
    except (ValueError, TypeError, OverflowError) as error:
        raise OSError(errno.EINVAL, "no device number", path) from error


def _read_uevent(path: str) -> dict[str, str]:
    """Return what the kernel reports of a device in its uevents: DEVNAME, the path of its devnode below /dev, and DEVTYPE."""
    text = (read_attribute(f"{path}/uevent") or b"").decode("utf-8", "surrogateescape")
    return {name: value for name, equals, value in (line.partition("=") for line in text.splitlines()) if equals}


def _read_index(path: str) -> int:
    text = _attribute_text(path, "index") or ""
    return int(text) if text.isdecimal() and len(text) < _MAX_DIGITS else 0


def _socket_of(path: str, top: str) -> str | None:
    """Return the physical socket of a USB device or of a part of it, None where nothing tells it.

    As udev's builtin `path_id` writes ID_PATH (systemd, `udev-builtin-path_id.c`): of neighbouring ancestors of one subsystem the nearest
    counts. udev's rules run it for ttys and cameras, and neither for whole USB devices nor for hidraw.
    """
    parts: list[str] = []
    before = ""
    while len(path) > len(top):
        kind, name = _subsystem_at(path), os.path.basename(path)
        ports = name.partition("-")[2]
        if kind == USB and before != USB and ports:  # a root hub is in no port
            parts.append(f"usb-0:{ports}")
        elif kind in _CONTROLLERS and kind != before:
            parts.append(f"{kind}-{name}")
        path, before = os.path.dirname(path), kind
    return "-".join(reversed(parts)) or None


def _subsystem_at(path: str) -> str:
    """Return the subsystem of a device in sysfs, empty where there is none. Raises `OSError`."""
    try:
        return os.path.basename(os.readlink(f"{path}/subsystem"))
    except OSError as error:
        if error.errno in GONE:
            return ""
        raise


def _attribute_text(folder: str | None, attribute: str) -> str | None:
    raw = read_attribute(f"{folder}/{attribute}") if folder else None
    return raw.decode("ascii", "replace").strip().lower() if raw else None
