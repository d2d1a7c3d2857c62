"""All that runs in the soak, in namespaces of its own, and the state in which it is at rest."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from soak import isolation
from soak.config import MOUNTED, configuration, kinds
from soak.incidents import Incidents
from soak.life import Life
from soak.pods import Pods
from system import claiming
from system.apiserver import PATCH_ONLY, WATCH, ApiServer, assets
from system.daemon import Daemon
from system.evictionproxy import evicting_url
from system.handover import HandingOver
from system.kubelet import Kubelet, missing
from system.proxy import Proxy
from system.test_journey import EVICT
from system.udevd import Sticks, udevd

if TYPE_CHECKING:
    from collections.abc import Iterator

NODE = "soak"
RIGHTS = [*PATCH_ONLY, *WATCH, *EVICT, *claiming.RIGHTS]
DAY = 24 * 3600
"""Seconds: the life of the token, longer than any soak."""
CALM = 420.0
"""Seconds for which the node may need until all its pods run on their sticks: a stranger that wrote is answered after 300 at the latest."""
CALM_CHECKS = 5
"""Checks, a second apart, in which nothing may be wrong: a pod whose stick has another number now is evicted a second after its return."""


@dataclass(slots=True, kw_only=True)
class World:
    """The node, its daemon, and what happens to both."""

    apiserver: ApiServer
    daemon: Daemon
    life: Life
    pods: Pods
    incidents: Incidents
    peephole: Path
    """The file by which the daemon shows its tasks and timers."""
    dra: bool
    """Whether there are devices by ResourceClaims."""

    def rest(self) -> None:
        """Let nothing more happen, and wait until the Node shows every stick, and every pod runs."""
        self.incidents.finish()
        self.life.rest()
        self.await_calm()

    def await_calm(self) -> None:
        """Wait until the Node shows every stick, and every pod runs. Raises `AssertionError` with what was wrong last."""
        deadline, calm = time.monotonic() + CALM, 0
        while calm < CALM_CHECKS:
            trouble = self._trouble()
            assert trouble is None or time.monotonic() < deadline, trouble
            assert self.daemon.process.status is None, self.daemon.process.tail()
            calm = calm + 1 if trouble is None else 0
            time.sleep(1)

    def _trouble(self) -> object:
        """Return what is not yet as it should be, or None."""
        status = self.apiserver.node(NODE)["status"]
        plugged = Counter(stick.kind for stick in (*self.life.flapping, *self.life.held))
        for kind in kinds(dra=self.dra):
            wanted = "0" if kind.publish == "dra" else str(plugged[kind])
            shown = [status[part].get(kind.resource) for part in ("capacity", "allocatable")]
            if shown != [wanted, wanted]:
                return kind.resource, shown
        self.pods.tend()
        return self.pods.states_where_not_all_run()


@contextlib.contextmanager
def world(home: Path) -> Iterator[World]:
    """Start everything; all of it is gone afterwards. The daemon's files are in the folder `home`."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(isolation.furnished(home, NODE))
        life = _begun_life(stack)
        server, kubelet = _cluster(stack)
        dra = claiming.missing(server) is None
        config = home / "config.yaml"
        config.write_text(configuration(dra=dra))
        if dra:
            claiming.apply_classes_of(server, config)
        proxy = stack.enter_context(Proxy(stack.enter_context(evicting_url(server))))
        daemon = stack.enter_context(_daemon(server, proxy, config))
        handing = HandingOver(apiserver=server, kubelet=kubelet, kubeconfig=server.admin_kubeconfig, home=home)
        pods = Pods(apiserver=server, kubelet=kubelet, handing=handing, sticks=life.sticks)
        incidents = stack.enter_context(
            Incidents(
                apiserver=server,
                kubelet=kubelet,
                proxy=proxy,
                daemon=daemon,
                config=config,
                dra=dra,
                life=life,
                pods=pods,
            )
        )
        made = World(
            apiserver=server,
            daemon=daemon,
            life=life,
            pods=pods,
            incidents=incidents,
            peephole=_peephole(config),
            dra=dra,
        )
        consoles = [stick.consoles[0] for stick in life.held if stick.kind == MOUNTED]
        pods.begin(consoles, dra=dra, complete=claiming.missing(server, complete=True) is None)
        made.await_calm()
        yield made


def _begun_life(stack: contextlib.ExitStack) -> Life:
    """Start udevd and plug all sticks."""
    send = stack.enter_context(isolation.UeventSender())
    stack.enter_context(udevd(send))
    life = Life(sticks=stack.enter_context(Sticks(send)), send=send)
    life.begin()
    return life


def _cluster(stack: contextlib.ExitStack) -> tuple[ApiServer, Kubelet]:
    """Start the control plane and a kubelet. Raises `SystemExit` where the machine lacks something for it."""
    folder = assets(os.environ) or Path("/nonexistent")
    if (reason := missing(os.geteuid(), folder)) is not None:
        raise SystemExit(f"soak: {reason}")
    server = stack.enter_context(ApiServer(folder))
    server.service_account("soak", rules=RIGHTS)
    kubelet = stack.enter_context(Kubelet(server, folder, NODE))
    server.start_scheduler()
    server.start_controller_manager()
    return server, kubelet


def _daemon(server: ApiServer, proxy: Proxy, config: Path) -> Daemon:
    """Start the daemon, whose way to the API server is the proxy."""
    url = proxy.url if server.serves("policy/v1") else proxy.url.replace("https", "http")
    account = server.kubeconfig("soak", token=server.token("soak", seconds=DAY), server=url)
    options = ("run", "--config", str(config), "--node-name", NODE, "--kubeconfig", str(account))
    command = (sys.executable, "-m", "soak.inside", str(_peephole(config)))
    return Daemon(*options, "--listen=127.0.0.1:0", "--log-format=json", home=config.parent, command=command)


def _peephole(config: Path) -> Path:
    return config.with_name("peephole")
