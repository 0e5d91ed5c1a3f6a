# SPDX-License-Identifier: Apache-2.0
"""The DNS child's answers: the bytes of a query -> the bytes of its response, from a cache that lives as long as its table.

A stub resolver's queries for a name differ in nothing but the two bytes of id, so the cache is keyed by the rest of the
packet, and of names of containers by what the client sees of them besides. Where the order of records is random, a deck of
shuffled responses is dealt one by one and then made anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from plait.dns.answer import Pending, answer
from plait.dns.options import DEFAULTS, Options
from plait.dns.table import EMPTY, Table
from plait.dns.view import Networks, View, networks_of

UDP_SIZE = 8192
"""Most bytes over UDP, whatever the client takes: all listeners are local to the host, so a fragmented packet gets through."""
CACHE_BYTES = 2 << 20
"""Of keys and responses together; past it the cache is dropped whole."""
LARGE = 4096
"""Bytes of a response beyond which a deck holds one order alone."""
ORDERS, DEALS = 8, 16
"""A deck holds `ORDERS` shuffled responses, each `DEALS` times."""


class Counters:
    """What the child has done since it started; `as_dict` is what `stats` answers."""

    def __init__(self) -> None:
        self.udp_queries = 0
        self.tcp_queries = 0
        self.cache_misses = 0
        self.dropped = 0
        self.client_limited = 0
        self.expired = 0
        self.send_failures = 0
        self.tcp_connections = 0
        self.tcp_evicted = 0
        self.forwarded = 0
        self.forward_failed = 0
        self.forward_rejected = 0
        self.query_asked = 0
        self.query_failed = 0
        self.query_rejected = 0
        self.answers_heeded = 0
        self.answers_unheeded = 0

    def as_dict(self) -> dict[str, int]:
        """Name -> count. `forward_rejected`: answered SERVFAIL at once because too many were outstanding; `tcp_evicted`:
        connections closed to make room; `dropped`: messages that deserve no answer; `client_limited`: queries of clients that
        had their share; `expired`: those whose clients no longer waited; `query_…`: of prepared queries, which the agent is asked for;
        `answers_…`: of names that rules are for, sent once the agent knew their addresses, and without."""
        return dict(self.__dict__)


def choose(count: int) -> int:
    """A random number from 0 to `count` - 1; the bias of the remainder (count / 2**32) does not matter for load."""
    return int.from_bytes(os.urandom(4), "big") % count


Body = bytes | list[bytes]
"""A response but for its id, or a deck of such."""
Bodies = dict[Networks | None, Body]
"""The same of a question whose answer hangs on who asks, by what that one sees."""


class Responder:
    """Holds the current table. `recursion` says whether upstreams exist."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._table = EMPTY
        self._recursion = False
        self._options = DEFAULTS
        self._cache: dict[bytes, Body | Bodies] = {}
        self._stream_cache: dict[bytes, Body | Bodies] = {}
        self._cached = 0

    @property
    def table(self) -> Table:
        return self._table

    def set_table(self, table: Table) -> None:
        """From the next query on answer from `table`."""
        self._table = table
        self._flush()

    def set_recursion(self, recursion: bool) -> None:
        self._recursion = recursion
        self._flush()

    def set_options(self, options: Options) -> None:
        self._options = options
        self._flush()

    def reply(self, data: bytes, source: Callable[[int], bytes], slot: int = 0, *, stream: bool = False) -> bytes | Pending | None:
        """The response to a query that came over UDP, or over TCP (`stream`); None: none is due. `source(slot)` is the packed address of
        who asks; only names of containers need it."""
        cache = self._stream_cache if stream else self._cache
        body = cache.get(data[2:])
        if type(body) is bytes:
            return data[:2] + body
        if type(body) is list:
            return _dealt(data, body, cache, data[2:])
        address = source(slot)
        networks = networks_of(self._table, address)
        if type(body) is dict:
            mine = body.get(networks)
            if type(mine) is bytes:
                return data[:2] + mine
            if type(mine) is list:
                return _dealt(data, mine, body, networks)
        return self._make(data, View(networks, address), stream)

    def _answer(self, data: bytes, stream: bool, view: View) -> bytes | Pending | None:
        return answer(self._table, data, UDP_SIZE, choose, stream=stream, recursion=self._recursion, options=self._options, view=view)

    def _make(self, data: bytes, view: View, stream: bool) -> bytes | Pending | None:
        self._counters.cache_misses += 1
        response = self._answer(data, stream, view)
        if not isinstance(response, bytes):
            return response
        if self._cached > CACHE_BYTES:
            self._flush()
        cache, key = self._stream_cache if stream else self._cache, data[2:]
        body = self._body(data, response, stream, view)
        self._cached += len(data)
        if view.used:
            kept = cache.setdefault(key, {})
            assert type(kept) is dict  # what is seen by some alone is so for all, as long as the table is the same
            kept[view.networks] = body
        else:
            cache[key] = body
        return response

    def _body(self, data: bytes, response: bytes, stream: bool, view: View) -> Body:
        """What to answer to further copies of `data`. Of a large response one order must do: it costs more to make."""
        self._cached += len(response)
        if response[6:8] <= b"\0\1":
            return response[2:]
        orders = [response[2:]]
        while len(orders) < ORDERS and len(response) <= LARGE:
            another = self._answer(data, stream, view)
            assert isinstance(another, bytes)
            orders.append(another[2:])
        self._cached += len(response) * (len(orders) - 1)
        return orders * DEALS

    def _flush(self) -> None:
        self._cache.clear()
        self._stream_cache.clear()
        self._cached = 0


def _dealt(data: bytes, deck: list[bytes], cache: dict[Any, Any], key: object) -> bytes:
    """The next response of a deck, which is dropped with its last."""
    response = deck.pop()
    if not deck:
        del cache[key]
    return data[:2] + response
