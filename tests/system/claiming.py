"""The Node of a real kubelet whose sticks are offered by a ResourceSlice, and the pods that get them by ResourceClaims."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from system import testbed
from system.apiserver import NAMESPACE
from system.handover import CONFIG, Site, must, uid_of
from system.waiting import eventually

if TYPE_CHECKING:
    from system.apiserver import ApiServer, Object
    from system.daemon import Daemon

API = "resource.k8s.io/v1"
"""The version of the API that devwatch speaks, which servers have from 1.34 on."""
SLICES, CLASSES = f"/apis/{API}/resourceslices", f"/apis/{API}/deviceclasses"
CDI = Path("/var/run/cdi")
RECORD = Path("/var/lib/kubelet/plugins/devwatch.io/claims.json")
"""The daemon's record of the prepared claims."""
RIGHTS: list[Object] = [
    {
        "apiGroups": ["resource.k8s.io"],
        "resources": ["resourceslices"],
        "verbs": ["get", "list", "watch", "create", "update", "delete"],
    },
    {"apiGroups": ["resource.k8s.io"], "resources": ["resourceclaims"], "verbs": ["get"]},
]
USER: Object = {"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": True}
"""A user without the group of serial ports: the devnode belongs to it."""

_SERVED, _COMPLETE = 34, 36
"""Minor versions of Kubernetes: the first that serves the API, and the first in which pods have it by `limits`, and devices taints."""
_CLAIMS = f"/apis/{API}/namespaces/{NAMESPACE}"


def missing(apiserver: ApiServer, *, complete: bool = False) -> str | None:
    """Return what the API server lacks for the tests, with `complete` for those of limits or taints, in a few words, or None."""
    version = apiserver.request("GET", "/version")[1]
    # A server that was built without its version serves no such API, and names none; one that emulates another names both.
    minor = str(version.get("emulationMinor") or version["minor"]).rstrip("+")
    wanted = _COMPLETE if complete else _SERVED
    if int(minor or 0) >= wanted:
        return None
    lacks = "limits and taints of devices" if complete else API
    return f"{testbed.NEWER}{wanted} or newer ({lacks}), and this is {version['gitVersion']}"


def apply_classes(apiserver: ApiServer, home: Path, prefix: str) -> None:
    """Apply what `devwatch deviceclasses` prints for a configuration in which every resource is published so."""
    config = home / "classes.yaml"
    config.write_text(CONFIG % {"prefix": prefix, "evict": "", "zstick": "dra", "mover": "dra"})
    apply_classes_of(apiserver, config)


def apply_classes_of(apiserver: ApiServer, config: Path) -> None:
    """Apply what `devwatch deviceclasses` prints for a configuration."""
    command = [sys.executable, "-m", "devwatch", "deviceclasses", "--config", str(config)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    for item in yaml.safe_load_all(printed):
        must(apiserver, "POST", CLASSES, item)


@dataclass(slots=True, kw_only=True)
class ClaimingSite(Site):
    """As `Site`, with the slice of the node and the claims of one test."""

    complete: bool
    """Whether the API server has limits and taints of devices."""

    def slice(self) -> Object | None:
        """Return the slice of the node, None where there is none."""
        items = must(self.apiserver, "GET", SLICES)["items"]
        found = [item for item in items if item["spec"].get("nodeName") == self.kubelet.node]
        assert len(found) <= 1, found
        return found[0] if found else None

    def replaced(self, before: Object | None) -> bool:
        """Return whether there is a slice, and another one than before."""
        found = self.slice()
        return found is not None and before is not None and uid_of(found) != uid_of(before)

    def offered(self) -> dict[str, bool]:
        """Return the sticks of the resource in the slice, by serial, and whether each can be allocated."""
        found = self.slice() or {"spec": {}}
        devices = [
            (each["attributes"]["serial"]["string"], each)
            for each in found["spec"].get("devices") or ()
            if each["attributes"]["resource"]["string"] == f"{self.prefix}.example/{self.name}"
        ]
        return {serial: "taints" not in each for serial, each in devices}

    def offers(self, **sticks: bool) -> bool:
        """Return True; fail where the slice has other sticks than these, or says otherwise whether one can be allocated.

        Without taints it has none that cannot be.
        """
        assert self.offered() == {name: free for name, free in sticks.items() if free or self.complete}
        return True

    def await_forgotten(self) -> None:
        """Wait until the slice has no stick of former tests; where no daemon runs, delete it."""
        if self.handing.running is None or self.handing.running.process.status is not None:
            if (found := self.slice()) is not None:
                self.apiserver.request("DELETE", f"{SLICES}/{found['metadata']['name']}")
            return
        eventually(lambda: not (self.slice() or {"spec": {}})["spec"].get("devices"))

    def claim(self, serial: str) -> Object:
        """Make a claim for the stick with this serial, and return how a pod names it."""
        made = self._make(f"{_CLAIMS}/resourceclaims", {"metadata": _metadata(), "spec": self._claim_spec(serial)})
        return {"name": "stick", "resourceClaimName": made["metadata"]["name"]}

    def claim_template(self, serial: str) -> Object:
        """Make a template of claims for the stick with this serial, and return how a pod names it: each gets a claim of its own."""
        body = {"metadata": _metadata(), "spec": {"spec": self._claim_spec(serial)}}
        made = self._make(f"{_CLAIMS}/resourceclaimtemplates", body)
        return {"name": "stick", "resourceClaimTemplateName": made["metadata"]["name"]}

    def _claim_spec(self, serial: str) -> Object:
        selector = {"cel": {"expression": f"device.attributes['devwatch.io'].serial == '{serial}'"}}
        exactly: Object = {"deviceClassName": f"{self.prefix}.example.{self.name}"}
        if serial:
            exactly["selectors"] = [selector]
        return {"devices": {"requests": [{"name": "stick", "exactly": exactly}]}}

    def template_of(self, claim: Object | None) -> Object:
        """Return the template of an unprivileged pod of `USER` that asks for its stick by this claim.

        Without one it asks for any stick, by `limits` or, where the API server does not have them, by a claim for the class.
        """
        template = self.template(user=USER)
        if claim is None and not self.complete:
            claim = self.claim_template("")
        if claim is not None:
            (container,) = template["spec"]["containers"]
            container["resources"] = {"claims": [{"name": "stick"}]}
            template["spec"]["resourceClaims"] = [claim]
        return template

    def holder_of(self, daemon: Daemon, tty: str, claim: Object | None) -> Object:
        """Make such a pod, and return it once it has opened this stick and is seen to run."""
        return self.holder(daemon, tty, **self.template_of(claim)["spec"])

    def await_opened(self, daemon: Daemon, pod: Object, tty: str, *, restarts: int = 0) -> None:
        """As `Site.await_opened`; what fails before the kubelet has prepared a claim is tried again at once, and not after a minute.

        So may its reading of the claim that it learned of a moment ago, before the API server knows that the pod is of its node.
        """
        daemon.wait_for(
            lambda: self.hurry(pod) and self.opened(pod, tty, restart=restarts), timeout=60, what="opened stick"
        )
        Site.await_opened(self, daemon, pod, tty, restarts=restarts)

    def mine(self, workload: Object) -> list[Object]:
        """Return the pods of a workload that are not asked to go."""
        uid = uid_of(workload)
        return [
            pod
            for pod in self.pods()
            if [owner["uid"] for owner in pod["metadata"].get("ownerReferences", ())] == [uid]
            and "deletionTimestamp" not in pod["metadata"]
        ]

    def prepared(self) -> int:
        """Return how many claims the record of the daemon has."""
        try:
            return len(json.loads(RECORD.read_text())["claims"])
        except FileNotFoundError:
            return 0


def _metadata() -> Object:
    return {"name": f"c-{uuid.uuid4().hex[:6]}"}
