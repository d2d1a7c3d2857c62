"""One definition for one thing: each has its place in the code, and whatever else states it agrees."""

from __future__ import annotations

import re

import pytest

from support.checkout import CHECKOUT

SOURCES = {
    str(path.relative_to(CHECKOUT / "src" / "devwatch")): path.read_text("utf-8")
    for path in sorted((CHECKOUT / "src" / "devwatch").rglob("*.py"))
}


@pytest.mark.parametrize(
    ("place", "sign"),
    [
        ("core/text.py", r"\.isprintable\b|unicode_escape|\bascii\("),
    ],
)
def test_what_has_a_place_is_done_there_alone(place: str, sign: str) -> None:
    """Another module calls that place; it does not do the same once more."""
    assert [name for name, source in SOURCES.items() if re.search(sign, source)] == [place]
