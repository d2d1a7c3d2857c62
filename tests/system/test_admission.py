"""The admission policy on a real API server: every request of tests/deploy/data/admission.yaml, sent as the user it names.

All are dry runs: each finds the same Nodes. A server before 1.30 has no such policies; what it can show is that it alone
refuses none of the requests, so that the refusals are the policy's.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from support.admission import (
    ALLOWED_PATH,
    COMPONENT,
    SLICES,
    Object,
    Request,
    allowed,
    as_cel,
    merged,
    namespaces,
    node,
    requests,
    stored_slice,
    written_slice,
)
from system.evictionproxy import policy_version
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from system.apiserver import ApiServer

pytestmark = pytest.mark.system

NODES = ("nuc-1", "nuc-2")
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
SLICES_PATH = f"/apis/resource.k8s.io/v1/{SLICES}"
REQUESTS = requests()
IN_FORCE = next(each for each in REQUESTS if each.name == "another node")
"""A request that is answered by another status when the policy is in force."""
OWN = ("spec", "status")
METADATA = ("labels", "annotations", "finalizers", "ownerReferences")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the API server says to one request."""

    status: int
    body: Object

    @property
    def message(self) -> str:
        """The words of a refusal."""
        return str(self.body.get("message", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """An API server with the Nodes and namespaces of the requests."""

    server: ApiServer
    tls: ssl.SSLContext

    def ask(self, request: Request) -> Answer:
        """Send the request as its user, who has every right, as a dry run. A ResourceSlice that it starts from is there meanwhile."""
        if request.resource != SLICES or request.operation == "CREATE":
            return self._ask(request)
        _must(self.server, "POST", SLICES_PATH, stored_slice(request))
        try:
            return self._ask(request)
        finally:
            _must(self.server, "DELETE", f"{SLICES_PATH}/{request.object}", {})

    @property
    def requests(self) -> list[Request]:
        """The requests about objects that the server knows."""
        served = self.server.serves("resource.k8s.io/v1")
        return [request for request in REQUESTS if served or request.resource != SLICES]

    def _ask(self, request: Request) -> Answer:
        method, path, body = self._call(request)
        headers = [
            ("Content-Type", "application/merge-patch+json" if method == "PATCH" else "application/json"),
            ("Impersonate-User", request.user),
            ("Impersonate-Group", "system:masters"),
            *(("Impersonate-Extra-authentication.kubernetes.io%2Fnode-name", name) for name in request.node),
        ]
        return self._send(method, path, headers, json.dumps(body).encode())

    def _call(self, request: Request) -> tuple[str, str, Object]:
        resource, _, subresource = request.resource.partition("/")
        folder = f"/api/v1/namespaces/{request.namespace}/{resource}" if request.namespace else f"/api/v1/{resource}"
        folder = SLICES_PATH if resource == SLICES else folder
        path = "/".join(part for part in (folder, request.object, subresource) if part)
        if request.operation == "UPDATE" and resource == SLICES:
            return "PUT", f"{path}?dryRun=All", written_slice(request)
        if request.operation == "UPDATE" and request.put:
            return "PUT", f"{path}?dryRun=All", merged(self.server.node(request.object), request.merge)
        if request.operation == "UPDATE":
            return "PATCH", f"{path}?dryRun=All", request.merge
        if request.operation == "DELETE":
            # A body replaces the parameters of the URL.
            return "DELETE", path, {"kind": "DeleteOptions", "apiVersion": "v1", "dryRun": ["All"]}
        if request.operation == "CONNECT":
            return "GET", f"{path}/", {}
        return "POST", f"{path if subresource else folder}?dryRun=All", self._new(request)

    def _new(self, request: Request) -> Object:
        if request.resource == "nodes":
            return node(request.object)
        if request.resource == SLICES:
            return written_slice(request)
        named: Object = {"metadata": {"name": request.object, "namespace": request.namespace}}
        if request.resource == "events":
            return {**named, "involvedObject": {"namespace": request.namespace}}
        return {**named, "kind": "Eviction", "apiVersion": policy_version(self.server)}

    def _send(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Answer:
        address = urlsplit(self.server.url)
        host = str(address.hostname)
        with closing(http.client.HTTPSConnection(host, address.port, context=self.tls, timeout=20)) as line:
            # Not request(): two values of one header take two lines.
            line.putrequest(method, path)
            for name, value in [*headers, ("Content-Length", str(len(body)))]:
                line.putheader(name, value)
            line.endheaders(body)
            answer = line.getresponse()
            text = answer.read()
            return Answer(status=answer.status, body=json.loads(text) if text.startswith(b"{") else {})

    def changed(self, request: Request, answer: Answer) -> bool:
        """Return whether the Node of the answer differs from the stored one, apart from what a server keeps books in."""
        return _content(answer.body) != _content(self.server.node(request.object))


def _administrator(server: ApiServer) -> ssl.SSLContext:
    pair = server.client_certificate("admission-test", groups=["system:masters"])
    tls = ssl.create_default_context(cafile=str(server.ca_file))
    tls.load_cert_chain(pair.certificate, pair.key)
    return tls


def _content(found: Object) -> list[object]:
    return [found.get(key) for key in OWN] + [found["metadata"].get(key) for key in METADATA]


@pytest.fixture(scope="module")
def cluster(control_plane: ApiServer) -> Iterator[Cluster]:
    """Have the Nodes and namespaces of the requests."""
    for name in NODES:
        _must(control_plane, "POST", "/api/v1/nodes", node(name))
        _must(control_plane, "PUT", f"/api/v1/nodes/{name}/status", node(name))
    for name, labels in namespaces().items():
        _must(control_plane, "POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
    yield Cluster(server=control_plane, tls=_administrator(control_plane))
    for name in NODES:
        control_plane.delete_node(name)


@pytest.fixture
def kustomization(tmp_path: Path) -> Path:
    """Have what an installer writes: the component, a namespace, and the resources that may be advertised."""
    target = {"kind": "ValidatingAdmissionPolicy", "name": "devwatch"}
    patch = json.dumps([{"op": "replace", "path": ALLOWED_PATH, "value": as_cel(allowed())}])
    content = {
        "namespace": "devwatch",
        "components": [os.path.relpath(COMPONENT, tmp_path.resolve())],  # kustomize takes no absolute path
        "patches": [{"target": target, "patch": patch}],
    }
    (tmp_path / "kustomization.yaml").write_text(json.dumps(content))
    return tmp_path


def test_without_the_policy_a_server_forbids_nothing(cluster: Cluster) -> None:
    """What the policy allows, the API accepts; what it denies, nobody else forbids to who has the rights."""
    # A real CONNECT would end at a kubelet that is not there.
    answers = [(request, cluster.ask(request)) for request in cluster.requests if request.operation != "CONNECT"]
    wrong = [_line(request, answer) for request, answer in answers if not _unhindered(request, answer)]
    assert not wrong, "\n".join(wrong)


def test_the_policy_gives_every_verdict(cluster: Cluster, kustomization: Path) -> None:
    """On a server that has such policies each request is answered as the file says; an older one refuses the component."""
    if cluster.server.request("GET", POLICIES)[0] == http.HTTPStatus.NOT_FOUND:
        _refused(cluster.server, kustomization)
        return
    _kubectl(cluster.server, "apply", "-k", str(kustomization))
    try:
        eventually(lambda: cluster.ask(IN_FORCE).status == http.HTTPStatus.FORBIDDEN)
        answers = [(request, cluster.ask(request)) for request in cluster.requests]
        wrong = [_line(request, answer) for request, answer in answers if not _as_written(cluster, request, answer)]
    finally:
        _kubectl(cluster.server, "delete", "-k", str(kustomization))
    # The server is used by other tests, whose ServiceAccounts are not bound to a node.
    eventually(lambda: cluster.ask(IN_FORCE).status == http.HTTPStatus.OK)
    assert not wrong, "\n".join(wrong)


def _refused(server: ApiServer, kustomization: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        _kubectl(server, "apply", "-k", str(kustomization))
    assert 'no matches for kind "ValidatingAdmissionPolicy"' in refusal.value.stderr


def _unhindered(request: Request, answer: Answer) -> bool:
    if request.allowed:
        return _accepted(request, answer)
    return answer.status not in {http.HTTPStatus.FORBIDDEN, http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.BAD_REQUEST}


def _as_written(cluster: Cluster, request: Request, answer: Answer) -> bool:
    if request.allowed:
        return _accepted(request, answer)
    if answer.status == http.HTTPStatus.FORBIDDEN:
        return "ValidatingAdmissionPolicy 'devwatch'" in answer.message and request.denied in answer.message
    if request.server == "ignored":
        return answer.status == http.HTTPStatus.OK and not cluster.changed(request, answer)
    return request.server == "invalid" and answer.status == http.HTTPStatus.UNPROCESSABLE_ENTITY


def _accepted(request: Request, answer: Answer) -> bool:
    # The pods do not exist, which is found out last: whoever is told so was allowed to.
    missing = request.resource.startswith("pods") and answer.status == http.HTTPStatus.NOT_FOUND
    return missing or http.HTTPStatus.OK <= answer.status < http.HTTPStatus.MULTIPLE_CHOICES


def _line(request: Request, answer: Answer) -> str:
    return f"{request.name}: {answer.status} {answer.message[:300]} (wanted: {request.denied or 'allowed'})"


def _kubectl(server: ApiServer, *arguments: str) -> None:
    environ = {**os.environ, "KUBECONFIG": str(server.admin_kubeconfig)}
    subprocess.run(["kubectl", *arguments], env=environ, check=True, capture_output=True, text=True, timeout=60)


def _must(server: ApiServer, method: str, path: str, body: Object) -> None:
    status, answer = server.request(method, path, body)
    assert http.HTTPStatus.OK <= status < http.HTTPStatus.MULTIPLE_CHOICES, answer
