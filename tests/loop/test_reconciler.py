"""What the loop promises, in the words of `Reconciler`, on virtual time against a host and a server that can fail."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devwatch.config.schema import parse
from devwatch.core.errors import CredentialsError, Forbidden, NodeMissing, Refused, Retry
from devwatch.core.node import ANNOTATION_PART, Writer
from support import virtualtime
from support.fakes import FakeHost, FakeServer, FakeSettings
from support.harness import Harness, now
from support.virtualtime import HOUR, virtual

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from devwatch.agent.reconciler import Reconciler
    from devwatch.config.schema import Config

ZIGBEE, ZWAVE, METER = "example.com/zigbee", "example.com/zwave", "example.com/meter"
VENDORS = {ZIGBEE: "0001", ZWAVE: "0002", METER: "0003"}


def config(*names: str, more: str = "", nodes: str = "*", grace: str = "2s") -> Config:
    """Return a configuration of these resources, each with a vendor of its own."""
    rules = (
        f"- {{name: {name}, match: [{{vendor: '{VENDORS[name]}'}}], nodes: ['{nodes}'], removalGrace: {grace}}}\n"
        for name in names
    )
    return parse(f"resources:\n{''.join(rules)}{more}".encode(), file="config.yaml")


@dataclass(slots=True, kw_only=True)
class World(Harness):
    """A node whose daemon neither watches nor evicts."""

    loop: Reconciler = field(init=False)
    task: asyncio.Task[None] = field(init=False)
    over: bool = False

    @classmethod
    def new(cls, used: Config) -> World:
        """Return a quiet one: nothing plugged, a Node that nobody has written to."""
        clock = asyncio.get_running_loop().time
        return cls(host=FakeHost(), server=FakeServer(clock), settings=FakeSettings(used))

    def start(self, used: Config, *, once: bool = False, heartbeat: float | None = None) -> None:
        """Start the loop, as the daemon does."""
        self.loop = self.reconciler(used, once=once, heartbeat=heartbeat)
        self.task = asyncio.create_task(self.loop.run())

    async def end(self) -> None:
        """Wait until the loop ends by itself, and raise what ended it."""
        self.over = True
        async with asyncio.timeout(HOUR):
            await self.task

    async def stop(self) -> None:
        """Stop the loop as TERM does."""
        self.over = True
        self.task.cancel()
        await asyncio.wait({self.task})

    @property
    def listed(self) -> dict[str, list[dict[str, str]]]:
        """What the annotation lists."""
        listed: dict[str, list[dict[str, str]]] = json.loads(self.server.state.annotation or "{}")
        return listed


def nothing(_world: World) -> None:
    """Leave the world as it is."""


@contextlib.asynccontextmanager
async def living(
    *names: str,
    before: Callable[[World], None] = nothing,
    used: Config | None = None,
    once: bool = False,
    heartbeat: float | None = None,
) -> AsyncIterator[World]:
    """Have a world whose loop runs; `before` prepares it. The loop must still run at the end unless its end was awaited."""
    used = used or config(*(names or (ZIGBEE,)))
    world = World.new(used)
    before(world)
    world.start(used, once=once, heartbeat=heartbeat)
    try:
        yield world
        assert world.over or not world.task.done(), world.task
    finally:
        await world.stop()


async def started(world: World) -> None:
    """Let the start grace pass, so that a figure may fall."""
    await asyncio.sleep(15)
    world.server.requests.clear()
    world.server.states.clear()


async def until(check: Callable[[], bool]) -> None:
    """Let time pass until this is so."""
    while not check():  # noqa: ASYNC110 - the time is virtual
        await asyncio.sleep(0.1)


def with_stick(world: World) -> None:
    """Have a Zigbee stick plugged before the start."""
    world.host.plug(VENDORS[ZIGBEE])


def with_sticks(world: World) -> None:
    """Have a stick for each resource plugged before the start."""
    for number, vendor in enumerate(VENDORS.values()):
        world.host.plug(vendor, f"/dev/ttyUSB{number}")


# -- converges


@virtual
async def test_a_plugged_stick_is_in_both_maps_and_in_the_annotation_after_one_request() -> None:
    """A uevent becomes one PATCH with everything, at once."""
    async with living() as world:
        await started(world)
        world.host.plug(VENDORS[ZIGBEE], serial="S1")
        await asyncio.sleep(0.1)
        assert world.server.shows(ZIGBEE) == ("1", "1")
        assert [entry["serial"] for entry in world.listed[ZIGBEE]] == ["S1"]
        assert len(world.server.requests) == 1


@virtual
async def test_a_resource_without_a_device_is_advertised_as_0() -> None:
    """With the key absent the kubelet would start the pod without its device."""
    async with living() as world:
        await asyncio.sleep(0.1)
        assert world.server.shows(ZIGBEE) == ("0", "0")
        assert world.listed == {ZIGBEE: []}


@virtual
async def test_a_pulled_stick_is_0_after_its_grace() -> None:
    """The count falls when the grace is over, and the annotation with it, without another event."""
    async with living(before=with_stick) as world:
        await started(world)
        world.host.unplug()
        await asyncio.sleep(1.9)
        assert world.server.shows(ZIGBEE) == ("1", "1")
        await asyncio.sleep(0.2)
        assert world.server.shows(ZIGBEE) == ("0", "0")
        assert world.listed == {ZIGBEE: []}
        assert len(world.server.requests) == 1


@virtual
async def test_the_sweep_finds_what_no_uevent_told() -> None:
    """Without netlink everything still works, one sweep late."""
    async with living() as world:
        await started(world)
        world.host.unheard = True
        world.host.plug(VENDORS[ZIGBEE])
        await asyncio.sleep(10.1)
        assert world.server.shows(ZIGBEE) == ("1", "1")


@virtual
async def test_the_source_says_when_to_look_again() -> None:
    """Where only the kernel speaks, links and permissions come later."""
    async with living() as world:
        await asyncio.sleep(1)
        world.host.again_at = 1.2
        world.loop.wake("uevent")
        await asyncio.sleep(1)
        assert 1.2 in world.host.scans


@virtual
async def test_a_stick_whose_record_never_comes_counts_after_10_seconds() -> None:
    """A device without a udev record is no arrival, but not for ever."""
    async with living() as world:
        await asyncio.sleep(1)
        world.host.plug(VENDORS[ZIGBEE], record=False)
        await asyncio.sleep(9.9)
        assert world.server.shows(ZIGBEE) == ("0", "0")
        await asyncio.sleep(0.2)
        assert world.server.shows(ZIGBEE) == ("1", "1")


FAILURES = {
    "nobody answers": Retry("connection refused"),
    "overload": Retry("too many requests", after=3),
    "no credentials": CredentialsError("the token is expired"),
    "no right": Forbidden("cannot patch nodes/status", hint="kubectl create clusterrole ..."),
    "no Node": NodeMissing('nodes "n" not found'),
    "even the read is refused": Refused("content is refused"),
}


@pytest.mark.parametrize("error", FAILURES.values(), ids=FAILURES)
@virtual
async def test_the_node_shows_the_devices_once_the_server_answers_again(error: Exception) -> None:
    """Whatever an outage looks like, at the start or later, the retry that ends it brings the Node up to date."""

    def fail(world: World) -> None:
        world.server.error = error

    async with living(before=fail) as world:
        await asyncio.sleep(HOUR)
        world.server.error = None
        await asyncio.sleep(30.1)
        assert world.server.shows(ZIGBEE) == ("0", "0")
        fail(world)
        world.host.plug(VENDORS[ZIGBEE])
        await asyncio.sleep(HOUR)
        world.server.error = None
        await asyncio.sleep(30.1)
        assert world.server.shows(ZIGBEE) == ("1", "1")
        assert world.loop.publisher.failure == ""


@virtual
async def test_the_log_tells_how_long_the_server_took() -> None:
    """From the moment at which the request was made, in milliseconds."""
    async with living() as world:
        await started(world)
        world.server.answer_latency = 0.5
        world.host.plug(VENDORS[ZIGBEE])
        await asyncio.sleep(1)
        (line,) = world.log.of("node.patched")[-1:]
        assert line.fields["milliseconds"] == pytest.approx(500 + 1000 * world.server.latency)


@virtual
async def test_a_server_that_never_answers_stops_no_look_and_no_line() -> None:
    """A black-holed request is nobody's business but its own."""
    async with living(before=with_stick) as world:
        await started(world)
        world.server.silent = True
        world.host.plug(VENDORS[ZIGBEE], "/dev/ttyUSB1")
        await asyncio.sleep(1)
        world.host.unplug()
        world.host.scans.clear()
        await asyncio.sleep(HOUR)
        assert len(world.host.scans) >= HOUR / 10
        assert [line.fields["devnode"] for line in world.log.of("device.removed")] == ["/dev/ttyUSB0"]
        assert len(world.server.requests) == 1
        assert world.health.healthz(now())[0]


@pytest.mark.parametrize("jitter", [0.25, 0.5, 0.999])
@virtual
async def test_retries_wait_a_random_share_of_half_a_second_doubling_to_30(jitter: float) -> None:
    """Full jitter: the whole delay is drawn anew for each retry."""

    def fail(world: World) -> None:
        world.server.error, world.server.latency, world.jitter = Retry("no answer"), 0, jitter

    async with living(before=fail) as world:
        await asyncio.sleep(200)
        times = [request.at for request in world.server.requests][:9]
        delays = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert delays == pytest.approx([bound * jitter for bound in (0.5, 1, 2, 4, 8, 16, 30, 30)])
        world.server.error = None
        await asyncio.sleep(30)
        fail(world)
        world.server.requests.clear()
        world.host.plug(VENDORS[ZIGBEE])
        await asyncio.sleep(2)
        first, second = world.server.requests[:2]
        assert second.at - first.at == pytest.approx(0.5 * jitter)


@pytest.mark.parametrize(("after", "waited"), [(7, 7), (60, 60), (86_400, 60)])
@virtual
async def test_the_servers_retry_after_is_honoured_up_to_a_minute(after: float, waited: float) -> None:
    """A server that asks for time gets it; a day is taken for a mistake."""

    def fail(world: World) -> None:
        world.server.error, world.server.latency = Retry("slow down", after=after), 0

    async with living(before=fail) as world:
        await asyncio.sleep(130)
        first, second = world.server.requests[:2]
        assert second.at - first.at == pytest.approx(waited)


@virtual
async def test_while_backing_off_a_change_does_not_hasten_and_only_the_newest_state_is_kept() -> None:
    """Any number of changes during an outage become one request at the time that was drawn before them."""
    async with living(ZIGBEE, ZWAVE, METER) as world:
        await started(world)
        world.server.error, world.server.latency = Retry("slow down", after=40), 0
        world.host.plug(VENDORS[ZIGBEE])
        failed = now()
        await asyncio.sleep(1)
        for number in range(1, 6):
            world.host.plug(VENDORS[METER], f"/dev/ttyUSB{number}")
            await asyncio.sleep(1)
        world.server.error = None
        await asyncio.sleep(60)
        _, retried = world.server.writes
        assert retried.at == pytest.approx(failed + 40)
        assert {name: value for name, value in retried.changes.items() if name != ANNOTATION_PART} == {
            ZIGBEE: "1",
            METER: "5",
        }


@virtual
async def test_an_answer_that_got_lost_costs_one_repetition_and_changes_nothing() -> None:
    """The same PATCH again writes nothing new, and what we stored ourselves is no drift."""
    async with living() as world:
        await started(world)
        world.server.losing = 1
        world.host.plug(VENDORS[ZIGBEE])
        await asyncio.sleep(0.1)
        stored = world.server.state.version
        await asyncio.sleep(5)
        assert world.server.shows(ZIGBEE) == ("1", "1")
        assert world.server.state.version == stored
        assert len(world.server.requests) == 2
        assert world.metric("drift_repairs_total") == 0
        world.server.zero()
        await asyncio.sleep(61)
        assert world.metric("drift_repairs_total") == 1


@pytest.mark.parametrize("outage", [0, HOUR])
@virtual
async def test_a_resource_that_was_stored_without_an_answer_and_then_dropped_is_removed(outage: float) -> None:
    """A lost answer is not believed to have failed: the Node is asked what it holds before anything is forgotten."""
    async with living(ZIGBEE) as world:
        await started(world)
        world.server.losing, world.jitter = 1, 0.999
        world.settings.write(config(ZIGBEE, ZWAVE))
        world.loop.wake("config")
        await asyncio.sleep(0.1)
        assert world.server.shows(ZWAVE) == ("0", "0")
        world.server.error = Retry("no answer") if outage else None
        world.settings.write(config(ZIGBEE))
        world.loop.wake("config")
        await asyncio.sleep(outage)
        world.server.error = None
        await asyncio.sleep(31)
        assert world.server.shows(ZWAVE) == (None, None)
        assert set(world.listed) == {ZIGBEE}


@pytest.mark.parametrize("outage", [0, 5])
@pytest.mark.parametrize(("after", "left"), [(30, (None, None)), (70, ("1", "1"))])
@virtual
async def test_a_request_that_is_stored_when_its_resource_is_dropped_leaves_nothing_behind(
    after: float, left: tuple[str | None, str | None], outage: float
) -> None:
    """A server may go on for a minute with a request that timed out; what is written later is of someone else."""
    async with living(ZIGBEE) as world:
        await asyncio.sleep(HOUR)
        world.server.error, world.jitter = Retry("no answer in time"), 0.999
        world.settings.write(config(ZIGBEE, ZWAVE))
        world.loop.wake("config")
        await asyncio.sleep(0.1)
        world.settings.write(config(ZIGBEE))
        world.loop.wake("config")
        await asyncio.sleep(outage)
        world.server.error = None
        await asyncio.sleep(after)
        world.server.write(ZWAVE, "1", manager="devwatch")
        world.host.plug(VENDORS[ZIGBEE])
        await asyncio.sleep(5)
        assert world.server.shows(ZWAVE) == left
        assert set(world.listed) == {ZIGBEE}


@pytest.mark.parametrize("outage", [0, 10])
@virtual
async def test_a_change_that_was_undone_while_its_answer_got_lost_is_undone_on_the_node(outage: float) -> None:
    """Held and wanted agree again, the Node does not: it is asked until it answers, and that is no drift."""
    async with living(used=config(ZIGBEE, grace="1ms")) as world:
        await started(world)
        world.server.losing, world.jitter = 1, 0.999
        world.host.plug(VENDORS[ZIGBEE])
        await asyncio.sleep(0.02)
        world.host.unplug()
        await asyncio.sleep(0.1)
        assert world.server.shows(ZIGBEE) == ("1", "1")
        world.server.error = Retry("no answer") if outage else None
        await asyncio.sleep(outage)
        world.server.error = None
        await asyncio.sleep(1 + outage)
        assert world.server.shows(ZIGBEE) == ("0", "0")
        assert world.metric("drift_repairs_total") == 0


@virtual
async def test_a_deleted_node_is_told_waited_for_and_filled_when_it_comes_back() -> None:
    """A Node that registers again comes without the keys."""
    async with living(before=with_stick) as world:
        await started(world)
        world.server.delete()
        await asyncio.sleep(HOUR)
        assert world.log.of("node.missing")[0].fields["hint"]
        assert not world.log.of("node.patch_failed")
        world.server.create()
        await asyncio.sleep(30.1)
        assert world.server.shows(ZIGBEE) == ("1", "1")
        assert list(world.listed) == [ZIGBEE]


@virtual
async def test_a_node_that_was_replaced_unseen_is_filled_at_the_next_resync() -> None:
    """Another uid, nothing of ours: it takes no 404 to notice."""
    async with living(before=with_stick) as world:
        await started(world)
        world.server.create()
        await asyncio.sleep(60.1)
        assert world.server.shows(ZIGBEE) == ("1", "1")


@virtual
async def test_a_server_restored_from_a_backup_is_repaired_although_its_version_went_back() -> None:
    """What the server answers to the latest request is what is so; and it is not asked without a pause."""
    async with living() as world:
        await started(world)
        restore = world.server.backup()
        for number in range(3):
            world.host.plug(VENDORS[ZIGBEE], f"/dev/ttyUSB{number}")
            await asyncio.sleep(1)
        restore()
        world.server.requests.clear()
        await asyncio.sleep(60.1)
        assert world.server.shows(ZIGBEE) == ("3", "3")
        assert len(world.server.requests) <= 3


@virtual
async def test_a_kubelet_that_zeroes_everything_is_repaired_at_the_next_observation_as_drift() -> None:
    """At most a resync later, told once, counted once."""
    async with living(ZIGBEE, ZWAVE, before=with_sticks) as world:
        await started(world)
        world.server.zero()
        await asyncio.sleep(60.1)
        assert world.server.shows(ZIGBEE) == world.server.shows(ZWAVE) == ("1", "1")
        assert [line.fields["what"] for line in world.log.of("drift.repaired")] == [[ZIGBEE, ZWAVE]]
        assert world.metric("drift_repairs_total") == 1


@virtual
async def test_a_drift_is_repaired_once_also_when_the_devices_change_meanwhile() -> None:
    """The next change of the same resource is no repair."""
    async with living(before=with_stick) as world:
        await started(world)
        world.server.zero()
        world.server.latency = 1
        await asyncio.sleep(43.5)
        assert world.server.writes
        assert world.server.in_flight
        world.host.plug(VENDORS[ZIGBEE], "/dev/ttyUSB1")
        await asyncio.sleep(30)
        assert world.server.shows(ZIGBEE) == ("2", "2")
        assert world.metric("drift_repairs_total") == 1


@pytest.mark.parametrize("value", ["7", "0", "1.5", None])
@pytest.mark.parametrize("maps", [("capacity",), ("allocatable",), ("capacity", "allocatable")], ids="-".join)
@virtual
async def test_what_a_stranger_writes_into_our_figures_is_repaired(value: str | None, maps: tuple[str, ...]) -> None:
    """Either map, up, down, away or nonsense."""
    async with living(before=with_stick) as world:
        await started(world)
        world.server.write(ZIGBEE, value, maps=maps)
        await asyncio.sleep(60.1)
        assert world.server.shows(ZIGBEE) == ("1", "1")
        assert world.metric("drift_repairs_total") == 1


@pytest.mark.parametrize("text", [None, "", "[]", "{", '{"example.com/zigbee": []}'])
@virtual
async def test_an_annotation_that_a_stranger_spoils_is_written_again(text: str | None) -> None:
    """Ownership must survive: it is what cleans up later."""
    async with living(before=with_stick) as world:
        await started(world)
        before = world.listed
        world.server.annotate(text)
        await asyncio.sleep(60.1)
        assert world.listed == before
        assert world.log.of("drift.repaired")[0].fields["what"] == ["annotation"]


@virtual
async def test_where_the_annotation_is_refused_what_a_stranger_writes_is_drift_all_the_same() -> None:
    """What is configured is ours, whether the Node says so or not."""
    async with living(before=refuse(ANNOTATION_PART)) as world:
        await started(world)
        world.server.write(ZIGBEE, "7")
        await asyncio.sleep(60.1)
        assert world.server.shows(ZIGBEE) == ("1", "1")
        assert [line.fields["what"] for line in world.log.of("drift.repaired")] == [[ZIGBEE]]


@virtual
async def test_what_a_stranger_writes_to_a_resource_that_is_about_to_leave_is_left_alone() -> None:
    """It is no longer ours to remove, and the annotation lets go of its name."""
    async with living(ZIGBEE, ZWAVE, before=with_sticks) as world:
        await started(world)
        world.server.refused[ZWAVE] = Refused("removal denied")
        world.settings.write(config(ZIGBEE))
        world.loop.wake("config")
        await asyncio.sleep(60)
        world.server.write(ZWAVE, "7")
        await asyncio.sleep(61)
        world.server.refused.clear()
        await asyncio.sleep(61)
        assert world.server.shows(ZWAVE) == ("7", "7")
        assert not world.log.of("drift.repaired")
        assert set(world.listed) == {ZIGBEE}


@virtual
async def test_a_difference_that_somebody_else_repairs_first_is_no_drift_repaired() -> None:
    """Only what was undone by us is told and counted."""
    async with living(before=with_stick) as world:
        await started(world)
        world.server.refused[ZIGBEE] = Refused("not now")
        world.server.zero()
        await asyncio.sleep(60)
        world.server.write(ZIGBEE, "1")
        await asyncio.sleep(60)
        world.server.refused.clear()
        world.host.plug(VENDORS[ZIGBEE], "/dev/ttyUSB1")
        await asyncio.sleep(60)
        assert world.server.shows(ZIGBEE) == ("2", "2")
        assert not world.log.of("drift.repaired")


# -- the configuration


@virtual
async def test_a_resource_that_leaves_the_configuration_leaves_the_node() -> None:
    """HUP: both maps and the annotation forget it, in one request."""
    async with living(ZIGBEE, ZWAVE, before=with_sticks) as world:
        await started(world)
        world.settings.write(config(ZIGBEE))
        world.loop.wake("config")
        await asyncio.sleep(0.1)
        assert world.server.shows(ZWAVE) == (None, None)
        assert list(world.listed) == [ZIGBEE]
        assert len(world.server.requests) == 1


@virtual
async def test_a_resource_that_left_while_the_daemon_was_down_leaves_the_node_at_the_start() -> None:
    """What is ours is written on the Node, not in memory."""
    async with living(ZIGBEE, ZWAVE, before=with_sticks) as first:
        await asyncio.sleep(1)
        await first.stop()

        def same_server(world: World) -> None:
            world.server, world.host = first.server, first.host

        async with living(ZIGBEE, before=same_server) as world:
            await asyncio.sleep(1)
            assert world.server.shows(ZWAVE) == (None, None)
            assert list(world.listed) == [ZIGBEE]


@virtual
async def test_a_resource_meant_for_other_nodes_is_not_advertised_here() -> None:
    """`nodes` is part of the configuration: what no longer names this Node leaves it."""
    async with living(before=with_stick) as world:
        await asyncio.sleep(1)
        world.settings.write(config(ZIGBEE, nodes="other-*"))
        world.loop.wake("config")
        await asyncio.sleep(1)
        assert world.server.shows(ZIGBEE) == (None, None)
        assert world.server.state.annotation is None


@virtual
async def test_a_changed_file_is_found_by_the_sweep() -> None:
    """A ConfigMap mount sends no signal."""
    async with living(before=with_sticks) as world:
        await asyncio.sleep(1)
        world.settings.write(config(ZIGBEE, ZWAVE, more="sweep: 1s\n"))
        await asyncio.sleep(9.5)
        assert world.server.shows(ZWAVE) == ("1", "1")
        assert world.log.of("config.reloaded")[0].fields["resources"] == [ZIGBEE, ZWAVE]
        world.host.scans.clear()
        await asyncio.sleep(9.5)
        assert len(world.host.scans) == 9
        assert world.health.sweep == 1


@virtual
async def test_a_shorter_sweep_counts_from_its_hup_on() -> None:
    """And not only from the end of the long one before it."""
    async with living(used=config(ZIGBEE, more="sweep: 5m\n")) as world:
        await asyncio.sleep(15)
        world.settings.write(config(ZIGBEE, more="sweep: 1s\n"))
        world.loop.wake("config")
        await asyncio.sleep(0.5)
        world.host.scans.clear()
        await asyncio.sleep(9)
        assert len(world.host.scans) == 9


@virtual
async def test_hup_reads_also_an_unchanged_file() -> None:
    """The answer to a signal is a line, whatever the file says."""
    async with living() as world:
        await asyncio.sleep(1)
        world.loop.wake("config")
        await asyncio.sleep(0.1)
        assert world.log.counts["config.reloaded"] == 1
        assert world.metric("config_reloads_total", "reloaded") == 1


@pytest.mark.parametrize("hup", [True, False])
@virtual
async def test_a_bad_file_is_told_once_and_changes_nothing(hup: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    """The configuration before it stays, by HUP and by sweep, and the sweeps go on."""
    async with living(before=with_stick) as world:
        await started(world)
        world.settings.spoil()
        if hup:
            world.loop.wake("config")
        await asyncio.sleep(HOUR)
        assert world.server.shows(ZIGBEE) == ("1", "1")
        assert not world.server.writes
        assert world.log.counts["config.rejected"] == 1
        assert world.metric("config_reloads_total", "rejected") == 1
        assert world.settings.polls == pytest.approx(HOUR / 10, abs=3)


@virtual
async def test_the_source_is_told_the_paths_of_each_configuration() -> None:
    """A link that no listing shows must be asked for by its name."""
    by_path = b"resources: [{name: example.com/zigbee, match: [{path: /dev/mine}]}]"
    async with living() as world:
        await asyncio.sleep(1)
        world.settings.write(parse(by_path, file="config.yaml"))
        world.loop.wake("config")
        await asyncio.sleep(1)
        assert world.host.expected == [frozenset(), frozenset({"/dev/mine"})]


# -- what the server refuses


def refuse(*names: str) -> Callable[[World], None]:
    """Return what makes the server refuse these from the start, with all sticks plugged."""

    def prepare(world: World) -> None:
        with_sticks(world)
        world.server.refused = {name: Refused(f"no {name or 'annotation'} here (422)") for name in names}

    return prepare


@pytest.mark.parametrize("bad", VENDORS)
@virtual
async def test_a_refused_resource_holds_up_no_other(bad: str) -> None:
    """The patch is split, one request for each resource and one for the annotation before; only the bad one is missing.

    No count goes without the annotation: on a Node that was created anew meanwhile nobody would know whose it is.
    """
    async with living(*VENDORS, before=refuse(bad)) as world:
        await asyncio.sleep(1)
        shown = {name: world.server.shows(name) for name in VENDORS}
        assert shown == {name: (None, None) if name == bad else ("1", "1") for name in VENDORS}
        assert set(world.listed) == set(VENDORS)
        together, *apart = world.server.writes[:5]
        assert set(together.changes) == {ANNOTATION_PART, *VENDORS}
        assert sorted(tuple(request.changes) for request in apart) == sorted(
            [(ANNOTATION_PART,), *((name, ANNOTATION_PART) for name in VENDORS)]
        )
        assert [line.fields["refused"] for line in world.log.of("node.patch_failed")][:1] == [[bad]]
        assert bad in str(world.log.of("node.patch_failed")[0].fields["error"])


@virtual
async def test_a_refused_annotation_holds_up_no_resource() -> None:
    """A policy may forbid annotations and nothing else."""
    async with living(ZIGBEE, ZWAVE, before=refuse(ANNOTATION_PART)) as world:
        await asyncio.sleep(1)
        assert world.server.shows(ZIGBEE) == world.server.shows(ZWAVE) == ("1", "1")
        assert world.log.of("node.patch_failed")[0].fields["refused"] == ["annotation"]
        world.server.refused.clear()
        await asyncio.sleep(60.1)
        assert set(world.listed) == {ZIGBEE, ZWAVE}


@virtual
async def test_what_is_refused_alone_is_retried_ever_more_rarely_up_to_a_minute() -> None:
    """Backoff of its own: an hour costs about 70 requests, and a few lines."""
    async with living(*VENDORS, before=refuse(ZWAVE)) as world:
        world.jitter = 0.999
        await asyncio.sleep(HOUR)
        times = [request.at for request in world.server.writes if set(request.changes) == {ZWAVE, ANNOTATION_PART}]
        delays = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert delays[:9] == pytest.approx([0.5, 1, 2, 4, 8, 16, 32, 60, 60], abs=0.1)
        assert max(delays) <= 60.1
        assert len(world.log.of("node.patch_failed")) < 8
        assert world.metric("patches_total", "refused") == len(times) + 1


@virtual
async def test_a_change_of_others_passes_a_refused_resource() -> None:
    """What goes through, goes through at once, also while the refused one waits."""
    async with living(*VENDORS, before=refuse(ZWAVE)) as world:
        await started(world)
        world.host.plug(VENDORS[METER], "/dev/ttyUSB7")
        await asyncio.sleep(0.1)
        assert world.server.shows(METER) == ("2", "2")
        assert len(world.listed[METER]) == 2


@virtual
async def test_what_was_refused_goes_through_when_it_is_accepted_later() -> None:
    """A policy may be corrected: at most a minute later it is noticed, and from then on the resource is one of many."""
    async with living(*VENDORS, before=refuse(ZWAVE)) as world:
        await asyncio.sleep(HOUR)
        assert "no example.com/zwave here" in world.loop.publisher.failure
        world.server.refused.clear()
        await asyncio.sleep(60.1)
        assert world.server.shows(ZWAVE) == ("1", "1")
        assert world.loop.publisher.failure == ""
        world.server.requests.clear()
        world.host.plug(VENDORS[ZWAVE], "/dev/ttyUSB8")
        world.host.plug(VENDORS[METER], "/dev/ttyUSB9")
        await asyncio.sleep(0.1)
        assert [set(request.changes) for request in world.server.writes] == [{ANNOTATION_PART, ZWAVE, METER}]


@virtual
async def test_an_outage_does_not_hide_that_a_part_is_refused() -> None:
    """Why the Node is not as it should be is known until it is as it should be."""
    async with living(ZIGBEE, ZWAVE, before=refuse(ZWAVE)) as world:
        await asyncio.sleep(1)
        world.server.error = Retry("no answer")
        await asyncio.sleep(HOUR)
        assert world.loop.publisher.failure == "no answer"
        world.server.error = None
        await asyncio.sleep(31)
        assert "no example.com/zwave here" in world.loop.publisher.failure


@virtual
async def test_that_a_part_is_refused_is_known_before_it_is_known_which() -> None:
    """While the parts are on their way the Node is not as it should be, and the reason is the server's."""
    async with living(ZIGBEE, ZWAVE, before=refuse(ZWAVE)) as world:
        world.server.latency = 1
        await asyncio.sleep(2.5)
        assert len(world.server.writes) == 2
        assert "no example.com/zwave here" in world.loop.publisher.failure


@virtual
async def test_what_was_refused_alone_is_never_sent_in_company_again() -> None:
    """A refused repair does not spoil the request for a new stick."""
    async with living(ZIGBEE, METER, before=with_stick) as world:
        await started(world)
        world.jitter, world.server.latency = 0, 1
        world.server.zero()
        world.server.refused[ZIGBEE] = Refused("not now")
        await asyncio.sleep(50)
        world.host.plug(VENDORS[METER], "/dev/ttyUSB1")
        await asyncio.sleep(5)
        assert world.server.shows(METER) == ("1", "1")
        world.jitter = 0.5
        world.server.write(ZIGBEE, "1")  # for a while nothing has to be repaired
        await asyncio.sleep(70)
        world.server.zero()
        await asyncio.sleep(70)
        assert world.server.shows(METER) == ("1", "1")
        assert not [request for request in world.server.writes if {ZIGBEE, METER} <= request.changes.keys()]


@virtual
async def test_where_the_annotation_is_refused_what_leaves_the_configuration_leaves_the_node_too() -> None:
    """What this daemon has written itself is its own, though nothing on the Node says so."""
    async with living(*VENDORS, before=refuse(ANNOTATION_PART)) as world:
        await started(world)
        world.settings.write(config(ZIGBEE))
        world.loop.wake("config")
        await asyncio.sleep(60.1)
        shown = {name: world.server.shows(name) for name in VENDORS}
        assert shown == {name: ("1", "1") if name == ZIGBEE else (None, None) for name in VENDORS}


@virtual
async def test_a_refused_removal_is_repeated_until_it_goes_through() -> None:
    """The annotation keeps the name until the resource is gone, so that a restart would not forget it."""
    async with living(ZIGBEE, ZWAVE, before=with_sticks) as world:
        await started(world)
        world.server.refused[ZWAVE] = Refused("removal denied")
        world.settings.write(config(ZIGBEE))
        world.loop.wake("config")
        await asyncio.sleep(HOUR)
        assert set(world.listed) == {ZIGBEE, ZWAVE}
        world.server.refused.clear()
        await asyncio.sleep(60.1)
        assert world.server.shows(ZWAVE) == (None, None)
        assert set(world.listed) == {ZIGBEE}


@virtual
async def test_a_removal_that_is_accepted_and_undone_is_tried_until_it_is_done() -> None:
    """A webhook may put back what we remove; meanwhile the annotation goes on saying whose it is."""
    async with living(ZIGBEE, ZWAVE) as world:
        await started(world)
        world.server.undone.add(ZWAVE)
        world.settings.write(config(ZIGBEE))
        world.loop.wake("config")
        await asyncio.sleep(HOUR)
        assert world.server.shows(ZWAVE) == ("0", "0")
        assert set(world.listed) == {ZIGBEE, ZWAVE}
        world.server.undone.clear()
        await asyncio.sleep(61)
        assert world.server.shows(ZWAVE) == (None, None)
        assert set(world.listed) == {ZIGBEE}


@virtual
async def test_a_refused_resource_that_leaves_the_configuration_is_forgotten() -> None:
    """Nothing is asked for it any more, and when it comes back it starts without a past."""
    async with living(ZIGBEE, ZWAVE, before=refuse(ZWAVE)) as world:
        await asyncio.sleep(HOUR)
        world.settings.write(config(ZIGBEE))
        world.loop.wake("config")
        await asyncio.sleep(1)
        world.server.requests.clear()
        await asyncio.sleep(HOUR)
        assert not world.server.writes
        assert world.loop.publisher.failure == ""
        world.server.refused.clear()
        world.settings.write(config(ZIGBEE, ZWAVE))
        world.loop.wake("config")
        await asyncio.sleep(0.1)
        assert world.server.shows(ZWAVE) == ("1", "1")
        assert len(world.server.writes) == 1


@virtual
async def test_what_a_webhook_undoes_is_treated_as_refused() -> None:
    """An accepted request that changed nothing is told, does not spin, is no drift, and holds up nobody."""

    def undo(world: World) -> None:
        with_sticks(world)
        world.server.undone = {ZWAVE}

    async with living(ZIGBEE, ZWAVE, before=undo) as world:
        await asyncio.sleep(HOUR)
        assert world.server.shows(ZIGBEE) == ("1", "1")
        assert "admission webhook" in str(world.log.of("node.patch_failed")[0].fields["error"])
        assert world.log.of("node.patch_failed")[0].fields["refused"] == [ZWAVE]
        assert len(world.server.requests) < 300
        world.host.plug(VENDORS[ZIGBEE], "/dev/ttyUSB9")
        await asyncio.sleep(0.1)
        assert world.server.shows(ZIGBEE) == ("2", "2")
        world.server.undone.clear()
        await asyncio.sleep(60.1)
        assert world.server.shows(ZWAVE) == ("1", "1")
        assert world.metric("drift_repairs_total") == 0


# -- never lowers on ignorance


@virtual
async def test_an_uncertain_look_lowers_nothing_however_long_it_lasts() -> None:
    """A failed enumeration is no unplugged stick, and afterwards no time was lost on the grace."""
    async with living(before=with_stick) as world:
        await started(world)
        world.host.doubts = ("/sys/class/tty cannot be listed",)
        await asyncio.sleep(HOUR)
        assert not world.server.writes
        assert world.metric("uncertain_looks_total") >= HOUR / 10 - 2
        world.host.doubts = ()
        world.loop.wake("uevent")
        await asyncio.sleep(30)
        assert not world.server.writes
        assert not world.log.of("device.removed")


@virtual
async def test_an_uncertain_look_repairs_what_a_kubelet_zeroed() -> None:
    """What was counted before still holds, although the Node says 0."""
    async with living(before=with_stick) as world:
        await started(world)
        world.host.doubts = ("/sys is masked",)
        world.server.zero()
        await asyncio.sleep(60.1)
        assert world.server.shows(ZIGBEE) == ("1", "1")


def advertised(world: World) -> None:
    """Let a daemon before this one have advertised 2, as the Node says."""
    world.server.write(ZIGBEE, "2")
    world.server.annotate('{"example.com/zigbee":[]}')


@virtual
async def test_nothing_is_lowered_where_the_first_look_is_uncertain() -> None:
    """After a start nobody remembers, and the Node's figure stays as long as nothing is known for certain."""

    def blind(world: World) -> None:
        advertised(world)
        world.host.doubts = ("/sys is masked",)

    async with living(before=blind) as world:
        await asyncio.sleep(HOUR)
        assert world.server.shows(ZIGBEE) == ("2", "2")


@virtual
async def test_a_stick_whose_record_is_awaited_lowers_nothing() -> None:
    """Re-enumerated while udev is slow: its old count stays until it is known what it is."""
    async with living(before=with_stick) as world:
        await started(world)
        world.host.unplug()
        world.host.plug(VENDORS[ZIGBEE], "/dev/ttyUSB1", record=False)
        await asyncio.sleep(9)
        assert world.server.shows(ZIGBEE) == ("1", "1")
        world.host.finish("/dev/ttyUSB1")
        await asyncio.sleep(9)
        assert {request.changes.get(ZIGBEE, "1") for request in world.server.requests} <= {"1"}


# -- never oversells


@virtual
async def test_a_lingering_stick_is_not_added_to_a_present_one() -> None:
    """One pulled and another plugged within the grace: never two."""
    async with living(before=with_stick) as world:
        await started(world)
        world.host.unplug()
        world.host.plug(VENDORS[ZIGBEE], "/dev/ttyUSB1")
        await asyncio.sleep(60)
        assert {state.count(ZIGBEE) for state in world.server.states} == {1}
        assert [entry["devnode"] for entry in world.listed[ZIGBEE]] == ["/dev/ttyUSB1"]


# -- touches only its own


@virtual
async def test_no_patch_names_anything_that_is_not_ours() -> None:
    """Foreign resources, annotations and fields of the status stay, whatever an annotation claims to own."""

    def hostile(world: World) -> None:
        with_stick(world)
        world.server.write("vendor.com/gpu", "8")
        us = Writer(manager="devwatch", time="")
        text = '{"cpu": [], "kubernetes.io/x": [], "": [], "example.com/old": [], "vendor.com/gpu": []}'
        world.server.annotate(text, writer=us)
        world.server.write("example.com/old", "1", manager="devwatch")

    async with living(before=hostile) as world:
        before = world.server.raw
        await asyncio.sleep(HOUR)
        assert {name for request in world.server.requests for name in request.changes} == {
            ANNOTATION_PART,
            ZIGBEE,
            "example.com/old",
        }
        after = world.server.raw
        assert after["status"]["capacity"] == {"cpu": "4", "vendor.com/gpu": "8", ZIGBEE: "1"}
        assert after["status"]["phase"] == before["status"]["phase"]
        assert after["metadata"]["annotations"]["foreign"] == "text"


# -- quiet


@virtual
async def test_nothing_is_sent_while_nothing_changes_but_a_read_a_minute() -> None:
    """The resync is an empty patch, at most a tenth early; it is counted and told to nobody."""
    async with living(before=with_stick) as world:
        await started(world)
        lines, version = len(world.log.lines), world.server.state.version
        await asyncio.sleep(HOUR)
        assert not world.server.writes
        assert {str(request.body) for request in world.server.requests} == {"{}"}
        times = [request.at for request in world.server.requests]
        assert {round(later - earlier) for earlier, later in itertools.pairwise(times)} == {57}
        assert (len(world.log.lines), world.server.state.version) == (lines, version)
        assert world.metric("reconciles_total", "resync") == len(world.server.requests)


@virtual
async def test_a_configured_resync_comes_more_often() -> None:
    """Where it is shorter than what an unwatched Node needs, it counts."""
    async with living(used=config(ZIGBEE, more="resync: 10s\n")) as world:
        world.jitter = 0
        await started(world)
        await asyncio.sleep(100.5)
        assert len(world.server.requests) in {9, 10}


@virtual
async def test_never_two_requests_at_a_time() -> None:
    """A slow server gets one after the other, and at the end it shows the last state."""
    async with living() as world:
        world.server.latency = 9
        for number in range(200):
            world.host.plug(VENDORS[ZIGBEE], f"/dev/ttyUSB{number}")
            await asyncio.sleep(0.3)
        await asyncio.sleep(30)
        assert world.server.most_in_flight == 1
        assert world.server.shows(ZIGBEE) == ("200", "200")


@pytest.mark.no_cover
@virtual
async def test_a_storm_of_a_thousand_uevents_costs_at_most_three_patches() -> None:
    """A hub with everything on it comes up: one request for the first, one for the rest."""
    async with living() as world:
        await started(world)
        for number in range(1000):
            world.host.plug(VENDORS[ZIGBEE], f"/dev/ttyUSB{number % 20}")
            await asyncio.sleep(0)
        await asyncio.sleep(5)
        assert world.server.shows(ZIGBEE) == ("20", "20")
        assert len(world.server.requests) <= 3


ENDLESS = {
    "all is well": nothing,
    "the Node is missing": lambda world: world.server.delete(),
    "the server never answers": lambda world: setattr(world.server, "silent", True),
    "everything is refused": refuse(ANNOTATION_PART, *VENDORS),
    "a stick waits for its record": lambda world: world.host.plug(VENDORS[ZIGBEE], record=False),
    "nothing can be seen": lambda world: setattr(world.host, "doubts", ("masked",)),
}


@pytest.mark.parametrize("trouble", ENDLESS.values(), ids=ENDLESS)
@virtual
async def test_the_loop_never_spins(trouble: Callable[[World], None]) -> None:
    """In no lasting condition does it turn more than about twice for each sweep and answer."""
    async with living(*VENDORS, before=trouble) as world:
        await asyncio.sleep(HOUR)
        assert len(world.cycles) < HOUR / 10 + 3 * len(world.server.requests) + 20
        assert len(world.server.requests) < 900


# -- grace holds


@virtual
async def test_what_is_away_for_less_than_its_grace_changes_nothing() -> None:
    """A re-enumeration within the grace is no request at all; the log tells it."""
    async with living(before=with_stick) as world:
        await started(world)
        for _ in range(10):
            world.host.unplug()
            await asyncio.sleep(1.9)
            world.host.plug(VENDORS[ZIGBEE])
            await asyncio.sleep(0.1)
        assert not world.server.writes
        assert world.log.counts["device.returned"] == 10


@virtual
async def test_after_a_start_the_nodes_own_figure_counts_for_ten_seconds() -> None:
    """The sticks may still be settling; what has not come back by then is gone."""
    async with living(before=advertised) as world:
        await asyncio.sleep(9.9)
        assert world.server.shows(ZIGBEE) == ("2", "2")
        await asyncio.sleep(0.3)
        assert world.server.shows(ZIGBEE) == ("0", "0")


@virtual
async def test_a_stick_that_settles_within_the_start_grace_was_never_away() -> None:
    """No count below it is ever on the Node."""
    async with living(before=advertised) as world:
        await asyncio.sleep(5)
        world.host.plug(VENDORS[ZIGBEE])
        world.host.plug(VENDORS[ZIGBEE], "/dev/ttyUSB1")
        await asyncio.sleep(60)
        assert {state.count(ZIGBEE) for state in world.server.states} == {2}


# -- once


@virtual
async def test_once_ends_when_the_node_shows_what_is_present_without_a_start_grace() -> None:
    """Up and down at once, and no task is left."""

    def prepare(world: World) -> None:
        advertised(world)
        with_stick(world)

    async with living(before=prepare, once=True) as world:
        await world.end()
        assert now() < 1
        assert world.server.shows(ZIGBEE) == ("1", "1")
        assert world.loop.publisher.failure == ""


UNFINISHED = {
    "the look is uncertain": lambda world: setattr(world.host, "doubts", ("masked",)),
    "there is no answer": lambda world: setattr(world.server, "error", Retry("no answer")),
    "a part is refused": lambda world: world.server.refused.update({ZIGBEE: Refused("no")}),
    "the server hangs": lambda world: setattr(world.server, "silent", True),
}


@pytest.mark.parametrize("trouble", UNFINISHED.values(), ids=UNFINISHED)
@virtual
async def test_once_does_not_end_before(trouble: Callable[[World], None]) -> None:
    """Whoever runs it may rely on what the Node shows afterwards; the daemon gives up for it."""
    async with living(ZIGBEE, ZWAVE, before=trouble, once=True) as world:
        await asyncio.sleep(HOUR)
        assert not world.task.done()


@virtual
async def test_once_says_what_holds_it_up() -> None:
    """Also when the request after it was accepted."""

    def prepare(world: World) -> None:
        world.server.refused[ZIGBEE] = Refused("no zigbee on fridays")

    async with living(ZIGBEE, ZWAVE, before=prepare, once=True) as world:
        await asyncio.sleep(0.1)
        assert world.server.shows(ZWAVE) == ("0", "0")
        assert world.loop.publisher.failure == "no zigbee on fridays"


@virtual
async def test_once_waits_for_a_stick_that_is_still_arriving() -> None:
    """A start with the machine: udev needs a moment."""

    def arriving(world: World) -> None:
        world.host.plug(VENDORS[ZIGBEE], record=False)

    async with living(before=arriving, once=True) as world:
        await asyncio.sleep(3)
        world.host.finish()
        await world.end()
        assert world.server.shows(ZIGBEE) == ("1", "1")


@virtual
async def test_once_does_not_end_while_a_count_is_held_up_by_what_is_unknown() -> None:
    """The Node then shows more than is present; the reason is known to who gives up for it."""

    def unknown(world: World) -> None:
        advertised(world)
        world.host.plug("0009", record=False)

    async with living(used=by_port(), before=unknown, once=True) as world:
        await asyncio.sleep(HOUR)
        assert not world.task.done()
        assert "port of /dev/ttyUSB0 is unknown" in world.health.differs
        world.host.finish()
        await world.end()
        assert world.server.shows(ZIGBEE) == ("0", "0")


@virtual
async def test_once_does_not_leave_a_stick_that_was_pulled_meanwhile() -> None:
    """Nobody would lower the count after the end."""
    async with living(before=with_stick, once=True) as world:
        world.server.latency = 1
        await asyncio.sleep(0.5)
        world.host.unplug()
        await world.end()
        assert world.server.shows(ZIGBEE) == ("0", "0")


@virtual
async def test_once_does_not_end_on_a_lost_answer() -> None:
    """The stick that a lost request advertised is gone again: the Node may show it all the same."""

    def shown(world: World) -> None:
        with_stick(world)
        world.server.write(ZIGBEE, "0")
        world.server.annotate('{"example.com/zigbee":[]}')

    async with living(used=config(ZIGBEE, grace="1ms"), once=True, before=shown) as world:
        await asyncio.sleep(0.015)
        world.server.losing = 1
        world.host.unplug()
        await world.end()
        assert world.server.shows(ZIGBEE) == ("0", "0")


# -- metrics, health and the log tell the truth


@virtual
async def test_the_right_that_is_missing_is_told_with_the_command_that_grants_it() -> None:
    """A 403 of RBAC is an error for a human."""

    def forbid(world: World) -> None:
        world.server.error = Forbidden("cannot patch", hint="kubectl create clusterrole x")

    async with living(before=forbid) as world:
        await asyncio.sleep(1)
        line = world.log.of("node.patch_failed")[0]
        assert (line.level, line.fields["hint"]) == ("error", "kubectl create clusterrole x")


@virtual
async def test_an_outage_of_an_hour_is_a_story_of_a_few_lines() -> None:
    """Told when it begins, ever more rarely while it lasts, and when it ends."""
    async with living(before=with_stick) as world:
        await started(world)
        world.log.lines.clear()
        world.server.error = Retry("no answer")
        world.host.plug(VENDORS[ZIGBEE], "/dev/ttyUSB1")
        await asyncio.sleep(HOUR)
        world.server.error = None
        await asyncio.sleep(31)
        assert [line.event for line in world.log.lines][:2] == ["device.added", "node.patch_failed"]
        assert world.log.counts["node.patch_failed"] <= 10
        assert world.log.of("node.patched")[-1].fields["after_failures"] == world.metric("patches_total", "failed")


@virtual
async def test_the_time_from_detection_to_patch_is_that_from_uevent_to_answer() -> None:
    """Observed once a change; a read, and a uevent that changes nothing, are none."""
    async with living() as world:
        await started(world)
        world.server.latency = 0.5
        world.loop.wake("uevent")
        await asyncio.sleep(5)
        world.host.plug(VENDORS[ZIGBEE])
        await asyncio.sleep(HOUR)
        assert world.metric("detection_to_patch_seconds_count") == 1
        assert world.metric("detection_to_patch_seconds_sum") == pytest.approx(0.5)


@virtual
async def test_the_time_from_detection_to_patch_leaves_out_the_grace() -> None:
    """The grace is a wish of the user, no slowness."""
    async with living(before=with_stick) as world:
        await started(world)
        world.server.latency = 0.5
        world.host.unplug()
        await asyncio.sleep(1)
        world.settings.write(config(ZIGBEE, ZWAVE))
        world.loop.wake("config")
        await asyncio.sleep(10)
        assert world.metric("detection_to_patch_seconds_count") == 1
        assert world.metric("detection_to_patch_seconds_sum") == pytest.approx(0.5)


@virtual
async def test_the_time_from_detection_to_patch_includes_an_outage() -> None:
    """What the user waited for is what is measured, and the first uevent counts."""
    async with living() as world:
        await started(world)
        world.server.error, world.server.latency = Retry("slow down", after=20), 2
        world.host.plug(VENDORS[ZIGBEE])
        await asyncio.sleep(1)
        world.host.plug(VENDORS[ZIGBEE], "/dev/ttyUSB1")
        await asyncio.sleep(2)
        world.server.error = None
        world.host.plug(VENDORS[ZIGBEE], "/dev/ttyUSB2")
        await asyncio.sleep(30)
        assert world.metric("detection_to_patch_seconds_sum") == pytest.approx(24)


@virtual
async def test_the_time_from_detection_to_patch_begins_while_a_read_is_out_that_fails() -> None:
    """The read knew of no change; the uevent that came meanwhile is not forgotten with it."""
    async with living() as world:
        await started(world)
        world.server.error, world.server.latency = Retry("slow down", after=20), 2
        await asyncio.sleep(43)
        assert world.server.in_flight == 1
        assert not world.server.writes
        world.host.plug(VENDORS[ZIGBEE])
        await asyncio.sleep(5)
        world.server.error = None
        await asyncio.sleep(30)
        assert world.metric("detection_to_patch_seconds_sum") == pytest.approx(23, abs=1)


@virtual
async def test_the_time_from_detection_to_patch_survives_the_split_of_a_refused_patch() -> None:
    """The first part that goes through ends it; a uevent while a part stays refused begins nothing."""
    async with living(ZIGBEE, ZWAVE) as world:
        await started(world)
        world.server.refused[ZWAVE] = Refused("no")
        world.host.unheard = True
        world.host.plug(VENDORS[ZWAVE])
        world.host.unheard = False
        world.host.plug(VENDORS[ZIGBEE], "/dev/ttyUSB1")
        await asyncio.sleep(5)
        assert world.metric("detection_to_patch_seconds_count") == 1
        await asyncio.sleep(HOUR)
        world.server.refused.clear()
        world.loop.wake("uevent")
        await asyncio.sleep(61)
        assert world.server.shows(ZWAVE) == ("1", "1")
        assert world.metric("detection_to_patch_seconds_sum") == pytest.approx(0.02)


@virtual
async def test_every_reconcile_is_counted_by_what_woke_it() -> None:
    """The label is what a user would look for: a retry is no resync."""
    async with living() as world:
        await started(world)
        assert world.metric("reconciles_total", "start") == 1
        world.host.plug(VENDORS[ZIGBEE])
        world.loop.wake("config")
        await asyncio.sleep(1)
        assert world.metric("reconciles_total", "uevent") == world.metric("reconciles_total", "config") == 1
        retries, resyncs = world.metric("reconciles_total", "retry"), world.metric("reconciles_total", "resync")
        world.server.error = Retry("no answer", after=1)
        world.host.plug(VENDORS[ZIGBEE], "/dev/ttyUSB1")
        await asyncio.sleep(5.5)
        assert world.metric("reconciles_total", "retry") > retries + 1
        assert world.metric("reconciles_total", "resync") == resyncs
        assert world.metric("reconciles_total", "node") == world.metric("patch_duration_seconds_count")
        assert world.metric("reconciles_total", "sweep") > 0
        world.server.error = None
        await asyncio.sleep(60)
        graces = world.metric("reconciles_total", "grace")
        world.host.unplug()
        await asyncio.sleep(5)
        assert world.metric("reconciles_total", "grace") == graces + 1


@virtual
async def test_the_repetition_of_a_failed_read_is_counted_as_a_retry() -> None:
    """A resync is what comes by the clock of the configuration, not what an outage makes necessary."""
    async with living(before=lambda world: world.server.delete()) as world:
        await asyncio.sleep(60)
        assert world.metric("reconciles_total", "resync") == 0
        assert world.metric("reconciles_total", "retry") >= len(world.server.requests) - 1


@virtual
async def test_the_gauges_are_what_is_present_and_what_was_observed() -> None:
    """During the grace they differ, and that is the point of having two."""
    async with living(before=with_stick) as world:
        await started(world)
        assert (world.metric("devices", ZIGBEE), world.metric("capacity", ZIGBEE)) == (1, 1)
        world.host.unplug()
        await asyncio.sleep(1)
        assert (world.metric("devices", ZIGBEE), world.metric("capacity", ZIGBEE)) == (0, 1)
        await asyncio.sleep(2)
        assert (world.metric("devices", ZIGBEE), world.metric("capacity", ZIGBEE)) == (0, 0)


@virtual
async def test_ready_means_seen_certain_and_not_different_for_a_minute() -> None:
    """Each reason in turn, in one line."""

    def fail(world: World) -> None:
        world.server.error = Retry("no answer")

    async with living(before=fail) as world:
        await asyncio.sleep(1)
        assert world.ready() == (False, "the Node has not been seen to show what is present: no answer")
        world.server.error = None
        await asyncio.sleep(31)
        assert world.ready() == (True, "ok")
        world.host.doubts = ("/sys is masked",)
        await asyncio.sleep(11)
        assert "/sys is masked" in world.ready()[1]
        world.host.doubts = ()
        await asyncio.sleep(11)
        fail(world)
        world.host.plug(VENDORS[ZIGBEE])
        await asyncio.sleep(59)
        assert world.ready() == (True, "ok")
        await asyncio.sleep(2)
        late = "the Node has not shown what is present for 61 s"
        assert world.ready() == (False, f"{late}: annotation; {ZIGBEE}: no answer")
        world.server.error = None
        await asyncio.sleep(31)
        assert world.ready() == (True, "ok")


NEVER_STORED = {
    "refused": refuse(ANNOTATION_PART, *VENDORS),
    "undone by a webhook": lambda world: world.server.undone.update({ANNOTATION_PART, *VENDORS}),
    "forbidden": lambda world: setattr(world.server, "error", Forbidden("cannot patch nodes/status")),
}


@pytest.mark.parametrize("trouble", NEVER_STORED.values(), ids=NEVER_STORED)
@virtual
async def test_a_daemon_whose_writes_are_never_stored_is_at_no_time_ready(trouble: Callable[[World], None]) -> None:
    """Though its first read was accepted, and from the first refusal on with the words of the server: a rollout stops here."""
    async with living(*VENDORS, before=trouble) as world:
        reasons = set[str]()
        for _ in range(1000):
            await asyncio.sleep(0.01)
            ready, reason = world.ready()
            assert not ready
            reasons.add(reason)
        await asyncio.sleep(HOUR)
        assert any(words in world.ready()[1] for words in ("no annotation here", "admission webhook", "cannot patch"))
        assert len([reason for reason in reasons if "refused" not in reason]) <= 2


@virtual
async def test_a_daemon_that_starts_on_a_node_that_is_right_is_ready_after_its_first_read() -> None:
    """A restart is no outage."""
    async with living(before=with_stick) as first:
        await asyncio.sleep(1)
        await first.stop()

        def same_server(world: World) -> None:
            world.server, world.host = first.server, first.host
            world.server.requests.clear()

        async with living(before=same_server) as world:
            await asyncio.sleep(0.1)
            assert world.ready() == (True, "ok")
            assert [request.changes for request in world.server.requests] == [{}]


@virtual
async def test_what_is_refused_makes_the_daemon_unready_at_once_until_nobody_wants_it() -> None:
    """With the resource and the words of the server."""
    async with living(ZIGBEE, ZWAVE) as world:
        await started(world)
        world.server.refused[ZIGBEE] = Refused("no zigbee on fridays (422)")
        world.host.plug(VENDORS[ZIGBEE])
        await asyncio.sleep(0.1)
        assert world.ready() == (False, f"{ZIGBEE} refused: no zigbee on fridays (422)")
        world.host.unplug()
        await asyncio.sleep(1)
        assert not world.ready()[0]
        await asyncio.sleep(2)
        assert world.ready() == (True, "ok")


@virtual
async def test_the_daemon_is_unready_before_it_is_known_which_part_is_refused() -> None:
    """What is refused together is named together; what is accepted then is named no longer."""
    async with living(ZIGBEE, ZWAVE) as world:
        await started(world)
        world.server.latency, world.server.refused[ZWAVE] = 5, Refused("no waves")
        world.host.plug(VENDORS[ZIGBEE])
        world.host.plug(VENDORS[ZWAVE], "/dev/ttyUSB1")
        await asyncio.sleep(5.1)
        assert world.ready() == (False, f"annotation, {ZIGBEE}, {ZWAVE} refused: no waves")
        await asyncio.sleep(5)
        assert world.ready() == (False, f"{ZIGBEE}, {ZWAVE} refused: no waves")
        await asyncio.sleep(10)
        assert world.ready() == (False, f"{ZWAVE} refused: no waves")
        world.server.refused.clear()
        await asyncio.sleep(70)
        assert world.ready() == (True, "ok")


@virtual
async def test_what_was_accepted_is_refused_no_longer_though_it_changes_meanwhile() -> None:
    """The next change has not been refused yet."""
    async with living(before=refuse(ZIGBEE)) as world:
        await started(world)
        world.server.latency = 1
        await until(lambda: world.server.in_flight > 0)
        world.server.refused.clear()
        world.host.plug(VENDORS[ZIGBEE], "/dev/ttyUSB7")
        await until(lambda: world.server.shows(ZIGBEE) == ("1", "1"))
        await asyncio.sleep(0.1)
        assert "refused" not in world.ready()[1]
        assert world.server.in_flight


@virtual
async def test_a_node_that_is_missing_is_not_ready_until_the_next_one_was_seen() -> None:
    """What was last seen of it shows nothing to anybody, nor do the metrics."""
    async with living(before=with_stick) as world:
        await started(world)
        world.server.delete()
        await asyncio.sleep(60)
        assert world.ready() == (False, 'the Node is missing: nodes "n" not found (404)')
        assert f'devwatch_capacity{{resource="{ZIGBEE}"}}' not in world.metrics.render().decode()
        world.server.error = Retry("no answer either")
        await asyncio.sleep(60)
        assert not world.ready()[0]
        world.server.error = None
        world.server.create()
        await asyncio.sleep(31)
        assert world.ready() == (True, "ok")
        assert world.metric("capacity", ZIGBEE) == 1
        assert len(world.log.of("node.missing")) == 1


def by_port() -> Config:
    """Return a configuration that needs the record of udev."""
    return parse(f"resources: [{{name: {ZIGBEE}, match: [{{port: '*-1'}}]}}]".encode(), file="config.yaml")


@virtual
async def test_a_count_that_is_held_up_by_what_is_unknown_is_told_and_after_a_minute_not_ready() -> None:
    """A device whose record never comes may be what is counted; when it is known, all is well."""

    def unknown(world: World) -> None:
        advertised(world)
        world.host.plug("0009", record=False)

    async with living(used=by_port(), before=unknown) as world:
        await asyncio.sleep(200)
        (line,) = world.log.of("count.held")
        assert (line.fields["resource"], line.fields["count"], line.fields["present"]) == (ZIGBEE, 2, 0)
        assert "port of /dev/ttyUSB0" in str(line.fields["reason"])
        assert world.metric("held", ZIGBEE) == 1
        assert not world.ready()[0]
        assert "port of /dev/ttyUSB0 is unknown" in world.ready()[1]
        world.host.finish()
        await asyncio.sleep(1)
        assert world.server.shows(ZIGBEE) == ("0", "0")
        assert world.ready() == (True, "ok")
        assert world.metric("held", ZIGBEE) == 0


# -- the life of the loop


@virtual
async def test_an_exception_of_the_server_that_is_none_of_ours_ends_the_loop() -> None:
    """No half-dead daemon: somebody restarts a process that has ended."""
    async with living() as world:
        await started(world)
        world.server.error = ZeroDivisionError("a bug")
        world.host.plug(VENDORS[ZIGBEE])
        with pytest.raises(ExceptionGroup) as caught:
            await world.end()
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]


@virtual
async def test_a_request_that_is_cancelled_from_within_ends_the_loop() -> None:
    """A library that cancels what it should not must not leave a loop that waits for ever for the answer."""
    async with living() as world:
        await started(world)
        world.server.error = asyncio.CancelledError()
        world.host.plug(VENDORS[ZIGBEE])
        with pytest.raises(ExceptionGroup, match="unhandled errors"):
            await world.end()


@virtual
async def test_an_exception_of_a_look_ends_the_loop_and_the_request() -> None:
    """Nothing goes on in the background."""

    def fail() -> None:
        raise ZeroDivisionError("a bug")

    async with living() as world:
        world.server.silent = True
        await asyncio.sleep(1)
        world.host.at_look = fail
        with pytest.raises(ExceptionGroup):
            await world.end()
        assert world.server.in_flight == 0


@virtual
async def test_cancellation_leaves_nothing_running() -> None:
    """TERM in the middle of a request: it ends at once, with the request, and what is advertised stays."""
    async with living(before=with_stick) as world:
        await started(world)
        world.server.silent = True
        world.host.plug(VENDORS[ZIGBEE], "/dev/ttyUSB1")
        await asyncio.sleep(1)
        at = now()
        await world.stop()
        assert (now(), world.server.in_flight) == (at, 0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert world.server.shows(ZIGBEE) == ("1", "1")


@virtual
async def test_the_loop_turns_at_least_once_a_heartbeat() -> None:
    """Who watches the process hears of it, though the sweep is slow and the server silent."""
    used = config(ZIGBEE, more="sweep: 5m\n")
    async with living(used=used, heartbeat=7.5) as world:
        world.server.silent = True
        await asyncio.sleep(HOUR)
        assert max(later - earlier for earlier, later in itertools.pairwise(world.cycles)) <= 7.5


@virtual
async def test_a_wake_during_a_turn_is_not_lost() -> None:
    """What comes while the devices are looked at leads to another look."""
    async with living() as world:
        await started(world)
        scans = len(world.host.scans)

        def once_more() -> None:
            world.host.at_look = lambda: None
            world.loop.wake("uevent")

        world.host.at_look = once_more
        world.loop.wake("config")
        await asyncio.sleep(0.1)
        assert len(world.host.scans) == scans + 2


# -- all of it, in any order

SITES = ("/dev/ttyUSB0", "/dev/ttyUSB1")
FAULTS: dict[str, Callable[[World], None]] = {
    "outage": lambda world: setattr(world.server, "error", Retry("no answer")),
    "forbidden": lambda world: setattr(world.server, "error", Forbidden("no")),
    "back": lambda world: setattr(world.server, "error", None),
    "slow": lambda world: setattr(world.server, "latency", 9.0),
    "quick": lambda world: setattr(world.server, "latency", 0.01),
    "lost": lambda world: setattr(world.server, "losing", 2),
    "refuse": lambda world: world.server.refused.update({ZIGBEE: Refused("no")}),
    "refuse annotation": lambda world: world.server.refused.update({ANNOTATION_PART: Refused("no")}),
    "accept": lambda world: world.server.refused.clear(),
    "undo": lambda world: world.server.undone.add(ZWAVE),
    "zero": lambda world: world.server.zero(),
    "create": lambda world: world.server.create(),
    "delete": lambda world: world.server.delete(),
    "raise": lambda world: world.server.write(ZIGBEE, "9"),
    "spoil": lambda world: world.server.annotate("{"),
    "deaf": lambda world: setattr(world.host, "unheard", True),
    "hearing": lambda world: setattr(world.host, "unheard", False),
    "drop": lambda world: world.settings.write(config(ZIGBEE)),
    "both": lambda world: world.settings.write(config(ZIGBEE, ZWAVE)),
    "bad file": lambda world: world.settings.spoil(),
    "hup": lambda world: world.loop.wake("config"),
}
STEPS = st.one_of(
    st.tuples(st.just("swap"), st.sampled_from(SITES), st.sampled_from(list(VENDORS.values()))),
    st.tuples(st.sampled_from(sorted(FAULTS)), st.just(""), st.just("")),
)
STORIES = st.lists(st.tuples(STEPS, st.sampled_from([0.0, 0.01, 0.3, 1.7, 2.1, 13.0, 70.0])), max_size=25)


def happen(world: World, step: tuple[str, str, str], plugged: dict[str, str]) -> None:
    """Let one thing happen; `plugged` is what is plugged where."""
    kind, site, vendor = step
    if kind != "swap":
        with contextlib.suppress(LookupError):  # nobody writes to a Node that is deleted
            FAULTS[kind](world)
    elif plugged.pop(site, None):
        world.host.unplug(site)
    else:
        plugged[site] = vendor
        world.host.plug(vendor, site)


def heal(world: World) -> None:
    """End everything that keeps the Node from showing the devices."""
    if not world.server.exists:
        world.server.create()
    world.server.error, world.server.losing, world.server.latency = None, 0, 0.01
    world.server.refused.clear()
    world.server.undone.clear()
    world.settings.write(config(ZIGBEE, ZWAVE))


def hold_promises(world: World, plugged: dict[str, str]) -> None:
    """Check what must be so when all has healed, and what must have been so all the time."""
    counts = {name: str(list(plugged.values()).count(VENDORS[name])) for name in (ZIGBEE, ZWAVE)}
    assert {name: world.server.shows(name) for name in counts} == {name: (n, n) for name, n in counts.items()}
    assert set(world.listed) == set(counts)
    assert world.server.most_in_flight <= 1
    assert {name for request in world.server.requests for name in request.changes} <= {ANNOTATION_PART, ZIGBEE, ZWAVE}
    assert all(state.capacity["cpu"] == "4" for state in world.server.states)
    assert world.loop.publisher.failure == ""


@pytest.mark.no_cover
@settings(max_examples=150, deadline=None)
@given(story=STORIES)
def test_whatever_happened_a_minute_after_all_has_healed_the_node_shows_the_devices(
    story: list[tuple[tuple[str, str, str], float]],
) -> None:
    """Any story of sticks, strangers, files and failures ends well, with one request at a time and nothing foreign touched."""

    async def tell() -> None:
        plugged: dict[str, str] = {}
        async with living(ZIGBEE, ZWAVE) as world:
            for step, pause in story:
                happen(world, step, plugged)
                await asyncio.sleep(pause)
            heal(world)
            await asyncio.sleep(130)
            hold_promises(world, plugged)
            await asyncio.sleep(60)
            sent = len(world.server.writes)
            await asyncio.sleep(300)
            assert len(world.server.writes) == sent

    virtualtime.run(tell)
