"""A configuration as an editor sees it: typed values, the JSON Schema, and what it can say of a file that devwatch refuses."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # it has no type information

from devwatch.config.jsonschema import configuration_schema

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from devwatch.core.errors import Fault

VALIDATOR = Draft202012Validator(configuration_schema())
INEXPRESSIBLE: Mapping[str, str] = {
    r"an alias|an anchor|a tag ": "a schema sees values, and not how they are written",
    r"a collection as a key": "a schema sees keys as text, whatever they were",
    r"duplicate key": "a schema sees each key once",
    r"is taken \(each name once": "uniqueItems compares whole items, and not one key of each",
    r"the names take": "a schema does not add up lengths",
    r"too much content": "a schema does not count the values of the whole file",
    r"bytes \(the most that is read": "a schema does not see the bytes of the file",
}
"""The faults that JSON Schema cannot express, by their message, and why."""
WRITTEN_AS_A_NUMBER = (
    "of a number without quotes an editor keeps the value, and not the digits: 403 is 0403, and 0x43 is 67"
)
"""Why an invalid id may pass the schema; the description of its key says to quote it."""
WRITTEN_AS_NOTHING = (
    "a null without quotes is text to devwatch, and to an editor the same as a forgotten value, which is a fault"
)
"""Why a valid value may be refused by the schema."""
_NULL = re.compile(r"null|Null|NULL|~|")
_BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
_NUMBER = re.compile(
    r"0o[0-7]+|0x[0-9A-Fa-f]+|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_PLAIN = re.compile(r"[^\s,\]}]*")


def as_typed(data: bytes) -> object:
    """Return the content of a file, typed by the core schema (YAML 1.2, 10.3). Raises `YAMLError`, and `ValueError` for odd escapes."""
    root = yaml.compose(data, Loader=yaml.SafeLoader)
    return None if root is None else _typed(root, {})


def _typed(node: yaml.Node, known: dict[int, Any]) -> object:
    if id(node) in known:
        return known[id(node)]
    if isinstance(node, yaml.MappingNode):
        mapping = known[id(node)] = {}
        mapping.update({str(key.value): _typed(value, known) for key, value in node.value})
        return mapping
    if isinstance(node, yaml.SequenceNode):
        items = known[id(node)] = []
        items.extend(_typed(item, known) for item in node.value)
        return items
    quoted = isinstance(node, yaml.ScalarNode) and node.style is not None
    return str(node.value) if quoted else _plain(str(node.value))


def _plain(text: str) -> object:
    """Return the value of a scalar without quotes. What number it is does not matter to the schema."""
    if _NULL.fullmatch(text):
        return None
    if _BOOLEAN.fullmatch(text):
        return text.lower() == "true"
    return math.pi if _NUMBER.fullmatch(text) else text


def disagreement(data: bytes, faults: Sequence[Fault]) -> str:
    """Return on what devwatch and the schema disagree for a file with these faults; empty where they agree as far as a schema can."""
    try:
        errors = list(VALIDATOR.iter_errors(as_typed(data)))
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        return "" if faults else f"no editor can read it: {error}"
    if faults:
        expressible = [fault.message for fault in faults if not _inexpressible(fault, data)]
        return f"the schema accepts it in spite of {expressible}" if expressible and not errors else ""
    wrong = [error.message for error in errors if error.instance is not None]  # WRITTEN_AS_NOTHING
    return f"the schema refuses it: {wrong}" if wrong else ""


def _inexpressible(fault: Fault, data: bytes) -> bool:
    if any(re.search(message, fault.message) for message in INEXPRESSIBLE):
        return True
    line = data.decode("utf-8", "replace").splitlines()[fault.line - 1 :][:1]
    written = _PLAIN.match("".join(line), fault.column - 1)
    return "hex digits or a glob" in fault.message and written is not None and bool(_NUMBER.fullmatch(written[0]))
