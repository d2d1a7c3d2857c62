"""The manifests on a real API server: taken as they are, and what the daemon's account may do with them."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from typing import TYPE_CHECKING

import pytest

from deployment import BASE, granted, missing, rendered, write_kustomization
from system.apiserver import NAMESPACE
from system.testbed import require
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from system.apiserver import ApiServer, Object

    Kubectl = Callable[..., str]
    Apply = Callable[..., Path]

pytestmark = pytest.mark.system

SERVED = ("unprivileged", "patch-only", "events", "eviction")
"""The components whose kinds every API server has."""
POLICY = "/apis/admissionregistration.k8s.io/v1"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
OF_THE_CLUSTER = (
    *(f"{RBAC}/clusterrolebindings/{name}" for name in ("devwatch", "devwatch-events", "devwatch-eviction")),
    *(f"{RBAC}/clusterroles/{name}" for name in ("devwatch", "devwatch-events", "devwatch-eviction")),
    f"{POLICY}/validatingadmissionpolicybindings/devwatch",
    f"{POLICY}/validatingadmissionpolicies/devwatch",
)
"""What is in no namespace."""
QUESTIONS = (
    *(("nodes/status", verb) for verb in ("patch", "update", "get")),
    *(("nodes", verb) for verb in ("get", "list", "watch", "patch", "update", "create", "delete")),
    *(("events", verb) for verb in ("create", "patch", "list")),
    *(("pods", verb) for verb in ("list", "get", "watch", "create", "delete")),
    *(("pods/eviction", verb) for verb in ("create",)),
    *(("pods/exec", verb) for verb in ("create",)),
    *(("secrets", verb) for verb in ("get", "list", "watch")),
    *(("configmaps", verb) for verb in ("get", "update")),
    *(("serviceaccounts/token", verb) for verb in ("create",)),
)
"""What the account is asked for: what it needs, and what a thief of its token would like."""


@pytest.fixture
def kubectl(apiserver: ApiServer) -> Kubectl:
    """Return a function that runs kubectl as administrator and returns what it prints."""
    require(missing())
    environ = {**os.environ, "KUBECONFIG": str(apiserver.admin_kubeconfig)}

    def run(*arguments: str) -> str:
        done = subprocess.run(["kubectl", *arguments], env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def namespace(apiserver: ApiServer) -> Iterator[str]:
    """Return the name of a namespace for one test; it and what belongs to the cluster are deleted afterwards."""
    name = f"deploy-{uuid.uuid4().hex[:6]}"
    yield name
    for path in OF_THE_CLUSTER:
        apiserver.request("DELETE", path)
    apiserver.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def apply(tmp_path: Path, kubectl: Kubectl, namespace: str) -> Apply:
    """Return a function that applies the base with components, in the namespace of the test, and returns the kustomization."""

    def run(*components: str) -> Path:
        folder = tmp_path / uuid.uuid4().hex
        folder.mkdir()
        write_kustomization(folder, *components, namespace=namespace)
        kubectl("apply", "-k", str(folder))
        return folder

    return run


@pytest.mark.parametrize("components", [(), SERVED], ids=["base", "components"])
def test_kubectl_applies_it_as_it_is(
    components: tuple[str, ...], apply: Apply, kubectl: Kubectl, apiserver: ApiServer
) -> None:
    """The server takes every object; a second time there is nothing to change. From 1.30 on it takes the admission policy, too."""
    kinds = {item["kind"] for item in apiserver.request("GET", POLICY)[1]["resources"]}
    if components and "ValidatingAdmissionPolicy" in kinds:
        components = (*components, "admission-policy")
    folder = apply(*components)
    again = kubectl("apply", "-k", str(folder)).splitlines()
    assert len(again) == len(rendered(*components))
    assert [line for line in again if not line.endswith(" unchanged")] == []
    assert kubectl("diff", "-k", str(folder)) == ""


@pytest.mark.usefixtures("namespace")
def test_the_shipped_folder_is_valid_for_the_server(apiserver: ApiServer, kubectl: Kubectl) -> None:
    """`kubectl apply -k deploy/base`, word for word, as the server sees it; nothing is stored."""
    # A dry run makes none, and what is in it would be refused. Other tests use this one, so it stays.
    apiserver.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    printed = kubectl("apply", "--dry-run=server", "-k", str(BASE))
    assert len(printed.splitlines()) == len(rendered())


@pytest.mark.parametrize(
    "components",
    [(), ("patch-only",), ("events",), ("eviction",), ("patch-only", "events", "eviction")],
    ids=lambda names: "+".join(names) or "base",
)
def test_the_account_may_do_what_is_listed_and_nothing_else(
    components: tuple[str, ...], apply: Apply, apiserver: ApiServer, namespace: str
) -> None:
    """By the answer of the API server itself, in every namespace alike."""
    apply(*components)
    wanted = {(resource, verb) for _, resource, verb in granted(rendered(*components))}
    assert wanted <= set(QUESTIONS)
    for where in (namespace, "default"):
        eventually(lambda where=where: _allowed(apiserver, namespace, where) == wanted)  # type: ignore[misc]  # the default binds the loop's value


def test_a_component_that_goes_takes_its_rights_along(apply: Apply, apiserver: ApiServer, namespace: str) -> None:
    """`patch-only`, applied over the base, withdraws the right to watch."""
    apply()
    eventually(lambda: ("nodes", "watch") in _allowed(apiserver, namespace, "default"))
    apply("patch-only")
    eventually(lambda: _allowed(apiserver, namespace, "default") == {("nodes/status", "patch")})


def _allowed(apiserver: ApiServer, account_namespace: str, where: str) -> set[tuple[str, str]]:
    """Return which of the questions the API server answers with yes for the daemon's account."""
    return {question for question in QUESTIONS if _may(apiserver, account_namespace, where, *question)}


def _may(apiserver: ApiServer, account_namespace: str, where: str, resource: str, verb: str) -> bool:
    name, _, subresource = resource.partition("/")
    attributes = {"namespace": where, "resource": name, "subresource": subresource, "verb": verb}
    groups = ["system:authenticated", "system:serviceaccounts", f"system:serviceaccounts:{account_namespace}"]
    review: Object = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{account_namespace}:devwatch",
            "groups": groups,
            "resourceAttributes": attributes,
        },
    }
    status, answer = apiserver.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    assert status == 201, json.dumps(answer)
    return bool(answer["status"]["allowed"])
