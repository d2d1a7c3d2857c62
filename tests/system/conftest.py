"""These tests share udevd, the uevents, a lock and the parts that are started once: all of them are one worker's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.machine import machine_alone

if TYPE_CHECKING:
    import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Put every test of this folder into the group that one worker runs; as the largest one it begins first."""
    item.add_marker(machine_alone)
