"""Devices of other subsystems than tty: whole USB devices, hidraw, cameras, and what the kernel itself offers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devwatch.host.lister import Lister
from support.hostfiles import NUMBERS, Host, device_number

if TYPE_CHECKING:
    from devwatch.core.device import Device

SOCKET = "pci-0000:00:14.0-usb-0:1.4"
BODY = "devices/pci0000:00/0000:00:14.0/usb1/1-1/1-1.4"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Make a host of which whole USB devices are scanned."""
    host = Host(tmp_path)
    host.lister.subsystems = frozenset({"usb"})
    return host


def on_a_hub(host: Host) -> None:
    """Have a controller with a hub in whose fourth port the next device will be."""
    root = "pci0000:00/0000:00:14.0/usb1"
    host.usb_device("usb1", at=root, devnode="bus/usb/001/001", device_class="09", node=NUMBERS[1])
    host.belongs(host.sys / "devices/pci0000:00/0000:00:14.0", "pci")
    host.usb_device("1-1", devnode="bus/usb/001/002", vendor="05e3", device_class="09", node=NUMBERS[2])


def whole(host: Host) -> Device:
    """Return the device in the hub."""
    return host.found()["bus/usb/001/004"]


# -- whole USB devices


def test_a_usb_device_is_found_with_all_that_can_be_matched(host: Host) -> None:
    """Its devnode is the one that the kernel names, and it has a socket though udev's rules name none."""
    on_a_hub(host)
    body = host.usb_device("1-1.4", at=BODY.removeprefix("devices/"), serial=b"A 1")
    before = whole(host)
    assert (before.serial, before.complete) == ("A_1", False)
    host.rules_run(body, ID_VENDOR_ID="1a6e", ID_MODEL_ID="089a", ID_SERIAL_SHORT="A1", ID_MODEL="089a")
    device = whole(host)
    assert (device.vendor, device.product, device.serial, device.interface) == ("1a6e", "089a", "A1", None)
    assert (device.subsystem, device.port, device.physical, device.body) == ("usb", SOCKET, f"/{BODY}", f"/{BODY}")
    assert (device.hub, device.complete, device.virtual) == (False, True, False)
    assert device_number(NUMBERS[0]) == f"{os.major(device.number)}:{os.minor(device.number)}"


def test_interfaces_have_no_devnode_and_hubs_are_known_as_such(host: Host) -> None:
    """Of six entries on the bus two are hubs, and one is the device. A root hub is in the socket of its controller."""
    on_a_hub(host)
    host.usb_device("1-1.4", at=BODY.removeprefix("devices/"))
    assert {name: (device.hub, device.port) for name, device in host.found().items()} == {
        "bus/usb/001/001": (True, "pci-0000:00:14.0"),
        "bus/usb/001/002": (True, "pci-0000:00:14.0-usb-0:1"),
        "bus/usb/001/004": (False, SOCKET),
    }


def test_an_entry_of_the_bus_that_is_no_whole_device_is_none(host: Host) -> None:
    """Whatever its name is."""
    body = host.usb_device()
    host.write(body, uevent="DEVNAME=bus/usb/001/004\nDEVTYPE=usb_interface")
    assert host.found() == {}


def test_only_what_is_asked_for_is_scanned(host: Host) -> None:
    """The whole of a stick and its tty are two devices with one body; each is there if its subsystem is."""
    host.usb_device("1-1", at="usb1/1-1", node=NUMBERS[1])
    host.stick(at="usb1/1-1", interface="01")
    found = {}
    for subsystems in ({"usb"}, {"tty"}, {"tty", "usb"}):
        host.lister.subsystems = frozenset(subsystems)
        found[frozenset(subsystems)] = host.found()
    assert found[frozenset({"usb"})].keys() == {"bus/usb/001/004"}
    assert found[frozenset({"tty"})].keys() == {"ttyUSB0"}
    both = found[frozenset({"tty", "usb"})]
    assert both.keys() == {"bus/usb/001/004", "ttyUSB0"}
    assert {device.body for device in both.values()} == {"/devices/usb1/1-1"}


def test_a_device_that_enumerates_again_is_another_registration_in_the_same_socket(host: Host) -> None:
    """It keeps its name in sysfs, and gets another devnode, other ids, and a record of its own."""
    body = host.usb_device()
    host.rules_run(body, ID_VENDOR_ID="1a6e", ID_MODEL_ID="089a")
    (before,) = host.found().values()
    body.rename(host.home / "grave")
    for name in ("1-1", "1-1:1.0"):
        (host.sys / "bus/usb/devices" / name).unlink()
    (host.dev / "bus/usb/001/004").unlink()
    assert host.found() == {}
    host.usb_device(devnode="bus/usb/001/005", node=NUMBERS[1], vendor="18d1", product="9302")
    (after,) = host.found().values()
    assert (after.devnode, after.vendor, after.complete) == (f"{host.dev}/bus/usb/001/005", "18d1", False)
    assert (after.devpath, after.port) == (before.devpath, before.port)
    assert after.key != before.key


# -- classes


def test_the_ids_that_udevs_rules_do_not_read_come_from_sysfs(host: Host) -> None:
    """So it is with hidraw: the record is complete without them, and so are socket and interface."""
    host.usb_device(serial=b"A1")
    host.lister.subsystems = frozenset({"hidraw"})
    folder = host.member("hidraw", "hidraw0", "devices/pci0000:00/0000:00:14.0/usb1/1-1/1-1:1.0/0003:1A6E:089A.0001")
    host.belongs(host.sys / "devices/pci0000:00/0000:00:14.0", "pci")
    host.belongs(folder.parent.parent, "hid")
    host.belongs(folder.parent.parent.parent, "usb")
    host.rules_run(folder, ID_VENDOR_FROM_DATABASE="Global Unichip Corp.")
    device = host.found()["hidraw0"]
    assert (device.vendor, device.product, device.serial, device.interface) == ("1a6e", "089a", "A1", "00")
    assert (device.complete, device.port, device.subsystem) == (True, "pci-0000:00:14.0-usb-0:1:1.0", "hidraw")
    host.rules_run(folder, ID_SERIAL_SHORT="B2")
    assert (host.found()["hidraw0"].serial, host.found()["hidraw0"].vendor) == ("B2", "1a6e")
    host.rules_run(folder, ID_VENDOR_ID="0001", ID_MODEL_ID="0002", ID_PATH="here")
    read = host.found()["hidraw0"]
    assert (read.vendor, read.product, read.serial, read.interface, read.port) == ("0001", "0002", None, None, "here")


def test_the_devnodes_of_a_camera_are_in_the_order_of_its_driver(host: Host) -> None:
    """Which `index` says, where it is a number."""
    host.lister.subsystems = frozenset({"video4linux"})
    for name, index in (("video0", "1"), ("video1", "0"), ("video2", "one"), ("video3", "9" * 30)):
        host.member("video4linux", name, f"devices/{name}", index=index)
    assert {name: device.index for name, device in host.found().items()} == {
        "video0": 1,
        "video1": 0,
        "video2": 0,
        "video3": 0,
    }


def test_a_devnode_in_a_folder_is_found_by_the_kernels_name_of_it(host: Host) -> None:
    """As /dev/net/tun is."""
    host.lister.subsystems = frozenset({"misc"})
    folder = host.member("misc", "tun", "devices/virtual/misc")
    host.write(folder, uevent="DEVNAME=net/tun")
    (host.dev / "net").mkdir()
    (host.dev / "tun").rename(host.dev / "net/tun")
    assert host.found().keys() == {"net/tun"}


def test_an_entry_without_a_devnode_is_none_until_it_has_one(host: Host) -> None:
    """Many classes have such entries."""
    host.lister.subsystems = frozenset({"input"})
    folder = host.member("input", "event0", "devices/platform")
    (folder / "dev").rename(folder / "later")
    assert host.found() == {}
    (folder / "later").rename(folder / "dev")
    assert host.found().keys() == {"event0"}


# -- certainty


def test_a_subsystem_whose_driver_is_not_loaded_has_no_devices(host: Host) -> None:
    """And that is certain."""
    host.lister.subsystems = frozenset({"video4linux", "usb"})
    assert host.found() == {}


def test_a_subsystem_that_cannot_be_listed_leaves_a_doubt_and_the_others(host: Host) -> None:
    """Its devices may be there."""
    host.usb_device()
    (host.sys / "class/hidraw").write_text("no folder")
    host.lister.subsystems = frozenset({"hidraw", "usb"})
    scan = host.scan()
    assert [device.subsystem for device in scan.devices] == ["usb"]
    assert scan.doubts == (f"{host.sys}/class/hidraw: Not a directory",)


@pytest.mark.parametrize("missing", ["class/tty/console", "class/tty/tty", "bus/platform"])
def test_a_foreign_sysfs_is_not_the_kernels(host: Host, missing: str) -> None:
    """Though ttys are not scanned, it is seen whether the kernel's own are there."""
    host.usb_device()
    (host.sys / missing).rename(host.home / "gone")
    (doubt,) = host.scan().doubts
    assert "lacks the kernel's own" in doubt
    assert doubt.startswith(f"{host.sys}/{missing.split('/', maxsplit=1)[0]}")


def test_a_masked_device_is_not_absent(host: Host) -> None:
    """Its entry on the bus is there, and leads nowhere."""
    body = host.usb_device()
    body.rename(host.home / "masked")
    assert host.scan().doubts == (f"{host.sys}/bus/usb/devices/1-1: No such file or directory",)


def test_a_scan_says_what_it_scanned(host: Host, tmp_path: Path) -> None:
    """Also one that finds nothing."""
    assert host.scan().subsystems == {"usb"}
    (tmp_path / "mountinfo").unlink()
    (tmp_path / "mountinfo").mkdir()
    host.lister = Lister(record=host.record, roots=host.roots, subsystems=frozenset({"hidraw"}))
    scan = host.scan()
    assert scan.subsystems == {"hidraw"}
    assert not scan.certain


# -- this machine


@pytest.mark.parametrize(("subsystem", "devnode"), [("mem", "/dev/null"), ("misc", "/dev/net/tun")])
def test_what_the_kernel_itself_offers_here_is_found(subsystem: str, devnode: str) -> None:
    """Every machine has /dev/null, nearly every one /dev/net/tun."""
    if not Path(devnode).is_char_device():
        pytest.skip(f"this machine has no {devnode}")
    scan = Lister(record=lambda _: None, subsystems=frozenset({subsystem})).scan(0)
    assert scan.doubts == ()
    (device,) = (device for device in scan.devices if device.devnode == devnode)
    assert (device.number, device.virtual, device.subsystem) == (Path(devnode).stat().st_rdev, True, subsystem)
    assert (device.vendor, device.port, device.body) == (None, None, devnode)
