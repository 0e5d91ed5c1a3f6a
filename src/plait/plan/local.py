# SPDX-License-Identifier: Apache-2.0
"""What a node knows of itself that the plan needs and nobody else does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from plait.model.addr import IPNetwork
from plait.model.hostlinks import BridgePort
from plait.model.routing import RouteTable
from plait.plan.balancing import Balancing
from plait.plan.guard import GUARDS
from plait.plan.hostlease import HostLease
from plait.plan.neighbours import Neighbours
from plait.plan.policy import Policing
from plait.plan.residents import Residents
from plait.shaping import Limiting, Uplink


@dataclass(frozen=True, slots=True)
class Local:
    """Facts of this node that are not replicated: whether it forwards for hosts without an agent, the namespaces of sandboxes whose
    inside plait plumbs (endpoint id -> path; also where a vanished link is to be put back), whether its kernel can forward at ingress
    (`fastpath.CAPABILITY`), the link that may give containers what it receives (`plan/shortcut.py`, "" for none), whether nobody's
    rules judge what the host itself receives and sends, what was measured of the way to other nodes (name -> bytes a packet may have),
    whether its kernel has IPv6, the link that carries the node's address, whether this host drops what comes from where it would not
    send to (rp_filter 1), the tunnel devices that must compute checksums themselves, which nodes are sent to by the spare encrypted
    tunnel (`rotation`), the links that it has, where networks lie on them or are encrypted, the addresses that it has leased for
    networks, what it knows of limits and of the queues of its `uplink`, which of `guard.GUARDS` against what is forged its kernel has,
    the links of containers on Docker's default bridge (by container; some may be gone), who may come to published ports (() for
    everybody), whether its kernel can choose among backends (`vips.CAPABILITY`), the tables of routes that routers fill, which lost
    nodes' hosts are silent (`vips`), and, to spare it work, what it made of policies, services, endpoints and other nodes before."""

    gateway: bool = False
    netns: Mapping[str, str] = field(default_factory=dict)
    fast_path: bool = False
    shortcut: str = ""
    trusting: bool = False
    path_mtu: Mapping[str, int] = field(default_factory=dict)
    ipv6: bool = True
    underlay: str = ""
    strict: bool = False
    software_checksums: frozenset[str] = frozenset()
    moved: Mapping[str, int] = field(default_factory=dict)
    links: frozenset[str] = frozenset()
    leases: Mapping[str, HostLease] = field(default_factory=dict)
    limiting: Limiting = Limiting()
    uplink: Uplink = Uplink()
    guards: frozenset[str] = GUARDS
    bridged: Mapping[str, BridgePort] = field(default_factory=dict)
    clients: tuple[IPNetwork, ...] = ()
    draws: bool = True
    tables: tuple[RouteTable, ...] = ()
    silent: frozenset[str] = frozenset()
    policing: Policing = field(default_factory=Policing, compare=False)
    balancing: Balancing = field(default_factory=Balancing, compare=False)
    residents: Residents = field(default_factory=Residents, compare=False)
    neighbours: Neighbours = field(default_factory=Neighbours, compare=False)
