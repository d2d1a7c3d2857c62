"""The edge to udev: uevents by netlink, records by libudev. The only importer of pyudev."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyudev

from devwatch.core.errors import Unavailable
from devwatch.host.sysfs import Lister, Record, Roots

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence

    from devwatch.core.inventory import Scan

SUBSYSTEM = "tty"
BUFFER_SIZE = 128 * 1024 * 1024
"""Bytes asked for as receive buffer; the kernel grants no more than net.core.rmem_max to the unprivileged (socket(7))."""
SETTLING = (0.2, 1.0, 3.0)
"""Seconds after a kernel uevent at which links and permissions may have followed where no udevd says so."""
BATCH = 256
"""Uevents read in one turn of the loop, so that a storm holds up nothing else."""
TEND_INTERVAL = 1.0
"""Seconds between two checks of the monitor, however often the devices are looked at."""
_ELSEWHERE = "udevd runs in another network namespace (hostNetwork is missing) or has ended: a daemon here hears the kernel alone"
_PROCESSING = "ID_PROCESSING"
"""What udevd of systemd 255 and later adds to a complete record while it handles an event: it says nothing of the device."""
_PROTOCOL = "15"
"""NETLINK_KOBJECT_UEVENT (include/uapi/linux/netlink.h), as the table of sockets prints it."""
_KERNEL_GROUP = 1
"""The multicast group of the kernel's uevents; udevd sends its own to group 2 (systemd, `sd-device/device-monitor.c`)."""


class Listener(Protocol):
    """Who wants to know what the monitor hears."""

    def uevents(self, actions: Sequence[str]) -> None:
        """Take the actions of uevents that have just been read."""

    def overflowed(self) -> None:
        """Take note that the kernel dropped uevents."""

    def lost(self, reason: str) -> None:
        """Take note that nothing is heard until the monitor is restored."""

    def restored(self, source: str) -> None:
        """Take note that uevents are heard, from `udev` or from `kernel`."""


def read_record(context: pyudev.Context, path: str) -> Record | None:
    """Return the complete udev record of a sysfs path, None where there is none or it cannot be read."""
    try:
        device = pyudev.Devices.from_sys_path(context, path)
        return _properties(device) if device.is_initialized else None
    except (pyudev.DeviceNotFoundError, OSError, UnicodeDecodeError):
        return None


def _properties(device: pyudev.Device) -> Record:
    record = {}
    for name in device.properties:
        if name == _PROCESSING:
            continue
        with contextlib.suppress(UnicodeDecodeError, KeyError):  # no pattern in UTF-8 could match such a value
            record[name] = device.properties[name]
    return record


@dataclass(frozen=True, slots=True, kw_only=True)
class _Netlink:
    """The uevent sockets of this network namespace: multicast groups by inode (net/netlink/af_netlink.c, `netlink_seq_show`)."""

    groups: dict[int, int]

    @classmethod
    def read(cls, table: str) -> _Netlink:
        with Path(table).open(encoding="ascii") as file:
            rows = [row.split() for row in file]
        return cls(groups={int(row[9]): int(row[3], 16) for row in rows[1:] if row[1] == _PROTOCOL})

    def deaf(self, inode: int) -> bool:
        return self.groups.get(inode, 0) == 0

    def udevd(self, *, beside: int) -> bool:
        """Whether somebody else listens to the kernel here, as udevd or its systemd socket do."""
        return any(groups & _KERNEL_GROUP for inode, groups in self.groups.items() if inode != beside)


@dataclass(slots=True, kw_only=True)
class _Ear:
    """One open netlink socket of libudev."""

    monitor: pyudev.Monitor
    source: str
    descriptor: int
    inode: int
    garbled: int = 0
    """Messages in a row that libudev could not read."""

    @property
    def intact(self) -> bool:
        """Whether the descriptor is still this socket; somebody may have closed it under us."""
        try:
            return os.fstat(self.descriptor).st_ino == self.inode
        except OSError:
            return False


@dataclass(slots=True, kw_only=True)
class Monitor:
    """Hears the uevents of ttys in the event loop, or knows that it does not.

    udev's stream is taken where udevd runs in this network namespace, the kernel's elsewhere. Deaf, dead and missing
    sockets are replaced by `tend`; until its first call nothing is open.
    """

    context: pyudev.Context
    listener: Listener
    loop: asyncio.AbstractEventLoop
    roots: Roots
    table: str = "/proc/self/net/netlink"
    settling: list[float] = field(default_factory=list)
    """When to look again after what was heard, on the clock of the loop."""
    _ear: _Ear | None = None
    _complaint: str = ""
    _tended: float = float("-inf")

    def tend(self, now: float) -> None:
        """Open the monitor, or open it again where it has died, is deaf, or listens to the wrong stream."""
        if now < self._tended + TEND_INTERVAL:
            return
        self._tended = now
        if self._ear is not None and not self._ear.intact:
            self._lose("the netlink socket was closed")
        try:
            self._check(_Netlink.read(self.table))
        except (OSError, ValueError, IndexError) as error:
            if self._ear is None:  # else the open one still hears
                self._lose(f"no uevents can be heard: {error}; devices are found by the sweep alone")

    def _check(self, netlink: _Netlink) -> None:
        if self._ear is not None and netlink.deaf(self._ear.inode):
            self._lose("the netlink socket has gone deaf")
        ear = self._ear
        source = "udev" if self.roots.udevd and netlink.udevd(beside=ear.inode if ear else 0) else "kernel"
        if ear is None or ear.source != source:
            self._open(source)

    def _open(self, source: str) -> None:
        monitor = pyudev.Monitor.from_netlink(self.context, source=source)
        monitor.filter_by(SUBSYSTEM)
        monitor.start()
        descriptor = monitor.fileno()
        ear = _Ear(monitor=monitor, source=source, descriptor=descriptor, inode=os.fstat(descriptor).st_ino)
        if _Netlink.read(self.table).deaf(ear.inode):
            raise OSError(f"libudev opened a deaf {source} monitor")
        _enlarge(monitor)
        self.loop.add_reader(descriptor, self._readable)  # first: where epoll refuses it, nothing has changed
        self.close()
        self._ear = ear
        self._complaint = ""
        self.listener.restored(source)

    def _lose(self, reason: str) -> None:
        self.close()
        if reason != self._complaint:
            self._complaint = reason
            self.listener.lost(reason)

    @property
    def source(self) -> str:
        """Whose uevents are heard: `udev`, `kernel`, or nobody's."""
        return "" if self._ear is None else self._ear.source

    def close(self) -> None:
        """Stop listening."""
        ear, self._ear = self._ear, None
        if ear is None:
            return
        with contextlib.suppress(RuntimeError):  # a transport has the number of a closed socket
            self.loop.remove_reader(ear.descriptor)
        if not ear.intact:
            # Never freed: libudev would close the number, whosever it is by now, and abort where it is nobody's (safe_close).
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(ear.monitor))

    def _readable(self) -> None:
        ear = self._ear
        if ear is None:
            return
        actions: list[str] = []
        try:
            while len(actions) < BATCH and (device := ear.monitor.poll(timeout=0)) is not None:
                actions.append(_action(device))
                ear.garbled = 0
        except (OSError, ValueError, OverflowError) as error:  # pyudev has the last two for EINVAL and EOVERFLOW
            self._overheard(ear, error)
        if actions:
            self._announce(ear, actions)

    def _announce(self, ear: _Ear, actions: list[str]) -> None:
        if ear.source == "kernel":
            now = self.loop.time()
            self.settling = [now + seconds for seconds in SETTLING]
        self.listener.uevents(actions)

    def _overheard(self, ear: _Ear, error: Exception) -> None:
        """Clear the error of an overflow, which POLLERR reports until SO_ERROR is read (socket(7)), netlink's ENOBUFS (netlink(7)).

        Any other is of a message that libudev could not read.
        """
        if not ear.intact:
            self._lose("the netlink socket was closed")
            return
        with _borrowed(ear.descriptor) as lent:
            pending = lent.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if pending == 0 and getattr(error, "errno", errno.EINVAL) not in {None, errno.ENOBUFS}:
            self._pass_over(ear, error)
            return
        self.listener.overflowed()

    def _pass_over(self, ear: _Ear, error: Exception) -> None:
        """Look because of a message that cannot be read, and go on hearing; a socket that gives nothing else has failed."""
        ear.garbled += 1
        if ear.garbled > BATCH:
            self._lose(f"the netlink socket failed: {error}")
        else:
            self._announce(ear, ["unknown"])


def _action(device: pyudev.Device) -> str:
    try:
        return device.action or "unknown"
    except UnicodeDecodeError:
        return "unknown"


def _enlarge(monitor: pyudev.Monitor) -> None:
    """Ask for a buffer that holds a storm; without CAP_NET_ADMIN only as far as the administrator allows."""
    try:
        monitor.set_receive_buffer_size(BUFFER_SIZE)
    except OSError:
        with _borrowed(monitor.fileno()) as lent:
            lent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_SIZE)


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Lend the socket of libudev without a duplicate: there may be no descriptor left."""
    lent = socket.socket(fileno=descriptor)
    try:
        yield lent
    finally:
        lent.detach()


@dataclass(slots=True, kw_only=True)
class UdevSource:
    """The devices of this host, and whatever makes it worth looking at them."""

    lister: Lister
    monitor: Monitor

    @classmethod
    def open(cls, *, listener: Listener, loop: asyncio.AbstractEventLoop, roots: Roots | None = None) -> UdevSource:
        """Return a source for the real host; the monitor opens with the first look, before it.

        Raises `Unavailable` where libudev is not installed.
        """
        context, where = _context(), roots or Roots()
        return cls(
            lister=Lister(record=lambda path: read_record(context, path), roots=where),
            monitor=Monitor(context=context, listener=listener, loop=loop, roots=where),
        )

    def expect(self, paths: frozenset[str]) -> None:
        """Take the paths of the configuration that may be links."""
        self.lister.paths = paths

    def scan(self, now: float) -> Scan:
        """Return what is there now; the monitor is tended first, so that nothing falls between it and the look."""
        self.monitor.tend(now)
        scan = self.lister.scan(now)
        self.monitor.settling = [at for at in self.monitor.settling if at > now]
        troubles = (*scan.troubles, _ELSEWHERE) if scan.udevd and self.monitor.source == "kernel" else scan.troubles
        return replace(scan, again_at=min(self.monitor.settling, default=None), troubles=troubles)

    def close(self) -> None:
        """Stop listening."""
        self.monitor.close()


def record_reader() -> Callable[[str], Record | None]:
    """Return what reads the udev record of a sysfs path. Raises `Unavailable` where libudev is not installed."""
    context = _context()
    return lambda path: read_record(context, path)


def _context() -> pyudev.Context:
    try:
        return pyudev.Context()
    except (ImportError, OSError) as error:
        raise Unavailable(_why_no_libudev(error)) from error


def _why_no_libudev(error: Exception) -> str:
    """Tell a missing library from a shortage: Python looks for one by running programs, and says "not found" where it could not."""
    try:
        ctypes.CDLL("libudev.so.1")
    except OSError as reason:
        if "No such file" in str(reason):
            return f"libudev is missing ({error}): install the package libudev1, or systemd-libs"
        return (
            f"libudev cannot be loaded: {reason} (ulimit -n and LimitNOFILE limit the open files, ulimit -v the memory)"
        )
    limits = "raise the limits of open files (ulimit -n, LimitNOFILE) and of processes (ulimit -u, TasksMax)"
    return f"libudev is here, but neither ldconfig nor gcc could be run to find it: {limits}, or install one of them"


def hearing_troubles(roots: Roots, table: str = "/proc/self/net/netlink") -> tuple[str, ...]:
    """Return why a monitor opened here would not hear udevd, and what is done instead, one line each."""
    if not roots.udevd:
        return (
            "udevd does not run, or its /run/udev is not mounted here: a daemon hears the kernel, and links come later",
        )
    try:
        if _Netlink.read(table).udevd(beside=0):
            return ()
    except (OSError, ValueError, IndexError) as error:
        return (f"{table} cannot be read ({error}): a daemon hears nothing and finds devices by its sweep alone",)
    return (_ELSEWHERE,)
