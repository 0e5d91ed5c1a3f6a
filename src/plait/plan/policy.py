# SPDX-License-Identifier: Apache-2.0
"""Compiled policies -> chains, sets and verdict maps of the table `inet plait`.

A packet that begins a connection meets the chain `policies` before `forward`, whose rules are as many whatever the policies are: its source
is looked up in `policy_out`, its destination in `policy_in`, which hold the addresses of this node's workloads that some policy selects and
jump to their profile. A profile looks up the other side, exactly and then by range; what it finds drops, returns (it passes this side), or
goes to a table of ports, one look-up more. Tables of ports are named by what they say, so profiles share them; profiles by the policies
that apply, so that one member more or less is one element.

What these workloads send and get is tracked (the chain `raw` leaves it in), and takes no fast path: neither may know better.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from ipaddress import summarize_address_range

from plait.model.addr import IPAddress
from plait.model.cluster import Snapshot
from plait.model.objects import KernelObject, NftChain, NftSet
from plait.model.policy import Direction
from plait.plan.dual import Family
from plait.policy.compile import Compiled, Profile, compile_node
from plait.policy.evaluate import world_of
from plait.policy.tables import Table

CHAIN = "policies"
POLICED = "policed"
"""Set of the addresses of this node's workloads that some policy selects."""
_HOOK = "type filter hook forward priority filter - 10; policy accept;"
_SIDES: dict[Direction, tuple[str, str, str, str]] = {
    "egress": ("policy_out", "po_", "saddr", "daddr"),
    "ingress": ("policy_in", "pi_", "daddr", "saddr"),
}
"""By direction the map of workloads, what profiles' names begin with, which address is the workload's, which the other side's."""
_NEIGHBOURS = "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept"
"""What a bridge passes here where br_netfilter shows it, and no router forwards."""
_PORT_KEY = "inet_proto . inet_service : verdict"


def compiled(snapshot: Snapshot) -> Compiled:
    """What policies want of this node. Costs nothing where there are none."""
    return compile_node(world_of(snapshot), snapshot.me) if snapshot.policies else Compiled()


def policy_objects(found: Compiled, present: Sequence[Family]) -> list[KernelObject]:
    """Everything that enforces them; nothing where no policy selects a workload of this node."""
    if not found.addresses:
        return []
    objects: list[KernelObject] = [NftChain(CHAIN, _rules(present), _HOOK)]
    for family in present:
        own = _of(family, found.addresses)
        objects.append(NftSet(f"{POLICED}{family.end}", family.type, own))
        objects.append(NftSet(f"policy_self{family.end}", f"{family.type} . {family.type}", frozenset(f"{one} . {one}" for one in own)))
        for way, (name, prefix, _, _) in _SIDES.items():
            elements = frozenset(f"{a} : jump {prefix}{p}" for a, p in found.chosen[way].items() if a.version == family.anywhere.version)
            objects.append(NftSet(f"{name}{family.end}", f"{family.type} : verdict", elements, kind="map"))
    tables: dict[str, Table] = {}
    for profile in found.profiles.values():
        objects += _profile(profile, present, tables)
    for name, table in sorted(tables.items()):
        objects += _table(name, table)
    return objects


def tracked(found: Compiled, present: Sequence[Family]) -> list[str]:
    """Rules of a chain that would leave packets inside one network untracked: these not."""
    if not found.addresses:
        return []
    return [f"{f.ip} {side} @{POLICED}{f.end} accept" for f in present for side in ("saddr", "daddr")]


def _of(family: Family, addresses: Iterable[IPAddress]) -> frozenset[str]:
    return frozenset(str(address) for address in addresses if address.version == family.anywhere.version)


def _rules(present: Sequence[Family]) -> tuple[str, ...]:
    """A container that comes back to itself by a published port is not kept from it."""
    rules = ["ct state established,related accept"]
    if len(present) > 1:
        rules.append(_NEIGHBOURS)
    rules += [f"{f.ip} saddr . {f.ip} daddr @policy_self{f.end} accept" for f in present]
    return (*rules, *(f"{f.ip} {mine} vmap @{name}{f.end}" for name, _, mine, _ in _SIDES.values() for f in present))


def _profile(profile: Profile, present: Sequence[Family], tables: dict[str, Table]) -> list[KernelObject]:
    _, prefix, _, other = _SIDES[profile.direction]
    name = f"{prefix}{profile.name}"
    objects: list[KernelObject] = []
    rules: list[str] = []
    for family in present:
        version, kind = family.anywhere.version, f"{family.type} : verdict"
        exact = {f"{a} : {_verdict(t, tables)}" for a, t in profile.exact.items() if a.version == version}
        ranges = {f"{_range(a, b)} : {_verdict(t, tables)}" for a, b, t in profile.ranges if a.version == version}
        objects.append(NftSet(f"{name}{family.end}", kind, frozenset(exact), kind="map"))
        rules.append(f"{family.ip} {other} vmap @{name}{family.end}")
        if ranges:
            objects.append(NftSet(f"{name}_net{family.end}", kind, frozenset(ranges), ("interval",), kind="map"))
            rules.append(f"{family.ip} {other} vmap @{name}_net{family.end}")
    return [*objects, NftChain(name, (*rules, _verdict(profile.rest, tables)))]


def _verdict(table: Table, tables: dict[str, Table]) -> str:
    """What leads to a table, which is noted, unless it says the same of everything. To return from a profile, which is jumped to, or from
    a table, which is gone to from there, is to pass this side."""
    if table.whole:
        return "return"
    if table.empty:
        return "drop"
    name = f"pp_{hashlib.sha256(repr(table).encode()).hexdigest()[:10]}"
    tables[name] = table
    return f"goto {name}"


def _table(name: str, table: Table) -> list[KernelObject]:
    """Listed is what differs from what becomes of protocols without ports."""
    spans, verdict = (table.stopped(), "drop") if table.other else (table.passing, "return")
    elements = frozenset(f"{protocol} . {_ports(first, last)} : {verdict}" for protocol, first, last in spans)
    rest = "return" if table.other else "drop"
    return [NftSet(name, _PORT_KEY, elements, ("interval",), "map"), NftChain(name, (f"meta l4proto . th dport vmap @{name}", rest))]


def _ports(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _range(first: IPAddress, last: IPAddress) -> str:
    """As nft prints it: a network if it is a whole one."""
    if first == last:
        return str(first)
    parts = list(summarize_address_range(first, last))
    return str(parts[0]) if len(parts) == 1 else f"{first}-{last}"
