"""Read ResourceClaims (resource.k8s.io/v1, from Kubernetes 1.34)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from devwatch.core.claims import AllocatedDevice, ClaimState, ClaimSummary, Toleration
from devwatch.core.errors import Missing, Retry, Unserved
from devwatch.core.names import DRIVER
from devwatch.kube.pods import list_all
from devwatch.kube.slices import unserved

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


async def list_claims(requests: Requests) -> tuple[ClaimSummary, ...]:
    """Return the claims of the cluster. Administrative access requests no device, and has none.

    Raises an `ApiError`: `Forbidden` without the permission to list claims, `Unserved` where the server does not have them.
    """
    try:
        return tuple(
            [_summary_of(item) async for item in list_all(requests, "/apis/resource.k8s.io/v1/resourceclaims")]
        )
    except (Missing, Unserved) as error:
        raise unserved(error) from error


def _summary_of(item: Mapping[str, Any]) -> ClaimSummary:
    try:
        namespace, devices = str(item["metadata"]["namespace"]), _state_of(item).devices
        reserved = (item.get("status") or {}).get("reservedFor") or ()
        return ClaimSummary(
            namespace=namespace,
            name=str(item["metadata"]["name"]),
            requested=_requested(item),
            devices=frozenset((each.pool, each.device) for each in devices if each.driver == DRIVER and not each.admin),
            pods=frozenset(f"{namespace}/{each['name']}" for each in reserved if each["resource"] == "pods"),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Retry(f"unexpected response: an item is not a ResourceClaim ({type(error).__name__})") from error


def _requested(item: Mapping[str, Any]) -> Mapping[str, int]:
    """Return by DeviceClass how many devices a claim requests; for all devices of a class, which have no number, one.

    Each alternative of a prioritised list may be the one that is allocated.
    """
    total = Counter[str]()
    for request in ((item.get("spec") or {}).get("devices") or {}).get("requests") or ():
        found: dict[str, int] = {}
        for each in [request["exactly"]] if request.get("exactly") else request.get("firstAvailable") or ():
            if each.get("adminAccess") is not True:
                name = str(each["deviceClassName"])
                found[name] = max(found.get(name, 0), int(each.get("count") or 1))
        total.update(found)
    return total


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
