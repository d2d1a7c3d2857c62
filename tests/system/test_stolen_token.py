"""What a thief of the daemon's token can do: the table of docs/security.md, each row tried with the token of a Pod on a real API server.

All writes are dry runs, which pass authorization and admission like any other.
"""

from __future__ import annotations

import http.client
import json
import ssl
import uuid
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from support.deployment import write_kustomization
from support.stolen import BASE, GRANTING, Attempt, Call, attempts
from system.apiserver import STRATEGIC_MERGE
from system.evictionproxy import policy_version
from system.kubectl import administrator
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from system.apiserver import ApiServer, Object

    Install = Callable[..., None]

pytestmark = pytest.mark.system

ATTEMPTS = attempts()
SLICES = "/apis/resource.k8s.io/v1/resourceslices"
POLICIES = "/apis/admissionregistration.k8s.io/v1"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
ROLES = ("devwatch", *(f"devwatch-{name}" for name in GRANTING))
GRANTED, REFUSED, DENIED = "granted", "refused", "denied by the policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thief:
    """One who has the token of a Pod of the DaemonSet, and nothing else."""

    server: ApiServer
    namespace: str
    names: Mapping[str, str]
    token: str
    policy: bool
    """Whether the server has admission policies."""

    @property
    def attempts(self) -> list[Attempt]:
        """The rows about what the server has."""
        return [each for each in ATTEMPTS if self.server.serves(each.api) or each.api == "v1"]

    def can(self, component: str, *, policy: bool) -> bool:
        """Return True; fail with the requests that do not end as the table says."""
        wrong = [
            f"{call.method} {call.path}: {found} (wanted: {wanted}; {attempt.title})"
            for attempt in self.attempts
            for call in attempt.calls
            for found, wanted in [
                (self._outcome(call.with_names(self.names)), _verdict(attempt, component, policy=policy))
            ]
            if found != wanted
        ]
        assert not wrong, "\n".join(wrong)
        return True

    def _outcome(self, call: Call) -> str:
        status, message = self._send(call)
        if status == http.HTTPStatus.FORBIDDEN:
            return DENIED if "ValidatingAdmissionPolicy 'devwatch'" in message else REFUSED
        return GRANTED if http.HTTPStatus.OK <= status < http.HTTPStatus.MULTIPLE_CHOICES else f"{status} {message}"

    def _send(self, call: Call) -> tuple[int, str]:
        address = urlsplit(self.server.url)
        tls = ssl.create_default_context(cafile=str(self.server.ca_file))
        line = http.client.HTTPSConnection(str(address.hostname), address.port, context=tls, timeout=20)
        kind = STRATEGIC_MERGE if call.method == "PATCH" else "application/json"
        with closing(line):
            body = json.dumps(self._body(call)) if call.body is not None or call.method == "DELETE" else None
            line.request(call.method, _dry(call), body, {"Content-Type": kind, "Authorization": f"Bearer {self.token}"})
            answer = line.getresponse()
            text = answer.read()
        return answer.status, str(json.loads(text).get("message", "")) if text.startswith(b"{") else ""

    def _body(self, call: Call) -> Object:
        if call.method == "DELETE":  # a body replaces the parameters of the URL
            return {"kind": "DeleteOptions", "apiVersion": "v1", "dryRun": ["All"]}
        body = dict(call.body or {})
        if body.get("kind") == "Eviction":
            body |= {"apiVersion": policy_version(self.server), "deleteOptions": {"dryRun": ["All"]}}
        if call.method == "PUT" and call.path.startswith(SLICES):
            found = self.server.request("GET", call.path)[1]
            body["metadata"] = {**body["metadata"], "resourceVersion": found["metadata"]["resourceVersion"]}
        return body


def _dry(call: Call) -> str:
    if call.method in {"GET", "DELETE"}:
        return call.path
    return f"{call.path}{'&' if '?' in call.path else '?'}dryRun=All"


def _verdict(attempt: Attempt, component: str, *, policy: bool) -> str:
    if not attempt.granted(component):
        return REFUSED
    return DENIED if policy and not attempt.allowed else GRANTED


@pytest.fixture
def install(apiserver: ApiServer, tmp_path: Path) -> Iterator[Install]:
    """Return a function that applies the base with components in a namespace, as an installer would; all is removed afterwards."""
    kubectl = administrator(apiserver)

    def run(namespace: str, *components: str) -> None:
        folder = tmp_path / uuid.uuid4().hex
        folder.mkdir()
        write_kustomization(folder, *components, namespace=namespace)
        kubectl("apply", "-k", str(folder))

    yield run
    _withdraw_policy(apiserver)
    for path in (f"{RBAC}/{kind}/{name}" for name in ROLES for kind in ("clusterrolebindings", "clusterroles")):
        apiserver.request("DELETE", path)


def _withdraw_policy(server: ApiServer) -> None:
    for kind in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
        server.request("DELETE", f"{POLICIES}/{kind}/devwatch")


@pytest.fixture
def names(apiserver: ApiServer) -> Iterator[dict[str, str]]:
    """Have two Nodes, two namespaces with a Pod each, slices and a claim, and return their names."""
    tag = uuid.uuid4().hex[:6]
    made = {
        "HOME": f"home-{tag}",
        "AWAY": f"away-{tag}",
        "HAS_LABEL": f"label-{tag}",
        "HAS_NONE": f"none-{tag}",
        "gpus": f"gpus-{tag}",
    }
    for name in ("HOME", "AWAY"):
        apiserver.create_node(made[name], {"aeotec/zstick": "1"})
    for name, labels in (("HAS_LABEL", {"devwatch.io/evict": "allowed"}), ("HAS_NONE", {})):
        _make(apiserver, "/api/v1/namespaces", {"metadata": {"name": made[name], "labels": labels}})
        _make_pod(apiserver, made[name], "victim", made["AWAY"], "default")
    if apiserver.serves("resource.k8s.io/v1"):
        _make(apiserver, SLICES, _slice(f"{made['HOME']}-devwatch.io", "devwatch.io", made["HOME"]))
        _make(apiserver, SLICES, _slice(made["gpus"], "gpu.example.com", made["AWAY"]))
        claim = {
            "metadata": {"name": "claim"},
            "spec": {"devices": {"requests": [{"name": "a", "exactly": {"deviceClassName": "a"}}]}},
        }
        _make(apiserver, f"/apis/resource.k8s.io/v1/namespaces/{made['HAS_NONE']}/resourceclaims", claim)
    yield made
    for path in (f"{SLICES}/{made['HOME']}-devwatch.io", f"{SLICES}/{made['gpus']}"):
        apiserver.request("DELETE", path)
    for name in ("HAS_LABEL", "HAS_NONE"):
        apiserver.request("DELETE", f"/api/v1/namespaces/{made[name]}")
    for name in ("HOME", "AWAY"):
        apiserver.delete_node(made[name])


@pytest.mark.parametrize("component", GRANTING)
def test_a_thief_of_the_token_can_do_what_the_table_says_and_no_more(
    component: str, install: Install, names: dict[str, str], apiserver: ApiServer
) -> None:
    """Without the admission policy, and with it where the server has such policies."""
    namespace = f"daemon-{uuid.uuid4().hex[:6]}"
    components = () if component == BASE else (component,)
    install(namespace, *components)
    _make_pod(apiserver, namespace, "stolen", names["HOME"], "devwatch")
    thief = _thief(apiserver, namespace, names)
    eventually(lambda: thief.can(component, policy=False))
    if thief.policy:
        install(namespace, *components, "admission-policy")
        eventually(lambda: thief.can(component, policy=True))
        _withdraw_policy(apiserver)
        eventually(lambda: thief.can(component, policy=False))  # the server is used by other tests
    apiserver.request("DELETE", f"/api/v1/namespaces/{namespace}")


def _thief(server: ApiServer, namespace: str, names: Mapping[str, str]) -> Thief:
    """Return one who has a token that is bound to the Pod `stolen`, as the kubelet gets it for the Pod."""
    found = server.request("GET", f"/api/v1/namespaces/{namespace}/pods/stolen")[1]["metadata"]
    bound = {"kind": "Pod", "apiVersion": "v1", "name": "stolen", "uid": found["uid"]}
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/devwatch/token"
    answer = _make(server, path, {"spec": {"boundObjectRef": bound, "expirationSeconds": 3600}})
    kinds = {item["kind"] for item in server.request("GET", POLICIES)[1]["resources"]}
    return Thief(
        server=server,
        namespace=namespace,
        names=names,
        token=str(answer["status"]["token"]),
        policy="ValidatingAdmissionPolicy" in kinds,
    )


def _slice(name: str, driver: str, node: str) -> Object:
    pool = {"name": name, "generation": 1, "resourceSliceCount": 1}
    return {"metadata": {"name": name}, "spec": {"driver": driver, "nodeName": node, "pool": pool}}


def _make_pod(server: ApiServer, namespace: str, name: str, node: str, account: str) -> None:
    """Have a Pod on a Node that has no kubelet; no token is mounted, which 1.20 would wait for."""
    path = f"/api/v1/namespaces/{namespace}"
    server.request("POST", f"{path}/serviceaccounts", {"metadata": {"name": account}})
    spec = {
        "nodeName": node,
        "serviceAccountName": account,
        "automountServiceAccountToken": False,
        "containers": [{"name": "c", "image": "localhost/none"}],
    }
    _make(server, f"{path}/pods", {"metadata": {"name": name}, "spec": spec})


def _make(server: ApiServer, path: str, body: Object) -> Object:
    status, answer = server.request("POST", path, body)
    assert http.HTTPStatus.OK <= status < http.HTTPStatus.MULTIPLE_CHOICES, answer
    return answer
