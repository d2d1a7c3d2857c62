"""Call the kubelet: register a plugin, and ask which devices it has taken over and which pods hold them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message
from grpclib.client import UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from devwatch.core.errors import KubeletError, NotAnswered, NotServed
from devwatch.core.holders import Holding
from devwatch.core.names import DRIVER
from devwatch.kubelet import kubelet_pb2 as pb
from devwatch.kubelet.protocol import KubeletChannel, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

VERSION = "v1beta1"
"""The only version of the device plugin API that kubelets serve."""
REGISTER_TIMEOUT = 12.0
"""Seconds: inside the call the kubelet dials back to the plugin, for which it takes 10 s at most (`dial` of the plugin client)."""
READ_TIMEOUT = 2.0
"""Seconds for an answer that the kubelet gives from its memory."""
_ELSEWHERE = "does the kubelet run, and is its folder this one (--kubelet-dir, --device-plugin-dir)?"

Reply = TypeVar("Reply", bound=Message)


async def is_accepting(path: Path) -> bool:
    """Return whether a program accepts connections on a unix socket. A killed kubelet leaves its socket, which refuses.

    Without a free file descriptor it is not known to.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # noqa: FBT003 - as the standard library has it
        await asyncio.get_running_loop().sock_connect(probe, str(path))
        return True
    return False


async def register(kubelet: Path, *, endpoint: str, resource: str) -> None:
    """Register a plugin, whose socket `endpoint` is in the folder of the kubelet's and is served already. Raises `KubeletError`."""
    request = pb.RegisterRequest(version=VERSION, endpoint=endpoint, resource_name=resource)
    await _call(kubelet, "/v1beta1.Registration/Register", request, pb.Empty, within=REGISTER_TIMEOUT)


async def allocatable(pod_resources: Path) -> Mapping[str, frozenset[str]]:
    """Return by resource the IDs that the kubelet has taken over.

    Raises `KubeletError`, `NotServed` where the kubelet is older than 1.23.
    """
    reply = await _call(
        pod_resources,
        "/v1.PodResourcesLister/GetAllocatableResources",
        pb.Empty(),
        pb.AllocatableResourcesResponse,
        within=READ_TIMEOUT,
    )
    found: dict[str, set[str]] = {}
    for each in reply.devices:
        found.setdefault(each.resource_name, set()).update(each.device_ids)
    return {name: frozenset(ids) for name, ids in found.items()}


async def holdings(pod_resources: Path) -> tuple[Holding, ...]:
    """Return which pods hold devices, by resource, and under the name of our driver those that a claim gives them. Raises `KubeletError`.

    A claim that gives only devices of other drivers is reported without any: else it would count as one that may hold ours. One without
    devices of any driver may not be prepared yet.
    For about a second after its start the kubelet answers with nothing, longer while the API server is away, although pods hold devices.
    """
    reply = await _call(
        pod_resources, "/v1.PodResourcesLister/List", pb.Empty(), pb.ListPodResourcesResponse, within=READ_TIMEOUT
    )
    return tuple(
        holding
        for pod in reply.pod_resources
        for container in pod.containers
        for holding in _holdings_of(pod, container)
    )


def _holdings_of(pod: pb.PodResources, container: pb.ContainerResources) -> Iterator[Holding]:
    holding = partial(Holding, namespace=pod.namespace, pod=pod.name, container=container.name)
    for each in container.devices:
        yield holding(resource=each.resource_name, ids=frozenset(each.device_ids))
    for claim in container.dynamic_resources:
        ids = frozenset(each.device_name for each in claim.claim_resources if each.driver_name == DRIVER)
        unprepared = not claim.claim_resources
        yield holding(resource=DRIVER, ids=ids, claim=claim.claim_name, unprepared=unprepared)


async def _call(path: Path, method: str, request: Message, reply: type[Reply], *, within: float) -> Reply:
    name = method.rpartition("/")[2]
    channel = KubeletChannel(path=str(path))
    try:
        async with asyncio.timeout(within):
            # In a task of its own: grpclib cancels the task when the connection ends, which could hide that ours is cancelled.
            call = asyncio.create_task(UnaryUnaryMethod(channel, method, type(request), reply)(request))
            call.add_done_callback(_retrieve)
            return await call
    except GRPCError as error:
        kind = NotServed if error.status is Status.UNIMPLEMENTED else KubeletError
        raise kind(f"the kubelet refuses {name}: {one_line(error.message or '') or error.status.name}") from error
    except TimeoutError as error:
        raise NotAnswered(f"the kubelet does not answer {name} within {within:.0f} s") from error
    except OSError as error:
        raise KubeletError(f"{path}: {error.strerror or error}", hint=_ELSEWHERE) from error
    except Exception as error:  # grpclib raises whatever an unexpected answer leads to, down to AssertionError
        raise KubeletError(f"unexpected answer to {name}: {one_line(str(error)) or type(error).__name__}") from error
    finally:
        channel.close()


def _retrieve(call: asyncio.Task[Any]) -> None:
    """Take note of the exception of a call that was cancelled at the moment when it failed."""
    if not call.cancelled():
        call.exception()
