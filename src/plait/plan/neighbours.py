# SPDX-License-Identifier: Apache-2.0
"""The other nodes as each network has them, and what leads to them in the kernel.

Data in: a Snapshot with the networks as this node carries them, the same as all nodes see it, strays. Data out, by network: its peers, and
the objects of its backend and of plain routes. What was made of a network the last time is taken where all that it is made of is the same,
so that among hundreds of nodes a change costs what it is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from plait.backends import Path, Peer, backend_of
from plait.ipam import image_block
from plait.model.cluster import Block, Endpoint, Network, Snapshot
from plait.model.hostlinks import Key
from plait.model.objects import KernelObject
from plait.plan.exposed import HOST
from plait.plan.paths import choose, direct_routes, inhabited, inner_mtu, member, network_mtu

Frame = tuple[object, ...]


class Neighbourhood(NamedTuple):
    """Of one network. `peers`: the other nodes by name, each with its blocks and with the addresses that it has in use of blocks that are
    not its own; none where nobody is to be reached."""

    peers: list[Peer]
    objects: list[KernelObject]
    keys: dict[int, Key]
    """Those of the objects, by `id`: to spell them takes longer than all else."""


class Neighbours:
    """What it says depends on its arguments alone, whatever it was asked before."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Frame, Neighbourhood]] = {}

    def of(
        self,
        shared: Snapshot,
        snapshot: Snapshot,
        outside: Sequence[Endpoint],
        routed: Sequence[Endpoint],
        underlay: str,
        path_mtu: Mapping[str, int],
    ) -> dict[str, Neighbourhood]:
        """By network of `snapshot`, which has those that this node carries, as it does; paths are chosen as the others see them, by
        `shared`, so that both ends take the same. `outside`: strays, of which `routed` are sent to."""
        blocks: dict[str, list[Block]] = {}
        for block in snapshot.blocks.values():
            blocks.setdefault(block.network, []).append(block)
        lived_in, before = inhabited(snapshot, routed), self._known
        self._known = {}
        for name, network in snapshot.networks.items():
            seen, mine, strays = shared.networks[name], blocks.get(name, []), [stray for stray in routed if stray.network == name]
            on_link = (snapshot.endpoints, [stray.id for stray in outside]) if network.layer2 else ()
            ways = shared.me, name in lived_in, shared.nodes, shared.reach, shared.alive, underlay, dict(path_mtu)
            frame = seen, network, snapshot.nodes, ways, mine, strays, on_link
            known = before.get(name)
            if known is not None and known[0] == frame:
                self._known[name] = known
                continue
            peers: list[Peer] = []
            if name in lived_in:
                there = _on_one_link(snapshot, network, outside, routed) if network.layer2 else {}
                peers = _peers(snapshot, network, path_mtu, mine, strays, choose(shared, seen), there)
            me = member(snapshot, network)
            objects = backend_of(network).plan(me, network, peers)
            objects += direct_routes(snapshot.nodes[snapshot.me], network, underlay, peers)
            self._known[name] = frame, Neighbourhood(peers, objects, {id(obj): obj.key for obj in objects})
        return {name: found for name, (_, found) in self._known.items()}


def _peers(
    snapshot: Snapshot,
    network: Network,
    path_mtu: Mapping[str, int],
    own: Iterable[Block],
    strays: Iterable[Endpoint],
    paths: Mapping[str, Path | None],
    there: Mapping[str, tuple[Endpoint, ...]],
) -> list[Peer]:
    blocks: dict[str, list[IPv4Network]] = {}
    blocks6: dict[str, list[IPv6Network]] = {}
    for block in own:
        blocks.setdefault(block.node, []).append(block.cidr)
        if (images := image_block(network, block.cidr)) is not None:
            blocks6.setdefault(block.node, []).append(images)
    for stray in strays:
        blocks.setdefault(stray.node, []).append(IPv4Network(stray.address))
        if network.subnet6 is not None and stray.address6 is not None:
            blocks6.setdefault(stray.node, []).append(IPv6Network(stray.address6))
    me = member(snapshot, network)
    whole, found = network_mtu(me, network), []
    for name in sorted(paths):
        node, path = snapshot.nodes[name], paths[name]
        mtu = inner_mtu(me, node, network, path, path_mtu)
        cidrs, cidrs6 = tuple(sorted(blocks.get(name, ()))), tuple(sorted(blocks6.get(name, ())))
        found.append(Peer(node, cidrs, path, mtu if mtu < whole else 0, cidrs6, name in snapshot.alive, there.get(name, ())))
    return found


def _on_one_link(
    snapshot: Snapshot, network: Network, strays: Iterable[Endpoint], routed: Iterable[Endpoint]
) -> dict[str, tuple[Endpoint, ...]]:
    """The network's endpoints by node, but for strays whose address somebody else has rightfully (see `routed_strays`). The hosts' own are
    where their bridges are."""
    unlucky = {stray.id for stray in strays} - {stray.id for stray in routed}
    found: dict[str, list[Endpoint]] = {}
    for _, endpoint in sorted(snapshot.endpoints.items()):
        if endpoint.network == network.name and endpoint.id not in unlucky and endpoint.node in snapshot.nodes:
            bridge_mac = snapshot.nodes[endpoint.node].vtep_mac
            found.setdefault(endpoint.node, []).append(replace(endpoint, mac=bridge_mac) if endpoint.runtime == HOST else endpoint)
    return {node: tuple(endpoints) for node, endpoints in found.items()}
