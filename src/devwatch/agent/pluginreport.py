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


Since = tuple[float, str]
"""Since when a condition lasts, in seconds of the loop's clock, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverCondition:
    """How far kubelet and API server have what the DRA driver publishes."""

    resources: frozenset[str]
    unregistered: Since | None
    """None while the kubelet has registered the driver."""
    unpublished: Since | None
    """None while the slice is known to show the present devices."""
    fault: str
    """What is refused or fails on this host, empty where nothing does."""


@dataclass(slots=True, kw_only=True)
class PluginReport:
    """Reports what is registered with the kubelet, and how the driver is; each lasting condition once, and again at growing intervals."""

    telemetry: Telemetry
    wake: Callable[[], None] = lambda: None
    """Starts the next cycle of the loop."""
    fault: str = ""
    """What keeps every resource from being handed over: the links or a library; empty where nothing does."""
    _filters: dict[str, RepeatFilter] = field(default_factory=dict)
    _plugins: Mapping[str, Since | None] = field(default_factory=dict)
    """By resource of a device plugin: since when it is not registered, None while it is."""
    _driver: DriverCondition | None = None
    _contested: str = ""
    _held_up: Mapping[str, str] = field(default_factory=dict)

    def state(self, registrations: Mapping[str, Registration]) -> None:
        """Set metrics and health to the state of all resources of device plugins."""
        self._plugins = {
            name: None if each.handover.registered else (each.handover.lost_at, each.failure)
            for name, each in registrations.items()
        }
        self._set_registered()
        contested = [name for name, each in registrations.items() if each.handover.contested]
        self._contested = f"another plugin has registered {', '.join(contested)}" if contested else ""
        self._set_health()

    def driver(self, condition: DriverCondition | None) -> None:
        """Set metrics and health to the state of the DRA driver, which is that of each of its resources."""
        if condition != self._driver:
            self._driver = condition
            self.telemetry.health.unpublished = condition.unpublished if condition else None
            self._set_registered()
            self._set_health()

    def _set_registered(self) -> None:
        driver = dict.fromkeys(self._driver.resources, self._driver.unregistered) if self._driver else {}
        states = {**driver, **self._plugins}
        self.telemetry.metrics.set_registered({name: int(since is None) for name, since in states.items()})
        self.telemetry.health.unregistered = {name: since for name, since in states.items() if since is not None}

    def held_up(self, reasons: Mapping[str, str]) -> None:
        """Report, each once, why resources do not offer present devices that a pod may have under another name."""
        for name, why in reasons.items():
            if self._held_up.get(name) != why:
                self.telemetry.log.warning("count.held", resource=name, reason=why)
        self._held_up = reasons
        self._set_health()

    def _set_health(self) -> None:
        held = "; ".join(f"{name}: {why}" for name, why in self._held_up.items())
        driver = self._driver.fault if self._driver else ""
        self.telemetry.health.handover = self.fault or self._contested or driver or held

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

    def lost(self, resource: str, error: KubeletError) -> None:
        """Report why the devices of a resource cannot be handed over."""
        if self._should_log(resource, error):
            self.telemetry.log.warning("kubelet.lost", resource=resource, error=str(error), **_hint(error))

    def unreachable(self, error: KubeletError) -> None:
        """Report why no resource can be handed over."""
        self.fault = error.advice
        if self._should_log(_EVERY, error):
            self.telemetry.log.warning("kubelet.lost", error=str(error), **_hint(error))

    def limited(self, error: KubeletError) -> None:
        """Report, once, what is wrong with the folder of the links, which is a fault of this host."""
        self.fault = error.advice
        before = self._filters.get(_EVERY, RepeatFilter()).texts
        new = str(error) not in before  # a condition of this host is not repeated
        if self._should_log(_EVERY, error) and new:
            self.telemetry.log.warning("host.limited", reason=str(error), **_hint(error))

    def linked(self) -> None:
        """Report that all links are right."""
        self.fault = ""
        self._filters.pop(_EVERY, None)

    def _should_log(self, subject: str, error: KubeletError) -> bool:
        return self._filters.setdefault(subject, RepeatFilter()).should_log(str(error))


_EVERY = "every resource"
"""The subject of what concerns every resource; no resource has this name."""


def _hint(error: KubeletError) -> dict[str, str]:
    return {"hint": error.hint} if error.hint else {}
