"""The virtual machine: a Debian guest with systemd and udevd, whose USB devices come and go while it runs.

It is built and driven by the scripts of one folder: `build-image.sh`, `boot.sh`, `guest-run.sh`, `plug.sh`, `unplug.sh`,
`poweroff.sh` and `usbvm.py`, of which `DEVWATCH_USBVM` names the place.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from support.checkout import CHECKOUT
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

HOST = "10.0.2.2"
"""The address at which the guest reaches what listens on 127.0.0.1 outside (QEMU's user network)."""
TIMEOUT = 300.0
"""Seconds for a change of state in the guest, which may be emulated on a busy machine."""
COMMAND_TIMEOUT = 900.0
"""Seconds for a command in the guest, of which `make install` is the longest: two minutes where nothing else runs."""

_LOST = 125
"""The status of `guest-run.sh` when the machine, and not the command, failed."""
# Root's own. The guest agent has none, and the image puts another Python first.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Ends QEMU, which is in the background, when the tests end in whichever way: their end of the pipe closes then.
_GUARD = 'cat > /dev/null; [ -e "$0/qemu.pid" ] && kill "$(cat "$0/qemu.pid")"; rm -rf "$1"'


class MachineError(Exception):
    """The machine or a command in it failed; the message holds what was said."""


def folder(environ: Mapping[str, str]) -> Path:
    """Return the folder with the scripts: `DEVWATCH_USBVM`, or the one of the test bed beside the checkout."""
    beside = Path(__file__).parents[3] / "shared" / "testbed" / "usbvm"
    return Path(environ.get("DEVWATCH_USBVM") or beside)


def missing(environ: Mapping[str, str]) -> str | None:
    """Return what is needed to boot the machine and is not here, in one line, or None."""
    scripts = folder(environ)
    if not (scripts / "boot.sh").exists():
        return f"needs DEVWATCH_USBVM, a folder with boot.sh and its companions; {scripts} is none"
    built = (_image(environ) / "rootfs.img").exists()
    programs = {"qemu-system-x86_64": "qemu-system-x86", "apt-get": "apt"}
    programs |= {} if built else {"debootstrap": "debootstrap", "mke2fs": "e2fsprogs"}
    absent = [package for program, package in programs.items() if shutil.which(program) is None]
    if absent:
        return f"needs the Debian packages {' '.join(absent)}"
    return None if built or os.geteuid() == 0 else "needs root, once, to build the image of the virtual machine"


def _image(environ: Mapping[str, str]) -> Path:
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(environ.get("USBVM_IMG") or cache / "devwatch-testbed" / "usbvm" / "image")


class Machine:
    """The machine, as a context manager that boots it and always powers it off; what it wrote to its disk is thrown away.

    `share` is a folder that the guest sees as /share.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Prepare a machine of its own: several may run side by side."""
        self._scripts = folder(environ)
        self._home = Path(tempfile.mkdtemp(prefix="devwatch-usb-"))
        self._run, self.share = self._home / "run", self._home / "share"
        self._build = not (_image(environ) / "rootfs.img").exists()
        own = {"USBVM_RUN": str(self._run), "USBVM_SHARE": str(self.share), "USBVM_TIMEOUT": f"{COMMAND_TIMEOUT:g}"}
        self._environ = {**environ, **own}
        self._plugged: list[str] = []
        self._gadgets: list[str] = []

    def __enter__(self) -> Self:
        """Build the image where there is none, boot, and return when systemd has started all there is to start."""
        for each in (self._run, self.share):
            each.mkdir()
        self._guard = subprocess.Popen(
            ["sh", "-c", _GUARD, str(self._run), str(self._home)], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            if self._build:
                self._script("build-image.sh")
            self._script("boot.sh")
            self._prepare()
        except BaseException:
            self._off()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Power off."""
        self._off()

    def _off(self) -> None:
        try:
            with suppress(MachineError):  # then the guard ends it
                self._script("poweroff.sh")
        finally:
            self._guard.communicate()

    def _prepare(self) -> None:
        for name in ("gadget.sh", "camera.py", "kubelet.py"):
            shutil.copy(Path(__file__).with_name(name), self.share)
        shutil.copytree(
            CHECKOUT / "tests" / "support", self.share / "support", ignore=shutil.ignore_patterns("__pycache__")
        )
        # Otherwise QEMU ends where the guest reboots.
        self._script("usbvm.py", "qmp", "set-action", json.dumps({"reboot": "reset"}))

    def _script(self, name: str, *arguments: str) -> str:
        command = [str(self._scripts / name), *arguments]
        done = subprocess.run(
            command,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            raise MachineError(f"{name} {shlex.join(arguments)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    # Commands

    def attempt(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the guest as root, and return how it ended. Raises `MachineError` where the machine failed."""
        done = subprocess.run(
            [str(self._scripts / "guest-run.sh"), f"export PATH={_PATH}\n{command}"],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode == _LOST:
            raise MachineError(f"{command}: {done.stderr}")
        return done

    def run(self, command: str) -> str:
        """Return the standard output of a shell command in the guest. Raises `MachineError` for a status other than 0."""
        done = self.attempt(command)
        if done.returncode != 0:
            raise MachineError(f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def install(self, path: str, content: str, *, mode: str = "644") -> None:
        """Write a file of the guest in one step, so that nobody reads half of it."""
        fresh = self.share / "file"
        fresh.write_text(content)
        self.run(f"install -m {mode} /share/file {path}.new && mv {path}.new {path}")

    def reboot(self, name: str, *, serial: str) -> None:
        """Reboot, plug this stick between the old system's end and the new one's beginning, and return when the guest answers.

        That is long before all services run.
        """
        before = self._restarts()
        # Later, since the guest agent ends too, and then would not tell how the command ended.
        with suppress(MachineError):
            self.run("systemd-run --quiet --on-active=2s --timer-property=AccuracySec=100ms systemctl reboot")
        eventually(lambda: self._restarts() > before, timeout=TIMEOUT)
        self._gadgets.clear()  # they lived in the kernel that is gone
        self.plug(name, serial=serial)
        eventually(self._answers, timeout=TIMEOUT)

    def booted(self) -> bool:
        """Wait until systemd has started all there is to start, and return whether nothing failed."""
        return self.attempt("systemctl is-system-running --wait").stdout.strip() == "running"

    def _restarts(self) -> int:
        """Return how often the kernel said that it restarts."""
        return (self._run / "console.log").read_text("utf-8", "replace").count("reboot: Restarting system")

    def _answers(self) -> bool:
        with suppress(MachineError):
            return self.attempt("true").returncode == 0
        return False

    # Sticks

    def plug(self, name: str, *, serial: str = "", driver: str = "usb-serial", port: str | None = None) -> None:
        """Plug a device of QEMU: an FTDI adapter (0403:6001) with this serial number, or another driver's, such as `usb-hub`."""
        self._script("plug.sh", name, serial, driver, *([f"port={port}"] if port else []))
        self._plugged.append(name)

    def unplug(self, name: str, *, along: Sequence[str] = ()) -> None:
        """Pull a device of QEMU; what is plugged into it goes `along`."""
        self._script("unplug.sh", name)
        self._plugged = [each for each in self._plugged if each not in {name, *along}]

    def make(self, name: str, identity: str, *, serial: str = "", ttys: int = 1) -> None:
        """Plug a device that the guest's kernel makes up: `identity` is `VENDOR:PRODUCT`, each of its ttys is a CDC ACM function."""
        self._make("add", name, identity, f"{ttys}", serial)

    def make_camera(self, name: str, identity: str) -> None:
        """Plug a camera that the guest's kernel makes up; there can be one at a time."""
        self._make("camera", name, identity)

    def _make(self, kind: str, name: str, identity: str, *more: str) -> None:
        self.run(f"sh /share/gadget.sh {kind} {name} {identity.replace(':', ' ')} {shlex.join(more)}")
        self._gadgets.append(name)

    def unmake(self, *names: str) -> None:
        """Pull made-up devices."""
        for name in names:
            self.run(f"sh /share/gadget.sh del {name}")
            self._gadgets.remove(name)

    def clear(self) -> None:
        """Pull whatever is plugged."""
        self.unmake(*self._gadgets)
        for name in reversed(self._plugged):  # what sits in a hub was plugged after it
            self.unplug(name)
