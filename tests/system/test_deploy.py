"""The manifests on a real API server: taken as they are, and what the daemon's account may do with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest

from support.deployment import BASE, DEPLOY, documented_block, granted, missing, rendered, write_kustomization
from system.apiserver import NAMESPACE
from system.kubectl import administrator
from system.testbed import require
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from system.apiserver import ApiServer, Object
    from system.kubectl import Kubectl

    Apply = Callable[..., Path]
    Shell = Callable[[str], str]

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
    return administrator(apiserver)


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


@pytest.fixture
def shell(tmp_path: Path, apiserver: ApiServer) -> Shell:
    """Return a function that runs documented commands as administrator, in a folder with `deploy`, and returns what they print."""
    require(missing())
    (tmp_path / "deploy").symlink_to(DEPLOY)
    environ = {**os.environ, "KUBECONFIG": str(apiserver.admin_kubeconfig)}

    def run(commands: str) -> str:
        shell = ["bash", "-euo", "pipefail", "-c", commands]
        done = subprocess.run(
            shell, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def controllers(apiserver: ApiServer) -> Iterator[None]:
    """Have a scheduler and the controllers, which make pods of a DaemonSet, tokens of a Secret, and an end of a namespace."""
    apiserver.start_scheduler()
    apiserver.start_controller_manager()
    yield
    apiserver.stop_control()


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


@pytest.fixture
def units(apiserver: ApiServer) -> Iterator[None]:
    """Delete afterwards what the documented commands make for units."""
    yield
    name = "devwatch-units"
    for path in (f"{RBAC}/clusterrolebindings/{name}", f"{RBAC}/clusterroles/{name}", f"/api/v1/namespaces/{name}"):
        apiserver.request("DELETE", path)


@pytest.mark.usefixtures("controllers", "units")
def test_a_kubeconfig_for_units_leaves_a_daemonset_alone(
    apply: Apply, shell: Shell, apiserver: ApiServer, namespace: str
) -> None:
    """The documented commands, beside an installation in another namespace: its account keeps its rights, and the new one has them."""
    again = f"kubectl apply -k {apply()}"
    shell(documented_block("set-credentials"))
    assert [line for line in shell(again).splitlines() if not line.endswith(" unchanged")] == []
    eventually(lambda: ("nodes/status", "patch") in _allowed(apiserver, namespace, "default"))
    node = f"unit-{uuid.uuid4().hex[:6]}"
    apiserver.create_node(node)
    try:
        run = f"run --once --config deploy/base/config.yaml --node-name {node}"
        for command in (run, "status"):
            shell(f"{sys.executable} -m devwatch {command} --kubeconfig kubeconfig")
        # Other tests plug sticks of the other resource into this machine meanwhile.
        assert apiserver.node(node)["status"]["capacity"]["rfxcom/rfxtrx433"] == "0"
    finally:
        apiserver.delete_node(node)


class Site:
    """The daemon's pods on a node that runs, where the test does what a kubelet does, and on one that is off."""

    def __init__(self, apiserver: ApiServer, namespace: str) -> None:
        """Make the Nodes."""
        self._apiserver = apiserver
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self.on, self.off = (f"{kind}-{uuid.uuid4().hex[:6]}" for kind in ("on", "off"))
        for name in (self.on, self.off):
            apiserver.create_node(name)
            self._patch(f"/api/v1/nodes/{name}", {"metadata": {"labels": {"kubernetes.io/os": "linux"}}})

    def images(self) -> dict[str, str]:
        """Let the kubelet work, and return the image of the daemon on each node."""
        found = {}
        for pod in self._apiserver.request("GET", self._pods)[1]["items"]:
            path, node = f"{self._pods}/{pod['metadata']['name']}", pod["spec"].get("nodeName")
            if node == self.on and "deletionTimestamp" in pod["metadata"]:
                self._apiserver.request("DELETE", f"{path}?gracePeriodSeconds=0")
            elif node == self.on and pod["status"]["phase"] == "Pending":
                ready = [{"type": "Ready", "status": "True"}]
                self._patch(f"{path}/status", {"status": {"phase": "Running", "conditions": ready}})
            elif node:
                found[node] = pod["spec"]["containers"][0]["image"]
        return found

    def close(self) -> None:
        """Delete the Nodes, and the pods on them."""
        for pod in self._apiserver.request("GET", self._pods)[1]["items"]:
            self._apiserver.request("DELETE", f"{self._pods}/{pod['metadata']['name']}?gracePeriodSeconds=0")
        for name in (self.on, self.off):
            self._apiserver.delete_node(name)

    def _patch(self, path: str, body: Object) -> None:
        kind = "application/strategic-merge-patch+json"
        status, answer = self._apiserver.request("PATCH", path, body, content_type=kind)
        assert status in {200, 404}, answer  # a pod may be gone by now


@pytest.fixture
def site(controllers: None, apiserver: ApiServer, namespace: str) -> Iterator[Site]:  # noqa: ARG001  they have to run, and have nothing to say
    """Return two nodes, one of which is off."""
    made = Site(apiserver, namespace)
    yield made
    made.close()


def test_a_node_that_is_off_holds_up_neither_an_update_nor_the_removal(
    apply: Apply, shell: Shell, site: Site, apiserver: ApiServer, namespace: str
) -> None:
    """The other daemons are replaced; the commands under "Uninstall" end at once, and end the pod that no kubelet will end."""
    folder = apply()
    eventually(lambda: site.images().keys() == {site.on, site.off})
    shell(f"kubectl -n {namespace} set image daemonset/devwatch devwatch=devwatch/devwatch:next")
    eventually(lambda: site.images().get(site.on) == "devwatch/devwatch:next")
    remove = next(
        line for line in documented_block("kubectl delete -k").splitlines() if line.startswith("kubectl delete")
    )
    shell(remove.replace("deploy/mine", str(folder)))
    eventually(lambda: site.images().keys() == {site.off})
    force = documented_block("spec.nodeName=NODE").replace("NODE", site.off).replace("-n devwatch", f"-n {namespace}")
    shell(force)
    eventually(lambda: apiserver.request("GET", f"/api/v1/namespaces/{namespace}")[0] == 404)


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
