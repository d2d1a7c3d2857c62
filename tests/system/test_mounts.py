"""A mount whose server is away: every process that touches it sleeps in the kernel, and the daemon must not be one that waits for it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from system import testbed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from system.daemon import Daemon

    StartDaemon = Callable[..., Daemon]

pytestmark = pytest.mark.system

GOOD = "resources:\n- {name: example.com/stick, match: [{path: /dev/ttyNONE0}]}\nsweep: 1s\n"
SILENCE = "its file system did not answer within 6 s (check the server of its mount)"
MNT_DETACH = 2


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    """Mount a FUSE file system whose server takes no request (fuse(4)): whoever looks into it waits until it is gone."""
    testbed.require(None if Path("/dev/fuse").exists() else "needs /dev/fuse")
    folder, libc = tmp_path / "mount", ctypes.CDLL(None, use_errno=True)
    folder.mkdir()
    server = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
    failed = libc.mount(b"silence", os.fsencode(folder), b"fuse", 0, options)
    testbed.require(f"mount: {os.strerror(ctypes.get_errno())}" if failed else None)
    yield folder
    libc.umount2(os.fsencode(folder), MNT_DETACH)
    os.close(server)


def ends(daemon: Daemon) -> None:
    """See TERM end it within two seconds."""
    daemon.process.signal(signal.SIGTERM)
    assert daemon.process.wait(2) == 0


def threads(daemon: Daemon) -> int:
    """Return how many threads it has."""
    return len(list(Path(f"/proc/{daemon.process.pid}/task").iterdir()))


def test_a_configuration_on_a_mount_that_hangs_is_told_and_stops_nothing(
    mount: Path, tmp_path: Path, start_daemon: StartDaemon
) -> None:
    """The old one stays in force, no threads gather, and one that is put elsewhere is taken at once by HUP."""
    config = tmp_path / "config.yaml"
    config.write_text(GOOD)
    daemon = start_daemon("--dry-run", "--config", str(config), "--listen", "off", "--log-format", "json")
    daemon.wait_log("daemon.started")
    before = threads(daemon)
    (tmp_path / "new").symlink_to(mount / "config.yaml")
    (tmp_path / "new").rename(config)
    rejected = daemon.wait_log("config.rejected")
    assert rejected["faults"] == [f"{config}:1:1: cannot be read: {SILENCE}"]
    time.sleep(5)  # of sweeps, one a second
    assert threads(daemon) <= before + 1
    (tmp_path / "new").write_text(GOOD.replace("stick", "meter"))
    (tmp_path / "new").rename(config)
    daemon.process.signal(signal.SIGHUP)
    daemon.wait_log("config.reloaded", resources=["example.com/meter"], timeout=2)
    ends(daemon)


def test_credentials_on_a_mount_that_hangs_are_told_and_stop_nothing(
    mount: Path, tmp_path: Path, start_daemon: StartDaemon
) -> None:
    """However often they are asked for; TERM does not wait for them."""
    config = tmp_path / "config.yaml"
    config.write_text(GOOD)
    options = ("--config", str(config), "--listen", "off", "--log-format", "json", "--node-name", "mounts")
    daemon = start_daemon(*options, "--kubeconfig", str(mount / "kubeconfig"))
    failed = daemon.wait_log("node.patch_failed")
    assert failed["error"] == f"cannot use the kubeconfig {mount}/kubeconfig: {SILENCE}"
    few = threads(daemon)
    daemon.wait_log("node.patch_failed", since=len(daemon.log))
    assert threads(daemon) <= few
    ends(daemon)


def test_a_start_with_a_mount_that_hangs_ends(mount: Path, start_daemon: StartDaemon) -> None:
    """By TERM at once, and by itself with status 78 and one line."""
    daemon = start_daemon("--dry-run", "--config", str(mount / "config.yaml"))
    daemon.wait_for(lambda: threads(daemon) > 1)
    ends(daemon)
    command = [sys.executable, "-m", "devwatch", "run", "--dry-run", "--config", str(mount / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (78, f"{mount}/config.yaml:1:1: cannot be read: {SILENCE}\n")
