"""What the Node should show and what is written for it: claims, counts, the grace, ignorance, and changes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.core.inventory import Inventory
from devwatch.core.listing import Entry, parse_listing, render_listing
from devwatch.core.node import ANNOTATION_PART, MAPS, NodeState, Writer
from devwatch.core.plan import Claims, Figures, Tally, list_devices, plan_patch
from devwatch.core.plan import portion as portion_of
from devwatch.core.rules import Count, Publish
from support.build import ZIGBEE, ZWAVE, Parts, device, entry, parts_of, patch_of, rule, scan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devwatch.core.device import Device
    from devwatch.core.rules import ResourceRule


def changes(figures: Figures, observed: NodeState, **fields: Any) -> dict[str, str | None]:  # noqa: ANN401  as `plan_patch` takes them
    """Return what must be written, in short."""
    return parts_of(plan_patch(figures, observed, **fields))


def portion(wanted: Parts, **fields: Any) -> dict[str, str | None]:  # noqa: ANN401  as `portion` takes them
    """Return what to send next of it, in short."""
    return parts_of(portion_of(patch_of(wanted), **fields))


def apply(node: NodeState, written: Parts) -> NodeState:
    """Return the Node after it was written."""
    return patch_of(written).applied(node)


SHARED_LINK = "/dev/serial/by-id/usb-Twin_0001"


@dataclass(slots=True)
class Host:
    """A host with its Node: `step` looks, counts and writes, as a daemon whose every PATCH is accepted does."""

    tally: Tally
    node: NodeState = field(default_factory=NodeState)
    inventory: Inventory = field(default_factory=Inventory)
    figures: Figures = field(default_factory=Figures)

    @classmethod
    def of(cls, *rules: ResourceRule, **counts: str) -> Host:
        """Return a host with these rules, and `zigbee` and `zwave` on its Node."""
        maps = {f"example.com/{name}": count for name, count in counts.items()}
        return cls(Tally(rules or (rule(),)), NodeState(capacity=maps, allocatable=maps))

    def see(self, at: float, *devices: Device, doubts: tuple[str, ...] = (), udevd: bool = True) -> Figures:
        """Look and count."""
        self.inventory.observe(scan(*devices, at=at, doubts=doubts, udevd=udevd))
        self.figures = self.tally.count(self.inventory, self.node, at)
        return self.figures

    def step(self, at: float, *devices: Device, doubts: tuple[str, ...] = ()) -> Parts:
        """Look, count, write, and return what was written."""
        wanted = changes(self.see(at, *devices, doubts=doubts), self.node)
        self.node = apply(self.node, wanted)
        return wanted

    def advertised(self, name: str = ZIGBEE) -> int:
        """Return the count of a resource at the last look."""
        return self.figures.by_name[name].advertised

    def present(self, name: str = ZIGBEE) -> int:
        """Return how many of a resource the last look found."""
        return self.figures.by_name[name].present

    def listed(self, name: str = ZIGBEE) -> list[str]:
        """Return the devnodes that the annotation lists."""
        return [entry.devnode for entry in self.node.listing()[name]]


def again(stick: Device, name: str = "") -> Device:
    """Return the stick as it comes back: registered anew, maybe under another name."""
    devnode = f"/dev/{name}" if name else stick.devnode
    return replace(stick, incarnation=stick.incarnation + 1, devnode=devnode)


def quad() -> tuple[Device, ...]:
    """Return an adapter with four ports on one chip."""
    return tuple(
        device(f"ttyUSB{port}", physical="/devices/usb/1-1", interface=f"{port:02}", serial="QUAD") for port in range(4)
    )


def twins() -> tuple[Device, Device]:
    """Return two sticks of one model with one serial; the link that they share leads to the second."""
    return (
        device("ttyUSB0", serial="0001", port="pci-usb-0:1:1.0"),
        device("ttyUSB1", serial="0001", port="pci-usb-0:2:1.0", links=(SHARED_LINK,)),
    )


STICK = device("ttyUSB0")
OTHER = device("ttyUSB1")
BARE = replace(STICK, properties=None)
BY_PORT = entry(port="*-usb-0:1:*")
BY_LINK = entry(path=SHARED_LINK)


# -- what counts


def test_a_composite_stick_gives_one_of_each_resource() -> None:
    """HUSBZB-1: Z-Wave on interface 00 and Zigbee on 01 are two resources of one stick."""
    host = Host.of(rule(ZWAVE, [entry(interface="00")]), rule(ZIGBEE, [entry(interface="01")]))
    body = "/devices/usb/1-1"
    host.see(0, device("ttyUSB0", physical=body, interface="00"), device("ttyUSB1", physical=body, interface="01"))
    assert (host.advertised(ZWAVE), host.advertised(ZIGBEE)) == (1, 1)
    assert [found.devnode for found in host.figures.by_name[ZIGBEE].devices] == ["/dev/ttyUSB1"]


def test_four_ports_on_one_chip_are_one_device_or_four_devnodes() -> None:
    """A pod that is given the adapter has all of its ports; who hands out ports says so."""
    host = Host.of(rule(ZIGBEE))
    host.see(0, *quad())
    assert host.advertised() == 1
    host = Host.of(rule(ZIGBEE, count=Count.DEVNODE))
    host.see(0, *quad())
    assert host.advertised() == 4


def test_four_ports_on_a_hub_are_four_devices() -> None:
    """An adapter that is a hub with four chips can be shared by four pods."""
    host = Host.of()
    host.see(0, *(device(f"ttyUSB{port}", physical=f"/devices/usb/1-1/1-1.{port}") for port in range(1, 5)))
    assert host.advertised() == 4


def test_twins_with_one_serial_are_two_devices() -> None:
    """The serial is not what makes a stick."""
    host = Host.of()
    host.see(0, *twins())
    assert host.advertised() == 2


def test_a_link_that_twins_share_is_one_device_at_a_time() -> None:
    """It counts where it leads now, and moves with the link."""
    host = Host.of(rule(ZIGBEE, [BY_LINK]), rule(ZWAVE))
    first, second = twins()
    host.see(0, first, second)
    assert [found.devnode for found in host.figures.by_name[ZIGBEE].devices] == ["/dev/ttyUSB1"]
    host.see(1, replace(first, links=(SHARED_LINK,)))
    assert [found.devnode for found in host.figures.by_name[ZIGBEE].devices] == ["/dev/ttyUSB0"]
    assert host.advertised() == 1


def test_sticks_without_a_serial_count_like_others() -> None:
    """Many a CH341 has none; a rule can ask for just that."""
    host = Host.of(rule(ZIGBEE, [entry(serial="")]), rule(ZWAVE))
    host.see(0, device("ttyUSB0"), device("ttyUSB1"), device("ttyUSB2", serial="x"))
    assert (host.advertised(), host.advertised(ZWAVE)) == (2, 1)


def test_devnodes_without_usb_behind_them_are_each_their_own() -> None:
    """Two serial ports of the board are two devices."""
    host = Host.of(rule(match=[entry(path="/dev/ttyS*")]))
    host.see(0, device("ttyS0", physical=None), device("ttyS1", physical=None))
    assert host.advertised() == 2


def test_a_device_that_nobody_claims_counts_for_nobody() -> None:
    """And is no reason to hold any count."""
    host = Host.of(zigbee="1")
    figures = host.see(0, device(vendor="0403"))
    assert (host.advertised(), figures.by_name[ZIGBEE].held) == (0, False)


def test_every_device_value_is_judged_once() -> None:
    """A look at a node with many devices and rules costs only what has changed; what is gone takes no room."""
    claims = Claims((rule(),))
    first = claims.judge([STICK])[STICK]
    assert claims.judge([STICK, OTHER])[STICK] is first
    claims.judge([OTHER])
    assert claims.judge([STICK])[STICK] is not first


# -- the grace


def test_a_count_rises_at_once_and_falls_after_the_grace() -> None:
    """A stick in a reset is gone for a second: nobody shall notice."""
    host = Host.of()
    assert host.step(0, STICK)[ZIGBEE] == "1"
    assert host.step(100, STICK, OTHER)[ZIGBEE] == "2"
    assert host.step(200, STICK) == {}
    assert host.figures.due == 202
    assert host.step(201.999, STICK) == {}
    assert host.step(202, STICK)[ZIGBEE] == "1"
    assert host.figures.due is None


def test_without_a_grace_a_count_falls_with_the_look() -> None:
    """0s means what it says."""
    host = Host.of(rule(removal_grace=0))
    host.step(0, STICK)
    assert host.step(1)[ZIGBEE] == "0"


def test_each_resource_has_its_own_grace() -> None:
    """The loop turns for the nearest."""
    host = Host.of(
        rule(ZIGBEE, [entry(path="/dev/ttyUSB0")], removal_grace=5),
        rule(ZWAVE, [entry(path="/dev/ttyUSB1")], removal_grace=60),
    )
    host.step(0, STICK, OTHER)
    host.step(10)
    assert host.figures.due == 15
    assert (host.step(15)[ZIGBEE], host.advertised(ZWAVE)) == ("0", 1)
    assert host.figures.due == 70


def test_a_stick_plugged_again_within_the_grace_writes_nothing() -> None:
    """Not even the annotation changes, while udev is still busy with the stick and when it has come back."""
    host = Host.of()
    host.step(0, STICK)
    assert [host.step(10), host.step(11, again(BARE)), host.step(11.5, again(STICK)), host.step(20, again(STICK))] == [
        {}
    ] * 4


def test_an_adapter_whose_ports_come_back_one_by_one_writes_nothing() -> None:
    """One port already makes the count; the annotation waits for the others too."""
    host = Host.of()
    host.step(0, *quad())
    back = [again(port) for port in quad()]
    written = [host.step(10 + 0.1 * number, *back[:number]) for number in range(5)]
    assert [*written, host.step(20, *back)] == [{}] * 6


def test_a_port_that_stays_away_leaves_the_list_after_the_grace() -> None:
    """The count of the adapter is as before, what is listed is not; the loop turns in time for it."""
    host = Host.of()
    host.step(0, *quad())
    assert host.step(10, *quad()[:3]) == {}
    assert host.figures.due == 12
    assert host.step(12, *quad()[:3]).keys() == {ANNOTATION_PART}
    assert host.listed() == ["/dev/ttyUSB0", "/dev/ttyUSB1", "/dev/ttyUSB2"]


@pytest.mark.parametrize("rules", [(rule(),), (rule(ZIGBEE, [BY_PORT]), rule(ZWAVE))])
def test_a_twin_plugged_again_within_the_grace_writes_nothing(rules: Sequence[ResourceRule]) -> None:
    """The link that they share moves to the other and back, also where that belongs to another resource."""
    host = Host.of(*rules)
    first, second = twins()
    host.step(0, first, second)
    survivor = replace(first, links=(SHARED_LINK,))
    assert host.step(10, survivor) == {}
    assert host.step(11, first, again(second)) == {}


def test_more_devices_than_are_listed_plugged_again_within_the_grace_write_nothing() -> None:
    """What the annotation omits it cannot tell, and does not have to."""
    host = Host.of(rule(count=Count.DEVNODE))
    sticks = [device(f"ttyUSB{index}") for index in range(20)]
    host.step(0, *sticks)
    assert host.step(10, *sticks[:3], *sticks[5:19]) == {}
    assert host.step(10.5) == {}
    assert host.step(11, *map(again, sticks)) == {}


def test_a_foreign_write_is_repaired_while_a_port_is_away() -> None:
    """Only the list waits for it."""
    host = Host.of()
    host.step(0, *quad())
    host.node = apply(host.node, {ZIGBEE: "0"})
    assert host.step(10, *quad()[:3])[ZIGBEE] == "1"


def test_what_is_listed_of_a_resource_waits_for_no_device_of_another() -> None:
    """One stick is away for its long grace; another resource has one for another meanwhile, and says so at once."""
    host = Host.of(rule(ZWAVE, [entry(vendor="0658")], removal_grace=3600), rule(ZIGBEE))
    host.step(0, device("ttyACM0", vendor="0658"), STICK)
    host.step(10, STICK)
    assert host.step(11, OTHER).keys() == {ANNOTATION_PART}
    assert (host.listed(ZWAVE), host.listed(ZIGBEE)) == (["/dev/ttyACM0"], ["/dev/ttyUSB1"])


def test_a_stick_that_comes_back_under_another_name_is_listed_by_that_at_once() -> None:
    """The name is taken while a pod holds the old devnode open; the count stays."""
    host = Host.of()
    host.step(0, STICK)
    assert host.step(10) == {}
    assert host.step(11, again(STICK, "ttyUSB1")).keys() == {ANNOTATION_PART}
    assert host.listed() == ["/dev/ttyUSB1"]
    assert host.step(20, again(STICK, "ttyUSB1")) == {}


def test_one_pulled_and_another_plugged_within_the_grace_are_one() -> None:
    """A lingering device is never added to a present one: a pod would be bound to a stick that is not there."""
    host = Host.of()
    host.step(0, STICK)
    assert host.step(10) == {}
    assert host.step(11, OTHER).keys() == {ANNOTATION_PART}
    assert (host.advertised(), host.listed()) == (1, ["/dev/ttyUSB1"])
    host.step(20, OTHER)
    assert (host.advertised(), host.present()) == (1, 1)


def test_while_more_is_advertised_than_present_the_lost_devices_stay_listed() -> None:
    """Whoever asks what is behind a count of two sees two; after the grace, one."""
    host = Host.of(rule(ZIGBEE), rule(ZWAVE, [entry(vendor="0658")]))
    host.step(0, STICK, OTHER)
    assert host.step(10, OTHER, device("ttyACM0", vendor="0658"))[ZWAVE] == "1"
    assert (host.advertised(), host.listed()) == (2, ["/dev/ttyUSB0", "/dev/ttyUSB1"])
    host.step(12, OTHER)
    assert (host.advertised(), host.listed()) == (1, ["/dev/ttyUSB1"])


def test_a_devnode_whose_stick_was_changed_is_listed_once() -> None:
    """The name says which node it is; the present stick is the one behind it."""
    host = Host.of()
    host.step(0, device("ttyUSB0", serial="old"), OTHER)
    figures = host.see(10, device("ttyUSB0", serial="new", incarnation=2))
    listed = list_devices(figures, host.node.listing())[ZIGBEE]
    assert [(item.devnode, item.serial) for item in listed] == [("/dev/ttyUSB0", "new"), ("/dev/ttyUSB1", None)]


# -- the start


def test_after_a_start_the_figure_of_the_node_counts_for_ten_seconds() -> None:
    """Sticks that are still settling when the daemon comes up were there before: nothing is written for their absence."""
    host = Host.of(zigbee="2")
    host.tally.start(host.node, 5)
    host.step(5, STICK)
    assert (host.advertised(), host.figures.due) == (2, 15)
    host.step(14.999, STICK)
    assert host.advertised() == 2
    assert host.step(15, STICK)[ZIGBEE] == "1"
    assert host.figures.due is None


def test_a_longer_grace_holds_for_the_start_too() -> None:
    """Ten seconds are the least."""
    host = Host.of(rule(removal_grace=60), zigbee="1")
    host.tally.start(host.node, 0)
    host.step(59)
    assert (host.advertised(), host.figures.due) == (1, 60)
    assert host.step(60)[ZIGBEE] == "0"


def test_the_loop_turns_for_whatever_falls_first() -> None:
    """A stick pulled soon after the start, of more than the Node showed then, has its own grace."""
    host = Host.of(zigbee="1")
    host.tally.start(host.node, 0)
    host.step(0, STICK, OTHER)
    host.step(1)
    assert (host.advertised(), host.figures.due) == (2, 3)
    host.step(3)
    assert (host.advertised(), host.figures.due) == (1, 10)


def test_the_figure_of_the_node_is_not_added_to_what_is_present() -> None:
    """Nor is it any reason to count less."""
    host = Host.of(zigbee="1")
    host.tally.start(host.node, 0)
    host.see(0, STICK, OTHER)
    assert host.advertised() == 2


def test_what_others_write_after_the_start_is_no_figure_of_the_start() -> None:
    """It is drift, and repaired at once."""
    host = Host.of(zigbee="1")
    host.tally.start(host.node, 0)
    host.node = apply(host.node, {ZIGBEE: "7"})
    assert host.step(1, STICK)[ZIGBEE] == "1"


def test_without_a_start_nothing_is_waited_for() -> None:
    """--once shows what is present."""
    host = Host.of(zigbee="2")
    assert host.step(0, STICK)[ZIGBEE] == "1"


def test_before_the_node_was_read_only_what_is_present_counts() -> None:
    """The first answer decides what else does."""
    inventory, tally = Inventory(), Tally((rule(),))
    inventory.observe(scan(STICK, doubts=("no /sys/class/tty/ttyUSB1",)))
    assert tally.count(inventory, None, 0).by_name[ZIGBEE].advertised == 1


# -- ignorance


@pytest.mark.parametrize("start", [True, False])
def test_an_uncertain_look_lowers_nothing(start: bool) -> None:  # noqa: FBT001  pytest passes by name
    """No descriptor left, an empty /sys, however long: an error is not an unplug. With --once too."""
    host = Host.of(zigbee="2")
    if start:
        host.tally.start(host.node, 0)
    for at in (0, 10, 3600):
        host.step(at, doubts=("no descriptor left",))
        assert host.advertised() == 2
    assert host.listed() == []


def test_an_uncertain_look_may_raise() -> None:
    """What it did find is there."""
    host = Host.of(zigbee="1")
    assert host.step(0, STICK, OTHER, doubts=("?",))[ZIGBEE] == "2"


def test_the_grace_begins_when_it_is_certain_again() -> None:
    """Nobody knows whether the stick was there until then."""
    host = Host.of()
    host.step(0, STICK)
    host.step(60, doubts=("?",))
    host.step(61)
    assert (host.advertised(), host.figures.due) == (1, 63)
    assert host.step(63)[ZIGBEE] == "0"


def test_an_uncertain_look_takes_no_port_off_the_list() -> None:
    """The count of the adapter is one anyway; its unreadable port is still its port, however long it cannot be read."""
    host = Host.of()
    host.step(0, *quad())
    assert host.step(10, *quad()[:3], doubts=("ttyUSB3: Input/output error",)) == {}
    assert host.step(100, *quad()[:3], doubts=("ttyUSB3: Input/output error",)) == {}


def test_while_a_device_is_unknown_for_a_resource_its_count_does_not_fall() -> None:
    """Without /run/udev no socket can be told: a stick that may be the one keeps what the Node shows."""
    host = Host.of(rule(ZIGBEE, [BY_PORT]), rule(ZWAVE, [entry(vendor="0658")]), zigbee="1", zwave="1")
    figures = host.see(0, BARE, udevd=False)
    assert (host.present(), host.advertised(), figures.by_name[ZIGBEE].held) == (0, 1, True)
    assert host.advertised(ZWAVE) == 0
    host.see(1)
    host.see(3)
    assert host.advertised() == 0


def test_what_is_unknown_for_a_moment_gives_what_is_away_no_further_grace() -> None:
    """A stick with a loose contact, whose record comes late each time, keeps no other one counted."""
    host = Host.of()
    host.step(0, STICK, OTHER)
    host.step(10, OTHER)
    host.step(10.5)
    unfinished = again(replace(OTHER, properties=None))
    host.step(11, unfinished)
    assert (host.present(), host.advertised()) == (0, 2)
    host.step(11.1, again(OTHER))
    assert (host.advertised(), host.figures.due) == (2, 12)
    assert host.step(12, again(OTHER))[ZIGBEE] == "1"


def test_a_count_with_an_unknown_device_may_rise() -> None:
    """What is known for certain counts at once."""
    host = Host.of(rule(ZIGBEE, [entry(port="x"), entry(serial="mine")]), zigbee="0")
    host.see(0, BARE, replace(OTHER, serial="mine"), udevd=False)
    assert host.advertised() == 1


def test_a_device_that_an_earlier_resource_may_want_holds_both_and_counts_for_none() -> None:
    """Counted for the later one it could be sold twice; taken from either it could be lost."""
    host = Host.of(rule(ZIGBEE, [BY_PORT]), rule(ZWAVE), zigbee="0", zwave="1")
    host.see(0, BARE, udevd=False)
    assert (host.present(ZIGBEE), host.present(ZWAVE)) == (0, 0)
    assert (host.advertised(ZIGBEE), host.advertised(ZWAVE)) == (0, 1)


def test_a_count_raised_by_a_stranger_is_not_kept_once_it_is_gone() -> None:
    """Ignorance lowers nothing that the Node shows; it is no reason to write what nobody ever counted."""
    host = Host.of(rule(ZIGBEE, [BY_PORT]), zigbee="1")
    host.tally.start(host.node, 0)
    host.see(0, BARE, udevd=False)
    host.node = apply(host.node, {ZIGBEE: "9"})
    host.see(20, BARE, udevd=False)
    assert host.advertised() == 9
    host.node = apply(host.node, {ZIGBEE: "1"})
    host.see(21, BARE, udevd=False)
    assert host.advertised() == 1


def test_a_count_lowered_by_a_stranger_is_repaired_in_ignorance_too() -> None:
    """A kubelet that restarts sets every extended resource to 0."""
    host = Host.of()
    host.step(0, STICK)
    host.node = apply(host.node, {ZIGBEE: "0"})
    assert host.step(60, doubts=("?",)) == {ZIGBEE: "1"}


def test_a_count_that_is_held_for_an_unknown_device_is_repaired_too() -> None:
    """A kubelet that restarts while nobody can tell which socket the stick is in takes nothing away, however long that lasts."""
    host = Host.of(rule(match=[BY_PORT]))
    host.step(0, replace(STICK, port="pci-usb-0:1:1.0"))
    host.see(60, again(BARE), udevd=False)
    host.node = apply(host.node, {ZIGBEE: "0"})
    host.see(61, again(BARE), udevd=False)
    assert (host.present(), host.advertised()) == (0, 1)


def test_a_stick_that_udev_has_not_finished_is_no_arrival_and_holds_the_count() -> None:
    """Plugged again late in the grace, it keeps its place until its record is there."""
    host = Host.of()
    host.step(0, STICK)
    host.step(10)
    host.step(11.9, again(BARE))
    assert host.step(13, again(BARE)) == {}
    assert (host.present(), host.advertised()) == (0, 1)
    host.step(14, again(STICK))
    assert (host.present(), host.advertised()) == (1, 1)


def test_a_new_stick_that_udev_has_not_finished_does_not_count_yet() -> None:
    """It counts with its record, or after ten seconds with what is known."""
    host = Host.of()
    host.step(0, BARE)
    assert (host.advertised(), host.inventory.due) == (0, 10)
    host.step(10, BARE)
    assert host.advertised() == 1


def test_a_stick_whose_link_udev_has_yet_to_make_holds_the_count() -> None:
    """The rule names a link, and none leads to the stick before its record is complete."""
    host = Host.of(rule(match=[BY_LINK]))
    stick = replace(STICK, links=(SHARED_LINK,))
    host.step(0, stick)
    host.step(10)
    unfinished = again(replace(BARE, links=()))
    host.step(11, unfinished)
    host.step(20.9, unfinished)
    assert (host.present(), host.advertised()) == (0, 1)
    assert host.step(20.95, again(stick)) == {}


def test_another_stick_that_udev_has_not_finished_holds_nothing() -> None:
    """Its vendor is known from sysfs, and is not the one."""
    host = Host.of(rule(match=[entry(vendor="0658")]), zigbee="1")
    host.see(0, BARE)
    assert host.advertised() == 0


# -- another configuration


def test_a_changed_configuration_keeps_what_lingers() -> None:
    """Reading the file again in the middle of a reset is no unplug."""
    host = Host.of()
    host.step(0, STICK)
    host.step(10)
    host.tally.configure((rule(ZWAVE, [entry(vendor="0658")]), rule(ZIGBEE)))
    host.step(11)
    assert (host.advertised(ZIGBEE), host.advertised(ZWAVE)) == (1, 0)
    assert host.step(12)[ZIGBEE] == "0"


def test_a_changed_configuration_keeps_what_must_not_fall() -> None:
    """What was counted at the start is not lost to a kubelet that zeroes the Node while nothing can be seen."""
    host = Host.of(zigbee="1")
    host.tally.start(host.node, 0)
    host.step(0)
    host.tally.configure((rule(),))
    host.node = apply(host.node, {ZIGBEE: "0"})
    assert host.step(12, doubts=("?",)) == {ZIGBEE: "1"}


def test_a_changed_configuration_writes_nothing_for_ports_that_are_still_to_come_back() -> None:
    """The list waits for them as before."""
    host = Host.of()
    host.step(0, *quad())
    host.tally.configure((rule(),))
    assert host.step(10, again(quad()[0])) == {}


@pytest.mark.parametrize("reconfigured", [False, True])
def test_a_stick_that_goes_to_another_resource_by_itself_leaves_its_own_after_the_grace(
    reconfigured: bool,  # noqa: FBT001  pytest passes by name
) -> None:
    """The twin that had the shared link is pulled for a moment: the link leads to the other meanwhile, and back again in time."""
    rules = (rule(ZIGBEE, [BY_LINK]), rule(ZWAVE))
    host, (first, second) = Host.of(*rules), twins()
    host.step(0, first, second)
    if reconfigured:
        host.tally.configure(rules)
        host.step(5, first, second)
    host.step(10, replace(first, links=(SHARED_LINK,)))
    assert (host.advertised(ZIGBEE), host.advertised(ZWAVE), host.present(ZWAVE)) == (1, 1, 0)
    host.step(12, replace(first, links=(SHARED_LINK,)))
    assert (host.advertised(ZIGBEE), host.advertised(ZWAVE)) == (1, 0)


def test_a_resource_that_left_the_configuration_starts_anew_when_it_returns() -> None:
    """What was counted for it long ago says nothing."""
    host = Host.of(rule(removal_grace=60))
    host.step(0, STICK)
    host.tally.configure(())
    host.see(1)
    host.tally.configure((rule(removal_grace=60),))
    host.node = NodeState()
    host.see(2, doubts=("?",))
    assert (host.advertised(), host.figures.away) == (0, False)


@pytest.mark.parametrize("started", [False, True])
def test_what_was_counted_by_devnode_says_nothing_of_devices(
    started: bool,  # noqa: FBT001  pytest passes by name
) -> None:
    """Four ports on one chip are one device at once, whatever the grace, after a start as well."""
    host = Host.of(rule(removal_grace=60, count=Count.DEVNODE), zigbee="4")
    if started:
        host.tally.start(host.node, 0)
    host.step(0, *quad())
    assert host.advertised() == 4
    host.tally.configure((rule(removal_grace=60),))
    host.step(1, *quad())
    assert host.advertised() == 1


# -- what is written


def figures_of(*devices: Device, rules: Sequence[ResourceRule] = (rule(),)) -> Figures:
    """Return what these devices come to."""
    host = Host.of(*rules)
    return host.see(0, *devices)


def node_of(listed: str | None = None, **counts: str) -> NodeState:
    """Return a Node with counts in both maps and an annotation."""
    maps = {f"example.com/{name}": count for name, count in counts.items()}
    writers = dict.fromkeys((*maps, ANNOTATION_PART), (Writer(manager="devwatch", time=""),))
    return NodeState(capacity=maps, allocatable=maps, annotation=listed, writers=writers)


LISTED = render_listing({ZIGBEE: (Entry.of(STICK),)})
NONE_LISTED = render_listing({ZIGBEE: ()})


def test_nothing_is_written_where_the_node_shows_it() -> None:
    """1k is 1000, and a quiet host costs the API server nothing."""
    assert changes(figures_of(STICK), node_of(LISTED, zigbee="1")) == {}
    assert changes(figures_of(), node_of(NONE_LISTED, zigbee="0e0")) == {}


def test_every_resource_is_written_zero_included() -> None:
    """Without the key the kubelet would start a pod without its device."""
    assert changes(figures_of(), NodeState()) == {ZIGBEE: "0", ANNOTATION_PART: NONE_LISTED}


@pytest.mark.parametrize("part", ["capacity", "allocatable"])
def test_one_wrong_map_is_enough_to_write(part: str) -> None:
    """The kubelet zeroes one, a stranger the other."""
    wrong = replace(node_of(LISTED, zigbee="1"), **{part: {}})  # type: ignore[arg-type]  # both are maps
    assert changes(figures_of(STICK), wrong) == {ZIGBEE: "1"}


def test_a_resource_that_left_the_configuration_is_removed() -> None:
    """Also when it was dropped while the daemon was down: the annotation remembers it."""
    listed = render_listing({ZIGBEE: (Entry.of(STICK),), ZWAVE: (Entry.of(OTHER),)})
    node = node_of(listed, zigbee="1", zwave="1")
    assert changes(figures_of(STICK), node) == {ZWAVE: None, ANNOTATION_PART: LISTED}
    assert changes(Figures(), node) == {ZIGBEE: None, ZWAVE: None, ANNOTATION_PART: None}


def test_a_resource_that_is_in_one_map_only_is_removed_too() -> None:
    """A kubelet may have taken it from the other already."""
    listed = render_listing({ZWAVE: ()})
    node = replace(node_of(listed, zwave="0"), capacity={})
    assert changes(Figures(), node) == {ZWAVE: None, ANNOTATION_PART: None}


def test_what_was_written_is_removed_though_the_node_was_never_seen_with_it() -> None:
    """A request without an answer may have been stored, its annotation overwritten since; what is configured is no such leftover."""
    node = node_of(LISTED, zigbee="1")
    assert changes(figures_of(STICK), node, written={ZWAVE, ZIGBEE}) == {ZWAVE: None}


@pytest.mark.parametrize("written", [set(), {ZIGBEE}])
def test_a_resource_that_is_left_out_stays_as_it_is(written: set[str]) -> None:
    """While it is unknown which pods have it in a former way of publishing, also where this daemon has written it before."""
    figures = replace(figures_of(STICK), left_out=frozenset({ZIGBEE}))
    assert changes(figures, node_of(NONE_LISTED, zigbee="3"), written=written) == {}


def test_what_devwatch_does_not_own_is_never_removed() -> None:
    """The resources of others stay, whatever the annotation says of names that are none of an extended resource."""
    maps = {"cpu": "4", "kubernetes.io/x": "1", "nvidia.com/gpu": "2"}
    node = NodeState(capacity=maps, allocatable=maps, annotation='{"cpu":[],"kubernetes.io/x":[]}')
    assert changes(Figures(), node) == {ANNOTATION_PART: None}


USER, KUBELET = Writer(manager="kubectl-annotate", time="", subresource=""), Writer(manager="kubelet", time="")


@pytest.mark.parametrize("writers", [(USER,), (), (USER, *node_of("").writers[ANNOTATION_PART])])
def test_an_annotation_that_others_wrote_owns_nothing(writers: tuple[Writer, ...]) -> None:
    """Who may only annotate a Node must not take away what another device plugin advertises."""
    node = node_of('{"nvidia.com/gpu":[]}')
    gpus = {"nvidia.com/gpu": "2"}
    node = replace(
        node, capacity=gpus, allocatable=gpus, writers={ANNOTATION_PART: writers, "nvidia.com/gpu": (KUBELET,)}
    )
    assert changes(figures_of(), node) == {ZIGBEE: "0", ANNOTATION_PART: NONE_LISTED}


@pytest.mark.parametrize("part", ["capacity", "allocatable"])
def test_a_count_that_others_wrote_is_left_alone(part: str) -> None:
    """In either map: the name is dropped from the annotation, and the Node keeps it."""
    node = node_of(render_listing({ZIGBEE: (), ZWAVE: ()}), zigbee="0", zwave="2")
    ours = replace(node.writers[ZWAVE][0], maps=frozenset(MAPS) - {part})
    theirs = replace(KUBELET, maps=frozenset({part}))
    node = replace(node, writers={**node.writers, ZWAVE: (ours, theirs)})
    assert changes(figures_of(), node) == {ANNOTATION_PART: NONE_LISTED}


def test_a_count_that_may_yet_be_stored_stays_on_record() -> None:
    """Another client had the name when the Node was last seen; a PATCH without an answer may make it ours."""
    both = render_listing({ZIGBEE: (), ZWAVE: ()})
    node = node_of(NONE_LISTED, zigbee="0", zwave="2")
    node = replace(node, writers={**node.writers, ZWAVE: (KUBELET,)})
    assert changes(figures_of(), node, written={ZWAVE}) == {ANNOTATION_PART: both}
    figures = figures_of()
    away = replace(figures, by_name={ZIGBEE: replace(figures.by_name[ZIGBEE], away=True)})
    assert changes(away, node, written={ZWAVE}) == {ANNOTATION_PART: both}
    assert changes(figures_of(), node) == {}


def test_a_malformed_annotation_is_overwritten() -> None:
    """What is ours is on record again, and nothing was removed on the word of the former text."""
    node = node_of('{"example.com/zwave": [], "x": 1}', zigbee="1", zwave="1")
    assert changes(figures_of(STICK), node) == {ANNOTATION_PART: LISTED}


def test_while_a_devnode_is_away_what_is_ours_is_put_on_record_all_the_same() -> None:
    """A foreign write to the annotation cannot wait for the stick: without the names nothing is ever cleaned up."""
    host = Host.of()
    host.step(0, STICK)
    host.node = replace(host.node, annotation=None)
    assert host.step(1) == {ANNOTATION_PART: NONE_LISTED}


def test_a_dropped_resource_that_is_refused_keeps_its_name_until_it_is_gone() -> None:
    """Sent apart, the annotation could forget the name before the removal goes through: then nobody would ever remove it."""
    both = render_listing({ZIGBEE: (Entry.of(STICK),), ZWAVE: (Entry.of(OTHER),)})
    node = node_of(both, zigbee="1", zwave="1")
    apart = {ZWAVE, ANNOTATION_PART}
    wanted = changes(figures_of(STICK), node, isolated=apart)
    assert wanted == {ZWAVE: None}
    node = apply(node, portion(wanted, isolated=apart, blocked=set()))
    wanted = changes(figures_of(STICK), node, isolated={ANNOTATION_PART})
    assert wanted == {ANNOTATION_PART: LISTED}
    assert portion(wanted, isolated={ANNOTATION_PART}, blocked=set()) == wanted


def test_a_dropped_resource_that_comes_back_is_on_record_again() -> None:
    """Its removal was accepted and undone: whoever is killed then leaves the name to the next daemon."""
    node = node_of(LISTED, zigbee="1", zwave="1")
    both = render_listing({ZIGBEE: (Entry.of(STICK),), ZWAVE: ()})
    assert changes(figures_of(STICK), node, isolated={ZWAVE}, written={ZWAVE}) == {ZWAVE: None, ANNOTATION_PART: both}
    node = replace(node, annotation=both)
    assert changes(figures_of(STICK), node, isolated={ZWAVE}, written={ZWAVE}) == {ZWAVE: None}


def test_a_dropped_resource_outlives_a_refused_annotation() -> None:
    """It goes with the rest, and the annotation follows when it is gone."""
    both = render_listing({ZIGBEE: (Entry.of(STICK),), ZWAVE: ()})
    node = node_of(both, zigbee="0", zwave="1")
    wanted = changes(figures_of(STICK), node, isolated={ANNOTATION_PART})
    assert wanted == {ZIGBEE: "1", ZWAVE: None}
    assert portion(wanted, isolated={ANNOTATION_PART}, blocked={ANNOTATION_PART}) == wanted
    assert changes(figures_of(STICK), apply(node, wanted), isolated={ANNOTATION_PART}) == {ANNOTATION_PART: LISTED}


def test_a_count_that_is_refused_is_listed_as_it_is_now() -> None:
    """What was sent apart is no reason to list what was there before."""
    node = node_of(render_listing({ZIGBEE: (Entry.of(OTHER),)}), zigbee="0")
    assert changes(figures_of(STICK), node, isolated={ZIGBEE, ANNOTATION_PART}) == {
        ZIGBEE: "1",
        ANNOTATION_PART: LISTED,
    }


def test_what_was_written_and_perhaps_listed_stays_on_record_until_it_is_gone() -> None:
    """The answers got lost that would have shown the annotation with its name."""
    wanted = changes(Figures(), NodeState(), isolated={ZWAVE, ANNOTATION_PART}, written={ZWAVE})
    assert wanted == {ZWAVE: None, ANNOTATION_PART: render_listing({ZWAVE: ()})}
    assert changes(Figures(), NodeState(), written={ZWAVE}) == {ZWAVE: None}


# -- one request after the other


def test_everything_goes_in_one_request() -> None:
    """As long as nothing was refused."""
    wanted = {ZIGBEE: "1", ZWAVE: None, ANNOTATION_PART: "{}"}
    assert portion(wanted, isolated=set(), blocked=set()) == wanted
    assert portion({}, isolated=set(), blocked=set()) == {}


def test_what_was_refused_in_company_goes_one_by_one_after_the_rest() -> None:
    """So one bad part holds up no other. The annotation goes first: what is ours is written down before it is advertised."""
    wanted = {ZIGBEE: "1", ZWAVE: "0", ANNOTATION_PART: "{}"}
    assert portion(wanted, isolated={ZIGBEE, ANNOTATION_PART}, blocked=set()) == {ANNOTATION_PART: "{}"}
    assert portion(wanted, isolated={ZIGBEE, ANNOTATION_PART}, blocked={ANNOTATION_PART}) == {ZWAVE: "0"}
    assert portion(wanted, isolated={ZIGBEE}, blocked=set()) == {ZWAVE: "0", ANNOTATION_PART: "{}"}
    assert portion(wanted, isolated={*wanted}, blocked=set()) == {ANNOTATION_PART: "{}"}
    assert portion(wanted, isolated={*wanted}, blocked={ANNOTATION_PART}) == {ZIGBEE: "1"}
    assert portion(wanted, isolated={*wanted}, blocked={ANNOTATION_PART, ZIGBEE}) == {ZWAVE: "0"}
    assert portion(wanted, isolated={*wanted}, blocked={*wanted}) == {}


some = st.sets(st.sampled_from((ZIGBEE, ZWAVE, "a.b/c", ANNOTATION_PART)))


@given(st.dictionaries(st.sampled_from((ZIGBEE, ZWAVE, "a.b/c", ANNOTATION_PART)), st.just("1")), some, some)
def test_every_request_takes_a_part_that_is_not_blocked(wanted: Parts, apart: set[str], blocked: set[str]) -> None:
    """Whatever is refused, the rest comes to its turn, and nothing that is blocked goes along."""
    sent = portion(wanted, isolated=apart, blocked=blocked)
    assert sent.items() <= wanted.items()
    assert not sent.keys() & blocked
    assert bool(sent) == bool(wanted.keys() - blocked)
    assert len(sent) == 1 or not sent.keys() & apart


# -- whatever happens

RULES = (
    rule(ZWAVE, [entry(interface="00")], removal_grace=3),
    rule(ZIGBEE, [entry(vendor="10c4")], exclude=(BY_PORT,), removal_grace=5),
    rule("a.b/nodes", [entry(vendor="0403")], count=Count.DEVNODE, removal_grace=0),
)
plugs = st.lists(
    st.builds(
        lambda number, body, **fields: device(f"ttyUSB{number}", physical=f"/devices/usb/{body}", **fields),
        st.integers(min_value=0, max_value=4),
        st.integers(min_value=0, max_value=2),
        incarnation=st.integers(min_value=1, max_value=2),
        vendor=st.sampled_from(("10c4", "0403", "0658")),
        interface=st.sampled_from(("00", "01")),
        port=st.sampled_from(("pci-usb-0:1:1.0", "pci-usb-0:2:1.0")),
        properties=st.sampled_from(({}, {}, {}, None)),
    ),
    max_size=5,
    unique_by=lambda found: found.devnode,
).map(tuple)
waits = st.integers(min_value=0, max_value=6)
finished = plugs.map(lambda found: tuple(replace(stick, properties={}) for stick in found))
listings = st.dictionaries(
    st.sampled_from((ZIGBEE, ZWAVE, "old.example/gone")),
    st.lists(st.builds(Entry, devnode=st.sampled_from(("/dev/ttyUSB0", "/dev/ttyUSB9"))), max_size=2).map(tuple),
)
texts = st.none() | st.text(max_size=20) | listings.map(render_listing)
maps = st.dictionaries(
    st.sampled_from((ZIGBEE, ZWAVE, "old.example/gone", "cpu", "nvidia.com/gpu")), st.sampled_from(("0", "1", "3", "x"))
)
nodes = st.builds(NodeState, capacity=maps, allocatable=maps, annotation=texts)
doubted = st.sampled_from(((), (), ("?",)))


@pytest.mark.no_cover
@given(st.lists(st.tuples(waits, finished), min_size=1, max_size=12))
def test_the_count_is_the_largest_number_present_lately(steps: list[tuple[int, tuple[Device, ...]]]) -> None:
    """Of each resource, at any look within its grace: never more, so that nothing is sold twice, and never less."""
    host = Host.of(*RULES)
    times = list(accumulate(wait for wait, _ in steps))
    present: list[dict[str, int]] = []
    for at, (_, devices) in zip(times, steps, strict=True):
        host.see(at, *devices)
        present.append({name: figure.present for name, figure in host.figures.by_name.items()})
        ends = [*times[1 : len(present)], None]
        for counted in RULES:
            lately = [
                counts[counted.name]
                for counts, end in zip(present, ends, strict=True)
                if end is None or end + counted.removal_grace > at
            ]
            assert host.advertised(counted.name) == max(lately)


@pytest.mark.no_cover
@given(st.lists(st.tuples(waits, plugs, doubted), min_size=1, max_size=12), nodes, st.booleans())
def test_ignorance_lowers_nothing_and_no_device_is_sold_twice(
    steps: list[tuple[int, tuple[Device, ...], tuple[str, ...]]],
    node: NodeState,
    start: bool,  # noqa: FBT001  hypothesis passes by position
) -> None:
    """Whatever is plugged, pulled, unfinished or unreadable, on whatever Node."""
    host = Host(Tally(RULES), node)
    if start:
        host.tally.start(node, 0)
    for at, (_, devices, doubts) in zip(accumulate(wait for wait, _, _ in steps), steps, strict=True):
        before = {name: figure.advertised for name, figure in host.figures.by_name.items()}
        shown = {counted.name: host.node.count(counted.name) for counted in RULES}
        host.step(at, *devices, doubts=doubts)
        counted_devnodes = [found.devnode for figure in host.figures.by_name.values() for found in figure.devices]
        assert len(counted_devnodes) == len(set(counted_devnodes))
        for name, figure in host.figures.by_name.items():
            assert figure.advertised >= figure.present
            assert figure.due is None or figure.due > at
            assert not doubts or figure.held
            if figure.held:
                assert figure.advertised >= max(before.get(name, 0), shown[name])


@pytest.mark.no_cover
@given(st.lists(st.tuples(waits, plugs, doubted), min_size=1, max_size=4), nodes, nodes, some)
def test_one_accepted_request_and_there_is_nothing_left_to_write(
    steps: list[tuple[int, tuple[Device, ...], tuple[str, ...]]], node: NodeState, written: NodeState, apart: set[str]
) -> None:
    """From any Node, and after any foreign write: a daemon that goes on writing would never rest. Nothing foreign is touched."""
    host = Host(Tally(RULES), node)
    host.tally.start(node, 0)
    for at, (_, devices, doubts) in zip(accumulate(wait for wait, _, _ in steps), steps, strict=True):
        host.step(at, *devices, doubts=doubts)
    wanted = changes(host.figures, written, isolated=apart - {ANNOTATION_PART})
    mine = {ANNOTATION_PART, *host.figures.by_name, *parse_listing(written.annotation or "")}
    assert wanted.keys() <= mine
    after = apply(written, wanted)
    for name in ("cpu", "nvidia.com/gpu"):
        assert after.capacity.get(name) == written.capacity.get(name)
        assert after.allocatable.get(name) == written.allocatable.get(name)
    left = changes(host.figures, after)
    assert left.keys() <= ({ANNOTATION_PART} if apart else set())
    assert changes(host.figures, apply(after, left)) == {}


def test_a_devnode_that_goes_to_another_resource_counts_once() -> None:
    """When another configuration moves a present devnode, no grace keeps it in the count of its former resource."""
    host = Host.of(rule(ZIGBEE))
    host.step(0, STICK)
    host.tally.configure((rule(ZWAVE), rule(ZIGBEE)))
    host.step(1, STICK)
    assert (host.advertised(ZIGBEE), host.advertised(ZWAVE)) == (0, 1)


# -- devices that a ResourceSlice offers

CLAIMED = rule(publish=Publish.DRA)


def test_a_resource_of_a_slice_is_zero_on_the_node() -> None:
    """A figure of the Node above that would be used instead of the slice. The annotation tells the way even without a device."""
    host = Host.of(CLAIMED)
    assert host.step(0)[ZIGBEE] == "0"
    assert [entry.publish for entry in host.node.listing()[ZIGBEE]] == ["dra"]
    host.step(1, STICK)
    assert (host.node.count(ZIGBEE), host.advertised()) == (0, 1)
    (listed,) = host.node.listing()[ZIGBEE]
    (slot,) = host.figures.by_name[ZIGBEE].slots
    assert (listed.devnode, listed.id, listed.publish) == (STICK.devnode, slot.id, "dra")


def test_after_a_start_the_listed_devices_of_a_slice_linger() -> None:
    """The Node's figure, 0, tells nothing of them; a lost one is none of them."""
    before = Host.of(CLAIMED)
    before.step(0, device(serial="S1"), device("ttyUSB9", serial="S9"))
    first, second = before.node.listing()[ZIGBEE]
    listed = render_listing({ZIGBEE: (first, replace(second, lost="2027-01-15T08:00:00Z"))})
    host = Host(Tally((CLAIMED,)), node_of(listed, zigbee="0"))
    host.tally.start(host.node, 100)
    host.see(100)
    assert host.advertised() == 1
    host.see(110.1)
    assert host.advertised() == 0
