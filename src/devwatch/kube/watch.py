"""Watch a collection of the API server: a list, then one event for each change."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from devwatch.kube.responses import listed_items, watched_object

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

WATCH_TIMEOUT = 3600
"""Seconds after which the server is asked to end a watch; the next one continues from its last version, without a list."""
WATCH_SILENCE = 240.0
"""Seconds without an event after which a watch is given up: the server sends a bookmark about once a minute (`bookmarkFrequency`)."""
LISTED = "LISTED"
"""The type of the first item of a watch that begins with a list; the others are those of the API (metav1.WatchEvent)."""


class Server(Protocol):
    """A connection to the API server."""

    @property
    def origin(self) -> str:
        """The URL of the server without credentials."""

    async def request(
        self, method: str, path: str, *, query: Sequence[tuple[str, str]] = (), body: object = None
    ) -> dict[str, Any]:
        """Send a request and return the object of the answer. Raises an `ApiError`."""

    def stream(self, path: str, *, query: Sequence[tuple[str, str]], idle: float) -> AsyncGenerator[dict[str, Any]]:
        """Yield the objects of a watch until the server ends it. Raises an `ApiError`, `Retry` after `idle` seconds of silence."""


@dataclass(slots=True, kw_only=True)
class ObjectWatch:
    """The objects of a collection that a field selector selects."""

    server: Server
    path: str
    selector: str
    _ended_at: str = field(default="", init=False)
    """The resourceVersion at which the server ended the last watch, empty where it failed."""

    async def events(self) -> AsyncGenerator[tuple[str, list[dict[str, Any]]]]:
        """Yield the objects after `LISTED`, then each event with its object, until the server ends the watch after `WATCH_TIMEOUT`.

        A watch begins with a list, unless the server ended the one before it: then it continues from the version of its last event or
        bookmark. Raises an `ApiError`, `Gone` where the server no longer has that version.
        """
        selector = ("fieldSelector", self.selector)
        version, self._ended_at = self._ended_at, ""
        if not version:
            listing = await self.server.request("GET", self.path, query=(selector,))
            items, version = listed_items(listing, self.server.origin)
            yield LISTED, items
        options = (("watch", "1"), ("allowWatchBookmarks", "1"), ("timeoutSeconds", str(WATCH_TIMEOUT)))
        query = (selector, *options, ("resourceVersion", version))
        async with aclosing(self.server.stream(self.path, query=query, idle=WATCH_SILENCE)) as events:
            async for event in events:
                item = watched_object(event)
                version = version_of(item) or version
                if event["type"] in {"ADDED", "MODIFIED", "DELETED"}:
                    yield event["type"], [item]
        self._ended_at = version


def version_of(item: Mapping[str, Any]) -> str:
    """Return the resourceVersion of an object, empty where it has none."""
    metadata = item.get("metadata")
    return str(metadata.get("resourceVersion") or "") if isinstance(metadata, dict) else ""
