# SPDX-License-Identifier: Apache-2.0
"""Indexes that outlast the agent: the journal's ceiling on a real disk, and answers of lives that could not publish what they changed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest
from tests.support.cluster import nodes
from tests.support.consulapi import Cuttable, consul

from plait.agent.documents import Documents
from plait.agent.indexes import BLOCK, Indexes
from plait.agent.journal import Journal, Write
from plait.model.errors import NotSaved
from plait.model.kv import Coordinate
from plait.store.api import Change, Item


def killed(path: Path) -> Path:
    """The journal as it lies on disk while the agent runs: what a `kill -9` leaves."""
    copy = path.parent / f"{path.parent.name}-killed"
    shutil.copytree(path.parent, copy, dirs_exist_ok=True)
    return copy / path.name


async def test_the_next_life_begins_above_what_a_killed_one_gave_out(tmp_path: Path) -> None:
    path = tmp_path / "a" / "journal.db"
    journal = Journal(path)
    indexes = Indexes(journal)
    for index in (2, 50, BLOCK * 3, BLOCK * 3 + 1):
        indexes.cover(index)
        left = Journal(killed(path))
        assert index <= Indexes(left).start <= index + BLOCK
        left.close()
    journal.close()


async def test_an_orderly_end_leaves_no_gap(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    indexes = Indexes(journal)
    indexes.cover(70)
    await indexes.close()
    assert Indexes(journal).start == 70
    indexes.cover(71)  # a client that was still there
    assert Indexes(journal).start >= 71
    journal.close()


class Full:
    """A journal whose disk takes nothing."""

    def load(self, kind: str) -> dict[str, bytes]:
        return {}

    def submit(self, writes: Sequence[Write]) -> Future[None]:
        refused: Future[None] = Future()
        refused.set_exception(NotSaved("disk is full"))
        return refused

    async def write(self, writes: Sequence[Write]) -> None:
        raise NotSaved("disk is full")


async def test_a_disk_that_refuses_is_told_of_and_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    indexes = Indexes(Full())  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "plait.catalog"):
        for index in range(2, 100):
            indexes.cover(index)
        await indexes.close()
    assert [record.message for record in caplog.records] == ["indexes_not_saved"] * 2


async def test_what_was_never_published_moves_the_index_on_through_a_crash(tmp_path: Path) -> None:
    """The store is away: registrations are kept here, their indexes have no revision behind them."""
    store = Cuttable()
    async with nodes(store, tmp_path, "A") as (a,):
        seen = []
        store.away = True
        for life in range(3):
            async with consul(a, Indexes(a.journal)) as here:
                for number in range(3):
                    await here.put("agent/service/register", {"Name": "web", "Port": 1 + life * 3 + number})
                    rows, index = await here.get("catalog/service/web")
                    seen.append((index, rows[0]["ServicePort"]))
                rows, index = await here.get(f"catalog/service/web?index={index - 1}&wait=20s")
                assert (index, rows[0]["ServicePort"]) == seen[-1]
            await a.stop()  # as if killed: nobody wrote down how high the index came
            await a.start()
        assert [port for _, port in seen] == list(range(1, 10))
        assert [index for index, _ in seen] == sorted({index for index, _ in seen}), "each change has an index of its own, none goes back"
    await store.close()


def document(kind: str, name: str, revision: int) -> Change:
    return Change("put" if kind == "put" else "delete", Item(f"coordinates/{name}", b'{"node":"x"}', 1, revision), revision)


def test_the_index_of_documents_outlives_them() -> None:
    found = Documents("coordinates", Coordinate)
    found.change([document("put", "a", 5), document("put", "b", 7)])
    assert (found.index, found.index_of("a"), found.index_of("b"), found.index_of("none")) == (7, 5, 7, 1)
    found.change([Change("delete", Item("coordinates/b", b"", 1, 7), 9)])
    assert (found.index, found.index_of("a"), found.index_of("b")) == (9, 5, 9)
    found.start_at(20)
    assert (found.index, found.index_of("a"), found.index_of("none")) == (20, 5, 20)
