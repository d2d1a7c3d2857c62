"""Fuzz one target for long: by its grammar, or guided by coverage where atheris (Python 3.11) is installed.

`python -m fuzz TARGET -runs=100000`; further options in the form `-name=value` are libFuzzer's. It ends with status 0 and
a line of figures, or at the first broken promise with a traceback and, where atheris runs it, the input in a file `crash-...`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings

if TYPE_CHECKING:
    from fuzz.target import Feed, Target

NAMES = ("annotation", "answer", "claims", "configuration", "kubelet", "plugin", "record", "uevent")
RUNS = 100_000


@dataclass(slots=True, kw_only=True)
class _Counted:
    """A target that counts."""

    feed: Feed
    runs: int = 0
    began: float = field(default_factory=time.monotonic)

    def __call__(self, data: bytes) -> None:
        """Take one input."""
        self.runs += 1
        self.feed(data)

    def __str__(self) -> str:
        """Say how much was done."""
        seconds = time.monotonic() - self.began
        return (
            f"{self.runs} inputs in {seconds:.0f} s, {self.runs / max(seconds, 0.001):.0f} a second, no broken promise"
        )


def by_grammar(target: Target, runs: int) -> str:
    """Feed `runs` inputs of the grammar, in another order every time, and return figures. Raises what the target raises."""
    with target.open() as feed:
        counted = _Counted(feed=feed)
        for seed in target.seeds:
            counted(seed)

        @given(target.grammar)
        def test(data: bytes) -> None:
            counted(data)

        settings(max_examples=runs, deadline=None, database=None, suppress_health_check=list(HealthCheck))(test)()
        return str(counted)


def by_coverage(atheris: Any, target: Target, options: list[str]) -> None:  # noqa: ANN401 - a module without annotations
    """Run libFuzzer, which ends the process."""
    with target.open() as feed, tempfile.TemporaryDirectory() as corpus:

        @given(target.grammar)
        def grammar(data: bytes) -> None:
            feed(data)

        chosen = grammar.hypothesis.fuzz_one_input  # type: ignore[attr-defined]  # what hypothesis adds to a test

        def both(data: bytes) -> None:
            """Take the input as it is, or as the choices that the grammar makes."""
            if data[:1] == b"\xff":
                chosen(data[1:])
            else:
                feed(data)

        for number, seed in enumerate(target.seeds):
            Path(corpus, f"seed{number}").write_bytes(seed)
        atheris.Setup([sys.argv[0], *options, corpus], both)
        atheris.Fuzz()


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__, allow_abbrev=False)
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--engine", choices=("grammar", "coverage"), default="coverage", help="default: coverage")
    parser.add_argument("-runs", type=int, default=RUNS, help=f"inputs (default: {RUNS})")
    arguments, options = parser.parse_known_args()
    if arguments.engine == "coverage":
        try:
            atheris = importlib.import_module("atheris")
        except ImportError:
            parser.error("atheris is not installed (it exists for Python 3.11 and older): --engine grammar")
        with atheris.instrument_imports(include=["devwatch"]):
            target = importlib.import_module("fuzz.targets").TARGETS[arguments.target]
        by_coverage(atheris, target, [f"-runs={arguments.runs}", *options])
    print(by_grammar(importlib.import_module("fuzz.targets").TARGETS[arguments.target], arguments.runs))  # noqa: T201 - the result
    return 0


if __name__ == "__main__":
    sys.exit(main())
