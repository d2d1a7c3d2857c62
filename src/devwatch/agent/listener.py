"""What the udev monitor reports goes to the metrics and the log, and wakes the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devwatch.core.repeat import RepeatFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from devwatch.agent.report import Log
    from devwatch.observe.metrics import Metrics


class MonitorListener:
    """What the monitor hears goes to the metrics, to the log, and wakes the loop."""

    def __init__(self, log: Log, metrics: Metrics) -> None:
        """Wake nobody yet."""
        self._log, self._metrics = log, metrics
        self.wake: Callable[[str], None] = lambda _: None
        self._overflows = RepeatFilter()
        self._source: str | None = None

    def uevents(self, actions: Sequence[str]) -> None:
        """Count them and look."""
        for action in actions:
            self._metrics.uevent(action)
        self.wake("uevent")

    def overflowed(self) -> None:
        """Uevents are lost, and with them nothing: looking again tells what is there."""
        self._metrics.monitor_overflows.inc()
        if self._overflows.should_log("overflow"):
            self._log.warning(
                "monitor.overflowed", times=self._overflows.repeats, lost="nothing: the devices are looked at again"
            )
        self.wake("uevent")

    def lost(self, reason: str) -> None:
        """Tell that only the sweep finds changes now."""
        self._metrics.monitor_up.set(0)
        self._source = ""
        self._log.warning("monitor.lost", reason=reason)

    def restored(self, source: str) -> None:
        """Tell that uevents are heard again, or from elsewhere; the first time nobody has missed them."""
        self._metrics.monitor_up.set(1)
        if self._source is None:
            self._log.debug("monitor.started", source=source)
        else:
            self._log.info("monitor.restored", source=source)
        self._source = source
