"""Describe, explain and suggest: views of devices and rules for people, by the same verdicts that the daemon acts on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain, count
from typing import TYPE_CHECKING

from devwatch.config.catalogue import well_known_sticks
from devwatch.config.schema import spelling
from devwatch.core.device import TTY, USB, Device, natural
from devwatch.core.exclusion import claim_all
from devwatch.core.names import resource_name_fault
from devwatch.core.rules import Claim, Finding, Matcher, ResourceRule, Verdict
from devwatch.core.serials import is_shared
from devwatch.core.states import states_of
from devwatch.core.sticks import recognise

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_ESCAPED = re.compile(r"\\x([0-9a-fA-F]{2})")
_BY_ID = "/by-id/"
"""Part of the links that udev makes of vendor, model and serial (60-serial.rules, 60-persistent-v4l.rules)."""
_SLUG = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One devnode as `devwatch devices` shows it."""

    device: Device
    what: str
    claim: Claim
    driver: str | None
    twins: tuple[str, ...]
    """The devnodes of other devices with the same ids."""


def rows(devices: Iterable[Device], rules: Sequence[ResourceRule], drivers: Mapping[str, str]) -> tuple[Row, ...]:
    """Return a row for each device, in the natural order of the devnodes; `drivers` is by devnode."""
    ordered = sorted(devices, key=lambda device: natural(device.devnode))
    claims = claim_all(ordered, rules)
    return tuple(
        Row(
            device=device,
            what=describe(device),
            claim=claims[device],
            driver=drivers.get(device.devnode),
            twins=twins_of(device, ordered),
        )
        for device in ordered
    )


def describe(device: Device) -> str:
    """Return a name for a device: that of a well-known stick, else from udev's hardware database and the device's own strings."""
    stick = recognise(device, well_known_sticks())
    if stick is not None:
        return stick.title
    record = device.properties or {}
    maker = record.get("ID_VENDOR_FROM_DATABASE") or _decoded(record, "ID_VENDOR")
    if device.vendor is None and not maker:
        if device.subsystem != TTY:
            return f"{device.subsystem} device"
        return "virtual console" if device.virtual else "serial port of the board"
    own, kind = _decoded(record, "ID_MODEL"), record.get("ID_MODEL_FROM_DATABASE", "")
    if kind and own and own.lower() not in kind.lower():
        return f"{kind} ({own})"
    return " ".join(text for text in (maker, kind or own) if text) or "unknown USB device"


def _decoded(record: Mapping[str, str], name: str) -> str:
    r"""Return a string of the device, with the escapes that udev writes (`\x20`) undone where they are ASCII."""
    text = record.get(f"{name}_ENC") or record.get(name, "").replace("_", " ")
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text).strip()


def twins_of(device: Device, devices: Iterable[Device]) -> tuple[str, ...]:
    """Return the devnodes of other physical devices with the same vendor, product, serial and interface."""
    if device.vendor is None:
        return ()
    return tuple(other.devnode for other in devices if other.body != device.body and _ids(other) == _ids(device))


def _ids(device: Device) -> tuple[str | None, ...]:
    return (device.subsystem, device.vendor, device.product, device.serial, device.interface)


# -- explain


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryReport:
    """The verdict of one entry of `match` or `exclude` on a device."""

    where: str
    verdict: Verdict
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleReport:
    """The verdict of one resource on a device, and what would have to change for the resource to claim it."""

    name: str
    verdict: Verdict
    applies: bool
    entries: tuple[EntryReport, ...]
    change: str


def explain(
    device: Device, rules: Sequence[ResourceRule], node: str, beside: Iterable[Device] = ()
) -> tuple[Claim, tuple[RuleReport, ...]]:
    """Return the claim on a device, and a report for each resource, also for those of other nodes; `beside` are the other devices."""
    mine = [rule for rule in rules if rule.applies_to(node)]
    decided = claim_all((device, *beside), mine)[device]
    return decided, tuple(_report(rule, device, decided, node) for rule in rules)


def _report(rule: ResourceRule, device: Device, decided: Claim, node: str) -> RuleReport:
    entries = (*_entries("match", rule.match, device), *_entries("exclude", rule.exclude, device))
    if device.subsystem != rule.subsystem:
        entries = (_subsystem_entry(rule, device),)
    verdict, applies = rule.verdict(device), rule.applies_to(node)
    report = RuleReport(name=rule.name, verdict=verdict, applies=applies, entries=entries, change="")
    return RuleReport(
        name=rule.name, verdict=verdict, applies=applies, entries=entries, change=_change(report, decided, node)
    )


def _subsystem_entry(rule: ResourceRule, device: Device) -> EntryReport:
    """Return the report on a device of another subsystem: no key of the entries decides about it."""
    wanted, seen = (rule.subsystem,), (device.subsystem,)
    finding = Finding(key="subsystem", wanted=wanted, seen=seen, verdict=Verdict.NOT)
    return EntryReport(where="subsystem", verdict=Verdict.NOT, findings=(finding,))


def _entries(kind: str, matchers: tuple[Matcher, ...], device: Device) -> tuple[EntryReport, ...]:
    return tuple(
        EntryReport(where=f"{kind}[{index}]", verdict=matcher.verdict(device), findings=matcher.findings(device))
        for index, matcher in enumerate(matchers)
    )


def _change(report: RuleReport, decided: Claim, node: str) -> str:
    """Return what would have to change for this resource to claim the device, empty for the resource that claims it."""
    if report.name == decided.owner:
        return ""
    if not report.applies:
        return f"it is not for node {node} (see its nodes)"
    if report.entries[0].where == "subsystem":
        return f"it counts devices of {_missing(report.entries[0])}"
    if report.verdict is Verdict.MATCHED:
        return _rival(report, decided)
    excluded = [
        entry.where
        for entry in report.entries
        if entry.where.startswith("exclude") and entry.verdict is Verdict.MATCHED
    ]
    if excluded:
        return f"{excluded[0]} takes it out"
    return _unknown_exclusions(report) or _nearest_match(report)


def _rival(report: RuleReport, decided: Claim) -> str:
    """Return which resource has the device although this one matches."""
    if decided.excluded_by:
        return f"{decided.excluded_by} comes first, and has the device through another subsystem: move this resource before it"
    rivals = sorted(decided.doubtful - {report.name})
    first = decided.owner or f"{', '.join(rivals)}, which may want it,"
    return f"{first} comes first: exclude the device there, or move this resource before it"


def _unknown_exclusions(report: RuleReport) -> str:
    """Return which exclusions are unknown and why, empty where no entry of `match` matches in any case."""
    if not any(entry.where.startswith("match") and entry.verdict is Verdict.MATCHED for entry in report.entries):
        return ""
    unknown = [
        entry for entry in report.entries if entry.verdict is Verdict.UNKNOWN and entry.where.startswith("exclude")
    ]
    return "; ".join(f"{entry.where} may take it out, by {_missing(entry)}" for entry in unknown)


def _nearest_match(report: RuleReport) -> str:
    """Return what the entry of `match` with the fewest mismatches lacks."""
    matches = [entry for entry in report.entries if entry.where.startswith("match")]
    nearest = min(matches, key=lambda entry: sum(finding.verdict is not Verdict.MATCHED for finding in entry.findings))
    if nearest.verdict is Verdict.MATCHED:
        return "it is a hub, which counts only by an entry with its exact vendor and product"
    return f"{nearest.where} wants {_missing(nearest)}"


def _missing(entry: EntryReport) -> str:
    return ", ".join(_wanted(finding) for finding in entry.findings if finding.verdict is not Verdict.MATCHED)


def _wanted(finding: Finding) -> str:
    seen = finding.reason or (f"seen {' or '.join(finding.seen)}" if finding.seen else "it has none")
    return f"{finding.key} {' or '.join(repr(text) for text in finding.wanted)} ({seen})"


# -- suggest


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A resource for one unclaimed device: `keys` are globs by key of a match entry, `model` for ID_MODEL."""

    name: str
    title: str
    devnodes: tuple[str, ...]
    keys: Mapping[str, tuple[str, ...]]
    paths: tuple[str, ...]
    """For each devnode the path that a program opens: the link that follows the device as `keys` do, else the devnode."""
    note: str = ""
    subsystem: str = TTY

    @property
    def container_path(self) -> str:
        """Where containers find the device if the kubelet hands it over."""
        return ResourceRule(name=self.name, match=()).container_path


def suggest(
    devices: Sequence[Device], rules: Sequence[ResourceRule], taken: Iterable[str] = (), *, subsystem: str = TTY
) -> tuple[Suggestion, ...]:
    """Return a resource for every physical device of a subsystem that no rule claims; each claims exactly the devnodes that it names.

    Its name differs from those of the rules and from the `taken` ones, such as those of resources of other nodes.
    """
    free = _free_devices(devices, rules, subsystem)
    devices = [device for device in devices if device.subsystem == subsystem]
    groups: dict[tuple[str, str], list[Device]] = {}
    for device in sorted(free, key=lambda device: natural(device.devnode)):
        stick = recognise(device, well_known_sticks())
        groups.setdefault((device.body, stick.rule.name if stick else ""), []).append(device)
    names = {*taken, *(rule.name for rule in rules)}
    return tuple(_suggestion(group, devices, names) for group in groups.values())


def _free_devices(devices: Iterable[Device], rules: Sequence[ResourceRule], subsystem: str) -> list[Device]:
    """Return the devices of a subsystem that no rule claims, neither themselves nor as a whole or in part."""
    claims = claim_all(devices, rules)
    taken = {(device.body, device.subsystem == USB) for device, each in claims.items() if each.candidates}
    mine = (device for device in claims if device.subsystem == subsystem and not device.virtual and not device.hub)
    kinds = {device: (device.body, device.subsystem != USB) for device in mine}
    return [device for device, other in kinds.items() if not claims[device].candidates and other not in taken]


def _suggestion(group: Sequence[Device], devices: Sequence[Device], names: set[str]) -> Suggestion:
    chosen = tuple(device.devnode for device in group)
    keys, note = _identifying_keys(group, [device for device in devices if device.devnode not in chosen])
    name = _unused(_name(group[0]), names)
    keys |= states_of(group[0].vendor, group[0].product) if "product" in keys else {}
    globs = {key: tuple(spelling(key, value) or value for value in values) for key, values in keys.items()}
    paths = tuple(_stable_path(device, by_socket="port" in keys) for device in group)
    return Suggestion(
        name=name,
        title=describe(group[0]),
        devnodes=chosen,
        keys=globs,
        paths=paths,
        note=note,
        subsystem=group[0].subsystem,
    )


def _identifying_keys(group: Sequence[Device], others: Sequence[Device]) -> tuple[dict[str, tuple[str, ...]], str]:
    """Return the fewest keys that match the whole group and nothing else, and a note about their limits.

    Keys that follow the stick come before the port. Without a serial the model is added: the ids of a bridge chip alone would claim any
    other cable with it. In place of a serial that many devices share the port is added. A value that a configuration cannot spell is not
    used. The devnode is the last resort.
    """
    keys: dict[str, tuple[str, ...]] = {}
    shared = any(is_shared(device.serial) for device in group)
    for key in ("vendor", "product", "serial", "model", "interface", "port"):
        values = tuple(sorted({value for device in group if (value := _value(device, key))}))
        whole = all(_value(device, key) for device in group) and all(spelling(key, value) for value in values)
        needed = (
            key in {"vendor", "product", "serial"}
            or (key == "model" and "serial" not in keys)
            or (key == "port" and shared)
            or _match_any(keys, others)
        )
        if values and whole and needed and (len(values) == 1 or key in {"interface", "port"}):
            keys[key] = values
    if keys and not _match_any(keys, others):
        why = "its serial is that of many devices" if shared else "it has a twin"
        return keys, f"only the socket identifies it: {why}, so leave it in this one" if "port" in keys else ""
    return {"path": tuple(device.devnode for device in group)}, "nothing identifies it but its name, which may change"


def _stable_path(device: Device, *, by_socket: bool) -> str:
    """Return the most stable link to a device, else its devnode. Devices that the socket alone distinguishes share their by-id link."""
    links = (link for link in device.links if not (by_socket and _BY_ID in link))
    return next(links, device.devnode)


def _value(device: Device, key: str) -> str | None:
    if key == "model":
        return (device.properties or {}).get("ID_MODEL")
    value: str | None = getattr(device, key)
    return None if key == "serial" and is_shared(value) else value


def _match_any(keys: Mapping[str, tuple[str, ...]], devices: Iterable[Device]) -> bool:
    """Return whether any of these devices has the same values."""
    return any(all(_value(device, key) in values for key, values in keys.items()) for device in devices)


def _name(device: Device) -> str:
    stick = recognise(device, well_known_sticks())
    if stick is not None:
        return stick.rule.name
    record = device.properties or {}
    words = _SLUG.sub("-", f"{record.get('ID_MODEL') or ''}".lower()).strip("-")
    base = words or (
        f"usb-{device.vendor}-{device.product}" if device.vendor else device.devnode.rpartition("/")[2].lower()
    )
    name = f"devices.local/{base[:40].strip('-')}"
    return name if not resource_name_fault(name) else "devices.local/serial"


def _unused(name: str, names: set[str]) -> str:
    """Return the name, with a number where it is taken, and take it."""
    numbered = (f"{name}-{number}" for number in count(2))
    unused = next(each for each in chain((name,), numbered) if each not in names)
    names.add(unused)
    return unused
