# SPDX-License-Identifier: Apache-2.0
"""One suite over every store: memory, SQLite, and both behind the wire protocol with TLS on the loopback address."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from plait.model.errors import Compacted, ConfigError, NotFound, StoreUnavailable
from plait.store.api import Change, Compare, Delete, Put, Store
from plait.store.memory import MemoryStore
from plait.store.pki import init_cluster
from plait.store.remote import RemoteStore
from plait.store.server import StoreServer
from plait.store.sqlite import SqliteStore
from plait.store.tls import ssl_context_client, ssl_context_server

HISTORY = 50


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pki")
    init_cluster(directory, "A", str(uuid.uuid4()), ip_address("127.0.0.1"))
    return directory


@asynccontextmanager
async def served(store: Store, pki: Path) -> AsyncIterator[RemoteStore]:
    server = StoreServer(store, "127.0.0.1", 0, ssl_context_server(pki))
    server.open()
    serving = asyncio.ensure_future(server.run())
    client = RemoteStore("127.0.0.1", server.port, ssl_context_client(pki))
    try:
        yield client
    finally:
        await client.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


@pytest.fixture(params=["memory", "sqlite", "remote-memory", "remote-sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, pki: Path) -> AsyncIterator[Store]:
    async with AsyncExitStack() as stack:
        local: MemoryStore | SqliteStore
        if request.param.endswith("memory"):
            local = MemoryStore(history=HISTORY)
        else:
            local = await SqliteStore.open(tmp_path / "store.db", history=HISTORY)
        stack.push_async_callback(local.close)
        yield await stack.enter_async_context(served(local, pki)) if request.param.startswith("remote") else local


async def put(store: Store, *pairs: str) -> int:
    return (await store.txn([], [Put(key, b"v") for key in pairs])).revision


async def take(store: Store, prefix: str, after: int, upto: int) -> list[Change]:
    """Changes until one of revision `upto` has come."""
    taken: list[Change] = []
    async with asyncio.timeout(10), aclosing(store.watch(prefix, after)) as batches:
        async for batch in batches:
            assert batch
            taken.extend(batch)
            if taken[-1].revision >= upto:
                break
    return taken


async def test_an_empty_store_has_a_revision_and_nothing_else(store: Store) -> None:
    listing = await store.list("")
    assert listing.items == () and listing.revision == 1
    assert await store.get("a") is None


async def test_an_item_tells_when_it_was_created_and_modified(store: Store) -> None:
    first = await put(store, "a")
    second = (await store.txn([], [Put("a", b"w")])).revision
    item = await store.get("a")
    assert second == first + 1
    assert item is not None and (item.value, item.create_revision, item.mod_revision, item.lease) == (b"w", first, second, 0)


async def test_a_listing_is_in_byte_order_and_holds_the_prefix_only(store: Store) -> None:
    keys = ["b/2", "b/10", "b/ä", "b/\U0001f600", "b/￼", "a", "c", "b", "b0"]
    await put(store, *keys)
    listing = await store.list("b/")
    wanted = sorted((key for key in keys if key.startswith("b/")), key=str.encode)
    assert [item.key for item in listing.items] == wanted
    assert listing.revision == 2


async def test_a_large_listing_and_a_large_change_arrive_whole(store: Store) -> None:
    value = bytes(300_000)
    for at in range(8):
        await store.txn([], [Put(f"k/{at}", value)])
    assert [len(item.value) for item in (await store.list("k/")).items] == [300_000] * 8
    before = (await store.list("")).revision
    gone = await store.txn([], [Delete("k/", prefix=True)])
    changes = await take(store, "k/", before, gone.revision)
    assert [(change.kind, change.item.key, len(change.item.value)) for change in changes] == [
        ("delete", f"k/{at}", 300_000) for at in range(8)
    ]


async def test_a_transaction_holds_only_if_every_compare_does(store: Store) -> None:
    made = await store.txn([Compare("a", 0)], [Put("a", b"1")])
    assert made.ok
    refused = await store.txn([Compare("a", made.revision), Compare("b", 7)], [Put("a", b"2"), Put("c", b"3")])
    assert not refused.ok and refused.revision == made.revision
    item = await store.get("a")
    assert item is not None and item.value == b"1" and await store.get("c") is None
    assert not (await store.txn([Compare("a", 0)], [Put("a", b"2")])).ok
    assert (await store.txn([Compare("a", made.revision)], [Put("a", b"2")])).ok


async def test_only_one_of_many_at_once_wins_a_compare(store: Store) -> None:
    results = await asyncio.gather(*(store.txn([Compare("a", 0)], [Put("a", str(n).encode())]) for n in range(20)))
    assert [result.ok for result in results].count(True) == 1


async def test_a_prefix_deletion_takes_all_below_and_nothing_beside(store: Store) -> None:
    await put(store, "a/1", "a/2", "ab", "a")
    result = await store.txn([], [Delete("a/", prefix=True)])
    assert result.ok and [item.key for item in (await store.list("")).items] == ["a", "ab"]


async def test_what_changes_nothing_makes_no_revision(store: Store) -> None:
    before = await put(store, "a")
    for ops in ([], [Delete("b")], [Delete("b/", prefix=True)]):
        assert (await store.txn([], ops)).revision == before
    assert (await store.list("")).revision == before
    assert await put(store, "a") == before + 1, "a put of an equal value is a change"


async def test_the_last_operation_on_a_key_counts(store: Store) -> None:
    before = await put(store, "a/old", "a/kept")
    result = await store.txn([], [Delete("a/", prefix=True), Put("a/kept", b"new"), Put("a/x", b"1"), Delete("a/x")])
    (item,) = (await store.list("a/")).items
    assert (item.key, item.value, item.create_revision) == ("a/kept", b"new", result.revision), "deleted and put again it is new"
    changes = await take(store, "a/", before, result.revision)
    assert sorted((change.kind, change.item.key) for change in changes) == [("delete", "a/old"), ("put", "a/kept")]


async def test_bad_keys_and_too_large_transactions_are_refused(store: Store) -> None:
    for key in ("", "a\0b", "k" * 2000, "\ud800"):
        with pytest.raises(ConfigError):
            await store.txn([], [Put(key, b"")])
        with pytest.raises(ConfigError):
            await store.txn([Compare(key, 0)], [Put(key, b"")])
    with pytest.raises(ConfigError, match="split"):
        await store.txn([], [Put(f"k{n}", bytes(1024 * 1024)) for n in range(3)])
    with pytest.raises(ConfigError, match="split"):
        await store.txn([Compare("k", 0)], [Put("k", bytes(3 * 1024 * 1024))])
    assert (await store.list("")).revision == 1


async def test_a_watch_tells_every_change_of_its_prefix_from_its_revision(store: Store) -> None:
    await put(store, "a/1")
    start = await put(store, "a/2")
    await put(store, "b")
    await store.txn([], [Delete("a/1")])
    last = await put(store, "a/2")
    changes = await take(store, "a/", start, last)
    assert [(change.kind, change.item.key, change.revision) for change in changes] == [("delete", "a/1", 5), ("put", "a/2", 6)]
    assert changes[0].item.value == b"v"


async def test_watches_see_no_gap_and_no_repetition_under_concurrent_writers(store: Store) -> None:
    async def write(name: str) -> None:
        for at in range(10):
            await put(store, f"w/{name}", f"w/{name}/{at}")

    watching = [asyncio.ensure_future(take(store, "w/", 1, 41)) for _ in range(3)]
    await asyncio.sleep(0.05)
    await asyncio.gather(*(write(name) for name in "abcd"))
    for watch in watching:
        assert [change.revision for change in await watch] == [revision for revision in range(2, 42) for _ in range(2)]
    assert (await store.list("")).revision == 41


async def test_a_watch_from_before_the_history_or_from_the_future_is_compacted(store: Store) -> None:
    for _ in range(2 * HISTORY):
        last = await put(store, "a")
    with pytest.raises(Compacted, match="list again"):
        await take(store, "", 1, last)
    with pytest.raises(Compacted):
        await take(store, "", last + 1, last)
    assert await take(store, "", last - 1, last)


async def test_keys_of_a_lease_go_when_it_ends(store: Store) -> None:
    lease = await store.grant(0.4)
    start = (await store.txn([], [Put("alive/a", b"", lease), Put("alive/b", b"", lease), Put("other", b"")])).revision
    item = await store.get("alive/a")
    assert item is not None and item.lease == lease
    changes = await take(store, "", start, start + 1)
    assert [(change.kind, change.item.key) for change in changes] == [("delete", "alive/a"), ("delete", "alive/b")]
    assert not await store.keepalive(lease)
    with pytest.raises(NotFound, match="grant a new one"):
        await store.txn([], [Put("alive/a", b"", lease)])


async def test_a_lease_that_is_renewed_stays(store: Store) -> None:
    lease = await store.grant(0.6)
    await store.txn([], [Put("a", b"", lease)])
    for _ in range(6):
        await asyncio.sleep(0.2)
        assert await store.keepalive(lease)
    assert await store.get("a") is not None


async def test_a_key_put_again_without_the_lease_outlives_it(store: Store) -> None:
    lease = await store.grant(60)
    await store.txn([], [Put("a", b"", lease), Put("b", b"", lease)])
    await store.txn([], [Put("a", b"")])
    await store.revoke(lease)
    await store.revoke(lease)
    assert [item.key for item in (await store.list("")).items] == ["a"]


async def test_a_senseless_lease_is_refused(store: Store) -> None:
    for ttl in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ConfigError):
            await store.grant(ttl)
    assert not await store.keepalive(12345)


async def test_close_frees_whoever_waits(store: Store) -> None:
    async def watch() -> None:
        async for _ in store.watch("", 1):
            raise AssertionError("nothing changed")

    waiting = [asyncio.ensure_future(watch()) for _ in range(3)]
    await asyncio.sleep(0.1)
    await store.close()
    await store.close()
    async with asyncio.timeout(2):
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        await store.get("a")
