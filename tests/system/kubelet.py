"""A real kubelet with real containers on this machine: containerd, runc, and an image that is made on the spot.

The folder of the kubelet is `/var/lib/kubelet`, because the path of the device plugins is a constant of it: there is one kubelet on a
machine. The lock of `system.udevd` keeps two test runs from each other, so it must be held. Everything is removed at the end, and what a
killed test run left behind is removed at the start.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import uuid
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from system import busybox
from system.apiserver import LOOPBACK, NAMESPACE, STRATEGIC_MERGE, free_ports
from system.process import Process
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from system.apiserver import ApiServer, Object

FOLDER = Path("/var/lib/kubelet")
NAME = os.environ.get("DEVWATCH_TEST_KUBELET", "devwatch-test-kubelet")
"""What a killed run left behind is known by it. The soak has another one: processes in inner namespaces are seen from outside."""
CGROUP = os.environ.get("DEVWATCH_TEST_CGROUP", "")
"""The cgroup, in every hierarchy, in which the kubelet makes those of the pods; empty for the root."""
HOME = Path("/var/lib", NAME)
"""Logs, settings, and the images and containers of containerd."""
RUN = Path("/run", NAME)
SOCKET = RUN / "containerd.sock"
LOGS = Path("/var/log/pods")

_END = "end-of-the-script"
_LINKED_LOGS = Path("/var/log/containers")
_BUNDLES = RUN / "state" / "io.containerd.runtime.v2.task" / "k8s.io"
_RUNC = Path("/run/containerd/runc/k8s.io")
"""Where containerd has runc keep its state, whatever its own folders are."""
_SYSCTLS = HOME / "sysctls.json"
_SET_BY_KUBELET = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
_OURS = {"kubelet", "containerd", "containerd-shim"}
"""The names of our programs as in proc_pid_comm(5), which has 15 characters."""
_PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr", "runc")
_READY_TIMEOUT = 90.0
_CONTAINERD = f"""
version = 2
root = "{HOME}/containerd"
state = "{RUN}/state"
disabled_plugins = [
    "io.containerd.internal.v1.opt",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{busybox.IMAGE}"
  disable_apparmor = true
  disable_tcp_service = true
  # Without CAP_SYS_RESOURCE runc may not lower it, and fails.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{HOME}/cni"
    conf_dir = "{HOME}/cni"
"""
# A Node is Ready only with some network configured. Pods with hostNetwork never use it.
_NETWORK = {"cniVersion": "0.4.0", "name": "none", "plugins": [{"type": "loopback"}]}


class KubeletError(Exception):
    """The kubelet or containerd did not start; the message holds its own words."""


def missing(uid: int, assets: Path) -> str | None:
    """Return what keeps this user on this machine from running a kubelet for the tests, in a few words, or None."""
    if uid != 0:
        return "needs root, to run a kubelet"
    if not (assets / "kubelet").exists():
        return "needs a kubelet in KUBEBUILDER_ASSETS"
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"needs containerd and runc ({', '.join(absent)})"
    if busybox.program() is None:
        return "needs a static busybox, as in Debian's busybox-static"
    if FOLDER.exists() and not HOME.exists():
        return f"{FOLDER} exists and is not ours: is this a node of a cluster? If not, remove it"
    return None


class Kubelet:
    """A kubelet and its containerd, as a context manager. The kubelet registers its Node itself, and keeps it Ready.

    `kill` and `start` are for one of the two: containers go on without either.
    """

    def __init__(self, apiserver: ApiServer, assets: Path, node: str) -> None:
        """Prepare the settings; `with` starts both."""
        self.node, self._apiserver = node, apiserver
        self._program = assets / "kubelet"
        self._processes: dict[str, Process] = {}

    def __enter__(self) -> Self:
        """Start both and wait until the Node is Ready, or leave nothing behind."""
        _clear()
        try:
            self._prepare()
            began = datetime.now(UTC).replace(microsecond=0)
            self.start("containerd")
            self._import_image()
            self.start("kubelet")
            self._await("kubelet", self._accepted)
            self._await_ready(began)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove everything."""
        self.close()

    # -- life

    def start(self, name: str = "kubelet") -> None:
        """Start the kubelet or containerd; of containerd also wait until it answers. Does nothing where it runs."""
        if name not in self._processes:
            self._processes[name] = Process(self._command(name), HOME / name)
        if name == "containerd":
            self._await(name, lambda: _ctr("version").returncode == 0)

    def kill(self, name: str = "kubelet") -> None:
        """Kill the kubelet or containerd, as a crash would."""
        self._processes.pop(name).kill()

    def signal(self, number: signal.Signals, name: str = "kubelet") -> None:
        """Send a signal to the kubelet or containerd, for instance STOP, to have it hang, and CONT."""
        self._processes[name].signal(number)

    def crash(self) -> None:
        """Kill the kubelet, containerd and every process of the pods, as the power switch would. Their files stay, but for sockets."""
        for name in reversed(list(self._processes)):
            self.kill(name)
        eventually(lambda: not _killed_processes())
        for bundle in _BUNDLES.glob("*"):  # containerd removes it at its next start, and leaves what is outside of it
            _remove_bundle(bundle)

    def kill_container(self, identifier: str) -> None:
        """Kill the processes of a container; the kubelet then starts one in its place, in the same pod."""
        done = _ctr("tasks", "kill", "--signal", "KILL", identifier)
        if done.returncode:
            raise KubeletError(f"ctr tasks kill {identifier}: {done.stderr.strip()}")

    def run_in_container(self, identifier: str, script: str) -> str:
        """Run a script in a container as its own processes run: the same user, capabilities and devices. Return all that it writes.

        It is run again where its end is missing: `ctr` loses now and then what a process writes that ends at once (seen with 1.6.20).
        """
        command = f"exec 2>&1\n(\n{script}\n)\necho {_END}"
        text = ""
        for _ in range(5):
            text = _ctr("tasks", "exec", "--exec-id", uuid.uuid4().hex, identifier, "sh", "-c", command).stdout.rstrip()
            if text.endswith(_END):
                return text.removesuffix(_END)
        raise AssertionError(text)

    def close(self) -> None:
        """End everything and remove what is left of it; may be called again."""
        self.crash()
        with contextlib.suppress(Exception):  # it may never have come up
            self._apiserver.delete_node(self.node)
        _clear()

    def output(self, pod: Object, container: str, restart: int = 0) -> list[str]:
        """Return the complete lines that a container has written so far, none if it has not started."""
        return [text for _, text in self._lines(pod, container, restart)]

    def first_line(self, pod: Object, container: str, restart: int = 0) -> tuple[datetime, str] | None:
        """Return the first line that a container has written since this restart, and when; None if it has written none yet."""
        found = next(self._lines(pod, container, restart), None)
        return (datetime.fromisoformat(found[0]), found[1]) if found else None

    def _lines(self, pod: Object, container: str, restart: int) -> Iterator[tuple[str, str]]:
        """Yield time (RFC 3339) and text of each complete line."""
        metadata = pod["metadata"]
        folder = LOGS / f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"
        try:
            text = (folder / container / f"{restart}.log").read_text("utf-8")
        except FileNotFoundError:
            return
        for line in text.rpartition("\n")[0].splitlines():
            when, _stream, _tag, content = line.split(" ", 3)
            yield when, content

    def has_processes(self, pod: Object) -> bool:
        """Return whether a process of the pod is left."""
        return any(pod["metadata"]["uid"] in str(cgroup) and _processes(cgroup) for cgroup in _cgroups())

    def account(self) -> str:
        """Return the last log lines of both, and what the Node's pods are in: for the report of a failed test."""
        tails = [f"--- {name}\n{process.tail()}" for name, process in self._processes.items()]
        with contextlib.suppress(OSError):
            _, found = self._apiserver.request("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")
            tails += [
                f"--- pod {pod['metadata']['name']}\n{json.dumps(pod['status'])}" for pod in found.get("items", [])
            ]
        return "\n".join(tails)

    # -- steps of the start

    def _prepare(self) -> None:
        for folder in (HOME / "cni", RUN):
            folder.mkdir(parents=True)
        values = {name: (Path("/proc/sys") / name).read_text("ascii") for name in _SET_BY_KUBELET}
        _SYSCTLS.write_text(json.dumps(values))
        (HOME / "cni" / "10-none.conflist").write_text(json.dumps(_NETWORK))
        (HOME / "containerd.toml").write_text(_CONTAINERD)
        (port,) = free_ports(1)
        # JSON is YAML.
        (HOME / "kubelet.yaml").write_text(json.dumps(_settings(port)))

    def _command(self, name: str) -> list[str]:
        if name == "containerd":
            return [name, "--config", str(HOME / "containerd.toml")]
        user = f"system:node:{self.node}"
        certificate = self._apiserver.client_certificate(user, groups=["system:nodes"])
        flags = [
            f"--config={HOME / 'kubelet.yaml'}",
            f"--kubeconfig={self._apiserver.kubeconfig('kubelet', certificate=certificate)}",
            f"--hostname-override={self.node}",
            f"--container-runtime-endpoint=unix://{SOCKET}",
            "--v=2",
        ]
        shown = subprocess.run([self._program, "--help"], capture_output=True, text=True, check=True).stdout
        # Before 1.27 another runtime, before 1.24 the default, can be chosen.
        remote = ["--container-runtime=remote"] if " --container-runtime " in shown else []
        return [str(self._program), *flags, *remote]

    def _import_image(self) -> None:
        archive, program = HOME / "busybox.tar", busybox.program()
        if program is None:
            raise KubeletError("there is no static busybox")
        busybox.write_archive(archive, program)
        done = _ctr("images", "import", str(archive))
        if done.returncode:
            raise KubeletError(f"ctr images import: {done.stderr.strip()}")

    def _accepted(self) -> bool:
        """Do what controllers do for a Node that the kubelet has registered. Return whether it has.

        Once it has addresses for pods, an old kubelet reports that it is ready without the pause of 10 s between two reports, if it is by
        then: hence the wait for the socket, which it makes when it has reached containerd.
        """
        if not (FOLDER / "device-plugins" / "kubelet.sock").exists():
            return False
        addresses = "10.1.0.0/24"
        body = {"spec": {"taints": None, "podCIDR": addresses, "podCIDRs": [addresses]}}
        path = f"/api/v1/nodes/{self.node}"
        return self._apiserver.request("PATCH", path, body, content_type=STRATEGIC_MERGE)[0] == HTTPStatus.OK

    def _await_ready(self, began: datetime) -> None:
        def ready() -> bool:
            status, node = self._apiserver.request("GET", f"/api/v1/nodes/{self.node}")
            conditions = node["status"].get("conditions", []) if status == 200 else []
            return any(
                condition["type"] == "Ready"
                and condition["status"] == "True"
                and datetime.fromisoformat(condition["lastHeartbeatTime"]) >= began
                for condition in conditions
            )

        self._await("kubelet", ready)

    def _await(self, name: str, check: Callable[[], bool]) -> None:
        def up() -> bool:
            status = self._processes[name].status
            if status is not None:
                raise KubeletError(f"{name} ended with status {status}\n{self.account()}")
            return check()

        try:
            eventually(up, timeout=_READY_TIMEOUT)
        except AssertionError:
            raise KubeletError(f"{name} is not ready\n{self.account()}") from None


def _settings(port: int) -> Object:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": LOOPBACK,
        "port": port,
        "healthzPort": 0,
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failSwapOn": False,
        "failCgroupV1": False,  # from 1.31 on
        "resolvConf": "/etc/resolv.conf",
        "rotateCertificates": False,
        # The rest of the machine is left alone.
        "makeIPTablesUtilChains": False,
        "volumePluginDir": str(HOME / "volume-plugins"),
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }


def _ctr(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["ctr", "--address", str(SOCKET), "--namespace", "k8s.io", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# -- removal, of what we left or of what a killed test run did


def _clear() -> None:
    """Remove everything, by what is found on the machine. Raises `AssertionError` where something resists."""
    eventually(lambda: not _killed_processes())
    for point in sorted(_mount_points(), reverse=True):
        subprocess.run(["umount", point], check=True)
    for bundle in _BUNDLES.glob("*"):
        _remove_bundle(bundle)
    eventually(lambda: not _remaining_cgroups())
    if _SYSCTLS.exists():
        for name, value in json.loads(_SYSCTLS.read_text()).items():
            (Path("/proc/sys") / name).write_text(value, "ascii")
    _remove_logs()
    if HOME.exists():
        shutil.rmtree(FOLDER, ignore_errors=True)
    for folder in (RUN, HOME):
        shutil.rmtree(folder, ignore_errors=True)


def _killed_processes() -> set[int]:
    """Kill our programs and everything in the pods' cgroups, and return what was there to be killed."""
    found = {pid for cgroup in _cgroups() for pid in _processes(cgroup)}
    found |= {int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _is_ours(entry)}
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def _is_ours(process: Path) -> bool:
    try:
        name = (process / "comm").read_text().strip()
        arguments = (process / "cmdline").read_bytes()
    except OSError:  # it has ended
        return False
    return name in _OURS and any(str(folder).encode() in arguments for folder in (HOME, RUN))


def _mount_points() -> Iterator[str]:
    for line in Path("/proc/mounts").read_text("utf-8").splitlines():
        point = line.split()[1]
        if HOME.exists() and any(Path(point).is_relative_to(folder) for folder in (FOLDER, HOME, RUN)):
            yield point


def _remove_bundle(bundle: Path) -> None:
    """Remove what the shim of a container has outside of the bundle: its socket, and the state of runc."""
    with contextlib.suppress(FileNotFoundError):
        Path(_shim_address(bundle).removeprefix("unix://")).unlink(missing_ok=True)
    shutil.rmtree(_RUNC / bundle.name, ignore_errors=True)


def _shim_address(bundle: Path) -> str:
    """Return where the shim listens. containerd 2 has it in bootstrap.json, containerd 1 in a file of its own."""
    with contextlib.suppress(FileNotFoundError):
        return str(json.loads((bundle / "bootstrap.json").read_bytes())["address"])
    return (bundle / "address").read_text("ascii").strip()


def _processes(cgroup: Path) -> list[int]:
    """Return the processes of a cgroup, none where it has gone meanwhile (read(2) then gives ENODEV)."""
    try:
        return [int(pid) for pid in (cgroup / "cgroup.procs").read_text("ascii").split()]
    except OSError:
        return []


def _remaining_cgroups() -> list[Path]:
    for cgroup in _cgroups():
        with contextlib.suppress(OSError):
            cgroup.rmdir()
    return list(_cgroups())


def _cgroups() -> Iterator[Path]:
    """Yield every cgroup of pods, in the one hierarchy or in those of the controllers, where it is ours; the innermost first."""
    if HOME.exists():
        pods = str(Path(CGROUP, "kubepods"))
        for pattern in (pods, f"*/{pods}"):
            for top in Path("/sys/fs/cgroup").glob(pattern):
                # It passes over what has gone meanwhile.
                for folder, _, _ in os.walk(top, topdown=False):
                    yield Path(folder)


def _remove_logs() -> None:
    for folder in LOGS.glob(f"{NAMESPACE}_*"):
        shutil.rmtree(folder)
    for link in _LINKED_LOGS.glob(f"*_{NAMESPACE}_*"):
        link.unlink()
    for parent in (LOGS, _LINKED_LOGS):
        with contextlib.suppress(OSError):  # it is not there, or others use it
            parent.rmdir()
