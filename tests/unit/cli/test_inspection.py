"""What is shown of devices and rules is what the daemon acts on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kubernetes_validate import latest_version, validate  # type: ignore[import-untyped]  # it has no type information

from devwatch.cli.display import pod_text, suggestion_text
from devwatch.cli.inspection import describe, explain, rows, suggest, twins_of
from devwatch.config.schema import parse
from devwatch.core.rules import Verdict, claim
from support.build import ZIGBEE, ZWAVE, device, entry, rule

if TYPE_CHECKING:
    from devwatch.core.device import Device


@pytest.mark.parametrize(
    ("properties", "what"),
    [
        (
            {"ID_MODEL_FROM_DATABASE": "FT232", "ID_VENDOR_FROM_DATABASE": "FTDI", "ID_MODEL": "UART"},
            "FT232 (UART)",
        ),
        ({"ID_MODEL_FROM_DATABASE": "FT232", "ID_VENDOR_FROM_DATABASE": "FTDI"}, "FTDI FT232"),
        (
            {"ID_MODEL_FROM_DATABASE": "FT232 UART", "ID_VENDOR_FROM_DATABASE": "FTDI", "ID_MODEL": "uart"},
            "FTDI FT232 UART",
        ),
        ({"ID_VENDOR_ENC": "ACME\\x20Inc", "ID_MODEL_ENC": "Modem\\x2f2"}, "ACME Inc Modem/2"),
        ({"ID_VENDOR": "ACME_Inc", "ID_MODEL": "Modem"}, "ACME Inc Modem"),
        ({}, "unknown USB device"),
    ],
)
def test_a_device_is_called_what_the_database_or_itself_says(properties: dict[str, str], what: str) -> None:
    """The hardware database comes first, the device's own strings second."""
    assert describe(device(vendor="1234", product="5678", properties=properties)) == what


def test_a_well_known_stick_is_called_what_everybody_calls_it() -> None:
    """Whatever its strings say; one without a record that nobody knows has no name."""
    assert describe(device(vendor="0658", product="0200", properties={"ID_MODEL": "0200"})).startswith("Aeotec Z-Stick")
    assert describe(device(vendor="1234", product="5678", properties=None)) == "unknown USB device"


def test_what_is_no_usb_device_is_named_by_its_kind() -> None:
    """A port of the board and a virtual console have no ids to show; a card is in the hardware database."""
    card = {"ID_VENDOR_FROM_DATABASE": "Exar", "ID_MODEL_FROM_DATABASE": "XR17V35x"}
    assert describe(device("ttyS4", vendor=None, product=None, properties=card)) == "Exar XR17V35x"
    assert describe(device("ttyS0", vendor=None, product=None)) == "serial port of the board"
    assert describe(device("tty9", vendor=None, product=None, devpath="/devices/virtual/tty/tty9")) == "virtual console"


def test_twins_are_told() -> None:
    """Two bodies with the same ids and serial are twins; two ttys of one body are not, nor is a port without ids."""
    one, two = device("ttyUSB0"), device("ttyUSB1")
    inner = device("ttyUSB2", physical=one.physical)
    assert twins_of(one, [one, two, inner]) == ("/dev/ttyUSB1",)
    assert twins_of(device(serial="A"), [device("ttyUSB1", serial="B")]) == ()
    assert twins_of(device("ttyS0", vendor=None), [device("ttyS1", vendor=None)]) == ()


def test_rows_come_in_the_order_of_people() -> None:
    """ttyUSB2 stands before ttyUSB10, each with its driver and its claim."""
    found = rows([device("ttyUSB10"), device("ttyUSB2")], [rule()], {"/dev/ttyUSB2": "cp210x"})
    assert [(row.device.devnode, row.driver, row.claim.owner) for row in found] == [
        ("/dev/ttyUSB2", "cp210x", ZIGBEE),
        ("/dev/ttyUSB10", None, ZIGBEE),
    ]


def test_explain_names_what_would_have_to_change() -> None:
    """For the claiming resource nothing; for another the missing key, the exclusion, the earlier resource, the node."""
    rules = [
        rule("a.io/wrong", [entry(vendor="0658", product="8a2a")]),
        rule("a.io/excluded", exclude=(entry(product="8a2a"),)),
        rule("a.io/owner"),
        rule("a.io/later"),
        rule("a.io/elsewhere", nodes=()),
    ]
    decided, reports = explain(device(), rules, "here")
    changes = {report.name: report.change for report in reports}
    assert decided.owner == "a.io/owner"
    assert changes["a.io/wrong"] == "match[0] wants vendor '0658' (seen 10c4)"
    assert changes["a.io/excluded"] == "exclude[0] takes it out"
    assert changes["a.io/owner"] == ""
    assert changes["a.io/later"].startswith("a.io/owner comes first")
    assert changes["a.io/elsewhere"] == "it is not for node here (see its nodes)"


def test_explain_tells_what_is_unknown() -> None:
    """Without a udev record the port is unknown, and so is whose the device is."""
    rules = [rule(ZWAVE, [entry(port="*-1.4")]), rule(ZIGBEE)]
    decided, reports = explain(device(properties=None), rules, "here")
    assert decided.doubtful == {ZIGBEE, ZWAVE}
    assert reports[0].entries[0].findings[0].verdict is Verdict.UNKNOWN
    assert "no complete udev record" in reports[0].change
    assert f"{ZWAVE}, which may want it, comes first" in reports[1].change


def test_explain_asks_no_resource_of_another_node() -> None:
    """One that comes first elsewhere takes nothing here."""
    decided, reports = explain(device(), [rule("a.io/elsewhere", nodes=()), rule("a.io/owner")], "here")
    assert decided.owner == "a.io/owner"
    assert [report.change for report in reports] == ["it is not for node here (see its nodes)", ""]


def test_explain_names_all_that_may_want_it_first() -> None:
    """In the order of their names, and not the resource itself."""
    rules = [rule(ZWAVE, [entry(port="x")]), rule("a.io/b", [entry(port="y")]), rule(ZIGBEE)]
    _, reports = explain(device(properties=None), rules, "here")
    assert reports[2].change.startswith(f"a.io/b, {ZWAVE}, which may want it, comes first")


def test_explain_names_what_the_nearest_entry_misses() -> None:
    """The entry of `match` that needs the fewest changes, whatever an exclusion would need."""
    far, near = entry(vendor="0658", serial="A", product="8a2a"), entry(vendor="10c4", serial="B")
    _, (report,) = explain(device(), [rule(match=[far, near], exclude=(entry(vendor="0658"),))], "here")
    assert report.change == "match[1] wants serial 'B' (it has none)"


def test_explain_names_only_exclusions_once_something_matches() -> None:
    """Another entry of `match` that is unknown changes nothing then."""
    rules = [rule(match=[entry(vendor="10c4"), entry(port="x")], exclude=(entry(port="y"),))]
    _, (report,) = explain(device(properties=None), rules, "here")
    assert report.change.startswith("exclude[0] may take it out, by port 'y'")
    assert "match" not in report.change


@pytest.mark.parametrize("links_known", [True, False])
def test_explain_names_an_exclusion_that_is_unknown(*, links_known: bool) -> None:
    """Where that alone leaves it open: which entry, its keys, and what this host lacks."""
    outside, inside = entry(port="*-usb-0:1.4:*"), entry(vendor="10c4", path="/dev/serial/by-id/*")
    other = entry(vendor="0658", port="*")
    stick = device(properties=None, links_known=links_known)
    _, (report,) = explain(stick, [rule(match=[entry(product="8a2a")], exclude=(other, outside, inside))], "here")
    unseen = "the links to it cannot be read on this host"
    by_path = f"; exclude[2] may take it out, by path '/dev/serial/by-id/*' ({unseen})"
    by_port = "exclude[1] may take it out, by port '*-usb-0:1.4:*' (there is no complete udev record of it)"
    assert report.verdict is Verdict.UNKNOWN
    assert report.change == by_port + ("" if links_known else by_path)


def test_explain_names_the_match_before_an_exclusion_that_is_unknown() -> None:
    """As long as no entry matches, that is what has to change."""
    rules = [rule(match=[entry(vendor="0658")], exclude=(entry(port="x"),))]
    _, (report,) = explain(device(properties=None), rules, "here")
    assert report.change == "match[0] wants vendor '0658' (seen 10c4)"


IDS = st.sampled_from(["10c4", "0658", "1a86"])
DEVICES = st.lists(
    st.builds(
        device,
        vendor=IDS,
        product=IDS,
        serial=st.sampled_from([None, "A", "B*", "[x]?"]),
        interface=st.sampled_from([None, "00", "01"]),
        port=st.sampled_from([None, "pci-1", "pci-2"]),
        physical=st.sampled_from(["/devices/1", "/devices/2", "/devices/3"]),
        properties=st.sampled_from([{}, {"ID_MODEL": "M*del 1"}]),
    ),
    max_size=5,
).map(lambda found: [_named(device, index) for index, device in enumerate(found)])


def _named(plain: Device, index: int) -> Device:
    return device(
        f"ttyUSB{index}",
        **{
            name: getattr(plain, name)
            for name in ("vendor", "product", "serial", "interface", "port", "physical", "properties")
        },
    )


@given(devices=DEVICES)
def test_a_suggestion_claims_exactly_its_devices(devices: list[Device]) -> None:
    """Whatever is plugged in: the suggested configuration is valid and gives each device to the resource suggested for it."""
    suggestions = suggest(devices, ())
    config = parse(suggestion_text(suggestions).encode(), file="suggested")
    wanted = {devnode: suggestion.name for suggestion in suggestions for devnode in suggestion.devnodes}
    assert {device.devnode: claim(device, config.resources).owner for device in devices} == wanted


@given(devices=DEVICES)
def test_what_a_pod_needs_is_valid_in_its_spec(devices: list[Device]) -> None:
    """One document for each resource: the limit, and the folder of the devices from the host."""
    suggestions = suggest(devices, ())
    pods = list(yaml.safe_load_all(pod_text(suggestions)))
    assert len(pods) == len(suggestions)
    for suggestion, spec in zip(suggestions, pods, strict=True):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app"}, "spec": spec}
        validate(pod, latest_version(), strict=True)
        (container,), (volume,) = spec["containers"], spec["volumes"]
        assert container["resources"] == {"limits": {suggestion.name: 1}}
        assert container["securityContext"] == {"privileged": True}
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/host/dev"}]
        assert volume["hostPath"] == {"path": "/dev", "type": "Directory"}


BY_ID, BY_PATH = "/dev/serial/by-id/usb-FTDI-if00-port0", "/dev/serial/by-path/pci-1"


@pytest.mark.parametrize(
    ("sticks", "shown"),
    [
        ([{"serial": "A", "links": (BY_ID, BY_PATH)}], f"/host{BY_ID}"),
        ([{"port": "pci-1", "links": (BY_ID, BY_PATH)}, {"port": "pci-2", "links": (BY_ID,)}], f"/host{BY_PATH}"),
        ([{"serial": "A", "links": ()}], "/host/dev/ttyUSB0"),
        ([{"serial": "A", "links": ("/dev/a\n: b",)}], "/host/dev/a\\n: b"),
    ],
    ids=["its own link", "a twin", "no link", "hostile"],
)
def test_a_pod_is_told_the_path_that_stays(sticks: list[dict[str, Any]], shown: str) -> None:
    """The link that follows the device as the suggested keys do; twins without a serial share their by-id link."""
    devices = [device(f"ttyUSB{number}", **{"serial": None} | fields) for number, fields in enumerate(sticks)]
    text = pod_text(suggest(devices, ())[:1])
    assert f"\n#   {shown}\n" in text


def test_a_pod_is_told_where_the_kubelet_puts_the_device() -> None:
    """Then it needs the limit alone."""
    text = pod_text(suggest([device(vendor="0658", product="0200")], ()))
    assert "the limit alone is needed, and the device is at /dev/zstick.\n" in text
    assert pod_text(()) == ""


CABLE = {"vendor": "0403", "product": "6001", "properties": {"ID_MODEL": "FT232R"}}
IDS_OF_CABLE = {"vendor": ("0403",), "product": ("6001",)}
MODEL = {"model": ("FT232R",)}
SHARED = "only the socket identifies it: its serial is that of many devices"


def _cable(name: str = "ttyUSB0", **fields: Any) -> Device:  # noqa: ANN401  any field of a Device
    return device(name, **CABLE | {"port": f"of {name}"} | fields)


@pytest.mark.parametrize(
    ("sticks", "keys", "note"),
    [
        ([_cable(serial="A")], IDS_OF_CABLE | {"serial": ("A",)}, ""),
        ([_cable(serial="A"), _cable("ttyUSB1", serial="B")], IDS_OF_CABLE | {"serial": ("A",)}, ""),
        ([_cable()], IDS_OF_CABLE | MODEL, ""),
        ([_cable(), _cable("ttyUSB1", properties={"ID_MODEL": "x"})], IDS_OF_CABLE | MODEL, ""),
        ([_cable(properties=None)], IDS_OF_CABLE, ""),
        ([_cable(serial="A50285BI")], IDS_OF_CABLE | MODEL | {"port": ("of ttyUSB0",)}, SHARED),
        (
            [_cable(serial="0001"), _cable("ttyUSB1", serial="0001")],
            IDS_OF_CABLE | MODEL | {"port": ("of ttyUSB0",)},
            SHARED,
        ),
        ([_cable(serial="0001", port=None)], IDS_OF_CABLE | MODEL, ""),
        ([_cable(), _cable("ttyUSB1")], IDS_OF_CABLE | MODEL | {"port": ("of ttyUSB0",)}, "only the socket"),
        ([_cable(port=None), _cable("ttyUSB1")], {"path": ("/dev/ttyUSB0",)}, "nothing identifies it but its name"),
        ([_cable(physical="b"), _cable("ttyUSB1", physical="b")], IDS_OF_CABLE | MODEL, ""),
        ([_cable(physical="b"), _cable("ttyUSB1", physical="b", serial="A")], IDS_OF_CABLE | MODEL, ""),
        (
            [_cable(physical="b"), _cable("ttyUSB1", physical="b"), _cable("ttyUSB2")],
            IDS_OF_CABLE | MODEL | {"port": ("of ttyUSB0", "of ttyUSB1")},
            "only the socket",
        ),
        (
            [device(interface="00", physical="b"), device("ttyUSB1", interface="01", physical="b")],
            {"vendor": ("10c4",), "product": ("8a2a",), "interface": ("00",)},
            "",
        ),
        ([device("ttyS0", vendor=None, product=None)], {"path": ("/dev/ttyS0",)}, "nothing identifies it but its name"),
    ],
)
def test_a_suggestion_follows_the_stick_as_far_as_that_can_be_told(
    sticks: list[Device], keys: dict[str, tuple[str, ...]], note: str
) -> None:
    """The first one's ids and its serial; without one its model; then its interfaces, its socket, and at last its name.

    A serial that many devices share is none; the socket takes its place.
    """
    suggestion, *_ = suggest(sticks, ())
    assert suggestion.keys == keys
    assert suggestion.note.startswith(note)
    assert bool(suggestion.note) == bool(note)


def test_suggestions_come_in_the_order_of_people_and_stick_by_stick() -> None:
    """Two radios in one stick are two resources, the ports of one cable are one."""
    cable = [_cable(f"ttyUSB{number}", physical="cable") for number in (10, 2)]
    radios = [device(f"ttyUSB{number}", physical="b", interface=f"0{number}") for number in (1, 0)]
    found = [(suggestion.name, suggestion.devnodes) for suggestion in suggest([*cable, *radios], ())]
    assert found == [
        ("nortek.com/zwave", ("/dev/ttyUSB0",)),
        ("nortek.com/zigbee", ("/dev/ttyUSB1",)),
        ("devices.local/ft232r", ("/dev/ttyUSB2", "/dev/ttyUSB10")),
    ]


@pytest.mark.parametrize(
    ("stick", "name"),
    [
        (_cable(properties={"ID_MODEL": "_Dual RS232-HS!"}), "dual-rs232-hs"),
        (_cable(properties={"ID_MODEL": "A" * 39 + " B"}), "a" * 39),
        (_cable(properties={"ID_MODEL": "A" * 41}), "a" * 40),
        (_cable(properties={"ID_MODEL": "?"}), "usb-0403-6001"),
        (_cable(properties=None), "usb-0403-6001"),
        (device("ttyS0", vendor=None), "ttys0"),
        (device("ttyX_", vendor=None), "serial"),
    ],
)
def test_a_suggested_name_is_the_model_as_far_as_a_name_can_hold_it(stick: Device, name: str) -> None:
    """Else the ids, and for a port of the board its name."""
    (suggestion,) = suggest([stick], ())
    assert suggestion.name == f"devices.local/{name}"


def test_only_what_nothing_claims_is_suggested() -> None:
    """Claimed devices, those in doubt and virtual consoles are left alone."""
    console = device("tty9", vendor=None, devpath="/devices/virtual/tty/tty9")
    open_one = device("ttyUSB1", vendor="0658", properties=None)
    rules = [rule(ZIGBEE), rule(ZWAVE, [entry(vendor="0658", port="x")])]
    assert suggest([device(), console, open_one], rules) == ()


def test_a_name_that_is_taken_is_not_suggested_again() -> None:
    """The second of two sticks gets a number, also beside a resource of the configuration."""
    sticks = [device(f"ttyACM{n}", vendor="0658", product="0200", serial=str(n)) for n in range(2)]
    names = [suggestion.name for suggestion in suggest(sticks, [rule("aeotec/zstick", [entry(vendor="dead")])])]
    assert names == ["aeotec/zstick-2", "aeotec/zstick-3"]


def _sticks(models: list[str]) -> list[Device]:
    """Return sticks of a vendor whom nobody knows, told apart by their serials."""
    return [
        device(f"ttyUSB{number}", vendor="1a86", serial=str(number), properties={"ID_MODEL": model})
        for number, model in enumerate(models)
    ]


MODELS = st.lists(st.sampled_from(["Dual", "Dual_2", "Dual-3", "dual 2 2", "", "*", "X" * 60, "serial"]), max_size=6)


@given(models=MODELS, later=MODELS)
def test_a_suggestion_passes_alone_and_behind_what_was_suggested_before(models: list[str], later: list[str]) -> None:
    """Whatever the sticks call themselves, no name is there twice, and who appended the last suggestion may append the next."""
    first = suggestion_text(suggest(_sticks(models), ()))
    rules = parse(first.encode(), file="first").resources
    more = suggest(_sticks([*models, *later]), rules)
    if not models or not more:
        return
    both = first + suggestion_text(more).removeprefix("resources:\n")
    config = parse(both.encode(), file="both")
    assert [rule.name for rule in config.resources[: len(rules)]] == [rule.name for rule in rules]
    assert {claim(stick, config.resources).owner for stick in _sticks([*models, *later])} == {
        rule.name for rule in config.resources
    }


def test_a_name_that_another_node_has_is_not_suggested_either() -> None:
    """The file is one for all nodes."""
    (stick,) = suggest([device(vendor="0658", product="0200")], [], ["aeotec/zstick", "aeotec/zstick-2"])
    assert stick.name == "aeotec/zstick-3"


@pytest.mark.parametrize(
    ("fields", "others"),
    [
        ({"serial": "*" * 17}, {"serial": "A"}),
        ({"serial": "S" * 513}, {"serial": "A"}),
        ({"serial": "\ud800"}, {"serial": "A"}),
        ({"vendor": "zzzz"}, {}),
        ({"interface": "0"}, {"interface": "01"}),
    ],
    ids=["signs", "length", "surrogate", "vendor", "interface"],
)
def test_what_a_configuration_cannot_hold_is_not_suggested(fields: dict[str, str], others: dict[str, str]) -> None:
    """Something else then tells the stick, if only its devnode."""
    stick, other = device(**fields), device("ttyUSB1", **others)
    suggestions = suggest([stick, other], ())
    config = parse(suggestion_text(suggestions).encode(), file="suggested")
    assert [claim(each, config.resources).owner for each in (stick, other)] == [each.name for each in suggestions]


# -- other subsystems than tty

BODY = "/devices/usb1/1-1"
WHOLE = device("bus/usb/001/004", subsystem="usb", devpath=BODY, physical=BODY)
PART = device(physical=BODY)


def test_a_device_without_ids_is_named_by_its_subsystem() -> None:
    """It is neither a port nor a console."""
    bare = device("net/tun", subsystem="misc", vendor=None, devpath="/devices/virtual/misc/tun")
    assert describe(bare) == "misc device"


def test_the_parts_of_a_device_are_no_twins_of_the_whole() -> None:
    """They have the same ids, and are told apart by their subsystem."""
    other = device("ttyUSB9")
    assert [row.twins for row in rows([WHOLE, other], [], {})] == [(), ()]


def test_explain_says_that_a_resource_counts_another_subsystem() -> None:
    """Whatever its keys say."""
    _, (report,) = explain(PART, [rule(subsystem="usb")], "here")
    assert report.verdict is Verdict.NOT
    assert report.change == "it counts devices of subsystem 'usb' (seen tty)"
    assert [entry.where for entry in report.entries] == ["subsystem"]


def test_explain_says_who_has_the_device_as_a_whole_or_in_part() -> None:
    """The order of the resources decides."""
    rules = [rule("x/usb", subsystem="usb"), rule("x/tty")]
    decided, (_, report) = explain(PART, rules, "here", [WHOLE, PART])
    assert (decided.owner, decided.excluded_by) == (None, "x/usb")
    assert report.change.startswith("x/usb comes first, and has the device through another subsystem")
    (whole, part) = rows([WHOLE, PART], rules, {})
    assert (whole.claim.owner, part.claim.owner) == ("x/usb", None)


def test_explain_says_why_a_hub_does_not_count() -> None:
    """Its keys match, and are not exact."""
    _, (report,) = explain(replace(WHOLE, hub=True), [rule(match=[entry(vendor="10c4")], subsystem="usb")], "here")
    assert report.change == "it is a hub, which counts only by an entry with its exact vendor and product"


def test_a_suggestion_is_for_the_subsystem_that_is_asked_for() -> None:
    """And not for a hub, nor for a device that a resource has through another subsystem already."""
    hub = replace(WHOLE, devnode="/dev/bus/usb/001/002", physical="/devices/usb1/1-2", hub=True)
    devices = [hub, WHOLE, PART]
    (usb,) = suggest(devices, [], subsystem="usb")
    (tty,) = suggest(devices, [])
    assert (usb.subsystem, usb.devnodes) == ("usb", ("/dev/bus/usb/001/004",))
    assert (tty.subsystem, tty.devnodes) == ("tty", ("/dev/ttyUSB0",))
    assert suggest(devices, [rule()], subsystem="usb") == ()
    assert suggest(devices, [rule(subsystem="usb")]) == ()
    text = suggestion_text((usb,))
    (suggested,) = parse(text.encode(), file="c").resources
    assert suggested.subsystem == "usb"
    assert suggested.verdict(WHOLE) is Verdict.MATCHED
    assert "subsystem" not in suggestion_text((tty,))
    (pod,) = yaml.safe_load_all(pod_text((usb,)))
    assert (
        pod["volumes"][0]["hostPath"]["path"] == pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/dev/bus/usb"
    )
    assert "#   /dev/bus/usb/001/004\n" in pod_text((usb,))
