"""The slices in objects of the API: what is understood, and what is refused instead of being taken for an empty slice."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest

from devwatch.core.errors import Retry, Unserved
from devwatch.core.slices import Offer, Slice, SliceDevice, Taint
from devwatch.kube.slices import KubeSlices, slice_of
from support.objectserver import SLICES, ObjectServer
from support.virtualtime import run

if TYPE_CHECKING:
    from collections.abc import Callable

DEVICE: dict[str, Any] = {
    "name": "a",
    "attributes": {"model": {"string": "m"}, "size": {"int": 5}},
    "taints": [{"key": "k", "value": "v", "effect": "NoExecute", "timeAdded": "t"}],
}
ITEM: dict[str, Any] = {
    "kind": "ResourceSlice",
    "metadata": {"name": "s", "uid": "u", "resourceVersion": "7", "ownerReferences": [{"kind": "Node"}]},
    "spec": {
        "driver": "devwatch.io",
        "nodeName": "n1",
        "pool": {"name": "p", "generation": 3, "resourceSliceCount": 2},
        "devices": [{"name": "b"}, DEVICE],
    },
}


def test_an_object_is_read_with_all_that_another_client_may_have_written() -> None:
    """The devices by name; a value that is not text differs from every text."""
    assert slice_of(ITEM) == Slice(
        name="s",
        uid="u",
        version="7",
        node="n1",
        pool="p",
        generation=3,
        slices=2,
        owners=({"kind": "Node"},),
        devices=(
            SliceDevice(
                name="a",
                attributes={"model": "m", "size": None},
                taints=(Taint(key="k", value="v", effect="NoExecute", time="t"),),
            ),
            SliceDevice(name="b", attributes={}),
        ),
    )


def test_what_the_server_leaves_out_is_empty() -> None:
    """A slice without devices and owners."""
    bare = deepcopy(ITEM)
    del bare["metadata"]["ownerReferences"], bare["spec"]["devices"], bare["spec"]["nodeName"]
    found = slice_of(bare)
    assert (found.owners, found.devices, found.node) == ((), (), "")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda item: item.pop("metadata"),
        lambda item: item.pop("spec"),
        lambda item: item["metadata"].pop("uid"),
        lambda item: item["spec"].pop("pool"),
        lambda item: item["spec"]["pool"].update(generation="x"),
        lambda item: item["spec"].update(devices=[{}]),
        lambda item: item["spec"].update(devices=["a"]),
        lambda item: item["spec"]["devices"][1].update(attributes=["a"]),
        lambda item: item["spec"]["devices"][1].update(taints=[{}]),
        lambda item: item["metadata"].update(ownerReferences=["x"]),
    ],
)
def test_anything_else_is_an_error(spoil: Callable[[dict[str, Any]], object]) -> None:
    """The page of a proxy must not count as a slice without devices."""
    item = deepcopy(ITEM)
    spoil(item)
    with pytest.raises(Retry, match="not a ResourceSlice"):
        slice_of(item)


def test_a_write_names_the_manager_and_a_deletion_the_uid() -> None:
    """So that managedFields tell who wrote, and that no successor of the name is deleted."""
    server = ObjectServer(clock=lambda: 0.0)
    api = KubeSlices(server=server, node="n1")
    write = Offer(node="n1", node_uid="u1", devices=()).next_write({})
    assert write is not None
    stored = run(lambda: api.create(write.slice))
    assert (stored.content, stored.generation) == (write.slice.content, 1)
    run(lambda: api.delete(stored))
    assert [call.method for call in server.calls] == ["POST", "DELETE"]
    assert server.calls[1].body["preconditions"] == {"uid": stored.uid}
    assert server.calls[0].query == (("fieldManager", "devwatch"),)
    assert server.all(SLICES) == []


def test_a_server_that_does_not_serve_the_api_is_told_by_its_version() -> None:
    """Also to who creates a slice."""
    api = KubeSlices(server=ObjectServer(clock=lambda: 0.0, served=False), node="n1")
    write = Offer(node="n1", node_uid="u1", devices=()).next_write({})
    assert write is not None
    with pytest.raises(Unserved, match=r"Kubernetes 1\.34 or newer"):
        run(lambda: api.create(write.slice))
