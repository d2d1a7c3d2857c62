"""The one wiring of the loop: the daemon, the tests and the bench use it alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from devwatch.agent.events import EventApi, EventRecorder
from devwatch.agent.evictor import Evictor, WorkloadApi
from devwatch.agent.nodestatus import NodeApi, NodeStatus
from devwatch.agent.reconciler import DeviceSource, Reconciler, Settings
from devwatch.agent.report import Log, Reporter
from devwatch.core.backoff import Backoff
from devwatch.core.loss import Losses

if TYPE_CHECKING:
    from collections.abc import Callable

    from devwatch.agent.nodewatch import Watch
    from devwatch.config.schema import Config
    from devwatch.observe.health import Health
    from devwatch.observe.metrics import Metrics


class Workload(WorkloadApi, EventApi, Protocol):
    """The pods of the node, and Events."""


def build_agent(  # noqa: PLR0913 - what the loop is wired to, by keyword
    *,
    source: DeviceSource,
    api: NodeApi,
    watch: Watch | None = None,
    workload: Workload | None = None,
    settings: Settings,
    config: Config,
    node: str,
    log: Log,
    metrics: Metrics,
    health: Health,
    clock: Callable[[], float],
    wall: Callable[[], float],
    jitter: Callable[[], float],
    dry_run: bool = False,
    once: bool = False,
    cycled: Callable[[], None] = lambda: None,
    heartbeat: float | None = None,
) -> Reconciler:
    """Return the loop with everything that it drives; without a `workload` it evicts no pod and writes no Event.

    `clock` is the loop's time, `wall` Unix time, `jitter` a random number in [0, 1). Without a `watch`, foreign writes are found by the
    resync alone. For the rest see `Reconciler`.
    """
    outage = Backoff()
    reporter = Reporter(log=log, metrics=metrics, health=health, node=node, dry_run=dry_run)
    publisher = NodeStatus(api=api, watch=watch, reporter=reporter, outage=outage, clock=clock, jitter=jitter)
    losses = evictor = recorder = None
    if workload is not None:
        losses, recorder = Losses(), EventRecorder(api=workload, log=log, node=node, clock=clock)
        evictor = Evictor(api=workload, recorder=recorder, losses=losses, metrics=metrics, jitter=jitter)
        reporter.record, publisher.sending = recorder.device, losses.send
    return Reconciler(
        source=source,
        publisher=publisher,
        outage=outage,
        settings=settings,
        config=config,
        node=node,
        reporter=reporter,
        clock=clock,
        wall=wall,
        losses=losses,
        attend=evictor.attend if evictor else lambda _: None,
        tasks=(evictor, recorder) if evictor and recorder else (),
        once=once,
        cycled=cycled,
        heartbeat=heartbeat,
    )
