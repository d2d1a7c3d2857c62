"""The pages for clusters and applications, and what is ready to paste on them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from support.checkout import CHECKOUT
from support.deployment import DEPLOY, build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.deployment import Object

DOCS = CHECKOUT / "docs"
REMOTE = "https://github.com/devwatch/devwatch//deploy/"
"""Where a kustomization of a page has the manifests from; a tag follows."""
VALUES = frozenset(json.loads((DEPLOY / "chart" / "values.schema.json").read_text("utf-8"))["properties"])
"""The keys of the chart's values."""

_BLOCK = re.compile(r"(?:`([\w.-]+\.yaml)`[^\n]*:\n\n)?^```yaml\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class UnknownBlockError(Exception):
    """A block is neither a manifest nor a configuration nor values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block of YAML; `file` is the name that the line above gives it."""

    file: str | None
    text: str

    @property
    def documents(self) -> list[Object]:
        """Return its documents; raises `yaml.YAMLError`."""
        return [each for each in yaml.safe_load_all(self.text) if each]

    @property
    def kind(self) -> str:
        """Return "manifest", "kustomization", "configuration" or "values"; raises `UnknownBlockError` for any other block."""
        documents = self.documents
        if documents and all(each.keys() >= {"apiVersion", "kind"} for each in documents):
            return "kustomization" if documents[0]["kind"] == "Kustomization" else "manifest"
        if (
            len(documents) == 1
            and "resources" in documents[0]
            and documents[0].keys() <= {"resources", "sweep", "resync"}
        ):
            return "configuration"
        if len(documents) == 1 and documents[0].keys() <= VALUES:
            return "values"
        raise UnknownBlockError(self.text)


def pages(section: str) -> list[str]:
    """Return the pages of a section of the site's navigation, each with a title there, without `.md`."""
    navigation: list[dict[str, Any]] = yaml.safe_load((CHECKOUT / ".mkdocs.yml").read_text("utf-8"))["nav"]
    (found,) = (item[section] for item in navigation if section in item)
    return [name.removesuffix(".md") for titled in found for name in titled.values()]


CLUSTERS, APPLICATIONS = pages("Clusters"), pages("Applications")
GUIDES = [*CLUSTERS, *APPLICATIONS]


def text_of(page: str) -> str:
    """Return a page."""
    return (DOCS / f"{page}.md").read_text("utf-8")


def blocks(page: str, kind: str | None = None) -> list[Block]:
    """Return the blocks of YAML of a page, in their order: all, or those of a kind."""
    found = [Block(file=file or None, text=text) for file, text in _BLOCK.findall(text_of(page))]
    return [block for block in found if kind in {None, block.kind}]


def objects(page: str) -> list[Object]:
    """Return the objects that a page has ready to apply."""
    return [item for block in blocks(page, "manifest") for item in block.documents]


def kustomized(page: str, folder: Path) -> list[Object]:
    """Build the kustomization of a page in an empty folder, from this checkout: what `kubectl apply -k` sends. None: `[]`."""
    made = blocks(page, "kustomization")
    (folder / "config.yaml").write_bytes((DEPLOY / "example" / "config.yaml").read_bytes())
    for block in (each for each in blocks(page) if each.file):
        (folder / str(block.file)).write_text(block.text, encoding="utf-8")
    for block in made:
        here = re.sub(
            rf"{REMOTE}([\w/-]+)\?ref=v[\d.]+", rf"{os.path.relpath(DEPLOY, folder.resolve())}/\1", block.text
        )
        (folder / "kustomization.yaml").write_text(here, encoding="utf-8")
    return build(folder) if made else []


def installed_values(page: str, read: Callable[[str], Object] = yaml.safe_load) -> Iterator[Object]:
    """Yield all values for the chart on a page, on their own or in an object of another program, as `read` understands YAML."""
    yield from (read(block.text) for block in blocks(page, "values"))
    for block in blocks(page, "manifest"):
        for text in re.split(r"^---$", block.text, flags=re.MULTILINE):
            item = read(text)
            match item["kind"]:
                case "HelmChart":
                    yield read(item["spec"]["valuesContent"])
                case "HelmRelease":
                    yield item["spec"]["values"]
                case "Application":
                    yield item["spec"]["source"]["helm"]["valuesObject"]
