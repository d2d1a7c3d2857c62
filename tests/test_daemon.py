"""The daemon as a process: what it tells systemd, how it takes signals, what ends it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Event, current_thread
from threading import enumerate as enumerate_threads
from typing import TYPE_CHECKING, Any

import pytest

from devwatch.daemon import Ears, PretendedNode, Resolver
from devwatch.errors import Unavailable
from devwatch.node import WHOLE, NodeState
from devwatch.telemetry import Metrics
from fakes import RecordingLog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GOOD = "resources:\n- {name: a.io/b, match: [{path: /dev/ttyNONE0}]}\n"


class Service:
    """A dry run as systemd would start it: it reports to a socket of ours."""

    def __init__(self, folder: Path, *options: str, **env: str) -> None:
        """Start it."""
        self.config = folder / "config.yaml"
        self.config.write_text(GOOD)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "notify"))
        self.socket.settimeout(30)
        command = [
            sys.executable,
            "-m",
            "devwatch",
            "run",
            "--dry-run",
            "--config",
            str(self.config),
            "--listen",
            "off",
            *options,
        ]
        environ = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), **env}
        self.process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def hear(self, message: str) -> str:
        """Return the first report that starts so."""
        while not (heard := self.socket.recv(4096).decode()).startswith(message):
            pass
        return heard

    def end(self) -> tuple[int, str, list[dict[str, Any]]]:
        """Return status, output and log of the ended process."""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, [json.loads(line) for line in err.splitlines()]


@contextmanager
def service(folder: Path, *options: str, **env: str) -> Iterator[Service]:
    """Run a service, and leave none behind."""
    running = Service(folder, *options, **env)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()
        running.socket.close()


def test_systemd_hears_of_the_whole_life(tmp_path: Path) -> None:
    """Ready after the first certain look, a status that a person understands, stopping; TERM ends it with status 0."""
    with service(tmp_path) as running:
        running.hear("READY=1")
        assert running.hear("STATUS=") == "STATUS=0 of 1 resources present"
        running.process.send_signal(signal.SIGTERM)
        running.hear("STOPPING=1")
        status, out, log = running.end()
    assert status == 0
    assert len(out.splitlines()) == 1
    assert [record["event"] for record in log][-1] == "daemon.stopped"


def test_the_watchdog_is_fed_by_the_loop(tmp_path: Path) -> None:
    """Far more often than the sweep, where systemd asks for it."""
    with service(tmp_path, WATCHDOG_USEC="100000") as running:
        for _ in range(5):
            running.hear("WATCHDOG=1")


def test_a_reload_is_told_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    """RELOADING, then READY, also for a configuration that is refused: the old one is at work again."""
    with service(tmp_path) as running:
        running.hear("STATUS=")
        for content, event in ((GOOD.replace("a.io/b", "a.io/c"), "config.reloaded"), ("nonsense", "config.rejected")):
            running.config.write_text(content)
            running.process.send_signal(signal.SIGHUP)
            assert "MONOTONIC_USEC=" in running.hear("RELOADING=1")
            running.hear("READY=1")
            assert running.process.poll() is None, event
        running.process.send_signal(signal.SIGINT)
        status, out, log = running.end()
    assert status == 0
    assert {"config.reloaded", "config.rejected"} <= {record["event"] for record in log}
    assert "a.io/c" in out.splitlines()[-1]


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    """Status 1, and the line names the port and the option."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = tmp_path / "c.yaml"
        config.write_text(GOOD)
        command = [
            sys.executable,
            "-m",
            "devwatch",
            "run",
            "--dry-run",
            "--config",
            str(config),
            "--listen",
            f"127.0.0.1:{port}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(port) in done.stderr
    assert "--listen" in done.stderr


def test_a_dry_run_pretends_that_each_patch_was_stored() -> None:
    """What was printed once is not printed again, also over a server's own answers."""

    class Server:
        async def patch(self, _changes: object) -> NodeState:
            return NodeState(uid="u", capacity={"a.io/b": "7", "c.io/d": "1"})

    out = io.StringIO()
    for node, rest in ((PretendedNode(out), {}), (PretendedNode(out, Server()), {"c.io/d": "1"})):
        asyncio.run(node.patch({"a.io/b": "2", WHOLE: "{}"}))
        state = asyncio.run(node.patch({}))
        assert state.capacity == {"a.io/b": "2", **rest}
    assert len(out.getvalue().splitlines()) == 2


def test_a_dry_run_that_cannot_print_ends() -> None:
    """A closed output is told, not ignored."""
    out = io.StringIO()
    out.close()
    with pytest.raises(Unavailable, match="standard output"):
        asyncio.run(PretendedNode(out).patch({WHOLE: "{}"}))


def test_no_exit_waits_for_a_name_server() -> None:
    """A thread that hangs is left to itself; results and errors of others arrive."""
    resolver = Resolver()
    stuck: Future[str] = Future()
    resolver.submit(stuck.result)
    assert resolver.submit(lambda: "address").result(timeout=30) == "address"
    with pytest.raises(KeyError):
        resolver.submit(dict[str, str]().__getitem__, "nowhere").result(timeout=30)
    resolver.shutdown()
    stuck.set_result("")


def test_an_answer_that_nobody_waits_for_any_more_is_dropped() -> None:
    """A daemon that ended while a name server was asked prints no traceback when the answer comes at last."""
    resolver, release, over = Resolver(), Event(), Event()

    def late() -> None:
        release.wait(30)

    asked = resolver.submit(late)
    asked.add_done_callback(lambda _: over.set())
    asked.cancel()
    release.set()
    assert over.wait(30)
    for thread in enumerate_threads():
        if thread is not current_thread():
            thread.join(30)


def test_what_the_monitor_hears_is_told() -> None:
    """Uevents are counted and wake the loop, an overflow too; a lost and a restored monitor are logged, the first start is not."""
    log, metrics, wakes = RecordingLog(), Metrics("0"), list[str]()
    ears = Ears(log, metrics)
    ears.uevents(["add"])
    ears.wake = wakes.append
    ears.restored("udev")
    ears.uevents(["add", "\x1b[31m"])
    for _ in range(3):
        ears.overflowed()
    ears.lost("why")
    assert b"devwatch_monitor_up 0.0" in metrics.render()
    ears.restored("kernel")
    assert wakes == ["uevent"] * 4
    text = metrics.render()
    for line in (
        b'uevents_total{action="add"} 2.0',
        b'uevents_total{action="other"} 1.0',
        b"monitor_overflows_total 3.0",
        b"monitor_up 1.0",
    ):
        assert b"devwatch_" + line in text
    assert [len(log.of(event)) for event in ("monitor.overflowed", "monitor.lost", "monitor.restored")] == [2, 1, 1]
