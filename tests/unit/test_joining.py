# SPDX-License-Identifier: Apache-2.0
"""A cluster of two nodes joins another one: real certificates and TLS on loopback, stores in memory, no hosts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from plait.agent import joining
from plait.agent.files import Paths
from plait.agent.health import Health
from plait.agent.identity import Identity
from plait.agent.joiner import SAID, WISH, Joiner, Moved
from plait.agent.joining import Joining
from plait.agent.keys import record_key
from plait.agent.view import View
from plait.model.cluster import Block, Network, Node
from plait.model.errors import ConfigError, Conflict, StoreUnavailable
from plait.store.api import Put, TxnResult
from plait.store.codec import decode, encode
from plait.store.joinserver import JoinServer
from plait.store.memory import MemoryStore
from plait.store.pki import init_cluster
from plait.store.remote import RemoteStore
from plait.store.replica import Replica
from plait.store.server import StoreServer
from plait.store.tls import cluster_pin, ssl_context_join_server, ssl_context_server
from plait.store.token import create_token

A, N = IPv4Address, IPv4Network
MESH = Network("mesh", N("10.29.0.0/16"), A("10.29.0.1"), 24)
THEIRS = [Block("mesh", N("10.29.0.0/24"), "A"), Block("mesh", N("10.29.1.0/24"), "A")]
OURS = [Block("mesh", N("10.29.0.0/24"), "C"), Block("mesh", N("10.29.2.0/24"), "D")]
DEFAULT = Network("default", N("10.28.0.0/16"), A("10.28.0.1"), 24)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pki")
    init_cluster(directory, "A", "id-A", ip_address("127.0.0.1"))
    return directory


class OurNode:
    """One node of the joining cluster, of which there is what joining needs."""

    def __init__(self, name: str, store: MemoryStore, folder: Path) -> None:
        self.paths = Paths(lib=folder / name)
        self.paths.lib.mkdir()
        self.health, self.view = Health(lambda: 0.0), View(name)
        self.replica = Replica(store, folder / name / "replica.bin")
        self.replica.subscribe(self.view.change)
        identity = Identity(name, f"id-{name}", A("127.0.0.1"), "" if name == "C" else "c:7470")
        config = cast(Any, SimpleNamespace(store="none"))
        self.joiner = Joiner(
            identity, config, self.paths, store, self.replica.items, lambda: self.replica.connected, self.health, lambda: True
        )
        self.replica.subscribe(self.joiner.change)
        self.joining = Joining(self.view, store, self.replica.items, self.joiner, name == "C", "default")

    async def run(self) -> str:
        """What ended it."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.replica.run())
                group.create_task(self.joiner.run())
        except BaseExceptionGroup as group_error:
            if group_error.subgroup(Moved) is None:
                raise
        return "moved"


class Two:
    """Cluster A, with its servers, and the stores and nodes of the other one."""

    def __init__(self, pki: Path, folder: Path) -> None:
        self.there, self.pki, self.here = MemoryStore(), pki, MemoryStore()
        self.store = StoreServer(self.there, "127.0.0.1", 0, ssl_context_server(pki))
        self.store.open()
        context = ssl_context_join_server(pki)
        self.join = JoinServer(self.there, pki, "127.0.0.1", 0, context, store_address=lambda: f"127.0.0.1:{self.store.port}")
        self.join.open()
        self.nodes = {name: OurNode(name, self.here, folder) for name in "CD"}
        self.tasks = {name: asyncio.ensure_future(work) for name, work in (("store", self.store.run()), ("join", self.join.run()))}

    async def begin(self) -> None:
        puts = [Put("networks/default", encode(DEFAULT)), Put("nodes/A", encode(Node("A", "id-A", A("198.18.0.1"))))]
        puts += [Put("networks/mesh", encode(MESH)), *(Put(record_key(block), encode(block)) for block in THEIRS)]
        await self.there.txn([], puts)
        ours = [replace(Node(name, f"id-{name}", A(f"198.18.0.{ord(name)}"))) for name in "CD"]
        puts = [Put(f"nodes/{node.name}", encode(node)) for node in ours] + [Put(f"alive/{node.name}", b"1") for node in ours]
        puts += [Put("networks/mesh", encode(MESH)), *(Put(record_key(block), encode(block)) for block in OURS)]
        await self.here.txn([], [*puts, Put("networks/default", encode(DEFAULT)), Put("kv/k", b'{"key":"k","value":"MQ=="}')])
        for name in self.nodes:
            self.start(name)
        await self.until(lambda: all("D" in node.view.snapshot.alive for node in self.nodes.values()))

    def start(self, name: str) -> None:
        self.tasks[name] = asyncio.ensure_future(self.nodes[name].run())

    async def kill(self, *names: str) -> None:
        for name in names:
            self.tasks[name].cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.tasks[name]

    async def until(self, holds: Any) -> None:
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def token(self) -> str:
        return await create_token(self.there, cluster_pin(self.pki), 600, time.time())

    async def try_to_join(self, token: str, dry_run: bool = False) -> joining.Outcome:
        return await self.nodes["C"].joining.join(f"127.0.0.1:{self.join.port}", token, dry_run, False)

    async def keys(self, store: MemoryStore, prefix: str) -> list[str]:
        return [item.key for item in (await store.list(prefix)).items]

    async def is_as_before(self) -> bool:
        there = [await self.keys(self.there, prefix) for prefix in ("nodes/", "endpoints/", "kv/")]
        blocks = [decode(Block, item.value, item.key) for store in (self.there, self.here) for item in (await store.list("blocks/")).items]
        if blocks != [*THEIRS, *OURS]:
            return False
        return there == [["nodes/A"], [], []] and await self.keys(self.here, WISH) == [] == await self.keys(self.here, SAID)


@pytest.fixture
async def two(pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    monkeypatch.setattr(joining, "SETTLE_S", 0.05)
    two = Two(pki, tmp_path)
    await two.begin()
    yield two
    await two.kill(*two.tasks)
    await two.there.close()
    await two.here.close()


async def test_all_nodes_go_and_take_everything_along(two: Two) -> None:
    token = await two.token()
    looked = await two.try_to_join(token, dry_run=True)
    assert (looked.joined, list(looked.nodes)) == (False, ["C", "D"]) and await two.is_as_before(), "a look changes nothing"
    found = await two.try_to_join(token)
    assert (found.joined, list(found.nodes)) == (True, ["C", "D"])
    assert [await two.tasks[name] for name in "CD"] == ["moved", "moved"]
    blocks = [decode(Block, item.value, item.key) for item in (await two.there.list("blocks/")).items]
    assert [(str(block.cidr), block.node) for block in blocks] == [("10.29.0.0/24", "A"), ("10.29.1.0/24", "A"), ("10.29.2.0/24", "D")]
    assert await two.keys(two.there, "nodes/") == ["nodes/A", "nodes/C", "nodes/D"]
    assert await two.keys(two.there, "kv/") == ["kv/k"] and await two.keys(two.there, "alive/") == ["alive/C", "alive/D"]
    with pytest.raises(StoreUnavailable, match="joining another cluster"):
        await two.here.txn([], [Put("kv/late", b"{}")])  # it would be lost
    assert [(two.nodes[n].paths.lib / "joining/decided.json").exists() for n in "CD"] == [True, True]


async def test_the_one_that_leads_goes_after_it_has_answered(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    real = joining._after

    async def slowly(there: Any, items: Any) -> None:
        await asyncio.sleep(1)
        await real(there, items)

    monkeypatch.setattr(joining, "_after", slowly)
    await two.try_to_join(await two.token())
    assert two.tasks["D"].done() and not two.tasks["C"].done()
    assert await two.tasks["C"] == "moved"


@pytest.mark.parametrize("spoil", ["token", "silent", "version", "elsewhere"])
async def test_what_cannot_be_leaves_both_as_they_were(two: Two, spoil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    token, error = await two.token(), "silent"
    match spoil:
        case "token":
            token, error = token.replace(token.split(".")[2], "x" * 43), "wrong, expired or used"
        case "silent":
            await two.here.txn([], [joining.Delete("alive/D")])
            await two.until(lambda: "D" not in two.nodes["C"].view.snapshot.alive)
            error = "D give no sign of life"
        case "version":
            real = joining.Joining._wish

            async def wish(self: Any, wishes: Any, pin: str) -> None:
                monkeypatch.setattr(joining, "READY_S", 0.2 if "D" in wishes else 8.0)
                await real(self, wishes, pin)

            monkeypatch.setattr(joining.Joining, "_wish", wish)
            await two.kill("D")
            error = "D: not ready"
        case "elsewhere":
            cast(Any, two.nodes["D"].joiner)._config.store = "198.18.0.9"
            error = "D: .*node.store"
    with pytest.raises((Conflict, ConfigError), match=error):
        await two.try_to_join(token)
    await two.until(lambda: not two.nodes["C"].joiner.stage.directory.exists())
    assert await two.is_as_before()
    assert (await two.here.txn([], [Put("kv/late", b"{}")])).ok, "the store takes writes"


async def test_a_conflict_that_comes_up_at_the_last_moment_withdraws_what_was_written(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    real = joining.Joining._decide

    async def late(self: Any, there: Any, plan: Any, theirs: Any, ours: Any) -> None:
        await two.there.txn([], [Put("nodes/A", b"{}"), Put("guards/networks", b"another")])
        await real(self, there, plan, theirs, ours)

    monkeypatch.setattr(joining.Joining, "_decide", late)
    with pytest.raises(Conflict, match="at the same moment"):
        await two.try_to_join(await two.token())
    assert await two.is_as_before() and two.tasks["C"].done() is False
    monkeypatch.setattr(joining.Joining, "_decide", real)


@pytest.mark.parametrize("taken", [True, False])
async def test_an_answer_that_is_lost_is_asked_for(two: Two, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transaction that decides was sent, and nobody knows its fate; then the leader's agent ends, too."""
    real, lost = RemoteStore.txn, asyncio.Event()

    async def txn(self: RemoteStore, compares: Any, ops: Any) -> TxnResult:
        if any(op.key == "nodes/C" for op in ops):
            if taken:
                await real(self, compares, ops)
            lost.set()
            await asyncio.sleep(60)
        return await real(self, compares, ops)

    monkeypatch.setattr(RemoteStore, "txn", txn)
    token = await two.token()
    work = asyncio.ensure_future(two.try_to_join(token))
    await lost.wait()
    work.cancel()
    await two.kill("C")
    monkeypatch.setattr(RemoteStore, "txn", real)
    before = two.nodes["C"]
    assert before.joiner.stage.asked
    two.here.thaw()  # as a store is that was opened anew
    before.joiner.busy = False  # as an agent is that has just started
    two.start("C")
    if taken:
        assert [await two.tasks[name] for name in "CD"] == ["moved", "moved"]
        return
    await two.until(lambda: not before.joiner.stage.asked)
    assert (await two.here.txn([], [Put("kv/late", b"{}")])).ok and not before.health.active()
    assert (await two.try_to_join(token)).joined, "the same command once more, with the same token, which was used"
