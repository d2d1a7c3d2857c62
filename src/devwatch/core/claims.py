"""ResourceClaims: what is to be prepared for one (dynamic resource allocation), or why that is refused, and what its containers get."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from devwatch.core.errors import ClaimRefused
from devwatch.core.handover import Allocation, lay_out
from devwatch.core.names import DRIVER, UNPLUGGED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from devwatch.core.slots import Identity

CDI_KIND = f"{DRIVER}/claim"
"""The kind of the CDI devices: vendor and class (CDI specification, "kind")."""
_CDI_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*[A-Za-z0-9]")
"""The name of a CDI device (CDI specification, "devices"), which is also safe as a part of a file's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimReference:
    """A ResourceClaim as the kubelet names it."""

    namespace: str
    name: str
    uid: str

    @property
    def title(self) -> str:
        """The claim for messages."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Toleration:
    """A toleration of device taints (resource.k8s.io/v1, `DeviceToleration`)."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    @property
    def covers_unplugged(self) -> bool:
        """Whether it tolerates the taint of a lost device, which has no value. An empty key or effect stands for every one."""
        exists = self.operator == "Exists"
        named = self.key == UNPLUGGED and (exists or not self.value)
        return (named or (exists and not self.key)) and self.effect in {"", "NoSchedule"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatedDevice:
    """One device that the scheduler has allocated to a claim (`DeviceRequestAllocationResult`)."""

    request: str
    """The name of the request; for a prioritised list `REQUEST/SUBREQUEST`."""
    driver: str
    pool: str
    device: str
    admin: bool = False
    """Whether it is allocated for administrative access, beside the pods that use it."""
    share: str = ""
    """The ID of the share of the device, empty where it is allocated as a whole."""
    tolerations: tuple[Toleration, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimState:
    """A ResourceClaim as the API server has it."""

    uid: str
    allocated: bool = False
    devices: tuple[AllocatedDevice, ...] = ()
    """The devices of all drivers."""
    configured: frozenset[str] = frozenset()
    """The drivers for which the claim or its class has parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimSummary:
    """A ResourceClaim of the cluster, without what it requests or has for administrative access."""

    namespace: str
    name: str
    requested: Mapping[str, int]
    """By DeviceClass: how many devices it requests."""
    devices: frozenset[tuple[str, str]]
    """The devices of this driver that it has, by pool and ID."""
    pods: frozenset[str]
    """The pods that it is reserved for, as `NAMESPACE/NAME`: none before it is allocated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDevice:
    """A device of this node that was published."""

    resource: str
    path: str
    """The path of its first devnode in a container."""
    identity: Identity
    in_socket: bool = False
    """Whether its ID belongs to the socket (`Slot.in_socket`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedDevice:
    """One device of a prepared claim."""

    request: str
    """The name of the request, of a prioritised list without the subrequest: containers refer to that."""
    pool: str
    id: str
    known: KnownDevice
    admin: bool = False
    """Whether the claim has it for administrative access, which holds no device."""
    spared: bool = False
    """Whether the claim tolerates that the device is lost: its pods are not evicted for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedClaim:
    """A claim whose containers can start, in the order of its allocation."""

    reference: ClaimReference
    devices: tuple[PreparedDevice, ...]

    @property
    def requests(self) -> Mapping[str, Sequence[PreparedDevice]]:
        """The devices by request."""
        found: dict[str, list[PreparedDevice]] = {}
        for device in self.devices:
            found.setdefault(device.request, []).append(device)
        return found

    @property
    def held(self) -> Iterator[PreparedDevice]:
        """The devices that the claim holds."""
        return (device for device in self.devices if not device.admin)

    def cdi_name(self, request: str) -> str:
        """Return the name of the CDI device of a request. It never changes: the kubelet appends a second answer to the first."""
        return f"{self.reference.uid}-{request}"

    @property
    def allocation(self) -> frozenset[tuple[str, str, str, bool]]:
        """What the scheduler has allocated to it."""
        return frozenset((device.request, device.pool, device.id, device.admin) for device in self.devices)

    @property
    def is_nameable(self) -> bool:
        """Whether all names are ones that CDI permits."""
        return all(_CDI_NAME.fullmatch(self.cdi_name(request)) for request in ("0", *self.requests))


def prepare(asked: ClaimReference, found: ClaimState, pool: str, known: Mapping[str, KnownDevice]) -> PreparedClaim:
    """Return what is to be prepared for a claim; `known` are the devices of this node's pool by ID, lost ones too.

    Raises `ClaimRefused`. A device that is not present is no reason: the container waits for it.
    """
    if found.uid != asked.uid:
        raise ClaimRefused(f"{asked.title} is another claim by now: its uid is {found.uid}")
    if not found.allocated:
        raise ClaimRefused(f"{asked.title} is not allocated")
    if DRIVER in found.configured:
        raise ClaimRefused(f"{asked.title} has parameters for {DRIVER}, which takes none")
    mine = tuple(_prepare_device(each, pool, known) for each in found.devices if each.driver == DRIVER)
    claim = PreparedClaim(reference=asked, devices=mine)
    if not claim.is_nameable:
        raise ClaimRefused(f"{asked.title} has a uid or a request that cannot be the name of a CDI device")
    return claim


def _prepare_device(allocated: AllocatedDevice, pool: str, known: Mapping[str, KnownDevice]) -> PreparedDevice:
    if allocated.share:
        raise ClaimRefused(
            f"{allocated.device} is allocated as a share ({allocated.share}), which {DRIVER} does not offer"
        )
    if allocated.pool != pool or allocated.device not in known:
        raise ClaimRefused(f"{allocated.pool}/{allocated.device} is not a device of this node")
    return PreparedDevice(
        request=allocated.request.partition("/")[0],
        pool=allocated.pool,
        id=allocated.device,
        known=known[allocated.device],
        admin=allocated.admin,
        spared=any(each.covers_unplugged for each in allocated.tolerations),
    )


def administered(claims: Iterable[PreparedClaim], namespace: str, name: str) -> frozenset[str]:
    """Return the IDs of the devices that the claim of this name has for administrative access alone, which is not a hold."""
    named = [each for each in claims if (each.reference.namespace, each.reference.name) == (namespace, name)]
    devices = {device.id for claim in named for device in claim.devices}
    return frozenset(devices.difference(device.id for claim in named for device in claim.held))


def cdi_devices(claim: PreparedClaim, devnodes: Mapping[str, Sequence[str]]) -> dict[str, Allocation]:
    """Return by name the CDI devices of a claim, one for each request whose devices are all present, as `devnodes` says by ID.

    The container runtime starts no container with a CDI device that it does not find: it waits until all its devices are back, rather than
    to run with a part of them.
    """
    return {
        claim.cdi_name(request): _join(_lay_out_resources(devices, devnodes))
        for request, devices in claim.requests.items()
        if all(devnodes.get(device.id) for device in devices)
    }


def _lay_out_resources(
    devices: Iterable[PreparedDevice], devnodes: Mapping[str, Sequence[str]]
) -> Iterator[Allocation]:
    """Yield what a container gets for each resource of one request."""
    by_resource: dict[str, dict[str, KnownDevice]] = {}
    for device in devices:
        by_resource.setdefault(device.known.resource, {})[device.id] = device.known
    for resource, known in by_resource.items():
        path = next(iter(known.values())).path
        yield lay_out(resource, path, chain.from_iterable(devnodes[name] for name in sorted(known)))


def _join(allocations: Iterable[Allocation]) -> Allocation:
    paths, variables = dict[str, str](), dict[str, str]()
    for each in allocations:
        paths |= each.paths
        variables |= each.variables
    return Allocation(paths=paths, variables=variables)
