"""A real udevd, and virtual consoles that it takes for USB serial sticks.

There is no mount namespace around the tests: what is written to a `uevent` file reaches every network namespace, and who reads it there
belongs to the test as well. Instead one test run at a time holds a lock, and everything is put back at the end. The soak, which takes an
hour, has namespaces of its own (`soak.isolation`) and sends its uevents into its network namespace alone: hence the parameter `uevent`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from system.process import Process
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

DEV = Path("/dev")
SYS = Path("/sys/class/tty")
RUN = Path("/run/udev")
RULES = RUN / "rules.d" / "99-devwatch-test.rules"
CONSOLES = tuple(f"tty{number}" for number in range(10, 64))
"""The virtual consoles that may be taken for sticks; those below are where people log in."""
SERIAL_PORT = "ttyS0"
MODE = 0o660

_PROGRAMS = (Path("/lib/systemd/systemd-udevd"), Path("/usr/lib/systemd/systemd-udevd"))
_LOCK_TIMEOUT = 600.0
_TIMEOUT = 15
_ATTEMPTS = 3


class UdevError(Exception):
    """udevd or udevadm failed; the message holds its own words."""


def missing(uid: int) -> str | None:
    """Return what keeps this user on this machine from running udevd for the tests, in a few words, or None."""
    if uid != 0:
        return "needs root, to run udevd and to make device nodes"
    if shutil.which("udevadm") is None or _program() is None:
        return "needs udev (udevadm and systemd-udevd)"
    if not all((SYS / console / "uevent").exists() for console in CONSOLES):
        return "needs virtual consoles (tty10 to tty63) in /sys/class/tty"
    return None


def serial_port() -> str | None:
    """Return the first serial port of the machine, which may be taken for a stick too, None where it has no hardware for it.

    Unlike a virtual console it takes a speed.
    """
    try:
        kind = (SYS / SERIAL_PORT / "type").read_text("ascii").strip()
    except OSError:
        return None
    return None if kind == "0" else SERIAL_PORT


@contextlib.contextmanager
def udevd(uevent: Callable[[str, str], object] | None = None) -> Iterator[None]:
    """Have a udevd that answers: the machine's, or one of our own where there is none.

    One test run at a time has it; others wait for up to ten minutes. What we start is stopped, and the modes and owners
    of device nodes, which its default rules change, are put back. Raises `UdevError`, with udevd's log, if it does not
    come up. `uevent` sends an event of a tty; without it the kernel does.
    """
    with _exclusive(), contextlib.ExitStack() as undo:
        _repair()
        if not _answers():
            _start(undo, uevent or _uevent)
        yield


def _start(undo: contextlib.ExitStack, uevent: Callable[[str, str], object]) -> None:
    undo.enter_context(ownership_kept())
    if not RUN.exists():
        undo.callback(shutil.rmtree, RUN, ignore_errors=True)
    logs = Path(tempfile.mkdtemp(prefix="devwatch-udevd-"))
    undo.callback(shutil.rmtree, logs, ignore_errors=True)
    process = Process([str(_program()), "--resolve-names=early"], logs / "udevd")
    undo.callback(process.kill)
    _await_answer(process)
    # As at boot: without it every tty of the machine would be one whose rules never ran.
    for tty in SYS.iterdir():
        uevent(tty.name, "add")
    settle()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A device node as it was found."""

    mode: int
    uid: int
    gid: int
    rdev: int

    @classmethod
    def of(cls, path: Path) -> Node:
        """Read it; raises `OSError`."""
        status = path.lstat()
        return cls(mode=status.st_mode, uid=status.st_uid, gid=status.st_gid, rdev=status.st_rdev)

    def put_back(self, path: Path) -> None:
        """Make the node where it is missing, and give it its mode and owner."""
        _remove(path, unless=self.rdev)
        if not path.exists():
            os.mknod(path, self.mode, self.rdev)
        os.chown(path, self.uid, self.gid)
        path.chmod(stat.S_IMODE(self.mode))


class Sticks:
    """Virtual consoles that appear and vanish as USB serial sticks do, each a context of its own.

    `plug` gives a console ids by a udev rule, makes its node and sends `add`; `unplug` removes the node, as devtmpfs
    does before the kernel's event, and sends `remove`. The sysfs entry of a console cannot vanish: an unplugged one is
    still listed there, and its node is gone.
    """

    def __init__(self, uevent: Callable[[str, str], object] | None = None) -> None:
        """Begin with no stick plugged; the consoles are left alone until they are used. `uevent` as for `udevd`."""
        self._uevent = uevent or _uevent
        self._rules: dict[str, str] = {}
        self._found: dict[str, Node] = {}

    def __enter__(self) -> Self:
        """Nothing is changed yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put every console that was used back: its node, its record in the udev database, no rule."""
        self._rules.clear()
        RULES.unlink(missing_ok=True)
        try:
            self._put_back()
            self._forget()
        finally:
            # The default rules of `add` have changed mode and owner once more.
            self._put_back()

    def _put_back(self) -> None:
        for tty, node in self._found.items():
            node.put_back(DEV / tty)

    def _forget(self) -> None:
        """Have udevd forget the ids; raises `UdevError` where it does not. A busy one may still use the rules from before the reload."""
        for _ in range(_ATTEMPTS):
            _udevadm("control", "--reload")
            for tty in self._found:
                self._uevent(tty, "remove")
                self._uevent(tty, "add")
            settle()
            # A serial port may have ids of its own.
            if not any(map(_has_ids, self._found.keys() & set(CONSOLES))):
                return
        raise UdevError(f"a stick is still in the records of udevd after {_ATTEMPTS} attempts")

    def plug(  # noqa: PLR0913  each is a property that a test may want to set, by its name
        self,
        tty: str,
        *,
        vendor: str,
        product: str,
        serial: str | None = None,
        interface: str | None = None,
        port: str | None = None,
        links: Iterable[str] = (),
        properties: Mapping[str, str] | None = None,
    ) -> Path:
        """Plug a stick and return its devnode; a console that is plugged already gets the new properties.

        `tty` is one of `CONSOLES` or `SERIAL_PORT`, else `ValueError`. `links` are relative to /dev. What is None is absent from the
        udev database. The kernel's event is sent on return, udev's comes when its rules have run: see `settle`.
        """
        self._remember(tty)
        named = {
            "ID_VENDOR_ID": vendor,
            "ID_MODEL_ID": product,
            "ID_SERIAL_SHORT": serial,
            "ID_USB_INTERFACE_NUM": interface,
            "ID_PATH": port,
        }
        given = {key: value for key, value in named.items() if value is not None}
        self._rules[tty] = _rule(tty, {**given, **(properties or {})}, links)
        self._write_rules()
        _make_node(tty)
        self._uevent(tty, "add")
        return DEV / tty

    def unplug(self, tty: str) -> None:
        """Pull a stick; its rule goes too, so that no later event brings the ids back."""
        self._remember(tty)
        _remove(DEV / tty)
        self._uevent(tty, "remove")
        self._rules.pop(tty, None)
        self._write_rules()

    def settle(self) -> None:
        """Wait until udevd has handled every event so far, and has the ids of every plugged stick.

        A busy one may still have used the rules from before the reload: then it is asked again. Raises `UdevError` after 15 seconds, or
        three attempts.
        """
        for _ in range(_ATTEMPTS):
            settle()
            missed = [tty for tty in self._rules if not _has_ids(tty)]
            if not missed:
                return
            self._write_rules()
            for tty in missed:
                self._uevent(tty, "add")
        raise UdevError(f"udevd does not read the rules after {_ATTEMPTS} attempts\n{self.account()}")

    def properties(self, tty: str) -> dict[str, str]:
        """Return what the udev database holds of a plugged stick; raises `UdevError` when it has no node."""
        shown = _udevadm("info", "--query=property", f"--name={DEV / tty}")
        return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)

    def account(self) -> str:
        """Return what udevd was told of every console used so far, and what it made of it: for the report of a failed test."""
        return "\n".join([_text(RULES), *(_account(tty) for tty in self._found)])

    def _remember(self, tty: str) -> None:
        if tty not in {*CONSOLES, SERIAL_PORT}:
            raise ValueError(f"{tty!r} is none of {CONSOLES[0]} to {CONSOLES[-1]} and {SERIAL_PORT}")
        if tty not in self._found:
            self._found[tty] = Node.of(DEV / tty)

    def _write_rules(self) -> None:
        RULES.parent.mkdir(parents=True, exist_ok=True)
        fresh = RULES.with_suffix(".new")
        fresh.write_text("".join(self._rules.values()), "utf-8")
        fresh.replace(RULES)
        _udevadm("control", "--reload")


def _has_ids(tty: str) -> bool:
    """Return whether the record of a console has the ids of a stick."""
    try:
        number = (SYS / tty / "dev").read_text("ascii").strip()
        return "E:ID_VENDOR_ID=" in (RUN / "data" / f"c{number}").read_text("utf-8", "replace")
    except OSError:
        return False


def settle() -> None:
    """Wait until udevd has handled every event so far; raises `UdevError` after 15 seconds."""
    _udevadm("settle", f"--timeout={_TIMEOUT}")


def _account(tty: str) -> str:
    number = (SYS / tty / "dev").read_text("ascii").strip()
    return f"{DEV / tty} is {'there' if (DEV / tty).exists() else 'gone'}; {_text(RUN / 'data' / f'c{number}')}"


def _text(path: Path) -> str:
    try:
        return f"{path}:\n{path.read_text('utf-8', 'replace')}"
    except FileNotFoundError:
        return f"{path}: there is none"


def _rule(tty: str, properties: Mapping[str, str], links: Iterable[str]) -> str:
    match = [f'ACTION!="remove", SUBSYSTEM=="tty", KERNEL=="{tty}"']
    values = [f"ENV{{{key}}}={_quoted(value)}" for key, value in properties.items()]
    symlinks = [f"SYMLINK+={_quoted(link)}" for link in links]
    return ", ".join([*match, *values, *symlinks, f'GROUP="dialout", MODE="{MODE:04o}"']) + "\n"


def _quoted(value: str) -> str:
    """Write a value as udev(7) reads it: C escapes inside e"...", and `$` and `%` doubled."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$").replace("%", "%%")
    return 'e"' + re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", escaped) + '"'


def _make_node(tty: str) -> None:
    if (DEV / tty).exists():
        return
    major, minor = (int(number) for number in (SYS / tty / "dev").read_text("ascii").split(":"))
    os.mknod(DEV / tty, stat.S_IFCHR | MODE, os.makedev(major, minor))
    # The umask has taken its part.
    (DEV / tty).chmod(MODE)


def _remove(path: Path, *, unless: int = -1) -> None:
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode):  # as container runtimes make it for a container that restarts without its stick
            path.rmdir()
        elif found.st_rdev != unless:
            path.unlink()


def _uevent(tty: str, action: str) -> None:
    (SYS / tty / "uevent").write_text(action, "ascii")


def _udevadm(*arguments: str) -> str:
    done = subprocess.run(
        ["udevadm", *arguments], capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=False
    )
    if done.returncode:
        raise UdevError(f"udevadm {' '.join(arguments)}: status {done.returncode} {done.stderr.strip()}")
    return done.stdout


def _program() -> Path | None:
    return next((path for path in _PROGRAMS if path.exists()), None)


def _answers() -> bool:
    # Without the socket udevadm would wait for its full timeout.
    if not (RUN / "control").exists():
        return False
    try:
        _udevadm("control", "--ping", "--timeout=3")
    except UdevError:
        return False
    return True


def _await_answer(process: Process) -> None:
    def up() -> bool:
        if process.status is not None:
            raise UdevError(f"systemd-udevd ended with status {process.status}\n{process.tail()}")
        return _answers()

    try:
        eventually(up, timeout=_TIMEOUT)
    except AssertionError:
        raise UdevError(f"systemd-udevd does not answer\n{process.tail()}") from None


@contextlib.contextmanager
def _exclusive() -> Iterator[None]:
    # The folder itself is what is shared, and locking it (flock(2)) leaves no file behind.
    descriptor = os.open(SYS, os.O_RDONLY | os.O_DIRECTORY)
    try:
        eventually(lambda: _locked(descriptor), timeout=_LOCK_TIMEOUT)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _repair() -> None:
    """Clear up after a test run that was killed before its finalisers."""
    RULES.unlink(missing_ok=True)
    for tty in CONSOLES:
        _make_node(tty)


@contextlib.contextmanager
def ownership_kept() -> Iterator[None]:
    """Put every device node in /dev back as it was found: there, and with its mode and owner."""
    found = {path: Node.of(path) for path in DEV.rglob("*") if _is_device(path)}
    try:
        yield
    finally:
        for path, node in found.items():
            node.put_back(path)


def _is_device(path: Path) -> bool:
    # Terminals of other people come and go; everything else in /dev stays.
    if path.is_relative_to(DEV / "pts"):
        return False
    mode = path.lstat().st_mode
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
