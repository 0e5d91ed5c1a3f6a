# SPDX-License-Identifier: Apache-2.0
"""A DHCP server that is a few lines of Python, and links on which the agent's client reaches it without a network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network

from plait.dhcp.client import Send
from plait.dhcp.message import NOWHERE, Kind, Message, Option, decode, encode, encode_routes

ROUTER, SERVER_MAC = IPv4Address("198.18.0.254"), "02:00:00:00:00:fe"
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
        self.taken: dict[IPv4Address, str] = {}
        self._come: list[Message] = []

    def send(self, link: str, mac: str, said: Send) -> bool:
        self.sent.append(said)
        asked = decode(encode(said.message))
        for server in self.servers:
            if said.to in (None, server.address) and (answer := server.answer(asked)) is not None:
                self._come.append(decode(encode(answer)))
                self._wake()
        return link == "lo"

    def messages(self) -> Iterator[tuple[str, Message, str]]:
        come, self._come = self._come, []
        yield from (("lo", message, SERVER_MAC) for message in come)

    async def is_taken(self, link: str, mac: str, address: IPv4Address) -> str:
        return self.taken.get(address, "")

    def keep(self, links: Collection[str]) -> None:
        """Nothing is open."""


def routes(*ways: tuple[str, str]) -> dict[int, bytes]:
    """Option 121: (destination, next hop)."""
    return {Option.ROUTES: encode_routes(tuple((IPv4Network(to), IPv4Address(hop)) for to, hop in ways))}
