"""A reboot of the machine, with sticks that are plugged on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usb.site import FTDI, ZSTICK

if TYPE_CHECKING:
    from usb.site import Site


def test_sticks_that_are_plugged_during_the_boot_count(site: Site) -> None:
    """One stays plugged, one comes while no system runs, one while services start; the stick that a reboot takes is gone."""
    site.machine.plug("stays", serial="STAYS")
    site.machine.make("lost", "0658:0200", serial="LOST")
    site.await_counts({FTDI: 1, ZSTICK: 1})
    site.machine.reboot("early", serial="EARLY")
    site.machine.plug("late", serial="LATE")
    assert site.machine.booted()
    site.await_counts({FTDI: 3})
    assert sorted(stick["serial"] for stick in site.listed(FTDI)) == ["EARLY", "LATE", "STAYS"]
