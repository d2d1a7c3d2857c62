"""A real kubelet, a daemon that hands sticks over to it, and pods that wait for them."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from bench import ROOT
from bench.ground import PRODUCT, VENDOR, Ground, Switch, scrape
from bench.proc import Memory
from bench.server import RIGHTS
from bench.table import Goal, Row, at_most
from system.apiserver import NAMESPACE, assets
from system.busybox import IMAGE
from system.daemon import Daemon
from system.kubelet import Kubelet, missing
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from system.apiserver import Object

CONFIG = """\
resources:
  - name: example.com/{name}
    match: [{{vendor: "{vendor}", product: "{product}"}}]
    publish: {publish}
    container: {{path: /dev/stick}}
"""
SCRIPT = "trap 'exit 0' TERM; exec 3<>/dev/stick && stat -c %t:%T /dev/stick; sleep 2147483647 & wait"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
FIGURE = "plugged -> container has opened it"
GOAL = 0.8
"""Seconds from the uevent to the container, in the median."""
_BACKOFF = 2.2
"""Seconds, as in `bench.journey`."""
_LIST_PODS: Object = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}


def lacking() -> str | None:
    """Return what this machine lacks for a kubelet with containers, in a few words, or None."""
    folder = assets(os.environ)
    return missing(os.geteuid(), folder) if folder else "needs KUBEBUILDER_ASSETS"


@contextlib.contextmanager
def prepared_kubelet(ground: Ground) -> Iterator[Kubelet]:
    """Run a kubelet, and a scheduler for its pods. Raises `ValueError` where something is `lacking`."""
    folder = assets(os.environ)
    if folder is None:
        raise ValueError(lacking())
    ground.server.start_scheduler()
    with Kubelet(ground.server, folder, "bench-kubelet") as kubelet:
        yield kubelet


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A kubelet, and the resource that a daemon hands over to it."""

    ground: Ground
    kubelet: Kubelet
    name: str
    publish: str = "devicePlugin"
    more: str = ""
    """The rest of the configuration."""
    rights: Sequence[Object] = ()
    """What the daemon may do beside what all may."""
    pods: list[Object] = field(default_factory=list)
    """The pods so far."""

    @property
    def account(self) -> str:
        """The daemon's ServiceAccount."""
        return f"handing-over-{self.name}"

    def write_config(self) -> Path:
        """Write the daemon's configuration, and return its path."""
        config = self.ground.folder / f"{self.name}.yaml"
        text = CONFIG.format(name=self.name, vendor=VENDOR, product=PRODUCT, publish=self.publish)
        config.write_text(text + self.more)
        return config

    @contextlib.contextmanager
    def daemon(self, *, patches: bool = True) -> Iterator[Daemon]:
        """Run the daemon; it has registered, and from then on it `patches` the Node or has lost the permission."""
        kubeconfig = self.ground.server.service_account(self.account, rules=[*RIGHTS, _LIST_PODS, *self.rights])
        where = (f"--config={self.write_config()}", f"--node-name={self.kubelet.node}", f"--kubeconfig={kubeconfig}")
        options = ("--listen=127.0.0.1:0", "--log-format=json")
        environ = {"PYTHONPATH": str(ROOT / "src")}
        with Daemon(*where, *options, home=self.ground.folder, env=environ) as daemon:
            daemon.wait_log("kubelet.registered")
            if not patches:
                self.ground.server.revoke(self.account)
            yield daemon

    def plug_for_pods(self, sticks: Sequence[Switch], moments: Sequence[float]) -> list[float]:
        """Plug each stick so many seconds after a pod has been waiting for it.

        Return the seconds from each uevent to the first line of the container that has opened the stick.
        """
        pods = [self._waiting_pod() for _ in sticks]
        time.sleep(_BACKOFF)
        sent = plug(sticks, moments)
        # The kubelet tries again after a minute where it asked for a claim before the API server knew that the pod is of its node.
        lines = [eventually(partial(self.kubelet.first_line, pod, "c"), timeout=180) for pod in pods]
        return [at.timestamp() - sent[number] for at, number in lines]

    def delete_pods(self) -> None:
        """End all pods so far: what one has is offered to no other, under no name."""
        for pod in self.pods:
            self.ground.server.request("DELETE", f"{PODS}/{pod['metadata']['name']}?gracePeriodSeconds=0")
        eventually(lambda: not any(self.kubelet.has_processes(pod) for pod in self.pods), timeout=60)

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
        # As of a ReplicaSet: bare pods are never evicted.
        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": self.name, "uid": name, "controller": True}
        body = {"metadata": {"name": name, "ownerReferences": [owner]}, "spec": spec}
        status, pod = self.ground.server.request("POST", PODS, body)
        if status != 201:  # noqa: PLR2004 - Created
            raise AssertionError(f"the pod is refused: {pod.get('message')}")
        self.pods.append(pod)
        return pod


def plug(sticks: Sequence[Switch], moments: Sequence[float]) -> dict[str, float]:
    """Plug each stick so many seconds from now; return by device number, as stat(1) prints it, when its uevent was sent (`time.time`)."""
    began, sent = time.monotonic(), {}
    for stick, moment in zip(sticks, sorted(moments), strict=True):
        time.sleep(max(began + moment - time.monotonic(), 0))
        sent[stick.text] = time.time()
        stick.set(plugged=True)
    return sent


def pull(sticks: Sequence[Switch]) -> None:
    """Pull all sticks."""
    for stick in sticks:
        stick.set(plugged=False)


def weigh(bench: str, daemon: Daemon, *, limit: int, aim: int | None = None) -> list[Row]:
    """Return the memory of a daemon whose metrics were scraped."""
    for _ in range(10):
        scrape(daemon)
    memory = Memory.of(daemon.process.pid)
    row = partial(Row, bench=bench, unit="MiB")
    goal: Goal = at_most(limit, memory.rss)
    note = f"the aim is {aim}" if aim else ""
    return [
        row(figure="RSS, registered", value=memory.rss, goal=goal, note=note),
        row(figure="PSS, registered", value=memory.pss),
    ]
