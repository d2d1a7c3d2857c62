"""The part of a Node that devwatch reads and writes, as values: counts, the ownership annotation, and changes to them."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from devwatch.core.device import Device, natural
from devwatch.core.names import resource_name_fault

ANNOTATION = "devwatch.io/devices"
FIELD_MANAGER = "devwatch"
MAPS = ("capacity", "allocatable")
"""The two maps of a Node's status that hold counts."""
MAX_TEXT = 128
MAX_ENTRIES = 16
MAX_LINKS = 8
MAX_NUMBER = 1 << 63
MAX_NUMBERS = 8
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


def listed_path(path: str) -> str:
    """Return a path as the annotation lists it: whole, or, beyond `MAX_TEXT`, cut, with a digest that keeps it apart from all others."""
    path = posixpath.normpath(path)
    if len(path) <= MAX_TEXT:
        return path
    digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{path[: MAX_TEXT - len(digest) - 1]}~{digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A device as the annotation lists it; every text is untrusted.

    From `links` on they are listed for resources that evict: they are what a daemon has to know of a device that is gone.
    """

    devnode: str
    vendor: str | None = None
    product: str | None = None
    serial: str | None = None
    link: str | None = None
    links: tuple[str, ...] = ()
    """The links that only this device had while it was there, as `listed_path` writes them."""
    shared: tuple[str, ...] = ()
    """Those that another device had as well."""
    rdev: int | None = None
    """The device number (`st_rdev`)."""
    numbers: tuple[tuple[int, int], ...] = ()
    """After a return under another number, until its pods have been looked at: all that it had, each with the Unix second since when."""
    lost: str | None = None
    """The API server's time before the PATCH that stopped counting the device (RFC 3339, seconds), None before that PATCH."""

    replugged: int | None = None
    """When a pod was last evicted for a return of the device, in Unix seconds of its host."""

    @classmethod
    def of(cls, device: Device) -> Entry:
        """Return the entry of a device, its texts cut to `MAX_TEXT` characters, so that it equals what is read back."""
        vendor, product, serial, link = (_text(getattr(device, name)) for name in _IDS)
        return cls(devnode=device.devnode, vendor=vendor, product=product, serial=serial, link=link)

    def remembering(
        self,
        *,
        links: Iterable[str],
        shared: Iterable[str],
        rdev: int,
        numbers: tuple[tuple[int, int], ...],
        replugged: int | None,
    ) -> Entry:
        """Return it with what a daemon has to know once the device is gone."""
        return replace(
            self,
            links=tuple(sorted(links))[:MAX_LINKS],
            shared=tuple(sorted(shared))[:MAX_LINKS],
            rdev=rdev,
            numbers=numbers[-MAX_NUMBERS:],
            replugged=replugged,
        )

    @property
    def paths(self) -> frozenset[str]:
        """The paths that named this device and no other, as `listed_path` writes them."""
        return frozenset((listed_path(self.devnode), *self.links))


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """A field manager of a key, as the server records it (metav1.ManagedFieldsEntry)."""

    manager: str
    time: str
    """When it wrote last (RFC 3339)."""
    operation: str = "Update"
    subresource: str = "status"
    """Where the server records none (before 1.22), as if it were `status`."""
    maps: frozenset[str] = frozenset(MAPS)
    """In which of the two maps it wrote the key."""

    @property
    def ours(self) -> bool:
        """Whether devwatch wrote it, as far as the record can tell: who may patch nodes can forge it."""
        return (self.manager, self.operation, self.subresource) == (FIELD_MANAGER, "Update", "status")


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
    """Who has written each extended resource, and under `WHOLE` the annotation, where the server says so."""

    @property
    def believed(self) -> bool:
        """Whether the annotation is the memory of a devwatch: exactly one manager has written it, and that was one."""
        writers = self.writers.get(WHOLE, ())
        return len(writers) == 1 and writers[0].ours

    def removable(self, name: str) -> bool:
        """Return whether each map that holds the key has it from devwatch, so that it is ours to remove."""
        ours = {
            part for writer in self.writers.get(name, ()) if writer.manager == FIELD_MANAGER for part in writer.maps
        }
        return all(part in ours for part in MAPS if name in getattr(self, part))

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
        """Return what the annotation lists, whichever client wrote it. Malformed content lists nothing."""
        return parse_listing(self.annotation or "")

    def memory(self) -> Listing:
        """Return what the annotation lists if it is believed; its keys are the resources that devwatch owns."""
        return self.listing() if self.believed else {}


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
        if isinstance(devnode := entry.get("devnode"), str):
            texts = {name: _text(entry.get(name)) for name in (*_IDS, "lost")}
            whole = {name: _number(entry.get(name)) for name in ("rdev", "replugged")}
            links = {name: _texts(entry.get(name)) for name in ("links", "shared")}
            numbers = tuple(map(_pair, _items(entry.get("numbers"))[:MAX_NUMBERS]))
            known: dict[str, Any] = {**texts, **whole, **links, "numbers": () if None in numbers else numbers}
            yield Entry(devnode=devnode[:MAX_TEXT], **known)


_IDS = ("vendor", "product", "serial", "link")
"""The keys that every entry has beside its devnode; null where there is nothing to say."""


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _texts(value: object) -> tuple[str, ...]:
    return tuple(filter(None, map(_text, _items(value)[:MAX_LINKS])))


def _pair(value: object) -> tuple[int, int] | None:
    match [_number(each) for each in _items(value)]:
        case [int(second), int(number)]:
            return second, number
    return None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and 0 <= value < MAX_NUMBER else None


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
    if len(entries) <= limit:
        return [_content(entry) for entry in entries]
    first = sorted(entries, key=lambda entry: entry.lost is None)[
        :limit
    ]  # of the present ones the host itself can tell
    return [*map(_content, first), {"omitted": len(entries) - limit}]


def _content(entry: Entry) -> dict[str, object]:
    shown: dict[str, object] = {name: _text(getattr(entry, name)) for name in ("devnode", *_IDS)}
    memory = {name: getattr(entry, name) for name in ("links", "shared", "rdev", "numbers", "lost", "replugged")}
    return shown | {name: value for name, value in memory.items() if value}


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
        writers={**state.writers, **dict.fromkeys(changes, (Writer(manager=FIELD_MANAGER, time=""),))},
    )


def _merged(held: Mapping[str, str], counts: Changes) -> dict[str, str]:
    merged = {**held, **counts}
    return {name: value for name, value in merged.items() if value is not None}
