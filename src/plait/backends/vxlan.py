# SPDX-License-Identifier: Apache-2.0
"""Backend `vxlan`: routed VXLAN (RFC 7348), one device per VNI, nothing learned, nothing flooded.

In: this node, a network, the peers with their blocks. Out, per VNI: the device and the node's tunnel address on it; per peer one
neighbour entry (tunnel address -> tunnel MAC) and one FDB row (tunnel MAC -> underlay address); per block of a peer whose path is the
tunnel one route with the peer's tunnel address (or that of the node which relays) as on-link next hop. A network with IPv6 has the same for
that: the next hop is the link-local address that is made of the tunnel MAC, and one route more leads to the peer's own address, from which
its host speaks. Every row is derived from the store, so a stale one cannot outlive a pass.

Tried elsewhere and dropped: L2/L3-miss notifications and learning, both of which keep state in the kernel that nobody re-derives.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Interface, IPv6Network

from plait.backends.base import DIRECT, Peer, outer_growth
from plait.model.addr import link_local
from plait.model.cluster import Network, Node
from plait.model.objects import PREFIX, Addr, Fdb, KernelObject, Neigh, Route, Sysctl, VxlanLink

OVERHEAD = 50
"""Outer IPv4 20 (of IPv6: 40, see `outer_growth`) + UDP 8 + VXLAN 8 + inner Ethernet 14 bytes (RFC 7348, section 5)."""


class VxlanBackend:
    name, model = "vxlan", "overlay"
    ways = ("vxlan", DIRECT)
    options = frozenset({"port", "vni", "layer2", "multicast", "lease"})

    def needs(self) -> frozenset[str]:
        return frozenset({"vxlan", "veth", "nft"})

    def overhead(self) -> int:
        return OVERHEAD

    def device(self, network: Network) -> str:
        return f"{PREFIX}x{network.vni}"

    def bridge(self, network: Network) -> str:
        return ""

    def plan(self, me: Node, network: Network, peers: Sequence[Peer]) -> list[KernelObject]:
        if me.tunnel is None:
            return []
        dev = self.device(network)
        objects: list[KernelObject] = [
            VxlanLink(dev, network.vni, network.port, me.address, me.vtep_mac, me.mtu - outer_growth(me, OVERHEAD)),
            Addr(dev, IPv4Interface((me.tunnel, 32))),
        ]
        if network.subnet6 is not None:
            objects += [Sysctl(f"ipv6/conf/{dev}/disable_ipv6", "0"), Addr(dev, IPv6Interface(me.tunnel6))]
        for peer in peers:
            objects += self._peer(me, dev, peer)
            if network.subnet6 is not None:
                objects += self._peer6(me, dev, peer)
        return objects

    def _peer(self, me: Node, dev: str, peer: Peer) -> list[KernelObject]:
        node = peer.node
        if node.tunnel is None or not _reached(me, node):
            return []
        rows: list[KernelObject] = [Neigh(dev, node.tunnel, node.vtep_mac), Fdb(dev, node.vtep_mac, node.address)]
        if peer.path is not None and peer.path.kind == self.name:
            rows += [Route(block, dev, via=peer.hop.tunnel, onlink=True, src=me.tunnel, mtu=peer.mtu) for block in peer.blocks]
        return rows

    def _peer6(self, me: Node, dev: str, peer: Peer) -> list[KernelObject]:
        """IPv6 goes through the tunnel alone: a peer that is reached past it by IPv4 is not reached by IPv6."""
        node = peer.node
        if node.tunnel is None or not _reached(me, node):
            return []
        rows: list[KernelObject] = [Neigh(dev, link_local(node.vtep_mac), node.vtep_mac)]
        if peer.path is not None and peer.path.kind == self.name:
            via = link_local(peer.hop.vtep_mac)
            rows += [Route(to, dev, via=via, src=me.tunnel6, mtu=peer.mtu) for to in (IPv6Network(node.tunnel6), *peer.blocks6)]
        return rows


def _reached(me: Node, node: Node) -> bool:
    """A device sends to addresses of the family of its own, no others."""
    return bool(node.vtep_mac) and node.address.version == me.address.version
