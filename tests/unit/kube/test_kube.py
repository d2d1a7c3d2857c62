"""The edge to the API server, against a scripted HTTP server on loopback: what goes over the wire, and what becomes of every answer."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization

from devwatch.core.errors import (
    ApiError,
    Busy,
    Conflict,
    CredentialsError,
    Forbidden,
    Gone,
    NodeMissing,
    Refused,
    Retry,
    Unserved,
)
from devwatch.core.node import ANNOTATION, ANNOTATION_PART, NodePatch, NodeState
from devwatch.kube.client import Connection
from devwatch.kube.credentials import Credentials
from devwatch.kube.library import ApiClient
from devwatch.kube.nodes import KubeNode, node_state
from devwatch.kube.responses import MAX_ANSWER
from support.build import patch_of
from support.realtime import run
from support.scripted import TOKEN, Request, Site, answer, kubeconfig, refusal, site
from system.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from support.build import Parts

NODE: dict[str, Any] = {
    "kind": "Node",
    "metadata": {"uid": "u1", "resourceVersion": "42", "annotations": {ANNOTATION: "{}", "other": "x"}},
    "status": {"capacity": {"a.io/b": "1", "cpu": "4"}, "allocatable": {"a.io/b": "1"}},
}
RBAC = 'nodes "n1" is forbidden: User "{}" cannot patch resource "nodes/status" in API group "" at the cluster scope'
Answer = "bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]"


async def silence(writer: asyncio.StreamWriter) -> None:
    """Answer nothing, but keep the connection."""
    await writer.wait_closed()


async def half(writer: asyncio.StreamWriter) -> None:
    """Answer half of a body and nothing more, but keep the connection."""
    writer.write(answer(200, NODE)[:-10])
    await writer.wait_closed()


async def reset(writer: asyncio.StreamWriter) -> None:
    """Send half of a body and reset the connection."""
    writer.write(answer(200, NODE)[:-10])
    await writer.drain()
    abort(writer)


async def endless(writer: asyncio.StreamWriter) -> None:
    """Send a body without an end."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b" " * 65536)
        await writer.drain()


def abort(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a reset (socket(7), SO_LINGER of 0 seconds)."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.asynccontextmanager
async def node(
    config: Path | str | None, *, dry_run: bool = False, patience: float = 20, environ: Mapping[str, str] | None = None
) -> AsyncIterator[KubeNode]:
    """Have a Node to write to, and close it."""
    credentials = Credentials(kubeconfig=None if config is None else str(config), environ=environ or {})
    api = KubeNode("n1", credentials, version="1.2", dry_run=dry_run, timeout=patience)
    try:
        yield api
    finally:
        await api.close()


def ask(
    folder: Path,
    *answers: Any,  # noqa: ANN401 - as `site` takes them
    changes: Parts | None = None,
    dry_run: bool = False,
    patience: float = 20,
) -> tuple[NodeState | ApiError, list[Request]]:
    """Return what one patch gives where the server answers so, and what the server was sent."""
    outcomes: list[NodeState | ApiError] = []
    sent: list[Request] = []

    async def scenario() -> None:
        async with site(*answers) as server:
            config = kubeconfig(folder, f"http://127.0.0.1:{server.port}")
            async with node(config, dry_run=dry_run, patience=patience) as api:
                outcomes.append(await outcome(api, changes))
            sent.extend(server.requests)

    run(scenario())
    return outcomes[0], sent


@contextlib.asynccontextmanager
async def talk(
    folder: Path,
    *answers: Any,  # noqa: ANN401 - as `site` takes them
    scheme: str = "http",
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[Site, KubeNode]]:
    """Run a server and have the Node that it keeps."""
    async with (
        site(*answers, tls=tls) as server,
        node(kubeconfig(folder, f"{scheme}://127.0.0.1:{server.port}")) as api,
    ):
        yield server, api


async def outcome(api: KubeNode, changes: Parts | None = None) -> NodeState | ApiError:
    """Return the Node, or the error; an exception of any other kind fails the test."""
    try:
        return await api.patch(patch_of(changes or {}))
    except ApiError as error:
        plain(error)
        return error


def plain(error: ApiError) -> None:
    """Check that a message is one line, not too long, the same every time, and gives no secret away."""
    text = str(error)
    assert text
    assert len(text.splitlines()) == 1
    assert len(text) < 1000
    assert "SECRET" not in text
    assert " at 0x" not in text
    assert "Traceback" not in text


# -- what goes over the wire


def test_a_change_is_one_strategic_merge_patch_of_the_status(tmp_path: Path) -> None:
    """Both maps and the annotation in one request, under our field manager, by our name."""
    _, (sent,) = ask(tmp_path, answer(200, NODE), changes={"a.io/b": "1", "a.io/gone": None, ANNOTATION_PART: "{}"})
    assert sent.line == "PATCH /api/v1/nodes/n1/status?fieldManager=devwatch HTTP/1.1"
    assert sent.headers["content-type"] == "application/strategic-merge-patch+json"
    assert sent.headers["accept"] == "application/json"
    assert sent.headers["authorization"] == f"Bearer {TOKEN}"
    assert sent.headers["user-agent"] == "devwatch/1.2"
    counts = {"a.io/b": "1", "a.io/gone": None}
    assert json.loads(sent.body) == {
        "status": {"capacity": counts, "allocatable": counts},
        "metadata": {"annotations": {ANNOTATION: "{}"}},
    }


def test_without_changes_it_is_a_read_by_the_same_right(tmp_path: Path) -> None:
    """`{}` as the body, not an empty one."""
    state, (sent,) = ask(tmp_path, answer(200, NODE))
    assert sent.line.startswith("PATCH ")
    assert sent.body == b"{}"
    assert isinstance(state, NodeState)


def test_a_dry_run_asks_the_server_to_store_nothing(tmp_path: Path) -> None:
    """`dryRun=All`, as the API wants it."""
    _, (sent,) = ask(tmp_path, answer(200, NODE), dry_run=True)
    assert sent.line == "PATCH /api/v1/nodes/n1/status?fieldManager=devwatch&dryRun=All HTTP/1.1"


def test_the_answer_is_the_observed_node(tmp_path: Path) -> None:
    """Not what was sent, but what is there now, foreign resources included."""
    state, _ = ask(tmp_path, answer(200, NODE), changes={"a.io/b": "7"})
    assert state == NodeState(
        uid="u1",
        version=42,
        capacity={"a.io/b": "1", "cpu": "4"},
        allocatable={"a.io/b": "1"},
        annotation="{}",
    )


@pytest.mark.parametrize(
    ("header", "date"),
    [
        ({"Date": "Fri, 15 Jan 2027 08:00:00 GMT"}, "2027-01-15T08:00:00Z"),
        ({"Date": "Fri, 15 Jan 2027 09:00:00 +0100"}, "2027-01-15T08:00:00Z"),
        ({"Date": "yesterday"}, ""),
        ({"Date": "Fri, 32 Jan 2027 08:00:00 GMT"}, ""),
        ({}, ""),
    ],
)
def test_the_time_of_the_server_is_known_from_its_last_answer(
    header: dict[str, str], date: str, tmp_path: Path
) -> None:
    """In the form in which it writes the times of pods."""

    async def scenario() -> None:
        async with talk(tmp_path, answer(200, NODE, **header)) as (_, api):
            assert api.date == ""
            await api.patch(NodePatch())
            assert api.date == date

    run(scenario())


def fields(*resources: str, maps: tuple[str, ...] = ("f:capacity", "f:allocatable")) -> dict[str, Any]:
    """Return what a manager has written of a Node's status, as the server records it."""
    return {"f:status": {part: {f"f:{name}": {} for name in resources} for part in maps}}


NOTED: dict[str, Any] = {"f:metadata": {"f:annotations": {f"f:{ANNOTATION}": {}, "f:foreign": {}}}}


def managed(*entries: dict[str, Any]) -> NodeState:
    """Return a Node with these records of who wrote what."""
    metadata = {**NODE["metadata"], "managedFields": [{"operation": "Update", **entry} for entry in entries]}
    return node_state({**NODE, "metadata": metadata}, origin="x")


def test_who_wrote_each_map_is_known() -> None:
    """A kubelet takes over the keys whose value it changes, map by map."""
    state = managed(
        {"manager": "devwatch", "fieldsV1": {**fields("a.io/b"), **NOTED}},
        {"manager": "devwatch", "fieldsV1": fields("c.io/d", maps=("f:capacity",))},
        {"manager": "kubelet", "fieldsV1": fields("c.io/d", "cpu", maps=("f:allocatable",))},
    )
    assert state.removable("a.io/b")
    counts = replace(state, capacity={"c.io/d": "1"}, allocatable={"c.io/d": "1"})
    assert not counts.removable("c.io/d")
    assert replace(counts, allocatable={}).removable("c.io/d")
    assert [writer.manager for writer in state.writers["c.io/d"]] == ["devwatch", "kubelet"]
    assert "cpu" not in state.writers


US = {"manager": "devwatch", "subresource": "status", "fieldsV1": NOTED}
KUBELET = {"manager": "kubelet", "subresource": "status", "fieldsV1": fields("a.io/b")}


@pytest.mark.parametrize(
    ("entries", "believed"),
    [
        ([US], True),
        ([US, KUBELET], True),
        ([{"manager": "devwatch", "fieldsV1": NOTED}], True),
        ([{"manager": "devwatch", "fieldsV1": NOTED}, KUBELET], False),
        ([{**US, "subresource": ""}], False),
        ([{**US, "operation": "Apply"}], False),
        ([{**US, "manager": "kubectl-annotate"}], False),
        ([US, {**US, "manager": "kubectl-annotate"}], False),
        ([KUBELET], False),
        ([], False),
    ],
)
def test_an_annotation_is_believed_where_devwatch_alone_wrote_it(entries: list[dict[str, Any]], believed: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    """By the status, where the server records that (1.22)."""
    assert managed(*entries).believed is believed


def test_a_node_without_status_and_annotations_is_read(tmp_path: Path) -> None:
    """As a new one is, before its kubelet has written to it."""
    state, _ = ask(tmp_path, answer(200, {"kind": "Node", "metadata": {"uid": "u"}}))
    assert state == NodeState(uid="u")


def test_requests_share_a_connection(tmp_path: Path) -> None:
    """A resync costs no TLS handshake."""

    async def scenario() -> None:
        async with site(answer(200, NODE)) as server:
            config = kubeconfig(tmp_path, f"http://127.0.0.1:{server.port}")
            async with node(config) as api:
                before = len(sockets())
                for _ in range(5):
                    await api.patch(NodePatch())
                assert len(sockets()) == before + 2, "one connection has two ends"

    run(scenario())


def sockets() -> list[str]:
    """Return the open sockets of this process."""
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(link.readlink()))
    return [link for link in links if link.startswith("socket:")]


# -- what becomes of an answer


STATUSES: dict[str, tuple[bytes, type[ApiError], str]] = {
    "400": (refusal(400, "bad quantity"), Refused, r"bad quantity \(400 from http://127.0.0.1:\d+\)"),
    "404 of the Node": (refusal(404, 'nodes "n1" not found', reason="NotFound"), NodeMissing, 'nodes "n1" not found'),
    "404 of a proxy": (answer(404, b"<html>404\r\n not found</html>"), Unserved, "<html>404 not found</html>"),
    "404 of a path": (answer(404, b"404 page not found"), Unserved, "page not found"),
    "409": (refusal(409, "the object has been modified"), Conflict, "modified"),
    "413": (refusal(413, "too large"), Refused, "too large"),
    "422": (refusal(422, "capacity: Invalid value"), Refused, "Invalid value"),
    "422 with a Node in it": (refusal(422, "x" * 100_000), Refused, f"x{{500}} {re.escape('(422 from')}"),
    "429": (refusal(429, "slow down"), Busy, "slow down"),
    "500": (refusal(500, "etcdserver: request timed out"), Retry, "etcdserver"),
    "502 of a proxy": (answer(502, b""), Retry, "no message"),
    "503": (answer(503, b"apiserver not ready\n\n"), Retry, "apiserver not ready"),
    "redirect without a place": (answer(302, b""), Retry, "302"),
    "redirect in a circle": (answer(307, b"", Location="/"), Retry, r"redirects to another path of its own \(307\)"),
    "accepted, not done": (answer(202, {}), Retry, "202"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", Retry, "204"),
    "garbage JSON": (answer(200, b'{"kind": "Node", '), Retry, "not a Node"),
    "JSON of no object": (answer(200, ["Node"]), Retry, "not a Node"),
    "deep JSON": (answer(200, b"[" * 200_000), Retry, "not a Node"),
    "bytes": (answer(200, b"\xff\xfe\x00\x00\xd8"), Retry, "not a Node"),
    "HTML": (answer(200, b"<html>Log in</html>", Content_Type="text/html"), Retry, "not a Node"),
    "another kind": (answer(200, {**NODE, "kind": "NodeList"}), Retry, "not a Node"),
    "a Node without metadata": (answer(200, {"kind": "Node"}), Retry, "not a Node"),
    "a Node without uid": (answer(200, {"kind": "Node", "metadata": {}}), Retry, "not a Node"),
    "a Node of strings": (answer(200, {"kind": "Node", "metadata": "x", "status": "y"}), Retry, "not a Node"),
    "capacity of a list": (answer(200, {**NODE, "status": {"capacity": ["a"]}}), Retry, "not a Node"),
    "a version of 9000 digits": (
        answer(200, {**NODE, "metadata": {"uid": "u", "resourceVersion": "9" * 9000}}),
        Retry,
        "not a Node",
    ),
    "a body cut off": (answer(200, NODE)[:-10] + b"", Retry, "no answer"),
    "no HTTP": (b"220 mail.example.com ESMTP\r\n", Retry, "no answer"),
    "nothing": (b"", Retry, "no answer"),
    "headers without an end": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, Retry, "no answer"),
}  # fmt: skip


@pytest.mark.parametrize("name", STATUSES)
def test_every_answer_becomes_one_of_our_errors(name: str, tmp_path: Path) -> None:
    """Sorted by what to do about it, in one line that says what happened and, unless the API server says it itself, where."""
    given, kind, text = STATUSES[name]
    cut = name == "a body cut off"
    error, sent = ask(tmp_path, _closing(given) if cut else given)
    assert type(error) is kind
    assert re.search(text, str(error))
    assert re.search(r"http://127\.0\.0\.1:\d+", str(error))
    assert len(sent) == 1


def _closing(data: bytes) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return write


@pytest.mark.parametrize(
    ("header", "after"),
    [
        ({}, None),
        ({"Retry_After": "7"}, 7),
        ({"Retry_After": "0"}, 0),
        ({"Retry_After": "Fri, 31 Dec 1999 23:59:59 GMT"}, None),
        ({"Retry_After": "-1"}, None),
        ({"Retry_After": "1000000000"}, 86_400),
        ({"Retry_After": "9" * 5000}, 86_400),
        ({"Retry_After": "nan"}, None),
        ({"Retry_After": "\u0663"}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_passed_on_in_seconds(
    status: int, header: dict[str, str], after: float | None, tmp_path: Path
) -> None:
    """A number of seconds, or nothing: no answer can make the loop wait for ever or stumble."""
    error, _ = ask(tmp_path, refusal(status, "busy").replace(b"\r\n", _field(header), 1))
    assert isinstance(error, Retry)
    assert error.after == after


def _field(header: dict[str, str]) -> bytes:
    return b"\r\n" + b"".join(f"{name.replace('_', '-')}: {value}\r\n".encode() for name, value in header.items())


def test_a_connection_reset_in_mid_body_is_no_answer(tmp_path: Path) -> None:
    """A half Node is not a Node without its resources."""
    error, _ = ask(tmp_path, reset)
    assert type(error) is Retry
    assert re.search(r"no answer from the API server http://127\.0\.0\.1:\d+: ", str(error))


def test_an_endless_body_is_given_up(tmp_path: Path) -> None:
    """After 8 MiB: the memory of the node is not the server's to fill."""
    error, _ = ask(tmp_path, endless)
    assert type(error) is Retry
    assert f"is larger than {MAX_ANSWER} bytes" in str(error)


@pytest.mark.parametrize("behaviour", [silence, half])
def test_a_server_that_does_not_answer_is_given_up(behaviour: object, tmp_path: Path) -> None:
    """At any point of the answer; the message says who and after how long."""
    error, _ = ask(tmp_path, behaviour, patience=0.3)
    assert type(error) is Retry
    assert re.fullmatch(r"the API server http://127\.0\.0\.1:\d+ did not answer within 0\.3 s", str(error))


def test_a_token_does_not_follow_a_redirect_to_another_server(tmp_path: Path) -> None:
    """Whoever answers in place of the API server must not learn it."""

    async def scenario() -> None:
        async with site(answer(200, NODE)) as thief, contextlib.AsyncExitStack() as stack:
            place = f"http://127.0.0.1:{thief.port}/"
            server = await stack.enter_async_context(site(answer(307, b"", Location=place)))
            api = await stack.enter_async_context(node(kubeconfig(tmp_path, f"http://127.0.0.1:{server.port}")))
            await outcome(api)
            assert server.requests[0].headers["authorization"] == f"Bearer {TOKEN}"
            assert all("authorization" not in request.headers for request in thief.requests)

    run(scenario())


def test_no_request_follows_a_redirect(tmp_path: Path) -> None:
    """Its body is for the API server, and an answer from elsewhere is not the API server's: it is told where it would have gone.

    The place is told by its origin alone, since its path may hold a secret.
    """

    async def scenario() -> None:
        async with site(answer(200, NODE)) as other, contextlib.AsyncExitStack() as stack:
            place = f"http://jane:SECRET@127.0.0.1:{other.port}/SECRET?token=SECRET"
            server = await stack.enter_async_context(site(answer(302, b"", Location=place)))
            api = await stack.enter_async_context(node(kubeconfig(tmp_path, f"http://127.0.0.1:{server.port}")))
            error = await outcome(api, {"a.io/b": "1"})
            watch = [answer(200, LIST), answer(307, b"", Location=place)]
            watched = await stack.enter_async_context(site(*watch))
            another = await stack.enter_async_context(node(_place(tmp_path, watched)))
            with pytest.raises(Retry) as caught:
                await _versions(another)
            assert other.requests == []
        for told, status, port in ((error, 302, server.port), (caught.value, 307, watched.port)):
            assert type(told) is Retry
            assert isinstance(told, Retry)
            plain(told)
            assert str(told).startswith(
                f"http://127.0.0.1:{port} redirects to http://127.0.0.1:{other.port} ({status}), and devwatch does not follow redirects: "
            )

    run(scenario())


def test_a_redirect_to_nowhere_is_one_line(tmp_path: Path) -> None:
    """Whatever stands in its place of a URL."""
    error, sent = ask(tmp_path, answer(308, b"", Location="http://[SECRET"))
    assert type(error) is Retry
    assert "redirects to an invalid URL (308)" in str(error)
    assert len(sent) == 1


CUT = f"{'x' * 490} {TOKEN}"
"""A text in which the token stands where a message is cut."""


@pytest.mark.parametrize("status", [202, 300, 401, 503])
@pytest.mark.parametrize("body", [{"message": CUT}, {"Authorization": f"Bearer {TOKEN}"}, CUT.encode()])
def test_a_token_that_a_server_gives_back_is_in_no_message(status: int, body: object, tmp_path: Path) -> None:
    """Some proxies answer with all that they were sent, and not always as a failure."""
    error, _ = ask(tmp_path, answer(status, body))  # which looks for it
    assert isinstance(error, ApiError)


def test_a_password_that_a_server_gives_back_is_in_no_message(tmp_path: Path) -> None:
    """Nor is what it looks like on the way, in whatever form it is spelt in JSON."""
    user = {"username": "jane", "password": "?>?"}
    sent = base64.b64encode(b"jane:?>?").decode()
    assert "/" in sent

    async def scenario() -> None:
        body = json.dumps({"message": f"who are you? {sent}"}).replace("/", "\\/")
        async with site(answer(500, body.encode())) as server:
            async with node(kubeconfig(tmp_path, f"http://127.0.0.1:{server.port}", user=user)) as api:
                assert "who are you? [redacted] (500" in str(await outcome(api))
            assert server.requests[0].headers["authorization"] == f"Basic {sent}"

    run(scenario())


# -- rights


def test_a_missing_right_is_named_with_the_commands_that_grant_it(tmp_path: Path) -> None:
    """To this ServiceAccount and no other."""
    error, _ = ask(tmp_path, refusal(403, RBAC.format("system:serviceaccount:kube-system:devwatch")))
    assert isinstance(error, Forbidden)
    assert "cannot patch resource" in str(error)
    assert error.hint == (
        "kubectl create clusterrole devwatch-patch-nodes-status --verb=patch --resource=nodes/status; "
        "kubectl create clusterrolebinding devwatch-patch-nodes-status:system:serviceaccount:kube-system:devwatch "
        "--clusterrole=devwatch-patch-nodes-status --serviceaccount=kube-system:devwatch"
    )


def test_a_hint_is_safe_to_paste(tmp_path: Path) -> None:
    """The name of a user comes from outside and goes into a shell."""
    error, _ = ask(tmp_path, refusal(403, RBAC.format("$(reboot); a/b 'c%")))
    assert isinstance(error, Forbidden)
    assert """'--user=$(reboot); a/b '"'"'c%'""" in error.hint
    assert """'devwatch-patch-nodes-status:$(reboot); a-b '"'"'c-'""" in error.hint


def test_nobody_is_told_to_grant_rights_to_everybody(tmp_path: Path) -> None:
    """A request without credentials is anonymous: what is missing are they, not a right of `system:anonymous`."""
    error, _ = ask(tmp_path, refusal(403, RBAC.format("system:anonymous")))
    assert isinstance(error, Forbidden)
    assert "kubectl" not in error.hint
    assert "token" in error.hint


def test_a_kubelets_credential_on_a_foreign_node_points_to_the_name(tmp_path: Path) -> None:
    """No right helps there (NodeRestriction)."""
    error, _ = ask(tmp_path, refusal(403, 'nodes "n1" is forbidden: node "n2" is not allowed to modify node "n1"'))
    assert isinstance(error, Forbidden)
    assert "--node-name" in error.hint


def test_the_budget_that_forbids_an_eviction_is_named(tmp_path: Path) -> None:
    """The message does not, its details do."""
    causes = [
        {"reason": "DisruptionBudget", "message": "The disruption budget hub needs 1 healthy pods"},
        {"reason": "Other"},
        "x",
    ]
    for details, said in (({"causes": causes}, "hub"), ({"causes": "x"}, "budget"), ("x", "budget")):
        error, _ = ask(
            tmp_path, refusal(429, "Cannot evict pod as it would violate the pod's disruption budget.", details=details)
        )
        assert said in str(error)
        assert "Other" not in str(error)


def test_a_policy_that_dislikes_the_content_refuses_it(tmp_path: Path) -> None:
    """Another content may pass, so it is not a missing right."""
    error, _ = ask(tmp_path, refusal(403, 'nodes "n1" is forbidden: ValidatingAdmissionPolicy "p" denied request: no'))
    assert type(error) is Refused


DENIED = (
    "nodes \"n1\" is forbidden: ValidatingAdmissionPolicy 'devwatch' with binding 'devwatch' denied request: "
    "status.capacity[a.io/b] is not among the resources that the policy allows: x.io/y"
)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("1", "add a.io/b to "),
        (None, "a removal needs the name as well: keep a.io/b in "),
    ],
)
def test_a_name_that_a_policy_does_not_list_is_told_with_the_list(value: str | None, hint: str, tmp_path: Path) -> None:
    """Where the name has to stand, with both ways to install the policy, and for a removal until when."""
    error, _ = ask(tmp_path, refusal(403, DENIED), changes={"a.io/b": value, ANNOTATION_PART: "{}"})
    assert type(error) is Refused
    assert error.hint.startswith(hint)
    assert "spec.variables[0] of ValidatingAdmissionPolicy devwatch" in error.hint
    assert "admissionPolicy.allowed in the chart's values" in error.hint
    assert ("until it has been removed from the Node" in error.hint) is (value is None)


def test_what_a_policy_dislikes_otherwise_has_no_such_hint(tmp_path: Path) -> None:
    """Nothing certain can be said of it."""
    denied = DENIED.replace("not among the resources that the policy allows", "no number")
    error, _ = ask(tmp_path, refusal(403, denied), changes={"a.io/b": "1"})
    assert isinstance(error, Refused)
    assert error.hint == ""


def test_other_credentials_are_taken_after_a_missing_right(tmp_path: Path) -> None:
    """A kubeconfig that is corrected to name another user works without a restart."""

    async def scenario() -> None:
        async with site(refusal(403, RBAC.format("jane")), answer(200, NODE)) as server:
            url = f"http://127.0.0.1:{server.port}"
            async with node(kubeconfig(tmp_path, url)) as api:
                assert isinstance(await outcome(api), Forbidden)
                kubeconfig(tmp_path, url, user={"token": "another"})
                assert isinstance(await outcome(api), NodeState)
        assert server.requests[1].headers["authorization"] == "Bearer another"

    run(scenario())


# -- credentials that change


UNAUTHORIZED = refusal(401, "Unauthorized", reason="Unauthorized")


def test_refused_credentials_are_read_again_and_the_request_is_repeated_once(tmp_path: Path) -> None:
    """A replaced token file is noticed within the same request."""

    async def scenario() -> None:
        token = tmp_path / "token"
        token.write_text("old\n")
        async with site(answer(200, NODE), UNAUTHORIZED, answer(200, NODE)) as server:
            config = kubeconfig(tmp_path, f"http://127.0.0.1:{server.port}", user={"tokenFile": "token"})
            async with node(config) as api:
                await api.patch(NodePatch())
                token.write_text("new\n")
                assert isinstance(await outcome(api, {"a.io/b": "1"}), NodeState)
        sent = [(request.headers["authorization"], request.body) for request in server.requests]
        assert [key for key, _ in sent] == ["Bearer old", "Bearer old", "Bearer new"]
        assert sent[1][1] == sent[2][1]

    run(scenario())


def test_credentials_that_stay_refused_are_an_error(tmp_path: Path) -> None:
    """After one repetition, and with what the server says; the next request tries again."""

    async def scenario() -> None:
        async with talk(tmp_path, answer(200, NODE), UNAUTHORIZED, UNAUTHORIZED, answer(200, NODE)) as (server, api):
            await api.patch(NodePatch())
            error = await outcome(api)
            assert isinstance(error, CredentialsError)
            assert "does not accept the credentials: Unauthorized (401" in str(error)
            assert len(server.requests) == 3
            assert isinstance(await outcome(api), NodeState)

    run(scenario())


def test_credentials_that_were_just_read_are_not_tried_twice(tmp_path: Path) -> None:
    """A wrong token costs the server one request, not two."""
    error, sent = ask(tmp_path, UNAUTHORIZED)
    assert isinstance(error, CredentialsError)
    assert len(sent) == 1


def serving(authority: Authority, clients: Path | None = None) -> ssl.SSLContext:
    """Return the TLS of a server on 127.0.0.1 that asks for a client certificate of an authority."""
    pair = authority.server("server", dns=["localhost"], addresses=["127.0.0.1"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(clients) if clients else None)
    context.load_cert_chain(pair.certificate, pair.key)
    context.verify_mode = ssl.CERT_OPTIONAL if clients else ssl.CERT_NONE
    return context


def test_a_client_certificate_that_was_rotated_on_disk_is_read_again(tmp_path: Path) -> None:
    """A kubelet's own certificate is replaced long before it expires; the server says 401 when it has."""
    authority = Authority(tmp_path / "pki")
    files = {"client-certificate": "client.crt", "client-key": "client.key"}

    def issue(user: str) -> None:
        pair = authority.client(user)
        (tmp_path / "client.crt").write_bytes(pair.certificate.read_bytes())
        (tmp_path / "client.key").write_bytes(pair.key.read_bytes())

    async def scenario() -> None:
        issue("before")
        tls = serving(authority, authority.certificate)
        async with site(answer(200, NODE), UNAUTHORIZED, answer(200, NODE), tls=tls) as server:
            cluster = {"certificate-authority": str(authority.certificate)}
            config = kubeconfig(tmp_path, f"https://127.0.0.1:{server.port}", user=files, cluster=cluster)
            async with node(config) as api:
                await api.patch(NodePatch())
                issue("after")
                await api.patch(NodePatch())
        assert [request.user for request in server.requests] == ["before", "before", "after"]

    run(scenario())


def test_a_changed_authority_is_read_again(tmp_path: Path) -> None:
    """Until then no request, and no token, goes to a server that cannot prove who it is."""
    trusted, other = Authority(tmp_path / "pki"), Authority(tmp_path / "other")
    bundle = tmp_path / "ca.crt"
    bundle.write_bytes(other.certificate.read_bytes())

    async def scenario() -> None:
        async with site(answer(200, NODE), tls=serving(trusted)) as server:
            cluster = {"certificate-authority": "ca.crt"}
            config = kubeconfig(tmp_path, f"https://127.0.0.1:{server.port}", cluster=cluster)
            async with node(config) as api:
                error = await outcome(api)
                assert type(error) is Retry
                assert "certificate verify failed" in str(error)
                assert server.requests == []
                bundle.write_bytes(trusted.certificate.read_bytes())
                assert isinstance(await outcome(api), NodeState)

    run(scenario())


def test_embedded_certificates_work(tmp_path: Path) -> None:
    """As most kubeconfigs have them."""
    authority = Authority(tmp_path / "pki")
    pair = authority.client("jane")

    async def scenario() -> None:
        async with site(answer(200, NODE), tls=serving(authority, authority.certificate)) as server:
            cluster = {"certificate-authority-data": embedded(authority.certificate)}
            user = {"client-certificate-data": embedded(pair.certificate), "client-key-data": embedded(pair.key)}
            async with node(
                kubeconfig(tmp_path, f"https://127.0.0.1:{server.port}", user=user, cluster=cluster)
            ) as api:
                await api.patch(NodePatch())
        assert [request.user for request in server.requests] == ["jane"]

    run(scenario())


def embedded(file: Path) -> str:
    """Return a file as kubeconfigs embed it."""
    return base64.b64encode(file.read_bytes()).decode()


def test_a_key_with_a_passphrase_is_told_and_asked_for_nowhere(tmp_path: Path) -> None:
    """OpenSSL would ask on the terminal, where nobody may be, and the daemon would hear nothing meanwhile."""
    pair = Authority(tmp_path / "pki").client("jane")
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"SECRET")
    form = serialization.PrivateFormat.PKCS8
    pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, locked))
    user = {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}
    error = fails(str(kubeconfig(tmp_path, "https://127.0.0.1:1", user=user)))
    assert isinstance(error, CredentialsError)
    assert "its client key has a passphrase" in str(error)


def test_keys_in_a_kubeconfig_leave_no_copy_and_no_descriptor(tmp_path: Path) -> None:
    """TLS reads keys from files only: their copies are in memory alone, gone at once, and nothing grows with every reading."""
    authority = Authority(tmp_path / "pki")
    for number in range(20):
        pair = authority.client(f"u{number}")
        both = base64.b64encode(
            pair.certificate.read_bytes() + pair.key.read_bytes()
        ).decode()  # as a kubelet keeps them
        user = {"client-certificate-data": both, "client-key-data": both if number % 2 else embedded(pair.key)}
        cluster = {"certificate-authority-data": embedded(authority.certificate)}
        kubeconfig(tmp_path, "https://127.0.0.1:1", user=user, cluster=cluster, name=f"k{number}")
    shown = python(COPIES, str(tmp_path))
    assert json.loads(shown) == {"written": [], "descriptors": 0}


COPIES = """
import asyncio, json, os, sys
from devwatch.kube.credentials import Credentials

written = []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        written.append(arguments[0])
sys.addaudithook(hook)

async def main():
    for round in range(100):
        config = f"{sys.argv[1]}/k{round % 20}"
        client = await Credentials(kubeconfig=config, environ={}).connect()
        await client.close()
        if round == 0:
            before = len(os.listdir("/proc/self/fd"))
    more = len(os.listdir("/proc/self/fd")) - before
    print(json.dumps({"written": written, "descriptors": more}))

asyncio.run(main())
"""


def python(script: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run a script in a fresh interpreter and return what it prints."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(env or {})}
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout


# -- in a pod


IN_CLUSTER = {"KUBERNETES_SERVICE_HOST": "127.0.0.1"}


@contextlib.asynccontextmanager
async def pod(folder: Path, *answers: bytes, refresh: float = 60) -> AsyncIterator[tuple[Site, KubeNode]]:
    """Have a server and the credentials that a kubelet mounts into a pod; the token is read again after `refresh` seconds."""
    authority = Authority(folder / "pki")
    (folder / "ca.crt").write_bytes(authority.certificate.read_bytes())
    (folder / "token").write_text("of the pod")
    async with site(*answers, tls=serving(authority)) as server:
        environ = {**IN_CLUSTER, "KUBERNETES_SERVICE_PORT": str(server.port)}
        credentials = Credentials(environ=environ, service_account=folder, token_refresh=refresh)
        api = KubeNode("n1", credentials, version="1", timeout=20)
        yield server, api
        await api.close()


def test_a_pod_uses_its_service_account(tmp_path: Path) -> None:
    """Without any configuration; a token that the kubelet has replaced is read again at a 401."""

    async def scenario() -> None:
        async with pod(tmp_path, answer(200, NODE), UNAUTHORIZED, answer(200, NODE)) as (server, api):
            await api.patch(NodePatch())
            (tmp_path / "token").write_text("newer")
            await api.patch(NodePatch())
        keys = [request.headers["authorization"] for request in server.requests]
        assert keys == ["Bearer of the pod", "Bearer of the pod", "Bearer newer"]

    run(scenario())


def test_a_token_that_the_kubelet_replaces_is_taken_before_it_is_refused(tmp_path: Path) -> None:
    """It is read again every minute; while it cannot be read, the held one goes on, and the server judges it."""

    async def scenario() -> None:
        async with pod(tmp_path, answer(200, NODE), refresh=0) as (server, api):
            await api.patch(NodePatch())
            (tmp_path / "token").write_text("newer\n")
            await api.patch(NodePatch())
            (tmp_path / "token").unlink()
            await api.patch(NodePatch())
        keys = [request.headers["authorization"] for request in server.requests]
        assert keys == ["Bearer of the pod", "Bearer newer", "Bearer newer"]

    run(scenario())


def test_a_token_is_not_read_again_for_every_request(tmp_path: Path) -> None:
    """A minute is soon enough, and the kubelet keeps the former one valid for longer."""

    async def scenario() -> None:
        async with pod(tmp_path, answer(200, NODE)) as (server, api):
            await api.patch(NodePatch())
            (tmp_path / "token").write_text("newer")
            await api.patch(NodePatch())
        assert {request.headers["authorization"] for request in server.requests} == {"Bearer of the pod"}

    run(scenario())


@pytest.mark.parametrize("file", ["token", "ca.crt"])
@pytest.mark.parametrize("content", [None, ""])
def test_a_pod_without_its_credentials_says_so(file: str, content: str | None, tmp_path: Path) -> None:
    """A pod may be told not to mount them."""

    async def scenario() -> None:
        async with pod(tmp_path, answer(200, NODE)) as (_, api):
            (tmp_path / file).unlink()
            if content is not None:
                (tmp_path / file).write_text(content)
            error = await outcome(api)
            assert isinstance(error, CredentialsError)
            assert str(error).startswith("cannot use the service account of this pod: ")

    run(scenario())


def test_the_flag_comes_before_the_variable_the_pod_and_the_default() -> None:
    """In this order, as the contract has it; an empty one is none."""
    environ = {"KUBECONFIG": "/b", "KUBERNETES_SERVICE_HOST": "h", "HOME": "/home/jane"}
    assert Credentials(kubeconfig="/a", environ=environ).file == "/a"
    assert Credentials(environ=environ).file == "/b"
    assert Credentials(environ={**environ, "KUBECONFIG": ""}).file is None
    assert Credentials(environ={"HOME": "/home/jane"}).file == "/home/jane/.kube/config"
    assert Credentials(environ={}).file == "/.kube/config"


# -- kubeconfigs that are of no use


def config_with(**changes: object) -> str:
    """Return a kubeconfig with some of its parts replaced, None removes one."""
    whole: dict[str, object] = {
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": TOKEN}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    merged = {**whole, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return json.dumps({name: value for name, value in merged.items() if value is not None})


def user_with(user: object) -> str:
    """Return a kubeconfig with such a user."""
    return config_with(users=[{"name": "u", "user": user}])


def cluster_with(cluster: object) -> str:
    """Return a kubeconfig with such a cluster."""
    return config_with(clusters=[{"name": "c", "cluster": cluster}])


EXEC = {"apiVersion": "client.authentication.k8s.io/v1", "command": "sh"}
SERVER = {"server": "https://127.0.0.1:1"}


def handing_out(status: object) -> str:
    """Return a kubeconfig with a plugin that hands this out."""
    text = json.dumps({"apiVersion": EXEC["apiVersion"], "kind": "ExecCredential", "status": status})
    return user_with({"exec": {**EXEC, "args": ["-c", 'echo "$0"', text]}})


def oidc(**claims: object) -> str:
    """Return a kubeconfig with a token of these claims, none without any, that could be refreshed with secrets."""
    token = {"id-token": f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()}.e30"} if claims else {}
    secrets = {"client-id": "c", "client-secret": "SECRET", "refresh-token": "SECRET"}
    provider = {"name": "oidc", "config": {**token, **secrets, "idp-issuer-url": "https://127.0.0.1:1"}}
    return user_with({"auth-provider": provider})


USELESS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "current-context"),
    "a list": ("- a", "incomplete or malformed"),
    "a word": ("SECRET", "incomplete or malformed"),
    "not YAML": ("users: [SECRET: {", r"invalid YAML \(line 1, column"),
    "a password that YAML takes for an alias": ("password: *SECRET", r"invalid YAML \(line 1, column 11\)"),
    "a password that YAML takes for a tag": ("password: !SECRET x", "invalid YAML"),
    "no text": (b"\xff\xfe\x00SECRET", "decode"),
    "control characters": (b"a: \x00\x01", "special characters"),
    "no contexts": (config_with(contexts=None), "contexts"),
    "no current context": (config_with(current_context=None), "current-context"),
    "another current context": (config_with(current_context="nope"), "nope"),
    "no such cluster": (config_with(clusters=[]), "cluster"),
    "a user in the wrong place": (config_with(users=[{"name": "u", "token": TOKEN}]), "Expected key user"),
    "a user that is not there": (config_with(users=[]), "there is no user u in it"),
    "no users": (config_with(users=None), "there is no user u in it"),
    "a user that impersonates another": (
        user_with({"token": TOKEN, "as": "jane", "as-groups": ["a"]}),
        r"impersonates another \(as, as-groups\), which devwatch does not support",
    ),
    "a provider of the past": (
        user_with({"auth-provider": {"name": "gcp", "config": {"cmd-path": "/no"}}}),
        "does not support auth-provider gcp: use the plugin",
    ),
    "a provider whose token is out of date": (oidc(exp=1), "oidc: there is no valid id-token"),
    "a provider without a token": (oidc(), "oidc: there is no valid id-token"),
    "a provider whose token is no token": (oidc(exp="SECRET"), "oidc: its id-token is not a JSON Web Token"),
    "no server": (cluster_with({"insecure-skip-tls-verify": True}), "has no server"),
    "an authority that is not there": (cluster_with({**SERVER, "certificate-authority": "/no/ca"}), "/no/ca"),
    "an authority of garbage": (cluster_with({**SERVER, "certificate-authority-data": "Z2FyYmFnZQ=="}), "SSLError"),
    "an authority that is no base64": (cluster_with({**SERVER, "certificate-authority-data": "SECRE"}), "base64|padding"),
    "a key of garbage": (
        user_with({"client-certificate-data": "Z2FyYmFnZQ==", "client-key-data": "U0VDUkVU"}),
        "SSLError",
    ),
    "a token file of nothing": (user_with({"tokenFile": os.devnull}), "its tokenFile /dev/null is empty"),
    "a token file that is not there": (user_with({"tokenFile": "/no/token"}), "/no/token"),
    "a plugin that fails": (user_with({"exec": {**EXEC, "args": ["-c", "echo a >&2; echo b >&2; exit 3"]}}), "3. a b"),
    "a plugin that is not there": (user_with({"exec": {**EXEC, "command": "/no/plugin"}}), "/no/plugin"),
    "a plugin that says nothing": (user_with({"exec": {**EXEC, "args": ["-c", "true"]}}), "exec: failed to decode"),
    "a plugin without credentials": (handing_out({}), "exec: missing token or clientCertificateData"),
    "a plugin with an empty token": (handing_out({"token": ""}), "exec: missing token or clientCertificateData"),
    "a plugin with no token": (handing_out({"token": None}), "exec: missing token or clientCertificateData"),
    "a plugin with half a pair": (handing_out({"clientCertificateData": "SECRET"}), "exec: missing clientKeyData"),
    "a plugin of no form": (user_with({"exec": {"command": "sh"}, "token": TOKEN}), "apiVersion"),
    "a plugin that floods": (
        user_with({"exec": {**EXEC, "args": ["-c", "head -c 50000 /dev/zero | tr '\\0' x >&2; exit 1"]}}),
        "xxx",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", USELESS)
def test_a_kubeconfig_of_no_use_is_named_with_what_is_wrong(name: str, tmp_path: Path) -> None:
    """By its path, in one line, without what may be secret in it; and it is used as soon as it is corrected."""
    content, text = USELESS[name]
    path = tmp_path / "kubeconfig"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    async def scenario() -> None:
        async with site(answer(200, NODE)) as server, node(path) as api:
            error = await outcome(api)
            assert isinstance(error, CredentialsError)
            assert str(error).startswith(f"cannot use the kubeconfig {path}: ")
            assert re.search(text, str(error))
            kubeconfig(tmp_path, f"http://127.0.0.1:{server.port}")
            assert isinstance(await outcome(api), NodeState)

    run(scenario())


def fails(config: str) -> ApiError:
    """Return the error that a request with this kubeconfig ends with."""
    errors: list[ApiError] = []

    async def scenario() -> None:
        async with node(config) as api:
            error = await outcome(api)
            assert isinstance(error, ApiError)
            errors.append(error)

    run(scenario())
    return errors[0]


@pytest.mark.parametrize("form", ["{0}/none", "{0}/none:{0}/neither", "{0}/none:"])
def test_a_kubeconfig_that_is_not_there_is_waited_for(form: str, tmp_path: Path) -> None:
    """A node may join its cluster after the daemon has started."""
    error = fails(form.format(tmp_path))
    assert isinstance(error, CredentialsError)
    assert "there is no kubeconfig" in str(error)


def test_a_folder_is_no_kubeconfig(tmp_path: Path) -> None:
    """The message says which."""
    error = fails(str(tmp_path))
    assert isinstance(error, CredentialsError)
    assert re.search(r"Is a directory: '/", str(error))


def test_a_plugin_that_hangs_is_given_up_and_named(tmp_path: Path) -> None:
    """It is the plugin that does not answer, not the API server; nothing of it runs on, however often it is tried."""
    path = tmp_path / "kubeconfig"
    path.write_text(user_with({"exec": {**EXEC, "args": ["-c", "sleep 60 & wait"]}}))

    async def attempts() -> None:
        async with node(path, patience=0.2) as api:
            for _ in range(3):
                error = await outcome(api)
                assert isinstance(error, CredentialsError)
                assert str(error) == f"cannot use the kubeconfig {path}: it took more than 0.2 s"

    async def scenario() -> None:
        before, threads = (children(), descriptors()), threading.active_count()
        await attempts()
        assert (children(), descriptors()) == before
        gc.collect()  # the thread that reads files ends with the credentials
        await settled(lambda: threading.active_count() <= threads)

    run(scenario())


def children() -> str:
    """Return the processes that this thread has started, and that have not been reaped."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text("ascii")


def plugin(folder: Path, server: str, script: str) -> Path:
    """Write a kubeconfig whose plugin is a script, which finds what it should print in `$CREDENTIAL`."""
    credential = {"apiVersion": EXEC["apiVersion"], "kind": "ExecCredential", "status": {"token": TOKEN}}
    environ = [{"name": "CREDENTIAL", "value": json.dumps(credential)}]
    return kubeconfig(folder, server, user={"exec": {**EXEC, "args": ["-c", script], "env": environ}})


@pytest.mark.parametrize(
    "script",
    ["echo $CREDENTIAL", "head -c 300000 /dev/zero >&2; echo $CREDENTIAL", "cat; echo $CREDENTIAL"],
    ids=["as it should", "which says much else", "which asks somebody"],
)
def test_the_token_of_a_plugin_is_used(script: str, tmp_path: Path) -> None:
    """As kubectl does; what else the plugin says, or would like to know, holds nothing up."""

    async def scenario() -> None:
        async with site(answer(200, NODE)) as server:
            config = plugin(tmp_path, f"http://127.0.0.1:{server.port}", script)
            async with node(config) as api:
                assert isinstance(await outcome(api), NodeState)
        assert server.requests[0].headers["authorization"] == f"Bearer {TOKEN}"

    run(scenario())


def test_a_kubeconfig_can_come_through_a_pipe(tmp_path: Path) -> None:
    """`devwatch status --kubeconfig <(sops -d ...)`: what a pipe gives is read once, and it tells no size."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_text, args=(user_with({"token": TOKEN}),), daemon=True).start()

    async def scenario() -> None:
        client = await Credentials(kubeconfig=str(pipe), environ={}).connect()
        assert client.configuration.api_key == {"BearerToken": f"Bearer {TOKEN}"}
        await client.close()

    run(scenario())


def test_a_plugin_beside_its_kubeconfig_is_found(tmp_path: Path) -> None:
    """A relative path leads from the file that names it, wherever the daemon was started (client-go, `ResolveLocalPaths`)."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "plugin").symlink_to("/bin/sh")
    path = plugin(tmp_path, "http://h", "echo $CREDENTIAL")
    path.write_text(path.read_text().replace('"command": "sh"', '"command": "./bin/plugin"'))

    async def scenario() -> None:
        client = await Credentials(kubeconfig=str(path), environ={}).connect()
        assert client.configuration.api_key == {"BearerToken": f"Bearer {TOKEN}"}
        await client.close()

    run(scenario())


@pytest.mark.parametrize(
    "user",
    [
        {"token": "stale", "tokenFile": "token"},
        {"token": "", "tokenFile": "token"},
        {"token": TOKEN, "tokenFile": "missing"},
        {"token": TOKEN, "tokenFile": "empty"},
        {"token": TOKEN, "auth-provider": {"name": "gcp"}},
    ],
)
def test_a_token_file_comes_before_a_token(user: Mapping[str, object], tmp_path: Path) -> None:
    """It is the one that is kept up to date (client-go, `BearerTokenFile`); while there is nothing in it the other is used."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "empty").touch()

    async def scenario() -> None:
        path = kubeconfig(tmp_path, "http://h", user=user)
        client = await Credentials(kubeconfig=str(path), environ={}).connect()
        assert client.configuration.api_key == {"BearerToken": f"Bearer {TOKEN}"}
        await client.close()

    run(scenario())


@pytest.mark.parametrize("claims", [{"exp": 4102444800}, {"exp": 4102444800.5}, {"exp": 4102444800, "sub": "????"}])
def test_a_provider_s_token_is_used_while_it_is_valid(claims: Mapping[str, object], tmp_path: Path) -> None:
    """Nobody has to be asked for another; a claim may need the characters - and _ of base64url (RFC 7515)."""

    async def scenario() -> None:
        path = tmp_path / "kubeconfig"
        path.write_text(oidc(**claims))
        client = await Credentials(kubeconfig=str(path), environ={}).connect()
        assert client.configuration.api_key["BearerToken"].startswith("Bearer e30.")
        await client.close()

    run(scenario())


def test_a_context_without_a_user_asks_as_nobody(tmp_path: Path) -> None:
    """A cluster may let anybody in; kubectl sends no credentials then either."""
    path = tmp_path / "kubeconfig"
    path.write_text(config_with(contexts=[{"name": "x", "context": {"cluster": "c"}}]))

    async def scenario() -> None:
        client = await Credentials(kubeconfig=str(path), environ={}).connect()
        assert client.configuration.api_key == {}
        await client.close()

    run(scenario())


def test_a_plugin_is_told_that_nobody_is_there_to_answer(tmp_path: Path) -> None:
    """In the form of the client authentication API, and in its own version."""

    async def scenario() -> None:
        script = f'echo "$KUBERNETES_EXEC_INFO" >{tmp_path}/info; echo $CREDENTIAL'
        client = await Credentials(kubeconfig=str(plugin(tmp_path, "http://h", script)), environ={}).connect()
        await client.close()

    run(scenario())
    spec = {"apiVersion": EXEC["apiVersion"], "kind": "ExecCredential", "spec": {"interactive": False}}
    assert json.loads((tmp_path / "info").read_text()) == spec


def test_a_plugin_that_asks_for_it_is_told_of_the_cluster(tmp_path: Path) -> None:
    """Server, certificate authority and what is meant for plugins, under the keys that client-go uses."""
    config = {"audience": "a"}
    extensions = [{"name": "other", "extension": 1}, {"name": "client.authentication.k8s.io/exec", "extension": config}]
    authority = tmp_path / "ca.crt"
    authority.write_bytes(b"CA")
    cluster = {"server": "https://127.0.0.1:1", "certificate-authority": authority.name, "extensions": extensions}
    printed = json.dumps({"apiVersion": EXEC["apiVersion"], "kind": "ExecCredential", "status": {"token": TOKEN}})
    script = f"echo \"$KUBERNETES_EXEC_INFO\" >{tmp_path}/info; echo '{printed}'"
    user = {"exec": {**EXEC, "args": ["-c", script], "provideClusterInfo": True}}
    (tmp_path / "kubeconfig").write_text(
        config_with(clusters=[{"name": "c", "cluster": cluster}], users=[{"name": "u", "user": user}])
    )

    async def scenario() -> None:
        credentials = Credentials(kubeconfig=str(tmp_path / "kubeconfig"), environ={})
        with pytest.raises(CredentialsError, match=r"certificate"):
            await credentials.connect()

    run(scenario())
    told = {"server": cluster["server"], "certificate-authority-data": base64.b64encode(b"CA").decode()}
    assert json.loads((tmp_path / "info").read_text())["spec"] == {
        "interactive": False,
        "cluster": {**told, "config": config},
    }


def test_what_a_kubeconfig_hides_stays_out_of_the_log(tmp_path: Path) -> None:
    """One variable without a value: the message says where, and neither it nor the library shows the others."""
    variables = [{"name": "KEY", "value": "SECRET"}, {"name": "PROFILE", "value": None}]
    path = kubeconfig(tmp_path, "https://127.0.0.1:1", user={"exec": {**EXEC, "env": variables}})
    wrong = f"Invalid kube-config file. Expected key value in {path}//user/exec/env/1"
    told = f"cannot use the kubeconfig {path}: ConfigException: {wrong}\n"
    assert python(HIDING, str(path)) == told * 2


HIDING = """
import asyncio, logging, os, sys
from devwatch.core.errors import CredentialsError
from devwatch.kube.credentials import Credentials

os.dup2(1, 2)  # what is logged, or printed as a last resort, is seen too

def connect():
    try:
        asyncio.run(Credentials(kubeconfig=sys.argv[1], environ={}).connect())
    except CredentialsError as error:
        print(error, flush=True)

connect()
logging.basicConfig(level=logging.DEBUG)
logging.getLogger("asyncio").disabled = True
connect()
"""


def test_two_kubeconfigs_are_one(tmp_path: Path) -> None:
    """As with kubectl: a list in KUBECONFIG is merged, and files that are missing are left out."""

    async def scenario() -> None:
        async with site(answer(200, NODE)) as server:
            clusters = [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.port}"}}]
            (tmp_path / "a").write_text(config_with(clusters=clusters, users=None))
            (tmp_path / "b").write_text(config_with(clusters=None, contexts=None))
            environ = {"KUBECONFIG": f"{tmp_path}/missing:{tmp_path}/a:{tmp_path}/b"}
            async with node(None, environ=environ) as api:
                assert isinstance(await outcome(api), NodeState)
        assert server.requests[0].headers["authorization"] == f"Bearer {TOKEN}"

    run(scenario())


def test_the_flag_names_one_file(tmp_path: Path) -> None:
    """With kubectl, too, a list stands in KUBECONFIG alone, and a colon in the flag is a part of the name."""
    (tmp_path / "a").write_text(named("a"))
    (tmp_path / "a:b").write_text(named("colon"))

    async def scenario() -> None:
        client = await Credentials(kubeconfig=f"{tmp_path}/a:b", environ={}).connect()
        assert client.configuration.host == "http://colon"
        await client.close()
        with pytest.raises(CredentialsError, match="there is no kubeconfig"):
            await Credentials(kubeconfig=f"{tmp_path}/a:{tmp_path}/a", environ={}).connect()

    run(scenario())


def named(name: str) -> str:
    """Return a whole kubeconfig for a cluster of this name."""
    return config_with(
        clusters=[{"name": name, "cluster": {"server": f"http://{name}"}}],
        contexts=[{"name": name, "context": {"cluster": name, "user": "u"}}],
        current_context=name,
    )


@pytest.mark.parametrize(
    ("files", "host"),
    [
        ("a:b", "a"),
        ("b:a", "b"),
        ("empty:b:a", "b"),
        ("none:b:a", "b"),
        ("missing:b:a", "b"),
        (":b:a", "b"),
        ("b:empty", "b"),
        ("~/b:a", "b"),
        ("~/b:missing", "b"),
        ("touched:b:a", "b"),
        ("b:touched", "b"),
    ],
)
def test_of_several_kubeconfigs_the_first_current_context_counts(
    files: str, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with kubectl: another one would write to another cluster. Empty ones and missing files are passed over."""
    contents = {"a": named("a"), "b": named("b"), "empty": '{"current-context": ""}', "none": "{}", "touched": ""}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    async def scenario() -> None:
        client = await Credentials(environ={"KUBECONFIG": files}).connect()
        assert client.configuration.host == f"http://{host}"
        await client.close()

    run(scenario())


# -- files that do not answer


FILES: dict[str, str] = {
    "the kubeconfig": "kubeconfig",
    "a token file": "token",
    "an authority": "ca.crt",
    "a client certificate": "client.crt",
    "a client key": "client.key",
}


def with_files(folder: Path, server: str) -> Path:
    """Write a kubeconfig that names all the files it can, and return its path; the files are others' to write."""
    user = {"tokenFile": "token", "client-certificate": "client.crt", "client-key": "client.key"}
    return kubeconfig(folder, server, user=user, cluster={"certificate-authority": "ca.crt"})


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_does_not_answer_holds_up_one_request_alone(name: str, tmp_path: Path) -> None:
    """It is given up while the loop turns, gathers no threads, and works as soon as the file is one."""
    authority = Authority(tmp_path / "pki")
    pair = authority.client("jane")
    contents = {"ca.crt": authority.certificate.read_bytes(), "token": TOKEN.encode()}
    contents |= {"client.crt": pair.certificate.read_bytes(), "client.key": pair.key.read_bytes()}
    for file, content in contents.items():
        (tmp_path / file).write_bytes(content)

    async def scenario() -> None:
        async with site(answer(200, NODE), tls=serving(authority, authority.certificate)) as server:
            config, threads = with_files(tmp_path, f"https://127.0.0.1:{server.port}"), threading.active_count()
            with in_place_of(tmp_path / FILES[name]):
                async with node(config, patience=0.3) as api:
                    turns = asyncio.create_task(counted_turns())
                    for _ in range(3):
                        error = await outcome(api)
                        assert isinstance(error, CredentialsError)
                        assert str(error) == f"cannot use the kubeconfig {config}: it took more than 0.3 s"
                    assert threading.active_count() <= threads + 1
                    turns.cancel()
                    assert await turns > 30
            async with node(config) as api:
                assert isinstance(await outcome(api), NodeState)
        assert server.requests[0].headers["authorization"] == f"Bearer {TOKEN}"
        assert server.requests[0].user == "jane"

    run(scenario())


@contextlib.contextmanager
def in_place_of(file: Path) -> Iterator[None]:
    """Have a pipe in place of a file, and in the end the file, and no thread that reads the pipe."""
    content = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    yield
    with contextlib.suppress(OSError):  # no thread reads it any more
        os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))
    file.unlink()
    file.write_bytes(content)


async def counted_turns() -> int:
    """Count the turns of the loop, 100 a second, until it is cancelled."""
    turns = 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(0.01)
            turns += 1
    return turns


def test_a_pipe_that_is_not_written_to_is_named(tmp_path: Path) -> None:
    """With what to do, and no token is sent meanwhile."""
    (tmp_path / "token").touch()
    with in_place_of(tmp_path / "token"):
        path = kubeconfig(tmp_path, "http://127.0.0.1:1", user={"tokenFile": "token"})
        error = fails(str(path))
    reason = "it is not a regular file, and it did not end within 5 s"
    assert isinstance(error, CredentialsError)
    assert str(error).startswith(
        f"cannot use the kubeconfig {path}: {tmp_path}/token: {reason} (let the writer of a pipe "
    )


def test_two_requests_that_wait_for_the_same_files_both_use_them(tmp_path: Path) -> None:
    """A patch and a watch begin at the same moment: neither takes away what the other still needs."""
    authority = Authority(tmp_path / "pki")
    pair = authority.client("jane")
    user = {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}
    cluster = {"certificate-authority": str(authority.certificate)}

    async def scenario() -> None:
        path = kubeconfig(tmp_path, "https://127.0.0.1:1", user=user, cluster=cluster)
        credentials = Credentials(kubeconfig=str(path), environ={})
        for client in await asyncio.gather(*(credentials.connect() for _ in range(3))):
            await client.close()

    run(scenario())


# -- servers that are not there


def test_tls_to_a_plain_port_is_no_answer(tmp_path: Path) -> None:
    """And the message says that it is TLS that fails."""

    async def scenario() -> None:
        async with site(answer(400, b"")) as server:
            server.eager = True
            async with node(kubeconfig(tmp_path, f"https://127.0.0.1:{server.port}")) as api:
                error = await outcome(api)
                assert type(error) is Retry
                assert re.search(rf"no answer from the API server https://127.0.0.1:{server.port}: .*SSL", str(error))

    run(scenario())


def test_plain_to_a_tls_port_is_no_answer(tmp_path: Path) -> None:
    """Nor is what a TLS server says to it."""

    async def scenario() -> None:
        async with talk(tmp_path, answer(200, NODE), tls=serving(Authority(tmp_path / "pki"))) as (server, api):
            error = await outcome(api)
            assert type(error) is Retry
            assert f"no answer from the API server http://127.0.0.1:{server.port}: " in str(error)

    run(scenario())


@pytest.mark.parametrize(
    ("server", "text"),
    [
        ("https://127.0.0.1:1", r"https://127\.0\.0\.1:1: ConnectionRefusedError"),
        ("https://admin:SECRET@127.0.0.1:1", r"https://127\.0\.0\.1:1: ConnectionRefusedError"),
        ("ftp://admin:SECRET@127.0.0.1:1", r"ftp://127\.0\.0\.1:1: NonHttpUrl"),
        ("https://admin:SECRET@127.0.0.1:99999", r"https://127\.0\.0\.1:99999: "),
        ("127.0.0.1:1", r"127\.0\.0\.1:1: NonHttpUrl"),
        (f"https://{'x' * 64}.invalid", "no answer from the API server https://xxx"),
        ("https://", "no answer from the API server"),
        ("https://[::1", "no answer from the API server"),
    ],
)
def test_a_server_that_cannot_be_reached_is_named_without_its_password(server: str, text: str, tmp_path: Path) -> None:
    """A URL may hold a user and a password: neither gets into a message."""
    error = fails(str(kubeconfig(tmp_path, server, user={})))
    assert isinstance(error, Retry)
    assert re.search(text, str(error))


def test_a_proxy_that_cannot_be_reached_is_no_answer(tmp_path: Path) -> None:
    """Its password stays as secret as that of the server."""
    cluster = {"proxy-url": "http://user:SECRET@127.0.0.1:1"}
    error = fails(str(kubeconfig(tmp_path, "https://127.0.0.1:2", cluster=cluster)))
    assert type(error) is Retry
    assert "no answer from the API server https://127.0.0.1:2: " in str(error)


def test_a_proxy_that_refuses_is_no_answer(tmp_path: Path) -> None:
    """407 to the CONNECT, which aiohttp reports with the proxy's URL."""

    async def scenario() -> None:
        async with site(answer(407, b"")) as proxy:
            cluster = {"proxy-url": f"http://user:SECRET@127.0.0.1:{proxy.port}"}
            async with node(kubeconfig(tmp_path, "https://127.0.0.1:2", cluster=cluster)) as api:
                error = await outcome(api)
                assert type(error) is Retry
                assert "407" in str(error)

    run(scenario())


@pytest.mark.parametrize("proxy", ["socks5://user:SEC RET@127.0.0.1:1", "user:SECRET@127.0.0.1:1", "127.0.0.1:1"])
def test_a_proxy_that_is_none_for_http_is_told(proxy: str, tmp_path: Path) -> None:
    """It would be spoken to in a language that it does not know, for ever."""
    error = fails(str(kubeconfig(tmp_path, "https://127.0.0.1:2", cluster={"proxy-url": proxy})))
    assert isinstance(error, CredentialsError)
    assert "127.0.0.1:1 of proxy-url: it has to begin with http:// or https://" in str(error)
    assert "RET" not in str(error)


def test_the_proxy_of_the_environment_is_used(tmp_path: Path) -> None:
    """As kubectl does: the server of this name is nowhere but behind it."""

    async def scenario() -> None:
        async with site(answer(200, NODE)) as proxy:
            environ = {"http_proxy": f"http://127.0.0.1:{proxy.port}"}
            async with node(kubeconfig(tmp_path, "http://api.invalid:1"), environ=environ) as api:
                assert isinstance(await outcome(api), NodeState)
        assert proxy.requests[0].line.startswith("PATCH http://api.invalid:1/api/v1/nodes/n1/status")

    run(scenario())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_host_is_asked_without_a_proxy(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the proxy it would be another host, and the token is not for it."""
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror as error:
        pytest.skip(f"needs {host} in /etc/hosts: {error.strerror}")

    async def scenario() -> None:
        async with site(answer(200, NODE)) as server, site(answer(503, b"")) as proxy:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
            async with node(kubeconfig(tmp_path, f"http://{host}:{server.port}"), environ=os.environ) as api:
                assert isinstance(await outcome(api), NodeState)
            assert proxy.requests == []

    run(scenario())


def test_the_proxy_of_a_kubeconfig_comes_before_that_of_the_environment(tmp_path: Path) -> None:
    """Whatever NO_PROXY says of the server, as with kubectl."""

    async def scenario() -> None:
        async with site(answer(200, NODE)) as nearer, site(answer(503, b"")) as other:
            cluster = {"proxy-url": f"http://127.0.0.1:{nearer.port}"}
            config = kubeconfig(tmp_path, "http://api.invalid:1", cluster=cluster)
            for environ in ({"HTTP_PROXY": f"http://127.0.0.1:{other.port}"}, {"NO_PROXY": "*"}):
                async with node(config, environ=environ) as api:
                    assert isinstance(await outcome(api), NodeState)
            assert other.requests == []

    run(scenario())


@pytest.mark.parametrize("entry", ["machine 127.0.0.1", "default"])
def test_passwords_for_other_programs_are_left_alone(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ~/.netrc that names the API server, or all, is neither sent nor in the way of the token, with a proxy or without."""
    (tmp_path / "netrc").write_text(f"{entry} login user password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    async def scenario() -> None:
        async with site(answer(200, NODE)) as server:
            place = f"http://127.0.0.1:{server.port}"
            for url, environ in ((place, {}), ("http://api.invalid:1", {"HTTP_PROXY": place})):
                async with node(kubeconfig(tmp_path, url), environ=environ) as api:
                    assert isinstance(await outcome(api), NodeState)
        for request in server.requests:
            assert request.headers["authorization"] == f"Bearer {TOKEN}"
            assert "proxy-authorization" not in request.headers

    run(scenario())


# -- nothing is left behind


def test_a_cancelled_request_closes_its_connection(tmp_path: Path) -> None:
    """The daemon ends in the middle of a request without a warning, and another request works after it."""

    async def scenario() -> None:
        async with talk(tmp_path, silence, answer(200, NODE)) as (server, api):
            request = asyncio.create_task(api.patch(NodePatch()))
            await server.asked.wait()
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            assert isinstance(await outcome(api), NodeState)

    run(scenario())


def test_closing_twice_or_before_any_request_does_nothing(tmp_path: Path) -> None:
    """The end of the daemon does not depend on how far it came."""

    async def scenario() -> None:
        api = KubeNode("n1", Credentials(kubeconfig=str(tmp_path), environ={}), version="1")
        await api.close()
        await api.close()

    run(scenario())


@pytest.mark.parametrize(
    "behaviour",
    [refusal(500, "x"), UNAUTHORIZED, reset, answer(200, b"x")],
    ids=["500", "401", "reset", "garbage"],
)
def test_failures_leave_no_descriptor_open(behaviour: object, tmp_path: Path) -> None:
    """An outage may last for days."""

    async def scenario() -> None:
        async with talk(tmp_path, behaviour) as (_, api):
            await outcome(api)
            before = descriptors()
            for _ in range(20):
                assert isinstance(await outcome(api), ApiError)
            await api.close()
            await settled(lambda: descriptors() <= before)

    run(scenario())


async def settled(check: Callable[[], bool]) -> None:
    """Turn the loop until it is so: the server's end of a connection is closed a few turns after ours."""
    while not check():  # noqa: ASYNC110 - transports tell nobody when they close their sockets
        await asyncio.sleep(0)


def descriptors() -> int:
    """Return the number of open files of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


# -- requests side by side


def _place(folder: Path, server: Site) -> Path:
    return kubeconfig(folder, f"http://127.0.0.1:{server.port}")


def test_a_refused_request_ends_no_other(tmp_path: Path) -> None:
    """While one request waits for its answer, another is refused: credentials are dropped, and the first still gets its answer."""
    release = asyncio.Event()

    async def late(writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(answer(200, NODE))
        await writer.drain()

    async def scenario() -> None:
        async with site(late, refusal(403, RBAC.format("u"))) as server, node(_place(tmp_path, server)) as api:
            patient = asyncio.create_task(outcome(api))
            await server.asked.wait()
            assert isinstance(await outcome(api), Forbidden)
            release.set()
            assert isinstance(await patient, NodeState)

    run(scenario())


def test_a_server_that_does_not_answer_is_named_though_another_request_dropped_the_credentials(tmp_path: Path) -> None:
    """They were good enough to send the request: the delay is the server's."""

    async def scenario() -> None:
        async with (
            site(silence, refusal(403, RBAC.format("u"))) as server,
            node(_place(tmp_path, server), patience=1) as api,
        ):
            patient = asyncio.create_task(outcome(api))
            await server.asked.wait()
            assert isinstance(await outcome(api), Forbidden)
            assert str(await patient) == f"the API server http://127.0.0.1:{server.port} did not answer within 1 s"

    run(scenario())


class LateClient(ApiClient):
    """A client whose end can be held up."""

    released: asyncio.Event

    async def close(self) -> None:
        """Close once it is released."""
        await self.released.wait()
        await super().close()


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide(Credentials):
    """Credentials that two requests read at once; the client of the first, which finds another in use by then, closes late."""

    released: asyncio.Event = field(default_factory=asyncio.Event)
    _both: asyncio.Event = field(default_factory=asyncio.Event)
    _calls: list[None] = field(default_factory=list)

    async def connect(self) -> ApiClient:
        """Return a client; the first one once there is a second."""
        self._calls.append(None)
        first = len(self._calls) == 1
        client = await Credentials.connect(self)
        if not first:
            self._both.set()
            return client
        await self._both.wait()
        await client.close()
        late = LateClient(client.configuration)
        late.released = self.released
        return late


def test_a_request_does_not_use_a_client_that_another_has_dropped_meanwhile(tmp_path: Path) -> None:
    """Both have read the credentials, one fails on the client that they share, and the other connects again."""

    async def scenario() -> None:
        async with site(reset, answer(200, NODE)) as server:
            credentials = SideBySide(kubeconfig=str(_place(tmp_path, server)), environ={})
            connection = Connection(credentials, version="1.2")
            late, first = (asyncio.create_task(connection.request("GET", "/x")) for _ in range(2))
            with pytest.raises(Retry, match="Connection"):
                await first
            credentials.released.set()
            assert await late == NODE
            await connection.close()

    run(scenario())


# -- the watch


LIST = {"kind": "NodeList", "metadata": {"resourceVersion": "7"}, "items": [NODE]}


def event(kind: str, item: object) -> bytes:
    """Return an event as a watch sends it."""
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


async def watched(folder: Path, *answers: bytes) -> tuple[list[int | None], ApiError | None, list[Request]]:
    """Follow a watch to its end: the versions that it yields, the error, and what was asked."""
    versions: list[int | None] = []
    async with site(*answers) as server, node(_place(folder, server)) as api:
        try:
            async for state in api.watch():
                versions.append(None if state is None else state.version)  # noqa: PERF401 - what came before an error counts too
        except ApiError as error:
            return versions, error, server.requests
        return versions, None, server.requests


def changed(version: str) -> dict[str, Any]:
    """Return the Node at another version."""
    return {**NODE, "metadata": {**NODE["metadata"], "resourceVersion": version}}


def test_a_watch_begins_with_a_list_and_goes_on_from_its_version(tmp_path: Path) -> None:
    """Of one Node alone; what is no write to it, such as a bookmark or its end, is passed over."""

    async def scenario() -> None:
        stream = event("BOOKMARK", changed("8")) + event("MODIFIED", changed("9"))
        versions, error, asked = await watched(tmp_path, answer(200, LIST), answer(200, stream))
        assert (versions, error) == ([42, 9], None)
        assert all("fieldSelector=metadata.name%3Dn1" in request.line for request in asked)
        assert "watch=1" in asked[1].line
        assert "resourceVersion=7" in asked[1].line

    run(scenario())


def test_a_watch_that_the_server_has_ended_continues_without_a_list(tmp_path: Path) -> None:
    """Thousands of nodes must not list every hour; bookmarks keep the version recent. After an error the Node is listed again."""

    async def scenario() -> None:
        first, second = event("BOOKMARK", changed("11")), event("MODIFIED", changed("12"))
        answers = (answer(200, LIST), answer(200, first), answer(200, second), refusal(500, "x"), answer(200, LIST))
        async with site(*answers) as server, node(_place(tmp_path, server)) as api:
            seen = [[state and state.version async for state in api.watch()] for _ in range(2)]
            with pytest.raises(Retry):
                await anext(api.watch())
            state = await anext(api.watch())
        assert seen == [[42], [12]]
        assert state is not None
        assert state.version == 42
        versions = [re.search(r"resourceVersion=(\d+)", request.line) for request in server.requests]
        assert [version and version[1] for version in versions] == [None, "7", "11", "12", None]

    run(scenario())


def test_a_watch_tells_that_there_is_no_node(tmp_path: Path) -> None:
    """Deleted under its eyes, or, between two watches, no longer in the list."""

    async def scenario() -> None:
        stream = event("DELETED", changed("8")) + event("ADDED", changed("9"))
        versions, error, _ = await watched(tmp_path, answer(200, LIST), answer(200, stream))
        assert (versions, error) == ([42, None, 9], None)
        empty = {**LIST, "items": []}
        versions, error, _ = await watched(tmp_path, answer(200, empty), answer(200, event("ADDED", changed("9"))))
        assert (versions, error) == ([None, 9], None)

    run(scenario())


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ([answer(200, LIST), answer(200, event("ERROR", {"code": 410, "message": "too old"}))], Gone),
        ([answer(200, LIST), answer(200, event("ERROR", {"code": 500, "message": "etcd"}))], Retry),
        ([answer(200, LIST), answer(200, b"<html>\n")], Retry),
        ([answer(200, LIST), refusal(410, "too old")], Gone),
        ([answer(200, LIST), refusal(403, RBAC.format("u"))], Forbidden),
        ([refusal(403, RBAC.format("u"))], Forbidden),
        ([answer(200, {"items": ["x"], "metadata": {}})], Retry),
        ([answer(200, {"items": {"a": 1}, "metadata": {}})], Retry),
        ([answer(200, {"metadata": "x"})], Retry),
        ([answer(200, b"<html>")], Retry),
    ],
)
def test_a_watch_that_fails_is_one_of_our_errors(answers: list[bytes], kind: type[ApiError], tmp_path: Path) -> None:
    """A missing right, a forgotten version, and garbage in place of a list or an event."""

    async def scenario() -> None:
        _, error, _ = await watched(tmp_path, *answers)
        assert type(error) is kind

    run(scenario())


@pytest.mark.parametrize("code", [410, 500])
def test_a_watch_that_fails_gives_no_token_away(code: int, tmp_path: Path) -> None:
    """Not even where it is given back within a stream."""

    async def scenario() -> None:
        failure = event("ERROR", {"code": code, "message": CUT})
        _, error, _ = await watched(tmp_path, answer(200, LIST), answer(200, failure))
        assert isinstance(error, Retry)
        plain(error)

    run(scenario())


def test_a_watch_waits_for_no_plugin_that_hangs(tmp_path: Path) -> None:
    """Another request has dropped the credentials between the list and the stream: the watch ends like any request."""
    release = asyncio.Event()

    async def late(writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(answer(200, LIST))
        await writer.drain()

    async def scenario() -> None:
        async with site(late, refusal(403, RBAC.format("u"))) as server, contextlib.AsyncExitStack() as stack:
            api = await stack.enter_async_context(node(_place(tmp_path, server), patience=1))
            watch = asyncio.create_task(_versions(api))
            await server.asked.wait()
            assert isinstance(await outcome(api), Forbidden)
            plugin(tmp_path, f"http://127.0.0.1:{server.port}", "sleep 60")
            release.set()
            with pytest.raises(CredentialsError, match=r"cannot use the kubeconfig .*: it took more than 1 s"):
                await watch

    run(scenario())


async def _versions(api: KubeNode) -> list[int | None]:
    return [None if state is None else state.version async for state in api.watch()]
