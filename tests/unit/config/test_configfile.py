"""The configuration as a file: read when it changes, however it is replaced, and never by mistake."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devwatch.config.file import BackgroundConfigFile, ConfigFile
from devwatch.config.tree import MAX_BYTES
from devwatch.core.errors import ConfigError
from support.descriptors import no_descriptors
from support.editor import disagreement

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from devwatch.config.schema import Config

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


def test_a_missing_file_names_the_one_beside_it(path: Path) -> None:
    """A ConfigMap with a key of another name has that file in the folder: the fault shows it, and not what is no configuration."""
    path.rename(path.with_name("my.yaml"))
    path.with_name("notes.txt").touch()
    with pytest.raises(ConfigError) as caught:
        ConfigFile(path=path).load()
    cure = "its folder has my.yaml: name that, or rename it; a key of a ConfigMap is a file's name"
    assert str(caught.value) == f"{path}:1:1: cannot be read: No such file or directory ({cure})"


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
    assert disagreement(text.encode(), caught.value.faults) == ""


@pytest.mark.parametrize(("mode", "warnings"), [(0o644, 0), (0o664, 0), (0o646, 1), (0o666, 1)])
def test_a_file_that_everybody_may_write_to_is_a_warning(mode: int, warnings: int, path: Path) -> None:
    """Whoever writes to it decides which pods are evicted; a group may be trusted, as that of the administrators is."""
    path.chmod(mode)
    config = ConfigFile(path=path).load()
    assert len([fault for fault in config.warnings if "world-writable" in fault.message]) == warnings


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


# -- in the background


class Desk:
    """A file that is read in the background, and how often it had news. It counts as one that hangs after `patience` seconds."""

    def __init__(self, path: Path, patience: float = 30) -> None:
        """Read it once, as the daemon does at its start."""
        self.woken = asyncio.Event()
        self.file = BackgroundConfigFile(loaded(path), self.woken.set, patience=patience)

    async def news(self) -> list[str]:
        """Wait for news and return its resources. Raises `ConfigError`."""
        async with asyncio.timeout(30):
            await self.woken.wait()
        self.woken.clear()
        config = self.file.poll(force=True)
        assert config is not None
        return [rule.name for rule in config.resources]

    async def silence(self) -> None:
        """Wait until nothing is read any more, and see that there was no news."""
        async with asyncio.timeout(30):
            while self.file.busy:  # noqa: ASYNC110 - no news is told to nobody
                await asyncio.sleep(0)
        assert not self.woken.is_set()


def run(scenario: Coroutine[object, object, None]) -> None:
    """Run a scenario on real time, since threads take part in it."""
    asyncio.run(scenario)


def replaced(path: Path, text: str | None) -> None:
    """Put another file in its place, by rename; None for a pipe that no process writes to."""
    fresh = path.with_suffix(".new")
    if text is None:
        os.mkfifo(fresh)
    else:
        fresh.write_text(text)
    fresh.rename(path)


def test_a_sweep_finds_what_has_changed(path: Path) -> None:
    """It asks, and is told when the file was read; without news nobody is woken, and a faulty file is told once."""

    async def scenario() -> None:
        desk = Desk(path)
        assert desk.file.poll(force=False) is None
        await desk.silence()
        replaced(path, BETTER)
        assert desk.file.poll(force=False) is None
        assert await desk.news() == ["a.io/c"]
        replaced(path, BAD)
        desk.file.poll(force=False)
        with pytest.raises(ConfigError, match="nonsense"):
            await desk.news()
        desk.file.poll(force=False)
        await desk.silence()

    run(scenario())


def test_a_reload_brings_news_in_any_case(path: Path) -> None:
    """Also of a file that nobody has changed, and it is busy until the news is taken: so long the reload lasts."""

    async def scenario() -> None:
        desk = Desk(path)
        assert not desk.file.busy
        desk.file.reload()
        assert desk.file.busy
        await desk.woken.wait()
        assert desk.file.busy
        assert await desk.news() == ["a.io/b"]
        assert not desk.file.busy
        assert desk.file.poll(force=True) is None

    run(scenario())


def test_news_is_taken_by_whichever_turn_comes_first(path: Path) -> None:
    """A sweep that finds news does not read the file again before it is taken."""

    async def scenario() -> None:
        desk = Desk(path)
        desk.file.reload()
        await desk.woken.wait()
        config = desk.file.poll(force=False)
        assert config is not None
        assert desk.file.poll(force=True) is None

    run(scenario())


def test_a_pipe_in_place_of_the_file_stops_nothing_and_is_told(path: Path) -> None:
    """Once for all sweeps, and for each reload; it gathers no threads."""

    async def scenario() -> None:
        desk, threads = Desk(path, patience=0.05), threading.active_count()
        replaced(path, None)
        desk.file.poll(force=False)
        with pytest.raises(ConfigError, match="cannot be read: its file system did not answer"):
            await desk.news()
        for _ in range(3):
            desk.file.poll(force=False)
            await desk.silence()
        assert threading.active_count() <= threads + 1
        desk.file.reload()
        with pytest.raises(ConfigError, match="cannot be read"):
            await desk.news()

    run(scenario())


def test_a_reload_waits_for_no_reading_that_hangs(path: Path) -> None:
    """Who has put a good file in place of a pipe, or of a mount that hangs, and says so, is heard at once."""

    async def scenario() -> None:
        desk = Desk(path)
        replaced(path, None)
        desk.file.poll(force=False)
        await asyncio.sleep(0)
        replaced(path, BETTER)
        desk.file.reload()
        assert await desk.news() == ["a.io/c"]
        desk.file.poll(force=False)
        await desk.silence()

    run(scenario())


def test_what_nobody_foresaw_is_raised_where_the_configuration_is_asked_for(path: Path) -> None:
    """And so ends the daemon, with its traceback in the log; no reading dies unseen."""

    class Broken(ConfigFile):
        """A file whose content breaks the program."""

        def take(self, found: object, *, force: bool) -> Config | None:  # noqa: ARG002 - as it is there
            """Break."""
            raise ZeroDivisionError

    async def scenario() -> None:
        woken = asyncio.Event()
        file = BackgroundConfigFile(Broken(path=path), woken.set)
        file.reload()
        async with asyncio.timeout(30):
            await woken.wait()
        with pytest.raises(ZeroDivisionError):
            file.poll(force=True)

    run(scenario())
