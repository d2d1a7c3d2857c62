"""The DRA driver that the kubelet finds and calls, over real unix sockets: registration, claims, and clients that are no kubelet."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from grpclib.exceptions import StreamTerminatedError
from hpack import Encoder
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame

from devwatch.core.errors import ClaimRefused, KubeletError
from devwatch.kubelet.draplugin import DriverServer
from devwatch.kubelet.driver import Driver
from support.claims import POOL, prepared, reference
from support.drakubelet import DraKubelet, dra_kubelet
from support.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from devwatch.core.claims import ClaimReference, PreparedClaim


@dataclass(slots=True, kw_only=True)
class Recorder:
    """Claims that are prepared with two devices, but for one that is refused; it records what the server says."""

    events: list[object] = field(default_factory=list)
    hanging: bool = False
    reason: str = "no"

    async def prepare(self, claims: Sequence[ClaimReference]) -> Mapping[str, PreparedClaim | ClaimRefused]:
        """Prepare them."""
        self.events.append(("prepare", *(claim.name for claim in claims)))
        if self.hanging:
            await asyncio.Event().wait()
        return {
            claim.uid: ClaimRefused(self.reason) if claim.name == "refused" else prepared("a", "b", uid=claim.uid)
            for claim in claims
        }

    async def unprepare(self, claims: Sequence[ClaimReference]) -> None:
        """Forget them."""
        self.events.append(("unprepare", *(claim.title for claim in claims)))

    def notified(self, error: str | None) -> None:
        """Record it."""
        self.events.append(("notified", error))

    def changed(self) -> None:
        """Record it."""
        self.events.append("changed")


@dataclass(slots=True, kw_only=True)
class Site:
    """A driver that the kubelet has registered."""

    kubelet: DraKubelet
    server: DriverServer
    claims: Recorder


@contextlib.asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Site]:
    """Have one."""
    claims = Recorder()
    async with dra_kubelet(folder) as kubelet:
        server = Driver(folder=folder, cdi=folder / "cdi").server(claims)
        await server.start()
        try:
            await asyncio.sleep(0.5)
            yield Site(kubelet=kubelet, server=server, claims=claims)
        finally:
            await server.close()


def sockets(folder: Path) -> list[str]:
    """Return the sockets below the folder of the kubelet."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_socket())


OURS = ["plugins/devwatch.io/dra.sock", "plugins_registry/devwatch.io-reg.sock"]

# -- registration


@quiet
async def test_the_kubelet_finds_the_driver_by_itself(tmp_path: Path) -> None:
    """And connects to the endpoint that it is told."""
    async with serving(tmp_path) as site:
        (info,) = site.kubelet.registered
        assert (info.type, info.name, list(info.supported_versions)) == ("DRAPlugin", "devwatch.io", ["v1.DRAPlugin"])
        assert info.endpoint == str(tmp_path / OURS[0])
        assert site.claims.events == ["changed", ("notified", None)]
        assert site.server.connected
        assert sockets(tmp_path) == OURS
    assert sockets(tmp_path) == []


@quiet
async def test_the_endpoint_is_absolute_wherever_the_daemon_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kubelet has another working directory."""
    monkeypatch.chdir(tmp_path.parent)
    async with dra_kubelet(tmp_path) as kubelet:
        server = DriverServer(tmp_path.relative_to(tmp_path.parent), Recorder())
        await server.start()
        await asyncio.sleep(0.5)
        assert kubelet.registered[0].endpoint == str(tmp_path / OURS[0])
        await server.close()


@quiet
async def test_a_refusal_is_told_in_the_kubelets_words(tmp_path: Path) -> None:
    """Such as: no version in common."""
    claims = Recorder()
    async with dra_kubelet(tmp_path) as kubelet:
        kubelet.refusing = "none of services\nsupported"
        server = DriverServer(tmp_path, claims)
        await server.start()
        await asyncio.sleep(0.5)
        assert claims.events == [("notified", "none of services supported")]
        assert not server.connected
        await server.close()


@quiet
async def test_a_kubelet_that_starts_again_is_one_connection_less_and_one_registration_more(tmp_path: Path) -> None:
    """It finds the socket that is there."""
    async with serving(tmp_path) as site:
        await site.kubelet.stop()
        await asyncio.sleep(0.5)
        assert not site.server.connected
        site.kubelet.start()
        await asyncio.sleep(0.5)
        assert site.server.connected
        assert len(site.kubelet.registered) == 2
        assert site.claims.events.count(("notified", None)) == 2


# -- claims


@quiet
async def test_each_claim_has_its_answer_and_each_request_its_cdi_device_once(tmp_path: Path) -> None:
    """With the first device: two would give a container the same twice."""
    async with serving(tmp_path) as site:
        answers = await site.kubelet.prepare(reference(uid="1"), reference("refused", uid="2"))
        assert (answers["2"].error, list(answers["2"].devices)) == ("no", [])
        assert answers["1"].error == ""
        assert [
            (list(each.request_names), each.pool_name, each.device_name, list(each.cdi_device_ids))
            for each in answers["1"].devices
        ] == [(["stick"], POOL, "a", ["devwatch.io/claim=1-stick"]), (["stick"], POOL, "b", [])]


@quiet
async def test_every_claim_that_ends_is_in_the_answer(tmp_path: Path) -> None:
    """Otherwise the pod stays Terminating."""
    async with serving(tmp_path) as site:
        answers = await site.kubelet.unprepare(reference(uid="1"), reference("d", uid="2"))
        assert {uid: answer.error for uid, answer in answers.items()} == {"1": "", "2": ""}
        assert site.claims.events[-1] == ("unprepare", "home/c", "home/d")


@quiet
async def test_calls_without_claims_are_answered(tmp_path: Path) -> None:
    """With nothing."""
    async with serving(tmp_path) as site:
        assert (await site.kubelet.prepare(), await site.kubelet.unprepare()) == ({}, {})


@quiet
async def test_the_stream_of_health_stays_open(tmp_path: Path) -> None:
    """A kubelet asks again 5 s after its end, and logs an error each time. Claims are prepared meanwhile."""
    async with serving(tmp_path) as site:
        watching = asyncio.create_task(site.kubelet.watch_health())
        await asyncio.sleep(3600)
        assert not watching.done()
        assert (await site.kubelet.prepare(reference()))[reference().uid].error == ""
        async with asyncio.timeout(0.1):
            await site.server.close()
        assert isinstance((await asyncio.gather(watching, return_exceptions=True))[0], StreamTerminatedError)


@quiet
async def test_a_kubelet_that_ends_leaves_no_stream_of_health(tmp_path: Path) -> None:
    """Each start of one opens its own."""
    async with serving(tmp_path) as site:
        before = asyncio.all_tasks()
        watching = asyncio.create_task(site.kubelet.watch_health())
        await asyncio.sleep(1)
        assert len(asyncio.all_tasks() - before) > 1
        site.kubelet.disconnect()
        await asyncio.gather(watching, return_exceptions=True)
        await asyncio.sleep(1)
        assert asyncio.all_tasks() <= before


@quiet
async def test_a_call_that_hangs_ends_with_the_server(tmp_path: Path) -> None:
    """TERM must end the daemon within two seconds."""
    async with serving(tmp_path) as site:
        site.claims.hanging = True
        call = asyncio.create_task(site.kubelet.prepare(reference()))
        await asyncio.sleep(0.1)
        async with asyncio.timeout(0.1):
            await site.server.close()
        with pytest.raises(StreamTerminatedError):
            await call


# -- sockets


@quiet
async def test_a_socket_of_another_daemon_stays(tmp_path: Path) -> None:
    """It has taken over; ours is removed, and theirs is told as missing."""
    async with serving(tmp_path) as site:
        assert site.server.missing == ""
        other = DriverServer(tmp_path, Recorder())
        await other.start()
        assert site.server.missing == str(tmp_path / OURS[0])
        await site.server.close()
        assert (sockets(tmp_path), other.missing) == (OURS, "")
        (tmp_path / OURS[1]).unlink()
        assert other.missing == str(tmp_path / OURS[1])
        await other.close()
        await other.close()


@quiet
async def test_sockets_that_a_killed_daemon_left_are_replaced(tmp_path: Path) -> None:
    """No process listens on them; the kubelet registers the new ones."""
    for path in OURS:
        (tmp_path / path).parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / path))
    async with serving(tmp_path) as site:
        await asyncio.sleep(0.5)
        assert len(site.kubelet.registered) == 1


@pytest.mark.parametrize("taken", OURS)
def test_a_process_that_listens_in_the_place_of_a_socket_hears_nothing(taken: str, tmp_path: Path) -> None:
    """Only root can be there before the daemon; the kubelet reaches the daemon nevertheless."""
    (tmp_path / taken).parent.mkdir(parents=True)

    @quiet
    async def scenario() -> None:
        async with serving(tmp_path) as site:
            await asyncio.sleep(0.5)
            assert len(site.kubelet.registered) == 1
            assert site.server.connected

    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(str(tmp_path / taken))
        scenario()


@pytest.mark.parametrize("taken", OURS)
def test_a_link_in_the_place_of_a_socket_leads_nowhere(taken: str, tmp_path: Path) -> None:
    """It is an error that names it; what it leads to stays as it is."""
    path, other = tmp_path / taken, tmp_path / "other"
    (tmp_path / "plugins_registry").mkdir()
    (tmp_path / "plugins" / "devwatch.io").mkdir(parents=True)
    path.symlink_to(other)
    other.write_text("x")

    @quiet
    async def scenario() -> None:
        server = DriverServer(tmp_path, Recorder())
        with pytest.raises(KubeletError, match=f"^{path}: .*already in use$"):
            await server.start()
        await server.close()

    scenario()
    assert other.read_text() == "x"


@pytest.mark.parametrize("missing", ["plugins", "plugins_registry"])
def test_a_folder_that_is_missing_is_told_with_the_cure(missing: str, tmp_path: Path) -> None:
    """The kubelet makes them; nothing is left listening."""

    @quiet
    async def told() -> None:
        for name in {"plugins", "plugins_registry"} - {missing}:
            (tmp_path / name).mkdir()
        server = DriverServer(tmp_path, Recorder())
        with pytest.raises(KubeletError, match="No such file or directory") as error:
            await server.start()
        assert error.value.hint == f"create {tmp_path / missing}, or mount it into the container"
        await server.close()
        assert sockets(tmp_path) == []

    told()


@quiet
async def test_a_reason_is_told_whatever_is_in_it_and_keeps_no_other_claim(tmp_path: Path) -> None:
    """The API server's words may hold what protobuf cannot carry, and the kubelet shows them at the pod."""
    async with serving(tmp_path) as site:
        site.claims.reason = "a\ud800\x1b[31m\nb"
        answers = await site.kubelet.prepare(reference("refused", "1"), reference("c", "2"))
        assert (answers["1"].error, answers["2"].error) == ("a\\ud800\\x1b[31m\\nb", "")


# -- clients that are no kubelet


def request(path: str, content: bytes) -> bytes:
    """Return the frames of a call."""
    fields = [(":method", "POST"), (":scheme", "http"), (":authority", "x"), ("te", "trailers")]
    fields += [("content-type", "application/grpc"), (":path", path)]
    head = HeadersFrame(1, data=Encoder().encode(fields), flags=["END_HEADERS"])
    begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
    return bytes(begin + head.serialize() + DataFrame(1, data=content, flags=["END_STREAM"]).serialize())


DRA = "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"
REGISTRATION = "/pluginregistration.Registration"
METHODS = {
    f"{DRA}/NodePrepareResources": 0,
    f"{DRA}/NodeUnprepareResources": 0,
    f"{DRA}/Other": 0,
    f"{REGISTRATION}/GetInfo": 1,
    f"{REGISTRATION}/NotifyRegistrationStatus": 1,
    "/v1alpha1.DRAResourceHealth/NodeWatchResources": 0,
}
"""Which socket serves each."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("content", [b"", b"\0\0\0\0\x09ab", b"\1\0\0\0\0", b"\0\0\0\0\2\xff\1"])
def test_garbage_harms_no_other_call(method: str, content: bytes, tmp_path: Path) -> None:
    """Calls without a request, cut short, compressed, or not a message; no library complains."""

    @quiet
    async def served() -> None:
        async with serving(tmp_path) as site:
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / OURS[METHODS[method]]))
            writer.write(request(method, content))
            await asyncio.sleep(1)
            writer.close()
            assert (await site.kubelet.prepare(reference()))[reference().uid].error == ""
            del reader

    served()


@quiet
async def test_a_notification_without_words_is_a_refusal_without_a_reason(tmp_path: Path) -> None:
    """It is what proto3 leaves of `false` and an empty text."""
    async with serving(tmp_path) as site:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / OURS[1]))
        writer.write(request(f"{REGISTRATION}/NotifyRegistrationStatus", b"\0\0\0\0\0"))
        await asyncio.sleep(1)
        writer.close()
        assert site.claims.events[-1] == ("notified", "it does not say why")
        del reader
