"""Every state of a Node's counts, and of the pods of a namespace, for as long as a test looks."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import quote

from system.apiserver import NAMESPACE
from system.waiting import eventually

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from system.apiserver import ApiServer, Object

Figures = tuple[int | None, int | None]
"""Capacity and allocatable, None where the map has no such key."""

_NODES, _PODS = "/api/v1/nodes", f"/api/v1/namespaces/{NAMESPACE}/pods"


class Chronicle:
    """What was written to a Node and to the pods within the context, write by write: a watch leaves none out."""

    def __init__(self, apiserver: ApiServer, node: str) -> None:
        """Begin with the state now; what comes later is followed within the context."""
        self._node = _Followed(apiserver, _NODES, f"metadata.name={node}")
        self._pods = _Followed(apiserver, _PODS, f"spec.nodeName={node}")

    def __enter__(self) -> Self:
        """Begin to follow."""
        self._node.start()
        self._pods.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End both watches."""
        self._node.close()
        self._pods.close()

    def catch_up(self) -> None:
        """Wait until everything that is stored now has been followed."""
        self._node.catch_up()
        self._pods.catch_up()

    def figures(self, resource: str) -> list[Figures]:
        """Return what the Node has shown of a resource, one after the other, without repetitions."""
        shown: list[Figures] = []
        for node in self._node.states:
            status = node["status"]
            figures = (_count(status["capacity"], resource), _count(status["allocatable"], resource))
            if shown[-1:] != [figures]:
                shown.append(figures)
        return shown

    def uids(self) -> set[str]:
        """Return the UIDs of all pods that were on the node at any time."""
        return {pod["metadata"]["uid"] for pod in self._pods.states}

    def ended(self) -> set[str]:
        """Return the UIDs of the pods that were asked to go, were deleted or did not run at any time."""
        gone = {pod["metadata"]["uid"] for pod in self._pods.deleted}
        return gone | {
            pod["metadata"]["uid"]
            for pod in self._pods.states
            if "deletionTimestamp" in pod["metadata"] or pod["status"]["phase"] != "Running"
        }


def _count(quantities: Object, resource: str) -> int | None:
    return int(quantities[resource]) if resource in quantities else None


class _Followed:
    """The objects that a field selector leaves: those there were, and each state that was stored since."""

    def __init__(self, apiserver: ApiServer, path: str, selector: str) -> None:
        self._apiserver, self._path = apiserver, f"{path}?fieldSelector={quote(selector)}"
        listed = self._list()
        self.states: list[Object] = listed["items"]
        self.deleted: list[Object] = []
        self._since = listed["metadata"]["resourceVersion"]
        self._connection = apiserver.connection()
        self._thread = Thread(target=self._follow)

    def start(self) -> None:
        """Follow from the state that was listed on."""
        self._connection.request("GET", f"{self._path}&watch=1&resourceVersion={self._since}")
        self._thread.start()

    def close(self) -> None:
        """End the watch."""
        if self._connection.sock is not None:
            with contextlib.suppress(OSError):  # the server has ended it
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()

    def catch_up(self) -> None:
        """Wait until each object that is stored now has been followed in its present version."""
        stored = {_version(item) for item in self._list()["items"]}
        eventually(lambda: stored <= {_version(item) for item in self.states})

    def _list(self) -> Object:
        status, answer = self._apiserver.request("GET", self._path)
        assert status == http.HTTPStatus.OK, answer
        return answer

    def _follow(self) -> None:
        with contextlib.suppress(
            OSError, ValueError, http.client.HTTPException
        ):  # closed; `catch_up` fails if that was too early
            answer = self._connection.getresponse()
            while line := answer.readline():
                event = json.loads(line)
                (self.deleted if event["type"] == "DELETED" else self.states).append(event["object"])


def _version(item: Object) -> tuple[str, str]:
    return item["metadata"]["uid"], item["metadata"]["resourceVersion"]
