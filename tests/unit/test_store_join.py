# SPDX-License-Identifier: Apache-2.0
"""Joining: a token lets in once, nobody else learns anything."""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from plait.model.cluster import Node
from plait.model.errors import ConfigError, Conflict, StoreUnavailable
from plait.store import join
from plait.store.api import Put
from plait.store.codec import decode, encode
from plait.store.join import join_cluster, peek_cluster, split_address
from plait.store.joinserver import ATTEMPTS, AskCa, JoinServer
from plait.store.memory import MemoryStore
from plait.store.pki import init_cluster
from plait.store.protocol import frame
from plait.store.remote import RemoteStore
from plait.store.server import StoreServer
from plait.store.tls import cluster_pin, ssl_context_client, ssl_context_join_server, ssl_context_server
from plait.store.token import TokenRecord, create_token, parse_token


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pki")
    init_cluster(directory, "A", "id-a", ip_address("127.0.0.1"))
    return directory


class Cluster:
    """A first node: store, store server, join server."""

    def __init__(self, pki: Path) -> None:
        self.pki, self.store, self.wall = pki, MemoryStore(), time.time()
        self.server = StoreServer(self.store, "127.0.0.1", 0, ssl_context_server(pki))
        self.server.open()
        self.join = JoinServer(
            self.store,
            pki,
            "127.0.0.1",
            0,
            ssl_context_join_server(pki),
            store_port=self.server.port,
            info={"cluster": "c"},
            now=lambda: self.wall,
        )
        self.join.open()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.join.port}"

    async def token(self, ttl: float = 600) -> str:
        return await create_token(self.store, cluster_pin(self.pki), ttl, self.wall)


@pytest.fixture
async def cluster(pki: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(pki)
    tasks = [asyncio.ensure_future(cluster.server.run()), asyncio.ensure_future(cluster.join.run())]
    yield cluster
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await cluster.store.close()


async def test_who_has_a_token_sees_what_may_conflict_and_the_token_stays_good(cluster: Cluster, tmp_path: Path) -> None:
    many = {f"endpoints/A/{n}": b"x" * 1000 for n in range(1000)}  # several parts
    secret = {"tokens/other": b"{}", "sessions/s": b"{}", "alive/A": b"1"}
    for part in (many, secret, {"nodes/A": b"{}", "kv/k": b'{"key":"k","value":"c2VjcmV0"}'}):
        await cluster.store.txn([], [Put(key, value) for key, value in part.items()])
    token = await cluster.token()
    for _ in range(2):
        seen = await peek_cluster(cluster.address, token)
        assert seen.keys() == {*many, "nodes/A", "kv/k"} and seen["endpoints/A/7"] == many["endpoints/A/7"]
        assert b"c2VjcmV0" not in seen["kv/k"] and len(seen["kv/k"]) == 32, "of a value it is enough to know whether it is the same"
    await join_cluster(cluster.address, token, "B", "id-b", tmp_path / "pki")
    with pytest.raises(ConfigError, match="wrong, expired or used"):
        await peek_cluster(cluster.address, token)


async def test_who_has_none_sees_nothing(cluster: Cluster) -> None:
    token = parse_token(await cluster.token())
    with pytest.raises(ConfigError, match="wrong, expired or used"):
        await peek_cluster(cluster.address, str(replace(token, secret="x" * 43)))
    cluster.wall += 1000
    with pytest.raises(ConfigError, match="wrong, expired or used"):
        await peek_cluster(cluster.address, str(token))


async def test_an_answer_without_an_end_is_given_up(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "MAX_ANSWER", 4000)
    await cluster.store.txn([], [Put(f"nodes/{n}", b"x" * 1000) for n in range(9)])
    with pytest.raises(ConfigError, match="more than 4000 bytes"):
        await peek_cluster(cluster.address, await cluster.token())


async def test_a_joiner_gets_a_certificate_that_the_store_takes(cluster: Cluster, tmp_path: Path) -> None:
    result = await join_cluster(cluster.address, await cluster.token(), "B", "id-b", tmp_path / "pki")
    assert (result.store_host, result.store_port, result.info) == ("127.0.0.1", cluster.server.port, {"cluster": "c"})
    for name in ("ca.crt", "node.crt", "node.key"):
        assert stat.S_IMODE(os.stat(tmp_path / "pki" / name).st_mode) == 0o600
    client = RemoteStore(result.store_host, result.store_port, ssl_context_client(tmp_path / "pki"))
    assert (await client.txn([], [Put("a", b"1")])).ok
    await client.close()


async def test_a_token_is_good_once_also_for_many_at_the_same_time(cluster: Cluster, tmp_path: Path) -> None:
    token = await cluster.token()
    joins = [join_cluster(cluster.address, token, f"N{n}", f"id-{n}", tmp_path / str(n)) for n in range(3)]
    results = await asyncio.gather(*joins, return_exceptions=True)
    failed = [result for result in results if isinstance(result, BaseException)]
    assert len(failed) == 2 and all(isinstance(error, ConfigError) and "plait token create" in str(error) for error in failed)
    assert (await cluster.store.list("tokens/")).items == ()
    with pytest.raises(ConfigError, match="wrong, expired or used"):
        await join_cluster(cluster.address, token, "Z", "id-z", tmp_path / "z")
    assert not (tmp_path / "z" / "node.crt").exists()


async def test_a_wrong_or_expired_token_gets_no_reason(cluster: Cluster, tmp_path: Path) -> None:
    token = await cluster.token()
    head, number, secret, pin = token.split(".")
    wrong = ".".join((head, number, secret[::-1], pin))
    with pytest.raises(ConfigError, match="wrong, expired or used"):
        await join_cluster(cluster.address, wrong, "B", "id-b", tmp_path)
    cluster.wall += 601
    with pytest.raises(ConfigError, match="wrong, expired or used"):
        await join_cluster(cluster.address, token, "B", "id-b", tmp_path)
    cluster.wall -= 601
    await join_cluster(cluster.address, token, "B", "id-b", tmp_path)


async def test_the_secret_is_not_in_the_store(cluster: Cluster) -> None:
    token = parse_token(await cluster.token())
    (item,) = (await cluster.store.list("tokens/")).items
    assert token.secret.encode() not in item.value and item.lease != 0
    assert decode(TokenRecord, item.value, item.key).uses == 1


async def test_an_unused_token_leaves_the_store(cluster: Cluster) -> None:
    await cluster.token(0.2)
    await asyncio.sleep(0.5)
    assert (await cluster.store.list("tokens/")).items == ()


async def test_a_pin_of_another_cluster_stops_the_joiner_before_it_tells_the_secret(cluster: Cluster, tmp_path: Path) -> None:
    token = await cluster.token()
    foreign = token.rpartition(".")[0] + "." + "A" * 43
    with pytest.raises(ConfigError, match="nothing secret was sent"):
        await join_cluster(cluster.address, foreign, "B", "id-b", tmp_path)
    await join_cluster(cluster.address, token, "B", "id-b", tmp_path)


async def test_a_name_taken_by_another_id_is_refused_naming_both(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.store.txn([], [Put("nodes/B", encode(Node("B", "id-old", ip_address("127.0.0.1"))))])  # type: ignore[arg-type]
    token = await cluster.token()
    with pytest.raises(Conflict, match=r"id-old.*id-new"):
        await join_cluster(cluster.address, token, "B", "id-new", tmp_path / "new")
    await join_cluster(cluster.address, token, "B", "id-old", tmp_path / "old")


async def test_two_tokens_do_not_give_one_name_to_two_hosts(cluster: Cluster, tmp_path: Path) -> None:
    tokens = [await cluster.token(), await cluster.token()]
    joins = [join_cluster(cluster.address, token, "B", f"id-{n}", tmp_path / str(n)) for n, token in enumerate(tokens)]
    results = await asyncio.gather(*joins, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Conflict", "JoinResult"]


async def test_a_joined_host_does_not_join_over_its_certificate(cluster: Cluster, pki: Path) -> None:
    with pytest.raises(Conflict, match="already"):
        await join_cluster(cluster.address, await cluster.token(), "B", "id-b", pki)


async def answer_to(port: int, data: bytes) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(data)
        async with asyncio.timeout(5):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.transport.abort()


async def test_who_knows_no_token_learns_nothing(cluster: Cluster) -> None:
    for data in (b"GET / HTTP/1.1\r\n\r\n", frame(AskCa("000000000000")), b"\0\0\0\1\x90", b"\xff" * 100):
        assert await answer_to(cluster.join.port, data) == b""


async def test_attempts_are_limited_per_source(cluster: Cluster, tmp_path: Path) -> None:
    token = await cluster.token()
    for _ in range(ATTEMPTS):
        await answer_to(cluster.join.port, frame(AskCa("x")))
    with pytest.raises(ConfigError, match="closed the connection"):
        await join_cluster(cluster.address, token, "B", "id-b", tmp_path)


async def test_no_join_server_is_said_so(tmp_path: Path) -> None:
    token = str(parse_token(f"plait1.aa.bb.{'A' * 43}"))
    with pytest.raises(StoreUnavailable, match="Connection refused; is its agent running"):
        await join_cluster("127.0.0.1:1", token, "B", "id-b", tmp_path)


@pytest.mark.parametrize(
    "text", ["", "plait1.a.b", "plait2.a.b." + "A" * 43, "plait1.a.b.c", "plait1.a..b." + "A" * 43, "plait1.ä.b." + "A" * 43]
)
def test_a_malformed_token_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ConfigError, match="copy the whole of it"):
        parse_token(text)


@pytest.mark.parametrize("text", ["", ":1", "a:", "a:0", "a:65536", "a:b:1", "a:x"])
def test_a_malformed_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        split_address(text, 7471)


@pytest.mark.parametrize("ttl", [0, -1, 86401.0, float("nan")])
async def test_a_senseless_lifetime_is_refused(ttl: float) -> None:
    with pytest.raises(ConfigError):
        await create_token(MemoryStore(), "A" * 43, ttl, 0.0)
