# SPDX-License-Identifier: Apache-2.0
"""Egress rules: what may be said, by which gateway a host sends, what its kernel is to have, what gets into the store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.consulapi import Cuttable

from plait.agent.egress import Egresses
from plait.agent.kernelwork import PassReport
from plait.agent.keys import alive_key
from plait.model.cluster import Block, Endpoint, Network, Node, Reach, Snapshot
from plait.model.egress import EGRESS_TABLES, Egress, EgressGateway, parse_gateways
from plait.model.errors import ConfigError, Conflict, KernelError, NotFound, NotSupported
from plait.model.objects import Addr, NftSet, Plan, Route
from plait.plan import Local, plan_node
from plait.plan.egress import chosen, seen_as, sources, ungated
from plait.runtimes.api import AttachRequest, NetworkRequest
from plait.store.api import Put

A, N = IPv4Address, IPv4Network
ZONE = Network("zone", N("10.40.0.0/16"), A("10.40.0.1"), 24)
G1, G2 = EgressGateway("G1", A("192.0.2.1")), EgressGateway("G2")
OUT = Egress("out", "zone", (G1, G2))


def node(name: str, number: int) -> Node:
    return Node(name, name, A(f"198.18.0.{number}"), vtep_mac=f"02:00:00:00:00:0{number}", tunnel=A(f"10.40.{number}.0"))


def endpoint(name: str, on: str, address: str, **labels: str) -> Endpoint:
    return Endpoint(name, "zone", on, A(address), "02:11:22:33:44:55", f"pl-e{name}", "sandbox", name=name, labels=labels)


NODES = {name: node(name, number) for number, name in enumerate(("A", "G1", "G2"), 1)}
SNAPSHOT = Snapshot(
    "A",
    1,
    NODES,
    frozenset(NODES),
    {"zone": ZONE},
    {(b.network, b.cidr): b for b in (Block("zone", N(f"10.40.{n}.0/24"), name) for n, name in enumerate(NODES, 1))},
    {e.id: e for e in (endpoint("web", "A", "10.40.1.2", app="web"), endpoint("far", "G1", "10.40.2.2", app="web", tier="x"))},
    egress={"out": OUT},
)


# --- what may be said


def test_gateways_as_they_are_written() -> None:
    assert parse_gateways(("G1=192.0.2.1", "G2")) == (G1, G2) and list(map(str, (G1, G2))) == ["G1=192.0.2.1", "G2"]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ((), "names no gateway"),
        (("G1", "G1=192.0.2.1"), "is named twice"),
        (("G1=x",), "names what is no IPv4 address"),
        (("G1=",), "IPv4"),
    ],
)
def test_gateways_that_cannot_be_meant(texts: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_gateways(texts)


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (None, "no such network"),
        (replace(ZONE, internal=True), "internal"),
        (replace(ZONE, backend="wireguard"), "encrypted"),
        (replace(ZONE, backend="direct"), "backend direct has no routed tunnel"),
        (replace(ZONE, backend="bridge"), "no routed tunnel"),
        (replace(ZONE, options={"layer2": "true"}), "no routed tunnel"),
        (replace(ZONE, backend="macvlan", options={"parent": "eth0"}), "no routed tunnel"),
    ],
)
def test_networks_that_cannot_have_a_gateway(network: Network | None, says: str) -> None:
    assert says in ungated(network) and not ungated(ZONE) and not ungated(replace(ZONE, backend="hybrid"))


# --- by which gateway


def test_the_first_that_lives_and_is_reached_and_a_gateway_by_itself() -> None:
    def by(**changes: object) -> str:
        return chosen(replace(SNAPSHOT, **changes), OUT, ZONE)  # type: ignore[arg-type]

    assert by() == "G1"
    assert by(alive=frozenset({"A", "G2"})) == "G2"
    assert by(reach={"A": Reach("A", broken={"pl-x1": ("G1",)})}) == "G2", "as this host has probed"
    assert by(reach={"G2": Reach("G2", broken={"pl-x1": ("G1",)})}) == "G1", "not as others have"
    assert by(reach={"A": Reach("A", broken={"pl-x1": ("G1", "G2")})}) == by(alive=frozenset("A")) == ""
    assert by(nodes={"A": NODES["A"]}) == ""
    assert by(me="G2") == "G2" and by(me="G2", alive=frozenset()) == "G2"
    assert seen_as(NODES["G1"], OUT) == "192.0.2.1" and seen_as(NODES["G2"], OUT) == "198.18.0.3"


def test_whom_a_selector_finds() -> None:
    assert sources(SNAPSHOT, OUT) == (A("10.40.1.2"), A("10.40.2.2"))
    assert sources(SNAPSHOT, replace(OUT, selector={"app": "web", "tier": "x"})) == (A("10.40.2.2"),)
    assert sources(SNAPSHOT, replace(OUT, selector={"app": "db"})) == sources(SNAPSHOT, replace(OUT, network="other")) == ()


# --- what the kernel is to have


def elements(plan: Plan, name: str, kind: str = "map") -> frozenset[str]:
    found = plan[("nft", kind, name)]
    assert isinstance(found, NftSet)
    return found.elements


def way(plan: Plan, egress: Egress) -> Route:
    found = plan[("route", "0.0.0.0/0", "0", str(egress.number))]
    assert isinstance(found, Route)
    return found


def test_a_containers_host_marks_and_leads_to_the_gateway_or_nowhere() -> None:
    plan = plan_node(SNAPSHOT, Local())
    assert OUT.number in EGRESS_TABLES
    assert elements(plan, "egress_nets") == {f"10.40.0.0/16 : 0x{OUT.number:08x}"} and elements(plan, "egress_away", "set") == {
        f"0x{OUT.number:08x}"
    }
    assert (way(plan, OUT).via, way(plan, OUT).dev) == (A("10.40.2.0"), "pl-x1")
    assert not elements(plan, "egress_nets_seen")
    nowhere = plan_node(replace(SNAPSHOT, alive=frozenset("A")), Local())
    assert way(nowhere, OUT).kind == "unreachable" and elements(nowhere, "egress_nets") == elements(plan, "egress_nets")


def test_a_gateway_marks_nothing_and_gives_the_address() -> None:
    plan = plan_node(replace(SNAPSHOT, me="G2"), Local())
    assert elements(plan, "egress_nets_seen") == {"10.40.0.0/16 : 198.18.0.3"}
    assert not elements(plan, "egress_nets") and not [key for key in plan if key[0] == "rule"]


def test_one_with_a_selector_goes_before_and_of_several_the_first_by_name() -> None:
    some = replace(OUT, name="some", selector={"app": "web"})
    also = replace(some, name="also", gateways=(G2,))
    plan = plan_node(replace(SNAPSHOT, egress={e.name: e for e in (OUT, some, also)}), Local())
    assert elements(plan, "egress_hosts") == {f"10.40.{n}.2 : 0x{also.number:08x}" for n in (1, 2)}
    chain = plan[("nft", "chain", "egress")].rules  # type: ignore[union-attr]
    assert chain[0].endswith("@egress_nets") and chain[1].endswith("@egress_hosts"), "the later mark counts"


def test_without_rules_there_is_nothing_of_it_nor_with_one_that_is_void() -> None:
    bare = plan_node(replace(SNAPSHOT, egress={}), Local())
    assert not [key for key in bare if "egress" in " ".join(key)]
    assert plan_node(replace(SNAPSHOT, egress={"out": replace(OUT, network="gone")}), Local()) == bare


# --- the agent's part


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[list[FakeNode]]:
    store = Cuttable()
    async with nodes(store, tmp_path, "A", "B") as made:
        await made[0].ops.ensure_network(NetworkRequest("zone", ZONE.subnet))
        await store.txn([], [Put(alive_key(one.name), b"1") for one in made])
        for one in made:
            await one.addresses.maintain()
            await one.publisher.publish()
            await one.until(lambda one=one: "zone" in one.view.snapshot.networks and len(one.view.snapshot.alive) == 2)
        yield made
    await store.close()


def egresses_of(one: FakeNode, *addresses: str) -> Egresses:
    found = [Addr("eth0", IPv4Interface(f"{address}/24")) for address in addresses]
    return Egresses(one.view, one.store, one.health, one.full_pass, lambda: found)


BY_B = Egress("out", "zone", (EgressGateway("B", A("192.0.2.7")),))


async def test_a_rule_is_in_force_when_it_is_answered_and_is_changed_and_removed(two: list[FakeNode]) -> None:
    a, b = two
    shown = await egresses_of(a).put(BY_B)
    assert (shown["by"], shown["address"], shown["gateways"], shown["containers"]) == ("B", "192.0.2.7", ["B=192.0.2.7"], 0)
    assert ("nft", "map", "egress_nets") in a.kernel.objects
    await b.until(lambda: "out" in b.view.snapshot.egress)
    assert [row["by"] for row in egresses_of(b).rows()] == ["B"]
    assert (await egresses_of(b).put(replace(BY_B, gateways=(EgressGateway("A"),))))["address"] == "198.18.0.1"
    await a.until(lambda: a.view.snapshot.egress["out"].gateways == (EgressGateway("A"),))
    await egresses_of(a).remove("out")
    assert ("nft", "map", "egress_nets") not in a.kernel.objects and egresses_of(a).rows() == []
    with pytest.raises(NotFound, match="no egress rule 'out'"):
        await egresses_of(a).remove("out")


async def test_a_new_container_of_a_selector_is_attached_with_its_mark(two: list[FakeNode]) -> None:
    await egresses_of(two[0]).put(replace(BY_B, selector={"app": "web"}))
    attached = await two[0].ops.attach(AttachRequest("A.web", "zone", "sandbox", "web", "web", labels={"app": "web"}))
    found = two[0].kernel.objects["nft", "map", "egress_hosts"]
    assert isinstance(found, NftSet) and {e.partition(" ")[0] for e in found.elements} == {str(attached.address)}


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (replace(BY_B, name="Out"), ConfigError, "is no name"),
        (replace(BY_B, network="none"), NotFound, "no network 'none'"),
        (replace(BY_B, gateways=(EgressGateway("X"),)), NotFound, "no node 'X'"),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(two: list[FakeNode], wrong: Egress, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        await egresses_of(two[0]).put(wrong)
    assert not (await two[0].store.list("egress/")).items


async def test_names_of_one_number_are_refused(two: list[FakeNode]) -> None:
    numbers: dict[int, str] = {}
    names = (f"r{n}" for n in range(1000))
    first, second = next((numbers[n], name) for name in names if numbers.setdefault(n := replace(OUT, name=name).number, name) != name)
    await egresses_of(two[0]).put(replace(BY_B, name=first))
    with pytest.raises(Conflict, match="the same number of table"):
        await egresses_of(two[0]).put(replace(BY_B, name=second))


async def test_a_node_without_an_address_of_ipv4_must_be_given_one(two: list[FakeNode]) -> None:
    from ipaddress import IPv6Address

    two[0].view.put(replace(two[0].view.snapshot.nodes["A"], address=IPv6Address("2001:db8::1")))
    with pytest.raises(NotSupported, match="name one, A=ADDRESS"):
        await egresses_of(two[0]).put(replace(BY_B, gateways=(EgressGateway("A"),)))


async def test_what_the_kernel_refuses_is_told(two: list[FakeNode]) -> None:
    two[0].next_report = PassReport(0, {("nft",): KernelError("nft", "chain egress", 22)})
    with pytest.raises(KernelError, match="chain egress"):
        await egresses_of(two[0]).put(BY_B)


async def test_conditions(two: list[FakeNode]) -> None:
    def texts(one: FakeNode, code: str) -> dict[str, str]:
        return {active.subject: active.text for active in one.health.active() if active.condition.code == code}

    a, b = two
    await egresses_of(a).put(BY_B)
    await b.until(lambda: "out" in b.view.snapshot.egress)
    await egresses_of(b).look()
    assert "192.0.2.7, which no link of this host has" in texts(b, "egress-address")["out"]
    await egresses_of(b, "192.0.2.7").look()
    await egresses_of(a).look()
    assert not texts(b, "egress-address") and not texts(a, "egress-address") and not texts(a, "egress-lost")
    a.view.put(Reach("A", broken={"pl-x1": ("B",)}))
    await egresses_of(a).look()
    assert texts(a, "egress-lost") == {"out": "containers of rule out on network zone do not get out: neither B is reached"}
