# SPDX-License-Identifier: Apache-2.0
"""What only the store on disk promises: durable before the answer, leases across restarts, failed writes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import stat
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from plait.model.errors import Compacted, Conflict, StoreUnavailable
from plait.store import database
from plait.store.api import Change, Compare, Delete, Put, TxnResult
from plait.store.database import Database
from plait.store.sqlite import SqliteStore
from plait.store.state import Commit, History, State

WRITER = """
import asyncio, sys
from pathlib import Path
from plait.store.api import Put
from plait.store.sqlite import SqliteStore

async def write(store, name):
    for at in range(100_000):
        result = await store.txn([], [Put(f"k/{name}/{at}", b"v"), Put(f"last/{name}", str(at).encode())])
        print(name, at, result.revision, flush=True)

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    await asyncio.gather(*(write(store, name) for name in "abcd"))

asyncio.run(main())
"""


async def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path, chance = tmp_path / "store.db", random.Random(7)
    for _ in range(4):
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(path), stdout=asyncio.subprocess.PIPE)
        assert child.stdout is not None
        first = await asyncio.wait_for(child.stdout.readline(), 20)
        await asyncio.sleep(chance.uniform(0.0, 0.3))
        child.send_signal(signal.SIGKILL)
        lines = (first + await child.stdout.read()).decode().splitlines(keepends=True)
        await child.wait()
        acknowledged = [line.split() for line in lines if line.endswith("\n")]
        store = await SqliteStore.open(path)
        listing = await store.list("k/")
        keys = {item.key for item in listing.items}
        assert listing.revision >= max(int(revision) for _, _, revision in acknowledged)
        assert all(f"k/{name}/{at}" in keys for name, at, _ in acknowledged)
        for item in (await store.list("last/")).items:
            assert f"k/{item.key.removeprefix('last/')}/{item.value.decode()}" in keys, "a transaction was torn"
        await store.close()


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    for at in range(5):
        await store.txn([], [Put(f"k/{at}", b"v")])
    before = await store.list("")
    await store.close()
    assert stat.S_IMODE(os.stat(tmp_path / "s.db").st_mode) == 0o600
    store = await SqliteStore.open(tmp_path / "s.db")
    assert await store.list("") == before
    async with aclosing(store.watch("", 2)) as batches:  # type: ignore[type-var]
        assert [change.revision for change in await anext(batches)] == [3, 4, 5, 6]
    assert (await store.txn([Compare("k/0", 2)], [Put("k/0", b"w")])).revision == 7
    await store.close()


async def test_the_log_on_disk_is_bounded(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.db", history=20)
    for _ in range(100):
        await store.txn([], [Put("k", b"v")])
    await store.close()
    with sqlite3.connect(tmp_path / "s.db") as found:
        assert found.execute("SELECT count(*) FROM log").fetchone()[0] <= 25
    found.close()
    store = await SqliteStore.open(tmp_path / "s.db", history=20)
    with pytest.raises(Compacted):
        await anext(store.watch("", 1))  # type: ignore[arg-type]
    await store.close()


async def test_a_lease_gets_its_full_time_again_after_a_restart(tmp_path: Path) -> None:
    now = [1000.0]
    store = await SqliteStore.open(tmp_path / "s.db", lambda: now[0])
    lease = await store.grant(10)
    await store.txn([], [Put("alive", b"", lease)])
    await store.close()
    now[0] = 5.0
    store = await SqliteStore.open(tmp_path / "s.db", lambda: now[0])
    assert await store.keepalive(lease)
    for passed, there in ((9.0, True), (1.5, False)):
        now[0] += passed
        store._timer_due = now[0]
        store._expire()
        await store.txn([], [Put("barrier", b"")])
        assert (await store.get("alive") is not None) == there
    assert not await store.keepalive(lease)
    await store.close()


async def test_a_process_that_was_stopped_gives_leases_the_time_back(tmp_path: Path) -> None:
    now = [0.0]
    store = await SqliteStore.open(tmp_path / "s.db", lambda: now[0])
    lease = await store.grant(10)
    now[0] = 86_400.0
    store._expire()
    assert await store.keepalive(lease)
    await store.close()


async def test_a_second_process_is_refused(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    with pytest.raises(Conflict, match="another process holds it"):
        await SqliteStore.open(tmp_path / "s.db")
    await store.close()


@pytest.mark.parametrize("content", [b"no database" * 1000, b"\0" * 5000])
async def test_a_damaged_file_is_said_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.db").write_bytes(content)
    with pytest.raises(StoreUnavailable, match="put a copy of it back"):
        await SqliteStore.open(tmp_path / "s.db")


async def test_a_missing_directory_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="check the disk"):
        await SqliteStore.open(tmp_path / "absent" / "s.db")


async def test_a_failed_write_fails_all_built_on_it_and_the_store_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    await store.txn([], [Put("a", b"1")])
    write, fail = Database.write, [True]

    def failing(self: Database, commits: Sequence[Commit], floor: int) -> None:
        if fail:
            fail.pop()
            raise StoreUnavailable("disk full")
        write(self, commits, floor)

    monkeypatch.setattr(Database, "write", failing)
    results = await asyncio.gather(*(store.txn([], [Put(f"k/{n}", b"")]) for n in range(5)), return_exceptions=True)
    assert all(isinstance(result, StoreUnavailable) for result in results)
    assert [item.key for item in (await store.list("")).items] == ["a"]
    assert (await store.txn([Compare("a", 2)], [Put("a", b"2")])).revision == 3
    await store.close()
    store = await SqliteStore.open(tmp_path / "s.db")
    listing = await store.list("")
    assert [(item.key, item.value) for item in listing.items] == [("a", b"2")] and listing.revision == 3
    await store.close()


async def test_who_tries_again_at_once_is_not_failed_with_what_still_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch fails, and with it the batches that were evaluated on top of it; what is tried again then lies behind those."""
    store = await SqliteStore.open(tmp_path / "s.db")
    write, load, fail = Database.write, Database.load, [True]

    def failing(self: Database, commits: Sequence[Commit], floor: int) -> None:
        if fail:
            fail.pop()
            raise StoreUnavailable("disk full")
        write(self, commits, floor)

    def slowly(self: Database) -> tuple[State, History]:
        time.sleep(0.05)
        return load(self)

    async def insist(key: str) -> int:
        with contextlib.suppress(StoreUnavailable):
            return (await store.txn([Compare(key, 0)], [Put(key, b"")])).revision
        return -(await store.txn([Compare(key, 0)], [Put(key, b"")])).revision

    monkeypatch.setattr(Database, "write", failing)
    monkeypatch.setattr(Database, "load", slowly)
    revisions = await asyncio.gather(*(insist(f"k/{number}") for number in range(600)))
    assert sorted(-revision for revision in revisions) == list(range(2, 602))
    assert len((await store.list("k/")).items) == 600
    await store.close()


async def test_a_write_of_unknown_fate_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit reached the disk, but its report was an error: the state is what the file says, revisions go on without a clash."""
    store = await SqliteStore.open(tmp_path / "s.db")
    write, fail = Database.write, [True]

    def late(self: Database, commits: Sequence[Commit], floor: int) -> None:
        write(self, commits, floor)
        if fail:
            fail.pop()
            raise StoreUnavailable("error after the commit")

    monkeypatch.setattr(Database, "write", late)
    with pytest.raises(StoreUnavailable):
        await store.txn([], [Put("a", b"1")])
    await asyncio.sleep(0)
    assert await store.get("a") is not None
    assert (await store.txn([], [Put("b", b"1")])).revision == 3
    await store.close()


async def test_what_was_written_in_one_batch_is_read_back_as_it_was(tmp_path: Path) -> None:
    """Hundreds of commits at once, which put, delete and put the same keys again and grant and end leases in between."""
    path, chance = tmp_path / "store.db", random.Random(3)
    store = await SqliteStore.open(path)
    leases = await asyncio.gather(*(store.grant(60) for _ in range(40)))
    kept = leases[20:]

    def op(number: int) -> Put | Delete:
        key = f"k/{chance.randrange(300)}"
        return Delete(key) if chance.random() < 0.3 else Put(key, str(number).encode(), chance.choice((0, *kept)))

    writes = [store.txn([], [op(number), op(-number)]) for number in range(700)]
    await asyncio.gather(*writes, *(store.revoke(lease) for lease in leases[:20]), *(store.grant(60) for _ in range(5)))
    before, history = await store.list(""), [change async for change in _all_changes(store)]
    held = set(store._durable.leases)
    await store.close()
    store = await SqliteStore.open(path)
    assert await store.list("") == before
    assert [change async for change in _all_changes(store)] == history
    assert set(store._durable.leases) == held == {*kept, *held} and len(held) == 25
    await store.close()


async def test_a_crash_at_any_time_leaves_what_was_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the log was folded into the state just before, or not for a while: the files as they are then hold everything."""
    monkeypatch.setattr(database, "_FOLD_COMMITS", 7)
    path, chance = tmp_path / "store.db", random.Random(5)
    store = await SqliteStore.open(path, history=20)
    leases: list[int] = []
    for number in range(60):
        key = f"k/{chance.randrange(6)}"
        if number % 5 == 1:
            leases.append(await store.grant(60))
        await store.txn([], [Delete(key) if number % 3 == 2 else Put(key, str(number).encode(), chance.choice((0, *leases)))])
        if number % 10 == 9:
            await store.revoke(leases.pop(0))
        (tmp_path / "crash").mkdir()
        for file in tmp_path.glob("store.db*"):
            shutil.copy(file, tmp_path / "crash" / file.name)
        again = await SqliteStore.open(tmp_path / "crash/store.db", history=20)
        assert await again.list("") == await store.list("")
        assert again._durable.leases == store._durable.leases and again._durable._held == store._durable._held
        assert (await again.txn([], [Put("next", b"")])).revision == store._durable.revision + 1
        await again.close()
        shutil.rmtree(tmp_path / "crash")
    await store.close()


async def test_a_disk_that_does_not_take_the_state_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, fold = await SqliteStore.open(tmp_path / "s.db"), Database._fold
    await store.txn([], [Put("a", b"1")])

    def full(_: Database) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(database, "_FOLD_COMMITS", 1)
    monkeypatch.setattr(Database, "_fold", full)
    with pytest.raises(StoreUnavailable, match="disk is full"):
        await store.txn([], [Put("b", b"1")])
    await asyncio.sleep(0)
    monkeypatch.setattr(Database, "_fold", fold)
    assert (await store.txn([Compare("a", 2)], [Put("b", b"2")])).revision == 3
    await store.close()
    store = await SqliteStore.open(tmp_path / "s.db")
    assert [(item.key, item.value) for item in (await store.list("")).items] == [("a", b"1"), ("b", b"2")]
    await store.close()


async def test_a_file_of_the_first_layout_is_taken_over(tmp_path: Path) -> None:
    """With everything but the past that watches could read."""
    old = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    old.executescript("""
        CREATE TABLE items (key TEXT PRIMARY KEY, value BLOB NOT NULL, created INTEGER NOT NULL, modified INTEGER NOT NULL,
            lease INTEGER NOT NULL) WITHOUT ROWID;
        CREATE TABLE log (revision INTEGER PRIMARY KEY, changes BLOB NOT NULL);
        CREATE TABLE leases (id INTEGER PRIMARY KEY, ttl REAL NOT NULL);
        CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
        INSERT INTO items VALUES ('a', x'31', 2, 4, 0), ('b', x'32', 3, 3, 77);
        INSERT INTO log VALUES (2, x'90'), (3, x'90'), (4, x'90');
        INSERT INTO leases VALUES (77, 60.0);
        INSERT INTO meta VALUES ('revision', 4);
        PRAGMA user_version=1;
    """)
    old.close()
    for revision in (5, 6):
        store = await SqliteStore.open(tmp_path / "s.db")
        with pytest.raises(Compacted):
            await anext(store.watch("", 3))  # type: ignore[arg-type]
        assert [(item.key, item.value, item.create_revision) for item in (await store.list("")).items][1:] == [("b", b"2", 3)]
        assert await store.keepalive(77)
        assert (await store.txn([Compare("a", revision - 1)], [Put("a", b"3")])).revision == revision
        await store.close()


async def _all_changes(store: SqliteStore) -> AsyncIterator[Change]:
    """What a watcher is told that starts at the beginning."""
    head = (await store.list("none")).revision
    async with aclosing(store.watch("", 1)) as batches:  # type: ignore[type-var]
        async for changes in batches:
            for change in changes:
                yield change
            if changes[-1].revision == head:
                return


async def test_what_is_written_in_one_round_of_the_loop_is_one_transaction_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what comes while that is on its way is the next one."""
    sizes: list[int] = []
    write = Database.write

    def counted(self: Database, commits: Sequence[Commit], floor: int) -> None:
        sizes.append(len(commits))
        write(self, commits, floor)

    def put(count: int) -> list[Awaitable[TxnResult]]:
        return [store.txn([], [Put(f"k{number}", b"v")]) for number in range(count)]

    monkeypatch.setattr(Database, "write", counted)
    store = await SqliteStore.open(tmp_path / "store.db")
    for wanted in (50, 1, 50):
        first = put(wanted)
        await asyncio.sleep(0)
        await asyncio.gather(*first, *put(30))
        assert sizes == [wanted, 30]
        sizes.clear()
    await store.close()
