"""The record of the claims: what one daemon writes the next one reads, and what becomes of a record that is none."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from devwatch.core.errors import KubeletError
from devwatch.core.slots import Identity
from devwatch.kubelet.claimrecord import ClaimRecord
from support.claims import known, prepared

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ODD = Identity(vendor="10c4", product=None, serial="\udcff\N{SNOWMAN}\0", socket="usb-1", place="01:0")
CLAIMS = (
    prepared("a", "b", uid="1"),
    prepared("c", uid="2", admin=True, spared=True, known=known(identity=ODD, in_socket=True)),
)


def test_the_next_daemon_reads_what_was_written(tmp_path: Path) -> None:
    """All of it, in order, whatever a device has for a serial; only root may read it."""
    ClaimRecord(tmp_path / "devwatch.io").write(CLAIMS)
    assert ClaimRecord(tmp_path / "devwatch.io").read() == (CLAIMS, "")
    path = tmp_path / "devwatch.io" / "claims.json"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o750)


def test_without_claims_there_is_no_record(tmp_path: Path) -> None:
    """So that its existence tells that a former daemon has some."""
    record = ClaimRecord(tmp_path)
    assert record.read() == ((), "")
    assert ClaimRecord(tmp_path / "none").read() == ((), "")
    record.write(CLAIMS)
    record.write(())
    record.write(())
    assert list(tmp_path.iterdir()) == []


def damage(path: str, value: object) -> str:
    """Return a record with one value replaced; its path has the keys of the first claim and of its first device."""
    (claim, _), parts = (json.loads(json.dumps(each)) for each in (_entries(), path.split(".")))
    place: Any = claim["devices"][0] if parts[0] in claim["devices"][0] else claim
    for part in parts[:-1]:
        place = place[part]
    place[parts[-1]] = value
    return json.dumps({"claims": [claim]})


def _entries() -> list[dict[str, Any]]:
    names = ("vendor", "product", "serial", "socket", "place")
    identity = {name: getattr(known().identity, name) for name in names}
    device = {
        "request": "stick",
        "pool": "p",
        "id": "a",
        "known": {"resource": "x/y", "path": "/dev/y", "identity": identity, "in_socket": False},
        "admin": False,
        "spared": False,
    }
    return [{"reference": {"namespace": "h", "name": "c", "uid": "1"}, "devices": [device]}, {}]


def test_a_sound_record_is_one(tmp_path: Path) -> None:
    """What the next test damages."""
    (tmp_path / "claims.json").write_text(damage("pool", "q"))
    ((claim,), wrong) = ClaimRecord(tmp_path).read()
    assert (claim.devices[0].pool, wrong) == ("q", "")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b'{"claims": 1}',
        b'{"claims": [1]}',
        b'{"claims": [{}]}',
        b"[" * 100_000,
        damage("id", None).encode(),
        damage("request", 1).encode(),
        damage("request", "a/b").encode(),
        damage("pool", "\ud800").encode(),
        damage("known.resource", "\ud800").encode(),
        damage("reference.name", "\ud800").encode(),
        damage("known.path", []).encode(),
        damage("known.identity", {}).encode(),
        damage("known.identity.socket", None).encode(),
        damage("known.identity.vendor", 1).encode(),
        damage("reference.uid", "../../etc/x").encode(),
        damage("reference", {"namespace": "h", "name": "c"}).encode(),
        damage("reference.more", "x").encode(),
    ],
)
def test_a_damaged_record_is_set_aside_and_told(content: bytes, tmp_path: Path) -> None:
    """Nothing of it is believed, and the next one can be written."""
    path, aside = tmp_path / "claims.json", tmp_path / "claims.damaged"
    path.write_bytes(content)
    record = ClaimRecord(tmp_path)
    claims, wrong = record.read()
    assert claims == ()
    assert wrong.startswith(f"{path} is damaged (")
    assert wrong.endswith(f" and now {aside}")
    assert aside.read_bytes() == content
    record.write(CLAIMS)
    assert record.read() == (CLAIMS, "")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_file_that_would_block_the_reader_is_set_aside(make: Callable[[Path], None], tmp_path: Path) -> None:
    """A pipe without a writer; or it is none at all."""
    make(tmp_path / "claims.json")
    claims, wrong = ClaimRecord(tmp_path).read()
    assert (claims, "is damaged" in wrong) == ((), True)


def test_a_record_that_cannot_be_read_is_an_error_and_no_empty_record(tmp_path: Path) -> None:
    """A link to itself stands for any reason."""
    path = tmp_path / "claims.json"
    path.symlink_to(path)
    with pytest.raises(KubeletError, match=rf"^{path}: "):
        ClaimRecord(tmp_path).read()


def test_a_record_that_cannot_be_written_leaves_the_former_one(tmp_path: Path) -> None:
    """And says why, with the cure."""
    record = ClaimRecord(tmp_path)
    record.write(CLAIMS)
    (tmp_path / ".claims.json.new" / "inside").mkdir(parents=True)
    with pytest.raises(KubeletError):
        record.write((replace(CLAIMS[0], devices=()),))
    assert record.read() == (CLAIMS, "")
    with pytest.raises(KubeletError, match="No such file") as error:
        ClaimRecord(tmp_path / "none" / "devwatch.io").write(CLAIMS)
    assert error.value.hint == f"create {tmp_path / 'none' / 'devwatch.io'}, or mount it into the container"
