# SPDX-License-Identifier: Apache-2.0
"""Policies, whatever they say: files are read or refused, and what the kernel is given decides as the reference does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.nftwalk import Walk
from tests.support.policies import packets, snapshots

from plait.model.cluster import Snapshot
from plait.model.errors import ConfigError
from plait.model.objects import NftChain, NftSet, Plan
from plait.model.policy import PROTOCOLS, Ports
from plait.model.shortcut import Delivery
from plait.plan import Local, plan_node, prompt_objects
from plait.plan.elsewhere import elsewhere
from plait.plan.policy import Policing
from plait.plan.policychange import called, policy_change
from plait.policy.compile import compile_node
from plait.policy.evaluate import Packet, evaluate, world_of
from plait.policy.kubernetes import read_policies
from plait.policy.tables import Step, Table, carve, merged, table_of
from plait.policy.workloads import workloads
from plait.store.codec import decode, encode

LOCAL = Local(fast_path=True, shortcut="eth0", underlay="eth0", links=frozenset({"eth0"}))


@settings(max_examples=300)
@given(st.data())
def test_what_the_kernel_is_given_decides_as_the_reference_does(data: st.DataObject) -> None:
    snapshot = data.draw(snapshots())
    world = world_of(snapshot)
    walks = [Walk(plan_node(replace(snapshot, me=node), LOCAL).values()) for node in snapshot.nodes]
    for packet in data.draw(st.lists(packets(snapshot), min_size=8, max_size=20)):
        told = all(walk.passes(packet) for walk in walks)
        assert told == evaluate(world, packet).allowed, packet


@settings(max_examples=100)
@given(st.data())
def test_a_profile_decides_as_the_reference_does(data: st.DataObject) -> None:
    snapshot = data.draw(snapshots())
    world = world_of(snapshot)
    found = {node: compile_node(world, node) for node in snapshot.nodes}
    for packet in data.draw(st.lists(packets(snapshot), min_size=4, max_size=12)):
        for side in evaluate(world, packet).sides if packet.source != packet.destination else ():
            mine, other = (packet.source, packet.destination) if side.direction == "egress" else (packet.destination, packet.source)
            compiled = found[world.known[mine].node]
            name = compiled.chosen[side.direction].get(mine)
            table = compiled.profiles[name].table(other) if name else None
            passes = table is None or _lets_pass(table, packet)
            assert passes == side.allowed, packet


@settings(max_examples=100)
@given(snapshots())
def test_whom_policies_select_takes_no_short_way_and_is_tracked_and_nobody_else(snapshot: Snapshot) -> None:
    plan = plan_node(snapshot, LOCAL)
    assert {one.key: one for one in prompt_objects(snapshot, LOCAL)}.items() <= plan.items()
    world = world_of(snapshot)
    selected = {
        one.ident
        for policy in world.policies
        for one in world.members
        if (policy.ingress is not None or policy.egress is not None) and one.node == "A" and world.namespaces.has(policy.subject, one)
    }
    led = elsewhere(snapshot, Policing().compiled(snapshot)).networks
    for end in (e for e in snapshot.endpoints.values() if e.node == "A"):
        chain = plan["nft", "chain", end.dev, "netdev"]
        assert isinstance(chain, NftChain) and any("fwd" in rule for rule in chain.rules) == (end.id not in selected)
        assert any(end.dev in element for element in _here(plan)) == (end.id not in selected)
        delivered = any(isinstance(one, Delivery) and one.link == end.dev for one in plan.values())
        assert delivered == (end.id not in selected and end.network not in led)
        held = plan.get(("nft", "set", "policed"))
        assert (isinstance(held, NftSet) and str(end.address) in held.elements) == (end.id in selected)
    within = plan["nft", "chain", "within"]
    assert isinstance(within, NftChain)
    first = next((n for n, rule in enumerate(within.rules) if "@policed" in rule), None)
    assert (first is not None) == bool(selected)
    assert first is None or first < next(n for n, rule in enumerate(within.rules) if rule.endswith("notrack accept"))


def _here(plan: Plan) -> frozenset[str]:
    found = plan["nft", "map", "here", "netdev"]
    assert isinstance(found, NftSet)
    return found.elements


@settings(max_examples=50)
@given(snapshots())
def test_without_policies_the_plan_is_that_of_a_node_that_knows_of_none(snapshot: Snapshot) -> None:
    bare = plan_node(replace(snapshot, policies={}, namespaces={}), LOCAL)
    away = {key: replace(policy, subject=replace(policy.subject, namespace="nowhere")) for key, policy in snapshot.policies.items()}
    assert plan_node(replace(snapshot, policies=away), LOCAL) == bare
    assert not any("polic" in " ".join(key) for key in bare)


@settings(max_examples=100)
@given(st.data())
def test_what_a_change_is_said_to_change_is_what_the_reference_decides_otherwise(data: st.DataObject) -> None:
    """Between workloads of one network, for any port."""
    before = data.draw(snapshots())
    into = data.draw(snapshots())
    after = replace(before, policies=into.policies, namespaces=into.namespaces)
    found = policy_change(before, after)
    assert found.compared == found.concerned
    told = {(pair.source, pair.destination): pair for pair in found.pairs}
    assert len(told) == len(found.pairs)
    was, would = world_of(before), world_of(after)
    for packet in data.draw(st.lists(packets(before), min_size=8, max_size=20)):
        one, other = was.known.get(packet.source), was.known.get(packet.destination)
        if one is None or other is None or one is other or one.network != other.network:
            continue
        verdicts = [evaluate(world, packet).allowed for world in (was, would)]
        if (pair := told.get((called(one, packet.source), called(other, packet.destination)))) is None:
            assert verdicts[0] == verdicts[1], packet
        else:
            assert [_lets_pass(table, packet) for table in (pair.before, pair.after)] == verdicts, packet


def _lets_pass(table: Table, packet: Packet) -> bool:
    if packet.protocol not in PROTOCOLS:
        return table.other
    return any(p == packet.protocol and a <= packet.port <= b for p, a, b in table.passing)


@given(snapshots())
def test_the_store_gives_back_what_it_was_given(snapshot: Snapshot) -> None:
    for policy in snapshot.policies.values():
        assert decode(type(policy), encode(policy), "k") == policy


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted).map(tuple), max_size=8), st.integers(0, 30), st.integers(0, 30)
)
def test_spans_are_cut_like_sets_of_numbers(spans: list[Any], first: int, last: int) -> None:
    free = merged(spans)
    before = {n for a, b in free for n in range(a, b + 1)}
    taken = carve(free, min(first, last), max(first, last))
    cut = set(range(min(first, last), max(first, last) + 1))
    assert {n for a, b in taken for n in range(a, b + 1)} == before & cut
    assert {n for a, b in free for n in range(a, b + 1)} == before - cut and free == sorted(free)


@given(st.lists(st.tuples(st.integers(1, 65535), st.sampled_from(("Accept", "Deny"))), max_size=8))
def test_of_two_rules_for_a_port_the_first_counts(rules: list[Any]) -> None:
    table = table_of([Step("Admin", action, (Ports("tcp", port, 65535),)) for port, action in rules], False, {})
    for port in (1, 80, 65535, *(port for port, _ in rules)):
        wanted = next((action == "Accept" for least, action in rules if port >= least), True)
        assert any(p == "tcp" and a <= port <= b for p, a, b in table.passing) == wanted
    assert sorted(table.passing + table.stopped()) == sorted(set(table.passing + table.stopped()))


GOOD = """apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from:
    - podSelector: {matchExpressions: [{key: app, operator: In, values: [web]}]}
    - ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.7/32]}
    ports: [{port: 3306}, {protocol: UDP, port: dns}, {port: 8000, endPort: 8100}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec:
  tier: Admin
  priority: 5
  subject: {pods: {namespaceSelector: {}, podSelector: {}}}
  egress:
  - {action: Accept, to: [{domainNames: [api.example.com, "*.example.org"]}]}
  - {name: out, action: Deny, to: [{networks: [192.0.2.0/24]}], protocols: [{tcp: {destinationPort: {range: {start: 1, end: 9}}}}]}
"""


def read(text: str) -> None:
    """It is read, or refused in words."""
    try:
        found = read_policies(text)
    except ConfigError as error:
        assert str(error)
        return
    again = [read_policies(policy.document).policies[0] for policy in found.policies]
    assert again == list(found.policies)


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    read(text)


@given(st.data())
def test_a_file_with_one_bit_of_something_else_is_read_or_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(GOOD)))
    end = data.draw(st.integers(at, min(len(GOOD), at + 20)))
    read(
        GOOD[:at]
        + data.draw(st.text(max_size=6) | st.sampled_from(["{", "- ", "&a ", "*a", "!!x ", ": ", "\n  ", "[", "0", "null"]))
        + GOOD[end:]
    )


_FIELDS = ["podSelector", "namespaceSelector", "matchLabels", "matchExpressions", "key", "operator", "values", "from", "to", "ports"]
_FIELDS += [
    "port",
    "protocol",
    "endPort",
    "ipBlock",
    "cidr",
    "except",
    "action",
    "name",
    "pods",
    "namespaces",
    "networks",
    "domainNames",
    "protocols",
]
_FIELDS += ["tcp", "udp", "destinationPort", "number", "range", "start", "end", "policyTypes"]
_WORDS = ["In", "TCP", "Ingress", "app", "192.0.2.0/24", "Accept", "Admin", "http", "*.example.org", ""]
_tree = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(_WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_FIELDS), inner, max_size=4),
    max_leaves=20,
)


@given(_tree, st.booleans())
def test_any_specification_is_read_or_refused(tree: Any, clustered: bool) -> None:
    spec = tree if isinstance(tree, dict) else {"podSelector": {}, "ingress": tree}
    if clustered:
        spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": tree, "egress": tree}
    kind = ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy") if clustered else ("networking.k8s.io/v1", "NetworkPolicy")
    read(yaml.safe_dump({"apiVersion": kind[0], "kind": kind[1], "metadata": {"name": "p"}, "spec": spec}))


@given(snapshots())
def test_each_address_is_of_one_workload(snapshot: Snapshot) -> None:
    found = [address for one in workloads(snapshot) for address in one.addresses]
    assert len(found) == len(set(found))
    for address in found:
        assert evaluate(world_of(snapshot), Packet(address, address)).allowed


@settings(max_examples=50)
@given(st.data())
def test_what_is_remembered_of_one_cluster_changes_nothing_for_the_next(data: st.DataObject) -> None:
    """Endpoints, containers and now and then policies come, go and change; most records stay the same objects, as in an agent's view."""
    remembering, kept = replace(LOCAL, policing=Policing()), data.draw(snapshots())
    for _ in range(data.draw(st.integers(2, 6))):
        assert plan_node(kept, remembering) == plan_node(kept, replace(LOCAL, policing=Policing()))
        other = data.draw(snapshots())
        kept = replace(
            kept,
            endpoints=_mixed(data, kept.endpoints, other.endpoints),
            containers=_mixed(data, kept.containers, other.containers),
            instances=_mixed(data, kept.instances, other.instances),
            answered=_mixed(data, kept.answered, other.answered),
            policies=_mixed(data, kept.policies, other.policies) if data.draw(st.integers(0, 3)) == 3 else kept.policies,
            namespaces=_mixed(data, kept.namespaces, other.namespaces) if data.draw(st.integers(0, 3)) == 3 else kept.namespaces,
        )


def _mixed(data: st.DataObject, old: Mapping[Any, Any], new: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Some of either, the new ones first where both have one."""
    found = {**old, **{key: one for key, one in new.items() if data.draw(st.booleans())}}
    return {key: one for key, one in found.items() if data.draw(st.sampled_from((True, True, False)))}


@given(snapshots())
def test_a_member_more_is_one_element_of_what_knows_it_and_all_else_the_same_objects(snapshot: Snapshot) -> None:
    """Somebody else comes on another host, with the labels and the name of one that is there."""
    remembering = replace(LOCAL, policing=Policing())
    before = _policing(plan_node(snapshot, remembering))
    like = next((e for e in snapshot.endpoints.values() if e.node == "B" and e.network == "default"), None)
    if like is None:
        return
    fresh = replace(like, id="fresh", address=like.address + 100, dev="pl-fresh", ports=())
    after = _policing(plan_node(replace(snapshot, endpoints={**snapshot.endpoints, "fresh": fresh}), remembering))
    for key, old in before.items():
        new = after[key]
        if isinstance(old, NftSet) and isinstance(new, NftSet) and new is not old:
            (element,) = new.elements - old.elements
            assert old.elements < new.elements and element.startswith(f"{fresh.address} : ")
        else:
            assert new is old


def _policing(plan: Plan) -> Plan:
    """Profiles and tables of ports."""
    return {key: obj for key, obj in plan.items() if key[0] == "nft" and key[2].startswith(("po_", "pi_", "pp_"))}
