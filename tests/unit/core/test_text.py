"""Untrusted text is shown so that it can be read, and controls nothing."""

from __future__ import annotations

import ast

import yaml
from hypothesis import given
from hypothesis import strategies as st

from devwatch.core.text import blank, escape, escape_to_ascii, quote, quote_for_yaml, shorten

ANY_TEXT = st.text(st.characters(), max_size=80)
"""Also with lone surrogates, as file names have them."""


def test_what_people_can_read_is_kept() -> None:
    """Umlauts stay, an escape code does not."""
    assert escape("Zürich \x1b[31m\u202e") == "Zürich \\x1b[31m\\u202e"
    assert blank("Zürich \x1b[31m\u202e") == "Zürich  [31m "


@given(ANY_TEXT)
def test_no_text_controls_a_terminal_or_begins_a_line(text: str) -> None:
    """Whatever a device calls itself; a message for any encoding holds ASCII alone."""
    assert escape(text).isprintable()
    assert blank(text).isprintable()
    for shown in (escape_to_ascii(text), quote(text, 60)):
        assert shown.isprintable()
        assert shown.isascii()


@given(ANY_TEXT, st.integers(8, 60))
def test_a_long_text_is_cut(text: str, length: int) -> None:
    """To the length that is asked for; a text that fits is whole."""
    assert len(quote(text, length)) <= length
    assert shorten(text, 100) == text
    assert len(shorten(text * 9, length)) <= length
    if len(ascii(text)) <= length:
        assert ast.literal_eval(quote(text, length)) == text


@given(st.text(max_size=80))
def test_a_quoted_text_is_that_text_to_a_yaml_parser(text: str) -> None:
    """Also quotes, backslashes and characters beyond the first plane."""
    assert quote_for_yaml(text).isascii()
    assert yaml.safe_load(quote_for_yaml(text)) == text
