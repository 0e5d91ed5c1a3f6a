# SPDX-License-Identifier: Apache-2.0
"""A DHCP server that is a few lines of Python, and links on which the agent's client reaches it without a network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from plait.dhcp.client import Send
from plait.dhcp.message import NOWHERE, Kind, Message, Option, decode, encode, encode_routes
from plait.dhcp.message6 import Kind6, Message6, decode6, encode6
from plait.model.addr import EitherAddress

ROUTER, SERVER_MAC = IPv4Address("198.18.0.254"), "02:00:00:00:00:fe"
SIX, DUID = IPv6Address("fe80::fe"), b"\0\3\0\1server"
Routes = tuple[tuple[IPv4Network, IPv4Address | None], ...]


@dataclass
class FakeServer:
    """Gives 198.18.0.10 and up by client id, what is asked for if that is free. `silent`, `refuses`: what it does with requests; `more`:
    options besides mask, router, server and lease time."""

    address: IPv4Address = ROUTER
    seconds: int = 120
    silent: bool = False
    refuses: bool = False
    more: dict[int, bytes] = field(default_factory=dict)
    leases: dict[bytes, IPv4Address] = field(default_factory=dict)
    declined: set[IPv4Address] = field(default_factory=set)
    heard: list[Message] = field(default_factory=list)
    leases6: dict[bytes, IPv6Address] = field(default_factory=dict)
    declined6: set[IPv6Address] = field(default_factory=set)
    silent6: bool = False
    heard6: list[Message6] = field(default_factory=list)

    def answer(self, asked: Message) -> Message | None:
        self.heard.append(asked)
        client, server = asked.options[Option.CLIENT], asked.address(Option.SERVER)
        if self.silent or server not in (None, self.address):
            return None
        wanted = asked.address(Option.ADDRESS)
        if asked.kind is Kind.DISCOVER:
            return self._reply(asked, Kind.OFFER, self.leases.get(client) or self._free(wanted))
        if asked.kind is Kind.RELEASE:
            self.leases.pop(client, None)
        if asked.kind is Kind.DECLINE and wanted is not None:
            self.declined.add(wanted)
            self.leases.pop(client, None)
        if asked.kind is not Kind.REQUEST:
            return None
        address = wanted or asked.ciaddr
        if self.refuses or self.leases.get(client, address) != address or address in self._taken(client):
            return replace(self._reply(asked, Kind.NAK, NOWHERE))
        self.leases[client] = address
        return self._reply(asked, Kind.ACK, address)

    def answer6(self, asked: Message6) -> Message6 | None:
        """Gives fd00::10 and up by DUID."""
        self.heard6.append(asked)
        if self.silent or self.silent6 or asked.server not in (b"", DUID):
            return None
        kind = Kind6.ADVERTISE if asked.kind is Kind6.SOLICIT else Kind6.REPLY
        if asked.kind in (Kind6.RELEASE, Kind6.DECLINE):
            given = self.leases6.pop(asked.client, None)
            self.declined6 |= {given} if asked.kind is Kind6.DECLINE and given is not None else set()
            return Message6(kind, asked.xid, asked.client, DUID)
        if self.refuses:
            return Message6(kind, asked.xid, asked.client, DUID, asked.iaid, status=2)
        held = self.leases6.get(asked.client)
        if asked.kind in (Kind6.RENEW, Kind6.REBIND) and held != asked.address:
            return Message6(kind, asked.xid, asked.client, DUID, asked.iaid, status=3)
        taken = {*self.leases6.values(), *self.declined6}
        free = (IPv6Address(f"fd00::{n}") for n in range(10, 99))
        address = held or (asked.address if asked.address not in (None, *taken) else next(a for a in free if a not in taken))
        if kind is Kind6.REPLY:
            self.leases6[asked.client] = address
        return Message6(kind, asked.xid, asked.client, DUID, asked.iaid, address, self.seconds)

    def _taken(self, client: bytes) -> set[IPv4Address]:
        return self.declined | {address for other, address in self.leases.items() if other != client}

    def _free(self, wanted: IPv4Address | None) -> IPv4Address:
        taken = self._taken(b"")
        choice = [*([wanted] if wanted is not None else []), *(IPv4Address(f"198.18.0.{n}") for n in range(10, 250))]
        return next(address for address in choice if address not in taken)

    def _reply(self, asked: Message, kind: Kind, address: IPv4Address) -> Message:
        told = {Option.MASK: IPv4Address("255.255.255.0").packed, Option.ROUTER: ROUTER.packed} if kind is not Kind.NAK else {}
        time = {Option.LEASE_TIME: self.seconds.to_bytes(4, "big")} if kind is not Kind.NAK else {}
        options = {Option.SERVER: self.address.packed, **told, **time, **(self.more if kind is not Kind.NAK else {})}
        return Message(kind, asked.xid, asked.mac, options, reply=True, yiaddr=address)


class FakeWires:
    """In place of `agent.dhcpwires.Wires`: what is sent on `lo` reaches the servers at once, in the bytes of the wire."""

    def __init__(self, servers: Collection[FakeServer], wake: Callable[[], None]) -> None:
        self.servers, self._wake = servers, wake
        self.sent: list[Send] = []
        self.taken: dict[EitherAddress, str] = {}
        self._come: list[Message | Message6] = []

    def send(self, link: str, mac: str, said: Send) -> bool:
        self.sent.append(said)
        if isinstance(said.message, Message6):
            for server in self.servers:
                if (given := server.answer6(decode6(encode6(said.message)))) is not None:
                    self._come.append(decode6(encode6(given)))
                    self._wake()
            return link == "lo"
        asked = decode(encode(said.message))
        for server in self.servers:
            if said.to in (None, server.address) and (answer := server.answer(asked)) is not None:
                self._come.append(decode(encode(answer)))
                self._wake()
        return link == "lo"

    def messages(self) -> Iterator[tuple[str, Message | Message6, str, EitherAddress]]:
        come, self._come = self._come, []
        yield from (("lo", message, SERVER_MAC, SIX if isinstance(message, Message6) else ROUTER) for message in come)

    def standing_in(self, link: str, mac: str) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    async def is_taken(self, link: str, mac: str, address: EitherAddress) -> str:
        return self.taken.get(address, "")

    def keep(self, links: Collection[str]) -> None:
        """Nothing is open."""


def routes(*ways: tuple[str, str]) -> dict[int, bytes]:
    """Option 121: (destination, next hop)."""
    return {Option.ROUTES: encode_routes(tuple((IPv4Network(to), IPv4Address(hop)) for to, hop in ways))}
