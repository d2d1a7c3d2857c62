"""What stands in the log, and what can never get there."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from devwatch.observe.logs import Format, configure
from support.pipes import Pipe, in_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Give the standard library's logging back as it was."""
    yield
    logging.captureWarnings(capture=False)
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler).__module__ == "devwatch.observe.logs"]:
        root.removeHandler(handler)


def lines(text: str) -> list[dict[str, Any]]:
    """Return the events of a JSON log, each of which is one line."""
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def logged(value: object, *, format: Format = "json") -> str:  # noqa: A002 - as in configure()
    """Return the log after one event with one field."""
    stream = io.StringIO()
    configure(format, "info", stream).info("device.added", serial=value)
    return stream.getvalue()


def test_an_event_is_one_line_with_event_level_timestamp_and_fields() -> None:
    """The fields of the contract, and no others."""
    (event,) = lines(logged(["A6008isP", 3, None, 1.5, True]))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event.pop("timestamp"))
    assert event == {"level": "info", "event": "device.added", "serial": ["A6008isP", 3, None, 1.5, True]}


@pytest.mark.parametrize(
    "character", ["\n", "\r", "\x1b", "\x00", "\x7f", "\x9b", "\u2028", "\u2029", "\u202e", "\ud800"]
)
@pytest.mark.parametrize("format_", ["json", "console"])
def test_a_hostile_string_cannot_break_a_line_or_colour_a_terminal(character: str, format_: Format) -> None:
    """C0, C1, DEL, line separators, bidi controls and lone surrogates are escaped, wherever they stand."""
    stream = io.StringIO()
    bad = f"a{character}b"
    configure(format_, "info", stream).info(f"device.added{bad}", serial=bad, **{bad: {bad: [bad, {bad}, (bad,)]}})
    text = stream.getvalue()
    assert text.endswith("\n")
    assert character not in text[:-1]
    if format_ == "json":
        strings = json.dumps(json.loads(text), ensure_ascii=False)
        assert character not in strings


@given(st.text(alphabet=st.characters()))
def test_no_string_at_all_breaks_a_line(serial: str) -> None:
    """One event is one printable line on the console, whatever a device says."""
    text = logged(serial, format="console")
    assert text[:-1].isprintable()
    assert text[-1] == "\n"


def test_a_serial_cannot_pass_for_further_fields_on_the_console() -> None:
    """A value with a space or an equals sign is quoted."""
    assert "serial='A level=error'" in logged("A level=error", format="console")


def test_a_string_is_cut_to_500_characters() -> None:
    """A serial of 10 kB does not fill the log, nor does its escaped form."""
    for serial in ("x" * 10_000, "\x1b" * 10_000):
        assert len(lines(logged(serial))[0]["serial"]) == 500
    assert lines(logged("x" * 500))[0]["serial"] == "x" * 500


def _fail(message: str) -> None:
    raise ValueError(message)


@pytest.mark.parametrize("format_", ["json", "console"])
def test_an_exception_is_one_field_of_one_line(format_: Format) -> None:
    """The traceback is whole, and its text, which may come from a device, cannot pass for another event."""
    stream = io.StringIO()
    logger = configure(format_, "info", stream)
    try:
        _fail("bad\nserial\x1b[31m")
    except ValueError:
        logger.exception("daemon.stopped")
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "Traceback" in text
    if format_ == "json":
        traceback = json.loads(text)["exception"].split("\n")
        assert traceback[-2:] == ["ValueError: bad", "serial\\x1b[31m"]


def test_an_endless_exception_keeps_its_end() -> None:
    """The last lines say what happened; a line is cut like any string."""
    stream = io.StringIO()
    error = ValueError("x\n" * 1000 + "y" * 10_000)
    configure("json", "info", stream).error("daemon.stopped", exc_info=error)
    traceback = lines(stream.getvalue())[0]["exception"].split("\n")
    assert len(traceback) == 100
    assert traceback[-1] == "y" * 499 + "…"


@pytest.mark.parametrize(
    "secret",
    ["eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlIn0.c2lnbmF0dXJl", "Bearer abcdef.0123456789abcdef", "bearer " + "k" * 5000],
)
def test_a_token_never_gets_into_the_log(secret: str) -> None:
    """Not as a field, not inside of a text, not in a traceback, not cut in the middle."""
    stream = io.StringIO()
    logger = configure("json", "info", stream)
    logger.info("x", field=secret, text=f"sent '{secret}' to the server", far="é" * 480 + secret)
    logger.error("x", exc_info=ValueError(f"header {secret} refused"))
    text = stream.getvalue()
    assert secret.rpartition(" ")[2][:12] not in text
    assert text.count("[redacted]") == 4


def test_a_harmless_text_about_tokens_stays() -> None:
    """Only credentials are redacted, not the words beside them."""
    assert "the bearer token expired" in logged("the bearer token expired")


@pytest.mark.parametrize(
    ("format_", "stream", "environ", "expected"),
    [
        ("auto", io.StringIO, {}, "json"),
        ("auto", Terminal, {}, "coloured"),
        ("auto", Terminal, {"NO_COLOR": "1"}, "plain"),
        ("auto", Terminal, {"NO_COLOR": ""}, "coloured"),
        ("console", io.StringIO, {}, "plain"),
        ("console", Terminal, {}, "coloured"),
        ("json", Terminal, {}, "json"),
    ],
)
def test_the_format_follows_option_terminal_and_no_color(
    format_: Format, stream: type[io.StringIO], environ: Mapping[str, str], expected: str
) -> None:
    """Auto is console on a terminal and JSON otherwise; NO_COLOR counts when it is not empty."""
    out = stream()
    configure(format_, "info", out, environ=environ).info("node.patched")
    text = out.getvalue()
    kind = "json" if text.startswith("{") else "coloured" if "\x1b[" in text else "plain"
    assert kind == expected


def test_events_below_the_level_are_not_written() -> None:
    """The level of --log-level, in any case."""
    stream = io.StringIO()
    logger = configure("json", "Warning", stream)
    logger.info("too.low")
    logger.warning("high.enough")
    assert [event["event"] for event in lines(stream.getvalue())] == ["high.enough"]


def test_a_trouble_that_comes_back_within_a_second_is_told_once() -> None:
    """Its count may differ; what happened to a device, another trouble, and the same one a second later are told."""
    stream, now = io.StringIO(), [0.0]
    log = configure("json", "info", stream, clock=lambda: now[0])
    for moment in (0.0, 0.5, 0.9, 1.0, 1.5):
        now[0] = moment
        log.warning("node.patch_failed", error="refused", failures=int(10 * moment))
        log.info("device.removed", devnode="/dev/ttyUSB0")
    log.warning("node.patch_failed", error="no answer", failures=16)
    told = lines(stream.getvalue())
    assert [event["failures"] for event in told if event["event"] == "node.patch_failed"] == [0, 10, 16]
    assert [event["event"] for event in told].count("device.removed") == 5


def test_an_unknown_level_is_refused_with_the_allowed_ones() -> None:
    """The message can be shown to the user as it is."""
    with pytest.raises(ValueError, match=r"'loud' is not a log level \(debug, info, warning, error, critical\)"):
        configure("json", "loud", None)


class Broken(io.StringIO):
    """A stream on which writing fails."""

    def write(self, text: str, /) -> int:
        """Fail as a pipe does whose reader is gone."""
        raise BrokenPipeError(errno.EPIPE, text)


def closed() -> TextIO:
    """Return a closed stream."""
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, Broken(), closed()], ids=["no stderr", "broken pipe", "closed"])
def test_a_broken_stream_does_not_raise(stream: TextIO | None) -> None:
    """The daemon does its work without a log."""
    logger = configure("auto", "info", stream)
    logger.error("daemon.stopped", exc_info=ValueError("x"))
    logging.getLogger("asyncio").error("x")


def test_a_full_disk_does_not_raise() -> None:
    """The kernel's own full disk, through a buffered file."""
    stream = Path("/dev/full").open("w")  # noqa: SIM115 - closing it fails as well, and is part of the test
    configure("json", "info", stream).info("node.patched", text="x" * 400)
    with pytest.raises(OSError, match="No space left"):
        stream.close()


def test_a_pipe_whose_reader_is_gone_does_not_end_the_process() -> None:
    """`devwatch run 2>&1 | head -1` goes on after head has ended."""
    script = "import sys; from devwatch.observe.logs import configure; log = configure('json', 'info', sys.stderr); "
    script += "[log.info('node.patched') for _ in range(1000)]; print('alive')"
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=write, check=False)
    os.close(write)
    assert (run.stdout, run.returncode) == (b"alive\n", 0)


def test_a_log_that_nobody_reads_holds_nothing_up(pipe: Pipe) -> None:
    """What found no room is left out, and the first line that gets through again says how many were."""
    logger = configure("json", "info", pipe.stream)
    pipe.fill()
    for _ in range(3):
        in_time(lambda: logger.info("device.added"))
    in_time(lambda: logger.debug("below.the.level"))
    pipe.read()
    logger.info("device.removed")
    logger.info("device.returned")
    first, second = lines(pipe.read())
    assert (first["event"], first["lines_lost"]) == ("device.removed", 3)
    assert "lines_lost" not in second


def test_the_console_says_too_how_much_is_missing(pipe: Pipe) -> None:
    """Ctrl-S costs lines, and nobody has to guess how many."""
    logger = configure("console", "info", pipe.stream)
    pipe.fill()
    in_time(lambda: logger.info("device.added"))
    pipe.read()
    logger.info("device.removed")
    assert "lines_lost=1" in pipe.read()


def test_no_line_is_torn_for_want_of_room(pipe: Pipe) -> None:
    """A long one, for whose beginning alone there was room, is still one line with its end."""
    logger = configure("json", "info", pipe.stream)
    error = ValueError("\n".join(["x" * 400] * 90))
    in_time(lambda: logger.error("daemon.failed", exc_info=error))
    in_time(lambda: logger.info("device.added"))
    text = pipe.read()
    for _ in range(5):
        in_time(lambda: logger.info("device.removed"))
        text += pipe.read()
    first, second, *_ = lines(text)
    assert first["exception"].endswith("x" * 400)
    assert second["event"] == "device.removed"
    assert second["lines_lost"] > 0


def test_what_libraries_warn_of_is_one_event_too() -> None:
    """Records of WARNING and above and Python's own warnings come through the same renderer; lower ones do not."""
    stream = io.StringIO()
    library = logging.getLogger("devwatch-test")
    library.setLevel(logging.DEBUG)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure("json", "debug", stream)
        library.info("chatter")
        library.warning("slow\n%s", "server")
        warnings.warn("old", stacklevel=1)
    first, second = lines(stream.getvalue())
    assert {key: first[key] for key in ("event", "level", "logger", "message")} == {
        "event": "library.logged",
        "level": "warning",
        "logger": "devwatch-test",
        "message": "slow\\nserver",
    }
    assert second["logger"] == "py.warnings"
    assert "UserWarning: old" in second["message"]


def test_a_lost_exception_of_a_task_is_logged_with_its_traceback() -> None:
    """What asyncio would print over many lines is one event."""
    stream = io.StringIO()
    configure("json", "info", stream)

    async def fail() -> None:
        await asyncio.sleep(0)
        raise RuntimeError("lost")

    async def scenario() -> None:
        task = asyncio.create_task(fail())
        await asyncio.wait([task])
        del task

    asyncio.run(scenario())
    (event,) = lines(stream.getvalue())
    assert event["logger"] == "asyncio"
    assert event["level"] == "error"
    assert event["exception"].endswith("RuntimeError: lost")


def test_a_record_of_a_level_between_or_with_a_wrong_format_is_logged() -> None:
    """A library's mistake is no reason to lose its message."""
    stream = io.StringIO()
    configure("json", "info", stream)
    logging.getLogger("x").log(35, "between")
    logging.getLogger("x").log(99, "above")
    logging.getLogger().handlers = logging.getLogger().handlers[-1:]  # pytest's own would raise
    logging.getLogger("x").error("%d devices", "two")
    events = [(event["level"], event["message"]) for event in lines(stream.getvalue())]
    assert events == [("warning", "between"), ("critical", "above"), ("error", "%d devices")]


def test_only_the_logger_made_last_hears_the_libraries() -> None:
    """Configuring twice does not write everything twice."""
    first, second = io.StringIO(), io.StringIO()
    configure("json", "info", first)
    configure("json", "info", second)
    logging.getLogger("x").warning("once")
    assert first.getvalue() == ""
    assert len(lines(second.getvalue())) == 1


def test_structlog_itself_stays_unconfigured() -> None:
    """A library that uses structlog keeps its own configuration."""
    configure("json", "info", io.StringIO())
    assert not structlog.is_configured()
