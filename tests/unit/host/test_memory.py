"""Memory that is not needed any more goes back to the kernel."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
from pathlib import Path
from devwatch.host.memory import collect_garbage_often, return_freed_memory

def resident():
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows["VmRSS"].split()[0])

return_freed_memory()
collect_garbage_often()
bytearray(8 * 1024 * 1024)
before = resident()
blocks = [bytearray(1024 * 1024) for _ in range(8)]
del blocks
print(resident() - before, gc.get_freeze_count() > 0, gc.get_threshold())
"""


def test_what_large_answers_took_is_returned() -> None:
    """Without the limit the 8 MiB would stay, since a block of that size has been freed before."""
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    grown, rest = found.stdout.split(maxsplit=1)
    assert int(grown) < 1024
    assert rest == "True (200, 5, 2)\n"
