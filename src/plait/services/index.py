# SPDX-License-Identifier: Apache-2.0
"""The index of a blocking query: the store revision at which its result took its present form.

Because it is a matter of the result itself, an unrelated write never wakes a waiter, whatever kind of query it is, and a change
is never missed: a query seen for the first time (or forgotten meanwhile) gets the present revision.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class QueryIndex:
    """Remembers (result, index) of the last `size` different queries."""

    def __init__(self, size: int = 4096) -> None:
        self._size = size
        self._known: OrderedDict[Hashable, tuple[bytes, int]] = OrderedDict()

    def index_of(self, query: Hashable, result: bytes, revision: int) -> int:
        """The index of `result` for `query` now, at store revision `revision`. At least 1, never falls for a query."""
        known = self._known.pop(query, None)
        index = revision if known is None else known[1]
        if known is not None and known[0] != result:
            index = max(revision, index + 1)
        self._known[query] = (result, index)
        while len(self._known) > self._size:
            self._known.popitem(last=False)
        return max(index, 1)
