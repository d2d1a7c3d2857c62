"""The annotation `devwatch.io/devices`: what a daemon lists of its devices, for people and for the daemon after it."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from devwatch.core.device import Device, natural
from devwatch.core.names import resource_name_fault

MAX_TEXT = 128
MAX_ENTRIES = 16
MAX_LINKS = 8
MAX_NUMBER = 1 << 63
MAX_NUMBERS = 8
MAX_BYTES = 16 * 1024

Listing = Mapping[str, tuple["Entry", ...]]
"""The devices of each resource."""


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
