"""The kubelet: whatever answers on its sockets, a call gives a value or a `KubeletError` in time, and what is told of it is harmless."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from devwatch.agent.pluginreport import PluginReport
from devwatch.core.errors import KubeletError
from devwatch.core.holders import Holding
from devwatch.kubelet import client
from devwatch.kubelet import kubelet_pb2 as pb
from fuzz import wire
from fuzz.book import Book
from fuzz.target import Feed, Target
from support import virtualtime

if TYPE_CHECKING:
    from collections.abc import Iterator

_RESOURCE = "a.io/x"
_LATE = 1000.0
"""Seconds after which health tells of what is not registered."""
_LONGEST = 1500
"""Characters of a message at most."""
_OPEN, _CLOSED, _FRAMES, _MESSAGE, _REFUSAL = range(5)
"""What the bytes are: all that is said, before the connection stays open or ends; frames after the head of an answer; its message; its
status, and the words for it."""


def _answer(framing: int, data: bytes) -> bytes:
    if framing in {_OPEN, _CLOSED}:
        return data
    if framing == _FRAMES:
        return wire.BEGIN + wire.ANSWER + data
    if framing == _MESSAGE:
        return wire.BEGIN + wire.ANSWER + wire.message(data) + wire.headers(("grpc-status", "0"), end=True)
    status = ("grpc-status", str((data or b"\2")[0] % 20))
    return wire.BEGIN + wire.ANSWER + wire.headers(status, ("grpc-message", data[1:]), end=True)


@dataclass(slots=True, kw_only=True)
class _World:
    """A kubelet that says what it is told to, and a daemon as far as it reports what went wrong."""

    path: Path
    book: Book
    failures: list[object] = field(default_factory=list)
    """What went wrong in a callback, where no caller hears it."""

    def feed(self, data: bytes) -> None:
        """Ask one of three questions, as the first byte says, which also says what the rest is."""
        framing, question = divmod((data or b"\0")[0] % 15, 3)
        self.failures.clear()
        virtualtime.run(lambda: self._ask(question, _answer(framing, data[1:]), ends=framing == _CLOSED))
        assert not self.failures, self.failures

    async def _ask(self, question: int, answer: bytes, *, ends: bool) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.failures.append(context))

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                writer.write(answer)
                while not ends and await reader.read(4096):
                    pass
            writer.close()

        server = await asyncio.start_unix_server(serve, str(self.path))
        limit = (client.REGISTER_TIMEOUT, client.READ_TIMEOUT, client.READ_TIMEOUT)[question]
        try:
            await (self._register, self._allocatable, self._holdings)[question]()
        except KubeletError as error:
            self._check_error(error)
        assert loop.time() <= limit + 0.1
        server.close()
        await asyncio.sleep(0.1)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def _register(self) -> None:
        await client.register(self.path, endpoint="e.sock", resource=_RESOURCE)

    async def _allocatable(self) -> None:
        found = await client.allocatable(self.path)
        assert all(type(ids) is frozenset for ids in found.values()), found
        assert all(type(text) is str for name, ids in found.items() for text in (name, *ids)), found

    async def _holdings(self) -> None:
        for each in await client.holdings(self.path):
            assert type(each) is Holding
            assert type(each.ids) is frozenset
            names = (each.namespace, each.pod, each.container, each.resource, each.claim)
            assert all(type(text) is str for text in (*names, *each.ids)), each

    def _check_error(self, error: KubeletError) -> None:
        """Check that the error is one line, as health demands of its texts, and that nobody who is told of it is fooled."""
        message = str(error)
        assert message
        assert len(message) < _LONGEST, len(message)
        assert len(message.splitlines()) == 1, message
        telemetry = self.book.telemetry
        PluginReport(telemetry=telemetry).lost(_RESOURCE, error)
        telemetry.health.unregistered = {_RESOURCE: (0.0, message)}
        assert telemetry.health.readyz(_LATE)[1].isprintable()
        lines = self.book.lines()
        assert len(lines) == 1, lines  # a library that complains would write one too
        assert lines[0].isprintable(), lines
        assert '"kubelet.lost"' in lines[0], lines


@contextlib.contextmanager
def _open() -> Iterator[Feed]:
    with tempfile.TemporaryDirectory(prefix="dw-") as home:
        yield _World(path=Path(home, "s"), book=Book.of("json")).feed


_DEVICES = st.builds(pb.ContainerDevices, resource_name=wire.TEXTS, device_ids=st.lists(wire.TEXTS, max_size=3))
_CLAIMS = st.builds(
    pb.DynamicResource,
    claim_name=wire.TEXTS,
    claim_namespace=wire.TEXTS,
    claim_resources=st.lists(
        st.builds(pb.ClaimResource, driver_name=wire.TEXTS, pool_name=wire.TEXTS, device_name=wire.TEXTS), max_size=2
    ),
)
_CONTAINERS = st.builds(
    pb.ContainerResources,
    name=wire.TEXTS,
    devices=st.lists(_DEVICES, max_size=2),
    dynamic_resources=st.lists(_CLAIMS, max_size=2),
)
_PODS = st.builds(pb.PodResources, name=wire.TEXTS, namespace=wire.TEXTS, containers=st.lists(_CONTAINERS, max_size=2))
_MESSAGES = wire.messages(
    st.builds(pb.ListPodResourcesResponse, pod_resources=st.lists(_PODS, max_size=2))
    | st.builds(pb.AllocatableResourcesResponse, devices=st.lists(_DEVICES, max_size=3))
)
_REFUSALS = st.tuples(st.integers(0, 19), wire.TEXTS.map(str.encode) | st.binary(max_size=20)).map(
    lambda pair: bytes([pair[0]]) + pair[1]
)


def _asked(framing: int) -> st.SearchStrategy[bytes]:
    return st.integers(0, 2).map(lambda question: bytes([framing * 3 + question]))


_GRAMMAR = (
    st.tuples(_asked(_MESSAGE), _MESSAGES)
    | st.tuples(_asked(_FRAMES), wire.FRAMES)
    | st.tuples(_asked(_REFUSAL), _REFUSALS)
    | st.tuples(_asked(_OPEN) | _asked(_CLOSED), wire.FRAMES.map(lambda frames: wire.BEGIN + frames) | wire.FRAMES)
).map(b"".join)
_LISTED = pb.ContainerDevices(resource_name=_RESOURCE, device_ids=["a", "b"])
_POD = pb.PodResources(name="p", namespace="d", containers=[pb.ContainerResources(name="c", devices=[_LISTED])])

KUBELET = Target(
    open=_open,
    grammar=_GRAMMAR,
    seeds=(
        bytes([_MESSAGE * 3]),
        bytes([_MESSAGE * 3 + 1]) + pb.AllocatableResourcesResponse(devices=[_LISTED]).SerializeToString(),
        bytes([_MESSAGE * 3 + 2]) + pb.ListPodResourcesResponse(pod_resources=[_POD]).SerializeToString(),
        bytes([_REFUSAL * 3, 2]) + b"the name is invalid",
        bytes([_OPEN * 3 + 1]) + b"HTTP/1.1 400 Bad Request\r\n\r\n",
        bytes([_FRAMES * 3 + 1]) + wire.headers(("grpc-status", "12"), end=True),
    ),
)
