"""The edge to udev: uevents from netlink, records from libudev. The only importer of pyudev."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import pyudev

from devwatch.core.device import TTY, USB
from devwatch.core.errors import Unavailable
from devwatch.host.lister import Lister
from devwatch.host.mounts import Roots
from devwatch.host.sysfs import USB_DEVICE

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence

    from devwatch.core.inventory import Scan
    from devwatch.host.records import Record

BUFFER_SIZE = 128 * 1024 * 1024
"""Bytes of the receive buffer; without CAP_NET_ADMIN the kernel grants no more than net.core.rmem_max (socket(7))."""
SETTLING = (0.2, 1.0, 3.0)
"""Seconds after a kernel uevent at which to scan again: no udevd reports when it has made links and set permissions."""
BATCH = 256
"""Uevents read in one cycle of the event loop, so that a storm delays nothing else."""
TEND_INTERVAL = 1.0
"""Seconds between two checks of the monitor, however often the devices are scanned."""
_NO_UDEVD_HERE = (
    "udevd runs in another network namespace (hostNetwork is missing) or has ended: a daemon here receives uevents from the"
    " kernel alone"
)
_PROCESSING = "ID_PROCESSING"
"""A property that udevd of systemd 255 and later adds while it handles an event; it does not describe the device."""
_PROTOCOL = b"15"
"""NETLINK_KOBJECT_UEVENT (include/uapi/linux/netlink.h), as /proc/net/netlink prints it."""
_KERNEL_GROUP = 1
"""The multicast group of the kernel's uevents; udevd sends its own to group 2 (systemd, `sd-device/device-monitor.c`)."""


class Listener(Protocol):
    """The receiver of what the monitor reports."""

    def uevents(self, actions: Sequence[str]) -> None:
        """Receive the actions of the uevents that have just been read."""

    def overflowed(self) -> None:
        """Receive the report that the kernel has dropped uevents."""

    def lost(self, reason: str) -> None:
        """Receive the report that no uevents arrive until the monitor is restored."""

    def restored(self, source: str) -> None:
        """Receive the report that uevents arrive from now on, from `udev` or from `kernel`."""


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
    """The uevent sockets of this network namespace: their multicast groups by inode (net/netlink/af_netlink.c, `netlink_seq_show`)."""

    groups: dict[int, int]

    @classmethod
    def read(cls, table: str) -> _Netlink:
        with open(table, "rb", buffering=0) as file:
            rows = [row.split() for row in file.read().splitlines()]
        return cls(groups={int(row[9]): int(row[3], 16) for row in rows[1:] if row[1] == _PROTOCOL})

    def receives_nothing(self, inode: int) -> bool:
        """Return whether this socket is in no multicast group."""
        return self.groups.get(inode, 0) == 0

    def has_udevd(self, *, besides: int) -> bool:
        """Return whether a socket other than `besides` is in the kernel's group, as that of udevd or of its systemd unit is."""
        return any(groups & _KERNEL_GROUP for inode, groups in self.groups.items() if inode != besides)


@dataclass(slots=True, kw_only=True)
class _UeventSocket:
    """One open netlink socket of libudev."""

    monitor: pyudev.Monitor
    source: str
    subsystems: frozenset[str]
    descriptor: int
    inode: int
    unreadable: int = 0
    """Messages in a row that libudev could not read."""

    @property
    def intact(self) -> bool:
        """Whether the descriptor is still this socket; another part of the process may have closed it."""
        try:
            return os.fstat(self.descriptor).st_ino == self.inode
        except OSError:
            return False


@dataclass(slots=True, kw_only=True)
class Monitor:
    """Receives the uevents of the configured subsystems in the event loop, and reports when it cannot.

    The source is udev where udevd runs in this network namespace, else the kernel. `tend` opens the socket and replaces it when it has
    failed; until the first call nothing is open. The failures, each of which is silent by itself, and how `tend` detects them:

    - another part of the process has closed the descriptor: its inode is not the socket's any more;
    - the socket is in no multicast group, so that it receives nothing: /proc/net/netlink shows its groups;
    - udevd has started or ended, so that the other source is the right one: the same table shows its socket.

    A socket with the filter of other subsystems is replaced as well.
    """

    context: pyudev.Context
    listener: Listener
    loop: asyncio.AbstractEventLoop
    roots: Roots
    table: str = "/proc/self/net/netlink"
    subsystems: frozenset[str] = frozenset({TTY})
    """The subsystems whose uevents are received, by the filter of the socket."""
    settling: list[float] = field(default_factory=list)
    """When to scan again after a kernel uevent, on the clock of the loop."""
    _socket: _UeventSocket | None = None
    _reported_loss: str = ""
    """The loss that was reported last, empty while uevents arrive."""
    _tended: float = float("-inf")

    def listen_to(self, subsystems: frozenset[str]) -> None:
        """Receive the uevents of these subsystems, at the latest from the end of the next `tend` on."""
        if subsystems != self.subsystems:
            self.subsystems, self._tended = subsystems, float("-inf")

    def tend(self, now: float) -> None:
        """Open the monitor, or open it again where it was closed, is in no group, or has the wrong source or filter.

        A closed descriptor is checked first, since its number may belong to another file by now. An error of the later checks
        keeps an open socket, which still receives.
        """
        if now < self._tended + TEND_INTERVAL:
            return
        self._tended = now
        if self._socket is not None and not self._socket.intact:
            self._lose("the netlink socket was closed")
        try:
            self._check(_Netlink.read(self.table))
        except (OSError, ValueError, IndexError) as error:
            if self._socket is None:
                self._lose(f"no uevents can be received: {error}; devices are found by the sweep alone")

    def _check(self, netlink: _Netlink) -> None:
        if self._socket is not None and netlink.receives_nothing(self._socket.inode):
            self._lose("the netlink socket is in no multicast group any more")
        current = self._socket
        besides = current.inode if current else 0
        source = "udev" if self.roots.udevd and netlink.has_udevd(besides=besides) else "kernel"
        if current is None or (current.source, current.subsystems) != (source, self.subsystems):
            self._open(source)

    def _open(self, source: str) -> None:
        """Open a new socket and only then close the current one, so that no failure on the way leaves the monitor without any."""
        monitor = pyudev.Monitor.from_netlink(self.context, source=source)
        for subsystem in self.subsystems:
            monitor.filter_by(subsystem, USB_DEVICE if subsystem == USB else None)
        monitor.start()
        descriptor = monitor.fileno()
        opened = _UeventSocket(
            monitor=monitor,
            source=source,
            subsystems=self.subsystems,
            descriptor=descriptor,
            inode=os.fstat(descriptor).st_ino,
        )
        if _Netlink.read(self.table).receives_nothing(opened.inode):
            raise OSError(f"libudev opened a {source} monitor in no multicast group")
        _enlarge_buffer(monitor)
        self.loop.add_reader(descriptor, self._read)  # before the current one closes: epoll may refuse it
        same = source == self.source
        self.close()
        self._socket = opened
        self._reported_loss = ""
        if not same:
            self.listener.restored(source)

    def _lose(self, reason: str) -> None:
        """Close the socket, and report the reason unless it was the last one reported."""
        self.close()
        if reason != self._reported_loss:
            self._reported_loss = reason
            self.listener.lost(reason)

    @property
    def source(self) -> str:
        """The source of the uevents: `udev` or `kernel`, empty while none arrive."""
        return "" if self._socket is None else self._socket.source

    def close(self) -> None:
        """Stop receiving."""
        closed, self._socket = self._socket, None
        if closed is None:
            return
        with contextlib.suppress(RuntimeError):  # the number of a closed socket belongs to a transport by now
            self.loop.remove_reader(closed.descriptor)
        if not closed.intact:
            # Leak the monitor: libudev would close the descriptor's number, which may belong to another file by now, and abort the
            # process where it belongs to none (safe_close).
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(closed.monitor))

    def _read(self) -> None:
        current = self._socket
        if current is None:
            return
        actions: list[str] = []
        try:
            while len(actions) < BATCH and (device := current.monitor.poll(timeout=0)) is not None:
                actions.append(_action(device))
                current.unreadable = 0
        except (OSError, ValueError, OverflowError) as error:  # pyudev raises the last two for EINVAL and EOVERFLOW
            self._handle_read_error(current, error)
        if actions:
            self._report_uevents(current, actions)

    def _report_uevents(self, current: _UeventSocket, actions: list[str]) -> None:
        if current.source == "kernel":
            now = self.loop.time()
            self.settling = [now + seconds for seconds in SETTLING]
        self.listener.uevents(actions)

    def _handle_read_error(self, current: _UeventSocket, error: Exception) -> None:
        """Handle a failed read, and go on receiving where that is possible.

        The cases, in this order:

        - The descriptor is not the socket any more: the monitor is lost. Nothing may be done to it, since it is another file.
        - The socket has a pending error (ENOBUFS, netlink(7)), or the read itself failed with it: the kernel has dropped uevents.
          Reading SO_ERROR clears the error, which POLLERR would report again and again (socket(7)).
        - Anything else is a message that libudev could not read. It may announce a device all the same, so it is reported as an
          `unknown` uevent. More than `BATCH` of them in a row mean that the socket has failed.
        """
        if not current.intact:
            self._lose("the netlink socket was closed")
            return
        with _borrowed(current.descriptor) as borrowed:
            pending = borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if pending != 0 or getattr(error, "errno", errno.EINVAL) in {None, errno.ENOBUFS}:
            self.listener.overflowed()
            return
        current.unreadable += 1
        if current.unreadable > BATCH:
            self._lose(f"the netlink socket failed: {error}")
        else:
            self._report_uevents(current, ["unknown"])


def _action(device: pyudev.Device) -> str:
    try:
        return device.action or "unknown"
    except UnicodeDecodeError:
        return "unknown"


def _enlarge_buffer(monitor: pyudev.Monitor) -> None:
    """Set a receive buffer that holds a storm; without CAP_NET_ADMIN, as much as net.core.rmem_max allows."""
    try:
        monitor.set_receive_buffer_size(BUFFER_SIZE)
    except OSError:
        with _borrowed(monitor.fileno()) as borrowed:
            borrowed.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_SIZE)


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Wrap libudev's descriptor in a socket without duplicating it, since there may be no free descriptor; never close it."""
    borrowed = socket.socket(fileno=descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()


@dataclass(slots=True, kw_only=True)
class UdevSource:
    """The devices of this host, and the monitor that reports when to scan them."""

    lister: Lister
    monitor: Monitor

    @classmethod
    def open(cls, *, listener: Listener, loop: asyncio.AbstractEventLoop, roots: Roots | None = None) -> UdevSource:
        """Return a source for the real host. The first scan opens the monitor.

        Raises `Unavailable` where libudev cannot be used.
        """
        context, where = _context(), roots or Roots()
        return cls(
            lister=Lister(record=lambda path: read_record(context, path), roots=where),
            monitor=Monitor(context=context, listener=listener, loop=loop, roots=where),
        )

    def expect(self, paths: frozenset[str], subsystems: frozenset[str]) -> None:
        """Set the paths of the configuration, which may be links, and its subsystems: no other ones are scanned and received."""
        self.lister.paths, self.lister.subsystems = paths, subsystems
        self.monitor.listen_to(subsystems)

    def scan(self, now: float) -> Scan:
        """Return the devices that are present now. The monitor is tended first, so that no change between the two is missed."""
        self.monitor.tend(now)
        scan = self.lister.scan(now)
        self.monitor.settling = [at for at in self.monitor.settling if at > now]
        troubles = (*scan.troubles, _NO_UDEVD_HERE) if scan.udevd and self.monitor.source == "kernel" else scan.troubles
        return replace(scan, again_at=min(self.monitor.settling, default=None), troubles=troubles)

    def close(self) -> None:
        """Stop receiving uevents."""
        self.monitor.close()


def record_reader() -> Callable[[str], Record | None]:
    """Return the function that reads the udev record of a sysfs path. Raises `Unavailable` where libudev cannot be used."""
    context = _context()
    return lambda path: read_record(context, path)


def _context() -> pyudev.Context:
    try:
        return pyudev.Context()
    except (ImportError, OSError) as error:
        raise Unavailable(_why_no_libudev(error)) from error


def _why_no_libudev(error: Exception) -> str:
    """Distinguish a missing libudev from a shortage: Python finds a library by running programs, and reports "not found" for both."""
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


def monitor_troubles(roots: Roots, table: str = "/proc/self/net/netlink") -> tuple[str, ...]:
    """Return why a monitor opened here would not receive udevd's uevents, and what a daemon does instead, one line each."""
    if not roots.udevd:
        return (
            "udevd does not run, or its /run/udev is not mounted here: a daemon receives the kernel's uevents, and links come later",
        )
    try:
        if _Netlink.read(table).has_udevd(besides=0):
            return ()
    except (OSError, ValueError, IndexError) as error:
        return (f"{table} cannot be read ({error}): a daemon receives no uevents and finds devices by its sweep alone",)
    return (_NO_UDEVD_HERE,)
