"""Log one event per line to stderr: devwatch's own by structlog, and the warnings of libraries through the same renderer."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, TextIO

import structlog

from devwatch.core.text import escape, shorten
from devwatch.observe.output import UNWRITABLE, NonBlockingStream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.types import EventDict, FilteringBoundLogger, Processor, WrappedLogger

Format = Literal["auto", "console", "json"]

_LENGTH: Final = 500
"""Characters of a text at most."""
_TRACEBACK_LINES: Final = 100
_QUIET: Final = 1.0
"""Seconds in which a repeated warning or error is dropped."""
_JSON: Final = (structlog.processors.JSONRenderer(),)
_SECRET: Final = re.compile(r"eyJ[\w-]{10,}(?:\.[\w-]*)*|(?i:bearer)\s+[\w.~+/=-]{16,}")
"""A JSON web token (RFC 7519: the first part is always `{"` in base64), or a credential of RFC 6750."""


def configure(
    format: Format,  # noqa: A002 - the word of --log-format
    level: str,
    stream: TextIO | None,
    *,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.monotonic,
) -> FilteringBoundLogger:
    """Return a logger for events of `level` or above. It never raises because of `stream`, and never waits for its reader.

    A line for which the stream has no room, since its reader has stopped, is dropped; `lines_lost` of the next line is the number of
    dropped ones. `auto` is console on a terminal and JSON otherwise; NO_COLOR is honoured. A warning or error that differs only in
    numbers from one of the last second, by `clock`, is dropped. structlog's global configuration is not changed. The standard library
    has one logging for the whole process: its records of WARNING and above become events `library.logged` of the logger that was made
    last. Raises `ValueError` for an unknown level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"{level!r} is not a log level (debug, info, warning, error, critical)")
    terminal = _is_terminal(stream)
    console = format == "console" or (format == "auto" and terminal)
    sink = _Sink(stream)
    logger: FilteringBoundLogger = structlog.wrap_logger(
        sink,
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%S.%fZ", utc=True),
            structlog.processors.format_exc_info,
            _clean_event,
            _RepeatedWarningFilter(clock),
            sink.add_lines_lost,
            *(_console(colors=terminal and not environ.get("NO_COLOR")) if console else _JSON),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        context_class=dict,
    ).bind()
    _bridge_standard_logging(logger)
    return logger


def _console(*, colors: bool) -> Sequence[Processor]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )
    return (_fold_traceback, renderer)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


class _Sink:
    """Writes lines to the stream, by the methods that structlog calls. A stream that fails or blocks only loses lines."""

    def __init__(self, stream: TextIO | None) -> None:
        # None where the process was started with a closed descriptor 2
        self._output = None if stream is None else NonBlockingStream(stream)
        self._lost = 0

    def add_lines_lost(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """Add the number of lines dropped before this one; the count starts again only after a line was written."""
        if self._lost:
            event["lines_lost"] = self._lost
        return event

    def msg(self, line: str) -> None:
        with contextlib.suppress(*UNWRITABLE):
            if self._output is not None:
                self._lost = 0 if self._output.write(line + "\n") else self._lost + 1

    debug = info = warning = error = critical = msg


class _Bridge(logging.Handler):
    """Passes the records of the standard library's logging to structlog."""

    def __init__(self, logger: FilteringBoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError, KeyError):  # the arguments do not fit the format
            text = str(record.msg)
        level = min(record.levelno // 10 * 10, logging.CRITICAL)  # structlog knows only the named levels
        self._logger.log(level, "library.logged", logger=record.name, message=text.strip(), exc_info=record.exc_info)


def _bridge_standard_logging(logger: FilteringBoundLogger) -> None:
    """Pass the standard library's records and warnings to this logger alone."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Bridge)]:
        root.removeHandler(handler)
    root.addHandler(_Bridge(logger))
    logging.captureWarnings(capture=True)


def _clean_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Redact, escape and cut every text, and put the fields into reading order."""
    first = {key: _clean(event.pop(key)) for key in ("timestamp", "level", "event")}
    traceback = event.pop("exception", None)
    fields = {_text(str(key)): _clean(value) for key, value in event.items()}
    if traceback is None:
        return {**first, **fields}
    lines = str(traceback).split("\n")[-_TRACEBACK_LINES:]
    return {**first, **fields, "exception": "\n".join(_text(line) for line in lines)}


class _RepeatedWarningFilter:
    """Drops a warning or error that differs only in numbers from one of the last second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._logged: dict[str, float] = {}

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        if event["level"] in {"debug", "info"}:
            return event
        now = self._clock()
        self._logged = {text: at for text, at in self._logged.items() if now < at + _QUIET}
        text = repr({key: value for key, value in event.items() if key != "timestamp" and not _is_number(value)})
        if text in self._logged:
            raise structlog.DropEvent
        self._logged[text] = now
        return event


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fold_traceback(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Move a traceback to a field that the console renderer quotes: it prints `exception` as it is, which could look like another event."""
    if "exception" in event:
        event["traceback"] = event.pop("exception")
    return event


def _clean(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_text(str(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    return _text(str(value))


def _text(text: str) -> str:
    """Redact, escape and cut."""
    text = _SECRET.sub("[redacted]", text[: 4 * _LENGTH])
    return shorten(escape(text), _LENGTH)
