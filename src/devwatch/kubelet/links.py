"""The links that containers open their devices by: each leads to the devnode that a device has now. And what a daemon leaves behind."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from devwatch.core.errors import KubeletError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

FOLDER = "devwatch"
"""The folder of the links in that of the plugins: the kubelet removes the sockets there when it starts, and nothing else."""
_UNWRITABLE = "let devwatch write there: as uid 0, and in its sandbox or its container without read-only"
_FULL = "free some space on that file system"
_CURES = {
    errno.ENOENT: "mount the kubelet's folder of plugins (component device-plugin, or devicePlugin.enabled of the chart), or name it "
    "(--device-plugin-dir); it is there once the kubelet has run",
    errno.ENOTDIR: "remove the file that is in the place of the folder",
    errno.EACCES: _UNWRITABLE,
    errno.EPERM: _UNWRITABLE,
    errno.EROFS: _UNWRITABLE,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EEXIST: "remove what is there: devwatch makes it itself",
    errno.EISDIR: "remove what is there: devwatch makes it itself",
}
"""By error: what to do about it."""
_SOCKETS = f"devwatch-{'[0-9a-f]' * 10}.sock"
"""The sockets of the plugins, as the kubelet knows them (`Kubelet.register`)."""


def find_leftovers(folder: Path) -> tuple[Path, ...]:
    """Return what a daemon left in the folder of the plugins: its sockets, its links, and last their folder. Raises `KubeletError`."""
    links = folder / FOLDER
    try:
        found = sorted(folder.iterdir())
        sockets = [path for path in found if path.match(_SOCKETS) and path.is_socket()]
        own = links in found and not links.is_symlink()
        inside = sorted(path for path in links.iterdir() if path.is_symlink()) if own else []
    except OSError as error:
        raise KubeletError(f"{error.filename or folder}: {error.strerror or error}") from error
    return (*sockets, *inside, *([links] if links in found else []))


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove what `find_leftovers` has found; what is gone meanwhile is no fault.

    Raises `KubeletError` for the first that cannot be removed, after all others.
    """
    for error in [error for path in paths if (error := _remove_leftover(path))]:
        raise KubeletError(f"{error.filename}: {error.strerror or error}") from error


def _remove_leftover(path: Path) -> OSError | None:
    """Remove a file, or the folder of the links, and return why that failed."""
    try:
        if path.name == FOLDER and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return error
    return None


class DeviceLinks:
    """The folder of the links. A container that restarts in place opens what its link leads to then, and fails where it is absent."""

    def __init__(self, folder: Path) -> None:
        """Use the folder `FOLDER` in that of the plugins, whatever a former daemon left there."""
        self.folder = folder / FOLDER
        self._made: dict[str, str] | None = None

    def update(self, wanted: Mapping[str, str], *, make: bool = True) -> None:
        """Make exactly these links, by name with the devnode; without `make` only remove all others. Raises `KubeletError`.

        Each that is to lead elsewhere is removed before any is made, so that no two lead to one device even for a moment. One that cannot
        be removed does not keep the others.
        """
        if wanted == self._made and all(self._leads_to(name) == devnode for name, devnode in wanted.items()):
            return
        try:
            made, self._made = self._read(), None
            failed = [self._remove(name) for name, devnode in made.items() if wanted.get(name) != devnode]
            for error in filter(None, failed):
                raise error
            for name, devnode in wanted.items() if make else ():
                if made.get(name) != devnode:
                    (self.folder / name).symlink_to(devnode)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not wanted:
                return  # claims alone need no folder of plugins
            path = error.filename2 or error.filename or self.folder
            hint = _CURES.get(error.errno or 0, "")
            raise KubeletError(f"{path}: {error.strerror or error}", hint=hint) from error
        self._made = dict(wanted) if make else None

    def _leads_to(self, name: str) -> str | None:
        """Return the target of a link; whoever may write here can change it.

        Every cycle asks for each link. pathlib would intern the parts of both paths each time, and the table of interned strings grows.
        """
        try:
            return os.readlink(f"{self.folder}/{name}")  # noqa: PTH115 - as above
        except OSError:
            return None

    def _read(self) -> dict[str, str]:
        """Return what the folder holds, by name: the target of a link, empty for any other file. Folders are none of ours.

        All of it may be removed, so a link in the place of the folder is not followed.
        """
        if self.folder.is_symlink():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.folder)
        self.folder.mkdir(mode=0o755, exist_ok=True)
        found = [path for path in self.folder.iterdir() if path.is_symlink() or not path.is_dir()]
        return {path.name: str(path.readlink()) if path.is_symlink() else "" for path in found}

    def _remove(self, name: str) -> OSError | None:
        """Remove a link, and return why that failed."""
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            return error
        return None
