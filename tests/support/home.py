"""One node with its sticks and its pods, on virtual time: the loop, the losses, the evictor and the recorder of Events, wired together."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from devwatch.config.schema import parse
from devwatch.core.pods import Pod
from support import build
from support.build import ZIGBEE
from support.fakes import FakeHost, FakeServer, FakeSettings, FakeWorkload, date
from support.harness import Harness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from devwatch.agent.reconciler import Reconciler
    from devwatch.config.schema import Config
    from devwatch.core.pods import Pod

USB0, USB1 = "/dev/ttyUSB0", "/dev/ttyUSB1"
AFTER = 30.0
GRACE = 2.0


def config(
    *, evict: str = "{after: 30s}", match: str = "{vendor: '0001'}", names: tuple[str, ...] = (ZIGBEE,)
) -> Config:
    """Return a configuration whose first resource evicts after 30 s."""
    more = "".join(f"- {{name: {name}, match: [{{vendor: '0002'}}], evict: {{after: 30s}}}}\n" for name in names[1:])
    first = f"- {{name: {names[0]}, match: [{match}], evict: {evict}}}\n" if evict else ""
    silent = "" if evict else f"- {{name: {names[0]}, match: [{match}]}}\n"
    return parse(f"resources:\n{first}{silent}{more}".encode(), file="config.yaml")


def pod(name: str = "p", *, paths: tuple[str, ...] = (), resource: str = ZIGBEE, **fields: object) -> Pod:
    """Return a pod that was bound to this node a minute before the time of the loop began."""
    placed = {"node": "n", "scheduled": date(-60), "requests": {resource: 1}, "host_paths": paths}
    return build.pod(name, **placed | fields)


@dataclass(slots=True, kw_only=True)
class Home(Harness):
    """One node with its sticks and its pods; daemons come and go."""

    workload: FakeWorkload
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    running: Reconciler | None = None

    def start(self, used: Config) -> None:
        """Start a daemon."""
        self.running = self.reconciler(used, workload=self.workload)
        self.tasks.append(asyncio.create_task(self.running.run()))

    async def kill(self) -> None:
        """Kill the daemon that runs."""
        task = self.tasks.pop()
        task.cancel()
        await asyncio.wait({task})

    def reload(self, used: Config) -> None:
        """Change the configuration file and send HUP."""
        self.settings.write(used)
        assert self.running is not None
        self.running.wake("config")

    @property
    def evicted(self) -> list[str]:
        """The names of the evicted pods."""
        return [name for _, name in self.workload.evicted]

    def evictions(self, outcome: str) -> float:
        """Return `devwatch_evictions_total` of an outcome."""
        return self.metric("evictions_total", outcome)

    def refusals(self) -> list[dict[str, object]]:
        """Return the fields of the lines about what was not evicted."""
        return [line.fields for line in self.log.of("pod.eviction_refused")]


@contextlib.asynccontextmanager
async def home(*pods: Pod, sticks: tuple[str, ...] = (USB0,), used: Config | None = None) -> AsyncIterator[Home]:
    """Have a node on which sticks and pods have run for a while; no two requests may ever be out at once."""
    used, clock = used or config(), asyncio.get_running_loop().time
    server = FakeServer(clock)
    workload = FakeWorkload(clock, server=server)
    one = Home(host=FakeHost(), server=server, workload=workload, settings=FakeSettings(used))
    for devnode in sticks:
        one.host.plug("0001", devnode, serial=f"S{devnode[-1]}", link=f"/dev/serial/by-id/S{devnode[-1]}")
    one.workload.run(*pods)
    one.start(used)
    try:
        await asyncio.sleep(100)
        yield one
        assert not any(task.done() for task in one.tasks), one.tasks
        patches = [(request.at, request.ended or request.at) for request in one.server.requests]
        spans = sorted([*patches, *one.workload.spans])
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    finally:
        for task in one.tasks:
            task.cancel()
        await asyncio.gather(*one.tasks, return_exceptions=True)
