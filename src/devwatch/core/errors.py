"""The exceptions of devwatch, classified by what the caller must do about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from devwatch.core import exitstatus

RETRY_AFTER_LIMIT = 60.0
"""Seconds: the longest Retry-After that is honoured."""


class DevwatchError(Exception):
    """The base of all exceptions that devwatch raises itself; `str()` is one line for the user."""

    exit_status: ClassVar[int] = exitstatus.FAILED
    """The status of a command that this exception ends."""


class UsageError(DevwatchError):
    """The command line is wrong: correct the call."""

    exit_status = exitstatus.USAGE


class Unavailable(DevwatchError):
    """Something that the program requires is not available."""


class OutputLost(Unavailable):
    """Standard output cannot be written any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One error in a configuration: its position (1-based line and column), its key, and what is allowed there."""

    line: int
    column: int
    path: str
    message: str

    def render(self, file: str) -> str:
        """Return the compiler-style line `FILE:LINE:COLUMN: path.to.key: message`."""
        where = f"{self.path}: " if self.path else ""
        return f"{file}:{self.line}:{self.column}: {where}{self.message}"


class ConfigError(DevwatchError):
    """A configuration cannot be used: correct the file."""

    exit_status = exitstatus.CONFIGURATION

    def __init__(self, file: str, faults: tuple[Fault, ...]) -> None:
        """Store every fault of `file`; `faults` is never empty."""
        super().__init__("\n".join(fault.render(file) for fault in faults))
        self.file = file
        self.faults = faults


class KubeletError(DevwatchError):
    """A call of the kubelet failed, or something that it needs on this host: it is repeated. `hint` says what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Store the hint, empty where no certain advice exists."""
        super().__init__(message)
        self.hint = hint

    @property
    def advice(self) -> str:
        """The message and the hint, in one line."""
        return f"{self}; {self.hint}" if self.hint else str(self)


class NotAnswered(KubeletError):
    """The kubelet has a socket and does not answer: it hangs, or is busy."""


class NotServed(KubeletError):
    """The kubelet does not serve this method: it is too old (gRPC UNIMPLEMENTED)."""


class ClaimRefused(DevwatchError):
    """A ResourceClaim cannot be prepared: the kubelet shows this text at the pod, and tries again after a minute."""


class ApiError(DevwatchError):
    """A request to the API server failed; whether it changed anything is unknown. `hint` says what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Store the hint, empty where no certain advice exists."""
        super().__init__(message)
        self.hint = hint

    @property
    def pause(self) -> float:
        """The seconds that the API server asks clients to wait, at most `RETRY_AFTER_LIMIT`."""
        return 0.0


class Retry(ApiError):
    """The request may succeed when it is repeated, after `after` seconds where the server gave a time."""

    def __init__(self, message: str, *, after: float | None = None) -> None:
        """Store the server's Retry-After in seconds (RFC 9110, 10.2.3), None where it sent none."""
        super().__init__(message)
        self.after = after

    @property
    def pause(self) -> float:
        """The seconds of Retry-After, at most `RETRY_AFTER_LIMIT`."""
        return min(self.after or 0.0, RETRY_AFTER_LIMIT)


class CredentialsError(Retry):
    """No usable credentials, or the server refuses them: they are read again before the next request."""


class Forbidden(ApiError):
    """A permission is missing; the request fails until it is granted. `hint` is the command that grants it."""


class Missing(ApiError):
    """The API server has no object of this name."""


class NodeMissing(Missing):
    """The API server has no Node of this name (yet)."""


class Conflict(Retry):
    """The object is not the expected one, or was changed meanwhile."""


class Gone(Retry):
    """The server no longer has the resourceVersion that a watch starts from: list again."""


class Busy(Retry):
    """The server does not do it now, and has changed nothing (429)."""


class Unserved(Retry):
    """The server has nothing at this path: it does not serve this API, or a proxy answers."""


class Refused(ApiError):
    """The server refuses this content (422, or the 403 of an admission policy); other content may be accepted."""
