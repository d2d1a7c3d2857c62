"""Commands on what a host may not let them see: they show the rest, and take nothing unseen for nothing there."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from devwatch.cli import commands
from devwatch.cli.display import Screen
from devwatch.config.schema import Config
from devwatch.config.tree import MAX_BYTES
from devwatch.core.device import Device
from devwatch.host.lister import Lister
from devwatch.host.snapshot import Host
from support.build import device, rule, scan
from support.hostfiles import POWERLESS

SHOW = """
import sys
from pathlib import Path
from devwatch.cli.commands import Scene, devices, explain, suggest
from devwatch.cli.display import Screen
scene = Scene.see(Path(sys.argv[2]), given=False, node=lambda: "n")
out, err = Screen(out=sys.stdout), Screen(out=sys.stderr)
if sys.argv[1] == "devices":
    sys.exit(devices(scene, out, err, form="json", consoles=True))
sys.exit(suggest(scene, out, err, pod=True) if sys.argv[1] == "suggest" else explain(scene, out, err, "/dev/tty"))
"""


def show(command: str, config: Path) -> subprocess.CompletedProcess[str]:
    """Run a command by a configuration that nobody named, as a user for whom permissions count."""
    return subprocess.run(
        [*POWERLESS, sys.executable, "-c", SHOW, command, str(config)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.fixture(params=["folder", "file"])
def closed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a configuration whose folder may not be entered, or that may not be read itself."""
    folder = tmp_path / "devwatch"
    folder.mkdir()
    path = folder / "config.yaml"
    path.write_text("resources: []")
    (folder if request.param == "folder" else path).chmod(0)
    return path


@pytest.mark.parametrize("command", ["devices", "suggest", "explain"])
def test_a_configuration_that_may_not_be_read_hides_no_device(command: str, closed: Path) -> None:
    """What is here is shown without it; one line on stderr says so."""
    done = show(command, closed)
    warnings = [line for line in done.stderr.splitlines() if str(closed) in line]
    assert warnings == [
        f"warning: {closed} cannot be read (Permission denied): nothing is known of its resources",
    ], done.stderr
    if command == "devices":
        assert json.loads(done.stdout)["devices"]
    assert done.stdout


@pytest.mark.parametrize("name", ["missing.yaml", "closed/config.yaml"])
def test_a_configuration_that_is_not_there_is_not_missed(name: str, tmp_path: Path) -> None:
    """Neither it nor its folder need exist."""
    (tmp_path / "closed").touch()
    done = show("devices", tmp_path / name)
    assert (done.returncode, str(tmp_path) in done.stderr) == (0, False), done.stderr


def scene(*devices: Device, config: Config | None = None, **fields: Any) -> commands.Scene:  # noqa: ANN401  any field of a look
    """Return what a command would have seen."""
    host = Host(lister=Lister(record=lambda _: None))
    return commands.Scene(scan=scan(*devices, **fields), config=config, node="n", host=host)


def test_after_a_failed_look_nothing_is_said_to_be_absent() -> None:
    """There may be devices that could not be seen: the reason stands there in place of "no device"."""
    for doubts in ((), ("/sys: Input/output error",)):
        seen, out, err = scene(doubts=doubts), io.StringIO(), io.StringIO()
        screens = Screen(out=out), Screen(out=err)
        statuses = (
            commands.devices(seen, *screens, form="table", consoles=False),
            commands.suggest(seen, *screens, pod=True),
        )
        assert statuses == ((1, 1) if doubts else (0, 0))
        assert ("no serial device here" in err.getvalue()) == (not doubts)
        assert ("Nothing to suggest" in out.getvalue()) == (not doubts)
        assert all(doubt in err.getvalue() for doubt in doubts)


def test_a_suggestion_avoids_the_names_of_all_nodes() -> None:
    """A resource of another node does not claim the stick, and its name is taken all the same."""
    elsewhere = rule("aeotec/zstick", nodes=())
    out = io.StringIO()
    seen = scene(device(vendor="0658", product="0200"), config=Config(resources=(elsewhere,)))
    commands.suggest(seen, Screen(out=out), Screen(out=io.StringIO()), pod=False)
    assert "name: aeotec/zstick-2\n" in out.getvalue()


def explained(path: str, *devices: Device) -> str:
    """Return what `explain` writes."""
    out = io.StringIO()
    commands.explain(scene(*devices), Screen(out=out), Screen(out=io.StringIO()), path)
    return out.getvalue()


def test_a_virtual_console_without_a_record_has_no_port_for_certain() -> None:
    """As the rules have it; of hardware nothing is known yet."""
    console = Device(devnode="/dev/tty9", devpath="/devices/virtual/tty/tty9", number=1033, incarnation=1)
    assert "port: none\n" in explained("/dev/tty9", console)
    stick = device(devnode="/dev/ttyUSB0", properties=None)
    assert "port: none (unknown: there is no complete udev record)\n" in explained("/dev/ttyUSB0", stick)


def test_a_directory_in_the_place_of_a_device_is_explained_with_the_cure() -> None:
    """An empty one in /dev is what a container leaves there; any other is only a directory."""
    told = "a directory is in the place of a device or of a link to one"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        first, *_ = explained(path).splitlines()
        assert first.startswith(f"{path}: {told}")
        assert f"`rmdir {path}`" in first
        Path(path, "file").touch()
        assert explained(path).splitlines()[0] == f"{path}: a directory"
    with tempfile.TemporaryDirectory() as path:
        assert explained(path).splitlines()[0] == f"{path}: a directory"


def test_explain_tells_what_blocks_a_device_on_this_host() -> None:
    """Whatever is asked for."""
    out = io.StringIO()
    seen = scene(troubles=("/dev/ttyUSB0: a directory",), blocked=("/dev/ttyUSB0: a directory",))
    commands.explain(seen, Screen(out=out), Screen(out=io.StringIO()), "/dev/null")
    assert "\nthis host:\n  - /dev/ttyUSB0: a directory\n" in out.getvalue()


@pytest.mark.parametrize("width", [None, 80])
def test_a_check_holds_no_more_than_the_limit(width: int | None, tmp_path: Path) -> None:
    """However large the file is, on a terminal and in a pipe."""
    path = tmp_path / "large.yaml"
    path.touch()
    os.truncate(path, 256 * MAX_BYTES)
    out = io.StringIO()
    tracemalloc.start()
    try:
        assert commands.check(path, Screen(out=out, width=width), form="text") == 78
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MAX_BYTES
    words = " ".join(out.getvalue().split())  # where a line is broken depends on the length of the path
    assert f"more than {MAX_BYTES} bytes" in words


def test_a_fault_in_a_pipe_is_shown_with_its_line(tmp_path: Path) -> None:
    """On a terminal; what a pipe has given is not asked for again."""
    out, statuses, pipe = io.StringIO(), list[int](), tmp_path / "pipe"
    os.mkfifo(pipe)
    check = partial(commands.check, pipe, Screen(out=out, width=200), form="text")
    threads = [
        Thread(target=pipe.write_text, args=("resources: nonsense",), daemon=True),
        Thread(target=lambda: statuses.append(check()), daemon=True),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert statuses == [78]
    assert out.getvalue().splitlines()[1:] == ["    resources: nonsense", "               ^"]


def test_hubs_and_other_subsystems_are_shown_on_request() -> None:
    """A hub with `--all`; virtual devices of other subsystems always; and with a subsystem nothing else."""
    hub = device("bus/usb/001/001", subsystem="usb", hub=True)
    camera = device("video0", subsystem="video4linux", devpath="/devices/virtual/video4linux/video0")
    console = device("tty1", devpath="/devices/virtual/tty/tty1")
    seen = scene(hub, camera, console, device(), config=Config(resources=()))

    def shown(*, consoles: bool, only: str = "") -> list[str]:
        return [row.device.devnode for row in replace(seen, only=only).rows(consoles=consoles)]

    assert shown(consoles=False) == ["/dev/ttyUSB0", "/dev/video0"]
    assert shown(consoles=True) == ["/dev/bus/usb/001/001", "/dev/tty1", "/dev/ttyUSB0", "/dev/video0"]
    assert shown(consoles=True, only="usb") == ["/dev/bus/usb/001/001"]


def test_a_block_device_is_explained_with_the_reason(tmp_path: Path) -> None:
    """No resource can count it."""
    disk = next((each for each in Path("/dev").iterdir() if each.is_block_device()), None)
    if disk is None:
        pytest.skip("this machine has no block device")
    assert "Pods get disks as volumes" in explained(str(disk))
    assert "claimed by no resource" not in explained(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "subsystem"),
    [
        ("/dev/null", "mem"),
        ("/sys/class/mem/zero", "mem"),
        ("/dev/nothing", ""),
        ("\0", ""),
        ("/dev", ""),
        ("/dev/tty", "tty"),
    ],
)
def test_the_subsystem_of_a_path_is_what_the_kernel_says(path: str, subsystem: str) -> None:
    """Of a devnode, or of a device in sysfs."""
    assert Host(lister=Lister(record=lambda _: None)).subsystem_of(path) == subsystem
