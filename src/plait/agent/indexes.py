# SPDX-License-Identifier: Apache-2.0
"""Indexes of blocking queries that never go back, also across a crash of the agent, for one fsync in many hundreds of changes.

Some indexes have no revision of the store behind them: those of changes that were not published yet. So the journal holds a ceiling,
durable before an index above the last one is given out, and the next life of the agent begins above it. An orderly end writes down
how high it really came.
"""

from __future__ import annotations

import logging
import sqlite3
from concurrent.futures import Future

from plait.agent.journal import Journal, Write

log = logging.getLogger("plait.catalog")
BLOCK = 1024
"""Indexes that one write to the journal covers. After a crash the next index may be higher than it had to be by so many."""
_KIND, _ID = "index", "ceiling"


class Indexes:
    """Implements `serve.http_answers.Indexes`. Used from the loop only."""

    def __init__(self, journal: Journal, block: int = BLOCK) -> None:
        self._journal, self._block = journal, block
        self.start = int(journal.load(_KIND).get(_ID, b"1"))
        self._highest = self._covered = self._asked = self.start
        self._pending: Future[None] | None = None

    def cover(self, index: int) -> None:
        """Return when the disk says that `index` may have been given out. That is at once but for the first of a life, and if the disk took
        longer for a write than half a block of indexes lasted. A disk that refuses is told of in the log and holds up nobody."""
        self._highest = max(self._highest, index)
        if index > self._asked - self._block // 2:
            self._asked = index + self._block
            self._pending = self._journal.submit([_ceiling(self._asked)])
        if index > self._covered and self._pending is not None:
            try:
                self._pending.result()
            except sqlite3.Error as error:
                log.warning("indexes_not_saved", extra={"error": str(error)})
            self._covered = self._asked

    async def close(self) -> None:
        """Write down the highest index that was given out; whatever is covered afterwards is written down anew."""
        self._asked = self._covered = self._highest
        try:
            await self._journal.write([_ceiling(self._highest)])
        except sqlite3.Error as error:
            log.warning("indexes_not_saved", extra={"error": str(error)})


def _ceiling(index: int) -> Write:
    return Write(_KIND, _ID, str(index).encode())
