"""A ResourceClaim as it is read: what is asked, what counts, and that no odd answer is taken for a claim."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from devwatch.core.claims import AllocatedDevice, ClaimReference, ClaimState, Toleration
from devwatch.core.errors import Retry
from devwatch.kube.claims import read_claim
from support import virtualtime
from support.claims import reference

if TYPE_CHECKING:
    from collections.abc import Sequence


class Answer:
    """A connection with one answer."""

    def __init__(self, content: Any) -> None:  # noqa: ANN401 - also what no server should answer
        """Have this answer."""
        self.content = content
        self.asked: list[tuple[str, str]] = []

    async def request(
        self, method: str, path: str, *, query: Sequence[tuple[str, str]] = (), body: object = None
    ) -> dict[str, Any]:
        """Answer."""
        assert not query
        assert body is None
        self.asked.append((method, path))
        return self.content  # type: ignore[no-any-return]


def claim(status: object = None, **more: object) -> dict[str, object]:
    """Return a claim as the server sends it."""
    return {"kind": "ResourceClaim", "metadata": {"uid": "1"}, "status": status, **more}


def read(content: object, asked: ClaimReference | None = None) -> ClaimState:
    """Return what is read from an answer."""
    return virtualtime.run(partial(read_claim, Answer(content), asked or reference()))


def test_one_claim_is_asked_for_by_name() -> None:
    """With the permission `get` alone."""
    answer = Answer(claim())
    virtualtime.run(partial(read_claim, answer, ClaimReference(namespace="home", name="a/../b", uid="1")))
    assert answer.asked == [("GET", "/apis/resource.k8s.io/v1/namespaces/home/resourceclaims/a%2F..%2Fb")]


def test_all_that_counts_of_an_allocation_is_read() -> None:
    """The devices of all drivers in order, and for which drivers there are parameters."""
    least = {"request": "r", "driver": "d", "pool": "p", "device": "x"}
    tolerations = [{"key": "k", "operator": "Exists", "effect": "NoSchedule"}, {"key": "k", "value": "v"}]
    full = {**least, "adminAccess": True, "shareID": "s", "tolerations": tolerations}
    config = [{"source": "FromClass", "opaque": {"driver": "d", "parameters": {}}}, {"requests": ["r"]}]
    state = read(claim({"allocation": {"devices": {"results": [least, full], "config": config}}}))
    plain = AllocatedDevice(request="r", driver="d", pool="p", device="x")
    assert state.devices[0] == plain
    assert (state.devices[1].admin, state.devices[1].share) == (True, "s")
    assert state.devices[1].tolerations == (
        Toleration(key="k", operator="Exists", effect="NoSchedule"),
        Toleration(key="k", value="v"),
    )
    assert (state.uid, state.allocated, state.configured) == ("1", True, frozenset({"d"}))


@pytest.mark.parametrize("status", [None, {}, {"allocation": None}, {"reservedFor": []}])
def test_a_claim_that_is_not_allocated_is_none_the_less_a_claim(status: object) -> None:
    """It has no devices."""
    assert read(claim(status)) == ClaimState(uid="1")


@pytest.mark.parametrize("allocation", [{}, {"devices": {}}, {"devices": {"results": None}}])
def test_an_allocation_without_devices_is_one(allocation: object) -> None:
    """All of its requests may be for none (`allocationMode: All` of an empty pool)."""
    assert read(claim({"allocation": allocation})) == ClaimState(uid="1", allocated=True)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"kind": "Status"},
        {"kind": "ResourceClaim"},
        claim(metadata={}),
        claim([1]),
        claim({"allocation": {"devices": {"results": [{"request": "r"}]}}}),
        claim({"allocation": {"devices": {"results": [1]}}}),
        claim({"allocation": {"devices": {"config": [1]}}}),
        claim({"allocation": {"devices": {"results": 1}}}),
    ],
)
def test_what_is_no_claim_is_asked_for_again(content: object) -> None:
    """The page of a proxy must not end a claim."""
    with pytest.raises(Retry, match=r"^unexpected response to GET /apis/resource\.k8s\.io/v1/"):
        read(content)
