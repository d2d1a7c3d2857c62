"""The kubelet of this node, by the folders of its sockets."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from devwatch.kubelet import client
from devwatch.kubelet.links import DeviceLinks
from devwatch.kubelet.plugin import PluginServer, Resource

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from devwatch.core.holders import Holding

_SOCKET = "kubelet.sock"


class Kubelet:
    """The calls to the kubelet, the plugins that it calls, and the links that containers open."""

    def __init__(self, *, plugins: Path, folder: Path) -> None:
        """Use the folder of the device plugins, and that of the kubelet, in which pod-resources is."""
        self._plugins, self._pod_resources = plugins, folder / "pod-resources" / _SOCKET
        self.links = DeviceLinks(plugins)

    def socket(self) -> object:
        """Return what tells the kubelet's socket from the one of its next start, None where there is none."""
        try:
            found = (self._plugins / _SOCKET).stat()
        except OSError:
            return None
        return found.st_ino, found.st_ctime_ns

    async def is_accepting(self) -> bool:
        """Return whether the kubelet accepts registrations."""
        return await client.is_accepting(self._plugins / _SOCKET)

    def server(self, name: str, resource: Resource) -> PluginServer:
        """Return a server for a resource, which does not listen yet."""
        return PluginServer(self._plugins / _endpoint(name), resource, self.links.folder)

    async def register(self, name: str) -> None:
        """Register a resource, whose server listens. Raises `KubeletError`."""
        await client.register(self._plugins / _SOCKET, endpoint=_endpoint(name), resource=name)

    async def allocatable(self) -> Mapping[str, frozenset[str]]:
        """Return by resource the IDs that the kubelet has taken over. Raises `KubeletError`."""
        return await client.allocatable(self._pod_resources)

    async def holdings(self) -> tuple[Holding, ...]:
        """Return which pods hold devices. Raises `KubeletError`."""
        return await client.holdings(self._pod_resources)


def _endpoint(name: str) -> str:
    """Return the name of a resource's socket, short for any resource: an address has 108 bytes (unix(7))."""
    return f"devwatch-{hashlib.sha256(name.encode()).hexdigest()[:10]}.sock"
