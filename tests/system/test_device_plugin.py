"""The kubelet gives the stick to a pod without privileges, and every restart of either side leaves it there."""

from __future__ import annotations

import functools
import signal
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from system.apiserver import NAMESPACE, PATCH_ONLY, WATCH
from system.busybox import IMAGE
from system.evictionproxy import evicting_url
from system.test_journey import EVICT
from system.udevd import SYS
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from system.apiserver import ApiServer, Object
    from system.daemon import Daemon
    from system.kubelet import Kubelet
    from system.udevd import Sticks

    StartDaemon = Callable[..., Daemon]

pytestmark = pytest.mark.system

CONFIG = """
resources:
  - name: %(prefix)s.example/zstick
    match: [{vendor: "0658", product: "0200"}]
    publish: devicePlugin
    removalGrace: 500ms%(evict)s
  - name: %(prefix)s.example/witness
    match: [{vendor: 10c4, product: ea60}]
    publish: devicePlugin
    removalGrace: 500ms
sweep: 2s
"""
SCRIPT = """
trap 'exit 0' TERM
exec 3<>/dev/zstick && stty -icanon min 7 <&3 &&
    echo opened $(stat -c %%t:%%T /dev/zstick) $(stty -a <&3 | grep -o 'min = [0-9]*') $DEVICE_%s_EXAMPLE_ZSTICK
sleep 2147483647 & wait
"""
"""Opens the stick, sets it up, and prints the number of the device, a setting and the variable.

A virtual console takes any setting of termios(3) but the speed: it stays at 38400.
"""
NO_PRIVILEGE: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
SOME_USER: Object = {"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": True, "supplementalGroups": [20]}
"""Devnodes of serial ports belong to group dialout, 20 on Debian."""
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
WORKLOADS = f"/apis/apps/v1/namespaces/{NAMESPACE}"


@dataclass(slots=True, kw_only=True)
class Site:
    """The Node of a real kubelet, with the daemon and the sticks of one test."""

    apiserver: ApiServer
    kubelet: Kubelet
    sticks: Sticks
    kubeconfig: Path
    config: Path
    start_daemon: StartDaemon
    prefix: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:6]}")
    """That of the names of the resources: a kubelet goes on with those of former tests for 5 minutes."""
    made: list[str] = field(default_factory=list)
    """The workloads of the test, by path."""

    def start(self, *, evict: str = "") -> Daemon:
        """Start the daemon, and wait until the kubelet has taken over its first list."""
        eviction = f"\n    evict: {{after: {evict}}}" if evict else ""
        self.config.write_text(CONFIG % {"prefix": self.prefix, "evict": eviction})
        where = ("--config", str(self.config), "--node-name", self.kubelet.node, "--kubeconfig", str(self.kubeconfig))
        daemon = self.start_daemon(*where, "--listen", "off", "--log-format", "json")
        self.await_registered(daemon)
        return daemon

    def await_registered(self, daemon: Daemon, since: int = 0) -> None:
        """Wait until the log says, from this record on, that the kubelet has taken over both resources."""
        for name in ("zstick", "witness"):
            daemon.wait_log("kubelet.registered", since=since, resource=f"{self.prefix}.example/{name}")

    def plug(self, tty: str, serial: str | None, *, socket: int | None = None) -> None:
        """Plug a stick of resource `zstick`; one without a serial is known by its socket."""
        port = None if socket is None else f"pci-0000:00:14.0-usb-0:{socket}:1.0"
        self.sticks.plug(tty, vendor="0658", product="0200", serial=serial, port=port)

    # -- what the cluster shows

    def figures(self, name: str = "zstick") -> tuple[str | None, str | None]:
        """Return capacity and allocatable of a resource."""
        name = f"{self.prefix}.example/{name}"
        status = self.apiserver.node(self.kubelet.node)["status"]
        return (status["capacity"].get(name), status["allocatable"].get(name))

    def shows(self, capacity: int, allocatable: int, name: str = "zstick") -> bool:
        """Return True; fail where the Node shows other figures."""
        assert self.figures(name) == (str(capacity), str(allocatable))
        return True

    def pods(self) -> list[Object]:
        """Return all pods of this test."""
        items: list[Object] = _must(self.apiserver, "GET", f"{PODS}?labelSelector=test%3Ddevice-plugin")["items"]
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
        return found if status == 200 and _uid(found) == _uid(pod) else None

    def stays(self, pod: Object, *, restarts: int = 0) -> bool:
        """Return whether this very pod runs, its container restarted so many times, and is not asked to go."""
        found = self.read(pod)
        return (
            found is not None
            and "deletionTimestamp" not in found["metadata"]
            and found["status"]["phase"] == "Running"
            and [each["restartCount"] for each in found["status"]["containerStatuses"]] == [restarts]
        )

    # -- pods

    def pod(self, *, user: Object | None = None, **spec: object) -> Object:
        """Make a pod that opens its stick as `user`, and return it."""
        return self._make(PODS, {**self.template(user=user, **spec), "metadata": _metadata()})

    def replicas(self, count: int) -> Object:
        """Make a ReplicaSet of such pods, and return it."""
        return self._workload("replicasets", replicas=count)

    def stateful(self) -> Object:
        """Make a StatefulSet of one such pod, and return it."""
        return self._workload("statefulsets", replicas=1, serviceName="none")

    def template(self, *, user: Object | None = None, **spec: object) -> Object:
        """Return the template of a pod that opens its stick as `user`."""
        container = {
            "name": "c",
            "image": IMAGE,
            "imagePullPolicy": "Never",
            "command": ["sh", "-c", SCRIPT % self.prefix.upper()],
            "resources": {"limits": {f"{self.prefix}.example/zstick": 1}},
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

    def _workload(self, kind: str, **spec: object) -> Object:
        metadata = _metadata()
        labels = metadata["labels"]
        template = {"metadata": {"labels": labels}, **self.template()}
        spec |= {"selector": {"matchLabels": labels}, "template": template}
        return self._make(f"{WORKLOADS}/{kind}", {"metadata": metadata, "spec": spec})

    def _make(self, path: str, body: Object) -> Object:
        made = _must(self.apiserver, "POST", path, body)
        self.made.append(f"{path}/{made['metadata']['name']}")
        return made

    def opened(self, pod: Object, tty: str, *, restart: int = 0) -> bool:
        """Return whether the container has opened this stick, and no other."""
        self.none_failed()
        lines = self.kubelet.output(pod, "c", restart)
        major, minor = (int(number) for number in (SYS / tty / "dev").read_text("ascii").split(":"))
        assert lines in ([], [f"opened {major:x}:{minor:x} min = 7 /dev/zstick"])
        return bool(lines)

    def holder(self, daemon: Daemon, tty: str, **spec: Any) -> Object:  # noqa: ANN401 - as the Pod API has it
        """Make a pod and return it once it has opened this stick and is seen to run."""
        pod = self.pod(**spec)
        self.await_opened(daemon, pod, tty)
        return pod

    def await_opened(self, daemon: Daemon, pod: Object, tty: str, *, restarts: int = 0) -> None:
        """Wait until the pod has opened this stick, after so many restarts of its container, and is seen to run."""
        daemon.wait_for(lambda: self.opened(pod, tty, restart=restarts), timeout=60, what="opened stick")
        daemon.wait_for(lambda: self.stays(pod, restarts=restarts), what="running pod")

    def restart_in_place(self, pod: Object) -> None:
        """Kill the container of the pod."""
        (status,) = (self.read(pod) or pod)["status"]["containerStatuses"]
        self.kubelet.kill_container(status["containerID"].removeprefix("containerd://"))

    def delete(self, *pods: Object) -> None:
        """Delete the pods by force, and wait until the kubelet has ended them.

        An orderly end takes old kubelets up to 10 s.
        """
        for pod in pods:
            self.apiserver.request("DELETE", f"{PODS}/{pod['metadata']['name']}?gracePeriodSeconds=0")
        eventually(lambda: not any(self.kubelet.has_processes(pod) for pod in pods))

    def witness(self, daemon: Daemon) -> None:
        """Plug and pull another stick, and wait until both have been processed: so has all that came before."""
        self.sticks.plug("tty60", vendor="10c4", product="ea60", serial="WITNESS")
        daemon.wait_for(lambda: self.shows(1, 1, "witness"), what="witness that arrived")
        self.sticks.unplug("tty60")
        daemon.wait_for(lambda: self.shows(0, 0, "witness"), what="witness that departed")

    def forget(self) -> None:
        """Remove the annotation, by which a daemon would go on with the devices of former tests."""
        body = {"metadata": {"annotations": {"devwatch.io/devices": None}}}
        path = f"/api/v1/nodes/{self.kubelet.node}"
        self.apiserver.request("PATCH", path, body, content_type="application/merge-patch+json")

    def clear(self) -> None:
        """Remove the workloads and wait until the kubelet has ended their pods."""
        for path in self.made:
            self.apiserver.request("DELETE", f"{path}?propagationPolicy=Orphan")
        eventually(self._cleared, timeout=60)

    def _cleared(self) -> bool:
        pods = self.pods()
        self.delete(*pods)
        return not pods


@pytest.fixture(scope="module")
def credentials(kubelet: Kubelet, control_plane: ApiServer) -> Iterator[Path]:  # noqa: ARG001 - its Node comes first
    """Have a scheduler and a controller manager; return the kubeconfig of a daemon that may do all that it can use."""
    control_plane.service_account("handing-over", rules=[*PATCH_ONLY, *WATCH, *EVICT])
    control_plane.start_scheduler()
    control_plane.start_controller_manager()
    with evicting_url(control_plane) as url:
        yield control_plane.kubeconfig("handing-over", token=control_plane.token("handing-over"), server=url)
    control_plane.stop_control()


@pytest.fixture
def site(  # noqa: PLR0913, PLR0917 - all the real parts
    apiserver: ApiServer, kubelet: Kubelet, credentials: Path, tmp_path: Path, start_daemon: StartDaemon, sticks: Sticks
) -> Iterator[Site]:
    """Return the Node of the kubelet, without pods and sticks."""
    made = Site(
        apiserver=apiserver,
        kubelet=kubelet,
        sticks=sticks,
        kubeconfig=credentials,
        config=tmp_path / "config.yaml",
        start_daemon=start_daemon,
    )
    made.forget()
    yield made
    apiserver.start()
    kubelet.start("containerd")
    kubelet.start()
    made.clear()


def _metadata() -> Object:
    name = f"w-{uuid.uuid4().hex[:6]}"
    return {"name": name, "labels": {"test": "device-plugin", "app": name}}


def test_a_pod_without_any_privilege_opens_its_stick(site: Site) -> None:
    """`limits: {NAME: 1}` and nothing else: the stick is at `container.path`, and can be set up."""
    daemon = site.start()
    site.plug("tty40", "A")
    pod = site.holder(daemon, "tty40")
    assert site.shows(1, 1)
    assert "volumes" not in pod["spec"]
    assert "Traceback" not in daemon.stderr


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
    daemon.wait_for(lambda: _waiting_reason(site.read(pod)) == "CreateContainerError", what="container that waits")
    assert site.kubelet.output(pod, "c", 1) == []
    site.plug("tty42", None, socket=1)
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
    site.await_registered(daemon, since)
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
    site.apiserver.stop()
    site.sticks.unplug("tty40")
    site.kubelet.start()
    site.await_registered(daemon, since)
    site.apiserver.start()
    daemon.wait_for(lambda: site.shows(1, 0), timeout=60, what="lost stick")
    site.witness(daemon)
    assert site.shows(1, 0)
    site.plug("tty41", "A")
    daemon.wait_for(lambda: site.shows(1, 1), what="stick that is back")
    assert site.stays(pod)


def test_a_workload_has_its_stick_again_after_a_reboot_with_a_late_daemon(site: Site) -> None:
    """The kubelet starts with its checkpoint, all containers are gone, and the daemon comes when the Node shows nothing to allocate."""
    site.plug("tty40", "A")
    first = site.start()
    site.replicas(1)
    first.wait_for(lambda: site.phases() == ["Running"], what="pod that runs")
    first.signal(signal.SIGKILL)
    first.wait()
    site.kubelet.crash()
    site.kubelet.start("containerd")
    site.kubelet.start()
    eventually(lambda: site.figures()[1] == "0", timeout=60)
    second = site.start()
    second.wait_for(lambda: "Running" in site.phases(), timeout=60, what="pod that runs again")
    (pod,) = (pod for pod in site.pods() if pod["status"]["phase"] == "Running")
    restarts = pod["status"]["containerStatuses"][0]["restartCount"]
    second.wait_for(lambda: site.opened(pod, "tty40", restart=restarts), what="opened stick")
    assert site.shows(1, 1)


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
        daemon.wait_for(lambda: site.figures() in {("1", "0"), ("0", "0")}, what="lost stick")
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
    successor = eventually(lambda: next((other for other in site.pods() if _uid(other) != _uid(pod)), None))
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
    site.sticks.unplug("tty40")
    evicted = daemon.wait_log("pod.evicted")
    assert evicted["pod"] == f"{NAMESPACE}/{holder['metadata']['name']}"
    daemon.wait_for(lambda: site.read(holder) is None, what="pod that is gone")
    daemon.wait_for(lambda: site.phases() == ["Pending", "Running"], what="successor")
    (successor,) = (pod for pod in site.pods() if _uid(pod) not in {_uid(holder), _uid(other)})
    daemon.wait_for(lambda: site.shows(1, 1), what="one stick")
    site.plug("tty42", "A")
    site.await_opened(daemon, successor, "tty42")
    assert site.stays(other)


def _output(site: Site) -> Callable[[Object], list[str]]:
    return functools.partial(site.kubelet.output, container="c")


def _waiting_reason(pod: Object | None) -> str | None:
    (status,) = pod["status"].get("containerStatuses", [{}]) if pod else [{}]
    reason: str | None = status.get("state", {}).get("waiting", {}).get("reason")
    return reason


def _unschedulable(pod: Object | None) -> bool:
    conditions = pod["status"].get("conditions", []) if pod else []
    return any(condition.get("reason") == "Unschedulable" for condition in conditions)


def _uid(pod: Object) -> str:
    return str(pod["metadata"]["uid"])


def _must(apiserver: ApiServer, method: str, path: str, body: Object | None = None) -> Object:
    status, answer = apiserver.request(method, path, body)
    assert 200 <= status < 300, answer
    return answer
