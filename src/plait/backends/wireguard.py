# SPDX-License-Identifier: Apache-2.0
"""Backend `wireguard`: one WireGuard device per node for all encrypted networks, one tunnel per pair of nodes.

In: this node, a network, the peers with their blocks. Out, the same for every network: the device with the node's own address in encrypted
networks, and the other nodes that can encrypt as its peers; for this network: per block of a peer one row of the device's routing by keys
and one route into it. A network with IPv6 has the same for the images of the blocks, and for the address that the other host speaks from
by IPv6, which lies in no block. Two nodes behind address translation have a third one carry their packets, which decrypts and encrypts
them. A node that cannot encrypt has no key in its record, so there is no way to or from it, in clear least of all: the unreachable route of
the pool answers instead.

Tried elsewhere and dropped: one device per network, which costs a handshake, a port and a process each and separates nothing, since
networks are kept apart by the nft table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, IPv6Network

from plait.backends.base import Peer, outer_growth
from plait.model.addr import IPNetwork
from plait.model.cluster import Network, Node, TunnelKey
from plait.model.objects import PREFIX, Addr, KernelObject, Route, Sysctl
from plait.model.wireguard import AllowedIp, WireguardLink, WireguardPeer

DEVICE, SPARE = f"{PREFIX}wg", f"{PREFIX}wgs"
"""The device of the tunnels, and the second one that takes its place while a node changes its key (`plan/rotation.py`)."""
PORT, SPARE_PORT = 7472, 7473
KEEPALIVE_S = 25
"""Address translators forget a UDP flow after 30 s at the earliest (wg(8), PersistentKeepalive)."""
OVERHEAD = 60
"""Outer IPv4 20 (of IPv6: 40, see `outer_growth`) + UDP 8 + WireGuard's data message 16 + 16 bytes (whitepaper, section 5.4.6). What is in
it is padded to 16 bytes (`unit`); wireguard-go knows but its device's MTU for a bound, not that of a route."""


class WireguardBackend:
    name, model = "wireguard", "overlay"
    ways = (name,)
    unit = 16
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
        own = me.wireguard
        if own is None:
            return []
        mtu = me.mtu - outer_growth(me, OVERHEAD)
        six = me.encrypted6 if network.subnet6 is not None else None
        objects = _device(WireguardLink(DEVICE, own.public, own.port, mtu), own, six)
        if own.spare:
            objects += _device(WireguardLink(SPARE, own.spare, SPARE_PORT, mtu), own, six)
        for peer in peers:
            relay = relay_of(own, peer.node, [p.node for p in peers if p.alive])
            narrowest = min((p.mtu for p in peers if p.node in (peer.node, relay) and p.mtu), default=0)
            objects += self._peer(own, replace(peer, mtu=narrowest), relay, six)
        return objects

    def _peer(self, own: TunnelKey, peer: Peer, relay: Node | None, six: IPv6Address | None) -> list[KernelObject]:
        """One other node: itself as a peer, or its blocks in the rows of the relay. Without either there is no route to it. `six` is this
        host's own address, None where the network has no IPv6."""
        key = peer.node.wireguard
        if key is None or (own.nat and key.nat and relay is None):
            return []
        hop = relay or peer.node
        to = hop.wireguard
        assert to is not None
        blocks6 = () if six is None else (IPv6Network(peer.node.encrypted6), *peer.blocks6)
        cidrs: tuple[IPNetwork, ...] = (*peer.blocks, *blocks6)
        objects = _rows(DEVICE, to.public, cidrs) + (_rows(SPARE, to.spare, cidrs) if own.spare and to.spare else [])
        if relay is None:
            objects += _peers(own, peer.node, key)
        dev = SPARE if own.spare and hop.name in own.moved else DEVICE
        objects += [Route(cidr, dev, src=own.address, scope="link", mtu=peer.mtu) for cidr in peer.blocks]
        return objects + [Route(cidr, dev, src=six, mtu=peer.mtu6) for cidr in blocks6]


def relay_of(own: TunnelKey, other: Node, alive: Iterable[Node]) -> Node | None:
    """Through whom this node and another reach each other if both are behind address translation: of the living nodes that are not and can
    encrypt the first by name, so that both ends choose the same. None: directly, or not at all if there is no such node."""
    if not own.nat or other.wireguard is None or not other.wireguard.nat:
        return None
    return min((n for n in alive if n.wireguard is not None and not n.wireguard.nat), key=lambda n: n.name, default=None)


def _peers(own: TunnelKey, node: Node, key: TunnelKey) -> list[KernelObject]:
    """A node as peer of each device. Who is behind address translation is heard from before it is sent to, and keeps its way open."""
    keepalive = KEEPALIVE_S if own.nat else 0
    keys = [(DEVICE, key.public, key.port), *([(SPARE, key.spare, SPARE_PORT)] if own.spare and key.spare else [])]
    found_by_device = key.nat or node.name in own.elsewhere  # it is named as behind address translation a moment after it was heard
    return [WireguardPeer(dev, public, None if found_by_device else (node.address, port), keepalive) for dev, public, port in keys]


def _rows(dev: str, public: str, cidrs: Iterable[IPNetwork]) -> list[KernelObject]:
    return [AllowedIp(dev, cidr, public) for cidr in cidrs]


def _device(link: WireguardLink, own: TunnelKey, six: IPv6Address | None) -> list[KernelObject]:
    """The device checks sources by keys, so the kernel's check by routes, which may lead to the other device, is loosened (rp_filter=2); on
    a device without an address even that drops everything. `six` is this host's own address of IPv6, which knows no such check."""
    objects: list[KernelObject] = [link, Sysctl(f"ipv4/conf/{link.name}/rp_filter", "2")]
    if own.address is not None:
        objects.append(Addr(link.name, IPv4Interface((own.address, 32))))
    if six is not None:
        objects += [Sysctl(f"ipv6/conf/{link.name}/disable_ipv6", "0"), Addr(link.name, IPv6Interface(six))]
    return objects
