"""The device plugin on a real kubelet: how long a plugged stick takes to a container that has opened it, and what a registration costs."""

from __future__ import annotations

import contextlib
import random
from functools import partial
from typing import TYPE_CHECKING

from bench.ground import Ground, Switch
from bench.load import rest_rows
from bench.scene import FIGURE, GOAL, Scene, lacking, prepared_kubelet, pull, weigh
from bench.stats import Sample
from bench.table import Row, at_most

if TYPE_CHECKING:
    from collections.abc import Sequence

UNPATCHED = f"{FIGURE}, without our PATCH"
_SYNC = 10.0
"""Seconds between two status syncs of a kubelet (nodeStatusUpdateFrequency)."""
_LIMIT, _AIM = 52, 50
"""MiB: the limit of the daemon while a resource is registered, and the aim."""


def handover(ground: Ground) -> list[Row]:
    """Let pods wait for sticks, plug these, and see when their containers have opened them; let the daemon be for a minute."""
    if reason := lacking():
        return [Row(bench="handover", figure=FIGURE, value="not measured", note=reason)]
    count = ground.size(10, 1)
    with contextlib.ExitStack() as stack:
        kubelet = stack.enter_context(prepared_kubelet(ground))
        sticks = [stack.enter_context(Switch(ground.sticks, f"tty{number}")) for number in range(20, 20 + count)]
        costs, with_patch = _with_patch(Scene(ground=ground, kubelet=kubelet, name="patched"), sticks)
        without = _without_patch(Scene(ground=ground, kubelet=kubelet, name="unpatched"), sticks)
    return [*_rows(with_patch, without), *costs]


def _with_patch(scene: Scene, sticks: Sequence[Switch]) -> tuple[list[Row], list[float]]:
    """Plug one stick after the other, each for a pod of its own; then measure what the daemon costs."""
    pull(sticks)
    with scene.daemon() as daemon:
        found = [seconds for stick in sticks for seconds in scene.plug_for_pods([stick], [0.0])]
        costs = weigh("handover", daemon, limit=_LIMIT, aim=_AIM)
        costs += rest_rows("handover", daemon, scene.ground, ", registered")
        scene.delete_pods()
    return costs, found


def _without_patch(scene: Scene, sticks: Sequence[Switch]) -> list[float]:
    """Plug all sticks at random moments of a few syncs of the kubelet: one after the other, each would come right after a sync."""
    pull(sticks)
    moments = [random.uniform(0, 3 * _SYNC) for _ in sticks]  # noqa: S311 - no secret
    with scene.daemon(patches=False):
        return scene.plug_for_pods(sticks, moments)


def _rows(with_patch: list[float], without: list[float]) -> list[Row]:
    row = partial(Row, bench="handover", unit="s")
    sample = Sample.of(with_patch)
    return [
        row(
            figure=FIGURE,
            value=sample,
            goal=at_most(GOAL, sample.median, "p50"),
            note="with udevd, scheduler, kubelet and containerd; by the time of the container's first line",
            plotted=True,
        ),
        row(
            figure=UNPATCHED,
            value=Sample.of(without),
            plotted=True,
            note="the plugin alone, plugged at random moments: the kubelet reports its devices every 10 s",
        ),
    ]
