"""The DRA driver of this host. Only a configuration with `publish: dra` imports it, and what it needs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from devwatch.agent.claims import ClaimDriver
from devwatch.agent.dra import DraParts
from devwatch.agent.resourceslices import ResourceSlices
from devwatch.core.errors import KubeletError
from devwatch.core.slices import slice_name
from devwatch.kube.claims import read_claim
from devwatch.kube.slices import KubeSlices

if TYPE_CHECKING:
    from collections.abc import Callable

    from devwatch.agent.claims import DriverApi
    from devwatch.agent.clock import Clock
    from devwatch.agent.daemon import Options
    from devwatch.agent.report import Telemetry
    from devwatch.kube.watch import Server


def build_dra(
    options: Options, server: Server, recorded: Callable[[], bool], telemetry: Telemetry, clock: Clock
) -> DraParts:
    """Return the driver with the API server and the kubelet of this node; `recorded` is whether a former daemon left claims."""
    claims = ClaimDriver(
        partial(_connect, options),
        recorded=recorded,
        read=partial(read_claim, server),
        pool=slice_name(options.node),
        telemetry=telemetry,
        clock=clock,
    )
    api = KubeSlices(server=server, node=options.node)
    return DraParts(claims=claims, slices=ResourceSlices(api, node=options.node, telemetry=telemetry, clock=clock))


def _connect(options: Options) -> DriverApi:
    """Return the files and sockets of the driver. Raises `KubeletError` where the libraries for them are not installed."""
    try:
        from devwatch.kubelet.driver import Driver  # noqa: PLC0415 - it may be missing: the message names the extra to install
    except ImportError as error:
        raise KubeletError(f"publish: dra needs {error.name}", hint="pip install 'devwatch[kubelet]'") from error
    return Driver(folder=options.kubelet_dir, cdi=options.cdi_dir)
