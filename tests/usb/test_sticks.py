"""Real sticks, hubs and made-up devices come and go, and the Node follows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from system.waiting import eventually
from usb.machine import TIMEOUT
from usb.site import CORAL, FTDI, MODEM, NAMELESS, PORT, SLOW, ZIGBEE, ZSTICK, ZWAVE

if TYPE_CHECKING:
    from usb.site import Site

CYCLES = 20
TWIN = "AEO0001"


def test_a_stick_counts_while_it_is_plugged(site: Site) -> None:
    """The Node shows it in both maps, and what it is in the annotation; pulled, it is "0" and listed no more."""
    site.machine.plug("a", serial="DW0001")
    site.await_counts({FTDI: 1})
    (stick,) = site.listed(FTDI)
    assert (stick["vendor"], stick["product"], stick["serial"]) == ("0403", "6001", "DW0001")
    assert stick["link"] == "/dev/serial/by-id/usb-QEMU_QEMU_USB_SERIAL_DW0001-if00-port0"
    site.machine.unplug("a")
    site.await_counts({})
    assert site.listed(FTDI) == []


def test_sticks_that_come_and_go_together_all_count(site: Site) -> None:
    """Four sticks are plugged at once and pulled at once."""
    names = [f"s{number}" for number in range(4)]
    for name in names:
        site.machine.plug(name, serial=name.upper())
    site.await_counts({FTDI: 4})
    assert sorted(stick["serial"] for stick in site.listed(FTDI)) == ["S0", "S1", "S2", "S3"]
    for name in names:
        site.machine.unplug(name)
    site.await_counts({})


def test_a_pulled_hub_takes_its_sticks_along(site: Site) -> None:
    """Three sticks in a hub count, those beside it too; with the hub only its own go."""
    children = ["c1", "c2", "c3"]
    site.machine.plug("beside", serial="BESIDE")
    site.machine.plug("hub", driver="usb-hub", port="7")
    for number, name in enumerate(children, start=1):
        site.machine.plug(name, serial=name.upper(), port=f"7.{number}")
    site.await_counts({FTDI: 4})
    site.machine.unplug("hub", along=children)
    site.await_counts({FTDI: 1})
    assert [stick["serial"] for stick in site.listed(FTDI)] == ["BESIDE"]


def test_twins_with_one_serial_number_count_as_two(site: Site) -> None:
    """They share one link in /dev/serial/by-id; each is a stick, and the one that stays goes on counting."""
    site.machine.make("twin1", "0658:0200", serial=TWIN)
    site.machine.make("twin2", "0658:0200", serial=TWIN)
    site.await_counts({ZSTICK: 2})
    assert [stick["serial"] for stick in site.listed(ZSTICK)] == [TWIN, TWIN]
    site.machine.unmake("twin2")
    site.await_counts({ZSTICK: 1})
    site.machine.unmake("twin1")
    site.await_counts({})


def test_a_stick_without_a_serial_number_can_be_matched_as_such(site: Site) -> None:
    """The pattern "" matches the stick that has none, and not the one that has."""
    site.machine.make("named", "1a86:7523", serial="HAS-ONE")
    site.machine.make("bare", "1a86:7523")
    site.await_counts({NAMELESS: 1})
    site.machine.unmake("bare")
    site.await_counts({})


def test_a_stick_with_two_ttys_counts_as_each_resource_says(site: Site) -> None:
    """Two resources count one stick through an interface each; a modem counts once, or once a port where that is wanted."""
    site.machine.make("husbzb", "10c4:8a2a", serial="HUSBZB-1", ttys=2)
    site.machine.make("modem", "12d1:1506", ttys=2)
    site.machine.make("ports", "12d1:1507", ttys=2)
    site.await_counts({ZWAVE: 1, ZIGBEE: 1, MODEM: 1, PORT: 2})
    site.machine.unmake("husbzb", "ports")
    site.await_counts({MODEM: 1})
    site.machine.unmake("modem")
    site.await_counts({})


def test_a_stick_that_comes_and_goes_for_a_long_time_is_never_missed(site: Site) -> None:
    """Twenty times plugged and pulled, the Node follows each time; the log tells each once, and the service runs on."""
    before = site.state("MainPID")
    for _ in range(CYCLES):
        site.machine.plug("cycle", serial="CYCLE")
        site.await_counts({FTDI: 1})
        site.machine.unplug("cycle")
        site.await_counts({})
    assert (len(site.log("device.added")), len(site.log("device.removed"))) == (CYCLES, CYCLES)
    assert site.state("MainPID") == before


def test_a_stick_that_is_back_within_the_grace_changes_no_count(site: Site) -> None:
    """Re-plugged into another socket within its 30 s, it counted all along: no patch held a number for it."""
    site.machine.plug("slow", serial="SLOW1", port="5")
    site.await_counts({SLOW: 1})
    site.machine.unplug("slow")
    assert site.await_log("device.removed")["resource"] == SLOW
    assert site.shows("1", SLOW)
    site.machine.plug("slow", serial="SLOW1", port="6")
    assert site.await_log("device.returned")["resource"] == SLOW
    assert site.shows("1", SLOW)
    assert [record["resources"][SLOW] for record in site.log("node.patched") if SLOW in record["resources"]] == [1]


def test_a_usb_device_that_changes_its_ids_counts_once(site: Site) -> None:
    """As a Coral does when it is first used: it is another devnode by then, and one device under the ids of its first state."""
    site.machine.make("coral", "1a6e:089a")
    site.await_counts({CORAL: 1})
    (before,) = site.listed(CORAL)
    site.machine.unmake("coral")
    site.machine.make("coral", "18d1:9302")
    assert site.await_log("device.returned")["id"] == "18d1:9302"
    (after,) = eventually(
        lambda: [each for each in site.listed(CORAL) if each["devnode"] != before["devnode"]], timeout=TIMEOUT
    )
    assert {(each["vendor"], each["product"], each["subsystem"]) for each in (before, after)} == {
        ("1a6e", "089a", "usb")
    }
    assert [record["resources"][CORAL] for record in site.log("node.patched") if CORAL in record["resources"]] == [1]


def test_the_socket_of_a_usb_device_is_the_one_that_udev_would_write(site: Site) -> None:
    """Its rules write none for whole devices; its builtin knows."""
    site.machine.make("coral", "1a6e:089a")
    site.machine.plug("hub", driver="usb-hub", port="7")
    site.machine.plug("inside", serial="INSIDE", port="7.2")
    site.await_counts({CORAL: 1, FTDI: 1})
    shown = json.loads(site.machine.run("devwatch devices --subsystem usb --all -o json"))["devices"]
    sockets = {each["physical"]: each["port"] for each in shown}
    builtin = "udevadm test-builtin path_id {} 2>/dev/null | sed -n s/^ID_PATH=//p"
    assert len(sockets) > 3
    assert {path: site.machine.run(builtin.format(path)).strip() for path in sockets} == sockets


def test_what_happens_while_the_daemon_is_down_is_made_good(site: Site) -> None:
    """One stick is pulled and another plugged while nobody looks; the Node follows once the service runs again."""
    site.machine.plug("gone", serial="GONE")
    site.machine.make("stays", "0658:0200", serial=TWIN)
    site.await_counts({FTDI: 1, ZSTICK: 1})
    site.machine.run("systemctl stop devwatch")
    site.machine.unplug("gone")
    site.machine.make("new", "12d1:1506")
    site.machine.run("systemctl start devwatch")
    site.await_counts({ZSTICK: 1, MODEM: 1})


def test_a_restart_of_udevd_loses_no_stick(site: Site) -> None:
    """Its database stays, and so does our ear: nothing is lowered, and what comes afterwards is heard."""
    site.machine.plug("before", serial="BEFORE")
    site.await_counts({FTDI: 1})
    site.machine.run("systemctl restart systemd-udevd")
    site.machine.plug("after", serial="AFTER")
    site.await_counts({FTDI: 2})
    assert site.log("device.removed") == []


def test_a_stick_that_udevd_never_heard_of_counts(site: Site) -> None:
    """Plugged while udevd and its sockets are down, it has no record for ever: the kernel's own data tell what it is."""
    units = "systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket"
    site.machine.run(f"systemctl stop {units}")
    try:
        site.machine.plug("unheard", serial="UNHEARD")
        site.await_counts({FTDI: 1})
    finally:
        site.machine.run(f"systemctl start {units}")
    site.machine.unplug("unheard")
    site.await_counts({})
