"""The Kubernetes client is imported without its generated models, 40 MiB, and without the libraries that no request needs, 3 MiB.

These tests fail when a release of kubernetes_asyncio is laid out differently. The daemon then still works, with more memory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

LOADED = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import devwatch.kube.library
print(json.dumps({
    "modules": list(sys.modules),
    "from": devwatch.kube.library.ApiClient.__init__.__code__.co_filename,
    "warnings": [str(each.message) for each in caught if "kubernetes_asyncio" in str(each.message)],
}))
"""


def loaded(*first: Path) -> dict[str, Any]:
    """Return what an import of the edge loads in a fresh interpreter that looks into these folders first."""
    path = os.pathsep.join([*map(str, first), *sys.path])
    environ = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", LOADED], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def generated(modules: list[str]) -> list[str]:
    """Return the modules of models and API groups among these."""
    return [
        name
        for name in modules
        if name.startswith(("kubernetes_asyncio.client.models.", "kubernetes_asyncio.client.api."))
    ]


def test_neither_models_nor_api_groups_are_imported() -> None:
    """Only what sends a request and what reads credentials; and nobody is warned of anything."""
    found = loaded()
    assert generated(found["modules"]) == []
    assert "kubernetes_asyncio.client.api" not in found["modules"]
    assert "kubernetes_asyncio.client.rest" in found["modules"]
    assert found["warnings"] == []


def test_libraries_that_no_request_uses_are_not_imported() -> None:
    """They are an eighth of the memory and of the start."""
    assert not {"urllib3", "dateutil.parser", "multiprocessing.pool"} & set(loaded()["modules"])


def test_another_importer_gets_the_libraries_that_were_left_out() -> None:
    """In the same process, and in either order."""
    after = (
        "import devwatch.kube.library; from dateutil.parser import parse; import urllib3; print(urllib3.util, parse)"
    )
    before = "import urllib3; import devwatch.kube.library; print(urllib3.util)"
    for code in (after, before):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, "None" in done.stdout) == (0, False), done.stderr


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Return a folder with a copy of the package, in which what sends a request needs a model as a release might make it."""
    shutil.copytree(
        str(distribution("kubernetes_asyncio").locate_file("kubernetes_asyncio")), tmp_path / "kubernetes_asyncio"
    )
    client = tmp_path / "kubernetes_asyncio" / "client"
    _begin(client / "__init__.py", "from kubernetes_asyncio.client.models.v1_node import V1Node")
    _begin(client / "api_client.py", "from kubernetes_asyncio.client import V1Node")
    return tmp_path


def _begin(file: Path, line: str) -> None:
    text = file.read_text().replace("from __future__ import absolute_import\n", "")
    file.write_text(f"{line}\n{text}")


def test_a_client_that_cannot_be_imported_so_is_imported_as_usual(broken: Path) -> None:
    """With a warning that says what it costs; the daemon does its work all the same."""
    found = loaded(broken)
    assert str(found["from"]).startswith(str(broken))
    assert generated(found["modules"])
    (warning,) = found["warnings"]
    assert warning.startswith("this kubernetes_asyncio cannot be imported without its models (")
    assert "V1Node" in warning
    assert "40 MiB more" in warning
