"""Remember when the oldest change that is not yet sent was detected, for the metric of the delay."""

from __future__ import annotations


class Detection:
    """The detection time of the oldest change that is not sent: when its uevent was read, or its grace ended."""

    def __init__(self) -> None:
        """Start without a change."""
        self._detected: float | None = None
        self._lingering: float | None = None
        """When the next grace ends, as of the last cycle."""

    def detect(self, now: float) -> None:
        """Record that a uevent was read."""
        self._detected = now if self._detected is None else self._detected

    def update(self, grace: float | None, now: float, *, ready: bool) -> None:
        """Keep the time while a change is `ready` to be sent, else clear it; `grace` is when the next grace ends."""
        if not ready:
            self._detected = None
        elif self._lingering is not None and self._lingering <= now:
            self.detect(self._lingering)
        self._lingering = grace

    def take(self) -> float | None:
        """Return the time, None for no change, and clear it, since the change is sent."""
        detected, self._detected = self._detected, None
        return detected

    def restore(self, detected: float | None) -> None:
        """Take back the time of a change that failed to be sent: it is older than any uevent since."""
        self._detected = self._detected if detected is None else detected
