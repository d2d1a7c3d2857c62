"""The commands about the cluster: show what devwatch advertises in it, and take it away."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devwatch import cluster, display
from devwatch.errors import ApiError, Forbidden, NodeMissing, Unavailable
from devwatch.lock import NodeLock
from devwatch.resolver import new_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from devwatch.cluster import Standing
    from devwatch.display import Screen
    from devwatch.kube import Connection
    from devwatch.node import Changes, NodeState

DONE, FAILED = 0, 1
SECOND_LOOK = 5.0
"""Seconds after which `purge` looks whether a running daemon has put back what was removed."""


def run(connection: Connection, work: Coroutine[Any, Any, int]) -> int:
    """Run a command to its end, which no name server delays. Raises `Unavailable` with one line for whatever the API server does not do."""

    async def closing() -> int:
        try:
            return await work
        except Forbidden as error:
            raise Unavailable(f"{error}; {error.hint}" if error.hint else str(error)) from error
        except ApiError as error:
            raise Unavailable(str(error)) from error
        finally:
            await connection.close()

    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(closing())
    finally:
        work.close()  # where no loop could be made, it has not begun


# -- status


async def status(connection: Connection, screen: Screen, remarks: Screen, *, form: str) -> int:
    """Show what every node advertises, who asks for it, and what is not as it should be."""
    standings = await cluster.standings(connection)
    if form in {"json", "yaml"}:
        screen.document({"resources": [_document(standing) for standing in standings]}, form)
    elif standings:
        _show(screen, standings, wide=form == "wide")
    else:
        remarks.line("devwatch advertises nothing in this cluster")
    for warning in dict.fromkeys(text for standing in standings for text in standing.warnings()):
        remarks.line(f"warning: {display.printable(warning)}")
    return DONE


def _show(screen: Screen, standings: Sequence[Standing], *, wide: bool) -> None:
    heads = [
        "NODE",
        "RESOURCE",
        "CAPACITY",
        "ALLOCATABLE",
        "REQUESTED",
        "PODS",
        "DEVICES",
        *(["LINKS", "CHANGED"] if wide else []),
    ]
    screen.table(heads, [_cells(standing, wide=wide) for standing in standings])


def _cells(standing: Standing, *, wide: bool) -> list[str]:
    state, name = standing.member.state, standing.resource
    pods = ", ".join(f"{pod.title} ({pod.phase})" for pod in standing.pods)
    devices = ", ".join(entry.serial or entry.link or entry.devnode for entry in standing.devices)
    links = ", ".join(entry.link or entry.devnode for entry in standing.devices)
    counts = [state.capacity.get(name, ""), state.allocatable.get(name, ""), str(standing.requested)]
    return [standing.member.name, name, *counts, pods, devices, *([links, standing.changed or ""] if wide else [])]


def _document(standing: Standing) -> dict[str, Any]:
    state, name = standing.member.state, standing.resource
    return {
        "node": standing.member.name,
        "ready": standing.member.ready,
        "resource": name,
        "capacity": state.capacity.get(name),
        "allocatable": state.allocatable.get(name),
        "requested": standing.requested,
        "pods": [{"namespace": pod.namespace, "name": pod.name, "phase": pod.phase} for pod in standing.pods],
        "devices": [{field: getattr(entry, field) for field in type(entry).__slots__} for entry in standing.devices],
        "changed": standing.changed,
        "warnings": list(standing.warnings()),
    }


# -- purge


@dataclass(frozen=True, slots=True, kw_only=True)
class Purge:
    """What is to be removed: from the node of this name, or from all with None."""

    node: str | None
    dry_run: str | None = None
    """`client` shows the difference, `server` asks the API server too whether it would accept it."""
    confirmed: Callable[[int], bool] = lambda _count: True
    """Asked once, with the number of nodes, before anything is removed from all of them."""
    pause: float = SECOND_LOOK


async def purge(connection: Connection, screen: Screen, remarks: Screen, task: Purge) -> int:
    """Remove exactly what the annotations say is ours, and look again whether it stays away.

    A node that fails keeps no other from being done. Each failure is a line of the remarks, and the status is then 1.
    """
    if task.node is not None and not task.dry_run:
        _refuse_beside_daemon(task.node)
    states = await _states(connection, task.node)
    removals = {name: changes for name, state in states.items() if (changes := cluster.removal(state))}
    for name, changes in removals.items():
        _show_removal(screen, name, states[name], changes, verb="would remove" if task.dry_run else "removing")
    if not removals:
        screen.line("there is nothing of devwatch to remove")
    if not removals or task.dry_run == "client":
        return DONE
    if task.node is None and not task.dry_run and not task.confirmed(len(removals)):
        screen.line("nothing was removed")
        return FAILED
    await asyncio.sleep(0)  # an interrupt until now ends it here, and not after the first request
    failures = await _remove(connection, screen, task, removals)
    for name, reason in failures.items():
        remarks.out.write(display.printable(f"devwatch: {name}: {' '.join(reason.split())}") + "\n")
    return FAILED if failures else DONE


async def _remove(
    connection: Connection, screen: Screen, task: Purge, removals: Mapping[str, Changes]
) -> dict[str, str]:
    """Remove, look again, and say what was done. Return why that failed, by node."""
    held, failures = await _patch_each(connection, removals, dry_run=task.dry_run is not None)
    for name in [name for name in removals if name not in {**held, **failures}]:
        screen.line(f"{name}: the Node is gone meanwhile, so nothing is left to remove")
    if task.dry_run or not held:
        return failures
    await asyncio.sleep(task.pause)
    again, unseen = await _patch_each(connection, {name: {} for name in held})
    failures |= {name: f"removed, but whether it stays away is unknown: {reason}" for name, reason in unseen.items()}
    failures |= {name: f"a devwatch still runs on {name}: stop it first" for name in cluster.left(again, removals)}
    if done := len(held.keys() - failures.keys()):
        screen.line(f"removed from {done} node{'s' if done > 1 else ''}")
    return failures


async def _patch_each(
    connection: Connection, patches: Mapping[str, Changes], *, dry_run: bool = False
) -> tuple[dict[str, NodeState], dict[str, str]]:
    """Send each patch, whatever becomes of the others. Return the answers, and why there is none; a Node that is gone is in neither."""
    answers: dict[str, NodeState] = {}
    failures: dict[str, str] = {}
    for name, changes in patches.items():
        try:
            answers[name] = await connection.patch_node(name, changes, dry_run=dry_run)
        except NodeMissing:
            continue
        except Forbidden as error:
            failures[name] = f"{error}; {error.hint}" if error.hint else str(error)
        except ApiError as error:
            failures[name] = str(error)
    return answers, failures


def _refuse_beside_daemon(node: str) -> None:
    """Raise `Unavailable` where the daemon of this node runs on this host: by its lock that is known at once."""
    lock = NodeLock(node)
    holder = lock.acquire_once()
    lock.release()
    if holder is not None and holder.counts:
        raise Unavailable(f"a devwatch still runs on {node} (pid {holder.pid}): stop it first")


async def _states(connection: Connection, node: str | None) -> dict[str, NodeState]:
    if node is not None:
        return {node: await connection.patch_node(node, {})}
    return {member.name: member.state for member in await cluster.members(connection)}


def _show_removal(screen: Screen, name: str, state: NodeState, changes: Changes, *, verb: str) -> None:
    screen.line(f"{name}: {verb}")
    for resource in sorted(filter(None, changes)):
        capacity, allocatable = (maps.get(resource, "none") for maps in (state.capacity, state.allocatable))
        screen.line(f"- {resource}: capacity {capacity}, allocatable {allocatable}", indent=2)
    screen.line("- the annotation devwatch.io/devices", indent=2)
