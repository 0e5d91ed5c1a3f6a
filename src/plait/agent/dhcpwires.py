# SPDX-License-Identifier: Apache-2.0
"""The links of this host on which its containers' DHCP is spoken: one socket each, as long as somebody needs it.

A link that is gone, or down, loses what is sent on it; it is opened anew with the next message.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator
from ipaddress import IPv4Address
from typing import Protocol

from plait.dhcp.client import Send
from plait.dhcp.frames import (
    BROADCAST_MAC,
    EVERYBODY,
    claim,
    claim6,
    datagram,
    datagram6,
    here,
    payload6_of,
    payload_of,
    question,
    question6,
    sought,
)
from plait.dhcp.message import NOWHERE, DhcpError, Message, decode, encode
from plait.dhcp.message6 import Message6, decode6, encode6
from plait.model.addr import EitherAddress, link_local

PROBE_S = 0.2
"""How long another holder of an address has to answer before it is used."""


class Wire(Protocol):
    """See `kernel.linux.packets.PacketSocket`."""

    def fileno(self) -> int: ...

    def send(self, frame: bytes) -> None: ...

    def frames(self) -> list[tuple[bytes, bool]]: ...

    def close(self) -> None: ...


class LinkWire(Wire, Protocol):
    """One that tells the MAC of its link."""

    @property
    def mac(self) -> str: ...


class Wires:
    """`open_wire(link)` for DHCP, `open_arp(link)` for ARP, `open_claims(link)` and `open_neighbours(link, mac)` for what IPv6 has in its
    place, answers and questions: OSError if there is no such link. `wake()`: something has come."""

    def __init__(
        self,
        open_wire: Callable[[str], Wire],
        open_arp: Callable[[str], LinkWire],
        open_claims: Callable[[str], LinkWire],
        open_neighbours: Callable[[str, str], Wire],
        wake: Callable[[], None],
    ) -> None:
        self._open_wire, self._open_arp, self._open_claims = open_wire, open_arp, open_claims
        self._open_neighbours, self._wake = open_neighbours, wake
        self._open: dict[str, Wire] = {}

    def send(self, link: str, mac: str, said: Send) -> bool:
        """Whether it left; with `mac` as its sender."""
        frame = frame_of(mac, said)
        for _ in range(2):  # what was opened may be a link that is gone, whose name another one has
            try:
                self._wire(link).send(frame)
                return True
            except OSError:
                self._close(link)
        return False

    def messages(self) -> Iterator[tuple[str, Message | Message6, str, EitherAddress]]:
        """(link, message, sender's MAC and address) of what has come; what is no message of DHCP is nothing."""
        for link, wire in list(self._open.items()):
            try:
                frames = wire.frames()
            except OSError:
                self._close(link)
                continue
            for frame, summed in frames:
                with contextlib.suppress(DhcpError):
                    if (four := payload_of(frame, summed=summed)) is not None:
                        yield link, decode(four[2]), four[0], four[1]
                    elif (six := payload6_of(frame, summed)) is not None:
                        yield link, decode6(six[2]), six[0], six[1]

    async def is_taken(self, link: str, mac: str, address: EitherAddress) -> str:
        """The MAC of somebody else on the link than `mac` ("": than the link itself) who says to have `address`, "" if nobody does (RFC
        5227, RFC 4862, with one question)."""
        four = isinstance(address, IPv4Address)
        try:
            wire = self._open_arp(link) if four else self._open_claims(link)
        except OSError:
            return ""
        own = mac or wire.mac
        heard = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(wire.fileno(), heard.set)
        try:
            wire.send(question(own, address) if isinstance(address, IPv4Address) else question6(own, address))
            async with asyncio.timeout(PROBE_S):
                while True:
                    await heard.wait()
                    heard.clear()
                    for frame, _ in wire.frames():
                        found = claim(frame) if four else claim6(frame)
                        if found is not None and found[1] == address and found[0] != own:
                            return found[0]
        except (TimeoutError, OSError):
            return ""
        finally:
            loop.remove_reader(wire.fileno())
            wire.close()

    @contextlib.contextmanager
    def standing_in(self, link: str, mac: str) -> Iterator[None]:
        """Until this ends whoever asks for the link-local address of `mac` is told that it is there: a server answers no client whose
        neighbour it cannot be, and the client's own link is still to come."""
        try:
            wire = self._open_neighbours(link, mac)
        except OSError:
            yield
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(wire.fileno(), _answer, wire, mac)
        try:
            yield
        finally:
            loop.remove_reader(wire.fileno())
            wire.close()

    def keep(self, links: Collection[str]) -> None:
        """Close the others."""
        for link in self._open.keys() - set(links):
            self._close(link)

    def _wire(self, link: str) -> Wire:
        if link not in self._open:
            wire = self._open[link] = self._open_wire(link)
            asyncio.get_running_loop().add_reader(wire.fileno(), self._wake)
        return self._open[link]

    def _close(self, link: str) -> None:
        wire = self._open.pop(link, None)
        if wire is not None:
            asyncio.get_running_loop().remove_reader(wire.fileno())
            wire.close()


def frame_of(mac: str, said: Send) -> bytes:
    """What the client with that MAC sends."""
    if isinstance(said.message, Message6):
        return datagram6(encode6(said.message), mac)
    to = (said.mac, said.to) if said.to is not None and said.mac else (BROADCAST_MAC, said.to or EVERYBODY)
    return datagram(encode(said.message), (mac, said.source or NOWHERE), to)


def _answer(wire: Wire, mac: str) -> None:
    own = link_local(mac)
    with contextlib.suppress(OSError):
        for frame, _ in wire.frames():
            if (found := sought(frame)) is not None and found[2] == own and not found[1].is_unspecified:
                wire.send(here(mac, own, found[:2]))
