"""The pods of the soak, on a real kubelet: their controllers replace each that is evicted, and one pod has none."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from soak.config import CLAIMED, HANDED, MOUNTED, PREFIX
from system.claiming import CDI, ClaimingSite
from system.handover import PODS, Workloads
from system.kubelet import FOLDER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from soak.config import Kind
    from system.apiserver import ApiServer, Object
    from system.handover import HandingOver
    from system.kubelet import Kubelet
    from system.udevd import Sticks

_REPLICAS = 2
_PLUGINS = ("device-plugins", "plugins", "plugins_registry")


@dataclass(slots=True, kw_only=True)
class Pods:
    """All pods of the node."""

    apiserver: ApiServer
    kubelet: Kubelet
    handing: HandingOver
    sticks: Sticks
    ended: int = 0
    """Pods that the kubelet ended without an eviction, as it does at a restart where the Node shows no stick for them; they are deleted."""
    _expected: dict[str, int] = field(default_factory=dict)

    def begin(self, consoles: Sequence[str], *, dra: bool, complete: bool) -> None:
        """Make the workloads: with `nodeStatus` one for each console, with the others several replicas, and a pod without a controller.

        With `complete` some have a device of a claim by `limits`.
        """
        mounted = self._workloads(MOUNTED)
        for tty in consoles:
            mounted.replicas(1, mounted.privileged_template(tty))
        handed = self._workloads(HANDED)
        handed.replicas(_REPLICAS + 1)
        handed.pod()
        self._expected = {MOUNTED.resource: len(consoles), HANDED.resource: _REPLICAS + 2}
        if dra:
            self._begin_claims(complete=complete)

    def _begin_claims(self, *, complete: bool) -> None:
        claimed = ClaimingSite(
            apiserver=self.apiserver,
            kubelet=self.kubelet,
            prefix=PREFIX,
            name=CLAIMED.name,
            handing=self.handing,
            sticks=self.sticks,
            complete=complete,
        )
        claimed.replicas(_REPLICAS, claimed.template_of(claimed.claim_template("")))
        claimed.replicas(1, claimed.template_of(None))
        self._expected[CLAIMED.resource] = _REPLICAS + 1

    def _workloads(self, kind: Kind) -> Workloads:
        return Workloads(apiserver=self.apiserver, kubelet=self.kubelet, prefix=PREFIX, name=kind.name)

    def listed(self) -> list[Object]:
        """Return all pods."""
        status, answer = self.apiserver.request("GET", f"{PODS}?labelSelector=test%3Ddevice-plugin")
        assert status == 200, answer
        items: list[Object] = answer["items"]
        return items

    def tend(self) -> None:
        """Delete the pods that have ended, as their owner would, and have the kubelet look at those that do not run yet.

        It tries again only after a minute where it has read a claim before the API server knew that the pod is of its node. An API server
        that does not answer is asked again later.
        """
        with contextlib.suppress(OSError, AssertionError):
            for pod in self.listed():
                self._tend(pod)

    def _tend(self, pod: Object) -> None:
        path = f"{PODS}/{pod['metadata']['name']}"
        if pod["status"]["phase"] in {"Failed", "Succeeded"}:
            self.ended += 1
            self.apiserver.request("DELETE", f"{path}?gracePeriodSeconds=0")
        elif "nodeName" in pod["spec"] and not _runs(pod):
            body = {"metadata": {"annotations": {"hurried": f"{time.monotonic()}"}}}
            self.apiserver.request("PATCH", path, body, content_type="application/merge-patch+json")

    def states_where_not_all_run(self) -> object:
        """Return None where every pod runs and no other is left, else the pods with their phases."""
        pods = self.listed()
        if len(pods) == sum(self._expected.values()) and all(_runs(pod) for pod in pods):
            return None
        return [(pod["metadata"]["name"], pod["status"]["phase"]) for pod in pods]


def _runs(pod: Object) -> bool:
    statuses = pod["status"].get("containerStatuses") or [{"ready": False}]
    return "deletionTimestamp" not in pod["metadata"] and all(each["ready"] for each in statuses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """How many files there are where the kubelet and the container runtime look for those of the daemon."""

    plugins: int
    """In the folders of plugins: sockets, the record of claims, and the kubelet's own, which are as many at all times."""
    links: int
    """Those that devices are handed over by."""
    specs: int
    """CDI files, one a claim."""

    @classmethod
    def count(cls) -> Files:
        """Count them."""
        plugins = [path for name in _PLUGINS for path in (FOLDER / name).rglob("*")]
        links = sum(path.is_symlink() for path in plugins)
        return cls(plugins=len(plugins) - links, links=links, specs=len(list(CDI.glob("*devwatch.io-*"))))
