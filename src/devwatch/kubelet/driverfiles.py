"""The files of the DRA driver in the kubelet's folder: where they are, and what a daemon leaves there and in that of the CDI files."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from devwatch.core.errors import KubeletError
from devwatch.core.names import DRIVER
from devwatch.kubelet.cdi import find_cdi_files
from devwatch.kubelet.claimrecord import ClaimRecord

if TYPE_CHECKING:
    from pathlib import Path

    from devwatch.core.claims import ClaimReference


def driver_folder(kubelet: Path) -> Path:
    """Return the folder of the driver's own files."""
    return kubelet / "plugins" / DRIVER


def driver_socket(kubelet: Path) -> Path:
    """Return the socket that the kubelet sends claims to."""
    return driver_folder(kubelet) / "dra.sock"


def registration_socket(kubelet: Path) -> Path:
    """Return the socket that the kubelet finds, since it watches the folder."""
    return kubelet / "plugins_registry" / f"{DRIVER}-reg.sock"


def find_driver_files(kubelet: Path, cdi: Path) -> tuple[tuple[Path, ...], tuple[ClaimReference, ...]]:
    """Return what a daemon left: its sockets, its record of claims, and the CDI files; and the claims that are prepared.

    A damaged record has no claims, as for the daemon. Raises `KubeletError`, as where the kubelet's folder is missing.
    """
    record = ClaimRecord(driver_folder(kubelet))
    try:
        (kubelet / "plugins_registry").stat()
        sockets = [
            path for path in (registration_socket(kubelet), driver_socket(kubelet)) if stat.S_ISSOCK(_mode(path))
        ]
        paths = (*sockets, *(path for path in record.paths if _mode(path)), *find_cdi_files(cdi))
    except OSError as error:
        raise KubeletError(f"{error.filename}: {error.strerror or error}") from error
    return paths, tuple(claim.reference for claim in record.claims())


def _mode(path: Path) -> int:
    """Return type and permissions of a file, 0 where there is none. Raises `OSError` where that is unknown."""
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
