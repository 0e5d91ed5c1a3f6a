# SPDX-License-Identifier: Apache-2.0
"""What DNS has answered of names that rules are for: which address was given for which name, and until when that counts.

Bounded, whatever is answered: what would end first goes. Times are seconds of any clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping

from plait.model.addr import IPAddress

MOST, MOST_OF_NAME = 20_000, 1_000
"""So many pairs of name and address count at most, so many of one name (NPEP-133 wants 100 or more)."""
Pair = tuple[str, IPAddress]


class Answers:
    """`known`: the names by address; another mapping after each change, the same one without."""

    def __init__(self, most: int = MOST, most_of_name: int = MOST_OF_NAME) -> None:
        self._most, self._most_of_name = most, most_of_name
        self._until: dict[str, dict[IPAddress, float]] = {}
        self.known: Mapping[IPAddress, frozenset[str]] = {}

    def __iter__(self) -> Iterator[tuple[Pair, float]]:
        """Everything that counts, with its end."""
        for name, found in self._until.items():
            for address, until in found.items():
                yield (name, address), until

    def __len__(self) -> int:
        return sum(map(len, self._until.values()))

    def add(self, pairs: Mapping[Pair, float]) -> None:
        """These count until then, or longer if they did already."""
        fresh = list[Pair]()
        for (name, address), until in pairs.items():
            found = self._until.setdefault(name, {})
            if address not in found:
                fresh.append((name, address))
            found[address] = max(until, found.get(address, until))
        self._change(fresh, self._beyond({name for name, _ in pairs}))

    def expire(self, now: float) -> None:
        """Forget what has ended."""
        self._change((), [pair for pair, until in self if until <= now])

    def next_end(self) -> float | None:
        """When `expire` has something to do."""
        return min((min(found.values()) for found in self._until.values()), default=None)

    def _beyond(self, names: Iterable[str]) -> list[Pair]:
        """What is too much: of each of these names, then of all."""
        gone = list[Pair]()
        for name in names:
            found = self._until[name]
            gone += [(name, one) for one in heapq.nsmallest(len(found) - self._most_of_name, found, key=found.__getitem__)]
        if (more := len(self) - len(gone) - self._most) > 0:
            left = ((until, pair) for pair, until in self if pair not in gone)
            gone += [pair for _, pair in heapq.nsmallest(more, left, key=lambda one: one[0])]
        return gone

    def _change(self, fresh: Iterable[Pair], gone: Iterable[Pair]) -> None:
        known = dict(self.known)
        for name, address in fresh:
            known[address] = known.get(address, frozenset()) | {name}
        for name, address in gone:
            del self._until[name][address]
            if not self._until[name]:
                del self._until[name]
            known[address] -= {name}
            if not known[address]:
                del known[address]
        if known != self.known:
            self.known = known
