"""The daemon as a systemd service: readiness, reloads, the watchdog and the status line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devwatch.core.plan import Figures
    from devwatch.host.systemd import Notifier
    from devwatch.observe.health import Health


class SystemdService:
    """Notifies systemd of the state of the daemon after each cycle of the loop.

    A notification that does not fit into systemd's queue is sent again after the next cycle.
    """

    def __init__(self, notifier: Notifier, health: Health) -> None:
        """Start as a service that is not ready."""
        self._notifier, self._health = notifier, health
        self._ready = self._reloading = False
        self._reload_announced = True
        self._status = ""

    def reload(self) -> None:
        """Notify systemd of the beginning of a reload; before READY it is part of the start."""
        if self._ready:
            self._reloading, self._reload_announced = True, self._notifier.reloading()

    def cycled(self, figures: Figures, *, outage: str, loading: bool) -> None:
        """Notify systemd: the watchdog, the status line, and READY after the first certain scan and after each reload.

        `outage` is why nothing can be written, for the status line; `loading` is whether a configuration is being read.
        """
        self._notifier.watchdog()
        reloaded = self._reloading and not loading
        if reloaded or (not self._ready and self._health.uncertain is None):
            self._notify_ready()
        status = self._summary(figures, outage)
        if status != self._status and self._notifier.status(status):
            self._status = status

    def _notify_ready(self) -> None:
        """Notify systemd of the end of the start or of a reload; systemd must have received RELOADING first."""
        self._reload_announced = self._reload_announced or self._notifier.reloading()
        if self._reload_announced and self._notifier.ready():
            self._ready, self._reloading = True, False

    def _summary(self, figures: Figures, outage: str) -> str:
        """Return one line for `systemctl status`."""
        present = sum(figure.present > 0 for figure in figures.by_name.values())
        counts = f"{present} of {len(figures.by_name)} resources present"
        uncertain = "the scan of the devices is uncertain" if self._health.uncertain else ""
        return "; ".join(filter(None, (counts, uncertain, outage)))
