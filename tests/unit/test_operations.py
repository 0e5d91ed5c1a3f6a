# SPDX-License-Identifier: Apache-2.0
"""Attach, detach, addresses and publication: the agent's parts together, over the memory store and the fake kernel."""

from __future__ import annotations

import asyncio
import errno
import random
import threading
from collections.abc import AsyncIterator, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.consulapi import Cuttable

from plait.agent.journal import Journal, Write
from plait.ipam import PoolChange
from plait.kernel.api import Op, Result
from plait.model.addr import parse_range
from plait.model.cluster import PortMapping
from plait.model.errors import ConfigError, Conflict, KernelError, NotFound, NotSaved, PoolExhausted, PortInUse, StoreUnavailable
from plait.model.objects import EndpointLink, NftChain, NftSet
from plait.runtimes.api import AttachRequest, NetworkRequest

A = IPv4Address


@pytest.fixture
async def store() -> AsyncIterator[Cuttable]:
    store = Cuttable()
    yield store
    await store.close()


async def test_the_first_container_of_the_first_host_gets_10_28_0_2(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        assert await a.attach("web") == A("10.28.0.2")
        assert (await b.attach("db")) in IPv4Network("10.28.2.0/23")


async def test_an_attach_is_what_the_next_pass_finds(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.converge()
        await a.attach("web")
        assert await a.converge() == 0
        await a.detach("web")
        assert await a.converge() == 0
        assert not [key for key in a.kernel.objects if "pl-e" in " ".join(key)]


@pytest.mark.parametrize("backend", ["vxlan", "bridge"])
async def test_so_it_is_in_a_network_of_the_first_moment_and_on_the_fast_path(store: Cuttable, tmp_path: Path, backend: str) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        a.fast_path = True
        await a.converge()
        await a.ops.ensure_network(NetworkRequest("here", IPv4Network("10.40.0.0/16"), options={"backend": backend}))
        await a.attach("web", "here")
        (endpoint,) = a.ops.endpoints("sandbox").values()
        held = {key: obj for key, obj in a.kernel.objects.items() if endpoint.dev in " ".join(key)}
        await a.converge()
        assert {key: a.kernel.objects.get(key) for key in held} == held, "no pass takes back or changes what the attach made"
        link = held["link", endpoint.dev]
        assert isinstance(link, EndpointLink) and bool(link.master) == (backend == "bridge")
        chain = held["nft", "chain", endpoint.dev, "netdev"]
        assert isinstance(chain, NftChain) and any("fwd" in rule for rule in chain.rules) == (backend == "vxlan")


async def test_among_others_that_are_judged_together_a_container_begins_without_a_listing_of_the_kernel(
    store: Cuttable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.ops.ensure_network(NetworkRequest("apart", IPv4Network("10.40.0.0/16"), options={"isolated": "true"}))
        await a.attach("web", "apart")
        assert await a.converge() == 0
        with monkeypatch.context() as patched:
            patched.setattr(a.kernel, "owned", lambda probe: pytest.fail("the kernel was listed"))
            await a.attach("db", "apart")
        assert await a.converge() == 0, "nothing was left for the pass behind it"
        await a.detach("web")
        await a.attach("web", "apart")
        assert await a.converge() == 0


@pytest.mark.parametrize("kind", ["plain", "internal", "encrypted"])
async def test_the_rules_for_a_network_come_before_its_first_container(
    store: Cuttable, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.attach("of-the-default-network")
        passes = a.work.passes
        await a.attach("another")
        assert a.work.passes == passes, "they are there"
        options = {"backend": "wireguard"} if kind == "encrypted" else {}
        await a.ops.ensure_network(NetworkRequest("new", IPv4Network("10.40.0.0/16"), internal=kind == "internal", options=options))
        seen: list[set[str]] = []
        apply = a.kernel.apply

        def watched(ops: Sequence[Op]) -> Result:
            if any(isinstance(op.new, EndpointLink) for op in ops):
                sets = [obj for obj in a.kernel.objects.values() if isinstance(obj, NftSet)]
                seen.append({held.name for held in sets if "10.40.0.0/16" in held.elements})
            return apply(ops)

        monkeypatch.setattr(a.kernel, "apply", watched)
        await a.attach("first", "new")
        (held,) = seen
        assert held == {"pools"} | ({kind} if kind != "plain" else set())


async def test_a_thousand_concurrent_attaches_on_three_nodes_give_no_address_twice(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B", "C") as made:
        jobs = [node.attach(f"c{number}") for number in range(334) for node in made]
        addresses = await asyncio.gather(*jobs)
        assert len(addresses) == len(set(addresses)) == 1002


async def test_a_name_keeps_its_address_over_removal_and_restart_of_the_agent(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        first = await a.attach("web")
        await a.detach("web")
        assert await a.attach("other") != first
        await a.stop()
        await a.start()
        assert await a.attach("web") == first


async def test_without_the_store_containers_still_attach_from_the_leased_blocks(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.publisher.publish()
        store.away = True
        addresses = {await a.attach(f"c{n}") for n in range(300)}
        assert len(addresses) == 300
        with pytest.raises(StoreUnavailable):
            for n in range(300, 600):
                await a.attach(f"c{n}")
        store.away = False
        await a.addresses.maintain()
        assert await a.attach("again")
        await a.publisher.publish()
        assert len((await store.list("endpoints/A/")).items) == len(a.ops.endpoints("sandbox"))


async def test_a_full_pool_says_which_and_who_and_one_freed_address_helps(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await a.ops.ensure_network(NetworkRequest("tiny", IPv4Network("10.40.0.0/28")))
        for number in range(13):
            await a.attach(f"c{number}", "tiny")
        await b.until(lambda: "tiny" in b.view.snapshot.networks and len(b.view.snapshot.blocks) >= 8)
        for node, name in ((a, "more"), (b, "other")):
            with pytest.raises(PoolExhausted, match=r"10\.40\.0\.0/28 of network 'tiny'.*13 usable.*A: 4 blocks"):
                await node.attach(name, "tiny")
        await a.detach("c5")
        assert await a.attach("more", "tiny")


async def test_a_range_holds_on_every_node_and_over_restarts(store: Cuttable, tmp_path: Path) -> None:
    part = IPv4Network("10.40.7.0/27")
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await a.ops.ensure_network(NetworkRequest("part", IPv4Network("10.40.0.0/16"), ip_range=part))
        await b.until(lambda: "part" in b.view.snapshot.networks)
        got = {await node.attach(f"c{n}", "part") for n in range(4) for node in (a, b)}
        assert len(got) == 8 and all(address in part for address in got)
        await a.attach("outside", "part", "10.40.99.9")
        await b.stop()
        await b.start()
        with pytest.raises(PoolExhausted, match=r"pool 10\.40\.7\.0/27 of network 'part' is exhausted: 32 usable"):
            for number in range(4, 36):
                assert await b.attach(f"c{number}", "part") in part
        with pytest.raises(Conflict, match=r"IP range 10\.40\.7\.0/27, not 10\.40\.8\.0/24"):
            await b.ops.ensure_network(NetworkRequest("part", ip_range=IPv4Network("10.40.8.0/24")))


def of_node(node: FakeNode) -> list[IPv4Network]:
    """Its blocks of the network `part`."""
    return [block.cidr for block in node.view.snapshot.blocks.values() if block.network == "part" and block.node == node.name]


async def test_another_range_is_for_new_containers_and_old_ones_keep_what_they_have(store: Cuttable, tmp_path: Path) -> None:
    first, second, whole = IPv4Network("10.40.0.0/18"), IPv4Network("10.40.128.0/18"), IPv4Network("10.40.0.0/16")
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await a.ops.ensure_network(NetworkRequest("part", whole, ip_range=first, block_prefix=24))
        await b.until(lambda: "part" in b.view.snapshot.networks)
        old = {node: await node.attach(f"old{node.name}", "part") for node in (a, b)}
        await a.ops.change_network("part", {}, PoolChange(second, excluded=(parse_range("10.40.128.2-10.40.128.9"),)))
        await b.until(lambda: b.view.snapshot.networks["part"].ip_range == second)
        for node in (a, b):
            await node.addresses.maintain()
            assert (new := await node.attach(f"new{node.name}", "part")) in second and int(new) & 0xFF not in range(2, 10)
            assert node.addresses.is_live("part", old[node]), "it goes on"
            held = of_node(node)
            assert sorted(block.subnet_of(second) for block in held) == [False, True, True], "with the old container; in use; spare"
            await node.detach(f"old{node.name}")
            await node.addresses.maintain()
            await node.until(lambda node=node: all(block.subnet_of(second) for block in of_node(node)))  # type: ignore[misc]
            assert await node.attach(f"old{node.name}", "part") in second, "a name is remembered in the range only"
        assert (await a.ops.ensure_network(NetworkRequest("part", whole, ip_range=first))).ip_range == second, "an engine that was told so"
        await a.ops.change_network("part", {}, PoolChange(whole=True, excluded=()))
        network = a.view.snapshot.networks["part"]
        assert (network.ip_range, network.excluded) == (None, ())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (PoolChange(IPv4Network("10.41.0.0/24")), "is no part of the subnet"),
        (PoolChange(excluded=(parse_range("10.41.0.1"),)), "is no part of the subnet"),
        (PoolChange(IPv4Network("10.40.9.0/30"), excluded=(parse_range("10.40.9.0/30"),)), "leaves no address"),
        (PoolChange(IPv4Network("10.40.9.0/24"), whole=True), "choose one"),
    ],
)
async def test_a_range_that_cannot_be_changes_nothing(store: Cuttable, tmp_path: Path, change: PoolChange, error: str) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        made = await a.ops.ensure_network(NetworkRequest("part", IPv4Network("10.40.0.0/16")))
        with pytest.raises(ConfigError, match=error):
            await a.ops.change_network("part", {}, change)
        assert a.view.snapshot.networks["part"] == made
        assert [n.options for n in await a.ops.change_network("part", {}, PoolChange(made.subnet))] == [made.options], "as it is"


async def test_a_network_is_changed_for_all_nodes_with_those_that_share_its_tunnel(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await a.ops.ensure_network(NetworkRequest("mesh"))
        await b.until(lambda: "mesh" in b.view.snapshot.networks)
        assert [n.name for n in await b.ops.change_network("mesh", {"port": "8472"})] == ["mesh", "default"]
        await a.until(lambda: {n.port for n in a.view.snapshot.networks.values()} == {8472})
        await asyncio.gather(a.ops.change_network("mesh", {"vni": "5"}), b.ops.change_network("mesh", {"backend": "hybrid"}))
        await a.until(lambda: (n := a.view.snapshot.networks["mesh"]).vni == 5 and n.backend == "hybrid")
        assert a.view.snapshot.networks["default"].vni == 1
        with pytest.raises(NotFound):
            await a.ops.change_network("nowhere", {"port": "1"})
        with pytest.raises(Conflict, match="exists already with port 8472, not 4789"):
            await a.ops.ensure_network(NetworkRequest("mesh", options={"port": "4789"}))


async def test_a_chosen_address_is_given_once(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        assert await a.attach("web", address="10.28.0.77") == A("10.28.0.77")
        with pytest.raises(Conflict, match="in use by 'web'"):
            await a.attach("other", address="10.28.0.77")
        with pytest.raises(Conflict, match="which node A holds"):
            await b.attach("third", address="10.28.0.78")
        assert await b.attach("fourth", address="10.28.9.9") == A("10.28.9.9")
        with pytest.raises(NotFound):
            await b.attach("fifth", address="10.99.0.1")


async def test_a_refused_link_leaves_nothing(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.converge()
        before = dict(a.kernel.objects)
        from plait.plan.desired import device_name

        a.kernel.fail_next(("link", device_name("A.web")), errno.ENOSPC)
        with pytest.raises(KernelError, match="ENOSPC"):
            await a.attach("web")
        assert a.kernel.objects == before
        assert not a.ops.endpoints("sandbox") and not a.journal.load("endpoint")
        assert not [r for r in a.addresses.reservations() if r.live and r.name == "web"]


@pytest.mark.parametrize("kind", ["reservation", "endpoint"])
async def test_what_the_disk_refuses_is_not_attached(store: Cuttable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Other documents than of this kind find room still."""
    async with nodes(store, tmp_path, "A") as (a,):
        await a.attach("first")
        before, queue = dict(a.kernel.objects), a.journal.queue

        def refused(writes: Sequence[Write]) -> asyncio.Future[None]:
            if not any(write.kind == kind and write.body is not None for write in writes):
                return queue(writes)
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_exception(NotSaved("the disk is full"))
            return done

        monkeypatch.setattr(a.journal, "queue", refused)
        with pytest.raises(NotSaved, match="the disk is full"):
            await a.attach("web")
        assert a.kernel.objects == before and set(a.ops.endpoints("sandbox")) == set(a.journal.load("endpoint")) == {"A.first"}
        assert not [r for r in a.addresses.reservations() if r.live and r.name == "web"]
        monkeypatch.setattr(a.journal, "queue", queue)
        assert await a.attach("web")


async def test_who_gives_up_waiting_for_the_disk_does_not_keep_the_address_from_it(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        network, busy = a.view.snapshot.networks["default"], threading.Event()
        a.journal._thread.submit(busy.wait, 10)
        address = (await a.addresses.reserve(network, "A.web", later=True)).ip
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await a.addresses.saved("A.web")
        busy.set()
        assert f"default/{address}" in a.journal.load("reservation")


async def test_a_full_disk_is_named(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.load("x")
    journal._db.execute("PRAGMA max_page_count=4")
    with pytest.raises(NotSaved, match=r"journal of this node, \S+/journal\.db, cannot be written: database or disk is full"):
        await journal.write([Write("x", "large", bytes(1 << 16))])
    await journal.write([Write("x", "small", b"1")])
    assert journal.load("x") == {"small": b"1"}
    journal.close()


async def test_an_attach_with_ports_is_one_change_of_the_kernel_and_so_is_its_end(
    store: Cuttable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change of the nft tables waits some milliseconds for the kernel's readers."""
    async with nodes(store, tmp_path, "A") as (a,):
        await a.converge()
        empty, changes = dict(a.kernel.objects), []
        apply = a.kernel.apply
        monkeypatch.setattr(a.kernel, "apply", lambda ops: (changes.append(len(ops)), apply(ops))[1])
        request = AttachRequest("A.web", "default", "sandbox", "web", "web", ports=(PortMapping("tcp", 8080, 80),))
        await a.ops.attach(request)
        assert len(changes) == 1 and await a.converge() == 0
        await a.ops.detach("A.web")
        assert len(changes) == 2 and await a.converge() == 0 and a.kernel.objects == empty


async def test_maps_that_somebody_changed_meanwhile_are_made_true_by_a_full_pass(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.converge()
        a.kernel.fail_next(("nft", "map", "ports_any"))
        request = AttachRequest("A.web", "default", "sandbox", "web", "web", ports=(PortMapping("tcp", 8080, 80),))
        endpoint = await a.ops.attach(request)
        assert [port.host_port for port in endpoint.ports] == [8080] and await a.converge() == 0
        a.kernel.fail_next(("nft", "map", "ports_any"))
        await a.ops.detach("A.web")
        assert await a.converge() == 0 and not [key for key in a.kernel.objects if "pl-e" in " ".join(key)]


async def test_killed_at_any_moment_nothing_leaks(store: Cuttable, tmp_path: Path) -> None:
    """A hundred times: cancel an attach or a detach at a random point, lose the process's memory, start again."""
    chance = random.Random(4)
    async with nodes(store, tmp_path, "A") as (a,):
        await a.converge()
        empty = set(a.kernel.objects)
        for round_number in range(100):
            task = asyncio.create_task(a.attach(f"c{round_number % 7}"))
            await asyncio.sleep(chance.random() * 0.003)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if chance.random() < 0.3:
                task = asyncio.create_task(a.detach(f"c{round_number % 7}"))
                await asyncio.sleep(chance.random() * 0.002)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            if round_number % 10 == 9:
                await a.stop()
                await a.start()
                await a.ops.recover()
        for endpoint in list(a.ops.endpoints("sandbox")):
            await a.ops.detach(endpoint)
        await a.ops.recover()
        await a.converge()
        assert set(a.kernel.objects) == empty
        assert not [r for r in a.addresses.reservations() if r.live]
        assert not a.journal.load("endpoint")


async def test_a_restarted_agent_knows_its_endpoints_and_deletes_nothing(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.attach("web")
        await a.converge()
        held = dict(a.kernel.objects)
        await a.stop()
        await a.start()
        assert await a.converge() == 0
        assert a.kernel.objects == held


async def test_what_a_node_runs_is_published_and_withdrawn_exactly(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await a.attach("web")
        await a.publisher.publish()
        await b.until(lambda: "A.web" in b.view.snapshot.endpoints)
        assert await a.publisher.publish() == 0, "a second round writes nothing"
        await a.detach("web")
        await a.publisher.publish()
        await b.until(lambda: "A.web" not in b.view.snapshot.endpoints)


async def test_a_network_in_use_is_not_removed_and_names_its_holders(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.ops.ensure_network(NetworkRequest("mesh"))
        assert a.ops.networks()["mesh"].subnet == IPv4Network("10.29.0.0/16")
        await a.attach("web", "mesh")
        with pytest.raises(Conflict, match="web on A"):
            await a.ops.remove_network("mesh")
        await a.detach("web")
        await a.ops.remove_network("mesh")
        assert "mesh" not in a.ops.networks()
        with pytest.raises(Conflict, match="cluster's own"):
            await a.ops.remove_network("default")


async def test_two_nodes_making_networks_at_once_never_overlap(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B", "C") as made:
        await asyncio.gather(*(node.ops.ensure_network(NetworkRequest(f"n{node.name}{i}")) for node in made for i in range(2)))
        subnets = [n.subnet for n in made[0].ops.networks().values()]
        assert len(set(subnets)) == len(subnets) == 7
        with pytest.raises(ConfigError, match="overlaps"):
            await made[0].ops.ensure_network(NetworkRequest("x", IPv4Network("10.28.4.0/24")))
        with pytest.raises(Conflict, match="exists already with subnet"):
            await made[0].ops.ensure_network(NetworkRequest("default", IPv4Network("10.77.0.0/16")))


async def test_a_network_over_the_hosts_own_addresses_is_refused(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await a.publisher.publish()
        await b.until(lambda: "A" in b.view.snapshot.nodes)
        for subnet in ("198.18.0.0/24", "198.18.0.0/15", "198.18.0.0/30"):
            with pytest.raises(ConfigError, match=r"holds 198\.18\.0\.1, the address of node A"):
                await b.ops.ensure_network(NetworkRequest("bad", IPv4Network(subnet)))


async def test_published_ports_are_map_elements_and_a_taken_one_is_refused(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.attach("web")
        await a.attach("db")
        published = await a.ops.publish("A.web", [PortMapping("tcp", 18080, 80), PortMapping("udp", 0, 53)])
        assert published[0].host_port == 18080 and published[1].host_port >= 1024
        with pytest.raises(PortInUse, match="18080/tcp: the port is published for 'web'"):
            await a.ops.publish("A.db", [PortMapping("tcp", 18080, 80)])
        await a.ops.unpublish("A.web")
        assert (await a.ops.publish("A.db", [PortMapping("tcp", 18080, 80)]))[0].host_port == 18080
        await a.converge()
        assert await a.converge() == 0


async def test_a_publication_that_meets_a_trampled_map_is_made_true_all_the_same(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.attach("web")
        await a.converge()
        key = ("nft", "map", "ports_any")
        a.kernel.fail_next(key, errno.ENOENT)
        await a.ops.publish("A.web", [PortMapping("tcp", 18081, 80)])
        assert "18081" in str(a.kernel.objects[key])
        a.kernel.fail_next(key, errno.ENOENT)
        await a.detach("web")
        assert "18081" not in str(a.kernel.objects[key])


async def test_unknown_things_are_named(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        with pytest.raises(NotFound, match=r"no network 'nope' \(known: default\)"):
            await a.attach("web", "nope")
        with pytest.raises(NotFound, match="no such endpoint"):
            await a.ops.publish("A.none", [])
        await a.detach("never was")


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 64, "ä"])
async def test_impossible_network_names_are_refused(store: Cuttable, tmp_path: Path, name: str) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        with pytest.raises(ConfigError, match="network name"):
            await a.ops.ensure_network(NetworkRequest(name))
