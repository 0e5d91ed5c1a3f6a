# SPDX-License-Identifier: Apache-2.0
"""What `plait ipam` shows, what its check finds, and what it reclaims: never anything that lives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.consulapi import Cuttable

import plait.agent.ipamcare
from plait.agent.ipamcare import IpamCare
from plait.agent.ipamview import ipam_view
from plait.agent.keys import alive_key, assigned_key, record_key
from plait.ipam import Reservation
from plait.ipam.check import Finding, Local, findings, lasting
from plait.model.addr import parse_range
from plait.model.cluster import Assigned, Block, Container, Endpoint, Network, Node, Snapshot
from plait.plan import Local as PlanLocal
from plait.plan import plan_node
from plait.runtimes.api import NetworkRequest
from plait.store.api import Put
from plait.store.codec import encode

A, N = IPv4Address, IPv4Network
MESH = Network("mesh", N("10.40.0.0/24"), A("10.40.0.1"), 28, excluded=(parse_range("10.40.0.9"),))
KNOWN = {name: Node(name, name, A("198.18.0.1")) for name in "AB"}
BLOCKS = {("mesh", cidr): Block("mesh", cidr, node) for cidr, node in ((N("10.40.0.0/28"), "A"), (N("10.40.0.16/28"), "B"))}


def endpoint(id_: str, address: str, node: str = "A", name: str = "") -> Endpoint:
    return Endpoint(id_, "mesh", node, A(address), "02:00:00:00:00:01", f"pl-e{id_}", "docker", f"c-{id_}", name or id_)


def snapshot(*endpoints: Endpoint, **more: object) -> Snapshot:
    base = Snapshot("A", nodes=KNOWN, networks={"mesh": MESH}, blocks=BLOCKS, endpoints={e.id: e for e in endpoints})
    return replace(base, **more)  # type: ignore[arg-type]


def held(*endpoints: Endpoint) -> Local:
    return Local(tuple(Reservation("mesh", e.address, e.id, e.name) for e in endpoints))


WEB = endpoint("web", "10.40.0.2")
GOOD = snapshot(WEB, endpoint("db", "10.40.0.18", "B"))


def test_nothing_is_found_where_all_agree() -> None:
    assert findings(GOOD, held(WEB)) == []
    lent = endpoint("lent", "10.40.0.19")
    given = {("mesh", lent.address): Assigned("mesh", lent.address, "lent", "A", "B")}
    assert findings(snapshot(WEB, lent, assigned=given), held(WEB, lent)) == []


CONTAINER = Container("c-web", "web", "A", "docker", addresses={"mesh": A("10.40.0.2")})


@pytest.mark.parametrize(
    ("state", "local", "kind", "words"),
    [
        (snapshot(WEB, endpoint("x", "10.40.0.2", "B")), held(WEB), "twice", "web on node A has the same address"),
        (snapshot(WEB, endpoint("x", "10.40.0.5", "B")), held(WEB), "outside", "node B holds no block"),
        (snapshot(WEB, endpoint("x", "10.40.0.31", "Z")), held(WEB), "no-node", "no node Z"),
        (snapshot(WEB, replace(WEB, id="x", network="gone", node="B")), held(WEB), "no-network", "no network gone"),
        (snapshot(endpoint("x", "10.40.0.9")), held(endpoint("x", "10.40.0.9")), "kept", "keeps this address"),
        (
            snapshot(WEB, assigned={("mesh", WEB.address): Assigned("mesh", WEB.address, "db")}),
            held(WEB),
            "reserved",
            "reserved for db",
        ),
        (snapshot(WEB), Local(), "unheld", "does not hold the address"),
        (snapshot(WEB), held(WEB, endpoint("old", "10.40.0.3")), "unused", "held for old, but nothing"),
        (
            snapshot(WEB),
            replace(held(WEB), missing={"web": "the kernel lacks its EndpointLink pl-eweb"}),
            "kernel",
            "lacks its EndpointLink",
        ),
        (
            snapshot(WEB, blocks=BLOCKS | {("gone", N("10.9.0.0/28")): Block("gone", N("10.9.0.0/28"), "A")}),
            held(WEB),
            "no-network",
            "block's",
        ),
        (
            snapshot(WEB, blocks=BLOCKS | {("mesh", N("10.40.0.32/29")): Block("mesh", N("10.40.0.32/29"), "A")}),
            held(WEB),
            "no-block",
            "no such",
        ),
        (
            snapshot(WEB, blocks=BLOCKS | {("mesh", N("10.40.0.32/28")): Block("mesh", N("10.40.0.32/28"), "Z")}),
            held(WEB),
            "no-node",
            "holds the",
        ),
        (
            snapshot(WEB, assigned={("mesh", A("10.40.0.77")): Assigned("mesh", A("10.40.0.77"), node="Z")}),
            held(WEB),
            "no-node",
            "given to",
        ),
        (
            snapshot(WEB, containers={("A", "c-web"): replace(CONTAINER, addresses={"mesh": A("10.40.0.4")})}),
            held(WEB),
            "engine",
            "endpoint has",
        ),
        (snapshot(WEB, containers={("B", "c-web"): replace(CONTAINER, node="B")}), held(WEB), "engine", "nothing is attached"),
    ],
)
def test_each_difference_is_found_and_named(state: Snapshot, local: Local, kind: str, words: str) -> None:
    found = [(f.kind, f.text) for f in findings(state, local)]
    assert any(k == kind and words in text for k, text in found), found


def test_what_is_gone_a_moment_later_is_no_difference() -> None:
    one, two = (Finding(k, "A", "mesh", "10.40.0.2", "x") for k in ("unused", "kernel"))
    assert lasting([one], [two, one]) == [one]


def test_the_view_says_who_has_what_and_why() -> None:
    lent = endpoint("lent", "10.40.0.19")
    assigned = {
        ("mesh", lent.address): Assigned("mesh", lent.address, "lent", "A", "B"),
        ("mesh", A("10.40.0.77")): Assigned("mesh", A("10.40.0.77"), "later"),
    }
    bridge = Block("mesh", N("10.40.0.48/28"), "B", "bridge")
    on_bridge = Container("c9", "plain", "B", "docker", addresses={"mesh": A("10.40.0.50")}, started=9.0)
    state = snapshot(
        WEB,
        lent,
        assigned=assigned,
        blocks=BLOCKS | {("mesh", bridge.cidr): bridge},
        containers={("B", "c9"): on_bridge, ("A", "c-web"): replace(CONTAINER, started=5.0)},
    )
    kept = [
        Reservation("mesh", WEB.address, "web", "web"),
        Reservation("mesh", A("10.40.0.3"), "o", "gone", live=False),
        Reservation("mesh", A("10.40.0.4"), "docker:02", "", live=True),
    ]
    view = ipam_view(state, kept)
    assert [(r["address"], r["state"], r["node"], r["name"]) for r in view["addresses"]] == [
        ("10.40.0.2", "used", "A", "web"),
        ("10.40.0.3", "remembered", "A", "gone"),
        ("10.40.0.4", "held", "A", ""),
        ("10.40.0.19", "used", "A", "lent"),
        ("10.40.0.50", "used", "B", "plain"),
        ("10.40.0.77", "reserved", "", ""),
    ]
    rows = {row["address"]: row for row in view["addresses"]}
    assert (rows["10.40.0.19"]["lent_by"], rows["10.40.0.19"]["reserved_for"]) == ("B", "lent")
    assert (rows["10.40.0.2"]["started"], rows["10.40.0.50"]["started"]) == (5.0, 9.0)
    (pool,) = view["pools"]
    assert (pool["size"], pool["used"], pool["reserved"], pool["remembered"], pool["free"]) == (252, 3, 1, 1, 252 - 5)
    assert pool["used_by"] == {"A": 2, "B": 1} and pool["excluded"] == ["10.40.0.9"]


# --- on nodes


@pytest.fixture
async def store() -> AsyncIterator[Cuttable]:
    store = Cuttable()
    yield store
    await store.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plait.agent.ipamcare, "APART_S", 0.01)


def care(node: FakeNode, exists: bool = False) -> IpamCare:
    plan = lambda: plan_node(node.view.snapshot, PlanLocal())  # noqa: E731
    return IpamCare(node.view, node.store, node.ops, node.addresses, node.work, plan, lambda _: exists)


async def _ghosts(store: Cuttable, *made: FakeNode) -> set[str]:
    """Records of a node Z that nobody knows; their keys."""
    await made[0].ops.ensure_network(NetworkRequest("mesh", N("10.40.0.0/16")))
    ghost = replace(endpoint("z", "10.40.7.7", "Z"))
    records = [Block("mesh", N("10.40.7.0/24"), "Z"), ghost, Assigned("mesh", A("10.40.8.8"), node="Z")]
    named = Assigned("mesh", A("10.40.8.9"), "db", "Z")
    await store.txn([], [Put(record_key(record), encode(record)) for record in (*records, named)])
    for node in made:
        await node.until(lambda node=node: ("mesh", A("10.40.8.9")) in node.view.snapshot.assigned)
    return {record_key(record) for record in records}


async def test_what_dead_nodes_left_is_reclaimed_once_however_often_and_where(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        keys = await _ghosts(store, a, b)
        before = (await store.list("")).items
        for node in (a, b):
            rehearsed = await care(node).reclaim(apply=False)
            assert len(rehearsed) == 4 and all("node Z does not exist" in line for line in rehearsed)
        assert (await store.list("")).items == before, "a rehearsal changes nothing"
        done = await asyncio.gather(*(care(node).reclaim(apply=True) for node in (a, b, a)))
        assert sorted(line.partition(":")[0] for lines in done for line in lines) == sorted({*keys, assigned_key("mesh", A("10.40.8.9"))})
        left = {item.key for item in (await store.list("")).items}
        assert not keys & left and assigned_key("mesh", A("10.40.8.9")) in left, "the reservation stays"
        assert b.view.snapshot.assigned["mesh", A("10.40.8.9")].node == ""
        assert await care(b).reclaim(apply=True) == []


async def test_a_node_that_comes_back_meanwhile_keeps_what_it_has(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        keys = await _ghosts(store, a)
        a._task.cancel()
        await asyncio.gather(a._task, return_exceptions=True)
        await store.txn([], [Put(alive_key("Z"), b"1")])
        monkey = a.view.caught_up

        async def not_waiting(revision: int) -> None:
            del revision

        a.view.caught_up = not_waiting  # type: ignore[method-assign]
        assert await care(a).reclaim(apply=True) == []
        a.view.caught_up = monkey  # type: ignore[method-assign]
        assert keys <= {item.key for item in (await store.list("")).items}


async def test_idle_reservations_and_dead_endpoints_go_and_living_ones_stay(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.attach("lives")
        await a.attach("dead")
        await a.converge()
        await a.ops.reserve("default", "A.idle", None, "idle")
        await a.ops.reserve("default", "docker:02:00:00:00:00:09", None, "starting")
        assert await care(a).reclaim(apply=False) == ["address 10.28.0.4 of network default: held for idle, but nothing uses it"]
        await a.ops.report("sandbox", [Container("lives", "lives", "A", "sandbox")])
        assert len(await care(a).reclaim(apply=True)) == 1, "its link is there"
        dead = next(e for e in a.view.snapshot.endpoints.values() if e.name == "dead")
        del a.kernel.objects["link", dead.dev]
        assert [f.kind for f in await care(a).check()] == ["kernel", "unused"], "the second is the container that starts"
        assert await care(a).reclaim(apply=True) == ["endpoint of dead (10.28.0.3): container and network namespace are gone"]
        assert [e.name for e in a.view.snapshot.endpoints.values()] == ["lives"]
        assert not a.addresses.is_live("default", A("10.28.0.3")) and a.addresses.is_live("default", A("10.28.0.2"))


async def test_an_attach_under_way_is_not_reclaimed(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        design = a.ops._design
        reserved, go_on = asyncio.Event(), asyncio.Event()

        async def slow(*of: Any) -> Endpoint:
            endpoint = await design(*of)
            reserved.set()
            await go_on.wait()
            return endpoint

        a.ops._design = slow  # type: ignore[method-assign]
        attaching = asyncio.create_task(a.attach("web"))
        await reserved.wait()
        reclaiming = asyncio.create_task(care(a).reclaim(apply=True))
        await asyncio.sleep(0.05)
        go_on.set()
        assert await reclaiming == [] and a.addresses.is_live("default", await attaching)


async def test_a_node_exists_before_its_first_block(store: Cuttable, tmp_path: Path) -> None:
    """Else it would be reclaimed from a node that is just joining."""
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        assert await care(a).reclaim(apply=True) == await care(b).reclaim(apply=True) == []
        firsts = {key: item.create_revision for key, item in a.view.stored("").items() if key.startswith(("nodes/", "blocks/"))}
        assert firsts["nodes/B"] <= min(a.view.stored("blocks/")[record_key(x)].create_revision for x in b.addresses._own.of("default"))


async def test_the_check_of_a_node_in_order_finds_nothing(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.attach("web")
        await a.converge()
        assert await care(a).check() == []
