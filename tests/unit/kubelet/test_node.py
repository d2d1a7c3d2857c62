"""The kubelet of a node by the folders of its sockets: a registration from end to end, with any name."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from devwatch.core.errors import KubeletError
from devwatch.core.handover import Allocation, Offer
from devwatch.kubelet.node import Kubelet
from support.build import ZIGBEE
from support.grpckubelet import GrpcKubelet, kubelet, listed
from support.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LONG = f"{'a' * 63}.{'b' * 63}.{'c' * 58}/{'d' * 63}"
"""A name of 250 characters."""


class Silent:
    """A resource of which nothing is of interest."""

    def allocate(self, ids: Sequence[str]) -> Allocation:
        """Return nothing."""
        return Allocation(paths=dict.fromkeys(ids, ""), variables={})

    def opened(self) -> None:
        """Ignore it."""

    def sent(self, offer: Offer) -> None:
        """Ignore it."""

    def closed(self) -> None:
        """Ignore it."""


def of(one: GrpcKubelet) -> Kubelet:
    """Return what devwatch has of it."""
    return Kubelet(plugins=one.device_plugins, folder=one.folder)


@pytest.mark.parametrize("name", [ZIGBEE, LONG, "x/\N{SNOWMAN}"])
def test_a_resource_of_any_name_is_registered(name: str, tmp_path: Path) -> None:
    """The name of its socket fits into an address (108 bytes), and no two resources have the same."""

    @quiet
    async def registered() -> None:
        async with kubelet(tmp_path) as one:
            mine = of(one)
            server = mine.server(name, Silent())
            await server.start()
            server.offer(Offer(healthy=frozenset({"a"})))
            await mine.register(name)
            (request,) = one.registered
            assert (request.version, request.resource_name) == ("v1beta1", name)
            assert (one.device_plugins / request.endpoint).is_socket()
            assert len(f"/var/lib/kubelet/device-plugins/{request.endpoint}") < 108
            await asyncio.sleep(0.1)
            assert one.plugins[0].lists == [{"a": "Healthy"}]
            await server.close()

    registered()


@quiet
async def test_two_resources_have_two_sockets(tmp_path: Path) -> None:
    """`ListAndWatch` carries no name."""
    async with kubelet(tmp_path) as one:
        servers = [of(one).server(name, Silent()) for name in (ZIGBEE, LONG)]
        for server in servers:
            await server.start()
        assert len(list(one.device_plugins.glob("devwatch-*.sock"))) == 2
        for server in servers:
            await server.close()


@quiet
async def test_a_registration_without_a_server_is_refused(tmp_path: Path) -> None:
    """The kubelet cannot dial back."""
    async with kubelet(tmp_path) as one:
        with pytest.raises(KubeletError, match=r"^the kubelet refuses Register: "):
            await of(one).register(ZIGBEE)


@quiet
async def test_a_kubelet_that_starts_again_has_another_socket(tmp_path: Path) -> None:
    """None before the first; a killed one leaves it, and accepts nothing."""
    one = GrpcKubelet(folder=tmp_path)
    mine = of(one)
    assert mine.socket() is None
    assert not await mine.is_accepting()
    await one.start()
    first = mine.socket()
    assert await mine.is_accepting()
    assert mine.socket() == first
    await one.stop()
    assert (mine.socket(), await mine.is_accepting()) == (first, False)
    await one.start()
    assert mine.socket() not in {None, first}
    await one.stop()


@quiet
async def test_the_folders_of_a_kubelet_are_two(tmp_path: Path) -> None:
    """`device-plugins` is a constant of the kubelet, whatever its root; pod-resources is below that."""
    async with kubelet(tmp_path) as one:
        one.listed.append(listed(ZIGBEE, ["a"]))
        elsewhere = Kubelet(plugins=tmp_path / "none", folder=tmp_path)
        assert await elsewhere.allocatable() == {ZIGBEE: {"a"}}
        assert await elsewhere.holdings() == ()
        assert elsewhere.socket() is None
        assert elsewhere.links.folder == tmp_path / "none" / "devwatch"
