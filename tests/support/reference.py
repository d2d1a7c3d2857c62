"""Write the pages of docs/ that the code decides: `make reference`. What they say comes from the tables by which the code works."""

from __future__ import annotations

import argparse
from types import MappingProxyType
from typing import TYPE_CHECKING

from prometheus_client.metrics import MetricWrapperBase

from devwatch.cli.entry import _parser
from devwatch.config.schema import _CONFIG, _CONTAINER, _EVICT, _MATCHER, _RESOURCE
from devwatch.config.tree import Node, Place
from devwatch.observe.metrics import Metrics
from support import logevents
from support.checkout import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from devwatch.config.schema import _Key

DOCS = CHECKOUT / "docs"
_GENERATED = "`make reference` writes this page"


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown. A bar inside a cell is escaped."""
    heads = list(headings)
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


# -- keys of the configuration


def configuration() -> str:
    """Return the page of the keys: what each means, and what is allowed, in the words of the faults that `check` prints."""
    sections = (
        ("The file", "", _CONFIG),
        ("A resource", "Each item of `resources`:\n\n", _RESOURCE),
        (
            "An entry of match and exclude",
            "Every key of an entry must match, and an entry has at least one:\n\n",
            _MATCHER,
        ),
        ("container", "", _CONTAINER),
        ("evict", "", _EVICT),
    )
    head = (
        "# Configuration reference\n\n"
        f"Every key of the configuration. {_GENERATED} from the table by which devwatch reads it;\n"
        "`devwatch schema` prints the same as a JSON Schema, for editors.\n"
        "[Configuration](configuration.md) explains the keys with examples, [Eviction](eviction.md) `evict`, and\n"
        "[Publishing](publishing.md) `publish` and `container`.\n"
    )
    return head + "".join(f"\n## {title}\n\n{lead}{_keys(keys)}" for title, lead, keys in sections)


def _keys(keys: Mapping[str, _Key]) -> str:
    rows = (
        (f"`{name}`{' (required)' if key.required else ''}", _allowed(key), key.description)
        for name, key in keys.items()
    )
    return table(("key", "value", "meaning"), rows)


def _allowed(key: _Key) -> str:
    """Return what a value may be, as the fault says that a value which is missing causes."""
    at = Place()
    key.read(Node(kind="nothing"), at)
    (fault,) = at.faults
    return fault.message.removeprefix("nothing stands here (").removesuffix(")").replace(" is wanted", "")


# -- commands


def commands() -> str:
    """Return the page of the commands, as `--help` describes them; how argparse lays it out differs between Pythons."""
    parser = _parser({})
    (choice,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001 - argparse has no public way
    head = (
        f"# Commands\n\nEvery command with its options, as `--help` prints them. {_GENERATED} from the parser of the command line.\n"
        "Every option has an environment variable, and the command line wins. [Operations](operations.md) has the exit statuses.\n"
    )
    return head + "".join(_command(f"devwatch {name}", each) for name, each in choice.choices.items())


def _command(title: str, parser: argparse.ArgumentParser) -> str:
    actions = [action for action in parser._actions if action.dest != "help"]  # noqa: SLF001 - as above
    rows = [(f"`{_spelled(action)}`", _sentence(_helped(action))) for action in actions]
    options = f"{table(('option', 'meaning'), rows)}\n" if rows else ""
    examples = "\n".join(line.removeprefix("  ") for line in (parser.epilog or "").splitlines()[1:])
    return f"\n## {title}\n\n{parser.description}\n\n{options}```\n{examples}\n```\n"


def _spelled(action: argparse.Action) -> str:
    """Return an option or argument as one writes it."""
    value = str(action.metavar or (f"{{{','.join(action.choices)}}}" if action.choices else ""))
    if not action.option_strings:
        return f"[{value}]" if action.nargs == "?" else value
    names = ", ".join(action.option_strings)
    if not value:
        return names
    return f"{names}[={value}]" if action.nargs == "?" else f"{names} {value}"


def _helped(action: argparse.Action) -> str:
    return (action.help or "") % {**vars(action), "prog": "devwatch"}


def _sentence(text: str) -> str:
    """Return the text with the variable at its end as code."""
    words, bracket, variable = text.rpartition(" [")
    return f"{words} [`{variable.removesuffix(']')}`]" if bracket else text


# -- metrics


def metrics() -> str:
    """Return the page of the metrics, as a daemon registers them."""
    registry = Metrics("0")._registry  # noqa: SLF001 - the daemon needs no list of its metrics
    collectors = (each for each in registry._collector_to_names if isinstance(each, MetricWrapperBase))  # noqa: SLF001 - as above
    head = (
        f"# Metrics\n\nWhat `/metrics` shows. {_GENERATED} from the metrics that the daemon registers.\n"
        "The names are public, and no string of a device is in any label. [Operations](operations.md#alerts) has the alerts on them.\n\n"
    )
    return head + table(("metric", "type", "labels", "meaning"), map(_metric, collectors))


def _metric(collector: MetricWrapperBase) -> tuple[str, ...]:
    (metric,) = collector.describe()
    total = "_total" if metric.type == "counter" else ""
    labels = (_label(collector, name) for name in collector._labelnames)  # noqa: SLF001 - prometheus_client has no public way
    return f"`{metric.name}{total}`", metric.type, "; ".join(labels), metric.documentation


def _label(collector: MetricWrapperBase, name: str) -> str:
    """Return a label with the values that it has from the start."""
    (metric,) = collector.collect()
    values = dict.fromkeys(f"`{sample.labels[name]}`" for sample in metric.samples)
    return f"`{name}`: {', '.join(values)}" if values and name != "version" else f"`{name}`"


# -- log events


def log_events() -> str:
    """Return the page of the log events: names and levels come from the code, what they mean from the page itself."""
    text = (DOCS / "log-events.md").read_text("utf-8")
    meanings = dict(_rows(text))
    rows = (
        (f"`{name}`", ", ".join(levels) or "varies", meanings.get(name, ""))
        for name, levels in logevents.events().items()
    )
    return text.partition("| event |")[0] + table(("event", "level", "meaning"), rows)


def _rows(text: str) -> Iterator[tuple[str, str]]:
    """Yield event and meaning of each row."""
    for line in text.splitlines():
        if line.startswith("| `"):
            _, event, _, meaning = line.rstrip("| ").split("|", 3)
            yield event.strip(" `"), meaning.strip()


PAGES: Mapping[str, Callable[[], str]] = MappingProxyType(
    {
        "configuration-reference.md": configuration,
        "commands.md": commands,
        "metrics.md": metrics,
        "log-events.md": log_events,
    }
)
"""By name, what writes each page."""

if __name__ == "__main__":
    for page, written in PAGES.items():
        (DOCS / page).write_text(written(), encoding="utf-8")
