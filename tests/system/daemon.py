"""The daemon as users run it: a process of its own, known by its log, its exit status and what it does to the Node."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from system.process import Process
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

T = TypeVar("T")
Record = dict[str, Any]

RUN = (sys.executable, "-m", "devwatch", "run")
JSON_LOG = "--log-format=json"
TIMEOUT = 30.0

# What would reach the daemon from the machine that runs the tests, and decide in place of its options.
_FOREIGN = {"KUBECONFIG", "NODE_NAME", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "KUBERNETES_SERVICE_HOST"}


class DaemonEndedError(Exception):
    """The daemon ended while a test waited for something; the message holds its status and last log lines."""


class Daemon:
    """`devwatch run` with these options, as a context manager that kills it at the end.

    Its environment is the tests' own without credentials, `DEVWATCH_*` and what a service manager sets, plus `env`.
    """

    def __init__(
        self, *options: str, home: Path, env: Mapping[str, str] | None = None, command: Sequence[str] = RUN
    ) -> None:
        """Start it; its output goes to files in a new folder in `home`, which also is its HOME."""
        folder = Path(tempfile.mkdtemp(prefix="daemon-", dir=home))
        environ = {key: value for key, value in os.environ.items() if not _foreign(key)}
        self.process = Process(
            [*command, *options], folder / "daemon", env={**environ, "HOME": str(folder), **(env or {})}
        )

    def __enter__(self) -> Self:
        """Return the daemon, which runs already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill it if it still runs."""
        self.process.kill()

    @property
    def stdout(self) -> str:
        """The standard output so far."""
        return self.process.stdout.read_text("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """The standard error so far: the log, and whatever else came out there."""
        return self.process.stderr.read_text("utf-8", "replace")

    @property
    def log(self) -> list[Record]:
        """The log records so far; a line that is no JSON object is in `stderr` only."""
        # A line without its end is still being written.
        complete = self.stderr.rpartition("\n")[0]
        return [record for record in map(_record, complete.splitlines()) if record is not None]

    def wait_log(self, event: str, /, *, since: int = 0, timeout: float = TIMEOUT, **fields: object) -> Record:
        """Return the first record of this event with these values, among those from number `since` on.

        Take `len(daemon.log)` beforehand as `since` to see only what comes next. Raises as `wait_for` does.
        """
        wanted = {"event": event, **fields}
        return self.wait_for(lambda: self._first(wanted, since), timeout=timeout, what=f"log record {wanted}")

    def wait_for(self, check: Callable[[], T | None], *, timeout: float = TIMEOUT, what: str = "condition") -> T:
        """Return the first true value of `check`, as `eventually` does.

        Raises `AssertionError` with the last log lines after `timeout` seconds, and `DaemonEndedError` at once when
        the daemon has ended without it.
        """
        try:
            return eventually(lambda: self._while_running(check, what), timeout=timeout)
        except AssertionError as error:
            states = ", ".join(sorted(self.process.states()))
            raise AssertionError(f"{what}: {error}; threads: {states}\n{self.process.tail()}") from error

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, for instance HUP."""
        self.process.signal(number)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Return its exit status once it has ended; raise `AssertionError` if it has not after `timeout` seconds."""
        return self.process.wait(timeout)

    def terminate(self, timeout: float = TIMEOUT) -> int:
        """Send TERM and return the exit status, as `wait` does."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def _first(self, wanted: Record, since: int) -> Record | None:
        return next((record for record in self.log[since:] if _agrees(record, wanted)), None)

    def _while_running(self, check: Callable[[], T | None], what: str) -> T | None:
        # Asked before the check: what the daemon did last still counts.
        status = self.process.status
        value = check()
        if not value and status is not None:
            raise DaemonEndedError(f"{what}: the daemon ended with status {status}\n{self.process.tail()}")
        return value


def _agrees(record: Record, wanted: Record) -> bool:
    return all(key in record and record[key] == value for key, value in wanted.items())


def _record(line: str) -> Record | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _foreign(key: str) -> bool:
    return key in _FOREIGN or key.startswith("DEVWATCH_")
