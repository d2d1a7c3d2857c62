"""The pods of a node and the Events about it, as requests to the API server."""

from __future__ import annotations

import posixpath
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from devwatch.core.errors import Retry
from devwatch.core.node import quantity
from devwatch.core.pods import Container, Phase, Pod, effective_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

PAGE = 50
"""Objects asked for in one answer of a list: at 160 KiB each, which few Nodes and Pods ever have, they are still read."""
_MESSAGE_LENGTH = 1000
"""Characters of an Event's message; the API allows 1024 bytes of a event."""


_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
"""A time as the API has it: RFC 3339, in whole seconds of UTC (metav1.Time)."""


class Requests(Protocol):
    """A connection to the API server."""

    async def request(
        self, method: str, path: str, *, query: Sequence[tuple[str, str]] = (), body: object = None
    ) -> dict[str, Any]:
        """Send a request and return the object of the answer. Raises an `ApiError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An Event to write: what happened to a Node, or to a pod of it."""

    reason: str
    message: str
    warning: bool = False
    pod: Pod | None = None
    """The pod that it is about, None for the Node."""
    suffix: str = field(default_factory=lambda: secrets.token_hex(8), compare=False)
    """What makes its name its own, also where it is sent again."""


async def list_all(requests: Requests, path: str, *query: tuple[str, str]) -> AsyncIterator[dict[str, Any]]:
    """Yield the objects of a list, page by page (API concepts, "Retrieving large results sets in chunks"). Raises an `ApiError`."""
    token = ""
    while True:
        page = (("limit", str(PAGE)), *((("continue", token),) if token else ()))
        content = await requests.request("GET", path, query=(*query, *page))
        items, metadata = content.get("items", ""), content.get("metadata") or {}
        # A proxy's page is no list either; taken for an empty one it would say that nobody is there.
        if not isinstance(items, list | None) or not isinstance(metadata, dict):
            raise Retry(f"the answer to GET {path} is no list")
        for item in items or ():
            if not isinstance(item, dict):
                raise Retry(f"the answer to GET {path} holds something that is no object")
            yield item
        token = str(metadata.get("continue") or "")
        if not token:
            return


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What runs on one node."""

    requests: Requests
    node: str

    async def pods(self) -> tuple[Pod, ...]:
        """Return the pods of the node. Raises an `ApiError`, `Forbidden` without the right to list pods."""
        selector = ("fieldSelector", f"spec.nodeName={self.node}")
        return tuple([pod_of(item) async for item in list_all(self.requests, "/api/v1/pods", selector)])

    async def evict(self, pod: Pod) -> None:
        """Evict a pod, and no other of the same name (policy/v1 Eviction with a UID precondition).

        Raises `Missing` or `Conflict` where it is gone, `Retry` where a budget says no (429, for two budgets 500), or where something
        else than the API server says yes, `Forbidden`.
        """
        path = f"/api/v1/namespaces/{quote(pod.namespace, safe='')}/pods/{quote(pod.name, safe='')}/eviction"
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
            "deleteOptions": {"preconditions": {"uid": pod.uid}},
        }
        content = await self.requests.request("POST", path, body=body)
        # kube-apiserver answers with a Status; another server may give back what was created.
        if content.get("status") != "Success" and content.get("kind") != "Eviction":
            raise Retry(
                f"the answer to POST {path} is no success: something else than the API server may have answered"
            )

    async def record(self, event: Event) -> None:
        """Write an Event. Raises an `ApiError`."""
        namespace = event.pod.namespace if event.pod else "default"
        await self.requests.request(
            "POST", f"/api/v1/namespaces/{quote(namespace, safe='')}/events", body=self._body(event)
        )

    def _body(self, event: Event) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        # The kubelet gives a Node's name for its uid, and `kubectl describe node` looks for it.
        subject = {"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": self.node}
        if event.pod:
            subject |= {"kind": "Pod", "namespace": event.pod.namespace, "name": event.pod.name, "uid": event.pod.uid}
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{subject['name'][:200].rstrip('-.')}.{event.suffix}",
                "namespace": subject.get("namespace", "default"),
            },
            "involvedObject": subject,
            "reason": event.reason,
            "message": event.message[:_MESSAGE_LENGTH],
            "type": "Warning" if event.warning else "Normal",
            "source": {"component": "devwatch", "host": self.node},
            "reportingComponent": "devwatch",
            "reportingInstance": self.node,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


def pod_of(item: Mapping[str, Any]) -> Pod:
    """Read a pod. Raises `Retry` for anything else."""
    try:
        metadata, spec = item["metadata"], item["spec"]
        owner: Mapping[str, Any] = next(
            (owner for owner in metadata.get("ownerReferences") or () if owner.get("controller")), {}
        )
        return Pod(
            namespace=_string(metadata["namespace"]),
            name=_string(metadata["name"]),
            uid=_string(metadata["uid"]),
            phase=_string((item.get("status") or {}).get("phase") or "Unknown"),
            requests=_requests(spec),
            node=_string(spec.get("nodeName") or ""),
            host_paths=tuple(_host_paths(spec).values()),
            containers=tuple(_containers(spec, item.get("status") or {})),
            scheduled=_scheduled(metadata, item.get("status") or {}),
            owner=_string(owner.get("kind", "")),
            mirror="kubernetes.io/config.mirror" in (metadata.get("annotations") or {}),
            terminating=bool(metadata.get("deletionTimestamp")),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Retry(f"the answer holds something that is no Pod: {type(error).__name__}") from error


def _string(value: object) -> str:
    """Return a text that a path can name. Raises `TypeError` for what is none, `ValueError` for half a surrogate pair in it."""
    if not isinstance(value, str):
        raise TypeError(value)
    value.encode()
    return value


def _host_paths(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the paths of the hostPath volumes by the name of the volume."""
    volumes = [volume for volume in spec.get("volumes") or () if volume.get("hostPath")]
    return {_string(volume.get("name") or ""): _string(volume["hostPath"]["path"]) for volume in volumes}


def _containers(spec: Mapping[str, Any], status: Mapping[str, Any]) -> Iterator[Container]:
    """Yield the containers of every kind that mount host paths, with what the kubelet says of each."""
    paths = _host_paths(spec)
    for kind in ("container", "initContainer", "ephemeralContainer"):
        told = {each["name"]: each.get("state") or {} for each in status.get(f"{kind}Statuses") or ()}
        for container in spec.get(f"{kind}s") or ():
            mounts = [mount for mount in container.get("volumeMounts") or () if mount.get("name") in paths]
            if mounts:
                name = _string(container["name"])
                phase, started = _state(told.get(name, {}))
                where = (posixpath.join(paths[mount["name"]], _string(mount.get("subPath") or "")) for mount in mounts)
                yield Container(name=name, mounts=tuple(where), phase=phase, started=started)


def _state(state: Mapping[str, Any]) -> tuple[Phase, int | None]:
    """Return what a container does, and since when it runs in Unix seconds; a state that is not told is that it waits (ContainerState)."""
    phase = next((phase for phase in Phase if state.get(phase.value) is not None), Phase.WAITING)
    text = (state.get("running") or {}).get("startedAt")
    return phase, int(datetime.fromisoformat(text).timestamp()) if isinstance(text, str) and _TIME.fullmatch(
        text
    ) else None


def _scheduled(metadata: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    """Return when a pod was bound, or without that when it was made; empty where neither is a time in whole seconds."""
    bound = (
        condition.get("lastTransitionTime")
        for condition in status.get("conditions") or ()
        if condition.get("type") == "PodScheduled" and condition.get("status") == "True"
    )
    text = next(bound, None) or metadata.get("creationTimestamp")
    return text if isinstance(text, str) and _TIME.fullmatch(text) else ""


def _requests(spec: Mapping[str, Any]) -> dict[str, int]:
    containers, init = spec.get("containers") or (), spec.get("initContainers") or ()
    names = {name for container in (*containers, *init) for name in _wanted(container) if "/" in name}
    return {
        name: effective_request(
            [_wanted(container).get(name, 0) for container in containers],
            [(_wanted(container).get(name, 0), container.get("restartPolicy") == "Always") for container in init],
        )
        for name in names
    }


def _wanted(container: Mapping[str, Any]) -> dict[str, int]:
    resources = container.get("resources") or {}
    given = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: quantity(str(text)) or 0 for name, text in given.items()}
