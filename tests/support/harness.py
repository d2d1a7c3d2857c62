"""The loop with everything around it: a host, a Node, a configuration, a log, metrics and health, on virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from devwatch.agent.clock import Clock
from devwatch.agent.report import Telemetry
from devwatch.agent.wiring import build_agent
from devwatch.observe.health import Health
from devwatch.observe.metrics import Metrics
from support.fakes import EPOCH, RecordingLog
from support.metrics import samples

if TYPE_CHECKING:
    from collections.abc import Callable

    from devwatch.agent.dra import Dra
    from devwatch.agent.nodewatch import Watch
    from devwatch.agent.reconciler import Reconciler
    from devwatch.agent.registration import KubeletApi
    from devwatch.agent.wiring import Workload
    from devwatch.config.schema import Config
    from support.fakes import FakeHost, FakeServer, FakeSettings


def now() -> float:
    """Return the time of the loop, in seconds."""
    return asyncio.get_running_loop().time()


@dataclass(slots=True, kw_only=True)
class Harness:
    """What one daemon after the other is given; a test looks into all of it."""

    host: FakeHost
    server: FakeServer
    settings: FakeSettings
    log: RecordingLog = field(default_factory=RecordingLog)
    metrics: Metrics = field(default_factory=lambda: Metrics("0"))
    health: Health = field(default_factory=lambda: Health(sweep=10, last_cycle=0))
    jitter: float = 0.5
    connect: Callable[[], KubeletApi] | None = None
    """What makes the kubelet, None for a daemon that hands over nothing."""
    dra: Callable[[Telemetry, Clock], Dra] | None = None
    """What makes the DRA driver, None for a daemon without one."""
    cycles: list[float] = field(default_factory=list)
    """When each cycle of the loop ended."""

    def reconciler(
        self,
        used: Config,
        *,
        watch: Watch | None = None,
        workload: Workload | None = None,
        once: bool = False,
        heartbeat: float | None = None,
    ) -> Reconciler:
        """Return a new loop, which the host wakes from now on."""
        time = asyncio.get_running_loop().time
        telemetry = Telemetry(log=self.log, metrics=self.metrics, health=self.health)
        clock = Clock(now=time, unix=lambda: EPOCH + time(), jitter=lambda: self.jitter)
        loop = build_agent(
            node="n",
            source=self.host,
            api=self.server,
            watch=watch,
            workload=workload,
            kubelet=self.connect,
            settings=self.settings,
            config=used,
            dra=self.dra(telemetry, clock) if self.dra else None,
            telemetry=telemetry,
            clock=clock,
            once=once,
            cycled=lambda: self.cycles.append(time()),
            heartbeat=heartbeat,
        )
        self.host.wake = loop.wake
        return loop

    def metric(self, name: str, label: str = "") -> float:
        """Return a value by its only label if it has one; 0 where there is none."""
        return samples(self.metrics, f"devwatch_{name}").get(label, 0.0)

    def ready(self) -> tuple[bool, str]:
        """Return what /readyz says now."""
        return self.health.readyz(now())
