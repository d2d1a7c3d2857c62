"""The daemon as a process: what it tells systemd, how it takes signals, what ends it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devwatch.agent.dryrun import DryRunNode
from devwatch.agent.listener import MonitorListener
from devwatch.core.errors import Unavailable
from devwatch.core.node import ANNOTATION_PART, NodeState
from devwatch.observe.metrics import Metrics
from support import virtualtime
from support.build import patch_of
from support.fakes import RecordingLog
from support.hostfiles import POWERLESS
from support.pipes import Pipe, in_time

if TYPE_CHECKING:
    from collections.abc import Iterator


GOOD = "resources:\n- {name: a.io/b, match: [{path: /dev/ttyNONE0}]}\n"


class Service:
    """A dry run as systemd would start it: it reports to a socket of ours."""

    def __init__(
        self, folder: Path, *options: str, busy: bool = False, output: int = subprocess.PIPE, **env: str
    ) -> None:
        """Start it, with output and log to `output`; `busy` has our queue full from the beginning."""
        self.config = folder / "config.yaml"
        self.config.write_text(GOOD)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "notify"))
        self.socket.settimeout(30)
        if busy:
            self.crowd()
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
        self.process = subprocess.Popen(command, env=environ, stdout=output, stderr=output, text=True)

    def crowd(self) -> None:
        """Let other services report until the queue is full."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others, suppress(BlockingIOError):
            others.settimeout(0)
            others.connect(self.socket.getsockname())
            while True:
                others.send(b"WATCHDOG=1")

    def printed(self) -> str:
        """Return the next line of output."""
        assert self.process.stdout is not None
        line: str = self.process.stdout.readline()
        return line

    def hear(self, *messages: str) -> str:
        """Return the first report that starts like one of these, which is among the next thousand."""
        for _ in range(1000):
            if (heard := self.socket.recv(4096).decode()).startswith(messages):
                return heard
        pytest.fail(f"never heard: {messages}")

    def end(self) -> tuple[int, str, list[dict[str, Any]]]:
        """Return status, output and log of the ended process."""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, [json.loads(line) for line in err.splitlines()]


@contextmanager
def service(
    folder: Path, *options: str, busy: bool = False, output: int = subprocess.PIPE, **env: str
) -> Iterator[Service]:
    """Run a service, and leave none behind."""
    running = Service(folder, *options, busy=busy, output=output, **env)
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_file_that_does_not_answer_holds_up_neither_the_loop_nor_the_end(
    number: signal.Signals, tmp_path: Path
) -> None:
    """A pipe in place of the configuration, and somebody asks for a reload, which lasts until it is given up."""
    with service(tmp_path, WATCHDOG_USEC="100000") as running:
        running.hear("STATUS=")
        running.config.unlink()
        os.mkfifo(running.config)
        running.process.send_signal(signal.SIGHUP)
        running.hear("RELOADING=1")
        assert [running.hear("")[:12] for _ in range(10)] == ["WATCHDOG=1"] * 10
        running.process.send_signal(number)
        assert running.process.wait(2) == 0


def test_a_pipe_in_place_of_the_configuration_is_told(tmp_path: Path) -> None:
    """After five seconds, with what to do; the old one stays in force, and a good file is taken at once."""
    with service(tmp_path) as running:
        running.hear("STATUS=")
        running.config.unlink()
        os.mkfifo(running.config)
        running.process.send_signal(signal.SIGHUP)
        running.hear("RELOADING=1")
        running.hear("READY=1")
        running.config.unlink()
        running.config.write_text(GOOD.replace("a.io/b", "a.io/c"))
        running.process.send_signal(signal.SIGHUP)
        running.hear("RELOADING=1")
        running.hear("READY=1")
        running.process.send_signal(signal.SIGTERM)
        _, out, log = running.end()
    assert "a.io/c" in out.splitlines()[-1]
    (rejected,) = [record for record in log if record["event"] == "config.rejected"]
    assert "it did not end within 5 s (let the writer of a pipe write and close it" in rejected["faults"][0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_changes_no_status(number: signal.Signals, tmp_path: Path) -> None:
    """Whoever is impatient: the daemon has said that it stops, and Python itself has not ended yet."""
    with service(tmp_path) as running:
        running.hear("STATUS=")
        running.process.send_signal(number)
        running.hear("STOPPING=1")
        running.process.send_signal(number)
        status, _, log = running.end()
    assert (status, log[-1]["event"]) == (0, "daemon.stopped")


@pytest.mark.parametrize("publish", ["nodeStatus", "devicePlugin"])
def test_a_user_for_whom_the_folder_of_the_kubelet_is_closed_has_a_daemon(publish: str, tmp_path: Path) -> None:
    """On a node it is root's alone. Counts need nothing of it; what does is said, with the cure."""
    config, closed = tmp_path / "config.yaml", tmp_path / "kubelet"
    config.write_text(GOOD.replace("match:", f"publish: {publish}, match:"))
    closed.mkdir(mode=0)
    options = [
        "--config",
        str(config),
        "--node-name",
        f"closed-{os.getpid()}",
        "--kubeconfig",
        "none",
        "--listen",
        "off",
    ]
    folders = ["--kubelet-dir", str(closed), "--device-plugin-dir", str(closed / "device-plugins")]
    command = [*POWERLESS, sys.executable, "-m", "devwatch", "run", *options, *folders, "--log-format", "json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        heard = [json.loads(running.stderr.readline())]
        while heard[-1]["event"] not in {"node.patch_failed", "daemon.stopped"}:
            heard.append(json.loads(running.stderr.readline()))
        running.send_signal(signal.SIGTERM)
    assert running.returncode == 0, heard
    hints = [record["hint"] for record in heard if "Permission denied" in record.get("reason", "")]
    cure = "let devwatch write there: as uid 0, and in its sandbox or its container without read-only"
    assert hints == ([cure] if publish == "devicePlugin" else [])


def test_a_daemon_without_memory_for_a_thread_ends_like_any_other(tmp_path: Path) -> None:
    """TERM starts none; it has status 0, and no traceback."""
    with service(tmp_path) as running:
        running.hear("STATUS=")
        assert "a.io/b" in running.printed()
        size = int(Path(f"/proc/{running.process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(running.process.pid, resource.RLIMIT_AS, (size + 2**20, size + 2**20))
        running.process.send_signal(signal.SIGTERM)
        status, _, log = running.end()
    assert (status, log[-1]["event"]) == (0, "daemon.stopped")


def test_a_systemd_that_is_busy_hears_everything_later(tmp_path: Path) -> None:
    """A queue that was full at the wrong moment leaves no unit "activating" or "reloading" for ever."""
    with service(tmp_path, busy=True, WATCHDOG_USEC="100000") as running:
        assert "a.io/b" in running.printed()  # after the first turn, at which nothing could be told
        # In either order: the queue may have had room for the second of the two first.
        assert {running.hear("READY=1", "STATUS=")[:12] for _ in range(2)} == {"READY=1", "STATUS=0 of "}
        running.config.write_text(GOOD.replace("a.io/b", "a.io/c"))
        running.crowd()
        running.process.send_signal(signal.SIGHUP)
        assert "a.io/c" in running.printed()
        running.hear("RELOADING=1")
        running.hear("READY=1")


def test_output_and_log_that_nobody_reads_hold_nothing_up(tmp_path: Path, pipe: Pipe) -> None:
    """After `devwatch run --dry-run 2>&1 | less` the loop turns as ever, and TERM ends it."""
    pipe.fill()
    with service(tmp_path, output=pipe.writer) as running:
        running.hear("READY=1")
        running.process.send_signal(signal.SIGTERM)
        running.hear("STOPPING=1")
        assert running.process.wait(30) == 0


def test_no_patch_of_a_dry_run_is_left_out_for_want_of_room(pipe: Pipe) -> None:
    """It waits for its reader, however long it is and he takes, and lets everything else go on."""
    big = "x" * 2 * pipe.size

    async def scenario() -> str:
        patching = asyncio.create_task(DryRunNode(pipe.stream).patch(patch_of({ANNOTATION_PART: big})))
        await asyncio.sleep(60)
        text = ""
        while not patching.done():
            text += pipe.read()
            await asyncio.sleep(1)
        return text + pipe.read()

    pipe.fill()
    text = in_time(lambda: virtualtime.run(scenario))
    assert text.endswith("\n")
    assert big in json.loads(text.lstrip("."))["metadata"]["annotations"].values()


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
        date = ""

        async def patch(self, _changes: object) -> NodeState:
            return NodeState(uid="u", capacity={"a.io/b": "7", "c.io/d": "1"})

    out = io.StringIO()
    for node, rest in ((DryRunNode(out), {}), (DryRunNode(out, Server()), {"c.io/d": "1"})):
        asyncio.run(node.patch(patch_of({"a.io/b": "2", ANNOTATION_PART: "{}"})))
        state = asyncio.run(node.patch(patch_of({})))
        assert state.capacity == {"a.io/b": "2", **rest}
    assert len(out.getvalue().splitlines()) == 2


def test_a_person_at_a_terminal_reads_what_would_change() -> None:
    """In words, and the names of the resources alone, those that have a device first; scripts get the body of the patch."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    node = DryRunNode(out)
    asyncio.run(node.patch(patch_of({"c.io/d": None, "a.io/b": "2", ANNOTATION_PART: '{"a.io/b":[]}'})))
    asyncio.run(node.patch(patch_of({"a.io/b": "0"})))
    asyncio.run(node.patch(patch_of({"z.io/y": "1"} | {f"m.io/{number}": "0" for number in range(7)})))
    assert out.getvalue().splitlines() == [
        "would change on the Node: a.io/b: 2, c.io/d: removed, the annotation devwatch.io/devices",
        "would change on the Node: a.io/b: 0",
        "would change on the Node: z.io/y: 1, m.io/0: 0, m.io/1: 0, m.io/2: 0, m.io/3: 0, m.io/4: 0 and 2 more",
    ]


def test_a_dry_run_that_cannot_print_ends() -> None:
    """A closed output is told, not ignored."""
    out = io.StringIO()
    out.close()
    with pytest.raises(Unavailable, match="standard output"):
        asyncio.run(DryRunNode(out).patch(patch_of({ANNOTATION_PART: "{}"})))


def test_what_the_monitor_hears_is_told() -> None:
    """Uevents are counted and wake the loop, an overflow too; a lost and a restored monitor are logged, the first start is not."""
    log, metrics, wakes = RecordingLog(), Metrics("0"), list[str]()
    listener = MonitorListener(log, metrics)
    listener.uevents(["add"])
    listener.wake = wakes.append
    listener.restored("udev")
    listener.uevents(["add", "\x1b[31m"])
    for _ in range(3):
        listener.overflowed()
    listener.lost("why")
    assert b"devwatch_monitor_up 0.0" in metrics.render()
    listener.restored("kernel")
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
