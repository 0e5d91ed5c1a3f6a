# SPDX-License-Identifier: Apache-2.0
"""The sockets of DNS as the agent holds them: wanted addresses -> open sockets, which outlive the child that answers there.

The agent never reads them. While a child is replaced queries and connections wait in them for the next one.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from plait.serve.dns_holder import holder
from plait.serve.dns_link import Address, SocketName
from plait.serve.dns_socket import Place, opened, place_of

_EXPLAIN_TIMEOUT = 5.0
_OTHERS_MATTER = frozenset({errno.ENOENT, errno.EADDRINUSE})
"""In another namespace: it has gone, or a program there answers DNS itself."""


@dataclass(frozen=True, slots=True)
class BindError:
    """One socket that could not be opened; it is tried again every few seconds. `holder`: "name (pid 123)" or ""."""

    protocol: str
    address: str
    port: int
    errno: int
    holder: str = ""

    def __str__(self) -> str:
        why = os.strerror(self.errno).lower() + (f" by {self.holder}" if self.holder else "")
        return f"listening for DNS on {self.address}:{self.port}/{self.protocol}: {why}; stop what holds it or choose another address"


OpenInside = Callable[[str, str, str, Callable[[], socket.socket]], socket.socket]
"""Has the last argument open a socket in a namespace (its path) for an address there, which the third one asks. Blocks; OSError."""


def _nowhere(netns: str, *_: object) -> socket.socket:
    raise OSError(errno.EOPNOTSUPP, f"no way into {netns}")


class Sockets:
    """A UDP and a TCP socket for each wanted (address, port); `held` begins with those of an agent before."""

    def __init__(self, open_inside: OpenInside = _nowhere) -> None:
        self._open_inside = open_inside
        self.held: dict[SocketName, socket.socket] = {}

    async def set(self, wanted: Iterable[Address]) -> tuple[BindError, ...]:
        """Have exactly those of `wanted`, leaving alone what is open already. Returns what could not be opened; the next call tries that
        again."""
        names = [(protocol, address, port) for address, port in sorted(wanted) for protocol in ("udp", "tcp")]
        gone = {name: self.held.pop(name) for name in self.held.keys() - set(names)}
        moved = {_inside_of(name): sock for name, sock in gone.items() if place_of(name[1]) is not None}
        errors: list[BindError] = []
        for name in names:
            if name not in self.held:
                place = place_of(name[1])
                try:
                    there = moved.get(_inside_of(name))
                    self.held[name] = opened(name) if place is None else await asyncio.to_thread(self._inside, place, name, there)
                except OSError as error:
                    if place is None:
                        errors.append(BindError(*name, error.errno or 0, await _holder(name)))
                    elif error.errno not in _OTHERS_MATTER:
                        errors.append(BindError(*name, error.errno or 0))
        for sock in gone.values():
            sock.close()
        return tuple(errors)

    def _inside(self, place: Place, name: SocketName, there: socket.socket | None) -> socket.socket:
        """`there`: the socket that is in this place already, for an address that its namespace had before. The child may hold it still."""
        fresh = there.dup if there is not None else lambda: opened((name[0], place.address, name[2]))
        return self._open_inside(place.netns, place.address, place.own, fresh)

    def close(self) -> None:
        """Hold none. Who else has them goes on."""
        for sock in self.held.values():
            sock.close()
        self.held.clear()


def _inside_of(name: SocketName) -> tuple[str, str, str, int]:
    """(protocol, address, namespace, port) of a socket of another namespace: what only one can have."""
    place = place_of(name[1])
    return (name[0], place.address, place.netns, name[2]) if place is not None else (*name[:2], "", name[2])


async def _holder(name: SocketName) -> str:
    """Who is in the way, "" if that is not found out in time."""
    try:
        async with asyncio.timeout(_EXPLAIN_TIMEOUT):
            return await asyncio.to_thread(holder, *name)
    except TimeoutError:
        return ""
