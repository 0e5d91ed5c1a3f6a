# SPDX-License-Identifier: Apache-2.0
"""An answer of the store on disk comes after the sync, whoever does that: the kernel beside the loop, or a thread."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.support.files import open_files

from plait.model.errors import StoreUnavailable
from plait.store import database, sqlite
from plait.store.api import Compare, Put
from plait.store.database import Database
from plait.store.kernelsync import KernelSync
from plait.store.sqlite import SqliteStore
from plait.store.state import Commit


@pytest.fixture(params=["kernel", "thread"])
def means(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who syncs the stores that are opened from now on."""
    if request.param == "thread":
        _refuse(monkeypatch)
    return str(request.param)


def _refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: KernelSync, fd: int) -> None:
        raise OSError(errno.ENOSYS, "no such system call")

    monkeypatch.setattr(KernelSync, "__init__", refuse)


def _crashed(path: Path, copy: Path) -> Path:
    """The store's files as they are now."""
    copy.mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        shutil.copy(file, copy / file.name)
    return copy / path.name


async def test_nothing_is_answered_or_shown_before_the_sync(tmp_path: Path, means: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    start, fdatasync, go = KernelSync.start, os.fdatasync, threading.Event()
    held: list[KernelSync] = []

    def hold(fd: int) -> None:
        go.wait(10)
        fdatasync(fd)

    monkeypatch.setattr(KernelSync, "start", lambda self: held.append(self))
    monkeypatch.setattr(os, "fdatasync", hold)
    write = store.txn([], [Put("a", b"1")])
    await asyncio.sleep(0.05)
    assert not write.done() and await store.get("a") is None
    monkeypatch.setattr(KernelSync, "start", start)
    go.set()
    for sync in held:
        sync.start()
    assert (await write).ok and await store.get("a") is not None and bool(held) == (means == "kernel")
    await store.close()


async def test_everything_works_with_either(tmp_path: Path, means: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of writes at once, with the state folded and the WAL brought in several times; then a crash."""
    monkeypatch.setattr(database, "_FOLD_COMMITS", 70)
    monkeypatch.setattr(database, "_CHECKPOINT_PAGES", 9)
    files = open_files()
    store = await SqliteStore.open(tmp_path / "s.db")
    checkpoint, elsewhere = Database._checkpoint, list[bool]()

    def seen(self: Database, mode: str) -> None:
        elsewhere.append(threading.current_thread() is not threading.main_thread())
        checkpoint(self, mode)

    monkeypatch.setattr(Database, "_checkpoint", seen)
    for number in range(30):
        await asyncio.gather(*(store.txn([], [Put(f"k/{at}", str(number).encode())]) for at in range(number)))
    listing = await store.list("")
    assert len(listing.items) == 29 and all(item.value == b"29" for item in listing.items)
    assert len(elsewhere) > 5 and all(elsewhere), "the loop does not wait for a checkpoint"
    assert (tmp_path / "s.db-wal").stat().st_size < 40 * 4120
    again = await SqliteStore.open(_crashed(tmp_path / "s.db", tmp_path / "crash"))
    assert await again.list("") == listing
    await again.close()
    await store.close()
    assert [file.name for file in tmp_path.glob("s.db*")] == ["s.db"], "the WAL is brought in and gone"
    assert open_files() <= files


async def test_a_sync_that_fails_fails_all_built_on_it(tmp_path: Path, means: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is read back: it may have reached the disk. What is written then does not lie behind a hole."""
    store, wal = await SqliteStore.open(tmp_path / "s.db"), tmp_path / "s.db-wal"
    for _ in range(10):
        await store.txn([], [Put("a", b"1")])
    size = wal.stat().st_size
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", _no_disk)
        broken.setattr(KernelSync, "_error", lambda self: OSError(errno.EIO, os.strerror(errno.EIO)))
        writes = [store.txn([], [Put(f"k/{number}", b"")]) for number in range(40)]
        results = await asyncio.gather(*writes, return_exceptions=True)
    assert all(isinstance(result, StoreUnavailable) and "Input/output error" in str(result) for result in results)
    there = await store.list("")
    assert (await store.txn([], [Put("b", b"2")])).revision == there.revision + 1
    assert wal.stat().st_size < size, "the WAL began anew"
    now = await store.list("")
    again = await SqliteStore.open(_crashed(tmp_path / "s.db", tmp_path / "crash"))
    assert await again.list("") == now and {"a", "b"} <= {item.key for item in now.items}
    await again.close()
    await store.close()


def _no_disk(fd: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


async def test_the_kernel_may_refuse_a_sync_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    start, refuse = KernelSync.start, [True]

    def busy(self: KernelSync) -> None:
        if refuse:
            refuse.pop()
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        start(self)

    monkeypatch.setattr(KernelSync, "start", busy)
    assert (await store.txn([], [Put("a", b"1")])).ok and not refuse
    assert (await store.txn([], [Put("b", b"1")])).ok
    await store.close()


async def test_a_file_that_cannot_be_read_back_takes_nothing_until_it_can(
    tmp_path: Path, means: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    await store.txn([], [Put("a", b"1")])

    def unreadable(self: Database, mode: str) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as broken:
        broken.setattr(Database, "_checkpoint", unreadable)
        store._writer._database._pages = database._CHECKPOINT_PAGES
        for why in ("disk I/O error", "could not be read again"):
            with pytest.raises(StoreUnavailable, match=why):
                await store.txn([], [Put("b", b"1")])
            assert [item.key for item in (await store.list("")).items] == ["a"]
    with pytest.raises(StoreUnavailable, match="could not be read again"):
        await store.txn([], [Put("b", b"1")])
    assert (await store.txn([Compare("b", 0)], [Put("b", b"1")])).revision == 3
    await store.close()


async def test_what_holds_up_the_loop_is_written_from_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is large, and everything for a while after the disk was slow, as it was not when the CPU was somebody else's."""
    store = await SqliteStore.open(tmp_path / "s.db")
    write, here, pauses = Database.write, list[bool](), [0.0, 2 * sqlite._SLOW_S, 2 * sqlite._SLOW_S, 0.0, 0.0]
    taken = iter([1, 2, 2, 2, 2, 2, 2])
    monkeypatch.setattr(sqlite, "_preemptions", lambda: next(taken))

    def slow(self: Database, commits: Sequence[Commit], floor: int) -> None:
        here.append(threading.current_thread() is threading.main_thread())
        time.sleep(pauses.pop(0))
        write(self, commits, floor)

    monkeypatch.setattr(Database, "write", slow)
    await store.txn([], [Put("large", bytes(sqlite._HERE_BYTES + 1))])
    await store.txn([], [Put("a", b"1")])
    await store.txn([], [Put("a", b"2")])
    await store.txn([], [Put("a", b"3")])
    store._writer._apart_until -= sqlite._APART_S
    await store.txn([], [Put("a", b"4")])
    assert here == [False, True, True, False, True]
    await store.close()


async def test_a_torn_end_of_the_wal_is_cut_off(tmp_path: Path, means: str) -> None:
    """A power cut leaves any part of what was not synced yet: all that was there before stays, of the torn batch there is nothing."""
    store, chance = await SqliteStore.open(tmp_path / "s.db"), random.Random(4)
    for number in range(20):
        await store.txn([], [Put(f"k/{number}", bytes(300))])
    before, size = await store.list(""), (tmp_path / "s.db-wal").stat().st_size
    await asyncio.gather(*(store.txn([], [Put(f"torn/{number}", chance.randbytes(2000))]) for number in range(10)))
    end = (tmp_path / "s.db-wal").stat().st_size
    assert end > size + 5 * 4096
    for number in range(12):
        path = _crashed(tmp_path / "s.db", tmp_path / f"crash{number}")
        wal, at = path.with_name("s.db-wal"), chance.randrange(size, end - 512)
        if number % 2:
            os.truncate(wal, at)
        else:  # the later part is there, the earlier one is not
            content = wal.read_bytes()
            wal.write_bytes(content[:at] + bytes(512) + content[at + 512 :])
        again = await SqliteStore.open(path)
        assert await again.list("") == before
        assert (await again.txn([], [Put("next", b"")])).revision == before.revision + 1
        await again.close()
    await store.close()
