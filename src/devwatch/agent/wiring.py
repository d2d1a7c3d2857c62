"""Wire the parts of the loop together, for the daemon, the tests and the bench alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from devwatch.agent.events import EventApi, EventRecorder
from devwatch.agent.evictor import Evictor, WorkloadApi
from devwatch.agent.nodereport import NodeReporter
from devwatch.agent.nodestatus import NodeApi, NodeStatus
from devwatch.agent.reconciler import DeviceSource, Reconciler, Settings
from devwatch.agent.report import Reporter, Telemetry
from devwatch.core.backoff import Backoff
from devwatch.core.loss import Losses

if TYPE_CHECKING:
    from collections.abc import Callable

    from devwatch.agent.clock import Clock
    from devwatch.agent.nodewatch import Watch
    from devwatch.config.schema import Config


class Workload(WorkloadApi, EventApi, Protocol):
    """The APIs for the pods of the node and for Events."""


def build_agent(  # noqa: PLR0913 - the parts of the loop, by keyword
    *,
    node: str,
    source: DeviceSource,
    api: NodeApi,
    watch: Watch | None = None,
    workload: Workload | None = None,
    settings: Settings,
    config: Config,
    telemetry: Telemetry,
    clock: Clock,
    dry_run: bool = False,
    once: bool = False,
    cycled: Callable[[], None] = lambda: None,
    heartbeat: float | None = None,
) -> Reconciler:
    """Return the loop for a node. Without a `workload` it evicts no pod and writes no Event; for the rest see `Reconciler`."""
    log, metrics, outage = telemetry.log, telemetry.metrics, Backoff()
    health, reporter = telemetry.health, Reporter(log=log, metrics=metrics, health=telemetry.health)
    node_reporter = NodeReporter(log=log, metrics=metrics, health=health, node=node, devices=reporter, dry_run=dry_run)
    publisher = NodeStatus(api=api, watch=watch, reporter=node_reporter, outage=outage, clock=clock)
    evictor = None
    if workload is not None:
        recorder = EventRecorder(api=workload, log=log, node=node, clock=clock.now)
        evictor = Evictor(api=workload, recorder=recorder, losses=Losses(), metrics=metrics, jitter=clock.jitter)
        reporter.record, publisher.sending = recorder.device, evictor.losses.send
    return Reconciler(
        node=node,
        source=source,
        publisher=publisher,
        evictor=evictor,
        outage=outage,
        settings=settings,
        config=config,
        reporter=reporter,
        clock=clock,
        once=once,
        cycled=cycled,
        heartbeat=heartbeat,
    )
