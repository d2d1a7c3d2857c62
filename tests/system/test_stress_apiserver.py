"""Whatever becomes of the API server: the Node is right afterwards, the log short, metrics and `/readyz` true all along."""

from __future__ import annotations

import ssl
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from devwatch.kube.client import REQUEST_TIMEOUT
from system.apiserver import PATCH_ONLY, WATCH
from system.daemon import Daemon
from system.proxy import DRIP, GARBAGE, HOLE, LOST, NONE, PAGE, RESET, SLOW, TRUNCATED, Fault, Proxy, answered
from system.test_end_to_end import CONFIG, STICK, World
from system.truth import LISTEN, Probe, Sample, well_told, witnessed
from system.udevd import Sticks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from system.apiserver import ApiServer

    StartDaemon = Callable[..., Daemon]

pytestmark = pytest.mark.system

RESOURCE = "aeotec/zstick"
RECOVERY = 60 + REQUEST_TIMEOUT
"""Seconds after the end of a fault within which the Node has to be right."""
FEW = {"node.patch_failed": 6, "node.patched": 4, "node.unwatched": 1}
"""Lines that a fault of some seconds is worth."""
ACCOUNT = "watcher"
TTY = "tty58"


@pytest.fixture
def world(apiserver: ApiServer, tmp_path: Path, start_daemon: StartDaemon) -> World:
    """Return a Node of this test alone, which its daemon may watch and patch."""
    made = World(apiserver, tmp_path, start_daemon)
    made.kubeconfig = apiserver.service_account(ACCOUNT, rules=[*PATCH_ONLY, *WATCH])
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """A daemon that has written a Node without a stick."""

    world: World
    daemon: Daemon
    probe: Probe
    before: Sample

    @classmethod
    def begin(cls, world: World, kubeconfig: Path | None = None) -> Life:
        """Start it."""
        daemon = world.start(listen=LISTEN, kubeconfig=kubeconfig)
        probe = Probe(daemon)
        daemon.wait_for(lambda: world.shows("0") and probe.sample().ready)
        return cls(world=world, daemon=daemon, probe=probe, before=probe.sample())

    def told_truly(self, samples: list[Sample], refused: str = "") -> None:
        """Check what was said in an outage of less than a minute: nothing has been observed, or accepted, since it began.

        It is a reason to be not ready at once only where the server has answered, and refuses with these words.
        """
        assert samples
        assert {sample.healthy for sample in samples} == {True}
        assert all(sample.ready or (refused and refused in sample.reason) for sample in samples)
        assert samples[-1].ready is not bool(refused)
        assert {sample.count("capacity", RESOURCE) for sample in samples} == {0.0}
        assert {sample.last_success for sample in samples} == {self.before.last_success}
        assert samples[-1].count("devices", RESOURCE) == 1.0

    def saw(self, sample: Sample, failures: int) -> bool:
        """Return whether the stick is seen and so many requests have failed since the beginning."""
        return sample.count("devices", RESOURCE) == 1.0 and sample.failed - self.before.failed >= failures

    def recovers(self) -> None:
        """Wait until everything is right again, and check what the log says of it."""
        self.daemon.wait_for(lambda: self.world.shows("1"), timeout=RECOVERY)
        self.daemon.wait_for(self._shows_it, timeout=RECOVERY)
        well_told(self.daemon, most=FEW)

    def _shows_it(self) -> bool:
        sample = self.probe.sample()
        return (
            sample.ready
            and sample.count("capacity", RESOURCE) == 1.0
            and sample.last_success > self.before.last_success
        )


def endures(life: Life, sticks: Sticks, reason: str, *, failures: int = 3, refused: bool = False) -> None:
    """Plug a stick into a host whose API server fails or refuses, and wait until the daemon has said why, and has tried so often."""
    with witnessed(life.probe) as (samples,):
        sticks.plug(TTY, **STICK)
        life.daemon.wait_log("device.added")
        life.daemon.wait_for(lambda: reason in life.daemon.stderr, what=reason)
        life.daemon.wait_for(lambda: samples and life.saw(samples[-1], failures), timeout=RECOVERY)
    life.told_truly(samples, reason if refused else "")


def test_killed_and_started_again(world: World, sticks: Sticks) -> None:
    """Its port refuses meanwhile."""
    life = Life.begin(world)
    world.apiserver.stop()
    endures(life, sticks, "no answer from the API server")
    world.apiserver.start()
    life.recovers()


def test_frozen_for_longer_than_the_timeout(
    world: World, sticks: Sticks, tmp_path: Path, start_daemon: StartDaemon
) -> None:
    """Connections come about and nobody answers; a daemon that starts meanwhile is not ready before its first PATCH."""
    life = Life.begin(world)
    late = World(world.apiserver, tmp_path, start_daemon)
    world.apiserver.freeze()
    daemon = late.start(listen=LISTEN)
    with witnessed(Probe(daemon)) as (samples,):
        endures(life, sticks, f"did not answer within {REQUEST_TIMEOUT:g} s", failures=1)
        daemon.wait_log("node.patch_failed")
    assert not any(sample.ready for sample in samples)
    assert all("the Node has not been seen to show what is present" in sample.reason for sample in samples)
    assert {(sample.count("capacity", RESOURCE), sample.last_success) for sample in samples} == {(None, 0.0)}
    world.apiserver.thaw()
    life.recovers()
    daemon.wait_for(lambda: late.shows("1"), timeout=RECOVERY)


def test_etcd_frozen(world: World, sticks: Sticks) -> None:
    """The API server lives, and has nothing to say."""
    life = Life.begin(world)
    world.apiserver.freeze("etcd")
    endures(life, sticks, "node.patch_failed", failures=1)
    world.apiserver.thaw()
    life.recovers()


def test_etcd_killed_and_started_again(world: World, sticks: Sticks) -> None:
    """The same, with a port that refuses."""
    life = Life.begin(world)
    world.apiserver.stop("etcd")
    endures(life, sticks, "node.patch_failed", failures=1)
    world.apiserver.start()
    life.recovers()


def test_another_authority(world: World, sticks: Sticks) -> None:
    """A server that is not trusted is told nothing; its authority is trusted as soon as it is in the file that the kubeconfig names."""
    life = Life.begin(world)
    world.apiserver.stop()
    authority = world.apiserver.renew()
    try:
        world.apiserver.start()
        endures(life, sticks, "certificate")
    finally:
        world.apiserver.ca_file.write_bytes(authority.read_bytes())
    life.recovers()


def test_a_token_that_expires_and_is_rotated(world: World, sticks: Sticks, tmp_path: Path) -> None:
    """The server knows it no longer; the file has another one later, which is taken without a restart."""
    token = tmp_path / "token"
    token.write_text(world.apiserver.short_token(ACCOUNT, seconds=5))
    world.config.write_text(CONFIG + "resync: 1s\n")
    life = Life.begin(world, world.apiserver.kubeconfig("rotating", token_file=token))
    life.daemon.wait_log("node.patch_failed")
    life = replace(life, before=life.probe.sample())
    endures(life, sticks, "does not accept the credentials")
    token.write_text(world.apiserver.token(ACCOUNT))
    life.recovers()
    assert token.read_text() not in life.daemon.stderr


def test_rights_taken_away_and_given_back(world: World, sticks: Sticks) -> None:
    """The log names the right."""
    life = Life.begin(world)
    world.apiserver.revoke(ACCOUNT)
    endures(life, sticks, "cannot patch resource", refused=True)
    world.apiserver.grant(ACCOUNT)
    life.recovers()


def test_a_node_that_is_deleted_and_comes_back(world: World) -> None:
    """The watch tells both, and the daemon asks at once: missing, not ready and without a capacity; then filled, and ready."""
    life = Life.begin(world)
    with witnessed(life.probe) as (samples,):
        world.apiserver.delete_node(world.node)
        missing = life.daemon.wait_log("node.missing", timeout=5)
        life.daemon.wait_for(lambda: samples and samples[-1].count("capacity", RESOURCE) is None)
        assert (samples[-1].ready, samples[-1].healthy) == (False, True)
        assert f'nodes "{world.node}" not found' in samples[-1].reason
        assert world.node in missing["error"]
        world.apiserver.create_node(world.node)
        life.daemon.wait_for(lambda: world.shows("0"), timeout=5)
    life.daemon.wait_for(lambda: life.probe.sample().ready)
    well_told(life.daemon, most={"node.missing": 1, "node.patched": 3})


DENIED = (
    "ValidatingAdmissionPolicy 'devwatch' with binding 'devwatch' denied request: "
    f"status.capacity[{RESOURCE}] is not among the resources that the policy allows: example.com/meter"
)


def test_a_policy_that_refuses_everything(world: World, sticks: Sticks) -> None:
    """A daemon that starts is never ready, says why at once, and where to list the name; the Node is right as soon as it may be."""
    status = {"kind": "Status", "message": f'nodes "{world.node}" is forbidden: {DENIED}', "reason": "Forbidden"}
    sticks.plug(TTY, **STICK)
    with Proxy(
        world.apiserver.url, tls=lambda: ssl.create_default_context(cafile=str(world.apiserver.ca_file))
    ) as proxy:
        proxy.fail(Fault(name="denied", speaks=answered(403, status)))
        kubeconfig = world.apiserver.kubeconfig("denied", token=world.apiserver.token(ACCOUNT), server=proxy.url)
        daemon = world.start(listen=LISTEN, kubeconfig=kubeconfig)
        with witnessed(Probe(daemon)) as (samples,):
            record = daemon.wait_log("node.patch_failed")
            daemon.wait_for(lambda: samples and DENIED in samples[-1].reason)
        assert f"add {RESOURCE} to spec.variables[0] of ValidatingAdmissionPolicy devwatch" in record["hint"]
        assert not any(sample.ready for sample in samples)
        proxy.fail(NONE)
        daemon.wait_for(lambda: world.shows("1"), timeout=RECOVERY)
        daemon.wait_for(lambda: Probe(daemon).sample().ready)
        well_told(daemon, most=FEW)


FAULTS = (HOLE, DRIP, LOST, TRUNCATED, RESET, GARBAGE, PAGE)
DISTANT: dict[str, Any] = {"vendor": "1a86", "product": "7523"}
DISTANT_TTY = "tty59"
"""Where a stick is until these daemons can no longer tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOff:
    """A daemon whose way to the API server has a fault."""

    fault: Fault
    proxy: Proxy
    world: World
    daemon: Daemon
    probe: Probe

    def recovered(self) -> bool:
        """Return whether everybody knows that the stick is gone."""
        sample = self.probe.sample()
        return sample.ready and sample.count("capacity", RESOURCE) == 0.0 and self.world.shows("0")


@pytest.fixture(scope="module", autouse=True)
def cut_off(control_plane: ApiServer, udevd: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[CutOff]]:  # noqa: ARG001 - it has to run
    """Have daemons behind proxies that fail from the beginning of this file on: to be right about a minute takes one."""
    control_plane.service_account("distant", rules=[*PATCH_ONLY, *WATCH])
    with ExitStack() as running:
        own = running.enter_context(Sticks())
        own.plug(DISTANT_TTY, **DISTANT)
        made = [_behind(fault, control_plane, tmp_path_factory, running) for fault in FAULTS]
        for each in made:
            each.daemon.wait_for(lambda each=each: each.world.shows("1") and each.probe.sample().ready)  # type: ignore[misc]  # the default binds the loop's value
        for each in made:
            each.proxy.fail(each.fault)
        own.unplug(DISTANT_TTY)
        yield made


def _behind(fault: Fault, apiserver: ApiServer, folders: pytest.TempPathFactory, running: ExitStack) -> CutOff:
    """Start a daemon behind a proxy that does not fail yet."""
    folder = folders.mktemp(fault.name)
    tls = None if fault is GARBAGE else lambda: ssl.create_default_context(cafile=str(apiserver.ca_file))
    proxy = running.enter_context(Proxy(apiserver.url, tls=tls))
    world = World(
        apiserver, folder, lambda *options, **more: running.enter_context(Daemon(*options, home=folder, **more))
    )
    world.config.write_text(
        CONFIG.replace(STICK["vendor"], DISTANT["vendor"]).replace(STICK["product"], DISTANT["product"])
    )
    token = apiserver.token("distant")
    daemon = world.start(
        listen=LISTEN, kubeconfig=apiserver.kubeconfig(f"behind-{fault.name}", token=token, server=proxy.url)
    )
    return CutOff(fault=fault, proxy=proxy, world=world, daemon=daemon, probe=Probe(daemon))


def test_a_proxy_that_fails_for_a_minute(cut_off: list[CutOff]) -> None:
    """Answers that are late, cut, reset, lost or no answers: `/readyz` says so after a minute, nothing unobserved is told, all recover."""
    with witnessed(*(each.probe for each in cut_off)) as samples:
        for each, answers in zip(cut_off, samples, strict=True):
            each.daemon.wait_for(
                lambda answers=answers: answers and not answers[-1].ready,  # type: ignore[misc]  # the default binds the loop's value
                timeout=RECOVERY,
                what=each.fault.name,
            )
    for each, answers in zip(cut_off, samples, strict=True):
        assert {sample.healthy for sample in answers} == {True}
        assert {sample.count("capacity", RESOURCE) for sample in answers} == {1.0}, each.fault.name
        assert {sample.count("devices", RESOURCE) for sample in answers} == {0.0}
        assert len({sample.last_success for sample in answers}) == 1
        late, reason = "the Node has not shown what is present for", answers[-1].reason
        # An API server that the tests before have started again refuses everything until its authorizer has read the rules. So short
        # an answer comes through these faults whole, and is the last word of the server then.
        short = each.fault in {DRIP, TRUNCATED, RESET} and "every write is refused" in reason and "(403 from" in reason
        assert short or (late in reason and RESOURCE in reason), each.fault.name
    for each in cut_off:
        each.proxy.fail(SLOW)  # what is late by less than the timeout is good enough
    for each in cut_off:
        each.daemon.wait_for(each.recovered, timeout=RECOVERY, what=each.fault.name)
        well_told(each.daemon, most={"node.patch_failed": 12, "node.patched": 2, "node.unwatched": 1})
        assert "cannot use the kubeconfig" not in each.daemon.stderr
