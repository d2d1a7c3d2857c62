"""Write the JSON Schema of the configuration from the table of keys by which `schema` reads it. The daemon never loads this.

`schema` gives each key a reader, a `partial` of one of a few functions. For each of these functions a method below returns the same in JSON
Schema, its form; that is why the private names of `schema` are imported. A reader without a form raises `KeyError`. The regular expressions
use only what Python, ECMAScript and Go have in common.

Two readers of YAML stand between a file and a schema. An editor types every scalar: it takes 0403 for a number, and `schema` for text.
Helm does so too, and then passes the number on, so that its values may hold text alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from devwatch.config.schema import (
    _CONFIG,
    _DEVICE_PATH,
    _MATCHER,
    _MAX_PATTERN,
    _MAX_WILDCARDS,
    _MILLISECONDS,
    _RESOURCE,
    _VITAL,
    _choice,
    _device_path,
    _digits,
    _duration,
    _entry,
    _glob,
    _list,
    _name,
    _properties,
    _record,
    _resource,
    _resources,
    _scalar,
    _seconds,
    _subsystem,
    _tests,
    _values,
)
from devwatch.core.names import (
    KEPT_DOMAIN,
    KEPT_PREFIX,
    MAX_PREFIX,
    MAX_SHORT,
    QUALIFIED,
    SUBDOMAIN,
    SUBSYSTEM,
    WITHOUT_DEVNODE,
)
from devwatch.core.rules import Publish
from devwatch.core.slices import MAX_ATTRIBUTE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from devwatch.config.schema import _Key

Schema = dict[str, Any]
_STRING: Schema = {"type": "string"}
_IN_QUOTES: Schema = {"enum": ['text in quotes, such as "0658"']}
"""A value that never matches: a validator shows it as what is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What differs between the two schemas."""

    definitions: str
    """The keyword that holds the definitions."""
    typed: bool
    """Whether numbers and booleans stand for the text that was written, as in an editor."""
    unwritable: str
    """The characters that no text may have, as in a character class of a regular expression."""
    advice: str
    """What the description of a value says that may look like a number."""


FILE = Dialect(
    definitions="$defs",
    typed=True,
    unwritable=r"\x00",
    advice="Quote it: without quotes an editor takes 0403 for a number, and cannot check it; devwatch itself takes it for text.",
)
"""A configuration in an editor. JSON Schema 2020-12."""
VALUES = Dialect(
    definitions="definitions",
    typed=False,
    unwritable="\\x00\\x7f-\\x9f\u2028\u2029\ufffe\uffff",
    advice="Quote it: without quotes Helm takes 0403 for the number 259.",
)
"""The values of a Helm chart, without the characters for which Helm would write an empty file, or another character. Draft 7, which all
releases of Helm 3 know."""


def configuration_schema() -> Schema:
    """Return the JSON Schema of the configuration, for editors and CI."""
    forms = Forms(dialect=FILE)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of devwatch",
        **forms.configuration(),
        FILE.definitions: forms.definitions(),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Forms:
    """The forms of the readers of `schema`, in one dialect."""

    dialect: Dialect

    def configuration(self) -> Schema:
        """Return the form of the whole configuration. It refers to the definitions."""
        return self._record(keys=_CONFIG)

    def definitions(self) -> Schema:
        """Return the forms of a resource, and of an entry of `match` and `exclude`, by name."""
        resource = {**self._record(keys=_RESOURCE), "allOf": _conditions()}
        return {"resource": resource, "entry": {**self._record(keys=_MATCHER), "minProperties": 1}}

    def _value(self, read: Callable[..., object]) -> Schema:
        forms: Mapping[Callable[..., object], Callable[..., Schema]] = {
            _record: self._record,
            _resources: lambda: self._list(read=_resource, least=0),
            _resource: lambda: self._reference("resource"),
            _entry: lambda: self._reference("entry"),
            _list: self._list,
            _tests: self._values,
            _values: self._values,
            _properties: self._properties,
            _scalar: self._scalar,
            _duration: _duration_form,
        }
        function, given = _parts(read)
        return forms[function](**given)

    def _record(self, *, keys: Mapping[str, _Key], **_: object) -> Schema:
        return {
            "type": "object",
            "additionalProperties": False,
            "required": [name for name, key in keys.items() if key.required],
            "properties": {name: self._described(key) for name, key in keys.items()},
        }

    def _described(self, key: _Key) -> Schema:
        form = self._value(key.read)
        # No other form than that of text which may look like a number names that type.
        advice = f" {self.dialect.advice}" if "number" in str(form) else ""
        return {"description": f"{key.description}{advice}", **form}

    def _reference(self, name: str) -> Schema:
        return {"$ref": f"#/{self.dialect.definitions}/{name}"}

    def _list(self, *, read: Callable[..., object], least: int = 1) -> Schema:
        return {"type": "array", "minItems": least, "items": self._value(read)}

    def _properties(self) -> Schema:
        name = {"minLength": 1, "pattern": f"^[^{self.dialect.unwritable}]*$"}
        values = self._values(spelling=_glob)
        return {"type": "object", "minProperties": 1, "propertyNames": name, "additionalProperties": values}

    def _values(self, *, spelling: Callable[..., object], **_: object) -> Schema:
        """Return the form of a text or a list of texts: no keyword for the one says anything of the other."""
        one_or_more = self._scalar(spelling=spelling, also=("array",))
        return {**one_or_more, "minItems": 1, "items": self._scalar(spelling=spelling)}

    def _scalar(self, *, spelling: Callable[..., object], **more: object) -> Schema:
        forms: Mapping[Callable[..., object], Callable[..., Schema]] = {
            _choice: lambda words: {"enum": list(words)},
            _device_path: lambda: {**_STRING, "maxLength": _MAX_PATTERN, "pattern": f"^{_DEVICE_PATH.pattern}$"},
            _digits: self._digits,
            _glob: self._glob,
            _name: self._name,
            _subsystem: _subsystem_form,
        }
        function, given = _parts(spelling)
        return forms[function](**given, **more)

    def _digits(self, *, least: int, most: int, also: Sequence[str] = (), **_: object) -> Schema:
        return self._pattern(rf"^[0-9A-Fa-f]{{{least},{most}}}$|[*?\[]", kinds=["number"], also=also)

    def _glob(self, *, form: str = "", also: Sequence[str] = (), **_: object) -> Schema:
        kinds = [kind for kind, text in (("number", "0"), ("boolean", "true")) if re.match(form, text)]
        return self._pattern(*([f"^({form})"] if form else []), kinds=kinds, also=also)

    def _pattern(self, *patterns: str, kinds: Sequence[str], also: Sequence[str]) -> Schema:
        """Return the form of a text that these regular expressions match, and that may look like other kinds of values to an editor."""
        other = rf"[^*?\[{self.dialect.unwritable}]*"
        bounded = rf"^{other}([*?\[]{other}){{0,{_MAX_WILDCARDS}}}$"
        rules = {"maxLength": _MAX_PATTERN, "allOf": [{"pattern": pattern} for pattern in (bounded, *patterns)]}
        if self.dialect.typed:
            return {"type": ["string", *kinds, *also], **rules}
        mistaken = {"type": ["number", "boolean", "null"]}
        return {**rules, "if": mistaken, "then": _IN_QUOTES, "else": {"type": ["string", *also]}}

    def _name(self) -> Schema:
        patterns = (f"^({SUBDOMAIN.pattern})/{QUALIFIED.pattern}$", f"^[^/]{{1,{MAX_PREFIX}}}/[^/]{{1,{MAX_SHORT}}}$")
        form = {**_STRING, "allOf": [{"pattern": pattern} for pattern in patterns]}
        kept = {"not": {"pattern": f"{re.escape(KEPT_DOMAIN)}|^{re.escape(KEPT_PREFIX)}"}}
        return {**form, **kept} if self.dialect.typed else form  # the chart has words for it in its template


def _parts(function: Callable[..., object]) -> tuple[Callable[..., object], Mapping[str, Any]]:
    """Return a function and the arguments that it was given by `partial`."""
    return (function.func, function.keywords) if isinstance(function, partial) else (function, {})


def _subsystem_form() -> Schema:
    return {**_STRING, "pattern": f"^{SUBSYSTEM.pattern}$", "not": {"enum": list(WITHOUT_DEVNODE)}}


# -- durations


def _duration_form(*, least: str, most: str) -> Schema:
    """Return the form of a duration within bounds, for which a pattern of digits must do, as it is text."""
    form = {**_STRING, "pattern": _at_most(round(_seconds(most) * 1000))}
    lowest = round(_seconds(least) * 1000)
    return {**form, "not": {"pattern": _at_most(lowest - 1)}} if lowest else form


def _at_most(milliseconds: int) -> str:
    """Return a regular expression of all durations up to this one, in every unit."""
    units = (f"({_digits_up_to(milliseconds // factor)}){unit}" for unit, factor in _MILLISECONDS.items())
    return f"^0*({'|'.join(units)})$"


def _digits_up_to(number: int) -> str:
    """Return a regular expression of the numbers up to this one: itself, smaller ones with as many digits, shorter ones."""
    digits = str(number)
    smaller = [
        f"{digits[:index]}[0-{int(digit) - 1}]{_any_digits(len(digits) - index - 1)}"
        for index, digit in enumerate(digits)
        if digit != "0"
    ]
    shorter = [f"[0-9]{{1,{len(digits) - 1}}}"] if len(digits) > 1 else []
    return "|".join([digits, *smaller, *shorter])


def _any_digits(count: int) -> str:
    return f"[0-9]{{{count}}}" if count else ""


# -- what depends on another key


def _conditions() -> list[Schema]:
    """Return what a resource must be for each way of publishing."""
    over = [way.value for way in Publish if way.hands_over]
    named = {"name": {"not": {"pattern": f"/({'|'.join(sorted(_VITAL))})$"}}}
    placed = {"path": {"not": {"pattern": f"^/dev/({'|'.join(sorted(_VITAL))})(/|$)"}}}
    path = {
        "if": {"required": ["container"]},
        "then": {"properties": {"container": {"properties": placed}}},
        "else": {"properties": named},
    }
    return [
        {"if": _published(over), "then": path, "else": {"properties": {"container": False}}},
        {"if": _published([Publish.DRA.value]), "then": {"properties": {"name": {"maxLength": MAX_ATTRIBUTE}}}},
    ]


def _published(ways: Sequence[str]) -> Schema:
    return {"required": ["publish"], "properties": {"publish": {"enum": ways}}}
