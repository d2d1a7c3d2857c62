"""An image for containers, made on the spot from the machine's static busybox: nothing is pulled."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import subprocess
import tarfile
from pathlib import Path

IMAGE = "localhost/busybox:1"

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def program() -> Path | None:
    """Return the static busybox of this machine, or None. Debian's package `busybox` is linked to libraries."""
    found = shutil.which("busybox")
    if found is None or subprocess.run(["ldd", found], capture_output=True, check=False).returncode == 0:
        return None
    return Path(found)


def write_archive(path: Path, busybox: Path) -> None:
    """Write `IMAGE` as an archive that container runtimes import (the format of `docker save`)."""
    layer = _layer(busybox)
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps(_config(digest)).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [IMAGE], "Layers": [f"{digest}/layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        for member, data in (
            (f"{digest}/layer.tar", layer),
            (name, config),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            _add_file(archive, member, data, mode=0o644)


def _config(digest: str) -> dict[str, object]:
    return {
        "architecture": _ARCHITECTURES[platform.machine()],
        "os": "linux",
        # The sandbox of a pod runs the entrypoint.
        "config": {"Entrypoint": ["/bin/busybox", "sleep", "2147483647"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }


def _layer(busybox: Path) -> bytes:
    """Return a tar with the program, a link for each of its applets, and the folders that pods expect."""
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for name, mode in (("bin", 0o755), ("tmp", 0o1777), ("etc", 0o755)):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            layer.addfile(folder)
        _add_file(layer, "bin/busybox", busybox.read_bytes(), mode=0o755)
        _add_file(layer, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\n", mode=0o644)
        for applet in applets:
            if applet != "busybox":
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                layer.addfile(link)
    return buffer.getvalue()


def _add_file(archive: tarfile.TarFile, name: str, data: bytes, *, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), mode
    archive.addfile(member, io.BytesIO(data))
