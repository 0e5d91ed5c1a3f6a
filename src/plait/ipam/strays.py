# SPDX-License-Identifier: Apache-2.0
"""Endpoints outside their node's blocks: what lives on after the node was taken for gone and its blocks went to others."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address

from plait.ipam.dual import held_by
from plait.model.cluster import Endpoint, Snapshot


def stray_endpoints(snapshot: Snapshot) -> list[Endpoint]:
    """Those of all nodes whose address lies in no block of their own node, or whose IPv6 address in no image of one, by id."""
    return sorted(strays_among(snapshot.endpoints.values(), snapshot), key=lambda e: e.id)


def strays_among(endpoints: Iterable[Endpoint], snapshot: Snapshot) -> list[Endpoint]:
    """The same of these `endpoints`, as blocks and networks of `snapshot` are. One look-up per address."""
    masks = {network.name: -1 << (32 - network.block_prefix) for network in snapshot.networks.values() if not network.by_dhcp}
    holders = {(block.network, int(block.cidr.network_address)): block.node for block in snapshot.blocks.values()}
    found: list[Endpoint] = []
    for endpoint in endpoints:
        mask = masks.get(endpoint.network)
        if mask is None:
            continue
        at_home = holders.get((endpoint.network, int(endpoint.address) & mask)) == endpoint.node
        if at_home and endpoint.address6 is None:
            continue
        addresses = held_by(snapshot.networks[endpoint.network], endpoint)
        if any(holders.get((endpoint.network, int(address) & mask)) != endpoint.node for address in addresses):
            found.append(endpoint)
    return found


def ghosts_of(snapshot: Snapshot, network: str) -> set[IPv4Address]:
    """Addresses that containers of removed nodes may still have."""
    return {address for ghosts in snapshot.ghosts.values() for where, address in ghosts.addresses if where == network}


def in_use_elsewhere(snapshot: Snapshot, network: str) -> set[IPv4Address]:
    """Addresses that other nodes have in use, of blocks that may have been theirs."""
    others = (e for e in snapshot.endpoints.values() if e.network == network and e.node != snapshot.me)
    used = {address for e in others for address in held_by(snapshot.networks.get(network), e)}
    return used | {n.tunnel for n in snapshot.nodes.values() if n.tunnel is not None and n.name != snapshot.me}
