"""The fakes behave as what they stand for: a Node that is merged and versioned, sticks that come and go, a file that changes."""

from __future__ import annotations

import asyncio
import gc
import socket
from typing import TYPE_CHECKING

import pytest

from devwatch.config.schema import parse
from devwatch.core.errors import ConfigError, Conflict, Forbidden, Gone, Missing, NodeMissing, Refused, Retry
from devwatch.core.node import ANNOTATION_PART, NodeState
from devwatch.core.pods import Pod
from devwatch.kube.pods import Event
from support import realtime, virtualtime
from support.build import patch_of
from support.fakes import FakeHost, FakeServer, FakeSettings, FakeWorkload, Line, RecordingLog
from support.scripted import answer, site

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.build import Parts

A, B = "example.com/a", "example.com/b"


def server() -> FakeServer:
    """Return a server whose clock stands still."""
    return FakeServer(lambda: 0.0)


def patch(server: FakeServer, changes: Parts) -> NodeState:
    """Send one request."""
    return virtualtime.run(lambda: server.patch(patch_of(changes)))


def test_a_patch_is_merged_and_answered_with_the_node() -> None:
    """Both maps and the annotation are set, null removes, what is not named stays, removing an absent key is fine."""
    node = server()
    patch(node, {A: "1", B: "2", ANNOTATION_PART: "{}"})
    answer = patch(node, {A: None, "example.com/absent": None})
    assert answer == node.state
    assert (node.shows(A), node.shows(B), answer.annotation) == ((None, None), ("2", "2"), "{}")
    assert node.raw["status"]["capacity"] == {"cpu": "4", B: "2"}
    assert node.raw["metadata"]["annotations"]["foreign"] == "text"


def test_only_a_patch_that_changes_something_makes_a_new_version() -> None:
    """A read, and the same patch again, write nothing."""
    node = server()
    first = patch(node, {A: "1"}).version
    assert patch(node, {A: "1"}).version == patch(node, {}).version == first
    assert patch(node, {A: "2"}).version > first


def test_requests_are_recorded_with_their_time_and_those_at_once_are_counted() -> None:
    """A test can tell what was sent, when, and whether two overlapped."""

    async def main() -> FakeServer:
        node = FakeServer(asyncio.get_running_loop().time, latency=2)
        await asyncio.gather(node.patch(patch_of({})), node.patch(patch_of({A: "1"})))
        return node

    node = virtualtime.run(main)
    assert [(request.at, request.ended) for request in node.requests] == [(0, 2), (0, 2)]
    assert [request.changes for request in node.writes] == [{A: "1"}]
    assert (node.most_in_flight, node.in_flight) == (2, 0)


@pytest.mark.parametrize("error", [Retry("x"), Forbidden("x"), NodeMissing("x"), Refused("x"), ValueError("x")])
def test_an_error_is_raised_and_nothing_is_stored(error: Exception) -> None:
    """Until it is taken away."""
    node = server()
    node.error = error
    with pytest.raises(type(error)):
        patch(node, {A: "1"})
    assert node.shows(A) == (None, None)
    node.error = None
    assert patch(node, {A: "1"}).count(A) == 1


def test_a_silent_server_never_answers() -> None:
    """The request hangs until it is cancelled, and then is in flight no more."""

    async def main() -> FakeServer:
        node = FakeServer(asyncio.get_running_loop().time)
        node.silent = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await node.patch(patch_of({}))
        return node

    assert virtualtime.run(main).in_flight == 0


def test_a_lost_answer_is_that_of_a_stored_patch() -> None:
    """As often as was asked for."""
    node = server()
    node.losing = 1
    with pytest.raises(Retry):
        patch(node, {A: "1"})
    assert node.shows(A) == ("1", "1")
    assert patch(node, {}).count(A) == 1


def test_a_refused_name_refuses_the_whole_request() -> None:
    """A resource or the annotation; requests without it pass."""
    node = server()
    node.refused = {A: Refused("no")}
    with pytest.raises(Refused):
        patch(node, {A: "1", B: "1"})
    assert node.shows(B) == (None, None)
    assert patch(node, {B: "1"}).count(B) == 1


def test_an_undone_name_is_accepted_and_not_stored() -> None:
    """As a mutating webhook does it."""
    node = server()
    node.undone = {A}
    answer = patch(node, {A: "1", B: "1"})
    assert (answer.count(A), answer.count(B)) == (0, 1)


def test_a_deleted_node_is_missing_until_it_is_created_anew() -> None:
    """With another uid, a greater version and nothing of ours."""
    node = server()
    before = patch(node, {A: "1", ANNOTATION_PART: "{}"})
    node.delete()
    assert not node.exists
    with pytest.raises(NodeMissing):
        patch(node, {A: "1"})
    with pytest.raises(LookupError):
        node.write(A, "1")
    node.create()
    assert node.exists
    assert (node.shows(A), node.state.annotation) == ((None, None), None)
    assert node.state.uid != before.uid
    assert node.state.version > before.version


STRANGERS: dict[str, Callable[[FakeServer], object]] = {
    "write": lambda node: node.write(A, "7"),
    "write capacity": lambda node: node.write(A, "7", maps=("capacity",)),
    "annotate": lambda node: node.annotate("x"),
    "zero": lambda node: node.zero(),
}


@pytest.mark.parametrize("write", STRANGERS.values(), ids=STRANGERS)
def test_what_others_write_is_a_new_version(write: Callable[[FakeServer], object]) -> None:
    """And no request of ours."""
    node = server()
    before = patch(node, {A: "1", ANNOTATION_PART: "{}"})
    write(node)
    assert node.state.version > before.version
    assert node.state.annotation in {"x", "{}"}
    assert len(node.requests) == 1


def test_strangers_change_what_they_name() -> None:
    """One map or both; a restarted kubelet zeroes extended resources only."""
    node = server()
    patch(node, {A: "1"})
    node.write(A, "7", maps=("allocatable",))
    assert node.shows(A) == ("1", "7")
    node.zero()
    assert (node.shows(A), node.shows("cpu")) == (("0", "0"), ("4", "4"))
    node.write(A, None)
    assert node.shows(A) == (None, None)


def test_a_backup_brings_back_the_version_too() -> None:
    """As a restored etcd does."""
    node = server()
    before = node.state
    restore = node.backup()
    patch(node, {A: "1"})
    restore()
    assert node.state == before


def test_every_stick_is_another_incarnation_and_announced() -> None:
    """A re-plugged stick is not the one that was pulled; an unheard one makes no uevent."""
    woken: list[str] = []
    host = FakeHost(wake=woken.append)
    host.plug("0001")
    (first,) = host.scan(1).devices
    host.unplug()
    assert host.scan(2).devices == ()
    host.plug("0001", record=False)
    (second,) = host.scan(3).devices
    assert first.key != second.key
    assert (first.complete, second.complete) == (True, False)
    host.finish()
    assert host.scan(4).devices[0].key == second.key
    assert host.scan(4).devices[0].complete
    assert len(woken) == 4
    host.unheard = True
    host.unplug()
    assert len(woken) == 4
    assert host.scans == [1, 2, 3, 4, 4]


def test_doubts_hide_everything_and_are_told() -> None:
    """As a failed enumeration does; another look is due only where it lies ahead."""
    host = FakeHost(doubts=("masked",), again_at=5, troubles=("no /run/udev",))
    host.plug("0001")
    scan = host.scan(1)
    assert (scan.devices, scan.certain, scan.again_at, scan.troubles) == ((), False, 5, ("no /run/udev",))
    assert host.scan(5).again_at is None


def test_a_file_is_news_once_and_with_force_always() -> None:
    """Good or bad, as a file on a disk."""
    first, second = (
        parse(f"sweep: {n}s\nresources: [{{name: a/b, match: [{{vendor: '0001'}}]}}]".encode(), file="x")
        for n in (1, 2)
    )
    file = FakeSettings(first)
    assert file.poll(force=False) is None
    assert file.poll(force=True) is first
    file.write(second)
    assert (file.poll(force=False), file.poll(force=False)) == (second, None)
    file.spoil("bad")
    with pytest.raises(ConfigError, match="bad"):
        file.poll(force=False)
    assert file.poll(force=False) is None
    with pytest.raises(ConfigError):
        file.poll(force=True)
    assert file.polls == 7


def test_the_log_remembers_level_event_and_fields() -> None:
    """In their order, by event, and counted."""
    log = RecordingLog()
    log.debug("a", x=1)
    log.info("b")
    log.warning("a")
    log.error("c")
    assert [line.level for line in log.lines] == ["debug", "info", "warning", "error"]
    assert log.of("a")[0] == Line(level="debug", event="a", fields={"x": 1})
    assert log.counts == {"a": 2, "b": 1, "c": 1}


def test_a_watch_shows_the_node_and_every_write_late_or_not() -> None:
    """And what it is told to, until it is told to end; a watch that nobody reads any more is forgotten."""

    async def main() -> tuple[list[int | None], float]:
        node = FakeServer(asyncio.get_running_loop().time)
        node.watch_latency = 3
        first = node.state
        seen: list[int | None] = []

        async def follow() -> None:
            seen.extend([None if state is None else state.version async for state in node.watch()])

        task = asyncio.create_task(follow())
        await asyncio.sleep(1)
        await node.patch(patch_of({A: "1"}))
        node.write(A, "2", manager="rival")
        node.show(first)
        node.delete()
        node.create()
        node.show(None)
        await task
        node.write(A, "3")
        return seen, asyncio.get_running_loop().time()

    seen, ended = virtualtime.run(main)
    assert seen == [1, 2, 3, 1, None, 4]
    assert ended > 1 + 3 * 3


@pytest.mark.parametrize("late", [False, True])
def test_a_watch_fails_with_what_it_is_given(late: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    """At its beginning or later."""

    async def main() -> None:
        node = FakeServer(asyncio.get_running_loop().time)
        if late:
            asyncio.get_running_loop().call_later(5, node.show, Gone("old"))
        else:
            node.delete()
            node.watch_error = Gone("old")
        async for _ in node.watch():
            pass

    with pytest.raises(Gone):
        virtualtime.run(main)


def test_a_watch_fails_after_its_list() -> None:
    """A right to list is none to watch."""

    async def main() -> None:
        node = FakeServer(asyncio.get_running_loop().time)
        node.stream_error = Forbidden("cannot watch nodes")
        watch = node.watch()
        assert await anext(watch) == node.state
        with pytest.raises(Forbidden):
            await anext(watch)

    virtualtime.run(main)


def test_who_wrote_last_is_kept_by_resource() -> None:
    """As the server's managedFields do."""
    node = server()
    patch(node, {A: "1"})
    node.write(B, "1", manager="rival")
    writers = {name: writer.manager for name, (writer,) in node.state.writers.items()}
    assert writers == {A: "devwatch", B: "rival"}


POD = Pod(namespace="home", name="p", uid="1")


def workload() -> FakeWorkload:
    """Return one pod on a clock that stands still."""
    work = FakeWorkload(lambda: 0.0)
    work.run(POD)
    return work


def test_an_evicted_pod_is_gone_and_an_event_is_kept() -> None:
    """Each with its time."""
    work, event = workload(), Event(reason="R", message="m")
    assert virtualtime.run(work.pods) == (POD,)
    virtualtime.run(lambda: work.evict(POD))
    virtualtime.run(lambda: work.record(event))
    assert virtualtime.run(work.pods) == ()
    assert (work.evicted, work.events, work.lists, len(work.spans)) == ([(0, "p")], [(0, event)], [0, 0], 4)


def test_an_eviction_fails_as_the_server_lets_it_fail() -> None:
    """Gone, another one of the same name, one budget, two budgets, an outage, a missing right."""
    work = workload()

    def fails(kind: type[Exception], match: str, pod: Pod = POD) -> None:
        with pytest.raises(kind, match=match):
            virtualtime.run(lambda: work.evict(pod))

    fails(Missing, "404", Pod(namespace="home", name="q", uid="1"))
    fails(Conflict, "409", Pod(namespace="home", name="p", uid="2"))
    work.budgets = {"p": 1}
    fails(Retry, "429")
    work.budgets = {"p": 2}
    fails(Retry, "500")
    work.rights.clear()
    fails(Forbidden, "403")
    work.error = Retry("down")
    fails(Retry, "down")
    assert not work.evicted


def test_a_pod_that_ends_by_itself_was_not_evicted() -> None:
    """And may have ended before."""
    work = workload()
    work.end(POD.title)
    work.end(POD.title)
    assert virtualtime.run(work.pods) == ()
    assert not work.evicted


@pytest.mark.parametrize("turns", range(8))
def test_a_scripted_server_closes_every_connection_however_late_it_came(turns: int) -> None:
    """Else the next test is blamed: Python complains of an open socket when it collects it."""

    async def scenario() -> None:
        async with site(answer(200, b"")) as server:
            with socket.create_connection(("127.0.0.1", server.port)):
                for _ in range(turns):
                    await asyncio.sleep(0)

    realtime.run(scenario())
    gc.collect()
