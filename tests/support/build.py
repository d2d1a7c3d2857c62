"""Small builders of devices, looks and rules: a test names what matters to it, and the rest is a plain USB stick."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from devwatch.core.device import Device
from devwatch.core.inventory import Scan
from devwatch.core.node import ANNOTATION_PART, UNTOUCHED, Amounts, NodePatch
from devwatch.core.pods import Pod
from devwatch.core.rules import KeyTest, Matcher, Pattern, ResourceRule

if TYPE_CHECKING:
    from collections.abc import Sequence

ZIGBEE = "example.com/zigbee"
ZWAVE = "example.com/zwave"


def device(name: str = "ttyUSB0", **fields: Any) -> Device:  # noqa: ANN401  any field of a Device
    """Return a stick with a complete udev record and a body of its own, with `fields` in place of its own."""
    own: dict[str, Any] = {
        "devnode": f"/dev/{name}",
        "devpath": f"/devices/usb/{name}",
        "number": 1,
        "incarnation": 1,
        "physical": f"/devices/usb/{name}",
        "vendor": "10c4",
        "product": "8a2a",
        "properties": {},
    }
    return Device(**own | fields)


Parts = Mapping[str, str | None]
"""A patch in short: by resource the count of both maps, or `CAPACITY/ALLOCATABLE` where they differ, and the annotation as
`ANNOTATION_PART`; None removes."""


def patch_of(parts: Parts) -> NodePatch:
    """Return the patch that writes these parts."""
    counts = {
        name: None if count is None else _amounts_of(count) for name, count in parts.items() if name != ANNOTATION_PART
    }
    return NodePatch(counts=counts, annotation=parts.get(ANNOTATION_PART, UNTOUCHED))


def _amounts_of(text: str) -> Amounts:
    capacity, _, allocatable = text.partition("/")
    return Amounts(capacity=int(capacity), allocatable=int(allocatable or capacity))


def parts_of(patch: NodePatch) -> dict[str, str | None]:
    """Return a patch in short."""
    counts = {name: None if count is None else _text_of(count) for name, count in patch.counts.items()}
    return counts | ({ANNOTATION_PART: patch.annotation} if patch.annotation is not UNTOUCHED else {})


def _text_of(count: Amounts) -> str:
    return str(count.capacity) if count == Amounts.of(count.capacity) else f"{count.capacity}/{count.allocatable}"


def scan(*devices: Device, at: float = 0.0, **fields: Any) -> Scan:  # noqa: ANN401  any field of a Look
    """Return a look that found these devices, a certain one unless `doubts` says otherwise."""
    return Scan(at=at, devices=devices, **fields)


def key(name: str, *globs: str) -> KeyTest:
    """Return the test of one key; `properties.NAME` is that of a udev property."""
    kind, _, prop = name.partition(".")
    return KeyTest(key=kind, patterns=tuple(Pattern(text=glob) for glob in globs), property_name=prop)


def entry(**keys: str) -> Matcher:
    """Return a match entry of one glob for each key."""
    return Matcher(tests=tuple(key(name, glob) for name, glob in keys.items()))


def rule(name: str = ZIGBEE, match: Sequence[Matcher] = (), **fields: Any) -> ResourceRule:  # noqa: ANN401  any field of a rule
    """Return a resource that takes every device of the vendor 10c4, or what `match` says."""
    return ResourceRule(name=name, match=tuple(match) or (entry(vendor="10c4"),), **fields)


def pod(name: str = "p", **fields: Any) -> Pod:  # noqa: ANN401  any field of a Pod
    """Return a pod of a ReplicaSet that requests one device."""
    own: dict[str, Any] = {"namespace": "home", "uid": f"uid-{name}", "requests": {ZIGBEE: 1}, "owner": "ReplicaSet"}
    return Pod(name=name, **own | fields)
