"""The edge to udev: uevents by netlink, records by libudev. The only importer of pyudev."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyudev

from devwatch.errors import Unavailable
from devwatch.sysfs import Lister, Record, Roots

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from devwatch.inventory import Look

SUBSYSTEM = "tty"
BUFFER_SIZE = 128 * 1024 * 1024
"""Bytes asked for as receive buffer; the kernel grants no more than net.core.rmem_max to the unprivileged (socket(7))."""
SETTLING = (0.2, 1.0, 3.0)
"""Seconds after a kernel uevent at which links and permissions may have followed where no udevd says so."""
BATCH = 256
"""Uevents read in one turn of the loop, so that a storm holds up nothing else."""
TEND_INTERVAL = 1.0
"""Seconds between two checks of the monitor, however often the devices are looked at."""
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
    except (pyudev.DeviceNotFoundError, OSError):
        return None


def _properties(device: pyudev.Device) -> Record:
    record = {}
    names = iter(device.properties)
    while True:
        try:
            name = next(names)
            record[name] = device.properties[name]
        except StopIteration:
            return record
        except (UnicodeDecodeError, KeyError):
            continue  # no pattern of a configuration in UTF-8 could name it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Netlink:
    """The uevent sockets of this network namespace: multicast groups by inode (net/netlink/af_netlink.c, `netlink_seq_show`)."""

    groups: dict[int, int]

    @classmethod
    def read(cls, table: str) -> _Netlink:
        uevent = str(socket.NETLINK_KOBJECT_UEVENT) if hasattr(socket, "NETLINK_KOBJECT_UEVENT") else "15"
        with Path(table).open(encoding="ascii") as file:
            rows = [row.split() for row in file]
        return cls(groups={int(row[9]): int(row[3], 16) for row in rows[1:] if row[1] == uevent})

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

    @property
    def intact(self) -> bool:
        """Whether the descriptor is still this socket; somebody may have closed it under us."""
        try:
            return os.fstat(self.descriptor).st_ino == self.inode
        except OSError:
            return False


class Monitor:
    """Hears the uevents of ttys in the event loop, or knows that it does not.

    udev's stream is taken where udevd runs in this network namespace, the kernel's elsewhere. Deaf, dead and missing
    sockets are replaced by `tend`.
    """

    def __init__(
        self,
        *,
        context: pyudev.Context,
        listener: Listener,
        loop: asyncio.AbstractEventLoop,
        roots: Roots,
        table: str = "/proc/self/net/netlink",
    ) -> None:
        """Open nothing yet; `tend` does."""
        self._context = context
        self._listener = listener
        self._loop = loop
        self._roots = roots
        self._table = table
        self._ear: _Ear | None = None
        self._broken: list[pyudev.Monitor] = []
        self._complaint = ""
        self._tended = float("-inf")
        self.settling: list[float] = []

    def tend(self, now: float) -> None:
        """Open the monitor, or open it again where it has died, is deaf, or listens to the wrong stream."""
        if now < self._tended + TEND_INTERVAL:
            return
        self._tended = now
        try:
            self._check(_Netlink.read(self._table))
        except (OSError, ValueError, IndexError) as error:
            self._lose(f"no uevents can be heard: {error}; devices are found by the sweep alone")

    def _check(self, netlink: _Netlink) -> None:
        ear = self._ear
        if ear is not None and not ear.intact:
            self._lose("the netlink socket was closed")
            ear = None
        source = "udev" if self._roots.udevd and netlink.udevd(beside=ear.inode if ear else 0) else "kernel"
        if ear is None or ear.source != source or netlink.deaf(ear.inode):
            self._open(source)

    def _open(self, source: str) -> None:
        monitor = pyudev.Monitor.from_netlink(self._context, source=source)
        monitor.filter_by(SUBSYSTEM)
        monitor.start()
        descriptor = monitor.fileno()
        ear = _Ear(monitor=monitor, source=source, descriptor=descriptor, inode=os.fstat(descriptor).st_ino)
        if _Netlink.read(self._table).deaf(ear.inode):
            raise OSError(f"libudev opened a deaf {source} monitor")
        _enlarge(monitor)
        self._close()
        self._ear = ear
        self._loop.add_reader(descriptor, self._readable)
        self._complaint = ""
        self._listener.restored(source)

    def _lose(self, reason: str) -> None:
        self._close()
        if reason != self._complaint:
            self._complaint = reason
            self._listener.lost(reason)

    def _close(self) -> None:
        ear, self._ear = self._ear, None
        if ear is None:
            return
        if ear.intact:
            self._loop.remove_reader(ear.descriptor)
        else:
            self._abandon(ear)

    def _abandon(self, ear: _Ear) -> None:
        """Keep a monitor whose descriptor is no longer its own: libudev would close the number, whosever it is by now."""
        self._broken.append(ear.monitor)

    def close(self) -> None:
        """Stop listening."""
        self._close()

    def _readable(self) -> None:
        ear = self._ear
        if ear is None:
            return
        actions: list[str] = []
        try:
            while len(actions) < BATCH and (device := ear.monitor.poll(timeout=0)) is not None:
                actions.append(_action(device))
        except OSError as error:
            self._overheard(ear, error)
        if actions:
            self._announce(ear, actions)

    def _announce(self, ear: _Ear, actions: list[str]) -> None:
        if ear.source == "kernel":
            now = self._loop.time()
            self.settling = [now + seconds for seconds in SETTLING]
        self._listener.uevents(actions)

    def _overheard(self, ear: _Ear, error: OSError) -> None:
        """Clear the error of an overflow, which POLLERR reports until SO_ERROR is read (socket(7)), netlink's ENOBUFS (netlink(7)).

        Anything else is the end of the socket.
        """
        if not ear.intact:
            self._lose("the netlink socket was closed")
            return
        with socket.socket(fileno=os.dup(ear.descriptor)) as duplicate:
            pending = duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if pending == 0 and error.errno is not None and error.errno != errno.ENOBUFS:
            self._lose(f"the netlink socket failed: {error}")
            return
        self._listener.overflowed()


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
        with socket.socket(fileno=os.dup(monitor.fileno())) as duplicate:
            duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_SIZE)


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
        try:
            context, where = pyudev.Context(), roots or Roots()
        except ImportError as error:
            raise Unavailable(f"libudev is missing ({error}): install the package libudev1, or systemd-libs") from error
        return cls(
            lister=Lister(record=lambda path: read_record(context, path), roots=where),
            monitor=Monitor(context=context, listener=listener, loop=loop, roots=where),
        )

    def expect(self, paths: frozenset[str]) -> None:
        """Take the paths of the configuration that may be links."""
        self.lister.paths = paths

    def look(self, now: float) -> Look:
        """Return what is there now; the monitor is tended first, so that nothing falls between it and the look."""
        self.monitor.tend(now)
        look = self.lister.look(now)
        self.monitor.settling = [at for at in self.monitor.settling if at > now]
        return replace(look, again_at=min(self.monitor.settling, default=None))

    def close(self) -> None:
        """Stop listening."""
        self.monitor.close()
