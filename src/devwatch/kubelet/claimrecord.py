"""The record of the prepared claims, which outlives the daemon."""

from __future__ import annotations

import json
import stat
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from devwatch.core.claims import ClaimReference, KnownDevice, PreparedClaim, PreparedDevice
from devwatch.core.slots import Identity
from devwatch.kubelet import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_LIMIT = 4 * 1024 * 1024
"""Bytes of the largest record: 128 devices have far less."""
_ASIDE = ".damaged"
_DAMAGED = (AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""The errors of reading what is not a record."""


class ClaimRecord:
    """The file `claims.json` in the folder of the driver; without claims there is none."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which need not exist."""
        self._path = folder / "claims.json"
        self._signature: files.Signature | None = None
        """Of the file that was read or written last, None where that is none."""

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """The record, one that was set aside, and one that was not written to its end."""
        return self._path, self._path.with_suffix(_ASIDE), files.partial_of(self._path)

    @property
    def is_intact(self) -> bool:
        """Whether the record on the disk is the one that was read or written last."""
        return files.signature_of(self._path) == self._signature

    def claims(self) -> tuple[PreparedClaim, ...]:
        """Return the claims and leave a damaged record where it is: it has none. Raises `KubeletError` where it cannot be read."""
        try:
            return _claims_of(self._read_text() or b"")
        except _DAMAGED:
            return ()
        except OSError as error:
            raise files.error_of(error, self._path) from error

    def read(self) -> tuple[tuple[PreparedClaim, ...], str]:
        """Return the claims, and what is wrong with the record, empty where it is sound. Raises `KubeletError` where it cannot be read.

        A damaged record is set aside, so that the claims that follow can be written.
        """
        aside = self._path.with_suffix(_ASIDE)
        try:
            if (text := self._read_text()) is None:
                return (), ""
            self._signature = files.signature_of(self._path)
            try:
                return _claims_of(text), ""
            except _DAMAGED as error:
                self._path.replace(aside)
                self._signature = None
                return (), f"{self._path} is damaged ({type(error).__name__}) and now {aside}"
        except OSError as error:
            raise files.error_of(error, self._path) from error

    def _read_text(self) -> bytes | None:
        """Return the content, None where there is no record. A file that would block the reader counts as damaged."""
        try:
            found = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(found.st_mode):
            return b""
        with self._path.open("rb") as file:
            return file.read(_LIMIT)

    def write(self, claims: Iterable[PreparedClaim]) -> None:
        """Write the record in one step. Raises `KubeletError`, and leaves the former one then."""
        entries = [asdict(claim) for claim in claims]
        try:
            if entries:
                self._path.parent.mkdir(mode=0o750, exist_ok=True)
                files.write(self._path, json.dumps({"claims": entries}, indent=1) + "\n", mode=0o600)
            else:
                self._path.unlink(missing_ok=True)
            self._signature = files.signature_of(self._path)
        except OSError as error:
            raise files.error_of(error, self._path) from error


def _claims_of(text: bytes) -> tuple[PreparedClaim, ...]:
    """Return the claims in a record. Raises an error of `_DAMAGED`."""
    return tuple(_claim_of(each) for each in json.loads(text)["claims"])


def _claim_of(entry: Mapping[str, Any]) -> PreparedClaim:
    """Return a claim of the record. Raises any error of a value that is not one."""
    devices = tuple(_device_of(each) for each in entry["devices"])
    claim = PreparedClaim(reference=ClaimReference(**_names(entry["reference"])), devices=devices)
    if not claim.is_nameable:
        raise ValueError(claim.reference.uid)
    return claim


def _device_of(entry: Mapping[str, Any]) -> PreparedDevice:
    known, texts = entry["known"], {name: entry[name] for name in ("request", "pool", "id")}
    identity = Identity(**_strings(known["identity"], optional=("vendor", "product", "serial")))
    return PreparedDevice(
        **_names(texts),
        known=KnownDevice(
            **_names({name: known[name] for name in ("resource", "path")}),
            identity=identity,
            in_socket=known["in_socket"] is True,
        ),
        admin=entry["admin"] is True,
        spared=entry["spared"] is True,
    )


def _names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return these values, which the kubelet or the API server is sent. Raises `ValueError` for what UTF-8 cannot encode."""
    found = _strings(values)
    for text in found.values():
        text.encode()
    return found


def _strings(values: Mapping[str, Any], optional: Iterable[str] = ()) -> dict[str, Any]:
    """Return these values. Raises `TypeError` for one that is not a string, nor None where that may be."""
    for name, value in values.items():
        if not isinstance(value, str) and not (value is None and name in optional):
            raise TypeError(name)
    return dict(values)
