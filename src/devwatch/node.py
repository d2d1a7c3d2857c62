"""The part of a Node that devwatch reads and writes, as values: counts, the ownership annotation, and changes to them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from devwatch.config import resource_name_fault
from devwatch.device import Device, natural

ANNOTATION = "devwatch.io/devices"
FIELD_MANAGER = "devwatch"
MAX_TEXT = 128
MAX_ENTRIES = 16
MAX_BYTES = 16 * 1024

Listing = Mapping[str, tuple["Entry", ...]]
Changes = Mapping[str, str | None]
"""What to write: the count by resource name, the annotation under `WHOLE`; None removes."""
WHOLE = ""
"""The key of the annotation among changes; no resource has this name."""

_QUANTITY = re.compile(r"(\d{1,19})([kMGTPE]|[KMGTPE]i|[eE]\d{1,2})?", re.ASCII)
_POWERS = {sign: power for power, sign in enumerate("kMGTPE", start=1)}
_SCALES = {"": 1} | {sign: 1000**power for sign, power in _POWERS.items()}
_SCALES |= {f"{sign.upper()}i": 1024**power for sign, power in _POWERS.items()}


def quantity(text: str | None) -> int | None:
    """Return a whole quantity (`3`, `1k`, `2e3`, `1Ki`) as a number, None for anything else.

    The API server answers in the canonical form, which has no fraction that another suffix could avoid, and at most
    2**63 - 1 (apimachinery, `resource.Quantity`).
    """
    match = _QUANTITY.fullmatch(text or "")
    if match is None:
        return None
    digits, suffix = match[1], match[2] or ""
    scale: int = _SCALES[suffix] if suffix in _SCALES else 10 ** int(suffix[1:])
    return int(digits) * scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A device as the annotation lists it; every text is untrusted."""

    devnode: str
    vendor: str | None = None
    product: str | None = None
    serial: str | None = None
    link: str | None = None

    @classmethod
    def of(cls, device: Device) -> Entry:
        """Return the entry of a device: ids cut to `MAX_TEXT` characters, so that they equal what is read, and paths whole."""
        ids = {name: _text(getattr(device, name)) for name in ("vendor", "product", "serial")}
        return cls(devnode=device.devnode, link=device.link, **ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """A field manager and when it wrote last (RFC 3339)."""

    manager: str
    time: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """A Node as it was observed; the default is a Node that nobody has written to."""

    uid: str = ""
    version: int = 0
    """`metadata.resourceVersion`; greater is newer (kubelet, `isNewer`)."""
    capacity: Mapping[str, str] = field(default_factory=dict)
    allocatable: Mapping[str, str] = field(default_factory=dict)
    annotation: str | None = None
    writers: Mapping[str, tuple[Writer, ...]] = field(default_factory=dict)
    """Who has written each extended resource, where the server says so."""

    def supersedes(self, held: NodeState | None) -> bool:
        """Return whether this observation replaces the held one: another Node, or no older state of the same."""
        return held is None or self.uid != held.uid or self.version >= held.version

    def reflects(self, changes: Changes) -> bool:
        """Return whether the changes are in it."""
        counts = all(self.shows(name, value) for name, value in changes.items() if name != WHOLE)
        return counts and self.annotation == changes.get(WHOLE, self.annotation)

    def count(self, name: str) -> int:
        """Return the advertised count of a resource; 0 where there is none or none that can be read."""
        return quantity(self.capacity.get(name)) or 0

    def shows(self, name: str, count: str | None) -> bool:
        """Return whether both maps hold exactly this count, or, for None, no such key."""
        pair = (self.capacity.get(name), self.allocatable.get(name))
        if count is None:
            return pair == (None, None)
        return all(quantity(text) == int(count) for text in pair)

    def listing(self) -> Listing:
        """Return what the annotation lists; its keys are the resources that devwatch owns. Malformed content lists nothing."""
        return parse_listing(self.annotation or "")


def parse_listing(text: str) -> Listing:
    """Read the annotation. Content of another form owns nothing, and no key that a Pod cannot ask for is ever ours."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or not all(_is_list_of_objects(entries) for entries in content.values()):
        return {}
    return {name: tuple(_entries(entries)) for name, entries in content.items() if not resource_name_fault(name)}


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _entries(entries: list[dict[str, object]]) -> Iterable[Entry]:
    for entry in entries:
        if isinstance(entry.get("devnode"), str):
            yield Entry(**{name: _text(entry.get(name)) for name in Entry.__slots__})  # type: ignore[arg-type]  # devnode is a str: just checked


def _text(value: object) -> str | None:
    return value[:MAX_TEXT] if isinstance(value, str) else None


def render_listing(listing: Listing) -> str | None:
    """Return the annotation for these resources, None where there are none.

    Entries are left out until it fits `MAX_BYTES`; where even their numbers do not fit, the names stay, which say what is ours.
    """
    if not listing:
        return None
    listing = {name: _ordered(entries) for name, entries in sorted(listing.items())}
    limits = (MAX_ENTRIES >> halvings for halvings in range(MAX_ENTRIES.bit_length() + 1))
    texts = (_render(listing, limit) for limit in limits)
    return next((text for text in texts if len(text) <= MAX_BYTES), _render(dict.fromkeys(listing, ()), 0))


def _ordered(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda entry: natural(entry.devnode))) if len(entries) > 1 else entries


def _render(listing: Listing, limit: int) -> str:
    content = {name: _limited(entries, limit) for name, entries in listing.items()}
    return json.dumps(content, ensure_ascii=True, separators=(",", ":"))


def _limited(entries: tuple[Entry, ...], limit: int) -> list[dict[str, object]]:
    shown: list[dict[str, object]] = [
        {name: _text(getattr(entry, name)) for name in Entry.__slots__} for entry in entries[:limit]
    ]
    return [*shown, {"omitted": len(entries) - limit}] if len(entries) > limit else shown


def patch_body(changes: Changes) -> dict[str, object]:
    """Return the strategic-merge patch of `nodes/status` for these changes: both maps get the same value, null removes a key."""
    counts = {name: value for name, value in sorted(changes.items()) if name != WHOLE}
    body: dict[str, object] = {}
    if counts:
        body["status"] = {"capacity": counts, "allocatable": counts}
    if WHOLE in changes:
        body["metadata"] = {"annotations": {ANNOTATION: changes[WHOLE]}}
    return body


def apply(state: NodeState, changes: Changes) -> NodeState:
    """Return the Node that an API server would answer with after these changes."""
    counts = {name: value for name, value in changes.items() if name != WHOLE}
    return replace(
        state,
        capacity=_merged(state.capacity, counts),
        allocatable=_merged(state.allocatable, counts),
        annotation=changes.get(WHOLE, state.annotation),
    )


def _merged(held: Mapping[str, str], counts: Changes) -> dict[str, str]:
    merged = {**held, **counts}
    return {name: value for name, value in merged.items() if value is not None}
