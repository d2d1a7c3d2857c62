"""A daemon and a kubelet with real sockets between them, on virtual time: what the fakes of the other tests leave out."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devwatch.config.schema import parse
from devwatch.kubelet.node import Kubelet
from support.build import ZIGBEE
from support.fakes import FakeHost, FakeServer, FakeSettings, FakeWorkload
from support.grpckubelet import GrpcKubelet
from support.home import USB0, USB1, Home
from support.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from devwatch.config.schema import Config


def config(way: str = "devicePlugin") -> Config:
    """Return a configuration of one resource that is published so."""
    return parse(
        f"resources: [{{name: {ZIGBEE}, match: [{{vendor: '0001'}}], publish: {way}}}]".encode(), file="c.yaml"
    )


def target(link: str) -> str:
    """Return where a link leads, empty where there is none."""
    return str(Path(link).readlink()) if Path(link).is_symlink() else ""


@contextlib.asynccontextmanager
async def node(folder: Path) -> AsyncIterator[tuple[Home, GrpcKubelet]]:
    """Have a stick, a kubelet that cannot acknowledge lists (before 1.23), and a daemon, since 20 s."""
    kubelet, clock, used = GrpcKubelet(folder=folder, old=True), asyncio.get_running_loop().time, config()
    server = FakeServer(clock)
    home = Home(
        host=FakeHost(),
        server=server,
        settings=FakeSettings(used),
        workload=FakeWorkload(clock, server=server),
        connect=lambda: Kubelet(plugins=kubelet.device_plugins, folder=folder),
    )
    home.host.plug("0001", USB0, serial="S0")
    await kubelet.start()
    home.start(used)
    try:
        await asyncio.sleep(20)
        yield home, kubelet
    finally:
        for task in home.tasks:
            task.cancel()
        await asyncio.gather(*home.tasks, return_exceptions=True)
        await kubelet.stop()


@quiet
async def test_a_stick_is_listed_allocated_and_followed_to_another_name(tmp_path: Path) -> None:
    """The link that a container got leads to it, or is not there."""
    async with node(tmp_path) as (home, kubelet):
        (plugin,) = kubelet.plugins
        assert home.server.shows(ZIGBEE) == ("1", "1")
        ((name, health),) = plugin.lists[-1].items()
        assert health == "Healthy"
        (answer,) = (await plugin.allocate(name)).container_responses
        (device,) = answer.devices
        assert (device.container_path, target(device.host_path)) == ("/dev/zigbee", USB0)
        home.host.unplug(USB0)
        await asyncio.sleep(0.1)
        assert target(device.host_path) == ""
        home.host.plug("0001", USB1, serial="S0")
        await asyncio.sleep(0.1)
        assert target(device.host_path) == USB1
        assert len(plugin.lists) == 1


@quiet
async def test_a_kubelet_that_starts_again_is_registered_with_again(tmp_path: Path) -> None:
    """Its clean-up has removed the socket."""
    async with node(tmp_path) as (home, kubelet):
        await kubelet.stop()
        await asyncio.sleep(5)
        assert home.server.shows(ZIGBEE) == ("1", "0")
        await kubelet.start()
        await asyncio.sleep(0.1)
        _, plugin = kubelet.plugins
        assert len(plugin.lists) == 1
        await asyncio.sleep(2)
        assert home.server.shows(ZIGBEE) == ("1", "1")
        assert len(list(kubelet.device_plugins.glob("devwatch-*.sock"))) == 1


@quiet
async def test_the_kubelet_sees_the_end_of_a_resource_and_of_the_daemon(tmp_path: Path) -> None:
    """In both cases its stream ends and the socket is gone; the links of running containers stay with the daemon's end."""
    async with node(tmp_path) as (home, kubelet):
        home.reload(config("nodeStatus"))
        await asyncio.sleep(2)  # an old kubelet cannot say that it has taken over the empty list
        assert kubelet.plugins[-1].ended
        home.reload(config())
        await asyncio.sleep(5)
        plugin = kubelet.plugins[-1]
        assert not plugin.ended
        await home.kill()
        await asyncio.sleep(0.1)
        assert plugin.ended
        assert list(kubelet.device_plugins.glob("devwatch-*.sock")) == []
        assert len(list((kubelet.device_plugins / "devwatch").iterdir())) == 1


@quiet
@pytest.mark.parametrize("place", ["nothing", "a file"])
async def test_a_folder_of_the_plugins_that_is_not_there_is_one_line(place: str, tmp_path: Path) -> None:
    """However long; nothing is allocatable meanwhile, and all is well when it is back."""
    async with node(tmp_path) as (home, kubelet):
        await kubelet.stop()
        shutil.rmtree(kubelet.device_plugins)
        if place == "a file":
            kubelet.device_plugins.touch()
        await asyncio.sleep(600)
        (line,) = home.log.of("host.limited")
        assert str(kubelet.device_plugins) in str(line.fields["reason"])
        assert not home.ready()[0]
        assert home.server.shows(ZIGBEE) == ("1", "0")
        kubelet.device_plugins.unlink(missing_ok=True)
        await kubelet.start()
        await asyncio.sleep(15)
        assert home.server.shows(ZIGBEE) == ("1", "1")
        assert home.ready() == (True, "ok")


@quiet
async def test_a_socket_that_a_killed_daemon_left_is_in_nobodys_way(tmp_path: Path) -> None:
    """It has the name of the next one's."""
    async with node(tmp_path) as (home, kubelet):
        (path,) = kubelet.device_plugins.glob("devwatch-*.sock")
        await home.kill()
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        home.start(config())
        await asyncio.sleep(20)
        assert home.server.shows(ZIGBEE) == ("1", "1")
        assert not home.log.of("host.limited")
