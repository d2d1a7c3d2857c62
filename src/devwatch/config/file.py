"""Read the configuration file, and notice when it changes."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from devwatch.config import files
from devwatch.config.schema import Config, parse
from devwatch.config.tree import MAX_BYTES
from devwatch.core.errors import ConfigError, Fault
from devwatch.core.text import escape
from devwatch.core.way import joined

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Stamp = tuple[int, ...] | None


_WORLD_WRITABLE = (
    "the file is world-writable, and decides what the Node advertises and which pods devwatch evicts (chmod o-w)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The result of reading the file once."""

    content: bytes | OSError | None
    """The content, the error that prevented the read, or None where the stamp is unchanged and the file was not read."""
    stamp: Stamp = None
    world_writable: bool = False
    """Whether every user may write to the file. Its folders do not count: that of a mounted ConfigMap is open, and safe."""


@dataclass(slots=True, kw_only=True)
class ConfigFile:
    """A configuration file that may change while the daemon runs: by rename, in place, or as the swapped link of a ConfigMap mount."""

    path: Path
    _stamp: Stamp = None
    _text: bytes | None = None
    _failure: str | None = None
    """Why the last read failed, None after a successful one."""

    @property
    def text(self) -> str:
        """The content of the last read, empty where it failed."""
        return (self._text or b"").decode("utf-8", "replace")

    def load(self) -> Config:
        """Read and validate the file.

        Raises `ConfigError` with every fault, also where the file cannot be read or does not answer, and `OSError` where no thread
        can be started to read it.
        """
        return self._accept(self._observe_in_time(force=True))

    def poll(self, *, force: bool) -> Config | None:
        """Read the file if it has changed or the last read failed, or in any case with `force`. Return None if nothing has changed.

        Raises as `load` does. The same read error is not reported twice: a lasting shortage raises once.
        """
        return self.take(self._observe_in_time(force=force), force=force)

    def observer(self, *, force: bool) -> Callable[[], Observation]:
        """Return a function that reads the file, for `take`. It may block forever, so run it in a thread."""
        return partial(_observe, self.path, None if force or self._failure else self._stamp)

    def take(self, observed: Observation, *, force: bool) -> Config | None:
        """Turn an observation into what `poll` returns or raises."""
        if observed.content is None:
            return None
        before, failure = self._text, self._failure
        try:
            config = self._accept(observed)
        except ConfigError:
            if force or self._failure is None or self._failure != failure:
                raise
            return None
        return config if force or self._text != before else None

    def _observe_in_time(self, *, force: bool) -> Observation:
        patience = files.patience_for(self.path)
        try:
            return files.within(patience and patience + files.MARGIN, self.observer(force=force))
        except TimeoutError as error:
            return Observation(content=error)

    def _accept(self, observed: Observation) -> Config:
        self._stamp, self._text, self._failure = observed.stamp, None, None
        if isinstance(observed.content, OSError):
            self._failure = f"cannot be read: {observed.content.strerror or observed.content}"
            raise ConfigError(str(self.path), (_fault(self._failure),)) from observed.content
        self._text = observed.content or b""
        config = parse(self._text, file=str(self.path))
        exposed = (_fault(_WORLD_WRITABLE),) if observed.world_writable else ()
        return replace(config, warnings=(*exposed, *config.warnings))


class BackgroundConfigFile:
    """Reads the configuration file in a thread, so that a file that does not answer never blocks the loop.

    `reload` or `poll` starts a read. If the read has a result for the next `poll`, it ends with a call of `wake`.
    """

    def __init__(
        self, file: ConfigFile, wake: Callable[[], None], *, patience: float = files.PATIENCE + files.MARGIN
    ) -> None:
        """Prepare; nothing is read yet. A read that takes longer than `patience` seconds fails."""
        self._file, self._wake = file, wake
        self._reader = files.Reader[Observation](patience)
        self._task: asyncio.Task[None] | None = None
        self._result: Config | Exception | None = None

    @property
    def busy(self) -> bool:
        """Whether a read is in progress, or its result has not been polled yet."""
        return self._task is not None or self._result is not None

    def reload(self) -> None:
        """Read the file even if it is unchanged. A read in progress is dropped: it may have begun before the change."""
        if self._task is not None:
            self._task.cancel()
        self._start(force=True)

    def poll(self, *, force: bool) -> Config | None:
        """Return the configuration of a finished read. Without one, and without `force`, start the next read and return None.

        Raises the error that the read ended with, mostly `ConfigError`.
        """
        result, self._result = self._result, None
        if isinstance(result, Exception):
            raise result
        if result is None and not force and self._task is None:
            self._start(force=False)
        return result

    def _start(self, *, force: bool) -> None:
        self._task = asyncio.get_running_loop().create_task(self._read(force=force))

    async def _read(self, *, force: bool) -> None:
        try:
            self._result = self._file.take(await self._observed(force=force), force=force)
        except Exception as error:  # noqa: BLE001 - `poll` raises it
            self._result = error
        self._task = None
        if self._result is not None:
            self._wake()

    async def _observed(self, *, force: bool) -> Observation:
        try:
            return await self._reader.run(self._file.observer(force=force), afresh=force)
        except OSError as error:
            return Observation(content=error)


def _observe(path: Path, known: Stamp) -> Observation:
    """Read a file unless its stamp is the known one. May block forever."""
    try:
        status = path.stat()
        stamp = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        if stamp == known:
            return Observation(content=None, stamp=stamp)
        content = files.read(path, MAX_BYTES + 1, patience=files.patience_for(path))
        return Observation(content=content, stamp=stamp, world_writable=bool(status.st_mode & stat.S_IWOTH))
    except FileNotFoundError as error:
        return Observation(content=FileNotFoundError(error.errno, f"{error.strerror}{_neighbors(path)}", str(path)))
    except OSError as error:
        return Observation(content=error)


def _neighbors(path: Path) -> str:
    """Return which YAML files are beside a missing one, and how to have one of them read; empty without any."""
    try:
        found = {each.name for each in path.parent.iterdir() if each.suffix in {".yaml", ".yml"}}
    except OSError:
        found = set()
    names = sorted(found - {path.name})
    return (
        f" (its folder has {escape(joined(names))}: name that, or rename it; a key of a ConfigMap is a file's name)"
        if names
        else ""
    )


def _fault(message: str) -> Fault:
    """Return a fault that concerns the file as a whole."""
    return Fault(line=1, column=1, path="", message=message)
