# SPDX-License-Identifier: Apache-2.0
"""Addresses that are kept: excluded, reserved for a name, lent to a node that does not hold their block, or released a moment ago."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.consulapi import Cuttable

import plait.agent.assigned
import plait.agent.view
from plait.agent.keys import alive_key, assigned_key
from plait.agent.removal import forget_node
from plait.agent.reports import strays
from plait.model.addr import parse_range
from plait.model.cluster import Assigned, Block, Endpoint, Network, Node, Snapshot
from plait.model.errors import ConfigError, Conflict, NotFound, PoolExhausted, StoreUnavailable
from plait.model.objects import NFT_FAST_FAMILY, NftSet, Route
from plait.plan import Local, plan_node
from plait.runtimes.api import NetworkRequest
from plait.store.api import Compare, Delete, Item, Put, Store, TxnResult
from plait.store.codec import decode, encode

A = IPv4Address
WIDE = IPv4Network("10.40.0.0/16")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plait.agent.assigned, "GRANT_S", 1.0)
    monkeypatch.setattr(plait.agent.view, "_CATCH_UP_S", 0.5)


@pytest.fixture
async def store() -> AsyncIterator[Cuttable]:
    store = Cuttable()
    yield store
    await store.close()


async def _mesh(*made: FakeNode, subnet: IPv4Network = WIDE, exclude: tuple[str, ...] = ()) -> None:
    """A network that all of them know, and all of them alive."""
    await made[0].ops.ensure_network(NetworkRequest("mesh", subnet, excluded=tuple(map(parse_range, exclude))))
    await made[0].store.txn([], [Put(alive_key(node.name), b"1") for node in made])
    for node in made:
        await node.until(lambda node=node: "mesh" in node.view.snapshot.networks and len(node.view.snapshot.alive) == len(made))
        await node.addresses.maintain()


async def _reserve(node: FakeNode, name: str, address: str, *others: FakeNode) -> None:
    await node.addresses.assigned.reserve(node.view.snapshot.networks["mesh"], name, A(address))
    for other in others:
        await other.until(lambda other=other: ("mesh", A(address)) in other.view.snapshot.assigned)


async def _deafen(node: FakeNode) -> None:
    """It hears no more of the store."""
    node._task.cancel()
    await asyncio.gather(node._task, return_exceptions=True)


async def _record(store: Store, address: str) -> Assigned | None:
    item = await store.get(assigned_key("mesh", A(address)))
    return decode(Assigned, item.value, item.key) if item is not None else None


async def test_what_is_excluded_is_given_to_nobody_asked_for_or_not(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _mesh(a, b, subnet=IPv4Network("10.40.0.0/28"), exclude=("10.40.0.4", "10.40.0.8-10.40.0.10", "10.40.0.12/31"))
        with pytest.raises(Conflict, match=r"10\.40\.0\.9 of network 'mesh' is excluded"):
            await b.attach("asked", "mesh", "10.40.0.9")
        got = {await a.attach(f"c{n}", "mesh") for n in range(7)}
        assert got == {A(f"10.40.0.{n}") for n in (2, 3, 5, 6, 7, 11, 14)}
        with pytest.raises(PoolExhausted, match="7 usable"):
            await a.attach("more", "mesh")


async def test_a_second_request_with_other_exclusions_is_refused(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await _mesh(a, exclude=("10.40.0.4",))
        assert (await a.ops.ensure_network(NetworkRequest("mesh"))).excluded == (parse_range("10.40.0.4"),)
        with pytest.raises(Conflict, match=r"exclusions 10\.40\.0\.4, not 10\.40\.0\.5"):
            await a.ops.ensure_network(NetworkRequest("mesh", excluded=(parse_range("10.40.0.5"),)))


@pytest.mark.parametrize(("exclude", "words"), [("10.41.0.1", "no part of the subnet"), ("10.40.0.0/16", "leaves no address")])
async def test_impossible_exclusions_are_refused(store: Cuttable, tmp_path: Path, exclude: str, words: str) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        with pytest.raises(ConfigError, match=words):
            await _mesh(a, exclude=(exclude,))


async def test_a_reserved_address_is_its_names_on_every_node_and_nobody_elses(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B", "C") as (a, b, c):
        await _mesh(a, b, c, subnet=IPv4Network("10.40.0.0/26"))
        assert await a.attach("first", "mesh") == A("10.40.0.2")
        await _reserve(c, "db", "10.40.0.3", a, b)
        assert await a.attach("second", "mesh") not in (A("10.40.0.2"), A("10.40.0.3"))
        with pytest.raises(Conflict, match=r"reserved for 'db' \(`plait ipam unreserve mesh db`"):
            await a.attach("third", "mesh", "10.40.0.3")
        assert await b.attach("db", "mesh") == A("10.40.0.3"), "although its block is A's"
        await b.publisher.publish()
        assert not strays(b.view.snapshot)
        await c.until(lambda: "B.db" in c.view.snapshot.endpoints)
        (route,) = [o for o in plan_node(c.view.snapshot, Local()).values() if isinstance(o, Route) and o.dst == IPv4Network("10.40.0.3")]
        assert route.via == b.addresses.tunnel_address()
        with pytest.raises(Conflict, match=r"in use on (another node|node B)"):
            await a.attach("db", "mesh")


async def test_its_neighbours_on_the_same_host_reach_it_from_its_first_moment(store: Cuttable, tmp_path: Path) -> None:
    """Their fast path leads to whole blocks of others: it must make an exception before the container runs."""
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        b.fast_path = True
        await _mesh(a, b, subnet=IPv4Network("10.40.0.0/26"))
        await a.attach("first", "mesh")
        for node in (a, b):
            await node.publisher.publish()
        await _reserve(a, "db", "10.40.0.3", b)
        await b.until(lambda: "A" in b.view.snapshot.nodes)
        await b.converge()
        assert "10.40.0.0" in _leads_to(b)
        assert await b.attach("db", "mesh") == A("10.40.0.3")
        assert "10.40.0.0" not in _leads_to(b)


def _leads_to(node: FakeNode) -> set[str]:
    found = node.kernel.objects[NftSet("next", "", frozenset(), kind="map", family=NFT_FAST_FAMILY).key]
    assert isinstance(found, NftSet)
    return {hop.partition(" : ")[0] for hop in found.elements}


async def test_a_reserved_address_follows_its_container(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _mesh(a, b)
        await _reserve(a, "db", "10.40.0.3", b)
        for node, other in ((a, b), (b, a), (a, b)):
            assert await node.attach("db", "mesh") == A("10.40.0.3")
            await node.publisher.publish()
            await node.detach("db")
            await node.publisher.publish()
            await node.addresses.maintain()
            await other.until(lambda other=other: other.view.snapshot.assigned["mesh", A("10.40.0.3")].node == "")
            await other.until(lambda other=other: all(e.name != "db" for e in other.view.snapshot.endpoints.values()))


async def test_one_in_use_is_reserved_only_when_it_is_free(store: Cuttable, tmp_path: Path) -> None:
    """A gives the address in the moment in which C reserves it, before C can see that."""
    async with nodes(store, tmp_path, "A", "B", "C") as (a, b, c):
        await _mesh(a, b, c)
        assert await a.attach("early", "mesh") == A("10.40.0.2")  # not published: nobody else can know
        await _reserve(c, "db", "10.40.0.2", a, b)
        with pytest.raises(Conflict, match=r"lies in block 10\.40\.0\.0/24 of node A, which has it in use"):
            await b.attach("db", "mesh")
        record = await _record(store, "10.40.0.2")
        assert record is not None and record.node == "" and record.cleared == ""
        await a.detach("early")
        await a.addresses.assigned.tend()
        assert await b.attach("db", "mesh") == A("10.40.0.2")


async def test_a_promise_outlives_the_memory_of_the_replica(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _mesh(a, b)
        await _reserve(b, "db", "10.40.0.2", a)
        assert await b.attach("db", "mesh") == A("10.40.0.2")
        await a.stop()
        await a.start()
        await _deafen(a)
        a.view._forget(assigned_key("mesh", A("10.40.0.2")))
        assert await a.attach("web", "mesh") == A("10.40.0.3")
        with pytest.raises(Conflict, match="in use on another node"):
            await a.attach("asked", "mesh", "10.40.0.2")


async def test_who_leases_the_block_later_asks_what_is_lent_of_it(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B", "C") as (a, b, c):
        await _mesh(a, b, c, subnet=IPv4Network("10.40.0.0/26"))
        await _deafen(c)  # for it every block is free
        await a.attach("web", "mesh", "10.40.0.3")
        await _reserve(a, "db", "10.40.0.2", b)
        assert await b.attach("db", "mesh") == A("10.40.0.2")
        await a.detach("web")
        await a.addresses.maintain()
        assert await c.attach("first", "mesh") == A("10.40.0.3")
        assert await c.attach("second", "mesh") not in IPv4Network("10.40.0.0/30")


async def test_of_two_that_take_a_reserved_address_at_once_one_gets_it(
    store: Cuttable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(store, tmp_path, "A", "B", "C") as (a, b, c):
        await _mesh(a, b, c)
        await _reserve(a, "db", "10.40.0.3", b, c)
        await b.until(lambda: b.view.snapshot.assigned["mesh", A("10.40.0.3")].cleared == "A")
        await c.until(lambda: c.view.snapshot.assigned["mesh", A("10.40.0.3")].cleared == "A")
        txn = store.txn

        async def slow(compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
            await asyncio.sleep(0.02)  # both have decided before either is heard
            return await txn(compares, ops)

        monkeypatch.setattr(store, "txn", slow)
        results = await asyncio.gather(b.attach("db", "mesh"), c.attach("db", "mesh"), return_exceptions=True)
        assert sorted(isinstance(result, Conflict) for result in results) == [False, True], results


async def test_a_silent_holder_lets_nobody_have_its_addresses(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _mesh(a, b)
        await a.stop()
        await _reserve(b, "db", "10.40.0.3")
        await store.txn([], [Delete(alive_key("A"))])
        await b.until(lambda: "A" not in b.view.snapshot.alive)
        with pytest.raises(Conflict, match=r"of node A, which gives no sign of life \(`plait node rm A`"):
            await b.attach("db", "mesh")
        await a.start()


@pytest.mark.parametrize(
    ("name", "address", "words"),
    [
        ("db", "10.41.0.2", "no part of"),
        ("db", "10.40.0.1", "network's own"),
        ("db", "10.40.0.0", "network's own"),
        ("db", "10.40.255.255", "network's own"),
        ("db", "10.40.0.9", "excluded"),
        ("db", "10.40.0.7", "reserved for 'other'"),
        ("other", "10.40.0.8", r"'other' has 10\.40\.0\.7"),
        ("db", "10.40.0.2", "web on node A uses it"),
    ],
)
async def test_impossible_reservations_are_refused(store: Cuttable, tmp_path: Path, name: str, address: str, words: str) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await _mesh(a, exclude=("10.40.0.9",))
        await a.attach("web", "mesh")
        await _reserve(a, "other", "10.40.0.7")
        await _reserve(a, "other", "10.40.0.7")  # again: no matter
        with pytest.raises(Conflict, match=words):
            await _reserve(a, name, address)


async def test_a_reservation_does_not_take_what_another_node_borrows_at_that_moment(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _mesh(a, b)
        await _deafen(a)
        lent = Assigned("mesh", A("10.40.0.9"), node="Z")
        await store.txn([], [Put(assigned_key("mesh", A("10.40.0.9")), encode(lent))])
        with pytest.raises(StoreUnavailable, match="did not reach"):
            await _reserve(a, "db", "10.40.0.9")
        assert await _record(store, "10.40.0.9") == lent


def test_of_two_with_one_reserved_address_the_node_that_it_is_given_to_is_reached() -> None:
    names = {"A": 1, "B": 2, "C": 3}
    known = {n: Node(n, n, A(f"198.18.0.{i}"), vtep_mac="02:00:00:00:00:01", tunnel=A(f"10.40.{i}.0")) for n, i in names.items()}
    mesh = Network("mesh", WIDE, A("10.40.0.1"), 24)
    block = Block("mesh", IPv4Network("10.40.3.0/24"), "C")
    both = {n: Endpoint(n, "mesh", n, A("10.40.3.9"), "02:00:00:00:00:02", f"pl-e{n}", "sandbox") for n in "AB"}
    for owner in "AB":
        given = {("mesh", A("10.40.3.9")): Assigned("mesh", A("10.40.3.9"), "db", owner, "C")}
        snapshot = Snapshot("C", nodes=known, networks={"mesh": mesh}, blocks={("mesh", block.cidr): block}, endpoints=both, assigned=given)
        routes = [o for o in plan_node(snapshot, Local()).values() if isinstance(o, Route) and o.dst == IPv4Network("10.40.3.9")]
        assert [route.via for route in routes] == [known[owner].tunnel]


async def test_two_nodes_cannot_give_a_name_two_addresses_nor_an_address_two_names(
    store: Cuttable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _mesh(a, b)
        get = store.get

        async def slow(key: str) -> Item | None:
            found = await get(key)
            await asyncio.sleep(0.02)  # both have read before either writes
            return found

        monkeypatch.setattr(store, "get", slow)
        for tries in (
            [_reserve(a, "db", "10.40.0.3"), _reserve(b, "db", "10.40.0.4")],
            [_reserve(a, "x", "10.40.0.5"), _reserve(b, "y", "10.40.0.5")],
        ):
            results = await asyncio.gather(*tries, return_exceptions=True)
            assert sorted(isinstance(result, Conflict) for result in results) == [False, True]
        assert len(a.view.snapshot.assigned) == 2


async def test_a_reservation_ends_when_it_is_told_to(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await _mesh(a)
        await _reserve(a, "db", "10.40.0.2")
        assert await a.attach("db", "mesh") == A("10.40.0.2")
        await a.addresses.assigned.unreserve("mesh", "db")
        with pytest.raises(Conflict, match="in use by 'db'"):
            await a.attach("web", "mesh", "10.40.0.2")
        await a.detach("db")
        await a.addresses.maintain()
        assert await _record(store, "10.40.0.2") is None
        assert await a.attach("web", "mesh", "10.40.0.2") == A("10.40.0.2")
        with pytest.raises(NotFound, match="nothing of network 'mesh' is reserved for 'db'"):
            await a.addresses.assigned.unreserve("mesh", "db")


async def test_without_the_store_a_container_with_a_reserved_address_starts_again(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await _mesh(a)
        await _reserve(a, "db", "10.40.0.2")
        await a.attach("db", "mesh")
        store.away = True
        await a.detach("db")
        await a.addresses.maintain()
        assert await a.attach("db", "mesh") == A("10.40.0.2")
        with pytest.raises(StoreUnavailable):
            await _reserve(a, "web", "10.40.0.3")
        store.away = False


async def test_a_node_that_goes_leaves_its_reserved_addresses_free(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _mesh(a, b)
        await _reserve(a, "db", "10.40.0.3", b)
        assert await b.attach("db", "mesh") == A("10.40.0.3")
        await b.publisher.publish()
        await a.until(lambda: "B" in a.view.snapshot.nodes)
        await store.txn([], [Delete(alive_key("B"))])
        await a.until(lambda: "B" not in a.view.snapshot.alive)
        await forget_node(a.view, store, "B")
        record = await _record(store, "10.40.0.3")
        assert record is not None and record.node == "" and record.name == "db"


async def test_a_removed_network_takes_its_reservations_along(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await _mesh(a)
        await _reserve(a, "db", "10.40.0.3")
        await a.ops.remove_network("mesh")
        await a.until(lambda: not a.view.snapshot.assigned)
        await a.addresses.maintain()
        assert not a.addresses.assigned._promised and not a.journal.load("promise")


async def test_a_wrong_guess_of_the_engine_is_refused_when_the_container_is_known(store: Cuttable, tmp_path: Path) -> None:
    """Docker asks before it says for whom."""
    async with nodes(store, tmp_path, "A") as (a,):
        await _mesh(a)
        await _reserve(a, "db", "10.40.0.2")
        got = await a.ops.reserve("mesh", "docker:02:00:00:00:00:01", None, "db")
        assert got.ip == A("10.40.0.2")
        with pytest.raises(Conflict, match="reserved for 'db'"):
            await a.attach("web", "mesh", "10.40.0.2")
        assert await a.attach("db", "mesh", "10.40.0.2") == A("10.40.0.2")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_released_address_is_kept_from_other_names_for_a_while(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        clock = Clock()
        for node in (a, b):
            await node.stop()
            node.reuse_after_s, node.clock = 30.0, clock
            await node.start()
        await _mesh(a, b, subnet=IPv4Network("10.40.0.0/28"))
        for n in range(1, 3):
            await a.attach(f"c{n}", "mesh")
        await a.detach("c1")
        await a.addresses.maintain()
        assert await a.attach("other", "mesh") != A("10.40.0.2")
        assert await a.attach("c1", "mesh") == A("10.40.0.2"), "its own name gets it at once"
        await a.detach("c1")
        clock.now += 31
        assert await a.attach("fresh", "mesh") == A("10.40.0.5")
        assert await a.attach("late", "mesh") == A("10.40.0.6")


async def test_a_block_is_not_given_back_while_its_last_address_cools_unless_others_need_it(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        clock = Clock()
        await a.stop()
        a.reuse_after_s, a.clock = 30.0, clock
        await a.start()
        await _mesh(a, b, subnet=IPv4Network("10.40.0.0/28"))
        await a.attach("web", "mesh")
        await a.detach("web")
        await a.addresses.maintain()
        assert len([b for b in a.view.snapshot.blocks.values() if b.network == "mesh"]) == 1
        await b.until(lambda: len([b_ for b_ in b.view.snapshot.blocks.values() if b_.network == "mesh"]) == 1)
        for n in range(11):
            assert await b.attach(f"c{n}", "mesh") not in IPv4Network("10.40.0.0/30")
        await a.until(lambda: len([x for x in a.view.snapshot.blocks.values() if x.network == "mesh"]) == 4)
        await a.addresses.maintain()
        await b.until(lambda: len([x for x in b.view.snapshot.blocks.values() if x.network == "mesh"]) == 3)
        assert await b.attach("more", "mesh") in IPv4Network("10.40.0.0/30")


async def test_a_network_that_is_made_again_keeps_nothing_of_the_one_before(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.stop()
        a.reuse_after_s, a.clock = 30.0, Clock()
        await a.start()
        for name in ("db", "other"):
            await _mesh(a, subnet=IPv4Network("10.40.0.0/28"))
            assert await a.attach(name, "mesh") == A("10.40.0.2")
            await a.detach(name)
            await a.stop()
            await a.start()
            assert await a.attach("another", "mesh") == A("10.40.0.3"), "kept over a restart"
            await a.detach("another")
            await a.ops.remove_network("mesh")
            await a.until(lambda: "mesh" not in a.view.snapshot.networks)
            await a.addresses.maintain()


async def test_an_exhausted_pool_gives_what_cools_and_says_so(store: Cuttable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.stop()
        a.reuse_after_s, a.clock = 30.0, Clock()
        await a.start()
        await _mesh(a, subnet=IPv4Network("10.40.0.0/29"))
        for n in range(5):
            await a.attach(f"c{n}", "mesh")
        await a.detach("c3")
        assert await a.attach("needy", "mesh") == A("10.40.0.5")
        assert "address_reused_early" in [record.message for record in caplog.records]
        with pytest.raises(PoolExhausted):
            await a.attach("more", "mesh")
