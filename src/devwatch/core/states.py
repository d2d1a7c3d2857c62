"""Devices that change vendor and product when they are first used: they are the same device before and after."""

from __future__ import annotations

from types import MappingProxyType

SECOND_STATES = MappingProxyType(
    {
        # Coral USB Accelerator: Global Unichip Corp. until the first inference has loaded its firmware, Google Inc. from then on
        # (google-coral/edgetpu issue 536, blakeblackshear/frigate issue 171).
        ("18d1", "9302"): ("1a6e", "089a"),
    }
)
"""By vendor and product in the second state: those in the first. `config/sticks.toml` has each of these devices in both states."""


def states_of(vendor: str | None, product: str | None) -> dict[str, tuple[str, ...]]:
    """Return the values of the keys vendor and product in both states of a device, empty for a device that has one."""
    first = first_state(vendor, product)
    second = (each for each, before in SECOND_STATES.items() if before == first)
    return {
        key: values
        for after in second
        for key, values in zip(("vendor", "product"), zip(SECOND_STATES[after], after, strict=True), strict=True)
    }


def first_state(vendor: str | None, product: str | None) -> tuple[str | None, str | None]:
    """Return vendor and product by which a device is identified: those of its first state."""
    return SECOND_STATES.get((vendor or "", product or ""), (vendor, product))
