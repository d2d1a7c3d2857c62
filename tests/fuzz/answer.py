"""The API server: whatever answers in its place, a request gives a value or an `ApiError`, in one harmless line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from devwatch.core.errors import ApiError
from devwatch.core.incidents import Loss, Registration, Return
from devwatch.core.listing import Entry
from devwatch.core.node import ANNOTATION, NodeState
from devwatch.core.pods import on_loss, on_return
from devwatch.kube.cluster import overview, removal
from devwatch.kube.credentials import Credentials
from devwatch.kube.nodes import KubeNode
from devwatch.kube.pods import Workload
from fuzz.target import Feed, Target
from support.build import patch_of
from system.certificates import Authority, Pair

if TYPE_CHECKING:
    from collections.abc import Iterator

_USB0 = Entry(devnode="/dev/ttyUSB0")
_LOSS = Loss(
    resource="a/b",
    entries=(_USB0,),
    left=1,
    since=0,
    due=0,
    there=frozenset(),
    lost="2030-01-01T00:00:00Z",
    accepted="",
    others=frozenset(),
)
_OPENED = (Registration(second=0, number=6, paths=_USB0.paths), Registration(second=9, number=7, paths=frozenset()))
_RETURN = Return(resource="a/b", entries=(_USB0,), at=0, second=0, due=0, registrations=_OPENED)
PATIENCE = 5.0
"""Seconds for a request; the server here is never silent, so that none takes them."""
MOST_EVENTS = 8
"""Events of a watch that are read."""
END = NodeState()
"""Stands for the end of a watch."""
HEAD = b"HTTP/1.1 %d Status\r\nContent-Length: %d\r\n%s\r\n"

_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(("1", "-1", "1Ki"))
)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def _sometimes(usual: object) -> st.SearchStrategy[object]:
    return st.just(usual) | _TREES


def _object(**fields: object) -> st.SearchStrategy[object]:
    """Return an object that may lack fields or have strange ones in their place."""
    made = {
        name: value if isinstance(value, st.SearchStrategy) else _sometimes(value) for name, value in fields.items()
    }
    return st.fixed_dictionaries({}, optional=made) | st.fixed_dictionaries(made) | _TREES


_MANAGED = _object(
    manager="kubelet",
    time="2024-01-01T00:00:00Z",
    fieldsV1=_object(**{"f:status": _object(**{"f:capacity": {"f:a/b": {}}, "f:allocatable": _TREES})}),
)
_METADATA = _object(
    uid="u1",
    name="n",
    namespace="default",
    resourceVersion="42",
    annotations=_sometimes({ANNOTATION: '{"a/b":[{"devnode":"/dev/x"}]}'}),
    managedFields=st.lists(_MANAGED, max_size=2) | _TREES,
    ownerReferences=st.lists(_object(kind="ReplicaSet", controller=True), max_size=2) | _TREES,
)
_RESOURCES = _object(limits={"a/b": "1"}, requests=_sometimes({"a/b": 1}))
_CONTAINERS = st.lists(_object(resources=_RESOURCES, restartPolicy="Always"), max_size=2) | _TREES
_SPEC = _object(
    nodeName="n",
    containers=_CONTAINERS,
    initContainers=_CONTAINERS,
    volumes=st.lists(_object(hostPath=_object(path="/dev/x")), max_size=2) | _TREES,
)
_STATUS = _object(
    phase="Running",
    capacity={"a/b": "1", "cpu": "4"},
    allocatable=_sometimes({"a/b": "1"}),
    conditions=st.lists(_object(type="Ready", status="True"), max_size=2) | _TREES,
)
_ITEM = _object(kind="Node", metadata=_METADATA, spec=_SPEC, status=_STATUS)
_LIST = _object(kind="NodeList", items=st.lists(_ITEM, max_size=2) | _TREES, metadata=_object(resourceVersion="7"))
_REFUSAL = _object(
    kind="Status",
    reason="NotFound",
    code=410,
    message=_sometimes('nodes "n" is forbidden: User "system:serviceaccount:a:b" cannot patch resource "nodes/status"'),
)
_EVENT = _object(type=st.sampled_from(("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR")), object=_ITEM | _REFUSAL)
_CODES = st.sampled_from((200, 200, 200, 201, 204, 301, 400, 403, 404, 409, 410, 413, 422, 429, 500, 503))
_HEADERS = st.sampled_from(
    (
        *(b"", b"Retry-After: 7\r\n", b"Retry-After: \xff\r\n", b"Content-Encoding: gzip\r\n", b"X: \x1b[31m\r\n"),
        *(b"Transfer-Encoding: chunked\r\n", b"Location: /\r\n", b"Content-Type: text/html; charset=x\r\n"),
    )
)


def _whole(code: int, headers: bytes, trees: list[object]) -> bytes:
    body = b"\n".join(json.dumps(tree).encode() for tree in trees)
    return HEAD % (code, len(body), headers) + body


_ANSWERS = st.builds(_whole, _CODES, _HEADERS, st.lists(_ITEM | _LIST | _EVENT | _REFUSAL, min_size=1, max_size=2))
_DEEP = st.integers(1, 2000).map(
    lambda depth: HEAD % (200, 2 * depth, b"") + b"[" * depth + b"]" * depth  # JSON's own recursion
)
_CUT = st.tuples(_ANSWERS, st.integers(0, 600)).map(lambda pair: pair[0][: pair[1]])
_ASKED = st.integers(0, 3).map(lambda number: bytes([number]))
_GRAMMAR = st.tuples(_ASKED, _ANSWERS | _DEEP | _CUT | st.binary(max_size=60)).map(b"".join)


class _Server:
    """Answers every request with the same bytes and closes the connection."""

    def __init__(self) -> None:
        self.answer = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.answer)
        writer.close()


@dataclass(slots=True, kw_only=True)
class _World:
    """A client of the real edge, and a server that says what it is told to."""

    loop: asyncio.AbstractEventLoop
    server: _Server
    node: KubeNode
    failures: list[object] = field(default_factory=list)
    """What went wrong in a callback, where no caller hears it."""

    def feed(self, data: bytes) -> None:
        """Ask one of four questions, as the first byte says; the rest is the answer."""
        asks = (self._patch, self._watch, self._pods, self._status)
        self.server.answer = data[1:]
        try:
            self.loop.run_until_complete(asks[(data or b"\0")[0] % len(asks)]())
        except ApiError as error:
            _check_message(str(error))
        failures, self.failures = self.failures, []
        assert not failures, failures

    async def _patch(self) -> None:
        state = await self.node.patch(patch_of({"a/b": "1"}))
        json.dumps(removal(state).body())
        assert state.count("a/b") >= 0
        assert state.supersedes(None)
        state.reflects(patch_of({"a/b": "1"}))

    async def _watch(self) -> None:
        events = self.node.watch()
        async with contextlib.aclosing(events):  # type: ignore[type-var]  # it is a generator, and annotated as less
            for _ in range(MOST_EVENTS):
                state = await anext(events, END)
                if state is END:
                    break
                if state is not None:
                    state.listing()

    async def _pods(self) -> None:
        work = Workload(requests=self.node, node="n")
        for pod in await work.pods():
            on_loss(pod, _LOSS)
            on_return(pod, _RETURN)
            assert pod.title
            await work.evict(pod)

    async def _status(self) -> None:
        for row in (await overview(self.node)).resources:
            assert row.requested is None or row.requested >= 0
            assert all(map(str, (*row.warnings(), row.changed, row.devices)))


def _check_message(message: str) -> None:
    assert message
    assert "SECRET" not in message, message
    assert len(message) < 1500, message
    assert len(message.splitlines()) == 1, message


@contextlib.contextmanager
def _open() -> Iterator[Feed]:
    with tempfile.TemporaryDirectory() as home, asyncio.Runner() as runner:  # which cancels what is left in the end
        loop, server = runner.get_loop(), _Server()
        authority = Authority(Path(home, "pki"))
        tls = _tls(authority.server("server", dns=[], addresses=["127.0.0.1"]))
        listening = loop.run_until_complete(asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls))
        port = listening.sockets[0].getsockname()[1]
        config = _kubeconfig(Path(home), f"https://127.0.0.1:{port}", authority.certificate)
        node = KubeNode("n", Credentials(kubeconfig=config, environ={}), version="0", timeout=PATIENCE)
        world = _World(loop=loop, server=server, node=node)
        loop.set_exception_handler(lambda _, context: world.failures.append(context))
        try:
            yield world.feed
        finally:
            loop.run_until_complete(node.close())
            listening.close()


def _tls(pair: Pair) -> ssl.SSLContext:
    # Not without TLS: a client without an authority of its own reads the system's two hundred after every failure.
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


def _kubeconfig(home: Path, server: str, authority: Path) -> str:
    path = home / "kubeconfig"
    content: dict[str, Any] = {
        "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": str(authority)}}],
        "users": [{"name": "u", "user": {"token": "SECRET-token"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(content))
    return str(path)


_NODE = {
    "kind": "Node",
    "metadata": {
        "uid": "u1",
        "name": "n",
        "resourceVersion": "42",
        "annotations": {ANNOTATION: "{}"},
        "managedFields": [{"manager": "m", "time": "t", "fieldsV1": {"f:status": {"f:capacity": {"f:a/b": {}}}}}],
    },
    "status": {"capacity": {"a/b": "1"}, "allocatable": {"a/b": "1"}, "conditions": [{"type": "Ready"}]},
}
_POD = {
    "metadata": {"name": "p", "namespace": "d", "uid": "p1", "ownerReferences": [{"kind": "R", "controller": True}]},
    "spec": {"nodeName": "n", "containers": [{"resources": {"limits": {"a/b": "1"}}}]},
}

ANSWER = Target(
    open=_open,
    grammar=_GRAMMAR,
    seeds=(
        b"\0" + _whole(200, b"", [_NODE]),
        b"\1" + _whole(200, b"", [{"kind": "NodeList", "metadata": {"resourceVersion": "7"}, "items": [_NODE]}]),
        b"\2" + _whole(200, b"", [{"kind": "PodList", "metadata": {"continue": ""}, "items": [_POD]}]),
        b"\3" + _whole(200, b"", [{"kind": "NodeList", "items": [_NODE]}]),
        b"\0" + _whole(429, b"Retry-After: 3\r\n", [{"kind": "Status", "message": "slow down"}]),
    ),
)
