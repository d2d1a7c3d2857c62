"""The udev record of a device: read it once for every time that udevd has written its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from devwatch.core.device import TTY
from devwatch.core.inventory import ARRIVAL_TIMEOUT
from devwatch.core.keys import KEYS
from devwatch.host.files import stamp

if TYPE_CHECKING:
    from devwatch.core.device import Device
    from devwatch.host.files import Stamp

Record = Mapping[str, str]


@dataclass(slots=True, kw_only=True)
class RecordFile:
    """The file of one registration's udev record, and the record as it was read last.

    udevd renames a new file into place, so that the stamp changes with each write.
    """

    path: str
    inherited: Stamp | None = None
    """The stamp of the record that the registration before left under this device number.

    udevd removes that record when it handles the removal, which may be well after the kernel has registered the next device.
    """
    record: Record | None = None
    links: tuple[str, ...] = ()
    """The links that udevd wants to lead to the device."""
    stamp: Stamp | None = None
    """The stamp of the file when the record was read."""
    current: bool = False
    """Whether nothing is to be read until udevd writes the file again."""
    _content: bytes | None = None
    """The content of the file when the record was read."""
    _missing_since: float | None = None
    """When the file was first found missing, in seconds; None while it is there, or if no record was ever read."""

    def forget(self) -> None:
        """Forget the record, so that the next scan reads it again."""
        self.record = self.stamp = self._content = self._missing_since = None
        self.links, self.current = (), False

    def refresh(self, read: Callable[[], Record | None], now: float) -> None:
        """Read the record again if udevd has written its file since.

        The cases, in this order:

        - The file is missing: keep the record. Vendor, product, serial and socket of one registration cannot change, and udevd may be
          about to write the record again.
        - The stamp is unchanged: keep the record, without reading.
        - The stamp is that of the registration before: ignore the file.
        - The same content in a new file: keep the identical record, so that the device is not seen as changed.
        - libudev finds no complete record: udevd has not finished. Keep what is known, and try again at the next scan.
        """
        found = stamp(self.path)
        if found is None:
            if self.record is not None and self._missing_since is None:
                self._missing_since = now
        else:
            self._missing_since = None
        self.current = found in (None, self.stamp, self.inherited) or self._read(found, read)

    def _read(self, found: Stamp, read: Callable[[], Record | None]) -> bool:
        """Read the record of this stamp, and return whether there is a complete one."""
        content = _read_content(self.path)
        same = content is not None and content == self._content
        record = self.record if same else read()
        if record is not None:
            self.record = self.record if record == self.record else record
            self.links = tuple(record.get("DEVLINKS", "").split())
            self.stamp, self._content = found, content
        return record is not None

    def in_flux(self, now: float) -> bool:
        """Return whether udevd is about to make the links again, after a removal and an addition within milliseconds.

        udevd removes the record before the links and writes it after them. So the links are in flux while the record is missing, but for
        no longer than `ARRIVAL_TIMEOUT`, and if it has changed since it was read.
        """
        if self._missing_since is not None:
            return now < self._missing_since + ARRIVAL_TIMEOUT
        return self.record is not None and stamp(self.path) != self.stamp

    def complete(self, device: Device) -> Device:
        """Return a device with what the record says of it; without a record as it is."""
        record = self.record
        if record is None:
            return device
        ids: Mapping[str, str | None] = record
        if device.subsystem != TTY and "ID_VENDOR_ID" not in record:
            # udev's rules do not read the ids of every device, such as those of hidraw (50-udev-default.rules): sysfs has them.
            ids = {**_ids_of(device), **record}
        return replace(
            device,
            properties=record,
            vendor=_hex_digits(ids.get("ID_VENDOR_ID")),
            product=_hex_digits(ids.get("ID_MODEL_ID")),
            serial=ids.get("ID_SERIAL_SHORT"),
            interface=_lower(ids.get("ID_USB_INTERFACE_NUM")),
            port=record.get("ID_PATH", device.port),
        )


def _ids_of(device: Device) -> dict[str, str | None]:
    """Return the ids that are known of a device, by the properties that udev stores them in."""
    return {key.source: getattr(device, key.name) for key in KEYS.values() if key.source and not key.recorded}


def _hex_digits(text: str | None) -> str | None:
    """Return the digits of a number without `0x`: udev copies the ids of a PCI card from sysfs as `0x8086` (rules.d/60-serial.rules)."""
    return text.lower().removeprefix("0x") if text else text


def _lower(text: str | None) -> str | None:
    return text.lower() if text else text


def _read_content(path: str) -> bytes | None:
    """Return the content of a file, None where it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return None
