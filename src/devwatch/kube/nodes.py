"""Read, patch and watch Nodes."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from devwatch.core.errors import Missing, NodeMissing, Refused, Retry
from devwatch.core.node import ANNOTATION, ANNOTATION_PART, FIELD_MANAGER, MAPS, NodePatch, NodeState, Writer
from devwatch.kube.client import REQUEST_TIMEOUT, Connection
from devwatch.kube.responses import list_hint, reason_of
from devwatch.kube.watch import ObjectWatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from devwatch.kube.credentials import Credentials


class KubeNode(Connection):
    """One Node of the API server."""

    def __init__(
        self,
        name: str,
        credentials: Credentials,
        *,
        version: str,
        dry_run: bool = False,
        timeout: float = REQUEST_TIMEOUT,
    ) -> None:
        """Connect to nothing yet. With `dry_run` the server checks everything and stores nothing (`dryRun=All`)."""
        super().__init__(credentials, version=version, timeout=timeout)
        self._name = name
        self._dry_run = dry_run
        self._watch = ObjectWatch(server=self, path="/api/v1/nodes", selector=f"metadata.name={name}")

    async def patch(self, patch: NodePatch) -> NodeState:
        """Send a patch of the Node's status, an empty one to read it. Raises as `request` does."""
        return await patch_node(self, self._name, patch, dry_run=self._dry_run)

    async def watch(self) -> AsyncIterator[NodeState | None]:
        """Yield the Node, at first and after each write of a client, until the server ends the watch after `WATCH_TIMEOUT`.

        Yields None where the Node does not exist, or is deleted. A watch begins with a list, unless the server ended the one before it:
        then it continues from the version of its last event or bookmark. Raises as `request` does, and `Gone` where the server no longer
        has that version.
        """
        async with aclosing(self._watch.events()) as events:
            async for kind, items in events:
                for item in items if kind != "DELETED" else ():
                    yield node_state({"kind": "Node", **item}, origin=self.origin)
                if kind == "DELETED" or not items:
                    yield None


async def patch_node(connection: Connection, name: str, patch: NodePatch, *, dry_run: bool = False) -> NodeState:
    """Send a strategic-merge patch of a Node's status; an empty one is a read that needs no further permission.

    With `dry_run` the server checks everything and stores nothing (`dryRun=All`). Raises as `request` does.
    """
    path = f"/api/v1/nodes/{quote(name, safe='')}/status"
    query = (("fieldManager", FIELD_MANAGER), *((("dryRun", "All"),) if dry_run else ()))
    kind = "application/strategic-merge-patch+json"
    try:
        content = await connection.request("PATCH", path, query=query, body=patch.body(), content_type=kind)
    except Missing as error:
        raise NodeMissing(str(error)) from error
    except Refused as error:
        raise Refused(str(error), hint=list_hint(str(error), patch)) from error
    return node_state(content, origin=connection.origin)


def node_state(content: Mapping[str, Any], *, origin: str) -> NodeState:
    """Convert a Node object. Raises `Retry` for anything else: the page of a proxy must not count as a Node without resources."""
    if content.get("kind") != "Node":
        raise Retry(f"unexpected response from {origin}: not a Node (does a proxy answer?)")
    try:
        metadata, status = content["metadata"], content.get("status") or {}
        version = str(metadata.get("resourceVersion") or "0")
        annotation = (metadata.get("annotations") or {}).get(ANNOTATION)
        return NodeState(
            uid=str(metadata["uid"]),
            version=int(version) if version.isdecimal() else 0,
            capacity=_strings(status.get("capacity")),
            allocatable=_strings(status.get("allocatable")),
            annotation=annotation if isinstance(annotation, str) else None,
            writers=_writers(metadata.get("managedFields") or ()),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Retry(f"unexpected response from {origin}: not a Node: {reason_of(error)}") from error


def _strings(content: object) -> dict[str, str]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise TypeError(content)
    return {str(name): str(value) for name, value in content.items()}


def _writers(managed: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Writer, ...]]:
    """Return the recorded field managers of each extended resource and of the annotation (metav1.ManagedFieldsEntry)."""
    # Servers from 1.22 on record the subresource. A kubelet writes the status all the time, so there at least one entry has it.
    recorded = any("subresource" in entry for entry in managed)
    writers: dict[str, tuple[Writer, ...]] = {}
    for entry in managed:
        for name, maps in _written(entry.get("fieldsV1") or {}).items():
            writer = Writer(
                manager=str(entry.get("manager")),
                time=str(entry.get("time") or ""),
                operation=str(entry.get("operation")),
                subresource=str(entry.get("subresource") or "") if recorded else "status",
                maps=frozenset(maps),
            )
            writers[name] = (*writers.get(name, ()), writer)
    return writers


def _written(fields: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the extended resources of an entry, each with its maps, and `ANNOTATION_PART` (without maps) if it has the annotation."""
    status, annotations = fields.get("f:status") or {}, (fields.get("f:metadata") or {}).get("f:annotations") or {}
    written: dict[str, list[str]] = {ANNOTATION_PART: []} if f"f:{ANNOTATION}" in annotations else {}
    for part in MAPS:
        for key in status.get(f"f:{part}") or ():
            if "/" in key:
                written.setdefault(key.removeprefix("f:"), []).append(part)
    return written
