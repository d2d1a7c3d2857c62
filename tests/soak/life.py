"""What happens to a node in the soak: sticks that come and go, strangers that write, a server that freezes, curious clients."""

from __future__ import annotations

import contextlib
import http.client
import random
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from system.udevd import DEV, SYS, Node

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from system.apiserver import ApiServer
    from system.daemon import Daemon
    from system.udevd import Sticks

RESOURCE = "soak.example.com/stick"
VENDOR, PRODUCT = "0658", "0200"
CONSOLES = tuple(f"tty{number}" for number in range(40, 52))
TRUCE = 300.0
"""Seconds for which the repair of what a stranger wrote last may have to wait."""
FROZEN = 12.0
"""Seconds for which the API server is frozen: longer than a request may take."""
CONFIG = f"""
resources:
  - name: {RESOURCE}
    match: [{{vendor: "{VENDOR}", product: "{PRODUCT}"}}]
    removalGrace: 200ms
    evict: {{after: 1s}}
sweep: 2s
"""


@dataclass(slots=True, kw_only=True)
class Life:
    """The world around one daemon; `live` lets it happen for a while."""

    sticks: Sticks
    apiserver: ApiServer
    daemon: Daemon
    node: str
    port: int
    rate: float
    uevents: int = 0
    _nodes: dict[str, Node] = field(default_factory=dict)
    _jitter: random.Random = field(default_factory=lambda: random.Random(7))  # noqa: S311 - the same life every time
    _next: dict[str, float] = field(default_factory=dict)
    _server: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _frozen: Future[None] | None = None

    def __enter__(self) -> Self:
        """Plug every stick once."""
        for number, tty in enumerate(CONSOLES):
            path = self.sticks.plug(tty, vendor=VENDOR, product=PRODUCT, serial=f"SOAK{number:04}")
            self._nodes[tty] = Node.of(path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the server to be thawed; the sticks are put back by their owner."""
        self._server.shutdown()

    def live(self, seconds: float, each_second: Callable[[], object]) -> None:
        """Send uevents at the rate, and let all else happen when it is due; raises where the daemon has ended."""
        begin = time.monotonic()
        sent, told = 0, 0
        while (now := time.monotonic()) < begin + seconds:
            if sent <= (now - begin) * self.rate:
                self._shake()
                sent += 1
            elif now - begin > told:
                told += 1
                each_second()
                self._incidents(now)
            else:
                time.sleep(0.5 / self.rate)

    def rest(self) -> None:
        """Plug every stick, and wait until the Node shows them all."""
        if self._frozen is not None:
            self._frozen.result()
        for tty in CONSOLES:
            self._plug(tty)
        self.sticks.settle()
        self.daemon.wait_for(self._shows_all, timeout=TRUCE + 120, what="the Node shows every stick")

    def _shows_all(self) -> bool:
        status = self.apiserver.node(self.node)["status"]
        return all(status[part].get(RESOURCE) == str(len(CONSOLES)) for part in ("capacity", "allocatable"))

    def _shake(self) -> None:
        self._jitter.choices((self._change, self._plug, self._unplug), (6, 2, 2))[0](self._jitter.choice(CONSOLES))

    def _change(self, tty: str) -> None:
        self._uevent(tty, "change")

    def _plug(self, tty: str) -> None:
        self._nodes[tty].put_back(DEV / tty)
        self._uevent(tty, "add")

    def _unplug(self, tty: str) -> None:
        (DEV / tty).unlink(missing_ok=True)
        self._uevent(tty, "remove")

    def _uevent(self, tty: str, action: str) -> None:
        (SYS / tty / "uevent").write_text(action, "ascii")
        self.uevents += 1

    def _incidents(self, now: float) -> None:
        for name, (every, happen) in self._calendar().items():
            if now >= self._next.setdefault(name, now + every):
                self._next[name] = now + every
                happen()

    # All of it happens in the first minute already, so that later ones have nothing new to remember.
    def _calendar(self) -> Mapping[str, tuple[float, Callable[[], object]]]:
        return {
            "scrape": (5, self._scrape),
            "reload": (11, lambda: self.daemon.signal(signal.SIGHUP)),
            "stranger": (17, lambda: self._server.submit(self._write)),
            "freeze": (25, self._freeze),
        }

    def _scrape(self) -> None:
        for path in ("/metrics", "/readyz", "/healthz", "/nowhere"):
            self._get(path)

    def _get(self, path: str) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request("GET", path)
            connection.getresponse().read()

    def _write(self) -> None:
        body = {"status": {part: {RESOURCE: "77"} for part in ("capacity", "allocatable")}}
        path = f"/api/v1/nodes/{self.node}/status?fieldManager=stranger"
        self.apiserver.request("PATCH", path, body, content_type="application/merge-patch+json")

    def _freeze(self) -> None:
        def away() -> None:
            self.apiserver.freeze()
            time.sleep(FROZEN)
            self.apiserver.thaw()

        self._frozen = self._server.submit(away)
