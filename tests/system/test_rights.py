"""Least rights: each set works with exactly its rules, and what a missing one costs is told in one line, with what grants it."""

from __future__ import annotations

import os
import re
import subprocess
import time
import uuid
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from devwatch.core.classes import class_names
from support.checkout import CHECKOUT
from system.apiserver import NAMESPACE, PATCH_ONLY, WATCH
from system.evictionproxy import evicting_url
from system.test_end_to_end import CONFIG, STICK, World
from system.test_journey import RESOURCE, owned_pod
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from system.apiserver import ApiServer, Object
    from system.daemon import Daemon
    from system.udevd import Sticks

    StartDaemon = Callable[..., Daemon]
    MakeWorld = Callable[..., World]

pytestmark = pytest.mark.system

ZIGBEE: dict[str, Any] = {"vendor": "10c4", "product": "8a2a", "interface": "01"}
EVENTS: list[Object] = [{"apiGroups": [""], "resources": ["events"], "verbs": ["create"]}]
LIST_PODS: list[Object] = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
EVICT: list[Object] = [{"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]}]
EVICTING = CONFIG.replace("removalGrace: 500ms", "removalGrace: 500ms\n    evict: {after: 1s}", 1)
RBAC = "/apis/rbac.authorization.k8s.io/v1"


@pytest.fixture(scope="module")
def url(control_plane: ApiServer) -> Iterator[str]:
    """Return where policy/v1 evictions are taken."""
    with evicting_url(control_plane) as found:
        yield found


@pytest.fixture
def make_world(apiserver: ApiServer, tmp_path: Path, start_daemon: StartDaemon, url: str) -> Iterator[MakeWorld]:
    """Return a function that makes a Node, and a configuration for a daemon that has these rights and no other."""
    made: list[World] = []

    def make(*rules: Object, config: str = CONFIG) -> World:
        name = f"account-{uuid.uuid4().hex[:6]}"
        folder = tmp_path / name
        folder.mkdir()
        world = World(apiserver, folder, start_daemon)
        made.append(world)
        world.config.write_text(config)
        apiserver.service_account(name, rules=rules)
        world.kubeconfig = apiserver.kubeconfig(name, token=apiserver.token(name), server=url)
        return world

    yield make
    for world in made:
        apiserver.delete_node(world.node)


def test_with_the_right_to_patch_alone(make_world: MakeWorld, sticks: Sticks) -> None:
    """The Node follows the sticks, a foreign write is repaired at the resync, and each missing right is told once."""
    world = make_world(*PATCH_ONLY, config=CONFIG + "resync: 1s\n")
    sticks.plug("tty40", **STICK)
    with world.start() as daemon:
        unwatched = daemon.wait_log("node.unwatched")
        assert "cannot list resource" in unwatched["error"]
        assert "--verb=list --resource=nodes;" in unwatched["hint"]
        daemon.wait_for(lambda: world.shows("1"))
        world.write({"status": {"capacity": {RESOURCE: "7"}}})
        daemon.wait_log("drift.repaired")
        sticks.plug("tty41", **{**STICK, "serial": "AEO0002"})
        refused = daemon.wait_log("event.refused")
        assert "--verb=create --resource=events;" in refused["hint"]
        daemon.wait_for(lambda: world.shows("2"))
        events = [record["event"] for record in daemon.log]
        assert (events.count("node.unwatched"), events.count("event.refused")) == (1, 1)
        assert "node.patch_failed" not in events, daemon.stderr


def test_with_the_right_to_watch(make_world: MakeWorld, sticks: Sticks) -> None:
    """A foreign write and a Node that is deleted and made anew are repaired long before the next resync."""
    world = make_world(*PATCH_ONLY, *WATCH, config=CONFIG + "resync: 5m\n")
    sticks.plug("tty40", **STICK)
    with world.start() as daemon:
        daemon.wait_for(lambda: world.shows("1"))
        world.write({"status": {"capacity": {RESOURCE: "7"}}})
        daemon.wait_for(lambda: world.shows("1"))
        daemon.wait_log("drift.repaired")
        world.apiserver.delete_node(world.node)
        world.apiserver.create_node(world.node)
        daemon.wait_for(lambda: world.shows("1"))
        assert [entry["devnode"] for entry in world.devices()[RESOURCE]] == ["/dev/tty40"]
        assert "node.unwatched" not in daemon.stderr


def test_with_the_right_to_create_events(make_world: MakeWorld, sticks: Sticks) -> None:
    """A stick that comes is an Event of the Node, where `kubectl describe node` looks for it."""
    world = make_world(*PATCH_ONLY, *EVENTS)
    with world.start() as daemon:
        daemon.wait_for(lambda: world.shows("0"))
        sticks.plug("tty40", **STICK)
        (event,) = daemon.wait_for(lambda: _events(world, "DeviceAdded", name=world.node, uid=world.node))
        assert (event["involvedObject"]["kind"], event["type"]) == ("Node", "Normal")
        assert "/dev/tty40" in event["message"]
        assert "event.refused" not in daemon.stderr


@pytest.fixture
def cleared(apiserver: ApiServer) -> Iterator[None]:
    """Remove the roles that the hints make."""
    before = {path: _names(apiserver, path) for path in (f"{RBAC}/clusterrolebindings", f"{RBAC}/clusterroles")}
    yield
    for path, names in before.items():
        for name in _names(apiserver, path) - names:
            apiserver.request("DELETE", f"{path}/{quote(name)}")


@pytest.mark.usefixtures("cleared")
def test_what_the_hints_grant_is_used_without_a_restart(make_world: MakeWorld, sticks: Sticks) -> None:
    """Without the right to list pods, or to evict them, nobody is evicted and the log names it; granted, the pods go.

    Events are written where that is allowed; elsewhere the log names that right too.
    """
    unlisting = make_world(*PATCH_ONLY, *WATCH, *EVICT, *EVENTS, config=EVICTING)
    unevicting = make_world(*PATCH_ONLY, *WATCH, *LIST_PODS, config=EVICTING)
    missing = {unlisting: "--verb=list --resource=pods;", unevicting: "--verb=create --resource=pods/eviction;"}
    sticks.plug("tty40", **STICK)
    with ExitStack() as running:
        daemons = {world: running.enter_context(world.start()) for world in missing}
        pods = {world: _used_stick(world, daemon) for world, daemon in daemons.items()}
        bound = int(time.time())
        daemons[unlisting].wait_for(lambda: int(time.time()) > bound)
        # Without a list of pods only an answer of the server in a later second tells that they were there before.
        for world, daemon in daemons.items():
            world.write({"status": {"capacity": {RESOURCE: "7"}}})
            daemon.wait_log("drift.repaired")
        sticks.unplug("tty40")
        for world, daemon in daemons.items():
            _grant(world.apiserver, daemon.wait_log("pod.eviction_refused")["hint"], missing[world])
            assert _exists(world.apiserver, pods[world])
        _grant(unevicting.apiserver, daemons[unevicting].wait_log("event.refused")["hint"], "--resource=events;")
        for world, daemon in daemons.items():
            daemon.wait_log("pod.evicted", timeout=90)
            assert not _exists(world.apiserver, pods[world])
        heard = daemons[unlisting]
        heard.wait_for(lambda: _events(unlisting, "DeviceLost", uid=pods[unlisting]["metadata"]["uid"]))
        heard.wait_for(lambda: _events(unlisting, "DeviceRemoved", name=unlisting.node))


@pytest.fixture
def tenant(apiserver: ApiServer) -> Iterator[str]:
    """Return the path of a namespace of another user, and have the controllers that count for its quota."""
    name = f"tenant-{uuid.uuid4().hex[:6]}"
    apiserver.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    account = {"metadata": {"name": "default"}, "automountServiceAccountToken": False}
    apiserver.request("POST", f"/api/v1/namespaces/{name}/serviceaccounts", account)
    apiserver.start_controller_manager()
    yield name
    apiserver.stop_control()
    apiserver.request("DELETE", f"/api/v1/namespaces/{name}")


def test_a_quota_keeps_the_sticks_from_a_namespace(apiserver: ApiServer, tenant: str) -> None:
    """Any Pod may ask for one; with the lines of docs/security.md none of this namespace gets it, by `limits` or by a claim."""
    page = (CHECKOUT / "docs" / "security.md").read_text("utf-8")
    names = re.findall(r'`(\S+): "0"`', page)
    assert len(names) == 2
    served = apiserver.serves("resource.k8s.io/v1")
    hard = {name: "0" for name in names if served or "deviceclass" not in name}
    path = f"/api/v1/namespaces/{tenant}"
    apiserver.request("POST", f"{path}/resourcequotas", {"metadata": {"name": "q"}, "spec": {"hard": hard}})
    eventually(lambda: apiserver.request("GET", f"{path}/resourcequotas/q")[1]["status"].get("used") == hard)
    container = {"name": "c", "image": "none", "resources": {"limits": {"aeotec/zstick": 1}}}
    asked = [
        apiserver.request("POST", f"{path}/pods", {"metadata": {"name": "p"}, "spec": {"containers": [container]}})
    ]
    if served:
        ((_, name),) = class_names(["aeotec/zstick"])
        exactly = {"deviceClassName": name}
        claim = {"metadata": {"name": "c"}, "spec": {"devices": {"requests": [{"name": "a", "exactly": exactly}]}}}
        claims = f"/apis/resource.k8s.io/v1/namespaces/{tenant}/resourceclaims"
        asked.append(apiserver.request("POST", claims, claim))
    assert [status for status, _ in asked] == [403] * len(asked)
    assert all("exceeded quota" in answer["message"] for _, answer in asked)


def _used_stick(world: World, daemon: Daemon) -> Object:
    """Return a pod that uses the stick of the Node."""
    daemon.wait_for(lambda: world.shows("1"))
    return owned_pod(world.apiserver, world.node, RESOURCE)


def _grant(apiserver: ApiServer, hint: str, part: str) -> None:
    """Do what a hint says, as an administrator would, if it names this right."""
    assert part in hint
    folder = os.environ["KUBEBUILDER_ASSETS"]
    environ = {
        **os.environ,
        "KUBECONFIG": str(apiserver.admin_kubeconfig),
        "PATH": f"{folder}:{os.environ['PATH']}",
    }
    subprocess.run(["sh", "-c", hint], env=environ, check=True, capture_output=True)


def _exists(apiserver: ApiServer, pod: Object) -> bool:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}"
    status, found = apiserver.request("GET", path)
    return status == 200 and "deletionTimestamp" not in found["metadata"]


def _events(world: World, reason: str, **subject: str) -> list[Object]:
    """Return the Events for this reason about an object, in whichever namespace."""
    fields = {"reason": reason, **{f"involvedObject.{key}": value for key, value in subject.items()}}
    selector = quote(",".join(f"{key}={value}" for key, value in fields.items()))
    items: list[Object] = world.apiserver.request("GET", f"/api/v1/events?fieldSelector={selector}")[1]["items"]
    return items


def _names(apiserver: ApiServer, path: str) -> set[str]:
    return {item["metadata"]["name"] for item in apiserver.request("GET", path)[1]["items"]}
