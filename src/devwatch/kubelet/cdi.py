"""The CDI files by which a container runtime gives devices to containers (Container Device Interface)."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from devwatch.core.claims import CDI_KIND
from devwatch.kubelet import files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from devwatch.core.handover import Allocation

_VERSION = "0.5.0"
"""The version of the specification that has all that is used here: `hostPath`, and names that begin with a digit."""
_MODE = 0o660
"""The permissions of a device in a container; without them CDI takes 0666."""
_OURS = "devwatch.io-claim_*.json"


class CdiFolder:
    """One file for each claim in the folder that container runtimes watch (`/var/run/cdi`, a tmpfs)."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, whatever a former daemon left there."""
        self._folder = folder
        self._wanted: Mapping[str, Mapping[str, Allocation]] | None = None
        """What was written last, None where the folder is to be read first."""
        self._written: dict[Path, files.Signature] = {}

    def update(self, wanted: Mapping[str, Mapping[str, Allocation]]) -> None:
        """Have exactly these CDI devices, by claim and name. Raises `KubeletError`.

        Each file that changes is removed before any is written, so that no two name one devnode even for a moment. One that cannot be
        removed or written does not keep the others.
        """
        if wanted == self._wanted and all(files.signature_of(path) == known for path, known in self._written.items()):
            return
        self._wanted = None
        texts = {self._folder / f"devwatch.io-claim_{uid}.json": _text_of(each) for uid, each in wanted.items() if each}
        try:
            found = dict(self._read())
        except OSError as error:
            raise files.error_of(error, self._folder) from error
        failed = [*self._remove(found, texts), *self._write(found, texts)]
        for path, fault in failed:
            raise files.error_of(fault, path) from fault
        self._wanted = wanted
        self._written = {path: signature for path in texts if (signature := files.signature_of(path))}

    def _read(self) -> Iterator[tuple[Path, str]]:
        """Yield our files with their content; that of one that cannot be read is empty."""
        self._folder.mkdir(mode=0o755, exist_ok=True)
        for path in find_cdi_files(self._folder):
            text = ""
            with contextlib.suppress(OSError, ValueError):
                text = path.read_text("ascii") if path.is_file() else ""
            yield path, text

    def _remove(self, found: Mapping[Path, str], texts: Mapping[Path, str]) -> Iterator[tuple[Path, OSError]]:
        """Remove all that is to be different, and yield what failed."""
        for path, text in found.items():
            try:
                if texts.get(path) != text:
                    path.unlink(missing_ok=True)
            except OSError as error:
                yield path, error

    def _write(self, found: Mapping[Path, str], texts: Mapping[Path, str]) -> Iterator[tuple[Path, OSError]]:
        """Write all that is different, and yield what failed."""
        for path, text in texts.items():
            try:
                if found.get(path) != text:
                    files.write(path, text, mode=0o644)
            except OSError as error:
                yield path, error


def find_cdi_files(folder: Path) -> tuple[Path, ...]:
    """Return our files in a folder, half-written ones included; none where there is no folder. Raises `OSError`."""
    partial = files.partial_of(folder / _OURS).name
    try:
        return tuple(sorted(path for path in folder.iterdir() if path.match(_OURS) or path.match(partial)))
    except FileNotFoundError:
        return ()


def _text_of(devices: Mapping[str, Allocation]) -> str:
    """Return the content of the file. The owner is left to the runtime, which takes the user of the container."""
    edits = [{"name": name, "containerEdits": _edits_of(each)} for name, each in devices.items()]
    return json.dumps({"cdiVersion": _VERSION, "kind": CDI_KIND, "devices": edits}, indent=2) + "\n"


def _edits_of(allocation: Allocation) -> dict[str, object]:
    return {
        "env": [f"{name}={value}" for name, value in allocation.variables.items()],
        "deviceNodes": [
            {"path": path, "hostPath": devnode, "permissions": "rw", "fileMode": _MODE}
            for path, devnode in allocation.paths.items()
        ],
    }
