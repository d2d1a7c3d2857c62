"""The JSON Schema of the configuration: it says what `check` says, as far as a schema can.

Every configuration of `test_config.py`, accepted or refused, is put to it there as well.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.config.jsonschema import configuration_schema
from devwatch.config.schema import parse
from devwatch.config.tree import MAX_BYTES
from devwatch.core.errors import ConfigError
from support.checkout import CHECKOUT
from support.deployment import documentation
from support.editor import INEXPRESSIBLE, VALIDATOR, WRITTEN_AS_A_NUMBER, WRITTEN_AS_NOTHING, as_typed, disagreement

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from devwatch.core.errors import Fault

BLOCKS = re.findall(r"^```yaml\n(resources:\n.*?)^```$", documentation(), re.DOTALL | re.MULTILINE)
SHIPPED = [CHECKOUT / name for name in ("systemd/config.yaml", "deploy/base/config.yaml", "deploy/example/config.yaml")]
LONG = "a" * 200
EXCEPTIONS: Mapping[str, tuple[str, ...]] = {
    r"an alias|an anchor|a tag ": (
        "resources: &x []",
        "resources: [{name: a/b, match: [{serial: [&x y, *x]}]}]",
        "resources: []\nsweep: !!str 5s",
    ),
    r"a collection as a key": ("resources: [{name: a/b, match: [{properties: {[a]: b}}]}]",),
    r"duplicate key": ("resources: []\nresources: []",),
    r"is taken \(each name once": ("resources: [{name: a/b, match: [{port: x}]}, {name: a/b, match: [{port: y}]}]",),
    r"the names take": (
        f"resources: [{', '.join(f'{{name: {LONG}/b{number}, match: [{{port: x}}]}}' for number in range(80))}]",
    ),
    r"too much content": (f"resources: [{'{name: a/b, match: [{port: x}]},' * 1000}]",),
    r"bytes \(the most that is read": (f"resources: []\n{'#' * MAX_BYTES}",),
    WRITTEN_AS_A_NUMBER: tuple(
        f"resources: [{{name: a/b, match: [{{{entry}}}]}}]"
        for entry in ("vendor: 403", "product: 0x43", "interface: 001", "vendor: [0403, 1.5]")
    ),
}
"""What `check` refuses and the schema accepts: by the fault, or the reason."""


def faults_of(data: bytes) -> tuple[Fault, ...]:
    """Return what `check` finds wrong with a file."""
    try:
        parse(data, file="c.yaml")
    except ConfigError as error:
        return error.faults
    return ()


def accepts(text: str) -> bool:
    """Return whether the schema accepts a file."""
    return bool(VALIDATOR.is_valid(as_typed(text.encode())))


def described(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every key with its schema."""
    for name, value in schema.get("properties", {}).items():
        yield name, value
        yield from described(value)


def test_the_schema_is_one() -> None:
    """By the meta-schema of JSON Schema 2020-12, which it names."""
    schema = configuration_schema()
    assert schema["$schema"] == VALIDATOR.META_SCHEMA["$id"]
    VALIDATOR.check_schema(schema)


def test_every_key_is_described() -> None:
    """With the advice to quote it, wherever text may look like a number to an editor."""
    schema = configuration_schema()
    keys = [key for part in (schema, *schema["$defs"].values()) for key in described(part)]
    assert [name for name, value in keys if not value["description"].endswith(".")] == []
    advised = {name for name, value in keys if "Quote it: " in value["description"]}
    assert advised == {"vendor", "product", "serial", "interface", "port", "properties", "nodes"}


@pytest.mark.parametrize("text", [*BLOCKS, *(path.read_text("utf-8") for path in SHIPPED)])
def test_what_is_shipped_and_documented_passes(text: str) -> None:
    """An editor that knows the schema finds nothing wrong with it."""
    assert faults_of(text.encode()) == ()
    assert accepts(text)


@pytest.mark.parametrize("written", ["0403", "1e10", "10c4", "'0403'", "[0403, 6015]"])
def test_an_id_may_look_like_a_number(written: str) -> None:
    """It is text to devwatch."""
    text = f"resources: [{{name: a/b, match: [{{vendor: {written}}}]}}]"
    assert faults_of(text.encode()) == ()
    assert accepts(text)


@pytest.mark.parametrize("written", ["0403", "true", "no", "1.5", ".inf", "'~'", "2024-01-01"])
def test_any_text_may_look_like_a_number_or_a_boolean(written: str) -> None:
    """As a serial does, and the name of a node."""
    text = f"resources: [{{name: a/b, match: [{{serial: {written}, properties: {{X: {written}}}}}], nodes: {written}}}]"
    assert faults_of(text.encode()) == ()
    assert accepts(text)


def test_the_exceptions_are_listed_with_a_reason() -> None:
    """Each is one: `check` refuses for it what the schema accepts."""
    assert EXCEPTIONS.keys() == {*INEXPRESSIBLE, WRITTEN_AS_A_NUMBER}
    assert all(INEXPRESSIBLE.values())
    for fault, texts in EXCEPTIONS.items():
        for text in texts:
            assert faults_of(text.encode()), fault
            assert accepts(text), fault
            assert disagreement(text.encode(), faults_of(text.encode())) == ""


def test_a_null_without_quotes_is_refused_by_the_schema_alone() -> None:
    """It cannot be told from a forgotten value, which both refuse."""
    for written, valid in (("null", True), ("~", True), ("", False)):
        text = f"resources: [{{name: a/b, match: [{{serial: {written}}}]}}]"
        assert (not faults_of(text.encode())) == valid, WRITTEN_AS_NOTHING
        assert not accepts(text)
        assert disagreement(text.encode(), faults_of(text.encode())) == ""


def test_a_disagreement_is_found() -> None:
    """In both directions."""
    good, bad = b"resources: []", b"resources: [x]"
    assert disagreement(good, ()) == disagreement(bad, faults_of(bad)) == ""
    assert disagreement(bad, ()).startswith("the schema refuses it: ")
    assert disagreement(good, faults_of(bad)).startswith("the schema accepts it in spite of ")
    assert disagreement(b"[", ()).startswith("no editor can read it: ")


NUMBERS = st.integers(0, 90_000_000) | st.sampled_from([0, 1, 5, 6, 24, 25, 60, 61, 300, 301, 999, 1000, 1440, 3600])


@given(key=st.sampled_from(["sweep", "resync", "removalGrace", "after"]), number=NUMBERS, unit=st.data())
def test_a_duration_is_within_the_same_bounds(key: str, number: int, unit: st.DataObject) -> None:
    """To the millisecond, in every unit, with leading zeros or without."""
    value = (
        unit.draw(st.sampled_from(["", "0", "00"])) + str(number) + unit.draw(st.sampled_from(["ms", "s", "m", "h"]))
    )
    inner = f"evict: {{after: {value}}}" if key == "after" else f"{key}: {value}"
    resource, outer = (inner, "") if key in {"removalGrace", "after"} else ("count: device", inner)
    text = f"resources: [{{name: a/b, match: [{{port: x}}], {resource}}}]\n{outer}"
    assert accepts(text) == (not faults_of(text.encode()))


@given(
    st.lists(st.sampled_from([*"aZ0-_./", "kubernetes.io", "requests.", "a" * 62, "b" * 180]), max_size=6).map("".join)
)
def test_a_name_is_valid_where_it_is_valid_for_check(name: str) -> None:
    """By the rules of the Pod API."""
    text = f"resources: [{{name: '{name}', match: [{{port: x}}], publish: dra, container: {{path: /dev/x}}}}]"
    assert accepts(text) == (not faults_of(text.encode()))


@given(
    path=st.lists(st.sampled_from([*"/.,a ", "/dev/", "null", "tty", "x" * 500]), max_size=6).map("".join),
    way=st.sampled_from(["nodeStatus", "devicePlugin", "dra"]),
    name=st.sampled_from(["a/b", "a/null", "a/nulls"]),
    given_path=st.booleans(),
)
def test_a_path_in_containers_is_valid_where_it_is_valid_for_check(
    path: str, way: str, name: str, *, given_path: bool
) -> None:
    """For each way of publishing, given or made of the name."""
    container = f", container: {{path: '{path}'}}" if given_path else ""
    text = f"resources: [{{name: {name}, match: [{{port: x}}], publish: {way}{container}}}]"
    assert accepts(text) == (not faults_of(text.encode()))
