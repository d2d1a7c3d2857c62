"""What the agent promises of `publish: dra`, on virtual time against an API server and a kubelet that can fail."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from devwatch.agent.claims import ClaimDriver
from devwatch.agent.clock import Clock
from devwatch.agent.dra import Dra, DraParts
from devwatch.agent.report import Telemetry
from devwatch.agent.resourceslices import ResourceSlices
from devwatch.core.errors import ApiError, Forbidden, KubeletError, Refused, Retry, Unserved
from devwatch.core.holders import Holding
from devwatch.core.names import DRIVER
from devwatch.core.pods import Container
from devwatch.kube.claims import read_claim
from devwatch.kube.slices import KubeSlices
from devwatch.observe.health import Health
from devwatch.observe.metrics import Metrics
from support.build import ZIGBEE, ZWAVE
from support.claims import POOL
from support.drasite import TOLERATION, USB0, USB1, config, dra_site
from support.fakes import EPOCH, RecordingLog
from support.harness import now
from support.home import pod
from support.objectserver import SLICES, ObjectServer
from support.virtualtime import virtual

if TYPE_CHECKING:
    from pathlib import Path

    from devwatch.agent.claims import DriverApi
    from devwatch.config.schema import Config
    from devwatch.core.claims import ClaimReference
    from support.drasite import DraSite

GRACE = 2.0
EVICTING = config(evict="5s")
ZERO = ("0", "0")


# -- the slice follows the devices


@virtual
async def test_the_slice_has_what_is_present_and_both_maps_of_the_node_show_0(tmp_path: Path) -> None:
    """A figure above that would win over the slice."""
    async with dra_site(tmp_path, USB0, USB1) as one:
        assert list(one.devices.values()) == [False, False]
        assert one.server.shows(ZIGBEE) == ZERO
        assert one.ready() == (True, "ok")


@virtual
async def test_a_lost_device_is_tainted_after_the_grace_and_gone_once_no_claim_has_it(tmp_path: Path) -> None:
    """The claim has its pod, which is not evicted here."""
    async with dra_site(tmp_path, USB0) as one:
        device = await one.claim("p")
        assert one.devnodes() == [USB0]
        one.host.unplug(USB0)
        await asyncio.sleep(GRACE - 0.5)
        assert one.devices == {device: False}
        assert one.devnodes() == []
        await asyncio.sleep(60)
        assert one.devices == {device: True}
        await one.end("p")
        await asyncio.sleep(10)
        assert one.devices == {}
        assert one.server.shows(ZIGBEE) == ZERO


@virtual
async def test_a_lost_device_that_no_claim_has_leaves_the_slice(tmp_path: Path) -> None:
    """And one that returns is offered again, under its ID if a claim has kept it."""
    async with dra_site(tmp_path, USB0, USB1) as one:
        device = await one.claim("p")
        before = set(one.devices)
        for devnode in (USB0, USB1):
            one.host.unplug(devnode)
        await asyncio.sleep(30)
        assert one.devices == {device: True}
        for devnode in (USB1, USB0):
            one.host.plug("0001", devnode, serial=f"S{devnode[-1]}")
        await asyncio.sleep(10)
        assert one.devices == dict.fromkeys(before, False)


@virtual
async def test_a_kubelet_that_deletes_the_slices_gets_them_again_at_once(tmp_path: Path) -> None:
    """Each that starts does, of every driver."""
    async with dra_site(tmp_path, USB0) as one:
        one.objects.delete_all(SLICES)
        await asyncio.sleep(1)
        assert list(one.devices.values()) == [False]


@pytest.mark.parametrize("deletes_after", [0.0, 0.5])
def test_a_kubelet_that_starts_again_and_again_contests_no_slice(deletes_after: float, tmp_path: Path) -> None:
    """As where its settings are wrong, and it ends at once: the slice is there a second after each start, the last one too."""

    @virtual
    async def started() -> None:
        async with dra_site(tmp_path, USB0) as one:
            for number in range(20):
                await one.manager.stop()
                await asyncio.sleep(2)
                one.manager.start()
                await asyncio.sleep(deletes_after)
                one.objects.delete_all(SLICES)
                await asyncio.sleep(1)
                assert list(one.devices.values()) == [False], number

    started()


@virtual
async def test_an_api_server_that_is_away_changes_nothing_and_is_told(tmp_path: Path) -> None:
    """What changed meanwhile is published once it is back."""
    async with dra_site(tmp_path, USB0) as one:
        device = await one.claim("p")
        one.objects.fail = lambda _method, _path: Retry("connection refused")
        one.host.plug("0001", USB1, serial="S1")
        await asyncio.sleep(90)
        ready, why = one.ready()
        assert not ready
        assert "connection refused" in why
        assert one.devices == {device: False}
        one.objects.fail = lambda _method, _path: None
        await asyncio.sleep(330)
        assert len(one.devices) == 2
        assert one.ready() == (True, "ok")


@virtual
async def test_a_server_that_stores_no_taints_has_the_lost_device_leave_at_once(tmp_path: Path) -> None:
    """Its claim keeps it, and its holder is evicted all the same."""
    async with dra_site(tmp_path, USB0, used=EVICTING) as one:
        one.objects.taints = False
        await one.claim("p")
        one.host.unplug(USB0)
        await asyncio.sleep(GRACE + 1)
        assert one.devices == {}
        await asyncio.sleep(60)
        assert one.evicted == ["p"]


@virtual
async def test_one_run_leaves_the_resource_alone(tmp_path: Path) -> None:
    """Figures, annotation and slice stay as they are; what is counted on the Node is written."""
    both = config(more=f"- {{name: {ZWAVE}, match: [{{vendor: '0002'}}]}}\n")
    async with dra_site(tmp_path, USB0, used=both) as one:
        before, calls = one.server.state, len(one.objects.calls)
        await one.kill()
        one.host.unplug(USB0)
        one.host.plug("0002", USB1)
        await one.reconciler(both, once=True).run()
        assert one.server.shows(ZWAVE) == ("1", "1")
        assert one.server.shows(ZIGBEE) == ZERO
        assert one.server.state.memory()[ZIGBEE] == before.memory()[ZIGBEE]
        assert len(one.objects.calls) == calls
        one.start(both)


# -- health and metrics


@virtual
@pytest.mark.parametrize(
    "error", [Forbidden("cannot update resourceslices"), Refused("denied by policy")], ids=["forbidden", "refused"]
)
async def test_a_slice_that_is_refused_is_told_at_once(error: ApiError, tmp_path: Path) -> None:
    """In the server's words, until it is accepted."""
    async with dra_site(tmp_path, USB0) as one:
        one.objects.fail = lambda method, _path: error if method == "PUT" else None
        one.host.plug("0001", USB1, serial="S1")
        await asyncio.sleep(1)
        assert one.ready() == (False, f"the ResourceSlice is refused: {error}")
        one.objects.fail = lambda _method, _path: None
        await asyncio.sleep(330)
        assert one.ready() == (True, "ok")


@virtual
async def test_slices_that_cannot_be_listed_are_told_at_once_where_that_is_forbidden(tmp_path: Path) -> None:
    """Without the list none is written."""
    async with dra_site(tmp_path, USB0) as one:
        await one.kill()
        one.objects.fail = lambda _method, _path: Forbidden("cannot list resourceslices")
        one.start(one.used)
        await asyncio.sleep(1)
        assert "cannot list resourceslices" in one.ready()[1]
        one.objects.fail = lambda _method, _path: Unserved("404 page not found")
        await one.restart()
        await asyncio.sleep(55)
        assert one.ready() == (True, "ok")
        await asyncio.sleep(10)
        assert "the ResourceSlice has not shown what is present for 6" in one.ready()[1]
        assert "404 page not found" in one.ready()[1]


@virtual
async def test_a_driver_that_the_kubelet_does_not_register_is_told_after_a_minute(tmp_path: Path) -> None:
    """Its resources are registered with it, and not without; the figure of a device plugin stays beside theirs."""
    both = config(more=f"- {{name: {ZWAVE}, match: [{{vendor: '0002'}}], publish: devicePlugin}}\n")
    async with dra_site(tmp_path, USB0, used=both) as one:
        assert [one.metric("kubelet_registered", name) for name in (ZIGBEE, ZWAVE)] == [1, 1]
        await one.manager.stop()
        await asyncio.sleep(55)
        assert [one.metric("kubelet_registered", name) for name in (ZIGBEE, ZWAVE)] == [0, 1]
        assert one.ready() == (True, "ok")
        await asyncio.sleep(10)
        assert one.ready()[1].startswith(f"{ZIGBEE} has not been registered with the kubelet for 6")
        one.manager.start()
        await asyncio.sleep(5)
        assert one.metric("kubelet_registered", ZIGBEE) == 1
        assert one.ready() == (True, "ok")
        one.use(config(name="a.io/other"))
        await asyncio.sleep(10)
        assert [one.metric("kubelet_registered", name) for name in ("a.io/other", ZIGBEE)] == [1, 0]


@virtual
async def test_a_library_that_is_missing_is_told_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slice offers the devices all the same: their containers start once it is there."""
    monkeypatch.setitem(sys.modules, "devwatch.kubelet.driver", None)
    async with dra_site(tmp_path, USB0) as one:
        cure = "pip install 'devwatch[kubelet]'"
        assert one.ready() == (False, f"publish: dra needs devwatch.kubelet.driver; {cure}")
        assert one.log.of("kubelet.lost")[0].fields["hint"] == cure
        assert list(one.devices.values()) == [False]


@virtual
async def test_a_folder_that_stays_away_is_told_after_a_minute(tmp_path: Path) -> None:
    """However often the sockets are tried again."""
    async with dra_site(tmp_path, USB0) as one:
        await one.kill()
        await one.manager.stop()
        (tmp_path / "plugins_registry").rename(tmp_path / "away")
        one.start(one.used)
        await asyncio.sleep(75)
        assert one.ready()[1].startswith(f"{ZIGBEE} has not been registered with the kubelet for 7")
        assert "plugins_registry" in one.ready()[1]


# -- who is evicted


@virtual
@pytest.mark.parametrize("requests", [{}, {ZIGBEE: 1}], ids=["by a claim", "by its limits"])
async def test_the_holder_of_a_lost_device_is_evicted_and_no_other_pod(
    requests: dict[str, int], tmp_path: Path
) -> None:
    """Named by the kubelet, however the pod asked for it."""
    async with dra_site(tmp_path, USB0, USB1, used=EVICTING) as one:
        for name in ("a", "b"):
            await one.claim(name, requests=requests)
        one.host.unplug(USB1)
        await asyncio.sleep(GRACE + 4)
        assert one.evicted == []
        await asyncio.sleep(30)
        assert one.evicted == ["b"]
        assert one.devnodes() == [USB0]
        assert list(one.devices.values()) == [False]


@virtual
@pytest.mark.parametrize("after", [0.1, 0.3, 0.5])
async def test_a_holder_whose_stick_is_back_while_the_holders_are_read_is_let_be(after: float, tmp_path: Path) -> None:
    """The other stick that was pulled with it is still lost; what was read for both tells nothing of that one alone."""
    async with dra_site(tmp_path, USB0, USB1, used=EVICTING) as one:
        for name in ("a", "b"):
            await one.claim(name)
        for devnode in (USB0, USB1):
            one.host.unplug(devnode)
        await asyncio.sleep(GRACE + 4)
        one.workload.latency, before = 0.3, len(one.workload.lists)
        await asyncio.sleep(1 + after)
        assert len(one.workload.lists) > before, "the reading has begun"
        assert one.workload.tried == []
        one.host.plug("0001", USB0, serial="S0", number=1)
        await asyncio.sleep(60)
        assert one.evicted == ["b"]


@virtual
async def test_a_daemon_that_finds_everything_in_place_evicts_as_well(tmp_path: Path) -> None:
    """It asks the kubelet for the first time then."""
    async with dra_site(tmp_path, USB0, used=EVICTING) as one:
        await one.claim("p")
        await one.restart()
        await asyncio.sleep(30)
        one.host.unplug(USB0)
        await asyncio.sleep(60)
        assert one.evicted == ["p"]
        assert one.devices == {}


@virtual
async def test_nobody_is_evicted_before_the_taint_is_acknowledged(tmp_path: Path) -> None:
    """The scheduler could give the device to the successor."""
    async with dra_site(tmp_path, USB0, used=EVICTING) as one:
        await one.claim("p")
        one.objects.fail = lambda method, _path: Retry("timeout") if method == "PUT" else None
        one.host.unplug(USB0)
        await asyncio.sleep(120)
        assert one.evicted == []
        one.objects.fail = lambda _method, _path: None
        await asyncio.sleep(330)
        assert one.evicted == ["p"]


@virtual
async def test_all_pods_of_a_shared_claim_are_evicted(tmp_path: Path) -> None:
    """Each of them has the stick."""
    async with dra_site(tmp_path, USB0, used=EVICTING) as one:
        await one.claim("c", "a", "b")
        one.host.unplug(USB0)
        await asyncio.sleep(60)
        assert sorted(one.evicted) == ["a", "b"]
        assert one.devices == {}


@virtual
async def test_a_claim_that_tolerates_the_loss_is_spared(tmp_path: Path) -> None:
    """Its device stays in the slice, tainted."""
    async with dra_site(tmp_path, USB0, used=EVICTING) as one:
        device = await one.claim("p", tolerations=(TOLERATION,))
        one.host.unplug(USB0)
        await asyncio.sleep(120)
        assert one.evicted == []
        assert one.devices == {device: True}


@virtual
@pytest.mark.parametrize("restarts", [False, True])
async def test_administrative_access_neither_evicts_its_pod_nor_keeps_the_device(
    *, restarts: bool, tmp_path: Path
) -> None:
    """The kubelet lists the device for both pods; which claim does not hold it, the record tells."""
    async with dra_site(tmp_path, USB0, used=EVICTING) as one:
        device = await one.claim("p")
        await one.claim("x", administers=device)
        if restarts:
            await one.restart()
            await asyncio.sleep(30)
        one.host.unplug(USB0)
        await asyncio.sleep(60)
        assert one.evicted == ["p"]
        assert one.devices == {}
        one.host.plug("0001", USB1, serial="S0")
        await asyncio.sleep(10)
        assert one.devices == {device: False}
        assert one.devnodes() == [USB1]


@virtual
async def test_a_pod_that_holds_the_device_by_another_claim_is_evicted(tmp_path: Path) -> None:
    """Whatever else it has for administrative access."""
    async with dra_site(tmp_path, USB0, used=EVICTING) as one:
        device = await one.claim("p")
        await one.claim("x", "p", administers=device, claims=frozenset({"p", "x"}))
        one.host.unplug(USB0)
        await asyncio.sleep(60)
        assert one.evicted == ["p"]
        assert one.devices == {}


@virtual
async def test_a_stick_that_returns_under_another_number_evicts_no_pod_with_administrative_access(
    tmp_path: Path,
) -> None:
    """Its file is dead too, but no other pod waits for its end."""
    async with dra_site(tmp_path, USB0, used=EVICTING) as one:
        device, started = await one.claim("p"), (Container(name="c", started=1),)
        await one.claim("x", administers=device, containers=started)
        one.host.unplug(USB0)
        await asyncio.sleep(1)
        one.host.plug("0001", "/dev/ttyUSB7", serial="S0")
        await asyncio.sleep(60)
        assert one.evicted == []


@virtual
async def test_nobody_is_evicted_before_the_record_of_the_claims_is_read(tmp_path: Path) -> None:
    """Which claim holds the device, and which tolerates its loss, only the record tells."""
    async with dra_site(tmp_path, USB0, USB1, used=EVICTING) as one:
        await one.claim("x", administers=await one.claim("p"))
        await one.claim("q", tolerations=(TOLERATION,))
        await one.kill()
        aside = one.record.rename(one.record.with_suffix(".aside"))
        one.record.symlink_to(one.record)
        one.start(one.used)
        await asyncio.sleep(30)
        for devnode in (USB0, USB1):
            one.host.unplug(devnode)
        await asyncio.sleep(120)
        assert one.evicted == []
        one.record.unlink()
        aside.rename(one.record)
        await asyncio.sleep(330)
        assert one.evicted == ["p"]


@virtual
async def test_a_successor_with_another_stick_is_not_evicted(tmp_path: Path) -> None:
    """Nor is one that gets the stick once it has returned."""
    async with dra_site(tmp_path, USB0, USB1, used=EVICTING) as one:
        await one.claim("p")
        one.host.unplug(USB0)
        await asyncio.sleep(60)
        assert one.evicted == ["p"]
        await one.claim("p")
        one.host.plug("0001", USB0, serial="S0")
        await asyncio.sleep(10)
        await one.claim("q")
        await asyncio.sleep(120)
        assert one.evicted == ["p"]


@virtual
async def test_a_stick_that_returns_under_another_number_ends_the_container_with_the_dead_file(tmp_path: Path) -> None:
    """In every way of publishing."""
    async with dra_site(tmp_path, USB0, used=EVICTING) as one:
        await one.claim("p", containers=(Container(name="c", started=1),))
        one.host.unplug(USB0)
        await asyncio.sleep(1)
        one.host.plug("0001", "/dev/ttyUSB7", serial="S0")
        await asyncio.sleep(60)
        assert one.evicted == ["p"]
        assert [line.fields["reason"] for line in one.log.of("pod.evicted")] == ["replugged"]


@pytest.mark.parametrize("at", [1, 35], ids=["started before it was plugged", "started beside it"])
@virtual
async def test_a_spare_that_takes_over_the_id_of_a_stick_ends_the_container_with_the_dead_file(
    at: int, tmp_path: Path
) -> None:
    """It has the same serial, was plugged before the stick was pulled, and udev finished it after that."""
    async with dra_site(tmp_path, USB0, used=EVICTING) as one:
        device = await one.claim("p", containers=(Container(name="c", started=EPOCH + at),))
        one.host.plug("0001", USB1, serial="S0", record=False)
        await asyncio.sleep(9)
        one.host.unplug(USB0)
        await asyncio.sleep(0.5)
        one.host.finish(USB1)
        await asyncio.sleep(1)
        assert one.devices == {device: False}
        assert one.devnodes() == [USB1]
        await asyncio.sleep(60)
        assert one.evicted == ["p"]
        assert [line.fields["reason"] for line in one.log.of("pod.evicted")] == ["replugged"]


# -- changes of the way


@virtual
async def test_from_the_status_of_the_node_the_slice_waits_for_the_pods(tmp_path: Path) -> None:
    """The allocator knows nothing of them."""
    async with dra_site(tmp_path, USB0, used=config("nodeStatus")) as one:
        one.workload.run(pod("p"))
        one.use(config())
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ZERO
        assert one.devices == {}
        assert "waits for the end of home/p" in one.waits()
        assert "nodeStatus to dra" in one.ready()[1]
        await one.end("p")
        await asyncio.sleep(20)
        assert list(one.devices.values()) == [False]
        assert one.ready() == (True, "ok")


@virtual
async def test_nothing_is_offered_while_the_node_shows_a_figure(tmp_path: Path) -> None:
    """The figure wins over the slice, and a pod that it lets be bound would run without its device, or beside another on one stick."""
    async with dra_site(tmp_path, USB0, used=config("nodeStatus")) as one:
        one.server.refused = {ZIGBEE: Refused("a policy forbids it (422)")}
        one.use(config())
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ("1", "1")
        assert one.devices == {}
        one.server.refused = {}
        await asyncio.sleep(70)
        assert one.server.shows(ZIGBEE) == ZERO
        assert list(one.devices.values()) == [False]


@virtual
async def test_another_resource_that_is_published_so_takes_no_device_from_a_claim(tmp_path: Path) -> None:
    """Nor for the moment in which the pods are listed, in which a container may start again."""
    more = f"- {{name: {ZWAVE}, match: [{{vendor: '0002'}}], publish: dra}}\n"
    async with dra_site(tmp_path, USB0) as one:
        await one.claim("p")
        files = list((tmp_path / "cdi").iterdir())
        numbers = [file.stat().st_ino for file in files]
        one.workload.latency = 0.3
        one.use(config(more=more))
        await asyncio.sleep(0.1)
        assert one.devnodes() == [USB0]
        await asyncio.sleep(10)
        assert [file.stat().st_ino for file in files] == numbers


@virtual
async def test_to_the_status_of_the_node_the_figures_wait_for_the_claims(tmp_path: Path) -> None:
    """The pod names a claim, and no resource; nothing more is allocated meanwhile."""
    async with dra_site(tmp_path, USB0, USB1) as one:
        await one.claim("p")
        one.use(config("nodeStatus"))
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ZERO
        assert one.allocatable == frozenset()
        assert "waits for the end of home/p" in one.waits()
        assert one.devnodes() == [USB0]
        await one.end("p")
        await asyncio.sleep(20)
        assert one.server.shows(ZIGBEE) == ("2", "2")
        assert one.devices == {}
        assert one.ready() == (True, "ok")


@virtual
async def test_the_new_way_waits_for_administrative_access_too(tmp_path: Path) -> None:
    """Its pod has asked in the former way, and is to be made once more for the new one."""
    async with dra_site(tmp_path, USB0) as one:
        await one.claim("x", administers=min(one.allocatable))
        one.use(config("nodeStatus"))
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ZERO
        assert "waits for the end of home/x" in one.waits()
        assert one.devnodes() == [USB0]
        await one.end("x")
        await asyncio.sleep(20)
        assert one.server.shows(ZIGBEE) == ("1", "1")


@virtual
@pytest.mark.parametrize("way", ["nodeStatus", "devicePlugin"])
async def test_the_new_way_waits_until_the_slice_offers_nothing(way: str, tmp_path: Path) -> None:
    """A claim could get the stick that the new way gives to another pod."""
    async with dra_site(tmp_path, USB0) as one:
        one.objects.fail = lambda method, _path: Retry("timeout") if method in {"PUT", "DELETE"} else None
        one.use(config(way))
        for _ in range(60):
            await asyncio.sleep(1)
            assert one.server.shows(ZIGBEE)[1] == "0"
            assert one.allocatable
        assert "ResourceSlice" in one.ready()[1]
        one.objects.fail = lambda _method, _path: None
        await asyncio.sleep(330)
        assert one.server.shows(ZIGBEE) == ("1", "1")
        assert one.devices == {}
        assert one.ready() == (True, "ok")


@virtual
async def test_from_a_device_plugin_the_slice_waits_for_the_pods(tmp_path: Path) -> None:
    """They have the stick from the kubelet."""
    async with dra_site(tmp_path, USB0, used=config("devicePlugin")) as one:
        one.workload.run(pod("p"))
        one.use(config())
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ZERO
        assert not one.kubelet.streaming(ZIGBEE)
        assert one.devices == {}
        await one.end("p")
        await asyncio.sleep(20)
        assert list(one.devices.values()) == [False]
        assert one.server.shows(ZIGBEE) == ZERO


@virtual
@pytest.mark.parametrize("kubelet_restarts", [False, True])
async def test_the_kubelet_has_to_forget_a_plugin_also_where_the_devices_were_in_a_slice_meanwhile(
    *, kubelet_restarts: bool, tmp_path: Path
) -> None:
    """Until then it writes 0 at each of its syncs, and again what is removed; its start begins that time again."""
    async with dra_site(tmp_path, USB0, used=config("devicePlugin")) as one:
        one.use(config())
        changed = now()
        await asyncio.sleep(30)
        assert len(one.devices) == 1
        if kubelet_restarts:
            await asyncio.sleep(170)
            one.kubelet.kill()
            await asyncio.sleep(1)
            one.kubelet.start()
            changed = now()
            await asyncio.sleep(100)
        one.use(config("nodeStatus"))
        while now() < changed + 310:
            assert one.server.shows(ZIGBEE) == ZERO
            await asyncio.sleep(1)
        await asyncio.sleep(30)
        assert one.server.shows(ZIGBEE) == ("1", "1")


@virtual
async def test_a_resource_that_a_plugin_had_before_leaves_the_node_once_the_kubelet_has_forgotten_it(
    tmp_path: Path,
) -> None:
    """Its devices were in a slice last."""
    async with dra_site(tmp_path, USB0, used=config("devicePlugin")) as one:
        one.use(config())
        changed = now()
        await asyncio.sleep(30)
        one.use(config(name="a.io/other"))
        await asyncio.sleep(changed + 310 - now())
        assert one.server.shows(ZIGBEE) == ZERO
        await asyncio.sleep(30)
        assert one.server.shows(ZIGBEE) == (None, None)


@virtual
async def test_to_a_device_plugin_its_list_waits_for_the_claims(tmp_path: Path) -> None:
    """Otherwise the kubelet could give the stick to another pod."""
    async with dra_site(tmp_path, USB0) as one:
        await one.claim("p")
        one.use(config("devicePlugin"))
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ZERO
        assert not one.kubelet.streaming(ZIGBEE)
        assert one.allocatable == frozenset()
        await one.end("p")
        await asyncio.sleep(20)
        assert one.server.shows(ZIGBEE) == ("1", "1")
        assert one.devices == {}


@virtual
async def test_without_an_answer_of_the_kubelet_the_new_way_waits(tmp_path: Path) -> None:
    """A pod may have a claim of which nothing else tells."""
    async with dra_site(tmp_path, USB0) as one:
        await one.claim("p")
        one.kubelet.unheld = KubeletError("no folder")
        one.use(config("nodeStatus"))
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ZERO
        assert "no folder" in one.ready()[1]


@virtual
async def test_a_resource_that_is_renamed_does_not_offer_the_stick_of_a_claim(tmp_path: Path) -> None:
    """Under the new name it has another ID."""
    async with dra_site(tmp_path, USB0) as one:
        device = await one.claim("p")
        one.use(config(name="a.io/other"))
        await asyncio.sleep(60)
        assert one.allocatable == frozenset()
        assert "home/p" in str(one.waits()[-1])
        await one.end("p")
        await asyncio.sleep(20)
        assert len(one.devices) == 1
        assert device not in one.devices
        assert one.ready() == (True, "ok")


@virtual
@pytest.mark.parametrize("annotated", [True, False], ids=["", "someone removes the annotation"])
async def test_twins_keep_their_ids_while_their_resource_is_renamed_and_named_back(
    *, annotated: bool, tmp_path: Path
) -> None:
    """The claim has the one that came first; the annotation tells so, and the claim itself."""
    async with dra_site(tmp_path) as one:
        one.host.plug("0001", USB1, serial="T", port="usb-0:1:1.0")
        await asyncio.sleep(10)
        await one.claim("p")
        one.host.plug("0001", USB0, serial="T", port="usb-0:2:1.0")
        await asyncio.sleep(10)
        before = one.devices
        one.use(config(name="a.io/other"))
        await asyncio.sleep(1)
        if not annotated:
            one.server.annotate(None)
        one.use(config())
        await asyncio.sleep(60)
        assert one.devnodes() == [USB1]
        assert one.devices == before


@virtual
@pytest.mark.parametrize("way", ["dra", "nodeStatus"])
async def test_a_stick_that_a_claim_has_under_a_former_name_is_not_offered_within_its_grace(
    way: str, tmp_path: Path
) -> None:
    """It counts until that ends, and may be back before."""
    async with dra_site(tmp_path, USB0) as one:
        await one.claim("p")
        one.use(config(way, name="a.io/other"))
        await asyncio.sleep(60)
        one.host.unplug(USB0)
        for _ in range(30):
            await asyncio.sleep(0.1)
            assert one.allocatable == frozenset()
            assert one.server.shows("a.io/other") == ZERO


@virtual
async def test_a_restart_does_not_take_back_what_a_claim_has_under_the_new_name(tmp_path: Path) -> None:
    """The annotation still has both sticks under the former one, for the sake of the pod with the other stick."""
    async with dra_site(tmp_path, USB0, USB1) as one:
        await one.claim("p")
        one.use(config(name="a.io/other"))
        await asyncio.sleep(60)
        device = await one.claim("q")
        one.kubelet.unheld = KubeletError("no folder")
        await one.restart()
        for _ in range(60):
            await asyncio.sleep(1)
            assert one.devices == {device: False}
            assert one.devnodes() == [USB0, USB1]


@virtual
@pytest.mark.parametrize("running", [True, False], ids=["the same daemon", "the next daemon"])
async def test_a_stick_that_goes_to_a_resource_of_another_way_waits_for_the_slice(
    *, running: bool, tmp_path: Path
) -> None:
    """Until it is without the stick, a claim could get what the other resource counts."""
    async with dra_site(tmp_path, USB0) as one:
        one.objects.fail = lambda method, _path: Retry("timeout") if method in {"PUT", "DELETE"} else None
        used = config("nodeStatus", name="a.io/other")
        if running:
            one.use(used)
        else:
            await one.kill()
            one.used = used
            one.start(used)
        for _ in range(60):
            await asyncio.sleep(1)
            assert one.server.shows("a.io/other")[0] in {None, "0"}
            assert one.allocatable
        one.objects.fail = lambda _method, _path: None
        await asyncio.sleep(330)
        assert one.devices == {}
        assert one.server.shows("a.io/other") == ("1", "1")


# -- restarts


@virtual
async def test_the_next_daemon_has_the_ids_and_the_claims(tmp_path: Path) -> None:
    """The slice is not even written."""
    async with dra_site(tmp_path, USB0, USB1) as one:
        await one.claim("p")
        before, calls = one.devices, len(one.objects.calls)
        await one.restart()
        await asyncio.sleep(60)
        assert one.devices == before
        assert not [call for call in one.objects.calls[calls:] if call.method != "GET"]
        assert len(one.devnodes()) == 1


@virtual
async def test_without_the_annotation_the_record_keeps_the_ids_of_the_claims(tmp_path: Path) -> None:
    """A stick that is gone meanwhile stays as well, tainted."""
    async with dra_site(tmp_path, USB0) as one:
        device = await one.claim("p")
        await one.kill()
        one.server.annotate(None)
        one.host.unplug(USB0)
        one.start(one.used)
        await asyncio.sleep(60)
        assert one.devices == {device: True}
        one.host.plug("0001", "/dev/ttyUSB5", serial="S0")
        await asyncio.sleep(10)
        assert one.devices == {device: False}
        assert one.devnodes() == ["/dev/ttyUSB5"]


@virtual
async def test_a_claim_of_a_former_way_is_waited_for_after_a_restart(tmp_path: Path) -> None:
    """The annotation keeps the way, and the record the claim; without the annotation as well."""
    async with dra_site(tmp_path, USB0) as one:
        await one.claim("p")
        await one.kill()
        one.used = config("nodeStatus")
        one.start(one.used)
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ZERO
        await one.end("p")
        await asyncio.sleep(20)
        assert one.server.shows(ZIGBEE) == ("1", "1")
        assert not one.record.exists()


@pytest.mark.parametrize("more", ["", f"- {{name: {ZWAVE}, match: [{{vendor: '0002'}}], publish: dra}}\n"])
@virtual
async def test_what_a_former_daemon_offers_is_prepared_while_the_way_changes(more: str, tmp_path: Path) -> None:
    """The slice cannot be written yet, so the scheduler may allocate from it; else its pod would wait until it is deleted."""
    async with dra_site(tmp_path, USB0) as one:
        one.objects.fail = lambda method, _path: Retry("timeout") if method in {"PUT", "DELETE"} else None
        await one.kill()
        one.used = config("nodeStatus", more=more)
        one.start(one.used)
        await asyncio.sleep(10)
        await one.claim("p")
        assert one.devnodes() == [USB0]
        one.objects.fail = lambda _method, _path: None
        await asyncio.sleep(330)
        assert one.server.shows(ZIGBEE) == ZERO
        assert "home/p" in one.ready()[1]


@pytest.mark.parametrize("restarted", [False, True], ids=["", "the daemon starts again"])
@virtual
async def test_a_way_that_the_cluster_does_not_have_is_taken_back(restarted: bool, tmp_path: Path) -> None:  # noqa: FBT001 - of pytest
    """A server without the API has no slice by which the scheduler could still give the stick to a pod."""
    async with dra_site(tmp_path, USB0, used=config("nodeStatus")) as one:
        one.objects.served = False
        one.use(config())
        await asyncio.sleep(200)
        assert one.server.shows(ZIGBEE) == ZERO
        assert "does not serve resource.k8s.io/v1" in one.ready()[1]
        one.used = config("nodeStatus")
        if restarted:
            await one.restart()
        else:
            one.use(one.used)
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ("1", "1")
        assert one.ready() == (True, "ok")


@virtual
async def test_a_way_that_this_host_does_not_allow_is_taken_back(tmp_path: Path) -> None:
    """What is wrong with the folders of the driver is not reported any more."""
    async with dra_site(tmp_path, USB0, used=config("nodeStatus")) as one:
        (tmp_path / "plugins" / DRIVER).write_text("")
        one.use(config())
        await asyncio.sleep(200)
        assert "File exists" in one.ready()[1]
        one.use(config("nodeStatus"))
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ("1", "1")
        assert one.ready() == (True, "ok")


@virtual
async def test_what_a_driver_lacks_is_no_fault_once_nothing_needs_the_driver() -> None:
    """Such as a library; it is one for as long as a pod may have a claim of a former resource."""

    def connect() -> DriverApi:
        raise KubeletError("publish: dra needs a library")

    def build() -> DraParts:
        clock = Clock(now=now, unix=now, jitter=lambda: 0.5)
        telemetry = Telemetry(log=RecordingLog(), metrics=Metrics("0"), health=Health(sweep=10, last_cycle=0))
        objects = ObjectServer(clock=now)
        claims = ClaimDriver(
            connect,
            recorded=lambda: False,
            read=partial(read_claim, objects),
            pool=POOL,
            telemetry=telemetry,
            clock=clock,
        )
        slices = KubeSlices(server=objects, node="n")
        return DraParts(claims=claims, slices=ResourceSlices(slices, node="n", telemetry=telemetry, clock=clock))

    dra = Dra(build)
    for rules, former, fault in ((config().resources, False, True), ((), True, True), ((), False, False)):
        dra.configure(rules, former=former)
        assert dra.condition is not None
        assert bool(dra.condition.fault) == fault


@virtual
async def test_a_record_that_cannot_be_read_holds_every_lost_device(tmp_path: Path) -> None:
    """It is said, and the present devices are offered all the same."""
    async with dra_site(tmp_path, USB0, USB1) as one:
        await one.claim("p")
        await one.kill()
        aside = one.record.rename(one.record.with_suffix(".aside"))
        one.record.symlink_to(one.record)
        one.start(one.used)
        await asyncio.sleep(30)
        one.host.unplug(USB0)
        one.host.unplug(USB1)
        await asyncio.sleep(60)
        assert list(one.devices.values()) == [True, True]
        assert "claims.json" in one.ready()[1]
        one.record.unlink()
        aside.rename(one.record)
        await asyncio.sleep(60)
        assert list(one.devices.values()) == [True]


# -- claims that are not as the record says, and claims without a record


def bound(one: DraSite, name: str, device: str) -> ClaimReference:
    """Return a claim that is allocated, and whose pod is bound: the kubelet has not asked for it yet."""
    one.workload.run(pod(name, requests={}, claims=frozenset({name})))
    return one.allocate(name, device)


@virtual
async def test_a_claim_that_is_allocated_anew_while_no_daemon_runs_gives_back_its_former_device(tmp_path: Path) -> None:
    """Another claim may have that by now: no two files name one devnode."""
    async with dra_site(tmp_path, USB0, USB1) as one:
        first, second = sorted(one.allocatable)
        await one.claim("p")
        await one.kill()
        claims = one.allocate("p", second), bound(one, "q", first)
        one.start(one.used)
        await asyncio.sleep(5)
        assert one.devnodes() == []
        answers = await one.manager.prepare(*claims)
        assert [each.device_name for claim in claims for each in answers[claim.uid].devices] == [second, first]
        assert sorted(one.devnodes()) == [USB0, USB1]


@virtual
async def test_a_kubelet_that_has_lost_what_it_knew_gets_what_is_allocated_now(tmp_path: Path) -> None:
    """It never unprepares the claim that it has forgotten."""
    async with dra_site(tmp_path, USB0, USB1) as one:
        _, second = sorted(one.allocatable)
        await one.claim("p")
        await asyncio.sleep(60)
        claim = one.allocate("p", second)
        answers = await one.manager.prepare(claim)
        assert [each.device_name for each in answers[claim.uid].devices] == [second]
        assert one.devnodes() == [USB1]


@virtual
@pytest.mark.parametrize("used", [config("nodeStatus"), config("nodeStatus", name="example.com/other")])
async def test_a_pod_whose_claim_was_never_prepared_can_end_once_the_resource_is_published_so_no_more(
    used: Config, tmp_path: Path
) -> None:
    """The kubelet asks the driver for every claim of a pod that ends, whether or not it has prepared it."""
    async with dra_site(tmp_path, USB0) as one:
        claim = bound(one, "p", min(one.allocatable))
        one.use(used)
        await asyncio.sleep(60)
        assert (await one.manager.unprepare(claim))[claim.uid].error == ""


@virtual
async def test_a_pod_can_end_while_the_node_cannot_be_read(tmp_path: Path) -> None:
    """After half a minute without it, claims are unprepared; none is prepared, since the IDs of the devices are not known."""
    async with dra_site(tmp_path, USB0) as one:
        await one.claim("p")
        await one.kill()
        one.server.error = Forbidden("cannot patch nodes/status")
        one.start(one.used)
        await asyncio.sleep(60)
        new = one.allocate("q", "x")
        reason = "devwatch has not read the Node yet, which tells its devices apart"
        assert (await one.manager.prepare(new))[new.uid].error == reason
        claim = one.allocate("p", "x")
        assert (await one.manager.unprepare(claim))[claim.uid].error == ""
        assert one.devnodes() == []


@virtual
@pytest.mark.parametrize(("serial", "devnodes"), [("S0", [USB0]), ("OTHER", [])])
async def test_no_file_names_another_stick_while_the_api_server_is_away(
    serial: str, devnodes: list[str], tmp_path: Path
) -> None:
    """After a restart as well: the stick of the claim is known by its record, and containers that start again have it at once."""
    async with dra_site(tmp_path, USB0) as one:
        await one.claim("p")
        await one.kill()
        one.host.unplug(USB0)
        one.host.plug("0001", USB0, serial=serial)
        one.server.error = Retry("connection refused")
        one.objects.fail = lambda *_: Retry("connection refused")
        one.start(one.used)
        await asyncio.sleep(1)
        assert one.devnodes() == devnodes


@virtual
async def test_while_the_api_server_is_away_a_stick_in_another_socket_is_not_taken_for_that_of_a_claim(
    tmp_path: Path,
) -> None:
    """It may be a twin. The annotation of the Node tells."""
    async with dra_site(tmp_path, USB0) as one:
        await one.claim("p")
        await one.kill()
        one.host.unplug(USB0)
        one.host.plug("0001", USB1, serial="S0", port="usb-9")
        one.server.error = Retry("connection refused")
        one.start(one.used)
        await asyncio.sleep(5)
        assert one.devnodes() == []
        one.server.error = None
        await asyncio.sleep(20)
        assert one.devnodes() == [USB1]


@virtual
@pytest.mark.parametrize("how", ["tolerates", "administers"])
@pytest.mark.parametrize("what", ["damaged", "damaged before the last start", "removed"])
async def test_without_a_record_no_pod_is_evicted_that_is_to_be_spared(how: str, what: str, tmp_path: Path) -> None:
    """Whether the claim is one, the record alone would tell."""
    async with dra_site(tmp_path, USB0, used=EVICTING) as one:
        device = min(one.allocatable)
        await (one.claim("p", tolerations=(TOLERATION,)) if how == "tolerates" else one.claim("p", administers=device))
        await one.kill()
        if what == "removed":
            one.record.unlink()
        else:
            one.record.write_text("{")
        one.start(one.used)
        await asyncio.sleep(30)
        if what == "damaged before the last start":
            await one.restart()
            await asyncio.sleep(30)
        one.host.unplug(USB0)
        await asyncio.sleep(120)
        assert one.evicted == []
        (reason,) = {str(line["error"]) for line in one.refusals()}
        assert reason.startswith("the record of claims lacks home/")
        assert reason.endswith(": delete its pod if it does not work")


@virtual
async def test_without_a_record_a_pod_whose_claim_came_later_is_evicted(tmp_path: Path) -> None:
    """That another pod may be one to be spared is of no concern: it has another device."""
    async with dra_site(tmp_path, USB0, USB1, used=EVICTING) as one:
        await one.claim("before")
        (kept,) = one.devnodes()
        await one.kill()
        one.record.write_text("{")
        one.start(one.used)
        await asyncio.sleep(30)
        await one.claim("later")
        one.host.unplug(USB0 if kept == USB1 else USB1)
        await asyncio.sleep(60)
        assert one.evicted == ["later"]


@virtual
async def test_a_change_of_way_waits_for_a_claim_that_neither_record_nor_annotation_knows(tmp_path: Path) -> None:
    """It is one of more sticks than the annotation lists, and the record is damaged."""
    async with dra_site(tmp_path) as one:
        for number in range(18):
            one.host.plug("0001", f"/dev/ttyUSB{number + 10}", serial=f"S{number}", port=f"usb-0:{number}:1.0")
        await asyncio.sleep(40)
        unlisted = one.devices.keys() - {entry.id for entry in one.server.state.listing()[ZIGBEE]}
        await one.claim("p", device=min(unlisted))
        await one.kill()
        one.record.write_text("{")
        one.start(config("nodeStatus"))
        await asyncio.sleep(120)
        assert one.server.shows(ZIGBEE) == ZERO
        assert any("home/p" in str(why) for why in one.waits())


@virtual
@pytest.mark.parametrize("way", ["nodeStatus", "devicePlugin"])
async def test_a_pod_can_end_after_a_change_of_way_though_the_record_is_gone(way: str, tmp_path: Path) -> None:
    """The kubelet ends it only once the driver has answered, and the change waits for it."""
    async with dra_site(tmp_path, USB0) as one:
        await one.claim("p")
        await one.kill()
        one.record.unlink()
        one.start(config(way))
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ZERO
        await one.end("p")
        await asyncio.sleep(20)
        assert one.unended == frozenset()


@virtual
async def test_after_a_damaged_record_a_claim_for_others_devices_keeps_no_pod_from_its_eviction(tmp_path: Path) -> None:
    """It holds nothing of ours, whatever the record would say."""
    async with dra_site(tmp_path, USB0, used=EVICTING) as one:
        await one.kill()
        one.record.write_text("{")
        one.start(one.used)
        await asyncio.sleep(10)
        one.workload.run(pod("gpu", requests={}, claims=frozenset({"gpu"})))
        other = Holding(namespace="home", pod="gpu", container="c", resource=DRIVER, ids=frozenset(), claim="gpu")
        one.kubelet.held += (other,)
        await one.claim("p")
        one.host.unplug(USB0)
        await asyncio.sleep(60)
        assert one.evicted == ["p"]


@virtual
async def test_a_slice_whose_device_another_client_offers_to_several_claims_is_written_again(tmp_path: Path) -> None:
    """The scheduler would give one stick to several pods (`allowMultipleAllocations`)."""
    async with dra_site(tmp_path, USB0) as one:
        (item,) = one.objects.all(SLICES)
        item["spec"]["devices"][0]["allowMultipleAllocations"] = True
        one.objects.put(SLICES, item)
        await asyncio.sleep(1)
        ((device,),) = (item["spec"]["devices"] for item in one.objects.all(SLICES))
        assert "allowMultipleAllocations" not in device
