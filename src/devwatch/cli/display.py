"""Format results: tables and lists for people, JSON and YAML for scripts. Strings of devices are escaped, never interpreted."""

from __future__ import annotations

import json
import shutil
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from devwatch.core.device import TTY, USB
from devwatch.core.keys import VALUE_KEYS
from devwatch.core.rules import Verdict
from devwatch.core.text import escape, quote_for_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from devwatch.cli.inspection import Row, RuleReport, Suggestion
    from devwatch.core.errors import Fault
    from devwatch.core.rules import Claim

NOTHING = "-"
_GAP = "   "
_NUMERIC = tuple("0123456789+-.")
_COLOURS = {Verdict.MATCHED: "32", Verdict.NOT: "31", Verdict.UNKNOWN: "33"}


class Sink(Protocol):
    """The part of a stream that a screen needs."""

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""

    def write(self, text: str, /) -> object:
        """Write text."""


class _Dumper(yaml.SafeDumper):
    """Quotes every text that a reader of YAML 1.2 may take for a number, such as the vendor 04e8; PyYAML applies YAML 1.1."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Return the scalar of a text."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="'" if text.startswith(_NUMERIC) else None)


_Dumper.add_representer(str, _Dumper.represent_text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """Writes results to a stream; `width` is None where that is not a terminal."""

    out: Sink
    width: int | None = None
    coloured: bool = False

    @classmethod
    def of(cls, out: Sink, environ: Mapping[str, str]) -> Screen:
        """Return a screen for a stream: coloured on a terminal unless NO_COLOR (no-color.org) or TERM=dumb is set, plain otherwise."""
        if not out.isatty():
            return cls(out=out)
        plain = bool(environ.get("NO_COLOR")) or environ.get("TERM") == "dumb"
        return cls(out=out, width=shutil.get_terminal_size().columns, coloured=not plain)

    def line(self, text: str = "", *, indent: int = 0) -> None:
        """Write a line, wrapped at the width of the terminal, with a hanging indent."""
        prefix = " " * indent
        if self.width is None or len(prefix) + len(text) <= self.width:
            print(prefix + text, file=self.out)
            return
        lines = textwrap.wrap(
            text, max(self.width, indent + 12), initial_indent=prefix, subsequent_indent=prefix + "  "
        )
        print("\n".join(lines), file=self.out)

    def paint(self, verdict: Verdict) -> str:
        """Return the word for a verdict, in its colour if the screen is coloured."""
        return f"\x1b[{_COLOURS[verdict]}m{verdict.value}\x1b[0m" if self.coloured else verdict.value

    def table(self, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
        """Write a table as kubectl does, or a paragraph for each row where the terminal is too narrow."""
        cells = [[escape(cell) or NOTHING for cell in line] for line in lines]
        widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
        if self.width is not None and sum(widths) + len(_GAP) * (len(widths) - 1) > self.width:
            self._paragraphs(heads, cells)
            return
        for line in (heads, *cells):
            print(
                _GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), file=self.out
            )

    def _paragraphs(self, heads: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
        for line in cells:
            self.line(line[0])
            for head, cell in zip(heads[1:], line[1:], strict=True):
                if cell != NOTHING:
                    self.line(f"{head.lower()}: {cell}", indent=2)

    def document(self, content: object, form: str) -> None:
        """Write content as `json` or `yaml`, in ASCII, so that no escape sequence reaches the terminal."""
        if form == "json":
            print(json.dumps(content, indent=2), file=self.out)
        else:
            print(yaml.dump(content, Dumper=_Dumper, sort_keys=False), end="", file=self.out)


# -- devices


def show_devices(screen: Screen, rows: Sequence[Row], *, wide: bool) -> None:
    """Write the table of devices."""
    heads = ["DEVNODE", "WHAT", "ID", "SERIAL", "INTERFACE", "LINK", "RESOURCE"]
    lines = [_cells(row) for row in rows]
    if wide:
        heads += ["SUBSYSTEM", "DRIVER", "PORT", "LINKS"]
        lines = [
            [*line, row.device.subsystem, row.driver or "", row.device.port or "", " ".join(row.device.links)]
            for line, row in zip(lines, rows, strict=True)
        ]
    screen.table(heads, lines)


def _cells(row: Row) -> list[str]:
    device = row.device
    ids = f"{device.vendor}:{device.product}" if device.vendor else ""
    return [
        device.devnode,
        row.what,
        ids,
        device.serial or "",
        device.interface or "",
        next(iter(device.links), ""),
        owner(row.claim),
    ]


def owner(claim: Claim) -> str:
    """Return the resource that claims a device, `unknown` with the candidates where that is undecided, or nothing."""
    return claim.owner or (f"unknown ({', '.join(sorted(claim.doubtful))})" if claim.doubtful else "")


def device_document(row: Row) -> dict[str, Any]:
    """Return a row as a document for scripts; its keys are public."""
    device = row.device
    return {
        "devnode": device.devnode,
        "what": row.what,
        "subsystem": device.subsystem,
        **{key: getattr(device, key) for key in VALUE_KEYS},
        "driver": row.driver,
        "link": next(iter(device.links), None),
        "links": list(device.links),
        "physical": device.body,
        "resource": row.claim.owner,
        "unknownFor": sorted(row.claim.doubtful),
        "matches": list(row.claim.wanted),
        "twins": list(row.twins),
        "recordComplete": device.complete,
    }


# -- explain


def show_rule(screen: Screen, number: int, report: RuleReport, *, claims: bool) -> None:
    """Write the verdict of one resource on a device, key by key."""
    end = ": claims it" if claims else ""
    screen.line(f"{number}. {escape(report.name)}: {screen.paint(report.verdict)}{end}")
    for entry in report.entries:
        screen.line(f"{entry.where}: {screen.paint(entry.verdict)}", indent=3)
        for finding in entry.findings:
            wanted, seen = (
                " or ".join(map(escape, texts)) for texts in (map(repr, finding.wanted), map(repr, finding.seen))
            )
            why = f" ({finding.reason})" if finding.reason else ""
            screen.line(
                f"{escape(finding.key)}: wanted {wanted}, seen {seen or 'nothing'}: {screen.paint(finding.verdict)}{why}",
                indent=5,
            )
    if report.change:
        screen.line(f"to change: {escape(report.change)}", indent=3)


# -- check


def show_fault(screen: Screen, fault: Fault, file: str, text: str, *, kind: str = "") -> None:
    """Write a fault as a compiler does, on a terminal with the line and a caret under the column."""
    screen.line(f"{kind}{escape(fault.render(file))}")
    lines = text.splitlines()
    if screen.width is None or fault.line > len(lines):
        return
    shown, column = lines[fault.line - 1], fault.column - 1
    start = max(0, column - screen.width // 2)
    part = escape(shown[start : start + screen.width - 4])
    screen.out.write(f"    {part}\n    {' ' * len(escape(shown[start:column]))}^\n")


# -- suggest


def suggestion_text(suggestions: Sequence[Suggestion], *, certain: bool = True) -> str:
    """Return a valid, commented configuration with these resources, each value of which matches only itself.

    Unless the scan was `certain`, it does not claim that there are no further devices.
    """
    if not suggestions:
        nothing = "Nothing to suggest: every device here is claimed or virtual, or there is none"
        return f"# {nothing if certain else 'Not every device here could be seen'}.\nresources: []\n"
    return "resources:\n" + "\n".join(_resource(suggestion) for suggestion in suggestions)


def _resource(suggestion: Suggestion) -> str:
    comment = [
        f"{escape(suggestion.title)}: {', '.join(suggestion.devnodes)}",
        *([suggestion.note] if suggestion.note else []),
    ]
    lines = [f"  # {line}" for line in comment] + [f"  - name: {suggestion.name}"]
    lines += [f"    subsystem: {suggestion.subsystem}"] * (suggestion.subsystem != TTY) + ["    match:"]
    for index, (key, values) in enumerate(suggestion.keys.items()):
        texts = [quote_for_yaml(value) for value in values]
        value = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
        spelt = f"properties: {{ID_MODEL: {value}}}" if key == "model" else f"{key}: {value}"
        lines.append(f"      {'  ' if index else '- '}{spelt}")
    return "\n".join(lines) + "\n"


_POD = """\
---
# For the spec of a Pod that uses {name}: its container opens
{paths}
# {way}
containers:
  - name: app
    resources:
      limits:
        {name}: 1
    securityContext:
      privileged: true # the device cgroup of a container allows no device of the host otherwise
    volumeMounts:
      - name: dev
        mountPath: {mount}
volumes:
  - name: dev
    hostPath:
      path: {folder} # not the devnode: in its place the container runtime would make a directory while the device is away
      type: Directory
"""
_MOUNT = "/host/dev"
"""Where the Pod finds /dev of the host; /dev itself is the container's own."""
_BUS = "/dev/bus/usb"
"""The folder in which libusb finds whole USB devices, and in no other one."""
_HANDED_OVER = "With `publish: devicePlugin` or `publish: dra` the limit alone is needed, and the device is at {}."
_SEARCHED = "A program that uses libusb searches this folder. At another path it finds no device, so leave `publish` at nodeStatus."


def pod_text(suggestions: Sequence[Suggestion]) -> str:
    """Return for each of these resources a YAML document with what the spec of a Pod needs for it (`publish: nodeStatus`)."""
    return "".join(map(_pod, suggestions))


def _pod(suggestion: Suggestion) -> str:
    whole = suggestion.subsystem == USB
    folder, mount = (_BUS, _BUS) if whole else ("/dev", _MOUNT)
    paths = (escape(f"#   {mount}{path.removeprefix(folder)}") for path in suggestion.paths)
    way = _SEARCHED if whole else _HANDED_OVER.format(suggestion.container_path)
    return _POD.format(name=suggestion.name, paths="\n".join(paths), way=way, folder=folder, mount=mount)
