"""Presence over time: when a device is there, how surely, and the largest number lately."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.core.inventory import ARRIVAL_TIMEOUT, Inventory, Window
from support.build import device, scan

BARE = device(properties=None)
COMPLETE = device()


def test_before_the_first_look_nothing_is_certain() -> None:
    """That no device was seen yet lowers no count: a start is not an unplug."""
    inventory = Inventory()
    assert not inventory.present
    assert not inventory.pending
    assert inventory.doubts == ("no scan yet",)
    assert inventory.due is None


def test_a_look_is_certain_without_doubts() -> None:
    """What is missing from an uncertain look may be there all the same."""
    assert scan().certain
    assert not scan(doubts=("/sys/class/tty: Too many open files",)).certain


def test_the_doubts_are_those_of_the_last_look() -> None:
    """One certain look ends the uncertainty."""
    inventory = Inventory()
    inventory.observe(scan(at=1, doubts=("no /sys",)))
    assert inventory.doubts == ("no /sys",)
    inventory.observe(scan(at=2))
    assert not inventory.doubts


def test_a_device_with_a_complete_record_is_there_at_once() -> None:
    """Nobody waits for a stick that udev has finished."""
    inventory = Inventory()
    inventory.observe(scan(COMPLETE))
    assert inventory.present == (COMPLETE,)
    assert not inventory.pending


def test_where_no_udevd_runs_no_record_is_waited_for() -> None:
    """A host without udevd has its devices as fast as any other."""
    inventory = Inventory()
    inventory.observe(scan(BARE, udevd=False))
    assert inventory.present == (BARE,)


def test_a_device_without_a_record_is_no_arrival_for_ten_seconds() -> None:
    """Counted by what sysfs says alone it could go to the wrong resource; a udevd that hangs holds it up no longer than that."""
    inventory = Inventory()
    inventory.observe(scan(BARE, at=5))
    assert not inventory.present
    assert [pending.key for pending in inventory.pending] == [BARE.key]
    assert inventory.due == 5 + ARRIVAL_TIMEOUT == 15
    inventory.observe(scan(BARE, at=14.999))
    assert not inventory.present
    inventory.observe(scan(BARE, at=15))
    assert inventory.present == (BARE,)
    assert inventory.due is None


def test_a_device_arrives_with_its_record() -> None:
    """The wait ends as soon as udev is done."""
    inventory = Inventory()
    inventory.observe(scan(BARE, at=0))
    inventory.observe(scan(COMPLETE, at=0.057))
    assert inventory.present == (COMPLETE,)
    assert inventory.due is None


def test_nobody_knows_the_links_of_a_device_that_waits() -> None:
    """Udev makes the links: that none leads to the device yet says nothing about the rule that names one."""
    inventory = Inventory()
    inventory.observe(scan(BARE, at=0))
    assert [pending.links_known for pending in inventory.pending] == [False]
    inventory.observe(scan(BARE, at=10))
    assert [present.links_known for present in inventory.present] == [True]


def test_the_next_to_arrive_is_the_one_that_waits_longest() -> None:
    """The loop turns in time for each of them."""
    inventory = Inventory()
    inventory.observe(scan(BARE, at=0))
    inventory.observe(scan(BARE, device("ttyUSB1", properties=None), at=4))
    assert inventory.due == 10


def test_a_device_that_has_arrived_stays_whatever_becomes_of_its_record() -> None:
    """A udevd that is restarted and rewrites its records takes no stick away."""
    inventory = Inventory()
    inventory.observe(scan(COMPLETE, at=0))
    inventory.observe(scan(BARE, at=100))
    assert inventory.present == (BARE,)


@pytest.mark.parametrize("change", [{"incarnation": 2}, {"number": 2}, {"devpath": "/devices/usb/2/ttyUSB0"}])
def test_a_stick_that_was_plugged_again_has_to_arrive_again(change: dict[str, object]) -> None:
    """The record of the former registration says nothing about this one, though the name is the same."""
    inventory = Inventory()
    inventory.observe(scan(COMPLETE, at=0))
    again = replace(BARE, **change)  # type: ignore[arg-type]  # each field with its own type
    inventory.observe(scan(again, at=1))
    assert not inventory.present
    assert inventory.due == 11


def test_a_certain_look_without_a_device_forgets_it() -> None:
    """What comes back later waits for its record from then on."""
    inventory = Inventory()
    inventory.observe(scan(COMPLETE, at=0))
    inventory.observe(scan(at=1))
    assert not inventory.present
    inventory.observe(scan(BARE, at=100))
    assert inventory.due == 110


def test_however_long_looks_are_uncertain_one_registration_of_each_name_is_remembered() -> None:
    """A stick with a loose contact fills no memory, though its folder may never be read for certain."""
    inventory, sizes = Inventory(), set()
    for number in range(1, 100):
        stick = device(incarnation=number, devpath=f"/devices/usb/{number % 3}/ttyUSB0")
        inventory.observe(scan(stick, device("ttyUSB1"), at=number, doubts=("?",)))
        sizes.add(len(pickle.dumps(inventory)))
    assert max(sizes) < min(sizes) + 100
    assert [stick.incarnation for stick in inventory.present] == [99, 1]


def test_what_has_arrived_without_a_record_stays_through_uncertain_looks() -> None:
    """It waited for its record long enough."""
    inventory, bare = Inventory(), device(properties=None)
    for at in (0, 10, 11, 12):
        inventory.observe(scan(bare, at=at, doubts=("?",) if at > 10 else ()))
    assert inventory.pending == ()


def test_an_uncertain_look_forgets_nothing() -> None:
    """A device that could not be seen for a moment neither arrives again nor waits again."""
    inventory = Inventory()
    late = device("ttyUSB1", properties=None)
    inventory.observe(scan(COMPLETE, late, at=0))
    inventory.observe(scan(at=5, doubts=("no descriptor left",)))
    assert not inventory.present
    inventory.observe(scan(BARE, late, at=6))
    assert inventory.present == (BARE,)
    assert inventory.due == 10


scans = st.lists(
    st.tuples(st.integers(min_value=0, max_value=5), st.integers(min_value=0, max_value=4)), min_size=1, max_size=30
)


def brute(history: list[tuple[int, int]], now: int, seconds: int) -> int:
    """Return the largest number that held at some moment after `now - seconds`, by trying each."""
    ends = [*(at for at, _ in history[1:]), None]
    return max(number for (_, number), end in zip(history, ends, strict=True) if end is None or end + seconds > now)


@given(scans, st.integers(min_value=0, max_value=8), st.integers(min_value=0, max_value=10))
def test_the_largest_lately_is_what_trying_each_look_finds(
    steps: list[tuple[int, int]], seconds: int, later: int
) -> None:
    """A number counts from its look until the next one, and for the grace after that."""
    window = Window()
    times = accumulate(wait for wait, _ in steps)
    history: list[tuple[int, int]] = []
    for at, (_, number) in zip(times, steps, strict=True):
        history.append((at, number))
        window.push(number, at)
        assert window.largest(at, seconds) == brute(history, at, seconds)
    now = history[-1][0] + later
    assert window.largest(now, seconds) == brute(history, now, seconds)


@given(scans, st.integers(min_value=0, max_value=8))
def test_the_largest_falls_when_it_said_it_would_and_not_before(steps: list[tuple[int, int]], seconds: int) -> None:
    """The loop sleeps until then: too late is a count too high, too early or in the past is a turn for nothing."""
    window = Window()
    now = 0
    for wait, number in steps:
        now += wait
        window.push(number, now)
    held = window.largest(now, seconds)
    while (due := window.due(seconds)) is not None:
        assert due > now
        assert window.largest(due - 1, seconds) == held
        now = int(due)
        fallen = window.largest(now, seconds)
        assert fallen < held
        held = fallen
    assert held == steps[-1][1]


def test_without_a_look_the_largest_is_nothing() -> None:
    """And it stays so until there is one."""
    assert Window().largest(0, 10) == 0
    assert Window().due(10) is None
