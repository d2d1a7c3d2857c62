"""Scan the ttys of this host: enumerate them in sysfs, check their presence by `stat`, and never take an error for an absence."""

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
"""Inode and last write (in nanoseconds) of the file of a udev record; another pair whenever udev replaces the file."""

GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})
"""The errors of the kernel for a device that is not there; any other error proves neither presence nor absence."""
NOWHERE = GONE | {errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
"""The errors of the kernel for a path that leads nowhere."""
KERNEL_TTYS = frozenset({"tty", "console"})
"""The ttys that every kernel with virtual terminals registers at boot (`drivers/tty/tty_io.c`, `tty_init`)."""
_ATTRIBUTE_SIZE = 4096
"""Bytes of a sysfs attribute at most, one page (sysfs(5))."""
_SERIAL_SIZE = 511
"""Bytes of a serial that systemd's usb_id keeps (`UDEV_NAME_SIZE` less the final NUL)."""
_MAX_FORMER_PATHS = 64
"""Paths of departed devices that are checked for a directory in their place; the oldest are dropped."""
_TEMPORARY_LINK = re.compile(r"/\.#[^/]*$|\.tmp-c[0-9]+:[0-9]+$")
"""Links that udevd makes only to rename them over others: since systemd 251 (`tempfn_random`), and before (`node_symlink`)."""
_REPLACED_CHARS = re.compile(r"(\\x)|[^0-9A-Za-z#+.:=@_-]")
"""The characters that udev replaces in a device name; it keeps `\\x`, which begins a hexadecimal escape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """Where the host's file systems are mounted."""

    sys: str = "/sys"
    dev: str = "/dev"
    run: str = "/run/udev"
    mountinfo: str = "/proc/self/mountinfo"

    @property
    def udevd(self) -> bool:
        """Whether udevd has been started, by the test that libudev uses (`udev_monitor_new_from_netlink`)."""
        return os.path.exists(f"{self.run}/control")


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


@dataclass(slots=True, kw_only=True)
class _Registration:
    """One registration of a tty with the kernel. Its attributes in sysfs are read once, its udev record whenever that changes."""

    incarnation: int
    """The inode of its sysfs directory."""
    entry: int
    """The inode of its entry in /sys/class/tty; the kernel makes a new entry for every registration."""
    bare: Device
    """The device as sysfs alone shows it, without record and links."""
    typed: bool
    """Whether it is a port of the kernel's serial core, whose attribute `type` says whether there is hardware."""
    record_path: str
    """The file in which udev keeps its record."""
    record: Record | None = None
    stamp: Stamp | None = None
    content: bytes | None = None
    """The content of the record's file when the record was read."""
    unrecorded_since: float | None = None
    """When the record's file was first found missing, in seconds; None while it is there, or if none was ever read."""
    device: Device | None = None
    """The device as the last scan returned it."""

    def drop_record(self) -> None:
        """Forget the udev record, so that the next scan reads it again."""
        self.record = self.stamp = self.content = self.unrecorded_since = None


@dataclass(slots=True, kw_only=True)
class Lister:
    """Lists the present ttys. `record` reads the complete udev record of a sysfs path and returns None where there is none.

    An error is never an absence. A tty is missing from a scan only if the kernel says so: no entry in /sys/class/tty, an errno of
    `GONE`, another device under its devnode, or an 8250 port without hardware. Any other error becomes a doubt, which makes the scan
    uncertain, and an uncertain scan lowers no count.
    """

    record: Callable[[str], Record | None]
    roots: Roots = field(default_factory=Roots)
    paths: frozenset[str] = frozenset()
    """Further paths that may be links to a devnode: those that the configuration names."""
    _known: dict[str, _Registration] = field(default_factory=dict)
    """The registrations by name."""
    _dev: tuple[tuple[int, int], bool] | None = None
    """Device and inode of /dev at the last check, and whether it was a devtmpfs."""
    _former: dict[int, tuple[int, Stamp]] = field(default_factory=dict)
    """By device number: the last departed registration and the stamp of its record, which udevd may not have removed yet."""
    _former_paths: dict[str, None] = field(default_factory=dict)
    """The devnodes and links of departed devices, oldest first."""
    _blocked: set[str] = field(default_factory=set)
    """The devnodes and links in whose place this scan has found a directory."""

    def scan(self, now: float) -> Scan:
        """Return the ttys that are present now. Never raises `OSError`: an error of one tty is a doubt, and the others are still scanned.

        Without /dev, /sys/class/tty or the listing of links there is nothing to scan: the scan has no device, and a doubt. A class
        without the kernel's own ttys is not complete (a masked or foreign /sys), which no error reports.
        """
        troubles: tuple[str, ...] = ()
        doubts: list[str] = []
        self._blocked = set()
        try:
            devtmpfs, troubles = self._host()
            entries = _entries(f"{self.roots.sys}/class/tty")
            links = self._links(doubts)
        except OSError as error:
            return Scan(at=now, doubts=(_describe_os_error(error),), troubles=troubles)
        if not entries.keys() >= KERNEL_TTYS:
            doubts.append(f"{self.roots.sys}/class/tty lacks the kernel's own tty and console")
        found = list(self._devices(entries, links, doubts, now, devtmpfs=devtmpfs))
        for name in self._known.keys() - entries.keys():
            self._note_departure(self._known.pop(name))
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
                known = self._registration(name, entry)
                device = self._present_device(known, links, now, devtmpfs=devtmpfs) if known else None
                if device is not None:
                    yield device
            except OSError as error:
                doubts.append(_describe_os_error(error))

    def _present_device(
        self, known: _Registration, links: Mapping[int, list[str]], now: float, *, devtmpfs: bool
    ) -> Device | None:
        """Return the device of a registration, None where it is not present.

        Presence is checked again after a change: if the device has departed while its record and links were read, the change may be
        that its links lead nowhere by now, and the device must not be reported without them.
        """
        before = known.device
        if self._present(known, devtmpfs=devtmpfs):
            device = self._device(known, links.get(known.bare.number, ()), now, devtmpfs=devtmpfs)
            if device is before or self._present(known, devtmpfs=devtmpfs):
                return device
        self._remember_paths(known)
        known.drop_record()
        known.device = None
        return None

    def _registration(self, name: str, entry: int) -> _Registration | None:
        """Return the registration of the tty of this name, read now if it is a new one; None when the tty is gone.

        A name may be used again between two scans. The inode of the sysfs directory tells whether it is the same registration, but
        following the entry to it is the most expensive step of a scan, and most ttys are virtual consoles: for those the inode of the
        entry itself is enough. The kernel's own ttys are always followed: where that fails, nothing in sysfs can be followed.

        An entry that cannot be followed is gone if the entry itself has vanished as well; one that is still there is an error.
        """
        known = self._known.get(name)
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
                self._note_departure(self._known.pop(name))
            known = self._register(name, path, incarnation, entry)
        return known

    def _note_departure(self, known: _Registration) -> None:
        """Remember what a departed registration may leave behind: its udev record and its paths."""
        if known.stamp is not None:
            self._former[known.bare.number] = (known.incarnation, known.stamp)
        self._remember_paths(known)

    def _remember_paths(self, known: _Registration) -> None:
        """Remember the devnode and links of a device that is not present any more."""
        if known.device is None:
            return
        self._former_paths |= dict.fromkeys((known.device.devnode, *known.device.links))
        for path in list(self._former_paths)[:-_MAX_FORMER_PATHS]:
            del self._former_paths[path]

    def _register(self, name: str, path: str, incarnation: int, entry: int) -> _Registration | None:
        real = os.path.realpath(path)
        number = _read_device_number(f"{real}/dev")
        if number is None:
            return (
                None  # being added or removed: the kernel adds `dev` last and removes it first (device_add, device_del)
            )
        body = self._ancestor_with(real, "idVendor")
        interface = self._ancestor_with(real, "bInterfaceNumber")
        bare = Device(
            devnode=f"{self.roots.dev}/{name.replace('!', '/')}",
            devpath=real.removeprefix(os.path.realpath(self.roots.sys)),
            number=number,
            incarnation=incarnation,
            physical=body and body.removeprefix(os.path.realpath(self.roots.sys)),
            vendor=_attribute_text(body, "idVendor"),
            product=_attribute_text(body, "idProduct"),
            serial=normal_serial(_read_attribute(f"{body}/serial") or b"") if body else None,
            interface=_attribute_text(interface, "bInterfaceNumber"),
        )
        known = _Registration(
            incarnation=incarnation,
            entry=entry,
            bare=bare,
            typed=_exists(f"{real}/type"),
            record_path=f"{self.roots.run}/data/c{os.major(number)}:{os.minor(number)}",
        )
        self._known[name] = known
        return known

    def _ancestor_with(self, path: str, attribute: str) -> str | None:
        """Return the nearest ancestor in sysfs, or the path itself, that has this attribute."""
        top = os.path.realpath(self.roots.sys)
        while len(path) > len(top):
            if _exists(f"{path}/{attribute}"):
                return path
            path = os.path.dirname(path)
        return None

    def _present(self, known: _Registration, *, devtmpfs: bool) -> bool:
        """Return whether the devnode is the character device that sysfs announces, and a port is behind it.

        An entry in sysfs is not enough: the kernel removes it a moment after the devnode. Another file under the devnode (a directory that
        a container runtime made, or the device of the next registration) is an absence too. Where /dev is not a devtmpfs, a missing
        devnode proves nothing, since no kernel makes or removes it there: then the entry counts. An error outside `GONE` is raised and
        becomes a doubt.
        """
        try:
            status = os.stat(known.bare.devnode)
            here = stat.S_ISCHR(status.st_mode) and status.st_rdev == known.bare.number
            self._note_directory(known.bare.devnode, status)
        except OSError as error:
            if error.errno not in GONE:
                raise
            here = error.errno == errno.ENOENT and not devtmpfs
        return here and not (known.typed and self._has_no_hardware(known.bare))

    def _has_no_hardware(self, device: Device) -> bool:
        """Return whether the 8250 driver offers a port that does not exist (`PORT_UNKNOWN`, include/uapi/linux/serial.h)."""
        try:
            return (_read_attribute(f"{self.roots.sys}{device.devpath}/type") or b"0").strip() == b"0"
        except PermissionError:
            return False  # some kernels show the type to root alone: then the devnode is enough

    def _device(self, known: _Registration, listed: Sequence[str], now: float, *, devtmpfs: bool) -> Device:
        """Return the present device with its record and links; the identical object where nothing has changed.

        A stick that resets is removed and added within milliseconds: udevd removes the old record, then the old links, and writes
        the new links, then the new record. A scan in between (`_in_flux`) finds links missing that will be back. Two cases:

        - A complete device keeps the links that lead nowhere now, or a resource that matches by path would lose it for a moment. A link
          that leads to another device by now is not kept.
        - A device that has no complete record yet must not take the record that was just read: it is that of the registration before.
        """
        self._refresh(known, now)
        before, found = known.device, self._links_to(known, listed, devtmpfs=devtmpfs)
        if (before is None or before.links != found) and _in_flux(known, now):
            if before is not None and before.complete:
                dangling = {link for link in before.links if self._device_number(link) is None}
                found = tuple(sorted({*found, *dangling}, key=by_stability))
            else:
                known.drop_record()
                found = self._links_to(known, listed, devtmpfs=devtmpfs)
        record, links_known = known.record, devtmpfs or known.record is not None
        if (
            before is None
            or before.properties is not record
            or before.links != found
            or before.links_known != links_known
        ):
            fresh = replace(known.bare, links=found, links_known=links_known)
            known.device = fresh if record is None else _with_record(fresh, record)
            return known.device
        return before

    def _links_to(self, known: _Registration, listed: Sequence[str], *, devtmpfs: bool) -> tuple[str, ...]:
        """Return the links to a device, the most stable first: the `listed` ones, and those of its record that lead to it now.

        Where /dev is not a devtmpfs, links cannot be followed to a device number, and the record is trusted.
        """
        recorded = known.record.get("DEVLINKS", "").split() if known.record else ()
        if not recorded and not listed:
            return ()  # nearly all virtual consoles: spare them the sort
        found = {link for link in recorded if not devtmpfs or self._device_number(link) == known.bare.number}
        return tuple(sorted({*found, *listed} - {known.bare.devnode}, key=by_stability))

    def _refresh(self, known: _Registration, now: float) -> None:
        """Read the udev record again if udev has written its file since.

        The cases, in this order:

        - The file is missing: keep the record. Vendor, product, serial and socket of one registration cannot change, and udevd may be
          about to write the record again.
        - The stamp is unchanged: keep the record, without reading.
        - The stamp is that of the former registration of this device number: ignore it, see `_inherited`.
        - The same content in a new file: keep the identical record, so that the device is not seen as changed.
        - libudev finds no complete record: udevd has not finished. Keep what is known, and try again at the next scan.
        """
        stamp = _stamp(known.record_path)
        if stamp is None:
            if known.record is not None and known.unrecorded_since is None:
                known.unrecorded_since = now
            return
        known.unrecorded_since = None
        if stamp == known.stamp or self._inherited(known, stamp):
            return
        content = _read_content(known.record_path)
        same = content is not None and content == known.content
        record = known.record if same else self.record(f"{self.roots.sys}{known.bare.devpath}")
        if record is not None:
            known.record = known.record if record == known.record else record
            known.stamp, known.content = stamp, content

    def _inherited(self, known: _Registration, stamp: Stamp) -> bool:
        """Return whether the record is still that of the registration that had the device number before.

        udevd removes that record when it handles the removal, which may be well after the kernel has registered the next device.
        """
        incarnation, before = self._former.get(known.bare.number, (known.incarnation, stamp))
        return incarnation != known.incarnation and before == stamp

    def _links(self, doubts: list[str]) -> dict[int, list[str]]:
        """Return the links to devices by device number: those in /dev/serial, and those that the configuration names."""
        links: dict[int, list[str]] = {}
        for path in (*self.paths, *_serial_links(self.roots.dev)):
            try:
                if not _TEMPORARY_LINK.search(path) and (number := self._device_number(path)) is not None:
                    links.setdefault(number, []).append(path)
            except OSError as error:
                doubts.append(_describe_os_error(error))
        return links

    def _device_number(self, path: str) -> int | None:
        """Return the device number of the character device that a path leads to, None if it leads to none."""
        try:
            status = os.stat(path)
        except ValueError:
            return None  # a NUL in it: no file can have this name
        except OSError as error:
            if error.errno in NOWHERE:
                return None
            raise
        self._note_directory(path, status)
        return status.st_rdev if stat.S_ISCHR(status.st_mode) else None

    def _note_directory(self, path: str, status: os.stat_result) -> None:
        """Note that a directory is in the place of a devnode or link. A link that leads to a directory does not block it."""
        if stat.S_ISDIR(status.st_mode) and not os.path.islink(path):
            self._blocked.add(path)

    def _obstructions(self) -> tuple[str, ...]:
        """Return what to do about each directory in the place of a devnode or link, of present and of departed devices."""
        for path in list(self._former_paths):
            with contextlib.suppress(
                OSError
            ):  # nothing is there, or it cannot be checked: check again at the next scan
                if stat.S_ISDIR(os.lstat(path).st_mode):
                    self._blocked.add(path)
                else:
                    del self._former_paths[path]
        return tuple(obstruction(path) for path in sorted(self._blocked))

    def _host(self) -> tuple[bool, tuple[str, ...]]:
        """Return whether /dev is a devtmpfs, and what is missing on this host, each with its cure."""
        devtmpfs, troubles = self._devtmpfs(), []
        if not devtmpfs:
            troubles.append(
                f"{self.roots.dev} is not a devtmpfs: mount the host's /dev, else a device counts as long as sysfs lists it"
            )
        if not self.roots.udevd:
            troubles.append(
                f"there is no udevd in {self.roots.run}: start it or mount the host's whole /run/udev; port and properties are unknown"
            )
        return devtmpfs, tuple(troubles)

    def _devtmpfs(self) -> bool:
        status = _stat(self.roots.dev)
        mounted = (status.st_dev, status.st_ino) if status else (0, 0)
        # The mount table of a busy node is long: read it only when another file system is mounted on /dev.
        if self._dev is None or self._dev[0] != mounted:
            self._dev = (mounted, is_devtmpfs(self.roots))
            self._former_paths |= dict.fromkeys(_tty_directories(self.roots.dev))
        return self._dev[1]


def is_devtmpfs(roots: Roots) -> bool:
    """Return whether /dev is a devtmpfs, in which the kernel makes and removes the nodes (proc_pid_mountinfo(5)).

    The last mount on /dev counts. False where there is no mount table; raises `OSError` where it cannot be read.
    """
    try:
        with open(roots.mountinfo, encoding="utf-8", errors="surrogateescape", newline="\n") as table:
            mounts = [line.partition(" - ") for line in table]
    except FileNotFoundError:
        return False
    kinds = [source.split()[0] for mount, _, source in mounts if mount.split()[4:5] == [roots.dev]]
    return kinds[-1:] == ["devtmpfs"]


def _in_flux(known: _Registration, now: float) -> bool:
    """Return whether udevd is about to make the links again, after a removal and an addition within milliseconds.

    udevd removes the record before the links and writes it after them. So the links are in flux while the record is missing, but for
    no longer than `ARRIVAL_TIMEOUT`, and if it has changed since it was read.
    """
    if known.unrecorded_since is not None:
        return now < known.unrecorded_since + ARRIVAL_TIMEOUT
    return known.record is not None and _stamp(known.record_path) != known.stamp


def _with_record(device: Device, record: Record) -> Device:
    return replace(
        device,
        properties=record,
        vendor=_hex_digits(record.get("ID_VENDOR_ID")),
        product=_hex_digits(record.get("ID_MODEL_ID")),
        serial=record.get("ID_SERIAL_SHORT"),
        interface=_lower(record.get("ID_USB_INTERFACE_NUM")),
        port=record.get("ID_PATH"),
    )


def _hex_digits(text: str | None) -> str | None:
    """Return the digits of a number without `0x`: udev copies the ids of a PCI card from sysfs as `0x8086` (rules.d/60-serial.rules)."""
    return text.lower().removeprefix("0x") if text else text


def _lower(text: str | None) -> str | None:
    return text.lower() if text else text


def _describe_os_error(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _read_attribute(path: str) -> bytes | None:
    """Return a sysfs attribute, None where it or its device is not there. Raises `OSError` for any other error."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(_ATTRIBUTE_SIZE)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


def _read_device_number(path: str) -> int | None:
    """Return the device number in a `dev` attribute, None where there is none. Raises `OSError`, also for malformed content."""
    text = _read_attribute(path)
    if not text:
        return None
    try:
        return os.makedev(*map(int, text.split(b":")))
    except (ValueError, TypeError, OverflowError) as error:
        raise OSError(errno.EINVAL, "no device number", path) from error


def _attribute_text(folder: str | None, attribute: str) -> str | None:
    raw = _read_attribute(f"{folder}/{attribute}") if folder else None
    return raw.decode("ascii", "replace").strip().lower() if raw else None


def _stat(path: str) -> os.stat_result | None:
    """Return the status of a file, None where there is none. Raises `OSError` for any other error."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


def _exists(path: str) -> bool:
    return _stat(path) is not None


def _stamp(path: str) -> Stamp | None:
    """Return the stamp of a udev record, None without one. udev renames a new file into place, so the stamp changes with each write."""
    status = _stat(path)
    return status and (status.st_ino, status.st_mtime_ns)


def _read_content(path: str) -> bytes | None:
    """Return the content of a file, None where it cannot be read."""
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
    """Yield the directories in /dev that are named like a tty; no driver makes such a directory."""
    with contextlib.suppress(OSError), os.scandir(dev) as entries:
        yield from (
            entry.path for entry in entries if entry.name.startswith("tty") and entry.is_dir(follow_symlinks=False)
        )


def obstruction(path: str) -> str:
    """Return the message for a directory in the place of a devnode or link: its cause and its cure."""
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
