"""A catalogue of common sticks: their names, and matchers that distinguish them from other devices with the same bridge chip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from devwatch.core.rules import KeyTest, Matcher, Pattern, Verdict

if TYPE_CHECKING:
    from devwatch.core.device import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Stick:
    """A stick of the catalogue: its common name, the resource name to suggest for it, and its matcher."""

    title: str
    resource: str
    matcher: Matcher


def _stick(title: str, resource: str, ids: str, *, interface: str = "", model: tuple[str, ...] = ()) -> Stick:
    vendor, _, product = ids.partition(":")
    tests = [("vendor", "", (vendor,)), ("product", "", tuple(product.split("|")))]
    if interface:
        tests.append(("interface", "", (interface,)))
    if model:
        tests.append(("properties", "ID_MODEL", model))
    return Stick(
        title=title,
        resource=resource,
        matcher=Matcher(
            tests=tuple(
                KeyTest(key=key, property_name=name, patterns=tuple(Pattern(text=text) for text in texts))
                for key, name, texts in tests
            )
        ),
    )


STICKS = (
    _stick("Aeotec Z-Stick Gen5, UZB (Z-Wave)", "aeotec/zstick", "0658:0200"),
    _stick("Nortek HUSBZB-1 (Z-Wave)", "nortek.com/zwave", "10c4:8a2a", interface="00"),
    _stick("Nortek HUSBZB-1 (Zigbee)", "nortek.com/zigbee", "10c4:8a2a", interface="01"),
    _stick("Home Assistant ZWA-2 (Z-Wave)", "nabucasa.com/zwa-2", "303a:4001", model=("ZWA-2",)),
    _stick("Home Assistant ZBT-2 (Zigbee, Thread)", "nabucasa.com/zbt-2", "303a:4001|831a", model=("ZBT-2",)),
    _stick(
        "Home Assistant ZBT-1, SkyConnect (Zigbee, Thread)",
        "nabucasa.com/zbt-1",
        "10c4:ea60",
        model=("SkyConnect_v1.0", "Home_Assistant_Connect_ZBT-1"),
    ),
    _stick("ConBee II (Zigbee)", "dresden-elektronik.de/conbee2", "1cf1:0030"),
    _stick("ConBee III (Zigbee)", "dresden-elektronik.de/conbee3", "0403:6015", model=("ConBee_III",)),
    _stick(
        "Sonoff ZBDongle-P (Zigbee)",
        "sonoff.tech/zbdongle-p",
        "10c4:ea60",
        model=("Sonoff_Zigbee_3.0_USB_Dongle_Plus",),
    ),
    _stick(
        "Sonoff ZBDongle-E (Zigbee)",
        "sonoff.tech/zbdongle-e",
        "1a86:55d4",
        model=("SONOFF_Zigbee_3.0_USB_Dongle_Plus*",),
    ),
    _stick(
        "Sonoff ZBDongle-E (Zigbee)",
        "sonoff.tech/zbdongle-e",
        "10c4:ea60",
        model=("Sonoff_Zigbee_3.0_USB_Dongle_Plus_V2",),
    ),
    _stick("slae.sh CC2652RB (Zigbee)", "slae.sh/cc2652rb", "10c4:ea60", model=("slae.sh_cc2652rb_stick*",)),
    _stick("Texas Instruments CC2531 (Zigbee)", "ti.com/cc2531", "0451:16a8"),
    _stick("RFXCOM RFXtrx433 (433 MHz)", "rfxcom/rfxtrx433", "0403:6001|6015", model=("RFXtrx433*",)),
    _stick("Rainforest RAVEn (smart meter)", "rainforestautomation.com/raven", "0403:8a28"),
    _stick("Velbus USB interface", "velbus.eu/usb", "10cf:0b1b|0516|0517|0518"),
    _stick("Huawei mobile modem", "huawei.com/modem", "12d1:1506"),
)


def recognise(device: Device) -> Stick | None:
    """Return the stick of the catalogue that matches a device, None where none does."""
    return next((stick for stick in STICKS if stick.matcher.verdict(device) is Verdict.MATCHED), None)
