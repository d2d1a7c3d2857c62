"""Look at the ttys of this host: enumerated in sysfs, present by `stat`, and never an error taken for an absence."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from devwatch.core.device import Device, by_stability
from devwatch.core.inventory import ARRIVAL_TIMEOUT, Scan

Record = Mapping[str, str]
Stamp = tuple[int, int]
"""What changes whenever udev replaces the file of a record: its inode and the time of its last write in nanoseconds."""

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
_REMEMBERED = 64
"""Paths of devices that have gone at which a directory is looked for; the oldest are forgotten."""
_TEMPORARY = re.compile(r"/\.#[^/]*$|\.tmp-c[0-9]+:[0-9]+$")
"""The links that udevd makes to rename them over others: those of systemd since 251 (`tempfn_random`), and before (`node_symlink`)."""
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
    entry: int
    """The inode of its entry in the class, which the kernel makes for every registration."""
    bare: Device
    typed: bool
    """Whether it is a port of the kernel's serial core, which says by `type` whether there is one."""
    file: str
    """Where udev keeps its record."""
    record: Record | None = None
    stamp: Stamp | None = None
    content: bytes | None = None
    """What the file of the record held when it was read."""
    unrecorded_since: float | None = None
    """When the file of the record was first missed, in seconds; None while it is there or none has been read."""
    device: Device | None = None

    def forget(self) -> None:
        """Have no record of it."""
        self.record = self.stamp = self.content = self.unrecorded_since = None


@dataclass(slots=True, kw_only=True)
class Lister:
    """Lists the present ttys. `record` reads the complete udev record of a sysfs path and answers None where there is none."""

    record: Callable[[str], Record | None]
    roots: Roots = field(default_factory=Roots)
    paths: frozenset[str] = frozenset()
    """Further paths that may be links to a devnode: those that the configuration names."""
    _known: dict[str, _Known] = field(default_factory=dict)
    _dev: tuple[tuple[int, int], bool] | None = None
    _former: dict[int, tuple[int, Stamp]] = field(default_factory=dict)
    """By device number the last registration that has gone and its record, which udevd may not have removed yet."""
    _places: dict[str, None] = field(default_factory=dict)
    """Where devices that have gone had their devnode and links."""
    _blocked: set[str] = field(default_factory=set)
    """Where the present look has found a directory in place of a devnode or link."""

    def scan(self, now: float) -> Scan:
        """Return what is there now. Never raises `OSError`: what cannot be read makes the look uncertain."""
        troubles: tuple[str, ...] = ()
        doubts: list[str] = []
        self._blocked = set()
        try:
            devtmpfs, troubles = self._host()
            entries = _entries(f"{self.roots.sys}/class/tty")
            links = self._links(doubts)
        except OSError as error:
            return Scan(at=now, doubts=(_told(error),), troubles=troubles)
        if not entries.keys() >= KERNEL_TTYS:
            doubts.append(f"{self.roots.sys}/class/tty lacks the kernel's own tty and console")
        found = list(self._devices(entries, links, doubts, now, devtmpfs=devtmpfs))
        for name in self._known.keys() - entries.keys():
            self._depart(self._known.pop(name))
        blocked = self._obstructions()
        return Scan(
            at=now,
            devices=tuple(found),
            doubts=tuple(doubts),
            udevd=self.roots.udevd,
            troubles=(*troubles, *blocked),
            blocked=blocked,
        )

    def _devices(
        self,
        entries: Mapping[str, int],
        links: Mapping[int, list[str]],
        doubts: list[str],
        now: float,
        *,
        devtmpfs: bool,
    ) -> Iterator[Device]:
        for name, entry in entries.items():
            try:
                known = self._current(name, entry)
                device = self._examined(known, links, now, devtmpfs=devtmpfs) if known else None
                if device is not None:
                    yield device
            except OSError as error:
                doubts.append(_told(error))

    def _examined(self, known: _Known, links: Mapping[int, list[str]], now: float, *, devtmpfs: bool) -> Device | None:
        """Return the device of a registration, None where it is not present."""
        held = known.device
        if self._present(known, devtmpfs=devtmpfs):
            device = self._device(known, links.get(known.bare.number, ()), now, devtmpfs=devtmpfs)
            # What is new about it may be that it has gone since: then its links lead nowhere.
            if device is held or self._present(known, devtmpfs=devtmpfs):
                return device
        self._remember(known)
        known.forget()
        known.device = None
        return None

    def _current(self, name: str, entry: int) -> _Known | None:
        """Return what is known of the tty of this name, read now if the kernel has registered it anew; None when it is gone."""
        known = self._known.get(name)
        # Most ttys are virtual consoles, and following an entry is the dearest step of a look. The kernel's own are always followed:
        # where they cannot be, nothing in sysfs can.
        if known is not None and known.entry == entry and known.bare.virtual and name not in KERNEL_TTYS:
            return known
        path = f"{self.roots.sys}/class/tty/{name}"
        try:
            incarnation = os.stat(path).st_ino
        except OSError as error:
            if error.errno in GONE and not os.path.lexists(path):
                return None
            raise
        if known is None or known.incarnation != incarnation:
            if known is not None:
                self._depart(self._known.pop(name))
            known = self._register(name, path, incarnation, entry)
        return known

    def _depart(self, known: _Known) -> None:
        """Remember of a registration that has gone what it may leave behind."""
        if known.stamp is not None:
            self._former[known.bare.number] = (known.incarnation, known.stamp)
        self._remember(known)

    def _remember(self, known: _Known) -> None:
        """Remember where a device was that is not there now."""
        if known.device is None:
            return
        self._places |= dict.fromkeys((known.device.devnode, *known.device.links))
        for path in list(self._places)[:-_REMEMBERED]:
            del self._places[path]

    def _register(self, name: str, path: str, incarnation: int, entry: int) -> _Known | None:
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
        known = _Known(
            incarnation=incarnation,
            entry=entry,
            bare=bare,
            typed=_exists(f"{real}/type"),
            file=f"{self.roots.run}/data/c{os.major(number)}:{os.minor(number)}",
        )
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
            self._note_directory(known.bare.devnode, status)
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

    def _device(self, known: _Known, listed: Sequence[str], now: float, *, devtmpfs: bool) -> Device:
        """Return what is known of a present device now: the very same value where nothing has changed."""
        self._refresh(known, now)
        held, found = known.device, self._leading(known, listed, devtmpfs=devtmpfs)
        if (held is None or held.links != found) and _in_flux(known, now):
            if held is not None and held.complete:
                kept = {link for link in held.links if self._number(link) is None}
                found = tuple(sorted({*found, *kept}, key=by_stability))
            else:
                known.forget()  # what has just been read has gone since: it was of the registration before
                found = self._leading(known, listed, devtmpfs=devtmpfs)
        record, links_known = known.record, devtmpfs or known.record is not None
        if held is None or held.properties is not record or held.links != found or held.links_known != links_known:
            fresh = replace(known.bare, links=found, links_known=links_known)
            held = known.device = fresh if record is None else _with_record(fresh, record)
        return held

    def _leading(self, known: _Known, listed: Sequence[str], *, devtmpfs: bool) -> tuple[str, ...]:
        """Return the links that lead to a device: `listed` ones, and those of its record where they do, the most stable first."""
        claimed = known.record.get("DEVLINKS", "").split() if known.record else ()
        if not claimed and not listed:
            return ()  # as of nearly all virtual consoles
        found = {link for link in claimed if not devtmpfs or self._number(link) == known.bare.number}
        return tuple(sorted({*found, *listed} - {known.bare.devnode}, key=by_stability))

    def _refresh(self, known: _Known, now: float) -> None:
        """Read the udev record again if udev has written it since; the same content again is the same record.

        A record that is no longer to be had still tells the truth about the same registration: ids, serial and socket cannot change.
        """
        stamp = _stamp(known.file)
        if stamp is None:
            if known.record is not None and known.unrecorded_since is None:
                known.unrecorded_since = now
            return
        known.unrecorded_since = None
        if stamp == known.stamp or self._inherited(known, stamp):
            return
        content = _content(known.file)
        same = content is not None and content == known.content
        record = known.record if same else self.record(f"{self.roots.sys}{known.bare.devpath}")
        if record is not None:
            known.record = known.record if record == known.record else record
            known.stamp, known.content = stamp, content

    def _inherited(self, known: _Known, stamp: Stamp) -> bool:
        """Whether this is still the record of the registration that had the device number before.

        udevd removes it when it comes to the removal of that one, which may be well after the kernel has registered the next.
        """
        incarnation, before = self._former.get(known.bare.number, (known.incarnation, stamp))
        return incarnation != known.incarnation and before == stamp

    def _links(self, doubts: list[str]) -> dict[int, list[str]]:
        """Return the links that lead to a device now, by device number: those in /dev/serial and those that the configuration names."""
        links: dict[int, list[str]] = {}
        for path in (*self.paths, *_serial_links(self.roots.dev)):
            try:
                if not _TEMPORARY.search(path) and (number := self._number(path)) is not None:
                    links.setdefault(number, []).append(path)
            except OSError as error:
                doubts.append(_told(error))
        return links

    def _number(self, path: str) -> int | None:
        """Return the device number of the character device that a path leads to, None if to none."""
        try:
            status = os.stat(path)
        except ValueError:
            return None  # no file can have this name
        except OSError as error:
            if error.errno in NOWHERE:
                return None
            raise
        self._note_directory(path, status)
        return status.st_rdev if stat.S_ISCHR(status.st_mode) else None

    def _note_directory(self, path: str, status: os.stat_result) -> None:
        """Note that a directory is where a device or link belongs. A link that leads to one is not in the way."""
        if stat.S_ISDIR(status.st_mode) and not os.path.islink(path):
            self._blocked.add(path)

    def _obstructions(self) -> tuple[str, ...]:
        """Return what to do about each directory in the place of a device or link, also of one that has gone."""
        for path in list(self._places):
            with contextlib.suppress(OSError):  # nothing is there, or nothing that can be told
                if stat.S_ISDIR(os.lstat(path).st_mode):
                    self._blocked.add(path)
                else:
                    del self._places[path]
        return tuple(obstruction(path) for path in sorted(self._blocked))

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
            self._places |= dict.fromkeys(_tty_directories(self.roots.dev))
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


def _in_flux(known: _Known, now: float) -> bool:
    """Whether udevd is about to make the links again, as it does when a device is removed and added again within milliseconds.

    It removes the record before the links, and writes it after them. A record that stays away will bring no links back.
    """
    if known.unrecorded_since is not None:
        return now < known.unrecorded_since + ARRIVAL_TIMEOUT
    return known.record is not None and _stamp(known.file) != known.stamp


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


def _stamp(path: str) -> Stamp | None:
    """Return what changes whenever udev replaces its record (it renames a new file into place), None without one."""
    status = _stat(path)
    return status and (status.st_ino, status.st_mtime_ns)


def _content(path: str) -> bytes | None:
    """Return what a file holds, None where it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return None


def _entries(folder: str) -> dict[str, int]:
    """Return the names in a folder with their inodes. Raises `OSError`."""
    with os.scandir(folder) as entries:
        return {entry.name: entry.inode() for entry in entries}


def _tty_directories(dev: str) -> Iterator[str]:
    """Yield the directories in /dev that are named like a tty; no driver makes one."""
    with contextlib.suppress(OSError), os.scandir(dev) as entries:
        yield from (
            entry.path for entry in entries if entry.name.startswith("tty") and entry.is_dir(follow_symlinks=False)
        )


def obstruction(path: str) -> str:
    """Return what a directory in the place of a device or link means, and what to do."""
    return (
        f"{path}: a directory is in the place of a device or of a link to one: run `rmdir {shlex.quote(path)}` on this host, then plug"
        " the device again. A container that mounts this path was restarted without the device; let it mount /dev instead"
    )


def _serial_links(dev: str) -> Iterable[str]:
    for folder in (f"{dev}/serial/by-id", f"{dev}/serial/by-path"):
        try:
            yield from (f"{folder}/{name}" for name in os.listdir(folder))
        except OSError as error:
            if error.errno not in NOWHERE:
                raise
