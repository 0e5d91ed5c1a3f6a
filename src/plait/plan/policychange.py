# SPDX-License-Identifier: Apache-2.0
"""What other policies would change: who comes under one, which connections pass and which do not, and what that is in this node's kernel.

Data in: a Snapshot as it is, and as it would be with the policies. Data out: differences of what is compiled from both, on all nodes:
exact, for every port, and not by trying some.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from plait.model.addr import IPAddress
from plait.model.cluster import Snapshot
from plait.model.objects import NftSet
from plait.model.policy import Direction
from plait.plan.dual import families
from plait.plan.policy import Policing
from plait.plan.profile import spelled_range
from plait.policy.compile import DIRECTIONS, Compiled, compile_node
from plait.policy.evaluate import world_of
from plait.policy.profile import Others, Profile
from plait.policy.tables import EVERYTHING, Table, both
from plait.policy.workloads import Workload

MOST_PAIRS = 20_000
"""So many pairs are compared."""
MOST_RANGES = 100
"""So many ranges of addresses are, of each workload's."""
_ANYTHING = Others((), EVERYTHING)
_WHOLE = {"0.0.0.0/0", "::/0"}
OTHERS = "others"
"""Whoever has no address of a container, nor one that rules name."""


@dataclass(frozen=True, slots=True)
class PairChange:
    """What passes from one to the other, of new connections. Each is a workload (see `called`), a range of addresses, `OTHERS`, or
    what DNS gives for a name of the rules: that name (`NAME in RANGE` where it matters)."""

    source: str
    destination: str
    before: Table
    after: Table


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """`selected` and `released`: workloads that come under some policy in a direction, or under none any longer. `compared`: how many pairs
    of workloads were, of `concerned` ones. `added` and `removed`: elements of this node's sets and maps."""

    selected: tuple[tuple[Direction, str], ...] = ()
    released: tuple[tuple[Direction, str], ...] = ()
    pairs: tuple[PairChange, ...] = ()
    compared: int = 0
    concerned: int = 0
    added: int = 0
    removed: int = 0


def policy_change(before: Snapshot, after: Snapshot) -> PolicyChange:
    """`after` differs in policies and labels of namespaces alone."""
    comparison = _Comparison(before, after)
    pairs = list(comparison.pairs())
    elements = [_elements(snapshot) for snapshot in (before, after)]
    return PolicyChange(
        comparison.selected(comparison.before, comparison.after),
        comparison.selected(comparison.after, comparison.before),
        (*comparison.among(pairs[:MOST_PAIRS]), *comparison.with_others()),
        min(len(pairs), MOST_PAIRS),
        len(pairs),
        len(elements[1] - elements[0]),
        len(elements[0] - elements[1]),
    )


def _elements(snapshot: Snapshot) -> set[tuple[str, str]]:
    found = compile_node(world_of(snapshot), snapshot.me)
    objects = Policing().objects(found, families(snapshot.networks.values()))
    return {(obj.name, element) for obj in objects if isinstance(obj, NftSet) for element in obj.elements}


class _Comparison:
    """The whole cluster, compiled of both Snapshots. `touched`: the addresses whose profile differs, by direction."""

    def __init__(self, before: Snapshot, after: Snapshot) -> None:
        world = world_of(before)
        self.known = world.known
        self.before, self.after = compile_node(world, ""), compile_node(world_of(after), "")
        self._same: dict[tuple[str, str], bool] = {}
        self.touched = {way: [address for address in self.known if not self._alike(way, address)] for way in DIRECTIONS}

    def _profiles(self, way: Direction, address: IPAddress) -> tuple[str, str]:
        """The names of those of before and after, "" for none."""
        return self.before.chosen[way].get(address, ""), self.after.chosen[way].get(address, "")

    def _alike(self, way: Direction, address: IPAddress) -> bool:
        names = self._profiles(way, address)
        if names not in self._same:
            self._same[names] = self.before.profiles.get(names[0]) == self.after.profiles.get(names[1])
        return self._same[names]

    def selected(self, without: Compiled, under: Compiled) -> tuple[tuple[Direction, str], ...]:
        found = {(way, _name(self.known[a])) for way in DIRECTIONS for a in under.chosen[way].keys() - without.chosen[way].keys()}
        return tuple(sorted(found))

    def pairs(self) -> Iterator[tuple[IPAddress, IPAddress]]:
        """Source and destination of those workloads of one network between which something may differ."""
        into, out = set(self.touched["ingress"]), self.touched["egress"]
        candidates = [(a, b) for b in self.touched["ingress"] for a in self.known]
        candidates += [(a, b) for a in out for b in self.known if b not in into]
        for a, b in candidates:
            one, other = self.known[a], self.known[b]
            if a.version == b.version and one.network == other.network and one is not other:
                yield a, b

    def among(self, pairs: Iterable[tuple[IPAddress, IPAddress]]) -> Iterator[PairChange]:
        for a, b in pairs:
            tables = [
                both(_table(found, "egress", a, b), _table(found, "ingress", b, a))  # each side for itself
                for found in (self.before, self.after)
            ]
            if tables[0] != tables[1]:
                yield PairChange(self._called(a), self._called(b), *tables)

    def with_others(self) -> Iterator[PairChange]:
        """What differs for those who are no workloads: in the ranges that rules have, and for the rest."""
        known: dict[tuple[str, str, int], list[tuple[str, Table, Table]]] = {}
        for way in DIRECTIONS:
            for address in self.touched[way]:
                names = *self._profiles(way, address), address.version
                if names not in known:
                    known[names] = list(_outside(self.before.profiles.get(names[0]), self.after.profiles.get(names[1]), address.version))
                for name, before, after in known[names]:
                    ends = (name, self._called(address)) if way == "ingress" else (self._called(address), name)
                    yield PairChange(*ends, before, after)

    def _called(self, address: IPAddress) -> str:
        return called(self.known[address], address)


def called(workload: Workload, address: IPAddress) -> str:
    """With its address where it has several, which policies may tell apart."""
    return f"{_name(workload)} ({address})" if len(workload.addresses) > 1 else _name(workload)


def _name(workload: Workload) -> str:
    return f"{workload.node}/{workload.name}"


def _outside(before: Profile | None, after: Profile | None, version: int) -> Iterator[tuple[str, Table, Table]]:
    """What they make different things of: ranges that either has, the rest, and names of either in each of these."""
    profiles = [profile for profile in (before, after) if profile is not None]
    yield from _differing([profile.others if profile is not None else _ANYTHING for profile in (before, after)], version)
    for name in sorted({name for profile in profiles for name in profile.named}):
        yield from _differing([profile.by_name(name) if profile is not None else _ANYTHING for profile in (before, after)], version, name)


def _differing(pair: Sequence[Others], version: int, name: str = "") -> Iterator[tuple[str, Table, Table]]:
    """Where the two of `pair` do; what has a `name` is called by it, and by the range too unless that is all there is."""
    ranges = {(a, b) for one in pair for a, b, _ in one.ranges if a.version == version}
    for first, last in islice(sorted(ranges, key=lambda ends: (int(ends[0]), int(ends[1]))), MOST_RANGES):
        was, would = (one.table(first) for one in pair)
        if was != would:
            spelled = spelled_range(first, last)
            yield (spelled if not name else name if spelled in _WHOLE else f"{name} in {spelled}"), was, would
    was, would = (one.rest for one in pair)
    if was != would and not (name and any(spelled_range(*ends) in _WHOLE for ends in ranges)):
        yield name or OTHERS, was, would


def _table(found: Compiled, way: Direction, mine: IPAddress, other: IPAddress) -> Table:
    profile = found.profiles.get(found.chosen[way].get(mine, ""))
    return profile.table(other) if profile is not None else EVERYTHING
