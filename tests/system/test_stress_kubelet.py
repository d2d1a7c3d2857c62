"""Whatever becomes of the kubelet, its runtime, its disk and the clock: no pod fails that could run, and the holder keeps its stick.

Each test says how often it does a thing in full, which is what `DEVWATCH_STRESS=1` asks for (`make stress`). Without it a run does the
shorter tests, each thing once or a few times.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
import subprocess
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from system import testbed
from system.apiserver import NAMESPACE, PATCH_ONLY, WATCH
from system.claiming import CDI, RIGHTS, ClaimingSite, apply_classes, missing
from system.evictionproxy import evicting_url
from system.handover import HandingOver, must, started_before, title_of
from system.kubelet import FOLDER
from system.proxy import NONE, Fault, Proxy
from system.test_end_to_end import World
from system.test_journey import EVICT
from system.test_stress_apiserver import RECOVERY
from system.test_stress_udev import resident
from system.truth import LISTEN, Probe
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from system.apiserver import ApiServer, Object
    from system.daemon import Daemon
    from system.kubelet import Kubelet
    from system.udevd import Sticks

    StartDaemon = Callable[..., Daemon]

pytestmark = pytest.mark.system

SHARE = float(os.environ.get(testbed.STRESS, "0.005"))
"""Which part of the full counts is done."""
KILLS, CYCLES, RUNTIMES, STICKS = 50, 200, 10, 64
OUTAGE = 600.0
"""Seconds without an API server."""
GROWTH = 1024
"""KiB by which the resident memory may grow: what the allocator keeps."""
CONNECTIONS = 3
"""Descriptors that may be open at one moment and not at another: of a request, of a question to the kubelet, of its stream."""
COMES, LEAVES = "tty41", "tty42"
KUBELETS_OWN = ("requested number of devices unavailable", "previously allocated devices are no longer healthy")
"""Why a kubelet refuses pods at its start, whatever the plugin does: see `Stressed.none_refused_but_at_a_start`."""
MOMENTS = ("before", "away", "starting", "served")
"""When a stick comes or goes: while the kubelet runs, while there is none, as it starts, and once it has the list."""
PLUGINS, DRIVER = FOLDER / "device-plugins", FOLDER / "plugins" / "devwatch.io"
AHEAD, BACK, DAY = 43200, -1800, 86400
"""Seconds by which the clock is set; the certificates of the tests are valid from an hour ago for a day."""


def part(full: int) -> int:
    """Return how often to do what is done so often in full, at least once."""
    return max(1, round(full * SHARE))


@pytest.fixture(scope="module")
def handing(
    kubelet: Kubelet, control_plane: ApiServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HandingOver]:
    """Have a scheduler and a controller manager; return the daemon, which may do all that it can use."""
    served = missing(control_plane) is None
    control_plane.service_account("stress", rules=[*PATCH_ONLY, *WATCH, *EVICT, *(RIGHTS if served else ())])
    control_plane.start_scheduler()
    control_plane.start_controller_manager()
    with evicting_url(control_plane) as url:
        kubeconfig = control_plane.kubeconfig("stress", token=control_plane.token("stress"), server=url)
        home = tmp_path_factory.mktemp("stress")
        made = HandingOver(apiserver=control_plane, kubelet=kubelet, kubeconfig=kubeconfig, home=home)
        if served:
            apply_classes(control_plane, home, made.prefix)
        yield made
        made.close()
    control_plane.stop_control()
    for file in CDI.glob("devwatch.io-*"):  # of a daemon that was killed
        file.unlink()


@pytest.fixture
def site(apiserver: ApiServer, kubelet: Kubelet, handing: HandingOver, sticks: Sticks) -> Iterator[Stressed]:
    """Return the Node of the kubelet, without pods and sticks."""
    handing.rest()
    complete = missing(apiserver, complete=True) is None
    made = Stressed(
        apiserver=apiserver, kubelet=kubelet, prefix=handing.prefix, handing=handing, sticks=sticks, complete=complete
    )
    yield made
    apiserver.start()
    kubelet.start("containerd")
    kubelet.start()
    made.clear()
    assert handing.running is None or "Traceback" not in handing.running.stderr


@dataclass(slots=True, kw_only=True)
class Footprints:
    """What the daemon has of the machine, measured again and again."""

    daemon: Daemon
    resident: list[int] = field(default_factory=list)
    """KiB of memory."""
    descriptors: list[int] = field(default_factory=list)

    def measure(self) -> None:
        """Read both."""
        pid = self.daemon.process.pid
        self.resident.append(resident(pid))
        self.descriptors.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))

    def hold(self) -> bool:
        """Return True; fail where the daemon has more in the end than after the first tenth of the measurements, or the first one."""
        first = len(self.resident) // 10
        assert self.resident[-1] <= self.resident[first] + GROWTH, self.resident
        assert self.descriptors[-1] <= max(self.descriptors[: first + 1]) + CONNECTIONS, self.descriptors
        return True


@dataclass(slots=True, kw_only=True)
class Stressed(ClaimingSite):
    """As `ClaimingSite`, and some sticks that come and go."""

    plugged: set[str] = field(default_factory=set)

    def toggle(self, tty: str) -> None:
        """Plug a stick, or pull it where it is plugged."""
        if tty in self.plugged:
            self.sticks.unplug(tty)
        else:
            self.plug(tty, tty.upper())
        self.plugged ^= {tty}

    def allocatable(self, count: int) -> bool:
        """Return True; fail where another number of sticks can be allocated."""
        assert self.handing.figures()[1] == str(count)
        return True

    def running(self, workload: Object) -> list[Object]:
        """Return the pods of a workload that run and are not asked to go."""
        return [pod for pod in self.mine(workload) if pod["status"]["phase"] == "Running"]

    def none_refused(self) -> bool:
        """Return True; fail where the kubelet has refused a pod of this test, also one that is gone."""
        assert not self.refusals(), self.refusals()
        return True

    def none_refused_but_at_a_start(self) -> bool:
        """As `none_refused`, but for pods without a running container that a kubelet refuses at its start, as devwatch cannot prevent.

        - It still counts a stick as given to a pod that is gone: it looks for those before it gives a stick to a pod, but not to the first
          pods that it reads (`UpdateAllocatedDevices` waits for `sourcesReady`, which `syncLoopIteration` sets after their admission).
        - The pod has a stick that has been pulled, so that its container waits for it: it is not admitted again to an unhealthy device.
        """
        others = [each for each in self.refusals() if not any(text in each for text in KUBELETS_OWN)]
        assert not others, others
        return True

    def refusals(self) -> list[str]:
        """Return what the kubelet said of the pods of this test that it has refused."""
        names = tuple(path.rpartition("/")[2] for path in self.made)
        events = must(self.apiserver, "GET", f"/api/v1/namespaces/{NAMESPACE}/events")["items"]
        told = [
            f"{each['reason']}: {each['message']}"
            for each in events
            if each["involvedObject"].get("name", "").startswith(names)
            and (each["reason"] == "UnexpectedAdmissionError" or each["reason"].startswith("OutOf"))
        ]
        shown = [pod["status"] for pod in self.pods() if "reason" in pod["status"]]
        return told + [f"{each['reason']}: {each.get('message')}" for each in shown]


def test_a_kubelet_that_is_killed_again_and_again_under_load(
    site: Stressed, record_property: Callable[..., None]
) -> None:
    """50 times, while sticks come and go at every moment of its life: the holder does not notice, and devwatch lets no pod fail."""
    site.plug("tty40", "A")
    daemon = site.start(evict="1s", zstick="devicePlugin")
    keeper = site.holder(daemon, "tty40")
    workload = site.replicas(2)
    footprints = Footprints(daemon=daemon)
    for number in range(part(KILLS)):
        changes = {MOMENTS[number % 4]: COMES}, {MOMENTS[number // 4 % 4]: LEAVES}
        _restart_kubelet(site, daemon, *changes)
        daemon.wait_for(partial(site.allocatable, 1 + len(site.plugged)), what=f"figures after restart {number}")
        if number % 5 == 0:
            daemon.wait_for(partial(_has_pods, site, workload), timeout=60, what="a pod for each stick")
        assert site.none_refused_but_at_a_start()
        footprints.measure()
    for tty in {COMES, LEAVES} - site.plugged:
        site.toggle(tty)
    daemon.wait_for(lambda: site.shows(3, 3), what="three sticks")
    daemon.wait_for(partial(_has_pods, site, workload), timeout=60, what="a pod for each stick")
    record_property("refused", len(site.refusals()))
    record_property("resident", footprints.resident)
    assert footprints.hold()
    assert site.stays(keeper)
    assert site.none_refused_but_at_a_start()


def _restart_kubelet(site: Stressed, daemon: Daemon, *changes: dict[str, str]) -> None:
    """Kill the kubelet and start it, with a change of sticks at each of these moments."""
    since = len(daemon.log)
    witness = f"{site.prefix}.example/witness"  # the driver need not have noticed
    steps: dict[str, Callable[[], object]] = {
        "before": lambda: None,
        "away": site.kubelet.kill,
        "starting": site.kubelet.start,
        "served": lambda: daemon.wait_log("kubelet.registered", since=since, resource=witness),
    }
    for moment, step in steps.items():
        step()
        for change in changes:
            if moment in change:
                site.toggle(change[moment])


def _has_pods(site: Stressed, workload: Object) -> bool:
    """Return True; fail where a stick that is plugged has no pod of the workload, or more than one."""
    running = site.running(workload)
    assert len(running) == len(site.plugged), site.phases()
    return True


@pytest.mark.parametrize("way", ["devicePlugin", "dra"])
def test_a_stick_that_comes_and_goes_has_its_pod_each_time(
    site: Stressed, record_property: Callable[..., None], way: str
) -> None:
    """200 times: the pod opens it, is evicted when it has been pulled, and ends."""
    template = _template(site, way)
    daemon = site.start(evict="500ms", zstick=way)
    workload = site.replicas(1, template)
    footprints = Footprints(daemon=daemon)
    for number in range(part(CYCLES)):
        tty = f"tty4{number % 10}"
        site.plug(tty, "A")
        (pod,) = eventually(lambda: site.mine(workload))
        daemon.wait_for(partial(_has_opened, site, pod, tty), timeout=60, what=f"opened stick, time {number}")
        site.sticks.unplug(tty)
        daemon.wait_for(partial(_has_ended, site, pod), timeout=60, what=f"end of the pod, time {number}")
        footprints.measure()
    record_property("resident", footprints.resident)
    assert footprints.hold()
    assert site.none_refused()
    assert site.prepared() == 0
    daemon.wait_for(lambda: site.shows(0, 0), what="no stick")


def _template(site: Stressed, way: str) -> Object:
    """Return the template of a pod that asks for a stick of the resource. Skips the test where the API server does not have the way."""
    if way != "dra":
        return site.template()
    testbed.require(missing(site.apiserver, complete=True))
    return site.template_of(None)


def _has_opened(site: Stressed, pod: Object, tty: str) -> bool:
    return site.hurry(pod) and site.opened(pod, tty)


def _has_ended(site: Stressed, pod: Object) -> bool:
    return site.hurry(pod) and site.read(pod) is None


def test_a_kubelet_that_is_killed_again_and_again_leaves_claims_alone(
    site: Stressed, record_property: Callable[..., None]
) -> None:
    """50 times, while a stick comes and goes: the slice is right whenever the kubelet deletes it, and the holder does not notice."""
    template = _template(site, "dra")
    site.plug("tty40", "A")
    daemon = site.start(evict="1s", zstick="dra")
    keeper = site.pod(**template["spec"])
    site.await_opened(daemon, keeper, "tty40")
    workload = site.replicas(1, template)
    footprints = Footprints(daemon=daemon)
    for number in range(part(KILLS)):
        _restart_kubelet(site, daemon, {MOMENTS[number % 4]: COMES})
        daemon.wait_for(partial(_has_offers, site), timeout=60, what=f"slice after restart {number}")
        assert site.none_refused()
        footprints.measure()
    if COMES not in site.plugged:
        site.toggle(COMES)
    daemon.wait_for(partial(_has_pods, site, workload), timeout=120, what="a pod for the stick")
    assert site.offers(A=True, TTY41=True)
    assert site.stays(keeper)
    assert site.none_refused()
    record_property("resident", footprints.resident)
    assert footprints.hold()
    site.toggle(COMES)
    daemon.wait_for(lambda: site.offers(A=True), timeout=120, what="slice without it")
    assert site.stays(keeper)


def _has_offers(site: Stressed) -> bool:
    """Return True; fail where the slice says otherwise than the sticks that are plugged which can be allocated."""
    assert {serial for serial, free in site.offered().items() if free} == {"A", *map(str.upper, site.plugged)}
    return True


@testbed.long
def test_a_containerd_that_is_killed_while_a_pod_waits(site: Stressed) -> None:
    """10 times: the holder does not notice, and the pod whose stick comes meanwhile runs once the runtime is back."""
    site.plug("tty40", "A")
    daemon = site.start(zstick="devicePlugin")
    keeper = site.holder(daemon, "tty40")
    for number in range(part(RUNTIMES)):
        waiting = site.pod()
        site.kubelet.kill("containerd")
        site.plug(COMES, "B")
        daemon.wait_for(lambda: site.shows(2, 2), what=f"two sticks, time {number}")
        site.kubelet.start("containerd")
        site.await_opened(daemon, waiting, COMES)
        site.delete(waiting)
        site.sticks.unplug(COMES)
        daemon.wait_for(lambda: site.shows(1, 1), timeout=60, what=f"one stick, time {number}")
    assert site.stays(keeper)
    assert site.none_refused()


@testbed.long
def test_the_api_server_is_away_while_kubelet_and_sticks_go_on(
    site: Stressed, record_property: Callable[..., None]
) -> None:
    """10 minutes, in which the kubelet is killed again and again. Afterwards each pod has its stick or is replaced, and nothing failed."""
    site.plug("tty40", "A")
    daemon = site.start(evict="1s", zstick="devicePlugin")
    keeper = site.holder(daemon, "tty40")
    site.toggle(LEAVES)
    workload = site.replicas(1)
    (former,) = eventually(lambda: site.mine(workload))
    site.await_opened(daemon, former, LEAVES)
    footprints = Footprints(daemon=daemon)
    footprints.measure()
    site.apiserver.stop()
    before = Probe(daemon).sample()
    until = time.monotonic() + OUTAGE * SHARE
    while time.monotonic() < until:
        _live_without_api_server(site, daemon)
        footprints.measure()
    since = len(daemon.log)
    for tty in (COMES, LEAVES):
        site.toggle(tty)
        daemon.wait_for(partial(_has_seen, daemon, tty, since), what=f"change of {tty}")
    away = Probe(daemon).sample()
    assert away.healthy
    assert away.last_success == before.last_success
    site.apiserver.start()
    daemon.wait_for(lambda: site.shows(2, 2), timeout=120, what="two sticks")
    daemon.wait_for(partial(_has_ended, site, former), timeout=60, what="end of the pod whose stick has gone")
    (successor,) = eventually(lambda: site.mine(workload), timeout=120)  # its controller has to come back as well
    site.await_opened(daemon, successor, COMES)
    daemon.wait_for(lambda: Probe(daemon).sample().ready, timeout=60, what="readiness")
    assert site.stays(keeper)
    assert site.none_refused_but_at_a_start()
    footprints.measure()
    record_property("resident", footprints.resident)
    assert footprints.hold()


def _live_without_api_server(site: Stressed, daemon: Daemon) -> None:
    """Have two sticks come and go and the kubelet start again, as in a minute of an outage."""
    for tty in (COMES, LEAVES) * 4:
        since = len(daemon.log)
        site.toggle(tty)
        daemon.wait_for(partial(_has_seen, daemon, tty, since), what=f"change of {tty}")
    _restart_kubelet(site, daemon)


def _has_seen(daemon: Daemon, tty: str, since: int) -> bool:
    """Return whether the log says, from this record on, that the stick has come, gone or returned."""
    return any(each.get("devnode") == f"/dev/{tty}" for each in daemon.log[since:])


@contextlib.contextmanager
def small(site: Stressed, folder: Path) -> Iterator[None]:
    """Have a folder of the kubelet that is a file system of its own: daemon and kubelet start with it."""
    folder.mkdir(parents=True, exist_ok=True)
    _restart_both(site, ["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=64", "none", str(folder)])
    try:
        yield
    finally:
        _restart_both(site, ["umount", str(folder)])


def _restart_both(site: Stressed, command: list[str]) -> None:
    """End the daemon and the kubelet, run a command, and start the kubelet."""
    if site.handing.running is not None:
        site.handing.running.terminate()
    site.clear()
    site.kubelet.kill()
    subprocess.run(command, check=True)
    site.kubelet.start()


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """Have neither a byte nor a name left in such a folder."""
    filler = folder / "filler"
    filler.mkdir()
    with contextlib.suppress(OSError), (filler / "bytes").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    with contextlib.suppress(OSError):
        for number in range(1000):
            (filler / f"{number}").touch()
    try:
        yield
    finally:
        shutil.rmtree(filler)


@pytest.fixture
def small_plugins(site: Stressed) -> Iterator[None]:
    """Have a small folder of plugins."""
    with small(site, PLUGINS):
        yield


@pytest.fixture
def small_driver(site: Stressed) -> Iterator[None]:
    """Have a small folder of the driver, where the API server has what it is for."""
    testbed.require(missing(site.apiserver, complete=True))
    with small(site, DRIVER):
        yield


@pytest.mark.usefixtures("small_plugins")
def test_the_folder_of_plugins_is_full(site: Stressed) -> None:
    """A stick that comes is not offered, since no pod could open it. One line and `/readyz` say what to do, and room is all it needs."""
    site.plug("tty40", "A")
    daemon = site.start(zstick="devicePlugin")
    keeper = site.holder(daemon, "tty40")
    waiting = site.pod()
    with full(PLUGINS):
        site.plug(COMES, "B")
        record = daemon.wait_log("host.limited")
        assert "No space left on device" in record["reason"]
        assert "free some space" in record["hint"]
        daemon.wait_for(lambda: "free some space" in site.handing.readiness(), what="what to do")
        site.sticks.unplug(COMES)
        site.plug(COMES, "B")
        assert site.shows(1, 1)
        assert site.stays(keeper)
    site.await_opened(daemon, waiting, COMES)
    assert site.shows(2, 2)
    assert "free" not in site.handing.readiness()
    assert len([each for each in daemon.log if each["event"] == "host.limited"]) == 1
    assert site.none_refused()


@pytest.mark.usefixtures("small_plugins")
def test_a_daemon_starts_with_the_folder_of_plugins_full(site: Stressed) -> None:
    """It cannot register, says so in one line and what to do, and the holder does not notice; with room it registers by itself."""
    site.plug("tty40", "A")
    first = site.start(zstick="devicePlugin")
    keeper = site.holder(first, "tty40")
    assert first.terminate() == 0
    with full(PLUGINS):
        second = site.handing.launch()
        record = second.wait_log("kubelet.lost", resource=f"{site.prefix}.example/zstick")
        assert "No space left on device" in record["error"]
        assert record["hint"] == f"free space in {PLUGINS}"
        assert site.shows(1, 0)
    site.handing.await_registered(second)
    second.wait_for(lambda: site.shows(1, 1), what="stick")
    assert site.stays(keeper)


@pytest.mark.usefixtures("small_driver")
def test_the_folder_of_the_driver_is_full(site: Stressed) -> None:
    """No claim can be recorded, so none is prepared; log and `/readyz` say what to do. With room the pod starts, and claims end."""
    template = site.template_of(None)
    site.plug("tty40", "A")
    daemon = site.start(zstick="dra")
    keeper = site.pod(**template["spec"])
    site.await_opened(daemon, keeper, "tty40")
    since, cure = len(daemon.log), f"free space in {DRIVER}"
    with full(DRIVER):
        site.plug(COMES, "B")
        waiting = site.pod(**template["spec"])
        record = daemon.wait_log("kubelet.lost", since=since, driver="devwatch.io")
        assert "No space left on device" in record["error"]
        assert record["hint"] == cure
        daemon.wait_for(lambda: cure in site.handing.readiness(), what="what to do")
        assert site.stays(keeper)
    daemon.wait_for(lambda: site.hurry(waiting) and site.opened(waiting, COMES), timeout=120, what="opened stick")
    daemon.wait_for(lambda: cure not in site.handing.readiness(), what="readiness")
    assert len([each for each in daemon.log[since:] if each["event"] == "kubelet.lost"]) == 1
    site.delete(keeper, waiting)
    daemon.wait_for(lambda: site.prepared() == 0, timeout=60, what="end of both claims")
    assert site.none_refused()


class SetClock:
    """The clock by which the daemon alone lives: libfaketime, which is loaded before its libraries. The monotonic clock goes on."""

    def __init__(self, folder: Path) -> None:
        """Begin with the time of the machine. Skips the test where the library is not there."""
        found = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
        testbed.require(None if found else "needs libfaketime, as in Debian's faketime")
        self._file = folder / "clock"
        self.set(0)
        self.env = {
            "LD_PRELOAD": str(found),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set(self, seconds: int) -> None:
        """Set it ahead of the machine's by so many seconds, which may be negative."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}")
        fresh.replace(self._file)


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[SetClock]:
    """Return a clock, and remove what its library leaves in the shared memory for a process that is killed, or is another program then."""
    memory = Path("/dev", "shm")
    before = set(memory.iterdir())
    yield SetClock(tmp_path)
    for path in set(memory.glob("*faketime_s*")) - before:
        path.unlink(missing_ok=True)


@pytest.fixture
def lives_by_it(site: Stressed, clock: SetClock) -> Iterator[None]:
    """Have the daemon of the site started again with that clock, until the end of the test."""
    if site.handing.running is not None:
        site.handing.running.terminate()
    site.handing.env = clock.env
    yield
    if site.handing.running is not None:
        site.handing.running.terminate()
    site.handing.env = {}


@pytest.mark.usefixtures("lives_by_it")
def test_a_clock_that_is_set_evicts_no_pod_early_and_none_late(site: Stressed, clock: SetClock) -> None:
    """By half a day ahead and then back before the start, while the eviction of a lost stick is due in an hour; then it is due at once."""
    site.plug("tty40", "A")
    site.plug(COMES, "B")
    daemon = site.start(evict="1h", zstick="devicePlugin")
    daemon.wait_for(lambda: site.shows(2, 2), what="two sticks")
    site.replicas(2)
    daemon.wait_for(lambda: site.phases() == ["Running", "Running"], timeout=60, what="two pods that run")
    holder, other = sorted(site.pods(), key=partial(site.kubelet.output, container="c"))
    site.sticks.unplug("tty40")
    daemon.wait_for(lambda: site.shows(2, 1), what="lost stick")
    for seconds in (AHEAD, BACK):
        clock.set(seconds)
        site.witness(daemon)
        shown = datetime.fromisoformat(daemon.log[-1]["timestamp"])
        assert abs((shown - datetime.now(UTC)).total_seconds() - seconds) < 60
        assert site.stays(holder)
        assert site.stays(other)
    since = len(daemon.log)
    site.start(evict="1s")
    evicted = daemon.wait_log("pod.evicted", since=since)
    assert (evicted["pod"], evicted["reason"]) == (title_of(holder), "lost")
    daemon.wait_for(partial(_has_ended, site, holder), timeout=60, what="end of the pod")
    assert site.stays(other)


@testbed.long
@pytest.mark.usefixtures("lives_by_it")
def test_a_stick_that_returns_after_the_clock_was_set_ends_who_has_the_dead_file(
    site: Stressed, clock: SetClock
) -> None:
    """By half a day ahead, as where a machine without a clock learns the time: its pod goes, and no other."""
    site.sticks.unplug(LEAVES)  # a console that is present does not count as a new device when a rule makes it a stick
    site.plug("tty40", "A")
    site.plug(COMES, "B")
    daemon = site.start(evict="2s", zstick="devicePlugin")
    daemon.wait_for(lambda: site.shows(2, 2), what="two sticks")
    site.replicas(2)
    daemon.wait_for(lambda: site.phases() == ["Running", "Running"], timeout=60, what="two pods that run")
    holder, other = sorted(site.pods(), key=partial(site.kubelet.output, container="c"))
    eventually(lambda: started_before(site.read(holder)))
    clock.set(AHEAD)
    since = len(daemon.log)
    site.sticks.unplug("tty40")
    site.plug(LEAVES, "A")
    evicted = daemon.wait_log("pod.evicted", since=since)
    assert (evicted["pod"], evicted["reason"]) == (title_of(holder), "replugged")
    daemon.wait_for(partial(_has_ended, site, holder), timeout=60, what="end of the pod")
    assert site.stays(other)


@testbed.long
def test_a_machine_that_starts_in_another_century_needs_the_time_alone(
    apiserver: ApiServer, tmp_path: Path, clock: SetClock, start_daemon: StartDaemon
) -> None:
    """The certificate of the API server is not valid yet: log and `/readyz` say so, and all is right once the clock is set."""
    clock.set(-10000 * DAY)
    world = World(apiserver, tmp_path, partial(start_daemon, env=clock.env))
    daemon = world.start(listen=LISTEN)
    record = daemon.wait_log("node.patch_failed")
    assert "certificate is not yet valid" in record["error"]
    daemon.wait_for(lambda: not Probe(daemon).sample().ready, what="what is wrong")
    clock.set(0)
    daemon.wait_for(lambda: world.shows("0"), timeout=RECOVERY, what="count")
    daemon.wait_for(lambda: Probe(daemon).sample().ready, what="readiness")


BUSY = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: %s\r\nContent-Length: 0\r\n\r\n"


@testbed.long
def test_a_server_that_names_a_date_is_not_waited_for_by_the_clock_of_the_host(
    apiserver: ApiServer, tmp_path: Path, start_daemon: StartDaemon
) -> None:
    """Tomorrow by a clock that is wrong may be in a year: the daemon asks again as after any failure."""
    world = World(apiserver, tmp_path, start_daemon)
    tls = partial(ssl.create_default_context, cafile=str(apiserver.ca_file))
    with Proxy(apiserver.url, tls=tls) as proxy:
        date = formatdate(time.time() + DAY, usegmt=True).encode()
        proxy.fail(Fault(name="busy", speaks=BUSY % date))
        token = apiserver.token("patcher")
        daemon = world.start(kubeconfig=apiserver.kubeconfig("busy", token=token, server=proxy.url))
        daemon.wait_log("node.patch_failed")
        proxy.fail(NONE)
        daemon.wait_for(lambda: world.shows("0"), timeout=RECOVERY, what="count")


MANY = """  - name: %s
    subsystem: macvtap
    match: [{path: /dev/tap*}]
    publish: devicePlugin
    removalGrace: 500ms
"""
OPENING = """
trap 'exit 0' TERM
number=0
for path in $(echo $%s | tr , ' '); do exec 3<>$path && number=$((number + 1)); done
echo opened $number
sleep 2147483647 & wait
"""
FEW = 32
"""Requests to the API server for 64 devices that udevd handles one after the other: fewer than one for two of them."""


class Taps:
    """Devices that the kernel makes and removes: the taps of a network device, which go when it goes."""

    def plug(self, count: int) -> None:
        """Make the network device and so many taps."""
        first = "link add dvw-test type veth peer name dvw-peer\n"
        self._ip(first + "".join(f"link add link dvw-test name dvw{each} type macvtap\n" for each in range(count)))

    def unplug(self) -> None:
        """Remove them all."""
        self._ip("link delete dvw-test\n")

    def _ip(self, commands: str) -> None:
        done = subprocess.run(["ip", "-batch", "-"], input=commands, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def taps() -> Iterator[Taps]:
    """Return the taps; they are removed after the test."""
    testbed.require(None if shutil.which("ip") else "needs ip, as in Debian's iproute2")
    yield Taps()
    subprocess.run(["ip", "link", "delete", "dvw-test"], check=False, capture_output=True)


@testbed.long
def test_sixty_four_devices_come_and_go_at_once(
    site: Stressed, taps: Taps, record_property: Callable[..., None]
) -> None:
    """All are listed, one container can have all of them and open each, and the Node is right when all have gone, with few requests."""
    site.name = "many"
    daemon = site.start()
    resource, since = f"{site.prefix}.example/many", len(daemon.log)
    config = site.handing.home / "config.yaml"
    config.write_text(config.read_text().replace("sweep:", f"{MANY % resource}sweep:"))
    daemon.wait_log("kubelet.registered", since=since, resource=resource)
    probe = Probe(daemon)
    before = probe.sample().patches
    taps.plug(STICKS)
    daemon.wait_for(lambda: site.shows(STICKS, STICKS), what="all")
    record_property("requests for all", probe.sample().patches - before)
    assert probe.sample().patches - before <= FEW
    (container,) = site.template()["spec"]["containers"]
    command = ["sh", "-c", OPENING % f"DEVICE_{site.prefix.upper()}_EXAMPLE_MANY"]
    pod = site.pod(containers=[{**container, "command": command, "resources": {"limits": {resource: STICKS}}}])
    opened = [f"opened {STICKS}"]
    daemon.wait_for(lambda: site.kubelet.output(pod, "c") == opened, timeout=60, what="all opened")
    daemon.wait_for(lambda: site.stays(pod), what="running pod")
    before = probe.sample().patches
    taps.unplug()
    daemon.wait_for(lambda: site.shows(STICKS, 0), what="all lost")
    record_property("requests without any", probe.sample().patches - before)
    assert probe.sample().patches - before <= FEW
    assert site.stays(pod)
    site.delete(pod)
    daemon.wait_for(lambda: site.shows(0, 0), timeout=60, what="none")
    assert site.none_refused()
