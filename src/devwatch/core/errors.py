"""The exceptions of devwatch, sorted by what the caller must do about them."""

from __future__ import annotations

from dataclasses import dataclass

RETRY_AFTER_LIMIT = 60.0
"""Seconds: no server keeps devwatch away for longer, whatever its Retry-After says."""


class DevwatchError(Exception):
    """The root of everything that devwatch raises on purpose; `str()` is one line for the user."""


class UsageError(DevwatchError):
    """The command line is wrong: correct the call (exit status 2)."""


class Unavailable(DevwatchError):
    """Something that the program cannot run without is not to be had (exit status 1)."""


class OutputLost(Unavailable):
    """Standard output takes nothing any more (exit status 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong with a configuration: where (1-based line and column), at which key, and what is allowed."""

    line: int
    column: int
    path: str
    message: str

    def render(self, file: str) -> str:
        """Return the compiler-style line `FILE:LINE:COLUMN: path.to.key: message`."""
        where = f"{self.path}: " if self.path else ""
        return f"{file}:{self.line}:{self.column}: {where}{self.message}"


class ConfigError(DevwatchError):
    """A configuration cannot be used: correct the file (exit status 78, EX_CONFIG of sysexits.h)."""

    def __init__(self, file: str, faults: tuple[Fault, ...]) -> None:
        """Hold every fault of `file`; `faults` is never empty."""
        super().__init__("\n".join(fault.render(file) for fault in faults))
        self.file = file
        self.faults = faults


class ApiError(DevwatchError):
    """A request to the API server did not do what it should; nothing is known to have changed. `hint` says what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Carry the hint, empty where nothing certain can be said."""
        super().__init__(message)
        self.hint = hint

    @property
    def pause(self) -> float:
        """The seconds for which the API server wants to be left alone, at most `RETRY_AFTER_LIMIT`."""
        return 0.0


class Retry(ApiError):
    """The request may succeed when it is repeated, after `after` seconds where the server said so."""

    def __init__(self, message: str, *, after: float | None = None) -> None:
        """Carry the server's Retry-After in seconds (RFC 9110, 10.2.3), None when it sent none."""
        super().__init__(message)
        self.after = after

    @property
    def pause(self) -> float:
        """The seconds of Retry-After, at most `RETRY_AFTER_LIMIT`."""
        return min(self.after or 0.0, RETRY_AFTER_LIMIT)


class CredentialsError(Retry):
    """There are no usable credentials, or the server refuses them: they are read again before the next request."""


class Forbidden(ApiError):
    """A right is missing: nothing helps until somebody grants it. `hint` is the command that does."""


class Missing(ApiError):
    """The API server knows no object of this name."""


class NodeMissing(Missing):
    """The API server knows no Node of this name (yet)."""


class Conflict(Retry):
    """The object is not the one that was meant, or was changed meanwhile."""


class Gone(Retry):
    """The server no longer has the history that a watch asks for: list again."""


class Refused(ApiError):
    """The server refuses this content (422, or the 403 of an admission policy): another content may pass."""
