"""The slice of a node, against a server that keeps slices, on virtual time: right whatever deletes, changes or refuses it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from devwatch.agent.clock import Clock
from devwatch.agent.report import Telemetry
from devwatch.agent.resourceslices import ResourceSlices
from devwatch.core.errors import ApiError, Conflict, CredentialsError, Forbidden, Refused, Retry
from devwatch.core.slots import Identity, Slot, SlotState
from devwatch.kube.slices import KubeSlices
from devwatch.observe.health import Health
from devwatch.observe.metrics import Metrics
from support.build import ZIGBEE, device
from support.fakes import RecordingLog
from support.metrics import samples
from support.objectserver import SLICES, Call, ObjectServer
from support.virtualtime import HOUR, virtual

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

NAME = "n1-devwatch.io"
FORBIDDEN = Forbidden("cannot create resourceslices", hint="kubectl create clusterrole ...")
DENIED = Refused("ValidatingAdmissionPolicy 'devwatch' denied request")
HELD, LINGERING, PRESENT = SlotState.HELD, SlotState.LINGERING, SlotState.PRESENT


def slot(name: str, state: SlotState = PRESENT, **fields: Any) -> Slot:  # noqa: ANN401  any field of a device
    """Return a slot of one devnode."""
    stick = device(serial="S1", **fields)
    identity = Identity(vendor=stick.vendor, product=stick.product, serial=stick.serial, socket="1")
    return Slot(id=name, identity=identity, devices=(stick,), state=state)


@dataclass(slots=True, kw_only=True)
class Site:
    """A node with sticks, and the loop in its smallest form: every wake updates, and makes the request that is due."""

    server: ObjectServer
    log: RecordingLog = field(default_factory=RecordingLog)
    metrics: Metrics = field(default_factory=lambda: Metrics("0"))
    jitter: float = 0.5
    slots: dict[str, tuple[Slot, ...]] = field(default_factory=dict)
    uid: str = "u1"
    held: Collection[str] = ()
    slices: ResourceSlices = field(init=False)
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        """Make the publisher."""
        clock = asyncio.get_running_loop().time
        telemetry = Telemetry(log=self.log, metrics=self.metrics, health=Health(sweep=10, last_cycle=0))
        api = KubeSlices(server=self.server, node="n1")
        self.slices = ResourceSlices(
            api, node="n1", telemetry=telemetry, clock=Clock(now=clock, unix=clock, jitter=lambda: self.jitter)
        )

    def show(self, *slots: Slot) -> None:
        """Have these slots, and wake the loop."""
        self.slots = {ZIGBEE: slots}
        self.woken.set()

    async def run(self) -> None:
        """Run the loop."""
        clock = asyncio.get_running_loop().time
        async with asyncio.TaskGroup() as group:
            self.slices.follow(group, lambda _: self.woken.set())
            request: asyncio.Task[None] | None = None
            while True:
                self.woken.clear()
                self.slices.update(self.slots, self.uid, clock(), held=self.held)
                due = self.slices.due(clock())
                if request is None or request.done():
                    task = self.slices.action(clock())
                    request = group.create_task(self._perform(task.run())) if task else None
                due = None if request else due
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        await self.woken.wait()

    async def _perform(self, run: Any) -> None:  # noqa: ANN401  what a task runs
        await run
        asyncio.get_running_loop().call_soon(self.woken.set)

    @property
    def stored(self) -> dict[str, Any]:
        """The slice of the node as the server has it; fails where there is none."""
        (found,) = (item for item in self.server.all(SLICES) if item["metadata"]["name"] == NAME)
        return found

    @property
    def devices(self) -> dict[str, bool]:
        """The devices of the slice: by name, whether it has the taint."""
        return {each["name"]: bool(each.get("taints")) for each in self.stored["spec"].get("devices", ())}

    @property
    def writes(self) -> list[Call]:
        """The writes that were sent."""
        return [call for call in self.server.calls if call.method != "GET"]

    def metric(self, name: str, label: str = "") -> float:
        """Return a value by its only label."""
        return samples(self.metrics, f"devwatch_{name}").get(label, 0.0)


@contextlib.asynccontextmanager
async def publishing(*slots: Slot, **settings: Any) -> AsyncIterator[Site]:  # noqa: ANN401  any setting of the server
    """Have a node that has published its slots for a while."""
    site = Site(server=ObjectServer(clock=asyncio.get_running_loop().time, **settings))
    site.slots = {ZIGBEE: slots}
    async with running(site):
        await asyncio.sleep(20)
        yield site


@contextlib.asynccontextmanager
async def running(site: Site) -> AsyncIterator[None]:
    """Have the loop run."""
    task = asyncio.create_task(site.run())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait({task})


def failing(error: ApiError, *methods: str) -> Any:  # noqa: ANN401  as the server takes it
    """Return what fails these methods, all where none is named."""
    return lambda method, _path: error if not methods or method in methods else None


# -- the slice follows the devices


@virtual
async def test_the_devices_are_published_at_once_and_then_nothing_is_written() -> None:
    """One create; the log says so once."""
    async with publishing(slot("a"), slot("b")) as site:
        assert site.devices == {"a": False, "b": False}
        await asyncio.sleep(3 * HOUR)
        assert [call.method for call in site.writes] == ["POST"]
        (line,) = site.log.of("slice.published")
        assert line.fields == {"slice": NAME, "operation": "create", "devices": 2, "lost": [], "generation": 1}
        assert site.metric("slice_writes_total", "changed") == 1
        assert not site.slices.wants
        assert site.slices.failure == ""


@virtual
async def test_a_slice_of_a_former_daemon_is_taken_over_as_it_is() -> None:
    """A restart writes nothing."""
    async with publishing(slot("a")) as site:
        site.server.calls.clear()
        again = Site(server=site.server, slots=site.slots)
        async with running(again):
            await asyncio.sleep(HOUR)
        assert again.writes == []


@virtual
async def test_a_resource_without_a_device_has_an_empty_slice() -> None:
    """The next device is a change of it."""
    async with publishing() as site:
        assert site.devices == {}
        site.show(slot("a"))
        await asyncio.sleep(1)
        assert site.devices == {"a": False}
        assert site.stored["spec"]["pool"]["generation"] == 2


@virtual
async def test_a_lost_device_is_tainted_and_leaves_when_it_is_not_held_any_more() -> None:
    """The taint makes no new generation and keeps its time over other writes."""
    async with publishing(slot("a"), slot("b")) as site:
        site.show(slot("a", HELD), slot("b"))
        await asyncio.sleep(1)
        assert site.devices == {"a": True, "b": False}
        assert site.stored["spec"]["pool"]["generation"] == 1
        (taint,) = site.stored["spec"]["devices"][0]["taints"]
        site.show(slot("a", HELD), slot("b"), slot("c"))
        await asyncio.sleep(1)
        assert site.stored["spec"]["devices"][0]["taints"] == [taint]
        site.show(slot("b"), slot("c"))
        await asyncio.sleep(1)
        assert site.devices == {"b": False, "c": False}
        assert site.log.of("slice.published")[-3].fields["lost"] == ["a"]


@virtual
async def test_a_device_within_its_grace_keeps_its_place_and_one_that_returns_loses_its_taint() -> None:
    """Whatever name its devnode has."""
    async with publishing(slot("a")) as site:
        site.show(slot("a", LINGERING))
        await asyncio.sleep(1)
        assert len(site.writes) == 1
        site.show(slot("a", HELD))
        await asyncio.sleep(1)
        site.show(slot("a", devnode="/dev/ttyUSB7"))
        await asyncio.sleep(1)
        assert site.devices == {"a": False}


@virtual
async def test_without_a_resource_no_slice_is_left() -> None:
    """None of any name."""
    async with publishing(slot("a")) as site:
        site.slots = {}
        site.woken.set()
        await asyncio.sleep(1)
        assert site.server.all(SLICES) == []
        assert site.metric("slice_writes_total", "deleted") == 1
        assert site.slices.failure == ""


@virtual
async def test_more_devices_than_a_slice_may_have_are_reported_and_the_held_ones_are_in_it() -> None:
    """Once, with those that are left out."""
    slots = [slot(f"d{number:02}") for number in range(66)]
    async with publishing(*slots[:-1]) as site:
        assert "d64" not in site.devices
        site.held = {"d65"}
        site.show(*slots)
        await asyncio.sleep(1)
        assert len(site.devices) == 64
        assert "d65" in site.devices
        first, second = site.log.of("host.limited")
        assert first.fields["devices"] == ["d64"]
        assert second.fields["devices"] == ["d63", "d64"]
        site.show(*slots[2:])
        await asyncio.sleep(1)
        assert len(site.devices) == 64
        assert len(site.log.of("host.limited")) == 2


@virtual
async def test_nothing_is_requested_before_there_is_something_to_publish() -> None:
    """No node without such a resource asks for the API."""
    site = Site(server=ObjectServer(clock=asyncio.get_running_loop().time, fail=failing(FORBIDDEN)))
    async with asyncio.TaskGroup() as group:
        site.slices.follow(group, lambda _: None)
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(HOUR)
        assert site.slices.failure == ""
        assert site.server.calls == []
        raise_in_group = group.create_task(asyncio.sleep(0))
        await raise_in_group
        for each in asyncio.all_tasks() - {task}:
            each.cancel()


@virtual
async def test_nothing_is_written_before_the_node_is_known() -> None:
    """A slice without its owner would outlive the Node."""
    site = Site(server=ObjectServer(clock=asyncio.get_running_loop().time), uid="")
    site.slots = {ZIGBEE: (slot("a"),)}
    async with running(site):
        await asyncio.sleep(HOUR)
        assert site.writes == []
        site.uid = "u1"
        site.woken.set()
        await asyncio.sleep(1)
        assert site.devices == {"a": False}


# -- what others do


@virtual
async def test_a_slice_that_is_deleted_is_there_again_at_once() -> None:
    """A kubelet that starts deletes all slices of its node."""
    async with publishing(slot("a"), slot("b", HELD)) as site:
        site.show(slot("a"))
        await asyncio.sleep(1)
        site.server.delete_all(SLICES, "spec.nodeName=n1")
        await asyncio.sleep(0.05)
        assert site.devices == {"a": False}
        assert site.log.of("slice.published")[-1].fields["repaired"] is True
        assert site.metric("drift_repairs_total") == 1


@virtual
async def test_a_tainted_device_comes_back_with_its_slice() -> None:
    """The server is known to store taints, so it is never offered."""
    async with publishing(slot("a")) as site:
        site.show(slot("a", HELD))
        await asyncio.sleep(1)
        site.server.delete_all(SLICES)
        await asyncio.sleep(0.05)
        assert site.devices == {"a": True}


@virtual
async def test_a_change_by_another_client_is_undone_and_a_contest_gets_slower() -> None:
    """The first repairs practically at once, then with growing pauses of up to five minutes."""
    async with publishing(slot("a")) as site:
        right, times = site.stored["spec"]["devices"], []
        wrong = [{"name": "a", "attributes": {}}]
        end = asyncio.get_running_loop().time() + 3600
        while (now := asyncio.get_running_loop().time()) < end:
            if site.stored["spec"]["devices"] == right:
                site.server.put(SLICES, {**site.stored, "spec": {**site.stored["spec"], "devices": wrong}})
                times.append(now)
            await asyncio.sleep(0.05)
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        wanted = [0, *(min(300, 0.1 * 2**number) for number in range(len(gaps) - 1))]
        assert gaps == pytest.approx(wanted, abs=0.2)
        assert sum(gaps[:4]) < 1
        assert len(times) < 25
        assert site.metric("drift_repairs_total") == len(times) - 1


@virtual
async def test_the_slice_belongs_to_the_node_that_there_is() -> None:
    """One that was created again has another uid."""
    async with publishing(slot("a")) as site:
        site.uid = "u2"
        site.woken.set()
        await asyncio.sleep(1)
        assert [owner["uid"] for owner in site.stored["metadata"]["ownerReferences"]] == ["u2"]


@virtual
async def test_every_other_slice_of_this_driver_and_node_goes_and_no_other() -> None:
    """Slices of other drivers and nodes are not even listed."""
    async with publishing(slot("a")) as site:
        for name, driver, node in (
            ("stray", "devwatch.io", "n1"),
            ("gpu", "gpu.io", "n1"),
            ("n2", "devwatch.io", "n2"),
        ):
            pool = {"name": name, "generation": 9, "resourceSliceCount": 1}
            spec = {"driver": driver, "nodeName": node, "pool": pool}
            site.server.put(SLICES, {"metadata": {"name": name}, "spec": spec})
        await asyncio.sleep(1)
        assert {item["metadata"]["name"] for item in site.server.all(SLICES)} == {NAME, "gpu", "n2"}


@virtual
async def test_a_slice_that_is_gone_before_it_is_deleted_or_replaced_is_no_failure() -> None:
    """The watch was late; the next write does what is still to be done."""
    async with publishing(slot("a")) as site:
        site.server.latency = 2
        site.show(slot("b"))
        await asyncio.sleep(0.5)
        site.server.delete_all(SLICES)
        await asyncio.sleep(10)
        assert site.devices == {"b": False}
        site.slots = {}
        site.woken.set()
        await asyncio.sleep(0.5)
        site.server.delete_all(SLICES)
        await asyncio.sleep(10)
        assert site.server.all(SLICES) == []
        assert site.log.of("slice.refused") == []


@virtual
async def test_a_conflict_is_tried_again_with_what_was_observed_since() -> None:
    """Whoever wrote in between."""
    async with publishing(slot("a")) as site:
        site.server.latency = 2
        site.show(slot("b"))
        await asyncio.sleep(0.5)
        site.server.put(SLICES, {**site.stored, "spec": {**site.stored["spec"], "devices": []}})
        await asyncio.sleep(10)
        assert site.devices == {"b": False}
        (line,) = site.log.of("slice.refused")
        assert line.level == "warning"
        assert site.metric("slice_writes_total", "failed") == 1


@virtual
async def test_a_watch_that_ends_loses_nothing() -> None:
    """Ended by the server, by an error, or too late for its history."""
    async with publishing(slot("a")) as site:
        for error in (None, Retry("reset")):
            site.server.end_watches(error)
            await asyncio.sleep(0.1)
            site.server.delete_all(SLICES)
            site.server.compact()
            await asyncio.sleep(10)
            assert site.devices == {"a": False}
        lists = [call for call in site.server.calls if call.method == "GET"]
        assert 2 <= len(lists) <= 4


@virtual
async def test_a_late_event_does_not_bring_an_old_state_back() -> None:
    """An answer is newer: what the watch reports afterwards of earlier changes is ignored."""
    async with publishing(slot("a")) as site:
        site.server.calls.clear()
        site.server.lag = 5
        for name in "bcd":
            site.show(slot(name))
            await asyncio.sleep(0.1)
        await asyncio.sleep(30)
        assert site.devices == {"d": False}
        assert len(site.writes) == 3
        assert site.log.of("slice.refused") == []


# -- a server that refuses


@pytest.mark.parametrize(
    "error", [FORBIDDEN, DENIED, Retry("down"), Retry("later", after=40), Conflict("exists")], ids=repr
)
@virtual
async def test_a_write_that_fails_is_reported_once_and_tried_again_ever_more_rarely(error: ApiError) -> None:
    """With the server's words and the missing permission; when it is granted the slice is written."""
    async with publishing(fail=failing(error, "POST"), latency=0.01) as site:
        await asyncio.sleep(HOUR)
        assert site.slices.wants
        assert site.slices.failure == str(error)
        lines = site.log.of("slice.refused")
        assert len(lines) <= 10
        assert lines[0].fields["error"] == str(error)
        assert lines[0].fields.get("hint") == (getattr(error, "hint", "") or None)
        assert lines[0].level == ("error" if isinstance(error, Forbidden | Refused) else "warning")
        assert 60 < len(site.writes) < 400
        outcome = "refused" if isinstance(error, Forbidden | Refused) else "failed"
        assert site.metric("slice_writes_total", outcome) == len(site.writes)
        site.server.fail = failing(error, "none")
        await asyncio.sleep(70)
        assert site.devices == {}
        assert site.slices.failure == ""


@virtual
async def test_other_content_does_not_wait_for_what_was_refused() -> None:
    """A policy may accept it."""
    async with publishing(fail=failing(DENIED, "POST")) as site:
        site.jitter = 0.99
        await asyncio.sleep(HOUR)
        site.server.fail = failing(DENIED, "none")
        site.show(slot("a"))
        await asyncio.sleep(0.1)
        assert site.devices == {"a": False}


@virtual
async def test_an_api_that_is_not_served_is_told_with_the_version_that_serves_it() -> None:
    """Once; it is found when the server is upgraded. Until then it is certain that nothing can be allocated."""
    async with publishing(served=False) as site:
        site.show(slot("a"))
        await asyncio.sleep(HOUR)
        assert "Kubernetes 1.34 or newer" in site.slices.failure
        assert len(site.log.of("slice.refused")) <= 8
        assert site.writes == []
        assert site.slices.observed.cut("a")
        site.server.served = True
        await asyncio.sleep(70)
        assert site.devices == {"a": False}
        assert site.slices.failure == ""


@virtual
async def test_without_the_permission_to_list_nothing_is_written() -> None:
    """What is not known cannot be compared; the hint grants it."""
    async with publishing(slot("a"), fail=failing(FORBIDDEN, "GET")) as site:
        (line,) = site.log.of("slice.refused")
        assert (line.fields["operation"], line.fields["hint"]) == ("watch", FORBIDDEN.hint)
        assert site.slices.failure == str(FORBIDDEN)
        assert site.writes == []


@virtual
async def test_without_the_permission_to_watch_the_slices_are_listed_once_a_minute() -> None:
    """What another client does is undone within that."""
    async with publishing(slot("a"), fail=failing(FORBIDDEN, "WATCH")) as site:
        assert site.devices == {"a": False}
        site.server.delete_all(SLICES)
        await asyncio.sleep(61)
        assert site.devices == {"a": False}
        site.server.fail = failing(FORBIDDEN, "none")
        await asyncio.sleep(61)
        site.server.delete_all(SLICES)
        await asyncio.sleep(0.1)
        assert site.devices == {"a": False}


@virtual
async def test_a_server_that_drops_taints_has_no_lost_device() -> None:
    """It leaves at once, which is told once; it comes back when it is there again."""
    async with publishing(slot("a"), slot("b"), taints=False) as site:
        site.show(slot("a", HELD), slot("b"))
        await asyncio.sleep(0.1)
        assert site.devices == {"b": False}
        assert site.slices.observed.cut("a")
        await asyncio.sleep(HOUR)
        assert len(site.writes) == 3
        (line,) = site.log.of("slice.refused")
        assert "1.36" in str(line.fields["hint"])
        site.show(slot("a"), slot("b", HELD))
        await asyncio.sleep(0.1)
        assert site.devices == {"a": False}
        assert len(site.log.of("slice.refused")) == 1


@virtual
async def test_another_server_is_tried_anew_and_the_same_one_is_not_reported_each_time() -> None:
    """After the end of a watch it may be one that stores taints."""
    async with publishing(slot("a"), taints=False) as site:
        for _ in range(3):
            site.show(slot("a", HELD))
            await asyncio.sleep(1)
            assert site.devices == {}
            site.server.end_watches(Retry("restarted"))
            site.show(slot("a"))
            await asyncio.sleep(20)
        assert len(site.log.of("slice.refused")) == 2
        site.server.taints = True
        site.show(slot("a", HELD))
        await asyncio.sleep(1)
        assert site.devices == {"a": True}


@virtual
async def test_a_lost_device_is_not_offered_for_a_moment_by_a_server_that_is_not_known() -> None:
    """After a restart with the slice gone it stays away until it is known that its taint would be stored."""
    async with publishing(slot("a", HELD), slot("b"), taints=False) as site:
        assert site.devices == {"b": False}
        assert len(site.writes) == 1


@virtual
async def test_a_webhook_that_changes_the_slice_is_not_fought() -> None:
    """It counts as a refusal."""
    async with publishing(slot("a"), change=lambda item: item["spec"].update(devices=[])) as site:
        await asyncio.sleep(HOUR)
        assert "admission webhook" in site.slices.failure
        assert len(site.writes) < 400


# -- cut


@virtual
async def test_the_loss_of_a_device_counts_once_a_slice_without_it_was_observed() -> None:
    """Not before the taint is stored, and not while a write is on its way or may be stored late."""
    async with publishing(slot("a")) as site:
        assert not site.slices.observed.cut("a")
        assert site.slices.observed.cut("gone")
        site.server.latency = 2
        site.show(slot("a", HELD))
        await asyncio.sleep(1)
        assert not site.slices.observed.cut("gone")
        await asyncio.sleep(2)
        assert site.slices.observed.cut("a")
        site.server.fail = failing(Retry("timeout"), "PUT")
        site.show(slot("a"))
        await asyncio.sleep(3)
        site.show(slot("a", HELD))
        await asyncio.sleep(0.1)
        assert not site.slices.observed.cut("a")


@pytest.mark.parametrize("error", [FORBIDDEN, DENIED, Conflict("x"), CredentialsError("expired")], ids=repr)
@virtual
async def test_a_write_that_certainly_was_not_stored_does_not_hold_up_a_loss(error: ApiError) -> None:
    """The slice is as it was observed."""
    async with publishing(slot("a"), slot("b", HELD)) as site:
        site.server.fail = failing(error, "PUT")
        site.show(slot("a"), slot("c"))
        await asyncio.sleep(5)
        assert site.slices.observed.cut("c")
        assert not site.slices.observed.cut("a")


@virtual
async def test_a_write_whose_response_is_lost_is_found_by_the_watch() -> None:
    """It is not made twice."""
    async with publishing(slot("a")) as site:
        site.server.fail, site.server.lose = failing(Retry("timeout"), "PUT"), True
        site.show(slot("a", HELD))
        await asyncio.sleep(5)
        assert site.devices == {"a": True}
        assert len(site.writes) == 2
        assert not site.slices.wants


@virtual
async def test_a_slice_that_is_deleted_before_its_write_is_answered_is_written_again() -> None:
    """The answer is older than the deletion, which the watch has reported already."""
    async with publishing(slot("a")) as site:
        site.server.latency = 0.2
        site.show(slot("a"), slot("b"))
        await asyncio.sleep(0.15)
        site.server.delete_all(SLICES)
        await asyncio.sleep(5)
        assert site.devices == {"a": False, "b": False}


@virtual
async def test_one_answer_that_there_is_no_such_api_proves_nothing() -> None:
    """It may be that of a proxy, while the scheduler allocates."""
    site = Site(server=ObjectServer(clock=asyncio.get_running_loop().time, served=False))
    site.slots = {ZIGBEE: (slot("a"),)}
    async with running(site):
        await asyncio.sleep(0.5)
        assert site.server.calls
        assert not site.slices.observed.cut("a")
