"""The Node of a real kubelet, to which one daemon hands sticks over, test after test, and the pods that get them."""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from system.apiserver import NAMESPACE
from system.busybox import IMAGE
from system.daemon import Daemon
from system.udevd import SYS
from system.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from system.apiserver import ApiServer, Object
    from system.kubelet import Kubelet
    from system.udevd import Sticks

CONFIG = """
resources:
  - name: %(prefix)s.example/zstick
    match: [{vendor: "0658", product: "0200"}]
    publish: %(zstick)s
    removalGrace: 500ms%(evict)s
  - name: %(prefix)s.example/mover
    match: [{vendor: "0403", product: "6001"}]
    publish: %(mover)s
    removalGrace: 500ms
  - name: %(prefix)s.example/witness
    match: [{vendor: 10c4, product: ea60}]
    publish: devicePlugin
    removalGrace: 500ms
sweep: 2s
"""
SCRIPT = """
trap 'exit 0' TERM
exec 3<>%(path)s && stty -icanon min 7 <&3 && { stty 19200 <&3 2> /dev/null || true; } &&
    setting=$(stty -a <&3 2> /dev/null | grep -o 'min = [0-9]*') &&
    echo opened $(stat -c %%t:%%T %(path)s) $setting $(stty speed <&3) $DEVICE_%(prefix)s_EXAMPLE_%(name)s
sleep 2147483647 & wait
"""
"""Opens the stick, sets it up, and prints the number of the device, its settings and the variable."""
REACH = """
rm -f /tmp/reached && mknod /tmp/reached c %(major)s %(minor)s && { exec 3<>/tmp/reached && echo opened; }
"""
"""Makes a devnode and opens it. A container with the default capabilities may make any, and opens only what its device cgroup allows."""
FORBIDDEN = "Operation not permitted"
"""What the kernel answers (EPERM) where the device cgroup forbids to open a devnode; without access by its mode it is EACCES."""
SEEN = """
find / '(' -path /proc -o -path /sys ')' -prune -o \\
    '(' -name 'tty[0-9S]*' -o -name zstick -o -name '*devwatch*' -o -name device-plugins -o -name udev -o -name cdi ')' -print
! grep -e device-plugins -e /run/udev -e /run/cdi /proc/mounts
"""
"""Prints what a container sees of the sticks, and of the folders of the host that devwatch uses: paths, and lines of its mounts."""
SPEED, CONSOLE_SPEED = 19200, 38400
"""Baud: what is set, and what a virtual console, which takes any other setting of termios(3), has nevertheless."""
NO_PRIVILEGE: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
SOME_USER: Object = {"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": True, "supplementalGroups": [20]}
"""Devnodes of serial ports belong to group dialout, 20 on Debian."""
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
IDS = {"zstick": ("0658", "0200"), "mover": ("0403", "6001"), "witness": ("10c4", "ea60")}
"""Vendor and product of the sticks of each resource."""
WORKLOADS = f"/apis/apps/v1/namespaces/{NAMESPACE}"

_MERGE = "application/merge-patch+json"
_HURRY = 1.0
"""Seconds between two changes of a pod by which the kubelet is made to look at it."""


@dataclass(slots=True, kw_only=True)
class HandingOver:
    """The daemon of a kubelet's Node, which several tests use one after the other, and can kill: there is one for a Node."""

    apiserver: ApiServer
    kubelet: Kubelet
    kubeconfig: Path
    home: Path
    prefix: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:6]}")
    """That of the names of the resources."""
    ways: dict[str, str] = field(default_factory=lambda: {"zstick": "devicePlugin", "mover": "nodeStatus"})
    """How the resources are published; the witness always by `devicePlugin`."""
    env: dict[str, str] = field(default_factory=dict)
    """What a fresh start has in its environment besides."""
    running: Daemon | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def start(self, *, evict: str = "", **ways: str) -> Daemon:
        """Have the daemon run, with another way of publishing of these resources, and evictions for `zstick`.

        One that runs is given the configuration. After a fresh start the kubelet has taken over the first lists.
        """
        self.ways |= ways
        eviction = f"\n    evict: {{after: {evict}}}" if evict else ""
        text = CONFIG % {"prefix": self.prefix, "evict": eviction, **self.ways}
        config = self.home / "config.yaml"
        if self.running is not None and self.running.process.status is None:
            if text != config.read_text():
                self._reload(self.running, config, text)
            return self.running
        config.write_text(text)
        daemon = self.launch()
        self.await_registered(daemon)
        return daemon

    def launch(self) -> Daemon:
        """Start the daemon with the configuration that is there, and wait for nothing."""
        config = self.home / "config.yaml"
        where = ("--config", str(config), "--node-name", self.kubelet.node, "--kubeconfig", str(self.kubeconfig))
        options = ("--listen", "127.0.0.1:0", "--log-format", "json")
        self.running = self._stack.enter_context(Daemon(*where, *options, home=self.home, env=self.env))
        return self.running

    def _reload(self, daemon: Daemon, config: Path, text: str) -> None:
        since = len(daemon.log)
        config.write_text(text)
        daemon.signal(signal.SIGHUP)
        daemon.wait_log("config.reloaded", since=since)

    def await_registered(self, daemon: Daemon, since: int = 0) -> None:
        """Wait until the log says, from this record on, that the kubelet has taken over each resource that it hands over."""
        for name, way in (*self.ways.items(), ("witness", "devicePlugin")):
            if way == "devicePlugin":
                daemon.wait_log("kubelet.registered", since=since, resource=f"{self.prefix}.example/{name}")
        if "dra" in self.ways.values():
            daemon.wait_log("kubelet.registered", since=since, driver="devwatch.io")

    def figures(self, name: str = "zstick") -> tuple[str | None, str | None]:
        """Return capacity and allocatable of a resource."""
        name = f"{self.prefix}.example/{name}"
        status = self.apiserver.node(self.kubelet.node)["status"]
        return (status["capacity"].get(name), status["allocatable"].get(name))

    def shows(self, capacity: int, allocatable: int, name: str = "zstick") -> bool:
        """Return True; fail where the Node shows other figures."""
        assert self.figures(name) == (str(capacity), str(allocatable))
        return True

    def readiness(self) -> str:
        """Return what `/readyz` says; of a daemon that is ready the first line alone."""
        assert self.running is not None
        address = str(self.running.wait_log("daemon.started")["listen"])
        connection = http.client.HTTPConnection(address)
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        return text if answer.status != http.HTTPStatus.OK else text.partition("\n")[0]

    def status(self) -> str:
        """Return what `devwatch status` shows the administrator."""
        command = [sys.executable, "-m", "devwatch", "status", "--kubeconfig", str(self.apiserver.admin_kubeconfig)]
        return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL).stdout

    def rest(self) -> None:
        """Wait until the daemon of former tests has forgotten their sticks; where none runs, have it know nothing of them."""
        if self.running is not None and self.running.process.status is None:
            self.running.wait_for(lambda: all(self.shows(0, 0, name) for name in IDS), what="Node without sticks")
            return
        body = {"metadata": {"annotations": {"devwatch.io/devices": None}}}
        self.apiserver.request("PATCH", f"/api/v1/nodes/{self.kubelet.node}", body, content_type=_MERGE)

    def close(self) -> None:
        """Kill the daemon."""
        self._stack.close()


@dataclass(slots=True, kw_only=True)
class Workloads:
    """The pods of one test, which open the stick that the kubelet gives them."""

    apiserver: ApiServer
    kubelet: Kubelet
    prefix: str
    name: str = "zstick"
    """Which resource the pods ask for."""
    made: list[str] = field(default_factory=list)
    """The workloads of the test, by path."""
    _hurried: float = 0.0

    # -- making

    def pod(self, *, user: Object | None = None, **spec: Any) -> Object:  # noqa: ANN401 - as the Pod API has it
        """Make a pod that opens its stick as `user`, and return it."""
        return self._make(PODS, {**self.template(user=user, **spec), "metadata": _metadata()})

    def replicas(self, count: int, template: Object | None = None) -> Object:
        """Make a ReplicaSet of such pods, and return it."""
        return self._workload("replicasets", template, replicas=count)

    def stateful(self) -> Object:
        """Make a StatefulSet of one such pod, and return it."""
        return self._workload("statefulsets", replicas=1, serviceName="none")

    def template(self, *, user: Object | None = None, path: str = "", **spec: Any) -> Object:  # noqa: ANN401 - as above
        """Return the template of a pod that opens its stick as `user`, at `path` or where the kubelet puts it."""
        script = {"prefix": self.prefix.upper(), "name": self.name.upper(), "path": path or f"/dev/{self.name}"}
        container = {
            "name": "c",
            "image": IMAGE,
            "imagePullPolicy": "Never",
            "command": ["sh", "-c", SCRIPT % script],
            "resources": {"limits": {f"{self.prefix}.example/{self.name}": 1}},
            "securityContext": NO_PRIVILEGE,
        }
        general = {
            "nodeSelector": {"kubernetes.io/hostname": self.kubelet.node},
            "hostNetwork": True,  # the machine has no other network for pods
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "securityContext": user or {},
            "containers": [container],
        }
        return {"spec": general | spec}

    def privileged_template(self, tty: str) -> Object:
        """Return the template of a pod that has its stick by `hostPath` and `privileged`, as `nodeStatus` needs it."""
        template = self.template(path=f"/dev/{tty}")
        (container,) = template["spec"]["containers"]
        container |= {
            "securityContext": {"privileged": True},
            "volumeMounts": [{"name": "stick", "mountPath": f"/dev/{tty}"}],
        }
        template["spec"]["volumes"] = [{"name": "stick", "hostPath": {"path": f"/dev/{tty}", "type": "CharDevice"}}]
        return template

    def change(self, workload: Object, template: Object) -> None:
        """Give a ReplicaSet another template, for the pods that it makes from now on."""
        path = f"{WORKLOADS}/replicasets/{workload['metadata']['name']}"
        found = must(self.apiserver, "GET", path)
        found["spec"]["template"]["spec"] = template["spec"]
        must(self.apiserver, "PUT", path, found)

    def _workload(self, kind: str, template: Object | None = None, **spec: object) -> Object:
        metadata = _metadata()
        labels = metadata["labels"]
        spec |= {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, **(template or self.template())},
        }
        return self._make(f"{WORKLOADS}/{kind}", {"metadata": metadata, "spec": spec})

    def _make(self, path: str, body: Object) -> Object:
        made = must(self.apiserver, "POST", path, body)
        self.made.append(f"{path}/{made['metadata']['name']}")
        return made

    # -- what the cluster shows

    def pods(self) -> list[Object]:
        """Return all pods of this test."""
        items: list[Object] = must(self.apiserver, "GET", f"{PODS}?labelSelector=test%3Ddevice-plugin")["items"]
        return items

    def phases(self) -> list[str]:
        """Return the phases of all pods of this test."""
        return sorted(pod["status"]["phase"] for pod in self.pods())

    def none_failed(self) -> bool:
        """Return True; fail with what the kubelet said of the pods that failed."""
        failed = [pod["status"] for pod in self.pods() if pod["status"]["phase"] == "Failed"]
        assert not failed, failed
        return True

    def read(self, pod: Object) -> Object | None:
        """Return the pod as it is now, None where it is gone, also if another has its name."""
        status, found = self.apiserver.request("GET", f"{PODS}/{pod['metadata']['name']}")
        return found if status == 200 and uid_of(found) == uid_of(pod) else None

    def stays(self, pod: Object, *, restarts: int = 0) -> bool:
        """Return whether this very pod runs, its container restarted so many times, and is not asked to go."""
        found = self.read(pod)
        return (
            found is not None
            and "deletionTimestamp" not in found["metadata"]
            and found["status"]["phase"] == "Running"
            and [each["restartCount"] for each in found["status"]["containerStatuses"]] == [restarts]
        )

    def opened(self, pod: Object, tty: str, *, restart: int = 0, given: bool = True) -> bool:
        """Return whether the container has opened this stick, and no other; `given` by the kubelet, so that a variable names it."""
        self.none_failed()
        lines = self.kubelet.output(pod, "c", restart)
        major, minor = (int(number) for number in (SYS / tty / "dev").read_text("ascii").split(":"))
        speed = SPEED if tty.startswith("ttyS") else CONSOLE_SPEED
        variable = f" /dev/{self.name}" if given else ""
        assert lines in ([], [f"opened {major:x}:{minor:x} min = 7 {speed}{variable}"])
        return bool(lines)

    # -- steps

    def hurry(self, pod: Object) -> bool:
        """Have the kubelet look at the pod now, as at any change of it, and not 10 to 15 s after its last failure; return True."""
        if time.monotonic() >= self._hurried + _HURRY:
            self._hurried = time.monotonic()
            body = {"metadata": {"annotations": {"hurried": f"{self._hurried}"}}}
            self.apiserver.request("PATCH", f"{PODS}/{pod['metadata']['name']}", body, content_type=_MERGE)
        return True

    def restart_in_place(self, pod: Object) -> None:
        """Kill the container of the pod."""
        (status,) = (self.read(pod) or pod)["status"]["containerStatuses"]
        self.kubelet.kill_container(status["containerID"].removeprefix("containerd://"))

    def run_in(self, pod: Object, script: str) -> str:
        """Run a script in the container of the pod, and return all that it writes."""
        (status,) = (self.read(pod) or pod)["status"]["containerStatuses"]
        return self.kubelet.run_in_container(status["containerID"].removeprefix("containerd://"), script)

    def reach(self, pod: Object, tty: str) -> str:
        """Have the container of the pod make a devnode for this stick, and return what comes of opening it."""
        major, minor = (SYS / tty / "dev").read_text("ascii").strip().split(":")
        return self.run_in(pod, REACH % {"major": major, "minor": minor}).strip().rpartition(": ")[2]

    def seen_in(self, pod: Object) -> list[str]:
        """Return what the container of the pod sees of the sticks of the node and of devwatch."""
        return self.run_in(pod, SEEN).split()

    def delete(self, *pods: Object) -> None:
        """Delete the pods by force, and wait until the kubelet has ended them.

        An orderly end takes old kubelets up to 10 s.
        """
        for pod in pods:
            self.apiserver.request("DELETE", f"{PODS}/{pod['metadata']['name']}?gracePeriodSeconds=0")
        eventually(lambda: not any(self.kubelet.has_processes(pod) for pod in pods))

    def clear(self) -> None:
        """Remove the workloads and wait until the kubelet has ended their pods."""
        for path in self.made:
            self.apiserver.request("DELETE", f"{path}?propagationPolicy=Orphan")
        eventually(self._cleared, timeout=60)

    def _cleared(self) -> bool:
        pods = self.pods()
        self.delete(*pods)
        return not pods


@dataclass(slots=True, kw_only=True)
class Site(Workloads):
    """The Node of a real kubelet, with the daemon, the sticks and the pods of one test."""

    handing: HandingOver
    sticks: Sticks

    def start(self, *, evict: str = "", **ways: str) -> Daemon:
        """As `HandingOver.start`."""
        return self.handing.start(evict=evict, **ways)

    def shows(self, capacity: int, allocatable: int, name: str = "") -> bool:
        """As `HandingOver.shows`, of the resource that the pods ask for."""
        return self.handing.shows(capacity, allocatable, name or self.name)

    def plug(self, tty: str, serial: str | None, *, socket: int | None = None) -> None:
        """Plug a stick of the resource that the pods ask for, and wait for its record; one without a serial is known by its socket."""
        vendor, product = IDS[self.name]
        port = None if socket is None else f"pci-0000:00:14.0-usb-0:{socket}:1.0"
        self.sticks.plug(tty, vendor=vendor, product=product, serial=serial, port=port)
        self.sticks.settle()

    def holder(self, daemon: Daemon, tty: str, **spec: Any) -> Object:  # noqa: ANN401 - as the Pod API has it
        """Make a pod for a stick that is free; return it once it has opened this one and is seen to run."""
        # The scheduler would let a pod that comes before the stick wait for a second or two. With `dra` the Node always shows 0.
        if self.handing.ways.get(self.name) != "dra":
            daemon.wait_for(lambda: self.handing.figures(self.name)[1] != "0", what="free stick")
        pod = self.pod(**spec)
        self.await_opened(daemon, pod, tty)
        return pod

    def await_opened(self, daemon: Daemon, pod: Object, tty: str, *, restarts: int = 0) -> None:
        """Wait until the pod has opened this stick, after so many restarts of its container, and is seen to run."""
        daemon.wait_for(lambda: self.opened(pod, tty, restart=restarts), timeout=60, what="opened stick")
        daemon.wait_for(lambda: self.stays(pod, restarts=restarts), what="running pod")

    def await_end(self, daemon: Daemon, pod: Object) -> None:
        """Wait until a pod that was asked to go in order is gone.

        A kubelet such as 1.20 that sees the sandbox end before its own status of the container does removes it with its next collection of
        garbage: once a minute (kubelet.go, `ContainerGCPeriod`; kubelet_pods.go, `PodResourcesAreReclaimed`).
        """
        daemon.wait_for(lambda: self.hurry(pod) and self.read(pod) is None, timeout=90, what="pod that is gone")

    def witness(self, daemon: Daemon) -> None:
        """Plug and pull another stick, and wait until both have been processed: so has all that came before."""
        self.sticks.plug("tty60", vendor=IDS["witness"][0], product=IDS["witness"][1], serial="WITNESS")
        self.sticks.settle()
        daemon.wait_for(lambda: self.shows(1, 1, "witness"), what="witness that arrived")
        self.sticks.unplug("tty60")
        daemon.wait_for(lambda: self.shows(0, 0, "witness"), what="witness that departed")


def uid_of(pod: Object) -> str:
    """Return the UID of a pod."""
    return str(pod["metadata"]["uid"])


def title_of(pod: Object) -> str:
    """Return namespace and name of a pod, as messages have them."""
    return f"{NAMESPACE}/{pod['metadata']['name']}"


def waiting_reason(pod: Object | None) -> str | None:
    """Return why the container of a pod waits, None where it does not."""
    (status,) = pod["status"].get("containerStatuses", [{}]) if pod else [{}]
    reason: str | None = status.get("state", {}).get("waiting", {}).get("reason")
    return reason


def started_before(pod: Object | None) -> bool:
    """Return whether the container started in an earlier second than this one: times in pods are whole seconds."""
    (status,) = pod["status"]["containerStatuses"] if pod else [{}]
    started: str = status["state"]["running"]["startedAt"]
    return datetime.fromisoformat(started) < datetime.now(UTC).replace(microsecond=0)


def as_root(template: Object) -> Object:
    """Return the container of a template as root, with the capabilities that the container runtime gives by default."""
    (container,) = template["spec"]["containers"]
    return {**container, "securityContext": {"runAsUser": 0, "runAsNonRoot": False}}


def must(apiserver: ApiServer, method: str, path: str, body: Object | None = None) -> Object:
    """Return the answer to a request of the administrator; fail where it is refused."""
    status, answer = apiserver.request(method, path, body)
    assert 200 <= status < 300, answer
    return answer


def _metadata() -> Object:
    name = f"w-{uuid.uuid4().hex[:6]}"
    return {"name": name, "labels": {"test": "device-plugin", "app": name}}
