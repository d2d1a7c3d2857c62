"""The kubelet gives the stick to a pod without privileges, and every restart of either side leaves it there."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from grpclib.exceptions import GRPCError

from support.grpckubelet import PluginClient
from system.apiserver import PATCH_ONLY, WATCH
from system.evictionproxy import evicting_url
from system.handover import (
    FORBIDDEN,
    PODS,
    SOME_USER,
    HandingOver,
    Site,
    as_root,
    started_before,
    title_of,
    uid_of,
    waiting_reason,
)
from system.kubelet import FOLDER
from system.localuser import attempts, sockets
from system.test_journey import EVICT
from system.udevd import DEV, serial_port
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from system.apiserver import ApiServer, Object
    from system.kubelet import Kubelet
    from system.udevd import Sticks

pytestmark = pytest.mark.system

OFFERED = """  - name: %(resource)s
    subsystem: %(subsystem)s
    match: [{path: %(devnode)s}]
    publish: devicePlugin
"""
OPENING = """
trap 'exit 0' TERM
exec 3<>/dev/offered && echo opened $(stat -c %%t:%%T /dev/offered) $DEVICE_%(prefix)s_EXAMPLE_OFFERED
sleep 2147483647 & wait
"""

HOSTILE_SERIAL = 'esc\x1b[31m\x9b2J"}]},"b.io/c":[{\\x00\\n../../etc/passwd é\u202e\u2028' + "A" * 300


@pytest.fixture(scope="module")
def handing(
    kubelet: Kubelet, control_plane: ApiServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HandingOver]:
    """Have a scheduler and a controller manager; return the daemon, which may do all that it can use."""
    control_plane.service_account("handing-over", rules=[*PATCH_ONLY, *WATCH, *EVICT])
    control_plane.start_scheduler()
    control_plane.start_controller_manager()
    with evicting_url(control_plane) as url:
        token = control_plane.token("handing-over")
        made = HandingOver(
            apiserver=control_plane,
            kubelet=kubelet,
            kubeconfig=control_plane.kubeconfig("handing-over", token=token, server=url),
            home=tmp_path_factory.mktemp("handing-over"),
        )
        yield made
        made.close()
    control_plane.stop_control()


@pytest.fixture
def site(apiserver: ApiServer, kubelet: Kubelet, handing: HandingOver, sticks: Sticks) -> Iterator[Site]:
    """Return the Node of the kubelet, without pods and sticks."""
    handing.rest()
    made = Site(apiserver=apiserver, kubelet=kubelet, prefix=handing.prefix, handing=handing, sticks=sticks)
    yield made
    apiserver.start()
    kubelet.start("containerd")
    kubelet.start()
    made.clear()
    assert handing.running is None or "Traceback" not in handing.running.stderr


@pytest.fixture
def port() -> Iterator[str]:
    """Return the serial port of the machine, with the settings that it had before; where it has none, a virtual console."""
    found = serial_port()
    if found is None:
        yield "tty40"
        return
    descriptor = os.open(DEV / found, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    former = termios.tcgetattr(descriptor)
    input_flags, output_flags, control, *rest = former
    # Opening it waits for no carrier.
    termios.tcsetattr(descriptor, termios.TCSANOW, [input_flags, output_flags, control | termios.CLOCAL, *rest])
    yield found
    termios.tcsetattr(descriptor, termios.TCSANOW, former)
    os.close(descriptor)


def test_a_pod_without_any_privilege_opens_its_stick(site: Site, port: str) -> None:
    """`limits: {NAME: 1}` and nothing else: the stick is at `container.path`, and can be set up, its speed included."""
    daemon = site.start()
    site.plug(port, "A")
    pod = site.holder(daemon, port)
    assert site.shows(1, 1)
    assert "volumes" not in pod["spec"]


@pytest.mark.parametrize(("subsystem", "devnode"), [("mem", "/dev/null"), ("misc", "/dev/fuse")])
def test_a_pod_without_any_privilege_opens_a_device_that_is_no_stick(site: Site, subsystem: str, devnode: str) -> None:
    """Any subsystem with a character devnode is handed over, to a pod that is not root too where the mode of the devnode allows it."""
    if not Path(devnode).is_char_device():
        pytest.skip(f"this machine has no {devnode}")
    site.name = "offered"
    daemon = site.start()
    resource, since = f"{site.prefix}.example/offered", len(daemon.log)
    _add_resource(site, OFFERED % {"resource": resource, "subsystem": subsystem, "devnode": devnode})
    # As at boot: a device whose rules have not run would be waited for.
    Path(f"/sys/class/{subsystem}/{Path(devnode).name}/uevent").write_text("add", "ascii")
    daemon.wait_log("kubelet.registered", since=since, resource=resource)
    daemon.wait_for(lambda: site.shows(1, 1), what="device")
    (container,) = site.template()["spec"]["containers"]
    command = ["sh", "-c", OPENING % {"prefix": site.prefix.upper()}]
    pod = site.pod(user=SOME_USER, containers=[{**container, "command": command}])
    daemon.wait_for(lambda: site.stays(pod) and site.kubelet.output(pod, "c") != [], timeout=60, what="opened device")
    number = Path(devnode).stat().st_rdev
    wanted = f"opened {os.major(number):x}:{os.minor(number):x} /dev/offered"
    assert site.kubelet.output(pod, "c") == [wanted]


def test_two_pods_have_a_stick_each_and_a_user_needs_its_group(site: Site) -> None:
    """A pod that is not root has `supplementalGroups`. Neither sees the stick of the other, and a third pod waits for one."""
    site.plug("tty40", "A")
    daemon = site.start()
    site.holder(daemon, "tty40", user=SOME_USER)
    site.plug("tty41", "B")
    daemon.wait_for(lambda: site.shows(2, 2), what="two sticks")
    site.holder(daemon, "tty41")
    waiting = site.pod()
    daemon.wait_for(lambda: _unschedulable(site.read(waiting)), what="pod that waits")
    assert site.none_failed()


def test_a_pod_as_root_opens_no_stick_but_its_own(site: Site) -> None:
    """With all that containers may do by default it can make a devnode of any stick, and open its own alone, also after a replug."""
    site.plug("tty40", "A")
    daemon = site.start()
    site.holder(daemon, "tty40")
    site.plug("tty41", "B")
    pod = site.holder(daemon, "tty41", containers=[as_root(site.template())])
    assert (site.reach(pod, "tty40"), site.reach(pod, "tty41")) == (FORBIDDEN, "opened")
    assert site.seen_in(pod) == ["/dev/zstick"]
    site.sticks.unplug("tty41")
    site.plug("tty42", "B")
    daemon.wait_for(lambda: site.shows(2, 2), what="stick that is back")
    site.restart_in_place(pod)
    site.await_opened(daemon, pod, "tty42", restarts=1)
    site.plug("tty41", "C")
    assert [site.reach(pod, tty) for tty in ("tty40", "tty41", "tty42")] == [FORBIDDEN, FORBIDDEN, "opened"]
    assert site.seen_in(pod) == ["/dev/zstick"]


def test_a_stick_with_a_hostile_serial_is_handed_over_like_any_other(site: Site) -> None:
    """It reaches neither a terminal nor a path: the link has the ID as its name, and all that is shown is printable."""
    site.plug("tty40", HOSTILE_SERIAL)
    daemon = site.start()
    pod = site.holder(daemon, "tty40")
    (link,) = (FOLDER / "device-plugins" / "devwatch").iterdir()
    assert re.fullmatch("0658-0200-[-a-z0-9]{1,53}", link.name)
    assert str(link.readlink()) == "/dev/tty40"
    annotation = site.apiserver.node(site.kubelet.node)["metadata"]["annotations"]["devwatch.io/devices"]
    assert annotation.isascii()
    assert annotation.isprintable()
    assert json.loads(annotation)[f"{site.prefix}.example/zstick"][0]["serial"] == HOSTILE_SERIAL[:128]
    fields = f"reason%3DDeviceAdded,involvedObject.name%3D{site.kubelet.node}"
    path = f"/api/v1/events?fieldSelector={fields}"
    messages = eventually(lambda: [each["message"] for each in site.apiserver.request("GET", path)[1]["items"]])
    assert all(message.isprintable() for message in messages)
    assert any("serial esc" in message for message in messages)
    for line in (*daemon.stderr.splitlines(), *site.handing.status().splitlines()):
        assert line.isprintable()
    assert site.stays(pod)


def test_a_local_user_reaches_no_socket_and_root_gets_no_more_than_paths(site: Site) -> None:
    """The folders are the kubelet's, 0750. What `Allocate` hands out are names of links, and asking for them changes nothing."""
    site.plug("tty40", "A")
    daemon = site.start()
    pod = site.holder(daemon, "tty40")
    found = sockets()
    ours = [path for path in found if path.name.startswith("devwatch-")]
    assert {path.name for path in found if path not in ours} == {"kubelet.sock"}
    assert attempts(found) == {"EACCES EACCES EACCES"}
    assert {path.stat().st_mode & 0o022 for path in ours} == {0}
    folder = ours[0].parent
    (link,) = (folder / "devwatch").iterdir()
    answers = [asyncio.run(_allocated(path, link.name)) for path in ours]
    assert sorted(answers) == [[], [("/dev/zstick", str(link), "rw")]]
    site.witness(daemon)
    assert site.shows(1, 1)
    assert site.stays(pod)


def test_the_number_of_a_pulled_stick_stays_open_to_its_container_until_that_restarts(site: Site) -> None:
    """The limit of all device plugins: the kernel knows a stick by its number, and may give that to the next stick that is plugged in."""
    site.plug("tty40", "A")
    daemon = site.start()
    pod = site.holder(daemon, "tty40", containers=[as_root(site.template())])
    site.sticks.unplug("tty40")
    daemon.wait_for(lambda: site.shows(1, 0), what="lost stick")
    site.plug("tty40", "C")
    daemon.wait_for(lambda: site.shows(2, 1), what="stick that has its number")
    assert site.reach(pod, "tty40") == "opened"
    site.restart_in_place(pod)
    waits = "CreateContainerError"
    daemon.wait_for(lambda: site.hurry(pod) and waiting_reason(site.read(pod)) == waits, what="container that waits")
    assert site.kubelet.output(pod, "c", 1) == []


def test_a_pulled_stick_stays_in_capacity_while_a_pod_has_it(site: Site) -> None:
    """It cannot be allocated, and its pod is left alone. When the pod has gone, it leaves the Node."""
    site.plug("tty40", "A")
    daemon = site.start()
    pod = site.holder(daemon, "tty40")
    site.sticks.unplug("tty40")
    daemon.wait_for(lambda: site.shows(1, 0), what="lost stick")
    site.witness(daemon)
    assert site.shows(1, 0)
    assert site.stays(pod)
    site.delete(pod)
    daemon.wait_for(lambda: site.shows(0, 0), what="stick that is gone")


def test_a_container_that_restarts_opens_its_stick_under_its_new_name(site: Site) -> None:
    """The stick returns as another devnode: what the kubelet remembers of the allocation leads there."""
    site.plug("tty40", "A")
    daemon = site.start()
    pod = site.holder(daemon, "tty40")
    site.sticks.unplug("tty40")
    daemon.wait_for(lambda: site.shows(1, 0), what="lost stick")
    site.plug("tty41", "A")
    daemon.wait_for(lambda: site.shows(1, 1), what="stick that is back")
    site.restart_in_place(pod)
    site.await_opened(daemon, pod, "tty41", restarts=1)


def test_a_container_that_restarts_never_opens_the_twin_of_its_stick(site: Site) -> None:
    """While its stick is away the container waits, although one of the same model, without a serial, is free; then it has its own."""
    site.plug("tty40", None, socket=1)
    daemon = site.start()
    pod = site.holder(daemon, "tty40")
    site.sticks.unplug("tty40")
    site.plug("tty41", None, socket=2)
    daemon.wait_for(lambda: site.shows(2, 1), what="twin beside the lost one")
    site.restart_in_place(pod)
    waits = "CreateContainerError"
    daemon.wait_for(lambda: site.hurry(pod) and waiting_reason(site.read(pod)) == waits, what="container that waits")
    assert site.kubelet.output(pod, "c", 1) == []
    site.plug("tty42", None, socket=1)
    daemon.wait_for(lambda: site.hurry(pod) and site.opened(pod, "tty42", restart=1), what="opened stick")
    site.await_opened(daemon, pod, "tty42", restarts=1)
    daemon.wait_for(lambda: site.shows(2, 2), what="both sticks")


@pytest.mark.parametrize("pulled", [False, True], ids=["stick there", "stick pulled meanwhile"])
def test_a_kubelet_that_is_killed_leaves_the_pod_its_stick(site: Site, *, pulled: bool) -> None:
    """The next kubelet finds the resource registered before it admits the pod again: the pod goes on, and can restart in place."""
    site.plug("tty40", "A")
    daemon = site.start()
    pod = site.holder(daemon, "tty40")
    since = len(daemon.log)
    site.kubelet.kill()
    if pulled:
        site.sticks.unplug("tty40")
    site.kubelet.start()
    site.handing.await_registered(daemon, since)
    daemon.wait_for(lambda: site.shows(1, 0 if pulled else 1), what="figures after the restart")
    if pulled:
        site.plug("tty41", "A")
        daemon.wait_for(lambda: site.shows(1, 1), what="stick that is back")
    site.restart_in_place(pod)  # the kubelet does it, so it has admitted the pod
    site.await_opened(daemon, pod, "tty41" if pulled else "tty40", restarts=1)


def test_a_kubelet_that_starts_without_the_api_server_forgets_no_holder(site: Site) -> None:
    """It names no pod until the API server is back, so the stick that was pulled meanwhile stays in capacity."""
    site.plug("tty40", "A")
    daemon = site.start()
    pod = site.holder(daemon, "tty40")
    since = len(daemon.log)
    site.kubelet.kill()
    site.apiserver.freeze()
    site.sticks.unplug("tty40")
    site.kubelet.start()
    site.handing.await_registered(daemon, since)
    site.apiserver.thaw()
    daemon.wait_for(lambda: site.shows(1, 0), timeout=60, what="lost stick")
    site.witness(daemon)
    assert site.shows(1, 0)
    site.plug("tty41", "A")
    daemon.wait_for(lambda: site.shows(1, 1), what="stick that is back")
    assert site.stays(pod)


def _has_opened_again(site: Site, former: Object, lines: list[str]) -> bool:
    """Return whether a container of a successor, or a later one of the same pod, has written the same."""
    return any(
        site.kubelet.output(pod, "c", each["restartCount"]) == lines
        for pod in site.pods()
        for each in pod["status"].get("containerStatuses", ())
        if uid_of(pod) != uid_of(former) or each["restartCount"]
    )


def test_a_workload_has_its_stick_again_after_a_reboot_with_a_late_daemon(site: Site) -> None:
    """The kubelet starts with its checkpoint, all containers are gone, and the daemon comes when the Node shows nothing to allocate.

    The kubelet may have refused the former pod by then: it admits pods before any plugin has registered.
    """
    site.plug("tty40", "A")
    first = site.start()
    site.replicas(1)
    first.wait_for(lambda: site.phases() == ["Running"], what="pod that runs")
    (former,) = site.pods()
    first.wait_for(lambda: site.opened(former, "tty40"), what="opened stick")
    lines = site.kubelet.output(former, "c", 0)
    first.signal(signal.SIGKILL)
    first.wait()
    site.kubelet.crash()
    site.kubelet.start("containerd")
    site.kubelet.start()
    eventually(lambda: site.handing.figures()[1] == "0", timeout=60)
    second = site.start()
    second.wait_for(lambda: _has_opened_again(site, former, lines), timeout=60, what="stick opened again")
    second.wait_for(lambda: site.shows(1, 1), what="stick that is there")


@pytest.mark.parametrize("pulled", [False, True], ids=["stick there", "stick pulled meanwhile"])
def test_a_daemon_that_is_killed_leaves_the_pod_its_stick(site: Site, *, pulled: bool) -> None:
    """The next daemon knows the device by the ID that the pod has: what was pulled meanwhile is lost, and held."""
    site.plug("tty40", "A")
    first = site.start()
    pod = site.holder(first, "tty40")
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    if pulled:
        site.sticks.unplug("tty40")
    second = site.start()
    if pulled:
        second.wait_for(lambda: site.shows(1, 0), what="lost stick")
        site.witness(second)
        assert site.shows(1, 0)
        site.plug("tty40", "A")
    second.wait_for(lambda: site.shows(1, 1), what="stick that is there")
    assert site.stays(pod)
    site.restart_in_place(pod)
    site.await_opened(second, pod, "tty40", restarts=1)


def test_a_daemon_that_ends_leaves_nothing_to_allocate(site: Site) -> None:
    """After TERM a pod waits instead of failing, the holder runs on, and the next daemon serves both."""
    site.plug("tty40", "A")
    first = site.start()
    pod = site.holder(first, "tty40")
    site.plug("tty41", "B")
    first.wait_for(lambda: site.shows(2, 2), what="two sticks")
    assert first.terminate() == 0
    assert site.shows(2, 0)
    waiting = site.pod()
    eventually(lambda: _unschedulable(site.read(waiting)))
    assert site.stays(pod)
    second = site.start()
    site.await_opened(second, waiting, "tty41")
    assert site.stays(pod)


def test_a_purge_names_what_the_kubelet_writes_again(site: Site) -> None:
    """It remembers the plugin for 5 minutes. The annotation stays, so that a later purge can remove it."""
    site.plug("tty40", "A")
    daemon = site.start()
    daemon.wait_for(lambda: site.shows(1, 1), what="stick")
    assert daemon.terminate() == 0
    options = ("--node", site.kubelet.node, "--yes", "--kubeconfig", str(site.apiserver.admin_kubeconfig))
    command = [sys.executable, "-m", "devwatch", "purge", *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done
    assert f"{site.handing.prefix}.example/zstick" in done.stderr
    assert "the kubelet has written" in done.stderr
    assert "devwatch.io/devices" in site.apiserver.node(site.kubelet.node)["metadata"]["annotations"]


def test_a_renamed_resource_offers_a_stick_when_its_pod_has_ended(site: Site) -> None:
    """Until then it would be given to a second pod."""
    site.plug("tty40", "A")
    daemon = site.start()
    pod = site.holder(daemon, "tty40")
    config = site.handing.home / "config.yaml"
    config.write_text(config.read_text().replace("/zstick", "/renamed"))
    daemon.wait_for(lambda: site.shows(0, 0), what="former name without devices")
    reason = daemon.wait_log("count.held", resource=f"{site.handing.prefix}.example/renamed")["reason"]
    assert pod["metadata"]["name"] in reason
    daemon.wait_for(lambda: site.shows(0, 0, "renamed"), what="new name without devices")
    assert site.stays(pod)
    site.delete(pod)
    daemon.wait_for(lambda: site.shows(1, 1, "renamed"), what="stick under its new name")


def test_a_containerd_that_is_killed_leaves_the_pod_its_stick(site: Site) -> None:
    """The pod goes on without it, and restarts in place with it."""
    site.plug("tty40", "A")
    daemon = site.start()
    pod = site.holder(daemon, "tty40")
    site.kubelet.kill("containerd")
    site.kubelet.start("containerd")
    site.restart_in_place(pod)
    site.await_opened(daemon, pod, "tty40", restarts=1)
    assert site.shows(1, 1)


def test_no_pod_of_a_waiting_replicaset_fails_when_a_stick_comes_and_goes(site: Site) -> None:
    """A pod that is bound at the moment of the pull waits for the stick, and no other is bound."""
    daemon = site.start()
    site.replicas(3)
    eventually(lambda: site.phases() == ["Pending"] * 3)
    for _ in range(2):
        site.plug("tty40", "A")
        daemon.wait_for(lambda: site.shows(1, 1), what="stick")
        site.sticks.unplug("tty40")
        daemon.wait_for(lambda: site.handing.figures() in {("1", "0"), ("0", "0")}, what="lost stick")
        assert site.none_failed()
    site.plug("tty40", "A")
    daemon.wait_for(lambda: site.phases() == ["Pending", "Pending", "Running"], timeout=60, what="one pod that runs")
    (pod,) = (pod for pod in site.pods() if pod["status"]["phase"] == "Running")
    assert site.opened(pod, "tty40")


def test_the_successor_of_a_pod_that_was_deleted_by_force_gets_the_stick(site: Site) -> None:
    """A StatefulSet makes a pod of the same name at once; it is another pod, and gets the same stick."""
    site.plug("tty40", "A")
    daemon = site.start()
    site.stateful()
    pod = eventually(lambda: next(iter(site.pods()), None))
    site.await_opened(daemon, pod, "tty40")
    site.apiserver.request("DELETE", f"{PODS}/{pod['metadata']['name']}?gracePeriodSeconds=0")
    successor = eventually(lambda: next((other for other in site.pods() if uid_of(other) != uid_of(pod)), None))
    assert successor["metadata"]["name"] == pod["metadata"]["name"]
    site.await_opened(daemon, successor, "tty40")
    assert site.shows(1, 1)


def test_a_stick_is_held_while_its_pod_initialises(site: Site) -> None:
    """The kubelet does not say what an init container has: until it does, the lost stick stays in capacity."""
    site.plug("tty40", "A")
    daemon = site.start()
    container = site.template()["spec"]["containers"][0]
    pod = site.pod(initContainers=[container], containers=[{**container, "name": "later", "resources": {}}])
    daemon.wait_for(lambda: site.opened(pod, "tty40"), what="opened stick")
    site.sticks.unplug("tty40")
    daemon.wait_for(lambda: site.shows(1, 0), what="lost stick")
    site.witness(daemon)
    assert site.shows(1, 0)
    assert site.read(pod) is not None
    site.delete(pod)
    daemon.wait_for(lambda: site.shows(0, 0), what="stick that is gone")


def test_the_pod_of_a_pulled_stick_is_evicted_and_no_other(site: Site) -> None:
    """Which pod has which stick is known: that one goes, its successor waits, and gets the stick when it is back."""
    site.plug("tty40", "A")
    site.plug("tty41", "B")
    daemon = site.start(evict="1s")
    daemon.wait_for(lambda: site.shows(2, 2), what="two sticks")
    site.replicas(2)
    daemon.wait_for(lambda: site.phases() == ["Running", "Running"], what="two pods that run")
    holder, other = sorted(site.pods(), key=_output(site))
    since = len(daemon.log)
    site.sticks.unplug("tty40")
    assert daemon.wait_log("pod.evicted", since=since)["pod"] == title_of(holder)
    site.await_end(daemon, holder)
    daemon.wait_for(lambda: site.phases() == ["Pending", "Running"], what="successor")
    (successor,) = (pod for pod in site.pods() if uid_of(pod) not in {uid_of(holder), uid_of(other)})
    daemon.wait_for(lambda: site.shows(1, 1), what="one stick")
    site.plug("tty42", "A")
    site.await_opened(daemon, successor, "tty42")
    assert site.stays(other)


def test_a_stick_that_returns_under_another_number_ends_who_has_the_dead_file(site: Site) -> None:
    """Its pod goes, although the stick was away for a moment only, and its successor has the stick. Another pod stays."""
    site.sticks.unplug("tty42")  # a console that is present does not count as a new device when a rule makes it a stick
    site.plug("tty40", "A")
    site.plug("tty41", "B")
    daemon = site.start(evict="2s")
    daemon.wait_for(lambda: site.shows(2, 2), what="two sticks")
    site.replicas(2)
    daemon.wait_for(lambda: site.phases() == ["Running", "Running"], what="two pods that run")
    holder, other = sorted(site.pods(), key=_output(site))
    eventually(lambda: started_before(site.read(holder)))
    since = len(daemon.log)
    site.sticks.unplug("tty40")
    site.plug("tty42", "A")
    evicted = daemon.wait_log("pod.evicted", since=since)
    assert (evicted["pod"], evicted["reason"]) == (title_of(holder), "replugged")
    site.await_end(daemon, holder)
    (successor,) = eventually(
        lambda: [pod for pod in site.pods() if uid_of(pod) not in {uid_of(holder), uid_of(other)}]
    )
    site.await_opened(daemon, successor, "tty42")
    assert site.stays(other)


def test_a_resource_changes_its_way_when_the_last_pod_of_the_former_way_has_gone(site: Site) -> None:
    """Until then nothing of it can be had, and the pod is named. Its successor, the only one, has the stick from the kubelet."""
    site.name = "mover"
    daemon = site.start()
    site.plug("tty40", "A")
    daemon.wait_for(lambda: site.shows(1, 1), what="stick")
    workload = site.replicas(1, site.privileged_template("tty40"))
    daemon.wait_for(lambda: site.phases() == ["Running"], what="pod that runs")
    (former,) = site.pods()
    daemon.wait_for(lambda: site.opened(former, "tty40", given=False), what="opened stick")
    since = len(daemon.log)
    site.start(mover="devicePlugin")
    daemon.wait_for(lambda: site.shows(0, 0), what="nothing to allocate")
    daemon.wait_log("count.held", since=since, reason=f"waits for the end of {title_of(former)}")
    assert f"waits for the end of {title_of(former)}" in site.handing.readiness()
    (row,) = (line for line in site.handing.status().splitlines() if f"{site.prefix}.example/mover" in line)
    assert former["metadata"]["name"] in row
    site.change(workload, site.template())
    site.witness(daemon)
    assert site.shows(0, 0)
    assert site.stays(former)
    site.apiserver.request("DELETE", f"{PODS}/{former['metadata']['name']}")
    site.await_end(daemon, former)
    (successor,) = eventually(site.pods)
    site.await_opened(daemon, successor, "tty40")
    assert site.shows(1, 1)
    assert "waits" not in site.handing.readiness()
    assert [uid_of(pod) for pod in site.pods()] == [uid_of(successor)]


def test_the_way_back_waits_until_the_kubelet_has_forgotten_the_plugin(site: Site) -> None:
    """First for the pod, then for the kubelet; nothing can be had meanwhile. Who changes his mind has the stick at once."""
    site.plug("tty40", "A")
    daemon = site.start()
    pod = site.holder(daemon, "tty40")
    since = len(daemon.log)
    site.start(zstick="nodeStatus")
    daemon.wait_for(lambda: site.shows(0, 0), what="nothing to allocate")
    daemon.wait_log("count.held", since=since, reason=f"waits for the end of {title_of(pod)}")
    assert site.stays(pod)
    site.delete(pod)
    forgets = "waits for the kubelet to forget the plugin (5 min 20 s)"
    daemon.wait_log("count.held", since=since, reason=forgets)
    assert forgets in site.handing.readiness()
    site.witness(daemon)
    assert site.shows(0, 0)
    site.start(zstick="devicePlugin")
    site.holder(daemon, "tty40")
    assert site.shows(1, 1)
    assert "waits" not in site.handing.readiness()


async def _allocated(path: Path, name: str) -> list[tuple[str, str, str]]:
    """Return what the plugin on this socket hands out for an ID, as root: nothing where it does not know it."""
    client = PluginClient(path)
    try:
        (answer,) = (await client.allocate(name)).container_responses
    except GRPCError:
        return []
    finally:
        client.close()
    return [(each.container_path, each.host_path, each.permissions) for each in answer.devices]


def _add_resource(site: Site, resource: str) -> None:
    """Have the configuration end with another resource, until the next start changes it back."""
    config = site.handing.home / "config.yaml"
    config.write_text(config.read_text().replace("sweep:", f"{resource}sweep:"))


def _output(site: Site) -> Callable[[Object], list[str]]:
    return functools.partial(site.kubelet.output, container="c")


def _unschedulable(pod: Object | None) -> bool:
    conditions = pod["status"].get("conditions", []) if pod else []
    return any(condition.get("reason") == "Unschedulable" for condition in conditions)
