"""The DRA driver on this node, by the folders of the kubelet and of the container runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devwatch.kubelet.cdi import CdiFolder
from devwatch.kubelet.claimrecord import ClaimRecord
from devwatch.kubelet.draplugin import DriverServer
from devwatch.kubelet.driverfiles import driver_folder

if TYPE_CHECKING:
    from pathlib import Path

    from devwatch.kubelet.draplugin import Claims


class Driver:
    """The record of the claims, the CDI files, and the sockets."""

    def __init__(self, *, folder: Path, cdi: Path) -> None:
        """Use the folder of the kubelet, and that of the CDI files (`/var/run/cdi`)."""
        self._folder = folder
        self.record, self.cdi = ClaimRecord(driver_folder(folder)), CdiFolder(cdi)

    def server(self, claims: Claims) -> DriverServer:
        """Return a server for the driver, which does not listen yet."""
        return DriverServer(self._folder, claims)
