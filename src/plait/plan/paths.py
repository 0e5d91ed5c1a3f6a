# SPDX-License-Identifier: Apache-2.0
"""By which path each other node is reached: chosen for every pair from what all nodes found out by probing. Pure.

Data in: the snapshot, with each node's `Reach`; a network. Data out: a `Path` per node. A node is on the same link if both ends say so,
for the packets of both must pass; through a tunnel it is reached until this end has found that it is not.

Where nothing leads there, a third node that both of these are reached by relays: exactly one, so that no packet can go in circles
(`firewall.relay_objects` holds even while nodes disagree). Both ends choose the same one, and different pairs different ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address

from plait.backends import BACKENDS, DIRECT, Path, Peer, backend_of, outer_growth
from plait.model.cluster import Network, Node, Reach, Snapshot
from plait.model.objects import Route

ON_LINK = "both are on one link"
AS_WANTED = "the tunnel is what the backend wants"
NOT_LINKED = "they share no link"
NOTHING = "nothing reaches it"
SWITCHED = "frames go through the tunnel alone"


def choose(snapshot: Snapshot, network: Network) -> dict[str, Path | None]:
    """The path to each other node for the packets of `network`; None where there is no way at all for this backend."""
    backend = backend_of(network)
    chooser = _Chooser(snapshot, backend.ways, backend.device(network), switched=bool(backend.bridge(network)))
    return {name: chooser.path(node) for name, node in snapshot.nodes.items() if name != snapshot.me}


def tunnel_devices(networks: Iterable[Network]) -> frozenset[str]:
    """The tunnel devices of all of `networks` that only an echo between tunnel addresses can judge: an encrypted one knows by itself."""
    return frozenset(backend_of(network).device(network) for network in networks if not network.encrypted) - {""}


def path_mtu(me: Node, node: Node, measured: Mapping[str, int]) -> int:
    """How large a packet the underlay carries from this node to `node`, bytes: the least of both ends' links and what was measured."""
    return min(me.mtu, node.mtu, measured.get(node.name, me.mtu))


def member(snapshot: Snapshot, network: Network) -> Node:
    """This node as `network` has it. Containers on one link over all hosts have one MTU, what the narrowest host has room for: on a link
    nobody tells who sends too long a frame."""
    me = snapshot.nodes[snapshot.me]
    return replace(me, mtu=min(node.mtu for node in snapshot.nodes.values())) if network.layer2 else me


def network_mtu(me: Node, network: Network) -> int:
    """MTU inside the containers of `network` on this node: the underlay's minus what the backend adds, bytes."""
    return me.mtu - outer_growth(me, backend_of(network).overhead())


def inner_mtu(me: Node, node: Node, network: Network, path: Path | None, measured: Mapping[str, int]) -> int:
    """How large a packet of `network` may be inside on its way to `node`, bytes. Beyond a relay, the far end's link is what is known."""
    if path is None:
        return network_mtu(me, network)
    carried = path_mtu(me, path.relay or node, measured)
    return min(network_mtu(me, network), min(carried, node.mtu) - outer_growth(me, BACKENDS[path.kind].overhead()))


def linkable(nodes: Mapping[str, Node]) -> dict[str, IPv4Address]:
    """The nodes between which plain routes to containers are possible at all, with their next hops, for these must be of IPv4."""
    return {name: node.address for name, node in nodes.items() if isinstance(node.address, IPv4Address)}


def direct_routes(me: Node, dev: str, peers: Iterable[Peer]) -> list[Route]:
    """To the blocks of those whose first step is on the link `dev`; none while no link carries this host's address ("")."""
    return [
        Route(block, dev, via=peer.hop.address, onlink=True, src=me.tunnel, mtu=peer.mtu)
        for peer in peers
        if dev and peer.path is not None and peer.path.kind == DIRECT
        for block in peer.blocks
    ]


class _Chooser:
    """For one backend's ways and one tunnel device. What is `switched` is never relayed: that takes a router."""

    def __init__(self, snapshot: Snapshot, ways: tuple[str, ...], device: str, switched: bool) -> None:
        self._snapshot, self._ways, self._device, self._switched = snapshot, ways, device, switched
        self._linkable = linkable(snapshot.nodes)

    def path(self, node: Node) -> Path | None:
        me = self._snapshot.me
        kind = self._first(me, node.name)
        if kind:
            return Path(kind, self._why(kind))
        relay = None if self._switched else self._relay(node.name)
        if relay is not None:
            first = self._first(me, relay.name)
            return Path(first, f"{self._trouble()}; {relay.name} reaches it", relay)
        tunnels = [way for way in self._ways if way != DIRECT]
        return Path(tunnels[0], NOTHING, works=False) if tunnels else None

    def _first(self, here: str, there: str) -> str:
        """The kind of path by which `here` reaches `there` without anybody's help, "" if there is none."""
        return next((way for way in self._ways if self._works(way, here, there)), "")

    def _works(self, way: str, here: str, there: str) -> bool:
        if way == DIRECT:
            return {here, there} <= self._linkable.keys() and there in self._of(here).linked and here in self._of(there).linked
        return there not in self._of(here).broken.get(self._device, ())

    def _of(self, name: str) -> Reach:
        return self._snapshot.reach.get(name) or Reach(name)

    def _relay(self, name: str) -> Node | None:
        me = self._snapshot.me
        others = (self._snapshot.nodes[n] for n in self._snapshot.alive & self._snapshot.nodes.keys() - {me, name})
        fit = [node for node in others if self._first(me, node.name) and self._first(node.name, name)]
        pair = " ".join(sorted((me, name)))
        return min(fit, key=lambda node: hashlib.sha256(f"{pair} {node.name}".encode()).digest(), default=None)

    def _why(self, kind: str) -> str:
        if kind == self._ways[0]:
            return ON_LINK if kind == DIRECT else SWITCHED if self._switched else AS_WANTED
        return NOT_LINKED if kind != DIRECT else f"{self._trouble()}; {ON_LINK}"

    def _trouble(self) -> str:
        return f"nothing comes through the tunnel {self._device}" if self._device else NOT_LINKED
