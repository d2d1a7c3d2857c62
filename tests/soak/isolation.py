"""Namespaces in which the soak lives for an hour without the machine noticing, nor the tests that run beside it.

Its own are the network (loopback, the abstract sockets, uevents), the processes, and the mounts: /run with the udev database, /var/lib
with the folder of the kubelet, /var/log, and /dev.

- The kernel sends its uevents to each network namespace that belongs to the first user namespace. This one belongs to another user
  namespace, in which nothing runs, so what happens to the machine's devices is not received here; `UeventSender` sends what is.
- devwatch looks for devnodes only where /dev is a devtmpfs, of which the kernel has one instance. So /dev is a folder within it, beneath
  the mount of /dev/shm, where it is not seen from outside.
- The cgroups of the pods are below one of the soak's own, and the kubelet's name is another than in the tests.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from system.relay import loopback_up
from system.udevd import SYS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

NAME = "devwatch-soak"
CGROUP = f"{NAME}/node"
"""Two levels deep: the tests remove what they find as `kubepods` in a cgroup below the root."""

_UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
_NETWORK = ("unshare", "--user", "--map-root-user", "--net", "--", "sh", "-c", "echo ready; read end")
"""A process that has the network namespace until its input ends."""
_CGROUPS = Path("/sys/fs/cgroup")
_ADDRESS, _GATEWAY = "10.99.0.2", "10.99.0.1"
"""A kubelet takes the address that its Node's name has, which it looks up again at each report of its status."""
_NETLINK_KOBJECT_UEVENT = 15
_HEADER = struct.Struct("=IHHII")
"""A nlmsghdr (netlink(7)): length, type, flags, sequence, port."""
_FIRST_TYPE, _REQUEST = 0x10, 0x1
"""Other messages than requests of a type that is not netlink's own are passed over."""


def outside() -> bool:
    """Return whether this process is not yet in the namespaces."""
    return os.environ.get("DEVWATCH_TEST_KUBELET") != NAME


def run(arguments: Sequence[str]) -> int:
    """Run `python -m soak` with these arguments in the namespaces, and return its exit status. All of it ends with this process."""
    environ = {**os.environ, "DEVWATCH_TEST_KUBELET": NAME, "DEVWATCH_TEST_CGROUP": CGROUP}
    with subprocess.Popen(_NETWORK, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as network:
        assert network.stdout is not None
        assert network.stdout.readline() == b"ready\n"
        command = ["nsenter", f"--net=/proc/{network.pid}/ns/net", *_UNSHARE, sys.executable, "-m", "soak", *arguments]
        inner = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL)
        # unshare(1) passes no signal on to the soak, which puts everything back.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: _forward(inner.pid))
        with _cgroups():
            return inner.wait()


def _forward(unshare: int) -> None:
    """Send TERM to the child of unshare(1)."""
    children = Path(f"/proc/{unshare}/task/{unshare}/children").read_text("ascii").split()
    for child in children:
        os.kill(int(child), signal.SIGTERM)


@contextlib.contextmanager
def _cgroups() -> Iterator[None]:
    """Have the cgroup below which the kubelet makes its own: it does not make that one itself."""
    made = [folder for top in _hierarchies() for folder in (top / NAME, top / CGROUP)]
    for folder in made:
        folder.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):  # a new cpuset of cgroup v1 has none, and then takes no process
            if (folder / name).exists() and (folder / "cgroup.clone_children").exists():
                (folder / name).write_text((folder.parent / name).read_text("ascii"), "ascii")
    try:
        yield
    finally:
        for folder in reversed(made):
            for inner, _, _ in os.walk(folder, topdown=False):
                with contextlib.suppress(OSError):
                    Path(inner).rmdir()


def _hierarchies() -> list[Path]:
    """Return the roots of the one hierarchy (cgroup v2) or of those of the controllers (v1)."""
    if (_CGROUPS / "cgroup.procs").exists():
        return [_CGROUPS]
    return [folder for folder in _CGROUPS.iterdir() if (folder / "cgroup.procs").exists()]


@contextlib.contextmanager
def furnished(home: Path, node: str) -> Iterator[None]:
    """Furnish the namespaces that this process is in, for a Node of this name.

    `home` is a folder on a disk, for what the kubelet and containerd keep. Only outside may it be removed: in here it has cgroups and /dev.

    Raises `SystemExit` where another soak runs.
    """
    _network()
    (home / "hosts").write_text(f"127.0.0.1 localhost\n{_ADDRESS} {node}\n", "ascii")
    _bind(home / "hosts", "/etc/hosts")  # no server of names can be reached
    for name in ("/var/lib", "/var/log"):
        _bind(_folder(home / name.replace("/", "_")), name)
        _mount("--make-shared", name)  # else the kubelet does so, by a mount of its folder on itself
    _mount("-t", "tmpfs", "tmpfs", "/run")
    _fresh_sysfs(home)
    with _devices(_folder(home / "devtmpfs")):
        yield


def _network() -> None:
    loopback_up()
    for line in (
        "link add eth0 type veth peer name eth1",
        "link set eth0 up",
        "link set eth1 up",
        f"address add {_ADDRESS}/24 dev eth0",
        f"route add default via {_GATEWAY}",
    ):
        subprocess.run(["ip", *line.split()], check=True)


def _fresh_sysfs(home: Path) -> None:
    """Mount the sysfs of the network namespace, with the cgroups. A lock on a file of it is another than on that of the machine."""
    kept = _folder(home / "cgroup")
    _mount("--rbind", str(_CGROUPS), str(kept))
    _mount("-t", "sysfs", "sysfs", "/sys")
    _mount("--rbind", str(kept), str(_CGROUPS))


@contextlib.contextmanager
def _devices(devtmpfs: Path) -> Iterator[None]:
    """Have a /dev of our own: a folder of the devtmpfs with a copy of each node."""
    _mount("-t", "devtmpfs", "devtmpfs", str(devtmpfs))
    folder = (devtmpfs / "shm" if (devtmpfs / "shm").is_dir() else devtmpfs) / NAME
    folder.mkdir(exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit("another soak runs on this machine") from None
    try:
        _empty(folder)
        _copy_nodes(Path("/dev"), folder)
        for name in ("pts", "shm"):
            _mount("--rbind", f"/dev/{name}", str(_folder(folder / name)))
        _mount("--rbind", str(folder), "/dev")
        yield
    finally:
        _unmount("/dev")
        for name in ("pts", "shm"):
            _unmount(str(folder / name))
        _empty(folder)
        folder.rmdir()
        os.close(lock)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _copy_nodes(source: Path, target: Path) -> None:
    for path in source.iterdir():
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            (target / path.name).symlink_to(path.readlink())
        elif stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
            os.mknod(target / path.name, found.st_mode, found.st_rdev)
            os.chown(target / path.name, found.st_uid, found.st_gid)
            (target / path.name).chmod(stat.S_IMODE(found.st_mode))


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def _bind(source: Path, target: str) -> None:
    _mount("--bind", str(source), target)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _unmount(target: str) -> None:
    subprocess.run(["umount", "--lazy", target], check=False)


class UeventSender:
    """Sends uevents of ttys as the kernel would, to the listeners of this network namespace alone.

    The kernel takes a message on its netlink socket for uevents from a process with CAP_SYS_ADMIN, gives it a SEQNUM, and sends it to its
    group of that namespace as its own (lib/kobject_uevent.c, `uevent_net_rcv_skb`, from 4.18 on). A write to a `uevent` file of sysfs
    would reach every network namespace.
    """

    def __init__(self) -> None:
        """Open the socket."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_KOBJECT_UEVENT)
        self._known: dict[str, tuple[str, ...]] = {}

    def __enter__(self) -> Self:
        """Return the sender."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the socket."""
        self._socket.close()

    def __call__(self, tty: str, action: str) -> None:
        """Send one event. Raises `OSError` where the kernel refuses it."""
        devpath, *properties = self._properties(tty)
        lines = (f"{action}@{devpath}", f"ACTION={action}", f"DEVPATH={devpath}", *properties, "SYNTH_UUID=0", "")
        message = "\0".join(lines).encode()
        header = _HEADER.pack(_HEADER.size + len(message), _FIRST_TYPE, _REQUEST, 0, 0)
        with _ignored(errno.ENOBUFS):  # a listener was too slow: it is told so itself
            self._socket.sendto(header + message, (0, 0))

    def _properties(self, tty: str) -> tuple[str, ...]:
        if tty not in self._known:
            major, minor = (SYS / tty / "dev").read_text("ascii").strip().split(":")
            devpath = str((SYS / tty).resolve()).removeprefix("/sys")
            self._known[tty] = (devpath, "SUBSYSTEM=tty", f"MAJOR={major}", f"MINOR={minor}", f"DEVNAME={tty}")
        return self._known[tty]


@contextlib.contextmanager
def _ignored(number: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != number:
            raise
