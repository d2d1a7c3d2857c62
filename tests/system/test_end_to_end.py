"""A real uevent of a real udevd becomes a real patch on a real API server, and keeps doing so when either side fails."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from system.apiserver import PATCH_ONLY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from system.apiserver import ApiServer
    from system.daemon import Daemon
    from system.udevd import Sticks

    StartDaemon = Callable[..., Daemon]

pytestmark = pytest.mark.system

STICK: dict[str, Any] = {"vendor": "0658", "product": "0200", "serial": "AEO0001"}
CONFIG = """
resources:
  - name: aeotec/zstick
    match: [{vendor: "0658", product: "0200"}]
    removalGrace: 500ms
  - name: nortek.com/zigbee
    match: [{vendor: 10c4, product: 8a2a, interface: "01"}]
    removalGrace: 500ms
sweep: 2s
"""


class World:
    """A Node, a configuration, and the right to patch the status of Nodes and no other."""

    def __init__(self, apiserver: ApiServer, folder: Path, start: StartDaemon) -> None:
        """Make the Node and the ServiceAccount."""
        self.apiserver, self._start = apiserver, start
        self.node = f"n-{uuid.uuid4().hex[:8]}"
        self.config = folder / "config.yaml"
        self.config.write_text(CONFIG)
        apiserver.create_node(self.node)
        self.kubeconfig = apiserver.service_account("patcher", rules=PATCH_ONLY)

    def start(self, *options: str, listen: str = "off", kubeconfig: Path | None = None) -> Daemon:
        """Start the daemon on this Node."""
        where = (
            "--config",
            str(self.config),
            "--node-name",
            self.node,
            "--kubeconfig",
            str(kubeconfig or self.kubeconfig),
        )
        return self._start(*where, "--listen", listen, "--log-format", "json", *options)

    def counts(self, name: str = "aeotec/zstick") -> tuple[str | None, str | None]:
        """Return capacity and allocatable of a resource."""
        status = self.apiserver.node(self.node)["status"]
        return (status["capacity"].get(name), status["allocatable"].get(name))

    def shows(self, count: str | None, name: str = "aeotec/zstick") -> bool:
        """Return whether both maps hold this count."""
        return self.counts(name) == (count, count)

    def devices(self) -> dict[str, list[dict[str, str]]]:
        """Return what the annotation lists."""
        annotations = self.apiserver.node(self.node)["metadata"].get("annotations", {})
        listing: dict[str, list[dict[str, str]]] = json.loads(annotations.get("devwatch.io/devices", "{}"))
        return listing

    def write(self, body: dict[str, object]) -> None:
        """Write to the Node's status as somebody else."""
        path = f"/api/v1/nodes/{self.node}/status?fieldManager=stranger"
        status, answer = self.apiserver.request("PATCH", path, body, content_type="application/merge-patch+json")
        assert status == 200, answer


@pytest.fixture
def world(apiserver: ApiServer, tmp_path: Path, start_daemon: StartDaemon) -> World:
    """Return a Node of this test alone."""
    return World(apiserver, tmp_path, start_daemon)


def test_the_node_follows_a_stick(world: World, sticks: Sticks) -> None:
    """Plugged, a stick is in both maps and listed; pulled, both say 0; only `patch nodes/status` is needed."""
    with world.start() as daemon:
        daemon.wait_for(lambda: world.shows("0"))
        sticks.plug("tty40", **STICK)
        daemon.wait_for(lambda: world.shows("1"))
        (entry,) = world.devices()["aeotec/zstick"]
        assert entry == {"devnode": "/dev/tty40", "link": None, **STICK}
        sticks.unplug("tty40")
        daemon.wait_for(lambda: world.shows("0"))
        assert world.devices()["aeotec/zstick"] == []
        managed = world.apiserver.node(world.node)["metadata"]["managedFields"]
        assert "aeotec/zstick" in json.dumps([entry for entry in managed if entry["manager"] == "devwatch"])
        assert daemon.terminate() == 0
        events = [record["event"] for record in daemon.log]
        assert events.index("device.added") < events.index("device.removed")
        assert "Traceback" not in daemon.stderr
    assert world.shows("0"), "what is advertised stays when the daemon ends"


def test_a_composite_stick_serves_two_resources(world: World, sticks: Sticks) -> None:
    """Of two devnodes of one stick each counts where its interface is wanted, and nowhere else."""
    with world.start() as daemon:
        sticks.plug("tty41", vendor="10c4", product="8a2a", serial="HUSB1", interface="00")
        sticks.plug("tty42", vendor="10c4", product="8a2a", serial="HUSB1", interface="01")
        daemon.wait_for(lambda: world.shows("1", "nortek.com/zigbee"))
        assert [entry["devnode"] for entry in world.devices()["nortek.com/zigbee"]] == ["/dev/tty42"]


def test_a_short_absence_writes_nothing(world: World, sticks: Sticks) -> None:
    """A stick that is back before its grace ends changes nothing on the Node."""
    world.config.write_text(CONFIG.replace("500ms", "1m"))
    sticks.plug("tty40", **STICK)
    with world.start() as daemon:
        daemon.wait_for(lambda: world.shows("1"))
        before = world.apiserver.node(world.node)["metadata"]["resourceVersion"]
        sticks.unplug("tty40")
        daemon.wait_log("device.removed")
        sticks.plug("tty40", **STICK)
        daemon.wait_log("device.returned")
        assert world.apiserver.node(world.node)["metadata"]["resourceVersion"] == before


def test_the_sweep_finds_what_no_uevent_told(world: World, sticks: Sticks) -> None:
    """A devnode that vanishes without a uevent is found at the next sweep."""
    node = sticks.plug("tty40", **STICK)
    sticks.settle()
    with world.start() as daemon:
        daemon.wait_for(lambda: world.shows("1"))
        node.unlink()
        daemon.wait_for(lambda: world.shows("0"))


def test_a_file_in_place_of_the_devnode_is_no_device(world: World, sticks: Sticks) -> None:
    """Presence needs a character device of the right number, not just a name."""
    node = sticks.plug("tty40", **STICK)
    sticks.settle()
    with world.start() as daemon:
        daemon.wait_for(lambda: world.shows("1"))
        node.unlink()
        node.write_text("not a device")
        try:
            daemon.wait_for(lambda: world.shows("0"))
        finally:
            node.unlink()


def test_an_outage_of_the_api_server_is_caught_up_with(world: World, sticks: Sticks) -> None:
    """What changes while the server is away is written when it is back; the daemon goes on meanwhile."""
    with world.start() as daemon:
        daemon.wait_for(lambda: world.shows("0"))
        world.apiserver.stop()
        sticks.plug("tty40", **STICK)
        daemon.wait_log("device.added")
        daemon.wait_log("node.patch_failed")
        world.apiserver.start()
        daemon.wait_for(lambda: world.shows("1"), timeout=45)
        assert "Traceback" not in daemon.stderr


def test_a_missing_right_is_named_with_the_command_that_grants_it(world: World, sticks: Sticks) -> None:
    """A 403 tells what to do, and the daemon works as soon as it is done."""
    sticks.plug("tty40", **STICK)
    world.apiserver.revoke("patcher")
    with world.start() as daemon:
        record = daemon.wait_log("node.patch_failed")
        assert "cannot patch resource" in record["error"]
        assert "kubectl create clusterrole" in record["hint"]
        assert "--serviceaccount=devwatch:patcher" in record["hint"]
        world.apiserver.grant("patcher")
        daemon.wait_for(lambda: world.shows("1"), timeout=45)


def test_a_node_that_registers_late_is_waited_for(world: World, sticks: Sticks) -> None:
    """Without its Node the daemon says so and keeps trying."""
    sticks.plug("tty40", **STICK)
    world.apiserver.delete_node(world.node)
    with world.start() as daemon:
        daemon.wait_log("node.missing")
        world.apiserver.create_node(world.node)
        daemon.wait_for(lambda: world.shows("1"), timeout=45)


def test_a_kubeconfig_that_comes_late_is_waited_for(world: World, tmp_path: Path, sticks: Sticks) -> None:
    """The daemon may start before the node has joined its cluster."""
    sticks.plug("tty40", **STICK)
    late = tmp_path / "late.kubeconfig"
    with world.start(kubeconfig=late) as daemon:
        record = daemon.wait_log("node.patch_failed")
        assert "there is no kubeconfig" in record["error"]
        late.write_text(world.kubeconfig.read_text())
        daemon.wait_for(lambda: world.shows("1"), timeout=45)


def test_expired_credentials_are_read_again(world: World, sticks: Sticks, tmp_path: Path) -> None:
    """A token file that is replaced is picked up when the server refuses the old token, without a restart."""
    token = tmp_path / "token"
    token.write_text("expired")
    kubeconfig = world.apiserver.kubeconfig("rotating", token_file=token)
    sticks.plug("tty40", **STICK)
    with world.start(kubeconfig=kubeconfig) as daemon:
        daemon.wait_for(lambda: "does not accept the credentials" in daemon.stderr)
        token.write_text(world.apiserver.token("patcher"))
        daemon.wait_for(lambda: world.shows("1"), timeout=45)
        assert token.read_text() not in daemon.stderr


def test_a_dropped_resource_is_removed_also_after_a_restart(world: World, sticks: Sticks) -> None:
    """What the annotation owns and the configuration no longer has leaves both maps; foreign resources stay."""
    sticks.plug("tty40", **STICK)
    world.write({"status": {"capacity": {"example.com/foreign": "3"}, "allocatable": {"example.com/foreign": "3"}}})
    with world.start() as daemon:
        daemon.wait_for(lambda: world.shows("1"))
        assert daemon.terminate() == 0
    world.config.write_text("resources:\n- {name: other.io/stick, match: [{vendor: abcd}]}\n")
    with world.start() as daemon:
        daemon.wait_for(lambda: world.shows(None))
        assert world.shows("0", "other.io/stick")
        assert world.shows("3", "example.com/foreign")
        assert list(world.devices()) == ["other.io/stick"]


def test_a_changed_configuration_is_picked_up_and_a_bad_one_is_not(world: World, sticks: Sticks) -> None:
    """The file is read again at a sweep and on HUP; a fault leaves the old one in force."""
    sticks.plug("tty40", **STICK)
    with world.start() as daemon:
        daemon.wait_for(lambda: world.shows("1"))
        world.config.write_text(CONFIG.replace("aeotec/zstick", "renamed.io/zstick"))
        daemon.wait_for(lambda: world.shows("1", "renamed.io/zstick"))
        daemon.wait_for(lambda: world.shows(None))
        world.config.write_text("resources: [{name: nonsense}]")
        daemon.signal(signal.SIGHUP)
        record = daemon.wait_log("config.rejected")
        assert any(f"{world.config}:1:20: resources[0].name:" in fault for fault in record["faults"])
        assert world.shows("1", "renamed.io/zstick")


def test_purge_beside_a_running_daemon_fails(world: World, sticks: Sticks) -> None:
    """Whether the daemon runs on this host or puts back from elsewhere what was removed, it has to be stopped first."""
    sticks.plug("tty40", **STICK)
    world.config.write_text(CONFIG + "resync: 1s\n")
    command = [sys.executable, "-m", "devwatch", "purge", "--kubeconfig", str(world.apiserver.admin_kubeconfig)]
    with world.start() as daemon:
        daemon.wait_for(lambda: world.shows("1"))
        for where in (["--node", world.node], ["--all-nodes"]):
            done = subprocess.run(
                [*command, "--yes", *where], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
            )
            assert done.returncode == 1
            assert f"a devwatch still runs on {world.node}" in done.stderr
            assert f"{world.node}: left\n  - aeotec/zstick: capacity 1, allocatable 1\n" in done.stdout
            daemon.wait_for(lambda: world.shows("1"))


def test_a_second_daemon_waits_and_takes_over(world: World, sticks: Sticks) -> None:
    """One daemon a node: the second says so, is not ready, and takes over when the first ends."""
    sticks.plug("tty40", **STICK)
    with contextlib.ExitStack() as running:
        first = running.enter_context(world.start())
        first.wait_for(lambda: world.shows("1"))
        second = running.enter_context(world.start(listen="127.0.0.1:28797"))
        second.wait_log("daemon.waiting")
        assert _get(28797, "/readyz")[0] == 503
        assert first.terminate() == 0
        second.wait_log("daemon.started")
        sticks.unplug("tty40")
        second.wait_for(lambda: world.shows("0"), timeout=40)
        second.wait_for(lambda: _get(28797, "/readyz") == (200, "ok\n"))


def test_a_second_daemon_waits_for_the_port_too(world: World, sticks: Sticks) -> None:
    """Two with the same address, as with the default one: the second waits, and answers there once the first has ended."""
    sticks.plug("tty40", **STICK)
    with contextlib.ExitStack() as running:
        first = running.enter_context(world.start(listen="127.0.0.1:28797"))
        first.wait_for(lambda: world.shows("1"))
        second = running.enter_context(world.start(listen="127.0.0.1:28797"))
        second.wait_log("daemon.waiting")
        assert first.terminate() == 0
        second.wait_log("daemon.started")
        second.wait_for(lambda: _get(28797, "/readyz")[0] == 200)


def test_metrics_and_health_answer(world: World, sticks: Sticks) -> None:
    """What Prometheus and probes see is the truth."""
    sticks.plug("tty40", **STICK)
    with world.start(listen="127.0.0.1:28797") as daemon:
        daemon.wait_for(lambda: world.shows("1"))
        daemon.wait_for(lambda: _get(28797, "/readyz")[0] == 200)
        assert _get(28797, "/healthz") == (200, "ok\n")
        text = _get(28797, "/metrics")[1]
        assert 'devwatch_devices{resource="aeotec/zstick"} 1.0' in text
        assert 'devwatch_capacity{resource="aeotec/zstick"} 1.0' in text
        assert "devwatch_monitor_up 1.0" in text
        assert "AEO0001" not in text


def test_once_ends_when_the_node_agrees(world: World, sticks: Sticks) -> None:
    """`--once` writes what is present, without a start grace, and says by its status whether it could."""
    sticks.plug("tty40", **STICK)
    sticks.settle()
    assert world.start("--once").wait() == 0
    assert world.shows("1")
    sticks.unplug("tty40")
    assert world.start("--once").wait() == 0
    assert world.shows("0")


def test_a_dry_run_of_the_server_stores_nothing(world: World, sticks: Sticks) -> None:
    """`--dry-run=server` asks for real, prints what it would send, and leaves the Node as it is."""
    sticks.plug("tty40", **STICK)
    sticks.settle()
    daemon = world.start("--once", "--dry-run=server")
    assert daemon.wait() == 0
    assert world.shows(None)
    (line,) = daemon.stdout.splitlines()
    assert json.loads(line)["status"]["capacity"]["aeotec/zstick"] == "1"


def test_a_foreign_write_is_repaired(world: World, sticks: Sticks) -> None:
    """What somebody else makes of our counts is seen at the resync and put right."""
    world.config.write_text(CONFIG + "resync: 1s\n")
    sticks.plug("tty40", **STICK)
    with world.start() as daemon:
        daemon.wait_for(lambda: world.shows("1"))
        world.write({"status": {"capacity": {"aeotec/zstick": "7"}}})
        daemon.wait_log("drift.repaired")
        assert world.shows("1")


def _get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
