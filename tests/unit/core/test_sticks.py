"""Well-known sticks are called by the name that people know."""

from __future__ import annotations

from typing import Any

import pytest

from devwatch.config.schema import parse
from devwatch.core.names import resource_name_fault
from devwatch.core.rules import claim
from devwatch.core.sticks import STICKS, recognise
from support.build import device
from support.checkout import CHECKOUT

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
    stick = recognise(device(**fields))
    assert stick is not None
    assert title in stick.title


def test_a_bridge_chip_alone_is_no_stick() -> None:
    """An id that cables and boards share says nothing."""
    assert recognise(device(vendor="10c4", product="ea60", properties={"ID_MODEL": "CP2102N"})) is None
    assert recognise(device(vendor="0403", product="6001", properties=None)) is None


def test_every_stick_can_be_suggested() -> None:
    """The resource names are valid."""
    assert [stick.resource for stick in STICKS if resource_name_fault(stick.resource)] == []


def test_the_example_configuration_knows_the_same_sticks() -> None:
    """Whoever copies the example gets each known stick under the name that is suggested for it."""
    rules = parse(EXAMPLE.read_bytes(), file="config.yaml").resources
    for stick in STICKS:
        values = {test.key: test.patterns[0].text for test in stick.matcher.tests}
        model = values.pop("properties", "").replace("*", "")
        found = claim(device(**values, properties={"ID_MODEL": model}), rules)
        assert found.owner == stick.resource, stick.title
