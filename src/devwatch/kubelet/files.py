"""Write small files in one step, and say what to do where that fails."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from devwatch.core.errors import KubeletError

if TYPE_CHECKING:
    from pathlib import Path

Signature = tuple[int, int, int]
"""Inode, time of the last change in nanoseconds, and size."""
_NEW = ".new"
"""The end of the name of a file that is being written, which no reader of these folders opens."""
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def write(path: Path, text: str, *, mode: int) -> None:
    """Write a file in one step: under another name in the same folder, then by a rename. Raises `OSError`, and leaves the former file then.

    The name begins with a dot, so that neither a container runtime nor the kubelet takes the file for one of theirs. It is not forced onto
    the disk: after a power failure the kubelet prepares all claims again.
    """
    new = partial_of(path)
    new.unlink(missing_ok=True)
    try:
        with os.fdopen(
            os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "w", encoding="ascii"
        ) as file:
            file.write(text)
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def signature_of(path: Path) -> Signature | None:
    """Return what tells a file from one that has replaced it, None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def partial_of(path: Path) -> Path:
    """Return the name under which a file is written; one that is left over is from a daemon that was killed meanwhile."""
    return path.with_name(f".{path.name}{_NEW}")


def error_of(error: OSError, path: Path) -> KubeletError:
    """Return the error for the user: the path, the reason of the system, and the cure as a hint."""
    return KubeletError(f"{path}: {error.strerror or error}", hint=_hint_of(error.errno, path.parent))


def _hint_of(number: int | None, folder: Path) -> str:
    if number in _MISSING:
        return f"create {folder}, or mount it into the container"
    if number in _FORBIDDEN:
        return f"run as uid 0, with {folder} mounted for writing"
    return f"free space in {folder}" if number in _FULL else ""
