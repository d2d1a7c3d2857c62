"""The page of promises lists what the docstrings promise, and names tests that exist."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

from support.checkout import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = (CHECKOUT / "docs" / "promises.md").read_text()
SOURCE, TESTS = CHECKOUT / "src" / "devwatch", CHECKOUT / "tests"
_PROMISE = re.compile(r"^ +- \*(.+?)\*:", re.MULTILINE)
_ROW = re.compile(r"^\| \*\*(.+?)\*\* \|", re.MULTILINE)
_TEST = re.compile(r"`(test_\w+)::(test_\w+)`")


def classes() -> Iterator[tuple[str, str, str]]:
    """Yield name, file and docstring of each class that makes promises."""
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and re.search(
                r"promises?\b.*:\n\n +- \*", ast.get_docstring(node, clean=False) or ""
            ):
                yield node.name, str(file.relative_to(CHECKOUT)), ast.get_docstring(node, clean=False) or ""


def functions(file: Path) -> set[str]:
    """Return the tests of a file."""
    nodes = ast.walk(ast.parse(file.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


MAKERS = {name: (file, _PROMISE.findall(text)) for name, file, text in classes()}


def test_every_promise_of_a_docstring_is_on_the_page_and_no_other() -> None:
    """A reader of the page knows all of them."""
    made = {promise for _, promises in MAKERS.values() for promise in promises}
    assert made == set(_ROW.findall(PAGE))


@pytest.mark.parametrize("name", MAKERS)
def test_the_page_says_who_promises(name: str) -> None:
    """By class and file."""
    assert f"`{name}`, `{MAKERS[name][0]}`" in PAGE


@pytest.mark.parametrize(("module", "test"), _TEST.findall(PAGE))
def test_the_tests_that_show_a_promise_exist(module: str, test: str) -> None:
    """A test that is renamed takes its row along."""
    assert [file for file in TESTS.rglob(f"{module}.py") if test in functions(file)]


def test_every_promise_is_shown() -> None:
    """Each row of the page names a test."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert [row for row in rows if not _TEST.search(row)] == []
