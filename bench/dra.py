"""Claims on a real kubelet: how long a plugged stick takes to a container, and a pulled one to an eviction, and what both plugins cost."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import yaml

from bench import ROOT
from bench.ground import Ground, Switch
from bench.load import rest_rows
from bench.scene import FIGURE, GOAL, PODS, Scene, lacking, plug, prepared_kubelet, pull, weigh
from bench.stats import Sample
from bench.table import Row, at_most
from system.claiming import CLASSES, RIGHTS, missing
from system.handover import must
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.server import Request
    from system.apiserver import Object

_PLUGIN = """\
  - name: example.com/other
    match: [{vendor: "ffff", product: "ffff"}]
    publish: devicePlugin
"""
_GRACE, _AFTER = 0.5, 1.0
_EVICT = f"""\
    removalGrace: {_GRACE * 1000:.0f}ms
    evict: {{after: {_AFTER:.0f}s}}
"""
_EVICTIONS: Object = {"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]}
_RETRY = 12.0
"""Seconds between two starts of a container that cannot be made (kubelet, `backOffPeriod` and its jitter)."""
_LIMIT = 54
"""MiB: the limit of the daemon with both plugins."""
_EVICTED = 0.5
"""Seconds from the end of `evict.after` to the eviction."""


def dra(ground: Ground) -> list[Row]:
    """Let pods wait for sticks that are offered by a ResourceSlice, plug and pull these, and see what becomes of the pods."""
    if reason := lacking() or missing(ground.server, complete=True):
        return [Row(bench="dra", figure=FIGURE, value="not measured", note=reason)]
    count = ground.size(10, 1)
    with contextlib.ExitStack() as stack:
        kubelet = stack.enter_context(prepared_kubelet(ground))
        sticks = [stack.enter_context(Switch(ground.sticks, f"tty{number}")) for number in range(20, 20 + count)]
        scene = partial(Scene, ground=ground, kubelet=kubelet, publish="dra")
        rows = _claimed(scene(name="claimed", more=_PLUGIN, rights=RIGHTS), sticks)
        return [*rows, *_evicted(scene(name="evicted", more=_EVICT, rights=[*RIGHTS, _EVICTIONS]), sticks)]


def _claimed(scene: Scene, sticks: Sequence[Switch]) -> list[Row]:
    """Plug one stick after the other, each for a pod of its own; have the containers start again without them; weigh the daemon."""
    pull(sticks)
    _make_classes(scene)
    row = partial(Row, bench="dra", unit="s")
    with scene.daemon() as daemon:
        daemon.wait_log("kubelet.registered", driver="devwatch.io")
        first = Sample.of([seconds for stick in sticks for seconds in scene.plug_for_pods([stick], [0.0])])
        again = Sample.of(_start_again(scene, sticks))
        costs = weigh("dra", daemon, limit=_LIMIT) + rest_rows("dra", daemon, scene.ground, ", registered")
    scene.delete_pods()
    note = "with udevd, scheduler, kubelet and containerd; by the time of the container's first line"
    return [
        row(figure=FIGURE, value=first, goal=at_most(GOAL, first.median, "p50"), note=note),
        row(
            figure="plugged -> container in CreateContainerError has opened it",
            value=again,
            note="plugged at random moments: the kubelet tries again every 10 to 15 s",
        ),
        *costs,
    ]


def _start_again(scene: Scene, sticks: Sequence[Switch]) -> list[float]:
    """Pull all sticks, kill the containers, and plug at random moments; return the seconds from each uevent to the container."""
    pull(sticks)
    for pod in scene.pods:
        (status,) = _read(scene, pod)["status"]["containerStatuses"]
        scene.kubelet.kill_container(status["containerID"].removeprefix("containerd://"))
    eventually(lambda: all(_is_failing(scene, pod) for pod in scene.pods), timeout=60)
    sent = plug(sticks, [random.uniform(0, _RETRY) for _ in sticks])  # noqa: S311 - no secret
    lines = [eventually(partial(scene.kubelet.first_line, pod, "c", 1), timeout=60) for pod in scene.pods]
    return [at.timestamp() - sent[number] for at, number in lines]


def _is_failing(scene: Scene, pod: Object) -> bool:
    (status,) = _read(scene, pod)["status"]["containerStatuses"]
    return (status["state"].get("waiting") or {}).get("reason") == "CreateContainerError"


def _evicted(scene: Scene, sticks: Sequence[Switch]) -> list[Row]:
    """Pull one stick after the other, each of a pod of its own."""
    pull(sticks)
    _make_classes(scene)
    with scene.daemon():
        scene.plug_for_pods(sticks, [0.0] * len(sticks))
        found = Sample.of([_pull_for_eviction(scene, stick) - _GRACE - _AFTER for stick in sticks])
    scene.delete_pods()
    return [
        Row(
            bench="dra",
            figure="end of evict.after -> eviction asked for",
            unit="s",
            value=found,
            goal=at_most(_EVICTED, found.median, "p50"),
            note=f"unplugged, {_GRACE} s of grace and {_AFTER} s of `after` before it; by the server's audit log",
        )
    ]


def _pull_for_eviction(scene: Scene, stick: Switch) -> float:
    """Pull a stick; return the seconds from its uevent to the request for the eviction."""
    server = scene.ground.server
    mark, sent = server.mark(), time.time()
    stick.set(plugged=False)

    def evictions() -> list[Request]:
        found = server.requests(scene.account, since=mark)
        return [request for request in found if request.target == "pods/eviction"]

    (request,) = eventually(evictions, timeout=30)
    return request.received - sent


def _make_classes(scene: Scene) -> None:
    """Apply what `devwatch deviceclasses` prints."""
    command = [sys.executable, "-m", "devwatch", "deviceclasses", "--config", str(scene.write_config())]
    environ = {"PYTHONPATH": str(ROOT / "src")}
    printed = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)  # noqa: S603 - our own words
    for item in yaml.safe_load_all(printed.stdout):
        must(scene.ground.server, "POST", CLASSES, item)


def _read(scene: Scene, pod: Object) -> Object:
    return must(scene.ground.server, "GET", f"{PODS}/{pod['metadata']['name']}")
