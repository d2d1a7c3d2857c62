"""The annotation: whatever a stranger writes there, only valid names are ours, and what we make of it is harmless."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from devwatch.core.listing import MAX_BYTES, MAX_TEXT, Entry, parse_listing, render_listing
from devwatch.core.names import resource_name_fault
from devwatch.core.node import NodeState
from devwatch.kube.cluster import removal
from fuzz.target import Feed, Target

if TYPE_CHECKING:
    from collections.abc import Iterator

_VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(("/dev/ttyUSB0", "\ud800", "\x00", "x" * 300))
)
_ENTRIES = st.dictionaries(
    st.sampled_from((*Entry.__slots__, "omitted", "odd")),
    _VALUES | st.lists(_VALUES, max_size=2) | st.dictionaries(st.text(max_size=2), _VALUES, max_size=2),
    max_size=6,
)
_NAMES = st.sampled_from(("a/b", "c.d/e", "cpu", "kubernetes.io/x", "", "/", "a/b/c", "requests.a/b", "\u0430/b"))
_LISTINGS = st.dictionaries(_NAMES | st.text(max_size=8), st.lists(_ENTRIES, max_size=4) | _VALUES, max_size=4)


def _text(tree: object) -> bytes:
    return json.dumps(tree).encode()


_DEEP = st.integers(1, 3000).map(lambda depth: b"[" * depth + b"]" * depth)
_GRAMMAR = _LISTINGS.map(_text) | _VALUES.map(_text) | _DEEP | st.binary(max_size=100)


@contextlib.contextmanager
def _open() -> Iterator[Feed]:
    yield _feed


def _feed(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    listing = parse_listing(text)
    assert not [name for name in listing if resource_name_fault(name)]
    _check_size(entry for entries in listing.values() for entry in entries)
    _check_removal(NodeState(annotation=text, capacity=dict.fromkeys([*listing, "cpu"], "1")))
    rendered = render_listing(listing)
    if rendered is None:
        assert not listing
        return
    assert rendered.isascii()
    assert len(rendered) <= max(MAX_BYTES, len(json.dumps({name: [] for name in listing})))
    assert parse_listing(rendered).keys() == listing.keys()
    assert render_listing(parse_listing(rendered)) is not None


def _check_size(entries: Iterator[Entry]) -> None:
    for entry in entries:
        texts = [getattr(entry, name) for name in Entry.__slots__]
        assert all(text is None or len(text) <= MAX_TEXT for text in texts)


def _check_removal(state: NodeState) -> None:
    """Check that a purge takes away what is ours and nothing else, in a body that JSON can carry."""
    patch = removal(state)
    json.dumps(patch.body()).encode()
    after = patch.applied(state)
    assert after.annotation is None
    assert "cpu" in after.capacity
    assert patch.counts.keys() <= set(state.listing())


ANNOTATION = Target(
    open=_open,
    grammar=_GRAMMAR,
    seeds=(
        b'{"a/b":[{"devnode":"/dev/ttyUSB0","vendor":"0403","product":"6001","serial":null,"link":"/dev/x"}]}',
        b'{"a/b":[],"c.d/e":[{"omitted":3}],"cpu":[]}',
    ),
)
