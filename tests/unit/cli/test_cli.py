"""The command line as people use it: results on stdout, one-line errors on stderr, the exit statuses of the contract."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import signal
import subprocess
import sys
from itertools import product
from threading import Thread
from typing import TYPE_CHECKING, NoReturn, TextIO

import pytest
import yaml

from devwatch import __version__
from devwatch.cli.entry import main
from devwatch.config.jsonschema import configuration_schema
from devwatch.core.text import escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

GOOD = 'resources:\n- {name: a.io/b, match: [{vendor: "dead"}]}\n'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return a valid configuration."""
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    return path


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Let the programs that a test starts take INT, also where the tests run in the background of a shell, which has it ignored."""
    held = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, held)


def test_check_sums_up_a_valid_configuration(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 0 and a summary."""
    assert main(["check", str(config)], {}) == 0
    assert capsys.readouterr().out == f"{config}: valid; 1 resource (a.io/b); 0 evict\n"


def test_check_shows_every_fault(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 78, and each fault as FILE:LINE:COLUMN: key: message."""
    config.write_text("resources:\n- {name: ab, match: [{vendor: 403}]}\n")
    assert main(["check", str(config)], {}) == 78
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{config}:2:10: resources[0].name: ")
    assert second.startswith(f"{config}:2:31: resources[0].match[0].vendor: ")
    assert '"0403"' in second


def test_check_speaks_json(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script gets faults as objects; the status is the same."""
    config.write_text("resources: nonsense")
    assert main(["check", "-o", "json", str(config)], {}) == 78
    content = json.loads(capsys.readouterr().out)
    assert content["valid"] is False
    assert content["faults"][0].keys() == {"line", "column", "path", "message"}


def test_check_warns_of_a_shadowed_resource(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A resource that never gets a device is valid, and most likely a mistake."""
    config.write_text(GOOD + '- {name: a.io/c, match: [{vendor: "dead", product: "0200"}]}\n')
    assert main(["check", str(config)], {}) == 0
    assert capsys.readouterr().out.startswith(f"warning: {config}:3:")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["run", "--nonsense"],
        ["run", "--dry-run=maybe"],
        ["run", "--listen", "nowhere"],
        ["run", "--listen", "a..b:80"],
        ["run", "--listen", f"{'a' * 64}.io:80"],
        ["run", "--node-name", "no/name"],
        ["check", ""],
        ["devices", "-o", "xml"],
        ["devices", "--pod"],
        ["schema", "my.yaml"],
        ["completion", "tcsh"],
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    argv: list[str], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line says what is wrong; there is no traceback."""
    assert main(argv, {"DEVWATCH_CONFIG": str(config)}) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("devwatch: ")


@pytest.mark.parametrize(
    "variables",
    [{"DEVWATCH_DRY_RUN": "maybe"}, {"DEVWATCH_ONCE": "maybe"}, {"DEVWATCH_LOG_LEVEL": "loud"}],
)
def test_a_wrong_environment_is_wrong_usage(variables: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """The variable is named."""
    assert main(["run"], variables) == 2
    assert next(iter(variables)) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "argv", "allowed"),
    [
        ("DEVWATCH_ONCE", ["run"], "1, true, yes"),
        ("DEVWATCH_DRY_RUN", ["run"], "client, server, 1, true, yes, 0, false, no"),
        ("DEVWATCH_OUTPUT", ["devices"], "table, wide, json, yaml"),
        ("DEVWATCH_OUTPUT", ["check"], "text, json"),
    ],
)
def test_a_wrong_variable_is_told_with_what_is_allowed(
    variable: str, argv: list[str], allowed: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one whose value no command knows; nobody has to look it up."""
    assert main(argv, {variable: "xml", "DEVWATCH_CONFIG": str(config)}) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"devwatch: {variable}='xml' is ")
    assert allowed in line


def test_a_name_that_is_none_is_told_with_the_option_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """What `run` calls --node-name is --node of `purge`."""
    for option, argv in (("--node-name", ["run"]), ("--node", ["purge"])):
        assert main([*argv, option, "a_b"], {}) == 2
        assert f"give one with {option} or NODE_NAME" in capsys.readouterr().err


def test_a_variable_of_another_command_does_no_harm(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`DEVWATCH_OUTPUT=wide` is for `devices`; `completion` has no such option."""
    for variables in ({"DEVWATCH_OUTPUT": "wide"}, {"DEVWATCH_LOG_LEVEL": "loud"}):
        assert main(["check", str(config)], variables) == 0
        assert "valid" in capsys.readouterr().out


def test_the_command_line_wins_over_the_environment(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also over a variable that is wrong; a true variable of an option with a default value is that value."""
    argv = ["run", "--once", "--config", str(config)]
    assert main([*argv, "--log-level", "error"], {"DEVWATCH_LOG_LEVEL": "loud", "DEVWATCH_DRY_RUN": "true"}) == 0
    assert '"a.io/b":"0"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "variable"), [("--no-once", "DEVWATCH_ONCE"), ("--dry-run=client", "DEVWATCH_DRY_RUN")]
)
def test_a_wrong_variable_matters_only_where_it_counts(
    option: str, variable: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the command line says needs no variable: here the command goes on to its configuration."""
    assert main(["run", "--config", "/nonexistent", option], {variable: "maybe"}) == 78
    assert variable not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "devices", "explain", "check", "schema", "deviceclasses", "completion"])
def test_every_command_teaches_by_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` ends with examples that start with the command."""
    assert main([command, "--help"], {}) == 0
    assert f"devwatch {command}" in capsys.readouterr().out.partition("examples:")[2]


@pytest.mark.parametrize("missing", ["nothing.yaml", "."])
def test_a_configuration_that_cannot_be_read_is_status_78(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that was named and is not there, or is a directory, is a wrong configuration for every command."""
    path = str(tmp_path / missing)
    for argv in (["run"], ["devices"], ["explain", "/dev/null"]):
        assert main([*argv, "--config", path], {}) == 78
        assert "cannot be read" in capsys.readouterr().err


def test_devices_and_explain_need_no_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A newcomer sees the host's ttys before anything is configured."""
    assert main(["devices", "--all", "-o", "json"], {"HOME": str(tmp_path)}) == 0
    content = json.loads(capsys.readouterr().out)
    devnode = content["devices"][0]["devnode"]
    assert main(["explain", devnode], {}) == 0
    out = capsys.readouterr().out
    assert devnode in out
    assert "claimed by nothing: there is no configuration (--config names one)" in out


def test_what_is_not_there_is_explained_too(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1, what is at the path, and which resource expects a device there."""
    config.write_text("resources:\n- {name: a.io/b, match: [{path: /dev/ttyNONE*}]}\n")
    assert main(["explain", "/dev/ttyNONE0", "--config", str(config)], {}) == 1
    out, remarks = capsys.readouterr()
    assert "/dev/ttyNONE0: there is nothing" in out
    assert "a.io/b expects a device there" in out
    assert "`devwatch devices` lists the devices of this host; in a cluster, the pod of each node knows" in remarks
    assert main(["explain", "/dev/pts/ptmx", "--config", str(config)], {}) == 1
    assert "a character device, but not the devnode of a present device" in capsys.readouterr().out


def test_a_devnode_without_its_folder_is_asked_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`explain ttyUSB0` means /dev/ttyUSB0, if that is there."""
    assert main(["devices", "--all", "-o", "json"], {"HOME": str(tmp_path)}) == 0
    devnode = json.loads(capsys.readouterr().out)["devices"][0]["devnode"]
    assert main(["explain", devnode.removeprefix("/dev/")], {}) == 1
    assert f"did you mean {devnode}?" in capsys.readouterr().err


def test_the_devices_of_another_subsystem_are_shown_and_explained(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that every kernel has, for this machine has no others for certain; virtual ones too, since that is what was asked for."""
    config.write_text("resources:\n- {name: a.io/null, subsystem: mem, match: [{path: /dev/null}]}\n")
    assert main(["devices", "--subsystem", "mem", "-o", "json", "--config", str(config)], {}) == 0
    shown = {each["devnode"]: each for each in json.loads(capsys.readouterr().out)["devices"]}
    assert {each["subsystem"] for each in shown.values()} == {"mem"}
    assert (shown["/dev/null"]["resource"], shown["/dev/zero"]["resource"]) == ("a.io/null", None)
    assert main(["explain", "/dev/zero", "--config", str(config)], {}) == 0
    out = capsys.readouterr().out
    assert "  subsystem: mem\n" in out
    assert "match[0] wants path '/dev/null' (seen /dev/zero)" in out
    assert main(["devices", "--config", str(config)], {}) == 0
    assert re.search(r"^/dev/null .* a\.io/null$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("block", "Pods get disks as volumes"),
        ("net", "Pods get interfaces from network plugins"),
        ("usb_device", "the whole USB device is called usb"),
        ("../class", "another udev subsystem whose devices have a character devnode"),
    ],
)
def test_a_subsystem_without_devnodes_is_wrong_usage(name: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The reason is said."""
    assert main(["devices", "--subsystem", name], {}) == 2
    assert why in capsys.readouterr().err


def test_a_subsystem_that_is_not_here_has_no_devices(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Its driver may not be loaded."""
    assert main(["devices", "--subsystem", "nothing-of-this-name"], {"HOME": str(tmp_path)}) == 0
    assert "there is no device of the subsystem nothing-of-this-name here" in capsys.readouterr().err


def test_explain_says_that_a_resource_counts_another_subsystem(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its keys do not matter then."""
    config.write_text("resources:\n- {name: a.io/b, subsystem: usb, match: [{path: /dev/null}]}\n")
    assert main(["explain", "/dev/null", "--config", str(config)], {}) == 0
    out = capsys.readouterr().out
    assert "to change: it counts devices of subsystem 'usb' (seen mem)" in out
    assert "match[0]" not in out


def test_the_schema_is_json_and_needs_no_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    """On stdout, for a file beside the configuration; a wrong configuration does not matter."""
    assert main(["schema"], {"DEVWATCH_CONFIG": "/nonexistent"}) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == configuration_schema()
    assert (out.isascii(), err) == (True, "")


def test_pods_are_printed_behind_the_suggestion(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As further documents, one for each resource; the first one is the configuration as without them."""
    assert main(["devices", "--suggest", "--config", str(config)], {}) == 0
    suggested = capsys.readouterr().out
    assert main(["devices", "--suggest", "--pod", "--config", str(config)], {}) == 0
    out = capsys.readouterr().out
    assert out.startswith(suggested)
    first, *pods = yaml.safe_load_all(out)
    limits = [name for pod in pods for name in pod["containers"][0]["resources"]["limits"]]
    assert limits == [resource["name"] for resource in first["resources"]]


def test_deviceclasses_are_ready_for_kubectl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One document for each resource of any node that is published so; the names are guessable."""
    path = tmp_path / "c.yaml"
    entry = "match: [{port: x}], publish: dra, nodes: [n7]"
    path.write_text(
        f"resources: [{{name: a/b, match: [{{port: x}}]}}, {{name: a/c, {entry}}}, {{name: a/D_e, {entry}}}]"
    )
    assert main(["deviceclasses", "--config", str(path)], {}) == 0
    first, second = yaml.safe_load_all(capsys.readouterr().out)
    assert (first["kind"], first["metadata"]["name"]) == ("DeviceClass", "a.c")
    assert second["metadata"]["name"] == "a.d-e"
    assert second["spec"]["extendedResourceName"] == "a/D_e"
    assert main(["deviceclasses"], {"DEVWATCH_CONFIG": str(path)}) == 0


def test_without_a_resource_that_has_one_there_is_no_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing goes to kubectl, and stderr says why; a wrong configuration is one as everywhere."""
    path = tmp_path / "c.yaml"
    path.write_text("resources: [{name: a/b, match: [{port: x}]}]")
    assert main(["deviceclasses", "--config", str(path)], {}) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "publish: dra" in err
    path.write_text("resources: x")
    assert main(["deviceclasses", "--config", str(path)], {}) == 78


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell gets its script."""
    assert main(["completion", shell], {}) == 0
    assert "devwatch" in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_error() -> None:
    """`devwatch devices --all | true` prints no traceback."""
    command = f"{sys.executable} -m devwatch devices --all -o json | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)  # noqa: S602 - a pipe is what is tested
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("argv", [["devices", "--all"], ["run", "--once", "--dry-run"], ["check"], ["--help"]])
def test_results_that_cannot_be_written_are_one_line(argv: list[str], config: Path) -> None:
    """A full disk, or a closed descriptor, is told in a line on stderr with status 1, beside warnings about the host."""
    environ = {**os.environ, "DEVWATCH_CONFIG": str(config)}
    for redirection, unbuffered in product((">/dev/full", ">&-"), ("", "1")):
        command = f"PYTHONUNBUFFERED={unbuffered} {sys.executable} -m devwatch {' '.join(argv)} {redirection}"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, env=environ)  # noqa: S602 - the shell redirects
        errors = [line for line in done.stderr.splitlines() if not line.startswith(("{", "warning: "))]
        assert (done.returncode, len(errors)) == (1, 1) or argv == ["--help"], (command, done.stderr)
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_results_that_are_cut_short_are_no_success(unbuffered: str, tmp_path: Path) -> None:
    """Where there is room for a part alone (here by a limit of 1 KiB), whatever PYTHONUNBUFFERED says."""
    script = f"ulimit -f 1; {sys.executable} -m devwatch completion zsh > {tmp_path}/out"
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=environ)
    assert (done.returncode, (tmp_path / "out").stat().st_size) == (1, 1024)
    assert done.stderr == "devwatch: cannot write the results: File too large\n"


class Unreadable(dict[str, str]):
    """An environment of which nothing can be read."""

    def get(self, *_: object) -> NoReturn:
        """Fail as the system does."""
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/some/file")


def test_only_what_cannot_be_written_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    """An error of the system that nobody foresaw is one line too, with the file that it is about, and status 1."""
    assert main(["check"], Unreadable()) == 1
    assert capsys.readouterr().err == f"devwatch: /some/file: {os.strerror(errno.EIO)}\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of memory: raise the limit (ulimit -v)"),
        (SystemError("error return without exception set"), "out of memory: raise the limit (ulimit -v)"),
        (ImportError("failed to map segment"), "a part of the program cannot be loaded: failed to map segment: raise "),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files: raise the limit of open files (ulimit -n"),
    ],
)
def test_a_shortage_is_one_line_with_what_to_raise(
    error: Exception, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it strikes; never a traceback."""

    class Exhausted(dict[str, str]):
        """An environment that takes the last there was."""

        def get(self, *_: object) -> NoReturn:
            """Fail."""
            raise error

    assert main(["check"], Exhausted()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"devwatch: {told}")


def test_a_removed_working_directory_keeps_nothing_from_view(tmp_path: Path) -> None:
    """`devices` and `explain` need none; a relative path leads nowhere."""
    devwatch = f"{sys.executable} -m devwatch"
    for command, status in ((f"{devwatch} devices --all", 0), (f"{devwatch} explain ttyUSB0", 1)):
        (tmp_path / "gone").mkdir()
        script = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && {command}"
        done = subprocess.run(script, shell=True, capture_output=True, text=True, check=False)  # noqa: S602 - the shell goes there
        assert (done.returncode, "cannot write" in done.stderr) == (status, False), done.stderr
        assert status == 0 or "ttyUSB0: there is nothing" in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize(
    "name", [b"caf\xe9.yaml", "設定.yaml".encode(), b"\x1b[31m.yaml"], ids=["bytes", "letters", "colours"]
)
def test_any_name_of_a_file_can_be_told(name: bytes, encoding: str, config: Path) -> None:
    """One that is not UTF-8, or has letters that the terminal lacks or acts on, is escaped in results, faults and help."""
    path = config.rename(config.parent / os.fsdecode(name))
    environ = {**os.environ, "PYTHONIOENCODING": encoding, "DEVWATCH_CONFIG": str(path)}
    for argv, status in (("check",), 0), (("check", "--help"), 0), (("check", f"{path}.old"), 78):
        command = [sys.executable, "-m", "devwatch", *argv]
        done = subprocess.run(command, capture_output=True, check=False, env=environ)
        assert (done.returncode, done.stderr) == (status, b"")
        assert argv == ("check", "--help") or escape(path.name).encode(encoding, "backslashreplace") in done.stdout


def test_a_configuration_can_come_through_a_pipe(tmp_path: Path) -> None:
    """`devwatch check <(helm template ...)`: what a pipe gives is read once."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for text, status in ((GOOD, 0), ("resources: nonsense", 78)):
        Thread(target=pipe.write_text, args=(text,), daemon=True).start()
        with subprocess.Popen([sys.executable, "-m", "devwatch", "check", str(pipe)], stdout=subprocess.PIPE) as check:
            try:
                out, _ = check.communicate(timeout=30)
            finally:
                check.kill()
        assert (check.returncode, out.startswith(str(pipe).encode())) == (status, True)


def test_a_daemon_that_prints_nothing_needs_no_standard_output(config: Path) -> None:
    """It is the API server that is missing, and not a reader of results."""
    argv = f"run --once --listen off --config {config} --kubeconfig /nonexistent --node-name no-output"
    command = ["bash", "-c", f"exec {sys.executable} -m devwatch {argv} >&-"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        told = next((line for line in daemon.stderr if "node.patch_failed" in line), "")
        daemon.terminate()
    assert "there is no kubeconfig /nonexistent" in told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("options", "status"), [((), 0), (("--once",), 1)])
def test_a_signal_ends_the_daemon_while_it_starts(
    options: tuple[str, ...], status: int, number: signal.Signals, tmp_path: Path
) -> None:
    """By its own will: as the first process of a container it would not die of the signal (pid_namespaces(7))."""
    pipe = tmp_path / "config.yaml"
    os.mkfifo(pipe)
    opened: list[TextIO] = []
    opening = Thread(target=lambda: opened.append(pipe.open("w")), daemon=True)
    opening.start()
    argv = ["run", "--dry-run", "--node-name", "n", "--config", str(pipe), *options]
    with subprocess.Popen([sys.executable, "-m", "devwatch", *argv], stdout=subprocess.DEVNULL) as daemon:
        opening.join(timeout=30)
        assert opened, "nobody reads the configuration"
        daemon.send_signal(number)
        assert daemon.wait(timeout=30) == status
    opened[0].close()


@pytest.mark.parametrize(("argv", "status"), [(["check"], 78), (["run", "--node-name", "n", "--config"], 78)])
def test_a_configuration_that_does_not_answer_is_one_line(argv: list[str], status: int, tmp_path: Path) -> None:
    """A pipe that no process writes to is given up, and the line says what to do."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = subprocess.run(
        [sys.executable, "-m", "devwatch", *argv, str(pipe)], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == status
    (line,) = (done.stdout + done.stderr).splitlines()
    assert line.startswith(
        f"{pipe}:1:1: cannot be read: it is not a regular file, and it did not end within 5 s (let the"
    )


def test_int_ends_a_command_that_waits_for_a_file(tmp_path: Path) -> None:
    """With status 130 and without a word."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    opened: list[TextIO] = []
    opening = Thread(target=lambda: opened.append(pipe.open("w")), daemon=True)
    opening.start()
    command = [sys.executable, "-m", "devwatch", "check", str(pipe)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as check:
        opening.join(timeout=30)
        check.send_signal(signal.SIGINT)
        out, _ = check.communicate(timeout=30)
    opened[0].close()
    assert (check.returncode, out) == (130, b"")


def test_int_leaves_nothing_running(tmp_path: Path) -> None:
    """A command that waits for the plugin of a kubeconfig ends with status 130, and the plugin with it."""
    started = tmp_path / "started"
    os.mkfifo(started)
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "sh",
        "args": ["-c", f"exec 3>{started}; sleep 60"],
    }
    kubeconfig = {
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"exec": plugin}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))
    command = [sys.executable, "-m", "devwatch", "status", "--kubeconfig", str(tmp_path / "kubeconfig")]
    writers_gone = select.poll()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as status, started.open() as pipe:
        writers_gone.register(pipe, 0)
        status.send_signal(signal.SIGINT)
        out, _ = status.communicate(timeout=30)
        assert writers_gone.poll(20_000), "the plugin runs on"
    assert (status.returncode, out) == (130, b"")


SCRIPT = """import sys
from devwatch.cli.entry import main
sys.exit(main())
"""
"""What pip makes of the entry point."""
HALTS = {
    "argparse": """import os, signal
os.write({0}, b"!")
while True:
    signal.pause()
""",
    "sitecustomize": """import atexit, os
atexit.register(lambda: (os.write({0}, b"!"), os.read(0, 1)))
""",
}
"""Modules that tell how far the program has come, and let it go no further: in its imports, and at the end of Python."""


@contextlib.contextmanager
def halted(folder: Path, module: str, argv: Sequence[str], **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program that comes as far as a module of `HALTS`."""
    told, telling = os.pipe()
    (folder / f"{module}.py").write_text(HALTS[module].format(telling))
    environ = {**os.environ, "PYTHONPATH": str(folder), **variables}
    command, pipe = [sys.executable, *argv], subprocess.PIPE
    with subprocess.Popen(
        command, env=environ, pass_fds=[telling], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT
    ) as program:
        os.close(telling)
        try:
            assert os.read(told, 1) == b"!"
            yield program
        finally:
            program.kill()
            os.close(told)


@pytest.mark.parametrize("entry", ["script", "module"])
@pytest.mark.parametrize(
    ("line", "number", "status"),
    [
        ("run", signal.SIGTERM, 0),
        ("run", signal.SIGINT, 0),
        ("run --once", signal.SIGTERM, 1),
        ("run --once", signal.SIGINT, 1),
        ("DEVWATCH_ONCE=true run", signal.SIGTERM, 1),
        ("DEVWATCH_ONCE=true run --no-once", signal.SIGTERM, 0),
        ("check", signal.SIGINT, 130),
        ("check", signal.SIGTERM, -signal.SIGTERM),
        ("--help", signal.SIGINT, 130),
    ],
)
def test_a_signal_during_the_imports_ends_the_program_as_later(
    line: str, number: signal.Signals, status: int, entry: str, tmp_path: Path
) -> None:
    """Without a traceback, and the daemon by its own will: as the first process of a container it would not die of TERM."""
    script = tmp_path / "devwatch"
    script.write_text(SCRIPT)
    program = [str(script)] if entry == "script" else ["-m", "devwatch"]
    variables = dict(word.split("=") for word in line.split() if "=" in word)
    argv = [word for word in line.split() if "=" not in word]
    with halted(tmp_path, "argparse", [*program, *argv], **variables) as running:
        if argv[0] == "run":
            running.send_signal(signal.SIGHUP)  # which must not end it
        running.send_signal(number)
        out, _ = running.communicate(timeout=30)
    assert (running.returncode, out) == (status, b"")


def test_a_signal_while_python_ends_changes_no_status(tmp_path: Path) -> None:
    """All is done and written by then."""
    with halted(tmp_path, "sitecustomize", ["-m", "devwatch", "--version"]) as running:
        running.send_signal(signal.SIGTERM)
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(b".", timeout=30)
    assert (running.returncode, out.decode()) == (0, f"devwatch {__version__}\n")


def test_another_program_keeps_its_signals() -> None:
    """One that imports the command line is not ended by it."""
    numbers = "(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)"
    code = f"import signal, devwatch.cli; print([signal.getsignal(n) is signal.default_int_handler for n in {numbers}])"
    done = subprocess.run([sys.executable, "-c", code, "run"], capture_output=True, text=True, check=True)
    assert done.stdout == "[True, False, False]\n"


@pytest.mark.parametrize("limit", [5, 6, 7, 12])
@pytest.mark.parametrize("command", ["check", "devices", "status", "run"])
def test_few_descriptors_are_one_line(command: str, limit: int, config: Path) -> None:
    """Of the limit to raise, or the command does what it should; 5 is the least with which Python itself starts."""
    options = {
        "check": f"{config}",
        "status": "--kubeconfig /nonexistent",
        "run": f"--once --dry-run --node-name few --config {config}",
    }
    script = f"ulimit -n {limit}; exec {sys.executable} -m devwatch {command} {options.get(command, '')}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60)
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("{", "warning: "))]
    assert "Traceback" not in done.stderr
    assert done.returncode in {0, 1}
    assert len(lines) == done.returncode, done.stderr
    assert all("limit" in line or "there is no kubeconfig" in line for line in lines)


def test_a_daemon_leaves_the_signals_as_they_were() -> None:
    """Who calls it from a program of his own has them back, also where it could not start."""
    before = [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)]
    assert main(["run", "--config", "/nonexistent", "--node-name", "n"], {}) == 78
    assert [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)] == before


def test_remarks_that_cannot_be_written_change_no_result(config: Path) -> None:
    """With stderr full or closed the status is what it would have been."""
    for redirection, unbuffered in product(("2>/dev/full", "2>&-"), ("", "1")):
        for argv, status in ((["check", str(config)], 0), (["check", "/nonexistent"], 78), (["nonsense"], 2)):
            command = f"PYTHONUNBUFFERED={unbuffered} {sys.executable} -m devwatch {' '.join(argv)} {redirection}"
            done = subprocess.run(command, shell=True, capture_output=True, check=False)  # noqa: S602 - the shell redirects
            assert done.returncode == status, command


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints name and version."""
    assert main(["--version"], {}) == 0
    assert capsys.readouterr().out == f"devwatch {__version__}\n"


MODULES_OF_COMMANDS = {
    "devwatch.cli.display",
    "devwatch.cli.commands",
    "devwatch.cli.inspection",
    "devwatch.config.catalogue",
    "devwatch.config.jsonschema",
    "devwatch.core.sticks",
    "argcomplete",
    "difflib",
}
MODULES_OF_KUBELETS = {"devwatch.kubelet", "grpclib", "google.protobuf", "h2"}
"""What speaks with a kubelet: 3 to 7 MiB."""
MODULES_OF_CLAIMS = {
    "devwatch.agent.claims",
    "devwatch.agent.drahost",
    "devwatch.agent.resourceslices",
    "devwatch.core.claims",
    "devwatch.kube.slices",
}
WIRED = """
import asyncio, sys
from functools import partial
from pathlib import Path
from devwatch.agent.dra import Dra
from devwatch.agent.daemon import Daemon, Options
from support import virtualtime
from support.fakes import FakeHost, FakeServer, FakeSettings, FakeWorkload, RecordingLog
from support.harness import Harness
from support.objectserver import ObjectServer

async def main():
    config, folder = Path(sys.argv[1]), Path(sys.argv[2])
    options = Options(config=config, node="n", kubelet_dir=folder, device_plugin_dir=folder, cdi_dir=folder)
    daemon = Daemon(options, RecordingLog(), environ={}, out=sys.stdout)
    clock, used = asyncio.get_running_loop().time, daemon._config
    harness = Harness(host=FakeHost(), server=FakeServer(clock), settings=FakeSettings(used), connect=daemon._kubelet)

    def driver(telemetry, clock):
        daemon._telemetry, daemon._clock = telemetry, clock
        return Dra(partial(daemon._dra, ObjectServer(clock=clock.now)), recorded=options.claims.exists)

    harness.dra = driver
    running = asyncio.create_task(harness.reconciler(used, workload=FakeWorkload(clock)).run())
    await asyncio.sleep(60)
    assert not running.done(), running
    print(*sorted(sys.modules))

virtualtime.run(main)
"""
"""A daemon with the API of a kubelet, and the driver, that `run` gives it."""


def test_the_daemon_loads_nothing_that_only_a_command_needs(config: Path) -> None:
    """`run` costs no memory for tables, completions or suggestions."""
    code = "import sys; from devwatch.cli import main; main(sys.argv[1:]); print(*sorted(sys.modules))"
    argv = ["run", "--once", "--dry-run", "--config", str(config)]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "devwatch.agent.reconciler" in loaded
    assert loaded & (MODULES_OF_COMMANDS | MODULES_OF_KUBELETS | MODULES_OF_CLAIMS) == set()


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("nodeStatus", set()),
        ("devicePlugin", MODULES_OF_KUBELETS),
        ("dra", MODULES_OF_KUBELETS | MODULES_OF_CLAIMS),
    ],
)
def test_the_daemon_loads_what_speaks_with_a_kubelet_where_a_resource_needs_it(
    way: str, expected: set[str], config: Path
) -> None:
    """And only there, although it would know how to."""
    config.write_text(GOOD.rstrip().removesuffix("}") + f", publish: {way}}}\n")
    command = [sys.executable, "-c", WIRED, str(config), str(config.parent)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & (MODULES_OF_KUBELETS | MODULES_OF_CLAIMS) == expected
