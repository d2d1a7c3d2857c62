"""Scan the devices of this host: enumerate them in sysfs, check their presence by `stat`, and never take an error for an absence."""

from __future__ import annotations

import errno
import math
import os
import stat
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from devwatch.core.device import TTY, Device, by_stability
from devwatch.core.inventory import Scan
from devwatch.host.files import GONE, Folder, describe, read_attribute
from devwatch.host.links import Links
from devwatch.host.mounts import Mounts, Roots
from devwatch.host.obstructions import Obstructions, tty_directories
from devwatch.host.subsystems import Subsystem, incomplete_sysfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from devwatch.host.records import Record
    from devwatch.host.sysfs import Registration

    Entries = Mapping[str, int]


@dataclass(slots=True, kw_only=True)
class Lister:
    """Lists the present devices. `record` reads the complete udev record of a sysfs path and returns None where there is none.

    An error is never an absence. A device is missing from a scan only if the kernel says so: no entry in sysfs, an errno of
    `GONE`, another device under its devnode, or an 8250 port without hardware. Any other error becomes a doubt, which makes the scan
    uncertain, and an uncertain scan lowers no count.
    """

    record: Callable[[str], Record | None]
    roots: Roots = field(default_factory=Roots)
    paths: frozenset[str] = frozenset()
    """Further paths that may be links to a devnode: those that the configuration names."""
    subsystems: frozenset[str] = frozenset({TTY})
    """The subsystems to scan."""
    _obstructions: Obstructions = field(init=False, default_factory=Obstructions)
    _mounts: Mounts = field(init=False)
    _links: Links = field(init=False)
    _subsystems: dict[str, Subsystem] = field(init=False, default_factory=dict)
    _folders: tuple[Folder, ...] = field(init=False)
    """The folders of devnodes and of records."""

    def __post_init__(self) -> None:
        """Start with nothing known."""
        self._mounts = Mounts(roots=self.roots)
        self._links = Links(roots=self.roots, obstructions=self._obstructions)
        self._folders = (Folder(path=self.roots.dev), Folder(path=f"{self.roots.run}/data"))

    def scan(self, now: float) -> Scan:
        """Return the present devices. Never raises `OSError`: an error of one device is a doubt, and the others are still scanned.

        Without /dev or the listing of links there is nothing to scan: the scan has no device, and a doubt. A sysfs without the
        kernel's own entries is not complete (masked or foreign), which no error reports.
        """
        troubles: tuple[str, ...] = ()
        doubts: list[str] = []
        try:
            if self._mounts.refresh():
                self._obstructions.suspect(tty_directories(self.roots.dev))
            troubles = self._mounts.troubles()
            listings = self._list(doubts)
            links = self._links.by_number(self.paths, doubts)
        except OSError as error:
            return Scan(at=now, doubts=(*doubts, describe(error)), troubles=troubles, subsystems=self.subsystems)
        found = tuple(self._devices(listings, links, doubts, now))
        for subsystem, entries in listings:
            subsystem.registrations.keep(entries.keys())
        blocked = self._obstructions.report()
        return Scan(
            at=now,
            devices=found,
            doubts=tuple(doubts),
            udevd=self.roots.udevd,
            troubles=(*troubles, *blocked),
            blocked=blocked,
            subsystems=self.subsystems,
        )

    def _list(self, doubts: list[str]) -> list[tuple[Subsystem, Entries]]:
        """Return the entries of each subsystem that can be listed. Raises `OSError`."""
        self._subsystems = {
            name: self._subsystems.get(name) or Subsystem.of(name, self.roots, self._obstructions)
            for name in sorted(self.subsystems)
        }
        found = ((subsystem, subsystem.entries(doubts)) for subsystem in self._subsystems.values())
        listings: list[tuple[Subsystem, Entries]] = [(each, entries) for each, entries in found if entries is not None]
        if not doubts:
            tty = next((entries.keys() for subsystem, entries in listings if subsystem.name == TTY), None)
            doubts += incomplete_sysfs(self.roots, tty=tty, bus=self.subsystems != {TTY})
        return listings

    def _devices(
        self,
        listings: Sequence[tuple[Subsystem, Entries]],
        links: Mapping[int, list[str]],
        doubts: list[str],
        now: float,
    ) -> Iterator[Device]:
        """Yield the present devices.

        Nothing but virtual devices can be left unexamined, and on most nodes these are nearly all ttys: a stick is examined in every
        scan. The folders are checked first, so that a change of them during this scan is noticed by the next one.
        """
        unchanged_after = max(folder.unchanged_after(now) for folder in self._folders)
        every = ((each, name, entry) for each, entries in listings for name, entry in entries.items())
        for subsystem, name, entry in every:
            try:
                known = subsystem.registrations.find(name, entry)
                if known is None:
                    continue
                listed = links.get(known.bare.number, ())
                if known.examined < unchanged_after or listed:
                    self._examine(known, listed, now)
                if known.device is not None:
                    yield known.device
            except OSError as error:
                doubts.append(describe(error))

    def _examine(self, known: Registration, listed: Sequence[str], now: float) -> None:
        """Update the device of a registration, to None where it is not present. Raises `OSError` where that is not certain.

        Presence is checked again after a change: if the device has departed while its record and links were read, the change may be
        that its links lead nowhere by now, and the device must not be reported without them.
        """
        known.examined, before = -math.inf, known.device
        if self._is_present(known):
            known.device = self._current_device(known, listed, now)
            if known.device is before or self._is_present(known):
                if known.settled:
                    known.examined = now
                return
        if known.device is not None:
            self._obstructions.suspect((known.device.devnode, *known.device.links))
        known.record.forget()
        known.device = None

    def _is_present(self, known: Registration) -> bool:
        """Return whether the devnode is the character device that sysfs announces, and a port is behind it.

        An entry in sysfs is not enough: the kernel removes it a moment after the devnode. Another file under the devnode (a directory that
        a container runtime made, or the device of the next registration) is an absence too. Where /dev is not a devtmpfs, a missing
        devnode proves nothing, since no kernel makes or removes it there: then the entry counts. An error outside `GONE` is raised and
        becomes a doubt.
        """
        path = known.bare.devnode
        try:
            status = os.lstat(path)
            known.direct = not stat.S_ISLNK(status.st_mode)
            status = status if known.direct else os.stat(path)
            here = stat.S_ISCHR(status.st_mode) and status.st_rdev == known.bare.number
            if not here:
                self._obstructions.examine(path, status)
        except OSError as error:
            if error.errno not in GONE:
                raise
            known.direct = False
            here = error.errno == errno.ENOENT and not self._mounts.devtmpfs
        return here and not (known.typed and self._has_no_hardware(known.bare))

    def _has_no_hardware(self, device: Device) -> bool:
        """Return whether the 8250 driver offers a port that does not exist (`PORT_UNKNOWN`, include/uapi/linux/serial.h)."""
        try:
            return (read_attribute(f"{self.roots.sys}{device.devpath}/type") or b"0").strip() == b"0"
        except PermissionError:
            return False  # some kernels show the type to root alone: then the devnode is enough

    def _current_device(self, known: Registration, listed: Sequence[str], now: float) -> Device:
        """Return the present device with its record and links; the identical object where nothing has changed.

        A stick that resets is removed and added within milliseconds: udevd removes the old record, then the old links, and writes
        the new links, then the new record. A scan in between (`in_flux`) finds links missing that will be back. Two cases:

        - A complete device keeps the links that lead nowhere now, or a resource that matches by path would lose it for a moment. A link
          that leads to another device by now is not kept.
        - A device that has no complete record yet must not take the record that was just read: it is that of the registration before.
        """
        file, before = known.record, known.device
        file.refresh(lambda: self.record(f"{self.roots.sys}{known.bare.devpath}"), now)
        found = self._links_to(known, listed)
        if (before is None or before.links != found) and file.in_flux(now):
            if before is not None and before.complete:
                dangling = {link for link in before.links if self._links.number(link) is None}
                found = tuple(sorted({*found, *dangling}, key=by_stability))
            else:
                file.forget()
                found = self._links_to(known, listed)
        links_known = self._mounts.devtmpfs or file.record is not None
        current = (file.record, found, links_known)
        if before is not None and (before.properties, before.links, before.links_known) == current:
            return before
        return file.complete(replace(known.bare, links=found, links_known=links_known))

    def _links_to(self, known: Registration, listed: Sequence[str]) -> tuple[str, ...]:
        """Return the links to a device, the most stable first: the `listed` ones, and those of its record that lead to it now.

        Where /dev is not a devtmpfs, links cannot be followed to a device number, and the record is trusted.
        """
        if not known.record.links and not listed:
            return ()  # nearly all virtual consoles: spare them the sort
        trusted = not self._mounts.devtmpfs
        found = {link for link in known.record.links if trusted or self._links.number(link) == known.bare.number}
        return tuple(sorted({*found, *listed} - {known.bare.devnode}, key=by_stability))
