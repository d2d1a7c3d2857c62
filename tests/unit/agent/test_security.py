"""Whoever makes a stick decides what it says of itself, and nothing else."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING

import pytest

from devwatch.agent.report import Reporter
from devwatch.core.claims import cdi_devices
from devwatch.core.handover import link_names
from devwatch.core.inventory import Inventory
from devwatch.core.node import NodeState
from devwatch.core.plan import Tally
from devwatch.core.rules import Count
from devwatch.core.slices import MAX_ATTRIBUTE, devices_of
from devwatch.core.slots import Slots
from devwatch.kubelet.cdi import CdiFolder
from devwatch.kubelet.claimrecord import ClaimRecord
from devwatch.kubelet.links import DeviceLinks
from devwatch.observe import logs
from devwatch.observe.health import Health
from devwatch.observe.metrics import Metrics
from fuzz.targets import TARGETS
from support.build import ZIGBEE, device, rule, scan
from support.claims import UID, known, prepared

if TYPE_CHECKING:
    from pathlib import Path

    from devwatch.core.slots import Slot

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""A DNS label (RFC 1123)."""
HOSTILE = {
    "colours": "\x1b[31mA",
    "a title": "\x1b]0;owned\x07",
    "an 8-bit control": "\x9b2J",
    "a line end": "A\nerror: all is lost",
    "a carriage return": "A\r\x1b[K",
    "a line separator": "A\u2028B\u2029C\x85D",
    "right to left": "\u202eA\u2066B",
    "a zero width": "A\u200b\u2060B\ufeff",
    "a JSON end": 'A"}]},"b.io/c":[{"devnode":"',
    "a YAML end": 'A"\n  - name: b.io/c\n    match: [{vendor: "*"}]',
    "a metric": 'A"} 1\ndevwatch_devices{resource="b.io/c"} 99',
    "a format": "{0.__class__} %(x)s %n ${HOME} $(id) `id`",
    "fields": "A resource=b.io/c level=error",
    "globs": "*[!a]?[[]",
    "a path": "../../etc/passwd",
    "a nul": "A\x00B\\x00C\\0D\\u0000E%00F",
    "bytes that are no UTF-8": "A\udcff\udc80B",
    "an emoji of many characters": "\U0001f469\u200d\U0001f469\u200d\U0001f467" * 30,
    "300 characters": "\u00e9" * 300,
    "length": "A" * 100_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("key", ["ID_SERIAL_SHORT", "ID_MODEL", "ID_MODEL_FROM_DATABASE", "ID_PATH", "DEVLINKS"])
def test_a_hostile_stick_fools_neither_terminal_nor_parser(key: str, text: str) -> None:
    """In log, table, suggestion, annotation and Event every line is ours, and every character harmless."""
    with TARGETS["record"].open() as feed:
        feed(f"ID_VENDOR_ID=0403\0ID_MODEL_ID=6001\0{key}={text}".encode(errors="surrogateescape"))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_text_of_a_stick_gets_into_the_metrics(text: str) -> None:
    """Neither as a label nor as a line: their number and their content are the configuration's."""
    metrics, plain = Metrics("0"), Metrics("0")
    for filled, serial in ((metrics, text), (plain, "A1")):
        stick = device(serial=serial, port=text if serial is text else "A1", links=(f"/dev/{serial}",))
        seen, inventory = scan(stick), Inventory()
        inventory.observe(seen)
        figures = Tally((rule(ZIGBEE),)).count(inventory, NodeState(), 0)
        log = logs.configure("json", "debug", io.StringIO())
        reporter = Reporter(log=log, metrics=filled, health=Health(sweep=1, last_cycle=0))
        reporter.devices(figures, inventory.present, {}, seen)
    assert metrics.render() == plain.render()
    assert f'devwatch_devices{{resource="{ZIGBEE}"}} 1.0'.encode() in metrics.render()


def hostile_slot(text: str) -> Slot:
    """Return what is offered of a stick that says this of itself, wherever it can."""
    said = dict.fromkeys(("serial", "port", "interface", "vendor", "product"), text)
    stick = device(**said, links=(f"/dev/serial/by-id/{text}",), properties={"ID_MODEL": text, "ID_SERIAL": text})
    (slot,) = Slots(ZIGBEE, Count.DEVICE, ()).update((stick,), 1, certain=True)
    return slot


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_the_id_of_a_hostile_stick_is_a_label_and_its_links_stay_in_their_folder(text: str, tmp_path: Path) -> None:
    """A DNS label names it to the kubelet, in the slice and in the folder; what is handed out leads to its devnode."""
    slot = hostile_slot(text)
    assert LABEL.fullmatch(slot.id)
    wanted = dict(link_names(slot))
    links = DeviceLinks(tmp_path)
    links.update(wanted)
    made = {path.name: str(path.readlink()) for path in links.folder.iterdir()}
    assert made == wanted == {slot.id: "/dev/ttyUSB0"}
    assert [path.name for path in tmp_path.iterdir()] == [links.folder.name]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_text_of_a_stick_gets_into_the_cdi_file(text: str, tmp_path: Path) -> None:
    """The container runtime reads there which devnodes, mounts and variables a container gets. The record of the claim keeps the serial."""
    for name, said in (("hostile", text), ("plain", "A1")):
        slot = hostile_slot(said)
        claim = prepared(slot.id, known=known(identity=slot.identity))
        CdiFolder(tmp_path / name).update({UID: cdi_devices(claim, {slot.id: ["/dev/ttyUSB0"]})})
        record = ClaimRecord(tmp_path)
        record.write([claim])
        assert record.read() == ((claim,), "")
    hostile, plain = (next((tmp_path / name).iterdir()).read_bytes() for name in ("hostile", "plain"))
    assert hostile == plain


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_the_slice_of_a_hostile_stick_has_values_that_the_server_takes(text: str) -> None:
    """Each is printable, and at most 64 bytes of UTF-8; no attribute and no device comes of it that is not devwatch's."""
    (found,) = devices_of([(ZIGBEE, hostile_slot(text))], None)
    (plain,) = devices_of([(ZIGBEE, hostile_slot("A1"))], None)
    assert found.attributes.keys() == plain.attributes.keys()
    assert found.attributes["resource"] == ZIGBEE
    for value in map(str, found.attributes.values()):
        assert value.isprintable()
        assert len(value.encode()) <= MAX_ATTRIBUTE
    assert LABEL.fullmatch(found.name)
    assert json.loads(json.dumps(found.body())) == found.body()
