"""What one cycle of the loop is told of a resource."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from devwatch.core.inventory import Inventory
from devwatch.core.listing import Entry
from devwatch.core.node import Amounts, NodeState
from devwatch.core.plan import Figure, Figures
from devwatch.core.rules import Claim, Count, Publish
from devwatch.core.scene import Scene
from devwatch.core.slots import Slots, SlotState
from support.build import ZIGBEE, ZWAVE, device, patch_of, scan

if TYPE_CHECKING:
    from devwatch.core.device import Device

STICK = device(serial="S1", port="usb-0:1:1.0")
TWIN = device("ttyUSB1", serial="S1", port="usb-0:2:1.0")
FIGURE = Figure(present=1, advertised=1, devices=(STICK,), publish=Publish.DEVICE_PLUGIN, amounts=Amounts.of(1))


def figure(*devices: Device, counted: int | None = None, count: Count = Count.DEVICE, **fields: Any) -> Figure:  # noqa: ANN401
    """Return the figure of a resource that the kubelet hands over, with any other field of it."""
    number = len(devices) if counted is None else counted
    slots = Slots(ZIGBEE, count).update(devices, number, certain=True)
    return replace(FIGURE, devices=devices, present=len(devices), slots=slots, **fields)


def scene(one: Figure, *present: Device, pending: tuple[Device, ...] = (), **fields: Any) -> Scene:  # noqa: ANN401
    """Return the cycle of a scan that finds these devices, with any other field of a scene."""
    inventory = Inventory()
    inventory.observe(scan(*present, *pending))
    claims = {each: Claim(owner=ZIGBEE) for each in (*inventory.present, *inventory.pending)}
    own = {"observed": None, "now": 100.0, **fields}
    return Scene(figures=Figures(by_name={ZIGBEE: one}, claims=claims), inventory=inventory, **own)


def test_a_moment_has_the_second_of_the_wall_clock_at_that_time() -> None:
    """Whatever the monotonic clock shows."""
    assert scene(figure(), wall=5000.0).second(90.0) == 4990


def test_only_present_devices_that_the_kubelet_hands_over_have_an_id() -> None:
    """One that lingers has not, nor has a resource that still is in use in another way."""
    one = figure(STICK)
    assert scene(one, STICK).slots(ZIGBEE) == {STICK.key: one.slots[0]}
    lingering = replace(one, slots=(replace(one.slots[0], state=SlotState.LINGERING),))
    for other in (replace(one, amounts=None), replace(one, frozen=True), lingering):
        assert scene(other, STICK).slots(ZIGBEE) == {}


def test_a_device_without_its_record_has_no_id_yet_where_the_kubelet_hands_it_over() -> None:
    """Which one it gets is not known before; without the kubelet there are no IDs."""
    unread = device("ttyUSB1", properties=None)
    one = figure(STICK)
    assert scene(one, STICK, pending=(unread,)).unidentified(ZIGBEE) == {unread.key}
    assert scene(replace(one, amounts=None), STICK, pending=(unread,)).unidentified(ZIGBEE) == set()
    assert (
        scene(figure(replace(STICK, properties=None)), pending=(replace(STICK, properties=None),)).unidentified(ZIGBEE)
        == set()
    )


def test_two_sticks_may_be_the_listed_one_that_neither_has_the_id_of() -> None:
    """After a restart nothing tells which of them it is; one is not two, and without a serial the socket tells."""
    entry = replace(Entry.of(STICK), id="old")
    both = scene(figure(STICK, TWIN), STICK, TWIN)
    assert both.fits_several(ZIGBEE, entry)
    assert not both.fits_several(ZIGBEE, replace(entry, id=both.slots(ZIGBEE)[STICK.key].id)), "it has its ID"
    assert not both.fits_several(ZIGBEE, replace(entry, id=None)), "no ID was given to it"
    assert not both.fits_several(ZIGBEE, replace(entry, serial="S2"))
    assert not both.fits_several(ZIGBEE, replace(entry, place="00:0"))
    assert not scene(figure(STICK), STICK).fits_several(ZIGBEE, entry)
    nameless = [replace(each, serial=None) for each in (STICK, TWIN)]
    assert not scene(figure(*nameless), *nameless).fits_several(ZIGBEE, replace(entry, serial=None))


def test_of_two_parts_only_the_same_place_may_be_the_listed_one() -> None:
    """Where each devnode is a device of its own."""
    one, two = (replace(each, interface="00") for each in (STICK, TWIN))
    both = scene(figure(one, two, count=Count.DEVNODE), one, two)
    entry = replace(Entry.of(one), id="old", place="00:0")
    assert both.fits_several(ZIGBEE, entry)
    assert not both.fits_several(ZIGBEE, replace(entry, place="01:0"))


@pytest.mark.parametrize(("shown", "agrees"), [("1", True), ("0", False), (None, False)])
def test_the_node_shows_a_count_once_it_was_observed_with_it(shown: str | None, *, agrees: bool) -> None:
    """Before the first observation it shows nothing."""
    observed = None if shown is None else patch_of({ZIGBEE: shown}).applied(NodeState())
    assert scene(figure(STICK), STICK, observed=observed).shows(ZIGBEE) == agrees


def test_a_device_that_has_not_arrived_is_open_for_the_resource_that_will_have_it() -> None:
    """And for no other one."""
    waiting = device("ttyUSB1", properties=None)
    one = scene(figure(STICK), STICK, pending=(waiting,))
    assert one.open(ZIGBEE) == {waiting.key}
    others = {each: replace(claim, owner=ZWAVE) for each, claim in one.figures.claims.items()}
    assert replace(one, figures=replace(one.figures, claims=others)).open(ZIGBEE) == set()
