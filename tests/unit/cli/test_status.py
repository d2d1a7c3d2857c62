"""`status` over real HTTP: every resource with the pods that request it, bound or not, and what nobody can give them."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from devwatch.cli import admin
from devwatch.cli.display import Screen
from devwatch.core.errors import Unavailable
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
CLASS = "a.io.stick"
"""The DeviceClass of the stick."""
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


def pod(
    name: str, wanted: dict[str, int], *, node: str = "", phase: str = "Pending", has: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return a pod that requests extended resources; `has` are the IDs that its status names, from 1.36 on."""
    limits = {resource: str(count) for resource, count in wanted.items()}
    spec: dict[str, Any] = {"containers": [{"name": "c", "resources": {"limits": limits}}]}
    if node:
        spec["nodeName"] = node
    metadata = {"namespace": "default", "name": name, "uid": f"uid-{name}"}
    named = [{"name": RESOURCE, "resources": [{"resourceID": each, "health": "Healthy"} for each in has]}]
    containers = [{"name": "c", "allocatedResourcesStatus": named}] if has else []
    return {"metadata": metadata, "spec": spec, "status": {"phase": phase, "containerStatuses": containers}}


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
    """It stands below the nodes, for each resource of devwatch that it requests; those of other plugins are not our business.

    One that requests more than any node has can wait forever: its devices come from one node.
    """
    cluster.pods = [pod("a", {RESOURCE: 2, GPU: 1}), pod("b", {RESOURCE: 1}), pod("c", {GPU: 9})]
    assert status(cluster).rows[2:] == [
        ["-", RESOURCE, "-", "-", "-", "3", *("default/a", "(Pending),", "default/b", "(Pending)"), "-"]
    ]
    (waiting,) = [entry for entry in status(cluster, "json").resources if entry["node"] is None]
    pods = [{"namespace": "default", "name": name, "phase": "Pending", "devices": None} for name in ("a", "b")]
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
        "warnings": [f"default/a requests 2 of {RESOURCE}, all from one node, and no node has more than 1"],
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


def test_figures_of_a_node_that_is_not_ready_may_be_old(cluster: Site) -> None:
    """Its daemon may be down with it."""
    cluster.nodes["n1"]["status"]["conditions"][0]["status"] = "Unknown"
    assert status(cluster).err == ["warning: node n1 is not Ready: its figures may be old"]
    assert [row["ready"] for row in status(cluster, "json").resources] == [False, True]


def test_a_cluster_without_devwatch_says_so(cluster: Site) -> None:
    """Also where pods wait for what nobody advertises."""
    for held in cluster.nodes.values():
        del held["metadata"]["annotations"][ANNOTATION]
    nothing = "devwatch advertises nothing in this cluster; whether its pods run, or why not: kubectl describe daemonsets,pods -A -l "
    assert status(cluster).err == [f"{nothing}app.kubernetes.io/name=devwatch"]
    cluster.pods = [pod("a", {"a.io/stik": 1})]
    shown = status(cluster)
    assert [row[:2] for row in shown.rows] == [["-", "a.io/stik"]]
    assert shown.err[0].startswith(nothing)


# -- handed over by the kubelet


def stick(number: int, *, lost: bool = False) -> dict[str, Any]:
    """Return a device that the kubelet hands over, as the annotation lists it."""
    found = {"devnode": f"/dev/ttyUSB{number}", "serial": f"DW{number}", "id": f"dw{number}", "publish": "devicePlugin"}
    return found | ({"lost": "2026-01-02T03:04:05Z"} if lost else {})


def advertise(cluster: Site, name: str, entries: list[dict[str, Any]], capacity: int, allocatable: int) -> None:
    """Let a Node show this of the resource."""
    cluster.nodes[name]["metadata"]["annotations"][ANNOTATION] = json.dumps({RESOURCE: entries})
    cluster.nodes[name]["status"]["capacity"][RESOURCE] = str(capacity)
    cluster.nodes[name]["status"]["allocatable"][RESOURCE] = str(allocatable)


def running(name: str, *has: str, count: int = 1) -> dict[str, Any]:
    """Return a pod that runs on n1, with the IDs that its status names."""
    return pod(name, {RESOURCE: count}, node="n1", phase="Running", has=has)


@pytest.fixture
def alone(cluster: Site) -> Site:
    """Return a cluster with one Node."""
    del cluster.nodes["n2"]
    return cluster


def test_an_entry_without_a_devnode_only_tells_the_way(alone: Site) -> None:
    """A resource without a device is published in its way all the same, and has none behind it."""
    advertise(alone, "n1", [{"publish": "devicePlugin"}], 0, 0)
    shown = status(alone)
    assert shown.rows == [["n1", RESOURCE, "devicePlugin", "0", "0", "0", "-", "-"]]
    assert shown.err == []
    assert status(alone, "json").resources[0]["devices"] == []


def test_a_device_of_several_devnodes_is_one(alone: Site) -> None:
    """In the table; a document lists every devnode. Two sticks with one serial are two."""
    modem = [{**stick(number), "serial": "M", "id": "m"} for number in (1, 2)]
    advertise(alone, "n1", [*modem, {**stick(3), "serial": "M"}], 2, 2)
    assert status(alone).rows[0][-2:] == ["M,", "M"]
    assert [each["id"] for each in status(alone, "json").resources[0]["devices"]] == ["m", "m", "dw3"]


def test_who_holds_what_is_said_where_the_pods_say_it(alone: Site) -> None:
    """The status of a pod names its devices from Kubernetes 1.36 on. Where one does not, a device that none names may be held."""
    advertise(alone, "n1", [stick(1), stick(2)], 2, 2)
    alone.pods = [running("a", "dw2")]
    assert status(alone).out.splitlines()[1].endswith("DW1, DW2 (held by default/a)")
    (row,) = status(alone, "json").resources
    assert [each["holders"] for each in row["devices"]] == [[], ["default/a"]]
    assert [each["devices"] for each in row["pods"]] == [["dw2"]]
    alone.pods.append(running("b"))
    (row,) = status(alone, "json").resources
    assert [each["holders"] for each in row["devices"]] == [None, ["default/a"]]
    assert [each["devices"] for each in row["pods"]] == [["dw2"], None]
    alone.unlisted = LISTED
    assert [each["holders"] for each in status(alone, "json").resources[0]["devices"]] == [None, None]


def test_one_resource_published_in_two_ways_is_told_once(cluster: Site) -> None:
    """A pod that mounts /dev is not one that gets its stick from the kubelet. Each row of a document has the line."""
    advertise(cluster, "n1", [stick(1)], 1, 1)
    line = f"{RESOURCE} is published as devicePlugin on n1 and nodeStatus on n2: "
    line += "a pod for one way does not find its device on the nodes of the other"
    assert status(cluster).err == [f"warning: {line}"]
    assert [row["warnings"] for row in status(cluster, "json").resources] == [[line], [line]]


WHERE = f"warning: {RESOURCE} on n1: "
CURE = ": end that pod, or plug the device in again"


@pytest.mark.parametrize(
    ("pods", "keeper"),
    [
        ([running("a", "dw1"), running("b")], "default/a"),
        ([running("a"), running("b", "dw2")], "default/a"),
        ([running("a"), running("b")], "one of default/a, default/b"),
    ],
)
def test_a_lost_device_names_who_keeps_it(pods: list[dict[str, Any]], keeper: str, alone: Site) -> None:
    """The pod whose status names it, else those that may have it. All present ones are in use: it blocks none."""
    advertise(alone, "n1", [stick(1, lost=True), stick(2)], 2, 1)
    alone.pods = pods
    assert status(alone).err[0] == f"{WHERE}DW1 is lost and kept by {keeper}{CURE}"


@pytest.mark.parametrize("what", ["DW1", "1 device"])
@pytest.mark.parametrize("waiting", ["", " (waiting: default/b)"])
def test_whom_a_lost_device_blocks(what: str, waiting: str, alone: Site) -> None:
    """Its holder takes a place of the present ones, so that a Pending pod does not get one that is free. It need not be marked."""
    advertise(alone, "n1", [stick(1, lost=what == "DW1"), stick(2)], 2, 1)
    alone.pods = [running("a", "dw1"), *([pod("b", {RESOURCE: 1})] if waiting else [])]
    blocks = f"so 1 device is present and cannot be allocated{waiting}"
    assert status(alone).err == [f"{WHERE}{what} is lost and kept by default/a, {blocks}{CURE}"]


def test_lost_devices_that_no_pod_keeps_are_not_counted_as_kept(alone: Site) -> None:
    """They stay marked until their pods are settled, and are in no figure; of several the pods say which is kept."""
    lost = [stick(number, lost=True) for number in (1, 2, 3)]
    advertise(alone, "n1", lost, 0, 0)
    assert status(alone).err == []
    advertise(alone, "n1", lost, 2, 0)
    alone.pods = [running("a", count=2)]
    assert status(alone).err == [f"{WHERE}2 devices are lost and kept by default/a{CURE}"]
    alone.pods = [running("a", "dw1", "dw3", count=2)]
    assert status(alone).err == [f"{WHERE}DW1, DW3 are lost and kept by default/a{CURE}"]


def test_without_the_right_to_list_pods_a_kept_device_is_still_told(alone: Site) -> None:
    """Its keeper is unknown."""
    advertise(alone, "n1", [stick(1, lost=True)], 1, 0)
    alone.unlisted = LISTED
    assert status(alone).err[1:] == [f"{WHERE}DW1 is lost and kept by a pod that is not shown{CURE}"]


def test_a_lost_device_that_no_pod_can_have_sends_to_the_log(alone: Site) -> None:
    """The daemon has not read yet that no pod has it, or may not."""
    alone.pods = []
    advertise(alone, "n1", [stick(1, lost=True), stick(2)], 2, 1)
    assert status(alone).err == [f"{WHERE}DW1 is lost, and no pod requests it: the log of its daemon says why it stays"]


def test_present_devices_of_which_none_can_be_allocated_are_told(alone: Site) -> None:
    """An ended daemon and a kubelet that has not taken the list over look the same; running holders keep their sticks."""
    alone.pods = [running("a")]
    advertise(alone, "n1", [stick(1, lost=True), stick(2)], 2, 0)
    causes = "it is not registered with the kubelet, or its devices are lost"
    nothing = f"{WHERE}nothing can be allocated: {causes} (the log of its daemon says which)"
    assert status(alone).err == [nothing, f"{WHERE}DW1 is lost and kept by default/a{CURE}"]
    advertise(alone, "n1", [stick(2)], 1, 0)
    assert status(alone).err == [nothing]


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        ({"devnode": "/dev/ttyUSB0"}, ""),
        (stick(1), "it is not registered with the kubelet, "),
    ],
)
def test_a_change_of_way_names_the_pods_that_it_waits_for(entry: dict[str, Any], cause: str, alone: Site) -> None:
    """Both figures are 0 meanwhile, and the annotation keeps the devices of the former way."""
    advertise(alone, "n1", [entry], 0, 0)
    causes = f"{cause}it has left the configuration, its publish or count changes, or a pod has it under a former name"
    start = f"{WHERE}1 device is listed, and none is advertised: {causes} (the log of its daemon says which)"
    assert status(alone).err == [start]
    alone.pods = [running(name) for name in "gfedcba"]
    ends = "default/a, default/b, default/c, default/d, default/e and 2 more"
    assert status(alone).err == [f"{start} and waits for the end of {ends}"]


def test_figures_that_differ_otherwise_are_told_as_they_are(alone: Site) -> None:
    """With nodeStatus both are one figure. With devicePlugin allocatable may be smaller, and a pod beyond capacity has no device."""
    alone.pods = [running("a", count=3)]
    for entry, allocatable in (({"devnode": "/dev/ttyUSB0"}, 0), (stick(1), 2)):
        advertise(alone, "n1", [entry], 1, allocatable)
        assert status(alone).err == [
            f"{WHERE}allocatable {allocatable} differs from capacity 1; the kubelet will settle it",
            f"{WHERE}3 requested, {allocatable} allocatable; a pod runs without its device",
        ]


# -- dynamic resource allocation


def dra_stick(number: int, *, lost: bool = False) -> dict[str, Any]:
    """Return a device of a ResourceSlice, as the annotation lists it."""
    return {**stick(number, lost=lost), "publish": "dra"}


def claim(name: str, *pods: str, device: str = "dw1", node: str = "n1", **more: Any) -> dict[str, Any]:  # noqa: ANN401 - any value
    """Return a ResourceClaim of a device of a node, with the pods that it is reserved for."""
    result = {"request": "r", "driver": "devwatch.io", "pool": f"{node}-devwatch.io", "device": device, **more}
    reserved = [{"resource": "pods", "name": each, "uid": f"uid-{each}"} for each in pods]
    status = {"allocation": {"devices": {"results": [result]}}, "reservedFor": reserved}
    return {"metadata": {"namespace": "default", "name": name, "uid": name}, "status": status}


def asking(name: str, *requests: dict[str, Any]) -> dict[str, Any]:
    """Return a ResourceClaim that is not allocated."""
    named = [{"name": f"r{number}", **request} for number, request in enumerate(requests)]
    return {"metadata": {"namespace": "default", "name": name, "uid": name}, "spec": {"devices": {"requests": named}}}


def exactly(device_class: str = CLASS, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - any value
    """Return a request of a ResourceClaim."""
    return {"exactly": {"deviceClassName": device_class, **more}}


def claiming(name: str, *claims: str, node: str = "n1", phase: str = "Running") -> dict[str, Any]:
    """Return a pod that has its devices through claims alone."""
    made = pod(name, {}, node=node, phase=phase)
    made["spec"]["resourceClaims"] = [{"name": each, "resourceClaimName": each} for each in claims]
    return made


def slice_of(node: str, *devices: dict[str, Any]) -> dict[str, Any]:
    """Return the ResourceSlice of a node."""
    name = f"{node}-devwatch.io"
    metadata = {"name": name, "uid": name, "resourceVersion": "1"}
    pool = {"name": name, "generation": 1, "resourceSliceCount": 1}
    spec = {"driver": "devwatch.io", "nodeName": node, "pool": pool, "devices": devices}
    return {"metadata": metadata, "spec": spec}


def serve_claims(cluster: Site, *claims: dict[str, Any]) -> None:
    """Let the cluster have these claims, and slices that offer all devices."""
    cluster.objects["resourceclaims"] = {each["metadata"]["name"]: each for each in claims}
    devices = [{"name": f"dw{number}"} for number in (1, 2, 3, 4)]
    cluster.objects["resourceslices"] = {node: slice_of(node, *devices) for node in ("n1", "n2")}


def test_devices_in_a_slice_are_not_missed_in_the_figures(cluster: Site) -> None:
    """Both figures are 0 on purpose, whatever the pods request: no warning says that none is advertised, or that a pod has none."""
    for name in ("n1", "n2"):
        advertise(cluster, name, [dra_stick(1), dra_stick(2, lost=True)], 0, 0)
    serve_claims(cluster)
    cluster.pods = [running("a")]
    shown = status(cluster)
    assert shown.rows[0] == ["n1", RESOURCE, "dra", "0", "0", "1", "default/a", "(Running)", "DW1,", "DW2", "(lost)"]
    assert shown.err == []
    devices = status(cluster, "json").resources[0]["devices"]
    assert [(each["publish"], each["holders"]) for each in devices] == [("dra", [])] * 2


def test_who_holds_a_device_of_a_slice_is_what_the_claims_say(cluster: Site) -> None:
    """By node and device, for all pods of a shared claim. Administrative access, another driver and what is not allocated hold nothing."""
    for name in ("n1", "n2"):
        advertise(cluster, name, [dra_stick(1), dra_stick(2)], 0, 0)
    foreign = claim("foreign", "x", driver="gpu.example.com")
    unallocated = {"metadata": {"namespace": "default", "name": "new", "uid": "new"}}
    by_other = claim("other", "b")
    by_other["status"]["reservedFor"].append({"resource": "workloads", "name": "w", "uid": "w"})
    mine = (claim("shared", "a", "b"), claim("own", "c", device="dw2", node="n2"), by_other)
    serve_claims(cluster, *mine, claim("admin", "x", device="dw2", adminAccess=True), foreign, unallocated)
    cluster.pods = [
        pod("a", {RESOURCE: 1}, node="n1", phase="Running"),
        claiming("b", "shared", "other"),
        claiming("c", "own", node="n2", phase="Pending"),
        claiming("d", "own"),
        claiming("x", "admin", "foreign"),
        claiming("e", "new", node="", phase="Pending"),
    ]
    shown = status(cluster)
    assert [" ".join(row[5:]) for row in shown.rows] == [
        "2 default/a (Running), default/b (Running) DW1 (held by default/a, default/b), DW2",
        "1 default/c (Pending) DW1, DW2 (held by default/c)",
    ]
    assert shown.err == []
    first, second = status(cluster, "json").resources
    assert [each["holders"] for each in first["devices"]] == [["default/a", "default/b"], []]
    assert [(each["name"], each["devices"]) for each in first["pods"]] == [("a", ["dw1"]), ("b", ["dw1"])]
    assert [each["holders"] for each in second["devices"]] == [[], ["default/c"]]


@pytest.mark.parametrize(
    ("requests", "count"),
    [
        ([exactly()], 1),
        ([exactly(allocationMode="ExactCount", count=2), exactly("gpu"), exactly()], 3),
        ([exactly(allocationMode="All")], 1),
        ([{"firstAvailable": [{"deviceClassName": "gpu"}, {"deviceClassName": CLASS, "count": 2}]}], 2),
        (
            [
                {
                    "firstAvailable": [
                        {"deviceClassName": CLASS},
                        {"deviceClassName": CLASS, "count": 3},
                        {"deviceClassName": CLASS},
                    ]
                }
            ],
            3,
        ),
    ],
    ids=["one", "several", "all", "an alternative", "several alternatives"],
)
def test_a_pod_that_waits_for_a_claim_has_a_row_without_a_node(
    requests: list[dict[str, Any]], count: int, alone: Site
) -> None:
    """Like one that asks by limits. A claim is for its number of devices, whoever shares it."""
    advertise(alone, "n1", [dra_stick(1)], 0, 0)
    serve_claims(alone, asking("new", *requests))
    alone.pods = [
        claiming("a", "new", node="", phase="Pending"),
        pod("b", {RESOURCE: 1}),
        claiming("c", "new", node="", phase="Pending"),
    ]
    names = "default/a (Pending), default/b (Pending), default/c (Pending)"
    assert [" ".join(row) for row in status(alone).rows[1:]] == [f"- {RESOURCE} - - - {count + 1} {names} -"]
    assert status(alone).err == []


def test_a_claim_that_a_template_made_counts_for_its_pod(alone: Site) -> None:
    """The status of the pod names it."""
    advertise(alone, "n1", [dra_stick(1)], 0, 0)
    serve_claims(alone, asking("a-stick-x7k2p", exactly()))
    waiting = pod("a", {})
    waiting["spec"]["resourceClaims"] = [{"name": "stick", "resourceClaimTemplateName": "t"}]
    waiting["status"]["resourceClaimStatuses"] = [{"name": "stick", "resourceClaimName": "a-stick-x7k2p"}]
    alone.pods = [waiting]
    assert [row["pods"] and row["pods"][0]["name"] for row in status(alone, "json").resources] == [[], "a"]


def test_what_a_claim_requests_counts_once(alone: Site) -> None:
    """Not beside what is reserved, or requested by limits; nor does administrative access, or a class of another driver."""
    advertise(alone, "n1", [dra_stick(1), dra_stick(2)], 0, 0)
    held = {**claim("held", "a"), "spec": asking("held", exactly())["spec"]}
    claims = asking("limits", exactly()), asking("admin", exactly(adminAccess=True)), asking("gpu", exactly("gpu"))
    serve_claims(alone, held, *claims)
    made = pod("b", {RESOURCE: 1})
    made["status"]["extendedResourceClaimStatus"] = {"resourceClaimName": "limits"}
    alone.pods = [
        claiming("a", "held"),
        made,
        *(claiming(each, each, node="", phase="Pending") for each in ("admin", "gpu", "gone")),
        claiming("late", "held", node="", phase="Pending"),
    ]
    assert [
        (row["node"], row["requested"], [each["name"] for each in row["pods"]])
        for row in status(alone, "json").resources
    ] == [
        ("n1", 1, ["a"]),
        (None, 2, ["b", "late"]),
    ]


def test_a_lost_device_of_a_slice_names_who_keeps_it(alone: Site) -> None:
    """All pods of a shared claim are to end. It blocks no other: a claim is for certain devices."""
    advertise(
        alone, "n1", [dra_stick(1, lost=True), dra_stick(2, lost=True), dra_stick(3), dra_stick(4, lost=True)], 0, 0
    )
    serve_claims(alone, claim("one", "a"), claim("two", "b", "a", device="dw2"), claim("three", "c", device="dw3"))
    alone.pods = [claiming("a", "one", "two"), claiming("b", "two"), claiming("c", "three")]
    assert status(alone).err == [
        f"{WHERE}DW1 is lost and kept by default/a{CURE}",
        f"{WHERE}DW2 is lost and kept by default/a, default/b: end these pods, or plug the device in again",
    ]


TAINT = {"key": "devwatch.io/unplugged", "effect": "NoSchedule"}
UNOFFERED = "its publish or count changes, or the API server has refused the slice"


@pytest.mark.parametrize(
    ("devices", "pods", "text"),
    [
        (
            [{"name": "dw1"}, {"name": "dw2", "taints": [TAINT]}],
            [],
            f"1 device is listed, and not offered by the ResourceSlice: {UNOFFERED}",
        ),
        (
            None,
            [claiming("a", "one")],
            f"2 devices are listed, and not offered by the ResourceSlice: {UNOFFERED} and waits for the end of default/a",
        ),
    ],
    ids=["one of them", "no slice, with a pod"],
)
def test_a_device_that_no_slice_offers_is_told(
    devices: list[dict[str, Any]] | None, pods: list[dict[str, Any]], text: str, alone: Site
) -> None:
    """While the way of publishing changes, until the pods of the former way have ended."""
    advertise(alone, "n1", [dra_stick(1), dra_stick(2)], 0, 0)
    serve_claims(alone, claim("one", "a"))
    alone.objects["resourceslices"] = {} if devices is None else {"n1": slice_of("n1", *devices)}
    alone.pods = pods
    assert status(alone).err == [f"{WHERE}{text}"]


CLAIMS = 'resourceclaims.resource.k8s.io is forbidden: User "u" cannot list resource "resourceclaims" in API group "resource.k8s.io"'


@pytest.mark.parametrize("served", [True, False])
def test_without_claims_their_holders_are_unknown(served: bool, cluster: Site) -> None:  # noqa: FBT001 - a case
    """One line says so, though two nodes have such devices: the permission is missing, or the server too old."""
    for name in ("n1", "n2"):
        advertise(cluster, name, [dra_stick(1, lost=True)], 0, 0)
    if served:
        serve_claims(cluster, claim("one", "a"))
        cluster.forbidden["GET", "resourceclaims"] = f"{CLAIMS} at the cluster scope"
    cluster.pods = [running("a")]
    (line,) = status(cluster).err
    assert line.startswith("warning: the holders of devices with publish: dra are not shown: ")
    assert ("kubectl create clusterrole" if served else "does not serve resource.k8s.io/v1") in line
    first, _ = status(cluster, "json").resources
    assert ([each["holders"] for each in first["devices"]], first["pods"][0]["devices"]) == ([None], None)


def test_claims_are_no_matter_without_such_a_resource(cluster: Site) -> None:
    """What is not used needs no permission."""
    serve_claims(cluster)
    cluster.forbidden["GET", "resourceclaims"] = CLAIMS
    assert status(cluster).err == []


def test_holders_are_known_from_claims_where_the_pods_are_not(alone: Site) -> None:
    """A claim names its pods; what they request besides is unknown."""
    advertise(alone, "n1", [dra_stick(1, lost=True)], 0, 0)
    serve_claims(alone, claim("one", "a"))
    alone.unlisted = LISTED
    assert status(alone).err[1:] == [f"{WHERE}DW1 is lost and kept by default/a{CURE}"]
    (row,) = status(alone, "json").resources
    assert (row["requested"], row["pods"], row["devices"][0]["holders"]) == (None, None, ["default/a"])


@pytest.mark.parametrize(
    "broken",
    [
        {"status": {"reservedFor": [{"resource": "pods"}]}},
        {"status": {"allocation": 1}},
        {"spec": {"devices": {"requests": [{"exactly": {"count": 1}}]}}},
        {"spec": {"devices": {"requests": [exactly(count="two")]}}},
    ],
)
def test_what_is_no_claim_is_not_taken_for_one(broken: dict[str, Any], alone: Site) -> None:
    """A proxy may answer: the command fails with one line."""
    advertise(alone, "n1", [dra_stick(1)], 0, 0)
    serve_claims(alone)
    alone.objects["resourceclaims"] = {"x": {"metadata": {"namespace": "default", "name": "x", "uid": "x"}, **broken}}
    with pytest.raises(Unavailable, match="an item is not a ResourceClaim"):
        status(alone)
