"""What docs/security.md says, against what is tested."""

from __future__ import annotations

import re

from support.checkout import CHECKOUT
from support.stolen import GRANTING, attempts

PAGE = (CHECKOUT / "docs" / "security.md").read_text("utf-8")
MAX_LINES = 115


def test_the_table_of_a_stolen_token_is_the_one_that_is_tried_out() -> None:
    """Row for row, as tests/system/test_stolen_token.py tries it with the token of a Pod."""
    section = PAGE.partition("## What a stolen token can do")[2].partition("\n## ")[0]
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in section.splitlines() if "|" in line]
    assert cells[2:] == [each.row for each in attempts()]


def test_every_component_has_its_place_on_the_page() -> None:
    """Those that grant permissions, and those that change what the daemon's Pod may do."""
    folders = {path.name for path in (CHECKOUT / "deploy" / "components").iterdir()}
    assert set(GRANTING) - {"base"} <= folders
    assert [name for name in sorted(folders) if f"`{name}`" not in PAGE] == []


def test_what_is_named_as_measured_is_there() -> None:
    """Each file of tests that the page names."""
    named = set(re.findall(r"`(tests/[a-z_/.]+)`", PAGE))
    assert named
    assert [name for name in sorted(named) if not (CHECKOUT / name).exists()] == []


def test_the_page_can_be_read_in_one_go() -> None:
    """An administrator reads it before the installation."""
    assert len(PAGE.splitlines()) <= MAX_LINES
