# SPDX-License-Identifier: Apache-2.0
"""What every listener of the DNS child needs: one loop, one responder, one forwarder, one set of counters."""

from __future__ import annotations

from plait.serve.dns_forward import Forwarder
from plait.serve.dns_heed import Heeding
from plait.serve.dns_later import Later
from plait.serve.dns_limit import Limiter
from plait.serve.dns_reactor import Reactor
from plait.serve.dns_responder import Counters, Responder


class Core:
    """Makes the shared parts; the listeners add themselves to `reactor`."""

    __slots__ = ("counters", "forwarder", "heeding", "later", "limiter", "reactor", "responder")

    def __init__(self) -> None:
        self.reactor, self.counters = Reactor(), Counters()
        self.responder = Responder(self.counters)
        self.limiter = Limiter(self.counters)
        self.heeding = Heeding(self.counters)
        self.forwarder = Forwarder(self.reactor, self.counters, self.heeding)
        self.later = Later(self.forwarder, self.counters)
