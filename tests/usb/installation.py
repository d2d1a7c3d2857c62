"""`make install` in the machine, as a user types it, although the machine reaches no package registry."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from support.checkout import CHECKOUT
from usb.machine import MachineError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from usb.machine import Machine

PACKAGED = ("Makefile", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", ".requirements", "src", "systemd")
"""What `make install` reads of a checkout."""
LOCKS = (".requirements/run.txt", ".requirements/build.txt")

_PYTHON_VERSION = "python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'"
# What pip and apt would fetch lies in the shared folder. Bytecode for hundreds of modules that nobody loads costs an
# emulated machine a minute, so what is loaded is loaded once: the service itself may not write.
_INSTALL = """
set -e
dpkg --install /share/make_*.deb
mkdir -p /root/devwatch
tar -xf /share/checkout.tar -C /root/devwatch
cd /root/devwatch
export PIP_NO_INDEX=1 PIP_FIND_LINKS=/share/wheels PIP_COMPILE=0
make install
python3 -c 'import sys; sys.path.insert(0, "/usr/local/lib/devwatch"); import devwatch.cli, devwatch.agent.daemon, devwatch.kube.nodes'
"""

_CAMERA_DRIVERS = ("mc", "v4l2-core", "common/videobuf2", "usb/uvc")
"""What uvcvideo needs, below drivers/media."""


def install(machine: Machine) -> str:
    """Install this checkout, changes that were not committed included, and return what `make` said.

    Raises `MachineError`.
    """
    _pack(machine.share)
    _fetch_wheels(machine.share / "wheels", machine.run(_PYTHON_VERSION).strip())
    # The image has no make; that of this machine's Debian release has to fit.
    _outside(["apt-get", "-o", "APT::Sandbox::User=", "download", "make"], machine.share)
    return machine.run(_INSTALL)


def install_camera_drivers(machine: Machine) -> None:
    """Have the guest's kernel know USB cameras: the image leaves out their drivers, and the kernel's package has them.

    Raises `MachineError`.
    """
    if machine.attempt("modprobe --dry-run uvcvideo").returncode == 0:
        return
    release = machine.run("uname -r").strip()
    target = machine.share / "modules"
    target.mkdir()
    _outside(["apt-get", "-o", "APT::Sandbox::User=", "download", f"linux-image-{release}"], target)
    parts = " ".join(f"./lib/modules/{release}/kernel/drivers/media/{each}" for each in _CAMERA_DRIVERS)
    _outside(["sh", "-c", f"dpkg-deb --fsys-tarfile *.deb | tar -x {parts}"], target)
    machine.run("cp -r /share/modules/lib/modules/* /lib/modules/ && depmod")


def _pack(share: Path) -> None:
    names = [name for name in PACKAGED if (CHECKOUT / name).exists()]
    _outside(["tar", "--exclude=__pycache__", "-cf", str(share / "checkout.tar"), *names], CHECKOUT)


def _fetch_wheels(target: Path, version: str) -> None:
    """Download what the lock files name, for the guest's Python."""
    target.mkdir()
    # A virtual environment may be made without pip.
    python = sys.executable if find_spec("pip") else "python3"
    locks = [option for lock in LOCKS for option in ("-r", lock)]
    exactly = ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
    guest = ["--implementation", "cp", "--python-version", version]
    _outside([python, "-m", "pip", "download", "--quiet", *exactly, *guest, "--dest", str(target), *locks], CHECKOUT)


def _outside(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MachineError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
