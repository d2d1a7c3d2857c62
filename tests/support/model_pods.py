"""The pods of the world as they truly are: who made them, when they were bound, and which stick each of their containers has opened."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from devwatch.core.node import quantity
from devwatch.core.pods import Container, Phase, Pod
from support.fakes import EPOCH, FakeServer, FakeWorkload, date

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.model_contract import Tty
    from support.model_host import Host
    from support.virtualtime import VirtualTimeLoop

METER, ZWAVE, ZIGBEE, SPARE = (f"example.com/{name}" for name in ("meter", "zwave", "zigbee", "spare"))
NODE = "n"
SKEW = -7.3
"""Seconds by which the clock of this host is ahead of that of the API server."""
START = 0.6
"""Seconds between the binding of a pod and the start of its containers."""
AGAIN = 5.0
"""Seconds after which the kubelet tries again to start a container whose stick is not there."""
FAREWELL = 30.0
"""Seconds for which a pod ends."""


def host_date(now: float) -> float:
    """Return the Unix time of this host, in seconds, at a moment of the virtual clock."""
    return EPOCH + now + SKEW


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What somebody wants to run: one pod of it at a time."""

    name: str
    requests: dict[str, int]
    owner: str = "ReplicaSet"
    mounts: tuple[tuple[str, ...], ...] = ()
    """The host paths of each container."""
    strict: bool = False
    """Whether it waits until a device is there (`type: CharDevice`); else it runs without one."""
    node: str = NODE
    mirror: bool = False
    phase: str = "Running"


def _by_id(looks: str) -> str:
    return f"/dev/serial/by-id/usb-{looks}"


TEMPLATES = (
    Template(name="hub", requests={ZIGBEE: 1}, mounts=(("/dev",),)),
    Template(name="path", requests={ZIGBEE: 1}, mounts=(("/dev/ttyUSB1",),)),
    Template(name="first", requests={ZIGBEE: 1}, mounts=(("/dev/ttyUSB0",),), strict=True),
    Template(name="port", requests={ZIGBEE: 1}, mounts=(("/dev/serial/by-path/socket-1.0:00",),)),
    Template(name="ident", requests={ZIGBEE: 1}, owner="StatefulSet", mounts=((_by_id("0001_Z1-if00"),), ("/dev",))),
    Template(name="custom", requests={ZIGBEE: 1}, mounts=(("/dev/custom-0001-00",),)),
    Template(name="bare", requests={ZIGBEE: 1}, owner="", mounts=(("/dev/ttyUSB0",),)),
    Template(name="everywhere", requests={ZIGBEE: 1}, owner="DaemonSet", mounts=(("/dev/ttyUSB0",),)),
    Template(name="static", requests={ZIGBEE: 1}, owner="Node", mirror=True, mounts=(("/dev/ttyUSB0",),)),
    Template(name="done", requests={ZIGBEE: 1}, owner="Job", phase="Succeeded", mounts=(("/dev/ttyUSB0",),)),
    Template(name="wave", requests={ZWAVE: 1}, owner="StatefulSet", mounts=((_by_id("0002_C1-if00"),),)),
    Template(name="metering", requests={METER: 1}),
    Template(name="away", requests={ZIGBEE: 1}, node="other", mounts=(("/dev/ttyUSB0",),)),
    Template(name="away-too", requests={ZWAVE: 1}, node="other", owner="StatefulSet"),
)
"""Pods of every fate; those that are evicted come back, as a controller would have it."""


class Placing(Enum):
    """Where a successor comes to run."""

    HERE = "here"
    """On this node at once if it has a free one, else as soon as it has."""
    LATER = "later"
    """On this node, some seconds later."""
    ELSEWHERE = "elsewhere"


@dataclass(slots=True, kw_only=True)
class Life:
    """A pod as it truly is."""

    template: Template
    pod: Pod
    opened: list[dict[str, Tty | None]]
    """By container and path: what it led to when the container started, None for a directory in its place."""
    bound: float
    """When it was bound, by the loop's clock."""
    gone: bool = False

    @property
    def uid(self) -> str:
        """Its uid."""
        return self.pod.uid

    def exact(self) -> Iterator[tuple[Container, str, Tty | None]]:
        """Yield each file that a container has mounted, with what it truly is; directories apart."""
        for container, opened in zip(self.pod.containers, self.opened, strict=True):
            for path, tty in opened.items():
                yield container, path, tty


class Town(FakeWorkload):
    """The pods, their controllers, the scheduler and the kubelet."""

    def __init__(self, loop: VirtualTimeLoop, server: FakeServer, host: Host) -> None:
        """Have a pod of every template that was bound a minute ago."""
        super().__init__(loop.time, server=server)
        self._loop, self._node_server, self._host = loop, server, host
        self.lives: dict[str, Life] = {}
        """By uid: every pod that there ever was."""
        self.placing = Placing.HERE
        self.leaky = False
        """Whether a list holds the pods of other nodes too, as one through a proxy that ignores its selector."""
        self._waiting: dict[str, None] = {}
        self._numbers = itertools.count(1)
        self._by_name = {template.name: template for template in TEMPLATES}
        for template in TEMPLATES:
            self._bind(template, at=-60.0)

    # -- what there is

    @property
    def here(self) -> list[Life]:
        """The pods of this node, in the order of their templates."""
        return [life for life in self.lives.values() if not life.gone and life.template.node == NODE]

    def living(self, template: Template) -> Life | None:
        """Return the pod of a template."""
        return next((life for life in self.lives.values() if not life.gone and life.template is template), None)

    @property
    def running(self) -> tuple[Pod, ...]:
        """The pods that a list holds."""
        lives = (life for life in self.lives.values() if not life.gone)
        return tuple(life.pod for life in lives if self.leaky or life.template.node == NODE)

    # -- what the controllers and the scheduler do

    def _bind(self, template: Template, *, at: float | None = None) -> None:
        """Bind a new pod to its node; its containers start soon."""
        number, now = next(self._numbers), self._loop.time() if at is None else at
        again = at is None and template.owner not in {"StatefulSet", "Node", ""}
        name = f"{template.name}-{number}" if again else template.name
        pod = Pod(
            namespace="home",
            name=name,
            uid=f"uid-{number}",
            phase=template.phase if at is not None else "Pending",
            requests=template.requests,
            node=template.node,
            host_paths=tuple(dict.fromkeys(path for mounts in template.mounts for path in mounts)),
            containers=tuple(
                Container(name=f"c{index}", mounts=mounts, phase=Phase.WAITING)
                for index, mounts in enumerate(template.mounts)
            ),
            scheduled=date(now),
            owner=template.owner,
            mirror=template.mirror,
        )
        opened: list[dict[str, Tty | None]] = [{} for _ in template.mounts]
        life = self.lives[pod.uid] = Life(template=template, pod=pod, opened=opened, bound=now)
        self._pods[pod.title] = pod
        if at is not None:
            self._run(life)
        else:
            self._loop.call_later(START, self._run, life)

    def fill(self) -> None:
        """Start a pod of each template that has none, wherever it fits."""
        self._waiting.clear()
        for template in TEMPLATES:
            if self.living(template) is None:
                self._bind(template)

    def remove(self, life: Life) -> None:
        """Let a pod be gone, and its controller make another."""
        if life.gone:
            return
        life.gone = True
        if self._pods.get(life.pod.title) is life.pod:
            del self._pods[life.pod.title]
        if life.template.owner in {"", "Node", "Job"}:
            return
        self._waiting[life.template.name] = None
        if self.placing is Placing.HERE:
            self.schedule()
        elif self.placing is Placing.LATER:
            self._loop.call_later(AGAIN, self.schedule)

    def schedule(self) -> None:
        """Bind the pods that wait where the Node has a unit; that others have it is no matter here."""
        if self.placing is Placing.ELSEWHERE or not self._node_server.exists:
            return
        free = self._node_server.state.allocatable
        for name in list(self._waiting):
            template = self._by_name[name]
            if all((quantity(free.get(resource)) or 0) >= count for resource, count in template.requests.items()):
                del self._waiting[name]
                if self.living(template) is None:
                    self._bind(template)

    async def pods(self) -> tuple[Pod, ...]:
        """Return the pods as they were when they were asked for."""
        found = self.running
        await self._answer("list pods")
        return found

    async def evict(self, pod: Pod) -> None:
        """Evict a pod, which is gone at once."""
        await super().evict(pod)
        self.remove(self.lives[pod.uid])

    # -- what the kubelet does

    def _run(self, life: Life) -> None:
        """Start the containers that wait, each with the files as they are now."""
        if life.gone or life.pod.finished or life.pod.terminating:
            return
        leading = self._host.leading
        paths = [path for mounts in life.template.mounts for path in mounts if path != "/dev"]
        if life.template.strict and life.pod.phase == "Pending" and not all(path in leading for path in paths):
            self._loop.call_later(AGAIN, self._run, life)
            return
        started = int(host_date(self._loop.time()))
        for index, container in enumerate(life.pod.containers):
            if container.phase is Phase.WAITING:
                life.opened[index] = {path: leading.get(path) for path in container.mounts if path != "/dev"}
        containers = [
            replace(container, phase=Phase.RUNNING, started=started) if container.phase is Phase.WAITING else container
            for container in life.pod.containers
        ]
        self._change(life, phase="Running" if life.template.phase == "Running" else "Succeeded", containers=containers)

    def _change(self, life: Life, *, containers: list[Container] | None = None, **fields: str | bool) -> None:
        before = life.pod
        life.pod = replace(before, containers=tuple(containers or before.containers), **fields)  # type: ignore[arg-type]
        if self._pods.get(before.title) is before:
            self._pods[before.title] = life.pod

    def restart(self, life: Life, seconds: float) -> None:
        """Let the containers of a pod end, and start again in place some seconds later."""
        if life.pod.phase == "Running":
            self._change(
                life, containers=[replace(each, phase=Phase.WAITING, started=None) for each in life.pod.containers]
            )
            self._loop.call_later(seconds, self._run, life)

    def forget_start(self, life: Life) -> None:
        """Let the status no longer tell when the containers started."""
        self._change(life, containers=[replace(each, started=None) for each in life.pod.containers])

    def complete(self, life: Life) -> None:
        """Let a pod end by itself."""
        self._change(life, phase="Succeeded")

    def terminate(self, life: Life) -> None:
        """Let a user delete a pod, which takes its time to end."""
        if not life.pod.terminating:
            self._change(life, terminating=True)
            self._loop.call_later(FAREWELL, self.remove, life)
