# SPDX-License-Identifier: Apache-2.0
"""Indexes of blocking queries that never go back, also across a crash of the agent, for one fsync in many hundreds of changes.

Some indexes have no revision of the store behind them: those of changes that were not published yet. So the journal holds a ceiling,
durable before an index above the last one is given out, and the next life of the agent begins above it. An orderly end writes down
how high it really came.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from plait.agent.journal import Journal, Write
from plait.model.errors import NotSaved

log = logging.getLogger("plait.catalog")
BLOCK = 1024
"""Indexes that one write to the journal covers at least. After a crash the next index may be higher than it had to be by so many."""
_PACES = 8
"""Of how many looks one write covers the changes: so many seconds in which the store may be written as fast as now."""
_LOOK_S = 1.0
_KIND, _ID = "index", "ceiling"


class Indexes:
    """Implements `serve.http_answers.Indexes`. Used from the loop only."""

    def __init__(self, journal: Journal, block: int = BLOCK) -> None:
        self._journal, self._block = journal, block
        self.start = int(journal.load(_KIND).get(_ID, b"1"))
        self._highest = self._covered = self._asked = self.start
        self._pending: deque[tuple[int, Future[None]]] = deque()
        """Ceilings that are on their way to the disk, in their order."""
        self._seen = 0

    async def run(self, revision: Callable[[], int]) -> None:
        """Keep ahead of the store, whose revision most indexes are, however fast it is written. Never returns."""
        while True:
            self.ahead(revision())
            await asyncio.sleep(_LOOK_S)

    def ahead(self, revision: int) -> None:
        """The store has come to that revision since the last look. Waits for nothing."""
        pace, self._seen = revision - (self._seen or revision), revision
        self._reserve(revision, max(self._block, _PACES * pace))

    def cover(self, index: int) -> None:
        """Return when the disk says that `index` may have been given out. That is at once but for the first of a life, and if the disk
        takes longer for a write than half a block of indexes lasts. A disk that refuses is told of in the log and holds up nobody."""
        self._highest = max(self._highest, index)
        self._reserve(index, self._block)
        while self._pending and (index > self._covered or self._pending[0][1].done()):
            self._covered, written = self._pending.popleft()
            try:
                written.result()
            except NotSaved as error:
                log.warning("indexes_not_saved", extra={"error": str(error)})

    def _reserve(self, index: int, block: int) -> None:
        """Have the disk cover a block above `index` if less than half of one is left."""
        if index > self._asked - block // 2:
            self._asked = index + block
            self._pending.append((self._asked, self._journal.submit([_ceiling(self._asked)])))

    async def close(self) -> None:
        """Write down the highest index that was given out; whatever is covered afterwards is written down anew."""
        self._asked = self._covered = self._highest
        self._pending.clear()
        try:
            await self._journal.write([_ceiling(self._highest)])
        except NotSaved as error:
            log.warning("indexes_not_saved", extra={"error": str(error)})


def _ceiling(index: int) -> Write:
    return Write(_KIND, _ID, str(index).encode())
