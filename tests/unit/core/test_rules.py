"""Which devices a resource counts: patterns, three truth values, claims, and what one resource leaves another."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.core.device import Device
from devwatch.core.keys import KEYS
from devwatch.core.rules import (
    Claim,
    Count,
    KeyTest,
    Matcher,
    Pattern,
    ResourceRule,
    Verdict,
    all_of,
    any_of,
    claim,
    is_glob,
    negation,
    quantity_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

MATCHED, NOT, UNKNOWN = Verdict.MATCHED, Verdict.NOT, Verdict.UNKNOWN

# Few values and many patterns over them, so that random rules meet random devices.
VALUES = ("a", "b", "ab", "*", "[", "")
TEXTS = ("a", "b", "ab", "*", "?", "a*", "[ab]", "[!a]", "[[]", "[", "")
DEVNODES = ("/dev/ttyUSB0", "/dev/ttyUSB1")
LINKS = ("/dev/serial/by-id/a", "/dev/zigbee")
PATHS = (*DEVNODES, *LINKS, "/dev/*", "/dev/serial/*", "*", "/dev/ttyUSB?", "")

_value = st.none() | st.sampled_from(VALUES)
_patterns = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3).map(
    lambda texts: tuple(Pattern(text=text) for text in texts)
)
_path_patterns = st.lists(st.sampled_from(PATHS), min_size=1, max_size=3).map(
    lambda texts: tuple(Pattern(text=text) for text in texts)
)
_tests = (
    st.builds(KeyTest, key=st.sampled_from(("vendor", "serial", "interface", "port")), patterns=_patterns)
    | st.builds(KeyTest, key=st.just("path"), patterns=_path_patterns)
    | st.builds(
        KeyTest, key=st.just("properties"), patterns=_patterns, property_name=st.sampled_from(("ID_MODEL", "ID_BUS"))
    )
)
_matchers = st.lists(_tests, min_size=1, max_size=3).map(lambda tests: Matcher(tests=tuple(tests)))
_rules = st.builds(
    ResourceRule,
    name=st.sampled_from(("x/a", "x/b", "x/c")),
    match=st.lists(_matchers, min_size=1, max_size=2).map(tuple),
    exclude=st.lists(_matchers, max_size=2).map(tuple),
    nodes=st.none() | _patterns,
)
# Rules so alike that many pairs of them shadow each other, or nearly do.
_close_tests = st.builds(
    KeyTest,
    key=st.sampled_from(("vendor", "serial")),
    patterns=st.lists(st.sampled_from(("a", "*")), min_size=1, max_size=2).map(
        lambda texts: tuple(Pattern(text=text) for text in texts)
    ),
)
_close_matchers = st.lists(_close_tests, min_size=1, max_size=2).map(lambda tests: Matcher(tests=tuple(tests)))
_close_rules = st.builds(
    ResourceRule,
    name=st.just("x/a"),
    match=st.lists(_close_matchers, min_size=1, max_size=2).map(tuple),
    exclude=st.lists(_close_matchers, max_size=1).map(tuple),
)
_devices = st.builds(
    Device,
    devnode=st.sampled_from(DEVNODES),
    devpath=st.sampled_from(("/devices/x/tty/ttyUSB0", "/devices/virtual/tty/ttyUSB0")),
    number=st.just(1),
    incarnation=st.just(1),
    physical=st.none() | st.just("/devices/x"),
    vendor=_value,
    serial=_value,
    interface=_value,
    port=_value,
    links=st.lists(st.sampled_from(LINKS), unique=True).map(tuple),
    links_known=st.booleans(),
    properties=st.none() | st.dictionaries(st.sampled_from(("ID_MODEL", "ID_BUS")), st.sampled_from(VALUES)),
)
_verdicts = st.lists(st.sampled_from(Verdict))

STICK = Device(
    devnode="/dev/ttyUSB0",
    devpath="/devices/x/tty/ttyUSB0",
    number=1,
    incarnation=1,
    vendor="10c4",
    links=("/dev/zigbee",),
    properties={"ID_MODEL": "HubZ"},
)
BARE = dataclasses.replace(STICK, properties=None, links=(), links_known=False)


def _test(key: str, *texts: str, name: str = "") -> KeyTest:
    return KeyTest(key=key, patterns=tuple(Pattern(text=text) for text in texts), property_name=name)


def _rule(
    name: str, *match: KeyTest, exclude: Sequence[KeyTest] = (), nodes: str = "", count: Count = Count.DEVICE
) -> ResourceRule:
    return ResourceRule(
        name=name,
        match=tuple(Matcher(tests=(test,)) for test in match),
        exclude=tuple(Matcher(tests=(test,)) for test in exclude),
        nodes=(Pattern(text=nodes),) if nodes else None,
        count=count,
    )


@given(st.permutations(list(Verdict)), _verdicts)
def test_unknown_is_a_third_truth_value(order: list[Verdict], verdicts: list[Verdict]) -> None:
    """Kleene's tables: what is known decides alone where it can; De Morgan's laws and double negation hold."""
    assert all_of(order) is NOT
    assert any_of(order) is MATCHED
    assert all_of([UNKNOWN, MATCHED]) is any_of([UNKNOWN, NOT]) is UNKNOWN
    assert (all_of([]), any_of([])) == (MATCHED, NOT)
    assert negation(all_of(verdicts)) is any_of(map(negation, verdicts))
    assert [negation(negation(verdict)) for verdict in verdicts] == verdicts


@given(_verdicts, st.data())
def test_learning_more_never_overturns_a_verdict(verdicts: list[Verdict], data: st.DataObject) -> None:
    """A verdict that is not open stays what it is, however the unknown turns out."""
    settled = [data.draw(st.sampled_from((MATCHED, NOT))) if verdict is UNKNOWN else verdict for verdict in verdicts]
    for combine in (all_of, any_of):
        assert combine(verdicts) in {UNKNOWN, combine(settled)}


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("HUSB*", "HUSB1", True),
        ("HUSB*", "xHUSB1", False),
        ("husb", "HUSB", False),
        ("HUSB", "HUSB1", False),
        ("a?c", "a\nc", True),
        ("[[]x]", "[x]", True),
        ("[!0]", "1", True),
        ("a.c", "abc", False),
        ("*", "", True),
        ("*", None, False),
        ("", "", True),
        ("", None, True),
        ("", "x", False),
    ],
)
def test_a_pattern_matches_a_whole_value(text: str, value: str | None, expected: bool) -> None:  # noqa: FBT001  # a table
    """A glob over the whole value, with its case; an absent value matches only the empty pattern."""
    assert Pattern(text=text).matches(value) is expected


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_is_a_pattern(text: str, value: str) -> None:
    """No pattern fails to compile or warns; one without glob signs matches itself and nothing else."""
    matches = Pattern(text=text).matches(value)
    assert is_glob(text) or matches is (text == value)


def test_a_hostile_value_is_matched_at_once() -> None:
    """A value made to make a pattern backtrack is only a long value: this ends, and says no."""
    assert not Pattern(text="*a" * 30 + "b").matches("a" * 10_000)


@given(st.sampled_from(TEXTS), st.sampled_from(TEXTS), _value)
def test_a_pattern_covers_only_what_it_matches(mine: str, theirs: str, value: str | None) -> None:
    """What the covered pattern matches, the covering one matches too."""
    if Pattern(text=mine).covers(Pattern(text=theirs)) and Pattern(text=theirs).matches(value):
        assert Pattern(text=mine).matches(value)


def test_the_plain_cases_of_covering_are_seen() -> None:
    """Equal patterns, a star over everything, a glob over a literal; never a star over the absent value."""
    pairs = [("*", "a*"), ("a*", "ab"), ("a*", "a?"), ("*", ""), ("", ""), ("a", "*"), ("*", "a"), ("b*", "ab")]
    seen = [Pattern(text=mine).covers(Pattern(text=theirs)) for mine, theirs in pairs]
    assert seen == [True, True, True, False, True, False, True, False]


@pytest.mark.parametrize(
    ("test", "of_stick", "of_bare"),
    [
        (_test("vendor", "0403", "10c4"), MATCHED, MATCHED),
        (_test("vendor", "0403"), NOT, NOT),
        (_test("serial", ""), MATCHED, MATCHED),
        (_test("serial", "*"), NOT, NOT),
        (_test("port", ""), MATCHED, UNKNOWN),
        (_test("port", "*"), NOT, UNKNOWN),
        (_test("properties", "Hub*", name="ID_MODEL"), MATCHED, UNKNOWN),
        (_test("properties", "x", name="ID_MODEL"), NOT, UNKNOWN),
        (_test("properties", "", name="ID_NONE"), MATCHED, UNKNOWN),
        (_test("path", "/dev/ttyUSB0"), MATCHED, MATCHED),
        (_test("path", "/dev/ttyUSB1"), NOT, NOT),
        (_test("path", "/dev/zig*"), MATCHED, UNKNOWN),
        (_test("path", "/dev/gps"), NOT, UNKNOWN),
        (_test("path", "/dev/ttyUSB1", "/dev/gps"), NOT, UNKNOWN),
        (_test("path", "/dev/ttyZigbee0"), NOT, UNKNOWN),
    ],
)
def test_what_the_host_cannot_supply_is_unknown(test: KeyTest, of_stick: Verdict, of_bare: Verdict) -> None:
    """Without a udev record ids are still known; port, properties and links are neither matched nor not."""
    assert (test.finding(STICK).verdict, test.finding(BARE).verdict) == (of_stick, of_bare)


@pytest.mark.parametrize(
    ("test", "bare", "complete"),
    [
        (_test("vendor", "0403"), NOT, NOT),
        (_test("serial", ""), MATCHED, MATCHED),
        (_test("interface", "00"), NOT, NOT),
        (_test("port", "*"), NOT, MATCHED),
        (_test("port", ""), MATCHED, NOT),
        (_test("properties", "*", name="ID_MODEL"), NOT, MATCHED),
        (_test("properties", "", name="ID_BUS"), MATCHED, MATCHED),
        (_test("properties", "*", name="SYSTEMD_WANTS"), UNKNOWN, NOT),
        (_test("properties", "*", name="MY_ID_MODEL"), UNKNOWN, NOT),
    ],
)
def test_a_virtual_console_surely_has_no_hardware(test: KeyTest, bare: Verdict, complete: Verdict) -> None:
    """Without a record it holds up no count by what hardware alone has; a record decides, as of a rule that gave it some."""
    console = Device(devnode="/dev/tty9", devpath="/devices/virtual/tty/tty9", number=1033, incarnation=1)
    read = dataclasses.replace(console, port="virtual", properties={"ID_PATH": "virtual", "ID_MODEL": "vt"})
    assert (test.finding(console).verdict, test.finding(read).verdict) == (bare, complete)


@pytest.mark.parametrize(
    ("paths", "verdict"),
    [
        (("/dev/zig*",), UNKNOWN),
        (("*zigbee",), UNKNOWN),
        (("/dev/serial/by-*/usb-x",), UNKNOWN),
        (("/dev/ttyUSB1", "/dev/serial/by-id/x", "/dev/zig*"), UNKNOWN),
        (("/dev/zig*", "/dev/serial/by-path/pci-*"), MATCHED),
        (("/dev/zig*", "/dev/ttyUSB?"), MATCHED),
        (("/dev/serial/by-id/usb-*",), NOT),
        (("/dev/gps",), NOT),
        (("/dev/rfcomm*", "/dev/ttyACM[0-9]"), NOT),
    ],
)
def test_where_links_can_be_followed_only_globs_need_the_record(paths: tuple[str, ...], verdict: Verdict) -> None:
    """A look lists /dev/serial and follows what is spelled out; which other links a glob means only the record tells."""
    stick = dataclasses.replace(STICK, properties=None, links=("/dev/serial/by-path/pci-0",))
    assert _test("path", *paths).finding(stick).verdict is verdict
    complete = dataclasses.replace(stick, properties={})
    assert _test("path", *paths).finding(complete).verdict is (NOT if verdict is UNKNOWN else verdict)


@given(_tests, _devices)
def test_a_reason_is_given_exactly_for_the_unknown(test: KeyTest, device: Device) -> None:
    """Who asks why a verdict is open gets an answer, and no excuse where it is not."""
    finding = test.finding(device)
    assert (finding.verdict is UNKNOWN) is bool(finding.reason)
    assert finding.wanted == tuple(pattern.text for pattern in test.patterns)


def test_a_finding_shows_what_was_seen() -> None:
    """The key as the file spells it, the value seen, the value wanted."""
    finding = _test("properties", "x", "y", name="ID_MODEL").finding(STICK)
    assert (finding.key, finding.seen, finding.wanted) == ("properties.ID_MODEL", ("HubZ",), ("x", "y"))
    assert _test("path", "/x").finding(STICK).seen == ("/dev/ttyUSB0", "/dev/zigbee")
    assert _test("serial", "*").finding(STICK).seen == ()


@given(_matchers, _devices)
def test_the_explanation_never_disagrees_with_the_verdict(matcher: Matcher, device: Device) -> None:
    """What is shown key by key is the very thing that decides."""
    findings = matcher.findings(device)
    assert matcher.verdict(device) is all_of(finding.verdict for finding in findings)
    assert [finding.key for finding in findings] == [test.label for test in matcher.tests]


def test_every_key_can_be_asked_of_a_device() -> None:
    """The keys of the configuration are those that a device answers to."""
    for key in KEYS:
        assert _test(key, "no such value").finding(STICK).verdict is NOT


def test_exclusion_wins_over_a_match_and_doubt_over_both() -> None:
    """Any entry may match, none may exclude, and an open exclusion leaves the verdict open."""
    vendor, serial = _test("vendor", "10c4"), _test("serial", "x")
    assert _rule("x/a", serial, vendor).verdict(STICK) is MATCHED
    assert _rule("x/a", serial).verdict(STICK) is NOT
    assert _rule("x/a", vendor, exclude=[_test("path", "/dev/ttyUSB0")]).verdict(STICK) is NOT
    assert _rule("x/a", vendor, exclude=[_test("port", "p")]).verdict(BARE) is UNKNOWN
    assert _rule("x/a", serial, exclude=[_test("port", "p")]).verdict(BARE) is NOT
    assert _rule("x/a", _test("port", "p"), exclude=[vendor]).verdict(BARE) is NOT


@given(_rules, _devices)
def test_an_open_verdict_needs_something_unknown(rule: ResourceRule, device: Device) -> None:
    """Where udev has spoken and the links are known, every question has an answer."""
    known = dataclasses.replace(device, properties=device.properties or {}, links_known=True)
    assert rule.verdict(known) is not UNKNOWN


@given(_rules, _devices)
def test_what_is_unknown_is_named_exactly_for_an_open_verdict(rule: ResourceRule, device: Device) -> None:
    """With the key and the reason, so that somebody can do something about it."""
    unknowns = rule.unknowns(device)
    assert bool(unknowns) is (rule.verdict(device) is UNKNOWN)
    assert all(finding.key and finding.reason for finding in unknowns)


def test_only_what_leaves_the_verdict_open_is_named() -> None:
    """An entry that is decided has nothing to say, nor has the match of a device that only an exclusion leaves open."""
    port, model = _test("port", "*"), _test("properties", "*", name="ID_MODEL")
    decided = Matcher(tests=(_test("vendor", "0658"), model))
    rule = ResourceRule(name="x/a", match=(decided, Matcher(tests=(port,))))
    assert [finding.key for finding in rule.unknowns(BARE)] == ["port"]
    matched = _rule("x/a", _test("vendor", "10c4"), port, exclude=[model])
    assert [finding.key for finding in matched.unknowns(BARE)] == ["properties.ID_MODEL"]


def test_a_rule_applies_to_its_nodes() -> None:
    """Without `nodes` to all, else to those that a glob matches."""
    assert _rule("x/a").applies_to("nuc-1")
    assert _rule("x/a", nodes="nuc-*").applies_to("nuc-1")
    assert not _rule("x/a", nodes="nuc-*").applies_to("pi")
    both = dataclasses.replace(_rule("x/a"), nodes=(Pattern(text="nuc-*"), Pattern(text="pi")))
    assert both.applies_to("pi")


@given(_rules | _close_rules, _rules | _close_rules, _devices, st.sampled_from(VALUES))
def test_a_shadowed_resource_never_gets_a_device(
    earlier: ResourceRule, later: ResourceRule, device: Device, node: str
) -> None:
    """When a shadow is reported, no device on any node ever falls to the later resource."""
    earlier, later = dataclasses.replace(earlier, name="x/1"), dataclasses.replace(later, name="x/2")
    if earlier.shadows(later) and later.applies_to(node):
        assert earlier.applies_to(node)
        assert claim(device, (earlier, later)).owner != "x/2"


@given(_rules, st.lists(_matchers, max_size=2), st.lists(_tests, max_size=2), _devices)
def test_a_narrower_copy_is_shadowed(
    rule: ResourceRule, exclude: list[Matcher], more: list[KeyTest], device: Device
) -> None:
    """A later resource with more keys and more exclusions than an earlier one is seen to be shadowed, rightly."""
    match = tuple(Matcher(tests=(*entry.tests, *more)) for entry in rule.match)
    later = dataclasses.replace(rule, name="x/later", match=match, exclude=(*rule.exclude, *exclude))
    assert rule.shadows(later)
    assert claim(device, (rule, later)).owner != "x/later"


def test_what_leaves_something_is_no_shadow() -> None:
    """An exclusion, fewer nodes, another key or a narrower pattern in the earlier resource leave devices to the later."""
    later = _rule("x/b", _test("vendor", "0403"))
    assert _rule("x/a", _test("vendor", "*")).shadows(later)
    for earlier in (
        _rule("x/a", _test("vendor", "*"), exclude=[_test("serial", "x")]),
        _rule("x/a", _test("vendor", "*"), nodes="nuc-*"),
        _rule("x/a", _test("product", "*")),
        _rule("x/a", _test("vendor", "10c4")),
    ):
        assert not earlier.shadows(later)
    assert not _rule("x/a", _test("vendor", "*"), nodes="a").shadows(_rule("x/b", _test("vendor", "*"), nodes="b"))
    assert _rule("x/a", _test("vendor", "*"), nodes="a").shadows(_rule("x/b", _test("vendor", "*"), nodes="a"))
    assert not _rule("x/a", _test("vendor", "a")).shadows(_rule("x/b", _test("vendor", "a", "b")))
    assert not _rule("x/a", _test("vendor", "a")).shadows(_rule("x/b", _test("vendor", "a"), _test("serial", "x")))
    two_keys = Matcher(tests=(_test("vendor", "a"), _test("serial", "x")))
    assert not dataclasses.replace(_rule("x/a"), match=(two_keys,)).shadows(_rule("x/b", _test("vendor", "a")))


def test_a_device_belongs_to_the_first_resource_that_wants_it() -> None:
    """The order of the file is the priority; all that want it are named."""
    first, second = _rule("x/a", _test("serial", "x")), _rule("x/b", _test("vendor", "10c4"))
    third = _rule("x/c", _test("vendor", "*"))
    assert claim(STICK, (first, second, third)) == Claim(owner="x/b", wanted=("x/b", "x/c"))
    assert claim(STICK, (first,)) == Claim()


def test_a_device_in_doubt_belongs_to_nobody() -> None:
    """While an earlier resource may want it, no later one gets it; what comes after a sure one is out of it."""
    maybe, sure, late = (
        _rule("x/a", _test("port", "p")),
        _rule("x/b", _test("vendor", "10c4")),
        _rule("x/c", _test("port", "q")),
    )
    assert claim(BARE, (maybe, sure, late)) == Claim(doubtful=frozenset({"x/a", "x/b"}), wanted=("x/b",))
    assert claim(BARE, (maybe, late)) == Claim(doubtful=frozenset({"x/a", "x/c"}))
    assert claim(BARE, (sure, maybe)) == Claim(owner="x/b", wanted=("x/b",))


@given(st.lists(_rules, max_size=4, unique_by=lambda rule: rule.name), _devices)
def test_a_device_is_never_counted_twice(rules: list[ResourceRule], device: Device) -> None:
    """A device has one owner or is in doubt, and an owner is a resource that wants it and comes first of those."""
    found = claim(device, rules)
    assert not (found.owner and found.doubtful)
    verdicts = {rule.name: rule.verdict(device) for rule in rules}
    if found.owner:
        assert found.owner == next(name for name, verdict in verdicts.items() if verdict is not NOT)
    assert found.wanted == tuple(name for name, verdict in verdicts.items() if verdict is MATCHED)
    assert all(verdicts[name] is not NOT for name in found.doubtful)
    assert bool(found.owner or found.doubtful) is any(verdict is not NOT for verdict in verdicts.values())


def test_a_composite_stick_counts_as_the_resource_says() -> None:
    """One physical device with two ttys is one device and two devnodes."""
    ttys = [dataclasses.replace(STICK, devnode=f"/dev/ttyUSB{port}", physical="/devices/x") for port in range(2)]
    assert quantity_of(_rule("x/a"), ttys) == 1
    assert quantity_of(_rule("x/a", count=Count.DEVNODE), ttys) == 2
    assert quantity_of(_rule("x/a"), []) == 0
