"""Serve the DRA driver to the kubelet: its registration (pluginregistration/v1), and the claims that it prepares (dra/v1)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol

from grpclib.const import Cardinality, Handler

from devwatch.core.claims import CDI_KIND, ClaimReference, PreparedClaim
from devwatch.core.names import DRIVER
from devwatch.core.text import escape
from devwatch.kubelet import files
from devwatch.kubelet import kubelet_pb2 as pb
from devwatch.kubelet.driverfiles import driver_folder, driver_socket, registration_socket
from devwatch.kubelet.protocol import KubeletServer, one_line, receive

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from grpclib.server import Stream

    from devwatch.core.errors import ClaimRefused

_SERVICE = "v1.DRAPlugin"
"""The service as the registration names it, served by kubelets from 1.34 on."""
_METHODS = f"/k8s.io.kubelet.pkg.apis.dra.{_SERVICE}/"
_REGISTRATION = "/pluginregistration.Registration/"
_HEALTH = "/v1alpha1.DRAResourceHealth/NodeWatchResources"
"""Opened by every kubelet from 1.36 on, and 5 s after its end again (`DRAPluginManager.add`)."""
_SocketFile = tuple[int, int]


class Claims(Protocol):
    """What the driver does with claims, and what it is told of its registration."""

    async def prepare(self, claims: Sequence[ClaimReference]) -> Mapping[str, PreparedClaim | ClaimRefused]:
        """Prepare claims, and return by UID what each has or why not."""

    async def unprepare(self, claims: Sequence[ClaimReference]) -> None:
        """Forget claims, prepared or not."""

    def notified(self, error: str | None) -> None:
        """Record that the kubelet has registered the driver, or why not."""

    def changed(self) -> None:
        """Record that the kubelet has connected or disconnected."""


class DriverServer:
    """The two sockets of the driver. The kubelet finds the one for registrations by watching its folder, and is told the other there."""

    def __init__(self, kubelet: Path, claims: Claims) -> None:
        """Serve below the folder of the kubelet, once started."""
        self._claims = claims
        self._folder = driver_folder(kubelet)
        self._driver_path, self._registry_path = driver_socket(kubelet), registration_socket(kubelet)
        self._driver = KubeletServer([_Methods(self._driver_methods())], changed=claims.changed)
        self._registry = KubeletServer([_Methods(self._registry_methods())])
        self._listening: dict[Path, tuple[KubeletServer, _SocketFile | None]] = {}

    async def start(self) -> None:
        """Listen, first for claims: the kubelet connects as soon as it finds the other socket. Raises `KubeletError`."""
        try:
            self._folder.mkdir(mode=0o750, exist_ok=True)
        except OSError as error:
            raise files.error_of(error, self._folder) from error
        for path, server in ((self._driver_path, self._driver), (self._registry_path, self._registry)):
            try:
                await server.start(path=str(path))
                self._listening[path] = server, _file_of(path)
            except OSError as error:
                raise files.error_of(error, path) from error

    @property
    def connected(self) -> bool:
        """Whether the kubelet is connected for claims."""
        return self._driver.connected

    @property
    def missing(self) -> str:
        """The path of a socket that was removed or replaced since, empty where both are ours."""
        return next(
            (str(path) for path, (_, own) in self._listening.items() if own is None or _file_of(path) != own), ""
        )

    async def close(self) -> None:
        """Stop listening, and end every connection. A socket that another daemon has made in the place of ours stays.

        The file is removed first: as long as it is open, no other file has its number.
        """
        listening, self._listening = self._listening, {}
        for path, (server, own) in reversed(listening.items()):
            if own is not None and _file_of(path) == own:
                with contextlib.suppress(OSError):
                    path.unlink()
            server.close()
            await server.wait_closed()

    # -- the methods

    def _registry_methods(self) -> Iterator[tuple[str, Handler]]:
        unary = Cardinality.UNARY_UNARY
        yield f"{_REGISTRATION}GetInfo", Handler(self._info, unary, pb.Empty, pb.PluginInfo)
        yield f"{_REGISTRATION}NotifyRegistrationStatus", Handler(self._notify, unary, pb.RegistrationStatus, pb.Empty)

    def _driver_methods(self) -> Iterator[tuple[str, Handler]]:
        unary = Cardinality.UNARY_UNARY
        prepare = Handler(self._prepare, unary, pb.NodePrepareResourcesRequest, pb.NodePrepareResourcesResponse)
        unprepare = Handler(self._unprepare, unary, pb.NodeUnprepareResourcesRequest, pb.NodeUnprepareResourcesResponse)
        yield f"{_METHODS}NodePrepareResources", prepare
        yield f"{_METHODS}NodeUnprepareResources", unprepare
        yield _HEALTH, Handler(self._hold_health, Cardinality.UNARY_STREAM, pb.Empty, pb.Empty)

    async def _info(self, stream: Stream[pb.Empty, pb.PluginInfo]) -> None:
        await receive(stream)
        endpoint = str(self._driver_path.absolute())
        info = pb.PluginInfo(type="DRAPlugin", name=DRIVER, endpoint=endpoint, supported_versions=[_SERVICE])
        await stream.send_message(info)

    async def _notify(self, stream: Stream[pb.RegistrationStatus, pb.Empty]) -> None:
        status = await receive(stream) or pb.RegistrationStatus()
        self._claims.notified(None if status.plugin_registered else one_line(status.error) or "it does not say why")
        await stream.send_message(pb.Empty())

    async def _hold_health(self, stream: Stream[pb.Empty, pb.Empty]) -> None:
        """Keep the stream open and send nothing: the taints of the slice tell which device is lost.

        To the kubelet the health of the devices is unknown then, as without the service. Where the stream ends, the kubelet logs an error
        and asks again, at a third of what a daemon at rest costs.
        """
        await receive(stream)
        await asyncio.Event().wait()  # the end of the connection cancels it

    async def _prepare(self, stream: Stream[pb.NodePrepareResourcesRequest, pb.NodePrepareResourcesResponse]) -> None:
        request = await receive(stream) or pb.NodePrepareResourcesRequest()
        found = await self._claims.prepare([_reference_of(each) for each in request.claims])
        answers = {uid: _answer_of(outcome) for uid, outcome in found.items()}
        await stream.send_message(pb.NodePrepareResourcesResponse(claims=answers))

    async def _unprepare(
        self, stream: Stream[pb.NodeUnprepareResourcesRequest, pb.NodeUnprepareResourcesResponse]
    ) -> None:
        request = await receive(stream) or pb.NodeUnprepareResourcesRequest()
        claims = [_reference_of(each) for each in request.claims]
        await self._claims.unprepare(claims)
        answers = {each.uid: pb.NodeUnprepareResourceResponse() for each in claims}
        await stream.send_message(pb.NodeUnprepareResourcesResponse(claims=answers))


class _Methods:
    """The methods of a socket, as grpclib asks for them."""

    def __init__(self, methods: Iterator[tuple[str, Handler]]) -> None:
        self._methods = dict(methods)

    def __mapping__(self) -> dict[str, Handler]:
        return self._methods


def _reference_of(claim: pb.DraClaim) -> ClaimReference:
    return ClaimReference(namespace=claim.namespace, name=claim.name, uid=claim.uid)


def _answer_of(outcome: PreparedClaim | ClaimRefused) -> pb.NodePrepareResourceResponse:
    """Return the devices of a claim. The first of each request carries the CDI device of them all: a container gets that once."""
    if not isinstance(outcome, PreparedClaim):
        return pb.NodePrepareResourceResponse(
            error=escape(str(outcome))
        )  # JSON of the API server may hold what UTF-8 cannot
    devices, named = [], set[str]()
    for each in outcome.devices:
        cdi = [] if each.request in named else [f"{CDI_KIND}={outcome.cdi_name(each.request)}"]
        named.add(each.request)
        devices.append(
            pb.DraDevice(request_names=[each.request], pool_name=each.pool, device_name=each.id, cdi_device_ids=cdi)
        )
    return pb.NodePrepareResourceResponse(devices=devices)


def _file_of(path: Path) -> _SocketFile | None:
    """Return what tells a socket from one that has replaced it, None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
