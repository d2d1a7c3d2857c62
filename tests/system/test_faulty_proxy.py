"""The proxy that fails does what its faults say, and leaves nothing open behind: a test of the daemon must not fail for it."""

from __future__ import annotations

import contextlib
import gc
import socket
import socketserver
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from system.apiserver import LOOPBACK
from system.proxy import DRIP, GARBAGE, HOLE, LOST, NONE, PAGE, RESET, SLOW, TRUNCATED, Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from system.proxy import Fault

ANSWER = bytes(range(256)) * 16


class Server(socketserver.ThreadingTCPServer):
    """Answers each line with the same bytes, and counts them."""

    daemon_threads = False
    lines = 0

    class Handler(socketserver.StreamRequestHandler):
        """One connection."""

        server: Server

        def handle(self) -> None:
            """Answer until the client ends it."""
            with contextlib.suppress(ConnectionError):
                for _ in self.rfile:
                    self.server.lines += 1
                    self.wfile.write(ANSWER)


@pytest.fixture
def server() -> Iterator[Server]:
    """Give a server that runs."""
    with Server((LOOPBACK, 0), Server.Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """Give a proxy in front of it."""
    with Proxy(f"https://{LOOPBACK}:{server.server_address[1]}") as proxy:
        yield proxy


def connect(proxy: Proxy) -> socket.socket:
    """Connect and ask for an answer."""
    connection = socket.create_connection((LOOPBACK, int(proxy.url.rpartition(":")[2])), 10)
    connection.sendall(b"\n")
    return connection


def received(connection: socket.socket, count: int) -> bytes:
    """Return what comes until the end of the connection, or `count` bytes."""
    parts = b""
    while len(parts) < count and (part := connection.recv(count - len(parts))):
        parts += part
    return parts


@pytest.mark.parametrize("fault", [NONE, SLOW, DRIP], ids=lambda fault: fault.name)
def test_what_is_only_slow_comes(proxy: Proxy, server: Server, fault: Fault) -> None:
    """Its beginning, at least: the rest of what drips is not waited for."""
    proxy.fail(fault)
    with connect(proxy) as connection:
        assert received(connection, min(fault.part, len(ANSWER))) == ANSWER[: fault.part]
    assert server.lines == 1


@pytest.mark.parametrize(("fault", "answer"), [(LOST, b""), (TRUNCATED, ANSWER[:600])], ids=["lost", "truncated"])
def test_what_is_cut_off_has_reached_the_server(proxy: Proxy, server: Server, fault: Fault, answer: bytes) -> None:
    """The server has done what it was asked to do, and the client cannot know."""
    proxy.fail(fault)
    with connect(proxy) as connection:
        assert received(connection, len(ANSWER)) == answer
    assert server.lines == 1


def test_a_reset_is_an_error(proxy: Proxy) -> None:
    """Not the end of a stream."""
    proxy.fail(RESET)
    with connect(proxy) as connection, pytest.raises(ConnectionResetError):
        received(connection, len(ANSWER))


@pytest.mark.parametrize("fault", [GARBAGE, PAGE], ids=lambda fault: fault.name)
def test_who_speaks_for_the_server_keeps_the_request_from_it(proxy: Proxy, server: Server, fault: Fault) -> None:
    """Garbage and log-in pages come from something in between."""
    proxy.fail(fault)
    with connect(proxy) as connection:
        assert received(connection, 1 << 16) == fault.speaks
    assert server.lines == 0


def test_a_hole_takes_everything_and_says_nothing(proxy: Proxy, server: Server) -> None:
    """Until the client gives up."""
    proxy.fail(HOLE)
    with connect(proxy) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert received(connection, 1) == b""
    assert server.lines == 0


def test_what_is_open_ends_with_a_change_of_faults(proxy: Proxy) -> None:
    """Also where nothing was wrong with it."""
    with connect(proxy) as connection:
        assert received(connection, len(ANSWER)) == ANSWER
        proxy.fail(HOLE)
        assert received(connection, 1) == b""


def test_no_change_of_faults_leaves_a_connection_open(proxy: Proxy) -> None:
    """Whatever the connections are at: before their first step, on the way to the server, at their end."""
    for _ in range(200):
        with contextlib.ExitStack() as clients:
            for _ in range(3):
                clients.enter_context(connect(proxy)).shutdown(socket.SHUT_WR)
            proxy.fail(NONE)
    gc.collect()  # what is still open would be warned of, and a warning is a failure
