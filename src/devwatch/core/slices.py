"""Decide which ResourceSlice a node publishes for dynamic resource allocation (`publish: dra`), and what to write next.

The types are those of resource.k8s.io/v1; see Kubernetes, "Dynamic Resource Allocation".
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from devwatch.core.device import TTY
from devwatch.core.names import DRIVER, UNPLUGGED
from devwatch.core.slots import SlotState
from devwatch.core.text import blank

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.core.slots import Slot

MAX_DEVICES = 64
"""Devices of a slice in which one has a taint (`ResourceSliceMaxDevicesWithAdvancedFeatures`)."""
MAX_ATTRIBUTE = 64
"""Bytes of a text attribute (`DeviceAttributeMaxValueLength`)."""
_MAX_NAME = 253
"""Characters of a slice's name: a DNS subdomain (RFC 1123)."""
_DIGITS = 10
"""Hex digits of the digest in a name that had to be cut."""


def slice_name(node: str) -> str:
    """Return the name of the slice and of the pool of a node."""
    name = f"{node}-{DRIVER}"
    if len(name) <= _MAX_NAME:
        return name
    end = f"-{hashlib.sha256(node.encode()).hexdigest()[:_DIGITS]}-{DRIVER}"
    return node[: _MAX_NAME - len(end)].rstrip("-.") + end


@dataclass(frozen=True, slots=True, kw_only=True)
class Taint:
    """A taint of a device (DeviceTaint)."""

    key: str = UNPLUGGED
    value: str = ""
    effect: str = "NoSchedule"
    time: str = ""
    """When it was added (RFC 3339), empty where the API server is to set it: a write without it sets it again."""

    @property
    def is_ours(self) -> bool:
        """Whether it is the taint that devwatch writes."""
        return self == Taint(time=self.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceDevice:
    """A device of a slice."""

    name: str
    """The ID of the slot."""
    attributes: Mapping[str, str | None]
    """None for a value that is not text, which devwatch never writes."""
    taints: tuple[Taint, ...] = ()
    has_more: bool = False
    """Whether it has a field that devwatch never writes and that changes to whom it is given, such as to several claims at once."""

    @property
    def can_be_allocated(self) -> bool:
        """Whether the scheduler may give the device to a claim that does not tolerate devwatch's taint."""
        return not any(taint.is_ours for taint in self.taints)

    def body(self) -> dict[str, object]:
        """Return the device as the API has it."""
        attributes = {name: {"string": value} for name, value in self.attributes.items()}
        body: dict[str, object] = {"name": self.name, "attributes": attributes}
        if self.taints:
            body["taints"] = [_taint_body(taint) for taint in self.taints]
        return body


def _taint_body(taint: Taint) -> dict[str, str]:
    time = {"timeAdded": taint.time} if taint.time else {}
    return {"key": taint.key, "effect": taint.effect, **time}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A ResourceSlice of this driver on one node."""

    name: str
    node: str
    pool: str
    generation: int
    devices: tuple[SliceDevice, ...]
    """By name."""
    owners: tuple[Mapping[str, object], ...]
    """The ownerReferences."""
    slices: int = 1
    """The number of slices of the pool (`resourceSliceCount`)."""
    uid: str = ""
    """Empty for a slice that is to be created."""
    version: str = ""
    """The resourceVersion, empty for a slice that is to be created."""

    @property
    def names(self) -> frozenset[str]:
        """The names of the devices."""
        return frozenset(device.name for device in self.devices)

    @property
    def lost(self) -> tuple[str, ...]:
        """The names of the devices that have devwatch's taint."""
        return tuple(device.name for device in self.devices if not device.can_be_allocated)

    def offers(self, resource: str) -> bool:
        """Return whether the scheduler may allocate a device of a resource."""
        return any(each.can_be_allocated and each.attributes.get("resource") == resource for each in self.devices)

    @property
    def content(self) -> tuple[object, ...]:
        """What devwatch decides about a slice: equal for two writes of the same desired state, whenever a taint was added."""
        return (*self.untainted, self.lost)

    @property
    def untainted(self) -> tuple[object, ...]:
        """The content without the taints."""
        return (self.pool, self.owners, tuple(replace(device, taints=()) for device in self.devices))

    def is_older_than(self, other: Slice) -> bool:
        """Return whether this is an earlier state than `other`; resourceVersions of one API server are compared as integers."""
        return self.version.isdecimal() and other.version.isdecimal() and int(self.version) < int(other.version)

    def body(self) -> dict[str, object]:
        """Return the object to create, or to replace the one with this version by."""
        metadata: dict[str, object] = {"name": self.name, "ownerReferences": list(self.owners)}
        if self.version:
            metadata |= {"uid": self.uid, "resourceVersion": self.version}
        pool = {"name": self.pool, "generation": self.generation, "resourceSliceCount": self.slices}
        devices = [device.body() for device in self.devices]
        spec = {"driver": DRIVER, "nodeName": self.node, "pool": pool, "devices": devices}
        return {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": metadata, "spec": spec}


class Operation(enum.Enum):
    """What a write does."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """The next request: the slice as it shall be, or the one to delete."""

    operation: Operation
    slice: Slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The devices that a node shall publish."""

    node: str
    node_uid: str
    devices: tuple[SliceDevice, ...]
    """By name."""

    def next_write(self, observed: Mapping[str, Slice]) -> Write | None:
        """Return the write that brings the slices of this driver and node closer to the desired state, None where they agree.

        The cases, in this order:

        1. A slice of the right name in another pool, which the API does not let be changed: delete it.
        2. No slice, or one with other devices, owners or numbers: create it, or replace it.
        3. Any other slice: delete it. It comes last, so that the devices are never away: a pool with a higher generation hides it.
        """
        name = slice_name(self.node)
        own = observed.get(name)
        others = [each for each in observed.values() if each.name != name]
        if own is not None and own.pool != name:
            return Write(operation=Operation.DELETE, slice=own)
        desired = self._slice(name, own, [each.generation for each in others if each.pool == name])
        if desired != own:
            return Write(operation=Operation.CREATE if own is None else Operation.UPDATE, slice=desired)
        return Write(operation=Operation.DELETE, slice=others[0]) if others else None

    def _slice(self, name: str, own: Slice | None, rivals: Sequence[int]) -> Slice:
        """Return the desired slice. Its generation rises with the list of names, and above that of the `rivals` in its pool."""
        owner = {"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": self.node_uid}
        desired = Slice(name=name, node=self.node, pool=name, generation=1, devices=self.devices, owners=(owner,))
        highest = max(rivals, default=0)
        if own is None:
            return replace(desired, generation=highest + 1)
        kept = own.names == desired.names and own.generation > highest
        generation = own.generation if kept else max(own.generation, highest) + 1
        return replace(desired, generation=generation, uid=own.uid, version=own.version)


def removal(observed: Mapping[str, Slice]) -> Write | None:
    """Return the next write where no resource is published by slices, None where no slice exists."""
    return next((Write(operation=Operation.DELETE, slice=each) for each in observed.values()), None)


def select_slots(
    slots: Mapping[str, Sequence[Slot]], listed: AbstractSet[str], *, held: Collection[str], taints: bool | None
) -> list[tuple[str, Slot]]:
    """Return the slots to publish, each with its resource: the most important ones first, and more than a slice may have.

    `listed` are the IDs in the observed slice, `held` those of which a pod has the device. `taints` is whether the API server stores
    taints, None where that is unknown. Where it does not, a lost device leaves; where it is unknown, none is added: it could be allocated.
    """

    def stays(slot: Slot) -> bool:
        return slot.state is not SlotState.HELD or bool(taints) or (taints is None and slot.id in listed)

    def rank(pair: tuple[str, Slot]) -> tuple[bool, bool, str]:
        slot = pair[1]
        return (slot.state is not SlotState.HELD and slot.id not in held, slot.id not in listed, slot.id)

    return sorted(((name, slot) for name, each in slots.items() for slot in each if stays(slot)), key=rank)


def devices_of(pairs: Iterable[tuple[str, Slot]], observed: Slice | None) -> tuple[SliceDevice, ...]:
    """Return the devices of a slice, by name. What is observed of a device supplies the time of its taint."""
    before = {device.name: device for device in observed.devices} if observed else {}
    devices = (_device_of(name, slot, before.get(slot.id)) for name, slot in pairs)
    return tuple(sorted(devices, key=lambda device: device.name))


def _device_of(resource: str, slot: Slot, before: SliceDevice | None) -> SliceDevice:
    attributes: Mapping[str, str | None] = dict(_attributes(resource, slot))
    if before and not slot.devices:
        # Only the annotation of a former daemon tells of the device: the slice has more.
        attributes = {name: before.attributes.get(name) or value for name, value in attributes.items()}
    if slot.state is not SlotState.HELD:
        return SliceDevice(name=slot.id, attributes=attributes)
    taint = next((taint for taint in before.taints if taint.is_ours), Taint()) if before else Taint()
    return SliceDevice(name=slot.id, attributes=attributes, taints=(taint,))


def _attributes(resource: str, slot: Slot) -> Iterator[tuple[str, str]]:
    """Yield the attributes of a device. An absent one is empty: CEL treats a missing attribute as an error, for all devices of the node."""
    first = slot.devices[0] if slot.devices else None
    texts = {
        "interface": first and first.interface,
        "model": first and (first.properties or {}).get("ID_MODEL"),
        "port": first.port if first else slot.identity.socket,
        "product": slot.identity.product,
        "resource": resource,
        "serial": slot.identity.serial,
        "subsystem": _subsystem(slot),
        "vendor": slot.identity.vendor,
    }
    for name, text in texts.items():
        yield name, _fitted(text or "")


def _subsystem(slot: Slot) -> str:
    """Return the subsystem of a device, as its devnode or the annotation of a former daemon tells it."""
    named = (*(device.subsystem for device in slot.devices), *(entry.subsystem for entry in slot.entries))
    return next(filter(None, named), TTY)


def _fitted(text: str) -> str:
    """Return a text without control characters and unpaired surrogates, cut to `MAX_ATTRIBUTE` bytes of UTF-8."""
    return blank(text).encode()[:MAX_ATTRIBUTE].decode("utf-8", "ignore")


def is_allocatable(name: str, observed: Iterable[Slice]) -> bool:
    """Return whether some slice lets the scheduler allocate the device of this name."""
    devices = chain.from_iterable(each.devices for each in observed)
    return any(device.name == name and device.can_be_allocated for device in devices)
