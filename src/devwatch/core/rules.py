"""Rules that decide which devices a resource counts: patterns over the keys of a device, in three truth values.

Unknown is not false: a key that this host cannot supply now leaves the verdict open, and no action may follow from an open verdict.
"""

from __future__ import annotations

import enum
import fnmatch
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from devwatch.core.device import TTY
from devwatch.core.keys import KEYS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from devwatch.core.device import Device

_DEVNODE = re.compile(
    r"/dev/(?:tty(?:ACM|AMA|AT|GS|HS|LP|MSM|MXUSB|O|S|SAC|SC|THS|UL|USB|XRUSB|mxc)?|gsmtty|hvc|rfcomm)[0-9*?\[\]!-]+"
    r"|/dev/bus/usb/[0-9*?\[\]!-]+/[0-9*?\[\]!-]+|/dev/(?:hidraw|video)[0-9*?\[\]!-]+"
)
"""The names that the kernel's drivers give to devnodes (Documentation/admin-guide/devices.txt, n_gsm.c); any other path may be a link."""
_HARDWARE = "ID_"
"""The prefix of the properties that udev's rules read from hardware (60-serial.rules, `usb_id`, `path_id`)."""
_LISTED = ("/dev/serial/by-id/", "/dev/serial/by-path/")
"""The directories whose links every scan lists, so that they are known without a udev record."""


class Verdict(enum.Enum):
    """Whether something matches, in Kleene's three truth values."""

    MATCHED = "matched"
    NOT = "no match"
    UNKNOWN = "unknown"


class Count(enum.Enum):
    """The unit that a resource counts."""

    DEVICE = "device"
    DEVNODE = "devnode"


class Publish(enum.Enum):
    """The way of publishing a resource."""

    NODE_STATUS = "nodeStatus"
    DEVICE_PLUGIN = "devicePlugin"
    DRA = "dra"

    @property
    def hands_over(self) -> bool:
        """Whether containers get the device from the kubelet, rather than by a volume of their pod."""
        return self is not Publish.NODE_STATUS


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Return Kleene's conjunction: the first NOT decides, even beside unknowns, and ends the evaluation."""
    return _kleene(verdicts, decisive=Verdict.NOT, neutral=Verdict.MATCHED)


def any_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Return Kleene's disjunction: the first MATCHED decides, even beside unknowns, and ends the evaluation."""
    return _kleene(verdicts, decisive=Verdict.MATCHED, neutral=Verdict.NOT)


def _kleene(verdicts: Iterable[Verdict], *, decisive: Verdict, neutral: Verdict) -> Verdict:
    answer = neutral
    for verdict in verdicts:
        if verdict is decisive:
            return verdict
        if verdict is Verdict.UNKNOWN:
            answer = verdict
    return answer


def negation(verdict: Verdict) -> Verdict:
    """Return the opposite; the opposite of unknown is unknown."""
    return {Verdict.MATCHED: Verdict.NOT, Verdict.NOT: Verdict.MATCHED, Verdict.UNKNOWN: Verdict.UNKNOWN}[verdict]


def is_glob(text: str) -> bool:
    """Whether a pattern can match more than itself."""
    return any(sign in text for sign in "*?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A glob (`*`, `?`, `[seq]`, `[!seq]`) over a whole value, case-sensitive; `[[]` is a literal bracket."""

    text: str
    regex: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compile the regex. `fnmatch.translate` uses atomic groups, so that no value causes catastrophic backtracking."""
        object.__setattr__(self, "regex", re.compile(fnmatch.translate(self.text)))

    def matches(self, value: str | None) -> bool:
        """Return whether the value matches; an absent value matches only the empty pattern."""
        return self.text == "" if value is None else self.regex.match(value) is not None

    def covers(self, other: Pattern) -> bool:
        """Return True where this pattern certainly matches everything that `other` matches; False may mean that this is unknown."""
        if self.text == other.text:
            return True
        start = self.text[:-1]
        if self.text.endswith("*") and start and not is_glob(start):
            return other.text.startswith(start)
        return (
            self.text == "*" and other.text != ""
            if is_glob(other.text)
            else other.text != "" and self.matches(other.text)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one key of a matcher for one device: shown to users, and the same value that decides."""

    key: str
    wanted: tuple[str, ...]
    seen: tuple[str, ...]
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTest:
    """One key of a match entry, with patterns of which at least one must match."""

    key: str
    patterns: tuple[Pattern, ...]
    property_name: str = ""

    @property
    def label(self) -> str:
        """The key as the configuration spells it, `properties.NAME` for a property."""
        return f"{self.key}.{self.property_name}" if self.property_name else self.key

    def finding(self, device: Device) -> Finding:
        """Return the verdict on this key, with the values and the reason for it."""
        seen, reason = self._seen(device)
        verdict = self._judge(seen, reason)
        return Finding(
            key=self.label,
            wanted=tuple(pattern.text for pattern in self.patterns),
            seen=tuple(value for value in seen if value is not None),
            verdict=verdict,
            reason="" if verdict is Verdict.MATCHED else reason,
        )

    def verdict(self, device: Device) -> Verdict:
        """Return the verdict of `finding` without the rest, since every rule judges every device and few results are shown."""
        return self._judge(*self._seen(device))

    def _judge(self, seen: tuple[str | None, ...], reason: str) -> Verdict:
        for pattern in self.patterns:
            for value in seen:
                if pattern.matches(value):
                    return Verdict.MATCHED
        return Verdict.UNKNOWN if reason else Verdict.NOT

    def _seen(self, device: Device) -> tuple[tuple[str | None, ...], str]:
        """Return the values to match, and why some may be missing; empty where they are complete."""
        if self.key == "path":
            return (device.devnode, *device.links), self._gap(device)
        if KEYS[self.key].recorded and not self._readable(device):
            return (), "there is no complete udev record of it"
        if self.key == "properties":
            return ((device.properties or {}).get(self.property_name),), ""
        return (getattr(device, self.key),), ""

    def _readable(self, device: Device) -> bool:
        """Return whether a port or property is known: from the record, or because a virtual device has no hardware properties."""
        hardware = self.key == "port" or self.property_name.startswith(_HARDWARE)
        return device.complete or (device.virtual and hardware)

    def _gap(self, device: Device) -> str:
        """Return why a link to the device that these patterns may match can be unknown, empty where all are known."""
        if device.links_known and device.complete:
            return ""
        open_ = [text for pattern in self.patterns if not _DEVNODE.fullmatch(text := pattern.text)]
        if open_ and not device.links_known:
            return "the links to it cannot be read on this host"
        # Every scan resolves the literal paths; links elsewhere that only a glob matches are in the udev record alone.
        unlisted = any(is_glob(text) and not text.startswith(_LISTED) for text in open_)
        return "without a complete udev record only its links in /dev/serial are known" if unlisted else ""

    def covers(self, other: KeyTest) -> bool:
        """Return True where every value that passes `other` certainly passes this test."""
        same = self.label == other.label
        return same and all(any(mine.covers(theirs) for mine in self.patterns) for theirs in other.patterns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matcher:
    """One entry of `match` or `exclude`: every key must match."""

    tests: tuple[KeyTest, ...]

    def findings(self, device: Device) -> tuple[Finding, ...]:
        """Return the finding of each key, in the order of the configuration."""
        return tuple(test.finding(device) for test in self.tests)

    def verdict(self, device: Device) -> Verdict:
        """Return whether the device matches this entry."""
        return all_of(test.verdict(device) for test in self.tests)

    @property
    def names_model(self) -> bool:
        """Whether vendor and product are given exactly."""
        exact = {test.key for test in self.tests if not any(is_glob(pattern.text) for pattern in test.patterns)}
        return exact >= {"vendor", "product"}

    def allows_model(self, vendor: str, product: str) -> bool:
        """Return whether the keys vendor and product do not exclude this model."""
        model = {"vendor": vendor, "product": product}
        tests = (test for test in self.tests if test.key in model)
        return all(any(pattern.matches(model[test.key]) for pattern in test.patterns) for test in tests)

    def covers(self, other: Matcher) -> bool:
        """Return True where every device that matches `other` certainly matches this entry."""
        return all(any(mine.covers(theirs) for theirs in other.tests) for mine in self.tests)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceRule:
    """An extended resource and the devices that it counts."""

    name: str
    match: tuple[Matcher, ...]
    exclude: tuple[Matcher, ...] = ()
    subsystem: str = TTY
    """The udev subsystem of its devices."""
    count: Count = Count.DEVICE
    nodes: tuple[Pattern, ...] | None = None
    removal_grace: float = 2.0
    """Seconds for which a departed device still counts."""
    evict_after: float | None = None
    """Seconds from the acceptance of the lower count to the eviction of the pods; None for never."""
    publish: Publish = Publish.NODE_STATUS
    container: str | None = None
    """Where containers find the device that the kubelet hands over, None for the default."""

    @property
    def container_path(self) -> str:
        """The path of the first devnode in a container."""
        return self.container or f"/dev/{self.name.partition('/')[2]}"

    def verdict(self, device: Device) -> Verdict:
        """Return whether the device matches and is not excluded; an earlier resource may still claim it first."""
        wanted = any_of(entry.verdict(device) for entry in self.entries_for(device))
        if wanted is Verdict.NOT:
            return wanted
        return all_of((wanted, negation(any_of(entry.verdict(device) for entry in self.exclude))))

    def entries_for(self, device: Device) -> tuple[Matcher, ...]:
        """Return the entries of `match` that can match a device of its subsystem; a hub only by exact vendor and product."""
        if device.subsystem != self.subsystem:
            return ()
        return tuple(entry for entry in self.match if entry.names_model) if device.hub else self.match

    def unknowns(self, device: Device) -> tuple[Finding, ...]:
        """Return the unknown findings that leave the verdict open."""
        if self.verdict(device) is not Verdict.UNKNOWN:
            return ()
        match = self.entries_for(device)
        matched = any_of(entry.verdict(device) for entry in match) is Verdict.MATCHED
        entries = self.exclude if matched else (*match, *self.exclude)
        open_ = (entry for entry in entries if entry.verdict(device) is Verdict.UNKNOWN)
        findings = (finding for entry in open_ for finding in entry.findings(device))
        return tuple(finding for finding in findings if finding.verdict is Verdict.UNKNOWN)

    def applies_to(self, node: str) -> bool:
        """Return whether the resource is configured for the node of this name."""
        return self.nodes is None or any(pattern.matches(node) for pattern in self.nodes)

    def shadows(self, later: ResourceRule) -> bool:
        """Return True where a later resource can certainly claim no device; False may mean that this is unknown."""
        if self.subsystem != later.subsystem:
            return False
        nodes = self.nodes is None or (
            later.nodes is not None and all(any(mine.covers(theirs) for mine in self.nodes) for theirs in later.nodes)
        )
        excluded = all(any(theirs.covers(mine) for theirs in later.exclude) for mine in self.exclude)
        return nodes and excluded and all(any(mine.covers(theirs) for mine in self.match) for theirs in later.match)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The owner of a devnode, or the resources between which that is open (`doubtful`). `wanted` are all that certainly match it."""

    owner: str | None = None
    doubtful: frozenset[str] = frozenset()
    wanted: tuple[str, ...] = ()
    excluded_by: str | None = None
    """The resource that has the device as a whole, where this is a part of it, or a part of it, where this is the whole."""

    @property
    def candidates(self) -> frozenset[str]:
        """The owner, or the resources between which that is open."""
        return self.doubtful if self.owner is None else frozenset({self.owner})


def claim(device: Device, rules: Sequence[ResourceRule]) -> Claim:
    """Assign the device to the first resource that matches and does not exclude it.

    While an earlier resource may match, a later one that certainly matches does not get the device: counted by both, it would be oversold.
    """
    verdicts = [(rule.name, rule.verdict(device)) for rule in rules]
    wanted = tuple(name for name, verdict in verdicts if verdict is Verdict.MATCHED)
    rivals: list[str] = []
    for name, verdict in verdicts:
        if verdict is Verdict.MATCHED and not rivals:
            return Claim(owner=name, wanted=wanted)
        if verdict is not Verdict.NOT:
            rivals.append(name)
        if verdict is Verdict.MATCHED:
            break
    return Claim(doubtful=frozenset(rivals), wanted=wanted)


def subsystems_of(rules: Iterable[ResourceRule]) -> frozenset[str]:
    """Return the subsystems to scan for these rules."""
    return frozenset(rule.subsystem for rule in rules) or frozenset({TTY})


def quantity_of(rule: ResourceRule, devices: Iterable[Device]) -> int:
    """Return the count of these devices for the resource: of physical devices, or of devnodes."""
    if rule.count is Count.DEVNODE:
        return sum(1 for _ in devices)
    return len({device.body for device in devices})
