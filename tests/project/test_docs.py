"""The documentation: links that lead somewhere, a README that stays the first page, and names that exist."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import yaml

from devwatch.cli.entry import DEVICE_PLUGIN_DIR, KUBELET_DIR, main
from devwatch.config.schema import parse
from devwatch.core.classes import device_classes
from devwatch.core.errors import ConfigError
from devwatch.core.handover import variable_of
from devwatch.core.listing import Entry
from devwatch.core.rules import Publish
from devwatch.core.slices import devices_of
from devwatch.core.slots import Identity, Slot, SlotState
from devwatch.observe.metrics import Metrics
from support import logevents
from support.checkout import CHECKOUT
from support.deployment import DEPLOY, documentation, documented_block

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

README = CHECKOUT / "README.md"
DOCS = sorted((CHECKOUT / "docs").glob("*.md"))
PAGES = (README, CHECKOUT / "CHANGELOG.md", *sorted((CHECKOUT / ".github").glob("*.md")), *DOCS)
"""Every page that has links."""
LONGEST_README = 150
"""Lines: what a reader takes in who wants to know whether devwatch is the right tool."""
NOT_EVENTS = frozenset({"config.yaml"})
"""What only looks like a log event."""
FOREIGN_OPTIONS = frozenset(
    {"--create-namespace", "--device", "--domain", "--reset-then-reuse-values", "--reuse-values", "--set", "--wait"}
)
"""Options of other programs that stand alone in a code span: of Helm, kubectl and generic-device-plugin."""

_FENCE = re.compile(r"^ *```[^\n]*\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


def without_blocks(text: str) -> str:
    """Return the text without fenced blocks, whose comments look like headings."""
    return _FENCE.sub("", text)


def links(text: str) -> list[str]:
    """Return the targets of all links outside of code."""
    return _LINK.findall(_SPAN.sub("", without_blocks(text)))


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading: in lower case, without punctuation, a hyphen for each space."""
    shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """Return the anchors of a page. The second heading of the same text ends in `-1`, the third in `-2`."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in _HEADING.findall(without_blocks(text)):
        name = slug(heading)
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def fault(page: Path, link: str) -> str | None:
    """Return what is wrong with a link of a page, None where it leads somewhere or out of the checkout."""
    if re.match(r"[a-z]+:", link):
        return None
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if not target.is_relative_to(CHECKOUT) or not target.exists():
        return f"{link}: no such file"
    if anchor and anchor not in anchors(target.read_text("utf-8")):
        return f"{link}: no such heading"
    return None


def fragments(text: str) -> Iterator[str]:
    """Yield the code of a text: each line of a fenced block, and each span."""
    for block in _FENCE.findall(text):
        yield from block.splitlines()
    yield from _SPAN.findall(without_blocks(text))


def calls(text: str) -> Iterator[list[str]]:
    """Yield the words of each call of devwatch, without the name of the program."""
    for fragment in fragments(text):
        match = re.match(r"(?:\$ |kubectl .* -- )?devwatch ([a-z-].*)", fragment.strip())
        if match:
            yield shlex.split(match[1], comments=True)


def options(text: str) -> set[str]:
    """Return the long options that a text names."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def helped(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """Return what `--help` prints."""
    assert main([*command, "--help"], {}) == 0, command
    return capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    """Relative links and anchors; addresses on other hosts are not requested."""
    assert [wrong for link in links(page.read_text("utf-8")) if (wrong := fault(page, link))] == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    """A file that is not there, a heading that is not there, a file outside of the checkout; code is no link."""
    text = "[a](docs/none.md), [b](#none), [c](../x), [d](README.md#documentation), [e](https://example.com); `[f](g)`"
    text += "\n```\n[h](i)\n```\n"
    wrong = [fault(README, link) for link in links(text)]
    assert wrong == ["docs/none.md: no such file", "#none: no such heading", "../x: no such file", None, None]


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("Install", "install"),
        ("In the cluster: a DaemonSet", "in-the-cluster-a-daemonset"),
        ("`evict.after`, and [more](x.md)", "evictafter-and-more"),
        ("[0.1.0] - 2026-11-26", "010---2026-11-26"),
    ],
)
def test_a_heading_has_the_anchor_of_github(heading: str, anchor: str) -> None:
    """By its rules, which keep letters, digits, hyphens and underscores."""
    assert slug(heading) == anchor


def test_a_comment_in_a_block_is_no_heading() -> None:
    """And headings of the same text are counted."""
    assert anchors("# A\n```\n# B\n```\n## A\n") == {"a", "a-1"}


def test_the_readme_is_the_first_page() -> None:
    """It stays short, and leads to every other page."""
    text = README.read_text("utf-8")
    assert len(text.splitlines()) <= LONGEST_README
    assert DOCS
    assert {f"docs/{page.name}" for page in DOCS} <= set(links(text))


def test_every_documented_call_is_possible(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command exists and knows the options that it is shown with."""
    shown = list(calls(documentation()))
    assert len(shown) > 10
    helps = {words[0]: helped(capsys, words[0]) for words in shown if not words[0].startswith("-")}
    unknown = [words for words in shown if not options(" ".join(words)) <= options(helps.get(words[0], "--help"))]
    assert unknown == []


def test_every_documented_option_exists(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where it stands without its command."""
    commands = {words[0] for words in calls(documentation()) if not words[0].startswith("-")}
    known = FOREIGN_OPTIONS.union(*(options(helped(capsys, command)) for command in commands))
    alone = (fragment for fragment in fragments(documentation()) if fragment.startswith("--"))
    named = set().union(*map(options, alone))
    assert named - known == set()
    assert len(named) > 3


def page(name: str) -> str:
    """Return a page of the documentation."""
    return (CHECKOUT / "docs" / name).read_text("utf-8")


def section(text: str, heading: str) -> str:
    """Return what stands below a heading, up to the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    below = text.partition(f"\n{heading}\n")[2]
    return re.split(rf"^#{{1,{level}}} ", below, maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(text: str) -> list[str]:
    """Return the code spans in the first cell of each row of the tables."""
    rows = (line.split("|")[1] for line in text.splitlines() if line.startswith("|"))
    return [span for cell in rows for span in _SPAN.findall(cell)]


def test_every_key_of_the_configuration_is_documented() -> None:
    """In the example of the page, in the table of what can be matched, or in its text."""
    with pytest.raises(ConfigError) as caught:
        parse(b"{x: 1, resources: [{x: 1, match: [{x: 1}], evict: {x: 1}, container: {x: 1}}]}", file="c")
    known = {key for found in re.findall(r"unknown key \((.*?)\)", str(caught.value)) for key in found.split(", ")}
    text = page("configuration.md") + page("eviction.md")
    written = set(re.findall(r"^[ -]*(\w+):", "\n".join(_FENCE.findall(text)), re.MULTILINE)) | set(_SPAN.findall(text))
    assert len(known) > 15
    assert known - written == set()


def test_the_ways_of_publishing_are_those_that_there_are() -> None:
    """The columns of the comparison, with the default marked."""
    heading = next(line for line in page("publishing.md").splitlines() if line.startswith("| `publish:` |"))
    assert [span for span in _SPAN.findall(heading) if span != "publish:"] == [way.value for way in Publish]
    (rule,) = parse(b"resources: [{name: a/b, match: [{port: x}]}]", file="c").resources
    assert f"`{rule.publish.value}` (default)" in heading


def test_the_keys_of_the_annotation_are_those_that_are_written() -> None:
    """All of them, and no other."""
    assert sorted(first_cells(section(page("publishing.md"), "### The annotation"))) == sorted(Entry.__slots__)


def test_the_path_in_a_container_and_its_variable_are_as_documented() -> None:
    """For the resource of the README."""
    (rule,) = parse(b"resources: [{name: aeotec/zstick, match: [{port: x}]}]", file="c").resources
    assert f"{rule.container_path} in the container" in README.read_text("utf-8")
    assert f"`{variable_of(rule.name)}={rule.container_path},{rule.container_path}1`" in page("publishing.md")


def test_the_device_class_is_the_one_that_is_printed() -> None:
    """For the resource of the README."""
    (rule,) = parse(b"resources: [{name: aeotec/zstick, match: [{port: x}], publish: dra}]", file="c").resources
    (block,) = (each for each in _FENCE.findall(page("dra.md")) if "managed-by" in each)
    assert [yaml.safe_load(block)] == list(device_classes([rule]))


def test_the_attributes_of_a_device_are_those_that_are_written() -> None:
    """All of them, and no other."""
    slot = Slot(
        id="a",
        identity=Identity(vendor=None, product=None, serial=None, socket=""),
        devices=(),
        state=SlotState.PRESENT,
    )
    (device,) = devices_of([("a/b", slot)], None)
    assert sorted(first_cells(section(page("dra.md"), "## A certain stick"))) == sorted(device.attributes)


def test_the_folders_of_the_kubelet_are_as_documented() -> None:
    """The defaults of the options; and for each distribution those of the example of the unit's environment."""
    table = section(page("operations.md"), "## Options")
    assert f"| `--kubelet-dir` | `{KUBELET_DIR}` |" in table
    assert f"| `--device-plugin-dir` | `{DEVICE_PLUGIN_DIR}` |" in table
    example = (CHECKOUT / "systemd" / "devwatch.env").read_text("utf-8")
    rows = section(page("install.md"), "### Credentials")
    folders = set(re.findall(r"`(/\S*)`(?: \(default\))? \|$", rows, re.MULTILINE))
    assert len(folders) == 3
    assert [path for path in sorted(folders) if path not in example] == []


@pytest.mark.parametrize("command", ["set-credentials", "kubectl delete -k", "spec.nodeName=NODE"])
def test_the_commands_that_are_run_on_a_real_server_are_found(command: str) -> None:
    """`tests/system/test_deploy.py` runs them; there is one block of each, and it is whole."""
    block = documented_block(command)
    assert command in block
    assert "```" not in block


def test_every_documented_metric_exists() -> None:
    """By the name that a scrape shows."""
    known = set(re.findall(r"^# TYPE (\w+)", Metrics("0").render().decode(), re.MULTILINE))
    named = set(re.findall(r"\bdevwatch_[a-z_]*[a-z]\b", documentation()))
    assert len(named) > 5
    assert named - known == set()


def test_the_alerts_are_those_that_are_shipped() -> None:
    """All of them, and no other."""
    shipped = yaml.safe_load((DEPLOY / "components" / "monitoring" / "alerts.yaml").read_text("utf-8"))
    names = {rule["alert"] for group in shipped["spec"]["groups"] for rule in group["rules"]}
    assert set(re.findall(r"`(Devwatch[A-Z]\w+)`", documentation())) == names


def test_every_log_event_is_explained() -> None:
    """The page has exactly those of the code (`test_generated.py`); what each means is written by hand."""
    rows = [line for line in page("log-events.md").splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    assert [row for row in rows if not row.rstrip("| ").split("|", 3)[3].strip()] == []


def test_every_documented_log_event_is_logged() -> None:
    """Wherever the documentation names one."""
    known = logevents.events()
    subjects = {event.partition(".")[0] for event in known}
    named = {span for span in _SPAN.findall(without_blocks(documentation())) if re.fullmatch(r"[a-z]+\.[a-z_]+", span)}
    events = {name for name in named if name.partition(".")[0] in subjects}
    assert len(events) > 30
    assert events - known.keys() - NOT_EVENTS == set()


def test_what_replaces_another_configuration_is_valid() -> None:
    """Every part of a resource in the tables of the page, put into a resource."""
    rows = [line.split(" | ") for line in page("migrating.md").splitlines() if line.startswith("| ")]
    spans = [span for row in rows for span in _SPAN.findall(row[-1])]
    parts = [span for span in spans if re.match(r"(match|container): ", span)]
    keys = [span for span in spans if re.match(r"(path|properties): ", span)]
    assert len(parts) > 5
    assert len(keys) > 1
    for part in [*parts, *(f"match: [{{ {key} }}]" for key in keys)]:
        rest = "" if part.startswith("match") else ", match: [{ port: x }], publish: devicePlugin"
        parse(f"resources: [{{ name: a/b, {part}{rest} }}]".encode(), file=part)


def test_what_is_replaced_is_what_the_other_program_reads() -> None:
    """Lists and maps in the first column are YAML, as those programs parse them."""
    rows = [line.split(" | ")[0] for line in page("migrating.md").splitlines() if line.startswith("| ")]
    spans = [span for cell in rows for span in _SPAN.findall(cell) if re.match(r"\w+: ", span)]
    assert len(spans) > 5
    assert all(isinstance(yaml.safe_load(span), dict) for span in spans)
