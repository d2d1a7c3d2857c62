"""Report what becomes of the ResourceSlices: in the log and in metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from devwatch.core.errors import ApiError, Forbidden, Refused
from devwatch.core.names import DRIVER
from devwatch.core.repeat import RepeatFilter
from devwatch.core.slices import MAX_DEVICES, Operation, Slice, Write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devwatch.agent.report import Telemetry

UNTAINTED = "the API server does not store the taints of devices: a lost device leaves the slice at once"
"""What is reported where the server drops a taint."""


@dataclass(slots=True, kw_only=True)
class SliceReporter:
    """Reports writes of slices, and what keeps them from being written; each lasting condition once, and again at growing intervals."""

    telemetry: Telemetry
    _filters: dict[str, RepeatFilter] = field(default_factory=dict)
    _omitted: frozenset[str] = frozenset()

    def written(self, write: Write, stored: Slice, *, repaired: bool) -> None:
        """Report an accepted write; `repaired` where it undoes what another client did."""
        for subject in Operation:
            self._filters.pop(subject.value, None)
        deleted = write.operation is Operation.DELETE
        self.telemetry.metrics.slice_writes.labels("deleted" if deleted else "changed").inc()
        fields: dict[str, object] = {"slice": stored.name, "operation": write.operation.value}
        if not deleted:
            fields |= {"devices": len(stored.devices), "lost": list(stored.lost), "generation": stored.generation}
        if repaired:
            self.telemetry.metrics.drift_repairs.inc()
            fields["repaired"] = True
        self.telemetry.log.info("slice.published", **fields)

    def refused(self, write: Write, error: ApiError, *, retry_in: float) -> None:
        """Report a write that failed."""
        final = isinstance(error, Forbidden | Refused)
        self.telemetry.metrics.slice_writes.labels("refused" if final else "failed").inc()
        self._refused(write.operation.value, error, slice=write.slice.name, retry_in=round(retry_in, 1))

    def unwatched(self, error: ApiError, *, listed: bool) -> None:
        """Report why the slices cannot be watched or, where they have never been `listed`, why none is written."""
        if listed and not isinstance(error, Forbidden):
            self.telemetry.log.debug("slices.unwatched", error=str(error))
        else:
            self._refused("watch", error)

    def watched(self) -> None:
        """Report that a watch runs."""
        self._filters.pop("watch", None)

    def untainted(self, name: str) -> None:
        """Report that the server has dropped a taint."""
        hint = "the feature gate DRADeviceTaints stores them, on by default from Kubernetes 1.36"
        if self._should_log("taints", UNTAINTED):
            self.telemetry.log.warning("slice.refused", operation="taint", slice=name, error=UNTAINTED, hint=hint)

    def omitted(self, names: Sequence[str]) -> None:
        """Report the devices that have no place in the slice, when they change."""
        if frozenset(names) != self._omitted:
            self._omitted = frozenset(names)
            if names:
                reason = f"driver {DRIVER} publishes {MAX_DEVICES} devices at most: {len(names)} are left out"
                self.telemetry.log.warning("host.limited", reason=reason, devices=sorted(names))

    def _refused(self, operation: str, error: ApiError, **fields: object) -> None:
        if self._should_log(operation, str(error)):
            log = self.telemetry.log
            tell = log.error if isinstance(error, Forbidden | Refused) else log.warning
            more = {"hint": error.hint} if error.hint else {}
            tell("slice.refused", operation=operation, error=str(error), **fields, **more)

    def _should_log(self, subject: str, text: str) -> bool:
        return self._filters.setdefault(subject, RepeatFilter()).should_log(text)
