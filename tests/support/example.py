"""Render the example configuration from the catalogue of sticks: `python -m support.example > systemd/config.yaml`."""

from __future__ import annotations

import json
import sys
import tomllib
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def _comment(text: str, indent: str = "") -> str:
    return "".join(f"{indent}# {line}".rstrip() + "\n" for line in text.strip().splitlines())


def _key_lines(entry: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in entry.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:\n"
            yield from _key_lines(value, f"{indent}  ")
        else:
            yield f"{indent}{key}: {json.dumps(value)}\n"


def _resource(row: Mapping[str, Any]) -> str:
    entries = ("".join(_key_lines(entry, " " * 8)) for entry in row["match"])
    matches = "".join(entry.replace("        ", "      - ", 1) for entry in entries)
    return f"{_comment(row['comment'], '  ')}  - name: {row['resource']}\n    match:\n{matches}"


def rendered() -> str:
    """Return the example: the introduction, and each stick as a resource with its comment."""
    catalogue = tomllib.loads(resources.files("devwatch.config").joinpath("sticks.toml").read_text("utf-8"))
    return f"{_comment(catalogue['introduction'])}\nresources:\n" + "\n".join(map(_resource, catalogue["stick"]))


if __name__ == "__main__":
    sys.stdout.write(rendered())
