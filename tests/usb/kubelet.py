"""A kubelet in the guest, as far as its sockets go: it asks for each device of each list, as for a container, and writes the answers.

A line is a list, as JSON: `resource`, `health` by ID, and `given`: by ID, where a container would find which devnode.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from support.grpckubelet import kubelet

if TYPE_CHECKING:
    from devwatch.kubelet import kubelet_pb2 as pb
    from support.grpckubelet import PluginClient

FOLDER = Path("/var/lib/kubelet")
_PAUSE = 0.1
"""Seconds between two looks at what has come."""


async def main() -> None:
    """Serve until killed."""
    async with kubelet(FOLDER, old=True) as running:
        written: dict[int, int] = {}
        while True:
            for number, plugin in enumerate(running.plugins):
                for health in plugin.lists[written.get(number, 0) :]:
                    await _write(running.registered[number].resource_name, health, plugin)
                written[number] = len(plugin.lists)
            await asyncio.sleep(_PAUSE)


async def _write(resource: str, health: dict[str, str], plugin: PluginClient) -> None:
    given = {name: _paths(await plugin.allocate(name)) for name in health}
    sys.stdout.write(f"{json.dumps({'resource': resource, 'health': health, 'given': given})}\n")
    sys.stdout.flush()


def _paths(answer: pb.AllocateResponse) -> dict[str, str]:
    """Return by path in the container which devnode it is."""
    (container,) = answer.container_responses
    return {device.container_path: str(Path(device.host_path).resolve()) for device in container.devices}


asyncio.run(main())
