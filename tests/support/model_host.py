"""The sticks of the world as they truly are: each with its registrations, its device numbers and the links that udev makes for it."""

from __future__ import annotations

import errno
import itertools
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from devwatch.core.device import Device, by_stability
from support.model_contract import Tty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GONE = (errno.ENOENT, errno.ENODEV, errno.ENXIO)
"""What the kernel says of a devnode that is not there."""
UNSURE = (errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOMEM, errno.ELOOP)
"""What it says where nobody knows."""
FILE = -1
"""A devnode whose place a file has taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A sort of stick: one interface for each tty."""

    vendor: str
    interfaces: tuple[str, ...] = ("00",)
    serial: str | None = None


KINDS = {
    "zigbee": Kind(vendor="0001", serial="Z1"),
    "twin": Kind(vendor="0001", serial="Z1"),
    "nameless": Kind(vendor="0001"),
    "composite": Kind(vendor="0002", interfaces=("00", "01"), serial="C1"),
    "modem": Kind(vendor="0003", interfaces=("00", "01", "02"), serial="M1"),
    "mouse": Kind(vendor="0009"),
}


@dataclass(slots=True, kw_only=True)
class Host:
    """The sticks as they truly are, and what is wrong with looking at them."""

    clock: Callable[[], float]
    ttys: dict[str, Tty] = field(default_factory=dict)
    past: dict[int, Tty] = field(default_factory=dict)
    """By birth: every tty that there ever was, as it was last."""
    pulled: dict[int, float] = field(default_factory=dict)
    """By birth: when it was pulled."""
    nodes: dict[str, int] = field(default_factory=dict)
    """By devnode: the errno that `stat` answers, or `FILE`."""
    blind: bool = False
    """Whether a listing comes out empty without an error, as with no file descriptor left."""
    hidden: bool = False
    """Whether `/run/udev` is not there."""
    consoles: bool = False
    """Whether sticks are played by virtual consoles from now on."""
    births: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def plug(self, kind: Kind, socket: str, number: int, *, record: bool) -> None:
        """Plug a new stick; the first free names from `number` on are its own."""
        stick = next(self.births)
        now = self.clock()
        model = [
            Tty(
                birth=0,
                devnode="",
                stick=stick,
                vendor=kind.vendor,
                interface=face,
                socket=socket,
                serial=kind.serial,
                plain=kind.serial,
                record=record,
                handled=now if record else None,
            )
            for face in kind.interfaces
        ]
        self._register(model, socket, number)

    def replug(self, stick: list[Tty], socket: str, number: int) -> None:
        """Plug a stick again that was pulled: it is the same one, and udev says of it what it said last."""
        self._register([replace(tty, record=True, handled=self.clock()) for tty in stick], socket, number)

    def _register(self, model: list[Tty], socket: str, number: int) -> None:
        """Give each tty its name, its number and a place of its own behind the socket."""
        taken = {tty.slot for tty in self.ttys.values() if tty.socket == socket}
        before = [tty.slot for tty in model if tty.socket == socket]
        slot = next(slot for slot in itertools.chain(before, itertools.count()) if slot not in taken)
        free = (name for index in itertools.count(number) if (name := f"/dev/ttyUSB{index}") not in self.ttys)
        for tty, devnode in zip(model, free, strict=False):
            self.nodes.pop(devnode, None)
            born = replace(
                tty,
                birth=next(self.births),
                devnode=devnode,
                socket=socket,
                slot=slot,
                plugged=self.clock(),
                console=self.consoles,
            )
            self.ttys[devnode] = self.past[born.birth] = born

    def pull(self, stick: int) -> list[Tty]:
        """Pull a stick with all its ttys, and return them."""
        pulled = [tty for tty in self.ttys.values() if tty.stick == stick]
        for tty in pulled:
            del self.ttys[tty.devnode]
            self.pulled[tty.birth] = self.clock()
            self.nodes.pop(tty.devnode, None)
        return pulled

    def finish(self) -> None:
        """Let udev complete its records."""
        now = self.clock()
        for tty in [tty for tty in self.ttys.values() if not tty.record]:
            self._become(replace(tty, record=True, handled=now))

    def respell(self, stick: int, serial: str | None) -> None:
        """Let udev write another serial for a stick whose registrations stay, as after an update of its rules."""
        for tty in [tty for tty in self.ttys.values() if tty.stick == stick and tty.record]:
            self._become(replace(tty, serial=serial))

    def _become(self, tty: Tty) -> None:
        self.ttys[tty.devnode] = self.past[tty.birth] = tty

    def heal(self) -> None:
        """Let everything be seen."""
        self.nodes.clear()
        self.blind = self.hidden = False
        self.finish()

    @property
    def sticks(self) -> list[int]:
        """The plugged sticks."""
        return sorted({tty.stick for tty in self.ttys.values()})

    @property
    def present(self) -> tuple[Tty, ...]:
        """The ttys that a program could open."""
        return tuple(tty for tty in self.ttys.values() if self.nodes.get(tty.devnode, 0) not in {FILE, *GONE})

    @property
    def leading(self) -> dict[str, Tty]:
        """By path: the tty to which it leads. Of those that claim a link the one that udev handled last has it."""
        return leading(self.present)


def leading(ttys: tuple[Tty, ...]) -> dict[str, Tty]:
    """Return by path the tty of these to which it leads."""
    paths: dict[str, Tty] = {}
    for tty in sorted(ttys, key=lambda tty: (tty.handled or 0.0, tty.birth)):
        paths |= dict.fromkeys(tty.claims, tty)
    return paths


def device(tty: Tty, links: tuple[str, ...]) -> Device:
    """Return a tty as a look finds it; without its record only the links are found that /dev/serial holds."""
    properties = None
    if tty.record and tty.handled is not None:
        claims = " ".join(tty.claims - {tty.devnode})
        properties = {"ID_PATH": tty.socket, "DEVLINKS": claims, "USEC_INITIALIZED": str(int(tty.handled * 1e6) or 1)}
    else:
        links = tuple(link for link in links if link.startswith("/dev/serial/"))
    return Device(
        devnode=tty.devnode,
        devpath=f"/devices/virtual{tty.devnode}" if tty.console else f"/devices/{tty.socket}/{tty.slot}{tty.devnode}",
        number=os.makedev(188, tty.number),
        incarnation=0 if tty.console else tty.birth,
        physical=f"/devices/{tty.socket}/{tty.slot}",
        vendor=tty.vendor,
        product="0001",
        serial=tty.told,
        interface=tty.interface,
        port=tty.socket if tty.record else None,
        links=tuple(sorted(links, key=by_stability)),
        properties=properties,
    )
