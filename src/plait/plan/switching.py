# SPDX-License-Identifier: Apache-2.0
"""What the endpoints of a network of layer 2 need on their host beside their link: static rows, and rules in the chain of their link.

The bridge answers ARP and neighbour discovery in the place of endpoints on other hosts, but only what is asked of everybody: a question to
one MAC it passes on (since Linux 6.15; before, it did both), and one that is sent to a group of IPv6 goes where the group's members are,
through the tunnel too. So what an endpoint asks is turned into a broadcast as soon as its host has it. Whoever is asked on the same host
answers as ever, and of what the bridge knows nothing crosses the underlay, confirmations of old entries included.
"""

from __future__ import annotations

from plait.backends import backend_of
from plait.model.addr import link_local
from plait.model.cluster import Endpoint, Network
from plait.model.objects import BridgeFdb, KernelObject, Neigh

_EVERYBODY = "ff:ff:ff:ff:ff:ff"
_ASKS_ARP, _ASKS_ND = "request", "nd-neighbor-solicit"
"""ARP request (RFC 826), neighbour solicitation (RFC 4861, section 4.3): nft prints names, and what it prints is what is compared."""


def switched_objects(network: Network, endpoint: Endpoint) -> list[KernelObject]:
    """Those of one endpoint of this node; none where it is routed."""
    if not network.layer2:
        return []
    bridge = backend_of(network).bridge(network)
    objects: list[KernelObject] = [BridgeFdb(bridge, endpoint.mac, endpoint.dev), Neigh(bridge, endpoint.address, endpoint.mac)]
    if network.subnet6 is not None and endpoint.address6 is not None:
        objects.append(Neigh(bridge, link_local(endpoint.mac), endpoint.mac))
    return objects


def switched_rules(network: Network, endpoint: Endpoint) -> list[str]:
    """Those of the chain of its link (`entrance.py`)."""
    if not network.layer2:
        return []
    rules = [f"arp operation {_ASKS_ARP} ether daddr set {_EVERYBODY}"]
    if network.subnet6 is not None and endpoint.address6 is not None:
        rules.append(f"icmpv6 type {_ASKS_ND} ether daddr set {_EVERYBODY}")
    return rules
