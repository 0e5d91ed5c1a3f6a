# SPDX-License-Identifier: Apache-2.0
"""The one order in which operations are applied, so that each finds what it depends on and nothing is cut before its replacement."""

from __future__ import annotations

from collections.abc import Iterable

from plait.model.hostlinks import ChildLink, SwitchPort, VlanLink
from plait.model.objects import (
    Addr,
    AllowedIp,
    BridgeFdb,
    BridgeLink,
    EndpointLink,
    Fdb,
    Flood,
    HookRule,
    InsideRoutes,
    KernelObject,
    Neigh,
    NftChain,
    NftElement,
    NftSet,
    Op,
    Route,
    Sysctl,
    VxlanLink,
    WireguardLink,
    WireguardPeer,
)
from plait.model.shortcut import Delivery, Shortcut
from plait.model.tc import IfbLink, Redirect, Tbf

_RANKS: tuple[tuple[type[KernelObject], ...], ...] = (
    (VxlanLink, BridgeLink, WireguardLink, EndpointLink, VlanLink, IfbLink),
    (ChildLink, SwitchPort, Tbf),
    (Redirect,),
    (Sysctl,),
    (Addr,),
    (Neigh, Fdb, BridgeFdb, Flood, WireguardPeer),
    (AllowedIp,),
    (Route, InsideRoutes),
    (NftSet,),
    (NftElement,),
    (NftChain,),
    (HookRule,),
    (Shortcut,),
    (Delivery,),
)


def rank(obj: KernelObject) -> int:
    """0 for links, growing with what depends on what: child, port or queueing discipline, redirection, sysctl, address, neighbour or peer,
    route, set, element, chain, hook rule, shortcut, delivery."""
    return next(number for number, kinds in enumerate(_RANKS) if isinstance(obj, kinds))


def order(ops: Iterable[Op]) -> list[Op]:
    """Puts by rank, then deletions by falling rank; within a rank by key, so that equal input gives equal output."""
    listed = list(ops)
    puts = sorted((op for op in listed if op.verb == "put"), key=lambda op: (rank(op.subject), op.key))
    deletions = sorted((op for op in listed if op.verb == "del"), key=lambda op: (-rank(op.subject), op.key))
    return puts + deletions
