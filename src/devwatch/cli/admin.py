"""The commands for the cluster: show what devwatch advertises in it, and remove it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devwatch.config.resolver import new_loop
from devwatch.core import exitstatus
from devwatch.core.errors import ApiError, KubeletError, Missing, NodeMissing, Unavailable, Unserved
from devwatch.core.node import NodePatch
from devwatch.core.rules import Publish
from devwatch.core.status import label
from devwatch.core.text import escape
from devwatch.core.way import joined, way_of
from devwatch.host.lock import NodeLock
from devwatch.kube import cluster, nodes
from devwatch.kube.slices import delete_slice, list_slices
from devwatch.kubelet.driverfiles import find_driver_files
from devwatch.kubelet.links import FOLDER, find_leftovers, remove_leftovers

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from devwatch.cli.display import Screen
    from devwatch.core.listing import Entry
    from devwatch.core.node import NodeState
    from devwatch.core.pods import Pod
    from devwatch.core.slices import Slice
    from devwatch.core.status import ResourceStatus
    from devwatch.host.lock import Holder
    from devwatch.kube.client import Connection

VERIFY_DELAY = 5.0
"""Seconds after which `purge` checks whether a running daemon has written again what was removed."""
SYNC_DELAY = 12.0
"""Seconds after which the kubelet has written again what it still remembers: it updates its Node every 10 s (kubelet,
`nodeStatusUpdateFrequency`)."""
_POD_FIELDS = ("namespace", "name", "phase")
"""The fields of a pod in the documents of `status`."""


def run(connection: Connection, work: Coroutine[Any, Any, int]) -> int:
    """Run a command, and end without waiting for a name server. Raises `Unavailable` with one line for any error of the API server."""

    async def closing() -> int:
        try:
            return await work
        except ApiError as error:
            raise Unavailable(_with_hint(error)) from error
        finally:
            await connection.close()

    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(closing())
    finally:
        work.close()  # where no loop could be made, it never began


# -- status

_WHY_NO_PODS = "kubectl describe daemonsets,pods -A -l app.kubernetes.io/name=devwatch"
"""The Events tell of Pod Security, of volumes that are missing, and of a configuration that is refused."""


async def status(connection: Connection, screen: Screen, remarks: Screen, *, form: str) -> int:
    """Show every resource of every node, the pods that request it, and its problems."""
    seen = await cluster.overview(connection)
    if form in {"json", "yaml"}:
        screen.document({"resources": [_document(row) for row in seen.resources]}, form)
    elif seen.resources:
        _show(screen, seen.resources, wide=form == "wide")
    if form not in {"json", "yaml"} and not any(row.owned for row in seen.resources):
        remarks.line(f"devwatch advertises nothing in this cluster; whether its pods run, or why not: {_WHY_NO_PODS}")
    hidden = [f"the pods are not shown: {seen.hidden}"] if seen.hidden else []
    if seen.unclaimed:
        hidden.append(f"the holders of devices with publish: {Publish.DRA.value} are not shown: {seen.unclaimed}")
    warnings = (text for row in seen.resources for text in row.warnings())
    for warning in dict.fromkeys((*hidden, *warnings)):
        remarks.line(f"warning: {escape(warning)}")
    return exitstatus.DONE


def _show(screen: Screen, rows: Sequence[ResourceStatus], *, wide: bool) -> None:
    heads = [
        "NODE",
        "RESOURCE",
        "PUBLISH",
        "CAPACITY",
        "ALLOCATABLE",
        "REQUESTED",
        "PODS",
        "DEVICES",
        *(["LINKS", "CHANGED"] if wide else []),
    ]
    screen.table(heads, [_cells(row, wide=wide) for row in rows])


def _cells(row: ResourceStatus, *, wide: bool) -> list[str]:
    pods = ", ".join(f"{pod.title} ({pod.phase})" for pod in row.pods or ())
    devices = ", ".join(_device(row, entry) for entry in row.distinct)
    links = ", ".join(entry.link or entry.devnode for entry in row.devices)
    requested = "" if row.requested is None else str(row.requested)
    counts = [row.publish or "", row.capacity or "", row.allocatable or "", requested]
    where = [row.node or "", row.resource]
    return [*where, *counts, pods, devices, *([links, row.changed or ""] if wide else [])]


def _device(row: ResourceStatus, entry: Entry) -> str:
    holders = row.holders(entry)
    notes = [*(["lost"] if entry.lost else []), *([f"held by {', '.join(holders)}"] if holders else [])]
    return f"{label(entry)} ({', '.join(notes)})" if notes else label(entry)


def _document(row: ResourceStatus) -> dict[str, Any]:
    pods = row.pods
    return {
        "node": row.node,
        "ready": row.summary.ready if row.summary else None,
        "resource": row.resource,
        "publish": row.publish,
        "capacity": row.capacity,
        "allocatable": row.allocatable,
        "requested": row.requested,
        "pods": pods if pods is None else [_pod_document(row, pod) for pod in pods],
        "devices": [_device_document(row, entry) for entry in row.devices],
        "changed": row.changed,
        "nearest": row.nearest,
        "warnings": list(row.warnings()),
    }


def _pod_document(row: ResourceStatus, pod: Pod) -> dict[str, Any]:
    return {**{key: getattr(pod, key) for key in _POD_FIELDS}, "devices": sorted(row.ids(pod)) or None}


def _device_document(row: ResourceStatus, entry: Entry) -> dict[str, Any]:
    holders = row.holders(entry)
    fields = {field: getattr(entry, field) for field in type(entry).__slots__}
    return {**fields, "holders": holders if holders is None else list(holders)}


# -- purge


@dataclass(frozen=True, slots=True, kw_only=True)
class Purge:
    """What to remove: from the node of this name, or from all nodes with None."""

    node: str | None
    dry_run: str | None = None
    """`client` shows the difference; `server` also sends it with `dryRun=All`."""
    confirmed: Callable[[int], bool] = lambda _count: True
    """Called once, with the number of nodes, before anything is removed."""
    pause: float = VERIFY_DELAY
    sync: float = SYNC_DELAY
    """The pause in place of `pause` where the kubelet has handed over a resource."""
    here: str = ""
    """The name of the node that this host is, of which the files are removed as well; empty for none."""
    plugins: Path = Path()
    """The folder in which the kubelet of this host accepts device plugins."""
    kubelet: Path = Path()
    """The root of the kubelet of this host."""
    cdi: Path = Path("/var/run/cdi")
    """The folder of the CDI files of this host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Removal:
    """What is to be removed from one node."""

    patch: NodePatch = field(default_factory=NodePatch)
    slices: tuple[Slice, ...] = ()
    files: tuple[Path, ...] = ()
    kept: tuple[Path, ...] = ()
    """The files that stay, since a claim is prepared."""

    def __bool__(self) -> bool:
        """Return whether it removes anything."""
        return bool(self.patch or self.slices or self.files)


_Failures = Mapping[str, str]
"""By node: what could not be done, and why."""


async def purge(connection: Connection, screen: Screen, remarks: Screen, task: Purge) -> int:
    """Remove exactly what devwatch owns: by the annotations, its slices, its files on this host. Check whether it stays removed.

    A node that fails does not stop the others. Each failure is a line of the remarks, and the status is then 1.
    """
    daemon = None if task.node is None or task.dry_run else _daemon_on_this_host(task.node)
    states = await _states(connection, task.node)
    found, failures = await _find(connection, remarks, task, states)
    for name, each in found.items():
        verb = "left" if daemon or not each else "would remove" if task.dry_run else "removing"
        _show_removal(screen, name, states[name], each, verb=verb)
    if daemon:
        raise Unavailable(_still_runs(task.node, daemon))
    removals = {name: each for name, each in found.items() if each}
    if not found:
        screen.line("there is nothing of devwatch to remove")
    elif removals and not task.dry_run and not task.confirmed(len(removals)):
        screen.line("nothing was removed")
        return exitstatus.FAILED
    elif removals and task.dry_run != "client":
        await asyncio.sleep(0)  # a pending interrupt ends it here, and not after the first request
        failures = _merge(failures, await _remove(connection, screen, task, removals))
    for name, reason in failures.items():
        remarks.out.write(escape(f"devwatch: {name}: {' '.join(reason.split())}") + "\n")
    return exitstatus.FAILED if failures else exitstatus.DONE


async def _find(
    connection: Connection, remarks: Screen, task: Purge, states: Mapping[str, NodeState]
) -> tuple[dict[str, _Removal], _Failures]:
    """Return by node what is to be removed or kept, and why some of it is unknown or stays."""
    slices, unlisted = await _find_slices(connection, remarks, task, states)
    files, unread = _find_files(remarks, task, states)
    found = {}
    for name, state in states.items():
        here = files if name == task.here else _Removal()
        each = replace(here, patch=cluster.removal(state), slices=slices.get(name, ()))
        if each or each.kept:
            found[name] = each
    return found, _merge(unlisted, unread)


def _merge(*failures: _Failures) -> _Failures:
    names = dict.fromkeys(chain(*failures))
    return {name: "; ".join(each[name] for each in failures if name in each) for name in names}


async def _remove(connection: Connection, screen: Screen, task: Purge, removals: Mapping[str, _Removal]) -> _Failures:
    """Remove, check after a pause, and show what was done. Return the failures."""
    dry_run, files = task.dry_run is not None, removals[task.here].files if task.here in removals else ()
    deleted, failures = await _delete_slices(connection, removals, dry_run=dry_run)
    patches = {name: each.patch for name, each in removals.items() if each.patch}
    patched, unpatched = await _patch_each(connection, patches, dry_run=dry_run)
    for name in [name for name in patches if name not in {**patched, **unpatched}]:
        screen.line(f"{name}: the Node was deleted meanwhile, so nothing is left to remove")
    failures = _merge(failures, unpatched)
    if task.dry_run:
        return failures
    if fault := _remove_files(task.here, files):
        failures = _merge(failures, {task.here: fault})
    handed_over = [name for name in patched if patches[name].annotation is not None]
    await asyncio.sleep(task.sync if handed_over else task.pause if patched or deleted else 0)
    changed = dict.fromkeys((*patched, *deleted))
    failures = _merge(failures, await _check(connection, screen, task, {name: removals[name] for name in changed}))
    gone = {name: NodePatch(annotation=None) for name in handed_over if name not in failures}
    failures = _merge(failures, (await _patch_each(connection, gone))[1])
    if done := len({*changed, *([task.here] if files else [])} - failures.keys()):
        screen.line(f"removed from {done} node{'s' if done > 1 else ''}")
    return failures


async def _check(connection: Connection, screen: Screen, task: Purge, removed: Mapping[str, _Removal]) -> _Failures:
    """Show what is there again of what was removed, and return by whom."""
    again, unknown = await _patch_each(connection, dict.fromkeys(removed, NodePatch()))
    slices: Mapping[str, tuple[Slice, ...]] = {}
    try:
        if any(each.slices for each in removed.values()):
            slices = await _slices(connection, task)
    except ApiError as error:
        unlisted = {name: _with_hint(error) for name, each in removed.items() if each.slices}
        unknown = {**unlisted, **unknown}
    failures = {name: f"removed, but whether it stays removed is unknown: {reason}" for name, reason in unknown.items()}
    for name, state in again.items():
        back = _Removal(patch=cluster.reappeared(state, removed[name].patch), slices=slices.get(name, ()))
        if back:
            _show_removal(screen, name, state, back, verb="left")
            failures[name] = _still_runs(name) if back.slices else _writes_again(name, state, back.patch)
    return failures


# -- slices


async def _find_slices(
    connection: Connection, remarks: Screen, task: Purge, states: Mapping[str, NodeState]
) -> tuple[Mapping[str, tuple[Slice, ...]], _Failures]:
    """Return the slices by node. That they are unknown is a failure of each Node that says that it has some, else a warning.

    It needs none where the server does not have them: then no other Node can have any.
    """
    try:
        return await _slices(connection, task), {}
    except ApiError as error:
        why = f"the ResourceSlices of devwatch are unknown and stay: {_with_hint(error)}"
        having = {name: why for name, state in states.items() if Publish.DRA in _ways(state)}
        if not (having or isinstance(error, Unserved)):
            remarks.line(f"warning: {escape(why)}")
        return {}, having


async def _slices(connection: Connection, task: Purge) -> Mapping[str, tuple[Slice, ...]]:
    found: dict[str, tuple[Slice, ...]] = {}
    for each in await list_slices(connection, task.node):
        found[each.node] = (*found.get(each.node, ()), each)
    return found


async def _delete_slices(
    connection: Connection, removals: Mapping[str, _Removal], *, dry_run: bool
) -> tuple[Sequence[str], _Failures]:
    """Delete each slice, also after a failure of another. Return the nodes that had some, and the failures."""
    failures: _Failures = {}
    for name, each in removals.items():
        for unwanted in each.slices:
            try:
                await delete_slice(connection, unwanted, dry_run=dry_run)
            except Missing:
                continue
            except ApiError as error:
                failures = _merge(failures, {name: _with_hint(error)})
    return [name for name, each in removals.items() if each.slices and name not in failures], failures


def _ways(state: NodeState) -> frozenset[Publish]:
    return frozenset(map(way_of, state.listing().values()))


# -- files of this host


def _find_files(remarks: Screen, task: Purge, states: Mapping[str, NodeState]) -> tuple[_Removal, _Failures]:
    """Return what a daemon left in folders of this host if it is one of the nodes, and by its name why that is unknown or stays.

    It is a failure where the Node says that something is there. Otherwise it is a warning, or nothing where there is no such folder.
    """
    files, failures = _Removal(), _merge()
    if task.here not in states:
        return files, failures
    for way, find, stay in _PLACES:
        try:
            files, fault = find(task, files)
        except KubeletError as error:
            fault = f"{error}: {stay}"
            if way not in _ways(states[task.here]):
                if not isinstance(error.__cause__, FileNotFoundError):
                    remarks.line(f"warning: {escape(fault)}")
                continue
        failures = _merge(failures, {task.here: fault} if fault else {})
    return files, failures


def _find_plugin_files(task: Purge, files: _Removal) -> tuple[_Removal, str]:
    return replace(files, files=(*files.files, *find_leftovers(task.plugins))), ""


def _find_driver_files(task: Purge, files: _Removal) -> tuple[_Removal, str]:
    """Return the files of the DRA driver. Those of a prepared claim stay: its pods need them, and the daemon, to start and to end."""
    paths, claims = find_driver_files(task.kubelet, task.cdi)
    if not claims:
        return replace(files, files=(*files.files, *paths)), ""
    titles = joined(sorted(claim.title for claim in claims))
    cure = "end their pods while devwatch runs, then stop it and run devwatch purge once more"
    return replace(files, kept=paths), f"claims are prepared here ({titles}), and their files stay: {cure}"


_PLACES = (
    (
        Publish.DEVICE_PLUGIN,
        _find_plugin_files,
        "sockets and links of devwatch that are there stay (--device-plugin-dir names the folder)",
    ),
    (
        Publish.DRA,
        _find_driver_files,
        "sockets, claims and CDI files of devwatch that are there stay (--kubelet-dir names the kubelet's root)",
    ),
)
"""For each way of publishing that leaves files: how to find them, and what it means where they cannot be read."""


def _remove_files(node: str, files: Sequence[Path]) -> str:
    """Remove them while no daemon can start for the node, and return why that failed; empty where it did not."""
    lock = NodeLock(node)
    holder = lock.acquire_once() if files else None
    try:
        if holder is not None and holder.counts:
            return f"{_still_runs(node, holder)}; its files stay"
        remove_leftovers(files)
    except KubeletError as error:
        return str(error)
    finally:
        lock.release()
    return ""


def _still_runs(node: str | None, daemon: Holder | None = None) -> str:
    return f"a devwatch still runs on {node}{f' (pid {daemon.pid})' if daemon else ''}: stop it first"


def _writes_again(node: str, state: NodeState, back: NodePatch) -> str:
    """Return who writes again what was removed: the daemon of the node, or its kubelet, which goes on with the resource of a plugin."""
    writers = {writer.manager for name in back.counts for writer in state.writers.get(name, ())}
    if back.annotates or writers != {"kubelet"}:
        return _still_runs(node)
    names = ", ".join(sorted(back.counts))
    when = "as it does for 5 minutes after the end of the plugin: run devwatch purge once more after that"
    return f"the kubelet has written {names} again, {when}"


async def _patch_each(
    connection: Connection, patches: Mapping[str, NodePatch], *, dry_run: bool = False
) -> tuple[dict[str, NodeState], dict[str, str]]:
    """Send each patch, also after a failure of another. Return the patched Nodes and the failures; a deleted Node is in neither."""
    patched: dict[str, NodeState] = {}
    failures: dict[str, str] = {}
    for name, patch in patches.items():
        try:
            patched[name] = await nodes.patch_node(connection, name, patch, dry_run=dry_run)
        except NodeMissing:
            continue
        except ApiError as error:
            failures[name] = _with_hint(error)
    return patched, failures


def _with_hint(error: ApiError) -> str:
    return f"{error}; {error.hint}" if error.hint else str(error)


def _daemon_on_this_host(node: str) -> Holder | None:
    """Return the daemon of this node if it runs on this host, which its lock shows without delay."""
    lock = NodeLock(node)
    holder = lock.acquire_once()
    lock.release()
    return holder if holder is not None and holder.counts else None


async def _states(connection: Connection, node: str | None) -> dict[str, NodeState]:
    if node is not None:
        return {node: await nodes.patch_node(connection, node, NodePatch())}
    return {node.name: node.state for node in await cluster.summarize_nodes(connection)}


def _show_removal(screen: Screen, name: str, state: NodeState, removal: _Removal, *, verb: str) -> None:
    screen.line(f"{name}: {verb}")
    for resource in sorted(removal.patch.counts):
        capacity, allocatable = (maps.get(resource, "none") for maps in (state.capacity, state.allocatable))
        screen.line(f"- {resource}: capacity {capacity}, allocatable {allocatable}", indent=2)
    if removal.patch.annotates:
        screen.line("- the annotation devwatch.io/devices", indent=2)
    for each in removal.slices:
        screen.line(escape(f"- the ResourceSlice {each.name}"), indent=2)
    for resource in cluster.not_removable(state):
        screen.line(f"{resource} is listed and left alone: its count is not devwatch's to remove", indent=2)
    for path in removal.files:
        screen.line(escape(f"- {path}{'/' if path.name == FOLDER else ''}"), indent=2)
    for path in removal.kept:
        screen.line(escape(f"{path} is left alone: a claim is prepared here"), indent=2)
