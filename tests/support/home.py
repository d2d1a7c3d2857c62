"""One node with its sticks and its pods, on virtual time: the loop, the losses, the evictor and the recorder of Events, wired together."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ParamSpec

from prometheus_client.parser import text_string_to_metric_families

from devwatch.agent.events import EventRecorder
from devwatch.agent.evictor import Evictor
from devwatch.agent.reconciler import Cluster, Reconciler
from devwatch.agent.report import Reporter
from devwatch.config.schema import parse
from devwatch.core.loss import Losses
from devwatch.core.pods import Pod
from devwatch.observe.health import Health
from devwatch.observe.metrics import Metrics
from support import virtualtime
from support.build import ZIGBEE
from support.fakes import EPOCH, FakeHost, FakeServer, FakeSettings, FakeWorkload, RecordingLog, date

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from devwatch.config.schema import Config

P = ParamSpec("P")

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
    """Return a pod of a Deployment that requests one device."""
    own = {
        "namespace": "home",
        "name": name,
        "uid": f"uid-{name}",
        "node": "n",
        "owner": "ReplicaSet",
        "scheduled": date(-60),
        **fields,
    }
    return Pod(requests={resource: 1}, host_paths=paths, **own)  # type: ignore[arg-type]  # the fields of a Pod


@dataclass(slots=True, kw_only=True)
class Home:
    """One node with its sticks and its pods; daemons come and go."""

    host: FakeHost
    server: FakeServer
    workload: FakeWorkload
    settings: FakeSettings
    log: RecordingLog = field(default_factory=RecordingLog)
    metrics: Metrics = field(default_factory=lambda: Metrics("0"))
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    reconciler: Reconciler | None = None

    def start(self, used: Config) -> None:
        """Start a daemon."""
        clock = asyncio.get_running_loop().time
        recorder, losses = EventRecorder(api=self.workload, log=self.log, node="n", clock=clock), Losses()
        evictor = Evictor(api=self.workload, recorder=recorder, losses=losses, metrics=self.metrics, jitter=lambda: 0.5)
        health = Health(sweep=10, last_cycle=0)
        self.reconciler = Reconciler(
            source=self.host,
            cluster=Cluster(api=self.server, losses=losses, attend=evictor.attend, tasks=(evictor, recorder)),
            settings=self.settings,
            config=used,
            node="n",
            reporter=Reporter(log=self.log, metrics=self.metrics, health=health, node="n", record=recorder.device),
            clock=clock,
            wall=lambda: EPOCH + clock(),
            jitter=lambda: 0.5,
        )
        self.host.wake = self.reconciler.wake
        self.tasks.append(asyncio.create_task(self.reconciler.run()))

    async def kill(self) -> None:
        """Kill the daemon that runs."""
        task = self.tasks.pop()
        task.cancel()
        await asyncio.wait({task})

    def reload(self, used: Config) -> None:
        """Change the configuration file and send HUP."""
        self.settings.write(used)
        assert self.reconciler is not None
        self.reconciler.wake("config")

    @property
    def evicted(self) -> list[str]:
        """The names of the evicted pods."""
        return [name for _, name in self.workload.evicted]

    def evictions(self, outcome: str) -> float:
        """Return `devwatch_evictions_total` of an outcome."""
        families = text_string_to_metric_families(self.metrics.render().decode())
        samples = (sample for family in families for sample in family.samples)
        wanted = (s.value for s in samples if s.name == "devwatch_evictions_total" and outcome in s.labels.values())
        return next(wanted, 0.0)

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


def virtual(test: Callable[P, Coroutine[object, object, None]]) -> Callable[P, None]:
    """Run an async test on the virtual clock."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        virtualtime.run(lambda: test(*args, **kwargs))

    return run
