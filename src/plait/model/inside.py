# SPDX-License-Identifier: Apache-2.0
"""What is found in a sandbox's namespace. No part of any plan: what is wrong there is told, not mended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from plait.model.addr import IPInterface


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
