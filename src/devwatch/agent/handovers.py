"""What the kubelet hands over: which way each resource goes, which devices pods have, and what the Node shows for that."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from devwatch.agent.changeover import Changeover
from devwatch.agent.holders import HeldDevices
from devwatch.core.node import NodeState
from devwatch.core.rules import Publish
from devwatch.core.slots import SlotState, recall
from devwatch.core.way import way_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

    from devwatch.agent.clock import Clock
    from devwatch.agent.deviceplugin import DevicePlugins
    from devwatch.agent.dra import Dra
    from devwatch.agent.report import Telemetry
    from devwatch.agent.requests import Tasks
    from devwatch.core.holders import Holding
    from devwatch.core.inventory import Inventory
    from devwatch.core.plan import Figure, Figures
    from devwatch.core.pods import Pod
    from devwatch.core.rules import ResourceRule
    from devwatch.core.slots import Slot
    from devwatch.core.task import Task

Named = dict[str, tuple["Slot", ...]]
"""Slots by resource."""


class Handovers:
    """Lets the publishers of `devicePlugin` and `dra` hand over what pods can have, and nothing that one may have in another way.

    It promises, over a change of way, a restart and all ways at once:

    - *never offers a stick twice*: no device is offered while a pod may have it in a former way of publishing, or under another name;
    - *keeps what a pod has*: a lost device that a pod may have stays listed.
    """

    def __init__(
        self,
        plugins: DevicePlugins,
        dra: Dra,
        *,
        pods: Callable[[], Awaitable[Sequence[Pod]]],
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        """Start without resources. `pods` lists the pods of this node, and raises an `ApiError`."""
        self._plugins, self._dra, self._rules = plugins, dra, tuple["ResourceRule", ...]()
        self._report = plugins.report
        self._resources: dict[str, str] = {}
        """By ID: the resource that the device belongs to, or belonged to."""
        self._held = HeldDevices(
            holdings=self.holdings,
            claimed=dra.claimed,
            pods=pods,
            can_allocate=self.can_allocate,
            log=telemetry.log,
            clock=clock,
        )
        self._changeover = Changeover(
            pods=pods,
            holdings=self.holdings,
            telemetry=telemetry,
            clock=clock,
            kubelet=plugins.socket,
            is_offered=dra.is_offered,
        )

    # -- the interface to the loop

    def follow(self, group: asyncio.TaskGroup, wake: Callable[[str], None]) -> None:
        """Register in the background, and wake the loop at each change."""
        self._report.wake = partial(wake, "kubelet")
        self._plugins.follow(group)
        self._dra.follow(group, wake)

    def configure(self, rules: Iterable[ResourceRule]) -> None:
        """Set the resources of this node, however they are published."""
        self._rules = tuple(rules)
        self._dra.paths = {rule.name: rule.container_path for rule in self._rules}
        self._dra.configure(rule for rule in self._rules if rule.publish is Publish.DRA)

    def recall(self) -> Mapping[str, tuple[Slot, ...]]:
        """Return the slots that claims tell of, by resource."""
        return self._dra.recall()

    @property
    def free(self) -> frozenset[str]:
        """The IDs of the absent devices that certainly no pod has."""
        return self._held.free

    @property
    def waiting(self) -> Collection[str]:
        """The resources whose way of publishing changes, while pods may have them in the former one."""
        changing = {rule.name for rule in self._rules if not self._changeover.has_begun(rule)}
        return changing | self._changeover.waiting.keys()

    def update(self, figures: Figures, inventory: Inventory, observed: NodeState | None, now: float) -> Figures:
        """Set what is handed over, and return the figures with those that the Node should show."""
        self._changeover.observe(self._rules, observed, now)
        begun = [rule for rule in self._rules if rule.name not in self._changeover.waiting]
        self._plugins.register(begun, observed or NodeState())
        ways = {name: way_of(entries) for name, entries in self._changeover.former.items()}
        claimed = {name for name, way in ways.items() if way is Publish.DRA} | self._dra.recall().keys()
        self._dra.configure((rule for rule in begun if rule.publish is Publish.DRA), former=bool(claimed))
        former = self._former()
        slots = {name: figures.by_name[name].slots for name in (*self._plugins.names, *self._dra.names)}
        if not (self._plugins.active or self._dra.active or former):
            self._report.held_up({})
            return self._changeover.hold(figures)
        self._resources |= {slot.id: name for name, own in (slots | former).items() for slot in own}
        self._held.observe(slots | former, now, by_claim={*self._dra.names, *claimed})
        held = self._held.elsewhere(figures, slots | former)
        shown = {
            name: figure if figure.publish.hands_over else _without(figure, len(held[name]))
            for name, figure in figures.by_name.items()
        }
        present = {name: self._present(own, figures.by_name.get(name), inventory) for name, own in former.items()}
        linked = {name: present[name] for name, way in ways.items() if way is Publish.DEVICE_PLUGIN}
        registered = {name: shown[name] for name in self._plugins.names}
        shown |= self._plugins.update(registered, inventory, observed, held, former=linked)
        held |= {name: self._dra.withheld(held[name]) for name in self._dra.names}
        offered = {name: tuple(slot for slot in slots[name] if slot.id not in held[name]) for name in self._dra.names}
        unread = any(rule.publish is Publish.DRA and rule.name in self._changeover.unread for rule in self._rules)
        kept = {name: present[name] for name in claimed & former.keys()}
        self._dra.update(offered, kept, inventory, observed, now, hold=unread)
        self._report.driver(self._dra.condition)
        self._report.held_up(self._held.reasons(held))
        in_use = {name for name, own in former.items() if not {slot.id for slot in own} <= self.free}
        foreign = self._plugins.foreign - figures.by_name.keys()
        left_out = figures.left_out | (foreign & in_use)
        return self._changeover.hold(replace(figures, by_name=shown, left_out=left_out, foreign=foreign), in_use)

    def _former(self) -> Named:
        """Return the slots of resources that are not handed over any more, as the annotation and the claims tell."""
        found = {name: _lost(recall(name, entries)) for name, entries in self._changeover.former.items()}
        for name, slots in self._dra.recall().items():
            if name not in self._dra.names:
                known = {slot.id for slot in found.get(name, ())}
                found[name] = (*found.get(name, ()), *_lost(slot for slot in slots if slot.id not in known))
        return found

    def _present(self, former: Iterable[Slot], figure: Figure | None, inventory: Inventory) -> tuple[Slot, ...]:
        """Return the slots of a former way with those devices that are present: the containers that have them keep them until they end.

        The resource itself knows which device has an ID. Where it gives out other IDs by now, or has left, the annotation tells.
        """
        own = {slot.id: slot for slot in figure.slots} if figure else {}
        devices = tuple(inventory.present)
        return tuple(own.get(slot.id) or (slot if slot.id in self.free else slot.found(devices)) for slot in former)

    @property
    def _tasks(self) -> tuple[Tasks, ...]:
        """What is requested between the patches: first what changes the cluster, then what a pod waits for."""
        return (*self._dra.tasks, self._held, self._changeover)

    def action(self, now: float) -> Task | None:
        """Return the request that is due, None for none."""
        return next((task for tasks in self._tasks if (task := tasks.action(now))), None)

    def due(self, now: float) -> float | None:
        """Return when the next request is due, None for never."""
        return min((due for tasks in self._tasks if (due := tasks.due(now)) is not None), default=None)

    def changes_at(self, now: float) -> float | None:
        """Return when a list or a figure changes without a further event, None for never."""
        moments = (self._plugins.changes_at(now), self._changeover.changes_at(now))
        return min((at for at in moments if at is not None), default=None)

    def end(self) -> bool:
        """Let the Node show that nothing can be allocated from the kubelet's plugins; return whether there are any."""
        return self._plugins.end()

    # -- the interface to the evictor

    def can_allocate(self, resource: str, ids: frozenset[str]) -> bool:
        """Return whether one of these devices may still be given to a pod."""
        return self._dra.can_allocate(ids) or self._plugins.can_allocate(resource, ids)

    def spared(self, ids: frozenset[str]) -> frozenset[tuple[str, str]]:
        """Return the claims, by namespace and name, that tolerate the loss of these devices."""
        return self._dra.spared(ids)

    def is_claimed(self, resource: str) -> bool:
        """Return whether ResourceClaims give the devices of a resource to pods."""
        return resource in self._dra.names

    async def holdings(self) -> tuple[Holding, ...]:
        """Return which pods hold devices, each with the resource that these belong to. Raises `KubeletError`."""
        found = await self._plugins.holdings()
        return tuple(self._without_administered(each) for reading in found for each in self._by_resource(reading))

    def _without_administered(self, usage: Holding) -> Holding:
        """Return what a container holds of what it has, maybe nothing: its pod has asked for the resource all the same.

        The kubelet does not tell what is for administrative access alone, and the record of claims does.
        """
        if not (usage.claim and usage.ids):
            return usage
        administered = self._dra.administered(usage.namespace, usage.claim)
        if administered is None:
            return replace(usage, unrecorded=True)
        return replace(usage, ids=usage.ids - administered)

    def _by_resource(self, holding: Holding) -> list[Holding]:
        """Return a reading once for each resource: the kubelet knows the names of claims, and not the resources behind them."""
        if not holding.claim:
            return [holding]
        ids: dict[str, set[str]] = {}
        for name in holding.ids:
            ids.setdefault(self._resources.get(name, ""), set()).add(name)
        found = [replace(holding, resource=resource, ids=frozenset(some)) for resource, some in ids.items()]
        return found or [holding]


def _lost(slots: Iterable[Slot]) -> tuple[Slot, ...]:
    """Return slots as those of a resource that is not handed over any more: nothing of it is offered."""
    return tuple(replace(slot, state=SlotState.HELD) for slot in slots)


def _without(figure: Figure, number: int) -> Figure:
    """Return a figure without this number of devices, which the Node's own figure lacks already."""
    return replace(figure, advertised=max(figure.advertised - number, figure.node, 0)) if number else figure
