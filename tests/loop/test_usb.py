"""Whole USB devices on virtual time: counted, kept through a re-enumeration, and healed once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from devwatch.config.schema import parse
from devwatch.core.listing import parse_listing
from devwatch.core.pods import Container
from loop.test_deviceplugin import Site, site
from loop.test_holders import holds
from support.build import ZIGBEE
from support.fakes import EPOCH
from support.harness import now
from support.home import Home, home, pod
from support.virtualtime import virtual

if TYPE_CHECKING:
    from devwatch.config.schema import Config
    from devwatch.core.pods import Pod

CORAL = "coral.ai/edgetpu"
STATES = {"1a6e": "089a", "18d1": "9302"}
FIRST, SECOND = "{vendor: 1a6e, product: 089a}", "{vendor: 18d1, product: '9302'}"
BOTH = f"- {{name: {CORAL}, subsystem: usb, match: [{FIRST}, {SECOND}], evict: {{after: 30s}}}}\n"
ONE_BUS = "/dev/bus/usb"


def config(*resources: str) -> Config:
    """Return the configuration of these resources."""
    return parse(f"resources:\n{''.join(resources)}".encode(), file="config.yaml")


def plug(one: Home, vendor: str = "1a6e", number: int = 4, *, socket: str = "1-1", record: bool = True) -> str:
    """Plug a Coral in one of its states, under the devnode of this number; return the devnode."""
    devnode, body = f"/dev/bus/usb/001/{number:03}", f"/devices/usb1/{socket}"
    one.host.plug(
        vendor,
        devnode,
        number=number,
        record=record,
        subsystem="usb",
        product=STATES[vendor],
        devpath=body,
        physical=body,
        port=f"usb-0:{socket}",
    )
    return devnode


def shown(one: Home, name: str = CORAL) -> tuple[str | None, str | None]:
    """Return capacity and allocatable."""
    return one.server.shows(name)


@virtual
async def test_a_usb_device_counts_from_the_plug_to_the_end_of_the_grace() -> None:
    """As a tty does, whose resource is beside it."""
    async with home(used=config(BOTH, f"- {{name: {ZIGBEE}, match: [{{vendor: '0001'}}]}}\n")) as one:
        assert (shown(one), shown(one, ZIGBEE)) == (("0", "0"), ("1", "1"))
        devnode = plug(one)
        await asyncio.sleep(0.1)
        assert shown(one) == ("1", "1")
        one.host.unplug(devnode)
        await asyncio.sleep(1.5)
        assert shown(one) == ("1", "1")
        await asyncio.sleep(1)
        assert (shown(one), shown(one, ZIGBEE)) == (("0", "0"), ("1", "1"))


# -- a Coral that is used for the first time: it enumerates again, with other ids and another devnode


async def use(one: Home, devnode: str, number: int, *, away: float = 0.8) -> str:
    """Let the Coral enumerate again, as its firmware does; udevd needs a moment. Return its devnode."""
    one.host.unplug(devnode)
    await asyncio.sleep(away)
    devnode = plug(one, "18d1", number, record=False)
    await asyncio.sleep(0.1)
    one.host.finish(devnode)
    return devnode


def holder(path: str) -> Pod:
    """Return a pod that starts now, with this path mounted."""
    frigate = Container(name="frigate", mounts=(path,), started=int(EPOCH + now()))
    return pod("p", paths=(path,), resource=CORAL, containers=(frigate,))


@virtual
async def test_a_coral_counts_once_while_it_changes_its_ids() -> None:
    """No patch changes the count, and log and Events say that it returned."""
    async with home(used=config(BOTH), sticks=()) as one:
        devnode = plug(one)
        await asyncio.sleep(100)
        one.server.requests.clear()
        await use(one, devnode, 5)
        await asyncio.sleep(100)
        assert {request.changes.get(CORAL) for request in one.server.requests} <= {None}
        assert shown(one) == ("1", "1")
        (entry,) = parse_listing(one.server.state.annotation or "")[CORAL]
        assert (entry.devnode, entry.vendor, entry.product) == (f"{ONE_BUS}/001/005", "1a6e", "089a")
        assert (entry.subsystem, len(one.log.of("device.returned"))) == ("usb", 1)
        assert [event.reason for _, event in one.workload.events] == ["DeviceAdded"]


@virtual
async def test_a_holder_is_healed_once_and_then_let_be() -> None:
    """It has a dead file after the first use. What the Coral does while it is used again is not held against the next pod."""
    async with home(used=config(BOTH), sticks=()) as one:
        devnode = plug(one)
        one.workload.run(holder(devnode))
        await asyncio.sleep(100)
        used = now()
        devnode = await use(one, devnode, 5)
        await asyncio.sleep(29.5)
        assert one.evicted == []
        await asyncio.sleep(10)
        assert one.evicted == ["p"]
        assert one.workload.evicted[0][0] == pytest.approx(used + 30.9, abs=0.3)
        one.workload.run(holder(devnode))
        for number in (6, 7, 8):
            await asyncio.sleep(120)
            devnode = await use(one, devnode, number)
        await asyncio.sleep(60)
        assert one.evicted == ["p"]
        assert {str(line["reason"]).partition(":")[0] for line in one.refusals()} == {"recent"}


@virtual
async def test_a_pod_that_mounts_the_bus_finds_the_device_again_by_itself() -> None:
    """So it is spared, and told."""
    async with home(used=config(BOTH), sticks=()) as one:
        devnode = plug(one)
        one.workload.run(holder(ONE_BUS))
        await asyncio.sleep(100)
        await use(one, devnode, 5)
        await asyncio.sleep(300)
        assert one.evicted == []
        assert [str(line["reason"]).partition(":")[0] for line in one.refusals()] == ["directory"]


@virtual
async def test_a_coral_that_only_one_entry_matches_is_present_but_unmatched() -> None:
    """Its count falls when it is first used; it is not lost, so no pod is evicted."""
    text = f"- {{name: {CORAL}, subsystem: usb, match: [{FIRST}], evict: {{after: 1s}}}}\n"
    async with home(used=config(text), sticks=()) as one:
        devnode = plug(one)
        one.workload.run(holder(devnode))
        await asyncio.sleep(100)
        await use(one, devnode, 5)
        await asyncio.sleep(300)
        assert shown(one) == ("0", "0")
        assert one.evicted == []


@virtual
async def test_the_kubelet_has_a_coral_under_one_id_throughout() -> None:
    """Its holder is evicted once for the return, by what the kubelet says; also a daemon that starts then knows the ID."""
    text = (
        f"- {{name: {ZIGBEE}, subsystem: usb, match: [{FIRST}, {SECOND}], publish: devicePlugin, evict: {{after: 5s}}}}"
    )
    async with site(used=config(text)) as one:
        devnode, twin = plug(one), plug(one, number=9, socket="1-2")
        await asyncio.sleep(100)
        (name, other) = (_id_of(one, each) for each in (devnode, twin))
        assert name.startswith("1a6e-089a-")
        assert other != name
        one.workload.run(pod("p", containers=(Container(name="c", started=int(EPOCH)),)))
        holds(one, "p", name)
        one.forget()
        devnode = await use(one, devnode, 5)
        await asyncio.sleep(60)
        assert _id_of(one, devnode) == name
        assert {frozenset(offer.ids) for _, offer in one.lists()} <= {frozenset({name, other})}
        assert [line.fields["pod"] for line in one.log.of("pod.evicted")] == ["home/p"]
        await one.restart()
        await asyncio.sleep(60)
        assert (_id_of(one, devnode), _id_of(one, twin)) == (name, other)
        assert one.taken.ids == {name, other}


def _id_of(one: Site, devnode: str) -> str:
    return next(name for name, target in one.kubelet.links.made.items() if target == devnode)


# -- the whole and its parts


WHOLE = "- {name: x/whole, subsystem: usb, match: [{vendor: '1a6e'}]}\n"
PART = "- {name: x/part, match: [{vendor: '1a6e'}]}\n"


@pytest.mark.parametrize("first", ["x/whole", "x/part"])
@virtual
async def test_a_device_counts_as_a_whole_or_by_its_parts(first: str) -> None:
    """The first resource that claims it excludes the other kind; the other devices of the second one count."""
    order = (WHOLE, PART) if first == "x/whole" else (PART, WHOLE)
    async with home(used=config(*order), sticks=()) as one:
        plug(one)
        one.host.plug("1a6e", "/dev/ttyACM0", physical="/devices/usb1/1-1")
        await asyncio.sleep(100)
        counts = {name: shown(one, name)[0] for name in ("x/whole", "x/part")}
        assert counts == {name: "1" if name == first else "0" for name in counts}
        (contested,) = one.log.of("device.contested")
        excluded = "/dev/ttyACM0" if first == "x/whole" else "/dev/bus/usb/001/004"
        assert (contested.fields["devnode"], contested.fields["claimed_by"]) == (excluded, first)
        one.host.plug("1a6e", "/dev/ttyACM1", physical="/devices/usb1/1-9")
        await asyncio.sleep(1)
        assert shown(one, "x/part")[0] == ("1" if first == "x/whole" else "2")


@virtual
async def test_a_part_with_the_same_ids_is_not_a_return_of_the_whole_device() -> None:
    """It comes when the device has gone."""
    lost, other = "/dev/bus/usb/001/004", "- {name: x/other, match: [{vendor: '0009'}]}\n"
    async with home(used=config(BOTH, other), sticks=()) as one:
        plug(one)
        one.workload.run(holder(lost))
        await asyncio.sleep(100)
        one.host.unplug(lost)
        await asyncio.sleep(0.5)
        one.host.plug("1a6e", "/dev/ttyACM0", product="089a")
        await asyncio.sleep(60)
        assert [line.fields["reason"] for line in one.log.of("pod.evicted")] == ["lost"]


# -- changes of the configuration


@virtual
async def test_a_resource_that_counts_another_subsystem_from_now_on_evicts_nobody() -> None:
    """The ttys are not looked at any more: none of them is lost, now or after a restart."""
    tty, usb = (
        f"- {{name: {ZIGBEE}, match: [{{vendor: '0001'}}], evict: {{after: 1s}}, subsystem: {each}}}"
        for each in ("tty", "usb")
    )
    async with home(pod(paths=("/dev/ttyUSB0",)), used=config(tty)) as one:
        one.reload(config(usb))
        await asyncio.sleep(60)
        assert shown(one, ZIGBEE) == ("0", "0")
        assert one.host.subsystems == {"usb"}
        assert (one.evicted, one.log.of("device.removed")) == ([], [])
    async with home(pod(paths=("/dev/ttyUSB0",)), used=config(tty)) as one:
        await one.kill()
        one.start(config(usb))
        await asyncio.sleep(60)
        assert (shown(one, ZIGBEE), one.evicted) == (("0", "0"), [])


@virtual
async def test_a_device_that_was_away_when_its_resource_changed_the_subsystem_evicts_nobody() -> None:
    """It is not known any more whether it is back."""
    tty, usb = (
        f"- {{name: {ZIGBEE}, match: [{{vendor: '0001'}}], evict: {{after: 20s}}, subsystem: {each}}}"
        for each in ("tty", "usb")
    )
    async with home(pod(paths=("/dev/ttyUSB0",)), used=config(tty)) as one:
        one.host.unplug()
        await asyncio.sleep(10)
        one.reload(config(usb))
        await asyncio.sleep(120)
        assert one.evicted == []
