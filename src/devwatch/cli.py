"""The command line: options, their environment variables, exit statuses. Each command is a few lines over the floors below."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from devwatch import __version__
from devwatch.errors import ConfigError, DevwatchError, Unavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from devwatch.commands import Scene
    from devwatch.kube import Connection

    _Commands = argparse._SubParsersAction["_Parser"]  # noqa: SLF001 - argparse has no other name for it

DEFAULT_CONFIG = "/etc/devwatch/config.yaml"
DEFAULT_LISTEN = "127.0.0.1:28796"
DONE, FAILED, USAGE, CONFIGURATION, INTERRUPTED = 0, 1, 2, 78, 130
"""Exit statuses; 78 is EX_CONFIG of sysexits.h, on which systemd does not restart."""

_TOP_EXAMPLES = """\
examples:
  devwatch devices                       which sticks are here, and who claims them
  devwatch devices --suggest > my.yaml   a configuration for them
  devwatch check my.yaml                 is it valid?
  devwatch explain /dev/ttyUSB0          why is this one (not) claimed?
  devwatch run --config my.yaml --dry-run

Every option has an environment variable: --node-name is DEVWATCH_NODE_NAME. The command line wins.
Exit status: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration."""
_RUN_EXAMPLES = """\
examples:
  devwatch run --dry-run                 print what would be sent; contact nobody
  devwatch run --dry-run=server          ask the API server whether it would accept it
  devwatch run --once                    advertise what is here now, and end
  devwatch run --node-name nuc-1 --kubeconfig /etc/devwatch/kubeconfig"""
_DEVICES_EXAMPLES = """\
examples:
  devwatch devices -o wide               with driver, port and all links
  devwatch devices -o json | jq -r '.devices[] | select(.resource == null) | .devnode'
  devwatch devices --suggest             a configuration for what nothing claims yet"""
_EXPLAIN_EXAMPLES = """\
examples:
  devwatch explain /dev/ttyUSB0
  devwatch explain /dev/serial/by-id/usb-FTDI_FT232R_USB_UART_A50285BI-if00-port0
  devwatch explain /sys/bus/usb/devices/1-1.4"""
_CHECK_EXAMPLES = """\
examples:
  devwatch check my.yaml
  devwatch check -o json my.yaml | jq .faults"""
_STATUS_EXAMPLES = """\
examples:
  devwatch status                        every resource: counts, pods, devices
  devwatch status -o wide                with links, and when it last changed
  devwatch status -o json | jq '.resources[] | select(.warnings != [])'"""
_PURGE_EXAMPLES = """\
examples:
  devwatch purge --dry-run               what would be removed from this node?
  devwatch purge --node nuc-1            after the daemon there was stopped
  devwatch purge --all-nodes --yes       after all daemons were stopped"""
_COMPLETION_EXAMPLES = """\
examples:
  devwatch completion bash > /etc/bash_completion.d/devwatch
  devwatch completion zsh > "${fpath[1]}/_devwatch"
  devwatch completion fish > ~/.config/fish/completions/devwatch.fish"""


_TRUE, _FALSE = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no"})
_CREDENTIALS = "credentials (default: KUBECONFIG, in-cluster, ~/.kube/config)"


class _Parser(argparse.ArgumentParser):
    """A parser that raises instead of exiting, so that all errors look alike."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run a command and return the exit status: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration."""
    try:
        status = _main(argv, os.environ if environ is None else environ)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:  # the results cannot be written; every other one stops at its edge
        return _lost_results(error)
    return status


def _lost_results(error: OSError) -> int:
    """Give up: quietly where nobody reads the results any more. The interpreter must not try again at its end."""
    if not isinstance(error, BrokenPipeError):
        _complain(f"cannot write the results: {error.strerror or error}")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return FAILED


def _complain(text: str) -> None:
    _say(f"devwatch: {text}")


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            # What a server answers must not act on the terminal.
            print(
                "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text), file=sys.stderr, flush=True
            )


def _main(argv: Sequence[str] | None, environ: Mapping[str, str]) -> int:
    try:
        parser = _parser(environ)
        if "_ARGCOMPLETE" in environ:
            import argcomplete  # noqa: PLC0415 - the shell asks for completions, nothing else runs

            argcomplete.autocomplete(parser)
        options = parser.parse_args(argv)
        for name, value, message in getattr(options, "wrong", ()):
            if getattr(options, name) == value:
                raise UsageError(message)
        command: Callable[[argparse.Namespace, Mapping[str, str]], int] = options.command
        return command(options, environ)
    except ConfigError as error:
        for fault in error.faults:
            _say(fault.render(error.file))
        return CONFIGURATION
    except SystemExit as ended:  # --help and --version have written their text
        return int(ended.code or DONE)
    except DevwatchError as error:
        _complain(" ".join(str(error).split()))
        return USAGE if isinstance(error, UsageError) else FAILED


# -- options


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="devwatch",
        description="Advertises the USB serial sticks of a node as Kubernetes extended resources, and follows them as they come and go.",
        epilog=_TOP_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"devwatch {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for add in (_add_run, _add_devices, _add_explain, _add_check, _add_status, _add_purge, _add_completion):
        add(commands, environ)
    return parser


def _command(commands: _Commands, name: str, summary: str, description: str, examples: str) -> _Parser:
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_run(commands: _Commands, environ: Mapping[str, str]) -> None:
    description = "Watches the devices of this host and keeps the status of its Node in step."
    parser = _command(commands, "run", "the daemon: watch the devices, patch the Node", description, _RUN_EXAMPLES)
    option = _Options(parser, environ)
    _add_scene(option)
    option("--kubeconfig", metavar="FILE", help=_CREDENTIALS)
    option(
        "--dry-run",
        choices=("client", "server"),
        nargs="?",
        const="client",
        help="print each patch as JSON, store nothing",
    )
    option.flag("--once", help="end when the Node shows what is present; status 1 if it does not within 30 s")
    option(
        "--listen", metavar="HOST:PORT", help=f"metrics and health, or off (default: {DEFAULT_LISTEN}; with --once off)"
    )
    option(
        "--log-format",
        choices=("auto", "console", "json"),
        default="auto",
        help="auto is console on a terminal, else json",
    )
    option(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="the least level to write"
    )
    parser.set_defaults(command=_run)


def _add_devices(commands: _Commands, environ: Mapping[str, str]) -> None:
    description = "Lists the serial devices of this host, what can be matched on them, and which resource claims each."
    parser = _command(commands, "devices", "the devices here, and who claims them", description, _DEVICES_EXAMPLES)
    option = _Options(parser, environ)
    _add_scene(option)
    option.flag("--all", help="with virtual consoles")
    option.flag("--suggest", help="print a configuration for what nothing claims yet")
    option("--output", "-o", choices=("table", "wide", "json", "yaml"), default="table", help="how to show them")
    parser.set_defaults(command=_devices)


def _add_explain(commands: _Commands, environ: Mapping[str, str]) -> None:
    description = (
        "Tells rule by rule and key by key why a device is claimed or not, and what this host keeps from view."
    )
    parser = _command(commands, "explain", "why is a device claimed, or not?", description, _EXPLAIN_EXAMPLES)
    _add_scene(_Options(parser, environ))
    parser.add_argument("device", metavar="DEVNODE", help="a devnode, a link to one, or a path in /sys")
    parser.set_defaults(command=_explain)


def _add_check(commands: _Commands, environ: Mapping[str, str]) -> None:
    description = "Validates a configuration: prints every fault as FILE:LINE:COLUMN: KEY: MESSAGE, or a summary."
    parser = _command(commands, "check", "is a configuration valid?", description, _CHECK_EXAMPLES)
    default = environ.get("DEVWATCH_CONFIG") or DEFAULT_CONFIG
    parser.add_argument(
        "file", metavar="FILE", nargs="?", default=default, help="default: %(default)s [DEVWATCH_CONFIG]"
    )
    _Options(parser, environ)("--output", "-o", choices=("text", "json"), default="text", help="how to show the faults")
    parser.set_defaults(command=_check)


def _add_status(commands: _Commands, environ: Mapping[str, str]) -> None:
    description = "Shows for the whole cluster what is advertised, which pods ask for it, and the devices behind it."
    parser = _command(commands, "status", "the cluster: counts, pods, devices", description, _STATUS_EXAMPLES)
    option = _Options(parser, environ)
    option("--kubeconfig", metavar="FILE", help=_CREDENTIALS)
    option("--output", "-o", choices=("table", "wide", "json", "yaml"), default="table", help="how to show it")
    parser.set_defaults(command=_status)


def _add_purge(commands: _Commands, environ: Mapping[str, str]) -> None:
    description = (
        "Removes what devwatch advertised, as the Node's own annotation lists it, from this node, another or all."
    )
    parser = _command(commands, "purge", "remove what devwatch advertised", description, _PURGE_EXAMPLES)
    option = _Options(parser, environ)
    option("--kubeconfig", metavar="FILE", help=_CREDENTIALS)
    option("--node", metavar="NAME", help="the Node (default: NODE_NAME, else the host name)")
    option.flag("--all-nodes", help="all Nodes of the cluster; asks first on a terminal")
    option(
        "--dry-run", choices=("client", "server"), nargs="?", const="client", help="show the difference, remove nothing"
    )
    option.flag("--yes", help="do not ask")
    parser.set_defaults(command=_purge)


def _add_completion(commands: _Commands, _environ: Mapping[str, str]) -> None:
    description = "Prints the completion script of a shell."
    parser = _command(commands, "completion", "completion for a shell", description, _COMPLETION_EXAMPLES)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(command=_completion)


def _add_scene(option: _Options) -> None:
    option("--config", metavar="FILE", help=f"the configuration (default: {DEFAULT_CONFIG})")
    option("--node-name", metavar="NAME", help="the name of this Node (default: NODE_NAME, else the host name)")


class _Options:
    """Adds options that an environment variable can set; the command line wins."""

    def __init__(self, parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
        self._parser, self._environ = parser, environ
        self._wrong: list[tuple[str, object, str]] = []

    def __call__(self, name: str, *short: str, help: str, **settings: object) -> None:  # noqa: A002 - the word of argparse
        variable = self._variable(name)
        shown = f" (default: {settings['default']})" if "default" in settings else ""
        if value := self._environ.get(variable):
            self._take(name, variable, value, settings)
        text = f"{help}{shown} [{variable}]".replace("%", "%%")
        self._parser.add_argument(*short, name, help=text, **settings)  # type: ignore[arg-type]  # typed per setting there

    def flag(self, name: str, *, help: str) -> None:  # noqa: A002 - the word of argparse
        variable = self._variable(name)
        value = self._environ.get(variable, "").lower()
        if value not in {"", *_TRUE, *_FALSE}:
            self._refuse(name, value=False, message=f"{variable}={value!r} is neither true nor false")
        given = value in _TRUE
        self._parser.add_argument(
            name, action=argparse.BooleanOptionalAction, default=given, help=f"{help} [{variable}]"
        )

    def _take(self, name: str, variable: str, value: str, settings: dict[str, object]) -> None:
        """Let a variable stand for an option that is not given."""
        choices = settings.get("choices")
        if settings.get("nargs") == "?" and value.lower() in {*_TRUE, *_FALSE}:
            settings["default"] = settings["const"] if value.lower() in _TRUE else None
            return
        settings["default"] = value
        if isinstance(choices, tuple) and value not in choices:
            if name == "--output":
                settings["default"] = choices[0]  # the form of another command
            else:
                self._refuse(name, value=value, message=f"{variable}={value!r} is none of {', '.join(choices)}")

    def _refuse(self, name: str, *, value: object, message: str) -> None:
        """Complain if this is the command that runs and the command line has no better value."""
        self._wrong.append((name.removeprefix("--").replace("-", "_"), value, message))
        self._parser.set_defaults(wrong=self._wrong)

    @staticmethod
    def _variable(name: str) -> str:
        return "DEVWATCH_" + name.removeprefix("--").replace("-", "_").upper()


# -- commands


def _run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the daemon takes it: a reload at the start must not end it
    from devwatch import daemon, host, logs, telemetry  # noqa: PLC0415 - other commands do not need them

    try:
        listen = telemetry.parse_listen(arguments.listen or ("off" if arguments.once else DEFAULT_LISTEN))
    except ValueError as error:
        raise UsageError(f"--listen: {error}") from error
    options = daemon.Options(
        config=Path(arguments.config or DEFAULT_CONFIG),
        node=host.node_name(arguments.node_name, environ),
        kubeconfig=arguments.kubeconfig,
        dry_run=arguments.dry_run,
        once=arguments.once,
        listen=listen,
        listen_named=arguments.listen is not None,
    )
    log = logs.configure(arguments.log_format, arguments.log_level, sys.stderr, environ=environ)
    return asyncio.run(daemon.Daemon(options, log, environ=environ, out=_stdout()).run())


def _stdout() -> TextIO:
    """Return where results go. Raises `Unavailable` where the descriptor was closed at the start."""
    if sys.stdout is None:
        raise Unavailable("standard output is closed: nobody can read the results")
    return sys.stdout


def _scene(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Scene:
    from devwatch.commands import Scene  # noqa: PLC0415 - the daemon does not need it
    from devwatch.host import node_name  # noqa: PLC0415 - as above

    given = arguments.config is not None
    return Scene.see(
        Path(arguments.config or DEFAULT_CONFIG), given=given, node=lambda: node_name(arguments.node_name, environ)
    )


def _devices(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from devwatch import commands, display  # noqa: PLC0415 - the daemon does not need them

    scene = _scene(arguments, environ)
    screen, remarks = display.Screen.of(_stdout(), environ), display.Screen.of(display.Unfailing(sys.stderr), environ)
    if arguments.suggest:
        return commands.suggest(scene, screen, remarks)
    return commands.devices(scene, screen, remarks, form=arguments.output, consoles=arguments.all)


def _explain(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from devwatch import commands, display  # noqa: PLC0415 - the daemon does not need them

    return commands.explain(_scene(arguments, environ), display.Screen.of(_stdout(), environ), arguments.device)


def _check(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from devwatch import commands, display  # noqa: PLC0415 - the daemon does not need them

    return commands.check(Path(arguments.file), display.Screen.of(_stdout(), environ), form=arguments.output)


def _connection(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Connection:
    from devwatch.kube import Connection, Credentials  # noqa: PLC0415 - 20 MiB that other commands do not need

    return Connection(Credentials(kubeconfig=arguments.kubeconfig, environ=environ), version=__version__)


def _status(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from devwatch import admin, display  # noqa: PLC0415 - the daemon does not need them

    screen, remarks = display.Screen.of(_stdout(), environ), display.Screen.of(display.Unfailing(sys.stderr), environ)
    connection = _connection(arguments, environ)
    return admin.run(connection, admin.status(connection, screen, remarks, form=arguments.output))


def _purge(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from devwatch import admin, display, host  # noqa: PLC0415 - the daemon does not need them

    named = arguments.node != environ.get("DEVWATCH_NODE")
    if arguments.all_nodes and arguments.node and named:
        raise UsageError("--all-nodes and --node contradict each other")
    node = None if arguments.all_nodes else host.node_name(arguments.node or environ.get("DEVWATCH_NODE_NAME"), environ)
    ask = sys.stdin is not None and sys.stdin.isatty() and not arguments.yes
    task = admin.Purge(node=node, dry_run=arguments.dry_run, confirmed=_confirmed if ask else lambda _count: True)
    connection = _connection(arguments, environ)
    return admin.run(connection, admin.purge(connection, display.Screen.of(_stdout(), environ), task))


def _confirmed(count: int) -> bool:
    try:
        return input(f"Remove all this from {count} nodes? [y/N] ").strip().lower() in {"y", "yes"}
    except EOFError:
        return False


def _completion(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from devwatch import commands, display  # noqa: PLC0415 - the daemon does not need them

    return commands.completion(display.Screen.of(_stdout(), environ), arguments.shell)
