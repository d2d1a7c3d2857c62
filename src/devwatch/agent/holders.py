"""Read which pods hold the devices of an incident, where the kubelet hands them over."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from devwatch.core.backoff import Backoff
from devwatch.core.errors import ApiError, Forbidden, KubeletError, Retry
from devwatch.core.handover import held_elsewhere
from devwatch.core.holders import held_ids, holders_of, unproved, untold
from devwatch.core.incidents import Loss
from devwatch.core.repeat import RepeatFilter
from devwatch.core.slots import SlotState
from devwatch.core.task import Task
from devwatch.core.way import joined

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Container, Iterable, Mapping, Sequence

    from devwatch.agent.clock import Clock
    from devwatch.agent.report import Log
    from devwatch.core.holders import Holding
    from devwatch.core.incidents import Return
    from devwatch.core.plan import Figures
    from devwatch.core.pods import Holders, Pod
    from devwatch.core.slots import Slot


UNACCOUNTED = "the kubelet does not account yet for every pod that requests the resource"
READ_INTERVAL = 1.0
"""Seconds from the end of a reading of the holders to the next one, while a device is absent."""
READ_LIMIT = 10.0
"""Seconds between two readings, at most, of which the last ones did not tell of every device: each is a list of the pods."""
LASTING = 5
"""Readings that fail, one after the other, before that is reported: a kubelet or an API server that starts again needs seconds."""


class HoldersApi(Protocol):
    """The kubelet's knowledge of which pod has which device."""

    async def holdings(self) -> tuple[Holding, ...]:
        """Return which pods hold devices. Raises `KubeletError`."""

    def can_allocate(self, resource: str, ids: frozenset[str]) -> bool:
        """Return whether one of these devices may still be given to a pod."""

    def is_claimed(self, resource: str) -> bool:
        """Return whether ResourceClaims give the devices of a resource to pods."""

    def spared(self, ids: frozenset[str]) -> frozenset[tuple[str, str]]:
        """Return the claims, by namespace and name, that tolerate the loss of these devices."""


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
        spared = self.kubelet.spared(incident.ids) if isinstance(incident, Loss) else frozenset()
        holders = holders_of(incident, (each for each in holdings if (each.namespace, each.claim) not in spared))
        fault = untold(incident, holdings) or unproved(incident, holders, before, after)
        if not fault and not self._is_complete(incident, holdings, after):
            fault = UNACCOUNTED
        if fault:
            raise Retry(fault)
        self._holders[incident.key] = holders
        return after

    def _is_complete(self, incident: Loss | Return, holdings: Collection[Holding], pods: Iterable[Pod]) -> bool:
        """Return whether no pod can be missing among the holders that were read.

        A device plugin gives a device to one pod, so the others need not be accounted for: a pod that has had its devices in an init
        container alone never is (PodResources `List` shows no such container). Several pods may share a claim.
        """
        claimed = bool(self.kubelet and self.kubelet.is_claimed(incident.resource))
        given = frozenset().union(*(each.ids for each in holdings if each.resource == incident.resource))
        return (not claimed and incident.ids <= given) or held_ids(
            incident.resource, holdings, pods, claimed=claimed
        ) is not None


@dataclass(slots=True, kw_only=True)
class HeldDevices:
    """Which absent devices certainly no pod has: read only while a device is absent, since what no pod has leaves the list."""

    holdings: Callable[[], Awaitable[Sequence[Holding]]]
    """Returns which pods have devices, and raises a `KubeletError`."""
    claimed: Callable[[frozenset[str]], frozenset[str]]
    """Returns those of these devices that a prepared claim has."""
    pods: Callable[[], Awaitable[Sequence[Pod]]]
    """Lists the pods of the node, and raises an `ApiError`."""
    can_allocate: Callable[[str, frozenset[str]], bool]
    """Returns whether the kubelet may still give one of these devices of a resource to a pod."""
    log: Log
    clock: Clock
    free: frozenset[str] = frozenset()
    """The IDs of the absent devices that certainly no pod has."""
    _absent: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By resource: the IDs of the absent devices."""
    _lost: frozenset[str] = frozenset()
    """The IDs of those that are not offered any more."""
    _asked: frozenset[str] = frozenset()
    """The IDs that the reading tells of: one from before a device was absent does not tell who has it, nor does one from before the kubelet
    has taken over that it is not offered any more."""
    _last: Sequence[Holding] = ()
    """The last reading."""
    _doubt: str = ""
    """Why the last reading does not tell of every device, empty where it does."""
    _read_at: float = math.inf
    _ended: float = -math.inf
    """When the last reading ended."""
    _failures: int = 0
    """The readings that have failed since the last one that did not."""
    _backoff: Backoff = field(default_factory=lambda: Backoff(first=READ_INTERVAL, limit=READ_LIMIT))
    _filter: RepeatFilter = field(default_factory=RepeatFilter)
    _by_claim: Container[str] = ()

    def observe(self, slots: Mapping[str, Sequence[Slot]], now: float, *, by_claim: Container[str] = ()) -> None:
        """Process the slots of all resources: a device that is absent since the last scan makes a reading due.

        The devices of the resources `by_claim` are given to pods by ResourceClaims.
        """
        before, self._by_claim = _all(self._absent.values()), by_claim
        self._absent = {
            name: frozenset(slot.id for slot in own if slot.state is not SlotState.PRESENT)
            for name, own in slots.items()
        }
        self._lost = frozenset(slot.id for slot in chain.from_iterable(slots.values()) if slot.state is SlotState.HELD)
        absent = _all(self._absent.values())
        if absent - before:
            self._backoff.succeed()
            self._read_at = now
        # A lingering device that has been offered since the last reading may be given to a pod.
        offered = frozenset(
            each
            for name, ids in self._absent.items()
            for each in ids - self._lost
            if self.can_allocate(name, frozenset({each}))
        )
        self.free &= absent - offered
        self._asked &= absent - offered

    def elsewhere(self, figures: Figures, slots: Mapping[str, Sequence[Slot]]) -> dict[str, dict[str, tuple[str, str]]]:
        """Return by resource the present devices that a pod may have under another name (`held_elsewhere`); `slots` are of all names."""
        others = [
            (name, slot)
            for name, own in slots.items()
            for slot in own
            if slot.state is not SlotState.PRESENT and slot.id not in self.free
        ]
        return {
            name: held_elsewhere(figure.slots, [other for other in others if other[0] != name])
            for name, figure in figures.by_name.items()
        }

    def reasons(self, held: Mapping[str, Mapping[str, tuple[str, str]]]) -> dict[str, str]:
        """Return by resource why its devices that a pod may have under another name are not offered, as far as a reading tells."""
        lines = {
            name: [
                f"{own}, formerly of {former}, {why}"
                for own, (former, other) in sorted(devices.items())
                if (why := self._describe(former, other))
            ]
            for name, devices in held.items()
        }
        return {name: "; ".join(texts) for name, texts in lines.items() if texts}

    def _describe(self, resource: str, name: str) -> str:
        """Return which pod has to end before the device with this ID is free, else why one may have it; empty before a reading tells."""
        mine = (each for each in self._last if each.resource == resource and name in each.ids)
        pods = sorted(f"{each.namespace}/{each.pod}" for each in mine)
        return (
            f"waits for the end of {joined(pods)}" if pods else self._doubt and f"may be held by a pod: {self._doubt}"
        )

    def action(self, now: float) -> Task | None:
        """Return the reading that is due, None for none."""
        due = self.due(now)
        return Task(run=self._read, patience=0.0) if due is not None and now >= due else None

    def due(self, _now: float) -> float | None:
        """Return when to read next, None for never.

        The interval begins at the end of a reading: after one that took longer, the next would be due at once, also where a contact
        bounces, and the evictor, whose requests come later in order, would never make one.
        """
        wanted = _all(self._absent.values()) - (self.free & self._lost)
        return max(self._read_at, self._ended + READ_INTERVAL) if wanted else None

    async def _read(self) -> None:
        due = self._read_at = self.clock.now() + READ_INTERVAL
        self._asked = frozenset(
            each for name, ids in self._absent.items() for each in ids if not self.can_allocate(name, frozenset({each}))
        )
        try:
            free = await self._unheld()
            self._failures, self._filter = 0, RepeatFilter()
        except (KubeletError, ApiError) as error:
            free, self._doubt = frozenset(), str(error)
            self._failures += 1
            self._report(error)
        self._ended = self.clock.now()
        if self._read_at == due:  # else a device has gone since
            self._schedule()
        self.free = (self.free & self._lost) | (free & self._asked - self.claimed(self._asked))

    def _schedule(self) -> None:
        """Read again at growing intervals while the readings do not tell of every device."""
        now, delay = self.clock.now(), READ_INTERVAL
        if self._doubt:
            delay = self._backoff.fail(now, self.clock.jitter(), at_least=READ_INTERVAL)
        else:
            self._backoff.succeed()
        self._read_at = now + delay

    def _report(self, error: KubeletError | ApiError) -> None:
        """Report why absent devices stay listed: a missing permission at once, anything else only if it lasts."""
        self.log.debug("pods.unlisted", error=self._doubt)
        lasts = isinstance(error, Forbidden) or self._failures >= LASTING
        if lasts and self._filter.should_log(self._doubt):
            names = joined(sorted(name for name, ids in self._absent.items() if ids))
            hint = {"hint": error.hint} if error.hint else {}
            reason = f"a device is gone, and whether a pod has it is unknown: {error}"
            self.log.warning("count.held", resource=names, reason=reason, **hint)

    async def _unheld(self) -> frozenset[str]:
        """Read the holders. The list of pods that follows shows whether the kubelet has accounted for every pod."""
        absent, holdings = self._absent, await self.holdings()
        self._last, self._doubt = holdings, ""
        # That a pod has a device needs no list: it may live for days with a lost one.
        if self._asked <= _all(each.ids for each in holdings):
            return frozenset()
        pods = await self.pods()
        held = {name: held_ids(name, holdings, pods, claimed=name in self._by_claim) for name in absent}
        self._doubt = UNACCOUNTED if None in held.values() else ""
        return _all(absent[name] - ids for name, ids in held.items() if ids is not None)


def _all(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*sets)
