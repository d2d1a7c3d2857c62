"""Results suit their reader: a terminal of any width, a pipe, a script; and no device string is ever interpreted."""

from __future__ import annotations

import io
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from devwatch.cli.display import (
    Screen,
    device_document,
    show_devices,
    show_fault,
    show_rule,
    suggestion_text,
)
from devwatch.cli.inspection import explain, rows, suggest
from devwatch.config.schema import parse
from devwatch.core.errors import Fault
from devwatch.core.rules import Verdict
from support.build import ZIGBEE, device, rule


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        """Return that it is one."""
        return True


def screen(width: int | None = None, *, coloured: bool = False) -> tuple[Screen, io.StringIO]:
    """Return a screen and what is written on it."""
    out = io.StringIO()
    return Screen(out=out, width=width, coloured=coloured), out


def test_a_pipe_gets_whole_lines() -> None:
    """However long a row is, a pipe gets it on one line, without colours."""
    shown, out = screen()
    show_devices(shown, rows([device(serial="S" * 300)], [rule()], {}), wide=True)
    head, line = out.getvalue().splitlines()
    assert head.split() == [
        "DEVNODE",
        "WHAT",
        "ID",
        "SERIAL",
        "INTERFACE",
        "LINK",
        "RESOURCE",
        "SUBSYSTEM",
        "DRIVER",
        "PORT",
        "LINKS",
    ]
    assert line.split()[0] == "/dev/ttyUSB0"
    assert ZIGBEE in line


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_narrow_terminal_gets_paragraphs(width: int) -> None:
    """Nothing runs over the edge as long as its words fit."""
    shown, out = screen(width)
    links = ("/dev/serial/by-id/a",)
    show_devices(shown, rows([device(serial="S" * 8, links=links)], [rule("a.io/b")], {}), wide=False)
    text = out.getvalue()
    assert "serial: SSSSSSSS" in text
    if width >= 40:
        assert max(map(len, text.splitlines())) <= width


@given(st.text(max_size=80))
def test_no_device_string_reaches_the_terminal_unescaped(text: str) -> None:
    """Escape codes, line ends, bidirectional controls and the like are shown, never interpreted."""
    shown, out = screen()
    show_devices(shown, rows([device(serial=text, product=text, port=text, links=(text,))], [], {}), wide=True)
    assert all(char.isprintable() or char == "\n" for char in out.getvalue())
    assert len(out.getvalue().splitlines()) == 2


@given(st.text(max_size=80))
def test_documents_hold_any_string(text: str) -> None:
    """JSON and YAML carry a hostile serial to a script unharmed, and nothing to the terminal but ASCII."""
    content = {"devices": [device_document(row) for row in rows([device(serial=text)], [], {})]}
    for form, load in (("json", json.loads), ("yaml", yaml.safe_load)):
        shown, out = screen()
        shown.document(content, form)
        assert load(out.getvalue()) == content
        assert all(char.isprintable() or char == "\n" for char in out.getvalue())


@pytest.mark.parametrize(
    "text", ["04e8", "1e10", "12e3", "0x1F", "0o17", ".5e3", "+1e3", "-1e3", "1_000", ".inf", "-.Inf"]
)
def test_what_yaml_may_take_for_a_number_is_quoted(text: str) -> None:
    """A vendor 04e8 or a serial 12e3 is text for YAML 1.1, by which PyYAML goes, and would be a number for yq."""
    shown, out = screen()
    shown.document([text], "yaml")
    assert out.getvalue() == f"- '{text}'\n"


def test_colour_follows_the_terminal() -> None:
    """A terminal gets colours and its width; NO_COLOR and TERM=dumb take the colours, a pipe gets neither."""
    assert Screen.of(Terminal(), {}).coloured
    assert Screen.of(Terminal(), {}).width
    assert not Screen.of(Terminal(), {"NO_COLOR": "1"}).coloured
    assert not Screen.of(Terminal(), {"TERM": "dumb"}).coloured
    pipe = Screen.of(io.StringIO(), {})
    assert (pipe.width, pipe.coloured) == (None, False)


def test_a_fault_is_shown_with_its_place() -> None:
    """On a terminal the line and a caret follow; in a pipe only the compiler-style line."""
    fault = Fault(line=2, column=5, path="a.b", message="is wrong")
    shown, out = screen(40)
    show_fault(shown, fault, "f.yaml", "first\nabc defg\n")
    assert out.getvalue() == "f.yaml:2:5: a.b: is wrong\n    abc defg\n        ^\n"
    shown, out = screen()
    show_fault(shown, fault, "f.yaml", "first\nabc defg\n")
    assert out.getvalue() == "f.yaml:2:5: a.b: is wrong\n"


def test_a_fault_far_to_the_right_is_still_shown() -> None:
    """Of a long line the part around the column is shown."""
    shown, out = screen(40)
    show_fault(shown, Fault(line=1, column=501, path="", message="is wrong"), "f", "x" * 500 + "HERE")
    lines = out.getvalue().splitlines()
    assert lines[-2][lines[-1].index("^")] == "H"


def test_explain_shows_each_key() -> None:
    """Wanted, seen and verdict, in colour where that is wanted."""
    _, (report,) = explain(device(), [rule()], "n")
    shown, out = screen(coloured=True)
    show_rule(shown, 1, report, claims=True)
    assert "vendor: wanted '10c4', seen '10c4': \x1b[32mmatched" in out.getvalue()
    assert "claims it" in out.getvalue()


def test_nothing_to_suggest_is_a_valid_configuration_too() -> None:
    """An empty suggestion says so, unless there may be devices that could not be seen."""
    for certain in (True, False):
        text = suggestion_text((), certain=certain)
        assert yaml.safe_load(text) == {"resources": []}
        assert text.startswith("# Nothing to suggest") == certain


@pytest.mark.parametrize("model", ["\U0001f4a9", 'a"b\\c', "\x7f", "\x85", "\u2028", "a: b # c", "*?[x]"])
def test_a_suggestion_holds_whatever_a_stick_calls_itself(model: str) -> None:
    """In printable ASCII, and valid: a YAML parser does not take the surrogate pairs of JSON."""
    stick = device(properties={"ID_MODEL": model})
    text = suggestion_text(suggest([stick], ()))
    assert text.replace("\n", "").isprintable()
    (entry,) = parse(text.encode(), file="suggested").resources
    assert entry.verdict(stick) is Verdict.MATCHED
