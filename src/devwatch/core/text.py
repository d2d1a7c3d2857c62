"""Make untrusted text safe to show: strings of devices, names of files, values of a configuration, messages of servers.

Whatever shows such text calls one of these functions. What counts as harmless is `str.isprintable` (Python, "Text Sequence Type"): it is
false for all characters of the Unicode categories Other and Separator but the space, and so for controls (C0, DEL, C1), line separators,
bidirectional controls and surrogates.
"""

from __future__ import annotations


def escape(text: str) -> str:
    """Replace all characters that are not printable by Python's escapes, so that text can neither control a terminal nor begin a line."""
    if text.isprintable():  # nearly every text: spare it the characters one by one
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def escape_to_ascii(text: str) -> str:
    """Replace backslashes, and all characters that are not printable ASCII, by Python's escapes: for a message that suits any encoding."""
    return ascii(text)[1:-1]


def blank(text: str) -> str:
    """Replace all characters that are not printable by spaces: for a protocol of lines whose reader undoes no escapes."""
    return "".join(char if char.isprintable() else " " for char in text)


def shorten(text: str, length: int) -> str:
    """Cut text to `length` characters, the last of which is then an ellipsis."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def quote(text: str, length: int) -> str:
    """Return a quotation for a message: in ASCII, on one line, at most `length` characters."""
    shown = ascii(text[:length])
    return shown if len(shown) <= length else f"{shown[: length - 3]}..."


def quote_for_yaml(text: str) -> str:
    r"""Return a double-quoted YAML scalar in printable ASCII: `\U` and eight digits (YAML 1.1, 5.6), as YAML refuses surrogate pairs."""
    return f'"{"".join(map(_escape_for_yaml, text))}"'


def _escape_for_yaml(char: str) -> str:
    if char.isascii() and char.isprintable():
        return f"\\{char}" if char in '"\\' else char
    return f"\\U{ord(char):08x}"
