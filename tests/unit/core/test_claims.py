"""What is prepared for a claim, what is refused, and what its containers get."""

from __future__ import annotations

from dataclasses import replace

import pytest

from devwatch.core.claims import Toleration, administered, cdi_devices, prepare
from devwatch.core.errors import ClaimRefused
from devwatch.core.names import UNPLUGGED
from support.build import ZIGBEE, ZWAVE
from support.claims import POOL, UID, allocated, known, prepared, reference, state

KNOWN = {"a": known(), "b": known(), "z": known(ZWAVE)}


def test_a_claim_is_prepared_with_the_devices_of_our_driver_alone() -> None:
    """In the order of the allocation; other drivers prepare theirs."""
    found = state(allocated("b"), allocated("x", driver="gpu.example.com", share="1"), allocated("a", request="other"))
    claim = prepare(reference(), found, POOL, KNOWN)
    assert [(each.request, each.pool, each.id) for each in claim.devices] == [
        ("stick", POOL, "b"),
        ("other", POOL, "a"),
    ]
    assert claim.reference == reference()


def test_a_claim_without_a_device_of_ours_is_prepared_with_none() -> None:
    """The kubelet would not ask, and an answer does no harm."""
    assert prepare(reference(), state(), POOL, KNOWN).devices == ()


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (state(allocated(), uid="2"), "home/c is another claim by now: its uid is 2"),
        (replace(state(), allocated=False), "home/c is not allocated"),
        (
            state(allocated(), configured=frozenset({"gpu.example.com", "devwatch.io"})),
            "home/c has parameters for devwatch.io, which takes none",
        ),
        (state(allocated(share="s")), "a is allocated as a share (s), which devwatch.io does not offer"),
        (state(allocated("x")), f"{POOL}/x is not a device of this node"),
        (state(allocated(pool="m")), "m/a is not a device of this node"),
        (
            state(allocated(request="a b")),
            "home/c has a uid or a request that cannot be the name of a CDI device",
        ),
    ],
)
def test_what_cannot_be_prepared_is_refused_with_the_reason(found: object, reason: str) -> None:
    """The kubelet shows it at the pod."""
    with pytest.raises(ClaimRefused) as refused:
        prepare(reference(), found, POOL, KNOWN)  # type: ignore[arg-type]  # a parameter of the test
    assert str(refused.value) == reason


@pytest.mark.parametrize("uid", ["../x", "", ".", "a/b", "a\0"])
def test_a_uid_that_leads_out_of_the_folder_is_refused(uid: str) -> None:
    """It becomes a part of a file's name."""
    with pytest.raises(ClaimRefused, match="cannot be the name"):
        prepare(reference(uid=uid), state(uid=uid), POOL, KNOWN)


def test_parameters_of_other_drivers_are_none_of_ours() -> None:
    """A class may have them for several drivers."""
    assert prepare(reference(), state(allocated(), configured=frozenset({"x"})), POOL, KNOWN).devices


def test_the_request_of_a_prioritised_list_is_the_part_before_the_slash() -> None:
    """Containers refer to that."""
    claim = prepare(reference(), state(allocated(request="stick/second")), POOL, KNOWN)
    assert list(claim.requests) == ["stick"]


def test_administrative_access_gets_the_device_and_holds_none() -> None:
    """The claim that uses it holds it."""
    claim = prepare(reference(), state(allocated("a", admin=True), allocated("b")), POOL, KNOWN)
    assert [each.id for each in claim.held] == ["b"]
    assert len(cdi_devices(claim, {"a": ("/dev/a",), "b": ("/dev/b",)})) == 1


def test_a_claim_holds_what_it_has_for_administrative_access_only_if_it_has_it_otherwise_too() -> None:
    """By namespace and name, as the kubelet names claims."""
    both = state(
        allocated("a", admin=True), allocated("b", admin=True), allocated("b", request="other"), allocated("z")
    )
    claims = [prepare(reference(), both, POOL, KNOWN), prepared("b", uid="2")]
    assert administered(claims[:1], "home", "c") == {"a"}
    assert administered(claims[:1], "home", "d") == administered(claims[:1], "other", "c") == frozenset()
    overlapping = [prepared("a", admin=True), prepared("a", uid="2")]
    assert administered(overlapping, "home", "c") == frozenset()


@pytest.mark.parametrize(
    ("toleration", "spared"),
    [
        (Toleration(key=UNPLUGGED, operator="Exists"), True),
        (Toleration(key=UNPLUGGED), True),
        (Toleration(key=UNPLUGGED, value="x"), False),
        (Toleration(key=UNPLUGGED, operator="Exists", value="x"), True),
        (Toleration(key=UNPLUGGED, operator="Exists", effect="NoSchedule"), True),
        (Toleration(key=UNPLUGGED, operator="Exists", effect="NoExecute"), False),
        (Toleration(operator="Exists"), True),
        (Toleration(), False),
        (Toleration(key="other", operator="Exists"), False),
    ],
)
def test_a_claim_that_tolerates_the_loss_is_spared(toleration: Toleration, *, spared: bool) -> None:
    """By the rules of the API (`DeviceToleration`)."""
    claim = prepare(reference(), state(allocated(tolerations=(Toleration(key="x"), toleration))), POOL, KNOWN)
    assert [each.spared for each in claim.devices] == [spared]


# -- what containers get


def test_a_request_is_one_cdi_device_with_the_devnodes_in_the_order_of_the_ids() -> None:
    """The first at the path, further ones numbered, all in the variable."""
    ((name, device),) = cdi_devices(prepared("b", "a"), {"a": ("/dev/1", "/dev/2"), "b": ("/dev/3",)}).items()
    assert name == f"{UID}-stick"
    assert device.paths == {"/dev/zigbee": "/dev/1", "/dev/zigbee1": "/dev/2", "/dev/zigbee2": "/dev/3"}
    assert device.variables == {"DEVICE_EXAMPLE_COM_ZIGBEE": "/dev/zigbee,/dev/zigbee1,/dev/zigbee2"}


def test_two_resources_in_one_request_have_their_own_paths() -> None:
    """A class of the user's own may select both."""
    claim = prepare(reference(), state(allocated("z"), allocated("a")), POOL, KNOWN)
    (device,) = cdi_devices(claim, {"a": ("/dev/1",), "z": ("/dev/2",)}).values()
    assert device.paths == {"/dev/zigbee": "/dev/1", "/dev/zwave": "/dev/2"}
    assert set(device.variables) == {"DEVICE_EXAMPLE_COM_ZIGBEE", "DEVICE_EXAMPLE_COM_ZWAVE"}


def test_a_request_waits_until_all_its_devices_are_back_and_no_other_waits_with_it() -> None:
    """A container with a part of its devices would be worse than one that waits."""
    found = state(allocated("a"), allocated("b"), allocated("z", request="other"))
    claim = prepare(reference(), found, POOL, KNOWN)
    assert set(cdi_devices(claim, {"a": ("/dev/1",), "z": ("/dev/2",)})) == {f"{UID}-other"}
    assert cdi_devices(claim, {"a": (), "b": ("/dev/3",), "z": ()}) == {}
    assert ZIGBEE in {each.known.resource for each in claim.devices}
