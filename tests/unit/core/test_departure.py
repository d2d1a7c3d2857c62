"""Which present device a departed one can be, and how a departure becomes a loss."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from devwatch.core.departure import (
    Departure,
    advance_departures,
    find_losses,
    initialized_at,
    is_other_part,
    is_untouched,
    returned_at,
)
from devwatch.core.incidents import Registration
from devwatch.core.inventory import Inventory
from devwatch.core.listing import Entry
from devwatch.core.node import NodeState
from devwatch.core.plan import Figure, Figures
from devwatch.core.scene import Scene
from support.build import ZIGBEE, device, patch_of, rule, scan

if TYPE_CHECKING:
    from devwatch.core.device import Device

GONE = device(serial="S1", interface="00")
ENTRY = Entry.of(GONE)


def handled(name: str = "ttyUSB1", at: float | None = None, **fields: Any) -> Device:  # noqa: ANN401  any field of a device
    """Return a stick that udev has handled at this time, or of which its record does not tell."""
    properties = {} if at is None else {"USEC_INITIALIZED": f"{at * 1e6:.0f}"}
    return device(name, serial="S1", properties=properties, **fields)


def departure(**fields: Any) -> Departure:  # noqa: ANN401  any field of a departure
    """Return a departure at 100 s, until 102 s, of a stick that was last seen at 90 s."""
    own: dict[str, Any] = {"at": 100, "until": 102, "seen": 90, "device": GONE}
    return Departure(**own | fields)


def scene(now: float = 103, shown: str = "0", *present: Device, **fields: Any) -> Scene:  # noqa: ANN401  any field of a figure
    """Return a cycle in which the Node shows a count of the resource."""
    inventory = Inventory()
    inventory.observe(scan(*present, at=now))
    own: dict[str, Any] = {"present": len(present), "advertised": len(present), "devices": present}
    figures = Figures(by_name={ZIGBEE: Figure(**own | fields)})
    observed = patch_of({ZIGBEE: shown}).applied(NodeState())
    return Scene(
        figures=figures, inventory=inventory, observed=observed, now=now, wall=5000, date="2026-01-01T00:00:00Z"
    )


# -- which device it can be


@pytest.mark.parametrize(
    ("before", "now", "excluded"),
    [(80, 80, True), (80, 95, False), (80, 90, True), (None, None, True), (None, 95, True)],
)
def test_a_twin_that_was_there_beside_it_is_not_it_until_udev_has_handled_it_again(
    before: float | None, now: float | None, *, excluded: bool
) -> None:
    """A virtual console keeps its registration whatever stick it plays. Without a first time nothing tells of a second one."""
    twin = handled(at=before)
    one = departure(twins=(twin,))
    assert one.excluded([replace(twin, properties=handled(at=now).properties)]) == ({twin.key} if excluded else set())


@pytest.mark.parametrize(
    ("at", "excluded"), [(80, True), (90 - 2e-6, True), (90 - 1e-6, False), (95, False), (None, False)]
)
def test_what_udev_handled_before_it_was_last_seen_is_another_device(at: float | None, *, excluded: bool) -> None:
    """It would have been found beside it; udev cuts the time to whole microseconds."""
    other = handled(at=at)
    assert departure().excluded([other]) == ({other.key} if excluded else set())


def test_what_it_was_before_can_be_it_again_although_udev_handled_that_before_it_was_last_seen() -> None:
    """The registration has not ended, and what stood for it meanwhile was a twin; but not what was beside it."""
    first = handled(at=80)
    one = departure(registrations=(Registration(second=80, number=1, paths=frozenset(), key=first.key),))
    assert one.excluded([first]) == set()
    assert replace(one, twins=(first,)).excluded([first]) == {first.key}


def test_the_device_with_its_id_is_it_but_another_part_of_the_stick_never_is() -> None:
    """The ID was given to it after this one had departed."""
    twin, part = handled(at=80), handled("ttyUSB2", at=95, interface="01")
    one = departure(twins=(twin,))
    assert one.excluded([twin, part]) == {twin.key, part.key}
    assert one.excluded([twin, part], frozenset({twin.key, part.key})) == {part.key}
    assert departure(device=None).excluded([part]) == set(), "of an entry alone the interface is not known"


def test_a_device_without_any_of_its_links_cannot_be_it_as_far_as_both_are_known() -> None:
    """A shared link is one too."""
    same, other = (device(name, links=(f"/dev/{name}-link",)) for name in ("a", "b"))
    one = departure(links=frozenset({"/dev/a-link"}))
    assert one.unlinked([same, other, device("c", properties=None)]) == {other.key}
    assert departure().unlinked([same, other]) == set()


def test_two_interfaces_are_different_parts() -> None:
    """Where both are known."""
    one, two, unknown = (device(interface=face) for face in ("00", "01", None))
    assert is_other_part(one, two)
    assert not is_other_part(one, one)
    assert not is_other_part(one, unknown)
    assert not is_other_part(unknown, two)


def test_udev_has_handled_a_device_again_where_both_records_say_so() -> None:
    """A record that does not tell, or that tells nonsense, proves nothing."""
    assert not is_untouched(handled(at=1), handled(at=2))
    assert is_untouched(handled(at=1), handled(at=1))
    assert is_untouched(handled(at=1), handled())
    for text in ("", "x", "²", "٣", "1" * 20):
        assert initialized_at(device(properties={"USEC_INITIALIZED": text})) is None
    assert initialized_at(device(properties={"USEC_INITIALIZED": "1" * 19})) == pytest.approx(1.1e12, rel=0.02)
    assert initialized_at(device(properties=None)) is None


# -- doubts


def test_a_device_that_goes_before_it_is_known_begins_the_departure_again() -> None:
    """Its pods may have used it until now."""
    other = device("ttyUSB1")
    one = departure(maybe=other.key, since=103.0)
    one.decide(set(), now=110, grace=2)
    assert (one.at, one.until, one.since, one.choice, one.maybe) == (110, 112, None, None, None)


def test_a_device_that_proves_to_be_another_changes_nothing() -> None:
    """The departure goes on where it was."""
    other = device("ttyUSB1")
    one = departure(maybe=other.key, since=103.0)
    assert one.in_doubt
    one.decide({other.key}, now=110, grace=2)
    assert (one.at, one.until, one.since, one.in_doubt) == (100, 102, 103.0, False)
    assert departure(undecided=True).in_doubt


# -- towards a loss


def test_a_departure_is_over_when_its_grace_has_ended_and_nothing_else_holds_the_count() -> None:
    """The time of the server is that before the PATCH."""
    date = "2026-01-01T00:00:00Z"
    for now, held, advertised, lost in (
        (101.9, False, 1, None),
        (102, False, 0, date),
        (102, True, 0, None),
        (102, False, 1, None),
    ):
        one = departure()
        advance_departures({ENTRY: one}, ZIGBEE, scene(now, advertised=advertised, held=held), frozenset())
        assert one.lost == lost, (now, held, advertised)


def test_a_device_within_its_grace_does_not_hold_up_another() -> None:
    """The count still includes it, and not the other."""
    over, lingering = departure(), departure(until=110)
    gone = {ENTRY: over, replace(ENTRY, devnode="/dev/ttyUSB1"): lingering}
    advance_departures(gone, ZIGBEE, scene(103, advertised=1), frozenset())
    assert (over.lost, lingering.lost) == ("2026-01-01T00:00:00Z", None)


def test_a_departure_in_doubt_does_not_advance() -> None:
    """The device may be there."""
    one = departure(undecided=True)
    advance_departures({ENTRY: one}, ZIGBEE, scene(), frozenset())
    assert one.lost is None


def test_a_device_is_lost_once_the_node_shows_the_count_without_it() -> None:
    """By the server's time then, which is unknown where a former daemon sent the PATCH."""
    for recalled, accepted in ((False, "2026-01-01T00:00:00Z"), (True, "")):
        one = departure(there=frozenset(), lost="", recalled=recalled)
        advance_departures({ENTRY: one}, ZIGBEE, scene(103, "1"), frozenset())
        before = one.since
        advance_departures({ENTRY: one}, ZIGBEE, scene(104), frozenset())
        advance_departures({ENTRY: one}, ZIGBEE, scene(105), frozenset())
        assert (before, one.since, one.accepted) == (None, 104, accepted)


def test_the_paths_of_a_departed_device_that_have_led_to_another_are_remembered() -> None:
    """A container that started meanwhile has mounted that one."""
    registration = Registration(second=0, number=1, paths=frozenset({"/dev/a", "/dev/b"}))
    one = departure(registrations=(registration,))
    for taken in ({"/dev/a", "/dev/z"}, {"/dev/b"}, set[str]()):
        advance_departures({ENTRY: one}, ZIGBEE, scene(), frozenset(taken))
    assert one.taken == {"/dev/a", "/dev/b"}


def losses(gone: dict[Entry, Departure], seen: Scene, after: float = 3.0) -> list[tuple[float, float, int, int]]:
    """Return of each loss since when, when it is due, how many devices are lost and how many are left."""
    found = find_losses(gone, rule(evict_after=after), seen, frozenset())
    return [(each.since, each.due, len(each.entries), each.left) for each in found]


def test_devices_that_the_node_stopped_counting_together_are_one_loss() -> None:
    """One whose eviction is not due yet is left until then."""
    second, third = (replace(ENTRY, devnode=f"/dev/ttyUSB{number}") for number in (1, 2))
    lost = {"there": frozenset[str](), "lost": ""}
    gone = {
        ENTRY: departure(since=100, **lost),
        second: departure(since=100, **lost),
        third: departure(since=104, **lost),
    }
    assert losses(gone, scene(105)) == [(100, 103, 2, 1), (104, 107, 1, 0)]
    assert losses(gone, scene(108, "1", device("ttyUSB9"))) == [(100, 103, 2, 1), (104, 107, 1, 1)]
    assert losses({ENTRY: departure(since=100)}, scene(100), after=0.0) == [(100, 100, 1, 0)]


def test_each_device_that_the_kubelet_hands_over_is_a_loss_of_its_own() -> None:
    """The holders of the one may be known before those of the other."""
    gone = {replace(ENTRY, id=name): departure(since=100) for name in ("a", "b")}
    assert losses(gone, scene(103)) == [(100, 103, 1, 0), (100, 103, 1, 0)]
    keys = {each.key for each in find_losses(gone, rule(evict_after=3.0), scene(103), frozenset())}
    assert len(keys) == len(gone)


def test_nothing_is_lost_while_the_count_may_still_fall_or_the_node_shows_another() -> None:
    """Nor what is in doubt, or was not counted out yet."""
    gone = {ENTRY: departure(since=100)}
    assert losses(gone, scene(held=True)) == losses(gone, scene(advertised=1)) == losses(gone, scene(103, "1")) == []
    assert losses({ENTRY: departure(since=100, undecided=True)}, scene()) == []
    assert losses({ENTRY: departure()}, scene()) == []


def test_a_device_that_is_present_and_not_offered_stops_no_loss() -> None:
    """A pod has it under another name, maybe for days: the count cannot fall any more."""
    gone, present = {ENTRY: departure(since=100)}, device("ttyUSB9")
    assert losses(gone, scene(103, "0", present, advertised=0)) == [(100, 103, 1, 1)]
    assert losses(gone, scene(103, "1", present, advertised=0)) == []


# -- the return


@pytest.mark.parametrize(
    ("initialized", "found", "returned"),
    [(95, 96, 95), (None, 96, 96), (80, 96, 96), (97, 96, 96), (90, 96, 90), (96, 96, 96)],
)
def test_a_device_returned_when_udev_handled_it_or_else_when_a_scan_found_it(
    initialized: float | None, found: float, returned: float
) -> None:
    """A time from before it was last seen belongs to another registration, one after the scan to none."""
    back = handled(at=initialized)
    assert returned_at(back, departure(), scene(found, "1", back)) == returned


def test_a_device_that_was_there_beside_the_departed_one_returns_with_the_scan() -> None:
    """A container that started before has the file of the departed one."""
    back = handled(at=95)
    seen = scene(80, "1", back)
    assert returned_at(back, departure(), replace(seen, now=120)) == 120
    assert returned_at(back, departure(seen=80), replace(seen, now=120)) == 120


def test_of_a_device_that_a_former_daemon_listed_udev_knows_the_return() -> None:
    """A time that is still to come is nonsense. This daemon may have found it before a slow udev had handled it, and read it since."""
    former = departure(device=None, seen=-math.inf)
    for at, returned in ((95, 95), (100, 100), (101, None), (None, None)):
        back = handled(at=at)
        assert returned_at(back, former, scene(100, "1", back)) == returned
    late = handled(at=95)
    assert returned_at(late, former, replace(scene(80, "1", late), now=100)) == 80
