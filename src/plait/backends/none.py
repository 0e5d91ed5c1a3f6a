# SPDX-License-Identifier: Apache-2.0
"""Backend `none`: a network that stays on its host. Nothing is sent between nodes."""

from __future__ import annotations

from collections.abc import Sequence

from plait.backends.base import Peer
from plait.model.cluster import Network, Node
from plait.model.objects import KernelObject


class NoneBackend:
    name, model = "none", "sandbox"

    def needs(self) -> frozenset[str]:
        return frozenset({"veth", "nft"})

    def overhead(self) -> int:
        return 0

    def device(self, network: Network) -> str:
        return ""

    def plan(self, me: Node, network: Network, peers: Sequence[Peer]) -> list[KernelObject]:
        return []
