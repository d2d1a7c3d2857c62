"""The folder of the links, whatever else is in it and whatever the disk does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.core.errors import KubeletError
from devwatch.kubelet.links import FOLDER, DeviceLinks, find_leftovers, remove_leftovers

if TYPE_CHECKING:
    from collections.abc import Iterator

USB0, USB1 = "/dev/ttyUSB0", "/dev/ttyUSB1"


def content(folder: Path) -> dict[str, str]:
    """Return what the folder of the links holds: the target of each link, empty for anything else."""
    return {path.name: str(path.readlink()) if path.is_symlink() else "" for path in (folder / FOLDER).iterdir()}


def test_links_are_made_led_elsewhere_and_removed(tmp_path: Path) -> None:
    """Exactly what is wanted is there."""
    links = DeviceLinks(tmp_path)
    for wanted in ({"a": USB0, "a-1": USB1}, {"a": USB1}, {"a": USB1, "b": USB0}, {}):
        links.update(wanted)
        assert content(tmp_path) == wanted
    assert links.folder == tmp_path / FOLDER


def test_where_no_link_is_wanted_no_folder_of_plugins_is_needed(tmp_path: Path) -> None:
    """A node whose devices are given to pods by claims alone need not mount it."""
    links = DeviceLinks(tmp_path / "absent")
    links.update({})
    with pytest.raises(KubeletError, match="No such file"):
        links.update({"a": USB0})


def test_the_folder_can_be_entered_by_all(tmp_path: Path) -> None:
    """The container runtime resolves the links, under whatever user it does that."""
    DeviceLinks(tmp_path).update({})
    assert (tmp_path / FOLDER).stat().st_mode & 0o777 == 0o755 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_a_former_daemon_left_is_put_right_at_once(tmp_path: Path) -> None:
    """Its devices may be gone, and others may have their devnodes."""
    DeviceLinks(tmp_path).update({"a": USB0, "b": USB1})
    (tmp_path / FOLDER / ".newc").symlink_to(USB1)
    (tmp_path / FOLDER / "file").write_text("x")
    os.mkfifo(tmp_path / FOLDER / "c")
    DeviceLinks(tmp_path).update({"a": USB1, "c": USB0})
    assert content(tmp_path) == {"a": USB1, "c": USB0}


def test_links_are_only_removed_where_none_is_to_be_made(tmp_path: Path) -> None:
    """What is right stays, until it is known which other ones are."""
    links = DeviceLinks(tmp_path)
    links.update({"a": USB0, "b": USB1})
    for _ in range(2):
        links.update({"a": USB0, "b": USB0, "c": USB1}, make=False)
        assert content(tmp_path) == {"a": USB0}
    links.update({"a": USB0, "c": USB1})
    assert content(tmp_path) == {"a": USB0, "c": USB1}


names = st.sampled_from(["a", "b", "c"])
targets = st.dictionaries(names, st.sampled_from([USB0, USB1, "/dev/ttyUSB2"]))


class Watched(dict[str, str]):
    """Links to make, which takes a look at the folder before each of them."""

    def __init__(self, links: dict[str, str], folder: Path) -> None:
        """Store the folder."""
        super().__init__(links)
        self.folder = folder
        self.seen: list[dict[str, str]] = []

    def items(self) -> Iterator[tuple[str, str]]:  # type: ignore[override]  # it is only iterated
        """Yield the links."""
        for item in super().items():
            self.seen.append(content(self.folder))
            yield item


def test_two_links_never_lead_to_one_device_on_the_way(tmp_path: Path) -> None:
    """Two sticks that swap their devnodes: a container that starts in that moment gets its own or none."""
    links = DeviceLinks(tmp_path)
    links.update({"a": USB0, "b": USB1})
    swapped = Watched({"a": USB1, "b": USB0}, tmp_path)
    links.update(swapped)
    assert swapped.seen == [{}, {"a": USB1}]
    assert content(tmp_path) == swapped


@given(before=targets, after=targets)
def test_any_content_becomes_what_is_wanted(
    before: dict[str, str], after: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By the daemon that made it as by the next one."""
    folder = tmp_path_factory.mktemp("plugins")
    first = DeviceLinks(folder)
    first.update(before)
    first.update(after)
    assert content(folder) == after
    DeviceLinks(folder).update(before)
    assert content(folder) == before
    shutil.rmtree(folder)


def test_a_folder_of_others_in_it_stays_and_is_in_nobodys_way(tmp_path: Path) -> None:
    """A link leads to a device, a folder does not."""
    (tmp_path / FOLDER / "theirs").mkdir(parents=True)
    DeviceLinks(tmp_path).update({"a": USB0})
    assert content(tmp_path) == {"a": USB0, "theirs": ""}


def test_a_folder_in_the_place_of_a_link_is_an_error_until_it_is_gone(tmp_path: Path) -> None:
    """With its path; what no longer leads to its device is removed nevertheless."""
    DeviceLinks(tmp_path).update({"b": USB1})
    (tmp_path / FOLDER / "a").mkdir()
    links = DeviceLinks(tmp_path)
    for _ in range(2):
        with pytest.raises(KubeletError, match=f"^{tmp_path / FOLDER / 'a'}: File exists$"):
            links.update({"a": USB0})
        assert content(tmp_path) == {"a": ""}
    (tmp_path / FOLDER / "a").rmdir()
    links.update({"a": USB0})
    assert content(tmp_path) == {"a": USB0}


def test_a_link_in_the_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    """Who can write there could have the daemon, which is root, empty any folder of the host. A purge removes the link itself."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    (tmp_path / "other" / "link").symlink_to(USB1)
    (tmp_path / FOLDER).symlink_to("other")
    with pytest.raises(KubeletError, match=f"^{tmp_path / FOLDER}: File exists$") as raised:
        DeviceLinks(tmp_path).update({"a": USB0})
    assert "remove what is there" in raised.value.hint
    remove_leftovers(find_leftovers(tmp_path))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "link", "other"]


def test_a_file_that_came_into_the_place_of_a_link_is_removed(tmp_path: Path) -> None:
    """The folder is devwatch's own."""
    links = DeviceLinks(tmp_path)
    links.update({})
    (tmp_path / FOLDER / "a").write_text("x")
    links.update({"a": USB0})
    assert content(tmp_path) == {"a": USB0}


@pytest.mark.parametrize("harm", ["removed", "bent", "a folder"])
def test_what_became_of_a_link_is_seen_at_each_scan(tmp_path: Path, harm: str) -> None:
    """A container that starts again would follow it to another's stick, or find nothing."""
    links, link = DeviceLinks(tmp_path), tmp_path / FOLDER / "a"
    links.update({"a": USB0})
    link.unlink()
    if harm == "bent":
        link.symlink_to(USB1)
    elif harm == "a folder":
        link.mkdir()
        with pytest.raises(KubeletError, match="File exists"):
            links.update({"a": USB0})
        link.rmdir()
    links.update({"a": USB0})
    assert content(tmp_path) == {"a": USB0}


def test_no_folder_of_the_plugins_is_an_error(tmp_path: Path) -> None:
    """Not mounted, or another root: it is not made, since no kubelet would be there."""
    with pytest.raises(KubeletError, match=f"^{tmp_path / 'none' / FOLDER}: No such file or directory$") as raised:
        DeviceLinks(tmp_path / "none").update({"a": USB0})
    assert "--device-plugin-dir" in raised.value.hint
    (tmp_path / FOLDER).write_text("x")
    with pytest.raises(KubeletError, match=f"^{tmp_path / FOLDER}: File exists$"):
        DeviceLinks(tmp_path).update({})


def test_a_folder_that_cannot_be_written_is_an_error() -> None:
    """Whatever the kernel calls it: read-only, not permitted."""
    with pytest.raises(KubeletError, match=f"^/sys/kernel/{FOLDER}: "):
        DeviceLinks(Path("/sys/kernel")).update({})


def test_a_link_that_the_disk_does_not_take_is_an_error_that_names_it(tmp_path: Path) -> None:
    """A full disk answers at the same place; the next attempt makes what is missing."""
    links, long = DeviceLinks(tmp_path), "x" * 300
    with pytest.raises(KubeletError, match=f"^{tmp_path / FOLDER / long}: File name too long$"):
        links.update({"a": USB0, long: USB1})
    links.update({"a": USB0, "b": USB1})
    assert content(tmp_path) == {"a": USB0, "b": USB1}


def test_a_folder_in_the_place_of_a_link_does_not_keep_the_others(tmp_path: Path) -> None:
    """Each of them may lead to another's device by now."""
    links = DeviceLinks(tmp_path)
    links.update({"a": USB0, "b": USB1, "c": USB0})
    (tmp_path / FOLDER / "b").unlink()
    (tmp_path / FOLDER / "b").mkdir()
    links.update({})
    assert content(tmp_path) == {"b": ""}


def test_what_cannot_be_removed_keeps_no_other_leftover(tmp_path: Path) -> None:
    """The first is told after all others are gone."""
    (tmp_path / FOLDER / "notes").mkdir(parents=True)
    (tmp_path / "a.sock").touch()
    with pytest.raises(KubeletError, match=f"^{tmp_path / FOLDER}: Directory not empty$"):
        remove_leftovers([tmp_path / FOLDER, tmp_path / "gone.sock", tmp_path / "a.sock"])
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]
