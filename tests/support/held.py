"""What an object holds on to."""

from __future__ import annotations

import gc
import types

_SHARED = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType, types.FrameType)
"""What leads to everything there is, and belongs to no object."""


def texts_held_by(*roots: object, but: tuple[object, ...] = ()) -> set[str]:
    """Return every string that can be reached from `roots`, not through any of `but`."""
    found: set[str] = set()
    seen = {id(each) for each in but}
    left = list(roots)
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, _SHARED):
            continue
        seen.add(id(each))
        if isinstance(each, str):
            found.add(each)
        left.extend(gc.get_referents(each))
    return found
