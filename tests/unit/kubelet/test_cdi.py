"""The CDI files: what a container runtime reads, and what becomes of faults of the folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from devwatch.core.errors import KubeletError
from devwatch.core.handover import Allocation, lay_out
from devwatch.kubelet.cdi import CdiFolder
from support.build import ZIGBEE

if TYPE_CHECKING:
    from pathlib import Path


def one(devnode: str = "/dev/ttyUSB0", name: str = "1-stick") -> dict[str, Allocation]:
    """Return the CDI devices of a claim with one request."""
    return {name: lay_out(ZIGBEE, "/dev/zigbee", [devnode])}


def names(folder: Path) -> list[str]:
    """Return all names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def content(folder: Path, uid: str = "1") -> Any:  # noqa: ANN401 - JSON
    """Return what a runtime reads of a claim."""
    return json.loads((folder / f"devwatch.io-claim_{uid}.json").read_text())


def test_a_runtime_finds_one_file_a_claim_with_one_device_a_request(tmp_path: Path) -> None:
    """As the specification has it: no more than version 0.5.0 knows, no owner, and not the permissions of the host."""
    CdiFolder(tmp_path).update({"1": one() | one("/dev/ttyUSB1", "1-other")})
    node = {"path": "/dev/zigbee", "hostPath": "/dev/ttyUSB0", "permissions": "rw", "fileMode": 0o660}
    env = ["DEVICE_EXAMPLE_COM_ZIGBEE=/dev/zigbee"]
    assert content(tmp_path) == {
        "cdiVersion": "0.5.0",
        "kind": "devwatch.io/claim",
        "devices": [
            {"name": "1-stick", "containerEdits": {"env": env, "deviceNodes": [node]}},
            {
                "name": "1-other",
                "containerEdits": {"env": env, "deviceNodes": [{**node, "hostPath": "/dev/ttyUSB1"}]},
            },
        ],
    }
    assert (tmp_path / "devwatch.io-claim_1.json").stat().st_mode & 0o777 == 0o644


def test_a_lost_device_is_taken_out_and_a_returned_one_put_in(tmp_path: Path) -> None:
    """A claim without any has no file: the specification demands a device in it."""
    folder = CdiFolder(tmp_path)
    folder.update({"1": one() | one("/dev/ttyUSB1", "1-other"), "2": one(name="2-stick")})
    folder.update({"1": one(), "2": {}})
    assert [each["name"] for each in content(tmp_path)["devices"]] == ["1-stick"]
    assert names(tmp_path) == ["devwatch.io-claim_1.json"]
    folder.update({"1": one("/dev/ttyUSB7"), "2": one(name="2-stick")})
    (device,) = content(tmp_path)["devices"]
    assert device["containerEdits"]["deviceNodes"][0]["hostPath"] == "/dev/ttyUSB7"
    assert len(names(tmp_path)) == 2


def test_what_a_former_daemon_left_is_replaced_or_removed_and_nothing_else(tmp_path: Path) -> None:
    """Also half a file, and one that is no text; the files of other drivers stay."""
    for name in (
        "devwatch.io-claim_2.json",
        ".devwatch.io-claim_1.json.new",
        "nvidia.com-gpu.json",
        "devwatch.io.json",
    ):
        (tmp_path / name).write_bytes(b"\xff")
    CdiFolder(tmp_path).update({"1": one()})
    assert names(tmp_path) == ["devwatch.io-claim_1.json", "devwatch.io.json", "nvidia.com-gpu.json"]


def test_a_file_that_is_right_stays_the_same_file(tmp_path: Path) -> None:
    """At each cycle, and for the next daemon: a runtime reads again what changes."""
    folder = CdiFolder(tmp_path)
    folder.update({"1": one()})
    first = (tmp_path / "devwatch.io-claim_1.json").stat()
    folder.update({"1": one()})
    CdiFolder(tmp_path).update({"1": one()})
    after = (tmp_path / "devwatch.io-claim_1.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)


@pytest.mark.parametrize("how", ["removed", "changed"])
def test_a_file_that_another_program_touches_is_repaired(how: str, tmp_path: Path) -> None:
    """The folder is a tmpfs, which may be emptied."""
    folder, path = CdiFolder(tmp_path), tmp_path / "devwatch.io-claim_1.json"
    folder.update({"1": one()})
    if how == "removed":
        path.unlink()
    else:
        path.write_text("{}")
    folder.update({"1": one()})
    assert content(tmp_path)["devices"]


def test_two_devices_that_change_their_names_are_never_both_at_one(tmp_path: Path) -> None:
    """A file that cannot be written is gone at least: the other has its devnode by now."""
    folder = CdiFolder(tmp_path)
    folder.update({"1": one("/dev/ttyUSB0"), "2": one("/dev/ttyUSB1", "2-stick")})
    (tmp_path / ".devwatch.io-claim_1.json.new" / "inside").mkdir(parents=True)
    with pytest.raises(KubeletError):
        folder.update({"1": one("/dev/ttyUSB1"), "2": one("/dev/ttyUSB0", "2-stick")})
    assert names(tmp_path) == [".devwatch.io-claim_1.json.new", "devwatch.io-claim_2.json"]


def test_a_folder_is_made_and_one_whose_parent_is_missing_is_an_error_with_the_cure(tmp_path: Path) -> None:
    """`/var/run` is always there, unless it is not mounted."""
    CdiFolder(tmp_path / "cdi").update({})
    assert (tmp_path / "cdi").is_dir()
    folder = CdiFolder(tmp_path / "none" / "cdi")
    with pytest.raises(KubeletError, match="none/cdi: No such file or directory") as error:
        folder.update({"1": one()})
    assert error.value.hint == f"create {tmp_path / 'none'}, or mount it into the container"
    (tmp_path / "none").mkdir()
    folder.update({"1": one()})
    assert content(tmp_path / "none" / "cdi")


def test_one_file_that_cannot_be_removed_keeps_no_other_and_is_tried_again(tmp_path: Path) -> None:
    """A folder in the place of a file."""
    blocked = tmp_path / "devwatch.io-claim_1.json"
    blocked.mkdir()
    folder = CdiFolder(tmp_path)
    for _ in range(2):
        with pytest.raises(KubeletError, match=r"devwatch\.io-claim_1\.json: "):
            folder.update({"1": one(), "2": one(name="2-stick")})
        assert content(tmp_path, "2")
    blocked.rmdir()
    folder.update({"1": one(), "2": one(name="2-stick")})
    assert content(tmp_path)


def test_what_a_failed_update_has_written_is_removed_by_the_next(tmp_path: Path) -> None:
    """Also where that is the same as the one before."""
    folder, blocked = CdiFolder(tmp_path), tmp_path / ".devwatch.io-claim_3.json.new"
    folder.update({"1": one()})
    blocked.mkdir()
    with pytest.raises(KubeletError):
        folder.update({"1": one(), "2": one(name="2-stick"), "3": one(name="3-stick")})
    assert content(tmp_path, "2")
    blocked.rmdir()
    folder.update({"1": one()})
    assert names(tmp_path) == ["devwatch.io-claim_1.json"]
