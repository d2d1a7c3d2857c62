"""Read ResourceClaims (resource.k8s.io/v1, from Kubernetes 1.34)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from devwatch.core.claims import AllocatedDevice, ClaimState, Toleration
from devwatch.core.errors import Missing, Retry, Unserved
from devwatch.core.names import DRIVER
from devwatch.kube.pods import list_all
from devwatch.kube.slices import unserved

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from devwatch.core.claims import ClaimReference
    from devwatch.core.status import Reservations
    from devwatch.kube.pods import Requests


async def read_claim(requests: Requests, claim: ClaimReference) -> ClaimState:
    """Return the claim of this namespace and name, which may have another uid.

    Raises an `ApiError`: `Missing` where there is none, `Forbidden` without the permission to get it.
    """
    namespace, name = quote(claim.namespace, safe=""), quote(claim.name, safe="")
    path = f"/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaims/{name}"
    content = await requests.request("GET", path)
    if content.get("kind") != "ResourceClaim":
        raise Retry(f"unexpected response to GET {path}: not a ResourceClaim (does a proxy answer?)")
    try:
        return _state_of(content)
    except (AttributeError, KeyError, TypeError) as error:
        raise Retry(f"unexpected response to GET {path}: malformed ({type(error).__name__})") from error


async def list_reservations(requests: Requests) -> Reservations:
    """Return the devices of this driver that claims of the cluster reserve for pods. Administrative access reserves none.

    Raises an `ApiError`: `Forbidden` without the permission to list claims, `Unserved` where the server does not have them.
    """
    found: dict[tuple[str, str], set[str]] = {}
    try:
        async for item in list_all(requests, "/apis/resource.k8s.io/v1/resourceclaims"):
            pods = set(_reserved_for(item))
            for each in _devices_of(item):
                found.setdefault((each.pool, each.device), set()).update(pods)
    except (Missing, Unserved) as error:
        raise unserved(error) from error
    return found


def _reserved_for(item: Mapping[str, Any]) -> Iterator[str]:
    """Yield the pods that may use a claim, as `NAMESPACE/NAME` (ResourceClaimStatus, `reservedFor`)."""
    try:
        for each in (item.get("status") or {}).get("reservedFor") or ():
            if each["resource"] == "pods":
                yield f"{item['metadata']['namespace']}/{each['name']}"
    except (AttributeError, KeyError, TypeError) as error:
        raise _malformed(error) from error


def _devices_of(item: Mapping[str, Any]) -> Iterator[AllocatedDevice]:
    """Yield the devices of this driver that a claim holds."""
    try:
        devices = _state_of(item).devices
    except (AttributeError, KeyError, TypeError) as error:
        raise _malformed(error) from error
    return (each for each in devices if each.driver == DRIVER and not each.admin)


def _malformed(error: Exception) -> Retry:
    return Retry(f"unexpected response: an item is not a ResourceClaim ({type(error).__name__})")


def _state_of(content: Mapping[str, Any]) -> ClaimState:
    allocation = (content.get("status") or {}).get("allocation")
    devices = (allocation or {}).get("devices") or {}
    opaque = ((each.get("opaque") or {}).get("driver") for each in devices.get("config") or ())
    return ClaimState(
        uid=str(content["metadata"]["uid"]),
        allocated=allocation is not None,
        devices=tuple(_device_of(each) for each in devices.get("results") or ()),
        configured=frozenset(str(driver) for driver in opaque if driver),
    )


def _device_of(result: Mapping[str, Any]) -> AllocatedDevice:
    return AllocatedDevice(
        request=str(result["request"]),
        driver=str(result["driver"]),
        pool=str(result["pool"]),
        device=str(result["device"]),
        admin=result.get("adminAccess") is True,
        share=str(result.get("shareID") or ""),
        tolerations=tuple(_toleration_of(each) for each in result.get("tolerations") or ()),
    )


def _toleration_of(content: Mapping[str, Any]) -> Toleration:
    return Toleration(
        key=str(content.get("key") or ""),
        operator=str(content.get("operator") or "Equal"),
        value=str(content.get("value") or ""),
        effect=str(content.get("effect") or ""),
    )
