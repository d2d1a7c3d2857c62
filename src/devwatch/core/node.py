"""The part of a Node that devwatch reads and writes, as values: observed states and patches."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

from devwatch.core.listing import parse_listing

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from devwatch.core.listing import Listing

ANNOTATION = "devwatch.io/devices"
FIELD_MANAGER = "devwatch"
MAPS = ("capacity", "allocatable")
"""The two maps of a Node's status that hold counts."""

Part = str
"""The unit that is written, refused or contested: the counts of a resource, by its name, or the annotation."""
ANNOTATION_PART: Final = "annotation"
"""The part for the annotation; without a slash, so that no extended resource has this name."""

_QUANTITY = re.compile(r"(\d{1,19})([kMGTPE]|[KMGTPE]i|[eE]\d{1,2})?", re.ASCII)
_POWERS = {sign: power for power, sign in enumerate("kMGTPE", start=1)}
_SCALES = {"": 1} | {sign: 1000**power for sign, power in _POWERS.items()}
_SCALES |= {f"{sign.upper()}i": 1024**power for sign, power in _POWERS.items()}


def quantity(text: str | None) -> int | None:
    """Return a whole quantity (`3`, `1k`, `2e3`, `1Ki`) as a number, None for anything else.

    Fractions need no support: the API server responds in the canonical form, which has none where a smaller suffix avoids it. Values are at
    most 2**63 - 1 (apimachinery, `resource.Quantity`).
    """
    match = _QUANTITY.fullmatch(text or "")
    if match is None:
        return None
    digits, suffix = match[1], match[2] or ""
    scale: int = _SCALES[suffix] if suffix in _SCALES else 10 ** int(suffix[1:])
    return int(digits) * scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """A field manager of a key, as the server records it (metav1.ManagedFieldsEntry)."""

    manager: str
    time: str
    """When it wrote last (RFC 3339)."""
    operation: str = "Update"
    subresource: str = "status"
    """The subresource; servers before 1.22 record none, which counts as `status`."""
    maps: frozenset[str] = frozenset(MAPS)
    """The maps of the two in which it wrote the key."""

    @property
    def ours(self) -> bool:
        """Whether devwatch wrote it, according to the record, which any client with permission to patch nodes can forge."""
        return (self.manager, self.operation, self.subresource) == (FIELD_MANAGER, "Update", "status")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """An observed Node; the default is an empty one."""

    uid: str = ""
    version: int = 0
    """`metadata.resourceVersion`; greater is newer (kubelet, `isNewer`)."""
    capacity: Mapping[str, str] = field(default_factory=dict)
    allocatable: Mapping[str, str] = field(default_factory=dict)
    annotation: str | None = None
    writers: Mapping[str, tuple[Writer, ...]] = field(default_factory=dict)
    """By part: its field managers, where the server records them."""

    @property
    def believed(self) -> bool:
        """Whether the annotation was written by devwatch: exactly one entry of managedFields has it, and that is devwatch's."""
        writers = self.writers.get(ANNOTATION_PART, ())
        return len(writers) == 1 and writers[0].ours

    def removable(self, name: str, *, kubelet: bool = False) -> bool:
        """Return whether devwatch, or with `kubelet` the kubelet, wrote the key in each map that has it: then devwatch may remove it."""
        managers = {FIELD_MANAGER, "kubelet"} if kubelet else {FIELD_MANAGER}
        ours = {part for writer in self.writers.get(name, ()) if writer.manager in managers for part in writer.maps}
        return all(part in ours for part in MAPS if name in getattr(self, part))

    def supersedes(self, held: NodeState | None) -> bool:
        """Return whether this observation replaces the held one: another Node, or the same one in a state that is not older."""
        return held is None or self.uid != held.uid or self.version >= held.version

    def reflects(self, patch: NodePatch) -> bool:
        """Return whether everything that a patch writes is present."""
        counts = all(self.shows(name, count) for name, count in patch.counts.items())
        return counts and patch.annotation in {self.annotation, UNTOUCHED}

    def count(self, name: str) -> int:
        """Return the capacity of a resource; 0 where it is absent or not a whole number."""
        return quantity(self.capacity.get(name)) or 0

    def shows(self, name: str, count: Amounts | None) -> bool:
        """Return whether the two maps hold exactly this count, or, for None, no such key."""
        capacity, allocatable = self.capacity.get(name), self.allocatable.get(name)
        if count is None:
            return capacity is None and allocatable is None
        return (quantity(capacity), quantity(allocatable)) == (count.capacity, count.allocatable)

    def amounts(self, name: str) -> Amounts:
        """Return both figures of a resource; 0 where one is absent or not a whole number."""
        capacity, allocatable = (quantity(figures.get(name)) or 0 for figures in (self.capacity, self.allocatable))
        return Amounts(capacity=capacity, allocatable=allocatable)

    def value(self, part: Part) -> object:
        """Return the observed value of a part."""
        return self.annotation if part == ANNOTATION_PART else (self.capacity.get(part), self.allocatable.get(part))

    def listing(self) -> Listing:
        """Return the devices that the annotation lists, whichever client wrote it; none for malformed content."""
        return parse_listing(self.annotation or "")

    def memory(self) -> Listing:
        """Return the devices that the annotation lists if it is believed; its keys are the resources that devwatch owns."""
        return self.listing() if self.believed else {}


class _Untouched(Enum):
    UNTOUCHED = "untouched"


UNTOUCHED: Final = _Untouched.UNTOUCHED
"""The annotation of a patch that does not write it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """The figures of a resource in the two maps of a Node's status."""

    capacity: int
    allocatable: int

    @classmethod
    def of(cls, number: int) -> Amounts:
        """Return the same number for both maps."""
        return cls(capacity=number, allocatable=number)

    @property
    def brief(self) -> int | str:
        """One number where both are equal, else such as `1 of 2`."""
        equal = self.allocatable == self.capacity
        return self.capacity if equal else f"{self.allocatable} of {self.capacity}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePatch:
    """A patch of a Node; an empty one is a read that needs no further permission."""

    counts: Mapping[str, Amounts | None] = field(default_factory=dict)
    """By resource name; None removes the key from both maps."""
    annotation: str | Literal[_Untouched.UNTOUCHED] | None = UNTOUCHED
    """The new annotation; None removes it."""

    def __bool__(self) -> bool:
        """Return whether it writes anything."""
        return bool(self.counts) or self.annotates

    @property
    def annotates(self) -> bool:
        """Whether it writes the annotation."""
        return self.annotation is not UNTOUCHED

    @property
    def parts(self) -> frozenset[Part]:
        """The parts that it writes."""
        return frozenset(self.counts) | ({ANNOTATION_PART} if self.annotates else set())

    def value(self, part: Part) -> object:
        """Return the value that it writes to one of its parts."""
        return self.annotation if part == ANNOTATION_PART else self.counts[part]

    def only(self, parts: Container[Part]) -> NodePatch:
        """Return the patch reduced to these parts."""
        counts = {name: count for name, count in self.counts.items() if name in parts}
        return NodePatch(counts=counts, annotation=self.annotation if ANNOTATION_PART in parts else UNTOUCHED)

    def then(self, later: NodePatch) -> NodePatch:
        """Return one patch with the effect of this patch and, after it, of `later`."""
        annotation = later.annotation if later.annotates else self.annotation
        return NodePatch(counts={**self.counts, **later.counts}, annotation=annotation)

    def body(self) -> dict[str, object]:
        """Return the strategic-merge patch of `nodes/status`, in which null removes a key."""
        body: dict[str, object] = {}
        if self.counts:
            body["status"] = {part: self._map(part) for part in MAPS}
        if self.annotates:
            body["metadata"] = {"annotations": {ANNOTATION: self.annotation}}
        return body

    def _map(self, part: str) -> dict[str, str | None]:
        return {
            name: None if count is None else str(getattr(count, part)) for name, count in sorted(self.counts.items())
        }

    def applied(self, state: NodeState) -> NodeState:
        """Return the Node as an API server would return it after this patch."""
        ours = (Writer(manager=FIELD_MANAGER, time=""),)
        return replace(
            state,
            capacity=_merged(state.capacity, self._map("capacity")),
            allocatable=_merged(state.allocatable, self._map("allocatable")),
            annotation=state.annotation if self.annotation is UNTOUCHED else self.annotation,
            writers={**state.writers, **dict.fromkeys(self.parts, ours)},
        )


def _merged(held: Mapping[str, str], written: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in {**held, **written}.items() if value is not None}
