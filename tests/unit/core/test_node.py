"""The Node as values: quantities, the ownership annotation, and what is written."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.core.listing import MAX_BYTES, Entry, Listing, listed_path, parse_listing, render_listing
from devwatch.core.names import resource_name_fault
from devwatch.core.node import ANNOTATION, ANNOTATION_PART, Amounts, NodePatch, NodeState, Writer, quantity
from support.build import ZIGBEE, ZWAVE, Parts, device, patch_of

names = st.builds("{}.example/{}".format, st.sampled_from(("a", "b.c", "x-1")), st.sampled_from(("d", "e_f", "G.h")))
texts = st.none() | st.text(max_size=128)
entries = st.builds(Entry, devnode=st.text(max_size=128), vendor=texts, product=texts, serial=texts, link=texts)
crowds = st.builds(lambda entry, number: (entry,) * number, entries, st.integers(min_value=0, max_value=60))
listings = st.dictionaries(names, st.lists(entries, max_size=3).map(tuple) | crowds, max_size=9)
counts = st.none() | st.integers(min_value=0, max_value=99).map(str)
changes = st.dictionaries(st.sampled_from((ZIGBEE, ZWAVE, "a.b/c")), counts) | st.dictionaries(
    st.sampled_from((ZIGBEE, ANNOTATION_PART)), counts
)
quantities = st.dictionaries(st.sampled_from((ZIGBEE, ZWAVE, "cpu")), st.sampled_from(("0", "1", "4", "1k")))
states = st.builds(NodeState, capacity=quantities, allocatable=quantities, annotation=st.none() | st.text())


def natural_order(number: int) -> Entry:
    """Return an entry whose place in the listing is its number."""
    return Entry(devnode=f"/dev/ttyUSB{number}")


# -- quantities


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("3", 3),
        ("1k", 1000),
        ("2M", 2 * 1000**2),
        ("1G", 1000**3),
        ("1T", 1000**4),
        ("1P", 1000**5),
        ("9E", 9 * 1000**6),
        ("1Ki", 1024),
        ("3Mi", 3 * 1024**2),
        ("1Gi", 1024**3),
        ("1Ti", 1024**4),
        ("1Pi", 1024**5),
        ("7Ei", 7 * 1024**6),
        ("2e3", 2000),
        ("12e18", 12 * 10**18),
        ("1E3", 1000),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_a_count_is_read_in_every_form_that_the_server_answers_in(text: str, number: int) -> None:
    """1000 sticks come back as 1k; taken for another number they would be written again for ever."""
    assert quantity(text) == number


@pytest.mark.parametrize(
    "text", [None, "", "-1", "1.5", "100m", "1K", "k", " 1", "1 ", "1\n", "٣", "0x1", "1e", "e3", "nan", "9" * 99]
)
def test_what_is_no_whole_quantity_is_no_number(text: str | None) -> None:
    """It is repaired, and nothing dies of it."""
    assert quantity(text) is None


@given(st.text(max_size=30))
def test_no_text_of_a_stranger_breaks_the_reading_of_a_quantity(text: str) -> None:
    """Others write to the Node too; what they write is a whole number or none."""
    number = quantity(text)
    assert number is None or number >= 0


# -- the Node as observed


def test_a_count_is_the_capacity_and_nothing_is_zero() -> None:
    """A resource that is missing or holds garbage advertises nothing."""
    state = NodeState(capacity={ZIGBEE: "1k", "a.b/c": "many"}, allocatable={ZWAVE: "7"})
    assert [state.count(name) for name in (ZIGBEE, ZWAVE, "a.b/c")] == [1000, 0, 0]


def test_a_count_is_shown_only_by_both_maps() -> None:
    """The scheduler reads allocatable and the kubelet copies capacity: one map alone is an answer that does not last."""
    both = NodeState(capacity={ZIGBEE: "1k"}, allocatable={ZIGBEE: "1000"})
    assert both.shows(ZIGBEE, Amounts.of(1000))
    assert not both.shows(ZIGBEE, Amounts.of(1))
    assert not NodeState(capacity={ZIGBEE: "1"}).shows(ZIGBEE, Amounts.of(1))
    assert not NodeState(allocatable={ZIGBEE: "1"}).shows(ZIGBEE, Amounts.of(1))
    assert not NodeState().shows(ZIGBEE, Amounts.of(0))


def test_a_removed_resource_is_in_neither_map() -> None:
    """Zero is not removed: with the key there a pod is rejected, without it the pod starts without its device."""
    assert NodeState().shows(ZIGBEE, None)
    assert not NodeState(capacity={ZIGBEE: "0"}).shows(ZIGBEE, None)
    assert not NodeState(allocatable={ZIGBEE: "0"}).shows(ZIGBEE, None)


def test_only_what_is_not_older_replaces_what_is_held() -> None:
    """A watch event may be older than the last answer; another Node of the same name is always news."""
    held = NodeState(uid="a", version=5)
    assert held.supersedes(None)
    assert NodeState(uid="a", version=6).supersedes(held)
    assert held.supersedes(held)
    assert not NodeState(uid="a", version=4).supersedes(held)
    assert NodeState(uid="b", version=1).supersedes(held)


@given(states, changes)
def test_a_node_reflects_the_changes_that_were_applied_to_it(state: NodeState, wanted: Parts) -> None:
    """And where it does already, applying them changes nothing that is ours."""
    patch = patch_of(wanted)
    assert patch.applied(state).reflects(patch)
    assert patch.applied(patch.applied(state)) == patch.applied(state)


def test_two_patches_in_one_have_the_effect_of_both() -> None:
    """The later one decides, also where it removes; what only one of them writes stays."""
    first = patch_of({ZIGBEE: "1", ZWAVE: "1", ANNOTATION_PART: "{}"})
    assert first.then(patch_of({ZIGBEE: None})) == patch_of({ZIGBEE: None, ZWAVE: "1", ANNOTATION_PART: "{}"})
    assert first.then(patch_of({ANNOTATION_PART: None})).annotation is None


def test_a_node_that_lacks_a_part_does_not_reflect_the_changes() -> None:
    """An admission webhook can undo any part of an accepted patch."""
    wanted = patch_of({ZIGBEE: "1", ANNOTATION_PART: "{}"})
    whole = wanted.applied(NodeState())
    assert whole.reflects(wanted)
    assert not NodeState(capacity=whole.capacity, allocatable=whole.allocatable).reflects(wanted)
    assert not NodeState(annotation="{}").reflects(wanted)
    assert NodeState(annotation="of another").reflects(NodePatch())


def test_applying_changes_leaves_the_rest_alone() -> None:
    """A dry run answers with the Node as it would be, its other resources included."""
    state = NodeState(uid="u", version=3, capacity={"cpu": "4", ZWAVE: "1"}, allocatable={"cpu": "3"}, annotation="old")
    after = patch_of({ZIGBEE: "2", ZWAVE: None}).applied(state)
    assert after == NodeState(
        uid="u",
        version=3,
        capacity={"cpu": "4", ZIGBEE: "2"},
        allocatable={"cpu": "3", ZIGBEE: "2"},
        annotation="old",
        writers=dict.fromkeys((ZIGBEE, ZWAVE), (Writer(manager="devwatch", time=""),)),
    )
    assert patch_of({ANNOTATION_PART: None}).applied(after).annotation is None


# -- what is sent


def test_both_maps_and_the_annotation_go_in_one_patch() -> None:
    """One request, so that nobody sees capacity and allocatable differ, or a count without its owner."""
    assert patch_of({ZWAVE: "0", ZIGBEE: "2", ANNOTATION_PART: "text"}).body() == {
        "status": {"capacity": {ZIGBEE: "2", ZWAVE: "0"}, "allocatable": {ZIGBEE: "2", ZWAVE: "0"}},
        "metadata": {"annotations": {"devwatch.io/devices": "text"}},
    }


def test_null_removes_a_key_and_the_annotation() -> None:
    """The server drops what is null in a strategic-merge patch."""
    assert patch_of({ZIGBEE: None, ANNOTATION_PART: None}).body() == {
        "status": {"capacity": {ZIGBEE: None}, "allocatable": {ZIGBEE: None}},
        "metadata": {"annotations": {"devwatch.io/devices": None}},
    }


def test_a_patch_holds_only_what_changes() -> None:
    """An empty map would claim more than it says; an empty patch is a read."""
    assert patch_of({}).body() == {}
    assert patch_of({ZIGBEE: "1"}).body().keys() == {"status"}
    assert patch_of({ANNOTATION_PART: "{}"}).body().keys() == {"metadata"}


# -- the annotation


def test_the_annotation_has_the_public_form() -> None:
    """Scripts read it: names, order and absent values are as documented, and non-ASCII text is escaped."""
    stick = device(serial="Zigbée", links=("/dev/serial/by-id/usb-x", "/dev/zigbee"))
    assert ANNOTATION == "devwatch.io/devices"
    assert render_listing({ZWAVE: (), ZIGBEE: (Entry.of(stick),)}) == (
        '{"example.com/zigbee":[{"devnode":"/dev/ttyUSB0","vendor":"10c4","product":"8a2a",'
        '"serial":"Zigb\\u00e9e","link":"/dev/serial/by-id/usb-x"}],"example.com/zwave":[]}'
    )


def test_what_a_stick_does_not_say_is_null() -> None:
    """An absent serial is not an empty one."""
    assert Entry.of(device(vendor=None, product="", serial=None)) == Entry(devnode="/dev/ttyUSB0", product="")


@given(st.text(min_size=120, max_size=300))
def test_no_text_of_a_device_is_longer_than_128_characters(text: str) -> None:
    """A stick can have a serial of 10 kB; it shall not fill the Node."""
    entry = Entry.of(device(text, serial=text, vendor=text, product=text, links=(text,)))
    (listed,) = parse_listing(render_listing({ZIGBEE: (entry,)}) or "")[ZIGBEE]
    cut = text[:128]
    link = listed_path(text) if text else None
    assert listed == Entry(devnode=f"/dev/{text}"[:128], vendor=cut, product=cut, serial=cut, link=link)
    assert (entry.vendor, entry.product, entry.serial) == (listed.vendor, listed.product, listed.serial)


def test_the_devices_are_in_their_natural_order() -> None:
    """The same devices always make the same text: a text that differs is a write."""
    listed = {ZIGBEE: tuple(natural_order(number) for number in (10, 2, 1))}
    content = json.loads(render_listing(listed) or "")
    assert [entry["devnode"] for entry in content[ZIGBEE]] == ["/dev/ttyUSB1", "/dev/ttyUSB2", "/dev/ttyUSB10"]


@pytest.mark.parametrize("number", [0, 1, 15, 16, 17, 40])
def test_sixteen_devices_are_listed_and_the_others_counted(number: int) -> None:
    """A large adapter does not fill the Node, and nobody takes the list for complete."""
    content = json.loads(render_listing({ZIGBEE: tuple(natural_order(index) for index in range(number))}) or "")
    shown = [entry["devnode"] for entry in content[ZIGBEE][:16]]
    assert shown == [f"/dev/ttyUSB{index}" for index in range(min(number, 16))]
    assert content[ZIGBEE][16:] == ([{"omitted": number - 16}] if number > 16 else [])


@given(listings)
def test_the_annotation_is_ascii_of_at_most_16_kib_with_every_name_in_it(listing: Listing) -> None:
    """Whatever the devices call themselves: all annotations of a Node share 256 KiB, and a lost name is never cleaned up."""
    text = render_listing(listing)
    assert (text is None) == (not listing)
    assert (text or "").isascii()
    assert len(text or "") <= MAX_BYTES
    content = json.loads(text or "{}")
    assert content.keys() == listing.keys()
    for name, listed in content.items():
        omitted = sum(entry.get("omitted", 0) for entry in listed)
        shown = [entry for entry in listed if "omitted" not in entry]
        assert len(shown) + omitted == len(listing[name])
        assert len(shown) <= 16


@given(st.dictionaries(names, st.lists(entries, max_size=3, unique_by=lambda e: e.devnode).map(tuple), max_size=2))
def test_what_was_listed_is_read_back(listing: Listing) -> None:
    """After a restart the annotation is all that is known of the time before."""
    read = parse_listing(render_listing(listing) or "")
    assert read.keys() == listing.keys()
    for name, listed in listing.items():
        assert sorted(map(repr, read[name])) == sorted(map(repr, listed))


def test_as_many_devices_as_fit_are_listed() -> None:
    """Long texts cost places in the list, not the whole list, and no resource is left out for another."""
    long = tuple(Entry(devnode=f"/dev/ttyUSB{index}", serial="x" * 128) for index in range(16))
    content = json.loads(render_listing({f"a.b/c{index}": long for index in range(8)}) or "")
    assert {len(listed) for listed in content.values()} == {9}
    assert all(listed[-1] == {"omitted": 8} for listed in content.values())


def test_16_kib_are_allowed_and_not_a_byte_more() -> None:
    """The bound is that of the contract: at it everything is listed, beyond it the half of each."""
    full = tuple(natural_order(index) for index in range(16))
    rest = 16 * 1024 - len(render_listing({"": full}) or "")
    assert len(render_listing({"x" * rest: full}) or "") == 16 * 1024
    assert '{"omitted":8}' in (render_listing({"x" * (rest + 1): full}) or "")


def test_names_that_fill_the_annotation_leave_no_room_for_numbers() -> None:
    """As many resources as the configuration may have still fit: what is ours comes first."""
    listing = {f"example.com/{index:04}-{'x' * 20}": (natural_order(0),) for index in range(380)}
    assert len(json.dumps({name: [{"omitted": 1}] for name in listing}, separators=(",", ":"))) > MAX_BYTES
    assert json.loads(render_listing(listing) or "") == {name: [] for name in listing}


@pytest.mark.parametrize("numbers", ["x", {}, [1], [[1]], [[1, -1]], [[1, 2], [3, "4"]], [[1, 2, 3]]])
def test_numbers_that_are_no_numbers_are_none(numbers: object) -> None:
    """The device stays listed."""
    text = json.dumps({"a.io/b": [{"devnode": "/dev/ttyUSB0", "rdev": 7, "numbers": numbers}]})
    assert parse_listing(text) == {"a.io/b": (Entry(devnode="/dev/ttyUSB0", rdev=7),)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "1",
        "{",
        '"example.com/zigbee"',
        '{"example.com/zigbee": {}}',
        '{"example.com/zigbee": null}',
        '{"example.com/zigbee": ["/dev/ttyUSB0"]}',
        '{"example.com/zigbee": [], "example.com/zwave": 1}',
        "[" * 100_000,
        f'{{"example.com/zigbee": [], "n": {"9" * 10_000}}}',
        '{"example.com/zigbee": []}{}',
    ],
)
def test_malformed_content_owns_nothing(text: str) -> None:
    """What somebody else has put there is no title to anything on the Node."""
    assert parse_listing(text) == {}
    assert NodeState(annotation=text).listing() == {}


def test_no_annotation_owns_nothing() -> None:
    """A Node that devwatch never wrote to is not its to clean."""
    assert NodeState().listing() == {}


@pytest.mark.parametrize(
    "name", ["", "cpu", "memory", "kubernetes.io/x", "beta.kubernetes.io/zigbee", "requests.a/b", "A.b/c", "a/b/c"]
)
def test_a_name_that_no_pod_can_ask_for_is_never_ours(name: str) -> None:
    """Whoever can write the annotation must not be able to let devwatch remove the node's CPUs."""
    listing = NodeState(annotation=json.dumps({name: [], ZIGBEE: []})).listing()
    assert listing == {ZIGBEE: ()}


def test_entries_of_another_form_are_passed_over() -> None:
    """A number of omitted ones, a newer version's fields and wrong types keep nobody from reading the rest."""
    listed = [{"devnode": "/dev/ttyUSB0", "vendor": 3, "new": 1, "serial": "s" * 200}, {"devnode": 1}, {"omitted": 4}]
    text = json.dumps({ZIGBEE: listed})
    assert parse_listing(text) == {ZIGBEE: (Entry(devnode="/dev/ttyUSB0", serial="s" * 128),)}


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | names | st.just("devnode"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.text() | json_values.map(json.dumps) | st.dictionaries(names, json_values, max_size=3).map(json.dumps))
def test_whatever_the_annotation_holds_only_valid_names_are_ours(text: str) -> None:
    """Nothing that anybody writes there ends the daemon or reaches beyond extended resources."""
    for name, listed in parse_listing(text).items():
        assert resource_name_fault(name) == ""
        assert all(len(value) <= 128 for entry in listed for value in asdict(entry).values() if value is not None)
