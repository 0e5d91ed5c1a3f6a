# SPDX-License-Identifier: Apache-2.0
"""What agent and DNS child say to each other over their socket pair: tuples of plain values in length-prefixed frames.

The agent asks `(number, verb, *arguments)`, the child answers `(number, result)` in the order asked, so the answer to a
table is its acknowledgement and the number its generation. Before anything else the child says `(0, None)`: it is up.
The child says `(-number, ("query", name, origin))`: what does the prepared query of that name give to who asks from there? And
`(-number, ("answer", name, addresses))`: an upstream gives that name these addresses; may the client have them? (`dns_heed`)

| verb | arguments | result |
|---|---|---|
| `open` | list of (protocol, address, port): answer on these, whose sockets have come (see below) | None |
| `close` | list of (protocol, address, port): answer there no more | None |
| `succeed` | take over from the child at the other end of the socket that has come (`dns_handover`) | None |
| `upstreams` | `Upstreams.parts()` | None |
| `options` | `Options.parts()` | None |
| `limits` | `Limits.parts()` | None |
| `table` | `Table.parts()` | None |
| `changes` | list of `Changes.parts()`, in order | None |
| `heed` | list of names and patterns (`model.domains`) of which it wants to be told the addresses | None |
| `kept` | number: the agent has the addresses of that message of the child | None |
| `found` | number, `Found` or None: the answer to a question of the child | None |
| `stats` | | {counter: number}, address of the client whose query was turned away last |

`marshal` writes them: both ends run the same interpreter, trust each other, and need no further module for it. Descriptors come over a
second socket pair, of messages (SOCK_SEQPACKET): those for one request in one message, sent before it, and none before the last is
answered, so that it never fills up.
"""

from __future__ import annotations

import marshal
from collections.abc import Container, Iterable
from typing import Any

Message = tuple[Any, ...]
Address = tuple[str, int]
"""IP address as text, port."""
SocketName = tuple[str, str, int]
"""Protocol (`udp`, `tcp`), address, port."""
MOST_FDS = 250
"""Descriptors in one message; the kernel's bound is 253 (SCM_MAX_FD)."""

_PREFIX = 4


class Upstreams:
    """Resolvers for names that are not ours: `places` in order of preference, or each query beginning with one at `random`; one has
    `timeout` seconds; at most `outstanding` queries are on their way."""

    __slots__ = ("outstanding", "places", "random", "timeout")

    def __init__(self, places: Iterable[Address] = (), random: bool = False, timeout: float = 2.0, outstanding: int = 256) -> None:
        self.places, self.random, self.timeout, self.outstanding = tuple(places), random, timeout, outstanding

    def without(self, listen: Container[Address]) -> Upstreams:
        """The same but for where plait itself answers: no query goes in a circle."""
        return Upstreams((place for place in self.places if place not in listen), self.random, self.timeout, self.outstanding)

    def parts(self) -> tuple[tuple[Address, ...], bool, float, int]:
        """As plain values, `Upstreams(*parts)` again on the other side."""
        return self.places, self.random, self.timeout, self.outstanding


class Limits:
    """What is asked of clients: `client_rate` queries a second from one address at most, 0 for any number; and who asked over UDP more than
    `client_timeout` seconds ago waits for no answer any more."""

    __slots__ = ("client_rate", "client_timeout")

    def __init__(self, client_rate: int = 0, client_timeout: float = 5.0) -> None:
        self.client_rate, self.client_timeout = client_rate, client_timeout

    def parts(self) -> tuple[int, float]:
        """As plain values, `Limits(*parts)` again on the other side."""
        return self.client_rate, self.client_timeout


def frame(message: Message) -> bytes:
    """`message` as bytes for the wire."""
    body = marshal.dumps(message)
    return len(body).to_bytes(_PREFIX, "big") + body


class Frames:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes, in order; what is incomplete is kept for the next call."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= _PREFIX:
            end = _PREFIX + int.from_bytes(self._buffer[:_PREFIX], "big")
            if len(self._buffer) < end:
                break
            messages.append(marshal.loads(self._buffer[_PREFIX:end]))
            del self._buffer[:end]
        return messages
