"""Report what the publisher of the Node status does: each fact once in the log, and the current state in metrics and health."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from devwatch.agent.report import Log, Reporter, joined
from devwatch.core.errors import ApiError, CredentialsError, Forbidden, NodeMissing, Refused
from devwatch.core.repeat import RepeatFilter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from devwatch.core.node import NodePatch, NodeState, Part
    from devwatch.core.parts import Repair
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
    """When the response was received; monotonic seconds."""
    seconds: float
    """The duration of the request."""
    detected: float | None = None
    """The detection time of the change: when its uevent was read, or its grace ended."""


@dataclass(slots=True, kw_only=True)
class NodeReporter:
    """Reports the outcome of requests, and the difference between the observed and the desired Node."""

    log: Log
    metrics: Metrics
    health: Health
    node: str
    devices: Reporter
    dry_run: bool = False
    """Whether nothing is written, so that the Node never shows the desired state."""
    outage: str = ""
    """Why the Node could not be written and since when, for messages; empty after an accepted request."""
    _denied: str = ""
    """Why the server refuses every request, empty where it does not."""
    _filters: dict[str, RepeatFilter] = field(default_factory=dict)

    def difference(
        self,
        figures: Figures,
        observed: NodeState | None,
        wanted: AbstractSet[Part],
        refused: Mapping[Part, str],
        now: float,
    ) -> None:
        """Record the observed counts (None for a missing Node), the refused parts, and since when the Node differs from the desired state.

        `wanted` are the parts that must be written; `refused` gives for each refused part the reason.
        """
        health = self.health
        self.metrics.set_capacity({} if observed is None else {name: observed.count(name) for name in figures.by_name})
        health.missing = health.missing if observed is None else None
        health.refused = f"every write is refused: {self._denied}" if self._denied else _describe_refusals(refused)
        wrong = [
            *sorted(wanted),
            *(self._describe_count(name, figures) for name in sorted(self.devices.held.keys() - wanted)),
        ]
        if not wrong:
            health.differs_since = None
        elif health.differs_since is None:
            health.differs_since = now
        # Devices that are away for less than their grace make a difference too, but an intended one: it does not count for `differs_since`.
        away = [name for name, figure in figures.by_name.items() if figure.advertised != figure.present]
        wrong += [self._describe_count(name, figures) for name in away if name not in {*wanted, *self.devices.held}]
        health.differs = joined(wrong)
        shown = observed is not None and health.uncertain is None and (self.dry_run or not wrong)
        health.shown = health.shown or shown

    def _describe_count(self, name: str, figures: Figures) -> str:
        """Return a text for a resource whose advertised count is above the number of present devices."""
        figure, why = figures.by_name[name], self.devices.held.get(name, "its grace has not ended")
        return f"{name} is advertised as {figure.advertised}, with {figure.present} present: {why}"

    def accepted(self, answer: Answer, *, failures: int) -> None:
        """Report an accepted request: a change always, a read only when it ends an outage."""
        self._count_answer(answer, "changed" if answer.sent else "unchanged")
        self.metrics.last_success.set(time.time())
        self.outage = ""
        for subject in ("request", *(_refusal_subject([part]) for part in answer.sent.parts)):
            self._filters.pop(subject, None)
        if answer.detected is not None:
            self.metrics.detection_to_patch.observe(answer.at - answer.detected)
        if answer.sent or failures:
            counts = {name: count and count.brief for name, count in answer.sent.counts.items()}
            more: dict[str, object] = {"after_failures": failures} if failures else {}
            more |= {"annotation": "changed"} if answer.sent and not counts else {}
            self.log.info(
                "node.would_patch" if self.dry_run else "node.patched",
                node=self.node,
                resources=counts,
                milliseconds=round(answer.seconds * 1000, 1),
                **more,
            )

    def repaired(self, repair: Repair) -> None:
        """Report that foreign writes were repaired and, once per contest, which clients keep writing, and the remedy."""
        what = sorted(repair.parts)
        self.metrics.drift_repairs.inc()
        self.log.warning("drift.repaired", node=self.node, what=what)
        if repair.rivals is not None:
            managers = list(repair.rivals) or ["unknown: the API server keeps no record of it"]
            hint = "give the resource another name in the configuration, or stop the other writer"
            self.log.error("drift.contested", node=self.node, what=what, managers=managers, hint=hint)

    def watching(self) -> None:
        """Report that a watch runs, so that foreign writes are observed at once."""
        self._filters.pop("watch", None)
        self.log.debug("node.watched", node=self.node)

    def unwatched(self, error: ApiError) -> None:
        """Report that only the resync finds foreign writes, and which permission would allow a watch."""
        if not self._should_log("watch", type(error).__name__):
            return
        if isinstance(error, Forbidden):
            consequence = "foreign writes are repaired within a minute; with get, list and watch on nodes at once"
            self.log.info("node.unwatched", node=self.node, error=str(error), consequence=consequence, hint=error.hint)
        else:
            self.log.debug("node.unwatched", node=self.node, error=str(error))

    def refused(self, answer: Answer, error: ApiError, *, retry_in: float | None) -> None:
        """Report a refusal of an isolated part (`retry_in` given); after the refusal of a batch its parts are first sent isolated."""
        self._count_answer(answer, "refused")
        if retry_in is not None and self._should_log(_refusal_subject(answer.sent.parts), str(error)):
            self.log.error(
                "node.patch_failed",
                node=self.node,
                refused=sorted(answer.sent.parts),
                error=str(error),
                retry_in=round(retry_in, 1),
                **_hint(error),
            )

    def failed(self, answer: Answer, error: ApiError, *, failures: int, retry_in: float) -> None:
        """Report why a request failed and when it is repeated."""
        self._count_answer(answer, "failed", error)
        self.outage = self.outage or f"{_outage_reason(error)} since {time.strftime('%H:%M:%S')}"
        should_log = self._should_log("request", str(error))
        if isinstance(error, NodeMissing):
            should_log = self.health.missing is None
            self.health.missing, self.health.shown = str(error), False
        if not should_log:
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

    def _count_answer(self, answer: Answer, outcome: str, error: ApiError | None = None) -> None:
        self.health.error = "" if error is None else str(error)
        if error is None or isinstance(error, Forbidden | Refused):
            self._denied = self.health.error
        self.metrics.patch_duration.observe(answer.seconds)
        self.metrics.patches.labels(outcome).inc()

    def _should_log(self, subject: str, text: str) -> bool:
        return self._filters.setdefault(subject, RepeatFilter()).should_log(text)


def _describe_refusals(refused: Mapping[str, str]) -> str:
    """Return in one line the refused parts with the reasons; parts with the same reason are grouped."""
    ordered = sorted(refused, key=lambda name: (refused[name], name))
    groups = ((", ".join(names), reason) for reason, names in groupby(ordered, key=refused.__getitem__))
    return joined([f"{names} refused: {reason}" for names, reason in groups])


def _hint(error: ApiError) -> Mapping[str, str]:
    return {"hint": error.hint} if error.hint else {}


def _refusal_subject(names: Iterable[str]) -> str:
    return f"refused {sorted(names)}"


def _outage_reason(error: ApiError) -> str:
    kinds = {
        NodeMissing: "the Node is missing",
        Forbidden: "a permission is missing",
        CredentialsError: "no usable credentials",
    }
    return next((text for kind, text in kinds.items() if isinstance(error, kind)), "API server unreachable")
