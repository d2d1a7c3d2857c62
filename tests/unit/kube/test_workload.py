"""Pods, evictions and Events as requests: what is asked, what is sent, and that no odd answer is taken for an empty one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from devwatch.core.errors import Retry
from devwatch.core.pods import Container, Phase, Pod
from devwatch.kube.pods import Event, Workload, list_all, pod_of
from devwatch.kube.responses import MAX_ANSWER
from support import virtualtime
from support.build import ZIGBEE

if TYPE_CHECKING:
    from collections.abc import Sequence


class Pages:
    """A connection that answers with what it was given, in order, and keeps what it was asked."""

    def __init__(self, *answers: object) -> None:
        """Have these answers."""
        self.answers = list(answers)
        self.asked: list[tuple[str, str, Sequence[tuple[str, str]], Any]] = []

    async def request(
        self, method: str, path: str, *, query: Sequence[tuple[str, str]] = (), body: object = None
    ) -> dict[str, Any]:
        """Answer."""
        self.asked.append((method, path, query, body))
        return self.answers.pop(0)  # type: ignore[return-value]  # also what no server should answer


def item(**spec: object) -> dict[str, Any]:
    """Return a Pod as the server sends it."""
    return {"metadata": {"namespace": "home", "name": "p", "uid": "1"}, "spec": spec}


def wants(number: str, **fields: object) -> dict[str, object]:
    """Return a container that requests devices."""
    return {"resources": {"limits": {ZIGBEE: number, "cpu": "100m"}}, **fields}


POD = Pod(namespace="home", name="p", uid="1")


def test_all_pages_of_the_nodes_own_pods_are_read() -> None:
    """By a field selector, in bounded pages."""
    pages = Pages({"items": [item()], "metadata": {"continue": "next"}}, {"items": [item(), item()]})
    pods = virtualtime.run(Workload(requests=pages, node="n").pods)
    assert len(pods) == 3
    selector, limit = ("fieldSelector", "spec.nodeName=n"), ("limit", "50")
    assert [query for _, _, query, _ in pages.asked] == [(selector, limit), (selector, limit, ("continue", "next"))]


def test_a_page_of_large_objects_is_not_too_large_to_be_read() -> None:
    """A Node that lists fifty images and who wrote each field takes tens of KiB: a page has room for 128 KiB an object."""
    pages = Pages({"items": []})

    async def read() -> list[dict[str, Any]]:
        return [each async for each in list_all(pages, "/api/v1/nodes")]

    assert virtualtime.run(read) == []
    ((_, _, query, _),) = pages.asked
    assert int(dict(query)["limit"]) * 128 * 1024 <= MAX_ANSWER


@pytest.mark.parametrize("answer", [{"items": []}, {"items": None, "metadata": {}}])
def test_a_list_without_pods_is_empty(answer: dict[str, object]) -> None:
    """Go writes an empty list as null."""
    assert virtualtime.run(Workload(requests=Pages(answer), node="n").pods) == ()


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"kind": "Status"},
        {"items": "x"},
        {"items": {}},
        {"items": ["x"]},
        {"items": [{}]},
        {"items": [], "metadata": "x"},
    ],
)
def test_what_is_no_list_of_pods_is_an_error(answer: dict[str, object]) -> None:
    """Taken for an empty one, it would settle the loss and evict nobody."""
    with pytest.raises(Retry):
        virtualtime.run(Workload(requests=Pages(answer), node="n").pods)


def test_a_pod_is_read_as_far_as_an_eviction_depends_on_it() -> None:
    """Requests, hostPaths, the controlling owner and what exempts it."""
    content = item(
        containers=[wants("1"), {"resources": {"requests": {ZIGBEE: "1"}}}, {}],
        initContainers=[wants("1", restartPolicy="Always"), wants("1k")],
        volumes=[{"name": "a", "hostPath": {"path": "/dev/ttyUSB0"}}, {"name": "b", "emptyDir": {}}],
        nodeName="n",
    )
    content["metadata"] |= {
        "ownerReferences": [{"kind": "Other"}, {"kind": "ReplicaSet", "controller": True}],
        "annotations": {"kubernetes.io/config.mirror": ""},
        "deletionTimestamp": "2024-01-01T00:00:00Z",
    }
    content["status"] = {"phase": "Running", "startTime": "2024-01-01T00:00:00Z"}
    found = pod_of(content)
    assert len(found.containers) == 5
    assert replace(found, containers=()) == Pod(
        namespace="home",
        name="p",
        uid="1",
        requests={ZIGBEE: 1001},
        node="n",
        host_paths=("/dev/ttyUSB0",),
        owner="ReplicaSet",
        mirror=True,
        terminating=True,
    )
    assert pod_of(item()) == Pod(namespace="home", name="p", uid="1", phase="Unknown", started=False)


def test_the_devices_that_a_status_names_are_read() -> None:
    """From 1.36 the kubelet reports which device a container has; init containers included."""
    content = item()
    named = [{"name": ZIGBEE, "resources": [{"resourceID": "a", "health": "Healthy"}, {"resourceID": "b"}]}]
    content["status"] = {
        "containerStatuses": [{"name": "c", "allocatedResourcesStatus": named}, {"name": "d"}],
        "initContainerStatuses": [
            {"name": "i", "allocatedResourcesStatus": [{"name": ZIGBEE, "resources": [{"resourceID": "c"}]}]}
        ],
    }
    assert pod_of(content).devices == {ZIGBEE: frozenset("abc")}


def test_the_claims_of_a_pod_are_read() -> None:
    """Those that its spec names, that were made from a template, and that the scheduler has made for an extended resource."""
    content = item()
    content["spec"]["resourceClaims"] = [
        {"name": "a", "resourceClaimName": "shared"},
        {"name": "b", "resourceClaimTemplateName": "template"},
    ]
    content["status"] = {
        "resourceClaimStatuses": [{"name": "b", "resourceClaimName": "p-b-x7"}, {"name": "c"}],
        "extendedResourceClaimStatus": {"resourceClaimName": "p-extended", "requestMappings": []},
    }
    assert pod_of(content).claims == {"shared", "p-b-x7", "p-extended"}


MOUNTS = [{"name": "dev", "mountPath": "/host/dev"}, {"name": "data", "mountPath": "/data"}]
VOLUMES = [{"name": "dev", "hostPath": {"path": "/dev"}}, {"name": "data", "emptyDir": {}}]
START = "2027-01-15T08:00:00Z"


@pytest.mark.parametrize(
    ("state", "phase", "started"),
    [
        ({"running": {"startedAt": START}}, Phase.RUNNING, 1_800_000_000),
        ({"running": {"startedAt": None}}, Phase.RUNNING, None),
        ({"running": {"startedAt": "yesterday"}}, Phase.RUNNING, None),
        ({"running": {}}, Phase.RUNNING, None),
        ({"waiting": {"reason": "CrashLoopBackOff"}}, Phase.WAITING, None),
        ({"terminated": {"startedAt": START}}, Phase.FINISHED, None),
        ({}, Phase.WAITING, None),
        (None, Phase.WAITING, None),
    ],
)
@pytest.mark.parametrize("kind", ["container", "initContainer", "ephemeralContainer"])
def test_a_container_is_read_with_what_it_mounts_and_when_it_started(
    kind: str, state: dict[str, Any] | None, phase: Phase, started: int | None
) -> None:
    """Of every kind; without a status it is about to start. Of its mounts, those of the host are read."""
    content = item(volumes=VOLUMES, **{f"{kind}s": [{"name": "c", "volumeMounts": MOUNTS}, {"name": "d"}]})
    content["status"] = {f"{kind}Statuses": [{"name": "c", "state": state}, {"name": "d"}]}
    expected = Container(name="c", mounts=("/dev/",), phase=phase, started=started)
    assert pod_of(content).containers == (expected, Container(name="d", phase=Phase.WAITING))


def test_a_sub_path_is_a_path_of_the_host() -> None:
    """A container may mount one device of a directory that is a volume."""
    content = item(volumes=VOLUMES, containers=[{"name": "c", "volumeMounts": [{**MOUNTS[0], "subPath": "ttyUSB0"}]}])
    assert [container.mounts for container in pod_of(content).containers] == [("/dev/ttyUSB0",)]


@pytest.mark.parametrize(
    ("conditions", "scheduled"),
    [
        ([{"type": "PodScheduled", "status": "True", "lastTransitionTime": START}], START),
        ([{"type": "PodScheduled", "status": "False", "lastTransitionTime": START}], "2020-01-01T00:00:00Z"),
        ([{"type": "Ready", "status": "True", "lastTransitionTime": START}], "2020-01-01T00:00:00Z"),
        (None, "2020-01-01T00:00:00Z"),
        ([{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2027-01-15T08:00:00.5+01:00"}], ""),
    ],
)
def test_a_pod_is_dated_by_its_binding_else_by_its_creation(
    conditions: list[dict[str, str]] | None, scheduled: str
) -> None:
    """In the form in which dates compare as text, or not at all."""
    content = item()
    content["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
    content["status"] = {"conditions": conditions}
    assert pod_of(content).scheduled == scheduled


def test_an_eviction_names_the_pod_by_its_uid() -> None:
    """policy/v1, so that no other pod of the same name is evicted."""
    pages = Pages({"kind": "Status", "status": "Success"})
    virtualtime.run(lambda: Workload(requests=pages, node="n").evict(POD))
    ((method, path, _, body),) = pages.asked
    assert (method, path) == ("POST", "/api/v1/namespaces/home/pods/p/eviction")
    assert body["apiVersion"] == "policy/v1"
    assert body["deleteOptions"] == {"preconditions": {"uid": "1"}}


@pytest.mark.parametrize("answer", [{}, {"kind": "Status", "status": "Failure"}, {"kind": "Pod", "status": {}}])
def test_what_says_nothing_of_success_is_no_eviction(answer: object) -> None:
    """A proxy's page with status 200: the pod goes on, and nobody may be told that it was evicted."""
    with pytest.raises(Retry, match="not a success"):
        virtualtime.run(lambda: Workload(requests=Pages(answer), node="n").evict(POD))


def test_a_long_name_leaves_a_name_for_an_event() -> None:
    """Cut where a label ends, it is a DNS subdomain all the same (RFC 1123)."""
    pages = Pages({})
    pod = Pod(namespace="home", name=f"{'a' * 199}-{'b' * 20}", uid="1")
    virtualtime.run(lambda: Workload(requests=pages, node="n").record(Event(reason="R", message="m", pod=pod)))
    assert pages.asked[0][3]["metadata"]["name"].startswith(f"{'a' * 199}.")


@pytest.mark.parametrize(
    ("pod", "namespace", "kind", "uid"), [(None, "default", "Node", "n"), (POD, "home", "Pod", "1")]
)
def test_an_event_is_about_the_node_or_a_pod(pod: Pod | None, namespace: str, kind: str, uid: str) -> None:
    """In the namespace where the API server wants it, cut to what it takes, under a name of its own."""
    pages = Pages({}, {})
    work = Workload(requests=pages, node="n")
    for warning in (True, False):
        virtualtime.run(work.record(Event(reason="R", message="m" * 5000, warning=warning, pod=pod)))
    (_, path, _, first), (_, _, _, second) = pages.asked
    assert path == f"/api/v1/namespaces/{namespace}/events"
    assert (first["type"], second["type"]) == ("Warning", "Normal")
    assert (first["involvedObject"]["kind"], first["involvedObject"]["uid"]) == (kind, uid)
    assert first["metadata"]["namespace"] == namespace
    assert len(first["message"]) <= 1024
    assert first["metadata"]["name"] != second["metadata"]["name"]
