"""`status` and `purge` on a real API server: the whole cluster in one table, and nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from system.apiserver import PATCH_ONLY, WATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from system.apiserver import ApiServer

    RunPod = Callable[..., None]

pytestmark = pytest.mark.system

LISTING = {
    "a.io/stick": [
        {"devnode": "/dev/ttyUSB0", "vendor": "0403", "product": "6001", "serial": "S1\x1b[31m", "link": None}
    ],
    "b.io/stick": [],
}


class Cluster:
    """A few Nodes of this test alone."""

    def __init__(self, apiserver: ApiServer) -> None:
        """Make two Nodes: on one devwatch advertises, on the other it never ran."""
        self.apiserver = apiserver
        self.ours, self.other = (f"{kind}-{uuid.uuid4().hex[:6]}" for kind in ("ours", "other"))
        apiserver.create_node(self.other, {"example.com/foreign": "3"})
        apiserver.create_node(self.ours, {"example.com/foreign": "3"})
        counts = {"a.io/stick": "1", "b.io/stick": "0"}
        self._write({"status": {"capacity": counts, "allocatable": counts}})
        self.annotate(LISTING)

    def purge(self, node: str = "") -> subprocess.CompletedProcess[str]:
        """Purge a Node, ours by default, without a question."""
        return self.run("purge", "--yes", "--node", node or self.ours)

    def annotate(self, listing: dict[str, Any]) -> None:
        """Write the annotation as a daemon does."""
        self._write({"metadata": {"annotations": {"devwatch.io/devices": json.dumps(listing)}}})

    def _write(self, body: dict[str, Any]) -> None:
        path = f"/api/v1/nodes/{self.ours}/status?fieldManager=devwatch"
        assert self.apiserver.request("PATCH", path, body, content_type="application/merge-patch+json")[0] == 200

    def run(self, *arguments: str, kubeconfig: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command as the administrator."""
        command = [
            sys.executable,
            "-m",
            "devwatch",
            *arguments,
            "--kubeconfig",
            kubeconfig or str(self.apiserver.admin_kubeconfig),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    def capacity(self, node: str) -> dict[str, str]:
        """Return the extended resources of a Node."""
        capacity = self.apiserver.node(node)["status"]["capacity"]
        return {name: count for name, count in capacity.items() if "/" in name}


@pytest.fixture
def cluster(apiserver: ApiServer) -> Iterator[Cluster]:
    """Return Nodes that are gone after the test."""
    made = Cluster(apiserver)
    yield made
    for name in (made.ours, made.other):
        apiserver.delete_node(name)


def test_status_shows_what_is_advertised(cluster: Cluster) -> None:
    """One line for each resource that devwatch owns, with counts and devices; foreign resources and hostile serials do no harm."""
    done = cluster.run("status")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if cluster.ours in line]
    assert [line[:6] for line in lines] == [
        [cluster.ours, "a.io/stick", "nodeStatus", "1", "1", "0"],
        [cluster.ours, "b.io/stick", "nodeStatus", "0", "0", "0"],
    ]
    assert "\x1b" not in done.stdout
    assert "foreign" not in done.stdout


def test_status_speaks_json(cluster: Cluster) -> None:
    """A script gets pods, devices and the time of the last change."""
    content = json.loads(cluster.run("status", "-o", "json").stdout)
    (stick,) = [
        entry for entry in content["resources"] if entry["node"] == cluster.ours and entry["resource"] == "a.io/stick"
    ]
    (device,) = stick["devices"]
    assert device.items() >= LISTING["a.io/stick"][0].items()
    assert device["lost"] is None
    assert (stick["capacity"], stick["allocatable"], stick["requested"], stick["ready"]) == ("1", "1", 0, True)


@pytest.fixture
def run_pod(cluster: Cluster) -> Iterator[RunPod]:
    """Return a function that makes a pod which requests one of a resource; all are gone after the test."""
    cluster.apiserver.service_account("nobody", rules=[])  # the namespace
    pods, made = "/api/v1/namespaces/devwatch/pods", []

    def run(name: str, resource: str, node: str | None = None) -> None:
        container = {"name": "c", "image": "i", "resources": {"limits": {resource: "1"}}}
        # Other tests may have left a scheduler behind, which would bind it.
        spec = {
            "nodeName": node,
            "schedulerName": "none",
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
        }
        assert cluster.apiserver.request("POST", pods, {"metadata": {"name": name}, "spec": spec})[0] == 201
        made.append(name)

    yield run
    for name in made:
        cluster.apiserver.request("DELETE", f"{pods}/{name}")


def test_status_counts_the_requests_and_warns(cluster: Cluster, run_pod: RunPod) -> None:
    """More requested than there is, different maps and a Node that is not Ready are told, with the pods that request."""
    for name in ("one", "two"):
        run_pod(name, "a.io/stick", cluster.ours)
    body = {"status": {"allocatable": {"b.io/stick": "5"}, "conditions": [{"type": "Ready", "status": "False"}]}}
    path = f"/api/v1/nodes/{cluster.ours}/status"
    assert (
        cluster.apiserver.request("PATCH", path, body, content_type="application/strategic-merge-patch+json")[0] == 200
    )
    done = cluster.run("status")
    assert "devwatch/one (Pending), devwatch/two (Pending)" in done.stdout
    assert f"a.io/stick on {cluster.ours}: 2 requested, 1 allocatable" in done.stderr
    assert f"b.io/stick on {cluster.ours}: allocatable 5 differs from capacity 0" in done.stderr
    assert f"node {cluster.ours} is not Ready" in done.stderr


def test_status_shows_the_pods_that_no_node_has_taken(cluster: Cluster, run_pod: RunPod) -> None:
    """One that waits for a stick, and one that waits for a name that no Node has, with the name that was probably meant."""
    run_pod("waits", "a.io/stick")
    run_pod("typo", "a.io/stik")
    done = cluster.run("status")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("-")]
    wanted = {"a.io/stick": "devwatch/waits", "a.io/stik": "devwatch/typo"}
    for name, pod in wanted.items():
        assert ["-", name, "-", "-", "-", "1", pod, "(Pending)", "-"] in lines
    warning = (
        "warning: a.io/stik is requested, and no node has it in its capacity; the nearest name that one has: a.io/stick"
    )
    assert warning in done.stderr.splitlines()


def test_the_account_of_the_base_sees_all_but_the_pods(cluster: Cluster) -> None:
    """`kubectl exec` in the daemon's pod has the rights of the manifests: no list of pods without `eviction`."""
    plain = str(cluster.apiserver.service_account("plain", rules=[*PATCH_ONLY, *WATCH]))
    done = cluster.run("status", kubeconfig=plain)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if cluster.ours in line]
    assert [cluster.ours, "a.io/stick", "nodeStatus", "1", "1", "-"] in [line[:6] for line in lines]
    assert (
        'warning: the pods are not shown: pods is forbidden: User "system:serviceaccount:devwatch:plain"' in done.stderr
    )


def test_purge_removes_exactly_what_is_ours(cluster: Cluster) -> None:
    """Both maps and the annotation; what others own stays, and another Node is not touched."""
    before = cluster.apiserver.node(cluster.other)["metadata"]["resourceVersion"]
    done = cluster.purge()
    assert done.returncode == 0, done.stderr
    assert cluster.capacity(cluster.ours) == {"example.com/foreign": "3"}
    assert "devwatch.io/devices" not in cluster.apiserver.node(cluster.ours)["metadata"].get("annotations", {})
    assert cluster.apiserver.node(cluster.other)["metadata"]["resourceVersion"] == before


def test_purge_shows_the_difference_first(cluster: Cluster) -> None:
    """A dry run names what would go and removes nothing."""
    done = cluster.run("purge", "--node", cluster.ours, "--dry-run")
    assert done.returncode == 0
    assert "- a.io/stick: capacity 1, allocatable 1" in done.stdout
    assert cluster.capacity(cluster.ours)["a.io/stick"] == "1"


def test_purge_of_all_nodes(cluster: Cluster) -> None:
    """Every Node that has something of devwatch is cleaned; one without is not named."""
    done = cluster.run("purge", "--all-nodes", "--yes")
    assert done.returncode == 0, done.stderr
    assert cluster.other not in done.stdout
    assert cluster.capacity(cluster.ours) == {"example.com/foreign": "3"}


def test_purge_believes_no_hostile_annotation(cluster: Cluster) -> None:
    """What no Pod could ask for, or what devwatch did not write, is never removed, whatever the annotation says."""
    cluster.annotate({"cpu": [], "kubernetes.io/x": [], "a.io/stick": [], "example.com/foreign": []})
    done = cluster.purge()
    assert done.returncode == 0
    assert "example.com/foreign is listed and left alone" in done.stdout
    assert "cpu" in cluster.apiserver.node(cluster.ours)["status"]["capacity"]
    assert cluster.capacity(cluster.ours) == {"b.io/stick": "0", "example.com/foreign": "3"}


def test_a_missing_node_and_a_missing_right_are_one_line(cluster: Cluster) -> None:
    """What happened and what to do, status 1."""
    done = cluster.purge("nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "not found" in done.stderr
    patcher = str(cluster.apiserver.service_account("patcher", rules=PATCH_ONLY))
    done = cluster.run("status", kubeconfig=patcher)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "kubectl create clusterrole" in done.stderr
