"""What others write to the Node: seen by a watch or by the resync, repaired at once and then ever more rarely, on virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from devwatch.config.schema import parse
from devwatch.core.errors import Forbidden, Gone, Retry
from support.build import ZIGBEE
from support.fakes import FakeHost, FakeServer, FakeSettings
from support.harness import Harness, now
from support.virtualtime import HOUR, virtual

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from devwatch.agent.reconciler import Reconciler
    from devwatch.config.schema import Config
    from devwatch.core.errors import ApiError


@dataclass(slots=True, kw_only=True)
class Site(Harness):
    """A node whose daemon watches it."""

    used: Config

    @classmethod
    def new(cls, *, more: str = "") -> Site:
        """Return one with a stick; `more` stands in the configuration beside its resource."""
        text = f"resources: [{{name: {ZIGBEE}, match: [{{vendor: '0001'}}]}}]\n{more}"
        used = parse(text.encode(), file="config.yaml")
        clock = asyncio.get_running_loop().time
        site = cls(host=FakeHost(), server=FakeServer(clock), settings=FakeSettings(used), used=used)
        site.host.plug("0001")
        return site

    def watcher(self, *, once: bool = False) -> Reconciler:
        """Return the loop."""
        return self.reconciler(self.used, watch=self.server.watch, once=once)

    @property
    def repairs(self) -> float:
        """Return `devwatch_drift_repairs_total`."""
        return self.metric("drift_repairs_total")

    async def contest(self, seconds: float, *, manager: str = "stranger") -> list[float]:
        """Let a stranger undo every repair at once for some time, and return when the repairs came."""
        self.server.requests.clear()
        end = now() + seconds
        while now() < end:
            if self.server.shows(ZIGBEE) == ("1", "1"):
                self.server.write(ZIGBEE, "0", manager=manager)
            await asyncio.sleep(0.05)
        return [request.at for request in self.server.writes]


@contextlib.asynccontextmanager
async def watched(error: ApiError | None = None) -> AsyncIterator[Site]:
    """Have a Node that shows one stick, and a loop that has watched it for a while."""
    site = Site.new()
    site.server.watch_error = error
    async with running(site):
        await asyncio.sleep(100)
        assert site.server.shows(ZIGBEE) == ("1", "1")
        site.server.requests.clear()
        yield site


@contextlib.asynccontextmanager
async def running(site: Site) -> AsyncIterator[None]:
    """Have its loop run."""
    task = asyncio.create_task(site.watcher().run())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait({task})


# -- seen


@virtual
async def test_a_foreign_change_is_repaired_on_the_next_turn() -> None:
    """A kubelet that zeroes everything is undone by one request at once."""
    async with watched() as site:
        site.server.zero()
        await asyncio.sleep(0.05)
        assert site.server.shows(ZIGBEE) == ("1", "1")
        assert len(site.server.requests) == 1
        assert site.repairs == 1


@virtual
async def test_a_node_that_is_created_anew_is_filled_at_once() -> None:
    """It comes without the keys."""
    async with watched() as site:
        site.server.delete()
        site.server.create()
        await asyncio.sleep(0.05)
        assert site.server.shows(ZIGBEE) == ("1", "1")


@virtual
async def test_a_node_that_is_deleted_is_noticed_at_once() -> None:
    """It is told once, the daemon is not ready, no capacity is shown; and the next Node is filled as soon as it is there."""
    async with watched() as site:
        site.server.delete()
        await asyncio.sleep(0.1)
        assert len(site.log.of("node.missing")) == 1
        assert site.ready() == (False, 'the Node is missing: nodes "n" not found (404)')
        assert "devwatch_capacity{" not in site.metrics.render().decode()
        await asyncio.sleep(HOUR + 0.1)
        assert len(site.log.of("node.missing")) == 1
        site.server.create()
        await asyncio.sleep(0.1)
        assert site.server.shows(ZIGBEE) == ("1", "1")
        assert site.ready() == (True, "ok")


@virtual
async def test_a_node_that_is_deleted_while_no_watch_is_open_is_noticed_by_the_next() -> None:
    """It is not in the list with which that begins."""
    async with watched() as site:
        site.server.show(None)
        await asyncio.sleep(0.1)
        site.server.delete()
        await asyncio.sleep(2)
        assert len(site.log.of("node.missing")) == 1


@virtual
async def test_a_node_that_comes_back_is_filled_at_once_also_after_a_change_that_it_missed() -> None:
    """What was sent to the Node that was missing is nowhere, so nothing is unsure about it."""
    async with watched() as site:
        site.server.delete()
        await asyncio.sleep(100)
        site.host.plug("0001", "/dev/ttyUSB1")
        await asyncio.sleep(HOUR)
        assert site.server.requests[-1].changes
        site.server.create()
        await asyncio.sleep(0.1)
        assert site.server.shows(ZIGBEE) == ("2", "2")


@virtual
async def test_a_node_that_registers_late_is_filled_at_once() -> None:
    """The daemon of a new host is there before its kubelet."""
    site = Site.new()
    site.server.delete()
    async with running(site):
        await asyncio.sleep(HOUR)
        site.server.create()
        await asyncio.sleep(0.1)
        assert site.server.shows(ZIGBEE) == ("1", "1")
        site.server.zero()
        await asyncio.sleep(0.1)
        assert site.server.shows(ZIGBEE) == ("1", "1")


@virtual
async def test_a_node_that_was_thought_missing_is_watched_as_before() -> None:
    """It comes back from a backup as what it was."""
    async with watched() as site:
        restore = site.server.backup()
        site.server.delete()
        await asyncio.sleep(100)
        restore()
        site.server.show(site.server.state)
        await asyncio.sleep(0.1)
        assert site.ready() == (True, "ok")
        site.server.zero()
        await asyncio.sleep(0.1)
        assert site.server.shows(ZIGBEE) == ("1", "1")


@virtual
async def test_a_late_watch_neither_brings_a_deleted_node_back_nor_is_it_asked_for_again_and_again() -> None:
    """Whatever it goes on telling, an answer has said that there is none."""
    async with watched() as site:
        old = site.server.state
        site.server.delete()
        await asyncio.sleep(1)
        site.server.requests.clear()
        for _ in range(1000):
            site.server.show(old)
            await asyncio.sleep(0.01)
            assert "missing" in site.ready()[1]
        assert len(site.server.requests) <= 6


@virtual
async def test_a_deletion_that_is_told_late_costs_one_read() -> None:
    """The next Node is there already, and no answer says that it is missing."""
    async with watched() as site:
        site.server.create()
        await asyncio.sleep(1)
        site.server.requests.clear()
        site.server.show("deleted")
        await asyncio.sleep(1)
        assert [request.changes for request in site.server.requests] == [{}]
        assert not site.log.of("node.missing")
        assert site.ready() == (True, "ok")


@virtual
async def test_a_deletion_is_not_missed_while_an_answer_is_on_its_way() -> None:
    """What was stored before it says nothing of what came after."""
    async with watched() as site:
        site.server.answer_latency = 5
        site.host.plug("0001", "/dev/ttyUSB1")
        await asyncio.sleep(1)
        site.server.delete()
        await asyncio.sleep(5)
        assert len(site.log.of("node.missing")) == 1


@virtual
async def test_a_server_that_asks_for_time_gets_it_also_when_the_node_comes_back() -> None:
    """That the watch tells of one is no leave to ask earlier."""
    async with watched() as site:
        site.server.delete()
        await asyncio.sleep(100)
        site.server.error = Retry("later", after=60)
        await asyncio.sleep(31)
        site.server.requests.clear()
        site.server.error = None
        site.server.create()
        await asyncio.sleep(20)
        assert not site.server.requests
        await asyncio.sleep(41)
        assert site.server.shows(ZIGBEE) == ("1", "1")


FORBIDDEN = Forbidden("cannot watch nodes", hint="kubectl create clusterrole ...")


@virtual
async def test_without_the_right_to_watch_a_foreign_change_is_repaired_within_a_minute() -> None:
    """The log says once that the right would make it faster, and asks for it no more than once a minute."""
    async with watched(FORBIDDEN) as site:
        site.server.zero()
        await asyncio.sleep(60.1)
        assert site.server.shows(ZIGBEE) == ("1", "1")
        (line,) = site.log.of("node.unwatched")
        assert "at once" in str(line.fields["consequence"])
        assert line.fields["hint"] == FORBIDDEN.hint
        begun = site.server.watches
        assert all(later - earlier >= 60 for earlier, later in itertools.pairwise(begun))
        site.server.watch_error = None
        await asyncio.sleep(61)
        site.server.zero()
        await asyncio.sleep(0.1)
        assert site.server.shows(ZIGBEE) == ("1", "1")


@virtual
async def test_a_watched_node_is_read_every_five_minutes_only() -> None:
    """There is nothing that a read would find."""
    async with watched() as site:
        await asyncio.sleep(HOUR)
        assert HOUR / 300 <= len(site.server.requests) <= HOUR / 270 + 1


@virtual
async def test_a_node_that_nobody_writes_to_is_watched_from_the_list_on() -> None:
    """A daemon that starts on a Node that is right already hears nothing for hours."""
    site = Site.new()
    for _ in range(2):
        site.server.requests.clear()
        async with running(site):
            await asyncio.sleep(HOUR)
    assert len(site.server.requests) <= HOUR / 270 + 2


@virtual
async def test_a_watched_node_is_read_as_often_as_the_configuration_says() -> None:
    """Whoever trusts no watch may have it read at every interval that he likes."""
    site = Site.new(more="resync: 100s")
    async with running(site):
        await asyncio.sleep(HOUR)
        assert HOUR / 100 <= len(site.server.requests) <= HOUR / 90 + 2


@virtual
async def test_a_right_that_is_taken_away_brings_the_resync_of_a_minute_back() -> None:
    """From that moment on, not only after the long interval that was begun, nor at once."""
    async with watched() as site:
        await asyncio.sleep(100)
        site.server.watch_error = FORBIDDEN
        site.server.show(FORBIDDEN)
        await asyncio.sleep(1)
        site.server.zero()
        await asyncio.sleep(50)
        assert not site.server.requests
        await asyncio.sleep(10)
        assert site.server.shows(ZIGBEE) == ("1", "1")


@pytest.mark.parametrize("end", [None, Gone("too old"), Retry("reset by peer")], ids=["end", "gone", "error"])
@virtual
async def test_a_watch_that_ends_begins_again(end: ApiError | None) -> None:
    """What happened between the two is in the first answer of the second."""
    async with watched() as site:
        site.server.show(end)
        await asyncio.sleep(0.1)
        site.server.zero()
        await asyncio.sleep(2)
        assert site.server.shows(ZIGBEE) == ("1", "1")
        assert len(site.server.watches) == 2
        assert len(site.log.of("node.unwatched")) == (type(end) is Retry)


@virtual
async def test_a_watch_that_ends_without_a_word_begins_again() -> None:
    """The next Node is filled when it comes, whichever watch tells of it."""
    async with watched() as site:
        site.server.delete()
        for _ in range(2):
            site.server.show(None)
            await asyncio.sleep(5)
        assert len(site.server.watches) == 3
        site.server.create()
        await asyncio.sleep(5)
        assert site.server.shows(ZIGBEE) == ("1", "1")


@virtual
async def test_a_watch_that_fails_again_and_again_is_asked_for_ever_more_rarely() -> None:
    """Up to a minute apart; the loop lives on."""
    async with watched() as site:
        site.server.watch_error = Retry("down")
        site.server.show(Retry("down"))
        await asyncio.sleep(HOUR)
        gaps = [later - earlier for earlier, later in itertools.pairwise(site.server.watches)]
        assert max(gaps[1:]) == pytest.approx(30, abs=1)
        assert len(gaps) < HOUR / 25
        assert len(site.server.requests) < HOUR / 50


@pytest.mark.parametrize("error", [Retry("down"), Gone("too old"), Forbidden("no"), Retry("later", after=40)], ids=repr)
@virtual
async def test_a_watch_that_gets_no_further_than_its_list_is_asked_for_ever_more_rarely(error: ApiError) -> None:
    """That the Node can be listed is no sign that it can be watched; the server's Retry-After is honoured."""
    async with watched() as site:
        site.server.stream_error = error
        site.server.show(error)
        await asyncio.sleep(HOUR)
        gaps = [later - earlier for earlier, later in itertools.pairwise(site.server.watches)]
        assert min(gaps[10:]) >= (getattr(error, "after", None) or 29)
        assert len(gaps) < HOUR / 25
        assert [line.level for line in site.log.of("node.unwatched")].count("info") <= 1


@virtual
async def test_a_right_to_list_but_not_to_watch_is_told_once() -> None:
    """Foreign writes are found by the list; when the right is there, at once."""
    async with watched() as site:
        site.server.stream_error = FORBIDDEN
        site.server.show(FORBIDDEN)
        await asyncio.sleep(HOUR)
        assert len(site.log.of("node.unwatched")) == len(site.log.of("node.watched")) == 1
        site.server.stream_error = None
        await asyncio.sleep(61)
        site.server.zero()
        await asyncio.sleep(0.1)
        assert site.server.shows(ZIGBEE) == ("1", "1")
        assert len(site.log.of("node.watched")) == 2


@virtual
async def test_a_watch_that_works_again_is_told_and_so_is_its_next_end() -> None:
    """A right that comes and goes is a story each time; one that was never there in between is one story."""
    async with watched() as site:
        for _ in range(2):
            site.server.watch_error = FORBIDDEN
            site.server.show(FORBIDDEN)
            await asyncio.sleep(HOUR)
            site.server.watch_error = None
            await asyncio.sleep(61)
            for value in ("0", "1", "0"):
                site.server.write(ZIGBEE, value)
                await asyncio.sleep(1)
        assert [line.event for line in site.log.lines if line.event in {"node.watched", "node.unwatched"}] == [
            *("node.watched", "node.unwatched", "node.watched", "node.unwatched", "node.watched")
        ]


@virtual
async def test_a_right_that_goes_before_anything_happened_is_told() -> None:
    """A watch that has told nothing but its list may have been one."""
    async with watched() as site:
        site.server.show(None)
        await asyncio.sleep(5)
        site.server.watch_error = FORBIDDEN
        site.server.show(FORBIDDEN)
        await asyncio.sleep(1)
        assert [line.level for line in site.log.of("node.unwatched")] == ["info"]


@virtual
async def test_another_failure_does_not_make_a_missing_right_news() -> None:
    """It is still the same right that is missing."""
    async with watched() as site:
        for error in (FORBIDDEN, Retry("down"), FORBIDDEN):
            site.server.watch_error = error
            site.server.show(error)
            await asyncio.sleep(HOUR)
        assert [line.level for line in site.log.of("node.unwatched")].count("info") == 1


@virtual
async def test_a_watch_that_comes_and_goes_puts_off_no_resync() -> None:
    """Else a Node behind a bad network would never be read."""
    async with watched() as site:
        for _ in range(60):
            site.server.show(Retry("down"))
            await asyncio.sleep(50)
        assert len(site.server.requests) >= 60 * 50 / 300


@virtual
async def test_a_right_that_goes_while_no_watch_lasts_hides_no_foreign_write_for_longer_than_a_minute() -> None:
    """The minute runs from the end of the last watch, however long the next one was waited for."""
    async with watched() as site:
        site.jitter = 0.99
        site.server.stream_error = Gone("too old")
        site.server.show(Gone("too old"))
        await asyncio.sleep(HOUR)
        await asyncio.sleep(site.server.watches[-1] + 61 - now())
        site.server.watch_error = FORBIDDEN
        site.server.zero()
        await asyncio.sleep(60)
        assert site.server.shows(ZIGBEE) == ("1", "1")


@virtual
async def test_a_watch_that_has_lasted_is_asked_for_again_soon() -> None:
    """Its failures of an hour ago say nothing."""
    async with watched() as site:
        site.server.watch_error = Retry("down")
        site.server.show(Retry("down"))
        await asyncio.sleep(HOUR)
        site.server.watch_error = None
        await asyncio.sleep(100)
        site.server.watches.clear()
        site.server.show(None)
        await asyncio.sleep(2)
        assert len(site.server.watches) == 1


@pytest.mark.parametrize("end", [None, Gone("too old"), Retry("reset by peer")], ids=["end", "gone", "error"])
@virtual
async def test_a_watch_that_ends_at_once_is_not_asked_without_a_pause(end: ApiError | None) -> None:
    """A second lies between two, however the dice fall."""
    async with watched() as site:
        site.jitter = 0.0
        for _ in range(1000):
            site.server.show(end)
            await asyncio.sleep(0.1)
        gaps = [later - earlier for earlier, later in itertools.pairwise(site.server.watches)]
        assert min(gaps[1:]) >= 1


@virtual
async def test_once_watches_nothing() -> None:
    """It would never end."""
    site = Site.new()
    async with asyncio.timeout(10):
        await site.watcher(once=True).run()
    assert not site.server.watches


# -- no drift


@virtual
async def test_an_old_event_is_no_drift() -> None:
    """A watch may be behind the answers: what it shows then was true once."""
    async with watched() as site:
        old = site.server.state
        site.host.plug("0001", "/dev/ttyUSB1")
        await asyncio.sleep(0.1)
        site.server.requests.clear()
        site.server.show(old)
        await asyncio.sleep(10)
        assert not site.server.requests
        assert site.repairs == 0


@virtual
async def test_an_old_event_takes_no_newer_ones_place() -> None:
    """What the watch has told while a request was out is held by its version, in whichever order it came."""
    async with watched() as site:
        old, site.server.answer_latency = site.server.state, 5
        site.host.plug("0001", "/dev/ttyUSB1")
        await asyncio.sleep(1)
        site.server.zero()
        site.server.show(old)
        await asyncio.sleep(10)
        assert site.server.shows(ZIGBEE) == ("2", "2")
        assert site.repairs == 1


@virtual
async def test_a_node_that_was_replaced_does_not_come_back() -> None:
    """A watch that lags goes on telling of the former Node after a request has found the new one."""
    async with watched() as site:
        site.server.watch_latency = 30
        site.server.write(ZIGBEE, "0")
        for _ in range(2):
            site.server.create()
            site.host.plug("0001", "/dev/ttyUSB1")
            await asyncio.sleep(1)
            site.host.unplug("/dev/ttyUSB1")
            await asyncio.sleep(5)
        repairs = site.repairs
        site.server.requests.clear()
        await asyncio.sleep(100)
        assert not site.server.requests
        assert site.repairs == repairs


@virtual
async def test_what_a_late_watch_tells_before_the_first_answer_does_not_stand_against_it() -> None:
    """It tells of a Node that was full, and is gone; the answer is of the next one, which is empty."""
    site = Site.new()
    async with running(site):
        await asyncio.sleep(1)
    full = site.server.state
    site.server.create()
    site.server.answer_latency = 5
    async with running(site):
        await asyncio.sleep(1)
        site.server.show(full)
        await asyncio.sleep(30)
        assert site.server.shows(ZIGBEE) == ("1", "1")
        site.server.requests.clear()
        for _ in range(10):
            site.server.show(full)
            await asyncio.sleep(1)
        assert not site.server.requests


@virtual
async def test_a_node_that_comes_back_from_a_backup_is_watched_as_before() -> None:
    """It was replaced by another, and a request has found it again."""
    async with watched() as site:
        restore = site.server.backup()
        site.server.create()
        await asyncio.sleep(10)
        restore()
        site.host.plug("0001", "/dev/ttyUSB1")
        await asyncio.sleep(10)
        site.server.zero()
        await asyncio.sleep(1)
        assert site.server.shows(ZIGBEE) == ("2", "2")


@pytest.mark.parametrize("late", [0.0, 0.5, 5.0, 30.0])
@virtual
async def test_a_watch_that_is_late_or_early_takes_none_of_our_own_writes_for_drift(late: float) -> None:
    """Also one that shows a write before its answer came."""
    async with watched() as site:
        site.server.watch_latency, site.server.answer_latency = late, 0.3
        for _ in range(5):
            site.host.plug("0001", "/dev/ttyUSB1")
            await asyncio.sleep(4)
            site.host.unplug("/dev/ttyUSB1")
            await asyncio.sleep(4)
        await asyncio.sleep(400)
        assert site.repairs == 0
        assert len(site.server.writes) == 10


@virtual
async def test_a_write_whose_answer_got_lost_is_no_drift_when_the_watch_shows_it() -> None:
    """It may have been stored, and it was."""
    async with watched() as site:
        site.server.losing = 1
        site.host.plug("0001", "/dev/ttyUSB1")
        await asyncio.sleep(10)
        assert site.server.shows(ZIGBEE) == ("2", "2")
        assert site.repairs == 0


@virtual
async def test_a_foreign_write_while_a_request_is_out_is_drift_all_the_same() -> None:
    """It is looked at when the answer is there."""
    async with watched() as site:
        site.server.answer_latency = 5
        site.host.plug("0001", "/dev/ttyUSB1")
        await asyncio.sleep(1)
        site.server.zero()
        await asyncio.sleep(10)
        assert site.server.shows(ZIGBEE) == ("2", "2")
        assert site.repairs == 1


# -- no war


@pytest.mark.no_cover
@virtual
async def test_repairs_come_at_once_then_a_second_apart_doubling_to_five_minutes() -> None:
    """Whoever writes against us, the API server is not worn down."""
    async with watched() as site:
        times = await site.contest(3 * HOUR)
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        wanted = [min(300, 2**number) for number in range(12)]
        assert gaps[:12] == pytest.approx(wanted, abs=0.2)
        assert all(gap == pytest.approx(300, abs=0.2) for gap in gaps[12:])
        assert site.repairs == len(times)


@virtual
async def test_after_ten_minutes_of_peace_everything_is_forgiven() -> None:
    """The next repair comes at once, the one after it a second later, and the fifth is told again."""
    async with watched() as site:
        await site.contest(100)
        await asyncio.sleep(300)
        assert site.server.shows(ZIGBEE) == ("1", "1")
        await asyncio.sleep(600)
        begun = now()
        first, second, *_ = await site.contest(100)
        assert first - begun < 0.1
        assert second - first == pytest.approx(1, abs=0.2)
        assert len(site.log.of("drift.contested")) == 2


@pytest.mark.no_cover
@virtual
async def test_the_fifth_repair_names_the_other_writer_once() -> None:
    """With what helps: another name for the resource."""
    async with watched() as site:
        await site.contest(10, manager="other-plugin")
        assert site.repairs == 4
        assert not site.log.of("drift.contested")
        await site.contest(HOUR, manager="other-plugin")
        (line,) = site.log.of("drift.contested")
        assert line.level == "error"
        assert line.fields["managers"] == ["other-plugin"]
        assert "another name" in str(line.fields["hint"])


@virtual
async def test_a_device_that_comes_goes_out_at_once_also_while_its_resource_is_contested() -> None:
    """The truce is about what somebody else undid, not about what is new here."""
    async with watched() as site:
        await site.contest(100)
        site.server.write(ZIGBEE, "0")
        await asyncio.sleep(1)
        assert site.server.shows(ZIGBEE) == ("0", "0")
        site.host.plug("0001", "/dev/ttyUSB1")
        await asyncio.sleep(0.1)
        assert site.server.shows(ZIGBEE) == ("2", "2")
