"""One event a line on stderr: devwatch's own by structlog, and what libraries warn of through the same renderer."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, TextIO

import structlog

from devwatch.observe.output import NonBlockingStream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.types import EventDict, FilteringBoundLogger, Processor, WrappedLogger

Format = Literal["auto", "console", "json"]

_LENGTH: Final = 500
_TRACEBACK_LINES: Final = 100
_QUIET: Final = 1.0
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
    """Return a logger that writes what is of `level` or above to `stream`, and never raises because of the stream, or waits for it.

    A line for which there is no room, because nobody reads the log, is left out; `lines_lost` of the next one says how many were.
    `auto` is console on a terminal and JSON otherwise; NO_COLOR is honoured. A warning or an error that differs only in numbers from
    one of the last second, by `clock`, is left out: a trouble that comes back at once is told once. structlog's own global configuration is
    left alone. The standard library has but one logging for the whole process: what it and the libraries report at
    WARNING and above comes as `library.logged` out of the logger made last. Raises `ValueError` for an unknown level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"{level!r} is no log level (debug, info, warning, error, critical)")
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
            _Calm(clock),
            sink.tell_lost,
            *(_console(colors=terminal and not environ.get("NO_COLOR")) if console else _JSON),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        context_class=dict,
    ).bind()
    _adopt(logger)
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
    """The end of the line, with the methods that structlog calls. Nothing dies of a log that cannot be written, or waits for its reader."""

    def __init__(self, stream: TextIO | None) -> None:
        # None where the process was started with a closed descriptor 2
        self._output = None if stream is None else NonBlockingStream(stream)
        self._lost = 0

    def tell_lost(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """Have the line say how many before it were left out; only one that is written ends the count."""
        if self._lost:
            event["lines_lost"] = self._lost
        return event

    def msg(self, line: str) -> None:
        # A full disk or a broken pipe is an OSError, a closed or an ASCII-only stream a ValueError.
        with contextlib.suppress(OSError, ValueError):
            if self._output is not None:
                self._lost = 0 if self._output.write(line + "\n") else self._lost + 1

    debug = info = warning = error = critical = msg


class _Bridge(logging.Handler):
    """Hands the records of the standard library on."""

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


def _adopt(logger: FilteringBoundLogger) -> None:
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Bridge)]:
        root.removeHandler(handler)
    root.addHandler(_Bridge(logger))
    logging.captureWarnings(capture=True)


def _clean_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Make everything harmless, in the order in which people read it."""
    first = {key: _clean(event.pop(key)) for key in ("timestamp", "level", "event")}
    traceback = event.pop("exception", None)
    fields = {_text(str(key)): _clean(value) for key, value in event.items()}
    if traceback is None:
        return {**first, **fields}
    lines = str(traceback).split("\n")[-_TRACEBACK_LINES:]
    return {**first, **fields, "exception": "\n".join(_text(line) for line in lines)}


class _Calm:
    """Lets nothing through that is worth a warning and was said within the last second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._said: dict[str, float] = {}

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        if event["level"] in {"debug", "info"}:
            return event
        now = self._clock()
        self._said = {text: at for text, at in self._said.items() if now < at + _QUIET}
        text = repr({key: value for key, value in event.items() if key != "timestamp" and not _is_number(value)})
        if text in self._said:
            raise structlog.DropEvent
        self._said[text] = now
        return event


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fold_traceback(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Keep it one line: the renderer quotes any field but `exception`, whose text could pass for another event."""
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
    """Redact, escape and cut. `str.isprintable` is false for controls, bidi controls, separators and surrogates."""
    text = _SECRET.sub("[redacted]", text[: 4 * _LENGTH])
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if len(text) <= _LENGTH else text[: _LENGTH - 1] + "…"
