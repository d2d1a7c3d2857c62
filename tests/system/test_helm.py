"""The packaged chart, installed by Helm on a real API server: one command, and a namespace that admits the Pods."""

from __future__ import annotations

import os
import runpy
import ssl
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from project.test_release import COMMITTED
from support import release
from support.deployment import DEPLOY

helm = pytest.importorskip("helm_python", reason="needs helm-python-sdk, which has wheels for x86_64 and aarch64 alone")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from system.apiserver import ApiServer, Object

    Install = Callable[..., Object]

pytestmark = pytest.mark.system

ENFORCE = "pod-security.kubernetes.io/enforce"
KEEP = "helm.sh/resource-policy"


@pytest.fixture
def namespace(apiserver: ApiServer) -> Iterator[str]:
    """Return the name of a namespace that is not there yet."""
    name = f"helm-{uuid.uuid4().hex[:6]}"
    yield name
    apiserver.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def install(tmp_path: Path, apiserver: ApiServer, namespace: str) -> Iterator[Install]:
    """Return a function that installs or upgrades the packaged chart; the release is uninstalled afterwards."""
    chart = release.package(tmp_path, COMMITTED)
    with helm.Config(kubeconfig_path=apiserver.admin_kubeconfig, namespace=namespace) as config:

        def run(how: str = "install", **values: object) -> Object:
            options = {"create_namespace": True} if how == "install" else {}
            done: Object = getattr(config, how)(chart, "devwatch", values, namespace=namespace, **options)
            return done

        yield run
        config.uninstall("devwatch", ignore_not_found=True)


def found(apiserver: ApiServer, namespace: str) -> Object:
    """Return the Namespace's metadata."""
    status, body = apiserver.request("GET", f"/api/v1/namespaces/{namespace}")
    assert status == 200, body
    metadata: Object = body["metadata"]
    return metadata


def notes(installed: Object) -> str:
    """Return what Helm prints at the end."""
    return str(installed.get("notes") or installed["info"]["notes"])


def make(apiserver: ApiServer, namespace: str, **labels: str) -> None:
    """Have the namespace there before."""
    body = {"metadata": {"name": namespace, "labels": {name.replace("_", "/"): level for name, level in labels.items()}}}
    status, answer = apiserver.request("POST", "/api/v1/namespaces", body)
    assert status == 201, answer


def test_a_namespace_that_helm_makes_admits_the_pods(install: Install, apiserver: ApiServer, namespace: str) -> None:
    """By its label, from the one command; an upgrade leaves it, and an uninstall keeps the namespace."""
    installed = install()
    print(installed.keys(), installed)
    assert found(apiserver, namespace)["labels"][ENFORCE] == "privileged"
    assert "ACTION NEEDED" not in notes(installed)
    assert "ACTION NEEDED" not in notes(install("upgrade", logLevel="debug"))
    assert found(apiserver, namespace)["labels"][ENFORCE] == "privileged"
    assert found(apiserver, namespace)["annotations"][KEEP] == "keep"
