# SPDX-License-Identifier: Apache-2.0
"""Policies -> what one node must know to enforce them: per workload and direction a *profile*, from the other side's address to a table of
ports.

Workloads with the same policies share a profile. An address is looked up exactly first (members of groups), then among ranges, else it is
anybody; so the cost of a packet does not depend on the number of rules, and a member more or less is one address more or less.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, collapse_addresses

from plait.model.addr import IPAddress, IPNetwork
from plait.model.policy import Direction, Group, Policy, PolicyRule, Range, Tier
from plait.policy.evaluate import World
from plait.policy.tables import Step, Table, table_of
from plait.policy.workloads import NamedPorts, Workload

DIRECTIONS: tuple[Direction, ...] = ("egress", "ingress")
_TIERS: tuple[Tier, ...] = ("Admin", "NetworkPolicy", "Baseline")
_END = {4: 1 << 32, 6: 1 << 128}
_MAKE: Mapping[int, Callable[[int], IPAddress]] = {4: IPv4Address, 6: IPv6Address}


@dataclass(frozen=True, slots=True)
class Profile:
    """`exact` and `ranges` (first and last address, ascending, apart) hold only what differs from what comes after them. `name` is that of
    the policies which apply, whatever they say."""

    name: str
    direction: Direction
    exact: Mapping[IPAddress, Table]
    ranges: tuple[tuple[IPAddress, IPAddress, Table], ...]
    rest: Table

    def table(self, address: IPAddress) -> Table:
        found = self.exact.get(address)
        if found is not None:
            return found
        return next((t for a, b, t in self.ranges if a.version == address.version and int(a) <= int(address) <= int(b)), self.rest)


@dataclass(frozen=True, slots=True)
class Compiled:
    """Of one node: its profiles, and by direction the name of the profile of each address that has one. `idents` are the endpoints that
    have any."""

    profiles: Mapping[str, Profile] = field(default_factory=dict)
    chosen: Mapping[Direction, Mapping[IPAddress, str]] = field(default_factory=lambda: {way: {} for way in DIRECTIONS})
    idents: frozenset[str] = frozenset()

    @property
    def addresses(self) -> frozenset[IPAddress]:
        """Those of workloads that some policy selects."""
        return frozenset(address for found in self.chosen.values() for address in found)


def compile_node(world: World, node: str) -> Compiled:
    """What policies want of `node`; nothing where none selects any of its workloads."""
    if not world.policies:
        return Compiled()
    compiler = _Compiler(world)
    profiles: dict[str, Profile] = {}
    chosen: dict[Direction, dict[IPAddress, str]] = {way: {} for way in DIRECTIONS}
    idents: set[str] = set()
    for workload in (one for one in world.members if one.node == node):
        for way in DIRECTIONS:
            policies = compiler.policies_of(workload, way)
            addresses = [address for address in workload.addresses if world.known.get(address) is workload]
            if policies and addresses:
                profile = compiler.profile(policies, way, workload)
                profiles[profile.name] = profile
                chosen[way] |= dict.fromkeys(addresses, profile.name)
                idents.add(workload.ident)
    return Compiled(profiles, chosen, frozenset(idents - {""}))


class _Compiler:
    """Remembers what rules select, while one node is compiled."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._labelled: dict[tuple[str, str], list[Workload]] = {}
        for one in world.members:
            for label in one.labels.items():
                self._labelled.setdefault(label, []).append(one)
        self._members: dict[Group, tuple[Workload, ...]] = {}
        self._subjects = {policy.ident: {id(one) for one in self._of(policy.subject)} for policy in world.policies}
        self._profiles: dict[str, Profile] = {}

    def policies_of(self, workload: Workload, way: Direction) -> list[Policy]:
        found = (p for p in self._world.policies if p.rules(way) is not None and id(workload) in self._subjects[p.ident])
        return sorted(found, key=lambda p: (_TIERS.index(p.tier), p.priority, p.ident))

    def profile(self, policies: Sequence[Policy], way: Direction, workload: Workload) -> Profile:
        """That of a workload with these policies, in their order."""
        names = {ports.name for p in policies for rule in p.rules(way) or () for ports in rule.ports} - {""}
        own = {name: workload.ports[name] for name in sorted(names) if name in workload.ports} if way == "ingress" else {}
        key = repr((way, [policy.ident for policy in policies], own))
        name = hashlib.sha256(key.encode()).hexdigest()[:10]
        if name not in self._profiles:
            self._profiles[name] = _Build(self, policies, way, own, names).profile(name)
        return self._profiles[name]

    def members(self, rule: PolicyRule) -> Iterable[tuple[IPAddress, Workload]]:
        """Addresses of the workloads of a rule's groups."""
        known = self._world.known
        for group in rule.groups:
            for workload in self._of(group):
                yield from ((address, workload) for address in workload.addresses if known.get(address) is workload)

    def naming(self, names: Collection[str]) -> Iterable[tuple[IPAddress, Workload]]:
        """Addresses of the workloads that call some port so."""
        return ((address, one) for address, one in self._world.known.items() if not one.ports.keys().isdisjoint(names))

    def _of(self, group: Group) -> tuple[Workload, ...]:
        if group not in self._members:
            self._members[group] = tuple(one for one in self._candidates(group) if self._world.namespaces.has(group, one))
        return self._members[group]

    def _candidates(self, group: Group) -> Sequence[Workload]:
        """All that may be of the group: of the labels that it asks for, those that the fewest have."""
        fewest: Sequence[Workload] = self._world.members
        for wanted in group.pods.requirements:
            if wanted.operator == "In":
                found = [one for value in wanted.values for one in self._labelled.get((wanted.key, value), ())]
                fewest = found if len(found) < len(fewest) else fewest
        return fewest


class _Build:
    """One profile. A *class* is the ascending numbers of the rules whose other side an address is."""

    def __init__(self, compiler: _Compiler, policies: Sequence[Policy], way: Direction, own: NamedPorts, names: Collection[str]) -> None:
        self._way, self._own, self._naming = way, own, bool(names)
        self._isolated = any(policy.tier == "NetworkPolicy" for policy in policies)
        rules = [(policy.tier, rule) for policy in policies for rule in policy.rules(way) or ()]
        self._steps = [Step(tier, rule.action, rule.ports) for tier, rule in rules]
        self._anybody = tuple(number for number, (_, rule) in enumerate(rules) if rule.anybody)
        self._groups: dict[IPAddress, set[int]] = {}
        self._who: dict[IPAddress, Workload] = {}
        for number, (_, rule) in enumerate(rules):
            for address, workload in compiler.members(rule):
                self._groups.setdefault(address, set()).add(number)
                self._who[address] = workload
        for address, workload in compiler.naming(names) if way == "egress" else ():  # whoever may be the destination of a rule for a name
            self._groups.setdefault(address, set())
            self._who[address] = workload
        self._pieces = {version: _pieces([(n, one) for n, (_, r) in enumerate(rules) for one in r.ranges], version) for version in _MAKE}
        self._tables: dict[tuple[tuple[int, ...], str], Table] = {}

    def profile(self, name: str) -> Profile:
        rest = self._table((), {})
        exact: dict[IPAddress, Table] = {}
        for address, numbers in self._groups.items():
            around = self._around(address)
            named = self._who[address].ports if self._way == "egress" else {}
            table = self._table((*numbers, *around), named)
            if table != self._table(around, {}):
                exact[address] = table
        return Profile(name, self._way, exact, tuple(self._ranges(rest)), rest)

    def _around(self, address: IPAddress) -> tuple[int, ...]:
        """The rules of whose ranges the address is."""
        starts, classes = self._pieces[address.version]
        at = bisect_right(starts, int(address)) - 1
        return classes[at] if at >= 0 else ()

    def _ranges(self, rest: Table) -> Iterable[tuple[IPAddress, IPAddress, Table]]:
        for version, make in _MAKE.items():
            starts, classes = self._pieces[version]
            open_: tuple[int, Table] | None = None
            for start, numbers in zip(starts, classes, strict=True):
                table = self._table(numbers, {})
                if open_ is not None and table != open_[1]:
                    yield make(open_[0]), make(start - 1), open_[1]
                    open_ = None
                if open_ is None and table != rest:
                    open_ = start, table
            if open_ is not None:
                yield make(open_[0]), make(_END[version] - 1), open_[1]

    def _table(self, numbers: Iterable[int], named: NamedPorts) -> Table:
        """What the rules of a class make of ports, and those for anybody; `named` are those of the other side, where rules ask for them."""
        which = tuple(sorted({*numbers, *self._anybody}))
        ports = (self._own if self._way == "ingress" else named) if self._naming else {}
        key = which, repr(sorted(ports.items()))
        if key not in self._tables:
            self._tables[key] = table_of([self._steps[number] for number in which], self._isolated, ports)
        return self._tables[key]


def _pieces(ranges: Iterable[tuple[int, Range]], version: int) -> tuple[list[int], list[tuple[int, ...]]]:
    """Where the addresses of a family begin to be of another class, ascending, and which."""
    changes: dict[int, list[tuple[int, int]]] = {}
    for number, one in ranges:
        if one.network.version == version:
            for first, last in _spans(one):
                changes.setdefault(first, []).append((number, 1))
                changes.setdefault(last + 1, []).append((number, -1))
    open_: dict[int, int] = {}
    starts, classes = list[int](), list[tuple[int, ...]]()
    for start in sorted(changes):
        for number, by in changes[start]:
            open_[number] = open_.get(number, 0) + by
            if not open_[number]:
                del open_[number]
        if start < _END[version]:
            starts.append(start)
            classes.append(tuple(sorted(open_)))
    return starts, classes


def _spans(one: Range) -> Iterable[tuple[int, int]]:
    """The addresses of a range without what is excluded."""
    first, end = int(one.network.network_address), int(one.network.broadcast_address)
    for part in _ascending(one.excluded):
        if int(part.network_address) > first:
            yield first, int(part.network_address) - 1
        first = int(part.broadcast_address) + 1
    if first <= end:
        yield first, end


def _ascending(networks: Iterable[IPNetwork]) -> Iterable[IPNetwork]:
    return collapse_addresses(networks)  # type: ignore[type-var]
