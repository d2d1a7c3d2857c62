"""A world in which the kubelet hands devices over, and a judge of what becomes of the pods in it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain
from typing import TYPE_CHECKING

from devwatch.agent.clock import Clock
from devwatch.agent.listener import MonitorListener
from devwatch.agent.report import Telemetry
from devwatch.agent.wiring import build_agent
from devwatch.core.errors import Retry
from devwatch.core.handover import FALL_LIMIT, UNREGISTERED_LIMIT, Offer
from devwatch.core.inventory import ARRIVAL_TIMEOUT
from devwatch.core.node import Amounts, quantity
from devwatch.observe.health import Health
from support.fakekubelet import MEMORY, SYNC
from support.fakes import RIGHTS, FakeSettings, RecordingLog, date
from support.model import SOON, TIMEOUT, Eye, Fault, Hearing, Surroundings
from support.model_contract import MOST_GRACE, Plan, Tty, Want
from support.model_host import Kind
from support.model_kubelet import TEMPLATES, Cluster, Life, PodKubelet, id_of
from support.model_pods import METER, NODE, ZIGBEE, ZWAVE, Template, host_date

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.agent.dra import Dra
    from devwatch.config.schema import Config
    from devwatch.core.node import NodePatch, NodeState
    from devwatch.core.pods import Pod
    from devwatch.kube.pods import Event
    from devwatch.observe.metrics import Metrics
    from support.model import Served

PLUGIN, STATUS = "devicePlugin", "nodeStatus"
STICKS = {
    "zigbee": Kind(vendor="0001", serial="Z1"),
    "other": Kind(vendor="0001", serial="Z2"),
    "twin": Kind(vendor="0001", serial="Z1"),
    "nameless": Kind(vendor="0001"),
    "composite": Kind(vendor="0002", interfaces=("00", "01"), serial="C1"),
    "modem": Kind(vendor="0003", interfaces=("00", "01", "02"), serial="M1"),
}
_ZIGBEES, _ZWAVES, _METERS = (("0001", "*"),), (("0002", "*"),), (("0003", "*"),)
PLANS = (
    Plan(
        wants=(
            Want(name=ZIGBEE, ids=_ZIGBEES, evict=3, publish=PLUGIN),
            Want(name=ZWAVE, ids=_ZWAVES, evict=6, grace=0, publish=PLUGIN),
            Want(name=METER, ids=_METERS),
        )
    ),
    Plan(
        wants=(
            Want(name=ZIGBEE, ids=_ZIGBEES, publish=STATUS),
            Want(name=ZWAVE, ids=_ZWAVES, evict=6, grace=5, publish=PLUGIN),
            Want(name=METER, ids=_METERS, per_devnode=True, publish=PLUGIN),
        )
    ),
    Plan(
        wants=(
            Want(name=ZIGBEE, ids=_ZIGBEES, evict=0, grace=4, publish=PLUGIN),
            Want(name=ZWAVE, ids=_ZWAVES, publish=STATUS),
            Want(name=METER, ids=_METERS, publish=PLUGIN),
        )
    ),
)
"""Configurations: each resource is published in the one way and in the other."""
SETTLING = 90.0
"""Seconds after the last fault in which everything is as it should be."""
FORGETTING = MEMORY + 60.0
"""Seconds for which a change of way may wait for the kubelet."""
TROUBLED = 75.0
"""Seconds after a fault of the API server for which the daemon may still wait before its next request."""


class Promise(Enum):
    """What `devicePlugin` promises."""

    ALIVE = "whatever happens, the daemon goes on"
    OWN = "no container gets another stick than the one it was given"
    ALONE = "no stick is in the hands of two pods"
    CHANGE = "no device is given in one way while a pod has one in the other"
    HOLDERS = "evicts only who holds a lost device"
    EVICTS = "evicts every holder in the end"
    FIGURES = "in the end the Node shows what the kubelet has, and that is what is there"
    RISE = "a figure rises only once the kubelet has the list"
    FALL = "a figure falls before the list does"
    ADMITTED = "no pod fails its admission"


def differs(before: Tty, now: Tty) -> str:
    """Return how the device that a link leads to differs from the one that it led to before; empty for one that may be the same."""
    if (before.vendor, before.plain) != (now.vendor, now.plain):
        return "another device"
    if before.interface != now.interface:
        return "another interface"
    return "another socket" if before.plain is None and before.socket != now.socket else ""


@dataclass(slots=True, kw_only=True)
class Truth:
    """What is true of a node, and what its daemon can know of that."""

    world: HandoverWorld
    plan: Plan
    known: list[NodeState] = field(default_factory=list)
    """What the daemon may believe that the Node shows: the last answer, and what the watch has reported since."""
    answered: bool = False
    """Whether the daemon has had an answer."""
    made: dict[str, str] = field(default_factory=dict)
    """The links after the last cycle."""
    led: dict[str, Tty] = field(default_factory=dict)
    """By link: where it led last."""
    glimpsed: dict[str, Tty] = field(default_factory=dict)
    """By link: where it led after an uncertain scan."""
    seen: frozenset[int] = frozenset()
    """By birth: what the last scan found; empty without a daemon."""
    certain: bool = False
    found: dict[str, Tty] = field(default_factory=dict)
    """By devnode: what was there at the last scan."""
    shown: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    """By resource: each allocatable figure of the Node, since when."""
    proper: dict[str, set[int]] = field(default_factory=dict)
    """By uid: what a container has opened that the daemon had seen by then."""
    unstored: set[int] = field(default_factory=set)
    """By birth: what containers have opened by an ID that the annotation did not list, or not in that socket, when its daemon ended."""
    found_at: dict[int, float] = field(default_factory=dict)
    """By birth: when a scan last found a device."""
    unread: bool = False
    """Whether udev's records were away at a scan."""
    configured_at: float = -math.inf
    idle_at: dict[str, float] = field(default_factory=dict)
    """By resource: when the configuration last did not evict for it, or the kubelet did not hand it over."""
    idle_seen: dict[str, frozenset[int]] = field(default_factory=dict)
    """By resource: the births that the last scan had found by then."""
    began_at: float = 0.0
    """When the daemon began."""
    sure_at: float = math.inf
    """When the daemon first compared what the annotation lists with a certain scan and the records of udev."""
    troubled_at: float = -math.inf
    """When something last kept daemon, kubelet and API server from working together."""
    places: dict[str, str | None] = field(default_factory=dict)
    """By ID that the annotation has listed: the socket that it listed last."""
    recalled: frozenset[str] = frozenset()
    """The IDs that the annotation has listed since the last daemon ended: the next one knows no others."""
    placed: set[str] = field(default_factory=set)
    """The links of sticks that arrived while a twin was known: what the ID tells apart is the socket alone."""
    socketless: dict[str, float] = field(default_factory=dict)
    """By ID of a twin, or a stick without a serial, whose record, and so whose socket, was still to be read: when it was given."""
    unplaced: frozenset[str] = frozenset()
    """The links whose device was in another socket than the annotation listed when the last daemon ended."""
    fell_at: dict[str, float] = field(default_factory=dict)
    """By resource: when a device left the list."""
    closed_at: dict[str, float] = field(default_factory=dict)
    """By resource: when its last stream ended."""
    cut_at: dict[str, float] = field(default_factory=dict)
    """By resource: when the last daemon ended that had it registered."""
    untold_at: dict[str, float] = field(default_factory=dict)
    """By resource: when the last daemon ended that had it registered, and could not store that for the next one."""
    thawed_at: float = -math.inf
    """When the daemon last went on after it had been stopped."""
    registered_at: dict[str, float] = field(default_factory=dict)
    """By resource: since when the kubelet has its list."""

    @property
    def now(self) -> float:
        """The time of the loop, in seconds."""
        return self.world.loop.time()

    def broken(self, promise: Promise, text: str) -> None:
        """Take note of a promise that was not kept."""
        self.world.broken.append((promise, f"at {self.now:.3f} s: {text}"))

    def configure(self, plan: Plan) -> None:
        """Take note that the daemon has read a configuration."""
        for each in (self.plan, plan):
            evicting = {want.name for want in each.wants if self.hands_over(want) and want.evict is not None}
            self.idle_at |= dict.fromkeys({METER, ZIGBEE, ZWAVE} - evicting, self.now)
            self.idle_seen |= dict.fromkeys({METER, ZIGBEE, ZWAVE} - evicting, self.seen)
        if plan is not self.plan:
            self.plan, self.configured_at = plan, self.now

    def hands_over(self, want: Want) -> bool:
        """Return whether the kubelet gives the devices of a resource to pods."""
        return want.publish == PLUGIN

    def may_share(self, _life: Life, _other: Life) -> bool:
        """Return whether two pods may have the same stick."""
        return False

    def figure(self, want: Want) -> int:
        """Return what the Node shows in the end of a resource that no plugin hands over."""
        return self.plan.counts(self.world.host.present)[want.name]

    def scanned(self, seen: Sequence[Tty], _now: float, *, certain: bool) -> None:
        """Take note of a scan."""
        self.unread |= self.world.host.hidden
        self.seen, self.certain = frozenset(tty.birth for tty in seen), certain
        self.found_at |= dict.fromkeys(self.seen, self.now)
        self.found = {tty.devnode: tty for tty in self.world.host.present}
        if certain and self.answered and not self.world.host.hidden:
            self.sure_at = min(self.sure_at, self.now)

    def ended_daemon(self) -> None:
        """Take note that the daemon has ended."""
        self.seen, self.certain, self.recalled = frozenset(), False, frozenset()
        closed = (name for name, at in self.closed_at.items() if at == self.now)
        served = {*self.registered_at, *closed}
        self.cut_at |= dict.fromkeys(served, self.now)
        state = self.world.server.state if self.world.server.exists else None
        listed = state.listing().items() if state else ()
        told = {name for name, entries in listed if any(entry.id or entry.publish for entry in entries)}
        self.untold_at |= dict.fromkeys(served - told, self.now)
        stored = {entry.id for _, entries in listed for entry in entries}
        self.unplaced = frozenset(link for link, tty in self.led.items() if self.places.get(id_of(link)) != tty.socket)
        for life in self.world.cluster.here:
            new = not stored.issuperset(chain.from_iterable(life.ids.values()))
            self.unstored |= {tty.birth for link, tty in life.opened.items() if new or link in self.unplaced}

    def saw(self, state: NodeState) -> None:
        """Take note of what the watch reports."""
        self.known.append(state)

    def told(self, state: NodeState) -> None:
        """Take note of an answer."""
        self.answered = True
        newer = [seen for seen in self.known[-1:] if seen.uid != state.uid or seen.version > state.version]
        self.known = [state, *newer]

    def place(self) -> None:
        """Take note of the new links of sticks of which a twin has a link already, and is there."""
        births = {tty.birth for tty in self.found.values()}
        known = [tty for link in self.made if (tty := self.led.get(link)) is not None and tty.birth in births]
        new = [(link, self.found.get(devnode)) for link, devnode in self.made.items() if link not in self.led]
        for link, tty in [(link, tty) for link, tty in new if tty is not None]:
            if has_twin(tty, known):
                self.placed.add(link)
            unread = not tty.record or self.world.host.hidden
            if unread and (tty.plain is None or has_twin(tty, self.found.values())):
                self.socketless[id_of(link)] = self.now

    def here(self, link: str) -> Tty | None:
        """Return the present device that is that of a link, None where it is lost."""
        return self.find(self.led[link])

    def find(self, tty: Tty) -> Tty | None:
        """Return the present device that a former one is now, None where it is lost."""
        return next((each for each in self.world.host.present if self._is(tty, each)), None)

    def _is(self, tty: Tty, other: Tty) -> bool:
        if tty.birth == other.birth:
            return True
        twins = {each.stick for each in self.world.host.past.values() if each.looks == tty.looks}
        moved = len(twins) > 1 and tty.socket != other.socket
        return not differs(tty, other) and not moved

    def _as_listed(self, link: str, tty: Tty) -> Tty:
        """Return a device where it has moved to: as long as no link can be made, the annotation alone tells that the daemon knows."""
        port = self.places.get(id_of(link), tty.socket)
        part = (tty.stick, tty.interface)
        here = (each for each in self.world.host.present if each.socket == port != tty.socket)
        return next((each for each in here if (each.stick, each.interface) == part), tty)

    def taken(self, name: str, offer: Offer | None) -> None:
        """Take note of a list that the kubelet has, or of the end of the stream."""
        if offer is None:
            self.registered_at.pop(name, None)
            self.closed_at[name] = self.now
        else:
            self.registered_at.setdefault(name, self.now)

    def left_at(self, name: str) -> float:
        """Return when a device was pulled; for one that is there, when the configuration changed."""
        links = [link for link in self.led if id_of(link) == name]
        gone = [self.world.host.pulled.get(self.led[link].birth) for link in links if self.here(link) is None]
        return max((at for at in gone if at is not None), default=self.configured_at)

    def can_know(self, name: str) -> bool:
        """Return whether the daemon can know a device: it has seen it, or a former one could store its ID before it was killed.

        Which ID a device has is known once what the annotation lists was compared with a certain scan. A present one whose socket was to be
        read first has another ID for a daemon that knows it from its record.
        """
        pulled, former = self.world.host.pulled, self.socketless.get(name, math.inf) < self.began_at
        return name in self.recalled or any(
            not former if self.here(link) is not None else pulled[tty.birth] > self.sure_at
            for link, tty in self.led.items()
            if id_of(link) == name
        )

    def lowest(self, name: str, since: float) -> int:
        """Return the lowest figure that the Node has shown since, as far as the moment goes."""
        shown = self.shown.get(name, [])
        before = [count for at, count in shown if at <= since][-1:]
        return min([*before, *(count for at, count in shown if at > since)], default=0)

    def noticed(self) -> None:
        """Take note of what the Node shows now, and of which resources the kubelet has a list."""
        state = self.world.server.state if self.world.server.exists else None
        listed = state.listing().values() if state else ()
        places = {entry.id: entry.port for entries in listed for entry in entries if entry.id}
        self.places |= places
        self.recalled |= places.keys()
        if self.world.kubelet.links.error is not None:
            self.led = {link: self._as_listed(link, tty) for link, tty in self.led.items()}
        for name in (METER, ZIGBEE, ZWAVE):
            count, shown = _count(state, name) if state else 0, self.shown.setdefault(name, [])
            if not shown or shown[-1][1] != count:
                shown.append((self.now, count))


@dataclass(slots=True, kw_only=True)
class Judge(Truth):
    """Holds what the daemon does against what is true, by rules that know nothing of how it decides."""

    def cycled(self) -> None:
        """Judge where the links lead after a cycle of the daemon."""
        made, self.made = self.made, dict(self.world.kubelet.links.made)
        if not self.certain:
            self._uncertain(made)
            return
        held = {each for life in self.world.cluster.here for ids in life.ids.values() for each in ids}
        self.place()
        for link, devnode in self.world.kubelet.links.made.items():
            tty, before = self.found.get(devnode), self.led.get(link)
            if tty is None:
                self.broken(Promise.OWN, f"the link {link} leads to {devnode}, which is not there")
                continue
            if before is not None and before.birth != tty.birth:
                how = differs(before, tty)
                own = {each.birth for each in self.found.values()} if link not in self.unplaced else set()
                if not how and id_of(link) in held and before.birth in own:
                    how = "another stick, while its own is there"
                if not how and link in self.placed and (before.stick != tty.stick and before.socket != tty.socket):
                    how = "its twin in another socket"
                if how:
                    self.broken(Promise.OWN, f"the link {link} leads to {how}: {devnode}")
            if self.answered or before is None:  # until it has seen the Node, a daemon cannot tell twins apart
                self.led[link] = tty

    def _uncertain(self, before: Mapping[str, str]) -> None:
        """Judge the links after an uncertain scan: it may keep links, and make some of what it found."""
        found = {tty.devnode: tty for tty in self.world.host.present if tty.birth in self.seen}
        new = {link: devnode for link, devnode in self.made.items() if before.get(link) != devnode}
        if wrong := [link for link, devnode in new.items() if devnode not in found]:
            self.broken(Promise.OWN, f"the links {wrong} are made of what no scan has found")
        self.glimpsed |= {link: found[devnode] for link, devnode in new.items() if devnode in found}

    def sent(self, patch: NodePatch) -> None:
        """Judge a PATCH."""
        for name, amounts in patch.counts.items():
            want = self.plan.want(name)
            shown = max((_count(state, name) for state in self.known), default=0)
            if want is None or amounts is None or amounts.allocatable <= shown:
                continue
            text = f"raises {name} from {shown} to {amounts.allocatable}"
            if want.publish == PLUGIN:
                taken = self.world.kubelet.taken.get(name, Offer())
                if self.world.kubelet.streaming(name) is None:
                    if self.now > self.closed_at.get(
                        name, -math.inf
                    ):  # one that ends in this very moment is not known to have ended
                        self.broken(Promise.RISE, f"{text} without a stream")
                elif amounts.allocatable > len(taken.healthy):
                    self.broken(Promise.RISE, f"{text}, where the kubelet has {len(taken.healthy)}")
            elif holders := [life.pod.name for life in self.world.cluster.here if name in life.ids]:
                self.broken(Promise.CHANGE, f"{text} while {holders} have one from the kubelet")

    def evicts(self, pod: Pod) -> None:
        """Judge an eviction."""
        life = self.world.cluster.lives[pod.uid]
        if life.gone or life.pod.terminating:
            return  # since the list: the server evicts by UID, so nothing becomes of it
        faults = [self._wrongly(life, name, ids) for name, ids in life.ids.items()]
        if "" not in faults and not self._lost_by_volume(life):
            self.broken(Promise.HOLDERS, f"evicts {pod.name}: {'; '.join(faults) or 'it holds nothing'}")
        if not life.evictable:
            self.broken(Promise.HOLDERS, f"evicts {pod.name}, which no controller replaces elsewhere")

    def _lost_by_volume(self, life: Life) -> bool:
        """Return whether a pod may have lost a device of a resource that it has in the way of the Node status."""
        # A pod that was written for the plugin, and runs without a device of it, came while the daemon did not know that way yet.
        former = {
            name for name, way in life.ways.items() if name not in life.ids and (way == STATUS or life.pod.started)
        }
        wants = [self.plan.want(name) for name in former]
        evicting = [want for want in wants if want is not None and want.evict is not None]
        gone = [tty for birth, tty in self.world.host.past.items() if birth in self.world.host.pulled]
        return any(want.verdict(tty) for want in evicting for tty in gone)

    def _wrongly(self, life: Life, name: str, ids: frozenset[str]) -> str:
        """Return why a pod is not to be evicted for its devices of a resource; empty where it is."""
        want = self.plan.want(name)
        if want is None or want.evict is None:
            return f"{name} never evicts"
        # Pods may have what only uncertain scans have found.
        for link, tty in (self.glimpsed | life.opened | self.led).items():
            if id_of(link) not in ids:
                continue
            back = self.find(tty)
            if back is None and self.now >= self.world.host.pulled[tty.birth] + want.evict - SOON:
                return ""
            opened = life.opened.get(link)
            dead = opened is not None and back is not None and opened.birth != back.birth
            if dead and back is not None and self.now >= back.plugged + want.evict - SOON:
                return ""
        return f"its device of {name} is there"

    def stopped(self) -> None:
        """Judge what the Node shows when TERM is about to end the streams."""
        names = [want.name for want in self.plan.wants if want.publish == PLUGIN]
        left = [name for name in names if self.world.server.exists and _count(self.world.server.state, name)]
        if left and self.now > self.troubled_at + TROUBLED:
            self.broken(Promise.ADMITTED, f"TERM leaves {left} allocatable")

    def waited(self) -> None:
        """Judge that nothing is allocatable of what has not been registered for a while."""
        since = max(self.began_at, self.configured_at, self.thawed_at, self.troubled_at + TROUBLED)
        for want in self.plan.wants if self.seen and self.world.server.exists else ():
            late = self.now > max(since, self.closed_at.get(want.name, 0.0)) + UNREGISTERED_LIMIT + 1
            shown = _count(self.world.server.state, want.name)
            if want.publish == PLUGIN and late and shown and self.world.kubelet.streaming(want.name) is None:
                self.broken(Promise.RISE, f"{want.name} is {shown}, and not registered")

    def clashed(self, name: str) -> None:
        """Judge a second stream of a resource."""
        self.broken(Promise.ALIVE, f"{name} is served while its former stream is open")

    def listed(self, name: str, before: Offer | None, offer: Offer) -> None:
        """Judge a list that is sent to the kubelet."""
        gained = offer.healthy - before.healthy if before else set()
        here = [tty for tty in self.world.host.present if tty.birth in self.seen]
        pulled = self.world.host.pulled
        known = {
            id_of(link) for link, tty in self.led.items() if pulled.get(tty.birth, math.inf) < self.now - MOST_GRACE
        }
        there = {id_of(link) for link, tty in self.led.items() if not all(differs(tty, other) for other in here)}
        if (away := gained & known - there) and self.world.kubelet.links.error is None:
            self.broken(Promise.FIGURES, f"{name} lists {away} again, which no scan has found")
        left = (before or Offer()).healthy - offer.healthy
        if not left or before is None:
            return
        self.fell_at[name] = self.now
        due = max(map(self.left_at, left))
        # What the kubelet writes in this very moment, as all do at the end of a freeze, is not known yet.
        shown = next((count for at, count in reversed(self.shown.get(name, ())) if at < self.now), 0)
        limit, lowest = len(before.healthy & offer.healthy), min(shown, self.lowest(name, due))
        # While a request is unanswered, the daemon does not take what the watch reports for the Node's figures.
        if self.troubled_at + TROUBLED < self.now < due + FALL_LIMIT - SOON and lowest > limit:
            self.broken(Promise.FALL, f"{name} lists {sorted(left)} no longer while the Node shows {lowest}")
        want = self.plan.want(name)
        # What came before it was pulled takes its place as well, where no scan has found both.
        found = [self.found_at.get(tty.birth, due) for link, tty in self.led.items() if id_of(link) in left]
        replacing = min(due - ARRIVAL_TIMEOUT, max(found, default=due))
        replaced = any(self._arrives(tty) >= replacing for tty in self.world.host.past.values())
        if want is None or want.publish != PLUGIN or replaced or due <= self.configured_at or self._awaited(left, due):
            return
        if self.now < due + want.grace - SOON:
            self.broken(Promise.FALL, f"{name} lists {sorted(left)} no longer within the grace")

    def _arrives(self, tty: Tty) -> float:
        """Return when a device arrived at the earliest: one without a record is waited for, by each daemon anew."""
        return max(tty.plugged, self.began_at if tty.handled is None else tty.handled)

    def _awaited(self, names: AbstractSet[str], due: float) -> bool:
        """Return whether one of these devices had no record, and a daemon that had just begun still waited for it: it had not arrived."""
        births = [tty.birth for link, tty in self.led.items() if id_of(link) in names]
        return due < self.began_at + ARRIVAL_TIMEOUT and not all(self.world.host.past[birth].record for birth in births)

    def allocated(self, life: Life, name: str) -> None:
        """Judge a device that the kubelet gives to a pod."""
        life.ways[name] = PLUGIN
        others = [each for each in self.world.cluster.here if each.pod.started and name not in each.ids]
        old = [each.pod.name for each in others if each.ways.get(name) == STATUS]
        if old:
            self.broken(Promise.CHANGE, f"{life.pod.name} is given one of {name}, beside {old} of the former way")

    def failed(self, life: Life, name: str, why: str) -> None:
        """Judge that a pod is not admitted: it has to be where everything works since before it was bound."""
        want = self.plan.want(name)
        plugin = want is not None and want.publish == PLUGIN
        began = self.registered_at.get(name, math.inf) if plugin else self.world.kubelet.began
        # The Node shows what a plugin has had until the kubelet's next update, if no daemon is left to take it back.
        cut = self.cut_at.get(name, -math.inf) + SYNC
        # A daemon that is not told of the plugin of the last one publishes at once what the kubelet has yet to forget.
        untold = -math.inf if plugin else self.untold_at.get(name, -math.inf) + FORGETTING
        registered = max(began, self.fell_at.get(name, -math.inf), cut, untold) < life.bound
        # A kubelet that hangs admits a pod late: the Node may show less by then.
        less = not plugin and any(at > life.bound for at, _ in self.shown.get(name, ()))
        if registered and not less and life.bound > self.troubled_at + TROUBLED:
            self.broken(Promise.ADMITTED, f"{life.pod.name} is not admitted: {why}")

    def opened(self, life: Life) -> None:
        """Judge that no other pod has what a container has opened, as far as the daemon can have seen what is there."""
        mine = self.proper[life.pod.uid] = {tty.birth for tty in life.opened.values() if self._is_identified(tty)}
        past = self.world.host.past
        either = {birth for birth in self.unstored if past[birth].plain is None or has_twin(past[birth], past.values())}
        for other in self.world.cluster.here:
            theirs = self.proper.get(other.pod.uid, set()) - either if other.opened else set()
            if other is not life and mine & theirs and not self.may_share(life, other):
                self.broken(Promise.ALONE, f"{life.pod.name} and {other.pod.name} have the same stick")

    def _is_identified(self, tty: Tty) -> bool:
        """Return whether the daemon has seen a device, and can know its ID: that of a twin once the annotation was compared with a scan."""
        alike = (each for each in self.world.host.present if (each.vendor, each.plain) == (tty.vendor, tty.plain))
        return tty.birth in self.seen and (self.sure_at <= self.now or all(each.stick == tty.stick for each in alike))

    def ended(self) -> None:
        """Judge the end, when everything has worked for long enough."""
        state = self.world.server.state
        for want in self.plan.wants:
            shown = Amounts(
                capacity=quantity(state.capacity.get(want.name)) or 0,
                allocatable=quantity(state.allocatable.get(want.name)) or 0,
            )
            if want.publish == PLUGIN:
                self._handed_over(want, shown)
            elif shown != Amounts.of(self.figure(want)):
                self.broken(Promise.FIGURES, f"{want.name} is {shown}")
        for life in self.world.cluster.here:
            self._kept(life)

    def _handed_over(self, want: Want, shown: Amounts) -> None:
        taken = self.world.kubelet.taken.get(want.name, Offer())
        if (shown.capacity, shown.allocatable) != (len(taken.ids), len(taken.healthy)):
            self.broken(Promise.FIGURES, f"{want.name} is {shown}, and the kubelet has {taken}")
        here = self.plan.counts(self.world.host.present)[want.name]
        held = {each for life in self.world.cluster.here for each in life.ids.get(want.name, ())}
        leads = {self.led[link].stick for link in self.world.kubelet.links.made if id_of(link) in taken.healthy}
        if len(taken.healthy) != here or len(leads) != (here if not want.per_devnode else len(leads)):
            self.broken(Promise.FIGURES, f"{want.name}: the kubelet has {taken}, but {here} are there: {leads}")
        if not taken.unhealthy <= held or not {each for each in held if self.can_know(each)} <= taken.ids:
            self.broken(Promise.FIGURES, f"{want.name}: the kubelet has {taken}, but pods have {held}")

    def _kept(self, life: Life) -> None:
        for name, ids in life.ids.items():
            want = self.plan.want(name)
            if want is None or want.evict is None or want.publish != PLUGIN or not life.evictable:
                continue
            links = [link for link in self.led if id_of(link) in ids and self.can_know(id_of(link))]
            gone = [link for link in links if self.is_surely_lost(self.led[link], name)]
            if gone and not life.pod.terminating:
                self.broken(Promise.EVICTS, f"{life.pod.name} keeps {gone}, which is lost")

    def is_surely_lost(self, tty: Tty, name: str) -> bool:
        """Return whether a device is lost that the daemon, or the one before, knew by then, with nothing that could be it."""
        idle, pulled = self.idle_at.get(name, -math.inf), self.world.host.pulled
        if self.find(tty) is not None or pulled[tty.birth] <= idle:
            return False
        # A resource that comes into force knows the devices of the last scan, and those of later ones.
        if tty.birth not in self.idle_seen.get(name, {tty.birth}) and self.found_at.get(tty.birth, -math.inf) <= idle:
            return False
        if tty.plain is None and self.unread:  # its socket, and so its identity, was not to be read
            return False
        places = {*tty.claims, tty.devnode}
        since = [each for each in self.world.host.past.values() if pulled.get(each.birth, math.inf) >= self.began_at]
        # After a restart one without a serial may be any other, and one that had no record, and so no links, any with its serial.
        unlinked = tty.plain is None or not tty.record or self.unread
        alike = (
            each
            for each in since
            if each.vendor == tty.vendor and (places & each.claims or (unlinked and each.plain == tty.plain))
        )
        return pulled[tty.birth] > self.sure_at or not any(each for each in alike if each.birth != tty.birth)


def has_twin(tty: Tty, others: Iterable[Tty]) -> bool:
    """Return whether one of these is another stick that looks the same."""
    return any(each.looks == tty.looks and each.stick != tty.stick for each in others)


def _count(state: NodeState, name: str) -> int:
    return quantity(state.allocatable.get(name)) or 0


@dataclass(slots=True, kw_only=True)
class Line:
    """The connection of one daemon to the API server."""

    world: HandoverWorld
    date: str = ""
    """The API server's time in the last answer."""

    async def patch(self, patch: NodePatch) -> NodeState:
        """Send a patch. What is sent is sent: the server goes on with it, whatever becomes of the daemon."""
        self.world.judge.sent(patch)
        served = self.world.spawn(self.world.serve(patch))
        try:
            async with asyncio.timeout(TIMEOUT):
                state, self.date = await asyncio.shield(served)
        except TimeoutError:
            raise Retry("the API server did not answer in time") from None
        self.world.judge.told(state)
        return state

    async def watch(self) -> AsyncIterator[NodeState | None]:
        """Yield the Node, unless the connection is dead without a sign of it."""
        async for state in self.world.server.watch():
            if not self.world.deaf:
                if state is not None:
                    self.world.judge.saw(state)
                yield state

    async def pods(self) -> tuple[Pod, ...]:
        """List the pods."""
        found = await self.world.cluster.pods()
        self.date = date(self.world.loop.time())
        return found

    async def evict(self, pod: Pod) -> None:
        """Evict a pod."""
        self.world.judge.evicts(pod)
        await self.world.cluster.evict(pod)
        self.date = date(self.world.loop.time())

    async def record(self, event: Event) -> None:
        """Write an Event."""
        await self.world.cluster.record(event)


class Daemon:
    """One daemon, wired as `devwatch run` does it."""

    def __init__(self, world: HandoverWorld) -> None:
        """Begin to run."""
        self.world = world
        self.settings = FakeSettings(world.plan.config)
        self.log = RecordingLog()
        self.listener = MonitorListener(self.log, world.metrics)
        self.health = Health(sweep=10, last_cycle=world.loop.time())
        line = Line(world=world)
        telemetry = Telemetry(log=self.log, metrics=world.metrics, health=self.health)
        clock = Clock(now=world.loop.time, unix=lambda: host_date(world.loop.time()), jitter=lambda: world.jitter)
        self.reconciler = build_agent(
            source=Eye(world=world, judge=world.judge),  # type: ignore[arg-type]  # as far as they go
            api=line,
            watch=line.watch,
            workload=line,
            kubelet=lambda: world.kubelet,
            dra=world.driver(telemetry, clock),
            settings=self,
            config=world.plan.config,
            node=NODE,
            telemetry=telemetry,
            clock=clock,
            cycled=world.judge.cycled,
        )
        self.listener.wake = self.reconciler.wake
        self.task = world.loop.create_task(self.reconciler.run())

    def poll(self, *, force: bool) -> Config | None:
        """Read the configuration again."""
        config = self.settings.poll(force=force)
        if config is not None:
            self.world.judge.configure(next(plan for plan in self.world.plans if plan.config is config))
        return config


class HandoverWorld(Surroundings[Daemon]):
    """Everything around the daemon of a node on which the kubelet hands devices over."""

    plans: tuple[Plan, ...] = PLANS
    """The configurations."""
    templates: tuple[Template, ...] = TEMPLATES
    """What users want to run."""

    def __init__(self, metrics: Metrics) -> None:
        """Have no stick and no pod, a kubelet and a daemon."""
        super().__init__(metrics)
        self.plan = self.plans[0]
        self.judge, self.cluster, self.kubelet = self.build()
        self.cluster.kubelet, self.cluster.plan, self.kubelet.observer = self.kubelet, self.plan, self.judge
        self.server.stored = self._stored
        self.kubelet.start()
        self.begin()

    def build(self) -> tuple[Judge, Cluster, PodKubelet]:
        """Return the parts of the world."""
        cluster = Cluster(self.loop, self.server)
        judge = Judge(world=self, plan=self.plan)
        return judge, cluster, PodKubelet(self.loop, self.server, cluster, self.host)

    def driver(self, _telemetry: Telemetry, _clock: Clock) -> Dra | None:
        """Return the driver of claims of a new daemon, None where there are no claims."""
        return None

    def _stored(self) -> None:
        self.judge.noticed()
        self.cluster.schedule_soon()

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        super().wait(seconds)
        self.judge.waited()

    # -- the daemon

    def begin(self) -> None:
        """Start a daemon, if none runs."""
        if not self.daemons:
            self.judge.known, self.judge.answered, self.judge.began_at = [], False, self.loop.time()
            self.judge.sure_at = math.inf
            self.judge.configure(self.plan)
            self.daemons.append(Daemon(self))

    def freeze(self, seconds: float) -> None:
        """As of any daemon."""
        super().freeze(seconds)
        self.judge.thawed_at = self.loop.time()

    def kill(self) -> None:
        """End the daemon wherever it is; the kernel ends its streams."""
        ending, self.daemons = self.daemons, []
        for daemon in ending:
            daemon.task.cancel()
            self._until(asyncio.wait([daemon.task]))  # type: ignore[arg-type]  # its result is not asked for
            if not daemon.task.cancelled():
                self.judge.broken(Promise.ALIVE, f"the daemon ended: {daemon.task}")
        self.judge.ended_daemon()
        for plugin in self.kubelet.plugins.values():
            plugin.end()

    def stop(self) -> None:
        """Send TERM to the daemon."""
        for daemon in self.daemons:
            ended: list[float] = []
            daemon.reconciler.end(lambda ended=ended: ended.append(self.loop.time()))  # type: ignore[misc]  # bound now
            until = self.loop.time() + 1.1
            while not ended and self.loop.time() < until:
                self.wait(0.02)
            if not ended:
                self.judge.broken(Promise.ALIVE, "TERM does not end it")
            self.judge.stopped()
        self.kill()

    def configure(self, plan: Plan) -> None:
        """Put another file in place; users write their pods for it, from the next one on."""
        self.plan = self.cluster.plan = plan
        for daemon in self.daemons:
            daemon.settings.write(plan.config)

    def roll_out(self) -> None:
        """Let users replace the pods that were written for another way, or have their devices in another one, or as another unit."""
        told = " ".join(daemon.health.changing for daemon in self.daemons)
        wants = {want.name: want.publish or STATUS for want in self.plan.wants}
        for life in list(self.cluster.lives.values()):
            ways = life.ways.items()
            written = any(wants.get(name, way) != way for name, way in ways)
            given = life.lives and any(wants.get(name) == PLUGIN and name not in life.ids for name, _ in ways)
            recounted = any(f"{name} changes its count" in told for name in {*life.ids, *life.ways})
            if not life.gone and (written or given or recounted):
                self.cluster.delete(life)

    # -- the API server

    async def serve(self, patch: NodePatch) -> Served:
        """Answer a request, or do to it what is to be done."""
        fault = self.faults.popleft() if self.faults else self.climate or Fault()
        if fault.error is not None or fault.before or fault.after or not fault.stored:
            self.judge.troubled_at = self.loop.time()
        await (asyncio.sleep(fault.before) if fault.before < math.inf else self.loop.create_future())
        state = await self.server.patch(patch) if fault.stored else None
        stamp = date(self.loop.time())
        await asyncio.sleep(fault.after)
        if fault.error is not None or state is None:
            raise (fault.error or Retry("no answer")).with_traceback(None)
        return state, stamp

    # -- the end

    def heal(self) -> None:
        """Let every fault end, and everything run."""
        self.host.heal()
        self.hearing = Hearing.ONCE
        if self.cluster.away:
            self.judge.troubled_at = self.loop.time()
        self.relieve()
        self.cluster.away, self.cluster.error, self.cluster.rights = False, None, set(RIGHTS)
        self.cluster.budgets.clear()
        self.kubelet.unheld, self.kubelet.latency, self.kubelet.links.error = None, 0.02, None
        if not self.kubelet.running:
            self.kubelet.start()
        self.kubelet.hang(hanging=False)
        self.begin()
        self.hear()

    def end(self) -> None:
        """Judge the end: users have replaced the pods of another way, and everything has worked for long enough."""
        self.heal()
        self.wait(20)
        if not self.judge.answered:  # until it has seen the Node, a daemon does not say which ways change
            self.wait(TROUBLED)
        for daemon in self.daemons:
            daemon.listener.wake("config")
        self.roll_out()
        self.wait(10)  # the Node may have been answered just now
        changing = self.loop.time() < self.judge.configured_at + FORGETTING
        changing |= any(daemon.health.changing for daemon in self.daemons)
        self.wait(FORGETTING if changing else SETTLING)
        if not self.broken:
            self.judge.ended()
