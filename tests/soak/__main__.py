"""Run the soak and print its table; status 1 where a bound is broken."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from soak.life import CONFIG, Life
from soak.measure import HEAD, Period, Row, Sample, least, table
from system.apiserver import PATCH_ONLY, WATCH, ApiServer, assets
from system.daemon import Daemon
from system.udevd import Sticks, missing, udevd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NODE = "soak"
RIGHTS = [
    *PATCH_ONLY,
    *WATCH,
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
]
PERIOD = 60.0
"""Seconds of the first and of the last period, which are compared."""
DAY = 24 * 3600
"""Seconds: the life of the token, longer than any soak."""
SETTLING = 5
"""Seconds of rest in which each figure is taken at its least."""


@contextlib.contextmanager
def world(rate: float, peephole: Path, command: Sequence[str]) -> Iterator[Life]:
    """Start everything; all of it is gone afterwards."""
    folder = assets(os.environ)
    if folder is None:
        raise SystemExit("needs KUBEBUILDER_ASSETS, a folder with kube-apiserver and etcd")
    home = peephole.parent
    (home / "config.yaml").write_text(CONFIG)
    with udevd(), Sticks() as sticks, ApiServer(folder) as server:
        server.create_node(NODE)
        server.service_account("soak", rules=RIGHTS)
        account = server.kubeconfig("soak", token=server.token("soak", seconds=DAY))
        options = ("run", "--config", str(home / "config.yaml"), "--node-name", NODE, "--kubeconfig", str(account))
        with Daemon(*options, "--listen=127.0.0.1:0", "--log-format=json", home=home, command=command) as daemon:
            port = int(str(daemon.wait_log("daemon.started")["listen"]).rpartition(":")[2])
            with Life(sticks=sticks, apiserver=server, daemon=daemon, node=NODE, port=port, rate=rate) as life:
                yield life


@dataclass(slots=True, kw_only=True)
class Soak:
    """The run and its measurements."""

    life: Life
    peephole: Path
    samples: list[Sample] = field(default_factory=list)

    def period(self, seconds: float) -> Period:
        """Live for so long, then rest, and measure all along."""
        begin = len(self.samples)
        self.life.live(seconds, self._measure)
        self.life.rest()
        return Period(busy=self.samples[begin:], rest=least(self._rest()))

    def _rest(self) -> Iterator[Sample]:
        """Measure until what is still on its way has arrived: a request out, a sweep, a resync have timers of their own."""
        for _ in range(SETTLING):
            time.sleep(1)
            yield Sample.of(self.life.daemon, self.peephole)

    def _measure(self) -> None:
        self.samples.append(Sample.of(self.life.daemon, self.peephole))

    def run(self, seconds: float) -> tuple[Row, ...]:
        """Live for so long and return the table."""
        first = last = self.period(PERIOD)
        while self.life.uevents < (seconds - PERIOD / 2) * self.life.rate:
            last = self.period(PERIOD)
            _say(f"{self.life.uevents:>9} uevents   {last.rest}")
        return table(first, last, self.samples)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the result


def _trouble(daemon: Daemon) -> list[str]:
    """Return what the daemon should not have said."""
    signs = ("Traceback", "library.logged", "daemon.failed", "look.uncertain", "monitor.lost")
    return [line[:500] for line in daemon.stderr.splitlines() if any(sign in line for sign in signs)][:5]


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600, help="at least 120 (default: 3600)")
    parser.add_argument("--rate", type=float, default=100, help="uevents a second (default: 100)")
    arguments = parser.parse_args()
    if (reason := missing(os.geteuid())) is not None:
        parser.error(reason)
    with tempfile.TemporaryDirectory(prefix="devwatch-soak-") as home:
        peephole = Path(home, "peephole")
        command = (sys.executable, "-m", "soak.inside", str(peephole))
        with world(arguments.rate, peephole, command) as life:
            rows = Soak(life=life, peephole=peephole).run(max(arguments.seconds, 2 * PERIOD))
            status, wrong = life.daemon.terminate(), _trouble(life.daemon)
    for line in (HEAD, *map(str, rows), f"{life.uevents} uevents; exit status {status}", *wrong):
        _say(line)
    return 0 if all(row.kept for row in rows) and status == 0 and not wrong else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is put back
    sys.exit(main())
