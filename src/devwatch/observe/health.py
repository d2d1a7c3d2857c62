"""The health of the daemon: whether it is alive, and whether it is ready."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from devwatch.core.text import blank

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DIFFERENCE_LIMIT: Final = 60
"""Seconds for which the Node may differ from the devices before the daemon is not ready."""


@dataclass(slots=True, kw_only=True)
class Health:
    """The facts behind `/healthz` and `/readyz`. All times are seconds of one monotonic clock.

    Each field is kept up to date by its owner, such as the reporter; a text is one line in the words of its source, such as the server.
    The HTTP server runs in the loop that it reports on: a blocked loop does not answer at all.
    """

    sweep: float
    last_cycle: float
    """When the last cycle of the loop began, or the loop started."""
    waiting: str | None = None
    """The other daemon that holds the node, None while none does."""
    missing: str | None = None
    """The API server's message that there is no such Node, None while there is one."""
    refused: str = ""
    """The parts of the Node that the server refuses, and why; empty where it refuses none."""
    eviction: str = ""
    """The pod that cannot be evicted because the server refuses it, and why; empty where it refuses none."""
    uncertain: str | None = None
    """Why the last scan was uncertain, None where it was certain."""
    blocked: str = ""
    """The directory in the place of a device, with the cure; empty where there is none."""
    shown: bool = False
    """Whether the Node has been observed to show the devices that are present."""
    differs: str = ""
    """How the Node differs from the devices that are present; empty where it does not."""
    differs_since: float | None = None
    """Since when it differs, None while it does not or may."""
    error: str = ""
    """Why the last request failed; empty after a successful one."""
    handover: str = ""
    """Why the kubelet cannot be given the devices of a resource, whatever it answers; empty where nothing is in the way."""
    changing: str = ""
    """The resources that wait for pods of their former way of publishing, empty where none does."""
    unpublished: tuple[float, str] | None = None
    """Since when the ResourceSlice is not known to show what is present, and why; None while it is."""
    unregistered: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    """By resource that is not registered with the kubelet: since when, and why the last attempt failed."""

    def healthz(self, now: float) -> tuple[bool, str]:
        """Return whether the loop runs its cycles, and a line that says why not."""
        if self.waiting is not None:  # a daemon that waits for the lock runs no cycles, and is healthy
            return True, "ok"
        age, limit = now - self.last_cycle, max(3 * self.sweep, 30)
        return (
            age <= limit,
            "ok" if age <= limit else f"the loop has run no cycle for {age:.0f} s (limit {limit:.0f} s)",
        )

    def readyz(self, now: float) -> tuple[bool, str]:
        """Return whether the Node's counts can be relied on, and a line that says why not."""
        reason = next(self._faults(now), None)
        return reason is None, blank(reason or "ok")

    def _faults(self, now: float) -> Iterator[str]:
        """Yield why the Node's counts cannot be relied on, in the order of cause before effect, since only the first is shown.

        A waiting daemon does nothing else; without a Node nothing can be written; a refusal needs the user; uncertain or blocked devices
        explain a count that is not written, and so does a kubelet that does not take the devices; a difference explains itself only after
        a while, since a PATCH takes a moment.
        """
        if self.waiting is not None:
            yield f"another daemon holds the node: {self.waiting}"
        if self.missing is not None:
            yield f"the Node is missing: {self.missing}"
        yield from filter(None, (self.refused, self.eviction))
        if self.uncertain is not None:
            yield f"the scan of the devices is uncertain: {self.uncertain}"
        if self.blocked:
            yield self.blocked
        why = "".join(f": {text}" for text in (self.differs, self.error) if text)
        if not self.shown:
            yield f"the Node has not been seen to show what is present{why}"
        yield from self._handover_faults(now)
        late = 0 if self.differs_since is None else now - self.differs_since
        if late >= _DIFFERENCE_LIMIT:
            yield f"the Node has not shown what is present for {late:.0f} s{why}"

    def _handover_faults(self, now: float) -> Iterator[str]:
        if self.handover:
            yield self.handover
        if self.changing:
            yield self.changing
        if self.unpublished is not None and now - self.unpublished[0] >= _DIFFERENCE_LIMIT:
            since, reason = self.unpublished
            yield f"the ResourceSlice has not shown what is present for {now - since:.0f} s{reason and f': {reason}'}"
        for name, (since, reason) in self.unregistered.items():
            if now - since >= _DIFFERENCE_LIMIT:
                yield f"{name} has not been registered with the kubelet for {now - since:.0f} s{reason and f': {reason}'}"
