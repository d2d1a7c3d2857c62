"""The generated files are what their sources say."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support import chartschema, reference
from support.checkout import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

PROTO = "src/devwatch/kubelet/kubelet.proto"
RECIPE = f"-m grpc_tools.protoc -I src --python_out=src --pyi_out=src {PROTO}\n"


def test_the_makefile_generates_with_the_command_of_the_next_test() -> None:
    """`make proto`."""
    assert RECIPE in (CHECKOUT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["kubelet_pb2.py", "kubelet_pb2.pyi"])
def test_the_messages_of_the_kubelet_are_current(name: str, tmp_path: Path) -> None:
    """`make proto` would change nothing."""
    options = RECIPE.strip().replace("out=src", f"out={tmp_path}").split()
    subprocess.run([sys.executable, *options], cwd=CHECKOUT, check=True)
    made = tmp_path / "devwatch" / "kubelet" / name
    assert made.read_text() == (CHECKOUT / PROTO).with_name(name).read_text(), "run make proto"


def test_the_schema_of_the_values_is_current() -> None:
    """`make schema` would change nothing."""
    assert "-m support.chartschema\n" in (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    text = chartschema.FILE.read_text("utf-8")
    assert chartschema.current(text) == text, "run make schema"


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_reference_page_is_current(name: str) -> None:
    """`make reference` would change nothing: keys, commands, metrics and log events are those of the code, and no other."""
    assert "-m support.reference\n" in (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    assert (reference.DOCS / name).read_text("utf-8") == reference.PAGES[name](), "run make reference"
