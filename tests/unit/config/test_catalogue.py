"""Well-known sticks are called by the name that people know."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from devwatch.cli.inspection import suggest
from devwatch.config.catalogue import well_known_sticks
from devwatch.config.schema import parse
from devwatch.core.serials import SHARED_SERIALS
from devwatch.core.states import SECOND_STATES
from devwatch.core.sticks import Stick, recognise
from support.build import device
from support.checkout import CHECKOUT
from support.example import page, rendered

STICKS = well_known_sticks()
SHARED_IDS = {
    "0403": ("6001", "6015"),
    "04b4": ("0003",),
    "067b": ("2303",),
    "10c4": ("ea60",),
    "1a86": ("55d4", "7523"),
    "1d50": ("614e",),
    "2fe3": ("0100",),
    "303a": ("4001",),
}
"""The ids of bridge chips, development kits and firmware, by vendor."""
EXAMPLE = CHECKOUT / "systemd" / "config.yaml"


def _cp210x(model: str, vendor: str) -> dict[str, Any]:
    return {"vendor": "10c4", "product": "ea60", "properties": {"ID_MODEL": model, "ID_VENDOR": vendor}}


@pytest.mark.parametrize(
    ("fields", "title"),
    [
        ({"vendor": "0658", "product": "0200"}, "Aeotec Z-Stick"),
        ({"vendor": "10c4", "product": "8a2a", "interface": "00"}, "HUSBZB-1 (Z-Wave)"),
        ({"vendor": "10c4", "product": "8a2a", "interface": "01"}, "HUSBZB-1 (Zigbee)"),
        ({"vendor": "0403", "product": "6015", "properties": {"ID_MODEL": "RFXtrx433XL"}}, "RFXCOM"),
        ({"vendor": "303a", "product": "8319", "properties": {"ID_MODEL": "ZWA-2"}}, "ZWA-2"),
        (_cp210x("Zooz_ZST10_700_Z-Wave_Stick", "Silicon_Labs"), "ZST10 700"),
        (_cp210x("SONOFF_Dongle_Plus_MG24", "SONOFF"), "Dongle Plus MG24"),
        (_cp210x("SONOFF_Dongle_Plus_CC2674P10", "SONOFF"), "CC2674P10"),
        (_cp210x("SMLIGHT_SLZB-07Mg24", "SMLIGHT"), "SLZB-07"),
        (_cp210x("SMLIGHT_SLZB-06p7", "SMLIGHT"), "SLZB-06"),
        (_cp210x("anything", "zigate_cp2102"), "ZiGate"),
        ({"vendor": "0403", "product": "6001", "properties": {"ID_MODEL": "EnOcean_USB_300_DC"}}, "EnOcean"),
        ({"vendor": "0451", "product": "bef3", "interface": "00"}, "LaunchPad"),
        ({"vendor": "1d50", "product": "614e", "properties": {"ID_VENDOR": "Klipper"}}, "Klipper"),
        ({"vendor": "0bda", "product": "2838", "subsystem": "usb"}, "RTL-SDR"),
        ({"vendor": "0764", "product": "0601", "subsystem": "usb"}, "CyberPower"),
        ({"vendor": "051d", "product": "0002", "subsystem": "usb"}, "APC"),
    ],
)
def test_a_well_known_stick_is_recognised(fields: dict[str, Any], title: str) -> None:
    """By ids, by interface, and by the model where many devices share the ids."""
    stick = recognise(device(**fields), STICKS)
    assert stick is not None
    assert title in stick.title


def test_a_bridge_chip_alone_is_no_stick() -> None:
    """An id that cables and boards share says nothing."""
    for vendor, products in SHARED_IDS.items():
        for product in products:
            assert recognise(device(vendor=vendor, product=product, properties={"ID_MODEL": "CP2102N"}), STICKS) is None
            assert recognise(device(vendor=vendor, product=product, properties=None), STICKS) is None


def test_the_second_tty_of_a_launchpad_is_no_radio() -> None:
    """It belongs to the debugger."""
    assert recognise(device(vendor="0451", product="bef3", interface="03"), STICKS) is None


def test_the_example_configuration_is_the_catalogue() -> None:
    """Copied, it gives each known stick the name that is suggested for it; and all that the catalogue spells is valid."""
    assert EXAMPLE.read_text("utf-8") == rendered()
    assert parse(EXAMPLE.read_bytes(), file="config.yaml").resources == tuple(stick.rule for stick in STICKS)


def test_the_page_of_the_documentation_is_the_catalogue() -> None:
    """Each stick is in the table with its source: the head of the catalogue says how it is rendered."""
    assert (CHECKOUT / "docs" / "devices.md").read_text("utf-8") == page()


def test_each_stick_has_a_public_source() -> None:
    """Of each row and of each shared serial a reader can see where it comes from."""
    rows = tomllib.loads((CHECKOUT / "src/devwatch/config/sticks.toml").read_text("utf-8"))["stick"]
    assert [row["title"] for row in rows if not row["source"].strip()] == []
    assert all(SHARED_SERIALS.values())


@pytest.mark.parametrize("stick", STICKS, ids=lambda stick: stick.rule.name)
def test_no_stick_hides_another(stick: Stick) -> None:
    """A device that matches an entry is recognised as that stick."""
    for entry in stick.rule.match:
        fields = {test.label: test.patterns[0].text.replace("*", "") for test in entry.tests}
        properties = {key.partition(".")[2]: fields.pop(key) for key in sorted(fields) if "." in key}
        found = device(**fields, subsystem=stick.rule.subsystem, properties=properties)
        assert recognise(found, STICKS) is stick


def test_a_device_with_two_states_is_in_the_catalogue_in_both() -> None:
    """Under one resource, which is suggested for it in either state."""
    for second, first in SECOND_STATES.items():
        found = {
            recognise(device(vendor=vendor, product=product, subsystem="usb"), STICKS)
            for vendor, product in (first, second)
        }
        (stick,) = found
        assert stick is not None
        for vendor, product in (first, second):
            (suggestion,) = suggest([device(vendor=vendor, product=product, subsystem="usb")], [], subsystem="usb")
            assert suggestion.name == stick.rule.name
            assert (suggestion.keys["vendor"], suggestion.keys["product"]) == tuple(zip(first, second, strict=True))
