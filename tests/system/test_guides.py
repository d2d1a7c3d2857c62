"""The pages for clusters and applications on a real API server, and that what the chart prints is what the server keeps."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

import pytest

from deploy.test_chart import chart, switched, templated
from project.test_guides import FOREIGN
from support import guides
from support.guides import GUIDES
from system.kubectl import administrator

helm = pytest.importorskip("helm_python", reason="needs helm-python-sdk, which has wheels for x86_64 and aarch64 alone")

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helm_python import Chart

    from system.apiserver import ApiServer, Object
    from system.kubectl import Kubectl

__all__ = ["chart"]  # a fixture

pytestmark = pytest.mark.system

SWITCHES = ("device-plugin", "dra", "eviction", "events", "monitoring")
"""The components whose kinds every API server has; `unprivileged` and `patch-only` take away what these have."""
OPERATOR = {"podMonitor": {"enabled": False}, "rules": {"enabled": False}}
"""Parts of the monitoring that need the Prometheus operator."""


@pytest.fixture
def kubectl(apiserver: ApiServer) -> Kubectl:
    """Return a function that runs kubectl as administrator and returns what it prints."""
    return administrator(apiserver)


@pytest.fixture
def namespace(apiserver: ApiServer) -> Iterator[str]:
    """Return the name of a namespace for one test, which is deleted afterwards."""
    name = f"guide-{uuid.uuid4().hex[:6]}"
    make(apiserver, name)
    yield name
    apiserver.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def account(apiserver: ApiServer) -> Iterator[None]:
    """Have the account that a Pod without one gets, in the namespace `default`: only the controller manager would make it."""
    make(apiserver, "default")  # which a server that has just started may not have yet
    path = "/api/v1/namespaces/default/serviceaccounts"
    # 1.20 refuses a Pod whose account has no token to mount yet.
    body = {"metadata": {"name": "default"}, "automountServiceAccountToken": False}
    status, answer = apiserver.request("POST", path, body)
    assert status in {201, 409}, answer
    yield
    if status == 201:
        apiserver.request("DELETE", f"{path}/default")


def make(apiserver: ApiServer, namespace: str) -> None:
    """Have a namespace; one that is there stays."""
    status, answer = apiserver.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    assert status in {201, 409}, answer


def as_list(objects: list[Object]) -> str:
    """Return objects as one that kubectl takes."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


def served(objects: list[Object]) -> list[Object]:
    """Return the objects of Kubernetes itself."""
    return [item for item in objects if f"{item['apiVersion']}/{item['kind']}" not in FOREIGN]


@pytest.mark.parametrize("page", GUIDES)
@pytest.mark.usefixtures("account")
def test_the_server_takes_every_manifest(page: str, apiserver: ApiServer, kubectl: Kubectl, tmp_path: Path) -> None:
    """Those of the page and those that its kustomization makes, in a dry run: nothing is stored."""
    for objects in map(served, (guides.objects(page), guides.kustomized(page, tmp_path))):
        for name in {item["metadata"].get("namespace", "default") for item in objects}:
            make(apiserver, name)  # a dry run makes none, and what is in it would be refused
        if objects:
            printed = kubectl("apply", "--dry-run=server", "-f", "-", given=as_list(objects))
            assert len(printed.splitlines()) == len(objects)
            assert [line for line in printed.splitlines() if not line.endswith("(server dry run)")] == []


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"ports": [{"port": 1, "nme": "x"}]}, "nme"),
        ({"ports": [{"port": 99999}]}, "99999"),
        ({"ports": [{"port": "x"}]}, "port"),
    ],
    ids=["unknown", "forbidden", "type"],
)
def test_the_server_refuses_what_is_broken(spec: Object, words: str, kubectl: Kubectl) -> None:
    """An unknown field, a value that only the server knows to be wrong, a wrong type."""
    item = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": spec}
    with pytest.raises(AssertionError, match=words):
        kubectl("apply", "--dry-run=server", "-f", "-", given=as_list([item]))


@pytest.fixture
def printed(chart: Chart, apiserver: ApiServer, kubectl: Kubectl, namespace: str) -> Iterator[list[Object]]:
    """Return what the chart prints with all components whose kinds this server has; what is applied of it is deleted afterwards."""
    kinds = {
        item["kind"]
        for item in apiserver.request("GET", "/apis/admissionregistration.k8s.io/v1")[1].get("resources", ())
    }
    policy = ["admission-policy"] if "ValidatingAdmissionPolicy" in kinds else []
    values = switched(*SWITCHES, *policy)
    values["monitoring"] |= OPERATOR
    objects = templated(chart, values, namespace=namespace)
    yield objects
    kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", given=as_list(objects))


@pytest.mark.parametrize("how", [(), ("--server-side",)], ids=["plain", "server-side"])
def test_what_the_chart_prints_is_in_sync_once_it_is_applied(
    how: tuple[str, ...], printed: list[Object], kubectl: Kubectl
) -> None:
    """`kubectl diff` finds nothing, in either form: an Application stays Synced, a HelmRelease does not drift."""
    text = as_list(printed)
    kubectl("apply", *how, "-f", "-", given=text)
    assert kubectl("diff", *how, "-f", "-", given=text) == ""


def test_the_server_keeps_each_field_as_the_chart_prints_it(printed: list[Object], kubectl: Kubectl) -> None:
    """Read back, object by object; what the server adds by itself is not compared."""
    kubectl("apply", "-f", "-", given=as_list(printed))
    stored = json.loads(kubectl("get", "-o", "json", "-f", "-", given=as_list(printed)))["items"]
    assert len(stored) == len(printed)
    for wanted, found in zip(printed, stored, strict=True):
        assert list(differences(wanted, found, f"{wanted['kind']}/{wanted['metadata']['name']}")) == []


@pytest.mark.usefixtures("account")
def test_a_field_that_the_server_changes_is_found(kubectl: Kubectl) -> None:
    """A quantity in another form than its own is stored in that, and an Application with it would never be in sync."""
    only = {"name": "x", "image": "x", "resources": {"limits": {"memory": "1024Mi"}}}
    item = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [only]}}
    stored = json.loads(kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", given=json.dumps(item)))
    assert list(differences(item, stored, "x")) == ["x.spec.containers[0].resources.limits.memory: 1024Mi -> 1Gi"]


@pytest.mark.parametrize(
    ("wanted", "found", "said"),
    [
        ({"a": {"b": 1}}, {"a": {}}, "x.a.b: 1 -> None"),
        ({"a": []}, {"a": [1]}, "x.a: [] -> [1]"),
        ({"a": [1, 2]}, {"a": [2, 1]}, "x.a[0]: 1 -> 2"),
        ({"a": "1"}, {"a": 1}, "x.a: 1 -> 1"),
    ],
)
def test_a_difference_has_its_place(wanted: Object, found: Object, said: str) -> None:
    """A field that is dropped, a list that is longer or in another order, another type."""
    assert next(differences(wanted, found, "x")) == said


def differences(wanted: object, found: object, place: str) -> Iterator[str]:
    """Yield what the server has otherwise: of a map what is wanted alone, of a list all, in order."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            yield from differences(value, found.get(key), f"{place}.{key}")
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for index, (each, other) in enumerate(zip(wanted, found, strict=True)):
            yield from differences(each, other, f"{place}[{index}]")
    elif wanted != found:
        yield f"{place}: {wanted} -> {found}"
