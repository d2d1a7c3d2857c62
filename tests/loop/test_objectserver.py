"""The server of the slices behaves as what it stands for: versions, conflicts, watches, gates."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from devwatch.core.errors import ApiError, Conflict, Gone, Missing, Refused, Retry, Unserved
from devwatch.kube.watch import LISTED, ObjectWatch
from support.objectserver import CLAIMS, CLASSES, GROUP, SLICES, ObjectServer
from support.virtualtime import run, virtual

if TYPE_CHECKING:
    from support.objectserver import Object

TAINT = {"key": "devwatch.io/unplugged", "effect": "NoSchedule"}


def slice_(name: str = "s", *, node: str = "n1", pool: str = "p", **more: Any) -> Object:  # noqa: ANN401  any field of a device
    """Return a slice with one device."""
    device = {"name": "a", "attributes": {"model": {"string": "m"}}, **more}
    spec = {"driver": "devwatch.io", "nodeName": node, "pool": {"name": pool, "generation": 1}, "devices": [device]}
    return {"metadata": {"name": name}, "spec": spec}


def server(**settings: Any) -> ObjectServer:  # noqa: ANN401  any of its settings
    """Return a server whose clock stands still."""
    return ObjectServer(clock=lambda: 0.0, **settings)


def ask(objects: ObjectServer, method: str, path: str, body: object = None, selector: str = "") -> Object:
    """Make one request."""
    query = (("fieldSelector", selector),) if selector else ()
    return run(lambda: objects.request(method, path, query=query, body=body))


def test_an_object_is_created_once_and_has_a_uid_and_a_version() -> None:
    """A second one of its name is a conflict; a claim has its namespace."""
    objects = server()
    first = ask(objects, "POST", SLICES, slice_())
    assert first["metadata"]["uid"] != ""
    assert ask(objects, "GET", f"{SLICES}/s") == first
    with pytest.raises(Conflict, match="already exists"):
        ask(objects, "POST", SLICES, slice_())
    claims = f"{GROUP}/namespaces/home/resourceclaims"
    ask(objects, "POST", claims, {"metadata": {"name": "c"}, "spec": {}})
    assert ask(objects, "GET", f"{claims}/c")["metadata"]["name"] == "c"
    assert [each["metadata"]["name"] for each in objects.all(CLAIMS)] == ["c"]
    with pytest.raises(Missing):
        ask(objects, "GET", f"{GROUP}/namespaces/work/resourceclaims/c")


def test_a_put_needs_the_version_that_is_stored() -> None:
    """Without one it replaces whatever there is; one that changes nothing makes no version."""
    objects = server()
    first = ask(objects, "POST", SLICES, slice_())
    changed = ask(objects, "PUT", f"{SLICES}/s", slice_(attributes={}))
    assert int(changed["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
    assert changed["metadata"]["uid"] == first["metadata"]["uid"]
    assert ask(objects, "PUT", f"{SLICES}/s", changed) == changed
    with pytest.raises(Conflict, match="resourceVersion"):
        ask(objects, "PUT", f"{SLICES}/s", first)
    with pytest.raises(Missing):
        ask(objects, "PUT", f"{SLICES}/t", slice_("t"))


def test_a_deletion_may_ask_for_a_uid() -> None:
    """Another object of the name stays."""
    objects = server()
    uid = ask(objects, "POST", SLICES, slice_())["metadata"]["uid"]
    with pytest.raises(Conflict, match="uid"):
        ask(objects, "DELETE", f"{SLICES}/s", {"preconditions": {"uid": "other"}})
    ask(objects, "DELETE", f"{SLICES}/s", {"preconditions": {"uid": uid}})
    with pytest.raises(Missing):
        ask(objects, "DELETE", f"{SLICES}/s")


def test_a_list_has_what_the_selector_selects() -> None:
    """By driver and node."""
    objects = server()
    for name, node in (("s", "n1"), ("t", "n2")):
        ask(objects, "POST", SLICES, slice_(name, node=node))
    found = ask(objects, "GET", SLICES, selector="spec.driver=devwatch.io,spec.nodeName=n2")
    assert [each["metadata"]["name"] for each in found["items"]] == ["t"]
    objects.delete_all(SLICES, "spec.nodeName=n2")
    assert [each["metadata"]["name"] for each in objects.all(SLICES)] == ["s"]


def test_a_taint_gets_a_time_each_time_that_it_comes_without_one() -> None:
    """One that comes with a time keeps it."""
    objects = server()
    times = []
    for taint in (TAINT, TAINT, {**TAINT, "timeAdded": "t"}):
        stored = objects.put(SLICES, slice_(taints=[dict(taint)]))
        times += [taint["timeAdded"] for taint in stored["spec"]["devices"][0]["taints"]]
    assert len(set(times)) == 3
    assert times[2] == "t"


def test_without_the_gates_fields_are_dropped_unless_they_are_in_use() -> None:
    """Silently, with a success."""
    objects = server(taints=False, extended=False)
    assert "taints" not in objects.put(SLICES, slice_(taints=[dict(TAINT)]))["spec"]["devices"][0]
    item = {"metadata": {"name": "c"}, "spec": {"extendedResourceName": "a/b"}}
    assert objects.put(CLASSES, item)["spec"] == {}
    objects.taints = True
    objects.put(SLICES, slice_(taints=[dict(TAINT)]))
    objects.taints = False
    assert objects.put(SLICES, slice_(taints=[dict(TAINT)]))["spec"]["devices"][0]["taints"]


@pytest.mark.parametrize(
    "wrong",
    [slice_(node="n2"), slice_(pool="q"), slice_(attributes={"model": {"string": "x" * 65}})],
    ids=["node", "pool", "attribute"],
)
def test_a_slice_is_refused_as_the_api_refuses_it(wrong: Object) -> None:
    """What is immutable, and values that are too long."""
    objects = server()
    objects.put(SLICES, slice_())
    with pytest.raises(Refused):
        objects.put(SLICES, wrong)


@pytest.mark.parametrize(("number", "taints"), [(129, []), (65, [TAINT])])
def test_a_slice_has_a_limit_of_devices(number: int, taints: list[Object]) -> None:
    """128, and 64 where one has a taint; and no name twice."""
    many = slice_()
    many["spec"]["devices"] = [{"name": f"d{index}", "taints": taints} for index in range(number - 1)]
    objects = server()
    objects.put(SLICES, many)
    many["spec"]["devices"].append({"name": "last", "taints": taints})
    with pytest.raises(Refused):
        objects.put(SLICES, many)
    with pytest.raises(Refused):
        objects.put(SLICES, {**slice_(), "spec": {**slice_()["spec"], "devices": [{"name": "a"}, {"name": "a"}]}})
    empty = objects.put(SLICES, {**slice_(), "spec": {**slice_()["spec"], "devices": []}})
    assert "devices" not in empty["spec"]


def test_what_is_not_served_is_not_found() -> None:
    """Neither the API that is off nor another path."""
    with pytest.raises(Unserved):
        ask(server(served=False), "GET", SLICES)
    with pytest.raises(Unserved):
        ask(server(), "GET", "/apis/resource.k8s.io/v1beta1/resourceslices")


def test_a_failure_changes_nothing_unless_the_response_alone_is_lost() -> None:
    """Each request is recorded."""
    objects = server(fail=lambda _method, _path: Retry("down"))
    for lose in (False, True):
        objects.lose = lose
        with pytest.raises(Retry):
            ask(objects, "POST", SLICES, slice_())
        assert len(objects.all(SLICES)) == lose
    assert [call.method for call in objects.calls] == ["POST", "POST"]


def test_a_webhook_changes_what_is_written() -> None:
    """The answer shows it."""
    objects = server(change=lambda item: item["spec"].update(note="x"))
    assert ask(objects, "POST", SLICES, slice_())["spec"]["note"] == "x"


async def _events(watch: ObjectWatch, into: list[tuple[str, list[str]]]) -> None:
    async for kind, items in watch.events():
        into.append((kind, [item["metadata"]["name"] for item in items]))


@virtual
async def test_a_watch_begins_with_a_list_and_continues_where_the_server_ended_it() -> None:
    """By the version of the last event or bookmark; nothing between the two is missed, and no list is asked for again."""
    objects, seen = server(), list[tuple[str, list[str]]]()
    objects.put(SLICES, slice_("s"))
    watch = ObjectWatch(server=objects, path=SLICES, selector="spec.nodeName=n1")
    first = asyncio.create_task(_events(watch, seen))
    await asyncio.sleep(1)
    objects.put(SLICES, slice_("t"))
    objects.delete_all(SLICES, "metadata.name=s")
    objects.put(SLICES, slice_("other", node="n2"))
    await asyncio.sleep(70)
    objects.compact()
    assert objects.watches == 1
    objects.end_watches()
    await first
    objects.put(SLICES, slice_("t", attributes={}))
    second = asyncio.create_task(_events(watch, seen))
    await asyncio.sleep(1)
    objects.end_watches()
    await second
    assert seen == [(LISTED, ["s"]), ("ADDED", ["t"]), ("DELETED", ["s"]), ("MODIFIED", ["t"])]
    assert [call.method for call in objects.calls] == ["GET"]
    assert objects.watches == 0


@virtual
async def test_a_watch_from_a_forgotten_version_is_told_so_and_the_next_one_lists() -> None:
    """410, as an event of the stream."""
    objects, seen = server(), list[tuple[str, list[str]]]()
    watch = ObjectWatch(server=objects, path=SLICES, selector="")
    task = asyncio.create_task(_events(watch, seen))
    await asyncio.sleep(1)
    objects.end_watches()
    await task
    objects.put(SLICES, slice_("s"))
    objects.compact()
    with pytest.raises(Gone):
        await _events(watch, seen)
    task = asyncio.create_task(_events(watch, seen))
    await asyncio.sleep(1)
    objects.end_watches(Retry("reset"))
    with pytest.raises(Retry):
        await task
    assert seen == [(LISTED, []), (LISTED, ["s"])]


@virtual
async def test_a_watch_can_be_forbidden_and_a_silent_one_is_given_up() -> None:
    """The list is not."""
    objects, seen = server(), list[tuple[str, list[str]]]()
    objects.fail = lambda method, _path: ApiError("no") if method == "WATCH" else None
    watch = ObjectWatch(server=objects, path=SLICES, selector="")
    with pytest.raises(ApiError, match="no"):
        await _events(watch, seen)
    objects.fail, objects.mute = (lambda _method, _path: None), True
    with pytest.raises(Retry, match="silent"):
        await _events(watch, seen)
    assert seen == [(LISTED, []), (LISTED, [])]
