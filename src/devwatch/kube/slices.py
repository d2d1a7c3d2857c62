"""List, watch and write the ResourceSlices of this driver on one node."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from devwatch.core.errors import Missing, Retry, Unserved
from devwatch.core.names import DRIVER
from devwatch.core.node import FIELD_MANAGER
from devwatch.core.slices import Slice, SliceDevice, Taint
from devwatch.kube.pods import list_all
from devwatch.kube.responses import reason_of
from devwatch.kube.watch import LISTED, ObjectWatch, Server, version_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping

    from devwatch.kube.pods import Requests

PATH = "/apis/resource.k8s.io/v1/resourceslices"
_QUERY = (("fieldManager", FIELD_MANAGER),)
_FOREIGN = frozenset({"allowMultipleAllocations", "capacity", "consumesCounters"})
"""Fields of a device that change to whom the scheduler gives it (resource.k8s.io/v1, `Device`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceReport:
    """What a watch reports: all slices, or the change of one."""

    slices: tuple[Slice, ...]
    listed: bool = False
    """Whether these are all slices there are."""
    deleted: bool = False


@dataclass(slots=True, kw_only=True)
class KubeSlices:
    """The slices whose driver is devwatch's and whose node is this one, whatever their names."""

    server: Server
    node: str
    _watch: ObjectWatch = field(init=False)

    def __post_init__(self) -> None:
        """Prepare the watch."""
        selector = f"spec.driver={DRIVER},spec.nodeName={self.node}"
        self._watch = ObjectWatch(server=self.server, path=PATH, selector=selector)

    async def watch(self) -> AsyncGenerator[SliceReport]:
        """Yield all slices, then each change, until the server ends the watch. Raises an `ApiError`, see `ObjectWatch.events`."""
        try:
            async with aclosing(self._watch.events()) as events:
                async for kind, items in events:
                    slices = tuple(slice_of(item) for item in items)
                    yield SliceReport(slices=slices, listed=kind == LISTED, deleted=kind == "DELETED")
        except (Missing, Unserved) as error:
            raise unserved(error) from error

    async def create(self, wanted: Slice) -> Slice:
        """Create a slice and return what the server has stored. Raises an `ApiError`, `Conflict` where there is one of this name."""
        try:
            return slice_of(await self.server.request("POST", PATH, query=_QUERY, body=wanted.body()))
        except (Missing, Unserved) as error:
            raise unserved(error) from error

    async def update(self, wanted: Slice) -> Slice:
        """Replace a slice and return what the server has stored.

        Raises an `ApiError`: `Conflict` where it was changed since it was observed, `Missing` where there is none.
        """
        return slice_of(await self.server.request("PUT", _path(wanted.name), query=_QUERY, body=wanted.body()))

    async def delete(self, unwanted: Slice) -> None:
        """Delete a slice, and never another of the same name. Raises an `ApiError`, `Missing` where there is none."""
        await delete_slice(self.server, unwanted)


async def list_slices(requests: Requests, node: str | None) -> tuple[Slice, ...]:
    """Return the slices of the driver on a node, on all nodes for None.

    Raises an `ApiError`: `Unserved` where the server does not have them.
    """
    selector = ",".join([f"spec.driver={DRIVER}", *([f"spec.nodeName={node}"] if node is not None else [])])
    try:
        return tuple([slice_of(item) async for item in list_all(requests, PATH, ("fieldSelector", selector))])
    except (Missing, Unserved) as error:
        raise unserved(error) from error


async def delete_slice(requests: Requests, unwanted: Slice, *, dry_run: bool = False) -> None:
    """Delete a slice, as `KubeSlices.delete` does; with `dry_run` the server only says whether it would."""
    options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": unwanted.uid}}
    only = {"dryRun": ["All"]} if dry_run else {}
    await requests.request("DELETE", _path(unwanted.name), body={**options, **only})


def _path(name: str) -> str:
    return f"{PATH}/{quote(name, safe='')}"


def unserved(error: Exception) -> Unserved:
    """Return the error for a server that has nothing at a path of resource.k8s.io/v1."""
    return Unserved(
        f"the API server does not serve resource.k8s.io/v1, which publish: dra needs (Kubernetes 1.34 or newer): {error}"
    )


def slice_of(item: Mapping[str, Any]) -> Slice:
    """Return the slice in an object of the API. Raises `Retry` for an object that is not a valid ResourceSlice."""
    try:
        metadata, spec = item["metadata"], item["spec"]
        pool = spec["pool"]
        return Slice(
            name=str(metadata["name"]),
            uid=str(metadata["uid"]),
            version=version_of(item),
            node=str(spec.get("nodeName") or ""),
            pool=str(pool["name"]),
            generation=int(pool["generation"]),
            slices=int(pool["resourceSliceCount"]),
            owners=tuple(dict(owner) for owner in metadata.get("ownerReferences") or ()),
            devices=tuple(sorted(_devices(spec), key=lambda device: device.name)),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Retry(f"unexpected response: not a ResourceSlice: {reason_of(error)} (does a proxy answer?)") from error


def _devices(spec: Mapping[str, Any]) -> Iterator[SliceDevice]:
    for device in spec.get("devices") or ():
        attributes = {str(name): value.get("string") for name, value in (device.get("attributes") or {}).items()}
        taints = tuple(_taint(taint) for taint in device.get("taints") or ())
        more = not _FOREIGN.isdisjoint(device)
        yield SliceDevice(name=str(device["name"]), attributes=attributes, taints=taints, has_more=more)


def _taint(taint: Mapping[str, Any]) -> Taint:
    return Taint(
        key=str(taint["key"]),
        value=str(taint.get("value") or ""),
        effect=str(taint["effect"]),
        time=str(taint.get("timeAdded") or ""),
    )
