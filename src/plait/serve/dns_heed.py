# SPDX-License-Identifier: Apache-2.0
"""Responses of upstreams that somebody wants to know of first: the agent is told the addresses, and the client gets them once it says
that it has them, so that whoever asks for a name may go there when he has the answer.

The agent has `WAIT` seconds; at most `OUTSTANDING` responses wait. One that it did not take in time, one more, and every one while there
is no agent, goes out as it is: a client is never left without an answer, and what the agent knows already it goes on knowing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from plait.dns.heeded import Addresses, Heeded
from plait.serve.dns_responder import Counters

WAIT = 1.0
OUTSTANDING = 256
Send = Callable[[], None]


class Heeding:
    """`say(number, name, addresses)`, set by who talks with the agent, tells it; that it has them comes to `kept`. None: no agent."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self.heeded = Heeded()
        self.say: Callable[[int, str, Addresses], None] | None = None
        self._number = 0
        self._waiting: dict[int, tuple[Send, float]] = {}

    def pass_on(self, query: bytes, response: bytes, send: Send) -> None:
        """Have `send` called once the agent knows what `response` says of the name that `query` asks for: at once, unless it wants to."""
        learned = self.heeded.learned(query, response)
        if learned is None:
            send()
        elif self.say is None or len(self._waiting) >= OUTSTANDING:
            self._counters.answers_unheeded += 1
            send()
        else:
            self._counters.answers_heeded += 1
            self._number += 1
            self._waiting[self._number] = send, time.monotonic() + WAIT
            self.say(self._number, *learned)

    def kept(self, number: int) -> None:
        """The agent has what it was told as `number`; the client may have waited for it no longer."""
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            waiting[0]()

    def orphaned(self) -> None:
        """The agent has ended: nobody waits for it."""
        self.say = None
        self.sweep(math.inf)

    def next_deadline(self) -> float | None:
        """When `sweep` has something to do (time.monotonic), None while the agent has taken everything."""
        return next((deadline for _, deadline in self._waiting.values()), None)

    def sweep(self, now: float) -> None:
        """Send what the agent left waiting."""
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            send, _ = self._waiting.pop(next(iter(self._waiting)))
            self._counters.answers_unheeded += 1
            send()
