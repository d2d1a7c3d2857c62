"""The floors: which package may import which.

A module imports from its own package and from the floors below it. The checker reads source text and knows nothing of the disk, so it is
itself tested with text that breaks each rule.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import devwatch

PACKAGE = "devwatch"
LONGEST_FUNCTION = 40
FLOORS = (("core",), ("config",), ("host", "kube", "kubelet", "observe"), ("agent",), ("cli",))
"""The packages of each height, the lowest first; those of one height do not import one another."""
LIBRARIES = {
    "pyudev": "host",
    "kubernetes_asyncio": "kube",
    "aiohttp": "kube",
    "grpclib": "kubelet",
    "google": "kubelet",
    "h2": "kubelet",
    "prometheus_client": "observe",
    "yaml": "config",
}
"""Foreign libraries, and the package that knows each."""
ALSO = {("kube", "yaml"): "kubeconfigs are YAML", ("cli", "yaml"): "-o yaml"}
"""Who else may import one, and why."""
# All that the core may use of the world: nothing here opens, waits, draws lots or reads a clock.
# fmt: off
PURE = frozenset({
    "__future__", "abc", "base64", "bisect", "collections", "contextlib", "copy", "dataclasses", "decimal", "difflib", "enum",
    "fnmatch", "functools", "hashlib", "heapq", "itertools", "json", "math", "operator", "posixpath", "re", "string", "types",
    "typing", "unicodedata",
})
# fmt: on
IMPURE_CALLS = frozenset({"__import__", "breakpoint", "eval", "exec", "input", "open", "print"})


def _package_of(module: str) -> str:
    """Return the package of a module of ours by its dotted name, empty for what lies above all floors: the version and `__main__`."""
    return module.partition(".")[0] if "." in module else ""


def _height(package: str) -> int | None:
    return next((height for height, packages in enumerate(FLOORS) if package in packages), None)


def _imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of every import, wherever it stands; relative ones made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = [PACKAGE, *module.split(".")][: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names = (f"{base}.{alias.name}" for alias in node.names)
            yield from ((node.lineno, name if base == PACKAGE else base) for name in names)


def _import_fault(module: str, name: str) -> str | None:
    top, _, rest = name.partition(".")
    package = _package_of(module)
    if top == PACKAGE:
        imported = rest.partition(".")[0]
        height, below = _height(package), _height(imported)
        if below is None or imported == package or (not package and module == "__main__"):
            return None
        return None if height is not None and below < height else f"imports {imported}, which is not below it"
    if top in LIBRARIES and LIBRARIES[top] != package and (package, top) not in ALSO:
        return f"imports {top}, which {LIBRARIES[top]} alone may"
    if package in {"core", ""} and module != "__main__" and top not in PURE:
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


def faults(module: str, source: str) -> list[str]:
    """Return what is wrong with a module, as `MODULE:LINE: what`."""
    if (package := _package_of(module)) and _height(package) is None:
        return [f"{module}:1: {package} has no floor: enter it in FLOORS"]
    tree = ast.parse(source)
    found = [(line, fault) for line, name in _imports(tree, module) if (fault := _import_fault(module, name))]
    found += _length_faults(tree)
    if package == "core":
        found += _call_faults(tree)
    return [f"{module}:{line}: {fault}" for line, fault in sorted(found)]


def _modules() -> dict[str, Path]:
    folder = Path(devwatch.__file__).parent
    return {".".join(path.relative_to(folder).with_suffix("").parts): path for path in folder.rglob("*.py")}


def test_every_module_keeps_to_its_floor() -> None:
    """No module imports from a package beside or above its own, and only one package knows a foreign library."""
    modules = _modules()
    assert {"core.errors", "agent.reconciler", "cli.entry"} <= modules.keys(), "the package was not found"
    assert [fault for name, path in modules.items() for fault in faults(name, path.read_text("utf-8"))] == []


def test_nothing_lies_beside_the_floors() -> None:
    """A stranger finds the place for a change from `ls`."""
    assert {name for name in _modules() if not _package_of(name)} == {"__init__", "__main__"}


LONG_FUNCTION = "def long() -> None:\n" + "    ...\n" * LONGEST_FUNCTION


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("core.errors", "from devwatch.config.schema import C", "core.errors:1: imports config, which is not below it"),
        ("core.plan", "from ..host import udev", "core.plan:1: imports host, which is not below it"),
        ("core.plan", "import devwatch.kube.client", "core.plan:1: imports kube, which is not below it"),
        ("config.file", "from devwatch import kube", "config.file:1: imports kube, which is not below it"),
        ("host.udev", "import devwatch.kube.nodes as k", "host.udev:1: imports kube, which is not below it"),
        ("kube.nodes", "from devwatch.agent.reconciler import A", "kube.nodes:1: imports agent, which is not below it"),
        (
            "core.plan",
            "def f():\n    import devwatch.agent.daemon",
            "core.plan:2: imports agent, which is not below it",
        ),
        ("__init__", "from devwatch.core.errors import E", "__init__:1: imports core, which is not below it"),
        ("agent.reconciler", "import pyudev", "agent.reconciler:1: imports pyudev, which host alone may"),
        ("observe.server", "from aiohttp import web", "observe.server:1: imports aiohttp, which kube alone may"),
        (
            "cli.entry",
            "import kubernetes_asyncio.client",
            "cli.entry:1: imports kubernetes_asyncio, which kube alone may",
        ),
        (
            "agent.daemon",
            "import prometheus_client",
            "agent.daemon:1: imports prometheus_client, which observe alone may",
        ),
        ("core.node", "import yaml", "core.node:1: imports yaml, which config alone may"),
        ("core.plan", "import time", "core.plan:1: imports time, which is not known to be free of I/O"),
        ("core.rules", "from os import path", "core.rules:1: imports os, which is not known to be free of I/O"),
        ("core.names", "text = open('x')", "core.names:1: calls open"),
        ("attic.box", "", "attic.box:1: attic has no floor: enter it in FLOORS"),
        ("cli.entry", LONG_FUNCTION, "cli.entry:1: long has 41 lines"),
    ],
)
def test_a_breach_is_found(module: str, source: str, fault: str) -> None:
    """Source text that breaks one rule is reported with its line."""
    assert faults(module, source) == [fault]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.plan", "from devwatch.core.errors import E\nfrom . import node\nimport re"),
        ("config.tree", "import yaml\nimport os\nfrom ..core.errors import E"),
        ("host.udev", "import os\nimport pyudev\nfrom devwatch.core.device import Device"),
        ("__main__", "import sys\nfrom devwatch.cli import main"),
        ("observe.metrics", "import prometheus_client\nfrom devwatch import __version__"),
        ("cli.display", "import yaml"),
        ("cli.entry", LONG_FUNCTION.replace("    ...\n", "", 1)),
    ],
)
def test_what_keeps_the_rules_is_left_in_peace(module: str, source: str) -> None:
    """Imports of the own package, of lower floors, of a package's own library and of the version are no breach."""
    assert faults(module, source) == []


def test_only_modules_of_the_standard_library_count_as_pure() -> None:
    """What the core may import is part of Python."""
    assert sys.stdlib_module_names >= PURE
