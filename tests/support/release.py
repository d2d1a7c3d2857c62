"""Write the parts of a release that are made of CHANGELOG.md: `make build` runs this file."""

from __future__ import annotations

import gzip
import io
import os
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import yaml

from support.checkout import CHECKOUT

CHART = CHECKOUT / "deploy" / "chart"
CHANGELOG = CHECKOUT / "CHANGELOG.md"
KINDS = ("added", "changed", "deprecated", "removed", "fixed", "security")
"""What Artifact Hub calls a change; the same words as Keep a Changelog's.

Source: https://artifacthub.io/docs/topics/annotations/helm (`artifacthub.io/changes`).
"""

ADVICE = "upgrading"
"""The heading of what a user does at an upgrade: it is in the notes of a release, and is not a change."""


def notes(changelog: str) -> str:
    """Return the latest entry of the changelog without its heading: the notes of a release. Raises `ValueError` where there is none."""
    _, *entries = re.split(r"^## .*\n", changelog, flags=re.MULTILINE)
    if not entries:
        raise ValueError("CHANGELOG.md: no entry (a line that begins with '## ')")
    return f"{entries[0].strip()}\n"


def changes(entry: str) -> list[dict[str, str]]:
    """Return the bullets of an entry as Artifact Hub takes them, in plain text. Raises `ValueError` for a heading that it does not know."""
    found = []
    for part in re.split(r"^### ", entry, flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        kind = heading.strip().lower()
        if kind == ADVICE:
            continue
        if kind not in KINDS:
            raise ValueError(f"CHANGELOG.md: {heading!r} is not a kind of change (one of: {', '.join(KINDS)})")
        bullets = re.split(r"^- ", text, flags=re.MULTILINE)[1:]
        found += [{"kind": kind, "description": _plain(bullet)} for bullet in bullets]
    return found


def _plain(bullet: str) -> str:
    """Return one line without marks for bold text and code, and with the text of a link in its place."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", bullet)
    return " ".join(re.sub(r"\*\*|`", "", text).split())


def metadata() -> bytes:
    """Return the chart's Chart.yaml with the changes, as a packaged chart has it."""
    chart: dict[str, Any] = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    listed = changes(notes(CHANGELOG.read_text("utf-8")))
    chart["annotations"]["artifacthub.io/changes"] = yaml.safe_dump(listed, sort_keys=False, allow_unicode=True)
    return yaml.safe_dump(chart, sort_keys=False, allow_unicode=True).encode()


def package(into: Path, seconds: int) -> Path:
    """Write the chart as `helm package` would, to the byte the same from the same sources, dated `seconds` (Unix time)."""
    name = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    made = into / f"{name['name']}-chart-{name['version']}.tgz"
    with (
        made.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=seconds) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for path in sorted(each for each in CHART.rglob("*") if each.is_file()):
            content = metadata() if path.name == "Chart.yaml" else path.read_bytes()
            entry = tarfile.TarInfo(f"{name['name']}/{path.relative_to(CHART)}")
            entry.size, entry.mtime = len(content), seconds
            archive.addfile(entry, io.BytesIO(content))
    return made


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    package(folder, int(os.environ["SOURCE_DATE_EPOCH"]))
    (folder / "NOTES.md").write_text(notes(CHANGELOG.read_text("utf-8")), encoding="utf-8")
