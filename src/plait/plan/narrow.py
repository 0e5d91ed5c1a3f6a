# SPDX-License-Identifier: Apache-2.0
"""Routes inside the containers, to blocks whose way carries less than their own link: with the MTU of that way, so that the first packet
fits. There are such routes only where a way is narrower, so a container has none while all ways are alike.

The host's own routes have it too and answer what is too large; a container that is told beforehand needs neither that answer nor ten
minutes to forget it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from plait.backends import Peer, on_link
from plait.model.addr import IPAddress, IPNetwork
from plait.model.cluster import Endpoint, Network
from plait.model.objects import InsideRoutes, Route


def narrow_objects(
    endpoints: Iterable[Endpoint], networks: Mapping[str, Network], peers: Mapping[str, list[Peer]], netns: Mapping[str, str]
) -> list[InsideRoutes]:
    """Of all endpoints whose namespace is known: by `netns` (endpoint id -> path), or their own."""
    ways = {name: _ways(network, peers[name]) for name, network in networks.items()}
    made: dict[tuple[str, str, bool], tuple[Route, ...]] = {}
    found = []
    for endpoint in endpoints:
        path = netns.get(endpoint.id) or endpoint.netns
        if not path or not ways[endpoint.network]:
            continue
        kind = endpoint.network, endpoint.ifname, endpoint.address6 is not None
        if kind not in made:
            made[kind] = _routes(ways[endpoint.network], endpoint)
        if made[kind]:
            found.append(InsideRoutes(endpoint.dev, path, endpoint.ifname, made[kind]))
    return found


def _routes(ways: Iterable[tuple[IPNetwork, IPAddress, int]], endpoint: Endpoint) -> tuple[Route, ...]:
    """Those of the families that the endpoint has."""
    own = (way for way in ways if way[0].version == 4 or endpoint.address6 is not None)
    return tuple(Route(to, endpoint.ifname, via=via, onlink=to.version == 4, mtu=mtu) for to, via, mtu in own)


def _ways(network: Network, peers: Iterable[Peer]) -> list[tuple[IPNetwork, IPAddress, int]]:
    """The narrow ones of a network: to which block, by which gateway, bytes."""
    if on_link(network):
        return []
    narrow = [peer for peer in peers if peer.mtu]
    found: list[tuple[IPNetwork, IPAddress, int]] = [(block, network.gateway, peer.mtu) for peer in narrow for block in peer.blocks]
    if network.gateway6 is not None:
        found += [(block, network.gateway6, peer.mtu6) for peer in narrow for block in peer.blocks6]
    return found
