# SPDX-License-Identifier: Apache-2.0
"""The one order in which operations are applied, so that each finds what it depends on and nothing is cut before its replacement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from plait.model.hostlinks import ChildGuard, ChildLink, PortGuard, SwitchPort, VlanLink
from plait.model.nfttext import difference
from plait.model.objects import (
    NFT_FAST_FAMILY,
    Addr,
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
)
from plait.model.routing import Rule
from plait.model.shortcut import Delivery, Shortcut
from plait.model.tc import Classes, IfbLink, PortQueues, Redirect, Tbf
from plait.model.wireguard import AllowedIp, WireguardLink, WireguardPeer
from plait.reconcile.leading import Name, depths, name_of

_RANKS: tuple[tuple[type[KernelObject], ...], ...] = (
    (VxlanLink, BridgeLink, WireguardLink, EndpointLink, VlanLink, IfbLink),
    (PortGuard,),
    (ChildLink, SwitchPort, Tbf, PortQueues, Classes),
    (ChildGuard,),
    (Redirect,),
    (Sysctl,),
    (Addr,),
    (Neigh, Fdb, BridgeFdb, Flood, WireguardPeer),
    (AllowedIp,),
    (Route, InsideRoutes),
    (Rule,),
    (NftSet,),
    (NftElement,),
    (NftChain,),
    (HookRule,),
    (Shortcut,),
    (Delivery,),
)

_SET = NftSet("", "", frozenset())
_RULES = (NftChain, NftSet)


def rank(obj: KernelObject) -> int:
    """0 for links, growing with what depends on what: guard, child, port or queueing discipline, guard of a child, redirection, sysctl,
    address, neighbour or peer, route, rule, set, element, chain, hook rule, shortcut, delivery."""
    return next(number for number, kinds in enumerate(_RANKS) if isinstance(obj, kinds))


def order(ops: Iterable[Op]) -> list[Op]:
    """Puts by rank, then deletions by falling rank; within a rank by key, so that equal input gives equal output. Of nft's chains, sets and
    maps, what others lead to comes first and goes last."""
    listed = list(ops)
    below = depths(map(_news, listed))
    puts = sorted((op for op in listed if op.verb == "put"), key=lambda op: (*_place(op.subject, below), op.key))
    deletions = [(_place(op.subject, below), op) for op in listed if op.verb == "del"]
    deletions.sort(key=lambda placed: ([-number for number in placed[0]], placed[1].key))
    return puts + [op for _, op in deletions]


def stages(ops: Sequence[Op]) -> list[list[Op]]:
    """Ordered operations in parts that are applied one after the other, for each of them the kernel has its rules last. Where links of
    endpoints are made, the rules that judge what comes to them are a part before: whoever knows the address may send to it already, and
    a rule that came after the link would let that in. What stands on a link comes after it, as ever."""
    if not any(op.verb == "put" and isinstance(op.subject, EndpointLink) for op in ops):
        return [list(ops)]
    judging: list[Op] = []
    rest: list[Op] = []
    for op in ops:
        (judging if op.verb == "put" and isinstance(op.subject, _RULES) and op.subject.family != NFT_FAST_FAMILY else rest).append(op)
    return [part for part in (judging, rest) if part]


def _news(op: Op) -> KernelObject:
    """What may lead to something that is not there yet: of a map that is and stays, its new elements."""
    new, old = op.new, op.old
    if isinstance(new, NftSet) and isinstance(old, NftSet) and new.kind == "map" and replace(old, elements=new.elements) == new:
        return replace(new, elements=difference(old.elements, new.elements)[1])
    return op.subject


def _place(obj: KernelObject, below: Mapping[Name, int]) -> tuple[int, int]:
    """Chains rank with sets and maps, an element behind those that lead nowhere."""
    name = name_of(obj)
    if name is not None:
        return rank(_SET), 2 * below[name]
    return (rank(_SET), 1) if isinstance(obj, NftElement) else (rank(obj), 0)
