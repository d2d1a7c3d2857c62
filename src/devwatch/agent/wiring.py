"""Wire the parts of the loop together, for the daemon, the tests and the bench alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Unpack

from devwatch.agent.deviceplugin import DevicePlugins
from devwatch.agent.dra import Dra
from devwatch.agent.events import EventApi, EventRecorder
from devwatch.agent.evictor import Evictor, WorkloadApi
from devwatch.agent.handovers import Handovers
from devwatch.agent.nodereport import NodeReporter
from devwatch.agent.nodestatus import NodeApi, NodeStatus
from devwatch.agent.reconciler import DeviceSource, Pace, Reconciler, Settings
from devwatch.agent.report import Reporter, Telemetry
from devwatch.core.backoff import Backoff
from devwatch.core.loss import Losses

if TYPE_CHECKING:
    from collections.abc import Callable

    from devwatch.agent.clock import Clock
    from devwatch.agent.nodewatch import Watch
    from devwatch.agent.registration import KubeletApi
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
    kubelet: Callable[[], KubeletApi] | None = None,
    dra: Dra | None = None,
    settings: Settings,
    config: Config,
    telemetry: Telemetry,
    clock: Clock,
    dry_run: bool = False,
    **pace: Unpack[Pace],
) -> Reconciler:
    """Return the loop. Without a `workload` it evicts no pod and writes no Event; without a `kubelet` it hands over no device."""
    log, metrics, health, outage = telemetry.log, telemetry.metrics, telemetry.health, Backoff()
    reporter = Reporter(log=log, metrics=metrics, health=health)
    node_reporter = NodeReporter(log=log, metrics=metrics, health=health, node=node, devices=reporter, dry_run=dry_run)
    publisher = NodeStatus(api=api, watch=watch, reporter=node_reporter, outage=outage, clock=clock)
    evictor = _build_evictor(workload, telemetry, clock, node) if workload else None
    handovers = _build_handovers(kubelet, dra or Dra(), workload, telemetry, clock) if workload and kubelet else None
    if evictor is not None:
        reporter.record, publisher.sending = evictor.recorder.device, evictor.losses.send
        evictor.holders.kubelet = handovers
    return Reconciler(
        node=node,
        source=source,
        publisher=publisher,
        evictor=evictor,
        handovers=handovers,
        outage=outage,
        settings=settings,
        config=config,
        reporter=reporter,
        clock=clock,
        **pace,
    )


def _build_handovers(
    kubelet: Callable[[], KubeletApi], dra: Dra, workload: Workload, telemetry: Telemetry, clock: Clock
) -> Handovers:
    plugins = DevicePlugins(kubelet, telemetry=telemetry, clock=clock)
    return Handovers(plugins, dra, pods=workload.pods, telemetry=telemetry, clock=clock)


def _build_evictor(workload: Workload, telemetry: Telemetry, clock: Clock, node: str) -> Evictor:
    recorder = EventRecorder(api=workload, log=telemetry.log, node=node, clock=clock.now)
    metrics, health = telemetry.metrics, telemetry.health
    return Evictor(
        api=workload, recorder=recorder, losses=Losses(), metrics=metrics, health=health, jitter=clock.jitter
    )
