# SPDX-License-Identifier: Apache-2.0
"""The sockets of DNS as the agent holds them: wanted addresses -> open sockets, which outlive the child that answers there.

The agent never reads them. While a child is replaced queries and connections wait in them for the next one.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from plait.serve.dns_holder import holder
from plait.serve.dns_link import Address, SocketName
from plait.serve.dns_socket import opened

_EXPLAIN_TIMEOUT = 5.0


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


class Sockets:
    """A UDP and a TCP socket for each wanted (address, port); `held` begins with those of an agent before."""

    def __init__(self) -> None:
        self.held: dict[SocketName, socket.socket] = {}

    async def set(self, wanted: Iterable[Address]) -> tuple[BindError, ...]:
        """Have exactly those of `wanted`, leaving alone what is open already. Returns what could not be opened; the next call tries that
        again."""
        names = [(protocol, address, port) for address, port in sorted(wanted) for protocol in ("udp", "tcp")]
        for gone in self.held.keys() - set(names):
            self.held.pop(gone).close()
        errors: list[BindError] = []
        for name in names:
            if name not in self.held:
                try:
                    self.held[name] = opened(name)
                except OSError as error:
                    errors.append(BindError(*name, error.errno or 0, await _holder(name)))
        return tuple(errors)

    def close(self) -> None:
        """Hold none. Who else has them goes on."""
        for sock in self.held.values():
            sock.close()
        self.held.clear()


async def _holder(name: SocketName) -> str:
    """Who is in the way, "" if that is not found out in time."""
    try:
        async with asyncio.timeout(_EXPLAIN_TIMEOUT):
            return await asyncio.to_thread(holder, *name)
    except TimeoutError:
        return ""
