"""A node whose sticks pods get by ResourceClaims: the whole agent, a scheduler and a kubelet in their smallest forms."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devwatch.agent.daemon import Options
from devwatch.agent.dra import Dra
from devwatch.agent.drahost import build_dra
from devwatch.config.schema import parse
from devwatch.core.claims import ClaimReference
from devwatch.core.holders import Holding
from devwatch.core.names import DRIVER
from support.build import ZIGBEE
from support.claims import POOL
from support.drakubelet import DraKubelet
from support.fakekubelet import FakeKubelet
from support.fakes import FakeHost, FakeServer, FakeSettings, FakeWorkload
from support.home import Home, pod
from support.objectserver import GROUP, SLICES, ObjectServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from devwatch.agent.clock import Clock
    from devwatch.agent.report import Telemetry
    from devwatch.config.schema import Config

CLAIMS = f"{GROUP}/namespaces/home/resourceclaims"
USB0, USB1 = "/dev/ttyUSB0", "/dev/ttyUSB1"
TOLERATION = {"key": "devwatch.io/unplugged", "operator": "Exists"}
FOLLOWS = 1.0
"""Seconds after which the kubelet has ended what a pod that is gone had."""


def config(publish: str = "dra", *, name: str = ZIGBEE, evict: str = "", more: str = "") -> Config:
    """Return a configuration whose first resource claims the sticks of a site."""
    eviction = f", evict: {{after: {evict}}}" if evict else ""
    text = f"resources:\n- {{name: {name}, match: [{{vendor: '0001'}}], publish: {publish}{eviction}}}\n{more}"
    return parse(text.encode(), file="config.yaml")


@dataclass(slots=True, kw_only=True)
class DraSite(Home):
    """A node; daemons, pods and kubelets come and go."""

    folder: Path
    kubelet: FakeKubelet
    """The kubelet as far as device plugins and the holders of devices go."""
    manager: DraKubelet
    """The kubelet as far as drivers go."""
    objects: ObjectServer
    used: Config
    _claims: dict[str, set[str]] = field(default_factory=dict)
    """By the name of a claim: the names of its pods."""

    def driver(self, telemetry: Telemetry, clock: Clock) -> Dra:
        """Return the driver of a new daemon."""
        options = Options(config=Path("config.yaml"), node="n", kubelet_dir=self.folder, cdi_dir=self.folder / "cdi")
        build = partial(build_dra, options, self.objects, options.claims.exists, telemetry, clock)
        return Dra(build, recorded=options.claims.exists)

    @property
    def record(self) -> Path:
        """The record of the claims."""
        return self.folder / "plugins" / DRIVER / "claims.json"

    async def kill(self) -> None:
        """Kill the daemon that runs; the kernel ends its streams."""
        await Home.kill(self)
        for plugin in self.kubelet.plugins.values():
            plugin.end()

    async def restart(self) -> None:
        """Kill the daemon, and start the next one."""
        await self.kill()
        self.start(self.used)

    def use(self, used: Config) -> None:
        """Change the configuration."""
        self.used = used
        self.reload(used)

    # -- the slice

    @property
    def devices(self) -> dict[str, bool]:
        """The devices of the slice: by ID, whether it has the taint. Empty where no slice exists."""
        specs = [item["spec"] for item in self.objects.all(SLICES)]
        return {each["name"]: bool(each.get("taints")) for spec in specs for each in spec.get("devices", ())}

    @property
    def allocatable(self) -> frozenset[str]:
        """The IDs of the devices that the scheduler would allocate to the next claim."""
        items = [item for item in self.objects.all(CLAIMS) if item["metadata"]["name"] in self._claims]
        taken = {each["device"] for item in items for each in item["status"]["allocation"]["devices"]["results"]}
        return frozenset(name for name, tainted in self.devices.items() if not tainted and name not in taken)

    # -- pods with claims

    def allocate(self, name: str, device: str, **more: object) -> ClaimReference:
        """Allocate a device to a claim, a new one or one that there is; the kubelet has not asked for it yet."""
        result = {"request": "stick", "driver": DRIVER, "pool": POOL, "device": device, **more}
        claim = {"kind": "ResourceClaim", "metadata": {"name": name, "namespace": "home"}, "spec": {}}
        self._claims.setdefault(name, {name})
        return self._reference(
            self.objects.put(CLAIMS, {**claim, "status": {"allocation": {"devices": {"results": [result]}}}})
        )

    async def claim(
        self,
        name: str,
        *pods: str,
        device: str = "",
        administers: str = "",
        tolerations: tuple[dict[str, str], ...] = (),
        **fields: Any,  # noqa: ANN401 - of a Pod
    ) -> str:
        """Let pods, one of the name of the claim without any, run with this or a free device, and return its ID.

        With `administers` they have that device, for administrative access.
        """
        device, names = administers or device or min(self.allocatable), pods or (name,)
        reference = self.allocate(name, device, tolerations=[*tolerations], adminAccess=bool(administers))
        self._claims[name] = set(names)
        own: dict[str, Any] = {"requests": {}, "claims": frozenset({name})} | fields
        self.workload.run(*(pod(each, **own) for each in names))
        answer = await self.manager.prepare(reference)
        assert not answer[reference.uid].error, answer
        self.kubelet.held += tuple(
            Holding(namespace="home", pod=each, container="c", resource=DRIVER, ids=frozenset({device}), claim=name)
            for each in names
        )
        return device

    @property
    def unended(self) -> frozenset[str]:
        """The names of the claims that the driver has not ended."""
        return frozenset(self._claims)

    def _reference(self, stored: dict[str, Any]) -> ClaimReference:
        metadata = stored["metadata"]
        return ClaimReference(namespace="home", name=metadata["name"], uid=metadata["uid"])

    async def end(self, name: str) -> None:
        """End a pod, and have the kubelet follow."""
        self.workload.end(f"home/{name}")
        await asyncio.sleep(2 * FOLLOWS)

    async def follow(self) -> None:
        """Forget what pods that are gone had: a claim without a pod is unprepared, and deleted."""
        while True:
            await asyncio.sleep(FOLLOWS)
            running = {each.name for each in self.workload.running}
            self.kubelet.held = tuple(each for each in self.kubelet.held if each.pod in running)
            for name in [name for name, pods in self._claims.items() if not pods & running]:
                with contextlib.suppress(OSError, AssertionError):
                    await self._unprepare(name)

    async def _unprepare(self, name: str) -> None:
        (stored,) = (item for item in self.objects.all(CLAIMS) if item["metadata"]["name"] == name)
        await self.manager.unprepare(self._reference(stored))
        del self._claims[name]
        await self.objects.request("DELETE", f"{CLAIMS}/{name}")

    def devnodes(self) -> list[str]:
        """Return the devnodes that containers with claims get."""
        files = (json.loads(path.read_text()) for path in sorted((self.folder / "cdi").glob("*.json")))
        edits = [device["containerEdits"] for file in files for device in file["devices"]]
        return [node["hostPath"] for edit in edits for node in edit["deviceNodes"]]

    def waits(self) -> list[object]:
        """Return why a resource is not offered, as it was reported."""
        return [line.fields["reason"] for line in self.log.of("count.held")]


@contextlib.asynccontextmanager
async def dra_site(folder: Path, *sticks: str, used: Config | None = None) -> AsyncIterator[DraSite]:
    """Have a node on which everything has run for a while; the daemon must live to the end."""
    used, clock = used or config(), asyncio.get_running_loop().time
    server = FakeServer(clock)
    fake = FakeKubelet(clock, server)
    (folder / "cdi").mkdir()
    one = DraSite(
        host=FakeHost(),
        server=server,
        workload=FakeWorkload(clock, server=server),
        settings=FakeSettings(used),
        connect=lambda: fake,
        folder=folder,
        kubelet=fake,
        manager=DraKubelet(folder=folder),
        objects=ObjectServer(clock=clock),
        used=used,
    )
    one.dra = one.driver
    for devnode in sticks:
        one.host.plug("0001", devnode, serial=f"S{devnode[-1]}")
    fake.start()
    one.manager.start()
    one.start(used)
    following = asyncio.create_task(one.follow())
    try:
        await asyncio.sleep(30)
        yield one
        assert not any(task.done() for task in (*one.tasks, following)), one.tasks
    finally:
        for task in (*one.tasks, following):
            task.cancel()
        await asyncio.gather(*one.tasks, following, return_exceptions=True)
        fake.kill()
        await one.manager.stop()
