# SPDX-License-Identifier: Apache-2.0
"""Two runs of one node at the store, and the store's node that goes to the others."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from plait.agent import storeplace
from plait.agent.config import parse_config
from plait.agent.health import Health
from plait.agent.hostaddress import HostAddress
from plait.agent.identity import Identity, load_identity, placed, save_identity
from plait.agent.storeplace import IN_USE, StorePlace
from plait.agent.view import View
from plait.model.cluster import Node
from plait.model.errors import ConfigError, Conflict, StoreUnavailable
from plait.services.directory import SERVER_META
from plait.store import knock as knocks
from plait.store import remote
from plait.store import server as server_module
from plait.store.api import Put
from plait.store.knock import Knocked, KnockServer, knock
from plait.store.memory import MemoryStore
from plait.store.pki import init_cluster, make_csr, sign_csr
from plait.store.remote import RemoteStore
from plait.store.server import StoreServer
from plait.store.tls import CA_CERT, NODE_CERT, ssl_context_client, ssl_context_server

LOOPBACK = ip_address("127.0.0.1")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of A, the first node, and in the folder `b` those of B."""
    folder = tmp_path_factory.mktemp("pki")
    init_cluster(folder, "A", "id-a", LOOPBACK)
    b = folder / "b"
    csr = make_csr(b)
    (b / NODE_CERT).write_bytes(sign_csr(folder, csr, "B", "id-b"))
    (b / CA_CERT).write_bytes((folder / CA_CERT).read_bytes())
    return folder


@pytest.fixture
async def port(pki: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """Of a store server whose run is "first"."""
    monkeypatch.setattr(server_module, "FRESH", 0.05)
    monkeypatch.setattr("plait.store.link.PING", 0.1)
    store = MemoryStore()
    server = StoreServer(store, "127.0.0.1", 0, ssl_context_server(pki), run="first")
    server.open()
    task = asyncio.ensure_future(server.run())
    yield server.port
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.close()


@contextlib.asynccontextmanager
async def client(pki: Path, port: int, run: str) -> AsyncIterator[RemoteStore]:
    store = RemoteStore("127.0.0.1", port, ssl_context_client(pki / "b"), run=run, jitter=lambda low, high: low)
    try:
        yield store
    finally:
        await store.close()


async def test_a_second_run_of_a_node_is_refused_while_the_first_lives_and_let_in_afterwards(pki: Path, port: int) -> None:
    async with client(pki, port, "one") as one, client(pki, port, "two") as two:
        assert await one.get("a") is None and one.server_run == "first"
        with pytest.raises(Conflict, match=r"node 'B', and so does another one that is connected from 127\.0\.0\.1"):
            await two.get("a")
        assert (await one.txn([], [Put("a", b"")])).ok, "the first one feels nothing"
        await one.close()
        await asyncio.sleep(0.2)
        assert await two.get("a") is not None


async def test_who_was_let_in_before_is_told_in_words_and_goes_on_trying(pki: Path, port: int) -> None:
    async with client(pki, port, "one") as one, client(pki, port, "two") as two:
        await one.get("a")
        one.connect_anew("a test")
        await two.get("a")
        with pytest.raises(StoreUnavailable, match="one is a copy"):
            await one.get("a")


async def test_one_run_may_come_again_though_its_old_connection_seems_to_live(pki: Path, port: int) -> None:
    async with client(pki, port, "one") as one, client(pki, port, "one") as again:
        await one.get("a")
        assert await again.get("a") is None
        await asyncio.sleep(0.1)
        assert one.server_run == "", "the old connection was ended"


async def test_a_peer_that_says_nothing_more_does_not_keep_its_successor_out(pki: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "SILENCE", 0.5)
    async with client(pki, port, "one") as one, client(pki, port, "two") as two:
        await one.get("a")
        assert one._link is not None and one._link._timer is not None
        one._link._timer.cancel()  # as after a power cut: no end, no word
        for _ in range(50):
            with contextlib.suppress(StoreUnavailable):  # it has to come again, but is never taken for a copy
                assert await two.get("a") is None
                break
            await asyncio.sleep(0.02)
        assert two.server_run == "first"


async def test_what_a_run_said_before_its_end_is_no_sign_of_life(pki: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that is killed and started again at once, and whose last words come in after the question."""
    monkeypatch.setattr(server_module, "FRESH", 0.2)
    async with client(pki, port, "one") as one, client(pki, port, "two") as two:
        await one.get("a")
        coming = asyncio.ensure_future(two.get("a"))
        await asyncio.sleep(0.05)
        await one.get("b")
        await one.close()
        assert await coming is None


async def test_without_a_run_nobody_is_refused(pki: Path, port: int) -> None:
    async with client(pki, port, "one") as one, client(pki, port, "") as other:
        await one.get("a")
        assert await other.get("a") is None and await one.get("a") is None


async def test_a_place_that_is_told_while_another_is_tried_is_the_next(pki: Path, port: int) -> None:
    async with client(pki, 1, "one") as one:
        trying = asyncio.ensure_future(one.get("a"))
        await asyncio.sleep(0)
        one.look_at("127.0.0.1", port)
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1"):
            await trying
        await asyncio.sleep(0.15)  # the pause after a failure
        assert await one.get("a") is None and one.place == ("127.0.0.1", port)


async def test_where_the_store_is_not_it_was_looked_for_in_vain_and_both_places_are_tried_in_turn(
    pki: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "HOLD", 0.0)
    async with client(pki, port, "one") as one:
        await one.get("a")
        one.connect_anew("a test")
        one.look_at("127.0.0.1", 1)
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1"):
            await one.get("a")
        one.connect_anew("no pause")
        assert await one.get("a") is None and one.place == ("127.0.0.1", port)


async def test_a_call_right_after_a_loss_tries_both_places(pki: Path, port: int) -> None:
    async with client(pki, port, "one") as one:
        await one.get("a")
        one.connect_anew("a test")
        one.look_at("127.0.0.1", 1)
        assert await one.get("a") is None and one.place == ("127.0.0.1", port)


# --- knocks


@contextlib.asynccontextmanager
async def door(pki: Path, answer: Callable[[str, str], Awaitable[Knocked | None]]) -> AsyncIterator[int]:
    server = KnockServer("127.0.0.1", 0, ssl_context_server(pki / "b"), answer)
    server.open()
    task = asyncio.ensure_future(server.run())
    yield server.port
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def place(pki: Path, folder: Path, store: object, connected: bool = False) -> StorePlace:
    """Of node B of a cluster whose first node is A."""
    view, health = View("B"), Health(lambda: 0.0)
    view.put(Node("A", "id-a", LOOPBACK, meta={SERVER_META: "true"}))
    view.put(Node("B", "id-b", LOOPBACK))
    identity = Identity("B", "id-b", LOOPBACK, "127.0.0.1:1")
    save_identity(folder / "identity.json", identity)
    home = HostAddress(LOOPBACK, True, object(), health)  # type: ignore[arg-type]
    return StorePlace(identity, folder / "identity.json", pki / "b", store, "run-b", view, home, health, lambda: connected)  # type: ignore[arg-type]


async def test_a_knock_of_the_stores_node_has_the_store_looked_for_there_and_kept(pki: Path, port: int, tmp_path: Path) -> None:
    async with client(pki, 1, "one") as store:
        at = place(pki, tmp_path, store)
        async with door(pki, at.answer) as where:
            assert await knock(LOOPBACK, "first", ssl_context_client(pki), where) == Knocked()
            assert store.place == ("127.0.0.1", server_module.PORT), "from where the knock came, at the store's port"
            with pytest.raises(StoreUnavailable, match="closed the connection"):
                await knock(LOOPBACK, "first", ssl_context_client(pki / "b"), where)  # B's certificate, not A's
        store.look_at("127.0.0.1", port)
        await store.get("a")
        at.reached()
        assert load_identity(tmp_path / "identity.json").store == f"127.0.0.1:{port}"


async def test_a_node_that_follows_a_living_store_says_which(pki: Path, port: int, tmp_path: Path) -> None:
    async with client(pki, port, "one") as store, door(pki, place(pki, tmp_path, store, connected=True).answer) as where:
        assert await knock(LOOPBACK, "copy", ssl_context_client(pki), where) == Knocked("first", f"127.0.0.1:{port}")
        assert store.place == ("127.0.0.1", port), "it stays where it is"


async def test_a_node_whose_store_does_not_answer_follows_the_knock(
    pki: Path, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storeplace, "ANSWER_S", 0.05)
    async with client(pki, port, "one") as store, door(pki, place(pki, tmp_path, store, connected=True).answer) as where:
        await store.get("a")

        async def silent(key: str) -> None:
            await asyncio.sleep(5)

        monkeypatch.setattr(store, "get", silent)
        assert await knock(LOOPBACK, "first", ssl_context_client(pki), where) == Knocked()
        assert store.place == ("127.0.0.1", server_module.PORT) and store.server_run == ""


async def test_a_copy_of_the_stores_node_is_refused_and_a_restarted_one_is_not(
    pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = Health(lambda: 0.0)
    view = View("A")
    view.put(Node("A", "id-a", LOOPBACK, meta={SERVER_META: "true"}))
    view.put(Node("B", "id-b", LOOPBACK))
    home = HostAddress(LOOPBACK, True, object(), health)  # type: ignore[arg-type]
    identity = Identity("A", "id-a", LOOPBACK)
    at = StorePlace(identity, tmp_path / "i", pki, MemoryStore(), "run-a", view, home, health, lambda: True)
    followed = Knocked("another", "127.0.0.9:7470")

    async def answer(address: object, run: str, context: object) -> Knocked:
        return followed

    monkeypatch.setattr(storeplace, "knock", answer)
    with pytest.raises(Conflict, match=r"node 'A', which carries the store.*node 'B' follows that at 127\.0\.0\.9:7470"):
        await at.refuse_copy()
    calling = asyncio.ensure_future(at._call())
    await asyncio.sleep(0.05)
    calling.cancel()
    assert [active.condition.code for active in health.active()] == [IN_USE], "one that runs goes on, and says so"
    followed = Knocked("run-a", "127.0.0.1:7470")
    await at.refuse_copy()
    followed = Knocked()
    await at.refuse_copy()


async def test_junk_and_silence_at_the_door_end_without_an_answer(pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knocks, "TIMEOUT", 0.2)
    asked: list[str] = []

    async def never(node_id: str, source: str) -> Knocked | None:
        asked.append(node_id)
        return None

    async with door(pki, never) as where:
        for junk in (b"\0\0\0\5junk!", b""):
            reader, writer = await asyncio.open_connection("127.0.0.1", where, ssl=ssl_context_client(pki), server_hostname="plait")
            writer.write(junk)
            assert await reader.read() == b""
            writer.transport.abort()
    assert not asked


@pytest.mark.parametrize(("told", "found"), [("none", "192.0.2.1:7470"), ("192.0.2.9", "192.0.2.9:7470"), ("a.example:99", "a.example:99")])
def test_the_configuration_may_tell_where_the_store_is(told: str, found: str, tmp_path: Path) -> None:
    config = parse_config({"node": {"store": told}}, "plait.toml")
    save_identity(tmp_path / "i", Identity("B", "id-b", LOOPBACK, "192.0.2.1:7470"))
    assert placed(load_identity(tmp_path / "i"), config).store == found
    assert placed(Identity("A", "id-a", LOOPBACK), config).store == "", "who carries it needs no such word"
    assert json.loads((tmp_path / "i").read_text())["store"] == "192.0.2.1:7470"


def test_a_place_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        placed(Identity("B", "id-b", LOOPBACK, "192.0.2.1:7470"), parse_config({"node": {"store": "a:b:c"}}, "plait.toml"))
