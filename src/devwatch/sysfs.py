"""Look at the ttys of this host: enumerated in sysfs, present by `stat`, and never an error taken for an absence."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from devwatch.device import Device, by_stability
from devwatch.inventory import Look

Record = Mapping[str, str]

GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})
"""What the kernel answers about a device that is not there; any other error says nothing about presence."""
NOWHERE = GONE | {errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
"""What it answers about a path that leads nowhere."""
KERNEL_TTYS = frozenset({"tty", "console"})
"""The ttys that every kernel with virtual terminals registers at boot (`drivers/tty/tty_io.c`, `tty_init`)."""
_ATTRIBUTE_SIZE = 4096
"""The size of a sysfs attribute, one page (sysfs(5))."""
_SERIAL_SIZE = 511
"""What systemd's usb_id keeps of a serial (`UDEV_NAME_SIZE` less the final NUL)."""
_UNFIT = re.compile(r"(\\x)|[^0-9A-Za-z#+.:=@_-]")
"""What a device name may not hold; udev lets the two signs that begin a hexadecimal escape pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """Where the host's file systems are mounted."""

    sys: str = "/sys"
    dev: str = "/dev"
    run: str = "/run/udev"
    mountinfo: str = "/proc/self/mountinfo"

    @property
    def udevd(self) -> bool:
        """Whether udevd has been started, as far as can be told: libudev asks the same way (`udev_monitor_new_from_netlink`)."""
        return os.path.exists(f"{self.run}/control")


def normal_serial(raw: bytes) -> str | None:
    """Return a serial as udev stores it in ID_SERIAL_SHORT, None where udev drops it.

    Control and non-ASCII characters and commas make udev drop it; white space is trimmed and becomes `_`, as does what a device name
    may not hold (systemd, `udev-builtin-usb_id.c`; `udev-util.c`, `udev_replace_whitespace`, `udev_replace_chars`). The line ends
    that libudev cuts off every attribute do not count (`sd_device_get_sysattr_value`).
    """
    raw = raw.rstrip(b"\r\n")
    if any(byte < 0x20 or byte > 0x7F or byte == ord(",") for byte in raw):  # noqa: PLR2004 - the bounds of usb_id
        return None
    joined = "_".join(raw[:_SERIAL_SIZE].decode("ascii").split())
    return _UNFIT.sub(lambda found: found[1] or "_", joined) or None


@dataclass(slots=True, kw_only=True)
class _Known:
    """What was read of one registration of a tty with the kernel; it is read once."""

    incarnation: int
    bare: Device
    typed: bool
    """Whether it is a port of the kernel's serial core, which says by `type` whether there is one."""
    record: Record | None = None
    stamp: tuple[int, int] | None = None
    device: Device | None = None


@dataclass(slots=True, kw_only=True)
class Lister:
    """Lists the present ttys. `record` reads the complete udev record of a sysfs path and answers None where there is none."""

    record: Callable[[str], Record | None]
    roots: Roots = field(default_factory=Roots)
    paths: frozenset[str] = frozenset()
    """Further paths that may be links to a devnode: those that the configuration names."""
    _known: dict[str, _Known] = field(default_factory=dict)
    _dev: tuple[tuple[int, int], bool] | None = None

    def look(self, now: float) -> Look:
        """Return what is there now. Never raises `OSError`: what cannot be read makes the look uncertain."""
        troubles: tuple[str, ...] = ()
        doubts: list[str] = []
        try:
            devtmpfs, troubles = self._host()
            names = os.listdir(f"{self.roots.sys}/class/tty")
            links = self._links(doubts)
        except OSError as error:
            return Look(at=now, doubts=(_told(error),), troubles=troubles)
        if not set(names) >= KERNEL_TTYS:
            doubts.append(f"{self.roots.sys}/class/tty lacks the kernel's own tty and console")
        found = list(self._devices(names, links, doubts, devtmpfs=devtmpfs))
        self._known = {name: self._known[name] for name in names if name in self._known}
        return Look(at=now, devices=tuple(found), doubts=tuple(doubts), udevd=self.roots.udevd, troubles=troubles)

    def _devices(
        self, names: list[str], links: Mapping[int, list[str]], doubts: list[str], *, devtmpfs: bool
    ) -> Iterator[Device]:
        for name in names:
            try:
                known = self._current(name)
                if known is None:
                    continue
                if self._present(known, devtmpfs=devtmpfs):
                    yield self._device(known, links, devtmpfs=devtmpfs)
                else:
                    known.record = known.stamp = None
            except OSError as error:
                doubts.append(_told(error))

    def _current(self, name: str) -> _Known | None:
        """Return what is known of the tty of this name, read now if the kernel has registered it anew; None when it is gone."""
        path = f"{self.roots.sys}/class/tty/{name}"
        try:
            incarnation = os.stat(path).st_ino
        except OSError as error:
            if error.errno in GONE and not os.path.lexists(path):
                return None
            raise
        known = self._known.get(name)
        if known is None or known.incarnation != incarnation:
            known = self._register(name, path, incarnation)
        return known

    def _register(self, name: str, path: str, incarnation: int) -> _Known | None:
        real = os.path.realpath(path)
        number = _announced(f"{real}/dev")
        if number is None:
            return None  # it is coming or going: the kernel adds the number last and removes it first (device_add, device_del)
        body = self._ancestor(real, "idVendor")
        face = self._ancestor(real, "bInterfaceNumber")
        bare = Device(
            devnode=f"{self.roots.dev}/{name.replace('!', '/')}",
            devpath=real.removeprefix(os.path.realpath(self.roots.sys)),
            number=number,
            incarnation=incarnation,
            physical=body and body.removeprefix(os.path.realpath(self.roots.sys)),
            vendor=_text(body, "idVendor"),
            product=_text(body, "idProduct"),
            serial=normal_serial(_optional(f"{body}/serial") or b"") if body else None,
            interface=_text(face, "bInterfaceNumber"),
        )
        known = _Known(incarnation=incarnation, bare=bare, typed=_exists(f"{real}/type"))
        self._known[name] = known
        return known

    def _ancestor(self, path: str, attribute: str) -> str | None:
        top = os.path.realpath(self.roots.sys)
        while len(path) > len(top):
            if _exists(f"{path}/{attribute}"):
                return path
            path = os.path.dirname(path)
        return None

    def _present(self, known: _Known, *, devtmpfs: bool) -> bool:
        """Whether the devnode is the character device that sysfs announces, and a port is behind it."""
        try:
            status = os.stat(known.bare.devnode)
            here = stat.S_ISCHR(status.st_mode) and status.st_rdev == known.bare.number
        except OSError as error:
            if error.errno not in GONE:
                raise
            # Where nobody makes the nodes, enumerated is present.
            here = error.errno == errno.ENOENT and not devtmpfs
        return here and not (known.typed and self._no_port(known.bare))

    def _no_port(self, device: Device) -> bool:
        """Whether the 8250 driver offers a port that does not exist (`PORT_UNKNOWN`, include/uapi/linux/serial.h)."""
        try:
            return (_optional(f"{self.roots.sys}{device.devpath}/type") or b"0").strip() == b"0"
        except PermissionError:
            return False  # some kernels show the type to root alone: then the devnode speaks for the port

    def _device(self, known: _Known, links: Mapping[int, list[str]], *, devtmpfs: bool) -> Device:
        self._refresh(known)
        record, bare = known.record, known.bare
        claimed = () if record is None else record.get("DEVLINKS", "").split()
        leading = tuple(link for link in claimed if not devtmpfs or _number(link) == bare.number)
        found = tuple(sorted({*leading, *links.get(bare.number, ())} - {bare.devnode}, key=by_stability))
        links_known = devtmpfs or record is not None
        held = known.device
        if held is None or held.properties is not record or (held.links, held.links_known) != (found, links_known):
            fresh = replace(bare, links=found, links_known=links_known)
            held = known.device = fresh if record is None else _with_record(fresh, record)
        return held

    def _refresh(self, known: _Known) -> None:
        """Read the udev record again if udev has written it since.

        A record that is no longer to be had still tells the truth about the same registration: ids, serial and socket cannot change.
        """
        device = known.bare
        stamp = _stamp(f"{self.roots.run}/data/c{os.major(device.number)}:{os.minor(device.number)}")
        if stamp is None or stamp == known.stamp:
            return
        record = self.record(f"{self.roots.sys}{device.devpath}")
        if record is not None:
            known.record, known.stamp = record, stamp

    def _links(self, doubts: list[str]) -> dict[int, list[str]]:
        """Return the links that lead to a device now, by device number: those in /dev/serial and those that the configuration names."""
        links: dict[int, list[str]] = {}
        for path in (*self.paths, *_serial_links(self.roots.dev)):
            try:
                if (number := _number(path)) is not None:
                    links.setdefault(number, []).append(path)
            except OSError as error:
                doubts.append(_told(error))
        return links

    def _host(self) -> tuple[bool, tuple[str, ...]]:
        """Return whether /dev is the kernel's own, and what is missing on this host, each with what to do."""
        devtmpfs, troubles = self._devtmpfs(), []
        if not devtmpfs:
            troubles.append(
                f"{self.roots.dev} is no devtmpfs: mount the host's /dev, else a device counts as long as sysfs lists it"
            )
        if not self.roots.udevd:
            troubles.append(
                f"there is no udevd in {self.roots.run}: start it or mount the host's whole /run/udev; port and properties are unknown"
            )
        return devtmpfs, tuple(troubles)

    def _devtmpfs(self) -> bool:
        status = _stat(self.roots.dev)
        mounted = (status.st_dev, status.st_ino) if status else (0, 0)
        # The mount table of a busy node is long: read it when /dev has changed.
        if self._dev is None or self._dev[0] != mounted:
            self._dev = (mounted, is_devtmpfs(self.roots))
        return self._dev[1]


def is_devtmpfs(roots: Roots) -> bool:
    """Return whether the kernel itself makes and removes the nodes in /dev (proc_pid_mountinfo(5)); the last mount on it counts.

    False where there is no mount table. Raises `OSError` where it cannot be read.
    """
    try:
        with open(roots.mountinfo, encoding="utf-8", errors="surrogateescape", newline="\n") as table:
            mounts = [line.partition(" - ") for line in table]
    except FileNotFoundError:
        return False
    kinds = [source.split()[0] for mount, _, source in mounts if mount.split()[4:5] == [roots.dev]]
    return kinds[-1:] == ["devtmpfs"]


def _with_record(device: Device, record: Record) -> Device:
    return replace(
        device,
        properties=record,
        vendor=_id(record.get("ID_VENDOR_ID")),
        product=_id(record.get("ID_MODEL_ID")),
        serial=record.get("ID_SERIAL_SHORT"),
        interface=_lower(record.get("ID_USB_INTERFACE_NUM")),
        port=record.get("ID_PATH"),
    )


def _id(text: str | None) -> str | None:
    """Return the digits alone: udev copies the ids of a PCI card from sysfs, where they are `0x8086` (rules.d/60-serial.rules)."""
    return text.lower().removeprefix("0x") if text else text


def _lower(text: str | None) -> str | None:
    return text.lower() if text else text


def _told(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _optional(path: str) -> bytes | None:
    """Return an attribute, None where it or its device is not there."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(_ATTRIBUTE_SIZE)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


def _announced(path: str) -> int | None:
    """Return the device number that sysfs announces, None where there is none."""
    text = _optional(path)
    if not text:
        return None
    try:
        return os.makedev(*map(int, text.split(b":")))
    except (ValueError, TypeError, OverflowError) as error:
        raise OSError(errno.EINVAL, "no device number", path) from error


def _text(folder: str | None, attribute: str) -> str | None:
    raw = _optional(f"{folder}/{attribute}") if folder else None
    return raw.decode("ascii", "replace").strip().lower() if raw else None


def _stat(path: str) -> os.stat_result | None:
    """Return what `stat` says, None where nothing is there."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


def _exists(path: str) -> bool:
    return _stat(path) is not None


def _stamp(path: str) -> tuple[int, int] | None:
    """Return what changes whenever udev replaces its record (it renames a new file into place), None without one."""
    status = _stat(path)
    return status and (status.st_ino, status.st_mtime_ns)


def _number(path: str) -> int | None:
    """Return the device number of the character device that a path leads to, None if to none."""
    try:
        status = os.stat(path)
    except ValueError:
        return None  # no file can have this name
    except OSError as error:
        if error.errno in NOWHERE:
            return None
        raise
    return status.st_rdev if stat.S_ISCHR(status.st_mode) else None


def _serial_links(dev: str) -> Iterable[str]:
    for folder in (f"{dev}/serial/by-id", f"{dev}/serial/by-path"):
        try:
            yield from (f"{folder}/{name}" for name in os.listdir(folder))
        except OSError as error:
            if error.errno not in NOWHERE:
                raise
