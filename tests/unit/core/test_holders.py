"""Which devices certainly have no pod."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.core.holders import Holding, held_ids
from support.build import ZIGBEE, ZWAVE, pod

if TYPE_CHECKING:
    from devwatch.core.pods import Pod


def holding(name: str, *ids: str, **fields: str) -> Holding:
    """Return what a container of a pod has."""
    own = {"namespace": "home", "container": "c", "resource": ZIGBEE, **fields}
    return Holding(pod=name, ids=frozenset(ids), **own)


def test_what_the_containers_of_all_pods_have_is_held() -> None:
    """Of this resource, whether or not the API server still lists the pod."""
    holdings = [
        holding("p", "a"),
        holding("p", "b", container="d"),
        holding("q", "c"),
        holding("p", "x", resource=ZWAVE),
    ]
    assert held_ids(ZIGBEE, holdings, [pod("p"), pod("q")]) == frozenset({"a", "b", "c"})
    assert held_ids(ZIGBEE, holdings, []) == frozenset({"a", "b", "c"})


def test_nothing_is_held_where_no_pod_asks_for_it() -> None:
    """An empty answer proves it only then."""
    assert held_ids(ZIGBEE, [], []) == frozenset()
    assert held_ids(ZIGBEE, [], [pod("p", requests={ZWAVE: 1}), pod("q", requests={ZIGBEE: 0})]) == frozenset()


@pytest.mark.parametrize("phase", ["Pending", "Running", "Unknown"])
def test_a_pod_that_the_kubelet_does_not_account_for_makes_it_unknown(phase: str) -> None:
    """For about a second after its start it answers with nothing; and a pod may be bound that it has not seen yet."""
    assert held_ids(ZIGBEE, [], [pod("p", phase=phase)]) is None
    assert held_ids(ZIGBEE, [holding("p", "a")], [pod("p"), pod("q", phase=phase)]) is None
    assert held_ids(ZIGBEE, [holding("p", "a", namespace="other")], [pod("p")]) is None
    assert held_ids(ZIGBEE, [holding("p", "x", resource=ZWAVE)], [pod("p")]) is None


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_finished_holds_nothing(phase: str) -> None:
    """The kubelet no longer lists it."""
    assert held_ids(ZIGBEE, [], [pod("p", phase=phase)]) == frozenset()


def test_a_terminating_pod_still_holds_its_device() -> None:
    """Until its containers have ended."""
    assert held_ids(ZIGBEE, [], [pod("p", terminating=True)]) is None
    assert held_ids(ZIGBEE, [holding("p", "a")], [pod("p", terminating=True)]) == frozenset({"a"})


def test_a_claim_that_the_kubelet_does_not_account_for_makes_it_unknown_where_claims_request_devices() -> None:
    """It may be for any device; claims of other drivers are accounted for as well."""
    waiting = pod("q", requests={}, claims=frozenset({"c"}))
    assert held_ids(ZIGBEE, [], [waiting], claimed=True) is None
    assert held_ids(ZIGBEE, [], [waiting]) == frozenset()
    told = holding("q", resource="", claim="c")
    assert held_ids(ZIGBEE, [told], [waiting], claimed=True) == frozenset()
    assert held_ids(ZIGBEE, [told, holding("p", "a", claim="mine")], [waiting], claimed=True) == frozenset({"a"})


NAMES = st.sampled_from("pqr")
HOLDINGS = st.lists(
    st.builds(
        Holding,
        namespace=st.just("home"),
        pod=NAMES,
        container=st.just("c"),
        resource=st.sampled_from([ZIGBEE, ZWAVE]),
        ids=st.frozensets(st.sampled_from("abc"), min_size=1),
    )
)
PODS = st.lists(
    st.builds(pod, NAMES, phase=st.sampled_from(["Running", "Pending", "Failed"]), requests=st.just({ZIGBEE: 1}))
)


@given(HOLDINGS, PODS, PODS)
def test_more_pods_never_free_a_device(holdings: list[Holding], pods: list[Pod], more: list[Pod]) -> None:
    """Nor does a certain answer ever lack what a container has."""
    some, all_ = held_ids(ZIGBEE, holdings, pods), held_ids(ZIGBEE, holdings, [*pods, *more])
    has = frozenset[str]().union(*(each.ids for each in holdings if each.resource == ZIGBEE))
    assert some in (None, has)
    assert all_ is None or all_ == some
