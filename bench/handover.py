"""The device plugin on a real kubelet: how long a plugged stick takes to a container that has opened it, and what a registration costs."""

from __future__ import annotations

import contextlib
import os
import random
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bench import ROOT
from bench.ground import PRODUCT, VENDOR, Ground, Switch, scrape
from bench.load import rest
from bench.proc import Memory
from bench.server import RIGHTS
from bench.stats import Sample
from bench.table import Goal, Row, at_most
from system.apiserver import NAMESPACE, assets
from system.busybox import IMAGE
from system.daemon import Daemon
from system.kubelet import Kubelet, missing
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from system.apiserver import Object

CONFIG = """\
resources:
  - name: example.com/{name}
    match: [{{vendor: "{vendor}", product: "{product}"}}]
    publish: devicePlugin
    container: {{path: /dev/stick}}
"""
SCRIPT = "trap 'exit 0' TERM; exec 3<>/dev/stick && stat -c %t:%T /dev/stick; sleep 2147483647 & wait"
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
_LIST_PODS: Object = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
_FIGURE = "plugged -> container has opened it"
_BACKOFF = 2.2
"""Seconds, as in `bench.journey`."""
_SYNC = 10.0
"""Seconds between two status syncs of a kubelet (nodeStatusUpdateFrequency)."""
_GOAL = 0.8
"""Seconds from the uevent to the container, in the median."""
_LIMIT, _AIM = 52, 50
"""MiB: the limit of the daemon while a resource is registered, and the aim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scene:
    """A kubelet, and the resource that a daemon hands over to it."""

    ground: Ground
    kubelet: Kubelet
    name: str

    @contextlib.contextmanager
    def daemon(self, *, patches: bool) -> Iterator[Daemon]:
        """Run the daemon; it has registered, and from then on it `patches` the Node or has lost the permission."""
        account = f"handing-over-{self.name}"
        kubeconfig = self.ground.server.service_account(account, rules=[*RIGHTS, _LIST_PODS])
        config = self.ground.folder / f"{self.name}.yaml"
        config.write_text(CONFIG.format(name=self.name, vendor=VENDOR, product=PRODUCT))
        where = (f"--config={config}", f"--node-name={self.kubelet.node}", f"--kubeconfig={kubeconfig}")
        options = ("--listen=127.0.0.1:0", "--log-format=json")
        environ = {"PYTHONPATH": str(ROOT / "src")}
        with Daemon(*where, *options, home=self.ground.folder, env=environ) as daemon:
            daemon.wait_log("kubelet.registered")
            if not patches:
                self.ground.server.revoke(account)
            yield daemon

    def plug_for_pods(self, sticks: Sequence[Switch], moments: Sequence[float]) -> list[float]:
        """Plug each stick so many seconds after a pod has been waiting for it.

        Return the seconds from each uevent to the first line of the container that has opened the stick.
        """
        pods = [self._waiting_pod() for _ in sticks]
        time.sleep(_BACKOFF)
        began, sent = time.monotonic(), {}
        for stick, moment in zip(sticks, sorted(moments), strict=True):
            time.sleep(max(began + moment - time.monotonic(), 0))
            sent[f"{os.major(stick.number):x}:{os.minor(stick.number):x}"] = time.time()
            stick.set(plugged=True)
        lines = [eventually(partial(self.kubelet.first_line, pod, "c"), timeout=60) for pod in pods]
        return [at.timestamp() - sent[number] for at, number in lines]

    def _waiting_pod(self) -> Object:
        name = f"{self.name}-{time.monotonic_ns()}"
        container = {
            "name": "c",
            "image": IMAGE,
            "imagePullPolicy": "Never",
            "command": ["sh", "-c", SCRIPT],
            "resources": {"limits": {f"example.com/{self.name}": 1}},
        }
        spec = {
            "containers": [container],
            "nodeSelector": {"kubernetes.io/hostname": self.kubelet.node},
            "hostNetwork": True,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
        }
        status, pod = self.ground.server.request("POST", _PODS, {"metadata": {"name": name}, "spec": spec})
        if status != 201:  # noqa: PLR2004 - Created
            raise AssertionError(f"the pod is refused: {pod.get('message')}")
        return pod


def handover(ground: Ground) -> list[Row]:
    """Let pods wait for sticks, plug these, and see when their containers have opened them; let the daemon be for a minute."""
    folder = assets(os.environ)
    reason = missing(os.geteuid(), folder) if folder else "needs KUBEBUILDER_ASSETS"
    if folder is None or reason:
        return [Row(bench="handover", figure=_FIGURE, value="not measured", note=reason or "")]
    ground.server.start_scheduler()
    count = ground.size(10, 1)
    with contextlib.ExitStack() as stack:
        kubelet = stack.enter_context(Kubelet(ground.server, folder, "bench-kubelet"))
        sticks = [stack.enter_context(Switch(ground.sticks, f"tty{number}")) for number in range(20, 20 + count)]
        costs, with_patch = _with_patch(_Scene(ground=ground, kubelet=kubelet, name="patched"), sticks)
        without = _without_patch(_Scene(ground=ground, kubelet=kubelet, name="unpatched"), sticks)
    return [*_rows(with_patch, without), *costs]


def _with_patch(scene: _Scene, sticks: list[Switch]) -> tuple[list[Row], list[float]]:
    """Plug one stick after the other, each for a pod of its own; then measure what the daemon costs."""
    _pull(sticks)
    with scene.daemon(patches=True) as daemon:
        found = [seconds for stick in sticks for seconds in scene.plug_for_pods([stick], [0.0])]
        return _costs(daemon, scene.ground.size(60, 5)), found


def _without_patch(scene: _Scene, sticks: list[Switch]) -> list[float]:
    """Plug all sticks at random moments of a few syncs of the kubelet: one after the other, each would come right after a sync."""
    _pull(sticks)
    moments = [random.uniform(0, 3 * _SYNC) for _ in sticks]  # noqa: S311 - no secret
    with scene.daemon(patches=False):
        return scene.plug_for_pods(sticks, moments)


def _pull(sticks: list[Switch]) -> None:
    for stick in sticks:
        stick.set(plugged=False)


def _rows(with_patch: list[float], without: list[float]) -> list[Row]:
    row = partial(Row, bench="handover", unit="s")
    sample = Sample.of(with_patch)
    return [
        row(
            figure=_FIGURE,
            value=sample,
            goal=at_most(_GOAL, sample.median, "p50"),
            note="with udevd, scheduler, kubelet and containerd; by the time of the container's first line",
        ),
        row(
            figure=f"{_FIGURE}, without our PATCH",
            value=Sample.of(without),
            note="the plugin alone, plugged at random moments: the kubelet reports its devices every 10 s",
        ),
    ]


def _costs(daemon: Daemon, seconds: float) -> list[Row]:
    for _ in range(10):
        scrape(daemon)
    memory = Memory.of(daemon.process.pid)
    work, taken = rest(daemon, seconds)
    share, rate = work.cpu / taken * 100, work.wakeups / taken
    row = partial(Row, bench="handover")
    limit: Goal = at_most(_LIMIT, memory.rss)
    return [
        row(figure="RSS, registered", unit="MiB", value=memory.rss, goal=limit, note=f"the aim is {_AIM}"),
        row(figure="PSS, registered", unit="MiB", value=memory.pss),
        row(
            figure="CPU, registered",
            unit="% of a core",
            value=share,
            goal=at_most(0.05, share),
            note=f"{work.cpu * 1000:.1f} ms in {taken:.0f} s",
        ),
        row(figure="wakeups, registered", unit="1/s", value=rate, goal=at_most(1, rate)),
    ]
