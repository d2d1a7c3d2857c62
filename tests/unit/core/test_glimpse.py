"""The devices that only uncertain scans have found."""

from __future__ import annotations

from dataclasses import replace

from devwatch.core.glimpse import Glimpses
from devwatch.core.incidents import Registration
from devwatch.core.inventory import Inventory
from devwatch.core.listing import Entry
from devwatch.core.plan import Figures
from devwatch.core.scene import Scene
from support.build import device, scan

STICK = device(number=7, serial="S1")
TWIN = device("ttyUSB1", serial="S1")
OTHER = device("ttyUSB2", serial="S2")
ENTRY = replace(Entry.of(STICK), id="a", links=("/dev/own",), shared=("/dev/shared",))
KEPT = {(STICK.key, "a")}


def glimpsed() -> Glimpses:
    """Return what an uncertain scan at 10 s, at 1000 s of the wall clock, has found."""
    inventory = Inventory()
    inventory.observe(scan(STICK, TWIN, OTHER, at=10, doubts=("EACCES",)))
    one = Glimpses()
    one.note({ENTRY: STICK}, Scene(figures=Figures(), inventory=inventory, observed=None, now=10, wall=1000))
    return one


def test_what_a_certain_scan_does_not_find_has_departed_with_all_that_is_known_of_it() -> None:
    """Its pod may have it by each of its paths; a twin beside it is not it, and it counts until its grace ends."""
    ((entry, departure),) = glimpsed().departed(set(), now=20, grace=2).items()
    assert (entry, departure.device, departure.twins) == (ENTRY, STICK, (TWIN,))
    assert (departure.seen, departure.at, departure.until) == (10, 20, 22)
    assert departure.links == {"/dev/own", "/dev/shared"}
    assert departure.registrations == (
        Registration(second=0, number=7, paths=frozenset({STICK.devnode, "/dev/own"}), key=STICK.key, left=1000),
    )


def test_what_a_certain_scan_finds_has_not_departed() -> None:
    """Under another ID, or as another registration, it is another device."""
    assert glimpsed().departed(KEPT, now=20, grace=2) == {}
    assert list(glimpsed().departed({(STICK.key, "b"), (TWIN.key, "a")}, now=20, grace=2)) == [ENTRY]


def test_a_certain_scan_ends_what_the_uncertain_ones_have_told() -> None:
    """From then on the device is known as any other."""
    one = glimpsed()
    one.departed(KEPT, now=20, grace=2)
    assert one.departed(set(), now=30, grace=2) == {}
