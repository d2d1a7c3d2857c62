"""A kubelet that tests control, on virtual time: it registers, takes over lists, starts again, hangs and refuses."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from devwatch.core.errors import KubeletError, NotAnswered, NotServed
from devwatch.core.handover import Offer
from devwatch.core.node import Amounts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from devwatch.agent.registration import Registration
    from devwatch.core.holders import Holding
    from support.fakes import FakeServer

SYNC = 10.0
"""Seconds between two writes of the kubelet to the status of its Node."""


@dataclass(slots=True, kw_only=True)
class FakeLinks:
    """A folder of links that fails on request."""

    error: KubeletError | None = None
    made: dict[str, str] = field(default_factory=dict)

    def update(self, wanted: Mapping[str, str], *, make: bool = True) -> None:
        """Have these links, or without `make` no others.

        Without a disk to write to, what no longer leads to its device is removed all the same.
        """
        self.made = {name: devnode for name, devnode in self.made.items() if wanted.get(name) == devnode}
        if self.error is not None:
            raise self.error.with_traceback(None)
        self.made = dict(wanted) if make else self.made


class FakePlugin:
    """The server of one resource: it sends lists as fast as the kubelet takes them."""

    def __init__(self, kubelet: FakeKubelet, name: str, resource: Registration) -> None:
        """Serve a resource, once it is started."""
        self._kubelet, self.name, self.resource = kubelet, name, resource
        self.listening = False
        self._offer: Offer | None = None
        self._changed = asyncio.Event()
        self.stream: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen."""
        await asyncio.sleep(0)
        if self._kubelet.unwritable is not None:
            raise self._kubelet.unwritable.with_traceback(None)
        self._kubelet.plugins[self.name], self.listening = self, True

    async def close(self) -> None:
        """End the stream and stop listening."""
        self.listening = False
        self.end()
        await asyncio.sleep(0)

    def offer(self, offer: Offer) -> None:
        """Set the list to send."""
        self._offer = offer
        self._changed.set()

    def open(self) -> None:
        """Open the stream, as the kubelet does. The former one must have ended: otherwise its end disconnects this one."""
        assert self._kubelet.streaming(self.name) is None
        self.stream = asyncio.create_task(self._send())
        self.resource.opened()

    def end(self) -> None:
        """End the stream, from either side."""
        if self.stream is not None:
            self.stream.cancel()
            self.stream = None
            self._kubelet.take(self.name, None)
            self.resource.closed()

    async def _send(self) -> None:
        last = None
        while True:
            self._changed.clear()
            if self._offer is not None and self._offer != last:
                last = self._offer
                self._kubelet.lists.append((self._kubelet.now(), self.name, last))
                self.resource.sent(last)
                await asyncio.sleep(self._kubelet.latency)
                self._kubelet.take(self.name, last)
            await self._changed.wait()


MEMORY = 300.0
"""Seconds for which it writes the figures of a plugin that has ended (`endpointStopGracePeriod`)."""


class FakeKubelet:
    """A `KubeletApi` with the kubelet behind it. It writes what it computes to its Node every 10 s, as the kubelet does."""

    def __init__(self, clock: Callable[[], float], server: FakeServer, *, latency: float = 0.02) -> None:
        """Do not run yet; a list is taken over `latency` seconds after it was sent."""
        self.now, self._server, self.latency = clock, server, latency
        self.links = FakeLinks()
        self.plugins: dict[str, FakePlugin] = {}
        self._ended: dict[str, float] = {}
        self.running = False
        self.hanging = False
        self.reading = 0.0
        """Seconds that it needs to say which pods hold devices."""
        """Whether it answers nothing; streams and lists go on."""
        self.refused: dict[str, KubeletError] = {}
        """By resource: the answer to its registration."""
        self.ending_at_once = False
        """Whether it ends every stream as soon as it is open."""
        self.watching = True
        """Whether it opens the streams of plugins that register."""
        self.unwritable: KubeletError | None = None
        """Why no plugin can listen."""
        self.old = False
        """Whether it cannot say what it has taken over."""
        self.others: dict[str, frozenset[str]] = {}
        """By resource: what another plugin has listed, after ours."""
        self.held: tuple[Holding, ...] = ()
        self.unheld: KubeletError | None = None
        """Why it cannot say which pods hold devices."""
        self.taken: dict[str, Offer] = {}
        """By resource: the list that was taken over last."""
        self.history: list[tuple[float, str, Offer | None]] = []
        """Each list when it was taken over, None for the end of the stream."""
        self.lists: list[tuple[float, str, Offer]] = []
        """Each list when it was sent."""
        self.registrations: list[tuple[float, str]] = []
        self.readings: list[float] = []
        """When the holders were asked for."""
        self._births = 0
        self._sync: asyncio.Task[None] | None = None

    # -- what happens to it

    def start(self) -> None:
        """Start: the resources that it knows from before are 0 until their plugins have registered."""
        self._births += 1
        self.running, self.hanging = True, False
        if self._births > 1:
            self._server.zero()
        self._sync = asyncio.create_task(self._write_status())

    def kill(self) -> None:
        """End. Its socket stays, and refuses."""
        self.running = False
        if self._sync is not None:
            self._sync.cancel()
        for plugin in self.plugins.values():
            plugin.end()

    def streaming(self, name: str) -> FakePlugin | None:
        """Return the plugin of a resource whose stream is open."""
        plugin = self.plugins.get(name)
        return plugin if plugin is not None and plugin.stream is not None else None

    def take(self, name: str, offer: Offer | None) -> None:
        """Take over a list; with the end of the stream all devices of it are unhealthy."""
        self.history.append((self.now(), name, offer))
        last = self.taken.get(name, Offer())
        self.taken[name] = Offer(unhealthy=last.ids) if offer is None else offer
        self._ended[name] = self.now() if offer is None else math.inf

    def figures(self, name: str) -> Amounts:
        """Return what it computes for a resource."""
        taken = Offer(healthy=self.others[name]) if name in self.others else self.taken.get(name, Offer())
        return Amounts(capacity=len(taken.ids), allocatable=len(taken.healthy))

    async def _write_status(self) -> None:
        while True:
            await asyncio.sleep(SYNC)
            for name in self.taken if self._server.exists else ():
                figures, shown = self.figures(name), self._server.state
                forgotten = self.now() >= self._ended.get(name, math.inf) + MEMORY and name not in self.others
                if not forgotten and not shown.shows(name, figures):
                    self._server.write(name, str(figures.capacity), maps=("capacity",), manager="kubelet")
                    self._server.write(name, str(figures.allocatable), maps=("allocatable",), manager="kubelet")

    # -- what devwatch asks

    def socket(self) -> object:
        """Return the number of its start."""
        return self._births or None

    async def is_accepting(self) -> bool:
        """Return whether it runs."""
        await asyncio.sleep(0)
        return self.running

    def server(self, name: str, resource: Registration) -> FakePlugin:
        """Return a server."""
        return FakePlugin(self, name, resource)

    async def register(self, name: str) -> None:
        """Register a plugin that listens, and open its stream."""
        self.registrations.append((self.now(), name))
        await self._answer()
        if name in self.refused:
            raise self.refused[name].with_traceback(None)
        plugin = self.plugins[name]
        assert plugin.listening
        if self.watching:
            plugin.open()
        if self.ending_at_once:
            plugin.end()

    async def allocatable(self) -> Mapping[str, frozenset[str]]:
        """Return the healthy devices that it has taken over (kubelet, `GetAllocatableDevices`)."""
        await self._answer()
        if self.old:
            raise NotServed("unknown method")
        return {name: offer.healthy for name, offer in self.taken.items()} | self.others

    async def holdings(self) -> tuple[Holding, ...]:
        """Return which pods hold devices."""
        self.readings.append(self.now())
        await asyncio.sleep(self.reading)
        await self._answer()
        if self.unheld is not None:
            raise self.unheld.with_traceback(None)
        return self.held

    async def _answer(self) -> None:
        await asyncio.sleep(2 if self.hanging else 0.001)
        if self.hanging:
            raise NotAnswered("the kubelet does not answer")
        if not self.running:
            raise KubeletError("the kubelet refuses connections")
