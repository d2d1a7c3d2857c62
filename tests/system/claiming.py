"""The Node of a real kubelet whose sticks are offered by a ResourceSlice, and the pods that get them by ResourceClaims."""

from __future__ import annotations

import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from system.apiserver import NAMESPACE
from system.handover import CONFIG, Site, must

if TYPE_CHECKING:
    from system.apiserver import ApiServer, Object

API = "resource.k8s.io/v1"
"""The version of the API that devwatch speaks, which servers have from 1.34 on."""
SLICES, CLASSES = f"/apis/{API}/resourceslices", f"/apis/{API}/deviceclasses"
CLAIMS = f"/apis/{API}/namespaces/{NAMESPACE}/resourceclaims"
CDI = Path("/var/run/cdi")
RIGHTS: list[Object] = [
    {
        "apiGroups": ["resource.k8s.io"],
        "resources": ["resourceslices"],
        "verbs": ["get", "list", "watch", "create", "update", "delete"],
    },
    {"apiGroups": ["resource.k8s.io"], "resources": ["resourceclaims"], "verbs": ["get"]},
]
NON_ROOT: Object = {"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": True}
"""A user without the group of serial ports: the devnode belongs to it."""


def missing(apiserver: ApiServer) -> str | None:
    """Return what the API server lacks for `publish: dra` with `limits`, in a few words, or None."""
    version = apiserver.request("GET", "/version")[1]
    if not apiserver.serves(API):
        return f"needs Kubernetes 1.34 or newer ({API}), and this is {version['gitVersion']}"
    return None


def apply_classes(apiserver: ApiServer, home: Path, prefix: str) -> None:
    """Apply what `devwatch deviceclasses` prints for a configuration in which every resource is published so."""
    config = home / "classes.yaml"
    config.write_text(CONFIG % {"prefix": prefix, "evict": "", "zstick": "dra", "mover": "dra"})
    command = [sys.executable, "-m", "devwatch", "deviceclasses", "--config", str(config)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    for item in yaml.safe_load_all(printed):
        must(apiserver, "POST", CLASSES, item)


@dataclass(slots=True, kw_only=True)
class ClaimingSite(Site):
    """As `Site`, with the slice of the node and the claims of one test."""

    def slice(self) -> Object | None:
        """Return the slice of the node, None where there is none."""
        items = must(self.apiserver, "GET", SLICES)["items"]
        found = [item for item in items if item["spec"].get("nodeName") == self.kubelet.node]
        assert len(found) <= 1, found
        return found[0] if found else None

    def offers(self, **sticks: bool) -> bool:
        """Return True; fail where the slice has other sticks than these, by serial, or says otherwise whether one can be allocated."""
        found = self.slice()
        assert found is not None
        name = f"{self.prefix}.example/{self.name}"
        devices = [
            each for each in found["spec"].get("devices") or () if each["attributes"]["resource"]["string"] == name
        ]
        assert {each["attributes"]["serial"]["string"]: "taints" not in each for each in devices} == sticks
        return True

    def claim(self, serial: str) -> str:
        """Make a claim for the stick with this serial, and return its name."""
        return str(self._make(CLAIMS, self._claim(serial))["metadata"]["name"])

    def _claim(self, serial: str) -> Object:
        expression = f"device.attributes['devwatch.io'].serial == '{serial}'"
        exactly = {
            "deviceClassName": f"{self.prefix}.example.{self.name}",
            "selectors": [{"cel": {"expression": expression}}],
        }
        return {
            "apiVersion": API,
            "kind": "ResourceClaim",
            "metadata": {"name": f"c-{uuid.uuid4().hex[:6]}"},
            "spec": {"devices": {"requests": [{"name": "stick", "exactly": exactly}]}},
        }

    def spec_of(self, claim: str | None) -> Object:
        """Return what the spec of an unprivileged pod has that asks by this claim, or by `limits`."""
        (container,) = self.template()["spec"]["containers"]
        if claim is None:
            return {"containers": [container], "user": NON_ROOT}
        container["resources"] = {"claims": [{"name": "stick"}]}
        claims = [{"name": "stick", "resourceClaimName": claim}]
        return {"containers": [container], "resourceClaims": claims, "user": NON_ROOT}

    def prepared(self) -> int:
        """Return for how many claims there are CDI files."""
        return len(list(CDI.glob("devwatch.io-claim_*.json")))


