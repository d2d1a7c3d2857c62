"""The sockets that devwatch serves: whatever a client sends, its connection may end, the server does not, and the next call is answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError, Message
from grpclib.client import UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError
from hypothesis import strategies as st

from devwatch.agent.clock import Clock
from devwatch.agent.pluginreport import PluginReport
from devwatch.agent.registration import Registration
from devwatch.core.errors import Forbidden, Missing
from devwatch.core.handover import Handover
from devwatch.core.rules import Count
from devwatch.core.slots import Slots
from devwatch.kubelet import kubelet_pb2 as pb
from devwatch.kubelet.node import Kubelet
from devwatch.kubelet.plugin import PluginServer
from devwatch.kubelet.protocol import KubeletChannel
from fuzz import wire
from fuzz.book import Book
from fuzz.target import Feed, Target
from support.build import ZIGBEE, device, rule
from support.claims import UID, allocated, reference, state
from support.claimsite import ClaimServer, ClaimSite, claim_site
from support.virtualtime import LAST_MOMENT, VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from devwatch.core.claims import ClaimReference, ClaimState

_STICKS = (device(), device("ttyUSB1"))
_SLOTS = Slots(ZIGBEE, Count.DEVICE, ()).update(_STICKS, len(_STICKS), certain=True)
_A, _B = (slot.id for slot in _SLOTS)
_LONE = "\ud800"
"""What JSON can say and UTF-8 cannot."""
_PLUGIN, _DRIVER, _REGISTRY = (
    "/v1beta1.DevicePlugin/",
    "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/",
    "/pluginregistration.Registration/",
)
_HEALTH = "/v1alpha1.DRAResourceHealth/NodeWatchResources"


@dataclass(frozen=True, slots=True)
class _Method:
    name: str
    request: type[Message]
    reply: type[Message]
    streams: bool = False


_METHODS = (
    _Method(f"{_PLUGIN}Allocate", pb.AllocateRequest, pb.AllocateResponse),
    _Method(f"{_DRIVER}NodePrepareResources", pb.NodePrepareResourcesRequest, pb.NodePrepareResourcesResponse),
    _Method(f"{_DRIVER}NodeUnprepareResources", pb.NodeUnprepareResourcesRequest, pb.NodeUnprepareResourcesResponse),
    _Method(f"{_REGISTRY}NotifyRegistrationStatus", pb.RegistrationStatus, pb.Empty),
    _Method(f"{_REGISTRY}GetInfo", pb.Empty, pb.PluginInfo),
    _Method(f"{_PLUGIN}GetDevicePluginOptions", pb.Empty, pb.DevicePluginOptions),
    _Method(f"{_PLUGIN}ListAndWatch", pb.Empty, pb.ListAndWatchResponse, streams=True),
    _Method(_HEALTH, pb.Empty, pb.Empty, streams=True),
)
_ALLOCATE, _PREPARE, _UNPREPARE, _NOTIFY = range(4)
_SILENT = 1.0
"""Seconds after which a stream counts as silent, as that of the health is."""
_MESSAGE, _CALL, _FRAMES, _BYTES = range(4)
"""What the bytes are: a message, what follows the head of a call, what follows the preface, all that is sent."""


class _AsItIs(CodecBase):
    """Sends bytes as a message."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, _message_type: type[bytes]) -> bytes:
        """Return the bytes."""
        return message

    def decode(self, data: bytes, message_type: type[Message]) -> Message:
        """Return the answer."""
        return message_type.FromString(data)


class _Api(ClaimServer):
    """An API server that has every claim, in five ways; the name of the claim decides."""

    async def read(self, claim: ClaimReference) -> ClaimState:
        """Answer at once."""
        await asyncio.sleep(0)
        way = len(claim.name) % 5
        if way == 0:
            raise Missing("not found")
        if way == 1:
            return state(allocated(_A, request=claim.name), allocated(_B), uid=claim.uid)
        if way == 2:
            return state(allocated(f"{claim.name}{_LONE}"), uid=claim.uid)
        if way == 3:
            raise Forbidden(f"cannot get {claim.name}{_LONE}", hint="grant it")
        return state(allocated(_A), uid=f"{claim.uid}0")


@dataclass(slots=True, kw_only=True)
class _World:
    """A device plugin and a DRA driver that the kubelet calls, and another client."""

    runner: asyncio.Runner
    site: ClaimSite
    book: Book
    paths: dict[str, Path]
    """The sockets by the service that is on each."""
    channels: dict[Path, KubeletChannel]
    failures: list[object] = field(default_factory=list)
    """What went wrong in a callback, where no caller hears it."""

    def feed(self, data: bytes) -> None:
        """Call a method, or send what only begins as a call, as the first byte says; then call the same socket properly."""
        self.failures.clear()
        self.book.lines()
        self.runner.run(self._feed(data))
        lines = self.book.lines()
        assert all(line.isprintable() for line in lines), lines
        assert not self.failures, self.failures

    async def _feed(self, data: bytes) -> None:
        way, number = divmod((data or b"\0")[0] % 32, len(_METHODS))
        method, content = _METHODS[number], data[1:]
        path = self.paths.get(f"{method.name.rpartition('/')[0]}/", self.paths[_DRIVER])
        if way == _MESSAGE:
            await self._call(self.channels[path], method, content)
            lines = self.book.lines()
            assert not any('"library.logged"' in line for line in lines), lines
        else:
            head = {_CALL: wire.request(method.name), _FRAMES: wire.PREFACE, _BYTES: b""}[way]
            await self._send(path, head + content)
        await self._call_properly(self.channels[path], path)

    async def _send(self, path: Path, content: bytes) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(content)
        await asyncio.sleep(0.05)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        del reader

    async def _call(self, channel: KubeletChannel, method: _Method, content: bytes) -> None:
        try:
            request = method.request.FromString(content)
        except DecodeError:
            request = None
        answer, refusal = None, None
        try:
            answer = await (_first if method.streams else _only)(channel, method, content)
        except GRPCError as error:
            refusal = error.status
        assert refusal is _refusal_of(request)
        check = getattr(self, f"_check_{method.name.rpartition('/')[2]}", None)
        if refusal is None and check is not None:
            check(request, answer)

    def _check_Allocate(self, request: pb.AllocateRequest, answer: pb.AllocateResponse) -> None:  # noqa: N802 - the method's name
        assert len(answer.container_responses) == len(request.container_requests)
        for asked, given in zip(request.container_requests, answer.container_responses, strict=True):
            assert len(given.devices) == len(asked.devices_ids)

    def _check_NodePrepareResources(  # noqa: N802
        self, request: pb.NodePrepareResourcesRequest, answer: pb.NodePrepareResourcesResponse
    ) -> None:
        """Check that each claim has devices or a reason, and that no name of a claim gets out of its CDI file."""
        assert set(answer.claims) == {claim.uid for claim in request.claims}
        for given in answer.claims.values():
            assert bool(given.devices) != bool(given.error)
            assert given.error.isprintable(), given.error
        names = {device["name"] for path in (self.site.folder / "cdi").iterdir() for device in _cdi_devices(path)}
        given_names = {
            cdi for each in answer.claims.values() for device in each.devices for cdi in device.cdi_device_ids
        }
        assert given_names <= {f"devwatch.io/claim={name}" for name in names}

    def _check_NodeUnprepareResources(  # noqa: N802
        self, request: pb.NodeUnprepareResourcesRequest, answer: pb.NodeUnprepareResourcesResponse
    ) -> None:
        assert set(answer.claims) == {claim.uid for claim in request.claims}

    def _check_NotifyRegistrationStatus(self, request: pb.RegistrationStatus, _answer: pb.Empty) -> None:  # noqa: N802
        failure = self.site.driver.registration.failure
        assert request.plugin_registered or len(failure.splitlines()) == 1, failure
        assert len(failure) < 1000, failure

    async def _call_properly(self, channel: KubeletChannel, path: Path) -> None:
        """Check that a good call has its answer, and end what the call before has begun."""
        if path == self.paths[_PLUGIN]:
            asked = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=[_A])])
            answer: Any = await _only(channel, _METHODS[_ALLOCATE], asked.SerializeToString())
            assert answer.container_responses[0].devices[0].host_path == str(path.parent / "devwatch" / _A)
        elif path == self.paths[_REGISTRY]:
            status = pb.RegistrationStatus(plugin_registered=True)
            await _only(channel, _METHODS[_NOTIFY], status.SerializeToString())
        else:
            assert (await self.site.kubelet.prepare(reference()))[UID].error == ""
            await self.site.kubelet.unprepare(*(each.reference for each in self.site.driver.holders))
            assert self.site.recorded == set()
            assert list((self.site.folder / "cdi").iterdir()) == []


async def _only(channel: KubeletChannel, method: _Method, content: bytes) -> Message:
    """Return the only answer to a call. Raises `GRPCError`."""
    answer: Message = await UnaryUnaryMethod(channel, method.name, bytes, method.reply)(content)
    return answer


async def _first(channel: KubeletChannel, method: _Method, content: bytes) -> Message | None:
    """Return the first answer on a stream, None where it stays silent, and reset it. Raises `GRPCError`."""
    async with UnaryStreamMethod(channel, method.name, bytes, method.reply).open() as stream:
        await stream.send_message(content, end=True)
        answer: Message | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SILENT):
                answer = await stream.recv_message()
        await stream.cancel()
    return answer


def _refusal_of(request: Message | None) -> Status | None:
    """Return how a call is to be refused, None where it is not; its request is None for bytes that are no message."""
    if request is None:
        return Status.INVALID_ARGUMENT
    containers = request.container_requests if isinstance(request, pb.AllocateRequest) else ()
    unknown = {name for each in containers for name in each.devices_ids} - {_A, _B}
    return Status.NOT_FOUND if unknown else None


def _cdi_devices(path: Path) -> list[dict[str, Any]]:
    text = path.read_text("ascii")
    assert text.replace("\n", "").isprintable(), text
    devices: list[dict[str, Any]] = json.loads(text)["devices"]
    return devices


@contextlib.asynccontextmanager
async def _world(home: Path, runner: asyncio.Runner) -> AsyncIterator[_World]:
    """Have the sockets served."""
    loop, book = asyncio.get_running_loop(), Book.of("json")
    clock = Clock(now=loop.time, unix=lambda: 0.0, jitter=lambda: 0.5)
    kubelet, report = Kubelet(plugins=home, folder=home), PluginReport(telemetry=book.telemetry)
    registration = Registration(rule=rule(), handover=Handover(), kubelet=kubelet, clock=clock, report=report)
    offer = registration.offer(_SLOTS, (), (), {_A: "/dev/ttyUSB0", _B: "/dev/ttyUSB1"})
    server = PluginServer(home / "p.sock", registration, kubelet.links.folder)
    await server.start()
    server.offer(offer)
    async with claim_site(home, *_STICKS, api=_Api(), log=book.log, metrics=book.metrics) as site:
        paths = {
            _PLUGIN: home / "p.sock",
            _DRIVER: home / "plugins" / "devwatch.io" / "dra.sock",
            _REGISTRY: home / "plugins_registry" / "devwatch.io-reg.sock",
        }
        channels = {path: KubeletChannel(path=str(path), codec=_AsItIs()) for path in paths.values()}
        world = _World(runner=runner, site=site, book=book, paths=paths, channels=channels)
        loop.set_exception_handler(lambda _, context: world.failures.append(context))
        yield world
        for channel in channels.values():
            channel.close()
    await server.close()


@contextlib.contextmanager
def _open() -> Iterator[Feed]:
    with (
        tempfile.TemporaryDirectory(prefix="dw-") as home,
        asyncio.Runner(loop_factory=partial(VirtualTimeLoop, end=LAST_MOMENT)) as runner,
    ):
        context = _world(Path(home), runner)
        world = runner.run(context.__aenter__())
        try:
            yield world.feed
        finally:
            runner.run(context.__aexit__(None, None, None))


_IDS = st.sampled_from((_A, _A, _B)) | wire.TEXTS
_UIDS = st.sampled_from((UID, "1", "a-b", "x" * 300, "../../etc/x", "-", "1\n")) | wire.TEXTS
_CLAIMS = st.lists(
    st.builds(pb.DraClaim, namespace=wire.TEXTS, uid=_UIDS, name=st.sampled_from(("c", "cc", "ccc")) | wire.TEXTS),
    max_size=3,
)
_CONTAINERS = st.builds(pb.ContainerAllocateRequest, devices_ids=st.lists(_IDS, max_size=3))
_GOOD = {
    _ALLOCATE: st.builds(pb.AllocateRequest, container_requests=st.lists(_CONTAINERS, max_size=2)),
    _PREPARE: st.builds(pb.NodePrepareResourcesRequest, claims=_CLAIMS),
    _UNPREPARE: st.builds(pb.NodeUnprepareResourcesRequest, claims=_CLAIMS),
    _NOTIFY: st.builds(pb.RegistrationStatus, plugin_registered=st.booleans(), error=wire.TEXTS),
}


def _first_byte(way: int, number: int) -> bytes:
    return bytes([way * len(_METHODS) + number])


def _called(number: int, good: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return wire.messages(good).map(lambda content: _first_byte(_MESSAGE, number) + content)


_ODD = st.tuples(
    st.integers(len(_METHODS), 4 * len(_METHODS) - 1).map(lambda number: bytes([number])), wire.FRAMES
).map(b"".join)
_CALLS = st.one_of(*(_called(number, _GOOD.get(number, st.builds(pb.Empty))) for number in range(len(_METHODS))))
_GRAMMAR = st.booleans().flatmap(lambda odd: _ODD if odd else _CALLS)  # a union would nearly always be a call
_CLAIM = pb.DraClaim(namespace="home", uid="1", name="c")

PLUGIN = Target(
    open=_open,
    grammar=_GRAMMAR,
    seeds=(
        _first_byte(_MESSAGE, _ALLOCATE)
        + pb.AllocateRequest(
            container_requests=[pb.ContainerAllocateRequest(devices_ids=[_A, _B])]
        ).SerializeToString(),
        _first_byte(_MESSAGE, _PREPARE) + pb.NodePrepareResourcesRequest(claims=[_CLAIM]).SerializeToString(),
        _first_byte(_MESSAGE, _UNPREPARE) + pb.NodeUnprepareResourcesRequest(claims=[_CLAIM]).SerializeToString(),
        _first_byte(_MESSAGE, _NOTIFY) + pb.RegistrationStatus(error="no version in common").SerializeToString(),
        *(_first_byte(_MESSAGE, number) for number in range(_NOTIFY + 1, len(_METHODS))),
        _first_byte(_CALL, _PREPARE) + wire.message(b""),
        _first_byte(_FRAMES, _ALLOCATE),
        _first_byte(_BYTES, _ALLOCATE) + b"GET / HTTP/1.1\r\n\r\n",
    ),
)
