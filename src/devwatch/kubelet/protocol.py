"""HTTP/2 connections that no peer can bring into a state that grpclib does not handle."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, cast

from grpclib.client import Channel
from grpclib.protocol import H2Protocol
from grpclib.server import Server

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection

    from grpclib._typing import IServable


class _Connection(H2Protocol):
    """A connection that ends at what it cannot process, and on request at once."""

    _transport: asyncio.Transport | None = None
    _ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless `end` came first."""
        super().connection_made(transport)
        self._transport = cast("asyncio.Transport", transport)  # that of a stream is one
        if self._ended:
            self.end()

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

    def __init__(self, handlers: Collection[IServable]) -> None:
        """Serve these methods."""
        super().__init__(handlers)
        self._connections = weakref.WeakSet[_Connection]()

    def _protocol_factory(self) -> H2Protocol:
        made = super()._protocol_factory()
        connection = _Connection(made.handler, made.config, made.h2_config)
        self._connections.add(connection)
        return connection

    def close(self) -> None:
        """Stop listening, and end every connection."""
        super().close()
        for connection in self._connections:
            connection.end()
