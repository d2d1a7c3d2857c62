"""What the daemon costs its node: memory, at rest, in a storm."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from bench import ROOT
from bench.ground import ACCOUNT, CHANGED, RESOURCE, Ground, Switch, patches, rested, scrape, settled, uevents
from bench.proc import Memory, Work
from bench.stats import Sample
from bench.table import Row, at_most
from system.waiting import eventually

if TYPE_CHECKING:
    from system.daemon import Daemon

STACKS = {
    "Python alone": "",
    "Python, asyncio and ssl": "import asyncio, ssl",
    "the libraries that the daemon uses, imported as it does": "import devwatch.agent.daemon, devwatch.kube.nodes, devwatch.observe.logs",
    "naive: import kubernetes_asyncio": "import kubernetes_asyncio",
    "naive, with the other libraries": "import kubernetes_asyncio, pyudev, structlog, prometheus_client, yaml",
}
_REPORT = """
import json
fields = dict(line.split(":", 1) for line in open("/proc/self/smaps_rollup") if ":" in line and "-" not in line.split(":")[0])
print(json.dumps([int(fields[name].split()[0]) / 1024 for name in ("Rss", "Pss")]))
"""
_LIMIT, _AIM = 50, 45
"""MiB: the limit of the daemon, and the aim."""
_CONSOLES = 8
_RUNS, _REST = 5, 60
"""How often the daemon is let be, and for how many seconds: six sweeps, and one question of each kind to the kubelet."""
_UNASKED = 200.0
"""Seconds in which a daemon that is let be asks the API server for nothing."""
_SHARE = 0.05
"""Per cent of a core: the limit of a daemon that is let be, in the worst of the runs."""


def memory(ground: Ground) -> list[Row]:
    """Measure the memory of the daemon after its start and with its metrics scraped, and that of other programs to compare."""
    node = ground.node()
    with ground.nodes() as viewer, Switch(ground.sticks, "tty43"), ground.daemon(node) as daemon:
        settled(daemon, viewer, node, "1")
        rows = _weigh(daemon, "after the start")
        for _ in range(10):
            scrape(daemon)
        rows += _weigh(daemon, "with metrics scraped ten times")
    return [*rows, *(row for name, code in STACKS.items() for row in _stack(name, code))]


def _weigh(daemon: Daemon, when: str) -> list[Row]:
    return _memory_rows(f"daemon {when}", Memory.of(daemon.process.pid), ours=True)


def _memory_rows(what: str, found: Memory, *, ours: bool) -> list[Row]:
    row = partial(Row, bench="memory", unit="MiB")
    goal = at_most(_LIMIT, found.rss) if ours else None
    note = f"the aim is {_AIM}" if ours else ""
    return [
        row(figure=f"RSS, {what}", value=found.rss, goal=goal, note=note),
        row(figure=f"PSS, {what}", value=found.pss),
    ]


def _stack(name: str, code: str) -> list[Row]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code + _REPORT]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)  # noqa: S603 - our own words
    rss, pss = json.loads(done.stdout)
    return _memory_rows(name, Memory(rss=rss, pss=pss), ours=False)


def idle(ground: Ground) -> list[Row]:
    """Let the daemon be."""
    node = ground.node()
    with ground.nodes() as viewer, Switch(ground.sticks, "tty44"), ground.daemon(node) as daemon:
        settled(daemon, viewer, node, "1")
        mark, began = ground.server.mark(), time.time()
        rows = rest_rows("idle", daemon, ground)
        requests = ground.server.requests(ACCOUNT, since=mark)
        # The audit log may receive earlier requests late.
        mine = (request.received - began for request in requests if request.name == node)
        asked = len([after for after in mine if 0 <= after < _UNASKED])
    note = f"in {_UNASKED:.0f} s, by the server's audit log; the watch is renewed after four minutes, and the resync comes after five"
    return [*rows, Row(bench="idle", figure="API requests", value=float(asked), goal=at_most(0, asked), note=note)]


def rest_rows(bench: str, daemon: Daemon, ground: Ground, when: str = "") -> list[Row]:
    """Return what a daemon costs that is let be, in several runs, one after the other; `when` completes the names of the figures."""
    runs = [_rest(daemon, ground.size(_REST, 2)) for _ in range(_RUNS)]
    shares = Sample.of([work.cpu / seconds * 100 for work, seconds in runs])
    rates = Sample.of([work.wakeups / seconds for work, seconds in runs])
    note = f"{_RUNS} runs of {runs[0][1]:.0f} s; a sweep every 10 s"
    row = partial(Row, bench=bench)
    return [
        row(
            figure=f"CPU{when}",
            unit="% of a core",
            value=shares,
            goal=at_most(_SHARE, shares.maximum, "max"),
            note=note,
        ),
        row(figure=f"wakeups{when}", unit="1/s", value=rates, goal=at_most(1, rates.maximum, "max")),
    ]


def _rest(daemon: Daemon, seconds: float) -> tuple[Work, float]:
    """Let the daemon be; return its work, and the seconds that have passed."""
    before, began = Work.of(daemon.process.pid), time.monotonic()
    time.sleep(seconds)
    return Work.of(daemon.process.pid).since(before), time.monotonic() - began


def storm(ground: Ground) -> list[Row]:
    """Let eight sticks flap 10,000 times at once; the last event of all plugs a ninth."""
    node, count = ground.node(), ground.size(10_000, 400)
    with contextlib.ExitStack() as stack:
        viewer = stack.enter_context(ground.nodes())
        sticks = [
            stack.enter_context(Switch(ground.sticks, f"tty{number}")) for number in range(45, 45 + _CONSOLES + 1)
        ]
        sticks[-1].set(plugged=False)
        daemon = stack.enter_context(ground.daemon(node))
        settled(daemon, viewer, node, str(_CONSOLES))
        before, metrics, began = Work.of(daemon.process.pid), scrape(daemon), time.monotonic()
        sent = _blow(sticks, count)
        read = _all_read(daemon, uevents(metrics) + count)
        shown = viewer.wait(f"{node} {RESOURCE}", (str(len(sticks)),) * 2, timeout=120)
        rested(daemon)
        work = Work.of(daemon.process.pid).since(before)
        seconds = {"sent": shown - sent, "read": shown - read, "all": read - began}
        return [
            *_storm_rows(work, count, patches(daemon) - metrics[CHANGED], seconds),
            *_weigh(daemon, f"after {count:,} events"),
        ]


def _all_read(daemon: Daemon, total: float) -> float:
    """Return when the daemon has read so many uevents, by its own account."""
    eventually(lambda: uevents(scrape(daemon)) >= total, timeout=120)
    return time.monotonic()


def _blow(sticks: list[Switch], count: int) -> float:
    """Send `count` events: pull and plug all but the last stick alternately, plug them all, then the last; return when that was sent."""
    flapping = sticks[:-1]
    for number in range(count - len(sticks)):
        flapping[number % len(flapping)].set(plugged=(number // len(flapping)) % 2 == 1)
    for stick in flapping:
        stick.set(plugged=True)
    return sticks[-1].set(plugged=True)


def _storm_rows(work: Work, count: int, written: float, seconds: dict[str, float]) -> list[Row]:
    row = partial(Row, bench="storm")
    late = max(seconds["read"], 0.0)
    early = "0 where the Node was correct before the last event was read: udevd handles the sticks side by side"
    return [
        row(figure=f"patches for {count:,} uevents", value=written, goal=at_most(3, written)),
        row(
            figure="CPU time per event",
            unit="us",
            value=work.cpu / count * 1e6,
            note="with the metrics asked for meanwhile",
        ),
        row(figure="last event read -> end state visible", unit="s", value=late, goal=at_most(1, late), note=early),
        row(
            figure="last event sent -> end state visible",
            unit="s",
            value=seconds["sent"],
            note="with udevd's own queue",
        ),
        row(
            figure="first event sent -> last one read",
            unit="s",
            value=seconds["all"],
            note="the sending itself included",
        ),
    ]
