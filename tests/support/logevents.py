"""Find the log events in the code: the texts with a dot that are passed to a logger, and the levels that they are logged at."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support.checkout import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LEVELS = ("debug", "info", "warning", "error")
_EVENT = re.compile(r"[a-z]+\.[a-z]+(_[a-z]+)*")


def events() -> Mapping[str, list[str]]:
    """Return all log events in alphabetical order, each with its levels, the lowest first: none where the code computes the level."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in sorted((CHECKOUT / "src" / "devwatch").rglob("*.py")):
        for event, levels in _Module(ast.parse(path.read_text("utf-8"))).logged():
            found[event] |= levels
    return {event: sorted(levels, key=LEVELS.index) for event, levels in sorted(found.items())}


@dataclass(frozen=True, slots=True)
class _Module:
    """A module of the code."""

    tree: ast.Module

    def logged(self) -> Iterator[tuple[str, set[str]]]:
        """Yield each event with the levels of one call that logs it."""
        for call in (node for node in ast.walk(self.tree) if isinstance(node, ast.Call)):
            for event in _texts(call):
                levels = self._levels(_name(call.func))
                if levels or _name(call.func) == "log":
                    yield event, levels

    def _levels(self, name: str) -> set[str]:
        """Return the level that a logger's method is named after, or those of what the module defines under this name."""
        if name in LEVELS:
            return {name}
        return {
            node.attr
            for place in ast.walk(self.tree)
            if name in _defined(place)
            for node in ast.walk(place)
            if isinstance(node, ast.Attribute) and node.attr in LEVELS
        }


def _name(function: ast.expr) -> str:
    """Return the name under which a function is called, without what it belongs to."""
    return function.attr if isinstance(function, ast.Attribute) else str(getattr(function, "id", ""))


def _texts(call: ast.Call) -> Iterator[str]:
    """Yield the events among the first two arguments: the first is a level where the level is computed."""
    for argument in call.args[:2]:
        choices = (argument.body, argument.orelse) if isinstance(argument, ast.IfExp) else (argument,)
        for each in choices:
            if isinstance(each, ast.Constant) and isinstance(each.value, str) and _EVENT.fullmatch(each.value):
                yield each.value


def _defined(node: ast.AST) -> set[str]:
    """Return the names that a statement defines."""
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}
