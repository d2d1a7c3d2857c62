"""What a machine has once, and the tests that must not have it at the same time."""

from __future__ import annotations

import pytest

machine_alone = pytest.mark.xdist_group("machine")
"""One worker runs these tests, one after the other.

A program that listens to the kernel's uevents looks like udevd to every daemon of its network namespace.
"""
