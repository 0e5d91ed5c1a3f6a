# SPDX-License-Identifier: Apache-2.0
"""Backend `wireguard`: one WireGuard device per node for all encrypted networks, one tunnel per pair of nodes.

In: this node, a network, the peers with their blocks. Out, the same for every network: the device with the node's own address in encrypted
networks, and the other nodes that can encrypt as its peers; for this network: per block of a peer one row of the device's routing by keys
and one route into it. A node that cannot encrypt has no key in its record, so there is no way to or from it, in clear least of all: the
unreachable route of the pool answers instead.

Tried elsewhere and dropped: one device per network, which costs a handshake, a port and a process each and separates nothing, since
networks are kept apart by the nft table.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Interface

from plait.backends.base import Peer, outer_growth
from plait.model.cluster import Network, Node
from plait.model.objects import PREFIX, Addr, AllowedIp, KernelObject, Route, WireguardLink, WireguardPeer

DEVICE = f"{PREFIX}wg"
PORT = 7472
OVERHEAD = 60
"""Outer IPv4 20 (of IPv6: 40, see `outer_growth`) + UDP 8 + WireGuard's data message 16 + 16 bytes (whitepaper, section 5.4.6)."""


class WireguardBackend:
    name, model = "wireguard", "overlay"
    ways = (name,)
    options: frozenset[str] = frozenset()

    def needs(self) -> frozenset[str]:
        return frozenset({"wireguard", "veth", "nft"})

    def overhead(self) -> int:
        return OVERHEAD

    def device(self, network: Network) -> str:
        return DEVICE

    def bridge(self, network: Network) -> str:
        return ""

    def plan(self, me: Node, network: Network, peers: Sequence[Peer]) -> list[KernelObject]:
        if me.wireguard is None:
            return []
        own = me.wireguard
        objects: list[KernelObject] = [WireguardLink(DEVICE, own.public, own.port, me.mtu - outer_growth(me, OVERHEAD))]
        if own.address is not None:
            objects.append(Addr(DEVICE, IPv4Interface((own.address, 32))))
        for peer in peers:
            objects += self._peer(me, peer)
        return objects

    def _peer(self, me: Node, peer: Peer) -> list[KernelObject]:
        key = peer.node.wireguard
        if key is None:
            return []
        src = me.wireguard.address if me.wireguard is not None else None
        rows: list[KernelObject] = [WireguardPeer(DEVICE, key.public, (peer.node.address, key.port))]
        rows += [AllowedIp(DEVICE, cidr, key.public) for cidr in peer.blocks]
        rows += [Route(cidr, DEVICE, src=src, scope="link", mtu=peer.mtu) for cidr in peer.blocks]
        return rows
