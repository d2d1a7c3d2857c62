"""A world in which pods get their devices by claims, and a judge of what becomes of them."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devwatch.agent.claims import ClaimDriver
from devwatch.agent.dra import Dra, DraParts
from devwatch.agent.resourceslices import ResourceSlices
from devwatch.core.errors import ApiError, Forbidden, KubeletError, Retry
from devwatch.core.names import DRIVER
from devwatch.core.slices import slice_name
from devwatch.kube.claims import read_claim
from devwatch.kube.slices import KubeSlices
from devwatch.kubelet.driver import Driver
from support.model import SOON
from support.model_claims import DRA, TEMPLATES, Claim, ClaimCluster, ClaimKubelet, SocketDriver
from support.model_contract import Plan, Want
from support.model_handover import (
    FORGETTING,
    PLUGIN,
    STATUS,
    TROUBLED,
    HandoverWorld,
    Judge,
    Promise,
    differs,
    has_twin,
)
from support.model_pods import METER, NODE, SPARE, ZIGBEE, ZWAVE, Template
from support.objectserver import SLICES, Object, ObjectServer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from devwatch.agent.clock import Clock
    from devwatch.agent.report import Telemetry
    from devwatch.core.claims import PreparedClaim
    from devwatch.core.node import NodePatch
    from devwatch.core.pods import Pod
    from devwatch.observe.metrics import Metrics
    from support.model_contract import Tty
    from support.model_kubelet import Life

_ZIGBEES, _ZWAVES, _METERS = (("0001", "*"),), (("0002", "*"),), (("0003", "*"),)
PLANS = (
    Plan(
        wants=(
            Want(name=ZIGBEE, ids=_ZIGBEES, evict=3, publish=DRA),
            Want(name=ZWAVE, ids=_ZWAVES, evict=6, grace=0, publish=DRA),
            Want(name=METER, ids=_METERS, per_devnode=True, publish=DRA),
        )
    ),
    Plan(
        wants=(
            Want(name=ZIGBEE, ids=_ZIGBEES, evict=0, grace=4, publish=DRA),
            Want(name=ZWAVE, ids=_ZWAVES, publish=STATUS),
            Want(name=METER, ids=_METERS, publish=DRA),
        )
    ),
    Plan(
        wants=(
            Want(name=SPARE, ids=_ZIGBEES, evict=3, publish=DRA),
            Want(name=ZWAVE, ids=_ZWAVES, evict=6, publish=PLUGIN),
        )
    ),
    Plan(
        wants=(
            Want(name=ZIGBEE, ids=_ZIGBEES, publish=PLUGIN, evict=3),
            Want(name=ZWAVE, ids=_ZWAVES, publish=DRA),
            Want(name=METER, ids=_METERS, per_devnode=True, publish=DRA),
        )
    ),
)
"""Configurations: all by claims, one renamed, and the others in each of the other ways."""
SETTLING = 200.0
"""Seconds after the last fault in which everything is as it should be."""
REPAIRS = 400.0
"""Seconds for which the repair of what others have changed may wait."""
SECOND = 1.0
"""Seconds in which a daemon without a plugin learns from the Node that the one before had some, and left links."""
WATCHED = 65.0
"""Seconds after which a watch is tried again that was forbidden."""
READ_AGAIN = 15.0
"""Seconds after which a record is read again that could not be read."""
ATTRIBUTES = {"vendor", "product", "serial", "interface", "port", "model", "subsystem", "resource"}


def text_of(device: Object, name: str) -> str:
    """Return an attribute of a device of the slice."""
    return str(device["attributes"][name]["string"])


@dataclass(slots=True, kw_only=True)
class SliceJudge(Judge):
    """Holds what becomes of the slice against what is true."""

    world: ClaimWorld
    ids: dict[str, Tty] = field(default_factory=dict)
    """By ID: the devnode that the slice has last shown under it."""
    last: dict[str, Object] = field(default_factory=dict)
    """By ID: the device as the slice had it last."""
    shown_at: dict[str, float] = field(default_factory=dict)
    """By ID: since when the slice offers it."""
    in_slice: frozenset[str] = frozenset()
    """The IDs in the slice."""
    units: dict[str, bool] = field(default_factory=dict)
    """By ID: whether it is that of a single devnode."""
    wiped: frozenset[str] = frozenset()
    """Those that others have deleted: a lost one is not added where the daemon does not know that its taint would be stored."""
    cleared: dict[str, frozenset[str]] = field(default_factory=dict)
    """By ID of a device whose taint another client has removed: the uids of the claims by then. A later one has what is lost."""
    unplaced_claims: frozenset[str] = frozenset()
    """The uids of those whose device was in another socket than the annotation listed when the last daemon ended."""
    had: dict[str, str] = field(default_factory=dict)
    """By uid: the ID that a claim was last prepared with."""

    # -- what is true

    def configure(self, plan: Plan) -> None:
        """Take note that the daemon has read a configuration. While the way of a resource changes, nothing of it is lost."""
        before = {want.name: want.publish for want in self.plan.wants}
        Judge.configure(self, plan)
        changed = {want.name for want in plan.wants if before.get(want.name, want.publish) != want.publish}
        self.idle_at |= dict.fromkeys(changed, self.now)
        self.idle_seen |= dict.fromkeys(changed, self.seen)

    def hands_over(self, want: Want) -> bool:
        """Return whether the kubelet gives the devices of a resource to pods."""
        return want.publish in {PLUGIN, DRA}

    def figure(self, want: Want) -> int:
        """Return what the Node shows in the end."""
        return 0 if want.publish == DRA else Judge.figure(self, want)

    def find_device(self, device: Object) -> Tty | None:
        """Return the present devnode that a device of the slice is, as its attributes tell; None where they do not."""
        vendor, serial, face, port = (text_of(device, name) for name in ("vendor", "serial", "interface", "port"))
        ttys = [tty for tty in self.world.host.present if tty.socket == port]
        alike = [tty for tty in ttys if (tty.vendor, tty.plain or "", tty.interface) == (vendor, serial, face)]
        return alike[0] if len(alike) == 1 else None

    # -- what the daemon does

    def sent(self, patch: NodePatch) -> None:
        """Judge a PATCH."""
        Judge.sent(self, patch)
        claimed = {claim.resource for claim in self.world.cluster.claims.values() if self.world.cluster.users(claim)}
        for name, amounts in patch.counts.items():
            want = self.plan.want(name)
            if want is None or amounts is None or not amounts.allocatable:
                continue
            if want.publish == DRA or name in claimed:
                self.broken(Promise.CHANGE, f"shows {amounts} of {name}, which claims give to pods")

    def written(self, item: Object, stored: Object | None) -> None:
        """Judge a slice that is about to replace another."""
        spec, metadata = item["spec"], item["metadata"]
        named = (metadata["name"], spec["pool"]["name"], spec["driver"], spec["nodeName"])
        if named != (slice_name(NODE), slice_name(NODE), DRIVER, NODE) or spec["pool"]["resourceSliceCount"] != 1:
            self.broken(Promise.FIGURES, f"writes the slice {named}")
        if any(device["attributes"].keys() != ATTRIBUTES for device in spec["devices"]):
            self.broken(Promise.FIGURES, f"writes devices without all attributes: {spec['devices']}")
        taints = [taint for device in spec["devices"] for taint in device.get("taints", ())]
        if any((taint["key"], taint["effect"]) != ("devwatch.io/unplugged", "NoSchedule") for taint in taints):
            self.broken(Promise.FIGURES, f"writes {taints}")
        if stored is not None and stored["metadata"]["resourceVersion"] == metadata.get("resourceVersion"):
            self._replaced(spec, stored["spec"])

    def _replaced(self, spec: Object, stored: Object) -> None:
        before, now = ({each["name"]: each for each in one.get("devices") or ()} for one in (stored, spec))
        if before.keys() != now.keys() and spec["pool"]["generation"] <= stored["pool"]["generation"]:
            self.broken(Promise.FIGURES, f"other names in generation {spec['pool']['generation']}: {sorted(now)}")
        users = {claim.id for claim in self.world.cluster.claims.values() if self._is_user(claim)}
        # While `count` changes nothing is offered: a pod has a device by the other unit.
        dra = {(want.name, want.per_devnode) for want in self.plan.wants if want.publish == DRA}
        for name, device in before.items():
            same = (text_of(device, "resource"), self.units.get(name, False)) in dra
            if name in users - now.keys() and same and not self.world.taintless:
                self.broken(Promise.FIGURES, f"takes {name} out of the slice, which a pod has")
            if not device.get("taints") and (name not in now or now[name].get("taints")):
                self._withdrawn(name, device)

    def _is_user(self, claim: Claim) -> bool:
        return not claim.tolerates and claim.uid in self.cleared.get(claim.id, {claim.uid})

    def clear(self, names: Iterable[str]) -> None:
        """Take note that another client removes the taints of these devices."""
        self.cleared |= dict.fromkeys(names, frozenset(claim.uid for claim in self.world.cluster.claims.values()))

    def _withdrawn(self, name: str, device: Object) -> None:
        """Judge that a device is offered no longer: it is not there, and has not been for its grace."""
        tty, want = self.ids.get(name), self.plan.want(text_of(device, "resource"))
        if tty is None or want is None or want.publish != DRA or self.configured_at >= self.shown_at.get(name, 0.0):
            return
        if (
            self.unread or not tty.record
        ):  # the socket, and so the identity without a serial or of twins, was not to be read
            return
        if name not in self.recalled and self.shown_at.get(name, 0.0) < self.began_at:
            return  # a former daemon could not store it
        pulled = self.world.host.pulled.get(tty.birth)
        if pulled is None and tty.birth in self.seen:
            self.broken(Promise.FALL, f"withdraws {name}, which is there")
        # What came before it was pulled takes its place as well, where no scan has found both.
        found = self.found_at.get(tty.birth, pulled or 0.0)
        replaced = any((each.handled or math.inf) >= found for each in self.world.host.past.values())
        if pulled is not None and not replaced and self.now < pulled + want.grace - SOON:
            self.broken(Promise.FALL, f"withdraws {name} within its grace")

    def offered(self) -> None:
        """Take note of what the slices show, and judge that no ID has become that of another stick."""
        listed = frozenset(device["name"] for device in self.world.cluster.devices)
        self.in_slice, self.wiped = listed, (self.wiped | self.in_slice) - listed
        devices = {device["name"]: device for device in self.world.cluster.devices if not device.get("taints")}
        self.shown_at = {name: self.shown_at.get(name, self.now) for name in devices}
        for name, device in devices.items():
            want = self.plan.want(text_of(device, "resource"))
            self.units.setdefault(name, want is not None and want.per_devnode)
            tty, before = self.find_device(device), self.ids.get(name)
            last, self.last[name] = self.last.get(name), device
            # What was written before does not tell which of two twins is in the socket by now.
            if tty is None or (last == device and has_twin(tty, self.world.host.past.values())):
                continue
            # An uncertain scan may miss the first part of a stick.
            if before is not None and before.stick == tty.stick and not self.certain:
                continue
            if before is not None and (how := differs(before, tty)):
                self.broken(Promise.OWN, f"{name} has become {how}: {tty.devnode} in {tty.socket}")
            self.ids[name] = tty


@dataclass(slots=True, kw_only=True)
class ClaimJudge(SliceJudge):
    """Holds what becomes of claims and containers against what is true."""

    def may_share(self, life: Life, other: Life) -> bool:
        """Return whether two pods have one claim."""
        claims = self.world.cluster.claims_of(life)
        return bool(claims) and claims == self.world.cluster.claims_of(other)

    def evicts(self, pod: Pod) -> None:
        """Judge an eviction."""
        life = self.world.cluster.lives[pod.uid]
        claims = self.world.cluster.claims_of(life)
        if not claims or life.gone or life.pod.terminating:
            Judge.evicts(self, pod)
            return
        faults = [self._wrongly_claimed(life, claim) for claim in claims]
        if "" not in faults:
            self.broken(Promise.HOLDERS, f"evicts {pod.name}: {'; '.join(faults)}")
        if not life.evictable:
            self.broken(Promise.HOLDERS, f"evicts {pod.name}, which no controller replaces elsewhere")

    def stopped(self) -> None:
        """Judge what TERM leaves, unless the API server takes longer for the request before than TERM waits."""
        if self.world.objects.latency < 1.0:
            Judge.stopped(self)

    def _wrongly_claimed(self, life: Life, claim: Claim) -> str:
        """Return why a pod is not to be evicted for its claim; empty where it is."""
        want = self.plan.want(claim.resource)
        if want is None or want.evict is None:
            return f"{claim.resource} never evicts"
        if claim.tty is None:
            return ""
        back, lost = self.find(claim.tty), self.is_surely_lost(claim.tty, claim.resource)
        if claim.tolerates and lost:
            return "its claim tolerates the loss"
        pulled = self.world.host.pulled.get(claim.tty.birth, math.inf)
        due = pulled + want.evict + (want.grace if self.configured_at < pulled else 0.0)
        if back is not None:
            here = {tty.birth for tty in self.world.host.present if tty.stick == back.stick}
            dead = {tty.birth for tty in life.opened.values()} - here
            # What was handed out without its record returns, for the next daemon, when udev handles it.
            late = any(not tty.record and tty.plugged < self.began_at for tty in life.opened.values())
            due = back.plugged + want.evict if dead or late else math.inf
        # After a restart another stick may be taken for the lost one: then its file is dead, and the time that of the other one.
        return "" if self.now >= due - SOON or (back is None and not lost) else f"its device {claim.id} is there"

    # -- claims

    def claimed(self, life: Life, claim: Claim) -> None:
        """Judge an allocation: no other pod has the stick in another way, or by another claim."""
        for other in self.world.cluster.here:
            if other is not life and other.pod.started and other.ways.get(claim.resource) in {STATUS, PLUGIN}:
                self.broken(Promise.CHANGE, f"{life.pod.name} has a claim of {claim.resource}, beside {other.pod.name}")
        for each in self.world.cluster.claims.values():
            if each is not claim and each.tty and claim.tty and each.tty.birth == claim.tty.birth:
                self.broken(Promise.ALONE, f"{claim.tty.devnode} is {each.id} and {claim.id}, each with a claim")

    def ended_daemon(self) -> None:
        """Take note that the daemon has ended."""
        Judge.ended_daemon(self)
        placed = {claim: claim.tty.socket for claim in self.world.cluster.claims.values() if claim.tty}
        unplaced = (claim.uid for claim, socket in placed.items() if self.places.get(claim.id) != socket)
        self.unplaced_claims = frozenset(unplaced)

    def prepared(self, claim: Claim, answer: PreparedClaim) -> None:
        """Judge what a claim was prepared with."""
        self.had[claim.uid] = claim.id
        if [device.id for device in answer.devices] != [claim.id]:
            self.broken(Promise.OWN, f"{claim.name} is prepared with {answer}")

    def refused(self, claim: Claim, why: str) -> None:
        """Judge that a claim is not prepared: the daemon has offered its device, and everything works."""
        quiet = not self.world.spoiled and self.now > max(self.troubled_at, self.began_at) + TROUBLED
        if quiet and self.shown_at.get(claim.id, -math.inf) > max(self.began_at, self.configured_at):
            self.broken(Promise.ADMITTED, f"{claim.name} is not prepared: {why}")

    def crashed(self, task: asyncio.Task[None]) -> None:
        """Judge the end of a call."""
        if not task.cancelled() and (error := task.exception()):
            self.broken(Promise.ALIVE, f"a call of the kubelet ended: {error!r}")

    # -- containers

    def cycled(self) -> None:
        """Judge what links and CDI files name after a cycle of the daemon."""
        if self.now > self.began_at + SECOND or any(want.publish == PLUGIN for want in self.plan.wants):
            Judge.cycled(self)
        if not self.certain or not self.answered or self.now < self.world.disk_at + READ_AGAIN:
            return
        present = {tty.devnode: tty for tty in self.world.host.present}
        for claim in self.world.cluster.claims.values():
            devnodes = [node for edit in self.world.kubelet.edits(claim.uid).values() for node in edit.values()]
            if gone := [node for node in devnodes if node not in present]:
                self.broken(Promise.OWN, f"the file of {claim.name} names {gone}, which is not there")
            elif devnodes and self.had.get(claim.uid) == claim.id:  # else the file is of a former allocation
                self._compare(claim, [present[node] for node in devnodes])

    def opened(self, life: Life) -> None:
        """Judge what a container has opened."""
        Judge.opened(self, life)
        for claim in self.world.cluster.claims_of(life):
            ttys = [tty for key, tty in life.opened.items() if key.startswith(claim.uid)]
            if self.seen.issuperset(tty.birth for tty in ttys):
                self._compare(claim, ttys)

    def _compare(self, claim: Claim, ttys: Sequence[Tty]) -> None:
        """Judge that a claim has its own stick, and take note where that is."""
        before, mine = claim.tty, ttys[0]
        if before is not None:
            mine = next((tty for tty in ttys if tty.interface == before.interface), mine)
            how = differs(before, mine) or ("more than one stick" if len({tty.stick for tty in ttys}) > 1 else "")
            # Without record and annotation a daemon cannot know which of two twins it is.
            told = claim.uid not in self.unplaced_claims or self.world.disk_at < self.began_at
            here = {tty.birth for tty in self.world.host.present} if told else set()
            if not how and before.stick != mine.stick and before.birth in here:
                how = "another stick, while its own is there"
            if how:
                self.broken(Promise.OWN, f"{claim.name} has {how}: {mine.devnode} in {mine.socket}")
        claim.tty = mine

    # -- the end

    def ended(self) -> None:
        """Judge the end, when everything has worked for long enough."""
        Judge.ended(self)
        cluster = self.world.cluster
        devices = cluster.devices
        here = [device for device in devices if not device.get("taints")]
        for want in self.plan.wants:
            mine = [self.find_device(device) for device in here if text_of(device, "resource") == want.name]
            units = {tty and (tty.birth if want.per_devnode else tty.stick) for tty in mine}
            count = Judge.figure(self, want) - self._withheld(want) if want.publish == DRA else 0
            if None in units or not len(units) == len(mine) == count:
                self.broken(Promise.FIGURES, f"the slice has {mine} of {want.name}, and {count} are there")
        users = {claim.id: claim for claim in cluster.claims.values() if cluster.users(claim)}
        lost = {device["name"] for device in devices if device.get("taints")}
        left = users.keys() - {device["name"] for device in here}
        kept = {name for name in left if not users[name].tolerates} - self.wiped
        if not lost <= left or (not self.world.taintless and not kept <= lost):
            self.broken(Promise.FIGURES, f"the slice has {lost} as lost, and pods have {left}")
        self._ended_objects()
        for claim in users.values():
            self._kept_claim(claim, gone=claim.id in left)

    def _withheld(self, want: Want) -> int:
        """Return how much of a resource pods have from the kubelet under the name of one that is not configured any more."""
        names = {each.name for each in self.plan.wants}
        links = [link for life in self.world.cluster.here if not names.issuperset(life.ids) for link in life.links]
        return self.plan.counts(filter(None, map(self.here, links)))[want.name]

    def _ended_objects(self) -> None:
        world = self.world
        slices = world.objects.all(SLICES)
        owners = [(owner["kind"], owner["uid"]) for item in slices for owner in item["metadata"]["ownerReferences"]]
        wanted = any(want.publish == DRA for want in self.plan.wants)
        if owners != [("Node", world.server.state.uid)] * wanted:
            self.broken(Promise.FIGURES, f"there are slices of {owners}")
        records = json.loads(world.record.read_text())["claims"] if world.record.exists() else []
        recorded = Counter(each["reference"]["uid"] for each in records)
        if recorded != Counter(world.kubelet.known):
            self.broken(Promise.FIGURES, f"the record has {recorded}, and prepared are {world.kubelet.known}")
        files = {path.name[len("devwatch.io-claim_") : -len(".json")] for path in world.folder.glob("cdi/*")}
        if not files <= world.kubelet.known:
            self.broken(Promise.FIGURES, f"there are files of {files}, and prepared are {world.kubelet.known}")

    def _kept_claim(self, claim: Claim, *, gone: bool) -> None:
        want = self.plan.want(claim.resource)
        for life in self.world.cluster.users(claim):
            if not gone and not life.opened and not life.pod.terminating:
                self.broken(Promise.ADMITTED, f"{life.pod.name} waits, and its device is there")
            evicts = want is not None and want.evict is not None and want.publish == DRA
            lost = claim.tty is not None and self.is_surely_lost(claim.tty, claim.resource)
            # One that has joined a shared claim since is a successor.
            lost = lost and claim.tty is not None and life.bound < self.world.host.pulled[claim.tty.birth]
            if evicts and lost and life.evictable and not claim.tolerates and not life.pod.terminating:
                self.broken(Promise.EVICTS, f"{life.pod.name} keeps {claim.id}, which is lost")


@dataclass(slots=True, kw_only=True)
class ObjectLine:
    """The connection of one daemon to the API server, as far as objects go."""

    world: ClaimWorld
    origin = "https://server"

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Any = None,  # noqa: ANN401 - of JSON
    ) -> Object:
        """Make a request."""
        if method in {"PUT", "POST"}:
            stored = {item["metadata"]["name"]: item for item in self.world.objects.all(SLICES)}
            self.world.judge.written(body, stored.get(body["metadata"]["name"]))
        return await self.world.objects.request(method, path, query=query, body=body)

    def stream(self, path: str, *, query: Sequence[tuple[str, str]], idle: float) -> AsyncGenerator[Object]:
        """Watch."""
        return self.world.objects.stream(path, query=query, idle=idle)


class ClaimWorld(HandoverWorld):
    """Everything around the daemon of a node on which pods get devices by claims."""

    plans: tuple[Plan, ...] = PLANS
    templates: tuple[Template, ...] = TEMPLATES
    judge: ClaimJudge
    cluster: ClaimCluster
    kubelet: ClaimKubelet

    def __init__(self, metrics: Metrics) -> None:
        """Have no stick and no pod, a kubelet and a daemon."""
        self.folder = Path(tempfile.mkdtemp(prefix="dw-"))
        (self.folder / "cdi").mkdir()
        (self.folder / "plugins").mkdir()
        self.losses: deque[tuple[ApiError, bool]] = deque()
        """What becomes of the next requests for objects: the error, and whether the request is stored all the same."""
        self.denied = ""
        """What is in the paths of the objects that may not be read or written."""
        self.taintless = False
        """Whether the server has dropped taints."""
        self.disk_at = -math.inf
        """Until when the record of claims could not be read: nothing is known of the files until then."""
        self.spoiled = False
        """Whether record or files of claims fail."""
        self.edited = False
        """Whether others have written slices."""
        super().__init__(metrics)
        self.objects.stored = self._changed

    def build(self) -> tuple[ClaimJudge, ClaimCluster, ClaimKubelet]:
        """Return the parts of the world."""
        self.objects = ObjectServer(clock=self.loop.time)
        self.objects.fail = self._fail
        cluster = ClaimCluster(self.loop, self.server, self.objects)
        judge = ClaimJudge(world=self, plan=self.plan)
        kubelet = ClaimKubelet(self.loop, self.server, cluster, self.host)
        cluster.observer, kubelet.folder = judge, self.folder / "cdi"
        return judge, cluster, kubelet

    def driver(self, telemetry: Telemetry, clock: Clock) -> Dra:
        """Return the driver of a new daemon."""
        line = ObjectLine(world=self)

        def connect() -> SocketDriver:
            driver = SocketDriver(Driver(folder=self.folder, cdi=self.folder / "cdi"), self.kubelet.faults)
            driver.kubelet = self.kubelet
            return driver

        def build() -> DraParts:
            claims = ClaimDriver(
                connect,
                recorded=self.record.exists,
                read=partial(read_claim, line),
                pool=slice_name(NODE),
                telemetry=telemetry,
                clock=clock,
            )
            api = KubeSlices(server=line, node=NODE)
            return DraParts(claims=claims, slices=ResourceSlices(api, node=NODE, telemetry=telemetry, clock=clock))

        return Dra(build, recorded=self.record.exists)

    @property
    def record(self) -> Path:
        """The record of the claims."""
        return self.folder / "plugins" / DRIVER / "claims.json"

    def spoil(self, *, reading: bool = False, writing: bool = False, files: bool = False) -> None:
        """Let record or files of claims fail, or none."""
        self.kubelet.faults.reading, self.kubelet.faults.writing, self.kubelet.faults.files = (
            KubeletError("no space left") if fails else None for fails in (reading, writing, files)
        )
        self.spoiled, self.judge.troubled_at = reading or writing or files, self.loop.time()
        self.disk_at = math.inf if reading else min(self.disk_at, self.loop.time())

    def _changed(self) -> None:
        self.judge.offered()
        self.cluster.schedule_soon()

    def _fail(self, method: str, path: str) -> ApiError | None:
        """Return the error of a request for objects."""
        error, self.objects.lose = self.cluster.error, False
        if self.denied and self.denied in path:
            error = Forbidden("forbidden (403)", hint="grant it")
        elif error is None and self.losses and method != "WATCH":
            error, self.objects.lose = self.losses.popleft()
        if error is not None:
            self.judge.troubled_at = self.loop.time()
        return error

    def roll_out(self) -> None:
        """Let users replace the pods of claims as well that the configuration does not have any more."""
        super().roll_out()
        names = {want.name for want in self.plan.wants if want.publish == DRA}
        for life in self.cluster.here:
            if any(claim.resource not in names for claim in self.cluster.claims_of(life)):
                self.cluster.delete(life)

    def heal(self) -> None:
        """Let every fault end, and everything run."""
        super().heal()
        self.losses.clear()
        self.denied = ""
        self.objects.lag, self.objects.mute, self.objects.latency = 0.0, False, 0.01
        self.objects.end_watches(Retry("connection reset"))
        self.spoil()

    def end(self) -> None:
        """Judge the end."""
        self.heal()
        self.wait(20)
        if not self.judge.answered:  # as in `HandoverWorld.end`
            self.wait(TROUBLED)
        for daemon in self.daemons:
            daemon.listener.wake("config")
        self.roll_out()
        changing = self.loop.time() < self.judge.configured_at + FORGETTING
        changing |= any(daemon.health.changing for daemon in self.daemons)
        self.wait(WATCHED)
        self.roll_out()  # for what was allocated while nothing could be read of the slices
        self.wait(max(FORGETTING * changing, REPAIRS * self.edited, SETTLING))
        if not self.broken:
            self.judge.ended()

    def close(self) -> None:
        """End everything."""
        super().close()
        shutil.rmtree(self.folder)
