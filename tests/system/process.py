"""A program under test: its output in a file, its end certain."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping, Sequence

REAP = 10.0


class Process:
    """One program that runs in a session of its own and cannot outlive the tests.

    `stdout` and `stderr` are files that later starts append to. The program dies with the thread that started it, also
    when that is killed: setpriv(1) asks the kernel for it (prctl(2), PR_SET_PDEATHSIG) without code between fork and
    exec, where a process that has threads must not run Python.
    """

    def __init__(self, command: Sequence[str], logs: Path, *, env: Mapping[str, str] | None = None) -> None:
        """Start `command`; its output goes to `logs` with the suffixes .out and .err."""
        self.stdout = logs.with_suffix(".out")
        self.stderr = logs.with_suffix(".err")
        with self.stdout.open("ab") as out, self.stderr.open("ab") as err:
            self._popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=env,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id; setpriv becomes the program, so it is the program's own."""
        return self._popen.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal, None while the program runs."""
        return self._popen.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program; nothing happens when it has ended."""
        self._popen.send_signal(number)

    def states(self) -> set[str]:
        """Return the states of its threads, one letter each as in proc_pid_stat(5); `T` is stopped."""
        files = Path(f"/proc/{self.pid}/task").glob("*/stat")
        # The name, in brackets, may hold anything; the state is the first field after it.
        return {file.read_text().rpartition(")")[2].split()[0] for file in files}

    def wait(self, timeout: float = REAP) -> int:
        """Return the exit status; raise `AssertionError` when the program still runs after `timeout` seconds."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout:g} s\n{self.tail()}") from None

    def kill(self) -> None:
        """End the program and wait for it; a stopped (SIGSTOP) one too, and an ended one without complaint."""
        self._popen.kill()
        self._popen.wait(REAP)

    def tail(self, lines: int = 30) -> str:
        """Return the last lines of the standard error, for messages."""
        return "\n".join(self.stderr.read_text("utf-8", "replace").splitlines()[-lines:])
