"""What happens to the pods of a lost device, as the loop, the losses, the evictor and the recorder of Events do it together."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import pytest

from devwatch.agent.events import MAX_WAITING, EventRecorder
from devwatch.core.errors import Busy, Retry
from support import virtualtime
from support.build import ZIGBEE, ZWAVE, device
from support.fakes import FakeWorkload, RecordingLog, date
from support.held import texts_held_by
from support.home import AFTER, GRACE, USB0, USB1, Home, config, home, pod
from support.virtualtime import virtual

if TYPE_CHECKING:
    from collections.abc import Callable

    from devwatch.core.pods import Pod

# -- when


@virtual
async def test_after_runs_from_the_acceptance_of_the_lower_count() -> None:
    """Grace, the PATCH, then `after`; not a moment before."""
    async with home(pod()) as one:
        one.server.latency = 5
        pulled = asyncio.get_running_loop().time()
        one.host.unplug()
        await asyncio.sleep(GRACE + 5 + AFTER - 0.1)
        assert not one.workload.tried
        await asyncio.sleep(1)
        ((at, name),) = one.workload.evicted
        assert name == "p"
        assert at == pytest.approx(pulled + GRACE + 5 + AFTER, abs=0.1)
        assert one.evictions("evicted") == 1
        (line,) = one.log.of("pod.evicted")
        assert line.fields == {"pod": "home/p", "resource": ZIGBEE, "reason": "lost", "lost": [USB0], "left": 0}


@virtual
async def test_nobody_is_evicted_while_the_lower_count_is_not_accepted() -> None:
    """An API server that is down in mid-journey delays the eviction by as much."""
    async with home(pod()) as one:
        one.server.error = Retry("down")
        one.host.unplug()
        await asyncio.sleep(1000)
        assert not one.workload.tried
        one.server.error = None
        await asyncio.sleep(AFTER - 1)
        assert not one.workload.tried
        await asyncio.sleep(30 + 2)
        assert one.evicted == ["p"]


@virtual
async def test_a_stick_that_returns_within_after_cancels() -> None:
    """And the next loss waits the whole time again."""
    async with home(pod()) as one:
        one.host.unplug()
        await asyncio.sleep(GRACE + AFTER - 1)
        one.host.plug("0001", serial="S0")
        await asyncio.sleep(100)
        one.host.unplug()
        await asyncio.sleep(GRACE + AFTER - 1)
        assert not one.workload.tried
        await asyncio.sleep(2)
        assert one.evicted == ["p"]


@virtual
async def test_a_stick_that_returns_while_the_pods_are_listed_cancels() -> None:
    """What was listed for a loss that is over evicts nobody."""
    async with home(pod()) as one:
        one.host.unplug()
        await asyncio.sleep(10)
        one.workload.latency = 0.9
        await asyncio.sleep(GRACE + AFTER - 10 + 0.4)
        one.host.plug("0001", serial="S0")
        await asyncio.sleep(100)
        assert not one.workload.tried


@virtual
async def test_a_stick_that_returns_between_the_list_and_the_eviction_cancels() -> None:
    """A victim is chosen for one loss only."""
    async with home(pod()) as one:
        one.host.unplug()
        await asyncio.sleep(10)
        one.workload.at_answer = lambda: one.host.plug("0001", serial="S0")
        await asyncio.sleep(GRACE + AFTER - 10 + 1)
        one.workload.at_answer = lambda: None
        await asyncio.sleep(100)
        assert not one.workload.tried
        one.host.unplug()
        await asyncio.sleep(100)
        ((evicted, _),) = one.workload.tried
        assert one.workload.lists[-2] < evicted


@virtual
async def test_of_a_loss_that_is_over_nothing_is_told() -> None:
    """The answer of a list that was asked for it is dropped."""
    async with home(pod(), sticks=(USB0, USB1)) as one:
        one.host.unplug()
        await asyncio.sleep(10)
        one.workload.latency = 5
        await asyncio.sleep(GRACE + AFTER - 10 + 1)
        one.host.plug("0001", serial="S0")
        await asyncio.sleep(100)
        assert not one.refusals()


@virtual
async def test_each_device_waits_its_own_after() -> None:
    """Who is lost later is not evicted with the first: its device may come back."""
    async with home(pod("a", paths=(USB0,)), pod("b", paths=(USB1,)), sticks=(USB0, USB1)) as one:
        one.host.unplug(USB0)
        await asyncio.sleep(20)
        one.host.unplug(USB1)
        await asyncio.sleep(GRACE + AFTER - 20 + 5)
        assert one.evicted == ["a"]
        await asyncio.sleep(20)
        assert one.evicted == ["a", "b"]


@virtual
async def test_another_stick_that_flaps_does_not_put_off_an_eviction() -> None:
    """`after` is not begun anew because something else of the resource is away for a moment."""
    async with home(pod("a", paths=(USB0,)), sticks=(USB0, USB1)) as one:
        one.host.unplug(USB0)
        await asyncio.sleep(20)
        one.host.unplug(USB1)
        await asyncio.sleep(1)
        one.host.plug("0001", USB1, serial="S1")
        await asyncio.sleep(GRACE + AFTER - 21 + 1)
        assert one.evicted == ["a"]


# -- only what is lost


def match_nothing(one: Home) -> None:
    """Change the configuration so that the stick is no longer meant."""
    one.reload(config(match="{vendor: '9999'}"))


def foreign_count(one: Home) -> None:
    """Let a stranger say that there is none."""
    one.server.write(ZIGBEE, "0")


def foreign_annotation(one: Home) -> None:
    """Let a stranger list what was never here."""
    one.server.annotate(f'{{"{ZIGBEE}": [{{"devnode": "/dev/ttyUSB7", "vendor": "0001"}}]}}')


def uncertain(one: Home) -> None:
    """Let every look fail."""
    one.host.doubts = ("EMFILE",)
    one.host.unplug()


def renamed(one: Home) -> None:
    """Plug it in elsewhere, where it gets another name."""
    one.host.unplug()
    one.host.plug("0001", USB1, serial="S0")


def unfinished(one: Home) -> None:
    """Plug it in elsewhere; udev has not told about it yet."""
    one.host.unplug()
    one.host.plug("0001", USB1, serial="S0", record=False)


def without_record(one: Home) -> None:
    """Let a device come to its place of which nothing is known yet."""
    one.host.unplug()
    one.host.plug("0009", record=False)
    one.host.change(vendor=None, product=None)


def left_the_configuration(one: Home) -> None:
    """Pull it and let its resource evict no more."""
    one.host.unplug()
    one.reload(config(evict=""))


NOT_LOST = (
    match_nothing,
    foreign_count,
    foreign_annotation,
    uncertain,
    renamed,
    unfinished,
    without_record,
    left_the_configuration,
)


@pytest.mark.parametrize("happens", NOT_LOST)
@virtual
async def test_nobody_is_evicted_for_a_device_that_is_not_surely_lost(happens: Callable[[Home], None]) -> None:
    """The pods are not even listed."""
    async with home(pod(paths=(USB0,))) as one:
        happens(one)
        await asyncio.sleep(500)
        assert not one.workload.tried


@virtual
async def test_an_uncertain_look_before_the_end_of_after_stops_the_eviction_until_it_is_certain_again() -> None:
    """Nobody knows whether the stick is back."""
    async with home(pod()) as one:
        one.host.unplug()
        await asyncio.sleep(AFTER)
        one.host.doubts = ("EMFILE",)
        await asyncio.sleep(500)
        assert not one.workload.tried
        one.host.doubts = ()
        await asyncio.sleep(11)
        assert one.evicted == ["p"]


@virtual
async def test_of_twins_exactly_the_one_that_was_pulled_is_lost() -> None:
    """Without a serial only the place tells them apart."""
    async with home(pod("a", paths=(USB0,)), pod("b", paths=(USB1,)), sticks=()) as one:
        one.host.plug("0001", USB0)
        one.host.plug("0001", USB1)
        await asyncio.sleep(10)
        one.host.unplug(USB0)
        await asyncio.sleep(100)
        assert one.evicted == ["a"]
        assert not one.refusals()


@virtual
async def test_another_stick_at_the_place_of_the_lost_one_does_not_hide_the_loss() -> None:
    """Also not while udev has yet to say who it is."""
    async with home(pod()) as one:
        one.host.unplug()
        await asyncio.sleep(10)
        one.host.plug("0002", serial="X", record=False)
        await asyncio.sleep(1)
        one.host.finish()
        await asyncio.sleep(AFTER)
        assert one.evicted == ["p"]


# -- a daemon that is not always there


@virtual
async def test_a_daemon_that_is_killed_leaves_the_eviction_to_the_next() -> None:
    """The annotation lists the lost device until its pods are evicted, and not longer."""
    async with home(pod()) as one:
        one.host.unplug()
        await asyncio.sleep(GRACE + 10)
        await one.kill()
        assert USB0 in (one.server.state.annotation or "")
        await asyncio.sleep(1000)
        one.start(config())
        await asyncio.sleep(AFTER + 2)
        assert one.evicted == ["p"]
        await asyncio.sleep(10)
        assert USB0 not in (one.server.state.annotation or "")


@virtual
async def test_the_lost_device_stays_listed_in_every_state_of_the_node() -> None:
    """The patch that lowers the count keeps it: there is no moment at which a kill would forget it."""
    async with home(pod()) as one:
        one.server.states.clear()
        one.host.unplug()
        await asyncio.sleep(GRACE + AFTER - 1)
        lowered = [state for state in one.server.states if state.count(ZIGBEE) == 0]
        assert lowered
        assert all(USB0 in (state.annotation or "") for state in lowered)
        assert len(one.server.states) == 1


@virtual
async def test_a_stick_that_is_pulled_while_no_daemon_runs_is_lost_at_the_next_start() -> None:
    """After the start grace and `after`."""
    async with home(pod()) as one:
        await one.kill()
        one.host.unplug()
        one.start(config())
        await asyncio.sleep(10 + AFTER - 0.1)
        assert not one.workload.tried
        await asyncio.sleep(1)
        assert one.evicted == ["p"]


@virtual
async def test_who_came_after_the_count_fell_is_spared_also_where_no_scan_was_certain_for_long() -> None:
    """The start grace is over by then, so the count falls after the ordinary one, and with it ends who may have had the stick."""
    async with home(pod("before")) as one:
        await one.kill()
        one.host.unplug()
        one.host.doubts = ("EMFILE",)
        one.start(config())
        await asyncio.sleep(60)
        one.host.doubts = ()
        one.host.wake("uevent")
        await asyncio.sleep(GRACE + 0.1)
        assert one.server.state.count(ZIGBEE) == 0
        one.workload.run(pod("since", scheduled=date(asyncio.get_running_loop().time())))
        await asyncio.sleep(AFTER + 60)
        assert one.evicted == ["before"]


@virtual
async def test_a_stick_that_was_moved_while_no_daemon_ran_is_not_lost() -> None:
    """It has another name now, and is the same by its ids."""
    async with home(pod(paths=("/dev/serial/by-id/S0",))) as one:
        await one.kill()
        renamed(one)
        one.start(config())
        await asyncio.sleep(200)
        assert not one.workload.tried


# -- whom


@virtual
async def test_with_no_device_left_every_pod_that_requests_one_is_evicted_one_a_second() -> None:
    """And nobody else."""
    pods = [pod(f"p{number}") for number in range(5)]
    async with home(*pods, pod("other", resource=ZWAVE)) as one:
        one.host.unplug()
        await asyncio.sleep(100)
        assert sorted(one.evicted) == [f"p{number}" for number in range(5)]
        times = [at for at, _ in one.workload.tried]
        assert all(later - earlier >= 1 for earlier, later in itertools.pairwise(times))
        assert times[-1] - times[0] < 6


@pytest.mark.parametrize("path", [USB0, "/dev/serial/by-id/S0"])
@virtual
async def test_with_devices_left_only_the_pod_that_names_the_lost_one_is_evicted(path: str) -> None:
    """By its devnode or by its link; the others use those that are left, so nothing about them is ambiguous."""
    async with home(pod("a", paths=(path,)), pod("b", paths=(USB1,)), sticks=(USB0, USB1)) as one:
        one.host.unplug(USB0)
        await asyncio.sleep(200)
        assert one.evicted == ["a"]
        assert not one.refusals()


@virtual
async def test_a_link_that_is_too_long_for_the_annotation_is_known_all_the_same() -> None:
    """A stick may have names of any length in it."""
    link = f"/dev/serial/by-id/{'x' * 150}"
    async with home(pod("a", paths=(link,)), pod("b", paths=(f"{link}y",)), sticks=(USB1,)) as one:
        one.host.plug("0001", USB0, serial="S0", link=link)
        await asyncio.sleep(10)
        one.host.unplug(USB0)
        await asyncio.sleep(200)
        assert one.evicted == ["a"]


@virtual
async def test_with_devices_left_and_no_pod_that_names_the_lost_one_nobody_is_evicted() -> None:
    """Each that may use the lost one is reported once, and the loss is settled; one that names another device uses that."""
    pods = (pod("a"), pod("b", paths=(USB1,)), pod("c", paths=("/dev",)))
    async with home(*pods, sticks=(USB0, USB1)) as one:
        one.host.unplug(USB0)
        await asyncio.sleep(GRACE + AFTER + 1)
        lists = len(one.workload.lists)
        await asyncio.sleep(200)
        assert not one.workload.tried
        assert [line["pod"] for line in one.refusals()] == ["home/a", "home/c"]
        assert all(str(line["reason"]).startswith("ambiguous") for line in one.refusals())
        assert one.evictions("ambiguous") == 2
        assert len(one.workload.lists) == lists


@virtual
async def test_a_bare_pod_is_told_and_spared() -> None:
    """Once, by a line and an Event, however long others take."""
    async with home(pod("bare", owner=""), pod("a"), pod("b")) as one:
        one.host.unplug()
        await asyncio.sleep(100)
        assert sorted(one.evicted) == ["a", "b"]
        assert [line["pod"] for line in one.refusals()] == ["home/bare"]
        assert one.evictions("bare") == 1
        assert "bare" in [note.pod.name for _, note in one.workload.events if note.pod]


@pytest.mark.parametrize("fields", [{"mirror": True}, {"owner": "DaemonSet"}, {"owner": ""}])
@virtual
async def test_a_pod_that_is_never_evicted_keeps_the_lost_device_for_as_long_as_it_lives(
    fields: dict[str, object],
) -> None:
    """It is told once, and `status` goes on showing what it has lost, also after a restart."""
    async with home(pod(**fields)) as one:  # type: ignore[arg-type]  # mypy takes them for `paths`, too
        one.host.unplug()
        await asyncio.sleep(2000)
        assert not one.workload.tried
        assert len(one.refusals()) == 1
        assert [event.reason for _, event in one.workload.events if event.pod] == ["DeviceLost"]
        assert USB0 in (one.server.state.annotation or "")
        assert len(one.workload.lists) < 12
        one.workload.end("home/p")
        await asyncio.sleep(400)
        assert USB0 not in (one.server.state.annotation or "")


@pytest.mark.parametrize("fields", [{"terminating": True}, {"phase": "Succeeded"}])
@virtual
async def test_terminating_and_finished_pods_are_spared(fields: dict[str, str | bool]) -> None:
    """Without a word."""
    async with home(pod(**fields)) as one:  # type: ignore[arg-type]  # mypy takes them for `paths`, too
        one.host.unplug()
        await asyncio.sleep(100)
        assert one.workload.lists
        assert not one.workload.tried
        assert not one.refusals()


@virtual
async def test_without_evict_no_pod_is_ever_listed() -> None:
    """It is opt-in."""
    async with home(pod(), used=config(evict="")) as one:
        one.host.unplug()
        await asyncio.sleep(500)
        assert not one.workload.tried


# -- what the server says


@pytest.mark.parametrize("now", [pod("other"), pod(uid="another", scheduled="")], ids=["gone", "another uid"])
@virtual
async def test_a_pod_that_is_gone_or_has_another_uid_is_a_success(now: Pod) -> None:
    """Somebody else was first: no line, no backoff, and nobody else is evicted in its place."""
    async with home(pod()) as one:

        def replace() -> None:
            if one.workload.tried and not one.workload.evicted:
                one.workload.end("home/p")
                one.workload.run(now)

        one.workload.at_answer = replace
        one.host.unplug()
        await asyncio.sleep(100)
        assert one.workload.tried[0][1] == "p"
        assert "p" not in one.evicted
        assert not one.refusals()
        assert one.evictions("refused") == one.evictions("failed") == 0


@virtual
async def test_an_eviction_that_is_cancelled_from_within_ends_the_loop() -> None:
    """A task group passes over it: the loop would wait for its end for ever."""

    def cancel() -> None:
        raise asyncio.CancelledError

    async with home(pod()) as one:
        one.workload.at_answer = cancel
        one.host.unplug()
        await asyncio.wait(one.tasks, timeout=10)
        with pytest.raises(ExceptionGroup) as caught:
            one.tasks.pop().result()
        assert caught.group_contains(RuntimeError)


@pytest.mark.parametrize("budgets", [1, 2])
@virtual
async def test_a_budget_is_told_and_tried_again_ever_more_rarely(budgets: int) -> None:
    """Until it allows the eviction."""
    async with home(pod()) as one:
        one.workload.budgets = {"p": budgets}
        one.host.unplug()
        await asyncio.sleep(GRACE + AFTER + 300)
        times = [at for at, _ in one.workload.tried]
        assert 10 < len(times) < 40
        assert times[-1] - times[-2] > 10
        assert one.refusals()[0]["pod"] == "home/p"
        assert len(one.refusals()) < 8
        assert one.evictions("refused") == len(times)
        assert "PodDisruptionBudget" in str(one.refusals()[0]["hint"])
        ready, why = one.ready()
        assert not ready
        assert why == f"{ZIGBEE}: home/p is not evicted: {one.refusals()[0]['error']}"
        one.workload.budgets = {}
        await asyncio.sleep(60)
        assert one.evicted == ["p"]
        assert one.ready() == (True, "ok")


@virtual
async def test_an_eviction_that_is_accepted_without_effect_is_told_and_tried_again_ever_more_rarely() -> None:
    """Where a webhook answers evictions in place of the API server; other pods do not wait for that."""
    async with home(pod(), pod("q")) as one:
        one.workload.ineffective = {"p"}
        one.host.unplug()
        await asyncio.sleep(GRACE + AFTER + 300)
        times = [at for at, name in one.workload.tried if name == "p"]
        assert 10 < len(times) < 40
        assert times[-1] - times[-2] > 10
        assert one.evicted == ["q"]
        assert len(one.log.of("pod.evicted")) == one.evictions("evicted") == 2
        assert one.refusals()[0]["pod"] == "home/p"
        assert len(one.refusals()) < 8
        assert "has accepted the eviction before" in one.ready()[1]
        one.workload.ineffective = set()
        await asyncio.sleep(60)
        assert one.evicted == ["q", "p"]
        assert one.ready() == (True, "ok")


@virtual
async def test_what_is_remembered_of_a_pod_goes_with_it() -> None:
    """Also while another pod keeps a lost device for days, so that there is an incident at all times."""
    pods = (pod(), pod("kept", resource=ZWAVE, owner=""))
    async with home(*pods, used=config(names=(ZIGBEE, ZWAVE))) as one:
        one.host.plug("0002", USB1)
        await asyncio.sleep(10)
        one.host.unplug(USB1)
        for number in range(5):
            one.workload.run(pod(f"evicted-{number}"), pod(f"spared-{number}", owner=""))
            one.host.unplug()
            await asyncio.sleep(GRACE + AFTER + 10)
            one.workload.end(f"home/spared-{number}")
            one.host.plug("0001", USB0, serial="S0")
            await asyncio.sleep(400)
        assert one.evicted == ["p", *(f"evicted-{number}" for number in range(5))]
        held = texts_held_by(one.running, but=(one.workload, one.server, one.host, one.log, asyncio.get_running_loop()))
        # The first were there when that device was lost, and the last list shows the last ones.
        former = ("-1", "-2", "-3")
        assert not {text for text in held if text.startswith(("uid-evicted", "uid-spared")) and text.endswith(former)}


@virtual
async def test_a_pod_that_a_budget_protects_holds_up_no_other() -> None:
    """Neither of its resource nor of another."""
    pods = (pod("kept"), pod("a"), pod("b", resource=ZWAVE))
    async with home(*pods, used=config(names=(ZIGBEE, ZWAVE))) as one:
        one.host.plug("0002", USB1)
        await asyncio.sleep(10)
        one.workload.budgets = {"kept": 1}
        one.host.unplug(USB0)
        one.host.unplug(USB1)
        await asyncio.sleep(GRACE + AFTER + 60)
        assert sorted(one.evicted) == ["a", "b"]


@pytest.mark.parametrize("right", ["list pods", "create pods/eviction"])
@virtual
async def test_a_missing_right_is_named_and_tried_again(right: str) -> None:
    """Told ever more rarely; granted, it is used within half a minute."""
    async with home(pod()) as one:
        one.workload.rights -= {right}
        one.host.unplug()
        await asyncio.sleep(GRACE + AFTER + 3600)
        assert one.refusals()[0]["hint"] == f"grant {right}"
        assert len(one.refusals()) < 12
        assert one.evictions("failed") > 120
        assert one.ready()[1].startswith(f"{ZIGBEE}: ")
        assert one.ready()[1].endswith(f": cannot {right} (403)")
        one.workload.rights |= {right}
        await asyncio.sleep(32)
        assert one.evicted == ["p"]
        await asyncio.sleep(2)
        assert one.ready() == (True, "ok")


@virtual
async def test_an_eviction_delays_a_patch_by_no_more_than_the_request_in_flight() -> None:
    """A list and an eviction are two requests, and the patch goes between them."""
    async with home(pod(), used=config(names=(ZIGBEE, ZWAVE))) as one:
        one.host.unplug()
        await asyncio.sleep(10)
        one.workload.latency = 8
        await asyncio.sleep(GRACE + AFTER - 10 + 1)
        assert len(one.workload.lists) == 3
        plugged = asyncio.get_running_loop().time()
        one.host.plug("0002", USB1)
        await asyncio.sleep(8)
        assert one.server.shows(ZWAVE) == ("1", "1")
        assert one.server.writes[-1].at - plugged < 8
        await asyncio.sleep(60)
        assert one.evicted == ["p"]


@virtual
async def test_sticks_that_come_without_end_put_off_no_eviction() -> None:
    """Each makes a patch due before the last one is answered."""
    async with home(pod(), used=config(names=(ZIGBEE, ZWAVE))) as one:
        one.host.unplug()
        await asyncio.sleep(GRACE + AFTER - 5)
        one.server.latency = 0.5
        for number in range(1, 60):
            one.host.plug("0002", f"/dev/ttyUSB{number}")
            await asyncio.sleep(0.3)
        assert one.evicted == ["p"]
        assert one.server.writes[-1].at > asyncio.get_running_loop().time() - 1, "and patches go on"


@pytest.mark.parametrize("what", ["evictions", "lists", "Events"])
@virtual
async def test_a_server_that_hangs_holds_up_no_count(what: str) -> None:
    """A webhook of evictions or Events that times out must not leave the Node wrong: a patch waits for a second at most."""
    async with home(pod(), used=config(names=(ZIGBEE, ZWAVE))) as one:
        one.workload.hanging = {what}
        one.host.unplug()
        await asyncio.sleep({"Events": GRACE + 0.1}.get(what, GRACE + AFTER + 0.1))
        plugged = asyncio.get_running_loop().time()
        one.host.plug("0002", USB1)
        await asyncio.sleep(1.5)
        assert one.server.shows(ZWAVE) == ("1", "1")
        assert one.server.writes[-1].at - plugged < 1.1
        one.workload.hanging = set()
        await asyncio.sleep(AFTER + 60)
        assert one.evicted == ["p"]
        reasons = [(event.reason, bool(event.pod)) for _, event in one.workload.events]
        assert reasons.count(("DeviceRemoved", False)) == 1


@virtual
async def test_an_outage_of_the_list_loses_no_eviction() -> None:
    """A list that fails is no list without pods."""
    async with home(pod()) as one:
        one.host.unplug()
        await asyncio.sleep(GRACE + 1)
        one.workload.error = Retry("down", after=7)
        await asyncio.sleep(AFTER + 100)
        assert one.ready() == (True, "ok"), "what does not answer refuses nothing"
        one.workload.error = None
        await asyncio.sleep(60)
        assert one.evicted == ["p"]
        gaps = [later - earlier for earlier, later in itertools.pairwise(one.workload.lists[2:])]
        assert gaps[0] >= 7


@virtual
async def test_no_server_puts_evictions_off_for_longer_than_a_minute() -> None:
    """Whatever its Retry-After says."""
    async with home(pod()) as one:
        one.host.unplug()
        await asyncio.sleep(GRACE + 1)
        one.workload.error = Retry("down", after=86400)
        await asyncio.sleep(AFTER + 10)
        one.workload.error = None
        await asyncio.sleep(62)
        assert one.evicted == ["p"]


# -- Events


@virtual
async def test_who_comes_goes_and_is_evicted_is_told_by_events() -> None:
    """On the Node for the device, on the pod for the loss; within a minute one for each device."""
    async with home(pod()) as one:
        assert one.workload.events == [], "what is there at the start was not added"
        one.host.unplug()
        await asyncio.sleep(100)
        reasons = [(note.reason, note.warning, note.pod and note.pod.name) for _, note in one.workload.events]
        assert reasons == [("DeviceRemoved", True, None), ("DeviceLost", True, "p")]
        for _ in range(20):
            one.host.plug("0001", serial="S0")
            await asyncio.sleep(3)
            one.host.unplug()
            await asyncio.sleep(3)
        assert [note.reason for _, note in one.workload.events][2] == "DeviceAdded"
        assert len(one.workload.events) <= 2 + 3


@virtual
async def test_a_stick_with_many_ttys_is_one_device_to_tell_of() -> None:
    """Its Event comes once, and not once for each tty."""
    async with home() as one:
        recorder = EventRecorder(api=one.workload, log=one.log, node="n", clock=asyncio.get_running_loop().time)
        for number in range(4):
            recorder.device("DeviceAdded", device(f"ttyUSB{number}", physical="/devices/usb/1-1"), ZIGBEE)
        recorder.device("DeviceAdded", device("ttyUSB9", physical="/devices/usb/1-2"), ZIGBEE)
        while (task := recorder.action(0)) is not None:
            await task.run()
        assert [note.message.split()[0] for _, note in one.workload.events] == [USB0, "/dev/ttyUSB9"]


@virtual
async def test_without_the_right_events_are_dropped_with_one_line() -> None:
    """And asked for again once a minute at most."""
    async with home(pod()) as one:
        one.workload.rights -= {"create events"}
        before = len(one.workload.spans)
        for number in range(100):
            one.host.plug("0001", f"/dev/ttyACM{number}")
            await asyncio.sleep(6)
        assert len(one.workload.spans) - before <= 11
        (line,) = one.log.of("event.refused")
        assert line.fields["hint"] == "grant create events"


@virtual
async def test_an_event_that_fails_is_dropped() -> None:
    """Best effort: a detail of the log."""
    async with home() as one:
        one.workload.error = Retry("down")
        one.host.unplug()
        await asyncio.sleep(100)
        assert [line.level for line in one.log.of("event.failed")] == ["debug"]


def test_the_events_that_wait_are_bounded_and_their_text_is_escaped() -> None:
    """A thousand sticks make no thousand requests, and a stick cannot draw on a terminal."""
    recorder = EventRecorder(api=FakeWorkload(lambda: 0), log=RecordingLog(), node="n", clock=lambda: 0)
    for number in range(1000):
        recorder.device("DeviceAdded", device(f"ttyUSB{number}", serial=f"\x1b[{number}J", vendor="\n"), ZIGBEE)

    async def drain() -> list[str]:
        while (task := recorder.action(0)) is not None:
            await task.run()
        assert isinstance(recorder.api, FakeWorkload)
        return [note.message for _, note in recorder.api.events]

    messages = virtualtime.run(drain)
    assert len(messages) == MAX_WAITING
    assert all(message.isprintable() for message in messages)


@pytest.mark.parametrize("cancelled", [False, True], ids=["its answer is lost", "a patch cancels it"])
@virtual
async def test_an_eviction_that_is_not_answered_is_reported_once_the_pod_is_gone(
    cancelled: bool,  # noqa: FBT001 - a parameter of pytest
) -> None:
    """As one that is; once, however often it was asked for."""
    async with home(pod(), used=config(names=(ZIGBEE, ZWAVE))) as one:
        one.workload.unanswered = {"p"}
        one.host.unplug()
        await asyncio.sleep(GRACE + AFTER + 0.5)
        if cancelled:
            one.host.plug("0002", USB1)
        await asyncio.sleep(60)
        assert one.evicted == ["p"]
        assert one.evictions("evicted") == 1
        assert one.evictions("refused") == (not cancelled)
        (line,) = one.log.of("pod.evicted")
        assert (line.fields["pod"], line.fields["lost"]) == ("home/p", [USB0])


@pytest.mark.parametrize("refusal", [None, Busy("it would violate the pod's disruption budget (429)")])
@virtual
async def test_an_eviction_that_is_answered_after_all_is_reported_by_its_answer(refusal: Busy | None) -> None:
    """What the first attempt left open is settled by the second: that the pod goes later is not our doing where that was refused."""
    async with home(pod()) as one:
        one.workload.denied = {"p": Retry("connection reset by peer")}
        one.host.unplug()
        await asyncio.sleep(GRACE + AFTER + 0.5)
        one.workload.denied = {"p": refusal} if refusal else {}
        await asyncio.sleep(2)
        one.workload.end("home/p")
        await asyncio.sleep(60)
        assert one.evictions("evicted") == len(one.log.of("pod.evicted")) == (refusal is None)


@virtual
async def test_an_eviction_that_was_not_answered_is_forgotten_with_the_loss_of_its_device() -> None:
    """The pod lives on, and its end much later is not our doing, though another loss is open all the time."""
    bare = pod("bare", owner=None, requests={ZWAVE: 1})
    async with home(pod(), bare, used=config(names=(ZIGBEE, ZWAVE))) as one:
        one.host.plug("0002", USB1, serial="W")
        await asyncio.sleep(5)
        one.host.unplug(USB1)
        one.workload.denied = {"p": Retry("connection reset by peer")}
        one.host.unplug()
        await asyncio.sleep(GRACE + AFTER + 0.5)
        one.host.plug("0001", serial="S0")
        await asyncio.sleep(60)
        one.workload.end("home/p")
        await asyncio.sleep(600)
        assert one.log.of("pod.evicted") == []
