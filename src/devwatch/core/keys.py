"""The keys of `match` and `exclude`: what each is matched with, where its value comes from, and how it is written."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchKey:
    """A key that rules can match. If it has a `source`, its value is the field of `Device` with its name."""

    name: str
    description: str
    """What it is matched with, as the documentation says (docs/configuration.md)."""
    source: str = ""
    """The udev property that the value comes from, empty where it comes from no single one."""
    digits: tuple[int, int] | None = None
    """How many hex digits a configuration may write; the value has the greater number of them, in lower case. None for any text."""
    form: str = ""
    """The regular expression that the beginning of a pattern must match, and `wanted` says what it allows."""
    wanted: str = ""
    recorded: bool = False
    """Whether only the udev record has the value: sysfs shows the others as well (60-serial.rules, `usb_id`)."""


KEYS = MappingProxyType(
    {
        key.name: key
        for key in (
            MatchKey(
                name="vendor",
                description="the vendor id of USB, four hex digits",
                source="ID_VENDOR_ID",
                digits=(4, 4),
            ),
            MatchKey(
                name="product",
                description="the product id of USB, four hex digits",
                source="ID_MODEL_ID",
                digits=(4, 4),
            ),
            MatchKey(
                name="serial",
                description="the serial number as udev writes it",
                source="ID_SERIAL_SHORT",
            ),
            MatchKey(
                name="interface",
                description="the USB interface, two hex digits",
                source="ID_USB_INTERFACE_NUM",
                digits=(1, 2),
            ),
            MatchKey(name="port", description="the physical socket", source="ID_PATH", recorded=True),
            MatchKey(
                name="path",
                description="the devnode, or a link that leads to it now (`/dev/serial/by-id/...`); a pattern finds the links in "
                "`/dev/serial`, and those that udev made elsewhere",
                form=r"$|[/*?\[]",
                wanted="an absolute path, a glob or a list of them",
            ),
            MatchKey(
                name="properties",
                description='any udev property, such as `ID_MODEL: "SkyConnect*"`',
                recorded=True,
            ),
        )
    }
)
"""The keys by name, in the order in which a matcher tests them."""
VALUE_KEYS = tuple(name for name, key in KEYS.items() if key.source)
"""The keys whose value is a field of `Device`."""
