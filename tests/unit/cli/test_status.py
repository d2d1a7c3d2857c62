"""`status` over real HTTP: every resource with the pods that request it, bound or not, and what nobody can give them."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from devwatch.cli import admin
from devwatch.cli.display import Screen
from devwatch.core.node import ANNOTATION
from devwatch.kube.client import Connection
from devwatch.kube.credentials import Credentials
from support.nodesite import RESOURCE, site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.nodesite import Site

GPU = "example.com/gpu"
"""What another plugin advertises, on n2 alone."""
LISTED = 'pods is forbidden: User "u" cannot list resource "pods" in API group "" at the cluster scope'


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Site]:
    """Return two Nodes on which devwatch advertises a stick; on n2 somebody else advertises a GPU."""
    with site(tmp_path, "n1", "n2") as running:
        for part in ("capacity", "allocatable"):
            running.nodes["n2"]["status"][part][GPU] = "4"
        for held in running.nodes.values():
            held["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
        yield running


def pod(name: str, wanted: dict[str, int], *, node: str = "", phase: str = "Pending") -> dict[str, Any]:
    """Return a pod that requests extended resources."""
    limits = {resource: str(count) for resource, count in wanted.items()}
    spec: dict[str, Any] = {"containers": [{"name": "c", "resources": {"limits": limits}}]}
    if node:
        spec["nodeName"] = node
    metadata = {"namespace": "default", "name": name, "uid": f"uid-{name}"}
    return {"metadata": metadata, "spec": spec, "status": {"phase": phase}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What `status` shows."""

    status: int
    out: str
    err: list[str]

    @property
    def rows(self) -> list[list[str]]:
        """The cells of the table, without its head."""
        return [line.split() for line in self.out.splitlines()[1:]]

    @property
    def resources(self) -> list[dict[str, Any]]:
        """The content of a document."""
        found: list[dict[str, Any]] = json.loads(self.out)["resources"]
        return found


def status(cluster: Site, form: str = "table") -> Shown:
    """Run the command."""
    connection = Connection(Credentials(kubeconfig=cluster.kubeconfig, environ={}), version="0")
    out, err = io.StringIO(), io.StringIO()
    done = admin.run(connection, admin.status(connection, Screen(out=out), Screen(out=err), form=form))
    return Shown(status=done, out=out.getvalue(), err=err.getvalue().splitlines())


def test_every_resource_says_how_it_is_published_and_who_requests_it(cluster: Site) -> None:
    """Running pods and Pending ones that are bound to the node, each with its phase; finished ones hold nothing."""
    cluster.pods = [
        pod("a", {RESOURCE: 1}, node="n1", phase="Running"),
        pod("b", {RESOURCE: 1}, node="n2"),
        pod("c", {RESOURCE: 1}, node="n2", phase="Succeeded"),
    ]
    shown = status(cluster)
    assert shown.out.split("\n", 1)[0].split()[:6] == [
        *("NODE", "RESOURCE", "PUBLISH", "CAPACITY", "ALLOCATABLE", "REQUESTED")
    ]
    assert shown.rows == [
        ["n1", RESOURCE, "nodeStatus", "1", "1", "1", "default/a", "(Running)", "-"],
        ["n2", RESOURCE, "nodeStatus", "1", "1", "1", "default/b", "(Pending)", "-"],
    ]
    assert (shown.status, shown.err) == (0, [])


def test_a_pod_that_waits_for_a_node_has_a_row_without_one(cluster: Site) -> None:
    """It stands below the nodes, for each resource of devwatch that it requests; those of other plugins are not our business."""
    cluster.pods = [pod("a", {RESOURCE: 2, GPU: 1}), pod("b", {RESOURCE: 1}), pod("c", {GPU: 9})]
    assert status(cluster).rows[2:] == [
        ["-", RESOURCE, "-", "-", "-", "3", *("default/a", "(Pending),", "default/b", "(Pending)"), "-"]
    ]
    (waiting,) = [entry for entry in status(cluster, "json").resources if entry["node"] is None]
    pods = [{"namespace": "default", "name": name, "phase": "Pending"} for name in ("a", "b")]
    assert waiting == {
        "node": None,
        "ready": None,
        "resource": RESOURCE,
        "publish": None,
        "capacity": None,
        "allocatable": None,
        "requested": 3,
        "pods": pods,
        "devices": [],
        "changed": None,
        "nearest": None,
        "warnings": [],
    }


def test_a_request_that_no_node_can_meet_is_told_with_the_name_that_was_meant(cluster: Site) -> None:
    """A misspelt name is in no Node: the row says so, with the nearest name that devwatch advertises, if one is near."""
    cluster.pods = [pod("typo", {"a.io/stik": 1}), pod("far", {"quite.other/thing": 1})]
    shown = status(cluster)
    assert [row[:2] for row in shown.rows[2:]] == [["-", "a.io/stik"], ["-", "quite.other/thing"]]
    assert shown.err == [
        f"warning: a.io/stik is requested, and no node has it in its capacity; the nearest name that one has: {RESOURCE}",
        "warning: quite.other/thing is requested, and no node has it in its capacity",
    ]
    nearest = {entry["resource"]: entry["nearest"] for entry in status(cluster, "json").resources}
    assert nearest == {RESOURCE: None, "a.io/stik": RESOURCE, "quite.other/thing": None}


def test_what_runs_without_a_count_is_no_mistake_of_a_name(cluster: Site) -> None:
    """With dynamic resource allocation a pod has its device though no Node counts it."""
    cluster.pods = [pod("a", {"dra.io/device": 1}, node="n1", phase="Running")]
    shown = status(cluster)
    assert [row[1] for row in shown.rows] == [RESOURCE, RESOURCE]
    assert shown.err == []


def test_a_pod_on_a_node_that_does_not_have_the_resource_is_shown_there(cluster: Site) -> None:
    """It runs without its device: the kubelet strips a request that its Node does not know. Where another plugin has it, it is not ours."""
    for part in ("capacity", "allocatable"):
        del cluster.nodes["n1"]["status"][part][RESOURCE]
        cluster.nodes["n1"]["status"][part][GPU] = "1"
    cluster.nodes["n1"]["metadata"]["annotations"][ANNOTATION] = "{}"
    cluster.nodes["n2"]["metadata"]["annotations"][ANNOTATION] = json.dumps({RESOURCE: [], GPU: []})
    cluster.pods = [pod("a", {RESOURCE: 1, GPU: 1}, node="n1", phase="Running")]
    shown = status(cluster)
    assert [row[:6] for row in shown.rows] == [
        ["n1", RESOURCE, "-", "-", "-", "1"],
        ["n2", RESOURCE, "nodeStatus", "1", "1", "0"],
        ["n2", GPU, "nodeStatus", "4", "4", "0"],
    ]
    assert shown.err == [f"warning: {RESOURCE} on n1: 1 requested, none allocatable; a pod runs without its device"]


def test_without_the_right_to_list_pods_all_else_is_shown(cluster: Site) -> None:
    """The base of the DaemonSet has no such right: what is not known is not shown as none, and a line says what grants it."""
    cluster.unlisted = LISTED
    shown = status(cluster)
    assert [row[:6] for row in shown.rows] == [[name, RESOURCE, "nodeStatus", "1", "1", "-"] for name in ("n1", "n2")]
    assert shown.status == 0
    (line,) = shown.err
    assert line.startswith('warning: the pods are not shown: pods is forbidden: User "u" cannot list resource "pods"')
    assert "kubectl create clusterrole" in line
    assert {(entry["requested"], entry["pods"]) for entry in status(cluster, "json").resources} == {(None, None)}


def test_a_lost_device_is_marked(cluster: Site) -> None:
    """It is listed until its pods are gone, and is no device that anybody could use."""
    stick = {"devnode": "/dev/ttyUSB0", "serial": "DW0001", "lost": "2026-01-02T03:04:05Z"}
    other = {"devnode": "/dev/ttyUSB1", "serial": "DW0002"}
    cluster.nodes["n1"]["metadata"]["annotations"][ANNOTATION] = json.dumps({RESOURCE: [stick, other]})
    assert status(cluster).rows[0][-3:] == ["DW0001", "(lost),", "DW0002"]
    devices = status(cluster, "json").resources[0]["devices"]
    assert [device["lost"] for device in devices] == ["2026-01-02T03:04:05Z", None]


def test_a_cluster_without_devwatch_says_so(cluster: Site) -> None:
    """Also where pods wait for what nobody advertises."""
    for held in cluster.nodes.values():
        del held["metadata"]["annotations"][ANNOTATION]
    assert status(cluster).err == ["devwatch advertises nothing in this cluster"]
    cluster.pods = [pod("a", {"a.io/stik": 1})]
    shown = status(cluster)
    assert [row[:2] for row in shown.rows] == [["-", "a.io/stik"]]
    assert shown.err[0] == "devwatch advertises nothing in this cluster"
