# SPDX-License-Identifier: Apache-2.0
"""Rules for nodes -> rules for the addresses of those nodes, which is all that the rest of the room knows.

A node's own packets come from these addresses, and what is sent to one of them is for the node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_network

from plait.model.addr import IPAddress
from plait.model.cluster import Node, Snapshot
from plait.model.policy import NAME_OF_NODE, Policy, PolicyRule, Range
from plait.policy.isolation import isolations
from plait.policy.selectors import selects


def own_addresses(node: Node) -> Iterator[IPAddress]:
    found: list[IPAddress | None] = [node.address, node.tunnel, node.tunnel6, node.encrypted6]
    found.append(node.wireguard.address if node.wireguard is not None else None)
    yield from (address for address in found if address is not None)


def names_nodes(policies: Iterable[Policy]) -> bool:
    """Whether any rule is for nodes."""
    return any(rule.nodes for policy in policies for rules in (policy.ingress, policy.egress) for rule in rules or ())


def policies_in_force(snapshot: Snapshot) -> tuple[Policy, ...]:
    """All that are written, in a fixed order, and those of isolated networks, with the addresses of the nodes that their rules are for;
    those without such rules are the same objects."""
    written = (_resolved(policy, snapshot.nodes) for _, policy in sorted(snapshot.policies.items()))
    return (*written, *isolations(snapshot.networks.values()))


def _resolved(policy: Policy, nodes: Mapping[str, Node]) -> Policy:
    if not names_nodes([policy]):
        return policy
    egress = tuple(_addressed(rule, nodes) if rule.nodes else rule for rule in policy.egress or ())
    return replace(policy, egress=egress)


def _addressed(rule: PolicyRule, nodes: Mapping[str, Node]) -> PolicyRule:
    meant = (node for _, node in sorted(nodes.items()) if any(selects(one, labels_of(node)) for one in rule.nodes))
    ranges = [Range(ip_network(address)) for node in meant for address in own_addresses(node)]
    return replace(rule, ranges=(*rule.ranges, *ranges), nodes=())


def labels_of(node: Node) -> Mapping[str, str]:
    return {**node.meta, NAME_OF_NODE: node.name}
