"""Never the wrong pod: whom a loss spares, whatever takes the place of the lost stick, and whatever the annotation says."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from devwatch.config.schema import parse
from devwatch.core.errors import Refused, Retry
from devwatch.core.listing import MAX_LINKS
from devwatch.core.node import Writer
from support.build import ZIGBEE, ZWAVE
from support.fakes import date
from support.home import AFTER, GRACE, USB0, USB1, Home, config, home, pod
from support.virtualtime import virtual

SHARED = "/dev/serial/by-id/usb-Twin"
BY_PATH = "/dev/serial/by-path/pci-usb-0:1:1.0"


def now() -> float:
    """Return the time of the loop, in seconds."""
    return asyncio.get_running_loop().time()


def controlled(one: Home, *names: str, paths: tuple[str, ...] = ()) -> list[str]:
    """Let a controller make a successor for every evicted pod, bound at once; return the names of those that it made."""
    made: list[str] = []

    def make() -> None:
        for gone in [name for name in names if f"home/{name}" not in {each.title for each in one.workload.running}]:
            successor = f"{gone}-{len(made)}"
            if len(made) <= len(one.workload.evicted) - 1:
                made.append(successor)
                one.workload.run(pod(successor, paths=paths, scheduled=date(now())))

    one.workload.at_answer = make
    return made


@virtual
async def test_a_stick_that_takes_the_name_of_the_lost_one_ends_no_successor() -> None:
    """The pod of the lost stick is evicted once; whoever comes later uses the stick that is there now."""
    async with home(pod(paths=(USB0,))) as one:
        one.host.unplug()
        await asyncio.sleep(10)
        one.host.plug("0001", serial="another")
        made = controlled(one, "p", paths=(USB0,))
        await asyncio.sleep(2 * AFTER)
        assert one.evicted == ["p"]
        assert made == ["p-0"]
        await one.kill()
        one.start(config())
        await asyncio.sleep(500)
        assert one.evicted == ["p"]


@virtual
async def test_a_successor_that_finds_another_stick_free_stays() -> None:
    """Two sticks, one pulled: the successor is bound to the same node, though it names the path of the lost one."""
    async with home(pod(paths=(USB0,)), sticks=(USB0, USB1)) as one:
        one.host.unplug(USB0)
        made = controlled(one, "p", paths=(USB0,))
        await asyncio.sleep(500)
        assert one.evicted == ["p"]
        assert made == ["p-0"]


@virtual
async def test_a_pod_that_was_bound_within_the_grace_was_there() -> None:
    """It was counted in when the lost stick still was: the list at the end of the grace holds it, and nobody waits for that list."""
    async with home() as one:
        one.host.unplug()
        await asyncio.sleep(GRACE - 1)
        one.workload.run(pod(scheduled=date(now())))
        await asyncio.sleep(AFTER + 5)
        assert one.evicted == ["p"]


@virtual
async def test_a_pod_that_comes_after_the_lower_count_was_not_there() -> None:
    """Somebody has bound it by hand; it is no victim of what happened before."""
    async with home() as one:
        one.host.unplug()
        await asyncio.sleep(GRACE + 1)
        one.workload.run(pod(scheduled=date(now())))
        await asyncio.sleep(500)
        assert not one.workload.tried


@virtual
async def test_a_list_that_hangs_holds_up_no_patch() -> None:
    """The list of the pods that are there is ended when the count is to be lowered."""
    async with home(pod()) as one:
        one.workload.latency = 60
        pulled = now()
        one.host.unplug()
        await asyncio.sleep(GRACE + 0.1)
        assert one.server.shows(ZIGBEE) == ("0", "0")
        lowered = [write.at for write in one.server.writes if write.changes.get(ZIGBEE) == "0"]
        assert lowered == [pytest.approx(pulled + GRACE)]
        one.workload.latency = 0.01
        await asyncio.sleep(AFTER + 60)
        assert one.evicted == ["p"], "it was bound before the server's last answer before that patch"


@virtual
async def test_an_equal_second_is_spared() -> None:
    """Times in pods are whole seconds: one that was bound in the second of the last answer may be a successor."""
    async with home() as one:
        one.workload.error = Retry("no list can be had")
        one.host.unplug()
        one.server.date = date(now())
        one.workload.run(pod("equal", scheduled=date(now())), pod("before", scheduled=date(now() - 1)))
        await asyncio.sleep(GRACE + 1)
        one.workload.error = None
        await asyncio.sleep(AFTER + 60)
        assert one.evicted == ["before"]


@virtual
async def test_a_pod_that_may_be_a_successor_is_spared_and_told() -> None:
    """No list was answered in time, and the server's last answer was long before: what it cannot tell apart is left to a person."""
    async with home() as one:
        one.workload.run(pod("recent", scheduled=date(now() - 20)))
        one.workload.error = Retry("no list can be had")
        one.host.unplug()
        await asyncio.sleep(GRACE + 5)
        one.workload.error = None
        one.workload.run(pod("successor", scheduled=date(now())))
        await asyncio.sleep(AFTER + 60)
        assert not one.workload.tried
        assert [line["pod"] for line in one.refusals() if "reason" in line] == ["home/recent"]
        assert ["late" in event.message for _, event in one.workload.events if event.pod] == [True]


@virtual
async def test_a_patch_that_is_repeated_makes_nobody_a_victim_who_came_meanwhile() -> None:
    """Who was there is decided when the lower count is sent first: it may have been stored without an answer."""
    async with home(pod("old")) as one:
        one.host.unplug()
        await asyncio.sleep(GRACE - 0.1)
        one.server.error = Retry("down")
        await asyncio.sleep(30)
        one.workload.run(pod("new", scheduled=date(now())))
        await asyncio.sleep(30)
        one.server.error = None
        await asyncio.sleep(AFTER + 60)
        assert one.evicted == ["old"]


@virtual
async def test_a_devnode_that_a_scan_missed_while_udev_wrote_another_serial_is_no_loss() -> None:
    """The kernel has registered nothing else, and udev has not handled it again: it never left."""
    async with home(pod(paths=(USB0,)), sticks=()) as one:
        one.host.plug("0001", USB0, serial="S0", properties={"USEC_INITIALIZED": "1000"})
        await asyncio.sleep(10)
        missed = one.host.take(USB0)
        await asyncio.sleep(1)
        one.host.put(replace(missed, serial="reads differently"))
        await asyncio.sleep(500)
        assert not one.workload.tried


# -- twins


def plug_twins(one: Home, *devnodes: str) -> None:
    """Plug twins, which claim one link: it leads to the last of them."""
    for index, devnode in enumerate(devnodes):
        links = (SHARED,) if index == len(devnodes) - 1 else ()
        by_path = (f"/dev/serial/by-path/{devnode[-1]}",)
        claims = " ".join((SHARED, *by_path))
        one.host.plug("0001", devnode, links=(*links, *by_path), properties={"DEVLINKS": claims})


@pytest.mark.parametrize(("pulled", "left"), [(USB0, USB1), (USB1, USB0)])
@virtual
async def test_who_mounts_the_link_of_twins_is_spared_whichever_is_pulled(pulled: str, left: str) -> None:
    """The link leads to the one that is left: nobody can tell which of them the pod has."""
    async with home(pod(paths=(SHARED,)), sticks=()) as one:
        plug_twins(one, USB0, USB1)
        await asyncio.sleep(10)
        one.host.unplug(pulled)
        one.host.change(left, links=(SHARED, f"/dev/serial/by-path/{left[-1]}"))
        await asyncio.sleep(500)
        assert not one.workload.tried
        (line,) = one.refusals()
        assert str(line["reason"]).startswith("ambiguous")


@virtual
async def test_what_twins_shared_is_known_to_the_next_daemon() -> None:
    """It starts when one of them is gone: the link of the other says no more than before who uses it."""
    async with home(pod(paths=(SHARED,)), sticks=("/dev/ttyUSB7",)) as one:
        plug_twins(one, USB0, USB1)
        await asyncio.sleep(10)
        one.host.unplug(USB1)
        one.host.change(USB0, links=(SHARED, "/dev/serial/by-path/0"))
        await asyncio.sleep(500)
        await one.kill()
        one.start(config())
        await asyncio.sleep(60)
        one.host.unplug(USB0)
        await asyncio.sleep(500)
        assert not one.workload.tried
        assert all(str(line["reason"]).startswith("ambiguous") for line in one.refusals())


@virtual
async def test_what_twins_shared_is_known_to_the_next_daemon_also_where_the_annotation_cannot_list_all_of_it() -> None:
    """It lists eight links: with more, only those that it lists as the device's own are."""
    links = tuple(f"/dev/twins/{number}" for number in range(MAX_LINKS + 1))
    async with home(pod(paths=(links[-1],)), sticks=("/dev/ttyUSB7",)) as one:
        for devnode in (USB0, USB1):
            one.host.plug("0001", devnode, links=links, properties={"DEVLINKS": " ".join(links)})
        await asyncio.sleep(10)
        one.host.unplug(USB1)
        await asyncio.sleep(500)
        await one.kill()
        one.start(config())
        await asyncio.sleep(60)
        one.host.unplug(USB0)
        await asyncio.sleep(500)
        assert not one.workload.tried


@virtual
async def test_who_mounts_the_link_of_twins_is_told_also_where_another_pod_goes() -> None:
    """Nothing says which twin it uses; one that names neither uses the twin that is left, and hears nothing."""
    pods = (pod("exact", paths=(USB1,)), pod("link", paths=(SHARED,)), pod("any", paths=("/dev",)))
    async with home(*pods, sticks=()) as one:
        plug_twins(one, USB0, USB1)
        await asyncio.sleep(10)
        one.host.unplug(USB1)
        one.host.change(USB0, links=(SHARED, "/dev/serial/by-path/0"))
        await asyncio.sleep(500)
        assert one.evicted == ["exact"]
        assert [line["pod"] for line in one.refusals()] == ["home/link"]


@virtual
async def test_a_link_that_moved_to_a_twin_for_a_while_names_neither() -> None:
    """The pod uses the first; the second is plugged, takes the link, and is pulled."""
    async with home(pod(paths=(SHARED,)), sticks=()) as one:
        one.host.plug("0001", USB0, links=(SHARED, BY_PATH))
        await asyncio.sleep(10)
        one.host.plug("0001", USB1, links=(SHARED,))
        one.host.change(USB0, links=(BY_PATH,))
        await asyncio.sleep(10)
        one.host.unplug(USB1)
        one.host.change(USB0, links=(SHARED, BY_PATH))
        await asyncio.sleep(500)
        assert not one.workload.tried


@pytest.mark.parametrize("path", [BY_PATH, "/dev/zigbee", f"/dev/serial/by-id/{'x' * 200}"])
@pytest.mark.parametrize("restart", [False, True])
@virtual
async def test_every_link_of_the_lost_stick_names_it(path: str, restart: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    """By-path and custom links as well, and of any length, also for a daemon that starts in the middle."""
    pods = (pod("a", paths=(path,)), pod("b", paths=(f"{path}y",)), pod("c", paths=(USB1,)))
    async with home(*pods, sticks=(USB1,)) as one:
        one.host.plug("0001", USB0, serial="S0", link="/dev/serial/by-id/S0", links=(path,))
        await asyncio.sleep(10)
        one.host.unplug(USB0)
        await asyncio.sleep(GRACE + 5)
        if restart:
            await one.kill()
            one.start(config())
        await asyncio.sleep(500)
        assert one.evicted == ["a"]
        texts = [text for entry in entries(one) for text in entry.values() if isinstance(text, str)]
        assert all(len(text) <= 128 for text in texts)


def entries(one: Home) -> list[dict[str, object]]:
    """Return what the annotation lists."""
    listed: dict[str, list[dict[str, object]]] = json.loads(one.server.state.annotation or "{}")
    return listed[ZIGBEE]


# -- after a restart


@virtual
async def test_another_serial_text_on_an_untouched_devnode_is_no_loss() -> None:
    """A rule or the hardware database was updated while no daemon ran."""
    async with home(pod(paths=(USB0,))) as one:
        await one.kill()
        one.host.change(serial="written differently")
        one.start(config())
        await asyncio.sleep(500)
        assert not one.workload.tried


@virtual
async def test_a_stick_to_which_a_link_of_the_listed_one_leads_is_that_one() -> None:
    """It has another name, and its serial reads differently."""
    async with home(pod(paths=(USB0,))) as one:
        await one.kill()
        one.host.unplug()
        one.host.plug("0001", USB1, serial="different", link="/dev/serial/by-id/S0")
        one.start(config())
        await asyncio.sleep(500)
        assert not one.workload.tried


FORGED = json.dumps(
    {ZIGBEE: [{"devnode": "/dev/ttyUSB7", "vendor": "0009", "link": "/dev/serial/by-id/S0", "lost": date(0)}]}
)
OURS = Writer(manager="devwatch", time="")


@pytest.mark.parametrize(
    "writer",
    [
        replace(OURS, manager="kubectl-annotate", subresource=""),
        replace(OURS, subresource=""),
        replace(OURS, operation="Apply"),
    ],
    ids=["a user", "not by the status", "applied"],
)
@virtual
async def test_an_annotation_that_devwatch_did_not_write_is_not_believed(writer: Writer) -> None:
    """Somebody who may patch nodes lists a device that never was, while no daemon runs. One line says who wrote it, and what that means."""
    async with home(pod(paths=("/dev/serial/by-id/S0",)), sticks=(USB0, USB1)) as one:
        await one.kill()
        assert not one.log.of("host.limited"), "the Node had no annotation"
        one.server.annotate(FORGED, writer=writer)
        one.start(config())
        await asyncio.sleep(500)
        assert not one.workload.tried
        assert {entry["devnode"] for entry in entries(one)} == {USB0, USB1}
        (line,) = one.log.of("host.limited")
        assert f"not believed, since {writer.manager} has written it: " in str(line.fields["reason"])
        assert str(line.fields["reason"]).endswith("no pod is evicted")


@virtual
async def test_an_annotation_of_an_unknown_writer_is_told_only_where_it_matters() -> None:
    """The server keeps a record without a name; without `evict` no pod is ever evicted."""
    async with home(used=config(evict="")) as one:
        for used in (config(evict=""), config()):
            await one.kill()
            assert not one.log.of("host.limited")
            one.server.annotate(FORGED, writer=Writer(manager="", time=""))
            one.start(used)
            await asyncio.sleep(50)
        (line,) = one.log.of("host.limited")
        assert "an unknown client" in str(line.fields["reason"])


@virtual
async def test_devices_for_which_the_annotation_has_no_room_are_told_at_the_start() -> None:
    """Of one that is pulled while no daemon runs, the next one knows nothing: no pod is evicted, and the log says why."""
    first = f"{{name: {ZIGBEE}, match: [{{vendor: '0001'}}], evict: {{after: 30s}}}}"
    more = parse(f"resources: [{first}, {{name: {ZWAVE}, match: [{{vendor: '0002'}}]}}]".encode(), file="config.yaml")
    sticks = tuple(f"/dev/ttyUSB{number}" for number in range(19))
    async with home(pod(paths=("/dev/ttyUSB18",)), sticks=sticks, used=more) as one:
        for number in range(20):
            one.host.plug("0002", f"/dev/ttyACM{number}")
        await asyncio.sleep(10)
        await one.kill()
        assert not one.log.of("host.limited")
        one.host.unplug("/dev/ttyUSB18")
        one.start(more)
        await asyncio.sleep(500)
        assert not one.workload.tried
        (line,) = one.log.of("host.limited")
        assert f"omits 3 of the devices of {ZIGBEE}: " in str(line.fields["reason"])


@virtual
async def test_a_lost_device_without_a_time_evicts_nobody_after_a_restart() -> None:
    """The count was lowered before, by a daemon of another version: who came since cannot be told."""
    async with home(pod(paths=(USB0,)), sticks=(USB0, USB1)) as one:
        one.host.unplug(USB0)
        await asyncio.sleep(GRACE + 1)
        await one.kill()
        listed = [{name: value for name, value in entry.items() if name != "lost"} for entry in entries(one)]
        one.server.annotate(json.dumps({ZIGBEE: listed}), writer=OURS)
        one.start(config())
        await asyncio.sleep(500)
        assert not one.workload.tried


@virtual
async def test_after_a_restart_only_who_was_bound_before_the_loss_is_evicted() -> None:
    """By the time that the patch with the lower count has written down."""
    async with home(pod("old"), pod("bound", scheduled="")) as one:
        one.host.unplug()
        await asyncio.sleep(GRACE + 3)
        await one.kill()
        one.workload.run(pod("new", scheduled=date(now())))
        one.start(config())
        await asyncio.sleep(500)
        assert one.evicted == ["old"]


# -- whose pods


@virtual
async def test_pods_of_another_node_are_never_touched() -> None:
    """Whatever a list says: a proxy may ignore the selector."""
    async with home(pod("here"), pod("there", node="other"), pod("nowhere", node="")) as one:
        one.host.unplug()
        await asyncio.sleep(500)
        assert one.evicted == ["here"]


@virtual
async def test_victims_are_chosen_once_and_tried_until_they_are_gone() -> None:
    """A budget that gives way late ends those that were there, and none that came since."""
    async with home(pod("a"), pod("b")) as one:
        one.workload.budgets = {"a": 1, "b": 1}
        one.host.unplug()
        await asyncio.sleep(AFTER + 10)
        one.host.plug("0001", USB1, serial="another")
        one.workload.run(pod("late", scheduled=date(now())))
        await asyncio.sleep(5)
        one.host.unplug(USB1)
        await asyncio.sleep(5)
        one.workload.budgets = {}
        await asyncio.sleep(20)
        assert sorted(one.evicted) == ["a", "b"]
        await asyncio.sleep(100)
        assert sorted(one.evicted) == ["a", "b", "late"], "it has lost the other stick"


@virtual
async def test_a_holder_whose_stick_is_back_is_let_be_though_another_stick_is_gone() -> None:
    """Two are lost at once, and one returns before its pod's turn has come."""
    pods = (pod("a", paths=(USB0,)), pod("b", paths=(USB1,)))
    async with home(*pods, sticks=(USB0, USB1)) as one:
        one.workload.budgets = {"a": 1, "b": 1}
        one.host.unplug(USB0)
        one.host.unplug(USB1)
        await asyncio.sleep(GRACE + AFTER + 5)
        one.host.plug("0001", USB1, serial="S1")
        await asyncio.sleep(5)
        one.workload.budgets = {}
        await asyncio.sleep(500)
        assert one.evicted == ["a"]


# -- what is said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            Retry(
                "Cannot evict pod as it would violate the pod's disruption budget. The disruption budget hub needs 1"
            ),
            "hub",
        ),
        (
            Refused("pods are evicted only in namespaces with the label devwatch.io/evict=allowed"),
            "kubectl label namespace home",
        ),
    ],
)
@virtual
async def test_a_pod_that_may_not_be_evicted_is_told_why_and_what_helps(error: Refused | Retry, said: str) -> None:
    """On the pod itself, where its owner looks; once, however often it is tried."""
    async with home(pod()) as one:
        one.workload.denied = {"p": error}
        one.host.unplug()
        await asyncio.sleep(GRACE + AFTER + 50)
        (event,) = [event for _, event in one.workload.events if event.pod]
        assert event.reason == "DeviceLost"
        assert said in event.message
        assert len(one.workload.tried) > 1


@virtual
@pytest.mark.parametrize(("path", "victims"), [(SHARED, []), (BY_PATH, ["p"])])
async def test_a_stick_whose_record_is_not_read_may_have_the_links_of_before(path: str, victims: list[str]) -> None:
    """A pod with a link that may lead to it by now keeps it when its twin is pulled. Its former socket has another stick."""
    async with home(sticks=()) as one:
        one.host.plug("0001", USB0, serial="S0", links=(SHARED, BY_PATH))
        one.host.plug("0001", USB1, serial="S1", links=(SHARED,))
        await asyncio.sleep(20)
        one.host.unplug(USB0)
        await asyncio.sleep(5)
        one.host.unplug(USB1)
        await asyncio.sleep(1)
        one.host.plug("0001", USB1, serial="S1", links=(SHARED, BY_PATH))
        one.workload.run(pod(paths=(path,), scheduled=date(now())))
        await asyncio.sleep(5)
        one.host.plug("0001", USB0, serial="S0", record=False)
        await asyncio.sleep(60)
        one.host.unplug(USB1)
        await asyncio.sleep(500)
        assert one.evicted == victims


@virtual
@pytest.mark.parametrize(
    ("serial", "read", "path", "victims"),
    [("T", False, SHARED, []), ("T", True, SHARED, ["p"]), ("T", False, BY_PATH, ["p"]), (None, False, SHARED, ["p"])],
)
async def test_a_twin_whose_record_is_not_read_may_have_the_same_link(
    *, serial: str | None, read: bool, path: str, victims: list[str]
) -> None:
    """The link may lead to it. A record that names no such link ends the doubt, and a socket has one stick; no twin has another serial."""
    async with home(sticks=()) as one:
        one.host.plug("0001", USB0, serial="T", links=(SHARED, BY_PATH))
        await asyncio.sleep(5)
        one.host.plug("0001", USB1, serial=serial, record=False)
        await asyncio.sleep(20)
        one.workload.run(pod(paths=(path,), scheduled=date(now())))
        if read:
            one.host.finish(USB1)
        await asyncio.sleep(30)
        one.host.unplug(USB0)
        await asyncio.sleep(500)
        assert one.evicted == victims


@virtual
@pytest.mark.parametrize(("interface", "victims"), [("00", []), ("01", ["p"])])
async def test_a_twin_that_is_not_read_and_so_not_claimed_may_have_the_same_link(
    *, interface: str, victims: list[str]
) -> None:
    """Its record decides what claims it. Another part of the stick has links of its own."""
    rule = f"{{name: {ZIGBEE}, match: [{{vendor: '0001', properties: {{ROLE: a}}}}], evict: {{after: 30s}}}}"
    async with home(sticks=(), used=parse(f"resources: [{rule}]".encode(), file="config.yaml")) as one:
        one.host.plug("0001", "/dev/ttyUSB7", serial="left", properties={"ROLE": "a"})
        one.host.plug("0001", USB0, serial="T", links=(SHARED,), properties={"ROLE": "a"}, interface="00")
        await asyncio.sleep(5)
        one.host.plug("0001", USB1, serial="T", record=False, interface=interface)
        await asyncio.sleep(20)
        one.workload.run(pod(paths=(SHARED,), scheduled=date(now())))
        await asyncio.sleep(30)
        one.host.unplug(USB0)
        one.host.finish(USB1)
        await asyncio.sleep(500)
        assert one.evicted == victims
