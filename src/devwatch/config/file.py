"""The configuration as a file of this host."""

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

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Stamp = tuple[int, ...] | None


_EXPOSED = (
    "everybody may write to this file, which decides what the Node advertises and whom devwatch evicts (chmod o-w)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a file was at one moment."""

    content: bytes | OSError | None
    """None where it was not read, because its stamp is the known one."""
    stamp: Stamp = None
    exposed: bool = False
    """Whether everybody may write to it. Of its folders nothing is said: a mounted ConfigMap's is open, and safe."""


@dataclass(slots=True, kw_only=True)
class ConfigFile:
    """A configuration file that may change under us, by rename, in place, or as the swapped link of a ConfigMap mount."""

    path: Path
    _stamp: Stamp = None
    _text: bytes | None = None
    _failure: str | None = None
    """Why it could not be read the last time, None where it was."""

    @property
    def text(self) -> str:
        """The content that was read the last time, empty where it could not be."""
        return (self._text or b"").decode("utf-8", "replace")

    def load(self) -> Config:
        """Read and check it. Raises `ConfigError` with every fault, also where it cannot be read at all, or does not answer.

        Raises `OSError` where no thread can be started to read it.
        """
        return self._accept(self._observe_in_time(force=True))

    def poll(self, *, force: bool) -> Config | None:
        """Read it if it has changed or could not be read, or in any case with `force`; None where there is no news.

        Raises as `load` does. That it cannot be read, for the reason of before, is no news: a shortage that lasts is told once.
        """
        return self.take(self._observe_in_time(force=force), force=force)

    def observer(self, *, force: bool) -> Callable[[], Observation]:
        """Return the function whose result `take` takes. It may block for good, so run it in a thread."""
        return partial(_observe, self.path, None if force or self._failure else self._stamp)

    def take(self, observed: Observation, *, force: bool) -> Config | None:
        """Return the configuration that was observed, or None, or raise, as `poll` does."""
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
        return replace(config, warnings=(*([_fault(_EXPOSED)] if observed.exposed else []), *config.warnings))


class BackgroundConfigFile:
    """A configuration file that is read in a thread, so that one that does not answer holds up no loop.

    A reading begins with `reload` or `poll` and ends with a call of `wake`, if it brings news for the next `poll`.
    """

    def __init__(
        self, file: ConfigFile, wake: Callable[[], None], *, patience: float = files.PATIENCE + files.MARGIN
    ) -> None:
        """Read nothing yet. A file that has not been read after `patience` seconds counts as one that does not answer."""
        self._file, self._wake = file, wake
        self._reader = files.Reader[Observation](patience)
        self._task: asyncio.Task[None] | None = None
        self._news: Config | Exception | None = None

    @property
    def busy(self) -> bool:
        """Whether a reading has not ended, or has brought news that was not taken yet."""
        return self._task is not None or self._news is not None

    def reload(self) -> None:
        """Read the file in any case, and bring news of it. A reading that has not ended is dropped: it may have seen less."""
        if self._task is not None:
            self._task.cancel()
        self._start(force=True)

    def poll(self, *, force: bool) -> Config | None:
        """Return the configuration if a reading brought one, and begin the next reading where none was brought, and without `force`.

        Raises the `ConfigError` that a reading ended with.
        """
        news, self._news = self._news, None
        if isinstance(news, Exception):
            raise news
        if news is None and not force and self._task is None:
            self._start(force=False)
        return news

    def _start(self, *, force: bool) -> None:
        self._task = asyncio.get_running_loop().create_task(self._read(force=force))

    async def _read(self, *, force: bool) -> None:
        try:
            self._news = self._file.take(await self._observed(force=force), force=force)
        except Exception as error:  # noqa: BLE001 - `poll` raises it
            self._news = error
        self._task = None
        if self._news is not None:
            self._wake()

    async def _observed(self, *, force: bool) -> Observation:
        try:
            return await self._reader.run(self._file.observer(force=force), afresh=force)
        except OSError as error:
            return Observation(content=error)


def _observe(path: Path, known: Stamp) -> Observation:
    """Return what is in a file, unless its stamp is the known one. May block for good."""
    try:
        status = path.stat()
        stamp = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        if stamp == known:
            return Observation(content=None, stamp=stamp)
        content = files.read(path, MAX_BYTES + 1, patience=files.patience_for(path))
        return Observation(content=content, stamp=stamp, exposed=bool(status.st_mode & stat.S_IWOTH))
    except OSError as error:
        return Observation(content=error)


def _fault(message: str) -> Fault:
    """Return a fault of the file as a whole."""
    return Fault(line=1, column=1, path="", message=message)
