"""The API server of the system tests with an audit log, which knows every request and how long the server had it."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from system.apiserver import NAMESPACE, ApiServer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from system.apiserver import Object

    Reading = Callable[[Object], Mapping[str, object]]

RIGHTS: list[Object] = [
    {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
]
"""What an administrator who has read docs/security.md grants."""
WAIT = 60.0
_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as the server saw it; times are seconds of the wall clock."""

    user: str
    verb: str
    target: str
    """The resource, with its subresource: `nodes/status`."""
    name: str
    code: int
    received: float
    seconds: float
    """From its arrival to the end of its answer; of a watch, to its beginning."""


class AuditedServer(ApiServer):
    """An `ApiServer` with an audit log of every request."""

    def __init__(self, assets: Path) -> None:
        """Prepare as `ApiServer` does."""
        super().__init__(assets)
        self._policy, self._audit = self.home / "audit-policy.json", self.home / "audit.log"
        self._policy.write_text(json.dumps(_POLICY))

    def _flags(self) -> list[str]:
        return [*super()._flags(), f"--audit-policy-file={self._policy}", f"--audit-log-path={self._audit}"]

    def mark(self) -> int:
        """Return where the audit log ends now."""
        return self._audit.stat().st_size

    def requests(self, account: str, *, since: int = 0) -> list[Request]:
        """Return the requests of a ServiceAccount after a `mark`, in the order of their end."""
        with self._audit.open("rb") as file:
            file.seek(since)
            lines = file.read().rpartition(b"\n")[0].splitlines()
        user = f"system:serviceaccount:{NAMESPACE}:{account}".encode()
        found = (_request(json.loads(line)) for line in lines if user in line)
        return [request for request in found if request.user.endswith(f":{account}")]

    def tls(self, name: str) -> ssl.SSLContext:
        """Return a TLS context with the client certificate of an administrator of this name."""
        pair = self.client_certificate(name, groups=["system:masters"])
        context = ssl.create_default_context(cafile=str(self.ca_file))
        context.load_cert_chain(pair.certificate, pair.key)
        return context


def _request(event: Mapping[str, Any]) -> Request:
    target = event.get("objectRef") or {}
    received, ended = (_seconds(event[name]) for name in ("requestReceivedTimestamp", "stageTimestamp"))
    return Request(
        user=event["user"]["username"],
        verb=event["verb"],
        target="/".join(filter(None, (target.get("resource"), target.get("subresource")))),
        name=str(target.get("name")),
        code=int((event.get("responseStatus") or {}).get("code", 0)),
        received=received,
        seconds=ended - received,
    )


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


class Viewer:
    """A watch that records since when each observed value has been what it is, in seconds of `time.monotonic`."""

    def __init__(self, server: AuditedServer, path: str, reading: Reading) -> None:
        """Watch the objects of `path`; `reading` returns the observed values of one, by key."""
        self._path, self._reading = path, reading
        address = urlsplit(server.url)
        self._connection = http.client.HTTPSConnection(
            str(address.hostname), address.port, context=server.tls("viewer")
        )
        self._shown: dict[str, tuple[object, float]] = {}
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        """Begin; the existing objects are read first."""
        self._connection.request("GET", f"{self._path}?watch=1")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the watch."""
        if self._connection.sock is not None:
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()

    def wait(self, key: str, *values: object, timeout: float = WAIT) -> float:
        """Return since when `key` shows one of `values`, once it does. Raises `AssertionError` after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.value(key) in values, timeout):
                raise AssertionError(f"{key} is {self.value(key)!r} and none of {values!r} after {timeout:g} s")
            return self._shown[key][1]

    def value(self, key: str) -> object:
        """Return what `key` shows now, None where nothing has shown it."""
        return self._shown.get(key, (None, 0.0))[0]

    def _follow(self) -> None:
        try:
            answer = self._connection.getresponse()
            while line := answer.readline():
                self._take(json.loads(line)["object"], time.monotonic())
        except (OSError, ValueError, http.client.HTTPException):
            return  # closed by `close`; a caller that still waits fails by its timeout

    def _take(self, item: Object, now: float) -> None:
        with self._changed:
            for key, value in self._reading(item).items():
                if self.value(key) != value:
                    self._shown[key] = (value, now)
            self._changed.notify_all()


def advertised(node: Object) -> dict[str, object]:
    """Read capacity and allocatable of the extended resources, by `NODE RESOURCE`."""
    capacity, allocatable = (node["status"].get(name) or {} for name in ("capacity", "allocatable"))
    names = {name for name in {**capacity, **allocatable} if "/" in name}
    return {f"{node['metadata']['name']} {name}": (capacity.get(name), allocatable.get(name)) for name in names}


def placed(pod: Object) -> dict[str, object]:
    """Read where a pod is bound, `pending` once the scheduler has found no place, by `POD`."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    waits = any(item["type"] == "PodScheduled" and item["status"] == "False" for item in conditions)
    return {pod["metadata"]["name"]: pod["spec"].get("nodeName") or ("pending" if waits else None)}
