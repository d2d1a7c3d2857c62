"""One connection to the API server: a request at a time, with a limit for each."""

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
    from collections.abc import AsyncIterator, Sequence

    import aiohttp

    from devwatch.kube.credentials import Credentials
    from devwatch.kube.library import ApiClient

    Query = Sequence[tuple[str, str]]


REQUEST_TIMEOUT = 10.0
"""Seconds for one request, from the connection to the last byte of the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A request as it is sent, and sent again."""

    method: str
    path: str
    query: Query = ()
    body: object = None
    content_type: str = "application/json"
    sent_to: list[str] = field(default_factory=list)
    """The servers that it was sent to: other requests may have dropped the connection since."""


class Connection:
    """A connection to the API server that reads its credentials anew whenever they are of no use any more."""

    def __init__(self, credentials: Credentials, *, version: str, timeout: float = REQUEST_TIMEOUT) -> None:
        """Connect to nothing yet."""
        self._credentials = credentials
        self._agent = f"devwatch/{version}"
        self._timeout = timeout
        self._client: ApiClient | None = None
        self._in_use: Counter[ApiClient] = Counter()
        self.date = ""
        """The API server's time in its last answer (RFC 3339, seconds), empty before one."""

    @property
    def origin(self) -> str:
        """Where the server is, without credentials; empty before the first request."""
        return origin_of(self._client) if self._client else ""

    async def request(
        self, method: str, path: str, *, query: Query = (), body: object = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """Send a request and return the object of the answer.

        Raises an `ApiError`: of its kinds, the caller has to repeat, to ask for a right, to wait for the object, or to send
        another content.
        """
        call = _Call(method=method, path=path, query=query, body=body, content_type=content_type)
        try:
            async with asyncio.timeout(self._timeout):
                return await self._authorized(call)
        except TimeoutError as error:
            await self.close()
            raise self._late(call) from error

    async def _authorized(self, call: _Call) -> dict[str, Any]:
        """Send it, and once more with credentials read anew when the server knows the held ones no longer."""
        fresh = self._client is None
        try:
            return await self._send(call)
        except Forbidden:
            await self.close()  # the file may name another user the next time
            raise
        except CredentialsError:
            await self.close()
            if fresh:
                raise
        return await self._send(call)

    def _late(self, call: _Call) -> Retry:
        if not call.sent_to:
            return CredentialsError(f"cannot use {self._credentials.name}: it took more than {self._timeout:g} s")
        return Retry(f"the API server {call.sent_to[-1]} did not answer within {self._timeout:g} s")

    async def _send(self, call: _Call) -> dict[str, Any]:
        client = await self._connected()
        origin = origin_of(client)
        call.sent_to.append(origin)
        async with self._answer(client, call, self._timeout) as response:
            content = check_response(client, response, await read_body(response, origin))
            self.date = parse_date(response.headers.get("Date", ""))
            return content

    async def stream(self, path: str, *, query: Query, idle: float) -> AsyncIterator[dict[str, Any]]:
        """Yield the objects of a watch until the server ends it, or sends nothing for `idle` seconds. Raises as `request` does."""
        call = _Call(method="GET", path=path, query=query)
        client = await self._connected_in_time(call)
        async with self._answer(client, call, (self._timeout, idle)) as response:
            if response.status != HTTPStatus.OK:
                check_response(client, response, await read_body(response, origin_of(client)))
            while line := await response.content.readline():
                yield parse_event(client, line)

    @asynccontextmanager
    async def _answer(
        self,
        client: ApiClient,
        call: _Call,
        timeout: float | tuple[float, float],  # noqa: ASYNC109 - aiohttp's, not a scope's
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a call and give its answer, which is dropped in the end: what nobody reads must not keep its connection."""
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
        except (
            Exception
        ) as error:  # aiohttp, ssl and the token files raise many kinds; all mean that there is no answer
            self._client = None if self._client is client else self._client
            reason = reason_of(error, hide=lambda text: redact_token(client, text))
            raise Retry(f"no answer from the API server {origin_of(client)}: {reason}") from error
        finally:
            self._in_use[client] -= 1
            await self._drop_unused(client)

    async def _drop_unused(self, client: ApiClient) -> None:
        """Close a client that is no longer ours when its last request has ended: a refused one must not end the others."""
        if client is not self._client and not self._in_use[client]:
            del self._in_use[client]
            await client.close()

    async def _connected(self) -> ApiClient:
        if self._client is not None:
            return self._client
        client = await self._credentials.connect()
        client.user_agent = self._agent
        if (held := self._adopt(client)) is not client:
            await client.close()
        return held

    async def _connected_in_time(self, call: _Call) -> ApiClient:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._connected()
        except TimeoutError as error:
            raise self._late(call) from error

    def _adopt(self, client: ApiClient) -> ApiClient:
        """Hold a new client and return it, or the one of another request that was faster."""
        self._client = self._client or client
        return self._client

    async def close(self) -> None:
        """Drop the connection and the credentials; the next request reads them again."""
        client, self._client = self._client, None
        if client is not None:
            await self._drop_unused(client)
