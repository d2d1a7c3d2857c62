"""A kubelet as far as DRA drivers go: it watches for their sockets, registers them, and asks for claims."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grpclib.client import UnaryStreamMethod, UnaryUnaryMethod

from devwatch.kubelet import kubelet_pb2 as pb
from devwatch.kubelet.protocol import KubeletChannel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from google.protobuf.message import Message

    from devwatch.core.claims import ClaimReference

POLL = 0.1
"""Seconds between two looks at its folder, in place of inotify."""
_DRIVER = "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"


@dataclass(slots=True, kw_only=True)
class DraKubelet:
    """The plugin watcher and the DRA manager of a kubelet. Each socket that appears is registered once, and each at its start."""

    folder: Path
    refusing: str = ""
    """Why it registers no driver."""
    registered: list[pb.PluginInfo] = field(default_factory=list)
    """Each registration."""
    _known: set[tuple[str, int, int]] = field(default_factory=set)
    channel: KubeletChannel | None = None
    """The connection to the driver that was registered last."""
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start: nothing is registered."""
        for name in ("plugins", "plugins_registry"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._known.clear()
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End; the sockets of drivers stay."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self.disconnect()

    def disconnect(self) -> None:
        """Close the connection to the driver."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    async def _watch(self) -> None:
        while True:
            for path in sorted((self.folder / "plugins_registry").glob("*.sock")):
                found = path.stat()
                mark = (path.name, found.st_ino, found.st_ctime_ns)
                if mark not in self._known:
                    self._known.add(mark)
                    await self._register(path)
            if self.channel is not None:
                with contextlib.suppress(OSError):
                    await self.channel.__connect__()
            await asyncio.sleep(POLL)

    async def _register(self, path: Path) -> None:
        """Ask what it is, connect to its endpoint, and say how it went."""
        channel = KubeletChannel(path=str(path))
        with contextlib.suppress(OSError):
            info = await _call(channel, "/pluginregistration.Registration/GetInfo", pb.Empty(), pb.PluginInfo)
            if not self.refusing:
                self.registered.append(info)
                self.disconnect()
                self.channel = KubeletChannel(path=info.endpoint)
                await self.channel.__connect__()
            status = pb.RegistrationStatus(plugin_registered=not self.refusing, error=self.refusing)
            await _call(channel, "/pluginregistration.Registration/NotifyRegistrationStatus", status, pb.Empty)
        channel.close()

    async def prepare(self, *claims: ClaimReference) -> Mapping[str, pb.NodePrepareResourceResponse]:
        """Ask for claims, and return the answer by UID."""
        request = pb.NodePrepareResourcesRequest(claims=map(_message_of, claims))
        answer = await self.call("NodePrepareResources", request, pb.NodePrepareResourcesResponse)
        return dict(answer.claims)

    async def unprepare(self, *claims: ClaimReference) -> Mapping[str, pb.NodeUnprepareResourceResponse]:
        """End claims, and return the answer by UID."""
        request = pb.NodeUnprepareResourcesRequest(claims=map(_message_of, claims))
        answer = await self.call("NodeUnprepareResources", request, pb.NodeUnprepareResourcesResponse)
        return dict(answer.claims)

    async def call(self, method: str, request: Message, reply: type[Any]) -> Any:  # noqa: ANN401 - a message of the type `reply`
        """Call a method of the driver."""
        assert self.channel is not None
        return await _call(self.channel, f"{_DRIVER}/{method}", request, reply)

    async def watch_health(self) -> None:
        """Open the stream of health."""
        assert self.channel is not None
        name = "/v1alpha1.DRAResourceHealth/NodeWatchResources"
        async with UnaryStreamMethod(self.channel, name, pb.Empty, pb.Empty).open() as stream:
            await stream.send_message(pb.Empty(), end=True)
            await stream.recv_message()


async def _call(channel: KubeletChannel, name: str, request: Message, reply: type[Any]) -> Any:  # noqa: ANN401
    return await UnaryUnaryMethod(channel, name, type(request), reply)(request)


def _message_of(claim: ClaimReference) -> pb.DraClaim:
    return pb.DraClaim(namespace=claim.namespace, uid=claim.uid, name=claim.name)


@contextlib.asynccontextmanager
async def dra_kubelet(folder: Path) -> AsyncIterator[DraKubelet]:
    """Have a kubelet that runs."""
    one = DraKubelet(folder=folder)
    one.start()
    try:
        yield one
    finally:
        await one.stop()
