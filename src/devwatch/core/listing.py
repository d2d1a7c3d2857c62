"""The annotation `devwatch.io/devices`: the devices of a daemon, listed for users and for the next daemon of the node."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from devwatch.core.device import TTY, Device, natural
from devwatch.core.names import resource_name_fault
from devwatch.core.states import first_state

MAX_TEXT = 128
"""Characters of each string."""
MAX_ENTRIES = 16
"""Entries of each resource."""
MAX_LINKS = 8
"""Links of each entry, own and shared ones each."""
MAX_NUMBER = 1 << 63
"""Bound of each number: one more than the largest signed 64-bit integer."""
MAX_NUMBERS = 8
"""Former device numbers of each entry."""
MAX_BYTES = 16 * 1024
"""Bytes of the annotation; the API server allows 256 KiB for all annotations of an object."""

Listing = Mapping[str, tuple["Entry", ...]]
"""The devices of each resource."""


def listed_path(path: str) -> str:
    """Return a path as the annotation lists it: normalised, and beyond `MAX_TEXT` characters cut, with a digest that keeps it unique."""
    path = posixpath.normpath(path)
    if path.startswith("//"):  # POSIX leaves their meaning to the system, and on Linux they are one
        path = path[1:]
    if len(path) <= MAX_TEXT:
        return path
    digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{path[: MAX_TEXT - len(digest) - 1]}~{digest}"


def is_socket(path: str) -> bool:
    """Return whether a link names a socket (`/dev/*/by-path/` of 60-serial.rules and similar), which holds one device at a time."""
    return "/by-path/" in path


def paths_of(device: Device) -> frozenset[str]:
    """Return every path of a device: its devnode, the links that lead to it, and the links that its udev record claims (DEVLINKS)."""
    claims = (device.properties or {}).get("DEVLINKS", "").split()
    return frozenset(listed_path(path) for path in (device.devnode, *device.links, *claims))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A device as the annotation lists it; every string is untrusted.

    The fields from `links` on are listed only for resources that evict: with them a later daemon can judge a departed device.
    """

    devnode: str
    """Empty for an entry that tells only how a resource without a device is published."""
    vendor: str | None = None
    product: str | None = None
    serial: str | None = None
    link: str | None = None
    links: tuple[str, ...] = ()
    """The links that only this device had while it was present, as `listed_path` writes them."""
    shared: tuple[str, ...] = ()
    """The links that another device had as well."""
    rdev: int | None = None
    """The device number (`st_rdev`)."""
    numbers: tuple[tuple[int, int], ...] = ()
    """After a return under another number, until its pods have been examined: each number that it had, with its first Unix second."""
    lost: str | None = None
    """The API server's time before the PATCH that stopped counting the device (RFC 3339, seconds), None before that PATCH."""

    replugged: int | None = None
    """When a pod was last evicted for a return of the device, in Unix seconds of its host."""
    id: str | None = None
    """The ID under which the kubelet has the device; this and the next two are listed where it hands the device over."""
    port: str | None = None
    """The physical socket (`Identity.socket`)."""
    place: str | None = None
    """The place of the devnode in its device, where each devnode is a device of its own."""
    publish: str | None = None
    """The way of publishing, None for the Node's status."""
    subsystem: str | None = None
    """The udev subsystem, None for tty."""

    @classmethod
    def of(cls, device: Device) -> Entry:
        """Return the entry of a device, with strings cut to `MAX_TEXT` characters, so that it equals the entry that is read back.

        Vendor and product are those of its first state, so that a device that changes them when it is used stays the same one.
        """
        ids = (*first_state(device.vendor, device.product), device.serial)
        vendor, product, serial = map(_text, ids)
        link = listed_path(device.link) if device.link else None
        subsystem = None if device.subsystem == TTY else _text(device.subsystem)
        return cls(
            devnode=device.devnode, vendor=vendor, product=product, serial=serial, link=link, subsystem=subsystem
        )

    def remembering(
        self,
        *,
        links: Iterable[str],
        shared: Iterable[str],
        rdev: int,
        numbers: tuple[tuple[int, int], ...],
        replugged: int | None,
    ) -> Entry:
        """Return a copy with the fields that a later daemon needs once the device is gone."""
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
        """The paths that named only this device, as `listed_path` writes them."""
        return frozenset((listed_path(self.devnode), *self.links))


def parse_listing(text: str) -> Listing:
    """Parse the annotation. Malformed content owns nothing, and a key that is not a valid extended resource name is ignored."""
    return {name: tuple(_entries(entries)) for name, entries in _parse(text).items()}


def parse_omitted(text: str) -> Mapping[str, int]:
    """Return by resource how many devices the annotation leaves out because they do not fit, without those that it lists all of."""
    numbers = {name: [_number(entry.get("omitted")) for entry in entries] for name, entries in _parse(text).items()}
    return {name: sum(filter(None, found)) for name, found in numbers.items() if any(found)}


def _parse(text: str) -> Mapping[str, list[dict[str, object]]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or not all(_is_list_of_objects(entries) for entries in content.values()):
        return {}
    return {name: entries for name, entries in content.items() if not resource_name_fault(name)}


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _entries(entries: list[dict[str, object]]) -> Iterable[Entry]:
    for entry in entries:
        devnode = entry.get("devnode", "" if entry.get("publish") else None)
        if isinstance(devnode, str):
            texts = {name: _text(entry.get(name)) for name in (*_IDS, "lost", "subsystem", *_SLOT)}
            whole = {name: _number(entry.get(name)) for name in ("rdev", "replugged")}
            links = {name: _texts(entry.get(name)) for name in ("links", "shared")}
            numbers = tuple(map(_pair, _items(entry.get("numbers"))[:MAX_NUMBERS]))
            known: dict[str, Any] = {**texts, **whole, **links, "numbers": () if None in numbers else numbers}
            yield Entry(devnode=devnode[:MAX_TEXT], **known)


_IDS = ("vendor", "product", "serial", "link")
"""The keys that every entry has besides its devnode; null where the value is absent."""


_SLOT = ("id", "port", "place", "publish")
"""The keys of a device that the kubelet hands over."""


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

    Entries are left out until it fits `MAX_BYTES`, the same number for each resource. Where even the `omitted` counts do not fit, only the
    names stay: they record which resources devwatch owns.
    """
    if not listing:
        return None
    listing = {name: _by_devnode(entries) for name, entries in sorted(listing.items())}
    limits = (MAX_ENTRIES >> halvings for halvings in range(MAX_ENTRIES.bit_length() + 1))
    texts = (_render(listing, limit) for limit in limits)
    return next((text for text in texts if len(text) <= MAX_BYTES), _render(dict.fromkeys(listing, ()), 0))


def _by_devnode(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda entry: natural(entry.devnode))) if len(entries) > 1 else entries


def _render(listing: Listing, limit: int) -> str:
    content = {name: _entries_within(entries, limit) for name, entries in listing.items()}
    return json.dumps(content, ensure_ascii=True, separators=(",", ":"))


def _entries_within(entries: tuple[Entry, ...], limit: int) -> list[dict[str, object]]:
    if len(entries) <= limit:
        return [_entry_object(entry) for entry in entries]
    # Lost devices come first: present ones can be found again on the host.
    first = sorted(entries, key=lambda entry: entry.lost is None)[:limit]
    return [*map(_entry_object, first), {"omitted": len(entries) - limit}]


def _entry_object(entry: Entry) -> dict[str, object]:
    if entry.publish and not entry.devnode:
        return {"publish": entry.publish}
    shown: dict[str, object] = {name: _text(getattr(entry, name)) for name in ("devnode", *_IDS)}
    memory = {
        name: getattr(entry, name)
        for name in ("links", "shared", "rdev", "numbers", "lost", "replugged", "subsystem", *_SLOT)
    }
    return shown | {name: value for name, value in memory.items() if value}
