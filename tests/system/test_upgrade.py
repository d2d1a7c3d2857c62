"""From 0.1.0 to this version and back, under pods that run: no count falls, no pod is moved, and the sticks are followed as before."""

from __future__ import annotations

import json
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from devwatch import __version__
from system import formerrelease, testbed
from system.apiserver import PATCH_ONLY, WATCH
from system.chronicle import Chronicle
from system.daemon import Daemon
from system.evictionproxy import evicting_url
from system.handover import IDS, Workloads, title_of, uid_of
from system.test_journey import EVICT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from system.apiserver import ApiServer, Object
    from system.kubelet import Kubelet
    from system.udevd import Sticks

pytestmark = pytest.mark.system

CONFIG = """
resources:
  - name: %(prefix)s.example/zstick
    match: [{vendor: "0658", product: "0200"}]
    removalGrace: 500ms
  - name: %(prefix)s.example/mover
    match: [{vendor: "0403", product: "6001"}]
    removalGrace: 500ms
    evict: {after: 1s}
  - name: %(prefix)s.example/witness
    match: [{vendor: 10c4, product: ea60}]
    removalGrace: 500ms
sweep: 2s
"""
"""Every key of it is one of 0.1.0."""
PLUGIN = """
resources:
  - name: %(prefix)s.example/zstick
    match: [{vendor: "0658", product: "0200"}]
    publish: devicePlugin
sweep: 2s
"""
FIRST, LATEST = "0.1.0", __version__
BOTH = pytest.mark.parametrize(("before", "after"), [(FIRST, LATEST), (LATEST, FIRST)], ids=["upgrade", "downgrade"])
KEYS = {"devnode", "vendor", "product", "serial", "link"}
"""Those of an entry of the annotation by 0.1.0."""
TTYS = {"zstick": "tty40", "mover": "tty41", "witness": "tty42"}


@dataclass(slots=True, kw_only=True)
class Releases(Workloads):
    """The Node of a real kubelet, its sticks and pods, and one daemon after the other, of either version."""

    sources: Path
    """Those of 0.1.0."""
    kubeconfig: Path
    home: Path
    sticks: Sticks
    _stack: ExitStack = field(default_factory=ExitStack)

    def configure(self, text: str) -> None:
        """Write the configuration of the daemons."""
        (self.home / "config.yaml").write_text(text % {"prefix": self.prefix})

    def launch(self, release: str) -> Daemon:
        """Start the daemon of a release."""
        where = ("--config", str(self.home / "config.yaml"), "--node-name", self.kubelet.node)
        options = (*where, "--kubeconfig", str(self.kubeconfig), "--listen", "off", "--log-format", "json")
        former = {"PYTHONPATH": str(self.sources)} if release == FIRST else None
        return self._stack.enter_context(Daemon(*options, home=self.home, env=former))

    def plug(self, name: str) -> None:
        """Plug the stick of a resource."""
        vendor, product = IDS[name]
        self.sticks.plug(TTYS[name], vendor=vendor, product=product, serial=name.upper())
        self.sticks.settle()

    def advertises(self, name: str, capacity: int | None, allocatable: int | None) -> bool:
        """Return True; fail where the Node shows other figures of a resource."""
        status = self.apiserver.node(self.kubelet.node)["status"]
        shown = tuple(status[key].get(f"{self.prefix}.example/{name}") for key in ("capacity", "allocatable"))
        assert shown == tuple(None if count is None else str(count) for count in (capacity, allocatable))
        return True

    def user(self, daemon: Daemon, name: str) -> Object:
        """Make a ReplicaSet of one pod that has the stick of a resource by `hostPath`; return the pod once it has opened it."""
        self.name = name
        made = self.replicas(1, self.privileged_template(TTYS[name]))
        return self.opener(daemon, name, made["metadata"]["name"])

    def opener(self, daemon: Daemon, name: str, workload: str, former: Object | None = None) -> Object:
        """Return the pod of a ReplicaSet that is another than `former`, once it has opened the stick of the resource and runs."""
        self.name = name
        pod = daemon.wait_for(lambda: self._pod(workload, former), what="pod")
        daemon.wait_for(lambda: self.opened(pod, TTYS[name], given=False), timeout=60, what="opened stick")
        daemon.wait_for(lambda: self.stays(pod), what="running pod")
        return pod

    def _pod(self, workload: str, former: Object | None) -> Object | None:
        pods = (pod for pod in self.pods() if pod["metadata"]["labels"]["app"] == workload)
        return next((pod for pod in pods if former is None or uid_of(pod) != uid_of(former)), None)

    def entry(self, name: str) -> Object:
        """Return the only entry of a resource in the annotation."""
        text = self.apiserver.node(self.kubelet.node)["metadata"]["annotations"]["devwatch.io/devices"]
        (entry,) = json.loads(text)[f"{self.prefix}.example/{name}"]
        return dict(entry)

    def close(self) -> None:
        """Kill the daemons, remove the pods, and what was advertised from the annotation."""
        self._stack.close()
        self.clear()
        body = {"metadata": {"annotations": {"devwatch.io/devices": None}}}
        path = f"/api/v1/nodes/{self.kubelet.node}"
        self.apiserver.request("PATCH", path, body, content_type="application/merge-patch+json")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the sources of 0.1.0, which run with the libraries that are here."""
    testbed.require(formerrelease.missing(formerrelease.FIRST))
    unpacked = formerrelease.unpack(formerrelease.FIRST, "src", tmp_path_factory.mktemp("former"))
    assert formerrelease.version(unpacked) == f"devwatch {FIRST}"
    return unpacked


@pytest.fixture(scope="module")
def credentials(control_plane: ApiServer) -> Iterator[Path]:
    """Have a scheduler and a controller manager; return the kubeconfig of the daemons, with what `evict` needs."""
    control_plane.service_account("released", rules=[*PATCH_ONLY, *WATCH, *EVICT])
    control_plane.start_scheduler()
    control_plane.start_controller_manager()
    with evicting_url(control_plane) as url:
        yield control_plane.kubeconfig("released", token=control_plane.token("released"), server=url)
    control_plane.stop_control()


@pytest.fixture
def releases(  # noqa: PLR0913, PLR0917  what has to be there, each started once
    sources: Path, credentials: Path, apiserver: ApiServer, kubelet: Kubelet, sticks: Sticks, tmp_path: Path
) -> Iterator[Releases]:
    """Return the Node of the kubelet with the names of this test alone, and no pods and sticks."""
    made = Releases(
        apiserver=apiserver,
        kubelet=kubelet,
        prefix=f"r{uuid.uuid4().hex[:6]}",
        sources=sources,
        kubeconfig=credentials,
        home=tmp_path,
        sticks=sticks,
    )
    made.configure(CONFIG)
    yield made
    made.close()


@BOTH
def test_another_version_lowers_no_count_and_moves_no_pod(releases: Releases, before: str, after: str) -> None:
    """From the end of one daemon until the other has its own view: a stick that is pulled between the two is uncounted by then."""
    for name in TTYS:
        releases.plug(name)
    first = releases.launch(before)
    pods = [releases.user(first, "zstick"), releases.user(first, "mover")]
    with Chronicle(releases.apiserver, releases.kubelet.node) as seen:
        assert first.terminate() == 0
        releases.sticks.unplug(TTYS["witness"])
        second = releases.launch(after)
        second.wait_for(lambda: releases.advertises("witness", 0, 0), what="end of the grace after a start")
        seen.catch_up()
    assert seen.figures(f"{releases.prefix}.example/witness") == [(1, 1), (0, 0)]
    for name in ("zstick", "mover"):
        assert seen.figures(f"{releases.prefix}.example/{name}") == [(1, 1)]
    assert seen.uids() == {uid_of(pod) for pod in pods}
    assert seen.ended() == set()
    assert (set(releases.entry("mover")) == KEYS) is (after == FIRST)


@testbed.long
@BOTH
def test_another_version_follows_the_sticks(releases: Releases, before: str, after: str) -> None:
    """A pod that was started under the former one stays where its stick returns, and follows it where the resource says so."""
    for name in TTYS:
        releases.plug(name)
    first = releases.launch(before)
    stays, moves = releases.user(first, "zstick"), releases.user(first, "mover")
    assert first.terminate() == 0
    daemon = releases.launch(after)
    daemon.wait_log("node.patched")
    releases.sticks.unplug(TTYS["zstick"])
    daemon.wait_for(lambda: releases.advertises("zstick", 0, 0), what="lower count")
    releases.plug("zstick")
    daemon.wait_for(lambda: releases.advertises("zstick", 1, 1), what="count")
    releases.sticks.unplug(TTYS["mover"])
    assert daemon.wait_log("pod.evicted")["pod"] == title_of(moves)
    daemon.wait_for(lambda: releases.hurry(moves) and releases.read(moves) is None, what="pod that is gone")
    releases.plug("mover")
    releases.opener(daemon, "mover", moves["metadata"]["labels"]["app"], moves)
    assert releases.stays(stays)


@testbed.long
@BOTH
def test_another_version_removes_what_leaves_the_configuration(releases: Releases, before: str, after: str) -> None:
    """What the former one has written belongs to the next one."""
    for name in TTYS:
        releases.plug(name)
    first = releases.launch(before)
    first.wait_for(lambda: all(releases.advertises(name, 1, 1) for name in TTYS), what="counts")
    assert first.terminate() == 0
    text = CONFIG.replace("example/witness", "example/renamed")
    releases.configure(text)
    daemon = releases.launch(after)
    daemon.wait_for(lambda: releases.advertises("renamed", 1, 1), what="new name")
    daemon.wait_for(lambda: releases.advertises("witness", None, None), what="former name that has left")
    assert all(releases.advertises(name, 1, 1) for name in ("zstick", "mover"))


@testbed.long
@BOTH
def test_a_stick_that_is_pulled_between_two_versions_moves_its_pod(releases: Releases, before: str, after: str) -> None:
    """The annotation of either version is the memory of the other."""
    releases.plug("mover")
    first = releases.launch(before)
    pod = releases.user(first, "mover")
    assert first.terminate() == 0
    releases.sticks.unplug(TTYS["mover"])
    daemon = releases.launch(after)
    daemon.wait_for(lambda: releases.advertises("mover", 0, 0), what="count")
    assert daemon.wait_log("pod.evicted")["pod"] == title_of(pod)


def test_the_former_version_names_what_it_does_not_know(releases: Releases) -> None:
    """With `publish` it does not start. Nothing can be had meanwhile, the pod has its stick on, and this version goes on from there."""
    releases.configure(PLUGIN)
    releases.plug("zstick")
    first = releases.launch(LATEST)
    first.wait_for(lambda: releases.advertises("zstick", 1, 1), what="stick")
    pod = releases.pod()
    first.wait_for(lambda: releases.opened(pod, TTYS["zstick"]), timeout=60, what="opened stick")
    assert first.terminate() == 0
    former = releases.launch(FIRST)
    assert former.wait() == 78
    assert "publish: unknown key" in former.stderr
    assert releases.advertises("zstick", 1, 0)
    second = releases.launch(LATEST)
    second.wait_for(lambda: releases.advertises("zstick", 1, 1), what="stick again")
    assert releases.stays(pod)
