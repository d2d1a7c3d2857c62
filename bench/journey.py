"""From a stick in the hand to a pod: latency, placement, start, for devwatch and for the polling loop."""

from __future__ import annotations

import contextlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from bench import ROOT
from bench.ground import ACCOUNT, RESOURCE, Ground, Switch, rested, settled
from bench.server import Viewer, placed
from bench.stats import Sample
from bench.table import Goal, Row, all_of, at_least, at_most
from system.apiserver import NAMESPACE, PATCH_ONLY
from system.process import Process
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bench.server import Request
    from system.daemon import Daemon

MS = 1000.0
VISIBLE = "uevent sent -> visible"
POLLED = "plugged or pulled -> capacity visible"
_DETECTED = "devwatch_detection_to_patch_seconds"
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
_BACKOFF = 2.2
"""Seconds after which the scheduler tries a pod without a place at once when a Node changes (podInitialBackoffSeconds, 1 s, and doubled
where what was there before made it try twice)."""
_PERIOD = 10.0
"""Seconds between two tests of the loop."""
_KUBELET = 10.0
"""Seconds between two status syncs of a kubelet, which copies capacity to allocatable (nodeStatusUpdateFrequency)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    """One uevent and its consequences; all in seconds, the first two of the wall clock."""

    began: float
    ended: float
    visible: float
    """Sent to visible."""
    answered: float
    """Read by the daemon to PATCH answered, by its own account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scene:
    """A daemon, its stick, and the observer of its Node."""

    daemon: Daemon
    viewer: Viewer
    stick: Switch
    key: str
    """What the Node shows the stick by."""

    def events(self, count: int) -> tuple[list[_Event], int]:
        """Pull and plug the stick alternately; return so many events, and the number of further ones that had to be left out."""
        metrics: Mapping[str, float] = rested(self.daemon)
        found: list[_Event] = []
        tried = 0
        while len(found) < count and tried < 2 * count:
            event, metrics = self._event(metrics, plugged=tried % 2 == 1)
            tried += 1
            found += [event] if event else []
        return found, tried - len(found)

    def _event(self, before: Mapping[str, float], *, plugged: bool) -> tuple[_Event | None, Mapping[str, float]]:
        """Plug or pull the stick, and wait for the consequences; return the metrics after them too.

        None where the daemon scanned for another reason between the change and its uevent, so that the uevent changed nothing.
        """
        began = time.time()
        sent = self.stick.set(plugged=plugged)
        shown = self.viewer.wait(self.key, ("1", "1") if plugged else ("0", "0"))
        after = rested(self.daemon)
        if after[f"{_DETECTED}_count"] != before[f"{_DETECTED}_count"] + 1:
            return None, after
        answered = after[f"{_DETECTED}_sum"] - before[f"{_DETECTED}_sum"]
        return _Event(began=began, ended=time.time(), visible=shown - sent, answered=answered), after


def latency(ground: Ground) -> list[Row]:
    """Plug and pull one stick again and again, without a grace, each time until the Node shows it."""
    node, mark = ground.node(), ground.server.mark()
    count = ground.size(500, 20)
    with contextlib.ExitStack() as stack:
        viewer = stack.enter_context(ground.nodes())
        stick = stack.enter_context(Switch(ground.sticks, "tty40"))
        daemon = stack.enter_context(ground.daemon(node, grace="0s"))
        settled(daemon, viewer, node, "1")
        scene = _Scene(daemon=daemon, viewer=viewer, stick=stick, key=f"{node} {RESOURCE}")
        events, left_out = scene.events(count)
        before = _before_requests(events, daemon)
    sent = eventually(lambda: _patches(ground, node, mark, count))
    return _latency_rows(events, [_served(event, sent) for event in events], before, left_out)


def _before_requests(events: list[_Event], daemon: Daemon) -> list[float]:
    """Return how long after its uevent the request of each event was made; the daemon's log says for how long it was out."""
    lines = [record for record in daemon.log if record["event"] == "node.patched"]
    out = [(datetime.fromisoformat(line["timestamp"]).timestamp(), line["milliseconds"] / MS) for line in lines]
    return [
        event.answered - next(seconds for at, seconds in out if event.began <= at <= event.ended) for event in events
    ]


def _patches(ground: Ground, node: str, mark: int, least: int) -> list[Request] | None:
    every = ground.server.requests(ACCOUNT, since=mark)
    found = [
        request for request in every if (request.verb, request.target, request.name) == ("patch", "nodes/status", node)
    ]
    return found if len(found) >= least else None


def _served(event: _Event, sent: list[Request]) -> float:
    """Return for how long the server had the requests of this event."""
    return sum(request.seconds for request in sent if event.began <= request.received <= event.ended)


def _latency_rows(events: list[_Event], served: list[float], before: list[float], left_out: int) -> list[Row]:
    answered = Sample.of([event.answered * MS for event in events])
    own = Sample.of([seconds * MS for seconds in before])
    rest = Sample.of(
        [(event.answered - server - ours) * MS for event, server, ours in zip(events, served, before, strict=True)]
    )
    fast = all_of(at_most(10, answered.median, "p50"), at_most(20, answered.p99, "p99"))
    row = partial(Row, bench="latency", unit="ms")
    return [
        row(figure="uevent read -> PATCH answered", value=answered, goal=fast, note="by the daemon's own metric"),
        row(
            figure="  of it the API server",
            value=Sample.of([seconds * MS for seconds in served]),
            note="by its audit log",
        ),
        row(
            figure="  of it our own code",
            value=own,
            goal=at_most(3, own.median, "p50"),
            note="uevent read -> request made, by the daemon's log, to 0.1 ms",
        ),
        row(
            figure="  of it the way there and back",
            value=rest,
            note="client library, TLS, the kernel, the server before and after its audit",
        ),
        row(
            figure=VISIBLE,
            value=Sample.of([event.visible * MS for event in events]),
            plotted=True,
            note="with udevd's own work; by a watch, whose event follows after a GET would show the change",
        ),
        row(
            figure="events left out",
            unit="",
            value=float(left_out),
            note="found by a scan before their uevent was read, or by two",
        ),
    ]


# The polling loop


@dataclass(frozen=True, slots=True, kw_only=True)
class _Socket:
    """A path that a loop tests, and the resource by which its Node shows it."""

    path: Path
    key: str


def seed(ground: Ground, period: float = _PERIOD) -> list[Row]:
    """Run several loops side by side, and plug and pull at random moments."""
    loops, changes = ground.size(16, 4), ground.size(5, 1)
    period = period if not ground.quick else 1.0
    ground.server.start_scheduler()
    ground.server.service_account("seed", rules=PATCH_ONLY)
    with contextlib.ExitStack() as stack:
        viewer = stack.enter_context(ground.nodes())
        pods = stack.enter_context(Viewer(ground.server, _PODS, placed))
        _make_pod(ground, "for-the-loop", "example.com/usb")
        sockets = [socket for _ in range(loops) for socket in _loop(ground, stack, period)]
        pool = stack.enter_context(ThreadPoolExecutor(len(sockets)))
        found = list(pool.map(lambda socket: _change_times(viewer, socket, changes, period), sockets))
        pods.wait("for-the-loop", "pending")
    return _seed_rows([seconds for some in found for seconds in some], loops, period)


def _loop(ground: Ground, stack: contextlib.ExitStack, period: float) -> list[_Socket]:
    node = ground.node()
    token = ground.folder / f"{node}.token"
    token.write_text(ground.server.token("seed"))
    paths = [ground.folder / f"{node}-{name}" for name in ("acm", "usb")]
    words = (ROOT / "bench" / "seed.sh", ground.server.url, ground.server.ca_file, token, node, *paths, f"{period:g}")
    stack.callback(Process(["sh", *map(str, words)], ground.folder / node).kill)
    return [_Socket(path=path, key=f"{node} example.com/{path.name.rpartition('-')[2]}") for path in paths]


def _change_times(viewer: Viewer, socket: _Socket, changes: int, period: float) -> list[float]:
    """Plug or pull at a random moment of each period, and return how long the Node took to show it, in seconds."""
    viewer.wait(socket.key, ("0", None))
    found = []
    for change in range(changes):
        time.sleep(random.uniform(0, period))  # noqa: S311 - no secret
        changed, plugged = time.monotonic(), change % 2 == 0
        if plugged:
            socket.path.touch()
        else:
            socket.path.unlink()
        found.append(viewer.wait(socket.key, ("1" if plugged else "0", None)) - changed)
    return found


def _seed_rows(found: list[float], loops: int, period: float) -> list[Row]:
    sample = Sample.of([seconds * MS for seconds in found])
    note = f"{loops} loops of {period:g} s with two paths each; mean {sample.mean:.0f} ms"
    mean, worst = sample.mean / MS + _KUBELET / 2, sample.maximum / MS + _KUBELET
    paper = f"on paper, with a kubelet's sync, {mean:.1f} s in the mean and {worst:.1f} s at worst"
    return [
        Row(bench="seed", figure=POLLED, unit="ms", value=sample, note=note, plotted=True),
        Row(
            bench="seed",
            figure="plugged -> pod bound",
            value="never",
            note=f"allocatable stays as it is; {paper}",
        ),
    ]


def compared(rows: list[Row]) -> list[Row]:
    """Return how many times faster than the loop devwatch is; nothing where one of them was not measured."""
    means = {row.figure: row.value.mean for row in rows if isinstance(row.value, Sample)}
    ours, theirs = means.get(VISIBLE), means.get(POLLED)
    if ours is None or theirs is None:
        return []
    times = theirs / ours
    note = f"means of: {VISIBLE}, {POLLED}"
    return [
        Row(
            bench="latency",
            figure="faster than the loop",
            unit="times",
            value=times,
            goal=at_least(200, times),
            note=note,
        )
    ]


# The scheduler


def bound(ground: Ground) -> list[Row]:
    """Let a pod wait for the stick, plug it, and see when the real scheduler binds the pod."""
    ground.server.start_scheduler()
    node = ground.node()
    with (
        ground.nodes() as viewer,
        Viewer(ground.server, _PODS, placed) as pods,
        Switch(ground.sticks, "tty41") as stick,
    ):
        stick.set(plugged=False)
        with ground.daemon(node, grace="0s") as daemon:
            settled(daemon, viewer, node, "0")
            found = [_bind(ground, viewer, pods, stick, node) for _ in range(ground.size(10, 2))]
    note = "with udevd's own work; real kube-scheduler, no kubelet needed"
    return [Row(bench="bound", figure="plugged -> pod bound", unit="ms", value=Sample.of(found), note=note)]


def _bind(ground: Ground, viewer: Viewer, pods: Viewer, stick: Switch, node: str) -> float:
    name = _waiting_pod(ground, pods, node)
    time.sleep(_BACKOFF)
    sent = stick.set(plugged=True)
    taken = pods.wait(name, node) - sent
    _remove_pod(ground, name)
    stick.set(plugged=False)
    viewer.wait(f"{node} {RESOURCE}", ("0", "0"))
    return taken * MS


def _waiting_pod(ground: Ground, pods: Viewer, node: str) -> str:
    """Make a pod that cannot be placed yet; the scheduler may not know yet that the stick of the pod before is gone."""
    while True:
        name = f"p{time.monotonic_ns()}"
        _make_pod(ground, name, RESOURCE, hostname=node)
        eventually(lambda name=name: pods.value(name))  # type: ignore[misc]  # the default binds the loop's value
        if pods.value(name) == "pending":
            return name
        _remove_pod(ground, name)


def _remove_pod(ground: Ground, name: str) -> None:
    ground.server.request("DELETE", f"{_PODS}/{name}", {"gracePeriodSeconds": 0})


def _make_pod(ground: Ground, name: str, resource: str, **selector: str) -> None:
    container = {"name": "c", "image": "none", "resources": {"limits": {resource: "1"}}}
    spec = {
        "containers": [container],
        "automountServiceAccountToken": False,
        "nodeSelector": {f"kubernetes.io/{key}": value for key, value in selector.items()},
    }
    status, answer = ground.server.request("POST", _PODS, {"metadata": {"name": name}, "spec": spec})
    if status != 201:  # noqa: PLR2004 - Created
        raise AssertionError(f"the pod is refused: {answer.get('message')}")


# The start


def start(ground: Ground) -> list[Row]:
    """Start the daemon on new Nodes with a stick plugged, each time until the Node shows it."""
    with ground.nodes() as viewer, Switch(ground.sticks, "tty42"):
        found = [_start(ground, viewer) for _ in range(ground.size(10, 2))]
    sample = Sample.of(found)
    goal: Goal = at_most(500, sample.median, "p50")
    return [Row(bench="start", figure="process started -> first PATCH visible", unit="ms", value=sample, goal=goal)]


def _start(ground: Ground, viewer: Viewer) -> float:
    node = ground.node()
    began = time.monotonic()
    with ground.daemon(node):
        return (viewer.wait(f"{node} {RESOURCE}", ("1", "1")) - began) * MS
