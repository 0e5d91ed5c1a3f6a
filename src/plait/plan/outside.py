# SPDX-License-Identifier: Apache-2.0
"""What lets containers and the networks of routers talk to each other by their own addresses, each network by its own table of routes.

Data in: the tables of this host's routing file. Data out: rules of routing and elements of the set `outside` (of IPv6: `outside6`). In the
order of their priorities, what a container of such a network sends goes by the host's own routes, but for a default route; by what the
table has learned; nowhere, if it is for what may only be learned and is not at the moment; and then by the default route, translated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from plait.backends import child_of
from plait.model.addr import IPNetwork
from plait.model.cluster import Network
from plait.model.objects import KernelObject, NftSet
from plait.model.routing import MAIN_TABLE, RULE_PRIORITY, RouteTable, Rule
from plait.plan.beyond import Beyond
from plait.plan.dual import V4, V6, Family

_OUTSIDE = "outside"
"""Pairs of a network's subnet and what routers may announce to it. In chain `forward` these may begin to talk to containers, and in
`postrouting` containers keep their addresses for them."""


def unroutable(network: Network | None) -> str:
    """Why blocks of the network cannot be announced, "" if they can."""
    if network is None:
        return "there is no such network"
    if child_of(network) is not None:
        return "its containers are on a link of the hosts, whose routers know it"
    if network.internal:
        return "it is internal"
    return "it is encrypted, and nothing of it may leave in clear" if network.encrypted else ""


def outside_objects(networks: Mapping[str, Network], tables: Sequence[RouteTable]) -> Beyond:
    """Nothing without tables, and of a family nothing without networks that have it."""
    return _of_family(V4, networks, tables) + _of_family(V6, networks, tables)


def _of_family(family: Family, networks: Mapping[str, Network], tables: Iterable[RouteTable]) -> Beyond:
    objects: list[KernelObject] = []
    pairs: set[str] = set()
    for table in tables:
        outside = [prefix for prefix in table.outside if prefix.version == family.anywhere.version]
        subnets = family.subnets(network for name in table.networks if (network := networks.get(name)) and not unroutable(network))
        for subnet in subnets:
            objects += _rules(subnet, table.number, outside)
            pairs |= {f"{subnet} . {prefix}" for prefix in outside}
    if not pairs:
        return Beyond(tuple(objects))
    ip, kind, end, _ = family
    found = NftSet(f"{_OUTSIDE}{end}", f"{kind} . {kind}", frozenset(pairs), ("interval",))
    inbound = f'iifname != "pl-*" {ip} saddr != @pools{end} {ip} daddr . {ip} saddr @{found.name} accept'
    outbound = f"{ip} saddr . {ip} daddr @{found.name} {ip} daddr != @pools{end} accept"
    return Beyond((*objects, found), (inbound,), (outbound,))


def _rules(subnet: IPNetwork, table: int, outside: Sequence[IPNetwork]) -> list[Rule]:
    return [
        Rule(RULE_PRIORITY, subnet, MAIN_TABLE, specific=True),
        Rule(RULE_PRIORITY + 1, subnet, table),
        *(Rule(RULE_PRIORITY + 2, subnet, dst=prefix) for prefix in outside),
    ]
