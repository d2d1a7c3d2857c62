"""A dry run: print each patch instead of storing it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, TextIO

from devwatch.core.errors import OutputLost
from devwatch.core.node import NodePatch, NodeState
from devwatch.core.way import joined
from devwatch.observe.output import NonBlockingStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from devwatch.agent.nodestatus import NodeApi

OUTPUT_INTERVAL = 0.05
"""Seconds between two checks whether standard output has room again."""


class DryRunNode:
    """A Node for dry runs: prints each patch, as a line of JSON or, on a terminal, in words, and responds as if it were stored.

    Without a `server` the Node is empty and nothing is sent; with one, each patch is also sent there, with `dryRun=All`. No patch is
    skipped: while standard output is not read, `patch` waits.
    """

    def __init__(self, out: TextIO, server: NodeApi | None = None) -> None:
        """Print to `out`."""
        self._stream, self._out, self._server = out, NonBlockingStream(out), server
        self._accepted_patch = NodePatch()
        self.date = ""

    async def patch(self, patch: NodePatch) -> NodeState:
        """Print the patch. Raises as the server's `patch` does, and `OutputLost`."""
        if patch:
            await self._print(patch)
        state = NodeState() if self._server is None else await self._server.patch(patch)
        self._accepted_patch = self._accepted_patch.then(patch)
        return self._accepted_patch.applied(state)

    async def _print(self, patch: NodePatch) -> None:
        try:
            body = json.dumps(patch.body(), separators=(",", ":"))
            line = _describe_patch(patch) if self._stream.isatty() else body
            await _poll_until(lambda: self._out.write(line + "\n"))
            await _poll_until(self._out.push)
        except (OSError, ValueError) as error:
            raise OutputLost(f"cannot write the patch to standard output: {error}") from error


def _describe_patch(patch: NodePatch) -> str:
    """Return the changes of a patch in words, for a terminal."""
    counts = [f"{name}: {count.capacity if count else 'removed'}" for name, count in sorted(patch.counts.items())]
    # With the configuration of `make run` most are 0: first those for which there is a device.
    zeros = [text for text in counts if text.endswith(": 0")]
    counts = [*(text for text in counts if text not in zeros), *([joined(zeros)] if zeros else [])]
    annotation = ["the annotation devwatch.io/devices"] if patch.annotates else []
    return f"would change on the Node: {', '.join(counts + annotation)}"


async def _poll_until(done: Callable[[], bool]) -> None:
    while not done():  # noqa: ASYNC110 - poll(2) is called, and the loop runs meanwhile
        await asyncio.sleep(OUTPUT_INTERVAL)
