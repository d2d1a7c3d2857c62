"""What `DevicePlugins` promises, on virtual time against a kubelet and an API server that can fail."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devwatch.agent.registration import Registration
from devwatch.config.schema import parse
from devwatch.core.errors import Forbidden, KubeletError, Retry
from devwatch.core.handover import FALL_LIMIT, UNREGISTERED_LIMIT, Offer
from devwatch.core.holders import Holding
from support import virtualtime
from support.build import ZIGBEE, ZWAVE
from support.fakekubelet import FakeKubelet
from support.fakes import FakeHost, FakeServer, FakeSettings, FakeWorkload
from support.harness import now
from support.home import Home, pod
from support.virtualtime import HOUR, virtual

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from devwatch.config.schema import Config
    from devwatch.core.errors import ApiError

USB0, USB1, USB2 = "/dev/ttyUSB0", "/dev/ttyUSB1", "/dev/ttyUSB2"
GRACE = 2.0
PLAIN = f"- {{name: {ZWAVE}, match: [{{vendor: '0002'}}]}}\n"
"""A resource that is published by PATCH alone."""


def config(
    *,
    more: str = PLAIN,
    path: str = "/dev/zigbee",
    publish: str = "devicePlugin",
    count: str = "device",
    first: bool = True,
) -> Config:
    """Return a configuration whose first resource the kubelet hands over."""
    container = f", container: {{path: {path}}}" if publish == "devicePlugin" else ""
    handed_over = f"- {{name: {ZIGBEE}, match: [{{vendor: '0001'}}], publish: {publish}, count: {count}{container}}}\n"
    return parse(f"resources:\n{handed_over if first else ''}{more}".encode(), file="config.yaml")


@dataclass(slots=True, kw_only=True)
class Site(Home):
    """A node with a kubelet; daemons and kubelets come and go."""

    kubelet: FakeKubelet
    settings_now: Config = field(default_factory=config)

    async def kill(self) -> None:
        """Kill the daemon that runs; the kernel ends its streams."""
        await Home.kill(self)
        for plugin in self.kubelet.plugins.values():
            plugin.end()

    async def restart(self) -> None:
        """Kill the daemon, and start the next one."""
        await self.kill()
        self.start(self.settings_now)

    def use(self, used: Config) -> None:
        """Change the configuration."""
        self.settings_now = used
        self.reload(used)

    @property
    def taken(self) -> Offer:
        """What the kubelet has taken over."""
        return self.kubelet.taken.get(ZIGBEE, Offer())

    def healthy(self) -> int:
        """Return the number of devices that the kubelet would hand out."""
        return len(self.taken.healthy) if self.kubelet.streaming(ZIGBEE) else 0

    def patches(self, name: str = ZIGBEE) -> list[tuple[float, str | None]]:
        """Return each count of a resource that was to be written, and when the request began."""
        return [(request.at, request.changes[name]) for request in self.server.requests if name in request.changes]

    def lists(self) -> list[tuple[float, Offer]]:
        """Return each list when it was sent."""
        return [(at, offer) for at, name, offer in self.kubelet.lists if name == ZIGBEE]

    def lost(self) -> list[object]:
        """Return the reasons that were reported."""
        return [line.fields["error"] for line in self.log.of("kubelet.lost")]

    def check_agreement(self, number: int) -> None:
        """Check that Node and kubelet have this many devices, all of them usable."""
        assert self.server.shows(ZIGBEE) == (str(number), str(number))
        assert (len(self.taken.ids), self.healthy()) == (number, number)

    def forget(self) -> None:
        """Begin the records anew."""
        self.server.requests.clear()
        self.log.lines.clear()
        for record in (self.kubelet.lists, self.kubelet.history, self.kubelet.registrations, self.kubelet.readings):
            record.clear()


def nothing(_site: Site) -> None:
    """Leave it as it is."""


@contextlib.asynccontextmanager
async def site(
    *sticks: str, used: Config | None = None, before: Callable[[Site], None] = nothing, kubelet: bool = True
) -> AsyncIterator[Site]:
    """Have a node on which everything has run for a while; the daemon must live to the end."""
    used, clock = used or config(), asyncio.get_running_loop().time
    server = FakeServer(clock)
    workload, fake = FakeWorkload(clock, server=server), FakeKubelet(clock, server)
    one = Site(
        host=FakeHost(),
        server=server,
        workload=workload,
        settings=FakeSettings(used),
        kubelet=fake,
        connect=lambda: fake,
        settings_now=used,
    )
    for devnode in sticks:
        one.host.plug("0001", devnode, serial=f"S{devnode[-1]}")
    before(one)
    if kubelet:
        one.kubelet.start()
    one.start(used)
    try:
        await asyncio.sleep(100)
        yield one
        assert not any(task.done() for task in one.tasks), one.tasks
    finally:
        for task in one.tasks:
            task.cancel()
        await asyncio.gather(*one.tasks, return_exceptions=True)
        one.kubelet.kill()


# -- never more than can be used


@virtual
async def test_a_rise_is_list_acknowledgement_patch() -> None:
    """All of it within 100 ms of the uevent, where kubelet and API server answer at once."""
    async with site(USB0) as one:
        one.check_agreement(1)
        one.forget()
        plugged = now()
        one.host.plug("0001", USB1, serial="S1")
        await asyncio.sleep(0.1)
        one.check_agreement(2)
        ((listed, _),) = one.lists()
        ((taken, _, _),) = one.kubelet.history
        ((patched, count),) = one.patches()
        assert plugged <= listed < taken <= patched
        assert count == "2"


@virtual
async def test_a_kubelet_that_takes_its_time_delays_the_patch_by_as_much() -> None:
    """However long."""
    async with site(USB0) as one:
        one.kubelet.latency = 1.5
        one.forget()
        one.host.plug("0001", USB1, serial="S1")
        await asyncio.sleep(1.4)
        assert one.patches() == []
        await asyncio.sleep(0.3)
        one.check_agreement(2)
        assert one.lost() == []


@virtual
async def test_a_kubelet_that_cannot_acknowledge_is_given_a_second_for_each_list() -> None:
    """Before 1.23, and where its second folder is not there. A list that follows another begins a second of its own."""
    async with site(USB0) as one:
        one.kubelet.old = True
        one.forget()
        one.host.plug("0001", USB1, serial="S1")
        await asyncio.sleep(0.9)
        one.host.plug("0001", USB2, serial="S2")
        await asyncio.sleep(3)
        one.check_agreement(3)
        for at, count in one.patches():
            assert count is not None
            sent = next(when for when, offer in one.lists() if len(offer.healthy) >= int(count))
            assert at >= sent + 1
        assert one.lost() == []


@virtual
async def test_a_fall_is_patch_list() -> None:
    """The list goes out when the API server has answered; that no pod has the device counts only from then on."""
    async with site(USB0, USB1) as one:
        one.server.latency = 0.3
        one.forget()
        pulled = now()
        one.host.unplug(USB1)
        await asyncio.sleep(GRACE + 2)
        one.check_agreement(1)
        patch = next(request for request in one.server.requests if request.changes.get(ZIGBEE))
        (listed, first), (_, last) = one.lists()
        assert (len(first.unhealthy), len(last.unhealthy)) == (1, 0)
        assert patch.ended is not None
        assert pulled + GRACE <= patch.at < patch.ended <= listed < patch.ended + 0.1


@virtual
async def test_a_fall_that_the_api_server_does_not_answer_is_listed_a_second_later() -> None:
    """The kubelet must not hand out what is gone."""
    async with site(USB0, USB1) as one:
        one.server.silent = True
        one.forget()
        pulled = now()
        one.host.unplug(USB1)
        await asyncio.sleep(GRACE + FALL_LIMIT + 0.1)
        ((listed, offer),) = one.lists()
        assert listed == pytest.approx(pulled + GRACE + FALL_LIMIT, abs=0.05)
        assert len(offer.healthy) == 1


@virtual
async def test_a_stick_that_is_replaced_within_a_moment_falls_and_rises() -> None:
    """The pod of the old one is not given the new one, nor does the Node promise both."""
    async with site(USB0) as one:
        one.forget()
        one.host.unplug(USB0)
        one.host.plug("0001", USB1, serial="S1")
        await asyncio.sleep(10)
        one.check_agreement(1)
        assert {count for _, count in one.patches()} <= {"1/0", "2/1", "0", "1"}


@virtual
async def test_during_the_grace_a_device_stays_healthy_and_is_handed_out() -> None:
    """The container waits for it. Its link is gone until it is back, under whatever name."""
    async with site(USB0) as one:
        (name,) = one.taken.healthy
        one.forget()
        one.host.unplug(USB0)
        await asyncio.sleep(GRACE - 0.1)
        assert one.taken.healthy == frozenset({name})
        assert (one.kubelet.links.made, one.patches(), one.lists()) == ({}, [], [])
        plugin = one.kubelet.streaming(ZIGBEE)
        assert plugin is not None
        assert plugin.resource.allocate([name]).paths == {"/dev/zigbee": name}
        with pytest.raises(KeyError):
            plugin.resource.allocate(["never"])
        one.host.plug("0001", USB2, serial="S0")
        await asyncio.sleep(5)
        assert one.kubelet.links.made == {name: USB2}
        assert one.taken.healthy == frozenset({name})
        assert one.lists() == []


# -- never another's device


@virtual
async def test_a_device_of_two_devnodes_is_handed_out_whole_while_it_is_away_after_a_restart() -> None:
    """The container would start with one of its two paths when the stick is back."""
    sticks = {USB0: "00", USB1: "01"}
    async with site() as one:
        for devnode, interface in sticks.items():
            one.host.plug("0001", devnode, serial="S", physical="/devices/x", interface=interface)
        await asyncio.sleep(10)
        (name,) = one.taken.healthy
        await one.kill()
        for devnode in sticks:
            one.host.unplug(devnode)
        one.start(one.settings_now)
        await asyncio.sleep(3)
        plugin = one.kubelet.streaming(ZIGBEE)
        assert plugin is not None
        assert plugin.resource.allocate([name]).paths == {"/dev/zigbee": name, "/dev/zigbee1": f"{name}-1"}


@virtual
async def test_links_are_removed_before_anything_is_written_to_the_api_server() -> None:
    """By the scan that no longer finds the device."""
    async with site(USB0, USB1) as one:
        seen: list[dict[str, str]] = []
        patch = one.server.patch

        async def patched(request: object) -> object:
            seen.append(dict(one.kubelet.links.made))
            return await patch(request)  # type: ignore[arg-type]  # as it came

        one.server.patch = patched  # type: ignore[method-assign,assignment]  # it only looks
        one.host.plug("0002", "/dev/ttyACM0")
        one.host.unplug(USB1)
        await asyncio.sleep(GRACE + 1)
        assert len(seen) >= 2
        assert all(list(links.values()) == [USB0] for links in seen)


@virtual
async def test_two_sticks_that_swap_their_names_keep_their_links() -> None:
    """Each leads to its stick again."""
    async with site(USB0, USB1) as one:
        first = {name for name, devnode in one.kubelet.links.made.items() if devnode == USB0}
        one.host.unheard = True
        one.host.unplug(USB0)
        one.host.unplug(USB1)
        one.host.plug("0001", USB1, serial="S0")
        one.host.unheard = False
        one.host.plug("0001", USB0, serial="S1")
        await asyncio.sleep(5)
        assert {name for name, devnode in one.kubelet.links.made.items() if devnode == USB1} == first
        one.check_agreement(2)


@virtual
async def test_a_link_that_cannot_be_made_keeps_its_device_off_the_list() -> None:
    """A full disk is one line; what heals it brings the device, and neither others nor other resources notice."""
    async with site(USB0) as one:
        one.forget()
        one.kubelet.links.error = KubeletError("/links/x: No space left on device", hint="free some")
        one.host.plug("0001", USB1, serial="S1")
        one.host.plug("0002", "/dev/ttyACM0")
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ("1", "1")
        assert one.server.shows(ZWAVE) == ("1", "1")
        (line,) = one.log.of("host.limited")
        assert line.fields == {"reason": "/links/x: No space left on device", "hint": "free some"}
        assert one.ready() == (False, "/links/x: No space left on device; free some")
        assert one.lost() == []
        one.kubelet.links.error = None
        await asyncio.sleep(15)
        one.check_agreement(2)


@virtual
async def test_no_resource_registers_before_the_links_are_right() -> None:
    """A container that the kubelet starts again in that moment would get another's stick."""

    def full(one: Site) -> None:
        one.kubelet.links.error = KubeletError("no space")

    async with site(USB0, before=full) as one:
        assert one.kubelet.registrations == []
        assert [line.fields for line in one.log.of("host.limited")] == [{"reason": "no space"}]
        assert one.lost() == []
        one.kubelet.links.error = None
        await asyncio.sleep(15)
        one.check_agreement(1)


@virtual
async def test_a_folder_that_nothing_needs_any_more_is_no_fault() -> None:
    """The way was tried without the permission, and taken back."""

    def closed(one: Site) -> None:
        one.kubelet.links.error = KubeletError("permission denied")

    async with site(USB0, used=config(publish="nodeStatus"), before=closed) as one:
        one.use(config())
        await asyncio.sleep(30)
        assert one.ready() == (False, "permission denied")
        one.use(config(publish="nodeStatus"))
        await asyncio.sleep(400)
        assert one.ready() == (True, "ok")
        assert one.server.shows(ZIGBEE) == ("1", "1")


@virtual
async def test_no_link_is_made_before_the_ids_of_a_former_daemon_are_known() -> None:
    """Twins have the same serial: only the annotation tells which of them has which ID. A link that is right stays meanwhile."""
    async with site(USB2, before=lambda one: one.host.change(USB2, serial="S")) as one:
        one.host.plug("0001", USB1, serial="S")
        await asyncio.sleep(5)
        first, second = (
            next(name for name, at in one.kubelet.links.made.items() if at == each) for each in (USB2, USB1)
        )
        await one.kill()
        one.host.unplug(USB1)
        one.host.plug("0001", USB0, serial="S")
        one.server.latency = 5
        one.start(one.settings_now)
        await asyncio.sleep(4)
        assert one.kubelet.links.made.get(first) in {USB2, None}
        assert second not in one.kubelet.links.made
        await asyncio.sleep(30)
        assert one.kubelet.links.made[first] == USB2


@virtual
async def test_a_twin_is_handed_out_once_its_id_is_stored() -> None:
    """After a restart the annotation alone tells which of them has which ID; another stick does not wait for it."""
    async with site(USB0, before=lambda one: one.host.change(USB0, serial="S")) as one:
        before = one.taken.healthy
        one.server.error = Retry("too many requests")
        one.host.plug("0001", USB1, serial="S")
        one.host.plug("0001", USB2, serial="T")
        await asyncio.sleep(5)
        assert len(one.taken.healthy - before) == 1
        one.server.error = None
        await asyncio.sleep(30)
        one.check_agreement(3)


# -- level, not edge


async def kubelet_starts_again(one: Site) -> None:
    """Start it again after a second."""
    one.kubelet.kill()
    await asyncio.sleep(1)
    one.kubelet.start()


async def kubelet_starts_again_at_once(one: Site) -> None:
    """Nothing sees it away."""
    one.kubelet.kill()
    one.kubelet.start()


async def kubelet_is_away(one: Site) -> None:
    """For a minute."""
    one.kubelet.kill()
    await asyncio.sleep(60)
    one.kubelet.start()


async def kubelet_hangs(one: Site) -> None:
    """Let it answer nothing for a while, and kill it in the end."""
    one.kubelet.hanging = True
    await asyncio.sleep(30)
    await kubelet_starts_again(one)


async def stream_ends(one: Site) -> None:
    """For a reason of the kubelet's own."""
    plugin = one.kubelet.streaming(ZIGBEE)
    assert plugin is not None
    plugin.end()


async def stream_never_begins(one: Site) -> None:
    """Start the kubelet again after it has answered the registration."""
    one.kubelet.watching = False
    await kubelet_starts_again(one)
    await asyncio.sleep(0.5)
    one.kubelet.watching = True
    await kubelet_starts_again_at_once(one)


async def daemon_starts_again(one: Site) -> None:
    """As an update does."""
    await one.restart()


async def both_start_again(one: Site) -> None:
    """Start the node again."""
    await one.kill()
    one.kubelet.kill()
    one.kubelet.start()
    one.start(one.settings_now)


async def configuration_changes(one: Site) -> None:
    """Hand out another path in the container."""
    one.use(config(path="/dev/other"))


async def resource_is_away(one: Site) -> None:
    """Publish it by PATCH alone for a while."""
    one.use(config(publish="nodeStatus"))
    await asyncio.sleep(60)
    one.use(config())


async def registration_is_refused(one: Site) -> None:
    """For a while."""
    one.kubelet.refused[ZIGBEE] = KubeletError("the name is invalid")
    await kubelet_starts_again(one)
    await asyncio.sleep(30)
    one.kubelet.refused.clear()


async def folder_is_not_writable(one: Site) -> None:
    """For a while."""
    one.kubelet.unwritable = KubeletError("/plugins/x.sock: Read-only file system")
    await kubelet_starts_again(one)
    await asyncio.sleep(30)
    one.kubelet.unwritable = None


async def api_server_is_away(one: Site) -> None:
    """And the kubelet starts again meanwhile."""
    one.server.error = Retry("down")
    await kubelet_starts_again(one)
    await asyncio.sleep(30)
    one.server.error = None


async def node_is_made_again(one: Site) -> None:
    """As the kubelet does after somebody has deleted it."""
    one.server.delete()
    await asyncio.sleep(5)
    one.server.create()


DISTURBANCES = [
    kubelet_starts_again,
    kubelet_starts_again_at_once,
    kubelet_is_away,
    kubelet_hangs,
    stream_ends,
    stream_never_begins,
    daemon_starts_again,
    both_start_again,
    configuration_changes,
    resource_is_away,
    registration_is_refused,
    folder_is_not_writable,
    api_server_is_away,
    node_is_made_again,
]


@pytest.mark.parametrize("disturb", DISTURBANCES, ids=lambda each: each.__name__)
@pytest.mark.parametrize("plugging", [False, True], ids=["", "and a plug"])
def test_the_same_steps_lead_to_the_same_state(disturb: Callable[[Site], Awaitable[None]], *, plugging: bool) -> None:
    """Whatever ended the stream, and whichever side started again; also if a stick comes meanwhile."""

    @virtual
    async def disturbed() -> None:
        async with site(USB0) as one:
            ids = one.taken.healthy
            await disturb(one)
            if plugging:
                one.host.plug("0001", USB1, serial="S1")
            await asyncio.sleep(90)
            one.check_agreement(1 + plugging)
            assert ids <= one.taken.healthy
            one.forget()
            await asyncio.sleep(100)
            assert one.patches() == [], "nothing is left to repair"
            assert one.kubelet.registrations == []

    disturbed()


@virtual
async def test_the_kubelet_is_registered_with_within_100_ms_of_its_start() -> None:
    """Containers that are not running yet fail admission until then."""
    async with site(USB0) as one:
        for _ in range(3):
            one.kubelet.kill()
            await asyncio.sleep(2)
            one.forget()
            started = now()
            one.kubelet.start()
            await asyncio.sleep(0.3)
            ((at, _),) = one.kubelet.registrations
            assert at <= started + 0.1
            one.check_agreement(1)


@virtual
async def test_a_kubelet_that_is_killed_while_it_is_asked_is_registered_with_within_100_ms_of_its_start() -> None:
    """What it was asked is whether it has taken over a list; the end of the stream is noticed then as well."""
    async with site(USB0) as one:
        for moment in range(50):
            one.host.plug("0001", USB1, serial="S1")
            await asyncio.sleep(moment / 1000)
            one.kubelet.kill()
            await asyncio.sleep(0.3)
            one.forget()
            started = now()
            one.kubelet.start()
            await asyncio.sleep(0.3)
            assert [at <= started + 0.1 for at, _ in one.kubelet.registrations] == [True], moment
            one.host.unplug(USB1)
            await asyncio.sleep(30)
            one.check_agreement(1)


@virtual
async def test_a_changed_path_is_handed_out_from_then_on() -> None:
    """Without another registration."""
    async with site(USB0) as one:
        one.forget()
        one.use(config(path="/dev/other"))
        await asyncio.sleep(1)
        plugin = one.kubelet.streaming(ZIGBEE)
        assert plugin is not None
        assert list(plugin.resource.allocate(list(one.taken.healthy)).paths) == ["/dev/other"]
        assert one.kubelet.registrations == []


@virtual
async def test_a_resource_that_leaves_the_configuration_ends_its_stream() -> None:
    """And no task of it is left."""
    async with site(USB0) as one:
        one.use(parse(b"resources: []", file="config.yaml"))
        await asyncio.sleep(1)
        assert one.kubelet.streaming(ZIGBEE) is None
        await asyncio.sleep(2)
        assert one.kubelet.links.made == {}, "once it is known that no pod has the stick"
        one.kubelet.kill()
        one.kubelet.start()
        one.forget()
        await asyncio.sleep(100)
        assert one.kubelet.registrations == []


@virtual
async def test_nothing_is_kept_of_a_resource_each_time_that_it_comes_and_goes() -> None:
    """A configuration that changes every minute does not make the daemon grow."""
    async with site(USB0) as one:
        for _ in range(3):
            one.use(config(first=False))
            await asyncio.sleep(5)
            one.use(config())
            await asyncio.sleep(5)
        assert one.kubelet.streaming(ZIGBEE) is not None
        gc.collect()
        alive = [each for each in gc.get_objects() if isinstance(each, Registration) and each.kubelet is one.kubelet]
        assert len(alive) == 1


# -- while not registered


@virtual
async def test_what_is_not_registered_for_two_seconds_is_not_allocatable() -> None:
    """A pod that is bound meanwhile would fail for good; running holders are not touched, so the capacity stays."""
    async with site(USB0) as one:
        one.forget()
        one.kubelet.kill()
        killed = now()
        await asyncio.sleep(UNREGISTERED_LIMIT - 0.1)
        assert one.patches() == []
        await asyncio.sleep(1)
        ((at, count),) = one.patches()
        assert count == "1/0"
        assert at == pytest.approx(killed + UNREGISTERED_LIMIT, abs=0.05)


@virtual
async def test_a_kubelet_that_ends_every_stream_makes_nothing_allocatable() -> None:
    """Each attempt is no more than an attempt."""
    async with site(USB0) as one:
        one.kubelet.ending_at_once = True
        await stream_ends(one)
        one.forget()
        await asyncio.sleep(4)
        assert one.server.shows(ZIGBEE) == ("1", "0")
        await asyncio.sleep(600)
        assert set(one.lost()) == {"the kubelet has ended the stream"}
        assert len(one.lost()) <= 10
        assert len(one.kubelet.registrations) < 600 / 4


@virtual
async def test_figures_are_not_raised_while_not_registered() -> None:
    """A stick that comes is not promised."""
    async with site(USB0) as one:
        one.kubelet.refused[ZIGBEE] = KubeletError("no")
        one.kubelet.kill()
        one.kubelet.start()
        one.forget()
        one.host.plug("0001", USB1, serial="S1")
        await asyncio.sleep(60)
        assert all(count in {"0", "1/0", "0/0"} for _, count in one.patches())
        assert one.server.shows(ZIGBEE)[1] == "0"


# -- another plugin


@virtual
async def test_another_plugin_with_the_resource_is_one_line_and_no_fight() -> None:
    """Nothing is allocatable until it has ended."""
    async with site(USB0) as one:
        one.forget()
        one.kubelet.others[ZIGBEE] = frozenset({"theirs"})
        await asyncio.sleep(30)
        assert one.patches()[0][1] == "1/0"
        one.forget()
        await asyncio.sleep(HOUR)
        assert one.patches() == [], "the kubelet writes their figures at each of its updates"
        assert "another plugin has registered" in one.ready()[1]
        assert one.log.lines == []
        one.kubelet.others.clear()
        await asyncio.sleep(30)
        one.check_agreement(1)


@virtual
async def test_another_plugin_with_more_devices_is_one_line_and_no_fight_either() -> None:
    """Also for the next daemon."""
    async with site(USB0) as one:
        one.forget()
        one.kubelet.others[ZIGBEE] = frozenset({"theirs", "another", "a third"})
        await asyncio.sleep(HOUR)
        assert len(one.patches()) <= 4
        assert not one.log.of("drift.contested")
        one.forget()
        await one.restart()
        await asyncio.sleep(100)
        assert len(one.patches()) <= 4
        one.forget()
        await asyncio.sleep(HOUR)
        assert (one.patches(), one.log.lines) == ([], [])


@virtual
@pytest.mark.parametrize("before", [False, True], ids=["after ours", "before ours"])
async def test_a_list_with_some_of_the_lost_devices_is_not_ours(*, before: bool) -> None:
    """A kubelet lists the healthy devices, or all of them: anything else is not what it was sent."""
    async with site(USB0, USB1, USB2) as one:
        names = {devnode: name for name, devnode in one.kubelet.links.made.items()}
        one.workload.run(pod("p", requests={ZIGBEE: 2}))
        one.kubelet.held = (holding("p", names[USB1], names[USB2]),)
        one.host.unplug(USB1)
        one.host.unplug(USB2)
        await asyncio.sleep(10)
        one.kubelet.others[ZIGBEE] = one.taken.ids
        await asyncio.sleep(60)
        assert not one.log.of("kubelet.lost"), "a kubelet that lists lost devices as well"
        one.kubelet.others[ZIGBEE] = frozenset({names[USB0], names[USB1]})
        if before:
            await stream_ends(one)
        await asyncio.sleep(60)
        assert one.log.of("kubelet.lost")
        assert not one.ready()[0]


@virtual
async def test_another_plugin_is_one_line_with_the_cure() -> None:
    """Nothing is registered again for it."""
    async with site(USB0) as one:
        one.forget()
        one.kubelet.others[ZIGBEE] = frozenset({"theirs"})
        await asyncio.sleep(HOUR)
        (line,) = one.log.of("kubelet.lost")
        assert "another plugin has registered the resource too" in str(line.fields["error"])
        assert line.fields["hint"]
        assert one.kubelet.registrations == []
        one.kubelet.others.clear()
        await asyncio.sleep(30)
        one.check_agreement(1)


@virtual
async def test_another_plugin_that_was_there_before_is_one_line_as_well() -> None:
    """Ours is never acknowledged then."""

    def taken(one: Site) -> None:
        one.kubelet.others[ZIGBEE] = frozenset({"theirs"})

    async with site(USB0, before=taken) as one:
        assert {count for _, count in one.patches()} <= {"0", "0/0", "1/0"}
        (line,) = one.log.of("kubelet.lost")
        assert "another plugin has registered the resource too" in str(line.fields["error"])
        one.kubelet.others.clear()
        await asyncio.sleep(10)
        one.check_agreement(1)


@virtual
async def test_a_resource_that_is_left_to_another_plugin_is_left_alone() -> None:
    """As the hint says: the Node shows the figures of the other one all along."""
    async with site(USB0) as one:
        one.kubelet.others[ZIGBEE] = frozenset({"theirs", "another"})
        await asyncio.sleep(300)
        one.forget()
        one.use(config(first=False))
        for _ in range(600):
            await asyncio.sleep(1)
            assert one.server.shows(ZIGBEE) == ("2", "2")
        assert one.patches() == []
        assert ZIGBEE not in str(one.server.state.annotation)
        assert one.ready() == (True, "ok")
        one.kubelet.others.clear()
        one.use(config())
        await asyncio.sleep(30)
        one.check_agreement(1)
        one.use(config(first=False))
        await asyncio.sleep(30)
        assert one.server.shows(ZIGBEE) == ("0", "0"), "nothing of another plugin is left by now"


@virtual
async def test_a_kubelet_that_never_takes_over_a_list_is_reported() -> None:
    """Nothing is promised meanwhile."""

    def slow(one: Site) -> None:
        one.kubelet.latency = HOUR

    async with site(USB0, before=slow) as one:
        assert one.server.shows(ZIGBEE) == ("0", "0")
        assert set(one.lost()) == {"the kubelet does not list the devices that it was sent"}
        assert len(one.lost()) <= 8


# -- a kubelet that hangs, refuses or is away stops nothing else


@virtual
async def test_a_kubelet_that_is_away_for_an_hour_costs_nothing_else() -> None:
    """One line; other resources are published as ever, and nothing is written for this one but the 0."""
    async with site(USB0) as one:
        one.kubelet.kill()
        one.forget()
        for _ in range(6):
            await asyncio.sleep(HOUR / 6 - 10.0)
            one.host.plug("0002", "/dev/ttyACM0")
            await asyncio.sleep(0.1)
            assert one.server.shows(ZWAVE) == ("1", "1")
            one.host.unplug("/dev/ttyACM0")
            await asyncio.sleep(9.9)
            assert one.server.shows(ZWAVE) == ("0", "0")
        assert [count for _, count in one.patches()] == ["1/0"]
        assert one.lost() == ["the kubelet has ended the stream", "no kubelet accepts registrations"]
        assert len(one.cycles) < HOUR / 3


@virtual
async def test_no_kubelet_from_the_start_is_one_line() -> None:
    """The folder is not mounted, say."""
    async with site(USB0, kubelet=False) as one:
        await asyncio.sleep(600)
        assert one.lost() == ["no kubelet accepts registrations"]
        told = f"{ZIGBEE} has not been registered with the kubelet for 700 s: no kubelet accepts registrations"
        assert one.ready() == (False, told)
        assert one.server.shows(ZIGBEE) == ("0", "0")
        one.kubelet.start()
        await asyncio.sleep(0.5)
        one.check_agreement(1)


@virtual
async def test_without_the_libraries_nothing_is_allocatable() -> None:
    """A pod that is bound to a resource that no kubelet knows runs without its device."""

    def missing() -> FakeKubelet:
        raise KubeletError("publish: devicePlugin needs grpclib", hint="install it")

    def without(one: Site) -> None:
        one.connect = missing

    async with site(USB0, before=without, kubelet=False) as one:
        assert set(one.lost()) == {"publish: devicePlugin needs grpclib"}
        assert "resource" not in one.log.of("kubelet.lost")[0].fields
        assert one.ready() == (False, "publish: devicePlugin needs grpclib; install it")
        assert one.server.shows(ZIGBEE)[1] in {None, "0"}


@virtual
async def test_a_kubelet_that_never_asks_for_the_devices_is_reported() -> None:
    """It has answered the registration, and cannot reach the socket, say."""
    async with site(USB0) as one:
        one.kubelet.watching = False
        await stream_ends(one)
        await asyncio.sleep(60)
        assert "the kubelet has accepted the registration, and does not ask for the devices" in one.lost()
        one.kubelet.watching = True
        await asyncio.sleep(30)
        one.check_agreement(1)


@virtual
async def test_a_resource_that_is_refused_leaves_the_others_alone() -> None:
    """One line with the answer of the kubelet, and fewer and fewer attempts."""
    second = f"- {{name: {ZWAVE}, match: [{{vendor: '0002'}}], publish: devicePlugin}}\n"

    def refused(one: Site) -> None:
        one.kubelet.refused[ZIGBEE] = KubeletError("the kubelet refuses Register: invalid name")
        one.host.plug("0002", "/dev/ttyACM0")

    async with site(USB0, used=config(more=second), before=refused) as one:
        assert one.server.shows(ZWAVE) == ("1", "1")
        assert one.server.shows(ZIGBEE) == ("0", "0")
        one.forget()
        await asyncio.sleep(600)
        assert 0 < len(one.kubelet.registrations) < 600 / 4
        assert set(one.lost()) == {"the kubelet refuses Register: invalid name"}
        assert len(one.lost()) < 12


@virtual
async def test_a_kubelet_that_hangs_acknowledges_nothing() -> None:
    """A pod that is bound meanwhile would find no device if the stick is pulled before the kubelet goes on."""
    async with site(USB0) as one:
        one.kubelet.hanging = True
        one.host.plug("0001", USB1, serial="S1")
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ("1", "1")
        one.kubelet.hanging = False
        await asyncio.sleep(3)
        one.check_agreement(2)


@virtual
async def test_a_kubelet_that_hangs_until_it_is_killed_is_registered_with_again() -> None:
    """What it had not acknowledged by then counts for nothing."""
    async with site(USB0) as one:
        one.kubelet.hanging = True
        one.host.plug("0001", USB1, serial="S1")
        await asyncio.sleep(60)
        await kubelet_starts_again(one)
        await asyncio.sleep(3)
        one.check_agreement(2)


@virtual
async def test_a_kubelet_that_hangs_stops_no_patch() -> None:
    """Neither of another resource nor of its own."""
    async with site(USB0, USB1) as one:
        one.kubelet.hanging = True
        one.forget()
        one.host.unplug(USB1)
        one.host.plug("0002", "/dev/ttyACM0")
        await asyncio.sleep(0.1)
        assert one.server.shows(ZWAVE) == ("1", "1")
        await asyncio.sleep(GRACE + 1)
        assert one.server.shows(ZIGBEE)[1] == "1"


@virtual
async def test_a_quiet_hour_costs_no_request_beyond_the_resync_and_no_cycle_beyond_the_sweep() -> None:
    """The question whether the kubelet still lists our devices wakes nothing."""
    async with site(USB0) as one:
        one.forget()
        one.cycles.clear()
        await asyncio.sleep(HOUR)
        assert one.server.writes == []
        assert len(one.cycles) <= HOUR / 10 + HOUR / 50 * 2 + 10


SERIALS = [
    "../../etc/passwd",
    "a\nb",
    "\x00",
    "\udcff\udcfe",
    "x" * 5000,
    "\N{SNOWMAN}",
    "$(reboot); rm -rf /",
    '{"a":[',
    "-",
    " ",
]


@pytest.mark.parametrize("serial", SERIALS, ids=range(len(SERIALS)))
def test_a_stick_with_any_serial_is_handed_over_and_keeps_its_id(serial: str) -> None:
    """Anyone can make a stick that says anything of itself."""

    @virtual
    async def handed_over() -> None:
        async with site() as one:
            one.host.plug("0001", USB0, serial=serial)
            await asyncio.sleep(5)
            one.check_agreement(1)
            (name,) = one.taken.ids
            assert re.fullmatch(r"[a-z0-9][-a-z0-9]{0,61}[a-z0-9]", name)
            assert one.kubelet.links.made == {name: USB0}
            await one.restart()
            await asyncio.sleep(30)
            assert one.taken.healthy == {name}
            one.host.unplug(USB0)
            one.host.plug("0001", USB1, serial=serial)
            await asyncio.sleep(5)
            one.check_agreement(1)
            assert one.kubelet.links.made == dict.fromkeys(one.taken.healthy, USB1)

    handed_over()


@virtual
async def test_a_folder_that_takes_no_socket_is_one_line_and_nothing_is_lost() -> None:
    """A full disk, say: the links are there, and the sockets are not."""
    async with site(USB0) as one:
        one.kubelet.unwritable = KubeletError("/plugins/x.sock: No space left on device", hint="free some")
        await stream_ends(one)
        await asyncio.sleep(HOUR)
        assert one.server.shows(ZIGBEE) == ("1", "0")
        assert set(one.lost()) == {"the kubelet has ended the stream", "/plugins/x.sock: No space left on device"}
        assert len(one.lost()) < 15
        assert one.ready()[1].endswith("/plugins/x.sock: No space left on device; free some")
        one.kubelet.unwritable = None
        await asyncio.sleep(30)
        one.check_agreement(1)


# -- held


def holding(name: str, *ids: str) -> Holding:
    """Return what a pod has, as the kubelet says."""
    return Holding(namespace="home", pod=name, container="c", resource=ZIGBEE, ids=frozenset(ids))


@virtual
async def test_a_lost_device_that_a_pod_holds_stays_as_unhealthy() -> None:
    """And leaves the list when the pod is gone."""
    async with site(USB0, USB1) as one:
        gone = next(name for name, devnode in one.kubelet.links.made.items() if devnode == USB1)
        one.workload.run(pod("p"))
        one.kubelet.held = (holding("p", gone),)
        one.host.unplug(USB1)
        await asyncio.sleep(10)
        assert one.taken.unhealthy == {gone}
        assert one.server.shows(ZIGBEE) == ("2", "1")
        assert one.kubelet.links.made.keys() == one.taken.healthy
        one.workload.end("home/p")
        one.kubelet.held = ()
        await asyncio.sleep(10)
        one.check_agreement(1)
        one.host.plug("0001", USB2, serial="S1")
        await asyncio.sleep(5)
        one.check_agreement(2)


@virtual
async def test_a_living_holder_of_a_lost_device_costs_no_list_of_pods_a_second() -> None:
    """It may live for days: nothing else is asked of the API server while nothing changes."""
    async with site(USB0, USB1) as one:
        gone = next(name for name, devnode in one.kubelet.links.made.items() if devnode == USB1)
        one.workload.run(pod("p"))
        one.kubelet.held = (holding("p", gone),)
        one.host.unplug(USB1)
        await asyncio.sleep(60)
        one.workload.lists.clear()
        await asyncio.sleep(600)
        assert len(one.workload.lists) <= 60


@virtual
@pytest.mark.parametrize(
    "error", [None, Retry("too many requests (429)"), Forbidden("cannot list pods", hint="grant it")]
)
async def test_an_unknown_holder_of_a_lost_device_is_asked_for_at_growing_intervals(error: ApiError | None) -> None:
    """The device may be away for months, and a pod unaccounted for as long: of its init container the kubelet never tells."""
    async with site(USB0) as one:
        one.workload.error = error
        one.workload.run(*(() if error else (pod("p"),)))
        one.host.unplug(USB0)
        await asyncio.sleep(60)
        one.workload.lists.clear()
        await asyncio.sleep(HOUR)
        assert len(one.workload.lists) <= HOUR / 5
        assert one.taken.unhealthy
        one.workload.error = None
        one.workload.end("home/p")
        await asyncio.sleep(12)
        assert one.taken == Offer()


@virtual
async def test_a_link_that_cannot_be_made_drops_no_device_that_a_pod_holds() -> None:
    """The kubelet would report the device of the pod as healthy, and forget that it is there."""
    async with site(USB0, USB1) as one:
        gone = next(name for name, devnode in one.kubelet.links.made.items() if devnode == USB1)
        one.workload.run(pod("p"))
        one.kubelet.held = (holding("p", gone),)
        one.host.unplug(USB1)
        await asyncio.sleep(10)
        one.kubelet.links.error = KubeletError("/links/x: No space left on device")
        one.host.plug("0001", USB2, serial="S2")
        await asyncio.sleep(10)
        assert gone in one.taken.unhealthy


@virtual
async def test_a_lost_device_stays_while_it_is_unknown_whether_a_pod_holds_it() -> None:
    """The kubelet or the API server cannot say, or the kubelet does not account for a pod that asks for one."""
    async with site(USB0, USB1) as one:
        one.workload.run(pod("p"))
        one.host.unplug(USB1)
        await asyncio.sleep(20)
        assert one.server.shows(ZIGBEE) == ("2", "1")
        one.kubelet.unheld = KubeletError("no folder")
        one.workload.end("home/p")
        await asyncio.sleep(20)
        assert one.server.shows(ZIGBEE) == ("2", "1")
        one.kubelet.unheld, one.workload.error = None, Retry("down")
        await asyncio.sleep(20)
        assert one.server.shows(ZIGBEE) == ("2", "1")
        one.workload.error = None
        await asyncio.sleep(20)
        one.check_agreement(1)


@virtual
async def test_a_device_that_comes_back_to_its_holder_is_healthy_again() -> None:
    """Under the same ID, and its link leads to it."""
    async with site(USB0) as one:
        (name,) = one.taken.healthy
        one.workload.run(pod("p"))
        one.kubelet.held = (holding("p", name),)
        one.host.unplug(USB0)
        await asyncio.sleep(10)
        assert one.taken.unhealthy == frozenset({name})
        assert one.server.shows(ZIGBEE) == ("1", "0")
        one.host.plug("0001", USB2, serial="S0")
        await asyncio.sleep(1)
        assert one.kubelet.links.made == {name: USB2}
        one.check_agreement(1)


# -- any history

ACTIONS = (
    "plug 0",
    "plug 1",
    "unplug 0",
    "unplug 1",
    "kubelet restarts",
    "kubelet killed",
    "stream ends",
    "daemon restarts",
    "slow kubelet",
    "fast kubelet",
    "API server down",
    "API server up",
    "links fail",
    "links work",
)


async def act(one: Site, action: str) -> None:
    """Let something happen."""
    kind, _, number = action.partition(" ")
    if kind == "plug":
        one.host.plug("0001", f"/dev/ttyUSB{number}", serial=f"S{number}")
    elif kind == "unplug":
        with contextlib.suppress(KeyError):
            one.host.unplug(f"/dev/ttyUSB{number}")
    elif action == "kubelet restarts":
        await kubelet_starts_again_at_once(one)
    elif action == "kubelet killed":
        one.kubelet.kill()
    elif action == "stream ends" and one.kubelet.streaming(ZIGBEE):
        await stream_ends(one)
    elif action == "daemon restarts":
        await one.restart()
    elif kind in {"slow", "fast"}:
        one.kubelet.latency = 0.5 if kind == "slow" else 0.001
    elif kind == "API":
        one.server.error = Retry("down") if action.endswith("down") else None
    elif kind == "links":
        one.kubelet.links.error = KubeletError("no space") if action.endswith("fail") else None


def check_raises(one: Site) -> None:
    """Watch every PATCH: it raises what is allocatable only to what the kubelet would hand out at that moment.

    What the kubelet writes in the same moment is not known yet.
    """
    patch = one.server.patch

    async def patched(request: object) -> object:
        counts = request.counts  # type: ignore[attr-defined]  # a NodePatch
        if one.server.exists and (wanted := counts.get(ZIGBEE)) is not None:
            observed = (one.running and one.running.publisher.observed) or one.server.state
            before = max(state.amounts(ZIGBEE).allocatable for state in (one.server.state, observed))
            assert wanted.allocatable <= max(before, one.healthy())
        return await patch(request)  # type: ignore[arg-type]  # as it came

    one.server.patch = patched  # type: ignore[method-assign,assignment]  # it only looks


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.sampled_from([0.0, 0.005, 0.05, 0.5, 1.5, 5.0])), max_size=12))
def test_in_any_history_no_figure_is_raised_above_what_the_kubelet_hands_out(history: list[tuple[str, float]]) -> None:
    """And in the end Node, kubelet and host agree."""

    async def lived() -> None:
        async with site(USB0) as one:
            check_raises(one)
            for action, pause in history:
                await act(one, action)
                await asyncio.sleep(pause)
            one.server.error = one.kubelet.links.error = None
            one.kubelet.latency = 0.001
            if not one.kubelet.running:
                one.kubelet.start()
            await asyncio.sleep(120)
            one.check_agreement(len(one.host._devices))  # noqa: SLF001 - what is plugged in the end

    virtualtime.run(lived, limit=virtualtime.DAY)
