"""The real parts as fixtures, and the rule that a skipped test is a failed one in CI."""

from __future__ import annotations

import gc
import os
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from system import testbed
from system.apiserver import ApiServer, assets
from system.daemon import Daemon
from system.kubelet import Kubelet
from system.kubelet import missing as missing_for_kubelet
from system.udevd import Sticks, missing
from system.udevd import udevd as running_udevd

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

    StartDaemon = Callable[..., Daemon]


# How long an example takes says something of the machine, and nothing of the promise.
hypothesis.settings.register_profile("devwatch", deadline=None)
hypothesis.settings.load_profile("devwatch")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Share the tests out to the workers, where there are some."""
    from support.workers import OneForTheMachine  # noqa: PLC0415  pytest-xdist is there when it asks

    return OneForTheMachine(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the tests of the image come last: `.ci/run` builds it meanwhile."""
    items.sort(key=lambda item: item.nodeid.startswith("tests/system/test_container.py"))


def pytest_collection_finish() -> None:
    """Spare the tests, which collect garbage often, the walk over all that lives until the end anyway."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before any fixture of the test is made
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what changes the machine unless it was asked for."""
    if item.get_closest_marker("system"):
        testbed.require(testbed.closed(os.environ))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let no test be skipped in CI, and let one that fails tell what became of its sticks and its kubelet."""
    report = yield
    sticks = getattr(item, "funcargs", {}).get("sticks")
    if report.failed and isinstance(sticks, Sticks):
        report.sections.append(("udev", sticks.account()))
    kubelet = getattr(item, "funcargs", {}).get("kubelet")
    if report.failed and isinstance(kubelet, Kubelet):
        report.sections.append(("kubelet", kubelet.account()))
    return testbed.without_skip(report) if testbed.skips_fail(os.environ) else report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Let no whole file be skipped in CI either."""
    report = yield
    return testbed.without_skip(report) if testbed.skips_fail(os.environ) else report


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ApiServer]:
    """Start one API server for the whole run; tests ask for `apiserver`."""
    testbed.require(testbed.closed(os.environ))
    folder = assets(os.environ)
    if folder is None:
        pytest.skip("needs KUBEBUILDER_ASSETS, a folder with kube-apiserver and etcd")
    with ApiServer(folder) as server:
        yield server


@pytest.fixture
def apiserver(control_plane: ApiServer) -> Iterator[ApiServer]:
    """Have a real API server that runs, and runs again after a test that stopped or froze it."""
    yield control_plane
    control_plane.thaw()
    control_plane.start()


@pytest.fixture(scope="session")
def udevd() -> Iterator[None]:
    """Have a udevd that answers, the machine's or our own."""
    testbed.require(testbed.closed(os.environ))
    testbed.require(missing(os.geteuid()))
    with running_udevd():
        yield


@pytest.fixture
def sticks(udevd: None) -> Iterator[Sticks]:  # noqa: ARG001  it has to run, and has nothing to say
    """Plug and unplug virtual consoles as sticks; they are put back after the test."""
    with Sticks() as plugged:
        yield plugged


@pytest.fixture(scope="module")
def kubelet(control_plane: ApiServer, udevd: None) -> Iterator[Kubelet]:  # noqa: ARG001  it holds the lock of the machine
    """Have a real kubelet, whose Node is Ready, and real containers."""
    folder = assets(os.environ) or Path("/nonexistent")
    testbed.require(missing_for_kubelet(os.geteuid(), folder))
    with Kubelet(control_plane, folder, f"kubelet-{uuid.uuid4().hex[:8]}") as running:
        yield running


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[StartDaemon]:
    """Return a function that starts `devwatch run` with options, as `Daemon` does; all are killed after the test."""
    with ExitStack() as running:
        yield lambda *options, **more: running.enter_context(Daemon(*options, home=tmp_path, **more))
