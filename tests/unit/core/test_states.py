"""Devices that change vendor and product when they are first used."""

from __future__ import annotations

import pytest

from devwatch.core.states import first_state, states_of


@pytest.mark.parametrize("ids", [("1a6e", "089a"), ("18d1", "9302")])
def test_a_device_is_the_same_in_both_states(ids: tuple[str, str]) -> None:
    """A rule for it names both, the first one first."""
    assert first_state(*ids) == ("1a6e", "089a")
    assert states_of(*ids) == {"vendor": ("1a6e", "18d1"), "product": ("089a", "9302")}


@pytest.mark.parametrize("ids", [("10c4", "8a2a"), ("9302", "18d1"), (None, None), (None, "9302")])
def test_a_device_with_one_state_is_what_it_says(ids: tuple[str | None, str | None]) -> None:
    """As most are."""
    assert first_state(*ids) == ids
    assert states_of(*ids) == {}
