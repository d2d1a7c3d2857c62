"""The systemd unit: what systemd itself says of it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from devwatch.cli.entry import DEVICE_PLUGIN_DIR, KUBELET_DIR
from support.checkout import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

UNIT = CHECKOUT / "systemd" / "devwatch.service"
DROP_IN = CHECKOUT / "systemd" / "dra.conf"


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


def settings(name: str, file: Path = UNIT) -> list[str]:
    """Return the values of a setting of the unit, or of its drop-in."""
    return [line.removeprefix(f"{name}=") for line in file.read_text().splitlines() if line.startswith(f"{name}=")]


def test_it_reaches_the_folders_of_the_kubelet() -> None:
    """It writes to that of the plugins alone, also on a node that has none yet, and speaks over unix sockets, as their owner."""
    assert settings("ProtectSystem") == ["strict"]
    assert settings("ReadWritePaths") == [f"-{DEVICE_PLUGIN_DIR}"]
    assert "AF_UNIX" in settings("RestrictAddressFamilies")[0].split()
    assert (settings("User"), settings("CapabilityBoundingSet")) == (["root"], [""])
    hidden = [*settings("InaccessiblePaths"), *settings("TemporaryFileSystem"), *settings("RootDirectory")]
    assert hidden == []  # pod-resources can be connected to as it is


def test_the_drop_in_for_dra_opens_what_the_driver_writes(unit: Path) -> None:
    """Folders that the kubelet has not made yet do not hinder its start, and that of the CDI files is made."""
    folder = unit.with_name(f"{unit.name}.d")
    folder.mkdir()
    shutil.copy(DROP_IN, folder)
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (
        done.returncode,
        [line for line in done.stderr.splitlines() if "devwatch" in line or "dra.conf" in line],
    ) == (0, [])
    assert settings("ReadWritePaths", DROP_IN) == [f"-{KUBELET_DIR}/plugins -{KUBELET_DIR}/plugins_registry"]
    assert (settings("RuntimeDirectory", DROP_IN), settings("RuntimeDirectoryPreserve", DROP_IN)) == (["cdi"], ["yes"])


def test_a_socket_on_a_read_only_file_system_can_be_connected_to(tmp_path: Path) -> None:
    """What lets the unit and the DaemonSet reach pod-resources without a permission to write."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    path = tmp_path / "kubelet.sock"
    client = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
    script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && ! touch "$1/x" 2> /dev/null && "$2" -c "$3"'
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        command = ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), sys.executable, client]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if "unshare" in done.stderr:
        pytest.skip(f"needs a mount namespace: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


def test_a_bad_reload_fails_before_it_changes_anything() -> None:
    """The configuration is checked by a command of its own before the daemon is told, and wrong ones are not restarted upon."""
    lines = UNIT.read_text().splitlines()
    assert [line for line in lines if line.startswith("ExecReload=")] == [
        "ExecReload=@BINDIR@/devwatch check",
        "ExecReload=/bin/kill -HUP $MAINPID",
    ]
    assert "RestartPreventExitStatus=2 78" in lines
