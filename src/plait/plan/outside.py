# SPDX-License-Identifier: Apache-2.0
"""What lets containers and the networks of routers talk to each other by their own addresses, each network by its own table of routes.

Data in: the tables of this host's routing file. Data out: rules of routing and elements of the set `outside`. In the order of their
priorities, what a container of such a network sends goes by the host's own routes, but for a default route; by what the table has learned;
nowhere, if it is for what may only be learned and is not at the moment; and then by the host's default route, translated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network

from plait.backends import child_of
from plait.model.cluster import Network
from plait.model.objects import KernelObject, NftSet
from plait.model.routing import MAIN_TABLE, RULE_PRIORITY, RouteTable, Rule
from plait.plan.beyond import Beyond

_OUTSIDE = "outside"
"""Pairs of a network's subnet and what routers may announce to it."""
_INBOUND = f'iifname != "pl-*" ip saddr != @pools ip daddr . ip saddr @{_OUTSIDE} accept'
"""In chain `forward`: they may begin to talk to containers."""
_OUTBOUND = f"ip saddr . ip daddr @{_OUTSIDE} ip daddr != @pools accept"
"""In chain `postrouting`: containers keep their addresses."""


def unroutable(network: Network | None) -> str:
    """Why blocks of the network cannot be announced, "" if they can."""
    if network is None:
        return "there is no such network"
    if child_of(network) is not None:
        return "its containers are on a link of the hosts, whose routers know it"
    if network.internal:
        return "it is internal"
    return "it is encrypted, and nothing of it may leave in clear" if network.encrypted else ""


def outside_objects(networks: Mapping[str, Network], tables: Iterable[RouteTable]) -> Beyond:
    """Nothing without tables."""
    objects: list[KernelObject] = []
    pairs: set[str] = set()
    for table in tables:
        for network in (networks.get(name) for name in table.networks):
            if network is not None and not unroutable(network):
                objects += _rules(network.subnet, table.number, table.outside)
                pairs |= {f"{network.subnet} . {prefix}" for prefix in table.outside}
    if not pairs:
        return Beyond(tuple(objects))
    found = NftSet(_OUTSIDE, "ipv4_addr . ipv4_addr", frozenset(pairs), ("interval",))
    return Beyond((*objects, found), (_INBOUND,), (_OUTBOUND,))


def _rules(subnet: IPv4Network, table: int, outside: Sequence[IPv4Network]) -> list[Rule]:
    return [
        Rule(RULE_PRIORITY, subnet, MAIN_TABLE, specific=True),
        Rule(RULE_PRIORITY + 1, subnet, table),
        *(Rule(RULE_PRIORITY + 2, subnet, dst=prefix) for prefix in outside),
    ]
