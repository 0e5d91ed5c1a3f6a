# SPDX-License-Identifier: Apache-2.0
"""The process that answers DNS: `python -I -m plait.serve.dns_child FD`, started by `dns_parent` with a socket pair's end.

A process of its own, because in the agent's every burst of work would hold up the answers; and a lean one, which is why it
and what it imports do without asyncio, dataclasses and ipaddress. It does what `dns_link` describes, knows nothing but what
it is told, and ends with its parent (end of file on the socket pair; SIGKILL from the kernel should it hang).
"""

from __future__ import annotations

import ctypes
import signal
import socket
import sys
import time
from typing import Any

from plait.dns.options import Options
from plait.dns.table import Changes, Table, apply_changes
from plait.serve.dns_core import Core
from plait.serve.dns_link import Frames, Upstreams, frame
from plait.serve.dns_listen import Listeners
from plait.serve.dns_reactor import GONE, READ, WRITE
from plait.serve.dns_tcp import TcpServer

_PR_SET_PDEATHSIG = 1
_CHUNK = 1 << 18


class Child:
    """All parts of the process, and the parent's end of the conversation."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._link.setblocking(False)
        self._frames, self._unsent, self._running = Frames(), bytearray(), True
        self._core = Core()
        self._tcp = TcpServer(self._core)
        self._listeners = Listeners(self._core, self._tcp)
        self._core.reactor.add(link.fileno(), READ, self._ready)
        self._core.later.say = lambda number, name: self._say((-number, name))
        self._say((0, None))

    def run(self) -> None:
        """Serve until the parent closes its end."""
        sweepers = (self._core.forwarder, self._core.later, self._tcp)
        while self._running:
            deadlines = [deadline for sweeper in sweepers if (deadline := sweeper.next_deadline()) is not None]
            self._core.reactor.poll(max(0.0, min(deadlines) - time.monotonic()) if deadlines else None)
            if deadlines:  # a deadline that was set in this round is not due yet
                now = time.monotonic()
                for sweeper in sweepers:
                    sweeper.sweep(now)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & (READ | GONE):
            try:
                data = self._link.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self._running = bool(data)
            for number, verb, *arguments in self._frames.feed(data):
                self._say((number, self._do(verb, arguments)))

    def _do(self, verb: str, arguments: list[Any]) -> object:
        """Carry out one request of the parent; the table of verbs is in `dns_link`."""
        if verb == "changes":
            table = self._core.responder.table
            for parts in arguments[0]:
                apply_changes(table, Changes(*parts))
            self._core.responder.set_table(table)
        elif verb == "table":
            self._core.responder.set_table(Table(*arguments[0]))
        elif verb == "listen":
            return self._listeners.set(arguments[0])
        elif verb == "upstreams":
            upstreams = Upstreams(*arguments[0])
            self._core.forwarder.set_upstreams(upstreams)
            self._core.responder.set_recursion(bool(upstreams.places))
        elif verb == "options":
            self._core.responder.set_options(Options(*arguments[0]))
        elif verb == "found":
            self._core.later.told(*arguments)
        elif verb == "stats":
            return self._core.counters.as_dict()
        else:
            raise ValueError(f"the agent asked for {verb!r}, which this child does not know: both must be of one version")
        return None

    def _say(self, message: tuple[object, ...]) -> None:
        self._unsent += frame(message)
        self._flush()

    def _flush(self) -> None:
        """Send what the parent takes now; a parent that does not read holds up nobody's answers."""
        try:
            del self._unsent[: self._link.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._running = False
            return
        self._core.reactor.change(self._link.fileno(), READ | (WRITE if self._unsent else 0))


def main() -> None:
    """Serve on the inherited descriptor that the first argument numbers."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    Child(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
