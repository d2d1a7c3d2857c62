"""One daemon a node: a lock that vanishes with its process, and that a unit and a hostNetwork pod share."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import glob
import hashlib
import os
import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from devwatch.core.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME_LENGTH: Final = 107
"""Bytes of an abstract name after its leading NUL (`sun_path` of unix(7) holds 108)."""
_ROW: Final = re.compile(rb"\w+: \w+ \w+ \w+ 0001 01 +([0-9]+) @(.*)")
"""A row of /proc/self/net/unix (`unix_seq_show`, Linux): a stream socket with a name, bound or listening, not connected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who has the name of the lock, None for what cannot be found out; `counts` is false for a squatter."""

    pid: int | None
    uid: int | None
    counts: bool

    def __str__(self) -> str:
        """Return the line for people."""
        return f"pid {self.pid or 'unknown'}, uid {'unknown' if self.uid is None else self.uid}"


class NodeLock:
    """The abstract unix socket `devwatch/NODENAME`; the SHA-256 of NODENAME in its place where that is too long.

    Only a holder of uid 0 or of our own uid counts, by the credentials of its listen() (SO_PEERCRED, unix(7)). One that
    takes no connection is looked for in /proc; if it is not found at two looks in a row, it does not count either.
    """

    def __init__(self, node: str, *, poll: float = 1.0) -> None:
        """Name the lock of `node`. `acquire()` tries again after `poll` seconds."""
        name = f"devwatch/{node}".encode()
        fits = len(name) <= _NAME_LENGTH
        self._name = name if fits else f"devwatch/{hashlib.sha256(node.encode()).hexdigest()}".encode()
        self._poll = poll
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._known: tuple[set[int], Holder] | None = None
        self._doubted = False

    async def acquire(self, on_waiting: Callable[[Holder], None], on_squatter: Callable[[Holder], None]) -> bool:
        """Wait until the lock is ours. False, after `on_squatter`, where a holder that does not count has its name.

        `on_waiting` is called once for every holder that is waited for. Raises as `acquire_once()` does.
        """
        told = None
        while (holder := self.acquire_once()) is not None:
            if not holder.counts:
                on_squatter(holder)
                return False
            if holder != told:
                on_waiting(told := holder)
            await asyncio.sleep(self._poll)
        await self._serve()
        return True

    async def regain(self) -> None:
        """Take the lock when it is free of the holder that did not count; meanwhile nobody is kept from holding it.

        Raises `Unavailable` where another daemon was faster: a holder that counts was found at two looks in a row.
        """
        rivalled = False
        while (holder := self._look_again()) is not None:
            if holder.counts and rivalled:
                raise Unavailable(f"another daemon holds the node: {holder}")
            rivalled = holder.counts
            await asyncio.sleep(self._poll)
        await self._serve()

    def _look_again(self) -> Holder | None:
        """Try as `acquire_once()` does. That no socket is to be had just now is no reason to end a daemon at work.

        Nor is it one to search all of /proc again and again, which holds up the loop: another daemon answers when it is asked.
        """
        try:
            owner = None if self._bind() else self._ask() or (None, None)
        except Unavailable:
            owner = (None, None)
        return owner and Holder(pid=owner[0], uid=owner[1], counts=_counts(owner[1]))

    async def _serve(self) -> None:
        # Whoever connects is dismissed at once, so the backlog never fills.
        self._server = await asyncio.start_unix_server(lambda _, writer: writer.close(), sock=self._socket)

    def acquire_once(self) -> Holder | None:
        """Try to take the lock: None when it is ours now, else who has it. `Unavailable` where sockets are refused."""
        return None if self._bind() else self._holder()

    def _bind(self) -> bool:
        taken = _stream()
        try:
            taken.bind(b"\0" + self._name)
            taken.listen()
        except OSError as error:
            taken.close()
            if error.errno != errno.EADDRINUSE:
                raise Unavailable(f"cannot take the lock of the node: {error.strerror}") from error
            return False
        self._socket = taken
        return True

    def release(self) -> None:
        """Give the lock back; nothing happens where it is not ours."""
        if self._server is not None:
            self._server.close()
        if self._socket is not None:
            self._socket.close()
        self._server = self._socket = None

    def _holder(self) -> Holder:
        inodes = _inodes(self._name)
        # A holder once known is not connected to again: one that has stopped would run out of backlog.
        if self._known is not None and self._known[0] == inodes:
            return self._known[1]
        owner = self._ask() or _search(inodes)
        if owner is None:
            # Whatever its sockets are by now: a squatter could have others at every look.
            doubted, self._doubted = self._doubted, True
            return Holder(pid=None, uid=None, counts=not doubted)
        self._doubted = False
        holder = Holder(pid=owner[0], uid=owner[1], counts=_counts(owner[1]))
        self._known = (inodes, holder) if len(inodes) == 1 else None
        return holder

    def _ask(self) -> tuple[int | None, int] | None:
        with _stream() as probe:
            try:
                probe.connect(b"\0" + self._name)
            except OSError:  # it does not listen (ECONNREFUSED), or its backlog is full (EAGAIN)
                return None
            pid, uid, _ = struct.unpack("iII", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return pid or None, uid


def _counts(uid: int | None) -> bool:
    return uid in (0, os.geteuid())


def _stream() -> socket.socket:
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise Unavailable(f"cannot look at the lock of the node: {error.strerror}") from error


def _inodes(name: bytes) -> set[int]:
    """Return the sockets of this name. More than one is a forgery: the kernel prints line ends in names as they are."""
    with contextlib.suppress(OSError):
        rows = map(_ROW.fullmatch, Path("/proc/self/net/unix").read_bytes().split(b"\n"))
        return {int(row[1]) for row in rows if row is not None and row[2] == name}
    return set()


def _search(inodes: set[int]) -> tuple[int, int] | None:
    """Return pid and creator of the one socket, None where no process within sight has it open."""
    if len(inodes) != 1:  # gone, or forged
        return None
    (inode,) = inodes
    for link in glob.iglob("/proc/[0-9]*/fd/*"):  # noqa: PTH207 - pathlib's raises when a process ends meanwhile
        with contextlib.suppress(OSError):
            if os.readlink(link) == f"socket:[{inode}]":  # noqa: PTH115 - text, as the kernel has it
                return int(link.split("/")[2]), os.stat(link).st_uid  # noqa: PTH116 - beside the readlink above
    return None
