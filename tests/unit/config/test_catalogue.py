"""Well-known sticks are called by the name that people know."""

from __future__ import annotations

from typing import Any

import pytest

from devwatch.config.catalogue import well_known_sticks
from devwatch.config.schema import parse
from devwatch.core.sticks import Stick, recognise
from support.build import device
from support.checkout import CHECKOUT
from support.example import rendered

STICKS = well_known_sticks()
EXAMPLE = CHECKOUT / "systemd" / "config.yaml"


@pytest.mark.parametrize(
    ("fields", "title"),
    [
        ({"vendor": "0658", "product": "0200"}, "Aeotec Z-Stick"),
        ({"vendor": "10c4", "product": "8a2a", "interface": "00"}, "HUSBZB-1 (Z-Wave)"),
        ({"vendor": "10c4", "product": "8a2a", "interface": "01"}, "HUSBZB-1 (Zigbee)"),
        ({"vendor": "0403", "product": "6015", "properties": {"ID_MODEL": "RFXtrx433XL"}}, "RFXCOM"),
    ],
)
def test_a_well_known_stick_is_recognised(fields: dict[str, Any], title: str) -> None:
    """By ids, by interface, and by the model where many devices share the ids."""
    stick = recognise(device(**fields), STICKS)
    assert stick is not None
    assert title in stick.title


def test_a_bridge_chip_alone_is_no_stick() -> None:
    """An id that cables and boards share says nothing."""
    assert recognise(device(vendor="10c4", product="ea60", properties={"ID_MODEL": "CP2102N"}), STICKS) is None
    assert recognise(device(vendor="0403", product="6001", properties=None), STICKS) is None


def test_the_example_configuration_is_the_catalogue() -> None:
    """Copied, it gives each known stick the name that is suggested for it; and all that the catalogue spells is valid."""
    assert EXAMPLE.read_text("utf-8") == rendered()
    assert parse(EXAMPLE.read_bytes(), file="config.yaml").resources == tuple(stick.rule for stick in STICKS)


@pytest.mark.parametrize("stick", STICKS, ids=lambda stick: stick.rule.name)
def test_no_stick_hides_another(stick: Stick) -> None:
    """A device that matches an entry is recognised as that stick."""
    for entry in stick.rule.match:
        fields = {test.label: test.patterns[0].text.replace("*", "") for test in entry.tests}
        properties = {key.partition(".")[2]: fields.pop(key) for key in sorted(fields) if "." in key}
        assert recognise(device(**fields, properties=properties), STICKS) is stick
