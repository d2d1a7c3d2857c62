"""`python -m bench`: the command line."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bench.dra import dra
from bench.fleet import fleet
from bench.ground import Ground, lacking, prepared
from bench.growth import growth
from bench.handover import handover
from bench.journey import bound, compared, latency, seed, start
from bench.load import idle, memory, storm
from bench.machine import head
from bench.publish import LAST, Run, publish
from bench.table import Goal, Row, render

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Bench = Callable[[Ground], list[Row]]

BENCHES: dict[str, Bench] = {
    "latency": latency,
    "seed": seed,
    "bound": bound,
    "start": start,
    "memory": memory,
    "idle": idle,
    "storm": storm,
    "handover": handover,
    "dra": dra,
    "growth": growth,
    "fleet": fleet,
}
DONE, FAILED, MISSING = 0, 1, 2
BROKEN = "failed"


def main() -> int:
    """Run the benches of the command line and print their table; return 1 where one failed, 2 where something is missing here."""
    parser = _parser()
    options = parser.parse_args()
    if options.write and (options.names or options.quick):
        parser.error("--write is for a complete run: without names, and without --quick")
    if (reason := lacking(os.environ)) is not None:
        sys.stderr.write(f"bench: {reason}\n")
        return MISSING
    with prepared(os.environ, quick=options.quick) as ground:
        began = time.monotonic()  # another run may have had udevd until now
        about, rows = head(ground.server), _rows(ground, list(dict.fromkeys(options.names)) or list(BENCHES))
    about["run"] = (
        f"{time.monotonic() - began:.0f} s in all{', --quick: the figures mean little' if options.quick else ''}"
    )
    sys.stdout.write(render(about, rows))
    run = Run(about=about, rows=rows).rounded()
    if options.json:
        run.write(options.json)
    failed = any(row.figure == BROKEN for row in rows)
    return FAILED if failed or (options.write and not _published(run)) else DONE


def _published(run: Run) -> bool:
    """Write the documentation's figures, and return whether that was possible."""
    try:
        publish(run)
    except KeyError as error:
        sys.stderr.write(f"bench: the documentation stays as it is: no figure of {error.args[0]}\n")
        return False
    run.write(LAST)
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[*BENCHES, []], metavar="NAME", help=f"one of {', '.join(BENCHES)}; all without any"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--quick", action="store_true", help="a smoke test: sizes are a fraction")
    parser.add_argument("--write", action="store_true", help="write the figures into README.md and docs/ too")
    return parser


def _rows(ground: Ground, names: Sequence[str]) -> list[Row]:
    found: dict[str, list[Row]] = {}
    if {"idle", "seed"} <= set(names):
        found |= _together(ground)
    for name in names:
        if name not in found:
            found[name] = _run(name, ground)
    rows = [row for name in names for row in found[name]]
    return [*rows, *compared(rows)]


def _together(ground: Ground) -> Mapping[str, list[Row]]:
    """Run the two benches that mostly wait at the same time; `seed` in this thread, as its loops end with the thread that starts them."""
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(_run, "idle", ground)
        return {"seed": _run("seed", ground), "idle": other.result()}


def _run(name: str, ground: Ground) -> list[Row]:
    began = time.monotonic()
    try:
        rows = BENCHES[name](ground)
    except Exception as error:  # noqa: BLE001 - the other figures are good all the same
        traceback.print_exc()
        rows = [
            Row(
                bench=name,
                figure=BROKEN,
                value=type(error).__name__,
                goal=Goal(text="a figure", met=False),
                note=str(error)[:200],
            )
        ]
    sys.stderr.write(f"bench: {name} took {time.monotonic() - began:.0f} s\n")
    return rows


if __name__ == "__main__":
    sys.exit(main())
