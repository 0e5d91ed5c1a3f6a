# SPDX-License-Identifier: Apache-2.0
"""Policies -> what one node must know to enforce them: which of its workloads has which *profile* (`profile.py`) in which direction.

Workloads with the same policies share a profile. `compile_node` computes it all; `Recompiling` does for one Snapshot after the other, at
the cost of the workloads that differ, until policies or labels of namespaces change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from plait.model.addr import IPAddress
from plait.model.cluster import Snapshot
from plait.model.policy import Direction, Policy, Tier
from plait.policy.evaluate import World, namespaces_of
from plait.policy.isolation import governed, isolations
from plait.policy.membership import Membership
from plait.policy.nodes import names_nodes, policies_in_force
from plait.policy.profile import Known, Profile, ProfileBuild, port_names
from plait.policy.roster import Roster
from plait.policy.workloads import Namespaces, Workload

DIRECTIONS: tuple[Direction, ...] = ("egress", "ingress")
Answers = Mapping[IPAddress, frozenset[str]]
"""The names for which DNS gave an address."""
_TIERS: tuple[Tier, ...] = ("Admin", "NetworkPolicy", "Baseline")


def _nobody(address: IPAddress) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Compiled:
    """Of one node: its profiles, and by direction the name of the profile of each address that has one; `watched` are the addresses that
    some policy to audit selects, `idents` the endpoints that have any of these. `hears` tells of any address of the cluster whether some
    policy decides whom it hears."""

    profiles: Mapping[str, Profile] = field(default_factory=dict)
    chosen: Mapping[Direction, Mapping[IPAddress, str]] = field(default_factory=lambda: {way: {} for way in DIRECTIONS})
    watched: frozenset[IPAddress] = frozenset()
    idents: frozenset[str] = frozenset()
    hears: Callable[[IPAddress], bool] = field(default=_nobody, compare=False)

    @property
    def addresses(self) -> frozenset[IPAddress]:
        """Those of workloads that some policy selects."""
        return self.watched.union(*self.chosen.values())


def compile_node(world: World, node: str) -> Compiled:
    """What policies want of `node` ("": of all); nothing where none selects any of its workloads."""
    if not world.policies:
        return Compiled()
    return _Compilation(world.policies, world.namespaces, node).follow(world.known, world.answered, {*world.known, *world.answered})


class Recompiling:
    """`compile_node` for one Snapshot after another; remembers what it made of the last one."""

    def __init__(self) -> None:
        self._roster, self._made = Roster(), Compiled()
        self._of: tuple[object, ...] = ()
        self._policies: tuple[Policy, ...] = ()
        self._isolations: list[Policy] = []
        self._by_nodes = False
        self._answered: Answers = {}
        self._compilation: _Compilation | None = None

    def __call__(self, snapshot: Snapshot) -> Compiled:
        if not governed(snapshot):
            self._compilation = None
            return Compiled()
        changed, compilation = self._roster.follow(snapshot) | self._follow_answers(snapshot.answered), self._compilation
        if compilation is None or not self._is_of(snapshot):
            self._of, self._policies = (snapshot.policies, snapshot.namespaces, snapshot.me), policies_in_force(snapshot)
            compilation = self._compilation = _Compilation(self._policies, namespaces_of(snapshot), snapshot.me)
            self._isolations = isolations(snapshot.networks.values())
            self._by_nodes = names_nodes(snapshot.policies.values())
            self._made = compilation.follow(self._roster.known, self._answered, {*self._roster.known, *self._answered})
        elif changed:
            self._made = compilation.follow(self._roster.known, self._answered, changed)
        return self._made

    def _follow_answers(self, answered: Answers) -> set[IPAddress]:
        """The addresses for which DNS gave other names than before, if rules may be for them."""
        before, self._answered = self._answered, answered
        if before is answered:
            return set()
        return {address for address in {*before, *answered} if before.get(address) != answered.get(address)}

    def _is_of(self, snapshot: Snapshot) -> bool:
        """Whether the last one had the same policies, isolated networks, labels of namespaces and node, and the nodes that rules name their
        addresses."""
        now = snapshot.policies, snapshot.namespaces, snapshot.me
        if any(one is not other for one, other in zip(now, self._of, strict=True)):
            return False
        if isolations(snapshot.networks.values()) != self._isolations:
            return False
        return not self._by_nodes or policies_in_force(snapshot) == self._policies


class _Compilation:
    """Policies and namespaces as they are, and workloads as they come and go."""

    def __init__(self, policies: Sequence[Policy], namespaces: Namespaces, node: str) -> None:
        rules = [rule for policy in policies for way in DIRECTIONS for rule in policy.rules(way) or ()]
        groups = [*(policy.subject for policy in policies), *(group for rule in rules for group in rule.groups)]
        self._membership, self._node = Membership(groups, namespaces), node
        self._about: dict[int, list[Policy]] = {}
        for policy in policies:
            self._about.setdefault(self._membership.number[policy.subject], []).append(policy)
        self._groups: dict[IPAddress, frozenset[int]] = {}
        self._members: dict[int, set[IPAddress]] = {}
        self._builds: dict[str, ProfileBuild] = {}
        self._watched: set[IPAddress] = set()
        self._chosen: dict[Direction, dict[IPAddress, str]] = {way: {} for way in DIRECTIONS}

    def follow(self, known: Mapping[IPAddress, Workload], answered: Answers, changed: Iterable[IPAddress]) -> Compiled:
        """What is wanted now that the workloads by address are `known`, and the names `answered`; `changed`: the addresses that have others
        than before."""
        changed, everybody = list(changed), Known(known, self._groups, answered)
        for address in changed:
            self._enlist(address, known.get(address))
        for build in self._builds.values():
            build.follow(changed, everybody)
        for address in changed:
            self._choose(address, everybody)
        used = {name for found in self._chosen.values() for name in found.values()}
        self._builds = {name: build for name, build in self._builds.items() if name in used}
        profiles = {name: build.profile for name, build in self._builds.items()}
        idents = {known[address].ident for found in (*self._chosen.values(), self._watched) for address in found}
        chosen = {way: dict(found) for way, found in self._chosen.items()}
        return Compiled(profiles, chosen, frozenset(self._watched), frozenset(idents - {""}), self._hears)

    def _hears(self, address: IPAddress) -> bool:
        found = (policy for group in self._groups.get(address, ()) for policy in self._about.get(group, ()))
        return any(policy.rules("ingress") is not None and not policy.audit for policy in found)

    def _enlist(self, address: IPAddress, workload: Workload | None) -> None:
        """Know of which groups the address is."""
        for group in self._groups.pop(address, ()):
            self._members[group].discard(address)
        if workload is not None:
            self._groups[address] = self._membership.of(workload)
            for group in self._groups[address]:
                self._members.setdefault(group, set()).add(address)

    def _choose(self, address: IPAddress, known: Known) -> None:
        """The profiles of a workload of this node."""
        workload = known.workloads.get(address)
        self._watched.discard(address)
        for way, chosen in self._chosen.items():
            chosen.pop(address, None)
            if workload is None or self._node not in ("", workload.node):
                continue
            found = self._policies_of(address, way)
            if policies := [policy for policy in found if not policy.audit]:
                chosen[address] = self._profile(policies, way, workload, known)
            if len(policies) < len(found):
                self._watched.add(address)

    def _policies_of(self, address: IPAddress, way: Direction) -> list[Policy]:
        found = (policy for group in self._groups[address] for policy in self._about.get(group, ()) if policy.rules(way) is not None)
        return sorted(found, key=lambda p: (_TIERS.index(p.tier), p.priority, p.ident))

    def _profile(self, policies: Sequence[Policy], way: Direction, workload: Workload, known: Known) -> str:
        """The name of the profile of a workload with these policies, in their order."""
        names = port_names(policies, way) if way == "ingress" else ()
        own = {name: workload.ports[name] for name in sorted(names) if name in workload.ports}
        key = repr((way, [policy.ident for policy in policies], own))
        name = hashlib.sha256(key.encode()).hexdigest()[:10]
        if name not in self._builds:
            build = self._builds[name] = ProfileBuild(name, way, policies, own, self._membership.number.__getitem__)
            others = known.workloads.items() if way == "egress" else ()
            named = (address for address, one in others if not build.names.isdisjoint(one.ports))
            members = {address for group in build.groups for address in self._members.get(group, ())}
            build.follow(members.union(named, known.answered if build.by_names else ()), known)
        return name
