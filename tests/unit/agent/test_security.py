"""Whoever makes a stick decides what it says of itself, and nothing else."""

from __future__ import annotations

import io

import pytest

from devwatch.agent.report import Reporter
from devwatch.core.inventory import Inventory
from devwatch.core.node import NodeState
from devwatch.core.plan import Tally
from devwatch.observe import logs
from devwatch.observe.health import Health
from devwatch.observe.metrics import Metrics
from fuzz.targets import TARGETS
from support.build import ZIGBEE, device, rule, scan

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
    "length": "A" * 100_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("key", ["ID_SERIAL_SHORT", "ID_MODEL", "ID_MODEL_FROM_DATABASE", "ID_PATH", "DEVLINKS"])
def test_a_hostile_stick_fools_neither_terminal_nor_parser(key: str, text: str) -> None:
    """In log, table, suggestion, annotation and Event every line is ours, and every character harmless."""
    with TARGETS["record"].open() as feed:
        feed(f"ID_VENDOR_ID=0403\0ID_MODEL_ID=6001\0{key}={text}".encode())


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
