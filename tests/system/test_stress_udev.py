"""Whatever becomes of udev and of the host: the Node is right afterwards, with few patches, a short log, and no memory lost."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from system.daemon import RUN, Daemon
from system.process import Process
from system.test_end_to_end import STICK, World
from system.truth import LISTEN, Probe, Sample, well_told
from system.udevd import CONSOLES, DEV, SYS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from system.apiserver import ApiServer
    from system.udevd import Sticks

    StartDaemon = Callable[..., Daemon]

pytestmark = pytest.mark.system

UDEVD = "/lib/systemd/systemd-udevd"
STAYS, COMES, GOES = "tty60", "tty61", "tty62"
STORM = 10_000
CYCLES = 200
CHANGES = 900
MOST_PATCHES = 3
GROWTH = 1024
"""KiB by which the resident memory may grow in a storm: what the allocator keeps of the first one."""
NOBODY = (
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    # To read the files of the tests, which are root's; it makes no difference to netlink.
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
    "--",
)
SMALL = 4096
"""Bytes of a receive buffer that holds a few uevents."""
PIDFD_GETFD = 438
"""The number of the system call (pidfd_getfd(2)); Python has no name for it."""


def netlink_sockets(pid: int) -> list[int]:
    """Return the descriptors of the sockets through which a process hears uevents."""
    table = Path(f"/proc/{pid}/net/netlink").read_text("ascii").splitlines()[1:]
    inodes = {f"socket:[{row.split()[9]}]" for row in table if row.split()[1] == "15"}
    return [int(link.name) for link in Path(f"/proc/{pid}/fd").iterdir() if _target(link) in inodes]


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:  # closed meanwhile
        return ""


def shrink(pid: int) -> None:
    """Make the receive buffer of a process small."""
    (number,) = netlink_sockets(pid)
    process = os.pidfd_open(pid)
    taken = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, process, number, 0)
    os.close(process)
    assert taken >= 0, os.strerror(ctypes.get_errno())
    with socket.socket(fileno=taken) as heard:
        heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)


def resident(pid: int) -> int:
    """Return the resident memory of a process in KiB."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def uevent(tty: str, action: str) -> None:
    """Have the kernel send an uevent."""
    (SYS / tty / "uevent").write_text(action, "ascii")


@dataclass(slots=True, kw_only=True)
class Host:
    """A daemon and its Node."""

    name: str
    world: World
    daemon: Daemon
    probe: Probe
    before: Sample = field(init=False)
    memory: int = field(init=False)

    @classmethod
    def begin(cls, name: str, world: World) -> Host:
        """Start the daemon."""
        daemon = world.start(listen=LISTEN)
        return cls(name=name, world=world, daemon=daemon, probe=Probe(daemon))

    def awaits(self, count: int) -> None:
        """Wait until the Node shows this, and the daemon knows it."""
        self.daemon.wait_for(lambda: self.world.shows(str(count)) and self._agrees(count), what=f"{self.name}: {count}")

    def _agrees(self, count: int) -> bool:
        sample = self.probe.sample()
        return sample.ready and {sample.count(kind, "aeotec/zstick") for kind in ("capacity", "devices")} == {count}

    def lists(self, links: Collection[str]) -> bool:
        """Return whether the Node shows a stick for each of these links."""
        return [entry["link"] for entry in self.world.devices().get("aeotec/zstick", [])] == [*links]

    def remember(self) -> None:
        """Keep what is so before a storm."""
        self.before, self.memory = self.probe.sample(), resident(self.daemon.process.pid)

    def stood(self) -> Sample:
        """Check what the storm has cost, and return what the daemon says of it."""
        after = self.probe.sample()
        assert after.patches - self.before.patches <= MOST_PATCHES, f"{self.name}\n{self.daemon.process.tail()}"
        assert resident(self.daemon.process.pid) - self.memory <= GROWTH, self.name
        assert after.metrics["devwatch_monitor_up"] == 1.0
        well_told(self.daemon)
        return after


@pytest.fixture(scope="module")
def hosts(control_plane: ApiServer, udevd: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:  # noqa: ARG001 - it has to run
    """Have four daemons, as root and as nobody, with the receive buffer that each gets and with a small one."""
    control_plane.start()
    with ExitStack() as running:

        def start(name: str, *command: str) -> Host:
            home = tmp_path_factory.mktemp(name)
            started = partial(Daemon, home=home, command=(*command, *RUN))
            return Host.begin(name, World(control_plane, home, lambda *more: running.enter_context(started(*more))))

        made = [start("root"), start("root-small"), start("nobody", *NOBODY), start("nobody-small", *NOBODY)]
        for host in made:
            host.awaits(0)
            if host.name.endswith("small"):
                shrink(host.daemon.process.pid)
        yield made


@contextlib.contextmanager
def storm(hosts: Sequence[Host], sticks: Sticks, *, before: int, after: int) -> Iterator[None]:
    """Have a storm in which the number of sticks changes, and check that every daemon stands it."""
    for host in hosts:
        host.awaits(before)
        host.remember()
    yield
    sticks.settle()
    for host in hosts:
        host.awaits(after)
        host.stood()


def test_ten_thousand_uevents_in_one_burst(hosts: list[Host], sticks: Sticks) -> None:
    """One stick goes in the middle of it and two come. A buffer of root's loses nothing; what a small one loses does no harm."""
    sticks.plug(GOES, **STICK)
    with storm(hosts, sticks, before=1, after=2), ExitStack() as files:
        others = [tty for tty in CONSOLES if tty not in (STAYS, COMES, GOES)]
        opened = [files.enter_context((SYS / tty / "uevent").open("wb", buffering=0)) for tty in others]
        for number in range(STORM):
            opened[number % len(opened)].write(b"change")
            if number == STORM // 2:
                sticks.unplug(GOES)
                sticks.plug(STAYS, **STICK)
                sticks.plug(COMES, **{**STICK, "serial": "AEO0002"})
    for host in hosts:
        after, heard = host.probe.sample().metrics, 'devwatch_uevents_total{action="change"}'
        overflows = after["devwatch_monitor_overflows_total"]
        assert overflows if host.name.endswith("small") else host.name != "root" or not overflows
        assert host.name != "root" or after[heard] - host.before.metrics[heard] >= STORM


def test_a_trigger_of_everything(hosts: list[Host], sticks: Sticks) -> None:
    """Nothing has changed, so nothing is written."""
    sticks.plug(STAYS, **STICK)
    with storm(hosts, sticks, before=1, after=1):
        subprocess.run(["udevadm", "trigger"], check=True)
    assert {host.probe.sample().patches - host.before.patches for host in hosts} == {0.0}


def test_changes_that_change_nothing(hosts: list[Host], sticks: Sticks) -> None:
    """As fast as udevd handles them: each makes record and links anew while those of others are looked at, and nothing is written."""
    links = {tty: f"/dev/serial/by-id/usb-{tty}" for tty in (STAYS, COMES, GOES)}
    for tty, link in links.items():
        sticks.plug(tty, **{**STICK, "serial": tty}, links=[link.removeprefix("/dev/"), f"serial/by-path/{tty}"])
    sticks.settle()
    with storm(hosts, sticks, before=3, after=3):
        for host in hosts:
            host.daemon.wait_for(partial(host.lists, links.values()))
            host.remember()
        for number in range(CHANGES):
            uevent(list(links)[number % len(links)], "change")
    assert {host.probe.sample().patches - host.before.patches for host in hosts} == {0.0}
    assert all(host.lists(links.values()) for host in hosts)


def test_two_hundred_plugs_and_unplugs(hosts: list[Host], sticks: Sticks) -> None:
    """Of two sticks one is there in the end."""
    for tty in (STAYS, GOES):
        sticks.plug(tty, **STICK)
    with storm(hosts, sticks, before=2, after=1):
        for _ in range(CYCLES):
            for tty in (STAYS, GOES):
                replug(tty)
        sticks.unplug(GOES)


def replug(tty: str) -> None:
    """Pull a stick and push it in again, faster than a hand can."""
    node = DEV / tty
    number = node.stat().st_rdev
    node.unlink()
    uevent(tty, "remove")
    os.mknod(node, stat.S_IFCHR | 0o660, number)
    uevent(tty, "add")


@pytest.fixture
def world(apiserver: ApiServer, tmp_path: Path, start_daemon: StartDaemon) -> World:
    """Return a Node of this test alone."""
    return World(apiserver, tmp_path, start_daemon)


def started_by(world: World, start_daemon: StartDaemon, *command: str) -> World:
    """Return the same Node, with a daemon that is started in another way."""
    world._start = partial(start_daemon, command=command)  # noqa: SLF001 - a test's own
    return world


def test_no_file_descriptors_left(world: World, sticks: Sticks) -> None:
    """Nothing can be seen for certain, so nothing is lowered, and nobody can ask; with descriptors all is right again."""
    sticks.plug(STAYS, **STICK)
    host = Host.begin("starved", world)
    host.awaits(1)
    host.remember()
    pid = host.daemon.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    address = urlsplit(f"//{host.daemon.wait_log('daemon.started')['listen']}")
    with socket.create_connection((str(address.hostname), int(address.port or 0))):
        sticks.unplug(STAYS)
        host.daemon.wait_log("look.uncertain")
        sticks.plug(COMES, **STICK)
        sticks.unplug(COMES)
        sticks.settle()
        host.daemon.wait_log(
            "look.uncertain", since=len(host.daemon.log)
        )  # at a sweep, which reads more than the devices
        assert world.shows("1")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        host.awaits(0)
    host.stood()


CLOSING = """
import os, signal, sys
from devwatch.cli.entry import main
from system.test_stress_udev import netlink_sockets
signal.signal(signal.SIGUSR1, lambda *_: [os.close(number) for number in netlink_sockets(os.getpid())])
sys.exit(main())
"""


def test_the_monitors_socket_closed(world: World, sticks: Sticks, start_daemon: StartDaemon) -> None:
    """Something in the process closes it: a sweep finds the stick that is not heard, and the next is heard again."""
    environ = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = (sys.executable, "-c", CLOSING, "run")
    host = Host.begin("closed", started_by(world, partial(start_daemon, env=environ), *command))
    host.awaits(0)
    host.remember()
    host.daemon.signal(signal.SIGUSR1)
    host.daemon.wait_for(lambda: not netlink_sockets(host.daemon.process.pid) or "monitor.lost" in host.daemon.stderr)
    sticks.plug(STAYS, **STICK)
    host.daemon.wait_log("monitor.lost", reason="the netlink socket was closed")
    host.daemon.wait_log("monitor.restored", source="udev")
    host.awaits(1)
    heard = host.probe.sample().metrics['devwatch_reconciles_total{trigger="uevent"}']
    sticks.unplug(STAYS)
    host.awaits(0)
    assert host.stood().metrics['devwatch_reconciles_total{trigger="uevent"}'] > heard


def inside(pid: int, *command: str) -> list[str]:
    """Return how to run something where a process sees the host."""
    return ["nsenter", f"--target={pid}", "--mount", "--net", "--", *command]


def test_run_udev_hidden(world: World, sticks: Sticks, start_daemon: StartDaemon) -> None:
    """What is known of a stick stays known, the kernel is heard meanwhile, and what came is found when it is back."""
    sticks.plug(STAYS, **STICK)
    sticks.settle()
    host = Host.begin("hidden", started_by(world, start_daemon, "unshare", "--mount", "--", *RUN))
    host.awaits(1)
    host.remember()
    pid = host.daemon.process.pid
    subprocess.run(inside(pid, "mount", "-t", "tmpfs", "none", "/run/udev"), check=True)
    host.daemon.wait_log("monitor.restored", source="kernel")
    host.daemon.wait_log("host.limited")
    sticks.plug(COMES, **{**STICK, "serial": "AEO0002"})
    sticks.settle()
    host.awaits(1)
    subprocess.run(inside(pid, "umount", "/run/udev"), check=True)
    host.daemon.wait_log("monitor.restored", source="udev")
    host.awaits(2)
    host.stood()


COVER = """
mkdir -p /run/udev/rules.d && mount --bind /run/udev/rules.d /mnt && mount -t tmpfs none /run/udev &&
mkdir /run/udev/rules.d && mount --bind /mnt /run/udev/rules.d && exec "$@"
"""


def test_udevd_stopped_and_started(world: World, sticks: Sticks, start_daemon: StartDaemon, tmp_path: Path) -> None:
    """Killed, so that its socket stays in /run/udev: the kernel is heard meanwhile, and udev again."""
    sticks.plug(STAYS, **STICK)
    command = ("unshare", "--net", "--mount", "--", "sh", "-c", COVER, "sh", *RUN)
    daemon = started_by(world, start_daemon, *command).start()
    daemon.wait_log("daemon.started")
    with ExitStack() as running:
        connect(daemon.process.pid, world, tmp_path, running)
        daemon.wait_for(lambda: world.shows("0"))
        for life in range(2):
            since = len(daemon.log)
            process = Process(inside(daemon.process.pid, UDEVD), tmp_path / f"udevd{life}")
            with ExitStack() as alive:
                alive.callback(process.kill)
                daemon.wait_log("monitor.restored", source="udev", since=since)
                subprocess.run(inside(daemon.process.pid, "udevadm", "trigger", "--subsystem-match=tty"), check=True)
                daemon.wait_for(lambda: world.shows("1"))
            daemon.wait_log("monitor.restored", source="kernel", since=since)
            sticks.unplug(STAYS)
            daemon.wait_for(lambda: world.shows("0"))
            sticks.plug(STAYS, **STICK)
        well_told(daemon)


def connect(pid: int, world: World, folder: Path, running: ExitStack) -> None:
    """Let a process in a network of its own reach the API server under its usual address."""
    server, between = f"tcp:{urlsplit(world.apiserver.url).netloc}", f"unix:{folder}/api"
    relay = (sys.executable, str(Path(__file__).with_name("relay.py")))
    for name, where, addresses in (
        ("far", (), (between, server)),
        ("near", ("nsenter", f"--target={pid}", "--net", "--"), (server, between)),
    ):
        running.callback(Process([*where, *relay, *addresses], folder / f"relay-{name}").kill)
