"""What the publisher of the Node status reports: each fact once in the log, and always truthfully in metrics and health."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from devwatch.agent.report import Log, Reporter, joined
from devwatch.core.errors import ApiError, CredentialsError, Forbidden, NodeMissing, Refused
from devwatch.core.repeat import RepeatFilter

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from devwatch.core.node import NodePatch, NodeState, Part
    from devwatch.core.plan import Figures
    from devwatch.observe.health import Health
    from devwatch.observe.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a request ended."""

    sent: NodePatch
    """Empty for a read."""
    outcome: NodeState | ApiError
    at: float
    seconds: float
    detected: float | None = None
    """When the change became known: the uevent was read, or the grace ended."""


@dataclass(slots=True, kw_only=True)
class NodeReporter:
    """Reports what becomes of requests, and how the Node differs from what is desired."""

    log: Log
    metrics: Metrics
    health: Health
    node: str
    devices: Reporter
    dry_run: bool = False
    """Whether nothing is written, so that the Node never shows what it should."""
    outage: str = ""
    """Why the Node could not be written and since when, for people; empty after an accepted request."""
    _denied: str = ""
    """Why the server refuses every request; empty once it does not."""
    _filters: dict[str, RepeatFilter] = field(default_factory=dict)

    def difference(
        self,
        figures: Figures,
        observed: NodeState | None,
        wanted: AbstractSet[Part],
        refused: Mapping[Part, str],
        now: float,
    ) -> None:
        """Record what the Node shows, None where there is none, which parts are refused, and since when it differs from what is desired.

        `wanted` are the parts that must be written; `refused` says why the API server refuses some of them.
        """
        health = self.health
        self.metrics.set_capacity({} if observed is None else {name: observed.count(name) for name in figures.by_name})
        health.missing = health.missing if observed is None else None
        health.refused = f"every write is refused: {self._denied}" if self._denied else _refusals(refused)
        wrong = [*sorted(wanted), *(self._counted(name, figures) for name in sorted(self.devices.held.keys() - wanted))]
        if not wrong:
            health.differs_since = None
        elif health.differs_since is None:
            health.differs_since = now
        # What is away for less than its grace differs as well, and rightly so.
        away = [name for name, figure in figures.by_name.items() if figure.advertised != figure.present]
        wrong += [self._counted(name, figures) for name in away if name not in {*wanted, *self.devices.held}]
        health.differs = joined(wrong)
        shown = observed is not None and health.uncertain is None and (self.dry_run or not wrong)
        health.shown = health.shown or shown

    def _counted(self, name: str, figures: Figures) -> str:
        """Return why a resource is advertised with more than is present."""
        figure, why = figures.by_name[name], self.devices.held.get(name, "its grace has not ended")
        return f"{name} is advertised as {figure.advertised}, with {figure.present} present: {why}"

    def accepted(self, answer: Answer, *, failures: int) -> None:
        """Tell that the server took a request: a change always, a read only when it ends an outage."""
        self._answered(answer, "changed" if answer.sent else "unchanged")
        self.metrics.last_success.set(time.time())
        self.outage = ""
        for subject in ("request", *(_refusal([part]) for part in answer.sent.parts)):
            self._filters.pop(subject, None)
        if answer.detected is not None:
            self.metrics.detection_to_patch.observe(answer.at - answer.detected)
        if answer.sent or failures:
            counts = {name: count and count.capacity for name, count in answer.sent.counts.items()}
            more: dict[str, object] = {"after_failures": failures} if failures else {}
            more |= {"annotation": "changed"} if answer.sent and not counts else {}
            self.log.info(
                "node.would_patch" if self.dry_run else "node.patched",
                node=self.node,
                resources=counts,
                milliseconds=round(answer.seconds * 1000, 1),
                **more,
            )

    def repaired(self, names: Collection[str]) -> None:
        """Tell that a foreign write was undone."""
        self.metrics.drift_repairs.inc()
        self.log.warning("drift.repaired", node=self.node, what=sorted(names))

    def contested(self, names: Collection[str], rivals: Collection[str]) -> None:
        """Tell who keeps undoing what is repaired, and what helps."""
        hint = "give the resource another name in the configuration, or stop the other writer"
        others = sorted(rivals) or ["unknown: the API server keeps no record of it"]
        self.log.error("drift.contested", node=self.node, what=sorted(names), managers=others, hint=hint)

    def watching(self) -> None:
        """Take note that foreign writes are seen at once."""
        self._filters.pop("watch", None)
        self.log.debug("node.watched", node=self.node)

    def unwatched(self, error: ApiError) -> None:
        """Tell that foreign writes are only found by the resync, and which right would make that faster."""
        if not self._should_log("watch", type(error).__name__):
            return
        if isinstance(error, Forbidden):
            consequence = "foreign writes are repaired within a minute; with get, list and watch on nodes at once"
            self.log.info("node.unwatched", node=self.node, error=str(error), consequence=consequence, hint=error.hint)
        else:
            self.log.debug("node.unwatched", node=self.node, error=str(error))

    def refused(self, answer: Answer, error: ApiError, *, retry_in: float | None) -> None:
        """Tell what the server refuses when it was sent alone (`retry_in` given); what was refused in company is sent apart first."""
        self._answered(answer, "refused")
        if retry_in is not None and self._should_log(_refusal(answer.sent.parts), str(error)):
            self.log.error(
                "node.patch_failed",
                node=self.node,
                refused=sorted(answer.sent.parts),
                error=str(error),
                retry_in=round(retry_in, 1),
                **_hint(error),
            )

    def failed(self, answer: Answer, error: ApiError, *, failures: int, retry_in: float) -> None:
        """Tell why a request failed and when it is repeated."""
        self._answered(answer, "failed", error)
        self.outage = self.outage or f"{_outage(error)} since {time.strftime('%H:%M:%S')}"
        news = self._should_log("request", str(error))
        if isinstance(error, NodeMissing):
            news = self.health.missing is None
            self.health.missing, self.health.shown = str(error), False
        if not news:
            return
        fields = {"node": self.node, "error": str(error), "failures": failures, "retry_in": round(retry_in, 1)}
        if isinstance(error, NodeMissing):
            self.log.warning(
                "node.missing",
                **fields,
                hint="it appears when its kubelet registers it; --node-name or NODE_NAME name another",
            )
        elif isinstance(error, Forbidden | Refused):
            self.log.error("node.patch_failed", **fields, **_hint(error))
        else:
            self.log.warning("node.patch_failed", **fields)

    def _answered(self, answer: Answer, outcome: str, error: ApiError | None = None) -> None:
        self.health.error = "" if error is None else str(error)
        if error is None or isinstance(error, Forbidden | Refused):
            self._denied = self.health.error
        self.metrics.patch_duration.observe(answer.seconds)
        self.metrics.patches.labels(outcome).inc()

    def _should_log(self, subject: str, text: str) -> bool:
        return self._filters.setdefault(subject, RepeatFilter()).should_log(text)


def _refusals(refused: Mapping[str, str]) -> str:
    """Return in one line what is refused and why; what was refused together is named together."""
    ordered = sorted(refused, key=lambda name: (refused[name], name))
    groups = ((", ".join(names), reason) for reason, names in groupby(ordered, key=refused.__getitem__))
    return joined([f"{names} refused: {reason}" for names, reason in groups])


def _hint(error: ApiError) -> Mapping[str, str]:
    return {"hint": error.hint} if error.hint else {}


def _refusal(names: Iterable[str]) -> str:
    return f"refused {sorted(names)}"


def _outage(error: ApiError) -> str:
    kinds = {
        NodeMissing: "the Node is missing",
        Forbidden: "a right is missing",
        CredentialsError: "no usable credentials",
    }
    return next((text for kind, text in kinds.items() if isinstance(error, kind)), "API server unreachable")
