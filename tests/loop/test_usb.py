"""Whole USB devices on virtual time: counted, kept through a re-enumeration, and healed once."""

from __future__ import annotations

import asyncio

from devwatch.config.schema import parse
from support.build import ZIGBEE
from support.home import Home, home
from support.virtualtime import virtual

CORAL = "coral.ai/edgetpu"
STATES = {"1a6e": "089a", "18d1": "9302"}
BOTH = f"""resources:
- name: {CORAL}
  subsystem: usb
  match: [{{vendor: 1a6e, product: 089a}}, {{vendor: 18d1, product: "9302"}}]
  evict: {{after: 30s}}
"""


def plug(one: Home, vendor: str = "1a6e", number: int = 4, *, socket: str = "1-1", record: bool = True) -> str:
    """Plug a Coral in one of its states, under the devnode of this number; return the devnode."""
    devnode, body = f"/dev/bus/usb/001/{number:03}", f"/devices/usb1/{socket}"
    one.host.plug(
        vendor,
        devnode,
        number=number,
        record=record,
        subsystem="usb",
        product=STATES[vendor],
        devpath=body,
        physical=body,
        port=f"usb-0:{socket}",
    )
    return devnode


def shown(one: Home, name: str = CORAL) -> tuple[str | None, str | None]:
    """Return capacity and allocatable."""
    return one.server.shows(name)


@virtual
async def test_a_usb_device_counts_from_the_plug_to_the_end_of_the_grace() -> None:
    """As a tty does, whose resource is beside it."""
    text = BOTH + f"- {{name: {ZIGBEE}, match: [{{vendor: '0001'}}]}}\n"
    async with home(used=parse(text.encode(), file="config.yaml")) as one:
        assert (shown(one), shown(one, ZIGBEE)) == (("0", "0"), ("1", "1"))
        devnode = plug(one)
        await asyncio.sleep(0.1)
        assert shown(one) == ("1", "1")
        one.host.unplug(devnode)
        await asyncio.sleep(1.5)
        assert shown(one) == ("1", "1")
        await asyncio.sleep(1)
        assert (shown(one), shown(one, ZIGBEE)) == (("0", "0"), ("1", "1"))
