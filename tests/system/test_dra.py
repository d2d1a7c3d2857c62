"""Sticks by dynamic resource allocation: on a real kubelet a pod without privileges has its stick by `limits` or by a claim."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from system import testbed
from system.apiserver import PATCH_ONLY, WATCH
from system.claiming import CDI, RECORD, RIGHTS, SLICES, ClaimingSite, apply_classes, missing
from system.handover import FORBIDDEN, PODS, HandingOver, as_root, started_before, title_of, uid_of, waiting_reason
from system.localuser import attempts, sockets
from system.test_journey import EVICT
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from system.apiserver import ApiServer
    from system.kubelet import Kubelet
    from system.udevd import Sticks

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def served(control_plane: ApiServer) -> None:
    """Skip where the API server lacks what the tests need."""
    testbed.require(missing(control_plane))


@pytest.fixture(scope="module")
def handing(
    served: None,  # noqa: ARG001 - it is asked before a kubelet is started
    kubelet: Kubelet,
    control_plane: ApiServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[HandingOver]:
    """Have a scheduler and a controller manager; return the daemon, which may do all that it can use."""
    home = tmp_path_factory.mktemp("claiming")
    made = HandingOver(
        apiserver=control_plane,
        kubelet=kubelet,
        kubeconfig=control_plane.service_account("claiming", rules=[*PATCH_ONLY, *WATCH, *EVICT, *RIGHTS]),
        home=home,
        ways={"zstick": "dra", "mover": "devicePlugin"},
    )
    control_plane.start_scheduler()
    control_plane.start_controller_manager()
    apply_classes(control_plane, home, made.prefix)
    yield made
    made.close()
    control_plane.stop_control()
    for file in CDI.glob("devwatch.io-*"):  # of a daemon that was killed
        file.unlink()


@pytest.fixture
def site(apiserver: ApiServer, kubelet: Kubelet, handing: HandingOver, sticks: Sticks) -> Iterator[ClaimingSite]:
    """Return the Node of the kubelet, without pods and sticks."""
    handing.rest()
    complete = missing(apiserver, complete=True) is None
    made = ClaimingSite(
        apiserver=apiserver, kubelet=kubelet, prefix=handing.prefix, handing=handing, sticks=sticks, complete=complete
    )
    made.await_forgotten()
    yield made
    apiserver.start()
    kubelet.start("containerd")
    kubelet.start()
    made.clear()
    assert handing.running is None or "Traceback" not in handing.running.stderr


def test_a_pod_without_any_privilege_opens_its_stick(site: ClaimingSite) -> None:
    """`limits: {NAME: 1}`, or a claim, and nothing else: the stick is at `container.path`, and belongs to the user of the container."""
    site.plug("tty40", "A")
    daemon = site.start()
    pod = site.holder_of(daemon, "tty40", None)
    assert "volumes" not in pod["spec"]
    assert site.offers(A=True)
    assert site.shows(0, 0)
    site.delete(pod)
    daemon.wait_for(lambda: site.prepared() == 0, what="claim that has ended")


def test_a_claim_has_the_stick_with_its_serial(site: ClaimingSite) -> None:
    """CEL on the attributes of the device; the pod that asks for any has the other one."""
    site.plug("tty40", "A")
    site.plug("tty41", "B")
    daemon = site.start()
    daemon.wait_for(lambda: site.offers(A=True, B=True), what="slice with both")
    site.holder_of(daemon, "tty41", site.claim("B"))
    site.holder_of(daemon, "tty40", None)


def test_a_pod_as_root_opens_no_stick_but_its_own(site: ClaimingSite) -> None:
    """With all that containers may do by default it can make a devnode of any stick, and open its own alone, also after a replug."""
    site.plug("tty40", "A")
    site.plug("tty41", "B")
    daemon = site.start()
    daemon.wait_for(lambda: site.offers(A=True, B=True), what="slice with both")
    site.holder_of(daemon, "tty40", site.claim("A"))
    spec = site.template_of(site.claim("B"))["spec"]
    pod = site.holder(daemon, "tty41", **{**spec, "containers": [as_root({"spec": spec})]})
    assert (site.reach(pod, "tty40"), site.reach(pod, "tty41")) == (FORBIDDEN, "opened")
    assert site.seen_in(pod) == ["/dev/zstick"]
    site.sticks.unplug("tty41")
    site.plug("tty42", "B")
    daemon.wait_for(lambda: site.offers(A=True, B=True), what="stick that is back")
    site.restart_in_place(pod)
    site.await_opened(daemon, pod, "tty42", restarts=1)
    site.plug("tty41", "C")
    assert [site.reach(pod, tty) for tty in ("tty40", "tty41", "tty42")] == [FORBIDDEN, FORBIDDEN, "opened"]
    assert site.seen_in(pod) == ["/dev/zstick"]


def test_a_stick_with_a_hostile_serial_is_handed_over_like_any_other(site: ClaimingSite) -> None:
    """The server takes its slice, and the pod opens it; a selector finds it by what is left of the serial."""
    site.plug("tty40", 'esc\x1b[31m"}]},"\\x00\\n../../é\u202e\u2028' + "A" * 300)
    daemon = site.start()
    site.holder_of(daemon, "tty40", site.claim(""))
    (serial,) = site.offered()
    assert serial.isprintable()
    assert serial.startswith('esc [31m"}]},"\\x00\\n../../é  AAA')
    assert len(serial.encode()) == 64
    assert "esc" not in "".join(path.read_text() for path in CDI.glob("devwatch.io-*"))


def test_a_local_user_reaches_no_socket_and_writes_no_cdi_file(site: ClaimingSite) -> None:
    """The folders of the kubelet are 0750; that of the CDI files can be read by all, and written by root alone."""
    site.plug("tty40", "A")
    daemon = site.start()
    site.holder_of(daemon, "tty40", site.claim("A"))
    found = sockets()
    assert {"dra.sock", "devwatch.io-reg.sock"} <= {path.name for path in found}
    assert attempts(found) == {"EACCES EACCES EACCES"}
    (file,) = CDI.glob("devwatch.io-*")
    assert attempts([file]) == {"EACCES EACCES EACCES"}
    modes = {path: path.stat().st_mode & 0o777 for path in (file, CDI, RECORD, RECORD.parent)}
    assert modes == {file: 0o644, CDI: 0o755, RECORD: 0o600, RECORD.parent: 0o750}


@pytest.mark.parametrize("by_claim", [False, True], ids=["any", "by serial"])
def test_the_pod_of_a_pulled_stick_is_evicted_and_its_successor_waits_for_it(
    site: ClaimingSite, *, by_claim: bool
) -> None:
    """Meanwhile the stick has a taint, and leaves the slice when the pod has ended. Another pod stays."""
    site.plug("tty40", "A")
    site.plug("tty41", "B")
    daemon = site.start(evict="1s")
    daemon.wait_for(lambda: site.offers(A=True, B=True), what="slice with both")
    other = site.holder_of(daemon, "tty41", site.claim("B"))
    workload = site.replicas(1, site.template_of(site.claim_template("A") if by_claim else None))
    (holder,) = eventually(lambda: site.mine(workload))
    site.await_opened(daemon, holder, "tty40")
    since = len(daemon.log)
    site.sticks.unplug("tty40")
    daemon.wait_for(lambda: site.offers(A=False, B=True), what="taint")
    assert daemon.wait_log("pod.evicted", since=since)["pod"] == title_of(holder)
    site.await_end(daemon, holder)
    daemon.wait_for(lambda: site.offers(B=True), what="slice without it")
    (successor,) = eventually(lambda: site.mine(workload))
    site.plug("tty42", "A")
    site.await_opened(daemon, successor, "tty42")
    assert site.stays(other)


@pytest.mark.parametrize("by_claim", [False, True], ids=["any", "by serial"])
def test_a_container_that_restarts_opens_its_stick_under_its_new_name(site: ClaimingSite, *, by_claim: bool) -> None:
    """While its stick is away it waits, although another one is free; a bare pod keeps the lost stick."""
    site.plug("tty40", "A")
    daemon = site.start()
    daemon.wait_for(lambda: site.offers(A=True), what="slice")
    pod = site.holder_of(daemon, "tty40", site.claim("A") if by_claim else None)
    site.sticks.unplug("tty40")
    site.plug("tty41", "B")
    daemon.wait_for(lambda: site.offers(A=False, B=True), what="other stick beside the lost one")
    site.restart_in_place(pod)
    waits = "CreateContainerError"
    daemon.wait_for(lambda: site.hurry(pod) and waiting_reason(site.read(pod)) == waits, what="container that waits")
    assert site.kubelet.output(pod, "c", 1) == []
    site.plug("tty42", "A")
    daemon.wait_for(lambda: site.hurry(pod) and site.opened(pod, "tty42", restart=1), what="opened stick")
    site.await_opened(daemon, pod, "tty42", restarts=1)
    assert site.offers(A=True, B=True)


@pytest.mark.parametrize("by_claim", [False, True], ids=["any", "by serial"])
def test_a_stick_that_returns_under_another_number_ends_who_has_the_dead_file(
    site: ClaimingSite, *, by_claim: bool
) -> None:
    """Its pod goes, although the stick was away for a moment only, and its successor has the stick."""
    site.sticks.unplug("tty42")  # a console that is present does not count as a new device when a rule makes it a stick
    serial = "R1" if by_claim else "R2"  # one that has returned so is spared for ten minutes
    site.plug("tty40", serial)
    daemon = site.start(evict="2s")
    daemon.wait_for(lambda: site.offers(**{serial: True}), what="slice")
    workload = site.replicas(1, site.template_of(site.claim_template(serial) if by_claim else None))
    (holder,) = eventually(lambda: site.mine(workload))
    site.await_opened(daemon, holder, "tty40")
    eventually(lambda: started_before(site.read(holder)))
    since = len(daemon.log)
    site.sticks.unplug("tty40")
    site.plug("tty42", serial)
    evicted = daemon.wait_log("pod.evicted", since=since)
    assert (evicted["pod"], evicted["reason"]) == (title_of(holder), "replugged")
    site.await_end(daemon, holder)
    (successor,) = eventually(lambda: site.mine(workload))
    site.await_opened(daemon, successor, "tty42")


def test_the_pods_of_one_claim_share_the_stick(site: ClaimingSite) -> None:
    """Both are holders: both are evicted, and both have it again."""
    site.plug("tty40", "A")
    daemon = site.start(evict="1s")
    daemon.wait_for(lambda: site.offers(A=True), what="slice")
    workload = site.replicas(2, site.template_of(site.claim("A")))
    first, second = eventually(lambda: pods if len(pods := site.mine(workload)) == 2 else None)
    for pod in (first, second):
        site.await_opened(daemon, pod, "tty40")
    assert site.prepared() == 1
    site.sticks.unplug("tty40")
    for pod in (first, second):
        daemon.wait_log("pod.evicted", pod=title_of(pod))
    daemon.wait_for(lambda: not {uid_of(first), uid_of(second)} & set(map(uid_of, site.pods())), what="their end")
    site.plug("tty41", "A")
    for pod in eventually(lambda: pods if len(pods := site.mine(workload)) == 2 else None):
        site.await_opened(daemon, pod, "tty41")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
@pytest.mark.parametrize("pulled", [False, True], ids=["stick there", "stick pulled meanwhile"])
def test_a_daemon_that_is_restarted_leaves_the_pod_its_stick(
    site: ClaimingSite, end: signal.Signals, *, pulled: bool
) -> None:
    """What was pulled meanwhile is lost, and held; the container that restarts has it under its new name."""
    site.plug("tty40", "A")
    first = site.start()
    pod = site.holder_of(first, "tty40", None)
    first.signal(end)
    first.wait()
    assert site.prepared() == 1
    if pulled:
        site.sticks.unplug("tty40")
    second = site.start()
    if pulled:
        second.wait_for(lambda: site.offers(A=False), what="taint")
        site.witness(second)
        assert site.offers(A=False)
        site.plug("tty41", "A")
    second.wait_for(lambda: site.offers(A=True), what="stick that is there")
    assert site.stays(pod)
    site.restart_in_place(pod)
    site.await_opened(second, pod, "tty41" if pulled else "tty40", restarts=1)


def test_a_kubelet_that_is_killed_leaves_the_pod_its_stick(site: ClaimingSite) -> None:
    """It deletes the slice at its start, which is written again at once."""
    site.plug("tty40", "A")
    daemon = site.start()
    pod = site.holder_of(daemon, "tty40", None)
    before = site.slice()
    site.kubelet.kill()
    site.kubelet.start()
    daemon.wait_for(
        lambda: site.replaced(before) and site.offers(A=True), timeout=60, what="slice that is written again"
    )
    daemon.wait_for(lambda: site.stays(pod), what="pod that goes on")
    site.restart_in_place(pod)
    site.await_opened(daemon, pod, "tty40", restarts=1)
    site.plug("tty41", "B")
    site.holder_of(daemon, "tty41", None)


def test_a_pod_that_is_deleted_while_no_daemon_runs_ends_once_one_does(site: ClaimingSite) -> None:
    """Only the driver can unprepare its claim; its stick is gone meanwhile, and its successor opens it once it is back."""
    site.plug("tty40", "A")
    first = site.start()
    workload = site.replicas(1, site.template_of(None))
    (pod,) = eventually(lambda: site.mine(workload))
    site.await_opened(first, pod, "tty40")
    first.signal(signal.SIGKILL)
    first.wait()
    site.apiserver.request("DELETE", f"{PODS}/{pod['metadata']['name']}")
    site.sticks.unplug("tty40")
    eventually(lambda: not site.kubelet.has_processes(pod), timeout=60)
    second = site.start()
    second.wait_for(lambda: site.hurry(pod) and site.read(pod) is None, timeout=90, what="pod that is gone")
    second.wait_log("claim.unprepared")
    # Within the grace of the start the stick still counts: the successor may have got it, and wait in its start.
    (successor,) = eventually(lambda: site.mine(workload))
    site.plug("tty41", "A")
    site.await_opened(second, successor, "tty41")


def test_a_workload_has_its_stick_again_after_a_reboot_with_a_late_daemon(site: ClaimingSite) -> None:
    """All containers are gone, and so are the CDI files, which are in a tmpfs; the stick comes up as another devnode."""
    site.plug("tty40", "A")
    first = site.start()
    workload = site.replicas(1, site.template_of(site.claim_template("A")))
    (pod,) = eventually(lambda: site.mine(workload))
    site.await_opened(first, pod, "tty40")
    first.signal(signal.SIGKILL)
    first.wait()
    site.kubelet.crash()
    for file in CDI.glob("devwatch.io-*"):
        file.unlink()
    site.sticks.unplug("tty40")
    site.plug("tty41", "A")
    site.kubelet.start("containerd")
    site.kubelet.start()
    eventually(lambda: site.slice() is None, timeout=60)
    second = site.start()

    def runs() -> bool:
        found = [each for each in site.mine(workload) if each["status"]["phase"] == "Running"]
        return any(
            site.hurry(each)
            and site.opened(each, "tty41", restart=each["status"]["containerStatuses"][0]["restartCount"])
            for each in found
        )

    second.wait_for(runs, timeout=90, what="pod that has its stick")
    assert site.offers(A=True)


def test_a_slice_that_is_deleted_is_written_again(site: ClaimingSite) -> None:
    """At once, and no pod loses a stick for it."""
    site.plug("tty40", "A")
    daemon = site.start(evict="1s")
    pod = site.holder_of(daemon, "tty40", None)
    before = site.slice()
    assert before is not None
    site.apiserver.request("DELETE", f"{SLICES}/{before['metadata']['name']}")
    daemon.wait_for(
        lambda: site.replaced(before) and site.offers(A=True), timeout=5, what="slice that is written again"
    )
    assert site.stays(pod)


def test_a_resource_changes_its_way_when_the_last_pod_of_the_former_way_has_gone(site: ClaimingSite) -> None:
    """From `devicePlugin` to `dra` and back: nothing of it can be had until the pod has ended, and its successor has the same stick."""
    testbed.require(missing(site.apiserver, complete=True))
    site.name = "mover"
    daemon = site.start()
    site.plug("tty40", "A")
    daemon.wait_for(lambda: site.shows(1, 1), what="stick")
    workload = site.replicas(1)
    (pod,) = eventually(lambda: site.mine(workload))
    site.await_opened(daemon, pod, "tty40")
    for way in ("dra", "devicePlugin"):
        since = len(daemon.log)
        site.start(mover=way)
        daemon.wait_log("count.held", since=since, reason=f"waits for the end of {title_of(pod)}")
        site.witness(daemon)
        assert site.shows(0, 0)
        assert not site.offered()
        assert site.stays(pod)
        former = pod
        site.apiserver.request("DELETE", f"{PODS}/{former['metadata']['name']}")
        site.await_end(daemon, former)
        (pod,) = eventually(lambda: site.mine(workload))
        site.await_opened(daemon, pod, "tty40")
        assert site.offered() == ({"A": True} if way == "dra" else {})
        assert site.shows(0, 0) if way == "dra" else site.shows(1, 1)
