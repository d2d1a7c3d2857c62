"""The host as a command sees it: one scan, without a monitor, and the troubles that a daemon would have here."""

from __future__ import annotations

import os
import re
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from devwatch.core.device import USB
from devwatch.core.errors import UsageError
from devwatch.core.names import subsystem_fault
from devwatch.host import udev
from devwatch.host.lister import Lister
from devwatch.host.mounts import Roots

if TYPE_CHECKING:
    from collections.abc import Mapping

    from devwatch.core.device import Device
    from devwatch.core.inventory import Scan

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAME_LENGTH = 253
"""A Node is named as a DNS subdomain (apimachinery, `IsDNS1123Subdomain`)."""


def node_name(flag: str | None, environ: Mapping[str, str], *, option: str = "--node-name") -> str:
    """Return the name of this host's Node: the flag, `NODE_NAME`, or the lower-cased host name as the kubelet does (`GetHostname`).

    Raises `UsageError` where that is not a valid object name; `option` is the name of the flag in this command.
    """
    name = flag or environ.get("NODE_NAME") or socket.gethostname().strip().lower()
    if len(name) > _NAME_LENGTH or not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a name of a Node (lower-case letters, digits, - and .): give one with {option} or NODE_NAME"
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The devices of this host, without a monitor for changes."""

    lister: Lister
    roots: Roots = field(default_factory=Roots)

    @classmethod
    def open(cls) -> Host:
        """Return the real host. Raises `Unavailable` where libudev is not installed."""
        return cls(lister=Lister(record=udev.record_reader()))

    def scan(self, paths: frozenset[str], subsystems: frozenset[str], now: float) -> Scan:
        """Scan these subsystems once; `paths` are the links that the configuration names."""
        self.lister.paths, self.lister.subsystems = paths, subsystems
        return self.lister.scan(now)

    def driver(self, device: Device) -> str | None:
        """Return the name of the driver of a device, None where it has none."""
        place = "driver" if device.subsystem == USB else "device/driver"
        try:
            return Path(f"{self.roots.sys}{device.devpath}/{place}").readlink().name
        except OSError:
            return None

    def subsystem_of(self, path: str) -> str:
        """Return the subsystem of a devnode, a link to one or a device in sysfs, empty where the kernel names none."""
        try:
            found = os.stat(path)  # noqa: PTH116 - its device number is wanted
            number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
            place = f"{self.roots.sys}/dev/char/{number}" if stat.S_ISCHR(found.st_mode) else path
            name = Path(f"{place}/subsystem").readlink().name
        except (OSError, ValueError):
            return ""
        return "" if subsystem_fault(name) else name

    def troubles(self) -> tuple[str, ...]:
        """Return why a daemon here would not receive udevd's uevents, one line each."""
        return udev.monitor_troubles(self.roots)
