"""Render the catalogue of sticks: `python -m support.example > systemd/config.yaml`, `python -m support.example page > docs/devices.md`."""

from __future__ import annotations

import json
import sys
import tomllib
from importlib import resources
from typing import TYPE_CHECKING, Any

from devwatch.core.serials import SHARED_SERIALS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PAGE = """\
# Well-known devices

`devwatch devices` calls these devices by name, and `--suggest` proposes the resource; `systemd/config.yaml` has them all, ready
to copy. A device that is not listed here works as well: match it as [Configuration](configuration.md) says. All values of one
entry have to match; `*` stands for any text.

Many sticks carry the plain id of their bridge chip, and so do unrelated cables and boards. Such an id is never matched alone.

"""
_SERIALS = """
## Serials that many devices share

Some makers give every device the same serial. Such a serial identifies nothing: devwatch treats the device like one without a
serial, which it knows by its socket. `--suggest` proposes the `port` then, and `check` warns of a rule that has such a serial
and no `port`.

"""


def _catalogue() -> Mapping[str, Any]:
    return tomllib.loads(resources.files("devwatch.config").joinpath("sticks.toml").read_text("utf-8"))


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
    subsystem = f"    subsystem: {row['subsystem']}\n" if "subsystem" in row else ""
    return f"{_comment(row['comment'], '  ')}  - name: {row['resource']}\n{subsystem}    match:\n{matches}"


def rendered() -> str:
    """Return the example: the introduction, and each stick as a resource with its comment."""
    catalogue = _catalogue()
    return f"{_comment(catalogue['introduction'])}\nresources:\n" + "\n".join(map(_resource, catalogue["stick"]))


def _values(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of an entry with their values; the ids together, as lsusb shows them."""
    rest = {**entry, **entry.get("properties", {})}
    rest.pop("properties", None)
    if "product" in rest:
        vendor, product = rest.pop("vendor"), rest.pop("product")
        yield " or ".join(f"`{vendor}:{each}`" for each in ([product] if isinstance(product, str) else product))
    for key, value in rest.items():
        yield f"{key} " + " or ".join(f"`{each}`" for each in ([value] if isinstance(value, str) else value))


def _subsystem(row: Mapping[str, Any]) -> Iterator[str]:
    if "subsystem" in row:
        yield f"subsystem `{row['subsystem']}`"


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def page() -> str:
    """Return the page of the documentation: the catalogue and the shared serials as tables, with the sources."""
    rows = (
        (
            row["title"],
            f"`{row['resource']}`",
            "; ".join((*_subsystem(row), *(", ".join(_values(entry)) for entry in row["match"]))),
            row["source"],
        )
        for row in _catalogue()["stick"]
    )
    serials = ((f"`{serial}`", carriers) for serial, carriers in SHARED_SERIALS.items())
    devices = _table(("device", "resource", "matched by", "source"), rows)
    return _PAGE + devices + _SERIALS + _table(("serial", "seen on"), serials)


if __name__ == "__main__":
    sys.stdout.write(page() if sys.argv[1:] == ["page"] else rendered())
