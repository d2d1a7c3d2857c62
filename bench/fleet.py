"""A thousand nodes against one API server: the real loop and the real client, with simulated sticks."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.ground import RESOURCE, VENDOR
from bench.growth import Settled, Silence
from bench.server import RIGHTS
from bench.stats import Sample
from bench.table import Row, at_most
from devwatch import __version__
from devwatch.agent.clock import Clock
from devwatch.agent.observednode import RESYNC_SPREAD, WATCHED_RESYNC
from devwatch.agent.report import Telemetry
from devwatch.agent.wiring import build_agent
from devwatch.config.schema import Config
from devwatch.core.device import Device
from devwatch.core.inventory import Scan
from devwatch.core.rules import KeyTest, Matcher, Pattern, ResourceRule
from devwatch.kube.client import Connection
from devwatch.kube.credentials import Credentials
from devwatch.kube.nodes import KubeNode
from devwatch.kube.watch import WATCH_TIMEOUT
from devwatch.observe.health import Health
from devwatch.observe.metrics import Metrics
from system.apiserver import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.ground import Ground
    from bench.server import AuditedServer, Request
    from devwatch.core.node import NodePatch, NodeState

NODES, LARGE = 1000, 5000
_ACCOUNT = "fleet"
_RESYNC = 30.0
"""Seconds, in place of five minutes: a round of resyncs fits the bench."""
_PLUGS = 24
"""Nodes that start, or are made, at the same time."""
_PAUSE = 2.0
_TIMEOUT = 60.0
_SHORT = 15.0
"""Seconds for which the server refuses most requests, at most."""
_FLOW = "flowcontrol.apiserver.k8s.io"
_RULE = ResourceRule(
    name=RESOURCE,
    match=(Matcher(tests=(KeyTest(key="vendor", patterns=(Pattern(text=VENDOR),)),)),),
    removal_grace=0.0,
)
_STICK = Device(devnode="/dev/ttyUSB0", devpath="/devices/usb", number=1, incarnation=1, vendor=VENDOR, properties={})


@dataclass(slots=True, kw_only=True)
class Publisher:
    """One simulated node: a source of at most one device, and the real client, whose responses are recorded."""

    api: KubeNode
    plugged: bool = True
    shown: bool | None = None
    """What the Node was last known to show."""
    wake: Callable[[str], None] = lambda _: None
    date: str = ""

    def scan(self, now: float) -> Scan:
        """Return the stick while it is plugged."""
        return Scan(at=now, devices=(_STICK,) if self.plugged else ())

    def expect(self, paths: frozenset[str], subsystems: frozenset[str]) -> None:
        """Ignore the paths: there are no links."""

    async def patch(self, patch: NodePatch) -> NodeState:
        """Send it. Raises as the client does."""
        state = await self.api.patch(patch)
        if (count := state.capacity.get(RESOURCE)) is not None:
            self.shown = count == "1"
        return state

    @property
    def done(self) -> bool:
        """Whether the Node shows the device that is present."""
        return self.shown == self.plugged

    def set(self, *, plugged: bool) -> None:
        """Plug or pull."""
        self.plugged = plugged
        self.wake("uevent")

    async def run(self, name: str) -> None:
        """Reconcile until cancelled."""
        loop = asyncio.get_running_loop()
        health = Health(sweep=_RESYNC, last_cycle=0)
        reconciler = build_agent(
            source=self,
            api=self,
            watch=self.api.watch,
            settings=Settled(),
            config=Config(resources=(_RULE,), sweep=WATCHED_RESYNC, resync=_RESYNC),
            node=name,
            telemetry=Telemetry(log=Silence(), metrics=Metrics(__version__), health=health),
            clock=Clock(now=loop.time, unix=lambda: 0.0, jitter=random.random),
        )
        self.wake = reconciler.wake
        await reconciler.run()


@dataclass(slots=True, kw_only=True)
class Round:
    """The requests that the server received while all nodes did the same."""

    seconds: float
    requests: list[Request] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.requests) / self.seconds

    @property
    def codes(self) -> str:
        """How often each status was answered."""
        return ", ".join(
            f"{count} x {code}" for code, count in sorted(Counter(each.code for each in self.requests).items())
        )


class Fleet:
    """All publishers, in this process."""

    def __init__(self, server: AuditedServer, kubeconfig: Path, count: int) -> None:
        """Run nothing yet."""
        self.server = server
        self._credentials = Credentials(kubeconfig=str(kubeconfig), environ={})
        admin = Credentials(kubeconfig=str(server.admin_kubeconfig), environ={})
        self._admin = Connection(admin, version=__version__, timeout=_TIMEOUT)
        names = [f"fleet-{number}" for number in range(count)]
        self.members = {name: Publisher(api=KubeNode(name, self._credentials, version=__version__)) for name in names}

    async def create(self) -> None:
        """Make the Nodes."""
        body = {"kind": "Node", "apiVersion": "v1"}
        await _a_few_at_a_time(
            [self._ask("POST", "/api/v1/nodes", {**body, "metadata": {"name": name}}) for name in self.members]
        )

    async def _ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        return await self._admin.request(method, path, body=body)

    async def start(self, tasks: set[asyncio.Task[None]]) -> None:
        """Start them, a few at a time as machines boot, until each Node shows its stick."""
        await _a_few_at_a_time([self._start(name, member, tasks) for name, member in self.members.items()])

    async def _start(self, name: str, member: Publisher, tasks: set[asyncio.Task[None]]) -> None:
        tasks.add(asyncio.create_task(member.run(name)))
        await _until(lambda: member.done, _TIMEOUT)

    @property
    def correct(self) -> int:
        """How many Nodes show the devices that are present."""
        return sum(member.done for member in self.members.values())

    async def change(self, *, plugged: bool, within: float) -> Round:
        """Let every stick come or go at the same moment, until all Nodes show it, or for so many seconds."""
        mark, began = self.server.mark(), time.monotonic()
        for member in self.members.values():
            member.set(plugged=plugged)
        with contextlib.suppress(TimeoutError):
            await self.settle(within)
        return Round(seconds=time.monotonic() - began, requests=self.server.requests(_ACCOUNT, since=mark))

    async def settle(self, within: float) -> float:
        """Return after how many seconds all Nodes show the devices that are present. Raises `TimeoutError`."""
        began = time.monotonic()
        await _until(lambda: self.correct == len(self.members), within)
        return time.monotonic() - began

    async def rest(self, seconds: float) -> tuple[Round, int, int]:
        """Change nothing; return the requests meanwhile, how many Nodes were written, and by how much etcd's revision grew."""
        mark, began = self.server.mark(), time.monotonic()
        revision, before = await self.versions()
        # Reading a thousand Nodes takes a while, which counts as part of the rest.
        await asyncio.sleep(max(began + seconds - time.monotonic(), 0))
        quiet = Round(seconds=time.monotonic() - began, requests=self.server.requests(_ACCOUNT, since=mark))
        last, after = await self.versions()
        return quiet, sum(after[name] != version for name, version in before.items()), last - revision

    async def versions(self) -> tuple[int, dict[str, str]]:
        """Return the revision of etcd, and the resourceVersion of every Node."""
        answer = await self._ask("GET", "/api/v1/nodes")
        items = {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in answer["items"]}
        return int(answer["metadata"]["resourceVersion"]), items

    async def close(self) -> None:
        """Remove the Nodes and drop every connection."""
        await asyncio.gather(*(member.api.close() for member in self.members.values()))
        await self._ask("DELETE", "/api/v1/nodes")
        await self._admin.close()


async def _a_few_at_a_time(jobs: list[Any]) -> None:
    gate = asyncio.Semaphore(_PLUGS)

    async def one(job: Any) -> None:  # noqa: ANN401 - an awaitable of anything
        async with gate:
            await job

    await asyncio.gather(*(one(job) for job in jobs))


async def _until(check: Callable[[], bool], within: float) -> None:
    async with asyncio.timeout(within):
        while not check():  # noqa: ASYNC110 - a condition on many members, which no event reports
            await asyncio.sleep(0.01)


def fleet(ground: Ground) -> list[Row]:
    """Measure all nodes while they start, change at once, are idle, and are refused by the server."""
    kubeconfig = ground.server.service_account(_ACCOUNT, rules=RIGHTS)
    ground.server.stop_control()
    return asyncio.run(_fleet(Fleet(ground.server, kubeconfig, ground.size(NODES, 50)), ground))


async def _fleet(fleet: Fleet, ground: Ground) -> list[Row]:
    tasks: set[asyncio.Task[None]] = set()
    await fleet.create()
    began = time.monotonic()
    try:
        await fleet.start(tasks)
        started = time.monotonic() - began
        rows = await _figures(fleet, ground)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await fleet.close()
    return [
        Row(
            bench="fleet",
            figure=f"{len(fleet.members)} nodes started",
            unit="s",
            value=started,
            note="in one process; the processors are shared with the server",
        ),
        *rows,
    ]


async def _figures(fleet: Fleet, ground: Ground) -> list[Row]:
    await asyncio.sleep(_PAUSE)  # the watches begin
    changed = await fleet.change(plugged=False, within=_TIMEOUT)
    since = time.time()
    quiet, written, revisions = await fleet.rest(_RESYNC + _PAUSE)
    return [
        *_change_rows(changed, "when all change at once"),
        *_idle_rows(quiet, len(fleet.members), written, revisions),
        *_spread_rows(quiet, since, len(fleet.members)),
        *await _refused(fleet, ground),
        *_paper_rows(changed),
    ]


async def _refused(fleet: Fleet, ground: Ground) -> list[Row]:
    with _Shortage(ground.server):
        refused = await fleet.change(plugged=True, within=_SHORT)
        correct = fleet.correct
    late = await fleet.settle(_TIMEOUT)
    row = partial(Row, bench="fleet")
    note = "requests are retried with exponential backoff and jitter, after at most 30 s"
    return [
        row(
            figure=f"Nodes correct after {refused.seconds:.0f} s of refusals (429)",
            value=float(correct),
            note=f"of {len(fleet.members)}; {refused.codes}",
        ),
        row(figure="requests while most are refused", unit="1/s", value=refused.rate),
        row(figure="refusals end -> all Nodes correct", unit="s", value=late, note=note),
    ]


def _change_rows(changed: Round, when: str) -> list[Row]:
    row = partial(Row, bench="fleet")
    patches = [request for request in changed.requests if request.target == "nodes/status"]
    slow = Sample.of([request.seconds * 1000 for request in patches])
    return [
        row(figure=f"all Nodes correct, {when}", unit="s", value=changed.seconds, note=changed.codes),
        row(figure=f"requests, {when}", unit="1/s", value=changed.rate),
        row(figure=f"PATCH in the server, {when}", unit="ms", value=slow),
    ]


def _idle_rows(quiet: Round, nodes: int, written: int, revisions: int) -> list[Row]:
    row = partial(Row, bench="fleet")
    scaled = nodes / (WATCHED_RESYNC * (1 - RESYNC_SPREAD / 2))
    return [
        row(figure="requests while idle, resync every 30 s", unit="1/s", value=quiet.rate, note=quiet.codes),
        row(
            figure="requests while idle, resync every 5 min (on paper)",
            unit="1/s",
            value=scaled + _renewals(nodes),
            note=_RENEWAL,
        ),
        row(figure="Nodes written while idle", value=float(written), goal=at_most(0, written)),
        row(
            figure="revisions of etcd while idle",
            value=float(revisions),
            note="newer servers renew leases of their own",
        ),
    ]


_RENEWAL = "with the renewal of every watch, two requests every four minutes"


def _renewals(nodes: int) -> float:
    """Return the requests a second with which this many nodes renew their watches: a list and a watch each time."""
    return nodes / WATCH_TIMEOUT


def _spread_rows(quiet: Round, since: float, nodes: int) -> list[Row]:
    """Return how far resyncs that began at one moment have spread in the first round after it."""
    asked = sorted(
        (request.received - since, request.name) for request in quiet.requests if request.target == "nodes/status"
    )
    first = list({name: moment for moment, name in reversed(asked)}.values())
    note = f"the interval is shortened by up to {RESYNC_SPREAD:.0%} at random; at five minutes it is ten times as wide"
    row = partial(Row, bench="fleet")
    return [
        row(figure="first resync after all changed", unit="s after", value=Sample.of(first), note=note),
        row(figure="most resyncs in a second", unit="1/s", value=float(_peak(first)), note=f"of {nodes} nodes"),
    ]


def _peak(moments: list[float]) -> int:
    return max(Counter(int(moment) for moment in moments).values(), default=0)


def _paper_rows(changed: Round) -> list[Row]:
    width = WATCHED_RESYNC * RESYNC_SPREAD
    rate = LARGE / (WATCHED_RESYNC * (1 - RESYNC_SPREAD / 2)) + _renewals(LARGE)
    patches = [request for request in changed.requests if request.target == "nodes/status"]
    row = partial(Row, bench="fleet")
    return [
        row(figure=f"{LARGE} nodes idle (on paper)", unit="1/s", value=rate, note=_RENEWAL),
        row(
            figure=f"{LARGE} nodes, first resync after all changed (on paper)",
            unit="1/s",
            value=LARGE / width,
            note=f"over {width:.0f} s",
        ),
        row(
            figure=f"{LARGE} nodes correct after all changed (on paper)",
            unit="s",
            value=LARGE * changed.seconds / len(patches),
        ),
    ]


class _Shortage:
    """API priority and fairness with almost no concurrency for the fleet's patches, and no queue: most get a 429."""

    def __init__(self, server: AuditedServer) -> None:
        """Find the version that the server has."""
        self._server = server
        versions = ("v1", "v1beta3", "v1beta2", "v1beta1")
        self._version = next(version for version in versions if server.serves(f"{_FLOW}/{version}"))

    def __enter__(self) -> None:
        """Create the priority level, and the flow schema that selects it."""
        shares = "nominalConcurrencyShares" if self._version in {"v1", "v1beta3"} else "assuredConcurrencyShares"
        self._make(
            "prioritylevelconfigurations",
            {"type": "Limited", "limited": {shares: 1, "limitResponse": {"type": "Reject"}}},
        )
        subject = {"kind": "ServiceAccount", "serviceAccount": {"name": _ACCOUNT, "namespace": NAMESPACE}}
        resources = [{"verbs": ["patch"], "apiGroups": [""], "resources": ["nodes/status"], "clusterScope": True}]
        rules = [{"subjects": [subject], "resourceRules": resources}]
        spec = {"priorityLevelConfiguration": {"name": _ACCOUNT}, "matchingPrecedence": 100, "rules": rules}
        self._make("flowschemas", spec)

    def __exit__(self, *_: object) -> None:
        """Remove both."""
        for kind in ("flowschemas", "prioritylevelconfigurations"):
            self._server.request("DELETE", f"/apis/{_FLOW}/{self._version}/{kind}/{_ACCOUNT}")

    def _make(self, kind: str, spec: dict[str, Any]) -> None:
        names = {"flowschemas": "FlowSchema", "prioritylevelconfigurations": "PriorityLevelConfiguration"}
        body = {
            "apiVersion": f"{_FLOW}/{self._version}",
            "kind": names[kind],
            "metadata": {"name": _ACCOUNT},
            "spec": spec,
        }
        status, answer = self._server.request("POST", f"/apis/{_FLOW}/{self._version}/{kind}", body)
        if status != 201:  # noqa: PLR2004 - Created
            raise AssertionError(f"no {kind}: {answer.get('message')}")
