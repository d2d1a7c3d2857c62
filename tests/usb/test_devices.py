"""Devices that are not serial sticks come and go, one of each subsystem; the kubelet hands over a whole USB device."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from system.waiting import eventually
from usb.machine import TIMEOUT
from usb.site import CAMERA, CONFIG, FTDI, HID, READER

if TYPE_CHECKING:
    from collections.abc import Callable

    from usb.site import Site

HANDED = "handed.example.com/reader"
HANDING = CONFIG.replace(
    "resources:",
    f"""resources:
  - name: {HANDED}
    subsystem: usb
    match: [{{vendor: 08e6, product: 4433}}]
    publish: devicePlugin
    removalGrace: 500ms""",
)


def test_hid_devices_count_while_they_are_plugged(site: Site) -> None:
    """Each by the devnode that a program opens. They are of one model, and a pulled one leaves the other."""
    site.machine.plug("keyboard", driver="usb-kbd")
    site.machine.plug("tablet", driver="usb-tablet")
    site.await_counts({HID: 2})
    listed = site.listed(HID)
    assert {(each["vendor"], each["product"], each["subsystem"]) for each in listed} == {("0627", "0001", "hidraw")}
    assert sorted(each["devnode"] for each in listed) == ["/dev/hidraw0", "/dev/hidraw1"]
    site.machine.unplug("keyboard")
    site.await_counts({HID: 1})
    site.machine.unplug("tablet")
    site.await_counts({})


def test_a_usb_device_that_no_driver_claims_counts(site: Site) -> None:
    """A card reader, which programs open with libusb."""
    site.machine.plug("reader", driver="usb-ccid")
    site.await_counts({READER: 1})
    (reader,) = site.listed(READER)
    assert (reader["vendor"], reader["product"], reader["subsystem"]) == ("08e6", "4433", "usb")
    assert site.machine.run(f"stat --format %F {reader['devnode']}").strip() == "character special file"
    site.machine.unplug("reader")
    site.await_counts({})


@pytest.mark.usefixtures("camera_drivers")
def test_a_camera_counts_by_its_capture_node_alone(site: Site) -> None:
    """It has a second one for metadata, which ID_V4L_CAPABILITIES tells from it."""
    site.machine.make_camera("camera", "046d:0825")
    site.await_counts({CAMERA: 1})
    (camera,) = site.listed(CAMERA)
    shown = json.loads(site.machine.run("devwatch devices --subsystem video4linux --all -o json"))["devices"]
    by_resource = {each["devnode"]: each["resource"] for each in shown if each["vendor"] == "046d"}
    assert sorted(by_resource.values(), key=str) == [None, CAMERA]
    assert by_resource[camera["devnode"]] == CAMERA
    site.machine.unmake("camera")
    site.await_counts({})


def test_devices_of_every_subsystem_count_side_by_side(site: Site) -> None:
    """They come together, and each goes alone."""
    site.machine.plug("stick", serial="BESIDE")
    site.machine.plug("tablet", driver="usb-tablet")
    site.machine.plug("reader", driver="usb-ccid")
    site.await_counts({FTDI: 1, HID: 1, READER: 1})
    site.machine.unplug("tablet")
    site.await_counts({FTDI: 1, READER: 1})
    site.machine.unplug("reader")
    site.await_counts({FTDI: 1})


def test_the_kubelet_hands_over_a_whole_usb_device(site: Site) -> None:
    """What the plugin answers leads to the devnode, also when that has another number after a replug; a pulled device is not listed."""
    with site.kubelet() as lists:
        site.configure(HANDING)
        site.machine.run("systemctl restart devwatch")
        before = _plug_reader(site)
        _await_given(lists, before)
        site.machine.unplug("reader")
        eventually(lambda: site.shows("0", HANDED) and lists()[-1]["health"] == {}, timeout=TIMEOUT)
        after = _plug_reader(site)
        _await_given(lists, after)
        assert (after["id"], after["devnode"] == before["devnode"]) == (before["id"], False)
        assert site.shows("0", READER)


def _plug_reader(site: Site) -> dict[str, str]:
    """Plug a card reader into the same socket each time, since QEMU writes that into its serial number; return what is listed of it."""
    site.machine.plug("reader", driver="usb-ccid", port="5")
    eventually(lambda: site.shows("1", HANDED), timeout=TIMEOUT)
    (reader,) = site.listed(HANDED)
    return reader


def _await_given(lists: Callable[[], list[dict[str, Any]]], device: dict[str, str]) -> None:
    """Wait until the last list offers this device, and it was handed over by its devnode."""
    wanted = {"health": {device["id"]: "Healthy"}, "given": {device["id"]: {"/dev/reader": device["devnode"]}}}

    def given() -> bool:
        assert lists()[-1:] == [{"resource": HANDED, **wanted}]
        return True

    eventually(given, timeout=TIMEOUT)
