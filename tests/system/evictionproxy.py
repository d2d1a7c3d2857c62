"""A way to an API server that takes policy/v1 evictions: the server's own, or through a proxy that translates.

devwatch speaks policy/v1, which servers before 1.22 lack. Their policy/v1beta1 Eviction has the same fields, so its name
is all that differs.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from system.apiserver import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from system.apiserver import ApiServer

NEW, OLD = "policy/v1", "policy/v1beta1"

# RFC 9110, 7.6.1: they concern one connection alone; the proxy frames bodies anew.
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "te", "trailer", "upgrade", "host"}


@contextlib.contextmanager
def evicting_url(apiserver: ApiServer) -> Iterator[str]:
    """Give the URL at which the API server takes policy/v1 evictions; it ends with the context."""
    if apiserver.serves(NEW):
        yield apiserver.url
        return
    with EvictionProxy(apiserver) as proxy:
        yield proxy.url


def policy_version(apiserver: ApiServer) -> str:
    """Return the newest version of the policy group that the server has."""
    return NEW if apiserver.serves(NEW) else OLD


class EvictionProxy:
    """A plain HTTP server on loopback that passes everything through and only renames the version of evictions.

    What the API server does not answer, it does not answer either: the connection ends. Watches are passed on as they come.
    """

    def __init__(self, apiserver: ApiServer) -> None:
        """Listen on a free port; requests are answered within the context."""
        self._server = _Server(apiserver)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.url = f"http://{LOOPBACK}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        """Answer requests from now on."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every connection, also those of watches."""
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close() waits for them

    def __init__(self, apiserver: ApiServer) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        address = urlsplit(apiserver.url)
        self._upstream = (str(address.hostname), address.port)
        self._tls = ssl.create_default_context(cafile=str(apiserver.ca_file))
        self._open: set[socket.socket] = set()
        self._lock = Lock()

    def upstream(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(*self._upstream, context=self._tls)

    @contextlib.contextmanager
    def tracked(self, connection: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(connection)

    def hang_up(self) -> None:
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    # Not the method of an SSLSocket, which would take the TLS state from under its reader.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: the second would wait 40 ms for a delayed ACK
    server: _Server

    def handle(self) -> None:
        # Clients are killed, and so is the API server.
        with self.server.tracked(self.connection), contextlib.suppress(OSError, http.client.HTTPException):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is there
        """Write nothing."""

    def _pass_on(self) -> None:
        # Unless the answer comes through whole.
        closing, self.close_connection = self.close_connection, True
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command == "POST" and urlsplit(self.path).path.endswith("/eviction"):
            body = json.dumps({**json.loads(body), "apiVersion": OLD}).encode()
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        with contextlib.closing(self.server.upstream()) as upstream:
            upstream.request(self.command, self.path, body or None, headers)
            with self.server.tracked(upstream.sock), upstream.getresponse() as answer:
                self._answer(answer)
        self.close_connection = closing

    def _answer(self, answer: http.client.HTTPResponse) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while part := answer.read1(65536):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        if answer.length:
            raise http.client.IncompleteRead(b"", answer.length)
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _pass_on  # noqa: N815 - the names that http.server calls
