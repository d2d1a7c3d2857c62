"""The desired state of a resource as slots: which devices it offers, under which IDs, and in which state."""

from __future__ import annotations

import enum
import hashlib
import itertools
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from devwatch.core.departure import is_untouched
from devwatch.core.device import TTY, USB, natural
from devwatch.core.listing import MAX_TEXT, Entry, listed_path
from devwatch.core.matching import ids_of, leads_to
from devwatch.core.rules import Count
from devwatch.core.serials import is_shared
from devwatch.core.states import first_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.core.device import Device
    from devwatch.core.rules import Publish


_Unit = tuple["Device", ...]
"""The claimed devnodes of one device, in order."""
_Model = tuple[str | None, ...]
"""Everything that the annotation lists of an identity but the socket."""
MAX_ID = 63
"""Characters of an ID: a DNS label (RFC 1123), and the limit of the kubelet for device IDs."""
_DIGITS = 10
"""Hex digits of the digest in an ID."""
_INTERFACE = re.compile(r":[0-9]+\.[0-9]+$")
"""The end of the ID_PATH of one interface of a USB device (udev, `path_id`)."""


class SlotState(enum.Enum):
    """The state of a slot. A device goes from present to lingering or lost, and back when it is found again.

    | state | the last scan | counts | ends when |
    |---|---|---|---|
    | PRESENT | found the device | yes | a scan does not find it |
    | LINGERING | did not find it | yes, as the figure still includes it | it is found, or the figure falls |
    | HELD | did not find it, nor does the figure include it | no | it is found, or certainly no pod has it any more |
    """

    PRESENT = "present"
    LINGERING = "lingering"
    HELD = "held"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What identifies a device beyond its registration with the kernel. All strings are untrusted."""

    vendor: str | None
    product: str | None
    serial: str | None
    socket: str
    """The physical socket: ID_PATH of the device, else its devpath."""
    path: str = ""
    """The physical device in sysfs: its socket as a daemon knows it that finds no record of udev."""
    place: str = ""
    """The place of the devnode in its device, where each devnode is a device of its own (`count: devnode`)."""

    @property
    def model(self) -> _Model:
        """Everything but the socket, as far as the annotation lists it: equal for twins."""
        return (*self.ids, self.place[:MAX_TEXT])

    @property
    def ids(self) -> tuple[str | None, ...]:
        """Vendor, product and serial, as the annotation lists them."""
        return tuple(text and text[:MAX_TEXT] for text in (self.vendor, self.product, self.serial))

    @property
    def is_portable(self) -> bool:
        """Whether the device is known again in another socket: it has a serial, and not one that many devices share."""
        return bool(self.serial) and not is_shared(self.serial)

    def may_be_in_place(self, other: Identity) -> bool:
        """Return whether another device in the same socket has the same model, as far as both have a serial."""
        if self.serial and other.serial:
            return self.is_in_place(other)
        return replace(self, serial=None).is_in_place(replace(other, serial=None))

    def is_in_place(self, other: Identity) -> bool:
        """Return whether another device with the same model is in the same socket, by its ID_PATH if both have one, else by the devpath."""
        named = not any(each.socket.startswith("/") for each in (self, other))
        mine, its = (self.socket, other.socket) if named else (self.path or self.socket, other.path)
        return (self.model, mine[:MAX_TEXT]) == (other.model, its[:MAX_TEXT])

    def id(self, resource: str, *, in_socket: bool, salt: int = 0) -> str:
        """Return the ID of the device for a resource: vendor, product and serial as a slug, and a digest that makes it unique.

        Without `in_socket` the ID is the same in every socket. `salt` tells apart what nothing else does.
        """
        model = (resource, self.vendor, self.product, self.serial, self.place)
        texts = (*model, self.socket if in_socket else None, str(salt) if salt else None)
        # One byte that no value holds tells an absent value from an empty one, and separates the values.
        data = b"\0".join(b"\1" if text is None else text.encode("utf-8", "surrogateescape") for text in texts)
        digest = hashlib.sha256(data).hexdigest()[:_DIGITS]
        name = "-".join(filter(None, (self.vendor, self.product, self.serial))).lower()
        slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-")[: MAX_ID - _DIGITS - 1].strip("-")
        return f"{slug or 'device'}-{digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One device that a resource offers."""

    id: str
    """Unique over all resources of the node."""
    identity: Identity
    devices: tuple[Device, ...]
    """The claimed devnodes of the device as last scanned; empty where only the annotation of a former daemon tells of it."""
    state: SlotState
    entries: tuple[Entry, ...] = ()
    """The entries in the annotation of a former daemon, until the device is found."""
    lost: str | None = None
    """The API server's time when it began to be held (RFC 3339, seconds), None while it is not, or where that is unknown."""
    in_socket: bool = False
    """Whether the ID belongs to the socket: another device in it with the same model is this one, in another socket it is not."""

    @property
    def is_twin(self) -> bool:
        """Whether the ID belongs to the socket because of another device with the same serial."""
        return self.in_socket and self.identity.is_portable

    def may_be(self, device: Device, identity: Identity) -> bool:
        """Return whether a device that has a registration of this one is this one, whatever its serial reads now.

        One that was away meanwhile is only in its place: what has its devnode removed and made again keeps its registration.
        """
        same = (is_untouched(before, device) for before in self.devices if before.key == device.key)
        return (self.state is SlotState.PRESENT and all(same)) or self.identity.is_in_place(identity)

    def is_among(self, devices: Iterable[Device]) -> bool:
        """Return whether one of these present devices is this one: it has a registration of it, or an entry of it names this device."""
        keys = {device.key for device in self.devices}
        return any(device.key in keys or any(_names(entry, device) for entry in self.entries) for device in devices)

    def may_be_listed_as(self, other: Slot) -> bool:
        """Return whether a slot of another resource may be this one, where only the annotation of a former daemon tells of it.

        It has the same ids, and the same socket where that tells it apart.
        """
        if other.devices:
            return False
        mine, its = (replace(each.identity, place="") for each in (self, other))
        moves = mine.is_portable and not (self.in_socket or other.in_socket)
        return mine.ids == its.ids if moves else mine.is_in_place(its)

    def found(self, devices: Sequence[Device]) -> Slot:
        """Return the slot with the present devices that its entries name, as it is unless each names another one in its socket.

        Its link names a device. Its devnode does so only where it has no link, and the stick no further devnode: its parts exchange them.
        """
        mine, subsystems = replace(self.identity, place=""), {entry.subsystem or TTY for entry in self.entries}
        here = [each for each in devices if each.subsystem in subsystems and mine.is_in_place(_identity_of(each))]
        alone = len(here) == len(self.entries)
        named = [
            device
            for entry in self.entries
            for device in here
            if (
                entry.link in map(listed_path, device.links)
                if entry.link
                else alone and entry.devnode == device.devnode
            )
        ]
        if not len({device.key for device in named}) == len(named) == len(self.entries) > 0:
            return self
        return replace(self, devices=tuple(sorted(named, key=_order)), state=SlotState.PRESENT)

    def is_other_kind_of(self, devices: Iterable[Device]) -> bool:
        """Return whether one of these present devices is the whole of a stick, and this one a part of it, or the reverse.

        A program that has one takes the other away. Either may be without a serial in its record.
        """
        whole = USB in {device.subsystem for device in self.devices} | {entry.subsystem for entry in self.entries}
        mine = replace(self.identity, place="")
        return any(
            (device.subsystem == USB) != whole and mine.may_be_in_place(_identity_of(device)) for device in devices
        )


def _names(entry: Entry, device: Device) -> bool:
    return leads_to(entry, device) and ids_of(entry) == ids_of(Entry.of(device))


def mark(entry: Entry, slot: Slot, publish: Publish) -> Entry:
    """Return an entry of the annotation with what the next daemon needs to give the device the same ID."""
    identity = slot.identity
    return replace(entry, id=slot.id, port=identity.socket, place=identity.place or None, publish=publish.value)


def recall(resource: str, entries: Iterable[Entry]) -> Iterator[Slot]:
    """Yield the slots that the annotation of a former daemon tells of."""
    marked: dict[str, tuple[Entry, ...]] = {}
    for entry in entries:
        if entry.id:
            marked[entry.id] = (*marked.get(entry.id, ()), entry)
    for name, listed in marked.items():
        entry = listed[-1]
        identity = Identity(
            vendor=entry.vendor,
            product=entry.product,
            serial=entry.serial,
            socket=entry.port or "",
            place=entry.place or "",
        )
        # The annotation has cut long texts: then nothing tells, and the device is known again in its socket alone.
        in_socket = name != identity.id(resource, in_socket=False)
        yield Slot(
            id=name,
            identity=identity,
            devices=(),
            state=SlotState.LINGERING,
            entries=listed,
            lost=entry.lost,
            in_socket=in_socket,
        )


class Slots:
    """The slots of one resource over time.

    They promise:

    - *the same stick keeps its ID*: while it is present, lingering or held, over restarts, and in another socket if it has a serial;
    - *another never gets it while it is held*: where it is unknown which of two it is, neither gets it.

    A newcomer gets the ID of a slot whose device is not present, if it

    1. has the same model in the same socket, or
    2. has the same model with a serial, is the only newcomer that has, and no present device has it; the slot is the only such one, and
       its ID does not belong to a socket. A serial that many devices share is none.

    A newcomer that may be the device of an absent slot (`_may_be_known`) has no slot: under another ID it would be given to a second pod.
    Otherwise it gets a new ID, which belongs to its socket if there is no serial or another known device has the same model: the
    newcomer's ID, never that of the older device.
    """

    def __init__(self, resource: str, unit: Count, recalled: Iterable[Slot] = ()) -> None:
        """Start with the slots that the annotation of a former daemon tells of; `unit` is what the resource counts."""
        self._resource, self.unit = resource, unit
        self._known = {slot.id: slot for slot in recalled}
        """By ID, those that departed last at the end."""
        self._asked: tuple[object, ...] = ()
        self._answer: tuple[Slot, ...] = ()

    def update(  # noqa: PLR0913 - what is known besides the devices, by keyword
        self,
        devices: tuple[Device, ...],
        counted: int,
        *,
        certain: bool,
        free: AbstractSet[str] | None = None,
        pending: Iterable[Device] = (),
        date: str = "",
    ) -> tuple[Slot, ...]:
        """Process a scan and return the slots: present, lingering and held ones.

        `counted` is the number that the resource advertises; it can be larger than the number of known devices. `free` are the IDs of
        which certainly no pod has the device, None where no pod can have any. Every other lost device stays, as all do after an uncertain
        scan. `pending` are devices that have not arrived yet. `date` is the API server's time in its last response, empty where it is
        unknown.
        """
        awaited = frozenset(_identity_of(device).ids for device in pending)
        asked = (devices, counted, certain, free, awaited)
        if asked != self._asked:
            self._observe(devices, awaited, certain=certain)
            self._asked, self._answer = asked, tuple(self._settle(counted, free if certain else frozenset(), date))
        return self._answer

    def _observe(
        self, devices: Sequence[Device], awaited: AbstractSet[tuple[str | None, ...]], *, certain: bool
    ) -> None:
        units = {unit: each for unit, each in _units(self.unit, devices) if certain or not self._is_part(unit, each)}
        by_key = {device.key: slot for slot in self._known.values() for device in slot.devices}
        ids = {
            unit: slot.id
            for unit, identity in units.items()
            for device in unit
            if (slot := by_key.get(device.key)) is not None and slot.may_be(device, identity)
        }
        new = {unit: identity for unit, identity in units.items() if unit not in ids}
        present = set(ids.values())
        absent = [slot for name, slot in self._known.items() if name not in present]
        self._depart(absent)
        sure = {unit for unit, identity in new.items() if certain and identity.ids not in awaited}
        ids |= self._returned(new, absent, sure)
        for unit, name in ids.items():
            known = replace(self._known[name], devices=unit, identity=units[unit], state=SlotState.PRESENT)
            self._known[name] = replace(known, entries=(), lost=None)
        self._add({unit: identity for unit, identity in new.items() if unit not in ids}, sure)

    def _is_part(self, unit: _Unit, identity: Identity) -> bool:
        """Return whether a known device has these devnodes and further ones. An uncertain scan that finds these alone did not find it."""
        keys = {device.key for device in unit}
        return any(
            keys < {device.key for device in slot.devices}
            or (len(unit) < len(slot.entries) and slot.identity.is_in_place(identity))
            for slot in self._known.values()
        )

    def _depart(self, absent: Iterable[Slot]) -> None:
        for slot in absent:
            if slot.state is SlotState.PRESENT:
                del self._known[slot.id]  # so that it comes last
                self._known[slot.id] = replace(slot, state=SlotState.LINGERING)

    def _returned(
        self, new: Mapping[_Unit, Identity], absent: Sequence[Slot], sure: AbstractSet[_Unit]
    ) -> dict[_Unit, str]:
        """Return the ID for each newcomer that is the device of an absent slot, by the cases of the class docstring.

        `sure` are those that have no twin that the scan may have missed, or that has not arrived yet: the others have not moved.
        """
        free, found = defaultdict[_Model, dict[str, Slot]](dict), dict[_Unit, str]()
        for slot in absent:
            free[slot.identity.model][slot.id] = slot
        for unit, identity in new.items():
            alike = free[identity.model]
            in_place = next((name for name, slot in alike.items() if slot.identity.is_in_place(identity)), None)
            if in_place is not None:
                del alike[in_place]
                found[unit] = in_place
        gone = {slot.id for slot in absent}
        taken = {slot.identity.model for name, slot in self._known.items() if name not in gone}
        taken |= {new[unit].model for unit in found}
        absent_models = Counter(slot.identity.model for slot in absent)
        moved = {
            unit: identity
            for unit, identity in new.items()
            # Between twins the socket decides, which only the record can tell.
            if identity.is_portable
            and unit in sure
            and unit not in found
            and (unit[0].complete or absent_models[identity.model] == 1)
        }
        models = Counter(identity.model for identity in moved.values() if identity.model not in taken)
        for unit, identity in moved.items():
            fits = [name for name, slot in free[identity.model].items() if not slot.in_socket]
            if len(fits) == models[identity.model] == 1:
                found[unit] = fits[0]
        return found

    def _add(self, new: Mapping[_Unit, Identity], sure: AbstractSet[_Unit]) -> None:
        """Give new IDs to the newcomers that are certainly the devices of no absent slots."""
        absent = [slot for slot in self._known.values() if slot.state is not SlotState.PRESENT]
        models = {slot.identity.model for slot in self._known.values()}
        for unit, identity in new.items():
            if _may_be_known(unit, identity, absent, certain=unit in sure):
                continue
            in_socket = identity.model in models or not identity.is_portable
            models.add(identity.model)
            ids = (identity.id(self._resource, in_socket=in_socket, salt=salt) for salt in itertools.count())
            name = next(name for name in ids if name not in self._known)
            self._known[name] = Slot(
                id=name, identity=identity, devices=unit, state=SlotState.PRESENT, in_socket=in_socket
            )

    def _settle(self, counted: int, free: AbstractSet[str] | None, date: str) -> Iterator[Slot]:
        """Yield the slots, and forget those that neither count nor may be held."""
        present = [slot for slot in self._known.values() if slot.state is SlotState.PRESENT]
        absent = [slot for slot in self._known.values() if slot.state is SlotState.LINGERING]
        gone = [slot for slot in self._known.values() if slot.state is SlotState.HELD]
        split = max(len(absent) - max(counted - len(present), 0), 0)
        kept, gone = absent[split:], [*gone, *absent[:split]] if free is not None else []
        held = (slot for slot in gone if slot.id not in (free or ()))
        lost = [replace(slot, state=SlotState.HELD, lost=slot.lost or date or None) for slot in held]
        self._known = {slot.id: slot for slot in (*present, *lost, *kept)}
        yield from sorted(present, key=lambda slot: natural(slot.devices[0].devnode))
        yield from (*kept, *lost)


def _may_be_known(unit: _Unit, identity: Identity, absent: Iterable[Slot], *, certain: bool) -> bool:
    """Return whether a newcomer may be the device of an absent slot.

    That is so without a udev record, which alone can tell its socket, and where a twin may be there (not `certain`).
    """
    alike = [slot for slot in absent if slot.identity.model == identity.model]
    if not certain and any(identity.is_portable and not slot.in_socket for slot in alike):
        return True
    return not unit[0].complete and any(not slot.identity.socket.startswith("/") for slot in alike)


def _order(device: Device) -> tuple[object, ...]:
    """Return what the devnodes of a device are sorted by, as a container has them."""
    return (device.interface or "", device.index, natural(device.devnode))


def _units(count: Count, devices: Sequence[Device]) -> Iterator[tuple[_Unit, Identity]]:
    """Yield the devices that a resource counts, each as its claimed devnodes in order, with its identity."""
    bodies: dict[str, list[Device]] = {}
    for device in sorted(devices, key=_order):
        bodies.setdefault(device.body, []).append(device)
    for unit in bodies.values():
        if count is Count.DEVICE:
            yield tuple(unit), _identity_of(unit[0])
        else:
            for device in unit:
                siblings = [each for each in unit if each.interface == device.interface]
                yield (device,), _identity_of(device, place=f"{device.interface or ''}:{siblings.index(device)}")


def _identity_of(device: Device, *, place: str = "") -> Identity:
    path = device.physical or device.devpath
    vendor, product = first_state(device.vendor, device.product)
    # The socket behind a hub (usb-0:1.4) looks as the interface of a device does (usb-0:1:1.4), which a whole device has not.
    socket = device.port if device.subsystem == USB or not device.port else _INTERFACE.sub("", device.port)
    return Identity(
        vendor=vendor,
        product=product,
        serial=device.serial,
        socket=socket or path,
        path=path,
        place=place,
    )
