"""What people read in Events: what happened to a device, at most once a minute each, and at last what is so."""

from __future__ import annotations

import asyncio

from devwatch.agent.events import INTERVAL, EventRecorder
from devwatch.core.errors import Conflict
from devwatch.core.incidents import Loss
from devwatch.core.listing import Entry
from support import virtualtime
from support.build import ZIGBEE, device
from support.fakes import FakeWorkload, RecordingLog
from support.home import GRACE, USB1, Home, home, pod
from support.virtualtime import virtual


def told(one: Home) -> list[str]:
    """Return the reasons of the Events on the Node, in their order."""
    return [event.reason for _, event in one.workload.events if event.pod is None]


@virtual
async def test_a_flicker_within_the_grace_makes_no_event() -> None:
    """It changed nothing: neither a lone warning nor an addition."""
    async with home() as one:
        one.host.unplug()
        await asyncio.sleep(GRACE / 2)
        one.host.plug("0001", serial="S0")
        await asyncio.sleep(500)
        assert told(one) == []


@virtual
async def test_a_removal_is_told_when_its_grace_is_over() -> None:
    """Then the count falls."""
    async with home() as one:
        one.host.unplug()
        await asyncio.sleep(GRACE - 0.1)
        assert told(one) == []
        await asyncio.sleep(0.2)
        assert told(one) == ["DeviceRemoved"]


@virtual
async def test_after_a_pull_and_a_return_within_a_minute_the_last_event_is_the_return() -> None:
    """The second is told when the minute of the first is over: what `kubectl describe node` shows last is so."""
    async with home() as one:
        one.host.unplug()
        await asyncio.sleep(10)
        one.host.plug("0001", serial="S0")
        await asyncio.sleep(10)
        assert told(one) == ["DeviceRemoved"]
        await asyncio.sleep(INTERVAL)
        assert told(one) == ["DeviceRemoved", "DeviceAdded"]
        await asyncio.sleep(500)
        assert told(one) == ["DeviceRemoved", "DeviceAdded"]


@virtual
async def test_what_is_undone_within_the_minute_needs_no_second_event() -> None:
    """Plugged, pulled and plugged again: it was added, as the first Event says."""
    async with home(sticks=()) as one:
        for seconds in (5, 5, 500):
            one.host.plug("0001", serial="S0")
            await asyncio.sleep(seconds)
            if seconds < 500:
                one.host.unplug()
                await asyncio.sleep(seconds)
        assert told(one) == ["DeviceAdded"]


@virtual
async def test_a_stick_that_returns_in_another_socket_is_the_same_by_its_serial() -> None:
    """Its Events follow one another, whatever its name is now."""
    async with home() as one:
        one.host.unplug()
        await asyncio.sleep(10)
        one.host.plug("0001", USB1, serial="S0")
        await asyncio.sleep(200)
        assert told(one) == ["DeviceRemoved", "DeviceAdded"]


LOSS = Loss(
    resource=ZIGBEE,
    entries=(Entry(devnode=USB1),),
    left=0,
    since=0,
    due=0,
    there=frozenset(),
    lost="",
    accepted="",
    others=frozenset(),
)


def test_a_pod_of_the_same_name_is_told_once_a_minute() -> None:
    """A StatefulSet makes its pods under one name: a storm of them would be a storm of Events."""
    moment = [0.0]
    work = FakeWorkload(lambda: moment[0], latency=0)
    recorder = EventRecorder(api=work, log=RecordingLog(), node="n", clock=lambda: moment[0])
    for second in range(120):
        moment[0] = float(second)
        recorder.pod(pod("hub-0", uid=f"u{second}", owner="StatefulSet"), LOSS, "the pod is evicted")
        virtualtime.run(lambda: drain(recorder))
    assert [at for at, _ in work.events] == [0, 60]


async def drain(recorder: EventRecorder) -> None:
    """Send what is due."""
    while (task := recorder.action(recorder.clock())) is not None:
        await task.run()


def test_an_event_that_is_stored_already_is_not_an_error() -> None:
    """It was sent before, and a patch ended the request before its answer: its name is taken."""
    work, log = FakeWorkload(lambda: 0.0), RecordingLog()
    recorder = EventRecorder(api=work, log=log, node="n", clock=lambda: 0.0)
    work.error = Conflict('events "n.1" already exists (409)')
    for name in ("ttyUSB0", "ttyUSB1"):
        recorder.device("DeviceAdded", device(name), ZIGBEE)
    virtualtime.run(lambda: drain(recorder))
    assert not log.lines
    assert recorder.action(0) is None


def test_without_the_permission_nothing_waits_for_the_end_of_a_minute() -> None:
    """What was not told is not told later either: it may be wrong by then."""
    moment = [0.0]
    work = FakeWorkload(lambda: moment[0])
    recorder = EventRecorder(api=work, log=RecordingLog(), node="n", clock=lambda: moment[0])
    work.rights.clear()
    recorder.device("DeviceAdded", device(), ZIGBEE)
    recorder.device("DeviceRemoved", device(), ZIGBEE)
    virtualtime.run(lambda: drain(recorder))
    moment[0] = 2 * INTERVAL
    assert recorder.due(moment[0]) is None
    assert recorder.action(moment[0]) is None
