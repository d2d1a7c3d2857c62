"""The configuration as a file: read when it changes, however it is replaced, and never by mistake."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devwatch.config import MAX_BYTES
from devwatch.configfile import ConfigFile
from devwatch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GOOD = "resources: [{name: a.io/b, match: [{vendor: abcd}]}]\n"
BETTER = GOOD.replace("a.io/b", "a.io/c")
BAD = "resources: []\nnonsense: 1\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file with a good configuration."""
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    return path


def names(file: ConfigFile, *, force: bool = False) -> list[str] | None:
    """Return the resources of the new configuration, None where it is not new."""
    config = file.poll(force=force)
    return None if config is None else [rule.name for rule in config.resources]


def loaded(path: Path) -> ConfigFile:
    """Return a file that was read once."""
    file = ConfigFile(path=path)
    file.load()
    return file


def test_a_file_is_read(path: Path) -> None:
    """And is the configuration."""
    assert [rule.name for rule in ConfigFile(path=path).load().resources] == ["a.io/b"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.unlink(), "No such file or directory"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
        (lambda path: (path.unlink(), path.symlink_to(path.name)), "Too many levels of symbolic links"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "No such file or directory"),
    ],
    ids=["missing", "folder", "link to itself", "link to nowhere"],
)
def test_what_cannot_be_read_is_a_fault_with_the_systems_reason(
    make: Callable[[Path], object], reason: str, path: Path
) -> None:
    """One line in the form of every other fault, also after a configuration that was good."""
    file = loaded(path)
    make(path)
    attempts: list[Callable[[], object]] = [ConfigFile(path=path).load, file.load, lambda: file.poll(force=True)]
    for attempt in attempts:
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert str(caught.value) == f"{path}:1:1: cannot be read: {reason}"


def test_a_path_that_no_system_takes_is_a_fault() -> None:
    """Not a traceback: it came from the command line."""
    with pytest.raises(ConfigError, match="cannot be read: File name too long"):
        ConfigFile(path=Path("x" * 5000)).load()


@pytest.mark.parametrize("text", ["", "\x00", BAD, "&a [*a]"], ids=["empty", "binary", "bad", "alias"])
def test_content_of_no_use_is_a_fault_of_this_file(text: str, path: Path) -> None:
    """Each line begins with its name."""
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        ConfigFile(path=path).load()
    assert all(line.startswith(f"{path}:") for line in str(caught.value).splitlines())


@pytest.mark.parametrize(("mode", "warnings"), [(0o644, 0), (0o664, 0), (0o646, 1), (0o666, 1)])
def test_a_file_that_everybody_may_write_to_is_a_warning(mode: int, warnings: int, path: Path) -> None:
    """Whoever writes to it decides which pods are evicted; a group may be trusted, as that of the administrators is."""
    path.chmod(mode)
    config = ConfigFile(path=path).load()
    assert len([fault for fault in config.warnings if "everybody may write" in fault.message]) == warnings


def test_no_more_than_the_limit_is_read(path: Path) -> None:
    """A file without an end is refused like one that is too large."""
    with pytest.raises(ConfigError) as endless:
        ConfigFile(path=Path("/dev/zero")).load()
    path.write_text(GOOD + "#" * MAX_BYTES)
    with pytest.raises(ConfigError) as large:
        ConfigFile(path=path).load()
    assert str(endless.value).partition(":1:1:")[2] == str(large.value).partition(":1:1:")[2]


def test_an_unchanged_file_is_not_new(path: Path) -> None:
    """Nor is one that was touched, or written again with the same content."""
    file = loaded(path)
    assert names(file) is None
    os.utime(path, (1, 1))
    assert names(file) is None
    path.with_suffix(".new").write_text(GOOD)
    path.with_suffix(".new").rename(path)
    assert names(file) is None


def test_hup_reads_it_in_any_case(path: Path) -> None:
    """Who asks for a reload sees that one happened."""
    file = loaded(path)
    assert names(file, force=True) == ["a.io/b"]


def test_a_file_replaced_by_rename_is_new(path: Path) -> None:
    """As editors and configuration management do, also with the times and the size of the old one."""
    file, before = loaded(path), path.stat()
    fresh = path.with_suffix(".new")
    fresh.write_text(BETTER)
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    fresh.rename(path)
    assert names(file) == ["a.io/c"]
    assert names(file) is None


def test_a_file_written_in_place_is_new(path: Path) -> None:
    """With another time, though of the same size."""
    file = loaded(path)
    path.write_text(BETTER)
    os.utime(path, (1, 1))
    assert names(file) == ["a.io/c"]


def test_a_file_restored_from_an_archive_is_new(path: Path) -> None:
    """Written in place with its old time and size: only the time of the change of the inode tells (stat(2), st_ctim)."""
    file, before = loaded(path), path.stat()
    _later(path)
    path.write_text(BETTER)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert names(file) == ["a.io/c"]


def _later(path: Path) -> None:
    """Wait for the clock of the file system, which ticks more slowly than processes write."""
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:
        path.touch()


def test_a_swapped_config_map_is_new(tmp_path: Path) -> None:
    """The kubelet puts a new folder beside the old one and swaps the link `..data` (AtomicWriter)."""
    for name, text in (("..1", GOOD), ("..2", BETTER)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
        os.utime(tmp_path / name / "config.yaml", (1, 1))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "config.yaml").symlink_to("..data/config.yaml")
    file = loaded(tmp_path / "config.yaml")
    (tmp_path / "..tmp").symlink_to("..2")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    assert names(file) == ["a.io/c"]


def test_a_bad_file_is_reported_once_and_a_corrected_one_is_new(path: Path) -> None:
    """Not at every sweep: the file has not changed since."""
    file = loaded(path)
    path.write_text(BAD)
    with pytest.raises(ConfigError):
        file.poll(force=False)
    assert names(file) is None
    path.write_text(BETTER)
    assert names(file) == ["a.io/c"]


def test_a_file_restored_after_a_bad_one_is_new(path: Path) -> None:
    """The log then says that it is in force, after it has said that the bad one is not."""
    file = loaded(path)
    path.write_text(BAD)
    with pytest.raises(ConfigError):
        file.poll(force=False)
    path.write_text(GOOD)
    assert names(file) == ["a.io/b"]


def test_a_file_that_vanishes_is_reported_once_and_one_that_comes_back_is_read(path: Path) -> None:
    """Even with the content of before: between the two nobody could know."""
    file = loaded(path)
    path.unlink()
    with pytest.raises(ConfigError):
        file.poll(force=False)
    assert names(file) is None
    path.write_text(GOOD)
    assert names(file) == ["a.io/b"]


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Leave this process no descriptor to open a file with (EMFILE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_change_that_cannot_be_read_at_once_is_read_as_soon_as_it_can_be(path: Path) -> None:
    """A shortage passes and leaves no trace on the file; it is reported once, not at every sweep."""
    file = loaded(path)
    path.write_text(BETTER)
    os.utime(path, (1, 1))
    with no_descriptors():
        with pytest.raises(ConfigError, match="cannot be read: Too many open files"):
            file.poll(force=False)
        assert names(file) is None
    assert names(file) == ["a.io/c"]
    assert names(file) is None


def test_a_file_that_cannot_be_read_for_another_reason_is_reported_again(path: Path) -> None:
    """Each reason has its own remedy; who asks for a reload is told in any case."""
    file = loaded(path)
    path.unlink()
    path.mkdir()
    assert_told_once(file, "Is a directory")
    path.rmdir()
    path.symlink_to(path.name)
    assert_told_once(file, "Too many levels of symbolic links")
    path.unlink()
    assert_told_once(file, "No such file or directory")
    path.write_text(GOOD)
    assert names(file) == ["a.io/b"]


def assert_told_once(file: ConfigFile, reason: str) -> None:
    """See it raised at the first sweep and on request, and at no other sweep."""
    for force in (False, True):
        with pytest.raises(ConfigError, match=f"cannot be read: {reason}"):
            file.poll(force=force)
        assert names(file) is None
