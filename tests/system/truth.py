"""What a daemon tells while things go wrong: in its log each story in a few lines, in metrics and health nothing but what is so."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
from dataclasses import dataclass
from datetime import datetime
from threading import Event, Thread
from typing import TYPE_CHECKING

from system.apiserver import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from system.daemon import Daemon, Record

QUIET = 1.0
"""Seconds within which no line may come twice."""
LISTEN = f"{LOOPBACK}:0"
"""What `--listen` takes for a port that is free."""

_FACTS = re.compile(r"device\.\w+")
"""What tells of a plug or a pull that really happened, however fast they follow each other."""
_SAMPLE = re.compile(r"(devwatch_\w+(?:\{[^}]*\})?) (\S+)")
_PERIOD = 0.2
_PATIENCE = 10.0


def well_told(daemon: Daemon, *, most: Mapping[str, int] | None = None) -> None:
    """Fail where the log holds anything but records, a traceback, a line twice within a second, or more of an event than `most` allows.

    Two lines are the same when they differ in nothing but their numbers.
    """
    text = daemon.stderr
    records = [json.loads(line) for line in text.splitlines()]
    assert "Traceback" not in text, text
    assert [record for record in records if "exception" in record or record["event"] == "daemon.failed"] == []
    twins = list(_twins(records))
    assert not twins, f"within a second: {twins}"
    for event, limit in (most or {}).items():
        told = [record for record in records if record["event"] == event]
        assert len(told) <= limit, told


def _twins(records: list[Record]) -> Iterator[tuple[Record, Record]]:
    last: dict[str, Record] = {}
    for record in records:
        if _FACTS.fullmatch(record["event"]):
            continue
        # A count that goes up and down again is written twice, with another patch between.
        subject = record["event"] if record["event"] == "node.patched" else _saying(record)
        before, last[subject] = last.get(subject), record
        if before is None or _saying(before) != _saying(record):
            continue
        if _seconds(record) - _seconds(before) < QUIET:
            yield before, record


def _saying(record: Record) -> str:
    return json.dumps({key: value for key, value in record.items() if key != "timestamp" and not _is_number(value)})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _seconds(record: Record) -> float:
    return datetime.fromisoformat(record["timestamp"]).timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a daemon answered at one moment."""

    healthy: bool
    ready: bool
    reason: str
    """What `/readyz` says."""
    metrics: Mapping[str, float]

    def count(self, kind: str, resource: str) -> float | None:
        """Return `devwatch_KIND{resource}`, None where there is none yet."""
        return self.metrics.get(f'devwatch_{kind}{{resource="{resource}"}}')

    @property
    def patches(self) -> float:
        """How many PATCH requests there were, whatever became of them."""
        return sum(value for name, value in self.metrics.items() if name.startswith("devwatch_patches_total"))

    @property
    def failed(self) -> float:
        """How many PATCH requests got no answer that helps."""
        return self.metrics['devwatch_patches_total{outcome="failed"}']

    @property
    def last_success(self) -> float:
        """When the API server accepted a request, 0 for never."""
        return self.metrics["devwatch_last_success_timestamp_seconds"]


class Probe:
    """Asks a daemon that listens (`LISTEN`) for its metrics and its health."""

    def __init__(self, daemon: Daemon) -> None:
        """Wait until it says where it listens."""
        host, _, port = daemon.wait_log("daemon.started")["listen"].rpartition(":")
        self._address = (host, int(port))

    def sample(self) -> Sample:
        """Ask for everything. Raises `OSError` where it does not answer."""
        healthy, ready, metrics = map(self._get, ("/healthz", "/readyz", "/metrics"))
        values = {found[1]: float(found[2]) for found in map(_SAMPLE.fullmatch, metrics[1].splitlines()) if found}
        return Sample(healthy=healthy[0], ready=ready[0], reason=ready[1].strip(), metrics=values)

    def _get(self, path: str) -> tuple[bool, str]:
        connection = http.client.HTTPConnection(*self._address, timeout=_PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status == http.HTTPStatus.OK, answer.read().decode()


@contextlib.contextmanager
def witnessed(*probes: Probe) -> Iterator[list[list[Sample]]]:
    """Ask again and again within the context; the lists, one for each probe, hold the answers."""
    samples: list[list[Sample]] = [[] for _ in probes]
    over = Event()

    def ask() -> None:
        while not over.wait(_PERIOD):
            for probe, answers in zip(probes, samples, strict=True):
                answers.append(probe.sample())

    with _thread(ask, over):
        yield samples


@contextlib.contextmanager
def _thread(work: Callable[[], None], over: Event) -> Iterator[None]:
    """Have work done in a thread until the end of the context; what it raises is raised there."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - it is raised where somebody hears it
            failures.append(error)

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failures:
        raise failures[0]
