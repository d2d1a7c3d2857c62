"""Which device has which ID, and what a resource offers when devices come, go and return."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.core.listing import Entry
from devwatch.core.rules import Count, Publish
from devwatch.core.slots import Identity, Slot, Slots, SlotState, mark, recall
from support.build import ZIGBEE, ZWAVE, device

if TYPE_CHECKING:
    from devwatch.core.device import Device

PRESENT, LINGERING, HELD = SlotState.PRESENT, SlotState.LINGERING, SlotState.HELD


def stick(name: str = "ttyUSB0", serial: str | None = "S1", socket: str = "1", **fields: Any) -> Device:  # noqa: ANN401  any field
    """Return a stick with a serial in a socket; each name is another registration."""
    return device(name, serial=serial, port=f"pci-0000:00:14.0-usb-0:{socket}:1.0", **fields)


def ids(slots: tuple[Slot, ...]) -> list[str]:
    """Return the IDs in order."""
    return [slot.id for slot in slots]


def states(slots: tuple[Slot, ...]) -> list[SlotState]:
    """Return the states in order."""
    return [slot.state for slot in slots]


class Story:
    """The scans of one resource, one after another."""

    def __init__(self, *recalled: Slot, unit: Count = Count.DEVICE) -> None:
        """Begin with what a former daemon listed."""
        self.slots = Slots(ZIGBEE, unit, recalled)

    def see(
        self,
        *devices: Device,
        counted: int | None = None,
        certain: bool = True,
        free: frozenset[str] | None = None,
        pending: tuple[Device, ...] = (),
        date: str = "",
    ) -> tuple[Slot, ...]:
        """Scan; without `counted` exactly the devices are advertised."""
        number = len(devices) if counted is None else counted
        return self.slots.update(devices, number, certain=certain, free=free, pending=pending, date=date)


def stored(name: str, sight: Device, **fields: Any) -> Slot:  # noqa: ANN401  any field
    """Return what the annotation tells the next daemon of a device."""
    (slot,) = Story().see(sight)
    return Slot(id=name, identity=slot.identity, devices=(), state=HELD, **fields)


def restarted(*slots: Slot, unit: Count = Count.DEVICE) -> Story:
    """Return the next daemon, which has read of these slots in the annotation."""
    listed = [mark(Entry.of(each), slot, Publish.DEVICE_PLUGIN) for slot in slots for each in slot.devices]
    return Story(*recall(ZIGBEE, listed), unit=unit)


# -- lost devices


def test_a_lost_device_is_lost_until_it_is_found() -> None:
    """A count that is held up while scans are uncertain, by an older figure of the Node, brings it not back."""
    story = Story()
    story.see(stick())
    assert states(story.see(counted=0, free=frozenset())) == [HELD]
    assert states(story.see(counted=1, free=frozenset(), certain=False)) == [HELD]
    assert states(story.see(stick("ttyUSB1"), free=frozenset())) == [PRESENT]


def test_an_uncertain_scan_that_finds_a_part_of_a_device_has_not_found_it() -> None:
    """The part would be handed out in the place of the first devnode."""
    one, two = (stick(f"ttyUSB{number}", interface=f"0{number}", physical="/devices/usb/1") for number in (0, 1))
    story = Story()
    story.see(one, two)
    (slot,) = story.see(two, counted=1, certain=False)
    assert (slot.state, slot.devices) == (LINGERING, (one, two))
    (slot,) = story.see(two, counted=1)
    assert (slot.state, slot.devices) == (PRESENT, (two,))


def test_an_uncertain_scan_has_not_found_a_listed_device_by_a_part_of_it() -> None:
    """The annotation tells the next daemon how many devnodes it has; all of them are the device, and another stick is not a part of it."""
    one, two = (stick(f"ttyUSB{number}", interface=f"0{number}", physical="/devices/usb/1") for number in (0, 1))
    other = stick("ttyUSB5", serial="S5", socket="5")
    listed = Story().see(one, two)
    found, absent = restarted(*listed).see(two, other, counted=2, certain=False)
    assert (found.devices, absent.devices, absent.state) == ((other,), (), LINGERING)
    (whole,) = restarted(*listed).see(one, two, counted=1, certain=False)
    assert (whole.devices, whole.state) == ((one, two), PRESENT)


def test_a_lost_device_has_the_time_of_its_loss_until_it_is_found() -> None:
    """The API server's, which nothing that happens later changes."""
    story = Story()
    story.see(stick())
    assert [slot.lost for slot in story.see(free=frozenset())] == [None], (
        "before the first response the time is unknown"
    )
    story.see(stick("ttyUSB1"))
    for free, date in ((), "2026-01-01T00:00:00Z"), (("another",), "2026-01-01T00:00:10Z"):
        (slot,) = story.see(free=frozenset(free), date=date)
        assert slot.lost == "2026-01-01T00:00:00Z"
    (slot,) = story.see(stick("ttyUSB2"))
    assert slot.lost is None


# -- the form of an ID


texts = st.one_of(st.none(), st.text(max_size=80))


@given(texts, texts, texts, st.text())
def test_an_id_is_a_dns_label(vendor: str | None, product: str | None, serial: str | None, socket: str) -> None:
    """Whatever a device says of itself, the kubelet and the API server take its ID."""
    identity = Identity(vendor=vendor, product=product, serial=serial, socket=socket)
    name = identity.id(ZIGBEE, in_socket=True)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name)
    assert re.fullmatch(r".*-[0-9a-f]{10}", name)


def test_an_upgrade_changes_no_id() -> None:
    """The kubelet, the annotation and claims know devices by the IDs that former releases have made."""
    whole = Identity(vendor="10c4", product="8a2a", serial="HUSB 12", socket="pci-0000:00:14.0-usb-0:1")
    assert whole.id(ZIGBEE, in_socket=False) == "10c4-8a2a-husb-12-aa97b4f38c"
    assert whole.id(ZIGBEE, in_socket=True) == "10c4-8a2a-husb-12-e60252a581"
    assert whole.id(ZIGBEE, in_socket=True, salt=1) == "10c4-8a2a-husb-12-d17cd139ad"
    part = Identity(vendor="10c4", product="8a2a", serial=None, socket="/devices/usb/1-1", place="00:0")
    assert part.id(ZIGBEE, in_socket=True) == "10c4-8a2a-10305302fe"
    odd = Identity(vendor="10c4", product="8a2a", serial="\udcff" + "s" * 80, socket="1")
    name = odd.id(ZIGBEE, in_socket=False)
    assert (len(name), name) == (63, "10c4-8a2a-" + "s" * 42 + "-f101da812b")


def test_an_id_names_vendor_product_and_serial() -> None:
    """A person recognises the stick in it."""
    (slot,) = Story().see(stick(serial="HUSB 12"))
    assert re.fullmatch(r"10c4-8a2a-husb-12-[0-9a-f]{10}", slot.id)


def test_an_id_differs_between_resources() -> None:
    """IDs are unique over all resources of a node (kubelet, device manager)."""
    (slot,) = Story().see(stick())
    assert slot.identity.id(ZWAVE, in_socket=False) != slot.id == slot.identity.id(ZIGBEE, in_socket=False)


def test_absent_and_empty_values_have_different_ids() -> None:
    """And no value can pass for two."""
    values = [(None, "a", "b"), ("", "a", "b"), ("a", None, "b"), ("a", "b", None), ("a\0b", "", "")]
    made = {
        Identity(vendor=vendor, product=product, serial=serial, socket="1").id(ZIGBEE, in_socket=False)
        for vendor, product, serial in values
    }
    assert len(made) == len(values)


# -- which device has it


def test_a_device_keeps_its_id_under_another_name_and_in_another_socket() -> None:
    """A serial identifies the stick."""
    story = Story()
    first = story.see(stick("ttyUSB0"))
    away = story.see(counted=1)
    back = story.see(stick("ttyUSB3", socket="2"))
    assert ids(first) == ids(away) == ids(back)
    assert [states(slots) for slots in (first, away, back)] == [[PRESENT], [LINGERING], [PRESENT]]
    assert back[0].devices == (stick("ttyUSB3", socket="2"),)


@pytest.mark.parametrize("serial", [None, "533D004242", "0001"])
def test_without_a_serial_of_its_own_the_socket_is_the_identity(serial: str | None) -> None:
    """Moved to another socket it is another device, and back in its own it is the same; so it is with a serial that many devices share."""
    story = Story()
    first = story.see(stick("ttyUSB0", serial, socket="1"))
    moved = story.see(stick("ttyUSB1", serial, socket="2"), counted=2)
    back = story.see(stick("ttyUSB2", serial, socket="1"), stick("ttyUSB3", serial, socket="2"))
    assert len({*ids(first), *ids(moved)}) == len(ids(back)) == 2
    assert ids(back)[0] == ids(first)[0]
    (alone,) = Story().see(stick("ttyUSB3", serial, socket="2"))
    assert alone.id == ids(back)[1] != ids(first)[0]


def test_a_device_with_a_shared_serial_keeps_the_id_of_a_former_daemon() -> None:
    """One that took the serial for its own made the ID without the socket; in its socket the device keeps it, elsewhere it is another."""
    here, away = stick(serial="0001", socket="1"), stick("ttyUSB1", serial="0001", socket="2")
    (slot,) = Story().see(here)
    former = replace(stored(slot.identity.id(ZIGBEE, in_socket=False), here), in_socket=False)
    assert ids(Story(former).see(here)) == [former.id]
    assert former.id not in ids(Story(former).see(away))


def test_a_device_that_udev_renames_in_place_keeps_its_id() -> None:
    """It is the same registration with the kernel, whatever the record says now."""
    story = Story()
    assert ids(story.see(stick())) == ids(story.see(stick(serial="other")))


def test_a_device_of_several_devnodes_that_udev_renames_in_place_keeps_its_id() -> None:
    """Of each devnode its own record tells whether udev has handled it again."""

    def composite(serial: str) -> list[Device]:
        return [
            stick(f"ttyUSB{face}", serial, interface=f"0{face}", physical="/devices/usb/1", properties=properties)
            for face, properties in enumerate(({"USEC_INITIALIZED": "1000"}, {"USEC_INITIALIZED": "2000"}))
        ]

    story = Story()
    assert ids(story.see(*composite("A"), counted=1)) == ids(story.see(*composite("B"), counted=1))


def test_a_device_of_which_another_part_is_left_keeps_its_id() -> None:
    """The socket is that of the whole device, not that of the part."""
    one, two = (
        device(
            f"ttyUSB{face}", serial=None, port=f"pci-0-usb-0:1:1.{face}", interface=f"0{face}", physical="/devices/1"
        )
        for face in (0, 1)
    )
    story = Story()
    first = story.see(one, two, counted=1)
    story.see(counted=1)
    assert ids(story.see(replace(two, incarnation=2))) == ids(first)
    assert first[0].identity.socket == "pci-0-usb-0:1"


def test_a_device_keeps_its_id_over_a_restart() -> None:
    """The annotation has what that takes: of twins, of a device without a serial, of one with a long one, and of each devnode."""
    twins = stick(), stick("ttyUSB1", socket="2")
    for devices in (twins, [stick(serial=None)], [stick(serial="s" * 200)]):
        slots = Story().see(*devices)
        story = restarted(*slots)
        away = story.see(counted=len(devices))
        assert {slot.id: slot.in_socket for slot in away} == {
            slot.id: slot.in_socket or len(slot.identity.serial or "") > 128 for slot in slots
        }
        assert ids(story.see(*devices)) == ids(slots)
    parts = [stick(f"ttyUSB{face}", interface=f"0{face}", physical="/devices/usb/1") for face in (0, 1)]
    slots = Story(unit=Count.DEVNODE).see(*parts)
    assert ids(restarted(*slots, unit=Count.DEVNODE).see(parts[1])) == [slots[1].id]


def test_the_twin_in_a_socket_of_its_own_does_not_move_after_a_restart() -> None:
    """Its ID still belongs to the socket: in another one a stick with its serial is another."""
    story = Story()
    _, newer = story.see(stick(), stick("ttyUSB1", socket="2"))
    moved, absent = restarted(newer).see(stick("ttyUSB5", socket="7"), counted=2)
    assert (absent.id, absent.devices) == (newer.id, ())
    assert moved.id != newer.id


def test_what_others_have_written_into_the_annotation_is_no_device_in_a_socket() -> None:
    """An entry without an ID tells of none, and one without a socket is not taken for the stick in some socket."""
    listed = Entry.of(stick(serial=None))
    assert ids(Story(*recall(ZIGBEE, [listed])).see(counted=1)) == []
    (found, absent) = Story(*recall(ZIGBEE, [replace(listed, id="x")])).see(stick(serial=None), counted=2)
    assert (found.state, absent.id, absent.state) == (PRESENT, "x", LINGERING)


def test_a_stick_whose_record_is_away_is_the_one_in_its_socket() -> None:
    """Without the record the devpath tells the socket."""
    read = stick(serial=None, physical="/devices/usb/1-1")
    story = Story()
    first = story.see(read)
    story.see(counted=1)
    unread = device("ttyUSB7", serial=None, physical="/devices/usb/1-1", properties=None)
    (slot,) = story.see(unread)
    assert (slot.id, slot.devices) == (first[0].id, (unread,))
    (slot,) = restarted(*Story().see(unread)).see(read)
    assert (slot.id, slot.devices) == (*ids(Story().see(unread)), (read,))


def test_the_only_stick_that_is_away_is_back_without_its_record_too() -> None:
    """In another socket: no twin of it is away with which it could be mistaken."""
    story = Story()
    first = story.see(stick())
    story.see(counted=1)
    assert ids(story.see(stick("ttyUSB1", socket="2", properties=None))) == ids(first)


def test_another_stick_with_the_registration_of_an_absent_one_is_another() -> None:
    """As virtual consoles have it: two that come back with their names exchanged keep their IDs, and a newcomer gets its own."""
    story, one, two = Story(), stick(serial="A"), stick("ttyUSB1", serial="B", socket="2")
    first, second = ids(story.see(one, two))
    story.see(counted=2)
    assert ids(story.see(stick(serial="B"), counted=2)) == [second, first]
    both = story.see(stick(serial="B"), stick("ttyUSB1", serial="A", socket="2"))
    assert ids(both) == [second, first]
    story.see(counted=2)
    newcomer, *absent = story.see(stick(serial="C"), counted=3)
    assert newcomer.id not in {first, second} == set(ids(tuple(absent)))


def test_another_stick_between_two_scans_is_another() -> None:
    """Its record tells that udev has handled the registration again."""
    story = Story()
    (first,) = ids(story.see(stick(serial="A", properties={"USEC_INITIALIZED": "1000"})))
    (second,) = ids(story.see(stick(serial="B", properties={"USEC_INITIALIZED": "2000"})))
    assert first != second


def test_without_a_serial_the_socket_is_the_identity() -> None:
    """A stick in another socket is another; what is plugged into the same one is the same."""
    story = Story()
    (first,) = story.see(stick(serial=None))
    story.see(counted=1)
    moved, absent = story.see(stick("ttyUSB1", serial=None, socket="2"), counted=2)
    assert (absent.id, absent.state) == (first.id, LINGERING)
    assert moved.id != first.id
    again = story.see(stick("ttyUSB1", serial=None, socket="2"), stick("ttyUSB2", serial=None))
    assert ids(again) == [moved.id, first.id]


def test_without_udev_the_devpath_is_the_socket() -> None:
    """A host without ID_PATH still tells two sticks without a serial apart."""
    one, two = device("ttyUSB0", serial=None), device("ttyUSB1", serial=None)
    console = device("tty40", physical=None, serial=None)
    assert len(set(ids(Story().see(one, two, console)))) == 3


def test_a_stick_whose_record_comes_after_a_restart_keeps_its_id() -> None:
    """The former daemon knew the socket by the devpath alone; in another socket it is another stick."""
    unread = device("ttyUSB0", serial=None, physical="/devices/usb/1-1")
    read = replace(unread, port="pci-0000:00:14.0-usb-0:1:1.0")
    former = stored("old", unread, in_socket=True)
    assert ids(Story(former).see(read)) == ["old"]
    assert "old" not in ids(Story(former).see(replace(read, physical="/devices/usb/1-2")))


def test_a_twin_that_arrives_first_does_not_take_the_id_of_one_that_is_waited_for() -> None:
    """After a restart udev's record of the older one is not complete yet: which of them has the stored ID is known when it is."""
    older, newer = stick(socket="1"), stick("ttyUSB1", socket="2")
    story = Story(stored("old", older))
    assert [slot.devices for slot in story.see(newer, free=frozenset(), pending=(older,))] == [()]
    both = story.see(older, newer)
    assert both[0].id == "old"
    assert both[1].devices == (newer,)


def test_without_a_record_it_is_unknown_which_of_two_stored_twins_is_there() -> None:
    """Until then it has no slot: under the ID of the other one it would be given to a second pod."""
    twins = (stored("one", stick(socket="1")), stored("two", stick("ttyUSB1", socket="2"), in_socket=True))
    unread = stick("ttyUSB2", socket="2", properties=None)
    slots = Story(*twins).see(replace(unread, port=None), counted=2, free=frozenset())
    assert {slot.id: slot.devices for slot in slots} == {"one": (), "two": ()}
    assert ids(Story(*twins).see(replace(unread, properties={}), counted=2, free=frozenset()))[0] == "two"


def test_the_newcomer_of_twins_gets_the_id_of_the_socket() -> None:
    """The older one keeps the ID that it had."""
    story = Story()
    (first,) = story.see(stick())
    both = story.see(stick(), stick("ttyUSB1", socket="2"))
    assert both[0].id == first.id != both[1].id
    assert [slot.in_socket for slot in both] == [False, True]
    away = story.see(stick("ttyUSB1", socket="2"), counted=2)
    assert ids(away) == [both[1].id, first.id]
    elsewhere = story.see(stick("ttyUSB1", socket="2"), stick("ttyUSB2", socket="3"), counted=3)
    assert ids(elsewhere)[0] == both[1].id
    assert ids(elsewhere)[1] not in ids(both), "which of the twins it is cannot be known"
    assert ids(elsewhere)[2] == first.id
    home = story.see(stick("ttyUSB1", socket="2"), stick("ttyUSB3", socket="1"), counted=2)
    assert ids(home) == [both[1].id, first.id]


def test_a_twin_is_never_given_the_id_that_belongs_to_a_socket() -> None:
    """The stick of that socket may come back."""
    story = Story()
    older, newer = story.see(stick(), stick("ttyUSB1", socket="2"))
    story.see(counted=2)
    moved, *absent = story.see(stick("ttyUSB5", socket="7"), counted=2)
    assert moved.id == older.id
    assert ids(tuple(absent)) == [newer.id]


def test_a_stick_that_uncertain_scans_find_cannot_be_the_one_whose_id_belongs_to_another_socket() -> None:
    """So it need not wait for a certain scan."""
    story = Story()
    older, newer = story.see(stick(), stick("ttyUSB1", socket="2"))
    assert (older.is_twin, newer.is_twin) == (False, True)
    story.see(stick("ttyUSB1", socket="2"), free=frozenset({older.id}))
    moved, absent = story.see(stick("ttyUSB5", socket="7"), counted=2, certain=False)
    assert (moved.state, absent.id) == (PRESENT, newer.id)
    assert not Story().see(stick(serial=None))[0].is_twin, "it need not wait until its ID is stored"


def test_two_that_fit_one_stored_id_both_get_new_ones_unless_one_is_in_its_socket() -> None:
    """After a restart nothing tells which of them the former daemon listed."""
    sticks = (stick("ttyUSB1", socket="2"), stick("ttyUSB2", socket="3"))
    unclear = Story(stored("old", stick())).see(*sticks, free=frozenset())
    assert states(unclear) == [PRESENT, PRESENT, HELD]
    assert unclear[2].id == "old"
    assert all(slot.in_socket for slot in unclear[:2])
    clear = Story(stored("old", stick())).see(*sticks, stick("ttyUSB3"))
    assert ids(clear)[2] == "old"
    assert states(clear) == [PRESENT] * 3


def test_each_devnode_is_a_device_of_its_own_where_devnodes_are_counted() -> None:
    """The place in the device tells them apart, whatever their names are."""
    one, two = (stick(f"ttyUSB{number}", interface=f"0{number}", physical="/devices/usb/1") for number in (0, 1))
    story = Story(unit=Count.DEVNODE)
    first = story.see(one, two)
    assert [slot.devices for slot in first] == [(one,), (two,)]
    assert len(set(ids(first))) == 2
    story.see(counted=2)
    swapped = (
        stick("ttyUSB0", interface="01", physical="/devices/usb/1", incarnation=2),
        stick("ttyUSB1", interface="00", physical="/devices/usb/1", incarnation=2),
    )
    assert ids(story.see(*swapped)) == ids(first)[::-1]
    story.see(counted=2)
    assert ids(story.see(replace(two, incarnation=3))) == ids(first)[1:]


def test_the_devnodes_of_a_device_come_in_the_order_of_interface_and_name() -> None:
    """A container finds the same one at the same path."""
    nodes = [
        stick(name, interface=number, physical="/devices/usb/1")
        for name, number in (("ttyUSB10", "00"), ("ttyUSB9", "00"), ("ttyUSB0", "01"))
    ]
    (slot,) = Story().see(*nodes, counted=1)
    assert [each.devnode for each in slot.devices] == ["/dev/ttyUSB9", "/dev/ttyUSB10", "/dev/ttyUSB0"]


def test_the_devnodes_of_a_camera_come_in_the_order_of_its_driver() -> None:
    """Which is by interface first; names may be given in any order."""
    nodes = (("video0", "01", 0), ("video1", "00", 1), ("video2", "00", 0))
    camera = [
        device(name, subsystem="video4linux", interface=face, index=index, physical="/devices/usb1/1-1")
        for name, face, index in nodes
    ]
    (slot,) = Story().see(*camera)
    assert [each.devnode for each in slot.devices] == ["/dev/video2", "/dev/video1", "/dev/video0"]


def test_whole_devices_behind_one_hub_are_in_sockets_of_their_own() -> None:
    """A socket behind a hub is written as an interface is."""
    story = Story()
    first, second = (
        device(f"bus/usb/001/00{number}", subsystem="usb", serial=None, port=f"pci-0000:00:14.0-usb-0:1.{number}")
        for number in (4, 5)
    )
    assert len(set(ids(story.see(first, second)))) == 2
    assert {slot.identity.socket for slot in story.see(first, second)} == {first.port, second.port}


def test_a_device_with_two_states_has_one_id_in_its_socket() -> None:
    """The first state is its identity; another device in the socket is another."""

    def coral(name: str, vendor: str, product: str) -> Device:
        return device(name, subsystem="usb", serial=None, port="usb-0:1", vendor=vendor, product=product)

    story = Story()
    first = story.see(coral("bus/usb/001/004", "1a6e", "089a"))
    story.see(counted=1)
    second = story.see(coral("bus/usb/001/005", "18d1", "9302"))
    assert ids(first) == ids(second)
    assert re.match("1a6e-089a-[0-9a-f]{10}$", first[0].id)
    story.see(counted=1)
    assert ids(story.see(coral("bus/usb/001/006", "18d1", "4ee1"))) != ids(first)


def test_no_two_devices_have_one_id() -> None:
    """Even where the rules of udev give two of them one socket."""
    story = Story()
    both = story.see(stick("ttyUSB0", serial=None), stick("ttyUSB1", serial=None))
    assert len(set(ids(both))) == 2
    left = story.see(stick("ttyUSB1", serial=None), counted=2)
    assert (ids(left), states(left)) == (ids(both)[::-1], [PRESENT, LINGERING])
    story.see(counted=2)
    assert set(ids(story.see(stick("ttyUSB2", serial=None), stick("ttyUSB3", serial=None)))) == set(ids(both))


# -- the states


def test_a_lost_device_stays_while_it_is_held() -> None:
    """And is forgotten when certainly no pod has it any more."""
    story = Story()
    (slot,) = story.see(stick())
    assert states(story.see(free=frozenset())) == [HELD], "unknown is not false"
    assert states(story.see(free=frozenset({"another"}))) == [HELD]
    assert story.see(free=frozenset({slot.id})) == ()


def test_the_device_that_left_last_lingers_first() -> None:
    """Where the figure includes one that is absent, it is the last one that left."""
    story = Story()
    one, two = story.see(stick(), stick("ttyUSB1", serial="S2"))
    story.see(stick("ttyUSB1", serial="S2"), counted=2)
    gone = story.see(counted=1, free=frozenset({two.id}))
    assert [(slot.id, slot.state) for slot in gone] == [(two.id, LINGERING), (one.id, HELD)]


def test_an_uncertain_scan_forgets_no_device() -> None:
    """Another stick in the place of one is a device of its own, and the missing one may be present."""
    story = Story()
    (one,) = story.see(stick())
    other, missing = story.see(stick("ttyUSB1", serial="S2", socket="2"), certain=False)
    assert (missing.id, missing.state) == (one.id, HELD)
    moved = stick("ttyUSB2", socket="5")
    away = {slot.id: slot.state for slot in story.see(moved, certain=False)}
    assert away == {one.id: HELD, other.id: LINGERING}, "the missing one may be in its socket"
    assert ids(story.see(moved, free=frozenset({other.id}))) == [one.id], "it is not, so it has moved"


@pytest.mark.parametrize("counted", [0, 1, 5])
def test_a_figure_never_invents_a_device(counted: int) -> None:
    """Only known devices have slots; the Node may show more at a start."""
    assert Story().see(counted=counted) == ()


def test_a_slot_is_among_devices_by_its_registration_or_by_what_is_listed_of_it() -> None:
    """Neither the same devnode with another serial nor a twin elsewhere is it."""
    here, other = stick(), stick("ttyUSB1", serial="S2", socket="2")
    (slot,) = Story().see(here)
    assert slot.is_among([other, here])
    assert not slot.is_among([other])
    listed = replace(slot, devices=(), entries=(Entry.of(here),))
    assert listed.is_among([other, replace(here, incarnation=2)])
    assert not listed.is_among([stick(serial="S2")])
    assert not listed.is_among([stick("ttyUSB1", socket="2")])


@pytest.mark.parametrize("listed", [False, True])
def test_a_slot_is_the_other_kind_of_the_stick_that_it_belongs_to(listed: bool) -> None:  # noqa: FBT001  pytest passes by name
    """A record without a serial may be of either; another model or serial in its socket, and another part of the stick, are not."""
    part = stick()
    whole = device("bus", serial=None, port="pci-0000:00:14.0-usb-0:1", subsystem="usb")
    for one, other in ((part, whole), (whole, part)):
        (slot,) = Story(unit=Count.DEVNODE).see(one)
        slot = replace(slot, devices=(), entries=(Entry.of(one),)) if listed else slot
        assert slot.is_other_kind_of([other])
        assert not slot.is_other_kind_of([one])
        assert not slot.is_other_kind_of([replace(other, product="ffff")])
        assert not slot.is_other_kind_of([replace(other, port="pci-0000:00:14.0-usb-0:2")])
        both = replace(slot, identity=replace(slot.identity, serial="S1"))
        assert not both.is_other_kind_of([replace(other, serial="S2")])


def test_a_recalled_stick_is_found_by_the_links_of_its_devnodes_in_its_socket_alone() -> None:
    """In the order in which a container has them, under whatever names; in another socket, or where one is missing, it is not."""
    parts = tuple(
        stick(f"ttyUSB{1 - number}", interface=f"0{number}", physical="/devices/usb/1", links=(f"/dev/if0{number}",))
        for number in (0, 1)
    )
    (slot,) = Story().see(*parts)
    entries = [mark(Entry.of(part), slot, Publish.DEVICE_PLUGIN) for part in parts]
    (recalled,) = recall(ZIGBEE, reversed(entries))
    assert recalled.found([device("ttyS0"), *parts]) == replace(recalled, devices=parts, state=PRESENT)
    renamed = tuple(replace(part, devnode=f"/dev/ttyUSB{number}") for number, part in enumerate(parts))
    assert recalled.found(renamed).devices == renamed
    (one,) = recall(ZIGBEE, entries[1:])
    assert one.found(renamed).devices == renamed[1:]
    elsewhere = tuple(replace(part, port=part.port and part.port.replace("0:1:", "0:2:")) for part in parts)
    unlinked = (replace(parts[0], links=()), parts[1])
    for others in ((), parts[:1], elsewhere, unlinked, tuple(replace(part, serial="S2") for part in parts)):
        assert recalled.found(others) == recalled


def test_without_a_link_a_recalled_stick_is_found_by_its_devnode_where_it_has_no_other() -> None:
    """The parts of a stick exchange their devnodes; those of another subsystem are none of its devnodes."""
    whole = stick()
    (slot,) = Story().see(whole)
    (recalled,) = recall(ZIGBEE, [mark(Entry.of(whole), slot, Publish.DEVICE_PLUGIN)])
    assert recalled.found([whole, stick("bus", subsystem="hidraw")]).devices == (whole,)
    assert recalled.found([whole, stick("ttyUSB1")]) == recalled
    assert recalled.found([stick("ttyUSB1")]) == recalled
