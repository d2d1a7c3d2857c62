"""Short folders: the address of a unix socket has 108 bytes (unix(7))."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Return a folder whose path leaves room for the names of sockets."""
    with tempfile.TemporaryDirectory(prefix="dw-") as folder:
        yield Path(folder)
