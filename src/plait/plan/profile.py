# SPDX-License-Identifier: Apache-2.0
"""A profile -> its chain and its maps, element by element as its members come and go.

A profile of one family is a map from addresses to verdicts, one from ranges if there are any, and the chain that asks both. Verdicts are to
drop, to return (it passes this side) or to go to a table of ports.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import summarize_address_range
from typing import NamedTuple

from plait.model.addr import IPAddress
from plait.model.objects import KernelObject, NftChain, NftSet
from plait.model.policy import Direction
from plait.plan.dual import Family
from plait.policy.profile import Profile
from plait.policy.tables import Table


class Side(NamedTuple):
    """The map of the workloads of a direction, what their profiles' names begin with, which address is the workload's, which the other
    side's."""

    map: str
    prefix: str
    mine: str
    other: str


_GOTO = "goto "
SIDES: dict[Direction, Side] = {
    "egress": Side("policy_out", "po_", "saddr", "daddr"),
    "ingress": Side("policy_in", "pi_", "daddr", "saddr"),
}


class ProfileDrawing:
    """A profile as it was last drawn for the families `present`. `tables`: those of ports that it leads to, by name."""

    def __init__(self, present: Sequence[Family]) -> None:
        self.present = present
        self.tables: dict[str, Table] = {}
        self._edition: object = None
        self._fixed: list[KernelObject] = []
        self._always: frozenset[str] = frozenset()
        self._verdicts: dict[IPAddress, str] = {}
        self._uses: Counter[str] = Counter()
        self._exact: dict[int, NftSet] = {}

    def of(self, profile: Profile) -> list[KernelObject]:
        """All of it but for the tables."""
        if self._edition is not None and profile.since is self._edition:
            self._follow(profile, profile.touched)
        elif profile.edition is not self._edition:
            self._begin(profile)
            self._follow(profile, profile.exact)
        self._edition = profile.edition
        return [*self._exact.values(), *self._fixed]

    def _begin(self, profile: Profile) -> None:
        """Draw what all editions of a profile have."""
        side = SIDES[profile.direction]
        name = f"{side.prefix}{profile.name}"
        verdicts, rules = _Verdicts({}), list[str]()
        self._fixed, self._exact = [], {}
        for family in self.present:
            version, kind = family.anywhere.version, f"{family.type} : verdict"
            ranges = {f"{spelled_range(a, b)} : {verdicts.of(t)}" for a, b, t in profile.others.ranges if a.version == version}
            self._exact[version] = NftSet(f"{name}{family.end}", kind, frozenset(), kind="map")
            rules.append(f"{family.ip} {side.other} vmap @{name}{family.end}")
            if ranges:
                self._fixed.append(NftSet(f"{name}_net{family.end}", kind, frozenset(ranges), ("interval",), kind="map"))
                rules.append(f"{family.ip} {side.other} vmap @{name}_net{family.end}")
        self._fixed.append(NftChain(name, (*rules, verdicts.of(profile.others.rest))))
        self.tables, self._always = verdicts.tables, frozenset(verdicts.tables)
        self._verdicts, self._uses = {}, Counter()

    def _follow(self, profile: Profile, addresses: Iterable[IPAddress]) -> None:
        """Draw those of `exact` anew."""
        verdicts = _Verdicts(self.tables)
        gone: dict[int, set[str]] = {version: set() for version in self._exact}
        fresh: dict[int, set[str]] = {version: set() for version in self._exact}
        for address in (one for one in addresses if one.version in self._exact):
            if (before := self._verdicts.pop(address, None)) is not None:
                gone[address.version].add(f"{address} : {before}")
                self._uses[before] -= 1
            if (table := profile.exact.get(address)) is not None:
                now = self._verdicts[address] = verdicts.of(table)
                fresh[address.version].add(f"{address} : {now}")
                self._uses[now] += 1
        for version, held in self._exact.items():
            if gone[version] or fresh[version]:
                self._exact[version] = replace(held, elements=(held.elements - gone[version]) | fresh[version])
        self.tables = {n: t for n, t in verdicts.tables.items() if n in self._always or self._uses[f"{_GOTO}{n}"]}


class _Verdicts:
    """What leads to tables, which are noted in `tables`. To return from a profile, which is jumped to, or from a table, which is gone to
    from there, is to pass this side."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self.tables = dict(tables)
        self._known: dict[int, str] = {}

    def of(self, table: Table) -> str:
        """The verdict, that of a table of ports unless it says the same of everything."""
        if table.whole:
            return "return"
        if table.empty:
            return "drop"
        if id(table) not in self._known:
            name = f"pp_{hashlib.sha256(repr(table).encode()).hexdigest()[:10]}"
            self.tables[name] = table
            self._known[id(table)] = f"{_GOTO}{name}"
        return self._known[id(table)]


def spelled(first: int, last: int) -> str:
    """A span of ports."""
    return str(first) if first == last else f"{first}-{last}"


def spelled_range(first: IPAddress, last: IPAddress) -> str:
    """As nft prints it: a network if it is a whole one."""
    if first == last:
        return str(first)
    parts = list(summarize_address_range(first, last))
    return str(parts[0]) if len(parts) == 1 else f"{first}-{last}"
