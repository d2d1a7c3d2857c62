"""The Makefile: what it starts is there to be started."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from support.checkout import CHECKOUT

OURS = re.compile(r'^\t@(?:cd (\S+) && )?exec "[^"]*/bin/python" (.*?-m (?:bench|fuzz|soak))\b', re.MULTILINE)
"""A recipe that runs a module of this checkout: in which folder, and with which options of Python."""


def recipes() -> list[tuple[str, str]]:
    """Return the folder and the options of each."""
    return OURS.findall((CHECKOUT / "Makefile").read_text(encoding="utf-8"))


def test_the_recipes_are_found() -> None:
    """The next test has something to run."""
    assert [options.rpartition(" ")[2] for _, options in recipes()] == ["bench", "fuzz", "soak"]


@pytest.mark.parametrize(("folder", "options"), recipes())
def test_a_target_finds_the_module_that_it_runs(folder: str, options: str) -> None:
    """`make fuzz` and the like start from any checkout, as the recipe says it."""
    command = [sys.executable, *options.split(), "--help"]
    done = subprocess.run(command, cwd=CHECKOUT / folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:6]) == (0, "usage:"), done.stderr
