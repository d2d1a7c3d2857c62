"""The machine as fixtures. It is slow, so these tests run only where their folder is named: `pytest tests/usb`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from system.apiserver import ApiServer, assets
from usb.installation import install, install_camera_drivers
from usb.machine import Machine, MachineError, missing
from usb.site import Site

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave these tests out of a run that does not name them."""
    named = [(config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args]
    asked = any(each == HERE or HERE in each.parents for each in named)
    return True if collection_path.suffix == ".py" and not asked else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip all of these tests where something is missing, and say once what."""
    if reason := _missing():
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


def _missing() -> str | None:
    if assets(os.environ) is None:
        return "needs KUBEBUILDER_ASSETS, a folder with kube-apiserver and etcd"
    return missing(os.environ)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the service's journal with a test that failed (and with `-rP` also where it passed)."""
    report = yield
    site = item.funcargs.get("site") if isinstance(item, pytest.Function) else None
    if report.when == "call" and isinstance(site, Site):
        report.sections.append(("journal of the guest", site.journal()))
    return report


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ApiServer]:
    """Have an API server outside of the machine."""
    with ApiServer(Path(os.environ["KUBEBUILDER_ASSETS"])) as server:
        yield server


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """Have a machine that has booted and has devwatch installed."""
    with Machine(os.environ) as booted:
        install(booted)
        yield booted


@pytest.fixture(scope="session")
def camera_drivers(machine: Machine) -> None:
    """Have a kernel that knows USB cameras."""
    try:
        install_camera_drivers(machine)
    except MachineError as error:
        pytest.skip(f"needs the drivers of cameras for the kernel of the machine: {error}")


@pytest.fixture(scope="session")
def installed(control_plane: ApiServer, machine: Machine) -> Site:
    """Have the service configured for the API server outside."""
    return Site(machine, control_plane)


@pytest.fixture
def site(installed: Site) -> Iterator[Site]:
    """Have the service run with the tests' configuration, and no stick plugged; whatever a test plugs is pulled after it."""
    try:
        installed.settle()
    except (AssertionError, MachineError) as error:
        raise AssertionError(f"{error}\n{installed.journal()}") from error
    yield installed
    installed.machine.clear()
