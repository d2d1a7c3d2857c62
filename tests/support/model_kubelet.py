"""The kubelet of the world with its pods: what a scheduler binds, what the kubelet gives to whom, and what a container then has open."""

from __future__ import annotations

import asyncio
import itertools
import math
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from devwatch.core.errors import Busy, Conflict, KubeletError, Missing
from devwatch.core.handover import Offer
from devwatch.core.holders import Holding
from devwatch.core.node import quantity
from devwatch.core.pods import Container, Phase, Pod
from support.fakekubelet import MEMORY, SYNC, FakeKubelet, FakePlugin
from support.fakes import FakeServer, FakeWorkload, date
from support.model_pods import METER, NODE, START, ZIGBEE, ZWAVE, Template, host_date

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devwatch.agent.registration import Registration
    from support.model_contract import Plan, Tty
    from support.model_host import Host
    from support.virtualtime import VirtualTimeLoop

BINDING = 0.003
"""Seconds from a change of the Node to the binding of a pod."""
ADMISSION = 0.005
"""Seconds from the binding of a pod to its admission by the kubelet."""
AGAIN = 11.0
"""Seconds after which the kubelet tries again to start a container (CreateContainerError)."""
RESUMING = 0.3
"""Seconds after its start in which the kubelet comes to the pods that were bound meanwhile."""
BLIND = 1.0
"""Seconds after its start in which the kubelet says of no pod what it has."""
FAREWELL = 2.0
"""Seconds for which a pod ends."""
GHOST = 1.0
"""Seconds after which the kubelet notices that a pod was deleted by force."""
TEMPLATES = (
    Template(name="hub", requests={ZIGBEE: 1}),
    Template(name="mate", requests={ZIGBEE: 1}),
    Template(name="first", requests={ZIGBEE: 1}, owner="StatefulSet"),
    Template(name="wave", requests={ZWAVE: 1}, owner="StatefulSet"),
    Template(name="meter", requests={METER: 1}),
    Template(name="bare", requests={ZIGBEE: 1}, owner=""),
    Template(name="everywhere", requests={ZWAVE: 1}, owner="DaemonSet"),
    Template(name="metering", requests={METER: 1}),
)
"""What users want to run; which of them there are is for the history to say."""
_LINK = re.compile(r"(?P<id>.*-[0-9a-f]{10})(-[0-9]+)?")


def id_of(link: str) -> str:
    """Return the ID of the device to which a link belongs."""
    found = _LINK.fullmatch(link)
    assert found is not None, link
    return found["id"]


@dataclass(slots=True, kw_only=True)
class Life:
    """A pod as it truly is."""

    template: Template
    pod: Pod
    ways: dict[str, str]
    """By resource: how it was published when the pod was made, for which it was written."""
    bound: float = math.inf
    ids: dict[str, frozenset[str]] = field(default_factory=dict)
    """By resource: what the kubelet has given to it."""
    links: tuple[str, ...] = ()
    opened: dict[str, Tty] = field(default_factory=dict)
    """By link: what its container has open; empty while it does not run."""
    gone: bool = False

    @property
    def lives(self) -> bool:
        """Whether it is bound and has not ended."""
        return not self.gone and self.bound < math.inf and not self.pod.finished

    @property
    def evictable(self) -> bool:
        """Whether a controller replaces it, possibly elsewhere."""
        return self.template.owner not in {"", "DaemonSet"}


class Observer(Protocol):
    """Who judges what becomes of pods."""

    def listed(self, name: str, before: Offer | None, offer: Offer) -> None:
        """Judge a list that is sent to the kubelet."""

    def allocated(self, life: Life, name: str) -> None:
        """Judge a device that the kubelet gives to a pod."""

    def failed(self, life: Life, name: str, why: str) -> None:
        """Judge that a pod is not admitted."""

    def opened(self, life: Life) -> None:
        """Judge what a container has opened."""

    def taken(self, name: str, offer: Offer | None) -> None:
        """Take note of a list that the kubelet has, or with None of the end of the stream."""

    def clashed(self, name: str) -> None:
        """Judge a second stream of a resource."""


class Cluster(FakeWorkload):
    """The pods of the node, their controllers and the scheduler."""

    def __init__(self, loop: VirtualTimeLoop, server: FakeServer) -> None:
        """Have no pod."""
        super().__init__(loop.time, server=server)
        self._loop, self._node_server = loop, server
        self.kubelet: PodKubelet
        self.plan: Plan
        self.lives: dict[str, Life] = {}
        """By uid: every pod that there ever was."""
        self.away = False
        """Whether the API server is away, for all."""
        self._numbers = itertools.count(1)
        self._scheduling = False

    @property
    def here(self) -> list[Life]:
        """The bound pods that have not ended."""
        return [life for life in self.lives.values() if life.lives]

    def living(self, template: Template) -> Life | None:
        """Return the pod of a template, also one that waits to be bound, but none that ends."""
        all_ = (life for life in self.lives.values() if not life.gone and not life.pod.terminating)
        return next((life for life in all_ if life.template is template and not life.pod.finished), None)

    def make(self, template: Template) -> None:
        """Let a controller, or for a bare pod a user, make a pod, unless there is one."""
        if self.living(template) is not None:
            return
        number = next(self._numbers)
        same = template.owner in {"StatefulSet", ""}
        pod = Pod(
            namespace="home",
            name=template.name if same else f"{template.name}-{number}",
            uid=f"uid-{number}",
            phase="Pending",
            requests=template.requests,
            owner=template.owner,
            started=False,
            containers=(Container(name="c", phase=Phase.WAITING),),
        )
        wants = {want.name: want.publish or "nodeStatus" for want in self.plan.wants}
        ways = {name: wants.get(name, "") for name in template.requests}
        self.lives[pod.uid] = Life(template=template, pod=pod, ways=ways)
        self.schedule_soon()

    def schedule_soon(self) -> None:
        """Bind what can be bound, in a moment."""
        if not self._scheduling:
            self._scheduling = True
            self._loop.call_later(BINDING, self._schedule)

    def _schedule(self) -> None:
        self._scheduling = False
        if self.away or not self._node_server.exists:
            return
        free = {name: quantity(text) or 0 for name, text in self._node_server.state.allocatable.items() if "/" in name}
        for life in self.here:
            for name, count in life.pod.requests.items():
                free[name] = free.get(name, 0) - count
        for life in [life for life in self.lives.values() if not life.gone and life.bound == math.inf]:
            if life.pod.title in self._pods or not self._place(life, free):
                continue
            life.bound = self._loop.time()
            self.change(life, node=NODE, scheduled=date(life.bound))
            self._loop.call_later(ADMISSION, self.kubelet.admit, life)

    def _place(self, life: Life, free: dict[str, int]) -> bool:
        """Take what a pod requests from what is free; return whether that is enough."""
        requests = life.pod.requests
        if any(free.get(name, 0) < count for name, count in requests.items()):
            return False
        for name, count in requests.items():
            free[name] -= count
        return True

    def change(self, life: Life, **fields: object) -> None:
        """Change what the API server has of a pod."""
        life.pod = replace(life.pod, **fields)  # type: ignore[arg-type]  # fields of a Pod
        if not life.gone:
            self._pods[life.pod.title] = life.pod

    # -- the ends of pods

    def delete(self, life: Life, *, force: bool = False) -> None:
        """Let a user, or an eviction, delete a pod; by force it is gone at once, whatever the kubelet knows."""
        if life.gone or (life.pod.terminating and not force):
            return
        if life.bound == math.inf or life.pod.finished:
            self.drop(life)
        elif force:
            self.drop(life)
            self._loop.call_later(GHOST, self.kubelet.release, life)
        else:
            self.change(life, terminating=True)
            self._loop.call_later(FAREWELL, self._end, life)
            if life.template.owner == "ReplicaSet":
                self.make(life.template)

    def _end(self, life: Life) -> None:
        if not self.kubelet.works or self.away:
            self._loop.call_later(FAREWELL, self._end, life)
            return
        self.kubelet.release(life)
        self.drop(life)

    def drop(self, life: Life) -> None:
        """Let a pod be gone, and its controller make another one."""
        if life.gone:
            return
        life.gone = True
        if self._pods.get(life.pod.title) is life.pod:
            del self._pods[life.pod.title]
        if life.template.owner:
            self.make(life.template)
        self.schedule_soon()

    def fail(self, life: Life) -> None:
        """Let the kubelet reject a pod, which its controller replaces."""
        self.change(life, phase="Failed", containers=())
        life.opened = {}
        self.kubelet.release(life)
        if life.template.owner:
            self._loop.call_later(1, self.drop, life)

    async def evict(self, pod: Pod) -> None:
        """Evict a pod, which ends after a while."""
        self.tried.append((self._clock(), pod.name))
        await self._answer("create pods/eviction")
        found = self._pods.get(pod.title)
        if found is None:
            raise Missing(f'pods "{pod.name}" not found (404)')
        if found.uid != pod.uid:
            raise Conflict("the UID in the precondition does not match (409)")
        if self.budgets.get(pod.name):
            raise Busy("it would violate the pod's disruption budget (429)")
        self.delete(self.lives[pod.uid])

    # -- containers

    def restart(self, life: Life, seconds: float) -> None:
        """Let the container of a pod end, and start again in place some seconds later."""
        if life.lives and life.pod.phase == "Running":
            life.opened = {}
            self.change(life, containers=(Container(name="c", phase=Phase.WAITING),))
            self._loop.call_later(seconds, self.kubelet.run, life)


class SlowPlugin(FakePlugin):
    """The server of one resource, to a kubelet that may hang or start again before it has read a list."""

    def __init__(self, kubelet: PodKubelet, name: str, resource: Registration) -> None:
        """Serve a resource, once it is started."""
        super().__init__(kubelet, name, resource)
        self._own, self.birth = kubelet, -1

    async def start(self) -> None:
        """Listen; a kubelet that starts removes the socket."""
        former = self._own.streaming(self.name)
        if former is not None:
            self._own.observer.clashed(self.name)
        await super().start()
        self.birth = self._own.births

    async def _send(self) -> None:
        last = None
        while True:
            self._changed.clear()
            if self._offer is not None and self._offer != last:
                before, last = last, self._offer
                self._own.observer.listed(self.name, before, last)
                self.resource.sent(last)
                await self._own.read()
                self._own.take(self.name, last)
            await self._changed.wait()


class PodKubelet(FakeKubelet):
    """A kubelet with a device manager: it admits pods, gives them devices and remembers that over its restarts."""

    def __init__(self, loop: VirtualTimeLoop, server: FakeServer, cluster: Cluster, host: Host) -> None:
        """Do not run yet."""
        super().__init__(loop.time, server)
        self._loop, self._cluster, self._host, self._api = loop, cluster, host, server
        self.observer: Observer
        self.began = -math.inf
        self._saw_pods = True
        """Whether it has heard of its pods since its start."""
        self.descending = False
        """Whether it gives the last free device first."""
        self._allocations: dict[str, Life] = {}
        """By uid: the pods that have devices (the checkpoint)."""

    # -- what happens to it

    @property
    def works(self) -> bool:
        """Whether it runs and answers."""
        return self.running and not self.hanging

    @property
    def births(self) -> int:
        """How often it has started."""
        return self._births

    def start(self) -> None:
        """Start, with nothing but its checkpoint."""
        self._births += 1
        self.running, self.hanging, self.began = True, False, self.now()
        self._saw_pods = False
        known = [name for name in self.taken if not self._is_forgotten(name)]
        for name in known:
            self.taken[name], self._ended[name] = Offer(), self.now()
        self.taken = {name: self.taken[name] for name in known}
        if self._api.exists and not self._cluster.away and self._births > 1:
            for name in known:
                self._api.write(name, "0", manager="kubelet")
            if not known:
                self._api.zero()
        self._sync = self._loop.create_task(self._write_status())
        self._admit_later()
        for life in self._cluster.here:
            if life.pod.started and not life.ids:
                self._loop.call_later(2, self._readmit, life)

    def hang(self, *, hanging: bool) -> None:
        """Answer nothing and do nothing, or go on."""
        self.hanging = hanging and self.running
        if self.works:
            self._admit_later()

    def _admit_later(self) -> None:
        for life in self._cluster.here:
            if not life.pod.started:
                self._loop.call_later(RESUMING, self.admit, life)

    def take(self, name: str, offer: Offer | None) -> None:
        """Take over a list; with the end of the stream all devices of it are unhealthy."""
        super().take(name, offer)
        self.observer.taken(name, offer)

    async def read(self) -> None:
        """Take the time that it needs for a list."""
        await asyncio.sleep(self.latency)
        while self.hanging:  # noqa: ASYNC110 - as its processes do
            await asyncio.sleep(0.5)

    def _is_forgotten(self, name: str) -> bool:
        return self.now() >= self._ended.get(name, math.inf) + MEMORY

    def knows(self, name: str) -> bool:
        """Return whether it hands a resource over, or has done so until shortly, or a pod has a device of it still."""
        held = any(name in life.ids for life in self._allocations.values())
        return (name in self.taken and not self._is_forgotten(name)) or held

    async def _write_status(self) -> None:
        while True:
            await asyncio.sleep(SYNC)
            for name in self.taken if self._api.exists and self.works and not self._cluster.away else ():
                figures, shown = self.figures(name), self._api.state
                if not self._is_forgotten(name) and not shown.shows(name, figures):
                    self._api.write(name, str(figures.capacity), maps=("capacity",), manager="kubelet")
                    self._api.write(name, str(figures.allocatable), maps=("allocatable",), manager="kubelet")

    # -- what devwatch asks

    def server(self, name: str, resource: Registration) -> FakePlugin:
        """Return a server."""
        return SlowPlugin(self, name, resource)

    async def register(self, name: str) -> None:
        """Register a plugin that listens, and open its stream."""
        plugin = self.plugins[name]
        assert isinstance(plugin, SlowPlugin)
        if plugin.birth != self._births:
            raise KubeletError("its socket is not there any more")
        await super().register(name)

    async def holdings(self) -> tuple[Holding, ...]:
        """Return which pods hold devices."""
        await self._answer()
        if self.unheld is not None:
            raise self.unheld.with_traceback(None)
        self._saw_pods |= self.now() >= self.began + BLIND and not self._cluster.away
        return tuple(self._holdings()) if self._saw_pods else ()

    def _holdings(self) -> Iterator[Holding]:
        for life in self._allocations.values():
            for name, ids in life.ids.items():
                yield Holding(namespace="home", pod=life.pod.name, container="c", resource=name, ids=ids)

    # -- pods

    def admit(self, life: Life) -> None:
        """Admit a pod that was bound, or not; the pods that are gone must have been forgotten before."""
        if not life.lives or life.pod.started or life.pod.terminating or not self.works:
            return
        if self._cluster.away or self._has_ghosts:
            self._loop.call_later(GHOST, self.admit, life)
            return
        for name, count in life.pod.requests.items():
            if why := self._refuse(life, name, count):
                self._cluster.fail(life)
                self.observer.failed(life, name, why)
                return
        self._cluster.change(life, started=True)
        self._loop.call_later(START, self.run, life)

    @property
    def _has_ghosts(self) -> bool:
        """Whether a pod has devices that was deleted by force."""
        return any(other.gone for other in self._allocations.values())

    def _refuse(self, life: Life, name: str, count: int) -> str:
        """Give a pod what it requests of a resource; return why not."""
        return self._give(life, name, count) if self.knows(name) else self._fit(life, name, count)

    def _give(self, life: Life, name: str, count: int) -> str:
        """Give devices to a pod; return why not."""
        plugin = self.streaming(name)
        used = {each for other in self._allocations.values() for each in other.ids.get(name, ())}
        free = sorted(self.taken.get(name, Offer()).healthy - used, reverse=self.descending)
        if plugin is None or len(free) < count:
            return f"{len(free)} of {name} are free"
        try:
            allocation = plugin.resource.allocate(free[:count])
        except KeyError:
            return f"the plugin refuses {free[:count]}"
        life.ids[name], life.links = frozenset(free[:count]), tuple(allocation.paths.values())
        self._allocations[life.pod.uid] = life
        self.observer.allocated(life, name)
        return ""

    def _fit(self, life: Life, name: str, count: int) -> str:
        """Return why a pod does not fit by the figures of the Node, as the kubelet reckons for what no plugin hands over."""
        shown = quantity(self._api.state.allocatable.get(name)) if self._api.exists else 0
        others = (other for other in self._cluster.here if other.pod.started and other is not life)
        used = sum(other.pod.requests.get(name, 0) for other in others)
        if shown is None:
            return ""
        return f"OutOf{name}: {used} of {shown} are used" if used + count > shown else ""

    def _readmit(self, life: Life) -> None:
        """After its start the kubelet ends the pods that do not fit any more."""
        if life.lives and self.works and any(self._fit(life, *each) for each in life.pod.requests.items()):
            self._cluster.fail(life)

    def release(self, life: Life) -> None:
        """Take back what a pod had."""
        self._allocations.pop(life.pod.uid, None)
        life.opened = {}
        self._cluster.schedule_soon()

    def run(self, life: Life) -> None:
        """Start the container of a pod: its links have to lead somewhere."""
        if not life.lives or life.pod.terminating or life.opened:
            return
        ttys = self._found(life)
        present = set(self._host.present)
        if not self.works or any(tty not in present for tty in ttys.values()):
            self._loop.call_later(AGAIN, self.run, life)
            return
        life.opened = {link: tty for link, tty in ttys.items() if tty is not None}
        started = Container(name="c", started=int(host_date(self.now())))
        self._cluster.change(life, phase="Running", containers=(started,))
        self.observer.opened(life)

    def _found(self, life: Life) -> dict[str, Tty | None]:
        """Return what the container of a pod opens, by link; None where that leads nowhere."""
        return {link: self._host.ttys.get(self.links.made.get(link, "")) for link in life.links}
