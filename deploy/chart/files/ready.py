"""What `helm test` runs in a Pod: say whether every node that should have a daemon has one that is ready."""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PATIENCE = 120
"""How long the daemons may take, in seconds: an image has to be pulled."""
PODS = "pods?labelSelector=app.kubernetes.io/name%3Ddevwatch,app.kubernetes.io/component%3Ddaemon"


def missing(daemonset: dict[str, Any], pods: list[dict[str, Any]]) -> list[str]:
    """Return what is not as it should be, a line each; nothing where each node has a ready daemon of the latest version."""
    status, namespace = daemonset["status"], daemonset["metadata"]["namespace"]
    wanted = status.get("desiredNumberScheduled", 0)
    if status.get("observedGeneration") != daemonset["metadata"]["generation"]:
        return ["the DaemonSet devwatch is not yet seen by its controller"]
    if not wanted:
        return ["no node is chosen for a daemon: see nodeSelector, affinity and tolerations of the values"]
    if not status.get("currentNumberScheduled", 0):
        return [
            f"no Pod of {wanted} was made: kubectl -n {namespace} describe daemonset devwatch",
            f"where Pod Security refuses it: kubectl label namespace {namespace} pod-security.kubernetes.io/enforce=privileged",
        ]
    lines = [f"{pod['spec'].get('nodeName', 'no node')}: {_reason(pod)}" for pod in pods if not _ready(pod)]
    updated = status.get("updatedNumberScheduled", 0)
    if updated < wanted:
        lines.append(f"{updated} of {wanted} daemons are of the latest version")
    if not lines and status.get("numberReady", 0) < wanted:
        lines.append(f"{status.get('numberReady', 0)} of {wanted} daemons are ready")
    return lines


def _ready(pod: dict[str, Any]) -> bool:
    conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True"


def _reason(pod: dict[str, Any]) -> str:
    """Return why a daemon is not ready, as far as its Pod says it, and where the daemon says it."""
    states = [each.get("state", {}) for each in pod["status"].get("containerStatuses", ())]
    waiting = [state["waiting"].get("reason", "") for state in states if "waiting" in state]
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    what = waiting[0] if waiting else f"{pod['status'].get('phase', 'unknown')}, not ready"
    return f"{what} (kubectl -n {namespace} logs {name})"


def _asked(address: str, context: ssl.SSLContext | None, token: str) -> dict[str, Any]:
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"})  # noqa: S310  of https alone
    with urllib.request.urlopen(request, context=context, timeout=10) as answer:  # noqa: S310  as above
        found: dict[str, Any] = json.load(answer)
    return found


def look(server: str, namespace: str, token: str, context: ssl.SSLContext | None) -> tuple[int, list[str]]:
    """Return how many daemons there should be, and what is missing. Raises `OSError` where the API server does not answer or refuses."""
    daemonset = _asked(f"{server}/apis/apps/v1/namespaces/{namespace}/daemonsets/devwatch", context, token)
    pods = _asked(f"{server}/api/v1/namespaces/{namespace}/{PODS}", context, token)["items"]
    return daemonset["status"].get("desiredNumberScheduled", 0), missing(daemonset, pods)


def main() -> int:
    """Ask until every daemon is ready, or for as long as is reasonable, and print the last answer."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    namespace, token = (ACCOUNT / "namespace").read_text(), (ACCOUNT / "token").read_text()
    end = time.monotonic() + PATIENCE
    while True:
        try:
            wanted, lines = look(server, namespace, token, context)
        except OSError as error:
            wanted, lines = 0, [f"the API server: {error}"]
        if not lines or time.monotonic() > end:
            break
        time.sleep(2)
    print(*(lines or [f"every daemon is ready: {wanted} of {wanted}"]), sep="\n")  # noqa: T201  the result
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
