"""A real API server with its etcd, on loopback, for as long as the tests last.

The programs come from the folder in KUBEBUILDER_ASSETS, the convention of envtest (controller-runtime). Only flags that
kube-apiserver has from 1.20 to 1.36 are used; where a program of the range needs one that others refuse, its own
`--help` decides.
"""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from system.certificates import Authority, Pair, signed_token, write_key
from system.process import Process
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

Object = dict[str, Any]

NAMESPACE = "devwatch"
LOOPBACK = "127.0.0.1"
PATCH_ONLY: list[Object] = [{"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]}]
"""The only right that the daemon needs."""
WATCH: list[Object] = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]
"""The rights with which it also sees foreign changes at once."""
BASE_CAPACITY: Mapping[str, str] = {"cpu": "4", "memory": "8Gi", "pods": "110"}
"""What every Node made here has besides, as a kubelet reports it; without `pods` the scheduler places none."""
STRATEGIC_MERGE = "application/strategic-merge-patch+json"

START_TIMEOUT = 60.0
REQUEST_TIMEOUT = 20.0
RBAC_TIMEOUT = 15.0

_LEEWAY = 60
"""Seconds for which a token is taken after its end (go-jose, `jwt.DefaultLeeway`)."""
_ISSUER = "https://kubernetes.default.svc"
_CORE = "/api/v1"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"
_RBAC_VERSION = "rbac.authorization.k8s.io/v1"


class ApiServerError(Exception):
    """A server did not start, or refused what the test bench asked of it; the message holds its own words."""


class ApiServer:
    """etcd and kube-apiserver, with Node and RBAC authorization and NodeRestriction, as a context manager.

    `url` and the credentials stay the same over `stop` and `start`. Everything is killed and removed at the end.
    """

    def __init__(self, assets: Path) -> None:
        """Prepare keys, certificates and ports; `start`, or `with`, runs the servers."""
        self.home = Path(tempfile.mkdtemp(prefix="devwatch-apiserver-"))
        self._assets = assets
        self._processes: dict[str, Process] = {}
        self._authority = Authority(self.home / "pki")
        self._certify()
        self._account_key = self.home / "pki" / "service-accounts.key"
        self._signer = write_key(self._account_key)
        self._etcd_port, self._etcd_peer_port, port = free_ports(3)
        self.ca_file = self._authority.certificate
        self.url = f"https://{LOOPBACK}:{port}"
        self.admin_kubeconfig = self.kubeconfig("admin", certificate=self._admin)

    def __enter__(self) -> Self:
        """Start both servers, or leave nothing behind."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove everything."""
        self.close()

    # Life

    def start(self) -> None:
        """Start what does not run and wait until it is ready; the port and the data are those of before.

        Raises `ApiServerError`, with the last log lines, when a server ends or is not ready within a minute.
        """
        if "etcd" not in self._processes:
            self._run("etcd", self._etcd_flags())
        if "kube-apiserver" not in self._processes:
            self._run("kube-apiserver", self._flags())
        self._await("kube-apiserver", lambda: self._answers(self.url, "/readyz"))

    def stop(self, name: str = "kube-apiserver") -> None:
        """Kill a server, as a crash would: its connections break and its port refuses."""
        self._processes.pop(name).kill()

    def freeze(self, name: str = "kube-apiserver") -> None:
        """Stop a server from answering; connections still come about, as through a black hole."""
        process = self._processes[name]
        process.signal(signal.SIGSTOP)
        # A signal is only sent on return from kill(2): threads on other processors go on for a moment, and may answer.
        eventually(lambda: process.states() == {"T"})

    def thaw(self) -> None:
        """Let frozen servers go on; nothing happens to those that run or are stopped."""
        for process in self._processes.values():
            process.signal(signal.SIGCONT)

    def renew(self) -> Path:
        """Replace the authority and every certificate, from the next `start` on, and return the new authority's certificate.

        Whoever trusts `ca_file` trusts the new one as soon as it is copied there. Older client certificates are of no use any more,
        so the scheduler and the controller manager are killed.
        """
        self.stop_control()
        self._authority = Authority(Path(tempfile.mkdtemp(dir=self.home)) / "pki")
        self._certify()
        self.kubeconfig("admin", certificate=self._admin)
        return self._authority.certificate

    def _certify(self) -> None:
        self._serving = self._authority.server(
            "apiserver", dns=["localhost", "kubernetes.default.svc"], addresses=[LOOPBACK]
        )
        self._admin = self._authority.client("admin", groups=["system:masters"])
        self._tls = self._strict_tls()

    def close(self) -> None:
        """Kill every server and remove its files; may be called again."""
        # In the order of dependence, last one first: a client that loses its server fills its log.
        for name in reversed(list(self._processes)):
            self._processes.pop(name).kill()
        shutil.rmtree(self.home, ignore_errors=True)

    def start_scheduler(self) -> None:
        """Start kube-scheduler and wait until it is healthy; raises `ApiServerError`. A second call does nothing."""
        self._start_client("kube-scheduler", [])

    def start_controller_manager(self) -> None:
        """Start kube-controller-manager, without the controller that taints Nodes whose kubelet is silent.

        Raises `ApiServerError` when it is not healthy within a minute. A second call does nothing.
        """
        flags = [
            # The Nodes of the tests have no kubelet, so no heartbeat. The short name is an alias from 1.28 on.
            "--controllers=*,-nodelifecycle",
            f"--service-account-private-key-file={self._account_key}",
            f"--root-ca-file={self.ca_file}",
        ]
        self._start_client("kube-controller-manager", flags)

    def stop_control(self) -> None:
        """Kill kube-scheduler and kube-controller-manager where they run; from then on nobody else writes to the Nodes."""
        for name in ("kube-scheduler", "kube-controller-manager"):
            if name in self._processes:
                self._processes.pop(name).kill()

    def _start_client(self, name: str, flags: Sequence[str]) -> None:
        if name in self._processes:
            return
        (port,) = free_ports(1)
        self._run(name, [*self._client_flags(name, port), *flags])
        self._await(name, lambda: self._answers(f"https://{LOOPBACK}:{port}", "/healthz"))

    def _run(self, name: str, flags: Sequence[str]) -> None:
        program = self._assets / name
        if not program.exists():
            raise ApiServerError(f"{self._assets} (KUBEBUILDER_ASSETS) has no {name}")
        self._processes[name] = Process([str(program), *flags], self.home / name)

    def _await(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        try:
            eventually(lambda: self._alive() and ready(), timeout=deadline - time.monotonic())
        except AssertionError:
            raise ApiServerError(f"{name} is not ready\n{self._tails()}") from None

    def _alive(self) -> bool:
        for name, process in self._processes.items():
            if process.status is not None:
                raise ApiServerError(f"{name} ended with status {process.status}\n{self._tails()}")
        return True

    def _tails(self) -> str:
        return "\n".join(f"--- {name}\n{process.tail()}" for name, process in self._processes.items())

    def _answers(self, url: str, path: str) -> bool:
        try:
            return self._exchange(url, "GET", path)[0] == http.HTTPStatus.OK
        except OSError:
            return False

    # Flags

    def _etcd_flags(self) -> list[str]:
        client, peer = f"http://{LOOPBACK}:{self._etcd_port}", f"http://{LOOPBACK}:{self._etcd_peer_port}"
        flags = [
            f"--data-dir={self.home / 'etcd-data'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        ]
        # From 3.5 on; the data need not survive the machine.
        return [*flags, *(["--unsafe-no-fsync"] if self._knows("etcd", "unsafe-no-fsync") else [])]

    def _flags(self) -> list[str]:
        return [
            f"--etcd-servers=http://{LOOPBACK}:{self._etcd_port}",
            f"--bind-address={LOOPBACK}",
            f"--advertise-address={LOOPBACK}",
            f"--secure-port={urlsplit(self.url).port}",
            f"--tls-cert-file={self._serving.certificate}",
            f"--tls-private-key-file={self._serving.key}",
            f"--client-ca-file={self._authority.certificate}",
            f"--service-account-issuer={_ISSUER}",
            f"--api-audiences={_ISSUER}",
            f"--service-account-key-file={self._account_key}",
            f"--service-account-signing-key-file={self._account_key}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            # An endpoint on loopback is refused, and nobody needs it.
            "--endpoint-reconciler-type=none",
            "--allow-privileged=true",
        ]

    def _client_flags(self, name: str, port: int) -> list[str]:
        flags = [
            f"--kubeconfig={self.admin_kubeconfig}",
            "--leader-elect=false",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={port}",
            f"--tls-cert-file={self._serving.certificate}",
            f"--tls-private-key-file={self._serving.key}",
        ]
        # Before 1.24 there is a second port, without TLS and open to every interface.
        return [*flags, *(["--port=0"] if self._knows(name, "port") else [])]

    def _knows(self, name: str, flag: str) -> bool:
        shown = subprocess.run([self._assets / name, "--help"], capture_output=True, text=True, check=False)
        return f" --{flag} " in (shown.stdout + shown.stderr).replace("\n", " ")

    # Credentials

    def client_certificate(self, user: str, *, groups: Sequence[str] = ()) -> Pair:
        """Issue a client certificate that this API server accepts; each call makes a new pair of files."""
        return self._authority.client(user, groups=groups)

    def kubeconfig(
        self,
        name: str,
        *,
        certificate: Pair | None = None,
        token: str | None = None,
        token_file: Path | None = None,
        server: str | None = None,
    ) -> Path:
        """Write a kubeconfig of this name, replacing an older one in one step, and return its path.

        Without a credential it is anonymous. `server` leads elsewhere than `url`, for instance through a proxy.
        """
        user: Object = {"token": token} if token else {}
        if token_file:
            user["tokenFile"] = str(token_file)
        if certificate:
            user |= {"client-certificate": str(certificate.certificate), "client-key": str(certificate.key)}
        path = self.home / f"{name}.kubeconfig"
        fresh = path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(_kubeconfig(server or self.url, self.ca_file, user)))
        fresh.replace(path)
        return path

    def service_account(self, name: str, *, rules: Sequence[Object]) -> Path:
        """Make a ServiceAccount with exactly these rights in namespace `devwatch`; return a kubeconfig with its token.

        The rights are in effect on return. Raises `ApiServerError`.
        """
        self._prepare_namespace()
        self._ensure(f"{_CORE}/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": name}})
        self._ensure(f"{_RBAC}/clusterroles", {"metadata": {"name": _role(name)}, "rules": list(rules)})
        self.grant(name)
        return self.kubeconfig(name, token=self.token(name))

    def token(self, name: str, *, seconds: int = 3600) -> str:
        """Return a fresh token of a ServiceAccount; the server allows none shorter than 600 seconds."""
        path = f"{_CORE}/namespaces/{NAMESPACE}/serviceaccounts/{name}/token"
        answer = self._must("POST", path, {"spec": {"expirationSeconds": seconds}})
        return str(answer["status"]["token"])

    def short_token(self, name: str, *, seconds: int) -> str:
        """Return a token of a ServiceAccount that we have signed ourselves, for a life of less than 600 seconds.

        The server may take it for ten seconds longer: so long it remembers what it has accepted.
        """
        account = self._must("GET", f"{_CORE}/namespaces/{NAMESPACE}/serviceaccounts/{name}")
        subject = {"namespace": NAMESPACE, "serviceaccount": {"name": name, "uid": account["metadata"]["uid"]}}
        now = int(time.time()) - _LEEWAY
        claims = {
            **dict.fromkeys(("iss", "aud"), _ISSUER),
            **dict.fromkeys(("iat", "nbf"), now),
            "exp": now + seconds,
            "sub": f"system:serviceaccount:{NAMESPACE}:{name}",
            "kubernetes.io": subject,
        }
        return signed_token(self._signer, claims)

    def grant(self, name: str) -> None:
        """Bind the ServiceAccount to its rights, and wait until the API server acts on it."""
        subject = {"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": _role(name)}
        self._ensure(
            f"{_RBAC}/clusterrolebindings",
            {"metadata": {"name": _role(name)}, "subjects": [subject], "roleRef": role},
        )
        self._await_rights(name, allowed=True)

    def revoke(self, name: str) -> None:
        """Take the rights of the ServiceAccount away, and wait until the API server acts on it."""
        self._must("DELETE", f"{_RBAC}/clusterrolebindings/{_role(name)}")
        self._await_rights(name, allowed=False)

    def _prepare_namespace(self) -> None:
        self._ensure(f"{_CORE}/namespaces", {"metadata": {"name": NAMESPACE}})
        # A pod needs it, and only the controller manager would make it. 1.20 refuses a pod whose account has no token
        # to mount yet, hence none is mounted.
        default = {"metadata": {"name": "default"}, "automountServiceAccountToken": False}
        self._ensure(f"{_CORE}/namespaces/{NAMESPACE}/serviceaccounts", default)

    def _await_rights(self, name: str, *, allowed: bool) -> None:
        rules = self._must("GET", f"{_RBAC}/clusterroles/{_role(name)}").get("rules") or []
        for rule in rules:
            eventually(lambda rule=rule: self._may(name, rule) == allowed, timeout=RBAC_TIMEOUT)  # type: ignore[misc]  # the default binds the loop's value

    def _may(self, name: str, rule: Object) -> bool:
        resource, _, subresource = rule["resources"][0].partition("/")
        attributes = {"group": rule["apiGroups"][0], "resource": resource, "subresource": subresource}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{NAMESPACE}:{name}",
                "resourceAttributes": {**attributes, "verb": rule["verbs"][0]},
            },
        }
        answer = self._must("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        return bool(answer["status"]["allowed"])

    # Requests

    def request(
        self, method: str, path: str, body: Object | None = None, *, content_type: str = "application/json"
    ) -> tuple[int, Object]:
        """Send a request as administrator; return the status code and the object that came back, `{}` for no object.

        Raises `OSError` when no answer comes within 20 seconds.
        """
        payload = None if body is None else json.dumps(body).encode()
        status, answer = self._exchange(self.url, method, path, payload, content_type)
        return status, (json.loads(answer) if answer.startswith(b"{") else {})

    def serves(self, group_version: str) -> bool:
        """Return whether the server has an API group in a version such as `policy/v1`, which 1.20 lacks."""
        return self.request("GET", f"/apis/{group_version}")[0] == http.HTTPStatus.OK

    def create_node(self, name: str, capacity: Mapping[str, str] | None = None) -> Object:
        """Make a Ready, untainted Node with `BASE_CAPACITY` and `capacity` in both maps, and return it."""
        # A kubelet sets it too; field managers (managedFields) are recorded only for an object that had a field at first.
        labels = {"kubernetes.io/hostname": name}
        self._must("POST", f"{_CORE}/nodes", {"metadata": {"name": name, "labels": labels}})
        self.untaint_node(name)
        resources = {**BASE_CAPACITY, **(capacity or {})}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "test Node"}
        status = {"capacity": resources, "allocatable": resources, "conditions": [ready]}
        return self._must("PATCH", f"{_CORE}/nodes/{name}/status", {"status": status})

    def untaint_node(self, name: str) -> None:
        """Remove the taint with which the admission plugin TaintNodesByCondition marks every new Node as not ready.

        That is otherwise the work of the controller that the tests do without (`start_controller_manager`).
        """
        self._must("PATCH", f"{_CORE}/nodes/{name}", {"spec": {"taints": None}})

    def node(self, name: str) -> Object:
        """Return the Node; raises `ApiServerError` when there is none."""
        return self._must("GET", f"{_CORE}/nodes/{name}")

    def delete_node(self, name: str) -> None:
        """Delete the Node; raises `ApiServerError` when there is none."""
        self._must("DELETE", f"{_CORE}/nodes/{name}")

    def _ensure(self, path: str, body: Object) -> None:
        status, answer = self.request("POST", path, {**_kind(path), **body})
        if status not in {http.HTTPStatus.CREATED, http.HTTPStatus.CONFLICT}:
            raise ApiServerError(f"POST {path}: {status} {answer.get('message', '')}")

    def _must(self, method: str, path: str, body: Object | None = None) -> Object:
        content_type = STRATEGIC_MERGE if method == "PATCH" else "application/json"
        status, answer = self.request(method, path, body, content_type=content_type)
        if not http.HTTPStatus.OK <= status < http.HTTPStatus.MULTIPLE_CHOICES:
            raise ApiServerError(f"{method} {path}: {status} {answer.get('message', '')}")
        return answer

    def connection(self) -> http.client.HTTPSConnection:
        """Return a connection of the administrator that waits without a limit, as a watch must."""
        address = urlsplit(self.url)
        return http.client.HTTPSConnection(str(address.hostname), address.port, context=self._tls)

    def _exchange(
        self, url: str, method: str, path: str, payload: bytes | None = None, content_type: str = "application/json"
    ) -> tuple[int, bytes]:
        address = urlsplit(url)
        connection = http.client.HTTPSConnection(
            str(address.hostname), address.port, context=self._tls, timeout=REQUEST_TIMEOUT
        )
        try:
            connection.request(method, path, payload, {"Content-Type": content_type})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _strict_tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self._authority.certificate))
        # Python 3.13 and newer check this much by default, so the daemon's own client will.
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_cert_chain(self._admin.certificate, self._admin.key)
        return context


def assets(environ: Mapping[str, str]) -> Path | None:
    """Return the folder of KUBEBUILDER_ASSETS when it holds an API server and etcd, else None."""
    folder = Path(environ.get("KUBEBUILDER_ASSETS") or "/nonexistent")
    return folder if all((folder / name).exists() for name in ("etcd", "kube-apiserver")) else None


def free_ports(count: int) -> list[int]:
    """Return this many ports of loopback that nothing listens on."""
    sockets = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _role(account: str) -> str:
    return f"{NAMESPACE}-{account}"


def _kind(path: str) -> Object:
    kinds = {
        "namespaces": "Namespace",
        "serviceaccounts": "ServiceAccount",
        "clusterroles": "ClusterRole",
        "clusterrolebindings": "ClusterRoleBinding",
    }
    version = _RBAC_VERSION if path.startswith(_RBAC) else "v1"
    return {"apiVersion": version, "kind": kinds[path.rpartition("/")[2]]}


def _kubeconfig(server: str, ca_file: Path, user: Object) -> Object:
    # JSON is YAML, so every reader of kubeconfigs takes it.
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": str(ca_file)}}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
