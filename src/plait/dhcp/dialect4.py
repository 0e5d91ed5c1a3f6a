# SPDX-License-Identifier: Apache-2.0
"""What a client says and reads in DHCP for IPv4. Sources: RFC 2131, section 4.4 and table 5; RFC 2132; RFC 3442."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from plait.dhcp.client import HOLDING, Client, Lease, Offer, Refused, Send, State
from plait.dhcp.message import ASKED, NOWHERE, Kind, Message, Option
from plait.dhcp.message6 import Message6
from plait.model.addr import EitherAddress
from plait.model.leases import Leased, Way

EVERYWHERE, EVERYBODY = IPv4Network("0.0.0.0/0"), IPv4Address("255.255.255.255")
LEAST_MTU = 68
_LARGEST_MESSAGE = (1472).to_bytes(2, "big")


class Dialect4:
    largest_xid = 0xFFFFFFFF

    def ask(self, client: Client, now: float) -> Send:
        lease = client.lease
        message = _asking(client, now)
        if lease is not None and client.state is State.RENEWING:
            return Send(message, lease.server, lease.server_mac, lease.address)
        return Send(message, source=lease.address if lease is not None and client.state is State.REBINDING else None)

    def decline(self, client: Client, lease: Lease, now: float) -> Send:
        options: dict[int, bytes] = {Option.ADDRESS: lease.address.packed, Option.SERVER: lease.server.packed}
        return Send(_message(client, Kind.DECLINE, options, now, None))

    def end(self, client: Client, lease: Lease, now: float) -> Send:
        released = _message(client, Kind.RELEASE, {Option.SERVER: lease.server.packed}, now, lease)
        return Send(released, lease.server, lease.server_mac, lease.address)

    def read(self, client: Client, message: Message | Message6, by: str, source: EitherAddress) -> Offer | Lease | Refused | None:
        if not isinstance(message, Message) or not message.reply or message.mac != client.who.mac:
            return None
        server = message.options.get(Option.SERVER, b"")
        if message.kind is Kind.OFFER:
            offered = message.address(Option.SERVER) is not None and _usable(message.yiaddr)
            return Offer(message.yiaddr, server, facts(message)) if offered else None
        if client.offer is not None and server != client.offer.server_id:
            return None
        if message.kind is Kind.NAK:
            return Refused()
        return _lease(client, message, by) if message.kind is Kind.ACK else None


def _asking(client: Client, now: float) -> Message:
    """RFC 2131, table 5: what of the address, the server and the client's own address each request says."""
    options: dict[int, bytes] = {}
    kind = Kind.DISCOVER if client.state is State.SELECTING else Kind.REQUEST
    if client.state is State.SELECTING and client.wanted is not None:
        options[Option.ADDRESS] = client.wanted.packed
    if client.state is State.REBOOTING and client.lease is not None:
        options[Option.ADDRESS] = client.lease.address.packed
    if client.state is State.REQUESTING and client.offer is not None:
        options[Option.ADDRESS] = client.offer.address.packed
        options[Option.SERVER] = client.offer.server_id
    options |= {Option.PARAMETERS: ASKED, Option.LARGEST_MESSAGE: _LARGEST_MESSAGE}
    if client.who.name:
        options[Option.HOST_NAME] = client.who.name.encode()
    return _message(client, kind, options, now, client.lease if client.state in HOLDING else None)


def _message(client: Client, kind: Kind, options: dict[int, bytes], now: float, held: Lease | None) -> Message:
    """`held`: the lease whose address the client speaks from."""
    return Message(
        kind=kind,
        xid=client.xid,
        mac=client.who.mac,
        options=options | {Option.CLIENT: client.who.client_id},
        secs=max(0, int(now - client.began)),
        broadcast=held is None,
        ciaddr=held.address if held is not None and isinstance(held.address, IPv4Address) else NOWHERE,
    )


def _lease(client: Client, message: Message, by: str) -> Lease | None:
    """None if it says too little to be used. What it does not say again of before goes on."""
    seconds, before = message.number(Option.LEASE_TIME), client.lease
    server = message.address(Option.SERVER) or (before.server if before is not None else None)
    if not seconds or server is None or not _usable(message.yiaddr):
        return None
    return Lease(message.yiaddr, server, by, client.sent, seconds, *_times(message, seconds), facts(message))


def _times(message: Message, seconds: int) -> tuple[float, float]:
    """T1 and T2 as the server says them if that can be, else as RFC 2131, section 4.4.5, has them."""
    t1, t2 = message.number(Option.T1), message.number(Option.T2)
    return (float(t1), float(t2)) if t1 and t2 and t1 < t2 < seconds else (seconds * 0.5, seconds * 0.875)


def _usable(address: IPv4Address) -> bool:
    return not (address.is_unspecified or address.is_multicast or address.is_loopback or address == EVERYBODY)


def facts(message: Message) -> Leased:
    """What comes with an address."""
    ways = message.routes
    if ways is None:
        router = message.address(Option.ROUTER)
        ways = ((EVERYWHERE, router),) if router is not None else ()
    mtu = message.number(Option.MTU, 2) or 0
    return Leased(
        prefix=message.prefix or 0,
        ways=tuple(Way(to, via) for to, via in ways),
        dns=tuple(one for one in message.addresses(Option.DNS) if _usable(one)),
        domain=message.text(Option.DOMAIN),
        mtu=mtu if mtu >= LEAST_MTU else 0,
    )
