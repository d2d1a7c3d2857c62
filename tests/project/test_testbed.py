"""The test bench itself, as far as it leaves the machine alone: the gates, the waiting, the processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.checkout import CHECKOUT
from system import testbed
from system.apiserver import assets
from system.daemon import Daemon, DaemonEndedError
from system.process import Process
from system.udevd import RULES, missing
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = CHECKOUT / "tests"


# The gates


def pytest_in(folder: Path, source: str, **env: str) -> str:
    """Run pytest with our conftest over one test file, in an environment of these variables only; return its output."""
    shutil.copy(TESTS / "conftest.py", folder)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = system: changes the machine\n")
    (folder / "test_it.py").write_text(textwrap.dedent(source))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "-p", "no:asyncio", str(folder)],
        env={"PYTHONPATH": str(TESTS), "PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


MARKED = """
    import pytest

    @pytest.mark.system
    def test_it():
        pass

    def test_server(apiserver):
        pass

    def test_sticks(sticks):
        pass
"""


def test_what_changes_the_machine_is_skipped_unless_asked_for(tmp_path: Path) -> None:
    """The marker and each fixture skip, and the reason names the variable to set."""
    output = pytest_in(tmp_path, MARKED)
    assert "3 skipped" in output
    assert "needs DEVWATCH_SYSTEM_TESTS=1" in output


def test_a_missing_api_server_is_a_skip_that_names_the_variable(tmp_path: Path) -> None:
    """Without assets the reason is KUBEBUILDER_ASSETS."""
    output = pytest_in(
        tmp_path, "def test_it(apiserver): pass", DEVWATCH_SYSTEM_TESTS="1", KUBEBUILDER_ASSETS=str(tmp_path)
    )
    assert "1 skipped" in output
    assert "needs KUBEBUILDER_ASSETS" in output


@pytest.mark.parametrize("variable", ["CI", "DEVWATCH_CI"])
@pytest.mark.parametrize(
    "source",
    [
        "import pytest\ndef test_it(): pytest.skip('no luck')",
        "import pytest\n@pytest.mark.skip(reason='no luck')\ndef test_it(): pass",
        "import pytest\npytest.skip('no luck', allow_module_level=True)",
    ],
)
def test_in_ci_every_kind_of_skip_is_a_failure(tmp_path: Path, source: str, variable: str) -> None:
    """A skip in a test, by a mark or of a whole file fails, and still gives its reason."""
    output = pytest_in(tmp_path, source, **{variable: "true"})
    assert "a skip is a failure in CI: " in output
    assert "no luck" in output
    assert "1 failed" in output or "1 error" in output


def test_in_ci_an_expected_failure_is_none(tmp_path: Path) -> None:
    """An xfail has run, so it is left alone."""
    output = pytest_in(tmp_path, "import pytest\n@pytest.mark.xfail\ndef test_it(): assert 0", CI="true")
    assert "1 xfailed" in output


def test_in_ci_a_test_for_a_newer_server_is_skipped(tmp_path: Path) -> None:
    """The assets decide which server is tested, and the reason names it."""
    source = "import pytest\nfrom system import testbed\ndef test_it(): testbed.require(f'{testbed.NEWER}36 or newer')"
    output = pytest_in(tmp_path, source, CI="true")
    assert "1 skipped" in output
    assert "needs Kubernetes 1.36 or newer" in output


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_in_ci_a_test_of_an_earlier_release_is_skipped_in_a_shallow_clone(tmp_path: Path) -> None:
    """How deep the clone is, is up to its owner, and the reason has the words of git."""
    head = "import pytest\nfrom system import formerrelease, testbed\n"
    source = f"{head}def test_it(): testbed.require(formerrelease.missing('{'0' * 40}'))"
    output = pytest_in(tmp_path, source, CI="true")
    assert "1 skipped" in output
    assert "needs the history of the repository: fatal: " in output


def test_outside_ci_a_skip_is_a_skip(tmp_path: Path) -> None:
    """The variables decide by their value: an empty one, 0 or false is off."""
    output = pytest_in(tmp_path, "import pytest\ndef test_it(): pytest.skip('no luck')", CI="false", DEVWATCH_CI="")
    assert "1 skipped" in output


STICKS_OF_ITS_OWN = """
    import pytest
    from system.udevd import Sticks

    @pytest.fixture
    def sticks():
        return Sticks()

    def test_it(sticks):
        assert {}
"""


def test_a_failure_tells_what_became_of_the_sticks(tmp_path: Path) -> None:
    """The state of the machine has changed by the time a developer looks."""
    assert str(RULES) in pytest_in(tmp_path, STICKS_OF_ITS_OWN.format("0 == 1"))
    assert str(RULES) not in pytest_in(tmp_path, STICKS_OF_ITS_OWN.format("0 == 0"))


def test_udevd_asks_for_root() -> None:
    """Anyone but root gets a plain reason."""
    assert missing(1000) == "needs root, to run udevd and to make device nodes"


def test_assets_are_complete_or_none(tmp_path: Path) -> None:
    """A folder counts when it has both servers."""
    (tmp_path / "etcd").touch()
    environ = {"KUBEBUILDER_ASSETS": str(tmp_path)}
    assert assets({}) is None
    assert assets(environ) is None
    (tmp_path / "kube-apiserver").touch()
    assert assets(environ) == tmp_path


def test_the_gate_opens_for_one_value_only() -> None:
    """DEVWATCH_SYSTEM_TESTS=0 does not mean yes."""
    assert testbed.closed({"DEVWATCH_SYSTEM_TESTS": "1"}) is None
    assert testbed.closed({"DEVWATCH_SYSTEM_TESTS": "0"})


# Waiting


def test_eventually_returns_the_first_true_value() -> None:
    """False values and failed assertions mean "not yet"."""
    answers: Iterator[object] = iter([0, AssertionError("no"), "yes"])

    def check() -> object:
        answer = next(answers)
        if isinstance(answer, AssertionError):
            raise answer
        return answer

    assert eventually(check) == "yes"


def test_eventually_says_what_was_wrong_last() -> None:
    """The deadline raises the reason of the check."""

    def check() -> bool:
        raise AssertionError("count is 3")

    with pytest.raises(AssertionError, match="count is 3"):
        eventually(check, timeout=0)


def test_eventually_does_not_swallow_other_exceptions() -> None:
    """A broken check is no "not yet"."""
    with pytest.raises(ZeroDivisionError):
        eventually(lambda: 1 / 0)


# Processes


def gone(pid: int) -> bool:
    """Return whether no such process runs; one that has not been reaped yet counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter where it is waited for between open and read
        return True


def test_a_process_does_not_outlive_killed_tests(tmp_path: Path) -> None:
    """Also when pytest is killed and no finaliser runs."""
    source = f"""
        import os, pathlib, signal
        from system.process import Process
        print(Process(["sleep", "1000"], pathlib.Path({str(tmp_path / "sleep")!r})).pid, flush=True)
        input()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        # setpriv has asked the kernel for the signal before it becomes sleep.
        eventually(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n")
        parent.stdin.write(b"\n")
    eventually(lambda: gone(child))


def test_a_stopped_process_can_be_killed(tmp_path: Path) -> None:
    """SIGSTOP does not protect from the finaliser, and a second kill is no error."""
    process = Process(["sleep", "1000"], tmp_path / "sleep")
    process.signal(signal.SIGSTOP)
    process.kill()
    process.kill()
    assert process.status == -signal.SIGKILL


# The daemon's process, with a stand-in for the daemon

STAND_IN = """
import json, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
signal.signal(signal.SIGHUP, lambda *_: print(json.dumps({"event": "config.reloaded"}), file=sys.stderr, flush=True))
print("to stdout", flush=True)
print("no JSON", file=sys.stderr)
print(json.dumps({"event": "device.added", "devnode": "/dev/tty40"}), file=sys.stderr)
print(json.dumps({"event": "device.added", "devnode": "/dev/tty41", "args": sys.argv[1:]}), file=sys.stderr)
print(json.dumps({"event": "environ", "value": dict(os.environ)}), file=sys.stderr, flush=True)
while "--once" not in sys.argv:
    signal.pause()
"""
COMMAND = (sys.executable, "-c", STAND_IN)


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[Daemon]:
    """Run a program that logs as the daemon does."""
    with Daemon("--node-name=n", home=tmp_path, command=COMMAND) as daemon:
        yield daemon


def test_log_records_are_found_by_event_and_fields(stand_in: Daemon) -> None:
    """All fields must agree, what is no JSON is passed over, options reach the program."""
    assert stand_in.wait_log("device.added", devnode="/dev/tty41")["args"] == ["--node-name=n"]
    assert stand_in.wait_log("device.added")["devnode"] == "/dev/tty40"
    assert "no JSON" in stand_in.stderr
    assert stand_in.stdout == "to stdout\n"
    with pytest.raises(AssertionError, match=r"node\.patched"):
        stand_in.wait_log("node.patched", timeout=0)


def test_only_new_log_records_count_with_since(stand_in: Daemon) -> None:
    """A second occurrence is not taken for the first."""
    stand_in.wait_log("environ")
    stand_in.signal(signal.SIGHUP)
    stand_in.wait_log("config.reloaded")
    seen = len(stand_in.log)
    with pytest.raises(AssertionError, match=r"config\.reloaded"):
        stand_in.wait_log("config.reloaded", since=seen, timeout=0)
    stand_in.signal(signal.SIGHUP)
    stand_in.wait_log("config.reloaded", since=seen)


def test_terminate_returns_the_exit_status(stand_in: Daemon) -> None:
    """TERM reaches the program itself, not a wrapper."""
    stand_in.wait_log("environ")
    assert stand_in.terminate() == 3


def test_a_wait_ends_at_once_when_the_daemon_has(tmp_path: Path) -> None:
    """A test does not wait for the log of a dead process; its last lines are shown."""
    with Daemon("--once", home=tmp_path, command=COMMAND) as daemon:
        assert daemon.wait() == 0
        daemon.wait_log("environ")
        with pytest.raises(DaemonEndedError, match=r"(?s)node\.patched.*status 0.*tty41"):
            daemon.wait_log("node.patched")


def test_the_daemon_sees_no_settings_of_the_tests_own_environment(tmp_path: Path) -> None:
    """Only what the test gives it decides; its home holds no kubeconfig."""
    source = f"""
        import json, os, pathlib
        os.environ |= {{"KUBECONFIG": "k", "NODE_NAME": "n", "DEVWATCH_CONFIG": "c", "OTHER": "o"}}
        from system.daemon import Daemon
        with Daemon(home=pathlib.Path({str(tmp_path)!r}), command={COMMAND!r}, env={{"DEVWATCH_LISTEN": "off"}}) as it:
            print(json.dumps(it.wait_log("environ")["value"]))
    """
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], env=env, capture_output=True, text=True, check=True
    )
    value = json.loads(done.stdout)
    assert {key for key in value if key.startswith("DEVWATCH_")} == {"DEVWATCH_LISTEN"}
    assert not {"KUBECONFIG", "NODE_NAME"} & value.keys()
    assert value["OTHER"] == "o"
    assert value["HOME"].startswith(str(tmp_path))
