"""What the loop tells about itself: each fact once as a log line, and always truthfully in the metrics and the health answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from devwatch.core.repeat import RepeatFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from devwatch.config.schema import Config
    from devwatch.core.device import Device, Key
    from devwatch.core.errors import ConfigError
    from devwatch.core.inventory import Scan
    from devwatch.core.plan import Figure, Figures
    from devwatch.core.rules import ResourceRule
    from devwatch.observe.health import Health
    from devwatch.observe.metrics import Metrics

_REASONS = 5
"""Reasons that one line writes out; the rest is a number."""
_Identity = tuple[str, str | None, str | None, str | None, str | None]


class Log(Protocol):
    """One event a line: a dotted past-tense name and fields."""

    def debug(self, event: str, **fields: object) -> object:
        """Report a detail."""

    def info(self, event: str, **fields: object) -> object:
        """Report what happened."""

    def warning(self, event: str, **fields: object) -> object:
        """Report what the user may want to change."""

    def error(self, event: str, **fields: object) -> object:
        """Report what the user has to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """Where the loop reports."""

    log: Log
    metrics: Metrics
    health: Health


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """A claimed device that was reported as present."""

    device: Device
    owner: str

    @property
    def identity(self) -> _Identity:
        """What is the same when the stick comes back through another socket."""
        device = self.device
        return (self.owner, device.vendor, device.product, device.serial, device.interface)

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
class _Gone:
    """A device that was reported as removed and still counts."""

    shown: _Shown
    since: float
    grace: float


@dataclass(slots=True, kw_only=True)
class Reporter:
    """Tells people and Prometheus what the loop found and did."""

    log: Log
    metrics: Metrics
    health: Health
    record: Callable[[str, Device, str], None] = lambda _reason, _device, _resource: None
    """Takes `DeviceAdded` and `DeviceRemoved` with the device and its resource, for an Event on the Node."""
    _shown: dict[Key, _Shown] = field(default_factory=dict)
    _gone: list[_Gone] = field(default_factory=list)
    _present: dict[str, int] = field(default_factory=dict)
    _rules: Mapping[str, ResourceRule] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)
    """By resource whose count is held up by what is unknown of a device: what that is."""
    _looked: bool = False
    _told: set[str] = field(default_factory=set)
    _filters: dict[str, RepeatFilter] = field(default_factory=dict)

    def woken(self, triggers: Iterable[str], now: float) -> None:
        """Take note that the loop turns, and why."""
        self.health.last_cycle = now
        for trigger in triggers:
            self.metrics.reconciles.labels(trigger).inc()

    def scan(self, scan: Scan) -> None:
        """Tell what could not be seen."""
        for trouble in scan.troubles:
            self._warn_once("host.limited", reason=trouble)
        doubts = joined(scan.doubts)
        self.health.uncertain, self.health.blocked = doubts or None, joined(scan.blocked)
        if scan.certain:
            self._filters.pop("look", None)
            return
        self.metrics.uncertain_looks.inc()
        if self._should_log("look", doubts):
            self.log.warning(
                "look.uncertain",
                reasons=list(scan.doubts[:_REASONS]),
                count=len(scan.doubts),
                kept="no count is lowered",
            )

    def devices(self, figures: Figures, present: Collection[Device], graces: Mapping[str, float], scan: Scan) -> None:
        """Tell which claimed devices came and went; a look that is not certain misses nobody."""
        self._measure(figures, scan)
        here = {
            device.key: _Shown(device=device, owner=owner)
            for device in present
            if (owner := figures.claims[device].owner)
        }
        there, names = {device.key for device in present}, {device.devnode for device in scan.devices}
        missing = {key: shown for key, shown in self._shown.items() if key not in there}
        # Where another one has its name it is gone, however little else is certain.
        gone = [key for key, shown in missing.items() if scan.certain or shown.device.devnode in names]
        for shown in (missing.pop(key) for key in gone):
            figure = figures.by_name.get(shown.owner)
            start = (figure and figure.start_until) or scan.at
            self._departed(shown, max(graces.get(shown.owner, 0.0), round(start - scan.at, 3)), scan.at)
        over = [gone for gone in self._gone if scan.at >= gone.since + gone.grace]
        self._gone = [gone for gone in self._gone if gone not in over]
        for gone_for_good in over:
            self.record("DeviceRemoved", gone_for_good.shown.device, gone_for_good.shown.owner)
        for shown in (shown for key, shown in here.items() if key not in self._shown):
            self._arrived(shown, scan.at)
        self._shown, self._looked = {**missing, **here}, True
        self._contested(figures)
        self._hold(figures, there, scan)

    def _measure(self, figures: Figures, scan: Scan) -> None:
        """Show how many are present; what an uncertain look did not find is not absent."""
        before = {} if scan.certain else self._present
        self._present = {name: max(figure.present, before.get(name, 0)) for name, figure in figures.by_name.items()}
        self.metrics.set_devices(self._present)

    def _contested(self, figures: Figures) -> None:
        for device, claim in figures.claims.items():
            if len(claim.wanted) > 1:
                self._warn_once(
                    "device.contested", devnode=device.devnode, claimed_by=claim.owner, matched=list(claim.wanted)
                )

    def _hold(self, figures: Figures, there: Collection[Key], scan: Scan) -> None:
        """Tell which counts are held up by what is unknown of a device; why a look is uncertain is told elsewhere."""
        held = {name for name, figure in figures.by_name.items() if held_up(figure)}
        self.metrics.set_held({name: int(name in held) for name in figures.by_name})
        if not scan.certain:
            self.held = {name: why for name, why in self.held.items() if name in held}
            return
        before, self.held = self.held, {name: self._unknown(name, figures, there) for name in sorted(held)}
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

    def _unknown(self, name: str, figures: Figures, there: Collection[Key]) -> str:
        """Return what is unknown of which device, so that it may count for the resource."""
        reasons: list[str] = []
        for device, claim in figures.claims.items():
            if name in claim.doubtful:
                rules = (self._rules[each] for each in sorted(claim.doubtful))
                unknown = {finding.key: finding.reason for rule in rules for finding in rule.unknowns(device)}
                reasons += [f"{key} of {device.devnode} is unknown ({reason})" for key, reason in unknown.items()]
            elif name == claim.owner and device.key not in there:
                reasons.append(f"{device.devnode} has no complete udev record yet")
        return joined(reasons)

    def _arrived(self, shown: _Shown, now: float) -> None:
        gone = next((gone for gone in self._gone if gone.shown.identity == shown.identity), None)
        if gone is None:
            self.log.info("device.added", **shown.fields())
            if self._looked:  # what was there before the first look was not added now
                self.record("DeviceAdded", shown.device, shown.owner)
        else:
            self._gone.remove(gone)
            self.log.info("device.returned", **shown.fields(), away_seconds=round(now - gone.since, 3))

    def _departed(self, shown: _Shown, grace: float, now: float) -> None:
        self._gone.append(_Gone(shown=shown, since=now, grace=grace))
        self.log.info("device.removed", **shown.fields(), counted_for_seconds=grace)

    def configured(self, config: Config) -> None:
        """Tell what is doubtful about a configuration that is used from now on."""
        self.health.sweep = config.sweep
        self._rules = {rule.name: rule for rule in config.resources}
        for fault in config.warnings:
            self._warn_once("config.doubtful", line=fault.line, key=fault.path, reason=fault.message)

    def reloaded(self, names: Collection[str]) -> None:
        """Tell that another configuration is used."""
        self.metrics.config_reloads.labels("reloaded").inc()
        self.metrics.config_in_force.set(1)
        self.log.info("config.reloaded", resources=list(names))

    def rejected(self, error: ConfigError) -> None:
        """Tell that a configuration is not used, with everything that is wrong with it."""
        self.metrics.config_reloads.labels("rejected").inc()
        self.metrics.config_in_force.set(0)
        faults = [fault.render(error.file) for fault in error.faults]
        self.log.error("config.rejected", faults=faults, kept="the configuration before it stays in force")

    def _should_log(self, subject: str, text: str) -> bool:
        return self._filters.setdefault(subject, RepeatFilter()).should_log(text)

    def _warn_once(self, event: str, **fields: object) -> None:
        text = repr((event, fields))
        if text not in self._told:
            self._told.add(text)
            self.log.warning(event, **fields)


def held_up(figure: Figure) -> bool:
    """Return whether only what is unknown keeps a count from falling to what is present: no grace does any more."""
    return figure.held and figure.due is None and figure.advertised > figure.present


def joined(texts: Sequence[str]) -> str:
    """Return the first few reasons, and how many more there are, in one line."""
    more = (f"{len(texts) - _REASONS} more",) if len(texts) > _REASONS else ()
    return "; ".join((*texts[:_REASONS], *more))
