# SPDX-License-Identifier: Apache-2.0
"""Events, the archive and the operator's part of the Consul API over real HTTP, on nodes that share a store in memory."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from tests.support.cluster import FakeNode, nodes

from plait.agent.catalog import Catalog
from plait.agent.consulstate import MAX_EVENTS, ConsulState
from plait.agent.kv import Kv
from plait.model.cluster import Node
from plait.serve.consul import ConsulApi
from plait.serve.consul_event import EventApi
from plait.serve.consul_kv import KvApi
from plait.serve.consul_operator import OperatorApi
from plait.services.archive import unpack
from plait.store.api import Change, Put
from plait.store.memory import MemoryStore


class Client:
    def __init__(self, session: ClientSession, port: int, state: ConsulState) -> None:
        self._session, self._url, self.state = session, f"http://127.0.0.1:{port}/v1/", state

    async def call(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes, dict[str, str]]:
        async with self._session.request(method, self._url + path, data=body) as answer:
            return answer.status, await answer.read(), dict(answer.headers)

    async def ok(self, method: str, path: str, body: bytes = b"") -> Any:
        status, text, _ = await self.call(method, path, body)
        assert status == 200, text
        return json.loads(text) if text else None


@contextlib.asynccontextmanager
async def client(node: FakeNode) -> AsyncIterator[Client]:
    kv, state = Kv(node.view, node.store, lambda: 0), ConsulState(node.view, node.store, lambda: 0)
    present = [Change("put", item, item.mod_revision) for item in node.replica.items.values()]
    for told in (lambda c, r: kv.change(c, r), lambda c, _: state.change(c)):
        told(present, node.replica.revision)
        node.replica.subscribe(told)
    catalog = Catalog(node.view, node.journal, node.publisher.publish, lambda: 0)
    more = [*KvApi(kv, node.name).routes, *EventApi(state).routes, *OperatorApi(state, "dc1").routes]
    server = ConsulApi(catalog, node.name, "dc1", more).server()
    await server.start("127.0.0.1", 0)
    try:
        async with ClientSession() as session:
            yield Client(session, server.port, state)
    finally:
        await server.stop()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Client, Client]]:
    store = MemoryStore()
    async with nodes(store, tmp_path, "A", "B") as (a, b), client(a) as first, client(b) as second:
        server = a.view.snapshot.nodes["A"]
        a.view.put(Node("A", "id-a", server.address, vtep_mac=server.vtep_mac, tunnel=server.tunnel, meta={"server": "1"}))
        await store.txn([], [Put("alive/A", b"1")])
        yield first, second
    await store.close()


@pytest.fixture
def one(pair: tuple[Client, Client]) -> Client:
    return pair[0]


# --- events


async def test_an_event_is_seen_on_all_nodes_with_its_fields(pair: tuple[Client, Client]) -> None:
    one, two = pair
    fired = await one.ok("PUT", "event/fire/deploy?node=^A&service=web&tag=v1", b"now")
    async with asyncio.timeout(5):
        while not (listed := await two.ok("GET", "event/list?name=deploy")):  # noqa: ASYNC110 (what it asks tells of no changes)
            await asyncio.sleep(0.005)
    assert listed[0]["LTime"] > 0
    assert (
        listed[0] | {"LTime": 0}
        == fired
        == {
            "ID": fired["ID"],
            "Name": "deploy",
            "Payload": base64.b64encode(b"now").decode(),
            "NodeFilter": "^A",
            "ServiceFilter": "web",
            "TagFilter": "v1",
            "Version": 1,
            "LTime": 0,
        }
    )
    assert await two.ok("GET", "event/list?name=other") == []
    assert (await one.ok("PUT", "event/fire/empty"))["Payload"] is None


async def test_a_list_of_events_blocks_while_its_index_is_the_same(one: Client) -> None:
    assert (await one.call("GET", "event/list"))[2]["X-Consul-Index"] == "1"
    await one.ok("PUT", "event/fire/a")
    index = (await one.call("GET", "event/list?name=a"))[2]["X-Consul-Index"]
    task = asyncio.create_task(one.call("GET", f"event/list?name=a&index={index}&wait=20s"))
    await asyncio.sleep(0.05)
    await one.ok("PUT", "event/fire/other")
    assert not (await asyncio.wait([task], timeout=0.2))[0], "another event is none of its business"
    await one.ok("PUT", "event/fire/a")
    _, text, headers = await asyncio.wait_for(task, 5)
    assert headers["X-Consul-Index"] != index and len(json.loads(text)) == 2


async def test_the_last_256_events_are_kept(one: Client) -> None:
    for number in range(MAX_EVENTS + 5):
        await one.ok("PUT", f"event/fire/e{number}")
    names = [event["Name"] for event in await one.ok("GET", "event/list")]
    assert names == [f"e{number}" for number in range(5, MAX_EVENTS + 5)]


async def test_an_event_has_a_name_and_a_largest_size(one: Client) -> None:
    assert (await one.call("PUT", "event/fire/"))[:2] == (400, b"Missing name")
    assert (await one.call("PUT", "event/fire/a", b"x" * 70_000))[0] == 413


# --- the archive


async def test_a_snapshot_brings_back_what_clients_had_written(pair: tuple[Client, Client]) -> None:
    one, two = pair
    for number in range(600):
        await one.ok("PUT", f"kv/k/{number}", b"%d" % number)
    await one.ok("PUT", "kv/big", b"x" * 500_000)
    status, archive, headers = await one.call("GET", "snapshot")
    assert status == 200 and unpack(archive).index == int(headers["X-Consul-Index"]) > 1
    await one.ok("DELETE", "kv/k?recurse")
    await one.ok("PUT", "kv/new", b"1")
    networks = len(two.state.snapshot().networks)
    assert (await two.call("PUT", "snapshot", archive))[:2] == (200, b"")
    assert len(await two.ok("GET", "kv/k/?keys")) == 600 and (await two.call("GET", "kv/new"))[0] == 404
    assert (await two.call("GET", "kv/k/599?raw"))[1] == b"599" and len((await two.call("GET", "kv/big?raw"))[1]) == 500_000
    assert len(two.state.snapshot().networks) == networks > 0, "what is plait's own is not touched"


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (b"junk", "not one that plait saved"),
        (gzip.compress(b"{}"), "not one that plait saved"),
        (gzip.compress(json.dumps({"format": "other", "items": []}).encode()), "its format is 'other'"),
        (gzip.compress(json.dumps({"format": "plait-snapshot-1", "items": [["nodes/A", ""]]}).encode()), "which no snapshot does"),
        (gzip.compress(json.dumps({"format": "plait-snapshot-1", "items": [["kv/a", "%"]]}).encode()), "not one that plait saved"),
        (gzip.compress(b"{}" * 1000)[:-9], "not one that plait saved"),
    ],
)
async def test_a_snapshot_that_is_none_changes_nothing(one: Client, archive: bytes, words: str) -> None:
    await one.ok("PUT", "kv/a", b"1")
    status, text, _ = await one.call("PUT", "snapshot", archive)
    assert status == 400 and words in text.decode()
    assert await one.ok("GET", "kv/?keys") == ["a"]


# --- the operator's part


async def test_the_store_is_shown_as_the_only_voter(one: Client) -> None:
    config = await one.ok("GET", "operator/raft/configuration")
    assert config["Index"] == 0
    assert [(server["Node"], server["Leader"], server["Voter"]) for server in config["Servers"]] == [("A", True, True)]
    health = await one.ok("GET", "operator/autopilot/health")
    assert health["Healthy"] and [server["Healthy"] for server in health["Servers"]] == [True]
    assert (await one.ok("GET", "operator/autopilot/state"))["Leader"] == "id-a"


async def test_what_would_change_the_voters_is_refused(one: Client) -> None:
    assert (await one.call("DELETE", "operator/raft/peer?address=192.0.2.1:8300"))[0] == 500
    assert (await one.call("DELETE", "operator/raft/peer"))[0] == 400
    assert (await one.call("POST", "operator/raft/transfer-leader"))[0] == 500


async def test_autopilots_settings_are_kept(one: Client) -> None:
    before = await one.ok("GET", "operator/autopilot/configuration")
    assert before["CleanupDeadServers"] is True and before["ModifyIndex"] == 1
    path = "operator/autopilot/configuration"
    assert await one.ok("PUT", f"{path}?cas=1001", b'{"CleanupDeadServers": false}') is False
    assert await one.ok("PUT", f"{path}?cas=1", b'{"cleanup_dead_servers": false}') is True
    after = await one.ok("GET", path)
    assert after["CleanupDeadServers"] is False and after["ModifyIndex"] > 1
    assert await one.ok("PUT", f"{path}?cas={after['ModifyIndex']}", b'{"CleanupDeadServers": true}') is True
    status, text, _ = await one.call("PUT", path, b'{"CleanupDeadServers": "yes"}')
    assert status == 400 and b"CleanupDeadServers must be like True" in text


async def test_usage_counts(one: Client) -> None:
    usage = await one.ok("GET", "operator/usage?global&stale")
    assert usage["Usage"]["dc1"]["Nodes"] >= 1 and usage["KnownLeader"] is True


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "operator/keyring", 500),
        ("POST", "operator/keyring", 500),
        ("GET", "connect/ca/roots", 500),
        ("GET", "connect/intentions", 200),
        ("GET", "config/service-defaults", 200),
        ("GET", "config/service-defaults/web", 404),
        ("GET", "agent/connect/ca/roots", 500),
        ("GET", "agent/connect/ca/leaf/web", 500),
        ("GET", "health/connect/web", 200),
        ("GET", "acl/tokens", 401),
        ("GET", "operator/area", 404),
        ("GET", "discovery-chain/web", 404),
        ("PUT", "connect/ca/configuration", 500),
        ("PUT", "connect/intentions", 405),
        ("PUT", "config/service-defaults", 405),
        ("PUT", "config", 404),
    ],
)
async def test_what_plait_has_not_is_said_honestly(one: Client, method: str, path: str, status: int) -> None:
    got, text, _ = await one.call(method, path)
    assert got == status
    if status == 200:
        assert json.loads(text) == []
