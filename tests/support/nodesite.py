"""An API server over real HTTP on loopback: it lists Nodes, pods, claims and slices, merges patches of status, refuses on request."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from devwatch.core.node import ANNOTATION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RESOURCE = "a.io/stick"
_DYNAMIC = "/apis/resource.k8s.io/v1/"
Node = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Site:
    """The Nodes by name, each with one resource of devwatch, and what was asked of them."""

    nodes: dict[str, Node]
    kubeconfig: str
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By Node: the status and message by which a patch that changes it is refused."""
    pods: list[dict[str, Any]] = field(default_factory=list)
    """The pods of the cluster."""
    unlisted: str = ""
    """The message by which a list of the pods is refused, empty where it is answered."""
    objects: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """By resource of resource.k8s.io/v1 the objects by name. A resource that is not here is not served."""
    forbidden: dict[tuple[str, str], str] = field(default_factory=dict)
    """By method and resource of resource.k8s.io/v1: the message by which it is refused."""
    deleted: list[str] = field(default_factory=list)
    """The objects of resource.k8s.io/v1 that were to be deleted, dry runs included, in this order."""
    at_deletion: Callable[[str], object] = lambda _name: None
    """Called with the name of an object after it was deleted."""
    removed: list[str] = field(default_factory=list)
    """The Nodes that were written, in this order."""
    asked: list[str] = field(default_factory=list)
    """The Nodes that were patched, refused ones and dry runs included, in this order."""
    at_removal: Callable[[str], None] = lambda _name: None
    """Called with the name of a Node after it was written."""

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return status and object for a request."""
        route, _, query = path.partition("?")
        if route == "/api/v1/pods":
            return (403, _status(403, self.unlisted)) if self.unlisted else (200, {"metadata": {}, "items": self.pods})
        if route.startswith(_DYNAMIC):
            return self._answer_dynamic(method, route.removeprefix(_DYNAMIC), unquote(query), body)
        if method == "GET":
            return 200, {"kind": "NodeList", "metadata": {}, "items": list(self.nodes.values())}
        name = route.split("/")[4]
        self.asked.append(name)
        if name not in self.nodes:
            return 404, _status(404, f'nodes "{name}" not found', "NotFound")
        if body and name in self.refusals:
            return self.refusals[name][0], _status(*self.refusals[name])
        return 200, self._merged(name, body, keep="dryRun=All" not in query)

    def _answer_dynamic(self, method: str, route: str, query: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        kind, _, name = route.partition("/")
        if kind not in self.objects:
            return 404, {}
        if message := self.forbidden.get((method, kind)):
            return 403, _status(403, message)
        found = self.objects[kind]
        if method == "GET":
            items = [each for each in found.values() if _is_selected(each, query)]
            return 200, {"metadata": {}, "items": items}
        self.deleted.append(name)
        if name not in found:
            return 404, _status(404, f"{name} not found", "NotFound")
        if found[name]["metadata"]["uid"] != body["preconditions"]["uid"]:
            return 409, _status(409, "the UID in the precondition differs", "Conflict")
        if body.get("dryRun") != ["All"]:
            del found[name]
            self.at_deletion(name)
        return 200, _status(200, "")

    def _merged(self, name: str, body: dict[str, Any], *, keep: bool) -> Node:
        before = self.nodes[name]
        after = json.loads(json.dumps(before))
        _merge(after, body)
        if keep:
            self.nodes[name] = after
        if keep and body:
            self.removed.append(name)
            self.at_removal(name)
        return {"kind": "Node", **after}


def _is_selected(item: dict[str, Any], query: str) -> bool:
    """Return whether the field selector of a query selects an object."""
    (selector,) = [part.partition("=")[2] for part in query.split("&") if part.startswith("fieldSelector=")] or [""]
    pairs = (term.split("=") for term in selector.split(",") if term)
    return all(item["spec"].get(path.removeprefix("spec.")) == value for path, value in pairs)


def _status(code: int, message: str, reason: str = "") -> dict[str, Any]:
    return {"kind": "Status", "code": code, "message": message, "reason": reason}


def _merge(target: dict[str, Any], body: dict[str, Any]) -> None:
    for key, value in body.items():
        if isinstance(value, dict):
            _merge(target.setdefault(key, {}), value)
        elif value is None:
            target.pop(key, None)
        else:
            target[key] = value


OURS: dict[str, Any] = {
    "f:metadata": {"f:annotations": {f"f:{ANNOTATION}": {}}},
    "f:status": {part: {f"f:{RESOURCE}": {}} for part in ("f:capacity", "f:allocatable")},
}


def node(name: str) -> Node:
    """Return a Node on which devwatch advertises one stick."""
    counts, same = ({"cpu": "4", RESOURCE: "1"} for _ in range(2))
    annotations = {ANNOTATION: json.dumps({RESOURCE: []})}
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": "5",
            "annotations": annotations,
            "managedFields": [
                {"manager": "devwatch", "operation": "Update", "subresource": "status", "fieldsV1": OURS}
            ],
        },
        "status": {"capacity": counts, "allocatable": same},
    }


@contextmanager
def site(folder: Path, *names: str) -> Iterator[Site]:
    """Run it with these Nodes; its kubeconfig goes into the folder."""
    made = Site(nodes={name: node(name) for name in names}, kubeconfig=str(folder / "kubeconfig"))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept, as those to an API server

        def _answer(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = made.answer(self.command, self.path, json.loads(text or b"{}"))
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is there
            """Write nothing."""

        do_GET = do_PATCH = do_DELETE = _answer  # noqa: N815 - the names that http.server calls

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    (folder / "kubeconfig").write_text(_kubeconfig(f"http://127.0.0.1:{server.server_address[1]}"))
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _kubeconfig(server: str) -> str:
    return json.dumps(
        {
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {"token": "of-nobody"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
    )
