# SPDX-License-Identifier: Apache-2.0
"""Answers of catalogue reads, kept until something that they are about changes, and those that wait for such a change.

Data in: snapshots, reads with the topics that they are about. Data out: encoded results with their index, wake-ups. A change costs one
step of the directory and a new answer for each query about a touched topic that is asked again; it wakes nobody else.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol

from plait.model.cluster import Snapshot
from plait.serve.consul_backend import CatalogBackend
from plait.services.directory import Directory, Topic
from plait.services.index import QueryIndex

Found = tuple[bytes, int]
"""(encoded result, index)"""
MAX_BYTES = 8 << 20
"""Of all answers that are kept. The one that was asked for last is kept whatever its size."""
_OVERHEAD = 500
"""Bytes that an answer costs besides its text."""
_FOLLOW_S = 60.0


class Indexes(Protocol):
    """What makes indexes outlast this process."""

    @property
    def start(self) -> int:
        """No index before this life was above it."""
        ...

    def cover(self, index: int) -> None:
        """Return when the next life will begin above `index`."""
        ...


class Answers:
    """Used from the loop only."""

    def __init__(self, backend: CatalogBackend, node: str, max_bytes: int = MAX_BYTES, indexes: Indexes | None = None) -> None:
        """Without `indexes` they begin anew with each life."""
        self._backend, self._max_bytes, self._indexes = backend, max_bytes, indexes
        self._directory = Directory(Snapshot(node))
        self._index = QueryIndex(start=indexes.start if indexes is not None else 0)
        self._kept: OrderedDict[Hashable, tuple[Found, frozenset[Topic]]] = OrderedDict()
        self._about: dict[Topic, set[Hashable]] = {}
        self._bytes = 0
        self._waiting: dict[Topic, set[Callable[[], None]]] = {}
        self._follower: asyncio.Task[None] | None = None

    def directory(self) -> Directory:
        """Of the present snapshot. Forgets the answers that it may change and wakes those that wait for one of them."""
        snapshot = self._backend.snapshot()
        if snapshot is not self._directory.snapshot:
            self._directory, touched = self._directory.advance(snapshot)
            for topic in touched:
                for query in list(self._about.get(topic, ())):
                    self._drop(query)
                for wake in self._waiting.get(topic, ()):
                    wake()
        return self._directory

    def get(self, query: Hashable, topics: frozenset[Topic], make: Callable[[], bytes], keep: bool = True) -> Found:
        """What `make` says now, with its index. It is not called while nothing of `topics` changed; if the result depends on anything
        else, do not `keep` it."""
        revision = self.directory().snapshot.revision
        kept = self._kept.get(query)
        if kept is not None:
            self._kept.move_to_end(query)
            return kept[0]
        result = make()
        found = result, self._index.index_of(query, result, revision)
        if self._indexes is not None:
            self._indexes.cover(found[1])
        if not keep:
            return found
        self._kept[query] = found, topics
        self._bytes += len(result) + _OVERHEAD
        for topic in topics:
            self._about.setdefault(topic, set()).add(query)
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))
        return found

    def _drop(self, query: Hashable) -> None:
        (result, _), topics = self._kept.pop(query)
        self._bytes -= len(result) + _OVERHEAD
        for topic in topics:
            self._about[topic].discard(query)
            if not self._about[topic]:
                del self._about[topic]

    def join(self, topics: frozenset[Topic], wake: Callable[[], None]) -> None:
        """Have `wake` called at each change of one of `topics` from now on. It must not look at answers itself."""
        for topic in topics:
            self._waiting.setdefault(topic, set()).add(wake)
        if self._follower is None or self._follower.done():
            self._follower = asyncio.create_task(self._follow())

    def leave(self, topics: frozenset[Topic], wake: Callable[[], None]) -> None:
        for topic in topics:
            self._waiting[topic].discard(wake)
            if not self._waiting[topic]:
                del self._waiting[topic]
        if not self._waiting and self._follower is not None:
            self._follower.cancel()

    async def _follow(self) -> None:
        """Take over each change as long as somebody waits. A fault wakes all, who then meet and answer it themselves."""
        try:
            while True:
                self.directory()  # first: a change may have come before this task ran
                await self._backend.changed(_FOLLOW_S)
        finally:
            for wake in {wake for waiting in self._waiting.values() for wake in waiting}:
                wake()

    def waiters(self) -> int:
        """How many topics are waited for, each as often as it is."""
        return sum(len(waiting) for waiting in self._waiting.values())
