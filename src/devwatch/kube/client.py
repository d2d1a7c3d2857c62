"""A connection to the API server, with a timeout for each request."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from devwatch.core.errors import ApiError, CredentialsError, Forbidden, Retry
from devwatch.kube.responses import (
    check_response,
    origin_of,
    parse_date,
    parse_event,
    read_body,
    reason_of,
    redact_token,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    import aiohttp

    from devwatch.kube.credentials import Credentials
    from devwatch.kube.library import ApiClient

    Query = Sequence[tuple[str, str]]


REQUEST_TIMEOUT = 10.0
"""Seconds for one request, from connecting to the last byte of the response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A request, as it is sent and, where necessary, repeated."""

    method: str
    path: str
    query: Query = ()
    body: object = None
    content_type: str = "application/json"
    sent_to: list[str] = field(default_factory=list)
    """The servers it was sent to, for messages: other requests may have dropped the connection since."""


class Connection:
    """A connection to the API server that reads its credentials again when the server refuses them.

    Requests may run side by side (a watch beside a PATCH) and share one client. When one of them drops the client, because its
    credentials were refused or the connection failed, the others finish on it, and the last one closes it (`_in_use`).
    """

    def __init__(self, credentials: Credentials, *, version: str, timeout: float = REQUEST_TIMEOUT) -> None:
        """Prepare; the first request connects."""
        self._credentials = credentials
        self._agent = f"devwatch/{version}"
        self._timeout = timeout
        self._client: ApiClient | None = None
        self._in_use: Counter[ApiClient] = Counter()
        self.date = ""
        """The API server's time in its last response (RFC 3339, seconds), empty before the first."""

    @property
    def origin(self) -> str:
        """The URL of the server without credentials, empty before the first request."""
        return origin_of(self._client) if self._client else ""

    async def request(
        self, method: str, path: str, *, query: Query = (), body: object = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """Send a request and return the object of the response.

        Raises an `ApiError`, whose kind tells the caller what to do: repeat the request, have a permission granted, wait for the
        object, or send another content.
        """
        call = _Call(method=method, path=path, query=query, body=body, content_type=content_type)
        try:
            async with asyncio.timeout(self._timeout):
                return await self._authorized(call)
        except TimeoutError as error:
            await self.close()
            raise self._timeout_error(call) from error

    async def _authorized(self, call: _Call) -> dict[str, Any]:
        """Send a request. If the server refuses credentials that an earlier request has read, read them again and repeat it once."""
        fresh = self._client is None
        try:
            return await self._send(call)
        except Forbidden:
            await self.close()  # the kubeconfig may name another user by the next request
            raise
        except CredentialsError:
            await self.close()
            if fresh:
                raise
        return await self._send(call)

    def _timeout_error(self, call: _Call) -> Retry:
        if not call.sent_to:
            return CredentialsError(f"cannot use {self._credentials.name}: it took more than {self._timeout:g} s")
        return Retry(f"the API server {call.sent_to[-1]} did not answer within {self._timeout:g} s")

    async def _send(self, call: _Call) -> dict[str, Any]:
        client = await self._connected()
        origin = origin_of(client)
        call.sent_to.append(origin)
        async with self._response(client, call, self._timeout) as response:
            content = check_response(client, response, await read_body(response, origin))
            self.date = parse_date(response.headers.get("Date", ""))
            return content

    async def stream(self, path: str, *, query: Query, idle: float) -> AsyncGenerator[dict[str, Any]]:
        """Yield the objects of a watch until the server ends it. Raises as `request` does, and `Retry` after `idle` seconds of silence."""
        call = _Call(method="GET", path=path, query=query)
        client = await self._connected_in_time(call)
        async with self._response(client, call, (self._timeout, idle)) as response:
            if response.status != HTTPStatus.OK:
                check_response(client, response, await read_body(response, origin_of(client)))
            while line := await response.content.readline():
                yield parse_event(client, line)

    @asynccontextmanager
    async def _response(
        self,
        client: ApiClient,
        call: _Call,
        timeout: float | tuple[float, float],  # noqa: ASYNC109 - aiohttp's timeout, not that of a scope
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a call and yield its response, which is closed at the end: an unread response must not keep its connection.

        The errors, in this order: ours and cancellations pass. A timeout during a watch means that the server has gone silent; any
        other is handled by the caller, which knows the request. Everything else is a failure of the connection: aiohttp, ssl and the
        token files raise many types, and all mean that there was no response. Then the client is dropped, and the next request
        connects again.
        """
        self._in_use[client] += 1
        try:
            response = await client.call_api(
                call.path,
                call.method,
                query_params=list(call.query),
                header_params={"Accept": "application/json", "Content-Type": call.content_type},
                body=call.body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=timeout,  # type: ignore[arg-type]  # a pair of numbers is documented, one is annotated
            )
            async with response:
                yield response
        except (ApiError, asyncio.CancelledError, GeneratorExit):
            raise
        except TimeoutError as error:
            if isinstance(timeout, tuple):
                raise Retry(f"the watch of {origin_of(client)} went silent") from error
            raise
        except Exception as error:
            self._client = None if self._client is client else self._client
            reason = reason_of(error, hide=lambda text: redact_token(client, text))
            raise Retry(f"no answer from the API server {origin_of(client)}: {reason}") from error
        finally:
            self._in_use[client] -= 1
            await self._drop_unused(client)

    async def _drop_unused(self, client: ApiClient) -> None:
        """Close a dropped client when its last request has ended, so that one refused request does not end the others."""
        if client is not self._client and not self._in_use[client]:
            del self._in_use[client]
            await client.close()

    async def _connected(self) -> ApiClient:
        while self._client is None:
            client = await self._credentials.connect()
            client.user_agent = self._agent
            # Another request may have connected meanwhile: then its client is used, and this one closed. It may be dropped until then.
            if self._share(client) is not client:
                await client.close()
        return self._client

    async def _connected_in_time(self, call: _Call) -> ApiClient:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._connected()
        except TimeoutError as error:
            raise self._timeout_error(call) from error

    def _share(self, client: ApiClient) -> ApiClient:
        """Make this the client of all requests unless there is one already; return the one there is."""
        self._client = self._client or client
        return self._client

    async def close(self) -> None:
        """Drop the connection and the credentials; the next request reads them again."""
        client, self._client = self._client, None
        if client is not None:
            await self._drop_unused(client)
