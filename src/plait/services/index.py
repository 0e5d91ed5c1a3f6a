# SPDX-License-Identifier: Apache-2.0
"""The index of a blocking query: the store revision at which its result took its present form.

Data in: queries, their encoded results, the store's revision. Data out: Consul's index. Because it is a matter of the result itself, an
unrelated write never wakes a waiter, whatever kind of query it is, and a change is never missed: a query seen for the first time (or
forgotten meanwhile) gets the present revision, or an index above all that forgotten queries ever had, if that is higher.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from hashlib import blake2b


def content_hash(result: bytes) -> str:
    """A short text that differs if the encoded result does (Consul's ContentHash: opaque hexadecimal digits)."""
    return blake2b(result, digest_size=8).hexdigest()


class QueryIndex:
    """Remembers hash and index of the last `size` different queries. `start`: no index before this life was above it."""

    def __init__(self, size: int = 4096, start: int = 0) -> None:
        self._size, self._forgotten = size, start
        self._known: OrderedDict[Hashable, tuple[str, int]] = OrderedDict()

    def index_of(self, query: Hashable, result: bytes, revision: int) -> int:
        """The index of `result` for `query` now, at store revision `revision`. At least 1; it never falls, and for a remembered query
        it rises exactly if the result differs from the one before."""
        digest = content_hash(result)
        known = self._known.pop(query, None)
        if known is None:
            index = max(revision, self._forgotten + 1)
        elif known[0] == digest:
            index = known[1]
        else:
            index = max(revision, known[1] + 1)
        self._known[query] = (digest, index)
        while len(self._known) > self._size:
            _, (_, forgotten) = self._known.popitem(last=False)
            self._forgotten = max(self._forgotten, forgotten)
        return index
