# SPDX-License-Identifier: Apache-2.0
"""Snapshot -> what this node tells routers that it has, and what none of them may tell it."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Interface, IPv4Network

from plait.model.addr import IPInterface
from plait.model.cluster import Snapshot
from plait.model.service import VIP_POOL
from plait.plan.desired import routed_strays
from plait.plan.outside import unroutable


def announced(snapshot: Snapshot) -> dict[str, tuple[IPv4Network, ...]]:
    """By network, of those that can be announced: this node's blocks, and single addresses that it has of others' blocks."""
    found: dict[str, list[IPv4Network]] = {name: [] for name, network in snapshot.networks.items() if not unroutable(network)}
    for block in snapshot.blocks.values():
        if block.node == snapshot.me and block.network in found:
            found[block.network].append(block.cidr)
    for stray in routed_strays(snapshot):
        if stray.node == snapshot.me and stray.network in found:
            found[stray.network].append(IPv4Network(stray.address))
    return {name: tuple(sorted(prefixes)) for name, prefixes in found.items()}


def guarded(snapshot: Snapshot, here: Iterable[tuple[IPInterface, str]]) -> dict[IPv4Network, str]:
    """What nobody outside may announce, nor a part of it -> what that is. `here`: this host's own addresses, each with its link."""
    found = {VIP_POOL: "virtual addresses of services"}
    found |= {IPv4Network(node.address): f"the host of node {node.name}" for node in snapshot.nodes.values() if node.address.version == 4}
    found |= {a.network: f"this host's own link {dev}" for a, dev in here if isinstance(a, IPv4Interface) and a.network.prefixlen}
    return found | {network.subnet: f"addresses of plait's network {network.name}" for network in snapshot.networks.values()}
