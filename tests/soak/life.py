"""What happens to the sticks of a node in the soak: some flap, some are pulled while a pod has them, and are back after a while."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from soak.config import CLAIMED, FLAPPING, HANDED, MOUNTED, PASSING
from system.udevd import DEV, Node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from soak.config import Kind
    from soak.isolation import UeventSender
    from system.udevd import Sticks

AWAY = 14.0
"""Seconds for which a stick that a pod has is away: long enough for an eviction, and for the slice and the list without it."""
MOMENT = 0.5
"""Seconds for which one is away that returns under another device number, before its pod is evicted for its absence."""


@dataclass(slots=True, kw_only=True)
class Stick:
    """One stick, and the consoles that it can be; it is the first one now."""

    kind: Kind
    serial: str
    consoles: deque[str]
    plugged: bool = True


def _sticks(kind: Kind, *groups: tuple[int, ...]) -> list[Stick]:
    return [
        Stick(kind=kind, serial=f"{kind.product}-{group[0]}", consoles=deque(f"tty{number}" for number in group))
        for group in groups
    ]


@dataclass(slots=True, kw_only=True)
class Life:
    """The sticks. Each stays the same one, by its serial, under whichever of its consoles it returns."""

    sticks: Sticks
    send: UeventSender
    uevents: int = 0
    flapping: list[Stick] = field(
        default_factory=lambda: [
            stick
            for kind, first in zip(FLAPPING, (20, 24, 28), strict=True)
            for stick in _sticks(kind, *((number,) for number in range(first, first + 4)))
        ]
    )
    held: list[Stick] = field(
        default_factory=lambda: [
            *_sticks(MOUNTED, (40,), (41,)),
            *_sticks(HANDED, (48, 49), (50, 51), (52, 53), (54, 55)),
            *_sticks(CLAIMED, (56, 57), (58, 59), (60, 61)),
            *_sticks(PASSING, (62,)),
        ]
    )
    _nodes: dict[str, Node] = field(default_factory=dict)
    _returns: list[tuple[float, Stick]] = field(default_factory=list)
    _jitter: random.Random = field(default_factory=lambda: random.Random(7))  # noqa: S311 - the same life every time
    _turns: Iterator[Stick] = field(init=False)
    _renumbered: Iterator[Stick] = field(init=False)

    def __post_init__(self) -> None:
        """Pull the sticks in turn, one of another way of publishing each time."""
        self._turns = _for_ever(self._by_kind(MOUNTED, HANDED, CLAIMED))
        self._renumbered = _for_ever(self._by_kind(HANDED, CLAIMED))

    def _by_kind(self, *kinds: Kind) -> list[Stick]:
        queues = [[stick for stick in self.held if stick.kind == kind] for kind in kinds]
        return [queue[number % len(queue)] for number in range(12) for queue in queues]

    def begin(self) -> None:
        """Plug every stick once. A console that is not the stick now keeps its rule, and has no node."""
        for stick in (*self.flapping, *self.held):
            for tty in stick.consoles:
                path = self.sticks.plug(tty, vendor=stick.kind.vendor, product=stick.kind.product, serial=stick.serial)
                self._nodes[tty] = Node.of(path)
            self.sticks.settle()
            for tty in list(stick.consoles)[1:]:
                self._remove(tty)

    # -- flapping

    def shake(self) -> None:
        """Send one uevent of a flapping stick: mostly `change`.

        With more that plug and pull, a server that needs 0.1 s for a request is busy with counts alone, and evictions come late.
        """
        act = self._jitter.choices((self._change, self._plug, self._unplug), (98, 1, 1))[0]
        act(self._jitter.choice(self.flapping))

    def _change(self, stick: Stick) -> None:
        self._uevent(stick.consoles[0], "change")

    def _plug(self, stick: Stick) -> None:
        stick.plugged = True
        self._nodes[stick.consoles[0]].put_back(DEV / stick.consoles[0])
        self._uevent(stick.consoles[0], "add")

    def _unplug(self, stick: Stick) -> None:
        stick.plugged = False
        self._remove(stick.consoles[0])

    def _remove(self, tty: str) -> None:
        (DEV / tty).unlink(missing_ok=True)
        self._uevent(tty, "remove")

    def _uevent(self, tty: str, action: str) -> None:
        self.send(tty, action)
        self.uevents += 1

    # -- sticks that pods have

    def pull(self, now: float) -> None:
        """Pull the next stick for `AWAY` seconds."""
        self._pull(next(self._turns), now + AWAY)

    def renumber(self, now: float) -> None:
        """Pull the next stick that has two consoles, and have it return as the other one in a moment."""
        stick = next(self._renumbered)
        if stick.plugged:
            self._pull(stick, now + MOMENT)
            stick.consoles.rotate()

    def _pull(self, stick: Stick, until: float) -> None:
        if stick.plugged:
            self._unplug(stick)
            self._returns.append((until, stick))

    def bring_back(self, now: float) -> None:
        """Plug the sticks whose time has come."""
        for when, stick in list(self._returns):
            if when <= now:
                self._returns.remove((when, stick))
                self._plug(stick)

    def rest(self) -> None:
        """Plug every stick, and wait for udevd."""
        self._returns.clear()
        for stick in (*self.flapping, *self.held):
            self._plug(stick)
        self.sticks.settle()


def _for_ever(sticks: list[Stick]) -> Iterator[Stick]:
    while True:
        yield from sticks
