# SPDX-License-Identifier: Apache-2.0
"""Snapshot -> what this node tells routers that it has, and what none of them may tell it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network

from plait.ipam import image_block, stray_endpoints
from plait.model.addr import IPInterface, IPNetwork, in_order
from plait.model.cluster import Snapshot
from plait.model.service import VIP_POOL, VIP_POOL6
from plait.plan.backing import Backing, chosen
from plait.plan.desired import routed_strays
from plait.plan.dual import V4, V6
from plait.plan.outside import unroutable

Prefixes = Mapping[str, tuple[IPNetwork, ...]]
"""Of both families, by name of a network, in the order of addresses."""


def announced(snapshot: Snapshot, services: Prefixes) -> Prefixes:
    """Of networks that can be announced: this node's blocks, single addresses that it has of others' blocks, and `services` (`served`)."""
    found = {name: list(services.get(name, ())) for name, network in snapshot.networks.items() if not unroutable(network)}
    for block in snapshot.blocks.values():
        if block.node == snapshot.me and block.network in found:
            found[block.network] += filter(None, (block.cidr, image_block(snapshot.networks[block.network], block.cidr)))
    for stray in routed_strays(snapshot, stray_endpoints(snapshot)):
        if stray.node == snapshot.me and stray.network in found:
            found[stray.network].append(IPv4Network(stray.address))
            if stray.address6 is not None and snapshot.networks[stray.network].subnet6 is not None:
                found[stray.network].append(IPv6Network(stray.address6))
    return {name: in_order(prefixes) for name, prefixes in found.items()}


def served(snapshot: Snapshot, networks: Collection[str]) -> Prefixes:
    """The virtual addresses of services on these networks that lead somewhere on this node: with a ready container anywhere, or (services
    that keep to their own host) here. Costs as much as finding the backends of all services."""
    found: dict[str, list[IPNetwork]] = {}
    services = [one for one in snapshot.services.values() if one.address is not None and one.network in networks]
    backing = Backing(snapshot) if services else None
    for service in services:
        assert backing is not None
        behind = backing.of(service)
        for family in (V4, V6):
            vip = family.vip(service, snapshot.networks.get(service.network))
            ready = chosen(service, [one for one in behind if family.address(one) is not None], snapshot.me)
            if vip is not None and any(backend.node == snapshot.me or not service.local_first for backend in ready):
                found.setdefault(service.network, []).append(ip_network(vip))
    return {name: in_order(prefixes) for name, prefixes in found.items()}


def guarded(snapshot: Snapshot, here: Iterable[tuple[IPInterface, str]]) -> dict[IPNetwork, str]:
    """What nobody outside may announce, nor a part of it -> what that is. `here`: this host's own addresses, each with its link."""
    dual = any(network.subnet6 is not None for network in snapshot.networks.values())
    found: dict[IPNetwork, str] = dict.fromkeys((VIP_POOL, *([VIP_POOL6] if dual else [])), "virtual addresses of services")
    for node in snapshot.nodes.values():
        own = (node.address, *((node.tunnel6, node.encrypted6, node.probe6) if dual else ()))
        found |= {ip_network(address): f"the host of node {node.name}" for address in own}
    found |= {a.network: f"this host's own link {dev}" for a, dev in here if a.network.prefixlen}
    subnets = ((network.name, subnet) for network in snapshot.networks.values() for subnet in (network.subnet, network.subnet6))
    return found | {subnet: f"addresses of plait's network {name}" for name, subnet in subnets if subnet is not None}
