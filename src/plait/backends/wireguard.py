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

from plait.backends.base import Peer
from plait.model.cluster import Network, Node, TunnelKey
from plait.model.objects import PREFIX, Addr, AllowedIp, KernelObject, Route, Sysctl, WireguardLink, WireguardPeer

DEVICE, SPARE = f"{PREFIX}wg", f"{PREFIX}wgs"
"""The device of the tunnels, and the second one that takes its place while a node changes its key (`plan/rotation.py`)."""
PORT, SPARE_PORT = 7472, 7473
OVERHEAD = {4: 60, 6: 80}
"""Bytes by version of the underlay's IP: its head 20 or 40, UDP 8, WireGuard's data message 16 + 16 (whitepaper, section 5.4.6)."""


class WireguardBackend:
    name, model = "wireguard", "overlay"
    ways = (name,)

    def needs(self) -> frozenset[str]:
        return frozenset({"wireguard", "veth", "nft"})

    def overhead(self) -> int:
        return OVERHEAD[4]

    def device(self, network: Network) -> str:
        return DEVICE

    def plan(self, me: Node, network: Network, peers: Sequence[Peer]) -> list[KernelObject]:
        own = me.wireguard
        if own is None:
            return []
        mtu = me.mtu - self.overhead()
        objects = _device(WireguardLink(DEVICE, own.public, own.port, mtu), own)
        if own.spare:
            objects += _device(WireguardLink(SPARE, own.spare, SPARE_PORT, mtu), own)
        for peer in peers:
            key = peer.node.wireguard
            if key is not None:
                objects += _reached(DEVICE, key.public, key.port, peer)
                objects += _reached(SPARE, key.spare, SPARE_PORT, peer) if own.spare and key.spare else []
                objects += self._routes(own, peer)
        return objects

    def _routes(self, own: TunnelKey, peer: Peer) -> list[KernelObject]:
        dev = SPARE if own.spare and peer.node.name in own.moved else DEVICE
        return [Route(cidr, dev, src=own.address, scope="link", mtu=peer.mtu) for cidr in peer.blocks]


def _device(link: WireguardLink, own: TunnelKey) -> list[KernelObject]:
    """The device checks sources by keys, so the kernel's check by routes, which may lead to the other device, is loosened (rp_filter=2); on
    a device without an address even that drops everything."""
    objects: list[KernelObject] = [link, Sysctl(f"ipv4/conf/{link.name}/rp_filter", "2")]
    return objects if own.address is None else [*objects, Addr(link.name, IPv4Interface((own.address, 32)))]


def _reached(dev: str, public: str, port: int, peer: Peer) -> list[KernelObject]:
    rows: list[KernelObject] = [WireguardPeer(dev, public, (peer.node.address, port))]
    return rows + [AllowedIp(dev, cidr, public) for cidr in peer.blocks]
