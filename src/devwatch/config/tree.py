"""Parse YAML into a small tree with positions, from the events of the parser and without YAML's typing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import yaml

from devwatch.core.errors import Fault
from devwatch.core.text import escape_to_ascii, quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_BYTES = 256 * 1024
"""Bytes of the largest configuration that is parsed."""
# Bounds that keep the worst file within a second, also with the parser in pure Python; sensible files are far below.
MAX_DEPTH, MAX_EVENTS, MAX_FAULTS, MAX_QUOTE = 16, 8192, 100, 60
# The characters that YAML does not allow (YAML 1.1, 5.1), and U+FEFF, which it allows at the beginning of a document alone.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
NO_STRING = re.compile("[\0\ud800-\udfff]")
_PLAIN_KEY = re.compile(rf"[\w.-]{{1,{MAX_QUOTE}}}", re.ASCII)
# The kind of a node, as a message names it; "" marks a node whose fault was reported already, so that it gets no second one.
Kind = Literal["text", "nothing", "a list", "a mapping", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of the tree with its position, counted from 1. The items of a mapping alternate between keys and values."""

    line: int = 1
    column: int = 1
    kind: Kind = ""
    text: str = ""
    items: list[Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The key that is being read, and the lists that collect its faults and warnings."""

    path: str = ""
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)

    def key(self, name: str) -> Place:
        """Return the place of a key of this mapping."""
        text = name if _PLAIN_KEY.fullmatch(name) else quote(name, MAX_QUOTE)
        return replace(self, path=f"{self.path}.{text}" if self.path else text)

    def item(self, index: int) -> Place:
        """Return the place of an item of this list."""
        return replace(self, path=f"{self.path}[{index}]")

    def fault(self, node: Node, message: str) -> None:
        """Report a fault."""
        # One more than is shown, so that `shown_faults` knows that there are more.
        if len(self.faults) <= MAX_FAULTS:
            self.faults.append(Fault(line=node.line, column=node.column, path=self.path, message=message))

    def wants(self, node: Node, wanted: str) -> None:
        """Report that a node is of another kind than `wanted`."""
        if node.kind:
            empty = " with nothing in it" if node.kind in {"a list", "a mapping"} and not node.items else ""
            self.fault(node, f"{node.kind}{empty} stands here ({wanted})")


def shown_faults(faults: Sequence[Fault]) -> tuple[Fault, ...]:
    """Return the faults in the order of the file, at most `MAX_FAULTS`, and one more that says if any were left out."""
    shown = sorted(faults[:MAX_FAULTS], key=lambda fault: (fault.line, fault.column))
    more = [replace(fault, path="", message="more faults not shown") for fault in shown[-1:]]
    return (*shown, *more) if len(faults) > MAX_FAULTS else tuple(shown)


def read_document(data: bytes, at: Place) -> Node | None:
    """Return the root of the YAML document, None where it cannot be parsed; `at` receives the fault.

    The cases, in this order: the size, before anything costs time; a byte order mark, which editors write and which is not content;
    bytes that are not UTF-8, decoded to surrogates here so that the search for unprintable characters finds them too. A parser
    would refuse those characters as well, but PyYAML's two parsers disagree on the position: one counts bytes, the other
    characters.
    """
    if len(data) > MAX_BYTES:
        at.fault(Node(), f"the file has more than {MAX_BYTES} bytes (the most that is read)")
        return None
    text = data.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
    bad = _UNPRINTABLE.search(text)
    if bad:
        place = Node(line=text.count("\n", 0, bad.start()) + 1, column=bad.start() - text.rfind("\n", 0, bad.start()))
        at.fault(
            place, f"byte {bad[0].encode(errors='surrogateescape').hex(' ')} stands here (printable text in UTF-8)"
        )
    return None if bad else _tree(text, at)


def _events(text: str, at: Place) -> Iterator[yaml.Event]:
    """Yield the events of the parser up to the first syntax error, which is reported."""
    node = Node()
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            node = _node(event.end_mark)
            yield event
    # For an escape beyond Unicode, the parser in pure Python lets the ValueError or OverflowError of `chr` through.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        tab = mark and "".join(text.split("\n")[mark.line : mark.line + 1])[mark.column :].startswith("\t")
        cure = " (a tab stands here: indent with spaces)" if tab else ""
        at.fault(_node(mark) if mark else node, f"invalid YAML: {escape_to_ascii(problem)[:200]}{cure}")


def _node(mark: Any, kind: Kind = "", text: str = "") -> Node:  # noqa: ANN401 - the marks of the two parsers share no type
    return Node(line=mark.line + 1, column=mark.column + 1, kind=kind, text=text)


def _tree(text: str, at: Place) -> Node | None:
    """Build the tree of one document from its events.

    The stack holds the open collections, below them a list that receives the root. There is no recursion, so depth costs no Python
    stack, and no alias is followed, so that a small file cannot expand ("billion laughs"). The checks come before the event is
    used: `_excess` ends the parse, since everything after it would cost time without bound; `_grow` reports what a configuration
    may not have (aliases, anchors, tags, odd text, collections as keys) and goes on, so that the file's other faults are found too.
    Where the events end before the end of the stream, `_events` has reported a syntax error, and there is no tree.
    """
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
    """Return which bound this event exceeds, empty where it exceeds none."""
    if isinstance(event, yaml.DocumentStartEvent) and stack[0].items:
        return "a second document begins (one document)"
    if isinstance(event, yaml.CollectionStartEvent) and len(stack) > MAX_DEPTH:
        return f"nested too deeply (at most {MAX_DEPTH} levels)"
    return f"too much content (at most {MAX_EVENTS} values, beginnings and ends)" if count > MAX_EVENTS else ""


def _grow(stack: list[Node], event: yaml.NodeEvent, at: Place) -> None:
    """Add the node of an event to the innermost open collection, and open it if it is a collection itself."""
    text, parent = getattr(event, "value", ""), stack[-1]
    kinds: dict[type, Kind] = {yaml.SequenceStartEvent: "a list", yaml.MappingStartEvent: "a mapping"}
    # An empty plain scalar, which has no style, is "nothing"; an empty quoted one is text.
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
    """Return the place of the newest node; that of a key is its mapping."""
    for node in stack[1:]:
        if node.kind == "a list":
            at = at.item(len(node.items) - 1)
        elif len(node.items) % 2 == 0:
            at = at.key(node.items[-2].text)
    return at
