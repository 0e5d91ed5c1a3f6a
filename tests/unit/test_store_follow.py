# SPDX-License-Identifier: Apache-2.0
"""Followers of a store of this process: told of changes as they become durable, and never of the same twice or of none."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from tests.unit.test_store_server import make_pki

import plait.store.server as server_module
from plait.model.errors import Compacted, StoreUnavailable
from plait.store.api import Change, Put
from plait.store.local import HISTORY, HISTORY_BYTES
from plait.store.memory import MemoryStore
from plait.store.protocol import PART, VERSION, Changes, Frames, Hello, Watch, Welcome, client_decoder, frame
from plait.store.server import StoreServer
from plait.store.state import History, State
from plait.store.tls import ssl_context_client, ssl_context_server


class Follower:
    """Follows until it refuses; `room`: so many tellings are taken."""

    def __init__(self, store: MemoryStore, prefix: str = "", revision: int = 1, room: int = 99) -> None:
        self.told: list[tuple[Change, ...]] = []
        self._room = room
        self.task = asyncio.ensure_future(store.follow(prefix, revision, self._take))

    def _take(self, changes: tuple[Change, ...]) -> bool:
        if len(self.told) == self._room:
            return False
        self.told.append(changes)
        return True

    @property
    def keys(self) -> list[str]:
        return [change.item.key for changes in self.told for change in changes]


async def test_followers_know_what_is_durable_before_its_writer_and_get_the_same_tuple() -> None:
    store = MemoryStore()
    one, other, elsewhere = Follower(store), Follower(store), Follower(store, "b/")
    await asyncio.sleep(0)
    store.txn([], [Put("a/1", b"")])
    assert one.keys == other.keys == ["a/1"] and one.told[0] is other.told[0] and not elsewhere.told
    store.txn([], [Put("b/1", b"")])
    assert one.keys == ["a/1", "b/1"] and elsewhere.keys == ["b/1"]
    one.task.cancel()
    await asyncio.gather(one.task, return_exceptions=True)
    store.txn([], [Put("b/2", b"")])
    assert one.keys == ["a/1", "b/1"] and other.keys == ["a/1", "b/1", "b/2"] and len(store._followers) == 2
    await store.close()


async def test_one_that_takes_no_more_learns_up_to_where_it_took_all() -> None:
    store = MemoryStore()
    slow, late = Follower(store, room=1), Follower(store, revision=0)
    await asyncio.sleep(0)
    for number in range(3):
        store.txn([], [Put(f"a/{number}", b"")])
    assert await slow.task == 2 and slow.keys == ["a/0"]
    assert [change.item.key for change in store.since("", 2)[0]] == ["a/1", "a/2"]
    assert await late.task == 0 and not late.told
    await store.close()


async def test_more_than_one_look_shows_and_what_history_has_lost_are_left_to_a_look() -> None:
    store = MemoryStore(history=5)
    follower = Follower(store)
    await asyncio.sleep(0)
    commits = []
    for number in range(8):
        commit = store._working.evaluate([], [Put(f"a/{number}", b"")])
        assert commit is not None
        store._working.apply(commit)
        commits.append(commit)
    store._take(commits)
    assert await follower.task == 1 and not follower.told
    with pytest.raises(Compacted):
        store.since("", 1)
    await store.close()


async def test_a_store_that_goes_back_leaves_nobody_waiting() -> None:
    store = MemoryStore()
    store.txn([], [Put("a/1", b"")])
    follower = Follower(store, revision=2)
    await asyncio.sleep(0)
    store._reset(State(), History(1, HISTORY, HISTORY_BYTES))
    assert await follower.task == 2
    with pytest.raises(Compacted):
        store.since("", 2)
    last = Follower(store)
    await asyncio.sleep(0)
    await store.close()
    assert await last.task == 1
    with pytest.raises(StoreUnavailable):
        store.since("", 1)
    with pytest.raises(StoreUnavailable):
        await store.follow("", 1, lambda changes: True)


async def test_a_peer_that_does_not_read_is_told_nothing_that_would_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "DRAIN", 60)
    store, pki = MemoryStore(), make_pki(tmp_path)
    server = StoreServer(store, "127.0.0.1", 0, ssl_context_server(pki))
    server.open()
    task = asyncio.ensure_future(server.run())
    reader, writer = await _watching(server.port, ssl_context_client(pki))
    most = 0
    for number in range(200):
        await store.txn([], [Put(f"k/{number}", bytes(50_000))])
        await asyncio.sleep(0)
        (session,) = server._runs.values()
        most = max(most, session._writer.transport.get_write_buffer_size())
    assert 0 < most < 3 * PART
    assert await _read(reader, 200) == [f"k/{number}" for number in range(200)]
    writer.transport.abort()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.close()


async def _watching(port: int, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, limit=1024)
    writer.write(frame(Hello(VERSION, "a run")) + frame(Watch(1, "", 1)))
    await asyncio.sleep(0.3)
    return reader, writer


async def _read(reader: asyncio.StreamReader, count: int) -> list[str]:
    """The keys that a watch is told of: so many."""
    frames, keys = Frames(client_decoder), []
    async with asyncio.timeout(20):
        while len(keys) < count:
            for message in frames.feed(await reader.read(65536)):
                assert isinstance(message, Welcome | Changes)
                keys += [item[0] for _, _, item in message.changes] if isinstance(message, Changes) else []
    return keys
