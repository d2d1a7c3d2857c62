"""Which departed devices a scan finds again, where the kubelet hands devices over."""

from __future__ import annotations

from dataclasses import replace

from devwatch.core.departure import Departure
from devwatch.core.finding import Finder
from devwatch.core.inventory import Inventory
from devwatch.core.listing import Entry
from devwatch.core.node import Amounts
from devwatch.core.plan import Figure, Figures
from devwatch.core.rules import Claim, Count, Publish
from devwatch.core.scene import Scene
from devwatch.core.slots import Slots
from support.build import ZIGBEE, device, scan

STICK = device(serial="S1", port="usb-0:1:1.0")
LISTED = Entry.of(STICK)
LONG_AGO = Departure(at=0.0, until=0.0)
"""The departure of an entry of a former daemon."""


def found(gone: dict[Entry, Departure]) -> set[Entry]:
    """Return which of these are the one stick that is present, which has an ID."""
    inventory = Inventory()
    inventory.observe(scan(STICK))
    slots = Slots(ZIGBEE, Count.DEVICE).update((STICK,), 1, certain=True)
    one = Figure(
        present=1, advertised=1, devices=(STICK,), publish=Publish.DEVICE_PLUGIN, amounts=Amounts.of(1), slots=slots
    )
    figures = Figures(by_name={ZIGBEE: one}, claims={STICK: Claim(owner=ZIGBEE)})
    scene = Scene(figures=figures, inventory=inventory, observed=None, now=100.0)
    matches = Finder(gone=gone, here=set(), scene=scene, name=ZIGBEE).find()
    assert set(matches.values()) <= {STICK}
    return set(matches)


def test_a_stick_that_was_listed_without_an_id_is_found() -> None:
    """Its resource was published by the Node's status before."""
    assert found({LISTED: LONG_AGO}) == {LISTED}


def test_a_stick_that_has_a_new_id_since_its_serial_reads_differently_is_the_listed_one() -> None:
    """After a restart; one with the same serial has another ID because it is another stick."""
    renamed, same = replace(LISTED, id="old", serial="before"), replace(LISTED, id="old")
    assert found({renamed: LONG_AGO}) == {renamed}
    assert found({same: LONG_AGO}) == set()


def test_a_stick_that_this_daemon_has_seen_is_none_that_has_another_id() -> None:
    """Though its registration goes on: pods get the device of that ID."""
    renamed = replace(LISTED, id="old", serial="before")
    assert found({renamed: replace(LONG_AGO, device=STICK)}) == set()


def test_a_stick_whose_registration_never_ended_stands_for_no_other() -> None:
    """A scan had missed it while its twin was pulled."""
    twin = replace(LISTED, devnode="/dev/ttyUSB9")
    assert found({LISTED: replace(LONG_AGO, device=STICK), twin: LONG_AGO}) == {LISTED}
