"""Requests to the API server about the pods of a node, and about Events."""

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
"""Objects per page of a list. With 160 KiB each, which few Nodes and Pods reach, a page still fits `MAX_ANSWER`."""
_MESSAGE_LENGTH = 1000
"""Characters of an Event's message; the API allows 1024 bytes."""


_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
"""A time of the API: RFC 3339, in whole seconds of UTC (metav1.Time)."""


class Requests(Protocol):
    """A connection to the API server."""

    async def request(
        self, method: str, path: str, *, query: Sequence[tuple[str, str]] = (), body: object = None
    ) -> dict[str, Any]:
        """Send a request and return the object of the answer. Raises an `ApiError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An Event to write, about the Node or about a pod of it."""

    reason: str
    message: str
    warning: bool = False
    pod: Pod | None = None
    """The pod that the Event is about, None for the Node."""
    suffix: str = field(default_factory=lambda: secrets.token_hex(8), compare=False)
    """Makes the name unique, and the same when the Event is sent again."""


async def list_all(requests: Requests, path: str, *query: tuple[str, str]) -> AsyncIterator[dict[str, Any]]:
    """Yield the objects of a list, page by page (API concepts, "Retrieving large results sets in chunks"). Raises an `ApiError`."""
    token = ""
    while True:
        page = (("limit", str(PAGE)), *((("continue", token),) if token else ()))
        content = await requests.request("GET", path, query=(*query, *page))
        items, metadata = content.get("items", ""), content.get("metadata") or {}
        # The page of a proxy has no `items`. It must not be taken for an empty list, which would mean that there are no pods.
        if not isinstance(items, list | None) or not isinstance(metadata, dict):
            raise Retry(f"unexpected response to GET {path}: not a list (does a proxy answer?)")
        for item in items or ():
            if not isinstance(item, dict):
                raise Retry(f"unexpected response to GET {path}: an item is not an object")
            yield item
        token = str(metadata.get("continue") or "")
        if not token:
            return


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The pods of one node, and the Events about them."""

    requests: Requests
    node: str

    async def pods(self) -> tuple[Pod, ...]:
        """Return the pods of the node. Raises an `ApiError`, `Forbidden` without the permission to list pods."""
        selector = ("fieldSelector", f"spec.nodeName={self.node}")
        return tuple([pod_of(item) async for item in list_all(self.requests, "/api/v1/pods", selector)])

    async def evict(self, pod: Pod) -> None:
        """Evict a pod, and never another of the same name (policy/v1 Eviction with a UID precondition).

        Raises `Missing` or `Conflict` where the pod is gone, `Retry` where a budget refuses (429; 500 where two budgets select the pod)
        or where the response is not one of the API server, and `Forbidden`.
        """
        path = f"/api/v1/namespaces/{quote(pod.namespace, safe='')}/pods/{quote(pod.name, safe='')}/eviction"
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
            "deleteOptions": {"preconditions": {"uid": pod.uid}},
        }
        content = await self.requests.request("POST", path, body=body)
        # kube-apiserver responds with a Status; another implementation may return the created Eviction.
        if content.get("status") != "Success" and content.get("kind") != "Eviction":
            raise Retry(f"unexpected response to POST {path}: not a success (does a proxy answer?)")

    async def record(self, event: Event) -> None:
        """Write an Event. Raises an `ApiError`."""
        namespace = event.pod.namespace if event.pod else "default"
        await self.requests.request(
            "POST", f"/api/v1/namespaces/{quote(namespace, safe='')}/events", body=self._body(event)
        )

    def _body(self, event: Event) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        # As in the kubelet's Events, the uid is the Node's name: `kubectl describe node` selects by it.
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
    """Return the pod in an object of the API. Raises `Retry` for an object that is not a valid Pod."""
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
            started=bool((item.get("status") or {}).get("startTime")),
            devices=_devices(item.get("status") or {}),
            claims=frozenset(_claims(spec, item.get("status") or {})),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Retry(f"unexpected response: an item is not a Pod ({type(error).__name__})") from error


def _string(value: object) -> str:
    """Return a value that is valid text for a URL. Raises `TypeError` if it is not text, `ValueError` for an unpaired surrogate in it."""
    if not isinstance(value, str):
        raise TypeError(value)
    value.encode()
    return value


def _host_paths(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the paths of the hostPath volumes by volume name."""
    volumes = [volume for volume in spec.get("volumes") or () if volume.get("hostPath")]
    return {_string(volume.get("name") or ""): _string(volume["hostPath"]["path"]) for volume in volumes}


def _containers(spec: Mapping[str, Any], status: Mapping[str, Any]) -> Iterator[Container]:
    """Yield the containers of all kinds, each with the host paths that it mounts and the state that the kubelet reports."""
    paths = _host_paths(spec)
    for kind in ("container", "initContainer", "ephemeralContainer"):
        reported = {each["name"]: each.get("state") or {} for each in status.get(f"{kind}Statuses") or ()}
        for container in spec.get(f"{kind}s") or ():
            mounts = [mount for mount in container.get("volumeMounts") or () if mount.get("name") in paths]
            name = _string(container.get("name") or "")
            phase, started = _container_state(reported.get(name, {}))
            where = (posixpath.join(paths[mount["name"]], _string(mount.get("subPath") or "")) for mount in mounts)
            yield Container(name=name, mounts=tuple(where), phase=phase, started=started)


def _devices(status: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Return by resource the IDs that the status of the containers names (ContainerStatus, `allocatedResourcesStatus`)."""
    found: dict[str, set[str]] = {}
    for kind in ("containerStatuses", "initContainerStatuses"):
        for container in status.get(kind) or ():
            for each in container.get("allocatedResourcesStatus") or ():
                ids = (_string(resource["resourceID"]) for resource in each.get("resources") or ())
                found.setdefault(_string(each["name"]), set()).update(ids)
    return {name: frozenset(ids) for name, ids in found.items()}


def _claims(spec: Mapping[str, Any], status: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the ResourceClaims of a pod (PodSpec, `resourceClaims`; PodStatus, `extendedResourceClaimStatus` from 1.34)."""
    made = [status["extendedResourceClaimStatus"]] if status.get("extendedResourceClaimStatus") else []
    for each in (*(spec.get("resourceClaims") or ()), *(status.get("resourceClaimStatuses") or ()), *made):
        if name := each.get("resourceClaimName"):
            yield _string(name)


def _container_state(state: Mapping[str, Any]) -> tuple[Phase, int | None]:
    """Return the phase of a container, and its start in Unix seconds. An unreported state means waiting (ContainerState)."""
    phase = next((phase for phase in Phase if state.get(phase.value) is not None), Phase.WAITING)
    text = (state.get("running") or {}).get("startedAt")
    if not isinstance(text, str) or not _TIME.fullmatch(text):
        return phase, None
    return phase, int(datetime.fromisoformat(text).timestamp())


def _scheduled(metadata: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    """Return when a pod was bound, else when it was created; empty where neither is a time in whole seconds."""
    bound = (
        condition.get("lastTransitionTime")
        for condition in status.get("conditions") or ()
        if condition.get("type") == "PodScheduled" and condition.get("status") == "True"
    )
    text = next(bound, None) or metadata.get("creationTimestamp")
    return text if isinstance(text, str) and _TIME.fullmatch(text) else ""


def _requests(spec: Mapping[str, Any]) -> dict[str, int]:
    containers, init = spec.get("containers") or (), spec.get("initContainers") or ()
    names = {name for container in (*containers, *init) for name in _container_requests(container) if "/" in name}
    return {
        name: effective_request(
            [_container_requests(container).get(name, 0) for container in containers],
            [
                (_container_requests(container).get(name, 0), container.get("restartPolicy") == "Always")
                for container in init
            ],
        )
        for name in names
    }


def _container_requests(container: Mapping[str, Any]) -> dict[str, int]:
    resources = container.get("resources") or {}
    given = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: quantity(str(text)) or 0 for name, text in given.items()}
