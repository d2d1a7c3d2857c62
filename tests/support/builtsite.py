"""Follow the links of the built site: `python -m support.builtsite FOLDER`. It runs where the site is built, with nothing but Python.

The builder follows the links of the sources. This follows those that a browser does, also of the theme, and finds what would be fetched
from another host: the site has to be readable, and searchable, without a network.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOADED = {"script": "src", "img": "src", "source": "src", "iframe": "src", "link": "href"}
"""The elements that make a browser fetch something, with the attribute that says what."""
_FETCHED_BY_STYLE = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)")


@dataclass(slots=True)
class Page(HTMLParser):
    """The anchors of a page, its links, and what it fetches."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin to parse."""
        HTMLParser.__init__(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take in an element."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if target := given.get(_LOADED.get(tag, ""), ""):
            self.fetched.append(target)


def faults(folder: Path) -> list[str]:
    """Return what is wrong with a site: links that lead nowhere, and what comes from another host. Each names its page."""
    pages = {path: _parsed(path) for path in sorted(folder.rglob("*.html"))}
    found = [f"{folder}: no page"] if not pages else []
    for path, page in pages.items():
        wrong = [fault for link in (*page.links, *page.fetched) if (fault := _fault(folder, path, link, pages))]
        foreign = [f"{target}: fetched from another host" for target in page.fetched if _is_foreign(target)]
        found += [f"{path.relative_to(folder)}: {fault}" for fault in (*wrong, *foreign)]
    return found + list(_foreign_styles(folder))


def _parsed(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text("utf-8"))
    page.close()
    return page


def _is_foreign(target: str) -> bool:
    return bool(urlsplit(target).netloc)


def _fault(folder: Path, path: Path, link: str, pages: dict[Path, Page]) -> str | None:
    """Return what is wrong with a link inside of the site, None where it leads to a file and an anchor, or out of the site."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    name = unquote(parts.path)
    target = folder / name.lstrip("/") if name.startswith("/") else path.parent / name if name else path
    target = (target / "index.html" if target.is_dir() else target).resolve()
    if not target.is_file() or not target.is_relative_to(folder.resolve()):
        return f"{link}: no such file"
    page = next((each for place, each in pages.items() if place.resolve() == target), None)
    if page and parts.fragment and unquote(parts.fragment) not in page.anchors:
        return f"{link}: no such anchor"
    return None


def _foreign_styles(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.css")):
        for target in _FETCHED_BY_STYLE.findall(path.read_text("utf-8")):
            yield f"{path.relative_to(folder)}: {target}: fetched from another host"


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]))
    sys.exit("\n".join(wrong) if wrong else None)
