"""The configuration: what every key means, and a place and a reason for everything that is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.config.schema import Config, parse
from devwatch.config.tree import MAX_BYTES
from devwatch.core.errors import ConfigError, Fault
from devwatch.core.keys import KEYS
from devwatch.core.names import resource_name_fault
from devwatch.core.rules import Count, Pattern, Publish, ResourceRule
from support.editor import disagreement

if TYPE_CHECKING:
    from collections.abc import Iterator

FULL = """\
resources:
  - name: aeotec/zstick
    match:
      - vendor: "0658"
        product: "0200"
  - name: rfxcom/rfxtrx433
    match:
      - path: /dev/ttyUSB0
  - name: nortek.com/zigbee
    match:
      - vendor: 10C4
        product: 8a2a
        interface: "1"
        serial: ["HUSB*", "NZB*"]
        properties: {ID_MODEL: Hub*, ID_BUS: [usb, ""]}
    exclude:
      - port: "*-usb-0:1.4:*"
    count: devnode
    publish: devicePlugin
    container:
      path: /dev/zigbee.d/stick
    nodes: ["nuc-*"]
    removalGrace: 500ms
    evict:
      after: 30s
sweep: 20s
resync: 1h
"""


def _entry(text: str) -> str:
    """Return a file with one match entry, of which `text` (from line 4, column 9) are the keys."""
    return f"resources:\n  - name: a/b\n    match:\n      - {text}\n"


def _with(text: str) -> str:
    """Return a file with one resource, whose last line (5, from column 5) is `text`."""
    return f"resources:\n  - name: a/b\n    match:\n      - serial: x\n    {text}\n"


def _config(text: str | bytes) -> Config:
    """Return the configuration, of which the JSON Schema says the same: `test_jsonschema.py` lists the exceptions."""
    data = text if isinstance(text, bytes) else text.encode()
    config, faults = _outcome(data, "c.yaml")
    if config is None:
        raise ConfigError("c.yaml", faults)
    return config


def _faults(text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        _config(text)
    assert str(caught.value) == "\n".join(fault.render("c.yaml") for fault in caught.value.faults)
    return [fault.render("c.yaml").removeprefix("c.yaml:") for fault in caught.value.faults]


def _patterns(config: Config) -> dict[str, list[str]]:
    """Return the patterns of all tests of all match entries, by the key as it is spelt."""
    tests = (test for rule in config.resources for entry in rule.match for test in entry.tests)
    return {test.label: [pattern.text for pattern in test.patterns] for test in tests}


def test_every_key_reaches_its_field() -> None:
    """The example of the contract, with every key there is."""
    config = _config(FULL)
    zstick, rfx, zigbee = config.resources
    assert (config.sweep, config.resync, config.warnings) == (20.0, 3600.0, ())
    assert [rule.name for rule in config.resources] == ["aeotec/zstick", "rfxcom/rfxtrx433", "nortek.com/zigbee"]
    assert (zigbee.count, zigbee.nodes, zigbee.removal_grace) == (Count.DEVNODE, (Pattern(text="nuc-*"),), 0.5)
    assert (zigbee.evict_after, rfx.evict_after) == (30.0, None)
    assert (zigbee.publish, zigbee.container_path) == (Publish.DEVICE_PLUGIN, "/dev/zigbee.d/stick")
    assert (zstick.publish, zstick.container_path) == (Publish.NODE_STATUS, "/dev/zstick")
    assert [test.label for test in zigbee.exclude[0].tests] == ["port"]
    assert (zstick.count, zstick.nodes, zstick.removal_grace, zstick.exclude) == (Count.DEVICE, None, 2.0, ())
    assert _patterns(Config(resources=(zigbee,))) == {
        "vendor": ["10c4"],
        "product": ["8a2a"],
        "interface": ["01"],
        "serial": ["HUSB*", "NZB*"],
        "properties.ID_MODEL": ["Hub*"],
        "properties.ID_BUS": ["usb", ""],
    }


def test_what_the_file_leaves_out_has_a_default() -> None:
    """No resources are an empty list, not an error; whether `resync` was given can be told."""
    assert _config("resources: []") == Config(resources=(), sweep=10.0, resync=None, warnings=())
    assert _config("resources: []\nresync: 5m").resync == 300.0


def test_a_byte_order_mark_is_no_fault() -> None:
    """Files from Windows editors are read."""
    assert _config(b"\xef\xbb\xbfresources: []\r\n") == _config("resources: []")


def test_a_node_gets_its_resources_in_their_order() -> None:
    """`nodes` are globs over the node's name."""
    config = _config(FULL)
    assert [rule.name for rule in config.for_node("pi")] == ["aeotec/zstick", "rfxcom/rfxtrx433"]
    assert config.for_node("nuc-1") == config.resources


def test_literal_paths_are_those_without_a_glob() -> None:
    """Of match and exclude of every resource: they may be links that no listing of links shows."""
    text = (
        _with("exclude: [{path: [/dev/b, '/dev/c*', '']}]") + "  - {name: a/c, match: [{path: /dev/a, serial: /x}]}\n"
    )
    assert _config(text).literal_paths == {"/dev/a", "/dev/b"}


def test_the_bounds_themselves_are_allowed() -> None:
    """The largest file, the longest pattern, the longest and the shortest durations are within the rules."""
    (rule,) = _config(_with("removalGrace: 1h") + "    evict: {after: 24h}\nsweep: 5m\n").resources
    assert (rule.removal_grace, rule.evict_after) == (3600.0, 86400.0)
    (rule,) = _config(_with("removalGrace: 0s") + "    evict: {after: 0ms}\nsweep: 1s\nresync: 24h\n").resources
    assert (rule.removal_grace, rule.evict_after) == (0.0, 0.0)
    longest = _entry(f"serial: ['{'x' * 512}', '{'?' * 32}']")
    assert _config(longest + "#" * (MAX_BYTES - len(longest))).resources


@pytest.mark.parametrize("text", ["0403", "1e10", "0658", "1234", "0e00"])
def test_ids_are_text_as_written(text: str) -> None:
    """What YAML would take for an octal, a float or an integer is four hex digits."""
    assert _patterns(_config(_entry(f"vendor: {text}"))) == {"vendor": [text]}


@pytest.mark.parametrize("text", ["null", "~", "yes", "0x", "1e10", "2024-01-01", "0o7", "Null", ".inf", "<<", "="])
def test_scalars_have_no_yaml_type(text: str) -> None:
    """A serial number that YAML has a meaning for is still that serial number."""
    assert _patterns(_config(_entry(f"serial: {text}"))) == {"serial": [text]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vendor: 10C4", {"vendor": ["10c4"]}),
        ("product: '8A*'", {"product": ["8a*"]}),
        ("vendor: ['0403', '[!A]?']", {"vendor": ["0403", "[!a]?"]}),
        ("interface: 1", {"interface": ["01"]}),
        ("interface: F", {"interface": ["0f"]}),
        ("interface: ['0?', 1A]", {"interface": ["0?", "1a"]}),
        ("serial: HUSB", {"serial": ["HUSB"]}),
        ("{serial: '', port: '', path: ''}", {"serial": [""], "port": [""], "path": [""]}),
        ("path: ['/dev/ttyUSB0', '*/zigbee', '?dev/x', '[/]dev']", None),
        (
            "properties: {ID_VENDOR_ID: '', 'odd name': x}",
            {"properties.ID_VENDOR_ID": [""], "properties.odd name": ["x"]},
        ),
    ],
)
def test_values_are_stored_as_they_are_compared(text: str, expected: dict[str, list[str]] | None) -> None:
    """Ids in lower case, interfaces with two digits, all else as written; the quoted empty text asks for absence."""
    found = _patterns(_config(_entry(text)))
    assert found == (expected or {"path": ["/dev/ttyUSB0", "*/zigbee", "?dev/x", "[/]dev"]})


HEX4, HEX2 = "four hex digits or a glob; ", "one or two hex digits or a glob; "
ABSENT = "for an absent one properties: "
PROPERTIES = "a mapping of udev properties to globs"
GLOB = 'a glob or a list of globs; write "" for an absent value'


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("vendor: 403", f"17: resources[0].match[0].vendor: '403' is not valid ({HEX4}write \"0403\")"),
        ("vendor: 0x43", f"17: resources[0].match[0].vendor: '0x43' is not valid ({HEX4}write \"0043\")"),
        ("vendor: 0x403", f"17: resources[0].match[0].vendor: '0x403' is not valid ({HEX4}write \"0403\")"),
        ("product: 0X8A2A", f"18: resources[0].match[0].product: '0X8A2A' is not valid ({HEX4}write \"8a2a\")"),
        (
            "vendor: 0658:0200",
            f'17: resources[0].match[0].vendor: \'0658:0200\' is not valid ({HEX4}write vendor: "0658" and product: "0200")',
        ),
        (
            "vendor: 10c45",
            f"17: resources[0].match[0].vendor: '10c45' is not valid ({HEX4}{ABSENT}{{ID_VENDOR_ID: \"\"}})",
        ),
        (
            "product: ''",
            f"18: resources[0].match[0].product: '' is not valid ({HEX4}{ABSENT}{{ID_MODEL_ID: \"\"}})",
        ),
        (
            "vendor:",
            f'16: resources[0].match[0].vendor: nothing stands here ({HEX4}{ABSENT}{{ID_VENDOR_ID: ""}})',
        ),
        ("interface: 0x1", f"20: resources[0].match[0].interface: '0x1' is not valid ({HEX2}write \"01\")"),
        (
            "interface: '001'",
            f"20: resources[0].match[0].interface: '001' is not valid ({HEX2}{ABSENT}{{ID_USB_INTERFACE_NUM: \"\"}})",
        ),
        ("serial:", f"16: resources[0].match[0].serial: nothing stands here ({GLOB})"),
        ("serial: [x, {}]", f"21: resources[0].match[0].serial[1]: a mapping with nothing in it stands here ({GLOB})"),
        (
            "serial: []",
            "17: resources[0].match[0].serial: a list with nothing in it stands here (a list of at least one)",
        ),
        (
            "path: dev/x",
            "15: resources[0].match[0].path: 'dev/x' is not valid (an absolute path, a glob or a list of them)",
        ),
        (
            "properties: x",
            "21: resources[0].match[0].properties: text stands here (a mapping of udev properties to globs)",
        ),
        (
            "properties: {}",
            f"21: resources[0].match[0].properties: a mapping with nothing in it stands here ({PROPERTIES})",
        ),
        (
            "properties: {'': x}",
            "22: resources[0].match[0].properties: a property without a name (such as ID_MODEL)",
        ),
        ("properties: {A B: }", None),
        ("serial: " + "x" * 513, None),
        ("serial: '" + "*" * 33 + "'", None),
        (
            "{}",
            "9: resources[0].match[0]: a mapping with nothing in it stands here (a mapping with "
            + ", ".join(KEYS)
            + ")",
        ),
        ("vendr: x", f"9: resources[0].match[0].vendr: unknown key ({', '.join(KEYS)}; did you mean vendor?)"),
        ("{serial: x, serial: y}", "21: resources[0].match[0].serial: duplicate key (the first is in line 4)"),
    ],
)
def test_a_wrong_pattern_says_what_is_allowed(text: str, fault: str | None) -> None:
    """Every value of a match entry that cannot be meant is a fault at the value, with the way out."""
    others = {
        "properties: {A B: }": "resources[0].match[0].properties.'A B': nothing stands here",
        "serial: x": "is not valid (at most 512 characters and 32 of * ? [)",
        "serial: '": "is not valid (at most 512 characters and 32 of * ? [)",
    }
    (found,) = _faults(_entry(text))
    if fault is None:
        assert next(part for start, part in others.items() if text.startswith(start)) in found
    else:
        assert found == f"4:{fault}"


ONE_OF = "(name, match, exclude, subsystem, count, publish, container, nodes, removalGrace, evict"
ANY_OTHER = "tty, usb, hidraw, video4linux or another udev subsystem whose devices have a character devnode"
NO_DISK = "a block device has no character devnode, and Pods get disks as volumes"
NO_INTERFACE = "a network interface has no devnode, and Pods get interfaces from network plugins"
WHOLE = "the whole USB device is called usb"
WAYS = "nodeStatus or devicePlugin or dra"
BELOW_DEV = "an absolute path below /dev without ., .., a comma or white space in it"
TIME = "a duration such as 500ms, 2s, 5m or 1h, from"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("subsystem: block", f"16: resources[0].subsystem: 'block' is not valid ({NO_DISK}; {ANY_OTHER})"),
        ("subsystem: net", f"16: resources[0].subsystem: 'net' is not valid ({NO_INTERFACE}; {ANY_OTHER})"),
        ("subsystem: usb_device", f"16: resources[0].subsystem: 'usb_device' is not valid ({WHOLE}; {ANY_OTHER})"),
        ("subsystem: USB", f"16: resources[0].subsystem: 'USB' is not valid ({ANY_OTHER})"),
        ("subsystem: ../misc", f"16: resources[0].subsystem: '../misc' is not valid ({ANY_OTHER})"),
        ("subsystem: [usb]", f"16: resources[0].subsystem: a list stands here ({ANY_OTHER})"),
        ("subsystem: ''", f"16: resources[0].subsystem: '' is not valid ({ANY_OTHER})"),
        ("count: devices", "12: resources[0].count: 'devices' is not valid (device or devnode)"),
        ("count:", "11: resources[0].count: nothing stands here (device or devnode)"),
        ("publish: deviceplugin", f"14: resources[0].publish: 'deviceplugin' is not valid ({WAYS})"),
        ("publish: ''", f"14: resources[0].publish: '' is not valid ({WAYS})"),
        ("publish:", f"13: resources[0].publish: nothing stands here ({WAYS})"),
        ("publish: [nodeStatus]", f"14: resources[0].publish: a list stands here ({WAYS})"),
        ("container: /dev/x", "16: resources[0].container: text stands here (a mapping with path)"),
        (
            "container: {paths: /dev/x, path: /dev/x}",
            "17: resources[0].container.paths: unknown key (path; did you mean path?)",
        ),
        (
            "container: {path: /dev/x}",
            "5: resources[0].container: no device is handed over (only with publish: devicePlugin or dra)",
        ),
        ("container: {path: }", f"23: resources[0].container.path: nothing stands here ({BELOW_DEV})"),
        ("nodes: ''", "12: resources[0].nodes: '' is not valid (a glob of node names or a list of them)"),
        ("nodes: []", "12: resources[0].nodes: a list with nothing in it stands here (a list of at least one)"),
        ("exclude: x", "14: resources[0].exclude: text stands here (a list, [] for none)"),
        ("removalGrace: 2", f"19: resources[0].removalGrace: '2' is not valid ({TIME} 0s to 1h)"),
        ("removalGrace: 61m", f"19: resources[0].removalGrace: '61m' is not valid ({TIME} 0s to 1h)"),
        ("removalGrace: 1.5s", f"19: resources[0].removalGrace: '1.5s' is not valid ({TIME} 0s to 1h)"),
        ("removalGrace: -1s", f"19: resources[0].removalGrace: '-1s' is not valid ({TIME} 0s to 1h)"),
        ("removalGrace: \u0662s", f"19: resources[0].removalGrace: '\\u0662s' is not valid ({TIME} 0s to 1h)"),
        (
            "removalGrace: " + "9" * 5000 + "h",
            f"19: resources[0].removalGrace: '{'9' * 56}... is not valid ({TIME} 0s to 1h)",
        ),
        ("removalgrace: 2s", f"5: resources[0].removalgrace: unknown key {ONE_OF}; did you mean removalGrace?)"),
        ("zzz: 2s", f"5: resources[0].zzz: unknown key {ONE_OF})"),
        ("evict: 30s", "12: resources[0].evict: text stands here (a mapping with after)"),
        ("evict: {}", "12: resources[0].evict: a mapping with nothing in it stands here (a mapping with after)"),
        ("evict: {after: 25h}", f"20: resources[0].evict.after: '25h' is not valid ({TIME} 0s to 24h)"),
        ("name: c/d", "5: resources[0].name: duplicate key (the first is in line 2)"),
    ],
)
def test_a_wrong_resource_says_what_is_allowed(text: str, fault: str) -> None:
    """Every key of a resource is checked at its own place."""
    assert _faults(_with(text)) == [f"5:{fault}"]


@pytest.mark.parametrize(
    "path", ["/dev/x", "/dev/bus/usb/x", "/dev/.hidden", "/dev/..x", "/dev/x..", "/dev/" + "x" * 507]
)
def test_a_path_in_the_container_is_any_clean_one_below_dev(path: str) -> None:
    """It is taken as written."""
    (rule,) = _config(_with(f"publish: devicePlugin\n    container: {{path: '{path}'}}")).resources
    assert rule.container_path == path


@pytest.mark.parametrize(
    "path",
    [
        "", "x", "dev/x", "/", "/dev", "/dev/", "/dev//x", "//dev/x", "/dev/x/", "/dev/x//y", "/dev/.", "/dev/..", "/dev/../etc/x",
        "/dev/x/../y", "/dev/x/./y", "/dev/x/..", "/dev/a b", "/dev/a,b", "/devx", "/run/x", "/DEV/x", "/dev/" + "x" * 508,
    ],
)  # fmt: skip
def test_a_path_in_the_container_that_is_not_clean_says_what_is(path: str) -> None:
    """The container runtime would make it elsewhere, or not at all."""
    (fault,) = _faults(_with(f'container: {{path: "{path}"}}'))
    assert fault.startswith("5:23: resources[0].container.path: ")
    assert fault.endswith(f" is not valid ({BELOW_DEV})")


@pytest.mark.parametrize("way", ["devicePlugin", "dra"])
def test_a_device_that_is_handed_over_has_a_path_in_the_container(way: str) -> None:
    """Whoever hands it over."""
    (rule,) = _config(_with(f"publish: {way}\n    container: {{path: /dev/x}}")).resources
    assert (rule.publish.value, rule.container_path) == (way, "/dev/x")


def test_a_name_fits_into_an_attribute_of_a_slice() -> None:
    """A longer one would be cut, and no class would select its devices."""
    name = "example.com/" + "x" * 53
    text = f"resources: [{{name: {name}, match: [{{port: x}}], publish: %s}}]"
    assert _config(text % "devicePlugin").resources[0].name == name
    assert _config((text % "dra").replace("xx", "x", 1)).resources[0].publish is Publish.DRA
    assert _faults(text % "dra") == ["1:20: resources[0].name: has 65 characters (at most 64 with publish: dra)"]


def test_a_file_that_every_container_needs_is_no_path_for_a_device() -> None:
    """Every `> /dev/null` would write to the stick; also where the name of the resource leads there."""
    wanted = "is a file that every container needs: choose another with container: {path: /dev/...}"
    written = _faults(_with("publish: devicePlugin\n    container: {path: /dev/pts/7}"))
    assert written == [f"6:5: resources[0].container: /dev/pts/7 {wanted}"]
    implied = _faults(_with("publish: devicePlugin").replace("a/b", "a/null"))
    assert implied == [f"2:5: resources[0].container: /dev/null {wanted}"]


def test_an_unknown_key_hides_no_missing_one() -> None:
    """Both the key that is too much and the one that is too little are named."""
    found = _faults(_with("evict: {aftr: 30s}"))
    assert found == [
        "5:12: resources[0].evict.after: is missing (it is required)",
        "5:13: resources[0].evict.aftr: unknown key (after; did you mean after?)",
    ]


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("sweep: 1s", ["1:1: resources: is missing (it is required)"]),
        ("- x", ["1:1: a list stands here (a mapping with resources, sweep, resync)"]),
        ("x", ["1:1: text stands here (a mapping with resources, sweep, resync)"]),
        ("", ["1:1: nothing stands here (a mapping with resources, sweep, resync)"]),
        ("# nothing yet\n", ["1:1: nothing stands here (a mapping with resources, sweep, resync)"]),
        ("resources: {}", ["1:12: resources: a mapping with nothing in it stands here (a list, [] for none)"]),
        (
            "resources: {a: b}",
            ['1:12: resources: a mapping stands here (a list, [] for none; begin its first line with "- ")'],
        ),
        (
            "resources:\n- name: a/b\n  match:\n    vendor: '0658'",
            ['4:5: resources[0].match: a mapping stands here (a list of at least one; begin its first line with "- ")'],
        ),
        ("resources: [{name: a/b}]", ["1:13: resources[0].match: is missing (it is required)"]),
        (
            "resources: [{name: a/b, match: []}]",
            ["1:32: resources[0].match: a list with nothing in it stands here (a list of at least one)"],
        ),
        ("resources:", ["1:11: resources: nothing stands here (a list, [] for none)"]),
        ("resources: []\nsweep: 301s", [f"2:8: sweep: '301s' is not valid ({TIME} 1s to 5m)"]),
        ("resources: []\nresync: 999ms", [f"2:9: resync: '999ms' is not valid ({TIME} 1s to 24h)"]),
        ("resources: []\n---\nsweep: 1s", ["2:1: a second document begins (one document)"]),
        ("resources: []\n? [a]\n: b", ["2:3: a collection as a key (text)"]),
        ("resources: []\n? {a: b}\n: b", ["2:3: a collection as a key (text)"]),
        ("resources: &x []\n", ["1:12: resources: an anchor (the value alone)"]),
        ("resources: *x\n", ["1:12: resources: an alias (the value itself, written out)"]),
        ("resources: []\n*x : y\n", ["2:1: an alias (the value itself, written out)"]),
        ("*x", ["1:1: an alias (the value itself, written out)"]),
        ("resources: []\nsweep: !!str 5s\n", ["2:8: sweep: a tag (the value alone; every scalar is text)"]),
        ("resources: !t []\n", ["1:12: resources: a tag (the value alone; every scalar is text)"]),
        (
            'resources: []\nsweep: "\\0"',
            [
                "2:8: sweep: a NUL or half a surrogate pair in text (what a device can hold)",
                f"2:8: sweep: '\\x00' is not valid ({TIME} 1s to 5m)",
            ],
        ),
        (
            'resources: []\n"\\e[2J": x\n',
            ["2:1: '\\x1b[2J': unknown key (resources, sweep, resync)"],
        ),
        (b"resources: []\nsw\xc3\xa4\xff: x", ["2:4: byte ff stands here (printable text in UTF-8)"]),
        (b"\xff\xfer\0", ["1:1: byte ff stands here (printable text in UTF-8)"]),
        (b"a: b\r\nc: \x1b[2J", ["2:4: byte 1b stands here (printable text in UTF-8)"]),
        (b"a: \xef\xbb\xbf", ["1:4: byte ef bb bf stands here (printable text in UTF-8)"]),
        (b"x" * (MAX_BYTES + 1), ["1:1: the file has more than 262144 bytes (the most that is read)"]),
        ("[" * 100_000, ["1:17: nested too deeply (at most 16 levels)"]),
        ("[" + "a," * 9000 + "]", ["1:16382: too much content (at most 8192 values, beginnings and ends)"]),
    ],
)
def test_a_file_that_is_no_configuration_says_where(text: str | bytes, faults: list[str]) -> None:
    """Whatever is wrong with the file as a whole is said at its place, and indirections are not followed."""
    assert _faults(text) == faults


@pytest.mark.parametrize("text", ["a: [", "a: 'x", "a: b: c", "a:\n\t- x", "%YAML 9.0\n---\na: b", "a: !x!y z", "@"])
def test_broken_syntax_is_one_fault(text: str) -> None:
    """A file that is not YAML has one fault, at the place that the parser names."""
    (found,) = _faults(text)
    assert ": invalid YAML: " in found
    assert "\\n" not in found
    assert found.endswith(" (a tab stands here: indent with spaces)") == ("\t" in text)


def test_all_faults_come_at_once_by_line_and_column() -> None:
    """One run of the check is enough to correct a file."""
    text = """\
resync: 1ms
resources:
  - match: [{vendor: 403, product: 1}]
    name: zigbee
  - name: &a a/b
    match: [{serial: [*a, ]}, x]
    evict: {after: soon}
sweep: 5
sweep: 6
"""
    places = [found.split(" ")[0] + " " + found.split(" ")[1] for found in _faults(text)]
    assert places == [
        "1:9: resync:",
        "3:22: resources[0].match[0].vendor:",
        "3:36: resources[0].match[0].product:",
        "4:11: resources[0].name:",
        "5:11: resources[1].name:",
        "6:23: resources[1].match[0].serial[0]:",
        "6:31: resources[1].match[1]:",
        "7:20: resources[1].evict.after:",
        "8:8: sweep:",
        "9:1: sweep:",
    ]


def test_very_many_faults_are_cut() -> None:
    """A hundred faults are shown, and that there are more."""
    text = "resources: []\n" + "".join(f"key{index}: x\n" for index in range(200))
    found = _faults(text)
    assert len(found) == 101
    assert found[99:] == ["101:1: key99: unknown key (resources, sweep, resync)", "101:1: more faults not shown"]
    assert len(_faults("resources: []\n" + "".join(f"key{index}: x\n" for index in range(100)))) == 100


def test_an_alias_bomb_is_only_a_list_of_faults() -> None:
    """Aliases are not expanded, so they cost nothing."""
    levels = [f"b{index}: &b{index} [*b{index - 1}, *b{index - 1}]" for index in range(1, 60)]
    found = _faults("\n".join(["b0: &b0 [x]", *levels]))
    assert found[0] == "1:5: b0: an anchor (the value alone)"
    assert found[-1].endswith("more faults not shown")


def test_one_name_is_one_resource() -> None:
    """A second resource of the same name is a fault that names the first."""
    text = _with("count: device") + "  - match: [{serial: y}]\n    name: a/b\n"
    assert _faults(text) == ["7:11: resources[1].name: 'a/b' is taken (each name once; the first is in line 2)"]


def test_a_resource_without_a_name_is_told_so_once() -> None:
    """What stands in place of a name or of a resource is said at its place."""
    text = "resources: [x, {match: [{serial: x}]}, {name: [a/b], match: [{serial: x}]}, {name: , match: [{serial: x}]}]"
    assert [found.split("(")[0] for found in _faults(text)] == [
        "1:13: resources[0]: text stands here ",
        "1:16: resources[1].name: is missing ",
        "1:47: resources[2].name: a list stands here ",
        "1:84: resources[3].name: nothing stands here ",
    ]


def test_names_must_fit_the_annotation() -> None:
    """What devwatch owns is written on the Node in 16 KiB: more names than that are refused here, not there."""
    resources = "".join(f"  - {{name: {'a' * 200}/b{index}, match: [{{serial: x{index}}}]}}\n" for index in range(80))
    (found,) = _faults(f"resources:\n{resources}")
    assert found == "2:3: resources: the names take 16791 bytes of the Node's annotation (at most 16384)"
    kept = resources.splitlines(keepends=True)[:77]
    last = f"  - {{name: {'a' * 215}/b, match: [{{serial: x}}]}}\n"
    assert len(_config(f"resources:\n{''.join(kept)}{last}").resources) == 78
    (found,) = _faults(f"resources:\n{''.join(kept)}{last.replace('/b', '/bb')}")
    assert "the names take 16385 bytes" in found


@pytest.mark.parametrize(
    "name",
    ["aeotec/zstick", "nortek.com/zigbee", "a/b", "1.2/3", "a-b.c/A_b.c-D", f"{'a' * 244}/{'b' * 63}", "xrequests.a/b"],
)
def test_a_name_that_pods_can_ask_for_is_valid(name: str) -> None:
    """A prefix without a dot is valid; lengths are those of the Pod API."""
    assert resource_name_fault(name) == ""


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("zigbee", "PREFIX/NAME"),
        ("", "PREFIX/NAME"),
        ("kubernetes.io/zigbee", "kubernetes.io/"),
        ("x.kubernetes.io/zigbee", "kubernetes.io/"),
        ("requests.a/b", "requests."),
        ("/b", "before the /"),
        ("Example.com/x", "before the /"),
        ("a..b/x", "before the /"),
        ("-a/x", "before the /"),
        ("a_b/x", "before the /"),
        ("a\n/x", "before the /"),
        (f"{'a' * 245}/b", "before the /"),
        ("a/", "after the /"),
        ("a/b/c", "after the /"),
        ("a/-b", "after the /"),
        ("a/b\n", "after the /"),
        ("a/\u00fc", "after the /"),
        (f"a/{'b' * 64}", "after the /"),
    ],
)
def test_a_name_that_no_pod_can_ask_for_says_why(name: str, part: str) -> None:
    """The API server would store it, and no Pod could ever request it."""
    assert part in resource_name_fault(name)


def test_the_path_in_containers_is_given_or_made_of_the_name() -> None:
    """The default is below /dev, with the part of the name after the slash."""
    (given,) = _config(_with("publish: devicePlugin\n    container: {path: /dev/by/me}")).resources
    (default,) = _config(_with("publish: devicePlugin")).resources
    (pods,) = _config(_with("count: device")).resources
    assert (given.publish, given.container_path) == (Publish.DEVICE_PLUGIN, "/dev/by/me")
    assert (default.publish, default.container_path) == (Publish.DEVICE_PLUGIN, "/dev/b")
    assert pods.publish is Publish.NODE_STATUS


def test_a_shadowed_resource_is_a_warning_at_its_name() -> None:
    """The file is valid, and what can never count anything is said once, at its first shadow."""
    text = _with("count: device") + "  - {name: a/c, match: [{serial: x, vendor: '0403'}]}\n"
    text += "  - {name: a/d, match: [{serial: x}]}\n  - {name: a/e, match: [{serial: y}]}\n"
    text += "  - {name: a/f, match: [{serial: x}]}\n"
    warnings = [warning.render("c.yaml") for warning in _config(text).warnings]
    assert warnings == [
        "c.yaml:6:12: resources[1].name: never claims a device: a/b (line 2) comes first and claims them all",
        "c.yaml:7:12: resources[2].name: never claims a device: a/b (line 2) comes first and claims them all",
        "c.yaml:9:12: resources[4].name: never claims a device: a/b (line 2) comes first and claims them all",
    ]


@pytest.mark.parametrize(
    ("earlier", "later", "why"),
    [
        ("{name: a.io/stick", "{name: b.io/stick", "both are at /dev/stick"),
        (
            "{name: a.io/x, container: {path: /dev/bus/x}",
            "{name: b.io/y, container: {path: /dev/bus/x}",
            "both are at /dev/bus/x",
        ),
        ("{name: a.io/zigbee", "{name: b.io/zigbee1", "/dev/zigbee and /dev/zigbee1 meet"),
        ("{name: a.io/zigbee12", "{name: b.io/zigbee", "/dev/zigbee and /dev/zigbee12 meet"),
        ("{name: a.io/x", "{name: b.io/y, container: {path: /dev/x/y}", "/dev/x and /dev/x/y meet"),
        ("{name: a.io/x, container: {path: /dev/x1/y}", "{name: b.io/x", "/dev/x and /dev/x1/y meet"),
        ("{name: a.io/b-c", "{name: a.io/b_c", "both set DEVICE_A_IO_B_C"),
        ("{name: a.io/zigbee", "{name: b.io/zigbee0", ""),
        ("{name: a.io/zigbee", "{name: b.io/zigbee01", ""),
        ("{name: a.io/zigbee", "{name: b.io/zigbees", ""),
        ("{name: a.io/zigbee", "{name: b.io/zwave", ""),
    ],
)
def test_what_no_container_can_have_together_is_a_warning(earlier: str, later: str, why: str) -> None:
    """The kubelet hands both over, at paths or in variables of which one would hide the other; also by the number of a further device."""
    more = "match: [{serial:"
    text = (
        f"resources:\n  - {earlier}, publish: dra, {more} x}}]}}\n  - {later}, publish: devicePlugin, {more} y}}]}}\n"
    )
    name = earlier.removeprefix("{name: ").partition(",")[0]
    warnings = [warning.render("c.yaml") for warning in _config(text).warnings]
    where = f"c.yaml:3:12: resources[1].name: no container can have both {name} (line 2) and this: {why}"
    assert warnings == ([where] if why else [])


@pytest.mark.parametrize("ways", [("nodeStatus", "nodeStatus"), ("devicePlugin", "nodeStatus"), ("nodeStatus", "dra")])
def test_paths_meet_only_where_the_kubelet_hands_over(ways: tuple[str, str]) -> None:
    """With nodeStatus a pod mounts what it likes, where it likes."""
    lines = [
        f"  - {{name: {part}.io/x, publish: {way}, match: [{{serial: {part}}}]}}\n"
        for part, way in zip("ab", ways, strict=True)
    ]
    assert _config("resources:\n" + "".join(lines)).warnings == ()


@pytest.mark.parametrize(
    ("entry", "where"),
    [
        ("serial: '0001'", "4:17: resources[0].match[0].serial"),
        ("{vendor: 10c4, serial: ['0001', mine]}", "4:32: resources[0].match[0].serial"),
        ("path: /dev/serial/by-id/usb-Silicon_Labs_CP2102_0001-if00-port0", "4:15: resources[0].match[0].path"),
        ("{serial: '0001', port: '*-usb-0:1:*'}", ""),
        ("serial: '00010'", ""),
        ("path: /dev/serial/by-id/usb-X_A0001-if00-port0", ""),
        ("properties: {ID_MODEL: '0001'}", ""),
    ],
)
def test_a_serial_of_many_devices_is_a_warning(entry: str, where: str) -> None:
    """It is in the rule to tell one device from all others, which it does not; with the port beside it nothing depends on it."""
    warnings = [warning.render("c.yaml") for warning in _config(_entry(entry)).warnings]
    start = f"c.yaml:{where}: many devices have the serial 0001 (bridge chips CP2102"
    assert [warning[: len(start)] for warning in warnings] == ([start] if where else [])


def test_a_key_under_properties_is_no_warning() -> None:
    """Whoever writes ID_VENDOR_ID as a property means it."""
    assert _config(_entry("properties: {ID_VENDOR_ID: 10c4}")).warnings == ()


def test_very_many_resources_are_still_a_configuration() -> None:
    """The search for shadows ends where it would take long; the resources are all there."""
    same = [f"  - {{name: a/b{index}, match: [{{serial: x}}]}}\n" for index in range(500)]
    other = [f"  - {{name: a/b{index}, match: [{{serial: x{index % 499}}}]}}\n" for index in range(500)]
    shadowed, too_far = (_config("resources:\n" + "".join(lines)) for lines in (same, other))
    assert (len(shadowed.resources), len(shadowed.warnings)) == (500, 101)
    assert (len(too_far.resources), len(too_far.warnings)) == (500, 0)


# The values that a file of this grammar may hold; flow style is JSON, which is YAML.
_plain = st.sampled_from(
    ("a/b", "c/d", "0403", "403", "x*", "", "2s", "99h", "device", "/dev/x", "n-*", "[[]", "[!a-", "1")
)
_names = st.sampled_from((*KEYS, "name", "match", "exclude", "count", "nodes", "removalGrace", "evict", "after", "odd"))
_nodes = st.recursive(
    _plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=4),
    max_leaves=10,
)
_words = ("resources", "name", "match", "x/y", "{", "}", "[", "]", ", ", ": ", "- ", "? ", "\n", "\n  ", "&a ", "*a ")
_signs = (
    "|\n",
    ">",
    "#",
    "'",
    '"',
    "\\",
    "!t ",
    "%YAML 1.1\n",
    "---\n",
    "...\n",
    "\r",
    "\t",
    "\x85",
    "\u2028",
    "\ufeff",
)
_tokens = st.sampled_from((*_words, *_signs))


def _bytes() -> st.SearchStrategy[bytes]:
    grammar = st.fixed_dictionaries({"resources": st.lists(_nodes, max_size=3)}, optional={"sweep": _nodes})
    text = st.lists(_tokens, max_size=40).map("".join) | grammar.map(json.dumps)
    return st.binary(max_size=200) | text.map(str.encode)


@given(_bytes())
def test_any_bytes_are_a_configuration_or_a_list_of_faults(data: bytes) -> None:
    """Nothing but `ConfigError` ever comes out, its lines are printable ASCII in order, and places are real."""
    config, faults = _outcome(data)
    lines = [fault.render("f") for fault in faults]
    assert all(line.isascii() and line.isprintable() for line in lines)
    places = [(fault.line, fault.column) for fault in faults]
    assert places == sorted(places)
    assert min(places, default=(1, 1)) >= (1, 1)
    assert (config is None) is bool(faults)


def _outcome(data: bytes, file: str = "f") -> tuple[Config | None, tuple[Fault, ...]]:
    config, faults = None, tuple[Fault, ...]()
    try:
        config = parse(data, file=file)
    except ConfigError as error:
        faults = error.faults
    assert disagreement(data, faults) == ""
    return config, faults


_globs = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def _values(values: st.SearchStrategy[str]) -> st.SearchStrategy[str | list[str]]:
    return values | st.lists(values, min_size=1, max_size=3)


@given(
    st.dictionaries(st.sampled_from(("serial", "port")), _values(_globs), min_size=1),
    st.dictionaries(_globs.filter(bool), _values(_globs), min_size=1, max_size=3),
)
def test_any_text_can_be_matched(keys: dict[str, str | list[str]], properties: dict[str, str | list[str]]) -> None:
    """Every text that a device can hold can be written, and is compared as written."""
    tests = [f"{_escaped(key)}: {_escaped(value)}" for key, value in keys.items()]
    named = [f"{_escaped(name)}: {_escaped(value)}" for name, value in properties.items()]
    expected = keys | {f"properties.{name}": value for name, value in properties.items()}
    lists = {key: value if isinstance(value, list) else [value] for key, value in expected.items()}
    text = ", ".join([*tests, "properties: {" + ", ".join(named) + "}"])
    assert _patterns(_config(_entry("{" + text + "}"))) == lists


def _escaped(value: str | list[str]) -> str:
    """Return text, or a list of texts, in YAML's double quotes with every character escaped."""
    if isinstance(value, list):
        return f"[{', '.join(map(_escaped, value))}]"
    return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'


def _documents() -> Iterator[str]:
    """Yield texts of which both parsers must say the same, and one that only the slow one lets through."""
    yield from (
        FULL,
        "",
        "resources: []\n---\na: b",
        "[" * 1000,
        _entry("vendor: 403"),
        _entry("serial:"),
        _with("evict:"),
    )
    yield "a: &x [1]\nb: *x\nc: !!str d\n? [e]\n: f\n"


def test_the_parser_in_pure_python_says_the_same() -> None:
    """Where PyYAML comes without its C library, configurations and faults are the same, and odd escapes are a fault."""
    odd = ['a: "\\UFFFFFFFF"', 'a: "\\U00110000"', 'a: "\\ud800"']
    program = (
        "import json, sys\n"
        "sys.modules['yaml.cyaml'] = None\n"
        "from devwatch.config.schema import parse\n"
        "from devwatch.core.errors import ConfigError\n"
        "for text in json.load(sys.stdin):\n"
        "    try:\n"
        "        print(repr(str(parse(text.encode(), file='c.yaml'))))\n"
        "    except ConfigError as error:\n"
        "        print(repr(str(error)))\n"
    )
    texts = [*_documents(), *odd]
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(texts), capture_output=True, check=True, text=True
    )
    lines = done.stdout.splitlines()
    assert lines[: -len(odd)] == [repr(_said(text)) for text in _documents()]
    assert all("c.yaml:1:" in line for line in lines[-len(odd) :])
    assert len(lines) == len(texts)


def _said(text: str) -> str:
    try:
        return str(_config(text))
    except ConfigError as error:
        return str(error)


def test_a_configuration_holds_rules() -> None:
    """What comes out needs no further reading."""
    assert all(isinstance(rule, ResourceRule) for rule in _config(FULL).resources)


FIRST, SECOND = "{vendor: 1a6e, product: 089a}", "{vendor: 18d1, product: '9302'}"


@pytest.mark.parametrize(
    ("match", "warning"),
    [
        (f"[{FIRST}, {SECOND}]", ""),
        ("[{vendor: [1a6e, 18d1], product: [089a, '9302']}]", ""),
        (f"[{FIRST}, {{port: x}}]", ""),
        ("[{vendor: 1a6e}]", ""),
        (f"[{FIRST}]", "1a6e:089a has the ids 18d1:9302 in its other state"),
        (f"[{SECOND}, {{vendor: '0403'}}]", "18d1:9302 has the ids 1a6e:089a in its other state"),
        ("[{vendor: '0403', interface: '00'}]", "a whole USB device has no interface"),
    ],
)
def test_what_cannot_be_meant_for_a_usb_device_is_a_warning(match: str, warning: str) -> None:
    """It is valid, and would count nothing, or nothing from the first use on."""
    config = _config(f"resources:\n- {{name: a/b, subsystem: usb,\n   match: {match}}}\n")
    said = [fault for fault in config.warnings if fault.path == "resources[0].match"]
    assert [warning in fault.message for fault in said] == ([True] if warning else [])
    assert all((fault.line, fault.column) == (3, 4) for fault in said)


def test_a_tty_has_an_interface() -> None:
    """There is nothing to warn of."""
    assert _config("resources: [{name: a/b, match: [{vendor: '0403', interface: '00'}]}]").warnings == ()
