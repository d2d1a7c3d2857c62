"""The source of an earlier release, out of the history of this repository, and how its daemon is started."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING

from support.checkout import CHECKOUT
from system import testbed

if TYPE_CHECKING:
    from pathlib import Path

FIRST = "6b2c3ef098afb02ae7140aa1e334174539fbc81c"
"""The last commit of 0.1.0: all later ones are of 0.2.0, and in the tree of this one the changelog ends with 0.1.0."""


def missing(commit: str) -> str | None:
    """Return why the sources of a commit cannot be had here, in the words of git, or None.

    A shallow clone does not have them, and neither does a source distribution.
    """
    if shutil.which("git") is None:
        return f"{testbed.HISTORY}: git is missing"
    done = _git("cat-file", "-e", f"{commit}^{{tree}}")
    if done.returncode == 0:
        return None
    words = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return f"{testbed.HISTORY}: {words[-1] if words else f'git has no {commit}'}"


def unpack(commit: str, folder: str, into: Path) -> Path:
    """Write a folder of a commit below another one, and return it; `missing` says beforehand whether that can be done."""
    done = _git("archive", "--format=tar", commit, folder)
    done.check_returncode()
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        # Python 3.11 has the filter since 3.11.4 only, 3.12 and 3.13 warn without one.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(into)  # noqa: S202  an archive of our own making
    return into / folder


def version(source: Path) -> str:
    """Return what the program of a folder of sources calls itself, which also shows that the libraries here are enough for it."""
    command = [sys.executable, "-m", "devwatch", "--version"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(source)}, capture_output=True, check=True)
    return done.stdout.decode().strip()


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run git in the checkout, whatever repository a hook that runs the tests is in."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(["git", "-C", CHECKOUT, *arguments], env=environ, capture_output=True, check=False)
