"""HTTP/2 connections that no peer can bring into a state that grpclib does not handle."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, TypeVar, cast

from google.protobuf.message import DecodeError
from grpclib.client import Channel
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.protocol import H2Protocol
from grpclib.server import Server

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection

    from grpclib._typing import IServable
    from grpclib.server import Stream

_Request = TypeVar("_Request")
_MAX_MESSAGE = 500
"""Characters of a message that are shown, as of one of the API server (`kube.responses`)."""


def one_line(text: str) -> str:
    """Return the message of a peer on one line, cut to `_MAX_MESSAGE` characters; empty where it has no words."""
    return " ".join(text.split())[:_MAX_MESSAGE]


async def receive(stream: Stream[_Request, Any]) -> _Request | None:
    """Return the request, None for a call without one. Raises `GRPCError` for one that is cut short, compressed or not a message."""
    try:
        return await stream.recv_message()
    except (AssertionError, DecodeError, NotImplementedError) as error:
        raise GRPCError(Status.INVALID_ARGUMENT, f"unexpected request: {error}") from error


class _Connection(H2Protocol):
    """A connection that ends at what it cannot process, and on request at once."""

    _transport: asyncio.Transport | None = None
    _ended = False
    is_open = False
    changed: Callable[[], None] | None = None
    """Called when the connection is made and when it is lost."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless `end` came first."""
        super().connection_made(transport)
        self._transport = cast("asyncio.Transport", transport)  # that of a stream is one
        self._set_open(is_open=True)
        if self._ended:
            self.end()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End what runs on the connection."""
        super().connection_lost(exc)
        self._set_open(is_open=False)

    def _set_open(self, *, is_open: bool) -> None:
        self.is_open = is_open
        if self.changed is not None:
            self.changed()

    def data_received(self, data: bytes) -> None:
        """Process what the peer has sent. grpclib knows only the frames that it needs, and reads headers as ASCII."""
        try:
            super().data_received(data)
        except Exception as error:  # noqa: BLE001 - whatever a peer sends must end its connection and nothing else
            self.processor.close(f"{type(error).__name__}: {error}")

    def end(self) -> None:
        """Close the connection without waiting for the peer to read what is left."""
        self._ended = True
        if self._transport is not None:
            self._transport.abort()


class KubeletChannel(Channel):
    """A channel whose connection ends at what it cannot process."""

    def _protocol_factory(self) -> H2Protocol:
        made = super()._protocol_factory()
        return _Connection(made.handler, made.config, made.h2_config)


class KubeletServer(Server):
    """A server that ends its connections when it is closed. grpclib leaves them open, so the kubelet would not learn of the end."""

    __gc_interval__ = 1
    """Connections until those that have ended are forgotten; grpclib keeps up to ten."""

    def __init__(self, handlers: Collection[IServable], *, changed: Callable[[], None] | None = None) -> None:
        """Serve these methods; `changed` is called whenever a connection is made or lost."""
        super().__init__(handlers)
        self._connections = weakref.WeakSet[_Connection]()
        self._changed = changed

    @property
    def connected(self) -> bool:
        """Whether a client is connected."""
        return any(connection.is_open for connection in self._connections)

    def _protocol_factory(self) -> H2Protocol:
        made = super()._protocol_factory()
        made.handler.__gc_interval__ = 1  # type: ignore[attr-defined]  # the same for calls: a server's handler has it
        connection = _Connection(made.handler, made.config, made.h2_config)
        connection.changed = self._changed
        self._connections.add(connection)
        return connection

    def close(self) -> None:
        """Stop listening, and end every connection."""
        super().close()
        for connection in self._connections:
            connection.end()
