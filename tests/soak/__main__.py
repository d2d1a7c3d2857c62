"""Run the soak and print its table; status 1 where a bound is broken."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from soak import isolation
from soak.config import CLAIMED, HANDED, MOUNTED
from soak.logtail import LogTail
from soak.measure import HEAD, TALLY_HEAD, Period, Sample, least, table, tallies
from soak.world import World, world
from system.apiserver import assets
from system.udevd import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

PERIOD = 60.0
"""Seconds of each period; the first and the last are compared."""
SETTLING = 5
"""Seconds of rest in which each figure is taken at its least."""


@dataclass(slots=True, kw_only=True)
class Soak:
    """The run and its measurements."""

    world: World
    rate: float
    log: LogTail
    periods: list[Period] = field(default_factory=list)
    _lived: float = 0.0
    """Seconds of the run without the rests."""

    def run(self, seconds: float) -> None:
        """Live for so long, rests included: at least two periods."""
        end = time.monotonic() + seconds
        while len(self.periods) < 2 or time.monotonic() + PERIOD < end:
            self.periods.append(self._period())
            _say(f"{time.strftime('%T')} {self.world.life.uevents:>8} uevents   {self.periods[-1].rest}")

    def _period(self) -> Period:
        """Live for a period, then rest, and measure all along."""
        before = self._counts()
        busy = list(self._live())
        self.world.rest()
        rest = least(self._rest())
        return Period(busy=busy, rest=rest, counts=self._counts() - before)

    def _live(self) -> Iterator[Sample]:
        """Send uevents at the rate, let all else happen when it is due, and measure each second."""
        begin = time.monotonic()
        sent, measured = 0, 0
        while (now := time.monotonic()) < begin + PERIOD:
            if sent <= (now - begin) * self.rate:
                self.world.life.shake()
                sent += 1
            elif now - begin > measured:
                measured += 1
                self.world.life.bring_back(now)
                self.world.incidents.happen(self._lived + now - begin)
                yield self._sample()
            else:
                time.sleep(0.5 / self.rate)
        self._lived += PERIOD

    def _rest(self) -> Iterator[Sample]:
        """Measure until what is still on its way has arrived: a request out, a sweep, a resync have timers of their own."""
        for _ in range(SETTLING):
            time.sleep(1)
            yield self._sample()

    def _sample(self) -> Sample:
        return Sample.of(self.world.daemon, self.world.peephole)

    def _counts(self) -> Counter[str]:
        """Return how often everything has happened so far, by the log and by the metrics."""
        self.log.read()
        counted = {name: int(value) for name, value in self.world.incidents.scrape().items()}
        return Counter({**counted, **self.log.events, "pods ended by the kubelet": self.world.pods.ended})


def required(*, dra: bool) -> tuple[str, ...]:
    """Return what must have happened in every period, for the run to show anything."""
    resources = [kind.resource for kind in (MOUNTED, HANDED, CLAIMED) if dra or kind != CLAIMED]
    claims = ("claims_total prepare prepared", "claims_total unprepare unprepared") if dra else ()
    return (*(f"pod.evicted {resource} lost" for resource in resources), "allocations_total allocated", *claims)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the result


def _inside(home: Path, *, seconds: float, rate: float, log: Path | None) -> int:
    """Run it in the namespaces, and return the status."""
    with contextlib.ExitStack() as stack:
        everything = stack.enter_context(world(home))
        soak = Soak(world=everything, rate=rate, log=LogTail(file=everything.daemon.process.stderr))
        if log is not None:
            stack.callback(shutil.copy, soak.log.file, log)
        soak.run(seconds)
        status = everything.daemon.terminate()
        soak.log.read()
    _say(f"\n{everything.life.uevents} uevents; exit status {status}")
    return 0 if _shown(soak) and status == 0 else 1


def _shown(soak: Soak) -> bool:
    """Print what the run shows; return whether all is as it should be."""
    rows, counts = table(soak.periods), tallies(soak.periods, required(dra=soak.world.dra))
    for line in (HEAD, *rows, "", TALLY_HEAD, *counts, "", *soak.log.trouble):
        _say(str(line))
    return all(row.kept for row in rows) and all(tally.kept for tally in counts) and not soak.log.trouble


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600, help="two minutes at least (default: 3600)")
    parser.add_argument("--rate", type=float, default=100, help="uevents a second (default: 100)")
    parser.add_argument("--log", type=Path, help="keep the log of the daemon in this file")
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)  # of the process in the namespaces
    arguments = parser.parse_args()
    if not isolation.outside():
        return _inside(arguments.home, seconds=arguments.seconds, rate=arguments.rate, log=arguments.log)
    if assets(os.environ) is None:
        parser.error("needs KUBEBUILDER_ASSETS, a folder with kube-apiserver and etcd")
    if (reason := missing(os.geteuid())) is not None:
        parser.error(reason)
    with tempfile.TemporaryDirectory(prefix="devwatch-soak-") as home:
        return isolation.run([*sys.argv[1:], "--home", home])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is put back
    sys.exit(main())
