# SPDX-License-Identifier: Apache-2.0
"""The two families of addresses as BIRD and the routing file spell them. What is said of one holds of the other."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from plait.model.addr import IPNetwork


class Family(NamedTuple):
    """`word` is BIRD's and ours; `end`: what names of its own have more than those of IPv4; `ospf`: the version of OSPF that carries it;
    `area`: what names of such areas begin with; `default`: the default route, which the file calls "default" and `end`."""

    version: int
    word: str
    end: str
    ospf: str
    area: str
    default: IPNetwork

    def of(self, prefixes: Iterable[IPNetwork]) -> list[IPNetwork]:
        return [prefix for prefix in prefixes if prefix.version == self.version]


V4 = Family(4, "ipv4", "", "v2", "ospf", IPv4Network("0.0.0.0/0"))
V6 = Family(6, "ipv6", "6", "v3", "ospf3", IPv6Network("::/0"))
FAMILIES = (V4, V6)


def is_default(prefix: IPNetwork) -> bool:
    return prefix.prefixlen == 0
