"""A folder that is asked whether its entries are as they were."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from devwatch.host.files import Folder

if TYPE_CHECKING:
    from pathlib import Path


def test_what_was_examined_some_seconds_after_the_last_change_is_unchanged(tmp_path: Path) -> None:
    """Two changes at once leave one time; a later one leaves another."""
    folder = Folder(path=str(tmp_path))
    assert [folder.unchanged_after(now) for now in (10, 20, 30)] == [15, 15, 15]
    os.utime(tmp_path, (0, 0))
    assert [folder.unchanged_after(now) for now in (40, 50)] == [45, 45]


def test_another_folder_in_the_place_is_a_change(tmp_path: Path) -> None:
    """Something was mounted over it, or it was moved away; the time may be the same."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    folder = Folder(path=str(tmp_path / "first"))
    assert folder.unchanged_after(10) == 15
    (tmp_path / "first").rename(tmp_path / "away")
    assert folder.unchanged_after(20) == math.inf
    (tmp_path / "second").rename(tmp_path / "first")
    assert folder.unchanged_after(30) == 35
