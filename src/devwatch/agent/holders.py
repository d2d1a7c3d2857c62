"""Read which pods hold the devices of an incident, where the kubelet hands them over."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from devwatch.core.errors import ApiError, KubeletError, Retry
from devwatch.core.holders import held_ids, holders_of, unproved
from devwatch.core.incidents import Loss
from devwatch.core.slots import SlotState
from devwatch.core.task import Task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Mapping, Sequence

    from devwatch.agent.clock import Clock
    from devwatch.agent.report import Log
    from devwatch.core.holders import Holding
    from devwatch.core.incidents import Return
    from devwatch.core.pods import Holders, Pod
    from devwatch.core.slots import Slot


READ_INTERVAL = 1.0
"""Seconds between two readings of the holders while a device is absent."""


class HoldersApi(Protocol):
    """The kubelet's knowledge of which pod has which device."""

    async def holdings(self) -> tuple[Holding, ...]:
        """Return which pods hold devices. Raises `KubeletError`."""

    def can_allocate(self, resource: str, ids: frozenset[str]) -> bool:
        """Return whether the kubelet may still give one of these devices to a pod."""


@dataclass(slots=True, kw_only=True)
class HolderReader:
    """The holders of each incident, as last read."""

    kubelet: HoldersApi | None = None
    """None where no device is handed over."""
    _holders: dict[tuple[object, ...], Holders] = field(default_factory=dict)

    def of(self, incident: Loss | Return) -> Holders | None:
        """Return the containers that had the devices when they were read; None where the kubelet does not hand them over."""
        return self._holders.get(incident.key, frozenset()) if incident.ids else None

    def can_read(self, incident: Loss | Return) -> bool:
        """Return whether the holders can be read: those of a lost device only once the kubelet cannot give it to a pod any more."""
        if self.kubelet is None or not isinstance(incident, Loss):
            return True
        return not self.kubelet.can_allocate(incident.resource, incident.ids)

    def keep(self, keys: Container[object]) -> None:
        """Forget the holders of all other incidents."""
        self._holders = {key: each for key, each in self._holders.items() if key in keys}

    async def read(self, incident: Loss | Return, pods: Callable[[], Awaitable[list[Pod]]]) -> list[Pod]:
        """Return the pods of the node, and read the holders between two lists of them.

        Raises `Retry` where the reading proves nothing yet, and any other `ApiError`.
        """
        before = await pods()
        if not incident.ids:
            return before
        if self.kubelet is None:
            raise Retry("the kubelet hands over no device here, so it does not say who has one")
        try:
            holdings = await self.kubelet.holdings()
        except KubeletError as error:
            raise Retry(str(error)) from error
        after = await pods()
        holders = holders_of(incident, holdings)
        fault = unproved(incident, holders, before, after)
        if not fault and held_ids(incident.resource, holdings, after) is None:
            fault = "the kubelet does not account yet for every pod that requests the resource"
        if fault:
            raise Retry(fault)
        self._holders[incident.key] = holders
        return after


@dataclass(slots=True, kw_only=True)
class HeldDevices:
    """Which devices a pod has, as far as that is known: read only while a device is absent, since what no pod holds leaves the list."""

    holdings: Callable[[], Awaitable[Sequence[Holding]]]
    """Returns which pods hold devices, and raises a `KubeletError`."""
    pods: Callable[[], Awaitable[Sequence[Pod]]]
    """Lists the pods of the node, and raises an `ApiError`."""
    log: Log
    clock: Clock
    ids: Mapping[str, frozenset[str] | None] = field(default_factory=dict)
    """By resource: the IDs of which a pod has the device, None where that is unknown."""
    _absent: frozenset[str] = frozenset()
    _read_at: float = math.inf

    def observe(self, slots: Mapping[str, Sequence[Slot]], now: float) -> None:
        """Process the slots of all resources: a device that is absent since the last scan makes a reading due."""
        absent = frozenset(
            slot.id for slot in chain.from_iterable(slots.values()) if slot.state is not SlotState.PRESENT
        )
        new = bool(absent - self._absent)
        if new:
            self._read_at = now
        # A reading from before a device was absent does not tell who has it.
        if new or not absent or self.ids.keys() != slots.keys():
            self.ids = dict.fromkeys(slots)
        self._absent = absent

    def action(self, now: float) -> Task | None:
        """Return the reading that is due, None for none."""
        return Task(run=self._read, patience=0.0) if self._absent and now >= self._read_at else None

    def due(self, _now: float) -> float | None:
        """Return when to read next, None for never."""
        return self._read_at if self._absent else None

    async def _read(self) -> None:
        """Read the holders. The list of pods that follows shows whether the kubelet has accounted for every pod."""
        self._read_at = self.clock.now() + READ_INTERVAL
        try:
            holdings = await self.holdings()
            # That a pod has a device needs no list: it may live for days with a lost one.
            if self._absent <= frozenset().union(*(each.ids for each in holdings)):
                self.ids = {
                    name: frozenset().union(*(each.ids for each in holdings if each.resource == name))
                    for name in self.ids
                }
                return
            pods = await self.pods()
        except (KubeletError, ApiError) as error:
            self.ids = dict.fromkeys(self.ids)
            self.log.debug("pods.unlisted", error=str(error))
        else:
            self.ids = {name: held_ids(name, holdings, pods) for name in self.ids}
