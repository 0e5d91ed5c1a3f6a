# SPDX-License-Identifier: Apache-2.0
"""What a client says and reads in DHCP for IPv6: one address (IA_NA), by multicast from its link-local one. Source: RFC 8415, section 18.

After a restart it asks any server to prolong what it has (Rebind), which tells both that it may go on and until when.
"""

from __future__ import annotations

from ipaddress import IPv6Address

from plait.dhcp.client import Client, Lease, Offer, Refused, Send, State
from plait.dhcp.message import Message
from plait.dhcp.message6 import Kind6, Message6
from plait.model.addr import EitherAddress
from plait.model.leases import Leased

IAID = 1
"""Of the only association of a client; each container is one (its DUID)."""
_DUID = 5
"""Where the DUID begins in a client id as RFC 4361 has it, behind type and IAID."""
_UNSPECIFIED_FAILURE = 1
_ALONE = Leased(128)
"""What is on the link, and who leads on, routers say (RFC 8415, section 21.6; RFC 4861)."""
_KINDS = {
    State.SELECTING: Kind6.SOLICIT,
    State.REQUESTING: Kind6.REQUEST,
    State.REBOOTING: Kind6.REBIND,
    State.RENEWING: Kind6.RENEW,
    State.REBINDING: Kind6.REBIND,
}


class Dialect6:
    largest_xid = 0xFFFFFF

    def ask(self, client: Client, now: float) -> Send:
        server, address = b"", client.wanted
        if client.state is State.REQUESTING and client.offer is not None:
            server, address = client.offer.server_id, client.offer.address
        elif client.lease is not None:
            server = bytes.fromhex(client.lease.server_id) if client.state is State.RENEWING else b""
            address = client.lease.address
        return Send(_message(client, _KINDS[client.state], address, server, now))

    def decline(self, client: Client, lease: Lease, now: float) -> Send:
        return Send(_message(client, Kind6.DECLINE, lease.address, bytes.fromhex(lease.server_id), now))

    def end(self, client: Client, lease: Lease, now: float) -> Send:
        return Send(_message(client, Kind6.RELEASE, lease.address, bytes.fromhex(lease.server_id), now))

    def read(self, client: Client, message: Message | Message6, by: str, source: EitherAddress) -> Offer | Lease | Refused | None:
        if not isinstance(message, Message6) or message.client != _duid(client) or not message.server:
            return None
        usable = message.iaid == IAID and message.address is not None and _usable(message.address) and message.valid > 0
        if message.kind is Kind6.ADVERTISE:
            offered = usable and not message.status and message.address is not None
            return Offer(message.address, message.server, _ALONE) if offered and message.address is not None else None
        if message.kind is not Kind6.REPLY or message.status == _UNSPECIFIED_FAILURE:
            return None
        if client.offer is not None and message.server != client.offer.server_id:
            return None
        if not usable or message.status or message.address is None:
            return Refused()
        times = _times(message)
        return Lease(message.address, source, by, client.sent, message.valid, *times, _ALONE, message.server.hex())


def _message(client: Client, kind: Kind6, address: EitherAddress | None, server: bytes, now: float) -> Message6:
    elapsed = max(0, int((now - client.began) * 100))
    return Message6(kind, client.xid, _duid(client), server, IAID, address if isinstance(address, IPv6Address) else None, elapsed=elapsed)


def _duid(client: Client) -> bytes:
    return client.who.client_id[_DUID:]


def _usable(address: IPv6Address) -> bool:
    return not (address.is_unspecified or address.is_multicast or address.is_loopback or address.is_link_local)


def _times(message: Message6) -> tuple[float, float]:
    """T1 and T2 as the server says them if that can be, else as RFC 8415, section 21.4, has them."""
    if 0 < message.t1 < message.t2 < message.valid:
        return float(message.t1), float(message.t2)
    return message.valid * 0.5, message.valid * 0.8
