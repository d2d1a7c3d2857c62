"""Report what the loop does: each fact once in the log, and the current state in metrics and health."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from devwatch.core.listing import parse_omitted
from devwatch.core.node import ANNOTATION, ANNOTATION_PART
from devwatch.core.repeat import RepeatFilter
from devwatch.core.states import first_state

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from devwatch.config.schema import Config
    from devwatch.core.device import Device, Key
    from devwatch.core.errors import ConfigError
    from devwatch.core.inventory import Scan
    from devwatch.core.node import NodeState
    from devwatch.core.plan import Figure, Figures
    from devwatch.core.rules import ResourceRule
    from devwatch.observe.health import Health
    from devwatch.observe.metrics import Metrics

_REASONS = 5
"""Reasons that one line lists; the rest is counted."""
_StickIdentity = tuple[str, str | None, str | None, str | None, str | None]


class Log(Protocol):
    """One event a line: a dotted past-tense name and fields."""

    def debug(self, event: str, **fields: object) -> object:
        """Report a detail."""

    def info(self, event: str, **fields: object) -> object:
        """Report what happened."""

    def warning(self, event: str, **fields: object) -> object:
        """Report what the user may want to change."""

    def error(self, event: str, **fields: object) -> object:
        """Report what the user must change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """The log, metrics and health that the loop reports to."""

    log: Log
    metrics: Metrics
    health: Health


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReportedDevice:
    """A claimed device that was reported as present."""

    device: Device
    owner: str

    @property
    def identity(self) -> _StickIdentity:
        """The resource and ids, which are the same when the stick returns in another socket, or in its other state."""
        device = self.device
        vendor, product = first_state(device.vendor, device.product)
        return (self.owner, vendor, product, device.serial, device.interface)

    def fields(self) -> dict[str, object]:
        device = self.device
        ids = f"{device.vendor}:{device.product}" if device.vendor else None
        return {
            "resource": self.owner,
            "devnode": device.devnode,
            "id": ids,
            "serial": device.serial,
            "link": device.link,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _LingeringDevice:
    """A device that was reported as removed and still counts."""

    shown: _ReportedDevice
    since: float
    grace: float


@dataclass(slots=True, kw_only=True)
class Reporter:
    """Reports devices and configurations to log, metrics and health."""

    log: Log
    metrics: Metrics
    health: Health
    record: Callable[[str, Device, str], None] = lambda _reason, _device, _resource: None
    """Called with `DeviceAdded` or `DeviceRemoved`, the device and its resource, for an Event on the Node."""
    _reported_devices: dict[Key, _ReportedDevice] = field(default_factory=dict)
    _lingering_devices: list[_LingeringDevice] = field(default_factory=list)
    _present: dict[str, int] = field(default_factory=dict)
    _rules: Mapping[str, ResourceRule] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)
    """By resource whose count is held up by something unknown: what is unknown of which device."""
    _scanned_before: bool = False
    _warned: set[str] = field(default_factory=set)
    _filters: dict[str, RepeatFilter] = field(default_factory=dict)

    def woken(self, triggers: Iterable[str], now: float) -> None:
        """Record a cycle of the loop and its triggers."""
        self.health.last_cycle = now
        for trigger in triggers:
            self.metrics.reconciles.labels(trigger).inc()

    def scan(self, scan: Scan) -> None:
        """Report what the scan could not read."""
        for trouble in scan.troubles:
            self._warn_once("host.limited", reason=trouble)
        doubts = joined(scan.doubts)
        self.health.uncertain, self.health.blocked = doubts or None, joined(scan.blocked)
        if scan.certain:
            self._filters.pop("scan", None)
            return
        self.metrics.uncertain_looks.inc()
        if self._should_log("scan", doubts):
            self.log.warning(
                "look.uncertain",
                reasons=list(scan.doubts[:_REASONS]),
                count=len(scan.doubts),
                kept="no count is lowered",
            )

    def devices(self, figures: Figures, present: Collection[Device], graces: Mapping[str, float], scan: Scan) -> None:
        """Report which claimed devices arrived and departed; in an uncertain scan no device counts as departed that may be present."""
        self._set_device_gauges(figures, scan)
        there, names = {device.key for device in present}, {device.devnode for device in scan.devices}
        here = {
            device.key: _ReportedDevice(device=device, owner=owner)
            for device in present
            if (owner := figures.claims[device].owner)
        }
        # A device of a subsystem that is not scanned any more has not departed.
        reported = (
            (key, shown) for key, shown in self._reported_devices.items() if shown.device.subsystem in scan.subsystems
        )
        missing = {key: shown for key, shown in reported if key not in there}
        # A device whose name another one has now is gone, even if the scan is uncertain.
        gone = [key for key, shown in missing.items() if scan.certain or shown.device.devnode in names]
        for shown in (missing.pop(key) for key in gone):
            self._report_departure(shown, figures.by_name.get(shown.owner), graces.get(shown.owner, 0.0), scan.at)
        self._report_ended_graces(scan.at)
        for shown in (shown for key, shown in here.items() if key not in self._reported_devices):
            self._report_arrival(shown, scan.at)
        self._reported_devices, self._scanned_before = {**missing, **here}, True
        self._report_contested(figures)
        self._report_held_counts(figures, there, scan)

    def _set_device_gauges(self, figures: Figures, scan: Scan) -> None:
        """Set the gauges of present devices; an uncertain scan does not lower them."""
        before = {} if scan.certain else self._present
        self._present = {name: max(figure.present, before.get(name, 0)) for name, figure in figures.by_name.items()}
        self.metrics.set_devices(self._present)

    def _report_contested(self, figures: Figures) -> None:
        for device, claim in figures.claims.items():
            if len(claim.wanted) > 1:
                owner = claim.owner or claim.excluded_by
                self._warn_once(
                    "device.contested", devnode=device.devnode, claimed_by=owner, matched=list(claim.wanted)
                )

    def _report_held_counts(self, figures: Figures, there: Collection[Key], scan: Scan) -> None:
        """Report which counts are held up by something unknown about a device; `scan` reports why a scan is uncertain."""
        held = {name for name, figure in figures.by_name.items() if held_up(figure)}
        self.metrics.set_held({name: int(name in held) for name in figures.by_name})
        if not scan.certain:
            self.held = {name: why for name, why in self.held.items() if name in held}
            return
        before, self.held = self.held, {name: self._describe_unknown(name, figures, there) for name in sorted(held)}
        for name in [name for name in self.held if name not in before]:
            figure = figures.by_name[name]
            self.log.warning(
                "count.held",
                resource=name,
                count=figure.advertised,
                present=figure.present,
                reason=self.held[name],
                hint="devwatch explain DEVNODE shows what is missing on this host",
            )

    def _describe_unknown(self, name: str, figures: Figures, there: Collection[Key]) -> str:
        """Return which keys or records of which devices are unknown, so that these may count for the resource."""
        reasons: list[str] = []
        for device, claim in figures.claims.items():
            if name in claim.doubtful:
                rules = (self._rules[each] for each in sorted(claim.doubtful))
                unknown = {finding.key: finding.reason for rule in rules for finding in rule.unknowns(device)}
                reasons += [f"{key} of {device.devnode} is unknown ({reason})" for key, reason in unknown.items()]
            elif name == claim.owner and device.key not in there:
                reasons.append(f"{device.devnode} has no complete udev record yet")
        return joined(reasons)

    def _report_departure(self, shown: _ReportedDevice, figure: Figure | None, grace: float, now: float) -> None:
        """Report a departure, and for how long the device still counts: its grace, or until the Node's own figure of the start ends."""
        start = (figure and figure.start_until) or now
        counted = max(grace, round(start - now, 3))
        self._lingering_devices.append(_LingeringDevice(shown=shown, since=now, grace=counted))
        self.log.info("device.removed", **shown.fields(), counted_for_seconds=counted)

    def _report_ended_graces(self, now: float) -> None:
        """Record as removed the devices that did not return within their grace."""
        ended = [gone for gone in self._lingering_devices if now >= gone.since + gone.grace]
        self._lingering_devices = [gone for gone in self._lingering_devices if gone not in ended]
        for gone in ended:
            self.record("DeviceRemoved", gone.shown.device, gone.shown.owner)

    def _report_arrival(self, shown: _ReportedDevice, now: float) -> None:
        """Report an arrival, as a return where the device still counts."""
        gone = next((gone for gone in self._lingering_devices if gone.shown.identity == shown.identity), None)
        if gone is None:
            self.log.info("device.added", **shown.fields())
            if self._scanned_before:  # devices of the first scan were not added now
                self.record("DeviceAdded", shown.device, shown.owner)
        else:
            self._lingering_devices.remove(gone)
            self.log.info("device.returned", **shown.fields(), away_seconds=round(now - gone.since, 3))

    def recalled(self, observed: NodeState, evicting: Collection[str]) -> None:
        """Report at the start which devices of a former daemon are unknown: where one of these is lost by now, no pod is evicted for it."""
        for reason in _unknown_devices(observed, evicting):
            self._warn_once(
                "host.limited",
                reason=f"{reason}: for a device that was lost before this start no pod is evicted",
                hint="delete a pod that was left without its device",
            )

    def configured(self, config: Config) -> None:
        """Take a configuration into use, and report its warnings."""
        self.health.sweep = config.sweep
        self._rules = {rule.name: rule for rule in config.resources}
        for fault in config.warnings:
            self._warn_once("config.doubtful", line=fault.line, key=fault.path, reason=fault.message)

    def reloaded(self, names: Collection[str]) -> None:
        """Report that a new configuration is in use."""
        self.metrics.config_reloads.labels("reloaded").inc()
        self.metrics.config_in_force.set(1)
        self.log.info("config.reloaded", resources=list(names))

    def rejected(self, error: ConfigError) -> None:
        """Report that a configuration was rejected, with all its faults."""
        self.metrics.config_reloads.labels("rejected").inc()
        self.metrics.config_in_force.set(0)
        faults = [fault.render(error.file) for fault in error.faults]
        self.log.error("config.rejected", faults=faults, kept="the configuration before it stays in force")

    def _should_log(self, subject: str, text: str) -> bool:
        return self._filters.setdefault(subject, RepeatFilter()).should_log(text)

    def _warn_once(self, event: str, **fields: object) -> None:
        text = repr((event, fields))
        if text not in self._warned:
            self._warned.add(text)
            self.log.warning(event, **fields)


def held_up(figure: Figure) -> bool:
    """Return whether a count is above the present devices only because something is unknown, and not because of a grace."""
    return figure.held and figure.due is None and figure.advertised > figure.present


def joined(texts: Sequence[str]) -> str:
    """Return the first `_REASONS` texts, and the number of the others, in one line."""
    more = (f"{len(texts) - _REASONS} more",) if len(texts) > _REASONS else ()
    return "; ".join((*texts[:_REASONS], *more))


def _unknown_devices(observed: NodeState, evicting: Collection[str]) -> Iterator[str]:
    """Yield why the annotation does not tell of all devices that a former daemon knew of the `evicting` resources."""
    if observed.annotation is None or not evicting:
        return
    if observed.believed:
        for name, number in parse_omitted(observed.annotation).items():
            if name in evicting:
                yield f"the annotation {ANNOTATION} omits {number} of the devices of {name}"
        return
    managers = joined(sorted({writer.manager for writer in observed.writers.get(ANNOTATION_PART, ())}))
    yield f"the annotation {ANNOTATION} is not believed, since {managers or 'an unknown client'} has written it"
