# SPDX-License-Identifier: Apache-2.0
"""One suite for whoever answers the client: the strict fake of its other tests, and plait's own agent. Where they differ, one is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.fake_consul import FakeConsul, serve

from plait.agent.config import parse_config
from plait.agent.discovery import Discovery, DiscoveryParts
from plait.agent.health import Health
from plait.agent.identity import Identity
from plait.client import (
    ApiError,
    AsyncClient,
    CatalogService,
    CheckOp,
    CheckState,
    Client,
    Entry,
    LockLost,
    Node,
    NodeOp,
    NotAcquired,
    Op,
    Port,
    Service,
    ServiceOp,
    TxnFailed,
)
from plait.services.directory import SERVER_META
from plait.store.api import Change, Put
from plait.store.memory import MemoryStore


@contextlib.asynccontextmanager
async def agent(folder: Path) -> AsyncIterator[str]:
    """The URL of a node's API, with all parts of the directory, over the memory store and the fake kernel."""
    store = MemoryStore()
    async with nodes(store, folder, "A") as (node,):
        here = node.view.snapshot.nodes["A"]
        node.view.put(replace(here, meta={**here.meta, SERVER_META: "true"}))
        await store.txn([], [Put("alive/A", b"1")])
        await node.publisher.publish()
        await node.until(lambda: "A" in node.view.snapshot.alive)
        health, identity = Health(time.monotonic), Identity(node.name, "", here.address)
        parts = DiscoveryParts(parse_config({}, "test"), identity, node.journal, store, node.view, health, node.publisher, lambda: 0)
        discovery = Discovery(parts)

        def change(changes: Iterable[Change], revision: int) -> None:
            told = list(changes)  # the node's view is told already
            discovery.kv.change(told, revision)
            discovery.consul_state.change(told)
            discovery.queries.change(told)

        change((Change("put", item, item.mod_revision) for item in node.replica.items.values()), node.replica.revision)
        node.replica.subscribe(change)
        server = discovery.api.server()
        await server.start("127.0.0.1", 0)
        loops = [asyncio.create_task(loop) for loop in (*discovery.loops(), published(node))]
        try:
            yield f"http://127.0.0.1:{server.port}"
        finally:
            for task in loops:
                task.cancel()
            await asyncio.wait(loops)
            await server.stop()
            await discovery.close()
    await store.close()


async def published(node: FakeNode) -> None:
    """What the node's own agent does all the time."""
    while True:
        await node.publisher.publish()
        await asyncio.sleep(0.01)


@contextlib.contextmanager
def plait(folder: Path) -> Iterator[str]:
    """The agent in a thread with a loop of its own, so that blocking and asyncio clients alike talk to it."""
    started: list[str] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    end = asyncio.Event()

    async def run() -> None:
        try:
            async with agent(folder) as url:
                started.append(url)
                ready.set()
                await end.wait()
        finally:
            ready.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    assert ready.wait(20) and started, "the agent does not start"
    try:
        yield started[0]
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(20)
        loop.close()


@pytest.fixture(params=["fake", "plait"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "plait":
        with plait(tmp_path) as found:
            yield found
    else:
        with serve(FakeConsul(time.monotonic)) as server:
            yield server.url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


def ports(found: Any) -> list[int]:
    return [instance.port for instance in found]


# services


def test_a_service_is_registered_found_and_withdrawn(client: Client) -> None:
    client.register(Service("web", 80, id="web-1", address="192.0.2.7", tags=("a", "b"), meta={"version": "1"}, weight=5))
    client.register(Service("web", 81, id="web-2", address="192.0.2.8", tags=("b",)))
    first, second = client.resolve("web")
    assert (first.id, first.endpoint, set(first.tags), first.meta, first.weight, first.status) == (
        "web-1", "192.0.2.7:80", {"a", "b"}, {"version": "1"}, 5, "passing",
    )  # fmt: skip
    assert second.node and second.datacenter == "dc1"
    assert ports(client.resolve("web", tags=("b",))) == [80, 81] and ports(client.resolve("web", tags=("a", "b"))) == [80]
    assert set(client.catalog.services()["web"]) == {"a", "b"} and "consul" in client.catalog.services()
    assert client.deregister("web-1") and not client.deregister("web-1")
    assert ports(client.resolve("web")) == [81]
    assert client.resolve("nobody") == ()


def test_several_ports_by_their_names(client: Client) -> None:
    client.register(Service("web", id="both", address="192.0.2.7", ports=(Port("http", 8080), Port("metrics", 9100))))
    client.register(Service("web", 80, id="one", address="192.0.2.8"))
    both, one = client.resolve("web")
    assert both.ports == (Port("http", 8080, default=True), Port("metrics", 9100)) and one.ports == ()
    assert ports([both, one]) == [8080, 80]
    assert [found.endpoint for found in client.resolve("web", port="METRICS")] == ["192.0.2.7:9100"]
    assert client.resolve("web", port="none") == ()
    with client.endpoints("web", port="metrics") as endpoints, endpoints.use() as chosen:
        assert chosen.endpoint == "192.0.2.7:9100"


def test_a_registration_lasts_as_long_as_its_block(client: Client) -> None:
    with client.registration(Service("web", 80)):
        assert ports(client.resolve("web")) == [80]
    assert client.resolve("web") == ()


def test_the_catalogue(client: Client) -> None:
    (node,) = client.catalog.nodes()
    assert node.name and node.address
    assert [member.status for member in client.catalog.members()] == ["alive"]
    assert client.catalog.leader()
    assert client.catalog.agent()["Config"]["NodeName"] == node.name
    assert [check.id for check in client.catalog.state()] == ["serfHealth"]
    assert client.catalog.state("critical") == ()


def test_a_watch_reports_real_changes_only(client: Client) -> None:
    seen: list[list[int]] = []
    changes = client.watch("web")
    assert next(changes) == ()
    thread = threading.Thread(target=lambda: seen.extend(ports(found) for found in changes), daemon=True)
    thread.start()
    for step in (
        lambda: client.register(Service("other", 1)),
        lambda: client.register(Service("web", 80)),
        lambda: client.register(Service("web", 80)),
        lambda: client.register(Service("web", 81)),
        lambda: client.deregister("web"),
    ):
        step()
        time.sleep(0.3)
    changes.close()
    thread.join(10)
    assert seen == [[80], [81], []]


async def test_a_watch_in_asyncio(url: str) -> None:
    async with AsyncClient(url) as client, asyncio.timeout(20):
        changes = client.watch("web")
        assert await anext(changes) == ()
        await client.register(Service("web", 80))
        assert ports(await anext(changes)) == [80]
        async with client.endpoints("web") as endpoints, endpoints.use() as instance:
            assert instance.port == 80


def test_words_of_refusal_arrive(client: Client) -> None:
    with pytest.raises(ApiError, match="Missing service name") as caught:
        client.raw("PUT", "agent/service/register", body=b"{}")
    assert caught.value.status == 400
    with pytest.raises(ApiError, match="not a recognized HTTP API endpoint") as caught:
        client.raw("GET", "no/such/thing")
    assert caught.value.status == 404


def test_heartbeats_and_words_about_oneself(client: Client) -> None:
    with client.registration(Service("web", 80, ttl_s=10)) as registration:
        assert ports(client.resolve("web")) == [80]
        registration.critical("no database")
        assert client.resolve("web") == ()
        (found,) = client.resolve("web", passing=False)
        assert found.status == "critical"
        assert [check.output for check in found.checks if check.service_id] == ["no database"]
        registration.warning("slow")
        assert [one.status for one in client.resolve("web", passing=False)] == ["warning"]
        registration.passing()
        registration.maintenance(True, "disk")
        assert [one.status for one in client.resolve("web", passing=False)] == ["maintenance"]
        registration.maintenance(False)
        assert ports(client.resolve("web")) == [80]
    assert client.resolve("web", passing=False) == ()


def test_a_heartbeat_that_stops_is_noticed(client: Client) -> None:
    client.register(Service("web", 80, ttl_s=1))
    changes = client.watch("web")
    assert ports(next(changes)) == [80]
    assert next(changes) == ()


# keys


def test_keys(client: Client) -> None:
    assert client.kv.get("a/b") is None
    assert client.kv.put("a/b", b"\x00\xff", flags=2**64 - 1) and client.kv.put("a/c d", b"") and client.kv.put("a/x/ü%?#", b"1")
    entry = client.kv.get("a/b", consistent=True)
    assert entry is not None and (entry.value, entry.flags, entry.session) == (b"\x00\xff", 2**64 - 1, "")
    assert [one.key for one in client.kv.list("a/")] == ["a/b", "a/c d", "a/x/ü%?#"]
    assert client.kv.keys("a/", separator="/") == ("a/b", "a/c d", "a/x/")
    assert client.kv.keys("none/") == () and client.kv.list("none/") == ()
    assert client.kv.put("a/b", b"2", cas=entry.modify_index) and not client.kv.put("a/b", b"3", cas=entry.modify_index)
    assert not client.kv.put("a/b", b"3", cas=0) and client.kv.put("new", b"3", cas=0)
    assert not client.kv.delete("a/b", cas=1) and client.kv.delete("a/b") and client.kv.delete("a/b")
    assert client.kv.delete_tree("a/") and client.kv.keys() == ("new",)


def test_a_key_is_watched(client: Client) -> None:
    changes = client.kv.watch("a")
    assert next(changes) is None
    threading.Timer(0.2, client.kv.put, ["other", b"x"]).start()
    threading.Timer(0.4, client.kv.put, ["a", b"1"]).start()
    entry = next(changes)
    assert entry is not None and entry.value == b"1"
    threading.Timer(0.2, client.kv.delete, ["a"]).start()
    assert next(changes) is None


def test_a_transaction(client: Client) -> None:
    found = client.kv.txn(Op("set", "a", b"1"), Op("set", "b", b"2"), Op("get", "a"))
    assert [(one.key, one.value) for one in found] == [("a", b""), ("b", b""), ("a", b"1")]
    with pytest.raises(TxnFailed) as caught:
        client.kv.txn(Op("set", "a", b"9"), Op("check-not-exists", "b"), Op("get", "nope"))
    assert [place for place, _ in caught.value.errors] == [1, 2]
    entry = client.kv.get("a")
    assert entry is not None and entry.value == b"1"


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Client, str]]:
    with plait(tmp_path) as url, Client(url) as client:
        yield client, url


def test_a_transaction_of_nodes_services_and_checks(both: tuple[Client, str]) -> None:
    client, url = both
    host = Node("ext", "192.0.2.9", meta={"rack": "1"})
    web = CatalogService("ext", "web", "web-1", "192.0.2.10", 80, ("a",), {"k": "v"}, weight=3, weight_warning=2)
    check = CheckState("alive", "is alive", "passing", "ext", "web-1", "web", "by hand", "well")
    done = client.txn(NodeOp("set", host), Op("set", "a", b"1"), ServiceOp("set", web), CheckOp("set", check), Op("get", "a"))
    assert done[0] == replace(host, datacenter="dc1") and done[2:4] == (web, check)
    assert [one.value for one in done if isinstance(one, Entry)] == [b"", b"1"]
    (found,) = client.resolve("web")
    assert (found.node, found.endpoint, found.weight, found.meta) == ("ext", "192.0.2.10:80", 3, {"k": "v"})
    index = done[2].modify_index
    moved = replace(web, port=81)
    with pytest.raises(TxnFailed) as caught:
        client.txn(ServiceOp("cas", moved, index - 1), CheckOp("get", CheckState("none", "", "", "ext")), NodeOp("get", host))
    assert [place for place, _ in caught.value.errors] == [0, 1]

    asyncio.run(_moved(url, moved, index))
    client.txn(ServiceOp("delete", CatalogService("ext", "web", "web-1")), NodeOp("delete", Node("ext", "")))
    assert client.resolve("web") == () and [node.name for node in client.catalog.nodes()] == ["A"]


async def _moved(url: str, moved: CatalogService, index: int) -> None:
    async with AsyncClient(url) as client:
        assert await client.txn(ServiceOp("cas", moved, index), ServiceOp("get", CatalogService("ext", "", "web-1"))) == (moved, moved)


# locks


def test_sessions(client: Client) -> None:
    session = client.sessions.create(name="mine", ttl_s=10, lock_delay_s=1.5)
    found = client.sessions.info(session)
    assert found is not None and (found.name, found.lock_delay_s, found.behavior) == ("mine", 1.5, "release")
    assert session in [one.id for one in client.sessions.list()] and client.sessions.renew(session)
    client.sessions.destroy(session)
    assert client.sessions.info(session) is None and client.sessions.renew(session) is None


def test_a_lock_excludes_is_lost_and_passed_on(client: Client) -> None:
    lock = client.lock("jobs/a", lock_delay_s=0)
    with lock:
        fence = lock.fence
        with pytest.raises(NotAcquired), client.lock("jobs/a", timeout_s=0):
            pass
    with pytest.raises(LockLost), lock:
        assert lock.fence > fence
        (entry,) = client.kv.list("jobs/")
        client.sessions.destroy(entry.session)
        assert lock.lost.wait(10)
    with client.semaphore("sem", 2), client.semaphore("sem", 2), pytest.raises(NotAcquired), client.semaphore("sem", 2, timeout_s=0):
        pass
    assert client.sessions.list() == ()


def test_a_lock_delay_is_kept(client: Client) -> None:
    lock = client.lock("a", lock_delay_s=1)
    assert lock.acquire(0)
    (session,) = client.sessions.list()
    client.sessions.destroy(session.id)
    began = time.monotonic()
    assert client.lock("a").acquire(20)
    assert time.monotonic() - began >= 0.9
    with pytest.raises(LockLost):
        lock.release()


def test_one_leads_and_all_know_it(client: Client) -> None:
    leader = client.watch_leader("leader")
    assert next(leader) is None
    assert client.lead("leader", "host-a", lambda term: next(leader)) == b"host-a"
    assert next(leader) is None


# events


def test_events_are_heard_once(client: Client) -> None:
    client.events.fire("deploy", b"old")
    changes = client.events.watch("deploy", replay=True)
    assert [event.payload for event in next(changes)] == [b"old"]
    threading.Timer(0.2, client.events.fire, ["other", b"x"]).start()
    threading.Timer(0.4, client.events.fire, ["deploy", b"new"]).start()
    assert [event.payload for event in next(changes)] == [b"new"]
    assert [event.name for event in client.events.list()] == ["deploy", "other", "deploy"]
