"""The commands for the cluster: show what devwatch advertises in it, and remove it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devwatch.config.resolver import new_loop
from devwatch.core import exitstatus
from devwatch.core.errors import ApiError, KubeletError, NodeMissing, Unavailable
from devwatch.core.node import NodePatch
from devwatch.core.rules import Publish
from devwatch.core.status import label
from devwatch.core.text import escape
from devwatch.core.way import way_of
from devwatch.host.lock import NodeLock
from devwatch.kube import cluster, nodes
from devwatch.kubelet.links import FOLDER, find_leftovers, remove_leftovers

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from devwatch.cli.display import Screen
    from devwatch.core.listing import Entry
    from devwatch.core.node import NodeState
    from devwatch.core.pods import Pod
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


async def status(connection: Connection, screen: Screen, remarks: Screen, *, form: str) -> int:
    """Show every resource of every node, the pods that request it, and its problems."""
    seen = await cluster.overview(connection)
    if form in {"json", "yaml"}:
        screen.document({"resources": [_document(row) for row in seen.resources]}, form)
    elif seen.resources:
        _show(screen, seen.resources, wide=form == "wide")
    if form not in {"json", "yaml"} and not any(row.owned for row in seen.resources):
        remarks.line("devwatch advertises nothing in this cluster")
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
    """The name of the node that this host is, of which the sockets and links are removed as well; empty for none."""
    plugins: Path = Path()
    """The folder in which the kubelet of this host accepts device plugins."""


async def purge(connection: Connection, screen: Screen, remarks: Screen, task: Purge) -> int:
    """Remove exactly what devwatch owns according to the annotations, and check whether it stays removed.

    A node that fails does not stop the others. Each failure is a line of the remarks, and the status is then 1.
    """
    daemon = None if task.node is None or task.dry_run else _daemon_on_this_host(task.node)
    states = await _states(connection, task.node)
    removals = {name: patch for name, state in states.items() if (patch := cluster.removal(state))}
    files, unknown = _leftovers(remarks, task, states)
    names = [name for name in states if name in removals or (files and name == task.here)]
    verb = "left" if daemon else "would remove" if task.dry_run else "removing"
    for name in names:
        _show_removal(screen, name, states[name], removals.get(name, NodePatch()), verb=verb)
        _show_files(screen, files if name == task.here else ())
    if daemon:
        raise Unavailable(_still_runs(task.node, daemon))
    failures = [*unknown.items()]
    if not names:
        screen.line("there is nothing of devwatch to remove")
    elif not task.dry_run and not task.confirmed(len(names)):
        screen.line("nothing was removed")
        return exitstatus.FAILED
    elif task.dry_run != "client":
        await asyncio.sleep(0)  # a pending interrupt ends it here, and not after the first request
        failures += (await _remove(connection, screen, task, removals, files)).items()
    for name, reason in failures:
        remarks.out.write(escape(f"devwatch: {name}: {' '.join(reason.split())}") + "\n")
    return exitstatus.FAILED if failures else exitstatus.DONE


async def _remove(
    connection: Connection, screen: Screen, task: Purge, removals: Mapping[str, NodePatch], files: Sequence[Path]
) -> dict[str, str]:
    """Remove, check after a pause, and show what was done. Return the failures by node."""
    patched, failures = await _patch_each(connection, removals, dry_run=task.dry_run is not None)
    for name in [name for name in removals if name not in {**patched, **failures}]:
        screen.line(f"{name}: the Node was deleted meanwhile, so nothing is left to remove")
    if task.dry_run:
        return failures
    if fault := _remove_files(task.here, files):
        failures[task.here] = "; ".join(filter(None, (failures.get(task.here), fault)))
    handed_over = [name for name in patched if removals[name].annotation is not None]
    await asyncio.sleep(task.sync if handed_over else task.pause if patched else 0)
    again, unknown = await _patch_each(connection, {name: NodePatch() for name in patched})
    failures |= {
        name: f"removed, but whether it stays removed is unknown: {reason}" for name, reason in unknown.items()
    }
    for name, state in again.items():
        if back := cluster.reappeared(state, removals[name]):
            _show_removal(screen, name, state, back, verb="left")
            failures[name] = _writes_again(name, state, back)
    gone = {name: NodePatch(annotation=None) for name in handed_over if name in again.keys() - failures.keys()}
    failures |= (await _patch_each(connection, gone))[1]
    if done := len((patched.keys() | ({task.here} if files else set())) - failures.keys()):
        screen.line(f"removed from {done} node{'s' if done > 1 else ''}")
    return failures


def _leftovers(
    remarks: Screen, task: Purge, states: Mapping[str, NodeState]
) -> tuple[tuple[Path, ...], dict[str, str]]:
    """Return what a daemon left in the folder of the plugins if this host is one of the nodes, and by its name why that is unknown.

    It is a failure where the Node says that something is there. Otherwise it is a warning, or nothing where there is no such folder.
    """
    if task.here not in states:
        return (), {}
    try:
        return find_leftovers(task.plugins), {}
    except KubeletError as error:
        why = f"{error}: sockets and links of devwatch that are there stay (--device-plugin-dir names the folder)"
        if any(way_of(entries) is Publish.DEVICE_PLUGIN for entries in states[task.here].listing().values()):
            return (), {task.here: why}
        if not isinstance(error.__cause__, FileNotFoundError):
            remarks.line(f"warning: {escape(why)}")
    return (), {}


def _remove_files(node: str, files: Sequence[Path]) -> str:
    """Remove them while no daemon can start for the node, and return why that failed; empty where it did not."""
    lock = NodeLock(node)
    holder = lock.acquire_once() if files else None
    try:
        if holder is not None and holder.counts:
            return f"{_still_runs(node, holder)}; its sockets and links stay"
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


def _show_files(screen: Screen, files: Sequence[Path]) -> None:
    for path in files:
        screen.line(escape(f"- {path}{'/' if path.name == FOLDER else ''}"), indent=2)


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


def _show_removal(screen: Screen, name: str, state: NodeState, patch: NodePatch, *, verb: str) -> None:
    screen.line(f"{name}: {verb}")
    for resource in sorted(patch.counts):
        capacity, allocatable = (maps.get(resource, "none") for maps in (state.capacity, state.allocatable))
        screen.line(f"- {resource}: capacity {capacity}, allocatable {allocatable}", indent=2)
    if patch.annotates:
        screen.line("- the annotation devwatch.io/devices", indent=2)
    for resource in cluster.not_removable(state):
        screen.line(f"{resource} is listed and left alone: its count is not devwatch's to remove", indent=2)
