"""A kubelet as far as its sockets go: gRPC over unix sockets of this process, with faults to inject."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grpclib.client import UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from devwatch.kubelet import kubelet_pb2 as pb
from devwatch.kubelet.protocol import KubeletChannel, KubeletServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from google.protobuf.message import Message
    from grpclib.client import Stream as ClientStream
    from grpclib.server import Stream

_Methods = dict[str, "tuple[Callable[..., Any], type[Message], type[Message]]"]
"""By name: the method, and the types of its request and its reply."""
_PLUGIN = "/v1beta1.DevicePlugin/"


class PluginClient:
    """What the kubelet has of one plugin: a connection, and the lists that came over its stream."""

    def __init__(self, socket: Path) -> None:
        """Connect at the first call."""
        self.lists: list[dict[str, str]] = []
        """Each list that was received: health by ID."""
        self.ended = False
        """Whether the stream has ended, however."""
        self._channel = KubeletChannel(path=str(socket))
        self._reading: asyncio.Task[None] | None = None
        self._stream: ClientStream[pb.Empty, pb.ListAndWatchResponse] | None = None

    def watch(self) -> None:
        """Open the stream."""
        self._reading = asyncio.create_task(self._read())

    async def cancel(self) -> None:
        """Reset the stream (RST_STREAM) and keep the connection."""
        assert self._stream is not None
        await self._stream.cancel()

    def close(self) -> None:
        """Close the connection."""
        if self._reading is not None:
            self._reading.cancel()
        self._channel.close()

    async def allocate(self, *ids: str) -> pb.AllocateResponse:
        """Ask for devices, for one container."""
        asked = [pb.ContainerAllocateRequest(devices_ids=ids)]
        answer: pb.AllocateResponse = await self.call(
            "Allocate", pb.AllocateRequest(container_requests=asked), pb.AllocateResponse
        )
        return answer

    async def call(self, method: str, request: Message, reply: type[Any]) -> Any:  # noqa: ANN401 - a message of the type `reply`
        """Call any method of the plugin."""
        return await UnaryUnaryMethod(self._channel, f"{_PLUGIN}{method}", type(request), reply)(request)

    async def _read(self) -> None:
        method = UnaryStreamMethod(self._channel, f"{_PLUGIN}ListAndWatch", pb.Empty, pb.ListAndWatchResponse)
        with contextlib.suppress(Exception):  # grpclib raises whatever a connection leads to that ends at its beginning
            async with method.open() as stream:
                self._stream = stream
                await stream.send_message(pb.Empty(), end=True)
                async for each in stream:
                    self.lists.append({device.id: device.health for device in each.devices})
        self.ended = True


@dataclass(slots=True, kw_only=True)
class GrpcKubelet:
    """The sockets of a kubelet below a folder. Like the kubelet, it dials back to a plugin before it answers `Register`."""

    folder: Path
    watching: bool = True
    """Whether it opens the stream of a plugin that registers."""
    hanging: bool = False
    """Whether calls are taken and never answered."""
    error: GRPCError | None = None
    """The answer to every call."""
    old: bool = False
    """Whether it is older than 1.23: it does not serve `GetAllocatableResources`."""
    pods: list[pb.PodResources] = field(default_factory=list)
    listed: list[pb.ContainerDevices] = field(default_factory=list)
    """The answer of `GetAllocatableResources`."""
    registered: list[pb.RegisterRequest] = field(default_factory=list)
    plugins: list[PluginClient] = field(default_factory=list)
    """One for each registration."""
    _servers: list[KubeletServer] = field(default_factory=list)

    @property
    def device_plugins(self) -> Path:
        """The folder of the sockets of plugins."""
        return self.folder / "device-plugins"

    @property
    def socket(self) -> Path:
        """The socket for registrations."""
        return self.device_plugins / "kubelet.sock"

    @property
    def pod_resources(self) -> Path:
        """The socket that says which pod has which device."""
        return self.folder / "pod-resources" / "kubelet.sock"

    async def start(self) -> None:
        """Remove all sockets of plugins, as each start of a kubelet does, and serve."""
        for path in (self.socket, self.pod_resources):
            path.parent.mkdir(parents=True, exist_ok=True)
        for path in self.device_plugins.iterdir():
            if path.is_socket():
                path.unlink()
        registration: _Methods = {"/v1beta1.Registration/Register": (self._register, pb.RegisterRequest, pb.Empty)}
        lister: _Methods = {
            "/v1.PodResourcesLister/List": (self._list, pb.Empty, pb.ListPodResourcesResponse),
            "/v1.PodResourcesLister/GetAllocatableResources": (
                self._allocatable,
                pb.Empty,
                pb.AllocatableResourcesResponse,
            ),
        }
        for path, methods in ((self.socket, registration), (self.pod_resources, lister)):
            server = KubeletServer([_Service(methods)])
            await server.start(path=str(path))
            self._servers.append(server)

    async def stop(self) -> None:
        """End like a killed kubelet: the sockets stay, and refuse."""
        for plugin in self.plugins:
            plugin.close()
        for server in self._servers:
            server.close()
            await server.wait_closed()
        self._servers.clear()

    async def _register(self, stream: Stream[pb.RegisterRequest, pb.Empty]) -> None:
        request = await self._request(stream)
        self.registered.append(request)
        plugin = PluginClient(self.device_plugins / request.endpoint)
        self.plugins.append(plugin)
        try:
            await plugin.call("GetDevicePluginOptions", pb.Empty(), pb.DevicePluginOptions)
        except OSError as error:
            raise GRPCError(Status.UNKNOWN, f"failed to dial device plugin: {error}") from error
        if self.watching:
            plugin.watch()
        await stream.send_message(pb.Empty())

    async def _allocatable(self, stream: Stream[pb.Empty, pb.AllocatableResourcesResponse]) -> None:
        await self._request(stream)
        if self.old:
            raise GRPCError(Status.UNIMPLEMENTED, "unknown method GetAllocatableResources")
        await stream.send_message(pb.AllocatableResourcesResponse(devices=self.listed))

    async def _list(self, stream: Stream[pb.Empty, pb.ListPodResourcesResponse]) -> None:
        await self._request(stream)
        await stream.send_message(pb.ListPodResourcesResponse(pod_resources=self.pods))

    async def _request(self, stream: Stream[Any, Any]) -> Any:  # noqa: ANN401 - whatever the method takes
        if self.hanging:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error.with_traceback(None)
        return await stream.recv_message()


@contextlib.asynccontextmanager
async def kubelet(folder: Path, **fields: Any) -> AsyncIterator[GrpcKubelet]:  # noqa: ANN401  any field of a GrpcKubelet
    """Have a kubelet that serves."""
    one = GrpcKubelet(folder=folder, **fields)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


@contextlib.asynccontextmanager
async def answering(path: Path, answer: bytes) -> AsyncIterator[None]:
    """Have a program on a socket that sends these bytes to each client, whatever it says, and closes nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(answer)
            while await reader.read(4096):
                pass
        writer.close()

    path.parent.mkdir(parents=True, exist_ok=True)
    server = await asyncio.start_unix_server(serve, str(path))
    try:
        yield
    finally:
        server.close()


class _Service:
    """Methods of a service, each with the types of its request and its reply."""

    def __init__(self, methods: _Methods) -> None:
        self._methods = methods

    def __mapping__(self) -> dict[str, Handler]:
        return {
            name: Handler(call, Cardinality.UNARY_UNARY, request, reply)
            for name, (call, request, reply) in self._methods.items()
        }


def listed(resource: str, ids: Sequence[str]) -> pb.ContainerDevices:
    """Return the devices of a resource as the kubelet lists them."""
    return pb.ContainerDevices(resource_name=resource, device_ids=ids)
