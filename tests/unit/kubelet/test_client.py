"""What the kubelet is asked, against a gRPC server on a unix socket, and what becomes of answers that are none."""

from __future__ import annotations

import asyncio
import random
import socket
from functools import partial
from typing import TYPE_CHECKING

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from hpack import Encoder
from hyperframe.frame import (
    AltSvcFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
)

from devwatch.core.errors import KubeletError, NotServed
from devwatch.core.holders import Holding
from devwatch.kubelet import client
from devwatch.kubelet import kubelet_pb2 as pb
from support.build import ZIGBEE, ZWAVE
from support.descriptors import no_descriptors
from support.grpckubelet import answering, kubelet, listed
from support.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


# -- what is asked


@quiet
async def test_the_kubelet_is_asked_which_devices_it_has_taken_over(tmp_path: Path) -> None:
    """It lists one entry for each device (kubelet, `GetAllocatableDevices`); they are joined by resource."""
    async with kubelet(tmp_path) as one:
        assert await client.allocatable(one.pod_resources) == {}
        one.listed += [listed(ZIGBEE, ["a"]), listed(ZWAVE, ["c"]), listed(ZIGBEE, ["b", "a"])]
        assert await client.allocatable(one.pod_resources) == {ZIGBEE: {"a", "b"}, ZWAVE: {"c"}}


@quiet
async def test_the_kubelet_is_asked_which_pods_hold_devices(tmp_path: Path) -> None:
    """By container and resource; a pod without devices holds none."""
    async with kubelet(tmp_path) as one:
        containers = [pb.ContainerResources(name="c", devices=[listed(ZIGBEE, ["b", "a"]), listed(ZWAVE, [])])]
        one.pods += [
            pb.PodResources(name="p", namespace="home", containers=containers),
            pb.PodResources(name="q", namespace="home", containers=[pb.ContainerResources(name="c")]),
        ]
        held = partial(Holding, namespace="home", pod="p", container="c")
        assert await client.holdings(one.pod_resources) == (
            held(resource=ZIGBEE, ids=frozenset({"a", "b"})),
            held(resource=ZWAVE, ids=frozenset()),
        )


@quiet
async def test_the_kubelet_is_asked_which_pods_have_devices_by_a_claim(tmp_path: Path) -> None:
    """Under the name of our driver, since the kubelet does not know the resource; that a claim has none of our devices is told too.

    One without any may not be prepared yet, and be for ours.
    """

    def given(claim: str, **devices: str) -> pb.DynamicResource:
        found = [
            pb.ClaimResource(driver_name=driver.replace("_", "."), pool_name="p", device_name=name)
            for name, driver in devices.items()
        ]
        return pb.DynamicResource(claim_name=claim, claim_namespace="home", claim_resources=found)

    async with kubelet(tmp_path) as one:
        claims = [
            given("both", a="devwatch_io", x="gpu_example_com", b="devwatch_io"),
            given("other", y="gpu"),
            given("new"),
        ]
        containers = [pb.ContainerResources(name="c", devices=[listed(ZWAVE, ["z"])], dynamic_resources=claims)]
        one.pods.append(pb.PodResources(name="p", namespace="home", containers=containers))
        held = partial(Holding, namespace="home", pod="p", container="c")
        assert await client.holdings(one.pod_resources) == (
            held(resource=ZWAVE, ids=frozenset({"z"})),
            held(resource="devwatch.io", ids=frozenset({"a", "b"}), claim="both"),
            held(resource="devwatch.io", ids=frozenset(), claim="other"),
            held(resource="devwatch.io", ids=frozenset(), claim="new", unprepared=True),
        )


# -- what is refused


@quiet
async def test_an_error_of_the_kubelet_is_told_in_its_words(tmp_path: Path) -> None:
    """Whatever it refuses: the name, the version."""
    async with kubelet(tmp_path, error=GRPCError(Status.UNKNOWN, "the name is invalid")) as one:
        with pytest.raises(KubeletError, match=r"^the kubelet refuses Register: the name is invalid$"):
            await client.register(one.socket, endpoint="e.sock", resource=ZIGBEE)
        one.error = GRPCError(Status.PERMISSION_DENIED)
        with pytest.raises(KubeletError, match=r"^the kubelet refuses List: PERMISSION_DENIED$"):
            await client.holdings(one.pod_resources)
        one.error = GRPCError(Status.UNKNOWN, "\r\n")
        with pytest.raises(KubeletError, match=r"^the kubelet refuses List: UNKNOWN$"):
            await client.holdings(one.pod_resources)


@quiet
async def test_an_error_of_the_kubelet_is_one_line_of_limited_length(tmp_path: Path) -> None:
    """Health and log have lines; and each text of its own is kept, so that it is told once."""
    async with kubelet(tmp_path, error=GRPCError(Status.UNKNOWN, f"no:\r\nready\u2028{'x' * 9000}")) as one:
        with pytest.raises(KubeletError) as error:
            await client.holdings(one.pod_resources)
    assert str(error.value).startswith("the kubelet refuses List: no: ready xxx")
    assert len(str(error.value)) < 600


@quiet
async def test_a_kubelet_that_is_too_old_is_told_from_one_that_fails(tmp_path: Path) -> None:
    """Before 1.23 it has no `GetAllocatableResources`."""
    async with kubelet(tmp_path, old=True) as one:
        with pytest.raises(NotServed):
            await client.allocatable(one.pod_resources)
        assert await client.holdings(one.pod_resources) == ()


@quiet
async def test_a_kubelet_that_hangs_is_given_up(tmp_path: Path) -> None:
    """Each call has a limit, longer where the kubelet dials back meanwhile."""
    async with kubelet(tmp_path, hanging=True) as one:
        with pytest.raises(KubeletError, match=r"^the kubelet does not answer Register within 12 s$"):
            await client.register(one.socket, endpoint="e.sock", resource=ZIGBEE)
        with pytest.raises(KubeletError, match=r"^the kubelet does not answer List within 2 s$"):
            await client.holdings(one.pod_resources)


@quiet
async def test_a_kubelet_that_ends_during_a_call_fails_it(tmp_path: Path) -> None:
    """Before the limit."""
    async with kubelet(tmp_path, hanging=True) as one:
        call = asyncio.create_task(client.register(one.socket, endpoint="e.sock", resource=ZIGBEE))
        await asyncio.sleep(0.1)
        await one.stop()
        await asyncio.wait({call}, timeout=0.1)
        assert isinstance(call.exception(), KubeletError)


@quiet
async def test_no_socket_and_one_that_refuses_are_errors_with_its_path(tmp_path: Path) -> None:
    """A killed kubelet leaves its socket."""
    async with kubelet(tmp_path) as one:
        await one.stop()
        with pytest.raises(KubeletError, match=rf"^{one.pod_resources}: Connection refused$"):
            await client.allocatable(one.pod_resources)
        one.pod_resources.unlink()
        with pytest.raises(KubeletError, match=rf"^{one.pod_resources}: No such file or directory$"):
            await client.allocatable(one.pod_resources)
        with pytest.raises(KubeletError, match="AF_UNIX path too long"):
            await client.allocatable(tmp_path / ("x" * 200))


@quiet
async def test_a_call_leaves_its_task_as_it_was(tmp_path: Path) -> None:
    """The library cancels the task of a call whose connection ends, which must not look like the end of the daemon."""
    async with answering(tmp_path / "s", b"HTTP/1.1 400 Bad Request\r\n\r\n"):
        with pytest.raises(KubeletError):
            await client.allocatable(tmp_path / "s")
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


@pytest.mark.parametrize("steps", range(0, 40, 2))
def test_a_call_can_be_cancelled_at_any_moment(steps: int, tmp_path: Path) -> None:
    """Also at the moment at which it fails: nothing complains of an exception that nobody retrieved."""

    @quiet
    async def cancelled_after() -> None:
        async with kubelet(tmp_path, error=GRPCError(Status.UNKNOWN, "no")) as one:
            call = asyncio.create_task(client.allocatable(one.pod_resources))
            for _ in range(steps):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait({call})
            assert call.cancelled() or isinstance(call.exception(), KubeletError)

    cancelled_after()


# -- who accepts


@quiet
async def test_a_kubelet_accepts_while_it_serves(tmp_path: Path) -> None:
    """Neither a socket that is not there yet nor one that a killed kubelet left accepts; nor does a file."""
    async with kubelet(tmp_path) as one:
        assert await client.is_accepting(one.socket)
        await one.stop()
        assert not await client.is_accepting(one.socket)
        one.socket.unlink()
        assert not await client.is_accepting(one.socket)
        one.socket.touch()
        assert not await client.is_accepting(one.socket)


@quiet
async def test_without_a_free_descriptor_no_kubelet_is_known_to_accept(tmp_path: Path) -> None:
    """The shortage may pass; an error that is none of the kubelet's would end the daemon."""
    async with kubelet(tmp_path) as one:
        with no_descriptors():
            assert not await client.is_accepting(one.socket)
        assert await client.is_accepting(one.socket)


@quiet
async def test_a_kubelet_whose_queue_is_full_stops_nothing(tmp_path: Path) -> None:
    """It hangs before it accepts: the kernel takes no further connection."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(path))
        listener.listen(0)
        waiting.connect(str(path))
        await client.is_accepting(path)
        with pytest.raises(KubeletError):
            await client.register(path, endpoint="e.sock", resource=ZIGBEE)


# -- answers that are none


def headers(*fields: tuple[str, str | bytes], end: bool = False) -> bytes:
    """Return a HEADERS frame for the first call of a connection."""
    frame = HeadersFrame(1, data=Encoder().encode(fields), flags=["END_HEADERS", *(["END_STREAM"] if end else [])])
    return bytes(frame.serialize())


def data(content: bytes, *, end: bool = True) -> bytes:
    """Return a DATA frame."""
    return bytes(DataFrame(1, data=content, flags=["END_STREAM"] if end else []).serialize())


def frame(made: Frame) -> bytes:
    """Return a frame."""
    return bytes(made.serialize())


OK = ((":status", "200"), ("content-type", "application/grpc"))
BEGIN = frame(SettingsFrame(0))
MESSAGE = b"\0\0\0\0\0"
"""An empty message: not compressed, of 0 bytes."""
DONE = headers(("grpc-status", "0"), end=True)
PARTS = {
    "text": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "zeros": b"\0" * 100,
    "proxy": headers((":status", "502"), end=True),
    "no type": headers((":status", "200"), end=True),
    "no status": headers(("content-type", "application/grpc"), end=True),
    "early": headers((":status", "103")),
    "half": headers(*OK),
    "empty": headers(*OK, ("grpc-status", "0"), end=True),
    "odd status": headers(*OK, ("grpc-status", "x"), ("grpc-message", "%zz"), end=True),
    "not ASCII": headers(*OK, ("x", b"\xff"), end=True),
    "not base64": headers(*OK, ("x-bin", "@@@"), ("grpc-status", "0"), end=True),
    "compressed": data(b"\1\0\0\0\0", end=False),
    "cut": data(b"\0\0\0\0\x09ab"),
    "huge": data(b"\0\xff\xff\xff\xffab"),
    "no message": data(b""),
    "no protobuf": data(b"\0\0\0\0\2\xff\1", end=False),
    "message": data(MESSAGE, end=False),
    "done": DONE,
    "reset": frame(RstStreamFrame(1, error_code=8)),
    "away": frame(GoAwayFrame(0, last_stream_id=0, error_code=2)),
    "push": frame(PushPromiseFrame(1, promised_stream_id=2, data=Encoder().encode(OK), flags=["END_HEADERS"])),
    "service": frame(AltSvcFrame(0, origin=b"a", field=b"b")),
    "unknown": b"\0\0\1\xee\0\0\0\0\0x",
    "settings": frame(SettingsFrame(0, settings={SettingsFrame.MAX_CONCURRENT_STREAMS: 0})),
}
RANDOM = random.Random(17)  # noqa: S311 - the same combinations each time
COMBINED = [
    (*RANDOM.choices(["half", "message", "cut"], k=RANDOM.randint(0, 2)), *RANDOM.choices(list(PARTS), k=2))
    for _ in range(60)
]


@pytest.mark.parametrize(
    "parts", [*((name,) for name in PARTS), *(("half", name) for name in PARTS), *COMBINED], ids="+".join
)
def test_garbage_is_an_error_of_the_kubelet(parts: Sequence[str], tmp_path: Path) -> None:
    """Whatever answers on the socket: the call ends with a `KubeletError`, and no library complains."""

    @quiet
    async def asked() -> None:
        async with answering(tmp_path / "s", BEGIN + b"".join(map(PARTS.__getitem__, parts))):
            call = asyncio.create_task(client.allocatable(tmp_path / "s"))
            await asyncio.wait({call})
            assert isinstance(call.exception(), KubeletError) or call.result() == {}

    asked()


@quiet
async def test_the_parts_of_the_test_before_make_a_good_answer(tmp_path: Path) -> None:
    """They do reach the client."""
    async with answering(tmp_path / "s", BEGIN + PARTS["half"] + PARTS["message"] + PARTS["done"]):
        assert await client.allocatable(tmp_path / "s") == {}
