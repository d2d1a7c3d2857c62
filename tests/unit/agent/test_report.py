"""What the loop tells: each fact once in the log, and the truth in the metrics and the health answers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.agent.nodereport import Answer, NodeReporter
from devwatch.agent.report import Reporter
from devwatch.config.schema import Config
from devwatch.core.errors import ApiError, ConfigError, Fault, Forbidden, NodeMissing, Refused, Retry
from devwatch.core.inventory import Inventory
from devwatch.core.node import ANNOTATION_PART, NodeState
from devwatch.core.parts import Repair
from devwatch.core.plan import Tally
from devwatch.core.repeat import RepeatFilter
from devwatch.observe.health import Health
from devwatch.observe.metrics import Metrics
from support.build import ZIGBEE, ZWAVE, Parts, device, entry, patch_of, rule, scan
from support.fakes import Line, RecordingLog

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from devwatch.core.device import Device
    from devwatch.core.rules import ResourceRule

STICK = device("ttyUSB0", serial="0001", links=("/dev/serial/by-id/usb-0001",))
OTHER = device("ttyUSB1", serial="0002")
OURS = {
    "resource": ZIGBEE,
    "devnode": "/dev/ttyUSB0",
    "id": "10c4:8a2a",
    "serial": "0001",
    "link": "/dev/serial/by-id/usb-0001",
}


@dataclass(slots=True)
class Desk:
    """A reporter with what it reports to, and a host that it reports on."""

    rules: Sequence[ResourceRule] = (rule(),)
    log: RecordingLog = field(default_factory=RecordingLog)
    metrics: Metrics = field(default_factory=lambda: Metrics("1"))
    health: Health = field(default_factory=lambda: Health(sweep=10, last_cycle=0))
    inventory: Inventory = field(default_factory=Inventory)
    reporter: Reporter = field(init=False)
    node: NodeReporter = field(init=False)
    tally: Tally = field(init=False)

    def __post_init__(self) -> None:
        """Wire them."""
        log, metrics, health = self.log, self.metrics, self.health
        self.reporter = Reporter(log=log, metrics=metrics, health=health)
        self.node = NodeReporter(log=log, metrics=metrics, health=health, node="n1", devices=self.reporter)
        self.tally = Tally(self.rules)
        self.reporter.configured(Config(resources=tuple(self.rules)))

    def see(
        self, at: float, *devices: Device, doubts: tuple[str, ...] = (), observed: NodeState | None = None
    ) -> list[Line]:
        """Look, report what was found and, where it is given, the Node, and return the new lines."""
        seen, before = scan(*devices, at=at, doubts=doubts), len(self.log.lines)
        self.inventory.observe(seen)
        figures = self.tally.count(self.inventory, observed, at)
        graces = {counted.name: counted.removal_grace for counted in self.rules}
        self.reporter.devices(figures, self.inventory.present, graces, seen)
        if observed is not None:
            self.reporter.scan(seen)
            self.node.difference(figures, observed, set(), {}, at)
        return self.log.lines[before:]

    def compare(
        self,
        observed: NodeState | None = None,
        wanted: Parts = MappingProxyType({}),
        refused: Mapping[str, str] = MappingProxyType({}),
        *,
        at: float = 0.0,
    ) -> tuple[bool, str]:
        """Report a Node of one resource without a device, and return what `/readyz` says."""
        figures = self.tally.count(self.inventory, None, at)
        self.node.difference(figures, observed, set(wanted), refused, at)
        return self.health.readyz(at)

    def events(self, at: float, *devices: Device, doubts: tuple[str, ...] = ()) -> list[tuple[str, object]]:
        """Look, and return event and devnode of the new lines."""
        return [(line.event, line.fields["devnode"]) for line in self.see(at, *devices, doubts=doubts)]

    def configure(self, *rules: ResourceRule) -> None:
        """Use other rules."""
        self.rules = rules
        self.tally.configure(rules)
        self.reporter.configured(Config(resources=rules))

    def shows(self, sample: str) -> bool:
        """Whether this line is in the metrics."""
        return sample in self.metrics.render().decode().splitlines()


def answer(
    outcome: NodeState | ApiError | None = None,
    *,
    sent: Parts | None = None,
    at: float = 10.0,
    detected: float | None = None,
) -> Answer:
    """Return an answer after a quarter of a second."""
    return Answer(sent=patch_of(sent or {}), outcome=outcome or NodeState(), at=at, seconds=0.25, detected=detected)


# -- the loop


def test_every_turn_is_counted_by_what_woke_it_and_keeps_the_daemon_healthy() -> None:
    """`/healthz` knows when the loop turned last, and the metrics why."""
    desk = Desk()
    desk.reporter.woken({"uevent", "sweep"}, 100.0)
    assert desk.health.last_cycle == 100
    assert desk.health.healthz(131)[0] is False
    assert desk.shows('devwatch_reconciles_total{trigger="uevent"} 1.0')
    assert desk.shows('devwatch_reconciles_total{trigger="sweep"} 1.0')
    assert desk.shows('devwatch_reconciles_total{trigger="node"} 0.0')


# -- stories


def test_a_lasting_condition_is_told_ever_more_rarely() -> None:
    """A server that is away for a day is a dozen lines, not thousands."""
    repeats = RepeatFilter()
    told = [number for number in range(1, 70) if repeats.should_log("refused")]
    assert told == [1, 2, 4, 8, 16, 32, 64]
    assert repeats.repeats == 69


def test_what_is_new_about_a_condition_is_told_at_once() -> None:
    """Another reason may need another hand."""
    repeats = RepeatFilter()
    assert [repeats.should_log(text) for text in ("a", "a", "a", "b", "b", "c", "a", "a", "b")] == [
        True,
        True,
        False,
        True,
        False,
        True,
        False,
        True,
        False,
    ]


def test_reasons_that_alternate_are_not_always_news() -> None:
    """A server that boots refuses and times out by turns."""
    repeats = RepeatFilter()
    told = [repeats.should_log(text) for _ in range(500) for text in ("refused", "timeout")]
    assert sum(told) == 10


@given(st.integers(min_value=1, max_value=2000))
def test_reasons_that_are_never_the_same_are_no_flood(number: int) -> None:
    """Some servers write the number of the request into every message."""
    repeats = RepeatFilter()
    told = sum(repeats.should_log(f"request {index}") for index in range(number))
    assert told <= 8 + number.bit_length()
    assert len(repeats.texts) <= 8


# -- looks


def test_an_uncertain_look_misses_the_one_whose_name_another_has() -> None:
    """It is surely gone; of all others nothing is said."""
    desk = Desk()
    desk.see(0, device(), device("ttyUSB1"))
    seen = desk.events(1, device(incarnation=2), doubts=("?",))
    assert seen == [("device.removed", "/dev/ttyUSB0"), ("device.returned", "/dev/ttyUSB0")]


def test_a_directory_in_the_place_of_a_device_makes_the_daemon_unready_until_it_is_removed() -> None:
    """The stick cannot come back under that name: whoever probes the daemon reads the cure."""
    desk = Desk()
    desk.health.shown = True
    for blocked, ready in (((), True), (("/dev/ttyUSB0: run `rmdir /dev/ttyUSB0`",), False), ((), True)):
        desk.reporter.scan(scan(blocked=blocked))
        good, line = desk.health.readyz(0)
        assert good is ready
        assert ("rmdir" in line) is not ready


def test_an_uncertain_look_is_told_counted_and_makes_the_daemon_unready() -> None:
    """With the reason, and what it means for the counts."""
    desk = Desk()
    desk.health.shown = True
    desk.reporter.scan(scan(doubts=("/sys/class/tty: Too many open files",)))
    (line,) = desk.log.lines
    assert (line.level, line.event) == ("warning", "look.uncertain")
    assert line.fields == {
        "reasons": ["/sys/class/tty: Too many open files"],
        "count": 1,
        "kept": "no count is lowered",
    }
    assert desk.shows("devwatch_uncertain_looks_total 1.0")
    ready, why = desk.health.readyz(0)
    assert not ready
    assert "/sys/class/tty: Too many open files" in why


def test_a_certain_look_makes_the_daemon_ready_and_ends_the_story() -> None:
    """The next uncertain look is news again."""
    desk = Desk()
    desk.health.shown = True
    for _ in range(5):
        desk.reporter.scan(scan(doubts=("?",)))
    assert desk.log.counts["look.uncertain"] == 3
    desk.reporter.scan(scan())
    assert desk.health.readyz(0) == (True, "ok")
    assert desk.shows("devwatch_uncertain_looks_total 5.0")
    desk.reporter.scan(scan(doubts=("?",)))
    assert desk.log.counts["look.uncertain"] == 4


def test_of_many_reasons_the_first_five_are_told() -> None:
    """Sixty ttys that cannot be read are one line that can be."""
    desk = Desk()
    desk.reporter.scan(scan(doubts=tuple(f"tty{number}: no" for number in range(60))))
    (line,) = desk.log.lines
    assert line.fields["reasons"] == [f"tty{number}: no" for number in range(5)]
    assert line.fields["count"] == 60
    assert desk.health.uncertain == "tty0: no; tty1: no; tty2: no; tty3: no; tty4: no; 55 more"
    desk.reporter.scan(scan(doubts=("a", "b", "c", "d", "e")))
    assert desk.health.uncertain == "a; b; c; d; e"


def test_what_a_host_lacks_is_told_once() -> None:
    """It stays so until somebody mounts it; the look may be certain all the same."""
    desk = Desk()
    for _ in range(3):
        desk.reporter.scan(scan(troubles=("/run/udev is not there: mount it",)))
    assert [(line.level, line.event, line.fields) for line in desk.log.lines] == [
        ("warning", "host.limited", {"reason": "/run/udev is not there: mount it"})
    ]
    assert desk.health.uncertain is None
    assert desk.shows("devwatch_uncertain_looks_total 0.0")


# -- devices


def test_a_device_that_comes_is_told_with_what_is_known_of_it() -> None:
    """Once, as long as it stays."""
    desk = Desk()
    (line,) = desk.see(0, STICK)
    assert (line.level, line.event, line.fields) == ("info", "device.added", OURS)
    assert desk.see(10, STICK) == []
    assert desk.shows(f'devwatch_devices{{resource="{ZIGBEE}"}} 1.0')


def test_a_device_without_usb_ids_is_told_without() -> None:
    """Nothing is made up for it."""
    desk = Desk([rule(match=[entry(path="/dev/ttyS0")])])
    (line,) = desk.see(0, device("ttyS0", vendor=None, product=None))
    assert (line.fields["id"], line.fields["serial"], line.fields["link"]) == (None, None, None)


def test_devices_are_told_in_the_order_of_the_look() -> None:
    """The log of a start reads like the list of the devices."""
    sticks = [device(f"ttyUSB{number}") for number in range(8)]
    assert Desk().events(0, *sticks) == [("device.added", stick.devnode) for stick in sticks]


def test_a_device_that_goes_is_told_with_how_long_it_still_counts() -> None:
    """At the look that misses it, and the metrics show what is present, not what is advertised."""
    desk = Desk([rule(removal_grace=5)])
    desk.see(0, STICK)
    (line,) = desk.see(10)
    assert (line.level, line.event, line.fields) == ("info", "device.removed", {**OURS, "counted_for_seconds": 5})
    assert desk.see(20) == []
    assert desk.shows(f'devwatch_devices{{resource="{ZIGBEE}"}} 0.0')


def test_a_device_that_goes_soon_after_the_start_counts_as_long_as_the_figure_of_the_start() -> None:
    """That is longer than its own grace, and the line says so; a return within that time is one."""
    desk = Desk([rule(removal_grace=0.5)])
    desk.tally.start(NodeState(capacity={ZIGBEE: "1"}, allocatable={ZIGBEE: "1"}), 0)
    desk.see(0, STICK)
    (line,) = desk.see(2.4)
    assert (line.event, line.fields["counted_for_seconds"]) == ("device.removed", 7.6)
    assert desk.events(9.9, STICK) == [("device.returned", STICK.devnode)]
    (line,) = desk.see(11)
    assert line.fields["counted_for_seconds"] == 0.5


def test_a_device_that_the_figure_of_the_start_does_not_count_goes_with_its_own_grace() -> None:
    """There were more than the Node showed: when one of them goes, as many as that are left."""
    desk = Desk([rule(removal_grace=0.5)])
    desk.tally.start(NodeState(capacity={ZIGBEE: "1"}, allocatable={ZIGBEE: "1"}), 0)
    desk.see(0, STICK, device("ttyUSB5"))
    (line,) = desk.see(2.4, STICK)
    assert line.fields["counted_for_seconds"] == 0.5


def test_a_device_that_comes_back_within_its_grace_has_returned() -> None:
    """Also through another socket and under another name."""
    desk = Desk()
    desk.see(0, STICK)
    desk.see(10)
    (line,) = desk.see(11.25, replace(STICK, devnode="/dev/ttyUSB7", devpath="/devices/usb/7", incarnation=2))
    assert (line.event, line.fields) == (
        "device.returned",
        {**OURS, "devnode": "/dev/ttyUSB7", "away_seconds": 1.25},
    )


@pytest.mark.parametrize("between", [False, True])
def test_a_device_that_comes_back_after_its_grace_is_added(between: bool) -> None:  # noqa: FBT001  pytest passes by name
    """Nobody counted it any more, whatever the loop saw in between."""
    desk = Desk()
    desk.see(0, STICK, OTHER)
    desk.see(10, OTHER)
    if between:
        desk.see(11)
    assert desk.events(12, STICK)[-1] == ("device.added", "/dev/ttyUSB0")


def test_a_device_plugged_again_between_two_looks_has_gone_and_returned() -> None:
    """In this order: the log ends with a device that is there."""
    desk = Desk()
    desk.see(0, STICK)
    assert desk.events(1, replace(STICK, incarnation=2)) == [
        ("device.removed", "/dev/ttyUSB0"),
        ("device.returned", "/dev/ttyUSB0"),
    ]
    assert desk.events(1.5, replace(STICK, incarnation=2), replace(STICK, devnode="/dev/ttyUSB9", number=9)) == [
        ("device.added", "/dev/ttyUSB9")
    ]


def test_every_port_of_an_adapter_and_every_twin_returns() -> None:
    """Two that look alike are two."""
    desk = Desk()
    ports = [device(f"ttyUSB{port}", physical="/devices/usb/1-1", interface=f"{port:02}") for port in range(4)]
    twins = [device("ttyACM0", serial="1"), device("ttyACM1", serial="1")]
    desk.see(0, *ports, *twins)
    desk.see(10)
    back = [replace(stick, incarnation=2) for stick in (*ports, *twins)]
    assert desk.events(11, *back) == [("device.returned", stick.devnode) for stick in back]


def test_another_stick_is_no_return() -> None:
    """One pulled and another plugged are two different things, and so are two ports of one stick."""
    desk = Desk()
    desk.see(0, STICK)
    desk.see(10)
    assert desk.events(11, OTHER) == [("device.added", "/dev/ttyUSB1")]
    assert desk.events(11.5, OTHER, replace(STICK, interface="01")) == [("device.added", "/dev/ttyUSB0")]


def test_an_uncertain_look_misses_nobody() -> None:
    """Neither in the log nor in the metrics: an error is not an unplug. What it did find is told."""
    desk = Desk()
    desk.see(0, STICK)
    assert desk.events(1, doubts=("?",)) == []
    assert desk.shows(f'devwatch_devices{{resource="{ZIGBEE}"}} 1.0')
    assert desk.events(2, OTHER, doubts=("?",)) == [("device.added", "/dev/ttyUSB1")]
    assert desk.events(3, STICK, OTHER) == []
    assert desk.events(4) == [("device.removed", "/dev/ttyUSB0"), ("device.removed", "/dev/ttyUSB1")]
    assert desk.shows(f'devwatch_devices{{resource="{ZIGBEE}"}} 0.0')


def test_a_device_missing_since_an_uncertain_look_is_told_when_it_is_certain() -> None:
    """It is only then that it is known to be gone."""
    desk = Desk()
    desk.see(0, STICK)
    desk.see(1, doubts=("?",))
    assert desk.events(2) == [("device.removed", "/dev/ttyUSB0")]


def test_a_device_that_the_configuration_forgets_is_not_removed() -> None:
    """It is still plugged in: that the configuration is another is said elsewhere."""
    desk = Desk()
    desk.see(0, STICK)
    desk.configure(rule(ZWAVE, [entry(vendor="0658")]))
    assert desk.see(1, STICK) == []
    assert desk.see(2) == []


def test_a_device_pulled_with_its_resource_no_longer_configured_counts_for_no_time() -> None:
    """Both at once: it is gone, and nothing lingers."""
    desk = Desk()
    desk.see(0, STICK)
    desk.configure()
    (line,) = desk.see(1)
    assert (line.event, line.fields["counted_for_seconds"]) == ("device.removed", 0)


def test_a_device_that_nobody_claims_is_not_told() -> None:
    """A node has 64 virtual consoles."""
    assert Desk().see(0, device(vendor="0658")) == []


def test_a_device_that_two_resources_match_is_told_once() -> None:
    """The first has it; that may not be what was meant."""
    desk = Desk([rule(ZIGBEE), rule(ZWAVE)])
    for at in range(3):
        desk.see(at, STICK)
    (line,) = desk.log.of("device.contested")
    assert line.level == "warning"
    assert line.fields == {"devnode": "/dev/ttyUSB0", "claimed_by": ZIGBEE, "matched": [ZIGBEE, ZWAVE]}


# -- the Node


EMPTY = NodeState(uid="u", capacity={ZIGBEE: "0"}, allocatable={ZIGBEE: "0"})
FULL = NodeState(uid="u", capacity={ZIGBEE: "1"}, allocatable={ZIGBEE: "1"})


def test_the_metrics_show_the_capacity_as_observed() -> None:
    """Of our resources; what was never read, or is not there any more, is not shown at all."""
    desk = Desk()
    desk.compare(None)
    assert "devwatch_capacity{" not in desk.metrics.render().decode()
    desk.compare(NodeState(capacity={ZIGBEE: "3", "cpu": "4"}))
    assert desk.shows(f'devwatch_capacity{{resource="{ZIGBEE}"}} 3.0')
    assert 'resource="cpu"' not in desk.metrics.render().decode()
    desk.compare(None)
    assert "devwatch_capacity{" not in desk.metrics.render().decode()


def test_the_daemon_is_ready_when_the_node_was_seen_to_show_what_is_present() -> None:
    """Not when something was accepted, and not for a look that may have missed a device."""
    desk = Desk()
    desk.node.accepted(answer(), failures=0)
    assert desk.compare(None) == (False, "the Node has not been seen to show what is present")
    assert desk.compare(NodeState(), {ZIGBEE: "0", ANNOTATION_PART: "{}"}) == (
        False,
        f"the Node has not been seen to show what is present: annotation; {ZIGBEE}",
    )
    desk.health.uncertain = "?"
    desk.compare(EMPTY)
    assert desk.health.shown is False
    desk.health.uncertain = None
    assert desk.compare(EMPTY) == (True, "ok")
    assert desk.compare(FULL, {ZIGBEE: "0"}, at=1) == (True, "ok")


def test_a_dry_run_does_not_say_that_it_patched_the_node() -> None:
    """Who reads the log afterwards must not look for what was never there."""
    desk = Desk()
    desk.node.dry_run = True
    desk.node.accepted(answer(sent={ZIGBEE: "1"}, at=10.0, detected=9.5), failures=0)
    assert [line.event for line in desk.log.lines] == ["node.would_patch"]


def test_a_dry_run_is_ready_with_its_first_plan() -> None:
    """Nothing that it plans is ever seen on the Node."""
    desk = Desk()
    desk.node.dry_run = True
    assert not desk.compare(None)[0]
    assert desk.compare(NodeState(), {ZIGBEE: "0"}) == (True, "ok")


def test_what_counts_until_its_grace_ends_is_not_yet_shown_as_it_is() -> None:
    """After a start nobody knows whether it comes back; once the Node has been right, a grace is no fault."""
    desk = Desk()
    desk.tally.start(FULL, 0)
    desk.see(1, observed=FULL)
    assert desk.health.readyz(1) == (
        False,
        f"the Node has not been seen to show what is present: {ZIGBEE} is advertised as 1, with 0 present: its grace has not ended",
    )
    desk.see(2, device(), observed=FULL)
    assert desk.health.readyz(2) == (True, "ok")
    desk.see(3, observed=FULL)
    assert desk.health.readyz(3 + 60) == (True, "ok")


def test_the_daemon_is_unready_when_the_node_has_been_wrong_for_a_minute() -> None:
    """From the first difference on, whatever is wanted meanwhile, until there is none; with the resource and the server's words."""
    desk = Desk()
    desk.health.shown = True
    for at, wanted in ((100.0, {ANNOTATION_PART: "{}"}), (130.0, {ZIGBEE: "2"}), (159.9, {ZIGBEE: "0"})):
        assert desk.compare(NodeState(), wanted, at=at) == (True, "ok")
    desk.node.failed(answer(), Retry("no answer from the API server"), failures=1, retry_in=1)
    late = "the Node has not shown what is present for 60 s"
    assert desk.health.readyz(160) == (False, f"{late}: {ZIGBEE}: no answer from the API server")
    desk.node.accepted(answer(), failures=1)
    assert desk.health.readyz(160) == (False, f"{late}: {ZIGBEE}")
    desk.compare(EMPTY, at=161)
    assert desk.health.readyz(300) == (True, "ok")


def test_what_is_refused_makes_the_daemon_unready_at_once() -> None:
    """With what it is and the server's words, however many parts there are; no longer when it is accepted, or no longer wanted."""
    desk = Desk()
    desk.compare(EMPTY)
    no, other = "no (422)", "webhook"
    assert desk.compare(EMPTY, {ZIGBEE: "1"}, {ZIGBEE: no}, at=1) == (False, f"{ZIGBEE} refused: {no}")
    assert desk.compare(EMPTY, {ZIGBEE: "1"}, {ZIGBEE: no, ANNOTATION_PART: no, ZWAVE: other}, at=2) == (
        False,
        f"annotation, {ZIGBEE} refused: {no}; {ZWAVE} refused: {other}",
    )
    many = desk.compare(EMPTY, {ZIGBEE: "1"}, {f"a/{number}": f"no {number}" for number in range(9)}, at=3)[1]
    assert many.startswith("a/0 refused: no 0; ")
    assert many.endswith("; 4 more")
    assert desk.compare(EMPTY, at=4) == (True, "ok")


@pytest.mark.parametrize("error", [Forbidden("cannot patch (403)"), Refused("cannot patch (403)")], ids=repr)
def test_a_server_that_refuses_every_write_makes_the_daemon_unready_at_once(error: ApiError) -> None:
    """Until it takes a request; that it is not reached in between changes nothing."""
    desk = Desk()
    desk.compare(EMPTY)
    desk.node.failed(answer(), error, failures=1, retry_in=1)
    refused = (False, "every write is refused: cannot patch (403)")
    assert desk.compare(EMPTY) == refused
    desk.node.failed(answer(), Retry("no answer"), failures=2, retry_in=1)
    assert desk.compare(EMPTY) == refused
    desk.node.refused(answer(sent={ZIGBEE: "1", ANNOTATION_PART: "{}"}), Refused("only this"), retry_in=None)
    assert desk.compare(EMPTY) == (True, "ok")


def test_a_node_that_is_missing_is_told_once_and_makes_the_daemon_unready_at_once() -> None:
    """The line stays while others fail, what the next Node shows has to be seen, and its next absence is news."""
    desk = Desk()
    desk.compare(EMPTY)
    missing = NodeMissing('nodes "n1" not found (404)')
    for failures in range(1, 100):
        for error in (missing, missing, Retry("no answer")):
            desk.node.failed(answer(), error, failures=failures, retry_in=1)
        assert desk.compare(None, {ZIGBEE: "0"}) == (False, 'the Node is missing: nodes "n1" not found (404)')
    assert desk.log.counts["node.missing"] == 1
    desk.node.accepted(answer(), failures=100)
    assert desk.compare(NodeState(), {ZIGBEE: "0"}) == (
        False,
        f"the Node has not been seen to show what is present: {ZIGBEE}",
    )
    assert desk.compare(EMPTY) == (True, "ok")
    desk.node.failed(answer(), NodeMissing("not found"), failures=1, retry_in=1)
    assert desk.log.counts["node.missing"] == 2


# -- what is unknown

BY_PORT = rule(match=[entry(port="*-usb-0:1:*")])
BARE = device("ttyUSB9", properties=None)


def test_a_count_that_is_held_up_by_an_unknown_key_is_told_once() -> None:
    """With the device, the key and why; the gauge shows it while it lasts, and the next time is news."""
    desk = Desk([BY_PORT])
    (line,) = desk.see(0, BARE, observed=FULL)
    assert (line.level, line.event) == ("warning", "count.held")
    assert line.fields == {
        "resource": ZIGBEE,
        "count": 1,
        "present": 0,
        "reason": "port of /dev/ttyUSB9 is unknown (there is no complete udev record of it)",
        "hint": "devwatch explain DEVNODE shows what is missing on this host",
    }
    assert desk.shows(f'devwatch_held{{resource="{ZIGBEE}"}} 1.0')
    assert desk.see(10, BARE, observed=FULL) == []
    assert desk.see(20, observed=EMPTY) == []
    assert desk.shows(f'devwatch_held{{resource="{ZIGBEE}"}} 0.0')
    assert [line.event for line in desk.see(30, BARE, observed=FULL)] == ["count.held"]


def test_a_count_that_is_held_up_for_a_minute_makes_the_daemon_unready() -> None:
    """The Node then shows what it should, and not what is present."""
    desk = Desk([BY_PORT])
    stick = device(properties={"ID_PATH": "pci-usb-0:1:1.0"}, port="pci-usb-0:1:1.0")
    desk.see(0, stick, BARE, observed=FULL)
    assert desk.health.readyz(0) == (True, "ok")
    desk.see(10, BARE, observed=FULL)
    assert desk.shows(f'devwatch_held{{resource="{ZIGBEE}"}} 0.0')
    desk.see(20, BARE, observed=FULL)
    assert desk.health.readyz(79) == (True, "ok")
    unknown = "port of /dev/ttyUSB9 is unknown (there is no complete udev record of it)"
    late = f"the Node has not shown what is present for 60 s: {ZIGBEE} is advertised as 1, with 0 present: {unknown}"
    assert desk.health.readyz(80) == (False, late)
    desk.see(90, observed=EMPTY)
    assert desk.health.readyz(90) == (True, "ok")


def test_a_device_that_is_on_its_way_holds_a_count_up_as_well() -> None:
    """What it will be is known, and that it has no record yet is the reason."""
    desk = Desk()
    desk.inventory.observe(scan(at=0, udevd=True))
    (line,) = desk.see(1, BARE, observed=FULL)
    assert line.fields["reason"] == "/dev/ttyUSB9 has no complete udev record yet"


def test_a_key_of_an_earlier_resource_may_hold_up_a_later_one() -> None:
    """It is that key that is told, since nothing of the later one is unknown."""
    desk = Desk([rule(ZWAVE, [entry(port="*-usb-0:1:*")]), rule(ZIGBEE)])
    lines = desk.see(0, BARE, observed=FULL)
    assert [(line.fields["resource"], line.fields["reason"]) for line in lines] == [
        (ZIGBEE, "port of /dev/ttyUSB9 is unknown (there is no complete udev record of it)")
    ]


def test_an_uncertain_look_is_no_count_held() -> None:
    """Why it is uncertain is told; the gauge shows it all the same, and what was told before is not told again after it."""
    desk = Desk([BY_PORT])
    desk.see(0, observed=FULL, doubts=("?",))
    assert desk.log.counts == {"look.uncertain": 1}
    assert desk.shows(f'devwatch_held{{resource="{ZIGBEE}"}} 1.0')
    desk.see(10, BARE, observed=FULL)
    desk.see(20, observed=FULL, doubts=("?",))
    desk.see(30, BARE, observed=FULL)
    assert desk.log.counts == {"look.uncertain": 2, "count.held": 1}
    desk.configure(rule(ZWAVE))
    desk.see(40, doubts=("?",), observed=EMPTY)
    assert "devwatch_held" in desk.metrics.render().decode()
    assert ZIGBEE not in desk.metrics.render().decode()


def test_an_accepted_change_is_told_with_the_counts() -> None:
    """What was written, how fast, and how long after the uevent."""
    desk = Desk()
    before = time.time()
    sent = {ZIGBEE: "2", ZWAVE: None, ANNOTATION_PART: "{}"}
    desk.node.accepted(answer(sent=sent, at=10.0, detected=9.5), failures=0)
    (line,) = desk.log.lines
    assert (line.level, line.event) == ("info", "node.patched")
    assert line.fields == {"node": "n1", "resources": {ZIGBEE: 2, ZWAVE: None}, "milliseconds": 250.0}
    assert desk.shows('devwatch_patches_total{outcome="changed"} 1.0')
    assert desk.shows("devwatch_patch_duration_seconds_sum 0.25")
    assert desk.shows("devwatch_detection_to_patch_seconds_sum 0.5")
    text = desk.metrics.render().decode()
    stamp = next(line for line in text.splitlines() if line.startswith("devwatch_last_success_timestamp_seconds "))
    assert float(stamp.split()[1]) >= before


def test_an_accepted_read_is_told_only_when_it_ends_an_outage() -> None:
    """A quiet daemon has a quiet log."""
    desk = Desk()
    desk.node.accepted(answer(), failures=0)
    assert desk.log.lines == []
    assert desk.shows('devwatch_patches_total{outcome="unchanged"} 1.0')
    assert desk.shows("devwatch_detection_to_patch_seconds_count 0.0")
    desk.node.accepted(answer(), failures=3)
    (line,) = desk.log.lines
    assert line.fields == {"node": "n1", "resources": {}, "milliseconds": 250.0, "after_failures": 3}


def test_a_failure_is_told_with_the_wait_and_not_over_and_over() -> None:
    """An hour's outage is a few lines; its end makes the next one news."""
    desk = Desk()
    for failures in range(1, 241):
        desk.node.failed(answer(), Retry("connection refused"), failures=failures, retry_in=14.96)
    assert len(desk.log.lines) == 8
    assert desk.log.lines[0].level == "warning"
    assert desk.log.lines[0].event == "node.patch_failed"
    assert desk.log.lines[0].fields == {
        "node": "n1",
        "error": "connection refused",
        "failures": 1,
        "retry_in": 15.0,
    }
    assert desk.shows('devwatch_patches_total{outcome="failed"} 240.0')
    assert desk.health.error == "connection refused"
    desk.node.accepted(answer(), failures=240)
    assert desk.health.error == ""
    desk.node.failed(answer(), Retry("connection refused"), failures=1, retry_in=1)
    assert desk.log.counts == {"node.patch_failed": 9, "node.patched": 1}


def test_a_missing_right_is_an_error_with_the_command_that_grants_it() -> None:
    """Nothing helps until somebody runs it."""
    desk = Desk()
    error = Forbidden("cannot patch nodes/status", hint="kubectl create clusterrole x")
    desk.node.failed(answer(), error, failures=1, retry_in=1)
    (line,) = desk.log.lines
    assert (line.level, line.event) == ("error", "node.patch_failed")
    assert line.fields["hint"] == "kubectl create clusterrole x"
    assert line.fields["error"] == "cannot patch nodes/status"


def test_a_missing_node_is_told_with_where_its_name_comes_from() -> None:
    """A wrong name and a kubelet that is late look alike."""
    desk = Desk()
    desk.node.failed(answer(), NodeMissing('nodes "n1" not found'), failures=1, retry_in=1)
    (line,) = desk.log.lines
    assert (line.level, line.event) == ("warning", "node.missing")
    assert line.fields["node"] == "n1"
    assert "--node-name" in str(line.fields["hint"])


def test_what_is_refused_in_company_is_counted_and_told_only_when_it_is_refused_alone() -> None:
    """Only then is it known which part it is."""
    desk = Desk()
    error = Refused("the policy says no (422)")
    desk.node.refused(answer(sent={ZIGBEE: "1", ANNOTATION_PART: "{}"}), error, retry_in=None)
    assert desk.log.lines == []
    desk.node.refused(answer(sent={ANNOTATION_PART: "{}"}), error, retry_in=0.44)
    (line,) = desk.log.lines
    assert (line.level, line.event) == ("error", "node.patch_failed")
    assert line.fields == {
        "node": "n1",
        "refused": ["annotation"],
        "error": "the policy says no (422)",
        "retry_in": 0.4,
    }
    assert desk.shows('devwatch_patches_total{outcome="refused"} 2.0')


def test_a_refusal_is_told_with_what_helps() -> None:
    """Where that is known, also for a read."""
    desk, error = Desk(), Refused("no", hint="add it to the list")
    desk.node.refused(answer(sent={ZIGBEE: "1"}), error, retry_in=1)
    desk.node.failed(answer(), error, failures=1, retry_in=1)
    assert [(line.level, line.fields["hint"]) for line in desk.log.lines] == [("error", "add it to the list")] * 2


def test_a_lasting_refusal_is_told_ever_more_rarely_for_each_part() -> None:
    """One refused resource says nothing about another; accepted in between, it is news again."""
    desk = Desk()
    error = Refused("no")
    for _ in range(5):
        desk.node.refused(answer(sent={ZIGBEE: "1"}), error, retry_in=1)
    desk.node.refused(answer(sent={ZWAVE: "1"}), error, retry_in=1)
    assert len(desk.log.lines) == 4
    desk.node.accepted(answer(sent={ZIGBEE: "1", ZWAVE: "1"}), failures=0)
    desk.node.refused(answer(sent={ZIGBEE: "1"}), error, retry_in=1)
    assert desk.log.counts["node.patch_failed"] == 5


def test_a_repaired_foreign_write_is_told_and_counted() -> None:
    """Somebody should know who writes there."""
    desk = Desk()
    desk.node.repaired(Repair(parts=frozenset({ZIGBEE, ANNOTATION_PART}), rivals=None))
    (line,) = desk.log.lines
    assert (line.level, line.event) == ("warning", "drift.repaired")
    assert line.fields == {"node": "n1", "what": ["annotation", ZIGBEE]}
    assert desk.shows("devwatch_drift_repairs_total 1.0")


# -- the configuration


def test_what_is_doubtful_about_a_configuration_is_told_once() -> None:
    """With the line; and `/healthz` waits for the sweep that it names."""
    desk = Desk()
    fault = Fault(line=7, column=5, path="resources[1].name", message="never claims a device")
    config = Config(resources=(), sweep=60, warnings=(fault,))
    desk.reporter.configured(config)
    desk.reporter.configured(config)
    (line,) = desk.log.lines
    assert (line.level, line.event) == ("warning", "config.doubtful")
    assert line.fields == {"line": 7, "key": "resources[1].name", "reason": "never claims a device"}
    assert desk.health.healthz(180) == (True, "ok")


def test_another_configuration_is_told_with_its_resources() -> None:
    """Whoever changed the file sees that it is used."""
    desk = Desk()
    desk.reporter.reloaded([ZIGBEE, ZWAVE])
    (line,) = desk.log.lines
    assert (line.level, line.event, line.fields) == ("info", "config.reloaded", {"resources": [ZIGBEE, ZWAVE]})
    assert desk.shows('devwatch_config_reloads_total{outcome="reloaded"} 1.0')


def test_a_faulty_configuration_is_told_with_every_fault() -> None:
    """And with what is used instead."""
    desk = Desk()
    faults = (
        Fault(line=1, column=2, path="sweep", message="is not valid"),
        Fault(line=3, column=4, path="", message="invalid YAML"),
    )
    desk.reporter.rejected(ConfigError("c.yaml", faults))
    (line,) = desk.log.lines
    assert (line.level, line.event) == ("error", "config.rejected")
    assert line.fields["faults"] == ["c.yaml:1:2: sweep: is not valid", "c.yaml:3:4: invalid YAML"]
    assert desk.shows('devwatch_config_reloads_total{outcome="rejected"} 1.0')
    assert desk.shows("devwatch_config_in_force 0.0")
    desk.reporter.reloaded([ZIGBEE])
    assert desk.shows("devwatch_config_in_force 1.0")
