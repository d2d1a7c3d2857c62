"""Report what becomes of the registrations with the kubelet: in the log, in metrics and in health."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from devwatch.core.repeat import RepeatFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from devwatch.agent.registration import Registration
    from devwatch.agent.report import Telemetry
    from devwatch.core.errors import KubeletError

LINKS = "links"
"""The subject of reports about the links, which concern every resource."""


@dataclass(slots=True, kw_only=True)
class PluginReport:
    """Reports registrations; each lasting condition once, and again at growing intervals."""

    telemetry: Telemetry
    wake: Callable[[], None] = lambda: None
    """Starts the next cycle of the loop."""
    fault: str = ""
    """What keeps the links, and so every resource, from being handed over; empty where nothing does."""
    _filters: dict[str, RepeatFilter] = field(default_factory=dict)
    _contested: str = ""
    _held_up: Mapping[str, str] = field(default_factory=dict)

    def state(self, registrations: Mapping[str, Registration]) -> None:
        """Set metrics and health to the state of all resources."""
        registered = {name: int(each.handover.registered) for name, each in registrations.items()}
        self.telemetry.metrics.set_registered(registered)
        self.telemetry.health.unregistered = {
            name: (each.handover.lost_at, each.failure)
            for name, each in registrations.items()
            if not each.handover.registered
        }
        contested = [name for name, each in registrations.items() if each.handover.contested]
        self._contested = f"another plugin has registered {', '.join(contested)}" if contested else ""
        self._set_health()

    def held_up(self, reasons: Mapping[str, str]) -> None:
        """Report, each once, why resources do not offer present devices that a pod may have under another name."""
        for name, why in reasons.items():
            if self._held_up.get(name) != why:
                self.telemetry.log.warning("count.held", resource=name, reason=why)
        self._held_up = reasons
        self._set_health()

    def _set_health(self) -> None:
        held = "; ".join(f"{name}: {why}" for name, why in self._held_up.items())
        self.telemetry.health.handover = self.fault or self._contested or held

    def allocated(self, resource: str, ids: Collection[str], *, refused: bool) -> None:
        """Report that the kubelet has asked for devices for a container."""
        outcome = "refused" if refused else "allocated"
        self.telemetry.metrics.allocations.labels(outcome).inc()
        log = self.telemetry.log.warning if refused else self.telemetry.log.info
        log("device.allocated", resource=resource, devices=sorted(ids), outcome=outcome)

    def registered(self, resource: str, devices: Collection[str]) -> None:
        """Report that the kubelet has taken over the first list."""
        self._filters.pop(resource, None)
        self.telemetry.log.info("kubelet.registered", resource=resource, devices=sorted(devices))

    def lost(self, subject: str, error: KubeletError) -> None:
        """Report why devices cannot be handed over."""
        self.fault = str(error) if subject == LINKS else self.fault
        if self._filters.setdefault(subject, RepeatFilter()).should_log(str(error)):
            more = {"hint": error.hint} if error.hint else {}
            self.telemetry.log.warning("kubelet.lost", resource=subject, error=str(error), **more)

    def linked(self) -> None:
        """Report that all links are right."""
        self.fault = ""
        self._filters.pop(LINKS, None)
