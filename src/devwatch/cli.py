"""The commands: each is a few lines over the floors below."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from devwatch import __version__
from devwatch.errors import ConfigError, DevwatchError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    _Commands = argparse._SubParsersAction["_Parser"]  # noqa: SLF001 - argparse has no other name for it

DEFAULT_CONFIG = "/etc/devwatch/config.yaml"
DEFAULT_LISTEN = "127.0.0.1:28796"
DONE, FAILED, USAGE, CONFIGURATION, INTERRUPTED = 0, 1, 2, 78, 130
"""Exit statuses; 78 is EX_CONFIG of sysexits.h, on which systemd does not restart."""


class _Parser(argparse.ArgumentParser):
    """A parser that raises instead of exiting, so that all errors look alike."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run a command and return the exit status: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration."""
    variables = os.environ if environ is None else environ
    try:
        options = _parser(variables).parse_args(argv)
        command: Callable[[argparse.Namespace, Mapping[str, str]], int] = options.command
        return command(options, variables)
    except UsageError as error:
        return _complain(error, USAGE)
    except ConfigError as error:
        return _complain(error, CONFIGURATION)
    except DevwatchError as error:
        return _complain(error, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stdout = None  # the interpreter must not try to flush it at its end
        return FAILED


def _complain(error: DevwatchError, status: int) -> int:
    prefix = "" if isinstance(error, ConfigError) else "devwatch: "
    print(f"{prefix}{error}", file=sys.stderr)
    return status


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="devwatch",
        description="Advertises the USB serial sticks of a node as Kubernetes extended resources, and follows them as they come and go.",
        epilog="Every option has an environment variable: --node-name is DEVWATCH_NODE_NAME.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"devwatch {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    _add_run(commands, environ)
    _add_check(commands, environ)
    return parser


def _add_run(commands: _Commands, environ: Mapping[str, str]) -> None:
    parser = commands.add_parser(
        "run",
        help="the daemon: watch the devices, patch the Node",
        description="Watches the devices of this host and keeps the status of its Node in step.",
        epilog="examples:\n"
        "  devwatch run --dry-run              show what would be sent, contact nobody\n"
        "  devwatch run --dry-run=server       ask the API server whether it would accept it\n"
        "  devwatch run --once --listen off    advertise what is here now, and end",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    option = _Options(parser, environ)
    option("--config", metavar="FILE", default=DEFAULT_CONFIG, help="the configuration")
    option("--node-name", metavar="NAME", help="the Node to write to (default: NODE_NAME, else the host name)")
    option("--kubeconfig", metavar="FILE", help="credentials (default: KUBECONFIG, in-cluster, ~/.kube/config)")
    option(
        "--dry-run",
        choices=("client", "server"),
        nargs="?",
        const="client",
        help="print each patch as a line of JSON, store nothing",
    )
    option.flag("--once", help="end when the Node shows what is present; status 1 if it does not within 30 s")
    option(
        "--listen", metavar="HOST:PORT", help=f"metrics and health, or off (default: {DEFAULT_LISTEN}; with --once off)"
    )
    option(
        "--log-format",
        choices=("auto", "console", "json"),
        default="auto",
        help="auto: console on a terminal, else json",
    )
    option(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="the least level to write"
    )
    parser.set_defaults(command=_run)


def _add_check(commands: _Commands, environ: Mapping[str, str]) -> None:
    parser = commands.add_parser(
        "check",
        help="validate a configuration",
        description="Prints every fault of a configuration as FILE:LINE:COLUMN: KEY: MESSAGE (status 78), or a summary.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        default=environ.get("DEVWATCH_CONFIG") or DEFAULT_CONFIG,
        help="default: %(default)s",
    )
    parser.set_defaults(command=_check)


class _Options:
    """Adds options that an environment variable can set; the command line wins."""

    def __init__(self, parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
        self._parser, self._environ = parser, environ

    def __call__(self, name: str, **settings: object) -> None:
        variable = self._variable(name)
        value = self._environ.get(variable)
        if value:
            choices = settings.get("choices")
            if isinstance(choices, tuple) and value not in choices:
                raise UsageError(f"{variable}={value!r} is none of {', '.join(choices)}")
            settings["default"] = value
        settings["help"] = f"{settings['help']}{self._default(settings.get('default'))} [{variable}]".replace("%", "%%")
        self._parser.add_argument(name, **settings)  # type: ignore[arg-type]  # argparse types every setting of its own

    def flag(self, name: str, *, help: str) -> None:  # noqa: A002 - the word of argparse
        variable = self._variable(name)
        value = self._environ.get(variable, "").lower()
        if value not in {"", "0", "1", "false", "true", "no", "yes"}:
            raise UsageError(f"{variable}={value!r} is neither true nor false")
        given = value in {"1", "true", "yes"}
        self._parser.add_argument(
            name, action=argparse.BooleanOptionalAction, default=given, help=f"{help} [{variable}]"
        )

    @staticmethod
    def _variable(name: str) -> str:
        return "DEVWATCH_" + name.removeprefix("--").replace("-", "_").upper()

    @staticmethod
    def _default(value: object) -> str:
        return f" (default: {value})" if value else ""


def _run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from devwatch import daemon, logs, telemetry  # noqa: PLC0415 - other commands do not need them

    try:
        listen = telemetry.parse_listen(arguments.listen or ("off" if arguments.once else DEFAULT_LISTEN))
    except ValueError as error:
        raise UsageError(str(error)) from error
    options = daemon.Options(
        config=Path(arguments.config),
        node=daemon.node_name(arguments.node_name, environ),
        kubeconfig=arguments.kubeconfig,
        dry_run=arguments.dry_run,
        once=arguments.once,
        listen=listen,
    )
    log = logs.configure(arguments.log_format, arguments.log_level, sys.stderr, environ=environ)
    return asyncio.run(daemon.Daemon(options, log, environ=environ, out=sys.stdout).run())


def _check(arguments: argparse.Namespace, _environ: Mapping[str, str]) -> int:
    from devwatch.configfile import ConfigFile  # noqa: PLC0415 - not needed for --help

    path = Path(arguments.file)
    config = ConfigFile(path=path).load()
    for fault in config.warnings:
        print(f"warning: {fault.render(arguments.file)}", file=sys.stderr)
    _print(f"{path}: {len(config.resources)} resources, no fault", sys.stdout)
    return DONE


def _print(text: str, out: TextIO) -> None:
    print(text, file=out)
