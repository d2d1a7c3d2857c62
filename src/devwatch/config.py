"""Text to a frozen `Config`: every fault at once, each at its line and column.

The events of the YAML parser become a small tree. Readers, one for each kind of value, turn the tree into rules: a
reader reports what is wrong and returns None, and its neighbours go on. YAML's own typing never happens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, chain
from typing import Any, Literal, TypeVar

import yaml

from devwatch.errors import ConfigError, Fault
from devwatch.rules import KEYS, Count, KeyTest, Matcher, Pattern, ResourceRule, is_glob

MAX_BYTES = 256 * 1024
"""The largest configuration that is parsed."""

# Bounds that keep the worst file within a second, also with the parser in pure Python; sensible files are far below.
_MAX_DEPTH, _MAX_EVENTS, _MAX_FAULTS = 16, 8192, 100
_MAX_PATTERN, _MAX_SIGNS, _MAX_QUOTE = 512, 32, 60
_MAX_COMPARED, _MAX_NAMES = 400, 16 * 1024

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_NO_STRING = re.compile("[\0\ud800-\udfff]")
_PLAIN_KEY = re.compile(rf"[\w.-]{{1,{_MAX_QUOTE}}}", re.ASCII)
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_DURATION = re.compile(f"([0-9]+)({'|'.join(_MILLISECONDS)})")
_HEX = re.compile(r"(?:0[xX])?([0-9A-Fa-f]+)")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A configuration without a fault; `warnings` are what is probably not meant."""

    resources: tuple[ResourceRule, ...]
    """The resources of all nodes, in the order of the file, which is their priority."""
    sweep: float = 10.0
    """Seconds between two looks at the devices when nothing happens."""
    resync: float | None = None
    """Seconds between two PATCHes when nothing happens; None where the file leaves the choice to the daemon."""
    warnings: tuple[Fault, ...] = ()

    def for_node(self, name: str) -> tuple[ResourceRule, ...]:
        """Return the resources that exist on the node of this name, in their order."""
        return tuple(rule for rule in self.resources if rule.applies_to(name))

    @property
    def literal_paths(self) -> frozenset[str]:
        """The paths that the file names without a glob: what may be a link that no listing of links shows."""
        entries = chain.from_iterable((*rule.match, *rule.exclude) for rule in self.resources)
        tests = (test for entry in entries for test in entry.tests if test.key == "path")
        texts = (pattern.text for test in tests for pattern in test.patterns)
        return frozenset(text for text in texts if text and not is_glob(text))


def parse(data: bytes, *, file: str) -> Config:
    """Return the configuration that `data` holds in YAML (UTF-8, at most `MAX_BYTES`).

    Raises `ConfigError` with every fault, by line and column; `file` is only the name to report. The work is bounded,
    whatever the bytes are.
    """
    at = _At()
    root = _document(data, at)
    config = None if root is None else _record(root, at, keys=_CONFIG, make=Config)
    if config is None or at.faults:
        raise ConfigError(file, _shown(at.faults))
    return replace(config, warnings=_shown(at.warnings))


def resource_name_fault(name: str) -> str:
    """Return what the Pod API asks of the name of an extended resource and this one lacks, empty for a valid one.

    The rules are those of `IsExtendedResourceName` (pkg/apis/core/v1/helper): the name must also be valid with
    `requests.` before it, as quotas spell it, which leaves a prefix 244 of the 253 characters of a DNS subdomain.
    """
    prefix, slash, short = name.partition("/")
    subdomain = len(prefix) <= 244 and _SUBDOMAIN.fullmatch(prefix)  # noqa: PLR2004  # the docstring counts them
    qualified = len(short) <= 63 and _QUALIFIED.fullmatch(short)  # noqa: PLR2004  # as the message says
    rules = (
        (slash, "PREFIX/NAME is wanted, such as example.com/zigbee"),
        ("kubernetes.io/" not in name, "kubernetes.io/ must not be in it"),
        (not name.startswith("requests."), "requests. must not be at its beginning"),
        (subdomain, "before the / at most 244 lower-case letters, digits, - and ., as in a DNS name"),
        (qualified, "after the / at most 63 letters, digits, -, _ and ., with a letter or digit at both ends"),
    )
    return next((wanted for kept, wanted in rules if not kept), "")


def spelling(key: str, value: str) -> str | None:
    """Return the glob that matches this value of a key of `match` and no other, None where the configuration can hold none."""
    text = "".join(f"[{char}]" if is_glob(char) else char for char in value)
    pattern, _ = _SPELLINGS.get(key, _glob)(text)
    return text if pattern and pattern.matches(value) and not _NO_STRING.search(text) else None


# What stands at a place of the file, as a message names it; "" is something reported already, of which no more is said.
_Kind = Literal["text", "nothing", "a list", "a mapping", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """A node of the tree with its place, counted from 1. A mapping's items are its keys and values in turn."""

    line: int = 1
    column: int = 1
    kind: _Kind = ""
    text: str = ""
    items: list[_Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _At:
    """The key that is being read, and where to report what is wrong with it."""

    path: str = ""
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)

    def key(self, name: str) -> _At:
        text = name if _PLAIN_KEY.fullmatch(name) else _quoted(name)
        return replace(self, path=f"{self.path}.{text}" if self.path else text)

    def item(self, index: int) -> _At:
        return replace(self, path=f"{self.path}[{index}]")

    def fault(self, node: _Node, message: str) -> None:
        # One more than is shown, so that it is known that there are more.
        if len(self.faults) <= _MAX_FAULTS:
            self.faults.append(Fault(line=node.line, column=node.column, path=self.path, message=message))

    def wants(self, node: _Node, wanted: str) -> None:
        if node.kind:
            empty = " with nothing in it" if node.kind in {"a list", "a mapping"} and not node.items else ""
            self.fault(node, f"{node.kind}{empty} stands here ({wanted})")


def _shown(faults: Sequence[Fault]) -> tuple[Fault, ...]:
    shown = sorted(faults[:_MAX_FAULTS], key=lambda fault: (fault.line, fault.column))
    more = [replace(fault, path="", message="more faults not shown") for fault in shown[-1:]]
    return (*shown, *more) if len(faults) > _MAX_FAULTS else tuple(shown)


def _quoted(text: str) -> str:
    """Return foreign text for a message: in quotes, in ASCII, on one line, not too long."""
    shown = ascii(text[:_MAX_QUOTE])
    return shown if len(shown) <= _MAX_QUOTE else f"{shown[: _MAX_QUOTE - 3]}..."


def _document(data: bytes, at: _At) -> _Node | None:
    """Return the root of the YAML document, None where there is no telling; `at` hears why."""
    if len(data) > MAX_BYTES:
        at.fault(_Node(), f"the file has more than {MAX_BYTES} bytes (the most that is read)")
        return None
    text = data.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
    # The parsers refuse these too, but one counts bytes and the other characters to say where.
    bad = _UNPRINTABLE.search(text)
    if bad:
        place = _Node(line=text.count("\n", 0, bad.start()) + 1, column=bad.start() - text.rfind("\n", 0, bad.start()))
        at.fault(
            place, f"byte {bad[0].encode(errors='surrogateescape').hex(' ')} stands here (printable text in UTF-8)"
        )
    return None if bad else _tree(text, at)


def _events(text: str, at: _At) -> Iterator[yaml.Event]:
    """Yield the events up to the first error of syntax, which is reported."""
    node = _Node()
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            node = _node(event.end_mark)
            yield event
    # The parser in pure Python lets the last two out of `chr`, for an escape beyond Unicode.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        at.fault(_node(mark) if mark else node, f"no YAML: {ascii(problem)[1:-1][:200]}")


def _node(mark: Any, kind: _Kind = "", text: str = "") -> _Node:  # noqa: ANN401  # the parsers' marks share no type
    return _Node(line=mark.line + 1, column=mark.column + 1, kind=kind, text=text)


def _tree(text: str, at: _At) -> _Node | None:
    """Put the events of one document together, without recursion and without YAML's indirections."""
    stack, complete = [_Node(kind="a list")], False
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
    return next(iter(stack[0].items), _Node(kind="nothing")) if complete else None


def _excess(stack: Sequence[_Node], event: yaml.Event, count: int) -> str:
    if isinstance(event, yaml.DocumentStartEvent) and stack[0].items:
        return "a second document begins (one document)"
    if isinstance(event, yaml.CollectionStartEvent) and len(stack) > _MAX_DEPTH:
        return f"nested too deeply (at most {_MAX_DEPTH} levels)"
    return f"too much content (at most {_MAX_EVENTS} values, beginnings and ends)" if count > _MAX_EVENTS else ""


def _grow(stack: list[_Node], event: yaml.NodeEvent, at: _At) -> None:
    text, parent = getattr(event, "value", ""), stack[-1]
    kinds: dict[type, _Kind] = {yaml.SequenceStartEvent: "a list", yaml.MappingStartEvent: "a mapping"}
    # A plain scalar has no style; a quoted one may be empty.
    kinds[yaml.ScalarEvent] = "text" if text or getattr(event, "style", "") else "nothing"
    node = _node(event.start_mark, kinds.get(type(event), ""), text)
    parent.items.append(node)
    alias, nested = isinstance(event, yaml.AliasEvent), isinstance(event, yaml.CollectionStartEvent)
    banned = {
        "an alias (the value itself, written out)": alias,
        "an anchor (the value alone)": event.anchor is not None and not alias,
        "a tag (the value alone; every scalar is text)": getattr(event, "tag", None) is not None,
        "a NUL or half a surrogate pair in text (what a device can hold)": _NO_STRING.search(text),
        "a collection as a key (text)": nested and parent.kind == "a mapping" and len(parent.items) % 2,
    }
    for message in filter(banned.get, banned):
        _here(stack, at).fault(node, message)
    if nested:
        stack.append(node)


def _here(stack: list[_Node], at: _At) -> _At:
    """Return where the newest node stands; a key stands in its mapping."""
    for node in stack[1:]:
        if node.kind == "a list":
            at = at.item(len(node.items) - 1)
        elif len(node.items) % 2 == 0:
            at = at.key(node.items[-2].text)
    return at


_GLOB = 'a glob or a list of globs; write "" for an absent value'
# A reader returns None where it reported a fault; a spelling returns None for a wrong text, and what is allowed.
_Reader = Callable[[_Node, _At], T | None]
_Spelling = Callable[[str], tuple[T | None, str]]
_Tests = tuple[KeyTest, ...]


# A key that a mapping may have: the field that its value fills, and what reads it.
@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    field: str
    read: _Reader[object]
    required: bool = False


def _entries(node: _Node, at: _At) -> dict[str, tuple[_Node, _Node]]:
    """Return key and value of the first entry of every name; nothing for a node that is no mapping."""
    entries: dict[str, tuple[_Node, _Node]] = {}
    items = node.items if node.kind == "a mapping" else []
    for key, value in zip(items[::2], items[1::2], strict=True):
        if key.kind in {"text", "nothing"}:
            first, _ = entries.setdefault(key.text, (key, value))
            if first is not key:
                at.key(key.text).fault(key, f"duplicate key (the first is in line {first.line})")
    return entries


def _record(node: _Node, at: _At, *, keys: Mapping[str, _Key], make: Callable[..., T]) -> T | None:
    if node.kind != "a mapping" or not node.items:
        at.wants(node, f"a mapping with {', '.join(keys)}")
        return None
    entries = _entries(node, at)
    values = {keys[name].field: keys[name].read(entries[name][1], at.key(name)) for name in entries if name in keys}
    for name in (name for name in entries if name not in keys):
        at.key(name).fault(entries[name][0], _unknown(name, keys, at))
    missing = [name for name, key in keys.items() if key.required and name not in entries]
    for name in missing:
        at.key(name).fault(node, "is missing (it is required)")
    return None if missing or None in values.values() else make(**values)


def _unknown(name: str, keys: Mapping[str, _Key], at: _At) -> str:
    # Only a mistake that is shown needs it: most daemons never hold it in memory.
    from difflib import get_close_matches  # noqa: PLC0415

    near = () if len(at.faults) > _MAX_FAULTS else get_close_matches(name[:_MAX_QUOTE], keys, n=1)
    return f"unknown key ({', '.join(keys)}{''.join(f'; did you mean {key}?' for key in near)})"


def _list(node: _Node, at: _At, *, read: _Reader[T], least: int = 1) -> tuple[T, ...] | None:
    if node.kind != "a list" or len(node.items) < least:
        at.wants(node, f"a list{' of at least one' if least else ', [] for none'}")
        return None
    values = (read(item, at.item(index)) for index, item in enumerate(node.items))
    good = tuple(value for value in values if value is not None)
    return good if len(good) == len(node.items) else None


def _values(node: _Node, at: _At, *, spelling: _Spelling[T]) -> tuple[T, ...] | None:
    if node.kind == "a list":
        return _list(node, at, read=partial(_scalar, spelling=spelling))
    value = _scalar(node, at, spelling=spelling)
    return None if value is None else (value,)


def _scalar(node: _Node, at: _At, *, spelling: _Spelling[T]) -> T | None:
    value, allowed = spelling(node.text)
    if node.kind != "text":
        at.wants(node, allowed)
    elif value is None:
        at.fault(node, f"{_quoted(node.text)} is not valid ({allowed})")
    return value if node.kind == "text" else None


def _glob(text: str, *, form: str = "", wanted: str = _GLOB) -> tuple[Pattern | None, str]:
    if len(text) > _MAX_PATTERN or sum(map(text.count, "*?[")) > _MAX_SIGNS:
        return None, f"at most {_MAX_PATTERN} characters and {_MAX_SIGNS} of * ? ["
    return Pattern(text=text) if re.match(form, text, re.DOTALL) else None, wanted


def _digits(text: str, *, least: int, most: int, absent: str) -> tuple[Pattern | None, str]:
    if is_glob(text):
        return _glob(text.lower())
    digits = _HEX.fullmatch(text)
    number = digits[1].lower().zfill(most) if digits else ""
    if digits and digits[1] == text and least <= len(text) <= most:
        return Pattern(text=number), ""
    near = f'write "{number}"' if len(number) == most else f'for an absent one properties: {{{absent}: ""}}'
    return None, f"{'one or two' if least < most else 'four'} hex digits or a glob; {near}"


def _seconds(text: str) -> float:
    """Return a duration in seconds, -1 for what is none."""
    parts = _DURATION.fullmatch(text)
    return float(parts[1]) * _MILLISECONDS[parts[2]] / 1000 if parts else -1


def _duration(node: _Node, at: _At, *, least: str, most: str) -> float | None:
    allowed = f"a duration such as 500ms, 2s, 5m or 1h, from {least} to {most}"
    low, high = _seconds(least), _seconds(most)
    return _scalar(node, at, spelling=lambda text: (_seconds(text) if low <= _seconds(text) <= high else None, allowed))


def _tests(node: _Node, at: _At, *, key: str, spelling: _Spelling[Pattern], name: str = "") -> _Tests | None:
    patterns = _values(node, at, spelling=spelling)
    return None if patterns is None else (KeyTest(key=key, patterns=patterns, property_name=name),)


def _properties(node: _Node, at: _At) -> _Tests:
    entries = _entries(node, at)
    if node.kind != "a mapping" or not node.items:
        at.wants(node, "a mapping of udev properties to globs")
    if "" in entries:
        at.fault(entries[""][0], "a property without a name (such as ID_MODEL)")
    read = partial(_tests, key="properties", spelling=_glob)
    tests = [read(value, at.key(name), name=name) for name, (_, value) in entries.items()]
    return tuple(chain.from_iterable(test or () for test in tests))


def _resources(node: _Node, at: _At) -> tuple[ResourceRule, ...] | None:
    rules = _list(node, at, read=partial(_record, keys=_RESOURCE, make=ResourceRule), least=0)
    items = node.items if node.kind == "a list" else []
    # What is wrong inside a resource was reported when it was read.
    names = [_entries(item, _At()).get("name", (item, _Node()))[1] for item in items]
    first: dict[str, _Node] = {}
    for index, name in enumerate(names):
        if name.text and first.setdefault(name.text, name) is not name:
            taken = f"{_quoted(name.text)} is taken (each name once; the first is in line {first[name.text].line})"
            at.item(index).key("name").fault(name, taken)
    size = len(json.dumps({name: [] for name in first if not resource_name_fault(name)}, separators=(",", ":")))
    if size > _MAX_NAMES:
        at.fault(node, f"the names take {size} bytes of the Node's annotation (at most {_MAX_NAMES})")
    _warn_of_shadowed(rules or (), names, at)
    return rules


def _warn_of_shadowed(rules: Sequence[ResourceRule], names: Sequence[_Node], at: _At) -> None:
    """Warn of resources that an earlier one leaves nothing, as far as the bound on comparisons reaches."""
    tests = ([test for entry in (*rule.match, *rule.exclude) for test in entry.tests] for rule in rules)
    sizes = accumulate(sum(len(test.patterns) for test in of_rule) for of_rule in tests)
    near = [rule for rule, size in zip(rules, sizes, strict=True) if size <= _MAX_COMPARED]
    for index, rule in enumerate(near):
        for earlier, name in zip(near[:index], names, strict=False):
            if earlier.shadows(rule):
                message = f"nothing is left for it: {earlier.name} (line {name.line}) comes first and takes it all"
                replace(at, faults=at.warnings).item(index).key("name").fault(names[index], message)
                break


_NAME: _Reader[str] = partial(
    _scalar, spelling=lambda text: (None if (why := resource_name_fault(text)) else text, why)
)
_COUNTS = {count.value: count for count in Count}
_COUNT: _Reader[Count] = partial(_scalar, spelling=lambda text: (_COUNTS.get(text), " or ".join(_COUNTS)))
_NODES = partial(_values, spelling=partial(_glob, form=".", wanted="a glob of node names or a list of them"))
_SPELLINGS: Mapping[str, _Spelling[Pattern]] = {
    "vendor": partial(_digits, least=4, most=4, absent="ID_VENDOR_ID"),
    "product": partial(_digits, least=4, most=4, absent="ID_MODEL_ID"),
    "serial": _glob,
    "interface": partial(_digits, least=1, most=2, absent="ID_USB_INTERFACE_NUM"),
    "port": _glob,
    "path": partial(_glob, form=r"$|[/*?\[]", wanted="an absolute path, a glob or a list of them"),
}
_READERS = {key: partial(_tests, key=key, spelling=spelling) for key, spelling in _SPELLINGS.items()}
_MATCHER = {key: _Key(field=key, read=_READERS.get(key, _properties)) for key in KEYS}
_ENTRY = partial(_record, keys=_MATCHER, make=lambda **tests: Matcher(tests=tuple(chain(*tests.values()))))
_EVICT = {"after": _Key(field="after", read=partial(_duration, least="0s", most="24h"), required=True)}
_RESOURCE = {
    "name": _Key(field="name", read=_NAME, required=True),
    "match": _Key(field="match", read=partial(_list, read=_ENTRY), required=True),
    "exclude": _Key(field="exclude", read=partial(_list, read=_ENTRY, least=0)),
    "count": _Key(field="count", read=_COUNT),
    "nodes": _Key(field="nodes", read=_NODES),
    "removalGrace": _Key(field="removal_grace", read=partial(_duration, least="0s", most="1h")),
    "evict": _Key(field="evict_after", read=partial(_record, keys=_EVICT, make=lambda *, after: after)),
}
_CONFIG = {
    "resources": _Key(field="resources", read=_resources, required=True),
    "sweep": _Key(field="sweep", read=partial(_duration, least="1s", most="5m")),
    "resync": _Key(field="resync", read=partial(_duration, least="1s", most="24h")),
}
