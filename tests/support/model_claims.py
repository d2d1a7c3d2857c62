"""The claims of the world: a scheduler that allocates from the slice, a kubelet that prepares, and containers that start by CDI files."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from devwatch.core.claims import ClaimReference, PreparedClaim
from devwatch.core.holders import Holding
from devwatch.core.names import DRIVER
from devwatch.core.slices import slice_name
from devwatch.kubelet.files import partial_of
from support.claimsite import Faults, FaultyDriver
from support.model_kubelet import AGAIN, FAREWELL, Cluster, Life, Observer, PodKubelet
from support.model_pods import METER, NODE, SPARE, ZIGBEE, ZWAVE, Template
from support.objectserver import CLAIMS, GROUP, SLICES, Object, ObjectServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from devwatch.agent.claims import ClaimDriver
    from devwatch.core.errors import ClaimRefused
    from devwatch.core.handover import Allocation
    from support.fakes import FakeServer
    from support.model_contract import Tty
    from support.model_host import Host
    from support.virtualtime import VirtualTimeLoop

DRA = "dra"
HOME = f"{GROUP}/namespaces/home/resourceclaims"
TOLERATION = {"key": "devwatch.io/unplugged", "operator": "Exists"}
REGISTERING = 0.3
"""Seconds in which the kubelet finds a socket."""
REPEATED = 75.0
"""Seconds after which the kubelet tries again to prepare a claim."""
WIPING = 30.0
"""Seconds after the end of a driver in which the kubelet removes its slices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimTemplate(Template):
    """A pod that asks with a claim instead of `limits`."""

    resource: str
    shared: str = ""
    """The name of a claim that outlives its pods; without it each pod has its own."""
    tolerates: bool = False


TEMPLATES = (
    Template(name="hub", requests={ZIGBEE: 1}),
    ClaimTemplate(name="left", requests={}, resource=ZIGBEE, shared="both"),
    ClaimTemplate(name="right", requests={}, resource=ZIGBEE, shared="both", owner="StatefulSet"),
    ClaimTemplate(name="wave", requests={}, resource=ZWAVE, owner="StatefulSet"),
    ClaimTemplate(name="first", requests={}, resource=ZIGBEE, owner="StatefulSet"),
    ClaimTemplate(name="calm", requests={}, resource=ZIGBEE, tolerates=True),
    Template(name="meter", requests={METER: 1}),
    ClaimTemplate(name="bare", requests={}, resource=ZIGBEE, owner=""),
    Template(name="everywhere", requests={ZWAVE: 1}, owner="DaemonSet"),
    Template(name="spare", requests={SPARE: 1}),
)
"""What users want to run, by `limits` and by claims."""


@dataclass(slots=True, kw_only=True, eq=False)
class Claim:
    """A ResourceClaim as it truly is, from its allocation on: one that is shared is another one when it is allocated again."""

    name: str
    uid: str
    resource: str
    id: str
    """The device that is allocated to it."""
    tty: Tty | None
    """What that is, None where nothing tells: at the end the part of the stick that its first container has opened."""
    tolerates: bool

    @property
    def reference(self) -> ClaimReference:
        """The claim as the kubelet names it."""
        return ClaimReference(namespace="home", name=self.name, uid=self.uid)


class ClaimObserver(Observer, Protocol):
    """Who judges what becomes of claims."""

    ids: dict[str, Tty]
    """By ID: the devnode that the slice has last shown under it."""

    def claimed(self, life: Life, claim: Claim) -> None:
        """Judge an allocation."""

    def refused(self, claim: Claim, why: str) -> None:
        """Judge that a claim is not prepared."""

    def prepared(self, claim: Claim, answer: PreparedClaim) -> None:
        """Judge what a claim was prepared with."""

    def crashed(self, task: asyncio.Task[None]) -> None:
        """Judge the end of a call."""


class ClaimCluster(Cluster):
    """The scheduler and the controllers, with claims."""

    kubelet: ClaimKubelet
    observer: ClaimObserver

    def __init__(self, loop: VirtualTimeLoop, server: FakeServer, objects: ObjectServer) -> None:
        """Have no claim."""
        super().__init__(loop, server)
        self.objects = objects
        self.claims: dict[str, Claim] = {}
        """By name: the allocated ones."""
        self._had: dict[str, tuple[Claim, ...]] = {}

    def make(self, template: Template) -> None:
        """Make a pod, if a claim of it can be allocated: users write their pods for the configuration."""
        want = self.plan.want(getattr(template, "resource", ""))
        if not isinstance(template, ClaimTemplate) or (want is not None and want.publish == DRA):
            super().make(template)

    def claims_of(self, life: Life) -> tuple[Claim, ...]:
        """Return the claims of a pod, also of one that is gone."""
        return self._had.get(life.pod.uid, ())

    def users(self, claim: Claim) -> list[Life]:
        """Return the bound pods that have not ended with a claim."""
        return [life for life in self.here if claim in self.claims_of(life)]

    @property
    def devices(self) -> list[Object]:
        """The devices of the newest generation of the pool, none while it is not complete."""
        pools = [item["spec"] for item in self.objects.all(SLICES) if item["spec"]["pool"]["name"] == slice_name(NODE)]
        newest = max((spec["pool"]["generation"] for spec in pools), default=0)
        pools = [spec for spec in pools if spec["pool"]["generation"] == newest]
        if any(spec["pool"]["resourceSliceCount"] != len(pools) for spec in pools):
            return []
        return [device for spec in pools for device in spec.get("devices") or ()]

    def _place(self, life: Life, free: dict[str, int]) -> bool:
        if isinstance(life.template, ClaimTemplate):
            return self._allocate(life, life.template.resource, life.template)
        if super()._place(life, free):
            return True
        (name,) = life.pod.requests
        shown = self._node_server.state.allocatable.get(name, "0")
        return shown == "0" and self._allocate(life, name, life.template)

    def _allocate(self, life: Life, resource: str, template: Template) -> bool:
        """Give a pod its claim; return whether there is one."""
        shared, tolerates = getattr(template, "shared", ""), getattr(template, "tolerates", False)
        claim = self.claims.get(shared)
        if claim is None:
            taken = {each.id for each in self.claims.values()}
            free = [
                device
                for device in self.devices
                if device["attributes"]["resource"]["string"] == resource
                and device["name"] not in taken
                and (tolerates or not device.get("taints"))
            ]
            if not free:
                return False
            device = min(free, key=lambda each: each["name"])
            name = shared or f"{life.pod.name}-{life.pod.uid}"
            claim = self._store(name, device, resource, tolerates=tolerates)
        self._had[life.pod.uid] = (claim,)
        life.ways[resource] = DRA
        self.change(life, claims=frozenset({claim.name}))
        self.observer.claimed(life, claim)
        return True

    def _store(self, name: str, device: Object, resource: str, *, tolerates: bool) -> Claim:
        stored = self.put(name, device["name"], tolerations=[TOLERATION] if tolerates else [])
        claim = self.claims[name] = Claim(
            name=name,
            uid=stored["metadata"]["uid"],
            resource=resource,
            id=device["name"],
            tty=self.observer.ids.get(device["name"]),
            tolerates=tolerates,
        )
        return claim

    def put(self, name: str, device: str, **fields: Any) -> Object:  # noqa: ANN401 - of a result
        """Store a claim, allocated or (without a device) not."""
        result = {"request": "stick", "driver": DRIVER, "pool": slice_name(NODE), "device": device, **fields}
        status = {"allocation": {"devices": {"results": [result]}}} if device else {}
        metadata = {"name": name, "namespace": "home"}
        return self.objects.put(HOME, {"kind": "ResourceClaim", "metadata": metadata, "spec": {}, "status": status})

    def drop(self, life: Life) -> None:
        """Let a pod be gone, and the controllers end its claims."""
        if not life.gone:
            super().drop(life)
            self._deallocate(life)

    def fail(self, life: Life) -> None:
        """Let the kubelet reject a pod."""
        super().fail(life)
        self._deallocate(life)

    def _deallocate(self, life: Life) -> None:
        """End the claims that no pod uses any more; one that is shared stays, and is allocated again later."""
        for claim in self.claims_of(life):
            if not self.users(claim) and self.claims.get(claim.name) is claim:
                del self.claims[claim.name]
                if getattr(life.template, "shared", ""):
                    self.put(claim.name, "")
                else:
                    self.delete_claim(claim.name)

    def delete_claim(self, name: str) -> None:
        """Delete a claim."""
        self.objects.delete_all(CLAIMS, f"metadata.name={name}")

    def _end(self, life: Life) -> None:
        if not self.kubelet.works or self.away or not self.kubelet.must_unprepare(life):
            super()._end(life)
            return
        life.opened = {}

        async def end() -> None:
            ended = await self.kubelet.unprepare(life)
            self._loop.call_later(0 if ended else FAREWELL, self._end, life)

        self.kubelet.spawn(end())


class Socket:
    """The driver's sockets, as a `Server`: what the kubelet asks comes without gRPC."""

    missing = ""

    def __init__(self, kubelet: ClaimKubelet, claims: ClaimDriver) -> None:
        """Do not listen yet."""
        self._kubelet, self.claims, self.connected = kubelet, claims, False
        self._calls: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Listen."""
        await asyncio.sleep(0)
        self._kubelet.find(self)

    async def close(self) -> None:
        """Stop listening."""
        self._kubelet.lose(self)

    def connect(self, *, connected: bool) -> None:
        """Let the kubelet connect, or end its connection with all that it waits for."""
        self.connected = connected
        if connected:
            self.claims.notified(None)
        for call in self._calls:
            call.cancel()
        self.claims.changed()

    async def ask(self, claim: Claim) -> PreparedClaim | ClaimRefused | str:
        """Ask for a claim."""
        answers = await self._call(self.claims.prepare([claim.reference]))
        return answers if isinstance(answers, str) else answers[claim.uid]

    async def end(self, claims: list[Claim]) -> bool:
        """End claims, and return whether that succeeded."""
        return await self._call(self.claims.unprepare([claim.reference for claim in claims])) is None

    async def _call(self, method: Any) -> Any:  # noqa: ANN401
        task = asyncio.ensure_future(method)
        self._calls.add(task)
        await asyncio.wait({task})
        self._calls.discard(task)
        return "the connection is closed" if task.cancelled() else task.result()


class SocketDriver(FaultyDriver):
    """A driver on real folders, with sockets that the kubelet of the world knows."""

    kubelet: ClaimKubelet

    def update(self, wanted: Mapping[str, Mapping[str, Allocation]]) -> None:
        """Write the CDI files; on a disk that is full they can be removed, and not be written."""
        folder, full = self.kubelet.folder, self.kubelet.faults.files is not None
        blocks = [partial_of(folder / f"devwatch.io-claim_{uid}.json") for uid in wanted if full]
        for block in blocks:
            block.mkdir()
        try:
            self._driver.cdi.update(wanted)
        finally:
            for block in blocks:
                block.rmdir()

    def server(self, claims: ClaimDriver) -> Socket:  # type: ignore[override]  # as the loop sees it
        """Return a server."""
        return Socket(self.kubelet, claims)


class ClaimKubelet(PodKubelet):
    """A kubelet that prepares claims as well; which ones it has prepared it remembers over its restarts."""

    _cluster: ClaimCluster
    observer: ClaimObserver

    def __init__(self, loop: VirtualTimeLoop, server: FakeServer, cluster: ClaimCluster, host: Host) -> None:
        """Do not run yet."""
        super().__init__(loop, server, cluster, host)
        self.folder: Path
        self.faults = Faults()
        self._socket: Socket | None = None
        self._known: dict[str, Claim] = {}
        """By UID: the claims that were prepared, and not unprepared since (the checkpoint)."""
        self._ready = dict[str, list[str]]()
        """By UID: the CDI devices of those that were prepared since the start of the kubelet."""
        self._busy = dict[str, Claim]()
        """By UID: the claims that are being prepared."""
        self._tasks = set[asyncio.Task[None]]()

    def spawn(self, work: Any) -> None:  # noqa: ANN401 - a coroutine
        """Do something in the background."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self.observer.crashed)

    @property
    def known(self) -> frozenset[str]:
        """The UIDs of the claims that are prepared."""
        return frozenset(self._known)

    # -- what happens to it

    def start(self) -> None:
        """Start: the slices of its node are deleted, and claims prepared again."""
        self._ready.clear()
        super().start()
        if not self._cluster.away:
            self._cluster.objects.delete_all(SLICES, f"spec.nodeName={NODE}")
        self._loop.call_later(REGISTERING, self._register)
        for life in self._cluster.here:
            self._loop.call_later(1, self.run, life)

    def kill(self) -> None:
        """End."""
        super().kill()
        if self._socket is not None and self._socket.connected:
            self._socket.connect(connected=False)

    def find(self, socket: Socket) -> None:
        """Find the socket of a driver."""
        self._socket = socket
        self._loop.call_later(REGISTERING, self._register)

    def _register(self) -> None:
        if self._socket is not None and not self._socket.connected and self.running:
            if self.hanging:
                self._loop.call_later(1, self._register)
            else:
                self._socket.connect(connected=True)

    def lose(self, socket: Socket) -> None:
        """Lose the connection to a driver that ends."""
        socket.connect(connected=False)
        if self._socket is socket:
            self._socket = None
            self._loop.call_later(WIPING, self._wipe, self._births)

    def _wipe(self, births: int) -> None:
        if self._socket is None and self.works and births == self._births and not self._cluster.away:
            self._cluster.objects.delete_all(SLICES, f"spec.driver={DRIVER},spec.nodeName={NODE}")

    # -- what devwatch asks

    def _holdings(self) -> Iterator[Holding]:
        yield from super()._holdings()
        for life in self._cluster.here:
            for claim in self._cluster.claims_of(life) if life.pod.started else ():
                if claim.uid in self._known:
                    ids = frozenset({claim.id})
                    name = life.pod.name
                    yield Holding(namespace="home", pod=name, container="c", resource=DRIVER, ids=ids, claim=claim.name)

    # -- pods

    @property
    def _has_ghosts(self) -> bool:
        lives = [life for life in self._cluster.lives.values() if life.gone]
        ghosts = {claim.uid for life in lives for claim in self._cluster.claims_of(life) if self.must_unprepare(life)}
        return super()._has_ghosts or bool(ghosts)

    def _refuse(self, life: Life, name: str, count: int) -> str:
        return "" if self._cluster.claims_of(life) else super()._refuse(life, name, count)

    def _fit(self, life: Life, name: str, count: int) -> str:
        return "" if self._cluster.claims_of(life) else super()._fit(life, name, count)

    def run(self, life: Life) -> None:
        """Start the container of a pod, whose claims have to be prepared."""
        claims = self._cluster.claims_of(life)
        if all(claim.uid in self._ready and self._known.get(claim.uid) is claim for claim in claims):
            super().run(life)
        elif life.lives and life.pod.started and not life.pod.terminating:
            if self.works and not any(claim.uid in self._busy or self._is_left(claim) for claim in claims):
                self.spawn(self._prepare(life, claims))
            else:
                self._loop.call_later(AGAIN, self.run, life)

    def _is_left(self, claim: Claim) -> bool:
        """Return whether a claim is prepared still for its former allocation."""
        return self._known.get(claim.uid, claim) is not claim

    async def _prepare(self, life: Life, claims: tuple[Claim, ...]) -> None:
        births = self._births
        self._busy |= {claim.uid: claim for claim in claims}
        answers = [await self.ask(claim) for claim in claims]
        for claim in claims:
            self._busy.pop(claim.uid, None)
        if births != self._births:
            return
        for claim, answer in zip(claims, answers, strict=True):
            if isinstance(answer, PreparedClaim):
                self._known[claim.uid] = claim
                self._ready[claim.uid] = [answer.cdi_name(request) for request in answer.requests]
        failed = not all(isinstance(answer, PreparedClaim) for answer in answers)
        self._loop.call_later(REPEATED if failed else 0, self.run, life)

    async def ask(self, claim: Claim, *, strange: bool = False) -> PreparedClaim | ClaimRefused | str:
        """Ask the driver for a claim, which may be a `strange` one."""
        if self._socket is None or not self._socket.connected:
            return "no driver is registered"
        answer = await self._socket.ask(claim)
        if strange:
            pass
        elif isinstance(answer, PreparedClaim):
            self.observer.prepared(claim, answer)
        elif not isinstance(answer, str):
            self.observer.refused(claim, str(answer))
        return answer

    def must_unprepare(self, life: Life) -> list[Claim]:
        """Return the claims to unprepare before a pod is gone: those that no other one uses."""
        claims = [
            claim
            for claim in self._cluster.claims_of(life)
            if claim in {self._known.get(claim.uid), self._busy.get(claim.uid)}
        ]
        return [claim for claim in claims if not [user for user in self._cluster.users(claim) if user is not life]]

    async def unprepare(self, life: Life) -> bool:
        """End the claims of a pod, and return whether that succeeded."""
        claims = [claim for claim in self.must_unprepare(life) if claim.uid not in self._busy]
        if self._socket is None or not self._socket.connected or not claims or not await self._socket.end(claims):
            return False
        for claim in claims:
            self._known.pop(claim.uid, None)
            self._ready.pop(claim.uid, None)
        return True

    def release(self, life: Life) -> None:
        """Take back what a pod had."""
        super().release(life)
        if life.gone and self.must_unprepare(life):
            self.spawn(self._forget(life))

    async def _forget(self, life: Life) -> None:
        while self.must_unprepare(life) and not (self.works and await self.unprepare(life)):  # noqa: ASYNC110 - as it does
            await asyncio.sleep(FAREWELL)

    def _found(self, life: Life) -> dict[str, Tty | None]:
        found = super()._found(life)
        for claim in self._cluster.claims_of(life):
            edits = self.edits(claim.uid)
            for name in self._ready[claim.uid]:
                paths = edits.get(name) or {"": ""}
                found |= {f"{claim.uid}:{path}": self._host.ttys.get(devnode) for path, devnode in paths.items()}
        return found

    def edits(self, uid: str) -> dict[str, dict[str, str]]:
        """Return by CDI device what the file of a claim has: by path in the container the devnode."""
        path = self.folder / f"devwatch.io-claim_{uid}.json"
        if not path.exists():
            return {}
        devices = json.loads(path.read_text())["devices"]
        return {
            each["name"]: {node["path"]: node["hostPath"] for node in each["containerEdits"]["deviceNodes"]}
            for each in devices
        }
