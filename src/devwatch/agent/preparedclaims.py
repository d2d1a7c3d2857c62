"""The prepared claims of this node, with what outlives the daemon: the record of them, and the CDI files that containers start by."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from devwatch.core.claims import KnownDevice, PreparedClaim, administered, cdi_devices
from devwatch.core.errors import KubeletError
from devwatch.core.slots import Slot, SlotState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from devwatch.agent.claimreport import ClaimReport
    from devwatch.core.handover import Allocation
    from devwatch.core.inventory import Inventory

_RECORD, _FILES = "record", "files"
"""The subjects of reports about the record of claims and about the CDI files."""


class Record(Protocol):
    """The record of the prepared claims."""

    @property
    def is_intact(self) -> bool:
        """Whether the record on the disk is the one that was read or written last."""

    def read(self) -> tuple[tuple[PreparedClaim, ...], str]:
        """Return the claims, and what is wrong with the record. Raises `KubeletError` where it cannot be read."""

    def write(self, claims: Iterable[PreparedClaim]) -> None:
        """Write the record in one step. Raises `KubeletError`."""


class CdiFiles(Protocol):
    """The CDI files."""

    def update(self, wanted: Mapping[str, Mapping[str, Allocation]]) -> None:
        """Have exactly these CDI devices, by claim and name. Raises `KubeletError`."""


class ClaimFiles(Protocol):
    """What is kept on the disk."""

    @property
    def record(self) -> Record:
        """The record of the prepared claims."""

    @property
    def cdi(self) -> CdiFiles:
        """The CDI files."""


@dataclass(slots=True, kw_only=True)
class PreparedClaims:
    """The prepared claims. Record and files follow them, and the scan, whenever `synchronize` is called."""

    report: ClaimReport
    files: ClaimFiles | None = None
    """None until the record of a former daemon is read."""
    by_uid: dict[str, PreparedClaim] = field(default_factory=dict)
    """Those too that are not written yet."""
    known: dict[str, KnownDevice] = field(default_factory=dict)
    """Every device that was published since the start, by ID."""
    fault: str = ""
    """Why record or files are not what they should be, empty where they are."""
    _devnodes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The devnodes of the present devices, by ID."""
    _written: dict[str, PreparedClaim] | None = field(default_factory=dict)
    """The claims of the record on the disk; None after an attempt that failed, which is repeated also where no claim is left to record."""
    _asked: tuple[object, ...] = ()
    """The claims and devnodes that `_laid_out` is for."""
    _laid_out: dict[str, dict[str, Allocation]] = field(default_factory=dict)
    """The CDI devices of the claims, by UID and name."""

    @property
    def held(self) -> Mapping[str, frozenset[str]]:
        """The IDs of the devices that claims hold, by resource."""
        found: dict[str, set[str]] = {}
        for device in chain.from_iterable(claim.held for claim in self.by_uid.values()):
            found.setdefault(device.known.resource, set()).add(device.id)
        return {resource: frozenset(ids) for resource, ids in found.items()}

    def administered(self, namespace: str, name: str) -> frozenset[str] | None:
        """Return the IDs of the devices that the claim of this name has without a hold, None where it is not recorded.

        So it is with the claims of a record that was damaged or removed.
        """
        references = {(each.reference.namespace, each.reference.name) for each in self.by_uid.values()}
        return administered(self.by_uid.values(), namespace, name) if (namespace, name) in references else None

    def recall(self) -> Mapping[str, tuple[Slot, ...]]:
        """Return by resource the slots that the claims tell of: their devices keep their IDs."""
        found: dict[str, dict[str, Slot]] = {}
        for device in chain.from_iterable(claim.held for claim in self.by_uid.values()):
            known = device.known
            found.setdefault(known.resource, {})[device.id] = Slot(
                id=device.id,
                identity=known.identity,
                devices=(),
                state=SlotState.LINGERING,
                in_socket=known.in_socket,
            )
        return {name: tuple(slots.values()) for name, slots in found.items()}

    def load(self, connect: Callable[[], ClaimFiles]) -> tuple[PreparedClaim, ...]:
        """Read the record of a former daemon, and return its claims; where that fails, `files` stays None."""
        try:
            files = connect()
            claims, damage = files.record.read()
        except KubeletError as error:
            self._fail(_RECORD, error)
            return ()
        if damage:
            hint = "delete the pods with claims whose containers do not start again"
            self.report.lost(_RECORD, KubeletError(damage, hint=hint))
        self.files, self.fault = files, ""
        self.by_uid = {claim.reference.uid: claim for claim in claims}
        self._written = dict(self.by_uid)
        self.known = {device.id: device.known for claim in claims for device in claim.devices}
        return claims

    def recognize(self, slots: Mapping[str, Sequence[Slot]], inventory: Inventory) -> None:
        """Note where the devices of the claims are, as far as that is certain before the Node was observed: those in their sockets.

        Its annotation tells twins apart, and so what has moved.
        """
        recorded = {(each.id, each.known.identity) for claim in self.by_uid.values() for each in claim.devices}
        known = {name: [slot for slot in each if (slot.id, slot.identity) in recorded] for name, each in slots.items()}
        self._devnodes = dict(_devnodes_of(known, inventory))

    def observe(self, slots: Mapping[str, Sequence[Slot]], inventory: Inventory, paths: Mapping[str, str]) -> None:
        """Note where the devices are, and what the record has to know of them; `paths` are those in containers, by resource.

        After an uncertain scan the devnodes of a device that it did not find stay, unless another device has one of them by now. A device
        of which a further devnode is about to arrive waits for that: its devnodes are numbered.
        """
        taken = {device.devnode for device in (*inventory.present, *inventory.pending)}
        former, self._devnodes = self._devnodes, dict(_devnodes_of(slots, inventory))
        for resource, slot in ((name, slot) for name, each in slots.items() for slot in each):
            self._know(resource, slot, paths.get(resource, ""))
            if slot.state is not SlotState.PRESENT and inventory.doubts and not taken & set(former.get(slot.id, ())):
                self._devnodes[slot.id] = former.get(slot.id, ())

    def _know(self, resource: str, slot: Slot, path: str) -> None:
        """Note a device; the path of a resource that is not configured any more stays."""
        before = self.known.get(slot.id)
        if path := path or (before.path if before else ""):
            self.known[slot.id] = KnownDevice(
                resource=resource, path=path, identity=slot.identity, in_socket=slot.in_socket
            )

    def synchronize(self) -> None:
        """Make record and files agree with the claims, and set `fault`."""
        if self.files is None:
            return
        self.by_uid = {uid: self._refreshed(claim) for uid, claim in self.by_uid.items()}
        self.fault = ""
        with self._reporting(_RECORD):
            if self.by_uid != self._written or not self.files.record.is_intact:
                self._written = None
                self.files.record.write(self.by_uid.values())
                self._written = dict(self.by_uid)
                self.report.restored(_RECORD)
        with self._reporting(_FILES):
            self.files.cdi.update(self._lay_out())
            self.report.restored(_FILES)

    def _lay_out(self) -> Mapping[str, Mapping[str, Allocation]]:
        """Return the CDI devices of the claims. Most scans change neither claims nor devnodes."""
        asked = (self.by_uid.copy(), self._devnodes)
        if asked != self._asked:
            self._asked = asked
            self._laid_out = {uid: cdi_devices(claim, self._devnodes) for uid, claim in self.by_uid.items()}
        return self._laid_out

    def _refreshed(self, claim: PreparedClaim) -> PreparedClaim:
        """Return a claim with what is known of its devices by now: another path, or another socket."""
        if all(self.known.get(device.id, device.known) == device.known for device in claim.devices):
            return claim
        devices = tuple(replace(device, known=self.known.get(device.id, device.known)) for device in claim.devices)
        return replace(claim, devices=devices)

    @contextlib.contextmanager
    def _reporting(self, subject: str) -> Iterator[None]:
        try:
            yield
        except KubeletError as error:
            self._fail(subject, error)

    def _fail(self, subject: str, error: KubeletError) -> None:
        self.fault = self.fault or error.advice
        self.report.lost(subject, error)


def _devnodes_of(slots: Mapping[str, Iterable[Slot]], inventory: Inventory) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the present devices by ID, each with its devnodes; none of which a further devnode is about to arrive."""
    incomplete = {device.body for device in inventory.pending}
    for slot in chain.from_iterable(slots.values()):
        if slot.state is SlotState.PRESENT and not any(device.body in incomplete for device in slot.devices):
            yield slot.id, tuple(device.devnode for device in slot.devices)
