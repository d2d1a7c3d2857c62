"""One definition for one thing: each has its place in the code, and whatever else states it agrees."""

from __future__ import annotations

import re

import pytest

from devwatch.cli.entry import main
from devwatch.core import exitstatus
from devwatch.core.keys import KEYS
from support.checkout import CHECKOUT

SOURCES = {
    str(path.relative_to(CHECKOUT / "src" / "devwatch")): path.read_text("utf-8")
    for path in sorted((CHECKOUT / "src" / "devwatch").rglob("*.py"))
}


@pytest.mark.parametrize(
    ("place", "sign"),
    [
        ("core/text.py", r"\.isprintable\b|unicode_escape|\bascii\("),
        ("core/exitstatus.py", r"^[A-Z_]+ = 78$|Exit status: "),
    ],
)
def test_what_has_a_place_is_done_there_alone(place: str, sign: str) -> None:
    """Another module calls that place; it does not do the same once more."""
    assert [name for name, source in SOURCES.items() if re.search(sign, source, re.MULTILINE)] == [place]


def test_the_exit_statuses_are_those_that_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    """In the manual and in the help."""
    assert exitstatus.SUMMARY in (CHECKOUT / "docs" / "operations.md").read_text("utf-8")
    assert main(["--help"], {}) == exitstatus.DONE
    assert exitstatus.SUMMARY in capsys.readouterr().out


def test_the_keys_of_a_rule_are_those_that_are_documented() -> None:
    """All of them, in their order, with the udev property of each."""
    rows = (
        f"| `{key.name}` | {key.description}{f' (`{key.source}`)' if key.source else ''} |\n" for key in KEYS.values()
    )
    table = f"| key | matched with |\n|---|---|\n{''.join(rows)}\n"
    assert table in (CHECKOUT / "docs" / "configuration.md").read_text("utf-8")
