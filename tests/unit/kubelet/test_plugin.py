"""The device plugin that the kubelet calls, over a real unix socket: lists, streams, allocations, and clients that are no kubelet."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from hpack import Encoder
from hyperframe.frame import AltSvcFrame, DataFrame, HeadersFrame, RstStreamFrame, SettingsFrame

from devwatch.core.errors import KubeletError
from devwatch.core.handover import Allocation, Offer
from devwatch.kubelet import kubelet_pb2 as pb
from devwatch.kubelet.plugin import PluginServer
from support.grpckubelet import PluginClient
from support.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

A, B = Offer(healthy=frozenset({"a"})), Offer(healthy=frozenset({"b"}), unhealthy=frozenset({"a"}))


@dataclass(slots=True, kw_only=True)
class Stick:
    """A resource that knows the IDs `a` to `c`, and records what the server says."""

    events: list[object] = field(default_factory=list)

    def allocate(self, ids: Sequence[str]) -> Allocation:
        """Return a path for each device."""
        for name in ids:
            if name not in "abc":
                raise KeyError(name)
        return Allocation(paths={f"/dev/{name}": f"link-{name}" for name in ids}, variables={"IDS": ",".join(ids)})

    def opened(self) -> None:
        """Record it."""
        self.events.append("opened")

    def sent(self, offer: Offer) -> None:
        """Record it."""
        self.events.append(offer)

    def closed(self) -> None:
        """Record it."""
        self.events.append("closed")


@dataclass(slots=True, kw_only=True)
class Site:
    """A server that listens, and its clients."""

    server: PluginServer
    stick: Stick
    path: Path
    clients: list[PluginClient] = field(default_factory=list)

    def client(self) -> PluginClient:
        """Return a new client."""
        self.clients.append(PluginClient(self.path))
        return self.clients[-1]

    async def watching(self) -> PluginClient:
        """Return a client that has opened the stream."""
        before, client = len(self.stick.events), self.client()
        client.watch()
        await until(lambda: len(self.stick.events) > before)
        return client


@contextlib.asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Site]:
    """Have a server that listens."""
    stick, path = Stick(), folder / "plugin.sock"
    site = Site(server=PluginServer(path, stick, folder / "links"), stick=stick, path=path)
    await site.server.start()
    try:
        yield site
    finally:
        await site.server.close()
        for client in site.clients:
            client.close()


async def until(check: Callable[[], bool]) -> None:
    """Wait for what both ends need no more than the loop for."""
    async with asyncio.timeout(1):
        while not check():  # noqa: ASYNC110 - the time is virtual
            await asyncio.sleep(0.001)


# -- lists


@quiet
async def test_each_list_is_sent_whole_and_once(tmp_path: Path) -> None:
    """From the first one on; what did not change is not sent again."""
    async with serving(tmp_path) as site:
        site.server.offer(A)
        client = await site.watching()
        await until(lambda: len(client.lists) == 1)
        site.server.offer(Offer(healthy=frozenset({"a"})))
        await asyncio.sleep(1)
        site.server.offer(B)
        await until(lambda: len(client.lists) == 2)
        assert client.lists == [{"a": "Healthy"}, {"a": "Unhealthy", "b": "Healthy"}]
        assert site.stick.events == ["opened", A, B]


@quiet
async def test_no_list_is_sent_before_there_is_one_and_an_empty_one_is_a_list(tmp_path: Path) -> None:
    """The kubelet then writes 0."""
    async with serving(tmp_path) as site:
        client = await site.watching()
        await asyncio.sleep(1)
        assert client.lists == []
        site.server.offer(Offer())
        await until(lambda: client.lists == [{}])


@quiet
async def test_of_lists_that_come_faster_than_they_are_sent_the_last_counts(tmp_path: Path) -> None:
    """Nothing queues."""
    async with serving(tmp_path) as site:
        client = await site.watching()
        for offer in (A, B, Offer(), A):
            site.server.offer(offer)
        await until(lambda: bool(client.lists))
        await asyncio.sleep(1)
        assert client.lists == [{"a": "Healthy"}]


# -- streams


@quiet
async def test_the_end_of_a_stream_is_recorded_whichever_way_it_ends(tmp_path: Path) -> None:
    """Reset by the kubelet, or with its connection; each is followed by another one on the same server."""
    async with serving(tmp_path) as site:
        site.server.offer(A)
        first = await site.watching()
        await until(lambda: bool(first.lists))
        await first.cancel()
        await until(lambda: site.stick.events[-1] == "closed")
        second = await site.watching()
        await until(lambda: bool(second.lists))
        second.close()
        await until(lambda: site.stick.events[-1] == "closed")
        assert site.stick.events == ["opened", A, "closed"] * 2


@quiet
async def test_a_second_stream_gets_the_lists_from_now_on(tmp_path: Path) -> None:
    """The kubelet uses the last; the end of the first one is not the end of the registration."""
    async with serving(tmp_path) as site:
        site.server.offer(A)
        first = await site.watching()
        second = await site.watching()
        await until(lambda: bool(second.lists))
        site.server.offer(B)
        await until(lambda: len(second.lists) == 2)
        first.close()
        await asyncio.sleep(1)
        assert (len(first.lists), "closed" in site.stick.events) == (1, False)
        second.close()
        await until(lambda: site.stick.events[-1] == "closed")


@quiet
async def test_the_kubelet_sees_the_end_of_a_server_that_is_closed(tmp_path: Path) -> None:
    """At once, on every connection, and before the close returns: the next stream must not begin before the end of this one."""
    async with serving(tmp_path) as site:
        site.server.offer(A)
        client, other = await site.watching(), site.client()
        await other.allocate("a")
        await site.server.close()
        assert site.stick.events == ["opened", A, "closed"]
        assert not site.path.exists()
        await until(lambda: client.ended)
        with pytest.raises(ConnectionRefusedError if site.path.exists() else FileNotFoundError):
            await site.client().allocate("a")


@quiet
async def test_a_kubelet_that_reads_nothing_does_not_keep_a_server_open(tmp_path: Path) -> None:
    """It may hang for as long as it likes."""
    many = Offer(healthy=frozenset(f"{number:063}" for number in range(20_000)))
    async with serving(tmp_path) as site:
        reader, writer = await asyncio.open_unix_connection(str(site.path), limit=1)
        writer.write(PREFACE + request("ListAndWatch", b"\0\0\0\0\0"))
        await until(lambda: site.stick.events == ["opened"])
        site.server.offer(many)
        await asyncio.sleep(1)
        async with asyncio.timeout(0.1):
            await site.server.close()
        assert site.stick.events[-1] == "closed"
        writer.close()
        del reader


@quiet
async def test_nothing_is_served_on_a_connection_that_is_made_while_the_server_closes(tmp_path: Path) -> None:
    """A stream that is opened then would look like that of the next registration."""
    for steps in range(4, 12):  # before that, asyncio itself drops the connection
        async with serving(tmp_path) as site:
            client = site.client()
            client.watch()
            for _ in range(steps):
                await asyncio.sleep(0)
            await site.server.close()
            await asyncio.sleep(1)
            assert site.stick.events in ([], ["opened", "closed"])


# -- start


@quiet
async def test_a_socket_that_a_killed_daemon_left_is_replaced(tmp_path: Path) -> None:
    """Nobody listens on it."""
    async with serving(tmp_path) as killed:
        path = killed.path
        (tmp_path / "kept").hardlink_to(path)
    (tmp_path / "kept").rename(path)
    async with serving(tmp_path) as site:
        assert len((await site.client().allocate("a")).container_responses) == 1


@quiet
async def test_a_process_that_listens_in_the_place_of_a_socket_hears_nothing(tmp_path: Path) -> None:
    """Only root can be there before the daemon; what the kubelet asks reaches the daemon nevertheless."""
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(str(tmp_path / "plugin.sock"))
        squatter.listen()
        squatter.settimeout(0)
        async with serving(tmp_path) as site:
            assert len((await site.client().allocate("a")).container_responses) == 1
        with pytest.raises(BlockingIOError):
            squatter.accept()


@pytest.mark.parametrize("target", ["a socket", "a file", "nothing"])
def test_a_link_in_the_place_of_a_socket_leads_nowhere(target: str, tmp_path: Path) -> None:
    """It is replaced, or an error; what it leads to stays as it is."""
    path, other = tmp_path / "plugin.sock", tmp_path / "other"
    path.symlink_to(other)
    if target == "a file":
        other.write_text("x")

    @quiet
    async def scenario() -> None:
        server = PluginServer(path, Stick(), tmp_path)
        if target == "a socket":
            await server.start()
            assert path.is_socket()
            assert not path.is_symlink()
        else:
            with pytest.raises(KubeletError, match=f"^{path}: .*already in use$"):
                await server.start()
        await server.close()

    with socket.socket(socket.AF_UNIX) as squatter:
        if target == "a socket":
            squatter.bind(str(other))
        scenario()
    kinds = {"a socket": other.is_socket(), "a file": other.is_file(), "nothing": not other.exists()}
    assert kinds[target]


def test_only_the_owner_of_a_socket_can_connect_to_it(tmp_path: Path) -> None:
    """Under any usual umask: a client needs the permission to write (unix(7))."""

    @quiet
    async def scenario() -> None:
        async with serving(tmp_path) as site:
            assert site.path.stat().st_mode & 0o022 == 0

    before = os.umask(0o022)
    try:
        scenario()
    finally:
        os.umask(before)


@quiet
async def test_a_server_that_cannot_listen_says_so_and_can_be_closed(tmp_path: Path) -> None:
    """No folder, or something in the way, or a path that no address holds."""
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "plugin.sock", tmp_path / "folder", tmp_path / ("x" * 200)):
        server = PluginServer(path, Stick(), tmp_path)
        with pytest.raises(KubeletError, match=f"^{path}: "):
            await server.start()
        await server.close()
    assert (tmp_path / "folder").is_dir()


@quiet
async def test_a_server_that_cannot_listen_says_what_to_do(tmp_path: Path) -> None:
    """Where it is certain: the folder is absent."""
    folder = tmp_path / "none"
    with pytest.raises(KubeletError) as told:
        await PluginServer(folder / "plugin.sock", Stick(), tmp_path).start()
    assert told.value.hint == f"create {folder}, or mount it into the container"


@quiet
async def test_the_options_ask_for_no_further_calls(tmp_path: Path) -> None:
    """Neither before a container starts nor for a preference."""
    async with serving(tmp_path) as site:
        options = await site.client().call("GetDevicePluginOptions", pb.Empty(), pb.DevicePluginOptions)
        assert options == pb.DevicePluginOptions()


# -- allocations


@quiet
async def test_an_allocation_hands_out_the_links(tmp_path: Path) -> None:
    """Read and write, for each container of the request by itself."""
    async with serving(tmp_path) as site:
        asked = [pb.ContainerAllocateRequest(devices_ids=ids) for ids in (["a", "b"], ["c"], [])]
        request = pb.AllocateRequest(container_requests=asked)
        answer = await site.client().call("Allocate", request, pb.AllocateResponse)
        first, second, third = answer.container_responses
        assert [(each.container_path, each.host_path, each.permissions) for each in first.devices] == [
            ("/dev/a", str(tmp_path / "links" / "link-a"), "rw"),
            ("/dev/b", str(tmp_path / "links" / "link-b"), "rw"),
        ]
        assert (dict(first.envs), dict(second.envs), len(third.devices)) == ({"IDS": "a,b"}, {"IDS": "c"}, 0)


@quiet
async def test_an_unknown_id_is_refused_by_name(tmp_path: Path) -> None:
    """The kubelet then fails the pod, with this text."""
    async with serving(tmp_path) as site:
        with pytest.raises(GRPCError) as refused:
            await site.client().allocate("a", "x")
        assert (refused.value.status, refused.value.message) == (Status.NOT_FOUND, "x was never listed")


@quiet
async def test_a_thousand_allocations_at_once_are_all_answered(tmp_path: Path) -> None:
    """While lists go on."""
    async with serving(tmp_path) as site:
        site.server.offer(A)
        watcher, client = await site.watching(), site.client()
        calls = [asyncio.create_task(client.allocate("abc"[number % 3])) for number in range(1_000)]
        await asyncio.sleep(0)
        site.server.offer(B)
        answers = await asyncio.gather(*calls)
        assert [answer.container_responses[0].envs["IDS"] for answer in answers] == [*"abc" * 333, "a"]
        assert len(watcher.lists) == 2


# -- clients that are no kubelet

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()


def request(method: str, content: bytes, *more: tuple[str, str | bytes], end: bool = True, path: bool = True) -> bytes:
    """Return the frames of a call."""
    fields = [(":method", "POST"), (":scheme", "http"), (":authority", "localhost"), ("te", "trailers"), *more]
    fields += [("content-type", "application/grpc"), *([(":path", f"/v1beta1.DevicePlugin/{method}")] if path else [])]
    head = HeadersFrame(1, data=Encoder().encode(fields), flags=["END_HEADERS"])
    return bytes(head.serialize() + DataFrame(1, data=content, flags=["END_STREAM"] if end else []).serialize())


EMPTY = b"\0\0\0\0\0"
GARBAGE = {
    "HTTP/1": b"GET / HTTP/1.1\r\n\r\n",
    "nothing": b"",
    "zeros": b"\0" * 100,
    "a preface and zeros": PREFACE + b"\0" * 100,
    "an unknown frame": PREFACE + b"\0\0\1\xee\0\0\0\0\0x",
    "an unexpected frame": PREFACE + AltSvcFrame(0, origin=b"a", field=b"b").serialize(),
    "another method": PREFACE + request("PreStartContainer", EMPTY),
    "a header that is not ASCII": PREFACE + request("Allocate", EMPTY, ("x", b"\xff")),
    "a wrong deadline": PREFACE + request("Allocate", EMPTY, ("grpc-timeout", "x")),
    "a request cut short": PREFACE + request("Allocate", b"\0\0\0\0\x09ab"),
    "a request that is compressed": PREFACE + request("Allocate", b"\1\0\0\0\0"),
    "a request that is none": PREFACE + request("Allocate", b"\0\0\0\0\2\xff\1"),
    "no request": PREFACE + request("Allocate", b""),
    "no request for a stream": PREFACE + request("ListAndWatch", b""),
    "a stream cut short": PREFACE + request("ListAndWatch", b"\0\0\0\0\x09ab"),
    "a stream with a request that is none": PREFACE + request("ListAndWatch", b"\0\0\0\0\2\xff\1"),
    "options with a request that is none": PREFACE + request("GetDevicePluginOptions", b"\0\0\0\0\2\xff\1"),
    "a call that is reset": PREFACE + request("Allocate", b"", end=False) + RstStreamFrame(1, error_code=8).serialize(),
    "a stream that is reset": PREFACE + request("ListAndWatch", EMPTY) + RstStreamFrame(1, error_code=8).serialize(),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_harms_nobody_else(name: str, tmp_path: Path) -> None:
    """The stream of the kubelet goes on, and no library complains."""

    @quiet
    async def served() -> None:
        async with serving(tmp_path) as site:
            site.server.offer(A)
            kubelet = await site.watching()
            reader, writer = await asyncio.open_unix_connection(str(site.path))
            writer.write(GARBAGE[name])
            await asyncio.sleep(1)
            writer.close()
            await asyncio.sleep(1)
            del reader
            if "stream" not in name:
                site.server.offer(B)
                await until(lambda: len(kubelet.lists) == 2)
            assert len((await kubelet.allocate("a")).container_responses) == 1

    served()
