"""Parse text into a frozen `Config`: report every fault at once, each with line and column.

`tree` turns the events of the YAML parser into a small tree. Readers, one for each kind of value, turn the tree into rules: a
reader reports a fault and returns None, and its neighbours go on. YAML's own typing is never applied.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, chain
from typing import TypeVar

from devwatch.config.tree import MAX_FAULTS, MAX_QUOTE, NO_STRING, Node, Place, read_document, shown_faults
from devwatch.core.device import USB
from devwatch.core.errors import ConfigError, Fault
from devwatch.core.handover import variable_of
from devwatch.core.keys import KEYS, MatchKey
from devwatch.core.names import resource_name_fault, subsystem_fault
from devwatch.core.rules import Count, KeyTest, Matcher, Pattern, Publish, ResourceRule, is_glob
from devwatch.core.serials import SHARED_SERIALS
from devwatch.core.slices import MAX_ATTRIBUTE
from devwatch.core.states import SECOND_STATES
from devwatch.core.text import quote

_MAX_PATTERN, _MAX_WILDCARDS = 512, 32
"""Characters, and `*`, `?` and `[` among them, that one pattern may have."""
_MAX_COMPARED, _MAX_NAMES = 400, 16 * 1024
"""Patterns up to which resources are compared for shadowing; bytes that the names may take of the Node's annotation."""
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_DURATION = re.compile(f"([0-9]+)({'|'.join(_MILLISECONDS)})")
_APPENDED = re.compile(r"([1-9][0-9]*)?(/.*)?", re.DOTALL)
"""What follows a container path in one that it may meet: the number of a further device, and a path below that."""
_HEX = re.compile(r"(?:0[xX])?([0-9A-Fa-f]+)")
_PAIR = re.compile(r"([0-9A-Fa-f]{4}):([0-9A-Fa-f]{4})")
"""Vendor and product as lsusb(8) prints them."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A valid configuration; `warnings` name what is valid but probably not meant."""

    resources: tuple[ResourceRule, ...]
    """The resources of all nodes, in the order of the file, which is their priority."""
    sweep: float = 10.0
    """Seconds between two scans of the devices when no event arrives."""
    resync: float | None = None
    """Seconds between two PATCHes when nothing changes; None where the file leaves the choice to the daemon."""
    warnings: tuple[Fault, ...] = ()

    def for_node(self, name: str) -> tuple[ResourceRule, ...]:
        """Return the resources that apply to the node of this name, in order of priority."""
        return tuple(rule for rule in self.resources if rule.applies_to(name))

    @property
    def literal_paths(self) -> frozenset[str]:
        """The `path` values without a glob. Any of them may be a link that no listing of /dev/serial shows."""
        entries = chain.from_iterable((*rule.match, *rule.exclude) for rule in self.resources)
        tests = (test for entry in entries for test in entry.tests if test.key == "path")
        texts = (pattern.text for test in tests for pattern in test.patterns)
        return frozenset(text for text in texts if text and not is_glob(text))


def parse(data: bytes, *, file: str) -> Config:
    """Return the configuration that `data` holds in YAML (UTF-8, at most `MAX_BYTES`).

    Raises `ConfigError` with every fault, by line and column; `file` is only the name to report. The work is bounded for any input.
    """
    at = Place()
    root = read_document(data, at)
    config = None if root is None else _record(root, at, keys=_CONFIG, make=Config)
    if config is None or at.faults:
        raise ConfigError(file, shown_faults(at.faults))
    return replace(config, warnings=shown_faults(at.warnings))


def spelling(key: str, value: str) -> str | None:
    """Return the glob that matches exactly this value of a key of `match`, None where a configuration cannot hold one."""
    text = "".join(f"[{char}]" if is_glob(char) else char for char in value)
    pattern, _ = (_pattern(KEYS[key]) if key in KEYS else _glob)(text)
    return text if pattern and pattern.matches(value) and not NO_STRING.search(text) else None


_GLOB = 'a glob or a list of globs; write "" for an absent value'
# A reader reports a fault and returns None. A spelling returns the value, None for an invalid text, and what is allowed.
_Reader = Callable[[Node, Place], T | None]
_Spelling = Callable[[str], tuple[T | None, str]]
_Tests = tuple[KeyTest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """A key that a mapping may have: the field that its value fills, and the reader of the value."""

    field: str
    read: _Reader[object]
    description: str
    """What it means, with bounds and default, as an editor shows it."""
    required: bool = False


def _entries(node: Node, at: Place) -> dict[str, tuple[Node, Node]]:
    """Return key and value of the first entry of every name; empty for a node that is not a mapping."""
    entries: dict[str, tuple[Node, Node]] = {}
    items = node.items if node.kind == "a mapping" else []
    for key, value in zip(items[::2], items[1::2], strict=True):
        if key.kind in {"text", "nothing"}:
            first, _ = entries.setdefault(key.text, (key, value))
            if first is not key:
                at.key(key.text).fault(key, f"duplicate key (the first is in line {first.line})")
    return entries


def _record(node: Node, at: Place, *, keys: Mapping[str, _Key], make: Callable[..., T]) -> T | None:
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


def _unknown(name: str, keys: Mapping[str, _Key], at: Place) -> str:
    # Imported late: only a reported mistake needs it, so most daemons never load it.
    from difflib import get_close_matches  # noqa: PLC0415

    near = () if len(at.faults) > MAX_FAULTS else get_close_matches(name[:MAX_QUOTE], keys, n=1)
    return f"unknown key ({', '.join(keys)}{''.join(f'; did you mean {key}?' for key in near)})"


def _list(node: Node, at: Place, *, read: _Reader[T], least: int = 1) -> tuple[T, ...] | None:
    if node.kind != "a list" or len(node.items) < least:
        dash = '; begin its first line with "- "' if node.kind == "a mapping" and node.items else ""
        at.wants(node, f"a list{' of at least one' if least else ', [] for none'}{dash}")
        return None
    values = (read(item, at.item(index)) for index, item in enumerate(node.items))
    good = tuple(value for value in values if value is not None)
    return good if len(good) == len(node.items) else None


def _values(node: Node, at: Place, *, spelling: _Spelling[T]) -> tuple[T, ...] | None:
    if node.kind == "a list":
        return _list(node, at, read=partial(_scalar, spelling=spelling))
    value = _scalar(node, at, spelling=spelling)
    return None if value is None else (value,)


def _scalar(node: Node, at: Place, *, spelling: _Spelling[T]) -> T | None:
    value, allowed = spelling(node.text)
    if node.kind != "text":
        at.wants(node, allowed)
    elif value is None:
        at.fault(node, f"{quote(node.text, MAX_QUOTE)} is not valid ({allowed})")
    return value if node.kind == "text" else None


def _pattern(key: MatchKey) -> _Spelling[Pattern]:
    """Return the spelling of the values of a key."""
    if key.digits:
        return partial(_digits, least=key.digits[0], most=key.digits[1], absent=key.source)
    return partial(_glob, form=key.form, wanted=key.wanted or _GLOB)


def _glob(text: str, *, form: str = "", wanted: str = _GLOB) -> tuple[Pattern | None, str]:
    if len(text) > _MAX_PATTERN or sum(map(text.count, "*?[")) > _MAX_WILDCARDS:
        return None, f"at most {_MAX_PATTERN} characters and {_MAX_WILDCARDS} of * ? ["
    return Pattern(text=text) if re.match(form, text) else None, wanted


def _digits(text: str, *, least: int, most: int, absent: str) -> tuple[Pattern | None, str]:
    if is_glob(text):
        return _glob(text.lower())
    digits = _HEX.fullmatch(text)
    number = digits[1].lower().zfill(most) if digits else ""
    if digits and digits[1] == text and least <= len(text) <= most:
        return Pattern(text=number), ""
    near = f'write "{number}"' if len(number) == most else f'for an absent one properties: {{{absent}: ""}}'
    if pair := _PAIR.fullmatch(text):
        near = f'write vendor: "{pair[1]}" and product: "{pair[2]}"'
    return None, f"{'one or two' if least < most else 'four'} hex digits or a glob; {near}"


def _seconds(text: str) -> float:
    """Return a duration in seconds, -1 for text that is not a duration."""
    parts = _DURATION.fullmatch(text)
    return float(parts[1]) * _MILLISECONDS[parts[2]] / 1000 if parts else -1


def _duration(node: Node, at: Place, *, least: str, most: str) -> float | None:
    allowed = f"a duration such as 500ms, 2s, 5m or 1h, from {least} to {most}"
    low, high = _seconds(least), _seconds(most)
    return _scalar(node, at, spelling=lambda text: (_seconds(text) if low <= _seconds(text) <= high else None, allowed))


def _tests(node: Node, at: Place, *, key: str, spelling: _Spelling[Pattern], name: str = "") -> _Tests | None:
    patterns = _values(node, at, spelling=spelling)
    return None if patterns is None else (KeyTest(key=key, patterns=patterns, property_name=name),)


def _properties(node: Node, at: Place) -> _Tests:
    entries = _entries(node, at)
    if node.kind != "a mapping" or not node.items:
        at.wants(node, "a mapping of udev properties to globs")
    if "" in entries:
        at.fault(entries[""][0], "a property without a name (such as ID_MODEL)")
    read = partial(_tests, key="properties", spelling=_glob)
    tests = [read(value, at.key(name), name=name) for name, (_, value) in entries.items()]
    return tuple(chain.from_iterable(test or () for test in tests))


def _entry(node: Node, at: Place) -> Matcher | None:
    matcher = _record(node, at, keys=_MATCHER, make=lambda **tests: Matcher(tests=tuple(chain(*tests.values()))))
    if matcher and not any(test.key == "port" for test in matcher.tests):
        for test in matcher.tests:
            for serial in filter(partial(_names_serial, test), SHARED_SERIALS):
                message = (
                    f"many devices have the serial {serial} ({SHARED_SERIALS[serial]}): add the port to tell them apart"
                )
                value = _entries(node, Place())[test.key][1]
                replace(at, faults=at.warnings).key(test.key).fault(value, message)
    return matcher


def _names_serial(test: KeyTest, serial: str) -> bool:
    """Return whether a test names a serial, alone or in a link of /dev/serial/by-id."""
    texts = [pattern.text for pattern in test.patterns]
    if test.key == "path":
        return any(f"_{serial}-if" in text for text in texts)
    return test.key == "serial" and serial in texts


def _resource(node: Node, at: Place) -> ResourceRule | None:
    before = len(at.faults)
    rule = _record(node, at, keys=_RESOURCE, make=ResourceRule)
    if rule is None or len(at.faults) > before:
        return rule
    if rule.publish is Publish.DRA and len(rule.name) > MAX_ATTRIBUTE:
        long = f"has {len(rule.name)} characters (at most {MAX_ATTRIBUTE} with publish: {Publish.DRA.value})"
        at.key("name").fault(_entries(node, Place())["name"][1], long)
    if rule.publish.hands_over and rule.container_path.split("/")[2] in _VITAL:
        wanted = f"{rule.container_path} is a file that every container needs: choose another with container: {{path: /dev/...}}"
        entries = _entries(node, Place())
        at.key("container").fault(entries.get("container", entries["name"])[0], wanted)
    warn = replace(at, faults=at.warnings).key("match").fault
    for doubt in _doubts_of_match(rule):
        warn(_entries(node, Place())["match"][0], doubt)
    if rule.container and not rule.publish.hands_over:
        ways = f"only with publish: {Publish.DEVICE_PLUGIN.value} or {Publish.DRA.value}"
        at.key("container").fault(_entries(node, Place())["container"][0], f"no device is handed over ({ways})")
    return rule


def _doubts_of_match(rule: ResourceRule) -> Iterator[str]:
    """Yield what is valid in `match`, and cannot be meant for devices of this kind."""
    if rule.subsystem == USB and any(test.key == "interface" for entry in rule.match for test in entry.tests):
        yield "a whole USB device has no interface: an entry with one matches nothing"
    for second, first in SECOND_STATES.items():
        for state, other in ((first, second), (second, first)):
            exact = any(entry.names_model and entry.allows_model(*state) for entry in rule.match)
            if exact and not any(entry.allows_model(*other) for entry in rule.match):
                yield f"{':'.join(state)} has the ids {':'.join(other)} in its other state (it changes them when it is used): match both"


def _resources(node: Node, at: Place) -> tuple[ResourceRule, ...] | None:
    rules = _list(node, at, read=_resource, least=0)
    items = node.items if node.kind == "a list" else []
    # A fresh place, whose faults are dropped: those inside a resource were reported when the resource was read.
    names = [_entries(item, Place()).get("name", (item, Node()))[1] for item in items]
    first: dict[str, Node] = {}
    for index, name in enumerate(names):
        if name.text and first.setdefault(name.text, name) is not name:
            taken = (
                f"{quote(name.text, MAX_QUOTE)} is taken (each name once; the first is in line {first[name.text].line})"
            )
            at.item(index).key("name").fault(name, taken)
    size = len(json.dumps({name: [] for name in first if not resource_name_fault(name)}, separators=(",", ":")))
    if size > _MAX_NAMES:
        at.fault(node, f"the names take {size} bytes of the Node's annotation (at most {_MAX_NAMES})")
    _warn_of_pairs(rules or (), names, at)
    return rules


def _warn_of_pairs(rules: Sequence[ResourceRule], names: Sequence[Node], at: Place) -> None:
    """Warn of each resource that does not go with an earlier one, among the first with `_MAX_COMPARED` patterns together."""
    tests = ([test for entry in (*rule.match, *rule.exclude) for test in entry.tests] for rule in rules)
    sizes = accumulate(sum(len(test.patterns) for test in of_rule) for of_rule in tests)
    compared = [rule for rule, size in zip(rules, sizes, strict=True) if size <= _MAX_COMPARED]
    for index, rule in enumerate(compared):
        for warn in (_shadow, _meeting):
            texts = (warn(rule, other, name.line) for other, name in zip(compared[:index], names, strict=False))
            if message := next(filter(None, texts), ""):
                replace(at, faults=at.warnings).item(index).key("name").fault(names[index], message)


def _shadow(rule: ResourceRule, earlier: ResourceRule, line: int) -> str:
    """Return that an earlier resource leaves nothing for this one, empty where it may leave something."""
    if not earlier.shadows(rule):
        return ""
    return f"never claims a device: {earlier.name} (line {line}) comes first and claims them all"


def _meeting(rule: ResourceRule, earlier: ResourceRule, line: int) -> str:
    """Return that the devices of two resources would meet in a container, by path or variable; empty where they cannot."""
    if not (rule.publish.hands_over and earlier.publish.hands_over):
        return ""
    first, second = sorted((earlier.container_path, rule.container_path), key=len)
    meet = ""
    if second.startswith(first) and _APPENDED.fullmatch(second[len(first) :]):
        meet = f"both are at {first}" if first == second else f"{first} and {second} meet"
    elif (variable := variable_of(rule.name)) == variable_of(earlier.name):
        meet = f"both set {variable}"
    return meet and f"no container can have both {earlier.name} (line {line}) and this: {meet}"


def _name(text: str) -> tuple[str | None, str]:
    why = resource_name_fault(text)
    return None if why else text, why


def _subsystem(text: str) -> tuple[str | None, str]:
    why = subsystem_fault(text)
    return None if why else text, why


def _choice(text: str, *, words: Mapping[str, T]) -> tuple[T | None, str]:
    return words.get(text), " or ".join(words)


def _device_path(text: str) -> tuple[str | None, str]:
    valid = len(text) <= _MAX_PATTERN and _DEVICE_PATH.fullmatch(text)
    return text if valid else None, "an absolute path below /dev without ., .., a comma or white space in it"


_COUNT = partial(_scalar, spelling=partial(_choice, words={count.value: count for count in Count}))
_PUBLISH = partial(_scalar, spelling=partial(_choice, words={way.value: way for way in Publish}))
_DEVICE_PATH = re.compile(r"/dev(/([^/.,\s\0][^/,\s\0]*|\.[^/.,\s\0][^/,\s\0]*|\.\.[^/,\s\0]+))+")
"""Without white space and without the comma that separates the paths in the variable of a container. It looks nowhere ahead, which the
regular expressions of Go cannot, so that the chart has it too."""
_VITAL = {"console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random"}
_VITAL |= {"shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"}
"""What is below /dev in every container (OCI runtime specification, "Default Devices" and "Default Filesystems")."""
_CONTAINER = {
    "path": _Key(
        field="path",
        read=partial(_scalar, spelling=_device_path),
        description="A path below /dev. Default: /dev/ and the part of the name after the slash.",
        required=True,
    )
}
_NODES = partial(_values, spelling=partial(_glob, form=r"[\s\S]", wanted="a glob of node names or a list of them"))
_MATCHER = {
    name: _Key(
        field=name,
        read=_properties if name == "properties" else partial(_tests, key=name, spelling=_pattern(key)),
        description=f"{key.description[0].upper()}{key.description[1:]}{f' ({key.source})' if key.source else ''}.",
    )
    for name, key in KEYS.items()
}
_EVICT = {
    "after": _Key(
        field="after",
        read=partial(_duration, least="0s", most="24h"),
        description="How long the lower count has been on the Node before a Pod is evicted, up to 24h.",
        required=True,
    )
}
_RESOURCE = {
    "name": _Key(
        field="name",
        read=partial(_scalar, spelling=_name),
        description="The name that a Pod requests: PREFIX/NAME, such as example.com/zigbee.",
        required=True,
    ),
    "match": _Key(
        field="match",
        read=partial(_list, read=_entry),
        description="What counts: any entry may match, and inside an entry every key must.",
        required=True,
    ),
    "exclude": _Key(
        field="exclude",
        read=partial(_list, read=_entry, least=0),
        description="What matches here goes on to the next resource.",
    ),
    "subsystem": _Key(
        field="subsystem",
        read=partial(_scalar, spelling=_subsystem),
        description="The udev subsystem of the devices: tty (the default), usb (the whole device), hidraw, video4linux, or another one "
        "whose devices have a character devnode.",
    ),
    "count": _Key(field="count", read=_COUNT, description="Physical devices (device, the default), or devnodes."),
    "publish": _Key(
        field="publish",
        read=_PUBLISH,
        description="How a Pod gets the device: by a hostPath volume (nodeStatus, the default), from the kubelet (devicePlugin), or by "
        "dynamic resource allocation (dra).",
    ),
    "container": _Key(
        field="container",
        read=partial(_record, keys=_CONTAINER, make=lambda *, path: path),
        description="Where containers find the device. Only with devicePlugin and dra.",
    ),
    "nodes": _Key(
        field="nodes",
        read=_NODES,
        description="Only on the nodes of these names: a glob or a list of globs. Default: all.",
    ),
    "removalGrace": _Key(
        field="removal_grace",
        read=partial(_duration, least="0s", most="1h"),
        description="How long a device that is gone still counts, up to 1h. Default: 2s.",
    ),
    "evict": _Key(
        field="evict_after",
        read=partial(_record, keys=_EVICT, make=lambda *, after: after),
        description="Evicts the Pods that lost their device. Default: they are left alone.",
    ),
}
_CONFIG = {
    "resources": _Key(
        field="resources",
        read=_resources,
        description="The extended resources, in the order of their priority: a devnode belongs to the first that matches.",
        required=True,
    ),
    "sweep": _Key(
        field="sweep",
        read=partial(_duration, least="1s", most="5m"),
        description="Scan the devices anyway, 1s to 5m. Default: 10s.",
    ),
    "resync": _Key(
        field="resync",
        read=partial(_duration, least="1s", most="24h"),
        description="Repair drift anyway, 1s to 24h. Default: 5m; 60s where the Node cannot be watched.",
    ),
}
