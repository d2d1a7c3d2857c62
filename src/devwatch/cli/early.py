"""Take the signals of the program before its imports, which last long enough for a user or a kubelet to end it meanwhile.

`devwatch.cli` imports this module first. It does nothing where another program than `devwatch` imports that. Before it runs, while
Python itself starts, a signal ends the program as it ends any other. It imports nothing that takes long itself.
"""

from __future__ import annotations

import os
import signal
import sys

_PROGRAMS = ("/devwatch", "/devwatch/__main__.py")
"""How the path of the program ends: of its script, and for `python -m devwatch`."""
_INTERRUPTED = 130


def _is_program() -> bool:
    return f"/{sys.argv[0]}".endswith(_PROGRAMS)


def _is_daemon() -> bool:
    return sys.argv[1:2] == ["run"]


def _end(_number: int, _frame: object) -> None:
    """End at once, since nothing has begun: the daemon as TERM and INT always end it, a command as INT does."""
    os._exit(_status_of_daemon() if _is_daemon() else _INTERRUPTED)


def _status_of_daemon() -> int:
    """Return 1 with `--once`, which did not reach its end, else 0. The words are read here as `devwatch.cli` reads them."""
    given = [word for word in sys.argv if word in {"--once", "--no-once"}]
    once = given[-1] == "--once" if given else os.environ.get("DEVWATCH_ONCE", "").lower() in {"1", "true", "yes"}
    return int(once)


def take() -> None:
    """Take INT, and for the daemon TERM and HUP, until the command takes them itself. An INT that is ignored stays so."""
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
    """Let no signal change the status any more, while Python itself ends."""
    if _is_program():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


take()
