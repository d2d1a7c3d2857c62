"""Which slice a node publishes, and what is written next to bring the observed ones there."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.core.listing import Entry
from devwatch.core.slices import (
    MAX_ATTRIBUTE,
    Offer,
    Operation,
    Slice,
    SliceDevice,
    Taint,
    Write,
    devices_of,
    is_allocatable,
    removal,
    select_slots,
    slice_name,
)
from devwatch.core.slots import Identity, Slot, SlotState
from support.build import ZIGBEE, device

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "n1-devwatch.io"
OURS = Taint(time="2026-01-01T00:00:00Z")


def slot(name: str = "a", state: SlotState = SlotState.PRESENT, **fields: Any) -> Slot:  # noqa: ANN401  any field of a device
    """Return a slot of one devnode."""
    stick = device(serial="S1", **fields)
    identity = Identity(vendor=stick.vendor, product=stick.product, serial=stick.serial, socket="1")
    return Slot(id=name, identity=identity, devices=(stick,), state=state)


def published(name: str, *taints: Taint, **attributes: str) -> SliceDevice:
    """Return a device of a slice."""
    return SliceDevice(name=name, attributes=attributes, taints=taints)


def offer(*names: str, uid: str = "u1") -> Offer:
    """Return what the node shall publish."""
    return Offer(node="n1", node_uid=uid, devices=tuple(map(published, names)))


def stored(write: Write | None, *, name: str = NAME, version: str = "7") -> Slice:
    """Return a slice as the server has it after this write."""
    assert write is not None
    return replace(write.slice, name=name, version=version, uid=f"uid of {name}")


def by_name(*slices: Slice) -> dict[str, Slice]:
    """Return observed slices."""
    return {each.name: each for each in slices}


def own(*names: str) -> Slice:
    """Return the slice that is stored for these devices."""
    return stored(offer(*names).next_write({}))


# -- the next write


def test_the_slice_belongs_to_the_node_and_goes_with_it() -> None:
    """The owner is the Node, by its uid; nothing asks for rights that a plain reference does not need."""
    write = offer("a").next_write({})
    assert write is not None
    assert write.operation is Operation.CREATE
    body: Any = write.slice.body()
    assert body["metadata"] == {
        "name": NAME,
        "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1"}],
    }
    assert body["spec"] == {
        "driver": "devwatch.io",
        "nodeName": "n1",
        "pool": {"name": NAME, "generation": 1, "resourceSliceCount": 1},
        "devices": [{"name": "a", "attributes": {}}],
    }


def test_a_slice_that_is_right_is_not_written() -> None:
    """Whatever its version is."""
    assert offer("a", "b").next_write(by_name(own("a", "b"))) is None


@pytest.mark.parametrize(("before", "after"), [(["a"], ["a", "b"]), (["a", "b"], ["b"]), (["a"], []), ([], ["a"])])
def test_another_list_of_names_is_another_generation(before: list[str], after: list[str]) -> None:
    """The scheduler takes the devices of one generation alone."""
    write = offer(*after).next_write(by_name(replace(own(*before), generation=4)))
    assert write is not None
    assert (write.operation, write.slice.generation) == (Operation.UPDATE, 5)


def test_a_change_of_a_device_keeps_the_generation_and_names_what_was_observed() -> None:
    """The version makes the server refuse it where the slice was changed meanwhile."""
    changed = replace(own("a"), devices=(published("a", model="other"),), generation=3)
    write = offer("a").next_write(by_name(changed))
    assert write is not None
    assert (write.operation, write.slice.generation) == (Operation.UPDATE, 3)
    body: Any = write.slice.body()
    assert (body["metadata"]["resourceVersion"], body["metadata"]["uid"]) == ("7", f"uid of {NAME}")


@pytest.mark.parametrize(
    "fields",
    [
        {"owners": ()},
        {"owners": ({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1", "controller": True},)},
        {"slices": 2},
        {"devices": (published("a", Taint(key="example.com/x")),)},
        {"devices": (published("a", Taint(effect="NoExecute")),)},
        {"devices": (published("a", OURS),)},
    ],
    ids=lambda fields: str(fields)[:60],
)
def test_whatever_another_client_changes_is_written_again(fields: dict[str, Any]) -> None:
    """Owners, the size of the pool, attributes and taints."""
    write = offer("a").next_write(by_name(replace(own("a"), **fields)))
    assert write is not None
    assert write.operation is Operation.UPDATE
    assert offer("a").next_write(by_name(stored(write))) is None


def test_a_node_made_anew_owns_the_slice() -> None:
    """Its uid is another."""
    write = offer("a", uid="u2").next_write(by_name(own("a")))
    assert write is not None
    assert [owner["uid"] for owner in write.slice.owners] == ["u2"]


def test_any_other_slice_is_deleted_once_the_own_one_hides_it() -> None:
    """A leftover with a higher generation would hide the devices, one with the same would make the pool invalid."""
    stray = replace(own("z"), name="stray", generation=9, uid="uid of stray")
    first = offer("a").next_write(by_name(own("a"), stray))
    assert first is not None
    assert (first.operation, first.slice.name, first.slice.generation) == (Operation.UPDATE, NAME, 10)
    equal = offer("a").next_write(by_name(replace(own("a"), generation=9), stray))
    assert equal is not None
    assert equal.slice.generation == 10
    second = offer("a").next_write(by_name(stored(first), stray))
    assert second == Write(operation=Operation.DELETE, slice=stray)
    created = offer("a").next_write(by_name(stray))
    assert created is not None
    assert (created.operation, created.slice.generation) == (Operation.CREATE, 10)


def test_a_stray_slice_of_another_pool_changes_no_generation() -> None:
    """The scheduler compares within a pool."""
    stray = replace(own("z"), name="stray", pool="other", generation=9)
    assert offer("a").next_write(by_name(own("a"), stray)) == Write(operation=Operation.DELETE, slice=stray)


def test_a_slice_in_another_pool_is_made_again() -> None:
    """The API does not let the pool of a slice be changed."""
    wrong = replace(own("a"), pool="other")
    assert offer("a").next_write(by_name(wrong)) == Write(operation=Operation.DELETE, slice=wrong)


def test_without_a_resource_every_slice_goes() -> None:
    """One after the other."""
    assert removal(by_name(own("a"))) == Write(operation=Operation.DELETE, slice=own("a"))
    assert removal({}) is None


# -- the name


@given(st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", fullmatch=True))
def test_a_name_is_always_one_that_the_api_takes(node: str) -> None:
    """A DNS subdomain, at most 253 characters, for node names of any length."""
    name = slice_name(node)
    assert len(name) <= 253
    assert name.endswith("-devwatch.io")
    assert re.fullmatch(r"[a-z0-9].*", name)


def test_long_names_of_two_nodes_stay_apart() -> None:
    """A part of the hash of the whole name is in each."""
    assert slice_name("n" * 241) == f"{'n' * 241}-devwatch.io"
    assert slice_name("n" * 250 + "1") != slice_name("n" * 250 + "2")


def test_an_upgrade_changes_no_name() -> None:
    """A slice of another name would be written beside the former one, and the pool would be another."""
    assert slice_name("n" * 300) == f"{'n' * 230}-230b077491-devwatch.io"


# -- the devices


def chosen(slots: Sequence[Slot], *listed: str, taints: bool | None = None, held: tuple[str, ...] = ()) -> list[str]:
    """Return the IDs that are published, in order of importance."""
    return [each.id for _, each in select_slots({ZIGBEE: slots}, frozenset(listed), held=held, taints=taints)]


def test_what_a_pod_has_comes_first_then_what_is_listed() -> None:
    """Where a slice cannot have all, those that nothing depends on are left out."""
    slots = [slot("a"), slot("b"), slot("c"), slot("d", SlotState.HELD)]
    assert chosen(slots, "b", taints=True, held=("c",)) == ["c", "d", "b", "a"]


@pytest.mark.parametrize(
    ("taints", "listed", "there"),
    [(True, [], True), (True, ["a"], True), (None, ["a"], True), (None, [], False), (False, ["a"], False)],
)
def test_a_lost_device_is_published_only_where_its_taint_is_stored(
    *, taints: bool | None, listed: list[str], there: bool
) -> None:
    """Without the taint the scheduler could allocate it: it leaves, and where that is unknown it is not added."""
    assert chosen([slot("a", SlotState.HELD)], *listed, taints=taints) == (["a"] if there else [])
    assert chosen([slot("a", SlotState.LINGERING)], taints=taints) == ["a"]


def test_a_lost_device_is_tainted_and_keeps_the_time_of_its_taint() -> None:
    """A write without it would set it again, each time."""
    lost = [(ZIGBEE, slot("a", SlotState.HELD))]
    (new,) = devices_of(lost, None)
    (known,) = devices_of(lost, replace(own(), devices=(published("a", Taint(key="x", time="t"), OURS),)))
    assert (new.taints, known.taints) == ((Taint(),), (OURS,))
    assert new.body()["taints"] == [{"key": "devwatch.io/unplugged", "effect": "NoSchedule"}]
    assert known.body()["taints"] == [{"key": OURS.key, "effect": "NoSchedule", "timeAdded": OURS.time}]


@pytest.mark.parametrize("state", [SlotState.PRESENT, SlotState.LINGERING])
def test_a_device_that_is_there_or_away_for_a_moment_has_no_taint(state: SlotState) -> None:
    """Also where it had one: it is back."""
    before = replace(own(), devices=(published("a", OURS),))
    (back,) = devices_of([(ZIGBEE, slot("a", state))], before)
    assert back.taints == ()
    assert back.can_be_allocated


def test_every_attribute_is_there() -> None:
    """An absent one is empty: a selector that names a missing attribute is an error for the whole node."""
    stick = slot(interface="01", port="usb-0:1:1.1", properties={"ID_MODEL": "HUSBZB-1"})
    (full,) = devices_of([(ZIGBEE, stick)], None)
    (bare,) = devices_of([(ZIGBEE, slot(vendor=None, product=None, properties=None))], None)
    assert full.attributes == {
        "vendor": "10c4",
        "product": "8a2a",
        "serial": "S1",
        "interface": "01",
        "port": "usb-0:1:1.1",
        "model": "HUSBZB-1",
        "subsystem": "tty",
        "resource": ZIGBEE,
    }
    assert bare.attributes == {
        **dict.fromkeys(full.attributes, ""),
        "serial": "S1",
        "subsystem": "tty",
        "resource": ZIGBEE,
    }


def test_a_device_that_only_the_annotation_tells_of_keeps_what_the_slice_says() -> None:
    """A restarted daemon does not know the model of a stick that is gone."""
    lost = replace(slot("a", SlotState.HELD), devices=())
    before = replace(own(), devices=(published("a", OURS, model="HUSBZB-1", port="usb-0:1:1.0"),))
    (known,) = devices_of([(ZIGBEE, lost)], before)
    (unknown,) = devices_of([(ZIGBEE, lost)], None)
    assert (known.attributes["model"], known.attributes["port"], known.attributes["vendor"]) == (
        *("HUSBZB-1", "usb-0:1:1.0", "10c4"),
    )
    assert (unknown.attributes["model"], unknown.attributes["port"]) == ("", "1")
    (found,) = devices_of([(ZIGBEE, slot("a", properties={"ID_MODEL": "another"}))], before)
    assert found.attributes["model"] == "another", "what a scan finds is newer"


def test_a_device_is_of_the_subsystem_of_its_devnode_or_of_its_entry() -> None:
    """A restarted daemon has the entry alone."""
    camera = replace(slot(), devices=(device(subsystem="video4linux"),))
    entry = Entry(devnode="/dev/hidraw0", subsystem="hidraw")
    for known, subsystem in (
        (camera, "video4linux"),
        (replace(camera, devices=(), entries=(entry,)), "hidraw"),
        (replace(camera, devices=(), entries=(replace(entry, subsystem=None),)), "tty"),
    ):
        (found,) = devices_of([(ZIGBEE, known)], None)
        assert found.attributes["subsystem"] == subsystem


@given(st.text(st.characters(codec=None), max_size=100))
def test_an_attribute_is_text_that_the_api_takes_whatever_the_device_says(text: str) -> None:
    """At most 64 bytes of valid UTF-8 without a control character, and never cut within a character."""
    (found,) = devices_of([(ZIGBEE, slot(properties={"ID_MODEL": text}))], None)
    model = found.attributes["model"]
    assert model is not None
    assert len(model.encode()) <= MAX_ATTRIBUTE
    assert model.isprintable()
    if text.isprintable() and len(text.encode()) <= MAX_ATTRIBUTE:
        assert model == text


def test_the_devices_are_in_one_order() -> None:
    """Another order would be another content."""
    pairs = [(ZIGBEE, slot("b")), (ZIGBEE, slot("a"))]
    assert [each.name for each in devices_of(pairs, None)] == ["a", "b"]


# -- what can be allocated


def test_a_device_can_be_allocated_while_any_slice_has_it_without_the_taint() -> None:
    """A taint of another key may be tolerated by what does not tolerate ours."""
    tainted = replace(own(), devices=(published("a", OURS), published("b", Taint(key="x")), published("c")))
    assert [is_allocatable(name, [tainted]) for name in "abcd"] == [False, True, True, False]
    assert is_allocatable("a", [tainted, own("a")])
    assert tainted.lost == ("a",)


@pytest.mark.parametrize(
    ("mine", "other", "older"),
    [("7", "8", True), ("9", "10", True), ("8", "8", False), ("x", "8", False), ("7", "x", False)],
)
def test_states_are_ordered_by_their_version(mine: str, other: str, *, older: bool) -> None:
    """As numbers; what is no number is never older."""
    assert replace(own(), version=mine).is_older_than(replace(own(), version=other)) == older


def test_a_resource_is_offered_while_a_device_of_it_has_no_taint() -> None:
    """Until none is, a pod may get one in this way of publishing."""

    def offering(*devices: SliceDevice) -> Slice:
        return replace(own(), devices=devices)

    assert offering(published("a", resource=ZIGBEE)).offers(ZIGBEE)
    assert not offering(published("a", resource="other.io/x")).offers(ZIGBEE)
    assert not offering(published("a", Taint(), resource=ZIGBEE)).offers(ZIGBEE)
