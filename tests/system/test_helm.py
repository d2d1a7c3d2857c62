"""The packaged chart, installed by Helm on a real API server: one command, and a namespace that admits the Pods."""

from __future__ import annotations

import runpy
import ssl
import tarfile
import uuid
from typing import TYPE_CHECKING, TypeVar

import pytest
import yaml

from devwatch import __version__
from project.test_release import COMMITTED
from support import release
from support.deployment import DEPLOY
from system import formerrelease, testbed
from system.waiting import eventually

helm = pytest.importorskip("helm_python", reason="needs helm-python-sdk, which has wheels for x86_64 and aarch64 alone")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from helm_python import Config

    from system.apiserver import ApiServer, Object

    Install = Callable[..., Object]

pytestmark = pytest.mark.system

T = TypeVar("T")

ENFORCE = "pod-security.kubernetes.io/enforce"
PATHS = {
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
}


@pytest.fixture
def namespace(apiserver: ApiServer) -> Iterator[str]:
    """Return the name of a namespace that is not there yet."""
    name = f"helm-{uuid.uuid4().hex[:6]}"
    yield name
    apiserver.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    """Return the packaged chart, unpacked, without the bound on the server: the one of the tests may say v0.0.0."""
    with tarfile.open(release.package(tmp_path, COMMITTED)) as archive:
        # Python 3.11 has the filter since 3.11.4 only, 3.12 and 3.13 warn without one.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(tmp_path)  # noqa: S202  an archive of our own making
    metadata = tmp_path / "devwatch" / "Chart.yaml"
    content = yaml.safe_load(metadata.read_text("utf-8"))
    del content["kubeVersion"]
    metadata.write_text(yaml.safe_dump(content), encoding="utf-8")
    return tmp_path / "devwatch"


@pytest.fixture
def config(apiserver: ApiServer, namespace: str) -> Iterator[Config]:
    """Return Helm for one namespace; the release is uninstalled afterwards."""
    with helm.Config(kubeconfig_path=apiserver.admin_kubeconfig, namespace=namespace) as made:
        yield made
        made.uninstall("devwatch", ignore_not_found=True)


@pytest.fixture
def install(chart: Path, config: Config, namespace: str) -> Install:
    """Return a function that does what `helm install devwatch ... --create-namespace` does, and returns what is stored of it."""

    def run(**values: object) -> Object:
        config.install(str(chart), "devwatch", values, namespace=namespace, create_namespace=True)
        stored: Object = config.get_all("devwatch")
        return stored

    return run


def found(apiserver: ApiServer, namespace: str) -> Object:
    """Return the metadata of the Namespace."""
    status, body = apiserver.request("GET", f"/api/v1/namespaces/{namespace}")
    assert status == 200, body
    metadata: Object = body["metadata"]
    return metadata


def notes(stored: Object) -> str:
    """Return what Helm prints at the end."""
    return str(stored["info"]["notes"])


def pod_security(apiserver: ApiServer, namespace: str) -> Mapping[str, str]:
    """Return the labels of the Namespace that are not Helm's own (`name`) or the server's."""
    labels = found(apiserver, namespace).get("labels", {})
    return {name: level for name, level in labels.items() if name.startswith("pod-security.")}


def make(apiserver: ApiServer, namespace: str, labels: Mapping[str, str]) -> None:
    """Have the namespace there before."""
    body = {"metadata": {"name": namespace, "labels": dict(labels)}}
    status, answer = apiserver.request("POST", "/api/v1/namespaces", body)
    assert status == 201, answer


def test_a_namespace_that_helm_makes_admits_the_pods(
    install: Install, apiserver: ApiServer, namespace: str, chart: Path, config: Config
) -> None:
    """By its label, from the one command; an upgrade leaves it, and an uninstall keeps the namespace."""
    assert "the labels of the namespace" in notes(install())
    assert found(apiserver, namespace)["labels"][ENFORCE] == "privileged"
    config.upgrade(str(chart), "devwatch", {"logLevel": "debug"}, namespace=namespace)
    assert "the labels of the namespace" in notes(config.get_all("devwatch"))
    assert found(apiserver, namespace)["labels"][ENFORCE] == "privileged"
    config.uninstall("devwatch")
    assert "deletionTimestamp" not in found(apiserver, namespace)


@pytest.mark.parametrize("labels", [{}, {ENFORCE: "privileged"}], ids=["unlabelled", "labelled"])
def test_a_namespace_that_was_there_is_left_alone(
    labels: Mapping[str, str], install: Install, apiserver: ApiServer, namespace: str
) -> None:
    """The notes say what to type where its labels do not admit the Pods, and nothing where they do."""
    make(apiserver, namespace, labels)
    said = notes(install())
    assert pod_security(apiserver, namespace) == labels
    assert ("ACTION NEEDED" in said) == (not labels)
    assert (f"kubectl label namespace {namespace} {ENFORCE}=privileged" in said) == (not labels)


def test_a_namespace_that_would_refuse_the_pods_is_refused(
    install: Install, apiserver: ApiServer, namespace: str
) -> None:
    """With what to type, before anything is installed; and not where the chart is not to look."""
    make(apiserver, namespace, {ENFORCE: "baseline"})
    with pytest.raises(helm.HelmError, match=f"kubectl label --overwrite namespace {namespace} {ENFORCE}=privileged"):
        install()
    daemonsets = f"/apis/apps/v1/namespaces/{namespace}/daemonsets"
    assert apiserver.request("GET", daemonsets)[1]["items"] == []
    install(namespace={"label": False})
    assert found(apiserver, namespace)["labels"][ENFORCE] == "baseline"


def test_the_chart_leaves_namespaces_alone_where_it_is_told_so(
    install: Install, apiserver: ApiServer, namespace: str
) -> None:
    """Also the one that Helm makes; then the notes say what to type."""
    assert "ACTION NEEDED" in notes(install(namespace={"label": False}))
    assert pod_security(apiserver, namespace) == {}


def test_what_helm_test_runs_needs_no_more_than_its_rights(
    install: Install, apiserver: ApiServer, namespace: str
) -> None:
    """It reads the DaemonSet and the Pods of its namespace with its own account, and those of no other."""
    hooks = [yaml.safe_load(hook["manifest"]) for hook in install()["hooks"]]
    for item in hooks:
        if item["kind"] in PATHS:
            status, answer = apiserver.request("POST", PATHS[item["kind"]].format(namespace), item)
            assert status == 201, answer
    account = f"{PATHS['ServiceAccount'].format(namespace)}/devwatch-test"
    _, answer = apiserver.request("POST", f"{account}/token", {"spec": {}})
    look = runpy.run_path(str(DEPLOY / "chart" / "files" / "ready.py"))["look"]
    context = ssl.create_default_context(cafile=str(apiserver.ca_file))
    token = answer["status"]["token"]
    assert eventually(lambda: unless_refused(lambda: look(apiserver.url, namespace, token, context))) == (
        0,
        ["the DaemonSet devwatch is not yet seen by its controller"],
    )
    with pytest.raises(OSError, match="403"):
        look(apiserver.url, "default", token, context)


def unless_refused(ask: Callable[[], T]) -> T | None:
    """Return an answer, None for a refusal: the server acts on a new Role within seconds."""
    try:
        return ask()
    except OSError:
        return None


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """Return the chart of 0.1.0."""
    testbed.require(formerrelease.missing(formerrelease.FIRST))
    return formerrelease.unpack(formerrelease.FIRST, "deploy/chart", tmp_path / "former")


VALUES = {
    "image": {"repository": "registry.example.com/devwatch"},
    "config": {"resources": [{"name": "aeotec/zstick", "match": [{"vendor": "0658"}], "evict": {"after": "30s"}}]},
    **{name: {"enabled": True} for name in ("unprivileged", "events", "eviction")},
}
"""Those of a user of 0.1.0."""


def daemonset(apiserver: ApiServer, namespace: str) -> Object:
    """Return the spec of the DaemonSet."""
    status, body = apiserver.request("GET", f"/apis/apps/v1/namespaces/{namespace}/daemonsets/devwatch")
    assert status == 200, body
    spec: Object = body["spec"]
    return spec


def test_a_release_of_0_1_0_is_upgraded_and_rolled_back(
    former: Path, chart: Path, config: Config, apiserver: ApiServer, namespace: str
) -> None:
    """With its values. Of the daemon's Pods only the image changes, so they are replaced once, and a rollback restores all."""
    config.install(str(former), "devwatch", VALUES, namespace=namespace, create_namespace=True)
    before = daemonset(apiserver, namespace)
    config.upgrade(str(chart), "devwatch", VALUES, namespace=namespace)
    after = daemonset(apiserver, namespace)
    (container,) = after["template"]["spec"]["containers"]
    assert container["image"] == f"registry.example.com/devwatch:{__version__}"
    container["image"] = "registry.example.com/devwatch:0.1.0"
    assert after["template"] == before["template"]
    config.rollback("devwatch", version=1)
    assert daemonset(apiserver, namespace) == before


def test_values_of_a_former_chart_in_place_of_the_defaults_are_refused(
    former: Path, chart: Path, config: Config, apiserver: ApiServer, namespace: str
) -> None:
    """With what to type, and nothing is changed: `--reuse-values` has no default of what is new."""
    config.install(str(former), "devwatch", VALUES, namespace=namespace, create_namespace=True)
    before = daemonset(apiserver, namespace)
    with pytest.raises(helm.HelmError, match="--reset-then-reuse-values"):
        config.upgrade(str(chart), "devwatch", reuse_values=True, namespace=namespace)
    assert daemonset(apiserver, namespace) == before
