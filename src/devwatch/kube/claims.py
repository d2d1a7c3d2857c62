"""Read ResourceClaims (resource.k8s.io/v1, from Kubernetes 1.34)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from devwatch.core.claims import AllocatedDevice, ClaimState, Toleration
from devwatch.core.errors import Retry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from devwatch.core.claims import ClaimReference
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
