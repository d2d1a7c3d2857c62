"""What a thief of the daemon's token tries (tests/deploy/data/stolen.yaml), and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from support.checkout import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

Object = dict[str, Any]

BASE, LEAST = "base", "patch-only"
"""What every installation has, and the component that replaces it."""
GRANTING = (BASE, LEAST, "events", "eviction", "device-plugin", "dra")
"""The components that grant permissions; those that are not named here grant none."""
_DATA = CHECKOUT / "tests" / "deploy" / "data" / "stolen.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request of the thief."""

    method: str
    path: str
    body: Object | None = None

    def with_names(self, names: Mapping[str, str]) -> Call:
        """Return the request about these objects."""
        return Call(method=self.method, path=_replaced(self.path, names), body=_replaced(self.body, names))


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A row of the table: requests that are all granted or refused together."""

    title: str
    by: Collection[str]
    allowed: bool
    api: str
    calls: tuple[Call, ...]

    def granted(self, component: str) -> bool:
        """Return whether an installation with this component may do it, as far as RBAC has a say."""
        return bool({component, BASE if component != LEAST else LEAST} & set(self.by))

    @property
    def row(self) -> tuple[str, str, str]:
        """The cells of the row in docs/security.md."""
        by = ", ".join(f"`{name}`" for name in self.by)
        return self.title, by or "none", ("yes" if self.allowed else "no") if self.by else "no"


def attempts() -> list[Attempt]:
    """Return every row of the file."""
    return [
        Attempt(
            title=row["try"],
            by=tuple(row["by"]),
            allowed={"allowed": True, "denied": False}[row["policy"]],
            api=row.get("api", "v1"),
            calls=tuple(Call(**each) for each in row["requests"]),
        )
        for row in yaml.safe_load(_DATA.read_text("utf-8"))
    ]


def _replaced(value: Any, names: Mapping[str, str]) -> Any:  # noqa: ANN401 - JSON
    """Return a value of JSON with these names in all its texts."""
    if isinstance(value, dict):
        return {_replaced(key, names): _replaced(each, names) for key, each in value.items()}
    if isinstance(value, list):
        return [_replaced(each, names) for each in value]
    if isinstance(value, str):
        for name, text in names.items():
            value = value.replace(name, text)
    return value
