"""The edge to the API server, on a real one: what it answers is what the scripted server of the unit tests pretends."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from devwatch.core.errors import ApiError, CredentialsError, Forbidden, NodeMissing, Refused, Retry
from devwatch.core.node import ANNOTATION, ANNOTATION_PART, NodePatch, NodeState
from devwatch.kube.credentials import Credentials
from devwatch.kube.nodes import KubeNode
from support.build import patch_of
from system.apiserver import NAMESPACE, PATCH_ONLY
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from support.build import Parts
    from system.apiserver import ApiServer, Object

pytestmark = pytest.mark.system

LISTED = '{"a.io/b":[]}'


@pytest.fixture
def name(apiserver: ApiServer) -> str:
    """Return the name of a new Node."""
    name = f"n-{uuid.uuid4().hex[:8]}"
    apiserver.create_node(name)
    return name


@pytest.fixture
def patcher(apiserver: ApiServer) -> Path:
    """Return a kubeconfig that may patch the status of Nodes and nothing else."""
    return apiserver.service_account("patcher", rules=PATCH_ONLY)


def patch(name: str, kubeconfig: Path, *requests: Parts, dry_run: bool = False) -> NodeState | ApiError:
    """Return what the last of these requests gives."""

    async def run() -> NodeState | ApiError:
        credentials = Credentials(kubeconfig=str(kubeconfig), environ={})
        api = KubeNode(name, credentials, version="0", dry_run=dry_run)
        try:
            states = [await api.patch(patch_of(changes)) for changes in requests or [{}]]
        except ApiError as error:
            return error
        finally:
            await api.close()
        return states[-1]

    return asyncio.run(run())


def resources(node: Object) -> list[str | None]:
    """Return the counts of a.io/b in both maps."""
    return [node["status"][kind].get("a.io/b") for kind in ("capacity", "allocatable")]


def test_a_change_is_on_the_node_and_in_the_answer(apiserver: ApiServer, name: str, patcher: Path) -> None:
    """Both maps and the annotation, under our field manager; what others wrote stays."""
    state = patch(name, patcher, {"a.io/b": "2", ANNOTATION_PART: LISTED})
    node = apiserver.node(name)
    assert isinstance(state, NodeState)
    assert resources(node) == ["2", "2"]
    assert node["metadata"]["annotations"][ANNOTATION] == LISTED
    assert node["status"]["capacity"]["pods"] == "110"
    assert "devwatch" in [entry["manager"] for entry in node["metadata"]["managedFields"]]
    assert [writer.manager for writer in state.writers["a.io/b"]] == ["devwatch"]
    assert replace(state, writers={}) == NodeState(
        uid=node["metadata"]["uid"],
        version=int(node["metadata"]["resourceVersion"]),
        capacity=node["status"]["capacity"],
        allocatable=node["status"]["allocatable"],
        annotation=LISTED,
    )


def test_a_removal_leaves_no_key(apiserver: ApiServer, name: str, patcher: Path) -> None:
    """Also where there was none."""
    patch(
        name,
        patcher,
        {"a.io/b": "2", ANNOTATION_PART: LISTED},
        {"a.io/b": None, "a.io/none": None, ANNOTATION_PART: None},
    )
    node = apiserver.node(name)
    assert resources(node) == [None, None]
    assert ANNOTATION not in node["metadata"].get("annotations", {})


def test_a_read_writes_nothing(apiserver: ApiServer, name: str, patcher: Path) -> None:
    """And neither does a patch that changes nothing."""
    patch(name, patcher, {"a.io/b": "2"})
    before = apiserver.node(name)["metadata"]["resourceVersion"]
    state = patch(name, patcher, {}, {"a.io/b": "2"})
    assert isinstance(state, NodeState)
    assert state.capacity["a.io/b"] == "2"
    assert apiserver.node(name)["metadata"]["resourceVersion"] == before


def test_a_dry_run_stores_nothing_and_answers_as_if(apiserver: ApiServer, name: str, patcher: Path) -> None:
    """The server checks rights and values all the same."""
    state = patch(name, patcher, {"a.io/b": "2"}, dry_run=True)
    assert isinstance(state, NodeState)
    assert state.capacity["a.io/b"] == "2"
    assert resources(apiserver.node(name)) == [None, None]
    assert isinstance(patch(name, patcher, {"a.io/b": "-1"}, dry_run=True), Refused)


def test_a_value_that_the_server_does_not_take_is_refused(name: str, patcher: Path) -> None:
    """With its reason, cut: it can quote the whole Node."""
    error = patch(name, patcher, {"a.io/b": "-1", ANNOTATION_PART: "x" * 300_000})
    assert isinstance(error, Refused)
    assert "422" in str(error)
    assert len(str(error)) < 600


def test_a_missing_node_is_that(patcher: Path) -> None:
    """And not a missing right or a wrong URL."""
    error = patch("nobody", patcher)
    assert isinstance(error, NodeMissing)
    assert 'nodes "nobody" not found (404' in str(error)


def test_another_path_is_no_missing_node(apiserver: ApiServer, name: str, patcher: Path) -> None:
    """A server URL with a path too much leads to nothing that knows Nodes."""
    token = json.loads(patcher.read_text())["users"][0]["user"]["token"]
    wrong = apiserver.kubeconfig("wrong", token=token, server=f"{apiserver.url}/elsewhere")
    error = patch(name, wrong)
    assert isinstance(error, ApiError)
    assert not isinstance(error, NodeMissing)


@pytest.fixture
def cleared(apiserver: ApiServer) -> Iterator[None]:
    """Remove what the hints make."""
    yield
    for kind in ("clusterroles", "clusterrolebindings"):
        path = f"/apis/rbac.authorization.k8s.io/v1/{kind}"
        items = apiserver.request("GET", path)[1]["items"]
        for item in items:
            if item["metadata"]["name"].startswith("devwatch-patch-"):
                apiserver.request("DELETE", f"{path}/{quote(item['metadata']['name'])}")


@pytest.mark.usefixtures("cleared")
def test_the_hint_of_a_missing_right_really_grants_it(apiserver: ApiServer, name: str) -> None:
    """Pasted into a shell; once for a ServiceAccount, and again for a user, when the role is already there."""
    account = apiserver.service_account("powerless", rules=[])
    pair = apiserver.client_certificate("jane doe/ops")
    user = apiserver.kubeconfig("jane", certificate=pair)
    for kubeconfig in (account, user):
        error = patch(name, kubeconfig)
        assert isinstance(error, Forbidden)
        assert "cannot patch resource" in str(error)
        shell(apiserver, error.hint)
        eventually(lambda kubeconfig=kubeconfig: isinstance(patch(name, kubeconfig), NodeState))  # type: ignore[misc]  # the default binds the loop's value


def shell(apiserver: ApiServer, commands: str) -> None:
    """Run commands as an administrator would."""
    environ = {**os.environ, "KUBECONFIG": str(apiserver.admin_kubeconfig)}
    assets = os.environ["KUBEBUILDER_ASSETS"]
    environ["PATH"] = f"{assets}:{environ['PATH']}"
    subprocess.run(["sh", "-c", commands], env=environ, check=True, capture_output=True)


def test_nobody_is_told_to_grant_rights_to_anonymous(apiserver: ApiServer, name: str) -> None:
    """A kubeconfig without a user reaches the server as `system:anonymous`."""
    error = patch(name, apiserver.kubeconfig("anonymous"))
    assert isinstance(error, Forbidden | CredentialsError)
    assert not isinstance(error, Forbidden) or "kubectl" not in error.hint


def test_a_wrong_token_is_a_matter_of_credentials(apiserver: ApiServer, name: str) -> None:
    """Not of rights."""
    error = patch(name, apiserver.kubeconfig("wrong", token="SECRET"))  # noqa: S106 - of no server
    assert isinstance(error, CredentialsError)
    assert "SECRET" not in str(error)


def test_a_kubelets_credential_works_on_its_own_node_only(apiserver: ApiServer, name: str) -> None:
    """The hint for another Node is its name, not a right that would not help (NodeRestriction)."""
    pair = apiserver.client_certificate(f"system:node:{name}", groups=["system:nodes"])
    kubelet = apiserver.kubeconfig("kubelet", certificate=pair)
    assert isinstance(patch(name, kubelet, {"a.io/b": "1"}), NodeState)
    other = f"other-{name}"
    apiserver.create_node(other)
    error = patch(other, kubelet, {"a.io/b": "1"})
    assert isinstance(error, Forbidden)
    assert "--node-name" in error.hint


def test_a_deleted_account_is_a_matter_of_credentials(apiserver: ApiServer, name: str) -> None:
    """Its token is of no use from then on; the same client then takes the token of another."""
    kubeconfig = apiserver.service_account("mayfly", rules=PATCH_ONLY)

    async def run() -> None:
        api = KubeNode(name, Credentials(kubeconfig=str(kubeconfig), environ={}), version="0")
        try:
            await api.patch(NodePatch())
            apiserver.request("DELETE", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/mayfly")
            with pytest.raises(CredentialsError, match="does not accept the credentials"):
                await _until_refused(api)
            apiserver.service_account("patcher", rules=PATCH_ONLY)
            apiserver.kubeconfig("mayfly", token=apiserver.token("patcher"))
            assert isinstance(await api.patch(NodePatch()), NodeState)
        finally:
            await api.close()

    asyncio.run(run())


async def _until_refused(api: KubeNode) -> None:
    # The server remembers a token that it has accepted for some seconds.
    async with asyncio.timeout(60):
        while True:
            await api.patch(NodePatch())


def test_an_outage_is_no_answer_and_the_same_client_goes_on_after_it(
    apiserver: ApiServer, name: str, patcher: Path
) -> None:
    """Its port refuses, or it takes connections and says nothing; then it is back."""

    async def run() -> None:
        api = KubeNode(name, Credentials(kubeconfig=str(patcher), environ={}), version="0", timeout=2)
        try:
            await api.patch(NodePatch())
            apiserver.freeze()
            for _ in range(2):  # on the open connection, and on a new one
                with pytest.raises(Retry, match="did not answer within 2 s"):
                    await api.patch(NodePatch())
            apiserver.stop()
            with pytest.raises(Retry, match="no answer from the API server https://"):
                await api.patch(NodePatch())
            apiserver.start()
            assert isinstance(await api.patch(NodePatch()), NodeState)
        finally:
            await api.close()

    asyncio.run(run())


ASKING = """
import asyncio, sys
from devwatch.core.errors import Retry
from devwatch.core.node import NodePatch
from devwatch.kube.credentials import Credentials
from devwatch.kube.nodes import KubeNode

async def main():
    api = KubeNode("n1", Credentials(kubeconfig=sys.argv[1], environ={}), version="0")
    try:
        await api.patch(NodePatch())
    except Retry as error:
        print(error)

asyncio.run(main())
"""


def test_a_name_that_cannot_be_resolved_is_no_answer(apiserver: ApiServer) -> None:
    """In a network without any name server: the message says which name."""
    kubeconfig = apiserver.kubeconfig("unresolved", token="x", server="https://nowhere.invalid")  # noqa: S106 - of no server
    shown = python(["unshare", "--net"], ASKING, str(kubeconfig))  # in which no interface is up
    assert shown.startswith("no answer from the API server https://nowhere.invalid: ")
    assert len(shown.splitlines()) == 1


def test_a_uid_without_a_name_and_without_a_home_can_use_it(apiserver: ApiServer) -> None:
    """As in a container that runs as a number, where the client library asks for the home directory on import."""
    kubeconfig = apiserver.kubeconfig("homeless", token="x", server="https://127.0.0.1:1")  # noqa: S106 - of no server
    # The capability lets it read the files of the tests, which are root's.
    nobody = [
        "setpriv",
        "--reuid=4242",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
        "env",
        "-u",
        "HOME",
    ]
    assert python(nobody, ASKING, str(kubeconfig)).startswith("no answer from the API server https://127.0.0.1:1: ")


def python(wrapper: Sequence[str], script: str, *arguments: str) -> str:
    """Run a script in a fresh interpreter, started by `wrapper`, and return what it prints."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*wrapper, sys.executable, "-W", "error", "-c", script, *arguments]
    done = subprocess.run(command, env=environ, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
