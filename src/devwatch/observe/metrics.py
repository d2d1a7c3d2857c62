"""The Prometheus metrics of the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_ACTIONS: Final = ("add", "remove", "change", "move", "online", "offline", "bind", "unbind")  # kobject_actions, Linux
_TRIGGERS: Final = ("uevent", "sweep", "resync", "node", "retry", "config", "start", "grace", "kubelet")
_PATCHES: Final = ("changed", "unchanged", "refused", "failed")
_ALLOCATIONS: Final = ("allocated", "refused")
_CLAIMS: Final = (("prepare", "prepared"), ("prepare", "refused"), ("unprepare", "unprepared"))
_SLICE_WRITES: Final = ("changed", "deleted", "refused", "failed")
_EVICTIONS: Final = ("evicted", "refused", "failed", "ambiguous", "bare", "spared")
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class _Registry(CollectorRegistry):
    """A registry without the `_created` series, which prometheus_client can only disable for the whole process."""

    def collect(self) -> Iterable[Metric]:
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class Metrics:
    """All metrics of devwatch. Those whose label values are known start at 0. A string of a device is never a label."""

    def __init__(self, version: str) -> None:
        """Register all metrics in a registry of their own."""
        self._registry = _Registry()
        self._present: Mapping[str, int] = {}
        self._shown: Mapping[str, int] = {}
        self._held_up: Mapping[str, int] = {}
        self._registered_before: Mapping[str, int] = {}
        self._devices = self._gauge("devices", "Devices present.", "resource")
        self._capacity = self._gauge("capacity", "Capacity as last observed on the Node.", "resource")
        self._held = self._gauge(
            "held",
            "1 while a count is held up by what is unknown: a key of a device, or what an uncertain scan did not find.",
            "resource",
        )
        self._uevents = self._counter("uevents", "Uevents read.", "action", (*_ACTIONS, "other"))
        self.reconciles = self._counter("reconciles", "Reconciles, by trigger.", "trigger", _TRIGGERS)
        self.patches = self._counter("patches", "PATCH requests.", "outcome", _PATCHES)
        self.patch_duration = self._histogram("patch_duration_seconds", "PATCH sent to answered.")
        self.detection_to_patch = self._histogram("detection_to_patch_seconds", "Uevent read to PATCH answered.")
        self.drift_repairs = self._counter("drift_repairs", "Foreign writes undone.")
        self.uncertain_looks = self._counter("uncertain_looks", "Scans that were uncertain.")
        self.monitor_up = self._gauge("monitor_up", "1 while uevents are received.")
        self.monitor_overflows = self._counter("monitor_overflows", "Times the kernel dropped uevents.")
        self.evictions = self._counter("evictions", "Evictions, and pods spared.", "outcome", _EVICTIONS)
        self._registered = self._gauge("kubelet_registered", "1 while the kubelet has taken over our list.", "resource")
        self.allocations = self._counter("allocations", "Devices handed to a container.", "outcome", _ALLOCATIONS)
        self.claims = Counter(
            "devwatch_claims_total",
            "Claims prepared and unprepared.",
            ["operation", "outcome"],
            registry=self._registry,
        )
        for operation, outcome in _CLAIMS:
            self.claims.labels(operation, outcome)
        self.slice_writes = self._counter("slice_writes", "Writes of ResourceSlices.", "outcome", _SLICE_WRITES)
        self.config_reloads = self._counter("config_reloads", "Config reads.", "outcome", ("reloaded", "rejected"))
        self.config_in_force = self._gauge("config_in_force", "0 while the configuration file on disk is refused.")
        self.config_in_force.set(1)
        self.last_success = self._gauge("last_success_timestamp_seconds", "Unix time of the last accepted PATCH.")
        self._gauge("build_info", "Always 1.", "version").labels(version).set(1)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"devwatch_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"devwatch_{name}", text, buckets=_BUCKETS, registry=self._registry)

    def _counter(self, name: str, text: str, label: str = "", values: Iterable[str] = ()) -> Counter:
        counter = Counter(f"devwatch_{name}_total", text, [label] if label else [], registry=self._registry)
        for value in values:
            counter.labels(value)
        return counter

    def uevent(self, action: str) -> None:
        """Count one uevent. An action that the kernel does not define counts as `other`, since the text is untrusted."""
        self._uevents.labels(action if action in _ACTIONS else "other").inc()

    def set_devices(self, devices: Mapping[str, int]) -> None:
        """Set the number of devices of all resources, and drop the series of those that are not in `devices`."""
        self._present = _replace(self._devices, devices, self._present)

    def set_capacity(self, capacity: Mapping[str, int]) -> None:
        """Set the capacity of all resources, and drop the series of those that are not in `capacity`."""
        self._shown = _replace(self._capacity, capacity, self._shown)

    def set_held(self, held: Mapping[str, int]) -> None:
        """Set whether the count is held up for all resources, and drop the series of those that are not in `held`."""
        self._held_up = _replace(self._held, held, self._held_up)

    def set_registered(self, registered: Mapping[str, int]) -> None:
        """Set whether the kubelet has taken over the list, and drop the series of resources that are not in `registered`."""
        self._registered_before = _replace(self._registered, registered, self._registered_before)

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format 0.0.4."""
        return generate_latest(self._registry)


def _replace(gauge: Gauge, values: Mapping[str, int], before: Mapping[str, int]) -> Mapping[str, int]:
    """Set a gauge to these values and return them. Most scans find the same as the one before, and cost nothing here."""
    for resource in before.keys() - values.keys():
        gauge.remove(resource)
    for resource in [name for name, value in values.items() if value != before.get(name)]:
        gauge.labels(resource).set(values[resource])
    return dict(values)
