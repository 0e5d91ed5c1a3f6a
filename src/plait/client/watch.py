# SPDX-License-Identifier: Apache-2.0
"""Blocking queries as a state machine: what to ask next, and which answers are news.

Data in: a Query (what is read and how it is understood). Data out: one value per real change. A watch outlives agents: it waits while none
answers, keeps the last value meanwhile, and starts over when the index goes back (a restored or new cluster) and after each failure
(an index of an agent's former life could block for long). What it then reads is compared with what it had: only a difference is news.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from plait.client.errors import ApiError, ClientError
from plait.client.steps import MAX_WAIT_S, Answer, Request, Steps, call, clock, sleep
from plait.model.errors import ConfigError

T = TypeVar("T")

BACKOFF_S = (0.25, 15.0)
"""First and longest wait after failures; doubled in between, and spread by a random half so that clients do not return together."""
PACE_S = 0.1
"""Shortest time between two queries that brought nothing new: an agent that answers at once for ever is not hammered."""
POLL_S = 2.0
"""Time between queries where the answers carry no index, so that there is nothing to block on."""
_BUSY = 429


@dataclass(frozen=True, slots=True)
class Query(Generic[T]):
    """One read: the request, the statuses besides 200 that are answers too, and how an answer is understood.

    `ordered` False: the index is only to be compared for equality (events).
    """

    request: Request
    parse: Callable[[Request, Answer], T]
    fine: tuple[int, ...] = ()
    ordered: bool = True


def fetch(query: Query[T]) -> Steps[T]:
    """Ask once."""
    answer = yield from call(query.request, *query.fine)
    return query.parse(query.request, answer)


def blocking(query: Query[T], index: int, wait_s: float) -> Request:
    """The query's request that is held back until something differs from `index`; `index` 0: answered at once."""
    if not index:
        return query.request
    request = query.request.with_params(("index", str(index)), ("wait", f"{max(1, round(wait_s * 1000))}ms"))
    return Request(request.method, request.path, request.params, request.body, wait_s, request.timeout_s)


def next_index(query: Query[T], index: int, answer: Answer) -> int:
    """The index to ask with after `answer`; 0 (start over) if it went back."""
    return 0 if query.ordered and answer.index < index else answer.index


class Watch(Generic[T]):
    """The values of one query over time. `step` returns the next one that differs from the last one.

    `trouble` is why the last query failed, None while all is well: the value may be out of date meanwhile. An answer that says the query
    itself is wrong (a 4xx but 429) is raised.
    """

    def __init__(self, query: Query[T], wait_s: float = 300.0, chance: Callable[[], float] = random.random) -> None:
        if not 0 < wait_s <= MAX_WAIT_S:
            raise ConfigError("wait_s", wait_s, f"is not within 0 and {MAX_WAIT_S:g} seconds")
        self._query, self._wait_s, self._chance = query, wait_s, chance
        self.index = 0
        self.trouble: ClientError | None = None
        self._failures = 0
        self._last: T | None = None
        self._seen = False

    def step(self) -> Steps[T]:
        while True:
            began = yield from clock()
            request = blocking(self._query, self.index, self._wait_s)
            try:
                answer = yield from call(request, *self._query.fine)
                value = self._query.parse(request, answer)
            except ClientError as error:
                yield from sleep(self._failed(error))
                continue
            self.trouble, self._failures = None, 0
            self.index = next_index(self._query, self.index, answer)
            if not self._seen or value != self._last:
                self._last, self._seen = value, True
                return value
            pace = PACE_S if answer.index else POLL_S
            yield from sleep(pace - ((yield from clock()) - began))

    def _failed(self, error: ClientError) -> float:
        """Seconds to wait after a failure; the error itself is raised if asking again cannot help."""
        if isinstance(error, ApiError) and 400 <= error.status < 500 and error.status != _BUSY:
            raise error
        self.trouble, self.index = error, 0
        self._failures += 1
        first, longest = BACKOFF_S
        return float(min(longest, first * 2 ** min(self._failures - 1, 10)) * (0.5 + 0.5 * self._chance()))
