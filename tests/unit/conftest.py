"""Fixtures of more than one package."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.folders import short_path
from support.pipes import Pipe

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["pipe", "short_path"]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Make a pipe that nobody reads."""
    made = Pipe()
    yield made
    made.close()
