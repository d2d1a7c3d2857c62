"""A host made of files: sysfs, /dev and the records of udev, in which everything can break that breaks in the field."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from devwatch.host.lister import Lister
from devwatch.host.mounts import Roots

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from devwatch.core.device import Device
    from devwatch.core.inventory import Scan

NUMBERS = tuple(Path("/dev", name) for name in ("null", "zero", "full", "random", "urandom", "tty"))
"""Character devices that every machine has: the nodes of the made-up host are links to them, which needs no root."""

LOOK = """
import json, os, resource, sys
from devwatch.host.lister import Lister
from devwatch.host.mounts import Roots
roots, paths = json.loads(sys.argv[1])
lister = Lister(record=lambda path: None, roots=Roots(**roots), paths=frozenset(paths))
looks = []
def scan():
    seen = lister.scan(0)
    looks.append([[device.devnode for device in seen.devices], seen.doubts, seen.troubles])
"""
ONCE = "scan()"
TELL = """
print(json.dumps(looks))
"""


class Host:
    """A host in a folder: sysfs, /dev, and the database of udev; all of it files that a test may break."""

    def __init__(self, home: Path) -> None:
        """Begin with the kernel's own ttys, a /dev that the kernel fills, and a udevd."""
        self.home = home
        self.sys, self.dev, self.run = home / "sys", home / "dev", home / "run"
        self.ttys, self.data = self.sys / "class/tty", self.run / "data"
        for folder in (
            self.ttys,
            self.sys / "bus/platform",
            self.dev / "serial/by-id",
            self.dev / "serial/by-path",
            self.data,
        ):
            folder.mkdir(parents=True)
        (self.run / "control").touch()
        self.mounts(f"24 1 0:6 / {self.dev} rw,relatime shared:2 - devtmpfs devtmpfs rw")
        self.roots = Roots(sys=str(self.sys), dev=str(self.dev), run=str(self.run), mountinfo=str(home / "mountinfo"))
        self.reads: list[str] = []
        """The sysfs paths of which the record was read."""
        self.on_read: Callable[[], None] = lambda: None
        self.lister = Lister(record=self.record, roots=self.roots)
        self._graves = 0
        for name in ("tty", "console"):
            self.register(name, "devices/virtual/tty", node=None)

    def mounts(self, *lines: str) -> None:
        """Write the mount table."""
        (self.home / "mountinfo").write_text("".join(f"{line}\n" for line in lines))

    def scan(self, now: float = 0) -> Scan:
        """Look once more."""
        return self.lister.scan(now)

    def found(self, now: float = 0) -> dict[str, Device]:
        """Return the devices of a look that must be certain, by the name of the node."""
        scan = self.scan(now)
        assert scan.doubts == ()
        return {device.devnode.removeprefix(f"{self.dev}/"): device for device in scan.devices}

    def register(self, name: str, parent: str, *, node: Path | None, **attributes: str) -> Path:
        """Register a tty with the kernel: a folder in sysfs, an entry in its class, a node in /dev; None for no node."""
        folder = self.sys / parent / name
        folder.mkdir(parents=True)
        self.write(folder, dev=device_number(node or NUMBERS[-1]), **attributes)
        (self.ttys / name).symlink_to(os.path.relpath(folder, self.ttys))
        if node:
            path = self.node(name)
            path.parent.mkdir(exist_ok=True)
            path.symlink_to(node)
        return folder

    def usb_device(  # noqa: PLR0913 - each is a property of a device that a test may want to set, by its name
        self,
        name: str = "1-1",
        *,
        at: str = "pci0000:00/0000:00:14.0/usb1/1-1",
        devnode: str = "bus/usb/001/004",
        node: Path = NUMBERS[0],
        vendor: str = "1a6e",
        product: str = "089a",
        serial: bytes | None = None,
        device_class: str = "00",
    ) -> Path:
        """Plug a USB device as a whole: it has its devnode, and an interface that has none."""
        body, bus = self.sys / "devices" / at, self.sys / "bus/usb/devices"
        face = body / f"{body.name}:1.0"
        face.mkdir(parents=True)
        bus.mkdir(parents=True, exist_ok=True)
        number = device_number(node)
        uevent = "\n".join((f"MAJOR={number.split(':')[0]}", f"DEVNAME={devnode}", "DEVTYPE=usb_device"))
        self.write(body, idVendor=vendor, idProduct=product, bDeviceClass=device_class, uevent=uevent, dev=number)
        self.write(face, bInterfaceNumber="00", uevent="DEVTYPE=usb_interface")
        self.belongs(body, "usb")
        for entry in (body, face):
            (bus / (name if entry is body else entry.name)).symlink_to(os.path.relpath(entry, bus))
        if serial is not None:
            (body / "serial").write_bytes(serial + b"\n")
        path = self.dev / devnode
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(node)
        return body

    def member(self, subsystem: str, name: str, parent: str, *, node: Path = NUMBERS[0], **attributes: str) -> Path:
        """Register a device of a class with the kernel, and make its node."""
        folder, entries = self.sys / parent / subsystem / name, self.sys / "class" / subsystem
        folder.mkdir(parents=True)
        entries.mkdir(exist_ok=True)
        self.write(folder, dev=device_number(node), uevent=f"DEVNAME={name}", **attributes)
        (entries / name).symlink_to(os.path.relpath(folder, entries))
        (self.dev / name).symlink_to(node)
        return folder

    def belongs(self, folder: Path, subsystem: str) -> None:
        """Let a folder in sysfs be a device of a subsystem."""
        (folder / "subsystem").symlink_to(f"/sys/bus/{subsystem}")

    def stick(  # noqa: PLR0913 - each is a property of a stick that a test may want to set, by its name
        self,
        name: str = "ttyUSB0",
        *,
        at: str = "usb1/1-1",
        node: Path = NUMBERS[0],
        interface: str = "00",
        serial: bytes | None = b"A1",
        vendor: str = "0403",
        product: str = "6001",
    ) -> Path:
        """Plug a USB serial stick; another tty of the same `at` is another interface of the same stick."""
        body = self.sys / "devices" / at
        face = body / f"{body.name}:1.{int(interface, 16)}"
        folder = self.register(name, f"devices/{at}/{face.name}/{name}/tty", node=node)
        self.write(body, idVendor=vendor, idProduct=product)
        self.write(face, bInterfaceNumber=interface)
        if serial is not None:
            (body / "serial").write_bytes(serial + b"\n")
        return folder

    def write(self, folder: Path, **attributes: str) -> None:
        """Write attributes as sysfs shows them, each a line."""
        for name, value in attributes.items():
            (folder / name).write_text(f"{value}\n")

    def node(self, name: str) -> Path:
        """Return the node of a tty."""
        return self.dev / name.replace("!", "/")

    def unregister(self, name: str) -> None:
        """Pull a tty; its folder and entry are kept elsewhere, so that the next one cannot get the same inodes."""
        folder = (self.ttys / name).resolve()
        self._graves += 1
        (self.ttys / name).rename(self.home / f"entry{self._graves}")
        self.node(name).unlink(missing_ok=True)
        folder.rename(self.home / f"grave{self._graves}")

    def link(self, path: str, name: str) -> str:
        """Make a link in /dev to the node of a tty, or move it there; return its absolute path."""
        link = self.dev / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(self.node(name))
        return str(link)

    def rules_run(self, name: str | Path, **properties: str) -> None:
        """Have udev write its record: it renames a new file into place."""
        fresh = self.data / "fresh"
        fresh.write_text(json.dumps(properties))
        fresh.rename(self.database(name))

    def database(self, name: str | Path) -> Path:
        """Return the file that holds udev's record of a tty, or of the device with this folder in sysfs."""
        return self.data / f"c{(self.ttys / name / 'dev').read_text().strip()}"

    def record(self, path: str) -> Mapping[str, str] | None:
        """Read a record from the database, as libudev does."""
        self.reads.append(path)
        try:
            record: dict[str, str] = json.loads((self.data / f"c{Path(path, 'dev').read_text().strip()}").read_text())
        except FileNotFoundError:
            return None
        finally:
            self.on_read()
        return record

    def scans(self, script: str = ONCE) -> list[tuple[list[str], list[str], list[str]]]:
        """Look from a process without capabilities, for which file modes count; return nodes, doubts and troubles of each look."""
        world = json.dumps([asdict(self.roots), sorted(self.lister.paths)])
        done = subprocess.run(
            [*POWERLESS, sys.executable, "-c", LOOK + script + TELL, world],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert done.returncode == 0, done.stderr
        return [(nodes, doubts, troubles) for nodes, doubts, troubles in json.loads(done.stdout)]


POWERLESS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--") if os.geteuid() == 0 else ()
"""Takes all capabilities from a program that root starts; it stays the owner of its files."""


def device_number(node: Path) -> str:
    """Return the number of a character device as sysfs shows it."""
    device = node.stat().st_rdev
    return f"{os.major(device)}:{os.minor(device)}"
