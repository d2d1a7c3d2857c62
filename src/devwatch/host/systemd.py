"""Report the state of the service to systemd: sd_notify(3) and sd_watchdog_enabled(3), without libsystemd."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Final

from devwatch.core.text import blank

if TYPE_CHECKING:
    from collections.abc import Mapping

_STATUS_LENGTH: Final = 500
"""Characters, of up to four bytes each: systemd ignores a datagram of more than 4096 bytes (NOTIFY_BUFFER_MAX)."""


class Notifier:
    """Sends the service's state to systemd.

    Every method returns False where the message could not be delivered, as when systemd is busy and its queue full, and may be
    repeated; without an address it sends nothing and returns True. No method raises or blocks: the service runs without systemd too.
    """

    def __init__(self, address: str | None) -> None:
        """Send to `address`, a path or `@` and an abstract name; None sends nothing."""
        self._address = f"\0{address[1:]}" if address is not None and address.startswith("@") else address

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Notifier:
        """Return a notifier for NOTIFY_SOCKET. An address that is not of AF_UNIX counts as none."""
        address = environ.get("NOTIFY_SOCKET", "")
        return cls(address if address.startswith(("/", "@")) else None)

    def ready(self) -> bool:
        """Report that start-up, or a reload, is complete."""
        return self._send("READY=1")

    def status(self, text: str) -> bool:
        """Show `text` in `systemctl status`, on one line and cut to 500 characters."""
        return self._send(f"STATUS={blank(text)[:_STATUS_LENGTH]}")

    def reloading(self) -> bool:
        """Report that the configuration is being reloaded; `ready()` must follow (Type=notify-reload)."""
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> bool:
        """Report that the service is shutting down."""
        return self._send("STOPPING=1")

    def watchdog(self) -> bool:
        """Report that the service is alive."""
        return self._send("WATCHDOG=1")

    def _send(self, message: str) -> bool:
        if self._address is None:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(message.encode(), self._address)
        except OSError:
            return False
        return True


def watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Return the interval for `watchdog()` in seconds: half of WATCHDOG_USEC, as sd_watchdog_enabled(3) advises.

    None where systemd runs no watchdog for this process.
    """
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(os.getpid()))
    if pid != str(os.getpid()) or not usec.isdecimal() or int(usec) == 0:
        return None
    return int(usec) / 2_000_000
