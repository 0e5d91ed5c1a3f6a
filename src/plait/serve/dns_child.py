# SPDX-License-Identifier: Apache-2.0
"""The process that answers DNS: `python -I -m plait.serve.dns_child LINK DESCRIPTORS [SUCCESSORS]`, started by `dns_process` with
descriptors of two socket pairs' ends and, perhaps, of a listening socket.

A process of its own, because in the agent's every burst of work would hold up the answers; and a lean one, which is why it
and what it imports do without asyncio, dataclasses and ipaddress. It does what `dns_link` describes, knows nothing but what
it is told, and ends with its agent (end of file on the link; SIGKILL from the kernel should it hang), or waits for a successor as
`dns_handover` describes.
"""

from __future__ import annotations

import ctypes
import signal
import socket
import sys
import time
from typing import Any

from plait.dns.heeded import Heeded
from plait.dns.options import Options
from plait.dns.table import Changes, Table, apply_changes
from plait.serve import dns_handover
from plait.serve.dns_core import Core
from plait.serve.dns_link import MOST_FDS, Frames, Limits, Upstreams, frame
from plait.serve.dns_listen import Listeners
from plait.serve.dns_reactor import GONE, READ, WRITE
from plait.serve.dns_tcp import TcpServer

_PR_SET_PDEATHSIG = 1
_CHUNK = 1 << 18


class Child:
    """All parts of the process, and its end of the conversation with the agent."""

    def __init__(self, link: socket.socket, descriptors: socket.socket, successors: socket.socket | None) -> None:
        self._link, self._descriptors, self._successors = link, descriptors, successors
        self._link.setblocking(False)
        self._frames, self._unsent, self._running = Frames(), bytearray(), True
        self._core = Core()
        self._tcp = TcpServer(self._core)
        self._listeners = Listeners(self._core, self._tcp)
        self._core.reactor.add(link.fileno(), READ, self._ready)
        self._core.later.say = lambda number, *asked: self._say((-number, ("query", *asked)))
        self._core.heeding.say = lambda number, *learned: self._say((-number, ("answer", *learned)))
        if successors is not None:
            successors.listen(1)  # once more: now it says that it is this process which waits there (unix(7), SO_PEERCRED)
        self._say((0, None))

    def run(self) -> None:
        """Serve until the agent closes its end, or until a successor has taken over and nothing is on its way any more."""
        sweepers = (self._core.forwarder, self._core.heeding, self._core.later, self._tcp)
        while self._running and not self._drained():
            deadlines = [deadline for sweeper in sweepers if (deadline := sweeper.next_deadline()) is not None]
            self._core.reactor.poll(max(0.0, min(deadlines) - time.monotonic()) if deadlines else None)
            if deadlines:  # a deadline that was set in this round is not due yet
                now = time.monotonic()
                for sweeper in sweepers:
                    sweeper.sweep(now)

    def _drained(self) -> bool:
        waits = (self._core.forwarder.next_deadline(), self._core.heeding.next_deadline())
        return self._tcp.give is not None and not self._tcp and waits == (None, None)

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
            if not data:
                self._orphaned()
            for number, verb, *arguments in self._frames.feed(data):
                self._say((number, self._do(verb, arguments)))

    def _do(self, verb: str, arguments: list[Any]) -> object:
        """Carry out one request of the parent; the table of verbs is in `dns_link`."""
        if verb == "changes":
            table = self._core.responder.table
            for parts in arguments[0]:
                apply_changes(table, Changes(*parts))
            self._take(table)
        elif verb == "table":
            self._take(Table(*arguments[0]))
        elif verb == "open":
            for name, sock in zip(arguments[0], self._received(), strict=True):
                self._listeners.open(name, sock)
        elif verb == "close":
            self._listeners.close(arguments[0])
        elif verb == "succeed":
            self._succeed(*self._received())
        elif verb == "upstreams":
            upstreams = Upstreams(*arguments[0])
            self._core.forwarder.set_upstreams(upstreams)
            self._core.responder.set_recursion(bool(upstreams.places))
        elif verb == "options":
            self._core.responder.set_options(Options(*arguments[0]))
        elif verb == "limits":
            self._core.limiter.limits = Limits(*arguments[0])
        elif verb == "heed":
            self._core.heeding.heeded = Heeded(arguments[0])
        elif verb == "kept":
            self._core.heeding.kept(*arguments)
        elif verb == "found":
            self._core.later.told(*arguments)
        elif verb == "stats":
            return self._core.counters.as_dict(), self._core.limiter.last()
        else:
            raise ValueError(f"the agent asked for {verb!r}, which this child does not know: both must be of one version")
        return None

    def _take(self, table: Table) -> None:
        """Answer from `table`, whose serial is the time of its last change: it goes on through whatever starts again (RFC 1912, 2.2)."""
        table.serial = int(time.time())
        self._core.responder.set_table(table)

    def _say(self, message: tuple[object, ...]) -> None:
        self._unsent += frame(message)
        self._flush()

    def _flush(self) -> None:
        """Send what the parent takes now; a parent that does not read holds up nobody's answers."""
        try:
            del self._unsent[: self._link.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:  # the agent has ended, which the next read says
            self._unsent.clear()
        self._core.reactor.change(self._link.fileno(), READ | (WRITE if self._unsent else 0))

    # --- sockets of others

    def _received(self) -> list[socket.socket]:
        """The sockets that came with the present request."""
        _, fds, _, _ = socket.recv_fds(self._descriptors, 1, MOST_FDS)
        return [socket.socket(fileno=fd) for fd in fds]

    def _succeed(self, link: socket.socket) -> None:
        """Have the predecessor at the other end of `link` stop, and serve the connections that it gives."""

        def given(_events: int) -> None:
            try:
                more = dns_handover.take(link, self._tcp.admit)
            except OSError:
                more = False
            if not more:
                self._core.reactor.remove(link.fileno())
                link.close()

        self._core.reactor.add(link.fileno(), READ, given)
        link.send(dns_handover.DRAIN)

    # --- after the agent's end

    def _orphaned(self) -> None:
        """Without an agent: end, or go on answering what is known until a successor does."""
        if self._successors is None:
            self._running = False
            return
        signal.alarm(dns_handover.LINGER)
        self._core.reactor.remove(self._link.fileno())
        self._core.later.orphaned()
        self._core.heeding.orphaned()
        self._core.reactor.add(self._successors.fileno(), READ, self._greet)

    def _greet(self, _events: int) -> None:
        assert self._successors is not None
        link, _ = self._successors.accept()
        try:
            dns_handover.greet(link, self._listeners.sockets())
        except OSError:  # it is gone; the next one may come
            link.close()
            return
        self._core.reactor.add(link.fileno(), READ, lambda _: self._drain(link))

    def _drain(self, link: socket.socket) -> None:
        """The successor answers: answer what has come, give it the connections. One that ended before it did is passed over."""
        self._core.reactor.remove(link.fileno())
        if link.recv(len(dns_handover.DRAIN)) != dns_handover.DRAIN:
            link.close()
            return
        signal.alarm(dns_handover.DRAIN_TIME)
        self._listeners.close(list(self._listeners.sockets()))
        self._tcp.hand_over(lambda sock, received: dns_handover.give(link, sock, received))


def main() -> None:
    """Serve on the inherited descriptors that the arguments number."""
    link, descriptors, *rest = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    if not rest:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    Child(link, descriptors, rest[0] if rest else None).run()


if __name__ == "__main__":
    main()
