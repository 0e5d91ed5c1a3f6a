# SPDX-License-Identifier: Apache-2.0
"""Backend `bridge`: a network that stays on its host, whose containers are ports of one bridge there: broadcast and multicast reach the
others, and nobody else. With the option `isolated=true` the ports reach only the host, and through it the outside, not each other.

Out: the bridge, with the gateway's addresses on it. The endpoints' links are made its ports, and its routes lead to it, by the plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Interface

from plait.backends.base import NoTunnel, Peer
from plait.model.addr import mac_from_digest
from plait.model.cluster import Network, Node
from plait.model.objects import PREFIX, Addr, BridgeLink, KernelObject, Sysctl


class BridgeBackend(NoTunnel):
    name, model = "bridge", "sandbox"
    ways: tuple[str, ...] = ()
    options = frozenset({"lease"})

    def needs(self) -> frozenset[str]:
        return super().needs() | {"bridge"}

    def bridge(self, network: Network) -> str:
        return f"{PREFIX}b{hashlib.sha256(network.name.encode()).hexdigest()[:10]}"

    def plan(self, me: Node, network: Network, peers: Sequence[Peer]) -> list[KernelObject]:
        dev = self.bridge(network)
        mac = mac_from_digest(hashlib.sha256(f"br:{me.id}:{network.name}".encode()).digest())
        made: list[KernelObject] = [BridgeLink(dev, mac, me.mtu), Addr(dev, IPv4Interface((network.gateway, 32)))]
        if network.gateway6 is not None:
            made += [Sysctl(f"ipv6/conf/{dev}/disable_ipv6", "0"), Sysctl(f"ipv6/conf/{dev}/accept_ra", "0")]
            made.append(Addr(dev, IPv6Interface(network.gateway6)))
        return made
