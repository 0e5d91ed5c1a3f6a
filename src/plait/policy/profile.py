# SPDX-License-Identifier: Apache-2.0
"""Profiles: what the policies of a workload make of everybody else, in one direction, from an address to a table of ports.

An address is looked up exactly first (members of groups, and what DNS gave for names that rules have), then among ranges, else it is
anybody; so the cost of a packet does not depend on the number of rules, and a member more or less is one address more or less.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, collapse_addresses

from plait.model.addr import IPAddress, IPNetwork
from plait.model.domains import patterns_of
from plait.model.policy import Direction, Group, Policy, Range
from plait.policy.tables import Step, Table, table_of
from plait.policy.workloads import NamedPorts, Workload

_END = {4: 1 << 32, 6: 1 << 128}
_MAKE: Mapping[int, Callable[[int], IPAddress]] = {4: IPv4Address, 6: IPv6Address}
_NOBODY: NamedPorts = {}
Numbers = frozenset[int]
"""Groups, as `Membership` numbers them."""


@dataclass(frozen=True, slots=True)
class Others:
    """What those get who are no workloads. `ranges` (first and last address, ascending, apart) holds only what differs from `rest`."""

    ranges: tuple[tuple[IPAddress, IPAddress, Table], ...]
    rest: Table

    def table(self, address: IPAddress) -> Table:
        """What an address gets."""
        return next((t for a, b, t in self.ranges if a.version == address.version and int(a) <= int(address) <= int(b)), self.rest)


@dataclass(frozen=True, slots=True)
class Known:
    """Who has which address: the workloads, the groups that each is of, and the names for which DNS gave an address."""

    workloads: Mapping[IPAddress, Workload]
    groups: Mapping[IPAddress, Numbers]
    answered: Mapping[IPAddress, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Profile:
    """`exact` holds only what differs from `others`; `named` is, by name or pattern of the rules, what those get for which DNS gives such
    a name and no other. `name` is that of the policies which apply, whatever they say. `edition` is this profile's alone; it differs from
    that of the edition `since` in the addresses `touched` of `exact` and in nothing else, which spares whoever knows that one a
    comparison."""

    name: str
    direction: Direction
    exact: Mapping[IPAddress, Table]
    others: Others
    named: Mapping[str, Others] = field(default_factory=dict)
    edition: object = field(default_factory=object, compare=False, repr=False)
    since: object = field(default=None, compare=False, repr=False)
    touched: frozenset[IPAddress] = field(default=frozenset(), compare=False, repr=False)

    def table(self, address: IPAddress) -> Table:
        return self.exact.get(address) or self.others.table(address)

    def by_name(self, name: str) -> Others:
        """What those get for which DNS gives this name, or one that meets this pattern."""
        return next((self.named[pattern] for pattern in patterns_of(name) if pattern in self.named), self.others)


class ProfileBuild:
    """Makes a profile and follows its members. A *class* is the ascending numbers of the rules whose other side an address is."""

    def __init__(self, name: str, way: Direction, policies: Sequence[Policy], own: NamedPorts, number: Callable[[Group], int]) -> None:
        """`policies` in the order in which they are asked, `own`: the workload's ports that rules name, `number` that of a group."""
        rules = [(policy.tier, rule) for policy in policies for rule in policy.rules(way) or ()]
        self.names = port_names(policies, way)
        """The names of ports that rules have."""
        self.groups: dict[int, list[int]] = {}
        """By group the numbers of the rules for it."""
        for at, (_, rule) in enumerate(rules):
            for group in rule.groups:
                self.groups.setdefault(number(group), []).append(at)
        self._domains: dict[str, list[int]] = {}
        for at, (_, rule) in enumerate(rules):
            for pattern in rule.domains:
                self._domains.setdefault(pattern, []).append(at)
        self._way, self._own = way, own
        self._isolated = any(policy.tier == "NetworkPolicy" for policy in policies)
        self._steps = [Step(tier, rule.action, rule.ports) for tier, rule in rules]
        self._anybody = tuple(at for at, (_, rule) in enumerate(rules) if rule.anybody)
        self._pieces = {version: _pieces([(at, one) for at, (_, r) in enumerate(rules) for one in r.ranges], version) for version in _MAKE}
        self._tables: dict[tuple[tuple[int, ...], str], Table] = {}
        named = {pattern: self._others(self._met(pattern)) for pattern in self._domains}
        self.profile = Profile(name, way, {}, self._others(()), named)

    @property
    def by_names(self) -> bool:
        """Whether rules are for names of hosts."""
        return bool(self._domains)

    def follow(self, addresses: Iterable[IPAddress], known: Known) -> None:
        """Make `profile` right of `addresses`."""
        exact: dict[IPAddress, Table] | None = None
        touched: set[IPAddress] = set()
        for address in addresses:
            before, now = self.profile.exact.get(address), self._entry(address, known)
            if before is now:
                continue
            exact = dict(self.profile.exact) if exact is None else exact
            touched.add(address)
            if now is None:
                del exact[address]
            else:
                exact[address] = now
        if exact is not None:
            since = self.profile.edition
            self.profile = replace(self.profile, exact=exact, edition=object(), since=since, touched=frozenset(touched))

    def _entry(self, address: IPAddress, known: Known) -> Table | None:
        """What `exact` has of an address."""
        workload = known.workloads.get(address)
        if workload is None:
            return self._answered(address, known.answered.get(address)) if self._domains else None
        numbers = [number for group in known.groups[address] for number in self.groups.get(group, ())]
        named = workload.ports if self._way == "egress" and not self.names.isdisjoint(workload.ports) else _NOBODY
        if not numbers and not named:
            return None
        around = self._around(address)
        table = self._table((*numbers, *around), named)
        return table if table != self._table(around, _NOBODY) else None

    def _answered(self, address: IPAddress, names: Iterable[str] | None) -> Table | None:
        """The same of one that is no workload's and that DNS gave for these names."""
        numbers = [number for name in names or () for number in self._met(name)]
        around = self._around(address)
        table = self._table((*numbers, *around), _NOBODY)
        return table if table != self._table(around, _NOBODY) else None

    def _met(self, name: str) -> list[int]:
        """The rules for a name, or for all names that meet a pattern."""
        return [number for pattern in patterns_of(name) for number in self._domains.get(pattern, ())]

    def _around(self, address: IPAddress) -> tuple[int, ...]:
        """The rules of whose ranges the address is."""
        starts, classes = self._pieces[address.version]
        at = bisect_right(starts, int(address)) - 1
        return classes[at] if at >= 0 else ()

    def _others(self, numbers: Collection[int]) -> Others:
        """What those get that are no workloads, if rules of these `numbers` are for them besides those for their addresses."""
        rest = self._table(numbers, _NOBODY)
        return Others(tuple(self._ranges(numbers, rest)), rest)

    def _ranges(self, more: Collection[int], rest: Table) -> Iterable[tuple[IPAddress, IPAddress, Table]]:
        for version, make in _MAKE.items():
            starts, classes = self._pieces[version]
            open_: tuple[int, Table] | None = None
            for start, numbers in zip(starts, classes, strict=True):
                table = self._table((*numbers, *more), _NOBODY)
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
        ports = (self._own if self._way == "ingress" else named) if self.names else {}
        key = which, repr(sorted(ports.items()))
        if key not in self._tables:
            self._tables[key] = table_of([self._steps[number] for number in which], self._isolated, ports)
        return self._tables[key]


def port_names(policies: Iterable[Policy], way: Direction) -> frozenset[str]:
    """What rules of one direction call ports."""
    return frozenset(ports.name for policy in policies for rule in policy.rules(way) or () for ports in rule.ports) - {""}


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
