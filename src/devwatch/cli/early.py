"""Install signal handlers before the other imports, which take long enough for a user or a kubelet to end the program meanwhile.

`devwatch.cli` imports this module first. In another program that imports `devwatch.cli`, it does nothing. While Python itself starts,
before this module runs, a signal ends the program as it ends any other. It imports nothing that takes long.
"""

from __future__ import annotations

import os
import signal
import sys

from devwatch.core import exitstatus

_PROGRAMS = ("/devwatch", "/devwatch/__main__.py")
"""The ends of the program's path: of the script, and for `python -m devwatch`."""


def _is_program() -> bool:
    return f"/{sys.argv[0]}".endswith(_PROGRAMS)


def _is_daemon() -> bool:
    return sys.argv[1:2] == ["run"]


def _end(_number: int, _frame: object) -> None:
    """Exit at once, since nothing has begun, with the status that the signal would cause later."""
    os._exit(_daemon_exit_status() if _is_daemon() else exitstatus.INTERRUPTED)


def _daemon_exit_status() -> int:
    """Return the status of a failure with `--once`, which was not completed. Option and variable are read as by `cli.entry`."""
    given = [word for word in sys.argv if word in {"--once", "--no-once"}]
    once = given[-1] == "--once" if given else os.environ.get("DEVWATCH_ONCE", "").lower() in {"1", "true", "yes"}
    return exitstatus.FAILED if once else exitstatus.DONE


def take() -> None:
    """Handle INT, and for the daemon TERM and HUP, until the command installs its own handlers. An INT that is ignored stays ignored."""
    if not _is_program():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    if _is_daemon():
        signal.signal(signal.SIGTERM, _end)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def release() -> None:
    """Let INT raise `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def settle() -> None:
    """Ignore the signals while Python itself ends, so that they do not change the exit status."""
    if _is_program():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


take()
