"""Where the host's file systems are mounted, and what is missing there."""

from __future__ import annotations

import os
from dataclasses import dataclass

from devwatch.host.files import status


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


@dataclass(slots=True, kw_only=True)
class Mounts:
    """The mounts of this host as the last `refresh` found them."""

    roots: Roots
    devtmpfs: bool = False
    """Whether /dev is a devtmpfs."""
    _mounted: tuple[int, int] | None = None
    """Device and inode of /dev at the last refresh."""

    def refresh(self) -> bool:
        """Return whether another file system is mounted on /dev than before. The mount table, long on a busy node, is read only then."""
        found = status(self.roots.dev)
        mounted = (found.st_dev, found.st_ino) if found else (0, 0)
        if self._mounted == mounted:
            return False
        self.devtmpfs = is_devtmpfs(self.roots)
        self._mounted = mounted
        return True

    def troubles(self) -> tuple[str, ...]:
        """Return what is missing on this host, each with its cure."""
        troubles = []
        if not self.devtmpfs:
            troubles.append(
                f"{self.roots.dev} is not a devtmpfs: mount the host's /dev, else a device counts as long as sysfs lists it"
            )
        if not self.roots.udevd:
            troubles.append(
                f"there is no udevd in {self.roots.run}: start it or mount the host's whole /run/udev; port and properties are unknown"
            )
        return tuple(troubles)


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
