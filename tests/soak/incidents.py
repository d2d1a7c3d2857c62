"""What else happens in the soak: reloads, strangers that write, connections that break, servers that freeze, a kubelet that is killed."""

from __future__ import annotations

import contextlib
import http.client
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from soak.config import FLAPPING, configuration
from system.proxy import NONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from soak.life import Life
    from soak.pods import Pods
    from system.apiserver import ApiServer
    from system.daemon import Daemon
    from system.kubelet import Kubelet
    from system.proxy import Proxy

FROZEN = 12.0
"""Seconds for which the API server is frozen: longer than a request may take."""
HANGING = 4.0
"""Seconds for which the kubelet hangs."""

_MERGE = "application/merge-patch+json"


@dataclass(slots=True, kw_only=True)
class Incident:
    """Something that happens at `due`, on the clock of the run, and again `every` so many seconds."""

    due: float
    every: float
    happen: Callable[[], object]


@dataclass(slots=True, kw_only=True)
class Incidents:
    """The calendar of the run. All of it happens in the first minute already, so that later ones have nothing new to remember.

    What takes long happens in one thread, one after the other. It is a context manager that waits for the last of it.
    """

    apiserver: ApiServer
    kubelet: Kubelet
    proxy: Proxy
    daemon: Daemon
    config: Path
    dra: bool
    life: Life
    pods: Pods
    _port: int = 0
    """Where the daemon serves its metrics."""
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _latest: Future[object] | None = None
    _passing: bool = False
    _calendar: list[Incident] = field(init=False)

    def __post_init__(self) -> None:
        """Make the calendar."""
        self._calendar = [
            Incident(due=due, every=every, happen=happen)
            for due, every, happen in (
                (1, 5, lambda: self.life.pull(time.monotonic())),
                (2, 5, self.scrape),
                (6, 13, lambda: self.proxy.fail(NONE)),  # every connection ends: requests, and the streams of watches
                (7, 11, lambda: self.daemon.signal(signal.SIGHUP)),
                (9, 20, self._reconfigure),
                (12, 30, lambda: self.life.renumber(time.monotonic())),
                (15, 91, lambda: self._later(self._write_counts)),
                (16, 23, lambda: self._later(self._write_annotation)),
                (3, 3, lambda: self._later(self.pods.tend)),
                (22, 97, lambda: self._later(self._freeze_apiserver)),
                (37, 113, lambda: self._later(self._kill_kubelet)),
                (52, 127, lambda: self._later(self._hang_kubelet)),
            )
        ]

    def __enter__(self) -> Self:
        """Nothing happens yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until the last incident is over."""
        self._thread.shutdown()

    def happen(self, elapsed: float) -> None:
        """Let happen what is due after so many seconds of the run."""
        for incident in self._calendar:
            if incident.due <= elapsed:
                incident.due += incident.every
                incident.happen()

    def finish(self) -> None:
        """Wait until all that began is over, and go back to the configuration of the beginning; raises what went wrong."""
        if self._latest is not None:
            self._latest.result()
        if self._passing:
            self._reconfigure()

    def _later(self, act: Callable[[], object]) -> None:
        self._latest = self._thread.submit(act)

    # -- clients

    def scrape(self) -> dict[str, float]:
        """Ask for all that the daemon serves, and return its counters."""
        text = self._get("/metrics")
        for path in ("/readyz", "/healthz", "/nowhere"):
            self._get(path)
        return dict(_counters(text))

    def _get(self, path: str) -> str:
        if not self._port:
            self._port = int(str(self.daemon.wait_log("daemon.started")["listen"]).rpartition(":")[2])
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
            connection.request("GET", path)
            return connection.getresponse().read().decode()

    # -- the configuration

    def _reconfigure(self) -> None:
        """Have one more resource, or have it no more: its plugin is registered, or ended."""
        self._passing = not self._passing
        self.config.write_text(configuration(dra=self.dra, passing=self._passing))
        self.daemon.signal(signal.SIGHUP)

    # -- the API server

    def _write_counts(self) -> None:
        counts = {FLAPPING[0].resource: "77"}
        self._patch("/status?fieldManager=stranger", {"status": {"capacity": counts, "allocatable": counts}})

    def _write_annotation(self) -> None:
        text = '{"soak.example/stranger": [{"devnode": "/dev/null"}], "soak.example/handed": 7}'
        self._patch("?fieldManager=stranger", {"metadata": {"annotations": {"devwatch.io/devices": text}}})

    def _patch(self, path: str, body: dict[str, object]) -> None:
        self.apiserver.request("PATCH", f"/api/v1/nodes/{self.kubelet.node}{path}", body, content_type=_MERGE)

    def _freeze_apiserver(self) -> None:
        self.apiserver.freeze()
        time.sleep(FROZEN)
        self.apiserver.thaw()

    # -- the kubelet

    def _kill_kubelet(self) -> None:
        self.kubelet.kill()
        self.kubelet.start()

    def _hang_kubelet(self) -> None:
        self.kubelet.signal(signal.SIGSTOP)
        time.sleep(HANGING)
        self.kubelet.signal(signal.SIGCONT)


def _counters(text: str) -> Iterator[tuple[str, float]]:
    """Yield each counter by its name and the values of its labels."""
    for family in text_string_to_metric_families(text):
        if family.type == "counter":
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    yield " ".join((sample.name.removeprefix("devwatch_"), *sample.labels.values())), sample.value
