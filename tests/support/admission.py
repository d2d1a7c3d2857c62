"""The requests of tests/deploy/data/admission.yaml with their verdicts, and the manifests that are to give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from support.checkout import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Mapping

Object = dict[str, Any]

COMPONENT = CHECKOUT / "deploy" / "components" / "admission-policy"
DATA = CHECKOUT / "tests" / "deploy" / "data" / "admission.yaml"

DAEMON = "system:serviceaccount:devwatch:devwatch"
HOME = "nuc-1"
SLICES = "resourceslices"
ALLOWED_PATH = "/spec/variables/0/expression"
"""Where an installer puts the list of the resources that may be advertised."""

_CONTENT: Mapping[str, Any] = yaml.safe_load(DATA.read_text("utf-8"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request and its verdict, as tests/deploy/data/admission.yaml explains them. `denied` is empty for an allowed one."""

    name: str
    allowed: bool = False
    denied: str = ""
    user: str = DAEMON
    node: tuple[str, ...] = (HOME,)
    operation: str = "UPDATE"
    resource: str = "nodes/status"
    object: str = HOME
    namespace: str = ""
    put: bool = False
    merge: Object
    stored: Object
    server: str = ""

    def __post_init__(self) -> None:
        """Refuse a request without exactly one verdict, raising `ValueError`."""
        if self.allowed == bool(self.denied):
            raise ValueError(f"{self.name}: wants either allowed or denied")


def requests() -> list[Request]:
    """Return every request of the file."""
    return [_request(written) for written in _CONTENT["requests"]]


def _request(written: Object) -> Request:
    fields = dict(written)
    long = {"aeotec/" + "x" * fields.pop("repeat"): "1"} if "repeat" in fields else {}
    counts = {**fields.pop("counts", {}), **long}
    both = {"status": {"capacity": counts, "allocatable": counts}} if counts else {}
    merge = merged(both, fields.pop("merge", {}), keep_null=True)
    if fields.get("resource") == SLICES:
        fields.setdefault("object", f"{HOME}-devwatch.io")
    stored = fields.pop("stored", {})
    return Request(merge=merge, stored=stored, node=tuple(fields.pop("node", (HOME,))), **fields)


def allowed() -> list[str]:
    """Return the names and prefixes that the policy of the file allows."""
    return list(_CONTENT["allowed"])


def namespaces() -> dict[str, dict[str, str]]:
    """Return the labels of each namespace by its name."""
    return dict(_CONTENT["namespaces"])


def node(name: str = HOME) -> Object:
    """Return the Node that the requests start from, under this name."""
    return merged(_CONTENT["node"], {"metadata": {"name": name}})


def stored_slice(request: Request) -> Object:
    """Return the ResourceSlice that a request updates or deletes."""
    return merged(_CONTENT["slice"], merged({"metadata": {"name": request.object}}, request.stored, keep_null=True))


def written_slice(request: Request) -> Object:
    """Return the ResourceSlice that a request writes."""
    return merged(stored_slice(request), request.merge)


def manifests() -> list[Object]:
    """Return the policy and its binding as they are in the repository."""
    return list(yaml.safe_load_all((COMPONENT / "policy.yaml").read_text("utf-8")))


def policy() -> Object:
    """Return the policy with the list of the file in the place that the component names for it."""
    found = manifests()[0]
    found["spec"]["variables"][0]["expression"] = as_cel(allowed())
    return found


def as_cel(names: list[str]) -> str:
    """Write names as a list of the Common Expression Language."""
    return "[" + ", ".join(f"'{name}'" for name in names) + "]"


def merged(base: Object, patch: Object, *, keep_null: bool = False) -> Object:
    """Return the object after a JSON merge patch (RFC 7396); with `keep_null` the two patches as one."""
    result = dict(base)
    for key, value in patch.items():
        if value is None and not keep_null:
            result.pop(key, None)
        elif isinstance(value, dict):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, dict) else {}, value, keep_null=keep_null)
        else:
            result[key] = value
    return result
