"""What a daemon writes: its log, beside metrics and health."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devwatch.agent.report import Telemetry
from devwatch.observe import logs
from devwatch.observe.health import Health
from devwatch.observe.metrics import Metrics

if TYPE_CHECKING:
    from devwatch.agent.report import Log


@dataclass(frozen=True, slots=True)
class Book:
    """A log that can be read, and the metrics beside it."""

    stream: io.StringIO
    log: Log
    metrics: Metrics

    @classmethod
    def of(cls, form: logs.Format) -> Book:
        """Open one in this format. Each line is a second later than the one before, so that none is left out as its repetition."""
        stream = io.StringIO()
        return cls(stream, logs.configure(form, "debug", stream, clock=itertools.count().__next__), Metrics("0"))

    @property
    def telemetry(self) -> Telemetry:
        """The same for a daemon, with a health of its own."""
        return Telemetry(log=self.log, metrics=self.metrics, health=Health(sweep=1, last_cycle=0, shown=True))

    def lines(self) -> list[str]:
        """Return what was written since the last time, each line without its end."""
        *lines, end = self.stream.getvalue().split("\n")
        assert end == ""
        self.stream.seek(0)
        self.stream.truncate()
        return lines
