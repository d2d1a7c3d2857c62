"""Metrics, health and the HTTP server, the last on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import selectors
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from devwatch.core.errors import Unavailable
from devwatch.observe.health import Health
from devwatch.observe.metrics import Metrics
from devwatch.observe.server import Response, Server, parse_listen, routes
from support.metrics import samples

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

CONTRACT = {
    "devwatch_devices": ("gauge", "resource"),
    "devwatch_capacity": ("gauge", "resource"),
    "devwatch_held": ("gauge", "resource"),
    "devwatch_uevents": ("counter", "action"),
    "devwatch_reconciles": ("counter", "trigger"),
    "devwatch_patches": ("counter", "outcome"),
    "devwatch_patch_duration_seconds": ("histogram", None),
    "devwatch_detection_to_patch_seconds": ("histogram", None),
    "devwatch_drift_repairs": ("counter", None),
    "devwatch_uncertain_looks": ("counter", None),
    "devwatch_monitor_up": ("gauge", None),
    "devwatch_monitor_overflows": ("counter", None),
    "devwatch_evictions": ("counter", "outcome"),
    "devwatch_kubelet_registered": ("gauge", "resource"),
    "devwatch_allocations": ("counter", "outcome"),
    "devwatch_claims": ("counter", "operation"),
    "devwatch_slice_writes": ("counter", "outcome"),
    "devwatch_config_reloads": ("counter", "outcome"),
    "devwatch_config_in_force": ("gauge", None),
    "devwatch_last_success_timestamp_seconds": ("gauge", None),
    "devwatch_build_info": ("gauge", "version"),
}


def filled() -> Metrics:
    """Return metrics in which every label has a value."""
    metrics = Metrics("0.1.0")
    metrics.set_devices({"a/b": 1})
    metrics.set_capacity({"a/b": 1})
    metrics.set_held({"a/b": 0})
    metrics.set_registered({"a/b": 1})
    metrics.evictions.labels("evicted").inc()
    return metrics


def test_the_metrics_are_those_of_the_contract_and_no_others() -> None:
    """Names, types and labels are public; the `_created` series are not among them."""
    families = list(text_string_to_metric_families(filled().render().decode()))
    found = {
        family.name: (family.type, next((k for s in family.samples for k in s.labels if k != "le"), None))
        for family in families
    }
    assert found == CONTRACT
    assert not [sample.name for family in families for sample in family.samples if sample.name.endswith("_created")]


def test_the_label_values_of_the_contract_are_there_from_the_start() -> None:
    """A series that begins at 1 has no increase for `rate()`."""
    metrics = Metrics("0.1.0")
    assert samples(metrics, "devwatch_reconciles_total") == dict.fromkeys(
        ["uevent", "sweep", "resync", "node", "retry", "config", "start", "grace", "kubelet"], 0
    )
    assert samples(metrics, "devwatch_patches_total") == dict.fromkeys(["changed", "unchanged", "refused", "failed"], 0)
    assert samples(metrics, "devwatch_build_info") == {"0.1.0": 1}


@given(st.text())
def test_a_uevent_of_unknown_action_makes_no_label(action: str) -> None:
    """Any process with CAP_NET_ADMIN can send a uevent with any text."""
    metrics = Metrics("0.1.0")
    labels = set(samples(metrics, "devwatch_uevents_total"))
    metrics.uevent(action)
    metrics.uevent("\x1b[31madd")
    metrics.uevent("add")
    after = samples(metrics, "devwatch_uevents_total")
    assert set(after) == labels
    assert after["add"] == (2 if action == "add" else 1)
    assert sum(after.values()) == 3


def test_a_resource_that_leaves_the_configuration_leaves_the_metrics() -> None:
    """The gauges are what is now, not what was ever seen."""
    metrics = filled()
    metrics.set_devices({"c/d": 2})
    metrics.set_capacity({})
    metrics.set_held({"c/d": 1})
    assert samples(metrics, "devwatch_devices") == {"c/d": 2}
    assert samples(metrics, "devwatch_capacity") == {}
    assert samples(metrics, "devwatch_held") == {"c/d": 1}


def test_histograms_tell_a_millisecond_from_a_minute() -> None:
    """The promise is a patch within a second: the buckets are dense below it and reach to the backoff's length."""
    metrics = Metrics("0.1.0")
    metrics.patch_duration.observe(0.0008)
    metrics.patch_duration.observe(59)
    buckets = {float(le): n for le, n in samples(metrics, "devwatch_patch_duration_seconds_bucket").items()}
    assert buckets[0.001] == 1
    assert buckets[30] == 1
    assert buckets[60] == 2


def test_two_sets_of_metrics_share_nothing() -> None:
    """Neither with each other nor with the registry that libraries write to."""
    one, other = Metrics("0.1.0"), Metrics("0.1.0")
    one.drift_repairs.inc()
    assert samples(other, "devwatch_drift_repairs_total") == {"": 0}
    assert not [metric.name for metric in REGISTRY.collect() if metric.name.startswith("devwatch")]


@pytest.mark.parametrize(("sweep", "limit"), [(1, 30), (10, 30), (60, 180)])
def test_healthz_fails_after_three_sweeps_or_30_s(sweep: float, limit: float) -> None:
    """Whichever is longer; and it says how long."""
    health = Health(sweep=sweep, last_cycle=100)
    assert health.healthz(100 + limit) == (True, "ok")
    assert health.healthz(100 + limit + 1) == (
        False,
        f"the loop has run no cycle for {limit + 1} s (limit {limit} s)",
    )
    health.last_cycle = 100 + limit
    assert health.healthz(100 + limit + 1) == (True, "ok")


def test_readyz_waits_until_the_node_was_seen_to_show_what_is_present() -> None:
    """Before that it may show anything; what is known of the reason is in the line."""
    health = Health(sweep=10, last_cycle=0)
    assert health.readyz(0) == (False, "the Node has not been seen to show what is present")
    health.differs, health.error = "a/b", "no answer"
    assert health.readyz(0) == (False, "the Node has not been seen to show what is present: a/b: no answer")
    health.shown = True
    assert health.readyz(0) == (True, "ok")


def test_readyz_fails_at_once_for_what_no_time_cures() -> None:
    """A Node that is missing and a write that is refused, with the server's words; the first explains the second."""
    health = Health(sweep=10, last_cycle=0, shown=True, refused="a/b refused: no (422)")
    assert health.readyz(0) == (False, "a/b refused: no (422)")
    health.missing = 'nodes "n" not found'
    assert health.readyz(0) == (False, 'the Node is missing: nodes "n" not found')


def test_readyz_names_who_holds_the_node() -> None:
    """The reason that explains the others comes first."""
    health = Health(sweep=10, last_cycle=0, waiting="pid 12, uid 0", uncertain="x")
    assert health.readyz(0) == (False, "another daemon holds the node: pid 12, uid 0")


def test_readyz_fails_while_looks_are_uncertain_and_says_why_in_one_line() -> None:
    """The reason may carry a path or a device's text: it stays one line."""
    health = Health(sweep=10, last_cycle=0, shown=True, uncertain="/sys/class/tty\n\x1b[31m: EMFILE\ud800")
    assert health.readyz(0) == (False, "the scan of the devices is uncertain: /sys/class/tty  [31m: EMFILE ")


def test_readyz_fails_when_the_node_differs_for_60_s() -> None:
    """A patch on its way is no fault; one that never arrives is."""
    health = Health(sweep=10, last_cycle=0, shown=True, differs="a/b", differs_since=0)
    assert health.readyz(59.9) == (True, "ok")
    assert health.readyz(60) == (False, "the Node has not shown what is present for 60 s: a/b")
    health.error = "no answer (503)"
    assert health.readyz(74) == (False, "the Node has not shown what is present for 74 s: a/b: no answer (503)")
    health.differs_since = None
    assert health.readyz(60) == (True, "ok")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("off", None),
        ("127.0.0.1:28796", ("127.0.0.1", 28796)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:28796", ("::1", 28796)),
        ("[fe80::1%eth0]:65535", ("fe80::1%eth0", 65535)),
    ],
)
def test_an_address_to_listen_on_is_read(text: str, address: tuple[str, int] | None) -> None:
    """IPv6 addresses stand in brackets, as in a URL."""
    assert parse_listen(text) == address


@pytest.mark.parametrize(
    "text", ["", "28796", ":28796", "::1:28796", "[::1]", "a:b", "a:65536", "a:-1", "a:1 ", "a b:1", "a:٣"]
)
def test_what_is_no_address_is_refused_with_what_is_allowed(text: str) -> None:
    """The message can be shown to the user as it is."""
    with pytest.raises(ValueError, match=re.escape(f"{text!r} is not an address to listen on (HOST:PORT")):
        parse_listen(text)


HELLO = b"GET /hello HTTP/1.1\r\n\r\n"
ROUTES = {"/hello": lambda: Response(body=b"hello\n"), "/big": lambda: Response(body=b"x" * 8_000_000)}


class _Waits(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(timeout)
        if not ready:
            self.now += timeout or 0
        return ready


class StillLoop(asyncio.SelectorEventLoop):
    """A loop on real sockets whose clock stands still while they are busy: all that they do happens in one moment."""

    def __init__(self) -> None:
        """Begin at 0 s."""
        self._waits = _Waits()
        super().__init__(self._waits)

    def time(self) -> float:
        """Seconds that were waited in vain, or let pass."""
        return self._waits.now

    def let_pass(self, seconds: float) -> None:
        """Move the clock."""
        self._waits.now += seconds


class Site:
    """A running server and the ways to talk to it."""

    def __init__(self, server: Server, address: tuple[str, int]) -> None:
        """Talk to `server` at `address`."""
        self.server = server
        self.address = address

    @property
    def loop(self) -> StillLoop:
        """The loop, of a test that moves the clock."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, StillLoop)
        return loop

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection."""
        return await asyncio.open_connection(*self.address)

    async def say(self, data: bytes) -> bytes:
        """Send `data` and return all that comes until the server closes."""
        reader, writer = await self.connect()
        writer.write(data)
        answer = await reader.read()
        writer.close()
        return answer


@contextlib.asynccontextmanager
async def site(patience: float = 60) -> AsyncIterator[Site]:
    """Run a server on a free port."""
    server = Server(ROUTES, patience=patience)
    address = await server.start("127.0.0.1", 0)
    try:
        yield Site(server, address)
    finally:
        await server.close()


def talk(
    scenario: Callable[[Site], Awaitable[None]],
    patience: float = 60,
    loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> None:
    """Run `scenario` against a server that must fail at nothing, before its default patience here ends."""
    reported: list[object] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        async with asyncio.timeout(30), site(patience) as running:
            await scenario(running)
        gc.collect()  # a task's exception is reported when the task is collected

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())
    assert reported == []


def ask(data: bytes, patience: float = 60) -> bytes:
    """Return the answer to `data`."""
    answers: list[bytes] = []

    async def scenario(site: Site) -> None:
        answers.append(await site.say(data))

    talk(scenario, patience)
    return answers[0]


def test_get_answers_with_the_body_and_closes() -> None:
    """The whole message: length, type and `Connection: close`."""
    assert ask(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n") == (
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 6\r\n\r\nhello\n"
    )


def test_head_answers_as_get_without_the_body() -> None:
    """Content-Length is that of GET (RFC 9110, 9.3.2)."""
    whole = ask(HELLO)
    assert ask(b"HEAD /hello HTTP/1.1\r\n\r\n") == whole.removesuffix(b"hello\n")
    assert ask(b"HEAD /other HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /hello?x=/y HTTP/1.0\r\n\r\n",
        b"GET /hello HTTP/1.1\n\n",
        b"GET http://localhost:1/hello HTTP/1.1\r\nHost: localhost:1\r\n\r\n",
    ],
    ids=["query", "bare line feeds", "absolute form"],
)
def test_every_form_of_a_request_is_understood(request_: bytes) -> None:
    """As RFC 9112 wants of a server (2.2, 3.2)."""
    assert ask(request_).startswith(b"HTTP/1.1 200 OK\r\n")


def test_another_path_is_not_found() -> None:
    """404, not an error of ours."""
    assert ask(b"GET /secrets HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404 Not Found\r\n")


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"get"])
def test_another_method_is_refused_with_those_allowed(method: bytes) -> None:
    """Nothing can be changed through this port."""
    answer = ask(method + b" /hello HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello")
    assert answer.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
    assert b"\r\nAllow: GET, HEAD\r\n" in answer


@pytest.mark.parametrize(
    "garbage",
    [
        b"\r\n",
        b"hello\r\n",
        b"\x16\x03\x01\x02\x00\n",
        b"GET /hello\r\n\r\n",
        b"GET  /hello HTTP/1.1\r\n\r\n",
        b"GET /h\xc3\xa9llo HTTP/1.1\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nno field\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\n",
    ],
)
def test_garbage_is_a_bad_request_at_once(garbage: bytes) -> None:
    """Not a traceback, and not a client left waiting."""
    assert ask(garbage).startswith(b"HTTP/1.1 400 Bad Request\r\n")


@given(st.binary(max_size=200))
def test_any_bytes_get_an_answer(data: bytes) -> None:
    """Whatever comes, then the end of it: one whole response."""

    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(data)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        assert re.match(rb"HTTP/1\.1 [2-5]\d\d [ \w]+\r\n", answer)

    talk(scenario)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n",
        b"GET /hello HTTP/1.1\r\n" + b"X: y\r\n" * 2000 + b"\r\n",
        b"x" * 100_000,
    ],
    ids=["long line", "many fields", "no line at all"],
)
def test_a_head_of_more_than_8_kib_is_refused(request_: bytes) -> None:
    """And the client can read so, although it has sent more than was taken."""
    assert ask(request_).startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")


def test_a_client_that_is_still_sending_is_not_reset() -> None:
    """A reset could take the answer away before the client has read it (RFC 9112, 9.6)."""

    async def scenario(site: Site) -> None:
        loop, client = asyncio.get_running_loop(), await silent(site)
        await loop.sock_sendall(client, b"garbage\r\n")
        while await loop.sock_recv(client, 4096):
            pass
        for _ in range(10):
            await loop.sock_sendall(client, b"more")
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        client.close()

    talk(scenario)


def test_a_head_of_8_kib_is_taken() -> None:
    """The limit is what it says."""
    head = b"GET /hello HTTP/1.1\r\nX: "
    assert ask(head + b"y" * (8192 - len(head) - 2) + b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_client_that_does_not_finish_its_request_is_closed() -> None:
    """It has `patience` seconds for the whole request, however it spreads them."""
    assert ask(b"GET /hello HTTP/1.1\r\nX:", patience=0.01).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert ask(b"", patience=0.01).startswith(b"HTTP/1.1 408 Request Timeout\r\n")


def test_a_client_that_never_reads_cannot_hold_a_connection() -> None:
    """It has `patience` seconds to take the answer; then the connection is cut, and others are served meanwhile."""

    async def scenario(site: Site) -> None:
        loop = asyncio.get_running_loop()
        lazy = [await silent(site) for _ in range(16)]
        for client in lazy:
            await loop.sock_sendall(client, b"GET /big HTTP/1.1\r\n\r\n")
        async with crowd(site, 48):
            site.loop.let_pass(1)
            assert (await site.say(HELLO)).endswith(b"hello\n")
        site.loop.let_pass(10)
        for client in lazy:
            assert await taken(client) < len(ROUTES["/big"]().body)
        for client in lazy:
            client.close()

    talk(scenario, patience=10, loop=StillLoop)


async def taken(client: socket.socket) -> int:
    """Take all that comes until the connection ends, and return how much that was."""
    size, loop = 0, asyncio.get_running_loop()
    with contextlib.suppress(ConnectionResetError):
        while data := await loop.sock_recv(client, 65536):
            size += len(data)
    return size


async def flood(client: socket.socket) -> None:
    """Send without an end."""
    while True:
        await asyncio.get_running_loop().sock_sendall(client, b"x" * 1024)
        await asyncio.sleep(0)


def test_a_client_that_goes_on_sending_is_cut() -> None:
    """It has its answer, and 64 KiB more are ignored; nobody waits for the end of more than that."""

    async def scenario(site: Site) -> None:
        loop, client = asyncio.get_running_loop(), await silent(site)
        await loop.sock_sendall(client, HELLO)
        assert await taken(client) > 0
        with pytest.raises(ConnectionError):
            await flood(client)
        client.close()

    talk(scenario)


async def silent(site: Site) -> socket.socket:
    """Connect and leave it at that."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(0)
    await asyncio.get_running_loop().sock_connect(client, site.address)
    return client


@contextlib.asynccontextmanager
async def crowd(site: Site, number: int) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """Open so many connections that say nothing."""
    clients = [await site.connect() for _ in range(number)]
    try:
        yield clients
    finally:
        for _, writer in clients:
            writer.close()


async def assert_served(clients: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
    """Have each of them ask now, and be answered."""
    for reader, writer in clients:
        writer.write(HELLO)
        assert (await reader.read()).endswith(b"hello\n")


async def assert_dropped(reader: asyncio.StreamReader) -> None:
    """See the connection end without an answer."""
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""


def test_whoever_keeps_all_connections_open_keeps_no_probe_away() -> None:
    """64 idle clients cost no more than 64 connections; a moment later the next one takes the place of the oldest."""

    async def scenario(site: Site) -> None:
        async with crowd(site, 64) as idle:
            site.loop.let_pass(0.2)
            assert (await site.say(HELLO)).endswith(b"hello\n")
            await assert_dropped(idle[0][0])
            await assert_served(idle[1:])

    talk(scenario, loop=StillLoop)


def test_a_burst_drives_out_nobody_who_only_just_came() -> None:
    """Of more than 64 clients in one moment the last ones go: whoever was accepted has 0.1 s for a request."""

    async def scenario(site: Site) -> None:
        async with crowd(site, 64) as first, crowd(site, 10) as late:
            for reader, _ in late:
                await assert_dropped(reader)
            await assert_served(first)

    talk(scenario, loop=StillLoop)


def test_a_whole_request_is_answered_though_60_others_connect_in_the_same_moment() -> None:
    """A probe does not depend on who else is there: it waits for its answer before the server has seen any of them."""

    async def scenario(site: Site) -> None:
        with contextlib.ExitStack() as stack:
            probe = stack.enter_context(socket.create_connection(site.address))
            probe.sendall(HELLO)
            for _ in range(60):
                other = stack.enter_context(socket.socket())
                other.settimeout(0)
                other.connect_ex(site.address)
            probe.settimeout(0)
            assert (await asyncio.get_running_loop().sock_recv(probe, 4096)).startswith(b"HTTP/1.1 200 OK\r\n")

    talk(scenario, loop=StillLoop)


def test_clients_that_do_not_stay_keep_no_probe_away() -> None:
    """A scanner that connects and hangs up, again and again: each gives its place up before the next ones need it."""

    async def scenario(site: Site) -> None:
        async with crowd(site, 16):
            for _ in range(60):
                socket.create_connection(site.address).close()
            assert (await site.say(HELLO)).endswith(b"hello\n")

    talk(scenario, loop=StillLoop)


def test_close_drops_clients_and_frees_the_port() -> None:
    """Shutdown waits for nobody: idle, unread and brand-new connections are cut."""

    async def scenario(site: Site) -> None:
        reader, idle = await site.connect()
        unread = await silent(site)
        await asyncio.get_running_loop().sock_sendall(unread, b"GET /big HTTP/1.1\r\n\r\n")
        await asyncio.get_running_loop().sock_recv(unread, 1)
        new = await silent(site)
        await site.server.close()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        idle.close()
        unread.close()
        new.close()
        again = Server(ROUTES)
        assert await again.start(*site.address) == site.address
        await again.close()
        await again.close()

    talk(scenario)


def test_a_port_that_is_taken_is_one_clear_line() -> None:
    """The user learns which address, why, and which option changes it."""

    async def scenario(site: Site) -> None:
        host, port = site.address
        message = f"cannot listen on port {port} of 127.0.0.1: address already in use (see --listen)"
        with pytest.raises(Unavailable, match=f"^{re.escape(message)}$"):
            await Server(ROUTES).start(host, port)

    talk(scenario)


def test_a_host_that_does_not_exist_is_one_clear_line() -> None:
    """An address of no interface here, as a name that does not resolve, is no traceback."""

    async def scenario(_: Site) -> None:
        with pytest.raises(
            Unavailable,
            match=r"^cannot listen on port 0 of 192\.0\.2\.1: (cannot assign|could not bind) .*\(see --listen\)$",
        ):
            await Server(ROUTES).start("192.0.2.1", 0)

    talk(scenario)


class Resolving(asyncio.SelectorEventLoop):
    """A loop on a host whose name leads to an address that no interface has, and to 127.0.0.1."""

    async def getaddrinfo(  # type: ignore[override]  # the parts that a server asks for
        self, host: object, port: object, *, family: int = 0, **_: object
    ) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
        """Resolve any name."""
        assert isinstance(host, str)
        found = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]
        return [each for each in found if family in {0, each[0]}]


def test_a_host_without_ipv6_listens_on_what_it_has() -> None:
    """IPv6 is switched off by sysctl, and /etc/hosts says that localhost is ::1 too."""

    async def scenario() -> None:
        server = Server(ROUTES)
        host, port = await server.start("localhost", 0)
        running = Site(server, (host, port))
        assert host == "127.0.0.1"
        assert (await running.say(HELLO)).endswith(b"hello\n")
        await server.close()

    with asyncio.Runner(loop_factory=Resolving) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("host", ["a..b", ".", "x" * 70, "\N{SNOWMAN}" * 70])
def test_what_cannot_be_the_name_of_a_host_is_one_clear_line(host: str) -> None:
    """A slip of the pen is no traceback, although Python refuses it before the system is asked."""

    async def scenario(_: Site) -> None:
        message = f"cannot listen on port 0 of {host}: not the name of a host (see --listen)"
        with pytest.raises(Unavailable, match=f"^{re.escape(message)}$"):
            await Server(ROUTES).start(host, 0)

    talk(scenario)


def test_a_failing_route_is_reported_and_closes_the_connection() -> None:
    """Our own fault goes to the loop's exception handler; the client is not left waiting, the next one is served."""
    reported: list[object] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context.get("exception")))
        server = Server({**ROUTES, "/fail": lambda: Response(body=b"%d" % len(reported) + bytes([-1]))})
        running = Site(server, await server.start("127.0.0.1", 0))
        assert await running.say(b"GET /fail HTTP/1.1\r\n\r\n") == b""
        assert (await running.say(HELLO)).endswith(b"hello\n")
        await server.close()

    asyncio.run(run())
    assert [type(error) for error in reported] == [ValueError]


def test_the_daemon_s_routes_answer_what_metrics_and_health_say() -> None:
    """Status, type and body of the three paths of the contract."""
    health = Health(sweep=10, last_cycle=0)
    table = routes(filled(), health, lambda: 31.0)
    metrics, healthz, readyz = (table[path]() for path in ("/metrics", "/healthz", "/readyz"))
    assert metrics.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert b'devwatch_devices{resource="a/b"} 1.0\n' in metrics.body
    assert (healthz.status, healthz.body) == (503, b"the loop has run no cycle for 31 s (limit 30 s)\n")
    assert (readyz.status, readyz.body) == (503, b"the Node has not been seen to show what is present\n")
    health.shown, health.last_cycle = True, 31.0
    assert [(table[path]().status, table[path]().body) for path in ("/healthz", "/readyz")] == [(200, b"ok\n")] * 2
