# SPDX-License-Identifier: Apache-2.0
"""Indexes of blocking queries through crashes at every point: they never go back, and another result never has an index already seen.

The journal's disk is a model: what was submitted and not waited for is there or not after a crash, in the order of submission.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from plait.agent.indexes import Indexes
from plait.agent.journal import Write
from plait.model.cluster import Snapshot
from plait.serve.http_answers import Answers
from plait.services.index import QueryIndex

BLOCK = 4
QUERIES = "abc"


class _Done(Future[None]):
    def __init__(self, disk: Disk, number: int) -> None:
        super().__init__()
        self._disk, self._number = disk, number

    def done(self) -> bool:
        return self._number <= self._disk.flushed

    def result(self, timeout: float | None = None) -> None:
        self._disk.waited += self._number > self._disk.flushed
        self._disk.flush(self._number)


class Disk:
    """A journal."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self._waiting: list[Write] = []
        self.submitted = self.flushed = self.waited = 0

    def load(self, kind: str) -> dict[str, bytes]:
        return dict(self.kept)

    def submit(self, writes: list[Write]) -> Future[None]:
        self._waiting += writes
        self.submitted += 1
        return _Done(self, self.submitted)

    def flush(self, number: int) -> None:
        """All up to the submission of that number, counted from 1."""
        while self.flushed < number:
            write = self._waiting.pop(0)
            assert write.body is not None
            self.kept[write.id] = write.body
            self.flushed += 1

    def crash(self, more: int) -> None:
        """`more` of those that nobody waited for came through."""
        self.flush(min(self.submitted, self.flushed + more))
        self._waiting, self.flushed = [], self.submitted


class Backend:
    """What a life of the agent answers from: results of its own making at revisions of the store."""

    def __init__(self) -> None:
        self.revision = 1
        self.results = dict.fromkeys(QUERIES, 0)

    def snapshot(self) -> Snapshot:
        return Snapshot("A", self.revision)


class Life:
    def __init__(self, disk: Disk, backend: Backend) -> None:
        self.indexes = Indexes(disk, BLOCK)  # type: ignore[arg-type]
        self._backend = backend
        self._answers = Answers(backend, "A", indexes=self.indexes)  # type: ignore[arg-type]
        self._answers._index = QueryIndex(2, self.indexes.start)  # so small that queries are forgotten

    def ask(self, query: str) -> tuple[int, int]:
        """(result, index)"""
        body, index = self._answers.get(query, frozenset(), lambda: b"%d" % self._backend.results[query], keep=False)
        return int(body), index


STEPS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(QUERIES)),
    st.tuples(st.just("own"), st.sampled_from(QUERIES)),
    st.tuples(st.just("stored"), st.sampled_from(QUERIES)),
    st.tuples(st.just("elsewhere"), st.integers(1, 20)),
    st.tuples(st.just("look"), st.none()),
    st.tuples(st.just("crash"), st.tuples(st.integers(0, 3), st.integers(0, 9))),
)


@settings(max_examples=400)
@given(st.lists(STEPS, max_size=60))
@example([("own", "a"), ("ask", "a")] * 9 + [("crash", (0, 0)), ("ask", "a")])
@example([("ask", "a"), ("own", "a"), ("ask", "a"), ("ask", "b"), ("ask", "c"), ("ask", "a")])
@example([("ask", "a"), ("crash", (0, 0)), ("own", "a"), ("ask", "a")])
def test_no_index_goes_back_and_no_change_is_missed(steps: list[tuple[str, Any]]) -> None:
    disk, backend = Disk(), Backend()
    life, last = Life(disk, backend), dict[str, tuple[int, int]]()
    for what, arg in steps:
        if what == "ask":
            result, index = life.ask(arg)
            before, at = last.get(arg, (result, 0))
            assert index >= max(at, 1), "it went back"
            assert index > at or result == before, "a change that nobody is told of"
            last[arg] = result, index
        elif what in ("own", "stored"):  # not published, or a change of the store
            backend.results[arg] += 1
            backend.revision += what == "stored"
        elif what == "elsewhere":
            backend.revision += arg
        elif what == "look":
            life.indexes.ahead(backend.revision)
        else:  # what the agent has of the store may be older than what it had
            more, lag = arg
            disk.crash(more)
            backend.revision = max(1, backend.revision - lag)
            life = Life(disk, backend)


@given(st.lists(st.floats(0, 1), max_size=40))
def test_however_fast_the_store_is_written_no_reader_waits_for_the_disk(paces: list[float]) -> None:
    """Looked at once a second, it may be written up to four times as fast as in the second before."""
    disk = Disk()
    indexes = Indexes(disk)  # type: ignore[arg-type]
    revision, fastest = 2, 512
    indexes.cover(revision)
    for part in paces:
        indexes.ahead(revision)
        disk.flush(disk.submitted)
        pace = round(part * fastest)
        indexes.cover(revision + pace // 2)
        indexes.cover(revision + pace)
        revision, fastest = revision + pace, max(512, min(4 * pace, 1 << 40))
    assert disk.waited == 1


def test_keeping_ahead_of_a_busy_store_costs_a_write_every_few_seconds() -> None:
    disk = Disk()
    indexes = Indexes(disk)  # type: ignore[arg-type]
    for second in range(100):
        indexes.ahead(1_000_000 + 5_000 * second)
        disk.flush(disk.submitted)
        indexes.cover(1_000_000 + 5_000 * second)
    assert disk.submitted <= 30 and disk.waited == 0
    assert int(disk.kept["ceiling"]) <= 1_000_000 + 5_000 * (100 + 8)


@given(st.integers(1, 3000))
def test_changes_cost_one_write_for_each_half_block_and_wait_for_none(changes: int) -> None:
    """On a disk that has written before half a block is used up; the first of a life waits."""
    disk = Disk()
    indexes = Indexes(disk)  # type: ignore[arg-type]
    for index in range(indexes.start + 1, indexes.start + 1 + changes):
        indexes.cover(index)
        if index % 400 == 0:
            disk.flush(disk.submitted)
    assert disk.submitted <= 1 + changes // 512 and disk.waited == 1
