# SPDX-License-Identifier: Apache-2.0
"""Queries of each client in the present second -> whether one more is answered, so that one program does not take all of the DNS child."""

from __future__ import annotations

import socket
import time

from plait.serve.dns_link import Limits
from plait.serve.dns_responder import Counters

CLIENTS = 4096
"""Most clients that are told apart; one more within the second, and all begin anew."""
_IPV4_SIZE = 4


class Limiter:
    """Counts in seconds of its own clock; a client may so have twice its rate around the turn of one."""

    def __init__(self, counters: Counters) -> None:
        self.limits = Limits()
        self._counters = counters
        self._counts: dict[bytes, int] = {}
        self._until = 0.0
        self._last = b""

    def __len__(self) -> int:
        """How many clients it knows now."""
        return len(self._counts)

    def admits(self, client: bytes) -> bool:
        """Count a query of the client with that packed address. False: it has had its share."""
        now = time.monotonic()
        if now >= self._until or (len(self._counts) >= CLIENTS and client not in self._counts):
            self._until = now + 1.0
            self._counts.clear()
        count = self._counts[client] = self._counts.get(client, 0) + 1
        if count <= self.limits.client_rate:
            return True
        self._counters.client_limited += 1
        self._last = client
        return False

    def last(self) -> str:
        """Whose query was turned away last, "" if none ever was."""
        family = socket.AF_INET if len(self._last) == _IPV4_SIZE else socket.AF_INET6
        return socket.inet_ntop(family, self._last) if self._last else ""
