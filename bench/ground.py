"""The real parts that the benches stand on: udevd, sticks, an API server, the daemon as users run it."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench import ROOT
from bench.server import RIGHTS, AuditedServer, Viewer, advertised
from system.apiserver import assets
from system.daemon import Daemon
from system.udevd import DEV, MODE, SYS, Sticks, missing, udevd
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import Self

RESOURCE = "example.com/stick"
VENDOR, PRODUCT = "0658", "0200"
CONFIG = """\
resources:
  - name: example.com/stick
    match: [{{vendor: "0658", product: "0200"}}]
    removalGrace: {grace}
"""
ACCOUNT = "devwatch"
CHANGED = 'devwatch_patches_total{outcome="changed"}'
"""The metric of accepted changes."""


def lacking(environ: Mapping[str, str]) -> str | None:
    """Return why the benches cannot run here, in a few words, or None."""
    if assets(environ) is None:
        return "needs KUBEBUILDER_ASSETS, a folder with kube-apiserver, etcd and kube-scheduler"
    return missing(os.geteuid())


@dataclass(slots=True, kw_only=True)
class Ground:
    """Everything that runs while the benches do."""

    server: AuditedServer
    sticks: Sticks
    folder: Path
    quick: bool
    """Whether a smoke test is enough: sizes are a fraction, and the figures mean little."""
    kubeconfig: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def size(self, full: int, quick: int) -> int:
        """Return how many there are to be."""
        return quick if self.quick else full

    def node(self) -> str:
        """Make a Node of a new name and return the name."""
        name = f"bench-{next(self._numbers)}"
        self.server.create_node(name)
        return name

    def nodes(self) -> Viewer:
        """Return a watch of what all Nodes advertise."""
        return Viewer(self.server, "/api/v1/nodes", advertised)

    def daemon(self, node: str, *, grace: str = "2s") -> Daemon:
        """Start the daemon on a Node, as users run it, with its metrics on a free port."""
        config = self.folder / f"{node}.yaml"
        config.write_text(CONFIG.format(grace=grace))
        where = (f"--config={config}", f"--node-name={node}", f"--kubeconfig={self.kubeconfig}")
        options = ("--listen=127.0.0.1:0", "--log-format=json", "--log-level=debug")
        return Daemon(*where, *options, home=self.folder, env={"PYTHONPATH": str(ROOT / "src")})


@contextlib.contextmanager
def prepared(environ: Mapping[str, str], *, quick: bool) -> Iterator[Ground]:
    """Start everything, and put the machine back at the end."""
    folder = assets(environ)
    if folder is None:
        raise ValueError(lacking(environ))
    with contextlib.ExitStack() as stack:
        stack.enter_context(udevd())
        server = stack.enter_context(AuditedServer(folder))
        yield Ground(
            server=server,
            sticks=stack.enter_context(Sticks()),
            folder=Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="devwatch-bench-"))),
            quick=quick,
            kubeconfig=server.service_account(ACCOUNT, rules=RIGHTS),
        )


class Switch:
    """A stick that comes and goes in microseconds: its udev rule stays, so that udevd reads no rules again between two events."""

    def __init__(self, sticks: Sticks, tty: str) -> None:
        """Give the console its ids; it is plugged then."""
        self._sticks, self._tty = sticks, tty
        self.number = sticks.plug(tty, vendor=VENDOR, product=PRODUCT, serial=tty).stat().st_rdev
        """The device number (`st_rdev`)."""

    @property
    def text(self) -> str:
        """The device number as `stat -c %t:%T` prints it."""
        return f"{os.major(self.number):x}:{os.minor(self.number):x}"

    def __enter__(self) -> Self:
        """Wait until udevd has seen it."""
        self._sticks.settle()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave it pulled, without ids."""
        self._sticks.unplug(self._tty)
        self._sticks.settle()

    def set(self, *, plugged: bool) -> float:
        """Plug or pull it, as devtmpfs and the kernel do; return when its uevent was sent (`time.monotonic`)."""
        node = DEV / self._tty
        if plugged and not node.exists():
            os.mknod(node, stat.S_IFCHR | MODE, self.number)
        elif not plugged:
            node.unlink(missing_ok=True)
        sent = time.monotonic()
        (SYS / self._tty / "uevent").write_text("add" if plugged else "remove", "ascii")
        return sent


def scrape(daemon: Daemon) -> dict[str, float]:
    """Return the daemon's metrics, by name and labels."""
    address = daemon.wait_log("daemon.started")["listen"]
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def settled(daemon: Daemon, viewer: Viewer, node: str, count: str) -> None:
    """Wait until the daemon shows the count and watches its Node."""
    viewer.wait(f"{node} {RESOURCE}", (count, count))
    daemon.wait_log("node.watched")


def patches(daemon: Daemon) -> float:
    """Return how many changes the Node has taken from the daemon."""
    return scrape(daemon)[CHANGED]


def uevents(metrics: Mapping[str, float]) -> float:
    """Return how many uevents the daemon has read."""
    return sum(value for name, value in metrics.items() if name.startswith("devwatch_uevents_total"))


def rested(daemon: Daemon) -> dict[str, float]:
    """Return the metrics once the loop has run no cycle between two readings: all consequences of the last event are done."""
    held: dict[str, float] = {}

    def resting() -> dict[str, float] | None:
        nonlocal held
        before, held = held, scrape(daemon)
        return held if _cycles(held) == _cycles(before) else None

    return eventually(resting)


def _cycles(metrics: Mapping[str, float]) -> list[float]:
    return [value for name, value in metrics.items() if name.startswith("devwatch_reconciles_total")]
