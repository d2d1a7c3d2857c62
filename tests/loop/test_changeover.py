"""A resource changes its way of publishing on a live node: no stick is given to two pods, and each pod is made anew once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from devwatch.core.errors import Forbidden, KubeletError, Retry
from devwatch.core.handover import Offer
from devwatch.core.holders import Holding
from loop.test_deviceplugin import PLAIN, USB0, USB1, Site, config, site
from loop.test_holders import evicted, holds, id_of, renamed
from support.build import ZIGBEE, ZWAVE
from support.home import pod
from support.virtualtime import virtual

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from devwatch.config.schema import Config

FIVE_MINUTES = 320.0
"""Seconds for which the kubelet may write the resource of a plugin that has ended."""
NODE_STATUS = config(publish="nodeStatus")
HANDED_OVER = config()
BY_DEVNODE = config(count="devnode")
WITHOUT = config(first=False)
"""The resource has left the configuration."""


def reasons(one: Site) -> list[object]:
    """Return why a change waits, as it was reported."""
    return [line.fields["reason"] for line in one.log.of("count.held")]


async def until(check: Callable[[], bool]) -> None:
    """Wait for a condition, ten seconds at most."""
    for _ in range(1000):
        if check():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(check)


@contextlib.asynccontextmanager
async def twins() -> AsyncIterator[Site]:
    """Have two sticks with one serial, of which a pod `p` has the one that came first."""
    async with site() as one:
        for devnode, port in ((USB1, "usb-0:1:1.0"), (USB0, "usb-0:2:1.0")):
            one.host.plug("0001", devnode, serial="T", port=port)
            await asyncio.sleep(10)
        one.workload.run(pod("p"))
        holds(one, "p", id_of(one, USB1))
        yield one


@virtual
async def test_the_new_way_begins_when_no_pod_has_the_resource_in_the_former_way() -> None:
    """Both figures are 0 meanwhile, and log and `/readyz` name the pods."""
    async with site(USB0, used=NODE_STATUS) as one:
        one.workload.run(pod("p"))
        one.use(HANDED_OVER)
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ("0", "0")
        assert not one.kubelet.streaming(ZIGBEE)
        assert "waits for the end of home/p" in reasons(one)
        ready, why = one.ready()
        assert not ready
        assert why == f"{ZIGBEE} changes from nodeStatus to devicePlugin: it waits for the end of home/p"
        one.workload.end("home/p")
        await asyncio.sleep(10)
        one.check_agreement(1)
        assert one.ready() == (True, "ok")


@pytest.mark.parametrize("used", [BY_DEVNODE, WITHOUT, renamed()], ids=["by devnode", "without it", "renamed"])
@virtual
async def test_a_stick_keeps_the_link_of_its_pod_whatever_becomes_of_its_resource(used: Config) -> None:
    """Until it is pulled. A stick that takes its devnode does not get the link, and it gets it again when it is back there."""
    async with site(USB0) as one:
        one.workload.run(pod("p"))
        holds(one, "p", id_of(one, USB0))
        (link,) = one.kubelet.links.made
        one.use(used)
        for _ in range(2):
            await asyncio.sleep(30)
            assert one.kubelet.links.made[link] == USB0
            one.host.doubts = ("cannot list",)
            await asyncio.sleep(30)
            assert one.kubelet.links.made[link] == USB0
            one.host.doubts = ()
            await one.restart()
        for serial, target in (("other", None), ("S0", USB0)):
            one.host.unplug(USB0)
            await asyncio.sleep(30)
            assert link not in one.kubelet.links.made
            one.host.plug("0001", USB0, serial=serial)
            await asyncio.sleep(30)
            assert one.kubelet.links.made.get(link) == target
        one.workload.end("home/p")
        one.kubelet.held = ()
        await asyncio.sleep(30)
        assert link not in one.kubelet.links.made


@virtual
async def test_a_pod_that_is_bound_before_the_node_shows_0_is_waited_for() -> None:
    """The list of the pods may be a moment older: it proves nothing as long as the scheduler binds pods by the former figures."""
    async with site(USB0, USB1, used=NODE_STATUS) as one:

        def bind() -> None:
            if one.server.shows(ZIGBEE) != ("0", "0"):
                one.workload.run(pod("p"))

        one.workload.at_answer = bind
        one.use(HANDED_OVER)
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ("0", "0")
        assert not one.kubelet.streaming(ZIGBEE)
        assert reasons(one) == ["waits for the end of home/p"]
        one.workload.end("home/p")
        await asyncio.sleep(10)
        one.check_agreement(2)


@virtual
async def test_a_container_that_starts_again_while_the_change_waits_opens_its_stick() -> None:
    """Its pod goes on until its owner ends it: the link leads to the stick, and nowhere while that is out."""
    async with site(USB0) as one:
        one.workload.run(pod("p"))
        one.kubelet.held = (Holding(namespace="home", pod="p", container="c", resource=ZIGBEE, ids=one.taken.ids),)
        (link,) = one.kubelet.links.made
        one.use(NODE_STATUS)
        await asyncio.sleep(30)
        assert one.kubelet.links.made == {link: USB0}
        await one.restart()
        await asyncio.sleep(30)
        assert one.kubelet.links.made == {link: USB0}
        one.host.unplug(USB0)
        await asyncio.sleep(30)
        assert one.kubelet.links.made == {}
        one.host.plug("0001", USB1, serial="S0")
        await asyncio.sleep(30)
        assert one.kubelet.links.made == {link: USB1}
        one.workload.end("home/p")
        await asyncio.sleep(FIVE_MINUTES + 20)
        assert one.kubelet.links.made == {}
        assert one.server.shows(ZIGBEE) == ("1", "1")


@virtual
async def test_a_change_that_comes_while_the_pods_are_listed_waits_for_a_list_of_its_own() -> None:
    """The one that is under way was begun when both resources were still handed out in the former way."""
    both = PLAIN.replace("}\n", ", publish: devicePlugin}\n")
    async with site(USB0, used=NODE_STATUS) as one:
        one.host.plug("0002", USB1, serial="S1")
        one.workload.latency = 0.2
        one.use(HANDED_OVER)
        await asyncio.sleep(0.1)
        one.workload.run(pod("q", resource=ZWAVE))
        one.use(config(more=both))
        await asyncio.sleep(60)
        one.check_agreement(1)
        assert one.server.shows(ZWAVE) == ("0", "0")
        assert not one.kubelet.streaming(ZWAVE)


@virtual
async def test_each_devnode_is_a_device_of_its_own_once_no_pod_has_the_whole_one() -> None:
    """The kubelet knows it under another ID, and would give it to a second pod; a restart of the daemon does not forget the change."""
    async with site(USB0) as one:
        ids = one.taken.healthy
        one.workload.run(pod("p"))
        one.kubelet.held = (Holding(namespace="home", pod="p", container="c", resource=ZIGBEE, ids=ids),)
        one.use(BY_DEVNODE)
        await asyncio.sleep(30)
        await one.restart()
        await asyncio.sleep(30)
        assert one.server.shows(ZIGBEE) == ("0", "0")
        assert one.ready() == (False, f"{ZIGBEE} changes its count: it waits for the end of home/p")
        one.kubelet.held = ()
        one.workload.end("home/p")
        await asyncio.sleep(15)
        one.check_agreement(1)
        assert one.taken.healthy.isdisjoint(ids)


@virtual
async def test_a_change_that_is_taken_back_does_not_forget_who_holds_a_lost_device() -> None:
    """It was pulled while the change waited; without it in the list, the kubelet would report the pod's device as healthy."""
    async with site(USB0) as one:
        ids = one.taken.healthy
        one.workload.run(pod("p"))
        one.kubelet.held = (Holding(namespace="home", pod="p", container="c", resource=ZIGBEE, ids=ids),)
        one.use(NODE_STATUS)
        await asyncio.sleep(10)
        one.host.unplug(USB0)
        await asyncio.sleep(10)
        one.use(HANDED_OVER)
        await asyncio.sleep(30)
        assert one.taken == Offer(unhealthy=ids)
        assert one.server.shows(ZIGBEE) == ("1", "0")


@virtual
async def test_a_lost_device_leaves_the_list_before_the_stream_ends() -> None:
    """The kubelet lists no lost device, so its answer does not prove that. Otherwise it writes the device for 5 minutes."""
    async with site(USB0) as one:
        ids = one.taken.healthy
        one.workload.run(pod("p"))
        one.kubelet.held = (Holding(namespace="home", pod="p", container="c", resource=ZIGBEE, ids=ids),)
        one.host.unplug(USB0)
        await asyncio.sleep(10)
        assert one.taken == Offer(unhealthy=ids)
        one.kubelet.latency = 1.5
        one.use(NODE_STATUS)
        await asyncio.sleep(60)
        assert one.taken == Offer()
        assert one.server.shows(ZIGBEE) == ("0", "0")


@virtual
async def test_a_restart_does_not_forget_that_a_change_waits() -> None:
    """The annotation keeps the former way until the new one begins."""
    async with site(USB0, used=NODE_STATUS) as one:
        one.workload.run(pod("p"))
        one.use(HANDED_OVER)
        await asyncio.sleep(10)
        await one.restart()
        await asyncio.sleep(30)
        assert one.server.shows(ZIGBEE) == ("0", "0")
        assert not one.kubelet.streaming(ZIGBEE)
        one.workload.end("home/p")
        await asyncio.sleep(30)
        one.check_agreement(1)


@virtual
async def test_a_change_that_is_taken_back_ends_at_once() -> None:
    """The pods that are there have the resource in the way that is in force again."""
    async with site(USB0, used=NODE_STATUS) as one:
        one.workload.run(pod("p"))
        one.use(HANDED_OVER)
        await asyncio.sleep(10)
        one.use(NODE_STATUS)
        await asyncio.sleep(5)
        assert one.server.shows(ZIGBEE) == ("1", "1")
        assert one.ready() == (True, "ok")


@virtual
async def test_after_a_change_of_the_count_the_former_units_are_no_lost_devices() -> None:
    """A pod of the new unit that the kubelet does not account for would keep one of them listed for good."""
    async with site(USB0) as one:
        one.use(BY_DEVNODE)
        await until(lambda: one.server.shows(ZIGBEE) == ("0", "0"))
        await until(lambda: one.server.shows(ZIGBEE) != ("0", "0"))
        one.workload.run(pod("init"))
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ("1", "1")
        assert not one.taken.unhealthy


@virtual
async def test_many_pods_are_counted_rather_than_named() -> None:
    """One line stays one line."""
    async with site(USB0, used=NODE_STATUS) as one:
        for number in range(7):
            one.workload.run(pod(f"p{number}"))
        one.use(HANDED_OVER)
        await asyncio.sleep(10)
        names = ", ".join(f"home/p{number}" for number in range(5))
        assert reasons(one)[-1] == f"waits for the end of {names} and 2 more"


@virtual
async def test_without_the_permission_to_list_pods_the_change_waits_for_a_purge() -> None:
    """Nothing else can say that no pod has the resource any more."""
    async with site(USB0, used=NODE_STATUS) as one:
        one.workload.error = Forbidden("cannot list pods", hint="grant it")
        one.use(HANDED_OVER)
        await asyncio.sleep(600)
        assert one.server.shows(ZIGBEE) == ("0", "0")
        assert "devwatch purge" in str(reasons(one)[-1])
        assert len(reasons(one)) <= 2


@virtual
async def test_back_to_the_status_of_the_node_the_kubelet_has_to_forget_the_plugin() -> None:
    """Until then it writes 0 at each of its syncs."""
    async with site(USB0) as one:
        one.use(NODE_STATUS)
        await asyncio.sleep(FIVE_MINUTES - 10)
        assert one.server.shows(ZIGBEE) == ("0", "0")
        assert "kubelet" in one.ready()[1]
        await asyncio.sleep(30)
        assert one.server.shows(ZIGBEE) == ("1", "1")
        assert one.ready() == (True, "ok")


@virtual
async def test_what_the_kubelet_writes_until_it_has_forgotten_a_plugin_is_not_contested() -> None:
    """It is a capacity of which nothing can be allocated; what is there then is counted at once."""
    async with site(USB0) as one:
        one.use(NODE_STATUS)
        await asyncio.sleep(5)
        one.forget()
        one.server.write(ZIGBEE, "1", maps=("capacity",), manager="kubelet")
        await asyncio.sleep(FIVE_MINUTES - 20)
        assert one.patches() == []
        await asyncio.sleep(30)
        assert one.server.shows(ZIGBEE) == ("1", "1")
        assert not one.log.of("drift.contested")


@virtual
async def test_a_kubelet_that_hangs_does_not_keep_the_former_way_allocatable() -> None:
    """It cannot say which pods have the devices, for which the new way waits."""
    async with site(USB0) as one:
        one.kubelet.hanging = True
        one.use(NODE_STATUS)
        await asyncio.sleep(1)
        assert one.server.shows(ZIGBEE) == ("0", "0")


@virtual
async def test_a_kubelet_that_starts_again_meanwhile_has_five_minutes_of_its_own() -> None:
    """Its checkpoint brings the resource back."""
    async with site(USB0) as one:
        one.use(NODE_STATUS)
        await asyncio.sleep(200)
        one.kubelet.kill()
        one.kubelet.start()
        await asyncio.sleep(FIVE_MINUTES - 40)
        assert one.server.shows(ZIGBEE) == ("0", "0")
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ("1", "1")


@virtual
async def test_a_resource_that_leaves_the_configuration_leaves_the_node_once_the_kubelet_has_forgotten_it() -> None:
    """Removed sooner, it would be written again by the kubelet, and belong to nobody."""
    async with site(USB0) as one:
        one.use(config(publish="nodeStatus", first=False))
        await asyncio.sleep(FIVE_MINUTES - 20)
        assert one.server.shows(ZIGBEE) == ("0", "0")
        assert not one.kubelet.streaming(ZIGBEE)
        await asyncio.sleep(40)
        assert one.server.shows(ZIGBEE) == (None, None)
        one.server.requests.clear()
        await asyncio.sleep(200)
        assert not [request for request in one.server.requests if request.changes]


@virtual
async def test_a_resource_that_was_out_of_the_configuration_meanwhile_waits_for_its_pods_as_well() -> None:
    """The annotation does not tell of them any more; the pods do."""
    async with site(USB0, used=NODE_STATUS) as one:
        one.workload.run(pod("p"))
        one.use(config(publish="nodeStatus", first=False))
        await asyncio.sleep(10)
        assert one.server.shows(ZIGBEE) == (None, None)
        one.use(HANDED_OVER)
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ("0", "0")
        assert "waits for the end of home/p" in reasons(one)
        one.workload.end("home/p")
        await asyncio.sleep(10)
        one.check_agreement(1)


@virtual
@pytest.mark.parametrize("restarted", [False, True], ids=["", "the daemon starts again"])
@pytest.mark.parametrize("used", [WITHOUT, BY_DEVNODE, renamed()], ids=["removed", "counts devnodes", "renamed"])
@pytest.mark.parametrize("seconds", [0.05, 60])
async def test_twins_keep_their_ids_when_a_change_of_their_resource_is_taken_back(
    used: Config, seconds: float, *, restarted: bool
) -> None:
    """Pods hold them meanwhile. The IDs tell which stick a container opens that starts again."""
    async with twins() as one:
        before = dict(one.kubelet.links.made)
        one.use(used)
        await asyncio.sleep(seconds)
        if restarted:
            await one.restart()
            await asyncio.sleep(seconds)
        one.use(HANDED_OVER)
        await asyncio.sleep(60)
        assert one.kubelet.links.made == before
        one.check_agreement(2)


@virtual
async def test_what_is_left_of_twins_is_not_offered_again_when_a_change_of_their_resource_is_taken_back() -> None:
    """Its ID is one that only a twin gets: a pod holds it, and without it the stick would be given to a second pod."""
    async with twins() as one:
        one.host.unplug(USB0)
        await asyncio.sleep(10)
        before = one.taken
        one.use(WITHOUT)
        await asyncio.sleep(10)
        one.use(HANDED_OVER)
        await asyncio.sleep(60)
        assert one.taken == before


@virtual
@pytest.mark.parametrize("used", [WITHOUT, BY_DEVNODE], ids=["removed", "counts devnodes"])
async def test_a_lost_device_that_a_pod_holds_is_listed_again_when_a_change_of_its_resource_is_taken_back(
    used: Config,
) -> None:
    """As after a restart."""
    async with site(USB0, USB1) as one:
        one.workload.run(pod("p"))
        holds(one, "p", lost := id_of(one, USB0))
        one.host.unplug(USB0)
        await asyncio.sleep(10)
        one.use(used)
        await asyncio.sleep(5)
        one.use(HANDED_OVER)
        await asyncio.sleep(60)
        assert one.taken.unhealthy == {lost}
        assert one.server.shows(ZIGBEE) == ("2", "1")


@virtual
async def test_a_list_of_pods_that_fails_for_a_moment_proves_nothing() -> None:
    """Only a permission that is missing never tells who has a resource that the annotation does not list."""
    async with site(USB0, used=NODE_STATUS) as one:
        one.workload.run(pod("p"))
        one.use(config(publish="nodeStatus", first=False))
        await asyncio.sleep(10)
        await one.restart()
        await asyncio.sleep(10)
        one.workload.error = Retry("too many requests (429)")
        one.use(HANDED_OVER)
        await asyncio.sleep(20)
        assert reasons(one) == ["cannot list pods: too many requests (429)"]
        one.workload.error = None
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ("0", "0")
        assert not one.kubelet.streaming(ZIGBEE)
        one.workload.end("home/p")
        await asyncio.sleep(10)
        one.check_agreement(1)


@virtual
async def test_lists_of_pods_that_take_long_leave_time_for_the_evictions_of_other_resources() -> None:
    """Each takes longer than the time between two of them, and the change waits for days."""
    more = PLAIN.replace("}\n", ", evict: {after: 5s}}\n")
    async with site(USB0, used=config(publish="nodeStatus", more=more)) as one:
        one.host.plug("0002", USB1, serial="Z")
        await asyncio.sleep(10)
        one.workload.run(pod("p"), pod("z", resource=ZWAVE))
        one.workload.latency = 5.5
        one.use(config(more=more))
        await asyncio.sleep(60)
        one.host.unplug(USB1)
        await asyncio.sleep(120)
        assert evicted(one) == ["home/z"]


@virtual
async def test_a_new_resource_needs_no_permission_to_list_pods() -> None:
    """Where nothing was ever advertised, nothing has to be waited for."""
    async with site(USB0, used=config(publish="nodeStatus", first=False)) as one:
        one.workload.error = Forbidden("cannot list pods", hint="grant it")
        one.use(HANDED_OVER)
        await asyncio.sleep(10)
        one.check_agreement(1)
        assert reasons(one) == []


@virtual
async def test_who_writes_the_annotation_changes_no_way() -> None:
    """The daemon knows what it has begun."""
    async with site(USB0) as one:
        one.workload.run(pod("p"))
        for text in (None, "{}", f'{{"{ZIGBEE}":[]}}', f'{{"{ZIGBEE}":[{{"devnode":"/dev/ttyUSB0"}}]}}'):
            one.server.annotate(text)
            await asyncio.sleep(20)
            one.check_agreement(1)
        assert reasons(one) == []


@virtual
async def test_without_an_annotation_the_pods_of_the_kubelet_are_no_holdouts() -> None:
    """Someone has removed it while no daemon ran; who has the stick from the kubelet goes on with it."""
    async with site(USB0) as one:
        one.workload.run(pod("p"))
        ids = frozenset(one.kubelet.links.made)
        one.kubelet.held = (Holding(namespace="home", pod="p", container="c", resource=ZIGBEE, ids=ids),)
        await one.kill()
        one.server.annotate(None)
        one.start(one.settings_now)
        await asyncio.sleep(30)
        one.check_agreement(1)
        one.kubelet.unheld = KubeletError("no folder")
        await one.kill()
        one.server.annotate(None)
        one.start(one.settings_now)
        await asyncio.sleep(30)
        assert one.server.shows(ZIGBEE)[1] == "0"
