# SPDX-License-Identifier: Apache-2.0
"""Backend `hybrid`: plain routes between nodes that were found to share a link, another backend's tunnel to the others.

Containers have the underlay's whole MTU; routes through the tunnel say how much less they carry, so that a host tells its own containers
at once, and a connection lives on when the path of its pair changes.
"""

from __future__ import annotations

from collections.abc import Sequence

from plait.backends.base import DIRECT, Backend, Peer
from plait.model.cluster import Network, Node
from plait.model.objects import KernelObject


class HybridBackend:
    name, model = "hybrid", "hybrid"

    def __init__(self, tunnel: Backend) -> None:
        self._tunnel = tunnel
        self.ways = (DIRECT, tunnel.name)
        self.options = tunnel.options & {"port", "vni", "lease"}

    def needs(self) -> frozenset[str]:
        return self._tunnel.needs()

    def overhead(self) -> int:
        return 0

    def device(self, network: Network) -> str:
        return self._tunnel.device(network)

    def bridge(self, network: Network) -> str:
        return ""

    def plan(self, me: Node, network: Network, peers: Sequence[Peer]) -> list[KernelObject]:
        return self._tunnel.plan(me, network, peers)
