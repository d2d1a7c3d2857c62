"""Serve the device plugin of one resource to the kubelet (k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Protocol

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from devwatch.kubelet import files
from devwatch.kubelet import kubelet_pb2 as pb
from devwatch.kubelet.protocol import KubeletServer, receive

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from grpclib.server import Stream

    from devwatch.core.handover import Allocation, Offer

_SERVICE = "/v1beta1.DevicePlugin/"


class Resource(Protocol):
    """What a plugin serves."""

    def allocate(self, ids: Sequence[str]) -> Allocation:
        """Return what a container gets for these devices. Raises `KeyError` for an ID that was never listed."""

    def opened(self) -> None:
        """Record that the kubelet has opened the stream."""

    def sent(self, offer: Offer) -> None:
        """Record that a list was sent on the stream."""

    def closed(self) -> None:
        """Record that the stream has ended."""


class PluginServer:
    """The server of one resource, from one registration to the end of its stream."""

    def __init__(self, path: Path, resource: Resource, links: Path) -> None:
        """Serve on the socket `path`; `links` is the folder of devwatch's links as the container runtime sees it."""
        self._path, self._resource, self._links = path, resource, links
        self._server = KubeletServer([self])
        self._listening = False
        self._offer: Offer | None = None
        self._changed = asyncio.Event()
        self._stream: asyncio.Task[None] | None = None

    def __mapping__(self) -> dict[str, Handler]:
        """Return the methods of the service."""
        return dict(self._methods())

    def _methods(self) -> Iterator[tuple[str, Handler]]:
        unary, stream = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM
        empty, options = pb.Empty, pb.DevicePluginOptions
        yield f"{_SERVICE}GetDevicePluginOptions", Handler(self._options, unary, empty, options)
        yield f"{_SERVICE}ListAndWatch", Handler(self._list_and_watch, stream, empty, pb.ListAndWatchResponse)
        yield f"{_SERVICE}Allocate", Handler(self._allocate, unary, pb.AllocateRequest, pb.AllocateResponse)

    async def start(self) -> None:
        """Listen. Raises `KubeletError` where the socket cannot be made."""
        try:
            await self._server.start(path=str(self._path))
        except OSError as error:
            raise files.error_of(error, self._path) from error
        self._listening = True

    async def close(self) -> None:
        """End the stream and stop listening; does nothing where `start` has failed."""
        if not self._listening:
            return
        self._server.close()
        await self._server.wait_closed()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def offer(self, offer: Offer) -> None:
        """Set the list to send; it is sent when it differs from the last one."""
        if offer != self._offer:
            self._offer = offer
            self._changed.set()

    async def _options(self, stream: Stream[pb.Empty, pb.DevicePluginOptions]) -> None:
        await receive(stream)
        await stream.send_message(pb.DevicePluginOptions())

    async def _list_and_watch(self, stream: Stream[pb.Empty, pb.ListAndWatchResponse]) -> None:
        """Send each list. A second stream ends the first one: the kubelet uses the last."""
        if self._stream is not None:
            self._stream.cancel()
        self._stream = task = asyncio.current_task()
        try:
            await receive(stream)
            self._resource.opened()
            await self._send_lists(stream)
        finally:
            if self._stream is task:
                self._stream = None
                self._resource.closed()

    async def _send_lists(self, stream: Stream[pb.Empty, pb.ListAndWatchResponse]) -> None:
        last = None
        while True:
            self._changed.clear()
            if (offer := self._offer) is not None and offer != last:
                await stream.send_message(_list_of(offer))
                last = offer
                self._resource.sent(offer)
            await self._changed.wait()

    async def _allocate(self, stream: Stream[pb.AllocateRequest, pb.AllocateResponse]) -> None:
        request = await receive(stream)
        containers = request.container_requests if request else ()
        try:
            found = [self._resource.allocate(each.devices_ids) for each in containers]
        except KeyError as error:
            raise GRPCError(Status.NOT_FOUND, f"{error.args[0]} was never listed") from error
        await stream.send_message(pb.AllocateResponse(container_responses=map(self._response_of, found)))

    def _response_of(self, allocation: Allocation) -> pb.ContainerAllocateResponse:
        devices = [
            pb.DeviceSpec(container_path=path, host_path=str(self._links / name), permissions="rw")
            for path, name in allocation.paths.items()
        ]
        return pb.ContainerAllocateResponse(envs=allocation.variables, devices=devices)


def _list_of(offer: Offer) -> pb.ListAndWatchResponse:
    health: dict[str, Any] = dict.fromkeys(offer.healthy, "Healthy") | dict.fromkeys(offer.unhealthy, "Unhealthy")
    return pb.ListAndWatchResponse(devices=[pb.PluginDevice(id=name, health=health[name]) for name in sorted(health)])
