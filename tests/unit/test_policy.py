# SPDX-License-Identifier: Apache-2.0
"""What policies decide and why, whom they are about, and what a change of one member costs."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal

import pytest
from tests.support.nftwalk import Walk
from tests.support.policies import BLOCKS, NETWORKS, NODES, endpoint

from plait.kernel.linux.nftscript import script_of
from plait.model.cluster import Container, Endpoint, Instance, Snapshot
from plait.model.errors import ConfigError
from plait.model.objects import NftChain, NftSet, Op
from plait.model.policy import Namespace
from plait.plan import Local, plan_node
from plait.policy.compile import Recompiling, compile_node
from plait.policy.evaluate import Packet, Verdict, evaluate, world_of
from plait.policy.kubernetes import read_policies
from plait.policy.roster import Roster
from plait.policy.workloads import by_address, named_ports, workloads
from plait.reconcile import diff, order
from plait.reconcile.leading import leads_to, name_of

A = IPv4Address
WEB = endpoint(0, "A", "default", {"app": "web", "plait.namespace": "shop", "plait.port.http": "8080"})
DB = endpoint(1, "B", "default", {"app": "db", "plait.namespace": "shop"})
OTHER = endpoint(2, "B", "default", {"app": "web"})
DB_POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 3306}]}]}
"""


def cluster(text: str = "", *more: Endpoint, me: str = "A", teams: tuple[str, ...] = ()) -> Snapshot:
    policies = read_policies(text).policies if text else ()
    ends = {e.id: e for e in (WEB, DB, OTHER, *more)}
    named = {name: Namespace(name, {"team": name}) for name in teams}
    return Snapshot(me, 1, NODES, frozenset("AB"), NETWORKS, BLOCKS, ends, policies={p.ident: p for p in policies}, namespaces=named)


def judged(snapshot: Snapshot, source: Endpoint, to: Endpoint, port: int = 3306, protocol: str = "tcp") -> Verdict:
    return evaluate(world_of(snapshot), Packet(source.address, to.address, protocol, port))


def test_a_policy_isolates_whom_it_selects_and_a_rule_lets_in_whom_it_names() -> None:
    snapshot = cluster(DB_POLICY)
    let_in = judged(snapshot, WEB, DB)
    assert [(s.direction, s.allowed, s.policy, s.where) for s in let_in.sides] == [
        ("egress", True, ("", ""), ""),
        ("ingress", True, ("shop", "db"), "ingress[0]"),
    ]
    assert not judged(snapshot, WEB, DB, 3307).allowed and not judged(snapshot, WEB, DB, protocol="udp").allowed
    other = judged(snapshot, OTHER, DB)
    assert not other.allowed, "a podSelector alone is about the policy's own namespace"
    assert "isolated by shop/db" in other.sides[1].why
    assert judged(snapshot, DB, WEB).allowed, "nobody isolates the other direction"


def test_pings_pass_where_no_port_is_named() -> None:
    assert not judged(cluster(DB_POLICY), WEB, DB, 0, "icmp").allowed
    assert judged(cluster(DB_POLICY.replace(", ports: [{port: 3306}]", "")), WEB, DB, 0, "icmp").allowed


def test_a_named_port_is_what_the_destination_calls_so() -> None:
    text = (
        DB_POLICY.replace("app: db", "app: web")
        .replace("{podSelector: {matchLabels: {app: web}}}", "{podSelector: {}}")
        .replace("3306", "http")
    )
    assert judged(cluster(text), DB, WEB, 8080).allowed and not judged(cluster(text), DB, WEB, 80).allowed


def test_a_named_port_of_anybody_is_what_each_destination_calls_so() -> None:
    """By egress to a range, too: found by the property test."""
    spec = "{podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}"
    snapshot = cluster(DB_POLICY.partition("spec:")[0] + f"spec: {spec}\n", me="B")
    assert judged(snapshot, DB, WEB, 8080).allowed and not judged(snapshot, DB, OTHER, 8080).allowed
    walk = Walk(plan_node(snapshot, Local()).values())
    assert walk.passes(Packet(DB.address, WEB.address, "tcp", 8080)) and not walk.passes(Packet(DB.address, OTHER.address, "tcp", 8080))


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ({"plait.port.http": "80"}, {"http": (("tcp", 80),)}),
        ({"plait.port.dns": "53/udp"}, {"dns": (("udp", 53),)}),
        ({"plait.port.a": "0", "plait.port.b": "65536", "plait.port.c": "x", "plait.port.d": "1/icmp", "plait.port.e": "", "f": "1"}, {}),
    ],
)
def test_labels_name_ports(labels: dict[str, str], found: object) -> None:
    assert named_ports(labels) == found


def tiered(tier: str, name: str, priority: int, *rules: str) -> str:
    return (
        f"---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\n"
        f"spec: {{tier: {tier}, priority: {priority}, subject: {{namespaces: {{}}}}, ingress: [{', '.join(rules)}]}}\n"
    )


def rule(action: str) -> str:
    return f"{{action: {action}, from: [{{namespaces: {{}}}}]}}"


@pytest.mark.parametrize(
    ("texts", "allowed", "by"),
    [
        ([tiered("Admin", "a", 1, rule("Deny"))], False, "a"),
        ([tiered("Admin", "b", 2, rule("Accept")), tiered("Admin", "a", 3, rule("Deny"))], True, "b"),
        ([tiered("Admin", "b", 2, rule("Accept")), tiered("Admin", "a", 2, rule("Deny"))], False, "a"),
        ([tiered("Admin", "a", 1, rule("Accept"), rule("Deny"))], True, "a"),
        ([tiered("Admin", "a", 1, rule("Pass"), rule("Deny"))], True, ""),
        ([tiered("Admin", "a", 1, rule("Pass")), tiered("Baseline", "z", 1, rule("Deny"))], False, "z"),
        ([DB_POLICY.replace("app: web", "app: nobody"), tiered("Admin", "a", 1, rule("Accept"))], True, "a"),
        ([DB_POLICY, tiered("Baseline", "z", 1, rule("Deny"))], True, "db"),
        ([DB_POLICY.replace("app: web", "app: nobody"), tiered("Baseline", "z", 1, rule("Accept"))], False, ""),
    ],
)  # fmt: skip
def test_tiers_are_asked_in_order(texts: list[str], allowed: bool, by: str) -> None:
    verdict = judged(cluster("".join(texts)), WEB, DB)
    assert (verdict.allowed, verdict.sides[1].policy[1] if verdict.sides[1].where else "") == (allowed, by)


def test_namespaces_have_their_name_for_a_label_and_what_else_they_are_given() -> None:
    by_name = DB_POLICY.replace(
        "podSelector: {matchLabels: {app: web}}", "namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: default}}"
    )
    assert judged(cluster(by_name), OTHER, DB).allowed and not judged(cluster(by_name), WEB, DB).allowed
    by_team = by_name.replace("kubernetes.io/metadata.name: default", "team: default")
    assert not judged(cluster(by_team), OTHER, DB).allowed
    assert judged(cluster(by_team, teams=("default",)), OTHER, DB).allowed


def test_a_network_is_a_label_and_so_is_a_containers_name() -> None:
    text = DB_POLICY.replace(
        "podSelector: {matchLabels: {app: web}}", "podSelector: {matchLabels: {plait.network: default, plait.container: c0}}"
    )
    assert judged(cluster(text), WEB, DB).allowed and not judged(cluster(text.replace("c0", "c9")), WEB, DB).allowed


def test_its_own_host_and_itself_are_never_kept_from_a_container() -> None:
    world = world_of(cluster(DB_POLICY))
    for source in (NODES["B"].address, NODES["B"].tunnel, NODES["B"].tunnel6, DB.address):
        assert source is not None and evaluate(world, Packet(source, DB.address, "tcp", 1)).allowed
    assert not evaluate(world, Packet(NODES["A"].address, DB.address, "tcp", 1)).allowed, "another host is an address like others"


def test_containers_of_dockers_own_bridge_are_workloads_and_those_without_a_network_of_their_own_are_none() -> None:
    boxes = (
        Container("c1", "bridged", "A", "docker", labels={"app": "web", "plait.namespace": "shop"}, addresses={"default": A("10.28.1.99")}),
        Container("c2", "beside", "A", "docker", addresses={"default": A("10.28.1.98")}, shares="c1"),
        Container("c3", "bare", "A", "docker", addresses={"default": A("10.28.1.97")}, host_network=True),
        Container("c4", "attached", "A", "sandbox", addresses={"default": WEB.address}),
    )
    exposed = replace(endpoint(9, "A", "default", {}), runtime="host")
    snapshot = replace(cluster(DB_POLICY, exposed), containers={(box.node, box.id): box for box in boxes})
    assert [one.name for one in workloads(snapshot)] == ["c0", "c1", "c2", "bridged"]
    assert evaluate(world_of(snapshot), Packet(A("10.28.1.99"), DB.address, "tcp", 3306)).allowed


# --- what the kernel is told


def changes(before: Snapshot, after: Snapshot) -> list[str]:
    """The lines that nft is given to get from one plan to the other, tables' declarations aside."""
    ops = order(diff(plan_node(after, Local()), plan_node(before, Local()), True))
    return [
        line
        for line in script_of([op for op in ops if isinstance(op.subject, NftChain | NftSet)]).splitlines()
        if not line.startswith("add table")
    ]


def test_one_member_more_is_one_element() -> None:
    newcomer = endpoint(5, "A", "default", {"app": "web", "plait.namespace": "shop"})
    before, after = cluster(DB_POLICY, me="B"), cluster(DB_POLICY, newcomer, me="B")
    (line,) = changes(before, after)
    assert line.startswith("add element inet plait pi_") and str(newcomer.address) in line
    (line,) = changes(after, before)
    assert line.startswith("delete element inet plait pi_") and str(newcomer.address) in line


def test_one_workload_more_is_an_element_of_each_list_of_workloads() -> None:
    newcomer = endpoint(5, "B", "default", {"app": "db", "plait.namespace": "shop"})
    lines = changes(cluster(DB_POLICY, me="B"), cluster(DB_POLICY, newcomer, me="B"))
    lines = [line for line in lines if newcomer.dev not in line]  # the chain of its link
    assert sorted(line.split()[4] for line in lines) == ["policed", "policy_in", "policy_self"]


def test_the_chain_is_as_long_whatever_the_policies_are() -> None:
    many = DB_POLICY + "".join(f"---\n{DB_POLICY.replace('name: db', f'name: db{n}').replace('3306', str(4000 + n))}" for n in range(50))
    lengths = set()
    for text in (DB_POLICY, many):
        plan = plan_node(cluster(text, me="B"), Local())
        chains = [obj for obj in plan.values() if isinstance(obj, NftChain) and obj.name.startswith(("polic", "pi_", "pp_"))]
        lengths.add((len(chains), sum(len(chain.rules) for chain in chains)))
    assert len(lengths) == 1


@pytest.mark.parametrize("verb", ["put", "del"])
def test_a_chain_is_there_before_what_leads_to_it_and_goes_after_it(verb: Literal["put", "del"]) -> None:
    plan = [obj for obj in plan_node(cluster(DB_POLICY, me="B"), Local()).values() if isinstance(obj, NftChain | NftSet)]
    ops = order(Op(verb, obj if verb == "put" else None, obj if verb == "del" else None) for obj in plan)
    seen = [name_of(op.subject) for op in (ops if verb == "put" else reversed(ops))]
    for op in ops:
        at = seen.index(name_of(op.subject))
        assert all(seen.index(name) < at for name in leads_to(op.subject)), op.key
    assert sum("jump" in rule or "goto" in rule for op in ops for rule in map(str, (op.new, op.old))) >= 2


def test_a_service_is_a_label_of_whoever_has_the_address_of_an_instance_and_nobody_gives_it_to_himself() -> None:
    text = DB_POLICY.replace("{app: web}", '{plait.service.shop: "true"}')
    liar = replace(WEB, labels={**WEB.labels, "plait.service.shop": "true"})
    snapshot = replace(cluster(text), endpoints={e.id: e for e in (liar, DB, OTHER)})
    assert not judged(snapshot, liar, DB).allowed
    served = replace(snapshot, instances={("A", "i"): Instance("i", "shop", "A", str(WEB.address), 80)})
    assert judged(served, liar, DB).allowed
    assert not judged(replace(served, instances={("A", "i"): Instance("i", "other", "A", str(WEB.address), 80)}), liar, DB).allowed


def test_only_like_reaches_like_by_the_two_documents_of_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "policy.md").read_text().partition("## Weave's way")[2]
    ends = [replace(e, labels={"team": team}) for e, team in ((WEB, "shop"), (DB, "shop"), (OTHER, "lab"))]
    snapshot = cluster(guide.partition("<<'EOF'\n")[2].partition("\nEOF\n")[0])
    snapshot = replace(snapshot, endpoints={e.id: e for e in ends})
    assert judged(snapshot, WEB, DB).allowed and judged(snapshot, DB, WEB).allowed
    assert not judged(snapshot, OTHER, DB).allowed and not judged(snapshot, DB, OTHER).allowed


def test_services_that_come_change_and_go_are_followed() -> None:
    roster, text = Roster(), DB_POLICY.replace("{app: web}", '{plait.service.shop: "true"}')
    recompiling, base = Recompiling(), cluster(text, me="B")
    shop, lab = (Instance("i", name, "A", str(WEB.address), 80) for name in ("shop", "lab"))
    for found in ({}, {"i": shop}, {"i": shop, "j": replace(shop, id="j")}, {"j": replace(shop, id="j")}, {"i": lab}, {}):
        snapshot = replace(base, instances={("A", key): one for key, one in found.items()})
        roster.follow(snapshot)
        assert roster.known == by_address(workloads(snapshot))
        assert recompiling(snapshot) == compile_node(world_of(snapshot), "B")


NODES_POLICY = """\
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: hosts}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  egress:
  - {action: Accept, to: [{nodes: {matchLabels: {kubernetes.io/hostname: B}}}, {nodes: {matchLabels: {rack: one}}}]}
  - {action: Deny, to: [{networks: [198.51.100.0/24]}]}
"""


def test_nodes_are_meant_by_their_labels_with_all_their_addresses() -> None:
    snapshot = cluster(NODES_POLICY)
    third = replace(NODES["B"], name="C", address=A("198.51.100.3"), tunnel=None)

    def reached(at: Snapshot, address: IPv4Address) -> bool:
        return evaluate(world_of(at), Packet(WEB.address, address, "tcp", 22)).allowed

    assert reached(snapshot, A("198.51.100.2")) and not reached(snapshot, A("198.51.100.3"))
    recompiling = Recompiling()
    for nodes in (NODES, {**NODES, "C": third}, {**NODES, "C": replace(third, meta={"rack": "one"})}, dict(NODES)):
        now = replace(snapshot, nodes=nodes)
        found = recompiling(now)
        assert found == compile_node(world_of(now), "A")
        assert recompiling(replace(now, nodes=dict(nodes))) is found, "nodes that are the same cost nothing"
        assert reached(now, A("198.51.100.3")) == (nodes.get("C", third).meta != {})
        assert Walk(plan_node(now, Local()).values()).passes(Packet(WEB.address, A("198.51.100.3"))) == reached(now, A("198.51.100.3"))


def test_nodes_are_read_in_egress_alone() -> None:
    (policy,) = read_policies(NODES_POLICY).policies
    assert policy.egress is not None and len(policy.egress[0].nodes) == 2 and read_policies(policy.document).policies == (policy,)
    with pytest.raises(ConfigError, match="ingress"):
        read_policies(NODES_POLICY.replace("egress:", "ingress:").replace("to:", "from:"))
