"""Keep the memory of the process small over months of uevents."""

from __future__ import annotations

import contextlib
import ctypes
import gc

_M_TRIM_THRESHOLD = -1
"""The parameter of mallopt(3)."""
_LARGE = 128 * 1024
"""Bytes: glibc's own first limit."""


def return_freed_memory() -> None:
    """Let freed memory go back to the kernel, from all that is loaded after this call on.

    glibc raises the size from which a block is mapped alone to that of the largest one freed, and leaves twice that at the end of the heap.
    A limit that is set stays as it is (mallopt(3)). Another C library may have no such function.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, _LARGE)


def collect_garbage_often() -> None:
    """Collect cyclic garbage often: that of a storm of uevents would otherwise stay for minutes, and the memory would never be returned.

    All imported modules live as long as the program. They are frozen, that is, hidden from the collector; the few other objects are then
    collected often at no measurable cost.
    """
    gc.freeze()
    gc.set_threshold(200, 5, 2)
