"""The commands for this host: scan, decide by the same rules as the daemon, show."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from devwatch.cli import display, inspection
from devwatch.config.file import ConfigFile
from devwatch.core import exitstatus
from devwatch.core.classes import device_classes
from devwatch.core.device import TTY
from devwatch.core.errors import ConfigError
from devwatch.core.keys import KEYS, VALUE_KEYS
from devwatch.core.names import subsystem_fault
from devwatch.core.rules import Publish, subsystems_of
from devwatch.core.text import escape
from devwatch.host.obstructions import obstruction
from devwatch.host.snapshot import Host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from devwatch.cli.display import Screen
    from devwatch.config.schema import Config
    from devwatch.core.device import Device
    from devwatch.core.errors import Fault
    from devwatch.core.inventory import Scan
    from devwatch.core.rules import Claim, ResourceRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The devices of this host, and the configuration that claims them."""

    scan: Scan
    config: Config | None
    node: str
    host: Host
    hidden: str = ""
    """Why the configuration could not be read, empty where it was read or does not exist."""
    only: str = ""
    """The only subsystem to show, empty for all that were scanned."""

    @classmethod
    def see(cls, file: Path, *, given: bool, node: Callable[[], str], only: str = "", path: str | None = None) -> Scene:
        """Scan once; `node` is called only if there is a configuration.

        Scanned are the subsystems of the configuration, tty, the one to show, and that of a `path`. Raises `ConfigError`, except where
        the default configuration does not exist or this user may not read it.
        """
        (config, hidden), host = _configuration(file, given=given), Host.open()
        name = node() if config else ""
        subsystems = {TTY, only, host.subsystem_of(path) if path else ""} - {""}
        subsystems |= subsystems_of(config.for_node(name)) if config else frozenset()
        paths = config.literal_paths if config else frozenset[str]()
        scan = host.scan(paths, frozenset(subsystems), time.monotonic())
        return cls(scan=scan, config=config, node=name, host=host, hidden=hidden, only=only)

    @property
    def troubles(self) -> tuple[str, ...]:
        """What may be missing and why, one line each; the scan may still be certain."""
        return (*((self.hidden,) if self.hidden else ()), *self.scan.troubles)

    @property
    def rules(self) -> tuple[ResourceRule, ...]:
        """The resources of this node."""
        return self.config.for_node(self.node) if self.config else ()

    def rows(self, *, consoles: bool) -> tuple[inspection.Row, ...]:
        """Return the rows to show: real and claimed devices, with `consoles` also virtual consoles and hubs."""
        drivers = {device.devnode: driver for device in self.scan.devices if (driver := self.host.driver(device))}
        rows = inspection.rows(self.scan.devices, self.rules, drivers)
        shown = (row for row in rows if self.only in {"", row.device.subsystem})
        return tuple(row for row in shown if consoles or row.claim.candidates or not _is_minor(row.device))


def _is_minor(device: Device) -> bool:
    """Return whether a device is shown only on request: a virtual console, or a hub."""
    return device.hub or (device.virtual and device.subsystem == TTY)


def _configuration(file: Path, *, given: bool) -> tuple[Config | None, str]:
    """Return the configuration. Unless it was `given`, it may be missing or unreadable: then None, and why it cannot be read."""
    try:
        return ConfigFile(path=file).load(), ""
    except ConfigError as error:
        reason = error.__cause__
        if given or not isinstance(reason, FileNotFoundError | NotADirectoryError | PermissionError):
            raise
    unread = f"{file} cannot be read ({reason.strerror}): nothing is known of its resources"
    return None, unread if isinstance(reason, PermissionError) else ""


def devices(scene: Scene, screen: Screen, remarks: Screen, *, form: str, consoles: bool) -> int:
    """Show the devices and the resources that claim them. Status 1 where the scan is uncertain: devices may be missing."""
    rows = scene.rows(consoles=consoles)
    if form in {"json", "yaml"}:
        content = {"devices": [display.device_document(row) for row in rows], "uncertain": list(scene.scan.doubts)}
        screen.document(content, form)
    elif rows:
        display.show_devices(screen, rows, wide=form == "wide")
        for note in _notes(rows):
            screen.line(note)
    for remark in _remarks(scene, rows):
        remarks.line(escape(remark))
    return exitstatus.FAILED if scene.scan.doubts else exitstatus.DONE


def _notes(rows: Sequence[inspection.Row]) -> Iterator[str]:
    for row in rows:
        if row.twins:
            port = f": match it by port, {escape(row.device.port)!r}" if row.device.port else ": match it by port"
            yield f"note: no id distinguishes {row.device.devnode} from {', '.join(row.twins)}{port}"


def _remarks(scene: Scene, rows: Sequence[inspection.Row]) -> Iterator[str]:
    if not rows and scene.scan.certain:
        here = "there is no serial device here (--all shows virtual consoles too)"
        yield f"there is no device of the subsystem {scene.only} here" if scene.only else here
    yield from (
        f"warning: {row.device.devnode} matches {' and '.join(row.claim.wanted)}"
        for row in rows
        if len(row.claim.wanted) > 1
    )
    yield from (f"warning: {trouble}" for trouble in scene.troubles)
    yield from (f"error: {doubt}" for doubt in scene.scan.doubts)


def suggest(scene: Scene, screen: Screen, remarks: Screen, *, pod: bool) -> int:
    """Write a configuration for the devices that no resource claims, and with `pod` what a Pod needs for each resource."""
    taken = [rule.name for rule in scene.config.resources] if scene.config else []
    suggestions = inspection.suggest(scene.scan.devices, scene.rules, taken, subsystem=scene.only or TTY)
    screen.out.write(display.suggestion_text(suggestions, certain=scene.scan.certain))
    if pod:
        screen.out.write(display.pod_text(suggestions))
    for remark in (*scene.troubles, *scene.scan.doubts):
        remarks.line(escape(f"warning: {remark}"))
    return exitstatus.FAILED if scene.scan.doubts else exitstatus.DONE


def explain(scene: Scene, screen: Screen, remarks: Screen, path: str) -> int:
    """Explain for a devnode, a link or a path in sysfs which resource claims it, and why. Status 1 where there is no such device."""
    found = _resolve(path, scene.scan.devices)
    for device in found:
        _explain_device(scene, screen, device)
    if not found:
        _explain_absence(scene, screen, path)
        remarks.line(_whereabouts(scene, path))
    troubles = (*scene.scan.troubles, *scene.scan.doubts, *scene.host.troubles())
    if troubles:
        screen.line("this host:")
    for trouble in troubles:
        screen.line(f"- {escape(trouble)}", indent=2)
    if scene.hidden:
        remarks.line(escape(f"warning: {scene.hidden}"))
    return exitstatus.DONE if found else exitstatus.FAILED


def _resolve(path: str, present: Sequence[Device]) -> list[Device]:
    """Return the devices that a path denotes; a path in sysfs denotes every scanned device below it."""
    real = _real(path)
    inside = real.removeprefix(os.path.realpath("/sys"))
    return [
        device
        for device in present
        if real == device.devnode
        or path in device.links
        or (inside != real and f"{device.devpath}/".startswith(f"{inside}/"))
    ]


def _real(path: str) -> str:
    """Return the real path; a relative one in a removed working directory has none, and is returned as it is."""
    try:
        return os.path.realpath(path)
    except OSError:
        return path


def _explain_device(scene: Scene, screen: Screen, device: Device) -> None:
    resources = scene.config.resources if scene.config else ()
    decided, reports = inspection.explain(device, resources, scene.node, scene.scan.devices)
    screen.line(f"{device.devnode}: {escape(inspection.describe(device))}")
    screen.line(f"subsystem: {device.subsystem}", indent=2)
    for key in VALUE_KEYS:
        value = getattr(device, key)
        screen.line(f"{key}: {'none' if value is None else escape(value)}{_gap(key, device)}", indent=2)
    for link in device.links:
        screen.line(f"link: {escape(link)}", indent=2)
    screen.line(_decision(decided, scene))
    for number, report in enumerate(reports, start=1):
        display.show_rule(screen, number, report, claims=report.name == decided.owner)


def _gap(key: str, device: Device) -> str:
    unknown = KEYS[key].recorded and not device.complete and not device.virtual
    return " (unknown: there is no complete udev record)" if unknown else ""


def _decision(decided: Claim, scene: Scene) -> str:
    if scene.config is None:
        return (
            "unknown: the configuration cannot be read"
            if scene.hidden
            else "claimed by nothing: there is no configuration (--config names one)"
        )
    if decided.owner:
        return f"claimed by {decided.owner}"
    if decided.excluded_by:
        return f"claimed by no resource: {decided.excluded_by} has the same device through another subsystem"
    if decided.doubtful:
        return f"unknown: it may belong to {', '.join(sorted(decided.doubtful))}; until that is known no count of theirs is lowered"
    return "claimed by no resource"


def _explain_absence(scene: Scene, screen: Screen, path: str) -> None:
    """Show what is at a path that is not a present device, and which resources expect a device there."""
    screen.line(f"{escape(path)}: {_what_is_there(path)}")
    for rule in scene.config.resources if scene.config else ():
        for kind, matchers in (("match", rule.match), ("exclude", rule.exclude)):
            for index, matcher in enumerate(matchers):
                for test in matcher.tests:
                    if test.key == "path" and any(pattern.matches(path) for pattern in test.patterns):
                        screen.line(f"{rule.name} expects a device there ({kind}[{index}].path)", indent=2)


def _whereabouts(scene: Scene, path: str) -> str:
    """Return where to look for a device that is not at the path."""
    meant = f"/dev/{path}"
    if any(meant == device.devnode for device in scene.scan.devices):
        return f"did you mean {escape(meant)}?"
    return "`devwatch devices` lists the devices of this host; in a cluster, the pod of each node knows those of its own host alone"


def _what_is_there(path: str) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116 - its error is the answer
        empty = stat.S_ISDIR(status.st_mode) and not os.listdir(path)  # noqa: PTH208 - beside the stat above
    except FileNotFoundError:
        return "dangling link: its target is gone" if Path(path).is_symlink() else "there is nothing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if empty and path.startswith("/dev/"):
        return obstruction(path).removeprefix(f"{path}: ")
    if stat.S_ISDIR(status.st_mode):
        return "a directory without a device below it that is scanned" if path.startswith("/sys") else "a directory"
    if stat.S_ISBLK(status.st_mode):
        return subsystem_fault("block")
    present = "a character device, but not the devnode of a present device"
    return present if stat.S_ISCHR(status.st_mode) else "not a character device"


def check(file: Path, screen: Screen, *, form: str) -> int:
    """Show the faults of a configuration, or a summary."""
    config: Config | None = None
    faults: tuple[Fault, ...] = ()
    source = ConfigFile(path=file)
    try:
        config = source.load()
    except ConfigError as error:
        faults = error.faults
    warnings = config.warnings if config else ()
    if form == "json":
        problems = {
            name: [_fault_document(fault) for fault in some]
            for name, some in (("faults", faults), ("warnings", warnings))
        }
        names = [rule.name for rule in config.resources] if config else []
        screen.document({"file": str(file), "valid": config is not None, **problems, "resources": names}, "json")
        return exitstatus.CONFIGURATION if faults else exitstatus.DONE
    shown = [*((fault, "") for fault in faults), *((fault, "warning: ") for fault in warnings)]
    for fault, kind in shown:
        display.show_fault(screen, fault, str(file), source.text, kind=kind)
    if config:
        screen.line(_summary(file, config))
    return exitstatus.CONFIGURATION if faults else exitstatus.DONE


def _fault_document(fault: Fault) -> dict[str, object]:
    return {name: getattr(fault, name) for name in ("line", "column", "path", "message")}


def _summary(file: Path, config: Config) -> str:
    evicting = sum(rule.evict_after is not None for rule in config.resources)
    names = ", ".join(rule.name for rule in config.resources) or "none"
    number = len(config.resources)
    return f"{escape(str(file))}: valid; {number} resource{'' if number == 1 else 's'} ({names}); {evicting} evict"


def deviceclasses(file: Path, screen: Screen, remarks: Screen) -> int:
    """Write the DeviceClass of each resource with `publish: dra`, for all nodes. Raises `ConfigError`."""
    classes = list(device_classes(ConfigFile(path=file).load().resources))
    for index, each in enumerate(classes):
        if index:
            screen.line("---")
        screen.document(each, "yaml")
    if not classes:
        remarks.line(f"no resource has publish: {Publish.DRA.value}, so there is no class")
    return exitstatus.DONE


def completion(screen: Screen, shell: str) -> int:
    """Write the completion script of a shell."""
    import argcomplete  # noqa: PLC0415 - only this command and the completion itself need it

    screen.out.write(argcomplete.shellcode(["devwatch"], shell=shell))  # type: ignore[attr-defined]  # documented, not listed
    return exitstatus.DONE
