"""Report what becomes of claims and of the DRA driver: in the log and in metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from devwatch.core.names import DRIVER
from devwatch.core.repeat import RepeatFilter

if TYPE_CHECKING:
    from collections.abc import Callable

    from devwatch.agent.report import Telemetry
    from devwatch.core.claims import ClaimReference, PreparedClaim
    from devwatch.core.errors import ClaimRefused, KubeletError


@dataclass(slots=True, kw_only=True)
class ClaimReport:
    """Reports claims and the driver; each lasting condition once, and again at growing intervals."""

    telemetry: Telemetry
    wake: Callable[[], None] = lambda: None
    """Starts the next cycle of the loop."""
    _filters: dict[str, RepeatFilter] = field(default_factory=dict)

    def prepared(self, claim: PreparedClaim, *, new: bool) -> None:
        """Report that a claim is prepared; a repeated call of the kubelet is only counted."""
        self._count("prepare", "prepared")
        if new:
            devices = sorted(device.id for device in claim.devices)
            self._log("claim.prepared", claim.reference, devices=devices, outcome="prepared")

    def refused(self, claim: ClaimReference, error: ClaimRefused) -> None:
        """Report why a claim is not prepared."""
        self._count("prepare", "refused")
        self.telemetry.log.warning(
            "claim.prepared", claim=claim.title, uid=claim.uid, outcome="refused", error=str(error)
        )

    def unprepared(self, claim: ClaimReference, *, known: bool) -> None:
        """Report that the kubelet has ended a claim; one that was not prepared is only counted."""
        self._count("unprepare", "unprepared")
        if known:
            self._log("claim.unprepared", claim)

    def ended(self, claim: ClaimReference) -> None:
        """Report that a claim has ended, or has other devices now, although the kubelet has not said so."""
        self._log("claim.unprepared", claim, reason="its allocation has ended")

    def registered(self) -> None:
        """Report that the kubelet has registered the driver."""
        self._filters.pop(DRIVER, None)
        self.telemetry.log.info("kubelet.registered", driver=DRIVER)

    def lost(self, subject: str, error: KubeletError) -> None:
        """Report why claims cannot be prepared."""
        if self._filters.setdefault(subject, RepeatFilter()).should_log(str(error)):
            more = {"hint": error.hint} if error.hint else {}
            self.telemetry.log.warning("kubelet.lost", driver=DRIVER, error=str(error), **more)

    def restored(self, subject: str) -> None:
        """Record that a condition has ended, so that its next begin is reported."""
        self._filters.pop(subject, None)

    def _log(self, event: str, claim: ClaimReference, **fields: object) -> None:
        self.telemetry.log.info(event, claim=claim.title, uid=claim.uid, **fields)

    def _count(self, operation: str, outcome: str) -> None:
        self.telemetry.metrics.claims.labels(operation, outcome).inc()
