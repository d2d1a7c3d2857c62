"""Which worker of pytest-xdist runs which tests.

Its own groups do not do: with pytest 9.2 `--dist loadgroup` of pytest-xdist 3.8 groups nothing, and says nothing of it.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

from support.machine import scope_of


class OneForTheMachine(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no type information
    """Gives one worker all tests that need the machine to themselves. As the largest piece of work they begin first."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)
