# SPDX-License-Identifier: Apache-2.0
"""Backend `vxlan` with the option `layer2=true`: one link over all hosts. On each host the endpoints and the network's own VXLAN device are
ports of one bridge, and MAC addresses reach each other, whatever the frames carry.

In: this node, a network, the peers with their endpoints. Out: the bridge, with the gateway's address; what the tunnel's own plan says, with
the bridge in the place of the device (the hosts reach each other and the containers over it, under their tunnel MACs); the device as the
bridge's port, and per endpoint of a peer one FDB row of the device (MAC -> underlay address), one of the bridge (MAC -> that port) and one
neighbour entry per address, by which the bridge answers ARP and neighbour discovery itself (bridge(8), neigh_suppress). All are derived
from the store, nothing is learnt from the tunnel, unknown MACs are not flooded into it, so a stale row cannot outlive a pass.

With `multicast=true` broadcast and multicast are copied to each peer that has endpoints of the network, and to no other; the bridge asks
its ports who wants what (IGMP, MLD), and passes a group on to those alone. Without it the device has nowhere to send such frames.

Tried elsewhere and dropped: learning through a flooded tunnel, which asks every host for every address and believes any answer; one anycast
MAC for the gateway, which nobody needs where no host ever hears another one's ARP.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface

from plait.backends.base import Backend, Peer, outer_growth
from plait.model.addr import link_local
from plait.model.cluster import Endpoint, Network, Node
from plait.model.objects import (
    PREFIX,
    Addr,
    BridgeFdb,
    BridgeLink,
    Fdb,
    Flood,
    KernelObject,
    Neigh,
    Route,
    Sysctl,
    VxlanLink,
)

SILENT = frozenset({"neigh_suppress"})
"""What the tunnel's port has on; and with multicast:"""
MULTICAST = SILENT | {"mcast_flood", "bcast_flood", "mcast_router"}


class Layer2Backend:
    model = "overlay"
    unit = 1

    def __init__(self, tunnel: Backend) -> None:
        self._tunnel = tunnel
        self.name = tunnel.name
        self.ways = (tunnel.name,)
        self.options = tunnel.options

    def needs(self) -> frozenset[str]:
        return self._tunnel.needs() | {"bridge", "ingress"}

    def overhead(self) -> int:
        return self._tunnel.overhead()

    def device(self, network: Network) -> str:
        """What leads into the tunnel: a port has no addresses of its own."""
        return self.bridge(network)

    def bridge(self, network: Network) -> str:
        return f"{PREFIX}b{hashlib.sha256(network.name.encode()).hexdigest()[:10]}"

    def plan(self, me: Node, network: Network, peers: Sequence[Peer]) -> list[KernelObject]:
        dev, port = self.bridge(network), self._tunnel.device(network)
        link = BridgeLink(dev, me.vtep_mac, me.mtu - outer_growth(me, self.overhead()), querier=network.multicast)
        objects: list[KernelObject] = [link, Addr(dev, IPv4Interface((network.gateway, 32)))]
        if network.gateway6 is not None:
            objects += [Sysctl(f"ipv6/conf/{dev}/accept_ra", "0"), Addr(dev, IPv6Interface(network.gateway6))]
        tunnel = self._tunnel.plan(me, network, peers)
        objects += [found for obj in tunnel for found in _switched(obj, dev, port, network)]
        for peer in peers if tunnel else ():
            if peer.node.address.version == me.address.version:
                objects += [row for endpoint in peer.endpoints for row in _rows(endpoint, peer.node, dev, port)]
                objects += [Flood(port, peer.node.address)] if peer.endpoints and network.multicast else []
        return objects


def _switched(obj: KernelObject, dev: str, port: str, network: Network) -> list[KernelObject]:
    """What a routed tunnel has on its device, where that is a port of the bridge `dev`."""
    match obj:
        case VxlanLink():
            return [replace(obj, master=dev, switching=MULTICAST if network.multicast else SILENT)]
        case Fdb(mac=mac):
            return [obj, BridgeFdb(dev, mac, port)]
        case Addr() | Neigh() | Route():
            return [replace(obj, dev=dev)]
        case Sysctl(path=path):
            return [replace(obj, path=path.replace(f"/{port}/", f"/{dev}/"))]
    return [obj]


def _rows(endpoint: Endpoint, node: Node, dev: str, port: str) -> list[KernelObject]:
    """What leads to one endpoint of a peer. Its link-local address is the one that is made of its MAC."""
    rows: list[KernelObject] = [Fdb(port, endpoint.mac, node.address), BridgeFdb(dev, endpoint.mac, port)]
    rows.append(Neigh(dev, endpoint.address, endpoint.mac))
    if endpoint.address6 is not None:
        rows += [Neigh(dev, address, endpoint.mac) for address in (endpoint.address6, link_local(endpoint.mac))]
    return rows
