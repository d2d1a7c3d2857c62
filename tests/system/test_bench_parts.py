"""The test bench itself: what the other tests stand on must hold, and must leave the machine as it was."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import pyudev
from kubernetes_asyncio import client, config

from support.checkout import CHECKOUT
from system import testbed
from system.apiserver import NAMESPACE, PATCH_ONLY, STRATEGIC_MERGE, WATCH, ApiServer, ApiServerError, assets
from system.daemon import Daemon, DaemonEndedError
from system.process import Process
from system.udevd import CONSOLES, DEV, RULES, Node, Sticks, missing, ownership_kept
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = CHECKOUT / "tests"


# The gates


def pytest_in(folder: Path, source: str, **env: str) -> str:
    """Run pytest with our conftest over one test file, in an environment of these variables only; return its output."""
    shutil.copy(TESTS / "conftest.py", folder)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = system: changes the machine\n")
    (folder / "test_it.py").write_text(textwrap.dedent(source))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "-p", "no:asyncio", str(folder)],
        env={"PYTHONPATH": str(TESTS), "PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


MARKED = """
    import pytest

    @pytest.mark.system
    def test_it():
        pass

    def test_server(apiserver):
        pass

    def test_sticks(sticks):
        pass
"""


def test_what_changes_the_machine_is_skipped_unless_asked_for(tmp_path: Path) -> None:
    """The marker and each fixture skip, and the reason names the variable to set."""
    output = pytest_in(tmp_path, MARKED)
    assert "3 skipped" in output
    assert "needs DEVWATCH_SYSTEM_TESTS=1" in output


def test_a_missing_api_server_is_a_skip_that_names_the_variable(tmp_path: Path) -> None:
    """Without assets the reason is KUBEBUILDER_ASSETS."""
    output = pytest_in(
        tmp_path, "def test_it(apiserver): pass", DEVWATCH_SYSTEM_TESTS="1", KUBEBUILDER_ASSETS=str(tmp_path)
    )
    assert "1 skipped" in output
    assert "needs KUBEBUILDER_ASSETS" in output


@pytest.mark.parametrize("variable", ["CI", "DEVWATCH_CI"])
@pytest.mark.parametrize(
    "source",
    [
        "import pytest\ndef test_it(): pytest.skip('no luck')",
        "import pytest\n@pytest.mark.skip(reason='no luck')\ndef test_it(): pass",
        "import pytest\npytest.skip('no luck', allow_module_level=True)",
    ],
)
def test_in_ci_every_kind_of_skip_is_a_failure(tmp_path: Path, source: str, variable: str) -> None:
    """A skip in a test, by a mark or of a whole file fails, and still gives its reason."""
    output = pytest_in(tmp_path, source, **{variable: "true"})
    assert "a skip is a failure in CI: " in output
    assert "no luck" in output
    assert "1 failed" in output or "1 error" in output


def test_in_ci_an_expected_failure_is_none(tmp_path: Path) -> None:
    """An xfail has run, so it is left alone."""
    output = pytest_in(tmp_path, "import pytest\n@pytest.mark.xfail\ndef test_it(): assert 0", CI="true")
    assert "1 xfailed" in output


def test_outside_ci_a_skip_is_a_skip(tmp_path: Path) -> None:
    """The variables decide by their value: an empty one, 0 or false is off."""
    output = pytest_in(tmp_path, "import pytest\ndef test_it(): pytest.skip('no luck')", CI="false", DEVWATCH_CI="")
    assert "1 skipped" in output


STICKS_OF_ITS_OWN = """
    import pytest
    from system.udevd import Sticks

    @pytest.fixture
    def sticks():
        return Sticks()

    def test_it(sticks):
        assert {}
"""


def test_a_failure_tells_what_became_of_the_sticks(tmp_path: Path) -> None:
    """The machine is another one by the time that somebody looks."""
    assert str(RULES) in pytest_in(tmp_path, STICKS_OF_ITS_OWN.format("0 == 1"))
    assert str(RULES) not in pytest_in(tmp_path, STICKS_OF_ITS_OWN.format("0 == 0"))


def test_udevd_asks_for_root() -> None:
    """Anyone but root gets a plain reason."""
    assert missing(1000) == "needs root, to run udevd and to make device nodes"


def test_assets_are_complete_or_none(tmp_path: Path) -> None:
    """A folder counts when it has both servers."""
    (tmp_path / "etcd").touch()
    environ = {"KUBEBUILDER_ASSETS": str(tmp_path)}
    assert assets({}) is None
    assert assets(environ) is None
    (tmp_path / "kube-apiserver").touch()
    assert assets(environ) == tmp_path


def test_the_gate_opens_for_one_value_only() -> None:
    """DEVWATCH_SYSTEM_TESTS=0 does not mean yes."""
    assert testbed.closed({"DEVWATCH_SYSTEM_TESTS": "1"}) is None
    assert testbed.closed({"DEVWATCH_SYSTEM_TESTS": "0"})


# Waiting


def test_eventually_returns_the_first_true_value() -> None:
    """False values and failed assertions mean "not yet"."""
    answers: Iterator[object] = iter([0, AssertionError("no"), "yes"])

    def check() -> object:
        answer = next(answers)
        if isinstance(answer, AssertionError):
            raise answer
        return answer

    assert eventually(check) == "yes"


def test_eventually_says_what_was_wrong_last() -> None:
    """The deadline raises the reason of the check."""

    def check() -> bool:
        raise AssertionError("count is 3")

    with pytest.raises(AssertionError, match="count is 3"):
        eventually(check, timeout=0)


def test_eventually_does_not_swallow_other_exceptions() -> None:
    """A broken check is no "not yet"."""
    with pytest.raises(ZeroDivisionError):
        eventually(lambda: 1 / 0)


# Processes


def gone(pid: int) -> bool:
    """Return whether no such process runs; one that nobody has waited for yet counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter where it is waited for between open and read
        return True


def test_a_process_does_not_outlive_killed_tests(tmp_path: Path) -> None:
    """Also when pytest is killed and no finaliser runs."""
    source = f"""
        import os, pathlib, signal
        from system.process import Process
        print(Process(["sleep", "1000"], pathlib.Path({str(tmp_path / "sleep")!r})).pid, flush=True)
        input()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        # setpriv has asked the kernel for the signal before it becomes sleep.
        eventually(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n")
        parent.stdin.write(b"\n")
    eventually(lambda: gone(child))


def test_a_stopped_process_can_be_killed(tmp_path: Path) -> None:
    """SIGSTOP does not protect from the finaliser, and a second kill is no error."""
    process = Process(["sleep", "1000"], tmp_path / "sleep")
    process.signal(signal.SIGSTOP)
    process.kill()
    process.kill()
    assert process.status == -signal.SIGKILL


# The daemon's process, with a stand-in for the daemon

STAND_IN = """
import json, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
signal.signal(signal.SIGHUP, lambda *_: print(json.dumps({"event": "config.reloaded"}), file=sys.stderr, flush=True))
print("to stdout", flush=True)
print("no JSON", file=sys.stderr)
print(json.dumps({"event": "device.added", "devnode": "/dev/tty40"}), file=sys.stderr)
print(json.dumps({"event": "device.added", "devnode": "/dev/tty41", "args": sys.argv[1:]}), file=sys.stderr)
print(json.dumps({"event": "environ", "value": dict(os.environ)}), file=sys.stderr, flush=True)
while "--once" not in sys.argv:
    signal.pause()
"""
COMMAND = (sys.executable, "-c", STAND_IN)


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[Daemon]:
    """Run a program that logs as the daemon does."""
    with Daemon("--node-name=n", home=tmp_path, command=COMMAND) as daemon:
        yield daemon


def test_log_records_are_found_by_event_and_fields(stand_in: Daemon) -> None:
    """All fields must agree, what is no JSON is passed over, options reach the program."""
    assert stand_in.wait_log("device.added", devnode="/dev/tty41")["args"] == ["--node-name=n"]
    assert stand_in.wait_log("device.added")["devnode"] == "/dev/tty40"
    assert "no JSON" in stand_in.stderr
    assert stand_in.stdout == "to stdout\n"
    with pytest.raises(AssertionError, match=r"node\.patched"):
        stand_in.wait_log("node.patched", timeout=0)


def test_only_new_log_records_count_with_since(stand_in: Daemon) -> None:
    """A second occurrence is not taken for the first."""
    stand_in.wait_log("environ")
    stand_in.signal(signal.SIGHUP)
    stand_in.wait_log("config.reloaded")
    seen = len(stand_in.log)
    with pytest.raises(AssertionError, match=r"config\.reloaded"):
        stand_in.wait_log("config.reloaded", since=seen, timeout=0)
    stand_in.signal(signal.SIGHUP)
    stand_in.wait_log("config.reloaded", since=seen)


def test_terminate_returns_the_exit_status(stand_in: Daemon) -> None:
    """TERM reaches the program itself, not a wrapper."""
    stand_in.wait_log("environ")
    assert stand_in.terminate() == 3


def test_a_wait_ends_at_once_when_the_daemon_has(tmp_path: Path) -> None:
    """Nobody waits for the log of a dead process, and what it said last is shown."""
    with Daemon("--once", home=tmp_path, command=COMMAND) as daemon:
        assert daemon.wait() == 0
        daemon.wait_log("environ")
        with pytest.raises(DaemonEndedError, match=r"(?s)node\.patched.*status 0.*tty41"):
            daemon.wait_log("node.patched")


def test_the_daemon_sees_no_settings_of_the_tests_own_environment(tmp_path: Path) -> None:
    """Only what the test gives it decides; its home holds no kubeconfig."""
    source = f"""
        import json, os, pathlib
        os.environ |= {{"KUBECONFIG": "k", "NODE_NAME": "n", "DEVWATCH_CONFIG": "c", "OTHER": "o"}}
        from system.daemon import Daemon
        with Daemon(home=pathlib.Path({str(tmp_path)!r}), command={COMMAND!r}, env={{"DEVWATCH_LISTEN": "off"}}) as it:
            print(json.dumps(it.wait_log("environ")["value"]))
    """
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], env=env, capture_output=True, text=True, check=True
    )
    value = json.loads(done.stdout)
    assert {key for key in value if key.startswith("DEVWATCH_")} == {"DEVWATCH_LISTEN"}
    assert not {"KUBECONFIG", "NODE_NAME"} & value.keys()
    assert value["OTHER"] == "o"
    assert value["HOME"].startswith(str(tmp_path))


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
        properties={"ID_MODEL": "RFXtrx433"},
    )
    sticks.settle()
    wanted = {
        "DEVNAME": "/dev/tty40",
        "ID_VENDOR_ID": "0403",
        "ID_MODEL_ID": "6001",
        "ID_SERIAL_SHORT": "A1",
        "ID_USB_INTERFACE_NUM": "00",
        "ID_PATH": "pci-0-usb-0:1.4:1.0",
        "ID_MODEL": "RFXtrx433",
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
