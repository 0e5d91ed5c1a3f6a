# SPDX-License-Identifier: Apache-2.0
"""The inside of a sandbox: what plait gives it of IPv6, and what is found in its namespace, which is told, not mended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, IPv6Network

from plait.model.addr import IPInterface


@dataclass(frozen=True, slots=True)
class Inside6:
    """What a sandbox has of IPv6: `address` alone on its link (/128), everything else of `subnet` behind `gateway`, which the host's side
    answers for; with `default`, the rest of the world too. `on_link`: the others of the subnet are neighbours on the link instead."""

    address: IPv6Address
    gateway: IPv6Address
    subnet: IPv6Network
    default: bool
    on_link: bool = False

    @property
    def interface(self) -> IPv6Interface:
        return IPv6Interface((self.address, self.subnet.prefixlen if self.on_link else 128))

    @property
    def through(self) -> tuple[IPv6Network, ...]:
        """What is reached by way of the gateway."""
        return (*(() if self.on_link else (self.subnet,)), *((IPv6Network("::/0"),) if self.default else ()))


@dataclass(frozen=True, slots=True)
class InsideLink:
    """A link as it is found in a sandbox's namespace."""

    mac: str
    up: bool
    addresses: frozenset[IPInterface] = frozenset()


@dataclass(frozen=True, slots=True)
class SandboxState:
    """What a sandbox's namespace holds: links by name, and the next hops of its default routes."""

    links: Mapping[str, InsideLink] = field(default_factory=dict)
    gateways: frozenset[IPv4Address] = frozenset()
    gateways6: frozenset[IPv6Address] = frozenset()
