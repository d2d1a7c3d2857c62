"""The configuration as a file of this host."""

from __future__ import annotations

import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from devwatch.config import MAX_BYTES, Config, parse
from devwatch.errors import ConfigError, Fault

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(slots=True, kw_only=True)
class ConfigFile:
    """A configuration file that may change under us, by rename, in place, or as the swapped link of a ConfigMap mount."""

    path: Path
    _stamp: tuple[int, ...] | None = None
    _text: bytes | None = None
    _failure: str | None = None
    """Why it could not be read the last time, None where it was."""

    def load(self) -> Config:
        """Read and check it. Raises `ConfigError` with every fault, also where it cannot be read at all."""
        self._stamp, self._text, self._failure = self._current_stamp(), None, None
        try:
            with self.path.open("rb") as file:
                self._text = file.read(MAX_BYTES + 1)
        except OSError as error:
            self._failure = f"cannot be read: {error.strerror or error}"
            raise ConfigError(str(self.path), (Fault(line=1, column=1, path="", message=self._failure),)) from error
        config = parse(self._text, file=str(self.path))
        return replace(config, warnings=(*self._exposure(), *config.warnings))

    def poll(self, *, force: bool) -> Config | None:
        """Read it if it has changed or could not be read, or in any case with `force`; None where there is no news.

        Raises as `load` does. That it cannot be read, for the reason of before, is no news: a shortage that lasts is told once.
        """
        if not (force or self._failure or self._current_stamp() != self._stamp):
            return None
        before, failure = self._text, self._failure
        try:
            config = self.load()
        except ConfigError:
            if force or self._failure is None or self._failure != failure:
                raise
            return None
        return config if force or self._text != before else None

    def _exposure(self) -> tuple[Fault, ...]:
        """Return a warning where everybody may write to it. Of its folders nothing is said: a mounted ConfigMap's is open, and safe."""
        try:
            exposed = self.path.stat().st_mode & stat.S_IWOTH
        except OSError:
            return ()
        message = "everybody may write to this file, which decides what the Node advertises and whom devwatch evicts (chmod o-w)"
        return (Fault(line=1, column=1, path="", message=message),) if exposed else ()

    def _current_stamp(self) -> tuple[int, ...] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
