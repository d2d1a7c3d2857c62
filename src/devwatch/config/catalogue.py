"""Load the catalogue of well-known sticks from `sticks.toml`. Only the commands that show devices need it."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from devwatch.core.device import TTY
from devwatch.core.rules import KeyTest, Matcher, Pattern, ResourceRule
from devwatch.core.sticks import Stick

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@cache
def well_known_sticks() -> tuple[Stick, ...]:
    """Return the sticks in the order of the catalogue. They are part of the program: tests validate them, and not every start."""
    rows = tomllib.loads(resources.files("devwatch.config").joinpath("sticks.toml").read_text("utf-8"))["stick"]
    return tuple(Stick(title=row["title"], rule=_rule(row)) for row in rows)


def _rule(row: Mapping[str, Any]) -> ResourceRule:
    match = tuple(Matcher(tests=tuple(_key_tests(entry))) for entry in row["match"])
    return ResourceRule(name=row["resource"], match=match, subsystem=row.get("subsystem", TTY))


def _key_tests(entry: Mapping[str, Any]) -> Iterator[KeyTest]:
    """Yield the tests of an entry, whose keys and values are spelled as in a configuration."""
    for key, value in entry.items():
        for name, globs in value.items() if key == "properties" else (("", value),):
            texts = [globs] if isinstance(globs, str) else globs
            yield KeyTest(key=key, property_name=name, patterns=tuple(Pattern(text=text) for text in texts))
