"""A look at a host made of files, in which everything can break that breaks in the field."""

from __future__ import annotations

import errno
import os
import shlex
import socket
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.host.files import GONE
from devwatch.host.lister import Lister
from devwatch.host.mounts import is_devtmpfs
from devwatch.host.sysfs import normal_serial
from support.hostfiles import NUMBERS, Host, device_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from devwatch.core.device import Device


SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789#+-.:=@_")

STARVED = """
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.dup(1))
except OSError:
    scan()
os.close(taken.pop())
scan()
while taken:
    os.close(taken.pop())
scan()
"""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Make a host without a stick."""
    return Host(tmp_path)


# What is there


def test_a_stick_is_found_with_all_that_can_be_matched(host: Host) -> None:
    """The record of udev wins over sysfs; links and physical device are those of now."""
    host.stick(serial=b"raw serial")
    link = host.link("serial/by-id/usb-stick", "ttyUSB0")
    host.rules_run(
        "ttyUSB0",
        ID_VENDOR_ID="0658",
        ID_MODEL_ID="02AB",
        ID_SERIAL_SHORT="S",
        ID_USB_INTERFACE_NUM="0A",
        ID_PATH="usb-0:1.4:1.0",
        DEVLINKS=link,
    )
    stick = host.found()["ttyUSB0"]
    assert (stick.vendor, stick.product, stick.serial) == ("0658", "02ab", "S")
    assert (stick.interface, stick.port, stick.links) == ("0a", "usb-0:1.4:1.0", (link,))
    assert (stick.body, stick.complete, stick.links_known) == ("/devices/usb1/1-1", True, True)
    assert stick.devpath == "/devices/usb1/1-1/1-1:1.0/ttyUSB0/tty/ttyUSB0"
    assert stick.number == NUMBERS[0].stat().st_rdev


def test_a_tty_without_a_node_of_its_own_is_absent(host: Host) -> None:
    """Listed is not present: the kernel removes the node before the entry."""
    host.stick()
    host.node("ttyUSB0").unlink()
    assert host.found() == {}


def test_a_plain_file_in_the_place_of_the_node_is_no_device(host: Host) -> None:
    """Somebody wrote to /dev/ttyUSB0 when no stick was there."""
    folder = host.stick()
    host.node("ttyUSB0").unlink()
    host.node("ttyUSB0").write_text("AT\r")
    assert host.found() == {}
    host.unregister("ttyUSB0")
    host.stick()
    host.node("ttyUSB0").unlink()
    host.node("ttyUSB0").write_text("AT\r")
    host.write(folder, dev="0:0")  # the number that `stat` gives every file that is no device
    assert host.found() == {}


def test_the_node_of_another_device_is_not_this_device(host: Host) -> None:
    """A node that was made by hand, or is the next device's already, has another number."""
    host.stick(node=NUMBERS[0])
    host.node("ttyUSB0").unlink()
    host.node("ttyUSB0").symlink_to(NUMBERS[1])
    assert host.found() == {}


def test_a_port_that_does_not_exist_is_absent(host: Host) -> None:
    """The 8250 driver registers its ports whether there are any; `type` 0 says that there is none, and may change (setserial)."""
    folder = host.register("ttyS0", "devices/platform/serial8250/tty", node=NUMBERS[0], type="0")
    assert host.found() == {}
    host.write(folder, type="4")
    assert list(host.found()) == ["ttyS0"]
    host.write(folder, type="0")
    assert host.found() == {}


def test_an_exclamation_mark_in_sysfs_is_a_folder_in_dev(host: Host) -> None:
    """The kernel cannot have a slash in a name of sysfs."""
    host.register("rfcomm!tty0", "devices/virtual/tty", node=NUMBERS[0])
    assert list(host.found()) == ["rfcomm/tty0"]


def test_a_tty_without_a_number_is_coming_or_going(host: Host) -> None:
    """The kernel adds the number last and removes it first: no doubt, and there as soon as the number is."""
    folder = host.stick()
    (folder / "dev").unlink()
    assert host.found() == {}
    host.write(folder, dev=device_number(NUMBERS[0]))
    assert list(host.found()) == ["ttyUSB0"]


def test_an_entry_that_vanishes_in_mid_look_is_absent_without_a_doubt(host: Host) -> None:
    """Pulling a stick while another is read makes no look uncertain."""
    names = {"ttyUSB0": NUMBERS[0], "ttyUSB1": NUMBERS[1]}
    for name, node in names.items():
        host.stick(name, at=f"usb1/{name}", node=node)
        host.rules_run(name)

    def pull_the_other() -> None:
        (read,) = (Path(path).name for path in host.reads)
        host.unregister(next(name for name in names if name != read))

    host.on_read = pull_the_other
    assert len(host.found()) == 1


# Physical devices


def test_two_interfaces_of_one_stick_are_one_body(host: Host) -> None:
    """Z-Wave and Zigbee of one stick: two devnodes, one device."""
    host.stick("ttyUSB0", interface="00", node=NUMBERS[0])
    host.stick("ttyUSB1", interface="01", node=NUMBERS[1])
    found = host.found()
    assert {name: device.interface for name, device in found.items()} == {"ttyUSB0": "00", "ttyUSB1": "01"}
    assert {device.body for device in found.values()} == {"/devices/usb1/1-1"}


def test_the_hub_is_not_the_body_of_the_sticks_in_it(host: Host) -> None:
    """A hub has vendor and product too; the nearest ancestor that has them is the device."""
    hub = host.sys / "devices/usb1/1-1"
    hub.mkdir(parents=True)
    host.write(hub, idVendor="05e3", idProduct="0608")
    host.stick("ttyUSB0", at="usb1/1-1/1-1.1", node=NUMBERS[0])
    host.stick("ttyUSB1", at="usb1/1-1/1-1.2", node=NUMBERS[1])
    assert {device.body for device in host.found().values()} == {
        "/devices/usb1/1-1/1-1.1",
        "/devices/usb1/1-1/1-1.2",
    }


def test_without_a_usb_device_each_devnode_is_its_own_body(host: Host) -> None:
    """Built-in ports hold no vendor."""
    host.register("ttyS0", "devices/pnp0/tty", node=NUMBERS[0], type="4")
    host.register("ttyS1", "devices/pnp0/tty", node=NUMBERS[1], type="4")
    found = host.found()
    assert {device.body for device in found.values()} == {device.devnode for device in found.values()}
    assert {device.vendor for device in found.values()} == {None}


# Links


def test_of_twins_only_the_one_to_which_the_shared_link_leads_has_it(host: Host) -> None:
    """Both records name the link; when it moves to the other, no event and no new record tell."""
    for name, node in {"ttyUSB0": NUMBERS[0], "ttyUSB1": NUMBERS[1]}.items():
        host.stick(name, at=f"usb1/{name}", node=node)
        host.rules_run(name, DEVLINKS=str(host.dev / "serial/by-id/usb-twin"))
    link = host.link("serial/by-id/usb-twin", "ttyUSB1")
    assert {name: device.links for name, device in host.found().items()} == {"ttyUSB0": (), "ttyUSB1": (link,)}
    host.link("serial/by-id/usb-twin", "ttyUSB0")
    assert {name: device.links for name, device in host.found().items()} == {"ttyUSB0": (link,), "ttyUSB1": ()}


def test_links_are_found_without_udev(host: Host) -> None:
    """Those in /dev/serial by listing it, any other when the configuration names it."""
    host.stick()
    by_id, own = host.link("serial/by-id/usb-stick", "ttyUSB0"), host.link("zigbee", "ttyUSB0")
    assert host.found()["ttyUSB0"].links == (by_id,)
    host.lister.paths = frozenset({own, str(host.node("ttyUSB0")), str(host.dev / "absent")})
    assert set(host.found()["ttyUSB0"].links) == {by_id, own}


@pytest.mark.parametrize("kind", ["nothing", "file", "loop", "through a file", "long", "nul", "surrogate"])
def test_a_path_that_leads_nowhere_is_no_link_and_no_doubt(host: Host, kind: str) -> None:
    """Whatever a configuration names, the devices are found."""
    host.stick()
    (host.dev / "file").touch()
    (host.dev / "loop").symlink_to("loop")
    paths = {"through a file": "file/x", "long": "x" * 300, "nul": "nul\0", "surrogate": "\ud800"}
    host.lister.paths = frozenset({f"{host.dev}/{paths.get(kind, kind)}"})
    assert host.found()["ttyUSB0"].links == ()


@pytest.mark.parametrize("folder", ["serial", "serial/by-id"])
def test_without_a_folder_of_links_there_are_no_links(host: Host, folder: str) -> None:
    """No stick has been named by udev yet, or a file is in the way."""
    host.stick()
    link = host.link("serial/by-path/usb-0:1", "ttyUSB0")
    (host.dev / folder).rename(host.dev / "away")
    (host.dev / folder).touch()
    assert host.found()["ttyUSB0"].links == ((link,) if folder == "serial/by-id" else ())


def test_a_link_that_cannot_be_followed_leaves_a_doubt_and_the_devices(host: Host) -> None:
    """It may lead to a device that a rule claims by it: nothing is lowered, and whatever is seen counts."""
    host.stick()
    (host.dev / "closed").mkdir(mode=0)
    host.lister.paths = frozenset({f"{host.dev}/closed/link"})
    ((nodes, doubts, _),) = host.scans()
    assert nodes == [str(host.node("ttyUSB0"))]
    assert doubts == [f"{host.dev}/closed/link: Permission denied"]


@pytest.mark.parametrize("name", [".#usb-stick0123456789abcdef", "usb-stick.tmp-c188:0"])
def test_a_link_that_udevd_is_about_to_rename_is_never_seen(host: Host, name: str) -> None:
    """It replaces the link of the same device a moment later; neither a glob nor a literal path finds it."""
    host.stick()
    link, temporary = host.link("serial/by-id/usb-stick", "ttyUSB0"), host.link(f"serial/by-id/{name}", "ttyUSB0")
    assert host.found()["ttyUSB0"].links == (link,)
    host.lister.paths = frozenset({temporary})
    assert host.found()["ttyUSB0"].links == (link,)


@pytest.mark.parametrize("name", ["usb-.#stick", "usb-stick.tmp-c1", "usb-stick.tmp-c1:x", "#usb"])
def test_a_link_that_only_looks_temporary_is_seen(host: Host, name: str) -> None:
    """The text is the stick's own."""
    host.stick()
    link = host.link(f"serial/by-id/{name}", "ttyUSB0")
    assert host.found()["ttyUSB0"].links == (link,)


# Certain or not


def test_a_list_that_cannot_be_read_is_not_an_empty_list(host: Host) -> None:
    """No /sys: no device is seen, and the look says why."""
    host.stick()
    host.ttys.rename(host.home / "elsewhere")
    scan = host.scan()
    assert scan.devices == ()
    assert scan.doubts == (f"{host.ttys}: No such file or directory",)


@pytest.mark.parametrize("name", ["tty", "console"])
def test_a_list_without_the_kernels_own_ttys_is_not_the_kernels(host: Host, name: str) -> None:
    """A mount over /sys/class hides the devices without an error."""
    (host.ttys / name).unlink()
    assert host.scan().doubts == (f"{host.ttys} lacks the kernel's own tty and console",)


def test_masked_devices_are_not_absent(host: Host) -> None:
    """A mount over /sys/devices leaves entries that lead nowhere: each is a doubt, and what is known stays known."""
    host.stick(serial=b"first")
    host.rules_run("ttyUSB0")
    before = host.found()
    (host.sys / "devices").rename(host.sys / "masked")
    scan = host.scan()
    assert scan.devices == ()
    assert set(scan.doubts) == {
        f"{host.ttys}/{name}: No such file or directory" for name in ("tty", "console", "ttyUSB0")
    }
    (host.sys / "masked").rename(host.sys / "devices")
    host.database("ttyUSB0").unlink()
    assert host.found() == before


def test_entries_that_may_not_be_followed_are_not_absent(host: Host) -> None:
    """The list can be read and no more: every entry is a doubt."""
    host.stick()
    host.ttys.chmod(0o400)
    ((nodes, doubts, _),) = host.scans()
    host.ttys.chmod(0o700)
    assert nodes == []
    assert set(doubts) == {f"{host.ttys}/{name}: Permission denied" for name in ("tty", "console", "ttyUSB0")}


def test_only_three_errors_tell_that_a_device_is_gone() -> None:
    """What the kernel answers where no device or no driver is; whatever else goes wrong, the device may be there."""
    assert {errno.ENOENT, errno.ENODEV, errno.ENXIO} == GONE


@pytest.mark.parametrize(
    ("obstacle", "error"),
    [
        (lambda node: node.symlink_to(node.name), errno.ELOOP),
        (lambda node: node.symlink_to("x" * 300), errno.ENAMETOOLONG),
        (lambda node: node.symlink_to(f"{__file__}/x"), errno.ENOTDIR),
    ],
)
def test_a_node_that_cannot_be_examined_may_be_there(host: Host, obstacle: Callable[[Path], None], error: int) -> None:
    """The look is uncertain, names the node, and finds the others."""
    host.stick("ttyUSB0", at="usb1/1-1", node=NUMBERS[0])
    host.stick("ttyUSB1", at="usb1/1-2", node=NUMBERS[1])
    host.node("ttyUSB0").unlink()
    obstacle(host.node("ttyUSB0"))
    scan = host.scan()
    assert [device.devnode for device in scan.devices] == [str(host.node("ttyUSB1"))]
    assert scan.doubts == (f"{host.node('ttyUSB0')}: {os.strerror(error)}",)


def test_a_node_that_may_not_be_examined_may_be_there(host: Host) -> None:
    """The folder is closed to us, not empty."""
    host.register("rfcomm!tty0", "devices/virtual/tty", node=NUMBERS[0])
    (host.dev / "rfcomm").chmod(0)
    ((nodes, doubts, _),) = host.scans()
    (host.dev / "rfcomm").chmod(0o700)
    assert (nodes, doubts) == ([], [f"{host.dev}/rfcomm/tty0: Permission denied"])


def test_an_attribute_that_cannot_be_read_leaves_a_doubt(host: Host) -> None:
    """/proc/self/mem answers a read at its beginning with EIO."""
    body = host.stick().parents[3]
    (body / "serial").unlink()
    (body / "serial").symlink_to("/proc/self/mem")
    scan = host.scan()
    assert scan.devices == ()
    assert [doubt for doubt in scan.doubts if os.strerror(errno.EIO) in doubt]


def test_an_attribute_of_a_device_that_just_went_leaves_no_doubt(host: Host) -> None:
    """Opening a socket is ENXIO, as of a driver that has let go."""
    body = host.stick().parents[3]
    (body / "serial").unlink()
    with socket.socket(socket.AF_UNIX) as place:
        folder = os.open(body, os.O_RDONLY)
        place.bind(f"/proc/self/fd/{folder}/serial")  # a path of a socket is short
        os.close(folder)
    assert host.found()["ttyUSB0"].serial is None


def test_a_number_that_is_none_leaves_a_doubt(host: Host) -> None:
    """Something else than the kernel's sysfs is mounted there."""
    host.write(host.stick(), dev="four:sixty")
    scan = host.scan()
    assert scan.devices == ()
    assert [doubt for doubt in scan.doubts if doubt.endswith("ttyUSB0/dev: no device number")]


def test_a_type_that_only_root_may_read_leaves_the_port_to_its_node(host: Host) -> None:
    """So it is on kernels before 5.10."""
    folder = host.register("ttyS0", "devices/pnp0/tty", node=NUMBERS[0], type="4")
    (folder / "type").chmod(0)
    ((nodes, doubts, _),) = host.scans()
    assert (nodes, doubts) == ([str(host.node("ttyS0"))], [])


@pytest.mark.parametrize("closed", ["run", "dev", "sys"])
def test_a_closed_folder_is_a_doubt_and_no_exception(host: Host, closed: str) -> None:
    """Whatever of the host may not be entered."""
    host.stick()
    host.rules_run("ttyUSB0")
    (host.home / closed).chmod(0)
    ((nodes, doubts, _),) = host.scans()
    (host.home / closed).chmod(0o700)
    assert nodes == []
    assert [doubt for doubt in doubts if "Permission denied" in doubt]


def test_without_file_descriptors_nothing_is_taken_for_absent(host: Host) -> None:
    """No look without the stick is certain, and the first with enough descriptors has forgotten the shortage."""
    host.stick()
    starved, _, fed = scans = host.scans(STARVED)
    assert starved[0] == []
    assert os.strerror(errno.EMFILE) in starved[1][0]
    assert all(doubts or nodes == [str(host.node("ttyUSB0"))] for nodes, doubts, _ in scans)
    assert fed == ([str(host.node("ttyUSB0"))], [], [])


# What the host lacks


def test_where_nobody_makes_the_nodes_a_listed_device_is_present(host: Host) -> None:
    """The /dev of a container: a missing node proves nothing, and the look names the mount to add."""
    host.mounts(f"24 1 0:50 / {host.dev} rw - tmpfs tmpfs rw")
    host.stick()
    host.node("ttyUSB0").unlink()
    scan = host.scan()
    assert scan.certain
    assert str(host.node("ttyUSB0")) in {device.devnode for device in scan.devices}
    assert [trouble for trouble in scan.troubles if "not a devtmpfs: mount the host's /dev" in trouble]


def test_where_nobody_makes_the_nodes_links_come_from_the_record_or_are_unknown(host: Host) -> None:
    """They cannot be followed here; without a record nobody knows which lead to the device."""
    host.mounts()
    host.stick()
    assert (host.found()["ttyUSB0"].links, host.found()["ttyUSB0"].links_known) == ((), False)
    host.rules_run("ttyUSB0", DEVLINKS="/dev/serial/by-id/usb-stick")
    stick = host.found()["ttyUSB0"]
    assert (stick.links, stick.links_known) == (("/dev/serial/by-id/usb-stick",), True)


def test_the_last_mount_on_dev_counts(host: Host) -> None:
    """What was mounted before is hidden; what is mounted below or besides is another matter."""
    kernel, container = (f"24 1 0:6 / {host.dev} rw - {kind} none rw" for kind in ("devtmpfs", "tmpfs"))
    below = f"25 24 0:7 / {host.dev}/shm rw - tmpfs tmpfs rw"
    for lines, expected in (((container, kernel, below), True), ((kernel, container), False), ((below,), False)):
        host.mounts(*lines)
        assert is_devtmpfs(host.roots) is expected


def test_the_mount_table_is_read_when_something_is_mounted_on_dev(host: Host) -> None:
    """It is long on a busy node: no look reads it for nothing."""
    host.stick()
    host.found()
    host.mounts()
    assert host.scan().troubles == ()
    host.dev.rename(host.home / "below")
    host.dev.mkdir()
    assert [trouble for trouble in host.scan().troubles if "not a devtmpfs" in trouble]


def test_without_a_mount_table_a_missing_node_proves_nothing(host: Host) -> None:
    """No /proc: the careful answer."""
    (host.home / "mountinfo").unlink()
    assert not is_devtmpfs(host.roots)


def test_a_mount_table_that_cannot_be_read_is_a_doubt_and_asked_for_again(host: Host) -> None:
    """An error of one moment does not decide for good what /dev is."""
    host.stick()
    (host.home / "mountinfo").rename(host.home / "kept")
    (host.home / "mountinfo").mkdir()
    assert not host.scan().certain
    (host.home / "mountinfo").rmdir()
    (host.home / "kept").rename(host.home / "mountinfo")
    assert list(host.found()) == ["ttyUSB0"]
    assert host.scan().troubles == ()


def test_without_udev_the_ids_come_from_sysfs(host: Host) -> None:
    """Port and properties are unknown, and the look says what to do."""
    host.stick(vendor="10C4", product="8A2A", interface="0A", serial=b" HUSB 1 ")
    host.run.rename(host.home / "elsewhere")
    scan = host.scan()
    (stick,) = scan.devices
    assert (stick.vendor, stick.product, stick.interface, stick.serial) == ("10c4", "8a2a", "0a", "HUSB_1")
    assert (stick.port, stick.properties, stick.complete) == (None, None, False)
    assert (scan.certain, scan.udevd) == (True, False)
    assert [trouble for trouble in scan.troubles if "mount the host's whole /run/udev" in trouble]


def test_a_look_tells_whether_udevd_runs(host: Host) -> None:
    """Where it does, a device without a record is one that it has not finished."""
    assert host.scan().udevd
    (host.run / "control").unlink()
    assert not host.scan().udevd


# Records and registrations


def test_a_record_is_read_again_only_when_udev_has_written_it(host: Host) -> None:
    """Otherwise the look costs nothing for it, and the device is the same value."""
    host.stick()
    host.rules_run("ttyUSB0", ID_PATH="old")
    first = host.found()["ttyUSB0"]
    assert host.found()["ttyUSB0"] is first
    assert len(host.reads) == 1
    host.rules_run("ttyUSB0", ID_PATH="new")
    assert host.found()["ttyUSB0"].port == "new"
    assert len(host.reads) == 2


def test_a_record_that_is_written_with_the_same_content_is_not_read_again(host: Host) -> None:
    """Every `change` uevent has udev write it again: the device is the very same value, and nothing is judged or written."""
    host.stick()
    host.rules_run("ttyUSB0", ID_PATH="port")
    before = host.found()["ttyUSB0"]
    for _ in range(3):
        host.rules_run("ttyUSB0", ID_PATH="port")
        assert host.found()["ttyUSB0"] is before
    assert len(host.reads) == 1


def test_a_record_that_says_the_same_is_the_same(host: Host) -> None:
    """Newer udevds mark a record while they handle an event, which the reader leaves out: other bytes, and no other device."""
    host.stick()
    host.rules_run("ttyUSB0", ID_PATH="port")
    before = host.found()["ttyUSB0"]
    host.database("ttyUSB0").write_text('{ "ID_PATH": "port" }')
    assert host.found()["ttyUSB0"] is before
    assert len(host.reads) == 2


def test_a_record_whose_file_cannot_be_read_is_asked_for_each_time(host: Host) -> None:
    """The file only spares the library work; what it holds is the library's to say."""
    host.stick()
    host.database("ttyUSB0").mkdir()
    ports = iter(("first", "second"))
    host.lister.record = lambda _: {"ID_PATH": next(ports)}
    assert host.found()["ttyUSB0"].port == "first"
    os.utime(host.database("ttyUSB0"), (0, 0))
    assert host.found()["ttyUSB0"].port == "second"


def test_the_ids_of_a_pci_card_are_its_digits(host: Host) -> None:
    """The rules copy them from sysfs as `0x8086`; a configuration names them as those of any stick, and can name them no other way."""
    host.register("ttyS4", "devices/pci0000:00/0000:00:16.3/tty", node=NUMBERS[0], type="4")
    host.rules_run("ttyS4", ID_BUS="pci", ID_VENDOR_ID="0x8086", ID_MODEL_ID="0xA0E3")
    device = host.found()["ttyS4"]
    assert (device.vendor, device.product) == ("8086", "a0e3")


def test_a_record_comes_after_the_device(host: Host) -> None:
    """Until udev's rules have run the device is there and incomplete."""
    host.stick()
    assert not host.found()["ttyUSB0"].complete
    host.rules_run("ttyUSB0")
    assert host.found()["ttyUSB0"].complete


def test_a_record_that_cannot_be_read_now_is_read_at_the_next_look(host: Host) -> None:
    """The answer is None, as for a device that has no record."""
    host.stick()
    host.rules_run("ttyUSB0", ID_PATH="port")
    record, host.lister.record = host.lister.record, lambda _: None
    assert not host.found()["ttyUSB0"].complete
    host.lister.record = record
    assert host.found()["ttyUSB0"].port == "port"


@pytest.mark.parametrize("lost", ["record", "everything"])
def test_the_record_of_a_present_device_outlives_the_database(host: Host, lost: str) -> None:
    """/run/udev vanishes under us, or the record while udev writes it: the same stick still has the same ids and socket."""
    host.stick()
    host.rules_run("ttyUSB0", ID_PATH="port", ID_SERIAL_SHORT="A1")
    before = host.found()["ttyUSB0"]
    if lost == "record":
        host.database("ttyUSB0").unlink()
    else:
        host.run.rename(host.home / "elsewhere")
    assert host.found()["ttyUSB0"] is before
    assert len(host.reads) == 1


def test_the_next_stick_in_the_same_place_inherits_nothing(host: Host) -> None:
    """Same name, same number, same socket, and no record yet: another registration with the kernel is another device."""
    host.stick(serial=b"first")
    host.rules_run("ttyUSB0", ID_PATH="port", ID_SERIAL_SHORT="first")
    first = host.found()["ttyUSB0"]
    host.database("ttyUSB0").unlink()
    host.unregister("ttyUSB0")
    host.stick(serial=b"second", vendor="10c4")
    second = host.found()["ttyUSB0"]
    assert (second.serial, second.vendor, second.complete) == ("second", "10c4", False)
    assert second.number == first.number
    assert second.key != first.key


@pytest.mark.parametrize("seen_gone", [False, True])
def test_a_record_counts_only_for_the_registration_it_was_made_for(host: Host, *, seen_gone: bool) -> None:
    """The kernel has registered the next stick of the name, and udevd has yet to come to the removal of the one before."""
    host.stick(serial=b"first")
    host.rules_run("ttyUSB0", ID_SERIAL_SHORT="first", ID_PATH="port")
    assert host.found()["ttyUSB0"].complete
    database = host.database("ttyUSB0")
    host.unregister("ttyUSB0")
    if seen_gone:
        assert host.found() == {}
    host.stick(serial=b"second")
    for now in range(60):
        second = host.found(now)["ttyUSB0"]
        assert (second.serial, second.complete) == ("second", False)
    database.unlink()
    assert not host.found()["ttyUSB0"].complete
    host.rules_run("ttyUSB0", ID_SERIAL_SHORT="second", ID_PATH="port")
    assert (host.found()["ttyUSB0"].serial, host.found()["ttyUSB0"].complete) == ("second", True)


def test_the_record_before_the_last_is_not_taken_for_the_third(host: Host) -> None:
    """A stick that comes and goes faster than udevd follows."""
    host.stick()
    host.rules_run("ttyUSB0", ID_PATH="port")
    assert host.found()["ttyUSB0"].complete
    for _ in range(2):
        host.unregister("ttyUSB0")
        host.stick()
        assert not host.found()["ttyUSB0"].complete


def test_a_record_that_udevd_writes_again_counts_though_it_missed_the_removal(host: Host) -> None:
    """It was stopped while the stick was changed, and `udevadm trigger` makes up for it: the record is never removed."""
    host.stick()
    host.rules_run("ttyUSB0", USEC_INITIALIZED="1")
    assert host.found()["ttyUSB0"].complete
    host.unregister("ttyUSB0")
    host.stick()
    assert not host.found()["ttyUSB0"].complete
    host.rules_run("ttyUSB0", USEC_INITIALIZED="1")
    assert host.found()["ttyUSB0"].complete


def test_the_record_of_a_registration_that_was_only_hidden_is_still_its_own(host: Host) -> None:
    """A mount over /sys/class came and went: no device was registered anew."""
    host.stick()
    host.rules_run("ttyUSB0", ID_PATH="port")
    before = host.found()["ttyUSB0"]
    host.ttys.rename(host.home / "hidden")
    host.ttys.mkdir()
    assert not host.scan().certain
    host.ttys.rmdir()
    (host.home / "hidden").rename(host.ttys)
    assert host.found()["ttyUSB0"] == before


def test_while_udevd_makes_a_record_anew_the_device_is_as_it_was(host: Host) -> None:
    """A stick that flaps is removed and added again: udevd takes the record and the links away and brings them back."""
    host.stick()
    link = host.link("serial/by-id/usb-stick", "ttyUSB0")
    host.rules_run("ttyUSB0", DEVLINKS=link)
    before = host.found(100)["ttyUSB0"]
    host.database("ttyUSB0").unlink()
    Path(link).unlink()
    assert all(host.found(now)["ttyUSB0"] is before for now in (100.1, 105, 110))
    host.link("serial/by-id/usb-stick", "ttyUSB0")
    host.rules_run("ttyUSB0", DEVLINKS=link)
    assert host.found(115)["ttyUSB0"] is before


def test_a_record_that_goes_while_it_is_read_was_not_the_next_devices(host: Host) -> None:
    """Udevd removes the record of the registration before, then its links: half of them are nobody's."""
    host.stick()
    link, own = host.link("serial/by-id/usb-stick", "ttyUSB0"), host.link("zigbee", "ttyUSB0")
    host.rules_run("ttyUSB0", DEVLINKS=f"{link} {own}")

    def remove() -> None:
        host.database("ttyUSB0").unlink()
        Path(own).unlink()

    host.on_read = remove
    stick = host.found()["ttyUSB0"]
    assert (stick.complete, stick.link) == (False, None)


def test_a_record_that_goes_while_it_is_read_again_takes_no_link_away(host: Host) -> None:
    """The device is known by it already: its links come back with the next record."""
    host.stick()
    link, own = host.link("serial/by-id/usb-stick", "ttyUSB0"), host.link("zigbee", "ttyUSB0")
    host.rules_run("ttyUSB0", DEVLINKS=f"{link} {own}")
    assert host.found(100)["ttyUSB0"].links == (link, own)
    host.rules_run("ttyUSB0", DEVLINKS=f"{own} {link}")

    def remove() -> None:
        host.database("ttyUSB0").unlink()
        Path(own).unlink()

    host.on_read = remove
    assert host.found(101)["ttyUSB0"].links == (link, own)
    assert host.found(102)["ttyUSB0"].links == (link, own)


def test_a_device_that_goes_in_mid_look_is_gone_and_not_without_links(host: Host) -> None:
    """Its node was there a moment ago, and its links lead nowhere now."""
    host.stick()
    link = host.link("zigbee", "ttyUSB0")
    host.rules_run("ttyUSB0", DEVLINKS=link)
    assert host.found()["ttyUSB0"].links == (link,)
    host.rules_run("ttyUSB0", DEVLINKS=link, ID_PATH="port")
    host.on_read = host.node("ttyUSB0").unlink
    assert host.found() == {}


def test_links_do_not_outlive_the_record_for_long(host: Host) -> None:
    """As long as a new device would wait for its record; and a link that leads to its twin meanwhile is the twin's."""
    for name, node in {"ttyUSB0": NUMBERS[0], "ttyUSB1": NUMBERS[1]}.items():
        host.stick(name, at=f"usb1/{name}", node=node)
    twin, own = host.link("serial/by-id/usb-twin", "ttyUSB0"), host.link("serial/by-path/usb-0", "ttyUSB0")
    host.rules_run("ttyUSB0", DEVLINKS=f"{twin} {own}")
    assert host.found(100)["ttyUSB0"].links == (twin, own)
    host.database("ttyUSB0").unlink()
    host.link("serial/by-id/usb-twin", "ttyUSB1")
    Path(own).unlink()
    assert {name: device.links for name, device in host.found(101).items()} == {"ttyUSB0": (own,), "ttyUSB1": (twin,)}
    assert host.found(111)["ttyUSB0"].links == ()


def test_a_virtual_tty_that_is_registered_anew_is_another_device(host: Host) -> None:
    """Most entries of sysfs need not be followed at every look: the kernel makes another entry for another device."""
    host.register("rfcomm0", "devices/virtual/tty", node=NUMBERS[0])
    first = host.found()["rfcomm0"]
    assert host.found()["rfcomm0"] is first
    host.unregister("rfcomm0")
    host.register("rfcomm0", "devices/virtual/tty", node=NUMBERS[0])
    assert host.found()["rfcomm0"].key != first.key


@pytest.fixture
def console(host: Host) -> Path:
    """Make a virtual tty whose devnode is a device of its own, not a link; as the kernel's is. Return its devnode."""
    host.register("tty1", "devices/virtual/tty", node=NUMBERS[0])
    node = host.node("tty1")
    node.unlink()
    try:
        os.mknod(node, stat.S_IFCHR | 0o600, NUMBERS[0].stat().st_rdev)
    except PermissionError:
        pytest.skip("only root makes devnodes")
    return node


def test_a_virtual_console_is_noticed_to_go_and_to_come_after_a_long_rest(host: Host, console: Path) -> None:
    """It is examined only when something has changed in /dev, which its going is."""
    before = [host.found(now)["tty1"] for now in (0, 10, 20)]
    assert all(device is before[0] for device in before)
    console.unlink()
    assert host.found(30) == {}
    console.symlink_to(NUMBERS[0])
    assert list(host.found(40)) == ["tty1"]


def test_a_virtual_console_is_read_when_udev_writes_its_record_after_a_long_rest(host: Host) -> None:
    """Any devnode of this machine will do; that of /dev/null is always there."""
    roots = replace(host.roots, dev="/dev")
    host.mounts("24 1 0:6 / /dev rw,relatime shared:2 - devtmpfs devtmpfs rw")
    host.register("null", "devices/virtual/tty", node=None)
    host.write(host.ttys / "null", dev=device_number(NUMBERS[0]))
    lister = Lister(record=host.record, roots=roots)

    def found(now: float) -> Device:
        return next(device for device in lister.scan(now).devices if device.devnode == "/dev/null")

    first = found(0)
    assert all(found(now) is first for now in (10, 20, 30))
    host.rules_run("null", ID_PATH="port")
    assert found(40).port == "port"
    assert found(50) is found(60)
    lister.paths = frozenset({"/dev/null", "/proc/self/root/dev/null"})
    assert found(70).links == ("/proc/self/root/dev/null",)
    lister.paths = frozenset()
    assert found(80).links == ()


def test_a_stick_that_was_away_is_read_anew_also_if_sysfs_kept_its_entry(host: Host) -> None:
    """What udev said of it before is no news of the one that is there now."""
    host.stick()
    host.rules_run("ttyUSB0", ID_PATH="before")
    assert host.found()["ttyUSB0"].port == "before"
    host.node("ttyUSB0").unlink()
    host.database("ttyUSB0").unlink()
    assert host.found() == {}
    host.node("ttyUSB0").symlink_to(NUMBERS[0])
    assert not host.found()["ttyUSB0"].complete


def test_the_serial_is_read_once_for_a_registration(host: Host) -> None:
    """The kernel reads it under the lock of the USB device: a stick in reset would stall every look."""
    serial = host.stick(serial=b"once").parents[3] / "serial"
    assert host.found()["ttyUSB0"].serial == "once"
    serial.write_text("changed")
    host.rules_run("ttyUSB0", ID_SERIAL_SHORT="udev's")
    assert host.found()["ttyUSB0"].serial == "udev's"
    serial.unlink()
    serial.symlink_to("/proc/self/mem")
    assert host.scan().certain


# A directory in the place of a device


def blocked(host: Host) -> set[str]:
    """Return the paths that a look finds blocked; such a look is certain, and tells each as a trouble too."""
    scan = host.scan()
    assert scan.certain
    assert scan.troubles == scan.blocked
    assert all("rmdir" in line and "mount /dev" in line for line in scan.blocked)
    return {line.partition(": ")[0] for line in scan.blocked}


def test_a_directory_where_the_devnode_belongs_is_told(host: Host) -> None:
    """A container was restarted without its stick: the kernel cannot make the node of the stick that is back."""
    assert blocked(host) == set()
    host.stick()
    host.node("ttyUSB0").unlink()
    host.node("ttyUSB0").mkdir()
    assert blocked(host) == {str(host.node("ttyUSB0"))}
    assert host.found() == {}
    host.node("ttyUSB0").rmdir()
    host.node("ttyUSB0").symlink_to(NUMBERS[0])
    assert blocked(host) == set()
    assert list(host.found()) == ["ttyUSB0"]


@pytest.mark.parametrize("path", ["serial/by-id/usb-stick", "serial/by-path/usb-0:1", "zigbee", "my dongle"])
def test_a_directory_where_a_link_belongs_is_told(host: Host, path: str) -> None:
    """Listed in /dev/serial, or named by the configuration; the cure can be pasted into a shell."""
    (host.dev / path).mkdir()
    host.lister.paths = frozenset({f"{host.dev}/zigbee", f"{host.dev}/my dongle"})
    assert blocked(host) == {f"{host.dev}/{path}"}
    (line,) = host.scan().blocked
    assert f"`rmdir {shlex.quote(f'{host.dev}/{path}')}`" in line
    (host.dev / path).rmdir()
    assert blocked(host) == set()


def test_a_directory_where_the_record_wants_a_link_is_told(host: Host) -> None:
    """The stick is back under its name, and udevd cannot make one of its links (`node_symlink`)."""
    host.stick()
    host.rules_run("ttyUSB0", DEVLINKS=f"{host.dev}/zigbee")
    (host.dev / "zigbee").mkdir()
    assert blocked(host) == {f"{host.dev}/zigbee"}
    assert host.found()["ttyUSB0"].links == ()


def test_a_directory_where_a_device_was_is_told_while_the_device_is_away(host: Host) -> None:
    """Its devnode and every link of it are remembered, until something is there again."""
    host.stick()
    link = host.link("zigbee", "ttyUSB0")
    host.rules_run("ttyUSB0", DEVLINKS=link)
    assert host.found()["ttyUSB0"].links == (link,)
    host.unregister("ttyUSB0")
    Path(link).unlink()
    assert blocked(host) == set()
    Path(link).mkdir()
    host.node("ttyUSB0").mkdir()
    assert blocked(host) == {link, str(host.node("ttyUSB0"))}
    Path(link).rmdir()
    host.node("ttyUSB0").rmdir()
    host.stick("ttyUSB0", at="usb1/1-2")
    host.link("zigbee", "ttyUSB0")
    assert blocked(host) == set()


def test_a_place_is_forgotten_when_something_is_there_again(host: Host) -> None:
    """What becomes of a link that led to the stick after its return is for who took it away."""
    host.stick()
    link = host.link("zigbee", "ttyUSB0")
    host.rules_run("ttyUSB0", DEVLINKS=link)
    host.found()
    host.unregister("ttyUSB0")
    host.found()
    host.stick()
    assert blocked(host) == set()
    Path(link).unlink()
    Path(link).mkdir()
    assert blocked(host) == set()


def test_a_directory_is_told_where_the_node_of_a_listed_tty_was(host: Host) -> None:
    """The entry in sysfs may stay when a node goes."""
    host.stick()
    link = host.link("zigbee", "ttyUSB0")
    host.rules_run("ttyUSB0", DEVLINKS=link)
    host.found()
    host.node("ttyUSB0").unlink()
    Path(link).unlink()
    Path(link).mkdir()
    assert blocked(host) == {link}


def test_a_directory_of_a_ttys_name_is_told_from_the_start(host: Host) -> None:
    """A daemon that was restarted meanwhile has not seen the stick that was there."""
    for name in ("ttyUSB7", "pts"):
        (host.dev / name).mkdir()
    assert blocked(host) == {f"{host.dev}/ttyUSB7"}


def test_no_more_places_are_looked_at_than_a_few(host: Host) -> None:
    """Sticks of a flapping hub get ever new names."""
    for number in range(200):
        host.stick(f"ttyUSB{number}", at=f"usb1/{number}")
        host.found()
        host.unregister(f"ttyUSB{number}")
    for number in range(200):
        host.node(f"ttyUSB{number}").mkdir()
    assert blocked(host) == {str(host.node(f"ttyUSB{number}")) for number in range(200 - 64, 200)}


def test_a_link_to_a_directory_is_in_nobodys_way(host: Host) -> None:
    """`rmdir` would not remove it, and udevd would."""
    (host.dev / "serial/by-id/usb-stick").symlink_to(host.dev)
    host.lister.paths = frozenset({f"{host.dev}/serial/by-id/usb-stick"})
    assert blocked(host) == set()


# Serials


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"A1\n", "A1"),
        (b"A1\r\n\n", "A1"),
        (b"  A  1  \n", "A_1"),
        (b" \n", None),
        (b"\n", None),
        (b"", None),
        (b"A\t1\n", None),
        (b"A\n1\n", None),
        (b"\x1b[31mA1\n", None),
        (b"\0A1\n", None),
        (b"A,1\n", None),
        ("Aé\n".encode(), None),
        (b"A\xff\n", None),
        (b"A\x7f1\n", "A_1"),
        (b"../A/1\n", ".._A_1"),
        (b"$(reboot)`x`;%s%n\"'\n", "__reboot__x___s_n__"),
        (b"#+-.:=@_~\n", "#+-.:=@__"),
        (b"A\\y1\\\n", "A_y1_"),
        (b"A\\x2f\\x~\n", "A\\x2f\\x_"),
        (b"A" * 10_000 + b"\n", "A" * 511),
        (b" " * 505 + b"ABCDEFGHIJ\n", "ABCDEF"),
        (b"A" * 600 + b",\n", None),
    ],
)
def test_a_serial_is_what_udev_makes_of_it(raw: bytes, expected: str | None) -> None:
    """Each pair is what `udevadm test-builtin usb_id` of systemd 252 answers for a device with this attribute."""
    assert normal_serial(raw) == expected


@given(st.binary())
def test_no_serial_of_a_device_reaches_us_as_it_likes(raw: bytes) -> None:
    """Nothing that a terminal, a shell or a path gives a meaning to, but a backslash before an x."""
    serial = normal_serial(raw)
    assert serial is None or (serial and set(serial.replace("\\x", "")) <= SAFE)


@pytest.mark.parametrize("raw", [b"\x1b]0;owned\x07", b"A" * 10_000, b"\xff\xfe", b"a,b", b"$(reboot) ..", b""])
def test_a_hostile_serial_makes_no_look_uncertain(host: Host, raw: bytes) -> None:
    """The stick counts by what else is known of it."""
    host.stick(serial=raw)
    stick = host.found()["ttyUSB0"]
    assert (stick.vendor, stick.serial) == ("0403", normal_serial(raw))


def test_sticks_without_a_serial_and_with_the_same_are_devices_of_their_own(host: Host) -> None:
    """Nothing but the place tells them apart."""
    for count, serial in enumerate((None, None, b"same", b"same")):
        host.stick(f"ttyUSB{count}", at=f"usb1/1-{count}", node=NUMBERS[count], serial=serial)
    found = host.found()
    assert [found[f"ttyUSB{count}"].serial for count in range(4)] == [None, None, "same", "same"]
    assert len({device.body for device in found.values()}) == 4
