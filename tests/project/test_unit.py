"""The systemd unit: what systemd itself says of it."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.checkout import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

UNIT = CHECKOUT / "systemd" / "devwatch.service"


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """Return the unit as it is installed, with a program that exists."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    path = tmp_path / "devwatch.service"
    path.write_text(UNIT.read_text().replace("@BINDIR@/devwatch", "/bin/true"))
    return path


def test_systemd_finds_no_fault(unit: Path) -> None:
    """`systemd-analyze verify` is silent."""
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "devwatch" in line]) == (0, [])


def test_the_service_is_hardened(unit: Path) -> None:
    """The exposure that systemd computes is at most 2.0."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-200:]


def test_a_bad_reload_fails_before_it_changes_anything() -> None:
    """The configuration is checked by a command of its own before the daemon is told, and wrong ones are not restarted upon."""
    lines = UNIT.read_text().splitlines()
    assert [line for line in lines if line.startswith("ExecReload=")] == [
        "ExecReload=@BINDIR@/devwatch check",
        "ExecReload=/bin/kill -HUP $MAINPID",
    ]
    assert "RestartPreventExitStatus=2 78" in lines
