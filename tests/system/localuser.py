"""A user of the node without any permission, and what becomes of it at the folders of the kubelet."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from system.kubelet import FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_SCRIPT = """
import errno, os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)

def outcome(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

for path in sys.argv[1:]:
    client = socket.socket(socket.AF_UNIX)
    print(outcome(client.connect, path), outcome(os.symlink, "/etc", path + ".planted"), outcome(os.rename, path, path + ".moved"))
"""
_TIMEOUT = 60


def sockets() -> list[Path]:
    """Return every socket in the folders of the kubelet in which plugins and the kubelet meet."""
    folders = ("device-plugins", "pod-resources", "plugins", "plugins_registry")
    return sorted(path for name in folders for path in (FOLDER / name).rglob("*.sock"))


def attempts(paths: Iterable[Path]) -> set[str]:
    """Return what comes of it when the user connects to each of these sockets, makes a link beside it, and moves it away."""
    command = [sys.executable, "-c", _SCRIPT, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT)
    return set(done.stdout.splitlines())
