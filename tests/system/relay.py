"""Carry connections between two network namespaces: a unix socket with a path is seen from both.

`python relay.py LISTEN TARGET [LISTEN TARGET ...]`, each `tcp:HOST:PORT` or `unix:PATH`. The loopback device is brought up
first, which a new network namespace has down. It runs until it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys

SIOCSIFFLAGS = 0x8914
"""Set the flags of a network device (netdevice(7))."""
UP_AND_RUNNING = 0x41


def loopback_up() -> None:
    """Bring up the loopback device of this network namespace; it may be up already."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", UP_AND_RUNNING))


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to an address."""
    kind, _, rest = address.partition(":")
    if kind == "unix":
        return await asyncio.open_unix_connection(rest)
    host, _, port = rest.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def listen(address: str, target: str) -> None:
    """Take connections at `address` and carry each to `target`; return once it listens."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            far_reader, far_writer = await connect(target)
            with contextlib.closing(far_writer):
                await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    kind, _, rest = address.partition(":")
    if kind == "unix":
        await asyncio.start_unix_server(carry, rest)
    else:
        host, _, port = rest.rpartition(":")
        await asyncio.start_server(carry, host, int(port))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry one direction until its end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


async def main(addresses: list[str]) -> None:
    """Serve every pair of addresses."""
    loopback_up()
    for address, target in zip(addresses[::2], addresses[1::2], strict=True):
        await listen(address, target)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
