"""The machine and the versions of the programs with which the figures were measured."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import devwatch

if TYPE_CHECKING:
    from system.apiserver import ApiServer


def head(server: ApiServer) -> dict[str, str]:
    """Return the lines above the table."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    load = ", ".join(f"{number:.2f}" for number in os.getloadavg())
    release = ".".join(platform.release().split(".")[:2])
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{_processor()}, {cores} cores, {memory:.0f} GiB RAM, Linux {release}, load {load} at the start",
        "versions": ", ".join(f"{name} {text}" for name, text in _versions(server).items()),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, platform.machine())


def _versions(server: ApiServer) -> dict[str, str]:
    return {
        "Python": platform.python_version(),
        "devwatch": devwatch.__version__,
        "kubernetes_asyncio": version("kubernetes_asyncio"),
        "Kubernetes": str(server.request("GET", "/version")[1].get("gitVersion")),
        **_programs(),
    }


def _programs() -> dict[str, str]:
    """Return the versions of the other programs, as far as they are installed."""
    found = {}
    for name, program in (("udev", "udevadm"), ("containerd", "containerd")):
        if (path := shutil.which(program)) is not None:
            shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)  # noqa: S603 - our own words
            found[name] = version_in(shown.stdout)
    return found


def version_in(text: str) -> str:
    """Return the first word that begins with a digit, maybe after a `v`; containerd names its source before it, and its commit after it."""
    return next(iter(re.findall(r"(?:^|\s)v?(\d\S*)", text)), "unknown")
