# SPDX-License-Identifier: Apache-2.0
"""Queries whose response needs somebody else first: an upstream, the agent, or one after the other -> their responses, each once.

What the agent is asked (the prepared queries) it must answer within `TIMEOUT`; at most `OUTSTANDING` such questions wait, and one more
is answered SERVFAIL at once. Nothing of what comes back is kept: the next query asks again, and so never sees what was.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

from plait.dns import message as m
from plait.dns.answer import Ask, Fetch, Follow, Found, Origin, Pending, failure
from plait.serve.dns_forward import Done, Forwarder
from plait.serve.dns_responder import UDP_SIZE, Counters

TIMEOUT = 2.0
OUTSTANDING = 256


class Later:
    """`say(number, name, origin)`, set by who talks with the agent, asks it; its answer comes to `told`. None: there is no agent."""

    def __init__(self, forwarder: Forwarder, counters: Counters) -> None:
        self._forwarder, self._counters = forwarder, counters
        self.say: Callable[[int, bytes, Origin], None] | None = None
        self._number = 0
        self._asked: dict[int, tuple[Ask, Done, bool, float]] = {}

    def resolve(self, pending: Pending, data: bytes, done: Done, *, stream: bool = False) -> None:
        """Have `done` called with the response to the query `data`. `stream`: upstreams are asked over TCP."""
        if isinstance(pending, Ask):
            self._ask(pending, done, stream)
        elif isinstance(pending, Follow):
            self._follow(pending, done, stream)
        elif isinstance(pending, Fetch):
            self._fetch(pending, done, stream)
        else:
            self._forwarder.submit(pending.query, data, done, stream=stream)

    def _follow(self, follow: Follow, done: Done, stream: bool) -> None:
        def answered(response: bytes) -> None:
            if m.truncated(response) and not stream:  # the whole is to be had over TCP
                self._follow(follow, done, True)
            else:
                self._step(follow.finish(response), done, stream)

        self._forwarder.submit(follow.query, follow.data, answered, stream=stream)

    def _fetch(self, fetch: Fetch, done: Done, stream: bool) -> None:
        found: dict[int, bytes] = {}

        def answered(number: int, response: bytes) -> None:
            found[number] = response
            if len(found) == len(fetch.questions):
                done(fetch.finish([found[number] for number in sorted(found)]))

        for number, question in enumerate(fetch.questions):
            self._forwarder.submit(fetch.query, question, functools.partial(answered, number), stream=stream)

    def _step(self, result: bytes | Pending, done: Done, stream: bool) -> None:
        if isinstance(result, Pending):
            self.resolve(result, b"", done, stream=stream)
        else:
            done(result)

    def orphaned(self) -> None:
        """The agent has ended: who waits for it is answered SERVFAIL, and so is who asks for what it knows."""
        self.say = None
        self.sweep(math.inf)

    def _ask(self, ask: Ask, done: Done, stream: bool) -> None:
        if self.say is None or len(self._asked) >= OUTSTANDING:
            self._counters.query_rejected += 1
            done(failure(ask.query, UDP_SIZE))
            return
        self._counters.query_asked += 1
        self._number += 1
        self._asked[self._number] = ask, done, stream, time.monotonic() + TIMEOUT
        self.say(self._number, ask.name, ask.origin)

    def told(self, number: int, found: Found | None) -> None:
        """The agent's answer to question `number`; one that comes too late is passed over."""
        waiting = self._asked.pop(number, None)
        if waiting is not None:
            ask, done, stream, _ = waiting
            self._step(ask.finish(found), done, stream)

    def next_deadline(self) -> float | None:
        """When `sweep` has something to do (time.monotonic), None while the agent is asked nothing."""
        return next((deadline for _, _, _, deadline in self._asked.values()), None)

    def sweep(self, now: float) -> None:
        """Answer SERVFAIL to those whom the agent left waiting."""
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            ask, done, _, _ = self._asked.pop(next(iter(self._asked)))
            self._counters.query_failed += 1
            done(failure(ask.query, UDP_SIZE))
