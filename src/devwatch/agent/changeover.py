"""Change the way of publishing of a resource so that no device is given to two pods."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from devwatch.core.errors import ApiError, Forbidden, KubeletError
from devwatch.core.node import Amounts
from devwatch.core.rules import Publish
from devwatch.core.task import Task
from devwatch.core.way import KUBELET_MEMORY, Change, changes, handed_over_before, holdouts, way_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from devwatch.agent.clock import Clock
    from devwatch.agent.report import Telemetry
    from devwatch.core.holders import Holding
    from devwatch.core.listing import Listing
    from devwatch.core.node import NodeState
    from devwatch.core.plan import Figures
    from devwatch.core.pods import Pod
    from devwatch.core.rules import ResourceRule

READ_INTERVAL = 5.0
"""Seconds from the end of a list of the pods of the former way to the next one."""
UNREAD_LIMIT = 0.5
"""Seconds for which the figures stay until the pods have been listed once; a list or a kubelet that hangs may take much longer."""

_UNREAD = "waits for the list of pods"
"""The reason until the pods have been listed, which takes a moment and is not reported."""
_ALLOCATABLE = "waits for the Node to show 0"
"""The reason while the scheduler may still bind a pod by the figures of the former way, which takes a moment and is not reported either."""
_OFFERED = "waits for the API server to take its devices out of the ResourceSlice"
"""The reason while the scheduler may still allocate a device of the former way."""


@dataclass(slots=True, kw_only=True)
class Changeover:
    """Holds the figures of a resource at 0 until no pod has it in the former way; then the new way begins.

    The annotation keeps the entries of the former way meanwhile, so that a restart does not lose the change.
    """

    pods: Callable[[], Awaitable[Sequence[Pod]]]
    """Lists the pods of the node, and raises an `ApiError`."""
    telemetry: Telemetry
    clock: Clock
    kubelet: Callable[[], object]
    """Returns what tells a start of the kubelet from the next."""
    holdings: Callable[[], Awaitable[Sequence[Holding]]]
    """Returns which pods have devices from the kubelet, and raises a `KubeletError`."""
    is_offered: Callable[[str], bool]
    """Returns whether the scheduler may still allocate a device of a resource to a claim."""
    waiting: Mapping[str, str] = field(default_factory=dict)
    """By resource that still waits: why."""
    former: Listing = field(default_factory=dict)
    """What the annotation lists of the resources that the kubelet handed over, and does not any more: pods may still have their devices."""
    _changes: frozenset[Change] = frozenset()
    _plugins: dict[str, float] = field(default_factory=dict)
    """By resource that a device plugin has handed over, and does not any more: until when the kubelet may write it, as far as this daemon
    has observed the change."""
    _free: frozenset[Change] = frozenset()
    """The changes whose pods have ended."""
    _kubelet_began: tuple[object, float] = (None, -math.inf)
    """The kubelet as last observed, and when it, or the first change, was first observed."""
    _established: dict[str, ResourceRule] = field(default_factory=dict)
    """By resource: the rule by which this daemon publishes it."""
    _rules: Sequence[ResourceRule] = ()
    _observed: NodeState | None = None
    _memory: Listing = field(default_factory=dict)
    _leaving: frozenset[str] = frozenset()
    """The resources that the kubelet handed over, and that are not configured any more."""
    _allocatable: frozenset[str] = frozenset()
    """The waiting resources of which the Node shows that something can be allocated: a list of the pods may lack one that is bound next."""
    _read_at: float = -math.inf
    _unread_until: float = -math.inf
    _closed_once: set[str] = field(default_factory=set)
    """The waiting resources of which the Node has shown 0."""

    def observe(self, rules: Sequence[ResourceRule], observed: NodeState | None, now: float) -> None:
        """Process the configuration, and what the Node's annotation says of the former ways."""
        same = observed is self._observed and rules is self._rules
        remembers = now < max(self._plugins.values(), default=-math.inf)
        if observed is None or (same and not self._changes and not self._leaving and not remembers):
            return
        self._rules = rules
        if observed is not self._observed:  # parsing it in every cycle would cost more than all else here
            self._observed, self._memory = observed, observed.memory()
        pending, former = changes(rules, self._memory, self._established), handed_over_before(self._memory)
        gone = former.keys() - {rule.name for rule in rules}
        if pending - self._changes:
            self._read_at, self._unread_until = now, now + UNREAD_LIMIT
        socket, former_socket = self.kubelet() if pending or gone or remembers else None, self._kubelet_began[0]
        if pending - self._changes or gone - self._leaving or socket != former_socket:
            self._kubelet_began = (socket, now)
        if remembers and socket != former_socket:
            self._plugins |= {name: self._forgotten_at for name, until in self._plugins.items() if now < until}
        ended = {change.resource for change in pending - self._changes if change.former is Publish.DEVICE_PLUGIN}
        self._plugins |= dict.fromkeys(ended, self._forgotten_at)
        self._leaving = frozenset(gone)
        self._changes, self._free = pending, self._free & pending
        waiting = {change.resource: self.waiting.get(change.resource, _UNREAD) for change in pending}
        for change in self._free:
            # Also where it was published in a third way meanwhile.
            plugin = change.former is Publish.DEVICE_PLUGIN or now < self._plugins.get(change.resource, 0.0)
            late = plugin and change.way is Publish.NODE_STATUS and now < self._forgotten_at
            waiting[change.resource] = "waits for the kubelet to forget the plugin (5 min 20 s)" if late else ""
        self.waiting = {name: why for name, why in waiting.items() if why}
        self.former = {name: each for name, each in former.items() if name in gone or name in self.waiting}
        self._closed_once &= self.waiting.keys()
        self._closed_once |= {name for name in self.waiting if observed.amounts(name) == Amounts.of(0)}
        before = self._allocatable & self.waiting.keys()
        self._allocatable = frozenset(name for name in self.waiting if observed.amounts(name).allocatable)
        if before - self._allocatable:
            self._read_at = now  # only from here on does a list of the pods tell of each that was bound
        self._established |= {rule.name: rule for rule in rules if rule.name not in self.waiting}
        self._report()

    def hold(self, figures: Figures, kept: Collection[str] = ()) -> Figures:
        """Return the figures with those of the waiting resources at 0, and with their entries as they are listed.

        Of the resources that are not configured any more, those that are `kept` stay on the Node: pods may have their devices.
        """
        if not self.waiting and not self._leaving:
            return figures
        now = self.clock.now()
        forgotten = frozenset(
            name
            for name in self._leaving.difference(kept)
            if now >= self._forgotten_at
            or (way_of(self.former[name]) is not Publish.DEVICE_PLUGIN and now >= self._plugins.get(name, 0.0))
        )
        held = {
            name: replace(figure, amounts=self._closed(name), frozen=True) if name in self.waiting else figure
            for name, figure in figures.by_name.items()
        }
        return replace(figures, by_name=held, forgotten=forgotten, left_out=figures.left_out | self.unread)

    def _closed(self, name: str) -> Amounts:
        """Return figures of which nothing is allocatable: 0, and then what the kubelet writes until it has forgotten the plugin.

        It writes the capacity again at each of its updates, ten seconds apart, and nothing can come of it.
        """
        state, plugin = self._observed, way_of(self._memory.get(name, ())) is Publish.DEVICE_PLUGIN
        kubelets = state is not None and not state.removable(name) and state.removable(name, kubelet=True)
        if state is None or not (plugin and kubelets and name in self._closed_once):
            return Amounts.of(0)
        return replace(state.amounts(name), allocatable=0)

    @property
    def unread(self) -> frozenset[str]:
        """The resources of which it is not known yet whether they wait: until then, for a moment, all that is published stays."""
        late = self.clock.now() >= self._unread_until
        return frozenset() if late else frozenset(name for name, why in self.waiting.items() if why == _UNREAD)

    def has_begun(self, rule: ResourceRule) -> bool:
        """Return whether no other way was in use before the one of a rule; false also until that is known, and processed (`observe`)."""
        begun = self._established.get(rule.name)
        return begun is not None and not changes([rule], {}, {rule.name: begun})

    def changes_at(self, now: float) -> float | None:
        """Return when figures change without a further event, also while a request is in flight; None for never."""
        return self._unread_until if self.waiting and now < self._unread_until else None

    @property
    def _forgotten_at(self) -> float:
        """When the kubelet has forgotten the plugins that have ended."""
        return self._kubelet_began[1] + KUBELET_MEMORY

    def action(self, now: float) -> Task | None:
        """Return the list of pods that is due, None for none."""
        return Task(run=self._read, patience=0.0) if self._changes - self._free and now >= self._read_at else None

    def due(self, now: float) -> float | None:
        """Return when to list the pods next, or the kubelet has forgotten a plugin; None for never."""
        if self._changes - self._free:
            return self._read_at
        return self._forgotten_at if (self.waiting or self._leaving) and now < self._forgotten_at else None

    async def _read(self) -> None:
        """Read which pods have a former way, and set when to read next.

        That counts from the end: a list that takes longer than the interval would else be due again at once, and leave no time for the
        requests that come later in order, such as those of the evictor.
        """
        due = self._read_at = self.clock.now() + READ_INTERVAL
        await self._list_pods()
        if self._read_at == due:  # else a change came meanwhile, of which this list does not tell
            self._read_at = self.clock.now() + READ_INTERVAL

    async def _list_pods(self) -> None:
        """List the pods. That tells only of the changes that were known before, and only where nothing was allocatable then."""
        asked, allocatable = self._changes, self._allocatable
        try:
            pods = await self.pods()
        except ApiError as error:
            self._record(self._reasons_without_pods(asked & self._changes, error))
            return
        try:
            holdings, fault = await self.holdings(), ""
        except KubeletError as error:
            holdings, fault = (), f"waits for the kubelet to say which pods have it: {error}"
        asked &= self._changes
        reasons = {each: holdouts(each, pods, holdings) for each in asked}
        claimed = [each for each in asked if each.former is Publish.DRA]
        reasons |= {each: fault for each in claimed if fault}
        reasons |= {each: _OFFERED for each in claimed if self.is_offered(each.resource)}
        reasons |= {each: reasons[each] or _ALLOCATABLE for each in asked if each.resource in allocatable}
        self._record(reasons)

    def _reasons_without_pods(self, asked: frozenset[Change], error: ApiError) -> dict[Change, str]:
        """Return why changes wait where the pods cannot be listed.

        Without the permission nothing can ever tell that a resource that is not listed was in use before: a new one has to begin.
        """
        denied = isinstance(error, Forbidden)
        cure = "; without that permission end the pods that use it, and run devwatch purge" if denied else ""
        why = f"cannot list pods: {error}{cure}"
        return {each: why if each.listed or not denied else "" for each in asked - self._free}

    def _record(self, reasons: Mapping[Change, str]) -> None:
        """Record why changes wait; those without a reason wait no more."""
        self._free |= {change for change, why in reasons.items() if not why}
        self._free -= {change for change, why in reasons.items() if why}
        told = {change.resource: why for change, why in reasons.items()}
        self.waiting = {name: why for name, why in {**self.waiting, **told}.items() if why}

    def _report(self) -> None:
        """Report each reason once; `/readyz` shows all while they last."""
        ways = {change.resource: str(change) for change in self._changes}
        known = {name: why for name, why in self.waiting.items() if why not in {_UNREAD, _ALLOCATABLE}}
        line = "; ".join(f"{name} changes {ways[name]}: it {why}" for name, why in known.items())
        if line != self.telemetry.health.changing:
            for name, why in known.items():
                self.telemetry.log.warning(
                    "count.held", resource=name, count=0, change=ways[name].removeprefix("from "), reason=why
                )
        self.telemetry.health.changing = line
