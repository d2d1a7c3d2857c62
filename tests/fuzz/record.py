"""The udev record of a device: whatever it holds, devwatch counts, tells and shows it without being fooled."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hypothesis import strategies as st

from devwatch.agent.events import EventRecorder
from devwatch.agent.report import Reporter
from devwatch.cli import display, inspection
from devwatch.config.schema import parse
from devwatch.core.inventory import Inventory, Scan
from devwatch.core.listing import MAX_BYTES, MAX_TEXT, Entry, parse_listing, render_listing
from devwatch.core.node import NodeState
from devwatch.core.plan import Figures, Tally, plan_patch
from devwatch.core.rules import claim
from devwatch.kube.pods import Workload
from devwatch.observe.health import Health
from fuzz.book import Book
from fuzz.target import Feed, Target
from support.hostfiles import Host

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from devwatch.core.device import Device

_RULES = parse(
    b"""
resources:
  - name: a.io/by-ids
    match: [{vendor: "0403", product: "6???"}, {properties: {ID_VENDOR_ID: ""}}]
    exclude: [{port: "*-usb-0:1.4:*"}]
  - name: a.io/by-text
    match: [{serial: ["*[!a-z]*", "?"]}, {interface: "0?"}, {properties: {ID_MODEL: "*x1b*", ID_BUS: ""}}]
    count: devnode
  - name: a.io/by-path
    match: [{path: [/dev/x*, "*by-id*"]}]
""",
    file="rules",
).for_node("n")

_ID = re.compile("[0-9a-f]{4}")
_KEYS = st.sampled_from(
    (
        *("ID_VENDOR_ID", "ID_MODEL_ID", "ID_SERIAL_SHORT", "ID_USB_INTERFACE_NUM", "ID_PATH", "DEVLINKS", "ID_BUS"),
        *("ID_MODEL", "ID_VENDOR", "ID_MODEL_ENC", "ID_VENDOR_ENC", "ID_MODEL_FROM_DATABASE", "ID_SERIAL"),
    )
) | st.text(max_size=5)
_HOSTILE = st.sampled_from(
    (
        *("\x1b[31m", "\x9b2J", "\u202e", "\u2066", "\u2028", "\x85", "\r\n", "\n", "\x7f", "\\x1b", "\\x0a", "\ufffd"),
        *("{} %s %n", "'\"`$(id)", "resource=x", "eyJhbGciOiJSUzI1NiJ9.x", "*", "[", "[[]", "\U0001f4a9"),
        *("0403", "6001", "00", "01", "zz", "0x0403", "A" * 600, "/dev/serial/by-id/usb-A", "/dev/null"),
    )
)
_VALUES = st.lists(_HOSTILE | st.text(max_size=10), max_size=4).map("".join)
_GRAMMAR = st.lists(st.tuples(_KEYS, _VALUES), max_size=8).map(
    lambda record: "\0".join(f"{key}={value}" for key, value in record).encode("utf-8", "replace")
)


def _record(data: bytes) -> dict[str, str]:
    """Return the properties as libudev hands them over: of netlink's form, and only what is UTF-8."""
    pairs = (part.partition("=") for part in data.decode("utf-8", "replace").split("\0"))
    return {key: value for key, _, value in pairs}


class _Hostile(Host):
    """A host with two sticks, one of which says of itself what it likes."""

    def __init__(self, home: Path) -> None:
        """Begin with a stick that says nothing."""
        self.said: dict[str, str] = {}
        self._times = 0
        super().__init__(home)

    def say(self, record: dict[str, str]) -> Scan:
        """Have udev write this record, and look."""
        self.said = record
        self._times += 1
        os.utime(self.database("ttyUSB0"), ns=(self._times, self._times))
        return self.scan()

    def record(self, path: str) -> dict[str, str]:
        """Return what was said last, unaltered by any file."""
        return self.said if path.endswith("ttyUSB0") else {"ID_VENDOR_ID": "0403", "ID_MODEL_ID": "6001"}


@dataclass(slots=True)
class _Events:
    """The API server as far as Events go there."""

    messages: list[str] = field(default_factory=list)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Any = None,  # noqa: ANN401 - JSON
    ) -> dict[str, Any]:
        """Keep the message."""
        assert (method, path, query) == ("POST", "/api/v1/namespaces/default/events", ())
        self.messages.append(body["message"])
        return {}


def _figures(scan: Scan) -> tuple[Figures, Inventory]:
    inventory = Inventory()
    inventory.observe(scan)
    return Tally(_RULES).count(inventory, NodeState(), scan.at), inventory


def _count(scan: Scan) -> None:
    figures, inventory = _figures(scan)
    assert inventory.pending == ()
    wanted = plan_patch(figures, NodeState())
    json.dumps(wanted.body()).encode()
    after = wanted.applied(NodeState())
    assert all(0 <= int(count) <= len(scan.devices) for count in after.capacity.values())


def _list(device: Device) -> None:
    """Check that the annotation is ASCII, of bounded size, and says what was seen."""
    entry = Entry.of(device)
    text = render_listing({"a.io/x": (entry,)})
    assert text is not None
    assert text.isascii()
    assert len(text) <= MAX_BYTES
    assert parse_listing(text) == {"a.io/x": (replace(entry, link=entry.link and entry.link[:MAX_TEXT]),)}


def _show(scan: Scan) -> None:
    """Check that a table has a line for each device, and no terminal acts on what stands there."""
    out = io.StringIO()
    rows = inspection.rows(scan.devices, _RULES, {})
    display.show_devices(display.Screen(out=out), rows, wide=True)
    assert len(out.getvalue().split("\n")) == 2 + len(rows), out.getvalue()
    for row in rows:
        for number, report in enumerate(inspection.explain(row.device, _RULES, "n")[1], start=1):
            display.show_rule(display.Screen(out=out), number, report, claims=False)
    assert all(line.isprintable() for line in out.getvalue().split("\n")), out.getvalue()
    display.Screen(out=out).document([display.device_document(row) for row in rows], "json")


def _tell(scan: Scan, book: Book) -> None:
    """One event is one line, and neither log nor Event carries what a terminal would act on."""
    events, log = _Events(), book.log
    recorder = EventRecorder(api=Workload(requests=events, node="n"), log=log, node="n", clock=lambda: 0.0)
    reporter = Reporter(log=log, metrics=book.metrics, health=Health(sweep=1, last_cycle=0))
    reporter.record = recorder.device
    for seen in (Scan(at=0.0), scan, Scan(at=1.0)):
        figures, inventory = _figures(seen)
        reporter.devices(figures, inventory.present, {}, seen)
    while (task := recorder.action(0.0)) is not None:
        _finish(task.run())  # type: ignore[arg-type]  # it is a coroutine
    lines = book.lines()
    assert all(line.isprintable() and ("device." in line) for line in lines), lines
    assert all(message.isprintable() and len(message) <= 1000 for message in events.messages), events.messages


def _finish(coroutine: Coroutine[None, None, None]) -> None:
    """Run what never waits."""
    with contextlib.suppress(StopIteration):
        coroutine.send(None)
        raise AssertionError("it waits")


def _suggest(scan: Scan) -> None:
    """Check that what is suggested is valid, and claims what it names."""
    suggestions = inspection.suggest(scan.devices, ())
    config = parse(display.suggestion_text(suggestions).encode(), file="suggested")
    pods = yaml.safe_load_all(display.pod_text(suggestions))
    assert [list(pod["containers"][0]["resources"]["limits"]) for pod in pods] == [[each.name] for each in suggestions]
    by_node = {device.devnode: device for device in scan.devices}
    for suggestion in suggestions:
        owners = {claim(by_node[devnode], config.resources).owner for devnode in suggestion.devnodes}
        assert owners == {suggestion.name}, (suggestion, owners)


@contextlib.contextmanager
def _open() -> Iterator[Feed]:
    with tempfile.TemporaryDirectory() as home:
        host = _Hostile(Path(home))
        host.stick("ttyUSB0")
        host.stick("ttyUSB1", at="usb1/1-2", node=Path("/dev/zero"), serial=b"B2")
        host.rules_run("ttyUSB0")
        host.rules_run("ttyUSB1")
        books = [Book.of("json"), Book.of("console")]

        def feed(data: bytes) -> None:
            scan = host.say(_record(data))
            assert scan.doubts == ()
            assert len(scan.devices) == 2
            _count(scan)
            for device in scan.devices:
                _list(device)
            _show(scan)
            _suggest(scan)
            for book in books:
                _tell(scan, book)

        yield feed


RECORD = Target(
    open=_open,
    grammar=_GRAMMAR,
    seeds=(
        b"ID_VENDOR_ID=0403\0ID_MODEL_ID=6001\0ID_SERIAL_SHORT=A1\0ID_USB_INTERFACE_NUM=00\0ID_PATH=pci-usb-0:1:1.0",
        b"ID_MODEL_ENC=FT232R\\x20USB\0ID_VENDOR_ENC=FTDI\0DEVLINKS=/dev/serial/by-id/usb-A /dev/x\0ID_BUS=usb",
    ),
)
