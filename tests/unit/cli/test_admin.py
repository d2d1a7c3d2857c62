"""`purge` over real HTTP: it takes away what was asked for and no more, from every node that lets it, and says what it could not do."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devwatch.cli import admin
from devwatch.cli.display import Screen
from devwatch.cli.entry import main
from devwatch.core.claims import ClaimReference, PreparedClaim
from devwatch.core.handover import Allocation
from devwatch.core.node import ANNOTATION
from devwatch.host.lock import NodeLock
from devwatch.kube.client import Connection
from devwatch.kube.credentials import Credentials
from devwatch.kubelet.driver import Driver
from devwatch.kubelet.node import Kubelet
from support.nodesite import OURS, RESOURCE, node, site
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from devwatch.core.errors import ClaimRefused
    from devwatch.core.handover import Offer
    from support.nodesite import Site

RBAC = 'nodes "{}" is forbidden: User "u" cannot patch resource "nodes/status" in API group "" at the cluster scope'


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Site]:
    """Return an API server with three Nodes on which devwatch advertises."""
    with site(tmp_path, "n1", "n2", "n3") as running:
        yield running


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a purge of all nodes ended."""

    status: int
    out: list[str]
    err: list[str]


def purge(  # noqa: PLR0913 - the options of the command
    cluster: Site,
    *,
    node: str | None = None,
    dry_run: str | None = None,
    confirmed: Callable[[int], bool] = lambda _count: True,
    here: str = "",
    plugins: Path = Path("/nowhere"),
    kubelet: Path = Path("/nowhere"),
) -> Done:
    """Purge a node, by default all, and look again without a pause."""
    connection = Connection(Credentials(kubeconfig=cluster.kubeconfig, environ={}), version="0")
    out, err = io.StringIO(), io.StringIO()
    task = admin.Purge(
        node=node,
        dry_run=dry_run,
        confirmed=confirmed,
        pause=0,
        sync=0,
        here=here,
        plugins=plugins,
        kubelet=kubelet,
        cdi=kubelet / "cdi",
    )
    status = admin.run(connection, admin.purge(connection, Screen(out=out), Screen(out=err), task))
    return Done(status=status, out=out.getvalue().splitlines(), err=err.getvalue().splitlines())


def advertising(cluster: Site) -> list[str]:
    """Return the Nodes that still have something of devwatch."""
    return [name for name, held in cluster.nodes.items() if RESOURCE in held["status"]["capacity"]]


# -- which nodes


ONE, ALL = ["n1"], ["n1", "n2", "n3"]


@pytest.mark.parametrize(
    ("options", "variables", "wanted"),
    [
        (["--node", "n1"], {"DEVWATCH_ALL_NODES": "1"}, ONE),
        (["--node", "n1"], {"DEVWATCH_ALL_NODES": "1", "DEVWATCH_NODE": "n1"}, ONE),
        (["--node", "n1"], {"DEVWATCH_ALL_NODES": "1", "DEVWATCH_NODE": "n2"}, ONE),
        (["--node", "n1", "--no-all-nodes"], {"DEVWATCH_ALL_NODES": "1"}, ONE),
        (["--no-all-nodes"], {"DEVWATCH_ALL_NODES": "1", "DEVWATCH_NODE": "n1"}, ONE),
        ([], {"DEVWATCH_NODE": "n1"}, ONE),
        ([], {"DEVWATCH_NODE": "n1", "DEVWATCH_ALL_NODES": "no"}, ONE),
        (["--all-nodes"], {"DEVWATCH_NODE": "n1"}, ALL),
        (["--all-nodes"], {"DEVWATCH_NODE": "n1", "DEVWATCH_ALL_NODES": "maybe"}, ALL),
        ([], {"DEVWATCH_ALL_NODES": "1"}, ALL),
    ],
)
def test_the_command_line_says_what_is_purged_whatever_the_variables_say(
    options: list[str],
    variables: dict[str, str],
    wanted: list[str],
    cluster: Site,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A variable left over from another day neither widens nor narrows what somebody types."""
    argv = ["purge", "--dry-run", "--kubeconfig", cluster.kubeconfig, *options]
    assert main(argv, variables) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert heads == [f"{name}: would remove" for name in wanted]


@pytest.mark.parametrize(
    ("options", "variables"),
    [
        (["--node", "n1", "--all-nodes"], {}),
        (["--node", "n1", "--all-nodes"], {"DEVWATCH_NODE": "n1"}),
        ([], {"DEVWATCH_NODE": "n1", "DEVWATCH_ALL_NODES": "true"}),
    ],
)
def test_one_node_and_all_of_them_contradict_each_other(
    options: list[str], variables: dict[str, str], cluster: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for in the same breath, neither is guessed: status 2, and nobody is asked for anything."""
    assert main(["purge", "--yes", "--kubeconfig", cluster.kubeconfig, *options], variables) == 2
    assert "contradict each other" in capsys.readouterr().err
    assert cluster.asked == []


# -- failures


def test_a_node_that_cannot_be_written_keeps_no_other_from_being_purged(cluster: Site) -> None:
    """All others are done and looked at again; the failure is one line with its node and what helps, and the status is 1."""
    cluster.refusals = {"n1": (403, RBAC.format("n1")), "n2": (500, "try\nlater \x1b[31m")}
    done = purge(cluster)
    assert done.status == 1
    assert cluster.removed == ["n3"]
    assert cluster.asked == ["n1", "n2", "n3", "n3"]
    assert done.out[-1] == "removed from 1 node"
    (first, second) = done.err
    assert first.startswith('devwatch: n1: nodes "n1" is forbidden')
    assert "kubectl create clusterrole" in first
    assert second.startswith("devwatch: n2: try later \\x1b[31m")


def test_what_devwatch_did_not_write_is_left_alone_and_named(cluster: Site) -> None:
    """A key in the annotation gives no right to the GPUs of another plugin; nor does an annotation that a user wrote."""
    gpu = "nvidia.com/gpu"
    for name in ("n1", "n2"):
        held = cluster.nodes[name]
        held["metadata"]["annotations"][ANNOTATION] = json.dumps({RESOURCE: [], gpu: []})
        for part in ("capacity", "allocatable"):
            held["status"][part][gpu] = "2"
    cluster.nodes["n2"]["metadata"]["managedFields"][0]["manager"] = "kubectl-annotate"
    done = purge(cluster)
    assert done.status == 0
    assert [cluster.nodes[name]["status"]["capacity"].get(gpu) for name in ("n1", "n2")] == ["2", "2"]
    assert advertising(cluster) == ["n2"]
    assert [line for line in done.out if "left alone" in line] == [
        f"  {name} is listed and left alone: its count is not devwatch's to remove" for name in (gpu, RESOURCE, gpu)
    ]


def test_a_removal_that_a_policy_refuses_is_told_with_the_list_to_change(cluster: Site) -> None:
    """The name has to stay allowed until it is gone, which nobody guesses."""
    denied = f"ValidatingAdmissionPolicy 'devwatch' with binding 'b' denied request: status.capacity[{RESOURCE}] is not among"
    cluster.refusals = {"n1": (403, f"{denied} the resources that the policy allows: x.io/y")}
    (line,) = purge(cluster).err
    assert f"keep {RESOURCE} in spec.variables[0] of ValidatingAdmissionPolicy devwatch" in line


def test_a_node_that_is_gone_meanwhile_has_nothing_left_to_remove(cluster: Site) -> None:
    """That is no failure, and it is said."""

    def vanish(name: str) -> None:
        del cluster.nodes[{"n1": "n2", "n3": "n1"}[name]]

    cluster.at_removal = vanish
    done = purge(cluster)
    assert (done.status, done.err) == (0, [])
    assert cluster.removed == ["n1", "n3"]
    assert [line for line in done.out if "deleted" in line] == [
        "n2: the Node was deleted meanwhile, so nothing is left to remove"
    ]
    assert done.out[-1] == "removed from 2 nodes"


def test_a_daemon_that_writes_again_is_told_beside_what_was_done(cluster: Site) -> None:
    """The second look is made on every node; the one with a running daemon is a line, and so is one that cannot be looked at."""

    def meddle(name: str) -> None:
        cluster.nodes[name] = {"n1": cluster.nodes["n1"], "n2": {"metadata": "nonsense"}, "n3": node("n3")}[name]

    cluster.at_removal = meddle
    done = purge(cluster)
    assert done.status == 1
    assert done.err[0].startswith("devwatch: n2: removed, but whether it stays removed is unknown: ")
    assert done.err[1:] == ["devwatch: n3: a devwatch still runs on n3: stop it first"]
    left, removed = done.out[-4:-1], done.out[-1]
    assert left == ["n3: left", f"  - {RESOURCE}: capacity 1, allocatable 1", "  - the annotation devwatch.io/devices"]
    assert removed == "removed from 1 node"


def test_what_comes_back_without_the_annotation_is_named_too(cluster: Site) -> None:
    """A count alone, in one map or both, is left as well; what stayed away is not named."""

    def meddle(name: str) -> None:
        cluster.nodes[name]["status"]["allocatable"][RESOURCE] = "1"

    cluster.at_removal = meddle
    done = purge(cluster)
    assert done.status == 1
    assert done.out[-2:] == ["n3: left", f"  - {RESOURCE}: capacity none, allocatable 1"]


def test_beside_the_daemon_of_this_host_nothing_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is known by its lock: what is left is named, and the status is 1."""
    name = f"n-{uuid.uuid4().hex[:8]}"
    lock = NodeLock(name)
    with site(tmp_path, name) as alone:
        assert lock.acquire_once() is None
        try:
            assert main(["purge", "--yes", "--node", name, "--kubeconfig", alone.kubeconfig], {}) == 1
        finally:
            lock.release()
        assert alone.removed == []
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        f"{name}: left",
        f"  - {RESOURCE}: capacity 1, allocatable 1",
        "  - the annotation devwatch.io/devices",
    ]
    assert shown.err == f"devwatch: a devwatch still runs on {name} (pid {os.getpid()}): stop it first\n"


def test_a_dry_run_asks_the_server_about_every_node(cluster: Site) -> None:
    """Who refuses is told; nothing is removed, and nothing is said to be."""
    cluster.refusals = {"n1": (403, RBAC.format("n1"))}
    done = purge(cluster, dry_run="server")
    assert (done.status, len(done.err)) == (1, 1)
    assert cluster.asked == ["n1", "n2", "n3"]
    assert advertising(cluster) == ["n1", "n2", "n3"]
    assert not any(line.startswith("removed") for line in done.out)


# -- what is on this host


class NoResource:
    """A plugin that nobody asks."""

    def allocate(self, ids: Sequence[str]) -> Allocation:
        """Give nothing."""
        raise KeyError(ids)

    def opened(self) -> None:
        """Record nothing."""

    def sent(self, offer: Offer) -> None:
        """Record nothing."""

    def closed(self) -> None:
        """Record nothing."""


@pytest.fixture
def plugins(short_path: Path) -> Path:
    """Return a kubelet's folder of plugins after a killed daemon: with its socket and links, and with what others have there."""
    folder = short_path / "device-plugins"
    folder.mkdir()

    async def serve() -> list[str]:
        kubelet = Kubelet(plugins=folder, folder=short_path)
        server = kubelet.server(RESOURCE, NoResource())
        await server.start()
        kubelet.links.update({"dw1": "/dev/ttyUSB0", "dw1-1": "/dev/ttyUSB1"})
        made = [path.name for path in folder.glob("*.sock")]
        await server.close()
        return made

    with asyncio.Runner() as runner:
        (ours,) = runner.run(serve())
    for name in (ours, "kubelet.sock", "devwatch-other.sock"):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(folder / name))
    (folder / "devwatch-0123456789.sock").touch()
    return folder


FOREIGN = {"kubelet.sock", "devwatch-other.sock", "devwatch-0123456789.sock"}
"""What is not devwatch's: by its name, or because it is no socket."""


def held(folder: Path) -> set[str]:
    """Return what the folder holds."""
    return {path.name for path in folder.iterdir()}


def hand_over(cluster: Site, name: str) -> None:
    """Let the annotation say that the kubelet hands the resource over."""
    annotation = json.dumps({RESOURCE: [{"publish": "devicePlugin"}]})
    cluster.nodes[name]["metadata"]["annotations"][ANNOTATION] = annotation


def test_on_its_own_node_the_sockets_and_links_are_removed(cluster: Site, plugins: Path) -> None:
    """Exactly these: sockets of the kubelet and of other plugins stay. Each is named, below its node."""
    hand_over(cluster, "n2")
    (ours,) = held(plugins) - FOREIGN - {"devwatch"}
    named = [f"  - {plugins}/{name}" for name in (ours, "devwatch/dw1", "devwatch/dw1-1", "devwatch/")]
    shown = purge(cluster, here="n2", plugins=plugins, dry_run="client")
    assert shown.out[3:10] == [
        "n2: would remove",
        f"  - {RESOURCE}: capacity 1, allocatable 1",
        "  - the annotation devwatch.io/devices",
        *named,
    ]
    assert held(plugins) == {*FOREIGN, ours, "devwatch"}
    assert purge(cluster, here="n2", plugins=plugins, dry_run="server").status == 0
    assert held(plugins) == {*FOREIGN, ours, "devwatch"}
    done = purge(cluster, here="n2", plugins=plugins)
    assert (done.status, done.out[-1], done.err) == (0, "removed from 3 nodes", [])
    assert held(plugins) == FOREIGN


def kubelet_writes(cluster: Site, name: str, *, capacity: str, allocatable: str) -> None:
    """Let the kubelet write the figures of a plugin that it remembers: it is then the only one that has."""
    held = cluster.nodes[name]
    held["status"]["capacity"][RESOURCE], held["status"]["allocatable"][RESOURCE] = capacity, allocatable
    ours, *_ = held["metadata"]["managedFields"]
    counts, annotation = ({part: OURS[part]} for part in ("f:status", "f:metadata"))
    held["metadata"]["managedFields"] = [
        ours | {"fieldsV1": annotation},
        ours | {"manager": "kubelet", "fieldsV1": counts},
    ]


def test_what_the_kubelet_writes_again_is_named_and_a_later_purge_removes_it(cluster: Site) -> None:
    """It does so for 5 minutes after the end of the plugin, and ends with 0. Until then the annotation says that it is devwatch's."""
    hand_over(cluster, "n2")

    def sync(name: str) -> None:
        if name == "n2":
            kubelet_writes(cluster, name, capacity="1", allocatable="0")

    cluster.at_removal = sync
    done = purge(cluster)
    assert done.status == 1
    again = f"the kubelet has written {RESOURCE} again, as it does for 5 minutes after the end of the plugin"
    assert done.err == [f"devwatch: n2: {again}: run devwatch purge once more after that"]
    assert done.out[-3:] == ["n2: left", f"  - {RESOURCE}: capacity 1, allocatable 0", "removed from 2 nodes"]
    assert purge(cluster).status == 1
    kubelet_writes(cluster, "n2", capacity="0", allocatable="0")
    cluster.at_removal = lambda _name: None
    done = purge(cluster)
    assert (done.status, done.err, done.out[-1]) == (0, [], "removed from 1 node")
    assert advertising(cluster) == []
    assert ANNOTATION not in cluster.nodes["n2"]["metadata"]["annotations"]
    assert purge(cluster).out == ["there is nothing of devwatch to remove"]


def test_a_daemon_that_writes_again_is_not_taken_for_the_kubelet(cluster: Site) -> None:
    """It is to be stopped, rather than waited for."""
    hand_over(cluster, "n1")

    def repair(name: str) -> None:
        if name == "n1":
            cluster.nodes[name]["status"]["capacity"][RESOURCE] = "1"

    cluster.at_removal = repair
    done = purge(cluster)
    assert (done.status, done.err) == (1, ["devwatch: n1: a devwatch still runs on n1: stop it first"])


def test_an_annotation_that_cannot_be_removed_in_the_end_is_a_failure(cluster: Site) -> None:
    """The figures are gone by then."""
    hand_over(cluster, "n1")
    cluster.at_removal = lambda name: cluster.refusals.update({name: (422, "a policy")})
    done = purge(cluster)
    assert (done.status, [line[: len("devwatch: n1: ")] for line in done.err]) == (1, ["devwatch: n1: "])
    assert "a policy" in done.err[0]


def test_they_are_removed_where_the_node_shows_nothing_any_more(cluster: Site, plugins: Path) -> None:
    """An earlier purge, from elsewhere, could not. The question counts this node."""
    for each in cluster.nodes.values():
        del each["metadata"]["annotations"][ANNOTATION]
    assert purge(cluster, here="n1", plugins=plugins, confirmed=lambda count: count != 1).status == 1
    done = purge(cluster, here="n1", plugins=plugins)
    assert (done.status, done.out[-1], cluster.asked) == (0, "removed from 1 node", [])
    assert held(plugins) == FOREIGN


def test_on_another_host_no_file_is_touched(cluster: Site, plugins: Path) -> None:
    """An administrator's machine is no node."""
    before = held(plugins)
    assert purge(cluster, here="laptop", plugins=plugins).status == 0
    assert held(plugins) == before


def test_the_node_of_this_host_and_its_folder_are_as_run_has_them(
    cluster: Site, plugins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`NODE_NAME`, `DEVWATCH_NODE_NAME` and `--device-plugin-dir`; a host without a valid name is no node."""
    argv = ["purge", "--dry-run", "--kubeconfig", cluster.kubeconfig, "--node", "n1"]
    given = {"DEVWATCH_DEVICE_PLUGIN_DIR": str(plugins)}
    found = []
    for options, variables in (
        ([], {**given, "NODE_NAME": "n1"}),
        (["--device-plugin-dir", str(plugins)], {"NODE_NAME": "x", "DEVWATCH_NODE_NAME": "n1"}),
        ([], {**given, "NODE_NAME": "n2"}),
        ([], {**given, "NODE_NAME": "Not_A_Node"}),
    ):
        assert main([*argv, *options], variables) == 0
        found.append(f"  - {plugins}/devwatch/" in capsys.readouterr().out.splitlines())
    assert found == [True, True, False, False]


def test_a_folder_that_cannot_be_read_is_one_line(cluster: Site, tmp_path: Path) -> None:
    """A failure where the Node says that something is there; else a warning, or nothing where there is no folder."""
    missing, file = tmp_path / "none", tmp_path / "file"
    file.touch()
    stay = "sockets and links of devwatch that are there stay (--device-plugin-dir names the folder)"
    assert purge(cluster, here="n1", plugins=missing, dry_run="client") == purge(cluster, dry_run="client")
    warned = purge(cluster, here="n1", plugins=file, dry_run="client")
    assert (warned.status, warned.err) == (0, [f"warning: {file}: Not a directory: {stay}"])
    hand_over(cluster, "n1")
    failed = purge(cluster, here="n1", plugins=missing)
    assert (failed.status, failed.err) == (1, [f"devwatch: n1: {missing}: No such file or directory: {stay}"])
    assert cluster.removed == ["n1", "n2", "n3", "n1"], "the annotation goes last where the kubelet may write again"


def test_what_others_have_put_into_the_folder_of_links_stays(cluster: Site, plugins: Path) -> None:
    """And the folder with it, which is one line beside what the server refuses."""
    (plugins / "devwatch" / "notes").touch()
    cluster.refusals = {"n1": (500, "try later")}
    done = purge(cluster, here="n1", plugins=plugins)
    (line,) = done.err
    assert line.startswith("devwatch: n1: try later")
    assert line.endswith(f"; {plugins}/devwatch: Directory not empty")
    assert (done.status, held(plugins / "devwatch"), held(plugins)) == (1, {"notes"}, {*FOREIGN, "devwatch"})


def test_beside_a_daemon_of_this_host_its_files_stay(tmp_path: Path, plugins: Path) -> None:
    """Also where all nodes are purged: it would serve no socket any more, and its containers would lose their links."""
    name, before = f"n-{uuid.uuid4().hex[:8]}", held(plugins)
    lock = NodeLock(name)
    with site(tmp_path, name, "n2") as both:
        assert lock.acquire_once() is None
        try:
            done = purge(both, here=name, plugins=plugins)
        finally:
            lock.release()
    line = f"devwatch: {name}: a devwatch still runs on {name} (pid {os.getpid()}): stop it first; its files stay"
    assert (done.status, done.err, held(plugins)) == (1, [line], before)


# -- dynamic resource allocation


@pytest.fixture
def sliced(cluster: Site) -> Site:
    """Return a cluster in which devwatch has published a ResourceSlice on n1 and n2, beside one of another driver."""
    for name in ("n1", "n2"):
        put_slice(cluster, f"{name}-devwatch.io", node=name)
        publish_by_slice(cluster, name)
    put_slice(cluster, "n1-gpu", node="n1", driver="gpu.example.com")
    return cluster


def put_slice(cluster: Site, name: str, *, node: str, driver: str = "devwatch.io", uid: str = "1") -> None:
    """Let the API server have a slice."""
    pool = {"name": name, "generation": 1, "resourceSliceCount": 1}
    spec = {"driver": driver, "nodeName": node, "pool": pool, "devices": []}
    found = {"metadata": {"name": name, "uid": uid, "resourceVersion": "7"}, "spec": spec}
    cluster.objects.setdefault("resourceslices", {})[name] = found


def publish_by_slice(cluster: Site, name: str) -> None:
    """Let the annotation say so; both figures are 0 then."""
    held = cluster.nodes[name]
    held["metadata"]["annotations"][ANNOTATION] = json.dumps({RESOURCE: [{"publish": "dra"}]})
    for part in ("capacity", "allocatable"):
        held["status"][part][RESOURCE] = "0"


def slices(cluster: Site) -> list[str]:
    """Return the slices that there are."""
    return sorted(cluster.objects["resourceslices"])


def test_slices_are_removed_with_the_counts_and_the_annotation(sliced: Site) -> None:
    """Whatever their names, and no other driver's. A dry run names them; the kubelet is not waited for."""
    put_slice(sliced, "stray", node="n2")
    for way in ("client", "server"):
        shown = purge(sliced, dry_run=way)
        assert shown.out[:7] == [
            "n1: would remove",
            f"  - {RESOURCE}: capacity 0, allocatable 0",
            "  - the annotation devwatch.io/devices",
            "  - the ResourceSlice n1-devwatch.io",
            "n2: would remove",
            f"  - {RESOURCE}: capacity 0, allocatable 0",
            "  - the annotation devwatch.io/devices",
        ]
    assert slices(sliced) == ["n1-devwatch.io", "n1-gpu", "n2-devwatch.io", "stray"]
    assert sliced.deleted == ["n1-devwatch.io", "n2-devwatch.io", "stray"], "the server was asked whether it would"
    done = purge(sliced)
    assert (done.status, done.err, done.out[-1]) == (0, [], "removed from 3 nodes")
    assert (slices(sliced), advertising(sliced)) == (["n1-gpu"], [])
    assert all(ANNOTATION not in held["metadata"]["annotations"] for held in sliced.nodes.values())
    assert purge(sliced).out == ["there is nothing of devwatch to remove"]


def test_a_slice_alone_is_removed(sliced: Site) -> None:
    """From the node that is asked for, though the Node shows nothing of devwatch, and what is gone meanwhile is no failure."""
    del sliced.nodes["n1"]["metadata"]["annotations"][ANNOTATION]
    put_slice(sliced, "stray", node="n1")
    sliced.at_deletion = lambda _name: sliced.objects["resourceslices"].pop("stray", None)
    assert purge(sliced, node="n1").status == 0
    assert (slices(sliced), sliced.deleted) == (["n1-gpu", "n2-devwatch.io"], ["n1-devwatch.io", "stray"])
    assert advertising(sliced) == ALL


def test_a_slice_that_is_there_again_is_a_daemon_that_runs(sliced: Site) -> None:
    """It is named as left. So is one that another daemon has made in the place of the listed one: it is not deleted."""

    def meddle(name: str) -> None:
        if name == "n1-devwatch.io":
            put_slice(sliced, name, node="n1", uid="2")
            put_slice(sliced, "n2-devwatch.io", node="n2", uid="2")

    sliced.at_deletion = meddle
    done = purge(sliced)
    assert done.status == 1
    first, second = done.err
    assert first.startswith("devwatch: n2: the UID in the precondition differs")
    assert first.endswith("; a devwatch still runs on n2: stop it first")
    assert second == "devwatch: n1: a devwatch still runs on n1: stop it first"
    assert done.out[-5:] == [
        "n1: left",
        "  - the ResourceSlice n1-devwatch.io",
        "n2: left",
        "  - the ResourceSlice n2-devwatch.io",
        "removed from 1 node",
    ]


SLICES = 'resourceslices.resource.k8s.io is forbidden: User "u" cannot {} resource "resourceslices" in API group "resource.k8s.io"'


def test_slices_that_cannot_be_listed_are_told(sliced: Site) -> None:
    """A failure of each node that says that it has one, and all else is done. A line, where none says so."""
    sliced.forbidden["GET", "resourceslices"] = SLICES.format("list")
    done = purge(sliced)
    assert (done.status, advertising(sliced), sliced.deleted) == (1, [], [])
    assert [line.partition(": the ResourceSlices of devwatch are unknown and stay: ")[0] for line in done.err] == [
        "devwatch: n1",
        "devwatch: n2",
    ]
    assert "kubectl create clusterrole" in done.err[0]
    done = purge(sliced)
    (line,) = done.err
    assert (done.status, line.startswith("warning: the ResourceSlices of devwatch are unknown and stay: ")) == (0, True)


def test_a_server_that_has_no_slices_contradicts_only_a_node_that_says_it_has_one(sliced: Site) -> None:
    """A proxy may answer for the server: then a slice would stay without a word."""
    del sliced.objects["resourceslices"]
    done = purge(sliced)
    assert (done.status, advertising(sliced)) == (1, [])
    assert ["does not serve resource.k8s.io/v1" in line for line in done.err] == [True, True]
    done = purge(sliced)
    assert (done.status, done.err) == (0, [])


def test_a_slice_that_cannot_be_deleted_keeps_nothing_else(sliced: Site) -> None:
    """Each refusal is a failure of its node."""
    sliced.forbidden["DELETE", "resourceslices"] = SLICES.format("delete")
    done = purge(sliced)
    assert (done.status, done.out[-1], advertising(sliced)) == (1, "removed from 1 node", [])
    assert [line[: len("devwatch: n1: resourceslices")] for line in done.err] == [
        f"devwatch: {name}: resourceslices" for name in ("n1", "n2")
    ]


def test_whether_slices_stay_away_may_be_unknown(sliced: Site) -> None:
    """Of a node without any that is no matter."""

    def forbid(name: str) -> None:
        if name == "n2-devwatch.io":
            sliced.forbidden["GET", "resourceslices"] = SLICES.format("list")

    sliced.at_deletion = forbid
    done = purge(sliced)
    assert (done.status, done.out[-1], advertising(sliced)) == (1, "removed from 1 node", [])
    unknown = "removed, but whether it stays removed is unknown: resourceslices"
    assert [line[: len(unknown) + 14] for line in done.err] == [f"devwatch: {name}: {unknown}" for name in ("n1", "n2")]


def test_zeros_that_the_kubelet_wrote_before_are_removed_with_the_rest(sliced: Site) -> None:
    """Where the resource was handed over as devicePlugin before, they are its own."""
    kubelet_writes(sliced, "n2", capacity="0", allocatable="0")
    assert purge(sliced).status == 0
    assert advertising(sliced) == []


class NoClaims:
    """A driver without requests."""

    async def prepare(self, claims: Sequence[ClaimReference]) -> Mapping[str, PreparedClaim | ClaimRefused]:
        """Prepare nothing."""
        raise NotImplementedError(claims)

    async def unprepare(self, claims: Sequence[ClaimReference]) -> None:
        """Forget nothing."""

    def notified(self, error: str | None) -> None:
        """Record nothing."""

    def changed(self) -> None:
        """Record nothing."""


@pytest.fixture
def kubelet(short_path: Path) -> Path:
    """Return a kubelet's folder after a killed daemon: with the driver's sockets, a CDI file, and what others have there."""
    for name in ("plugins", "plugins_registry"):
        (short_path / name).mkdir()
    driver = Driver(folder=short_path, cdi=short_path / "cdi")

    async def serve() -> list[Path]:
        server = driver.server(NoClaims())
        await server.start()
        made = list(short_path.rglob("*.sock"))  # noqa: ASYNC240 - nothing else runs meanwhile
        await server.close()
        return made

    with asyncio.Runner() as runner:
        made = runner.run(serve())
    for path in (*made, short_path / "plugins_registry" / "gpu.sock"):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
    driver.cdi.update({"1": {"1-r": Allocation(paths={"/dev/stick": "/dev/ttyUSB0"}, variables={})}})
    (short_path / "cdi" / "gpu.json").touch()
    return short_path


def record(kubelet: Path, *names: str) -> None:
    """Let these claims be prepared."""
    claims = [
        PreparedClaim(reference=ClaimReference(namespace="home", name=name, uid=name), devices=()) for name in names
    ]
    Driver(folder=kubelet, cdi=kubelet / "cdi").record.write(claims)


def driver_files(kubelet: Path) -> list[str]:
    """Return what is there, without folders and without what belongs to others."""
    found = {str(path.relative_to(kubelet)) for path in kubelet.rglob("*") if not path.is_dir()}
    assert found >= {"plugins_registry/gpu.sock", "cdi/gpu.json"}, "what belongs to others stays"
    return sorted(found - {"plugins_registry/gpu.sock", "cdi/gpu.json"})


LEFT = ["cdi/devwatch.io-claim_1.json", "plugins/devwatch.io/dra.sock", "plugins_registry/devwatch.io-reg.sock"]


def test_on_its_own_node_the_files_of_the_driver_are_removed(sliced: Site, kubelet: Path) -> None:
    """Sockets and CDI files, also half-written ones, and a record that is damaged. Each is named, and a dry run leaves it."""
    own = kubelet / "plugins" / "devwatch.io"
    (own / "claims.json").write_text("{")
    (own / "claims.damaged").touch()
    (own / ".claims.json.new").touch()
    (kubelet / "cdi" / ".devwatch.io-claim_2.json.new").touch()
    before = driver_files(kubelet)
    shown = purge(sliced, here="n1", kubelet=kubelet, dry_run="server")
    named = [line.removeprefix(f"  - {kubelet}/") for line in shown.out if line.startswith(f"  - {kubelet}/")]
    assert (shown.status, sorted(named), driver_files(kubelet)) == (0, before, before)
    assert len(before) == len(LEFT) + 4
    done = purge(sliced, here="n1", kubelet=kubelet)
    assert (done.status, done.err, driver_files(kubelet)) == (0, [], [])
    assert purge(sliced, here="n1", kubelet=kubelet).out == ["there is nothing of devwatch to remove"]


def test_what_a_prepared_claim_needs_is_left_and_named(sliced: Site, kubelet: Path) -> None:
    """Its containers start again by the CDI file, and the next daemon goes on with the record. All else is removed; the status is 1."""
    record(kubelet, "b", "a")
    left = sorted([*LEFT, "plugins/devwatch.io/claims.json"])
    line = "devwatch: n1: claims are prepared here (home/a, home/b), and their files stay: "
    line += "end their pods while devwatch runs, then stop it and run devwatch purge once more"
    for way in ("client", None):
        done = purge(sliced, here="n1", kubelet=kubelet, dry_run=way)
        stays = [f"  {kubelet}/{name} is left alone: a claim is prepared here" for name in left]
        assert (done.status, done.err, sorted(done.out[4:8])) == (1, [line], stays)
        assert driver_files(kubelet) == left
    assert (slices(sliced), advertising(sliced)) == (["n1-gpu"], [])
    done = purge(sliced, here="n1", kubelet=kubelet, confirmed=lambda _count: False)
    assert (done.status, done.out[0], len(done.out)) == (1, "n1: left", 5)
    record(kubelet)
    assert purge(sliced, here="n1", kubelet=kubelet).status == 0
    assert driver_files(kubelet) == []


def test_files_of_the_driver_that_cannot_be_read_are_one_line(sliced: Site, kubelet: Path) -> None:
    """A failure where the Node says that it has a slice; else a warning, or nothing where there is no kubelet."""
    stay = "sockets, claims and CDI files of devwatch that are there stay (--kubelet-dir names the kubelet's root)"
    missing = kubelet / "none"
    failed = purge(sliced, here="n1", kubelet=missing, dry_run="client")
    assert failed.err == [f"devwatch: n1: {missing}/plugins_registry: No such file or directory: {stay}"]
    assert purge(sliced, here="n3", kubelet=missing, dry_run="client").err == []
    (kubelet / "cdi").rename(kubelet / "aside")
    (kubelet / "cdi").touch()
    warned = purge(sliced, here="n3", kubelet=kubelet, dry_run="client")
    assert (warned.status, warned.err) == (0, [f"warning: {kubelet}/cdi: Not a directory: {stay}"])
    (kubelet / "cdi").unlink()
    (kubelet / "plugins" / "devwatch.io" / "claims.json").symlink_to("claims.json")
    unread = purge(sliced, here="n1", kubelet=kubelet, dry_run="client")
    assert unread.err[0].startswith(f"devwatch: n1: {kubelet}/plugins/devwatch.io/claims.json: ")


def test_the_root_of_the_kubelet_is_as_run_has_it(
    sliced: Site, kubelet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--kubelet-dir`, and its variable."""
    argv = ["purge", "--dry-run", "--kubeconfig", sliced.kubeconfig, "--node", "n1"]
    for options, variables in ((["--kubelet-dir", str(kubelet)], {}), ([], {"DEVWATCH_KUBELET_DIR": str(kubelet)})):
        assert main([*argv, *options], {"NODE_NAME": "n1", **variables}) == 0
        assert f"  - {kubelet}/plugins/devwatch.io/dra.sock" in capsys.readouterr().out.splitlines()


# -- the question


@dataclass(slots=True, kw_only=True)
class Terminal:
    """A purge of all nodes that somebody watches, with its results in a file."""

    program: subprocess.Popen[bytes]
    keyboard: int
    shown: bytes = b""

    def shows(self, text: bytes) -> bool:
        """Return whether the terminal shows this by now."""
        with suppress(BlockingIOError):
            self.shown += os.read(self.keyboard, 4096)
        return text in self.shown

    def type(self, keys: bytes) -> None:
        """Press these keys."""
        os.write(self.keyboard, keys)


@contextmanager
def watched(cluster: Site, folder: Path, *options: str, count: str = "3 nodes") -> Iterator[Terminal]:
    """Start `purge` on a terminal of its own, of all nodes by default, with stdout redirected, and wait for the question."""
    ours, its = pty.openpty()
    os.set_blocking(ours, False)
    given = [*(options or ("--all-nodes",)), "--kubeconfig", cluster.kubeconfig]
    command = [sys.executable, "-m", "devwatch", "purge", *given]
    with (folder / "out").open("wb") as out:
        program = subprocess.Popen(command, stdin=its, stdout=out, stderr=its, start_new_session=True)
    terminal = Terminal(program=program, keyboard=ours)
    try:
        eventually(lambda: terminal.shows(f"Remove all this from {count}? [y/N] ".encode()))
        yield terminal
    finally:
        program.kill()
        program.wait()
        os.close(ours)
        os.close(its)


def test_the_question_is_seen_where_the_results_go_into_a_file(cluster: Site, tmp_path: Path) -> None:
    """It is asked on stderr, and `n` removes nothing."""
    with watched(cluster, tmp_path) as terminal:
        terminal.type(b"n\n")
        assert terminal.program.wait(30) == 1
    assert (tmp_path / "out").read_text().splitlines()[-1] == "nothing was removed"
    assert cluster.asked == []


def test_one_node_is_asked_about_as_all_are(cluster: Site, tmp_path: Path) -> None:
    """Without a `y` nothing is removed from it."""
    with watched(cluster, tmp_path, "--node", "n1", count="1 node") as terminal:
        terminal.type(b"\n")
        assert terminal.program.wait(30) == 1
    assert (cluster.removed, advertising(cluster)) == ([], ALL)


def off_terminal(cluster: Site, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `purge` where nobody can be asked."""
    command = [sys.executable, "-m", "devwatch", "purge", *options, "--kubeconfig", cluster.kubeconfig]
    environ = {**os.environ, **variables}
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environ, timeout=60
    )


@pytest.mark.parametrize("where", [("--node", "n1"), ("--all-nodes",)], ids=lambda where: where[0])
def test_where_nobody_can_be_asked_nothing_is_removed(where: tuple[str, ...], cluster: Site) -> None:
    """A script that forgets `--yes` gets one line and status 2, for one node as for all, and no request is sent."""
    done = off_terminal(cluster, *where)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "--yes" in line
    assert (cluster.asked, advertising(cluster)) == ([], ALL)


def test_a_dry_run_neither_asks_nor_refuses(cluster: Site) -> None:
    """It removes nothing, so there is nothing to agree to."""
    for way in ("client", "server"):
        done = off_terminal(cluster, "--all-nodes", f"--dry-run={way}")
        assert done.returncode == 0, done.stderr
    assert (cluster.removed, advertising(cluster)) == ([], ALL)


def test_the_variable_agrees_as_the_option_does(cluster: Site) -> None:
    """`DEVWATCH_YES` stands for `--yes`, and the command line wins."""
    assert off_terminal(cluster, "--node", "n1", "--no-yes", DEVWATCH_YES="1").returncode == 2
    done = off_terminal(cluster, "--node", "n1", DEVWATCH_YES="1")
    assert done.returncode == 0, done.stderr
    assert cluster.removed == ["n1"]


def test_yes_removes_from_all_nodes(cluster: Site, tmp_path: Path) -> None:
    """The answer is taken as people give it."""
    with watched(cluster, tmp_path) as terminal:
        terminal.type(b" Yes\n")
        eventually(lambda: advertising(cluster) == [])
    assert cluster.removed == ["n1", "n2", "n3"]


def test_an_interrupt_before_the_answer_counts_although_the_answer_is_yes(cluster: Site) -> None:
    """What the event loop has only noted by then ends it before the first request."""

    def interrupted(_count: int) -> bool:
        signal.raise_signal(signal.SIGINT)
        return True

    # A shell lets what it starts in the background ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            purge(cluster, confirmed=interrupted)
    finally:
        signal.signal(signal.SIGINT, before)
    assert cluster.asked == []


def test_an_interrupt_at_the_question_ends_it_and_removes_nothing(cluster: Site, tmp_path: Path) -> None:
    """The first Ctrl-C counts: status 130, and no answer is waited for."""
    with watched(cluster, tmp_path) as terminal:
        terminal.program.send_signal(signal.SIGINT)
        assert terminal.program.wait(30) == 130
        assert not terminal.shows(b"Traceback")
    assert cluster.asked == []
