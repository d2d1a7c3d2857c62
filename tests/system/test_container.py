"""The DaemonSet's container for real: the image's own files in runc, under the settings of the rendered manifests."""

from __future__ import annotations

import contextlib
import json
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from support import deployment
from system import container as box
from system import containerfile, testbed
from system.apiserver import NAMESPACE
from system.container import Account, Container, Pod
from system.udevd import Sticks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from system.apiserver import ApiServer
    from system.containerfile import Image

pytestmark = pytest.mark.system

KINDS: dict[str, tuple[str, ...]] = {"privileged": (), "unprivileged": ("unprivileged",)}
RESOURCE = "aeotec/zstick"
METER = "example.com/meter"
STICK: dict[str, Any] = {"vendor": "0658", "product": "0200", "serial": "AEO0001"}
LACKS = ("/dev", "/run/udev", "/sys", "hostNetwork")
WARNINGS: dict[str, tuple[str, ...]] = {
    "/dev": ("mount the host's /dev",),
    "/run/udev": ("mount the host's whole /run/udev",),
    "/sys": (),  # the runtime mounts the kernel's own: it shows the same devices
    "hostNetwork": ("hostNetwork is missing",),  # udevd is not heard, the kernel is
}
CONFIG = """
resources:
  - name: example.com/meter
    match: [{path: /dev/tty42}]
    removalGrace: 500ms
  - name: aeotec/zstick
    match: [{properties: {ID_VENDOR_ID: "0658"}}]
    removalGrace: 500ms
sweep: 1s
"""
"""The first counts by its devnode; the second by a property, which is unknown where udev's record is not to be had."""
START_GRACE = 10
"""Seconds for which a daemon that starts believes the Node's own figure: the longest in which it would not lower it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """An image, an API server and a folder: all that pods need."""

    apiserver: ApiServer
    image: Image
    home: Path

    def pod(self, kind: str) -> Pod:
        """Return the DaemonSet's pod on a Node of its own, with the rights of the manifests."""
        objects = deployment.rendered(*KINDS[kind])
        name = f"c-{uuid.uuid4().hex[:8]}"
        self.apiserver.create_node(name)
        (role,) = deployment.of_kind(objects, "ClusterRole")
        self.apiserver.service_account(name, rules=role["rules"])
        account = Account(
            url=self.apiserver.url,
            authority=self.apiserver.ca_file,
            token=self.apiserver.token(name),
            namespace=NAMESPACE,
        )
        maps = {item["metadata"]["name"]: item["data"] for item in deployment.of_kind(objects, "ConfigMap")}
        return Pod(spec=deployment.pod_spec(objects), config_maps=maps, account=account, node=name)

    def run(self, pod: Pod) -> Container:
        """Start the pod's container."""
        return Container(pod, self.image, self.home)

    def shows(self, node: str, count: str, resource: str = RESOURCE) -> bool:
        """Return whether both maps of a Node hold this count."""
        status = self.apiserver.node(node)["status"]
        return [status[key].get(resource) for key in ("capacity", "allocatable")] == [count, count]

    def advertise(self, node: str) -> None:
        """Write one stick to a Node, as an earlier daemon would have left it."""
        listing = json.dumps({RESOURCE: [{"devnode": "/dev/tty40", "link": None, **STICK}]})
        counts = {RESOURCE: "1"}
        body = {
            "metadata": {"annotations": {"devwatch.io/devices": listing}},
            "status": {"capacity": counts, "allocatable": counts},
        }
        path = f"/api/v1/nodes/{node}/status"
        answer = self.apiserver.request("PATCH", path, body, content_type="application/strategic-merge-patch+json")
        assert answer[0] == 200, answer


@pytest.fixture(scope="module")
def world(udevd: None, control_plane: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> World:  # noqa: ARG001  the lock of udevd keeps other runs out
    """Return the image, built where its inputs have changed, and the API server."""
    testbed.require(containerfile.missing() or box.missing() or deployment.missing())
    box.clear_leftovers()
    return World(apiserver=control_plane, image=containerfile.built(), home=tmp_path_factory.mktemp("containers"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_daemon_does_its_work_in_the_container(world: World, sticks: Sticks, kind: str) -> None:
    """It is alive and ready by the DaemonSet's probes, counts a stick and its absence, and ends in time, leaving the count."""
    pod = world.pod(kind)
    with world.run(pod) as daemon:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            daemon.wait_for(lambda probe=probe: daemon.get(pod.container[probe])[0] == 200, what=probe)  # type: ignore[misc]  # the default binds the loop's value
        daemon.wait_for(lambda: world.shows(pod.node, "0"))
        sticks.plug("tty40", **STICK)
        daemon.wait_for(lambda: world.shows(pod.node, "1"))
        sticks.unplug("tty40")
        daemon.wait_for(lambda: world.shows(pod.node, "0"))
        sticks.plug("tty40", **STICK)
        daemon.wait_for(lambda: world.shows(pod.node, "1"))
        assert not [record for record in daemon.log if record["event"] == "host.limited"]
        assert daemon.metric('devwatch_uevents_total{action="add"}') > 0, "heard, and not found by a sweep"
        assert daemon.terminate(timeout=pod.spec["terminationGracePeriodSeconds"]) == 0
        assert "Traceback" not in daemon.stderr
    assert world.shows(pod.node, "1")


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_limit_is_kept_with_room(world: World, sticks: Sticks, kind: str) -> None:
    """What the kubelet would see as its working set stays below three quarters of the limit, which is in force."""
    pod = world.pod(kind)
    with world.run(pod) as daemon:
        daemon.wait_for(lambda: daemon.get(pod.container["readinessProbe"])[0] == 200)
        for number in range(40, 50):
            sticks.plug(f"tty{number}", **STICK)
        daemon.wait_for(lambda: world.shows(pod.node, "10"))
        memory, limit = daemon.memory(), box.memory_limit(pod.container)
        assert memory["usage"]["limit"] == limit
        idle = memory["raw"].get("total_inactive_file", memory["raw"].get("inactive_file", 0))
        assert memory["usage"]["usage"] - idle < limit * 3 / 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_commands_for_people_work_in_the_pod(world: World, sticks: Sticks, kind: str) -> None:
    """`kubectl exec` needs no path, no name of the node and no credentials; the daemon, whose memory limit it shares, goes on."""
    pod = world.pod(kind)
    sticks.plug("tty40", **STICK)
    with world.run(pod) as daemon:
        daemon.wait_for(lambda: world.shows(pod.node, "1"))
        status = daemon.exec("devwatch", "status", "-o", "json")
        assert status.returncode == 0, status.stderr
        found = [entry for entry in json.loads(status.stdout)["resources"] if entry["node"] == pod.node]
        assert {entry["resource"]: entry["capacity"] for entry in found}[RESOURCE] == "1"
        assert "warning: the pods are not shown: " in status.stderr
        devices = daemon.exec("devwatch", "devices")
        assert devices.returncode == 0, devices.stderr
        (row,) = [line.split() for line in devices.stdout.splitlines() if line.startswith("/dev/tty40 ")]
        assert row[-1] == RESOURCE
        explained = daemon.exec("devwatch", "explain", "/dev/tty40")
        assert f"claimed by {RESOURCE}\n" in explained.stdout, explained.stderr
        assert daemon.get(pod.container["readinessProbe"])[0] == 200


def test_a_changed_config_map_is_read_without_a_restart(world: World, sticks: Sticks) -> None:
    """The kubelet replaces a link when the ConfigMap changes; the daemon follows it at its next sweep."""
    pod = world.pod("unprivileged")
    with world.run(pod) as daemon:
        daemon.wait_for(lambda: world.shows(pod.node, "0"))
        sticks.plug("tty40", vendor="abcd", product="0001")
        daemon.write_config("resources:\n- {name: aeotec/zstick, match: [{vendor: abcd}]}\n")
        daemon.wait_for(lambda: world.shows(pod.node, "1"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limited:
    """A daemon that lacks something of its host, on a Node that showed a stick before."""

    daemon: Container
    node: str
    sticks: Sticks


AllLimited = dict[tuple[str, str], Limited]


@pytest.fixture(scope="module")
def limited(world: World) -> Iterator[AllLimited]:
    """Run daemons that lack one thing each, at once, while a stick is plugged that their Nodes show."""
    with Sticks() as sticks, contextlib.ExitStack() as running:
        sticks.plug("tty40", **STICK)
        sticks.unplug("tty42")
        sticks.settle()
        found = {}
        for number, (kind, lack) in enumerate((kind, lack) for kind in KINDS for lack in LACKS):
            pod = _without(world.pod(kind), lack, port=28801 + number)
            world.advertise(pod.node)
            daemon = running.enter_context(world.run(pod))
            found[kind, lack] = Limited(daemon=daemon, node=pod.node, sticks=sticks)
        yield found


def _without(pod: Pod, lack: str, *, port: int) -> Pod:
    """Return the pod without one thing, with a port of its own beside other pods of the test, and a short sweep."""
    spec: dict[str, Any] = json.loads(json.dumps(pod.spec))
    (container,) = spec["containers"]
    container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["mountPath"] != lack]
    spec["hostNetwork"] = lack != "hostNetwork"
    container["livenessProbe"]["httpGet"]["port"] = port
    maps = {"devwatch-config": {"config.yaml": CONFIG}}
    return replace(pod, spec=spec, config_maps=maps, env={"DEVWATCH_LISTEN": f"127.0.0.1:{port}"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lack", LACKS)
def test_what_is_missing_is_said_and_lowers_nothing(world: World, limited: AllLimited, kind: str, lack: str) -> None:
    """Looks go on for longer than a starting daemon believes its Node; the count of the stick that is there stays."""
    daemon, node = limited[kind, lack].daemon, limited[kind, lack].node
    sweeps = 'devwatch_reconciles_total{trigger="sweep"}'
    daemon.wait_for(lambda: daemon.metric(sweeps) > START_GRACE + 2, timeout=60)
    assert not world.shows(node, "0")
    assert "/dev/tty40" not in [record["devnode"] for record in daemon.log if record["event"] == "device.removed"]
    reasons = [record["reason"] for record in daemon.log if record["event"] == "host.limited"]
    assert len(reasons) == len(WARNINGS[lack])
    assert all(wanted in reason for wanted, reason in zip(WARNINGS[lack], reasons, strict=True))


def test_what_can_still_be_seen_is_counted(world: World, limited: AllLimited) -> None:
    """A new stick is heard and counts whatever is missing, by what is known of it; its absence too, where the host's /dev is there."""
    sticks = next(iter(limited.values())).sticks
    sticks.plug("tty41", **STICK)
    sticks.plug("tty42", vendor="ffff", product="0001")
    for (_, lack), each in limited.items():
        resource, count = (METER, "1") if lack == "/run/udev" else (RESOURCE, "2")
        each.daemon.wait_for(lambda each=each, r=resource, c=count: world.shows(each.node, c, r), what=lack)  # type: ignore[misc]  # the defaults bind the loop's values
        each.daemon.wait_for(lambda each=each: each.daemon.metric('devwatch_uevents_total{action="add"}') > 0)  # type: ignore[misc]  # as above
    sticks.unplug("tty41")
    sticks.unplug("tty42")
    for (_, lack), each in limited.items():
        if lack == "/dev":  # a console that is unplugged stays in sysfs: without its node nothing tells its absence
            continue
        resource, count = (METER, "0") if lack == "/run/udev" else (RESOURCE, "1")
        each.daemon.wait_for(lambda each=each, r=resource, c=count: world.shows(each.node, c, r), what=lack)  # type: ignore[misc]  # as above
