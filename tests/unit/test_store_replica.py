# SPDX-License-Identifier: Apache-2.0
"""The replica follows, survives and never drops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from plait.model.errors import StoreUnavailable
from plait.store.api import Change, Delete, Listing, Put
from plait.store.memory import MemoryStore
from plait.store.replica import Replica


class Switchable(MemoryStore):
    """A store that can be out of reach."""

    def __init__(self, history: int = 10_000) -> None:
        super().__init__(history=history)
        self.away = False

    def cut(self) -> None:
        self.away = True
        self._tell(self._history.head)

    def _check_open(self) -> None:
        super()._check_open()
        if self.away:
            raise StoreUnavailable("away")


class Routed:
    """A store seam whose target can be exchanged: a server that comes back with other data."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(replica: Replica) -> AsyncIterator[Replica]:
    task = asyncio.ensure_future(replica.run())
    try:
        yield replica
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def make(store: object, tmp_path: Path, save_delay: float = 0.05) -> Replica:
    return Replica(store, tmp_path / "replica", jitter=lambda low, high: low, save_delay=save_delay)  # type: ignore[arg-type]


async def same(replica: Replica, store: MemoryStore) -> None:
    async with asyncio.timeout(5):
        while (await store.list("")) != replica.list(""):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_it_follows_in_order_and_tells_each_change_once(tmp_path: Path) -> None:
    store = MemoryStore()
    await store.txn([], [Put("a/1", b"1"), Put("b/1", b"1")])
    replica, told, links = make(store, tmp_path), list[Change](), list[bool]()
    replica.subscribe(lambda changes, revision: told.extend(changes), links.append)
    assert not replica.synced and not replica.connected
    async with running(replica):
        await until(lambda: replica.synced)
        for at in range(20):
            await store.txn([], [Put("a/2", str(at).encode())])
        await store.txn([], [Delete("a/1")])
        await same(replica, store)
        assert replica.connected and links == [True]
        assert [change.item.value for change in told if change.item.key == "a/2"] == [str(at).encode() for at in range(20)]
        assert [change.item.key for change in told if change.kind == "delete"] == ["a/1"]
        assert [item.key for item in replica.list("a/").items] == ["a/2"]
    assert links == [True, False] and not replica.connected


async def test_it_keeps_everything_while_the_store_is_away_and_tells_the_difference_after(tmp_path: Path) -> None:
    store = Switchable()
    await store.txn([], [Put("gone", b""), Put("kept", b""), Put("changed", b"1")])
    replica, told, links = make(store, tmp_path), list[Change](), list[bool]()
    async with running(replica):
        await until(lambda: replica.connected)
        replica.subscribe(lambda changes, revision: told.extend(changes), links.append)
        store.cut()
        await until(lambda: not replica.connected)
        assert sorted(replica.items) == ["changed", "gone", "kept"] and replica.synced and told == []
        store.away = False
        await store.txn([], [Delete("gone"), Put("changed", b"2"), Put("new", b"")])
        await same(replica, store)
        assert [(change.kind, change.item.key) for change in told] == [("delete", "gone"), ("put", "changed"), ("put", "new")]
        assert links == [False, True]


async def test_a_store_that_lost_data_is_listed_again(tmp_path: Path) -> None:
    old, new = MemoryStore(), MemoryStore()
    for at in range(10):
        await old.txn([], [Put(f"k/{at}", b"")])
    await new.txn([], [Put("k/3", b"other")])
    routed = Routed(old)
    replica = make(routed, tmp_path)
    async with running(replica):
        await same(replica, old)
        routed.store = new
        await old.close()
        await same(replica, new)
        assert replica.revision == 2 and replica.connected


async def test_compaction_under_way_loses_nothing(tmp_path: Path) -> None:
    store = MemoryStore(history=10)
    replica = make(store, tmp_path)
    async with running(replica):
        await until(lambda: replica.connected)
        for at in range(100):
            await store.txn([], [Put(f"k/{at % 30}", str(at).encode())])
        await store.txn([], [Delete("k/1", prefix=True)])
        await same(replica, store)
        assert replica.connected


async def test_the_disk_copy_is_written_after_a_while_and_at_the_end(tmp_path: Path) -> None:
    store = MemoryStore()
    await store.txn([], [Put("a", b"1")])
    replica = make(store, tmp_path, 0.1)
    async with running(replica):
        await until(lambda: (tmp_path / "replica").exists())
    late = make(store, tmp_path, 60)
    async with running(late):
        await until(lambda: late.synced)
        await store.txn([], [Put("b", b"2")])
        await same(late, store)
    again = make(store, tmp_path)
    assert again.load() and not again.synced and again.revision == 3
    assert again.list("") == Listing((await store.list("")).items, 3)


async def test_what_was_loaded_but_is_gone_is_told_as_deleted(tmp_path: Path) -> None:
    store = MemoryStore()
    await store.txn([], [Put("a", b"1"), Put("b", b"1")])
    async with running(make(store, tmp_path, 0.01)):
        await until(lambda: (tmp_path / "replica").exists())
    await store.txn([], [Delete("a")])
    replica, told = make(store, tmp_path), list[Change]()
    replica.subscribe(lambda changes, revision: told.extend(changes))
    assert replica.load()
    async with running(replica):
        await until(lambda: replica.synced)
    assert [(change.kind, change.item.key) for change in told] == [("delete", "a")]


async def test_a_missing_or_damaged_disk_copy_is_no_copy(tmp_path: Path) -> None:
    replica = make(MemoryStore(), tmp_path)
    assert not replica.load()
    for content in (b"", b"\xff" * 20, b"\x93\x63\x01\x90"):
        (tmp_path / "replica").write_bytes(content)
        assert not replica.load() and not replica.items


async def test_a_disk_that_refuses_stops_nothing(tmp_path: Path) -> None:
    store = MemoryStore()
    replica = Replica(store, tmp_path / "absent" / "replica", save_delay=0.01)
    async with running(replica):
        await store.txn([], [Put("a", b"")])
        await same(replica, store)
        await asyncio.sleep(0.1)
        await store.txn([], [Put("b", b"")])
        await same(replica, store)


async def test_the_first_copy_is_written_at_once(tmp_path: Path) -> None:
    """A host that is killed right after it has joined must know its cluster when it starts again without the store."""
    store = MemoryStore()
    await store.txn([], [Put("networks/default", b"{}")])
    replica = make(store, tmp_path, save_delay=3600)
    task = asyncio.create_task(replica.run())
    async with asyncio.timeout(5):
        while not (tmp_path / "replica").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    again = make(store, tmp_path)
    assert again.load() and "networks/default" in again.items
    await store.close()
