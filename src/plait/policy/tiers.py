# SPDX-License-Identifier: Apache-2.0
"""ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2): policies of the administrator, asked before those of the namespaces (tier
Admin) or after them (Baseline).
"""

from __future__ import annotations

from collections.abc import Iterable

from plait.model.cluster import Protocol
from plait.model.policy import LAST_PORT, Action, Direction, Group, Policy, PolicyRule, Ports, Range, Selector, Tier
from plait.policy.fields import Field
from plait.policy.selectors import read_selector
from plait.policy.texts import cidr, domain, port_name

TIERS_VERSION = "policy.networking.k8s.io/v1alpha2"
MAX_PRIORITY = 1000
_TIERS: tuple[Tier, ...] = ("Admin", "Baseline")
_ACTIONS: tuple[Action, ...] = ("Accept", "Deny", "Pass")
_PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "sctp": "sctp"}
_OUTWARD = {"networks", "nodes", "domainNames"}
"""Peers of egress alone."""
_PEERS: dict[Direction, tuple[str, ...]] = {
    "ingress": ("namespaces", "pods"),
    "egress": ("namespaces", "pods", "networks", "nodes", "domainNames"),
}


def read_tiered(spec: Field, name: str, document: str) -> Policy:
    known = spec.fields("tier", "priority", "subject", "ingress", "egress")
    return Policy(
        name,
        "",
        spec.need("tier", known).one_of(_TIERS),
        _group(spec.need("subject", known)),
        ingress=_rules(known["ingress"], "ingress") if "ingress" in known else None,
        egress=_rules(known["egress"], "egress") if "egress" in known else None,
        priority=spec.need("priority", known).whole(0, MAX_PRIORITY),
        document=document,
    )


def _group(at: Field) -> Group:
    found = _one_of(at, "namespaces", "pods")
    if found.path.endswith(".namespaces"):
        return Group(namespaces=read_selector(found))
    known = found.fields("namespaceSelector", "podSelector")
    return Group(read_selector(found.need("podSelector", known)), read_selector(found.need("namespaceSelector", known)))


def _one_of(at: Field, *names: str) -> Field:
    """The one field that is there."""
    known = at.fields(*names)
    if len(known) != 1:
        raise at.refused(f"has to have one of {', '.join(names)}, and not {len(known)}")
    return next(iter(known.values()))


def _rules(at: Field, direction: Direction) -> tuple[PolicyRule, ...]:
    return tuple(_rule(one, direction) for one in at.each())


def _rule(at: Field, direction: Direction) -> PolicyRule:
    side = "from" if direction == "ingress" else "to"
    known = at.fields("name", "action", side, "protocols")
    place = at.path.removeprefix("spec.")
    where = f"{place} {known['name'].text()!r}" if "name" in known else place
    groups: list[Group] = []
    ranges: list[Range] = []
    nodes: list[Selector] = []
    domains: list[str] = []
    action = at.need("action", known).one_of(_ACTIONS)
    ports = tuple(_ports(one) for one in known["protocols"].some()) if "protocols" in known else ()
    for peer in at.need(side, known).some():
        here = peer.fields(others=True).keys() & _OUTWARD
        if not here:
            groups.append(_group(peer))
            continue
        found = _one_of(peer, *_PEERS[direction])
        if "nodes" in here:
            nodes.append(read_selector(found))
        elif "networks" in here:
            ranges += [Range(one.parsed(cidr, "a network")) for one in found.some()]
        else:
            domains += _domains(found, action, ports)
    return PolicyRule(action, where, tuple(groups), tuple(ranges), ports=ports, nodes=tuple(nodes), domains=tuple(domains))


def _domains(at: Field, action: Action, ports: Iterable[Ports]) -> list[str]:
    """Only to accept, as the version has it: not all addresses of a name are known, so that a Deny would let some pass."""
    if action != "Accept":
        raise at.refused(f"stands in a rule with the action {action}, and names can only be accepted", "deny networks in a later rule")
    if any(one.name for one in ports):
        raise at.refused("stands in a rule with a destinationNamedPort, and only containers have these", "give its number")
    return [domain(one) for one in at.some()]


def _ports(at: Field) -> Ports:
    found = _one_of(at, *_PROTOCOLS, "destinationNamedPort")
    word = found.path.rpartition(".")[2]
    if word not in _PROTOCOLS:
        return Ports(name=port_name(found))
    protocol, known = _PROTOCOLS[word], found.fields("destinationPort")
    if "destinationPort" not in known:
        return Ports(protocol)
    port = _one_of(known["destinationPort"], "number", "range")
    if port.path.endswith(".number"):
        number = port.whole(1, LAST_PORT)
        return Ports(protocol, number, number)
    ends = port.fields("start", "end")
    first = port.need("start", ends).whole(1, LAST_PORT)
    return Ports(protocol, first, port.need("end", ends).whole(first, LAST_PORT))
