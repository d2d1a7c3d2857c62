"""The floors: which module may import which.

A module imports only from the floors below its own. On an ordered floor it may also import the rooms before it. The
checker reads source text and knows nothing of the disk, so it is itself tested with text that breaks each rule.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import devwatch

PACKAGE = "devwatch"
LONGEST_FUNCTION = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The modules of one height; `ordered` ones may import those named before them."""

    rooms: tuple[str, ...]
    ordered: bool = False


FLOORS = (
    Floor(
        rooms=(
            *("errors", "device", "backoff", "rules", "inventory", "config", "node", "plan"),
            *("drift", "task", "loss", "pods", "sticks", "inspection"),
        ),
        ordered=True,
    ),
    Floor(rooms=("early", "resolver", "files"), ordered=True),
    Floor(rooms=("sysfs", "configfile", "output", "program", "proxy")),  # the world, without a library
    Floor(rooms=("udev", "kube", "systemd", "telemetry", "logs", "lock", "display")),
    Floor(rooms=("host", "workload", "cluster", "report", "events", "evictor", "reconciler"), ordered=True),
    Floor(rooms=("daemon", "commands", "admin")),
    Floor(rooms=("cli", "__main__"), ordered=True),
)
# The version alone: every room may read it, and it reads nothing.
GROUND = "__init__"
# Foreign libraries that one edge alone knows.
EDGES = {
    "pyudev": "udev",
    "kubernetes_asyncio": "kube",
    "aiohttp": "kube",
    "prometheus_client": "telemetry",
}
# All that floor 0 may use of the world: nothing here opens, waits, draws lots or reads a clock; yaml is given text.
# fmt: off
PURE = frozenset({
    "__future__", "abc", "base64", "bisect", "collections", "contextlib", "copy", "dataclasses", "decimal", "difflib", "enum",
    "fnmatch", "functools", "hashlib", "heapq", "itertools", "json", "math", "operator", "posixpath", "re", "string", "types",
    "typing", "unicodedata", "yaml",
})
# fmt: on
IMPURE_CALLS = frozenset({"__import__", "breakpoint", "eval", "exec", "input", "open", "print"})


def _floor(module: str) -> int | None:
    return next((height for height, floor in enumerate(FLOORS) if module in floor.rooms), None)


def _may_import(importer: str, imported: str) -> bool:
    if imported == GROUND:
        return True
    above, below = _floor(importer), _floor(imported)
    if above is None or below is None or above != below:
        return above is not None and below is not None and below < above
    rooms = FLOORS[above].rooms
    return FLOORS[above].ordered and rooms.index(imported) < rooms.index(importer)


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of every import, wherever it stands; relative ones made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [PACKAGE if node.level else "", node.module]))
            names = (f"{base}.{alias.name}" for alias in node.names)
            yield from ((node.lineno, name if base == PACKAGE else base) for name in names)


def _own_module(name: str, rooms: frozenset[str]) -> str:
    """Return the module that an import of this package's own means: `devwatch.__version__` is the ground."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in rooms else GROUND


def _import_fault(module: str, name: str, rooms: frozenset[str]) -> str | None:
    top = name.partition(".")[0]
    if top == PACKAGE:
        imported = _own_module(name, rooms)
        return None if _may_import(module, imported) else f"imports {imported}, which is not below it"
    if EDGES.get(top, module) != module:
        return f"imports {top}, which {EDGES[top]} alone may"
    if (_floor(module) == 0 or module == GROUND) and top not in PURE:
        return f"imports {top}, which is not known to be free of I/O"
    return None


def _call_faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            yield node.lineno, f"calls {node.func.id}"


def _length_faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > LONGEST_FUNCTION:
                yield node.lineno, f"{node.name} has {length} lines"


def faults(module: str, source: str, rooms: frozenset[str]) -> list[str]:
    """Return what is wrong with a module, as `MODULE:LINE: what`; `rooms` are all modules of the package."""
    if module != GROUND and _floor(module) is None:
        return [f"{module}:1: has no floor: enter it in FLOORS"]
    tree = ast.parse(source)
    found = [(line, fault) for line, name in _imports(tree) if (fault := _import_fault(module, name, rooms))]
    found += _length_faults(tree)
    if _floor(module) == 0:
        found += _call_faults(tree)
    return [f"{module}:{line}: {fault}" for line, fault in sorted(found)]


def _package() -> dict[str, Path]:
    folder = Path(devwatch.__file__).parent
    return {".".join(path.relative_to(folder).with_suffix("").parts): path for path in folder.rglob("*.py")}


def test_every_module_keeps_to_its_floor() -> None:
    """No module imports from its own floor or above, and only the edges know a foreign library."""
    package = _package()
    rooms = frozenset(package)
    assert {"errors", "plan", "reconciler", "cli"} <= rooms, "the package was not found"
    found = [fault for name, path in package.items() for fault in faults(name, path.read_text("utf-8"), rooms)]
    assert found == []


def test_no_floor_names_a_module_that_is_gone() -> None:
    """The table of floors describes the package as it is."""
    assert {room for floor in FLOORS for room in floor.rooms} - set(_package()) == set()


ROOMS = frozenset({GROUND, *(room for floor in FLOORS for room in floor.rooms)})
LONG_FUNCTION = "def long() -> None:\n" + "    ...\n" * LONGEST_FUNCTION


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("errors", "from devwatch.core.plan import plan", "errors:1: imports plan, which is not below it"),
        ("config", "from devwatch import plan", "config:1: imports plan, which is not below it"),
        ("config", "from . import plan", "config:1: imports plan, which is not below it"),
        ("config", "from .plan import plan", "config:1: imports plan, which is not below it"),
        ("plan", "import devwatch.kube", "plan:1: imports kube, which is not below it"),
        ("plan", "import devwatch.core.plan", "plan:1: imports plan, which is not below it"),
        ("udev", "import devwatch.kube as k", "udev:1: imports kube, which is not below it"),
        ("kube", "from devwatch.agent.reconciler import NodeApi", "kube:1: imports reconciler, which is not below it"),
        ("cli", "import devwatch.__main__", "cli:1: imports __main__, which is not below it"),
        ("plan", "def f():\n    import devwatch.agent.daemon", "plan:2: imports daemon, which is not below it"),
        ("__init__", "from devwatch.core.errors import E", "__init__:1: imports errors, which is not below it"),
        ("reconciler", "import pyudev", "reconciler:1: imports pyudev, which udev alone may"),
        ("telemetry", "from aiohttp import web", "telemetry:1: imports aiohttp, which kube alone may"),
        ("cli", "import kubernetes_asyncio.client", "cli:1: imports kubernetes_asyncio, which kube alone may"),
        ("daemon", "import prometheus_client", "daemon:1: imports prometheus_client, which telemetry alone may"),
        ("plan", "import time", "plan:1: imports time, which is not known to be free of I/O"),
        ("rules", "from os import path", "rules:1: imports os, which is not known to be free of I/O"),
        ("config", "text = open('x')", "config:1: calls open"),
        ("upstairs", "", "upstairs:1: has no floor: enter it in FLOORS"),
        ("cli", LONG_FUNCTION, "cli:1: long has 41 lines"),
    ],
)
def test_a_breach_is_found(module: str, source: str, fault: str) -> None:
    """Source text that breaks one rule is reported with its line."""
    assert faults(module, source, ROOMS) == [fault]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("plan", "from devwatch.core.errors import E\nfrom . import config\nimport re"),
        ("udev", "import os\nimport pyudev\nfrom devwatch.core.device import Device"),
        ("__main__", "import sys\nfrom devwatch.cli import main"),
        ("telemetry", "from devwatch import __version__"),
        ("cli", LONG_FUNCTION.replace("    ...\n", "", 1)),
    ],
)
def test_what_keeps_the_rules_is_left_in_peace(module: str, source: str) -> None:
    """Imports of lower floors, of earlier rooms, of an edge's own library and of the version are no breach."""
    assert faults(module, source, ROOMS) == []


def test_only_modules_of_the_standard_library_count_as_pure() -> None:
    """What floor 0 may import is part of Python, but for the YAML parser."""
    assert PURE - sys.stdlib_module_names == {"yaml"}
