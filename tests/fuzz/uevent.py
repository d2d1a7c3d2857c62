"""Uevents: whatever arrives on udev's netlink group, through the kernel and libudev, the monitor goes on hearing."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import struct
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyudev
from hypothesis import strategies as st

from devwatch.host.mounts import Roots
from devwatch.host.udev import Monitor
from devwatch.observe.metrics import Metrics
from fuzz.target import Feed, Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NETLINK_KOBJECT_UEVENT = 15
"""include/uapi/linux/netlink.h; the socket module has no name for it."""
_KERNEL, _UDEV = 1, 2
"""The multicast groups of the kernel and of udevd (systemd, `sd-device/device-monitor.c`)."""
_CLONE_NEWNET = 0x40000000
"""include/uapi/linux/sched.h."""
_MAGIC = 0xFEEDCAFE
_HEADER = struct.Struct("!8s I")
_SIZES = struct.Struct("=III")
_HASHES = struct.Struct("!IIII")
_HEADER_SIZE = _HEADER.size + _SIZES.size + _HASHES.size
_WORD = 0xFFFFFFFF
_LARGEST = 8192
"""What libudev reads of a message at most (`device_monitor_receive_device`)."""
_SENTINEL = b"ACTION=add\0DEVPATH=/devices/virtual/tty/tty10\0SUBSYSTEM=tty\0SEQNUM=1\0"


_OFFSET = slice(16, 20)
"""Where a message of libudev says at which byte its properties begin."""


def missing() -> str | None:
    """Return what keeps this user from sending uevents in a network namespace of its own, or None."""
    return None if os.geteuid() == 0 else "needs root, to send uevents in a network namespace of its own"


def message(properties: bytes, subsystem: str = "tty") -> bytes:
    """Return what udevd would send (`struct monitor_netlink_header`, systemd)."""
    head = _HEADER.pack(b"libudev", _MAGIC) + _SIZES.pack(_HEADER_SIZE, _HEADER_SIZE, len(properties))
    return head + _HASHES.pack(_murmur(subsystem.encode()), 0, 0, 0) + properties


def _murmur(text: bytes) -> int:
    """Return MurmurHash2 of a short text, by which the kernel filters for libudev (systemd, `string_hash32`)."""
    factor, result = 0x5BD1E995, len(text)
    whole = len(text) & ~3
    for (word,) in struct.iter_unpack("<I", text[:whole]):
        mixed = word * factor & _WORD
        result = (result * factor ^ (mixed ^ mixed >> 24) * factor) & _WORD
    if text[whole:]:
        result = (result ^ int.from_bytes(text[whole:], "little")) * factor & _WORD
    result = (result ^ result >> 13) * factor & _WORD
    return result ^ result >> 15


def _survivable(packet: bytes) -> bytes:
    """Return a message that libudev does not die of.

    It adds 32 to the offset in 32 bits, and where that overflows it reads at nearly 4 GiB (systemd 252, `device_monitor_receive_device`).
    Only root can send such a message, and every program that listens to udev dies of it.
    """
    offset = int.from_bytes(packet[_OFFSET], "little")
    if offset <= _WORD - 32:
        return packet
    return packet[: _OFFSET.start] + bytes(4) + packet[_OFFSET.stop :]


@dataclass(slots=True, kw_only=True)
class _Heard:
    """A listener that counts as the daemon does, and keeps what was said of the monitor."""

    metrics: Metrics = field(default_factory=lambda: Metrics("0"))
    actions: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def uevents(self, actions: Sequence[str]) -> None:
        """Count them."""
        self.actions.extend(actions)
        for action in actions:
            self.metrics.uevent(action)

    def overflowed(self) -> None:
        """Keep it."""
        self.told.append("overflowed")

    def lost(self, reason: str) -> None:
        """Keep it."""
        self.told.append(reason)

    def restored(self, source: str) -> None:
        """Begin with it."""
        self.told = [] if source == "udev" else [f"hears {source}"]


@dataclass(slots=True, kw_only=True)
class _World:
    """A monitor, and a udevd that sends it what we like."""

    loop: asyncio.AbstractEventLoop
    heard: _Heard
    monitor: Monitor
    udevd: socket.socket
    failures: list[object] = field(default_factory=list)

    def feed(self, data: bytes) -> None:
        """Send the properties of a uevent, or, after a first byte that is odd, a whole message; then one that must be heard."""
        whole = data[:1] and data[0] % 2
        packet = _survivable(data[1:_LARGEST]) if whole else message(data[1 : _LARGEST - _HEADER_SIZE])
        self.heard.actions.clear()
        for sent in (packet, message(_SENTINEL)):
            self._send(sent)
        self._cycle()
        assert self.heard.actions[-1:] == ["add"], self.heard.actions
        assert self.heard.told == []
        failures, self.failures = self.failures, []
        assert not failures, failures

    def _send(self, packet: bytes) -> None:
        with contextlib.suppress(OSError):  # the kernel takes a copy, and refuses what it likes less than libudev does
            self.udevd.sendto(packet, (0, _UDEV))
        with contextlib.suppress(BlockingIOError):
            while True:
                self.udevd.recv(_LARGEST)

    def _cycle(self) -> None:
        for _ in range(3):  # what libudev passes over ends a batch
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()


def _enclosed(home: Path, loop: asyncio.AbstractEventLoop, heard: _Heard) -> tuple[Monitor, socket.socket]:
    """Open both ends in a network namespace that only this thread, and later only these sockets, have."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    udevd = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT)
    udevd.bind((0, _KERNEL))
    udevd.settimeout(0)
    (home / "control").touch()
    monitor = Monitor(
        context=pyudev.Context(),
        listener=heard,
        loop=loop,
        roots=Roots(run=str(home)),
        table="/proc/thread-self/net/netlink",
    )
    monitor.tend(0)
    return monitor, udevd


@contextlib.contextmanager
def _open() -> Iterator[Feed]:
    with tempfile.TemporaryDirectory() as home, contextlib.closing(asyncio.new_event_loop()) as loop:
        heard = _Heard()
        with ThreadPoolExecutor(1) as thread:
            monitor, udevd = thread.submit(_enclosed, Path(home), loop, heard).result()
        with udevd, contextlib.closing(monitor):
            world = _World(loop=loop, heard=heard, monitor=monitor, udevd=udevd)
            loop.set_exception_handler(lambda _, context: world.failures.append(context))
            yield world.feed


_KEYS = st.sampled_from(
    ("ACTION", "DEVPATH", "SUBSYSTEM", "SEQNUM", "DEVNAME", "MAJOR", "MINOR", "DEVLINKS", "TAGS", "DEVTYPE", "IFINDEX")
) | st.text(max_size=4)
_VALUES = st.sampled_from(
    (
        *("add", "remove", "change", "tty", "/devices/virtual/tty/tty10", "/devices/../../etc/passwd", "", "1", "-1"),
        *("99999999999999999999", "/dev/x /dev/y", "\x1b[31m", "\udcff", "a" * 3000, ":a:b:"),
    )
) | st.text(max_size=6)
_PROPERTIES = st.lists(st.tuples(_KEYS, st.sampled_from(("=", "", "==")), _VALUES), max_size=8).map(
    lambda pairs: (
        "\0".join("".join(pair) for pair in pairs).encode("utf-8", "surrogateescape")
        if all(
            char < "\ud800" or "\udc80" <= char <= "\udcff" or char > "\udfff"
            for pair in pairs
            for char in "".join(pair)
        )
        else b""
    )
)
_NUMBERS = st.sampled_from((0, 1, 39, 40, 41, 8192, 2**31, 2**32 - 1))
_BROKEN = st.builds(
    lambda magic, sizes, rest: _HEADER.pack(b"libudev", magic) + _SIZES.pack(*sizes) + rest,
    st.sampled_from((_MAGIC, 0)),
    st.tuples(_NUMBERS, _NUMBERS, _NUMBERS),
    st.binary(max_size=40) | _PROPERTIES.map(lambda text: message(text)[-len(text) - 16 :]),
)
_KERNEL_LIKE = st.tuples(st.sampled_from((b"add@/devices/x\0", b"@\0", b"")), _PROPERTIES).map(b"".join)
_GRAMMAR = _PROPERTIES.map(lambda text: b"\0" + text) | (_BROKEN | _KERNEL_LIKE | st.binary(max_size=60)).map(
    lambda packet: b"\1" + packet
)

UEVENT = Target(
    open=_open,
    grammar=_GRAMMAR,
    seeds=(b"\0" + _SENTINEL, b"\1" + message(_SENTINEL), b"\1add@/devices/virtual/tty/tty10\0" + _SENTINEL),
)
