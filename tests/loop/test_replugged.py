"""A stick that returns under another number leaves its pod with a dead file: who is evicted for that, and who is let be."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from devwatch.config.schema import parse
from devwatch.core.errors import Busy, Refused, Retry
from devwatch.core.node import Writer
from devwatch.core.pods import Container, Phase
from support.build import ZIGBEE, ZWAVE
from support.fakes import EPOCH
from support.home import AFTER, GRACE, USB0, USB1, Home, config, home, pod
from support.virtualtime import virtual

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from devwatch.core.pods import Pod

USB2, USB3 = "/dev/ttyUSB2", "/dev/ttyUSB3"
BY_ID = "/dev/serial/by-id/S0"
PARTS = """resources:
- {name: %s, match: [{vendor: '0001', properties: {PART: a}}], evict: {after: 30s}}
- {name: %s, match: [{vendor: '0001', properties: {PART: b}}], evict: {after: 30s}}
""" % (ZWAVE, ZIGBEE)  # noqa: UP031 - braces are of YAML
BY_PATH = "/dev/serial/by-path/socket"
CUSTOM = "/dev/zigbee"


DENIALS = {
    "a policy": Refused("label its namespace devwatch.io/evict=allowed (403)"),
    "too many requests": Busy("too many requests, please try again later (429)"),
    "a webhook that is away": Retry('Internal error occurred: failed calling webhook "a.io": connection refused (500)'),
}
"""How the API server refuses an eviction."""


def now() -> float:
    """Return the time of the loop, in seconds."""
    return asyncio.get_running_loop().time()


def holder(name: str = "p", *, path: str = BY_ID, started: float | None = 0, **fields: object) -> Pod:
    """Return a pod whose only container mounts a path, and started at a moment of the virtual clock, None for unknown."""
    own = {"name": "zigbee", "mounts": (path,), "started": None if started is None else int(EPOCH + started)}
    container = Container(**{**own, **fields})  # type: ignore[arg-type]  # the fields of a Container
    return pod(name, paths=(path,), containers=(container,))


def renumber(one: Home, *, devnode: str = USB0, number: int | None = None) -> None:
    """Let the stick return, by default under another number."""
    one.host.plug("0001", devnode, serial="S0", link=BY_ID, links=(CUSTOM,), number=number)


async def away(one: Home, seconds: float, *, devnode: str = USB0, number: int | None = None) -> None:
    """Pull the stick and plug it again."""
    one.host.unplug()
    await asyncio.sleep(seconds)
    renumber(one, devnode=devnode, number=number)


async def miss_a_return(one: Home, moment: float) -> None:
    """Let the stick return under another number at a moment at which no daemon runs, and wait for what the next one does."""
    await one.kill()
    one.host.unplug()
    properties = {"USEC_INITIALIZED": str(int(moment * 1e6))}
    one.host.plug("0001", USB0, serial="S0", link=BY_ID, properties=properties)
    await asyncio.sleep(100)
    one.start(config())
    await asyncio.sleep(500)


def told(one: Home) -> list[str]:
    """Return the messages of the Events `DeviceReplugged`."""
    return [event.message for _, event in one.workload.events if event.reason == "DeviceReplugged"]


@pytest.mark.parametrize("seconds", [0.5, GRACE + 1, GRACE + AFTER - 1])
@pytest.mark.parametrize("path", [BY_ID, USB0, f"/{USB0}"])
@virtual
async def test_a_pod_with_a_dead_file_is_evicted_after_the_return(seconds: float, path: str) -> None:
    """Within the grace, and between the grace and `after`; `after` the return, and said so."""
    async with home(holder(path=path)) as one:
        await away(one, seconds, devnode=USB1)
        returned = now()
        await asyncio.sleep(AFTER - 0.1)
        assert not one.workload.tried
        await asyncio.sleep(5)
        assert one.evicted == ["p"]
        (line,) = one.log.of("pod.evicted")
        assert line.fields["reason"] == "replugged"
        assert len(told(one)) == 1
        assert one.workload.evicted[0][0] == pytest.approx(returned + AFTER, abs=0.1)
        await asyncio.sleep(500)
        assert one.evicted == ["p"]


@virtual
async def test_a_return_that_is_seen_before_its_record_is_a_return() -> None:
    """The ids are known from sysfs; it has arrived when udev has finished."""
    async with home(holder()) as one:
        one.host.unplug()
        await asyncio.sleep(0.5)
        one.host.plug("0001", USB0, serial="S0", link=BY_ID, record=False)
        await asyncio.sleep(0.5)
        one.host.finish()
        await asyncio.sleep(AFTER + 5)
        assert one.evicted == ["p"]


@pytest.mark.parametrize(
    ("started", "evicted"), [(100, True), (104, True), (104.9, True), (105, False), (105.9, False), (107, False)]
)
@virtual
async def test_a_container_that_started_in_the_second_of_the_return_or_later_has_healed(
    started: float,
    evicted: bool,  # noqa: FBT001 - a parameter of pytest
) -> None:
    """One that started between pull and return has not: what it mounted was no device. The pull is at 100, the return at 105.5."""
    async with home(holder(started=started)) as one:
        await away(one, 5.5)
        await asyncio.sleep(AFTER + 5)
        assert one.evicted == (["p"] if evicted else [])
        assert len(told(one)) == evicted


SPARED = {
    "unknown start": holder(started=None),
    "waiting": holder(phase=Phase.WAITING, started=None),
    "directory": holder(path="/dev"),
    "bare": pod("p", owner="", paths=(BY_ID,), containers=holder().containers),
    "pinned": pod("p", owner="DaemonSet", paths=(BY_ID,), containers=holder().containers),
}


@pytest.mark.parametrize("reason", SPARED)
@virtual
async def test_who_may_have_healed_is_spared_and_told(reason: str) -> None:
    """By a line and an Event with the reason and what helps."""
    async with home(SPARED[reason]) as one:
        await away(one, 1)
        await asyncio.sleep(500)
        assert not one.workload.tried
        assert [str(line["reason"]).partition(":")[0] for line in one.refusals()] == [reason]
        assert [reason in message for message in told(one)] == [True]
        assert one.evictions("bare" if reason == "bare" else "spared") == 1


@pytest.mark.parametrize(
    "other",
    [
        holder(phase=Phase.FINISHED),
        holder(path="/dev/ttyUSB9"),
        holder(path="/device"),
        pod("p", paths=(BY_ID,)),
        pod("p", resource=ZWAVE, paths=(BY_ID,), containers=holder().containers),
        pod("p", phase="Succeeded", paths=(BY_ID,), containers=holder().containers),
        pod("p", terminating=True, paths=(BY_ID,), containers=holder().containers),
        pod("p", node="other", paths=(BY_ID,), containers=holder().containers),
    ],
)
@virtual
async def test_who_does_not_use_the_device_is_let_be_without_a_word(other: Pod) -> None:
    """Finished containers, other paths, other resources, pods that end anyway, and pods of another node."""
    async with home(other) as one:
        await away(one, 1)
        await asyncio.sleep(500)
        assert not one.workload.tried
        assert not one.refusals()
        assert not told(one)


@virtual
async def test_of_several_containers_one_with_a_dead_file_decides() -> None:
    """Sidecars included: the others cannot heal it."""
    healed, waiting = holder(started=200).containers, holder(phase=Phase.WAITING, started=None).containers
    async with home(pod("p", paths=(BY_ID,), containers=(*healed, *waiting, *holder().containers))) as one:
        await away(one, 1)
        await asyncio.sleep(500)
        assert one.evicted == ["p"]


@virtual
async def test_a_return_under_the_same_number_is_told_and_evicts_nobody() -> None:
    """The old mount opens the new device; the program has to open it again."""
    async with home(holder()) as one:
        await away(one, 1, number=1)
        await asyncio.sleep(500)
        assert not one.workload.tried
        assert len(told(one)) == 1


@virtual
async def test_a_container_that_restarts_before_its_turn_has_healed() -> None:
    """Its status is read again right before the eviction."""
    async with home(holder()) as one:
        await away(one, 1)
        await asyncio.sleep(AFTER - 1)
        one.workload.run(holder(started=now()))
        await asyncio.sleep(500)
        assert not one.workload.tried


@virtual
async def test_a_container_that_restarts_while_a_patch_hangs_has_healed() -> None:
    """The patch comes between the reading of its status and the eviction."""
    async with home(holder(), used=config(names=(ZIGBEE, ZWAVE))) as one:
        await away(one, 1)
        await asyncio.sleep(AFTER - 1)
        one.workload.latency, one.server.latency = 0.5, 5.0
        await asyncio.sleep(1.2)
        one.host.plug("0002", USB1)
        await asyncio.sleep(2)
        one.workload.run(holder(started=now()))
        await asyncio.sleep(500)
        assert not one.workload.tried


@virtual
async def test_a_budget_delays_it_and_a_restart_meanwhile_heals() -> None:
    """Each try reads the status again."""
    async with home(holder()) as one:
        one.workload.budgets = {"p": 1}
        await away(one, 1)
        await asyncio.sleep(AFTER + 60)
        assert len(one.workload.tried) > 2
        one.workload.run(holder(started=now()))
        one.workload.budgets = {}
        await asyncio.sleep(500)
        assert not one.evicted


@virtual
async def test_a_device_that_returns_whenever_it_is_used_evicts_once_in_ten_minutes() -> None:
    """Some sticks change their number when a program opens them: an eviction for each would never end."""
    async with home(holder()) as one:
        await away(one, 1)
        await asyncio.sleep(AFTER + 5)
        assert one.evicted == ["p"]
        one.workload.run(holder("q", started=now()))
        await asyncio.sleep(10)
        await away(one, 1)
        await asyncio.sleep(300)
        assert one.evicted == ["p"]
        assert "recent" in told(one)[-1]
        await asyncio.sleep(400)
        await away(one, 1)
        await asyncio.sleep(AFTER + 5)
        assert one.evicted == ["p", "q"]


@pytest.mark.parametrize("cancelled", [False, True], ids=["its answer is lost", "a patch cancels it"])
@virtual
async def test_an_eviction_that_may_have_taken_place_counts_for_the_ten_minutes(
    cancelled: bool,  # noqa: FBT001 - a parameter of pytest
) -> None:
    """The server has evicted the pod, though nothing says so: the device may return because the next one opens it."""
    async with home(holder(), used=config(names=(ZIGBEE, ZWAVE))) as one:
        one.workload.unanswered = {"p"}
        await away(one, 1)
        await asyncio.sleep(AFTER + 0.5)
        if cancelled:
            one.host.plug("0002", USB1)
        await asyncio.sleep(20)
        assert one.evicted == ["p"]
        one.workload.run(holder("q", started=now()))
        await asyncio.sleep(10)
        await away(one, 1)
        await asyncio.sleep(300)
        assert one.evicted == ["p"]
        assert any("recent" in text for text in told(one))


@virtual
async def test_evictions_that_fail_again_and_again_write_the_annotation_once() -> None:
    """Each may have taken place; one note of it is enough, since the Node is not to be written at every attempt."""
    async with home(holder()) as one:
        one.workload.denied["p"] = Retry("connection reset by peer")
        await away(one, 1)
        await asyncio.sleep(60)
        written = [request for request in one.server.requests if request.changes]
        await asyncio.sleep(600)
        assert [request for request in one.server.requests if request.changes] == written


@pytest.mark.parametrize("why", ["a budget", "two budgets", "no permission", *DENIALS])
@virtual
async def test_an_eviction_that_was_refused_does_not_count_for_them(why: str) -> None:
    """No pod was evicted, so the device does not return because of that."""
    async with home(holder()) as one:
        one.workload.budgets = {"a budget": {"p": 1}, "two budgets": {"p": 2}}.get(why, {})
        one.workload.denied = {"p": DENIALS[why]} if why in DENIALS else {}
        if why == "no permission":
            one.workload.rights -= {"create pods/eviction"}
        await away(one, 1)
        await asyncio.sleep(AFTER + 5)
        assert one.workload.tried
        one.workload.budgets, one.workload.denied = {}, {}
        one.workload.rights |= {"create pods/eviction"}
        await away(one, 1)
        await asyncio.sleep(AFTER + 60)
        assert one.evicted == ["p"]


@virtual
async def test_a_restart_does_not_forget_for_which_device_a_pod_was_evicted_a_moment_ago() -> None:
    """A daemon that is updated, or crashes again and again, would make the loop that the ten minutes are to prevent."""
    async with home(holder()) as one:
        await away(one, 1)
        await asyncio.sleep(AFTER + 5)
        assert one.evicted == ["p"]
        one.workload.run(holder("q", started=now()))
        await asyncio.sleep(10)
        await one.kill()
        one.start(config())
        await asyncio.sleep(20)
        await away(one, 1)
        await asyncio.sleep(200)
        assert one.evicted == ["p"]
        assert "recent" in told(one)[-1]


@pytest.mark.parametrize("restarted", [False, True])
@virtual
async def test_a_configuration_without_the_resource_does_not_forget_it_either(
    restarted: bool,  # noqa: FBT001 - a parameter of pytest
) -> None:
    """A file that is written anew again and again by some generator would make the loop that the ten minutes are to prevent."""
    async with home(holder()) as one:
        await away(one, 1)
        await asyncio.sleep(AFTER + 5)
        assert one.evicted == ["p"]
        one.workload.run(holder("q", started=now()))
        await asyncio.sleep(10)
        if restarted:
            await one.kill()
            one.start(config(evict=""))
        else:
            one.reload(config(evict=""))
        await asyncio.sleep(20)
        one.reload(config())
        await asyncio.sleep(20)
        await away(one, 1)
        await asyncio.sleep(200)
        assert one.evicted == ["p"]
        assert "recent" in told(one)[-1]


@virtual
async def test_a_pod_that_was_spared_has_a_good_file_after_a_return_under_its_number() -> None:
    """Spared for the ten minutes, its file led nowhere; then the device has its number again, and nothing else spares the pod."""
    async with home(holder()) as one:
        await away(one, 1, number=2)
        await asyncio.sleep(AFTER + 5)
        assert one.evicted == ["p"]
        one.workload.run(holder("q", started=now()))
        await asyncio.sleep(10)
        await away(one, 1, number=3)
        await asyncio.sleep(700)
        assert "recent" in told(one)[-1]
        await away(one, 1, number=2)
        await asyncio.sleep(200)
        assert one.evicted == ["p"]
        assert "same number" in told(one)[-1]


def plug_part(one: Home, part: str, devnode: str, *, interfaces: bool = True) -> None:
    """Let the kernel register one of the two devnodes of a stick, which have the same ids and are of two resources.

    The ports of some adapters have one interface; their links tell them apart.
    """
    number, link = 100 + int(devnode[-1]), f"{BY_ID}-{part}"
    one.host.plug("0001", devnode, serial="S", link=link, number=number, properties={"PART": part})
    one.host.change(devnode, interface=part if interfaces else None)
    one.host.change(devnode, physical="/devices/stick")


def plug_parts(one: Home, first: str, second: str, *, interfaces: bool = True) -> None:
    """Plug the stick."""
    plug_part(one, "a", first, interfaces=interfaces)
    plug_part(one, "b", second, interfaces=interfaces)


def holder_of_part(part: str, *, started: float = 0) -> Pod:
    """Return a pod that holds one of the two."""
    resource = ZWAVE if part == "a" else ZIGBEE
    return replace(holder(part, path=f"{BY_ID}-{part}", started=started), requests={resource: 1})


@asynccontextmanager
async def home_with_parts(*, interfaces: bool = True) -> AsyncIterator[Home]:
    """Have a stick with two devnodes, each with a pod."""
    async with home(sticks=(), used=parse(PARTS.encode(), file="config.yaml")) as one:
        plug_parts(one, USB0, USB1, interfaces=interfaces)
        one.workload.run(holder_of_part("a", started=now() + 1), holder_of_part("b", started=now() + 1))
        await asyncio.sleep(100)
        yield one


@virtual
async def test_the_parts_of_a_stick_take_over_each_other_s_names() -> None:
    """HUSBZB-1, with its first name still held by a program: the second part has a dead file, though its name is there again."""
    async with home_with_parts() as one:
        one.host.unplug(USB0)
        one.host.unplug(USB1)
        await asyncio.sleep(1)
        plug_parts(one, USB1, USB2)
        await asyncio.sleep(AFTER + 5)
        assert sorted(one.evicted) == ["a", "b"]


@pytest.mark.parametrize("interfaces", [True, False])
@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize("names", [(USB0, USB1), (USB1, USB0), (USB1, USB2), (USB2, USB3)])
@pytest.mark.parametrize("apart", [0.01, 1.0, GRACE + 1])
@virtual
async def test_the_parts_of_a_stick_come_one_after_the_other(
    apart: float,
    names: tuple[str, str],
    order: str,
    interfaces: bool,  # noqa: FBT001 - a parameter of pytest
) -> None:
    """The kernel registers one interface after the other: what has come is not the one that has yet to come."""
    async with home_with_parts(interfaces=interfaces) as one:
        one.host.unplug(USB0)
        one.host.unplug(USB1)
        await asyncio.sleep(1)
        for part in order:
            plug_part(one, part, names["ab".index(part)], interfaces=interfaces)
            await asyncio.sleep(apart)
        await asyncio.sleep(AFTER + 5)
        renumbered = [
            part for part, devnode, before in zip("ab", names, (USB0, USB1), strict=True) if devnode != before
        ]
        assert sorted(one.evicted) == renumbered


@virtual
async def test_a_name_that_a_device_of_another_resource_has_taken_is_dead_for_the_pod() -> None:
    """It mounted the name while its own device had it; who came while that was away has mounted the other one."""
    async with home_with_parts() as one:
        stayed = replace(holder("c", path=USB1, started=now()), requests={ZIGBEE: 1})
        one.workload.run(stayed)
        await asyncio.sleep(30)
        one.host.unplug(USB0)
        one.host.unplug(USB1)
        await asyncio.sleep(5)
        one.workload.run(replace(holder("d", path=USB1, started=now()), requests={ZIGBEE: 1}))
        await asyncio.sleep(5)
        plug_parts(one, USB1, USB2)
        await asyncio.sleep(AFTER + 5)
        assert sorted(one.evicted) == ["a", "b", "c"]


@pytest.mark.parametrize(("part", "name"), [("a", USB2), ("a", USB1), ("b", USB2), ("b", USB0)])
@virtual
async def test_the_part_that_stays_away_is_lost(part: str, name: str) -> None:
    """And the other has returned, whatever its name."""
    async with home_with_parts() as one:
        one.host.unplug(USB0)
        one.host.unplug(USB1)
        await asyncio.sleep(1)
        plug_part(one, part, name)
        await asyncio.sleep(GRACE + AFTER + 10)
        assert sorted(one.evicted) == ["a", "b"]
        reasons = {event.reason for _, event in one.workload.events if event.pod and event.pod.name != part}
        assert reasons == {"DeviceLost"}


@virtual
async def test_one_part_that_has_evicted_a_moment_ago_spares_the_pods_of_the_other_as_well() -> None:
    """It is the stick that returns whenever it is used, and it has both."""
    async with home_with_parts() as one:
        one.workload.end("home/b")
        one.host.unplug(USB0)
        one.host.unplug(USB1)
        await asyncio.sleep(1)
        plug_parts(one, USB2, USB3)
        await asyncio.sleep(AFTER + 5)
        assert one.evicted == ["a"]
        one.workload.run(holder_of_part("b", started=now()))
        await asyncio.sleep(10)
        one.host.unplug(USB2)
        one.host.unplug(USB3)
        await asyncio.sleep(1)
        plug_parts(one, USB0, USB1)
        await asyncio.sleep(AFTER + 5)
        assert one.evicted == ["a"]
        assert "recent" in told(one)[-1]


@virtual
async def test_a_loss_that_is_settled_does_not_forget_that_the_stick_has_evicted_a_moment_ago() -> None:
    """Its last pod was evicted for the loss; the next one, when the stick flaps again, is spared."""
    async with home(holder()) as one:
        await away(one, 1)
        await asyncio.sleep(AFTER + 5)
        one.workload.run(holder("q", started=now()))
        await asyncio.sleep(10)
        await away(one, GRACE + AFTER + 10)
        assert one.evicted == ["p", "q"]
        one.workload.run(holder("r", started=now() + 1))
        await asyncio.sleep(10)
        await away(one, 1)
        await asyncio.sleep(AFTER + 5)
        assert one.evicted == ["p", "q"]
        assert "recent" in told(one)[-1]


@virtual
async def test_who_mounted_the_name_before_the_last_has_a_dead_file_too() -> None:
    """A contact bounces twice: the devnode that the pod mounted is two names ago."""
    async with home(holder(path=USB0)) as one:
        await away(one, 1, devnode=USB1)
        await asyncio.sleep(10)
        one.host.unplug(USB1)
        await asyncio.sleep(1)
        renumber(one, devnode=USB2)
        await asyncio.sleep(AFTER + 5)
        assert one.evicted == ["p"]


@virtual
async def test_a_name_that_the_device_has_had_only_since_names_no_holder_from_before() -> None:
    """The container mounted what was there then, which was not the device."""
    async with home(holder(path=USB1)) as one:
        await away(one, 1, devnode=USB1)
        await asyncio.sleep(10)
        one.host.unplug(USB1)
        await asyncio.sleep(1)
        renumber(one, devnode=USB2)
        await asyncio.sleep(AFTER + 5)
        assert not one.workload.tried
        assert not told(one)


@virtual
async def test_a_container_that_started_before_the_device_came_has_no_file_of_it() -> None:
    """The path led to another one then; who can tell what the pod holds is told to look."""
    async with home(holder("old", started=90), holder("new", started=120), sticks=()) as one:
        for second, number in ((110, 5), (130, 6)):
            await asyncio.sleep(second - now())
            properties = {"USEC_INITIALIZED": f"{second}000000"}
            one.host.plug("0001", USB0, serial="S0", link=BY_ID, number=number, properties=properties)
            await asyncio.sleep(10)
            one.host.unplug()
        one.host.plug("0001", USB0, serial="S0", link=BY_ID, number=7, properties={"USEC_INITIALIZED": "140000000"})
        await asyncio.sleep(AFTER + 5)
        assert one.evicted == ["new"]
        assert "ambiguous" in next(message for message in told(one) if "stays" in message)


@virtual
async def test_daemons_that_are_killed_again_and_again_forget_no_number() -> None:
    """Each lists the numbers once more, and none of them twice: the list has room for a few only."""
    async with home(holder("dead")) as one:
        one.host.unplug()
        one.host.plug("0001", USB0, serial="S0", link=BY_ID, number=7, properties={"USEC_INITIALIZED": "100000000"})
        for _ in range(12):
            await asyncio.sleep(AFTER / 20)
            await one.kill()
            one.start(config())
        await asyncio.sleep(AFTER + 5)
        assert one.evicted == ["dead"]


@virtual
async def test_a_daemon_that_is_killed_leaves_every_number_to_the_next() -> None:
    """Who started between two returns has a good file if the second brings the number back that the first has brought."""
    async with home(holder("dead")) as one:
        one.host.unplug()
        one.host.plug("0001", USB0, serial="S0", link=BY_ID, number=7, properties={"USEC_INITIALIZED": "100000000"})
        one.workload.run(holder("good", started=105))
        await asyncio.sleep(10)
        await one.kill()
        one.host.unplug()
        one.host.plug("0001", USB0, serial="S0", link=BY_ID, number=7, properties={"USEC_INITIALIZED": "110000000"})
        await asyncio.sleep(100)
        one.start(config())
        await asyncio.sleep(AFTER + 5)
        assert one.evicted == ["dead"]


@virtual
async def test_a_restart_beside_a_twin_forgets_no_number_either() -> None:
    """Which of the two was replugged cannot be told then, but each has the last number that is listed for it; the first one comes back."""
    async with home(sticks=()) as one:
        one.host.plug("0001", USB0, serial="S", link=BY_ID, links=(BY_PATH,), number=7)
        one.host.plug("0001", USB1, serial="S", link=BY_ID)
        one.workload.run(holder(path=BY_PATH, started=now() + 1))
        for number, seconds in ((8, 10), (7, 500)):
            await asyncio.sleep(10)
            one.host.unplug()
            one.host.plug("0001", USB0, serial="S", link=BY_ID, links=(BY_PATH,), number=number)
            await asyncio.sleep(seconds)
            await one.kill()
            one.start(config())
        assert not one.workload.tried


@virtual
async def test_a_device_that_was_there_beside_the_other_does_not_return_as_it() -> None:
    """Its devnode was gone for a while, and udev has handled it before the other one went."""
    twin = "/dev/serial/by-path/1"
    async with home(holder(path=BY_ID), sticks=()) as one:
        for devnode, link in ((USB0, BY_ID), (USB1, twin)):
            one.host.plug("0001", devnode, serial="S", link=link, properties={"USEC_INITIALIZED": "50000000"})
        await asyncio.sleep(100)
        held = one.host.take(USB1)
        await asyncio.sleep(GRACE + AFTER + 10)
        one.host.unplug(USB0)
        await asyncio.sleep(1)
        one.host.put(held)
        await asyncio.sleep(GRACE + AFTER - 1)
        assert not one.workload.tried
        await asyncio.sleep(10)
        assert one.evicted == ["p"]
        assert not told(one)


@virtual
async def test_a_device_that_udev_has_yet_to_read_does_not_return_as_another() -> None:
    """It has its name, and counts, since its product is known: the one that had the name before is lost."""
    either = config(match="{vendor: '000?'}")
    async with home(holder(path=USB0), used=either) as one:
        one.host.unplug()
        await asyncio.sleep(1)
        one.host.plug("0002", USB0, record=False)
        await asyncio.sleep(500)
        assert one.evicted == ["p"]
        assert not told(one)


@virtual
async def test_a_stick_that_is_pulled_again_before_its_turn_is_judged_by_its_last_return() -> None:
    """Back under the number that the pod knows, it is the same file again."""
    async with home(holder()) as one:
        await away(one, 1)
        await asyncio.sleep(10)
        one.host.unplug()
        await asyncio.sleep(1)
        renumber(one, number=1)
        await asyncio.sleep(500)
        assert not one.workload.tried


@virtual
async def test_a_container_that_healed_at_the_first_of_two_returns_has_a_good_file_after_the_second() -> None:
    """It has opened the number that the stick has again; one that did not heal has a dead file all the same."""
    async with home(holder("dead"), holder("healed")) as one:
        await away(one, 1, number=7)
        await asyncio.sleep(5)
        one.workload.run(holder("healed", started=now()))
        await asyncio.sleep(5)
        await away(one, 1, number=7)
        await asyncio.sleep(500)
        assert one.evicted == ["dead"]


@pytest.mark.parametrize("stays", [True, False])
@virtual
async def test_a_container_that_started_on_another_stick_is_not_evicted_for_a_later_return_either(
    stays: bool,  # noqa: FBT001 - a parameter of pytest
) -> None:
    """It came while the stick was away, and has mounted what had its name then."""
    async with home(used=config(names=(ZIGBEE, ZWAVE))) as one:
        one.host.unplug()
        await asyncio.sleep(1)
        one.host.plug("0002", USB0, serial="T0", number=7)
        await asyncio.sleep(5)
        one.workload.run(holder("p", path=USB0, started=now()))
        await asyncio.sleep(5)
        if not stays:
            one.host.unplug(USB0)
        for number in (8, 9):
            renumber(one, devnode=USB1, number=number)
            await asyncio.sleep(AFTER + 50)
            assert not one.workload.tried
            one.host.unplug(USB1)
            await asyncio.sleep(1)


@virtual
async def test_a_database_of_udev_that_is_made_anew_does_not_make_a_device_younger() -> None:
    """It dates every device again; the container has opened this one before, and holds a dead file after a return."""
    async with home(holder(started=120), sticks=()) as one:
        one.host.plug("0001", USB0, serial="S0", link=BY_ID, number=5, properties={"USEC_INITIALIZED": "100000000"})
        await asyncio.sleep(50)
        one.host.change(properties={"USEC_INITIALIZED": "150000000"})
        await asyncio.sleep(10)
        await away(one, 1, number=6)
        await asyncio.sleep(AFTER + 5)
        assert one.evicted == ["p"]


@virtual
async def test_a_path_that_leads_to_another_stick_of_the_resource_by_now_is_ambiguous() -> None:
    """The other one took the name while the stick was away: the container may work with that one."""
    async with home(holder(path=USB0)) as one:
        one.host.unplug()
        await asyncio.sleep(1)
        one.host.plug("0001", USB0, serial="another")
        renumber(one, devnode=USB1)
        await asyncio.sleep(500)
        assert not one.workload.tried
        assert "ambiguous" in told(one)[0]


@virtual
async def test_without_evict_a_return_is_of_no_concern() -> None:
    """It is opt-in."""
    async with home(holder(), used=config(evict="")) as one:
        await away(one, 1)
        await asyncio.sleep(500)
        assert not one.workload.lists


@virtual
async def test_a_list_that_fails_is_asked_for_again() -> None:
    """An outage loses no eviction."""
    async with home(holder()) as one:
        await away(one, 1)
        await asyncio.sleep(AFTER - 1)
        one.workload.error = Retry("down")
        await asyncio.sleep(100)
        one.workload.error = None
        await asyncio.sleep(60)
        assert one.evicted == ["p"]


@virtual
async def test_a_path_that_the_device_has_only_since_its_return_names_no_holder_of_it() -> None:
    """It came to the socket of another stick, whose pod mounts that socket's link and still has a good file."""
    socket = "/dev/serial/by-path/pci-usb-0:1"
    async with home(holder(path=socket)) as one:
        await away(one, 1)
        one.host.change(links=(BY_ID, socket))
        await asyncio.sleep(500)
        assert not one.workload.tried


@virtual
async def test_one_scan_that_finds_both_departure_and_return_dates_the_return_by_udev() -> None:
    """Scans were uncertain meanwhile; the container has found its stick again since."""
    async with home(holder(started=105)) as one:
        one.host.unheard = True
        one.host.doubts = ("EMFILE",)
        await away(one, 1)
        one.host.change(properties={"USEC_INITIALIZED": "101000000"})
        await asyncio.sleep(20)
        one.host.doubts = ()
        await asyncio.sleep(500)
        assert not one.workload.tried


# -- a daemon that is not always there


@virtual
async def test_a_daemon_that_is_killed_leaves_it_to_the_next() -> None:
    """The annotation keeps the number that the pods know; udev has written down when the device returned."""
    async with home(holder()) as one:
        one.host.unplug()
        await asyncio.sleep(1)
        properties = {"USEC_INITIALIZED": str(int(now() * 1e6))}
        one.host.plug("0001", USB0, serial="S0", link=BY_ID, properties=properties)
        await asyncio.sleep(10)
        await one.kill()
        await asyncio.sleep(100)
        one.start(config())
        await asyncio.sleep(AFTER + 5)
        assert one.evicted == ["p"]


@pytest.mark.parametrize("initialized", [None, "", "x", "9" * 30, "999999999999"])
@virtual
async def test_a_return_of_which_nobody_knows_the_time_evicts_nobody(initialized: str | None) -> None:
    """It was replugged while no daemon ran, and udev does not say when: the container may have started since."""
    async with home(holder(started=150)) as one:
        await one.kill()
        one.host.unplug()
        properties = {} if initialized is None else {"USEC_INITIALIZED": initialized}
        one.host.plug("0001", USB0, serial="S0", link=BY_ID, properties=properties)
        await asyncio.sleep(100)
        one.start(config())
        await asyncio.sleep(500)
        assert not one.workload.tried


@virtual
async def test_what_happened_while_no_daemon_ran_is_judged_by_the_time_of_udev() -> None:
    """A container that started before the return holds a dead file, one that started since has healed."""
    async with home(holder("dead", started=105), holder("healed", started=120)) as one:
        await miss_a_return(one, 110)
        assert one.evicted == ["dead"]


@virtual
async def test_a_return_that_the_former_daemon_has_listed_is_not_dated_by_udev() -> None:
    """Its record was complete only later; until then the daemon listed the stick twice: as it was, and as it had found it."""
    async with home(holder(started=105)) as one:
        await one.kill()
        one.host.unplug()
        handled = {"USEC_INITIALIZED": str(int(110e6))}
        one.host.plug("0001", USB1, serial="S0", link=BY_ID, number=7, properties=handled)
        (before,) = json.loads(one.server.state.annotation or "")[ZIGBEE]
        now_is = {**before, "devnode": USB1, "rdev": os.makedev(188, 7), "link": None, "links": []}
        one.server.annotate(json.dumps({ZIGBEE: [now_is, before]}), writer=Writer(manager="devwatch", time=""))
        await asyncio.sleep(100)
        one.start(config())
        await asyncio.sleep(500)
        assert not one.workload.tried


@pytest.mark.parametrize(("taken", "victims"), [(False, ["p"]), (True, [])])
@virtual
async def test_a_container_may_have_what_is_in_the_socket_of_the_stick_when_the_next_daemon_begins(
    *, taken: bool, victims: list[str]
) -> None:
    """It started by the link of the socket while no daemon ran; the stick came back in another one."""
    async with home(holder(path=BY_PATH, started=105), sticks=()) as one:
        one.host.plug("0001", USB0, serial="S0", link=BY_ID, links=(BY_PATH,))
        await asyncio.sleep(3)
        await one.kill()
        one.host.unplug()
        handled = {"USEC_INITIALIZED": str(int(110e6))}
        one.host.plug("0001", USB1, serial="S0", link=BY_ID, number=7, properties=handled)
        if taken:
            one.host.plug("0002", USB0, serial="Z", links=(BY_PATH,), properties=handled)
        await asyncio.sleep(100)
        one.start(config())
        await asyncio.sleep(500)
        assert one.evicted == victims


@virtual
async def test_after_a_reboot_a_container_of_before_has_no_file_whatever_its_pod_still_says() -> None:
    """Sticks may have other numbers after it. The kubelet starts the containers again, so they need not move."""
    async with home(holder("before", started=-50), holder("since", started=105)) as one:
        await miss_a_return(one, 110)
        assert one.evicted == ["since"]
        assert [(line["pod"], str(line["reason"]).partition(":")[0]) for line in one.refusals()] == [
            ("home/before", "waiting")
        ]


@virtual
async def test_a_clock_that_was_set_since_the_boot_does_not_make_a_container_older_than_that() -> None:
    """A host without a clock of its own: the container started by one that was eight hours behind, and runs."""
    async with home(holder(started=50 - 8 * 3600)) as one:
        await asyncio.sleep(86_400)
        await miss_a_return(one, now() + 10)
        assert one.evicted == ["p"]


@virtual
async def test_a_scan_that_comes_late_does_not_date_the_return() -> None:
    """The uevent was lost, the container found its stick again at once, and the sweep saw it seconds later."""
    async with home(holder(started=103)) as one:
        one.host.unplug()
        await asyncio.sleep(1)
        one.host.unheard = True
        one.host.plug("0001", USB0, serial="S0", link=BY_ID, properties={"USEC_INITIALIZED": "102000000"})
        await asyncio.sleep(500)
        assert not one.workload.tried
        assert not told(one)


@pytest.mark.parametrize("serials", [("another",), ("S0", "S0")], ids=["another serial", "a twin beside it"])
@virtual
async def test_after_a_restart_a_stick_that_may_be_another_evicts_nobody(serials: tuple[str, ...]) -> None:
    """It is at the place of the listed one, which is not lost then; whose files are dead cannot be told."""
    async with home(holder()) as one:
        await one.kill()
        one.host.unplug()
        for devnode, serial in zip((USB0, USB1), serials, strict=False):
            properties = {"USEC_INITIALIZED": "110000000"}
            one.host.plug("0001", devnode, serial=serial, link=BY_ID, properties=properties)
        await asyncio.sleep(100)
        one.start(config())
        await asyncio.sleep(500)
        assert not one.workload.tried
