"""Which devices certainly have no pod."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.core.holders import Holding, held_ids, holders_of, unproved, unread_claims
from devwatch.core.incidents import Loss
from devwatch.core.listing import Entry
from devwatch.core.pods import Container, Phase
from support.build import ZIGBEE, ZWAVE, pod

if TYPE_CHECKING:
    from devwatch.core.pods import Pod


def holding(name: str, *ids: str, unprepared: bool = False, **fields: str) -> Holding:
    """Return what a container of a pod has."""
    own: dict[str, Any] = {"namespace": "home", "container": "c", "resource": ZIGBEE, **fields}
    return Holding(pod=name, ids=frozenset(ids), unprepared=unprepared, **own)


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
    assert held_ids(ZIGBEE, [told], [waiting, pod("r")], claimed=True) is None, "nor is the request of another pod"
    assert held_ids(ZIGBEE, [told, holding("p", "a", claim="mine")], [waiting], claimed=True) == frozenset({"a"})


# -- the holders of an incident


LOSS = Loss(
    resource=ZIGBEE,
    entries=(Entry(devnode="/dev/ttyUSB0", id="a"),),
    left=0,
    since=0,
    due=0,
    there=frozenset(),
    lost="",
    accepted="",
    others=frozenset(),
)
HOLDERS = frozenset({("home", "p", "c")})


def test_the_containers_that_have_a_lost_device_are_its_holders() -> None:
    """Those with another device of the resource keep it, and so do those with a device of another resource, whatever its ID is."""
    holdings = [holding("p", "a", "x"), holding("q", "b"), holding("r", "a", resource=ZWAVE)]
    assert holders_of(LOSS, holdings) == HOLDERS


def running(uid: str = "p", **fields: Any) -> Pod:  # noqa: ANN401  any field of a Pod
    """Return a pod that the kubelet has taken over."""
    return pod("p", uid=uid, started=True, **fields)


def test_a_reading_proves_who_has_a_device_where_the_pod_is_the_same_before_and_after() -> None:
    """The kubelet says a name, and the pod of that name may be a successor, which has another device."""
    assert unproved(LOSS, HOLDERS, [running()], [running()]) == ""
    replaced = "home/p was replaced while the holders were read"
    assert unproved(LOSS, HOLDERS, [running("former")], [running("successor")]) == replaced
    assert unproved(LOSS, HOLDERS, [], [running()]) == replaced
    assert unproved(LOSS, HOLDERS, [running()], []) == replaced
    waiting = pod("p", uid="p", started=False)
    assert unproved(LOSS, HOLDERS, [waiting], [waiting]) == replaced


def test_a_reading_that_the_status_of_the_pod_contradicts_proves_nothing() -> None:
    """From Kubernetes 1.36 on a status names the devices."""
    mine, other = (running(devices={ZIGBEE: frozenset({name})}) for name in "ab")
    assert unproved(LOSS, HOLDERS, [mine], [mine]) == ""
    assert unproved(LOSS, HOLDERS, [other], [other]) == (
        "the status of home/p does not name the device that the kubelet says it holds"
    )


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


@pytest.mark.parametrize(("phase", "unread"), [(Phase.WAITING, {("home", "c")}), (Phase.RUNNING, set())])
def test_a_claim_without_devices_may_be_for_ours_until_a_container_of_its_pod_has_run(
    phase: Phase, unread: set[tuple[str, str]]
) -> None:
    """The kubelet lists it before it is prepared; the drivers of some claims, as of networks, never give a device."""
    pods = [pod("p", claims=frozenset({"c"}), containers=(Container(name="c", phase=phase),))]
    assert unread_claims(pods, [holding("p", claim="c", unprepared=True)]) == unread
