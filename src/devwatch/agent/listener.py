"""Pass the reports of the udev monitor to the metrics, the log and the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devwatch.core.repeat import RepeatFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from devwatch.agent.report import Log
    from devwatch.observe.metrics import Metrics


class MonitorListener:
    """Receives the reports of the udev monitor: counts and logs them, and wakes the loop."""

    def __init__(self, log: Log, metrics: Metrics) -> None:
        """Start without a loop to wake."""
        self._log, self._metrics = log, metrics
        self.wake: Callable[[str], None] = lambda _: None
        self._overflows = RepeatFilter()
        self._source: str | None = None

    def uevents(self, actions: Sequence[str]) -> None:
        """Count uevents by action, and wake the loop to scan."""
        for action in actions:
            self._metrics.uevent(action)
        self.wake("uevent")

    def overflowed(self) -> None:
        """Report lost uevents, and wake the loop: a scan finds everything that they would have announced."""
        self._metrics.monitor_overflows.inc()
        if self._overflows.should_log("overflow"):
            self._log.warning(
                "monitor.overflowed", times=self._overflows.repeats, lost="nothing: the devices are scanned again"
            )
        self.wake("uevent")

    def lost(self, reason: str) -> None:
        """Report that there is no monitor, so that only the sweep finds changes."""
        self._metrics.monitor_up.set(0)
        self._source = ""
        self._log.warning("monitor.lost", reason=reason)

    def restored(self, source: str) -> None:
        """Report that uevents are received, again or from another source; the start is logged at debug level only."""
        self._metrics.monitor_up.set(1)
        if self._source is None:
            self._log.debug("monitor.started", source=source)
        else:
            self._log.info("monitor.restored", source=source)
        self._source = source
