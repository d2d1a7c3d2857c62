"""The node lock: one daemon per node, by a lock that ends with its process and that a unit and a hostNetwork pod share."""

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
    """The process that has the name of the lock; pid and uid are None where they cannot be found out."""

    pid: int | None
    uid: int | None
    counts: bool
    """Whether it is a daemon that we wait for; False for a squatter: a process that merely has the name."""

    def __str__(self) -> str:
        """Describe it for logs and messages."""
        return f"pid {self.pid or 'unknown'}, uid {'unknown' if self.uid is None else self.uid}"


class NodeLock:
    """The abstract unix socket `devwatch/NODENAME`, with the SHA-256 of NODENAME in place of a name that is too long.

    Any process of the network namespace can bind the name, so the holder is judged before it is waited for:

    | the holder | is found by | counts |
    |---|---|---|
    | accepts connections | the credentials of its listen() (SO_PEERCRED, unix(7)) | if its uid is 0 or our own |
    | accepts none: it has a full backlog, or has not called listen() | the socket's inode in /proc/PID/fd | if its uid is 0 or our own |
    | is found in neither way | nothing | the first time, as a daemon that is just starting or ending; not the second time in a row |

    If a squatter counted, any unprivileged process could keep every daemon of the node out. If an unfindable holder never counted,
    a daemon that is just starting would get a rival.
    """

    def __init__(self, node: str, *, poll: float = 1.0) -> None:
        """Prepare the lock of `node`; `acquire()` and `regain()` try every `poll` seconds."""
        name = f"devwatch/{node}".encode()
        fits = len(name) <= _NAME_LENGTH
        self._name = name if fits else f"devwatch/{hashlib.sha256(node.encode()).hexdigest()}".encode()
        self._poll = poll
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._known: tuple[set[int], Holder] | None = None
        self._doubted = False

    async def acquire(self, on_waiting: Callable[[Holder], None], on_squatter: Callable[[Holder], None]) -> bool:
        """Wait until the lock is ours and return True; return False, after `on_squatter`, where a holder does not count.

        `on_waiting` is called once for every holder that is waited for. Raises as `acquire_once()` does.
        """
        reported = None
        while (holder := self.acquire_once()) is not None:
            if not holder.counts:
                on_squatter(holder)
                return False
            if holder != reported:
                on_waiting(reported := holder)
            await asyncio.sleep(self._poll)
        await self._serve()
        return True

    async def regain(self) -> None:
        """Take the lock when the squatter has released it. Until then no other daemon is kept from taking it.

        Raises `Unavailable` where another daemon was faster: two checks in a row have found a holder that counts.
        """
        rivalled = False
        while (holder := self._retry_without_search()) is not None:
            if holder.counts and rivalled:
                raise Unavailable(f"another daemon holds the node: {holder}")
            rivalled = holder.counts
            await asyncio.sleep(self._poll)
        await self._serve()

    def _retry_without_search(self) -> Holder | None:
        """Try to take the lock, for a daemon at work: return None when it is ours, else the holder.

        Unlike `acquire_once()`, a shortage of sockets does not raise, which would end the daemon, and /proc is not searched, which
        would block the loop every second. A holder that accepts no connection does not count here: another daemon accepts them.
        """
        try:
            owner = None if self._bind() else self._peer_of_connection() or (None, None)
        except Unavailable:
            owner = (None, None)
        return owner and Holder(pid=owner[0], uid=owner[1], counts=_is_trusted(owner[1]))

    async def _serve(self) -> None:
        # Accept and close every connection at once, so that the backlog never fills and other daemons can read our credentials.
        self._server = await asyncio.start_unix_server(lambda _, writer: writer.close(), sock=self._socket)

    def acquire_once(self) -> Holder | None:
        """Try to take the lock: return None when it is ours now, else the holder. Raises `Unavailable` where no socket can be opened."""
        return None if self._bind() else self._judge_holder()

    def _bind(self) -> bool:
        taken = _open_stream_socket()
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
        """Release the lock; does nothing where it is not ours."""
        if self._server is not None:
            self._server.close()
        if self._socket is not None:
            self._socket.close()
        self._server = self._socket = None

    def _judge_holder(self) -> Holder:
        """Find out which process has the name, and whether it counts.

        A known holder comes first, while its socket is the same: connecting again at every poll would fill the backlog of a
        stopped one. Then its own answer, which is cheap, and then the search of /proc, for a holder that does not answer. A holder
        that neither finds is doubted, whichever its socket is: a squatter could present another socket at every check.
        """
        inodes = _socket_inodes(self._name)
        if self._known is not None and self._known[0] == inodes:
            return self._known[1]
        owner = self._peer_of_connection() or _search_open_files(inodes)
        if owner is None:
            doubted, self._doubted = self._doubted, True
            return Holder(pid=None, uid=None, counts=not doubted)
        self._doubted = False
        holder = Holder(pid=owner[0], uid=owner[1], counts=_is_trusted(owner[1]))
        self._known = (inodes, holder) if len(inodes) == 1 else None
        return holder

    def _peer_of_connection(self) -> tuple[int | None, int] | None:
        """Connect to the holder and return its pid, None for one of another PID namespace, and uid; None where it does not accept."""
        with _open_stream_socket() as probe:
            try:
                probe.connect(b"\0" + self._name)
            except OSError:  # it does not listen (ECONNREFUSED), or its backlog is full (EAGAIN)
                return None
            pid, uid, _ = struct.unpack("iII", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return pid or None, uid


def _is_trusted(uid: int | None) -> bool:
    return uid in (0, os.geteuid())


def _open_stream_socket() -> socket.socket:
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise Unavailable(f"cannot check the lock of the node: {error.strerror}") from error


def _socket_inodes(name: bytes) -> set[int]:
    """Return the inodes of the sockets of this name. More than one is a forgery: the kernel does not escape line ends in names."""
    with contextlib.suppress(OSError):
        rows = map(_ROW.fullmatch, Path("/proc/self/net/unix").read_bytes().split(b"\n"))
        return {int(row[1]) for row in rows if row is not None and row[2] == name}
    return set()


def _search_open_files(inodes: set[int]) -> tuple[int, int] | None:
    """Return the pid that has the one socket open, and the uid that opened it; None where no visible process has it open."""
    if len(inodes) != 1:  # gone, or forged
        return None
    (inode,) = inodes
    for link in glob.iglob("/proc/[0-9]*/fd/*"):  # noqa: PTH207 - Path.glob raises when a process ends meanwhile
        with contextlib.suppress(OSError):
            if os.readlink(link) == f"socket:[{inode}]":  # noqa: PTH115 - text, as the kernel has it
                return int(link.split("/")[2]), os.stat(link).st_uid  # noqa: PTH116 - beside the readlink above
    return None
