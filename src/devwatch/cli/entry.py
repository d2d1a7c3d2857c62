"""The command line: commands, options, their environment variables, and exit statuses."""

from __future__ import annotations

from devwatch.cli import early

# isort: split
import argparse
import asyncio
import contextlib
import errno
import io
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from devwatch import __version__
from devwatch.core import exitstatus
from devwatch.core.errors import ConfigError, DevwatchError, OutputLost, Unavailable, UsageError
from devwatch.core.names import subsystem_fault
from devwatch.core.text import escape
from devwatch.observe.output import BestEffortStream, OutputError, ResultStream, mute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from devwatch.cli.commands import Scene
    from devwatch.cli.display import Screen
    from devwatch.kube.client import Connection

    _Commands = argparse._SubParsersAction["_Parser"]  # noqa: SLF001 - argparse has no public name for it
    _Command = Callable[[argparse.Namespace, Mapping[str, str]], int]

DEFAULT_CONFIG = "/etc/devwatch/config.yaml"
DEFAULT_LISTEN = "127.0.0.1:28796"
KUBELET_DIR = "/var/lib/kubelet"
DEVICE_PLUGIN_DIR = "/var/lib/kubelet/device-plugins"
"""A constant of the kubelet (`DevicePluginPath` of the device plugin API), whatever its root."""

_TOP_EXAMPLES = f"""\
examples:
  devwatch devices                       which sticks are here, and which resource claims each
  devwatch devices --suggest > my.yaml   a configuration for them
  devwatch check my.yaml                 is it valid?
  devwatch explain /dev/ttyUSB0          why is this one (not) claimed?
  devwatch run --config my.yaml --dry-run

Every option has an environment variable: --node-name is DEVWATCH_NODE_NAME. The command line wins.
{exitstatus.SUMMARY}"""
_RUN_HELP = """\
the daemon: watch the devices, patch the Node
Watches the devices of this host and keeps the status of its Node in step.
examples:
  devwatch run --dry-run                 print what would be sent; contact no server
  devwatch run --dry-run=server          ask the API server whether it would accept it
  devwatch run --once                    advertise what is here now, and end (publish: nodeStatus only)
  devwatch run --node-name nuc-1 --kubeconfig /etc/devwatch/kubeconfig"""
_DEVICES_HELP = """\
the devices here, and the resource that claims each
Lists the serial devices of this host, what can be matched on them, and which resource claims each.
examples:
  devwatch devices -o wide               with driver, port and all links
  devwatch devices -o json | jq -r '.devices[] | select(.resource == null) | .devnode'
  devwatch devices --suggest             a configuration for the devices that no resource claims
  devwatch devices --suggest --pod       and what a Pod needs for each of them
  devwatch devices --subsystem usb       whole USB devices instead of serial ones"""
_EXPLAIN_HELP = """\
why is a device claimed, or not?
Explains rule by rule and key by key why a device is claimed or not, and what is unknown on this host.
examples:
  devwatch explain /dev/ttyUSB0
  devwatch explain /dev/serial/by-id/usb-FTDI_FT232R_USB_UART_AB0K1ZQ7-if00-port0
  devwatch explain /sys/bus/usb/devices/1-1.4"""
_CHECK_HELP = """\
is a configuration valid?
Validates a configuration: prints every fault as FILE:LINE:COLUMN: KEY: MESSAGE, or a summary.
examples:
  devwatch check my.yaml
  devwatch check -o json my.yaml | jq .faults"""
_SCHEMA_HELP = """\
the JSON Schema of the configuration
Prints the JSON Schema (2020-12) of the configuration, by which an editor completes and checks it. `check` finds more.
examples:
  devwatch schema > devwatch.schema.json
  devwatch schema | jq -r '."$defs".resource.properties.removalGrace.description'"""
_DEVICECLASSES_HELP = """\
the DeviceClasses for dynamic resource allocation
Prints the DeviceClass of each resource with `publish: dra`, of all nodes. devwatch itself neither writes nor deletes any.
examples:
  devwatch deviceclasses | kubectl apply -f -
  devwatch deviceclasses | kubectl delete -f -   after the last Pod and claim is gone"""
_STATUS_HELP = """\
the cluster: counts, pods, devices
Shows for the whole cluster what is advertised and how, which pods request or hold it, and the devices behind it.
examples:
  devwatch status                        every resource: counts, pods, devices
  devwatch status -o wide                with links, and when it last changed
  devwatch status -o json | jq '.resources[] | select(.warnings != [])'
  devwatch status -o json | jq '.resources[].devices[] | select(.holders == [])'"""
_PURGE_HELP = """\
remove what devwatch advertised
Removes what devwatch advertised (counts, annotation, slices); on this host also its sockets, links and CDI files. Asks first.
examples:
  devwatch purge --dry-run               what would be removed from this node?
  devwatch purge --node nuc-1            after the daemon there was stopped
  devwatch purge --all-nodes --yes       after all daemons were stopped"""
_COMPLETION_HELP = """\
completion for a shell
Prints the completion script of a shell.
examples:
  devwatch completion bash > /etc/bash_completion.d/devwatch
  devwatch completion zsh > "${fpath[1]}/_devwatch"
  devwatch completion fish > ~/.config/fish/completions/devwatch.fish"""


_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no")
_FORMS, _FORMS_OF_CHECK = ("table", "wide", "json", "yaml"), ("text", "json")


class _Parser(argparse.ArgumentParser):
    """A parser that raises instead of exiting, so that all errors are printed in the same way."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run a command and return its exit status."""
    try:
        return _run_command(argv, os.environ if environ is None else environ)
    except KeyboardInterrupt:
        return exitstatus.INTERRUPTED
    finally:
        early.settle()


def _run_command(argv: Sequence[str] | None, environ: Mapping[str, str]) -> int:
    """Run a command and return its status. Errors of the system, and shortages of memory, become one line on stderr."""
    _escape_unencodable()
    status, shortage = exitstatus.FAILED, ""
    try:
        status = _main(argv, environ)
        if sys.stdout is not None:
            ResultStream(sys.stdout).flush()
    except OutputError as error:
        return _give_up_output(error.reason)
    except OSError as error:  # the edges handle these; one that they missed still gets no traceback
        _print_error(_system_error(error))
        return exitstatus.FAILED
    except (MemoryError, SystemError):  # SystemError: an import without enough memory may raise it
        shortage = "out of memory: raise the limit (ulimit -v)"
    except ImportError as error:
        shortage = f"a part of the program cannot be loaded: {error}: raise the limit of memory (ulimit -v), or install it again"
    finally:
        _flush_stderr()
    if shortage:  # printed only after the exception, and all the memory that it references, is freed
        _print_error(shortage)
    return status


def _system_error(error: OSError) -> str:
    """Describe an error of the system, with the cure where files are exhausted."""
    text = f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror or error}"
    shortage = error.errno in {errno.EMFILE, errno.ENFILE}
    return f"{text}: raise the limit of open files (ulimit -n, LimitNOFILE)" if shortage else text


def _escape_unencodable() -> None:
    """Let stdout and stderr write any text: file names need not be UTF-8, and a locale may lack characters."""
    if isinstance(sys.stdout, io.TextIOWrapper) and isinstance(sys.stdout.buffer, io.RawIOBase):
        # PYTHONUNBUFFERED: an unbuffered stream silently drops the part that a partial write leaves.
        sys.stdout = open(sys.stdout.fileno(), "w", encoding=sys.stdout.encoding, closefd=False)  # noqa: SIM115 - it stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _give_up_output(error: OSError) -> int:
    """Report that standard output cannot be written to, but silently where its reader has left, as `head` does."""
    if not isinstance(error, BrokenPipeError):
        _print_error(f"cannot write the results: {error.strerror or error}")
    mute(1)
    return exitstatus.FAILED


def _flush_stderr() -> None:
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        mute(2)


def _print_error(text: str) -> None:
    _print_to_stderr(f"devwatch: {text}")


def _print_to_stderr(*texts: str) -> None:
    """Write lines to stderr, escaped, since a server's text must not control the terminal, and without waiting for a reader forever."""
    BestEffortStream(sys.stderr).deliver("".join(f"{escape(text)}\n" for text in texts))


def _main(argv: Sequence[str] | None, environ: Mapping[str, str]) -> int:
    try:
        parser = _parser(environ)
        if "_ARGCOMPLETE" in environ:
            import argcomplete  # noqa: PLC0415 - only for completion

            argcomplete.autocomplete(parser)
        options = parser.parse_args(argv)
        options.complete(options)
        command: _Command = options.command
        if command is not _run:  # `_run` handles the signals itself
            early.release()
        return command(options, environ)
    except ConfigError as error:
        _print_to_stderr(*(fault.render(error.file) for fault in error.faults))
        return error.exit_status
    except SystemExit as ended:  # --help and --version have written their text
        return int(ended.code or exitstatus.DONE)
    except DevwatchError as error:
        _print_error(" ".join(str(error).split()))
        if isinstance(error, OutputLost):
            mute(1)
        return error.exit_status


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
    for add in (
        _add_run,
        _add_devices,
        _add_explain,
        _add_check,
        _add_schema,
        _add_deviceclasses,
        _add_status,
        _add_purge,
        _add_completion,
    ):
        add(commands, environ)
    return parser


def _command(commands: _Commands, environ: Mapping[str, str], name: str, run: _Command, text: str) -> _Options:
    """Add a command and return what adds its options. The lines of `text` are the summary, the description, and the examples."""
    summary, description, examples = text.split("\n", 2)
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=run)
    return _Options(parser, environ)


def _add_run(commands: _Commands, environ: Mapping[str, str]) -> None:
    option = _command(commands, environ, "run", _run, _RUN_HELP)
    _add_config_options(option)
    _add_kubeconfig_option(option)
    left_out = "resources that are not nodeStatus are left out"
    _add_dry_run_option(
        option,
        f"print each patch, for a person in words and else as JSON, and store nothing; the kubelet is left alone; with --once {left_out}",
    )
    _add_kubelet_dir_options(option)
    once = f"end when the Node shows what is present, status 1 if it does not within 30 s; {left_out}"
    option.flag("--once", help=once)
    listen = f"metrics and health, or off (default: {DEFAULT_LISTEN}; with --once off)"
    option("--listen", metavar="HOST:PORT", help=listen)
    formats = ("auto", "console", "json")
    option("--log-format", choices=formats, default="auto", help="auto is console on a terminal, else json")
    levels = ("debug", "info", "warning", "error")
    option("--log-level", choices=levels, default="info", help="the lowest level to log")


def _add_devices(commands: _Commands, environ: Mapping[str, str]) -> None:
    option = _command(commands, environ, "devices", _devices, _DEVICES_HELP)
    _add_config_options(option)
    option.flag("--all", help="with virtual consoles, and with USB hubs where USB devices are shown")
    shown = "the devices of this udev subsystem alone, such as usb; default: tty, and those of the configuration"
    option("--subsystem", metavar="NAME", help=shown)
    option.flag("--suggest", help="print a configuration for the devices that no resource claims")
    option.flag("--pod", help="with --suggest: also print, as further YAML documents, what a Pod needs for each")
    _add_output_option(option, _FORMS, "how to show them")


def _add_explain(commands: _Commands, environ: Mapping[str, str]) -> None:
    option = _command(commands, environ, "explain", _explain, _EXPLAIN_HELP)
    _add_config_options(option)
    option.parser.add_argument("device", metavar="DEVNODE", help="a devnode, a link to one, or a path in /sys")


def _add_check(commands: _Commands, environ: Mapping[str, str]) -> None:
    option = _command(commands, environ, "check", _check, _CHECK_HELP)
    default, shown = environ.get("DEVWATCH_CONFIG") or DEFAULT_CONFIG, "default: %(default)s [DEVWATCH_CONFIG]"
    option.parser.add_argument("file", metavar="FILE", nargs="?", default=default, help=shown)
    _add_output_option(option, _FORMS_OF_CHECK, "how to show the faults")


def _add_schema(commands: _Commands, environ: Mapping[str, str]) -> None:
    _command(commands, environ, "schema", _schema, _SCHEMA_HELP)


def _add_deviceclasses(commands: _Commands, environ: Mapping[str, str]) -> None:
    option = _command(commands, environ, "deviceclasses", _deviceclasses, _DEVICECLASSES_HELP)
    option("--config", metavar="FILE", default=DEFAULT_CONFIG, help="the configuration")


def _add_status(commands: _Commands, environ: Mapping[str, str]) -> None:
    option = _command(commands, environ, "status", _status, _STATUS_HELP)
    _add_kubeconfig_option(option)
    _add_output_option(option, _FORMS, "how to show it")


def _add_purge(commands: _Commands, environ: Mapping[str, str]) -> None:
    option = _command(commands, environ, "purge", _purge, _PURGE_HELP)
    _add_kubeconfig_option(option)
    option("--node", metavar="NAME", help="the Node (default: NODE_NAME, else the host name)")
    option.flag("--all-nodes", help="all Nodes of the cluster")
    _add_dry_run_option(option, "show the difference, remove nothing")
    _add_kubelet_dir_options(option)
    option.flag("--yes", help="do not ask; needed where there is no terminal")


def _add_completion(commands: _Commands, environ: Mapping[str, str]) -> None:
    option = _command(commands, environ, "completion", _completion, _COMPLETION_HELP)
    option.parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def _add_config_options(option: _Options) -> None:
    option("--config", metavar="FILE", help=f"the configuration (default: {DEFAULT_CONFIG})")
    option("--node-name", metavar="NAME", help="the name of this Node (default: NODE_NAME, else the host name)")


def _add_kubeconfig_option(option: _Options) -> None:
    option("--kubeconfig", metavar="FILE", help="credentials (default: KUBECONFIG, in-cluster, ~/.kube/config)")


def _add_dry_run_option(option: _Options, effect: str) -> None:
    option("--dry-run", choices=("client", "server"), const="client", help=effect)


def _add_kubelet_dir_options(option: _Options) -> None:
    root = "the kubelet's root, with pod-resources, plugins and plugins_registry"
    option("--kubelet-dir", metavar="DIR", default=KUBELET_DIR, help=root)
    plugins = "where the kubelet accepts device plugins, whatever its root"
    option("--device-plugin-dir", metavar="DIR", default=DEVICE_PLUGIN_DIR, help=plugins)


def _add_output_option(option: _Options, forms: tuple[str, ...], effect: str) -> None:
    option("--output", "-o", choices=forms, default=forms[0], help=effect)


class _Options:
    """Adds options that an environment variable can set; the command line wins.

    The parser itself has no defaults. So it returns only what the command line gives, and a wrong variable is an error only where it
    is used.
    """

    def __init__(self, parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
        self.parser, self._environ = parser, environ
        self._otherwise: dict[str, Callable[[], object]] = {}
        parser.set_defaults(complete=self._complete)

    def __call__(  # noqa: PLR0913 - the keywords of argparse
        self,
        name: str,
        *short: str,
        help: str,  # noqa: A002 - as above
        default: str | None = None,
        choices: tuple[str, ...] = (),
        const: str | None = None,
        metavar: str | None = None,
    ) -> None:
        shown = f" (default: {default})" if default else ""
        self.parser.add_argument(
            *short,
            name,
            help=f"{help}{shown} [{_variable(name)}]".replace("%", "%%"),
            default=argparse.SUPPRESS,
            choices=choices or None,
            const=const,
            nargs="?" if const else None,
            metavar=metavar,
        )
        self._otherwise[_field(name)] = lambda: self._value(name, default, choices, const)

    def flag(self, name: str, *, help: str) -> None:  # noqa: A002 - the keyword of argparse
        text = f"{help} [{_variable(name)}]"
        self.parser.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        self._otherwise[_field(name)] = lambda: self._switch(name)

    def _complete(self, given: argparse.Namespace) -> None:
        """Fill in the options that the command line does not give, from variables and defaults; `named` are those that it gives.

        Raises `UsageError` for an invalid variable.
        """
        given.named = frozenset(vars(given))
        for field, value in self._otherwise.items():
            if field not in given.named:
                setattr(given, field, value())

    def _value(self, name: str, default: str | None, choices: tuple[str, ...], const: str | None) -> str | None:
        """Return the value of an option from its variable, else its default."""
        value = self._environ.get(_variable(name))
        if not value:
            return default
        if not choices or value in choices:
            return value
        if const and value.lower() in {*_TRUE, *_FALSE}:
            return const if value.lower() in _TRUE else None
        if name == "--output" and value in {*_FORMS, *_FORMS_OF_CHECK}:
            return default  # a form that only another command has
        allowed = (*choices, *_TRUE, *_FALSE) if const else choices
        raise UsageError(f"{_variable(name)}={value!r} is not one of {', '.join(allowed)}")

    def _switch(self, name: str) -> bool:
        """Return the value of a flag from its variable, else False."""
        value = self._environ.get(_variable(name), "")
        if value.lower() not in {"", *_TRUE, *_FALSE}:
            allowed = f"neither true ({', '.join(_TRUE)}) nor false ({', '.join(_FALSE)})"
            raise UsageError(f"{_variable(name)}={value!r} is {allowed}")
        return value.lower() in _TRUE


def _field(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


def _variable(name: str) -> str:
    return f"DEVWATCH_{_field(name).upper()}"


# -- commands


def _run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    with _startup_signals(exitstatus.FAILED if arguments.once else exitstatus.DONE):
        return _run_daemon(arguments, environ)


@contextlib.contextmanager
def _startup_signals(status: int) -> Iterator[None]:
    """Handle signals until the daemon does: a HUP must not end it, and PID 1 does not receive a TERM without a handler (pid_namespaces(7)).

    `early` handles INT already.
    """
    reload = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    end = signal.signal(signal.SIGTERM, lambda *_: os._exit(status))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, reload)
        signal.signal(signal.SIGTERM, end)


def _run_daemon(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from devwatch.host.memory import return_freed_memory  # noqa: PLC0415 - other commands do not need it

    return_freed_memory()
    from devwatch.agent import daemon  # noqa: PLC0415 - other commands do not need them
    from devwatch.config import resolver  # noqa: PLC0415 - as above
    from devwatch.host.snapshot import node_name  # noqa: PLC0415 - as above
    from devwatch.observe import logs  # noqa: PLC0415 - other commands do not need them

    options = daemon.Options(
        config=Path(arguments.config or DEFAULT_CONFIG),
        node=node_name(arguments.node_name, environ),
        kubeconfig=arguments.kubeconfig,
        dry_run=arguments.dry_run,
        once=arguments.once,
        listen=_listen_address(arguments.listen or ("off" if arguments.once else DEFAULT_LISTEN)),
        listen_named=arguments.listen is not None,
        kubelet_dir=Path(arguments.kubelet_dir),
        device_plugin_dir=Path(arguments.device_plugin_dir),
    )
    log = logs.configure(arguments.log_format, arguments.log_level, sys.stderr, environ=environ)
    out = _stdout() if arguments.dry_run else io.StringIO()  # only a dry run prints results
    devwatch = daemon.Daemon(options, log, environ=environ, out=out)
    with asyncio.Runner(loop_factory=resolver.new_loop) as runner:
        return runner.run(devwatch.run())


def _listen_address(text: str) -> tuple[str, int] | None:
    """Return host and port to listen on, None for `off`. Raises `UsageError`, also for a host that is not a valid name."""
    from devwatch.observe.server import parse_listen  # noqa: PLC0415 - other commands do not need it

    try:
        address = parse_listen(text)
    except ValueError as error:
        raise UsageError(f"--listen: {error}") from error
    try:
        (address[0] if address else "").encode("idna")  # as the socket module does
    except LookupError as error:  # Python imports an encoding when it is first used
        raise MemoryError from error
    except UnicodeError as error:
        raise UsageError(
            f"--listen: {text!r} is not an address to listen on (its host is not a valid DNS name)"
        ) from error
    return address


def _stdout() -> TextIO:
    """Return standard output. Raises `Unavailable` where the process was started with its descriptor closed."""
    if sys.stdout is None:
        raise Unavailable("standard output is closed: the results cannot be written")
    return sys.stdout


def _scene(
    arguments: argparse.Namespace, environ: Mapping[str, str], *, only: str = "", path: str | None = None
) -> Scene:
    from devwatch.cli.commands import Scene  # noqa: PLC0415 - the daemon does not need it
    from devwatch.host.snapshot import node_name  # noqa: PLC0415 - as above

    given = arguments.config is not None
    file = Path(arguments.config or DEFAULT_CONFIG)
    return Scene.see(file, given=given, node=lambda: node_name(arguments.node_name, environ), only=only, path=path)


def _screens(environ: Mapping[str, str]) -> tuple[Screen, Screen]:
    """Return the screen for results (stdout) and the one for remarks (stderr)."""
    from devwatch.cli.display import Screen  # noqa: PLC0415 - the daemon does not need it

    return Screen.of(ResultStream(_stdout()), environ), Screen.of(BestEffortStream(sys.stderr), environ)


def _devices(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from devwatch.cli import commands  # noqa: PLC0415 - the daemon does not need it

    if arguments.pod and not arguments.suggest:
        raise UsageError("--pod is for the resources that --suggest suggests: give both")
    subsystem = arguments.subsystem or ""
    if subsystem and (fault := subsystem_fault(subsystem)):
        raise UsageError(f"--subsystem {subsystem!r} is not valid ({fault})")
    scene, (screen, remarks) = _scene(arguments, environ, only=subsystem), _screens(environ)
    if arguments.suggest:
        return commands.suggest(scene, screen, remarks, pod=arguments.pod)
    return commands.devices(scene, screen, remarks, form=arguments.output, consoles=arguments.all)


def _explain(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from devwatch.cli import commands  # noqa: PLC0415 - the daemon does not need it

    scene = _scene(arguments, environ, path=arguments.device)
    return commands.explain(scene, *_screens(environ), arguments.device)


def _check(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from devwatch.cli import commands  # noqa: PLC0415 - the daemon does not need it

    if not arguments.file:
        raise UsageError(f"FILE is empty: name a configuration, or leave it out for {DEFAULT_CONFIG}")
    screen, _ = _screens(environ)
    return commands.check(Path(arguments.file), screen, form=arguments.output)


def _schema(_: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from devwatch.config.jsonschema import configuration_schema  # noqa: PLC0415 - the daemon does not need it

    screen, _remarks = _screens(environ)
    screen.document(configuration_schema(), "json")
    return exitstatus.DONE


def _deviceclasses(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from devwatch.cli import commands  # noqa: PLC0415 - the daemon does not need it

    return commands.deviceclasses(Path(arguments.config), *_screens(environ))


def _connection(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Connection:
    from devwatch.kube.client import Connection  # noqa: PLC0415 - 20 MiB that other commands do not need
    from devwatch.kube.credentials import Credentials  # noqa: PLC0415 - 20 MiB that other commands do not need

    return Connection(Credentials(kubeconfig=arguments.kubeconfig, environ=environ), version=__version__)


def _status(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from devwatch.cli import admin  # noqa: PLC0415 - the daemon does not need it

    (screen, remarks), connection = _screens(environ), _connection(arguments, environ)
    return admin.run(connection, admin.status(connection, screen, remarks, form=arguments.output))


def _purge(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from devwatch.cli import admin  # noqa: PLC0415 - the daemon does not need it

    node = _node_to_purge(arguments, environ)
    if not (arguments.yes or arguments.dry_run or (sys.stdin is not None and sys.stdin.isatty())):
        raise UsageError(
            "there is no terminal to ask on: --yes removes without a question, --dry-run shows what would be removed"
        )
    confirmed = (lambda _count: True) if arguments.yes else _confirmed
    task = admin.Purge(
        node=node,
        dry_run=arguments.dry_run,
        confirmed=confirmed,
        here=_this_node(environ),
        plugins=Path(arguments.device_plugin_dir),
        kubelet=Path(arguments.kubelet_dir),
    )
    (screen, remarks), connection = _screens(environ), _connection(arguments, environ)
    return admin.run(connection, admin.purge(connection, screen, remarks, task))


def _this_node(environ: Mapping[str, str]) -> str:
    """Return the name of the node that this host is, empty where it has no valid one."""
    from devwatch.host.snapshot import node_name  # noqa: PLC0415 - as above

    try:
        return node_name(environ.get("DEVWATCH_NODE_NAME"), environ)
    except UsageError:
        return ""


def _node_to_purge(arguments: argparse.Namespace, environ: Mapping[str, str]) -> str | None:
    """Return the name of the node to purge, None for all. Raises `UsageError` where the command line, or the variables, give both."""
    from devwatch.host.snapshot import node_name  # noqa: PLC0415 - the daemon takes it from there itself

    named = arguments.named & {"node", "all_nodes"}
    if arguments.all_nodes and arguments.node is not None and len(named) != 1:
        pair = "--all-nodes and --node" if named else "DEVWATCH_ALL_NODES and DEVWATCH_NODE"
        raise UsageError(f"{pair} contradict each other")
    if arguments.all_nodes and named != {"node"}:
        return None
    return node_name(arguments.node or environ.get("DEVWATCH_NODE_NAME"), environ, option="--node")


def _confirmed(count: int) -> bool:
    """Ask on stderr, which is visible when stdout is redirected, and return whether the user agrees.

    Ctrl-C ends the program at once: the event loop's handler would only cancel the task, which `input` blocks until it returns.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        BestEffortStream(sys.stderr).write(f"Remove all this from {count} node{'s' if count > 1 else ''}? [y/N] ")
        return input().strip().lower() in {"y", "yes"}
    except (EOFError, UnicodeError):
        return False
    finally:
        signal.signal(signal.SIGINT, before)


def _completion(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from devwatch.cli import commands  # noqa: PLC0415 - the daemon does not need it

    screen, _ = _screens(environ)
    return commands.completion(screen, arguments.shell)
