"""The site of docs/: `make docs` builds it; what is tested here needs no builder."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from devwatch.core.rules import Publish
from support.builtsite import faults
from support.checkout import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCS = CHECKOUT / "docs"
SETTINGS = CHECKOUT / ".mkdocs.yml"
PICTURES = sorted((DOCS / "assets").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"


def settings() -> Any:  # noqa: ANN401 - any YAML
    """Return the settings of the site."""
    return yaml.safe_load(SETTINGS.read_text("utf-8"))


def named(nav: Any) -> Iterator[str]:  # noqa: ANN401 - any YAML
    """Yield the pages of the navigation: a page, a list, or what stands under a title."""
    if isinstance(nav, str):
        yield nav
        return
    for item in nav.values() if isinstance(nav, dict) else nav:
        yield from named(item)


def site(folder: Path, **files: str) -> Path:
    """Write a site: `a_html` is a.html."""
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


def picture(name: str) -> ET.Element:
    """Return the root of a picture."""
    return ET.fromstring((DOCS / "assets" / name).read_text("utf-8"))  # noqa: S314 - our own


def test_every_page_has_its_place_in_the_navigation() -> None:
    """Once, and the folder's README is the first."""
    pages = list(named(settings()["nav"]))
    assert pages[0] == "README.md"
    assert sorted(pages) == sorted(path.name for path in DOCS.glob("*.md"))


def test_a_warning_stops_the_build() -> None:
    """Also of an anchor that is not there, and of a page without a place in the navigation."""
    given = settings()
    assert given["strict"] is True
    assert given["validation"]["links"] == dict.fromkeys(("absolute_links", "anchors", "unrecognized_links"), "warn")
    assert given["validation"]["nav"] == {"omitted_files": "warn"}


def test_nothing_is_built_into_the_sources() -> None:
    """The site lies where git does not look and where `make clean` removes it."""
    assert settings()["site_dir"].partition("/")[0] == "build"
    assert "/build/" in (CHECKOUT / ".gitignore").read_text("utf-8").splitlines()


def test_a_site_in_which_all_links_lead_somewhere_has_no_fault(tmp_path: Path) -> None:
    """Links to pages, anchors and files, and those that leave the site."""
    text = (
        '<a href="b.html#x">b</a><a href="#y">y</a><i id="y"></i><a href="https://example.com/z">z</a><img src="c.css">'
    )
    assert faults(site(tmp_path, a_html=text, b_html='<a name="x" href="/a.html">a</a>', c_css="p{color:red}")) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('<a href="none.html">x</a>', "a.html: none.html: no such file"),
        ('<a href="../out.html">x</a>', "a.html: ../out.html: no such file"),
        ('<a href="#none">x</a>', "a.html: #none: no such anchor"),
        ('<img src="none.svg">', "a.html: none.svg: no such file"),
        (
            '<script src="https://example.com/x.js"></script>',
            "a.html: https://example.com/x.js: fetched from another host",
        ),
        ('<link rel="stylesheet" href="//example.com/x">', "a.html: //example.com/x: fetched from another host"),
    ],
)
def test_what_is_wrong_with_a_site_is_found(text: str, fault: str, tmp_path: Path) -> None:
    """With the page and the link."""
    assert faults(site(tmp_path, a_html=text)) == [fault]


def test_a_style_that_another_host_gives_is_found(tmp_path: Path) -> None:
    """A font, for one; and a folder without a page is no site."""
    found = faults(site(tmp_path, c_css='@font-face{src:url("https://example.com/f.woff2")}'))
    assert found == [f"{tmp_path}: no page", "c.css: https://example.com/f.woff2: fetched from another host"]


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_a_picture_needs_nothing_but_itself(path: Path) -> None:
    """Neither a font nor an image nor a script of another place: GitHub and a reader without a network show it as it is."""
    text = path.read_text("utf-8")
    assert re.findall(r"<(?:script|image|use|foreignObject)|@import|url\((?!#)", text) == []
    assert [word for word in re.findall(r"https?://[^\"' ]+", text) if word != SVG.strip("{}")] == []


@pytest.mark.parametrize("name", ["flow.svg", "latency.svg", "ways.svg"])
def test_a_picture_is_readable_in_light_and_dark(name: str) -> None:
    """It has a ground of its own in both, covers all of itself with it, and says in words what it shows."""
    root = picture(name)
    style = "".join(root.find(f"{SVG}style").itertext())  # type: ignore[union-attr]
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    classes = {each for node in root.iter() for each in (node.get("class") or "").split()}
    assert [
        each for each in sorted(classes - {"name", "title"}) if f".{each} {{" not in light or f".{each} {{" not in dark
    ] == []
    ground = root.find(f"{SVG}rect[@class='ground']")
    assert ground is not None
    assert (ground.get("width"), ground.get("height")) == (root.get("width"), root.get("height"))
    assert len(root.findtext(f"{SVG}desc", "")) > 40


def test_the_picture_of_the_ways_shows_those_that_there_are() -> None:
    """All, in their order, with the default marked."""
    root = picture("ways.svg")
    titles = [node.text for node in root.iter(f"{SVG}text") if node.get("class") == "title"]
    first, *others = (way.value for way in Publish)
    assert titles == [f"{first} (default)", *others]
