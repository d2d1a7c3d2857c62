"""The files of claims: whatever is in them, a daemon starts, says what is damaged, and gives pods no devnode but that of the stick."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from hypothesis import strategies as st

from devwatch.agent.claims import ClaimDriver
from devwatch.agent.clock import Clock
from devwatch.core.errors import KubeletError
from devwatch.core.inventory import Inventory
from devwatch.core.names import DRIVER
from devwatch.core.rules import Count
from devwatch.core.slots import Slots
from devwatch.kube.claims import read_claim
from devwatch.kubelet.cdi import find_cdi_files
from devwatch.kubelet.claimrecord import ClaimRecord
from devwatch.kubelet.driver import Driver
from devwatch.kubelet.driverfiles import driver_folder, driver_socket
from devwatch.kubelet.protocol import KubeletChannel
from fuzz import wire
from fuzz.book import Book
from fuzz.target import Feed, Target
from support import virtualtime
from support.build import ZIGBEE, device, rule, scan
from support.claims import POOL, known, prepared
from support.drakubelet import DraKubelet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from devwatch.core.claims import PreparedClaim

_STICK = device()
(_SLOT,) = Slots(ZIGBEE, Count.DEVICE, ()).update((_STICK,), 1, certain=True)
_SOUND = prepared(_SLOT.id, known=known(identity=_SLOT.identity))
_CDI_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*[A-Za-z0-9]")
_FOREIGN = "nvidia.com-gpu.json"
"""A file of another driver."""
_RECORD, _CDI = range(2)
"""Which file the bytes are: the record; one in the folder of CDI files, with its name before a NUL."""


# -- the files


def _directory(path: Path, _content: bytes) -> None:
    path.mkdir()


def _full_directory(path: Path, _content: bytes) -> None:
    (path / "inside").mkdir(parents=True)


def _link_to_itself(path: Path, _content: bytes) -> None:
    path.symlink_to(path)


def _link(path: Path, content: bytes) -> None:
    target = path.parents[2] / "target"
    target.write_bytes(content)
    path.symlink_to(target)


def _pipe(path: Path, _content: bytes) -> None:
    os.mkfifo(path)


def _partial(path: Path, content: bytes) -> None:
    path.with_name(f".{path.name}.new").write_bytes(content)


def _blocked(path: Path, content: bytes) -> None:
    """Write a file that can neither be written again nor set aside."""
    path.write_bytes(content)
    for name in (f".{path.name}.new", f"{path.stem}.damaged"):
        _full_directory(path.with_name(name), b"")


_KINDS: tuple[Callable[[Path, bytes], object], ...] = (
    *(Path.write_bytes, _directory, _full_directory, _link_to_itself),
    *(_link, _pipe, _partial, _blocked),
)


class _Requests:
    """An API server that answers with an object of another kind, except for the claims that it is to have."""

    def __init__(self) -> None:
        """Have no claim."""
        self.claims: dict[str, PreparedClaim] = {}
        """By path."""

    async def request(
        self, method: str, path: str, *, query: Sequence[tuple[str, str]] = (), body: object = None
    ) -> dict[str, Any]:
        """Answer, as long as the path can be sent."""
        assert (method, query, body) == ("GET", (), None)
        assert path.isascii()
        if (claim := self.claims.get(path)) is None:
            return {}
        results = [
            {"request": each.request, "driver": DRIVER, "pool": each.pool, "device": each.id, "adminAccess": each.admin}
            for each in claim.devices
        ]
        status = {"allocation": {"devices": {"results": results}}}
        return {"kind": "ResourceClaim", "metadata": {"uid": claim.reference.uid}, "status": status}

    def put(self, claim: PreparedClaim) -> None:
        """Have a claim as it was prepared."""
        namespace, name = (quote(text, safe="") for text in (claim.reference.namespace, claim.reference.name))
        self.claims[f"/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaims/{name}"] = claim


@dataclass(slots=True, kw_only=True)
class _World:
    """A node on which a daemon starts, again and again."""

    home: Path
    book: Book
    failures: list[object] = field(default_factory=list)
    """What went wrong in a callback, where no caller hears it."""

    def feed(self, data: bytes) -> None:
        """Put one file there, of a kind and in a place that the first byte says, and start a daemon."""
        self.failures.clear()
        self.book.lines()
        place, kind = divmod((data or b"\0")[0] % 16, len(_KINDS))
        home = self.home
        for folder in (driver_folder(home), home / "plugins_registry", home / "run" / "cdi"):
            _empty(folder)
        (home / "run" / "cdi" / _FOREIGN).write_bytes(b"{}")
        if place == _CDI:
            ClaimRecord(driver_folder(home)).write((_SOUND,))
        _KINDS[kind](*_file_of(home, place, data[1:]))
        virtualtime.run(lambda: self._live(home))
        assert not self.failures, self.failures
        lines = self.book.lines()
        assert all(line.isprintable() for line in lines), lines
        assert not any('"library.logged"' in line for line in lines), lines

    async def _live(self, home: Path) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.failures.append(context))
        server = _Requests()
        driver = ClaimDriver(
            lambda: Driver(folder=home, cdi=home / "run" / "cdi"),
            recorded=lambda: True,
            read=partial(read_claim, server),
            pool=POOL,
            telemetry=self.book.telemetry,
            clock=Clock(now=loop.time, unix=lambda: 0.0, jitter=lambda: 0.5),
        )
        driver.configure((rule(),))
        if driver.claims.files is None:
            lines = self.book.lines()
            assert len(lines) == 1, lines
            assert '"kubelet.lost"' in lines[0], lines
            assert driver.held is None
            return
        _scan(driver)
        _check_record(home, driver)
        _check_cdi(home, driver)
        await _read(driver)
        await _check_answers(home, driver, server)


def _empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _file_of(home: Path, place: int, content: bytes) -> tuple[Path, bytes]:
    if place == _RECORD:
        return driver_folder(home) / "claims.json", content
    name, _, content = content.partition(b"\0")
    return home / "run" / "cdi" / f"devwatch.io-claim_{os.fsdecode(name[:200].replace(b'/', b'_'))}.json", content


def _scan(driver: ClaimDriver) -> None:
    """Find the stick, whatever the record told of its resource: that is not configured any more, so it keeps its path."""
    recalled, inventory = driver.claims.recall(), Inventory()
    inventory.observe(scan(_STICK))
    slots = {name: Slots(name, Count.DEVICE, recalled.get(name, ())) for name in (ZIGBEE, *recalled)}
    found = {
        name: own.update(inventory.present if name == ZIGBEE else (), 1, certain=True) for name, own in slots.items()
    }
    driver.update(found, inventory, {})


def _check_record(home: Path, driver: ClaimDriver) -> None:
    """Check that what was accepted is what the next daemon reads."""
    if driver.claims.fault:
        return
    record, claims = ClaimRecord(driver_folder(home)), driver.claims.by_uid
    assert _by_uid(record) == claims
    with contextlib.suppress(KubeletError):  # blocked; the former one is left then
        record.write(driver.holders)
    assert _by_uid(record) == claims


def _by_uid(record: ClaimRecord) -> dict[str, PreparedClaim]:
    claims, wrong = record.read()
    assert not wrong, wrong
    return {claim.reference.uid: claim for claim in claims}


def _check_cdi(home: Path, driver: ClaimDriver) -> None:
    """Check that each file of ours is of a claim, can be read, and names no devnode but that of the stick."""
    folder = home / "run" / "cdi"
    assert (folder / _FOREIGN).read_bytes() == b"{}"
    if driver.claims.fault:
        return
    uids = {claim.reference.uid for claim in driver.holders}
    for path in find_cdi_files(folder):
        assert path.name.removeprefix("devwatch.io-claim_").removesuffix(".json") in uids, path
        text = path.read_text("ascii")
        assert text.replace("\n", "").isprintable(), text
        for each in json.loads(text)["devices"]:
            assert _CDI_NAME.fullmatch(each["name"]), each
            nodes, (variable,) = each["containerEdits"]["deviceNodes"], each["containerEdits"]["env"]
            assert [node["hostPath"] for node in nodes] == [_STICK.devnode]
            assert re.fullmatch("DEVICE_[A-Z0-9_]*", variable.partition("=")[0]), variable


async def _read(driver: ClaimDriver) -> None:
    """Read the claims that are to be read now."""
    while (task := driver.tasks[0].action(asyncio.get_running_loop().time())) is not None:
        await task.run()


async def _check_answers(home: Path, driver: ClaimDriver, api: _Requests) -> None:
    """Check that the kubelet gets the same devices as before, as long as they are allocated."""
    for claim in filter(_can_be_allocated, driver.holders):
        api.put(claim)
    claims = tuple(api.claims.values())
    if not claims:
        return
    server = Driver(folder=home, cdi=home).server(driver)
    await server.start()
    kubelet = DraKubelet(folder=home, channel=KubeletChannel(path=str(driver_socket(home))))
    call = asyncio.create_task(kubelet.prepare(*(claim.reference for claim in claims)))
    while not call.done():
        await asyncio.sleep(0.1)
        await _read(driver)
    answers = call.result()
    for claim in claims:
        given = [
            (*each.request_names, each.pool_name, each.device_name) for each in answers[claim.reference.uid].devices
        ]
        assert given == [(each.request, each.pool, each.id) for each in claim.devices]
    kubelet.disconnect()
    await server.close()


def _can_be_allocated(claim: PreparedClaim) -> bool:
    """Return whether the API server can have a claim: what a record tells of may be no claim of this node."""
    return all(each.pool == POOL and "/" not in each.request for each in claim.devices)


# -- what they may be

_TEXTS = wire.TEXTS | st.sampled_from(("\ud800", "\udcff", "stick", "10c4", "/dev/zigbee", "/dev/sda", "../x", "A=b,c"))


def _mostly(*usual: str) -> st.SearchStrategy[str]:
    """Return one of these texts, and now and then any: a claim has many, and one that is not sound spoils the record."""
    return st.integers(0, 19).flatmap(lambda number: st.sampled_from(usual) if number else _TEXTS)


_IDENTITIES = st.just(asdict(_SLOT.identity)) | st.fixed_dictionaries(
    {"vendor": _TEXTS | st.none(), "product": _TEXTS | st.none(), "serial": _TEXTS | st.none(), "socket": _TEXTS},
    optional={"path": _TEXTS, "place": _TEXTS},
)
_KNOWN = st.fixed_dictionaries(
    {
        "resource": _mostly(ZIGBEE, ZIGBEE, "a.io/x", "\x1b[31m"),
        "path": _mostly("/dev/zigbee", "\x1b[31m", "\u2028", "../../etc", '"}]}', "\N{PILE OF POO}", "a=b,c", "\x00"),
        "identity": _IDENTITIES,
        "in_socket": st.booleans(),
    }
)
_DEVICES = st.fixed_dictionaries(
    {
        "request": _mostly("stick", "a", "b", "x" * 60),
        "pool": _mostly(POOL),
        "id": _mostly(_SLOT.id, _SLOT.id, "a", "\x1b[31m", ""),
        "known": _KNOWN,
        "admin": st.booleans(),
        "spared": st.booleans(),
    }
)
_REFERENCES = st.fixed_dictionaries(
    {"namespace": _mostly("home", "%0a"), "name": _mostly("c", "../x"), "uid": _mostly("1", "2", "a-b", "x" * 300)}
)
_CLAIMS = st.lists(
    st.fixed_dictionaries({"reference": _REFERENCES, "devices": st.lists(_DEVICES, max_size=2)}), min_size=1, max_size=3
)
_TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def _spoiled(draw: st.DrawFn) -> dict[str, Any]:
    """Return a record with another value in one place, or without one."""
    record: Any = {"claims": draw(_CLAIMS)}
    place, key = record, "claims"
    while place[key] and isinstance(place[key], dict | list) and draw(st.integers(0, 5)):
        place = place[key]
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    if isinstance(place, dict) and draw(st.booleans()):
        del place[key]
    else:
        place[key] = draw(_TREES)
    spoiled: dict[str, Any] = record
    return spoiled


def _text(record: object) -> bytes:
    return json.dumps(record).encode()


_WHOLE = _CLAIMS.map(lambda claims: _text({"claims": claims}))
_CUT = st.tuples(_WHOLE, st.integers(0, 900), st.binary(max_size=2)).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + 1 :]
)
_RECORDS = (_WHOLE, _WHOLE, _spoiled().map(_text), _CUT, _TREES.map(_text), st.binary(max_size=40))
_NAMES = st.sampled_from((_SOUND.reference.uid.encode(), b"1", b"", b"\xff\n", b"x" * 300, b"..", b"\x1b[31m"))


def _of_record(kind: int) -> st.SearchStrategy[bytes]:
    contents = st.integers(0, len(_RECORDS) - 1).flatmap(_RECORDS.__getitem__)
    return contents.map(lambda content: bytes([_RECORD * len(_KINDS) + kind]) + content)


def _of_cdi(kind: int) -> st.SearchStrategy[bytes]:
    return st.tuples(_NAMES, st.binary(max_size=20) | _TREES.map(_text)).map(
        lambda parts: bytes([_CDI * len(_KINDS) + kind]) + b"\0".join(parts)
    )


_GRAMMAR = st.integers(0, 3 * len(_KINDS) - 1).flatmap(
    lambda number: _of_cdi(number) if number < len(_KINDS) else _of_record(max(number - 2 * len(_KINDS), 0))
)
_TWO = {"claims": [asdict(_SOUND), asdict(prepared("a", "b", uid="2", admin=True, spared=True))]}


@contextlib.contextmanager
def _open() -> Iterator[Feed]:
    with tempfile.TemporaryDirectory(prefix="dw-") as home:
        yield _World(home=Path(home), book=Book.of("json")).feed


CLAIMS = Target(
    open=_open,
    grammar=_GRAMMAR,
    seeds=(
        b"\0" + _text(_TWO),
        b"\0" + _text({"claims": []}),
        *(bytes([kind]) + _text(_TWO) for kind in range(1, len(_KINDS))),
        *(
            bytes([_CDI * len(_KINDS) + kind]) + _SOUND.reference.uid.encode() + b'\0{"devices": []}'
            for kind in range(len(_KINDS))
        ),
    ),
)
