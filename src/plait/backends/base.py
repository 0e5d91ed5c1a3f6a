# SPDX-License-Identifier: Apache-2.0
"""The backend seam: what a way of carrying packets between nodes must tell. No I/O, no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol

from plait.model.cluster import Network, Node
from plait.model.objects import KernelObject

MODELS = {
    "sandbox": "isolated containers on one host",
    "overlay": "one network over all hosts, whatever lies between them",
}
"""What a network can promise; a backend says how it is kept."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node, the blocks of the network at hand that are routed to it (a single address where it has one of another node's block in
    use), ascending, and how large a packet the underlay carries
    there, bytes (at most what this node's own link does). `blocks6` are their images, where the network has IPv6."""

    node: Node
    blocks: tuple[IPv4Network, ...]
    mtu: int
    blocks6: tuple[IPv6Network, ...] = ()


class Backend(Protocol):
    @property
    def model(self) -> str:
        """What a network of this backend promises, one of `MODELS`."""
        ...

    @property
    def name(self) -> str:
        """The value of `--backend`, and the name of the file."""
        ...

    def needs(self) -> frozenset[str]:
        """Kernel capabilities without which the backend cannot work."""
        ...

    def overhead(self) -> int:
        """Bytes that each packet grows by on the underlay. The only source of MTU arithmetic."""
        ...

    def device(self, network: Network) -> str:
        """The link of this node through which the network's blocks on other nodes are reached, "" if they are not reached."""
        ...

    def plan(self, me: Node, network: Network, peers: Sequence[Peer]) -> list[KernelObject]:
        """All kernel objects for this network between this node and `peers`; several networks may share some."""
        ...
