"""The workload follows the stick: pulled from one node and plugged into another, its pod is evicted here and made anew there."""

from __future__ import annotations

import json
import signal
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from system.apiserver import NAMESPACE, PATCH_ONLY, WATCH
from system.evictionproxy import evicting_url, policy_version
from system.test_end_to_end import World
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from system.apiserver import ApiServer, Object
    from system.daemon import Daemon
    from system.udevd import Sticks

    StartDaemon = Callable[..., Daemon]

pytestmark = pytest.mark.system

STICK: dict[str, Any] = {"vendor": "0658", "product": "0200"}
RESOURCE, WITNESS = "aeotec/zstick", "witness.io/stick"
EVICT: list[Object] = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
]
CONFIG = """
resources:
  - name: aeotec/zstick
    match: [{vendor: "0658", serial: "JOURNEY-%(site)s*"}]
    removalGrace: 500ms
    evict: {after: %(after)s}
  - name: witness.io/stick
    match: [{vendor: "0658", serial: "WITNESS-%(site)s"}]
    removalGrace: 500ms
    evict: {after: %(after)s}
sweep: 2s
"""
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
STRATEGIC_MERGE = "application/strategic-merge-patch+json"


class Site(World):
    """A node with its own daemon and its own sticks: those whose serial ends in its letter."""

    def __init__(self, letter: str, journey: Journey) -> None:
        """Make the Node; `configure` before `start`."""
        folder = journey.folder / letter
        folder.mkdir()
        super().__init__(journey.apiserver, folder, journey.start)
        self.letter, self.kubeconfig = letter, journey.kubeconfig

    def configure(self, *, after: str = "1s") -> None:
        """Write the configuration, with this time until a pod is evicted."""
        self.config.write_text(CONFIG % {"site": self.letter, "after": after})


@dataclass(slots=True, kw_only=True)
class Journey:
    """Two nodes, A and B, a real scheduler and controller manager, and workloads that may run on either."""

    apiserver: ApiServer
    folder: Path
    start: StartDaemon
    sticks: Sticks
    kubeconfig: Path
    a: Site = field(init=False)
    b: Site = field(init=False)
    deployments: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the Nodes."""
        self.a, self.b = Site("A", self), Site("B", self)
        for site in (self.a, self.b):
            site.configure()

    def plug(self, tty: str, serial: str, *links: str) -> None:
        """Plug a stick into the node that its serial names, with these links in /dev."""
        self.sticks.plug(tty, **STICK, serial=serial, links=links)

    def deploy(self, *, host_path: str | None = None) -> Object:
        """Make a Deployment of one pod that requests the stick, and return the pod, bound and running.

        No kubelet runs here, so a pod that had a grace period would be terminating for ever.
        """
        name = f"w-{uuid.uuid4().hex[:6]}"
        labels = {"app": name}
        template = {"metadata": {"labels": labels}, "spec": {**_pod_spec(RESOURCE, host_path), **self._affinity()}}
        spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
        _must(self.apiserver, "POST", DEPLOYMENTS, {"metadata": {"name": name}, "spec": spec})
        self.deployments.append(name)
        pod = eventually(lambda: next((pod for pod in self.pods(name) if _node(pod)), None))
        run(self.apiserver, pod)
        return pod

    def _affinity(self) -> Object:
        """Keep to the two nodes: other tests leave theirs behind."""
        ours = {"key": "kubernetes.io/hostname", "operator": "In", "values": [self.a.node, self.b.node]}
        terms = {"nodeSelectorTerms": [{"matchExpressions": [ours]}]}
        return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}

    def pods(self, deployment: str) -> list[Object]:
        """Return the pods of a Deployment."""
        items: list[Object] = _must(self.apiserver, "GET", f"{PODS}?labelSelector=app%3D{deployment}")["items"]
        return items

    def successor(self, pod: Object) -> Object | None:
        """Return the pod that took the place of this one, once this one is gone and that one is bound."""
        pods = self.pods(pod["metadata"]["labels"]["app"])
        there = any(_uid(other) == _uid(pod) for other in pods)
        return next((other for other in pods if not there and _node(other)), None)

    def moves_to(self, site: Site, pod: Object, daemon: Daemon) -> None:
        """Wait until the pod's successor is bound to the node; the daemon has to run all the while."""
        successor = daemon.wait_for(lambda: self.successor(pod), timeout=90, what="bound successor")
        assert _node(successor) == site.node

    def stays(self, pod: Object) -> bool:
        """Return whether this very pod is still there and nobody has asked it to go."""
        status, found = self.apiserver.request("GET", f"{PODS}/{pod['metadata']['name']}")
        return status == 200 and _uid(found) == _uid(pod) and "deletionTimestamp" not in found["metadata"]

    def clear(self) -> None:
        """Remove the workloads and the Nodes; the garbage collector takes their pods."""
        for name in self.deployments:
            self.apiserver.request("DELETE", f"{DEPLOYMENTS}/{name}?propagationPolicy=Background")
        for site in (self.a, self.b):
            self.apiserver.delete_node(site.node)


@pytest.fixture(scope="module")
def control(control_plane: ApiServer) -> Iterator[Path]:
    """Have a scheduler and a controller manager; return the kubeconfig of a daemon that may do all that evictions need."""
    control_plane.service_account("traveller", rules=[*PATCH_ONLY, *WATCH, *EVICT])
    control_plane.start_scheduler()
    control_plane.start_controller_manager()
    with evicting_url(control_plane) as url:
        yield control_plane.kubeconfig("traveller", token=control_plane.token("traveller"), server=url)
    control_plane.stop_control()


@pytest.fixture
def journey(
    control: Path, apiserver: ApiServer, tmp_path: Path, start_daemon: StartDaemon, sticks: Sticks
) -> Iterator[Journey]:
    """Return two nodes of this test alone."""
    made = Journey(apiserver=apiserver, folder=tmp_path, start=start_daemon, sticks=sticks, kubeconfig=control)
    yield made
    apiserver.start()
    made.clear()


def run(apiserver: ApiServer, pod: Object) -> None:
    """Say that the pod runs and is ready, as its kubelet would."""
    conditions = [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady")]
    body = {"status": {"phase": "Running", "conditions": conditions}}
    _must(apiserver, "PATCH", f"{PODS}/{pod['metadata']['name']}/status", body)


def owned_pod(apiserver: ApiServer, node: str, resource: str, **labels: str) -> Object:
    """Make a pod that runs on a node, requests one of the resource and has a controlling owner; return it.

    The owner exists, or the garbage collector of the controller manager would take the pod.
    """
    name = f"p-{uuid.uuid4().hex[:6]}"
    configmaps = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
    owner = _must(apiserver, "POST", configmaps, {"metadata": {"name": name}})["metadata"]["uid"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": owner, "controller": True}
    metadata = {"name": name, "labels": labels, "ownerReferences": [reference]}
    pod = _must(apiserver, "POST", PODS, {"metadata": metadata, "spec": {**_pod_spec(resource), "nodeName": node}})
    run(apiserver, pod)
    return pod


def test_the_workload_follows_the_stick(journey: Journey) -> None:
    """Pulled from A and plugged into B: the pod on A is evicted and its successor runs on B. With -s it prints the timeline."""
    journey.plug("tty40", "JOURNEY-A")
    with journey.a.start() as here, journey.b.start() as there:
        here.wait_for(lambda: journey.a.shows("1"))
        there.wait_for(lambda: journey.b.shows("0"))
        pod = journey.deploy()
        assert _node(pod) == journey.a.node
        since, begin = (len(here.log), len(there.log)), time.time()
        journey.sticks.unplug("tty40")
        journey.plug("tty41", "JOURNEY-B")
        marks = _follow(journey, pod, here)
        journey.moves_to(journey.b, pod, here)
        evicted = here.wait_log("pod.evicted")
        assert (evicted["pod"], evicted["lost"]) == (_title(pod), ["/dev/tty40"])
        marks |= _records("A", here.log[since[0] :]) | _records("B", there.log[since[1] :])
        print(_timeline(marks, begin))  # noqa: T201 - for who asks for it with -s
        here.wait_for(lambda: journey.a.devices()[RESOURCE] == [])


def test_a_daemon_that_is_killed_in_mid_journey_leaves_the_task_to_the_next(journey: Journey) -> None:
    """Killed after the count fell and before the eviction, and started again: the Node's annotation tells what is lost."""
    journey.a.configure(after="3s")
    journey.plug("tty40", "JOURNEY-A")
    with journey.a.start() as first, journey.b.start() as there:
        first.wait_for(lambda: journey.a.shows("1"))
        there.wait_for(lambda: journey.b.shows("0"))
        pod = journey.deploy()
        bound = int(time.time())
        first.wait_for(lambda: int(time.time()) > bound)  # after a restart a pod of the same second is spared
        journey.sticks.unplug("tty40")
        first.wait_for(lambda: journey.a.shows("0"))
        first.signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        assert not _logged(first, "pod.evicted")
        journey.plug("tty41", "JOURNEY-B")
        with journey.a.start() as second:
            journey.moves_to(journey.b, pod, second)
            second.wait_log("pod.evicted", pod=_title(pod))


def test_an_outage_of_the_api_server_in_mid_journey_delays_it(journey: Journey) -> None:
    """The server is away when the eviction is due: it happens when the server is back."""
    journey.a.configure(after="3s")
    journey.plug("tty40", "JOURNEY-A")
    with journey.a.start() as here, journey.b.start() as there:
        here.wait_for(lambda: journey.a.shows("1"))
        there.wait_for(lambda: journey.b.shows("0"))
        pod = journey.deploy()
        journey.sticks.unplug("tty40")
        here.wait_for(lambda: journey.a.shows("0"))
        journey.apiserver.stop_control()  # it may not have heard of the "0" yet, and would bind by what it remembers
        journey.apiserver.stop()
        assert not _logged(here, "pod.evicted")
        journey.plug("tty41", "JOURNEY-B")
        there.wait_log("node.patch_failed")
        here.wait_log("pod.eviction_refused")
        journey.apiserver.start()
        journey.apiserver.start_scheduler()
        journey.apiserver.start_controller_manager()
        journey.moves_to(journey.b, pod, here)
        assert "Traceback" not in here.stderr + there.stderr


def test_a_stick_that_is_back_in_time_evicts_nobody(journey: Journey) -> None:
    """Back on A after the count fell and before `after`: the pod stays, past the moment it would have been evicted."""
    journey.a.configure(after="2s")
    journey.plug("tty40", "JOURNEY-A")
    with journey.a.start() as here:
        pod, witness = _with_witness(journey, here)
        journey.sticks.unplug("tty40")
        here.wait_for(lambda: journey.a.shows("0"))
        journey.plug("tty40", "JOURNEY-A")
        here.wait_for(lambda: journey.a.shows("1"))
        _pull_witness(journey, here, witness)
        assert journey.stays(pod)


BROKEN = "resources: [{name: nonsense}]"
ELSEWHERE = (CONFIG % {"site": "A", "after": "1s"}).replace("JOURNEY-A*", "ANOTHER")
RENAMED = (CONFIG % {"site": "A", "after": "1s"}).replace(RESOURCE, "renamed.io/zstick")


@pytest.mark.parametrize(
    ("config", "event", "count"),
    [(BROKEN, "config.rejected", "1"), (ELSEWHERE, "config.reloaded", "0"), (RENAMED, "config.reloaded", None)],
    ids=["typo", "match changed", "resource renamed"],
)
def test_a_changed_configuration_evicts_nobody(journey: Journey, config: str, event: str, count: str | None) -> None:
    """Whatever becomes of the count: the stick is still there, and only a lost device evicts, as one does later."""
    journey.plug("tty40", "JOURNEY-A")
    with journey.a.start() as here:
        pod, witness = _with_witness(journey, here)
        journey.a.config.write_text(config)
        here.signal(signal.SIGHUP)
        here.wait_log(event)
        here.wait_for(lambda: journey.a.shows(count))
        _pull_witness(journey, here, witness)
        assert journey.stays(pod)


def test_of_two_sticks_the_pod_that_names_the_lost_one_goes(journey: Journey) -> None:
    """A pod whose hostPath is the lost devnode is evicted; one that names none may use the other stick, and stays."""
    with _two_sticks(journey) as here:
        silent, named = journey.deploy(), journey.deploy(host_path="/dev/tty40")
        journey.sticks.unplug("tty40")
        evicted = here.wait_log("pod.evicted")
        assert (evicted["pod"], evicted["left"]) == (_title(named), 1)
        _forgotten(journey, here)
        assert journey.stays(silent)
        assert not journey.stays(named)


def test_of_two_sticks_nobody_goes_where_nobody_names_one(journey: Journey) -> None:
    """Which pod has lost its stick nobody knows (`ambiguous`): that is told, and both stay."""
    with _two_sticks(journey) as here:
        pods = [journey.deploy(), journey.deploy()]
        journey.sticks.unplug("tty40")
        for pod in pods:
            refused = here.wait_log("pod.eviction_refused", pod=_title(pod))
            assert refused["reason"].startswith("ambiguous")
        _forgotten(journey, here)
        assert all(journey.stays(pod) for pod in pods)


def test_a_disruption_budget_is_respected(journey: Journey) -> None:
    """A PodDisruptionBudget that says no is told and asked again; when it says yes, the pod goes."""
    version = policy_version(journey.apiserver)
    budgets = f"/apis/{version}/namespaces/{NAMESPACE}/poddisruptionbudgets"
    journey.plug("tty40", "JOURNEY-A")
    with journey.a.start() as here:
        here.wait_for(lambda: journey.a.shows("1"))
        pod = journey.deploy()
        name = pod["metadata"]["labels"]["app"]
        spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": name}}}
        _must(journey.apiserver, "POST", budgets, {"metadata": {"name": name}, "spec": spec})
        # Until its controller has seen the budget the server says "try again in 10 s".
        eventually(partial(_guards, journey.apiserver, f"{budgets}/{name}"))
        journey.sticks.unplug("tty40")
        refused = here.wait_log("pod.eviction_refused")
        assert "disruption budget" in refused["error"]
        assert journey.stays(pod)
        assert not _logged(here, "pod.evicted")
        _must(journey.apiserver, "DELETE", f"{budgets}/{name}")
        here.wait_log("pod.evicted", pod=_title(pod))
        assert not journey.stays(pod)


# -- never the wrong pod


def test_a_stick_that_takes_the_name_of_the_lost_one_ends_no_successor(journey: Journey) -> None:
    """The pod of the lost stick goes once. Its successor is bound here, where the other stick is, and names the same path."""
    journey.plug("tty40", "JOURNEY-A1")
    with journey.a.start() as here:
        here.wait_for(lambda: journey.a.shows("1"))
        pod = journey.deploy(host_path="/dev/tty40")
        journey.sticks.unplug("tty40")
        here.wait_for(lambda: journey.a.shows("0"))
        journey.plug("tty40", "JOURNEY-A2")
        successor = here.wait_for(lambda: journey.successor(pod), what="bound successor")
        assert _node(successor) == journey.a.node
        assert _stays_for_a_witness(journey, here, successor)
    with journey.a.start() as again:
        again.wait_for(lambda: journey.a.shows("1"))
        assert _stays_for_a_witness(journey, again, successor)


def test_a_successor_that_finds_another_stick_free_stays(journey: Journey) -> None:
    """It names the path of the lost one, on the node that it came from: it was not there before."""
    with _two_sticks(journey) as here:
        pod = journey.deploy(host_path="/dev/tty40")
        journey.sticks.unplug("tty40")
        successor = here.wait_for(lambda: journey.successor(pod), what="bound successor")
        assert _node(successor) == journey.a.node
        assert _stays_for_a_witness(journey, here, successor)


@pytest.mark.parametrize("pulled", ["tty40", "tty41"])
def test_who_mounts_the_link_that_twins_share_stays(journey: Journey, pulled: str) -> None:
    """It leads to the one that is left, whichever is pulled; the lost one's own link names it beyond doubt."""
    for tty in ("tty40", "tty41"):
        journey.plug(tty, "JOURNEY-A", "journey-shared", f"journey-{tty}")
        journey.sticks.settle()
    with journey.a.start() as here:
        here.wait_for(lambda: journey.a.shows("2"))
        shared, own = (
            journey.deploy(host_path="/dev/journey-shared"),
            journey.deploy(host_path=f"/dev/journey-{pulled}"),
        )
        journey.sticks.unplug(pulled)
        here.wait_log("pod.evicted", pod=_title(own))
        assert _stays_for_a_witness(journey, here, shared)


def test_a_link_that_moved_to_a_twin_and_back_evicts_nobody(journey: Journey) -> None:
    """The second of the twins is plugged, takes the link of the first, and is pulled."""
    journey.plug("tty40", "JOURNEY-A", "journey-shared")
    with journey.a.start() as here:
        here.wait_for(lambda: journey.a.shows("1"))
        pod = journey.deploy(host_path="/dev/journey-shared")
        journey.plug("tty41", "JOURNEY-A", "journey-shared")
        here.wait_for(lambda: journey.a.shows("2"))
        journey.sticks.unplug("tty41")
        here.wait_log("pod.eviction_refused", pod=_title(pod))
        assert _stays_for_a_witness(journey, here, pod)


def test_another_serial_text_on_an_untouched_devnode_evicts_nobody(journey: Journey) -> None:
    """A rule was changed while no daemon ran."""
    journey.plug("tty40", "JOURNEY-A1")
    with journey.a.start() as first:
        first.wait_for(lambda: journey.a.shows("1"))
        pod = journey.deploy(host_path="/dev/tty40")
        first.terminate()
    journey.plug("tty40", "JOURNEY-A-as-it-reads-now")
    journey.sticks.settle()
    with journey.a.start() as here:
        here.wait_for(lambda: journey.a.devices()[RESOURCE][0]["serial"] == "JOURNEY-A-as-it-reads-now")
        assert _stays_for_a_witness(journey, here, pod)


def test_an_annotation_that_a_user_wrote_evicts_nobody_and_removes_nothing(journey: Journey) -> None:
    """Who may patch Nodes, and no status of theirs, lists a device that never was, and the GPUs of another plugin."""
    gpu = "nvidia.com/gpu"
    for tty in ("tty40", "tty41"):
        journey.plug(tty, f"JOURNEY-A-{tty}", f"journey-{tty}")
    with journey.a.start() as first:
        first.wait_for(lambda: journey.a.shows("2"))
        pod = journey.deploy(host_path="/dev/journey-tty40")
        first.terminate()
    journey.a.write({"status": {"capacity": {gpu: "2"}, "allocatable": {gpu: "2"}}})
    never = {
        "devnode": "/dev/tty47",
        "vendor": "0658",
        "product": "0200",
        "link": "/dev/journey-tty40",
        "lost": "2030-01-01T00:00:00Z",
    }
    text = json.dumps({RESOURCE: [never], gpu: []})
    path = f"/api/v1/nodes/{journey.a.node}?fieldManager=kubectl-annotate"
    _must(journey.apiserver, "PATCH", path, {"metadata": {"annotations": {"devwatch.io/devices": text}}})
    with journey.a.start() as here:
        here.wait_for(lambda: len(journey.a.devices()[RESOURCE]) == 2)
        assert gpu not in journey.a.devices()
        assert _stays_for_a_witness(journey, here, pod)
        assert journey.a.shows("2", gpu)


@pytest.mark.parametrize("away", [0.0, 1.2], ids=["within the grace", "after it"])
def test_a_stick_that_returns_under_another_number_ends_who_has_the_dead_file(journey: Journey, away: float) -> None:
    """Its container started long before; the successor's starts after the return, and stays. One that mounts /dev is told, and stays."""
    journey.a.configure(after="2s")
    journey.plug("tty40", "JOURNEY-A1", "journey-stick")
    journey.plug("tty42", "JOURNEY-A2")
    with journey.a.start() as here:
        here.wait_for(lambda: journey.a.shows("2"))
        dead, whole = journey.deploy(host_path="/dev/journey-stick"), journey.deploy(host_path="/dev")
        for pod in (dead, whole):
            _started(journey.apiserver, pod, seconds_ago=60)
        journey.sticks.unplug("tty40")
        time.sleep(away)
        journey.plug("tty41", "JOURNEY-A1", "journey-stick")
        evicted = here.wait_log("pod.evicted")
        assert (evicted["pod"], evicted["reason"], evicted["returned"]) == (_title(dead), "replugged", ["/dev/tty40"])
        successor = here.wait_for(lambda: journey.successor(dead), what="bound successor")
        _started(journey.apiserver, successor, seconds_ago=0)
        here.wait_log("pod.eviction_refused", pod=_title(whole))
        assert _stays_for_a_witness(journey, here, successor)
        assert journey.stays(whole)


@pytest.mark.parametrize("away", [0.3, 1.2], ids=["within the grace", "after it"])
def test_a_stick_that_returns_under_its_number_ends_nobody(journey: Journey, away: float) -> None:
    """The file of its pod opens it again, and its pod is told; another stick is there all the time."""
    journey.a.configure(after="2s")
    journey.plug("tty40", "JOURNEY-A1", "journey-stick")
    journey.plug("tty42", "JOURNEY-A2")
    with journey.a.start() as here:
        here.wait_for(lambda: journey.a.shows("2"))
        holder = journey.deploy(host_path="/dev/journey-stick")
        _started(journey.apiserver, holder, seconds_ago=60)
        journey.sticks.unplug("tty40")
        time.sleep(away)
        journey.plug("tty40", "JOURNEY-A1", "journey-stick")
        refused = here.wait_log("pod.eviction_refused", pod=_title(holder))
        assert str(refused["reason"]).startswith("same number")
        assert _stays_for_a_witness(journey, here, holder)


def _started(apiserver: ApiServer, pod: Object, *, seconds_ago: int) -> None:
    """Say when the container of a pod started, as its kubelet would."""
    at = datetime.fromtimestamp(time.time() - seconds_ago, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    state = {
        "name": "c",
        "image": "i",
        "imageID": "",
        "ready": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": at}},
    }
    _must(apiserver, "PATCH", f"{PODS}/{pod['metadata']['name']}/status", {"status": {"containerStatuses": [state]}})


def _stays_for_a_witness(journey: Journey, here: Daemon, pod: Object) -> bool:
    """Return whether a pod is still there after another one, for a stick that was lost later, was evicted."""
    journey.plug("tty45", "WITNESS-A")
    here.wait_for(lambda: journey.a.shows("1", WITNESS))
    witness = owned_pod(journey.apiserver, journey.a.node, WITNESS)
    since = len(here.log)
    _pull_witness(journey, here, witness)
    return journey.stays(pod) and not any(record["event"] == "pod.evicted" for record in here.log[since:-1])


def _two_sticks(journey: Journey) -> Daemon:
    """Return the daemon of A, which has two sticks of one resource."""
    journey.plug("tty40", "JOURNEY-A1")
    journey.plug("tty41", "JOURNEY-A2")
    here = journey.a.start()
    here.wait_for(lambda: journey.a.shows("2"))
    return here


def _forgotten(journey: Journey, here: Daemon) -> None:
    """Wait until the lost one of two sticks is listed no more: whoever was to be evicted for it is gone by then."""
    here.wait_for(lambda: [entry["devnode"] for entry in journey.a.devices()[RESOURCE]] == ["/dev/tty41"])


def _guards(apiserver: ApiServer, budget: str) -> bool:
    status = _must(apiserver, "GET", budget).get("status", {})
    return bool(status.get("currentHealthy") == 1 and status.get("disruptionsAllowed") == 0)


def _with_witness(journey: Journey, here: Daemon) -> tuple[Object, Object]:
    """Return the workload's pod, and one of another stick, whose eviction proves that the time for the first has passed."""
    journey.plug("tty45", "WITNESS-A")
    here.wait_for(lambda: journey.a.shows("1") and journey.a.shows("1", WITNESS))
    return journey.deploy(), owned_pod(journey.apiserver, journey.a.node, WITNESS)


def _pull_witness(journey: Journey, here: Daemon, witness: Object) -> None:
    """Lose the other stick, and wait until its pod is evicted: whoever was to go earlier is gone by then."""
    journey.sticks.unplug("tty45")
    here.wait_log("pod.evicted", pod=_title(witness))
    assert not journey.stays(witness)


def _follow(journey: Journey, pod: Object, daemon: Daemon) -> dict[str, float]:
    """Return when the pod was seen gone, its successor there, and bound; polled, so a little late."""
    marks: dict[str, float] = {}

    def bound() -> bool:
        pods = journey.pods(pod["metadata"]["labels"]["app"])
        successors = [other for other in pods if _uid(other) != _uid(pod)]
        seen = {
            "pod seen gone": len(successors) == len(pods),
            "successor seen": bool(successors),
            "successor seen bound to B": any(_node(other) == journey.b.node for other in successors),
        }
        for name in (name for name, is_so in seen.items() if is_so):
            marks.setdefault(name, time.time())
        return all(seen.values())

    daemon.wait_for(bound, what="successor bound to B")
    successor = journey.successor(pod)
    assert successor is not None
    return marks | {
        "successor bound, says the scheduler": eventually(partial(_scheduled, journey.apiserver, successor))
    }


def _records(letter: str, log: list[Object]) -> dict[str, float]:
    # Backwards, so that of two with one name the first counts.
    return {
        f"{letter} {each['event']}": datetime.fromisoformat(each["timestamp"]).timestamp() for each in reversed(log)
    }


def _scheduled(apiserver: ApiServer, pod: Object) -> float | None:
    """Return when the scheduler says that it has bound the pod (`eventTime` of its Event), which it says a moment later."""
    field = f"reason%3DScheduled,involvedObject.uid%3D{_uid(pod)}"
    events = _must(apiserver, "GET", f"/api/v1/namespaces/{NAMESPACE}/events?fieldSelector={field}")["items"]
    return next((datetime.fromisoformat(event["eventTime"]).timestamp() for event in events), None)


def _timeline(marks: dict[str, float], begin: float) -> str:
    lines = [f"{(at - begin) * 1000:8.0f} ms  {name}" for name, at in sorted(marks.items(), key=lambda mark: mark[1])]
    return "\n".join(["", "timeline of the journey, from the uevent (grace 500 ms, after 1 s)", *lines])


def _pod_spec(resource: str, host_path: str | None = None) -> Object:
    container: Object = {"name": "c", "image": "i", "resources": {"limits": {resource: "1"}}}
    spec: Object = {"terminationGracePeriodSeconds": 0, "containers": [container]}
    if host_path is not None:
        spec["volumes"] = [{"name": "stick", "hostPath": {"path": host_path}}]
        container["volumeMounts"] = [{"name": "stick", "mountPath": host_path}]
    return spec


def _must(apiserver: ApiServer, method: str, path: str, body: Object | None = None) -> Object:
    content_type = STRATEGIC_MERGE if method == "PATCH" else "application/json"
    status, answer = apiserver.request(method, path, body, content_type=content_type)
    assert status in {200, 201}, answer
    return answer


def _node(pod: Object) -> str:
    return str(pod["spec"].get("nodeName", ""))


def _logged(daemon: Daemon, event: str) -> bool:
    return any(record["event"] == event for record in daemon.log)


def _title(pod: Object) -> str:
    return f"{NAMESPACE}/{pod['metadata']['name']}"


def _uid(pod: Object) -> str:
    return str(pod["metadata"]["uid"])
