"""A resource counts devices of one subsystem, and a USB device counts as a whole or by its parts, never both."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.core.exclusion import claim_all
from devwatch.core.plan import Claims
from devwatch.core.rules import Claim, ResourceRule, Verdict, claim
from support.build import device, entry, rule

if TYPE_CHECKING:
    from devwatch.core.device import Device

BODY = "/devices/usb1/1-1"
WHOLE = device(subsystem="usb", devnode="/dev/bus/usb/001/004", devpath=BODY, physical=BODY, port="usb-0:1")
ZWAVE, ZIGBEE = device(interface="00", physical=BODY), device("ttyUSB1", interface="01", physical=BODY)
USB = rule("x/usb", subsystem="usb")
TTY = rule("x/tty")


def test_the_first_resource_that_claims_a_device_excludes_the_other_kind() -> None:
    """Of a whole device that is claimed first no tty counts; a whole device of which one tty is claimed first does not count."""
    devices = (ZWAVE, WHOLE, ZIGBEE)
    by_whole, by_part = claim_all(devices, (USB, TTY)), claim_all(devices, (TTY, USB))
    lost = Claim(wanted=("x/usb", "x/tty"), excluded_by="x/usb")
    assert by_whole == {WHOLE: Claim(owner="x/usb", wanted=("x/usb",)), ZWAVE: lost, ZIGBEE: lost}
    assert [by_part[each].owner for each in devices] == ["x/tty", None, "x/tty"]
    assert by_part[WHOLE].excluded_by == "x/tty"


def test_one_part_excludes_the_whole_and_no_other_part() -> None:
    """Also where the whole comes before the other part."""
    first, last = rule("x/a", [entry(interface="00")]), rule("x/b", [entry(interface="01")])
    claims = claim_all((WHOLE, ZWAVE, ZIGBEE), (first, USB, last))
    assert [claims[each].owner for each in (WHOLE, ZWAVE, ZIGBEE)] == [None, "x/a", "x/b"]


def test_each_device_is_judged_for_itself() -> None:
    """Of two that are claimed in both ways both are excluded, and of two where that is unknown neither has an owner."""
    other = replace(WHOLE, physical="/devices/1-2", devnode="/dev/bus/usb/001/005", devpath="/devices/1-2")
    part = replace(ZIGBEE, physical="/devices/1-2")
    claims = claim_all((WHOLE, ZWAVE, other, part), (USB, TTY))
    assert [claims[each].owner for each in (WHOLE, ZWAVE, other, part)] == ["x/usb", None, "x/usb", None]
    bare = (replace(each, properties=None, port=None) for each in (WHOLE, other))
    unclear = claim_all((*bare, ZWAVE, part), (rule("x/first", [entry(port="*-1.4*")], subsystem="usb"), TTY))
    assert {each.owner for each in unclear.values()} == {None}


def test_devices_of_their_own_do_not_exclude_one_another() -> None:
    """Neither does a devnode that nothing claims, nor one that belongs to no USB device."""
    other = replace(ZWAVE, physical="/devices/1-2")
    bare = replace(ZIGBEE, physical=None)
    assert [each.owner for each in claim_all((WHOLE, other, bare), (USB, TTY)).values()] == ["x/usb", "x/tty", "x/tty"]
    claims = claim_all((WHOLE, ZWAVE), (rule("x/none", [entry(vendor="ffff")]), USB))
    assert (claims[WHOLE].owner, claims[ZWAVE]) == ("x/usb", Claim())
    unplaced = replace(WHOLE, physical=None)
    assert [each.owner for each in claim_all((unplaced, bare), (USB, TTY)).values()] == ["x/usb", "x/tty"]


def test_of_parts_alone_each_is_open_for_its_own_resources() -> None:
    """Without the whole device there is nothing to decide between the two kinds."""
    by_port = [rule(f"x/{face}", [entry(port="here", interface=face)]) for face in ("00", "01")]
    parts = [replace(each, properties=None, port=None) for each in (ZWAVE, ZIGBEE)]
    claims = claim_all(parts, (*by_port, USB))
    assert [claims[each].doubtful for each in parts] == [{"x/00"}, {"x/01"}]


@pytest.mark.parametrize("unknown", [WHOLE, ZWAVE])
def test_while_it_is_unknown_which_is_the_first_neither_has_the_device(unknown: Device) -> None:
    """Counted as both, it would be given to two pods."""
    by_port = rule("x/first", [entry(port="*-1.4*")], subsystem=unknown.subsystem)
    second = TTY if unknown is WHOLE else USB
    bare = replace(unknown, properties=None, port=None)
    sure = ZWAVE if unknown is WHOLE else WHOLE
    claims = claim_all((bare, sure), (by_port, second))
    assert {each.owner for each in claims.values()} == {None}
    assert {each.doubtful for each in claims.values()} == {frozenset({"x/first", second.name})}
    assert claims[sure].wanted == (second.name,), "what certainly matches is still told"
    # Where the unknown one comes second, it changes nothing.
    claims = claim_all((bare, sure), (second, by_port))
    assert (claims[sure].owner, claims[bare].doubtful) == (second.name, frozenset())


def test_a_part_that_an_uncertain_scan_misses_excludes_the_whole_as_before() -> None:
    """It may be there: the device would count both ways."""
    claims = Claims((TTY, USB))
    assert claims.judge((WHOLE, ZWAVE))[WHOLE].excluded_by == "x/tty"
    assert claims.judge((WHOLE,), certain=False) == {WHOLE: Claim(wanted=("x/tty", "x/usb"), excluded_by="x/tty")}
    assert claims.judge((WHOLE,), certain=False)[WHOLE].owner is None
    assert claims.judge((WHOLE,))[WHOLE].owner == "x/usb"


PARTS = st.lists(
    st.builds(
        device,
        name=st.sampled_from(["a", "b", "c"]),
        subsystem=st.sampled_from(["usb", "tty", "hidraw"]),
        port=st.sampled_from([None, "here"]),
        properties=st.sampled_from([None, {}]),
        physical=st.sampled_from(["/devices/1", "/devices/2"]),
    ),
    unique_by=lambda each: (each.devnode, each.subsystem),
)
RULES = st.permutations(
    [
        rule("x/usb", subsystem="usb"),
        rule("x/port", [entry(port="here")], subsystem="usb"),
        rule("x/tty", [entry(port="here")]),
        rule("x/hid", subsystem="hidraw"),
    ]
)


@given(PARTS, RULES)
def test_no_device_ever_counts_both_ways(devices: list[Device], rules: list[ResourceRule]) -> None:
    """Nor can what is unknown of it become the other way."""
    claims = claim_all(devices, rules)
    for body in {each.body for each in devices}:
        mine = [each for each in devices if each.body == body and claims[each].candidates]
        ways = {each.subsystem == "usb" for each in mine}
        assert len(ways) <= 1 or not any(claims[each].owner for each in mine)


# -- subsystems


def test_a_resource_counts_devices_of_its_subsystem_alone() -> None:
    """Whatever its keys match; and neither resource shadows the other."""
    tty, usb = rule("x/tty"), rule("x/usb", subsystem="usb")
    assert claim(WHOLE, (tty, usb)).owner == "x/usb"
    assert claim(device(), (usb, tty)).owner == "x/tty"
    assert rule("x/usb", subsystem="usb").unknowns(device(properties=None)) == ()
    assert not usb.shadows(tty)
    assert not tty.shadows(usb)
    assert usb.shadows(rule("x/later", subsystem="usb"))


@pytest.mark.parametrize(
    ("keys", "verdict"),
    [
        ({"vendor": "10c4", "product": "8a2a"}, Verdict.MATCHED),
        ({"vendor": "10c4", "product": "8a2a", "port": "*"}, Verdict.MATCHED),
        ({"vendor": "10c4"}, Verdict.NOT),
        ({"vendor": "10c4", "product": "8*"}, Verdict.NOT),
        ({"port": "*"}, Verdict.NOT),
    ],
)
def test_a_hub_counts_only_by_its_exact_ids(keys: dict[str, str], verdict: Verdict) -> None:
    """A rule for a row of devices would count the hubs between them otherwise."""
    hub = replace(WHOLE, hub=True)
    assert rule(match=[entry(**keys)], subsystem="usb").verdict(hub) is verdict
    assert rule(match=[entry(**keys)], subsystem="usb").verdict(WHOLE) is Verdict.MATCHED


def test_the_devnodes_of_usb_devices_and_cameras_are_no_links() -> None:
    """So it is known that they are not another device, also where links are not known."""
    for path in ("/dev/bus/usb/001/00[56]", "/dev/hidraw1", "/dev/video*"):
        test = entry(path=path).tests[0]
        assert test.verdict(replace(WHOLE, links_known=False, properties=None)) is Verdict.NOT
