"""Who is evicted where the kubelet hands the devices over: exactly the pods that it names, and nobody is ambiguous."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from devwatch.config.schema import parse
from devwatch.core.errors import KubeletError
from devwatch.core.holders import Holding
from devwatch.core.pods import Container, Phase
from loop.test_deviceplugin import GRACE, USB0, USB1, USB2, Site, site
from support.build import ZIGBEE, ZWAVE
from support.fakes import EPOCH, date
from support.harness import now
from support.home import pod
from support.virtualtime import HOUR, virtual

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from devwatch.config.schema import Config
    from devwatch.core.pods import Pod


def evicting(after: str) -> Config:
    """Return a configuration that evicts so long after a loss."""
    rule = f"{{name: {ZIGBEE}, match: [{{vendor: '0001'}}], publish: devicePlugin, evict: {{after: {after}}}}}"
    return parse(f"resources:\n- {rule}\n".encode(), file="config.yaml")


EVICTING = evicting("5s")


def id_of(one: Site, devnode: str) -> str:
    """Return the ID of the device that has a devnode now."""
    return next(name for name, target in one.kubelet.links.made.items() if target == devnode)


def holds(one: Site, name: str, *ids: str, container: str = "c") -> Holding:
    """Let the kubelet say that a pod has devices."""
    holding = Holding(namespace="home", pod=name, container=container, resource=ZIGBEE, ids=frozenset(ids))
    one.kubelet.held = (*one.kubelet.held, holding)
    return holding


def evicted(one: Site) -> list[object]:
    """Return the pods that were evicted, as the log names them."""
    return [line.fields["pod"] for line in one.log.of("pod.evicted")]


@contextlib.asynccontextmanager
async def two_holders(serial: str = "") -> AsyncIterator[Site]:
    """Have two sticks with a pod each: `a` has the first, `b` the second, which came first. With a `serial` they are twins."""
    async with site(used=EVICTING) as one:
        for devnode in (USB1, USB0):
            one.host.plug("0001", devnode, serial=serial or f"S{devnode[-1]}", port=f"usb-0:{devnode[-1]}:1.0")
            await asyncio.sleep(10)
        for name, devnode in (("a", USB0), ("b", USB1)):
            one.workload.run(pod(name, containers=(Container(name="c", started=EPOCH + 1),)))
            holds(one, name, id_of(one, devnode))
        yield one


@virtual
async def test_the_holder_of_a_lost_device_is_evicted_and_no_other_pod() -> None:
    """No volume tells who it is: the kubelet does."""
    async with two_holders() as one:
        one.host.unplug(USB1)
        await asyncio.sleep(30)
        assert evicted(one) == ["home/b"]


@virtual
async def test_the_holder_of_a_lost_twin_is_evicted_and_not_that_of_the_other_after_the_resource_was_away() -> None:
    """It left the configuration, and came back: the twins have the IDs that the pods were given."""
    async with two_holders(serial="T") as one:
        one.use(renamed())
        await asyncio.sleep(1)
        one.use(EVICTING)
        await asyncio.sleep(60)
        one.host.unplug(USB0)
        await asyncio.sleep(60)
        assert evicted(one) == ["home/a"]


@virtual
async def test_who_is_given_a_lost_device_before_the_kubelet_has_taken_over_its_loss_is_evicted_too() -> None:
    """Until then it is open which pod will have it, so the holders are not read."""
    async with site(USB0, used=evicting("0s")) as one:
        stick, one.kubelet.latency = id_of(one, USB0), 0.8
        one.host.unplug(USB0)
        await asyncio.sleep(GRACE + 0.5)
        one.workload.run(pod("late", containers=(Container(name="c", started=EPOCH + 1),)))
        holds(one, "late", stick)
        await asyncio.sleep(60)
        assert evicted(one) == ["home/late"]


@virtual
async def test_nobody_is_evicted_while_the_kubelet_does_not_account_for_every_pod() -> None:
    """After its start it answers with nothing for a while."""
    async with two_holders() as one:
        before, one.kubelet.held = one.kubelet.held, ()
        one.host.unplug(USB1)
        await asyncio.sleep(60)
        assert evicted(one) == []
        one.kubelet.held = before
        await asyncio.sleep(60)
        assert evicted(one) == ["home/b"]


@virtual
async def test_a_pod_that_the_kubelet_never_accounts_for_keeps_no_holder_from_being_evicted() -> None:
    """It has had its stick in an init container alone, which the kubelet does not list. The lost one is that of another pod."""
    async with two_holders() as one:
        one.workload.run(pod("init"))
        one.host.unplug(USB1)
        await asyncio.sleep(30)
        assert evicted(one) == ["home/b"]


@virtual
async def test_a_lost_device_whose_holder_is_unknown_keeps_no_holder_of_another_from_being_evicted() -> None:
    """Both were pulled at once. A third pod may have the second stick, since the kubelet never accounts for that pod."""
    async with site(USB0, USB1, used=EVICTING) as one:
        one.workload.run(pod("a", containers=(Container(name="c", started=EPOCH + 1),)), pod("init"))
        holds(one, "a", id_of(one, USB0))
        for devnode in (USB0, USB1):
            one.host.unplug(devnode)
        await asyncio.sleep(30)
        assert evicted(one) == ["home/a"]
        assert one.server.shows(ZIGBEE) == ("2", "0")


@virtual
async def test_a_kubelet_that_does_not_answer_is_asked_again() -> None:
    """One line says so."""
    async with two_holders() as one:
        one.kubelet.unheld = KubeletError("no folder")
        one.host.unplug(USB1)
        await asyncio.sleep(60)
        assert evicted(one) == []
        assert "no folder" in {line.fields.get("error") for line in one.log.of("pod.eviction_refused")}
        one.kubelet.unheld = None
        await asyncio.sleep(60)
        assert evicted(one) == ["home/b"]


@virtual
@pytest.mark.parametrize("seconds", [0.5, 1.1, 1.5])
async def test_a_kubelet_that_answers_slowly_puts_off_no_eviction(seconds: float) -> None:
    """Neither of the lost device, which is read of again and again meanwhile, nor of one that the kubelet knows nothing of."""
    first = f"- {{name: {ZIGBEE}, match: [{{vendor: '0001'}}], publish: devicePlugin, evict: {{after: 5s}}}}\n"
    second = f"- {{name: {ZWAVE}, match: [{{vendor: '0002'}}], evict: {{after: 5s}}}}\n"
    async with site(USB0, used=parse(f"resources:\n{first}{second}".encode(), file="config.yaml")) as one:
        one.host.plug("0002", USB1, serial="S1")
        await asyncio.sleep(10)
        one.workload.run(pod("kept", owner=""), pod("a"), pod("b", resource=ZWAVE))
        for name in ("kept", "a"):
            holds(one, name, id_of(one, USB0))
        one.kubelet.reading = seconds
        one.host.unplug(USB0)
        await asyncio.sleep(30)
        assert evicted(one) == ["home/a"]
        one.host.unplug(USB1)
        await asyncio.sleep(30)
        assert evicted(one) == ["home/a", "home/b"]


@pytest.mark.parametrize("seconds", [0.5, 1.5])
@virtual
async def test_a_contact_that_bounces_puts_off_no_eviction_while_the_kubelet_answers_slowly(seconds: float) -> None:
    """Each departure makes a reading due, and another device is absent all the time."""
    first = f"- {{name: {ZIGBEE}, match: [{{vendor: '0001'}}], publish: devicePlugin}}\n"
    second = f"- {{name: {ZWAVE}, match: [{{vendor: '0002'}}], evict: {{after: 5s}}}}\n"
    async with site(USB0, USB2, used=parse(f"resources:\n{first}{second}".encode(), file="config.yaml")) as one:
        one.host.plug("0002", USB1, serial="S1")
        await asyncio.sleep(10)
        one.workload.run(pod("kept", owner=""), pod("b", resource=ZWAVE))
        holds(one, "kept", id_of(one, USB0))
        one.kubelet.reading = seconds
        for devnode in (USB0, USB1):
            one.host.unplug(devnode)
        for _ in range(100):
            one.host.unplug(USB2)
            await asyncio.sleep(0.2)
            one.host.plug("0001", USB2, serial="S2")
            await asyncio.sleep(0.2)
        assert evicted(one) == ["home/b"]


@virtual
async def test_a_contact_that_bounces_lists_the_pods_once_a_second_at_most() -> None:
    """Another device is lost, and a pod is not accounted for: so a list belongs to each reading."""
    async with site(USB0, USB1) as one:
        one.workload.run(pod("init"), pod("b"))
        holds(one, "b", id_of(one, USB1))
        one.host.unplug(USB0)
        await asyncio.sleep(300)
        one.workload.lists.clear()
        for _ in range(200):
            one.host.unplug(USB1)
            await asyncio.sleep(0.15)
            one.host.plug("0001", USB1, serial="S1")
            await asyncio.sleep(0.15)
        assert len(one.workload.lists) <= 61


@virtual
@pytest.mark.parametrize(
    ("started", "devices"),
    [
        pytest.param(False, {}, id="the kubelet has not taken it over"),
        pytest.param(True, {ZIGBEE: frozenset({"another"})}, id="its status names another device"),
    ],
)
async def test_a_pod_of_the_same_name_is_not_the_holder(*, started: bool, devices: dict[str, frozenset[str]]) -> None:
    """A StatefulSet makes the next pod of the name before the kubelet has forgotten the former one."""
    async with two_holders() as one:
        holder = next(each for each in one.workload.running if each.name == "b")
        one.workload.end("home/b")
        one.workload.run(replace(holder, uid="next", started=started, devices=devices))
        one.host.unplug(USB1)
        await asyncio.sleep(60)
        assert evicted(one) == []


@virtual
async def test_of_two_sticks_that_may_be_the_one_of_a_former_daemon_neither_is_and_nobody_is_evicted() -> None:
    """Both have its serial, and neither is in its socket: both get new IDs, and its own stays held until its pod has ended."""
    async with site(USB0, used=EVICTING, before=lambda one: one.host.change(USB0, serial="S")) as one:
        given = id_of(one, USB0)
        one.workload.run(pod("a", containers=(Container(name="c", started=EPOCH + 1),)))
        holds(one, "a", given)
        await one.kill()
        one.host.unplug(USB0)
        for devnode in (USB1, USB2):
            one.host.plug("0001", devnode, serial="S")
        one.start(EVICTING)
        for _ in range(2):  # the next daemon knows no more
            await asyncio.sleep(60)
            assert one.taken.unhealthy == {given}
            assert len(one.taken.healthy) == 2
            await one.kill()
            one.start(EVICTING)
        one.workload.end("home/a")
        one.kubelet.held = ()
        await asyncio.sleep(60)
        assert evicted(one) == []
        one.check_agreement(2)
        assert given not in str(one.server.state.annotation)


@virtual
async def test_the_holder_of_a_stick_that_only_uncertain_scans_have_found_is_evicted_too() -> None:
    """The kubelet has given it to a pod all the same; by the first certain scan it is gone."""
    async with site(used=EVICTING) as one:
        one.host.doubts, one.host.partly = ("stat of another devnode: EACCES",), True
        one.host.plug("0001", USB0, serial="S")
        await asyncio.sleep(15)
        one.workload.run(pod("a", containers=(Container(name="c", started=EPOCH + 1),)))
        holds(one, "a", id_of(one, USB0))
        one.host.unplug(USB0)
        await asyncio.sleep(15)
        one.host.doubts = ()
        await asyncio.sleep(30)
        assert evicted(one) == ["home/a"]


@virtual
async def test_a_lost_device_keeps_its_place_while_a_bare_pod_has_it() -> None:
    """It blocks one unit, and the pod is told."""
    async with site(USB0, used=EVICTING) as one:
        one.workload.run(pod("bare", owner=""))
        holds(one, "bare", id_of(one, USB0))
        one.host.unplug(USB0)
        await asyncio.sleep(600)
        assert evicted(one) == []
        assert one.server.shows(ZIGBEE) == ("1", "0")
        assert "bare" in str(one.log.of("pod.eviction_refused")[0].fields["reason"])


@virtual
@pytest.mark.parametrize("missing", ["permission", "folder"])
async def test_a_lost_device_of_which_nothing_is_known_stays_and_the_log_says_why(missing: str) -> None:
    """No pod has it, but that takes a list of pods and a reading of the kubelet: without one of them the line names the cure."""
    async with site(USB0) as one:
        if missing == "permission":
            one.workload.rights.discard("list pods")
        else:
            one.kubelet.unheld = KubeletError("kubelet.sock: No such file or directory", hint="name the folder")
        one.host.unplug(USB0)
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ("1", "0")
        lines = one.log.of("count.held")
        assert lines[0].fields["resource"] == ZIGBEE
        assert str(lines[0].fields["reason"]).startswith("a device is gone, and whether a pod has it is unknown: ")
        assert lines[0].fields["hint"]
        assert len(lines) < 8
        one.workload.rights.add("list pods")
        one.kubelet.unheld = None
        await asyncio.sleep(5)
        assert one.server.shows(ZIGBEE) == ("0", "0")


@virtual
async def test_a_kubelet_that_cannot_be_asked_for_a_moment_is_not_reported() -> None:
    """It starts again, say."""
    async with site(USB0) as one:
        one.kubelet.unheld = KubeletError("kubelet.sock: Connection refused")
        one.host.unplug(USB0)
        await asyncio.sleep(8)
        one.kubelet.unheld = None
        await asyncio.sleep(60)
        assert one.server.shows(ZIGBEE) == ("0", "0")
        assert one.log.of("count.held") == []


def with_container(one: Site, **fields: object) -> Pod:
    """Run a pod with one container, which has the stick."""
    own: dict[str, object] = {"name": "c", "started": EPOCH + int(now())} | fields
    made = pod("p", containers=(Container(**own), Container(name="other", started=EPOCH + 1)))  # type: ignore[arg-type]  # as above
    one.workload.run(made)
    holds(one, "p", id_of(one, USB0))
    return made


@virtual
@pytest.mark.parametrize(
    ("fields", "gone"),
    [
        pytest.param({}, ["home/p"], id="it has a dead file"),
        pytest.param({"started": None}, [], id="nothing says when it started"),
        pytest.param({"started": None, "phase": Phase.WAITING}, [], id="it is about to start"),
        pytest.param({"phase": Phase.FINISHED}, [], id="it has ended"),
        pytest.param({"started": 4_000_000_000}, [], id="it has started since"),
    ],
)
async def test_a_return_under_another_number_is_judged_by_the_container_that_has_the_device(
    fields: dict[str, object], gone: list[str]
) -> None:
    """The kubelet tells which it is; what others of the pod do is no matter."""
    async with site(USB0, used=EVICTING) as one:
        with_container(one, **fields)
        await asyncio.sleep(5)
        one.host.unplug(USB0)
        await asyncio.sleep(1)
        one.host.plug("0001", USB2, serial="S0")
        await asyncio.sleep(30)
        assert evicted(one) == gone


@virtual
async def test_a_return_under_the_same_number_ends_nobody() -> None:
    """The file of the container opens the device again."""
    async with site(USB0, used=EVICTING) as one:
        with_container(one)
        one.host.unplug(USB0)
        await asyncio.sleep(1)
        one.host.plug("0001", USB0, serial="S0", number=1)
        await asyncio.sleep(30)
        assert evicted(one) == []


@virtual
async def test_the_end_of_the_daemon_waits_until_nothing_is_allocatable() -> None:
    """A pod that is bound after the end of the stream would fail for good. A second signal does not wait."""
    async with site(USB0) as one:
        ended: list[float] = []
        assert one.running is not None
        one.server.latency = 0.3
        one.running.end(lambda: ended.append(asyncio.get_running_loop().time()))
        await asyncio.sleep(0.1)
        assert ended == []
        one.running.end(lambda: ended.append(-1))
        assert ended == [-1]
        await asyncio.sleep(0.5)
        assert one.server.shows(ZIGBEE) == ("1", "0")
        assert len(ended) == 2


@virtual
async def test_the_end_of_the_daemon_waits_a_second_at_most() -> None:
    """Whatever the API server does."""
    async with site(USB0) as one:
        ended: list[float] = []
        assert one.running is not None
        one.server.latency = 100
        began = asyncio.get_running_loop().time()
        one.running.end(lambda: ended.append(asyncio.get_running_loop().time()))
        await asyncio.sleep(1.5)
        assert ended[0] == pytest.approx(began + 1)


@virtual
async def test_a_stick_that_a_pod_has_is_not_offered_under_another_name() -> None:
    """A changed configuration gives it to another resource: two pods would open it."""
    other = f"- {{name: {ZWAVE}, match: [{{serial: S0}}], publish: devicePlugin}}\n"
    first = f"- {{name: {ZIGBEE}, match: [{{vendor: '0001'}}], publish: devicePlugin}}\n"
    async with site(USB0, used=parse(f"resources:\n{first}".encode(), file="config.yaml")) as one:
        one.workload.run(pod("p"))
        holds(one, "p", id_of(one, USB0))
        one.use(parse(f"resources:\n{other}{first}".encode(), file="config.yaml"))
        await asyncio.sleep(60)
        assert one.server.shows(ZWAVE) == ("0", "0")
        one.workload.end("home/p")
        one.kubelet.held = ()
        await asyncio.sleep(60)
        assert one.server.shows(ZWAVE) == ("1", "1")


@virtual
async def test_a_stick_that_is_away_counts_after_a_restart_beside_one_that_is_withheld() -> None:
    """The Node's own figure lacks that one already, and a pod that is admitted by it in the grace would fail at 0."""

    def used(serial: str) -> Config:
        first = f"- {{name: {ZWAVE}, match: [{{vendor: '0001', serial: '{serial}'}}], publish: devicePlugin}}\n"
        second = f"- {{name: {ZIGBEE}, match: [{{vendor: '0001'}}]}}\n"
        return parse(f"resources:\n{first}{second}".encode(), file="config.yaml")

    async with site(USB0, USB1, used=used("S1")) as one:
        (name,) = one.kubelet.links.made
        one.workload.run(pod("p", resource=ZWAVE))
        held = Holding(namespace="home", pod="p", container="c", resource=ZWAVE, ids=frozenset({name}))
        one.kubelet.held = (held,)
        one.use(used("none"))
        await asyncio.sleep(30)
        assert one.server.shows(ZIGBEE) == ("1", "1")
        await one.kill()
        one.host.unplug(USB0)
        one.start(used("none"))
        await asyncio.sleep(9)
        assert one.server.shows(ZIGBEE) == ("1", "1")
        await asyncio.sleep(3)
        assert one.server.shows(ZIGBEE) == ("0", "0")


@virtual
async def test_a_lost_device_is_not_offered_after_a_restart() -> None:
    """The Node's own figure counts what can be used; a pod that is bound to it would wait for a stick that is away."""
    async with site(USB0, USB1) as one:
        one.workload.run(pod("b"))
        holds(one, "b", id_of(one, USB1))
        one.host.unplug(USB1)
        await asyncio.sleep(20)
        assert one.server.shows(ZIGBEE) == ("2", "1")
        await one.kill()
        one.forget()
        one.start(one.settings_now)
        await asyncio.sleep(30)
        assert one.server.shows(ZIGBEE) == ("2", "1")
        assert {count for _, count in one.patches()} <= {None}


@virtual
async def test_a_lost_device_is_not_offered_while_scans_are_uncertain() -> None:
    """Nor is its link made again: by now another stick may have its devnode."""
    async with site(USB0, USB1) as one:
        one.workload.run(pod("b"))
        holds(one, "b", id_of(one, USB1))
        one.host.unplug(USB1)
        await asyncio.sleep(20)
        one.forget()
        one.host.doubts = ("no spare file descriptor",)
        one.host.wake("uevent")
        await asyncio.sleep(30)
        assert one.server.shows(ZIGBEE) == ("2", "1")
        assert list(one.kubelet.links.made.values()) == [USB0]
        assert one.lists() == []


@virtual
async def test_a_stick_whose_socket_is_unknown_after_a_restart_is_not_offered_under_another_id() -> None:
    """Without a serial the socket is its identity, which only udev's record tells; a pod may have the stick."""
    async with site() as one:
        one.host.plug("0001", USB0)
        one.host.change(USB0, port="pci-0000:00:14.0-usb-0:1:1.0")
        await asyncio.sleep(5)
        ids = one.taken.healthy
        one.workload.run(pod("p"))
        holds(one, "p", *ids)
        await one.kill()
        one.host.change(USB0, port=None, properties=None)
        one.start(one.settings_now)
        await asyncio.sleep(60)
        assert one.taken.ids == ids
        one.host.change(USB0, port="pci-0000:00:14.0-usb-0:1:1.0", properties={})
        await asyncio.sleep(5)
        one.check_agreement(1)
        assert one.taken.healthy == ids


@virtual
async def test_a_stick_whose_link_could_not_be_made_is_not_offered_once_it_is_pulled() -> None:
    """Its grace is that of a device that a pod may have."""
    async with site(USB0) as one:
        one.kubelet.links.error = KubeletError("/links/x: No space left on device")
        one.host.plug("0001", USB1, serial="S1")
        await asyncio.sleep(5)
        one.forget()
        one.host.unplug(USB1)
        await asyncio.sleep(GRACE + 5)
        assert one.lists() == []


@virtual
async def test_another_stick_in_the_socket_of_the_lost_one_is_not_that_one() -> None:
    """It has a serial, and an ID of its own: who holds the former one, which has none, is evicted."""
    async with site(used=EVICTING) as one:
        one.host.plug("0001", USB0)
        await asyncio.sleep(5)
        one.workload.run(pod("p"))
        holds(one, "p", id_of(one, USB0))
        one.host.unplug(USB0)
        await asyncio.sleep(2.5)
        one.host.plug("0001", USB0, serial="S0")
        await asyncio.sleep(30)
        assert evicted(one) == ["home/p"]


@virtual
async def test_after_a_restart_a_stick_that_is_known_by_its_id_is_not_the_lost_one_whose_devnode_it_has() -> None:
    """Both are of one model, and one of them has gone while no daemon ran."""
    async with two_holders() as one:
        await one.kill()
        one.host.unplug(USB1)
        one.host.unplug(USB0)
        one.host.plug("0001", USB1, serial="S0", number=1)
        one.start(EVICTING)
        await asyncio.sleep(60)
        assert evicted(one) == ["home/b"]


@virtual
async def test_a_reading_from_before_a_device_was_pulled_does_not_tell_who_has_it() -> None:
    """The kubelet has given it to a pod since, and does not answer now: the device stays listed as lost."""
    async with site(USB0, USB1) as one:
        for name, devnode in (("a", USB0), ("b", USB1)):
            one.workload.run(pod(name))
            if name == "a":
                holds(one, name, id_of(one, devnode))
        late = id_of(one, USB1)
        one.host.unplug(USB0)
        await asyncio.sleep(10)
        one.kubelet.hanging = True
        holds(one, "b", late)
        one.host.unplug(USB1)
        await asyncio.sleep(10)
        assert one.server.shows(ZIGBEE) == ("2", "0")


@virtual
async def test_a_reading_from_before_a_device_was_pulled_does_not_tell_who_has_it_without_a_grace_either() -> None:
    """Another stick was away at that time, and the kubelet has given this one to a pod since."""
    used = f"- {{name: {ZIGBEE}, match: [{{vendor: '0001'}}], publish: devicePlugin, removalGrace: 0s}}\n"
    async with site(USB0, USB1, USB2, used=parse(f"resources:\n{used}".encode(), file="config.yaml")) as one:
        lost, late = id_of(one, USB0), id_of(one, USB1)
        one.workload.run(pod("a"))
        holds(one, "a", lost)
        one.host.unplug(USB2)
        one.host.unplug(USB0)
        await asyncio.sleep(10.5)
        one.workload.run(pod("b"))
        holds(one, "b", late)
        one.host.unplug(USB1)
        await asyncio.sleep(0.1)
        assert one.taken.unhealthy == {lost, late}


def renamed(publish: str = "devicePlugin") -> Config:
    """Return a configuration in which the stick has another name."""
    return parse(
        f"resources:\n- {{name: {ZWAVE}, match: [{{vendor: '0001'}}], publish: {publish}}}\n".encode(),
        file="config.yaml",
    )


@virtual
@pytest.mark.parametrize("publish", ["devicePlugin", "nodeStatus"])
@pytest.mark.parametrize("restarted", [False, True], ids=["", "the daemon starts again"])
async def test_a_stick_that_a_pod_has_under_a_former_name_is_not_offered_under_the_new_one(
    publish: str, *, restarted: bool
) -> None:
    """For as long as the pod lives, which may be days; a stick that no pod has is offered at once."""
    async with site(USB0, USB1) as one:
        one.workload.run(pod("p"))
        held = holds(one, "p", id_of(one, USB0))
        one.use(renamed(publish))
        await asyncio.sleep(20)
        if restarted:
            await one.restart()
        await asyncio.sleep(HOUR)
        assert one.server.shows(ZWAVE) == ("1", "1")
        assert one.server.shows(ZIGBEE) == ("0", "0")
        assert "home/p" in one.ready()[1]
        assert ZIGBEE in one.ready()[1]
        (line,) = {str(line.fields) for line in one.log.of("count.held")}
        assert "home/p" in line
        one.workload.end("home/p")
        one.kubelet.held = tuple(each for each in one.kubelet.held if each != held)
        await asyncio.sleep(10)
        assert one.server.shows(ZWAVE) == ("2", "2")
        await asyncio.sleep(400)
        assert one.server.shows(ZIGBEE) == (None, None)
        assert one.ready() == (True, "ok")


@virtual
async def test_a_stick_that_a_pod_has_under_a_former_name_stops_no_eviction_of_its_new_resource() -> None:
    """Its pod may have it for days: the Node shows one device less than is present until then."""
    former = f"- {{name: {ZIGBEE}, match: [{{vendor: '0001'}}], publish: devicePlugin}}\n"
    new = f"- {{name: {ZWAVE}, match: [{{vendor: '0002'}}], evict: {{after: 5s}}}}\n"
    async with site(USB0, used=parse(f"resources:\n{new}{former}".encode(), file="config.yaml")) as one:
        one.host.plug("0002", USB1, serial="S1")
        await asyncio.sleep(10)
        named = pod("named", resource=ZWAVE, paths=(USB1,))
        one.workload.run(pod("bare", owner=""), named, pod("other", resource=ZWAVE, paths=(USB2,)))
        holds(one, "bare", id_of(one, USB0))
        moved = new.replace("{vendor: '0002'}", "{vendor: '0002'}, {serial: S0}")
        one.use(parse(f"resources:\n{moved}{former}".encode(), file="config.yaml"))
        await asyncio.sleep(60)
        assert one.server.shows(ZWAVE) == ("1", "1")
        one.host.unplug(USB1)
        await asyncio.sleep(60)
        assert one.server.shows(ZWAVE) == ("0", "0")
        assert evicted(one) == ["home/named"]


@virtual
async def test_a_stick_that_went_to_another_resource_is_not_offered_after_a_restart_either() -> None:
    """Only the annotation tells the next daemon that the pod may have it."""
    first = f"- {{name: {ZIGBEE}, match: [{{vendor: '0001'}}], publish: devicePlugin}}\n"
    other = f"- {{name: {ZWAVE}, match: [{{serial: S0}}], publish: devicePlugin}}\n"
    async with site(USB0, used=parse(f"resources:\n{first}".encode(), file="config.yaml")) as one:
        one.workload.run(pod("p"))
        holds(one, "p", id_of(one, USB0))
        await one.kill()
        one.settings_now = parse(f"resources:\n{other}{first}".encode(), file="config.yaml")
        one.start(one.settings_now)
        await asyncio.sleep(60)
        assert one.server.shows(ZWAVE) == ("0", "0")
        await one.restart()
        await asyncio.sleep(60)
        assert one.server.shows(ZWAVE) == ("0", "0")
        one.workload.end("home/p")
        one.kubelet.held = ()
        await asyncio.sleep(60)
        assert one.server.shows(ZWAVE) == ("1", "1")


PART = f"- {{name: {ZIGBEE}, match: [{{vendor: '0001'}}], publish: devicePlugin}}\n"
WHOLE = f"- {{name: {ZWAVE}, match: [{{vendor: '0001', product: '0001'}}], subsystem: usb, publish: devicePlugin}}\n"


@virtual
@pytest.mark.parametrize("restarted", [False, True], ids=["", "the daemon starts again"])
@pytest.mark.parametrize("stays", [False, True], ids=["renamed", "moved to another resource"])
@pytest.mark.parametrize(("first", "then"), [(PART, WHOLE), (WHOLE, PART)], ids=["a part", "the whole"])
async def test_a_stick_of_which_a_pod_has_one_kind_of_devnode_is_not_offered_through_the_other(
    first: str, then: str, *, stays: bool, restarted: bool
) -> None:
    """A program that opens the whole device takes it away from the drivers of its parts."""
    former, new = (ZIGBEE, ZWAVE) if first == PART else (ZWAVE, ZIGBEE)
    async with site(used=parse(f"resources:\n{first}".encode(), file="config.yaml")) as one:
        one.host.plug("0001", USB0, serial="S", physical="/devices/x", port="usb-0:1:1.0")
        one.host.plug("0001", "/dev/bus/usb/001/005", physical="/devices/x", port="usb-0:1", subsystem="usb")
        await asyncio.sleep(10)
        (held,) = one.kubelet.links.made
        one.workload.run(pod("p", resource=former))
        one.kubelet.held = (replace(holds(one, "p", held), resource=former),)
        one.use(parse(f"resources:\n{then}{first if stays else ''}".encode(), file="config.yaml"))
        await asyncio.sleep(20)
        if restarted:
            await one.restart()
            await asyncio.sleep(20)
        assert one.server.shows(new) == ("0", "0")
        assert "home/p" in one.ready()[1]
        one.workload.end("home/p")
        one.kubelet.held = ()
        await asyncio.sleep(20)
        assert one.server.shows(new) == ("1", "1")


@virtual
@pytest.mark.parametrize("renaming", [True, False], ids=["renamed", "moved to another resource"])
async def test_a_stick_is_free_only_once_the_kubelet_cannot_give_it_away_under_its_former_name(
    *, renaming: bool
) -> None:
    """It has not taken over the list without the stick yet, and gives it to a pod that was bound before."""
    first = f"- {{name: {ZIGBEE}, match: [{{vendor: '0001'}}], publish: devicePlugin}}\n"
    other = f"- {{name: {ZWAVE}, match: [{{vendor: '0001'}}], publish: devicePlugin}}\n"
    async with site(USB0, used=parse(f"resources:\n{first}".encode(), file="config.yaml")) as one:
        name = id_of(one, USB0)
        one.kubelet.latency = 1.5
        one.use(parse(f"resources:\n{other}{'' if renaming else first}".encode(), file="config.yaml"))
        await asyncio.sleep(1)
        one.workload.run(pod("p"))
        holds(one, "p", name)
        await asyncio.sleep(600)
        assert one.server.shows(ZWAVE) == ("0", "0")


@virtual
async def test_a_renamed_stick_waits_while_it_is_unknown_whether_a_pod_has_it() -> None:
    """The kubelet does not say."""
    async with site(USB0) as one:
        one.kubelet.unheld = KubeletError("no folder")
        one.use(renamed())
        await asyncio.sleep(600)
        assert one.server.shows(ZWAVE) == ("0", "0")
        assert "may" in one.ready()[1]
        one.kubelet.unheld = None
        await asyncio.sleep(20)
        assert one.server.shows(ZWAVE) == ("1", "1")


@virtual
async def test_a_lost_device_that_a_pod_holds_is_marked_for_status_without_evict_as_well() -> None:
    """With the time since when it does not count, also after a restart; until it is back."""
    async with site(USB0, USB1) as one:
        one.workload.run(pod("b"))
        holds(one, "b", lost := id_of(one, USB1))
        pulled = now()
        one.host.unplug(USB1)
        await asyncio.sleep(20)
        marks = {entry.id: entry.lost for entry in one.server.state.listing()[ZIGBEE]}
        assert date(0) <= str(marks.pop(lost)) <= date(pulled + 3)
        assert set(marks.values()) == {None}
        before = one.server.state.annotation
        await one.restart()
        await asyncio.sleep(600)
        assert one.server.state.annotation == before
        one.host.plug("0001", USB2, serial="S1")
        await asyncio.sleep(5)
        assert [entry.lost for entry in one.server.state.listing()[ZIGBEE]] == [None, None]


# -- names that are exchanged


@virtual
async def test_a_stick_that_comes_back_with_the_registration_of_another_is_not_that_one() -> None:
    """The holder of the one that is gone is evicted for its loss, and the other for its dead file; `a` has the first, `b` the second."""
    async with two_holders() as one:
        first = one.host.take(USB0)
        one.host.take(USB1)
        await asyncio.sleep(0.5)
        one.host.put(replace(first, serial="S1", properties={"USEC_INITIALIZED": str(int(now() * 1e6))}))
        await asyncio.sleep(20)
        assert [(line.fields["pod"], line.fields["reason"]) for line in one.log.of("pod.evicted")] == [
            ("home/b", "replugged"),
            ("home/a", "lost"),
        ]


@contextlib.asynccontextmanager
async def holder_of_parts() -> AsyncIterator[Site]:
    """Have a stick of two ttys, and pod `a` that has had it from its start 5 s later."""
    async with site(used=EVICTING) as one:
        plug_parts(one, USB0, USB1)
        await asyncio.sleep(5)
        one.workload.run(pod("a", containers=(Container(name="c", started=int(EPOCH + now())),)))
        holds(one, "a", id_of(one, USB0))
        await asyncio.sleep(5)
        yield one


def plug_parts(one: Site, *devnodes: str) -> None:
    """Let the kernel register parts of the stick."""
    handled = {"USEC_INITIALIZED": str(int(now() * 1e6))}
    for devnode in devnodes:
        one.host.plug("0001", devnode, serial="S", physical="/devices/x", interface=devnode[-1], properties=handled)


@virtual
async def test_the_holder_of_a_stick_is_evicted_when_a_part_has_returned_while_the_other_one_stayed() -> None:
    """It has a dead file, of that part alone."""
    async with holder_of_parts() as one:
        one.host.unplug(USB1)
        await asyncio.sleep(1)
        plug_parts(one, USB1)
        await asyncio.sleep(30)
        assert [(line.fields["pod"], line.fields["reason"]) for line in one.log.of("pod.evicted")] == [
            ("home/a", "replugged")
        ]


@virtual
@pytest.mark.parametrize(("wait", "between", "victims"), [(2, USB2, []), (-2, USB2, ["home/b"]), (2, USB1, ["home/b"])])
async def test_a_container_that_has_started_since_the_first_part_of_its_stick_was_back_has_no_dead_file(
    wait: int, between: str, victims: list[str]
) -> None:
    """The parts register one after another. Before the first one, and where another stick has had the name of one, a file may be dead."""
    async with holder_of_parts() as one:
        stick, one.kubelet.held = id_of(one, USB0), ()
        one.workload.end("a")
        one.host.unplug(USB0)
        one.host.unplug(USB1)
        await asyncio.sleep(20)
        one.host.plug("0001", between, serial="T", properties={"USEC_INITIALIZED": str(int(now() * 1e6))})
        await asyncio.sleep(10)
        plug_parts(one, USB0)
        one.workload.run(pod("b", containers=(Container(name="c", started=int(EPOCH + now()) + wait),)))
        holds(one, "b", stick)
        await asyncio.sleep(5)
        one.host.unplug(between)
        plug_parts(one, USB1)
        await asyncio.sleep(30)
        assert evicted(one) == victims


@virtual
async def test_sticks_that_exchange_their_names_while_no_daemon_runs_leave_dead_files() -> None:
    """Their IDs tell that each was plugged in again, though another one is where it was."""
    async with two_holders() as one:
        await one.kill()
        one.host.unplug(USB0)
        one.host.unplug(USB1)
        for devnode, serial in ((USB0, "S1"), (USB1, "S0")):
            one.host.plug("0001", devnode, serial=serial, properties={"USEC_INITIALIZED": str(int(now() * 1e6))})
        one.start(EVICTING)
        await asyncio.sleep(30)
        assert {(line.fields["pod"], line.fields["reason"]) for line in one.log.of("pod.evicted")} == {
            ("home/a", "replugged"),
            ("home/b", "replugged"),
        }
