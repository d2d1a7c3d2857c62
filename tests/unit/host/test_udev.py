"""The edge to udev as far as it needs no udevd and no root: sockets are real, the table of sockets may lie."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pyudev

from devwatch.host.lister import Lister
from devwatch.host.mounts import Roots
from devwatch.host.udev import TEND_INTERVAL, Monitor, UdevSource, read_record
from support.hostfiles import Host
from support.uevents import TABLE, Heard, turn, uevent_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _typeshed import FileDescriptorLike


LOADING = """
import resource, sys
from devwatch.core import errors
from devwatch.host import udev

resource.setrlimit(resource.RLIMIT_NOFILE, (3 + int(sys.argv[1]),) * 2)
try:
    udev.record_reader()
except errors.Unavailable as error:
    print(error)
"""


@pytest.mark.parametrize("left", [0, 1])
def test_a_library_that_no_descriptor_is_left_for_is_not_missing(left: int) -> None:
    """No user is sent to install what is there: the line names the limit to raise, wherever this Python meets it."""
    done = subprocess.run([sys.executable, "-c", LOADING, str(left)], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith(("libudev cannot be loaded: ", "libudev is here, but neither "))
    assert "ulimit -n" in line


HEADER = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n"


class Refusing(asyncio.SelectorEventLoop):
    """A loop whose epoll has no room for a further descriptor (fs.epoll.max_user_watches) where it is told so."""

    refuse = False

    def add_reader(self, fd: FileDescriptorLike, callback: Callable[..., object], *args: object) -> None:
        """Watch a descriptor, or refuse to."""
        if self.refuse:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().add_reader(fd, callback, *args)


Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Make two sockets that are connected."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def serves(loop: asyncio.AbstractEventLoop, descriptor: int, pair: Pair) -> bool:
    """Return whether the loop wakes the next owner of a descriptor's number, who is gone afterwards."""
    woken: list[bool] = []
    os.dup2(pair[0].fileno(), descriptor)
    loop.add_reader(descriptor, woken.append, True)  # noqa: FBT003 - what the callback is called with
    pair[1].send(b"x")
    turn(loop)
    loop.remove_reader(descriptor)
    os.close(descriptor)
    return bool(woken)


@dataclass(slots=True, kw_only=True)
class Bench:
    """A monitor of the kernel's stream, and a table of sockets that can be exchanged."""

    monitor: Monitor
    heard: Heard
    loop: Refusing
    table: Path
    now: float = 0.0

    def tend(self) -> None:
        """Tend the monitor when that is due again."""
        self.now += TEND_INTERVAL
        self.monitor.tend(self.now)

    def said(self) -> list[str]:
        """Return what was said of the monitor since the last time."""
        said, self.heard.told = self.heard.told, []
        return said

    def truth(self) -> None:
        """Have the table of the kernel."""
        self.table.unlink(missing_ok=True)
        self.table.symlink_to(TABLE)

    def lie(self, text: str) -> None:
        """Have another table."""
        self.table.unlink(missing_ok=True)
        self.table.write_text(text)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Make a monitor that has opened nothing yet, on a host without udevd."""
    loop, heard, table = Refusing(), Heard(), tmp_path / "netlink"
    monitor = Monitor(
        context=pyudev.Context(), listener=heard, loop=loop, roots=Roots(run=str(tmp_path / "run")), table=str(table)
    )
    made = Bench(monitor=monitor, heard=heard, loop=loop, table=table)
    made.truth()
    yield made
    monitor.close()
    loop.close()


def test_without_udevd_the_kernel_is_heard(bench: Bench) -> None:
    """One socket, opened by the first `tend` and left alone by the next."""
    assert uevent_descriptors() == []
    bench.tend()
    (descriptor,) = uevent_descriptors()
    bench.tend()
    assert uevent_descriptors() == [descriptor]
    assert bench.said() == ["restored: kernel"]


@pytest.mark.parametrize("table", [None, HEADER + "0 15 short\n", HEADER + "0 15 0 zz 0 0 0 2 0 inode\n", "é"])
def test_a_table_that_cannot_be_read_is_told_once(bench: Bench, table: str | None) -> None:
    """Netlink is not to be had: the sweep finds the devices, and the monitor is there as soon as it can be."""
    bench.lie(table or "")
    if table is None:
        bench.table.unlink()
    bench.tend()
    bench.tend()
    (said,) = bench.said()
    assert said.startswith("lost: no uevents can be received: ")
    assert said.endswith("; devices are found by the sweep alone")
    bench.truth()
    bench.tend()
    assert bench.said() == ["restored: kernel"]


def test_a_table_that_cannot_be_read_now_costs_no_socket_that_hears(bench: Bench) -> None:
    """No descriptor was left to open the table: that says nothing about the monitor."""
    bench.tend()
    before = uevent_descriptors()
    bench.table.unlink()
    bench.tend()
    assert bench.said() == ["restored: kernel"]
    assert uevent_descriptors() == before


def test_a_monitor_that_opens_deaf_is_not_taken_for_one_that_hears(bench: Bench) -> None:
    """No error is reported (libudev, `udev_monitor_new_from_netlink`); the table of sockets shows it."""
    bench.lie(HEADER)
    bench.tend()
    (said,) = bench.said()
    assert "libudev opened a kernel monitor in no multicast group" in said
    gc.collect()
    assert uevent_descriptors() == []
    bench.truth()
    bench.tend()
    assert bench.said() == ["restored: kernel"]


def test_a_monitor_that_goes_deaf_is_replaced(bench: Bench) -> None:
    """Its socket is in the table and in no group."""
    bench.tend()
    (row,) = (row for row in TABLE.read_text("ascii").splitlines() if row.split()[9] == str(inode()))
    fields = row.split()
    fields[3] = "00000000"
    bench.lie(HEADER + " ".join(fields) + "\n")
    bench.tend()
    assert bench.said()[:2] == ["restored: kernel", "lost: the netlink socket is in no multicast group any more"]
    bench.truth()
    bench.tend()
    assert bench.said()[-1] == "restored: kernel"


def inode() -> int:
    """Return the inode of the one socket for uevents."""
    (descriptor,) = uevent_descriptors()
    return os.fstat(descriptor).st_ino


def test_a_monitor_that_the_loop_cannot_watch_is_not_taken_for_one_that_hears(bench: Bench) -> None:
    """Epoll refuses it (ENOSPC, ENOMEM): that is told once, nothing stays open, and it is there as soon as it can be."""
    bench.loop.refuse = True
    bench.tend()
    bench.tend()
    (said,) = bench.said()
    assert said.startswith("lost: no uevents can be received: ")
    assert "No space left" in said
    assert bench.monitor.source == ""
    gc.collect()
    assert uevent_descriptors() == []
    bench.loop.refuse = False
    bench.tend()
    assert bench.said() == ["restored: kernel"]
    assert len(uevent_descriptors()) == 1


def test_a_monitor_hears_on_while_the_loop_cannot_watch_a_better_one(bench: Bench, tmp_path: Path) -> None:
    """Udevd has started, and its stream cannot be taken yet: until then the kernel's is heard as before."""
    bench.tend()
    (descriptor,) = uevent_descriptors()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/control").touch()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15) as udevd:
        udevd.bind((0, 1))  # listens to the kernel, by which it is known
        bench.loop.refuse = True
        bench.tend()
        gc.collect()
        assert set(uevent_descriptors()) == {descriptor, udevd.fileno()}
        assert bench.monitor.source == "kernel"
        bench.loop.refuse = False
        bench.tend()
    assert bench.said() == ["restored: kernel", "restored: udev"]


def test_sockets_of_other_protocols_are_nobody_who_listens_to_the_kernel(bench: Bench, tmp_path: Path) -> None:
    """What tells udevd is a listener to the kernel's uevents, not by any socket in the first group of its protocol."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/control").touch()
    bench.lie(HEADER + "0000000007dd9ccc 0 7 00000001 0 0 0 2 0 565\n0000000007dd9ccd 15 8 00000002 0 0 0 2 0 566\n")
    bench.tend()
    (said,) = bench.said()
    assert "a kernel monitor in no multicast group" in said
    bench.lie(HEADER + "0000000007dd9ccc 15 7 00000001 0 0 0 2 0 565\n")
    bench.tend()
    (said,) = bench.said()
    assert "a udev monitor in no multicast group" in said


def test_a_socket_that_was_closed_under_the_monitor_is_replaced(bench: Bench) -> None:
    """Somebody in this process closed a number that was not his. Freeing such a monitor aborts the process (libudev, `safe_close`)."""
    bench.tend()
    assert bench.said() == ["restored: kernel"]
    for _ in range(2):
        (descriptor,) = uevent_descriptors()
        os.close(descriptor)
        bench.monitor.tend(bench.now)
        assert bench.said() == []
        bench.tend()
        assert bench.said() == ["lost: the netlink socket was closed", "restored: kernel"]
        gc.collect()
        assert len(uevent_descriptors()) == 1


def test_a_descriptor_that_took_the_number_of_a_closed_socket_is_left_alone(
    bench: Bench, pair: Pair, tmp_path: Path
) -> None:
    """A freed monitor closes its number, whosever it is by then (libudev), so this one is never freed."""
    bench.tend()
    (descriptor,) = uevent_descriptors()
    with (tmp_path / "foreign").open("w") as foreign:
        os.dup2(foreign.fileno(), descriptor)
    bench.tend()
    assert bench.said() == ["restored: kernel", "lost: the netlink socket was closed", "restored: kernel"]
    gc.collect()
    turn(bench.loop)
    assert Path(f"/proc/self/fd/{descriptor}").readlink() == tmp_path / "foreign"
    assert descriptor not in uevent_descriptors()
    assert len(uevent_descriptors()) == 1
    assert serves(bench.loop, descriptor, pair)


def test_a_transport_that_took_the_number_of_a_closed_socket_is_left_alone(bench: Bench, pair: Pair) -> None:
    """Connections of the daemon itself come and go all the time; the loop lets nobody but them touch their numbers."""
    bench.tend()
    (descriptor,) = uevent_descriptors()
    ours, theirs = pair
    os.dup2(ours.fileno(), descriptor)
    connect = bench.loop.create_connection(asyncio.Protocol, sock=socket.socket(fileno=descriptor))
    transport, _ = bench.loop.run_until_complete(connect)
    bench.tend()
    assert bench.said()[-1] == "restored: kernel"
    transport.write(b"x")
    assert theirs.recv(1) == b"x"
    transport.close()
    turn(bench.loop)


def test_close_stops_listening_and_may_be_repeated(bench: Bench, pair: Pair) -> None:
    """Nothing is left open."""
    bench.monitor.close()
    bench.tend()
    (descriptor,) = uevent_descriptors()
    bench.monitor.close()
    bench.monitor.close()
    gc.collect()
    assert uevent_descriptors() == []
    assert serves(bench.loop, descriptor, pair)


def test_there_is_no_record_of_a_device_that_is_not_there(tmp_path: Path) -> None:
    """Whatever libudev makes of the path."""
    for path in ("/sys/class/tty/absent", "/sys/class/tty", str(tmp_path), "/"):
        assert read_record(pyudev.Context(), path) is None


@pytest.fixture
def source(bench: Bench, tmp_path: Path) -> tuple[UdevSource, Host]:
    """Make a source of the devices of a made-up host."""
    host = Host(tmp_path / "host")
    return UdevSource(lister=Lister(record=host.record, roots=host.roots), monitor=bench.monitor), host


def test_uevents_are_heard_before_the_first_look(bench: Bench, source: tuple[UdevSource, Host]) -> None:
    """A stick that comes between the two is in the look; one that comes later is heard."""
    devices, host = source
    bench.heard.on_restored = host.stick
    assert [Path(device.devnode).name for device in devices.scan(0).devices] == ["ttyUSB0"]
    devices.close()


def test_the_paths_of_the_configuration_are_followed(source: tuple[UdevSource, Host]) -> None:
    """A link that somebody made by hand leads to its device once it is expected."""
    devices, host = source
    host.stick()
    link = host.link("zigbee", "ttyUSB0")
    devices.expect(frozenset({link}), frozenset({"tty"}))
    assert [device.links for device in devices.scan(0).devices] == [(link,)]


def test_a_look_says_when_what_follows_an_uevent_of_the_kernel_is_due(source: tuple[UdevSource, Host]) -> None:
    """Links and permissions come later without an event; each look takes the next of these times."""
    devices, _ = source
    devices.monitor.settling = [1.2, 2.0, 4.0]
    assert [devices.scan(now).again_at for now in (1.0, 1.2, 3.9, 4.0)] == [1.2, 2.0, 4.0, None]


def test_a_udevd_that_cannot_be_heard_is_said(source: tuple[UdevSource, Host]) -> None:
    """Its files are there, and its stream is not: `hostNetwork` is missing. Without its files that is no wonder."""
    devices, host = source
    assert any("hostNetwork is missing" in trouble for trouble in devices.scan(0).troubles)
    (host.run / "control").unlink()
    assert not any("hostNetwork" in trouble for trouble in devices.scan(0).troubles)
    devices.close()


UEVENTS = {name: Path(f"/sys/class/{path}/uevent") for name, path in {"mem": "mem/null", "tty": "tty/tty"}.items()}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may write to /sys/class/mem/null/uevent")
@pytest.mark.parametrize("name", UEVENTS)
def test_only_uevents_of_the_subsystems_of_the_configuration_are_heard(bench: Bench, name: str) -> None:
    """By the filter of the socket, which the next `tend` replaces when the configuration names others, without a report."""
    bench.tend()
    for subsystems in ({"mem", "usb"}, {"tty"}, {"hidraw"}, {"mem", "tty"}):
        before = uevent_descriptors()
        bench.monitor.listen_to(frozenset(subsystems))
        bench.monitor.tend(bench.now)
        assert len(uevent_descriptors()) == 1 == len(before)
        bench.heard.batches.clear()
        UEVENTS[name].write_text("change", "ascii")
        turn(bench.loop)
        assert bench.heard.actions == (["change"] if name in subsystems else [])
    assert bench.said() == ["restored: kernel"]


def test_the_same_subsystems_again_change_nothing(bench: Bench) -> None:
    """A configuration that is read again names them each time."""
    bench.tend()
    before = inode()
    bench.monitor.listen_to(frozenset({"tty"}))
    bench.tend()
    assert inode() == before


def test_a_source_scans_and_hears_the_subsystems_of_the_configuration(source: tuple[UdevSource, Host]) -> None:
    """And no other ones."""
    devices, _ = source
    devices.expect(frozenset(), frozenset({"usb"}))
    assert devices.lister.subsystems == devices.monitor.subsystems == {"usb"}
    assert devices.scan(0).subsystems == {"usb"}
