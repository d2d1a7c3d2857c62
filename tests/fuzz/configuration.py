"""The configuration: any bytes are a `Config` or a list of faults, and what the faults say is harmless."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from devwatch.config.schema import parse
from devwatch.core.device import Device
from devwatch.core.errors import ConfigError
from devwatch.core.keys import KEYS
from devwatch.core.rules import claim
from fuzz.target import Feed, Target
from support.checkout import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

_STICK = Device(
    devnode="/dev/ttyUSB0",
    devpath="/devices/usb1/1-1/1-1:1.0/ttyUSB0/tty/ttyUSB0",
    number=0xBC00,
    incarnation=1,
    vendor="0403",
    product="6001",
    serial="A" * 126,
    interface="00",
    port="pci-0000:00:14.0-usb-0:1:1.0",
    links=("/dev/serial/by-id/usb-FTDI_A-if00",),
    properties={"ID_MODEL": "Serial", "": "x"},
)

_LEAVES = st.sampled_from(
    (
        *("a/b", "c/d", "0403", "403", "x*", "", "2s", "500ms", "99h", "device", "devnode", "/dev/x", "n-*"),
        *("[[]", "[!a-", "[z-a]", "*" * 33, "~", "null", "0x10", "1e10", "\x1b[31m", "\u202e", "\ud7ff"),
    )
) | st.text(max_size=8)
_FIELDS = ("name", "match", "exclude", "count", "nodes", "removalGrace", "evict", "after", "sweep", "resync", "odd")
_NAMES = st.sampled_from((*KEYS, *_FIELDS)) | st.text(max_size=4)
_TREES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4), max_leaves=12
)
_ENTRY = st.dictionaries(st.sampled_from((*KEYS,)), _LEAVES | st.lists(_LEAVES, max_size=3), min_size=1, max_size=3)
_RESOURCE = st.fixed_dictionaries(
    {"name": st.sampled_from(("a/b", "c/d", "e.f/g")), "match": st.lists(_ENTRY, min_size=1, max_size=2)},
    optional={"exclude": st.lists(_ENTRY, max_size=2), "count": _LEAVES, "nodes": _LEAVES, "evict": _TREES},
)
_TOKENS = st.sampled_from(
    (
        *("resources", "name", "match", "x/y", "{", "}", "[", "]", ", ", ": ", "- ", "? ", "\n", "\n  ", "&a ", "*a "),
        *("|\n", ">", "#", "'", '"', "\\", "!t ", "%YAML 1.1\n", "---\n", "...\n", "\r", "\t", "\x85", "\ufeff", "<<"),
    )
)


def _text(tree: object) -> bytes:
    return json.dumps(tree, ensure_ascii=False).encode("utf-8", "surrogatepass")


_DOCUMENTS = st.fixed_dictionaries(
    {"resources": st.lists(_RESOURCE | _TREES, max_size=3)}, optional={"sweep": _LEAVES, "resync": _LEAVES}
)
_GRAMMAR = (
    _DOCUMENTS.map(_text)
    | st.lists(_TOKENS, max_size=40).map(lambda tokens: "".join(tokens).encode())
    | st.binary(max_size=200)
)


@contextlib.contextmanager
def _open() -> Iterator[Feed]:
    yield _feed


def _feed(data: bytes) -> None:
    try:
        config = parse(data, file="config.yaml")
    except ConfigError as error:
        _check_faults(error)
        return
    claim(_STICK, config.for_node("n-1"))
    assert config.literal_paths is not None


def _check_faults(error: ConfigError) -> None:
    lines = [fault.render(error.file) for fault in error.faults]
    assert lines
    assert all(line.isascii() and line.isprintable() and len(line) < 2000 for line in lines), lines
    places = [(fault.line, fault.column) for fault in error.faults]
    assert places == sorted(places)
    assert min(places) >= (1, 1)


_EXAMPLE = CHECKOUT / "systemd" / "config.yaml"

CONFIGURATION = Target(
    open=_open,
    grammar=_GRAMMAR,
    seeds=(
        *([_EXAMPLE.read_bytes()] if _EXAMPLE.exists() else []),
        b"resources:\n  - name: a/b\n    match: [{vendor: 10c4, serial: ['H*', x], properties: {ID_MODEL: \"\"}}]\n",
        b"resources: [{name: a/b, match: [{path: /dev/x}], count: devnode, nodes: n-*, evict: {after: 30s}}]\nsweep: 10s\n",
    ),
)
