"""The machine and the versions of the programs with which the figures were measured."""

from __future__ import annotations

import os
import platform
import subprocess
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
    return {
        "machine": f"{_processor()}, {cores} cores, {memory:.0f} GiB RAM, Linux {platform.release()}, load {load} at the start",
        "versions": ", ".join(f"{name} {text}" for name, text in _versions(server).items()),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, platform.machine())


def _versions(server: ApiServer) -> dict[str, str]:
    udev = subprocess.run(["udevadm", "--version"], capture_output=True, text=True, check=True)  # noqa: S607 - where the machine has it
    return {
        "Python": platform.python_version(),
        "devwatch": devwatch.__version__,
        "kubernetes_asyncio": version("kubernetes_asyncio"),
        "API server": str(server.request("GET", "/version")[1].get("gitVersion")),
        "udev": udev.stdout.strip(),
    }
