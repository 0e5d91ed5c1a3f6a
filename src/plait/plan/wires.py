# SPDX-License-Identifier: Apache-2.0
"""What containers send by links of the host whose children they are, judged at that link: on the host, where whoever may change nft in the
container has no say, where what leaves by AF_XDP comes by, and before the container's process starts, when nobody can enter its namespace.

A frame with the MAC of a child meets the rules that judge it in its namespace (`guard.py`), at what leaves by the parent and, since that is
the way to a child of the same parent, at what comes in by it (drivers/net/macvlan.c, `macvlan_queue_xmit`). Broadcasts go from child to
child past both hooks; those the namespace's own table judges. A frame with a MAC that nobody knows may be anybody's, the host's own among
them: it is dropped only if it leaves under the address of a child. Children with the parent's MAC (ipvlan) cannot be told apart there.

What AF_XDP sends has no protocol as far as the kernel is concerned (net/xdp/xsk.c, `xsk_build_skb`): those rules take it for told wrongly.

Who sends is counted by its MAC, since no hook at the parent knows by which child it came; what nobody's MAC has sent, by the parent.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from plait.backends import child_of
from plait.model.addr import IPAddress
from plait.model.cluster import Endpoint, Network
from plait.model.objects import NFT_FAST_FAMILY, KernelObject, NftChain, NftSet
from plait.model.spoofing import may_spoof
from plait.plan.dual import V4, V6, Family
from plait.plan.guard import BEGINS, CAPABILITY, CHILDREN, FORGERS, TYPE, TYPES, child_rules, dropping, forgers, ingress

CHILD_FORGERS = "child_forgers"
"""Set of the MACs of children that forged packets came from within the hour, each with a counter."""
_CHILD = "child_"
"""What the ends of a container's table are called by here, before their names there."""
_FORGED, _CLAIMED = f"{_CHILD}forged", "claimed"
Lying = tuple[Network, Endpoint]
"""An endpoint on a link of the host, and its network."""


def at_parents(able: Collection[str]) -> bool:
    """Whether what children of links of the host send can be judged on the host."""
    return {CAPABILITY, CHILDREN} <= {*able}


def wire_objects(lying: Iterable[Lying], own: Mapping[str, Sequence[IPAddress]]) -> list[KernelObject]:
    """Of all endpoints of this node on links of the host, what leads to others behind those; `own` as `guard.own_addresses` says. Nothing
    where none of them is a child with a MAC of its own, on a link that it has not to itself."""
    parents: defaultdict[str, list[Lying]] = defaultdict(list)
    for network, endpoint in lying:
        child = child_of(network)
        if child is not None and child.kind == "macvlan" and child.mode != "passthru":
            parents[child.parent].append((network, endpoint))
    if not parents:
        return []
    objects: list[KernelObject] = [
        forgers(CHILD_FORGERS, "ether_addr"),
        dropping(_FORGED, CHILD_FORGERS, "ether saddr"),
        NftChain(f"{_CHILD}strangers", (*BEGINS, f"goto {_FORGED}"), family=NFT_FAST_FAMILY),
        dropping(_CLAIMED, FORGERS, "oif"),
    ]
    for parent, found in sorted(parents.items()):
        objects += _at(parent, found, own)
    return objects


def _at(parent: str, found: Sequence[Lying], own: Mapping[str, Sequence[IPAddress]]) -> list[KernelObject]:
    """All for one link, on which no two children have one MAC."""
    name = hashlib.sha256(parent.encode()).hexdigest()[:10]
    judged = {e.id for network, e in found if not may_spoof(e.labels, network.options)}
    chains = [NftChain(e.dev, _rules(e, own[e.id]), family=NFT_FAST_FAMILY) for _, e in found if e.id in judged]
    verdicts = {e.mac.lower(): f"goto {e.dev}" if e.id in judged else "accept" for _, e in found}
    elements = frozenset(f"{mac} : {verdict}" for mac, verdict in verdicts.items())
    children = NftSet(f"children_{name}", "ether_addr : verdict", elements, kind="map", family=NFT_FAST_FAMILY)
    asks = f"ether saddr vmap @{children.name}"
    everyone = len(judged) == len(found)  # where somebody may send under any address, a MAC that nobody knows may be that one's
    near = [_near(f"near_{name}", family, [e for _, e in found]) for family in (V4, V6)] if everyone else []
    claims = [f"{TYPE} {kind} {what} @near_{name}{end} goto {_CLAIMED}" for kind, what, end in _CLAIMS] if everyone else []
    hook = f'type filter hook egress device "{parent}" priority filter; policy accept;'
    ways = [(f"in_{name}", (asks,), ingress(parent)), (f"out_{name}", (asks, *claims), hook)]
    return [*chains, children, *near, *(NftChain(*way, family=NFT_FAST_FAMILY) for way in ways)]


_CLAIMS = ((TYPES["ip"], "ip saddr", V4.end), (TYPES["arp"], "arp saddr ip", V4.end), (TYPES["ip6"], "ip6 saddr", V6.end))
"""Without a tag: what leaves in a VLAN of the same link may have the same addresses."""


def _near(name: str, family: Family, endpoints: Iterable[Endpoint]) -> NftSet:
    """The addresses of children."""
    had = frozenset(str(address) for e in endpoints for address in e.present if address.version == family.anywhere.version)
    return NftSet(f"{name}{family.end}", family.type, had, family=NFT_FAST_FAMILY)


def _rules(endpoint: Endpoint, own: Iterable[IPAddress]) -> tuple[str, ...]:
    """Those of the container's table, which lead to their ends alone."""
    return tuple(rule.replace("goto ", f"goto {_CHILD}") for rule in child_rules(endpoint, own))
