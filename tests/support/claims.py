"""Small builders of ResourceClaims, in each of their forms."""

from __future__ import annotations

from typing import Any

from devwatch.core.claims import (
    AllocatedDevice,
    ClaimReference,
    ClaimState,
    KnownDevice,
    PreparedClaim,
    PreparedDevice,
)
from devwatch.core.names import DRIVER
from devwatch.core.slots import Identity
from support.build import ZIGBEE

POOL = f"n-{DRIVER}"
UID = "5f0c9a52-8d0e-4a6f-9a52-1f6b7c8d9e0a"


def reference(name: str = "c", uid: str = UID) -> ClaimReference:
    """Return a claim as the kubelet names it."""
    return ClaimReference(namespace="home", name=name, uid=uid)


def allocated(device: str = "a", **fields: Any) -> AllocatedDevice:  # noqa: ANN401 - any field of an AllocatedDevice
    """Return a device of this node as it is allocated."""
    own: dict[str, Any] = {"request": "stick", "driver": DRIVER, "pool": POOL}
    return AllocatedDevice(device=device, **own | fields)


def state(*devices: AllocatedDevice, uid: str = UID, **fields: Any) -> ClaimState:  # noqa: ANN401 - any field of a ClaimState
    """Return a claim to which these devices are allocated, as the API server has it."""
    return ClaimState(uid=uid, allocated=True, devices=devices, **fields)


def known(resource: str = ZIGBEE, **fields: Any) -> KnownDevice:  # noqa: ANN401 - any field of a KnownDevice
    """Return a device that was published."""
    identity = Identity(vendor="10c4", product="8a2a", serial=None, socket="usb-1")
    own: dict[str, Any] = {"path": f"/dev/{resource.partition('/')[2]}", "identity": identity}
    return KnownDevice(resource=resource, **own | fields)


def prepared(*devices: str, uid: str = UID, **fields: Any) -> PreparedClaim:  # noqa: ANN401 - any field of a PreparedDevice
    """Return a claim that was prepared with these devices, for one request."""
    own: dict[str, Any] = {"request": "stick", "pool": POOL, "known": known()}
    return PreparedClaim(
        reference=reference(uid=uid), devices=tuple(PreparedDevice(id=name, **own | fields) for name in devices)
    )
