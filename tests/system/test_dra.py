"""Sticks by dynamic resource allocation: on a real kubelet a pod without privileges has its stick by `limits` or by a claim."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from system import testbed
from system.apiserver import PATCH_ONLY, WATCH
from system.claiming import RIGHTS, ClaimingSite, apply_classes, missing
from system.handover import HandingOver
from system.test_journey import EVICT

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


@pytest.fixture
def site(apiserver: ApiServer, kubelet: Kubelet, handing: HandingOver, sticks: Sticks) -> Iterator[ClaimingSite]:
    """Return the Node of the kubelet, without pods and sticks."""
    handing.rest()
    made = ClaimingSite(apiserver=apiserver, kubelet=kubelet, prefix=handing.prefix, handing=handing, sticks=sticks)
    yield made
    apiserver.start()
    kubelet.start("containerd")
    kubelet.start()
    made.clear()
    assert handing.running is None or "Traceback" not in handing.running.stderr


@pytest.mark.parametrize("by_serial", [False, True], ids=["by limits", "by serial"])
def test_a_pod_without_any_privilege_opens_its_stick(site: ClaimingSite, *, by_serial: bool) -> None:
    """`limits: {NAME: 1}` or a claim, and nothing else: the stick is at `container.path`, and belongs to the user of the container."""
    site.plug("tty40", "A")
    site.plug("tty41", "B")
    daemon = site.start()
    daemon.wait_for(lambda: site.offers(A=True, B=True), what="slice with both")
    pod = site.pod(**site.spec_of(site.claim("B") if by_serial else None))
    daemon.wait_for(lambda: any(site.kubelet.output(pod, "c")), timeout=60, what="output")
    tty = "tty41" if by_serial or "4:29" in site.kubelet.output(pod, "c")[0] else "tty40"
    site.await_opened(daemon, pod, tty)
    assert site.shows(0, 0)
