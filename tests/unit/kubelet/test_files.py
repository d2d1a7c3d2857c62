"""Small files: written in one step or not at all, and what the user is told to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from devwatch.kubelet import files


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    """By a rename within the folder, with the permissions that were asked for; nothing else stays there."""
    path = tmp_path / "a.json"
    files.write(path, "1", mode=0o600)
    first = path.stat()
    files.write(path, "2", mode=0o600)
    assert (path.read_text("ascii"), path.stat().st_mode & 0o777) == ("2", 0o600)
    assert path.stat().st_ino != first.st_ino
    assert os.listdir(tmp_path) == ["a.json"]  # noqa: PTH208 - names


def test_a_file_that_cannot_be_written_leaves_the_former_one_and_nothing_else(tmp_path: Path) -> None:
    """A folder in its place stands for any reason."""
    path = tmp_path / "a.json"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match=r"a\.json"):
        files.write(path, "1", mode=0o600)
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_what_a_killed_daemon_left_is_no_hindrance(tmp_path: Path) -> None:
    """It was writing the same file; a link in its place is not followed."""
    path, elsewhere = tmp_path / "a.json", tmp_path / "elsewhere"
    files.partial_of(path).symlink_to(elsewhere)
    files.write(path, "1", mode=0o600)
    assert not elsewhere.exists()
    assert not path.is_symlink()


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOENT, "create /run/cdi, or mount it into the container"),
        (errno.ENOTDIR, "create /run/cdi, or mount it into the container"),
        (errno.EACCES, "run as uid 0, with /run/cdi mounted for writing"),
        (errno.EPERM, "run as uid 0, with /run/cdi mounted for writing"),
        (errno.EROFS, "run as uid 0, with /run/cdi mounted for writing"),
        (errno.ENOSPC, "free space in /run/cdi"),
        (errno.EDQUOT, "free space in /run/cdi"),
        (errno.EIO, ""),
    ],
)
def test_the_cure_is_told_with_the_reason(number: int, hint: str) -> None:
    """In the words of the system."""
    error = files.error_of(OSError(number, os.strerror(number)), Path("/run/cdi/a.json"))
    assert (str(error), error.hint) == (f"/run/cdi/a.json: {os.strerror(number)}", hint)


def test_a_reason_that_is_not_from_the_system_is_told_too() -> None:
    """Asyncio raises such, as for a path that is too long."""
    assert str(files.error_of(OSError("AF_UNIX path too long"), Path("/x"))) == "/x: AF_UNIX path too long"
