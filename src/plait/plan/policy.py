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

from collections.abc import Callable, Iterable, Sequence

from plait.model.addr import IPAddress
from plait.model.objects import KernelObject, NftChain, NftSet
from plait.plan.dual import Family
from plait.plan.profile import SIDES, ProfileDrawing, spelled
from plait.policy.compile import Compiled, Recompiling
from plait.policy.tables import Table

CHAIN = "policies"
POLICED = "policed"
"""Set of the addresses of this node's workloads that some policy selects."""
_HOOK = "type filter hook forward priority filter - 10; policy accept;"
_NEIGHBOURS = "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept"
"""What a bridge passes here where br_netfilter shows it, and no router forwards."""
JUDGED = "judged"
"""Name of the chain in which connections that policies judge are counted, and of the set that it counts them in, by source, destination,
protocol and destination port; `JUDGED_PORTLESS` is for protocols without ports."""
JUDGED_PORTLESS = "judged_portless"
JUDGED_BOUNDS = ("size 8192", "timeout 1m")
"""So many kinds of connection a minute are counted, what comes beyond is not."""
_PORT_KEY = "inet_proto . inet_service : verdict"


class Policing:
    """What policies want of a node's kernel, for one Snapshot after another: what depends on nothing that changed is what it was, object by
    object, so that one member more costs one element. What it says depends on its arguments alone, whatever it was asked before."""

    def __init__(self, counting: Callable[[], bool] = lambda: True) -> None:
        """`counting`: whether the kernel can count what they judge."""
        self._counting = counting
        self.compiled = Recompiling()
        """What policies want of a node by a Snapshot."""
        self._drawn: dict[str, ProfileDrawing] = {}
        self._tables: dict[str, list[KernelObject]] = {}

    def objects(self, found: Compiled, present: Sequence[Family]) -> list[KernelObject]:
        """Everything that enforces them; nothing where no policy selects a workload of this node."""
        if not found.addresses:
            self._drawn, self._tables = {}, {}
            return []
        counting = self._counting()
        objects: list[KernelObject] = [NftChain(CHAIN, _rules(present, counting), _HOOK)]
        for family in present:
            objects += [*_chosen(found, family), *(_counters(family) if counting else ())]
        before, self._drawn = self._drawn, {}
        tables: dict[str, Table] = {}
        for name, profile in found.profiles.items():
            drawing = before.get(name)
            self._drawn[name] = drawing = drawing if drawing is not None and drawing.present == present else ProfileDrawing(present)
            objects += drawing.of(profile)
            tables |= drawing.tables
        self._tables = {name: self._tables.get(name) or _table(name, table) for name, table in tables.items()}
        return objects + [part for _, parts in sorted(self._tables.items()) for part in parts]


def tracked(found: Compiled, present: Sequence[Family]) -> list[str]:
    """Rules of a chain that would leave packets inside one network untracked: these not."""
    if not found.addresses:
        return []
    return [f"{f.ip} {side} @{POLICED}{f.end} accept" for f in present for side in ("saddr", "daddr")]


def _chosen(found: Compiled, family: Family) -> list[KernelObject]:
    """Whom policies select, and what leads them to their profiles."""
    own = _of(family, found.addresses)
    objects: list[KernelObject] = [NftSet(f"{POLICED}{family.end}", family.type, own)]
    objects.append(NftSet(f"policy_self{family.end}", f"{family.type} . {family.type}", frozenset(f"{one} . {one}" for one in own)))
    for way, side in SIDES.items():
        version = family.anywhere.version
        elements = frozenset(f"{a} : jump {side.prefix}{p}" for a, p in found.chosen[way].items() if a.version == version)
        objects.append(NftSet(f"{side.map}{family.end}", f"{family.type} : verdict", elements, kind="map"))
    return objects


def _counters(family: Family) -> list[KernelObject]:
    """Where a set is full, a packet is not counted and goes on."""
    ports, portless = f"{JUDGED}{family.end}", f"{JUDGED_PORTLESS}{family.end}"
    kind, flags = f"{family.type} . {family.type} . inet_proto", ("dynamic", "timeout")
    key = f"{family.ip} saddr . {family.ip} daddr . meta l4proto"
    rules = (
        f"meta l4proto {{ tcp, udp, sctp }} update @{ports} {{ {key} . th dport counter }}",
        f"meta l4proto != {{ tcp, udp, sctp }} update @{portless} {{ {key} counter }}",
    )
    return [
        NftSet(ports, f"{kind} . inet_service", frozenset(), flags, bounds=JUDGED_BOUNDS),
        NftSet(portless, kind, frozenset(), flags, bounds=JUDGED_BOUNDS),
        NftChain(ports, rules),
    ]


def _of(family: Family, addresses: Iterable[IPAddress]) -> frozenset[str]:
    return frozenset(str(address) for address in addresses if address.version == family.anywhere.version)


def _rules(present: Sequence[Family], counting: bool) -> tuple[str, ...]:
    """A container that comes back to itself by a published port is not kept from it."""
    rules = ["ct state established,related accept"]
    if len(present) > 1:
        rules.append(_NEIGHBOURS)
    rules += [f"{f.ip} saddr . {f.ip} daddr @policy_self{f.end} accept" for f in present]
    for f in present if counting else ():
        rules += [f"{f.ip} saddr @{POLICED}{f.end} jump {JUDGED}{f.end}"]
        rules += [f"{f.ip} saddr != @{POLICED}{f.end} {f.ip} daddr @{POLICED}{f.end} jump {JUDGED}{f.end}"]
    return (*rules, *(f"{f.ip} {side.mine} vmap @{side.map}{f.end}" for side in SIDES.values() for f in present))


def _table(name: str, table: Table) -> list[KernelObject]:
    """Listed is what differs from what becomes of protocols without ports."""
    spans, verdict = (table.stopped(), "drop") if table.other else (table.passing, "return")
    elements = frozenset(f"{protocol} . {spelled(first, last)} : {verdict}" for protocol, first, last in spans)
    rest = "return" if table.other else "drop"
    return [NftSet(name, _PORT_KEY, elements, ("interval",), "map"), NftChain(name, (f"meta l4proto . th dport vmap @{name}", rest))]
