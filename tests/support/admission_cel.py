"""A ValidatingAdmissionPolicy as an API server evaluates it, on the official C++ implementation of its language.

The order is that of k8s.io/apiserver, pkg/admission/plugin/policy/validating: resource rules, match conditions, then
every validation, of which the first that fails gives the message. Variables are evaluated when they are used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cel_expr_python import cel  # type: ignore[import-untyped]  # it has stubs without py.typed
from cel_expr_python.ext import ext_strings  # type: ignore[import-untyped]  # likewise

from support.admission import SLICES, Object, Request, merged, namespaces, node, stored_slice, written_slice

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_MESSAGE = 5 * 1024
"""A longer result of a messageExpression is not shown (celconfig.MaxEvaluatedMessageExpressionSizeBytes)."""
INPUTS = ("object", "oldObject", "request", "namespaceObject")

GROUP = "resource.k8s.io"
_USED = re.compile(r"variables\.(\w+)")


class EvaluationError(Exception):
    """An expression has no value; with failurePolicy Fail that denies the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """A compiled expression and the variables that it names."""

    program: cel.Expression
    variables: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """A validation, compiled; `reason` is the one of the Status that answers."""

    expression: Expression
    shown: Expression | None
    message: str
    reason: str


class Policy:
    """A policy, compiled as the API server compiles it: a variable sees those above it, and types are checked.

    Raises `RuntimeError` for an expression that does not compile, `TypeError` for one of the wrong type.
    """

    def __init__(self, manifest: Object) -> None:
        """Compile every expression of the manifest."""
        spec = manifest["spec"]
        self._types: dict[str, cel.Type] = dict.fromkeys(INPUTS, cel.Type.DYN)
        self.rules: list[Object] = spec["matchConstraints"]["resourceRules"]
        self.conditions = [self._compile(each["expression"], cel.Type.BOOL) for each in spec["matchConditions"]]
        self.variables = {each["name"]: self._variable(each) for each in spec["variables"]}
        self.validations = [self._validation(each) for each in spec["validations"]]

    def _variable(self, manifest: Object) -> Expression:
        compiled = self._compile(manifest["expression"])
        self._types[f"variables.{manifest['name']}"] = compiled.program.return_type()
        return compiled

    def _validation(self, manifest: Object) -> Validation:
        shown = manifest.get("messageExpression")
        return Validation(
            expression=self._compile(manifest["expression"], cel.Type.BOOL),
            shown=self._compile(shown, cel.Type.STRING) if shown else None,
            message=manifest["message"],
            reason=manifest["reason"],
        )

    def _compile(self, text: str, wanted: cel.Type | None = None) -> Expression:
        environment = cel.NewEnv(variables=self._types, extensions=[ext_strings.ExtStrings()])
        program = environment.compile(text)
        if wanted is not None and not program.return_type() == wanted:
            raise TypeError(f"{text}: is {program.return_type().name()}, not {wanted.name()}")
        return Expression(program=program, variables=tuple(dict.fromkeys(_USED.findall(text))))

    def denial(self, request: Request) -> str:
        """Return the message with which the request is denied, empty for one that is allowed."""
        review = _Review(policy=self, inputs=inputs(request))
        if not any(_matches(rule, request) for rule in self.rules):
            return ""
        try:
            if not all(review.value(condition) for condition in self.conditions):
                return ""
            failed = next((each for each in self.validations if review.value(each.expression) is not True), None)
        except EvaluationError as error:
            return f"expression resulted in error: {error}"
        return review.message(failed) if failed else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Review:
    policy: Policy
    inputs: Mapping[str, Any]
    known: dict[str, Any] = field(default_factory=dict)

    def value(self, expression: Expression) -> Any:  # noqa: ANN401  whatever the expression gives
        data = dict(self.inputs)
        for name in expression.variables:
            self._learn(name)
            if name in self.known:
                data[f"variables.{name}"] = self.known[name]
        result = expression.program.eval(data=data)
        if result.type() == cel.Type.ERROR:
            raise EvaluationError(str(result.value()))
        return result.plain_value()

    def _learn(self, name: str) -> None:
        # One without a value is an error only for an expression that comes to need it.
        if name not in self.known:
            try:
                self.known[name] = self.value(self.policy.variables[name])
            except EvaluationError:
                return

    def message(self, failed: Validation) -> str:
        try:
            text = str(self.value(failed.shown)).strip() if failed.shown else ""
        except EvaluationError:
            text = ""
        fits = len(text.encode()) <= LONGEST_MESSAGE and "\n" not in text
        return (text if fits else "") or failed.message


def _matches(rule: Object, request: Request) -> bool:
    resource, _, subresource = request.resource.partition("/")
    named = {request.resource, f"{resource}/*"} if subresource else {request.resource}
    operation = {"*", request.operation} & set(rule["operations"])
    return bool(operation and named & set(rule["resources"]))


def inputs(request: Request) -> dict[str, Any]:
    """Return what the API server hands to the expressions; what is empty is absent from `request`, as in its JSON form."""
    old, new = _objects(request)
    labels = namespaces().get(request.namespace)
    metadata: Object = {"name": request.namespace} | ({"labels": labels} if labels else {})
    return {
        "object": new,
        "oldObject": old,
        "request": _admission_request(request),
        "namespaceObject": {"metadata": metadata} if request.namespace else None,
    }


def _admission_request(request: Request) -> Object:
    resource, _, subresource = request.resource.partition("/")
    extra = {"extra": {"authentication.kubernetes.io/node-name": list(request.node)}} if request.node else {}
    optional = {"subResource": subresource, "name": request.object, "namespace": request.namespace}
    return {
        "operation": request.operation,
        "resource": {"group": GROUP if resource == SLICES else "", "version": "v1", "resource": resource},
        "userInfo": {"username": request.user, **extra},
        **{key: value for key, value in optional.items() if value},
    }


def _objects(request: Request) -> tuple[Object | None, Object | None]:
    if request.resource == SLICES:
        old, new = request.operation != "CREATE", request.operation != "DELETE"
        return stored_slice(request) if old else None, written_slice(request) if new else None
    if not request.resource.startswith("nodes"):
        return None, {"kind": "Eviction", "metadata": {"name": request.object}}
    stored = merged(
        node(request.object), {"metadata": {"uid": "u1", "resourceVersion": "7", "managedFields": [{"time": "1"}]}}
    )
    if request.operation == "UPDATE":
        # A server brings these up to date before it asks.
        written = {"metadata": {"resourceVersion": "8", "managedFields": [{"time": "2"}]}}
        return stored, merged(merged(stored, request.merge), written)
    if request.operation == "CREATE":
        return None, stored
    if request.operation == "CONNECT":
        return None, {"kind": "NodeProxyOptions"}
    return (stored if request.object else None), None
