# SPDX-License-Identifier: Apache-2.0
"""What policies decide of one packet that begins a connection: the reference. It asks rule after rule, as the text of Kubernetes has it, so
that it is easily seen to be right; what the kernel is given (`compile.py`, `plan/policy.py`) is another computation, and is held to this.

For each side of its own: first the tier Admin, rule by rule in order, where `Pass` ends the tier; then, if a NetworkPolicy isolates the
workload in that direction, what any of these accepts passes and nothing else; then Baseline, then everything passes. Both sides must let
it pass. Between a workload and its own host everything passes, and what a workload sends to itself. Answers belong to their connection.
Names of hosts mean the addresses that the DNS of the node has given for them, and never a workload.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from plait.model.addr import IPAddress
from plait.model.cluster import Snapshot
from plait.model.domains import patterns_of
from plait.model.policy import Direction, Policy, PolicyRule, Ports
from plait.policy.nodes import own_addresses, policies_in_force
from plait.policy.workloads import NamedPorts, Namespaces, Workload, by_address, workloads

_NO_NAMES: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Packet:
    """`protocol` as nft calls it (tcp, udp, sctp, icmp…); `port` that of the destination, 0 where the protocol has none."""

    source: IPAddress
    destination: IPAddress
    protocol: str = "tcp"
    port: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """Of one side. `policy` and `where` name the rule that decided, both "" if it was none: then `why` says what did. `isolating`: the
    policies that let it pass by none of their rules."""

    direction: Direction
    workload: str
    allowed: bool
    why: str
    policy: tuple[str, str] = ("", "")
    where: str = ""
    isolating: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`sides`: that of the source (egress) first; a side that is no workload is not there."""

    sides: tuple[Decision, ...] = ()

    @property
    def allowed(self) -> bool:
        return all(side.allowed for side in self.sides)


@dataclass(frozen=True, slots=True)
class World:
    """A cluster as policies see it. `hosts`: nodes by the addresses that their own packets come from. `answered`: the names for which DNS
    gave an address, on the node that asks; each goes by its own."""

    policies: tuple[Policy, ...]
    namespaces: Namespaces
    members: tuple[Workload, ...]
    known: Mapping[IPAddress, Workload]
    hosts: Mapping[IPAddress, str]
    answered: Mapping[IPAddress, frozenset[str]] = field(default_factory=dict)


def world_of(snapshot: Snapshot) -> World:
    members = tuple(workloads(snapshot))
    hosts = {address: node.name for node in snapshot.nodes.values() for address in own_addresses(node)}
    return World(policies_in_force(snapshot), namespaces_of(snapshot), members, by_address(members), hosts, snapshot.answered)


def namespaces_of(snapshot: Snapshot) -> Namespaces:
    return Namespaces({name: one.labels for name, one in snapshot.namespaces.items()})


def evaluate(world: World, packet: Packet, audited: bool = False) -> Verdict:
    """What becomes of a packet that belongs to no connection yet; `audited`: as if what policies to audit say were in force too."""
    if not audited:
        world = replace(world, policies=tuple(policy for policy in world.policies if not policy.audit))
    source, destination = world.known.get(packet.source), world.known.get(packet.destination)
    sides: list[Decision] = []
    if source is not None:
        sides.append(_side(world, "egress", source, packet, packet.destination, destination))
    if destination is not None:
        sides.append(_side(world, "ingress", destination, packet, packet.source, source))
    return Verdict(tuple(sides))


def _side(world: World, direction: Direction, subject: Workload, packet: Packet, address: IPAddress, peer: Workload | None) -> Decision:
    if packet.source == packet.destination:
        return Decision(direction, subject.name, True, "a container reaches itself")
    if world.hosts.get(address) == subject.node:
        return Decision(direction, subject.name, True, "a container and its own host always reach each other")
    target = subject if direction == "ingress" else peer
    answered = world.answered.get(address, _NO_NAMES) if direction == "egress" and peer is None else _NO_NAMES
    case = _Case(world.namespaces, packet, address, peer, target.ports if target is not None else {}, answered)
    mine = [policy for policy in world.policies if policy.rules(direction) is not None and world.namespaces.has(policy.subject, subject)]
    for tier in ("Admin", "NetworkPolicy", "Baseline"):
        found = case.first([policy for policy in mine if policy.tier == tier], direction)
        if found is not None:
            policy, rule = found
            why = f"{rule.action} by tier {tier}{case.by_name(rule)}"
            return Decision(direction, subject.name, rule.action == "Accept", why, policy.ident, rule.where)
        if tier == "NetworkPolicy" and (isolating := [policy for policy in mine if policy.tier == tier]):
            found_in = tuple(policy.ident for policy in isolating)
            names = ", ".join(map("/".join, found_in))
            why = f"isolated by {names}, and no rule of these accepts it"
            return Decision(direction, subject.name, False, why, isolating=found_in)
    return Decision(direction, subject.name, True, "no policy says anything of it")


@dataclass(frozen=True, slots=True)
class _Case:
    """A packet as one side sees it: the other side's `address`, and the workload there if it is one; `ports` of the destination, and its
    `names` by DNS."""

    namespaces: Namespaces
    packet: Packet
    address: IPAddress
    peer: Workload | None
    ports: NamedPorts
    names: frozenset[str]

    def first(self, policies: Iterable[Policy], direction: Direction) -> tuple[Policy, PolicyRule] | None:
        """The rule of a tier that decides; None if none does, or one says to pass on."""
        for policy in sorted(policies, key=lambda one: (one.priority, one.ident)):
            for rule in policy.rules(direction) or ():
                if self._matches(rule):
                    return None if rule.action == "Pass" else (policy, rule)
        return None

    def _matches(self, rule: PolicyRule) -> bool:
        return self._is_peer(rule) and (not rule.ports or any(self._has(ports) for ports in rule.ports))

    def _is_peer(self, rule: PolicyRule) -> bool:
        return self._is_named(rule) or self._has_address(rule)

    def _is_named(self, rule: PolicyRule) -> bool:
        return bool(rule.domains) and any(pattern in rule.domains for name in self.names for pattern in patterns_of(name))

    def by_name(self, rule: PolicyRule) -> str:
        """What to add to an explanation if it is for its name alone that the rule is about the address."""
        if not self._is_named(rule) or self._has_address(rule):
            return ""
        met = sorted(name for name in self.names if not set(patterns_of(name)).isdisjoint(rule.domains))
        return f", since DNS gave {self.address} for {', '.join(met)}"

    def _has_address(self, rule: PolicyRule) -> bool:
        peer, address = self.peer, self.address
        if rule.anybody or (peer is not None and any(self.namespaces.has(group, peer) for group in rule.groups)):
            return True
        return any(address in one.network and not any(address in part for part in one.excluded) for one in rule.ranges)

    def _has(self, ports: Ports) -> bool:
        protocol, port = self.packet.protocol, self.packet.port
        if ports.name:
            return (protocol, port) in self.ports.get(ports.name, ()) and ports.protocol in ("", protocol)
        return ports.protocol == protocol and ports.first <= port <= ports.last
