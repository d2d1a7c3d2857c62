"""YAML to a small tree with positions: the events of the parser, without its own typing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import yaml

from devwatch.core.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_BYTES = 256 * 1024
"""The largest configuration that is parsed."""
# Bounds that keep the worst file within a second, also with the parser in pure Python; sensible files are far below.
MAX_DEPTH, MAX_EVENTS, MAX_FAULTS = 16, 8192, 100
_MAX_PATTERN, _MAX_SIGNS, MAX_QUOTE = 512, 32, 60
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
NO_STRING = re.compile("[\0\ud800-\udfff]")
_PLAIN_KEY = re.compile(rf"[\w.-]{{1,{MAX_QUOTE}}}", re.ASCII)
# What stands at a place of the file, as a message names it; "" is something reported already, of which no more is said.
Kind = Literal["text", "nothing", "a list", "a mapping", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of the tree with its place, counted from 1. A mapping's items are its keys and values in turn."""

    line: int = 1
    column: int = 1
    kind: Kind = ""
    text: str = ""
    items: list[Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The key that is being read, and where to report what is wrong with it."""

    path: str = ""
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)

    def key(self, name: str) -> Place:
        """Return the place of a key of the mapping that is read here."""
        text = name if _PLAIN_KEY.fullmatch(name) else quoted(name)
        return replace(self, path=f"{self.path}.{text}" if self.path else text)

    def item(self, index: int) -> Place:
        """Return the place of an item of the list that is read here."""
        return replace(self, path=f"{self.path}[{index}]")

    def fault(self, node: Node, message: str) -> None:
        """Report what is wrong here."""
        # One more than is shown, so that it is known that there are more.
        if len(self.faults) <= MAX_FAULTS:
            self.faults.append(Fault(line=node.line, column=node.column, path=self.path, message=message))

    def wants(self, node: Node, wanted: str) -> None:
        """Report that something else is allowed here than what stands here."""
        if node.kind:
            empty = " with nothing in it" if node.kind in {"a list", "a mapping"} and not node.items else ""
            self.fault(node, f"{node.kind}{empty} stands here ({wanted})")


def shown_faults(faults: Sequence[Fault]) -> tuple[Fault, ...]:
    """Return the faults in the order of the file, cut to `MAX_FAULTS`, with a last one that says so."""
    shown = sorted(faults[:MAX_FAULTS], key=lambda fault: (fault.line, fault.column))
    more = [replace(fault, path="", message="more faults not shown") for fault in shown[-1:]]
    return (*shown, *more) if len(faults) > MAX_FAULTS else tuple(shown)


def quoted(text: str) -> str:
    """Return foreign text for a message: in quotes, in ASCII, on one line, not too long."""
    shown = ascii(text[:MAX_QUOTE])
    return shown if len(shown) <= MAX_QUOTE else f"{shown[: MAX_QUOTE - 3]}..."


def read_document(data: bytes, at: Place) -> Node | None:
    """Return the root of the YAML document, None where there is no telling; `at` hears why."""
    if len(data) > MAX_BYTES:
        at.fault(Node(), f"the file has more than {MAX_BYTES} bytes (the most that is read)")
        return None
    text = data.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
    # The parsers refuse these too, but one counts bytes and the other characters to say where.
    bad = _UNPRINTABLE.search(text)
    if bad:
        place = Node(line=text.count("\n", 0, bad.start()) + 1, column=bad.start() - text.rfind("\n", 0, bad.start()))
        at.fault(
            place, f"byte {bad[0].encode(errors='surrogateescape').hex(' ')} stands here (printable text in UTF-8)"
        )
    return None if bad else _tree(text, at)


def _events(text: str, at: Place) -> Iterator[yaml.Event]:
    """Yield the events up to the first error of syntax, which is reported."""
    node = Node()
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            node = _node(event.end_mark)
            yield event
    # The parser in pure Python lets the last two out of `chr`, for an escape beyond Unicode.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        at.fault(_node(mark) if mark else node, f"no YAML: {ascii(problem)[1:-1][:200]}")


def _node(mark: Any, kind: Kind = "", text: str = "") -> Node:  # noqa: ANN401  # the parsers' marks share no type
    return Node(line=mark.line + 1, column=mark.column + 1, kind=kind, text=text)


def _tree(text: str, at: Place) -> Node | None:
    """Put the events of one document together, without recursion and without YAML's indirections."""
    stack, complete = [Node(kind="a list")], False
    for count, event in enumerate(_events(text, at)):
        excess = _excess(stack, event, count)
        if excess:
            at.fault(_node(event.start_mark), excess)
            return None
        if isinstance(event, yaml.NodeEvent):
            _grow(stack, event, at)
        elif isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
        complete = isinstance(event, yaml.StreamEndEvent)
    return next(iter(stack[0].items), Node(kind="nothing")) if complete else None


def _excess(stack: Sequence[Node], event: yaml.Event, count: int) -> str:
    if isinstance(event, yaml.DocumentStartEvent) and stack[0].items:
        return "a second document begins (one document)"
    if isinstance(event, yaml.CollectionStartEvent) and len(stack) > MAX_DEPTH:
        return f"nested too deeply (at most {MAX_DEPTH} levels)"
    return f"too much content (at most {MAX_EVENTS} values, beginnings and ends)" if count > MAX_EVENTS else ""


def _grow(stack: list[Node], event: yaml.NodeEvent, at: Place) -> None:
    text, parent = getattr(event, "value", ""), stack[-1]
    kinds: dict[type, Kind] = {yaml.SequenceStartEvent: "a list", yaml.MappingStartEvent: "a mapping"}
    # A plain scalar has no style; a quoted one may be empty.
    kinds[yaml.ScalarEvent] = "text" if text or getattr(event, "style", "") else "nothing"
    node = _node(event.start_mark, kinds.get(type(event), ""), text)
    parent.items.append(node)
    alias, nested = isinstance(event, yaml.AliasEvent), isinstance(event, yaml.CollectionStartEvent)
    banned = {
        "an alias (the value itself, written out)": alias,
        "an anchor (the value alone)": event.anchor is not None and not alias,
        "a tag (the value alone; every scalar is text)": getattr(event, "tag", None) is not None,
        "a NUL or half a surrogate pair in text (what a device can hold)": NO_STRING.search(text),
        "a collection as a key (text)": nested and parent.kind == "a mapping" and len(parent.items) % 2,
    }
    for message in filter(banned.get, banned):
        _here(stack, at).fault(node, message)
    if nested:
        stack.append(node)


def _here(stack: list[Node], at: Place) -> Place:
    """Return where the newest node stands; a key stands in its mapping."""
    for node in stack[1:]:
        if node.kind == "a list":
            at = at.item(len(node.items) - 1)
        elif len(node.items) % 2 == 0:
            at = at.key(node.items[-2].text)
    return at
