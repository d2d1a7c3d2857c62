"""The test bench itself: what the other tests stand on must hold, and must leave the machine as it was."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import pyudev
from kubernetes_asyncio import client, config

from system.apiserver import NAMESPACE, PATCH_ONLY, STRATEGIC_MERGE, WATCH, ApiServer, ApiServerError, assets
from system.udevd import CONSOLES, DEV, RULES, Node, Sticks, ownership_kept
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

# The API server


async def as_account(kubeconfig: Path, method: str, path: str, body: Any = None) -> int:  # noqa: ANN401  JSON
    """Send one request with kubernetes_asyncio, as the daemon does; return the status code."""
    settings = client.Configuration()
    await config.load_kube_config(config_file=str(kubeconfig), client_configuration=settings)
    async with client.ApiClient(settings) as api:
        answer = await api.call_api(
            path,
            method,
            body=body,
            header_params={"Content-Type": "application/strategic-merge-patch+json"},
            auth_settings=["BearerToken"],
            _preload_content=False,
        )
        # An answer that nobody reads keeps its connection open until the garbage collector complains.
        await answer.read()
        return int(answer.status)


def answer_to(kubeconfig: Path, method: str, path: str, body: Any = None) -> int:  # noqa: ANN401  JSON
    """Return the status code of one request."""
    return asyncio.run(as_account(kubeconfig, method, path, body))


@pytest.fixture
def node(apiserver: ApiServer) -> Iterator[str]:
    """Make a Node with one extended resource."""
    apiserver.create_node("bench", {"example.com/stick": "1"})
    yield "bench"
    apiserver.delete_node("bench")


@pytest.mark.system
def test_a_node_has_the_capacity_that_was_asked_for(apiserver: ApiServer, node: str) -> None:
    """In both maps, beside what every Node has, and without a taint."""
    found = apiserver.node(node)
    assert found["status"]["capacity"]["example.com/stick"] == "1"
    assert found["status"]["allocatable"] == found["status"]["capacity"]
    assert "taints" not in found["spec"]


@pytest.mark.system
def test_a_node_records_its_field_managers(apiserver: ApiServer, node: str) -> None:
    """Who wrote what can be read back."""
    patch = {"status": {"capacity": {"example.com/stick": "2"}}}
    path = f"/api/v1/nodes/{node}/status?fieldManager=bench"
    assert apiserver.request("PATCH", path, patch, content_type=STRATEGIC_MERGE)[0] == 200
    (written,) = [entry for entry in apiserver.node(node)["metadata"]["managedFields"] if entry["manager"] == "bench"]
    assert "example.com/stick" in json.dumps(written["fieldsV1"])


@pytest.mark.system
def test_a_service_account_has_exactly_its_rights(apiserver: ApiServer, node: str) -> None:
    """PATCH_ONLY patches the status and reads nothing; the kubeconfig works for the client that the daemon uses."""
    kubeconfig = apiserver.service_account("patcher", rules=PATCH_ONLY)
    patch = {"status": {"capacity": {"example.com/stick": "2"}}}
    assert answer_to(kubeconfig, "PATCH", f"/api/v1/nodes/{node}/status", patch) == 200
    assert apiserver.node(node)["status"]["capacity"]["example.com/stick"] == "2"
    assert answer_to(kubeconfig, "GET", f"/api/v1/nodes/{node}") == 403
    assert answer_to(kubeconfig, "PATCH", f"/api/v1/nodes/{node}", {"spec": {}}) == 403


@pytest.mark.system
def test_rights_come_and_go_at_once(apiserver: ApiServer, node: str) -> None:
    """After `revoke` the next request is refused, after `grant` it is not."""
    kubeconfig = apiserver.service_account("watcher", rules=[*PATCH_ONLY, *WATCH])
    path = f"/api/v1/nodes/{node}"
    assert answer_to(kubeconfig, "GET", path) == 200
    apiserver.revoke("watcher")
    assert answer_to(kubeconfig, "GET", path) == 403
    apiserver.grant("watcher")
    assert answer_to(kubeconfig, "GET", path) == 200


@pytest.mark.system
def test_credentials_are_files_that_can_be_exchanged(apiserver: ApiServer, node: str, tmp_path: Path) -> None:
    """A bad token file is a 401; with a good one in its place the same kubeconfig works; so does a certificate."""
    apiserver.service_account("rotated", rules=WATCH)
    token = tmp_path / "token"
    token.write_text("bad")
    kubeconfig = apiserver.kubeconfig("by-file", token_file=token)
    assert answer_to(kubeconfig, "GET", f"/api/v1/nodes/{node}") == 401
    token.write_text(apiserver.token("rotated"))
    assert answer_to(kubeconfig, "GET", f"/api/v1/nodes/{node}") == 200
    own = apiserver.client_certificate(f"system:node:{node}", groups=["system:nodes"])
    by_certificate = apiserver.kubeconfig("kubelet", certificate=own)
    assert answer_to(by_certificate, "GET", f"/api/v1/nodes/{node}") == 200


@pytest.mark.system
def test_a_restarted_server_has_its_address_and_data(apiserver: ApiServer, node: str) -> None:
    """`stop` refuses connections; `start` brings the same Node back at the same URL."""
    before = apiserver.node(node)["metadata"]["uid"]
    apiserver.stop()
    with pytest.raises(ConnectionRefusedError):
        apiserver.request("GET", "/readyz")
    apiserver.start()
    assert apiserver.node(node)["metadata"]["uid"] == before


@pytest.mark.system
def test_a_frozen_server_takes_connections_and_says_nothing(apiserver: ApiServer) -> None:
    """The kernel accepts, nobody answers; thawed, it serves again."""
    address = urlsplit(apiserver.url)
    apiserver.freeze()
    with socket.create_connection((str(address.hostname), address.port or 0), timeout=0.5) as connection:
        # Plain HTTP on a TLS port: a running server answers at once, with a 400.
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(1)
    apiserver.thaw()
    assert apiserver.request("GET", "/readyz")[0] == 200


@pytest.mark.system
def test_a_pod_is_bound_when_the_node_has_its_resource(apiserver: ApiServer, node: str) -> None:
    """Scheduler and controller manager work, and the manager leaves a Node without heartbeats alone."""
    apiserver.service_account("unused", rules=PATCH_ONLY)
    apiserver.start_scheduler()
    apiserver.start_controller_manager()
    limits = {"limits": {"example.com/stick": "1"}}
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "user"},
        "spec": {"containers": [{"name": "user", "image": "none", "resources": limits}]},
    }
    status, answer = apiserver.request("POST", pods, pod)
    assert status == 201, answer
    eventually(lambda: apiserver.request("GET", f"{pods}/user")[1]["spec"].get("nodeName") == node)
    assert "taints" not in apiserver.node(node)["spec"]
    apiserver.request("DELETE", f"{pods}/user", {"gracePeriodSeconds": 0})


@pytest.mark.system
def test_a_server_that_cannot_start_says_why_and_leaves_nothing(control_plane: ApiServer, tmp_path: Path) -> None:
    """The exception holds the server's own words; etcd and the files are gone."""
    folder = assets(os.environ)
    assert folder is not None
    assert control_plane.home.exists()
    (tmp_path / "etcd").symlink_to(folder / "etcd")
    broken = tmp_path / "kube-apiserver"
    broken.write_text("#!/bin/sh\necho unknown flag: --nonsense >&2\nexit 7\n")
    broken.chmod(0o755)
    server = ApiServer(tmp_path)
    with pytest.raises(ApiServerError, match=r"(?s)status 7.*unknown flag: --nonsense"), server:
        pytest.fail("it started")
    assert not server.home.exists()
    assert not [pid for pid in pids() if str(server.home) in command_of(pid)]


def pids() -> list[int]:
    """Return the processes of this machine."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def command_of(pid: int) -> str:
    """Return the command line of a process, empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace")
    except OSError:
        return ""


# Sticks


@pytest.mark.system
def test_a_plugged_stick_is_in_the_udev_database(sticks: Sticks) -> None:
    """Ids, links and any property, as a real stick has them, and a devnode of the dialout group."""
    devnode = sticks.plug(
        "tty40",
        vendor="0403",
        product="6001",
        serial="A1",
        interface="00",
        port="pci-0-usb-0:1.4:1.0",
        links=["serial/by-id/usb-bench"],
        properties={"ID_MODEL": "Any_Model"},
    )
    sticks.settle()
    wanted = {
        "DEVNAME": "/dev/tty40",
        "ID_VENDOR_ID": "0403",
        "ID_MODEL_ID": "6001",
        "ID_SERIAL_SHORT": "A1",
        "ID_USB_INTERFACE_NUM": "00",
        "ID_PATH": "pci-0-usb-0:1.4:1.0",
        "ID_MODEL": "Any_Model",
        "DEVLINKS": "/dev/serial/by-id/usb-bench",
    }
    assert wanted.items() <= sticks.properties("tty40").items()
    assert (DEV / "serial/by-id/usb-bench").resolve() == devnode
    assert stat.S_IMODE(devnode.stat().st_mode) == 0o660
    assert devnode.group() == "dialout"


@pytest.mark.system
def test_the_account_has_rule_record_and_node(sticks: Sticks) -> None:
    """Whether udevd was not told, did not do it, or the daemon did not see it: these three tell."""
    sticks.plug("tty40", vendor="0658", product="0200")
    sticks.settle()
    rule = sticks.account()
    sticks.unplug("tty40")
    sticks.settle()
    gone = sticks.account()
    for part in ('KERNEL=="tty40"', "E:ID_VENDOR_ID=0658", "/dev/tty40 is there"):
        assert part in rule
        assert part not in gone


@pytest.mark.system
def test_an_unplugged_stick_has_neither_node_nor_link(sticks: Sticks) -> None:
    """What is left is the sysfs entry, which a console cannot lose."""
    devnode = sticks.plug("tty40", vendor="0403", product="6001", links=["serial/by-id/usb-bench"])
    sticks.settle()
    sticks.unplug("tty40")
    sticks.settle()
    assert not devnode.exists()
    assert not (DEV / "serial/by-id/usb-bench").is_symlink()
    assert Path("/sys/class/tty/tty40").exists()


@pytest.mark.system
def test_no_later_event_brings_the_ids_of_an_unplugged_stick_back(sticks: Sticks) -> None:
    """Its rule is gone: a coldplug, as at boot, finds a plain console."""
    entry = Path("/sys/class/tty/tty40")
    sticks.plug("tty40", vendor="0403", product="6001")
    sticks.unplug("tty40")
    subprocess.run(["udevadm", "trigger", "--action=add", str(entry)], check=True)
    sticks.settle()
    shown = subprocess.run(
        ["udevadm", "info", "--query=property", f"--path={entry}"], capture_output=True, text=True, check=True
    )
    assert "DEVNAME=/dev/tty40" in shown.stdout
    assert "ID_VENDOR_ID" not in shown.stdout


@pytest.mark.system
def test_a_stick_that_was_handled_by_older_rules_has_its_ids_once_all_is_settled(sticks: Sticks) -> None:
    """As a busy udevd handles one: the rules of the stick come after its event."""
    devnode = sticks.plug("tty40", vendor="0403", product="6001")
    RULES.unlink()
    subprocess.run(["udevadm", "control", "--reload"], check=True)
    subprocess.run(["udevadm", "trigger", "--action=add", f"--name-match={devnode}", "--settle"], check=True)
    assert "ID_VENDOR_ID" not in sticks.properties("tty40")
    sticks.settle()
    assert sticks.properties("tty40")["ID_VENDOR_ID"] == "0403"


@pytest.mark.system
def test_the_next_stick_inherits_nothing(sticks: Sticks) -> None:
    """Another stick in the same place has its own ids only."""
    sticks.plug("tty40", vendor="0403", product="6001", serial="A1")
    sticks.unplug("tty40")
    sticks.plug("tty40", vendor="10c4", product="8a2a")
    sticks.settle()
    found = sticks.properties("tty40")
    assert (found["ID_VENDOR_ID"], found["ID_MODEL_ID"]) == ("10c4", "8a2a")
    assert "ID_SERIAL_SHORT" not in found


@pytest.mark.system
@pytest.mark.parametrize("serial", ['a"b', "back\\slash", "$env{PATH} %k $$", "é中", "esc\x1b[31m", "#,="])
def test_serials_reach_the_database_unchanged(sticks: Sticks, serial: str) -> None:
    """Nothing in a value is taken for the language of udev rules."""
    sticks.plug("tty41", vendor="0403", product="6001", serial=serial)
    sticks.settle()
    assert sticks.properties("tty41")["ID_SERIAL_SHORT"] == serial


@pytest.mark.system
def test_a_listener_hears_both_events_with_the_ids(sticks: Sticks) -> None:
    """`add` and `remove` come over the real netlink socket; the remove still carries the ids, as udevd's does."""
    monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="udev")
    monitor.filter_by("tty")
    monitor.start()
    sticks.plug("tty42", vendor="0403", product="6001")
    sticks.settle()
    sticks.unplug("tty42")
    heard = [monitor.poll(timeout=10) for _ in range(2)]
    assert [(device.action, device.properties["ID_VENDOR_ID"]) for device in heard] == [
        ("add", "0403"),
        ("remove", "0403"),
    ]


@pytest.mark.system
def test_consoles_are_put_back_after_a_test(sticks: Sticks) -> None:
    """Node, mode, owner and database are those of before, whether the stick was left plugged or not."""
    sticks.settle()
    # Unlike anything that a udev rule sets.
    (DEV / "tty43").chmod(0o604)
    before = [Node.of(DEV / tty) for tty in ("tty43", "tty44")]
    with Sticks() as others:
        others.plug("tty43", vendor="0403", product="6001")
        others.plug("tty44", vendor="0403", product="6001")
        others.unplug("tty44")
    assert [Node.of(DEV / tty) for tty in ("tty43", "tty44")] == before
    assert not RULES.exists()
    for tty in ("tty43", "tty44"):
        assert "ID_VENDOR_ID" not in sticks.properties(tty)


@pytest.mark.system
def test_only_spare_consoles_become_sticks(sticks: Sticks) -> None:
    """The consoles that people use are out of reach."""
    with pytest.raises(ValueError, match="tty10 to tty63"):
        sticks.plug("tty1", vendor="0403", product="6001")
    assert "tty1" not in CONSOLES


@pytest.mark.system
def test_device_nodes_get_their_owners_back_also_after_a_failure(udevd: None) -> None:  # noqa: ARG001  holds the lock
    """Whatever changed mode or owner, or removed a node, meanwhile."""
    before = Node.of(DEV / "tty45"), Node.of(DEV / "tty46")
    with contextlib.suppress(LookupError), ownership_kept():
        (DEV / "tty45").chmod(0o604)
        (DEV / "tty46").unlink()
        raise LookupError
    assert (Node.of(DEV / "tty45"), Node.of(DEV / "tty46")) == before
